//! Memory of a GPU that another process, or another GPU of this one, uses in place.
//!
//! There are two ways to another process, of which a machine may refuse either: the handle that the driver has for
//! memory that was allocated as a whole, which containers may not pass on, and the file descriptor of memory that is
//! mapped. Both are tried with every peer ([`Probe`]). Memory is allocated as a whole until a peer was found that
//! only takes the other.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::device::Device;
use super::error::CudaError;
use super::ffi::{self, DeviceAddress, IpcHandle};
use super::mapped::{self, Mapping};
use super::memory::DeviceMemory;
use super::reaper::{self, Freed};
use super::stream::Stream;

/// How memory gets to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// By a handle of the driver's, which is told: legacy IPC.
    Handle,
    /// By a file descriptor, which a socket passes on.
    Descriptor,
}

/// The ways by which somebody uses another's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways(u8);

impl Ways {
    /// None.
    pub const NONE: Ways = Ways(0);

    /// Whether a way is among them.
    pub fn has(self, way: Way) -> bool {
        self.0 & way.number() != 0
    }

    /// Whether there is one.
    pub fn any(self) -> bool {
        self != Ways::NONE
    }

    /// As they are told.
    pub fn to_byte(self) -> u8 {
        self.0
    }

    /// What was told, if it makes sense.
    pub fn from_byte(byte: u8) -> Option<Ways> {
        (byte & !Ways::of(&[Way::Handle, Way::Descriptor]).0 == 0).then_some(Ways(byte))
    }

    /// Those.
    pub fn of(ways: &[Way]) -> Ways {
        Ways(ways.iter().fold(0, |all, way| all | way.number()))
    }
}

impl Way {
    /// As it is told. No two have a bit in common, and none is zero.
    fn number(self) -> u8 {
        match self {
            Way::Handle => 1,
            Way::Descriptor => 2,
        }
    }

    /// How memory of a device is best shared with other processes, by what is known by now.
    pub fn best(device: &Device) -> Way {
        match BY_DESCRIPTOR.load(Ordering::Relaxed) & bit(device) {
            0 => Way::Handle,
            _ => Way::Descriptor,
        }
    }
}

/// The devices, a bit each, whose handles some other process refuses, while it takes descriptors.
static BY_DESCRIPTOR: AtomicU64 = AtomicU64::new(0);

/// The devices, a bit each, of which it is known whether the driver gives handles at all.
static ASKED: AtomicU64 = AtomicU64::new(0);

fn bit(device: &Device) -> u64 {
    1_u64.checked_shl(device.ordinal()).unwrap_or(0)
}

/// From now on memory of a device that is to be shared is mapped: see [`DeviceMemory::alloc_shared`].
pub fn share_by_descriptor(device: &Device) {
    if BY_DESCRIPTOR.fetch_or(bit(device), Ordering::Relaxed) & bit(device) == 0 {
        tracing::info!(
            "memory of GPU {} goes to other processes by file descriptors, since handles are refused",
            device.ordinal()
        );
    }
}

/// What another process must know to use a memory, as it is told. Its descriptor, if it has one, comes beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    way: Way,
    handle: [u8; ffi::IPC_HANDLE_BYTES],
    address: DeviceAddress,
    len_bytes: u64,
    /// With the rest of its last page, where it is mapped.
    mapped_bytes: u64,
    ordinal: u32,
}

impl Exported {
    /// How long it is as it is told.
    pub const BYTES: usize = 1 + ffi::IPC_HANDLE_BYTES + 28;

    /// As it is told.
    pub fn to_bytes(&self) -> [u8; Exported::BYTES] {
        let mut bytes = [0; Exported::BYTES];
        bytes[0] = self.way.number();
        let (handle, rest) = bytes[1..].split_at_mut(ffi::IPC_HANDLE_BYTES);
        handle.copy_from_slice(&self.handle);
        rest[..8].copy_from_slice(&self.address.to_le_bytes());
        rest[8..16].copy_from_slice(&self.len_bytes.to_le_bytes());
        rest[16..24].copy_from_slice(&self.mapped_bytes.to_le_bytes());
        rest[24..].copy_from_slice(&self.ordinal.to_le_bytes());
        bytes
    }

