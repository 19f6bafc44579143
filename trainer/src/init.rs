//! Initial values of parameters, by a generator of numbers of our own choice: candle's on the host cannot be seeded.

use candle_core::Shape;
use candle_nn::Init;
use candle_nn::init::NormalOrUniform;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Normal, Uniform};

use crate::real::Real;

/// The initial values of a parameter, row by row. They depend on the seed, the name and what the model asks for, so that
/// a parameter that is added to a model leaves the others as they were.
pub fn initial_values<T: Real>(seed: u64, name: &str, shape: &Shape, init: Init) -> Vec<T> {
    let count = shape.elem_count();
    let mut generator = ChaCha8Rng::from_seed(key(seed, name));
    let mut uniform = |low: f64, high: f64| match Uniform::new(low, high) {
        Ok(range) => range.sample_iter(&mut generator).take(count).map(T::from_f64).collect(),
        Err(_) => vec![T::from_f64(low); count],
    };
    match init {
        Init::Const(value) => vec![T::from_f64(value); count],
        Init::Uniform { lo, up } => uniform(lo, up),
        Init::Randn { mean, stdev } => normal(&mut generator, mean, stdev, count),
        Init::Kaiming { dist, fan, non_linearity } => {
            let deviation = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            let bound = 3_f64.sqrt() * deviation;
            match dist {
                NormalOrUniform::Uniform => uniform(-bound, bound),
                NormalOrUniform::Normal => normal(&mut generator, 0.0, deviation, count),
            }
        }
    }
}

fn normal<T: Real>(generator: &mut ChaCha8Rng, mean: f64, deviation: f64, count: usize) -> Vec<T> {
    match Normal::new(mean, deviation) {
        Ok(normal) => normal.sample_iter(generator).take(count).map(T::from_f64).collect(),
        Err(_) => vec![T::from_f64(mean); count],
    }
}

/// A generator's key: the seed, and the name's FNV-1a hash three times over, each from another start.
fn key(seed: u64, name: &str) -> [u8; 32] {
    let hash = |start: u64| {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        name.bytes().fold(start, step)
    };
    let offset = 0xcbf2_9ce4_8422_2325_u64;
    let words = [seed, hash(offset), hash(offset ^ 1), hash(offset ^ 2)];
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u64, name: &str, init: Init) -> Vec<f64> {
        initial_values(seed, name, &Shape::from((100, 50)), init)
    }

    #[test]
    fn values_depend_on_seed_and_name_alone() {
        let init = Init::Randn { mean: 1.0, stdev: 2.0 };
        assert_eq!(values(7, "a.weight", init), values(7, "a.weight", init));
        assert_ne!(values(7, "a.weight", init), values(8, "a.weight", init));
        assert_ne!(values(7, "a.weight", init), values(7, "b.weight", init));
    }

    #[test]
    fn values_are_spread_as_asked() {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let normal = values(1, "w", Init::Randn { mean: 1.0, stdev: 2.0 });
        let squares: Vec<f64> = normal.iter().map(|value| (value - 1.0).powi(2)).collect();
        assert!((mean(&normal) - 1.0).abs() < 0.1, "{}", mean(&normal));
        assert!((mean(&squares).sqrt() - 2.0).abs() < 0.1);
        let uniform = values(1, "w", Init::Uniform { lo: -3.0, up: 5.0 });
        assert!(uniform.iter().all(|value| (-3.0..5.0).contains(value)));
        assert!((mean(&uniform) - 1.0).abs() < 0.2);
        // Fan-in of 50, and the gain of ReLU: the bound is sqrt(3) * sqrt(2) / sqrt(50).
        let kaiming = values(1, "w", candle_nn::init::DEFAULT_KAIMING_UNIFORM);
        let most = kaiming.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        assert!((0.33..0.3465).contains(&most), "{most}");
        assert_eq!(values(1, "w", Init::Const(0.5)), [0.5; 5000]);
    }
}
