//! Streams, in which a GPU does one thing after the other, and events, which tell how far it is.

use std::any::Any;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use super::device::Device;
use super::error::CudaError;
use super::ffi::{self, DeviceAddress};

/// A queue of work of one GPU.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    raw: *mut ffi::Stream,
    owner: Owner,
}

/// Whose a stream is.
#[derive(Debug)]
enum Owner {
    /// It was made here.
    This,
    /// The program lends it, and keeps it as long.
    Program,
    /// Another library's, which lives as long as this.
    Kept(#[allow(dead_code)] Arc<dyn Any + Send + Sync>),
}

// SAFETY: a stream may be used from any thread, and by several at once; the driver locks what needs it.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream, which does not wait for the null stream, nor that for it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Device) -> Result<Stream, CudaError> {
        Stream::with_priority(device, 0)
    }

    /// As [`Stream::new`], before all others. A device has few queues in hardware, which streams share, and not with those
    /// of another priority: what other streams wait for must not come to lie behind them.
    ///
    /// # Errors
    /// What the driver says.
    pub fn urgent(device: &Device) -> Result<Stream, CudaError> {
        Stream::with_priority(device, ffi::STREAM_HIGHEST_PRIORITY)
    }

    fn with_priority(device: &Device, priority: c_int) -> Result<Stream, CudaError> {
        let _entered = device.enter()?;
        let (mut raw, flags) = (std::ptr::null_mut(), ffi::STREAM_NON_BLOCKING);
        // SAFETY: the address is of a variable that outlives the call.
        let code = unsafe { (device.functions().stream_create)(&raw mut raw, flags, priority) };
        device.check("cuStreamCreateWithPriority", code)?;
        Ok(Stream { device: device.clone(), raw, owner: Owner::This })
    }

    /// A stream of the program: a `CUstream`, or a `cudaStream_t`, which is the same.
    ///
    /// # Safety
    /// It must be a stream of the device, or null, and live as long as this.
    pub unsafe fn of_raw(device: &Device, raw: *mut c_void) -> Stream {
        Stream { device: device.clone(), raw: raw.cast(), owner: Owner::Program }
    }

    /// A stream of another library, which lives as long as `keep`.
    ///
    /// # Safety
    /// It must be a stream of the device's primary context, or null, and live as long as `keep`.
    pub unsafe fn kept(
        device: &Device,
        raw: *mut c_void,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Stream {
        Stream { device: device.clone(), raw: raw.cast(), owner: Owner::Kept(keep) }
    }

    /// The `CUstream`.
    pub fn raw(&self) -> *mut c_void {
        self.raw.cast()
    }

    /// Whose it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits until all that was queued is done.
    ///
    /// # Errors
    /// What went wrong in any of it.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let _entered = self.device.enter()?;
        // SAFETY: the stream lives.
        let code = unsafe { (self.device.functions().stream_synchronize)(self.raw) };
        self.device.check("cuStreamSynchronize", code)
    }

    /// Whether what is queued is recorded into a graph instead of being done.
    ///
    /// # Errors
    /// What the driver says.
    pub fn is_capturing(&self) -> Result<bool, CudaError> {
        let _entered = self.device.enter()?;
        let mut status: c_int = 0;
        // SAFETY: the address is of a variable that outlives the call.
        let code =
            unsafe { (self.device.functions().stream_is_capturing)(self.raw, &raw mut status) };
        self.device.check("cuStreamIsCapturing", code)?;
        Ok(status != 0)
    }

    /// What is queued from now on waits until the word at an address is at least `value`, cyclically.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// The word must stay where it is until then.
    pub unsafe fn wait_for_word(&self, word: DeviceAddress, value: u32) -> Result<(), CudaError> {
        let _entered = self.device.enter()?;
        let flags = ffi::STREAM_WAIT_VALUE_GEQ;
        // SAFETY: the caller's promise.
        let code =
            unsafe { (self.device.functions().stream_wait_value)(self.raw, word, value, flags) };
        self.device.check("cuStreamWaitValue32", code)
    }

    /// What is queued from now on waits for what an event marks, now or in another stream of the device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn wait_for_event(&self, event: &Event) -> Result<(), CudaError> {
        let _entered = self.device.enter()?;
        // SAFETY: both live; the driver keeps of the event what it needs.
        let code = unsafe { (self.device.functions().stream_wait_event)(self.raw, event.raw, 0) };
        self.device.check("cuStreamWaitEvent", code)
    }

    /// Copies between device addresses: of memory of this device, and of pinned memory of the host.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// Both ranges must stay, and nobody else use them in another way, until this is done.
    pub unsafe fn copy(
        &self,
        to: DeviceAddress,
        from: DeviceAddress,
        len_bytes: usize,
    ) -> Result<(), CudaError> {
        let _entered = self.device.enter()?;
        // SAFETY: the caller's promise.
        let code = unsafe { (self.device.functions().copy)(to, from, len_bytes, self.raw) };
        self.device.check("cuMemcpyAsync", code)
    }

    /// Copies memory of the host to the device.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// As [`Stream::copy`].
    pub unsafe fn copy_to_device(
        &self,
        to: DeviceAddress,
        from: *const u8,
        len_bytes: usize,
    ) -> Result<(), CudaError> {
        let _entered = self.device.enter()?;
        let functions = self.device.functions();
        // SAFETY: the caller's promise.
        let code = unsafe { (functions.copy_to_device)(to, from.cast(), len_bytes, self.raw) };
        self.device.check("cuMemcpyHtoDAsync", code)
    }

    /// Copies memory of the device to the host.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// As [`Stream::copy`].
    pub unsafe fn copy_to_host(
        &self,
        to: *mut u8,
        from: DeviceAddress,
        len_bytes: usize,
    ) -> Result<(), CudaError> {
        let _entered = self.device.enter()?;
        let functions = self.device.functions();
        // SAFETY: the caller's promise.
        let code = unsafe { (functions.copy_to_host)(to.cast(), from, len_bytes, self.raw) };
        self.device.check("cuMemcpyDtoHAsync", code)
    }

    /// Sets bytes.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// As [`Stream::copy`].
    pub unsafe fn fill(
        &self,
        to: DeviceAddress,
        byte: u8,
        len_bytes: usize,
    ) -> Result<(), CudaError> {
        let _entered = self.device.enter()?;
        // SAFETY: the caller's promise.
        let code = unsafe { (self.device.functions().fill)(to, byte, len_bytes, self.raw) };
        self.device.check("cuMemsetD8Async", code)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::This)
            && let Ok(_entered) = self.device.enter()
        {
            // SAFETY: it was made here and is given back once; what is queued is done first.
            unsafe { (self.device.functions().stream_destroy)(self.raw) };
        }
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub struct Event {
    device: Device,
    raw: *mut ffi::Event,
}

