//! The sending half of a channel: what is under way on its ring, and what waits for credit.

use std::collections::VecDeque;

use super::layout::LINES;
use super::lending::Loan;
use super::ring::{BODY_WORDS, Writer};
use crate::Tag;

/// Payload bytes that a line carries itself: its body less the tag.
pub(super) const INLINE_BYTES: usize = (BODY_WORDS - 1) * 8;

/// The upper half of a line's header: flags, and the length of a payload in the line or a slot.
pub(super) const LAST: u32 = 1 << 31;
pub(super) const IN_SLOT: u32 = 1 << 30;
pub(super) const LENT: u32 = 1 << 29;
pub(super) const LEN_MASK: u32 = (1 << 24) - 1;

/// No slot.
pub(super) const NONE: u8 = u8::MAX;

#[derive(Debug)]
pub(super) struct SendChannel {
    pub(super) ring: Writer,
    /// Lines whose slots are back in the pool.
    pub(super) reaped: u32,
    /// The slot of each line under way.
    pub(super) slot_of_line: [u8; LINES],
    pub(super) slots_in_use: usize,
    pub(super) reserved: u8,
    pub(super) queue: VecDeque<Posted>,
    pub(super) posted_bytes: u64,
    pub(super) sent_bytes: u64,
    /// Lines from the oldest one that lends on, with their bytes: those count as sent when the
    /// peer has consumed the line, in order.
    unsettled: VecDeque<(u32, usize)>,
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
            reaped: 0,
            slot_of_line: [NONE; LINES],
            slots_in_use: 0,
            reserved: NONE,
            queue: VecDeque::with_capacity(8),
            posted_bytes: 0,
            sent_bytes: 0,
            unsettled: VecDeque::with_capacity(LINES),
        }
    }

    /// # Safety
    /// `data` must have `len` (at most `INLINE_BYTES`) readable bytes, and a line must be free.
    #[inline]
    pub(super) unsafe fn publish_inline(
        &mut self,
        tag: Tag,
        data: *const u8,
        len: usize,
        last: bool,
    ) {
        self.count(len);
        let meta = len as u32 | if last { LAST } else { 0 };
        self.ring.publish(meta, |body| {
            body[0] = pack(tag);
            // SAFETY: the body has INLINE_BYTES bytes behind the tag.
            unsafe { std::ptr::copy_nonoverlapping(data, body[1..].as_mut_ptr().cast(), len) };
        });
    }

    #[inline]
    pub(super) fn publish_slot(&mut self, tag: Tag, slot: u8, len: usize, last: bool) {
        self.count(len);
        self.slot_of_line[self.ring.next() as usize % LINES] = slot;
        let meta = len as u32 | IN_SLOT | if last { LAST } else { 0 };
        self.ring.publish(meta, |body| {
            body[0] = pack(tag);
            body[1] = u64::from(slot);
        });
    }

    pub(super) fn publish_loan(&mut self, tag: Tag, loan: Loan, len: usize, last: bool) {
        self.unsettled.push_back((self.ring.next(), len));
        let meta = LENT | if last { LAST } else { 0 };
        self.ring.publish(meta, |body| {
            body[0] = pack(tag);
            body[1] = u64::from(loan.id);
            body[2] = loan.offset;
            body[3] = len as u64;
        });
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
    fn count(&mut self, len: usize) {
        if self.unsettled.is_empty() {
            self.sent_bytes += len as u64;
        } else {
            self.unsettled.push_back((self.ring.next(), len));
        }
    }
}

#[inline]
fn pack(tag: Tag) -> u64 {
    u64::from(tag.digest) << 32 | u64::from(tag.sequence)
}

#[inline]
pub(super) fn unpack(word: u64) -> Tag {
    Tag { sequence: word as u32, digest: (word >> 32) as u32 }
}
