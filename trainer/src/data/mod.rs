//! What models learn from: data sets, the order in which their samples are seen, and their loading in the background.

mod digits;
mod folder;
mod images;
mod loader;
mod open;
mod sampler;
mod text;

use candle_core::DType;

pub use digits::digits;
pub use images::{ImageSize, Images};
pub use loader::{Loaded, Loader};
pub use open::{Data, DataKind, DataSettings, open};
pub use sampler::{Position, Sampler, Step, Steps};
pub use text::Text;

use crate::{Batch, Result};

/// Samples, each by its index, all in memory.
pub trait Dataset: Send + Sync {
    /// How many samples there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What each sample is.
    fn facts(&self) -> Facts;

    /// The samples of these indices (below [`len`](Dataset::len), at least one), in this order, on the CPU. Numbers are
    /// of the type `dtype`; tokens and classes are `u32`.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`](crate::Error::Argument) for an index that is too large, and what the tensor library refuses.
    fn batch(&self, indices: &[usize], dtype: DType) -> Result<Batch>;
}

/// What a model must know of the data that it is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What a model sees of one sample.
    pub input: Input,
    /// How many classes a prediction chooses from.
    pub classes: usize,
}

/// What a model sees of one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Numbers from 0 to 1, of shape (channels, height, width); one prediction a sample.
    Image {
        /// 1 if grey, 3 if red, green and blue.
        channels: usize,
        /// Rows of pixels.
        height: usize,
        /// Pixels in a row.
        width: usize,
    },
    /// Tokens (`u32`) of shape (block); at each of them, the next one is to be predicted.
    Tokens {
        /// How many tokens a sample has.
        block: usize,
    },
}

/// Data in two parts that share no sample.
#[derive(Clone, Debug)]
pub struct Split<D> {
    /// What is learnt from.
    pub train: D,
    /// What shows how well that went.
    pub validation: D,
}

/// Refuses the first index that is too large.
fn check_indices(indices: &[usize], len: usize) -> Result<()> {
    match indices.iter().find(|&&index| index >= len) {
        None => Ok(()),
        Some(index) => Err(crate::Error::Argument(format!(
            "sample {index} was asked for, but the data has {len}: give indices below {len}"
        ))),
    }
}
