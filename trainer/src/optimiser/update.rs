//! The loops over elements. They are plain zips without a branch on values, which the compiler turns into vector
//! code; Rust never contracts a product and a sum into one operation, so that the loop's vectors and its remainder
//! round alike.

use super::{Optimiser, Step};
use crate::real::Real;

/// Steps parameters by gradients; `state` has the optimiser's arrays, as many as it has kinds.
pub(super) fn update<T: Real>(
    optimiser: &Optimiser,
    at: Step,
    decay: bool,
    parameters: &mut [T],
    gradients: &[T],
    state: [Option<&mut [T]>; 2],
) {
    match (*optimiser, state) {
        (Optimiser::Sgd { weight_decay, .. }, [None, _]) => {
            let sgd = Sgd::new(at, if decay { weight_decay } else { 0.0 }, 0.0);
            sgd.plain(parameters, gradients);
        }
        (Optimiser::Sgd { momentum, nesterov, weight_decay }, [Some(sums), _]) => {
            let sgd = Sgd::new(at, if decay { weight_decay } else { 0.0 }, momentum);
            if nesterov {
                sgd.nesterov(parameters, gradients, sums);
            } else {
                sgd.momentum(parameters, gradients, sums);
            }
        }
        (Optimiser::AdamW { beta1, beta2, epsilon, weight_decay }, [Some(first), Some(second)]) => {
            let weight_decay = if decay { weight_decay } else { 0.0 };
            let adamw = AdamW::new(at, beta1, beta2, epsilon, weight_decay);
            adamw.update(parameters, gradients, first, second);
        }
        (Optimiser::AdamW { .. }, _) => unreachable!("AdamW's state has two arrays"),
    }
}

/// SGD's figures of one step, in the elements' type.
pub(super) struct Sgd<T> {
    pub(super) gradient_scale: T,
    pub(super) weight_decay: T,
    pub(super) momentum: T,
    pub(super) learning_rate: T,
}

impl<T: Real> Sgd<T> {
    pub(super) fn new(at: Step, weight_decay: f64, momentum: f64) -> Sgd<T> {
        Sgd {
            gradient_scale: T::from_f64(at.gradient_scale),
            weight_decay: T::from_f64(weight_decay),
            momentum: T::from_f64(momentum),
            learning_rate: T::from_f64(at.learning_rate),
        }
    }

    /// The gradient as it is used: clipped, and with the decay added.
    #[inline(always)]
    fn gradient(&self, parameter: T, gradient: T) -> T {
        gradient * self.gradient_scale + self.weight_decay * parameter
    }

    fn plain(&self, parameters: &mut [T], gradients: &[T]) {
        for (parameter, gradient) in parameters.iter_mut().zip(gradients) {
            *parameter -= self.learning_rate * self.gradient(*parameter, *gradient);
        }
    }

    /// PyTorch begins with the first gradient as the sum; a sum that begins at 0 comes to the same.
    fn momentum(&self, parameters: &mut [T], gradients: &[T], sums: &mut [T]) {
        for ((parameter, gradient), sum) in parameters.iter_mut().zip(gradients).zip(sums) {
            *sum = self.momentum * *sum + self.gradient(*parameter, *gradient);
            *parameter -= self.learning_rate * *sum;
        }
    }

    fn nesterov(&self, parameters: &mut [T], gradients: &[T], sums: &mut [T]) {
        for ((parameter, gradient), sum) in parameters.iter_mut().zip(gradients).zip(sums) {
            let gradient = self.gradient(*parameter, *gradient);
            *sum = self.momentum * *sum + gradient;
            *parameter -= self.learning_rate * (gradient + self.momentum * *sum);
        }
    }
}

/// AdamW's figures of one step, in the elements' type.
pub(super) struct AdamW<T> {
    pub(super) gradient_scale: T,
    /// What is left of a parameter after its decay.
    pub(super) kept: T,
    /// One less beta1.
    pub(super) first_weight: T,
    pub(super) beta2: T,
    /// One less beta2.
    pub(super) second_weight: T,
    /// The learning rate over the first moment's bias correction.
    pub(super) step_size: T,
    /// One over the root of the second moment's bias correction.
    pub(super) root_scale: T,
    pub(super) epsilon: T,
}

impl<T: Real> AdamW<T> {
    pub(super) fn new(
        at: Step,
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        weight_decay: f64,
    ) -> AdamW<T> {
        // Not `f64::powi`, whose last bit may differ between machines: ranks must step alike.
        let correction = |beta: f64| 1.0 - libm::pow(beta, at.number as f64);
        AdamW {
            gradient_scale: T::from_f64(at.gradient_scale),
            kept: T::from_f64(1.0 - at.learning_rate * weight_decay),
            first_weight: T::from_f64(1.0 - beta1),
            beta2: T::from_f64(beta2),
            second_weight: T::from_f64(1.0 - beta2),
            step_size: T::from_f64(at.learning_rate / correction(beta1)),
            root_scale: T::from_f64(1.0 / correction(beta2).sqrt()),
            epsilon: T::from_f64(epsilon),
        }
    }

    fn update(&self, parameters: &mut [T], gradients: &[T], first: &mut [T], second: &mut [T]) {
        let elements = parameters.iter_mut().zip(gradients).zip(first).zip(second);
        for (((parameter, gradient), first), second) in elements {
            let gradient = *gradient * self.gradient_scale;
            *first += self.first_weight * (gradient - *first);
            *second = self.beta2 * *second + self.second_weight * (gradient * gradient);
            let root = second.sqrt() * self.root_scale + self.epsilon;
            *parameter = *parameter * self.kept - self.step_size * *first / root;
        }
    }
}
