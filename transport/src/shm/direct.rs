//! Messages that are written straight to where the receiver wants them.
//!
//! The receiver offers room for a message that is yet to come, by number, over the same ring that
//! carries its own messages: whoever has seen one of those knows of the offers before it. The sender
//! takes an offer or does not; either way the message has one last line, which says where its bytes
//! are. An offer for another operation than the sender's is not taken, so that no byte of a wrong
//! call reaches anyone's memory.
//!
//! The offered memory is the program's own, and must be left alone once the operation has failed:
//! before it writes, a sender says so in its half of the link, and looks whether the receiver has
//! closed the link; the receiver closes the link, and waits until nobody writes.

use std::sync::atomic::{Ordering, compiler_fence, fence};
use std::time::{Duration, Instant};

use super::layout::{Half, State};
use super::lending::{ORDINARY, Place};
use super::link::ShmLink;
use super::reach::Reach;
use super::receive::Offered;
use super::ring::Body;
use super::send::{Direct, OFFER, Offer};
use crate::{Channel, LinkError, Slot, Tag};
use crate::{process::PidFd, wait};

/// Offers of a channel that may be outstanding at most: a peer that makes more is broken. A program
/// makes one an action.
const MOST_OFFERS: usize = 1 << 16;

/// Shorter ranges of ordinary memory go through slots: a call of the kernel costs more.
const LEAST_ATTACHED_BYTES: usize = 32 << 10;

/// And shorter ones of mapped memory: naming them costs more than copying.
pub(super) const LEAST_MAPPED_BYTES: usize = 16 << 10;

/// Bytes that are copied between two looks whether the receiver still wants them.
const STRETCH_BYTES: usize = 1 << 20;

/// How long a peer may go on writing to withdrawn memory before its process is ended.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(2);

impl ShmLink {
    /// Whether the peer can reach a range of this side's memory in place, and it is worth it.
    #[inline]
    pub(crate) fn lends(&self, data: *const u8, len: usize) -> bool {
        let ordinary = match self.reach {
            Reach::Nothing => usize::MAX,
            Reach::Attach(_) => LEAST_ATTACHED_BYTES,
            Reach::Same => LEAST_MAPPED_BYTES,
        };
        len >= ordinary || len >= LEAST_MAPPED_BYTES && self.lender.holds(data, len)
    }

    /// The name of a range of this side's memory, if the peer can reach it.
    pub(super) fn place(&mut self, data: *const u8, len: usize) -> Option<Place> {
        let lent = self.lender.lend(data, len, &self.socket);
        let ordinary = || Place { id: ORDINARY, offset: data as u64 };
        lent.or_else(|| (self.reach != Reach::Nothing).then(ordinary))
    }

    pub(crate) unsafe fn offer(
        &mut self,
        channel: Channel,
        tag: Tag,
        ahead: u32,
        into: *mut u8,
        len: usize,
    ) -> Result<(), LinkError> {
        if !self.lends(into, len) || !self.line_credit(channel)? {
            return Ok(());
        }
        let Some(place) = self.place(into, len) else { return Ok(()) };
        let receive = &mut self.receives[channel];
        let message = receive.message.wrapping_add(ahead);
        receive.offered.push_back(Offered { message, into, len });
        self.sends[channel].publish_offer(Offer { message, tag, place, len: len as u64 });
        // A peer that sleeps waits for something else.
        Ok(())
    }

    /// Takes the offers in that come before the next frame of a channel.
    #[inline]
    pub(super) fn next_frame(
        &mut self,
        channel: Channel,
    ) -> Result<Option<(u32, *const Body)>, LinkError> {
        loop {
            match self.receives[channel].ring.peek() {
                Some((meta, body)) if meta & OFFER != 0 => {
                    // SAFETY: the line was peeked and is not given back; the words are read once.
                    let offer = Offer::of(&unsafe { body.read() });
                    let offers = &mut self.sends[channel].offers;
                    if offers.len() == MOST_OFFERS {
                        return Err(self.protocol("more offers than any operation makes"));
                    }
                    offers.push_back(offer);
                    self.receives[channel].ring.advance();
                }
                frame => return Ok(frame),
            }
        }
    }

