//! Causal self-attention with several heads as one operation. Composed of candle's, most of its time goes to cutting out
//! heads and putting their gradients together again, and to scores of tokens that must not be seen.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, WithDType, bail,
};
use pulp::Arch;

use super::functions::Functions;
use super::rows::{is_for_us, with};

/// What each token sees of those before it and of itself (Vaswani et al., "Attention Is All You Need", 2017). `all` are
/// the queries, keys and values of each token, (samples * tokens, 3 * width), which `heads` heads divide; the result is
/// (samples * tokens, width). `mask` (tokens, tokens) is what hides later tokens, by being added to their scores.
pub(super) fn attention(
    all: &Tensor,
    samples: usize,
    heads: usize,
    mask: &Tensor,
) -> Result<Tensor> {
    if !is_for_us(all) {
        return composed(all, samples, heads, mask);
    }
    let parts = Parts::of(&all.detach(), samples, heads)?;
    let scores = parts.queries.matmul(&parts.keys.t()?)?;
    let weights = match scores.dtype() {
        DType::F32 => softmax::<f32>(&scores, parts.scale())?,
        _ => softmax::<f64>(&scores, parts.scale())?,
    };
    let seen = weights.matmul(&parts.values)?;
    let seen = seen.transpose(1, 2)?.reshape((all.dim(0)?, all.dim(1)? / 3))?;
    all.apply_op1(Attention { parts, weights, seen: Mutex::new(Some(seen)) })
}

fn composed(all: &Tensor, samples: usize, heads: usize, mask: &Tensor) -> Result<Tensor> {
    let parts = Parts::of(all, samples, heads)?;
    let scores = (&parts.queries * parts.scale())?.matmul(&parts.keys.t()?)?;
    let weights = candle_nn::ops::softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
    weights.matmul(&parts.values)?.transpose(1, 2)?.reshape((all.dim(0)?, all.dim(1)? / 3))
}

/// Queries, keys and values, each (samples, heads, tokens, head width), for all heads to be one batch of products.
struct Parts {
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl Parts {
    fn of(all: &Tensor, samples: usize, heads: usize) -> Result<Parts> {
        let (rows, widths) = all.dims2()?;
        let all = all.reshape((samples, rows / samples, 3, heads, widths / 3 / heads))?;
        let part = |number: usize| all.get_on_dim(2, number)?.transpose(1, 2)?.contiguous();
        Ok(Parts { queries: part(0)?, keys: part(1)?, values: part(2)? })
    }

    /// What products of queries and keys are multiplied by.
    fn scale(&self) -> f64 {
        let head_width = self.queries.dims()[3];
        (head_width as f64).powf(-0.5)
    }
}

/// Gets the result, and has what its gradient needs.
struct Attention {
    parts: Parts,
    weights: Tensor,
    seen: Mutex<Option<Tensor>>,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        fn copy<T: WithDType>(seen: &Tensor) -> Result<CpuStorage> {
            with(seen, |seen: &[T]| T::to_cpu_storage_owned(seen.to_vec()))
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(seen) = seen else { bail!("what attention has seen is used once") };
        let result = match seen.dtype() {
            DType::F32 => copy::<f32>(&seen)?,
            _ => copy::<f64>(&seen)?,
        };
        Ok((result, seen.shape().clone()))
    }

    fn bwd(&self, all: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let Parts { queries, keys, values } = &self.parts;
        let (samples, heads, tokens, head_width) = queries.dims4()?;
        let gradient = gradient.reshape((samples, tokens, heads, head_width))?;
        let gradient = gradient.transpose(1, 2)?.contiguous()?;
        let of_values = self.weights.t()?.matmul(&gradient)?;
        let of_weights = gradient.matmul(&values.t()?)?;
        let of_scores = match gradient.dtype() {
            DType::F32 => of_softmax::<f32>(&self.weights, &of_weights, self.parts.scale())?,
            _ => of_softmax::<f64>(&self.weights, &of_weights, self.parts.scale())?,
        };
        let of_queries = of_scores.matmul(keys)?;
        let of_keys = of_scores.t()?.matmul(queries)?;
        let of_all = Tensor::stack(&[of_queries, of_keys, of_values], 0)?;
        of_all.permute((1, 3, 0, 2, 4))?.reshape(all.shape()).map(Some)
    }
}

/// The softmax of `scale` times the scores of each row, (..., tokens, tokens), over the tokens that the row's may see; 0
/// for the others.
fn softmax<T: Functions>(scores: &Tensor, scale: f64) -> Result<Tensor> {
    let (tokens, scale) = (scores.dim(D::Minus1)?, T::from_f64(scale));
    let mut weights = vec![T::zero(); scores.elem_count()];
    with(scores, |scores: &[T]| {
        let rows = std::iter::zip(weights.chunks_exact_mut(tokens), scores.chunks_exact(tokens));
        for (number, (weights, scores)) in rows.enumerate() {
            let seen = number % tokens + 1;
            let (weights, scores) = (&mut weights[..seen], &scores[..seen]);
            let most = scores.iter().fold(scores[0], |a, &b| if b > a { b } else { a });
            Arch::new().dispatch(|| {
                for (weight, &score) in std::iter::zip(&mut *weights, scores) {
                    *weight = ((score - most) * scale).exp_of_negative();
                }
            });
            let over_sum = T::one() / weights.iter().fold(T::zero(), |a, &b| a + b);
            weights.iter_mut().for_each(|weight| *weight *= over_sum);
        }
    })?;
    Tensor::from_vec(weights, scores.shape(), scores.device())
}

/// The gradient of the scores: `scale * weight * (gradient - sum over the row of weight * gradient)`.
fn of_softmax<T: Functions>(weights: &Tensor, gradient: &Tensor, scale: f64) -> Result<Tensor> {
    let (tokens, scale) = (weights.dim(D::Minus1)?, T::from_f64(scale));
    let mut result = vec![T::zero(); weights.elem_count()];
    let row = |result: &mut [T], weights: &[T], gradient: &[T]| {
        let products = std::iter::zip(weights, gradient).map(|(&weight, &of)| weight * of);
        let sum = products.fold(T::zero(), |a, b| a + b);
        for (result, (&weight, &of)) in std::iter::zip(result, std::iter::zip(weights, gradient)) {
            *result = scale * weight * (of - sum);
        }
    };
    with(weights, |weights: &[T]| {
        with(gradient, |gradient: &[T]| {
            let rows = std::iter::zip(weights.chunks_exact(tokens), gradient.chunks_exact(tokens));
            let rows = std::iter::zip(result.chunks_exact_mut(tokens), rows);
            for (number, (result, (weights, gradient))) in rows.enumerate() {
                let seen = number % tokens + 1;
                row(&mut result[..seen], &weights[..seen], &gradient[..seen]);
            }
        })
    })??;
    Tensor::from_vec(result, weights.shape(), weights.device())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::rows::tests::{assert_same, var};
    use super::*;

    #[test]
    fn it_is_what_candle_composes() {
        let (samples, tokens, heads, head_width) = (2, 5, 3, 4);
        let all = var((samples * tokens, 3 * heads * head_width), 0.);
        let hidden =
            |pair: usize| if pair % tokens > pair / tokens { f64::NEG_INFINITY } else { 0. };
        let mask: Vec<f64> = (0..tokens * tokens).map(hidden).collect();
        let mask = Tensor::from_vec(mask, (tokens, tokens), &Device::Cpu).expect("a mask");
        let ours = attention(&all, samples, heads, &mask).expect("a result");
        let candles = composed(&all, samples, heads, &mask).expect("a result");
        assert_same(ours, candles, &[&all]);
    }
}
