//! What operations on a GPU run with, one after the other: streams, and pinned memory that a lane sends from where a link
//! has no slot that the GPU could write: the GPU fills a piece, and the link sends it.

use std::sync::Arc;

use ringtree_transport::cuda::{
    CudaError, Device, DeviceAddress, Event, PinnedMemory, Probe, Stream,
};
use ringtree_transport::{Channel, Link};

use crate::device::Pins;

/// Pieces of a lane: one is filled while others are being sent.
const PIECES: usize = 4;

/// Bytes of a piece: enough that starting a copy costs little beside it.
pub(super) const PIECE_BYTES: usize = 512 << 10;

/// Arrivals that the GPU cannot read in place are gathered in so much pinned memory a lane.
pub(super) const ARRIVALS_BYTES: usize = 512 << 10;

/// See the file's description.
#[derive(Debug)]
pub(crate) struct Gear {
    device: Device,
    /// Dropped before the links whose memory they lock.
    pub(crate) pins: Pins,
    /// By which peers find out whether they reach the GPU's memory.
    pub(crate) probe: Arc<Probe>,
    pub(super) lanes: Vec<LaneGear>,
}

/// That of one lane.
#[derive(Debug)]
pub(super) struct LaneGear {
    pub(super) stream: Stream,
    /// Marks the end of a batch.
    pub(super) event: Event,
    /// Memory of the pieces, once one is needed.
    memory: Option<PinnedMemory>,
    pieces: [Piece; PIECES],
    /// Where arrivals go that the GPU cannot read in place, once there are any.
    arrivals: Option<PinnedMemory>,
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

impl Gear {
    pub(crate) fn new(device: &Device, ranks: u32) -> Result<Gear, CudaError> {
        Ok(Gear {
            device: device.clone(),
            pins: Pins::new(device, ranks),
            probe: Arc::new(Probe::new(device)?),
            lanes: Vec::new(),
        })
    }

    /// Waits until the GPU is through with all that operations have queued.
    pub(crate) fn settle(&self) {
        for lane in &self.lanes {
            if let Err(error) = lane.stream.synchronize() {
                tracing::debug!("after an error: {error}");
            }
        }
    }

    /// Sees to it that there is something for so many lanes.
    pub(super) fn provide(&mut self, lanes: usize) -> Result<(), CudaError> {
        while self.lanes.len() < lanes {
            self.lanes.push(LaneGear {
                stream: Stream::urgent(&self.device)?,
                event: Event::new(&self.device)?,
                memory: None,
                pieces: Default::default(),
                arrivals: None,
            });
        }
        Ok(())
    }

    /// A piece of a lane that nobody reads or fills.
    pub(super) fn piece(
        &mut self,
        lane: usize,
        links: &[Option<Link>],
        channel: Channel,
    ) -> Result<Option<Room>, CudaError> {
        let lane = &mut self.lanes[lane];
        if lane.memory.is_none() {
            lane.memory = Some(PinnedMemory::alloc(&self.device, PIECES * PIECE_BYTES)?);
        }
        let free = (0..PIECES).find(|number| lane.is_free(*number, links, channel));
        let (Some(number), Some(memory)) = (free, &lane.memory) else { return Ok(None) };
        lane.pieces[number].is_taken = true;
        let offset = number * PIECE_BYTES;
        let data = memory.start().wrapping_add(offset);
        Ok(Some(Room { number, data, address: memory.address() + offset as u64 }))
    }

    /// Copies an arrival to where the GPU can read it, `offset` bytes behind others of its slice.
    pub(super) fn copy_arrival(
        &mut self,
        lane: usize,
        offset: usize,
        data: *const u8,
        len_bytes: usize,
    ) -> Result<DeviceAddress, CudaError> {
        let lane = &mut self.lanes[lane];
        if lane.arrivals.is_none() {
            lane.arrivals = Some(PinnedMemory::alloc(&self.device, ARRIVALS_BYTES)?);
        }
        let arrivals = lane.arrivals.as_ref().expect("allocated above");
        assert!(
            offset + len_bytes <= ARRIVALS_BYTES,
            "a slice is as long as all its arrivals find room"
        );
        // SAFETY: the arrival has that many bytes, and there is room; the batch before has been finished, so that the GPU
        // does not read it.
        unsafe {
            let into = arrivals.start().add(offset);
            std::ptr::copy_nonoverlapping(data, into, len_bytes);
        }
        Ok(arrivals.address() + offset as u64)
    }
}

impl LaneGear {
    /// Forgets who reads the pieces: the operation before is over.
    pub(super) fn restart(&mut self) {
        self.pieces = Default::default();
    }

    /// A link reads a piece until so many bytes of its channel have been sent.
    pub(super) fn read_by(&mut self, room: Room, peer: u32, end: u64) {
        self.pieces[room.number].readers.push((peer, end));
    }

    /// Nobody fills the piece any more.
    pub(super) fn give_back(&mut self, room: Room) {
        self.pieces[room.number].is_taken = false;
    }

    /// A peer that has not taken all that is sent from pieces.
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
}
