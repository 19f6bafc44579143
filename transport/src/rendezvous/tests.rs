//! The store, in memory and over TCP, among friends and strangers.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::*;
use crate::host_port::HostPort;
use crate::secure::{Job, Purpose, Secret, SecureError};

fn job(secret: &str) -> Job {
    Job { name: "job".into(), secret: Secret::from_text(secret) }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn server() -> Server {
    Server::start(listen("127.0.0.1:0").unwrap(), job("s"), |_, _| {}).unwrap()
}

fn client(server: &Server) -> Store {
    Store::Tcp(StoreClient::connect(&server.address().to_string(), &job("s"), soon()).unwrap())
}

/// Runs a scenario on both kinds of store; `open` gives each rank its own.
fn on_both(scenario: impl Fn(&(dyn Fn() -> Store + Sync))) {
    let shared = MemoryStore::new();
    scenario(&|| Store::Memory(shared.clone()));
    let server = server();
    scenario(&|| client(&server));
}

#[test]
fn values_are_set_and_read() {
    on_both(|open| {
        let (a, b) = (open(), open());
        a.set("key", b"one", soon()).unwrap();
        assert_eq!(b.get("key", soon()).unwrap(), b"one");
        b.set("key", b"", soon()).unwrap();
        assert_eq!(a.get("key", soon()).unwrap(), b"");
        let long = vec![7; VALUE_LIMIT_BYTES];
        a.set("long", &long, soon()).unwrap();
        assert!(b.get("long", soon()).unwrap() == long);
    });
}

#[test]
fn getting_waits_for_setting() {
    on_both(|open| {
        let (a, b) = (open(), open());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| a.get("late", soon()).unwrap());
            b.set("other", b"", soon()).unwrap();
            b.set("late", b"here", soon()).unwrap();
            assert_eq!(waiting.join().unwrap(), b"here");
        });
    });
}

#[test]
fn a_deadline_ends_the_wait_and_the_store_goes_on() {
    on_both(|open| {
        let store = open();
        let deadline = Instant::now() + Duration::from_millis(20);
        let error = store.get("never", deadline).unwrap_err();
        assert_eq!(error, StoreError::TimedOut { key: "never".into() });
        store.set("never", b"now", soon()).unwrap();
        assert_eq!(store.get("never", Instant::now()).unwrap(), b"now");
    });
}

#[test]
fn counters_add_up() {
    on_both(|open| {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let store = open();
                    (0..50).for_each(|_| assert!(store.add("count", 2, soon()).unwrap() > 0));
                });
            }
        });
        let store = open();
        assert_eq!(store.add("count", -1, soon()).unwrap(), 799);
        assert_eq!(store.get("count", soon()).unwrap(), 799i64.to_le_bytes());
        store.set("text", b"x", soon()).unwrap();
        let error = store.add("text", 1, soon()).unwrap_err();
        assert_eq!(error, StoreError::NotCounter { key: "text".into() });
    });
}

#[test]
fn a_gather_gives_everyone_everything_by_rank() {
    on_both(|open| {
        let ranks = 32;
        thread::scope(|scope| {
            for rank in 0..ranks {
                scope.spawn(move || {
                    let store = open();
                    for turn in ["first", "second"] {
                        let value = format!("{turn} of {rank}");
                        let values =
                            store.gather(turn, rank, ranks, value.as_bytes(), soon()).unwrap();
                        let expected: Vec<Vec<u8>> =
                            (0..ranks).map(|rank| format!("{turn} of {rank}").into()).collect();
                        assert_eq!(values, expected);
                    }
                });
            }
        });
    });
}

#[test]
fn a_prefix_can_be_gathered_again_when_all_have_left() {
    on_both(|open| {
        let store = open();
        for value in [b"a", b"b"] {
            assert_eq!(store.gather("again", 0, 1, value, soon()).unwrap(), [value]);
        }
    });
}

#[test]
fn a_gather_names_the_ranks_that_did_not_come() {
    on_both(|open| {
        let ranks = 12;
        let deadline = Instant::now() + Duration::from_millis(100);
        thread::scope(|scope| {
            for rank in [0, 2, 6, 7, 9] {
                scope.spawn(move || {
                    // A rank that comes late, on a busy machine, is missed by those before it.
                    let error = open().gather("g", rank, ranks, b"", deadline).unwrap_err();
                    let StoreError::Missing { prefix, ranks: missing, of } = &error else {
                        panic!("{error}");
                    };
                    assert_eq!((prefix.as_str(), *of), ("g", 12));
                    assert!([1, 3, 4, 5, 8, 10, 11].iter().all(|rank| missing.contains(rank)));
                    assert!(!missing.contains(&rank));
                });
            }
        });
        let error = open().gather("g", 0, ranks, b"", Instant::now()).unwrap_err();
        let said = "ranks 1, 3-5, 8 and 10-11 of 12 did not come to \"g\" in time";
        assert_eq!(error.to_string(), said);
    });
}

