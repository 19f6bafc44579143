//! The collectives in all their forms: blocking, asynchronous and prepared, by an algorithm of the
//! caller's choice or by the one that is chosen.

use crate::communicator::{Communicator, NO_ROOT};
use crate::engine::{Call, Engine};
use crate::progress::Pending;
use crate::record::CallKind;
use crate::{Algorithm, Element, Error, Op};

/// A call with an algorithm of the caller's choice: see [`Communicator::using`].
#[derive(Clone, Copy, Debug)]
pub struct Using<'a> {
    communicator: &'a Communicator,
    algorithm: Option<Algorithm>,
}

impl<'a> Using<'a> {
    pub(crate) fn new(communicator: &'a Communicator, algorithm: Option<Algorithm>) -> Using<'a> {
        Using { communicator, algorithm }
    }

    /// See [`Communicator::all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_reduce<T: Element>(&self, buffer: &mut [T], op: Op) -> Result<(), Error> {
        let call = self.all_reduce_call::<T>(buffer.len(), op)?;
        let start = buffer.as_mut_ptr().cast::<u8>();
        // SAFETY: the buffer is borrowed mutably until the call has returned.
        unsafe { self.communicator.engine().run(&call, start, start) }
    }

    /// See [`Communicator::all_reduce_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_reduce_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        op: Op,
    ) -> Result<(), Error> {
        same_length(input.len(), output.len())?;
        let call = self.all_reduce_call::<T>(input.len(), op)?;
        // SAFETY: both are borrowed until the call has returned, and cannot overlap.
        unsafe {
            let (from, to) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
            self.communicator.engine().run(&call, from, to)
        }
    }

    /// See [`Communicator::broadcast`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn broadcast<T: Element>(&self, buffer: &mut [T], root: u32) -> Result<(), Error> {
        let call = self.broadcast_call::<T>(buffer.len(), root)?;
        let start = buffer.as_mut_ptr().cast::<u8>();
        // SAFETY: the buffer is borrowed mutably until the call has returned.
        unsafe { self.communicator.engine().run(&call, start, start) }
    }

    /// See [`Communicator::broadcast_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn broadcast_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        if root == self.communicator.rank() {
            same_length(input.len(), output.len())?;
        }
        let call = self.broadcast_call::<T>(output.len(), root)?;
        // SAFETY: both are borrowed until the call has returned, and cannot overlap; of a broadcast
        // only the root reads its input, which is as long as the output.
        unsafe {
            let (from, to) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
            self.communicator.engine().run(&call, from, to)
        }
    }

    /// See [`Communicator::all_reduce_async`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_reduce_async<T, B>(&self, mut buffer: B, op: Op) -> Result<Pending<B>, Error>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        let call = self.all_reduce_call::<T>(buffer.as_mut().len(), op)?;
        Ok(self.post(call, buffer))
    }

    /// See [`Communicator::all_reduce_into_async`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_reduce_into_async<T, A, B>(
        &self,
        input: A,
        mut output: B,
        op: Op,
    ) -> Result<Pending<(A, B)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        same_length(input.as_ref().len(), output.as_mut().len())?;
        let call = self.all_reduce_call::<T>(output.as_mut().len(), op)?;
        let run = move |engine: &mut Engine, (input, output): &mut (A, B)| {
            let output = expected_length(output.as_mut(), &call)?;
            let input = input.as_ref();
            same_length(input.len(), output.len())?;
            // SAFETY: the operation owns both until it is done, and they cannot overlap.
            unsafe { engine.run(&call, input.as_ptr().cast(), output.as_mut_ptr().cast()) }
        };
        Ok(self.communicator.progress.post(&self.communicator.inner, (input, output), run))
    }

    /// See [`Communicator::broadcast_async`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn broadcast_async<T, B>(&self, mut buffer: B, root: u32) -> Result<Pending<B>, Error>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        let call = self.broadcast_call::<T>(buffer.as_mut().len(), root)?;
        Ok(self.post(call, buffer))
    }

    /// See [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_all_reduce<T, B>(
        &self,
        mut buffer: B,
        op: Op,
    ) -> Result<Prepared<'a, T, B>, Error>
    where
        T: Element,
        B: AsMut<[T]>,
    {
        let call = self.all_reduce_call::<T>(buffer.as_mut().len(), op)?;
        self.prepare(call, buffer)
    }

    /// See [`Communicator::prepare_broadcast`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_broadcast<T, B>(
        &self,
        mut buffer: B,
        root: u32,
    ) -> Result<Prepared<'a, T, B>, Error>
    where
        T: Element,
        B: AsMut<[T]>,
    {
        let call = self.broadcast_call::<T>(buffer.as_mut().len(), root)?;
        self.prepare(call, buffer)
    }

    /// Queues an in-place call on a buffer that it owns.
    fn post<T, B>(&self, call: Call, buffer: B) -> Pending<B>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        let run = move |engine: &mut Engine, buffer: &mut B| {
            let buffer = expected_length(buffer.as_mut(), &call)?;
            let start = buffer.as_mut_ptr().cast::<u8>();
            // SAFETY: the operation owns the buffer until it is done.
            unsafe { engine.run(&call, start, start) }
        };
        self.communicator.progress.post(&self.communicator.inner, buffer, run)
    }

    fn prepare<T, B>(&self, call: Call, buffer: B) -> Result<Prepared<'a, T, B>, Error> {
        self.communicator.engine().prepare(&call)?;
        let communicator = self.communicator;
        Ok(Prepared { communicator, call, buffer, _element: std::marker::PhantomData })
    }

    fn all_reduce_call<T: Element>(&self, count: usize, op: Op) -> Result<Call, Error> {
        let kind = CallKind::AllReduce;
        let (data_type, op) = (T::DATA_TYPE, op as u8);
        self.communicator.call(kind, data_type, op, NO_ROOT, count, self.algorithm)
    }

    fn broadcast_call<T: Element>(&self, count: usize, root: u32) -> Result<Call, Error> {
        let kind = CallKind::Broadcast;
        self.communicator.call(kind, T::DATA_TYPE, 0, root, count, self.algorithm)
    }
}

