//! The arbiter's service: one thread that serves the control connections of a whole job.
//!
//! It lives in the launcher, or in the process of rank 0. The rendezvous server authenticates
//! connections and gives them to [`ControlService::serve`]; each then belongs to one rank of one
//! communicator, and each communicator has one arbiter for as long as anybody uses it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringtree_transport::secure::SecureStream;
use tracing::{debug, warn};

use super::arbiter::{Arbiter, Send};
use super::poller::{Connection, Inbox, Poller};
use super::verdict::{Place, Verdict};
use super::wire::{self, Join, ToArbiter, ToMember};

/// How long a communicator is remembered that nobody uses but that some ranks have not joined yet:
/// they shall hear what became of it.
const REMEMBER_MS: u64 = 60_000;

/// Decides, for all communicators of a job, what went wrong. Dropping it closes it.
#[derive(Debug)]
pub struct ControlService {
    inbox: Arc<Inbox<Work>>,
    members: Arc<Members>,
    verdict: Arc<LatestVerdict>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// A child that was forked has a copy of this, but no thread.
    pid: u32,
}

impl ControlService {
    /// Starts the service's thread. `hosted_by` is the rank whose process this is, if it is one's:
    /// should the service be lost, so is that rank.
    ///
    /// # Errors
    /// What the system says when descriptors or threads cannot be made.
    pub fn new(hosted_by: Option<u32>) -> io::Result<ControlService> {
        let poller = Poller::new()?;
        let inbox = poller.inbox();
        let members = Arc::new(Members::default());
        let verdict = Arc::new(LatestVerdict::default());
        let joined = ToMember::Joined { arbiter: hosted_by, place: Place::here() };
        let mut server = Server {
            poller,
            joined,
            began: Instant::now(),
            communicators: HashMap::new(),
            seats: HashMap::new(),
            next_key: 0,
            members: members.clone(),
            verdict: verdict.clone(),
        };
        let name = "ringtree-arbiter".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || server.run())?;
        let thread = Mutex::new(Some(thread));
        Ok(ControlService { inbox, members, verdict, thread, pid: std::process::id() })
    }

    /// Takes over a connection whose first message was `hello`. Returns at once.
    pub fn serve(&self, stream: SecureStream<TcpStream>, hello: Vec<u8>) {
        let connection = Box::new(Connection::new(stream));
        self.inbox.push(Work::Accept { connection, hello });
    }

    /// What went wrong on a communicator, as its members were told; `None` once a rank has joined
    /// another one since, as ranks do that go on after a failure.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict.get().as_ref().map(|(_, verdict)| verdict.clone())
    }

    /// Waits until all ranks of all communicators that any rank has joined have come and left
    /// again, at most until the deadline; whether that came true. A rank that has not come a minute
    /// after the last one left is waited for no longer.
    pub fn await_empty(&self, deadline: Instant) -> bool {
        self.members.wait_until_none(deadline)
    }

    /// Tells all members that the service ends in good order, and ends its thread. A process that
    /// ends without this has died, as far as the members know.
    pub fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|_| self.pid == std::process::id()) {
            self.inbox.push(Work::Close);
            // It panicked if this fails, and said so.
            let _ = thread.join();
        }
    }
}

impl Drop for ControlService {
    fn drop(&mut self) {
        self.close();
    }
}

#[derive(Debug)]
enum Work {
    Accept { connection: Box<Connection>, hello: Vec<u8> },
    Close,
}

