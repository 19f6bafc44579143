//! Memory that another process can map, and the bell that wakes a sleeping thread.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::cuda::DeviceMemory;
use crate::rdma::Regions;

/// What every shared file must be sealed with: no size that can change under a mapping (an access
/// behind a shrunk end would be SIGBUS), and no seal that can be added.
const SEALS: SealFlag =
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// `F_SEAL_FUTURE_WRITE` (Linux 5.1): mappings made from now on cannot write.
const FUTURE_WRITE: i32 = 0x0010;

/// A mapping of a sealed memory file. It has no name in any file system; whoever is to map it
/// gets its descriptor.
#[derive(Debug)]
pub struct SharedMemory {
    start: NonNull<u8>,
    len_bytes: usize,
    file: OwnedFd,
}

// SAFETY: the mapping belongs to the value and stays until it is dropped; what several threads or
// processes do with its bytes is each user's own protocol.
unsafe impl Send for SharedMemory {}
// SAFETY: as above; no method touches the bytes.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Creates `len_bytes` (more than 0) zero bytes that only this mapping can write: whoever gets
    /// the descriptor can only read. Pages are taken when they are first touched.
    ///
    /// # Errors
    /// What the system says, for example that memory or descriptors have run out.
    pub fn create(len_bytes: usize) -> io::Result<SharedMemory> {
        SharedMemory::create_sealed(len_bytes, SEALS | SealFlag::from_bits_retain(FUTURE_WRITE))
    }

    /// As [`SharedMemory::create`], but whoever gets the descriptor can write, too.
    ///
    /// # Errors
    /// As [`SharedMemory::create`].
    pub fn create_writable(len_bytes: usize) -> io::Result<SharedMemory> {
        SharedMemory::create_sealed(len_bytes, SEALS)
    }

    fn create_sealed(len_bytes: usize, seals: SealFlag) -> io::Result<SharedMemory> {
        let file = memfd_create("ringtree", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&file, i64::try_from(len_bytes).map_err(io::Error::other)?)?;
        let memory = SharedMemory::map(file, len_bytes, libc::PROT_READ | libc::PROT_WRITE)?;
        fcntl(&memory.file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(memory)
    }

    /// Maps a file that another process created, for reading.
    ///
    /// # Errors
    /// The file is not sealed or not `len_bytes` long, or what the system says.
    pub fn open(file: OwnedFd, len_bytes: usize) -> io::Result<SharedMemory> {
        SharedMemory::map(checked(file, len_bytes)?, len_bytes, libc::PROT_READ)
    }

    /// As [`SharedMemory::open`], for reading and writing.
    ///
    /// # Errors
    /// As [`SharedMemory::open`], or its owner alone may write it.
    pub fn open_writable(file: OwnedFd, len_bytes: usize) -> io::Result<SharedMemory> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        SharedMemory::map(checked(file, len_bytes)?, len_bytes, protection)
    }

    fn map(file: OwnedFd, len_bytes: usize, protection: i32) -> io::Result<SharedMemory> {
        // SAFETY: a new mapping at an address that the system chooses touches no existing memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range was just mapped. A forked child must not keep the peer's memory alive;
        // large pages are a wish that the system may refuse.
        unsafe {
            libc::madvise(start, len_bytes, libc::MADV_DONTFORK);
            if len_bytes >= 2 << 20 {
                libc::madvise(start, len_bytes, libc::MADV_HUGEPAGE);
            }
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(SharedMemory { start, len_bytes, file })
    }

    /// First byte; aligned to a page.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The descriptor to hand over.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this value and nothing else owns it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

/// Leave for links to let peers read and write a memory in place, until this is dropped.
#[derive(Debug)]
pub struct Registration {
    /// What RDMA devices know it by, dropped before the memory itself.
    regions: Mutex<Vec<Arc<Regions>>>,
    memory: Kind,
}

#[derive(Debug)]
enum Kind {
    Shared(Arc<SharedMemory>),
    Plain { start: NonNull<u8>, len_bytes: usize },
    Device(Arc<DeviceMemory>),
}

// SAFETY: the pointer is to memory that whoever registered it keeps mapped; no method touches the bytes.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers `memory`, which lives at least as long.
    pub fn new(memory: Arc<SharedMemory>) -> Arc<Registration> {
        Registration::of(Kind::Shared(memory))
    }

    /// Registers ordinary memory of this process, which only RDMA devices can let peers reach.
    ///
    /// # Safety
    /// The range must stay mapped until the registration is dropped, and what peers write there while an
    /// operation of this process runs on it must disturb nobody.
    pub unsafe fn of_plain(start: NonNull<u8>, len_bytes: usize) -> Arc<Registration> {
        Registration::of(Kind::Plain { start, len_bytes })
    }

    /// Registers memory of a GPU, which lives at least as long: for the GPUs of this host that can reach it, and for the
    /// RDMA devices, where they and the GPU's driver can do that.
    pub fn of_device(memory: Arc<DeviceMemory>) -> Arc<Registration> {
        Registration::of(Kind::Device(memory))
    }

    fn of(memory: Kind) -> Arc<Registration> {
        Arc::new(Registration { regions: Mutex::default(), memory })
    }

    /// What is registered, if other processes of this host can map it.
    pub fn shared_memory(&self) -> Option<&SharedMemory> {
        match &self.memory {
            Kind::Shared(memory) => Some(memory),
            Kind::Plain { .. } | Kind::Device(_) => None,
        }
    }

    /// What is registered, if it is of a GPU.
    pub fn device_memory(&self) -> Option<&Arc<DeviceMemory>> {
        match &self.memory {
            Kind::Device(memory) => Some(memory),
            Kind::Shared(_) | Kind::Plain { .. } => None,
        }
    }

    /// The address of its first byte.
    pub(crate) fn start(&self) -> *mut u8 {
        match &self.memory {
            Kind::Shared(memory) => memory.start(),
            Kind::Plain { start, .. } => start.as_ptr(),
            Kind::Device(memory) => memory.address() as *mut u8,
        }
    }

    pub(crate) fn len_bytes(&self) -> usize {
        match &self.memory {
            Kind::Shared(memory) => memory.len_bytes(),
            Kind::Plain { len_bytes, .. } => *len_bytes,
            Kind::Device(memory) => memory.len_bytes(),
        }
    }

    /// The regions that a registry of RDMA devices has made of it, or makes now.
    pub(crate) fn regions(
        &self,
        registry: u64,
        make: impl FnOnce() -> Option<Regions>,
    ) -> Option<Arc<Regions>> {
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = regions.iter().find(|regions| regions.registry() == registry) {
            return Some(made.clone());
        }
        let made = Arc::new(make()?);
        regions.push(made.clone());
        Some(made)
    }
}

