//! The sending half of a channel: what is under way on its ring, and what waits for credit.

use std::collections::VecDeque;

use super::devices::DevicePlace;
use super::layout::LINES;
use super::lending::Place;
use super::ring::{BODY_WORDS, Body, Writer};
use super::slots::Room;
use crate::Tag;
use crate::checksum::{self, CHECKSUM_BYTES};

/// Payload bytes that a line carries itself: its body less the tag.
pub(super) const INLINE_BYTES: usize = (BODY_WORDS - 1) * 8;

/// The same where the line's last word has checksums.
pub(super) const CHECKED_INLINE_BYTES: usize = INLINE_BYTES - 8;

/// The upper half of a line's header: flags, and the length of a payload in the line or a slot.
pub(super) const LAST: u32 = 1 << 31;
pub(super) const IN_SLOT: u32 = 1 << 30;
pub(super) const LENT: u32 = 1 << 29;
/// The line carries no payload: the writer of this line offers memory to its reader.
pub(super) const OFFER: u32 = 1 << 28;
/// The payload lies where the reader of this line has offered it room.
pub(super) const WRITTEN: u32 = 1 << 27;
/// Beside [`LENT`]: what is lent is memory of a GPU.
pub(super) const OF_GPU: u32 = 1 << 26;
pub(super) const LEN_MASK: u32 = (1 << 24) - 1;

/// No slot.
pub(super) const NONE: u8 = u8::MAX;

#[derive(Debug)]
pub(super) struct SendChannel {
    pub(super) ring: Writer,
    /// Lines carry checksums.
    pub(super) checks: bool,
    /// Lines whose slots are back in the pool.
    pub(super) reaped: u32,
    /// The slot of each line under way.
    pub(super) slot_of_line: [u8; LINES],
    pub(super) slots_in_use: usize,
    pub(super) reserved: Option<Room>,
    pub(super) queue: VecDeque<Posted>,
    pub(super) posted_bytes: u64,
    pub(super) sent_bytes: u64,
    /// Lines from the oldest one that lends on, with their bytes: those count as sent when the
    /// peer has consumed the line, in order.
    unsettled: VecDeque<(u32, usize)>,
    /// Number of the message that the next line belongs to, wrapping.
    pub(super) message: u32,
    /// Lines of that message have been published.
    pub(super) is_open: bool,
    /// What the peer offers for this message and later ones, in their order.
    pub(super) offers: VecDeque<Offer>,
    /// The offer that takes the message in hand.
    pub(super) direct: Option<Direct>,
}

/// Room for a message in the reader's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// Number of the message on its channel, wrapping.
    pub(super) message: u32,
    /// The operation that the reader expects it from.
    pub(super) tag: Tag,
    pub(super) place: Place,
    pub(super) len: u64,
}

/// A message on its way into an offer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Direct {
    pub(super) offer: Offer,
    /// Where the offer is mapped, if it is.
    pub(super) mapped: Option<*mut u8>,
    /// Bytes that are there.
    pub(super) done: usize,
}

/// Bytes of the caller that wait for credit.
#[derive(Debug)]
pub(super) struct Posted {
    pub(super) data: *const u8,
    pub(super) len: usize,
    pub(super) last: bool,
    pub(super) tag: Tag,
}

impl SendChannel {
    pub(super) fn new(ring: Writer) -> SendChannel {
        SendChannel {
            ring,
            checks: false,
            reaped: 0,
            slot_of_line: [NONE; LINES],
            slots_in_use: 0,
            reserved: None,
            queue: VecDeque::with_capacity(8),
            posted_bytes: 0,
            sent_bytes: 0,
            unsettled: VecDeque::with_capacity(LINES),
            message: 0,
            is_open: false,
            offers: VecDeque::with_capacity(LINES),
            direct: None,
        }
    }

    /// # Safety
    /// `data` must have `len` readable bytes, at most as many as a line holds, and a line must be free.
    #[inline]
    pub(super) unsafe fn publish_inline(
        &mut self,
        tag: Tag,
        data: *const u8,
        len: usize,
        last: bool,
    ) {
        self.count(len);
        self.continue_message(last);
        let meta = len as u32 | if last { LAST } else { 0 };
        self.publish(meta, 0, |body| {
            body[0] = pack(tag);
            // SAFETY: the body has INLINE_BYTES bytes behind the tag.
            unsafe { std::ptr::copy_nonoverlapping(data, body[1..].as_mut_ptr().cast(), len) };
        });
    }

    /// `checksum` is that of the payload, where frames are checked.
    #[inline]
    pub(super) fn publish_slot(
        &mut self,
        tag: Tag,
        room: Room,
        len: usize,
        last: bool,
        checksum: u32,
    ) {
        self.count(len);
        self.continue_message(last);
        self.slot_of_line[self.ring.next() as usize % LINES] = room.slot;
        let meta = len as u32 | IN_SLOT | if last { LAST } else { 0 };
        self.publish(meta, checksum, |body| {
            body[0] = pack(tag);
            body[1] = u64::from(room.slot) | (room.offset as u64) << 32;
        });
    }