    #[inline]
    pub(crate) fn takes_offer(&mut self, channel: Channel, tag: Tag) -> Result<bool, LinkError> {
        if self.sends[channel].direct.is_some() {
            return Ok(true);
        }
        let is_begun = self.sends[channel].is_open || self.waiting & 1 << channel != 0;
        // The message's last line must find room whenever it is written.
        if is_begun || !self.line_credit(channel)? {
            return Ok(false);
        }
        self.next_frame(channel)?;
        let send = &mut self.sends[channel];
        let message = send.message;
        while let Some(offer) = send.offers.front().copied() {
            // It was for a message that has gone another way.
            let is_past = message.wrapping_sub(offer.message) as i32 > 0;
            let is_next = offer.message == message;
            if is_past || is_next {
                send.offers.pop_front();
            }
            if is_next && offer.tag == tag {
                return self.begin_direct(channel, offer).map(|()| true);
            }
            if !is_past {
                break;
            }
        }
        Ok(false)
    }

    fn begin_direct(&mut self, channel: Channel, offer: Offer) -> Result<(), LinkError> {
        let attached = offer.place.id == ORDINARY && matches!(self.reach, Reach::Attach(_));
        let mapped = match self.within_reach(offer.place, offer.len) {
            None if !attached => return Err(self.protocol("an offer that is out of reach")),
            start => start,
        };
        self.sends[channel].direct = Some(Direct { offer, mapped, done: 0 });
        Ok(())
    }

    /// The offered room that the next bytes of a channel go to, where it is mapped: the peer is told
    /// that it is being written.
    pub(super) fn direct_slot(&mut self, direct: Direct) -> Option<Slot> {
        let data = direct.mapped?.wrapping_add(direct.done);
        let len = (direct.offer.len as usize).saturating_sub(direct.done);
        self.begin_writing().then_some(Slot { data, len })
    }

    /// Counts what was written to the offer; its last byte tells the peer.
    pub(super) fn commit_direct(
        &mut self,
        channel: Channel,
        tag: Tag,
        len: usize,
        last: bool,
    ) -> Result<(), LinkError> {
        self.state().writing.store(0, Ordering::Release);
        let send = &mut self.sends[channel];
        let Some(direct) = &mut send.direct else { return Ok(()) };
        direct.done += len;
        let done = direct.done;
        send.posted_bytes += len as u64;
        send.count(len);
        if last {
            send.direct = None;
            send.publish_written(tag, done);
            self.wake_peer();
        }
        Ok(())
    }

    /// Writes bytes of the caller to the offer that takes the channel's message.
    ///
    /// # Safety
    /// `data` must have `len` readable bytes.
    pub(super) unsafe fn post_direct(
        &mut self,
        channel: Channel,
        tag: Tag,
        data: *const u8,
        len: usize,
        last: bool,
    ) -> Result<(), LinkError> {
        let Some(direct) = self.sends[channel].direct else { return Ok(()) };
        if direct.done + len > direct.offer.len as usize {
            return Err(self.protocol("less room offered than its message takes"));
        }
        let mut done = 0;
        while done < len {
            let part = (len - done).min(STRETCH_BYTES);
            if !self.begin_writing() {
                // Nobody will read it.
                return Ok(());
            }
            let from = data.wrapping_add(done);
            // SAFETY: the caller promises the source; the peer has offered the destination and
            // leaves it alone until it has seen the message's last line, or nobody writes any more.
            let written = unsafe {
                match direct.mapped {
                    Some(start) => {
                        let into = start.wrapping_add(direct.done + done);
                        std::ptr::copy_nonoverlapping(from, into, part);
                        Ok(())
                    }
                    None => {
                        let address = direct.offer.place.offset + (direct.done + done) as u64;
                        self.reach.write(address, from, part)
                    }
                }
            };
            if let Err(error) = written {
                self.state().writing.store(0, Ordering::Release);
                return Err(self.out_of_reach(&error));
            }
            done += part;
        }
        self.commit_direct(channel, tag, len, last)
    }

