//! Allocation of device memory and of pinned host memory.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::device::pool_device;
use crate::code::{Code, Result};
use crate::context::current;
use crate::counters::count;
use crate::ffi::{Out, entry_points};
use crate::initialisation::driver;
use crate::memory::{Allocation, Kind, PAGE_BYTES};
use crate::settings::RemoteWrites;
use crate::{host_memory, settings, stream};

entry_points! { Initialised:
    fn cuMemAlloc_v2(to: Out<u64>, len_bytes: usize) {
        let context = current()?;
        if to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        to.set(driver().space.allocate(context.device, len_bytes as u64, Kind::Direct)?.base)
    }

    fn cuMemFree_v2(address: u64) {
        current()?;
        let right = |found: &Allocation| matches!(found.kind, Kind::Direct | Kind::Pool(_));
        let found = driver().space.find(address).filter(|found| found.base == address);
        let found = found.filter(|found| right(found)).ok_or(Code::INVALID_VALUE)?;
        // It synchronises: what was queued may use the memory, and still gets it.
        if let Some(context) = driver().devices[found.device].context() {
            context.synchronise();
            context.check()?;
        }
        driver().space.free(address, right).map(|_| ())
    }

    fn cuMemAllocAsync(to: Out<u64>, len_bytes: usize, stream: usize) {
        let stream = stream::by_handle(stream)?;
        allocate_from_pool(to, stream.context.device, len_bytes)
    }

    fn cuMemAllocFromPoolAsync(to: Out<u64>, len_bytes: usize, pool: usize, stream: usize) {
        stream::by_handle(stream)?;
        allocate_from_pool(to, pool_device(pool)?, len_bytes)
    }

    fn cuMemFreeAsync(address: u64, stream: usize) {
        let stream = stream::by_handle(stream)?;
        let found = driver().space.find(address).filter(|found| found.base == address);
        let found = found.ok_or(Code::INVALID_VALUE)?;
        // Only stream-ordered memory, and only once.
        let Kind::Pool(freeing) = &found.kind else { return Err(Code::INVALID_VALUE) };
        if freeing.swap(true, SeqCst) {
            return Err(Code::INVALID_VALUE);
        }
        stream.submit(move || {
            // It is gone already if the context or the program freed it otherwise.
            let _ = driver().space.free(address, |found| matches!(found.kind, Kind::Pool(_)));
            Ok(())
        });
        Ok(())
    }

    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let used = driver().devices[current()?.device].used_bytes.load(SeqCst);
        let all = settings::get().memory_bytes;
        free.set(all.saturating_sub(used) as usize)?;
        total.set(all as usize)
    }

    fn cuMemHostAlloc(to: Out<usize>, len_bytes: usize, flags: u32) {
        let context = current()?;
        to.set(0)?;
        to.set(host_memory::allocate(len_bytes, context.device, flags)?)
    }

    fn cuMemAllocHost_v2(to: Out<usize>, len_bytes: usize) {
        let context = current()?;
        to.set(0)?;
        to.set(host_memory::allocate(len_bytes, context.device, 0)?)
    }

    fn cuMemFreeHost(address: usize) {
        current()?;
        let found = host_memory::covering(address, 1).filter(|found| found.base == address);
        if found.is_none_or(|found| found.registered) {
            return Err(Code::INVALID_VALUE);
        }
        host_memory::synchronise_all();
        host_memory::free(address)
    }

    fn cuMemHostRegister_v2(address: usize, len_bytes: usize, flags: u32) {
        host_memory::register(address, len_bytes, current()?.device, flags)
    }

    fn cuMemHostUnregister(address: usize) {
        current()?;
        host_memory::unregister(address)
    }

    fn cuMemHostGetDevicePointer_v2(to: Out<u64>, address: usize, flags: u32) {
        current()?;
        if flags != 0 || host_memory::covering(address, 1).is_none() {
            return Err(Code::INVALID_VALUE);
        }
        to.set(address as u64)
    }

    fn cuMemHostGetFlags(to: Out<u32>, address: usize) {
        current()?;
        let found = host_memory::covering(address, 1).filter(|found| !found.registered);
        // With unified addressing all is mapped.
        to.set(found.ok_or(Code::INVALID_VALUE)?.flags | 2)
    }

    fn cuMemGetAddressRange_v2(base: Out<u64>, len_bytes: Out<usize>, address: u64) {
        current()?;
        if let Some(found) = driver().space.find(address) {
            base.set_if_wanted(found.base)?;
            return len_bytes.set_if_wanted(found.len_bytes as usize);
        }
        let pinned = host_memory::covering(address as usize, 1).ok_or(Code::NOT_FOUND)?;
        base.set_if_wanted(pinned.base as u64)?;
        len_bytes.set_if_wanted(pinned.len_bytes)
    }

    fn cuFlushGPUDirectRDMAWrites(target: i32, scope: i32) {
        current()?;
        // For the owner of the memory, or for all devices.
        if target != 0 || !matches!(scope, 100 | 200) {
            return Err(Code::INVALID_VALUE);
        }
        if settings::get().remote_writes == RemoteWrites::Unordered {
            return Err(Code::NOT_SUPPORTED);
        }
        count(|counters| counters.remote_write_flushes += 1);
        Ok(())
    }

    fn cuMemGetHandleForAddressRange(
        handle: Out<i32>,
        address: u64,
        len_bytes: usize,
        handle_type: i32,
        flags: u64,
    ) {
        current()?;
        // 1: dma-buf descriptor; flag 1: mapped over PCIe.
        if handle_type != 1 || flags > 1 || handle.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        handle.set(dma_buf(address, len_bytes as u64)?)
    }
}

fn allocate_from_pool(to: Out<u64>, device: usize, len_bytes: usize) -> Result {
    if to.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    let kind = Kind::Pool(AtomicBool::new(false));
    to.set(driver().space.allocate(device, len_bytes as u64, kind)?.base)
}

/// A descriptor of pages. It is a memory file whose position says where the pages begin in it, so that a stand-in for a
/// network adapter can map them.
fn dma_buf(address: u64, len_bytes: u64) -> Result<i32> {
    use std::io::{Seek, SeekFrom};
    use std::os::fd::{AsRawFd, IntoRawFd};
    if !settings::get().dma_buf {
        return Err(Code::NOT_SUPPORTED);
    }
    if len_bytes == 0
        || !address.is_multiple_of(PAGE_BYTES)
        || !len_bytes.is_multiple_of(PAGE_BYTES)
    {
        return Err(Code::INVALID_VALUE);
    }
    // The pages of a small allocation begin before it.
    let found = driver().space.find(address).or_else(|| {
        let rest = PAGE_BYTES - 1;
        (0..=rest).step_by(512).find_map(|offset| driver().space.find(address + offset))
    });
    let found = found.ok_or(Code::INVALID_VALUE)?;
    match &found.kind {
        Kind::Direct => {}
        // As the real driver demands for use by network adapters.
        Kind::Mapped(physical, _) if physical.properties.rdma_capable == 1 => {}
        _ => return Err(Code::NOT_SUPPORTED),
    }
    let (start, pages_bytes) = found.pages();
    if address < start || address + len_bytes > start + pages_bytes {
        return Err(Code::INVALID_VALUE);
    }
    let path = format!("/proc/self/fd/{}", found.backing.file.as_raw_fd());
    // Opened anew, because a duplicate would share its position with the allocation's descriptor.
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path);
    let mut file = file.map_err(|_| Code::OUT_OF_MEMORY)?;
    file.seek(SeekFrom::Start(address - start)).map_err(|_| Code::UNKNOWN)?;
    Ok(file.into_raw_fd())
}
