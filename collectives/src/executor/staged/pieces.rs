//! Memory that a lane sends from where a link has no slot that the GPU could write: the GPU fills a piece, and the link
//! sends it, or lends it to a peer's GPU.

use std::sync::Arc;

use ringtree_transport::cuda::{CudaError, Device, DeviceAddress, DeviceMemory, PinnedMemory, Way};
use ringtree_transport::memory::Registration;
use ringtree_transport::{Channel, Link};

/// Bytes of a piece: as many as a frame over TCP has, so that the first ones leave soon. Starting a copy costs more
/// beside so few, but others of the lane are under way meanwhile.
const PIECE_BYTES: usize = 128 << 10;

/// Pieces of a lane at least: some are filled while others are being sent.
const PIECES: usize = 8;

/// Memory of a lane's pieces.
const MEMORY_BYTES: usize = PIECES * PIECE_BYTES;

/// What copies begin at a multiple of.
const ALIGNMENT_BYTES: usize = 256;

/// Pieces of one lane, and who uses them.
#[derive(Debug)]
pub(super) struct Pieces {
    memory: Memory,
    piece_bytes: usize,
    /// How many each peer may have. What is lent comes back only when the peer is done with it, and may wait for others
    /// before that: each must get its own, or all would wait.
    most_of_peer: usize,
    uses: Vec<Vec<Reader>>,
}

/// What pieces are of.
#[derive(Debug)]
enum Memory {
    /// Pinned memory of the host.
    Host(PinnedMemory),
    /// Memory of the GPU that peers' GPUs may be lent.
    Device(Arc<DeviceMemory>, Arc<Registration>),
}

/// Who is to read a piece.
#[derive(Debug)]
struct Reader {
    peer: u32,
    /// Where its bytes end in the channel's stream, once the link has them.
    end: Option<u64>,
}

/// Room in a piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    number: usize,
    /// Where the host finds it, if it does.
    pub(super) data: *mut u8,
    /// Where the GPU finds it.
    pub(super) address: DeviceAddress,
    pub(super) len_bytes: usize,
}

impl Pieces {
    /// In the host's memory.
    pub(super) fn on_host(device: &Device) -> Result<Pieces, CudaError> {
        Ok(Pieces::of(Memory::Host(PinnedMemory::alloc(device, MEMORY_BYTES)?)))
    }

    /// In the GPU's memory.
    pub(super) fn on_device(device: &Device) -> Result<Pieces, CudaError> {
        let memory = Arc::new(DeviceMemory::alloc_shared(device, MEMORY_BYTES)?);
        let registration = Registration::of_device(memory.clone());
        Ok(Pieces::of(Memory::Device(memory, registration)))
    }

    fn of(memory: Memory) -> Pieces {
        let uses = (0..PIECES).map(|_| Vec::new()).collect();
        Pieces { memory, piece_bytes: PIECE_BYTES, most_of_peer: PIECES, uses }
    }

    /// Forgets who uses them: the operation before is over. The next one has so many peers.
    pub(super) fn restart(&mut self, peers: usize) {
        self.uses.iter_mut().for_each(Vec::clear);
        // What the host has leaves by the network, whatever the peer does.
        if matches!(self.memory, Memory::Device(..)) {
            let pieces = PIECES.max(peers);
            self.uses.resize_with(pieces, Vec::new);
            self.piece_bytes = MEMORY_BYTES / pieces / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
            self.most_of_peer = pieces / peers.max(1);
        }
    }

    /// Leave for peers to read them, where they are the GPU's.
    pub(super) fn registration(&self) -> Option<&Arc<Registration>> {
        match &self.memory {
            Memory::Host(_) => None,
            Memory::Device(_, registration) => Some(registration),
        }
    }

    /// How they get to other processes, where they are the GPU's.
    pub(super) fn way(&self) -> Option<Way> {
        match &self.memory {
            Memory::Host(_) => None,
            Memory::Device(memory, _) => Some(memory.way()),
        }
    }

    /// Where they are, for the GPU, and how long.
    pub(super) fn range(&self) -> (DeviceAddress, usize) {
        match &self.memory {
            Memory::Host(memory) => (memory.address(), MEMORY_BYTES),
            Memory::Device(memory, _) => (memory.address(), MEMORY_BYTES),
        }
    }

    /// A piece that nobody uses, for a peer that may have another one, if there is one.
    pub(super) fn take(
        &mut self,
        peer: u32,
        links: &[Option<Link>],
        channel: Channel,
    ) -> Option<Room> {
        self.forget_read(links, channel);
        if !self.may_have(peer) {
            return None;
        }
        let number = self.uses.iter().position(Vec::is_empty)?;
        self.uses[number].push(Reader { peer, end: None });
        let offset = number * self.piece_bytes;
        let data = match &self.memory {
            Memory::Host(memory) => memory.start().wrapping_add(offset),
            Memory::Device(..) => std::ptr::null_mut(),
        };
        let address = self.range().0 + offset as u64;
        Some(Room { number, data, address, len_bytes: self.piece_bytes })
    }

    /// Has another peer read a piece that was taken, if it may have another one.
    pub(super) fn share(&mut self, room: Room, peer: u32) -> Option<Room> {
        self.may_have(peer).then(|| {
            self.uses[room.number].push(Reader { peer, end: None });
            room
        })
    }

    /// A link reads it for a peer until so many bytes of its channel have been sent.
    pub(super) fn read_by(&mut self, room: Room, peer: u32, end: u64) {
        let mut readers = self.uses[room.number].iter_mut();
        if let Some(reader) = readers.find(|reader| reader.peer == peer) {
            reader.end = Some(end);
        }
    }

    /// A peer that has not taken all that is sent from them.
    pub(super) fn reader(&mut self, links: &[Option<Link>], channel: Channel) -> Option<u32> {
        self.forget_read(links, channel);
        self.uses.iter().flatten().next().map(|reader| reader.peer)
    }

    fn may_have(&self, peer: u32) -> bool {
        let of_peer = self.uses.iter().flatten().filter(|reader| reader.peer == peer);
        of_peer.count() < self.most_of_peer
    }

    /// Forgets who has read what it was to read.
    fn forget_read(&mut self, links: &[Option<Link>], channel: Channel) {
        let sent_bytes =
            |peer: u32| links[peer as usize].as_ref().map(|link| link.sent_bytes(channel));
        for readers in &mut self.uses {
            readers.retain(|reader| match (reader.end, sent_bytes(reader.peer)) {
                (Some(end), Some(sent_bytes)) => sent_bytes < end,
                (Some(_), None) => false,
                (None, _) => true,
            });
        }
    }
}
