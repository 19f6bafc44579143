//! Memory that GPUs use: their own, and memory of the host that is locked and has a device address.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use super::device::Device;
use super::error::CudaError;
use super::ffi::{self, DeviceAddress};
use super::mapped::Mapping;
use super::reaper::{self, Freed};
use crate::memory::SharedMemory;

/// Memory of a GPU. It is not of a pool, so that it can be exported. It is given back some time after this is dropped,
/// when nothing that was queued on the device before uses it any more.
#[derive(Debug)]
pub struct DeviceMemory {
    device: Device,
    address: DeviceAddress,
    len_bytes: usize,
    /// Where it is mapped, if it has a descriptor; else it was allocated as a whole, and has a handle.
    mapping: Option<Mapping>,
}

impl DeviceMemory {
    /// Allocates; what it holds is undefined. Nothing has an address, too.
    ///
    /// # Errors
    /// [`CudaError::Memory`] if there is no room, or what the driver says.
    pub fn alloc(device: &Device, len_bytes: usize) -> Result<DeviceMemory, CudaError> {
        let _entered = device.enter()?;
        let mut address = 0;
        // SAFETY: the address is of a variable that outlives the call.
        let mut alloc =
            || unsafe { (device.functions().alloc)(&raw mut address, len_bytes.max(1)) };
        let mut code = alloc();
        if code == ffi::OUT_OF_MEMORY {
            reaper::wait();
            code = alloc();
        }
        if code == ffi::OUT_OF_MEMORY {
            let (mut free_bytes, mut total_bytes) = (0, 0);
            // SAFETY: as above.
            unsafe { (device.functions().memory_info)(&raw mut free_bytes, &raw mut total_bytes) };
            let (ordinal, free_bytes) = (device.ordinal(), Some(free_bytes));
            return Err(CudaError::Memory { ordinal, len_bytes, free_bytes });
        }
        device.check("cuMemAlloc", code)?;
        Ok(DeviceMemory { device: device.clone(), address, len_bytes, mapping: None })
    }

    /// As [`DeviceMemory::alloc`], memory that other processes use by its descriptor; it takes whole pages of 2 MiB.
    ///
    /// # Errors
    /// [`CudaError::Argument`] if the device has no such memory, or what the driver says.
    pub(super) fn alloc_mapped(
        device: &Device,
        len_bytes: usize,
    ) -> Result<DeviceMemory, CudaError> {
        let mapping = Mapping::alloc(device, len_bytes)?;
        let address = mapping.address();
        Ok(DeviceMemory { device: device.clone(), address, len_bytes, mapping: Some(mapping) })
    }

    pub(super) fn mapping(&self) -> Option<&Mapping> {
        self.mapping.as_ref()
    }

    /// Its first byte.
    pub fn address(&self) -> DeviceAddress {
        self.address
    }

    /// How long it is.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // A mapping gives itself back.
        if self.mapping.is_none() {
            reaper::free(&self.device, Freed::Device(self.address));
        }
    }
}

/// Memory of the host that is locked, and that GPUs read and write at [`PinnedMemory::address`].
#[derive(Debug)]
pub struct PinnedMemory {
    device: Device,
    start: NonNull<u8>,
    address: DeviceAddress,
    len_bytes: usize,
}

// SAFETY: the memory belongs to the value; what devices and threads do with its bytes is each user's own protocol.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above; no method touches the bytes.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Allocates; what it holds is undefined.
    ///
    /// # Errors
    /// [`CudaError::Memory`] if there is no room, or what the driver says.
    pub fn alloc(device: &Device, len_bytes: usize) -> Result<PinnedMemory, CudaError> {
        let _entered = device.enter()?;
        let functions = device.functions();
        let mut start: *mut c_void = std::ptr::null_mut();
        let flags = ffi::HOST_ALLOC_PORTABLE_MAPPED;
        // SAFETY: the address is of a variable that outlives the call.
        let code = unsafe { (functions.host_alloc)(&raw mut start, len_bytes.max(1), flags) };
        if code == ffi::OUT_OF_MEMORY {
            return Err(CudaError::Memory {
                ordinal: device.ordinal(),
                len_bytes,
                free_bytes: None,
            });
        }
        device.check("cuMemHostAlloc", code)?;
        let Some(start) = NonNull::new(start.cast()) else {
            return Err(device.error("cuMemHostAlloc", ffi::OUT_OF_MEMORY));
        };
        let mut memory = PinnedMemory { device: device.clone(), start, address: 0, len_bytes };
        memory.address = mapped(device, start.as_ptr().cast())?;
        Ok(memory)
    }

    /// Its first byte, for the host.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its first byte, for GPUs.
    pub fn address(&self) -> DeviceAddress {
        self.address
    }

    /// How long it is.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        reaper::free(&self.device, Freed::Pinned(self.start.as_ptr() as usize));
    }
}

