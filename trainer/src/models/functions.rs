//! Functions of single numbers, without branches for f32, so that loops over them are loops over vectors: the C library
//! has them one number at a time.

use candle_core::WithDType;

/// What models need of numbers on the CPU.
pub(super) trait Functions: WithDType {
    /// e to the power of this number, which is at most 0.
    fn exp_of_negative(self) -> Self;

    /// The share of the standard normal distribution below this number, and its density there.
    fn below_and_density(self) -> (Self, Self);
}

const INV_SQRT_2_PI: f64 = 0.398_942_280_401_432_7;

impl Functions for f64 {
    fn exp_of_negative(self) -> f64 {
        self.exp()
    }

    fn below_and_density(self) -> (f64, f64) {
        let below = 0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2);
        (below, (-0.5 * self * self).exp() * INV_SQRT_2_PI)
    }
}

impl Functions for f32 {
    /// As 2^n * e^r, with the nearest n and a polynomial for what is left; up to 3e-7 of it. Below e^-86 it is 0.
    #[inline(always)]
    fn exp_of_negative(self) -> f32 {
        /// To add it rounds to a whole number, which is then in the lowest bits.
        const ROUNDER: f32 = 12_582_912.;
        /// ln 2 in two parts, of which n times the first is exact.
        const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
        /// 1 / k! for k from 7 down to 0: the Taylor series, as r is small.
        const FACTORS: [f32; 8] =
            [1. / 5040., 1. / 720., 1. / 120., 1. / 24., 1. / 6., 0.5, 1., 1.];
        const LEAST: f32 = -86.;
        let within = if self < LEAST { LEAST } else { self };
        let rounded = within * std::f32::consts::LOG2_E + ROUNDER;
        let n = rounded - ROUNDER;
        let r = within - n * LN_2[0] - n * LN_2[1];
        let of_r = FACTORS.iter().fold(0., |sum, factor| sum * r + factor);
        let two_to_n = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1_f32.to_bits()));
        if self < LEAST { 0. } else { of_r * two_to_n }
    }

    /// The share beyond |x| is the bell e^(-x^2 / 2) times a polynomial in u = |x| / (|x| + 3.2), which is exactly 1/2 at 0: the
    /// form of Hastings, "Approximations for Digital Computers" (1955), but for his t = 1 - u, near 1 of which his
    /// terms cancel each other. The coefficients are those with the smallest largest error, found by Remez' exchange
    /// for |x| up to 9. The share is off by at most 1e-7, less than f32's epsilon: 1.3e-8 by the formula, the rest by
    /// rounding.
    #[inline(always)]
    fn below_and_density(self) -> (f32, f32) {
        const FACTORS: [f32; 5] =
            [-1.276_614_6, 1.283_331_8, -0.513_113_1, -0.123_613_305, 0.138_366_64];
        const SCALE: f32 = 3.2;
        /// From here on the bell is 0; to infinity, u would not be a number.
        const FAR: f32 = 14.;
        let bell = (-0.5 * self * self).exp_of_negative();
        let distance = self.abs();
        let distance = if distance > FAR { FAR } else { distance };
        let u = distance / (distance + SCALE);
        let polynomial = FACTORS.iter().rev().fold(0., |sum, factor| (sum + factor) * u);
        let beyond = (0.5 + polynomial) * bell;
        let below = if self < 0. { beyond } else { 1. - beyond };
        (below, bell * INV_SQRT_2_PI as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_distribution_is_off_by_no_more_than_it_says() {
        for step in -1_400_000..=1_400_000 {
            let x = step as f32 / 1e5;
            let (below, density) = x.below_and_density();
            let (exact_below, exact_density) = f64::from(x).below_and_density();
            assert!((f64::from(below) - exact_below).abs() < 1.1e-7, "{x}: {below} {exact_below}");
            assert!((0. ..=1.).contains(&below), "{x}: {below}");
            let error = (f64::from(density) - exact_density).abs();
            assert!(error < 1e-7, "{x}: {density} {exact_density}");
        }
        assert_eq!(0_f32.below_and_density().0, 0.5);
        assert_eq!(f32::INFINITY.below_and_density(), (1., 0.));
        assert_eq!(f32::NEG_INFINITY.below_and_density(), (0., 0.));
        assert!(f32::NAN.below_and_density().0.is_nan());
    }

    #[test]
    fn the_exponential_is_exact_down_to_the_smallest() {
        for step in 0..86_000 {
            let x = -step as f32 / 1000.;
            let (found, exact) = (f64::from(x.exp_of_negative()), f64::from(x).exp());
            assert!((found - exact).abs() <= 3e-7 * exact, "{x}: {found} {exact}");
        }
        assert_eq!(f32::NEG_INFINITY.exp_of_negative(), 0.);
        assert!(f32::NAN.exp_of_negative().is_nan());
    }
}
