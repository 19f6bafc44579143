//! Values of every element type: some whose sums are exact, some that are as unpleasant as
//! numbers get.

use ringtree::{Element, F8E4M3, F8E5M2, Op, bf16, f16};

/// An element type that tests know how to make and how to fold.
pub trait Sample: Element {
    /// A value such that the sum of 16 of them is exact in any order, also when they are doubled.
    /// (Of e5m2, which has three digits, almost all are zero.)
    fn exact(number: u64) -> Self;

    /// A value such that the product of 16 of them is exact in any order.
    fn exact_factor(number: u64) -> Self;

    /// A value whose sums depend on their order.
    fn inexact(number: u64) -> Self;

    /// NaN (several), an infinity, a zero, one of the smallest or of the largest numbers.
    fn special(number: u64) -> Self;

    /// The reduction of two values, as the library defines it; of an average, their sum.
    fn fold(op: Op, a: Self, b: Self) -> Self;

    /// Multiplied by `factor` and rounded.
    fn multiplied(self, factor: f64) -> Self;

    /// Divided by `ranks` and rounded.
    fn divided(self, ranks: u32) -> Self;

    /// The bits of the value.
    fn bits(self) -> u64;
}

/// `span`: integers up to it, and 32 times it, are exact. `nan`: the NaN that every NaN becomes.
/// `nans`: others. `inexact`: bits of 0.5, and the bits that may be added to them. `wide`: what it is
/// folded in, to that and from it.
macro_rules! float {
    ($type:ident, $bits:ident, span $span:literal, nan $nan:literal, nans $nans:expr,
     inexact $half:literal $mask:literal, wide $wide:ident $widen:expr, $narrow:expr) => {
        impl Sample for $type {
            fn exact(number: u64) -> $type {
                let (integer, span) = ((number % (2 * $span + 1)) as i64, $span as i64);
                $narrow((integer - span) as $wide)
            }

            fn exact_factor(number: u64) -> $type {
                $narrow([1.0, -1.0, 0.5, -2.0][(number % 4) as usize])
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
                    Op::Sum | Op::Average | Op::PreMulSum(_) => $narrow($widen(a) + $widen(b)),
                    Op::Product => $narrow($widen(a) * $widen(b)),
                    _ if a.is_nan() || b.is_nan() => $type::NAN,
                    // Of two zeros, +0 is the larger.
                    Op::Max if a > b || (a == b && b.is_sign_negative()) => a,
                    Op::Max => b,
                    Op::Min if a < b || (a == b && a.is_sign_negative()) => a,
                    Op::Min => b,
                    Op::BitAnd | Op::BitOr | Op::BitXor => panic!("no float has {op:?}"),
                };
                if folded.is_nan() { $type::from_bits($nan) } else { folded }
            }

            fn multiplied(self, factor: f64) -> $type {
                $narrow($widen(self) * factor as $wide)
            }

            fn divided(self, ranks: u32) -> $type {
                $narrow($widen(self) / ranks as $wide)
            }

            fn bits(self) -> u64 {
                self.to_bits().into()
            }
        }
    };
}

float!(
    f32, u32, span 0x4_0000, nan 0x7fc0_0000, nans [0xffc0_1234, 0x7f80_0001],
    inexact 0x3f00_0000 0x81ff_ffff, wide f32 |x: f32| x, |x: f32| x
);
float!(
    f64, u64, span 0x1_0000_0000_0000, nan 0x7ff8_0000_0000_0000,
    nans [0xfff8_0000_0000_1234, 0x7ff0_0000_0000_0001],
    inexact 0x3fe0_0000_0000_0000 0x803f_ffff_ffff_ffff, wide f64 |x: f64| x, |x: f64| x
);
float!(
    bf16, u16, span 8, nan 0x7fc0, nans [0xffc1, 0x7f81], inexact 0x3f00 0x81ff,
    wide f32 bf16::to_f32, bf16::from_f32
);
float!(
    f16, u16, span 64, nan 0x7e00, nans [0xfe01, 0x7c01], inexact 0x3800 0x83ff,
    wide f32 f16::to_f32, f16::from_f32
);

/// `exact`: the values, one of which a number picks. `specials`: bits of some.
macro_rules! small_float {
    ($type:ident, exact $exact:expr, nan $nan:literal, specials $specials:expr) => {
        impl Sample for $type {
            fn exact(number: u64) -> $type {
                $type::from_f32($exact[(number % $exact.len() as u64) as usize])
            }

            fn exact_factor(_: u64) -> $type {
                panic!("fp8 has no product")
            }

            fn inexact(number: u64) -> $type {
                $type::from_bits(number as u8 & 0x8f | 0x30)
            }

            fn special(number: u64) -> $type {
                $type::from_bits($specials[(number % $specials.len() as u64) as usize])
            }

            fn fold(op: Op, a: $type, b: $type) -> $type {
                let folded = match op {
                    // Sums that are too large come from `special` only, where only bits are compared.
                    Op::Sum => $type::from_f32(a.to_f32() + b.to_f32()),
                    _ => $type::from_f32(f32::fold(op, a.to_f32(), b.to_f32())),
                };
                if folded.to_f32().is_nan() { $type::from_bits($nan) } else { folded }
            }

            fn multiplied(self, _: f64) -> $type {
                panic!("fp8 has no factors")
            }

            fn divided(self, _: u32) -> $type {
                panic!("fp8 has no average")
            }

            fn bits(self) -> u64 {
                self.to_bits().into()
            }
        }
    };
}

small_float!(
    F8E4M3, exact [-1.0, 0.0, 1.0], nan 0x7f,
    specials [0xff, 0x7f, 0x7e, 0x00, 0x80, 0x01, 0x81]
);
small_float!(
    F8E5M2, exact [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0],
    nan 0x7e, specials [0xff, 0x7d, 0x7c, 0xfc, 0x00, 0x80, 0x01, 0x81]
);

macro_rules! integer {
    ($($type:ident),*) => {$(
        impl Sample for $type {
            fn exact(number: u64) -> $type {
                number as $type
            }

            fn exact_factor(number: u64) -> $type {
                number as $type | 1
            }

            fn inexact(number: u64) -> $type {
                number as $type
            }

            fn special(number: u64) -> $type {
                [$type::MIN, $type::MAX, 0, 1][(number % 4) as usize]
            }

            fn fold(op: Op, a: $type, b: $type) -> $type {
                match op {
                    Op::Sum => a.wrapping_add(b),
                    Op::Product => a.wrapping_mul(b),
                    Op::Max => a.max(b),
                    Op::Min => a.min(b),
                    Op::BitAnd => a & b,
                    Op::BitOr => a | b,
                    Op::BitXor => a ^ b,
                    Op::Average | Op::PreMulSum(_) => panic!("no integer has {op:?}"),
                }
            }

            fn multiplied(self, _: f64) -> $type {
                panic!("no integer has factors")
            }

            fn divided(self, _: u32) -> $type {
                panic!("no integer has an average")
            }

            fn bits(self) -> u64 {
                self as u64
            }
        }
    )*};
}

integer!(i8, u8, i32, u32, i64, u64);
