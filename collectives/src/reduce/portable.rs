//! Kernels in plain Rust: arrays that the compiler turns into the vectors of its target, and single
//! elements for what remains at the end of a buffer at every level.

use super::vector::{InstructionSet, Operation, Vector, fold};

/// What the compiler's target has anyway.
pub(super) struct Portable;

impl InstructionSet for Portable {
    type F32 = F32x4;
    type F64 = F64x2;
    type Bf16 = Bf16x8;
    type I32 = I32x4;

    unsafe fn run<V: Vector, O: Operation>(
        sources: &[*const u8],
        destinations: &[*mut u8],
        count: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { fold::<V, O>(sources, destinations, count) }
    }
}

/// 16 bytes of f32.
pub(super) type F32x4 = Lanes<f32, 4>;
/// 16 bytes of f64.
pub(super) type F64x2 = Lanes<f64, 2>;
/// 16 bytes of bf16.
pub(super) type Bf16x8 = Lanes<WidenedPair, 4>;
/// 16 bytes of i32.
pub(super) type I32x4 = Lanes<i32, 4>;

/// `N` elements while they are folded.
#[derive(Clone, Copy)]
pub(super) struct Lanes<T, const N: usize>([T; N]);

impl<T: Lane, const N: usize> Vector for Lanes<T, N> {
    const BYTES: usize = size_of::<[T::Stored; N]>();
    const ELEMENT_BYTES: usize = size_of::<<T::Single as Lane>::Stored>();
    type Narrower = Lanes<T::Single, 1>;
    type Stored = [T::Stored; N];

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        Lanes(unsafe { from.cast::<[T::Stored; N]>().read_unaligned() }.map(T::widen))
    }

    #[inline(always)]
    unsafe fn sum(mut self, other: Self) -> Self {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = lane.sum(other);
        }
        self
    }

    #[inline(always)]
    unsafe fn max(mut self, other: Self) -> Self {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = lane.max(other);
        }
        self
    }

    #[inline(always)]
    unsafe fn finish(self) -> Self::Stored {
        self.0.map(T::finish)
    }

    #[inline(always)]
    unsafe fn store(stored: Self::Stored, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[T::Stored; N]>().write_unaligned(stored) }
    }
}

/// What one lane folds: [`Vector`] for a single number, or for a pair.
pub(super) trait Lane: Copy {
    /// The lane's content as memory has it.
    type Stored: Copy;
    /// The lane for one element.
    type Single: Lane;

    fn widen(stored: Self::Stored) -> Self;
    fn sum(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn finish(self) -> Self::Stored;
}

impl Lane for i32 {
    type Stored = i32;
    type Single = i32;

    #[inline(always)]
    fn widen(stored: i32) -> i32 {
        stored
    }

    #[inline(always)]
    fn sum(self, other: i32) -> i32 {
        self.wrapping_add(other)
    }

    #[inline(always)]
    fn max(self, other: i32) -> i32 {
        Ord::max(self, other)
    }

    #[inline(always)]
    fn finish(self) -> i32 {
        self
    }
}

macro_rules! float_lane {
    ($float:ty, $canonical_nan:expr) => {
        impl Lane for $float {
            type Stored = $float;
            type Single = $float;

            #[inline(always)]
            fn widen(stored: $float) -> $float {
                stored
            }

            #[inline(always)]
            fn sum(self, other: $float) -> $float {
                self + other
            }

            #[inline(always)]
            fn max(self, other: $float) -> $float {
                // Equal numbers differ at most in the sign of zero, which the conjunction clears
                // unless both have it. Written without branches: it must become vectors.
                let either = if self > other { self } else { other };
                let or_either = if other > self { other } else { self };
                let larger = <$float>::from_bits(either.to_bits() & or_either.to_bits());
                if self.is_nan() | other.is_nan() { $canonical_nan } else { larger }
            }

            #[inline(always)]
            fn finish(self) -> $float {
                if self.is_nan() { $canonical_nan } else { self }
            }
        }
    };
}

float_lane!(f32, f32::from_bits(0x7FC0_0000));
float_lane!(f64, f64::from_bits(0x7FF8_0000_0000_0000));

/// A bf16 number in single precision.
#[derive(Clone, Copy)]
pub(super) struct WidenedBf16(f32);

impl Lane for WidenedBf16 {
    type Stored = u16;
    type Single = WidenedBf16;

    #[inline(always)]
    fn widen(stored: u16) -> Self {
        WidenedBf16(f32::from_bits(u32::from(stored) << 16))
    }

    #[inline(always)]
    fn sum(self, other: Self) -> Self {
        WidenedBf16(self.0 + other.0)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        WidenedBf16(Lane::max(self.0, other.0))
    }

    #[inline(always)]
    fn finish(self) -> u16 {
        (self.round() >> 16) as u16
    }
}

impl WidenedBf16 {
    /// Rounds to bf16, which is the upper half of the result.
    #[inline(always)]
    fn round(self) -> u32 {
        // Canonical before rounding: the carry cannot reach the sign then. It may reach the
        // exponent, which makes the next power of two, or infinity.
        let bits = self.0.finish().to_bits();
        bits.wrapping_add(0x7FFF + ((bits >> 16) & 1))
    }
}

/// The two bf16 numbers of a 32-bit word, so that all lanes have 32 bits and nothing is shuffled.
#[derive(Clone, Copy)]
pub(super) struct WidenedPair {
    lower: WidenedBf16,
    upper: WidenedBf16,
}

impl Lane for WidenedPair {
    type Stored = u32;
    type Single = WidenedBf16;

    #[inline(always)]
    fn widen(stored: u32) -> Self {
        WidenedPair {
            lower: WidenedBf16(f32::from_bits(stored << 16)),
            upper: WidenedBf16(f32::from_bits(stored & 0xFFFF_0000)),
        }
    }

    #[inline(always)]
    fn sum(self, other: Self) -> Self {
        WidenedPair { lower: self.lower.sum(other.lower), upper: self.upper.sum(other.upper) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        WidenedPair { lower: self.lower.max(other.lower), upper: self.upper.max(other.upper) }
    }

    #[inline(always)]
    fn finish(self) -> u32 {
        self.lower.round() >> 16 | self.upper.round() & 0xFFFF_0000
    }
}
