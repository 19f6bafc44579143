//! Where peers write straight into the GPU's memory: over RDMA, where the devices know it, as into memory of the host.
//!
//! A message that goes to one place as it is may be written there at once; one that is folded with others, into a room of
//! its own in memory of the GPU, from where the kernel takes it. Each lane has two of every room, for every second round
//! one. Operations run one after the other, and use the same memory for their rooms. What leaves the peer before
//! the offer is there comes by slots.

use std::sync::Arc;

use ringtree_plan::Program;
use ringtree_transport::cuda::{CudaError, DeviceAddress, DeviceMemory};
use ringtree_transport::memory::Registration;
use ringtree_transport::{LEAST_IN_PLACE_BYTES, Link, TransportKind};

use super::super::moves::link;
use super::super::{Fault, Geometry, Offer, arrivals};
use super::gear::Gear;
use super::{LINE_BYTES, Staged};

/// Rooms of one operation take no more memory.
const MOST_BYTES: usize = 32 << 20;

/// Rooms of a lane: for the rounds at even and at odd places.
const SETS: usize = 2;

/// Memory of the GPU for rooms, and leave for RDMA devices to write there.
#[derive(Debug)]
pub(super) struct LandingMemory {
    memory: Arc<DeviceMemory>,
    _registration: Arc<Registration>,
}

/// The rooms of an operation.
#[derive(Debug)]
pub(super) struct Landing {
    /// Those of a round of each variant.
    rooms: Vec<Vec<Room>>,
    /// All of a round.
    set_bytes: usize,
}

/// Room for a message.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// Whose span has the message's length.
    offer: Offer,
    /// Where it begins among those of a round.
    begin: usize,
    len_bytes: usize,
}

impl Landing {
    /// The rooms of a program.
    pub(super) fn new(program: &Program, geometry: &Geometry) -> Landing {
        let variants = (0..program.variants()).map(|variant| rooms(program, variant, geometry));
        let variants: Vec<(Vec<Room>, usize)> = variants.collect();
        let set_bytes = variants.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        let rooms = variants.into_iter().map(|(rooms, _)| rooms).collect();
        Landing { rooms, set_bytes }
    }

    /// No rooms at all.
    pub(super) fn none(program: &Program) -> Landing {
        let rooms = (0..program.variants()).map(|_| Vec::new()).collect();
        Landing { rooms, set_bytes: 0 }
    }
}

/// The rooms of a round of a variant, and their bytes.
fn rooms(program: &Program, variant: usize, geometry: &Geometry) -> (Vec<Room>, usize) {
    let mut end = 0;
    let mut room = |offer: Offer| {
        let longest = offer.span.len as usize * geometry.longest_chunk_bytes();
        (longest >= LEAST_IN_PLACE_BYTES).then(|| {
            let begin = end;
            end += longest.next_multiple_of(LINE_BYTES);
            Room { offer, begin, len_bytes: longest }
        })
    };
    let folded = arrivals(program, variant).into_iter().filter(|(_, is_placed)| !is_placed);
    let rooms = folded.filter_map(|(offer, _)| room(offer)).collect();
    (rooms, end)
}

