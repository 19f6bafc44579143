//! One end of a simulated link, as the executor sees it.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::RawFd;

use super::end::{Frame, SlotMemory};
use super::network::Network;
use super::state::{EndId, State};
use super::trace::Operation;
use crate::checksum::Damage;
use crate::{Arrival, CHANNELS, Channel, Home, LinkError, Slot, Tag, TransportKind};

/// The end of a simulated link that one rank holds; made by [`Network::link`]. Its methods are
/// [`Link`](crate::Link)'s.
///
/// [`Network`] says when things happen; the time given to `poll` is not looked at. What has arrived
/// is seen after the next poll. After the peer's goodbye, what it sent can still be read;
/// then `arrival` and `receive` return [`LinkError::Closed`] on each channel that is empty, `post`
/// and `commit` at once, and `poll` where something posted waits, since it never leaves. A poll of
/// a link from which nothing is wanted is no error. Dropping a link loses what waits for credits;
/// `close` sends it without them, since no one can wait on virtual time.
pub struct SimLink {
    network: Network,
    end: EndId,
    peer: u32,
    channels: Box<[ChannelEnd]>,
    /// One bit a channel: something posted waits for a credit.
    waiting: u32,
    /// Frames have checksums.
    checks: bool,
}

/// What one end holds of a channel.
#[derive(Default)]
struct ChannelEnd {
    posted_bytes: u64,
    sent_bytes: u64,
    /// Posted, without a credit yet.
    waiting: VecDeque<Posted>,
    reserved: Option<SlotMemory>,
    /// Arrived and not released.
    inbox: VecDeque<Frame>,
    /// How much of the inbox's first frame is released.
    released_bytes: usize,
    /// The inbox's first frame was shown by an arrival.
    shown: bool,
    /// Bytes of the message in hand in frames that are released.
    message_bytes: u64,
}

/// The rest of a post.
struct Posted {
    data: *const u8,
    len: usize,
    last: bool,
    tag: Tag,
}

// SAFETY: the pointer is only read from, and whoever posted promised that its bytes stay readable
// and unchanged, for any thread that drives the link.
unsafe impl Send for Posted {}

impl SimLink {
    pub(super) fn new(network: Network, end: EndId, peer: u32) -> SimLink {
        let channels = (0..CHANNELS).map(|_| ChannelEnd::default()).collect();
        SimLink { network, end, peer, channels, waiting: 0, checks: false }
    }

    /// The rank at the other end.
    pub fn peer(&self) -> u32 {
        self.peer
    }

    /// Frames have checksums from now on.
    pub(crate) fn check_frames(&mut self) {
        self.checks = true;
    }

    /// See [`Link::divide`](crate::Link::divide). Lanes from `lanes` on get no credits.
    pub fn divide(&mut self, lanes: usize) {
        self.network.lock().divide(self.end, lanes);
    }

    /// See [`Link::post`](crate::Link::post).
    ///
    /// # Safety
    /// As there.
    pub unsafe fn post(
        &mut self,
        channel: Channel,
        tag: Tag,
        data: *const u8,
        len: usize,
        last: bool,
    ) -> Result<(), LinkError> {
        let mut state = self.network.lock();
        state.check(self.end)?;
        state.check_peer(self.end)?;
        state.operate(self.end, Some(channel), Operation::Post)?;
        let own = &mut self.channels[channel];
        own.posted_bytes += len as u64;
        if len > 0 || last {
            own.waiting.push_back(Posted { data, len, last, tag });
            let waits = own.send_waiting(&mut state, self.end, channel, self.checks);
            self.waiting |= u32::from(waits) << channel;
        }
        // A rule may have ended the link when a frame left.
        state.check(self.end)
    }

    /// See [`Link::posted_bytes`](crate::Link::posted_bytes).
    pub fn posted_bytes(&self, channel: Channel) -> u64 {
        self.channels[channel].posted_bytes
    }

    /// See [`Link::sent_bytes`](crate::Link::sent_bytes): bytes count when they are in a slot.
    pub fn sent_bytes(&self, channel: Channel) -> u64 {
        self.channels[channel].sent_bytes
    }

    /// See [`Link::is_waiting`](crate::Link::is_waiting).
    pub fn is_waiting(&self, channel: Channel) -> bool {
        self.waiting & 1 << channel != 0
    }

    /// Always to be polled: time moves what is under way.
    pub fn is_idle(&self) -> bool {
        false
    }

