//! Thousands of connections, of friends and strangers, leave no descriptor and no thread behind. A
//! test program of its own with one test, since it counts those of the whole process.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use ringtree_transport::endpoint::{Endpoint, EndpointConfig, Transports};
use ringtree_transport::rdma::RdmaConfig;
use ringtree_transport::rendezvous::{Server, Store, StoreClient, listen};
use ringtree_transport::secure::{Job, Secret};
use ringtree_transport::shm::{Attach, Board};

#[test]
fn thousands_of_connections_leave_nothing_behind() {
    let before = (open_descriptors(), threads());
    for scenario in [serve_and_stop, link_and_drop] {
        (0..3).for_each(|_| scenario());
        let deadline = soon();
        while (open_descriptors(), threads()) != before {
            let now = (open_descriptors(), threads());
            assert!(Instant::now() < deadline, "descriptors and threads: {before:?}, now {now:?}");
            // A joined thread is in /proc until the kernel has reaped it.
            thread::yield_now();
        }
    }
}

/// A server with clients and strangers, stopped while some are in the middle of something.
fn serve_and_stop() {
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

/// Hundreds of links, some taken by one side only.
fn link_and_drop() {
    for transports in [Transports::Shm, Transports::Tcp] {
        let (low, high) = (endpoint(0, transports), endpoint(1, transports));
        for turn in 0..100 {
            let dialed = low.connect(1, &high.address(), soon(), &|| false).unwrap();
            if turn % 3 != 0 {
                let accepted = high.connect(0, &low.address(), soon(), &|| false).unwrap();
                drop(accepted);
            }
            drop(dialed);
        }
    }
}

fn endpoint(rank: u32, transports: Transports) -> Endpoint {
    Endpoint::bind(EndpointConfig {
        rdma: RdmaConfig::default(),
        sockets: 1,
        encrypts: false,
        checksums: false,
        attach: Attach::Auto,
        job: job(),
        communicator: 1,
        rank,
        transports,
        interface: None,
        ports: None,
        advertise: vec![],
        rendezvous: None,
        board: Board::new().unwrap().memory().clone(),
    })
    .unwrap()
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
