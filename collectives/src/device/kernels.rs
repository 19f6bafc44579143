//! The kernels that fold on a GPU: `kernels/fold.cu`, shipped as the PTX that NVIDIA's compiler makes of it
//! (`kernels/generate.py`), which the driver compiles for the device when a type is first used.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ringtree_transport::cuda::{CudaError, Device, DeviceAddress, Kernel, Module, Stream};

use crate::DataType;
use crate::reduce::Pass;

/// Sources, and destinations, of one fold.
pub(crate) const MOST_OPERANDS: usize = 64;

/// Threads of a block; the kernels are compiled for at most so many.
const BLOCK_THREADS: u32 = 256;

/// What a thread loads at once.
const PACK_BYTES: usize = 16;

/// Packs that a thread handles before another block is worth its start.
const PACKS_A_THREAD: usize = 4;

/// Blocks at most: enough to keep a bus or a network busy, which is what folds here wait for, and few enough to
/// leave the device to the program.
const MOST_BLOCKS: u32 = 32;

/// The kernels of one device.
#[derive(Debug)]
pub(crate) struct Kernels {
    device: Device,
    loaded: Mutex<HashMap<DataType, Arc<Loaded>>>,
}

/// The kernels of one type.
#[derive(Debug)]
struct Loaded {
    fold: Kernel,
    /// Of bytes.
    copy: Option<Kernel>,
    collect: Option<Kernel>,
    _module: Module,
}

/// One reduction, or a copy, ready to be queued.
#[derive(Clone, Debug)]
pub(crate) struct Fold {
    kernel: Kernel,
    pass: u32,
    scalar: f64,
    element_bytes: usize,
    _loaded: Arc<Loaded>,
}

/// `Fold` of `fold.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Argument {
    source: [DeviceAddress; MOST_OPERANDS],
    destination: [DeviceAddress; MOST_OPERANDS],
    count: u64,
    scalar: f64,
    sources: u32,
    destinations: u32,
    pass: u32,
    ranks: u32,
    rank: u32,
    given_pass: u32,
    factor: f64,
    given: DeviceAddress,
    given_count: u64,
    slot: DeviceAddress,
    flag: DeviceAddress,
    word: u64,
    distance: u64,
    failed: DeviceAddress,
    report: DeviceAddress,
    first: u32,
}

/// What a kernel that is an exchange does beside its fold: see [`Boards`](super::Boards).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange<'a> {
    /// The boards of all ranks, as this device finds them.
    pub(crate) boards: &'a [DeviceAddress],
    /// This rank.
    pub(crate) rank: u32,
    /// From a board to what is read of it, and from its flag to that.
    pub(crate) offset: u64,
    pub(crate) distance: u64,
    /// What the rank gives, and where it is put.
    pub(crate) given: DeviceAddress,
    pub(crate) given_bytes: usize,
    pub(crate) slot: DeviceAddress,
    /// What it is multiplied by before that.
    pub(crate) factor: Option<f64>,
    /// The rank's flag, and what is stored there.
    pub(crate) flag: DeviceAddress,
    pub(crate) word: u64,
    pub(crate) failed: DeviceAddress,
    pub(crate) report: DeviceAddress,
    /// What is read of each board, and where the result goes; nothing, if there is none.
    pub(crate) read_bytes: usize,
    pub(crate) result: DeviceAddress,
    /// The boards that are copied from, if nothing is folded.
    pub(crate) first: u32,
    pub(crate) pieces: u32,
}

impl Argument {
    const NOTHING: Argument = Argument {
        source: [0; MOST_OPERANDS],
        destination: [0; MOST_OPERANDS],
        count: 0,
        scalar: 1.0,
        sources: 0,
        destinations: 0,
        pass: 0,
        ranks: 0,
        rank: 0,
        given_pass: 0,
        factor: 1.0,
        given: 0,
        given_count: 0,
        slot: 0,
        flag: 0,
        word: 0,
        distance: 0,
        failed: 0,
        report: 0,
        first: 0,
    };
}

