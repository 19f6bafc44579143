//! Which slots of a link are free, and which one a piece goes to.

use super::layout::{SLOT_BYTES, SLOTS};
use super::writer::Way;

/// Pieces begin at multiples of so many bytes: cache lines.
const LINE_BYTES: usize = 64;

/// Room in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) slot: u8,
    /// First byte in the slot.
    pub(super) offset: usize,
}

impl Room {
    /// From there to the end of the slot.
    pub(super) fn len(self) -> usize {
        SLOT_BYTES - self.offset
    }

    /// This room, or the whole slot if this is too short.
    pub(super) fn for_at_least(self, len: usize) -> Room {
        if self.len() < len.max(1) { Room { offset: 0, ..self } } else { self }
    }
}

/// The free slots of a link.
#[derive(Debug)]
pub(super) struct SlotPool {
    /// A bit each.
    free: u32,
    /// Where a piece that goes round all slots goes next.
    next: u32,
    /// Where the latest piece in each slot ends.
    ends: Box<[u32; SLOTS]>,
    /// Slots that are not new any more: a bit each.
    known: u32,
}

impl SlotPool {
    pub(super) fn new() -> SlotPool {
        SlotPool { free: u32::MAX, next: 0, ends: Box::new([0; SLOTS]), known: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free == 0
    }

    /// Room for a piece of `len` bytes, if a slot has as many. There must be a free slot.
    #[inline]
    pub(super) fn take(&mut self, way: Way, len: usize) -> Room {
        debug_assert!(!self.is_empty());
        let room = if way.goes_round() {
            let behind = self.free >> self.next << self.next;
            let slot = if behind == 0 { self.free } else { behind }.trailing_zeros() as u8;
            self.next = (u32::from(slot) + 1) % u32::BITS;
            let end = (self.ends[slot as usize] as usize).next_multiple_of(LINE_BYTES);
            Room { slot, offset: if end + len.max(1) <= SLOT_BYTES { end } else { 0 } }
        } else {
            // The lowest ones are always the same ones.
            Room { slot: self.free.trailing_zeros() as u8, offset: 0 }
        };
        self.free &= !(1 << room.slot);
        room
    }

    /// The pieces that follow begin behind what was written to the room.
    #[inline]
    pub(super) fn fill(&mut self, room: Room, len: usize) {
        self.ends[room.slot as usize] = (room.offset + len) as u32;
    }

    #[inline]
    pub(super) fn give_back(&mut self, slot: u8) {
        self.free |= 1 << slot;
    }

    /// Whether this is asked for the slot for the first time.
    #[inline]
    pub(super) fn is_new(&mut self, slot: u8) -> bool {
        let is_new = self.known & 1 << slot == 0;
        self.known |= 1 << slot;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_round_all_slots_and_through_each_of_them() {
        const LEN: usize = SLOT_BYTES / 2 - 100;
        let mut pool = SlotPool::new();
        for offset in [0, (LEN).next_multiple_of(LINE_BYTES), 0] {
            for slot in 0..SLOTS as u8 {
                let room = pool.take(Way::AllSlots, LEN);
                assert_eq!(room, Room { slot, offset });
                assert!(room.len() >= LEN);
                pool.fill(room, LEN);
                pool.give_back(slot);
            }
        }
    }

    #[test]
    fn what_is_taken_is_not_given_twice() {
        let mut pool = SlotPool::new();
        let ways = [Way::AllSlots, Way::SameSlot, Way::PastCache];
        let mut taken = 0_u32;
        for turn in 0..SLOTS {
            assert!(!pool.is_empty());
            let room = pool.take(ways[turn % ways.len()], SLOT_BYTES);
            assert_eq!((taken & 1 << room.slot, room.len()), (0, SLOT_BYTES));
            taken |= 1 << room.slot;
        }
        assert!(pool.is_empty());
        pool.give_back(31);
        assert_eq!(pool.take(Way::AllSlots, 1).slot, 31);
    }

    #[test]
    fn the_same_slot_is_used_again() {
        let mut pool = SlotPool::new();
        let first = pool.take(Way::SameSlot, 100);
        pool.fill(first, 100);
        pool.give_back(first.slot);
        assert_eq!(pool.take(Way::PastCache, 100), first);
        assert!(pool.is_new(first.slot) && !pool.is_new(first.slot));
    }
}
