//! Memory of a GPU that another process, or another GPU of this one, uses in place.

use std::sync::mpsc::Receiver;

use super::device::Device;
use super::error::CudaError;
use super::ffi::{self, DeviceAddress, IpcHandle};
use super::memory::DeviceMemory;
use super::reaper::{self, Freed};
use super::stream::Stream;

/// What another process must know to use a memory, as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    handle: [u8; ffi::IPC_HANDLE_BYTES],
    address: DeviceAddress,
    len_bytes: u64,
    ordinal: u32,
}

impl Exported {
    /// How long it is as it is told.
    pub const BYTES: usize = ffi::IPC_HANDLE_BYTES + 20;

    /// As it is told.
    pub fn to_bytes(&self) -> [u8; Exported::BYTES] {
        let mut bytes = [0; Exported::BYTES];
        let (handle, rest) = bytes.split_at_mut(ffi::IPC_HANDLE_BYTES);
        handle.copy_from_slice(&self.handle);
        rest[..8].copy_from_slice(&self.address.to_le_bytes());
        rest[8..16].copy_from_slice(&self.len_bytes.to_le_bytes());
        rest[16..].copy_from_slice(&self.ordinal.to_le_bytes());
        bytes
    }

    /// What was told.
    pub fn from_bytes(bytes: &[u8; Exported::BYTES]) -> Exported {
        let (handle, rest) = bytes.split_at(ffi::IPC_HANDLE_BYTES);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
        let mut exported = Exported {
            handle: [0; ffi::IPC_HANDLE_BYTES],
            address: number(&rest[..8]),
            len_bytes: number(&rest[8..16]),
            ordinal: number(&rest[16..]) as u32,
        };
        exported.handle.copy_from_slice(handle);
        exported
    }

    /// How long the memory is.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

impl DeviceMemory {
    /// What others of this host must know to use it, as long as it lives. Where the driver does not export memory, as in
    /// some containers, other processes will find that they cannot.
    pub fn export(&self) -> Exported {
        let device = self.device();
        let mut handle = IpcHandle([0; ffi::IPC_HANDLE_BYTES]);
        let exported = device.enter().and_then(|_entered| {
            // SAFETY: the address is of a variable that outlives the call.
            let code = unsafe { (device.functions().ipc_export)(&raw mut handle, self.address()) };
            device.check("cuIpcGetMemHandle", code)
        });
        if let Err(error) = exported {
            tracing::info!(
                "other processes cannot use memory of GPU {}: {error}",
                device.ordinal()
            );
        }
        Exported {
            handle: handle.0,
            address: self.address(),
            len_bytes: self.len_bytes() as u64,
            ordinal: device.ordinal(),
        }
    }
}

/// Memory of another process or another GPU, which the kernels of a device use in place as long as this lives.
#[derive(Debug)]
pub struct PeerMemory {
    device: Device,
    address: DeviceAddress,
    len_bytes: u64,
    is_mapped: bool,
}

impl PeerMemory {
    /// Makes exported memory usable by a device; `is_of_this_process` says who has exported it.
    ///
    /// # Errors
    /// The device cannot reach it, or what the driver says.
    pub fn open(
        device: &Device,
        exported: &Exported,
        is_of_this_process: bool,
    ) -> Result<PeerMemory, CudaError> {
        let mut memory = PeerMemory {
            device: device.clone(),
            address: exported.address,
            len_bytes: exported.len_bytes,
            is_mapped: false,
        };
        if is_of_this_process {
            device.reach(exported.ordinal)?;
            return Ok(memory);
        }
        let _entered = device.enter()?;
        let (handle, flags) = (IpcHandle(exported.handle), ffi::IPC_LAZY_ENABLE_PEER_ACCESS);
        // SAFETY: the address is of a variable that outlives the call; the handle is as it was told.
        let code = unsafe { (device.functions().ipc_open)(&raw mut memory.address, handle, flags) };
        device.check("cuIpcOpenMemHandle", code)?;
        memory.is_mapped = true;
        Ok(memory)
    }

    /// Stops using it. Tells when its owner may free it.
    pub fn close(self) -> Receiver<()> {
        drop(self);
        reaper::told()
    }

    /// Where kernels of the device find a range of it, if it has that.
    pub fn address_of(&self, offset: u64, len_bytes: u64) -> Option<DeviceAddress> {
        let is_within = offset.checked_add(len_bytes)? <= self.len_bytes;
        is_within.then(|| self.address + offset)
    }
}

impl Drop for PeerMemory {
    fn drop(&mut self) {
        if self.is_mapped {
            reaper::free(&self.device, Freed::Mapped(self.address));
        }
    }
}

/// Some memory of a GPU by which others find out whether they can use what is exported.
#[derive(Debug)]
pub struct Probe {
    memory: DeviceMemory,
    exported: Exported,
    nonce: u64,
}

impl Probe {
    /// Allocates and exports some.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Device) -> Result<Probe, CudaError> {
        let memory = DeviceMemory::alloc(device, size_of::<u64>())?;
        // An address is used once in a process, and a process once in a while.
        let nonce = memory.address() ^ u64::from(std::process::id()) << 32 | 1;
        let stream = Stream::new(device)?;
        // SAFETY: both have 8 bytes and stay until the stream is through.
        unsafe { stream.copy_to_device(memory.address(), (&raw const nonce).cast(), 8)? };
        stream.synchronize()?;
        let exported = memory.export();
        Ok(Probe { memory, exported, nonce })
    }

    /// Whose it is.
    pub fn device(&self) -> &Device {
        self.memory.device()
    }

    /// What others must know, and what they find there then.
    pub fn told(&self) -> (Exported, u64) {
        (self.exported, self.nonce)
    }

    /// Whether this device finds in a peer's probe what it should.
    pub fn reads(&self, exported: &Exported, nonce: u64, is_of_this_process: bool) -> bool {
        let read = || -> Result<u64, CudaError> {
            let memory = PeerMemory::open(self.device(), exported, is_of_this_process)?;
            let stream = Stream::new(self.device())?;
            let mut found = 0_u64;
            // SAFETY: both have 8 bytes and stay until the stream is through.
            unsafe { stream.copy_to_host((&raw mut found).cast(), memory.address, 8)? };
            stream.synchronize()?;
            Ok(found)
        };
        match read() {
            Ok(found) => found == nonce,
            Err(error) => {
                tracing::info!(
                    "memory of GPUs is not used in place, and goes by the host: {error}"
                );
                false
            }
        }
    }
}
