//! `cvt`: between integers and floats of all sizes.

use super::float::{self, Format, Rounding};
use super::instruction::Binary;
use super::types::Type;

/// What a `cvt` does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conversion {
    pub from: Type,
    pub into: Type,
    pub rounding: Rounding,
    /// `.rni` and its like: the result is an integer, even as a float.
    pub is_integral: bool,
    pub saturates: bool,
}

impl Conversion {
    /// The result for a register's content. Integers are extended to 64 bits, as `cvt` into a register
    /// that is wider than the type demands.
    pub fn apply(self, bits: u64) -> u64 {
        match (format(self.from), format(self.into)) {
            (None, None) => self.integer_to_integer(bits),
            (None, Some(format)) => self.integer_to_float(bits, format),
            (Some(format), None) => self.float_to_integer(format.widen(bits)),
            (Some(from), Some(into)) => {
                let mut value = from.widen(bits);
                if self.is_integral {
                    value = float::to_integral(value, self.rounding);
                }
                if self.saturates {
                    value = float::saturate(value);
                }
                into.narrow(value, self.rounding)
            }
        }
    }

    fn integer_to_integer(self, bits: u64) -> u64 {
        let mut value = integer_value(self.from, bits);
        if self.saturates {
            let (least, greatest) = limits(self.into);
            value = value.clamp(least, greatest);
        }
        self.into.extend(value as u64)
    }

    fn integer_to_float(self, bits: u64, format: Format) -> u64 {
        let mut value = integer_value(self.from, bits);
        if self.saturates {
            value = value.clamp(0, 1);
        }
        format.assemble(value < 0, value.unsigned_abs() as u64, 0, self.rounding)
    }

    /// Always saturates to the integer's limits.
    fn float_to_integer(self, value: f64) -> u64 {
        if value.is_nan() {
            let is_wide = self.from == Type::F64 || self.into.bits() == 64;
            let result = if is_wide { 1 << (self.into.bits() - 1) } else { 0 };
            return self.into.extend(result);
        }
        let (least, greatest) = limits(self.into);
        let integral = float::to_integral(value, self.rounding);
        self.into.extend((integral as i128).clamp(least, greatest) as u64)
    }
}

/// The format of a float type.
fn format(kind: Type) -> Option<Format> {
    Some(match kind {
        Type::F16 => float::F16,
        Type::Bf16 => float::BF16,
        Type::F32 => float::F32,
        Type::F64 => float::F64,
        _ => return None,
    })
}

fn integer_value(kind: Type, bits: u64) -> i128 {
    let extended = kind.extend(bits);
    if kind.is_signed() { i128::from(extended as i64) } else { i128::from(extended) }
}

fn limits(kind: Type) -> (i128, i128) {
    if kind.is_signed() {
        (-(1 << (kind.bits() - 1)), (1 << (kind.bits() - 1)) - 1)
    } else {
        (0, (1 << kind.bits()) - 1)
    }
}

/// `cvt` of two floats into a pair: the first becomes the upper half.
pub(super) fn pair(kind: Type, rounding: Rounding) -> Option<Binary> {
    fn pack(format: Format, upper: u64, lower: u64, rounding: Rounding) -> u64 {
        let half = |bits| format.narrow(float::F32.widen(bits), rounding);
        half(upper) << 16 | half(lower)
    }
    Some(match (kind, rounding) {
        (Type::F16x2, Rounding::NearestEven) => {
            |a, b| pack(float::F16, a, b, Rounding::NearestEven)
        }
        (Type::F16x2, Rounding::Zero) => |a, b| pack(float::F16, a, b, Rounding::Zero),
        (Type::Bf16x2, Rounding::NearestEven) => {
            |a, b| pack(float::BF16, a, b, Rounding::NearestEven)
        }
        (Type::Bf16x2, Rounding::Zero) => |a, b| pack(float::BF16, a, b, Rounding::Zero),
        _ => return None,
    })
}