    /// What was told, if it makes sense.
    pub fn from_bytes(bytes: &[u8; Exported::BYTES]) -> Option<Exported> {
        let ways = [Way::Handle, Way::Descriptor];
        let way = ways.into_iter().find(|way| way.number() == bytes[0])?;
        let (handle, rest) = bytes[1..].split_at(ffi::IPC_HANDLE_BYTES);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
        let exported = Exported {
            way,
            handle: handle.try_into().ok()?,
            address: number(&rest[..8]),
            len_bytes: number(&rest[8..16]),
            mapped_bytes: number(&rest[16..24]),
            ordinal: number(&rest[24..]) as u32,
        };
        (exported.len_bytes <= exported.mapped_bytes).then_some(exported)
    }

    /// How long the memory is.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// How it gets to another process.
    pub fn way(&self) -> Way {
        self.way
    }
}

impl DeviceMemory {
    /// As [`DeviceMemory::alloc`], memory that other processes are to use: by handle, unless it is known that they
    /// refuse those, and take descriptors. Then it takes whole pages of 2 MiB.
    ///
    /// # Errors
    /// [`CudaError::Memory`] if there is no room, or what the driver says.
    pub fn alloc_shared(device: &Device, len_bytes: usize) -> Result<DeviceMemory, CudaError> {
        if Way::best(device) == Way::Handle {
            let memory = DeviceMemory::alloc(device, len_bytes)?;
            let is_known = ASKED.fetch_or(bit(device), Ordering::Relaxed) & bit(device) != 0;
            if is_known || memory.handle().is_ok() {
                return Ok(memory);
            }
            share_by_descriptor(device);
        }
        DeviceMemory::alloc_by(device, len_bytes, Way::Descriptor).or_else(|error| {
            tracing::debug!("memory of GPU {} has no descriptor: {error}", device.ordinal());
            DeviceMemory::alloc(device, len_bytes)
        })
    }

    /// Allocates memory that gets to other processes by one way.
    ///
    /// # Errors
    /// As of [`DeviceMemory::alloc_shared`], or [`CudaError::Argument`] if the device has no memory with descriptors.
    pub fn alloc_by(
        device: &Device,
        len_bytes: usize,
        way: Way,
    ) -> Result<DeviceMemory, CudaError> {
        match way {
            Way::Handle => DeviceMemory::alloc(device, len_bytes),
            Way::Descriptor => DeviceMemory::alloc_mapped(device, len_bytes),
        }
    }

    /// How it gets to other processes.
    pub fn way(&self) -> Way {
        if self.mapping().is_some() { Way::Descriptor } else { Way::Handle }
    }

    /// What the ranks of this process must know to use it, as long as it lives.
    pub fn told(&self) -> Exported {
        let len_bytes = self.len_bytes() as u64;
        Exported {
            way: self.way(),
            handle: [0; ffi::IPC_HANDLE_BYTES],
            address: self.address(),
            len_bytes,
            mapped_bytes: self.mapping().map_or(len_bytes, |mapping| mapping.len_bytes() as u64),
            ordinal: self.device().ordinal(),
        }
    }

    /// What another process of this host must know to use it, as long as it lives, and its descriptor, if it goes by
    /// that.
    ///
    /// # Errors
    /// What the driver says, which does not export memory everywhere.
    pub fn export(&self) -> Result<(Exported, Option<OwnedFd>), CudaError> {
        let told = self.told();
        match self.mapping() {
            Some(mapping) => Ok((told, Some(mapping.export()?))),
            None => Ok((Exported { handle: self.handle()?, ..told }, None)),
        }
    }

    fn handle(&self) -> Result<[u8; ffi::IPC_HANDLE_BYTES], CudaError> {
        let device = self.device();
        let _entered = device.enter()?;
        let mut handle = IpcHandle([0; ffi::IPC_HANDLE_BYTES]);
        // SAFETY: the address is of a variable that outlives the call.
        let code = unsafe { (device.functions().ipc_export)(&raw mut handle, self.address()) };
        device.check("cuIpcGetMemHandle", code)?;
        Ok(handle.0)
    }
}

