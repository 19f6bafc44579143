//! The same steps by candle's operations, for parameters that are not in the host's memory. Each operation rounds as
//! the host's loops do, so that on the host the bits are the same; a GPU's kernels may contract a product and a sum.

use std::ops::Range;

use candle_core::{Device, Result as CandleResult, Tensor};

use super::update::{AdamW, Sgd};
use super::{Optimiser, StateKind, Step};
use crate::real::Real;

/// As [`OptimiserState`](super::OptimiserState), in flat tensors.
#[derive(Clone, Debug)]
pub(crate) struct TensorState {
    optimiser: Optimiser,
    /// As many as the optimiser has kinds, in their order.
    arrays: Vec<Tensor>,
}

impl TensorState {
    /// The state before the first step, all zeros, of so many elements.
    pub(crate) fn new<T: Real>(
        optimiser: Optimiser,
        elements: usize,
        device: &Device,
    ) -> CandleResult<TensorState> {
        let zeros = |_| Tensor::zeros(elements, T::DTYPE, device);
        let arrays = optimiser.state_kinds().iter().map(zeros).collect::<CandleResult<_>>()?;
        Ok(TensorState { optimiser, arrays })
    }

    /// The memory that it takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.arrays.iter().map(|array| array.elem_count() * array.dtype().size_in_bytes()).sum()
    }

    /// One of its arrays, which may be changed in place; `None` where the optimiser has none of the kind.
    pub(crate) fn array(&self, kind: StateKind) -> Option<&Tensor> {
        self.arrays.get(self.optimiser.state_kinds().iter().position(|has| *has == kind)?)
    }

    /// The parameters of some of its elements after a step by their gradients.
    pub(crate) fn update(
        &mut self,
        at: Step,
        decay: bool,
        elements: Range<usize>,
        parameters: &Tensor,
        gradients: &Tensor,
    ) -> CandleResult<Tensor> {
        let own = |array: &Tensor| array.narrow(0, elements.start, elements.len());
        let mut state = self.arrays.iter().map(own).collect::<CandleResult<Vec<_>>>()?;
        let decayed = |weight_decay| if decay { weight_decay } else { 0.0 };
        let updated = match (self.optimiser, state.as_mut_slice()) {
            (Optimiser::Sgd { momentum, nesterov, weight_decay }, state) => {
                let sgd = Sgd::new(at, decayed(weight_decay), momentum);
                sgd.update_tensors(nesterov, parameters, gradients, state.first_mut())
            }
            (Optimiser::AdamW { beta1, beta2, epsilon, weight_decay }, [first, second]) => {
                let adamw = AdamW::new(at, beta1, beta2, epsilon, decayed(weight_decay));
                adamw.update_tensors(parameters, gradients, first, second)
            }
            (Optimiser::AdamW { .. }, _) => unreachable!("AdamW's state has two arrays"),
        }?;
        for (array, new) in self.arrays.iter().zip(&state) {
            array.slice_set(new, 0, elements.start)?;
        }
        Ok(updated)
    }
}

impl Sgd<f64> {
    fn update_tensors(
        &self,
        nesterov: bool,
        parameters: &Tensor,
        gradients: &Tensor,
        sum: Option<&mut Tensor>,
    ) -> CandleResult<Tensor> {
        let gradient = ((gradients * self.gradient_scale)? + (parameters * self.weight_decay)?)?;
        let direction = match sum {
            None => gradient,
            Some(sum) => {
                *sum = ((&*sum * self.momentum)? + &gradient)?;
                if nesterov { (gradient + (&*sum * self.momentum)?)? } else { sum.clone() }
            }
        };
        parameters - (direction * self.learning_rate)?
    }
}

impl AdamW<f64> {
    fn update_tensors(
        &self,
        parameters: &Tensor,
        gradients: &Tensor,
        first: &mut Tensor,
        second: &mut Tensor,
    ) -> CandleResult<Tensor> {
        let gradient = (gradients * self.gradient_scale)?;
        *first = (&*first + ((&gradient - &*first)? * self.first_weight)?)?;
        *second = ((&*second * self.beta2)? + (gradient.sqr()? * self.second_weight)?)?;
        let root = ((second.sqrt()? * self.root_scale)? + self.epsilon)?;
        (parameters * self.kept)? - ((&*first * self.step_size)? / root)?
    }
}

#[cfg(test)]
mod tests {
    use super::super::OptimiserState;
    use super::*;

    /// Steps by slices and by tensors, of two parts, of which one decays.
    fn check<T: Real>(optimiser: Optimiser) {
        let numbers = |seed: usize, count: usize| -> Vec<T> {
            (0..count).map(|at| T::from_f64(((at * 7 + seed * 13) as f64).sin())).collect()
        };
        let flat = |values: &[T]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
        let mut slices = OptimiserState::<T>::new(optimiser, 57);
        let mut tensors = TensorState::new::<T>(optimiser, 57, &Device::Cpu).unwrap();
        assert_eq!(tensors.bytes(), slices.bytes());
        let mut by_slices = numbers(1, 57);
        for number in 1..5 {
            let at = Step { number, learning_rate: 0.1, gradient_scale: 0.75 };
            let gradients = numbers(number as usize + 5, 57);
            for elements in [0..37, 37..57] {
                let (decay, gradients) = (elements.start == 0, &gradients[elements.clone()]);
                let values = &mut by_slices[elements.clone()];
                let (before, there) = (flat(values), flat(gradients));
                let by_tensors =
                    tensors.update(at, decay, elements.clone(), &before, &there).unwrap();
                slices.update(at, decay, elements, values, gradients);
                assert_eq!(by_tensors.to_vec1::<T>().unwrap(), values, "{optimiser:?}");
            }
            for kind in StateKind::ALL {
                let kept = tensors.array(kind).map(|array| array.to_vec1::<T>().unwrap());
                assert_eq!(kept.as_deref(), slices.array(kind), "{optimiser:?}, {kind}");
            }
        }
    }

    #[test]
    fn tensors_are_stepped_as_slices_are() {
        let sgd = |momentum, nesterov| Optimiser::Sgd { momentum, nesterov, weight_decay: 0.01 };
        let adamw = Optimiser::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.02 };
        for optimiser in [sgd(0.0, false), sgd(0.9, false), sgd(0.9, true), adamw] {
            check::<f32>(optimiser);
            check::<f64>(optimiser);
        }
    }
}
