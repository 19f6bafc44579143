//! Kernels: PTX that the driver compiles for the device, and how they are started.

use std::ffi::{CStr, CString, c_void};

use super::device::Device;
use super::error::CudaError;
use super::ffi;
use super::stream::Stream;

/// Compiled kernels. They stay loaded: unloading them would wait for all that is queued on the device.
#[derive(Debug)]
pub struct Module {
    device: Device,
    raw: *mut ffi::Module,
}

// SAFETY: a module may be used from any thread, and by several at once.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel of a module.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    raw: *mut ffi::Function,
}

// SAFETY: as of a module.
unsafe impl Send for Kernel {}
// SAFETY: as of a module.
unsafe impl Sync for Kernel {}

impl Module {
    /// Has the driver compile PTX, which takes some time.
    ///
    /// # Errors
    /// What the driver says.
    pub fn load(device: &Device, ptx: &str) -> Result<Module, CudaError> {
        let text = CString::new(ptx)
            .map_err(|_| CudaError::Argument("the kernels' text has a zero byte".into()))?;
        let _entered = device.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the address is of a variable, and the text ends with a zero; both outlive the call.
        let code = unsafe { (device.functions().module_load)(&raw mut raw, text.as_ptr().cast()) };
        device.check("cuModuleLoadData", code)?;
        Ok(Module { device: device.clone(), raw })
    }

    /// The kernel of a name.
    ///
    /// # Errors
    /// There is none.
    pub fn kernel(&self, name: &CStr) -> Result<Kernel, CudaError> {
        let _entered = self.device.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the address is of a variable that outlives the call; the module is loaded.
        let code = unsafe {
            (self.device.functions().module_function)(&raw mut raw, self.raw, name.as_ptr())
        };
        self.device.check("cuModuleGetFunction", code)?;
        Ok(Kernel { raw })
    }
}

impl Stream {
    /// Queues a kernel, of `blocks` blocks of `threads` threads, with one argument.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// The argument must be of the kernel's type; what the kernel reads and writes must stay, and nobody else use
    /// it in another way, until it is done. The kernel's module is of this device.
    pub unsafe fn launch<A: Copy>(
        &self,
        kernel: Kernel,
        blocks: u32,
        threads: u32,
        argument: &A,
    ) -> Result<(), CudaError> {
        let device = self.device();
        let _entered = device.enter()?;
        let mut arguments: [*mut c_void; 1] = [(&raw const *argument).cast_mut().cast()];
        // SAFETY: the caller's promise; the driver copies the argument before it returns.
        let code = unsafe {
            (device.functions().launch)(
                kernel.raw,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                self.raw().cast(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        device.check("cuLaunchKernel", code)
    }
}
