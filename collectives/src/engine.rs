//! The part of a communicator that one thread at a time drives: its links, its prepared
//! operations, and the wait for them.

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use ringtree_transport::endpoint::Endpoint;
use ringtree_transport::memory::{Bell, Registration};
use ringtree_transport::pages::LargePages;
use ringtree_transport::shm::Board;
use ringtree_transport::wait::{Sleeper, Stage, Wait, WaitPolicy};
use ringtree_transport::{Link, LinkError, Tag, TransportKind};

use crate::control::{
    AbortWord, Control, FlightRecorder, LinkFailure, Operation as Named, Stall, Stream, Suspicion,
};
use crate::executor::{Fault, Operation, Status};
use crate::prepared::{Call, Entry, Part, Prepared};
use crate::reduce::{self, Pass};
use crate::selection::Shape;
use crate::{Error, Factor, Op};

/// An operation that has not moved for so long tells the arbiter.
const STALL: Duration = Duration::from_millis(100);

/// How long a rank waits for the arbiter's verdict once it knows that something is wrong.
const VERDICT_WAIT: Duration = Duration::from_secs(3);

/// See the file's description.
#[derive(Debug)]
pub(crate) struct Engine {
    wiring: Wiring,
    driver: Driver,
    prepared: Prepared,
    pages: LargePages,
    shape: Shape,
    sequence: u32,
    sent: Vec<u32>,
    received: Vec<u32>,
    failed: Option<Error>,
}

/// The links, and what it takes to make them.
#[derive(Debug)]
pub(crate) struct Wiring {
    pub(crate) rank: u32,
    pub(crate) endpoint: Endpoint,
    pub(crate) addresses: Vec<Vec<u8>>,
    /// The host of each rank.
    pub(crate) hosts: Vec<u32>,
    pub(crate) links: Vec<Option<Link>>,
    pub(crate) board: Board,
    /// What links may lend, those that are yet to be made too.
    pub(crate) registrations: Vec<Weak<Registration>>,
}

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

/// The engine. A thread that panicked while it drove an operation has left the links with the
/// addresses of memory that is gone: the communicator is over, and nothing looks at them again.
pub(crate) fn lock(engine: &Mutex<Engine>) -> MutexGuard<'_, Engine> {
    engine.lock().unwrap_or_else(|poisoned| {
        let mut engine = poisoned.into_inner();
        engine.abandon();
        engine
    })
}

impl Engine {
    pub(crate) fn new(wiring: Wiring, driver: Driver, shape: Shape) -> Engine {
        let ranks = wiring.addresses.len();
        Engine {
            wiring,
            driver,
            prepared: Prepared::default(),
            pages: LargePages::default(),
            shape,
            sequence: 0,
            sent: vec![0; ranks],
            received: vec![0; ranks],
            failed: None,
        }
    }

