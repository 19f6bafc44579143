//! Endpoints that meet, that must not meet, and strangers at their doors.

use std::io::Write;
use std::net::TcpStream;
use std::thread;

use nix::sys::socket::{Backlog, listen};

use super::*;
use crate::secure::{Secret, accept, initiate};
use crate::shm::{Attach, Board};
use crate::{Tag, TransportKind};

const HELLO: Hello = Hello {
    communicator: 7,
    from: 0,
    to: 5,
    link: 1,
    connection: 0,
    connections: 1,
    encrypts: false,
    checksums: false,
    makes_rdma: false,
};

fn job(secret: &str) -> Job {
    Job { name: "job".into(), secret: Secret::from_text(secret) }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn config(rank: u32, transports: Transports) -> EndpointConfig {
    EndpointConfig {
        rdma: RdmaConfig::default(),
        job: job("s"),
        communicator: 7,
        rank,
        transports,
        interface: None,
        ports: None,
        advertise: vec![],
        sockets: 1,
        encrypts: false,
        checksums: false,
        attach: Attach::Auto,
        rendezvous: None,
        board: Board::new().unwrap().memory().clone(),
    }
}

fn endpoint(rank: u32, transports: Transports) -> Endpoint {
    Endpoint::bind(config(rank, transports)).unwrap()
}

fn connect(endpoint: &Endpoint, peer: &Endpoint) -> Result<Link, EndpointError> {
    endpoint.connect(peer.config.rank, &peer.address(), soon(), &|| false)
}

/// The links of two endpoints, lower rank first.
fn meet(low: &Endpoint, high: &Endpoint) -> (Link, Link) {
    thread::scope(|scope| {
        let dialed = scope.spawn(|| connect(low, high).unwrap());
        let accepted = connect(high, low).unwrap();
        (dialed.join().unwrap(), accepted)
    })
}

/// Moves a byte from one end to the other.
fn check(from: &mut Link, to: &mut Link) {
    static BYTE: [u8; 1] = [42];
    let tag = Tag { sequence: 1, digest: 2 };
    // SAFETY: a static is readable for ever.
    unsafe { from.post(0, tag, BYTE.as_ptr(), 1, true).unwrap() };
    let deadline = soon();
    let arrival = loop {
        from.poll(0).unwrap();
        to.poll(0).unwrap();
        match to.arrival(0).unwrap() {
            Some(arrival) => break arrival,
            None => assert!(Instant::now() < deadline, "the byte did not arrive"),
        }
        thread::yield_now();
    };
    assert_eq!((arrival.len, arrival.last, arrival.tag), (1, true, tag));
    // SAFETY: the arrival has one byte and is not released.
    assert_eq!(unsafe { *arrival.data }, 42);
    to.release(0, 1).unwrap();
}

/// An address like the endpoint's, altered.
fn altered(endpoint: &Endpoint, alter: impl FnOnce(&mut Address)) -> Vec<u8> {
    let mut address = endpoint.own.clone();
    alter(&mut address);
    address.encode()
}

fn of_another_host(endpoint: &Endpoint) -> Vec<u8> {
    altered(endpoint, |address| {
        address.host = "b".into();
        address.pid = 12;
        address.socket_name = address.socket_name.as_ref().map(|_| "ringtree-elsewhere".into());
    })
}

#[test]
fn two_ranks_of_a_host_share_memory_unless_told_otherwise() {
    for (transports, kind) in [
        (Transports::Auto, TransportKind::Shm),
        (Transports::Shm, TransportKind::Shm),
        (Transports::Tcp, TransportKind::Tcp),
    ] {
        let (low, high) = (endpoint(2, transports), endpoint(5, transports));
        let (mut a, mut b) = meet(&low, &high);
        assert_eq!((a.kind(), a.peer()), (kind, 5));
        assert_eq!((b.kind(), b.peer()), (kind, 2));
        drop((low, high));
        check(&mut a, &mut b);
        check(&mut b, &mut a);
    }
}

#[test]
fn the_lower_rank_does_not_wait_for_the_others_call() {
    for transports in [Transports::Shm, Transports::Tcp] {
        let (low, high) = (endpoint(0, transports), endpoint(1, transports));
        let mut dialed = connect(&low, &high).unwrap();
        let mut accepted = connect(&high, &low).unwrap();
        check(&mut dialed, &mut accepted);
    }
}

#[test]
fn many_ranks_meet_in_any_order() {
    let endpoints: Vec<Endpoint> = (0..8).map(|rank| endpoint(rank, Transports::Auto)).collect();
    thread::scope(|scope| {
        for (rank, own) in endpoints.iter().enumerate() {
            let endpoints = &endpoints;
            scope.spawn(move || {
                for step in 1..8 {
                    let peer = (rank + step) % 8;
                    let link = connect(own, &endpoints[peer]).unwrap();
                    assert_eq!(link.peer() as usize, peer);
                }
            });
        }
    });
}

#[test]
fn without_the_peers_socket_auto_takes_tcp() {
    let (low, high) = (endpoint(0, Transports::Auto), endpoint(1, Transports::Auto));
    let mut a = low.connect(1, &of_another_host(&high), soon(), &|| false).unwrap();
    let mut b = connect(&high, &low).unwrap();
    assert_eq!((a.kind(), b.kind()), (TransportKind::Tcp, TransportKind::Tcp));
    check(&mut a, &mut b);
}

#[test]
fn auto_takes_tcp_where_memory_cannot_be_shared() {
    let (low, high) = (endpoint(0, Transports::Auto), endpoint(1, Transports::Auto));
    // It proves the secret, and then hands over no memory.
    let name = format!("ringtree-test-{}", hexadecimal(&random_bytes::<8>().unwrap()));
    let address = net::SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let socket = Arc::new(listener.accept().unwrap().0);
            accept(socket, &job("s"), soon(), |_, _| Ok(())).unwrap();
        });
        let poor = altered(&high, |address| address.socket_name = Some(name));
        let link = low.connect(1, &poor, soon(), &|| false).unwrap();
        assert_eq!(link.kind(), TransportKind::Tcp);
    });
}

