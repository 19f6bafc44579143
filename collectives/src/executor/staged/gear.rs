//! What operations on a GPU run with, one after the other: streams, and memory that lanes send from and copy to.

use std::sync::Arc;

use ringtree_transport::cuda::{
    CudaError, Device, DeviceAddress, Event, PinnedMemory, Probe, RemoteWrites, Stream, Way,
};
use ringtree_transport::memory::Registration;
use ringtree_transport::{Channel, Link};

use super::landing::LandingMemory;
use super::lane::Via;
use super::pieces::{Pieces, Room};
use crate::device::{Activity, Pins, Recording, Work};

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
    lanes: Vec<LaneGear>,
    /// Which of them is the first one of the operation in hand: those that are under way at once have lanes of their
    /// own.
    pub(crate) first_lane: usize,
    /// By lane, pieces of the GPU's memory: of memory that peers' GPUs cannot read in place, they read copies there.
    device_pieces: Vec<Pieces>,
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
    /// Pieces of the host's memory, once one is needed.
    pieces: Option<Pieces>,
    /// Where arrivals go that the GPU cannot read in place, once there are any.
    arrivals: Option<PinnedMemory>,
}

impl Gear {
    pub(crate) fn new(device: &Device, ranks: u32) -> Result<Gear, CudaError> {
        Ok(Gear {
            device: device.clone(),
            pins: Pins::new(device, ranks),
            probe: Probe::of(device)?,
            lanes: Vec::new(),
            first_lane: 0,
            device_pieces: Vec::new(),
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

    /// What records, and the stream that times are told from.
    pub(super) fn recorder(&mut self) -> (Option<&mut Recording>, &Stream) {
        (self.recording.as_mut(), &self.lanes[self.first_lane].stream)
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

    /// Sees to it that there is something for so many lanes of the operation in hand.
    pub(super) fn provide(&mut self, lanes: usize) -> Result<(), CudaError> {
        let device = &self.device;
        let event = || Event::new(device);
        while self.lanes.len() < self.first_lane + lanes {
            self.lanes.push(LaneGear {
                stream: Stream::urgent(device)?,
                event: event()?,
                copies: Stream::urgent(device)?,
                copy_events: (0..COPIES).map(|_| event()).collect::<Result<_, _>>()?,
                pieces: None,
                arrivals: None,
            });
        }
        Ok(())
    }

    /// Sees to it that so many lanes have pieces of the GPU's memory, which gets to peers by the way that is best by
    /// now. Returns leave to read those that are new.
    pub(crate) fn provide_pieces(
        &mut self,
        lanes: usize,
    ) -> Result<Vec<Arc<Registration>>, CudaError> {
        let best = Way::best(&self.device);
        self.device_pieces.retain(|pieces| pieces.way() == Some(best));
        let first_new = self.device_pieces.len();
        while self.device_pieces.len() < lanes {
            match Pieces::on_device(&self.device) {
                Ok(pieces) => self.device_pieces.push(pieces),
                Err(error) => {
                    // Nobody would be told of those that there are.
                    self.device_pieces.truncate(first_new);
                    return Err(error);
                }
            }
        }
        let new = self.device_pieces[first_new..].iter();
        Ok(new.filter_map(Pieces::registration).cloned().collect())
    }

    /// That of a lane of the operation in hand.
    pub(super) fn lane(&mut self, lane: usize) -> &mut LaneGear {
        &mut self.lanes[self.first_lane + lane]
    }

    /// Queues a slice's work.
    pub(super) fn queue(
        &mut self,
        lane: usize,
        work: Work,
        queue: impl FnOnce(&Stream) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let stream = &self.lanes[self.first_lane + lane].stream;
        match &mut self.recording {
            None => queue(stream),
            Some(recording) => recording.queue(lane, stream, work, queue),
        }
    }

    /// Queues a copy of an own span to where it is sent from, on the host or the GPU, and marks its end by one of the
    /// events.
    ///
    /// # Safety
    /// As of [`Stream::copy`].
    pub(super) unsafe fn copy(
        &mut self,
        lane: usize,
        event: usize,
        to: (DeviceAddress, Activity),
        from: DeviceAddress,
        len_bytes: usize,
    ) -> Result<(), CudaError> {
        let (to, activity) = to;
        let (number, lane) = (lane, &self.lanes[self.first_lane + lane]);
        // SAFETY: the caller's promise.
        let copy = |stream: &Stream| unsafe { stream.copy(to, from, len_bytes) };
        match &mut self.recording {
            None => copy(&lane.copies)?,
            Some(recording) => {
                let bytes = len_bytes as u64;
                let to_host_bytes = if activity == Activity::CopyUp { bytes } else { 0 };
                let work = Work { activity, bytes, from_host_bytes: 0, to_host_bytes };
                recording.queue(number, &lane.copies, work, copy)?;
            }
        }
        lane.copy_events[event].record(&lane.copies)
    }

    /// A piece of a lane, of the host's memory, that nobody uses.
    pub(super) fn piece(
        &mut self,
        lane: usize,
        peer: u32,
        links: &[Option<Link>],
        channel: Channel,
    ) -> Result<Option<Room>, CudaError> {
        let lane = &mut self.lanes[self.first_lane + lane];
        if lane.pieces.is_none() {
            lane.pieces = Some(Pieces::on_host(&self.device)?);
        }
        Ok(lane.pieces.as_mut().and_then(|pieces| pieces.take(peer, links, channel)))
    }

    /// A lane's pieces of the GPU's memory, if it has such.
    pub(super) fn device_pieces(&mut self, lane: usize) -> Option<&mut Pieces> {
        self.device_pieces.get_mut(self.first_lane + lane)
    }

    /// The pieces that bytes leave from, if they leave from such.
    pub(super) fn pieces_of(&mut self, lane: usize, via: Via) -> Option<(&mut Pieces, Room)> {
        match via {
            Via::Piece(room) => self.lane(lane).pieces.as_mut().map(|pieces| (pieces, room)),
            Via::Lent(room) => self.device_pieces(lane).map(|pieces| (pieces, room)),
            Via::Slot | Via::Nothing | Via::Own => None,
        }
    }

    /// Forgets who uses the pieces of so many lanes: the operation before is over. The next one has so many peers.
    pub(super) fn restart(&mut self, lanes: usize, peers: usize) {
        for lane in 0..lanes {
            self.lane(lane).pieces.iter_mut().for_each(|pieces| pieces.restart(peers));
            self.device_pieces(lane).into_iter().for_each(|pieces| pieces.restart(peers));
        }
    }

    /// A peer that has not taken all that is sent from pieces of a lane.
    pub(super) fn reader(
        &mut self,
        lane: usize,
        links: &[Option<Link>],
        channel: Channel,
    ) -> Option<u32> {
        let lane = self.first_lane + lane;
        let of_host = self.lanes[lane].pieces.as_mut();
        let mut all = of_host.into_iter().chain(self.device_pieces.get_mut(lane));
        all.find_map(|pieces| pieces.reader(links, channel))
    }

    /// Copies an arrival to where the GPU can read it, `offset` bytes behind others of its slice.
    pub(super) fn copy_arrival(
        &mut self,
        lane: usize,
        offset: usize,
        data: *const u8,
        len_bytes: usize,
    ) -> Result<DeviceAddress, CudaError> {
        let lane = &mut self.lanes[self.first_lane + lane];
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
