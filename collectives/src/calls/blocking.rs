//! Blocking calls, which borrow their buffers.

use super::{Asked, Communicator};
use crate::engine::Place;
use crate::prepared::Call;
use crate::record::CallKind;
use crate::{Element, Error, Op};

impl Communicator {
    /// Reduces `buffer` over all ranks, element by element, in place. Count, type and operation are
    /// the same on all ranks; any count will do, 0 too. Every rank gets the same bits.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_reduce<T: Element>(&self, buffer: &mut [T], op: Op) -> Result<(), Error> {
        self.run_in_place(Asked::of(CallKind::AllReduce).by(op), buffer)
    }

    /// As [`Communicator::all_reduce`], from `input` into `output` of the same length.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_reduce_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        op: Op,
    ) -> Result<(), Error> {
        self.run_into(Asked::of(CallKind::AllReduce).by(op), input, output)
    }

    /// Copies the buffer of rank `root` into everyone's. Count, type and root are the same on all
    /// ranks. Returns when this rank is done, which does not mean that all are.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn broadcast<T: Element>(&self, buffer: &mut [T], root: u32) -> Result<(), Error> {
        self.run_in_place(Asked::of(CallKind::Broadcast).rooted(root), buffer)
    }

    /// As [`Communicator::broadcast`], from the root's `input` into everyone's `output` of the same
    /// length. The other ranks' `input` is not read and may be empty.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn broadcast_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        self.run_into(Asked::of(CallKind::Broadcast).rooted(root), input, output)
    }

    /// Reduces `buffer` over all ranks, element by element, into that of rank `root`. The other ranks'
    /// buffers stay as they are.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce<T: Element>(&self, buffer: &mut [T], op: Op, root: u32) -> Result<(), Error> {
        self.run_in_place(Asked::of(CallKind::Reduce).by(op).rooted(root), buffer)
    }

    /// As [`Communicator::reduce`], from everyone's `input` into the root's `output` of the same
    /// length. The other ranks' `output` is not written and may be empty.
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
        self.run_into(Asked::of(CallKind::Reduce).by(op).rooted(root), input, output)
    }

    /// Completes everyone's `buffer`, which has a block of the same length for each rank: of each,
    /// the block of its own rank is what it gives, and the others are what it gets.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_gather<T: Element>(&self, buffer: &mut [T]) -> Result<(), Error> {
        self.run_in_place(Asked::of(CallKind::AllGather), buffer)
    }

    /// Puts all ranks' `input`, which is of one length, into everyone's `output`, in the order of the
    /// ranks.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_gather_into<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<(), Error> {
        self.run_into(Asked::of(CallKind::AllGather), input, output)
    }

    /// Reduces `buffer`, which has a block of the same length for each rank, over all ranks: the block
    /// of its own rank is what each gets, and the others stay as they are.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter<T: Element>(&self, buffer: &mut [T], op: Op) -> Result<(), Error> {
        self.run_in_place(Asked::of(CallKind::ReduceScatter).by(op), buffer)
    }

    /// Reduces everyone's `input`, which has a block for each rank, and puts the block of each rank into
    /// its `output`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        op: Op,
    ) -> Result<(), Error> {
        self.run_into(Asked::of(CallKind::ReduceScatter).by(op), input, output)
    }

    /// Puts all ranks' `input`, which is of one length, into the `output` of rank `root`, in the order
    /// of the ranks. The other ranks' `output` is not written and may be empty.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn gather_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        self.run_into(Asked::of(CallKind::Gather).rooted(root), input, output)
    }

    /// Deals out the `input` of rank `root`, which has a block for each rank, into everyone's `output`.
    /// The other ranks' `input` is not read and may be empty.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn scatter_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        root: u32,
    ) -> Result<(), Error> {
        self.run_into(Asked::of(CallKind::Scatter).rooted(root), input, output)
    }

    /// Gives block `i` of `input` to rank `i`, whose block `rank` of `output` it becomes. Both have a
    /// block of the same length for each rank.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_to_all_into<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<(), Error> {
        self.run_into(Asked::of(CallKind::AllToAll), input, output)
    }

    /// Returns when every rank has called it: none leaves before the last has come.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn barrier(&self) -> Result<(), Error> {
        let call = self.barrier_call()?;
        // SAFETY: a barrier touches no memory.
        unsafe { self.engine().run(&call, Place::In(std::ptr::null_mut())) }
    }

    /// Sends `buffer` to `peer`, which calls [`Communicator::receive`] with the same count and
    /// type. Returns when the buffer may be written again.
    ///
    /// A message of more than 256 KiB may wait for its receiver. Two ranks that both send
    /// before they receive would then wait for each other, until the deadline: let one of them
    /// receive first.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn send<T: Element>(&self, buffer: &[T], peer: u32) -> Result<(), Error> {
        let call = self.send_call::<T>(buffer.len(), peer)?;
        // SAFETY: the buffer is borrowed until the call has returned; a send writes nothing.
        unsafe {
            self.engine().run(&call, Place::Into(buffer.as_ptr().cast(), std::ptr::null_mut()))
        }
    }

    /// Receives into `buffer` what `peer` sends. Messages of one peer come in the order in which it
    /// sent them.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn receive<T: Element>(&self, buffer: &mut [T], peer: u32) -> Result<(), Error> {
        let call = self.receive_call::<T>(buffer.len(), peer)?;
        // SAFETY: the buffer is borrowed mutably until the call has returned.
        unsafe {
            self.engine().run(&call, Place::Into(std::ptr::null(), buffer.as_mut_ptr().cast()))
        }
    }

    #[inline]
    fn run_in_place<T: Element>(&self, asked: Asked, buffer: &mut [T]) -> Result<(), Error> {
        let call = self.call_in_place::<T>(asked, buffer.len())?;
        // SAFETY: the buffer is borrowed mutably until the call has returned, and has all blocks.
        unsafe { self.engine().run(&call, Place::In(buffer.as_mut_ptr().cast())) }
    }

    #[inline]
    fn run_into<T: Element>(
        &self,
        asked: Asked,
        input: &[T],
        output: &mut [T],
    ) -> Result<(), Error> {
        let call: Call = self.call_into::<T>(asked, input.len(), output.len())?;
        // SAFETY: both are borrowed until the call has returned, and cannot overlap; they are as long as
        // this rank's part of the call says, and a buffer that it has no part in is not touched.
        unsafe {
            let place = Place::Into(input.as_ptr().cast(), output.as_mut_ptr().cast());
            self.engine().run(&call, place)
        }
    }
}
