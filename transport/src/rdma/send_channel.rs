//! The sending half of a channel: what is posted, what is under way, and what the peer offers for it.

use std::collections::VecDeque;

use super::frame::Offer;
use crate::{Home, Tag};

#[derive(Debug, Default)]
pub(super) struct SendChannel {
    pub(super) queue: VecDeque<Piece>,
    pub(super) posted_bytes: u64,
    pub(super) sent_bytes: u64,
    /// Frames that are not known to have arrived, the oldest first, which has the number `first_frame`.
    /// The wire has the low bits of a number; here it is whole, since a completion may come long after its
    /// frame was forgotten.
    under_way: VecDeque<Frame>,
    first_frame: u64,
    /// How many of them count as sent already.
    counted: usize,
    /// How many the device still reads from the program's memory.
    read: usize,
    /// The slots that its slices are in and their numbers, in the order in which the peer releases them.
    pub(super) slots: VecDeque<(u8, u64)>,
    pub(super) reserved: Option<u8>,
    /// Number of the message in hand or next, wrapping, and how much of it has left.
    pub(super) message: u32,
    pub(super) message_bytes: u64,
    /// Number of the message that is being posted, which may be a later one, and how much of it has been.
    pub(super) posting: u32,
    pub(super) posting_bytes: u64,
    /// Numbers and lengths of messages that have not left whole, where the caller has said them.
    announced: VecDeque<(u32, u64)>,
    /// What the peer offers for it and later ones.
    pub(super) offers: VecDeque<Offer>,
    /// The offer that takes the rest of the message in hand.
    pub(super) direct: Option<Offer>,
}

/// A frame that is not known to have arrived.
#[derive(Clone, Copy, Debug)]
struct Frame {
    len: usize,
    /// The program may have its memory back.
    is_free: bool,
    has_arrived: bool,
}

/// Posted bytes of one message, not yet in a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) data: *const u8,
    pub(super) len: usize,
    pub(super) tag: Tag,
    pub(super) last: bool,
    /// Whose memory they are in.
    pub(super) home: Home,
}

/// Frames of a channel that may be under way, so that the receiver knows by their numbers which come first.
const WINDOW: usize = 100;

impl SendChannel {
    /// Whether no more frames may leave until some have arrived.
    pub(super) fn is_full(&self) -> bool {
        self.under_way.len() >= WINDOW
    }

    /// Queues bytes as the continuation of the channel's open message.
    pub(super) fn post(&mut self, piece: Piece) {
        self.count_posted(piece.len, piece.last);
        if piece.len == 0 && !piece.last {
            return;
        }
        match self.queue.back_mut() {
            Some(open)
                if !open.last
                    && open.tag == piece.tag
                    && open.home == piece.home
                    && (piece.len == 0 || open.data.wrapping_add(open.len) == piece.data) =>
            {
                open.len += piece.len;
                open.last = piece.last;
            }
            _ => self.queue.push_back(piece),
        }
    }

    pub(super) fn count_posted(&mut self, len: usize, last: bool) {
        self.posted_bytes += len as u64;
        self.posting_bytes += len as u64;
        if last {
            self.posting = self.posting.wrapping_add(1);
            self.posting_bytes = 0;
        }
    }

    /// Notes the length of the message that is about to be posted.
    pub(super) fn announce(&mut self, len: usize) {
        match self.announced.back_mut() {
            Some((message, bytes)) if *message == self.posting => *bytes = len as u64,
            _ => self.announced.push_back((self.posting, len as u64)),
        }
    }

    /// Length of the message in hand or next, where the caller has said it.
    fn announced_bytes(&self) -> Option<u64> {
        let announced = self.announced.front().filter(|announced| announced.0 == self.message);
        announced.map(|announced| announced.1)
    }

    /// Takes bytes off the front of the queue.
    pub(super) fn take_off(&mut self, len: usize) {
        if let Some(front) = self.queue.front_mut() {
            front.data = front.data.wrapping_add(len);
            front.len -= len;
            if front.len == 0 {
                self.queue.pop_front();
            }
        }
    }

    /// Counts a frame that leaves, and returns its number.
    pub(super) fn frame(&mut self, len: usize, is_free: bool, last: bool) -> u64 {
        let number = self.first_frame + self.under_way.len() as u64;
        self.under_way.push_back(Frame { len, is_free, has_arrived: false });
        self.read += usize::from(!is_free);
        self.count_sent();
        self.message_bytes += len as u64;
        if last {
            if self.announced_bytes().is_some() {
                self.announced.pop_front();
            }
            self.message = self.message.wrapping_add(1);
            self.message_bytes = 0;
            self.direct = None;
        }
        number
    }

    /// A frame has arrived. Returns whether the device still reads the program's memory for others.
    pub(super) fn arrived(&mut self, number: u64) -> bool {
        if let Some(frame) = self.of_number(number) {
            let was_read = !std::mem::replace(&mut frame.is_free, true);
            frame.has_arrived = true;
            self.read -= usize::from(was_read);
        }
        self.count_sent();
        self.forget_arrived();
        self.read > 0
    }

    /// The frame of a number, unless it was known to have arrived before.
    fn of_number(&mut self, number: u64) -> Option<&mut Frame> {
        self.under_way.get_mut(number.checked_sub(self.first_frame)? as usize)
    }

    /// The peer has released a frame. A completion may never be asked for that tells of its arrival; but
    /// where the device reads the program's memory, only that tells when it no longer does.
    pub(super) fn released(&mut self, number: u64) {
        if let Some(frame) = self.of_number(number).filter(|frame| frame.is_free) {
            frame.has_arrived = true;
            self.forget_arrived();
        }
    }

    fn forget_arrived(&mut self) {
        while self.under_way.front().is_some_and(|frame| frame.has_arrived) {
            self.under_way.pop_front();
            self.first_frame += 1;
            self.counted -= 1;
        }
    }

    /// Counts as sent what is in front and free.
    fn count_sent(&mut self) {
        while let Some(frame) = self.under_way.get(self.counted).filter(|frame| frame.is_free) {
            self.sent_bytes += frame.len as u64;
            self.counted += 1;
        }
    }

    /// Forgets what was offered for messages that have begun without it, or gone.
    pub(super) fn forget_past_offers(&mut self) {
        let message = self.message;
        while self
            .offers
            .front()
            .is_some_and(|offer| (offer.message.wrapping_sub(message) as i32) < 0)
        {
            self.offers.pop_front();
        }
    }

    /// Takes the offer that is for what is left of the message in hand, if there is one and it fits: one
    /// for another operation or of another length is for a call that the peer does not make.
    pub(super) fn take_offer(&mut self, tag: Tag) {
        self.forget_past_offers();
        if self.direct.is_some() || self.offers.is_empty() {
            return;
        }
        let message = self.message;
        if let Some(at) = self.offers.iter().position(|offer| offer.message == message)
            && let Some(offer) = self.offers.remove(at)
            && offer.tag == tag
            && Some(offer.len) == self.announced_bytes()
        {
            self.direct = Some(offer);
        }
    }
}
