//! Buffers on GPUs: what the library allocates, and what the program has.

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use ringtree_transport::cuda::{self, Device, DeviceAddress, Stream};
use ringtree_transport::memory::Registration;

use crate::{Element, Error};

/// Elements on a GPU, for the calls of [`OnStream`](super::OnStream).
///
/// # Safety
/// What [`DeviceBuffer::span`] names must be memory of a GPU with room for that many elements, which stays until
/// `keep` is dropped, or, where that is nothing, until what was queued on it before is done.
pub unsafe trait DeviceBuffer<T: Element> {
    /// Where the elements are.
    fn span(&self) -> DeviceSpan;
}

/// Where the elements of a [`DeviceBuffer`] are.
#[derive(Clone)]
pub struct DeviceSpan {
    /// The first one.
    pub address: DeviceAddress,
    /// How many.
    pub count: usize,
    /// Keeps them, where something must.
    pub keep: Option<Arc<dyn Any + Send + Sync>>,
    /// The only stream (a `CUstream`) on which they may be used, where others would not be in order with those who
    /// use them before and after.
    pub only_on: Option<*mut c_void>,
    /// Whether calls may only read them.
    pub is_read_only: bool,
}

impl DeviceSpan {
    /// Whether some of its elements, of so many bytes each, are those of another span.
    pub(super) fn overlaps(&self, other: &DeviceSpan, element_bytes: usize) -> bool {
        let end = |span: &DeviceSpan| span.address + (span.count * element_bytes) as u64;
        let has_any = self.count > 0 && other.count > 0;
        has_any && self.address < end(other) && other.address < end(self)
    }

    /// Elements that calls may read and write on any stream.
    pub fn new(address: DeviceAddress, count: usize) -> DeviceSpan {
        DeviceSpan { address, count, keep: None, only_on: None, is_read_only: false }
    }
}

/// Elements in memory that the library has allocated on a GPU, or a part of them. Made by
/// [`Communicator::alloc_device`](crate::Communicator::alloc_device). The memory is freed with the last part of it, and
/// not while a call is under way.
pub struct DeviceMemory<T> {
    memory: Arc<Shared>,
    /// The first element, among those of the memory.
    first: usize,
    count: usize,
    element: PhantomData<T>,
}

/// The memory, and leave for the peers of the communicator that allocated it to read it in place.
struct Shared {
    memory: Arc<cuda::DeviceMemory>,
    registration: Arc<Registration>,
}

impl<T: Element> DeviceMemory<T> {
    pub(crate) fn alloc(device: &Device, count: usize) -> Result<DeviceMemory<T>, Error> {
        let len_bytes = count.saturating_mul(size_of::<T>());
        let memory = Arc::new(cuda::DeviceMemory::alloc_shared(device, len_bytes)?);
        let registration = Registration::of_device(memory.clone());
        let memory = Arc::new(Shared { memory, registration });
        Ok(DeviceMemory { memory, first: 0, count, element: PhantomData })
    }

    pub(crate) fn registration(&self) -> &Arc<Registration> {
        &self.memory.registration
    }

    /// Some of its elements, in the same memory.
    ///
    /// # Panics
    /// If it has no such elements.
    pub fn part(&self, elements: Range<usize>) -> DeviceMemory<T> {
        let is_within = elements.start <= elements.end && elements.end <= self.count;
        assert!(is_within, "elements {elements:?} of {}", self.count);
        let (first, count) = (self.first + elements.start, elements.len());
        DeviceMemory { memory: self.memory.clone(), first, count, element: PhantomData }
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        self.memory.memory.device()
    }

    /// Its first element, for kernels of the program's own.
    pub fn address(&self) -> DeviceAddress {
        self.memory.memory.address() + (self.first * size_of::<T>()) as u64
    }

    /// Copies all of its elements from the host, behind what is queued in the stream, and waits for that.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are more elements, or fewer; or what the driver says.
    pub fn write(&mut self, stream: &Stream, elements: &[T]) -> Result<(), Error> {
        self.check(elements.len())?;
        if !elements.is_empty() {
            let (from, len_bytes) = (elements.as_ptr().cast(), size_of_val(elements));
            // SAFETY: both have as many bytes, and stay until the stream is through with them, below.
            unsafe { stream.copy_to_device(self.address(), from, len_bytes)? };
        }
        Ok(stream.synchronize()?)
    }

