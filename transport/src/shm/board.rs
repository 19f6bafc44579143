//! A board: where a rank publishes a small message once for all peers of its host, instead of
//! sending it to each.
//!
//! Only for exchanges in which every rank gives one message to all others and takes one from each.
//! Exchanges are numbered, and the board has two places, used in turn. A place is written again two
//! exchanges later; by then this rank has taken part in the exchange between, for which every peer
//! has published, which it does only after it has read everything of the one before. So nobody reads
//! a place that is being written, without anyone's saying when he has read it.

use super::primitive::{AtomicU32, Ordering, UnsafeCell};

/// Bytes of a message at most.
pub const BOARD_BYTES: usize = if cfg!(loom) { 16 } else { 4096 };

/// What is published beside the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Label {
    pub(super) len: u32,
    pub(super) sequence: u32,
    pub(super) digest: u32,
}

/// Bytes that lie beside the flag and the label, in one cache line.
const INLINE_BYTES: usize = 48;

/// One message.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Place {
    /// Stamp of the exchange, stored last; 0 before the first.
    stamp: AtomicU32,
    content: UnsafeCell<Content>,
}

#[derive(Debug)]
#[repr(C)]
struct Content {
    label: Label,
    inline: [u8; INLINE_BYTES],
    /// A message that is too long for the first line begins at the second, so that vectors lie
    /// within lines.
    bytes: [u8; BOARD_BYTES],
    /// Of all that was published, where that is checked; else it is never looked at.
    checksum: u32,
}

/// The stamp of an exchange, from 1 on. Those are three apart: no change of one bit makes one of another then, or
/// of the 0 that is there first.
#[inline]
fn stamp(number: u32) -> u32 {
    number.wrapping_mul(3)
}

/// Where the bytes of a message are.
fn bytes_of(content: *mut Content, len: u32) -> *mut u8 {
    // SAFETY: both are fields of a valid content.
    unsafe {
        if len as usize <= INLINE_BYTES {
            (&raw mut (*content).inline).cast()
        } else {
            (&raw mut (*content).bytes).cast()
        }
    }
}

/// A rank's messages.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(super) struct Places([Place; 2]);

impl Places {
    /// The place of an exchange.
    #[inline]
    fn of(&self, number: u32) -> &Place {
        &self.0[(number & 1) as usize]
    }

    /// Publishes the first `label.len` bytes from `data` for exchange `number`. Returns where they
    /// are on the board. `checksum` lies beside them, if there is one.
    ///
    /// # Safety
    /// The caller owns the board, the bytes are readable and fit, and every peer has published for
    /// the exchange before.
    #[inline]
    pub(super) unsafe fn publish(
        &self,
        number: u32,
        label: Label,
        data: *const u8,
        checksum: Option<u32>,
    ) -> *const u8 {
        let place = self.of(number);
        let published = place.content.with_mut(|content| {
            // SAFETY: nobody reads the place now, as the module's description shows, and the caller
            // promises the rest.
            unsafe {
                (*content).label = label;
                if let Some(checksum) = checksum {
                    (*content).checksum = checksum;
                }
                let bytes = bytes_of(content, label.len);
                bytes.copy_from_nonoverlapping(data, label.len as usize);
                bytes.cast_const()
            }
        });
        place.stamp.store(stamp(number), Ordering::Release);
        published
    }

    /// The message of exchange `number`, if it is there: its label and its bytes, which stay until
    /// this rank publishes for the next exchange.
    #[inline]
    pub(super) fn read(&self, number: u32) -> Option<(Label, *const u8)> {
        let place = self.of(number);
        if place.stamp.load(Ordering::Acquire) != stamp(number) {
            return None;
        }
        // SAFETY: as of `checksum`.
        Some(place.content.with(|content| unsafe {
            let label = (*content).label;
            (label, bytes_of(content.cast_mut(), label.len).cast_const())
        }))
    }

    /// What lies beside the message of exchange `number`, which [`Places::read`] has found.
    pub(super) fn checksum(&self, number: u32) -> u32 {
        // SAFETY: the owner has finished writing, and writes here again only when this rank has
        // published for the next exchange.
        self.of(number).content.with(|content| unsafe { (*content).checksum })
    }