    /// See [`Link::reserve`](crate::Link::reserve).
    pub fn reserve(&mut self, channel: Channel, _wanted: usize) -> Option<Slot> {
        let mut state = self.network.lock();
        let own = &mut self.channels[channel];
        if !own.waiting.is_empty() || state.check(self.end).is_err() {
            return None;
        }
        if own.reserved.is_none() {
            own.reserved = state.take_slot(self.end, channel);
        }
        let len = state.slice_bytes();
        own.reserved.as_mut().map(|memory| Slot { data: memory.as_mut_ptr(), len })
    }

    /// See [`Link::commit`](crate::Link::commit).
    ///
    /// # Panics
    /// Where no slot is reserved, or `len` is more than it holds.
    pub fn commit(
        &mut self,
        channel: Channel,
        tag: Tag,
        len: usize,
        last: bool,
    ) -> Result<(), LinkError> {
        let mut state = self.network.lock();
        state.check(self.end)?;
        state.check_peer(self.end)?;
        state.operate(self.end, Some(channel), Operation::Commit)?;
        assert!(len <= state.slice_bytes(), "a commit is at most a slot");
        let own = &mut self.channels[channel];
        let memory = own.reserved.take().expect("a commit follows a reserve");
        own.posted_bytes += len as u64;
        own.sent_bytes += len as u64;
        let frame = Frame { memory, len, last, tag, checksum: None };
        state.depart(self.end, channel, frame.sealed(self.checks));
        state.check(self.end)
    }

    /// See [`Link::arrival`](crate::Link::arrival).
    pub fn arrival(&mut self, channel: Channel) -> Result<Option<Arrival>, LinkError> {
        let mut state = self.network.lock();
        state.check(self.end)?;
        let own = &mut self.channels[channel];
        own.check_first(channel, self.peer)?;
        let Some(frame) = own.inbox.front() else {
            return own.check_more(&state, self.end, channel).map(|()| None);
        };
        if !own.shown {
            state.operate(self.end, Some(channel), Operation::Arrival)?;
            own.shown = true;
        }
        Ok(Some(Arrival {
            data: frame.memory.as_ptr().wrapping_add(own.released_bytes),
            len: frame.len - own.released_bytes,
            last: frame.last,
            tag: frame.tag,
            home: Home::Host,
        }))
    }

    /// See [`Link::release`](crate::Link::release).
    ///
    /// # Panics
    /// Where no arrival is there, or `len` is more than it has left.
    pub fn release(&mut self, channel: Channel, len: usize) -> Result<(), LinkError> {
        let mut state = self.network.lock();
        state.check(self.end)?;
        state.operate(self.end, Some(channel), Operation::Release)?;
        self.channels[channel].consume(&mut state, self.end, channel, len);
        Ok(())
    }

    /// See [`Link::receive`](crate::Link::receive).
    ///
    /// # Safety
    /// As there.
    pub unsafe fn receive(
        &mut self,
        channel: Channel,
        tag: Tag,
        into: *mut u8,
        len: usize,
    ) -> Result<(usize, bool), LinkError> {
        let mut state = self.network.lock();
        state.check(self.end)?;
        let own = &mut self.channels[channel];
        own.check_first(channel, self.peer)?;
        if own.takeable(tag, len).is_none() {
            return own.check_more(&state, self.end, channel).map(|()| (0, false));
        }
        state.operate(self.end, Some(channel), Operation::Receive)?;
        let mut received = 0;
        while let Some((frame, count)) = own.takeable(tag, len - received) {
            let last = frame.last && own.released_bytes + count == frame.len;
            let from = frame.memory.as_ptr().wrapping_add(own.released_bytes);
            // SAFETY: the frame has `count` bytes from there, `into` has room for them by the
            // caller's promise, and a slot's memory is never the caller's.
            unsafe { from.copy_to_nonoverlapping(into.add(received), count) };
            own.consume(&mut state, self.end, channel, count);
            received += count;
            if last {
                return Ok((received, true));
            }
            if own.check_first(channel, self.peer).is_err() {
                break;
            }
        }
        Ok((received, false))
    }

    /// See [`Link::poll`](crate::Link::poll). Idle polls are not counted as operations.
    pub fn poll(&mut self, _now_ns: u64) -> Result<bool, LinkError> {
        let mut state = self.network.lock();
        state.check(self.end)?;
        let mut moved = false;
        if state.has_news(self.end) || self.can_send(&state) {
            state.operate(self.end, None, Operation::Poll)?;
            state.tell_news(self.end);
            self.waiting = 0;
            for (channel, own) in self.channels.iter_mut().enumerate() {
                own.inbox.append(&mut state.take_arrived(self.end, channel));
                let waits = own.send_waiting(&mut state, self.end, channel, self.checks);
                self.waiting |= u32::from(waits) << channel;
            }
            state.check(self.end)?;
            moved = true;
        }
        if self.waiting != 0 {
            state.check_peer(self.end)?;
        }
        Ok(moved)
    }

