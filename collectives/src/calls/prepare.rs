//! Prepared calls, which can be repeated with the least work each.

use std::marker::PhantomData;

use super::form::{self, Form, InPlace, Into};
use super::{Asked, Communicator};
use crate::prepared::Call;
use crate::record::CallKind;
use crate::{Element, Error, Op};

impl Communicator {
    /// An in-place all-reduce that can be repeated with the least work a call: planned, with its
    /// links made. All ranks prepare, or all make the plain call: their runs meet either way.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_all_reduce<T, B>(&self, buffer: B, op: Op) -> Result<Prepared<T, B>, Error>
    where
        T: Element,
        B: AsMut<[T]>,
    {
        self.prepare_in_place(Asked::of(CallKind::AllReduce).by(op), buffer)
    }

    /// A [`Communicator::all_reduce_into`] that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_all_reduce_into<T, A, B>(
        &self,
        input: A,
        output: B,
        op: Op,
    ) -> Result<PreparedInto<T, A, B>, Error>
    where
        T: Element,
        A: AsRef<[T]>,
        B: AsMut<[T]>,
    {
        self.prepare_into(Asked::of(CallKind::AllReduce).by(op), input, output)
    }

    /// A [`Communicator::broadcast`] that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_broadcast<T, B>(&self, buffer: B, root: u32) -> Result<Prepared<T, B>, Error>
    where
        T: Element,
        B: AsMut<[T]>,
    {
        self.prepare_in_place(Asked::of(CallKind::Broadcast).rooted(root), buffer)
    }

    /// A [`Communicator::broadcast_into`] that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_broadcast_into<T, A, B>(
        &self,
        input: A,
        output: B,
        root: u32,
    ) -> Result<PreparedInto<T, A, B>, Error>
    where
        T: Element,
        A: AsRef<[T]>,
        B: AsMut<[T]>,
    {
        self.prepare_into(Asked::of(CallKind::Broadcast).rooted(root), input, output)
    }

    /// A [`Communicator::reduce`] that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_reduce<T, B>(
        &self,
        buffer: B,
        op: Op,
        root: u32,
    ) -> Result<Prepared<T, B>, Error>
    where
        T: Element,
        B: AsMut<[T]>,
    {
        self.prepare_in_place(Asked::of(CallKind::Reduce).by(op).rooted(root), buffer)
    }

    /// A [`Communicator::reduce_into`] that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_reduce_into<T, A, B>(
        &self,
        input: A,
        output: B,
        op: Op,
        root: u32,
    ) -> Result<PreparedInto<T, A, B>, Error>
    where
        T: Element,
        A: AsRef<[T]>,
        B: AsMut<[T]>,
    {
        self.prepare_into(Asked::of(CallKind::Reduce).by(op).rooted(root), input, output)
    }

    /// A [`Communicator::all_gather`] that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_all_gather<T, B>(&self, buffer: B) -> Result<Prepared<T, B>, Error>
    where
        T: Element,
        B: AsMut<[T]>,
    {
        self.prepare_in_place(Asked::of(CallKind::AllGather), buffer)
    }

    /// A [`Communicator::all_gather_into`] that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_all_gather_into<T, A, B>(
        &self,
        input: A,
        output: B,
    ) -> Result<PreparedInto<T, A, B>, Error>
    where
        T: Element,
        A: AsRef<[T]>,
        B: AsMut<[T]>,
    {
        self.prepare_into(Asked::of(CallKind::AllGather), input, output)
    }

    /// A [`Communicator::reduce_scatter`] that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_reduce_scatter<T, B>(&self, buffer: B, op: Op) -> Result<Prepared<T, B>, Error>
    where
        T: Element,
        B: AsMut<[T]>,
    {
        self.prepare_in_place(Asked::of(CallKind::ReduceScatter).by(op), buffer)
    }

    /// A [`Communicator::reduce_scatter_into`] that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_reduce_scatter_into<T, A, B>(
        &self,
        input: A,
        output: B,
        op: Op,
    ) -> Result<PreparedInto<T, A, B>, Error>
    where
        T: Element,
        A: AsRef<[T]>,
        B: AsMut<[T]>,
    {
        self.prepare_into(Asked::of(CallKind::ReduceScatter).by(op), input, output)
    }

    /// A [`Communicator::gather_into`] that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_gather_into<T, A, B>(
        &self,
        input: A,
        output: B,
        root: u32,
    ) -> Result<PreparedInto<T, A, B>, Error>
    where
        T: Element,
        A: AsRef<[T]>,
        B: AsMut<[T]>,
    {
        self.prepare_into(Asked::of(CallKind::Gather).rooted(root), input, output)
    }

    /// A [`Communicator::scatter_into`] that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_scatter_into<T, A, B>(
        &self,
        input: A,
        output: B,
        root: u32,
    ) -> Result<PreparedInto<T, A, B>, Error>
    where
        T: Element,
        A: AsRef<[T]>,
        B: AsMut<[T]>,
    {
        self.prepare_into(Asked::of(CallKind::Scatter).rooted(root), input, output)
    }

    /// A [`Communicator::all_to_all_into`] that can be repeated: see [`Communicator::prepare_all_reduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare_all_to_all_into<T, A, B>(
        &self,
        input: A,
        output: B,
    ) -> Result<PreparedInto<T, A, B>, Error>
    where
        T: Element,
        A: AsRef<[T]>,
        B: AsMut<[T]>,
    {
        self.prepare_into(Asked::of(CallKind::AllToAll), input, output)
    }

    fn prepare_in_place<T, B>(&self, asked: Asked, mut buffer: B) -> Result<Prepared<T, B>, Error>
    where
        T: Element,
        B: AsMut<[T]>,
    {
        let call = self.call_in_place::<T>(asked, buffer.as_mut().len())?;
        self.prepare(call, buffer)
    }

    fn prepare_into<T, A, B>(
        &self,
        asked: Asked,
        input: A,
        mut output: B,
    ) -> Result<PreparedInto<T, A, B>, Error>
    where
        T: Element,
        A: AsRef<[T]>,
        B: AsMut<[T]>,
    {
        let call = self.call_into::<T>(asked, input.as_ref().len(), output.as_mut().len())?;
        Ok(PreparedInto(self.prepare(call, (input, output))?))
    }

    fn prepare<T, B>(&self, call: Call, buffers: B) -> Result<Prepared<T, B>, Error> {
        self.engine().prepare(&call)?;
        Ok(Prepared { communicator: self.clone(), call, buffers, _element: PhantomData })
    }
}

/// A call that can be repeated: see [`Communicator::prepare_all_reduce`].
#[derive(Debug)]
pub struct Prepared<T, B> {
    communicator: Communicator,
    call: Call,
    buffers: B,
    _element: PhantomData<T>,
}

impl<T, B> Prepared<T, B> {
    fn run_as<F: Form<B>>(&mut self) -> Result<(), Error> {
        form::run::<F, B>(&mut self.communicator.engine(), &self.call, &mut self.buffers)
    }
}

impl<T: Element, B: AsMut<[T]>> Prepared<T, B> {
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
pub struct PreparedInto<T, A, B>(Prepared<T, (A, B)>);

impl<T: Element, A: AsRef<[T]>, B: AsMut<[T]>> PreparedInto<T, A, B> {
    /// Runs the call on the buffers.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(&mut self) -> Result<(), Error> {
        self.0.run_as::<Into<T>>()
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