/// The file, if it is sealed and `len_bytes` long.
fn checked(file: OwnedFd, len_bytes: usize) -> io::Result<OwnedFd> {
    let seals = SealFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GET_SEALS)?);
    if !seals.contains(SEALS) {
        return Err(io::Error::other("the peer's shared memory is not sealed"));
    }
    let file = File::from(file);
    let actual = file.metadata()?.len();
    if actual != len_bytes as u64 {
        let message = format!("the peer's shared memory has {actual} bytes, not {len_bytes}");
        return Err(io::Error::other(message));
    }
    Ok(file.into())
}

/// Wakes a thread that sleeps on its descriptor.
#[derive(Debug)]
pub struct Bell(EventFd);

impl Bell {
    /// A silent bell.
    ///
    /// # Errors
    /// Descriptors have run out.
    pub fn new() -> io::Result<Bell> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Bell(EventFd::from_value_and_flags(0, flags)?))
    }

    /// Makes the descriptor readable. A full counter is readable already.
    pub fn ring(&self) {
        let _ = self.0.write(1);
    }

    /// Makes the descriptor silent again.
    pub fn silence(&self) {
        let _ = self.0.read();
    }

    /// What to poll for readability.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_what_the_owner_wrote_and_cannot_map_for_writing() {
        let memory = SharedMemory::create(8192).unwrap();
        let fd = || memory.descriptor().try_clone_to_owned().unwrap();
        let reader = SharedMemory::open(fd(), 8192).unwrap();
        // SAFETY: both mappings are 8192 bytes long and nobody else uses them.
        unsafe {
            memory.start().add(5000).write(7);
            assert_eq!(reader.start().add(5000).read(), 7);
        }
        assert!(SharedMemory::open_writable(fd(), 8192).is_err());
    }

    #[test]
    fn writable_memory_is_written_by_both() {
        let memory = SharedMemory::create_writable(8192).unwrap();
        let file = memory.descriptor().try_clone_to_owned().unwrap();
        let other = SharedMemory::open_writable(file, 8192).unwrap();
        // SAFETY: both mappings are 8192 bytes long and nobody else uses them.
        unsafe {
            other.start().add(5000).write(7);
            assert_eq!(memory.start().add(5000).read(), 7);
        }
    }

    #[test]
    fn a_file_of_another_size_or_without_seals_is_refused() {
        let memory = SharedMemory::create(4096).unwrap();
        let fd = memory.descriptor().try_clone_to_owned().unwrap();
        assert!(SharedMemory::open(fd, 8192).is_err());
        let open =
            memfd_create("open", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        nix::unistd::ftruncate(&open, 4096).unwrap();
        let refused = SharedMemory::open(open, 4096).unwrap_err();
        assert!(refused.to_string().contains("not sealed"), "{refused}");
    }
}
