//! Where the hooks of parameters bring their gradients: into the exchange, scaled, and from there on their way.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Layout, Storage, Tensor};
use ringtree::Communicator;

#[cfg(feature = "cuda")]
use crate::cuda::CudaGradients;
use crate::exchange::{ExchangeSettings, Exchanged, GradientExchange, Part};
use crate::real::Real;
use crate::{Error, Result};

/// What the hooks and [`DataParallel`](crate::DataParallel) share. A backward pass runs in one thread, so that
/// nobody waits for the lock.
pub struct Gradients<T: Real>(Mutex<State<T>>);

struct State<T: Real> {
    /// None while the model is built.
    exchange: Option<Exchange<T>>,
    /// Where each parameter's gradients begin in the exchange's row, and where the last ones end.
    starts: Vec<usize>,
    pass: Option<Pass>,
    /// Whose gradients have come in this step.
    written: Vec<bool>,
}

/// Gradients, where the parameters are.
pub enum Exchange<T: Real> {
    /// In the host's memory.
    Host(GradientExchange<T>),
    /// In that of a GPU.
    #[cfg(feature = "cuda")]
    Cuda(CudaGradients<T>),
}

/// Calls a method of an exchange, wherever that is.
macro_rules! each {
    ($self:expr, $exchange:ident => $call:expr) => {
        match $self {
            Exchange::Host($exchange) => $call,
            #[cfg(feature = "cuda")]
            Exchange::Cuda(CudaGradients { exchange: $exchange, .. }) => $call,
        }
    };
}

impl<T: Real> Exchange<T> {
    /// Makes room for gradients of the given lengths on a device of candle's.
    ///
    /// # Errors
    /// [`Error::Argument`]: no model trains there; else as [`GradientExchange::new`].
    pub fn new(
        communicator: &Communicator,
        device: &Device,
        lengths: &[usize],
        settings: ExchangeSettings,
    ) -> Result<Exchange<T>> {
        let communicator = communicator.clone();
        match device {
            Device::Cpu => {
                Ok(Exchange::Host(GradientExchange::new(communicator, lengths, settings)?))
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                Ok(Exchange::Cuda(CudaGradients::new(communicator, device, lengths, settings)?))
            }
            other => Err(Error::Argument(format!(
                "no model trains on {other:?}: take the host, or build with the feature cuda for GPUs of NVIDIA"
            ))),
        }
    }

    /// The exchange in the host's memory.
    ///
    /// # Errors
    /// [`Error::Argument`]: it is on a GPU.
    pub fn on_host(&mut self) -> Result<&mut GradientExchange<T>> {
        match self {
            Exchange::Host(exchange) => Ok(exchange),
            #[cfg(feature = "cuda")]
            Exchange::Cuda(_) => Err(Error::Argument(
                "the parameters are on a GPU, where an Optimizing steps them".into(),
            )),
        }
    }

    /// The exchange on a GPU.
    ///
    /// # Errors
    /// [`Error::Argument`]: it is in the host's memory.
    #[cfg(feature = "cuda")]
    pub fn on_gpu(&mut self) -> Result<&mut CudaGradients<T>> {
        match self {
            Exchange::Cuda(gradients) => Ok(gradients),
            Exchange::Host(_) => {
                Err(Error::Argument("the parameters are in the host's memory".into()))
            }
        }
    }

    /// As [`GradientExchange::parts`].
    pub fn parts(&self) -> &[Part] {
        each!(self, exchange => exchange.parts())
    }

    /// As [`GradientExchange::order`].
    pub fn order(&self) -> Vec<usize> {
        each!(self, exchange => exchange.order())
    }

    /// As [`GradientExchange::bucket_bytes`].
    pub fn bucket_bytes(&self) -> Vec<usize> {
        each!(self, exchange => exchange.bucket_bytes())
    }

    fn ready(&mut self, range: Range<usize>) -> Result<()> {
        each!(self, exchange => exchange.ready(range))
    }

    fn is_ready(&self, range: Range<usize>) -> bool {
        each!(self, exchange => exchange.is_ready(range))
    }

    fn finish(&mut self) -> Result<Exchanged> {
        each!(self, exchange => exchange.finish())
    }

    /// Writes a gradient, times a factor, or adds it to what is there.
    fn write(
        &mut self,
        range: Range<usize>,
        gradient: &Tensor,
        factor: f64,
        adds: bool,
    ) -> Result<()> {
        match self {
            Exchange::Host(exchange) => {
                copy(gradient, T::from_f64(factor), adds, exchange.gradients(range)?)
            }
            #[cfg(feature = "cuda")]
            Exchange::Cuda(gradients) => gradients.write(range, gradient, factor, adds),
        }
    }
}

/// A backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// What gradients are multiplied by: the share that its samples have of the step's, of all ranks.
    pub share: f64,
    /// Whether it is the step's last, by which gradients are complete.
    pub is_last: bool,
}

impl<T: Real> Gradients<T> {
    /// Takes none yet.
    pub fn new() -> Gradients<T> {
        let state = State { exchange: None, starts: vec![0], pass: None, written: Vec::new() };
        Gradients(Mutex::new(state))
    }