// SAFETY: as of a stream.
unsafe impl Send for Event {}
// SAFETY: as of a stream.
unsafe impl Sync for Event {}

impl Event {
    /// An event that has not been recorded, which counts as done.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Device) -> Result<Event, CudaError> {
        Event::with_flags(device, ffi::EVENT_DISABLE_TIMING)
    }

    /// As [`Event::new`], for an event that knows when it was reached, which takes the device longer.
    ///
    /// # Errors
    /// What the driver says.
    pub fn timed(device: &Device) -> Result<Event, CudaError> {
        Event::with_flags(device, ffi::EVENT_DEFAULT)
    }

    fn with_flags(device: &Device, flags: c_uint) -> Result<Event, CudaError> {
        let _entered = device.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the address is of a variable that outlives the call.
        let code = unsafe { (device.functions().event_create)(&raw mut raw, flags) };
        device.check("cuEventCreate", code)?;
        Ok(Event { device: device.clone(), raw })
    }

    /// Marks what has been queued in a stream so far.
    ///
    /// # Errors
    /// What the driver says.
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        let _entered = self.device.enter()?;
        // SAFETY: both live.
        let code = unsafe { (self.device.functions().event_record)(self.raw, stream.raw) };
        self.device.check("cuEventRecord", code)
    }

    /// Whether what it marks is done.
    ///
    /// # Errors
    /// What went wrong in any of it.
    #[inline]
    pub fn is_done(&self) -> Result<bool, CudaError> {
        let _entered = self.device.enter()?;
        // SAFETY: it lives.
        match unsafe { (self.device.functions().event_query)(self.raw) } {
            ffi::SUCCESS => Ok(true),
            ffi::NOT_READY => Ok(false),
            code => Err(self.device.error("cuEventQuery", code)),
        }
    }

    /// Milliseconds from an earlier event of the device to this one; both are timed, and reached.
    ///
    /// # Errors
    /// What the driver says.
    pub fn ms_since(&self, earlier: &Event) -> Result<f32, CudaError> {
        let _entered = self.device.enter()?;
        let mut ms = 0.0;
        // SAFETY: both live; the address is of a variable that outlives the call.
        let code =
            unsafe { (self.device.functions().event_elapsed)(&raw mut ms, earlier.raw, self.raw) };
        self.device.check("cuEventElapsedTime", code)?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: it was made here and is given back once.
            unsafe { (self.device.functions().event_destroy)(self.raw) };
        }
    }
}
