//! The monitor: one thread a process that speaks with the arbiter for all communicators.
//!
//! It sleeps until a control connection, the end of a local peer's process or a member's report
//! wakes it, so that an idle communicator uses no processor time, and it answers the arbiter
//! whatever the threads that drive operations are doing. It starts with the first member and ends
//! with the last.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringtree_transport::process::PidFd;
use tracing::{debug, warn};

use super::abort::AbortWord;
use super::poller::{Connection, Inbox, Poller};
use super::recorder::{FlightRecorder, Operation};
use super::verdict::{Death, Place, Verdict};
use super::wire::{ToArbiter, ToMember};

/// How long a process may take to end once it has been killed, before the verdict comes anyway.
const FENCE_LIMIT: Duration = Duration::from_secs(1);

/// An arbiter that runs asks or decides sooner than this when a rank cannot go on, or makes no progress: and again and
/// again while that lasts.
const ARBITER_LIMIT: Duration = Duration::from_millis(1500);

/// An arbiter that has been silent for so long is given this much once a rank cannot go on, or this part of the time in
/// which that made no progress.
const ARBITER_LAST_LIMIT: Duration = Duration::from_millis(100);
const ARBITER_LAST_SHARE: u64 = 20;

/// One communicator of this process.
#[derive(Debug)]
pub(super) struct Seat {
    /// This rank.
    pub rank: u32,
    /// The connection to the arbiter, while there is one.
    pub connection: Option<Connection>,
    /// The rank whose process hosts the arbiter, if it is one's.
    pub arbiter: Option<u32>,
    /// The arbiter's process.
    pub arbiter_place: Place,
    /// What this rank does.
    pub recorder: Arc<FlightRecorder>,
    /// Where the verdict goes.
    pub abort: Arc<AbortWord>,
    /// Where the number of the newcomers goes that wait to be let in.
    pub newcomers: Arc<AtomicU32>,
    /// Where the ranks go whose process was seen to end.
    pub ended: Arc<Mutex<Vec<u32>>>,
}

/// Names a seat.
pub(super) type SeatId = u32;

/// What members ask the monitor to do.
#[derive(Debug)]
pub(super) enum Work {
    /// A member has joined.
    Add { id: SeatId, seat: Box<Seat> },
    /// A peer of this host: its process, or `None` if that is this process.
    Watch { id: SeatId, rank: u32, process: Option<PidFd>, may_be_killed: bool },
    /// Something for the arbiter.
    Say { id: SeatId, message: ToArbiter },
    /// A member leaves; `done` hears when its goodbye is on its way.
    Leave { id: SeatId, done: SyncSender<()> },
    /// The last member has left.
    End,
}

/// The monitor of this process, if any member is there.
static MONITOR: Mutex<Option<Running>> = Mutex::new(None);

struct Running {
    /// A child that was forked has a copy of this, but no thread.
    pid: u32,
    inbox: Arc<Inbox<Work>>,
    thread: JoinHandle<()>,
    members: usize,
    next_id: SeatId,
}

/// Enters a member, and starts the monitor if it is the first.
pub(super) fn enter(seat: Seat) -> io::Result<(SeatId, Arc<Inbox<Work>>)> {
    let mut monitor = monitor();
    let running = match monitor.take().filter(|running| running.pid == std::process::id()) {
        Some(running) => running,
        None => Running::start()?,
    };
    let running = monitor.insert(running);
    let id = running.next_id;
    running.next_id = id.wrapping_add(1);
    running.members += 1;
    running.inbox.push(Work::Add { id, seat: Box::new(seat) });
    Ok((id, running.inbox.clone()))
}

/// Counts a member out that has left; the last one ends the monitor.
pub(super) fn exit() {
    let mut monitor = monitor();
    let Some(running) = monitor.as_mut() else { return };
    running.members -= 1;
    if running.members > 0 {
        return;
    }
    if let Some(Running { inbox, thread, .. }) = monitor.take() {
        drop(monitor);
        inbox.push(Work::End);
        // It panicked if this fails, and said so.
        let _ = thread.join();
    }
}

fn monitor() -> MutexGuard<'static, Option<Running>> {
    MONITOR.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    fn start() -> io::Result<Running> {
        let poller = Poller::new()?;
        let inbox = poller.inbox();
        let mut watch = Watch { poller, seats: HashMap::new() };
        let name = "ringtree-monitor".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || watch.run())?;
        Ok(Running { pid: std::process::id(), inbox, thread, members: 0, next_id: 0 })
    }
}

