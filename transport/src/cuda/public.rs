//! Memory of a GPU that kernels of peers' GPUs read whenever they like, and for as long as any of them may: its owner does
//! not learn when one has read it for the last time.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::device::Device;
use super::error::CudaError;
use super::export::{PeerMemory, Told, Way};
use super::ffi::DeviceAddress;
use super::memory::DeviceMemory;
use super::stream::Stream;
use crate::secure::random_bytes;

/// Such memory, for its owner. Its first bytes say which it is.
#[derive(Debug)]
pub struct PublicMemory {
    memory: ManuallyDrop<Arc<DeviceMemory>>,
    told: Told,
    /// What other processes must have beside that, where it goes by descriptor.
    descriptor: Option<OwnedFd>,
    /// Freeing memory that another process has mapped is undefined: then it goes with this process.
    is_read_elsewhere: AtomicBool,
}

/// Such memory of a peer, which stays as long as this.
#[derive(Debug)]
pub struct OpenedMemory {
    address: DeviceAddress,
    _keep: Keep,
}

/// What keeps it.
#[derive(Debug)]
enum Keep {
    /// Of this process.
    Owned(#[allow(dead_code)] Arc<DeviceMemory>),
    /// Of another.
    Mapped(#[allow(dead_code)] PeerMemory),
}

/// That of this process.
static ALL: Mutex<Vec<(u64, Weak<DeviceMemory>)>> = Mutex::new(Vec::new());

impl PublicMemory {
    /// Its first bytes, which are not the owner's.
    pub const NONCE_BYTES: usize = size_of::<u64>();

    /// Allocates `len_bytes`, which get to other processes by that way; they are zero but for the first
    /// [`PublicMemory::NONCE_BYTES`].
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Device, len_bytes: usize, way: Way) -> Result<PublicMemory, CudaError> {
        let len_bytes = len_bytes.max(Self::NONCE_BYTES);
        let memory = Arc::new(DeviceMemory::alloc_by(device, len_bytes, way)?);
        let random = random_bytes().map_err(|error| CudaError::Argument(error.to_string()))?;
        let nonce = u64::from_le_bytes(random);
        let stream = Stream::new(device)?;
        // SAFETY: the memory has room for both, and the nonce stays until the stream is through.
        unsafe {
            stream.fill(memory.address(), 0, memory.len_bytes())?;
            let from = (&raw const nonce).cast();
            stream.copy_to_device(memory.address(), from, Self::NONCE_BYTES)?;
        }
        stream.synchronize()?;
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, memory)| memory.strong_count() > 0);
        all.push((nonce, Arc::downgrade(&memory)));
        // Those of this process use it without.
        let (exported, descriptor) = memory.export().unwrap_or_else(|error| {
            tracing::info!("no other process reads memory of GPU {}: {error}", device.ordinal());
            (memory.told(), None)
        });
        let (told, memory) = (Told::new(exported, nonce), ManuallyDrop::new(memory));
        Ok(PublicMemory { memory, told, descriptor, is_read_elsewhere: AtomicBool::new(false) })
    }

    /// Its first byte.
    pub fn address(&self) -> DeviceAddress {
        self.memory.address()
    }

    /// What peers must know.
    pub fn told(&self) -> Told {
        self.told
    }

    /// What peers of other processes must be handed beside that, if anything.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.descriptor.as_ref().map(AsFd::as_fd)
    }

    /// Opens a peer's, with the descriptor that was handed over, if one was, and looks whether this device finds it
    /// there.
    ///
    /// # Errors
    /// It does not, or what the driver says.
    pub fn open(
        &self,
        told: &Told,
        descriptor: Option<OwnedFd>,
    ) -> Result<OpenedMemory, CudaError> {
        let device = self.memory.device();
        let own = {
            let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
            let found = all.iter().find(|(nonce, _)| *nonce == told.nonce());
            found.and_then(|(_, memory)| memory.upgrade())
        };
        if own.is_none() {
            // Whom this one reads reads this one.
            self.is_read_elsewhere.store(true, Ordering::Relaxed);
        }
        let opened = PeerMemory::open(device, told.exported(), descriptor, own.is_some())?;
        let Some(address) = opened.address_of(0, told.exported().len_bytes()) else {
            return Err(CudaError::Argument("a peer's memory is shorter than it says".into()));
        };
        let keep = own.map_or(Keep::Mapped(opened), Keep::Owned);
        let stream = Stream::new(device)?;
        let mut found = 0_u64;
        // SAFETY: both have as many bytes and stay until the stream is through.
        unsafe { stream.copy_to_host((&raw mut found).cast(), address, Self::NONCE_BYTES)? };
        stream.synchronize()?;
        if found != told.nonce() {
            return Err(CudaError::Argument(format!(
                "GPU {} does not find in a peer's memory what the peer has written there",
                device.ordinal()
            )));
        }
        Ok(OpenedMemory { address, _keep: keep })
    }
}

impl Drop for PublicMemory {
    fn drop(&mut self) {
        if !self.is_read_elsewhere.load(Ordering::Relaxed) {
            // SAFETY: it is dropped here and nowhere else. Peers of this process keep it as long as they need it.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

impl OpenedMemory {
    /// Its first byte, where kernels of the device that opened it find it.
    pub fn address(&self) -> DeviceAddress {
        self.address
    }
}
