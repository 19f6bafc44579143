//! Runs programs on memory of a GPU, over the links that hosts have.
//!
//! It is the executor's loop with a device in between: a lane queues one *batch* in a stream of its own - the
//! fold of a slice, and copies of own spans to where they are sent from - and goes on when the GPU is through
//! with it. Between GPUs of one host that reach each other, messages are loans of the sender's memory, which the
//! receiver's kernels read in place. Elsewhere, what arrives is read, and what leaves is written, by the GPU itself
//! in the links' slots, which are locked for it ([`Pins`]); where a link has none, in pinned pieces. So each byte
//! passes the bus once each way, and while one lane's bytes are on the wire, another's are on the bus. Frames, lanes and rounds are those of a
//! host's rank, so that both may be ranks of one communicator.
//!
//! A slice without room to be sent from is written to the own span and waits there: as on the host, no arrival is
//! held while a lane waits for room, since a ring would stop for ever.

mod lane;
mod pieces;

use std::sync::Arc;

use ringtree_plan::{Action, Destination, Program, Source, Space, Span};
use ringtree_transport::cuda::{
    CudaError, Device, DeviceAddress, DeviceMemory, Event, PinnedMemory, Probe,
};
use ringtree_transport::memory::Registration;
use ringtree_transport::{Channel, Link, Tag};

use super::geometry::{Extent, Geometry};
use super::{Fault, LinkError, Schedule, Status, is_guard, peers};
use crate::device::{DeviceCounters, Fold, Kernels, MOST_OPERANDS, Pins};
use crate::{DataType, Op};
use lane::{Outgoing, Slice, StagedLane, Via, Waiting};

/// Bytes of a piece at most: enough that starting a copy costs little beside it.
const PIECE_BYTES: usize = 512 << 10;

/// Arrivals that the GPU cannot read in place are gathered in so much pinned memory a lane.
const ARRIVALS_BYTES: usize = 512 << 10;

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
    device: Device,
    lanes: Vec<StagedLane>,
    peers: Vec<u32>,
    /// The first error of each peer's link, by position in `peers`.
    failures: Vec<Option<LinkError>>,
    scratch: Arc<DeviceMemory>,
    /// Leave for peers to read the scratch memory.
    scratch_registration: Arc<Registration>,
    /// Peers may read this rank's memory in place: as of [`super::Operation`].
    lends: bool,
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
    host_destinations: u64,
    /// What the run in hand has had the device do.
    counters: DeviceCounters,
}

// SAFETY: the addresses of the host are of pinned memory that it owns, and are used only inside `poll`.
unsafe impl Send for Staged {}

/// A move of the action in hand.
#[derive(Clone, Copy)]
struct Move {
    sources: (usize, usize),
    destinations: (usize, usize),
    total_bytes: usize,
    guarded: bool,
    completes: bool,
}