    /// Says that this side writes to the peer's memory. Returns false where it may not any more.
    #[inline]
    fn begin_writing(&mut self) -> bool {
        self.state().writing.store(1, Ordering::Relaxed);
        if self.fenced {
            fence(Ordering::SeqCst);
        } else {
            // The barrier of whoever withdraws orders what this processor does.
            compiler_fence(Ordering::SeqCst);
        }
        let withdrawn = self.their_state().closed.load(Ordering::Acquire) != 0;
        if withdrawn {
            self.state().writing.store(0, Ordering::Release);
        }
        !withdrawn
    }

    /// Once the link is closed: waits until the peer does not write to what it was offered.
    pub(super) fn withdraw_offers(&mut self) {
        self.state().writing.store(0, Ordering::Release);
        if self.receives.iter().all(|receive| receive.offered.is_empty()) {
            return;
        }
        fence(Ordering::SeqCst);
        wait::order_all_processors();
        let began = Instant::now();
        let mut ended = false;
        while self.their_state().writing.load(Ordering::Acquire) != 0 {
            self.take_in();
            // Twice the limit: its process cannot be ended either.
            if self.socket_ended || began.elapsed() > 2 * WITHDRAW_LIMIT {
                return;
            }
            if began.elapsed() > WITHDRAW_LIMIT && !ended {
                ended = true;
                self.end_peer();
            }
            std::thread::yield_now();
        }
    }

    /// A process that has stopped half-way through a write would go on with it when it wakes.
    fn end_peer(&self) {
        if self.reach == Reach::Same {
            return;
        }
        let process = self.peer_process().and_then(|pid| PidFd::open(pid).ok());
        if let Some(process) = process {
            tracing::warn!("rank {} holds on to withdrawn memory: ending its process", self.peer);
            let _ = process.kill();
        }
    }

    /// What this side says about itself.
    #[inline]
    pub(super) fn state(&self) -> &State {
        // SAFETY: the half lives as long as the link.
        unsafe { &(*self.mine.start().cast::<Half>()).state }
    }

    /// What the peer says about itself.
    #[inline]
    pub(super) fn their_state(&self) -> &State {
        // SAFETY: the half lives as long as the link.
        unsafe { &(*self.theirs.start().cast::<Half>()).state }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const LEN: usize = 100_000;
    const TAG: Tag = Tag { sequence: 3, digest: 9 };
    const OTHER: Tag = Tag { sequence: 3, digest: 8 };

    fn pair() -> (ShmLink, ShmLink) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let (a, b) = UnixStream::pair().unwrap();
        let other = std::thread::spawn(move || ShmLink::establish(b, 0, deadline).unwrap());
        (ShmLink::establish(a, 1, deadline).unwrap(), other.join().unwrap())
    }

    fn offer(link: &mut ShmLink, ahead: u32, into: &mut [u8]) {
        // SAFETY: every test leaves the room alone until the message has come.
        unsafe { link.offer(0, TAG, ahead, into.as_mut_ptr(), into.len()).unwrap() };
    }

    fn post(link: &mut ShmLink, tag: Tag, data: &[u8]) {
        // SAFETY: the data outlives the link in every test.
        unsafe { link.post(0, tag, data.as_ptr(), data.len(), true).unwrap() };
    }

    /// The next message, and whether it lies in `room`.
    fn take(sender: &mut ShmLink, link: &mut ShmLink, room: &[u8]) -> (Vec<u8>, bool) {
        let (mut taken, mut direct) = (Vec::new(), true);
        loop {
            sender.poll(0).unwrap();
            let arrival = link.arrival(0).unwrap().unwrap();
            direct &= arrival.data == room.as_ptr();
            // SAFETY: the arrival has that many bytes and is not released.
            let bytes = unsafe { std::slice::from_raw_parts(arrival.data, arrival.len) };
            taken.extend_from_slice(bytes);
            link.release(0, arrival.len).unwrap();
            if arrival.last {
                return (taken, direct);
            }
        }
    }

