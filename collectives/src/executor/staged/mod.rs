//! Runs programs on memory of a GPU, over the links that hosts have.
//!
//! It is the executor's loop with a device in between: a lane queues the fold of one slice in a stream of its own, and goes
//! on when the GPU is through with it; in a second one it has a few copies under way, of own spans to where they are
//! sent from, which wait for no slice. Between GPUs of one host that reach each other, messages are loans of the sender's memory, which the
//! receiver's kernels read in place. Elsewhere, what arrives is read, and what leaves is written, by the GPU itself
//! in the links' slots, which are locked for it ([`Pins`]); where a link has none, in pinned pieces. So each byte
//! passes the bus once each way, and while one lane's bytes are on the wire, another's are on the bus. RDMA devices that know
//! the GPU's memory read and write it themselves (`landing.rs`). Frames, lanes and rounds are those of a
//! host's rank, so that both may be ranks of one communicator.
//!
//! A slice without room to be sent from is written to the own span and waits there: as on the host, no arrival is
//! held while a lane waits for room, since a ring would stop for ever.

mod gear;
mod landing;
mod lane;
mod pieces;
mod sending;
mod slice;

use std::sync::Arc;

use ringtree_plan::{Action, Destination, Program, Source, Space, Span};
use ringtree_transport::cuda::{CudaError, DeviceAddress, DeviceMemory};
use ringtree_transport::memory::Registration;
use ringtree_transport::{Channel, Link, Tag};

use super::geometry::{Extent, Geometry};
use super::moves::{Move, link};
use super::{Fault, LinkError, Offer, Schedule, Status, is_guard, lanes, offers, peers};
use crate::device::{DeviceCounters, Fold, Kernels, MOST_OPERANDS, Recording};
use crate::{DataType, Op};
pub(crate) use gear::Gear;
use landing::Landing;
use lane::{Outgoing, StagedLane, Via, Waiting};

/// Slices end at cache lines, so that the next one is aligned.
const LINE_BYTES: usize = 64;

/// A program with its memory on a GPU, ready to run any number of times.
#[derive(Debug)]
pub(crate) struct Staged {
    program: Program,
    geometry: Geometry,
    element_bytes: usize,
    /// Reduces what goes on to be reduced.
    partial: Fold,
    /// Completes a result.
    completing: Fold,
    copy: Fold,
    lanes: Vec<StagedLane>,
    peers: Vec<u32>,
    /// The first error of each peer's link, by position in `peers`.
    failures: Vec<Option<LinkError>>,
    scratch: Arc<DeviceMemory>,
    /// Leave for peers to read the scratch memory.
    scratch_registration: Arc<Registration>,
    /// Peers may read this rank's memory in place: as of [`super::Operation`].
    lends: bool,
    /// What a round of each variant of the program offers its peers when it begins.
    offers: Vec<Vec<Offer>>,
    landing: Landing,
    digest: u32,
    tag: Tag,
    input: DeviceAddress,
    output: DeviceAddress,
    /// Addresses of the slice in hand.
    sources: Vec<DeviceAddress>,
    destinations: Vec<DeviceAddress>,
    /// How many of these are of the host, and of peers' GPUs.
    host_sources: u64,
    peer_sources: u64,
    /// Those that an RDMA device has written where they are.
    landed_sources: u64,
    host_destinations: u64,
    /// What the run in hand has had the device do.
    counters: DeviceCounters,
}

// SAFETY: the addresses of the host are of pinned memory that it owns, and are used only inside `poll`.
unsafe impl Send for Staged {}

/// What became of an attempt to begin something.
enum Begun {
    /// A slice.
    Slice,
    /// It is done without the GPU.
    Complete,
    /// A peer must do something first.
    Waits(u32),
}

