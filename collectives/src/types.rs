//! Element types and reduction operations.

use std::fmt;

pub use float8::{F8E4M3, F8E5M2};
pub use half::{bf16, f16};

use crate::reduce::Pass;

/// Type of a buffer's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DataType {
    /// IEEE 754 single precision.
    F32 = 1,
    /// IEEE 754 double precision.
    F64 = 2,
    /// The upper half of a single-precision number; folded in single precision.
    Bf16 = 3,
    /// Signed 32-bit integer; sums and products wrap, as of all integers.
    I32 = 4,
    /// Unsigned 8-bit integer.
    U8 = 5,
    /// Signed 8-bit integer.
    I8 = 6,
    /// Unsigned 32-bit integer.
    U32 = 7,
    /// Unsigned 64-bit integer.
    U64 = 8,
    /// Signed 64-bit integer.
    I64 = 9,
    /// IEEE 754 half precision; folded in single precision.
    F16 = 10,
    /// 8 bits, 4 of them exponent, without infinities (arXiv 2209.05433); folded in single precision.
    F8E4M3 = 11,
    /// 8 bits, 5 of them exponent (arXiv 2209.05433); folded in single precision.
    F8E5M2 = 12,
}

impl DataType {
    /// All types.
    pub const ALL: [DataType; 12] = [
        DataType::F32,
        DataType::F64,
        DataType::Bf16,
        DataType::F16,
        DataType::F8E4M3,
        DataType::F8E5M2,
        DataType::I8,
        DataType::U8,
        DataType::I32,
        DataType::U32,
        DataType::I64,
        DataType::U64,
    ];

    /// Size of an element.
    pub const fn size_bytes(self) -> usize {
        match self {
            DataType::F64 | DataType::I64 | DataType::U64 => 8,
            DataType::F32 | DataType::I32 | DataType::U32 => 4,
            DataType::Bf16 | DataType::F16 => 2,
            DataType::F8E4M3 | DataType::F8E5M2 | DataType::I8 | DataType::U8 => 1,
        }
    }

    /// Short name.
    pub const fn name(self) -> &'static str {
        match self {
            DataType::F32 => "f32",
            DataType::F64 => "f64",
            DataType::Bf16 => "bf16",
            DataType::F16 => "f16",
            DataType::F8E4M3 => "f8e4m3",
            DataType::F8E5M2 => "f8e5m2",
            DataType::I8 => "i8",
            DataType::U8 => "u8",
            DataType::I32 => "i32",
            DataType::U32 => "u32",
            DataType::I64 => "i64",
            DataType::U64 => "u64",
        }
    }

    /// Whether its elements can be reduced by an operation. Floats have no bit operations, integers
    /// no average and no factors; fp8 has sum, minimum and maximum only.
    pub const fn has(self, op: Op) -> bool {
        match op {
            Op::Sum | Op::Min | Op::Max => true,
            Op::Product => !matches!(self, DataType::F8E4M3 | DataType::F8E5M2),
            Op::Average | Op::PreMulSum(_) => {
                matches!(self, DataType::F32 | DataType::F64 | DataType::Bf16 | DataType::F16)
            }
            Op::BitAnd | Op::BitOr | Op::BitXor => self.is_integer(),
        }
    }

    /// The operations that it has.
    pub fn ops(self) -> impl Iterator<Item = Op> {
        Op::ALL.into_iter().filter(move |op| self.has(*op))
    }

    const fn is_integer(self) -> bool {
        use DataType::*;
        matches!(self, I8 | U8 | I32 | U32 | I64 | U64)
    }

    /// The type with a number, as records carry it.
    pub fn from_number(number: u8) -> Option<DataType> {
        Self::ALL.into_iter().find(|t| *t as u8 == number)
    }
}