/// What the monitor's thread owns.
struct Watch {
    poller: Poller<Work>,
    seats: HashMap<SeatId, Watched>,
}

struct Watched {
    seat: Seat,
    peers: HashMap<u32, Peer>,
    /// The verdict, as soon as there is one.
    verdict: Option<Arc<Verdict>>,
    /// The rank whose end the verdict still waits for, and how long.
    fence: Option<(u32, Instant)>,
    /// The arbiter has ended in good order, and decides nothing any more.
    arbiter_closed: bool,
    /// What this rank cannot go on with, once it has told the arbiter.
    grievance: Option<ToArbiter>,
    /// When the arbiter should have been heard of since then.
    arbiter_due: Option<Instant>,
    /// The operation that makes no progress, and since when the arbiter knows it and was not heard of.
    silence: Option<(Operation, Instant)>,
    /// A connection that has ended and is still in the poller: a child that was forked may have
    /// kept it open, and then closing it does not take it out.
    retired: Option<Connection>,
}

/// A rank of this host.
enum Peer {
    /// A thread of this process.
    Thread,
    /// Another process.
    Process { process: PidFd, ended: bool, may_be_killed: bool },
}

/// Key of a seat's connection, or of a peer's process.
fn key(id: SeatId, peer: Option<u32>) -> u64 {
    // No rank is u32::MAX, so that the sum does not wrap.
    u64::from(id) << 32 | peer.map_or(0, |rank| u64::from(rank) + 1)
}

impl Watch {
    fn run(&mut self) {
        loop {
            let deadlines = self.seats.values().filter_map(Watched::next_deadline);
            let ready = match self.poller.sleep(deadlines.min()) {
                Ok(ready) => ready,
                Err(error) => return self.give_up(&error),
            };
            for work in ready.work {
                match work {
                    Work::End => return,
                    Work::Add { id, seat } => self.add(id, *seat),
                    Work::Watch { id, rank, process, may_be_killed } => {
                        self.watch(id, rank, process, may_be_killed);
                    }
                    Work::Say { id, message } => self.with(id, |seat| seat.say(message)),
                    Work::Leave { id, done } => {
                        self.leave(id);
                        // Nobody waits any more if this fails.
                        let _ = done.send(());
                    }
                }
            }
            for key in ready.keys {
                let id = (key >> 32) as SeatId;
                match key as u32 {
                    0 => self.with(id, Watched::read),
                    rank => self.peer_ended(id, rank - 1),
                }
            }
            self.pass_deadlines();
        }
    }

    fn with(&mut self, id: SeatId, action: impl FnOnce(&mut Watched)) {
        if let Some(watched) = self.seats.get_mut(&id) {
            action(watched);
            if let Some(connection) = watched.retired.take() {
                self.poller.remove(&connection);
            }
        }
    }

    fn add(&mut self, id: SeatId, seat: Seat) {
        let watched = Watched::new(seat);
        if let Some(connection) = &watched.seat.connection
            && let Err(error) = self.poller.add(connection, key(id, None))
        {
            warn!("rank {} cannot watch its control connection: {error}", watched.seat.rank);
        }
        self.seats.insert(id, watched);
    }

    fn watch(&mut self, id: SeatId, rank: u32, process: Option<PidFd>, may_be_killed: bool) {
        let Some(watched) = self.seats.get_mut(&id) else { return };
        if let Some(Peer::Process { process, ended: false, .. }) = watched.peers.remove(&rank) {
            self.poller.remove(&process);
        }
        let peer = match process {
            None => Peer::Thread,
            Some(process) => {
                if let Err(error) = self.poller.add(&process, key(id, Some(rank))) {
                    warn!("the process of rank {rank} cannot be watched: {error}");
                }
                Peer::Process { process, ended: false, may_be_killed }
            }
        };
        watched.peers.insert(rank, peer);
    }

