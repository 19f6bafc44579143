//! Virtual memory management: ranges of addresses, physical memory, mappings of it, and who may touch them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use crate::code::{Code, Result};
use crate::initialisation::{device, driver};
use crate::memory::{Allocation, Backing, Kind, POISON};
use crate::registry::Registry;
use crate::settings;

/// What sizes and addresses are multiples of.
pub const GRANULARITY_BYTES: u64 = 2 << 20;

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
pub const FILE_DESCRIPTOR: u32 = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
pub const ON_DEVICE: i32 = 1;

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Location {
    /// 1 for a device.
    pub kind: i32,
    /// Its ordinal.
    pub id: i32,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Properties {
    /// 1, pinned, is the only one.
    pub kind: i32,
    /// Handle types to export by.
    pub handle_types: u32,
    /// Where.
    pub location: Location,
    /// For Windows.
    pub windows_metadata: usize,
    /// Compression.
    pub compression: u8,
    /// Whether network adapters may reach it.
    pub rdma_capable: u8,
    /// For sparse arrays, multicast.
    pub usage: u16,
    /// Zero.
    pub reserved: [u8; 4],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AccessDescription {
    /// Whose access.
    pub location: Location,
    /// 0 none, 1 read, 3 read and write.
    pub flags: u32,
}

/// Physical memory.
pub struct Physical {
    /// Its file.
    pub backing: Arc<Backing>,
    /// As it was asked for.
    pub properties: Properties,
    handle: usize,
    /// How often the handle has to be released.
    held: Mutex<usize>,
}

static PHYSICAL: Registry<Physical> = Registry::new(0x0d00_0000_0000);
static RESERVED: Mutex<BTreeMap<u64, u64>> = Mutex::new(BTreeMap::new());

/// Refuses where the setting says so.
pub fn check_supported() -> Result {
    if settings::get().virtual_memory { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
}

/// The granularity of memory with these properties.
pub fn granularity(properties: &Properties) -> Result<u64> {
    check_properties(properties)?;
    Ok(GRANULARITY_BYTES)
}

/// Reserves addresses.
pub fn reserve(len_bytes: u64, alignment_bytes: u64) -> Result<u64> {
    check_multiple(len_bytes)?;
    if alignment_bytes != 0 && !alignment_bytes.is_power_of_two() {
        return Err(Code::INVALID_VALUE);
    }
    let base = driver().space.reserve(len_bytes, alignment_bytes.max(GRANULARITY_BYTES))?;
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner).insert(base, len_bytes);
    Ok(base)
}

/// Gives reserved addresses back, as they were reserved, and with nothing mapped.
pub fn free_reserved(base: u64, len_bytes: u64) -> Result {
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    if reserved.get(&base) != Some(&len_bytes) || !mappings(base, len_bytes).is_empty() {
        return Err(Code::INVALID_VALUE);
    }
    reserved.remove(&base);
    Ok(())
}

/// Allocates physical memory.
pub fn create(len_bytes: u64, properties: Properties) -> Result<usize> {
    check_properties(&properties)?;
    check_multiple(len_bytes)?;
    let backing = Backing::create("physical", properties.location.id as usize, len_bytes)?;
    fill_with_poison(&backing.file, len_bytes)?;
    Ok(add(backing, properties))
}

/// The physical memory that a handle names.
pub fn physical(handle: usize) -> Result<Arc<Physical>> {
    // The real driver checks this handle as an argument, not as a resource.
    PHYSICAL.get(handle).map_err(|_| Code::INVALID_VALUE)
}

/// Gives a handle back; the memory stays while it is mapped.
pub fn release(handle: usize) -> Result {
    let physical = physical(handle)?;
    let mut held = physical.held.lock().unwrap_or_else(PoisonError::into_inner);
    *held -= 1;
    if *held == 0 {
        PHYSICAL.remove(handle)?;
    }
    Ok(())
}

/// The handle of what is mapped at an address, which has to be released once more. It is the one that was mapped, even
/// if that was released before.
pub fn retain(address: u64) -> Result<usize> {
    let allocation = driver().space.find(address).ok_or(Code::INVALID_VALUE)?;
    let Kind::Mapped(physical, _) = &allocation.kind else { return Err(Code::INVALID_VALUE) };
    let mut held = physical.held.lock().unwrap_or_else(PoisonError::into_inner);
    *held += 1;
    if *held == 1 {
        PHYSICAL.restore(physical.handle, physical.clone());
    }
    Ok(physical.handle)
}

/// Maps physical memory. Nobody may touch it before access is set.
pub fn map(base: u64, len_bytes: u64, offset_bytes: u64, handle: usize) -> Result {
    let physical = physical(handle)?;
    check_multiple(len_bytes)?;
    // The offset is documented as having to be zero.
    if offset_bytes != 0 || !base.is_multiple_of(GRANULARITY_BYTES) {
        return Err(Code::INVALID_VALUE);
    }
    let reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    let inside = reserved.range(..=base).next_back().is_some_and(|(start, reserved_bytes)| {
        base.checked_add(len_bytes).is_some_and(|end| end <= start + reserved_bytes)
    });
    if !inside || len_bytes > physical.backing.len_bytes || !mappings(base, len_bytes).is_empty() {
        return Err(Code::INVALID_VALUE);
    }
    let (device, backing) = (physical.backing.device, physical.backing.clone());
    let kind = Kind::Mapped(physical, std::array::from_fn(|_| AtomicU8::new(0)));
    driver().space.map(base, len_bytes, device, kind, backing, 0).map(|_| ())
}

/// Unmaps whole mappings.
pub fn unmap(base: u64, len_bytes: u64) -> Result {
    for mapping in whole_mappings(base, len_bytes)? {
        driver().space.free(mapping.base, |found| matches!(found.kind, Kind::Mapped(..)))?;
    }
    Ok(())
}

/// Sets what devices may do in whole mappings.
pub fn set_access(base: u64, len_bytes: u64, descriptions: &[AccessDescription]) -> Result {
    let mappings = whole_mappings(base, len_bytes)?;
    if descriptions.is_empty() {
        return Err(Code::INVALID_VALUE);
    }
    for description in descriptions {
        if !matches!(description.flags, 0 | 1 | 3) || description.location.kind != ON_DEVICE {
            return Err(Code::INVALID_VALUE);
        }
        let accessor = device(description.location.id)?.ordinal;
        let settings = settings::get();
        let reachable = |mapping: &Arc<Allocation>| {
            mapping.device == accessor || settings.can_access_peer(accessor, mapping.device)
        };
        if !mappings.iter().all(reachable) {
            return Err(Code::INVALID_DEVICE);
        }
    }
    for mapping in &mappings {
        let Kind::Mapped(_, access) = &mapping.kind else { return Err(Code::INVALID_VALUE) };
        for description in descriptions {
            access[description.location.id as usize].store(description.flags as u8, SeqCst);
        }
    }
    driver().space.note_change();
    Ok(())
}

/// What a device may do at an address.
pub fn access(location: Location, address: u64) -> Result<u64> {
    if location.kind != ON_DEVICE {
        return Err(Code::INVALID_VALUE);
    }
    let accessor = device(location.id)?.ordinal;
    let allocation = driver().space.find(address).ok_or(Code::INVALID_VALUE)?;
    match &allocation.kind {
        Kind::Mapped(_, access) => Ok(access[accessor].load(SeqCst) as u64),
        _ => Err(Code::INVALID_VALUE),
    }
}

/// A descriptor of physical memory for other processes; it is the caller's.
pub fn export(handle: usize, handle_type: u32) -> Result<OwnedFd> {
    let physical = physical(handle)?;
    if handle_type != FILE_DESCRIPTOR || physical.properties.handle_types & FILE_DESCRIPTOR == 0 {
        return Err(Code::INVALID_VALUE);
    }
    physical.backing.file.as_fd().try_clone_to_owned().map_err(|_| Code::OUT_OF_MEMORY)
}

/// Physical memory of another process, or of this one. The descriptor stays the caller's.
pub fn import(descriptor: i32, handle_type: u32) -> Result<usize> {
    if handle_type != FILE_DESCRIPTOR || descriptor < 0 {
        return Err(Code::INVALID_VALUE);
    }
    let link = std::fs::read_link(format!("/proc/self/fd/{descriptor}"));
    let link = link.map_err(|_| Code::INVALID_VALUE)?;
    // A foreign descriptor must fail; the file's name says whose it is and of which device.
    let start = format!("/memfd:{}physical-", crate::FILE_NAME);
    let name = link.to_str().and_then(|link| link.strip_prefix(&start));
    let ordinal = name.and_then(|name| name.split(' ').next()?.parse().ok());
    let ordinal = device(ordinal.ok_or(Code::INVALID_VALUE)?)?.ordinal;
    // SAFETY: the caller promises that it stays open during the call, and it was open just now.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let file = File::from(borrowed.try_clone_to_owned().map_err(|_| Code::INVALID_VALUE)?);
    let len_bytes = file.metadata().map_err(|_| Code::INVALID_VALUE)?.len();
    let location = Location { kind: ON_DEVICE, id: ordinal as i32 };
    let properties = Properties {
        kind: 1,
        handle_types: FILE_DESCRIPTOR,
        location,
        windows_metadata: 0,
        compression: 0,
        rdma_capable: 1,
        usage: 0,
        reserved: [0; 4],
    };
    let backing = Backing::of_another(file, ordinal, len_bytes);
    Ok(add(backing, properties))
}

fn add(backing: Arc<Backing>, properties: Properties) -> usize {
    PHYSICAL.add(|handle| Physical { backing, properties, handle, held: Mutex::new(1) }).0
}

fn check_properties(properties: &Properties) -> Result {
    if properties.kind != 1 || properties.location.kind != ON_DEVICE {
        return Err(Code::INVALID_VALUE);
    }
    device(properties.location.id)?;
    if properties.handle_types & !FILE_DESCRIPTOR != 0 {
        return Err(Code::NOT_SUPPORTED);
    }
    Ok(())
}

fn check_multiple(len_bytes: u64) -> Result {
    if len_bytes == 0 || !len_bytes.is_multiple_of(GRANULARITY_BYTES) {
        return Err(Code::INVALID_VALUE);
    }
    Ok(())
}

fn mappings(base: u64, len_bytes: u64) -> Vec<Arc<Allocation>> {
    let end = base.saturating_add(len_bytes);
    let overlaps = |found: &Arc<Allocation>| found.base < end && base < found.end();
    driver().space.list().into_iter().filter(overlaps).collect()
}

/// The mappings that fill a range exactly.
fn whole_mappings(base: u64, len_bytes: u64) -> Result<Vec<Arc<Allocation>>> {
    let mappings = mappings(base, len_bytes);
    let mut reached = base;
    for mapping in &mappings {
        if mapping.base != reached || !matches!(mapping.kind, Kind::Mapped(..)) {
            return Err(Code::INVALID_VALUE);
        }
        reached = mapping.end();
    }
    if mappings.is_empty() || Some(reached) != base.checked_add(len_bytes) {
        return Err(Code::INVALID_VALUE);
    }
    Ok(mappings)
}

fn fill_with_poison(file: &File, len_bytes: u64) -> Result {
    // SAFETY: fresh pages anywhere, which are unmapped before anybody else knows them.
    unsafe {
        let pages = libc::mmap(
            std::ptr::null_mut(),
            len_bytes as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if pages == libc::MAP_FAILED {
            return Err(Code::OUT_OF_MEMORY);
        }
        pages.cast::<u8>().write_bytes(POISON, len_bytes as usize);
        libc::munmap(pages, len_bytes as usize);
    }
    Ok(())
}
