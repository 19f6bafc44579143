//! Calls on blocks that differ in length.
//!
//! Their blocks lie one after the other in the order of the ranks. In all-gather and reduce-scatter all
//! ranks know the lengths of all blocks, which are part of what must match. Elsewhere a rank knows only
//! those that it gives or gets, and what comes is held against what is expected.

use std::borrow::Cow;

use super::form::{Form, Found, InPlace, Into};
use super::lengths::Lengths;
use super::{Asked, Communicator, NO_ROOT};
use crate::engine::Engine;
use crate::prepared::{Blocks, Call};
use crate::progress::Pending;
use crate::record::CallKind;
use crate::{Collective, Element, Error, Op};

impl Communicator {
    /// As [`Communicator::all_gather`], of blocks that differ in length: rank `i`'s has `counts[i]` elements.
    /// All ranks pass the same counts.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_gather_v<T: Element>(
        &self,
        buffer: &mut [T],
        counts: &[usize],
    ) -> Result<(), Error> {
        self.run_varied::<T, InPlace<T>, _>(
            Asked::of(CallKind::AllGatherV),
            Counts::of_all(counts),
            buffer,
        )
    }

    /// As [`Communicator::all_gather_into`], of blocks that differ in length: rank `i` gives `counts[i]`
    /// elements. All ranks pass the same counts.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_gather_v_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        counts: &[usize],
    ) -> Result<(), Error> {
        self.run_varied::<T, Into<T>, _>(
            Asked::of(CallKind::AllGatherV),
            Counts::of_all(counts),
            (input, output),
        )
    }

    /// As [`Communicator::reduce_scatter`], of blocks that differ in length: rank `i`'s has `counts[i]`
    /// elements. All ranks pass the same counts.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter_v<T: Element>(
        &self,
        buffer: &mut [T],
        counts: &[usize],
        op: Op,
    ) -> Result<(), Error> {
        self.run_varied::<T, InPlace<T>, _>(
            Asked::of(CallKind::ReduceScatterV).by(op),
            Counts::of_all(counts),
            buffer,
        )
    }

    /// As [`Communicator::reduce_scatter_into`], of blocks that differ in length: rank `i` gets `counts[i]`
    /// elements. All ranks pass the same counts.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter_v_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        counts: &[usize],
        op: Op,
    ) -> Result<(), Error> {
        self.run_varied::<T, Into<T>, _>(
            Asked::of(CallKind::ReduceScatterV).by(op),
            Counts::of_all(counts),
            (input, output),
        )
    }

    /// As [`Communicator::gather_into`], of blocks that differ in length: the root gets `counts[i]` elements
    /// of rank `i`. The other ranks' counts are not read and may be empty; where what a rank gives has
    /// another length than the root expects, every rank gets an error.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn gather_v_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        counts: &[usize],
        root: u32,
    ) -> Result<(), Error> {
        self.run_varied::<T, Into<T>, _>(
            Asked::of(CallKind::GatherV).rooted(root),
            Counts::of_all(counts),
            (input, output),
        )
    }

    /// As [`Communicator::scatter_into`], of blocks that differ in length: the root gives `counts[i]`
    /// elements to rank `i`. The other ranks' counts are not read and may be empty; where what a rank is
    /// given has another length than its output, every rank gets an error.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn scatter_v_into<T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        counts: &[usize],
        root: u32,
    ) -> Result<(), Error> {
        self.run_varied::<T, Into<T>, _>(
            Asked::of(CallKind::ScatterV).rooted(root),
            Counts::of_all(counts),
            (input, output),
        )
    }

    /// As [`Communicator::all_to_all_into`], of blocks that differ in length: rank `i` is given
    /// `input_counts[i]` elements and gives `output_counts[i]`. Where two ranks do not agree on what one
    /// gives the other, every rank gets an error.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_to_all_v_into<T: Element>(
        &self,
        input: &[T],
        input_counts: &[usize],
        output: &mut [T],
        output_counts: &[usize],
    ) -> Result<(), Error> {
        self.run_varied::<T, Into<T>, _>(
            Asked::of(CallKind::AllToAllV),
            Counts::of_each(input_counts, output_counts),
            (input, output),
        )
    }

    /// As [`Communicator::all_gather_v_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_gather_v_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
        counts: Vec<usize>,
    ) -> Result<Pending<(A, B, Vec<usize>)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_varied::<T, _>(Asked::of(CallKind::AllGatherV), (input, output, counts))
    }

    /// As [`Communicator::reduce_scatter_v_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter_v_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
        counts: Vec<usize>,
        op: Op,
    ) -> Result<Pending<(A, B, Vec<usize>)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_varied::<T, _>(
            Asked::of(CallKind::ReduceScatterV).by(op),
            (input, output, counts),
        )
    }

    /// As [`Communicator::gather_v_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn gather_v_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
        counts: Vec<usize>,
        root: u32,
    ) -> Result<Pending<(A, B, Vec<usize>)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_varied::<T, _>(Asked::of(CallKind::GatherV).rooted(root), (input, output, counts))
    }

    /// As [`Communicator::scatter_v_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn scatter_v_into_async<T, A, B>(
        &self,
        input: A,
        output: B,
        counts: Vec<usize>,
        root: u32,
    ) -> Result<Pending<(A, B, Vec<usize>)>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_varied::<T, _>(
            Asked::of(CallKind::ScatterV).rooted(root),
            (input, output, counts),
        )
    }

    /// As [`Communicator::all_to_all_v_into`], of buffers that the call owns until [`Pending::wait`] gives them back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn all_to_all_v_into_async<T, A, B>(
        &self,
        input: A,
        input_counts: Vec<usize>,
        output: B,
        output_counts: Vec<usize>,
    ) -> Result<Pending<Counted<A, B>>, Error>
    where
        T: Element,
        A: AsRef<[T]> + Send + 'static,
        B: AsMut<[T]> + Send + 'static,
    {
        self.post_varied::<T, _>(
            Asked::of(CallKind::AllToAllV),
            (input, output, [input_counts, output_counts]),
        )
    }

    fn run_varied<T: Element, F: Form<B>, B>(
        &self,
        asked: Asked,
        counts: Counts,
        mut buffers: B,
    ) -> Result<(), Error> {
        let found = F::find(&mut buffers);
        let (call, blocks) = self.varied_call::<T>(asked, found.lengths, counts)?;
        // SAFETY: the buffers are borrowed until the call has returned, and as long as the blocks say.
        unsafe { self.engine().run_varied(&call, &blocks, found.place) }
    }

    fn post_varied<T: Element, B>(&self, asked: Asked, mut buffers: B) -> Result<Pending<B>, Error>
    where
        B: VariedBuffers<T> + Send + 'static,
    {
        let (found, counts) = buffers.find();
        let (call, _) = self.varied_call::<T>(asked, found.lengths, counts)?;
        let run = |engine: &mut Engine, call: &Call, buffers: &mut B| {
            let (found, counts) = buffers.find();
            let (rank, ranks) = (engine.rank(), engine.ranks());
            let blocks = counts.blocks(call.kind, call.root, found.lengths, rank, ranks)?;
            // SAFETY: the call owns the buffers until it returns, and they are as long as the blocks say.
            unsafe { engine.run_varied(call, &blocks, found.place) }
        };
        Ok(self.owner.progress.post(&self.inner, call, buffers, run))
    }

    pub(crate) fn varied_call<'c, T: Element>(
        &self,
        asked: Asked,
        lengths: Lengths,
        counts: Counts<'c>,
    ) -> Result<(Call, Blocks<'c>), Error> {
        let call = self.call(asked, T::DATA_TYPE, 0)?;
        let (rank, ranks) = (self.rank(), self.ranks());
        let blocks = counts.blocks(asked.kind, asked.root, lengths, rank, ranks)?;
        let known =
            if asked.kind.has_known_lengths() { blocks.given.iter().sum() } else { 0_usize };
        let count = known.checked_next_power_of_two().unwrap_or(known) as u64;
        Ok((Call { count, ..call }, blocks))
    }
}

