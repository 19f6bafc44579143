//! Reduction kernels: they fold several buffers, element by element, into one or several others,
//! in one pass over memory.
//!
//! Every kernel is the same loop (`vector`), instantiated for a register type of one instruction
//! set and one operation. Partial results stay in registers; a result is finished (rounded, NaN
//! made canonical) once and then stored to every destination. All levels give the same bits.
//!
//! What the bits are:
//! - sources are folded left to right; integers wrap; f16, bf16 and fp8 are folded (and scaled) in
//!   single precision and rounded once, to nearest even; what is too large becomes infinity, and NaN
//!   in e4m3, which has no infinity;
//! - in a minimum and a maximum -0 is less than +0 and NaN wins;
//! - a NaN result is the positive quiet NaN without payload, whatever went in, so that operations
//!   commute to the bit.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod narrow;
mod portable;
#[cfg(test)]
mod tests;
mod vector;

use std::ptr;

use crate::DataType;
use vector::{
    And, InstructionSet, Max, Min, Multiple, Or, Product, Quotient, Run, Sum, Vector, Xor,
};

/// What one pass over memory does with the elements of its sources.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pass {
    /// Adds; integers wrap.
    Sum,
    /// Multiplies; integers wrap.
    Product,
    /// The smallest; -0 is less than +0, and NaN wins.
    Min,
    /// The largest; -0 is less than +0, and NaN wins.
    Max,
    /// Of integers: the bits that all have.
    BitAnd,
    /// Of integers: the bits that any has.
    BitOr,
    /// Of integers: the bits that an odd number of them has.
    BitXor,
    /// Adds floats, and divides the sum.
    Average {
        /// By what.
        ranks: u32,
    },
    /// Adds floats, and multiplies the sum: meant for a single source.
    Scale {
        /// By what.
        factor: f64,
    },
}

/// The reduction of one element type by one operation, chosen once and then called without
/// dispatch.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    run: Run,
    scalar: f64,
}

impl Kernel {
    /// Folds `sources` left to right, element by element, into every destination. Without sources
    /// nothing is written. Addresses need no alignment.
    ///
    /// # Safety
    /// Every source must be readable and every destination writable for `count` elements, and
    /// nobody else may write them meanwhile. A destination may be one of the sources (the same
    /// address), but must not overlap one partially.
    #[inline]
    pub unsafe fn run(&self, sources: &[*const u8], destinations: &[*mut u8], count: usize) {
        // SAFETY: kernels are only handed out where their instruction set was detected; the rest
        // is the caller's promise.
        unsafe { (self.run)(sources, destinations, count, self.scalar) }
    }
}

/// The kernel with the widest vectors that this processor has.
///
/// # Panics
/// If the type does not have the operation: see [`DataType::has`].
pub fn kernel(data_type: DataType, pass: Pass) -> Kernel {
    #[cfg(target_arch = "x86_64")]
    for level in [Level::Avx512, Level::Avx2] {
        if let Some(kernel) = kernel_at(level, data_type, pass) {
            return kernel;
        }
    }
    select::<portable::Portable>(data_type, pass)
}

/// The kernel for a given instruction set; `None` where the processor lacks it. For tests and
/// benchmarks: [`kernel`] chooses.
///
/// # Panics
/// As [`kernel`].
pub fn kernel_at(level: Level, data_type: DataType, pass: Pass) -> Option<Kernel> {
    if !level.is_available() {
        return None;
    }
    match level {
        Level::Portable => Some(select::<portable::Portable>(data_type, pass)),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => Some(select::<avx2::Avx2>(data_type, pass)),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Some(select::<avx512::Avx512>(data_type, pass)),
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx2 | Level::Avx512 => None,
    }
}

/// An instruction set that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// What the compiler's target has anyway.
    Portable,
    /// x86-64 with AVX2 and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW and DQ.
    Avx512,
}

impl Level {
    /// All levels, from narrow to wide.
    pub const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

