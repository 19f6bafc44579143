//! What a link's shared memory looks like.
//!
//! Each side owns one *half*: a memory file that it alone can write and the peer maps for reading.
//! In it are what the side sends (lines and slots) and how far it has consumed what the peer sends.
//! A process that has been declared dead can therefore change nothing but its own half.

use super::primitive::AtomicU32;
use super::ring::{Consumed, Line};
use crate::CHANNELS;

/// Lines of a channel, and so messages under way on it.
pub(super) const LINES: usize = 16;

/// Bytes of a slot. 64 to 128 KiB was best on a 2-core machine; with 4 to 16 KiB all-reduce takes
/// twice as long.
pub(super) const SLOT_BYTES: usize = 64 << 10;

/// Slots of a link and direction; their numbers fit a 32-bit set.
pub(super) const SLOTS: usize = 32;

/// It does not sleep.
pub(super) const AWAKE: u32 = 0;

/// It sleeps until something is published for it.
pub(super) const PARKED: u32 = 1;

/// It sleeps until something is published for it, or something that it published was consumed.
pub(super) const PARKED_FOR_ROOM: u32 = 2;

/// What the owner says about itself.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct State {
    /// Whether the owner sleeps, and when it wants a byte on the socket: [`AWAKE`], [`PARKED`] or
    /// [`PARKED_FOR_ROOM`].
    pub(super) parked: AtomicU32,
    /// The owner has said goodbye and will publish nothing more; what it offered is withdrawn.
    pub(super) closed: AtomicU32,
    /// The owner is writing to memory that the peer has offered.
    pub(super) writing: AtomicU32,
}

/// What one side writes.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(super) struct Half {
    /// Random number that proves to the peer that this is one memory.
    pub(super) nonce: std::sync::atomic::AtomicU64,
    pub(super) state: State,
    pub(super) consumed: [Consumed; CHANNELS],
    pub(super) lines: [[Line; LINES]; CHANNELS],
    pub(super) slots: Slots,
}

/// The slots, on pages of their own.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(super) struct Slots(pub(super) [[u8; SLOT_BYTES]; SLOTS]);

/// Bytes of the memory file.
pub(super) const HALF_BYTES: usize = size_of::<Half>();
