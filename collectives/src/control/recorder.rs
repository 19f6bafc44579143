//! The flight recorder: the last operations of a communicator and how far they came.
//!
//! The thread that drives operations writes, without locks, allocation or a look at the clock; any
//! other thread may read at any time. A slot is a sequence lock (Lameter, "Effective
//! synchronization on Linux/NUMA systems", 2005): its version is odd while an operation is being
//! entered, and a reader that saw two different versions reads again. What changes while an
//! operation runs is one word each, and needs no version.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::record::CallRecord;

/// Operations that a recorder keeps: more than a rank can be ahead of another one in practice, and
/// one page of memory.
pub const RECORDER_ENTRIES: usize = 64;

/// How often a reader tries again when the writer is in its way; then the entry counts as not yet
/// begun.
const READ_ATTEMPTS: usize = 100;

/// A queue of operations that are numbered one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// The communicator's collectives.
    Collective,
    /// What this rank sends to a peer.
    SendTo(u32),
    /// What this rank receives from a peer.
    ReceiveFrom(u32),
}

/// One operation as one rank sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation {
    /// The queue that it belongs to.
    pub stream: Stream,
    /// Its number there, wrapping.
    pub sequence: u32,
    /// What was called.
    pub record: CallRecord,
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Begun and not ended; an operation that failed stays in this state.
    Running,
    /// Ended as it should.
    Completed,
}

/// What the recorder knows of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Which operation.
    pub operation: Operation,
    /// How it stands.
    pub state: State,
    /// How far it came, in the unit in which the executor counts.
    pub steps: u64,
    /// The rank that it waits for.
    pub waiting_for: Option<u32>,
}

/// The last operations of a communicator. See the module's description for who may write.
#[derive(Debug)]
pub struct FlightRecorder {
    begun: AtomicU64,
    slots: Box<[Slot]>,
}

/// Names an operation that was begun.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    version: u64,
}

impl FlightRecorder {
    /// An empty recorder.
    pub fn new() -> FlightRecorder {
        FlightRecorder {
            begun: AtomicU64::new(0),
            slots: (0..RECORDER_ENTRIES).map(|_| Slot::default()).collect(),
        }
    }

    /// Enters an operation, in the place of the oldest. Only one thread at a time may enter.
    #[inline]
    pub fn begin(&self, stream: Stream, sequence: u32, record: &CallRecord) -> Ticket {
        let number = self.begun.load(Ordering::Relaxed);
        self.begun.store(number + 1, Ordering::Relaxed);
        let ticket = Ticket { version: 2 * number + 2 };
        let slot = self.slot(ticket);
        slot.version.store(ticket.version - 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let (first, second) = split_record(record);
        slot.stream.store(pack_stream(stream), Ordering::Relaxed);
        slot.sequence.store(sequence, Ordering::Relaxed);
        slot.record[0].store(first, Ordering::Relaxed);
        slot.record[1].store(second, Ordering::Relaxed);
        slot.steps.store(0, Ordering::Relaxed);
        slot.status.store(RUNNING | NOBODY, Ordering::Relaxed);
        slot.version.store(ticket.version, Ordering::Release);
        ticket
    }

    /// Says how far an operation has come, and whom it waits for now.
    #[inline]
    pub fn advance(&self, ticket: Ticket, steps: u64, waiting_for: Option<u32>) {
        let slot = self.slot(ticket);
        if slot.version.load(Ordering::Relaxed) == ticket.version {
            slot.steps.store(steps, Ordering::Relaxed);
            let rank = waiting_for.map_or(NOBODY, u64::from);
            slot.status.store(RUNNING | rank, Ordering::Relaxed);
        }
    }

    /// Says that an operation ended as it should. One that failed is left as it is.
    #[inline]
    pub fn end(&self, ticket: Ticket) {
        let slot = self.slot(ticket);
        if slot.version.load(Ordering::Relaxed) == ticket.version {
            slot.status.store(NOBODY, Ordering::Relaxed);
        }
    }

    /// What is known, oldest first.
    pub fn history(&self) -> Vec<Entry> {
        let mut entries: Vec<_> = self.slots.iter().filter_map(Slot::read).collect();
        entries.sort_unstable_by_key(|(version, _)| *version);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Number of the last collective that ended as it should; 0 if none did.
    pub fn completed(&self) -> u32 {
        let history = self.history();
        let is_completed = |entry: &&Entry| {
            entry.operation.stream == Stream::Collective && entry.state == State::Completed
        };
        history.iter().rev().find(is_completed).map_or(0, |entry| entry.operation.sequence)
    }

    #[inline]
    fn slot(&self, ticket: Ticket) -> &Slot {
        let number = ticket.version / 2 - 1;
        &self.slots[number as usize % RECORDER_ENTRIES]
    }
}

impl Default for FlightRecorder {
    fn default() -> Self {
        FlightRecorder::new()
    }
}

impl fmt::Display for FlightRecorder {
    /// The history, a line an operation.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.history().iter().try_for_each(|entry| writeln!(f, "{entry}"))
    }
}

impl fmt::Display for Operation {
    /// `seq 17 all-reduce of 1000 f32, sum (ring)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seq {} {}", self.sequence, self.record)?;
        match self.stream {
            Stream::Collective => Ok(()),
            Stream::SendTo(peer) => write!(f, " to rank {peer}"),
            Stream::ReceiveFrom(peer) => write!(f, " from rank {peer}"),
        }
    }
}

