//! The loop of all kernels, and the traits that register types and operations implement for it.
//!
//! Everything here and in the implementations of [`Vector`] is `inline(always)`: it becomes part of
//! [`InstructionSet::run`], the only function that is compiled for the instruction set.

/// A compiled kernel: sources, destinations, elements, and the number that scales the result.
pub(super) type Run = unsafe fn(&[*const u8], &[*mut u8], usize, f64);

/// An instruction set: its register types, and the entry point compiled for it.
pub(super) trait InstructionSet {
    /// Single-precision numbers.
    type F32: Vector;
    /// Double-precision numbers.
    type F64: Vector;
    /// bf16 numbers, widened to single precision.
    type Bf16: Vector;
    /// f16 numbers, widened to single precision.
    type F16: Vector;
    /// fp8 numbers with four bits of exponent, widened to single precision.
    type F8E4M3: Vector;
    /// fp8 numbers with five bits of exponent, widened to single precision.
    type F8E5M2: Vector;
    /// Signed integers.
    type I8: Vector;
    /// Unsigned integers.
    type U8: Vector;
    /// Signed integers.
    type I32: Vector;
    /// Unsigned integers.
    type U32: Vector;
    /// Signed integers.
    type I64: Vector;
    /// Unsigned integers.
    type U64: Vector;

    /// [`fold`], compiled for this instruction set.
    ///
    /// # Safety
    /// The processor has the instruction set; and as for [`super::Kernel::run`].
    unsafe fn run<V: Vector, O: Operation>(
        sources: &[*const u8],
        destinations: &[*mut u8],
        count: usize,
        scalar: f64,
    );
}

/// How two elements become one.
#[derive(Clone, Copy)]
pub(super) enum Combine {
    /// Adds; integers wrap.
    Sum,
    /// Multiplies; integers wrap.
    Product,
    /// The smaller: -0 is less than +0.
    Min,
    /// The larger: -0 is less than +0.
    Max,
    /// Of integers, each bit that both have.
    And,
    /// Of integers, each bit that one of them has.
    Or,
    /// Of integers, each bit that one of them has and the other has not.
    Xor,
}

/// What is done to a folded element before it is finished.
#[derive(Clone, Copy)]
pub(super) enum Scale {
    /// Nothing.
    Keep,
    /// Multiplied by the scalar.
    Times,
    /// Divided by the scalar.
    Over,
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
    /// Any NaN will do if either is NaN. `how` is a constant in every kernel; operations that the
    /// type does not have never come ([`crate::DataType::has`]).
    unsafe fn combine(self, other: Self, how: Combine) -> Self;
    /// As `scale` says, in the precision that is folded in. Integers are never scaled.
    unsafe fn scale(self, scale: Scale, scalar: f64) -> Self;
    /// Rounds to the precision of memory and makes NaN canonical.
    unsafe fn finish(self) -> Self::Stored;
    unsafe fn store(stored: Self::Stored, to: *mut u8);
}

/// What a kernel does: constants, so that each is compiled alone.
pub(super) trait Operation {
    const COMBINE: Combine;
    const SCALE: Scale = Scale::Keep;
}

macro_rules! operation {
    ($name:ident, $combine:ident) => {
        /// The fold of that name.
        pub(super) struct $name;

        impl Operation for $name {
            const COMBINE: Combine = Combine::$combine;
        }
    };
}

operation!(Sum, Sum);
operation!(Product, Product);
operation!(Min, Min);
operation!(Max, Max);
operation!(And, And);
operation!(Or, Or);
operation!(Xor, Xor);

/// The sum, divided by the scalar.
pub(super) struct Quotient;

impl Operation for Quotient {
    const COMBINE: Combine = Combine::Sum;
    const SCALE: Scale = Scale::Over;
}

/// The sum, usually of one source, multiplied by the scalar.
pub(super) struct Multiple;

impl Operation for Multiple {
    const COMBINE: Combine = Combine::Sum;
    const SCALE: Scale = Scale::Times;
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
    scalar: f64,
) {
    let len_bytes = count * V::ELEMENT_BYTES;
    // SAFETY: the caller's promise.
    unsafe {
        match (sources, destinations) {
            (&[a, b], &[x]) => sweep::<Four<V>, O>(&[a, b], &[x], 0, len_bytes, scalar),
            (&[a, b], &[x, y]) => sweep::<Four<V>, O>(&[a, b], &[x, y], 0, len_bytes, scalar),
            (&[a, b, c], &[x]) => sweep::<Four<V>, O>(&[a, b, c], &[x], 0, len_bytes, scalar),
            (&[a, b, c, d], &[x]) => sweep::<Four<V>, O>(&[a, b, c, d], &[x], 0, len_bytes, scalar),
            _ => sweep::<Four<V>, O>(sources, destinations, 0, len_bytes, scalar),
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
    scalar: f64,
) {
    let Some((first, others)) = sources.split_first() else { return };
    while end - start >= V::BYTES {
        // SAFETY: the vector ends within the buffers. All its sources are read before the first
        // destination is written, so a destination may be a source.
        unsafe {
            let mut folded = V::load(first.add(start));
            for source in others {
                folded = folded.combine(V::load(source.add(start)), O::COMBINE);
            }
            let finished = folded.scale(O::SCALE, scalar).finish();
            for destination in destinations {
                V::store(finished, destination.add(start));
            }
        }
        start += V::BYTES;
    }
    if const { V::BYTES > V::ELEMENT_BYTES } {
        // SAFETY: as above.
        unsafe { sweep::<V::Narrower, O>(sources, destinations, start, end, scalar) }
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
    unsafe fn combine(self, other: Self, how: Combine) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Four(
                self.0.combine(other.0, how),
                self.1.combine(other.1, how),
                self.2.combine(other.2, how),
                self.3.combine(other.3, how),
            )
        }
    }

    #[inline(always)]
    unsafe fn scale(self, scale: Scale, scalar: f64) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Four(
                self.0.scale(scale, scalar),
                self.1.scale(scale, scalar),
                self.2.scale(scale, scalar),
                self.3.scale(scale, scalar),
            )
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
