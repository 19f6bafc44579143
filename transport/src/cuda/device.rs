//! One GPU, as this process uses it: by its primary context, which it shares with whatever else in the process
//! uses the runtime interface.

use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::driver::Driver;
use super::error::CudaError;
use super::ffi::{self, Code, DeviceNumber, Functions};

/// What the kernels are compiled for (`collectives/src/device/kernels/generate.py`).
const LEAST_CAPABILITY: (u32, u32) = (7, 5);

/// A handle of a GPU. Clones are of the same one.
#[derive(Clone)]
pub struct Device(Arc<Open>);

struct Open {
    driver: &'static Driver,
    ordinal: u32,
    number: DeviceNumber,
    context: *mut ffi::Context,
}

// SAFETY: a context may be used from any thread, and by several at once; the driver locks what needs it.
unsafe impl Send for Open {}
// SAFETY: as above.
unsafe impl Sync for Open {}

impl Device {
    /// The GPU with this number, among those that the driver shows to this process.
    ///
    /// # Errors
    /// No driver, no such device, or what the driver says.
    pub fn open(ordinal: u32, library: Option<&Path>) -> Result<Device, CudaError> {
        let driver = Driver::open(library)?;
        if ordinal >= driver.devices() {
            return Err(CudaError::NoDevice { ordinal, count: driver.devices() });
        }
        let (mut number, mut context) = (0, std::ptr::null_mut());
        // SAFETY: the addresses are of variables that outlive the calls.
        unsafe {
            let code = (driver.functions.device)(&raw mut number, ordinal as c_int);
            driver.check("cuDeviceGet", ordinal, code)?;
            let code = (driver.functions.retain_context)(&raw mut context, number);
            driver.check("cuDevicePrimaryCtxRetain", ordinal, code)?;
        }
        let device = Device(Arc::new(Open { driver, ordinal, number, context }));
        let capability = device.compute_capability()?;
        if capability < LEAST_CAPABILITY {
            let name = device.name();
            return Err(CudaError::OldDevice { ordinal, name, capability });
        }
        Ok(device)
    }

    /// Its number.
    pub fn ordinal(&self) -> u32 {
        self.0.ordinal
    }

    /// The driver that it belongs to.
    pub fn driver(&self) -> &'static Driver {
        self.0.driver
    }

    /// Its primary context, a `CUcontext`.
    pub fn context(&self) -> *mut c_void {
        self.0.context.cast()
    }

    /// What its maker calls it.
    pub fn name(&self) -> String {
        self.text(self.functions().device_name)
    }

    /// Its address on the PCI bus, `domain:bus:device.function`.
    pub fn bus_id(&self) -> String {
        self.text(self.functions().device_bus_id)
    }

    /// Its compute capability.
    ///
    /// # Errors
    /// What the driver says.
    pub fn compute_capability(&self) -> Result<(u32, u32), CudaError> {
        let major = self.attribute(ffi::ATTRIBUTE_CAPABILITY_MAJOR)?;
        Ok((major as u32, self.attribute(ffi::ATTRIBUTE_CAPABILITY_MINOR)? as u32))
    }

    /// Bytes of memory that it has.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory_bytes(&self) -> Result<usize, CudaError> {
        let mut len_bytes = 0;
        // SAFETY: the address is of a variable that outlives the call.
        let code = unsafe { (self.functions().device_memory)(&raw mut len_bytes, self.0.number) };
        self.check("cuDeviceTotalMem", code)?;
        Ok(len_bytes)
    }

    /// Whether kernels of this one may use the memory of another.
    ///
    /// # Errors
    /// What the driver says.
    pub fn can_access(&self, other: &Device) -> Result<bool, CudaError> {
        let mut can: c_int = 0;
        // SAFETY: the address is of a variable that outlives the call.
        let code = unsafe {
            (self.functions().can_access_peer)(&raw mut can, self.0.number, other.0.number)
        };
        self.check("cuDeviceCanAccessPeer", code)?;
        Ok(can != 0)
    }

    /// Lets its kernels use the memory of another GPU of this process.
    ///
    /// # Errors
    /// They cannot, or what the driver says.
    pub(super) fn reach(&self, ordinal: u32) -> Result<(), CudaError> {
        if ordinal == self.ordinal() {
            return Ok(());
        }
        let other = Device::open(ordinal, None)?;
        if !self.can_access(&other)? {
            let what = format!("GPU {} cannot reach the memory of GPU {ordinal}", self.ordinal());
            return Err(CudaError::Argument(what));
        }
        let _entered = self.enter()?;
        // SAFETY: the other's context is retained. It stays so, since access outlives this call.
        let code = unsafe { (self.functions().enable_peer_access)(other.0.context, 0) };
        std::mem::forget(other);
        match code {
            ffi::PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            code => self.check("cuCtxEnablePeerAccess", code),
        }
    }

    /// Whether its memory can be handed to other drivers as a dma-buf.
    ///
    /// # Errors
    /// What the driver says.
    pub fn has_dma_buf(&self) -> Result<bool, CudaError> {
        Ok(self.attribute(ffi::ATTRIBUTE_DMA_BUF)? != 0)
    }

    pub(super) fn attribute(&self, attribute: c_int) -> Result<c_int, CudaError> {
        let mut value: c_int = 0;
        // SAFETY: the address is of a variable that outlives the call.
        let code = unsafe {
            (self.functions().device_attribute)(&raw mut value, attribute, self.0.number)
        };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value)
    }

    fn text(
        &self,
        function: unsafe extern "C" fn(*mut c_char, c_int, DeviceNumber) -> Code,
    ) -> String {
        let mut text = [0_u8; 256];
        // SAFETY: the text has room for as many bytes as the call is told, and its last stays zero.
        let code = unsafe { function(text.as_mut_ptr().cast(), 255, self.0.number) };
        if code != ffi::SUCCESS {
            return "unknown".to_owned();
        }
        String::from_utf8_lossy(text.split(|byte| *byte == 0).next().unwrap_or(&[])).into_owned()
    }

    /// By what the driver knows it.
    pub(super) fn number(&self) -> DeviceNumber {
        self.0.number
    }

    #[inline]
    pub(super) fn functions(&self) -> &'static Functions {
        &self.0.driver.functions
    }

    #[inline]
    pub(super) fn check(&self, call: &'static str, code: Code) -> Result<(), CudaError> {
        self.0.driver.check(call, self.0.ordinal, code)
    }

    pub(super) fn error(&self, call: &'static str, code: Code) -> CudaError {
        self.0.driver.error(call, self.0.ordinal, code)
    }

    /// Makes its context the current one of this thread, until the guard is dropped.
    #[inline]
    pub(super) fn enter(&self) -> Result<Entered<'_>, CudaError> {
        // SAFETY: the context is retained as long as this lives.
        let code = unsafe { (self.functions().push_context)(self.0.context) };
        self.check("cuCtxPushCurrent", code)?;
        Ok(Entered(self))
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        self.0.number == other.0.number
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.0.ordinal)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: it was retained once, and is released once.
        unsafe { (self.driver.functions.release_context)(self.number) };
    }
}

/// The thread's current context is the device's.
pub(super) struct Entered<'a>(&'a Device);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: the address is of a variable that outlives the call; guards are dropped in the reverse order
        // of their making.
        unsafe { (self.0.functions().pop_context)(&raw mut context) };
    }
}
