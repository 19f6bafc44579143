//! Strangers: whoever connects to a job's sockets without being of the job. What they do follows from a seed.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::AddAssign;
use std::thread;
use std::time::{Duration, Instant};

use ringtree_transport::rendezvous::{Store, StoreClient};
use ringtree_transport::secure::{Job, Purpose, Secret, WIRE_VERSION, initiate};
use socket2::{Domain, Protocol, Socket, Type};

use crate::random::Random;

/// How long a stranger waits for an answer: far longer than any connection may take to prove itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connections that one thread's strangers keep open without saying anything, or anything more.
const MOST_HELD: usize = 80;

/// Threads that a crowd comes in.
const THREADS: u64 = 4;

/// What comes before the secret is proved: magic, version and purpose, then the first message of the handshake.
const PREAMBLE_BYTES: usize = 11;
const FIRST_BYTES: usize = PREAMBLE_BYTES + 48;

/// What a stranger does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Connects, and goes.
    PortScan,
    /// Connects, and resets the connection.
    Reset,
    /// Connects, and says nothing.
    Silence,
    /// Says a part of what a rank says, and nothing more.
    HalfHandshake,
    /// Says anything.
    Garbage,
    /// Says what a browser says.
    OtherProtocol,
    /// Begins as a rank does, and goes on with anything.
    Imitation,
    /// A rank of another release.
    OtherVersion,
    /// A rank that has another secret.
    WrongSecret,
    /// A rank that has the secret, and is of another job.
    WrongJob,
    /// A rank of an earlier run that had the same name and secret: it seeks a communicator that is gone.
    OldRank,
    /// Says once more what a rank has said.
    Replay,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 12] = [
        Kind::PortScan,
        Kind::Reset,
        Kind::Silence,
        Kind::HalfHandshake,
        Kind::Garbage,
        Kind::OtherProtocol,
        Kind::Imitation,
        Kind::OtherVersion,
        Kind::WrongSecret,
        Kind::WrongJob,
        Kind::OldRank,
        Kind::Replay,
    ];
}

/// How many strangers came, by [`Kind::ALL`], and how many found nobody to take their connection in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Who came.
    pub came: [u64; Kind::ALL.len()],
    /// Who did not get a connection.
    pub unheard: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.came.iter_mut().zip(other.came).for_each(|(all, more)| *all += more);
        self.unheard += other.unheard;
    }
}

impl Tally {
    /// How many came.
    pub fn total(&self) -> u64 {
        self.came.iter().sum()
    }
}

/// What the strangers of a job know.
#[derive(Clone, Debug)]
pub struct Knowledge {
    /// The job, with its secret: some have had it.
    pub job: Job,
    /// What a rank has said: see [`record`].
    pub recorded: Vec<u8>,
}

/// Lets so many strangers loose on the addresses, evenly over the time that so many a second take, and as
/// fast as they can be if that is `None`.
///
/// # Panics
/// If one is let in.
pub fn crowd(
    knowledge: &Knowledge,
    addresses: &[SocketAddr],
    strangers: u64,
    per_s: Option<f64>,
    seed: u64,
) -> Tally {
    let began = Instant::now();
    thread::scope(|scope| {
        let crowd = |first: u64| {
            let mut crowd = Crowd::new(knowledge, seed ^ (first << 32));
            for number in (first..strangers).step_by(THREADS as usize) {
                if let Some(per_s) = per_s {
                    let due = began + Duration::from_secs_f64(number as f64 / per_s);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                let kind = crowd.random.pick(&Kind::ALL);
                let address = crowd.random.pick(addresses);
                crowd.visit(kind, address);
            }
            crowd.tally
        };
        let threads: Vec<_> = (0..THREADS).map(|first| scope.spawn(move || crowd(first))).collect();
        let mut all = Tally::default();
        for thread in threads {
            all += thread.join().expect("no stranger is let in");
        }
        all
    })
}

/// Strangers that come one after the other.
pub struct Crowd<'a> {
    knowledge: &'a Knowledge,
    random: Random,
    /// Connections of those who say nothing more; when there are too many, the oldest go.
    held: VecDeque<TcpStream>,
    tally: Tally,
}