    /// No descriptor: time is virtual, and nobody sleeps.
    pub fn descriptor(&self) -> Option<(RawFd, bool)> {
        None
    }

    /// Nobody sleeps on virtual time.
    pub fn set_parked(&mut self, _parked: bool) {}

    /// See [`Link::close`](crate::Link::close). What waits for credits leaves without them.
    pub fn close(mut self, _deadline: std::time::Instant) {
        let mut state = self.network.lock();
        if state.check(self.end).is_ok() {
            state.lift_credits(self.end);
            for (channel, own) in self.channels.iter_mut().enumerate() {
                own.send_waiting(&mut state, self.end, channel, self.checks);
            }
        }
    }

    /// Whether something waits that may leave.
    fn can_send(&self, state: &State) -> bool {
        let may_leave = |(channel, own): (Channel, &ChannelEnd)| {
            self.is_waiting(channel)
                && (own.reserved.is_some() || state.has_credit(self.end, channel))
        };
        self.waiting != 0
            && state.check_peer(self.end).is_ok()
            && self.channels.iter().enumerate().any(may_leave)
    }
}

impl Drop for SimLink {
    fn drop(&mut self) {
        self.network.lock().close(self.end);
    }
}

impl fmt::Debug for SimLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimLink").field("end", &self.end).field("peer", &self.peer).finish()
    }
}

impl ChannelEnd {
    /// Copies into slots what waits, as far as credits go, and sends it. Returns whether something
    /// still waits.
    fn send_waiting(
        &mut self,
        state: &mut State,
        end: EndId,
        channel: Channel,
        checks: bool,
    ) -> bool {
        while let Some(posted) = self.waiting.front_mut() {
            let Some(mut memory) = self.reserved.take().or_else(|| state.take_slot(end, channel))
            else {
                return true;
            };
            let len = posted.len.min(state.slice_bytes());
            // SAFETY: whoever posted promised that these bytes are readable until they count as
            // sent; the slot holds a slice, and is no one else's.
            unsafe { posted.data.copy_to_nonoverlapping(memory.as_mut_ptr(), len) };
            posted.data = posted.data.wrapping_add(len);
            posted.len -= len;
            let done = posted.len == 0;
            let (last, tag) = (done && posted.last, posted.tag);
            let frame = Frame { memory, len, last, tag, checksum: None }.sealed(checks);
            if done {
                self.waiting.pop_front();
            }
            self.sent_bytes += len as u64;
            state.depart(end, channel, frame);
        }
        false
    }

    /// Whether the inbox's first frame is as it was sent.
    fn check_first(&self, channel: Channel, peer: u32) -> Result<(), LinkError> {
        let Some(frame) = self.inbox.front() else { return Ok(()) };
        if frame.checksum.is_none_or(|checksum| checksum == frame.checksum_now()) {
            return Ok(());
        }
        let (tag, begin, len) = (frame.tag, Some(self.message_bytes), frame.len as u64);
        let damage = Damage::Payload { channel, tag, begin, len };
        Err(LinkError::Corrupt { peer, transport: TransportKind::Sim, damage })
    }

    /// The inbox's first frame and how much of it goes into `room_bytes`, if it is of this
    /// operation and there is anything to take: bytes, or the end of a message.
    fn takeable(&self, tag: Tag, room_bytes: usize) -> Option<(&Frame, usize)> {
        let frame = self.inbox.front().filter(|frame| frame.tag == tag)?;
        let left_bytes = frame.len - self.released_bytes;
        (left_bytes == 0 || room_bytes > 0).then(|| (frame, left_bytes.min(room_bytes)))
    }

    /// Releases bytes of the inbox's first frame, and its slot with the last of them.
    fn consume(&mut self, state: &mut State, end: EndId, channel: Channel, len: usize) {
        self.released_bytes += len;
        let frame_bytes = self.inbox.front().expect("a release follows an arrival").len;
        assert!(self.released_bytes <= frame_bytes, "a release is at most the arrival");
        if self.released_bytes == frame_bytes
            && let Some(frame) = self.inbox.pop_front()
        {
            self.released_bytes = 0;
            self.shown = false;
            self.message_bytes = if frame.last { 0 } else { self.message_bytes + frame.len as u64 };
            state.give_back(end, channel, frame.memory);
        }
    }

    /// An error where nothing more can come.
    fn check_more(&self, state: &State, end: EndId, channel: Channel) -> Result<(), LinkError> {
        if self.inbox.is_empty() && !state.has_arrived(end, channel) {
            return state.check_peer(end);
        }
        Ok(())
    }
}
