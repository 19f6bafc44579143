//! The arbiter's service: one thread that serves the control connections of a whole job.
//!
//! It lives in the launcher, or in the process of rank 0. The rendezvous server authenticates
//! connections and gives them to [`ControlService::serve`]; each then belongs to one rank of one
//! communicator, and each communicator has one arbiter for as long as anybody uses it. Or it belongs to a member
//! that wants to go on with others, or to a newcomer (`regroups.rs`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringtree_transport::rendezvous::MemoryStore;
use ringtree_transport::secure::{SecureStream, random_bytes};
use tracing::{debug, warn};

use super::arbiter::{Arbiter, Send};
use super::poller::{Connection, Inbox, Poller};
use super::regroup::ToVoter;
use super::regroups::{Known, Outcome, Regroups};
use super::verdict::{Place, Verdict};
use super::wire::{self, Hello, Join, ToArbiter, ToMember};

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
    /// Starts the service's thread. `hosted_by` is the number of this process ([`Member::process`](super::Member)), if
    /// it is that of a rank: should the service be lost, so is that rank.
    ///
    /// # Errors
    /// What the system says when descriptors or threads cannot be made.
    pub fn new(hosted_by: Option<u64>) -> io::Result<ControlService> {
        let poller = Poller::new()?;
        let inbox = poller.inbox();
        let members = Arc::new(Members::default());
        let verdict = Arc::new(LatestVerdict::default());
        let here = Place::here();
        let joined = ToMember::Joined { arbiter: hosted_by, place: here.clone() };
        let founder_id = random_bytes().map_err(io::Error::other)?;
        let mut server = Server {
            here,
            ended_pids: HashSet::new(),
            regroups: Regroups::new(u64::from_le_bytes(founder_id)),
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

    /// Ranks meet in this store: those that wait there for one that will not come shall hear of it.
    pub fn meet_in(&self, store: Arc<MemoryStore>) {
        self.inbox.push(Work::Store { store });
    }

    /// A process of this host has ended, as whoever started it knows for certain.
    pub fn process_ended(&self, pid: u32) {
        self.inbox.push(Work::Ended { pid });
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
    Store { store: Arc<MemoryStore> },
    Ended { pid: u32 },
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
    here: Place,
    /// Processes of this host that have ended, as far as they are ranks of communicators that are remembered.
    ended_pids: HashSet<u32>,
    regroups: Regroups,
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
    lineage: String,
    /// Settings that whoever comes in must have, too.
    terms: String,
    epoch: u64,
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
                    Work::Store { store } => self.regroups.abandon_in(store),
                    Work::Ended { pid } => self.process_ended(pid),
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
        match wire::decode(hello) {
            Ok(Hello::Join { join }) => self.join(connection, join),
            Ok(Hello::Regroup { lineage, epoch, member }) => {
                let Some(key) = self.watch_guest(&connection) else { return };
                self.regroups.add_member(key, connection, lineage, epoch, member);
                self.count_members();
            }
            Ok(Hello::Knock { lineage, member, place, terms }) => {
                let mut joined = self.communicators.values().filter(|it| it.lineage == lineage);
                if let Some(other) = joined.find(|it| it.terms != terms) {
                    connection.send(&ToVoter::OtherTerms { terms: other.terms.clone() });
                    return;
                }
                let Some(key) = self.watch_guest(&connection) else { return };
                let pid = place.counts_as(&self.here).then_some(place.pid);
                pid.map(|pid| self.ended_pids.remove(&pid));
                let outcomes = self.regroups.add_newcomer(key, connection, lineage, member, pid);
                self.carry_out(outcomes);
            }
            Err(error) => {
                let reason = format!("the request to join cannot be read: {error}");
                refuse(&mut connection, reason);
            }
        }
    }

    /// A key for the connection of somebody who is no rank yet.
    fn watch_guest(&mut self, connection: &Connection) -> Option<u64> {
        let key = self.next_key;
        self.next_key += 1;
        match self.poller.add(connection, key) {
            Ok(()) => Some(key),
            Err(error) => {
                warn!("a connection to the control service cannot be watched: {error}");
                None
            }
        }
    }

    fn join(&mut self, mut connection: Connection, join: Join) {
        let Join { communicator: id, rank, ranks, place, lineage, epoch, terms } = join;
        let now_ms = self.now_ms();
        if place.counts_as(&self.here) {
            self.ended_pids.remove(&place.pid);
            self.regroups.newcomer_joined(place.pid);
        }
        let communicator = self.communicators.entry(id).or_insert_with(|| Communicator {
            arbiter: Arbiter::new(ranks),
            lineage: lineage.clone(),
            terms,
            epoch,
            seats: BTreeMap::new(),
            unused_since_ms: Some(now_ms),
        });
        let sends = match communicator.arbiter.join(rank, ranks, place) {
            Ok(sends) => sends,
            Err(refusal) => {
                self.forget_if_unused(id);
                return refuse(&mut connection, refusal.to_string());
            }
        };
        let key = self.next_key;
        self.next_key += 1;
        self.regroups.note_epoch(&lineage, epoch);
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
            return self.drop_seat(key);
        }
        let count = self.regroups.waiting(&lineage);
        if count > 0
            && let Some(seat) = self.seats.get_mut(&key)
        {
            seat.connection.send(&ToMember::Knocking { count });
        }
        let ranks = self.regroups.absent(&lineage, epoch);
        self.carry_out(vec![Outcome::Absent { lineage, epoch, ranks }]);
    }

    /// Does what comes of what members and newcomers do.
    fn carry_out(&mut self, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            match outcome {
                Outcome::Absent { lineage, epoch, ranks } => {
                    let is_meant = |it: &Communicator| it.lineage == lineage && it.epoch == epoch;
                    for id in self.communicators_where(is_meant) {
                        for &rank in &ranks {
                            let Some(communicator) = self.communicators.get_mut(&id) else { break };
                            let sends = communicator.arbiter.never_joins(rank);
                            self.send(id, sends);
                        }
                    }
                }
                Outcome::Waiting { lineage, count } => {
                    for id in self.communicators_where(|it| it.lineage == lineage) {
                        let keys = self.communicators[&id].seats.values();
                        for key in keys {
                            if let Some(seat) = self.seats.get_mut(key) {
                                seat.connection.send(&ToMember::Knocking { count });
                            }
                        }
                    }
                }
            }
        }
        self.count_members();
    }

    fn communicators_where(&self, which: impl Fn(&Communicator) -> bool) -> Vec<u64> {
        self.communicators.iter().filter(|(_, it)| which(it)).map(|(id, _)| *id).collect()
    }

    fn process_ended(&mut self, pid: u32) {
        if self.is_of_a_rank(pid) {
            self.ended_pids.insert(pid);
        }
        let now_ms = self.now_ms();
        let outcomes = self.regroups.newcomer_ended(now_ms, pid);
        self.carry_out(outcomes);
        for id in self.communicators_where(|_| true) {
            let here = &self.here;
            let Some(communicator) = self.communicators.get_mut(&id) else { continue };
            let sends = communicator.arbiter.process_ended_at(now_ms, here, pid);
            self.send(id, sends);
            let known = known(&self.communicators, &self.ended_pids, &self.here, id);
            let outcomes = self.regroups.miss(now_ms, id, &known);
            self.carry_out(outcomes);
        }
    }

    /// Whether a process of this host is, or was, a rank of a communicator that is remembered.
    fn is_of_a_rank(&self, pid: u32) -> bool {
        let is_it = |place: &Place| place.counts_as(&self.here) && place.pid == pid;
        self.communicators.values().any(|it| !it.arbiter.ranks_at(is_it).is_empty())
    }

    /// Everything that has come on a connection.
    fn read(&mut self, key: u64) {
        if self.regroups.has(key) {
            let (all, ended, here) = (&self.communicators, &self.ended_pids, &self.here);
            let known = |id| known(all, ended, here, id);
            let now_ms = self.began.elapsed().as_millis() as u64;
            let outcomes = self.regroups.read(now_ms, key, &self.poller, known);
            return self.carry_out(outcomes);
        }
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
        let known = known(&self.communicators, &self.ended_pids, &self.here, seat.communicator);
        let outcomes = self.regroups.miss(now_ms, seat.communicator, &known);
        self.carry_out(outcomes);
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
        if self.regroups.next_timeout_ms().is_some_and(|at_ms| at_ms <= now_ms) {
            let outcomes = self.regroups.handle_timeouts(now_ms);
            self.carry_out(outcomes);
        }
    }

    fn forget_if_unused(&mut self, id: u64) {
        let Some(communicator) = self.communicators.get(&id) else { return };
        let unused = communicator.forget_at_ms().is_some_and(|at_ms| at_ms <= self.now_ms());
        if unused {
            self.communicators.remove(&id);
            let mut ended = std::mem::take(&mut self.ended_pids);
            ended.retain(|pid| self.is_of_a_rank(*pid));
            self.ended_pids = ended;
            self.count_members();
        }
    }

    fn count_members(&self) {
        let awaited = |communicator: &&Communicator| !communicator.arbiter.is_complete();
        let awaited = self.communicators.values().filter(awaited).count();
        self.members.set(self.seats.len() + self.regroups.members() + awaited);
    }

    fn next_timeout(&self) -> Option<Instant> {
        let times = self.communicators.values().flat_map(|communicator| {
            [communicator.arbiter.next_timeout_ms(), communicator.forget_at_ms()]
        });
        let times = times.chain([self.regroups.next_timeout_ms()]);
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

/// What the service knows of a communicator's ranks.
fn known(
    communicators: &HashMap<u64, Communicator>,
    ended_pids: &HashSet<u32>,
    here: &Place,
    id: u64,
) -> Known {
    let Some(communicator) = communicators.get(&id) else { return Known::default() };
    let has_ended = |place: &Place| place.counts_as(here) && ended_pids.contains(&place.pid);
    let arbiter = &communicator.arbiter;
    Known { lost: arbiter.lost_ranks(), ended: arbiter.ranks_at(has_ended) }
}

fn refuse(connection: &mut Connection, reason: String) {
    debug!("a rank may not join: {reason}");
    connection.send(&ToMember::Refused { reason });
}
