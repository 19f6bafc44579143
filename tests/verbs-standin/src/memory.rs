//! Memory that is registered: by the host's addresses, or by a dma-buf descriptor, whose pages are mapped here.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, PoisonError, RwLock};

use crate::device::setting;
use crate::ffi::{self, MemoryRegion};
use crate::refuse;

const PAGE_BYTES: u64 = 4096;
const ACCESS_REMOTE_READ: c_int = 4;
const KNOWN_ACCESS: c_int = ffi::ACCESS_LOCAL_WRITE | ffi::ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ;
/// `MADV_POPULATE_WRITE`: brings pages in as an adapter's driver does to pin them, or says that it cannot.
const MADV_POPULATE_WRITE: c_int = 23;

static DMA_BUF_READ_BYTES: AtomicU64 = AtomicU64::new(0);
static DMA_BUF_WRITTEN_BYTES: AtomicU64 = AtomicU64::new(0);

/// A protection domain: what is registered in it, by key.
#[derive(Default)]
pub(crate) struct Domain {
    /// Whoever reads or writes registered memory holds it meanwhile, so that none ends before.
    regions: RwLock<HashMap<u32, Region>>,
    /// Queue pairs.
    pub(crate) users: AtomicU32,
}

#[derive(Clone, Copy)]
struct Region {
    /// How requests name its first byte.
    address: u64,
    len_bytes: u64,
    access: c_int,
    /// Where it is in this process.
    at: *mut u8,
    is_dma_buf: bool,
    /// The whole mapping, where it is one of a descriptor.
    mapping: Option<(*mut c_void, usize)>,
}

// SAFETY: the pointers are used by whoever holds the domain's lock.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// Why memory is not read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused;

impl Domain {
    /// Reads what a local key names, behind what is in `into`.
    pub(crate) fn read(
        &self,
        piece: &ffi::ScatterGather,
        into: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        if piece.length == 0 {
            return Ok(());
        }
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let region = regions.get(&piece.lkey).filter(|_| is_local(piece.lkey)).ok_or(Refused)?;
        let len = piece.length as usize;
        let from = region.find(piece.addr, len as u64)?;
        into.reserve(len);
        // SAFETY: the range lies in the region, which stays while the lock is held; there is room for it. Others may
        // write there meanwhile, as they may under an adapter.
        unsafe {
            let end = into.as_mut_ptr().add(into.len());
            std::ptr::copy_nonoverlapping(from, end, len);
            into.set_len(into.len() + len);
        }
        if region.is_dma_buf {
            DMA_BUF_READ_BYTES.fetch_add(len as u64, SeqCst);
        }
        Ok(())
    }

    /// Writes to what a remote key names.
    pub(crate) fn write(&self, key: u32, address: u64, bytes: &[u8]) -> Result<(), Refused> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let region = regions.get(&local_of(key)).filter(|_| !is_local(key)).ok_or(Refused)?;
        if region.access & ffi::ACCESS_REMOTE_WRITE == 0 {
            return Err(Refused);
        }
        let to = region.find(address, bytes.len() as u64)?;
        // SAFETY: as above, but that the range is written.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        if region.is_dma_buf {
            DMA_BUF_WRITTEN_BYTES.fetch_add(bytes.len() as u64, SeqCst);
        }
        Ok(())
    }

    fn add(self: &Arc<Domain>, region: Region) -> *mut MemoryRegion {
        // A key is never used again, and those of peers are others.
        static NEXT: AtomicU32 = AtomicU32::new(0x0100);
        let lkey = NEXT.fetch_add(2, SeqCst);
        let public = MemoryRegion {
            context: std::ptr::null_mut(),
            pd: Arc::as_ptr(self).cast_mut().cast(),
            addr: region.address as *mut c_void,
            length: region.len_bytes as usize,
            handle: lkey,
            lkey,
            rkey: lkey | 1,
        };
        self.regions.write().unwrap_or_else(PoisonError::into_inner).insert(lkey, region);
        Box::into_raw(Box::new(public))
    }
}

fn is_local(key: u32) -> bool {
    key & 1 == 0
}

fn local_of(key: u32) -> u32 {
    key & !1
}

impl Region {
    /// Where a range is, if it lies inside.
    fn find(&self, address: u64, len_bytes: u64) -> Result<*mut u8, Refused> {
        let offset = address.checked_sub(self.address).ok_or(Refused)?;
        let end = offset.checked_add(len_bytes).ok_or(Refused)?;
        if end > self.len_bytes {
            return Err(Refused);
        }
        // SAFETY: the offset lies inside.
        Ok(unsafe { self.at.add(offset as usize) })
    }
}

pub(crate) fn new_domain() -> *mut ffi::ProtectionDomain {
    Arc::into_raw(Arc::<Domain>::default()).cast_mut().cast()
}

/// The domain behind a pointer.
pub(crate) unsafe fn domain(domain: *mut ffi::ProtectionDomain) -> Arc<Domain> {
    let domain: *const Domain = domain.cast_const().cast();
    // SAFETY: the caller has it from `ibv_alloc_pd`, which holds a reference of its own.
    unsafe {
        Arc::increment_strong_count(domain);
        Arc::from_raw(domain)
    }
}