    /// Short name.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// Whether this processor has it. The standard library detects once and remembers.
    pub fn is_available(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => false,
        }
    }
}

/// Copies one buffer to several, reading it from memory once. A destination at the source's own
/// address is left as it is.
///
/// # Safety
/// The source must be readable and every destination writable for `len_bytes`, and nobody else may
/// write them meanwhile. A destination may be the source, but must not overlap it partially.
pub unsafe fn copy(source: *const u8, destinations: &[*mut u8], len_bytes: usize) {
    /// Half a first-level cache, at most: the second destination finds the source there.
    const PIECE_BYTES: usize = 8 << 10;
    let piece_bytes = if destinations.len() == 1 { len_bytes } else { PIECE_BYTES };
    let mut start_bytes = 0;
    while start_bytes < len_bytes {
        let piece_bytes = piece_bytes.min(len_bytes - start_bytes);
        for destination in destinations {
            if destination.cast_const() == source {
                continue;
            }
            // SAFETY: the piece lies within the caller's buffers, which do not overlap.
            unsafe {
                let destination = destination.add(start_bytes);
                ptr::copy_nonoverlapping(source.add(start_bytes), destination, piece_bytes);
            }
        }
        start_bytes += piece_bytes;
    }
}

fn select<I: InstructionSet>(data_type: DataType, pass: Pass) -> Kernel {
    let run = match data_type {
        DataType::F32 => float::<I, I::F32>(pass),
        DataType::F64 => float::<I, I::F64>(pass),
        DataType::Bf16 => float::<I, I::Bf16>(pass),
        DataType::F16 => float::<I, I::F16>(pass),
        DataType::F8E4M3 => small_float::<I, I::F8E4M3>(pass),
        DataType::F8E5M2 => small_float::<I, I::F8E5M2>(pass),
        DataType::I8 => integer::<I, I::I8, I::U8>(pass),
        DataType::U8 => integer::<I, I::U8, I::U8>(pass),
        DataType::I32 => integer::<I, I::I32, I::U32>(pass),
        DataType::U32 => integer::<I, I::U32, I::U32>(pass),
        DataType::I64 => integer::<I, I::I64, I::U64>(pass),
        DataType::U64 => integer::<I, I::U64, I::U64>(pass),
    };
    let scalar = match pass {
        Pass::Average { ranks } => f64::from(ranks),
        Pass::Scale { factor } => factor,
        _ => 1.0,
    };
    let run = run.unwrap_or_else(|| panic!("{} has no {pass:?}", data_type.name()));
    Kernel { run, scalar }
}

fn float<I: InstructionSet, V: Vector>(pass: Pass) -> Option<Run> {
    match pass {
        Pass::Product => Some(I::run::<V, Product>),
        Pass::Average { .. } => Some(I::run::<V, Quotient>),
        Pass::Scale { .. } => Some(I::run::<V, Multiple>),
        _ => small_float::<I, V>(pass),
    }
}

/// What fp8 has: a product or a quotient of three digits would tell little.
fn small_float<I: InstructionSet, V: Vector>(pass: Pass) -> Option<Run> {
    match pass {
        Pass::Sum => Some(I::run::<V, Sum>),
        Pass::Min => Some(I::run::<V, Min>),
        Pass::Max => Some(I::run::<V, Max>),
        _ => None,
    }
}

/// `U` is the unsigned vector: where the sign makes no difference, one kernel serves both.
fn integer<I: InstructionSet, V: Vector, U: Vector>(pass: Pass) -> Option<Run> {
    match pass {
        Pass::Sum => Some(I::run::<U, Sum>),
        Pass::Product => Some(I::run::<U, Product>),
        Pass::Min => Some(I::run::<V, Min>),
        Pass::Max => Some(I::run::<V, Max>),
        Pass::BitAnd => Some(I::run::<U, And>),
        Pass::BitOr => Some(I::run::<U, Or>),
        Pass::BitXor => Some(I::run::<U, Xor>),
        Pass::Average { .. } | Pass::Scale { .. } => None,
    }
}
