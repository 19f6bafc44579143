//! Kernels for x86-64 processors with AVX2 and F16C.

use std::arch::x86_64::*;

use super::narrow::{F8E4M3, F8E5M2, F16, Narrow};
use super::portable::{Bf16x8, F32x4, F64x2, Lanes, no_bit_operations};
use super::vector::{Combine, InstructionSet, Operation, Scale, Vector, fold};

/// x86-64 with AVX2 and F16C.
pub(super) struct Avx2;

impl InstructionSet for Avx2 {
    type F32 = F32x8;
    type F64 = F64x4;
    type Bf16 = Bf16x16;
    type F16 = F16x8;
    type F8E4M3 = Lanes<Narrow<F8E4M3>, 16>;
    type F8E5M2 = Lanes<Narrow<F8E5M2>, 16>;
    type I8 = Lanes<i8, 32>;
    type U8 = Lanes<u8, 32>;
    type I32 = Lanes<i32, 8>;
    type U32 = Lanes<u32, 8>;
    type I64 = Lanes<i64, 4>;
    type U64 = Lanes<u64, 4>;

    #[target_feature(enable = "avx2,f16c")]
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
    unsafe fn combine(self, other: Self, how: Combine) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let unordered = _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, other.0);
            F32x8(match how {
                Combine::Sum => _mm256_add_ps(self.0, other.0),
                Combine::Product => _mm256_mul_ps(self.0, other.0),
                // The instructions give their second operand if the operands are equal or unordered.
                // Equal ones differ at most in the sign of zero, which a disjunction sets if one has
                // it, and a conjunction clears unless both have; all ones is a NaN.
                Combine::Min => {
                    let either = _mm256_min_ps(self.0, other.0);
                    let or_either = _mm256_min_ps(other.0, self.0);
                    _mm256_or_ps(_mm256_or_ps(either, or_either), unordered)
                }
                Combine::Max => {
                    let either = _mm256_max_ps(self.0, other.0);
                    let or_either = _mm256_max_ps(other.0, self.0);
                    _mm256_or_ps(_mm256_and_ps(either, or_either), unordered)
                }
                Combine::And | Combine::Or | Combine::Xor => no_bit_operations(),
            })
        }
    }

    #[inline(always)]
    unsafe fn scale(self, scale: Scale, scalar: f64) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let scalar = _mm256_set1_ps(scalar as f32);
            F32x8(match scale {
                Scale::Keep => self.0,
                Scale::Times => _mm256_mul_ps(self.0, scalar),
                Scale::Over => _mm256_div_ps(self.0, scalar),
            })
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
    unsafe fn combine(self, other: Self, how: Combine) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let unordered = _mm256_cmp_pd::<_CMP_UNORD_Q>(self.0, other.0);
            F64x4(match how {
                Combine::Sum => _mm256_add_pd(self.0, other.0),
                Combine::Product => _mm256_mul_pd(self.0, other.0),
                // As for single precision.
                Combine::Min => {
                    let either = _mm256_min_pd(self.0, other.0);
                    let or_either = _mm256_min_pd(other.0, self.0);
                    _mm256_or_pd(_mm256_or_pd(either, or_either), unordered)
                }
                Combine::Max => {
                    let either = _mm256_max_pd(self.0, other.0);
                    let or_either = _mm256_max_pd(other.0, self.0);
                    _mm256_or_pd(_mm256_and_pd(either, or_either), unordered)
                }
                Combine::And | Combine::Or | Combine::Xor => no_bit_operations(),
            })
        }
    }

    #[inline(always)]
    unsafe fn scale(self, scale: Scale, scalar: f64) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let scalar = _mm256_set1_pd(scalar);
            F64x4(match scale {
                Scale::Keep => self.0,
                Scale::Times => _mm256_mul_pd(self.0, scalar),
                Scale::Over => _mm256_div_pd(self.0, scalar),
            })
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
    unsafe fn combine(self, other: Self, how: Combine) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Bf16x16 {
                lower: self.lower.combine(other.lower, how),
                upper: self.upper.combine(other.upper, how),
            }
        }
    }

    #[inline(always)]
    unsafe fn scale(self, scale: Scale, scalar: f64) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Bf16x16 {
                lower: self.lower.scale(scale, scalar),
                upper: self.upper.scale(scale, scalar),
            }
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

/// 16 bytes of f16, widened by the processor.
#[derive(Clone, Copy)]
pub(super) struct F16x8(F32x8);

impl Vector for F16x8 {
    const BYTES: usize = 16;
    const ELEMENT_BYTES: usize = 2;
    type Narrower = Lanes<Narrow<F16>, 1>;
    type Stored = __m128i;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        F16x8(F32x8(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }))
    }

    #[inline(always)]
    unsafe fn combine(self, other: Self, how: Combine) -> Self {
        // SAFETY: the caller's promise.
        F16x8(unsafe { self.0.combine(other.0, how) })
    }

    #[inline(always)]
    unsafe fn scale(self, scale: Scale, scalar: f64) -> Self {
        // SAFETY: the caller's promise.
        F16x8(unsafe { self.0.scale(scale, scalar) })
    }

    #[inline(always)]
    unsafe fn finish(self) -> __m128i {
        // SAFETY: the caller's promise.
        unsafe {
            // Canonical before rounding: infinity and NaN stay what they are.
            let canonical = self.0.finish();
            _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(canonical)
        }
    }

    #[inline(always)]
    unsafe fn store(stored: __m128i, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_si128(to.cast(), stored) }
    }
}
