//! A model of which every rank has a copy: the same parameters everywhere, gradients averaged over all.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use candle_nn::VarBuilder;
use ringtree::{Communicator, Op};

use crate::exchange::{ExchangeSettings, Exchanged, Part};
use crate::gradients::{Exchange, Gradients, Pass};
use crate::parameters::{Parameter, Parameters};
use crate::real::Real;
use crate::{Error, Result};

/// A model of which every rank has a copy.
///
/// A step is [`accumulate`](DataParallel::accumulate) for all micro-batches but the last, [`backward`](DataParallel::backward)
/// for the last one, during which gradients leave as they become ready, [`finish`](DataParallel::finish), and
/// [`update`](DataParallel::update), which an [`Optimizing`](crate::Optimizing) calls.
///
/// All ranks must make the same steps. A rank that has no samples for one calls [`finish`](DataParallel::finish)
/// alone: its gradients count as zero.
pub struct DataParallel<M, T: Real = f32> {
    model: M,
    parameters: Vec<Parameter>,
    gradients: Arc<Gradients<T>>,
    communicator: Communicator,
    device: Device,
    sharded: bool,
}

impl<M, T: Real> DataParallel<M, T> {
    /// Builds a model, whose parameters are what it asks the `VarBuilder` for, in the order in which it does. They begin as
    /// rank 0 has them: made from the seed, unless the program changes them.
    ///
    /// # Errors
    /// What `build` returns; [`Error::Argument`]: ranks have built different models;
    /// [`Error::Ringtree`]: what has ended the communicator.
    pub fn new<E>(
        communicator: &Communicator,
        seed: u64,
        settings: ExchangeSettings,
        build: impl FnOnce(VarBuilder<'static>) -> std::result::Result<M, E>,
    ) -> Result<DataParallel<M, T>>
    where
        Error: From<E>,
    {
        DataParallel::on_device(communicator, &Device::Cpu, seed, settings, build)
    }

    /// As [`DataParallel::new`], with parameters on a device of candle's: the host, or with the feature `cuda` a GPU.
    /// Gradients stay there.
    ///
    /// For GPU 0, call [`Communicator::device`] with 0 first, and make candle's device by
    /// `Device::new_cuda_with_stream(0)`: the stream that `Device::new_cuda` takes is another one on each thread, and
    /// takes no collectives. While an exchange is under way, the driver must neither load kernels nor wait for the
    /// whole device. In the first step nothing is under way before its end; what is first used later must be loaded by
    /// then (`CUDA_MODULE_LOADING=EAGER` for CUDA's libraries, a first use for candle's kernels), and the GPU must
    /// have memory pools, by which candle allocates.
    ///
    /// # Errors
    /// As [`DataParallel::new`]; [`Error::Argument`] also for a device that no model trains on.
    pub fn on_device<E>(
        communicator: &Communicator,
        device: &Device,
        seed: u64,
        settings: ExchangeSettings,
        build: impl FnOnce(VarBuilder<'static>) -> std::result::Result<M, E>,
    ) -> Result<DataParallel<M, T>>
    where
        Error: From<E>,
    {
        let gradients = Arc::new(Gradients::new());
        let parameters = Parameters::new(seed, gradients.clone(), device);
        let model = build(parameters.builder())?;
        let parameters = parameters.all();
        let lengths: Vec<usize> = parameters.iter().map(Parameter::len).collect();
        let sharded = settings.sharded;
        let names = parameters.iter().flat_map(|one| {
            let shape = one.tensor.dims().iter().flat_map(|dim| dim.to_le_bytes());
            one.name.bytes().chain(shape).map(u64::from).collect::<Vec<_>>()
        });
        same_everywhere(communicator, digest(names), "has built another model than")?;
        gradients.begin(Exchange::new(communicator, device, &lengths, settings)?, &lengths);
        let (communicator, device) = (communicator.clone(), device.clone());
        let this = DataParallel { model, parameters, gradients, communicator, device, sharded };
        this.share_parameters()?;
        Ok(this)
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Where its parameters are, and where batches must be.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The ranks that train it.
    pub fn communicator(&self) -> &Communicator {
        &self.communicator
    }

    /// Its parameters, in the order in which it asked for them. Whoever changes one calls
    /// [`share_parameters`](DataParallel::share_parameters) then.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Gives all ranks the parameters of rank 0, and makes sure that they have them.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: what has ended the communicator; [`Error::Argument`]: they differ nevertheless.
    pub fn share_parameters(&self) -> Result<()> {
        for parameter in &self.parameters {
            parameter.write(|values: &mut [T]| self.communicator.broadcast(values, 0))??;
        }
        self.check_equal()
    }

    /// Gives all ranks the mean of what each has in buffers that change without gradients, such as running means of
    /// activations: each rank has seen other samples. Before they are used for more than the next step.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: what has ended the communicator; [`Error::Candle`]: a buffer cannot be read or set.
    pub fn average_buffers(&self, buffers: &[(String, Var)]) -> Result<()> {
        for (_, buffer) in buffers {
            let mut values: Vec<T> = buffer.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1()?;
            self.communicator.all_reduce(&mut values, Op::Average)?;
            let mean = Tensor::from_vec(values, buffer.dims(), buffer.device())?;
            buffer.set(&mean.to_dtype(buffer.dtype())?)?;
        }
        Ok(())
    }

    /// Makes sure that all ranks' parameters are the same to the bit.
    ///
    /// # Errors
    /// [`Error::Argument`] names a rank whose parameters differ; [`Error::Ringtree`]: what has ended the communicator.
    pub fn check_equal(&self) -> Result<()> {
        same_everywhere(&self.communicator, self.digest()?, "has other parameters than")
    }

    /// A number that stands for all parameters, to the bit.
    ///
    /// # Errors
    /// [`Error::Candle`]: a parameter cannot be read.
    pub fn digest(&self) -> Result<u64> {
        let each: Result<Vec<u64>> = self.parameters.iter().map(digest_of::<T>).collect();
        Ok(digest(each?.into_iter()))
    }

    /// Runs the backward pass of a micro-batch that is not the step's last: nothing is exchanged. `share` as in
    /// [`DataParallel::backward`].
    ///
    /// # Errors
    /// [`Error::Candle`]: what the pass returns.
    pub fn accumulate(&mut self, loss: &Tensor, share: f64) -> Result<()> {
        self.gradients.backward(loss, Pass { share, is_last: false })
    }

    /// Runs the backward pass of a step's last micro-batch; gradients leave for the other ranks while it runs. The
    /// loss is the mean over the micro-batch; `share` is the part that this one has of all the step's predictions, on all
    /// ranks, so that the shares of a step add up to 1: then the gradients are those of the mean over all.
    ///
    /// # Errors
    /// [`Error::Candle`]: what the pass returns; [`Error::Ringtree`]: what has ended the communicator.
    pub fn backward(&mut self, loss: &Tensor, share: f64) -> Result<()> {
        self.gradients.backward(loss, Pass { share, is_last: true })
    }

    /// Waits for the exchange. A parameter that got no gradient on this rank counts as zero here.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: what has ended the communicator.
    pub fn finish(&mut self) -> Result<Exchanged> {
        self.gradients.finish()
    }

    /// The length of the vector of all gradients, after [`DataParallel::finish`]: the same on all ranks.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: what has ended the communicator.
    pub fn gradient_norm(&mut self) -> Result<f64> {
        let mut squares = self.gradients.with_exchange(|exchange| {
            let mut parts = exchange.parts().to_vec();
            // So that the sum does not depend on how buckets are cut.
            parts.sort_by_key(|part| (part.piece, part.elements.start));
            match exchange {
                Exchange::Host(exchange) => {
                    let squares = |part| Ok(sum_of_squares(exchange.part(part)?));
                    parts.iter().map(squares).sum::<Result<f64>>()
                }
                #[cfg(feature = "cuda")]
                Exchange::Cuda(gradients) => {
                    crate::cuda::sum_of_squares(parts.iter().map(|part| gradients.part(part)))
                }
            }
        })?;
        if self.sharded {
            let mut sum = [squares];
            self.communicator.all_reduce(&mut sum, Op::Sum)?;
            squares = sum[0];
        }
        Ok(squares.sqrt())
    }

    /// The parts of parameters that this rank updates, and keeps an optimiser's state for: all, unless the exchange is sharded.
    /// They are in the order of [`DataParallel::update`], and final after the first [`DataParallel::finish`].
    ///
    /// # Errors
    /// None, once the model is complete.
    pub fn parts(&self) -> Result<Vec<Part>> {
        self.gradients.with_exchange(|exchange| Ok(exchange.parts().to_vec()))
    }

    /// Lets a function change parameters by gradients, part by part: it gets the part, its parameters and its gradients.
    /// Where the exchange is sharded, all ranks get the parameters of all parts then. Only in the host's memory.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: what has ended the communicator; [`Error::Argument`]: the parameters are on a GPU.
    pub fn update(&mut self, mut change: impl FnMut(&Part, &mut [T], &[T])) -> Result<()> {
        let parts = self.parts()?;
        self.gradients.with_exchange(|exchange| {
            let exchange = exchange.on_host()?;
            for part in &parts {
                let gradients = exchange.part(part)?;
                self.parameters[part.piece].write(|values: &mut [T]| {
                    let values = &mut values[part.elements.clone()];
                    change(part, values, gradients);
                    if self.sharded {
                        gradients.copy_from_slice(values);
                    }
                })?;
            }
            if !self.sharded {
                return Ok(());
            }
            exchange.gather()?;
            let mut start = 0;
            for parameter in &self.parameters {
                let end = start + parameter.len();
                let new = exchange.gradients(start..end)?;
                parameter.write(|values: &mut [T]| values.copy_from_slice(new))?;
                start = end;
            }
            Ok(())
        })
    }

    /// As [`DataParallel::update`], on a GPU: the function gets flat tensors, and returns the new
    /// parameters.
    #[cfg(feature = "cuda")]
    pub(crate) fn update_tensors(
        &mut self,
        mut change: impl FnMut(&Part, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let parts = self.parts()?;
        self.gradients.with_exchange(|exchange| {
            let gradients = exchange.on_gpu()?;
            for part in &parts {
                let values = self.parameters[part.piece].tensor.detach().flatten_all()?;
                let own = values.narrow(0, part.elements.start, part.elements.len())?;
                let new = change(part, &own, &gradients.part(part)?)?;
                values.slice_set(&new, 0, part.elements.start)?;
                if self.sharded {
                    gradients.set_part(part, &new)?;
                }
            }
            if !self.sharded {
                return Ok(());
            }
            gradients.exchange.gather()?;
            let mut start = 0;
            for parameter in self.parameters.iter().filter(|parameter| !parameter.is_empty()) {
                let end = start + parameter.len();
                let values = parameter.tensor.detach().flatten_all()?;
                values.slice_set(&gradients.gradients(start..end)?, 0, 0)?;
                start = end;
            }
            Ok(())
        })
    }

    /// The order in which gradients become ready, by which buckets are cut: with it, another run sums in the same
    /// order ([`ExchangeSettings::order`]).
    ///
    /// # Errors
    /// None, once the model is complete.
    pub fn bucket_order(&self) -> Result<Vec<usize>> {
        self.gradients.with_exchange(|exchange| Ok(exchange.order()))
    }

    /// How many bytes each bucket has on its way.
    ///
    /// # Errors
    /// None, once the model is complete.
    pub fn bucket_bytes(&self) -> Result<Vec<usize>> {
        self.gradients.with_exchange(|exchange| Ok(exchange.bucket_bytes()))
    }
}

/// Makes sure that all ranks have the same number.
fn same_everywhere(communicator: &Communicator, digest: u64, differs: &str) -> Result<()> {
    let mut all = vec![0; communicator.ranks() as usize];
    communicator.all_gather_into(&[digest], &mut all)?;
    match all.iter().position(|other| *other != all[0]) {
        Some(rank) => Err(Error::Argument(format!(
            "rank {rank} {differs} rank 0; all ranks must run the same program with the same settings"
        ))),
        None => Ok(()),
    }
}

fn digest_of<T: Real>(parameter: &Parameter) -> Result<u64> {
    parameter.read(|values: &[T]| digest(values.iter().map(|value| value.to_f64().to_bits())))
}

/// A hash that tells rows of words apart; nobody tries to deceive it.
fn digest(words: impl Iterator<Item = u64>) -> u64 {
    let step =
        |hash: u64, word: u64| (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    words.fold(0x517c_c1b7_2722_0a95, step)
}

/// Partial sums side by side, so that one addition need not wait for the one before.
const SUMS: usize = 8;

fn sum_of_squares<T: Real>(values: &[T]) -> f64 {
    let mut sums = [0.0; SUMS];
    let chunks = values.chunks_exact(SUMS);
    for (sum, value) in sums.iter_mut().zip(chunks.remainder()) {
        *sum += value.to_f64() * value.to_f64();
    }
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value.to_f64() * value.to_f64();
        }
    }
    sums.iter().sum()
}
