//! A queue pair of a link, with what is under way on it.

use std::collections::VecDeque;
use std::io;

use super::ffi::WorkCompletion;
use super::memory::Keys;
use super::queue_pair::{DEPTH, QueuePair, RECEIVES_AT_ONCE};
use super::rails::Rail;
use super::requests::SIGNALLED_BYTES;
use crate::{Channel, Home};

/// Receives that are posted while a link is made, so that there are always enough for all that a peer may
/// have under way, although they are posted again in groups: slots, lines, direct writes, and the ends of the
/// other queue pairs.
pub(super) const RECEIVES: usize = 160;
const _: () = assert!(
    RECEIVES
        >= super::arena::SLOTS
            + super::arena::LINES
            + super::sending::DIRECTS
            + super::MAX_QUEUES
            + RECEIVES_AT_ONCE
);

/// Work requests after which a completion is asked for at the latest: until then nobody knows that there is
/// room for more.
const MOST_UNSIGNALLED: u32 = 16;

/// Number of a receive, which no send has.
pub(super) const RECEIVE_ID: u64 = u64::MAX;

/// One write that tells of itself, so that it can be made again over another queue pair.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// A slice into the slot of this number, out of the program's memory or out of the same slot here.
    Slot { slot: u8, channel: Channel, number: u64, source: Option<Source>, len: usize },
    /// The header of a line.
    Line { line: u8 },
    /// The end of a queue pair.
    Closed { queue: u8 },
    /// A part of a message to where the peer wants it.
    Direct { channel: Channel, number: u64, last: bool, source: Source, len: usize, target: Target },
}

/// Memory of this side that is written from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) data: *const u8,
    pub(super) keys: Keys,
    /// It is a buffer of the link's, not the program's.
    pub(super) bounce: Option<u8>,
    /// Whose memory it is.
    pub(super) home: Home,
}

/// Memory of the peer that is written to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) address: u64,
    pub(super) keys: Keys,
}

/// Where a queue pair is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It carries what there is.
    Open,
    /// It has failed or was ended; completions of before may still be in its queue.
    Ending,
    /// Nothing more comes of it here, and the peer is told so.
    Ended,
    /// What it did not deliver is on its way over others.
    Replaced,
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) pair: QueuePair,
    pub(super) rail: Rail,
    /// Which of the peer's devices it leads to, of whose keys it uses one.
    pub(super) peer_device: usize,
    pub(super) state: State,
    /// What is not known to be complete, in order; the first has the number `completed`.
    pub(super) outstanding: VecDeque<Work>,
    pub(super) outstanding_bytes: usize,
    pub(super) completed: u64,
    unsignalled: u32,
    /// Writes of the peer that have told of themselves.
    pub(super) received: u64,
    receives_due: usize,
    /// What the peer says it has received, once it has ended the queue pair.
    pub(super) peer_received: Option<u64>,
}

impl Queue {
    pub(super) fn new(pair: QueuePair, rail: Rail, peer_device: usize) -> Queue {
        Queue {
            pair,
            rail,
            peer_device,
            state: State::Open,
            outstanding: VecDeque::with_capacity(DEPTH as usize),
            outstanding_bytes: 0,
            completed: 0,
            unsignalled: 0,
            received: 0,
            receives_due: 0,
            peer_received: None,
        }
    }

    /// Which of this side's devices it belongs to.
    pub(super) fn device(&self) -> usize {
        self.rail.device_index
    }

    /// Work requests that still fit.
    pub(super) fn room(&self) -> usize {
        DEPTH as usize - self.outstanding.len()
    }

    /// Number of the work request that is posted next.
    pub(super) fn next_id(&self) -> u64 {
        self.completed + self.outstanding.len() as u64
    }

    /// Whether the next work request must ask for a completion; `wanted` where somebody waits for it.
    pub(super) fn signals(&mut self, wanted: bool) -> bool {
        self.unsignalled += 1;
        let signals = wanted || self.unsignalled >= MOST_UNSIGNALLED;
        if signals {
            self.unsignalled = 0;
        }
        signals
    }

    /// Whether something is under way whose completion nobody has asked for.
    pub(super) fn has_unsignalled(&self) -> bool {
        self.unsignalled > 0
    }

    /// One of its receives was used; in groups they are posted again.
    pub(super) fn receive_used(&mut self) -> io::Result<()> {
        self.receives_due += 1;
        if self.receives_due < RECEIVES_AT_ONCE {
            return Ok(());
        }
        self.receives_due = 0;
        self.pair.post_receives(RECEIVES_AT_ONCE)
    }

    /// Takes completions; an ended queue pair has none.
    pub(super) fn poll(&mut self, into: &mut [WorkCompletion]) -> io::Result<usize> {
        match self.state {
            State::Open | State::Ending => self.pair.poll(into),
            State::Ended | State::Replaced => Ok(0),
        }
    }
}

impl Work {
    /// Payload bytes.
    pub(super) fn len(&self) -> usize {
        match *self {
            Work::Slot { len, .. } | Work::Direct { len, .. } => len,
            Work::Line { .. } | Work::Closed { .. } => 0,
        }
    }

    /// Memory that it is written from, where that is not the link's slot.
    pub(super) fn source(&self) -> Option<Source> {
        match *self {
            Work::Slot { source, .. } => source,
            Work::Direct { source, .. } => Some(source),
            Work::Line { .. } | Work::Closed { .. } => None,
        }
    }

    /// What it counts for where a queue pair is chosen: the completion of a short one may never be asked for.
    pub(super) fn weight(&self) -> usize {
        if self.len() >= SIGNALLED_BYTES { self.len() } else { 0 }
    }
}