/// What became of an attempt to begin something.
enum Begun {
    /// The batch has work.
    Batch,
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
        let lanes = geometry.rounds().min(schedule.lanes as u64).max(1) as usize;
        let peers = peers(&program);
        let longest = geometry.longest_chunk_bytes().next_multiple_of(4096);
        let piece_bytes = longest.clamp(4096, PIECE_BYTES);
        let operands = operands(&program);
        if operands > MOST_OPERANDS {
            return Err(CudaError::Argument(format!(
                "a GPU folds at most {MOST_OPERANDS} buffers at once, and this algorithm {operands}: name \
                 another one, such as ring"
            )));
        }
        let lanes = (0..lanes).map(|lane| {
            let channel = first_channel + lane;
            StagedLane::new(device, lane, lanes, channel, &program, peers.len(), piece_bytes)
        });
        let lanes: Vec<StagedLane> = lanes.collect::<Result<_, _>>()?;
        let scratch = DeviceMemory::alloc(device, lanes.len() * geometry.scratch_bytes())?;
        let scratch = Arc::new(scratch);
        Ok(Staged {
            scratch_registration: Registration::of_device(scratch.clone()),
            scratch,
            lends: !program.actions.iter().any(is_guard),
            lanes,
            partial: kernels.fold(data_type, op.pass())?,
            completing: kernels.fold(data_type, op.completing_pass(program.ranks))?,
            copy: kernels.copy()?,
            device: device.clone(),
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
            host_destinations: 0,
            counters: DeviceCounters::default(),
            program,
        })
    }

    /// Leave for peers to read what it holds of its own.
    pub(crate) fn registration(&self) -> &Arc<Registration> {
        &self.scratch_registration
    }

    /// The ranks that this rank exchanges messages with.
    pub(crate) fn peers(&self) -> &[u32] {
        &self.peers
    }

    /// What its frames say about the call.
    pub(crate) fn digest(&self) -> u32 {
        self.digest
    }

    /// Begins a run, when the device has come to `ready`.
    ///
    /// # Safety
    /// As of [`Operation::start`](super::Operation::start), with addresses of the device; after an error, until
    /// [`Staged::settle`] has returned.
    pub(crate) unsafe fn start(
        &mut self,
        tag: Tag,
        input: DeviceAddress,
        output: DeviceAddress,
        ready: &Event,
        probe: &Arc<Probe>,
        links: &mut [Option<Link>],
    ) -> Result<(), CudaError> {
        (self.tag, self.input, self.output) = (tag, input, output);
        self.counters = DeviceCounters::default();
        self.failures.fill(None);
        for lane in &mut self.lanes {
            lane.restart();
            lane.stream.wait_for(ready)?;
            // Nothing is lent before the device has come to it.
            lane.event.record(&lane.stream)?;
            lane.is_busy = true;
        }
        let lanes = self.lanes.len();
        for &peer in &self.peers {
            if let Some(link) = &mut links[peer as usize] {
                link.divide(lanes);
                link.attach(false);
                link.use_device(probe);
            }
        }
        Ok(())
    }

    /// Moves what can be moved: as [`Operation::poll`](super::Operation::poll).
    pub(crate) fn poll(
        &mut self,
        links: &mut [Option<Link>],
        pins: &Pins,
    ) -> Result<Status, Fault> {
        let (mut done, mut moved) = (true, false);
        for lane in 0..self.lanes.len() {
            moved |= self.advance(lane, links, pins)?;
            done &= self.is_lane_done(lane, links);
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
        if moved {
            return Ok(Status::Moved);
        }
        self.check_failures()?;
        Ok(Status::Blocked { moved: false })
    }

    /// Whether the device works on something, whose end no descriptor tells of.
    pub(crate) fn waits_for_device(&self) -> bool {
        self.lanes.iter().any(|lane| lane.is_busy)
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

    /// Waits until the device uses neither the caller's memory nor that of links, after an error.
    pub(crate) fn settle(&self) {
        for lane in &self.lanes {
            if let Err(error) = lane.stream.synchronize() {
                tracing::debug!("after an error: {error}");
            }
        }
    }

    fn is_lane_done(&mut self, lane: usize, links: &[Option<Link>]) -> bool {
        let rounds = self.geometry.rounds();
        let lane = &mut self.lanes[lane];
        if !lane.counter.is_done(rounds) {
            return false;
        }
        // What pieces hold leaves in later polls.
        let channel = lane.counter.channel;
        let waits =
            |link: &Option<Link>| link.as_ref().is_some_and(|link| link.is_waiting(channel));
        let reader = lane.pieces.reader(links, channel);
        let waiting = self.peers.iter().copied().find(|peer| waits(&links[*peer as usize]));
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
        pins: &Pins,
    ) -> Result<bool, Fault> {
        let mut moved = false;
        loop {
            if self.lanes[lane].is_busy {
                if !self.lanes[lane].event.is_done().map_err(Fault::Device)? {
                    return Ok(moved);
                }
                self.finish_batch(lane, links)?;
                moved = true;
            }
            let begun = self.begin_action(lane, links, pins)?;
            let copies = self.begin_sends(lane, links, pins)?;
            let lane = &mut self.lanes[lane];
            match begun {
                Begun::Complete if !copies => return Ok(moved),
                Begun::Waits(peer) if !copies => {
                    lane.counter.blocked_on = Some(peer);
                    return Ok(moved);
                }
                _ => {
                    lane.event.record(&lane.stream).map_err(Fault::Device)?;
                    lane.is_busy = true;
                    lane.counter.blocked_on = None;
                    moved = true;
                }
            }
        }
    }

    /// The device is through with the batch: what arrived is given back, and what it wrote is sent.
    fn finish_batch(&mut self, lane: usize, links: &mut [Option<Link>]) -> Result<(), Fault> {
        self.lanes[lane].is_busy = false;
        while let Some(copy) = self.lanes[lane].batch.copies.pop() {
            self.send(lane, copy, links)?;
            if let Via::Piece(room) = copy.via {
                self.lanes[lane].pieces.give_back(room);
            }
        }
        let Some(slice) = self.lanes[lane].batch.slice.take() else { return Ok(()) };
        let channel = self.lanes[lane].counter.channel;
        for index in slice.sources.0..slice.sources.1 {
            if let Source::Arrival { peer } = self.program.sources[index] {
                link(links, peer).release(channel, slice.len_bytes).map_err(Fault::Link)?;
            }
        }
        for index in 0..self.lanes[lane].batch.outgoing.len() {
            let outgoing = self.lanes[lane].batch.outgoing[index];
            match (outgoing.via, slice.own) {
                (Via::Own, Some(address)) => {
                    let Outgoing { peer, len_bytes, last, .. } = outgoing;
                    self.send_own(lane, peer, Waiting { address, len_bytes, last }, links)?;
                }
                _ => self.send(lane, outgoing, links)?,
            }
        }
        let lane = &mut self.lanes[lane];
        lane.batch.outgoing.clear();
        if let Some(room) = slice.piece {
            lane.pieces.give_back(room);
        }
        lane.counter.done_bytes += slice.len_bytes;
        if slice.ends_action {
            lane.counter.finish_action();
        }
        Ok(())
    }

    /// Sends what the device has put into a slot or a piece.
    fn send(
        &mut self,
        lane: usize,
        outgoing: Outgoing,
        links: &mut [Option<Link>],
    ) -> Result<(), Fault> {
        let lane = &mut self.lanes[lane];
        let (channel, tag) = (lane.counter.channel, self.tag);
        let Outgoing { peer, len_bytes, last, via } = outgoing;
        let link = link(links, peer);
        match via {
            Via::Slot => link.commit(channel, tag, len_bytes, last),
            Via::Piece(room) => {
                // SAFETY: the piece stays as it is until the link has sent that much.
                let posted = unsafe { link.post(channel, tag, room.data, len_bytes, last) };
                lane.pieces.read_by(room, peer, link.posted_bytes(channel));
                posted
            }
            Via::Nothing | Via::Own => {
                // SAFETY: an empty message has no bytes.
                unsafe { link.post(channel, tag, std::ptr::dangling(), 0, last) }
            }
        }
        .map_err(Fault::Link)
    }

    /// Sends an own span, or a part of one: lends it, or has it wait for room.
    fn send_own(
        &mut self,
        lane: usize,
        peer: u32,
        waiting: Waiting,
        links: &mut [Option<Link>],
    ) -> Result<(), Fault> {
        let index = self.peers.binary_search(&peer).expect("a peer of the program");
        let is_next = self.lanes[lane].sends[index].is_empty();
        if !(is_next && self.lend(lane, peer, waiting, links)?) {
            self.lanes[lane].sends[index].push_back(waiting);
        }
        Ok(())
    }

    /// Lends a part of an own span, all of which has been written, if the peer's GPU reads it in place.
    fn lend(
        &mut self,
        lane: usize,
        peer: u32,
        Waiting { address, len_bytes, last }: Waiting,
        links: &mut [Option<Link>],
    ) -> Result<bool, Fault> {
        let link = link(links, peer);
        if !self.may_lend(link, address, len_bytes) {
            return Ok(false);
        }
        let counter = &mut self.lanes[lane].counter;
        let lent = link.lend_device(counter.channel, self.tag, address, len_bytes, last);
        let lent = lent.map_err(Fault::Link)?;
        if lent {
            counter.posted(link, peer, address as *const u8, len_bytes);
        }
        Ok(lent)
    }

    fn may_lend(&self, link: &Link, address: DeviceAddress, len_bytes: usize) -> bool {
        self.lends && len_bytes > 0 && link.lends_device(address, len_bytes)
    }

    /// Begins to copy what waits to be sent to where there is room now. Returns whether there is any such.
    fn begin_sends(
        &mut self,
        lane: usize,
        links: &mut [Option<Link>],
        pins: &Pins,
    ) -> Result<bool, Fault> {
        for index in 0..self.peers.len() {
            let peer = self.peers[index];
            loop {
                let Some(&waiting) = self.lanes[lane].sends[index].front() else { break };
                if waiting.len_bytes == 0 {
                    self.lanes[lane].sends[index].pop_front();
                    let Waiting { len_bytes, last, .. } = waiting;
                    self.send(lane, Outgoing { peer, len_bytes, last, via: Via::Nothing }, links)?;
                    continue;
                }
                if self.lend(lane, peer, waiting, links)? {
                    self.lanes[lane].sends[index].pop_front();
                    continue;
                }
                let room = self.room(lane, peer, waiting.len_bytes, None, links, pins);
                let Some((via, address, room_bytes)) = room else { break };
                let len_bytes = waiting.len_bytes.min(room_bytes);
                let last = waiting.last && len_bytes == waiting.len_bytes;
                self.copy(lane, waiting.address, address, len_bytes)?;
                self.counters.copies += 1;
                self.counters.to_host_bytes += len_bytes as u64;
                let lane = &mut self.lanes[lane];
                lane.batch.copies.push(Outgoing { peer, len_bytes, last, via });
                let rest = lane.sends[index].front_mut().expect("looked at above");
                rest.address += len_bytes as u64;
                rest.len_bytes -= len_bytes;
                if rest.len_bytes == 0 {
                    lane.sends[index].pop_front();
                }
                // One a peer and batch: a link has one slot reserved at a time.
                break;
            }
        }
        Ok(!self.lanes[lane].batch.copies.is_empty())
    }

    /// Room for bytes for a peer, which the GPU can write: a slot, or a piece, of which a slice has one for all
    /// of its peers.
    fn room(
        &mut self,
        lane: usize,
        peer: u32,
        wanted_bytes: usize,
        piece: Option<pieces::Room>,
        links: &mut [Option<Link>],
        pins: &Pins,
    ) -> Option<(Via, DeviceAddress, usize)> {
        let lane = &mut self.lanes[lane];
        if let Some(slot) = link(links, peer).reserve(lane.counter.channel, wanted_bytes) {
            let len_bytes = slot.len.min(wanted_bytes);
            if let Some(address) = pins.address_of(peer, slot.data, len_bytes) {
                return Some((Via::Slot, address, len_bytes));
            }
        }
        let room = piece.or_else(|| lane.piece(links))?;
        Some((Via::Piece(room), room.address, lane.pieces.piece_bytes()))
    }

    /// Begins the next slice, or completes what needs no device.
    fn begin_action(
        &mut self,
        lane: usize,
        links: &mut [Option<Link>],
        pins: &Pins,
    ) -> Result<Begun, Fault> {
        loop {
            if self.lanes[lane].counter.is_done(self.geometry.rounds()) {
                return Ok(Begun::Complete);
            }
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
                    match self.begin_move(lane, &mv, links, pins)? {
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
        pins: &Pins,
    ) -> Result<Begun, Fault> {
        let own = self.own_destination(lane, mv);
        if let (1, Source::Own(span)) =
            (mv.sources.1 - mv.sources.0, self.program.sources[mv.sources.0])
            && own.is_none()
        {
            let address = self.address(lane, span);
            for index in mv.destinations.0..mv.destinations.1 {
                if let Destination::Send { peer, .. } = self.program.destinations[index] {
                    let len_bytes = mv.total_bytes;
                    let waiting = Waiting { address, len_bytes, last: true };
                    self.send_own(lane, peer, waiting, links)?;
                }
            }
            return Ok(Begun::Complete);
        }
        self.begin_slice(lane, mv, own, links, pins)
    }

    /// Begins the next slice of a move, if all that it takes is there.
    fn begin_slice(
        &mut self,
        lane: usize,
        mv: &Move,
        own: Option<(DeviceAddress, bool)>,
        links: &mut [Option<Link>],
        pins: &Pins,
    ) -> Result<Begun, Fault> {
        let done = self.lanes[lane].counter.done_bytes;
        let rest = mv.total_bytes - done;
        let part = match self.arrived(lane, mv, rest, links, pins)? {
            Ok(part) => part,
            Err(peer) => return Ok(Begun::Waits(peer)),
        };
        let own_start = own.map(|(start, _)| start + done as u64);
        let mut part = part;
        if let (true, Some(start)) = (mv.guarded, own_start) {
            let (writable, reader) = self.lanes[lane].writable(&self.peers, links, start, part);
            match reader {
                Some(peer) if writable < LINE_BYTES => return Ok(Begun::Waits(peer)),
                Some(_) => part = writable / LINE_BYTES * LINE_BYTES,
                None => {}
            }
        }
        // Where the slice goes.
        self.destinations.clear();
        self.host_destinations = 0;
        let mut own_needed = own.is_some_and(|(_, backing)| !backing);
        let mut piece = None;
        for index in mv.destinations.0..mv.destinations.1 {
            let Destination::Send { peer, .. } = self.program.destinations[index] else { continue };
            let position = self.peers.binary_search(&peer).expect("a peer of the program");
            let lends = own_start.is_some_and(|s| self.may_lend(link(links, peer), s, part));
            let via = if lends || !self.lanes[lane].sends[position].is_empty() {
                // In place, or behind what waits already.
                Via::Own
            } else if part == 0 {
                Via::Nothing
            } else {
                match self.room(lane, peer, part, piece, links, pins) {
                    None => Via::Own,
                    Some((via, address, room_bytes)) => {
                        part = part.min(room_bytes);
                        // One piece does for all.
                        if !(matches!(via, Via::Piece(_)) && piece.is_some()) {
                            self.destinations.push(address);
                            self.host_destinations += 1;
                        }
                        if let Via::Piece(room) = via {
                            piece = Some(room);
                        }
                        via
                    }
                }
            };
            own_needed |= matches!(via, Via::Own);
            let outgoing = Outgoing { peer, len_bytes: 0, last: false, via };
            self.lanes[lane].batch.outgoing.push(outgoing);
        }
        let last = part == rest;
        for outgoing in &mut self.lanes[lane].batch.outgoing {
            (outgoing.len_bytes, outgoing.last) = (part, last);
        }
        if let (true, Some(start)) = (own_needed, own_start) {
            self.destinations.push(start);
        }
        self.gather(lane, mv, part, links, pins)?;
        self.fold(lane, part, mv.completes)?;
        self.lanes[lane].batch.slice = Some(Slice {
            len_bytes: part,
            sources: mv.sources,
            ends_action: last,
            own: own_start,
            piece,
        });
        Ok(Begun::Batch)
    }

    /// How much of the rest of a move can be done in one slice, by what has arrived; or who has not sent.
    fn arrived(
        &mut self,
        lane: usize,
        mv: &Move,
        rest: usize,
        links: &mut [Option<Link>],
        pins: &Pins,
    ) -> Result<Result<usize, u32>, Fault> {
        let channel = self.lanes[lane].counter.channel;
        let (mut part, mut unpinned) = (rest, 0);
        for index in mv.sources.0..mv.sources.1 {
            let Source::Arrival { peer } = self.program.sources[index] else { continue };
            let arrival = match link(links, peer).arrival(channel).map_err(Fault::Link)? {
                None => return Ok(Err(peer)),
                Some(arrival) if arrival.tag != self.tag => {
                    return Err(Fault::Mismatch { peer, theirs: arrival.tag });
                }
                Some(arrival) => arrival,
            };
            let folds = mv.sources.1 - mv.sources.0 > 1;
            let is_whole = !folds || arrival.len.is_multiple_of(self.element_bytes);
            if arrival.len > rest || arrival.last != (arrival.len == rest) || !is_whole {
                return Err(Fault::Length { peer, expected_bytes: mv.total_bytes });
            }
            part = part.min(arrival.len);
            let is_reached =
                arrival.on_device || pins.address_of(peer, arrival.data, arrival.len).is_some();
            unpinned += usize::from(!is_reached);
        }
        if unpinned > 0 {
            part = part.min(ARRIVALS_BYTES / unpinned / LINE_BYTES * LINE_BYTES);
        }
        Ok(Ok(part))
    }

    /// Finds the sources of a slice where the GPU can read them.
    fn gather(
        &mut self,
        lane: usize,
        mv: &Move,
        part: usize,
        links: &mut [Option<Link>],
        pins: &Pins,
    ) -> Result<(), Fault> {
        let channel = self.lanes[lane].counter.channel;
        let done = self.lanes[lane].counter.done_bytes;
        let mut gathered_bytes = 0;
        self.sources.clear();
        (self.host_sources, self.peer_sources) = (0, 0);
        for index in mv.sources.0..mv.sources.1 {
            let address = match self.program.sources[index] {
                Source::Own(span) => self.address(lane, span) + done as u64,
                Source::Arrival { peer } => {
                    let arrival = link(links, peer).arrival(channel).map_err(Fault::Link)?;
                    let arrival = arrival.expect("looked at before");
                    let data = arrival.data;
                    self.host_sources += u64::from(!arrival.on_device);
                    self.peer_sources += u64::from(arrival.on_device);
                    match pins.address_of(peer, data, part) {
                        _ if arrival.on_device => data as DeviceAddress,
                        Some(address) => address,
                        None => {
                            let address = self.copy_arrival(lane, gathered_bytes, data, part)?;
                            gathered_bytes += part.next_multiple_of(LINE_BYTES);
                            self.counters.bounced_bytes += part as u64;
                            address
                        }
                    }
                }
            };
            self.sources.push(address);
        }
        Ok(())
    }

    /// Copies an arrival to where the GPU can read it.
    fn copy_arrival(
        &mut self,
        lane: usize,
        offset: usize,
        data: *const u8,
        len_bytes: usize,
    ) -> Result<DeviceAddress, Fault> {
        let lane = &mut self.lanes[lane];
        if lane.arrivals.is_none() {
            let memory =
                PinnedMemory::alloc(&self.device, ARRIVALS_BYTES + LINE_BYTES * MOST_OPERANDS);
            lane.arrivals = Some(memory.map_err(Fault::Device)?);
        }
        let arrivals = lane.arrivals.as_ref().expect("allocated above");
        // SAFETY: the arrival has that many bytes, and the memory room for those of all arrivals of a slice, which
        // `arrived` sees to; the batch before has been finished, so that the device does not read it.
        unsafe {
            let into = arrivals.start().add(offset);
            std::ptr::copy_nonoverlapping(data, into, len_bytes);
        }
        Ok(arrivals.address() + offset as u64)
    }

    /// Queues the fold of the sources into the destinations.
    fn fold(&mut self, lane: usize, part: usize, completes: bool) -> Result<(), Fault> {
        self.counters.from_host_bytes += self.host_sources * part as u64;
        self.counters.from_peers_bytes += self.peer_sources * part as u64;
        self.counters.to_host_bytes += self.host_destinations * part as u64;
        let stream = &self.lanes[lane].stream;
        let result = match (&self.sources[..], &self.destinations[..]) {
            (_, destinations) if part == 0 || destinations.is_empty() => Ok(()),
            (&[source], &[destination]) if source != destination => {
                self.counters.copies += 1;
                // SAFETY: see below.
                unsafe { stream.copy(destination, source, part) }
            }
            (&[source], destinations) if destinations.iter().all(|d| *d == source) => Ok(()),
            (&[_], destinations) => {
                self.counters.kernels += 1;
                // SAFETY: see below.
                unsafe { self.copy.queue(stream, &self.sources, destinations, part) }
            }
            _ => {
                self.counters.kernels += 1;
                let fold = if completes { &self.completing } else { &self.partial };
                // SAFETY: each source has `part` readable bytes (a slot's, a piece's or a span's), each
                // destination room for as many; spans lie in memory that `start` vouched for, and the plan's proof
                // says that nobody else writes them now. All stay until the batch is done.
                unsafe { fold.queue(stream, &self.sources, &self.destinations, part) }
            }
        };
        result.map_err(Fault::Device)
    }

    fn copy(
        &self,
        lane: usize,
        from: DeviceAddress,
        to: DeviceAddress,
        len_bytes: usize,
    ) -> Result<(), Fault> {
        // SAFETY: as in `fold`: the span is not written before the copy is done, since it was taken from what
        // waits only in this batch, and the lane's stream keeps the order.
        unsafe { self.lanes[lane].stream.copy(to, from, len_bytes) }.map_err(Fault::Device)
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
        let offset = self.geometry.bytes(self.lanes[lane].counter.round, span).offset;
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

/// The link to a peer of the program.
fn link(links: &mut [Option<Link>], peer: u32) -> &mut Link {
    links[peer as usize].as_mut().expect("links to a program's peers are made before it starts")
}
