//! What the arithmetic instructions compute: for each, a function from its type to the function that
//! computes a result from the operands' bits. [`super::forms`] says which types there are.

use super::float::{self, BF16, F16, Rounding, canonical_f32, canonical_f64};
use super::instruction::{Binary, Compare, Ternary, Unary};
use super::types::Type;

/// Selects by integer type. `.b32` is taken as unsigned.
macro_rules! integers {
    ($kind:expr, |$a:ident| $body:expr) => {
        integers!(@each $kind, Unary, ($a), $body)
    };
    ($kind:expr, |$a:ident, $b:ident| $body:expr) => {
        integers!(@each $kind, Binary, ($a, $b), $body)
    };
    ($kind:expr, |$a:ident, $b:ident, $c:ident| $body:expr) => {
        integers!(@each $kind, Ternary, ($a, $b, $c), $body)
    };
    (@each $kind:expr, $function:ty, $operands:tt, $body:expr) => {
        match $kind {
            Type::U16 | Type::B16 => Some(integers!(@one u16, u16, $function, $operands, $body)),
            Type::U32 | Type::B32 => Some(integers!(@one u32, u32, $function, $operands, $body)),
            Type::U64 | Type::B64 => Some(integers!(@one u64, u64, $function, $operands, $body)),
            Type::S16 => Some(integers!(@one i16, u16, $function, $operands, $body)),
            Type::S32 => Some(integers!(@one i32, u32, $function, $operands, $body)),
            Type::S64 => Some(integers!(@one i64, u64, $function, $operands, $body)),
            _ => None,
        }
    };
    (@one $value:ty, $bits:ty, $function:ty, ($($operand:ident),*), $body:expr) => {
        (|$($operand: u64),*| {
            $(let $operand = $operand as $value;)*
            let result: $value = $body;
            u64::from(result as $bits)
        }) as $function
    };
}

/// Selects by float type: one expression for `f32` and `f64`, which the host computes, and one for the
/// small floats, which gets values of `f64` and must be as good as exact.
macro_rules! floats {
    ($kind:expr, $function:ty, |$($operand:ident),*| $native:expr, $small:expr) => {
        match $kind {
            Type::F32 => Some((|$($operand: u64),*| {
                $(let $operand = f32::from_bits($operand as u32);)*
                canonical_f32($native)
            }) as $function),
            Type::F64 => Some((|$($operand: u64),*| {
                $(let $operand = f64::from_bits($operand);)*
                canonical_f64($native)
            }) as $function),
            Type::F16 => Some((|$($operand: u64),*| {
                $(let $operand = F16.widen($operand);)*
                F16.narrow($small, Rounding::NearestEven)
            }) as $function),
            Type::Bf16 => Some((|$($operand: u64),*| {
                $(let $operand = BF16.widen($operand);)*
                BF16.narrow($small, Rounding::NearestEven)
            }) as $function),
            Type::F16x2 => Some((|$($operand: u64),*| {
                let half = |shift: u32| {
                    $(let $operand = F16.widen($operand >> shift & 0xFFFF);)*
                    F16.narrow($small, Rounding::NearestEven) << shift
                };
                half(16) | half(0)
            }) as $function),
            Type::Bf16x2 => Some((|$($operand: u64),*| {
                let half = |shift: u32| {
                    $(let $operand = BF16.widen($operand >> shift & 0xFFFF);)*
                    BF16.narrow($small, Rounding::NearestEven) << shift
                };
                half(16) | half(0)
            }) as $function),
            _ => None,
        }
    };
}

pub(super) fn add(kind: Type) -> Option<Binary> {
    integers!(kind, |a, b| a.wrapping_add(b)).or(floats!(
        kind,
        Binary,
        |a, b| a + b,
        float::add_to_odd(a, b)
    ))
}

pub(super) fn sub(kind: Type) -> Option<Binary> {
    integers!(kind, |a, b| a.wrapping_sub(b)).or(floats!(
        kind,
        Binary,
        |a, b| a - b,
        float::add_to_odd(a, -b)
    ))
}

