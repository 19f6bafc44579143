//! What operations on a GPU run with, one after the other: streams, and pinned memory that a lane sends from where a link
//! has no slot that the GPU could write: the GPU fills a piece, and the link sends it.

use std::sync::Arc;

use ringtree_transport::cuda::{
    CudaError, Device, DeviceAddress, Event, PinnedMemory, Probe, RemoteWrites, Stream,
};
use ringtree_transport::{Channel, Link};

use super::landing::LandingMemory;
use crate::device::{Activity, Pins, Recording, Work};

/// Pieces of a lane: some are filled while others are being sent.
const PIECES: usize = 8;

/// Bytes of a piece: as many as a frame over TCP has, so that the first ones leave soon. Starting a copy costs more beside
/// so few, but others of the lane are under way meanwhile.
pub(super) const PIECE_BYTES: usize = 128 << 10;

/// Copies of own spans that all lanes have under way at once: enough that the bus always has the next one, and no more, so
/// that the oldest round's go first.
pub(super) const COPIES: usize = 8;

/// Arrivals that the GPU cannot read in place are gathered in so much pinned memory a lane.
pub(super) const ARRIVALS_BYTES: usize = 512 << 10;

/// See the file's description.
#[derive(Debug)]
pub(crate) struct Gear {
    pub(super) device: Device,
    /// Dropped before the links whose memory they lock.
    pub(crate) pins: Pins,
    /// By which peers find out whether they reach the GPU's memory.
    pub(crate) probe: Arc<Probe>,
    pub(super) lanes: Vec<LaneGear>,
    /// What the operation in hand does and when, if that is asked for.
    pub(crate) recording: Option<Recording>,
    /// How kernels come to find what RDMA devices write in the GPU's memory.
    remote_writes: RemoteWrites,
    /// For messages that they write there and that are folded with others, once there are any.
    pub(super) landing: Option<LandingMemory>,
}

/// That of one lane.
#[derive(Debug)]
pub(super) struct LaneGear {
    /// For slices.
    pub(super) stream: Stream,
    /// Marks the end of a slice.
    pub(super) event: Event,
    /// For copies of own spans to where they are sent from, which do not wait for slices.
    pub(super) copies: Stream,
    /// Mark the ends of copies, which take turns with them.
    pub(super) copy_events: Vec<Event>,
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
            recording: None,
            remote_writes: device.remote_writes()?,
            landing: None,
        })
    }

    /// Whether kernels find what RDMA devices write in the GPU's memory.
    pub(super) fn shows_remote_writes(&self) -> bool {
        self.remote_writes != RemoteWrites::Unknown
    }

    /// Has kernels that are queued from now on find what RDMA devices have written in the GPU's memory.
    pub(super) fn settle_remote_writes(&self) -> Result<(), CudaError> {
        match self.remote_writes {
            RemoteWrites::Settled => self.device.settle_remote_writes(),
            RemoteWrites::Ordered | RemoteWrites::Unknown => Ok(()),
        }
    }

    /// Waits until the GPU is through with all that operations have queued.
    pub(crate) fn settle(&self) {
        for lane in &self.lanes {
            for stream in [&lane.stream, &lane.copies] {
                if let Err(error) = stream.synchronize() {
                    tracing::debug!("after an error: {error}");
                }
            }
        }
    }

    /// Sees to it that there is something for so many lanes.
    pub(super) fn provide(&mut self, lanes: usize) -> Result<(), CudaError> {
        let device = &self.device;
        let event = || Event::new(device);
        while self.lanes.len() < lanes {
            self.lanes.push(LaneGear {
                stream: Stream::urgent(device)?,
                event: event()?,
                copies: Stream::urgent(device)?,
                copy_events: (0..COPIES).map(|_| event()).collect::<Result<_, _>>()?,
                memory: None,
                pieces: Default::default(),
                arrivals: None,
            });
        }
        Ok(())
    }

    /// Queues a slice's work.
    pub(super) fn queue(
        &mut self,
        lane: usize,
        work: Work,
        queue: impl FnOnce(&Stream) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let stream = &self.lanes[lane].stream;
        match &mut self.recording {
            None => queue(stream),
            Some(recording) => recording.queue(lane, stream, work, queue),
        }
    }

    /// Queues a copy of an own span to where it is sent from, and marks its end by one of the events.
    ///
    /// # Safety
    /// As of [`Stream::copy`].
    pub(super) unsafe fn copy(
        &mut self,
        lane: usize,
        event: usize,
        to: DeviceAddress,
        from: DeviceAddress,
        len_bytes: usize,
    ) -> Result<(), CudaError> {
        let (number, lane) = (lane, &self.lanes[lane]);
        // SAFETY: the caller's promise.
        let copy = |stream: &Stream| unsafe { stream.copy(to, from, len_bytes) };
        match &mut self.recording {
            None => copy(&lane.copies)?,
            Some(recording) => {
                let bytes = len_bytes as u64;
                let (activity, from_host_bytes) = (Activity::CopyUp, 0);
                let work = Work { activity, bytes, from_host_bytes, to_host_bytes: bytes };
                recording.queue(number, &lane.copies, work, copy)?;
            }
        }
        lane.copy_events[event].record(&lane.copies)
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
        // SAFETY: the arrival has that many bytes, and there is room; the slice before has been finished, so that the GPU
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
