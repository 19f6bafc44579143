//! Collectives on memory of GPUs: buffers, and calls that are queued in a stream.
//!
//! ```no_run
//! use ringtree::device::Stream;
//! use ringtree::{Communicator, Op};
//!
//! # fn main() -> Result<(), ringtree::Error> {
//! let comm = Communicator::from_env()?;
//! let device = comm.device(0)?;
//! let stream = Stream::new(&device)?;
//! let mut gradients = comm.alloc_device::<f32>(&device, 1_000_000)?;
//! // ... kernels of the program write the gradients, in the same stream ...
//! comm.on(&stream).all_reduce(&mut gradients, Op::Sum)?;
//! // ... kernels that are queued from here on find the sums ...
//! # Ok(())
//! # }
//! ```
//!
//! Ranks with buffers on GPUs and ranks with buffers on the host may be in one communicator, and every rank gets the
//! same bits. Where all are on GPUs of one host that reach each other,
//! [`join_devices`](crate::Communicator::join_devices) makes small calls one kernel of each. NVIDIA's driver is opened when a GPU is first asked for. Tested against a stand-in driver that executes
//! the real kernels.
//!
//! The first call of its kind makes ready what it takes, and may wait for the other ranks to do so; later ones only queue.
//! While a call is queued, the driver must not be made to wait for all streams, which allocating, and starting a kernel
//! that it has not loaded yet, may do: a program does these before, or sets `CUDA_MODULE_LOADING=EAGER`.

mod board;
mod buffer;
mod calls;
mod counters;
#[cfg(feature = "cudarc")]
pub mod cudarc;
mod group;
mod join;
mod kernels;
mod pins;
mod signal;
mod timeline;
mod varied;

pub use buffer::{DeviceBuffer, DeviceMemory, DevicePointer, DeviceSpan};
pub use calls::{OnStream, Queued};
pub use counters::DeviceCounters;
pub use group::DeviceGroup;
pub use ringtree_transport::cuda::{CudaError, Device, DeviceAddress, Driver, Event, Stream};
pub use timeline::{Activity, Entry};

/// What keeps memory of the program.
pub(crate) type KeepAlive = std::sync::Arc<dyn std::any::Any + Send + Sync>;

pub(crate) use board::{Boards, QueuedExchange};
pub(crate) use kernels::{Fold, Kernels, MOST_OPERANDS};
pub(crate) use pins::Pins;
pub(crate) use signal::Signals;
pub(crate) use timeline::{Recording, Work};