    fn peer_ended(&mut self, id: SeatId, rank: u32) {
        let Some(watched) = self.seats.get_mut(&id) else { return };
        if let Some(Peer::Process { process, ended, .. }) = watched.peers.get_mut(&rank) {
            // It stays readable for ever.
            self.poller.remove(&*process);
            *ended = true;
            watched.seat.ended.lock().unwrap_or_else(PoisonError::into_inner).push(rank);
        }
        match watched.fence {
            Some((fenced, _)) if fenced == rank => watched.expose(Vec::new()),
            _ => self.with(id, |watched| watched.hears_of_end(rank)),
        }
    }

    fn leave(&mut self, id: SeatId) {
        let Some(mut watched) = self.seats.remove(&id) else { return };
        let entries = watched.seat.recorder.history();
        watched.send(&ToArbiter::Goodbye { entries });
        if let Some(connection) = watched.seat.connection.or(watched.retired) {
            self.poller.remove(&connection);
        }
        for peer in watched.peers.values() {
            if let Peer::Process { process, ended: false, .. } = peer {
                self.poller.remove(process);
            }
        }
    }

    fn pass_deadlines(&mut self) {
        let now = Instant::now();
        let is_due = |watched: &Watched| watched.next_deadline().is_some_and(|at| at <= now);
        let due = self.seats.iter().filter(|(_, watched)| is_due(watched));
        let due: Vec<SeatId> = due.map(|(id, _)| *id).collect();
        due.into_iter().for_each(|id| self.with(id, Watched::deadline_passed));
    }

    /// Without the thread nobody hears of anything: say so to everyone.
    fn give_up(&mut self, error: &io::Error) {
        warn!("the monitor ends: {error}");
        for watched in self.seats.values_mut() {
            let reason = format!("this process's monitor failed: {error}");
            watched.verdict.get_or_insert_with(|| Arc::new(Verdict::ArbiterLost { reason }));
            watched.expose(Vec::new());
        }
    }
}

