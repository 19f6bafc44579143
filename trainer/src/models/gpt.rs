//! A transformer that predicts the next token, of nanoGPT's shape (<https://github.com/karpathy/nanoGPT>), which is
//! that of GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).
//!
//! ```text
//! tokens -> token + position embedding -> layers x { x + attention(norm(x)), x + mlp(norm(x)) } -> norm -> logits
//! ```
//!
//! B samples of T tokens are rows of a matrix (B*T, width) everywhere but inside of the attention.

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use super::attention::attention;
use super::check_sizes;
use super::gelu::gelu;
use super::layers::{LayerNorm, Linear};
use super::linear::matmul_transposed;
use crate::Model;

/// Sizes of a [`Gpt`]; those of block and vocabulary are the data's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GptSettings {
    /// Blocks of attention and MLP.
    pub layers: usize,
    /// Heads of each attention, which divide the width.
    pub heads: usize,
    /// Numbers that stand for a token.
    pub width: usize,
}

impl Default for GptSettings {
    /// 4 layers, 4 heads, width 128: about 0.8 million parameters.
    fn default() -> GptSettings {
        GptSettings { layers: 4, heads: 4, width: 128 }
    }
}

/// A transformer that predicts the next token at each place of a block. Parameters are named as in nanoGPT and GPT-2
/// (`transformer.h.0.attn.c_attn.weight`); weights of linear layers are (outputs, inputs), and the
/// head's is that of the token embedding.
#[derive(Clone, Debug)]
pub struct Gpt {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
}

impl Gpt {
    /// One for up to `block` tokens out of a vocabulary of this size.
    ///
    /// # Errors
    ///
    /// A message for a size of zero, or heads that do not divide the width; what the backend of `vb` says.
    pub fn new(
        settings: &GptSettings,
        block: usize,
        vocabulary: usize,
        vb: VarBuilder,
    ) -> Result<Gpt> {
        let &GptSettings { layers, heads, width } = settings;
        check_sizes(&[(layers, "layers"), (heads, "heads"), (width, "numbers a token")])?;
        check_sizes(&[(block, "tokens a block"), (vocabulary, "tokens")])?;
        if width % heads != 0 {
            bail!("a gpt of width {width} with {heads} heads: give a width that the heads divide")
        }
        let vb = vb.pp("transformer");
        let embedding = |count, name| {
            let vb = vb.pp(name);
            vb.get_with_hints((count, width), "weight", normal(DEVIATION))
        };
        let mask = causal_mask(block, vb.dtype(), vb.device())?;
        let layer = |number| Layer::new(settings, &mask, vb.pp("h").pp(number));
        Ok(Gpt {
            token_embedding: embedding(vocabulary, "wte")?,
            position_embedding: embedding(block, "wpe")?,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
            norm: LayerNorm::new(width, vb.pp("ln_f"))?,
        })
    }
}

/// The pass in parts, for programs that do something between them.
impl Gpt {
    /// What the first block gets, of shape (B*T, width), for tokens of shape (B, T).
    ///
    /// # Errors
    ///
    /// What candle says, as where there are more tokens than the block has.
    pub fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        let (samples, block) = tokens.dims2()?;
        let embedded = self.token_embedding.index_select(&tokens.flatten_all()?, 0)?;
        let embedded = embedded.reshape((samples, block, ()))?;
        let positions = self.position_embedding.narrow(0, 0, block)?;
        embedded.broadcast_add(&positions)?.flatten_to(1)
    }

    /// How many blocks of attention and MLP there are.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// What a block, counted from 0, makes of the output of the one before it. There must be such a block; both
    /// are of shape (B*T, width), with B samples.
    ///
    /// # Errors
    ///
    /// What candle says, as for other shapes.
    pub fn layer(&self, number: usize, x: &Tensor, samples: usize) -> Result<Tensor> {
        self.layers[number].forward(x, samples)
    }

    /// The logits of what the last block has made.
    ///
    /// # Errors
    ///
    /// What candle says, as for other shapes.
    pub fn head(&self, x: &Tensor) -> Result<Tensor> {
        matmul_transposed(&self.norm.forward(x)?, &self.token_embedding)
    }
}

