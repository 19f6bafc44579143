//! The loop of all kernels, and the traits that register types and operations implement for it.
//!
//! Everything here and in the implementations of [`Vector`] is `inline(always)`: it becomes part of
//! [`InstructionSet::run`], the only function that is compiled for the instruction set.

/// A compiled kernel: sources, destinations, elements.
pub(super) type Run = unsafe fn(&[*const u8], &[*mut u8], usize);

/// An instruction set: its register types, and the entry point compiled for it.
pub(super) trait InstructionSet {
    /// A register of single-precision numbers.
    type F32: Vector;
    /// A register of double-precision numbers.
    type F64: Vector;
    /// Registers of bf16 numbers, widened to single precision.
    type Bf16: Vector;
    /// A register of 32-bit integers.
    type I32: Vector;

    /// [`fold`], compiled for this instruction set.
    ///
    /// # Safety
    /// The processor has the instruction set; and as for [`super::Kernel::run`].
    unsafe fn run<V: Vector, O: Operation>(
        sources: &[*const u8],
        destinations: &[*mut u8],
        count: usize,
    );
}

/// One register of elements, or several that work as one.
///
/// # Safety
/// Every method needs a processor that has the instruction set; `load` and `store` need
/// [`Self::BYTES`] readable or writable bytes, which need not be aligned.
pub(super) trait Vector: Copy {
    /// What it covers in memory.
    const BYTES: usize;
    /// What one of its elements covers in memory.
    const ELEMENT_BYTES: usize;
    /// The vector for what remains when less than [`Self::BYTES`] do; a vector of one element names
    /// itself.
    type Narrower: Vector;
    /// A finished result, as memory has it.
    type Stored: Copy;

    unsafe fn load(from: *const u8) -> Self;
    /// Adds; integers wrap. Any NaN will do for NaN.
    unsafe fn sum(self, other: Self) -> Self;
    /// The larger: -0 is less than +0, and any NaN will do if either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// Rounds to the precision of memory and makes NaN canonical.
    unsafe fn finish(self) -> Self::Stored;
    unsafe fn store(stored: Self::Stored, to: *mut u8);
}

/// How two vectors become one.
pub(super) trait Operation {
    /// # Safety
    /// As for the methods of [`Vector`].
    unsafe fn apply<V: Vector>(left: V, right: V) -> V;
}

/// [`crate::Op::Sum`].
pub(super) struct Sum;

impl Operation for Sum {
    #[inline(always)]
    unsafe fn apply<V: Vector>(left: V, right: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { left.sum(right) }
    }
}

/// [`crate::Op::Max`].
pub(super) struct Max;

impl Operation for Max {
    #[inline(always)]
    unsafe fn apply<V: Vector>(left: V, right: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { left.max(right) }
    }
}

/// Folds `sources` into every destination: what each [`InstructionSet::run`] inlines.
///
/// The frequent shapes are spelled out, so that their pointers stay in registers.
///
/// # Safety
/// As for [`InstructionSet::run`].
#[inline(always)]
pub(super) unsafe fn fold<V: Vector, O: Operation>(
    sources: &[*const u8],
    destinations: &[*mut u8],
    count: usize,
) {
    let len_bytes = count * V::ELEMENT_BYTES;
    // SAFETY: the caller's promise.
    unsafe {
        match (sources, destinations) {
            (&[a, b], &[x]) => sweep::<Four<V>, O>(&[a, b], &[x], 0, len_bytes),
            (&[a, b], &[x, y]) => sweep::<Four<V>, O>(&[a, b], &[x, y], 0, len_bytes),
            (&[a, b, c], &[x]) => sweep::<Four<V>, O>(&[a, b, c], &[x], 0, len_bytes),
            (&[a, b, c, d], &[x]) => sweep::<Four<V>, O>(&[a, b, c, d], &[x], 0, len_bytes),
            _ => sweep::<Four<V>, O>(sources, destinations, 0, len_bytes),
        }
    }
}

/// Folds the bytes from `start` to `end` by vectors, and the rest by narrower ones.
#[inline(always)]
unsafe fn sweep<V: Vector, O: Operation>(
    sources: &[*const u8],
    destinations: &[*mut u8],
    mut start: usize,
    end: usize,
) {
    let Some((first, others)) = sources.split_first() else { return };
    while end - start >= V::BYTES {
        // SAFETY: the vector ends within the buffers. All its sources are read before the first
        // destination is written, so a destination may be a source.
        unsafe {
            let mut folded = V::load(first.add(start));
            for source in others {
                folded = O::apply(folded, V::load(source.add(start)));
            }
            let finished = folded.finish();
            for destination in destinations {
                V::store(finished, destination.add(start));
            }
        }
        start += V::BYTES;
    }
    if const { V::BYTES > V::ELEMENT_BYTES } {
        // SAFETY: as above.
        unsafe { sweep::<V::Narrower, O>(sources, destinations, start, end) }
    }
}

/// Four vectors in a row: enough independent operations to hide their latency, and a quarter of
/// the loop's overhead.
#[derive(Clone, Copy)]
struct Four<V>(V, V, V, V);

impl<V: Vector> Vector for Four<V> {
    const BYTES: usize = 4 * V::BYTES;
    const ELEMENT_BYTES: usize = V::ELEMENT_BYTES;
    type Narrower = V;
    type Stored = Four<V::Stored>;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Four(
                V::load(from),
                V::load(from.add(V::BYTES)),
                V::load(from.add(2 * V::BYTES)),
                V::load(from.add(3 * V::BYTES)),
            )
        }
    }

    #[inline(always)]
    unsafe fn sum(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Four(self.0.sum(other.0), self.1.sum(other.1), self.2.sum(other.2), self.3.sum(other.3))
        }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Four(self.0.max(other.0), self.1.max(other.1), self.2.max(other.2), self.3.max(other.3))
        }
    }

    #[inline(always)]
    unsafe fn finish(self) -> Self::Stored {
        // SAFETY: the caller's promise.
        unsafe { Four(self.0.finish(), self.1.finish(), self.2.finish(), self.3.finish()) }
    }

    #[inline(always)]
    unsafe fn store(stored: Self::Stored, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            V::store(stored.0, to);
            V::store(stored.1, to.add(V::BYTES));
            V::store(stored.2, to.add(2 * V::BYTES));
            V::store(stored.3, to.add(3 * V::BYTES));
        }
    }
}
