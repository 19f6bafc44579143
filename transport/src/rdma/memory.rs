//! Memory of the program that is registered with the devices, so that slices leave it and arrive in it
//! without a copy.
//!
//! A region lives as long as its [`Registration`]: with that it is withdrawn, and the device refuses
//! whoever still names it. What the two sides of a link know of each other's memories is in [`Owned`] and
//! [`Foreign`]; the keys go over the control connection, and only once an offer needs them.

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use super::RdmaError;
use super::device::{Device, Region};
use super::rails::{MAX_RAILS, Rail};
use crate::Home;
use crate::cuda::{CudaError, DmaBuf};
use crate::memory::Registration;

/// Memories that are registered at once at most: each takes entries of the device's tables.
const MOST_REGISTERED: usize = 4096;

/// Memories of one side that the other knows of at most. A side that has more copies them; a peer that
/// tells of more is broken.
pub(super) const MOST_KNOWN: usize = 1024;

/// Keys of a memory, one for each device of a rank.
pub(super) type Keys = [u32; MAX_RAILS];

/// A registration's regions, one for each device of one [`Registry`].
#[derive(Debug)]
pub(crate) struct Regions {
    registry: u64,
    local_keys: Keys,
    remote_keys: Keys,
    _regions: Vec<Region>,
    _counted: Counted,
}

impl Regions {
    /// Which registry they are of.
    pub(crate) fn registry(&self) -> u64 {
        self.registry
    }
}

/// Registers memory with all devices of a rank.
#[derive(Debug)]
pub(super) struct Registry {
    /// Tells registries of one process apart.
    number: u64,
    devices: Vec<Arc<Device>>,
    registered: Arc<AtomicUsize>,
    ever: AtomicUsize,
    most: usize,
    has_warned: AtomicBool,
    has_warned_of_gpus: AtomicBool,
}

/// One of the memories that a registry has registered.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Registry {
    pub(super) fn new(rails: &[Rail]) -> Registry {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let mut devices: Vec<Arc<Device>> = Vec::new();
        for rail in rails {
            if rail.device_index == devices.len() {
                devices.push(rail.device.clone());
            }
        }
        // The links' own regions need some, too.
        let limits = devices.iter().map(|device| device.limits().max_mr.max(0) as usize / 2);
        Registry {
            number: MADE.fetch_add(1, Ordering::Relaxed),
            most: limits.min().unwrap_or(0).min(MOST_REGISTERED),
            devices,
            registered: Arc::default(),
            ever: AtomicUsize::new(0),
            has_warned: AtomicBool::new(false),
            has_warned_of_gpus: AtomicBool::new(false),
        }
    }

    pub(super) fn devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    /// Memories that were ever registered, and those that are now.
    pub(super) fn counts(&self) -> (u64, u64) {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed) as u64;
        (load(&self.ever), load(&self.registered))
    }

    /// The regions of a registration, made now if need be; `None` where its memory must go through slots.
    fn regions(&self, registration: &Registration) -> Option<(Keys, Keys)> {
        let made = registration.regions(self.number, || match self.register(registration) {
            Ok(regions) => Some(regions),
            Err(error) => {
                self.warn(registration, &error);
                None
            }
        });
        made.map(|regions| (regions.local_keys, regions.remote_keys))
    }

    fn register(&self, registration: &Registration) -> Result<Regions, RdmaError> {
        let counted = Counted(self.registered.clone());
        if self.registered.fetch_add(1, Ordering::Relaxed) >= self.most {
            let (device, what) = (self.devices[0].name().into(), "registering memory");
            let reason = format!("{} memories are registered already", self.most);
            return Err(RdmaError::Call { device, what, reason });
        }
        let (start, len_bytes) = (registration.start(), registration.len_bytes());
        // The devices keep what is behind a descriptor, which may be closed then.
        let exported = registration.device_memory().map(|memory| memory.dma_buf()).transpose();
        let exported = exported.map_err(|error| self.no_dma_buf(&error))?;
        let register = |device: &Arc<Device>| match &exported {
            Some(DmaBuf { descriptor, offset }) => {
                let descriptor = descriptor.as_raw_fd();
                device.register_dma_buf(descriptor, *offset, start as u64, len_bytes)
            }
            // SAFETY: the registration keeps the memory, and drops these regions before it. Peers
            // write where they were offered room, by the links' protocol.
            None => unsafe { device.register(start, len_bytes, true) },
        };
        let regions: Vec<Region> = self.devices.iter().map(register).collect::<Result<_, _>>()?;
        let mut keys = ([0; MAX_RAILS], [0; MAX_RAILS]);
        for (at, region) in regions.iter().enumerate() {
            (keys.0[at], keys.1[at]) = (region.local_key(), region.remote_key());
        }
        self.ever.fetch_add(1, Ordering::Relaxed);
        let (local_keys, remote_keys) = keys;
        let registry = self.number;
        Ok(Regions { registry, local_keys, remote_keys, _regions: regions, _counted: counted })
    }

    /// Says once, of memory of the host and once more of that of GPUs, why it is not registered.
    fn warn(&self, registration: &Registration, error: &RdmaError) {
        let bytes = registration.len_bytes();
        let (of, has_warned) = match registration.device_memory() {
            Some(_) => (" of a GPU", &self.has_warned_of_gpus),
            None => ("", &self.has_warned),
        };
        if has_warned.swap(true, Ordering::Relaxed) {
            tracing::debug!("memory of {bytes} bytes{of} goes through slots: {error}");
        } else {
            tracing::warn!("memory of {bytes} bytes{of} goes through slots: {error}");
        }
    }

    fn no_dma_buf(&self, error: &CudaError) -> RdmaError {
        let (device, reason) = (self.devices[0].name().into(), error.to_string());
        RdmaError::Call { device, what: "registering memory of a GPU", reason }
    }
}

