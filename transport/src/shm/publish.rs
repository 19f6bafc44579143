//! A rank's own board, and the boards of its peers.

use std::io;
use std::sync::Arc;

use super::ShmLink;
use super::board::{BOARD_BYTES, Label, Places};
use crate::checksum::{self, Damage};
use crate::memory::SharedMemory;
use crate::{Arrival, Home, LinkError, Tag};

/// Bytes of a board's memory file.
pub(super) const BOARD_FILE_BYTES: usize = size_of::<Places>();

/// Looks in a row, which together take little beside handing a processor over.
const QUICK_LOOKS: u32 = if cfg!(loom) { 1 } else { 32 };

/// What one rank of a communicator publishes for all others: one message of at most
/// [`BOARD_BYTES`] an exchange. Peers to whom no shared memory leads get the message by
/// [`Link::post`](crate::Link::post) from here.
#[derive(Debug)]
pub struct Board {
    memory: Arc<SharedMemory>,
    /// Number of the last exchange.
    number: u32,
    /// Sequence number of its operation.
    sequence: u32,
    /// What is published has a checksum.
    checks: bool,
}

/// A message that was published.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// Number of the exchange on the boards.
    pub number: u32,
    /// Where the message is until the next exchange but one.
    pub data: *const u8,
    /// What this rank did before was an exchange, too, of the operation before or of this one. It is
    /// complete, so that all peers were in it and have been in nothing else since.
    pub is_next: bool,
}

impl Board {
    /// An empty board.
    ///
    /// # Errors
    /// Memory or descriptors have run out.
    pub fn new() -> io::Result<Board> {
        Ok(Board {
            memory: Arc::new(SharedMemory::create(BOARD_FILE_BYTES)?),
            number: 0,
            sequence: 0,
            checks: false,
        })
    }

    /// The board with a checksum of all that is published from now on: for links that have them.
    #[must_use]
    pub fn with_checksums(self) -> Board {
        Board { checks: true, ..self }
    }

    /// The memory, for the links that hand it to the peers.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// Publishes a message for the communicator's next exchange.
    ///
    /// # Panics
    /// If the message is longer than [`BOARD_BYTES`].
    ///
    /// # Safety
    /// `len` bytes from `data` must be readable, and the exchange before must be complete: this rank
    /// has seen the messages of all others.
    #[inline]
    pub unsafe fn publish(&mut self, tag: Tag, data: *const u8, len: usize) -> Published {
        assert!(len <= BOARD_BYTES);
        let is_next = self.number > 0 && tag.sequence.wrapping_sub(self.sequence) <= 1;
        self.sequence = tag.sequence;
        // 0 is what an empty board says.
        self.number = self.number.checked_add(1).unwrap_or(2);
        let label = Label { len: len as u32, sequence: tag.sequence, digest: tag.digest };
        // SAFETY: the memory is a board that this rank alone writes, and the caller promises the
        // rest.
        let data = unsafe {
            let checksum = self.checks.then(|| checksum_of(self.number, label, data));
            places(&self.memory).publish(self.number, label, data, checksum)
        };
        Published { number: self.number, data, is_next }
    }
}

impl ShmLink {
    /// Wakes a peer that waits for what this rank has published.
    #[inline]
    pub(crate) fn announce(&self) {
        self.wake_peer();
    }

    /// What the peer has published for an exchange, if it has, or does at once: whoever looks again only
    /// after all else that a wait takes care of sees it later by as much.
    #[inline]
    pub(crate) fn published(&self, number: u32) -> Result<Option<Arrival>, LinkError> {
        let board = places(&self.board);
        let found = (0..QUICK_LOOKS).find_map(|_| board.read(number));
        if self.checks {
            self.check_board(board, number, found)?;
        }
        let Some((label, data)) = found else { return Ok(None) };
        let tag = Tag { sequence: label.sequence, digest: label.digest };
        // A damaged length must not lead out of the board; the executor refuses what is not as long
        // as the call.
        let len = (label.len as usize).min(BOARD_BYTES);
        Ok(Some(Arrival { data, len, last: true, tag, home: Home::Host }))
    }

    /// Whether the place of an exchange is as its owner has left it, be the message there yet or not.
    fn check_board(
        &self,
        board: &Places,
        number: u32,
        found: Option<(Label, *const u8)>,
    ) -> Result<(), LinkError> {
        let Some((label, data)) = found else {
            let is_whole = board.has_known_stamp(number);
            return if is_whole { Ok(()) } else { Err(self.corrupt(Damage::Header)) };
        };
        // SAFETY: a board has so many bytes there, which its owner leaves alone for now.
        let is_whole = label.len as usize <= BOARD_BYTES
            && unsafe { checksum_of(number, label, data) } == board.checksum(number);
        if is_whole {
            return Ok(());
        }
        let tag = Tag { sequence: label.sequence, digest: label.digest };
        Err(self.corrupt(Damage::Board { tag, len: label.len.into() }))
    }
}

/// The checksum of a message, of what is said about it and of its number.
///
/// # Safety
/// The label's length of bytes must be readable.
unsafe fn checksum_of(number: u32, label: Label, data: *const u8) -> u32 {
    // SAFETY: the caller's promise.
    let payload = unsafe { checksum::of_memory(data, label.len as usize) };
    let words = [number, label.len, label.sequence, label.digest, payload].map(u32::to_le_bytes);
    checksum::of(words.as_flattened())
}

fn places(memory: &SharedMemory) -> &Places {
    // SAFETY: the mapping is that long, aligned to a page, zero at first, and lives as long as the
    // borrow; the places' content is only reached by their own calls.
    unsafe { &*memory.start().cast::<Places>() }
}
