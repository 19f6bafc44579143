//! Kernels for x86-64 processors with AVX2.

use std::arch::x86_64::*;

use super::portable::{Bf16x8, F32x4, F64x2, I32x4};
use super::vector::{InstructionSet, Operation, Vector, fold};

/// x86-64 with AVX2.
pub(super) struct Avx2;

impl InstructionSet for Avx2 {
    type F32 = F32x8;
    type F64 = F64x4;
    type Bf16 = Bf16x16;
    type I32 = I32x8;

    #[target_feature(enable = "avx2")]
    unsafe fn run<V: Vector, O: Operation>(
        sources: &[*const u8],
        destinations: &[*mut u8],
        count: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { fold::<V, O>(sources, destinations, count) }
    }
}

/// 32 bytes of f32.
#[derive(Clone, Copy)]
pub(super) struct F32x8(__m256);

impl Vector for F32x8 {
    const BYTES: usize = 32;
    const ELEMENT_BYTES: usize = 4;
    type Narrower = F32x4;
    type Stored = __m256;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        F32x8(unsafe { _mm256_loadu_ps(from.cast()) })
    }

    #[inline(always)]
    unsafe fn sum(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        F32x8(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // The instruction gives its second operand if the operands are equal or unordered. Equal
        // ones differ at most in the sign of zero, which the conjunction clears unless both have
        // it; all ones is a NaN.
        // SAFETY: the caller's promise.
        unsafe {
            let either = _mm256_max_ps(self.0, other.0);
            let or_either = _mm256_max_ps(other.0, self.0);
            let unordered = _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, other.0);
            F32x8(_mm256_or_ps(_mm256_and_ps(either, or_either), unordered))
        }
    }

    #[inline(always)]
    unsafe fn finish(self) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0);
            let canonical = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC0_0000));
            _mm256_blendv_ps(self.0, canonical, nan)
        }
    }

    #[inline(always)]
    unsafe fn store(stored: __m256, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to.cast(), stored) }
    }
}

/// 32 bytes of f64.
#[derive(Clone, Copy)]
pub(super) struct F64x4(__m256d);

impl Vector for F64x4 {
    const BYTES: usize = 32;
    const ELEMENT_BYTES: usize = 8;
    type Narrower = F64x2;
    type Stored = __m256d;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        F64x4(unsafe { _mm256_loadu_pd(from.cast()) })
    }

    #[inline(always)]
    unsafe fn sum(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        F64x4(unsafe { _mm256_add_pd(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // As for single precision.
        // SAFETY: the caller's promise.
        unsafe {
            let either = _mm256_max_pd(self.0, other.0);
            let or_either = _mm256_max_pd(other.0, self.0);
            let unordered = _mm256_cmp_pd::<_CMP_UNORD_Q>(self.0, other.0);
            F64x4(_mm256_or_pd(_mm256_and_pd(either, or_either), unordered))
        }
    }

    #[inline(always)]
    unsafe fn finish(self) -> __m256d {
        // SAFETY: the caller's promise.
        unsafe {
            let nan = _mm256_cmp_pd::<_CMP_UNORD_Q>(self.0, self.0);
            let canonical = _mm256_castsi256_pd(_mm256_set1_epi64x(0x7FF8_0000_0000_0000));
            _mm256_blendv_pd(self.0, canonical, nan)
        }
    }

    #[inline(always)]
    unsafe fn store(stored: __m256d, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_pd(to.cast(), stored) }
    }
}

/// 32 bytes of bf16, widened: the elements in the lower halves of 32-bit words, and those in the
/// upper halves. No element changes its lane, so nothing is shuffled.
#[derive(Clone, Copy)]
pub(super) struct Bf16x16 {
    lower: F32x8,
    upper: F32x8,
}

impl Vector for Bf16x16 {
    const BYTES: usize = 32;
    const ELEMENT_BYTES: usize = 2;
    type Narrower = Bf16x8;
    type Stored = __m256i;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let words = _mm256_loadu_si256(from.cast());
            let lower = _mm256_slli_epi32::<16>(words);
            let upper = _mm256_and_si256(words, _mm256_set1_epi32(0xFFFF_0000_u32 as i32));
            Bf16x16 {
                lower: F32x8(_mm256_castsi256_ps(lower)),
                upper: F32x8(_mm256_castsi256_ps(upper)),
            }
        }
    }

    #[inline(always)]
    unsafe fn sum(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Bf16x16 { lower: self.lower.sum(other.lower), upper: self.upper.sum(other.upper) }
        }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Bf16x16 { lower: self.lower.max(other.lower), upper: self.upper.max(other.upper) }
        }
    }

    #[inline(always)]
    unsafe fn finish(self) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let lower = _mm256_srli_epi32::<16>(round(self.lower));
            _mm256_blend_epi16::<0b1010_1010>(lower, round(self.upper))
        }
    }

    #[inline(always)]
    unsafe fn store(stored: __m256i, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), stored) }
    }
}

/// Rounds to bf16, which is left in the upper half of each word.
#[inline(always)]
unsafe fn round(wide: F32x8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        // Canonical before rounding: the carry cannot reach the sign then.
        let bits = _mm256_castps_si256(wide.finish());
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd)
    }
}

/// 32 bytes of i32.
#[derive(Clone, Copy)]
pub(super) struct I32x8(__m256i);

impl Vector for I32x8 {
    const BYTES: usize = 32;
    const ELEMENT_BYTES: usize = 4;
    type Narrower = I32x4;
    type Stored = __m256i;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        I32x8(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline(always)]
    unsafe fn sum(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        I32x8(unsafe { _mm256_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        I32x8(unsafe { _mm256_max_epi32(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn finish(self) -> __m256i {
        self.0
    }

    #[inline(always)]
    unsafe fn store(stored: __m256i, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), stored) }
    }
}
