//! Host memory that devices can reach: allocated by the driver, or registered with it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::code::{Code, Result};
use crate::counters::count;
use crate::initialisation::driver;
use crate::memory::{PAGE_BYTES, POISON};

/// A range of pinned memory.
#[derive(Clone, Copy, Debug)]
pub struct Pinned {
    /// Its first address.
    pub base: usize,
    /// Its length.
    pub len_bytes: usize,
    /// Whether the program allocated it, and only registered it here.
    pub registered: bool,
    /// For whose context it was made. With unified addressing all devices reach it.
    pub device: usize,
    /// As the program gave them.
    pub flags: u32,
}

static PINNED: RwLock<BTreeMap<usize, Pinned>> = RwLock::new(BTreeMap::new());

/// The flags of `cuMemHostAlloc`: portable, device map, write combined.
const ALLOCATION_FLAGS: u32 = 0b111;
/// The flags of `cuMemHostRegister`: portable, device map, memory of a device, read only. The last two need hardware
/// and drivers that not all have; this has not.
const REGISTRATION_FLAGS: u32 = 0b1111;
const UNSUPPORTED_REGISTRATION_FLAGS: u32 = 0b1100;

/// The pinned range that contains all of a range.
pub fn covering(address: usize, len_bytes: usize) -> Option<Pinned> {
    let pinned = PINNED.read().unwrap_or_else(PoisonError::into_inner);
    let (_, found) = pinned.range(..=address).next_back()?;
    let end = address.checked_add(len_bytes.max(1))?;
    (end <= found.base + found.len_bytes).then_some(*found)
}

/// Allocates pinned memory.
pub fn allocate(len_bytes: usize, device: usize, flags: u32) -> Result<usize> {
    if len_bytes == 0 || flags & !ALLOCATION_FLAGS != 0 {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: fresh pages anywhere.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(Code::OUT_OF_MEMORY);
    }
    // SAFETY: the pages were just mapped, and nobody knows them yet.
    unsafe { base.cast::<u8>().write_bytes(POISON, len_bytes) };
    let base = base as usize;
    insert(Pinned { base, len_bytes, registered: false, device, flags });
    Ok(base)
}

/// Frees what was allocated here. The caller has waited for work that may use it.
pub fn free(base: usize) -> Result {
    let pinned = remove(base, false).ok_or(Code::INVALID_VALUE)?;
    driver().space.discard_host(pinned.base, pinned.len_bytes);
    Ok(())
}

/// Registers memory of the program.
pub fn register(base: usize, len_bytes: usize, device: usize, flags: u32) -> Result {
    if base == 0 || len_bytes == 0 || flags & !REGISTRATION_FLAGS != 0 {
        return Err(Code::INVALID_VALUE);
    }
    if flags & UNSUPPORTED_REGISTRATION_FLAGS != 0 {
        return Err(Code::NOT_SUPPORTED);
    }
    let end = base.checked_add(len_bytes).ok_or(Code::INVALID_VALUE)?;
    if driver().space.contains(base as u64) || !is_mapped(base, end) {
        return Err(Code::INVALID_VALUE);
    }
    let pinned = PINNED.read().unwrap_or_else(PoisonError::into_inner);
    // Pages are pinned, so neighbours on one page overlap only if their bytes do: the driver counts pins of a page.
    let overlaps =
        pinned.range(..end).next_back().is_some_and(|(_, last)| last.base + last.len_bytes > base);
    drop(pinned);
    if overlaps {
        return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
    }
    insert(Pinned { base, len_bytes, registered: true, device, flags });
    Ok(())
}

/// Ends a registration, which is named by its first address.
pub fn unregister(base: usize) -> Result {
    remove(base, true).map(|_| ()).ok_or(Code::HOST_MEMORY_NOT_REGISTERED)
}

/// Frees and unregisters all that contexts of a device made.
pub fn free_all(device: usize) {
    let pinned = PINNED.read().unwrap_or_else(PoisonError::into_inner);
    let of_device: Vec<_> =
        pinned.values().filter(|range| range.device == device).copied().collect();
    drop(pinned);
    for range in of_device {
        let _ = if range.registered { unregister(range.base) } else { free(range.base) };
    }
}

fn insert(range: Pinned) {
    PINNED.write().unwrap_or_else(PoisonError::into_inner).insert(range.base, range);
    driver().space.note_change();
    count(|counters| counters.pinned_bytes_live += range.len_bytes as u64);
}

fn remove(base: usize, registered: bool) -> Option<Pinned> {
    let mut pinned = PINNED.write().unwrap_or_else(PoisonError::into_inner);
    pinned.get(&base).filter(|range| range.registered == registered)?;
    let removed = pinned.remove(&base)?;
    drop(pinned);
    driver().space.note_change();
    count(|counters| counters.pinned_bytes_live -= removed.len_bytes as u64);
    Some(removed)
}

fn is_mapped(base: usize, end: usize) -> bool {
    let page = PAGE_BYTES as usize;
    let start = base - base % page;
    let mut resident = vec![0u8; (end - start).div_ceil(page)];
    // SAFETY: it reads no memory, and there is a byte for each page.
    unsafe { libc::mincore(start as *mut _, end - start, resident.as_mut_ptr()) == 0 }
}

/// Waits for the work of all contexts, any of which may use pinned memory.
pub fn synchronise_all() {
    let contexts: Vec<Arc<_>> =
        driver().devices.iter().filter_map(|device| device.context()).collect();
    for context in contexts {
        context.synchronise();
    }
}
