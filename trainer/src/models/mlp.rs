//! Fully connected layers, one after another.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::check_sizes;
use super::layers::{Activation, Linear};
use crate::Model;

/// Sizes of an [`Mlp`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlpSettings {
    /// Outputs of each hidden layer; none makes it a linear model.
    pub hidden: Vec<usize>,
    /// What follows each hidden layer.
    pub activation: Activation,
}

impl Default for MlpSettings {
    /// Two hidden layers of 128 and 64, with ReLU.
    fn default() -> MlpSettings {
        MlpSettings { hidden: vec![128, 64], activation: Activation::Relu }
    }
}

/// Fully connected layers: parameters `layers.0.weight`, `layers.0.bias`, `layers.1.weight` and so on.
#[derive(Clone, Debug)]
pub struct Mlp {
    layers: Vec<Linear>,
    activation: Activation,
}

impl Mlp {
    /// One for samples of `inputs` numbers, in whatever shape.
    ///
    /// # Errors
    ///
    /// A message for a size of zero; what the backend of `vb` says.
    pub fn new(
        settings: &MlpSettings,
        inputs: usize,
        classes: usize,
        vb: VarBuilder,
    ) -> Result<Mlp> {
        let mut sizes = vec![inputs];
        sizes.extend(&settings.hidden);
        sizes.push(classes);
        for size in &sizes {
            check_sizes(&[(*size, "inputs or outputs of a layer")])?;
        }
        let layer = |(number, pair): (usize, &[usize])| {
            Linear::uniform(pair[0], pair[1], vb.pp("layers").pp(number))
        };
        let layers = sizes.windows(2).enumerate().map(layer).collect::<Result<_>>()?;
        Ok(Mlp { layers, activation: settings.activation })
    }
}

impl Model for Mlp {
    fn logits(&self, input: &Tensor) -> Result<Tensor> {
        let mut x = input.flatten_from(1)?;
        for (number, layer) in self.layers.iter().enumerate() {
            if number > 0 {
                x = self.activation.forward(&x)?;
            }
            x = layer.forward(&x)?;
        }
        Ok(x)
    }
}
