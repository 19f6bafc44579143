//! Thousands of connections to a server, friends and strangers, leave no descriptor and no thread
//! behind. A test program of its own, since it counts those of the whole process.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use ringtree_transport::rendezvous::{Server, Store, StoreClient, listen};
use ringtree_transport::secure::{Job, Secret};

#[test]
fn thousands_of_connections_leave_nothing_behind() {
    let before = (open_descriptors(), threads());
    for _ in 0..3 {
        let server = Server::start(listen("127.0.0.1:0").unwrap(), job(), |_, _| {}).unwrap();
        let silent = TcpStream::connect(server.address()).unwrap();
        thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(|| disturb(server.address()))));
        });
        let waiting = client(server.address());
        thread::scope(|scope| {
            scope.spawn(|| waiting.get("never", soon()).unwrap_err());
            drop(server);
        });
        drop(silent);
    }
    let deadline = soon();
    while (open_descriptors(), threads()) != before {
        let now = (open_descriptors(), threads());
        assert!(Instant::now() < deadline, "descriptors and threads: {before:?}, then {now:?}");
        // A joined thread is in /proc until the kernel has reaped it.
        thread::yield_now();
    }
}

/// A thousand connections, of all kinds.
fn disturb(address: SocketAddr) {
    for turn in 0..250u8 {
        drop(TcpStream::connect(address).unwrap());
        let mut garbage = TcpStream::connect(address).unwrap();
        let _ = garbage.write_all(&vec![turn; usize::from(turn)]);
        let wrong = Job { secret: Secret::from_text("wrong"), ..job() };
        StoreClient::connect(&address.to_string(), &wrong, soon()).unwrap_err();
        client(address).add("count", 1, soon()).unwrap();
    }
}

fn client(address: SocketAddr) -> Store {
    Store::Tcp(StoreClient::connect(&address.to_string(), &job(), soon()).unwrap())
}

fn job() -> Job {
    Job { name: "job".into(), secret: Secret::from_text("secret") }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}