impl fmt::Display for Entry {
    /// `seq 17 all-reduce of 1000 f32, sum (ring): running, waiting for rank 2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.state, self.waiting_for) {
            (State::Completed, _) => write!(f, "{}: completed", self.operation),
            (State::Running, None) => write!(f, "{}: running", self.operation),
            (State::Running, Some(rank)) => {
                write!(f, "{}: running, waiting for rank {rank}", self.operation)
            }
        }
    }
}

/// Bit of [`Slot::status`]: the operation runs.
const RUNNING: u64 = 1 << 32;
/// Rank in [`Slot::status`] that means nobody.
const NOBODY: u64 = u32::MAX as u64;

/// One operation, in one cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Slot {
    /// 0: never used. Odd: being written. Else 2 + twice the number of operations begun before.
    version: AtomicU64,
    stream: AtomicU64,
    record: [AtomicU64; 2],
    steps: AtomicU64,
    /// [`RUNNING`] and the rank that is waited for.
    status: AtomicU64,
    sequence: AtomicU32,
}

impl Slot {
    /// The entry with its version, unless there is none or the writer does not let go of it.
    fn read(&self) -> Option<(u64, Entry)> {
        for _ in 0..READ_ATTEMPTS {
            let version = self.version.load(Ordering::Acquire);
            if version == 0 {
                return None;
            }
            let entry = self.read_fields();
            fence(Ordering::Acquire);
            if version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version {
                return Some((version, entry?));
            }
            std::hint::spin_loop();
        }
        None
    }

    /// The fields, which belong together only if the version did not change meanwhile.
    fn read_fields(&self) -> Option<Entry> {
        let status = self.status.load(Ordering::Relaxed);
        let rank = status & NOBODY;
        let record = join_record(
            self.record[0].load(Ordering::Relaxed),
            self.record[1].load(Ordering::Relaxed),
        )?;
        Some(Entry {
            operation: Operation {
                stream: unpack_stream(self.stream.load(Ordering::Relaxed))?,
                sequence: self.sequence.load(Ordering::Relaxed),
                record,
            },
            state: if status & RUNNING != 0 { State::Running } else { State::Completed },
            steps: self.steps.load(Ordering::Relaxed),
            waiting_for: (rank != NOBODY).then_some(rank as u32),
        })
    }
}

/// A stream as one word: its kind above its peer.
pub(super) fn pack_stream(stream: Stream) -> u64 {
    match stream {
        Stream::Collective => 0,
        Stream::SendTo(peer) => 1 << 32 | u64::from(peer),
        Stream::ReceiveFrom(peer) => 2 << 32 | u64::from(peer),
    }
}

/// The stream that [`pack_stream`] packed.
pub(super) fn unpack_stream(word: u64) -> Option<Stream> {
    match (word >> 32, word as u32) {
        (0, 0) => Some(Stream::Collective),
        (1, peer) => Some(Stream::SendTo(peer)),
        (2, peer) => Some(Stream::ReceiveFrom(peer)),
        _ => None,
    }
}

fn split_record(record: &CallRecord) -> (u64, u64) {
    let both = u128::from_le_bytes(record.encode());
    (both as u64, (both >> 64) as u64)
}

fn join_record(first: u64, second: u64) -> Option<CallRecord> {
    CallRecord::decode(&(u128::from(second) << 64 | u128::from(first)).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::control::testing::all_reduce;

    #[test]
    fn an_operation_is_shown_while_it_runs_and_after_it_ended() {
        let recorder = FlightRecorder::new();
        let ticket = recorder.begin(Stream::Collective, 17, &all_reduce(1000));
        let name = "seq 17 all-reduce of 1000 f32, sum (ring)";
        assert_eq!(recorder.history()[0].to_string(), format!("{name}: running"));
        recorder.advance(ticket, 5, Some(2));
        let entry = recorder.history()[0];
        assert_eq!(entry.to_string(), format!("{name}: running, waiting for rank 2"));
        assert_eq!(entry.steps, 5);
        recorder.end(ticket);
        assert_eq!(recorder.to_string(), format!("{name}: completed\n"));
    }

    #[test]
    fn the_last_operations_are_kept_oldest_first() {
        let recorder = FlightRecorder::new();
        let oldest = recorder.begin(Stream::SendTo(3), 0, &all_reduce(0));
        for number in 1..=RECORDER_ENTRIES as u32 {
            recorder.end(recorder.begin(Stream::ReceiveFrom(7), number, &all_reduce(1)));
        }
        recorder.advance(oldest, 1, Some(1)); // its place is taken: nothing may change
        let history = recorder.history();
        assert_eq!(history.len(), RECORDER_ENTRIES);
        let sequences: Vec<_> = history.iter().map(|entry| entry.operation.sequence).collect();
        assert_eq!(sequences, (1..=RECORDER_ENTRIES as u32).collect::<Vec<_>>());
        assert!(history.iter().all(|entry| entry.state == State::Completed && entry.steps == 0));
    }

    #[test]
    fn a_reader_never_sees_half_an_entry() {
        let recorder = FlightRecorder::new();
        let seen = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut sequence = 0;
                while !seen.load(Ordering::Relaxed) || sequence < 100_000 {
                    recorder.begin(
                        Stream::SendTo(sequence),
                        sequence,
                        &all_reduce(u64::from(sequence)),
                    );
                    sequence += 1;
                }
            });
            for _ in 0..200 {
                for entry in recorder.history() {
                    let Operation { stream, sequence, record } = entry.operation;
                    assert_eq!(stream, Stream::SendTo(sequence));
                    assert_eq!(record, all_reduce(u64::from(sequence)));
                }
            }
            seen.store(true, Ordering::Relaxed);
        });
    }
}
