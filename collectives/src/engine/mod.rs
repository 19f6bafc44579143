//! The part of a communicator that one thread at a time drives: its links, its prepared
//! operations, and the wait for them.

mod device;
mod device_group;

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use ringtree_plan::Places;
use ringtree_transport::endpoint::Endpoint;
use ringtree_transport::memory::Registration;
use ringtree_transport::pages::LargePages;
use ringtree_transport::rdma::Counters;
use ringtree_transport::shm::Board;
use ringtree_transport::{Link, Tag};

use crate::control::{Operation as Named, Stream, Verdict};
use crate::device::{Boards, DeviceCounters, Recording, Signals};
use crate::driver::{Driven, Driver, Single};
use crate::prepared::{Blocks, Call, Entry, Part, Prepared, entry};
use crate::reduce::{self, Pass};
use crate::selection::Shape;
use crate::together::{OnHost, Together};
use crate::{Error, Factor, Op};
use device::DeviceEngine;
pub(crate) use device::DevicePlace;

/// See the file's description.
#[derive(Debug)]
pub(crate) struct Engine {
    /// Before the links, whose memory it locks.
    devices: Vec<DeviceEngine>,
    device_counters: DeviceCounters,
    /// By which small calls on GPUs are one kernel, once all ranks have joined.
    boards: Option<Arc<Boards>>,
    /// What calls on GPUs do and when, if that is asked for.
    recording: Option<Recording>,
    /// What streams of GPUs wait by.
    signals: Arc<Signals>,
    wiring: Wiring,
    driver: Driver,
    prepared: Prepared,
    pages: LargePages,
    /// Where small buffers are packed, aligned for every type.
    pack: Vec<u64>,
    shape: Shape,
    /// What runs was counted when it was posted.
    pub(crate) is_in_job: bool,
    sequence: u32,
    sent: Vec<u32>,
    received: Vec<u32>,
    failed: Option<Error>,
    /// It went through a decision of who goes on.
    has_regrouped: bool,
}

/// The links, and what it takes to make them.
#[derive(Debug)]
pub(crate) struct Wiring {
    pub(crate) rank: u32,
    pub(crate) endpoint: Endpoint,
    pub(crate) addresses: Vec<Vec<u8>>,
    /// Where the ranks are: at least one order of them, and further ones for rings.
    pub(crate) places: Vec<Places>,
    pub(crate) links: Vec<Option<Link>>,
    pub(crate) board: Board,
    /// What links may lend, those that are yet to be made too.
    pub(crate) registrations: Vec<Weak<Registration>>,
}

impl Wiring {
    /// Lets peers read a memory in place.
    fn share(&mut self, registration: &Arc<Registration>) {
        self.registrations.retain(|other| other.strong_count() > 0);
        self.registrations.push(Arc::downgrade(registration));
        self.links.iter_mut().flatten().for_each(|link| link.share(registration));
    }
}

