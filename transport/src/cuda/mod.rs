//! GPUs by NVIDIA's driver: devices, their memory, streams, events and kernels.
//!
//! The driver's library is opened when a GPU is first wanted ([`Driver`]), and a machine without it builds and runs
//! everything else. All calls pass through one checked layer, so that each failure says which call, on which GPU,
//! and what the driver means by its code. Nothing here knows of ranks.

mod capture;
mod device;
mod direct;
mod driver;
mod error;
mod export;
mod ffi;
mod mapped;
mod memory;
mod module;
mod public;
mod reaper;
mod stream;
mod trial;

pub use capture::Relaxed;
pub use device::Device;
pub use direct::{DmaBuf, RemoteWrites};
pub use driver::Driver;
pub use error::CudaError;
pub use export::{Exported, PeerMemory, Probe, Told, Way, Ways, share_by_descriptor};
pub use ffi::DeviceAddress;
pub use memory::{DeviceMemory, PinnedMemory, RegisteredMemory, device_of};
pub use module::{Kernel, Module};
pub use public::{OpenedMemory, PublicMemory};
pub use stream::{Event, Stream};