impl Kernels {
    /// Those of a device, which all communicators of the process share, and which stay loaded.
    pub(crate) fn of(device: &Device) -> Arc<Kernels> {
        static ALL: Mutex<Vec<Arc<Kernels>>> = Mutex::new(Vec::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = all.iter().find(|kernels| kernels.device == *device) {
            return kernels.clone();
        }
        let kernels = Arc::new(Kernels { device: device.clone(), loaded: Mutex::default() });
        all.push(kernels.clone());
        kernels
    }

    /// Whose they are.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The reduction of a type by an operation, compiled if this is the type's first.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn fold(&self, data_type: DataType, pass: Pass) -> Result<Fold, CudaError> {
        let loaded = self.load(data_type)?;
        let (pass, scalar) = number(pass);
        let element_bytes = data_type.size_bytes();
        Ok(Fold { kernel: loaded.fold, pass, scalar, element_bytes, _loaded: loaded })
    }

    /// The copy of bytes to one or several places.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn copy(&self) -> Result<Fold, CudaError> {
        let loaded = self.load(DataType::U8)?;
        let kernel = loaded.copy.expect("the kernels of bytes have the copy");
        Ok(Fold { kernel, pass: 0, scalar: 1.0, element_bytes: 1, _loaded: loaded })
    }

    /// The exchange that puts pieces behind one another.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn collect(&self) -> Result<Fold, CudaError> {
        let loaded = self.load(DataType::U8)?;
        let kernel = loaded.collect.expect("the kernels of bytes have the collection");
        Ok(Fold { kernel, pass: 0, scalar: 1.0, element_bytes: 1, _loaded: loaded })
    }

    fn load(&self, data_type: DataType) -> Result<Arc<Loaded>, CudaError> {
        let mut all = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = all.get(&data_type) {
            return Ok(loaded.clone());
        }
        let module = Module::load(&self.device, ptx(data_type))?;
        let fold = module.kernel(c"fold")?;
        let of_bytes = |name| (data_type == DataType::U8).then(|| module.kernel(name)).transpose();
        let (copy, collect) = (of_bytes(c"copy")?, of_bytes(c"collect")?);
        // Many drivers load a kernel when it first runs, and wait for all streams then: it is to be now.
        let stream = Stream::new(&self.device)?;
        for kernel in [Some(fold), copy, collect].into_iter().flatten() {
            // SAFETY: it has nothing to do.
            unsafe { stream.launch(kernel, 1, 32, &Argument::NOTHING)? };
        }
        stream.synchronize()?;
        let loaded = Arc::new(Loaded { fold, copy, collect, _module: module });
        all.insert(data_type, loaded.clone());
        Ok(loaded)
    }
}

impl Fold {
    /// Queues the fold of `len_bytes` of each source, left to right, into every destination.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// Every source must be readable and every destination writable by the stream's device for `len_bytes`, whole
    /// elements, and nobody else may write them until it is done. A destination may be one of the sources, but
    /// must not overlap one partially.
    pub(crate) unsafe fn queue(
        &self,
        stream: &Stream,
        sources: &[DeviceAddress],
        destinations: &[DeviceAddress],
        len_bytes: usize,
    ) -> Result<(), CudaError> {
        if len_bytes == 0 || destinations.is_empty() {
            return Ok(());
        }
        let mut argument = Argument {
            count: (len_bytes / self.element_bytes) as u64,
            scalar: self.scalar,
            sources: sources.len() as u32,
            destinations: destinations.len() as u32,
            pass: self.pass,
            ..Argument::NOTHING
        };
        argument.source[..sources.len()].copy_from_slice(sources);
        argument.destination[..destinations.len()].copy_from_slice(destinations);
        let packs = len_bytes.div_ceil(PACK_BYTES);
        let threads = packs.div_ceil(PACKS_A_THREAD);
        let blocks = threads.div_ceil(BLOCK_THREADS as usize).min(MOST_BLOCKS as usize) as u32;
        let threads = (threads as u32).next_multiple_of(32).min(BLOCK_THREADS);
        // SAFETY: the kernel takes this argument; the rest is the caller's promise.
        unsafe { stream.launch(self.kernel, blocks, threads, &argument) }
    }