/// The lower half of an integer product. Products of small floats are exact in `f64`.
pub(super) fn mul(kind: Type) -> Option<Binary> {
    integers!(kind, |a, b| a.wrapping_mul(b)).or(floats!(kind, Binary, |a, b| a * b, a * b))
}

pub(super) fn mul_hi(kind: Type) -> Option<Binary> {
    integers!(kind, |a, b| ((a as i128).wrapping_mul(b as i128) >> (size_of_val(&a) * 8)) as _)
}

pub(super) fn mul_wide(kind: Type) -> Option<Binary> {
    Some(match kind {
        Type::U16 => |a, b| u64::from(a as u16) * u64::from(b as u16),
        Type::S16 => |a, b| (i64::from(a as i16) * i64::from(b as i16)) as u64,
        Type::U32 => |a, b| u64::from(a as u32) * u64::from(b as u32),
        Type::S32 => |a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64,
        _ => return None,
    })
}

pub(super) fn mad_lo(kind: Type) -> Option<Ternary> {
    integers!(kind, |a, b, c| a.wrapping_mul(b).wrapping_add(c))
}

pub(super) fn mad_hi(kind: Type) -> Option<Ternary> {
    integers!(kind, |a, b, c| {
        let upper = (a as i128).wrapping_mul(b as i128) >> (size_of_val(&a) * 8);
        c.wrapping_add(upper as _)
    })
}

