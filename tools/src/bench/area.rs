//! The buffers of a call: with a guard behind them, and lent to a call that owns them while it runs.

use std::ops::{Deref, DerefMut};

use ringtree::{Communicator, Error, Memory};

use super::gpu::{DeviceArea, Gpu};
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
    /// Memory of a GPU, and what it held when it was last copied.
    Device(DeviceArea<T>),
}

impl<T: Patterned> Area<T> {
    /// Room for `count` elements and the guard.
    pub fn new(
        communicator: &Communicator,
        memory: options::Memory,
        gpu: Option<&Gpu>,
        count: usize,
    ) -> Result<Area<T>, Error> {
        let count = count + GUARD;
        if let Some(gpu) = gpu {
            return Ok(Area::Device(DeviceArea::new(communicator, gpu, count)?));
        }
        match memory {
            options::Memory::Plain | options::Memory::Device => {
                let memory = vec![T::default(); count + ALIGNMENT_BYTES / size_of::<T>()];
                let start = memory.as_ptr().align_offset(ALIGNMENT_BYTES);
                Ok(Area::Plain { memory, start })
            }
            options::Memory::Registered => Ok(Area::Registered(communicator.alloc(count)?)),
        }
    }

    /// Has the GPU, if it is of one, hold the first `len` elements.
    pub fn upload(&mut self, len: usize) -> Result<(), Error> {
        match self {
            Area::Device(area) => area.upload(len),
            Area::Plain { .. } | Area::Registered(_) => Ok(()),
        }
    }

    /// Sees what the GPU, if it is of one, has for the first `len` elements.
    pub fn download(&mut self, len: usize) -> Result<(), Error> {
        match self {
            Area::Device(area) => area.download(len),
            Area::Plain { .. } | Area::Registered(_) => Ok(()),
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
            Area::Device(area) => &area.host,
        }
    }
}

impl<T: Patterned> DerefMut for Area<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Area::Plain { memory, start } => &mut memory[*start..],
            Area::Registered(memory) => memory,
            Area::Device(area) => &mut area.host,
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