/// An input and an output, and how many elements the blocks of each have.
pub type Counted<A, B> = (A, B, [Vec<usize>; 2]);

/// The buffers of a call that owns them, with the lengths of their blocks.
trait VariedBuffers<T> {
    /// See [`Form::find`].
    fn find(&mut self) -> (Found, Counts<'_>);
}

impl<T: Element, A: AsRef<[T]>, B: AsMut<[T]>> VariedBuffers<T> for (A, B, Vec<usize>) {
    fn find(&mut self) -> (Found, Counts<'_>) {
        let (input, output, counts) = self;
        (Into::<T>::find(&mut (input, output)), Counts::of_all(counts))
    }
}

impl<T: Element, A: AsRef<[T]>, B: AsMut<[T]>> VariedBuffers<T> for Counted<A, B> {
    fn find(&mut self) -> (Found, Counts<'_>) {
        let (input, output, [given, got]) = self;
        (Into::<T>::find(&mut (input, output)), Counts::of_each(given, got))
    }
}

/// How long blocks are, as the caller says.
#[derive(Clone, Copy)]
pub(crate) struct Counts<'a> {
    given: &'a [usize],
    got: &'a [usize],
}

impl<'a> Counts<'a> {
    /// Blocks of the input and of the output are alike.
    pub(crate) fn of_all(counts: &'a [usize]) -> Counts<'a> {
        Counts { given: counts, got: counts }
    }

    pub(crate) fn of_each(given: &'a [usize], got: &'a [usize]) -> Counts<'a> {
        Counts { given, got }
    }

