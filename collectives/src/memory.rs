//! Memory that the library allocates, so that peers of the same host can map it.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use ringtree_transport::memory::{Registration, SharedMemory};

use crate::Element;

/// A buffer of `T` in memory that peers of the same host can use in place, zeroed at first. Use it
/// as a slice; any part of it may be an input or an output.
///
/// Made by [`Communicator::alloc`](crate::Communicator::alloc), for the communicator that made it
/// and any others that it is [registered](crate::Communicator::register) with. Peers read
/// and write it only while an operation on it runs.
pub struct Memory<T> {
    registration: Arc<Registration>,
    memory: Arc<SharedMemory>,
    count: usize,
    element: PhantomData<T>,
}

/// Leave for the peers of a communicator to use a [`Memory`] in place; ends when it is dropped.
/// See [`Communicator::register`](crate::Communicator::register).
#[derive(Debug)]
pub struct Registered<'a> {
    _registration: Arc<Registration>,
    _memory: PhantomData<&'a ()>,
}

impl<T: Element> Memory<T> {
    pub(crate) fn new(count: usize) -> std::io::Result<Memory<T>> {
        // A mapping cannot be empty.
        let bytes = count.checked_mul(size_of::<T>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let memory = Arc::new(SharedMemory::create_writable(bytes.max(1))?);
        let registration = Registration::new(memory.clone());
        Ok(Memory { registration, memory, count, element: PhantomData })
    }

    pub(crate) fn registration(&self) -> &Arc<Registration> {
        &self.registration
    }

    pub(crate) fn register_again(&self) -> (Arc<Registration>, Registered<'_>) {
        let registration = Registration::new(self.memory.clone());
        let guard = Registered { _registration: registration.clone(), _memory: PhantomData };
        (registration, guard)
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

impl<T: Element> AsRef<[T]> for Memory<T> {
    fn as_ref(&self) -> &[T] {
        self
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
