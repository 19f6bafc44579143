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
//! closed the link; the receiver closes the link, and waits until nobody writes. A process that has
//! stopped in the midst of that is ended, so that only those are offered anything that can be.

use std::sync::atomic::{Ordering, compiler_fence, fence};
use std::time::{Duration, Instant};

use super::layout::{Half, PARKED_FOR_ROOM, SLOT_BYTES, State};
use super::lending::{ORDINARY, Place};
use super::link::{POINT_TO_POINT_SLOTS, ShmLink};
use super::reach::Reach;
use super::receive::Offered;
use super::ring::Body;
use super::send::{Direct, OFFER, Offer};
use crate::{Channel, LEAST_IN_PLACE_BYTES, LinkError, POINT_TO_POINT, Slot, Tag, wait};

/// Offers of a channel that may be outstanding at most: a peer that makes more is broken. A program
/// makes one an action.
const MOST_OFFERS: usize = 1 << 16;

/// Shorter ranges of ordinary memory go through slots: a call of the kernel costs more.
const LEAST_ATTACHED_BYTES: usize = 32 << 10;

/// What is sent to a peer that may come later goes through slots as long as they hold it: a loan
/// would have the sender wait.
pub(super) const MOST_UNAWAITED_BYTES: usize = POINT_TO_POINT_SLOTS * SLOT_BYTES;

/// Bytes that are copied between two looks whether the receiver still wants them.
const STRETCH_BYTES: usize = 1 << 20;

/// How long a peer may go on writing to withdrawn memory before its process is ended.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(2);

/// How long a process that was killed may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

impl ShmLink {
    /// Whether the peer can reach a range of this side's memory in place, and it is worth it.
    #[inline]
    pub(crate) fn lends(&self, channel: Channel, data: *const u8, len: usize) -> bool {
        if channel == POINT_TO_POINT && len <= MOST_UNAWAITED_BYTES {
            return false;
        }
        let ordinary = match self.reach {
            Reach::Nothing => usize::MAX,
            Reach::Attach(_) if !self.attaches => usize::MAX,
            Reach::Attach(_) => LEAST_ATTACHED_BYTES,
            Reach::Same => LEAST_IN_PLACE_BYTES,
        };
        len >= ordinary || len >= LEAST_IN_PLACE_BYTES && self.lender.holds(data, len)
    }

    /// The name of a range of this side's memory, if the peer can reach it.
    pub(super) fn place(&mut self, data: *const u8, len: usize) -> Option<Place> {
        let lent = self.lender.lend(data, len, &self.socket);
        lent.or_else(|| {
            let is_reached = match self.reach {
                Reach::Nothing => false,
                Reach::Same => true,
                Reach::Attach(_) => self.attachable.holds(data, len),
            };
            is_reached.then_some(Place { id: ORDINARY, offset: data as u64 })
        })
    }

    /// Whether this side could keep the peer from writing on.
    fn can_be_withdrawn(&self) -> bool {
        self.reach == Reach::Same || self.process.is_some()
    }

    pub(crate) unsafe fn offer(
        &mut self,
        channel: Channel,
        tag: Tag,
        ahead: u32,
        into: *mut u8,
        len: usize,
    ) -> Result<(), LinkError> {
        if channel == POINT_TO_POINT {
            // Whoever comes later finds what the sender lends.
            return Ok(());
        }
        // The last line is kept for a message: a peer that sleeps is woken by it, and whoever waits
        // for room then waits for somebody who is awake.
        let has_room = self.line_credit(channel)? && self.sends[channel].ring.room() > 1;
        if !has_room || !self.can_be_withdrawn() || !self.lends(channel, into, len) {
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
            let frame = self.receives[channel].ring.peek();
            if self.checks {
                self.check_line(channel, frame)?;
            }
            match frame {
                Some((meta, body)) if meta & OFFER != 0 => {
                    // SAFETY: the line was peeked and is not given back; the words are read once.
                    let offer = Offer::of(&unsafe { body.read() });
                    let send = &mut self.sends[channel];
                    send.forget_past_offers();
                    if send.offers.len() == MOST_OFFERS {
                        return Err(self.protocol("more offers than any operation makes"));
                    }
                    send.offers.push_back(offer);
                    self.receives[channel].ring.advance();
                    self.wake_peer_if(|parked| parked == PARKED_FOR_ROOM);
                }
                frame => return Ok(frame),
            }
        }
    }

