//! Optimisers over flat slices: one pass over memory a step, the same bits however the range is cut.
//!
//! What they compute is what PyTorch's `torch.optim.SGD` and `torch.optim.AdamW` compute
//! (docs.pytorch.org/docs/stable/optim.html), with dampening 0.

mod schedule;
#[cfg(any(test, feature = "cuda"))]
mod tensors;
mod update;

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use self::schedule::Schedule;
#[cfg(feature = "cuda")]
pub(crate) use self::tensors::TensorState;
use crate::real::Real;
use crate::{Error, Result};

/// An optimiser and its settings. In a settings file: `kind = "sgd"` or `kind = "adamw"`, and what differs from
/// PyTorch's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Optimiser {
    /// Stochastic gradient descent, with momentum by choice (Sutskever et al., ICML 2013).
    Sgd {
        /// What is kept of the direction of the steps before, from 0 (nothing, and no state).
        #[serde(default)]
        momentum: f64,
        /// Whether the gradient is looked up one step ahead (Nesterov's way). Needs momentum.
        #[serde(default)]
        nesterov: bool,
        /// How much of a parameter is added to its gradient.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).
    AdamW {
        /// What is kept of the gradients' mean.
        #[serde(default = "defaults::beta1")]
        beta1: f64,
        /// What is kept of the mean of the gradients' squares.
        #[serde(default = "defaults::beta2")]
        beta2: f64,
        /// Added to the root of that mean, which is divided by.
        #[serde(default = "defaults::epsilon")]
        epsilon: f64,
        /// By how much a parameter shrinks in a step, as a multiple of the learning rate.
        #[serde(default = "defaults::weight_decay")]
        weight_decay: f64,
    },
}

/// PyTorch's defaults of AdamW.
mod defaults {
    pub(super) fn beta1() -> f64 {
        0.9
    }
    pub(super) fn beta2() -> f64 {
        0.999
    }
    pub(super) fn epsilon() -> f64 {
        1e-8
    }
    pub(super) fn weight_decay() -> f64 {
        0.01
    }
}

impl Optimiser {
    /// The arrays that it keeps from step to step, each with an element for each element of the parameters.
    pub fn state_kinds(&self) -> &'static [StateKind] {
        match self {
            Optimiser::Sgd { momentum: 0.0, .. } => &[],
            Optimiser::Sgd { .. } => &[StateKind::Momentum],
            Optimiser::AdamW { .. } => &[StateKind::FirstMoment, StateKind::SecondMoment],
        }
    }

    /// Refuses settings that PyTorch refuses as well.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] names the setting, its value and what it may be.
    pub fn check(&self) -> Result<()> {
        let within = |name: &str, value: f64, end: f64| {
            // Not `value >= end`, so that NaN is refused too.
            if (0.0..end).contains(&value) {
                return Ok(());
            }
            let limit = if end.is_finite() { format!("less than {end}") } else { "finite".into() };
            Err(Error::Argument(format!("{name} is {value}; it must be at least 0 and {limit}")))
        };
        match *self {
            Optimiser::Sgd { momentum, nesterov, weight_decay } => {
                within("momentum", momentum, f64::INFINITY)?;
                within("weight_decay", weight_decay, f64::INFINITY)?;
                if nesterov && momentum == 0.0 {
                    let what = "nesterov needs momentum; set it (0.9 is usual), or leave nesterov";
                    return Err(Error::Argument(what.into()));
                }
                Ok(())
            }
            Optimiser::AdamW { beta1, beta2, epsilon, weight_decay } => {
                within("beta1", beta1, 1.0)?;
                within("beta2", beta2, 1.0)?;
                within("epsilon", epsilon, f64::INFINITY)?;
                within("weight_decay", weight_decay, f64::INFINITY)
            }
        }
    }
}

/// What an array of an optimiser's state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateKind {
    /// SGD's running sum of gradients.
    Momentum,
    /// AdamW's running mean of gradients.
    FirstMoment,
    /// AdamW's running mean of the gradients' squares.
    SecondMoment,
}

impl StateKind {
    /// All kinds.
    pub const ALL: [StateKind; 3] =
        [StateKind::Momentum, StateKind::FirstMoment, StateKind::SecondMoment];

    /// Its name, as checkpoints have it.
    pub const fn name(self) -> &'static str {
        match self {
            StateKind::Momentum => "momentum",
            StateKind::FirstMoment => "first_moment",
            StateKind::SecondMoment => "second_moment",
        }
    }

    /// The kind with a name.
    pub fn from_name(name: &str) -> Option<StateKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for StateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One step of training, as the optimiser sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Which, from 1: AdamW corrects by it the means that began at 0.
    pub number: u64,
    /// By how much parameters move; mostly from a [`Schedule`].
    pub learning_rate: f64,
    /// What gradients are multiplied by before they are used: below 1 where they are clipped.
    pub gradient_scale: f64,
}

/// An optimiser, and what it remembers about a range of elements: those that this rank steps.
#[derive(Clone, Debug)]
pub struct OptimiserState<T> {
    optimiser: Optimiser,
    elements: usize,
    /// As many as the optimiser has kinds, in their order.
    arrays: Vec<Vec<T>>,
}

impl<T: Real> OptimiserState<T> {
    /// The state before the first step, all zeros, of so many elements.
    pub fn new(optimiser: Optimiser, elements: usize) -> OptimiserState<T> {
        let arrays = optimiser.state_kinds().iter().map(|_| vec![T::zero(); elements]).collect();
        OptimiserState { optimiser, elements, arrays }
    }

    /// Whose state it is.
    pub fn optimiser(&self) -> &Optimiser {
        &self.optimiser
    }

    /// How many elements it is about.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.arrays.iter().map(|array| size_of_val(array.as_slice())).sum()
    }

    /// One of its arrays; `None` where the optimiser has none of the kind.
    pub fn array(&self, kind: StateKind) -> Option<&[T]> {
        self.arrays.get(self.place(kind)?).map(Vec::as_slice)
    }

    /// As [`OptimiserState::array`], to be filled from a checkpoint.
    pub fn array_mut(&mut self, kind: StateKind) -> Option<&mut [T]> {
        let place = self.place(kind)?;
        self.arrays.get_mut(place).map(Vec::as_mut_slice)
    }

    /// Steps the parameters of some of its elements by their gradients. Each element is computed by itself, so that
    /// the bits are the same in whatever pieces and order the elements are stepped. Parameters without `decay`
    /// (biases and norms, mostly) keep their size.
    ///
    /// # Panics
    ///
    /// Where there are not as many parameters and gradients as elements, or fewer elements in the state.
    pub fn update(
        &mut self,
        at: Step,
        decay: bool,
        elements: Range<usize>,
        parameters: &mut [T],
        gradients: &[T],
    ) {
        assert_eq!(parameters.len(), elements.len(), "a parameter for each element");
        assert_eq!(gradients.len(), elements.len(), "a gradient for each element");
        assert!(elements.end <= self.elements, "{elements:?} of {} elements", self.elements);
        let mut state = self.arrays.iter_mut().map(|array| &mut array[elements.clone()]);
        let state = [state.next(), state.next()];
        update::update(&self.optimiser, at, decay, parameters, gradients, state);
    }

    fn place(&self, kind: StateKind) -> Option<usize> {
        self.optimiser.state_kinds().iter().position(|has| *has == kind)
    }
}

#[cfg(test)]
mod tests;
