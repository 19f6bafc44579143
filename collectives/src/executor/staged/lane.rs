//! One round in flight of an operation on a GPU: what the GPU works on, and what waits for room.

use std::collections::VecDeque;

use ringtree_plan::Program;
use ringtree_transport::cuda::DeviceAddress;
use ringtree_transport::{Channel, Link};

use super::super::lane::Lane;
use super::gear::COPIES;
use super::pieces::Room;

#[derive(Debug)]
pub(super) struct StagedLane {
    /// The counter, and what is lent to peers.
    pub(super) counter: Lane,
    /// The slice of the action in hand that the GPU works on, or is about to.
    pub(super) slice: Option<Slice>,
    /// Where the slice goes.
    pub(super) outgoing: Vec<Outgoing>,
    pub(super) is_busy: bool,
    /// Own spans that wait on their way to peers, by peer.
    pub(super) sends: Vec<VecDeque<Waiting>>,
    /// Parts of own spans that the GPU copies to where they are sent from, in this order.
    pub(super) copies: VecDeque<Copying>,
    /// The event of the next copy.
    pub(super) next_event: usize,
}

/// A part of an own span on its way to a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copying {
    /// Where it is, and goes on to be until the copy is done.
    pub(super) address: DeviceAddress,
    pub(super) outgoing: Outgoing,
    /// How long its message is.
    pub(super) message_bytes: usize,
    /// Which event marks the copy's end.
    pub(super) event: usize,
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
    /// How long the message is that it is a part of.
    pub(super) message_bytes: usize,
}

/// Bytes for a peer that the GPU puts somewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing {
    pub(super) peer: u32,
    pub(super) len_bytes: usize,
    /// Length of the message that they begin, if they do.
    pub(super) begins: Option<usize>,
    pub(super) last: bool,
    pub(super) via: Via,
}

/// What bytes for a peer leave from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Via {
    /// The slot that the link has reserved.
    Slot,
    /// A piece of the host's memory.
    Piece(Room),
    /// A piece of the GPU's memory, which the peer's GPU reads in place.
    Lent(Room),
    /// Nothing: an empty message.
    Nothing,
    /// The own span, when there is room.
    Own,
}

/// A part of an own span that waits on its way to a peer: for room, or, where it was copied to a piece that the
/// peer's GPU reads, for a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) address: DeviceAddress,
    pub(super) len_bytes: usize,
    /// Length of the message that it begins, if it does.
    pub(super) begins: Option<usize>,
    pub(super) last: bool,
    /// How long its message is.
    pub(super) message_bytes: usize,
    /// The piece that it was copied to, from which it can only be lent.
    pub(super) piece: Option<Room>,
}

impl Via {
    pub(super) fn is_slot(self) -> bool {
        matches!(self, Via::Slot)
    }
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
            slice: None,
            outgoing: Vec::new(),
            is_busy: false,
            sends: (0..peers).map(|_| VecDeque::new()).collect(),
            copies: VecDeque::with_capacity(COPIES),
            next_event: 0,
        }
    }

    pub(super) fn restart(&mut self) {
        self.counter.restart();
        self.slice = None;
        self.outgoing.clear();
        self.is_busy = false;
        self.copies.clear();
        self.sends.iter_mut().for_each(VecDeque::clear);
    }

    /// The first peer that something waits to be sent to, or is being copied for.
    pub(super) fn unsent(&self, peers: &[u32]) -> Option<u32> {
        let waits = self.sends.iter().zip(peers).find(|(sends, _)| !sends.is_empty());
        let waits = waits.map(|(_, peer)| *peer);
        waits.or_else(|| self.copies.front().map(|copy| copy.outgoing.peer))
    }

    /// Copies for a peer that are under way.
    pub(super) fn copies_for(&self, peer: u32) -> impl Iterator<Item = &Copying> {
        self.copies.iter().filter(move |copy| copy.outgoing.peer == peer)
    }

    /// How many of the `len_bytes` from `start` on may be written, because nothing of them waits to be sent, is being copied or lent;
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
        let waiting = self.sends.iter().zip(peers).flat_map(|(sends, peer)| {
            sends.iter().map(|waiting| (*peer, waiting.address, waiting.len_bytes))
        });
        let copies = self.copies.iter().map(|copy| {
            let Outgoing { peer, len_bytes, .. } = copy.outgoing;
            (peer, copy.address, len_bytes)
        });
        for (peer, address, len_bytes) in waiting.chain(copies) {
            if len_bytes > 0 && address < end && address + len_bytes as u64 > start {
                end = address.max(start);
                reader = Some(peer);
            }
        }
        ((end - start) as usize, reader)
    }
}