    /// Whether the place of an exchange has a stamp that its owner gave it: its own, or what was there before.
    pub(super) fn has_known_stamp(&self, number: u32) -> bool {
        let found = self.of(number).stamp.load(Ordering::Acquire);
        let is_known = found == stamp(number) || found == stamp(number.wrapping_sub(2));
        // The first ones find nothing there, or the last ones, since numbers begin anew at 2.
        is_known || number < 4 && (found == 0 || found == stamp(u32::MAX - 3 + number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        let place = || Place {
            stamp: AtomicU32::new(0),
            content: UnsafeCell::new(Content {
                label: Label { len: 0, sequence: 0, digest: 0 },
                inline: [0; INLINE_BYTES],
                bytes: [0; BOARD_BYTES],
                checksum: 0,
            }),
        };
        Places([place(), place()])
    }

    struct Boards(Vec<Places>);
    // SAFETY: each board is written by one thread and read by the others as the protocol allows.
    unsafe impl Send for Boards {}
    // SAFETY: as above.
    unsafe impl Sync for Boards {}

    fn exchange(boards: &Boards, rank: usize, number: u32, wait: &impl Fn()) {
        let mine = [(16 * number) as u8 + rank as u8; 4];
        let label = Label { len: 4, sequence: number, digest: 7 };
        // SAFETY: the last exchange is complete.
        unsafe { boards.0[rank].publish(number, label, mine.as_ptr(), None) };
        for (peer, board) in boards.0.iter().enumerate().filter(|(peer, _)| *peer != rank) {
            let (theirs, bytes) = loop {
                match board.read(number) {
                    Some(found) => break found,
                    None => wait(),
                }
            };
            assert_eq!(theirs, label);
            // SAFETY: the board has as many bytes.
            let bytes = unsafe { *bytes.cast::<[u8; 4]>() };
            assert_eq!(bytes, [(16 * number) as u8 + peer as u8; 4]);
        }
    }

    #[cfg(loom)]
    #[test]
    fn every_interleaving_of_three_exchanges_is_whole() {
        loom::model(|| {
            let boards = loom::sync::Arc::new(Boards(vec![places(), places()]));
            let theirs = boards.clone();
            let other = loom::thread::spawn(move || {
                (1..=3).for_each(|n| exchange(&theirs, 1, n, &loom::thread::yield_now));
            });
            (1..=3).for_each(|n| exchange(&boards, 0, n, &loom::thread::yield_now));
            other.join().unwrap();
        });
    }

    #[cfg(not(loom))]
    #[test]
    fn three_threads_exchange_many_times() {
        let boards = Boards(vec![places(), places(), places()]);
        std::thread::scope(|scope| {
            for rank in 0..3 {
                let boards = &boards;
                scope.spawn(move || {
                    (1..=20_000).for_each(|n| exchange(boards, rank, n, &std::thread::yield_now));
                });
            }
        });
    }

    #[cfg(not(loom))]
    #[test]
    fn no_bit_makes_a_stamp_of_another() {
        let places = places();
        let label = Label { len: 0, sequence: 0, digest: 0 };
        for number in [1, 2, 3, 4, 5, 6, u32::MAX - 1, u32::MAX, 2, 3, 4] {
            if number == u32::MAX - 1 {
                // As if all between had come.
                places.0[0].stamp.store(stamp(number - 2), Ordering::Relaxed);
                places.0[1].stamp.store(stamp(number - 1), Ordering::Relaxed);
            }
            let flipped = |bit: u32| {
                let stamp = &places.of(number).stamp;
                stamp.fetch_xor(1 << bit, Ordering::Relaxed);
                let seen = (places.has_known_stamp(number), places.read(number).is_some());
                stamp.fetch_xor(1 << bit, Ordering::Relaxed);
                seen
            };
            assert!(places.has_known_stamp(number) && places.read(number).is_none());
            assert!((0..32).all(|bit| flipped(bit) == (false, false)), "before {number}");
            // SAFETY: there are no bytes, and nobody reads.
            unsafe { places.publish(number, label, [].as_ptr(), None) };
            assert!(places.has_known_stamp(number) && places.read(number).is_some());
            assert!((0..32).all(|bit| flipped(bit) == (false, false)), "of {number}");
        }
    }

    #[cfg(not(loom))]
    #[test]
    fn a_tiny_message_lies_beside_its_flag() {
        let content = std::mem::offset_of!(Place, content);
        assert_eq!(content + std::mem::offset_of!(Content, inline) + INLINE_BYTES, 64);
        assert_eq!(content + std::mem::offset_of!(Content, bytes), 64);
        assert_eq!(size_of::<Places>() % 4096, 0);
    }
}
