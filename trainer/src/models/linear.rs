//! A linear layer as one operation. Composed of candle's, its backward pass would write the weight's gradient four times:
//! as that of the transposed weight and as its own, each time into zeros and then as a sum.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, WithDType, bail};

use super::rows::{is_for_us, part, with};

/// `x * weight^T + bias`: x (rows, inputs), weight (outputs, inputs), bias (outputs). The gradients of weight and bias are
/// there as soon as that of the result is.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if !is_for_us(x) {
        return matmul_transposed(x, weight)?.broadcast_add(bias);
    }
    let product = matmul_transposed(&x.detach(), &weight.detach())?;
    x.apply_op3(weight, bias, Linear { product: Mutex::new(Some(product)) })
}

/// `rows * weight^T`. In this order, the gradient of the weight is ready as soon as that of the product is.
pub(super) fn matmul_transposed(rows: &Tensor, weight: &Tensor) -> Result<Tensor> {
    rows.matmul(&weight.t()?)
}

/// Gets the product, which candle knows how to multiply, and adds the bias.
struct Linear {
    product: Mutex<Option<Tensor>>,
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        fn sum<T: WithDType>(product: &Tensor, bias: &[T]) -> Result<CpuStorage> {
            with(product, |product: &[T]| {
                let row = |row| std::iter::zip(row, bias).map(|(&x, &bias): (&T, _)| x + bias);
                let rows = product.chunks_exact(bias.len());
                T::to_cpu_storage_owned(rows.flat_map(row).collect())
            })
        }
        let product = self.product.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(product) = product else { bail!("a linear layer's product is used once") };
        let sum = match product.dtype() {
            DType::F32 => sum::<f32>(&product, part(bias, bias_layout)?)?,
            _ => sum::<f64>(&product, part(bias, bias_layout)?)?,
        };
        Ok((sum, product.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // Nobody asks for the gradient of a model's input.
        let of_x = x.track_op().then(|| gradient.matmul(&weight.detach())).transpose()?;
        let of_weight = gradient.t()?.matmul(&x.detach())?;
        let of_bias = match gradient.dtype() {
            DType::F32 => column_sums::<f32>(gradient)?,
            _ => column_sums::<f64>(gradient)?,
        };
        Ok((of_x, Some(of_weight), Some(of_bias)))
    }
}

fn column_sums<T: WithDType>(matrix: &Tensor) -> Result<Tensor> {
    let width = matrix.dim(1)?;
    let mut sums = vec![T::zero(); width];
    with(matrix, |values: &[T]| {
        for row in values.chunks_exact(width) {
            std::iter::zip(&mut sums, row).for_each(|(sum, &value)| *sum += value);
        }
    })?;
    Tensor::from_vec(sums, width, matrix.device())
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::{assert_same, var};
    use super::*;

    #[test]
    fn it_is_what_candle_composes() {
        let (x, weight, bias) = (var((6, 5), 0.), var((3, 5), 0.1), var(3, 0.2));
        let ours = linear(&x, &weight, &bias).expect("a sum");
        let product = matmul_transposed(&x, &weight).expect("a product");
        let candles = product.broadcast_add(&bias).expect("a sum");
        assert_same(ours, candles, &[&x, &weight, &bias]);
    }
}