#[test]
fn shm_with_a_rank_of_another_host_is_an_error_on_both_sides() {
    let (low, high) = (endpoint(0, Transports::Shm), endpoint(3, Transports::Shm));
    let error = low.connect(3, &of_another_host(&high), soon(), &|| false).unwrap_err();
    let said = "rank 3 on host b (process 12) is not on this host: shm was asked for; use \
                auto or tcp (RINGTREE_TRANSPORT, --transport)";
    assert_eq!(error.to_string(), said);
    let error = high.connect(0, &of_another_host(&low), soon(), &|| false).unwrap_err();
    assert!(matches!(error, EndpointError::NotOnThisHost { .. }), "{error}");
    let gone = altered(&high, |address| address.socket_name = Some("ringtree-gone".into()));
    let error = low.connect(3, &gone, soon(), &|| false).unwrap_err();
    assert!(error.to_string().contains("it has ended"), "{error}");
}

#[test]
fn different_transports_are_an_error_on_both_sides() {
    let (low, high) = (endpoint(0, Transports::Shm), endpoint(1, Transports::Tcp));
    for error in [connect(&low, &high).unwrap_err(), connect(&high, &low).unwrap_err()] {
        assert!(matches!(error, EndpointError::NoCommonTransport { .. }), "{error}");
        assert!(error.to_string().contains("--transport"), "{error}");
    }
}

