//! What models are made of, where candle's own layers will not do.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use super::gelu::gelu;
use super::linear::linear;
use super::rows;

/// What keeps layers from being one linear function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// The larger of x and 0.
    #[default]
    Relu,
    /// x times the normal distribution's share below x: exactly, not by the tanh approximation (Hendrycks and Gimpel,
    /// "Gaussian Error Linear Units", 2016).
    Gelu,
}

impl Activation {
    pub(super) fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Relu => x.relu(),
            Activation::Gelu => gelu(x),
        }
    }
}

/// A linear layer with bias; weight (outputs, inputs).
#[derive(Clone, Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    pub(super) fn new(
        inputs: usize,
        outputs: usize,
        weight: Init,
        bias: Init,
        vb: VarBuilder,
    ) -> Result<Linear> {
        Ok(Linear {
            weight: vb.get_with_hints((outputs, inputs), "weight", weight)?,
            bias: vb.get_with_hints(outputs, "bias", bias)?,
        })
    }

    /// Both drawn as PyTorch's `nn.Linear` draws them: evenly, up to 1 / sqrt(inputs).
    pub(super) fn uniform(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
        let init = uniform(inputs);
        Linear::new(inputs, outputs, init, init, vb)
    }

    /// From (rows, inputs) to (rows, outputs).
    pub(super) fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        linear(rows, &self.weight, &self.bias)
    }
}

/// PyTorch's start of weights and biases of which each output sums up this many inputs.
pub(super) fn uniform(inputs: usize) -> Init {
    let bound = 1. / (inputs as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// Layer normalisation (Ba, Kiros and Hinton, 2016) over the last dimension. Candle's own one has no backward: it
/// drops gradients without a word.
#[derive(Clone, Debug)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    /// What is added to the variance, as in PyTorch.
    const EPSILON: f64 = 1e-5;

    pub(super) fn new(width: usize, vb: VarBuilder) -> Result<LayerNorm> {
        Ok(LayerNorm {
            weight: vb.get_with_hints(width, "weight", Init::Const(1.))?,
            bias: vb.get_with_hints(width, "bias", Init::Const(0.))?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rows::layer_norm(x, &self.weight, &self.bias, Self::EPSILON)
    }
}