impl Staged {
    /// Prepares a program: as [`Operation::new`](super::Operation::new), on a GPU.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        program: Program,
        data_type: DataType,
        op: Op,
        extent: Extent,
        schedule: Schedule,
        first_channel: Channel,
        digest: u32,
        kernels: &Kernels,
    ) -> Result<Staged, CudaError> {
        let device = kernels.device();
        let element_bytes = data_type.size_bytes();
        let (chunks, scratch) = (program.chunks, &program.scratch);
        let geometry = Geometry::new(extent, element_bytes, chunks, scratch, schedule.round_bytes);
        let lanes = lanes(extent, &geometry, schedule);
        let peers = peers(&program);
        let operands = operands(&program);
        if operands > MOST_OPERANDS {
            return Err(CudaError::Argument(format!(
                "a GPU folds at most {MOST_OPERANDS} buffers at once, and the algorithm that is chosen or named {operands}: \
                 name another one, such as ring, or in the reproducible mode use buffers of the host"
            )));
        }
        let lanes = (0..lanes).map(|lane| {
            let channel = first_channel + lane;
            StagedLane::new(lane, lanes, channel, &program, peers.len())
        });
        let lanes: Vec<StagedLane> = lanes.collect();
        let scratch = DeviceMemory::alloc_shared(device, lanes.len() * geometry.scratch_bytes())?;
        let scratch = Arc::new(scratch);
        let lends = !program.actions.iter().any(is_guard);
        let of_variant = |variant| if lends { offers(&program, variant) } else { Vec::new() };
        let landing = match extent {
            Extent::Varied => Landing::none(&program),
            Extent::Whole(_) | Extent::Blocks(_) => Landing::new(&program, &geometry),
        };
        Ok(Staged {
            landing,
            offers: (0..program.variants()).map(of_variant).collect(),
            scratch_registration: Registration::of_device(scratch.clone()),
            scratch,
            lends,
            lanes,
            partial: kernels.fold(data_type, op.pass())?,
            completing: kernels.fold(data_type, op.completing_pass(program.ranks))?,
            copy: kernels.copy()?,
            failures: vec![None; peers.len()],
            peers,
            geometry,
            element_bytes,
            digest,
            tag: Tag::default(),
            input: 0,
            output: 0,
            sources: Vec::with_capacity(MOST_OPERANDS),
            destinations: Vec::with_capacity(MOST_OPERANDS),
            host_sources: 0,
            peer_sources: 0,
            landed_sources: 0,
            host_destinations: 0,
            counters: DeviceCounters::default(),
            program,
        })
    }

    /// Leave for peers to read what it holds of its own.
    pub(crate) fn registration(&self) -> &Arc<Registration> {
        &self.scratch_registration
    }

    /// Memory of the GPU that it holds for what arrives before it can be reduced.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch.len_bytes()
    }

    /// The ranks that this rank exchanges messages with.
    pub(crate) fn peers(&self) -> &[u32] {
        &self.peers
    }

    /// Sets the lengths of blocks that differ, for the next run: as
    /// [`Operation::vary`](super::Operation::vary). Returns whether there is other scratch memory then.
    pub(crate) fn vary(
        &mut self,
        input: &[usize],
        output: &[usize],
        digest: u32,
    ) -> Result<bool, CudaError> {
        self.geometry.vary(input, output);
        self.digest = digest;
        let scratch_bytes = self.lanes.len() * self.geometry.scratch_bytes();
        if scratch_bytes <= self.scratch.len_bytes() {
            return Ok(false);
        }
        let scratch = DeviceMemory::alloc_shared(self.scratch.device(), scratch_bytes)?;
        self.scratch = Arc::new(scratch);
        self.scratch_registration = Registration::of_device(self.scratch.clone());
        Ok(true)
    }

    /// How many rounds it has in flight at most.
    pub(crate) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// What its frames say about the call.
    pub(crate) fn digest(&self) -> u32 {
        self.digest
    }

    /// Begins a run. All that the device is to have done before it has.
    ///
    /// # Safety
    /// As of [`Operation::start`](super::Operation::start), with addresses of the device; after an error, until
    /// [`Gear::settle`] has returned.
    pub(crate) unsafe fn start(
        &mut self,
        tag: Tag,
        input: DeviceAddress,
        output: DeviceAddress,
        gear: &mut Gear,
        links: &mut [Option<Link>],
    ) -> Result<(), CudaError> {
        (self.tag, self.input, self.output) = (tag, input, output);
        self.counters = DeviceCounters::default();
        self.failures.fill(None);
        gear.provide(self.lanes.len())?;
        self.lanes.iter_mut().for_each(StagedLane::restart);
        gear.restart(self.lanes.len(), self.peers.len());
        let lanes = self.lanes.len();
        for &peer in &self.peers {
            if let Some(link) = &mut links[peer as usize] {
                link.divide(lanes);
                link.attach(false);
                link.use_device(&gear.probe);
            }
        }
        let (recording, stream) = gear.recorder();
        if let Some(recording) = recording {
            recording.begin_call(stream)?;
            self.look(recording, links);
        }
        Ok(())
    }

    /// Moves what can be moved: as [`Operation::poll`](super::Operation::poll).
    pub(crate) fn poll(
        &mut self,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<Status, Fault> {
        let (mut done, mut moved) = (true, false);
        // The oldest round first: were all in step, the bus would have nothing to do between one round and the next.
        let round = |lane: &usize| self.lanes[*lane].counter.round;
        let oldest = (0..self.lanes.len()).min_by_key(round).unwrap_or(0);
        for lane in (oldest..self.lanes.len()).chain(0..oldest) {
            moved |= self.advance(lane, links, gear)?;
            done &= self.is_lane_done(lane, links, gear);
        }
        if done {
            return Ok(Status::Done);
        }
        for (index, &peer) in self.peers.iter().enumerate() {
            let Some(link) = &mut links[peer as usize] else { continue };
            match link.poll(0) {
                Ok(link_moved) => moved |= link_moved,
                // A peer that has finished may leave: its end matters only to a lane that waits for it.
                Err(error) => self.failures[index] = Some(error),
            }
        }
        if let Some(recording) = &mut gear.recording {
            self.look(recording, links);
        }
        if moved {
            return Ok(Status::Moved);
        }
        self.check_failures()?;
        Ok(Status::Blocked { moved: false })
    }

    /// Has it recorded what has come.
    fn look(&self, recording: &mut Recording, links: &[Option<Link>]) {
        for &peer in &self.peers {
            let Some(link) = &links[peer as usize] else { continue };
            for (number, lane) in self.lanes.iter().enumerate() {
                recording.look(number, lane.counter.channel, link);
            }
        }
    }

    /// Whether the device works on something, whose end no descriptor tells of, or a span waits for room, of which links
    /// do not know.
    pub(crate) fn waits_for_device(&self) -> bool {
        self.lanes.iter().any(|lane| lane.is_busy || lane.unsent(&self.peers).is_some())
    }

    /// The peers that lanes wait for, each once.
    pub(crate) fn waiting_for(&self) -> Vec<u32> {
        let mut peers: Vec<u32> =
            self.lanes.iter().filter_map(|lane| lane.counter.blocked_on).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    /// What the last run has had the device do.
    pub(crate) fn counters(&self) -> DeviceCounters {
        self.counters
    }

    fn is_lane_done(&mut self, lane: usize, links: &[Option<Link>], gear: &mut Gear) -> bool {
        let rounds = self.geometry.rounds();
        if !self.lanes[lane].counter.is_done(rounds) {
            return false;
        }
        // What pieces hold leaves in later polls.
        let channel = self.lanes[lane].counter.channel;
        let waits =
            |link: &Option<Link>| link.as_ref().is_some_and(|link| link.is_waiting(channel));
        let reader = gear.reader(lane, links, channel);
        let waiting = self.peers.iter().copied().find(|peer| waits(&links[*peer as usize]));
        let lane = &mut self.lanes[lane];
        lane.counter.blocked_on = reader.or(waiting);
        lane.counter.blocked_on.is_none()
    }

    /// A lane that waits for a peer whose link failed ends the operation.
    fn check_failures(&self) -> Result<(), Fault> {
        for lane in &self.lanes {
            let Some(peer) = lane.counter.blocked_on else { continue };
            let index = self.peers.binary_search(&peer).unwrap_or(usize::MAX);
            if let Some(Some(error)) = self.failures.get(index) {
                return Err(Fault::Link(error.clone()));
            }
        }
        Ok(())
    }

    /// Runs a lane until it must wait, for the device or for a peer, or is done. Returns whether anything moved.
    fn advance(
        &mut self,
        lane: usize,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<bool, Fault> {
        let mut moved = false;
        loop {
            let mut has_moved = self.finish_copies(lane, links, gear)?;
            if self.lanes[lane].is_busy && gear.lane(lane).event.is_done().map_err(Fault::Device)? {
                self.finish_slice(lane, links, gear)?;
                has_moved = true;
            }
            if !self.lanes[lane].is_busy {
                if let Some(recording) = &mut gear.recording {
                    recording.begin_batch(lane);
                }
                let begun = self.begin_action(lane, links, gear)?;
                let on = &mut self.lanes[lane];
                on.counter.blocked_on = None;
                match begun {
                    Begun::Slice => {
                        let gear = gear.lane(lane);
                        gear.event.record(&gear.stream).map_err(Fault::Device)?;
                        on.is_busy = true;
                        has_moved = true;
                    }
                    // With copies under way it waits for the device.
                    Begun::Waits(peer) if on.copies.is_empty() => {
                        on.counter.blocked_on = Some(peer)
                    }
                    Begun::Waits(_) | Begun::Complete => {}
                }
            }
            has_moved |= self.begin_sends(lane, links, gear)?;
            if !has_moved {
                return Ok(moved);
            }
            moved = true;
        }
    }

    /// The device is through with the slice: what arrived is given back, and what it wrote is sent.
    fn finish_slice(
        &mut self,
        lane: usize,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<(), Fault> {
        self.lanes[lane].is_busy = false;
        let Some(slice) = self.lanes[lane].slice.take() else { return Ok(()) };
        if let Some(recording) = &mut gear.recording {
            recording.end_batch(lane, slice.len_bytes);
        }
        let channel = self.lanes[lane].counter.channel;
        for index in slice.sources.0..slice.sources.1 {
            if let Source::Arrival { peer } = self.program.sources[index] {
                link(links, peer).release(channel, slice.len_bytes).map_err(Fault::Link)?;
            }
        }
        for index in 0..self.lanes[lane].outgoing.len() {
            let outgoing = self.lanes[lane].outgoing[index];
            match (outgoing.via, slice.own) {
                (Via::Own, Some(address)) => {
                    let Outgoing { peer, len_bytes, begins, last, .. } = outgoing;
                    let message_bytes = slice.message_bytes;
                    let piece = None;
                    let waiting =
                        Waiting { address, len_bytes, begins, last, message_bytes, piece };
                    self.send_own(lane, peer, waiting, links, gear)?;
                }
                _ => self.send(lane, outgoing, slice.message_bytes, links, gear)?,
            }
        }
        let lane = &mut self.lanes[lane];
        lane.outgoing.clear();
        lane.counter.done_bytes += slice.len_bytes;
        if slice.ends_action {
            lane.counter.finish_action();
        }
        Ok(())
    }

    /// Begins the next slice, or completes what needs no device.
    fn begin_action(
        &mut self,
        lane: usize,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<Begun, Fault> {
        loop {
            if self.lanes[lane].counter.is_done(self.geometry.rounds()) {
                return Ok(Begun::Complete);
            }
            self.offer(lane, links, gear)?;
            match self.lanes[lane].counter.action(&self.program) {
                None => {
                    let lane = &mut self.lanes[lane];
                    let unsent = lane.unsent(&self.peers);
                    if let Some(peer) = unsent.or_else(|| lane.counter.unsent(links)) {
                        return Ok(Begun::Waits(peer));
                    }
                    lane.counter.next_round();
                    lane.counter.blocked_on = None;
                }
                Some(Action::Flush { span }) => {
                    let bytes = self.geometry.bytes(self.lanes[lane].counter.round, span).len;
                    let start = self.address(lane, span);
                    let lane = &mut self.lanes[lane];
                    if let (_, Some(peer)) = lane.writable(&self.peers, links, start, bytes) {
                        return Ok(Begun::Waits(peer));
                    }
                    lane.counter.finish_action();
                }
                Some(Action::Move {
                    first_source,
                    sources,
                    first_destination,
                    destinations,
                    shape,
                    guarded,
                    early: _,
                    completes,
                }) => {
                    let round = self.lanes[lane].counter.round;
                    let total_bytes = self.geometry.bytes(round, shape).len;
                    let sources = (first_source as usize, (first_source + sources) as usize);
                    let first = first_destination as usize;
                    let destinations = (first, first + destinations as usize);
                    let mv = Move { sources, destinations, total_bytes, guarded, completes };
                    match self.begin_move(lane, &mv, links, gear)? {
                        Begun::Complete => self.lanes[lane].counter.finish_action(),
                        other => return Ok(other),
                    }
                }
            }
        }
    }

    fn begin_move(
        &mut self,
        lane: usize,
        mv: &Move,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<Begun, Fault> {
        let own = self.own_destination(lane, mv);
        if let (1, Source::Own(span)) =
            (mv.sources.1 - mv.sources.0, self.program.sources[mv.sources.0])
            && own.is_none()
        {
            let address = self.address(lane, span);
            for index in mv.destinations.0..mv.destinations.1 {
                if let Destination::Send { peer, .. } = self.program.destinations[index] {
                    let (len_bytes, message_bytes) = (mv.total_bytes, mv.total_bytes);
                    let (begins, last, piece) = (Some(len_bytes), true, None);
                    let waiting =
                        Waiting { address, len_bytes, begins, last, message_bytes, piece };
                    self.send_own(lane, peer, waiting, links, gear)?;
                }
            }
            return Ok(Begun::Complete);
        }
        self.begin_slice(lane, mv, own, links, gear)
    }

    /// The own span that a move writes, and whether it only backs sends.
    fn own_destination(&self, lane: usize, mv: &Move) -> Option<(DeviceAddress, bool)> {
        let destinations = &self.program.destinations[mv.destinations.0..mv.destinations.1];
        destinations.iter().find_map(|destination| match *destination {
            Destination::Own(span) => Some((self.address(lane, span), false)),
            Destination::Backing(span) => Some((self.address(lane, span), true)),
            Destination::Send { .. } => None,
        })
    }

    /// First byte of a span in the lane's round.
    fn address(&self, lane: usize, span: Span) -> DeviceAddress {
        self.address_in(self.lanes[lane].counter.round, lane, span)
    }

    /// First byte of a span in a round of the lane.
    fn address_in(&self, round: u64, lane: usize, span: Span) -> DeviceAddress {
        let offset = self.geometry.bytes(round, span).offset;
        // Where a call names some of the blocks only, the address is the one that block 0 would have.
        match span.space {
            Space::Input => self.input.wrapping_add(offset as u64),
            Space::Output => self.output.wrapping_add(offset as u64),
            Space::Scratch => {
                self.scratch.address() + (lane * self.geometry.scratch_bytes() + offset) as u64
            }
        }
    }
}

/// The most operands on one side of an action.
fn operands(program: &Program) -> usize {
    let operands = |action: &Action| match *action {
        Action::Move { sources, destinations, .. } => sources.max(destinations) as usize,
        Action::Flush { .. } => 0,
    };
    program.actions.iter().map(operands).max().unwrap_or(0)
}