#[test]
fn a_late_rank_completes_a_gather_that_was_tried_before() {
    on_both(|open| {
        let (a, b) = (open(), open());
        a.gather("g", 0, 2, b"a", Instant::now()).unwrap_err();
        thread::scope(|scope| {
            scope.spawn(|| assert_eq!(a.gather("g", 0, 2, b"a", soon()).unwrap(), [b"a", b"b"]));
            assert_eq!(b.gather("g", 1, 2, b"b", soon()).unwrap(), [b"a", b"b"]);
        });
    });
}

#[test]
fn contradictions_between_ranks_are_named() {
    on_both(|open| {
        let store = open();
        let now = Instant::now();
        store.gather("g", 1, 4, b"one", now).unwrap_err();
        let error = store.gather("g", 1, 4, b"another", now).unwrap_err();
        assert_eq!(error, StoreError::Claimed { prefix: "g".into(), rank: 1 });
        let error = store.gather("g", 2, 5, b"", now).unwrap_err();
        assert_eq!(error, StoreError::RanksDiffer { prefix: "g".into(), ranks: 5, others: 4 });
    });
}

#[test]
fn limits_are_checked() {
    on_both(|open| {
        let store = open();
        let invalid = |outcome: Result<(), StoreError>| {
            assert!(matches!(outcome, Err(StoreError::Invalid { .. })), "{outcome:?}");
        };
        invalid(store.set(&"k".repeat(KEY_LIMIT_BYTES + 1), b"", soon()));
        invalid(store.set("k", &vec![0; VALUE_LIMIT_BYTES + 1], soon()));
        invalid(store.gather("g", 3, 3, b"", soon()).map(drop));
        invalid(store.gather("g", 0, RANKS_LIMIT + 1, b"", soon()).map(drop));
    });
}

/// A port that refuses connections and that nobody else gets, and its address.
fn reserved_port() -> (Socket, String) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap().to_string();
    (socket, address)
}

#[test]
fn a_client_waits_for_a_server_that_starts_later() {
    let (port, address) = reserved_port();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| StoreClient::connect(&address, &job("s"), soon()).unwrap());
        port.listen(1).unwrap();
        let _server = Server::start(port.into(), job("s"), |_, _| {}).unwrap();
        waiting.join().unwrap();
    });
}

#[test]
fn nobody_there_is_an_error_at_the_deadline() {
    let (_port, address) = reserved_port();
    let deadline = Instant::now() + Duration::from_millis(50);
    let error = StoreClient::connect(&address, &job("s"), deadline).unwrap_err();
    assert!(matches!(&error, StoreError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("is rank 0 running there"), "{error}");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let server = server();
    let error = listen(&server.address().to_string()).unwrap_err();
    assert!(error.to_string().contains(&server.address().to_string()), "{error}");
}

#[test]
fn a_wrong_secret_fails_at_once() {
    let server = server();
    let address = server.address().to_string();
    let started = Instant::now();
    let error = StoreClient::connect(&address, &job("wrong"), soon()).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(30), "did not wait for the deadline");
    assert!(error.to_string().contains("check RINGTREE_SECRET"), "{error}");
    let refused = SecureError::Refused { peer: address.clone() };
    assert_eq!(error, StoreError::Refused { address, source: refused });
    client(&server).set("k", b"", soon()).unwrap();
}

#[test]
fn links_are_not_made_at_the_store() {
    let server = server();
    let error = connect(&server.address().to_string(), &job("s"), Purpose::Link, b"", soon());
    assert!(error.unwrap_err().to_string().contains("makes no links"));
}

#[test]
fn control_connections_are_passed_on_and_outlive_the_server() {
    let (sender, receiver) = mpsc::channel();
    let on_control = move |stream, hello| sender.send((stream, hello)).unwrap();
    let server = Server::start(listen("127.0.0.1:0").unwrap(), job("s"), on_control).unwrap();
    let address = server.address().to_string();
    let mut mine = connect(&address, &job("s"), Purpose::Control, b"rank 3", soon()).unwrap();
    let (mut theirs, hello) = receiver.recv().unwrap();
    assert_eq!(hello, b"rank 3");
    drop(server);
    theirs.send(b"verdict", soon()).unwrap();
    assert_eq!(mine.receive(soon()).unwrap(), b"verdict");
}

