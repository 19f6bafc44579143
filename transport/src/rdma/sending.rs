//! The sending half of a link: what is posted waits in a queue for each channel and leaves as credits and
//! queue pairs allow, each write by the queue pair that has least under way, so that each carries what it
//! drains.

use super::arena::{LINES, Place};
use super::frame::{Body, Data, Header, Offer};
use super::link::RdmaLink;
use super::queue::{Source, State, Target, Work};
use super::send_channel::Piece;
use super::{MAX_QUEUES, SLICE_BYTES};
use crate::cuda::DeviceAddress;
use crate::{CHANNELS, Channel, Home, LEAST_IN_PLACE_BYTES, LinkError, Slot, Tag, checksum};

/// Direct writes that a side of a link may have under way, sent and not yet taken in.
pub(super) const DIRECTS: usize = 64;

/// Bytes of one direct write at most, where one queue pair carries all, and where several share.
const DIRECT_BYTES: usize = 1 << 20;
const SHARED_DIRECT_BYTES: usize = 256 << 10;

/// Work requests of a queue pair that are kept: for a slot that is reserved on each channel, and for telling
/// of the ends of the others.
pub(super) const KEPT: usize = CHANNELS + MAX_QUEUES;

/// Offers of a channel that may be outstanding at most: a peer that makes more is broken.
const MOST_OFFERS: usize = 1 << 16;

impl RdmaLink {
    /// Whether a range of this side's memory leaves without a copy, and it is worth it.
    #[inline]
    pub(crate) fn lends(&self, data: *const u8, len: usize) -> bool {
        len >= LEAST_IN_PLACE_BYTES && self.owned.find(data, len).is_some()
    }

    /// Whether a range of a GPU's memory leaves without a copy. However short it is: to have the GPU copy it to a slot
    /// would take longer. Frames with checksums do not, since the host cannot read it.
    #[inline]
    pub(crate) fn lends_device(&self, address: DeviceAddress, len: usize) -> bool {
        !self.checks && self.owned.find(address as *const u8, len).is_some()
    }

    /// See [`crate::Link::takes_offer`].
    #[inline]
    pub(crate) fn takes_offer(&mut self, channel: Channel, tag: Tag, len: usize) -> bool {
        let send = &mut self.sends[channel];
        if send.posting_bytes == 0 && len >= LEAST_IN_PLACE_BYTES {
            // An offer that comes later takes what has not left by then.
            send.announce(len);
            if send.posting == send.message {
                send.take_offer(tag);
            }
        }
        self.is_direct(channel)
    }

    #[inline]
    pub(crate) fn is_direct(&self, channel: Channel) -> bool {
        let send = &self.sends[channel];
        send.direct.is_some() && send.posting == send.message
    }

    /// # Safety
    /// As of [`crate::Link::offer`].
    #[inline]
    pub(crate) unsafe fn offer(
        &mut self,
        channel: Channel,
        tag: Tag,
        ahead: u32,
        into: *mut u8,
        len: usize,
    ) -> Result<(), LinkError> {
        // What is written there by the device passes by no frame.
        if len < LEAST_IN_PLACE_BYTES || self.end.is_some() || self.checks {
            return Ok(());
        }
        let has_room = self.owned.has_room();
        let Some(memory) = self.owned.find(into, len) else { return Ok(()) };
        let (id, offset, home) = (memory.id, (into as usize - memory.start) as u64, memory.home);
        if !memory.is_known {
            if !has_room || !self.control.tell(memory) {
                return Ok(());
            }
            self.owned.note_known(id);
        }
        let message = self.receives[channel].offered(ahead, into, len, tag, home);
        let offer = Offer { message, tag, memory: id, offset, len: len as u64 };
        self.lines.push_back(Body::Offer { channel: channel as u8, offer });
        self.flush().map(drop)
    }

    /// Notes what the peer offers.
    pub(super) fn note_offer(&mut self, channel: Channel, offer: Offer) -> Result<(), LinkError> {
        let send = &mut self.sends[channel];
        send.forget_past_offers();
        if send.offers.len() == MOST_OFFERS {
            return Err(self.protocol("more offers than any operation makes"));
        }
        send.offers.push_back(offer);
        Ok(())
    }

