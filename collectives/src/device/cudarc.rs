//! Streams and slices of the crate `cudarc` on calls, and memory of the library in cudarc's (feature `cudarc`).
//!
//! ```no_run
//! use cudarc::driver::CudaContext;
//! use ringtree::device::cudarc::{Slice, stream_of};
//! use ringtree::{Communicator, Op};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let comm = Communicator::from_env()?;
//! let device = comm.device(0)?; // before the first use of cudarc
//! let theirs = CudaContext::new(0)?.new_stream()?;
//! let stream = stream_of(&device, &theirs)?;
//! let mut gradients = theirs.alloc_zeros::<f32>(1_000_000)?;
//! comm.on(&stream).all_reduce(&mut Slice::new(&mut gradients, &theirs), Op::Sum)?;
//! # Ok(())
//! # }
//! ```
//!
//! **Which driver.** cudarc looks for the driver by itself when it is first used, and panics where it finds none. Open the
//! GPU by [`Communicator::device`](crate::Communicator::device) before that: without a driver it returns an error, and
//! a library that `RINGTREE_CUDA_LIBRARY` names is then the one that cudarc finds, if it calls itself `libcuda.so.1`.
//! Where cudarc has another one nevertheless, [`stream_of`] says so.

use std::marker::PhantomData;
use std::sync::Arc;

use ::cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, SyncOnDrop};
use ringtree_transport::cuda::{Device, DeviceAddress, Stream};

use super::{DeviceBuffer, DeviceMemory, DeviceSpan};
use crate::{Element, Error};

/// What cudarc calls a thread's own stream, which is another one on each thread.
const PER_THREAD_STREAM: usize = 2;

/// A stream of cudarc, for [`Communicator::on`](crate::Communicator::on). It is kept as long as what is returned.
///
/// # Errors
/// [`Error::Argument`] if it is not of the device's primary context (of another device, by another driver, or in a context
/// that the program made by itself), or a thread's own.
pub fn stream_of(device: &Device, stream: &Arc<CudaStream>) -> Result<Stream, Error> {
    let (theirs, ordinal) = (stream.context(), device.ordinal());
    if theirs.cu_ctx().cast() != device.context() {
        return Err(Error::Argument(format!(
            "the stream of cudarc, of its device {}, is not of the primary context of GPU {ordinal} of {}: open the \
             GPU before cudarc is first used, then make the context by CudaContext::new({ordinal})",
            theirs.ordinal(),
            device.driver().library().display(),
        )));
    }
    let raw = stream.cu_stream();
    if raw as usize == PER_THREAD_STREAM {
        let what =
            "cudarc's stream of each thread takes no collectives: use CudaContext::new_stream";
        return Err(Error::Argument(what.to_owned()));
    }
    // SAFETY: it is a stream of the device's primary context, which lives as long as what is kept.
    Ok(unsafe { Stream::kept(device, raw.cast(), stream.clone()) })
}

/// A slice or view of cudarc, lent to a call on a stream of cudarc.
///
/// When it is made, the stream is told to wait for what uses the slice so far; when it is dropped, behind the call that
/// was queued meanwhile, cudarc notes that what uses the slice later waits for that. Make it for one call, as above.
#[derive(Debug)]
pub struct Slice<'a, T> {
    address: DeviceAddress,
    count: usize,
    stream: &'a CudaStream,
    is_read_only: bool,
    _until_queued: SyncOnDrop<'a>,
    element: PhantomData<T>,
}

impl<'a, T: Element + DeviceRepr> Slice<'a, T> {
    /// A slice that the call reads and writes.
    pub fn new(slice: &'a mut impl DevicePtrMut<T>, stream: &'a CudaStream) -> Slice<'a, T> {
        let count = slice.len();
        let (address, until_queued) = slice.device_ptr_mut(stream);
        Slice::of(address, count, stream, false, until_queued)
    }

    /// A slice that the call only reads.
    pub fn input(slice: &'a impl DevicePtr<T>, stream: &'a CudaStream) -> Slice<'a, T> {
        let count = slice.len();
        let (address, until_queued) = slice.device_ptr(stream);
        Slice::of(address, count, stream, true, until_queued)
    }

    fn of(
        address: DeviceAddress,
        count: usize,
        stream: &'a CudaStream,
        is_read_only: bool,
        until_queued: SyncOnDrop<'a>,
    ) -> Slice<'a, T> {
        let element = PhantomData;
        Slice { address, count, stream, is_read_only, _until_queued: until_queued, element }
    }
}

// SAFETY: the slice is borrowed until the call is queued, and only on that stream. cudarc frees it, and lets others use
// it, behind what was queued there by then.
unsafe impl<T: Element + DeviceRepr> DeviceBuffer<T> for Slice<'_, T> {
    fn span(&self) -> DeviceSpan {
        DeviceSpan {
            only_on: Some(self.stream.cu_stream().cast()),
            is_read_only: self.is_read_only,
            ..DeviceSpan::new(self.address, self.count)
        }
    }
}

/// Memory of the library, lent to copies and kernels of cudarc, which are in order with what else is queued in a
/// stream.
#[derive(Debug)]
pub struct Lent<'a, T> {
    memory: &'a DeviceMemory<T>,
    stream: &'a Arc<CudaStream>,
}

impl<'a, T: Element> Lent<'a, T> {
    /// Memory that is written and read in this stream.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is not of the stream's device.
    pub fn new(memory: &'a DeviceMemory<T>, stream: &'a Arc<CudaStream>) -> Result<Self, Error> {
        stream_of(memory.device(), stream)?;
        Ok(Lent { memory, stream })
    }

    /// Its address, for what is queued in a stream of cudarc: another one is put behind the memory's, and waited for.
    fn address<'b>(&'b self, stream: &'b CudaStream) -> (DeviceAddress, SyncOnDrop<'b>) {
        if stream.cu_stream() == self.stream.cu_stream() {
            return (self.memory.address(), SyncOnDrop::Sync(None));
        }
        stream.context().record_err(stream.join(self.stream));
        (self.memory.address(), SyncOnDrop::sync_stream(stream))
    }
}

impl<T: Element> DeviceSlice<T> for Lent<'_, T> {
    fn len(&self) -> usize {
        self.memory.len()
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.stream
    }
}

impl<T: Element> DevicePtr<T> for Lent<'_, T> {
    fn device_ptr<'b>(&'b self, stream: &'b CudaStream) -> (DeviceAddress, SyncOnDrop<'b>) {
        self.address(stream)
    }
}

impl<T: Element> DevicePtrMut<T> for Lent<'_, T> {
    fn device_ptr_mut<'b>(&'b mut self, stream: &'b CudaStream) -> (DeviceAddress, SyncOnDrop<'b>) {
        self.address(stream)
    }
}