#[test]
fn strangers_do_not_disturb_a_gather() {
    let server = server();
    let address = server.address();
    // Silent until the end, and cut off before that or not: nobody waits for them.
    let _silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..60u8 {
                let mut stranger = TcpStream::connect(address).unwrap();
                // The server may hang up at any moment.
                let _ = stranger.write_all(&vec![round; usize::from(round) * 9]);
            }
        });
        for rank in 0..16 {
            let server = &server;
            scope.spawn(move || {
                assert_eq!(client(server).gather("g", rank, 16, b"x", soon()).unwrap().len(), 16);
            });
        }
    });
}

#[test]
fn unknown_requests_get_an_answer_and_harm_nobody() {
    let server = server();
    let address = server.address().to_string();
    let mut stream = connect(&address, &job("s"), Purpose::Store, b"", soon()).unwrap();
    let mut requests = vec![Vec::new(), vec![0; 9], vec![255; 40]];
    let gather = Request::Gather { prefix: "g".into(), rank: 0, ranks: 1, value: b"v".to_vec() };
    let whole = gather.encode(Duration::ZERO);
    requests.extend((0..whole.len()).map(|len| whole[..len].to_vec()));
    for request in requests {
        stream.send(&request, soon()).unwrap();
        let answer = wire::decode_answer(&stream.receive(soon()).unwrap()).unwrap();
        assert!(matches!(answer, Err(StoreError::Invalid { .. })), "{request:?}: {answer:?}");
    }
    stream.send(&whole, soon()).unwrap();
    assert!(wire::decode_answer(&stream.receive(soon()).unwrap()).unwrap().is_ok());
}

#[test]
fn dropping_the_server_wakes_those_who_wait() {
    let server = server();
    let store = client(&server);
    let local = Store::Memory(server.store());
    let mut stranger = TcpStream::connect(server.address()).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.get("never", soon()).unwrap_err());
        let inside = scope.spawn(|| local.gather("never", 0, 2, b"", soon()).unwrap_err());
        drop(server);
        let error = waiting.join().unwrap();
        assert!(matches!(error, StoreError::Lost { .. } | StoreError::Stopped), "{error}");
        assert_eq!(inside.join().unwrap(), StoreError::Stopped);
    });
    // The stranger's handshake was cut off, too.
    assert!(matches!(stranger.read(&mut [0; 1]), Ok(0) | Err(_)));
}

#[test]
fn a_lost_connection_is_said_again() {
    let server = server();
    let store = client(&server);
    let Store::Tcp(client) = &store else { unreachable!() };
    let address = server.address().to_string();
    assert!(client.local_address().is_loopback());
    drop(server);
    let error = store.set("k", b"", soon()).unwrap_err();
    assert!(matches!(error, StoreError::Lost { .. }), "{error}");
    let again = store.set("k", b"", soon()).unwrap_err();
    assert_eq!(again, StoreError::Disconnected { address });
}

/// A folder of a test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("ringtree-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn names(&self) -> usize {
        fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_file_tells_where_the_store_is_as_long_as_it_is_there() {
    let folder = Folder::new("notice");
    let path = folder.0.join("meet");
    let place = format!("file:{}", path.display());
    thread::scope(|scope| {
        // It waits for the file first.
        let waiting = scope.spawn(|| StoreClient::connect(&place, &job("s"), soon()).unwrap());
        let server = server();
        let notice = Notice::publish(&path, &job("s"), &server.address().into()).unwrap();
        assert_eq!(waiting.join().unwrap().address(), server.address().to_string());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(folder.names(), 1, "nothing else stays in the folder");
        drop(notice);
        assert_eq!(folder.names(), 0);
    });
}

#[test]
fn a_file_of_another_job_is_not_believed_and_said_at_the_deadline() {
    let folder = Folder::new("foreign");
    let path = folder.0.join("meet");
    let place = format!("file:{}", path.display());
    let error = |job: &Job| {
        let deadline = Instant::now() + Duration::from_millis(20);
        StoreClient::connect(&place, job, deadline).unwrap_err().to_string()
    };
    assert!(error(&job("s")).contains("it is not there"));
    let server = server();
    let _notice = Notice::publish(&path, &job("s"), &server.address().into()).unwrap();
    let other = Job { name: "other".into(), ..job("s") };
    for stranger in [job("t"), other] {
        let error = error(&stranger);
        assert!(error.contains("of another job, or of another secret"), "{error}");
    }
    for text in ["", "something", "ringtree rendezvous\n", &"x".repeat(2000)] {
        fs::write(&path, text).unwrap();
        assert!(error(&job("s")).contains("not one that Ringtree wrote"), "{text}");
    }
}