    /// Room in a slot, if there is credit and a queue pair will take it.
    #[inline]
    pub(super) fn reserve_slot(&mut self, channel: Channel) -> Option<Slot> {
        let send = &self.sends[channel];
        if self.end.is_some() || send.direct.is_some() || self.waiting & 1 << channel != 0 {
            return None;
        }
        let slot = match send.reserved {
            Some(slot) => slot,
            None => {
                let may_send = self.credits.may_send(channel) && self.resend.is_empty();
                if !may_send || self.sends[channel].is_full() {
                    return None;
                }
                self.queue_with_room(KEPT)?;
                let slot = self.take_slot()?;
                self.sends[channel].reserved = Some(slot);
                slot
            }
        };
        // Others may have used the credits or the queue pairs since.
        let may_commit = self.credits.may_send(channel) && self.queue_with_room(0).is_some();
        may_commit.then(|| Slot { data: self.staging.arena.data(slot), len: SLICE_BYTES })
    }

    #[inline]
    pub(crate) fn commit(
        &mut self,
        channel: Channel,
        tag: Tag,
        len: usize,
        last: bool,
    ) -> Result<(), LinkError> {
        let slot = self.sends[channel].reserved.take().filter(|_| len <= SLICE_BYTES);
        let slot = slot.expect("a commit follows its reserve");
        self.sends[channel].count_posted(len, last);
        match self.queue_with_room(0) {
            Some(queue) => self.send_slice(queue, channel, slot, None, tag, len, last),
            // All have failed since, and so has the link.
            None => self.free_slots |= 1 << slot,
        }
        Ok(())
    }

    fn take_slot(&mut self) -> Option<u8> {
        let slot = self.free_slots.trailing_zeros();
        (slot < u32::BITS).then(|| {
            self.free_slots &= !(1 << slot);
            slot as u8
        })
    }

