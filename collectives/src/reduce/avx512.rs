//! Kernels for x86-64 processors with AVX-512 F, BW and DQ.

use std::arch::x86_64::*;

use super::avx2::{Bf16x16, F32x8, F64x4, I32x8};
use super::vector::{InstructionSet, Operation, Vector, fold};

/// x86-64 with AVX-512 F, BW and DQ.
pub(super) struct Avx512;

impl InstructionSet for Avx512 {
    type F32 = F32x16;
    type F64 = F64x8;
    type Bf16 = Bf16x32;
    type I32 = I32x16;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    unsafe fn run<V: Vector, O: Operation>(
        sources: &[*const u8],
        destinations: &[*mut u8],
        count: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { fold::<V, O>(sources, destinations, count) }
    }
}

/// Controls `range`: the larger of two numbers, with the sign that the comparison gives. It knows
/// that -0 is less than +0, and gives the number if one operand is a quiet NaN.
const LARGER: i32 = 0b0101;

/// Controls `fixupimm`, a digit for each class of numbers: quiet and signalling NaN (the last two
/// digits) give the first operand, all others the second.
const REPLACE_NAN: i32 = 0x1111_1100;

/// 64 bytes of f32.
#[derive(Clone, Copy)]
pub(super) struct F32x16(__m512);

impl Vector for F32x16 {
    const BYTES: usize = 64;
    const ELEMENT_BYTES: usize = 4;
    type Narrower = F32x8;
    type Stored = __m512;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        F32x16(unsafe { _mm512_loadu_ps(from.cast()) })
    }

    #[inline(always)]
    unsafe fn sum(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        F32x16(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let larger = _mm512_range_ps::<LARGER>(self.0, other.0);
            let unordered = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, other.0);
            F32x16(_mm512_mask_mov_ps(larger, unordered, canonical_nan()))
        }
    }

    #[inline(always)]
    unsafe fn finish(self) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let replace_nan = _mm512_set1_epi32(REPLACE_NAN);
            _mm512_fixupimm_ps::<0>(canonical_nan(), self.0, replace_nan)
        }
    }

    #[inline(always)]
    unsafe fn store(stored: __m512, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to.cast(), stored) }
    }
}

#[inline(always)]
unsafe fn canonical_nan() -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(0x7FC0_0000)) }
}

/// 64 bytes of f64.
#[derive(Clone, Copy)]
pub(super) struct F64x8(__m512d);

impl Vector for F64x8 {
    const BYTES: usize = 64;
    const ELEMENT_BYTES: usize = 8;
    type Narrower = F64x4;
    type Stored = __m512d;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        F64x8(unsafe { _mm512_loadu_pd(from.cast()) })
    }

    #[inline(always)]
    unsafe fn sum(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        F64x8(unsafe { _mm512_add_pd(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let larger = _mm512_range_pd::<LARGER>(self.0, other.0);
            let unordered = _mm512_cmp_pd_mask::<_CMP_UNORD_Q>(self.0, other.0);
            F64x8(_mm512_mask_mov_pd(larger, unordered, canonical_nan_f64()))
        }
    }

    #[inline(always)]
    unsafe fn finish(self) -> __m512d {
        // SAFETY: the caller's promise.
        unsafe {
            let replace_nan = _mm512_set1_epi64(REPLACE_NAN as i64);
            _mm512_fixupimm_pd::<0>(canonical_nan_f64(), self.0, replace_nan)
        }
    }

    #[inline(always)]
    unsafe fn store(stored: __m512d, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_pd(to.cast(), stored) }
    }
}

#[inline(always)]
unsafe fn canonical_nan_f64() -> __m512d {
    // SAFETY: the caller's promise.
    unsafe { _mm512_castsi512_pd(_mm512_set1_epi64(0x7FF8_0000_0000_0000)) }
}

/// 64 bytes of bf16, widened: the elements in the lower halves of 32-bit words, and those in the
/// upper halves. No element changes its lane, so nothing is shuffled.
#[derive(Clone, Copy)]
pub(super) struct Bf16x32 {
    lower: F32x16,
    upper: F32x16,
}

impl Vector for Bf16x32 {
    const BYTES: usize = 64;
    const ELEMENT_BYTES: usize = 2;
    type Narrower = Bf16x16;
    type Stored = __m512i;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let words = _mm512_loadu_si512(from.cast());
            let lower = _mm512_slli_epi32::<16>(words);
            let upper = _mm512_and_si512(words, _mm512_set1_epi32(0xFFFF_0000_u32 as i32));
            Bf16x32 {
                lower: F32x16(_mm512_castsi512_ps(lower)),
                upper: F32x16(_mm512_castsi512_ps(upper)),
            }
        }
    }

    #[inline(always)]
    unsafe fn sum(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Bf16x32 { lower: self.lower.sum(other.lower), upper: self.upper.sum(other.upper) }
        }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Bf16x32 { lower: self.lower.max(other.lower), upper: self.upper.max(other.upper) }
        }
    }

    #[inline(always)]
    unsafe fn finish(self) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let lower = _mm512_srli_epi32::<16>(round(self.lower));
            _mm512_mask_blend_epi16(0xAAAA_AAAA, lower, round(self.upper))
        }
    }

    #[inline(always)]
    unsafe fn store(stored: __m512i, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), stored) }
    }
}

/// Rounds to bf16, which is left in the upper half of each word. The processor's own conversion
/// takes denormal numbers for zero.
#[inline(always)]
unsafe fn round(wide: F32x16) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        // Canonical before rounding: the carry cannot reach the sign then.
        let bits = _mm512_castps_si512(wide.finish());
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd)
    }
}

/// 64 bytes of i32.
#[derive(Clone, Copy)]
pub(super) struct I32x16(__m512i);

impl Vector for I32x16 {
    const BYTES: usize = 64;
    const ELEMENT_BYTES: usize = 4;
    type Narrower = I32x8;
    type Stored = __m512i;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        I32x16(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn sum(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        I32x16(unsafe { _mm512_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        I32x16(unsafe { _mm512_max_epi32(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn finish(self) -> __m512i {
        self.0
    }

    #[inline(always)]
    unsafe fn store(stored: __m512i, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), stored) }
    }
}
