//! Reduction kernels: they fold several buffers, element by element, into one or several others,
//! in one pass over memory.
//!
//! Every kernel is the same loop (`vector`), instantiated for a register type of one instruction
//! set and one operation. Partial results stay in registers; a result is finished (rounded, NaN
//! made canonical) once and then stored to every destination. All levels give the same bits.
//!
//! What the bits are:
//! - sources are folded left to right; integers wrap; bf16 is accumulated in single precision and
//!   rounded once, to nearest even;
//! - in a maximum -0 is less than +0 and NaN wins;
//! - a NaN result is the positive quiet NaN without payload, whatever went in, so that operations
//!   commute to the bit.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;
mod vector;

use std::ptr;

use crate::{DataType, Op};
use vector::{InstructionSet, Max, Run, Sum, Vector};

/// The reduction of one element type by one operation, chosen once and then called without
/// dispatch.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    run: Run,
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
        unsafe { (self.run)(sources, destinations, count) }
    }
}

/// The kernel with the widest vectors that this processor has.
pub fn kernel(data_type: DataType, op: Op) -> Kernel {
    #[cfg(target_arch = "x86_64")]
    for level in [Level::Avx512, Level::Avx2] {
        if let Some(kernel) = kernel_at(level, data_type, op) {
            return kernel;
        }
    }
    select::<portable::Portable>(data_type, op)
}

/// The kernel for a given instruction set; `None` where the processor lacks it. For tests and
/// benchmarks: [`kernel`] chooses.
pub fn kernel_at(level: Level, data_type: DataType, op: Op) -> Option<Kernel> {
    if !level.is_available() {
        return None;
    }
    match level {
        Level::Portable => Some(select::<portable::Portable>(data_type, op)),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => Some(select::<avx2::Avx2>(data_type, op)),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Some(select::<avx512::Avx512>(data_type, op)),
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx2 | Level::Avx512 => None,
    }
}

/// An instruction set that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// What the compiler's target has anyway.
    Portable,
    /// x86-64 with AVX2.
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
            Level::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                is_x86_feature_detected!("avx512f")
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

fn select<I: InstructionSet>(data_type: DataType, op: Op) -> Kernel {
    match data_type {
        DataType::F32 => select_operation::<I, I::F32>(op),
        DataType::F64 => select_operation::<I, I::F64>(op),
        DataType::Bf16 => select_operation::<I, I::Bf16>(op),
        DataType::I32 => select_operation::<I, I::I32>(op),
    }
}

fn select_operation<I: InstructionSet, V: Vector>(op: Op) -> Kernel {
    let run: Run = match op {
        Op::Sum => I::run::<V, Sum>,
        Op::Max => I::run::<V, Max>,
    };
    Kernel { run }
}
