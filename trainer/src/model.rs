//! What a model is to the trainer.

use candle_core::{Device, Result, Tensor, Var};

/// What a model learns from in one go.
#[derive(Clone, Debug)]
pub struct Batch {
    /// What the model sees, the first dimension counting samples.
    pub input: Tensor,
    /// The right class of each prediction (`u32`): one a sample, or one a position of each sample.
    pub target: Tensor,
}

impl Batch {
    /// The same on a device: that of the model which learns from it.
    ///
    /// # Errors
    /// What candle says, as where the device has no memory left.
    pub fn to_device(&self, device: &Device) -> Result<Batch> {
        Ok(Batch { input: self.input.to_device(device)?, target: self.target.to_device(device)? })
    }

    /// How many samples it has.
    pub fn samples(&self) -> usize {
        self.target.dims().first().copied().unwrap_or(0)
    }

    /// How many predictions are asked for: what the loss is the mean of.
    pub fn predictions(&self) -> usize {
        self.target.elem_count()
    }
}

/// A model that can be trained: what its parameters are made by (a `VarBuilder`) is up to the program.
pub trait Model {
    /// What it makes of the input: a row of logits, as many as there are classes, for each prediction, of shape
    /// (predictions, classes).
    fn logits(&self, input: &Tensor) -> Result<Tensor>;

    /// The mean loss over a batch's predictions, a scalar: cross-entropy, if a model does not say otherwise.
    fn loss(&self, batch: &Batch) -> Result<Tensor> {
        candle_nn::loss::cross_entropy(&self.logits(&batch.input)?, &batch.target.flatten_all()?)
    }

    /// What changes during training without a gradient, such as running means, by name.
    fn buffers(&self) -> Vec<(String, Var)> {
        Vec::new()
    }
}