/// What a killed run leaves: its file names a port that nobody, or somebody else, listens on.
#[test]
fn a_stale_file_does_not_stop_the_next_run() {
    let folder = Folder::new("stale");
    let path = folder.0.join("meet");
    let place = format!("file:{}", path.display());
    let stranger = Server::start(listen("127.0.0.1:0").unwrap(), job("t"), |_, _| {}).unwrap();
    let gone = listen("127.0.0.1:0").unwrap().local_addr().unwrap();
    for stale in [gone, stranger.address()] {
        std::mem::forget(Notice::publish(&path, &job("s"), &stale.into()).unwrap());
        let deadline = Instant::now() + Duration::from_millis(20);
        let error = StoreClient::connect(&place, &job("s"), deadline).unwrap_err().to_string();
        assert!(error.contains(&format!("{stale}, which it names")), "{error}");
        thread::scope(|scope| {
            let early = scope.spawn(|| StoreClient::connect(&place, &job("s"), soon()).unwrap());
            let server = server();
            let _notice = Notice::publish(&path, &job("s"), &server.address().into()).unwrap();
            assert_eq!(early.join().unwrap().address(), server.address().to_string());
        });
    }
}

#[test]
fn a_file_that_another_run_has_replaced_stays() {
    let folder = Folder::new("replaced");
    let path = folder.0.join("meet");
    let publish = |port| {
        let address = HostPort { host: "localhost".into(), port: Some(port) };
        Notice::publish(&path, &job("s"), &address).unwrap()
    };
    let (first, second) = (publish(1), publish(2));
    drop(first);
    assert_eq!(folder.names(), 1);
    drop(second);
    assert_eq!(folder.names(), 0);
    let nowhere = folder.0.join("no such folder/meet");
    let error = Notice::publish(&nowhere, &job("s"), &HostPort::from_host("a").unwrap());
    assert!(matches!(error, Err(StoreError::Notice { .. })), "{error:?}");
}

#[test]
fn the_store_is_reached_over_ipv6_too() {
    let server = Server::start(listen("[::1]:0").unwrap(), job("s"), |_, _| {}).unwrap();
    let store = client(&server);
    store.set("k", b"v", soon()).unwrap();
    assert_eq!(store.get("k", soon()).unwrap(), b"v");
}

#[test]
fn where_the_port_is_not_given_it_is_one_of_the_range() {
    let pid = std::process::id();
    let ip = format!("127.102.{}.{}", (pid >> 8) & 255, pid & 255);
    let ports = Some("40000-40001".parse().unwrap());
    let listener = listen_within(&format!("{ip}:0"), ports).unwrap();
    assert_eq!(listener.local_addr().unwrap().port(), 40000);
    let outside = listen_within(&format!("{ip}:39999"), ports).unwrap();
    assert_eq!(outside.local_addr().unwrap().port(), 39999, "one that is given is kept");
    let _second = listen_within(&format!("{ip}:0"), ports).unwrap();
    let error = listen_within(&format!("{ip}:0"), ports).unwrap_err().to_string();
    assert!(error.contains("RINGTREE_PORTS=40000-40001"), "{error}");
}

#[test]
fn answers_survive_the_wire() {
    let name = || "name".to_owned();
    let answers = [
        Ok(Reply::Done),
        Ok(Reply::Value(vec![1, 2, 3])),
        Ok(Reply::Sum(i64::MIN)),
        Ok(Reply::Values(Arc::new(vec![vec![], vec![9; 300]]))),
        Err(StoreError::Stopped),
        Err(StoreError::TimedOut { key: name() }),
        Err(StoreError::Missing { prefix: name(), ranks: vec![1, 70_000], of: 70_001 }),
        Err(StoreError::Claimed { prefix: name(), rank: 3 }),
        Err(StoreError::RanksDiffer { prefix: name(), ranks: 3, others: 4 }),
        Err(StoreError::NotCounter { key: name() }),
        Err(StoreError::Invalid { reason: name() }),
    ];
    for answer in answers {
        let bytes = wire::encode_answer(&answer);
        if !matches!(answer, Err(StoreError::Invalid { .. })) {
            assert_eq!(wire::decode_answer(&bytes), Some(answer));
        }
        for len in 0..bytes.len() {
            assert_eq!(wire::decode_answer(&bytes[..len]), None, "truncated to {len} bytes");
        }
        assert_eq!(wire::decode_answer(&[&bytes[..], &[0]].concat()), None, "a trailing byte");
    }
}