    /// The blocks as far as this rank knows them.
    ///
    /// # Errors
    /// [`Error::Argument`], where they are not as many as ranks, or the buffers not as long as they say.
    pub(crate) fn blocks(
        self,
        kind: CallKind,
        root: u32,
        lengths: Lengths,
        rank: u32,
        ranks: u32,
    ) -> Result<Blocks<'a>, Error> {
        let own = rank as usize;
        let (input, output) = match lengths {
            Lengths::InPlace(length) => (length, length),
            Lengths::Into { input, output } => (input, output),
            Lengths::Read(length) => (length, 0),
        };
        let alone = |length| {
            let mut counts = vec![0; ranks as usize];
            counts[own] = length;
            Cow::Owned(counts)
        };
        let collective = kind.collective(root).expect("blocks are of a collective");
        if root != NO_ROOT && root != rank {
            let length = if collective.is_to_root() { input } else { output };
            return Ok(Blocks { given: alone(length), got: alone(length) });
        }
        let given = table("input", self.given, ranks)?;
        let got = table("output", self.got, ranks)?;
        let is_in_place = matches!(lengths, Lengths::InPlace(_));
        let (from, to) = match collective {
            _ if is_in_place => (given, got),
            Collective::AllGather | Collective::Gather { .. } => (self.given[own], got),
            Collective::ReduceScatter | Collective::Scatter { .. } => (given, self.got[own]),
            _ => (given, got),
        };
        if self.given[own] != self.got[own] {
            return Err(Error::Argument(format!(
                "rank {rank} gives itself {} elements and expects {}",
                self.given[own], self.got[own]
            )));
        }
        for (buffer, expected, length) in [("input", from, input), ("output", to, output)] {
            if length != expected {
                return Err(Error::Argument(format!(
                    "the {buffer} has {length} elements, and by the counts it must have {expected}"
                )));
            }
        }
        Ok(Blocks { given: Cow::Borrowed(self.given), got: Cow::Borrowed(self.got) })
    }
}

/// How many elements there are in all, of one count for each rank.
fn table(buffer: &str, counts: &[usize], ranks: u32) -> Result<usize, Error> {
    if counts.len() != ranks as usize {
        return Err(Error::Argument(format!(
            "{} counts for the blocks of the {buffer}: there are {ranks} ranks",
            counts.len()
        )));
    }
    let sum = counts.iter().try_fold(0_usize, |sum, count| sum.checked_add(*count));
    sum.ok_or_else(|| Error::Argument(format!("the counts of the {buffer} are too large")))
}
