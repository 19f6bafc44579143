//! A small convolutional net.

use candle_core::{Result, Tensor, bail};
use candle_nn::{Conv2d, Conv2dConfig, Module, VarBuilder};
use serde::{Deserialize, Serialize};

use super::check_sizes;
use super::layers::{Linear, uniform};
use crate::Model;

/// Width and height of what a convolution looks at.
const KERNEL: usize = 3;

/// Pixels a side that become one.
const POOL: usize = 2;

/// Sizes of a [`Cnn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CnnSettings {
    /// Outputs of the two convolutions.
    pub channels: [usize; 2],
}

impl Default for CnnSettings {
    /// 16 and 32 channels.
    fn default() -> CnnSettings {
        CnnSettings { channels: [16, 32] }
    }
}

/// Two times a convolution of 3 x 3, ReLU, and the mean of each 2 x 2 pixels; then a linear layer. Parameters: `conv1`,
/// `conv2` and `linear`, each with `weight` and `bias`.
///
/// It takes means, not maxima: the gradient that candle 0.11 gives `max_pool2d` is a quarter of what it should be.
#[derive(Clone, Debug)]
pub struct Cnn {
    convolutions: [Conv2d; 2],
    linear: Linear,
}

impl Cnn {
    /// One for images of this shape (channels, height, width), which must be 4 x 4 pixels at least.
    ///
    /// # Errors
    ///
    /// A message for smaller images or a size of zero; what the backend of `vb` says.
    pub fn new(
        settings: &CnnSettings,
        (channels, height, width): (usize, usize, usize),
        classes: usize,
        vb: VarBuilder,
    ) -> Result<Cnn> {
        let [first, second] = settings.channels;
        check_sizes(&[(channels, "channels"), (first, "channels"), (second, "channels")])?;
        check_sizes(&[(classes, "classes")])?;
        let (rows, columns) = (height / POOL / POOL, width / POOL / POOL);
        if rows == 0 || columns == 0 {
            bail!("a cnn for images of {width} x {height} pixels: give at least 4 x 4")
        }
        Ok(Cnn {
            convolutions: [
                convolution(channels, first, vb.pp("conv1"))?,
                convolution(first, second, vb.pp("conv2"))?,
            ],
            linear: Linear::uniform(second * rows * columns, classes, vb.pp("linear"))?,
        })
    }
}

impl Model for Cnn {
    fn logits(&self, input: &Tensor) -> Result<Tensor> {
        let mut x = input.clone();
        for convolution in &self.convolutions {
            x = pool(&convolution.forward(&x)?.relu()?)?;
        }
        self.linear.forward(&x.flatten_from(1)?)
    }
}

/// A convolution that keeps the image's size, drawn as PyTorch draws it.
fn convolution(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Conv2d> {
    let init = uniform(inputs * KERNEL * KERNEL);
    let weight = vb.get_with_hints((outputs, inputs, KERNEL, KERNEL), "weight", init)?;
    let bias = vb.get_with_hints(outputs, "bias", init)?;
    let config = Conv2dConfig { padding: KERNEL / 2, ..Conv2dConfig::default() };
    Ok(Conv2d::new(weight, Some(bias), config))
}

/// The mean of each 2 x 2 pixels. A last odd row or column is left out, as PyTorch does it; candle's gradient takes
/// nothing else.
fn pool(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let even = |size: usize| size / POOL * POOL;
    x.narrow(2, 0, even(height))?.narrow(3, 0, even(width))?.avg_pool2d(POOL)
}