#[test]
fn another_communicator_or_rank_is_refused_with_a_reason() {
    let high = endpoint(5, Transports::Auto);
    let cases = [
        (Hello { communicator: 8, from: 0, to: 5, ..HELLO }, "another communicator"),
        (Hello { communicator: 7, from: 0, to: 4, ..HELLO }, "this is rank 5, not rank 4"),
        (Hello { encrypts: true, ..HELLO }, "rank 0 encrypts and rank 5 does not"),
        (Hello { checksums: true, ..HELLO }, "rank 0 wants checksums and rank 5 does not"),
        (
            Hello { communicator: 7, from: 5, to: 5, ..HELLO },
            "rank 5 dials rank 5, not the reverse",
        ),
        (
            Hello { communicator: 7, from: 6, to: 5, ..HELLO },
            "rank 5 dials rank 6, not the reverse",
        ),
    ];
    for (hello, complaint) in cases {
        for purpose in [Purpose::Link, Purpose::Store] {
            let stream = TcpStream::connect(high.own.tcp[0].to_string()).unwrap();
            let outcome = initiate(stream, &job("s"), purpose, &hello.encode(), soon());
            let complaint =
                if purpose == Purpose::Link { complaint } else { "links are made here" };
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }
    let low = Endpoint::bind(EndpointConfig { communicator: 8, ..config(0, Transports::Tcp) });
    let error = connect(&low.unwrap(), &high).unwrap_err();
    assert!(error.to_string().contains("listens here for another communicator"), "{error}");
    assert!(high.desk.take(0, &Limit::until(Instant::now())).is_err(), "nobody has arrived");
}

#[test]
fn a_wrong_secret_is_refused() {
    for transports in [Transports::Shm, Transports::Tcp] {
        let low = Endpoint::bind(EndpointConfig { job: job("wrong"), ..config(0, transports) });
        let error = connect(&low.unwrap(), &endpoint(1, transports)).unwrap_err();
        assert!(error.to_string().contains("check RINGTREE_SECRET"), "{error}");
    }
}

#[test]
fn strangers_disturb_nobody() {
    let (low, high) = (endpoint(0, Transports::Auto), endpoint(1, Transports::Auto));
    let name = high.own.socket_name.clone().unwrap();
    let mut silent = Vec::new();
    for turn in 0..40u8 {
        let mut tcp = TcpStream::connect(high.own.tcp[0].to_string()).unwrap();
        let limit = Limit::until(Instant::now() + Duration::from_secs(10));
        let mut unix = dial_local(&name, &limit).unwrap();
        if turn % 2 == 0 {
            // They may have been thrown out already.
            let _ = tcp.write_all(&vec![turn; usize::from(turn) * 5]);
            let _ = unix.write_all(&vec![turn; usize::from(turn) * 5]);
        } else {
            silent.push((tcp, unix));
        }
    }
    let (mut a, mut b) = meet(&low, &high);
    check(&mut a, &mut b);
}

#[test]
fn a_local_peer_that_accepts_nobody_is_given_up_at_the_deadline() {
    let name = format!("ringtree-test-{}-backlog", std::process::id());
    let address = net::SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    // A short backlog: other tests need descriptors, too.
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let soon = || Limit::until(Instant::now() + Duration::from_millis(20));
    let mut waiting = Vec::new();
    let ended = loop {
        match dial_local(&name, &soon()) {
            Ok(socket) => waiting.push(socket),
            Err(ended) => break ended,
        }
        assert!(waiting.len() < 100, "the backlog has no end");
    };
    assert_eq!(ended, Ended::TimedOut);
}

#[test]
fn a_peer_that_has_gone_is_named() {
    let (low, high) = (endpoint(0, Transports::Tcp), endpoint(1, Transports::Tcp));
    let address = high.address();
    let elsewhere = of_another_host(&high);
    drop(high);
    let error = low.connect(1, &address, soon(), &|| false).unwrap_err();
    assert!(error.to_string().contains("Connection refused; it has ended, or"), "{error}");
    let error = low.connect(1, &elsewhere, soon(), &|| false).unwrap_err();
    assert!(error.to_string().contains("set RINGTREE_INTERFACE"), "{error}");
}

#[test]
fn a_peer_that_does_not_come_is_named_at_the_deadline() {
    let (low, high) = (endpoint(0, Transports::Auto), endpoint(1, Transports::Auto));
    let deadline = Instant::now() + Duration::from_millis(20);
    let error = high.connect(0, &low.address(), deadline, &|| false).unwrap_err();
    assert!(matches!(error, EndpointError::TimedOut { .. }), "{error}");
    let host = host_name();
    let listening = high.own.tcp[0].to_string();
    assert!(error.to_string().starts_with(&format!("rank 0 on host {host} (process ")), "{error}");
    assert!(error.to_string().ends_with(&format!("{listening} on host {host}")), "{error}");
}

#[test]
fn a_stop_ends_the_wait_on_either_side() {
    let (low, high) = (endpoint(0, Transports::Auto), endpoint(1, Transports::Auto));
    let error = high.connect(0, &low.address(), soon(), &|| true).unwrap_err();
    assert!(matches!(error, EndpointError::Stopped { .. }), "{error}");
    // A listener that accepts nothing: its kernel connects, and nobody proves anything.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = altered(&high, |address| {
        address.socket_name = None;
        address.tcp = vec![deaf.local_addr().unwrap().into()];
    });
    let asked = std::cell::Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) > 3;
    let error = low.connect(1, &address, soon(), &stop).unwrap_err();
    assert!(matches!(error, EndpointError::Stopped { .. }), "{error}");
}

#[test]
fn addresses_from_outside_are_checked() {
    let low = endpoint(0, Transports::Auto);
    let whole = endpoint(1, Transports::Auto).address();
    let trailing = [whole.as_slice(), &[0]].concat();
    let mut version = whole.clone();
    version[0] ^= 8;
    let truncated = (0..whole.len()).map(|len| &whole[..len]);
    for bytes in truncated.chain([trailing.as_slice(), &version]) {
        let error = low.connect(1, bytes, soon(), &|| false).unwrap_err();
        assert!(matches!(error, EndpointError::Address { peer: 1, .. }), "{error}");
    }
    let error = low.connect(0, &low.address(), soon(), &|| false).unwrap_err();
    assert!(error.to_string().contains("this rank itself"), "{error}");
}

