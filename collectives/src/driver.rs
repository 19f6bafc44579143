//! Drives operations to their ends: polls, waits, tells the arbiter of stalls and faults, and asks it for
//! its verdict.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringtree_transport::cuda::Event;
use ringtree_transport::memory::Bell;
use ringtree_transport::wait::{Sleeper, Stage, Wait, WaitPolicy};
use ringtree_transport::{Link, LinkError, Tag, TransportKind};

use crate::Error;
use crate::control::{
    AbortWord, Control, FlightRecorder, LinkFailure, Operation as Named, Stall, Suspicion,
};
use crate::device::QueuedExchange;
use crate::engine::Wiring;
use crate::executor::{Fault, Gear, Operation, Staged, Status};

/// An operation that has not moved for so long tells the arbiter.
const STALL: Duration = Duration::from_millis(100);

/// How long a thread sleeps that waits for a device, until it looks again: a slice takes about as long.
const DEVICE_LOOK: Duration = Duration::from_micros(20);

/// So often it looks without sleeping before an operation, and so long it sleeps at most: little beside what a device computes
/// that takes so long.
const DEVICE_QUICK_LOOKS: u32 = 100;
const DEVICE_LONGEST_LOOK: Duration = Duration::from_micros(500);

/// How long a rank waits for the arbiter's verdict once it knows that something is wrong.
const VERDICT_WAIT: Duration = Duration::from_secs(3);

/// What a wait looks at beside the links.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) policy: WaitPolicy,
    pub(crate) sleeper: Sleeper,
    pub(crate) bell: Arc<Bell>,
    pub(crate) abort: Arc<AbortWord>,
    pub(crate) control: Arc<Control>,
    pub(crate) recorder: Arc<FlightRecorder>,
    pub(crate) timeout: Duration,
}

/// What is driven: one operation, or several at once.
pub(crate) trait Driven {
    /// As [`Operation::poll`]; a fault with the operation that it is of.
    fn poll(&mut self, links: &mut [Option<Link>]) -> Result<Status, (Fault, Named)>;

    /// The operation that holds it up.
    fn named(&self) -> Named;

    /// Whom that one waits for.
    fn waiting_for(&self) -> Vec<u32>;

    /// Whether it waits for a device, of which nothing tells but another look.
    fn waits_for_device(&self) -> bool {
        false
    }
}

/// One operation on a GPU.
pub(crate) struct OnDevice<'a> {
    pub(crate) operation: &'a mut Staged,
    pub(crate) gear: &'a mut Gear,
    pub(crate) named: Named,
}

impl Driven for OnDevice<'_> {
    fn poll(&mut self, links: &mut [Option<Link>]) -> Result<Status, (Fault, Named)> {
        self.operation.poll(links, self.gear).map_err(|fault| (fault, self.named))
    }

    fn named(&self) -> Named {
        self.named
    }

    fn waiting_for(&self) -> Vec<u32> {
        self.operation.waiting_for()
    }

    fn waits_for_device(&self) -> bool {
        self.operation.waits_for_device()
    }
}

/// A call that one kernel carries out.
pub(crate) struct OnBoards<'a> {
    pub(crate) queued: &'a QueuedExchange,
    pub(crate) named: Named,
}

impl Driven for OnBoards<'_> {
    fn poll(&mut self, _: &mut [Option<Link>]) -> Result<Status, (Fault, Named)> {
        if !self.queued.is_done().map_err(|error| (Fault::Device(error), self.named))? {
            return Ok(Status::Blocked { moved: false });
        }
        match self.queued.foreign() {
            None => Ok(Status::Done),
            Some((peer, digest)) => {
                // What it calls there it has called as its operation of the same number.
                let theirs = Tag { sequence: self.named.sequence, digest };
                Err((Fault::Mismatch { peer, theirs }, self.named))
            }
        }
    }

    fn named(&self) -> Named {
        self.named
    }

    fn waiting_for(&self) -> Vec<u32> {
        self.queued.waiting_for()
    }

    fn waits_for_device(&self) -> bool {
        true
    }
}

/// One operation.
pub(crate) struct Single<'a> {
    pub(crate) operation: &'a mut Operation,
    pub(crate) named: Named,
}

