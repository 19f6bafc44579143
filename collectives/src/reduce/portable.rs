//! Kernels in plain Rust: arrays that the compiler turns into the vectors of its target, and single
//! elements for what remains at the end of a buffer at every level.

use super::narrow::{F8E4M3, F8E5M2, F16, Narrow};
use super::vector::{Combine, InstructionSet, Operation, Scale, Vector, fold};

/// What the compiler's target has anyway.
pub(super) struct Portable;

impl InstructionSet for Portable {
    type F32 = F32x4;
    type F64 = F64x2;
    type Bf16 = Bf16x8;
    type F16 = Lanes<Narrow<F16>, 8>;
    type F8E4M3 = Lanes<Narrow<F8E4M3>, 8>;
    type F8E5M2 = Lanes<Narrow<F8E5M2>, 8>;
    type I8 = Lanes<i8, 16>;
    type U8 = Lanes<u8, 16>;
    type I32 = Lanes<i32, 4>;
    type U32 = Lanes<u32, 4>;
    type I64 = Lanes<i64, 2>;
    type U64 = Lanes<u64, 2>;

    unsafe fn run<V: Vector, O: Operation>(
        sources: &[*const u8],
        destinations: &[*mut u8],
        count: usize,
        scalar: f64,
    ) {
        // SAFETY: the caller's promise.
        unsafe { fold::<V, O>(sources, destinations, count, scalar) }
    }
}

/// 16 bytes of f32.
pub(super) type F32x4 = Lanes<f32, 4>;
/// 16 bytes of f64.
pub(super) type F64x2 = Lanes<f64, 2>;
/// 16 bytes of bf16.
pub(super) type Bf16x8 = Lanes<WidenedPair, 4>;

/// `N` elements while they are folded. Written in loops: of longer arrays, `array::map` does not become
/// vectors.
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
        let stored = unsafe { from.cast::<[T::Stored; N]>().read_unaligned() };
        let mut lanes = [T::default(); N];
        for (lane, stored) in lanes.iter_mut().zip(stored) {
            *lane = T::widen(stored);
        }
        Lanes(lanes)
    }

    #[inline(always)]
    unsafe fn combine(mut self, other: Self, how: Combine) -> Self {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = lane.combine(other, how);
        }
        self
    }

    #[inline(always)]
    unsafe fn scale(mut self, scale: Scale, scalar: f64) -> Self {
        for lane in &mut self.0 {
            *lane = lane.scale(scale, scalar);
        }
        self
    }

    #[inline(always)]
    unsafe fn finish(self) -> Self::Stored {
        let mut stored = [T::Stored::default(); N];
        for (stored, lane) in stored.iter_mut().zip(self.0) {
            *stored = lane.finish();
        }
        stored
    }

    #[inline(always)]
    unsafe fn store(stored: Self::Stored, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[T::Stored; N]>().write_unaligned(stored) }
    }
}

/// What one lane folds: [`Vector`] for a single number, or for a pair.
pub(super) trait Lane: Copy + Default {
    /// The lane's content as memory has it.
    type Stored: Copy + Default;
    /// The lane for one element.
    type Single: Lane;

    fn widen(stored: Self::Stored) -> Self;
    fn combine(self, other: Self, how: Combine) -> Self;
    fn scale(self, scale: Scale, scalar: f64) -> Self;
    fn finish(self) -> Self::Stored;
}

macro_rules! integer_lane {
    ($($integer:ty),*) => {$(
        impl Lane for $integer {
            type Stored = $integer;
            type Single = $integer;

            #[inline(always)]
            fn widen(stored: $integer) -> $integer {
                stored
            }

            #[inline(always)]
            fn combine(self, other: $integer, how: Combine) -> $integer {
                match how {
                    Combine::Sum => self.wrapping_add(other),
                    Combine::Product => self.wrapping_mul(other),
                    Combine::Min => Ord::min(self, other),
                    Combine::Max => Ord::max(self, other),
                    Combine::And => self & other,
                    Combine::Or => self | other,
                    Combine::Xor => self ^ other,
                }
            }

            #[inline(always)]
            fn scale(self, _: Scale, _: f64) -> $integer {
                self
            }

            #[inline(always)]
            fn finish(self) -> $integer {
                self
            }
        }
    )*};
}

integer_lane!(i8, u8, i32, u32, i64, u64);

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
            fn combine(self, other: $float, how: Combine) -> $float {
                // Written without branches: it must become vectors.
                let extreme = |bits| {
                    if self.is_nan() | other.is_nan() {
                        $canonical_nan
                    } else {
                        <$float>::from_bits(bits)
                    }
                };
                match how {
                    Combine::Sum => self + other,
                    Combine::Product => self * other,
                    Combine::Min => {
                        // Equal numbers differ at most in the sign of zero: minus, if one has it.
                        let either = if self < other { self } else { other };
                        let or_either = if other < self { other } else { self };
                        extreme(either.to_bits() | or_either.to_bits())
                    }
                    Combine::Max => {
                        // Minus only if both have it.
                        let either = if self > other { self } else { other };
                        let or_either = if other > self { other } else { self };
                        extreme(either.to_bits() & or_either.to_bits())
                    }
                    Combine::And | Combine::Or | Combine::Xor => no_bit_operations(),
                }
            }

            #[inline(always)]
            fn scale(self, scale: Scale, scalar: f64) -> $float {
                match scale {
                    Scale::Keep => self,
                    Scale::Times => self * scalar as $float,
                    Scale::Over => self / scalar as $float,
                }
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

/// What a float's vector answers to an operation that only integers have.
#[cold]
pub(super) fn no_bit_operations() -> ! {
    unreachable!("floating-point types have no bit operations")
}

/// A bf16 number in single precision.
#[derive(Clone, Copy, Default)]
pub(super) struct WidenedBf16(f32);

impl Lane for WidenedBf16 {
    type Stored = u16;
    type Single = WidenedBf16;

    #[inline(always)]
    fn widen(stored: u16) -> Self {
        WidenedBf16(f32::from_bits(u32::from(stored) << 16))
    }

    #[inline(always)]
    fn combine(self, other: Self, how: Combine) -> Self {
        WidenedBf16(self.0.combine(other.0, how))
    }

    #[inline(always)]
    fn scale(self, scale: Scale, scalar: f64) -> Self {
        WidenedBf16(self.0.scale(scale, scalar))
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
#[derive(Clone, Copy, Default)]
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
    fn combine(self, other: Self, how: Combine) -> Self {
        WidenedPair {
            lower: self.lower.combine(other.lower, how),
            upper: self.upper.combine(other.upper, how),
        }
    }

    #[inline(always)]
    fn scale(self, scale: Scale, scalar: f64) -> Self {
        WidenedPair {
            lower: self.lower.scale(scale, scalar),
            upper: self.upper.scale(scale, scalar),
        }
    }

    #[inline(always)]
    fn finish(self) -> u32 {
        self.lower.round() >> 16 | self.upper.round() & 0xFFFF_0000
    }
}
