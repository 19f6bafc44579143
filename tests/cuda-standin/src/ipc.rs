//! Legacy IPC: handles by which other processes open device memory and events.
//!
//! A handle says which process has which memory file under which descriptor; whoever opens it goes there through
//! `/proc`, and checks that the file is the one that was meant.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::code::{Code, Result};
use crate::context::Context;
use crate::counters::count;
use crate::initialisation::{device, driver};
use crate::memory::{Backing, Kind, PAGE_BYTES, memory_file};
use crate::settings;

/// `CUipcMemHandle` and `CUipcEventHandle`, 64 bytes.
pub type Handle = [u64; 8];

const MEMORY: u64 = u64::from_le_bytes(*b"standinM");
const EVENT: u64 = u64::from_le_bytes(*b"standinE");
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`.
const LAZY_PEER_ACCESS: u32 = 1;

/// Refuses where the setting says so.
pub fn check_supported() -> Result {
    if settings::get().ipc { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
}

/// A handle of the allocation that an address is in. Pools and virtual memory have handles of their own kinds, and what
/// was opened cannot be passed on.
pub fn memory_handle(address: u64) -> Result<Handle> {
    let allocation = driver().space.find(address).ok_or(Code::INVALID_VALUE)?;
    if !matches!(allocation.kind, Kind::Direct) {
        return Err(Code::INVALID_VALUE);
    }
    let [process, descriptor, inode] = name_file(&allocation.backing.file)?;
    let device = allocation.backing.device as u64;
    let (len, offset) = (allocation.len_bytes, allocation.file_offset);
    Ok([MEMORY, process, descriptor, inode, len, offset, device, 0])
}

/// Opens another process's memory for a context. Opening it again gives the same address, and asks for one more close.
pub fn open_memory(handle: Handle, context: &Arc<Context>, flags: u32) -> Result<u64> {
    static OPENING: Mutex<()> = Mutex::new(());
    if flags & !LAZY_PEER_ACCESS != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let [MEMORY, process, descriptor, inode, len_bytes, file_offset, home, _] = handle else {
        return Err(Code::INVALID_VALUE);
    };
    if !settings::get().ipc_opens {
        return Err(Code::INVALID_VALUE);
    }
    let file = open_file(process, descriptor, inode)?;
    let home = device(home as i32)?.ordinal;
    if home != context.device && !settings::get().can_access_peer(context.device, home) {
        return Err(Code::PEER_ACCESS_UNSUPPORTED);
    }
    let _one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    for opened in driver().space.list() {
        if let Kind::Opened(times) = &opened.kind
            && opened.device == context.device
            && opened.backing.file.metadata().is_ok_and(|file| file.ino() == inode)
        {
            times.fetch_add(1, SeqCst);
            return Ok(opened.base);
        }
    }
    let file_len = file.metadata().map_err(|_| Code::INVALID_HANDLE)?.len();
    if file_offset >= PAGE_BYTES || file_offset.checked_add(len_bytes).is_none_or(|n| n > file_len)
    {
        return Err(Code::INVALID_VALUE);
    }
    let base = driver().space.reserve(file_len, PAGE_BYTES)? + file_offset;
    let kind = Kind::Opened(AtomicUsize::new(1));
    let backing = Backing::of_another(file, home, file_len);
    driver().space.map(base, len_bytes, context.device, kind, backing, file_offset)?;
    count(|counters| counters.ipc_handles_open += 1);
    Ok(base)
}

/// Closes opened memory, by its first address. The caller has waited for work that may use it.
pub fn close_memory(base: u64) -> Result {
    let opened = driver().space.find(base).filter(|found| found.base == base);
    let opened = opened.ok_or(Code::INVALID_VALUE)?;
    let Kind::Opened(times) = &opened.kind else { return Err(Code::INVALID_VALUE) };
    if times.fetch_sub(1, SeqCst) == 1 {
        driver().space.free(base, |found| matches!(found.kind, Kind::Opened(_)))?;
        count(|counters| counters.ipc_handles_open -= 1);
    }
    Ok(())
}

/// An event that several processes see.
pub struct SharedEvent {
    file: File,
    state: &'static SharedState,
    opened: bool,
}

/// Records are numbered from 1; each number says up to which record it holds.
#[repr(C)]
struct SharedState {
    recorded: AtomicU64,
    completed: AtomicU64,
    demanded: AtomicU64,
}

impl SharedEvent {
    /// An event that was not recorded yet.
    pub fn create() -> Result<SharedEvent> {
        SharedEvent::map(memory_file("event", PAGE_BYTES)?, false)
    }

    fn map(file: File, opened: bool) -> Result<SharedEvent> {
        // SAFETY: fresh addresses for a file of one page.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_BYTES as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(Code::MAP_FAILED);
        }
        // SAFETY: the page stays mapped until this event is dropped; a file that is longer than the structure begins
        // with zeros, and all processes change it by atomics only.
        let state = unsafe { &*page.cast::<SharedState>() };
        Ok(SharedEvent { file, state, opened })
    }

    /// Whether it is another process's.
    pub fn is_opened(&self) -> bool {
        self.opened
    }

    /// Begins a record, and gives its number.
    pub fn next_generation(&self) -> u64 {
        self.state.recorded.fetch_add(1, SeqCst) + 1
    }

    /// The number of the last record that any process began; 0 for none.
    pub fn last_generation(&self) -> u64 {
        self.state.recorded.load(SeqCst)
    }

    /// Says that a record is reached.
    pub fn complete(&self, generation: u64) {
        self.state.completed.fetch_max(generation, SeqCst);
    }

    /// Whether a record is reached.
    pub fn is_complete(&self, generation: u64) -> bool {
        self.state.completed.load(SeqCst) >= generation
    }

    /// Lets the process that records go on up to a record.
    pub fn demand(&self, generation: u64) {
        self.state.demanded.fetch_max(generation, SeqCst);
    }

    /// Whether a record is demanded.
    pub fn is_demanded(&self, generation: u64) -> bool {
        self.state.demanded.load(SeqCst) >= generation
    }

    /// Waits for a record, or until the waiter's context ends.
    pub fn wait(&self, generation: u64, waiter: Option<&Context>) {
        self.demand(generation);
        let mut looks = 0;
        while !self.is_complete(generation) && !waiter.is_some_and(Context::is_stopped) {
            pause(&mut looks);
        }
    }

    /// A handle for other processes.
    pub fn handle(&self) -> Result<Handle> {
        if self.opened {
            return Err(Code::INVALID_HANDLE);
        }
        let [process, descriptor, inode] = name_file(&self.file)?;
        Ok([EVENT, process, descriptor, inode, 0, 0, 0, 0])
    }

    /// Opens another process's event.
    pub fn open(handle: Handle) -> Result<SharedEvent> {
        let [EVENT, process, descriptor, inode, ..] = handle else {
            return Err(Code::INVALID_VALUE);
        };
        let event = SharedEvent::map(open_file(process, descriptor, inode)?, true)?;
        count(|counters| counters.ipc_handles_open += 1);
        Ok(event)
    }
}

impl Drop for SharedEvent {
    fn drop(&mut self) {
        let page = std::ptr::from_ref(self.state);
        // SAFETY: the page was mapped for this event, whose reference to it ends here.
        unsafe { libc::munmap(page.cast_mut().cast(), PAGE_BYTES as usize) };
    }
}

/// Waits a little before the next look at memory that something else writes: at first not at all, because most waits
/// are short.
pub fn pause(looks: &mut u32) {
    *looks = looks.saturating_add(1);
    match looks {
        0..100 => std::hint::spin_loop(),
        100..300 => std::thread::yield_now(),
        _ => std::thread::sleep(Duration::from_micros((*looks as u64).min(1000))),
    }
}

/// What names a file to other processes: process, descriptor, inode.
fn name_file(file: &File) -> Result<[u64; 3]> {
    let inode = file.metadata().map_err(|_| Code::MAP_FAILED)?.ino();
    Ok([std::process::id() as u64, file.as_raw_fd() as u64, inode])
}

fn open_file(process: u64, descriptor: u64, inode: u64) -> Result<File> {
    // As documented: memory of the same process is used as it is.
    if process == std::process::id() as u64 {
        return Err(Code::INVALID_CONTEXT);
    }
    let path = format!("/proc/{process}/fd/{descriptor}");
    // The process may be gone, or the memory freed and the descriptor used for something else.
    let link = std::fs::read_link(&path).map_err(|_| Code::INVALID_HANDLE)?;
    if !link.to_string_lossy().starts_with(&format!("/memfd:{}", crate::FILE_NAME)) {
        return Err(Code::INVALID_HANDLE);
    }
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.map_err(|_| Code::INVALID_HANDLE)?;
    let right = file.metadata().is_ok_and(|opened| opened.ino() == inode);
    if right { Ok(file) } else { Err(Code::INVALID_HANDLE) }
}
