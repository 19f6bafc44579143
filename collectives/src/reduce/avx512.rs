//! Kernels for x86-64 processors with AVX-512 F, BW and DQ.

use std::arch::x86_64::*;

use super::avx2::{Bf16x16, F16x8, F32x8, F64x4};
use super::narrow::{F8E4M3, F8E5M2, Narrow};
use super::portable::{Lanes, no_bit_operations};
use super::vector::{Combine, InstructionSet, Operation, Scale, Vector, fold};

/// x86-64 with AVX-512 F, BW and DQ.
pub(super) struct Avx512;

impl InstructionSet for Avx512 {
    type F32 = F32x16;
    type F64 = F64x8;
    type Bf16 = Bf16x32;
    type F16 = F16x16;
    type F8E4M3 = Lanes<Narrow<F8E4M3>, 32>;
    type F8E5M2 = Lanes<Narrow<F8E5M2>, 32>;
    type I8 = Lanes<i8, 64>;
    type U8 = Lanes<u8, 64>;
    type I32 = Lanes<i32, 16>;
    type U32 = Lanes<u32, 16>;
    type I64 = Lanes<i64, 8>;
    type U64 = Lanes<u64, 8>;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,f16c")]
    unsafe fn run<V: Vector, O: Operation>(
        sources: &[*const u8],
        destinations: &[*mut u8],
        count: usize,
        scalar: f64,
    ) {
        // SAFETY: the caller's promise.
        unsafe { fold::<V, O>(sources, destinations, count, scalar) }
    }
}

/// Controls `range`: the larger of two numbers, with the sign that the comparison gives. It knows
/// that -0 is less than +0, and gives the number if one operand is a quiet NaN.
const LARGER: i32 = 0b0101;

/// The same, the smaller.
const SMALLER: i32 = 0b0100;

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
    unsafe fn combine(self, other: Self, how: Combine) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let unordered = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, other.0);
            F32x16(match how {
                Combine::Sum => _mm512_add_ps(self.0, other.0),
                Combine::Product => _mm512_mul_ps(self.0, other.0),
                Combine::Min => {
                    let smaller = _mm512_range_ps::<SMALLER>(self.0, other.0);
                    _mm512_mask_mov_ps(smaller, unordered, canonical_nan())
                }
                Combine::Max => {
                    let larger = _mm512_range_ps::<LARGER>(self.0, other.0);
                    _mm512_mask_mov_ps(larger, unordered, canonical_nan())
                }
                Combine::And | Combine::Or | Combine::Xor => no_bit_operations(),
            })
        }
    }

    #[inline(always)]
    unsafe fn scale(self, scale: Scale, scalar: f64) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let scalar = _mm512_set1_ps(scalar as f32);
            F32x16(match scale {
                Scale::Keep => self.0,
                Scale::Times => _mm512_mul_ps(self.0, scalar),
                Scale::Over => _mm512_div_ps(self.0, scalar),
            })
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
    unsafe fn combine(self, other: Self, how: Combine) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let unordered = _mm512_cmp_pd_mask::<_CMP_UNORD_Q>(self.0, other.0);
            F64x8(match how {
                Combine::Sum => _mm512_add_pd(self.0, other.0),
                Combine::Product => _mm512_mul_pd(self.0, other.0),
                Combine::Min => {
                    let smaller = _mm512_range_pd::<SMALLER>(self.0, other.0);
                    _mm512_mask_mov_pd(smaller, unordered, canonical_nan_f64())
                }
                Combine::Max => {
                    let larger = _mm512_range_pd::<LARGER>(self.0, other.0);
                    _mm512_mask_mov_pd(larger, unordered, canonical_nan_f64())
                }
                Combine::And | Combine::Or | Combine::Xor => no_bit_operations(),
            })
        }
    }

    #[inline(always)]
    unsafe fn scale(self, scale: Scale, scalar: f64) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let scalar = _mm512_set1_pd(scalar);
            F64x8(match scale {
                Scale::Keep => self.0,
                Scale::Times => _mm512_mul_pd(self.0, scalar),
                Scale::Over => _mm512_div_pd(self.0, scalar),
            })
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
    unsafe fn combine(self, other: Self, how: Combine) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Bf16x32 {
                lower: self.lower.combine(other.lower, how),
                upper: self.upper.combine(other.upper, how),
            }
        }
    }

    #[inline(always)]
    unsafe fn scale(self, scale: Scale, scalar: f64) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Bf16x32 {
                lower: self.lower.scale(scale, scalar),
                upper: self.upper.scale(scale, scalar),
            }
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

/// 32 bytes of f16, widened by the processor.
#[derive(Clone, Copy)]
pub(super) struct F16x16(F32x16);

impl Vector for F16x16 {
    const BYTES: usize = 32;
    const ELEMENT_BYTES: usize = 2;
    type Narrower = F16x8;
    type Stored = __m256i;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        F16x16(F32x16(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }))
    }

    #[inline(always)]
    unsafe fn combine(self, other: Self, how: Combine) -> Self {
        // SAFETY: the caller's promise.
        F16x16(unsafe { self.0.combine(other.0, how) })
    }

    #[inline(always)]
    unsafe fn scale(self, scale: Scale, scalar: f64) -> Self {
        // SAFETY: the caller's promise.
        F16x16(unsafe { self.0.scale(scale, scalar) })
    }

    #[inline(always)]
    unsafe fn finish(self) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            // Canonical before rounding: infinity and NaN stay what they are.
            let canonical = self.0.finish();
            _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(canonical)
        }
    }

    #[inline(always)]
    unsafe fn store(stored: __m256i, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), stored) }
    }
}
