//! The buffers of a call: with a guard behind them, and lent to a call that owns them while it runs.

use std::ops::{Deref, DerefMut};

use ringtree::{Communicator, Error, Memory};

use super::options;
use super::pattern::Patterned;

/// Elements behind a buffer that no call may touch.
pub const GUARD: usize = 64;

/// Buffers begin at a multiple of this, as those of the other libraries' benchmarks do.
const ALIGNMENT_BYTES: usize = 4096;

/// A buffer with its guard.
pub enum Area<T> {
    /// Ordinary memory.
    Plain {
        /// What is allocated.
        memory: Vec<T>,
        /// Where the buffer begins.
        start: usize,
    },
    /// Memory of the library.
    Registered(Memory<T>),
}

impl<T: Patterned> Area<T> {
    /// Room for `count` elements and the guard.
    pub fn new(
        communicator: &Communicator,
        memory: options::Memory,
        count: usize,
    ) -> Result<Area<T>, Error> {
        let count = count + GUARD;
        match memory {
            options::Memory::Plain => {
                let memory = vec![T::default(); count + ALIGNMENT_BYTES / size_of::<T>()];
                let start = memory.as_ptr().align_offset(ALIGNMENT_BYTES);
                Ok(Area::Plain { memory, start })
            }
            options::Memory::Registered => Ok(Area::Registered(communicator.alloc(count)?)),
        }
    }

    /// The first `len` elements, for a call that owns them; in its place none.
    pub fn lend(&mut self, len: usize) -> Lent<T> {
        let nothing = Area::Plain { memory: Vec::new(), start: 0 };
        Lent { area: std::mem::replace(self, nothing), len }
    }
}

impl<T: Patterned> Deref for Area<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Area::Plain { memory, start } => &memory[*start..],
            Area::Registered(memory) => memory,
        }
    }
}

impl<T: Patterned> DerefMut for Area<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Area::Plain { memory, start } => &mut memory[*start..],
            Area::Registered(memory) => memory,
        }
    }
}

/// The part of an area that a call owns.
pub struct Lent<T> {
    /// All of it, to be taken back.
    pub area: Area<T>,
    len: usize,
}

impl<T: Patterned> AsRef<[T]> for Lent<T> {
    fn as_ref(&self) -> &[T] {
        &self.area[..self.len]
    }
}

impl<T: Patterned> AsMut<[T]> for Lent<T> {
    fn as_mut(&mut self) -> &mut [T] {
        &mut self.area[..self.len]
    }
}
