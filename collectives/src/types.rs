//! Element types and reduction operations.

use half::bf16;

/// Type of a buffer's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DataType {
    /// IEEE 754 single precision.
    F32 = 1,
    /// IEEE 754 double precision.
    F64 = 2,
    /// The upper half of a single-precision number; summed in single precision.
    Bf16 = 3,
    /// Signed 32-bit integer; sums wrap.
    I32 = 4,
}

impl DataType {
    /// All types.
    pub const ALL: [DataType; 4] = [DataType::F32, DataType::F64, DataType::Bf16, DataType::I32];

    /// Size of an element.
    pub const fn size_bytes(self) -> usize {
        match self {
            DataType::F32 | DataType::I32 => 4,
            DataType::F64 => 8,
            DataType::Bf16 => 2,
        }
    }

    /// Short name.
    pub const fn name(self) -> &'static str {
        match self {
            DataType::F32 => "f32",
            DataType::F64 => "f64",
            DataType::Bf16 => "bf16",
            DataType::I32 => "i32",
        }
    }

    /// The type with a number, as records carry it.
    pub fn from_number(number: u8) -> Option<DataType> {
        Self::ALL.into_iter().find(|t| *t as u8 == number)
    }
}

/// How elements of several ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Sum.
    Sum = 1,
    /// The largest; NaN wins.
    Max = 2,
}

impl Op {
    /// All operations.
    pub const ALL: [Op; 2] = [Op::Sum, Op::Max];

    /// Short name.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Sum => "sum",
            Op::Max => "max",
        }
    }

    /// The operation with a number, as records carry it.
    pub fn from_number(number: u8) -> Option<Op> {
        Self::ALL.into_iter().find(|o| *o as u8 == number)
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
element!(i32, I32);