    /// Queues an exchange, one block.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// What is given must be readable by the stream's device, and the result writable, until it is done; the boards and
    /// the report must stay until then, and the exchange be the next one of its rank.
    pub(crate) unsafe fn exchange(
        &self,
        stream: &Stream,
        exchange: &Exchange,
    ) -> Result<(), CudaError> {
        let Exchange { boards, read_bytes, given_bytes, pieces, .. } = *exchange;
        let is_collected = pieces > 0;
        let mut argument = Argument {
            count: (read_bytes / self.element_bytes) as u64,
            scalar: self.scalar,
            sources: if is_collected { pieces } else { boards.len() as u32 },
            destinations: 1,
            pass: self.pass,
            ranks: boards.len() as u32,
            rank: exchange.rank,
            given_pass: if exchange.factor.is_some() { SCALE } else { SUM },
            factor: exchange.factor.unwrap_or(1.0),
            given: exchange.given,
            given_count: (given_bytes / self.element_bytes) as u64,
            slot: exchange.slot,
            flag: exchange.flag,
            word: exchange.word,
            distance: exchange.distance,
            failed: exchange.failed,
            report: exchange.report,
            first: exchange.first,
            ..Argument::NOTHING
        };
        for (source, board) in argument.source.iter_mut().zip(boards) {
            *source = board + exchange.offset;
        }
        argument.destination[0] = exchange.result;
        let packs = given_bytes.max(read_bytes * pieces.max(1) as usize).div_ceil(PACK_BYTES);
        // Each waits for one rank, if there are as many.
        let threads = (packs.max(boards.len()) as u32).next_multiple_of(32).min(BLOCK_THREADS);
        // SAFETY: the kernel takes this argument; the rest is the caller's promise.
        unsafe { stream.launch(self.kernel, 1, threads, &argument) }
    }
}

/// Passes of `fold.cu` by which a rank publishes: a sum of one, which leaves what is folded later as it is.
const SUM: u32 = 0;
const SCALE: u32 = 8;

/// The number of a pass in `fold.cu`, and what it scales by.
fn number(pass: Pass) -> (u32, f64) {
    match pass {
        Pass::Sum => (SUM, 1.0),
        Pass::Product => (1, 1.0),
        Pass::Min => (2, 1.0),
        Pass::Max => (3, 1.0),
        Pass::BitAnd => (4, 1.0),
        Pass::BitOr => (5, 1.0),
        Pass::BitXor => (6, 1.0),
        Pass::Average { ranks } => (7, f64::from(ranks)),
        Pass::Scale { factor } => (SCALE, factor),
    }
}

const fn ptx(data_type: DataType) -> &'static str {
    match data_type {
        DataType::F32 => include_str!("kernels/f32.ptx"),
        DataType::F64 => include_str!("kernels/f64.ptx"),
        DataType::Bf16 => include_str!("kernels/bf16.ptx"),
        DataType::F16 => include_str!("kernels/f16.ptx"),
        DataType::F8E4M3 => include_str!("kernels/f8e4m3.ptx"),
        DataType::F8E5M2 => include_str!("kernels/f8e5m2.ptx"),
        DataType::I8 => include_str!("kernels/i8.ptx"),
        DataType::U8 => include_str!("kernels/u8.ptx"),
        DataType::I32 => include_str!("kernels/i32.ptx"),
        DataType::U32 => include_str!("kernels/u32.ptx"),
        DataType::I64 => include_str!("kernels/i64.ptx"),
        DataType::U64 => include_str!("kernels/u64.ptx"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_is_as_long_as_the_kernels_say() {
        let [fold, copy, collect] = ["fold", "copy", "collect"]
            .map(|name| format!("{name}_param_0[{}]", size_of::<Argument>()));
        for data_type in DataType::ALL {
            assert!(ptx(data_type).contains(&fold), "{}", data_type.name());
        }
        assert!(ptx(DataType::U8).contains(&copy) && ptx(DataType::U8).contains(&collect));
    }
}
