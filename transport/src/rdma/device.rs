//! An open RDMA device: its protection domain, its limits, and memory that is registered with it.

use std::ffi::{CStr, CString, c_int};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use nix::sys::resource::{Resource, getrlimit};

use super::RdmaError;
use super::ffi::{self, Functions};

/// What is opened unless something else is named.
const LIBRARY: &str = "libibverbs.so.1";

/// The library of this process.
struct Library {
    functions: Functions,
    path: PathBuf,
}

/// The library, opened when it is first asked for: the one that is named, or the one that the system finds. A
/// process has one, which whoever names none gets, too.
pub(super) fn library(named: Option<&Path>) -> Result<&'static Functions, RdmaError> {
    static OPEN: OnceLock<Result<Library, RdmaError>> = OnceLock::new();
    let asked = named.unwrap_or(Path::new(LIBRARY));
    let library = OPEN.get_or_init(|| Library::open(asked)).as_ref().map_err(Clone::clone)?;
    if named.is_some() && library.path != asked {
        let (asked, open) = (asked.to_owned(), library.path.clone());
        return Err(RdmaError::OtherLibrary { asked, open });
    }
    Ok(&library.functions)
}

impl Library {
    fn open(path: &Path) -> Result<Library, RdmaError> {
        let name = CString::new(path.as_os_str().as_bytes());
        let loaded =
            name.map_err(|error| error.to_string()).and_then(|name| Functions::load(&name));
        let functions = loaded.map_err(|reason| RdmaError::NoLibrary { reason })?;
        if let Some(fork_init) = functions.fork_init {
            // SAFETY: nothing of the library was used before. On kernels before 5.12 a fork would take
            // pages away that a device uses; on later ones it does nothing.
            unsafe { fork_init() };
        }
        Ok(Library { functions, path: path.to_owned() })
    }
}

/// An open device. It is closed with the last queue pair and memory region.
pub struct Device {
    functions: &'static Functions,
    name: String,
    context: NonNull<ffi::Context>,
    domain: NonNull<ffi::ProtectionDomain>,
    limits: ffi::DeviceAttributes,
}

// SAFETY: the calls of libibverbs on a context and a protection domain may come from any thread.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The library's list of devices, freed when it is dropped.
struct DeviceList {
    functions: &'static Functions,
    first: *mut *mut ffi::Device,
    count: usize,
}

impl DeviceList {
    fn get(library_path: Option<&Path>) -> Result<DeviceList, RdmaError> {
        let functions = library(library_path)?;
        let mut count: c_int = 0;
        // SAFETY: the count is writable.
        let first = unsafe { (functions.get_device_list)(&mut count) };
        let count = if first.is_null() { 0 } else { count.max(0) as usize };
        Ok(DeviceList { functions, first, count })
    }

    fn iter(&self) -> impl Iterator<Item = (String, *mut ffi::Device)> + '_ {
        (0..self.count).map(|at| {
            // SAFETY: the list has so many entries, and a name lives as long as the list.
            unsafe {
                let device = *self.first.add(at);
                let name = CStr::from_ptr((self.functions.get_device_name)(device));
                (name.to_string_lossy().into_owned(), device)
            }
        })
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        if !self.first.is_null() {
            // SAFETY: the list is the library's, and freed once.
            unsafe { (self.functions.free_device_list)(self.first) };
        }
    }
}

/// The names of this host's devices, as the library sees them.
///
/// # Errors
/// [`RdmaError::NoLibrary`], [`RdmaError::OtherLibrary`].
pub fn device_names(library: Option<&Path>) -> Result<Vec<String>, RdmaError> {
    Ok(DeviceList::get(library)?.iter().map(|(name, _)| name).collect())
}

impl Device {
    /// Opens a device by its name, in the library that is open.
    ///
    /// # Errors
    /// [`RdmaError::Open`] or [`RdmaError::Call`] with what the system says.
    pub(super) fn open(name: &str) -> Result<Arc<Device>, RdmaError> {
        let list = DeviceList::get(None)?;
        let functions = list.functions;
        let failed = |error: io::Error| RdmaError::Open {
            device: name.into(),
            hint: match error.kind() {
                // The library tries several files, and tells of the last.
                io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound if has_device_file() => {
                    ": give this user access to /dev/infiniband/uverbs* (udev rules of rdma-core do)"
                }
                io::ErrorKind::NotFound => {
                    ": /dev/infiniband/uverbs* is missing: load ib_uverbs, or give it to the container \
                     (--device /dev/infiniband)"
                }
                _ => "",
            },
            reason: error.to_string(),
        };
        let gone = || failed(io::Error::other("it is gone"));
        let (_, device) = list.iter().find(|(other, _)| other == name).ok_or_else(gone)?;
        // SAFETY: the device is in the list, which is still there.
        let context = NonNull::new(unsafe { (functions.open_device)(device) })
            .ok_or_else(|| failed(io::Error::last_os_error()))?;
        // SAFETY: all zero is a value of these numbers, and the context is open.
        let mut limits: ffi::DeviceAttributes = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let queried = unsafe { (functions.query_device)(context.as_ptr(), &mut limits) };
        // SAFETY: as above.
        let domain = NonNull::new(unsafe { (functions.alloc_pd)(context.as_ptr()) });
        let Some(domain) = domain else {
            let error = io::Error::last_os_error();
            // SAFETY: it is open, and nothing uses it.
            unsafe { (functions.close_device)(context.as_ptr()) };
            return Err(call_failed(name, "ibv_alloc_pd", error));
        };
        let device = Device { functions, name: name.into(), context, domain, limits };
        if queried != 0 {
            return Err(device.failed("ibv_query_device", io::Error::from_raw_os_error(queried)));
        }
        Ok(Arc::new(device))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn functions(&self) -> &'static Functions {
        self.functions
    }

