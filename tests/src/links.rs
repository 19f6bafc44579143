//! Pairs of links of every transport, and how to wait with them.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::verbs;
use ringtree_transport::rdma::{Rdma, RdmaConfig, RdmaLink};
use ringtree_transport::secure::{self, FrameKeys, Job, Purpose, Secret};
use ringtree_transport::shm::{Attach, Board, ShmLink};
use ringtree_transport::sim::{Config, Network};
use ringtree_transport::tcp::{Connection, TcpLink};
use ringtree_transport::{Link, LinkError};

/// How long a test waits for what must happen; far more than it takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A link's two ends, ranks 0 and 1, and the time that they live in.
#[derive(Debug)]
pub struct Pair {
    /// Rank 0's end.
    pub left: Link,
    /// Rank 1's end.
    pub right: Link,
    /// Where they are.
    pub world: World,
}

/// The time that links live in.
#[derive(Clone, Debug)]
pub enum World {
    /// The kernel's.
    Real,
    /// A simulation's.
    Virtual(VirtualTime),
}

/// The clock of a simulated network.
#[derive(Clone)]
pub struct VirtualTime(Network);

impl std::fmt::Debug for VirtualTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VirtualTime({} ns)", self.0.now_ns())
    }
}

/// Makes a pair of links of one transport.
pub type MakePair = fn() -> Pair;

/// TCP over loopback.
pub fn tcp() -> Pair {
    tcp_over(&[None])
}

/// TCP over three connections.
pub fn tcp_several() -> Pair {
    tcp_over(&[None; 3])
}

/// TCP over two connections that encrypt.
pub fn tcp_encrypted() -> Pair {
    tcp_over(&[Some((1, 2)), Some((3, 4))])
}

/// TCP over a connection for each entry, which tells the keys of both directions.
pub fn tcp_over(keys: &[Option<(u8, u8)>]) -> Pair {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for keys in keys {
        let streams = tcp_streams();
        let key = |send: u8, receive: u8| FrameKeys { send: [send; 32], receive: [receive; 32] };
        left.push(Connection { stream: streams.0, keys: keys.map(|(a, b)| key(a, b)) });
        right.push(Connection { stream: streams.1, keys: keys.map(|(a, b)| key(b, a)) });
    }
    Pair {
        left: Link::Tcp(TcpLink::over(left, 1).expect("connected streams")),
        right: Link::Tcp(TcpLink::over(right, 0).expect("connected streams")),
        world: World::Real,
    }
}

/// Two ends of one connection over loopback.
pub fn tcp_streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let left = TcpStream::connect(address).expect("someone listens");
    (left, listener.accept().expect("someone connects").0)
}

/// Shared memory.
pub fn shm() -> Pair {
    let (left, right) = UnixStream::pair().expect("two descriptors");
    let deadline = Instant::now() + PATIENCE;
    let (left, right) = std::thread::scope(|scope| {
        let board = || Board::new().expect("memory and a descriptor");
        let right = scope
            .spawn(move || ShmLink::establish(right, 0, board().memory(), Attach::Auto, deadline));
        let left = ShmLink::establish(left, 1, board().memory(), Attach::Auto, deadline);
        (left, right.join().expect("no panic"))
    });
    Pair {
        left: Link::Shm(left.expect("shared memory")),
        right: Link::Shm(right.expect("shared memory")),
        world: World::Real,
    }
}

/// RDMA between two ports with real packets between them. Only where there are such devices:
/// `tests/rdma-vm`.
pub fn rdma() -> Pair {
    rdma_over("rxe1", "rxe2", 1)
}

/// RDMA by the stand-in for libibverbs.
pub fn rdma_standin() -> Pair {
    verbs::open();
    rdma_over("standin0", "standin1", 1)
}

/// RDMA by the stand-in over two pairs of ports, with two queue pairs for each.
pub fn rdma_standin_rails() -> Pair {
    verbs::open();
    rdma_over("standin0,standin1", "standin0,standin1", 2)
}

/// RDMA by the stand-in, with checksums.
pub fn rdma_standin_checked() -> Pair {
    rdma_standin().with_checksums()
}

/// RDMA over two pairs of ports, with two queue pairs for each.
pub fn rdma_rails() -> Pair {
    rdma_over("rxe0,rxe1", "rxe0,rxe2", 2)
}