impl<'a> Crowd<'a> {
    /// The crowd of a seed.
    pub fn new(knowledge: &'a Knowledge, seed: u64) -> Crowd<'a> {
        let random = Random::new(seed);
        Crowd { knowledge, random, held: VecDeque::new(), tally: Tally::default() }
    }

    /// Who came so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// One stranger connects and does what is of its kind.
    ///
    /// # Panics
    /// If it is let in.
    pub fn visit(&mut self, kind: Kind, address: SocketAddr) {
        let at = Kind::ALL.iter().position(|one| *one == kind).expect("one of all");
        self.tally.came[at] += 1;
        let Ok(stream) = self.connect(address) else {
            self.tally.unheard += 1;
            return;
        };
        let genuine = &self.knowledge.recorded;
        match kind {
            Kind::PortScan => {}
            Kind::Reset => {
                let socket = Socket::from(stream);
                socket.set_linger(Some(Duration::ZERO)).expect("a socket has that option");
            }
            Kind::Silence => self.hold(stream),
            Kind::HalfHandshake => {
                say(&stream, &genuine[..1 + self.random.below(FIRST_BYTES - 1)]);
                self.hold(stream);
            }
            Kind::Garbage => {
                let len = self.random.length(5_000);
                say(&stream, &self.random.bytes(len));
            }
            Kind::OtherProtocol => say(&stream, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"),
            Kind::Imitation => {
                let rest = self.random.bytes(FIRST_BYTES - PREAMBLE_BYTES);
                say(&stream, &[&genuine[..PREAMBLE_BYTES], &rest].concat());
            }
            Kind::OtherVersion => {
                let mut first = genuine[..FIRST_BYTES].to_vec();
                first[8..10].copy_from_slice(&(WIRE_VERSION + 1).to_le_bytes());
                say(&stream, &first);
            }
            Kind::WrongSecret => {
                let secret = Secret::from_text(&self.random.number().to_string());
                self.introduce(stream, &Job { secret, ..self.knowledge.job.clone() });
            }
            Kind::WrongJob => {
                let name = "another job".to_owned();
                self.introduce(stream, &Job { name, ..self.knowledge.job.clone() });
            }
            Kind::OldRank => self.introduce(stream, &self.knowledge.job.clone()),
            Kind::Replay => replay(stream, genuine),
        }
    }

    /// From one of the loopback addresses, since one alone would run out of ports.
    fn connect(&mut self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let [a, b, c, ..] = self.random.number().to_le_bytes();
        let source = Ipv4Addr::new(127, a, b, c.clamp(1, 254));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        socket.connect_timeout(&address.into(), PATIENCE)?;
        Ok(socket.into())
    }

    fn hold(&mut self, stream: TcpStream) {
        self.held.push_back(stream);
        if self.held.len() > MOST_HELD {
            self.held.pop_front();
        }
    }

    /// Wants a link of a communicator that is not this job's.
    fn introduce(&mut self, stream: TcpStream, job: &Job) {
        // As `endpoint/address.rs` has it: communicator, from, to, link, connection, connections, no flags.
        let mut hello = self.random.bytes(8);
        hello.extend_from_slice(&[0_u32.to_le_bytes(), 1_u32.to_le_bytes()].concat());
        hello.extend_from_slice(&self.random.bytes(8));
        hello.extend_from_slice(&[0, 1, 0, 0]);
        let deadline = Instant::now() + PATIENCE;
        let outcome = initiate(stream, job, Purpose::Link, &hello, deadline);
        assert!(outcome.is_err(), "a stranger is let in: {outcome:?}");
    }
}

/// It may be closed before everything is written.
fn say(mut stream: &TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

/// Says again what somebody else said. Nobody may take it for granted: the connection is closed before the
/// answer to the first request.
fn replay(mut stream: TcpStream, recorded: &[u8]) {
    say(&stream, recorded);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it stays open"),
    }
}

/// What a member of a job says to the rendezvous when it joins and asks: a proxy between them listens.
pub fn record(rendezvous: SocketAddr, job: &Job) -> Vec<u8> {
    let proxy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = proxy.local_addr().expect("an address").to_string();
    thread::scope(|scope| {
        let recorded = scope.spawn(move || {
            let (mut client, _) = proxy.accept().expect("the client comes");
            let mut server = TcpStream::connect(rendezvous).expect("the rendezvous is there");
            let (mut from, mut to) =
                (server.try_clone().expect("a descriptor"), client.try_clone().expect("another"));
            let back = thread::spawn(move || std::io::copy(&mut from, &mut to));
            let mut recorded = Vec::new();
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = client.read(&mut bytes) {
                recorded.extend_from_slice(&bytes[..count]);
                server.write_all(&bytes[..count]).expect("the rendezvous reads");
            }
            let _ = server.shutdown(Shutdown::Both);
            let _ = back.join();
            recorded
        });
        let client = StoreClient::connect(&address, job, Instant::now() + PATIENCE);
        let store = Store::Tcp(client.expect("a proven client"));
        store.set("recorded", b"once", Instant::now() + PATIENCE).expect("an answer");
        drop(store);
        recorded.join().expect("the proxy ends")
    })
}