pub(super) fn mad_wide(kind: Type) -> Option<Ternary> {
    Some(match kind {
        Type::U16 => |a, b, c| (u64::from(a as u16) * u64::from(b as u16)).wrapping_add(c),
        Type::S16 => {
            |a, b, c| (i64::from(a as i16) * i64::from(b as i16)).wrapping_add(c as i64) as u64
        }
        Type::U32 => |a, b, c| (u64::from(a as u32) * u64::from(b as u32)).wrapping_add(c),
        Type::S32 => {
            |a, b, c| (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64
        }
        _ => return None,
    })
}

pub(super) fn fma(kind: Type) -> Option<Ternary> {
    floats!(kind, Ternary, |a, b, c| a.mul_add(b, c), float::add_to_odd(a * b, c))
}

/// Division by zero is undefined; GPUs give all ones.
pub(super) fn div(kind: Type) -> Option<Binary> {
    integers!(kind, |a, b| if b == 0 { !0 } else { a.wrapping_div(b) }).or(floats!(
        kind,
        Binary,
        |a, b| a / b,
        a / b
    ))
}

/// The rest of a division by zero is undefined; GPUs give the dividend.
pub(super) fn rem(kind: Type) -> Option<Binary> {
    integers!(kind, |a, b| if b == 0 { a } else { a.wrapping_rem(b) })
}

pub(super) fn rcp(kind: Type) -> Option<Unary> {
    floats!(kind, Unary, |a| 1.0 / a, 1.0 / a)
}

pub(super) fn sqrt(kind: Type) -> Option<Unary> {
    floats!(kind, Unary, |a| a.sqrt(), a.sqrt())
}

/// Chosen in `f64`, of which all formats' values are values.
macro_rules! choose {
    ($kind:expr, $choose:path) => {
        floats!($kind, Binary, |a, b| $choose(f64::from(a), f64::from(b)) as _, $choose(a, b))
    };
}

pub(super) fn min(kind: Type) -> Option<Binary> {
    integers!(kind, |a, b| a.min(b)).or(choose!(kind, float::min))
}

pub(super) fn max(kind: Type) -> Option<Binary> {
    integers!(kind, |a, b| a.max(b)).or(choose!(kind, float::max))
}

pub(super) fn min_nan(kind: Type) -> Option<Binary> {
    choose!(kind, float::min_nan)
}

pub(super) fn max_nan(kind: Type) -> Option<Binary> {
    choose!(kind, float::max_nan)
}

/// Of floats only the sign bit changes, NaN included.
pub(super) fn neg(kind: Type) -> Option<Unary> {
    Some(match kind {
        Type::F16 | Type::Bf16 => |a| a ^ 0x8000,
        Type::F16x2 | Type::Bf16x2 => |a| a ^ 0x8000_8000,
        Type::F32 => |a| a ^ 1 << 31,
        Type::F64 => |a| a ^ 1 << 63,
        _ => return integers!(kind, |a| a.wrapping_neg()),
    })
}

pub(super) fn abs(kind: Type) -> Option<Unary> {
    Some(match kind {
        Type::S16 => |a| u64::from((a as i16).wrapping_abs() as u16),
        Type::S32 => |a| u64::from((a as i32).wrapping_abs() as u32),
        Type::S64 => |a| (a as i64).wrapping_abs() as u64,
        Type::F16 | Type::Bf16 => |a| a & 0x7FFF,
        Type::F16x2 | Type::Bf16x2 => |a| a & 0x7FFF_7FFF,
        Type::F32 => |a| a & !(1 << 31),
        Type::F64 => |a| a & !(1 << 63),
        _ => return None,
    })
}

/// The sign of the first with the magnitude of the second.
pub(super) fn copysign(kind: Type) -> Option<Binary> {
    Some(match kind {
        Type::F32 => |a, b| (a & 1 << 31) | (b & 0x7FFF_FFFF),
        Type::F64 => |a, b| (a & 1 << 63) | (b & !(1 << 63)),
        _ => return None,
    })
}

pub(super) fn and(_: Type) -> Option<Binary> {
    Some(|a, b| a & b)
}

pub(super) fn or(_: Type) -> Option<Binary> {
    Some(|a, b| a | b)
}

pub(super) fn xor(_: Type) -> Option<Binary> {
    Some(|a, b| a ^ b)
}

pub(super) fn not(_: Type) -> Option<Unary> {
    Some(|a| !a)
}

/// Shifts over the width give zeros, or copies of the sign.
pub(super) fn shl(kind: Type) -> Option<Binary> {
    Some(match kind {
        Type::B16 => |a, b| u64::from((a as u16).checked_shl(b as u32).unwrap_or(0)),
        Type::B32 => |a, b| u64::from((a as u32).checked_shl(b as u32).unwrap_or(0)),
        Type::B64 => |a, b| a.checked_shl(b as u32).unwrap_or(0),
        _ => return None,
    })
}

pub(super) fn shr(kind: Type) -> Option<Binary> {
    Some(match kind {
        Type::B16 | Type::U16 => |a, b| u64::from((a as u16).checked_shr(b as u32).unwrap_or(0)),
        Type::B32 | Type::U32 => |a, b| u64::from((a as u32).checked_shr(b as u32).unwrap_or(0)),
        Type::B64 | Type::U64 => |a, b| a.checked_shr(b as u32).unwrap_or(0),
        Type::S16 => |a, b| ((a as i16) >> (b as u32).min(15)) as u64,
        Type::S32 => |a, b| ((a as i32) >> (b as u32).min(31)) as u64,
        Type::S64 => |a, b| ((a as i64) >> (b as u32).min(63)) as u64,
        _ => return None,
    })
}

/// The funnel shifts move the pair of `b` (upper) and `a` (lower).
fn funnel(a: u64, b: u64) -> u64 {
    u64::from(b as u32) << 32 | u64::from(a as u32)
}

pub(super) fn shf_left_wrap(_: Type) -> Option<Ternary> {
    Some(|a, b, c| funnel(a, b) << (c & 31) >> 32)
}

pub(super) fn shf_left_clamp(_: Type) -> Option<Ternary> {
    Some(|a, b, c| funnel(a, b) << (c as u32).min(32) >> 32)
}

pub(super) fn shf_right_wrap(_: Type) -> Option<Ternary> {
    Some(|a, b, c| u64::from((funnel(a, b) >> (c & 31)) as u32))
}

pub(super) fn shf_right_clamp(_: Type) -> Option<Ternary> {
    Some(|a, b, c| u64::from((funnel(a, b) >> (c as u32).min(32)) as u32))
}

pub(super) fn popc(kind: Type) -> Option<Unary> {
    Some(if kind == Type::B32 {
        |a| u64::from((a as u32).count_ones())
    } else {
        |a| u64::from(a.count_ones())
    })
}

pub(super) fn clz(kind: Type) -> Option<Unary> {
    Some(if kind == Type::B32 {
        |a| u64::from((a as u32).leading_zeros())
    } else {
        |a| u64::from(a.leading_zeros())
    })
}

/// Position of the highest bit that is not as the sign; all ones if there is none.
pub(super) fn bfind(kind: Type) -> Option<Unary> {
    fn highest(a: u64) -> u64 {
        u64::from(a.checked_ilog2().unwrap_or(u32::MAX))
    }
    Some(match kind {
        Type::U32 => |a| highest(u64::from(a as u32)),
        Type::S32 => |a| highest(u64::from((a as i32 ^ a as i32 >> 31) as u32)),
        Type::U64 => highest,
        Type::S64 => |a| highest((a as i64 ^ a as i64 >> 63) as u64),
        _ => return None,
    })
}

/// By how much to shift to the left for that bit to be the highest.
pub(super) fn bfind_shift(kind: Type) -> Option<Unary> {
    fn shift(a: u64) -> u64 {
        if a == 0 { 0xFFFF_FFFF } else { u64::from(a.leading_zeros()) }
    }
    Some(match kind {
        Type::U32 => |a| shift(u64::from(a as u32) << 32),
        Type::S32 => |a| shift(u64::from((a as i32 ^ a as i32 >> 31) as u32) << 32),
        Type::U64 => shift,
        Type::S64 => |a| shift((a as i64 ^ a as i64 >> 63) as u64),
        _ => return None,
    })
}

pub(super) fn brev(kind: Type) -> Option<Unary> {
    integers!(kind, |a| a.reverse_bits())
}

/// Bits `b..b+c` of `a`; those beyond its end are zeros, or copies of the sign.
pub(super) fn bfe(kind: Type) -> Option<Ternary> {
    fn unsigned(a: u64, b: u64, c: u64) -> u64 {
        let (position, len) = ((b & 0xFF).min(64), (c & 0xFF).min(64));
        (u128::from(a) >> position & ((1u128 << len) - 1)) as u64
    }
    fn signed(a: i64, b: u64, c: u64) -> u64 {
        let (position, len) = ((b & 0xFF).min(63), (c & 0xFF).min(64));
        if len == 0 { 0 } else { (a >> position << (64 - len) >> (64 - len)) as u64 }
    }
    Some(match kind {
        Type::U32 => |a, b, c| unsigned(u64::from(a as u32), b, c),
        Type::U64 => unsigned,
        Type::S32 => |a, b, c| signed(i64::from(a as i32), b, c),
        Type::S64 => |a, b, c| signed(a as i64, b, c),
        _ => return None,
    })
}

/// `bfi`: `into` with its bits from `position` on replaced by the lowest `len` bits of `from`.
pub(super) fn insert(kind: Type, from: u64, into: u64, position: u64, len: u64) -> u64 {
    let (position, len) = ((position & 0xFF).min(64), (len & 0xFF).min(64));
    let mask = ((1u128 << len) - 1) << position;
    let result = (u128::from(into) & !mask) | (u128::from(from) << position & mask);
    kind.extend(result as u64)
}

/// Each nibble of `c` names a byte of the pair of `b` and `a`, or eight copies of its highest bit.
pub(super) fn prmt(_: Type) -> Option<Ternary> {
    Some(|a, b, c| {
        let bytes = funnel(a, b).to_le_bytes();
        let pick = |index: u32| {
            let selector = c >> (4 * index) & 0xF;
            let byte = bytes[(selector & 7) as usize];
            let byte = if selector & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
            u64::from(byte) << (8 * index)
        };
        pick(0) | pick(1) | pick(2) | pick(3)
    })
}

/// `lop3`: `table` has the result for each combination of one bit of each operand.
pub(super) fn lookup(table: u8, a: u64, b: u64, c: u64) -> u64 {
    (0..8u32)
        .filter(|index| table >> index & 1 == 1)
        .map(|index| {
            let term = |value: u64, bit: u32| if index >> bit & 1 == 1 { value } else { !value };
            term(a, 2) & term(b, 1) & term(c, 0)
        })
        .fold(0, |result, term| result | term)
}

/// Selects a comparison's function by type.
macro_rules! compare {
    ($kind:expr, |$a:ident, $b:ident| $integers:expr, $floats:expr) => {
        Some(match $kind {
            Type::U16 | Type::B16 => compare!(@one |$a, $b| $a as u16, $b as u16, $integers),
            Type::U32 | Type::B32 => compare!(@one |$a, $b| $a as u32, $b as u32, $integers),
            Type::U64 | Type::B64 => compare!(@one |$a, $b| $a, $b, $integers),
            Type::S16 => compare!(@one |$a, $b| $a as i16, $b as i16, $integers),
            Type::S32 => compare!(@one |$a, $b| $a as i32, $b as i32, $integers),
            Type::S64 => compare!(@one |$a, $b| $a as i64, $b as i64, $integers),
            _ => compare!(@floats $kind, |$a, $b| $floats),
        })
    };
    (@floats $kind:expr, |$a:ident, $b:ident| $floats:expr) => {
        match $kind {
            Type::F16 => compare!(@one |$a, $b| F16.widen($a), F16.widen($b), $floats),
            Type::Bf16 => compare!(@one |$a, $b| BF16.widen($a), BF16.widen($b), $floats),
            Type::F32 => {
                compare!(@one |$a, $b| f32::from_bits($a as u32), f32::from_bits($b as u32), $floats)
            }
            Type::F64 => compare!(@one |$a, $b| f64::from_bits($a), f64::from_bits($b), $floats),
            _ => return None,
        }
    };
    (@one |$a:ident, $b:ident| $a_value:expr, $b_value:expr, $result:expr) => {
        (|$a: u64, $b: u64| {
            let ($a, $b) = ($a_value, $b_value);
            $result
        }) as Compare
    };
}

/// `setp`'s comparisons. Those of floats are false if an operand is a NaN, unless they end in `u`.
pub(super) fn compare(name: &str, kind: Type) -> Option<Compare> {
    match name {
        "eq" => compare!(kind, |a, b| a == b, a == b),
        "ne" => compare!(kind, |a, b| a != b, a != b && !a.is_nan() && !b.is_nan()),
        "lt" | "lo" => compare!(kind, |a, b| a < b, a < b),
        "le" | "ls" => compare!(kind, |a, b| a <= b, a <= b),
        "gt" | "hi" => compare!(kind, |a, b| a > b, a > b),
        "ge" | "hs" => compare!(kind, |a, b| a >= b, a >= b),
        "equ" => Some(compare!(@floats kind, |a, b| a == b || a.is_nan() || b.is_nan())),
        "neu" => Some(compare!(@floats kind, |a, b| a != b)),
        "ltu" => Some(compare!(@floats kind, |a, b| a < b || a.is_nan() || b.is_nan())),
        "leu" => Some(compare!(@floats kind, |a, b| a <= b || a.is_nan() || b.is_nan())),
        "gtu" => Some(compare!(@floats kind, |a, b| a > b || a.is_nan() || b.is_nan())),
        "geu" => Some(compare!(@floats kind, |a, b| a >= b || a.is_nan() || b.is_nan())),
        "num" => Some(compare!(@floats kind, |a, b| !a.is_nan() && !b.is_nan())),
        "nan" => Some(compare!(@floats kind, |a, b| a.is_nan() || b.is_nan())),
        _ => None,
    }
}

/// What `atom` and `red` make of the old value `old` and their operands.
pub(super) fn atomic(name: &str, kind: Type) -> Option<Ternary> {
    match name {
        "add" => integers!(kind, |old, a, _b| old.wrapping_add(a)).or(floats!(
            kind,
            Ternary,
            |old, a, _b| old + a,
            old + a
        )),
        "exch" => Some(|_, a, _| a),
        "cas" => integers!(kind, |old, a, b| if old == a { b } else { old }),
        "and" => Some(|old, a, _| old & a),
        "or" => Some(|old, a, _| old | a),
        "xor" => Some(|old, a, _| old ^ a),
        "min" => integers!(kind, |old, a, _b| old.min(a)),
        "max" => integers!(kind, |old, a, _b| old.max(a)),
        "inc" => integers!(kind, |old, a, _b| if old >= a { 0 } else { old + 1 }),
        "dec" => integers!(kind, |old, a, _b| if old == 0 || old > a { a } else { old - 1 }),
        _ => None,
    }
}
