//! Values of every element type: some whose sums are exact, some that are as unpleasant as
//! numbers get.

use half::bf16;
use ringtree::{Element, Op};

/// An element type that tests know how to make and how to fold.
pub trait Sample: Element {
    /// A value such that the sum of 16 of them is exact in any order.
    fn exact(number: u64) -> Self;

    /// A value whose sums depend on their order.
    fn inexact(number: u64) -> Self;

    /// NaN (several), an infinity, a zero, one of the smallest or of the largest numbers.
    fn special(number: u64) -> Self;

    /// The reduction of two values, as the library defines it.
    fn fold(op: Op, a: Self, b: Self) -> Self;

    /// The bits of the value.
    fn bits(self) -> u64;
}

/// `span`: integers up to it, and 16 times it, are exact. `nan`: the NaN that every NaN becomes.
/// `nans`: others. `inexact`: bits of 0.5, and the bits that may be added to them. `sum`: of two.
macro_rules! float {
    ($type:ident, $bits:ident, span $span:literal, nan $nan:literal, nans $nans:expr,
     inexact $half:literal $mask:literal, from $from_f64:expr, sum $sum:expr) => {
        impl Sample for $type {
            fn exact(number: u64) -> $type {
                let (integer, span) = ((number % (2 * $span + 1)) as i64, $span as i64);
                $from_f64((integer - span) as f64)
            }

            fn inexact(number: u64) -> $type {
                $type::from_bits($half + (number as $bits & $mask))
            }

            fn special(number: u64) -> $type {
                let [quiet, signalling] = $nans.map($type::from_bits);
                let (tiny, zero) = ($type::from_bits(1), $type::from_bits(0));
                let (infinity, most) = ($type::INFINITY, $type::MAX);
                let all = [quiet, signalling, infinity, -infinity, zero, -zero, tiny, -tiny, most];
                all[(number % all.len() as u64) as usize]
            }

            fn fold(op: Op, a: $type, b: $type) -> $type {
                let folded = match op {
                    Op::Sum => $sum(a, b),
                    _ if a.is_nan() || b.is_nan() => $type::NAN,
                    // Of two zeros, +0 is the larger.
                    Op::Max if a > b || (a == b && b.is_sign_negative()) => a,
                    Op::Max => b,
                };
                if folded.is_nan() { $type::from_bits($nan) } else { folded }
            }

            fn bits(self) -> u64 {
                self.to_bits().into()
            }
        }
    };
}

float!(
    f32, u32, span 0x4_0000, nan 0x7fc0_0000, nans [0xffc0_1234, 0x7f80_0001],
    inexact 0x3f00_0000 0x81ff_ffff, from |x| x as f32, sum |a: f32, b| a + b
);
float!(
    f64, u64, span 0x1_0000_0000_0000, nan 0x7ff8_0000_0000_0000,
    nans [0xfff8_0000_0000_1234, 0x7ff0_0000_0000_0001],
    inexact 0x3fe0_0000_0000_0000 0x803f_ffff_ffff_ffff, from |x| x, sum |a: f64, b| a + b
);
float!(
    bf16, u16, span 8, nan 0x7fc0, nans [0xffc1, 0x7f81],
    inexact 0x3f00 0x81ff, from bf16::from_f64,
    sum |a: bf16, b: bf16| bf16::from_f32(a.to_f32() + b.to_f32())
);

impl Sample for i32 {
    fn exact(number: u64) -> i32 {
        number as i32
    }

    fn inexact(number: u64) -> i32 {
        number as i32
    }

    fn special(number: u64) -> i32 {
        [i32::MIN, i32::MAX, 0, -1][(number % 4) as usize]
    }

    fn fold(op: Op, a: i32, b: i32) -> i32 {
        match op {
            Op::Sum => a.wrapping_add(b),
            Op::Max => a.max(b),
        }
    }

    fn bits(self) -> u64 {
        u64::from(self as u32)
    }
}
