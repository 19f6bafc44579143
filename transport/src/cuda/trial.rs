//! Tries of what GPUs and their driver say that they can do, for those who want to know before they rely on it.

use std::sync::Arc;

use super::device::Device;
use super::error::CudaError;
use super::memory::{DeviceMemory, PinnedMemory, RegisteredMemory};
use super::stream::Stream;
use crate::memory::SharedMemory;

/// What is copied: more than any cache line or page.
const TRIAL_BYTES: usize = 256 << 10;

impl Device {
    /// Whether what this one writes into the memory of another arrives there: bytes are copied, and compared. Where
    /// the machine is set up wrongly, a copy may never end.
    ///
    /// # Errors
    /// What the driver says.
    pub fn delivers_to(&self, other: &Device) -> Result<bool, CudaError> {
        // Without this, the driver copies through the host.
        self.reach(other.ordinal())?;
        let [from, to] = [self, other].map(|device| DeviceMemory::alloc(device, TRIAL_BYTES));
        let (from, to) = (from?, to?);
        let [here, there] = [self, other].map(Stream::new);
        let (here, there) = (here?, there?);
        let seed = (self.ordinal() * 31 + other.ordinal() + 1) as usize;
        let given: Vec<u8> =
            (0..TRIAL_BYTES).map(|index| (index * 7 + index / 251 + seed) as u8).collect();
        let mut got = vec![0; TRIAL_BYTES];
        // SAFETY: all are as long, stay until both streams are through, and are used by one stream after the other.
        unsafe {
            there.fill(to.address(), 0, TRIAL_BYTES)?;
            there.synchronize()?;
            here.copy_to_device(from.address(), given.as_ptr(), TRIAL_BYTES)?;
            here.copy(to.address(), from.address(), TRIAL_BYTES)?;
            here.synchronize()?;
            there.copy_to_host(got.as_mut_ptr(), to.address(), TRIAL_BYTES)?;
            there.synchronize()?;
        }
        Ok(got == given)
    }

    /// Whether memory of the host can be allocated for it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn try_pinned(&self, len_bytes: usize) -> Result<(), CudaError> {
        PinnedMemory::alloc(self, len_bytes).map(drop)
    }

    /// Whether it can be given memory that ranks share: `memory`, which is written here, or which another wrote.
    ///
    /// # Errors
    /// What the driver says.
    pub fn try_registered(
        &self,
        memory: &Arc<SharedMemory>,
        is_writable: bool,
    ) -> Result<(), CudaError> {
        let registered = RegisteredMemory::register(self, memory.clone(), is_writable);
        registered.map(drop)
    }
}