    pub(super) fn publish_loan(&mut self, tag: Tag, place: Place, len: usize, last: bool) {
        self.unsettled.push_back((self.ring.next(), len));
        self.continue_message(last);
        let meta = LENT | if last { LAST } else { 0 };
        self.ring.publish(meta, |body| {
            body[0] = pack(tag);
            body[1] = u64::from(place.id);
            body[2] = place.offset;
            body[3] = len as u64;
        });
    }

    pub(super) fn publish_device_loan(
        &mut self,
        tag: Tag,
        place: DevicePlace,
        len: usize,
        last: bool,
    ) {
        self.unsettled.push_back((self.ring.next(), len));
        self.continue_message(last);
        let meta = LENT | OF_GPU | if last { LAST } else { 0 };
        self.ring.publish(meta, |body| {
            body[0] = pack(tag);
            body[1] = u64::from(place.id);
            body[2] = place.offset;
            body[3] = len as u64;
        });
    }

    /// Offers the peer room for a message of its.
    pub(super) fn publish_offer(&mut self, offer: Offer) {
        self.ring.publish(OFFER, |body| {
            body[0] = pack(offer.tag);
            body[1] = u64::from(offer.place.id) | u64::from(offer.message) << 32;
            body[2] = offer.place.offset;
            body[3] = offer.len;
        });
    }

    /// The message in hand lies where the peer has offered it room.
    pub(super) fn publish_written(&mut self, tag: Tag, len: usize) {
        self.continue_message(true);
        self.ring.publish(WRITTEN | LAST, |body| {
            body[0] = pack(tag);
            body[1] = len as u64;
        });
    }

    /// Publishes a line, with its checksum where frames are checked.
    #[inline]
    fn publish(&mut self, meta: u32, payload: u32, write: impl FnOnce(&mut Body)) {
        let (checks, number) = (self.checks, self.ring.next());
        self.ring.publish(meta, |body| {
            write(body);
            if checks {
                body[BODY_WORDS - 1] = u64::from(payload) << 32;
                body[BODY_WORDS - 1] |= u64::from(line_checksum(number, meta, body));
            }
        });
    }

    /// A line of the message in hand is about to be published, its last one or not.
    #[inline]
    fn continue_message(&mut self, last: bool) {
        self.is_open = !last;
        self.message = self.message.wrapping_add(u32::from(last));
    }

    /// Drops the offers for messages that have gone another way.
    #[inline]
    pub(super) fn forget_past_offers(&mut self) {
        let message = self.message;
        let is_past = |offer: &Offer| message.wrapping_sub(offer.message) as i32 > 0;
        while self.offers.front().is_some_and(is_past) {
            self.offers.pop_front();
        }
    }

    /// `part` bytes of the oldest posted piece have left.
    pub(super) fn advance_queue(&mut self, part: usize) {
        if let Some(front) = self.queue.front_mut() {
            front.data = front.data.wrapping_add(part);
            front.len -= part;
            if front.len == 0 {
                self.queue.pop_front();
            }
        }
    }

    /// Counts what the peer has consumed of loans and of what followed them. Returns whether
    /// something is still lent.
    pub(super) fn settle(&mut self) -> bool {
        while let Some(&(line, len)) = self.unsettled.front() {
            let consumed = self.reaped.wrapping_sub(line) as i32 > 0;
            if !consumed {
                return true;
            }
            self.sent_bytes += len as u64;
            self.unsettled.pop_front();
        }
        false
    }

    /// Bytes of the next line, which the link does not read from the caller any more.
    #[inline]
    pub(super) fn count(&mut self, len: usize) {
        if self.unsettled.is_empty() {
            self.sent_bytes += len as u64;
        } else {
            self.unsettled.push_back((self.ring.next(), len));
        }
    }
}

impl Offer {
    /// The offer that a line carries.
    pub(super) fn of(body: &Body) -> Offer {
        Offer {
            message: (body[1] >> 32) as u32,
            tag: unpack(body[0]),
            place: Place { id: body[1] as u32, offset: body[2] },
            len: body[3],
        }
    }
}

/// The checksum of a line and its number. It is itself in the lower half of the last word, and that of a payload
/// in a slot in the upper one.
#[inline]
pub(super) fn line_checksum(number: u32, meta: u32, body: &Body) -> u32 {
    let mut bytes = [0; 8 * (1 + BODY_WORDS)];
    let (header, rest) = bytes.split_at_mut(8);
    header.copy_from_slice(&(u64::from(meta) << 32 | u64::from(number)).to_le_bytes());
    for (bytes, word) in rest.chunks_exact_mut(8).zip(body) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let own = rest.len() - 8;
    rest[own..own + CHECKSUM_BYTES].fill(0);
    checksum::of(&bytes)
}

#[inline]
fn pack(tag: Tag) -> u64 {
    u64::from(tag.digest) << 32 | u64::from(tag.sequence)
}

#[inline]
pub(super) fn unpack(word: u64) -> Tag {
    Tag { sequence: word as u32, digest: (word >> 32) as u32 }
}
