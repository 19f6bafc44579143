//! Reading and writing memory: the host's words behind device addresses, and the windows through which
//! generic addresses reach the other state spaces.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::instruction::Space;

/// Generic addresses of shared, local and parameter memory start here: far from what a host has.
const SHARED_WINDOW: u64 = 0x0100_0000_0000_0000;
const LOCAL_WINDOW: u64 = 0x0200_0000_0000_0000;
const PARAM_WINDOW: u64 = 0x0300_0000_0000_0000;
const WINDOW_BYTES: u64 = 0x0100_0000_0000_0000;

fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Global | Space::Generic => 0,
    }
}

/// `cvta`.
pub(super) fn to_generic(space: Space, address: u64) -> u64 {
    address.wrapping_add(window(space))
}

/// `cvta.to`.
pub(super) fn from_generic(space: Space, address: u64) -> u64 {
    address.wrapping_sub(window(space))
}

/// The state space that is accessed, and the address in it.
#[inline]
pub(super) fn locate(space: Space, address: u64) -> (Space, u64) {
    if space != Space::Generic {
        return (space, address);
    }
    match address / WINDOW_BYTES * WINDOW_BYTES {
        SHARED_WINDOW => (Space::Shared, address - SHARED_WINDOW),
        LOCAL_WINDOW => (Space::Local, address - LOCAL_WINDOW),
        PARAM_WINDOW => (Space::Param, address - PARAM_WINDOW),
        _ => (Space::Global, address),
    }
}

/// How errors name a space.
pub(super) fn name(space: Space) -> &'static str {
    match space {
        Space::Generic | Space::Global => "global",
        Space::Shared => "shared",
        Space::Local => "local",
        Space::Param => "parameter",
    }
}

/// Reads 1, 2, 4 or 8 bytes at once.
///
/// # Safety
///
/// The pointer is valid for reads of so many bytes, aligned to their number, and what it points to is
/// only written by atomic accesses, or by others than this program.
#[inline]
pub(super) unsafe fn read(pointer: *mut u8, len_bytes: usize) -> u64 {
    // SAFETY: As the caller promises.
    unsafe {
        match len_bytes {
            1 => u64::from(AtomicU8::from_ptr(pointer).load(Ordering::Relaxed)),
            2 => u64::from(AtomicU16::from_ptr(pointer.cast()).load(Ordering::Relaxed)),
            4 => u64::from(AtomicU32::from_ptr(pointer.cast()).load(Ordering::Relaxed)),
            _ => AtomicU64::from_ptr(pointer.cast()).load(Ordering::Relaxed),
        }
    }
}

/// Writes 1, 2, 4 or 8 bytes at once.
///
/// # Safety
///
/// As for [`read()`], and valid for writes.
#[inline]
pub(super) unsafe fn write(pointer: *mut u8, len_bytes: usize, value: u64) {
    // SAFETY: As the caller promises.
    unsafe {
        match len_bytes {
            1 => AtomicU8::from_ptr(pointer).store(value as u8, Ordering::Relaxed),
            2 => AtomicU16::from_ptr(pointer.cast()).store(value as u16, Ordering::Relaxed),
            4 => AtomicU32::from_ptr(pointer.cast()).store(value as u32, Ordering::Relaxed),
            _ => AtomicU64::from_ptr(pointer.cast()).store(value, Ordering::Relaxed),
        }
    }
}

/// Replaces 2, 4 or 8 bytes by what `new` makes of them, at once, and returns what they were.
///
/// # Safety
///
/// As for [`write()`].
pub(super) unsafe fn update(pointer: *mut u8, len_bytes: usize, new: impl Fn(u64) -> u64) -> u64 {
    const ORDER: Ordering = Ordering::SeqCst;
    // SAFETY: As the caller promises.
    unsafe {
        match len_bytes {
            2 => u64::from(fetched(AtomicU16::from_ptr(pointer.cast()).fetch_update(
                ORDER,
                ORDER,
                |old| Some(new(u64::from(old)) as u16),
            ))),
            4 => u64::from(fetched(AtomicU32::from_ptr(pointer.cast()).fetch_update(
                ORDER,
                ORDER,
                |old| Some(new(u64::from(old)) as u32),
            ))),
            _ => fetched(
                AtomicU64::from_ptr(pointer.cast())
                    .fetch_update(ORDER, ORDER, |old| Some(new(old))),
            ),
        }
    }
}

fn fetched<T>(result: Result<T, T>) -> T {
    result.unwrap_or_else(|old| old)
}

/// Reads up to 8 bytes of memory that only this thread of the host uses; `None` if they are not there.
#[inline]
pub(super) fn read_bytes(memory: &[u8], address: u64, len_bytes: usize) -> Option<u64> {
    let start = usize::try_from(address).ok()?;
    let bytes = memory.get(start..start.checked_add(len_bytes)?)?;
    let mut value = [0; 8];
    value[..len_bytes].copy_from_slice(bytes);
    Some(u64::from_le_bytes(value))
}

/// Writes up to 8 bytes, as [`read_bytes`].
#[inline]
pub(super) fn write_bytes(
    memory: &mut [u8],
    address: u64,
    len_bytes: usize,
    value: u64,
) -> Option<()> {
    let start = usize::try_from(address).ok()?;
    let bytes = memory.get_mut(start..start.checked_add(len_bytes)?)?;
    bytes.copy_from_slice(&value.to_le_bytes()[..len_bytes]);
    Some(())
}
