//! Small calls on GPUs that read each other's memory: one kernel a rank, launched straight into the program's stream.
//!
//! As on the host (`transport/src/shm/board.rs`), each rank has a board, of two places that are used in turn: a flag, and a
//! slot for what the rank gives. An exchange is a kernel (`kernels/fold.cu`) that fills the slot, sets the flag to the
//! exchange's number and the digest of the call, waits until the flags of all others have come to that number, and
//! folds, or copies, what it finds in the slots, in the order of the ranks. A place is written again two exchanges
//! later; by then this rank has seen everyone's flag of the exchange between, which a rank sets only after it
//! has read all of the one before. So exchanges of one communicator run one after the other, in whichever streams.
//!
//! The communicator's progress thread only watches: it waits for the kernel's end, tells of a stall, and ends the kernels,
//! by a word that they look at while they wait, when the communicator has failed. A kernel that finds a flag of its
//! number and another digest says so in pinned memory, and it and those behind it end without a result.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringtree_plan::Collective;
use ringtree_transport::cuda::{
    CudaError, Device, DeviceAddress, Event, OpenedMemory, PinnedMemory, PublicMemory, Stream,
};
use rustc_hash::FxHashMap;

use super::kernels::Exchange;
use super::{DeviceCounters, Fold, Kernels, MOST_OPERANDS};
use crate::digest::{fnv1a, fold};
use crate::engine::DevicePlace;
use crate::prepared::{Call, Part};
use crate::record::{CallRecord, ONE_KERNEL};
use crate::{DataType, Error, Factor, Op};

/// What a rank gives in an exchange at most: four packs of 16 bytes for each thread of the block. Of more, the block would
/// keep the others waiting longer than starting several kernels takes.
pub(crate) const SLOT_BYTES: usize = 16 << 10;

/// Flags and slots are lines of their own.
const LINE_BYTES: usize = 128;

/// What a board has: a line that says which it is, one that says whether an exchange has failed, and two places.
const FAILED: usize = LINE_BYTES;
const PLACES: usize = 2 * LINE_BYTES;
const PLACE_BYTES: usize = LINE_BYTES + SLOT_BYTES;
pub(crate) const BOARD_BYTES: usize = PLACES + 2 * PLACE_BYTES;

/// How long the end of kernels is waited for once they are to end.
const END_WAIT: Duration = Duration::from_secs(1);

/// How often the wait looks.
const END_LOOK: Duration = Duration::from_micros(20);

/// Calls that are kept ready, as in `prepared.rs`.
const READY_MOST: usize = 256;

/// What kernels and the host tell each other: as in `fold.cu`.
#[repr(C, align(128))]
struct Report {
    /// Not zero: all kernels are to end.
    end: AtomicU64,
    _line: [u64; 15],
    /// By rank: the number of the exchange that the kernel waits for it in, if it has waited for some time.
    waits: [AtomicU64; MOST_OPERANDS],
    /// By rank: the flag of another call that was found.
    foreign: [AtomicU64; MOST_OPERANDS],
}

/// The boards of all ranks of a communicator, as one of them uses them.
#[derive(Debug)]
pub(crate) struct Boards {
    device: Device,
    rank: u32,
    kernels: Arc<Kernels>,
    own: Option<PublicMemory>,
    peers: Vec<OpenedMemory>,
    /// By rank.
    addresses: Vec<DeviceAddress>,
    report: Option<PinnedMemory>,
    /// Collectives of this communicator that were called, of whatever kind, since all have joined.
    calls: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the last exchange, wrapping.
    number: u32,
    /// The last exchange, and the stream that it was queued in.
    last: Option<(usize, Arc<Marks>)>,
    /// Events of exchanges, the oldest first. Whoever watches one has a handle, too.
    marks: VecDeque<Arc<Marks>>,
    ready: FxHashMap<Call, Ready>,
}

/// Where an exchange begins and ends in its stream.
#[derive(Debug)]
pub(crate) struct Marks {
    pub(crate) begin: Event,
    pub(crate) end: Event,
}

/// A call that can be queued: all but its addresses and its number.
#[derive(Clone, Debug)]
struct Ready {
    record: CallRecord,
    fold: Fold,
    part: Part,
    /// What is read of each board, and where in the slot.
    read_bytes: usize,
    offset: usize,
    /// The boards that are copied from, where nothing is folded.
    first: u32,
    pieces: u32,
}

/// An exchange that was queued.
#[derive(Debug)]
pub(crate) struct QueuedExchange {
    pub(crate) boards: Arc<Boards>,
    pub(crate) marks: Arc<Marks>,
    pub(crate) record: CallRecord,
    pub(crate) counters: DeviceCounters,
    word: u64,
}