/// Memory of another process or another GPU, which the kernels of a device use in place as long as this lives.
#[derive(Debug)]
pub struct PeerMemory {
    device: Device,
    address: DeviceAddress,
    len_bytes: u64,
    end: End,
}

/// What is to be done when it is used no more.
#[derive(Debug)]
enum End {
    /// Nothing: it is of this process.
    Nothing,
    /// It was opened by its handle.
    Close,
    /// It was mapped.
    Unmap(#[allow(dead_code)] Mapping),
}

impl PeerMemory {
    /// Makes memory usable by a device: of this process, or of another one, with the descriptor that came, if one did.
    ///
    /// # Errors
    /// The device cannot reach it, or what the driver says.
    pub fn open(
        device: &Device,
        exported: &Exported,
        descriptor: Option<OwnedFd>,
        is_of_this_process: bool,
    ) -> Result<PeerMemory, CudaError> {
        let _entered = device.enter()?;
        let Exported { address, mapped_bytes, ordinal, .. } = *exported;
        let (address, end) = match (is_of_this_process, exported.way) {
            (true, Way::Handle) => {
                device.reach(ordinal)?;
                (address, End::Nothing)
            }
            (true, Way::Descriptor) => {
                if ordinal != device.ordinal() {
                    mapped::allow(device, address, mapped_bytes as usize)?;
                }
                (address, End::Nothing)
            }
            (false, Way::Handle) => (open_handle(device, exported.handle)?, End::Close),
            (false, Way::Descriptor) => {
                let Some(descriptor) = descriptor else {
                    let what = "memory of another process came without its descriptor";
                    return Err(CudaError::Argument(what.to_owned()));
                };
                let mapping = Mapping::import(device, descriptor.as_fd(), mapped_bytes as usize)?;
                (mapping.address(), End::Unmap(mapping))
            }
        };
        Ok(PeerMemory { device: device.clone(), address, len_bytes: exported.len_bytes, end })
    }

    /// Stops using it. Tells when its owner may free it.
    pub fn close(self) -> Receiver<()> {
        drop(self);
        reaper::told()
    }

    /// Where kernels of the device find a range of it, if it has that.
    pub fn address_of(&self, offset: u64, len_bytes: u64) -> Option<DeviceAddress> {
        let is_within = offset.checked_add(len_bytes)? <= self.len_bytes;
        is_within.then(|| self.address + offset)
    }
}

impl Drop for PeerMemory {
    fn drop(&mut self) {
        if matches!(self.end, End::Close) {
            reaper::free(&self.device, Freed::Opened(self.address));
        }
    }
}

fn open_handle(
    device: &Device,
    handle: [u8; ffi::IPC_HANDLE_BYTES],
) -> Result<DeviceAddress, CudaError> {
    let mut address = 0;
    let (handle, flags) = (IpcHandle(handle), ffi::IPC_LAZY_ENABLE_PEER_ACCESS);
    // SAFETY: the address is of a variable that outlives the call; the handle is as it was told.
    let code = unsafe { (device.functions().ipc_open)(&raw mut address, handle, flags) };
    device.check("cuIpcOpenMemHandle", code)?;
    Ok(address)
}

/// Some memory of a GPU by which others find out whether they can use what is exported, and by which way. A process has
/// one for each device.
#[derive(Debug)]
pub struct Probe {
    device: Device,
    /// Of each way that there is.
    memories: Vec<DeviceMemory>,
    nonce: u64,
}

/// Memory, as it is told, and the number that is in its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    exported: Exported,
    nonce: u64,
}

impl Probe {
    /// That of a device, with memory of each way if it is the first.
    ///
    /// # Errors
    /// What the driver says.
    pub fn of(device: &Device) -> Result<Arc<Probe>, CudaError> {
        static ALL: Mutex<Vec<Weak<Probe>>> = Mutex::new(Vec::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|probe| probe.strong_count() > 0);
        let mut known = all.iter().filter_map(Weak::upgrade);
        if let Some(probe) = known.find(|probe| probe.device == *device) {
            return Ok(probe);
        }
        let probe = Arc::new(Probe::new(device)?);
        all.push(Arc::downgrade(&probe));
        Ok(probe)
    }