impl Watched {
    fn new(seat: Seat) -> Watched {
        Watched {
            seat,
            peers: HashMap::new(),
            verdict: None,
            fence: None,
            arbiter_closed: false,
            grievance: None,
            arbiter_due: None,
            silence: None,
            retired: None,
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        match self.fence {
            Some((_, until)) => Some(until),
            None => self.arbiter_due.filter(|_| self.verdict.is_none()),
        }
    }

    /// A process has not ended, or the arbiter was not heard of, although it was time.
    fn deadline_passed(&mut self) {
        match self.fence {
            Some((rank, _)) => {
                warn!("rank {rank} was killed but has not ended");
                self.expose(vec![rank]);
            }
            None => {
                self.arbiter_due = None;
                debug!("rank {} hears nothing of the arbiter", self.seat.rank);
                self.arbiter_lost(Death::NoAnswer);
            }
        }
    }

    /// Tells the arbiter something, if it can still matter.
    fn say(&mut self, message: ToArbiter) {
        if self.verdict.is_some() {
            return;
        }
        self.send(&message);
        let now = Instant::now();
        let mut due = now + ARBITER_LIMIT;
        if let ToArbiter::Stalled { stall } = &message {
            match self.silence {
                Some((operation, since)) if operation == stall.operation => {
                    let share = Duration::from_millis(stall.stalled_ms / ARBITER_LAST_SHARE);
                    due = (since + ARBITER_LIMIT).max(now + share.max(ARBITER_LAST_LIMIT));
                }
                _ => self.silence = Some((stall.operation, now)),
            }
        }
        if ends_operation(&message) {
            self.grievance = Some(message);
            self.arbiter_due.get_or_insert(due);
            self.decide_alone();
        }
    }

    /// If the arbiter has ended in good order, what keeps this rank from going on has no other
    /// verdict. The arbiter may have ended just before it heard of it.
    fn decide_alone(&mut self) {
        if !self.arbiter_closed {
            return;
        }
        let reason = match self.grievance.take() {
            Some(ToArbiter::Abort { reason }) => {
                return self.judged(Verdict::Aborted { by: self.seat.rank, reason });
            }
            Some(ToArbiter::Stalled { stall }) => {
                format!("it has ended, and {} makes no progress", stall.operation)
            }
            Some(ToArbiter::LinkFailed { failure }) => {
                format!("it has ended, and the link to rank {} failed", failure.peer)
            }
            Some(ToArbiter::SuspectMismatch { suspicion }) => {
                format!("it has ended, and rank {} called something else", suspicion.peer)
            }
            _ => return,
        };
        self.judged(Verdict::ArbiterLost { reason });
    }

    fn send(&mut self, message: &ToArbiter) {
        if let Some(connection) = &mut self.seat.connection {
            connection.send(message);
        }
    }

    /// The process of a peer has ended. If the arbiter was in it, what it said before it ended is
    /// there already, and nobody else decides.
    fn hears_of_end(&mut self, rank: u32) {
        if self.seat.arbiter == Some(rank) {
            self.read();
            if !self.arbiter_closed {
                self.arbiter_lost(Death::ConnectionLost);
            }
        }
        self.say(ToArbiter::ProcessEnded { peer: rank });
    }

    /// Everything that has come from the arbiter.
    fn read(&mut self) {
        while let Some(connection) = &mut self.seat.connection {
            match connection.receive() {
                Ok(None) => return,
                Ok(Some(message)) => self.handle(message),
                Err(error) => {
                    debug!("the control connection of rank {} ended: {error}", self.seat.rank);
                    self.arbiter_lost(Death::ConnectionLost);
                }
            }
        }
    }

    fn handle(&mut self, message: ToMember) {
        self.arbiter_due = None;
        if let Some((_, since)) = &mut self.silence {
            *since = Instant::now();
        }
        match message {
            ToMember::Query { id } => {
                let entries = self.seat.recorder.history();
                self.send(&ToArbiter::Answer { query: id, entries });
            }
            ToMember::Verdict { verdict } => self.judged(verdict),
            ToMember::Closing {} => {
                self.arbiter_closed = true;
                self.retired = self.seat.connection.take();
                self.decide_alone();
            }
            ToMember::Knocking { count } => self.seat.newcomers.store(count, Ordering::Relaxed),
            // Nothing that a member who has joined is told.
            ToMember::Joined { .. } | ToMember::Refused { .. } => {}
        }
    }

    /// The connection ended without a word, or the arbiter does not run: its process died, for
    /// everyone alike.
    fn arbiter_lost(&mut self, how: Death) {
        self.retired = self.retired.take().or(self.seat.connection.take());
        let verdict = match self.seat.arbiter {
            Some(rank) => Verdict::Died {
                rank,
                place: Some(self.seat.arbiter_place.clone()),
                how,
                operation: None,
            },
            None => {
                let place = &self.seat.arbiter_place;
                let what = match how {
                    Death::NoAnswer => "does not answer",
                    Death::ProcessEnded | Death::ConnectionLost => "closed its connections",
                };
                Verdict::ArbiterLost { reason: format!("{place} {what}") }
            }
        };
        self.judged(verdict);
    }

    /// There is a verdict. If it declares a rank of this host dead, that rank must not write into
    /// anyone's memory once the verdict is known: its process is ended first.
    fn judged(&mut self, verdict: Verdict) {
        if self.verdict.is_some() {
            return;
        }
        let fenced = verdict.fenced_rank().filter(|rank| *rank != self.seat.rank);
        self.verdict = Some(Arc::new(verdict));
        let Some((rank, peer)) = fenced.and_then(|rank| Some((rank, self.peers.get(&rank)?)))
        else {
            return self.expose(Vec::new());
        };
        match peer {
            Peer::Process { ended: true, .. } => self.expose(Vec::new()),
            // This process would end with it, or another one that has its number.
            Peer::Thread | Peer::Process { may_be_killed: false, .. } => self.expose(vec![rank]),
            Peer::Process { process, .. } => match process.kill() {
                // Its end wakes the monitor.
                Ok(()) => self.fence = Some((rank, Instant::now() + FENCE_LIMIT)),
                Err(error) => {
                    warn!("rank {rank} cannot be ended: {error}");
                    self.expose(vec![rank]);
                }
            },
        }
    }

    fn expose(&mut self, unfenced_ranks: Vec<u32>) {
        self.fence = None;
        if let Some(verdict) = &self.verdict {
            self.seat.abort.set(verdict.clone(), unfenced_ranks);
        }
    }
}

/// Whether a rank that says this cannot go on with its operation.
fn ends_operation(message: &ToArbiter) -> bool {
    match message {
        ToArbiter::Stalled { stall } => stall.deadline_passed,
        ToArbiter::LinkFailed { .. }
        | ToArbiter::SuspectMismatch { .. }
        | ToArbiter::Abort { .. } => true,
        _ => false,
    }
}
