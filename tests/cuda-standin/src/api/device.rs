//! Devices and their pools of memory.

use std::ffi::c_char;
use std::sync::atomic::Ordering::SeqCst;

use crate::code::{Code, Result};
use crate::ffi::{In, Out, Text, entry_points};
use crate::initialisation::{device, driver};
use crate::settings;
use crate::virtual_memory::{AccessDescription, Location, ON_DEVICE};

/// Handles of the devices' pools, each the default and the current one of its device.
const FIRST_POOL: usize = 0x0b00_0000_0000;

entry_points! { Initialised:
    fn cuDeviceGet(to: Out<i32>, ordinal: i32) {
        to.set(device(ordinal)?.ordinal as i32)
    }

    fn cuDeviceGetCount(to: Out<i32>) {
        to.set(driver().devices.len() as i32)
    }

    fn cuDeviceGetName(to: Out<c_char>, capacity: i32, ordinal: i32) {
        device(ordinal)?;
        to.set_text("Stand-in GPU", capacity)
    }

    fn cuDeviceGetUuid(to: Out<[u8; 16]>, ordinal: i32) {
        to.set(device(ordinal)?.uuid())
    }

    fn cuDeviceGetUuid_v2(to: Out<[u8; 16]>, ordinal: i32) {
        to.set(device(ordinal)?.uuid())
    }

    fn cuDeviceGetPCIBusId(to: Out<c_char>, capacity: i32, ordinal: i32) {
        let id = device(ordinal)?.pci_bus_id();
        if (capacity as usize) <= id.len() {
            return Err(Code::INVALID_VALUE);
        }
        to.set_text(&id, capacity)
    }

    fn cuDeviceGetByPCIBusId(to: Out<i32>, id: Text) {
        let id = id.get()?.to_lowercase();
        // The domain and the function may be left out.
        let id = if id.matches(':').count() == 1 { format!("0000:{id}") } else { id };
        let id = if id.contains('.') { id } else { format!("{id}.0") };
        let found = driver().devices.iter().find(|device| device.pci_bus_id() == id);
        to.set(found.ok_or(Code::INVALID_VALUE)?.ordinal as i32)
    }

    fn cuDeviceTotalMem_v2(to: Out<usize>, ordinal: i32) {
        device(ordinal)?;
        to.set(settings::get().memory_bytes as usize)
    }

    fn cuDeviceGetAttribute(to: Out<i32>, attribute: i32, ordinal: i32) {
        to.set(device(ordinal)?.attribute(attribute)?)
    }

    fn cuDeviceCanAccessPeer(to: Out<i32>, ordinal: i32, peer: i32) {
        let (a, b) = (device(ordinal)?.ordinal, device(peer)?.ordinal);
        to.set(settings::get().can_access_peer(a, b) as i32)
    }

    fn cuDeviceGetP2PAttribute(to: Out<i32>, attribute: i32, ordinal: i32, peer: i32) {
        let (a, b) = (device(ordinal)?.ordinal, device(peer)?.ordinal);
        if a == b {
            return Err(Code::INVALID_DEVICE);
        }
        match attribute {
            1 => to.set(0),
            // Access, atomics, arrays.
            2..=4 => to.set(settings::get().can_access_peer(a, b) as i32),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    fn cuDeviceGetDefaultMemPool(to: Out<usize>, ordinal: i32) {
        to.set(pool_handle(device(ordinal)?.ordinal))
    }

    fn cuDeviceGetMemPool(to: Out<usize>, ordinal: i32) {
        to.set(pool_handle(device(ordinal)?.ordinal))
    }

    fn cuMemPoolSetAttribute(pool: usize, attribute: i32, value: In<u64>) {
        pool_device(pool)?;
        // Reuse policies and the threshold of release, which change only when memory goes back to the system.
        if !(1..=4).contains(&attribute) || value.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        Ok(())
    }

    fn cuMemPoolGetAttribute(pool: usize, attribute: i32, value: Out<u64>) {
        let used = driver().devices[pool_device(pool)?].used_bytes.load(SeqCst);
        match attribute {
            1..=3 => value.cast::<i32>().set(1),
            4 => value.set(0),
            5..=8 => value.set(used),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    fn cuMemPoolTrimTo(pool: usize, kept_bytes: usize) {
        let _ = kept_bytes;
        pool_device(pool).map(|_| ())
    }

    fn cuMemPoolSetAccess(pool: usize, descriptions: In<AccessDescription>, count: usize) {
        let owner = pool_device(pool)?;
        for description in descriptions.copied(count)? {
            if description.location.kind != ON_DEVICE || !matches!(description.flags, 0 | 3) {
                return Err(Code::INVALID_VALUE);
            }
            let accessor = device(description.location.id)?.ordinal;
            if accessor == owner {
                continue;
            }
            if !settings::get().can_access_peer(accessor, owner) {
                return Err(Code::INVALID_DEVICE);
            }
            driver().devices[owner].pool_access[accessor].store(description.flags == 3, SeqCst);
        }
        driver().space.note_change();
        Ok(())
    }

    fn cuMemPoolGetAccess(flags: Out<u32>, pool: usize, location: In<Location>) {
        let owner = pool_device(pool)?;
        let accessor = device(location.get()?.id)?.ordinal;
        let open = driver().devices[owner].pool_access[accessor].load(SeqCst);
        flags.set(if open { 3 } else { 0 })
    }
}

/// The handle of a device's pool.
pub fn pool_handle(ordinal: usize) -> usize {
    FIRST_POOL + ordinal * 16
}

/// The device whose pool a handle names.
pub fn pool_device(pool: usize) -> Result<usize> {
    let found = (0..driver().devices.len()).find(|ordinal| pool_handle(*ordinal) == pool);
    found.ok_or(Code::INVALID_VALUE)
}
