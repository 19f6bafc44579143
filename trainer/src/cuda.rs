//! Gradients of a model whose parameters are candle's tensors on a GPU (feature `cuda`). They stay there: candle's own
//! stream copies them into the exchange's memory, and out of it for the optimiser.

use std::ops::Range;
use std::sync::Arc;

use candle_core::cuda::cudarc::driver::CudaStream;
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, Device, InplaceOp1, Layout, Result as CandleResult,
    Storage, Tensor, bail,
};
use ringtree::Communicator;
use ringtree::device::DeviceMemory;
use ringtree::device::cudarc::{Lent, stream_of};

use crate::exchange::{ExchangeSettings, Gpu, GradientExchange, Part};
use crate::real::Real;
use crate::{Error, Result};

/// An exchange on a GPU, and candle's stream there.
pub struct CudaGradients<T: Real> {
    /// Whose memory candle's stream reads and writes.
    pub exchange: GradientExchange<T, Gpu>,
    device: Device,
    stream: Arc<CudaStream>,
}

impl<T: Real> CudaGradients<T> {
    /// Makes room for gradients of the given lengths on a GPU, as candle has it.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: its stream takes no collectives; else as [`GradientExchange::on_gpu`].
    pub fn new(
        communicator: Communicator,
        device: &CudaDevice,
        lengths: &[usize],
        settings: ExchangeSettings,
    ) -> Result<CudaGradients<T>> {
        let stream = device.cuda_stream();
        let gpu = communicator.device(stream.context().ordinal() as u32)?;
        let program = Arc::new(stream_of(&gpu, &stream)?);
        let exchange = GradientExchange::on_gpu(communicator, program, lengths, settings)?;
        Ok(CudaGradients { exchange, device: Device::Cuda(device.clone()), stream })
    }

    /// Writes a gradient, times a factor, or adds it to what is there.
    pub fn write(
        &mut self,
        range: Range<usize>,
        gradient: &Tensor,
        factor: f64,
        adds: bool,
    ) -> Result<()> {
        let memory = self.exchange.gradients(range)?;
        let mut gradient = (gradient.detach() * factor)?.flatten_all()?;
        if adds {
            gradient = (gradient + self.tensor(&memory)?)?;
        }
        self.fill(&memory, &gradient)
    }

    /// The gradients of a parameter, or what is in their place.
    pub fn gradients(&mut self, range: Range<usize>) -> Result<Tensor> {
        let memory = self.exchange.gradients(range)?;
        self.tensor(&memory)
    }

    /// The gradients of a part.
    pub fn part(&mut self, part: &Part) -> Result<Tensor> {
        let memory = self.exchange.part(part)?;
        self.tensor(&memory)
    }

    /// Puts something else in the place of a part's gradients.
    pub fn set_part(&mut self, part: &Part, values: &Tensor) -> Result<()> {
        let memory = self.exchange.part(part)?;
        self.fill(&memory, values)
    }

    /// A copy of memory.
    fn tensor(&self, memory: &DeviceMemory<T>) -> Result<Tensor> {
        let tensor = Tensor::zeros(memory.len(), T::DTYPE, &self.device)?;
        if !memory.is_empty() {
            tensor.inplace_op1(&Fill(Lent::new(memory, &self.stream)?))?;
        }
        Ok(tensor)
    }

    /// Copies a flat tensor to memory.
    fn fill(&self, memory: &DeviceMemory<T>, tensor: &Tensor) -> Result<()> {
        if memory.is_empty() {
            return Ok(());
        }
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return Err(Error::Argument("a gradient is not on the GPU of the parameters".into()));
        };
        let start = layout.start_offset();
        let values = storage.as_cuda_slice::<T>()?.slice(start..start + memory.len());
        storage.device.memcpy_dtod(&values, &mut Lent::new(memory, &self.stream)?)?;
        Ok(())
    }
}

/// The sum of squares of some tensors, each of which is added up on its GPU.
pub fn sum_of_squares(tensors: impl Iterator<Item = Result<Tensor>>) -> Result<f64> {
    let mut sums = Vec::new();
    for tensor in tensors {
        sums.push(tensor?.to_dtype(candle_core::DType::F64)?.sqr()?.sum_all()?);
    }
    // The host waits once, for the last one.
    sums.iter().map(|sum| Ok(sum.to_scalar::<f64>()?)).sum()
}

/// Fills a tensor that was just made from memory of the exchange.
struct Fill<'a, T>(Lent<'a, T>);

impl<T: Real> InplaceOp1 for Fill<'_, T> {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> CandleResult<()> {
        bail!("memory of a GPU is copied to tensors there")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> CandleResult<()> {
        let device = storage.device.clone();
        device.memcpy_dtod(&self.0, storage.as_cuda_slice_mut::<T>()?)
    }
}