    /// Slots of a channel that the peer has released are free again: it does so in their order.
    pub(super) fn free_slots(&mut self, channel: Channel, count: u8) -> Result<(), &'static str> {
        for _ in 0..count {
            let send = &mut self.sends[channel];
            let (slot, number) =
                send.slots.pop_front().ok_or("more slots released than were used")?;
            send.released(number);
            self.free_slots |= 1 << slot;
        }
        Ok(())
    }

    /// Sends everything that credits, the queue pairs and the peer's keys allow. Returns whether anything
    /// left.
    pub(super) fn flush(&mut self) -> Result<bool, LinkError> {
        let mut moved = self.send_again();
        moved |= self.tell_ends();
        while let Some(&body) = self.lines.front() {
            if !self.send_line(body, LINES - 1) {
                break;
            }
            self.lines.pop_front();
            moved = true;
        }
        let mut refused = 0;
        while self.waiting & !refused != 0 && self.resend.is_empty() {
            let channel = next_of(self.waiting & !refused, self.turn);
            if self.send_from(channel)? {
                moved = true;
                self.turn = (channel + 1) % CHANNELS;
            } else {
                refused |= 1 << channel;
            }
        }
        let must_ask = self.waiting != 0 && self.credits.must_ask(self.waiting);
        if must_ask && self.send_line(Body::Credit { ask: true }, LINES - 1) {
            self.credits.asked_for_all();
            moved = true;
        } else if self.credits.due() || self.must_tell() {
            // The last line is for telling of lines alone: the peer, which may be out of them, too, has
            // some again by that.
            let tells_of_lines = self.counts.lines_taken != self.counts.lines_told;
            let most = if tells_of_lines { LINES } else { LINES - 1 };
            moved |= self.send_line(Body::Credit { ask: false }, most);
        }
        Ok(moved)
    }

    /// Sends the next frame of a channel, if that is possible now.
    fn send_from(&mut self, channel: Channel) -> Result<bool, LinkError> {
        let Some(&Piece { tag, .. }) = self.sends[channel].queue.front() else {
            self.waiting &= !(1 << channel);
            return Ok(true);
        };
        if self.sends[channel].is_full() {
            return Ok(false);
        }
        self.sends[channel].take_offer(tag);
        let sent = match self.sends[channel].direct {
            Some(offer) => self.send_direct(channel, offer)?,
            None => self.send_posted(channel)?,
        };
        if self.sends[channel].queue.is_empty() {
            self.waiting &= !(1 << channel);
        }
        Ok(sent)
    }

    /// Sends a slice of what is posted through a slot of the peer.
    fn send_posted(&mut self, channel: Channel) -> Result<bool, LinkError> {
        let Some(&piece) = self.sends[channel].queue.front() else { return Ok(false) };
        if !self.credits.may_send(channel) {
            return Ok(false);
        }
        let Some(queue) = self.queue_with_room(KEPT) else { return Ok(false) };
        let len = piece.len.min(SLICE_BYTES);
        // A short message is sooner copied than its completion awaited; not the end of a long one.
        let is_short = len < LEAST_IN_PLACE_BYTES && self.sends[channel].message_bytes == 0;
        let source = match piece.home {
            Home::Host if is_short => None,
            _ => self.source(&piece, len)?,
        };
        // The one that was reserved and not committed, if there is one.
        let reserved = self.sends[channel].reserved.take();
        let Some(slot) = reserved.or_else(|| self.take_slot()) else { return Ok(false) };
        if source.is_none() {
            // SAFETY: whoever posted the bytes keeps them until they count as sent; the slot has room for
            // a slice, and nothing is under way from it.
            unsafe { piece.data.copy_to_nonoverlapping(self.staging.arena.data(slot), len) };
            self.counters.copied_bytes += len as u64;
        }
        let last = piece.last && len == piece.len;
        self.sends[channel].take_off(len);
        self.send_slice(queue, channel, slot, source, piece.tag, len, last);
        Ok(true)
    }

    /// Where the device reads the first `len` bytes of a piece, if it knows their memory. That of a GPU it must know: the
    /// host cannot copy it.
    fn source(&mut self, piece: &Piece, len: usize) -> Result<Option<Source>, LinkError> {
        let (data, home) = (piece.data, piece.home);
        if let Some(memory) = self.owned.find(data, len) {
            return Ok(Some(Source { data, keys: memory.local_keys, bounce: None, home }));
        }
        match home {
            Home::Host => Ok(None),
            Home::PeerGpu | Home::OwnGpu => {
                let error = std::io::Error::other("it was freed while it was being sent");
                Err(self.failed("memory of the GPU", &error))
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a slice is")]
    fn send_slice(
        &mut self,
        queue: usize,
        channel: Channel,
        slot: u8,
        source: Option<Source>,
        tag: Tag,
        len: usize,
        last: bool,
    ) {
        let send = &mut self.sends[channel];
        let number = send.frame(len, source.is_none(), last);
        send.slots.push_back((slot, number));
        if source.is_some() {
            self.reading |= 1 << channel;
        }
        let ask = self.credits.spend(channel);
        let data =
            Data { channel: channel as u8, number: number as u8, last, ask, len: len as u32, tag };
        let payload = source.map_or(self.staging.arena.data(slot).cast_const(), |from| from.data);
        // SAFETY: whoever posted the bytes keeps them until they count as sent; a slot has as many.
        let checksum = if self.checks { unsafe { checksum::of_memory(payload, len) } } else { 0 };
        self.write_header(Place::Slot(slot), Body::Data(data), checksum);
        self.post_work(queue, Work::Slot { slot, channel, number, source, len });
    }

    /// Sends a part of what is posted to where the peer wants it.
    fn send_direct(&mut self, channel: Channel, offer: Offer) -> Result<bool, LinkError> {
        let Some(&piece) = self.sends[channel].queue.front() else { return Ok(false) };
        let under_way = self.counts.directs_sent.wrapping_sub(self.counts.directs_returned);
        if usize::from(under_way) >= DIRECTS {
            return Ok(false);
        }
        let Some(queue) = self.queue_with_room(KEPT) else { return Ok(false) };
        if self.foreign.by_id(offer.memory).is_none() {
            // The peer has told of it before it made the offer, over the other connection.
            self.look_at_control()?;
        }
        let Some(&memory) = self.foreign.by_id(offer.memory) else { return Ok(false) };
        let open = self.queues.iter().filter(|queue| queue.state == State::Open).count();
        let most = if open > 1 { SHARED_DIRECT_BYTES } else { DIRECT_BYTES };
        let most = most.min(self.queues[queue].rail.max_message_bytes as usize);
        let own = self.source(&piece, piece.len.min(most))?;
        let mut len = piece.len.min(most);
        let done = self.sends[channel].message_bytes;
        let rest = offer.len.checked_sub(done).filter(|rest| len as u64 <= *rest);
        let target = rest.and_then(|rest| memory.address(offer.offset.checked_add(done)?, rest));
        let Some(address) = target else {
            return Err(self.protocol("an offer outside the memory that it names"));
        };
        let source = match own {
            Some(source) => source,
            None => {
                len = len.min(SLICE_BYTES);
                let Some(source) = self.bounced(piece.data, len) else { return Ok(false) };
                source
            }
        };
        let last = piece.last && len == piece.len;
        let send = &mut self.sends[channel];
        send.take_off(len);
        let number = send.frame(len, source.bounce.is_some(), last);
        if source.bounce.is_none() {
            self.reading |= 1 << channel;
        }
        self.counts.directs_sent = self.counts.directs_sent.wrapping_add(1);
        self.counters.direct_bytes += len as u64;
        let target = Target { address, keys: memory.keys };
        self.post_work(queue, Work::Direct { channel, number, last, source, len, target });
        Ok(true)
    }

    /// A copy of bytes in a buffer that the device reads, if one is free.
    fn bounced(&mut self, data: *const u8, len: usize) -> Option<Source> {
        let bounce = self.free_bounces.trailing_zeros() as u8;
        if self.free_bounces == 0 {
            return None;
        }
        self.free_bounces &= !(1 << bounce);
        let copy = self.staging.arena.bounce(bounce);
        // SAFETY: whoever posted the bytes keeps them; the buffer has room for a slice and is free.
        unsafe { data.copy_to_nonoverlapping(copy, len) };
        self.counters.copied_bytes += len as u64;
        let keys = self.staging.keys;
        Some(Source { data: copy, keys, bounce: Some(bounce), home: Home::Host })
    }

    /// Sends a header alone, if fewer than `most` lines are under way and the peer will find them in order.
    /// Returns whether it left.
    fn send_line(&mut self, body: Body, most: usize) -> bool {
        let counts = &self.counts;
        let under_way = usize::from(counts.lines_sent.wrapping_sub(counts.lines_returned));
        if under_way >= most || self.is_replacing() {
            return false;
        }
        let Some(queue) = self.lead().filter(|&at| self.queues[at].room() > KEPT) else {
            return false;
        };
        let line = (usize::from(self.counts.lines_sent) % LINES) as u8;
        self.counts.lines_sent = self.counts.lines_sent.wrapping_add(1);
        self.write_header(Place::Line(line), body, 0);
        self.post_work(queue, Work::Line { line });
        true
    }

    /// Writes a header, which takes along what the peer is owed, and the payload's checksum where frames have
    /// some.
    pub(super) fn write_header(&mut self, place: Place, body: Body, payload: u32) {
        let counts = &mut self.counts;
        (counts.lines_told, counts.directs_told) = (counts.lines_taken, counts.directs_taken);
        let (lines_taken, directs_taken) = (counts.lines_taken, counts.directs_taken);
        let header = Header { body, credits: self.credits.pay(), lines_taken, directs_taken };
        self.staging.arena.write_header(place, &header, self.checks.then_some(payload));
    }

    /// Whether the peer must be told that lines or direct writes were taken in, before it runs out.
    pub(super) fn must_tell(&self) -> bool {
        let counts = &self.counts;
        usize::from(counts.lines_taken.wrapping_sub(counts.lines_told)) >= LINES / 2
            || usize::from(counts.directs_taken.wrapping_sub(counts.directs_told)) >= DIRECTS / 2
    }

    /// The queue pair that lines go by, one after the other.
    pub(super) fn lead(&self) -> Option<usize> {
        self.queues.iter().position(|queue| queue.state == State::Open)
    }

    /// The queue pair with least under way, if it has room for more than `kept` work requests.
    #[inline]
    pub(super) fn queue_with_room(&self, kept: usize) -> Option<usize> {
        if let [only] = &*self.queues {
            return (only.state == State::Open && only.room() > kept).then_some(0);
        }
        let is_free =
            |at: &usize| self.queues[*at].state == State::Open && self.queues[*at].room() > kept;
        (0..self.queues.len()).filter(is_free).min_by_key(|&at| self.queues[at].outstanding_bytes)
    }
}

/// The first of the channels in a set of bits from `turn` on, and round.
fn next_of(set: u32, turn: Channel) -> Channel {
    let from_turn = set >> turn << turn;
    (if from_turn != 0 { from_turn } else { set }).trailing_zeros() as Channel
}
