//! One round in flight of an operation on a GPU: what the GPU works on, and what waits for room.

use std::collections::VecDeque;

use ringtree_plan::Program;
use ringtree_transport::cuda::DeviceAddress;
use ringtree_transport::{Channel, Link};

use super::super::lane::Lane;
use super::gear::Room;

#[derive(Debug)]
pub(super) struct StagedLane {
    /// The counter, and what is lent to peers.
    pub(super) counter: Lane,
    /// What the GPU works on, or is about to.
    pub(super) batch: Batch,
    pub(super) is_busy: bool,
    /// Own spans on their way to peers, by peer.
    pub(super) sends: Vec<VecDeque<Waiting>>,
}

/// What is queued in the lane's stream at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Parts of own spans that are copied to where they are sent from.
    pub(super) copies: Vec<Outgoing>,
    /// A slice of the action in hand.
    pub(super) slice: Option<Slice>,
    /// Where the slice goes.
    pub(super) outgoing: Vec<Outgoing>,
}

/// A slice of the action in hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice {
    pub(super) len_bytes: usize,
    /// The operands in the program that arrivals are among.
    pub(super) sources: (usize, usize),
    pub(super) ends_action: bool,
    /// The own span that the slice was written to, if it was.
    pub(super) own: Option<DeviceAddress>,
    /// The piece that it was written to, if it was.
    pub(super) piece: Option<Room>,
}

/// Bytes for a peer that the GPU puts somewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing {
    pub(super) peer: u32,
    pub(super) len_bytes: usize,
    pub(super) last: bool,
    pub(super) via: Via,
}

/// What bytes for a peer leave from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Via {
    /// The slot that the link has reserved.
    Slot,
    /// A piece.
    Piece(Room),
    /// Nothing: an empty message.
    Nothing,
    /// The own span, when there is room.
    Own,
}

/// A part of an own span that waits for room on its way to a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) address: DeviceAddress,
    pub(super) len_bytes: usize,
    pub(super) last: bool,
}

impl StagedLane {
    pub(super) fn new(
        number: usize,
        lanes: usize,
        channel: Channel,
        program: &Program,
        peers: usize,
    ) -> StagedLane {
        StagedLane {
            counter: Lane::new(number, lanes, channel, program),
            batch: Batch::default(),
            is_busy: false,
            sends: (0..peers).map(|_| VecDeque::new()).collect(),
        }
    }

    pub(super) fn restart(&mut self) {
        self.counter.restart();
        self.batch.copies.clear();
        self.batch.outgoing.clear();
        self.batch.slice = None;
        self.is_busy = false;
        self.sends.iter_mut().for_each(VecDeque::clear);
    }

    /// The first peer that something waits to be sent to.
    pub(super) fn unsent(&self, peers: &[u32]) -> Option<u32> {
        self.sends.iter().zip(peers).find(|(sends, _)| !sends.is_empty()).map(|(_, peer)| *peer)
    }

    /// How many of the `len_bytes` from `start` on may be written, because nothing of them waits to be sent or is lent;
    /// and which peer what is behind them waits for.
    pub(super) fn writable(
        &self,
        peers: &[u32],
        links: &[Option<Link>],
        start: DeviceAddress,
        len_bytes: usize,
    ) -> (usize, Option<u32>) {
        let (unlent, mut reader) = self.counter.writable(links, start as *const u8, len_bytes);
        let mut end = start + unlent as u64;
        for (sends, peer) in self.sends.iter().zip(peers) {
            for waiting in sends {
                let is_within =
                    waiting.address < end && waiting.address + waiting.len_bytes as u64 > start;
                if waiting.len_bytes > 0 && is_within {
                    end = waiting.address.max(start);
                    reader = Some(*peer);
                }
            }
        }
        ((end - start) as usize, reader)
    }
}
