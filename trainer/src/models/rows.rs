//! Layer normalisation of rows, which candle can only compose of many operations: one pass over memory forward and one
//! backward. Beside it what all operations of our own use to get at numbers.
//!
//! They exist for f32 and f64 on the CPU, where candle sums over rows with a division an element and writes every
//! intermediate result; what composes the same of candle's operations stands beside each, for all else.

use candle_core::{
    CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};

/// Layer normalisation of rows `x` (..., width) by a weight and a bias (width).
pub(super) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f64,
) -> Result<Tensor> {
    if is_for_us(x) {
        x.contiguous()?.apply_op3(weight, bias, LayerNorm { epsilon })
    } else {
        composed_layer_norm(x, weight, bias, epsilon)
    }
}

/// Whether operations of our own are for this tensor.
pub(super) fn is_for_us(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

fn composed_layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + epsilon)?.sqrt()?)?;
    normal.broadcast_mul(weight)?.broadcast_add(bias)
}

struct LayerNorm {
    epsilon: f64,
}

impl LayerNorm {
    /// A row's mean, and one over its standard deviation.
    fn moments<T: WithDType>(&self, row: &[T]) -> (T, T) {
        let width = T::from_f64(row.len() as f64);
        let sum = |values: &mut dyn Iterator<Item = T>| values.fold(T::zero(), |a, b| a + b);
        let mean = sum(&mut row.iter().copied()) / width;
        let variance = sum(&mut row.iter().map(|&x| (x - mean) * (x - mean))) / width;
        (mean, T::from_f64((variance.to_f64() + self.epsilon).sqrt().recip()))
    }

    fn forward<T: WithDType>(&self, x: &[T], weight: &[T], bias: &[T]) -> CpuStorage {
        let mut result = Vec::with_capacity(x.len());
        for row in x.chunks_exact(weight.len()) {
            let (mean, scale) = self.moments(row);
            let parameters = std::iter::zip(weight, bias);
            result.extend(
                std::iter::zip(row, parameters)
                    .map(|(&x, (&weight, &bias))| (x - mean) * scale * weight + bias),
            );
        }
        T::to_cpu_storage_owned(result)
    }

    /// The gradients of x, weight and bias. With the normal values n, which are those of `x` before weight and bias,
    /// and g = gradient * weight, that of x is `(g - mean(g) - n * mean(g * n)) / deviation`.
    fn backward<T: WithDType>(
        &self,
        x: &Tensor,
        weight: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let width = weight.dim(0)?;
        let mut of_x = Vec::with_capacity(x.elem_count());
        let (mut of_weight, mut of_bias) = (vec![T::zero(); width], vec![T::zero(); width]);
        let (mut normal, mut weighted) = (vec![T::zero(); width], vec![T::zero(); width]);
        let over_width = T::from_f64((width as f64).recip());
        let mut row = |x: &[T], weight: &[T], gradient: &[T]| {
            let (mean, scale) = self.moments(x);
            let (mut mean_weighted, mut mean_product) = (T::zero(), T::zero());
            for i in 0..width {
                normal[i] = (x[i] - mean) * scale;
                weighted[i] = gradient[i] * weight[i];
                of_weight[i] += gradient[i] * normal[i];
                of_bias[i] += gradient[i];
                mean_weighted += weighted[i] * over_width;
                mean_product += weighted[i] * normal[i] * over_width;
            }
            of_x.extend(std::iter::zip(&normal, &weighted).map(|(&normal, &weighted)| {
                (weighted - mean_weighted - normal * mean_product) * scale
            }));
        };
        with(x, |x: &[T]| {
            with(weight, |weight: &[T]| {
                with(gradient, |gradient: &[T]| {
                    let rows = std::iter::zip(x.chunks_exact(width), gradient.chunks_exact(width));
                    rows.for_each(|(x, gradient)| row(x, weight, gradient));
                })
            })
        })???;
        Ok([
            Tensor::from_vec(of_x, x.shape(), x.device())?,
            Tensor::from_vec(of_weight, width, x.device())?,
            Tensor::from_vec(of_bias, width, x.device())?,
        ])
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let result = match x {
            CpuStorage::F32(_) => self.forward::<f32>(
                part(x, x_layout)?,
                part(weight, weight_layout)?,
                part(bias, bias_layout)?,
            ),
            _ => self.forward::<f64>(
                part(x, x_layout)?,
                part(weight, weight_layout)?,
                part(bias, bias_layout)?,
            ),
        };
        Ok((result, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, weight, bias] = match x.dtype() {
            DType::F32 => self.backward::<f32>(x, weight, gradient)?,
            _ => self.backward::<f64>(x, weight, gradient)?,
        };
        Ok((Some(x), Some(weight), Some(bias)))
    }
}

/// The values of a tensor on the CPU.
pub(super) fn with<T: WithDType, R>(
    tensor: &Tensor,
    use_values: impl FnOnce(&[T]) -> R,
) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(use_values(part(storage, layout)?)),
        _ => bail!("a tensor on another device than that of its gradient"),
    }
}

/// What a layout takes of a storage, in one piece.
pub(super) fn part<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice()?[start..end]),
        None => bail!("a tensor that does not lie in one piece"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// Values without a pattern.
    fn values(count: usize, seed: f64) -> Vec<f64> {
        (0..count).map(|i| ((i as f64 + seed) * 12.9898).sin() * 2.).collect()
    }

    pub fn var(shape: impl Into<Shape>, seed: f64) -> Var {
        let shape = shape.into();
        let values = Tensor::from_vec(values(shape.elem_count(), seed), shape, &Device::Cpu);
        values.and_then(|values| Var::from_tensor(&values)).expect("as many values")
    }

    /// Asserts that two results and the gradients of these variables are the same up to rounding.
    pub fn assert_same(one: Tensor, other: Tensor, vars: &[&Var]) {
        // Not all elements count the same, so that no error cancels out.
        let weights = var(one.shape(), 0.5);
        let close = |one: &Tensor, other: &Tensor| {
            let flat = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f64>()).expect("f64");
            assert_eq!(one.dims(), other.dims());
            for (one, other) in std::iter::zip(flat(one), flat(other)) {
                assert!((one - other).abs() < 1e-12, "{one} and {other}");
            }
        };
        close(&one, &other);
        let gradients = |result: &Tensor| {
            let loss = (result * weights.as_tensor()).and_then(|product| product.sum_all());
            loss.and_then(|loss| loss.backward()).expect("a backward pass")
        };
        let (one, other) = (gradients(&one), gradients(&other));
        for var in vars {
            close(one.get(var).expect("a gradient"), other.get(var).expect("a gradient"));
        }
    }

    #[test]
    fn a_norm_is_what_candle_composes() {
        let (x, weight, bias) = (var((2, 3, 5), 0.), var(5, 0.1), var(5, 0.2));
        let ours = layer_norm(&x, &weight, &bias, 1e-5).expect("a norm");
        let candles = composed_layer_norm(&x, &weight, &bias, 1e-5).expect("a norm");
        assert_same(ours, candles, &[&x, &weight, &bias]);
    }
}
