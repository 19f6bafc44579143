//! Memory that the library allocates, so that peers of the same host can map it.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use ringtree_transport::memory::SharedMemory;

use crate::Element;

/// A zeroed buffer of `T` in memory that can be shared. Use it as a slice.
pub struct Memory<T> {
    memory: SharedMemory,
    count: usize,
    element: PhantomData<T>,
}

impl<T: Element> Memory<T> {
    pub(crate) fn new(count: usize) -> std::io::Result<Memory<T>> {
        // A mapping cannot be empty.
        let memory = SharedMemory::create((count * size_of::<T>()).max(1))?;
        Ok(Memory { memory, count, element: PhantomData })
    }
}

impl<T: Element> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is aligned to a page, has `count` elements, and zero bytes are a
        // value of every element type.
        unsafe { std::slice::from_raw_parts(self.memory.start().cast(), self.count) }
    }
}

impl<T: Element> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().cast(), self.count) }
    }
}

impl<T: Element> AsMut<[T]> for Memory<T> {
    fn as_mut(&mut self) -> &mut [T] {
        self
    }
}

impl<T> fmt::Debug for Memory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("count", &self.count).finish_non_exhaustive()
    }
}