/// A call that can be repeated: see [`Communicator::prepare_all_reduce`].
#[derive(Debug)]
pub struct Prepared<'a, T, B> {
    communicator: &'a Communicator,
    call: Call,
    buffer: B,
    _element: std::marker::PhantomData<T>,
}

impl<T: Element, B: AsMut<[T]>> Prepared<'_, T, B> {
    /// Runs the call on the buffer.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(&mut self) -> Result<(), Error> {
        let buffer = expected_length(self.buffer.as_mut(), &self.call)?;
        let start = buffer.as_mut_ptr().cast::<u8>();
        // SAFETY: the buffer is borrowed mutably until the call has returned.
        unsafe { self.communicator.engine().run(&self.call, start, start) }
    }

    /// The buffer, between runs.
    pub fn buffer(&mut self) -> &mut [T] {
        self.buffer.as_mut()
    }

    /// Gives the buffer back.
    pub fn into_inner(self) -> B {
        self.buffer
    }
}

fn same_length(input: usize, output: usize) -> Result<(), Error> {
    if input == output {
        return Ok(());
    }
    Err(Error::Argument(format!("the input has {input} elements and the output {output}")))
}

/// What a caller's `as_mut` gives, if it is still as long as the call says: any safe code may
/// answer differently each time.
fn expected_length<'b, T>(buffer: &'b mut [T], call: &Call) -> Result<&'b mut [T], Error> {
    let (length, count) = (buffer.len() as u64, call.record.count);
    if length == count {
        return Ok(buffer);
    }
    Err(Error::Argument(format!("the buffer had {count} elements and now has {length}")))
}