/// Where a call reads and writes. That the two are one buffer is said, and not found by comparing
/// addresses: those of an empty buffer and of another one may be equal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// One buffer, of all blocks if there are blocks.
    In(*mut u8),
    /// A buffer to read and one to write, which do not overlap. What the call does not read or write may be
    /// anything.
    Into(*const u8, *mut u8),
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
            devices: Vec::new(),
            device_counters: DeviceCounters::default(),
            boards: None,
            recording: None,
            signals: Arc::default(),
            wiring,
            driver,
            prepared: Prepared::default(),
            pages: LargePages::default(),
            pack: Vec::new(),
            shape,
            is_in_job: false,
            sequence: 0,
            sent: vec![0; ranks],
            received: vec![0; ranks],
            failed: None,
            has_regrouped: false,
        }
    }

    pub(crate) fn rank(&self) -> u32 {
        self.wiring.rank
    }

    pub(crate) fn ranks(&self) -> u32 {
        self.shape.ranks
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
        let index = self.prepared.find(&call.without_factor(), &self.wiring, &self.shape);
        let peers = self.prepared.operations[index].operation.peers().to_vec();
        self.connect(&peers, None)
    }

    /// Runs a call to its end.
    ///
    /// # Safety
    /// What the call reads must be readable, and what it writes writable, until this returns.
    #[inline]
    pub(crate) unsafe fn run(&mut self, call: &Call, place: Place) -> Result<(), Error> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.run_on(call, None, place) }
    }

    /// Runs a call on blocks that differ in length.
    ///
    /// # Safety
    /// As of [`Engine::run`].
    pub(crate) unsafe fn run_varied(
        &mut self,
        call: &Call,
        blocks: &Blocks,
        place: Place,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.run_on(call, Some(blocks), place) }
    }

    #[inline(always)]
    unsafe fn run_on(
        &mut self,
        call: &Call,
        blocks: Option<&Blocks>,
        place: Place,
    ) -> Result<(), Error> {
        self.check()?;
        if let Some(Op::PreMulSum(factor)) = call.op
            && factor != Factor::ONE
        {
            // SAFETY: the caller's promise is passed on.
            return unsafe { self.run_multiplied(call, blocks, factor, place) };
        }
        let mut index = self.prepared.find(call, &self.wiring, &self.shape);
        if let Some(blocks) = blocks {
            index = self.prepared.vary(index, blocks, self.wiring.rank);
        }
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
        let (input, output) = match place {
            Place::In(buffer) => {
                self.pages.note_call(buffer, part.input.max(part.output));
                (buffer.cast_const(), buffer)
            }
            Place::Into(input, output) => {
                self.pages.note_call(input, part.input);
                self.pages.note_call(output, part.output);
                (input.wrapping_sub(part.before_input), output.wrapping_sub(part.before_output))
            }
        };
        let tag = Tag { sequence, digest: operation.digest() };
        for _ in 0..*runs {
            // SAFETY: the caller's promise is passed on.
            unsafe {
                let Wiring { links, board, .. } = &mut self.wiring;
                operation.start_with(tag, input, output, links, board);
            }
            let result =
                drive(&mut self.driver, &mut Single { operation, named }, &mut self.wiring);
            if let Err(error) = result {
                return Err(self.fail(error));
            }
        }
        self.driver.recorder.end(ticket);
        Ok(())
    }

    /// Runs messages to and from peers, all under way at once but for those of one stream, which keep
    /// their order.
    ///
    /// # Safety
    /// As of [`Engine::run`], of each; and none writes what another reads or writes.
    pub(crate) unsafe fn run_together(
        &mut self,
        messages: impl Iterator<Item = (Call, Place)>,
    ) -> Result<(), Error> {
        self.check()?;
        let mut nothing = ();
        let mut together = Together::new(self.driver.recorder.clone(), &mut nothing);
        let mut peers = Vec::new();
        let mut first = None;
        for (call, place) in messages {
            let (input, output) = match place {
                Place::In(buffer) => (buffer.cast_const(), buffer),
                Place::Into(input, output) => (input, output),
            };
            let Entry { record, operation, .. } =
                entry(&call, self.wiring.rank, &self.wiring.places, &self.shape);
            let sequence = self.next_sequence(call.stream);
            let named = Named { stream: call.stream, sequence, record };
            first.get_or_insert(named);
            peers.extend_from_slice(operation.peers());
            together.add(named, OnHost { operation, input, output });
        }
        peers.sort_unstable();
        peers.dedup();
        self.connect(&peers, first)?;
        let result = drive(&mut self.driver, &mut together, &mut self.wiring);
        result.map_err(|error| self.fail(error))
    }

    /// Runs an [`Op::PreMulSum`]: multiplies what this rank gives where the result will be, if that has
    /// room for it, or else into a copy, and sums.
    ///
    /// # Safety
    /// As of [`Engine::run`].
    #[cold]
    unsafe fn run_multiplied(
        &mut self,
        call: &Call,
        blocks: Option<&Blocks>,
        factor: Factor,
        place: Place,
    ) -> Result<(), Error> {
        let element_bytes = call.data_type.size_bytes();
        let part = self.part(call, blocks);
        let (input, own_output) = match place {
            Place::In(buffer) => (buffer.cast_const(), buffer.wrapping_add(part.before_output)),
            Place::Into(input, output) => (input, output),
        };
        let mut copy = Vec::new();
        // What a call leaves as it is, as of a reduction to another rank, must not be multiplied.
        let (multiplied, place): (*mut u8, Place) = if part.output == part.input {
            (own_output, Place::In(own_output))
        } else {
            copy.resize(part.input.div_ceil(8), 0_u64);
            let multiplied = copy.as_mut_ptr().cast::<u8>();
            (multiplied, Place::Into(multiplied, own_output))
        };
        let kernel = reduce::kernel(call.data_type, Pass::Scale { factor: factor.get() });
        // SAFETY: the input can be read and, as the caller promises, the output be written; they are the
        // same or do not overlap. A copy has room for the input.
        unsafe { kernel.run(&[input], &[multiplied], part.input / element_bytes) };
        let call = call.without_factor();
        // SAFETY: the caller's promise, with the multiplied elements for the input.
        unsafe {
            match blocks {
                None => self.run(&call, place),
                Some(blocks) => self.run_varied(&call, blocks, place),
            }
        }
    }

    /// Which part of all ranks' blocks this rank's buffers are, in bytes.
    fn part(&self, call: &Call, blocks: Option<&Blocks>) -> Part {
        let element_bytes = call.data_type.size_bytes();
        match (call.kind.collective(call.root), blocks) {
            (Some(collective), Some(blocks)) => {
                Part::varied(collective, self.rank(), blocks, element_bytes)
            }
            (collective, _) => {
                let block_bytes = call.count as usize * element_bytes;
                Part::of(collective, self.rank(), self.ranks(), block_bytes)
            }
        }
    }

    /// Memory to pack small buffers into, which is to be given back.
    pub(crate) fn take_pack(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.pack)
    }

    pub(crate) fn keep_pack(&mut self, pack: Vec<u64>) {
        self.pack = pack;
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
        self.wiring.share(registration);
        Ok(())
    }

    /// What all links over RDMA have done.
    pub(crate) fn rdma_counters(&self) -> Counters {
        let links = self.wiring.links.iter().flatten();
        links.filter_map(Link::rdma_counters).fold(Counters::default(), |all, one| all + one)
    }

    /// What streams of GPUs wait by.
    pub(crate) fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// What calls on GPUs have had these do.
    pub(crate) fn device_counters(&self) -> DeviceCounters {
        self.device_counters
    }

    /// Sets how calls on GPUs are recorded. Returns how they were.
    pub(crate) fn set_recording(&mut self, recording: Option<Recording>) -> Option<Recording> {
        std::mem::replace(&mut self.recording, recording)
    }

    /// The ports that this rank uses for RDMA.
    pub(crate) fn rdma_ports(&self) -> Vec<String> {
        self.wiring.endpoint.rails()
    }

    /// The link to a peer, if it has been made.
    pub(crate) fn link(&self, peer: u32) -> Option<&Link> {
        self.wiring.links.get(peer as usize)?.as_ref()
    }

    /// Says goodbye and lets go of everything; peers get what was sent to them.
    pub(crate) fn close(&mut self) {
        self.driver.control.leave();
        // Parts that were split off may live on for long.
        (self.prepared, self.pack) = (Prepared::default(), Vec::new());
        self.devices.clear();
        let deadline = Instant::now() + Duration::from_secs(1);
        for link in self.wiring.links.iter_mut().filter_map(Option::take) {
            if self.failed.is_none() {
                link.close(deadline);
            }
        }
    }

    /// Collectives that this rank has completed.
    pub(crate) fn completed(&self) -> u32 {
        self.driver.recorder.completed()
    }

    /// What the arbiter has decided, if it has.
    pub(crate) fn verdict(&self) -> Option<Arc<Verdict>> {
        self.driver.abort.verdict()
    }

    /// An error where another communicator has taken this one's place, or could not.
    pub(crate) fn check_may_regroup(&self) -> Result<(), Error> {
        match &self.failed {
            Some(error) if self.has_regrouped => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// No other communicator has taken this one's place, for this reason.
    pub(crate) fn give_up(&mut self, error: &Error) {
        self.close();
        self.has_regrouped = true;
        self.failed = Some(error.clone());
    }

    /// Another communicator takes this one's place.
    pub(crate) fn replace(&mut self) {
        self.close();
        self.has_regrouped = true;
        self.failed = Some(Error::Replaced);
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
            Stream::Collective => {
                if let Some(boards) = self.boards.as_ref().filter(|_| !self.is_in_job) {
                    boards.count_call();
                }
                &mut self.sequence
            }
            Stream::SendTo(peer) => &mut self.sent[peer as usize],
            Stream::ReceiveFrom(peer) => &mut self.received[peer as usize],
        };
        *counter = counter.wrapping_add(1);
        *counter
    }

    /// Remembers the error that ends the communicator, and drops the links: from here on nothing reads or writes the
    /// caller's memory. A verdict counts before anything else, but for one that only repeats how this rank's GPU failed.
    fn fail(&mut self, error: Error) -> Error {
        let rank = self.rank();
        let repeats =
            |verdict: &Verdict| matches!(verdict, Verdict::Aborted { by, .. } if *by == rank);
        let error = match (self.driver.abort.verdict(), error) {
            (Some(verdict), error @ Error::Device(_)) if repeats(&verdict) => error,
            (Some(verdict), _) => Error::Verdict(verdict),
            (None, error) => error,
        };
        self.leave_devices(&error);
        drop_all(&mut self.wiring.links);
        self.failed = Some(error.clone());
        error
    }
}

/// Drives operations to their end. Should that panic, the links are dropped.
#[inline]
fn drive(driver: &mut Driver, driven: &mut impl Driven, wiring: &mut Wiring) -> Result<(), Error> {
    let mut links = InUse { links: &mut wiring.links, is_over: false };
    let result = driver.drive(driven, links.links);
    links.is_over = true;
    result
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
