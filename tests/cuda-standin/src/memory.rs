//! Device memory: one address space for all devices that the host cannot touch, with the real pages elsewhere.
//!
//! An address is real at the same distance in a second region, so that neighbouring mappings are neighbours there, too.
//! Each allocation is a memory file of its own, which other processes can open. Addresses are never used again.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::MAX_DEVICES;
use crate::code::{Code, Result};
use crate::context::Context;
use crate::counters::count;
use crate::initialisation::driver;
use crate::virtual_memory::Physical;

/// Fresh memory is full of it, so that nobody takes it for zeros.
pub const POISON: u8 = 0xCB;
/// Of the host.
pub const PAGE_BYTES: u64 = 4096;
/// Between allocations, so that running over the end of one is found out.
const GUARD_BYTES: u64 = 64 << 10;
const SPACE_BYTES: u64 = 4 << 40;
/// What allocations start at a multiple of; small ones do not start at a page, as on a device.
const ALIGNMENT_BYTES: u64 = 512;
const SMALL_BYTES: u64 = 1 << 20;

/// A memory file.
pub struct Backing {
    /// The file.
    pub file: File,
    /// Whose memory it is.
    pub device: usize,
    /// Of the file.
    pub len_bytes: u64,
    /// Whether this process allocated it.
    own: bool,
}

/// How an allocation came to be, which decides who may touch it.
pub enum Kind {
    /// `cuMemAlloc`.
    Direct,
    /// Variables of a module.
    Module,
    /// `cuMemAllocAsync`; whether it is being freed.
    Pool(AtomicBool),
    /// Of another process, by a legacy IPC handle; how often it was opened.
    Opened(AtomicUsize),
    /// Physical memory in a reserved range; what each device may do: 1 read, 3 read and write.
    Mapped(Arc<Physical>, [AtomicU8; MAX_DEVICES]),
}

/// A range of device addresses with memory.
pub struct Allocation {
    /// Its first address.
    pub base: u64,
    /// What may be used, which need not be whole pages.
    pub len_bytes: u64,
    /// For whose contexts it was made.
    pub device: usize,
    /// How it came to be.
    pub kind: Kind,
    /// What is in it.
    pub backing: Arc<Backing>,
    /// Where the range begins in the file, less than a page.
    pub file_offset: u64,
    /// Of no other allocation of the process.
    pub id: u64,
    /// Whether synchronous operations wait for their end always.
    pub synchronous: AtomicBool,
}

/// The address space.
pub struct Space {
    base: u64,
    shadow: u64,
    next: AtomicU64,
    allocations: RwLock<BTreeMap<u64, Arc<Allocation>>>,
    freed: Mutex<Vec<Freed>>,
    running: AtomicUsize,
    changes: AtomicU64,
}

enum Freed {
    Device { start: u64, len_bytes: u64 },
    Host { start: usize, len_bytes: usize },
}

/// While it lives, memory that is freed stays mapped on the host: a kernel that still uses it must get an error, and
/// not end the process.
pub struct Running(());

impl Drop for Running {
    fn drop(&mut self) {
        let space = &driver().space;
        if space.running.fetch_sub(1, SeqCst) == 1 {
            space.sweep();
        }
    }
}

impl Backing {
    /// A fresh file, whose name says what it is.
    pub fn create(purpose: &str, device: usize, len_bytes: u64) -> Result<Arc<Backing>> {
        let file = memory_file(&format!("{purpose}-{device}"), len_bytes)?;
        driver().devices[device].charge(len_bytes)?;
        count(|counters| {
            counters.allocations_live += 1;
            counters.bytes_live += len_bytes;
        });
        Ok(Arc::new(Backing { file, device, len_bytes, own: true }))
    }

    /// A file of another process.
    pub fn of_another(file: File, device: usize, len_bytes: u64) -> Arc<Backing> {
        Arc::new(Backing { file, device, len_bytes, own: false })
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if self.own {
            driver().devices[self.device].used_bytes.fetch_sub(self.len_bytes, SeqCst);
            count(|counters| {
                counters.allocations_live -= 1;
                counters.bytes_live -= self.len_bytes;
            });
        }
    }
}

impl Allocation {
    /// The first address after it.
    pub fn end(&self) -> u64 {
        self.base + self.len_bytes
    }

    /// Whole pages: where they start, and how many bytes they are.
    pub fn pages(&self) -> (u64, u64) {
        let start = self.base - self.file_offset;
        (start, (self.end() - start).next_multiple_of(PAGE_BYTES))
    }

