//! Pinned memory that a lane sends from, where a link has no slot that the GPU could write: the GPU fills a piece,
//! and the link sends it.

use ringtree_transport::cuda::{CudaError, Device, DeviceAddress, PinnedMemory};
use ringtree_transport::{Channel, Link};

/// Pieces of a lane: one is filled while others are being sent.
const PIECES: usize = 4;

/// The pieces of one lane.
#[derive(Debug)]
pub(super) struct Pieces {
    memory: PinnedMemory,
    piece_bytes: usize,
    pieces: [Piece; PIECES],
}

#[derive(Debug, Default)]
struct Piece {
    /// Somebody fills it.
    is_taken: bool,
    /// Who still reads it: peers, and where its bytes end in the channel's stream.
    readers: Vec<(u32, u64)>,
}

/// Room in a piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    number: usize,
    /// Where the host finds it.
    pub(super) data: *mut u8,
    /// Where the GPU finds it.
    pub(super) address: DeviceAddress,
}

impl Pieces {
    pub(super) fn new(device: &Device, piece_bytes: usize) -> Result<Pieces, CudaError> {
        let memory = PinnedMemory::alloc(device, PIECES * piece_bytes)?;
        Ok(Pieces { memory, piece_bytes, pieces: Default::default() })
    }

    pub(super) fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }

    /// A piece that nobody reads or fills.
    pub(super) fn take(&mut self, links: &[Option<Link>], channel: Channel) -> Option<Room> {
        let number = (0..PIECES).find(|number| self.is_free(*number, links, channel))?;
        self.pieces[number].is_taken = true;
        let offset = number * self.piece_bytes;
        let data = self.memory.start().wrapping_add(offset);
        Some(Room { number, data, address: self.memory.address() + offset as u64 })
    }

    /// A link reads a piece until so many bytes of its channel have been sent.
    pub(super) fn read_by(&mut self, room: Room, peer: u32, end: u64) {
        self.pieces[room.number].readers.push((peer, end));
    }

    /// Nobody fills the piece any more.
    pub(super) fn give_back(&mut self, room: Room) {
        self.pieces[room.number].is_taken = false;
    }

    /// Whether no link reads any of them; else who has to take something.
    pub(super) fn reader(&mut self, links: &[Option<Link>], channel: Channel) -> Option<u32> {
        (0..PIECES).find(|number| !self.is_free(*number, links, channel))?;
        self.pieces.iter().flat_map(|piece| &piece.readers).map(|(peer, _)| *peer).next()
    }

    fn is_free(&mut self, number: usize, links: &[Option<Link>], channel: Channel) -> bool {
        let piece = &mut self.pieces[number];
        piece.readers.retain(|(peer, end)| {
            links[*peer as usize].as_ref().is_some_and(|link| link.sent_bytes(channel) < *end)
        });
        !piece.is_taken && piece.readers.is_empty()
    }

    /// Forgets who read them: the links are gone.
    pub(super) fn reset(&mut self) {
        self.pieces = Default::default();
    }
}