    /// The error that ended the communicator, if one has.
    pub(crate) fn check(&mut self) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.driver.abort.is_set()
            && let Some(verdict) = self.driver.abort.verdict()
        {
            return Err(self.fail(Error::Verdict(verdict)));
        }
        Ok(())
    }

    /// Makes a call's operation, its links and its memory ready, without running it.
    pub(crate) fn prepare(&mut self, call: &Call) -> Result<(), Error> {
        self.check()?;
        let index = self.prepared.find(&call.without_factor(), &self.wiring, self.shape);
        let peers = self.prepared.operations[index].operation.peers().to_vec();
        self.connect(&peers, None)
    }

    /// Runs a call to its end.
    ///
    /// # Safety
    /// What the call reads of `input` must be readable, and what it writes of `output` writable, until
    /// this returns; they are the same or do not overlap. They are the same where the call is in place:
    /// then it is one buffer of all blocks, if there are blocks.
    pub(crate) unsafe fn run(
        &mut self,
        call: &Call,
        input: *const u8,
        output: *mut u8,
    ) -> Result<(), Error> {
        self.check()?;
        if let Some(Op::PreMulSum(factor)) = call.op
            && factor != Factor::ONE
        {
            // SAFETY: the caller's promise is passed on.
            return unsafe { self.run_multiplied(call, factor, input, output) };
        }
        let index = self.prepared.find(call, &self.wiring, self.shape);
        let sequence = self.next_sequence(call.stream);
        let Entry { record, operation, .. } = &self.prepared.operations[index];
        let named = Named { stream: call.stream, sequence, record: *record };
        let ticket = self.driver.recorder.begin(call.stream, sequence, record);
        let peers = operation.peers();
        if peers.iter().any(|&peer| self.wiring.links[peer as usize].is_none()) {
            let peers = peers.to_vec();
            self.connect(&peers, Some(named))?;
        }
        let Entry { operation, runs, part, .. } = &mut self.prepared.operations[index];
        let (mut input, mut output) = (input, output);
        if output.cast_const() == input {
            self.pages.note_call(input, part.input_bytes.max(part.output_bytes));
        } else {
            self.pages.note_call(input, part.input_bytes);
            self.pages.note_call(output, part.output_bytes);
            input = input.wrapping_sub(part.before_input_bytes);
            output = output.wrapping_sub(part.before_output_bytes);
        }
        let tag = Tag { sequence, digest: operation.digest() };
        for _ in 0..*runs {
            // SAFETY: the caller's promise is passed on.
            unsafe {
                let Wiring { links, board, .. } = &mut self.wiring;
                operation.start_with(tag, input, output, links, board);
            }
            let mut links = InUse { links: &mut self.wiring.links, is_over: false };
            let result = self.driver.drive(operation, named, links.links);
            links.is_over = true;
            drop(links);
            if let Err(error) = result {
                return Err(self.fail(error));
            }
        }
        self.driver.recorder.end(ticket);
        Ok(())
    }

    /// Runs an [`Op::PreMulSum`]: multiplies what this rank gives where the result will be, if that has
    /// room for it, or else into a copy, and sums.
    ///
    /// # Safety
    /// As of [`Engine::run`].
    unsafe fn run_multiplied(
        &mut self,
        call: &Call,
        factor: Factor,
        input: *const u8,
        output: *mut u8,
    ) -> Result<(), Error> {
        let ranks = self.wiring.addresses.len() as u32;
        let block_bytes = call.count as usize * call.data_type.size_bytes();
        let collective = call.kind.collective(call.root);
        let part = Part::of(collective, self.wiring.rank, ranks, block_bytes);
        let mut copy = Vec::new();
        // What a call leaves as it is, as of a reduction to another rank, must not be multiplied.
        let (multiplied, output): (*mut u8, *mut u8) = if part.output_bytes == part.input_bytes {
            (output, output)
        } else {
            copy.resize(part.input_bytes.div_ceil(8), 0_u64);
            let own_output = match part.output_bytes {
                0 => copy.as_mut_ptr().cast(),
                _ if output.cast_const() == input => output.wrapping_add(part.before_output_bytes),
                _ => output,
            };
            (copy.as_mut_ptr().cast(), own_output)
        };
        let kernel = reduce::kernel(call.data_type, Pass::Scale { factor: factor.get() });
        // SAFETY: the input can be read and, as the caller promises, the output be written; they are the
        // same or do not overlap. A copy has room for the input.
        unsafe {
            let count = part.input_bytes / call.data_type.size_bytes();
            kernel.run(&[input], &[multiplied], count);
        }
        // SAFETY: the caller's promise, with the multiplied elements for the input.
        unsafe { self.run(&call.without_factor(), multiplied, output) }
    }

    /// Makes the links to all other ranks.
    pub(crate) fn warm_up(&mut self) -> Result<(), Error> {
        self.check()?;
        let all: Vec<u32> = (0..self.wiring.addresses.len() as u32).collect();
        self.connect(&all, None)
    }

    /// Lets peers read a memory in place.
    pub(crate) fn share(&mut self, registration: &Arc<Registration>) -> Result<(), Error> {
        self.check()?;
        self.wiring.registrations.retain(|other| other.strong_count() > 0);
        self.wiring.registrations.push(Arc::downgrade(registration));
        self.wiring.links.iter_mut().flatten().for_each(|link| link.share(registration));
        Ok(())
    }

    /// The link to a peer, if it has been made.
    pub(crate) fn link(&self, peer: u32) -> Option<&Link> {
        self.wiring.links.get(peer as usize)?.as_ref()
    }

    /// Says goodbye and lets go of everything; peers get what was sent to them.
    pub(crate) fn close(&mut self) {
        self.driver.control.leave();
        let deadline = Instant::now() + Duration::from_secs(1);
        for link in self.wiring.links.iter_mut().filter_map(Option::take) {
            if self.failed.is_none() {
                link.close(deadline);
            }
        }
    }

    /// Ends the communicator because an operation panicked.
    pub(crate) fn abandon(&mut self) {
        if self.failed.is_none() {
            self.driver.control.abort("an operation panicked");
        }
        self.fail(Error::Panicked);
    }

    /// Makes the links that are missing, for an operation if there is one.
    fn connect(&mut self, peers: &[u32], operation: Option<Named>) -> Result<(), Error> {
        let deadline = Instant::now() + self.driver.timeout;
        for &peer in peers {
            if peer == self.wiring.rank || self.wiring.links[peer as usize].is_some() {
                continue;
            }
            match self.driver.connect(&self.wiring, peer, operation, deadline) {
                Ok(mut link) => {
                    let registrations = self.wiring.registrations.iter();
                    registrations.filter_map(Weak::upgrade).for_each(|r| link.share(&r));
                    self.driver.watch_process(&link);
                    self.wiring.links[peer as usize] = Some(link);
                }
                Err(error) => return Err(self.fail(error)),
            }
        }
        Ok(())
    }

    fn next_sequence(&mut self, stream: Stream) -> u32 {
        let counter = match stream {
            Stream::Collective => &mut self.sequence,
            Stream::SendTo(peer) => &mut self.sent[peer as usize],
            Stream::ReceiveFrom(peer) => &mut self.received[peer as usize],
        };
        *counter = counter.wrapping_add(1);
        *counter
    }

    /// Remembers the error that ends the communicator, a verdict before anything else, and drops
    /// the links: from here on nothing reads or writes the caller's memory.
    fn fail(&mut self, error: Error) -> Error {
        let verdict = self.driver.abort.verdict().map(Error::Verdict);
        let error = verdict.unwrap_or(error);
        drop_all(&mut self.wiring.links);
        self.failed = Some(error.clone());
        error
    }
}

