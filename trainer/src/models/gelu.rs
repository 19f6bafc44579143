//! GELU in one pass each way (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016): exactly, not by the tanh
//! approximation.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use pulp::Arch;

use super::functions::Functions;
use super::rows::{is_for_us, part, with};

/// `x` times the share of the normal distribution that lies below x.
///
/// Candle's own `gelu_erf` has a gradient with rounded constants, wrong by 1e-6.
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    if is_for_us(x) {
        return x.contiguous()?.apply_op1(Gelu);
    }
    let erf = (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?;
    x * erf.affine(0.5, 0.5)?
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let result = match x {
            CpuStorage::F32(_) => forward::<f32>(part(x, layout)?),
            _ => forward::<f64>(part(x, layout)?),
        };
        Ok((result, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        match x.dtype() {
            DType::F32 => backward::<f32>(x, gradient).map(Some),
            _ => backward::<f64>(x, gradient).map(Some),
        }
    }
}

fn forward<T: Functions>(x: &[T]) -> CpuStorage {
    let mut result = vec![T::zero(); x.len()];
    Arch::new().dispatch(|| {
        for (result, &x) in std::iter::zip(&mut result, x) {
            *result = x * x.below_and_density().0;
        }
    });
    T::to_cpu_storage_owned(result)
}

fn backward<T: Functions>(x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let mut result = vec![T::zero(); x.elem_count()];
    with(x, |values: &[T]| {
        with(gradient, |gradient: &[T]| {
            Arch::new().dispatch(|| {
                let all = std::iter::zip(&mut result, std::iter::zip(values, gradient));
                for (result, (&x, &gradient)) in all {
                    let (below, density) = x.below_and_density();
                    *result = gradient * (below + x * density);
                }
            });
        })
    })??;
    Tensor::from_vec(result, x.shape(), x.device())
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::{assert_same, var};
    use super::*;

    #[test]
    fn it_is_what_candle_composes() {
        let x = var((7, 5), 0.);
        let erf = (x.as_tensor() * std::f64::consts::FRAC_1_SQRT_2).and_then(|x| x.erf());
        let below = erf.and_then(|erf| erf.affine(0.5, 0.5)).expect("a share");
        let candles = (x.as_tensor() * below).expect("a product");
        assert_same(gelu(&x).expect("a result"), candles, &[&x]);
    }
}