/// A mapping of the host's that a GPU may use.
#[derive(Debug)]
pub struct RegisteredMemory {
    device: Device,
    mapping: Arc<SharedMemory>,
    address: DeviceAddress,
    /// It was registered here, and not for another GPU of this process.
    is_own: bool,
}

impl RegisteredMemory {
    /// Locks the memory, and gives it a device address.
    ///
    /// # Errors
    /// What the driver says: it cannot do so with every mapping.
    pub fn register(
        device: &Device,
        mapping: Arc<SharedMemory>,
        is_writable: bool,
    ) -> Result<RegisteredMemory, CudaError> {
        let mut flags = ffi::HOST_REGISTER_PORTABLE_MAPPED;
        if !is_writable {
            if device.attribute(ffi::ATTRIBUTE_READ_ONLY_HOST_REGISTER)? == 0 {
                let what = "this GPU cannot use memory that the process may only read";
                return Err(CudaError::Argument(what.to_owned()));
            }
            flags |= ffi::HOST_REGISTER_READ_ONLY;
        }
        let _entered = device.enter()?;
        let (start, len_bytes) = (mapping.start().cast(), mapping.len_bytes());
        // SAFETY: the mapping stays as long as this, and until the reaper has ended the registration.
        let code = unsafe { (device.functions().host_register)(start, len_bytes, flags) };
        let is_own = code != ffi::HOST_MEMORY_ALREADY_REGISTERED;
        if is_own {
            device.check("cuMemHostRegister", code)?;
        }
        let device = device.clone();
        let mut memory = RegisteredMemory { device, mapping, address: 0, is_own };
        memory.address = mapped(&memory.device, start)?;
        Ok(memory)
    }

    /// Where a GPU finds a byte of the host, if it and the `len_bytes` from there on are of this memory.
    pub fn address_of(&self, data: *const u8, len_bytes: usize) -> Option<DeviceAddress> {
        let offset = (data as usize).checked_sub(self.mapping.start() as usize)?;
        let is_within = offset.checked_add(len_bytes)? <= self.mapping.len_bytes();
        is_within.then(|| self.address + offset as u64)
    }
}

impl Drop for RegisteredMemory {
    fn drop(&mut self) {
        if self.is_own {
            reaper::free(&self.device, Freed::Registered(self.mapping.clone()));
        }
    }
}

/// The device address of locked memory of the host.
fn mapped(device: &Device, start: *mut c_void) -> Result<DeviceAddress, CudaError> {
    let mut address = 0;
    // SAFETY: the address is of a variable that outlives the call; the memory is locked.
    let code = unsafe { (device.functions().host_address)(&raw mut address, start, 0) };
    device.check("cuMemHostGetDevicePointer", code)?;
    Ok(address)
}

/// On which GPU an address is.
///
/// # Errors
/// [`CudaError::Argument`] if it is on none.
pub fn device_of(device: &Device, address: DeviceAddress) -> Result<u32, CudaError> {
    let _entered = device.enter()?;
    let (mut kind, mut ordinal): (u32, c_int) = (0, 0);
    // SAFETY: the addresses are of variables of the attributes' types, which outlive the calls.
    let codes = unsafe {
        let attribute = device.functions().pointer_attribute;
        [
            attribute((&raw mut kind).cast(), ffi::POINTER_MEMORY_TYPE, address),
            attribute((&raw mut ordinal).cast(), ffi::POINTER_DEVICE_ORDINAL, address),
        ]
    };
    let is_unknown = codes.contains(&ffi::INVALID_VALUE);
    for code in codes.into_iter().filter(|_| !is_unknown) {
        device.check("cuPointerGetAttribute", code)?;
    }
    if is_unknown || kind != ffi::MEMORY_TYPE_DEVICE {
        return Err(CudaError::Argument(format!("{address:#x} is no address of a GPU's memory")));
    }
    Ok(ordinal as u32)
}
