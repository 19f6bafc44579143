//! How messages leave: as loans of the GPU's memory, or from slots and pieces that the GPU has written.

use ringtree_transport::cuda::DeviceAddress;
use ringtree_transport::{Link, TransportKind};

use super::super::Fault;
use super::super::moves::link;
use super::Staged;
use super::gear::{COPIES, Gear};
use super::lane::{Copying, Outgoing, Via, Waiting};
use crate::device::Activity;

impl Staged {
    /// Sends what the device has put into a slot or a piece, of a message of `message_bytes`.
    pub(super) fn send(
        &mut self,
        lane: usize,
        outgoing: Outgoing,
        message_bytes: usize,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<(), Fault> {
        let Outgoing { peer, len_bytes, begins, last, via } = outgoing;
        if let Via::Lent(room) = via {
            let (address, piece) = (room.address, Some(room));
            let waiting = Waiting { address, len_bytes, begins, last, message_bytes, piece };
            return self.send_piece(lane, peer, waiting, links, gear);
        }
        if let Some(recording) = &mut gear.recording {
            recording.posted(lane, peer, len_bytes);
        }
        let (channel, tag) = (self.lanes[lane].counter.channel, self.tag);
        let link = link(links, peer);
        match via {
            Via::Slot => link.commit(channel, tag, len_bytes, last),
            Via::Piece(room) => {
                // SAFETY: the piece stays as it is until the link has sent that much.
                let posted = unsafe { link.post(channel, tag, room.data, len_bytes, last) };
                if let Some((pieces, room)) = gear.pieces_of(lane, via) {
                    pieces.read_by(room, peer, link.posted_bytes(channel));
                }
                posted
            }
            Via::Nothing => {
                // SAFETY: an empty message has no bytes.
                unsafe { link.post(channel, tag, std::ptr::dangling(), 0, last) }
            }
            // Lowering gives every message that may lack room a span of this rank to wait in.
            Via::Own | Via::Lent(_) => {
                unreachable!("a message without room, and no span behind it")
            }
        }
        .map_err(Fault::Link)
    }

    /// Lends a piece that the device has filled, or has it wait for a frame, behind others that do.
    fn send_piece(
        &mut self,
        lane: usize,
        peer: u32,
        waiting: Waiting,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<(), Fault> {
        let index = self.peers.binary_search(&peer).expect("a peer of the program");
        let sends = &self.lanes[lane].sends[index];
        let before = sends.iter().take_while(|other| other.piece.is_some()).count();
        if before == 0 && self.lend_piece(lane, peer, waiting, links, gear)? {
            return Ok(());
        }
        self.lanes[lane].sends[index].insert(before, waiting);
        Ok(())
    }

    /// Lends what a piece holds, if there is a frame for it.
    fn lend_piece(
        &mut self,
        lane: usize,
        peer: u32,
        Waiting { address, len_bytes, last, piece, .. }: Waiting,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<bool, Fault> {
        let (channel, link) = (self.lanes[lane].counter.channel, link(links, peer));
        let lent = link.lend_device(channel, self.tag, address, len_bytes, last);
        let lent = lent.map_err(Fault::Link)?;
        if lent {
            if let (Some(room), Some(pieces)) = (piece, gear.device_pieces(lane)) {
                pieces.read_by(room, peer, link.posted_bytes(channel));
            }
            if let Some(recording) = &mut gear.recording {
                recording.posted(lane, peer, len_bytes);
            }
        }
        Ok(lent)
    }

    /// Sends an own span, or a part of one: lends it, or has it wait for room.
    pub(super) fn send_own(
        &mut self,
        lane: usize,
        peer: u32,
        waiting: Waiting,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<(), Fault> {
        let index = self.peers.binary_search(&peer).expect("a peer of the program");
        let on = &self.lanes[lane];
        let is_next = on.sends[index].is_empty() && on.copies_for(peer).next().is_none();
        if !(is_next && self.lend(lane, peer, waiting, links, gear)?) {
            self.lanes[lane].sends[index].push_back(waiting);
        }
        Ok(())
    }

    /// Lends a part of an own span, all of which has been written, if the peer's GPU or an RDMA device reads it in place.
    fn lend(
        &mut self,
        lane: usize,
        peer: u32,
        Waiting { address, len_bytes, begins, last, .. }: Waiting,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<bool, Fault> {
        let link = link(links, peer);
        if !self.may_lend(lane, link, address, len_bytes) {
            return Ok(false);
        }
        let counter = &mut self.lanes[lane].counter;
        let is_rdma = link.kind() == TransportKind::Rdma;
        if let (true, Some(message_bytes)) = (is_rdma, begins) {
            let taken = link.takes_offer(counter.channel, self.tag, message_bytes);
            taken.map_err(Fault::Link)?;
        }
        let lent = link.lend_device(counter.channel, self.tag, address, len_bytes, last);
        let lent = lent.map_err(Fault::Link)?;
        if lent {
            self.counters.to_wire_bytes += if is_rdma { len_bytes as u64 } else { 0 };
            counter.posted(link, peer, address as *const u8, len_bytes);
            if let Some(recording) = &mut gear.recording {
                recording.posted(lane, peer, len_bytes);
            }
        }
        Ok(lent)
    }

    pub(super) fn may_lend(
        &self,
        lane: usize,
        link: &Link,
        address: DeviceAddress,
        len_bytes: usize,
    ) -> bool {
        let channel = self.lanes[lane].counter.channel;
        // What an RDMA device reads, no guard of the peer's holds back.
        let may = self.lends || link.kind() == TransportKind::Rdma;
        may && len_bytes > 0 && link.lends_device(channel, address, len_bytes)
    }

    /// Sends what has been copied. Returns whether anything was.
    pub(super) fn finish_copies(
        &mut self,
        lane: usize,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<bool, Fault> {
        let mut moved = false;
        while let Some(&copy) = self.lanes[lane].copies.front() {
            if !gear.lane(lane).copy_events[copy.event].is_done().map_err(Fault::Device)? {
                break;
            }
            self.lanes[lane].copies.pop_front();
            self.send(lane, copy.outgoing, copy.message_bytes, links, gear)?;
            moved = true;
        }
        Ok(moved)
    }

    /// Begins to copy what waits to be sent to where there is room now, a part for each peer. Returns whether there is any
    /// such.
    pub(super) fn begin_sends(
        &mut self,
        lane: usize,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<bool, Fault> {
        let mut moved = false;
        for index in 0..self.peers.len() {
            let peer = self.peers[index];
            while let Some(&waiting) = self.lanes[lane].sends[index].front() {
                if waiting.piece.is_some() {
                    if !self.lend_piece(lane, peer, waiting, links, gear)? {
                        break;
                    }
                    self.lanes[lane].sends[index].pop_front();
                    moved = true;
                    continue;
                }
                // What needs no copy must not overtake what does.
                if self.lanes[lane].copies_for(peer).next().is_none() {
                    let Waiting { len_bytes, begins, last, .. } = waiting;
                    let is_sent = if len_bytes == 0 {
                        let nothing = Outgoing { peer, len_bytes, begins, last, via: Via::Nothing };
                        self.send(lane, nothing, 0, links, gear)?;
                        true
                    } else {
                        self.lend(lane, peer, waiting, links, gear)?
                    };
                    if is_sent {
                        self.lanes[lane].sends[index].pop_front();
                        moved = true;
                        continue;
                    }
                }
                moved |= self.begin_copy(lane, index, waiting, links, gear)?;
                break;
            }
        }
        Ok(moved)
    }

    /// Begins to copy a part of what waits first for a peer, if there is room.
    fn begin_copy(
        &mut self,
        lane: usize,
        index: usize,
        waiting: Waiting,
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<bool, Fault> {
        let peer = self.peers[index];
        let on = &self.lanes[lane];
        let is_first = on.copies_for(peer).next().is_none();
        let has_slot = on.copies_for(peer).any(|copy| copy.outgoing.via.is_slot());
        let under_way: usize = self.lanes.iter().map(|lane| lane.copies.len()).sum();
        if has_slot || waiting.len_bytes == 0 || under_way >= COPIES {
            return Ok(false);
        }
        let wanted = (waiting.len_bytes, waiting.message_bytes);
        let room = self.room(lane, peer, wanted, [None; 2], links, gear)?;
        let Some((via, to, room_bytes)) = room else { return Ok(false) };
        // A channel has one slot reserved at a time, and what is posted first takes it.
        if via.is_slot() && !is_first {
            return Ok(false);
        }
        let len_bytes = waiting.len_bytes.min(room_bytes);
        let last = waiting.last && len_bytes == waiting.len_bytes;
        let (event, address) = (self.lanes[lane].next_event, waiting.address);
        let (activity, to_host_bytes) = match via {
            Via::Lent(_) => (Activity::CopyAcross, 0),
            _ => (Activity::CopyUp, len_bytes as u64),
        };
        // SAFETY: the room is the message's. The span is not written before the copy is done, as long as it is among the
        // lane's copies or in what waits to be sent.
        let copied = unsafe { gear.copy(lane, event, (to, activity), address, len_bytes) };
        copied.map_err(Fault::Device)?;
        self.counters.copies += 1;
        self.counters.to_host_bytes += to_host_bytes;
        let lane = &mut self.lanes[lane];
        lane.next_event = (event + 1) % COPIES;
        let outgoing = Outgoing { peer, len_bytes, begins: waiting.begins, last, via };
        let message_bytes = waiting.message_bytes;
        lane.copies.push_back(Copying { address, outgoing, message_bytes, event });
        let rest = lane.sends[index].front_mut().expect("looked at before");
        rest.address += len_bytes as u64;
        rest.len_bytes -= len_bytes;
        rest.begins = None;
        if rest.len_bytes == 0 {
            lane.sends[index].pop_front();
        }
        Ok(true)
    }

    /// Room for bytes of a message for a peer, which the GPU can write: a piece of its own memory where the peer's
    /// GPU reads that, else a slot, or a piece of the host's. A slice has one piece of each kind for all of its
    /// peers: `pieces`.
    pub(super) fn room(
        &mut self,
        lane: usize,
        peer: u32,
        (wanted_bytes, message_bytes): (usize, usize),
        pieces: [Option<Via>; 2],
        links: &mut [Option<Link>],
        gear: &mut Gear,
    ) -> Result<Option<(Via, DeviceAddress, usize)>, Fault> {
        let channel = self.lanes[lane].counter.channel;
        if let Some(own) = gear.device_pieces(lane) {
            let (start, len_bytes) = own.range();
            if link(links, peer).takes_device(channel, start, len_bytes, message_bytes) {
                let room = match pieces[1] {
                    Some(Via::Lent(room)) => own.share(room, peer),
                    _ => own.take(peer, links, channel),
                };
                return Ok(room.map(|room| (Via::Lent(room), room.address, room.len_bytes)));
            }
        }
        if let Some(slot) = link(links, peer).reserve_for_device(channel, wanted_bytes) {
            let len_bytes = slot.len.min(wanted_bytes);
            if let Some(address) = gear.pins.address_of(peer, slot.data, len_bytes) {
                return Ok(Some((Via::Slot, address, len_bytes)));
            }
        }
        let room = match pieces[0].and_then(|via| gear.pieces_of(lane, via)) {
            Some((own, room)) => own.share(room, peer),
            None => gear.piece(lane, peer, links, channel).map_err(Fault::Device)?,
        };
        Ok(room.map(|room| (Via::Piece(room), room.address, room.len_bytes)))
    }
}
