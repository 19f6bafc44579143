//! What differs with where gradients are: their memory, how a bucket travels, and how the program finds the sums.

use std::ops::Range;
use std::time::Instant;

use ringtree::{Communicator, Ran};

use crate::Result;
use crate::real::Real;

/// Where an exchange has its gradients, and how they travel from there. Only this crate implements it.
pub trait Backend<T: Real>: Sized {
    /// The memory of a bucket, here or under way.
    type Memory;
    /// Some elements of a bucket, as the program reads and writes them.
    type View<'a>
    where
        T: 'a;

    /// Whether buckets leave in the first step before it is finished.
    const LEAVES_IN_FIRST_STEP: bool;

    /// Makes room for a bucket of so many elements.
    fn alloc(&self, communicator: &Communicator, len: usize, in_bf16: bool)
    -> Result<Self::Memory>;

    /// Elements of a bucket that is here.
    fn view(memory: &mut Self::Memory, at: Range<usize>) -> Result<Self::View<'_>>;

    /// Sets elements to zero.
    fn zero(&self, view: Self::View<'_>) -> Result<()>;

    /// Copies elements between buckets; both views have as many.
    fn copy(&self, from: Self::View<'_>, to: Self::View<'_>) -> Result<()>;

    /// Sends a bucket off.
    fn leave(
        &mut self,
        memory: &mut Self::Memory,
        communicator: &Communicator,
        travel: Travel,
    ) -> Result<()>;

    /// Sends off a bucket that is waited for at once. Says how it went if it is back.
    fn carry(
        &mut self,
        memory: &mut Self::Memory,
        communicator: &Communicator,
        travel: Travel,
    ) -> Result<Option<Carried>>;

    /// Has a bucket back, and says how it went, if that is known.
    fn arrive(&mut self, memory: &mut Self::Memory) -> Result<Option<Carried>>;

    /// Has what the program does next find what has arrived. After the first step nothing is under way then.
    fn join(&mut self, is_first_step: bool) -> Result<()>;
}

/// How a bucket travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Travel {
    /// All ranks get all sums: all-reduce.
    Sum,
    /// Each rank gets the sums of its own block: reduce-scatter.
    Scatter,
    /// All ranks get what each has in its own block: all-gather.
    Gather,
}

/// How a bucket has travelled.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// When it was ready.
    pub posted: Instant,
    /// When its turn had come, and when this rank had its sums.
    pub ran: Ran,
}
