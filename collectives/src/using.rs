//! The collectives in all their forms: blocking, asynchronous and prepared, by an algorithm of the
//! caller's choice or by the one that is chosen.

use std::marker::PhantomData;

use crate::communicator::{Communicator, NO_ROOT};
use crate::prepared::Call;
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

    /// See [`Communicator::reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce<T: Element>(&self, buffer: &mut [T], op: Op, root: u32) -> Result<(), Error> {
        let call = self.collective_call::<T>(CallKind::Reduce, Some(op), root, buffer.len())?;
        let start = buffer.as_mut_ptr().cast::<u8>();
        // SAFETY: the buffer is borrowed mutably until the call has returned.
        unsafe { self.communicator.engine().run(&call, start, start) }
    }

    /// See [`Communicator::reduce_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        op: Op,
        root: u32,
    ) -> Result<(), Error> {
        if root == self.communicator.rank() {
            same_length(input.len(), output.len())?;
        }
        let call = self.collective_call::<T>(CallKind::Reduce, Some(op), root, input.len())?;
        self.run_into(&call, input, output)
    }

    /// See [`Communicator::all_gather`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_gather<T: Element>(&self, buffer: &mut [T]) -> Result<(), Error> {
        let count = self.block(buffer.len())?;
        let call = self.collective_call::<T>(CallKind::AllGather, None, NO_ROOT, count)?;
        let start = buffer.as_mut_ptr().cast::<u8>();
        // SAFETY: the buffer is borrowed mutably until the call has returned, and has all blocks.
        unsafe { self.communicator.engine().run(&call, start, start) }
    }

    /// See [`Communicator::all_gather_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_gather_into<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<(), Error> {
        self.has_blocks("output", output.len(), input.len())?;
        let call = self.collective_call::<T>(CallKind::AllGather, None, NO_ROOT, input.len())?;
        self.run_into(&call, input, output)
    }

    /// See [`Communicator::reduce_scatter`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter<T: Element>(&self, buffer: &mut [T], op: Op) -> Result<(), Error> {
        let count = self.block(buffer.len())?;
        let call = self.collective_call::<T>(CallKind::ReduceScatter, Some(op), NO_ROOT, count)?;
        let start = buffer.as_mut_ptr().cast::<u8>();
        // SAFETY: the buffer is borrowed mutably until the call has returned, and has all blocks.
        unsafe { self.communicator.engine().run(&call, start, start) }
    }

    /// See [`Communicator::reduce_scatter_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        op: Op,
    ) -> Result<(), Error> {
        self.has_blocks("input", input.len(), output.len())?;
        let (kind, count) = (CallKind::ReduceScatter, output.len());
        let call = self.collective_call::<T>(kind, Some(op), NO_ROOT, count)?;
        self.run_into(&call, input, output)
    }

    /// See [`Communicator::gather_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn gather_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        if root == self.communicator.rank() {
            self.has_blocks("output", output.len(), input.len())?;
        }
        let call = self.collective_call::<T>(CallKind::Gather, None, root, input.len())?;
        self.run_into(&call, input, output)
    }

    /// See [`Communicator::scatter_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn scatter_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        if root == self.communicator.rank() {
            self.has_blocks("input", input.len(), output.len())?;
        }
        let call = self.collective_call::<T>(CallKind::Scatter, None, root, output.len())?;
        self.run_into(&call, input, output)
    }

    /// See [`Communicator::all_to_all_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_to_all_into<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<(), Error> {
        same_length(input.len(), output.len())?;
        let count = self.block(input.len())?;
        let call = self.collective_call::<T>(CallKind::AllToAll, None, NO_ROOT, count)?;
        self.run_into(&call, input, output)
    }

    /// See [`Communicator::barrier`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn barrier(&self) -> Result<(), Error> {
        let call = self.communicator.barrier_call(self.algorithm)?;
        // SAFETY: a barrier touches no memory.
        unsafe { self.communicator.engine().run(&call, std::ptr::null(), std::ptr::null_mut()) }
    }

    /// Runs a call whose buffers are as long as this rank's part of it says.
    fn run_into<T: Element>(
        &self,
        call: &Call,
        input: &[T],
        output: &mut [T],
    ) -> Result<(), Error> {
        // SAFETY: both are borrowed until the call has returned, and cannot overlap; a buffer that this
        // rank has no part in is neither read nor written.
        unsafe {
            let (from, to) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
            self.communicator.engine().run(call, from, to)
        }
    }

    /// Elements of a block of a buffer that has one for each rank.
    fn block(&self, length: usize) -> Result<usize, Error> {
        let ranks = self.communicator.ranks() as usize;
        if length.is_multiple_of(ranks) {
            return Ok(length / ranks);
        }
        Err(Error::Argument(format!(
            "a buffer of {length} elements cannot be cut into {ranks} equal blocks, one for each rank"
        )))
    }

    /// Checks that a buffer has a block for each rank.
    fn has_blocks(&self, buffer: &str, length: usize, block: usize) -> Result<(), Error> {
        let ranks = self.communicator.ranks() as usize;
        if block.checked_mul(ranks) == Some(length) {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "the {buffer} has {length} elements: of {ranks} ranks with {block} each it must have \
             {ranks} times {block}"
        )))
    }

    fn collective_call<T: Element>(
        &self,
        kind: CallKind,
        op: Option<Op>,
        root: u32,
        count: usize,
    ) -> Result<Call, Error> {
        self.communicator.call(kind, T::DATA_TYPE, op, root, count, self.algorithm)
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
        Ok(self.communicator.post::<InPlace<T>, _>(call, buffer))
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
        Ok(self.communicator.post::<OutOfPlace<T>, _>(call, (input, output)))
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
        Ok(self.communicator.post::<InPlace<T>, _>(call, buffer))
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
        self.communicator.prepare(call, buffer)
    }

    /// See [`Communicator::prepare_all_reduce_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_all_reduce_into<T, A, B>(
        &self,
        input: A,
        mut output: B,
        op: Op,
    ) -> Result<PreparedInto<'a, T, A, B>, Error>
    where
        T: Element,
        A: AsRef<[T]>,
        B: AsMut<[T]>,
    {
        same_length(input.as_ref().len(), output.as_mut().len())?;
        let call = self.all_reduce_call::<T>(output.as_mut().len(), op)?;
        Ok(PreparedInto(self.communicator.prepare(call, (input, output))?))
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
        self.communicator.prepare(call, buffer)
    }

    fn all_reduce_call<T: Element>(&self, count: usize, op: Op) -> Result<Call, Error> {
        let kind = CallKind::AllReduce;
        let (data_type, op) = (T::DATA_TYPE, Some(op));
        self.communicator.call(kind, data_type, op, NO_ROOT, count, self.algorithm)
    }

    fn broadcast_call<T: Element>(&self, count: usize, root: u32) -> Result<Call, Error> {
        let kind = CallKind::Broadcast;
        self.communicator.call(kind, T::DATA_TYPE, None, root, count, self.algorithm)
    }
}