    /// From here on gradients go to this exchange, which has a piece for each parameter.
    pub fn begin(&self, exchange: Exchange<T>, lengths: &[usize]) {
        let mut state = self.lock();
        state.starts = std::iter::once(0)
            .chain(lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
            .collect();
        state.written = vec![false; lengths.len()];
        state.exchange = Some(exchange);
    }

    /// Runs a backward pass, whose gradients are added to those that came before in this step.
    pub fn backward(&self, loss: &Tensor, pass: Pass) -> Result<()> {
        self.lock().pass = Some(pass);
        let ended = loss.backward();
        self.lock().pass = None;
        ended?;
        Ok(())
    }

    /// Takes a parameter's gradient out of a backward pass.
    pub fn take(&self, number: usize, gradient: &Tensor) -> Result<()> {
        let mut state = self.lock();
        let Some(pass) = state.pass else {
            return Err(Error::Argument("a backward pass is run by DataParallel::backward".into()));
        };
        let range = state.range(number);
        let adds = std::mem::replace(&mut state.written[number], true);
        let exchange = state.exchange()?;
        exchange.write(range.clone(), gradient, pass.share, adds)?;
        if pass.is_last {
            exchange.ready(range)?;
        }
        Ok(())
    }

    /// Ends a step: what has come in an earlier pass only is complete, too, and what has not come counts as zero.
    pub fn finish(&self) -> Result<Exchanged> {
        let mut state = self.lock();
        let written = std::mem::take(&mut state.written);
        state.written = vec![false; written.len()];
        for number in (0..written.len()).rev().filter(|number| written[*number]) {
            let range = state.range(number);
            let exchange = state.exchange()?;
            if !exchange.is_ready(range.clone()) {
                exchange.ready(range)?;
            }
        }
        state.exchange()?.finish()
    }

    /// Lets a function at the exchange.
    pub fn with_exchange<R>(&self, job: impl FnOnce(&mut Exchange<T>) -> Result<R>) -> Result<R> {
        job(self.lock().exchange()?)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Real> State<T> {
    fn range(&self, number: usize) -> Range<usize> {
        self.starts[number]..self.starts[number + 1]
    }

    fn exchange(&mut self) -> Result<&mut Exchange<T>> {
        let missing = || Error::Argument("the model is not complete".into());
        self.exchange.as_mut().ok_or_else(missing)
    }
}

/// Writes a tensor's elements, times a factor, row by row to a slice, or adds them to what is there: one pass over memory,
/// however they lie.
fn copy<T: Real>(tensor: &Tensor, factor: T, adds: bool, to: &mut [T]) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(Error::Argument("a gradient is not in the host's memory".into()));
    };
    let from = T::cpu_storage_as_slice(storage)?;
    if adds {
        walk(from, layout, to, |sum, element| *sum += element * factor);
    } else {
        walk(from, layout, to, |to, element| *to = element * factor);
    }
    Ok(())
}

/// Rows and columns that are visited together, so that those of a transposed matrix are in the cache.
const TILE: usize = 16;

/// Visits all elements of a tensor along with those of a slice.
#[inline(always)]
fn walk<T: Copy>(from: &[T], layout: &Layout, to: &mut [T], put: impl Fn(&mut T, T)) {
    if let Some((start, end)) = layout.contiguous_offsets() {
        to.iter_mut().zip(&from[start..end]).for_each(|(to, from)| put(to, *from));
        return;
    }
    let (dims, strides) = (layout.dims(), layout.stride());
    let split = dims.len().saturating_sub(2);
    let [rows, columns] = dims[split..] else {
        // One dimension with gaps.
        let places = (0..dims[0]).map(|at| layout.start_offset() + at * strides[0]);
        return to.iter_mut().zip(places).for_each(|(to, at)| put(to, from[at]));
    };
    let (down, right) = (strides[split], strides[split + 1]);
    for (number, matrix) in to.chunks_exact_mut((rows * columns).max(1)).enumerate() {
        let origin = layout.start_offset() + offset(number, &dims[..split], &strides[..split]);
        for (top, left) in tiles(rows, columns) {
            for row in top..rows.min(top + TILE) {
                for column in left..columns.min(left + TILE) {
                    put(
                        &mut matrix[row * columns + column],
                        from[origin + row * down + column * right],
                    );
                }
            }
        }
    }
}

fn tiles(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    let tops = (0..rows).step_by(TILE);
    tops.flat_map(move |top| (0..columns).step_by(TILE).map(move |left| (top, left)))
}

/// Where the number-th entry of the given dimensions is.
fn offset(mut number: usize, dims: &[usize], strides: &[usize]) -> usize {
    let mut offset = 0;
    for (dim, stride) in dims.iter().zip(strides).rev() {
        offset += number % dim * stride;
        number /= dim;
    }
    offset
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    /// A tensor's elements as candle itself puts them in a row.
    fn row(tensor: &Tensor) -> Vec<f64> {
        tensor.flatten_all().and_then(|flat| flat.to_vec1()).unwrap()
    }

    #[test]
    fn elements_come_in_the_order_of_rows_however_they_lie() {
        let whole = Tensor::arange(0.0_f64, 3.0 * 37.0 * 21.0, &Device::Cpu).unwrap();
        let whole = whole.reshape((3, 37, 21)).unwrap();
        let tensors = [
            whole.clone(),
            whole.t().unwrap(),
            whole.transpose(0, 1).unwrap(),
            whole.permute((2, 0, 1)).unwrap(),
            whole.narrow(1, 5, 20).unwrap(),
            whole.narrow(2, 3, 1).unwrap().t().unwrap(),
            whole.get(1).unwrap().t().unwrap().get(4).unwrap(),
            Tensor::ones((1,), candle_core::DType::F64, &Device::Cpu)
                .unwrap()
                .broadcast_as(6)
                .unwrap(),
        ];
        for tensor in tensors {
            let mut to = vec![f64::NAN; tensor.elem_count()];
            copy(&tensor, 0.5, false, &mut to).unwrap();
            let half: Vec<f64> = row(&tensor).iter().map(|element| element * 0.5).collect();
            assert_eq!(to, half, "{:?}", tensor.layout());
            copy(&tensor, 0.5, true, &mut to).unwrap();
            assert_eq!(to, row(&tensor), "{:?}", tensor.layout());
        }
    }
}