impl Driven for Single<'_> {
    #[inline(always)]
    fn poll(&mut self, links: &mut [Option<Link>]) -> Result<Status, (Fault, Named)> {
        self.operation.poll(links, 0).map_err(|fault| (fault, self.named))
    }

    fn named(&self) -> Named {
        self.named
    }

    fn waiting_for(&self) -> Vec<u32> {
        self.operation.waiting_for()
    }
}

impl Driver {
    /// Has the monitor notice the end of a peer's process at once.
    pub(crate) fn watch_process(&self, link: &Link) {
        let Some(pid) = link.peer_process() else { return };
        if let Err(error) = self.control.watch_process(link.peer(), pid) {
            // Its control connection still tells, if later.
            tracing::debug!("cannot watch process {pid} of rank {}: {error}", link.peer());
        }
    }

    /// The link to a peer. A peer that does not come holds its operation up like one that does not
    /// answer, so the arbiter hears of it.
    pub(crate) fn connect(
        &self,
        wiring: &Wiring,
        peer: u32,
        operation: Option<Named>,
        deadline: Instant,
    ) -> Result<Link, Error> {
        let began = Instant::now();
        let stall = |operation, deadline_passed| Stall {
            operation,
            waiting_for: vec![peer],
            stalled_ms: began.elapsed().as_millis() as u64,
            deadline_passed,
        };
        let reported = Cell::new(false);
        let stop = || {
            if let Some(operation) = operation
                && began.elapsed() >= STALL
                && !reported.replace(true)
            {
                self.control.stalled(stall(operation, false));
            }
            self.abort.is_set()
        };
        let address = &wiring.addresses[peer as usize];
        wiring.endpoint.connect(peer, address, deadline, &stop).map_err(|error| {
            match operation.filter(|_| Instant::now() >= deadline) {
                Some(operation) => self.control.stalled(stall(operation, true)),
                None => {
                    let reason = error.to_string();
                    self.control.link_failed(LinkFailure { peer, reason, operation });
                }
            }
            self.verdict_or(error.into())
        })
    }

    /// Drives operations to their end, however long their peers take within the deadline.
    #[inline]
    pub(crate) fn drive(
        &mut self,
        driven: &mut impl Driven,
        links: &mut [Option<Link>],
    ) -> Result<(), Error> {
        let mut wait = Progressless::default();
        loop {
            match driven.poll(links) {
                Ok(Status::Done) => {
                    self.policy.found(&wait.looks);
                    return Ok(());
                }
                Ok(Status::Moved) => {
                    self.policy.found(&wait.looks);
                    wait = Progressless::default();
                    continue;
                }
                Ok(Status::Blocked { moved: true }) => {
                    self.policy.found(&wait.looks);
                    wait = Progressless::default();
                }
                Ok(Status::Blocked { moved: false }) => {}
                Err((fault, named)) => return Err(self.report(fault, named)),
            }
            if self.abort.is_set() {
                return Err(self.verdict_or_timeout(
                    driven.named(),
                    driven.waiting_for(),
                    self.timeout,
                ));
            }
            if self.policy.next(&mut wait.looks) == Stage::Sleep {
                let longest = self.watch(&mut wait, driven)?;
                if driven.waits_for_device() {
                    std::thread::sleep(DEVICE_LOOK);
                    continue;
                }
                let mut fault = None;
                let poll = |links: &mut [Option<Link>]| {
                    take_in(links);
                    match driven.poll(links) {
                        Ok(status) => status != Status::Blocked { moved: false },
                        Err(error) => {
                            fault = Some(error);
                            true
                        }
                    }
                };
                if self.sleep(links, longest, poll) {
                    wait = Progressless::default();
                }
                if let Some((fault, named)) = fault {
                    return Err(self.report(fault, named));
                }
            }
        }
    }