/// The memories of this side that a link may use.
#[derive(Debug, Default)]
pub(super) struct Owned {
    memories: Vec<OwnMemory>,
    /// Which of them was found last: it is asked for once a slice.
    last: Cell<usize>,
    next_id: u32,
    /// Dropped ones that the peer knows and is to forget.
    to_withdraw: Vec<u32>,
    /// How many the peer knows, those among them.
    known: usize,
}

#[derive(Debug)]
pub(super) struct OwnMemory {
    pub(super) id: u32,
    registration: Weak<Registration>,
    pub(super) start: usize,
    pub(super) len_bytes: usize,
    pub(super) local_keys: Keys,
    pub(super) remote_keys: Keys,
    pub(super) is_known: bool,
    /// Whose it is.
    pub(super) home: Home,
}

impl OwnMemory {
    /// An address is this memory's only while it is registered: afterwards the system may give it to
    /// another one.
    #[inline]
    fn holds(&self, data: usize, len: usize) -> bool {
        let end = self.start + self.len_bytes;
        self.start <= data && data + len <= end && self.registration.strong_count() > 0
    }
}

impl Owned {
    /// From now on the memory may be used, until its registration is dropped.
    pub(super) fn add(&mut self, registration: &Arc<Registration>, registry: &Registry) {
        self.forget_dropped();
        if registration.len_bytes() == 0 {
            return;
        }
        let Some((local_keys, remote_keys)) = registry.regions(registration) else { return };
        self.memories.push(OwnMemory {
            id: self.next_id,
            registration: Arc::downgrade(registration),
            start: registration.start() as usize,
            len_bytes: registration.len_bytes(),
            local_keys,
            remote_keys,
            is_known: false,
            home: registration.device_memory().map_or(Home::Host, |_| Home::OwnGpu),
        });
        self.next_id = self.next_id.wrapping_add(1);
    }

    /// The memory that a range lies in.
    #[inline]
    pub(super) fn find(&self, data: *const u8, len: usize) -> Option<&OwnMemory> {
        let holds = |memory: &&OwnMemory| memory.holds(data as usize, len);
        self.memories.get(self.last.get()).filter(holds).or_else(|| {
            let at = self.memories.iter().position(|memory| holds(&memory))?;
            self.last.set(at);
            self.memories.get(at)
        })
    }

    /// The peer has been told of a memory.
    pub(super) fn note_known(&mut self, id: u32) {
        if let Some(memory) = self.memories.iter_mut().find(|memory| memory.id == id) {
            memory.is_known = true;
            self.known += 1;
        }
    }

    /// Whether the peer can be told of another one.
    pub(super) fn has_room(&self) -> bool {
        self.known < MOST_KNOWN
    }

    fn forget_dropped(&mut self) {
        let to_withdraw = &mut self.to_withdraw;
        self.memories.retain(|memory| {
            let is_dropped = memory.registration.strong_count() == 0;
            if is_dropped && memory.is_known {
                to_withdraw.push(memory.id);
            }
            !is_dropped
        });
    }

    /// What the peer is to forget.
    pub(super) fn take_withdrawn(&mut self) -> Vec<u32> {
        self.known -= self.to_withdraw.len();
        std::mem::take(&mut self.to_withdraw)
    }
}

/// A memory of the peer's, as it has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ForeignMemory {
    pub(super) id: u32,
    /// Address of its first byte, as the peer's device knows it.
    pub(super) start: u64,
    pub(super) len_bytes: u64,
    /// A key for each of the peer's devices.
    pub(super) keys: Keys,
}

/// The memories of the peer that it has told of.
#[derive(Debug, Default)]
pub(super) struct Foreign(Vec<ForeignMemory>);

impl Foreign {
    /// Adds a memory; false if the peer tells of too many.
    pub(super) fn add(&mut self, memory: ForeignMemory) -> bool {
        let fits = self.0.len() < MOST_KNOWN;
        if fits {
            self.0.push(memory);
        }
        fits
    }

    pub(super) fn forget(&mut self, id: u32) {
        self.0.retain(|memory| memory.id != id);
    }

    #[inline]
    pub(super) fn by_id(&self, id: u32) -> Option<&ForeignMemory> {
        self.0.iter().find(|memory| memory.id == id)
    }
}

impl ForeignMemory {
    /// The address of a range, if it lies inside.
    pub(super) fn address(&self, offset: u64, len: u64) -> Option<u64> {
        let end = offset.checked_add(len)?;
        (end <= self.len_bytes).then(|| self.start + offset)
    }
}