    #[test]
    fn a_message_goes_where_room_was_offered_for_it() {
        let (mut sender, mut receiver) = pair();
        let (first, second) = (vec![1; LEN], vec![2; LEN]);
        let (nowhere, mut room) = ([], vec![0; LEN]);
        offer(&mut receiver, 1, &mut room);
        post(&mut sender, TAG, &first);
        assert_eq!(take(&mut sender, &mut receiver, &nowhere), (first.clone(), false));
        post(&mut sender, TAG, &second);
        assert_eq!(take(&mut sender, &mut receiver, &room), (second, true));
        // An offer is for one message.
        post(&mut sender, TAG, &first);
        assert_eq!(take(&mut sender, &mut receiver, &room), (first, false));
        assert!(receiver.receives[0].offered.is_empty() && sender.sends[0].direct.is_none());
    }

    #[test]
    fn a_slice_can_be_written_where_it_is_wanted() {
        let (mut sender, mut receiver) = pair();
        let mut room = vec![0; LEN];
        offer(&mut receiver, 0, &mut room);
        for (value, last) in [(5, false), (6, true)] {
            assert!(sender.takes_offer(0, TAG).unwrap());
            let slot = sender.reserve(0).unwrap();
            // SAFETY: the room is as long as two halves.
            unsafe { slot.data.write_bytes(value, LEN / 2) };
            assert!(receiver.arrival(0).unwrap().is_none(), "not before its end");
            sender.commit(0, TAG, LEN / 2, last).unwrap();
        }
        let expected = [[5; LEN / 2], [6; LEN / 2]].concat();
        assert_eq!(take(&mut sender, &mut receiver, &room), (expected, true));
    }

    #[test]
    fn what_belongs_to_another_call_is_not_written() {
        let (mut sender, mut receiver) = pair();
        let (data, mut room) = (vec![7; LEN], vec![0; LEN]);
        offer(&mut receiver, 0, &mut room);
        assert!(!sender.takes_offer(0, OTHER).unwrap());
        post(&mut sender, OTHER, &data);
        assert_eq!(receiver.arrival(0).unwrap().unwrap().tag, OTHER);
        drop(receiver);
        assert_eq!(room, [0; LEN]);
    }

    #[test]
    fn an_offer_that_comes_late_is_for_nothing() {
        let (mut sender, mut receiver) = pair();
        let (data, mut room) = (vec![7; LEN], vec![0; LEN]);
        post(&mut sender, TAG, &data);
        offer(&mut receiver, 0, &mut room);
        assert_eq!(take(&mut sender, &mut receiver, &room), (data, false));
        assert!(!sender.takes_offer(0, TAG).unwrap());
        assert!(receiver.receives[0].offered.is_empty() && sender.sends[0].offers.is_empty());
    }

    #[test]
    fn withdrawn_room_is_left_alone() {
        let (mut sender, mut receiver) = pair();
        let (data, mut room) = (vec![7; LEN], vec![0; LEN]);
        offer(&mut receiver, 0, &mut room);
        assert!(sender.takes_offer(0, TAG).unwrap());
        drop(receiver);
        assert!(sender.reserve(0).is_none());
        post(&mut sender, TAG, &data);
        assert_eq!(room, [0; LEN]);
    }

    #[test]
    fn whoever_withdraws_waits_for_the_write_under_way() {
        let (mut sender, mut receiver) = pair();
        let mut room = vec![0; LEN];
        offer(&mut receiver, 0, &mut room);
        assert!(sender.takes_offer(0, TAG).unwrap());
        let slot = sender.reserve(0).unwrap();
        let withdrawn = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                drop(receiver);
                withdrawn.store(true, Ordering::SeqCst);
            });
            while sender.their_state().closed.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            // SAFETY: the room is as long.
            unsafe { slot.data.write_bytes(5, LEN) };
            assert!(!withdrawn.load(Ordering::SeqCst));
            sender.commit(0, TAG, LEN, true).unwrap();
        });
        assert_eq!(room, [5; LEN]);
    }
}
