//! Host memory that devices can reach: allocated by the driver, or registered with it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::code::{Code, Result};
use crate::counters::count;
use crate::initialisation::driver;
use crate::memory::POISON;
use crate::settings;

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
/// The flags of `cuMemHostRegister`: portable, device map, memory of a device, read only. Memory of devices needs
/// hardware that this has not.
const REGISTRATION_FLAGS: u32 = 0b1111;
const OF_DEVICE: u32 = 0b100;
const READ_ONLY: u32 = 0b1000;

impl Pinned {
    /// Whether a device may write there.
    pub fn is_writable(&self) -> bool {
        !(self.registered && self.flags & READ_ONLY != 0)
    }
}

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
    let is_supported = flags & READ_ONLY == 0 || settings::get().read_only_registration;
    if flags & OF_DEVICE != 0 || !is_supported {
        return Err(Code::NOT_SUPPORTED);
    }
    let end = base.checked_add(len_bytes).ok_or(Code::INVALID_VALUE)?;
    // Pages are pinned for writing unless the program says that nobody writes them.
    let wanted = if flags & READ_ONLY == 0 { "rw" } else { "r" };
    if driver().space.contains(base as u64) || !is_mapped(base, end, wanted) {
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

/// Whether all of a range is mapped with these rights at least.
fn is_mapped(base: usize, end: usize, rights: &str) -> bool {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return false };
    let mut reached = base;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(granted)) = (words.next(), words.next()) else { continue };
        let Some((start, stop)) = range.split_once('-') else { continue };
        let [Ok(start), Ok(stop)] = [start, stop].map(|text| usize::from_str_radix(text, 16))
        else {
            continue;
        };
        if start <= reached && reached < stop && rights.chars().all(|right| granted.contains(right))
        {
            reached = stop;
        }
    }
    reached >= end
}

/// Waits for the work of all contexts, any of which may use pinned memory.
pub fn synchronise_all() {
    let contexts: Vec<Arc<_>> =
        driver().devices.iter().filter_map(|device| device.context()).collect();
    for context in contexts {
        context.synchronise();
    }
}
