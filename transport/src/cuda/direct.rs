//! Memory of a GPU that network adapters read and write themselves: GPUDirect RDMA, by descriptors that both drivers know
//! (dma-buf).
//!
//! What such a device needs besides, and where it is: the adapter may read what kernels have written once an event behind
//! them is done, which is when a link is given the memory. `CU_POINTER_ATTRIBUTE_SYNC_MEMOPS` would make copies that do
//! not wait for their end do so; all copies here are followed by an event instead. What an adapter has written
//! is in the memory when its completion is there, but on some devices kernels may still find older bytes, until
//! that is settled ([`Device::settle_remote_writes`]). NVIDIA, GPUDirect RDMA, "Synchronization and memory ordering".

use std::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd};

use super::device::Device;
use super::error::CudaError;
use super::ffi;
use super::memory::DeviceMemory;

/// The pages of a GPU's memory, for other drivers, as long as the descriptor is open.
#[derive(Debug)]
pub struct DmaBuf {
    /// The descriptor.
    pub descriptor: OwnedFd,
    /// Where the memory begins behind it.
    pub offset: u64,
}

impl DeviceMemory {
    /// A descriptor of the pages that it lies in.
    ///
    /// # Errors
    /// The driver has none for this GPU, or what it says.
    pub fn dma_buf(&self) -> Result<DmaBuf, CudaError> {
        let device = self.device();
        if !device.has_dma_buf()? {
            let what = format!("GPU {} hands its memory to no other driver", device.ordinal());
            return Err(CudaError::Argument(what));
        }
        // Of whole pages of the host's. Who gets the descriptor maps what is asked for alone.
        // SAFETY: it touches no memory.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
        let start = self.address() / page_bytes * page_bytes;
        let end = (self.address() + self.len_bytes() as u64).next_multiple_of(page_bytes);
        let mut descriptor: c_int = -1;
        let _entered = device.enter()?;
        // SAFETY: the address is of a variable of the handle's type, which outlives the call.
        let code = unsafe {
            let to = (&raw mut descriptor).cast();
            let len_bytes = (end - start) as usize;
            (device.functions().range_handle)(to, start, len_bytes, ffi::RANGE_HANDLE_DMA_BUF, 0)
        };
        device.check("cuMemGetHandleForAddressRange", code)?;
        // SAFETY: the driver has made it for this caller.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(DmaBuf { descriptor, offset: self.address() - start })
    }
}

/// How kernels of a GPU come to find what network adapters have written in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteWrites {
    /// All that are queued after the completion of a write do.
    Ordered,
    /// All that are queued after [`Device::settle_remote_writes`] do.
    Settled,
    /// There is no way to know.
    Unknown,
}

impl Device {
    /// See [`RemoteWrites`].
    ///
    /// # Errors
    /// What the driver says.
    pub fn remote_writes(&self) -> Result<RemoteWrites, CudaError> {
        if self.attribute(ffi::ATTRIBUTE_REMOTE_WRITES_ORDERING)? >= ffi::ORDERED_FOR_OWNER {
            return Ok(RemoteWrites::Ordered);
        }
        let is_flushed_by_host = self.attribute(ffi::ATTRIBUTE_FLUSH_REMOTE_WRITES)? & 1 != 0;
        Ok(if is_flushed_by_host { RemoteWrites::Settled } else { RemoteWrites::Unknown })
    }

    /// Has kernels that are queued from now on find what network adapters have written in its memory, if completions
    /// have told of it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn settle_remote_writes(&self) -> Result<(), CudaError> {
        let _entered = self.enter()?;
        let (of_context, for_owner) = (ffi::FLUSH_OF_CURRENT_CONTEXT, ffi::FLUSH_FOR_OWNER);
        // SAFETY: it touches no memory of this process; a context is current.
        let code = unsafe { (self.functions().flush_remote_writes)(of_context, for_owner) };
        self.check("cuFlushGPUDirectRDMAWrites", code)
    }
}