/// How elements of several ranks become one. Which types have which: [`DataType::has`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Sum; integers wrap.
    Sum,
    /// The largest: -0 is less than +0, and NaN wins.
    Max,
    /// The smallest: -0 is less than +0, and NaN wins.
    Min,
    /// Product; integers wrap.
    Product,
    /// The sum, divided by the number of ranks, once, before it is rounded.
    Average,
    /// The sum of what each rank gives, multiplied by a factor of its own and rounded before it is sent.
    /// It is multiplied where the result will be; where that has less room (a reduce-scatter, a
    /// reduction to another rank), into memory that the call allocates. A pass over memory more than a
    /// sum takes.
    PreMulSum(Factor),
    /// The bits that all ranks have.
    BitAnd,
    /// The bits that any rank has.
    BitOr,
    /// The bits that an odd number of ranks has.
    BitXor,
}

impl Op {
    /// All operations.
    pub const ALL: [Op; 9] = [
        Op::Sum,
        Op::Product,
        Op::Min,
        Op::Max,
        Op::Average,
        Op::PreMulSum(Factor::ONE),
        Op::BitAnd,
        Op::BitOr,
        Op::BitXor,
    ];

    /// Short name.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Sum => "sum",
            Op::Max => "max",
            Op::Min => "min",
            Op::Product => "product",
            Op::Average => "average",
            Op::PreMulSum(_) => "premulsum",
            Op::BitAnd => "and",
            Op::BitOr => "or",
            Op::BitXor => "xor",
        }
    }

    /// The number that records carry; 0 is none. The same for all factors: each rank has its own.
    pub const fn number(self) -> u8 {
        match self {
            Op::Sum => 1,
            Op::Max => 2,
            Op::Min => 3,
            Op::Product => 4,
            Op::Average => 5,
            Op::PreMulSum(_) => 6,
            Op::BitAnd => 7,
            Op::BitOr => 8,
            Op::BitXor => 9,
        }
    }

    /// The operation with a number, as records carry it.
    pub fn from_number(number: u8) -> Option<Op> {
        Self::ALL.into_iter().find(|op| op.number() == number)
    }

    /// What a reduction's pass does whose result goes on to be reduced.
    pub const fn pass(self) -> Pass {
        match self {
            Op::Sum | Op::Average | Op::PreMulSum(_) => Pass::Sum,
            Op::Max => Pass::Max,
            Op::Min => Pass::Min,
            Op::Product => Pass::Product,
            Op::BitAnd => Pass::BitAnd,
            Op::BitOr => Pass::BitOr,
            Op::BitXor => Pass::BitXor,
        }
    }

    /// What the pass does that completes the result.
    pub const fn completing_pass(self, ranks: u32) -> Pass {
        match self {
            Op::Average => Pass::Average { ranks },
            _ => self.pass(),
        }
    }
}

/// What a rank multiplies its elements with: see [`Op::PreMulSum`]. Factors are equal if their bits
/// are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Factor(u64);

impl Factor {
    /// 1.
    pub const ONE: Factor = Factor::new(1.0);

    /// A factor. Elements of at most 32 bits are multiplied by it in single precision.
    pub const fn new(factor: f64) -> Factor {
        Factor(factor.to_bits())
    }

    /// The factor.
    pub const fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl fmt::Debug for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that can be an element.
pub trait Element:
    sealed::Sealed + Copy + Send + Sync + Default + PartialEq + std::fmt::Debug + 'static
{
    /// Its [`DataType`].
    const DATA_TYPE: DataType;
}

macro_rules! element {
    ($type:ty, $data_type:ident) => {
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DATA_TYPE: DataType = DataType::$data_type;
        }
    };
}

element!(f32, F32);
element!(f64, F64);
element!(bf16, Bf16);
element!(f16, F16);
element!(F8E4M3, F8E4M3);
element!(F8E5M2, F8E5M2);
element!(i8, I8);
element!(u8, U8);
element!(i32, I32);
element!(u32, U32);
element!(i64, I64);
element!(u64, U64);