    /// Whether kernels of a context may touch it.
    pub fn is_open_to(&self, context: &Context, write: bool) -> bool {
        match &self.kind {
            Kind::Direct | Kind::Module => {
                context.device == self.device || context.reaches(self.device)
            }
            Kind::Pool(_) => driver().devices[self.device].pool_access[context.device].load(SeqCst),
            Kind::Opened(_) => context.device == self.device,
            Kind::Mapped(_, access) => {
                let needed = if write { 3 } else { 1 };
                access[context.device].load(SeqCst) & needed == needed
            }
        }
    }
}

impl Space {
    /// An empty address space.
    pub fn new() -> Result<Space> {
        Ok(Space {
            base: no_access(0, SPACE_BYTES)?,
            shadow: no_access(0, SPACE_BYTES)?,
            next: AtomicU64::new(2 << 20),
            allocations: RwLock::default(),
            freed: Mutex::default(),
            running: AtomicUsize::new(0),
            changes: AtomicU64::new(1),
        })
    }

    /// Whether an address is a device's, be it allocated or not.
    pub fn contains(&self, address: u64) -> bool {
        (self.base..self.base + SPACE_BYTES).contains(&address)
    }

    /// Where the host finds an address.
    pub fn host(&self, address: u64) -> *mut u8 {
        (address - self.base + self.shadow) as *mut u8
    }

    /// A number that is another one after each change of what may be touched.
    pub fn changes(&self) -> u64 {
        self.changes.load(SeqCst)
    }

    /// Makes it another one.
    pub fn note_change(&self) {
        self.changes.fetch_add(1, SeqCst);
    }

    /// Holds back the unmapping of memory that is freed.
    pub fn running(&self) -> Running {
        self.running.fetch_add(1, SeqCst);
        Running(())
    }

    /// Addresses that nobody had, with a gap behind them.
    pub fn reserve(&self, len_bytes: u64, alignment_bytes: u64) -> Result<u64> {
        let mut start = 0;
        let grown = |next: u64| {
            start = (self.base + next).checked_next_multiple_of(alignment_bytes)?;
            let after = (start - self.base).checked_add(len_bytes)?.checked_add(GUARD_BYTES)?;
            (after <= SPACE_BYTES).then(|| after.next_multiple_of(PAGE_BYTES))
        };
        self.next.fetch_update(SeqCst, SeqCst, grown).map_err(|_| Code::OUT_OF_MEMORY)?;
        Ok(start)
    }

    /// Allocates memory of a device.
    pub fn allocate(&self, device: usize, len_bytes: u64, kind: Kind) -> Result<Arc<Allocation>> {
        if len_bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let small = len_bytes < SMALL_BYTES;
        let file_offset = if small { self.changes() % 8 * ALIGNMENT_BYTES } else { 0 };
        let file_len = file_offset.checked_add(len_bytes).ok_or(Code::OUT_OF_MEMORY)?;
        let file_len = file_len.checked_next_multiple_of(PAGE_BYTES).ok_or(Code::OUT_OF_MEMORY)?;
        let backing = Backing::create("memory", device, file_len)?;
        let start = self.reserve(file_len, if small { PAGE_BYTES } else { 2 << 20 })?;
        let base = start + file_offset;
        let allocation = self.map(base, len_bytes, device, kind, backing, file_offset)?;
        // SAFETY: the pages were just mapped, and nobody knows them yet.
        unsafe { self.host(base).write_bytes(POISON, len_bytes as usize) };
        Ok(allocation)
    }

