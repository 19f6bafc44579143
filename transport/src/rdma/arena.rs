//! The memory of a link that its queue pairs use: slots and lines, once to receive and once to send, in the
//! same places on both sides.
//!
//! ```text
//! | slot 0: header, data | slot 1 | ... | line 0 | line 1 | ... | closed 0 | ... |   and, to send from:
//! | bounce 0 | ... |
//! ```

use std::io;
use std::sync::Arc;

use super::frame::{HEADER_BYTES, Header, add_checksums};
use super::{MAX_QUEUES, SLICE_BYTES};
use crate::credit::{LANE_SLOTS, POINT_TO_POINT_SLOTS};
use crate::memory::SharedMemory;

/// Slices that a side of a link may have under way, sent and not yet released.
pub(super) const SLOTS: usize = LANE_SLOTS + POINT_TO_POINT_SLOTS;

/// Headers without a slice that it may have under way.
pub(super) const LINES: usize = 32;

/// Buffers for direct writes from memory that is not registered.
pub(super) const BOUNCES: usize = 4;

const SLOT_BYTES: usize = HEADER_BYTES + SLICE_BYTES;
const LINES_AT: usize = SLOTS * SLOT_BYTES;
const CLOSED_AT: usize = LINES_AT + LINES * HEADER_BYTES;
pub(super) const LANDING_BYTES: usize = CLOSED_AT + MAX_QUEUES * HEADER_BYTES;
const STAGING_BYTES: usize = LANDING_BYTES + BOUNCES * SLICE_BYTES;

/// Where a header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In front of a slot's data.
    Slot(u8),
    /// In a line.
    Line(u8),
    /// In the line that is kept for the end of a queue pair.
    Closed(u8),
}

impl Place {
    /// Its offset in the memory of either side.
    pub(super) fn offset(self) -> usize {
        match self {
            Place::Slot(slot) => usize::from(slot) * SLOT_BYTES,
            Place::Line(line) => LINES_AT + usize::from(line) * HEADER_BYTES,
            Place::Closed(queue) => CLOSED_AT + usize::from(queue) * HEADER_BYTES,
        }
    }

    /// Whether there is such a place.
    pub(super) fn exists(self) -> bool {
        match self {
            Place::Slot(slot) => usize::from(slot) < SLOTS,
            Place::Line(line) => usize::from(line) < LINES,
            Place::Closed(queue) => usize::from(queue) < MAX_QUEUES,
        }
    }
}

/// Memory with places: the peer writes to one of a side's arenas, and that side writes from the other.
#[derive(Debug)]
pub(super) struct Arena(Arc<SharedMemory>);

impl Arena {
    /// Where the peer writes.
    pub(super) fn landing() -> io::Result<Arena> {
        SharedMemory::create(LANDING_BYTES).map(|memory| Arena(Arc::new(memory)))
    }

    /// What this side writes from.
    pub(super) fn staging() -> io::Result<Arena> {
        SharedMemory::create(STAGING_BYTES).map(|memory| Arena(Arc::new(memory)))
    }

    pub(super) fn mapping(&self) -> &Arc<SharedMemory> {
        &self.0
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.0.start()
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.0.len_bytes()
    }

    fn at(&self, place: Place) -> *mut u8 {
        debug_assert!(place.exists());
        self.start().wrapping_add(place.offset())
    }

    /// Where a slot's data begins.
    pub(super) fn data(&self, slot: u8) -> *mut u8 {
        self.at(Place::Slot(slot)).wrapping_add(HEADER_BYTES)
    }

    /// A buffer for direct writes, of an arena to send from.
    pub(super) fn bounce(&self, bounce: u8) -> *mut u8 {
        debug_assert!(usize::from(bounce) < BOUNCES && self.len_bytes() == STAGING_BYTES);
        self.start().wrapping_add(LANDING_BYTES + usize::from(bounce) * SLICE_BYTES)
    }

    /// Writes a header to a place of this side's own, from which nothing is under way; with checksums if that of
    /// the payload is given.
    pub(super) fn write_header(&mut self, place: Place, header: &Header, payload: Option<u32>) {
        let mut bytes = header.encode();
        if let Some(payload) = payload {
            add_checksums(&mut bytes, payload);
        }
        // SAFETY: the place lies in the arena, and only this side writes there.
        unsafe { self.at(place).cast::<[u8; HEADER_BYTES]>().write(bytes) };
    }

    /// Reads a header that the peer has written, once: whatever becomes of the memory then, what was
    /// checked is what is used.
    pub(super) fn read_header(&self, place: Place) -> [u8; HEADER_BYTES] {
        // SAFETY: the place lies in the arena.
        unsafe { self.at(place).cast::<[u8; HEADER_BYTES]>().read_volatile() }
    }
}
