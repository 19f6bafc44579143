//! Memory that peers can use in place: what the library allocates, so that those of the same host can map
//! it, and what is registered, so that RDMA devices can reach it.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use ringtree_transport::memory::{Registration, SharedMemory};

use crate::Element;

/// A buffer of `T` in memory that peers of the same host, and RDMA devices, can use in place, zeroed at first.
/// Use it as a slice; any part of it may be an input or an output. Where there is RDMA, it is locked.
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

/// A buffer that the peers of a communicator may use in place, which ends when this is dropped. Use it as a
/// slice. See [`Communicator::register`](crate::Communicator::register).
pub struct Registered<R: Registrable> {
    /// Before the memory.
    leave: Leave,
    buffer: R,
}

/// Ends when it is dropped, and not later.
struct Leave(Option<Arc<Registration>>);

/// What can be [registered](crate::Communicator::register): a [`Memory`], by whose file peers of the same
/// host get at it, or ordinary memory that the guard owns, which RDMA devices alone can reach.
pub trait Registrable: sealed::Buffer {}

/// A [`Registrable`] that can be written.
pub trait RegistrableMut: Registrable + sealed::BufferMut {}

mod sealed {
    use super::*;

    /// A buffer whose memory stays where it is as long as it lives, wherever it is moved itself.
    pub trait Buffer {
        /// What it holds.
        type Element: Element;

        /// Its elements.
        fn elements(&self) -> &[Self::Element];

        /// Leave to use it.
        fn registration(&mut self) -> Arc<Registration>;
    }

    /// One that can be written.
    pub trait BufferMut: Buffer {
        /// Its elements.
        fn elements_mut(&mut self) -> &mut [Self::Element];
    }
}

/// Implements what a buffer needs, given how it is registered.
macro_rules! registrable {
    ($buffer:ty, $self:ident => $registration:expr) => {
        impl<T: Element> sealed::Buffer for $buffer {
            type Element = T;

            fn elements(&self) -> &[T] {
                self
            }

            fn registration(&mut $self) -> Arc<Registration> {
                $registration
            }
        }

        impl<T: Element> Registrable for $buffer {}
    };
    (mut $buffer:ty, $self:ident => $registration:expr) => {
        registrable! { $buffer, $self => $registration }

        impl<T: Element> sealed::BufferMut for $buffer {
            fn elements_mut(&mut self) -> &mut [T] {
                self
            }
        }

        impl<T: Element> RegistrableMut for $buffer {}
    };
}

registrable! { &Memory<T>, self => Registration::new(self.memory.clone()) }
registrable! { mut &mut Memory<T>, self => Registration::new(self.memory.clone()) }
registrable! { mut Vec<T>, self => ordinary(self) }
registrable! { mut Box<[T]>, self => ordinary(self) }

/// Registers memory of a buffer that its guard owns.
fn ordinary<T: Element>(elements: &mut [T]) -> Arc<Registration> {
    let start = NonNull::from(&mut *elements).cast();
    // SAFETY: the guard keeps the buffer, whose memory stays where it is, and drops it after the
    // registration: see `Leave`. Peers write there while an operation on it runs.
    unsafe { Registration::of_plain(start, size_of_val(elements)) }
}

impl<R: Registrable> Registered<R> {
    pub(crate) fn new(mut buffer: R) -> Registered<R> {
        Registered { leave: Leave(Some(buffer.registration())), buffer }
    }

    pub(crate) fn registration(&self) -> Option<&Arc<Registration>> {
        self.leave.0.as_ref()
    }

    /// The buffer, which peers cannot use in place any more.
    pub fn into_inner(self) -> R {
        self.buffer
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        // A link that is being made in another thread may hold it for a moment.
        while let Some(registration) = self.0.take() {
            self.0 = Arc::try_unwrap(registration).err();
            if self.0.is_some() {
                std::thread::yield_now();
            }
        }
    }
}

impl<R: Registrable> Deref for Registered<R> {
    type Target = [R::Element];

    fn deref(&self) -> &[R::Element] {
        self.buffer.elements()
    }
}

impl<R: RegistrableMut> DerefMut for Registered<R> {
    fn deref_mut(&mut self) -> &mut [R::Element] {
        self.buffer.elements_mut()
    }
}

impl<R: Registrable> AsRef<[R::Element]> for Registered<R> {
    fn as_ref(&self) -> &[R::Element] {
        self
    }
}

impl<R: RegistrableMut> AsMut<[R::Element]> for Registered<R> {
    fn as_mut(&mut self) -> &mut [R::Element] {
        self
    }
}

impl<R: Registrable> fmt::Debug for Registered<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("count", &self.len()).finish_non_exhaustive()
    }
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
