//! Where a run calculates: on the host, or on GPUs of NVIDIA, with the feature `cuda`.

use candle_core::Device;
use ringtree::Communicator;
use ringtree_trainer::Error;
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// Where a run calculates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// On the host's processors.
    Cpu,
    /// On a GPU for each rank.
    Cuda,
}

impl Place {
    /// Makes sure that a run can be there.
    ///
    /// # Errors
    /// [`Error::Argument`]: this program is built without GPUs, or a setting is not for them.
    pub fn check(self, config: &Config) -> Result<(), Error> {
        let refused = match self {
            Place::Cpu => return Ok(()),
            Place::Cuda if !cfg!(feature = "cuda") => {
                "device is cuda, but this ringtree-train was built without GPUs: build it by cargo build --release \
                 -p ringtree-trainer --bins --features cuda, which needs nvcc of CUDA's toolkit"
            }
            Place::Cuda if config.exchange.in_bf16 => {
                "gradients on a GPU travel as they are: leave exchange.in_bf16, or train with --device cpu"
            }
            Place::Cuda => return Ok(()),
        };
        Err(Error::Argument(refused.into()))
    }

    /// The device of a rank, by its number on its host: ranks take the GPUs in turn.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: there is no driver, or no GPU; [`Error::Candle`]: it cannot be used.
    pub fn open(self, communicator: &Communicator, local_rank: u32) -> Result<Device, Error> {
        match self {
            Place::Cpu => Ok(Device::Cpu),
            Place::Cuda => open_gpu(communicator, local_rank),
        }
    }
}

#[cfg(feature = "cuda")]
fn open_gpu(communicator: &Communicator, local_rank: u32) -> Result<Device, Error> {
    // Without any, the next call says so.
    let ordinal = local_rank % communicator.devices()?.max(1);
    communicator.device(ordinal)?;
    // A stream that is the same on all threads, which collectives need.
    Ok(Device::new_cuda_with_stream(ordinal as usize)?)
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(_: &Communicator, _: u32) -> Result<Device, Error> {
    unreachable!("settings are checked before a run begins")
}

/// In a few words, for those who look at a run.
pub fn describe(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cuda { gpu_id } => {
            format!("a GPU for each rank; rank 0 has number {gpu_id}")
        }
        _ => match candle_core::utils::get_num_threads() {
            1 => "processors of the host, 1 thread a rank".to_owned(),
            threads => format!("processors of the host, {threads} threads a rank"),
        },
    }
}
