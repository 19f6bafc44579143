//! Models that come with the trainer. Each takes its parameters from a `VarBuilder`, so that whoever builds it decides
//! where they lie; names and shapes are PyTorch's.

mod attention;
mod cnn;
mod functions;
mod gelu;
mod gpt;
mod layers;
mod linear;
mod mlp;
mod rows;

use candle_core::{Result, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

pub use cnn::{Cnn, CnnSettings};
pub use gpt::{Gpt, GptSettings};
pub use layers::Activation;
pub use mlp::{Mlp, MlpSettings};

use crate::Model;
use crate::data::{Facts, Input};

/// Which model, and its sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ModelSettings {
    /// Fully connected layers.
    Mlp(MlpSettings),
    /// Convolutions.
    Cnn(CnnSettings),
    /// A transformer that predicts the next token.
    Gpt(GptSettings),
}

/// Builds a model for data of this kind.
///
/// # Errors
///
/// A message where model and data do not go together, or a size makes no sense; what the backend of `vb` says. It is
/// candle's error, as that of a backend is.
pub fn build(settings: &ModelSettings, vb: VarBuilder, facts: &Facts) -> Result<Box<dyn Model>> {
    let classes = facts.classes;
    Ok(match (settings, facts.input) {
        (ModelSettings::Mlp(settings), Input::Image { channels, height, width }) => {
            Box::new(Mlp::new(settings, channels * height * width, classes, vb)?)
        }
        (ModelSettings::Cnn(settings), Input::Image { channels, height, width }) => {
            Box::new(Cnn::new(settings, (channels, height, width), classes, vb)?)
        }
        (ModelSettings::Gpt(settings), Input::Tokens { block }) => {
            Box::new(Gpt::new(settings, block, classes, vb)?)
        }
        (ModelSettings::Mlp(_) | ModelSettings::Cnn(_), Input::Tokens { .. }) => {
            bail!("an mlp or cnn learns from images, but the data is text: use a gpt")
        }
        (ModelSettings::Gpt(_), Input::Image { .. }) => {
            bail!("a gpt learns from text, but the data is images: use an mlp or cnn")
        }
    })
}

/// Refuses a size of zero.
fn check_sizes(sizes: &[(usize, &str)]) -> Result<()> {
    match sizes.iter().find(|(size, _)| *size == 0) {
        None => Ok(()),
        Some((_, what)) => bail!("a model with 0 {what}: give at least one"),
    }
}