    /// Copies all of its elements to the host, behind what is queued in the stream, and waits for that.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is room for more elements, or fewer; or what the driver says.
    pub fn read(&self, stream: &Stream, elements: &mut [T]) -> Result<(), Error> {
        self.check(elements.len())?;
        if !elements.is_empty() {
            let (into, len_bytes) = (elements.as_mut_ptr().cast(), size_of_val(elements));
            // SAFETY: both have as many bytes, and stay until the stream is through with them, below; any bytes are
            // elements.
            unsafe { stream.copy_to_host(into, self.address(), len_bytes)? };
        }
        Ok(stream.synchronize()?)
    }

    /// Copies all of its elements from other memory of the same GPU, behind what is queued in the stream, and does not
    /// wait for that.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are more elements, or fewer, or not all is of one GPU; or what the driver says.
    pub fn copy_from(&mut self, stream: &Stream, other: &DeviceMemory<T>) -> Result<(), Error> {
        self.check(other.len())?;
        self.check_stream(stream)?;
        other.check_stream(stream)?;
        if !self.is_empty() {
            let len_bytes = self.count * size_of::<T>();
            // SAFETY: both have as many bytes of the stream's device, and are given back when it is through with them.
            unsafe { stream.copy(self.address(), other.address(), len_bytes)? };
        }
        Ok(())
    }

    /// Sets all bytes of its elements to zero, behind what is queued in the stream, and does not wait for that.
    ///
    /// # Errors
    /// [`Error::Argument`] if the stream is of another GPU; or what the driver says.
    pub fn zero(&mut self, stream: &Stream) -> Result<(), Error> {
        self.check_stream(stream)?;
        if !self.is_empty() {
            // SAFETY: it has as many bytes of the stream's device, and is given back when that is through with them.
            unsafe { stream.fill(self.address(), 0, self.count * size_of::<T>())? };
        }
        Ok(())
    }

    fn check_stream(&self, stream: &Stream) -> Result<(), Error> {
        let (mine, theirs) = (self.device(), stream.device());
        if mine == theirs {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "the buffer is memory of GPU {}, and the stream one of GPU {}: give a stream of the buffer's",
            mine.ordinal(),
            theirs.ordinal()
        )))
    }

    fn check(&self, count: usize) -> Result<(), Error> {
        if count == self.count {
            return Ok(());
        }
        let whole = self.count;
        Err(Error::Argument(format!(
            "the buffer has {whole} elements, and that of the host {count}"
        )))
    }
}

// SAFETY: the span is the allocation's, which it keeps.
unsafe impl<T: Element> DeviceBuffer<T> for DeviceMemory<T> {
    fn span(&self) -> DeviceSpan {
        let keep: Arc<dyn Any + Send + Sync> = self.memory.clone();
        DeviceSpan { keep: Some(keep), ..DeviceSpan::new(self.address(), self.count) }
    }
}

impl<T> fmt::Debug for DeviceMemory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceMemory")
            .field("device", self.memory.memory.device())
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// Elements on a GPU that are somebody else's: a part of a buffer, or memory that another library allocated.
#[derive(Clone, Copy, Debug)]
pub struct DevicePointer<T> {
    address: DeviceAddress,
    count: usize,
    element: PhantomData<T>,
}

impl<T: Element> DevicePointer<T> {
    /// The `count` elements from an address (a `CUdeviceptr`) on.
    ///
    /// # Safety
    /// They must be memory of the GPU whose streams it is used on, and stay until what was queued on them is done;
    /// nothing else may write them, nor read what is written to them, meanwhile.
    pub unsafe fn new(address: DeviceAddress, count: usize) -> DevicePointer<T> {
        DevicePointer { address, count, element: PhantomData }
    }
}

// SAFETY: who made it vouches for it.
unsafe impl<T: Element> DeviceBuffer<T> for DevicePointer<T> {
    fn span(&self) -> DeviceSpan {
        DeviceSpan::new(self.address, self.count)
    }
}