#[test]
fn tcp_listens_on_the_interface_that_was_set() {
    let set = |interface: &str| {
        let interface = Some(interface.to_owned());
        Endpoint::bind(EndpointConfig { interface, ..config(0, Transports::Tcp) })
    };
    let low = set("127.0.0.0/8").unwrap();
    assert_eq!(low.own.tcp[0].host, "127.0.0.1");
    let high = endpoint(1, Transports::Tcp);
    let (mut a, mut b) = meet(&low, &high);
    check(&mut a, &mut b);
    let error = set("no-such-interface").unwrap_err();
    assert!(error.to_string().contains("there are "), "{error}");
}

#[test]
fn over_ipv6_links_are_made_as_over_ipv4() {
    let on = |rank, ip: &str| {
        let interface = Some(ip.to_owned());
        Endpoint::bind(EndpointConfig { interface, ..config(rank, Transports::Tcp) }).unwrap()
    };
    let (low, high) = (on(0, "::1"), on(1, "::1"));
    assert!(low.own.tcp[0].to_string().starts_with("[::1]:"));
    let (mut a, mut b) = meet(&low, &high);
    check(&mut a, &mut b);
    // What the two ranks listen on need not be of one family.
    let (mut a, mut b) = meet(&low, &endpoint(2, Transports::Tcp));
    check(&mut a, &mut b);
}

#[test]
fn peers_are_told_the_address_that_is_set() {
    let telling = |rank, told: &[&str]| {
        let advertise = told.iter().map(|text| text.parse().unwrap()).collect();
        Endpoint::bind(EndpointConfig { advertise, ..config(rank, Transports::Tcp) })
    };
    let (low, high) = (telling(0, &[]).unwrap(), telling(1, &["localhost"]).unwrap());
    assert_eq!(high.own.tcp[0].host, "localhost");
    let (mut a, mut b) = meet(&low, &high);
    check(&mut a, &mut b);
    assert_eq!(telling(1, &["192.0.2.1:7"]).unwrap().own.tcp[0].to_string(), "192.0.2.1:7");

    let nowhere = telling(1, &["no such host"]).unwrap();
    let error = connect(&low, &nowhere).unwrap_err().to_string();
    assert!(error.contains("no such host") && error.contains("RINGTREE_ADVERTISE"), "{error}");
    let error = telling(0, &["a", "b"]).unwrap_err();
    assert_eq!(error, EndpointError::Advertised { advertised: 2, listened: 1 });
}

#[test]
fn when_all_ports_are_taken_the_error_names_them() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().port();
    let ports = Some(taken.to_string().parse().unwrap());
    let bound = Endpoint::bind(EndpointConfig { ports, ..config(0, Transports::Tcp) });
    let error = bound.unwrap_err().to_string();
    let named = format!("on 127.0.0.1: all ports of RINGTREE_PORTS={taken} are taken");
    assert!(error.contains(&named), "{error}");
}

/// A rank with two addresses and two sockets for each, and one with one address.
#[test]
fn a_link_of_several_connections_is_whole_on_both_sides() {
    for encrypts in [false, true] {
        let bind = |rank, interface: Option<&str>| {
            let interface = interface.map(str::to_owned);
            let plain = config(rank, Transports::Tcp);
            Endpoint::bind(EndpointConfig { interface, sockets: 2, encrypts, ..plain }).unwrap()
        };
        let low = bind(0, Some("127.0.0.1, 127.0.0.0/8"));
        assert_eq!(low.own.tcp.len(), 2);
        let (mut a, mut b) = meet(&low, &bind(1, None));
        assert_eq!((a.descriptors().count(), b.descriptors().count()), (4, 4));
        check(&mut a, &mut b);
        check(&mut b, &mut a);
    }
}

#[test]
fn one_that_encrypts_and_one_that_does_not_are_told() {
    let low = Endpoint::bind(EndpointConfig { encrypts: true, ..config(0, Transports::Tcp) });
    let error = connect(&low.unwrap(), &endpoint(1, Transports::Tcp)).unwrap_err();
    assert!(error.to_string().contains("RINGTREE_ENCRYPT"), "{error}");
}
