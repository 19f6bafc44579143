//! A slice: as much of a move as has arrived and has room, folded in one pass by the GPU.

use ringtree_plan::{Destination, Source};
use ringtree_transport::cuda::DeviceAddress;
use ringtree_transport::{Home, Link};

use super::super::Fault;
use super::super::moves::{Move, link};
use super::gear::{ARRIVALS_BYTES, Gear};
use super::lane::{Outgoing, Slice, Via};
use super::{Begun, LINE_BYTES, Staged};
use crate::device::{Activity, Work};

impl Staged {
    /// Begins the next slice of a move, if all that it takes is there.
    pub(super) fn begin_slice(
        &mut self,
        lane: usize,
        mv: &Move,
        own: Option<(DeviceAddress, bool)>,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<Begun, Fault> {
        let done = self.lanes[lane].counter.done_bytes;
        let rest = mv.total_bytes - done;
        let part = match self.arrived(lane, mv, rest, links, gear)? {
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
        let mut pieces: [Option<Via>; 2] = [None; 2];
        for index in mv.destinations.0..mv.destinations.1 {
            let Destination::Send { peer, .. } = self.program.destinations[index] else { continue };
            let position = self.peers.binary_search(&peer).expect("a peer of the program");
            let lends = own_start.is_some_and(|s| self.may_lend(lane, link(links, peer), s, part));
            let on = &self.lanes[lane];
            let is_behind = !on.sends[position].is_empty() || on.copies_for(peer).next().is_some();
            let via = if lends || is_behind {
                // In place, or behind what waits already.
                Via::Own
            } else if part == 0 {
                Via::Nothing
            } else {
                match self.room(lane, peer, (part, mv.total_bytes), pieces, links, gear)? {
                    None => Via::Own,
                    Some((via, address, room_bytes)) => {
                        part = part.min(room_bytes);
                        let piece = match via {
                            Via::Piece(_) => Some(&mut pieces[0]),
                            Via::Lent(_) => Some(&mut pieces[1]),
                            Via::Slot | Via::Nothing | Via::Own => None,
                        };
                        // One of each kind does for all.
                        if piece.is_none_or(|piece| piece.replace(via).is_none()) {
                            self.destinations.push(address);
                            self.host_destinations += u64::from(!matches!(via, Via::Lent(_)));
                        }
                        via
                    }
                }
            };
            own_needed |= matches!(via, Via::Own);
            let begins = (done == 0).then_some(mv.total_bytes);
            let outgoing = Outgoing { peer, len_bytes: 0, begins, last: false, via };
            self.lanes[lane].outgoing.push(outgoing);
        }
        let last = part == rest;
        for outgoing in &mut self.lanes[lane].outgoing {
            (outgoing.len_bytes, outgoing.last) = (part, last);
        }
        if let (true, Some(start)) = (own_needed, own_start) {
            self.destinations.push(start);
        }
        self.gather(lane, mv, part, links, gear)?;
        self.fold(lane, part, mv.completes, gear)?;
        self.lanes[lane].slice = Some(Slice {
            len_bytes: part,
            sources: mv.sources,
            ends_action: last,
            own: own_start,
            message_bytes: mv.total_bytes,
        });
        Ok(Begun::Slice)
    }

    /// How much of the rest of a move can be done in one slice, by what has arrived; or who has not sent.
    fn arrived(
        &mut self,
        lane: usize,
        mv: &Move,
        rest: usize,
        links: &mut [Option<Link>],
        gear: &mut Gear,
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
            let is_reached = arrival.home != Home::Host
                || gear.pins.address_of(peer, arrival.data, arrival.len).is_some();
            unpinned += usize::from(!is_reached);
        }
        if let Some(room_bytes) = ARRIVALS_BYTES.checked_div(unpinned) {
            part = part.min(room_bytes / LINE_BYTES * LINE_BYTES);
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
        gear: &mut Gear,
    ) -> Result<(), Fault> {
        let channel = self.lanes[lane].counter.channel;
        let done = self.lanes[lane].counter.done_bytes;
        let mut gathered_bytes = 0;
        self.sources.clear();
        (self.host_sources, self.peer_sources, self.landed_sources) = (0, 0, 0);
        for index in mv.sources.0..mv.sources.1 {
            let address = match self.program.sources[index] {
                Source::Own(span) => self.address(lane, span) + done as u64,
                Source::Arrival { peer } => {
                    let arrival = link(links, peer).arrival(channel).map_err(Fault::Link)?;
                    let arrival = arrival.expect("looked at before");
                    let data = arrival.data;
                    if let Some(recording) = &mut gear.recording
                        && !recording.look(lane, channel, link(links, peer))
                    {
                        recording.arrive(lane, peer, part as u64);
                    }
                    match arrival.home {
                        Home::Host => self.host_sources += 1,
                        Home::PeerGpu => self.peer_sources += 1,
                        Home::OwnGpu => self.landed_sources += 1,
                    }
                    match gear.pins.address_of(peer, data, part) {
                        _ if arrival.home != Home::Host => data as DeviceAddress,
                        Some(address) => address,
                        None => {
                            let address = gear.copy_arrival(lane, gathered_bytes, data, part);
                            let address = address.map_err(Fault::Device)?;
                            gathered_bytes += part.next_multiple_of(LINE_BYTES);
                            self.counters.bounced_bytes += part as u64;
                            address
                        }
                    }
                }
            };
            self.sources.push(address);
        }
        if let [source] = self.sources[..] {
            // What has come to where it is wanted.
            self.destinations.retain(|destination| *destination != source);
        }
        if self.landed_sources > 0 {
            gear.settle_remote_writes().map_err(Fault::Device)?;
        }
        Ok(())
    }

    /// Queues the fold of the sources into the destinations.
    fn fold(
        &mut self,
        lane: usize,
        part: usize,
        completes: bool,
        gear: &mut Gear,
    ) -> Result<(), Fault> {
        let bytes = |operands: u64| operands * part as u64;
        self.counters.from_host_bytes += bytes(self.host_sources);
        self.counters.from_peers_bytes += bytes(self.peer_sources);
        self.counters.from_wire_bytes += bytes(self.landed_sources);
        self.counters.to_host_bytes += bytes(self.host_destinations);
        let operands = (self.sources.len() + self.destinations.len()) as u64;
        let kernel = Work {
            activity: Activity::Kernel,
            bytes: bytes(operands),
            from_host_bytes: bytes(self.host_sources),
            to_host_bytes: bytes(self.host_destinations),
        };
        let result = match (&self.sources[..], &self.destinations[..]) {
            (_, destinations) if part == 0 || destinations.is_empty() => Ok(()),
            (&[source], &[destination]) => {
                self.counters.copies += 1;
                let activity = match (self.host_sources, self.host_destinations) {
                    (0, 0) => Activity::CopyAcross,
                    (0, _) => Activity::CopyUp,
                    (..) => Activity::CopyDown,
                };
                let copy = Work { activity, bytes: bytes(1), ..kernel };
                // SAFETY: see below.
                gear.queue(lane, copy, |stream| unsafe { stream.copy(destination, source, part) })
            }
            (&[_], destinations) => {
                self.counters.kernels += 1;
                let (copy, sources) = (&self.copy, &self.sources);
                // SAFETY: see below.
                gear.queue(lane, kernel, |stream| unsafe {
                    copy.queue(stream, sources, destinations, part)
                })
            }
            _ => {
                self.counters.kernels += 1;
                let fold = if completes { &self.completing } else { &self.partial };
                let (sources, destinations) = (&self.sources, &self.destinations);
                // SAFETY: each source has `part` readable bytes (a slot's, a piece's or a span's), each
                // destination room for as many; spans lie in memory that `start` vouched for, and the plan's proof
                // says that nobody else writes them now. All stay until the slice is done.
                gear.queue(lane, kernel, |stream| unsafe {
                    fold.queue(stream, sources, destinations, part)
                })
            }
        };
        result.map_err(Fault::Device)
    }
}
