//! Numbers of 8 and 16 bits that processors do not compute with: widened to single precision for
//! the fold, and rounded once to nearest even.
//!
//! The formats are those of IEEE 754-2008 (f16) and of "FP8 Formats for Deep Learning"
//! (arXiv 2209.05433). A sum beyond the largest number is infinity where the format has one, and NaN
//! in e4m3, which has none.

use std::marker::PhantomData;

use super::portable::Lane;
use super::vector::{Combine, Scale};

/// Where the fields of a number are.
pub(super) trait Format: Copy + Default {
    /// The number as memory has it.
    type Bits: Copy + Default + Into<u32>;
    /// Bits of the mantissa.
    const MANTISSA: u32;
    /// What is added to the exponent.
    const BIAS: u32;
    /// The first magnitude that is no number: infinity, or NaN where there is none.
    const FIRST_SPECIAL: u32;
    /// The NaN that results are.
    const NAN: u32;

    fn from_code(code: u32) -> Self::Bits;
}

macro_rules! format {
    ($(#[$doc:meta])* $name:ident, $bits:ty, $mantissa:expr, $bias:expr, $special:expr, $nan:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default)]
        pub(super) struct $name;

        impl Format for $name {
            type Bits = $bits;
            const MANTISSA: u32 = $mantissa;
            const BIAS: u32 = $bias;
            const FIRST_SPECIAL: u32 = $special;
            const NAN: u32 = $nan;

            #[inline(always)]
            fn from_code(code: u32) -> $bits {
                code as $bits
            }
        }
    };
}

format!(
    /// Half precision.
    F16, u16, 10, 15, 0x7C00, 0x7E00
);
format!(
    /// fp8 with four bits of exponent.
    F8E4M3, u8, 3, 7, 0x7F, 0x7F
);
format!(
    /// fp8 with five bits of exponent: the upper half of an f16.
    F8E5M2, u8, 2, 15, 0x7C, 0x7E
);

/// A number of a narrow format, in single precision.
#[derive(Clone, Copy, Default)]
pub(super) struct Narrow<F>(f32, PhantomData<F>);

impl<F: Format> Narrow<F> {
    /// How far the mantissa is from where single precision has it.
    const SHIFT: u32 = 23 - F::MANTISSA;
    /// What the exponent lacks to that of single precision.
    const REBIAS: u32 = 127 - F::BIAS;
    const SIGN_SHIFT: u32 = 32 - 8 * size_of::<F::Bits>() as u32;
    const SIGN: u32 = 1 << 31 >> Self::SIGN_SHIFT;
    /// The bits of the least normal number in single precision.
    const LEAST_NORMAL: u32 = (Self::REBIAS + 1) << 23;
    /// The bits of a number whose last place is the format's least number.
    const LAST_PLACE: u32 = (Self::REBIAS + 1 + Self::SHIFT) << 23;
}

impl<F: Format> Lane for Narrow<F> {
    type Stored = F::Bits;
    type Single = Narrow<F>;

    #[inline(always)]
    fn widen(stored: F::Bits) -> Self {
        let code: u32 = stored.into();
        let magnitude = code & (Self::SIGN - 1);
        // The format's small numbers are normal ones here, and are made without denormals in
        // between, which processors take long for, or for zero.
        let normal = (magnitude << Self::SHIFT) + (Self::REBIAS << 23);
        let small = f32::from_bits((magnitude << Self::SHIFT) + Self::LEAST_NORMAL)
            - f32::from_bits(Self::LEAST_NORMAL);
        let special = if magnitude >= F::FIRST_SPECIAL { 0x7F80_0000 } else { 0 };
        let is_small = magnitude < 1 << F::MANTISSA;
        let bits = if is_small { small.to_bits() } else { normal | special };
        Narrow(f32::from_bits(bits | (code & Self::SIGN) << Self::SIGN_SHIFT), PhantomData)
    }

    #[inline(always)]
    fn combine(self, other: Self, how: Combine) -> Self {
        Narrow(self.0.combine(other.0, how), PhantomData)
    }

    #[inline(always)]
    fn scale(self, scale: Scale, scalar: f64) -> Self {
        Narrow(self.0.scale(scale, scalar), PhantomData)
    }

    #[inline(always)]
    fn finish(self) -> F::Bits {
        let bits = self.0.to_bits();
        let magnitude = bits & 0x7FFF_FFFF;
        let odd = magnitude >> Self::SHIFT & 1;
        let rounded = magnitude.wrapping_add((1 << (Self::SHIFT - 1)) - 1 + odd) >> Self::SHIFT;
        let normal = rounded.wrapping_sub(Self::REBIAS << F::MANTISSA).min(F::FIRST_SPECIAL);
        // The addition rounds to a multiple of the format's least number.
        let small = (f32::from_bits(magnitude) + f32::from_bits(Self::LAST_PLACE)).to_bits()
            - Self::LAST_PLACE;
        let code = if magnitude < Self::LEAST_NORMAL { small } else { normal };
        let signed = code | bits >> Self::SIGN_SHIFT & Self::SIGN;
        let is_nan = magnitude > 0x7F80_0000 || F::FIRST_SPECIAL == F::NAN && code == F::NAN;
        F::from_code(if is_nan { F::NAN } else { signed })
    }
}
