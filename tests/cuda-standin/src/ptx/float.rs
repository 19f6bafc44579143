//! Floating-point formats: reading them, and rounding to them as PTX defines it.

/// How a result that has no exact representation is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    NearestEven,
    Zero,
    Down,
    Up,
}

/// A binary format of IEEE 754's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    mantissa_bits: u32,
    exponent_bits: u32,
    /// The one NaN that arithmetic gives.
    nan: u64,
}

pub(super) const F16: Format = Format { mantissa_bits: 10, exponent_bits: 5, nan: 0x7FFF };
pub(super) const BF16: Format = Format { mantissa_bits: 7, exponent_bits: 8, nan: 0x7FFF };
pub(super) const F32: Format = Format { mantissa_bits: 23, exponent_bits: 8, nan: 0x7FFF_FFFF };
pub(super) const F64: Format =
    Format { mantissa_bits: 52, exponent_bits: 11, nan: 0xFFF8_0000_0000_0000 };

impl Format {
    /// The value of a register's content. Exact: every format's values are values of `f64`.
    pub fn widen(self, bits: u64) -> f64 {
        if self == F64 {
            return f64::from_bits(bits);
        }
        if self == F32 {
            return f64::from(f32::from_bits(bits as u32));
        }
        if self == BF16 {
            return f64::from(f32::from_bits((bits as u32) << 16));
        }
        half::f16::from_bits(bits as u16).to_f64()
    }

    /// The bits of `value` rounded to this format.
    pub fn narrow(self, value: f64, rounding: Rounding) -> u64 {
        let (sign, infinity) = (self.sign(value.is_sign_negative()), self.infinity());
        if value.is_nan() {
            return self.nan;
        }
        if value.is_infinite() {
            return sign | infinity;
        }
        let fraction = value.to_bits() & ((1 << 52) - 1);
        let biased = (value.to_bits() >> 52 & 0x7FF) as i32;
        let mantissa = if biased == 0 { fraction } else { fraction | 1 << 52 };
        self.assemble(value.is_sign_negative(), mantissa, biased.max(1) - 1075, rounding)
    }

    /// The bits of ±`mantissa` · 2^`exponent` rounded to this format.
    pub fn assemble(self, negative: bool, mantissa: u64, exponent: i32, rounding: Rounding) -> u64 {
        let sign = self.sign(negative);
        if mantissa == 0 {
            return sign;
        }
        let least_exponent = 2 - (1 << (self.exponent_bits - 1));
        let leading_exponent =
            (exponent + 63 - mantissa.leading_zeros() as i32).max(least_exponent);
        // What the last bit of the result is worth decides how many bits of the mantissa are cut off.
        let cut_bits = leading_exponent - self.mantissa_bits as i32 - exponent;
        let mut kept = if cut_bits <= 0 {
            mantissa << -cut_bits
        } else {
            // From 66 bits on the rest is less than half of the last bit, however many they are.
            let cut_bits = cut_bits.min(66);
            let kept = u128::from(mantissa) >> cut_bits;
            let rest = u128::from(mantissa) - (kept << cut_bits);
            let half = 1u128 << (cut_bits - 1);
            let goes_up = match rounding {
                Rounding::NearestEven => rest > half || (rest == half && kept & 1 == 1),
                Rounding::Zero => false,
                Rounding::Down => negative && rest != 0,
                Rounding::Up => !negative && rest != 0,
            };
            kept as u64 + u64::from(goes_up)
        };
        // The leading bit of a normal number adds one to the exponent's field, as does a carry.
        kept += ((leading_exponent - least_exponent) as u64) << self.mantissa_bits;
        if kept >= self.infinity() {
            let overflows_to_infinity = match rounding {
                Rounding::NearestEven => true,
                Rounding::Zero => false,
                Rounding::Down => negative,
                Rounding::Up => !negative,
            };
            kept = self.infinity() - u64::from(!overflows_to_infinity);
        }
        sign | kept
    }

    fn sign(self, negative: bool) -> u64 {
        u64::from(negative) << (self.mantissa_bits + self.exponent_bits)
    }

    fn infinity(self) -> u64 {
        ((1 << self.exponent_bits) - 1) << self.mantissa_bits
    }
}

/// A result of `f32` arithmetic: all NaN are one.
pub(super) fn canonical_f32(value: f32) -> u64 {
    if value.is_nan() { F32.nan } else { u64::from(value.to_bits()) }
}

/// A result of `f64` arithmetic: all NaN are one.
pub(super) fn canonical_f64(value: f64) -> u64 {
    if value.is_nan() { F64.nan } else { value.to_bits() }
}

/// The sum, rounded so that rounding it once more to a format of at most half as many bits gives what
/// rounding the exact sum would: an inexact sum gets an odd last bit.
pub(super) fn add_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    if !sum.is_finite() {
        return sum;
    }
    let b_in_sum = sum - a;
    let error = (a - (sum - b_in_sum)) + (b - b_in_sum);
    if error == 0.0 || sum.to_bits() & 1 == 1 {
        return sum;
    }
    let away_from_zero = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if away_from_zero { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
}

/// `min` of PTX: a NaN gives way to a number, and −0 is less than +0.
pub(super) fn min(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a < b || (a == b && a.is_sign_negative()) {
        a
    } else {
        b
    }
}

/// `max` of PTX, as [`min`].
pub(super) fn max(a: f64, b: f64) -> f64 {
    -min(-a, -b)
}

/// `min.NaN`: a NaN wins.
pub(super) fn min_nan(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { min(a, b) }
}

/// `max.NaN`: a NaN wins.
pub(super) fn max_nan(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { max(a, b) }
}

/// To an integer, still as a float. Keeps the sign of zero.
pub(super) fn to_integral(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::NearestEven => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// `.sat` of a float: between 0 and 1, a NaN is +0.
pub(super) fn saturate(value: f64) -> f64 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}