impl Communicator {
    /// As [`Communicator::barrier`], without waiting for the others: [`Pending::wait`] does that.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn barrier_async(&self) -> Result<Pending<()>, Error> {
        Ok(self.post::<Nothing, _>(self.barrier_call(None)?, ()))
    }

    /// As [`Communicator::send`], of a buffer that the call owns until [`Pending::wait`] gives it
    /// back. Later calls of this communicator wait for it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn send_async<T, B>(&self, buffer: B, peer: u32) -> Result<Pending<B>, Error>
    where
        T: Element,
        B: AsRef<[T]> + Send + 'static,
    {
        let call = self.send_call::<T>(buffer.as_ref().len(), peer)?;
        Ok(self.post::<ReadOnly<T>, _>(call, buffer))
    }

    /// As [`Communicator::receive`], into a buffer that the call owns until [`Pending::wait`] gives
    /// it back. Later calls of this communicator wait for it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn receive_async<T, B>(&self, mut buffer: B, peer: u32) -> Result<Pending<B>, Error>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        let call = self.receive_call::<T>(buffer.as_mut().len(), peer)?;
        Ok(self.post::<InPlace<T>, _>(call, buffer))
    }

    /// Queues a call on buffers that it owns.
    fn post<F: Form<B>, B: Send + 'static>(&self, call: Call, buffers: B) -> Pending<B> {
        self.progress.post(&self.inner, call, buffers, |engine, call, buffers| {
            let (input, output) = F::addresses(buffers, call)?;
            // SAFETY: the operation owns the buffers until it is done.
            unsafe { engine.run(call, input, output) }
        })
    }

    fn prepare<T, B>(&self, call: Call, buffers: B) -> Result<Prepared<'_, T, B>, Error> {
        self.engine().prepare(&call)?;
        Ok(Prepared { communicator: self, call, buffers, _element: PhantomData })
    }
}

