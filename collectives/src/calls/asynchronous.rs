//! Asynchronous calls, which own their buffers until they have been waited for.

use super::form::{self, Form, InPlace, Into, Nothing, Read};
use super::{Asked, Communicator};
use crate::prepared::Call;
use crate::progress::Pending;
use crate::record::CallKind;
use crate::{Element, Error, Op};

impl Communicator {
    /// Posts an in-place all-reduce of a buffer that the call owns until [`Pending::wait`] gives
    /// it back: a `Vec<T>`, a [`Memory<T>`](crate::Memory), or a type of the program's. A thread of the
    /// communicator carries it out meanwhile.
    ///
    /// ```no_run
    /// # fn step(comm: &ringtree::Communicator) -> Result<(), ringtree::Error> {
    /// let pending = comm.all_reduce_async(vec![1.0_f32; 1_000_000], ringtree::Op::Sum)?;
    /// // ... compute something else ...
    /// let sums = pending.wait()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`]; those of the operation itself come from [`Pending::wait`].
    pub fn all_reduce_async<T, B>(&self, buffer: B, op: Op) -> Result<Pending<B>, Error>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_in_place(Asked::of(CallKind::AllReduce).by(op), buffer)
    }

    /// As [`Communicator::all_reduce_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_reduce_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
        op: Op,
    ) -> Result<Pending<(A, B)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_into(Asked::of(CallKind::AllReduce).by(op), input, output)
    }

    /// As [`Communicator::broadcast`], of a buffer that the call owns until [`Pending::wait`] gives it back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn broadcast_async<T, B>(&self, buffer: B, root: u32) -> Result<Pending<B>, Error>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_in_place(Asked::of(CallKind::Broadcast).rooted(root), buffer)
    }

    /// As [`Communicator::broadcast_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn broadcast_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
        root: u32,
    ) -> Result<Pending<(A, B)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_into(Asked::of(CallKind::Broadcast).rooted(root), input, output)
    }

    /// As [`Communicator::reduce`], of a buffer that the call owns until [`Pending::wait`] gives it back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_async<T, B>(&self, buffer: B, op: Op, root: u32) -> Result<Pending<B>, Error>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_in_place(Asked::of(CallKind::Reduce).by(op).rooted(root), buffer)
    }

    /// As [`Communicator::reduce_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
        op: Op,
        root: u32,
    ) -> Result<Pending<(A, B)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_into(Asked::of(CallKind::Reduce).by(op).rooted(root), input, output)
    }

    /// As [`Communicator::all_gather`], of a buffer that the call owns until [`Pending::wait`] gives it back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_gather_async<T, B>(&self, buffer: B) -> Result<Pending<B>, Error>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_in_place(Asked::of(CallKind::AllGather), buffer)
    }

    /// As [`Communicator::all_gather_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_gather_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
    ) -> Result<Pending<(A, B)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_into(Asked::of(CallKind::AllGather), input, output)
    }

    /// As [`Communicator::reduce_scatter`], of a buffer that the call owns until [`Pending::wait`] gives it back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter_async<T, B>(&self, buffer: B, op: Op) -> Result<Pending<B>, Error>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_in_place(Asked::of(CallKind::ReduceScatter).by(op), buffer)
    }

    /// As [`Communicator::reduce_scatter_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
        op: Op,
    ) -> Result<Pending<(A, B)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_into(Asked::of(CallKind::ReduceScatter).by(op), input, output)
    }

    /// As [`Communicator::gather_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn gather_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
        root: u32,
    ) -> Result<Pending<(A, B)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_into(Asked::of(CallKind::Gather).rooted(root), input, output)
    }

    /// As [`Communicator::scatter_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn scatter_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
        root: u32,
    ) -> Result<Pending<(A, B)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_into(Asked::of(CallKind::Scatter).rooted(root), input, output)
    }

    /// As [`Communicator::all_to_all_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_to_all_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
    ) -> Result<Pending<(A, B)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_into(Asked::of(CallKind::AllToAll), input, output)
    }

    /// As [`Communicator::barrier`], without waiting for the others: [`Pending::wait`] does that.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn barrier_async(&self) -> Result<Pending<()>, Error> {
        Ok(self.post::<Nothing, _>(self.barrier_call()?, ()))
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
        Ok(self.post::<Read<T>, _>(call, buffer))
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

    fn post_in_place<T, B>(&self, asked: Asked, mut buffer: B) -> Result<Pending<B>, Error>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        let call = self.call_in_place::<T>(asked, buffer.as_mut().len())?;
        Ok(self.post::<InPlace<T>, _>(call, buffer))
    }

    fn post_into<T, A, B>(
        &self,
        asked: Asked,
        input: A,
        mut output: B,
    ) -> Result<Pending<(A, B)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        let call = self.call_into::<T>(asked, input.as_ref().len(), output.as_mut().len())?;
        Ok(self.post::<Into<T>, _>(call, (input, output)))
    }

    /// Queues a call on buffers that it owns.
    fn post<F: Form<B>, B: Send + 'static>(&self, call: Call, buffers: B) -> Pending<B> {
        self.owner.progress.post(&self.inner, call, buffers, form::run::<F, B>)
    }
}
