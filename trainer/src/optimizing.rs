//! An optimiser at work on a model: the state of the parts that this rank answers for, and clipping.

#[cfg(feature = "cuda")]
use candle_core::Tensor;

use crate::data_parallel::DataParallel;
use crate::exchange::Part;
#[cfg(feature = "cuda")]
use crate::optimiser::TensorState;
use crate::optimiser::{Optimiser, OptimiserState, StateKind, Step};
use crate::real::Real;
use crate::{Parameter, Result};

/// Steps a [`DataParallel`]'s parameters. Where its exchange is sharded, each rank keeps the state of its own share only.
#[derive(Debug)]
pub struct Optimizing<T: Real> {
    optimiser: Optimiser,
    /// Whether weight decay is only for parameters of at least two dimensions.
    decays_matrices_only: bool,
    steps: u64,
    /// From the first step on, since the parts are not known before.
    state: Option<State<T>>,
}

/// What the optimiser keeps, where the parameters are.
#[derive(Debug)]
enum State<T> {
    /// In the host's memory.
    Host(OptimiserState<T>),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Cuda(TensorState),
}

/// What clipping adds to the norm that it divides by, as PyTorch does.
const CLIP_EPSILON: f64 = 1e-6;

impl<T: Real> Optimizing<T> {
    /// An optimiser that has made no step yet.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) names a setting that cannot be.
    pub fn new(optimiser: Optimiser, decays_matrices_only: bool) -> Result<Optimizing<T>> {
        optimiser.check()?;
        Ok(Optimizing { optimiser, decays_matrices_only, steps: 0, state: None })
    }

    /// Makes a step by the gradients that [`DataParallel::finish`] has left, scaled down to `max_norm` if theirs is
    /// larger. Returns their norm as it was.
    ///
    /// # Errors
    /// [`Error::Ringtree`](crate::Error::Ringtree): what has ended the communicator.
    pub fn step<M>(
        &mut self,
        model: &mut DataParallel<M, T>,
        learning_rate: f64,
        max_norm: Option<f64>,
    ) -> Result<f64> {
        let norm = model.gradient_norm()?;
        let excess = max_norm.map_or(0.0, |most| (norm + CLIP_EPSILON) / most);
        let gradient_scale = if excess > 1.0 { 1.0 / excess } else { 1.0 };
        let at = Step { number: self.steps + 1, learning_rate, gradient_scale };
        let decays: Vec<bool> = model.parameters().iter().map(|one| self.decays(one)).collect();
        self.begin(model)?;
        match &mut self.state {
            Some(State::Host(state)) => {
                let mut first = 0;
                model.update(|part, parameters, gradients| {
                    let elements = first..first + parameters.len();
                    first = elements.end;
                    state.update(at, decays[part.piece], elements, parameters, gradients);
                })?;
            }
            #[cfg(feature = "cuda")]
            Some(State::Cuda(state)) => {
                let mut first = 0;
                model.update_tensors(|part, parameters, gradients| {
                    let elements = first..first + part.elements.len();
                    first = elements.end;
                    Ok(state.update(at, decays[part.piece], elements, parameters, gradients)?)
                })?;
            }
            None => {}
        }
        self.steps += 1;
        Ok(norm)
    }

    /// Steps made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// What this rank keeps, in bytes; nothing before the first step.
    pub fn state_bytes(&self) -> usize {
        match &self.state {
            Some(State::Host(state)) => state.bytes(),
            #[cfg(feature = "cuda")]
            Some(State::Cuda(state)) => state.bytes(),
            None => 0,
        }
    }

    /// What it keeps for each part of the model: calls `visit` with the part, the kind and the values.
    pub fn visit<M>(
        &self,
        model: &DataParallel<M, T>,
        mut visit: impl FnMut(&Part, StateKind, &[T]),
    ) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        for kind in self.optimiser.state_kinds() {
            let mut first = 0;
            for part in &model.parts()? {
                let end = first + part.elements.len();
                match state {
                    State::Host(state) => {
                        visit(part, *kind, &state.array(*kind).unwrap_or_default()[first..end]);
                    }
                    #[cfg(feature = "cuda")]
                    State::Cuda(state) => {
                        if let Some(array) = state.array(*kind) {
                            let values = array.narrow(0, first, end - first)?;
                            visit(part, *kind, &values.to_vec1::<T>()?);
                        }
                    }
                }
                first = end;
            }
        }
        Ok(())
    }

    /// Goes on after so many steps of an earlier run: `fill` writes what was kept for a part then. The model's bucket order must be
    /// that run's ([`ExchangeSettings::order`](crate::ExchangeSettings::order)).
    ///
    /// # Errors
    /// What `fill` returns.
    pub fn restore<M>(
        &mut self,
        model: &DataParallel<M, T>,
        steps: u64,
        mut fill: impl FnMut(&Part, StateKind, &mut [T]) -> Result<()>,
    ) -> Result<()> {
        self.begin(model)?;
        self.steps = steps;
        let parts = model.parts()?;
        let Some(state) = &mut self.state else { return Ok(()) };
        for kind in self.optimiser.state_kinds() {
            let mut first = 0;
            for part in &parts {
                let end = first + part.elements.len();
                match state {
                    State::Host(state) => {
                        let values = state.array_mut(*kind).unwrap_or_default();
                        fill(part, *kind, &mut values[first..end])?;
                    }
                    #[cfg(feature = "cuda")]
                    State::Cuda(state) => {
                        if let Some(array) = state.array(*kind) {
                            let mut values = vec![T::zero(); end - first];
                            fill(part, *kind, &mut values)?;
                            let values = Tensor::from_vec(values, end - first, array.device())?;
                            array.slice_set(&values, 0, first)?;
                        }
                    }
                }
                first = end;
            }
        }
        Ok(())
    }

    fn begin<M>(&mut self, model: &DataParallel<M, T>) -> Result<()> {
        if self.state.is_some() {
            return Ok(());
        }
        let elements = model.parts()?.iter().map(|part| part.elements.len()).sum();
        #[cfg(feature = "cuda")]
        if model.device().is_cuda() {
            let state = TensorState::new::<T>(self.optimiser, elements, model.device())?;
            self.state = Some(State::Cuda(state));
            return Ok(());
        }
        self.state = Some(State::Host(OptimiserState::new(self.optimiser, elements)));
        Ok(())
    }

    fn decays(&self, parameter: &Parameter) -> bool {
        !self.decays_matrices_only || parameter.tensor.dims().len() > 1
    }
}