/// The links while an operation runs. Should it panic, peers must not reach the caller's memory any
/// more, which the unwinding frees.
struct InUse<'a> {
    links: &'a mut [Option<Link>],
    is_over: bool,
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            drop_all(self.links);
        }
    }
}

/// Drops the links: when this returns, nothing reads or writes the memory of any operation.
fn drop_all(links: &mut [Option<Link>]) {
    links.iter_mut().flatten().for_each(Link::withdraw);
    links.iter_mut().for_each(|link| *link = None);
}

impl Driver {
    /// Has the monitor notice the end of a peer's process at once.
    fn watch_process(&self, link: &Link) {
        let Some(pid) = link.peer_process() else { return };
        if let Err(error) = self.control.watch_process(link.peer(), pid) {
            // Its control connection still tells, if later.
            tracing::debug!("cannot watch process {pid} of rank {}: {error}", link.peer());
        }
    }

    /// The link to a peer. A peer that does not come holds its operation up like one that does not
    /// answer, so the arbiter hears of it.
    fn connect(
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

    /// Drives an operation to its end, however long its peers take within the deadline.
    fn drive(
        &mut self,
        operation: &mut Operation,
        named: Named,
        links: &mut [Option<Link>],
    ) -> Result<(), Error> {
        let mut wait = Progressless::default();
        loop {
            match operation.poll(links, 0) {
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
                Err(fault) => return Err(self.report(fault, named)),
            }
            if self.abort.is_set() {
                return Err(self.verdict_or_timeout(named, operation.waiting_for(), self.timeout));
            }
            if self.policy.next(&mut wait.looks) == Stage::Sleep {
                let longest = self.watch(&mut wait, operation, named)?;
                let mut fault = None;
                let poll = |links: &mut [Option<Link>]| {
                    take_in(links);
                    match operation.poll(links, 0) {
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
                if let Some(fault) = fault {
                    return Err(self.report(fault, named));
                }
            }
        }
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
    fn watch(
        &mut self,
        wait: &mut Progressless,
        operation: &Operation,
        named: Named,
    ) -> Result<Duration, Error> {
        let now = Instant::now();
        let since = *wait.since.get_or_insert(now);
        let stalled = now - since;
        let waiting_for = || operation.waiting_for();
        let stall = |deadline_passed| Stall {
            operation: named,
            waiting_for: waiting_for(),
            stalled_ms: stalled.as_millis() as u64,
            deadline_passed,
        };
        if stalled >= self.timeout {
            self.control.stalled(stall(true));
            return Err(self.verdict_or_timeout(named, waiting_for(), self.timeout));
        }
        if stalled >= STALL && !wait.reported {
            wait.reported = true;
            self.control.stalled(stall(false));
        }
        let next = if wait.reported { self.timeout } else { STALL.min(self.timeout) };
        Ok(next.saturating_sub(stalled).max(Duration::from_millis(1)))
    }

    /// Tells the arbiter of a fault and waits for what it decides.
    fn report(&mut self, fault: Fault, operation: Named) -> Error {
        match fault {
            Fault::Link(error) => {
                let peer = error.peer();
                let mut reason = error.to_string();
                if matches!(error, LinkError::Failed { transport: TransportKind::Tcp, .. }) {
                    reason.push_str("; check the network between them");
                }
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
