//! The parameters of a model: handed out to it by a `VarBuilder`, each tensor with a hook by which its gradient comes out
//! while the backward pass runs.
//!
//! candle has no gradient hooks. A parameter here is the result of an operation without meaning ([`Hook`]) on a variable without
//! meaning, so that the backward pass gives the operation the parameter's whole gradient as soon as it is known, after
//! which candle frees it. The operation is part of the graph of every forward pass and runs forward once, when the
//! parameter is made: no parameter is copied in a step. Values are changed in place.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, DType, Device, InplaceOp1, Layout, Result as CandleResult, Shape,
    Tensor, Var, bail,
};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::gradients::Gradients;
use crate::init::initial_values;
use crate::real::Real;
use crate::{Error, Result};

/// The parameters of a model, in the order in which it asked for them.
pub struct Parameters<T: Real> {
    entries: Arc<Mutex<Vec<Parameter>>>,
    gradients: Arc<Gradients<T>>,
    seed: u64,
    device: Device,
}

/// A parameter of a model.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// As the model calls it, with dots.
    pub name: String,
    /// Its values; what the model calculates with.
    pub tensor: Tensor,
}

impl<T: Real> Parameters<T> {
    /// None yet. Initial values come from the seed and each parameter's name, whatever the order in which they are
    /// asked for, and wherever they are.
    pub(crate) fn new(seed: u64, gradients: Arc<Gradients<T>>, device: &Device) -> Parameters<T> {
        Parameters { entries: Arc::default(), gradients, seed, device: device.clone() }
    }

    /// What a model is built with.
    pub(crate) fn builder(&self) -> VarBuilder<'static> {
        let (entries, gradients) = (self.entries.clone(), self.gradients.clone());
        let device = self.device.clone();
        let backend = Maker { entries, gradients, seed: self.seed, device };
        VarBuilder::from_backend(Box::new(backend), T::DTYPE, self.device.clone())
    }

    /// All of them.
    pub fn all(&self) -> Vec<Parameter> {
        lock(&self.entries).clone()
    }
}

impl Parameter {
    /// How many numbers it has.
    pub fn len(&self) -> usize {
        self.tensor.elem_count()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads its values: where they are, or from a GPU a copy.
    pub fn read<T: Real, R>(&self, read: impl FnOnce(&[T]) -> R) -> Result<R> {
        let (storage, layout) = self.tensor.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            drop(storage);
            return Ok(read(&self.tensor.flatten_all()?.to_vec1::<T>()?));
        };
        let range = contiguous(layout)?;
        Ok(read(&T::cpu_storage_as_slice(storage)?[range]))
    }

    /// Changes its values: in place, or on a GPU by a copy.
    pub fn write<T: Real, R>(&self, write: impl FnOnce(&mut [T]) -> R) -> Result<R> {
        let access =
            Access::<T, _, R> { job: Mutex::new(Job::Waiting(write)), of: Default::default() };
        self.tensor.inplace_op1(&access)?;
        match access.job.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Job::Done(result) => Ok(result),
            _ => Err(Error::Argument(format!("{} could not be written", self.name))),
        }
    }
}

/// Makes the parameters that a model asks for.
struct Maker<T: Real> {
    entries: Arc<Mutex<Vec<Parameter>>>,
    gradients: Arc<Gradients<T>>,
    seed: u64,
    device: Device,
}

impl<T: Real> SimpleBackend for Maker<T> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> CandleResult<Tensor> {
        if dtype != T::DTYPE || !device.same_device(&self.device) {
            bail!(
                "{name} is asked for as {dtype:?} on {device:?}, and all are {:?} on {:?}",
                T::DTYPE,
                self.device
            )
        }
        let mut entries = lock(&self.entries);
        // A name that is asked for twice is one parameter, as in tied weights.
        if let Some(known) = entries.iter().find(|known| known.name == name) {
            if *known.tensor.shape() != shape {
                bail!("{name} is asked for as {shape:?} and as {:?}", known.tensor.shape())
            }
            return Ok(known.tensor.clone());
        }
        let hook = Hook {
            values: Mutex::new(Some(initial_values::<T>(self.seed, name, &shape, init))),
            shape,
            number: entries.len(),
            gradients: self.gradients.clone(),
        };
        let root = Var::zeros((), T::DTYPE, &self.device)?;
        let tensor = root.as_tensor().apply_op1(hook)?;
        entries.push(Parameter { name: name.to_owned(), tensor: tensor.clone() });
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> CandleResult<Tensor> {
        let entries = lock(&self.entries);
        let known = entries.iter().find(|known| known.name == name);
        known
            .map(|known| known.tensor.clone())
            .ok_or_else(|| candle_core::Error::CannotFindTensor { path: name.to_owned() }.bt())
    }

    fn contains_tensor(&self, name: &str) -> bool {
        lock(&self.entries).iter().any(|known| known.name == name)
    }
}

/// The operation whose result is a parameter. See the file's description.
struct Hook<T: Real> {
    /// Until the parameter is made.
    values: Mutex<Option<Vec<T>>>,
    shape: Shape,
    number: usize,
    gradients: Arc<Gradients<T>>,
}

impl<T: Real> CustomOp1 for Hook<T> {
    fn name(&self) -> &'static str {
        "parameter"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        Ok((T::to_cpu_storage_owned(self.take_values()?), self.shape.clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, root: &CudaStorage, _: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        let values = root.device.clone_htod(&self.take_values()?)?;
        Ok((CudaStorage::wrap_cuda_slice(values, root.device.clone()), self.shape.clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> CandleResult<Option<Tensor>> {
        self.gradients.take(self.number, gradient).map_err(candle_core::Error::wrap)?;
        Ok(None)
    }
}

impl<T: Real> Hook<T> {
    fn take_values(&self) -> CandleResult<Vec<T>> {
        match lock(&self.values).take() {
            Some(values) => Ok(values),
            None => bail!("a parameter is made once"),
        }
    }
}

/// Lets a function at the values of a tensor.
struct Access<T, F, R> {
    job: Mutex<Job<F, R>>,
    of: std::marker::PhantomData<T>,
}

enum Job<F, R> {
    Waiting(F),
    Running,
    Done(R),
}

impl<T: Real, F: FnOnce(&mut [T]) -> R, R> InplaceOp1 for Access<T, F, R> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> CandleResult<()> {
        let range = contiguous(layout)?;
        let Some(values) = T::elements_mut(storage) else { bail!("it is not of {:?}", T::DTYPE) };
        self.run(&mut values[range]);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> CandleResult<()> {
        let (range, device) = (contiguous(layout)?, storage.device.clone());
        let mut there = storage.as_cuda_slice_mut::<T>()?.slice_mut(range);
        let mut values = device.clone_dtoh(&there)?;
        self.run(&mut values);
        device.memcpy_htod(&values, &mut there)
    }
}

impl<T: Real, F: FnOnce(&mut [T]) -> R, R> Access<T, F, R> {
    fn run(&self, values: &mut [T]) {
        let mut job = lock(&self.job);
        if let Job::Waiting(write) = std::mem::replace(&mut *job, Job::Running) {
            *job = Job::Done(write(values));
        }
    }
}

/// Where a tensor's values are in its storage.
fn contiguous(layout: &Layout) -> CandleResult<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("its values are not in a row"),
    }
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