/// RDMA between the ports of both sides that the settings name.
pub fn rdma_over(left: &str, right: &str, queue_pairs: u32) -> Pair {
    let open = |devices: &str| {
        let devices = Some(devices.to_owned());
        Rdma::open(&RdmaConfig { devices, queue_pairs, ..RdmaConfig::default() }).expect("devices")
    };
    rdma_between(&open(left), &open(right))
}

/// RDMA between two sides that have opened their devices.
pub fn rdma_between(left: &Arc<Rdma>, right: &Arc<Rdma>) -> Pair {
    let (left, right) = rdma_attempt(left, right);
    let link = |made: Result<RdmaLink, LinkError>| Link::Rdma(Box::new(made.expect("queue pairs")));
    Pair { left: link(left), right: link(right), world: World::Real }
}

/// What becomes of an attempt to link two such sides, at each of them.
pub fn rdma_attempt(
    left: &Arc<Rdma>,
    right: &Arc<Rdma>,
) -> (Result<RdmaLink, LinkError>, Result<RdmaLink, LinkError>) {
    let (near, far) = tcp_streams();
    let deadline = Instant::now() + PATIENCE;
    let job = || Job { name: "links".into(), secret: Secret::from_text("of the tests") };
    std::thread::scope(|scope| {
        let right = scope.spawn(|| {
            let accepted = secure::accept(Arc::new(far), &job(), deadline, |_, _| Ok(()));
            let (stream, ..) = accepted.expect("the same secret");
            RdmaLink::establish(stream, 0, right, deadline)
        });
        let stream = secure::initiate(near, &job(), Purpose::Link, b"", deadline);
        let left = RdmaLink::establish(stream.expect("the same secret"), 1, left, deadline);
        (left, right.join().expect("no panic"))
    })
}

/// TCP, with checksums.
pub fn tcp_checked() -> Pair {
    tcp().with_checksums()
}

/// TCP over three connections, with checksums.
pub fn tcp_several_checked() -> Pair {
    tcp_several().with_checksums()
}

/// Shared memory, with checksums.
pub fn shm_checked() -> Pair {
    shm().with_checksums()
}

/// Simulation, with checksums.
pub fn sim_checked() -> Pair {
    sim().with_checksums()
}

/// RDMA between two ports, with checksums.
pub fn rdma_checked() -> Pair {
    rdma().with_checksums()
}

/// RDMA over two pairs of ports, with checksums.
pub fn rdma_rails_checked() -> Pair {
    rdma_rails().with_checksums()
}

/// Simulation, with jitter.
pub fn sim() -> Pair {
    let network = Network::new(Config { seed: 7, jitter_ns: 20_000, ..Config::default() });
    Pair {
        left: Link::Sim(network.link(0, 1)),
        right: Link::Sim(network.link(1, 0)),
        world: World::Virtual(VirtualTime(network)),
    }
}

impl Pair {
    /// The pair with checksums in all frames.
    pub fn with_checksums(self) -> Pair {
        let Pair { left, right, world } = self;
        Pair { left: left.with_checksums(), right: right.with_checksums(), world }
    }

    /// Divides both directions among `lanes`.
    pub fn divide(&mut self, lanes: usize) {
        self.left.divide(lanes);
        self.right.divide(lanes);
    }

    /// Polls both ends until neither moves.
    pub fn settle(&mut self) {
        // Over TCP something may be under way inside the kernel; a few more looks find it.
        let mut quiet = 0;
        while quiet < 10 {
            let moved = self.left.poll(0).expect("open") | self.right.poll(0).expect("open");
            quiet = if self.world.pass() | moved { 0 } else { quiet + 1 };
        }
    }
}

impl World {
    /// Lets a little time pass. Returns whether that made something happen.
    pub fn pass(&self) -> bool {
        match self {
            World::Real => {
                std::thread::yield_now();
                false
            }
            World::Virtual(VirtualTime(network)) => network.step().is_some(),
        }
    }
}

/// Calls `step` until it returns something, with time passing in between; panics when that takes
/// too long.
pub fn wait_for<T>(world: &World, what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = step() {
            return result;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        world.pass();
    }
}

/// Whether the peer has left.
pub fn is_closed(error: &LinkError) -> bool {
    matches!(error, LinkError::Closed { .. })
}