impl Boards {
    /// The boards of `peers`, by rank, to whom `own` belongs: `None` in the place of this rank.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn new(
        device: &Device,
        rank: u32,
        own: PublicMemory,
        peers: Vec<Option<OpenedMemory>>,
    ) -> Result<Boards, CudaError> {
        let report = PinnedMemory::alloc(device, size_of::<Report>())?;
        // SAFETY: the memory is as long, and nobody else knows of it.
        unsafe { report.start().write_bytes(0, size_of::<Report>()) };
        let address = |peer: &Option<OpenedMemory>| {
            peer.as_ref().map_or(own.address(), OpenedMemory::address)
        };
        Ok(Boards {
            device: device.clone(),
            rank,
            kernels: Kernels::of(device),
            addresses: peers.iter().map(address).collect(),
            own: Some(own),
            peers: peers.into_iter().flatten().collect(),
            report: Some(report),
            calls: AtomicU32::new(0),
            state: Mutex::default(),
        })
    }

    /// Whose streams exchanges are queued in.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Whether a call is an exchange: on all ranks alike.
    pub(crate) fn take(&self, call: &Call) -> bool {
        let is_plain = call.forced.is_none() && !call.kind.is_varied();
        let collective = call.kind.collective(call.root).filter(|_| is_plain);
        collective.is_some_and(|collective| self.serve(collective, call.count, call.data_type))
    }

    /// Whether so many elements, or blocks of so many, are few enough.
    pub(crate) fn serve(&self, collective: Collective, count: u64, data_type: DataType) -> bool {
        let blocks = match collective {
            Collective::ReduceScatter | Collective::Scatter { .. } | Collective::AllToAll => {
                self.addresses.len() as u64
            }
            _ => 1,
        };
        let block_bytes = count.saturating_mul(data_type.size_bytes() as u64);
        block_bytes.saturating_mul(blocks) <= SLOT_BYTES as u64
    }

    /// A collective was called, or queued.
    pub(crate) fn count_call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Queues an exchange, and has it watched by what `post` queues.
    ///
    /// # Errors
    /// What the driver says; nothing is queued then.
    ///
    /// # Safety
    /// The buffers must be memory of the device with room for what the call names, and stay until it is done.
    pub(crate) unsafe fn queue<P>(
        self: &Arc<Self>,
        call: &Call,
        stream: &Stream,
        place: DevicePlace,
        post: impl FnOnce(QueuedExchange) -> P,
    ) -> Result<P, Error> {
        let mut state = self.lock();
        let ready = self.ready(&mut state, call)?;
        let marks = self.marks(&mut state)?;
        if let Some((_, last)) = state.last.as_ref().filter(|(of, _)| *of != stream.raw() as usize)
        {
            stream.wait_for_event(&last.end)?;
        }
        let number = state.number.wrapping_add(1);
        let word = self.word(&ready.record, number);
        marks.begin.record(stream)?;
        // SAFETY: the caller's promise; boards and report stay until all exchanges have ended.
        unsafe { ready.fold.exchange(stream, &self.exchange(&ready, call, place, number, word))? };
        state.number = number;
        state.last = Some((stream.raw() as usize, marks.clone()));
        let recorded = marks.end.record(stream);
        let counters = self.counters(&ready);
        let queued =
            QueuedExchange { boards: self.clone(), marks, record: ready.record, counters, word };
        let posted = post(queued);
        // The kernel is under way, whose end nobody would see.
        recorded?;
        Ok(posted)
    }

    /// What the flag of an exchange is: beside its number, a digest of what is called, and of how many collectives were
    /// called before it, so that exchanges do not meet that are not the same call on all ranks.
    fn word(&self, record: &CallRecord, number: u32) -> u64 {
        let calls = self.calls.load(Ordering::Relaxed);
        let digest = fold(fnv1a(record.encode().into_iter().chain(calls.to_le_bytes())));
        u64::from(number) << 32 | u64::from(digest)
    }

    fn exchange(
        &self,
        ready: &Ready,
        call: &Call,
        place: DevicePlace,
        number: u32,
        word: u64,
    ) -> Exchange<'_> {
        let Ready { part, read_bytes, offset, first, pieces, .. } = *ready;
        let (given, result) = match place {
            DevicePlace::In(buffer) => {
                (buffer + part.before_input as u64, buffer + part.before_output as u64)
            }
            DevicePlace::Into(input, output) => (input, output),
        };
        let own = self.addresses[self.rank as usize];
        let place = PLACES + (number & 1) as usize * PLACE_BYTES;
        let factor = match call.op {
            Some(Op::PreMulSum(factor)) if factor != Factor::ONE => Some(factor.get()),
            _ => None,
        };
        Exchange {
            boards: &self.addresses,
            rank: self.rank,
            offset: (place + LINE_BYTES + offset) as u64,
            distance: (LINE_BYTES + offset) as u64,
            given,
            given_bytes: part.input,
            slot: own + (place + LINE_BYTES) as u64,
            factor,
            flag: own + place as u64,
            word,
            failed: own + FAILED as u64,
            report: self.report.as_ref().map_or(0, PinnedMemory::address),
            read_bytes,
            result,
            first,
            pieces,
        }
    }

    /// What a call takes, made ready if it is new.
    fn ready(&self, state: &mut State, call: &Call) -> Result<Ready, CudaError> {
        let call = call.without_factor();
        if let Some(ready) = state.ready.get(&call) {
            return Ok(ready.clone());
        }
        let ready = self.make_ready(&call)?;
        if state.ready.len() >= READY_MOST {
            state.ready.clear();
        }
        state.ready.insert(call, ready.clone());
        Ok(ready)
    }

    fn make_ready(&self, call: &Call) -> Result<Ready, CudaError> {
        let ranks = self.addresses.len() as u32;
        let block_bytes = call.count as usize * call.data_type.size_bytes();
        let collective = call.kind.collective(call.root).expect("an exchange is a collective");
        let part = Part::of(Some(collective), self.rank, ranks, block_bytes);
        let own_block = self.rank as usize * block_bytes;
        let (offset, first, pieces) = match collective {
            Collective::ReduceScatter => (own_block, 0, 0),
            Collective::AllGather | Collective::Gather { .. } => (0, 0, ranks),
            Collective::AllToAll => (own_block, 0, ranks),
            Collective::Broadcast { root } => (0, root, 1),
            Collective::Scatter { root } => (own_block, root, 1),
            _ => (0, 0, 0),
        };
        let fold = match call.op {
            Some(op) => self.kernels.fold(call.data_type, op.completing_pass(ranks))?,
            None => self.kernels.collect()?,
        };
        let record = CallRecord {
            kind: call.kind,
            data_type: call.data_type as u8,
            operation: call.op.map_or(0, Op::number),
            algorithm: ONE_KERNEL,
            root: call.root,
            count: call.count,
        };
        let read_bytes = if part.output > 0 { block_bytes } else { 0 };
        Ok(Ready { record, fold, part, read_bytes, offset, first, pieces })
    }

    fn counters(&self, ready: &Ready) -> DeviceCounters {
        let (ranks, rank) = (self.addresses.len() as u32, self.rank);
        let read = match ready.pieces {
            0 => ranks - 1,
            pieces => pieces - u32::from((ready.first..ready.first + pieces).contains(&rank)),
        };
        let from_peers_bytes = u64::from(read) * ready.read_bytes as u64;
        DeviceCounters { kernels: 1, from_peers_bytes, ..DeviceCounters::default() }
    }

    /// Events that nobody watches any more.
    fn marks(&self, state: &mut State) -> Result<Arc<Marks>, CudaError> {
        let is_free = |marks: &Arc<Marks>| Arc::strong_count(marks) == 1;
        let oldest = state.marks.front().is_some_and(is_free).then(|| state.marks.pop_front());
        let marks = match oldest.flatten() {
            Some(marks) => marks,
            None => {
                let (begin, end) = (Event::new(&self.device)?, Event::new(&self.device)?);
                Arc::new(Marks { begin, end })
            }
        };
        state.marks.push_back(marks.clone());
        Ok(marks)
    }

    /// Has all exchanges end, and waits until those have that have begun. Those that streams have not come to will
    /// end at once when they have.
    pub(crate) fn end(&self) {
        self.report().end.store(1, Ordering::Release);
        let deadline = Instant::now() + END_WAIT;
        let is_running = |marks: &Arc<Marks>| {
            matches!((marks.begin.is_done(), marks.end.is_done()), (Ok(true), Ok(false)))
        };
        while self.lock().marks.iter().any(is_running) && Instant::now() < deadline {
            std::thread::sleep(END_LOOK);
        }
    }

    fn report(&self) -> &Report {
        let report = self.report.as_ref().expect("it is there until this is dropped");
        // SAFETY: the memory is pinned, as long, zeroed when it was allocated, and used by atomics alone.
        unsafe { &*report.start().cast() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Boards {
    fn drop(&mut self) {
        let is_pending = |marks: &Arc<Marks>| !matches!(marks.end.is_done(), Ok(true));
        if self.lock().marks.iter().any(is_pending) {
            // A stream of the program will come to a kernel that looks at it.
            std::mem::forget((self.own.take(), self.report.take()));
            std::mem::take(&mut self.peers).into_iter().for_each(std::mem::forget);
        }
    }
}

impl QueuedExchange {
    /// Whether it is done.
    pub(crate) fn is_done(&self) -> Result<bool, CudaError> {
        self.marks.end.is_done()
    }

    /// The ranks that it has been waiting for, for some time.
    pub(crate) fn waiting_for(&self) -> Vec<u32> {
        let waits = |word: &AtomicU64| word.load(Ordering::Relaxed) == self.word >> 32;
        self.ranks(&self.boards.report().waits, waits).map(|(rank, _)| rank).collect()
    }

    /// A rank that has made another call instead, and the digest of that.
    pub(crate) fn foreign(&self) -> Option<(u32, u32)> {
        let is_of_this = |word: &AtomicU64| word.load(Ordering::Relaxed) >> 32 == self.word >> 32;
        let mut found = self.ranks(&self.boards.report().foreign, is_of_this);
        found.next().map(|(rank, word)| (rank, word.load(Ordering::Relaxed) as u32))
    }

    fn ranks<'a>(
        &self,
        words: &'a [AtomicU64],
        which: impl Fn(&AtomicU64) -> bool,
    ) -> impl Iterator<Item = (u32, &'a AtomicU64)> {
        let words = (0..).zip(words.iter().take(self.boards.addresses.len()));
        words.filter(move |(_, word)| which(word))
    }
}