    pub(super) fn context(&self) -> *mut ffi::Context {
        self.context.as_ptr()
    }

    pub(super) fn domain(&self) -> *mut ffi::ProtectionDomain {
        self.domain.as_ptr()
    }

    pub(super) fn limits(&self) -> &ffi::DeviceAttributes {
        &self.limits
    }

    /// Number of its ports, which are counted from 1.
    pub fn ports(&self) -> u8 {
        self.limits.phys_port_cnt
    }

    /// What a port is like now.
    pub(super) fn port(&self, port: u8) -> Result<ffi::PortAttributes, RdmaError> {
        let mut attributes = ffi::PortAttributes::default();
        // SAFETY: the context is open and the structure is writable.
        match unsafe { (self.functions.query_port)(self.context(), port, &mut attributes) } {
            0 => Ok(attributes),
            error => Err(self.failed("ibv_query_port", io::Error::from_raw_os_error(error))),
        }
    }

    /// Registers `len_bytes` of this process's memory for reading by the device, and for writing by
    /// peers if they shall.
    ///
    /// # Safety
    /// The range must stay mapped until the region is dropped. What peers write there, by its key, must
    /// disturb nobody.
    pub(super) unsafe fn register(
        self: &Arc<Device>,
        start: *mut u8,
        len_bytes: usize,
        remote_write: bool,
    ) -> Result<Region, RdmaError> {
        let access = if remote_write { ffi::ACCESS_REMOTE_WRITE } else { 0 };
        let access = access | ffi::ACCESS_LOCAL_WRITE;
        // SAFETY: the caller's promise.
        let region =
            unsafe { (self.functions.reg_mr)(self.domain(), start.cast(), len_bytes, access) };
        match NonNull::new(region) {
            Some(region) => Ok(Region { device: self.clone(), region }),
            None => Err(self.not_registered("ibv_reg_mr", len_bytes)),
        }
    }

    /// Registers the memory behind a dma-buf descriptor, for example of a GPU, that peers see from
    /// `address` on.
    ///
    /// # Errors
    /// The library or the device cannot do that (`EOPNOTSUPP`), or what the system says.
    pub(super) fn register_dma_buf(
        self: &Arc<Device>,
        descriptor: c_int,
        offset: u64,
        address: u64,
        len_bytes: usize,
    ) -> Result<Region, RdmaError> {
        let Some(reg_dmabuf_mr) = self.functions.reg_dmabuf_mr else {
            let error = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
            return Err(self.failed("ibv_reg_dmabuf_mr", error));
        };
        let access = ffi::ACCESS_LOCAL_WRITE | ffi::ACCESS_REMOTE_WRITE;
        // SAFETY: the descriptor keeps the memory, and no address of this process is used.
        let region =
            unsafe { reg_dmabuf_mr(self.domain(), offset, len_bytes, address, descriptor, access) };
        match NonNull::new(region) {
            Some(region) => Ok(Region { device: self.clone(), region }),
            None => Err(self.not_registered("ibv_reg_dmabuf_mr", len_bytes)),
        }
    }

    fn not_registered(&self, what: &'static str, len_bytes: usize) -> RdmaError {
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOMEM | libc::EAGAIN) if locked_memory_limit() != "unlimited" => {
                RdmaError::LockedMemory { needed_bytes: len_bytes, limit: locked_memory_limit() }
            }
            _ => self.failed(what, error),
        }
    }

    pub(super) fn failed(&self, what: &'static str, error: io::Error) -> RdmaError {
        call_failed(&self.name, what, error)
    }
}

fn call_failed(device: &str, what: &'static str, error: io::Error) -> RdmaError {
    RdmaError::Call { device: device.into(), what, reason: error.to_string() }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: regions and queue pairs hold the device, so that none of them is left.
        unsafe {
            (self.functions.dealloc_pd)(self.domain());
            (self.functions.close_device)(self.context());
        }
    }
}

/// Whether there is a file to open a device by.
fn has_device_file() -> bool {
    std::fs::read_dir("/dev/infiniband").is_ok_and(|entries| {
        let mut names = entries.flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().starts_with("uverbs"))
    })
}

/// How much memory this process may lock, for people.
pub fn locked_memory_limit() -> String {
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((libc::RLIM_INFINITY, _)) => "unlimited".into(),
        Ok((soft, _)) => format!("{} KiB", soft / 1024),
        Err(error) => format!("unknown: {error}"),
    }
}

/// Memory that is registered with a device, until this is dropped.
#[derive(Debug)]
pub(super) struct Region {
    device: Arc<Device>,
    region: NonNull<ffi::MemoryRegion>,
}

// SAFETY: a region is a number of the device's; it may be dropped in any thread.
unsafe impl Send for Region {}
// SAFETY: as above; its keys never change.
unsafe impl Sync for Region {}

impl Region {
    /// The key by which this side's work requests name it.
    pub(super) fn local_key(&self) -> u32 {
        // SAFETY: the region is registered, and its keys stay as they are.
        unsafe { (*self.region.as_ptr()).lkey }
    }

    /// The key by which peers name it.
    pub(super) fn remote_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.region.as_ptr()).rkey }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: it is registered, and this is its only owner.
        let outcome = unsafe { (self.device.functions.dereg_mr)(self.region.as_ptr()) };
        if outcome != 0 {
            let error = io::Error::from_raw_os_error(outcome);
            tracing::error!("RDMA device {}: ibv_dereg_mr failed: {error}", self.device.name);
        }
    }
}