/// Ends a protection domain in which nothing is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_dealloc_pd(pd: *mut ffi::ProtectionDomain) -> c_int {
    // SAFETY: the caller's promise.
    let domain = unsafe { domain(pd) };
    let regions = domain.regions.read().unwrap_or_else(PoisonError::into_inner).len();
    if regions > 0 || domain.users.load(SeqCst) > 0 {
        return libc::EBUSY;
    }
    // SAFETY: the reference of `ibv_alloc_pd`.
    drop(unsafe { Arc::from_raw(pd.cast_const().cast::<Domain>()) });
    0
}

/// Registers memory by its address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_reg_mr(
    pd: *mut ffi::ProtectionDomain,
    start: *mut c_void,
    len_bytes: usize,
    access: c_int,
) -> *mut MemoryRegion {
    if let Err(code) = check_access(access, len_bytes) {
        return refuse(code);
    }
    let page = start as u64 / PAGE_BYTES * PAGE_BYTES;
    let pages_bytes = (start as u64 + len_bytes as u64).next_multiple_of(PAGE_BYTES) - page;
    // SAFETY: it changes no byte of what is mapped there, and fails where nothing is.
    let outcome =
        unsafe { libc::madvise(page as *mut c_void, pages_bytes as usize, MADV_POPULATE_WRITE) };
    if outcome != 0 {
        // Pages that nobody may touch, as those of a GPU, and such as may only be read.
        return refuse(libc::EFAULT);
    }
    let region = Region {
        address: start as u64,
        len_bytes: len_bytes as u64,
        access,
        at: start.cast(),
        is_dma_buf: false,
        mapping: None,
    };
    // SAFETY: the caller's promise.
    unsafe { domain(pd) }.add(region)
}

/// Registers the memory behind a descriptor of the stand-in for the CUDA driver, which requests name from `address` on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_reg_dmabuf_mr(
    pd: *mut ffi::ProtectionDomain,
    offset: u64,
    len_bytes: usize,
    address: u64,
    descriptor: c_int,
    access: c_int,
) -> *mut MemoryRegion {
    if let Err(code) = check_access(access, len_bytes) {
        return refuse(code);
    }
    if setting("NO_DMA_BUF").is_some_and(|value| value == "1") {
        return refuse(libc::EOPNOTSUPP);
    }
    // The kernel asks that both be at the same place in a page.
    if offset % PAGE_BYTES != address % PAGE_BYTES || !is_dma_buf(descriptor) {
        return refuse(libc::EINVAL);
    }
    // SAFETY: it touches no memory.
    let begins = unsafe { libc::lseek(descriptor, 0, libc::SEEK_CUR) };
    let from = begins as u64 + offset / PAGE_BYTES * PAGE_BYTES;
    let in_page = (offset % PAGE_BYTES) as usize;
    let mapped_bytes = in_page + len_bytes;
    if begins < 0 || from + mapped_bytes as u64 > file_bytes(descriptor) {
        return refuse(libc::EINVAL);
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let (shared, from) = (libc::MAP_SHARED, from as libc::off_t);
    // SAFETY: a new mapping, at an address that the system chooses.
    let mapping = unsafe {
        libc::mmap(std::ptr::null_mut(), mapped_bytes, protection, shared, descriptor, from)
    };
    if mapping == libc::MAP_FAILED {
        return refuse(libc::ENOMEM);
    }
    let region = Region {
        address,
        len_bytes: len_bytes as u64,
        access,
        at: mapping.cast::<u8>().wrapping_add(in_page),
        is_dma_buf: true,
        mapping: Some((mapping, mapped_bytes)),
    };
    // SAFETY: the caller's promise.
    unsafe { domain(pd) }.add(region)
}

/// Ends a registration, when nothing reads or writes it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_dereg_mr(region: *mut MemoryRegion) -> c_int {
    // SAFETY: the caller has it from one of the functions above, and ends it once.
    let (public, domain) = unsafe {
        let public = Box::from_raw(region);
        let domain = domain(public.pd);
        (public, domain)
    };
    let mut regions = domain.regions.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(Region { mapping: Some((start, len_bytes)), .. }) = regions.remove(&public.lkey) {
        // SAFETY: it was mapped for this region alone.
        unsafe { libc::munmap(start, len_bytes) };
    }
    0
}

/// How many bytes of dma-bufs this process's devices have read and written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ringtree_verbs_standin_dma_buf_bytes(read: *mut u64, written: *mut u64) {
    // SAFETY: the caller's promise.
    unsafe {
        *read = DMA_BUF_READ_BYTES.load(SeqCst);
        *written = DMA_BUF_WRITTEN_BYTES.load(SeqCst);
    }
}

fn check_access(access: c_int, len_bytes: usize) -> Result<(), c_int> {
    let is_written = access & ffi::ACCESS_REMOTE_WRITE != 0;
    let is_right =
        access & !KNOWN_ACCESS == 0 && (!is_written || access & ffi::ACCESS_LOCAL_WRITE != 0);
    if is_right && len_bytes > 0 { Ok(()) } else { Err(libc::EINVAL) }
}

/// Whether a descriptor is one that the stand-in for the CUDA driver has made.
fn is_dma_buf(descriptor: c_int) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{descriptor}"));
    link.is_ok_and(|link| link.to_string_lossy().starts_with("/memfd:ringtree-standin-"))
}

fn file_bytes(descriptor: c_int) -> u64 {
    std::fs::metadata(format!("/proc/self/fd/{descriptor}")).map_or(0, |file| file.len())
}
