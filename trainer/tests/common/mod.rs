//! Parameters for models under test: the same in every run.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use candle_nn::VarMap;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Sets all parameters to values from -`scale` to `scale`.
pub fn randomise(parameters: &VarMap, scale: f64) -> BTreeMap<String, Var> {
    let vars = parameters.data().lock().expect("no test has failed with it");
    for (name, var) in vars.iter() {
        let values = random_values(name, var.elem_count(), scale);
        let values = Tensor::from_vec(values, var.shape(), &Device::Cpu).expect("as many values");
        var.set(&values.to_dtype(var.dtype()).expect("a number")).expect("the same shape");
    }
    vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
}

/// Values from -`scale` to `scale` that depend on a name alone.
pub fn random_values(name: &str, count: usize, scale: f64) -> Vec<f64> {
    let mut key = [0; 32];
    for (place, byte) in name.bytes().enumerate() {
        key[place % 32] ^= byte;
    }
    let mut random = ChaCha8Rng::from_seed(key);
    let unit = |bits: u32| f64::from(bits) / f64::from(u32::MAX);
    (0..count).map(|_| (2. * unit(random.next_u32()) - 1.) * scale).collect()
}