    /// Puts a file's memory at reserved addresses.
    pub fn map(
        &self,
        base: u64,
        len_bytes: u64,
        device: usize,
        kind: Kind,
        backing: Arc<Backing>,
        file_offset: u64,
    ) -> Result<Arc<Allocation>> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, SeqCst);
        let synchronous = AtomicBool::new(false);
        let allocation =
            Allocation { base, len_bytes, device, kind, backing, file_offset, id, synchronous };
        let (start, pages_bytes) = allocation.pages();
        // What was there before may wait to be unmapped, which must not hit the new mapping.
        let mut freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        freed.retain(|old| {
            !matches!(old, Freed::Device { start: old, len_bytes }
            if *old < start + pages_bytes && start < old + len_bytes)
        });
        // SAFETY: the addresses are of the region of real pages, and reserved for this allocation.
        let mapped = unsafe {
            libc::mmap(
                self.host(start).cast(),
                pages_bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                allocation.backing.file.as_raw_fd(),
                0,
            )
        };
        drop(freed);
        if mapped == libc::MAP_FAILED {
            return Err(Code::OUT_OF_MEMORY);
        }
        let allocation = Arc::new(allocation);
        let mut allocations = self.allocations.write().unwrap_or_else(PoisonError::into_inner);
        allocations.insert(base, allocation.clone());
        self.note_change();
        Ok(allocation)
    }

    /// Removes the allocation that starts at an address, if it is what the caller may free.
    pub fn free(&self, base: u64, right: impl Fn(&Allocation) -> bool) -> Result<Arc<Allocation>> {
        let mut allocations = self.allocations.write().unwrap_or_else(PoisonError::into_inner);
        allocations.get(&base).filter(|found| right(found)).ok_or(Code::INVALID_VALUE)?;
        let allocation = allocations.remove(&base).ok_or(Code::INVALID_VALUE)?;
        drop(allocations);
        self.note_change();
        let (start, len_bytes) = allocation.pages();
        self.discard(Freed::Device { start, len_bytes });
        Ok(allocation)
    }

    /// Removes all that contexts of a device allocated or opened. Physical memory belongs to no context.
    pub fn free_all(&self, device: usize) {
        let of_context =
            |found: &Allocation| found.device == device && !matches!(found.kind, Kind::Mapped(..));
        for allocation in self.list() {
            if of_context(&allocation) {
                let _ = self.free(allocation.base, of_context);
                if let Kind::Opened(_) = allocation.kind {
                    count(|counters| counters.ipc_handles_open -= 1);
                }
            }
        }
    }

    /// Unmaps host memory once no kernel uses it.
    pub fn discard_host(&self, start: usize, len_bytes: usize) {
        self.discard(Freed::Host { start, len_bytes });
    }

    /// All allocations.
    pub fn list(&self) -> Vec<Arc<Allocation>> {
        let allocations = self.allocations.read().unwrap_or_else(PoisonError::into_inner);
        allocations.values().cloned().collect()
    }

    /// The allocation that an address is in.
    pub fn find(&self, address: u64) -> Option<Arc<Allocation>> {
        let allocations = self.allocations.read().unwrap_or_else(PoisonError::into_inner);
        let (_, found) = allocations.range(..=address).next_back()?;
        (address < found.end()).then(|| found.clone())
    }

    /// The first allocation of a range that is allocated throughout. Only mappings have neighbours.
    pub fn covering(
        &self,
        address: u64,
        len_bytes: u64,
        right: impl Fn(&Allocation) -> bool,
    ) -> Option<Arc<Allocation>> {
        let end = address.checked_add(len_bytes)?;
        let first = self.find(address).filter(|found| right(found))?;
        let mut reached = first.end();
        while reached < end {
            reached = self.find(reached).filter(|found| right(found))?.end();
        }
        Some(first)
    }

    fn discard(&self, freed: Freed) {
        self.freed.lock().unwrap_or_else(PoisonError::into_inner).push(freed);
        self.sweep();
    }

    /// Unmaps what was freed, unless something runs. What starts to run after the look cannot reach it any more.
    fn sweep(&self) {
        let mut freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        if self.running.load(SeqCst) > 0 {
            return;
        }
        for range in freed.drain(..) {
            match range {
                Freed::Device { start, len_bytes } => {
                    let hidden = no_access(self.host(start) as u64, len_bytes);
                    debug_assert!(hidden.is_ok(), "pages can be replaced");
                }
                Freed::Host { start, len_bytes } => {
                    // SAFETY: it was mapped by this library, and the caller has freed it.
                    unsafe { libc::munmap(start as *mut _, len_bytes) };
                }
            }
        }
    }
}

/// Makes a memory file, whose name says that it is this library's, and what it is.
pub fn memory_file(purpose: &str, len_bytes: u64) -> Result<File> {
    let name = format!("{}{purpose}\0", crate::FILE_NAME);
    // SAFETY: the name ends with a zero.
    let descriptor = unsafe { libc::memfd_create(name.as_ptr().cast(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(Code::OUT_OF_MEMORY);
    }
    // SAFETY: the descriptor was just made, and is nobody else's.
    let file = unsafe { File::from_raw_fd(descriptor) };
    file.set_len(len_bytes).map_err(|_| Code::OUT_OF_MEMORY)?;
    Ok(file)
}

/// Maps pages that nobody may touch: anywhere, or in place of what is at an address of the space.
fn no_access(address: u64, len_bytes: u64) -> Result<u64> {
    let fixed = if address == 0 { 0 } else { libc::MAP_FIXED };
    // SAFETY: a fixed address is of the region of real pages, of an allocation that is gone.
    let mapped = unsafe {
        libc::mmap(
            address as *mut _,
            len_bytes as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed,
            -1,
            0,
        )
    };
    if mapped == libc::MAP_FAILED { Err(Code::OUT_OF_MEMORY) } else { Ok(mapped as u64) }
}