    fn new(device: &Device) -> Result<Probe, CudaError> {
        let plain = DeviceMemory::alloc(device, size_of::<u64>())?;
        // An address is used once in a process, and a process once in a while.
        let nonce = plain.address() ^ u64::from(std::process::id()) << 32 | 1;
        let mut memories = vec![plain];
        // Not every device has such memory.
        memories.extend(DeviceMemory::alloc_by(device, size_of::<u64>(), Way::Descriptor).ok());
        let stream = Stream::new(device)?;
        for memory in &memories {
            // SAFETY: both have 8 bytes and stay until the stream is through.
            unsafe { stream.copy_to_device(memory.address(), (&raw const nonce).cast(), 8)? };
        }
        stream.synchronize()?;
        Ok(Probe { device: device.clone(), memories, nonce })
    }

    /// Whose it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What ranks of this process must know.
    pub fn told(&self) -> Vec<Told> {
        let nonce = self.nonce;
        self.memories.iter().map(|memory| Told { exported: memory.told(), nonce }).collect()
    }

    /// What another process must know, for each way that the driver offers, with the descriptor that belongs to it.
    pub fn exported(&self) -> Vec<(Told, Option<OwnedFd>)> {
        let export = |memory: &DeviceMemory| match memory.export() {
            Ok((exported, descriptor)) => Some((Told { exported, nonce: self.nonce }, descriptor)),
            Err(error) => {
                tracing::debug!(
                    "not by {:?} of GPU {}: {error}",
                    memory.way(),
                    self.device.ordinal()
                );
                None
            }
        };
        self.memories.iter().filter_map(export).collect()
    }

    /// Whether this device finds in a peer's probe what it should.
    pub fn reads(
        &self,
        tried: &Told,
        descriptor: Option<OwnedFd>,
        is_of_this_process: bool,
    ) -> bool {
        let Told { exported, nonce } = tried;
        let read = || -> Result<u64, CudaError> {
            let memory = PeerMemory::open(&self.device, exported, descriptor, is_of_this_process)?;
            let stream = Stream::new(&self.device)?;
            let mut found = 0_u64;
            // SAFETY: both have 8 bytes and stay until the stream is through.
            unsafe { stream.copy_to_host((&raw mut found).cast(), memory.address, 8)? };
            stream.synchronize()?;
            Ok(found)
        };
        read().map_or_else(
            |error| {
                tracing::info!("a peer's memory is not used by {:?}: {error}", exported.way);
                false
            },
            |found| found == *nonce,
        )
    }
}

impl Told {
    pub(super) fn new(exported: Exported, nonce: u64) -> Told {
        Told { exported, nonce }
    }

    /// How long it is as it is told.
    pub const BYTES: usize = Exported::BYTES + size_of::<u64>();

    /// As it is told.
    pub fn to_bytes(&self) -> [u8; Told::BYTES] {
        let mut bytes = [0; Told::BYTES];
        let (exported, nonce) = bytes.split_at_mut(Exported::BYTES);
        exported.copy_from_slice(&self.exported.to_bytes());
        nonce.copy_from_slice(&self.nonce.to_le_bytes());
        bytes
    }

    /// What was told, if it makes sense.
    pub fn from_bytes(bytes: &[u8; Told::BYTES]) -> Option<Told> {
        let (exported, nonce) = bytes.split_first_chunk()?;
        let exported = Exported::from_bytes(exported)?;
        Some(Told { exported, nonce: u64::from_le_bytes(nonce.try_into().ok()?) })
    }

    /// The memory.
    pub fn exported(&self) -> &Exported {
        &self.exported
    }

    /// What is in its first bytes, which no other memory has there.
    pub fn nonce(&self) -> u64 {
        self.nonce
    }

    /// How it gets to another process.
    pub fn way(&self) -> Way {
        self.exported.way
    }
}