/// A call that can be repeated: see [`Communicator::prepare_all_reduce`].
#[derive(Debug)]
pub struct Prepared<'a, T, B> {
    communicator: &'a Communicator,
    call: Call,
    buffers: B,
    _element: PhantomData<T>,
}

impl<T, B> Prepared<'_, T, B> {
    fn run_as<F: Form<B>>(&mut self) -> Result<(), Error> {
        let (input, output) = F::addresses(&mut self.buffers, &self.call)?;
        // SAFETY: the buffers are borrowed mutably until the call has returned.
        unsafe { self.communicator.engine().run(&self.call, input, output) }
    }
}

impl<T: Element, B: AsMut<[T]>> Prepared<'_, T, B> {
    /// Runs the call on the buffer.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(&mut self) -> Result<(), Error> {
        self.run_as::<InPlace<T>>()
    }

    /// The buffer, between runs.
    pub fn buffer(&mut self) -> &mut [T] {
        self.buffers.as_mut()
    }

    /// Gives the buffer back.
    pub fn into_inner(self) -> B {
        self.buffers
    }
}

/// A call from one buffer into another that can be repeated: see
/// [`Communicator::prepare_all_reduce_into`].
#[derive(Debug)]
pub struct PreparedInto<'a, T, A, B>(Prepared<'a, T, (A, B)>);

impl<T: Element, A: AsRef<[T]>, B: AsMut<[T]>> PreparedInto<'_, T, A, B> {
    /// Runs the call on the buffers.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(&mut self) -> Result<(), Error> {
        self.0.run_as::<OutOfPlace<T>>()
    }

    /// The input, between runs, to be written where its type allows.
    pub fn input(&mut self) -> &mut A {
        &mut self.0.buffers.0
    }

    /// The output, between runs.
    pub fn output(&mut self) -> &mut [T] {
        self.0.buffers.1.as_mut()
    }

    /// Gives the buffers back.
    pub fn into_inner(self) -> (A, B) {
        self.0.buffers
    }
}

/// How a call finds its memory in the buffers that it owns or holds.
trait Form<B> {
    /// Where the call reads and writes, if the buffers still are as long as it says: any safe code
    /// may answer differently each time it is asked. Not to be used after the buffers have been
    /// touched in another way.
    fn addresses(buffers: &mut B, call: &Call) -> Result<(*const u8, *mut u8), Error>;
}

/// One buffer, read and written.
struct InPlace<T>(PhantomData<T>);

impl<T: Element, B: AsMut<[T]>> Form<B> for InPlace<T> {
    fn addresses(buffer: &mut B, call: &Call) -> Result<(*const u8, *mut u8), Error> {
        let buffer = buffer.as_mut();
        expected_length(buffer.len(), call)?;
        let start = buffer.as_mut_ptr().cast::<u8>();
        Ok((start, start))
    }
}

/// A buffer to read and one to write, which cannot overlap.
struct OutOfPlace<T>(PhantomData<T>);

impl<T: Element, A: AsRef<[T]>, B: AsMut<[T]>> Form<(A, B)> for OutOfPlace<T> {
    fn addresses((input, output): &mut (A, B), call: &Call) -> Result<(*const u8, *mut u8), Error> {
        let (input, output) = (input.as_ref(), output.as_mut());
        expected_length(input.len(), call)?;
        expected_length(output.len(), call)?;
        Ok((input.as_ptr().cast(), output.as_mut_ptr().cast()))
    }
}

/// A buffer that is only read.
struct ReadOnly<T>(PhantomData<T>);

impl<T: Element, B: AsRef<[T]>> Form<B> for ReadOnly<T> {
    fn addresses(buffer: &mut B, call: &Call) -> Result<(*const u8, *mut u8), Error> {
        let buffer = buffer.as_ref();
        expected_length(buffer.len(), call)?;
        Ok((buffer.as_ptr().cast(), std::ptr::null_mut()))
    }
}

/// No memory at all.
struct Nothing;

impl Form<()> for Nothing {
    fn addresses(_: &mut (), _: &Call) -> Result<(*const u8, *mut u8), Error> {
        Ok((std::ptr::null(), std::ptr::null_mut()))
    }
}

fn same_length(input: usize, output: usize) -> Result<(), Error> {
    if input == output {
        return Ok(());
    }
    Err(Error::Argument(format!("the input has {input} elements and the output {output}")))
}

fn expected_length(length: usize, call: &Call) -> Result<(), Error> {
    let count = call.count;
    if length as u64 == count {
        return Ok(());
    }
    Err(Error::Argument(format!("the buffer had {count} elements and now has {length}")))
}