    /// Waits until a device has come to where its program has queued a call, however long that computes.
    ///
    /// # Errors
    /// The communicator has ended meanwhile, or what the driver says.
    pub(crate) fn await_device(&self, ready: &Event) -> Result<(), Error> {
        let mut pause = DEVICE_LOOK;
        let mut looks = 0_u32;
        while !ready.is_done()? {
            if self.abort.is_set()
                && let Some(verdict) = self.abort.verdict()
            {
                return Err(Error::Verdict(verdict));
            }
            looks += 1;
            if looks > DEVICE_QUICK_LOOKS {
                std::thread::sleep(pause);
                pause = (pause * 2).min(DEVICE_LONGEST_LOOK);
            } else {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Sleeps until something may have moved. Returns whether `poll` moved something before that.
    fn sleep(
        &mut self,
        links: &mut [Option<Link>],
        longest: Duration,
        poll: impl FnOnce(&mut [Option<Link>]) -> bool,
    ) -> bool {
        let abort = &self.abort;
        let mut moved = false;
        self.sleeper.sleep(links, &self.bell, longest, |links| {
            moved = poll(links);
            moved || abort.is_set()
        });
        moved
    }

    /// Looks at the clock: tells the arbiter of a stall, ends the wait at the deadline. Returns
    /// how long the thread may sleep until it must look again.
    fn watch(&mut self, wait: &mut Progressless, driven: &impl Driven) -> Result<Duration, Error> {
        let now = Instant::now();
        let since = *wait.since.get_or_insert(now);
        let stalled = now - since;
        let stall = |deadline_passed| Stall {
            operation: driven.named(),
            waiting_for: driven.waiting_for(),
            stalled_ms: stalled.as_millis() as u64,
            deadline_passed,
        };
        if stalled >= self.timeout {
            self.control.stalled(stall(true));
            let waiting_for = driven.waiting_for();
            return Err(self.verdict_or_timeout(driven.named(), waiting_for, self.timeout));
        }
        if stalled >= STALL && !wait.reported {
            wait.reported = true;
            self.control.stalled(stall(false));
        }
        let next = if wait.reported { self.timeout } else { STALL.min(self.timeout) };
        Ok(next.saturating_sub(stalled).max(Duration::from_millis(1)))
    }

    /// Tells the arbiter of a fault and waits for what it decides.
    pub(crate) fn report(&mut self, fault: Fault, operation: Named) -> Error {
        match fault {
            Fault::Link(error) => {
                let peer = error.peer();
                let reason = match &error {
                    LinkError::Failed { transport: TransportKind::Tcp, .. } => {
                        format!("{error}; check the network between them")
                    }
                    LinkError::Corrupt { .. } | LinkError::Tampered { .. } => {
                        format!("in {operation}: {error}")
                    }
                    _ => error.to_string(),
                };
                self.control.link_failed(LinkFailure { peer, reason, operation: Some(operation) });
                self.verdict_or(Error::Link { operation, error })
            }
            Fault::Mismatch { peer, theirs } => {
                self.control.suspect_mismatch(Suspicion {
                    operation,
                    peer,
                    peer_sequence: theirs.sequence,
                    peer_digest: theirs.digest,
                });
                self.verdict_or_timeout(operation, vec![peer], VERDICT_WAIT)
            }
            Fault::Device(error) => {
                self.control.abort(&format!("in {operation} its GPU failed: {error}"));
                // It may name another cause, which counts before this one.
                let _ = self.abort.await_verdict(Instant::now() + VERDICT_WAIT);
                Error::Device(Arc::new(error))
            }
            Fault::Length { peer, expected_bytes } => {
                self.control.abort(&format!(
                    "in {operation} it expects {expected_bytes} bytes of rank {peer}, which gave another \
                     length; the counts that the two pass must agree"
                ));
                self.verdict_or_timeout(operation, vec![peer], VERDICT_WAIT)
            }
        }
    }

    /// The arbiter's verdict, or that time ran out where none comes.
    fn verdict_or_timeout(
        &self,
        operation: Named,
        waiting_for: Vec<u32>,
        timeout: Duration,
    ) -> Error {
        let control_address = self.control.address().to_owned();
        self.verdict_or(Error::Timeout { operation, waiting_for, timeout, control_address })
    }

    /// The arbiter's verdict, or `otherwise` where none comes.
    fn verdict_or(&self, otherwise: Error) -> Error {
        self.abort.await_verdict(Instant::now() + VERDICT_WAIT).map_or(otherwise, Error::Verdict)
    }
}

/// Takes in what has come from all ranks, since it would keep whoever waits on their sockets awake.
/// If a link failed, whoever needs it finds out.
fn take_in(links: &mut [Option<Link>]) {
    for link in links.iter_mut().flatten() {
        let _ = link.poll(0);
    }
}

/// A time without progress.
#[derive(Default)]
struct Progressless {
    looks: Wait,
    /// When the thread first looked at the clock.
    since: Option<Instant>,
    reported: bool,
}