    #[inline]
    pub(crate) fn takes_offer(
        &mut self,
        channel: Channel,
        tag: Tag,
        len: usize,
    ) -> Result<bool, LinkError> {
        if self.sends[channel].direct.is_some() {
            return Ok(true);
        }
        let is_begun = self.sends[channel].is_open || self.waiting & 1 << channel != 0;
        // The message's last line must find room whenever it is written.
        if is_begun || len < LEAST_IN_PLACE_BYTES || !self.line_credit(channel)? {
            return Ok(false);
        }
        self.next_frame(channel)?;
        let send = &mut self.sends[channel];
        send.forget_past_offers();
        let next = send.offers.front().copied();
        let Some(offer) = next.filter(|offer| offer.message == send.message) else {
            return Ok(false);
        };
        send.offers.pop_front();
        // A message of another length is one that the peer does not expect: it shall see that, too.
        if offer.tag != tag || offer.len != len as u64 {
            return Ok(false);
        }
        self.begin_direct(channel, offer)?;
        Ok(true)
    }

    #[inline]
    pub(crate) fn is_direct(&self, channel: Channel) -> bool {
        self.sends[channel].direct.is_some()
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
        assert!(direct.done + len <= direct.offer.len as usize, "a message is as long as was said");
        let mut done = 0;
        while done < len {
            let part = (len - done).min(STRETCH_BYTES);
            if !self.begin_writing() {
                return Err(self.closed());
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

    /// What was reserved of the peer's memory will not be written.
    pub(crate) fn cancel_reserved(&mut self) {
        self.state().writing.store(0, Ordering::Release);
    }

    /// Tells the peer that this side takes and gives nothing more.
    pub(crate) fn withdraw(&mut self) {
        self.cancel_reserved();
        self.state().closed.store(1, Ordering::Release);
        // Before anything else is written to what was lent: see `is_withdrawn`.
        fence(Ordering::SeqCst);
        self.wake_peer();
    }

    /// Whether the peer has withdrawn what it lent, asked after that was read: then it may have been
    /// written since.
    pub(super) fn is_withdrawn(&self) -> bool {
        fence(Ordering::Acquire);
        self.their_state().closed.load(Ordering::Acquire) != 0
    }

    /// Once this side has withdrawn: waits until the peer does not write to what it was offered.
    pub(super) fn await_last_write(&mut self) {
        if self.receives.iter().all(|receive| receive.offered.is_empty()) {
            return;
        }
        wait::order_all_processors();
        let began = Instant::now();
        while self.their_state().writing.load(Ordering::Acquire) != 0 {
            // A thread of this process copies its stretch to the end.
            if let Some(process) = &self.process {
                if process.has_ended().unwrap_or(false) {
                    return;
                }
                if began.elapsed() > WITHDRAW_LIMIT {
                    return self.end_peer();
                }
            }
            std::thread::yield_now();
        }
    }

    /// A process that has stopped half-way through a write would go on with it when it wakes.
    fn end_peer(&self) {
        let Some(process) = &self.process else { return };
        tracing::warn!("rank {} holds on to withdrawn memory: ending its process", self.peer);
        let ended = process.kill().and_then(|()| process.wait_ended(Instant::now() + END_LIMIT));
        if !matches!(ended, Ok(true)) {
            tracing::error!("the process of rank {} does not end: {ended:?}", self.peer);
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

    use nix::unistd::Pid;

    use super::*;
    use crate::process::PidFd;
    use crate::shm::{Attach, Board};

    const LEN: usize = 100_000;
    const TAG: Tag = Tag { sequence: 3, digest: 9 };
    const OTHER: Tag = Tag { sequence: 3, digest: 8 };

    fn pair() -> (ShmLink, ShmLink) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let (a, b) = UnixStream::pair().unwrap();
        let other = std::thread::spawn(move || {
            ShmLink::establish(b, 0, Board::new().unwrap().memory(), Attach::Auto, deadline)
                .unwrap()
        });
        (
            ShmLink::establish(a, 1, Board::new().unwrap().memory(), Attach::Auto, deadline)
                .unwrap(),
            other.join().unwrap(),
        )
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
        assert!(sender.takes_offer(0, TAG, LEN).unwrap());
        post(&mut sender, TAG, &second);
        assert_eq!(take(&mut sender, &mut receiver, &room), (second, true));
        // An offer is for one message.
        assert!(!sender.takes_offer(0, TAG, LEN).unwrap());
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
            assert!(sender.takes_offer(0, TAG, LEN).unwrap());
            let slot = sender.reserve(0, LEN).unwrap();
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
        assert!(!sender.takes_offer(0, OTHER, LEN).unwrap());
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
        assert!(!sender.takes_offer(0, TAG, LEN).unwrap());
        assert!(receiver.receives[0].offered.is_empty() && sender.sends[0].offers.is_empty());
    }

    #[test]
    fn withdrawn_room_is_left_alone() {
        let (mut sender, mut receiver) = pair();
        let (data, mut room) = (vec![7; LEN], vec![0; LEN]);
        offer(&mut receiver, 0, &mut room);
        assert!(sender.takes_offer(0, TAG, LEN).unwrap());
        drop(receiver);
        assert!(sender.reserve(0, LEN).is_none());
        // SAFETY: the data outlives the link.
        let posted = unsafe { sender.post(0, TAG, data.as_ptr(), data.len(), true) };
        assert!(matches!(posted, Err(LinkError::Closed { .. })), "{posted:?}");
        assert_eq!(room, [0; LEN]);
    }

    #[test]
    fn whoever_withdraws_waits_for_the_write_under_way() {
        let (mut sender, mut receiver) = pair();
        let mut room = vec![0; LEN];
        offer(&mut receiver, 0, &mut room);
        assert!(sender.takes_offer(0, TAG, LEN).unwrap());
        let slot = sender.reserve(0, LEN).unwrap();
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

    #[test]
    fn offers_that_nobody_takes_pile_up_nowhere() {
        let (mut sender, mut receiver) = pair();
        let (data, mut room) = (vec![7; 100], vec![0; LEN]);
        for _ in 0..1000 {
            offer(&mut receiver, 0, &mut room);
            post(&mut sender, TAG, &data);
            assert_eq!(take(&mut sender, &mut receiver, &room), (data.clone(), false));
            // It looks for messages of the other, and never for offers.
            assert!(sender.arrival(0).unwrap().is_none());
        }
        assert!(sender.sends[0].offers.len() <= 1 && receiver.receives[0].offered.is_empty());
    }

    #[test]
    fn offers_leave_room_for_a_message_that_wakes_the_peer() {
        let (mut sender, mut receiver) = pair();
        let mut rooms = vec![vec![0; LEN]; 40];
        for (ahead, room) in rooms.iter_mut().enumerate() {
            offer(&mut receiver, ahead as u32, room);
        }
        assert!(receiver.receives[0].offered.len() < rooms.len());
        sender.set_parked(true);
        post(&mut receiver, TAG, b"hello");
        assert!(!receiver.is_waiting(0), "a line was left");
        assert!(is_woken(&sender));
        // And the other way round: whoever waits for a line is woken when the offers are taken in.
        for number in 0..2 {
            post(&mut receiver, TAG, &vec![number; LEN]);
        }
        receiver.set_parked(true);
        assert!(receiver.is_waiting(0) && !is_woken(&receiver));
        assert_eq!(sender.arrival(0).unwrap().unwrap().len, 5);
        assert!(is_woken(&receiver));
    }

    fn is_woken(link: &ShmLink) -> bool {
        let (socket, _) = link.descriptor().unwrap();
        let mut entry = libc::pollfd { fd: socket, events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, as said.
        unsafe { libc::poll(&raw mut entry, 1, 0) == 1 }
    }

    #[test]
    fn a_message_of_another_length_does_not_go_where_room_was_offered() {
        let (mut sender, mut receiver) = pair();
        let (data, mut room) = (vec![7; LEN + 4], vec![0; LEN]);
        offer(&mut receiver, 0, &mut room);
        assert!(!sender.takes_offer(0, TAG, LEN + 4).unwrap());
        post(&mut sender, TAG, &data);
        assert_eq!(take(&mut sender, &mut receiver, &room), (data, false));
        assert!(room.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_failed_operation_writes_nothing_more() {
        let (mut sender, mut receiver) = pair();
        let mut room = vec![0; LEN];
        offer(&mut receiver, 0, &mut room);
        assert!(sender.takes_offer(0, TAG, LEN).unwrap());
        sender.reserve(0, LEN).unwrap();
        sender.cancel_reserved();
        // This would wait for the write, and there is none.
        drop(receiver);
    }

    /// As between processes that may trace each other: a process may trace itself.
    fn attached() -> (ShmLink, ShmLink) {
        let (mut a, mut b) = pair();
        (a.reach, b.reach) = (Reach::Attach(Pid::this()), Reach::Attach(Pid::this()));
        let this = || PidFd::open(std::process::id()).ok();
        (a.process, b.process) = (this(), this());
        (a.attaches, b.attaches) = (true, true);
        (a, b)
    }

    #[test]
    fn ordinary_memory_of_another_process_is_read_and_written() {
        let (mut sender, mut receiver) = attached();
        let data: Vec<u8> = (0..3 * LEN).map(|i| (i % 251) as u8).collect();
        let mut room = vec![0; 3 * LEN];
        sender.attaches = false;
        assert!(!sender.lends(0, data.as_ptr(), data.len()));
        sender.attaches = true;
        assert!(sender.lends(0, data.as_ptr(), data.len()));
        // In pieces to a landing, and straight to where it is wanted.
        for directly in [false, true] {
            assert!(sender.lend(0, TAG, data.as_ptr(), data.len(), true).unwrap());
            if directly {
                assert!(receiver.receives_directly(0));
                let (into, len) = (room.as_mut_ptr(), room.len());
                // SAFETY: the room is as long.
                let taken = unsafe { receiver.receive(0, TAG, into, len).unwrap() };
                assert_eq!((taken, &room), ((data.len(), true), &data));
            } else {
                assert_eq!(take(&mut sender, &mut receiver, &[]).0, data);
            }
            sender.poll(0).unwrap();
            assert!(!sender.is_waiting(0));
        }
        room.fill(0);
        offer(&mut receiver, 0, &mut room);
        assert!(
            sender.takes_offer(0, TAG, data.len()).unwrap() && sender.reserve(0, LEN).is_none()
        );
        post(&mut sender, TAG, &data);
        assert_eq!(take(&mut sender, &mut receiver, &room), (data, true));
    }

    #[test]
    fn what_was_read_of_a_loan_counts_only_while_it_is_one() {
        for (mut sender, mut receiver) in [pair(), attached()] {
            let data = vec![7; LEN];
            assert!(sender.lend(0, TAG, data.as_ptr(), data.len(), true).unwrap());
            let in_hand = receiver.reach == Reach::Same;
            if in_hand {
                assert!(receiver.arrival(0).unwrap().is_some());
            }
            drop(sender);
            let error = match in_hand {
                true => receiver.release(0, LEN).unwrap_err(),
                false => receiver.arrival(0).unwrap_err(),
            };
            assert!(matches!(error, LinkError::Closed { .. }), "{error}");
        }
    }

    #[test]
    fn what_the_slots_hold_is_not_lent_to_a_receiver_that_may_come_later() {
        let (sender, _receiver) = pair();
        let data = vec![0; MOST_UNAWAITED_BYTES + 1];
        assert!(!sender.lends(POINT_TO_POINT, data.as_ptr(), MOST_UNAWAITED_BYTES));
        assert!(sender.lends(POINT_TO_POINT, data.as_ptr(), data.len()));
    }
}