impl Model for Gpt {
    fn logits(&self, input: &Tensor) -> Result<Tensor> {
        let samples = input.dim(0)?;
        let mut x = self.embed(input)?;
        for number in 0..self.layers() {
            x = self.layer(number, &x, samples)?;
        }
        self.head(&x)
    }
}

/// The standard deviation that weights start with.
const DEVIATION: f64 = 0.02;

fn normal(stdev: f64) -> Init {
    Init::Randn { mean: 0., stdev }
}

/// Attention and MLP, each behind a norm and added to what came in.
#[derive(Clone, Debug)]
struct Layer {
    attention_norm: LayerNorm,
    attention: Attention,
    mlp_norm: LayerNorm,
    expand: Linear,
    project: Linear,
}

impl Layer {
    fn new(settings: &GptSettings, mask: &Tensor, vb: VarBuilder) -> Result<Layer> {
        let width = settings.width;
        let (zero, mlp) = (Init::Const(0.), vb.pp("mlp"));
        Ok(Layer {
            attention_norm: LayerNorm::new(width, vb.pp("ln_1"))?,
            attention: Attention::new(settings, mask, vb.pp("attn"))?,
            mlp_norm: LayerNorm::new(width, vb.pp("ln_2"))?,
            expand: Linear::new(width, 4 * width, normal(DEVIATION), zero, mlp.pp("c_fc"))?,
            project: projection(4 * width, settings, mlp.pp("c_proj"))?,
        })
    }

    fn forward(&self, x: &Tensor, samples: usize) -> Result<Tensor> {
        let x = (x + self.attention.forward(&self.attention_norm.forward(x)?, samples)?)?;
        let hidden = gelu(&self.expand.forward(&self.mlp_norm.forward(&x)?)?)?;
        x + self.project.forward(&hidden)?
    }
}

/// Causal self-attention with several heads.
#[derive(Clone, Debug)]
struct Attention {
    heads: usize,
    /// Queries, keys and values in one.
    queries_keys_values: Linear,
    project: Linear,
    /// (block, block): what is added to the score of each pair.
    mask: Tensor,
}

impl Attention {
    fn new(settings: &GptSettings, mask: &Tensor, vb: VarBuilder) -> Result<Attention> {
        let (width, zero) = (settings.width, Init::Const(0.));
        let weight = normal(DEVIATION);
        Ok(Attention {
            heads: settings.heads,
            queries_keys_values: Linear::new(width, 3 * width, weight, zero, vb.pp("c_attn"))?,
            project: projection(width, settings, vb.pp("c_proj"))?,
            mask: mask.clone(),
        })
    }

    fn forward(&self, x: &Tensor, samples: usize) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let all = self.queries_keys_values.forward(x)?;
        let tokens = rows / samples;
        let mask = self.mask.narrow(0, 0, tokens)?.narrow(1, 0, tokens)?;
        let seen = attention(&all, samples, self.heads, &mask)?;
        self.project.forward(&seen)
    }
}

/// A linear layer into the residual stream. There are two of them a layer, and they start the smaller, the more of them
/// there are, so that their sum does not grow with the depth.
fn projection(inputs: usize, settings: &GptSettings, vb: VarBuilder) -> Result<Linear> {
    let deviation = DEVIATION / (2. * settings.layers as f64).sqrt();
    Linear::new(inputs, settings.width, normal(deviation), Init::Const(0.), vb)
}

/// 0 where a token (row) may look at another (column), minus infinity where that comes later.
fn causal_mask(block: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let hidden = |row: usize, column: usize| if column > row { f32::NEG_INFINITY } else { 0. };
    let mask: Vec<f32> =
        (0..block * block).map(|pair| hidden(pair / block, pair % block)).collect();
    Tensor::from_vec(mask, (block, block), device)?.to_dtype(dtype)
}