impl Gear {
    /// Sees to it that there are so many bytes for rooms. Gives leave to write there where that is new, which links are
    /// to be told of.
    ///
    /// # Errors
    /// What the driver says, but for memory that has run out: then messages come by slots.
    pub(crate) fn provide_landing(
        &mut self,
        len_bytes: usize,
    ) -> Result<Option<Arc<Registration>>, CudaError> {
        let has_enough = |landing: &LandingMemory| landing.memory.len_bytes() >= len_bytes;
        if len_bytes == 0 || self.landing.as_ref().is_some_and(has_enough) {
            return Ok(None);
        }
        let memory = match DeviceMemory::alloc(&self.device, len_bytes) {
            Ok(memory) => Arc::new(memory),
            Err(error @ CudaError::Memory { .. }) => {
                tracing::info!("what comes over RDMA to be reduced passes the host: {error}");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let registration = Registration::of_device(memory.clone());
        self.landing = Some(LandingMemory { memory, _registration: registration.clone() });
        Ok(Some(registration))
    }

    /// Gives the memory for rooms back, if no link's devices know it.
    pub(crate) fn check_landing(&mut self, links: &[Option<Link>]) {
        self.landing.take_if(|landing| {
            let (address, len_bytes) = (landing.memory.address(), landing.memory.len_bytes());
            let is_known = |link: &Link| {
                link.kind() == TransportKind::Rdma && link.lends_device(0, address, len_bytes)
            };
            !links.iter().flatten().any(is_known)
        });
    }
}

impl Staged {
    /// Memory for its rooms, if it has links whose devices may write there.
    pub(crate) fn landing_bytes(&self, gear: &Gear, links: &[Option<Link>]) -> usize {
        let is_rdma = |peer: &u32| {
            links[*peer as usize].as_ref().is_some_and(|link| link.kind() == TransportKind::Rdma)
        };
        let len_bytes = SETS * self.lanes.len() * self.landing.set_bytes;
        let is_wanted = gear.shows_remote_writes() && self.peers.iter().any(is_rdma);
        if is_wanted && len_bytes <= MOST_BYTES { len_bytes } else { 0 }
    }

    /// Tells the peers where the messages of the lane's round are wanted, once a round.
    pub(super) fn offer(
        &mut self,
        lane: usize,
        links: &mut [Option<Link>],
        gear: &Gear,
    ) -> Result<(), Fault> {
        let counter = &mut self.lanes[lane].counter;
        if std::mem::replace(&mut counter.has_offered, true) || !gear.shows_remote_writes() {
            return Ok(());
        }
        let variant = counter.variant;
        for index in 0..self.offers[variant].len() {
            let offer = self.offers[variant][index];
            let is_ahead = offer.may_be_ahead() && link(links, offer.peer).offers_ahead();
            for &later in self.lanes[lane].counter.rounds_to_offer(is_ahead) {
                let place = |round| Some(self.address_in(round, lane, offer.span));
                self.offer_round(lane, offer, later, place, links)?;
            }
        }
        for index in 0..self.landing.rooms[variant].len() {
            let room = self.landing.rooms[variant][index];
            for &later in self.lanes[lane].counter.rounds_to_offer(true) {
                let place = |round| self.room_address(lane, round, room, gear);
                self.offer_round(lane, room.offer, later, place, links)?;
            }
        }
        Ok(())
    }

    /// Where a room of a round is, if there is memory for all.
    fn room_address(
        &self,
        lane: usize,
        round: u64,
        room: Room,
        gear: &Gear,
    ) -> Option<DeviceAddress> {
        let memory = &gear.landing.as_ref()?.memory;
        let len_bytes = self.geometry.bytes(round, room.offer.span).len;
        let set = SETS * lane + usize::from(self.lanes[lane].counter.is_odd(round));
        let offset = set * self.landing.set_bytes + room.begin;
        let is_there = offset + room.len_bytes <= memory.len_bytes();
        (is_there && len_bytes <= room.len_bytes).then(|| memory.address() + offset as u64)
    }

    /// Tells a peer where a message is wanted in the round in hand, or in so many rounds of the lane after it.
    fn offer_round(
        &self,
        lane: usize,
        Offer { peer, ahead, a_round, span }: Offer,
        later: u32,
        place: impl Fn(u64) -> Option<DeviceAddress>,
        links: &mut [Option<Link>],
    ) -> Result<(), Fault> {
        let counter = &self.lanes[lane].counter;
        let (channel, round) = (counter.channel, counter.round);
        let round = round + u64::from(later) * self.lanes.len() as u64;
        if round >= self.geometry.rounds() {
            return Ok(());
        }
        let Some(into) = place(round) else { return Ok(()) };
        let ahead = ahead + later * a_round;
        let len_bytes = self.geometry.bytes(round, span).len;
        // SAFETY: as of the host's executor: `start` vouched for the span until the operation is done or its links are
        // dropped; everyone is done with it when the peer sends the message, kernels too, whose ends lanes await; and
        // the lane does not finish that round before it has come. A room is the operation's own, and the message that
        // was in it is of two rounds before, which the lane has finished.
        unsafe { link(links, peer).offer_device(channel, self.tag, ahead, into, len_bytes) }
            .map_err(Fault::Link)
    }
}
