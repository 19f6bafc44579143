//! Memory of a GPU by virtual memory management: physical memory that is mapped at addresses reserved for it. It has
//! a file descriptor, by which other processes map it where the driver refuses the handles of ordinary memory, as it
//! may between containers. It comes in whole pages of a GPU, 2 MiB on today's.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::device::Device;
use super::error::CudaError;
use super::ffi::{self, DeviceAddress, PhysicalHandle};
use super::reaper::{self, Freed};

/// A mapping, of physical memory of this process or of another one.
#[derive(Debug)]
pub(super) struct Mapping {
    /// Whose kernels use it.
    device: Device,
    address: DeviceAddress,
    len_bytes: usize,
}

/// Physical memory until it is mapped, which it outlives no longer than the mapping.
struct Physical<'a> {
    device: &'a Device,
    handle: PhysicalHandle,
}

impl Mapping {
    /// Allocates at least `len_bytes`, which can be exported; what they hold is undefined.
    ///
    /// # Errors
    /// What the driver says, or [`CudaError::Argument`] if the device has no such memory.
    pub(super) fn alloc(device: &Device, len_bytes: usize) -> Result<Mapping, CudaError> {
        for attribute in [ffi::ATTRIBUTE_VIRTUAL_MEMORY, ffi::ATTRIBUTE_FILE_DESCRIPTOR] {
            if device.attribute(attribute)? == 0 {
                let what = "this GPU has no memory with file descriptors";
                return Err(CudaError::Argument(what.to_owned()));
            }
        }
        let is_rdma_capable = device.attribute(ffi::ATTRIBUTE_RDMA_OF_VIRTUAL_MEMORY)? != 0;
        let properties = ffi::AllocationProperties {
            kind: ffi::ALLOCATION_PINNED,
            handle_types: ffi::HANDLE_FILE_DESCRIPTOR,
            location: location(device),
            windows_metadata: std::ptr::null_mut(),
            compression: 0,
            is_rdma_capable: u8::from(is_rdma_capable),
            usage: 0,
            reserved: [0; 4],
        };
        let _entered = device.enter()?;
        let functions = device.functions();
        let (mut page_bytes, mut handle) = (0, 0);
        // SAFETY: the addresses are of variables that outlive the call.
        let code = unsafe {
            (functions.granularity)(&raw mut page_bytes, &properties, ffi::GRANULARITY_MINIMUM)
        };
        device.check("cuMemGetAllocationGranularity", code)?;
        let len_bytes = len_bytes.max(1).next_multiple_of(page_bytes);
        let create =
            // SAFETY: as above.
            |handle: *mut _| unsafe { (functions.physical_create)(handle, len_bytes, &properties, 0) };
        let mut code = create(&raw mut handle);
        if code == ffi::OUT_OF_MEMORY {
            reaper::wait();
            code = create(&raw mut handle);
        }
        device.check("cuMemCreate", code)?;
        Mapping::of(&Physical { device, handle }, len_bytes)
    }

    /// Maps memory of another process, by its descriptor and its length, for the kernels of a device.
    ///
    /// # Errors
    /// The device does not reach it, or what the driver says.
    pub(super) fn import(
        device: &Device,
        descriptor: BorrowedFd<'_>,
        len_bytes: usize,
    ) -> Result<Mapping, CudaError> {
        let _entered = device.enter()?;
        let mut handle = 0;
        // A descriptor is passed as a pointer's value.
        let descriptor = descriptor.as_raw_fd() as usize as *mut c_void;
        // SAFETY: the address is of a variable that outlives the call; the descriptor is open, and stays its owner's.
        let code = unsafe {
            let import = device.functions().physical_import;
            import(&raw mut handle, descriptor, ffi::HANDLE_FILE_DESCRIPTOR)
        };
        device.check("cuMemImportFromShareableHandle", code)?;
        Mapping::of(&Physical { device, handle }, len_bytes)
    }

    /// Maps physical memory for its device's kernels.
    fn of(physical: &Physical, len_bytes: usize) -> Result<Mapping, CudaError> {
        let device = physical.device;
        let functions = device.functions();
        let mut address = 0;
        // SAFETY: the address is of a variable that outlives the call.
        let code = unsafe { (functions.reserve)(&raw mut address, len_bytes, 0, 0, 0) };
        device.check("cuMemAddressReserve", code)?;
        // SAFETY: the range was just reserved, and nothing is mapped there.
        let code = unsafe { (functions.map)(address, len_bytes, 0, physical.handle, 0) };
        if code != ffi::SUCCESS {
            // SAFETY: as above; nobody else knows of it.
            unsafe { (functions.unreserve)(address, len_bytes) };
            return Err(device.error("cuMemMap", code));
        }
        let mapping = Mapping { device: device.clone(), address, len_bytes };
        allow(device, address, len_bytes)?;
        Ok(mapping)
    }

    /// Its first byte.
    pub(super) fn address(&self) -> DeviceAddress {
        self.address
    }

    /// How long it is, in whole pages.
    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// A descriptor of its physical memory.
    ///
    /// # Errors
    /// What the driver says.
    pub(super) fn export(&self) -> Result<OwnedFd, CudaError> {
        let device = &self.device;
        let _entered = device.enter()?;
        let (mut handle, mut descriptor) = (0, -1);
        // SAFETY: the addresses are of variables that outlive the calls; the memory is mapped.
        unsafe {
            let code = (device.functions().physical_retain)(&raw mut handle, self.address);
            device.check("cuMemRetainAllocationHandle", code)?;
            let _retained = Physical { device, handle };
            let export = device.functions().physical_export;
            let code = export(&raw mut descriptor, handle, ffi::HANDLE_FILE_DESCRIPTOR, 0);
            device.check("cuMemExportToShareableHandle", code)?;
            Ok(OwnedFd::from_raw_fd(descriptor))
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        reaper::free(&self.device, Freed::Mapping(self.address, self.len_bytes));
    }
}

impl Drop for Physical<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle was given or retained once, and is released once. What is mapped stays.
        unsafe { (self.device.functions().physical_release)(self.handle) };
    }
}

/// Lets the kernels of a device use what is mapped in this process.
///
/// # Errors
/// The device does not reach it, or what the driver says.
pub(super) fn allow(
    device: &Device,
    address: DeviceAddress,
    len_bytes: usize,
) -> Result<(), CudaError> {
    let access =
        ffi::AccessDescription { location: location(device), flags: ffi::ACCESS_READ_WRITE };
    // SAFETY: the address is of a variable that outlives the call.
    let code = unsafe { (device.functions().set_access)(address, len_bytes, &access, 1) };
    device.check("cuMemSetAccess", code)
}

fn location(device: &Device) -> ffi::MemoryLocation {
    ffi::MemoryLocation { kind: ffi::LOCATION_DEVICE, id: device.number() }
}