/// Ranks that are connected, and communicators that some ranks have yet to join: none of them may
/// find the service gone.
#[derive(Debug, Default)]
struct Members {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Members {
    fn set(&self, count: usize) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) = count;
        self.changed.notify_all();
    }

    fn wait_until_none(&self, deadline: Instant) -> bool {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(count, left, |count| *count > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

/// The last communicator that a verdict was given on, and the verdict.
#[derive(Debug, Default)]
struct LatestVerdict(Mutex<Option<(u64, Verdict)>>);

impl LatestVerdict {
    fn get(&self) -> MutexGuard<'_, Option<(u64, Verdict)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A rank joins a communicator.
    fn forget_others(&self, communicator: u64) {
        self.get().take_if(|(of, _)| *of != communicator);
    }
}

/// What the service's thread owns.
struct Server {
    poller: Poller<Work>,
    /// The answer to whoever may join.
    joined: ToMember,
    began: Instant,
    communicators: HashMap<u64, Communicator>,
    seats: HashMap<u64, Seat>,
    next_key: u64,
    members: Arc<Members>,
    verdict: Arc<LatestVerdict>,
}

struct Communicator {
    arbiter: Arbiter,
    /// Key of each rank's connection.
    seats: BTreeMap<u32, u64>,
    /// Since when nobody is connected.
    unused_since_ms: Option<u64>,
}

/// A connection, and whose it is.
struct Seat {
    connection: Connection,
    communicator: u64,
    rank: u32,
}

impl Server {
    fn run(&mut self) {
        loop {
            let ready = match self.poller.sleep(self.next_timeout()) {
                Ok(ready) => ready,
                Err(error) => {
                    warn!("the control service ends: {error}");
                    break;
                }
            };
            for work in ready.work {
                match work {
                    Work::Accept { connection, hello } => self.accept(*connection, &hello),
                    Work::Close => return self.close(),
                }
            }
            ready.keys.into_iter().for_each(|key| self.read(key));
            // What has come is heard before anyone is blamed for saying nothing.
            if !ready.more {
                self.handle_timeouts();
            }
        }
    }

    fn accept(&mut self, mut connection: Connection, hello: &[u8]) {
        let join: Join = match wire::decode(hello) {
            Ok(join) => join,
            Err(error) => {
                let reason = format!("the request to join cannot be read: {error}");
                return refuse(&mut connection, reason);
            }
        };
        let Join { communicator: id, rank, ranks, pid, host } = join;
        let now_ms = self.now_ms();
        let communicator = self.communicators.entry(id).or_insert_with(|| Communicator {
            arbiter: Arbiter::new(ranks),
            seats: BTreeMap::new(),
            unused_since_ms: Some(now_ms),
        });
        let sends = match communicator.arbiter.join(rank, ranks, Place { host, pid }) {
            Ok(sends) => sends,
            Err(refusal) => {
                self.forget_if_unused(id);
                return refuse(&mut connection, refusal.to_string());
            }
        };
        let key = self.next_key;
        self.next_key += 1;
        communicator.seats.insert(rank, key);
        communicator.unused_since_ms = None;
        self.verdict.forget_others(id);
        connection.send(&self.joined);
        let watched = self.poller.add(&connection, key);
        self.seats.insert(key, Seat { connection, communicator: id, rank });
        self.count_members();
        self.send(id, sends);
        if let Err(error) = watched {
            warn!("the control connection of rank {rank} cannot be watched: {error}");
            self.drop_seat(key);
        }
    }

    /// Everything that has come on a connection.
    fn read(&mut self, key: u64) {
        while let Some(seat) = self.seats.get_mut(&key) {
            let (id, rank) = (seat.communicator, seat.rank);
            match seat.connection.receive() {
                Ok(None) => return,
                Ok(Some(message)) => {
                    let leaves = matches!(message, ToArbiter::Goodbye { .. });
                    let now_ms = self.now_ms();
                    if let Some(communicator) = self.communicators.get_mut(&id) {
                        let sends = communicator.arbiter.handle(now_ms, rank, message);
                        self.send(id, sends);
                    }
                    if leaves {
                        self.drop_seat(key);
                    }
                }
                Err(error) => {
                    debug!("the control connection of rank {rank} ended: {error}");
                    return self.drop_seat(key);
                }
            }
        }
    }

    fn send(&mut self, id: u64, sends: Vec<Send>) {
        let Some(communicator) = self.communicators.get(&id) else { return };
        for Send { to, message } in sends {
            if let ToMember::Verdict { verdict } = &message {
                // Before anybody acts on it.
                *self.verdict.get() = Some((id, verdict.clone()));
            }
            let Some(key) = communicator.seats.get(&to) else { continue };
            let Some(seat) = self.seats.get_mut(key) else { continue };
            seat.connection.send(&message);
        }
    }

    /// Closes a connection; its rank has died, unless it has said goodbye.
    fn drop_seat(&mut self, key: u64) {
        let Some(seat) = self.seats.remove(&key) else { return };
        // A child that was forked may have kept it open; then closing it would not be enough.
        self.poller.remove(&seat.connection);
        let now_ms = self.now_ms();
        let Some(communicator) = self.communicators.get_mut(&seat.communicator) else { return };
        communicator.seats.remove(&seat.rank);
        if communicator.seats.is_empty() {
            communicator.unused_since_ms = Some(now_ms);
        }
        let sends = communicator.arbiter.connection_lost(seat.rank);
        self.send(seat.communicator, sends);
        self.forget_if_unused(seat.communicator);
        self.count_members();
    }

    fn handle_timeouts(&mut self) {
        let now_ms = self.now_ms();
        let ids: Vec<u64> = self.communicators.keys().copied().collect();
        for id in ids {
            while let Some(communicator) = self.communicators.get_mut(&id)
                && communicator.arbiter.next_timeout_ms().is_some_and(|at_ms| at_ms <= now_ms)
            {
                let sends = communicator.arbiter.handle_timeout(now_ms);
                self.send(id, sends);
            }
            self.forget_if_unused(id);
        }
    }

    fn forget_if_unused(&mut self, id: u64) {
        let Some(communicator) = self.communicators.get(&id) else { return };
        let unused = communicator.forget_at_ms().is_some_and(|at_ms| at_ms <= self.now_ms());
        if unused {
            self.communicators.remove(&id);
            self.count_members();
        }
    }

    fn count_members(&self) {
        let awaited = |communicator: &&Communicator| !communicator.arbiter.is_complete();
        self.members.set(self.seats.len() + self.communicators.values().filter(awaited).count());
    }

    fn next_timeout(&self) -> Option<Instant> {
        let times = self.communicators.values().flat_map(|communicator| {
            [communicator.arbiter.next_timeout_ms(), communicator.forget_at_ms()]
        });
        times.flatten().min().map(|at_ms| self.began + Duration::from_millis(at_ms))
    }

    fn close(&mut self) {
        for seat in self.seats.values_mut() {
            seat.connection.send(&ToMember::Closing {});
        }
        self.seats.clear();
        self.members.set(0);
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

impl Communicator {
    fn forget_at_ms(&self) -> Option<u64> {
        let since_ms = self.unused_since_ms?;
        Some(if self.arbiter.is_complete() { since_ms } else { since_ms + REMEMBER_MS })
    }
}

fn refuse(connection: &mut Connection, reason: String) {
    debug!("a rank may not join: {reason}");
    connection.send(&ToMember::Refused { reason });
}
