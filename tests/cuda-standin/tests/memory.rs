//! Device memory, pinned memory, what addresses are.

mod common;
use common::*;

use std::os::fd::FromRawFd;
use std::os::unix::process::ExitStatusExt;

#[test]
fn copies_round_trip_and_fresh_memory_is_poisoned() {
    isolated("copies_round_trip_and_fresh_memory_is_poisoned", &[], || {
        use_device(0);
        let address = allocate(5000);
        assert_eq!(download(address, 5000), vec![POISON; 5000]);
        let bytes: Vec<u8> = (0..5000).map(|n| n as u8).collect();
        upload(address, &bytes);
        assert_eq!(download(address, 5000), bytes);
        assert!(pinned(100).iter().all(|byte| *byte == POISON));
    });
}

#[test]
fn the_host_cannot_touch_device_memory() {
    const NAME: &str = "the_host_cannot_touch_device_memory";
    if inside(NAME) {
        use_device(0);
        let address = allocate(4096);
        // SAFETY: it is none: that it faults is the test.
        println!("{}", unsafe { std::ptr::read_volatile(address as *const u8) });
        return;
    }
    let output = process(NAME, &[]).output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV));
}

#[test]
fn copies_are_bounded_by_allocations() {
    isolated("copies_are_bounded_by_allocations", &[], || {
        use_device(0);
        let address = allocate(1000);
        let mut bytes = [0u8; 2000];
        assert_eq!(cuMemcpyDtoH_v2(bytes.as_mut_ptr(), address, 1001), INVALID_VALUE);
        assert_eq!(cuMemcpyHtoD_v2(address + 1, bytes.as_ptr(), 1000), INVALID_VALUE);
        assert_eq!(cuMemsetD8_v2(address, 0, 1001), INVALID_VALUE);
        assert_eq!(cuMemcpyHtoD_v2(address, address as *const u8, 10), INVALID_VALUE);
        assert_eq!(cuMemsetD32Async(address + 2, 0, 1, 0), INVALID_VALUE);
        ok(cuMemcpyDtoH_v2(bytes.as_mut_ptr(), address + 1, 999));
        // None of it was an error of the device.
        ok(cuCtxSynchronize());
    });
}

#[test]
fn freed_memory_is_illegal_and_its_address_not_used_again() {
    isolated("freed_memory_is_illegal_and_its_address_not_used_again", &[], || {
        use_device(0);
        let mut addresses = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let address = allocate(1 << 20);
            assert!(addresses.insert(address));
            assert_eq!(address % 256, 0);
            ok(cuMemFree_v2(address));
            assert_eq!(cuMemFree_v2(address), INVALID_VALUE);
            assert_eq!(cuMemsetD8_v2(address, 0, 1), INVALID_VALUE);
        }
        let address = allocate(4096);
        assert_eq!(cuMemFree_v2(address + 512), INVALID_VALUE);
        assert_eq!(cuMemFree_v2(0), INVALID_VALUE);
        assert_eq!(counters().allocations_live, 1);
    });
}

#[test]
fn freeing_waits_for_work_that_was_queued() {
    isolated("freeing_waits_for_work_that_was_queued", &[("HOLD_MS", "60000")], || {
        use_device(0);
        let (address, copied, stream) = (allocate(1 << 16), allocate(1 << 16), stream());
        ok(cuMemsetD8Async(address, 5, 1 << 16, stream));
        ok(cuMemcpyDtoDAsync_v2(copied, address, 1 << 16, stream));
        ok(cuMemFree_v2(address));
        assert_eq!(download(copied, 1 << 16), vec![5; 1 << 16]);
    });
}

#[test]
fn stream_ordered_memory_is_gone_when_its_free_runs() {
    let settings = [("HOLD_MS", "60000")];
    isolated("stream_ordered_memory_is_gone_when_its_free_runs", &settings, || {
        use_device(0);
        let (one, other) = (stream(), stream());
        let address = get(|to| cuMemAllocAsync(to, 4096, one));
        let ordinary = allocate(4096);
        assert_eq!(cuMemFreeAsync(ordinary, one), INVALID_VALUE);
        ok(cuMemFreeAsync(address, one));
        assert_eq!(cuMemFreeAsync(address, one), INVALID_VALUE);
        // Not run yet, so the other stream's use of it is accepted; it runs after the free, without an order.
        ok(cuMemsetD8Async(address, 1, 4096, other));
        ok(cuStreamSynchronize(one));
        assert_eq!(cuStreamSynchronize(other), ILLEGAL_ADDRESS);
        assert_eq!(cuCtxSynchronize(), ILLEGAL_ADDRESS);
    });
}

#[test]
fn memory_is_limited_and_counted() {
    isolated("memory_is_limited_and_counted", &[("MEMORY_BYTES", "1048576")], || {
        use_device(0);
        let mut address = 0;
        assert_eq!(cuMemAlloc_v2(&mut address, 2 << 20), OUT_OF_MEMORY);
        assert_eq!(cuMemAlloc_v2(&mut address, usize::MAX - 5), OUT_OF_MEMORY);
        assert_eq!(cuMemAlloc_v2(&mut address, 0), INVALID_VALUE);
        let address = allocate(1 << 20);
        let (mut free, mut total) = (1, 1);
        ok(cuMemGetInfo_v2(&mut free, &mut total));
        assert_eq!((free, total), (0, 1 << 20));
        assert_eq!(counters().bytes_live, 1 << 20);
        let mut none = 0;
        assert_eq!(cuMemAlloc_v2(&mut none, 1), OUT_OF_MEMORY);
        ok(cuMemFree_v2(address));
        allocate(1 << 20);
    });
}

#[test]
fn pageable_memory_is_read_at_the_call_and_pinned_memory_later() {
    let settings = [("HOLD_MS", "60000")];
    isolated("pageable_memory_is_read_at_the_call_and_pinned_memory_later", &settings, || {
        use_device(0);
        let (address, stream) = (allocate(4096), stream());
        let mut pageable = vec![1u8; 4096];
        ok(cuMemcpyHtoDAsync_v2(address, pageable.as_ptr(), 4096, stream));
        pageable.fill(2);
        ok(cuStreamSynchronize(stream));
        assert_eq!(download(address, 4096), vec![1; 4096]);
        let host = pinned(4096);
        host.fill(3);
        ok(cuMemcpyHtoDAsync_v2(address, host.as_ptr(), 4096, stream));
        host.fill(4);
        ok(cuStreamSynchronize(stream));
        assert_eq!(download(address, 4096), vec![4; 4096]);
        // To pageable memory a copy is over when the call is back, to pinned memory it is not.
        ok(cuMemsetD8Async(address, 5, 4096, stream));
        ok(cuMemcpyDtoHAsync_v2(pageable.as_mut_ptr(), address, 4096, stream));
        assert_eq!(pageable, vec![5; 4096]);
        ok(cuMemsetD8Async(address, 6, 4096, stream));
        ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), address, 4096, stream));
        assert_eq!(host, vec![4; 4096]);
        ok(cuStreamSynchronize(stream));
        assert_eq!(host, vec![6; 4096]);
    });
}

#[test]
fn synchronous_memset_does_not_wait_unless_memory_says_so() {
    let settings = [("HOLD_MS", "60000")];
    isolated("synchronous_memset_does_not_wait_unless_memory_says_so", &settings, || {
        use_device(0);
        let (address, other, host) = (allocate(64), stream(), pinned(64));
        ok(cuMemsetD8_v2(address, 1, 64));
        ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), address, 64, other));
        ok(cuStreamSynchronize(other));
        assert_eq!(host, [POISON; 64]);
        let yes = 1u32;
        ok(cuPointerSetAttribute((&raw const yes).cast(), 6, address));
        ok(cuMemsetD8_v2(address, 2, 64));
        ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), address, 64, other));
        ok(cuStreamSynchronize(other));
        assert_eq!(host, [2; 64]);
    });
}

#[test]
fn registered_memory_is_pinned_until_unregistered() {
    isolated("registered_memory_is_pinned_until_unregistered", &[], || {
        use_device(0);
        let mut memory = vec![7u8; 3 * 4096];
        let address = memory.as_mut_ptr();
        let mut device_address = 0;
        assert_eq!(cuMemHostGetDevicePointer_v2(&mut device_address, address, 0), INVALID_VALUE);
        ok(cuMemHostRegister_v2(address, memory.len(), 3));
        ok(cuMemHostGetDevicePointer_v2(&mut device_address, address, 0));
        assert_eq!(device_address, address as u64);
        assert_eq!(counters().pinned_bytes_live, 3 * 4096);
        assert_eq!(cuMemHostRegister_v2(address.wrapping_add(100), 10, 0), 712);
        assert_eq!(cuMemFreeHost(address), INVALID_VALUE);
        assert_eq!(cuMemHostUnregister(address.wrapping_add(1)), 713);
        ok(cuMemHostUnregister(address));
        assert_eq!(cuMemHostUnregister(address), 713);
        assert_eq!(cuMemHostRegister_v2(address, 0, 0), INVALID_VALUE);
        assert_eq!(cuMemHostRegister_v2(address, 10, 4), NOT_SUPPORTED);
        let device = allocate(4096);
        assert_eq!(cuMemHostRegister_v2(device as *mut u8, 4096, 0), INVALID_VALUE);
        assert_eq!(cuMemHostRegister_v2(4096 as *mut u8, 4096, 0), INVALID_VALUE);
        let host = pinned(4096);
        assert_eq!(cuMemHostUnregister(host.as_mut_ptr()), 713);
        ok(cuMemFreeHost(host.as_mut_ptr()));
        assert_eq!(counters().pinned_bytes_live, 0);
    });
}

#[test]
fn addresses_tell_what_they_are() {
    isolated("addresses_tell_what_they_are", &[], || {
        use_device(0);
        let context = use_device(1);
        let address = allocate(10_000);
        let read = |attribute, address| {
            let mut value = 0u64;
            let code = cuPointerGetAttribute((&raw mut value).cast(), attribute, address);
            (code, value)
        };
        assert_eq!(read(1, address + 9), (0, context as u64));
        assert_eq!(read(2, address + 9), (0, 2));
        assert_eq!(read(3, address + 9), (0, address + 9));
        assert_eq!(read(9, address + 9), (0, 1));
        assert_eq!(read(10, address), (0, 1));
        assert_eq!(read(11, address + 9), (0, address));
        assert_eq!(read(12, address + 9), (0, 10_000));
        assert_ne!(read(7, address).1, read(7, allocate(1)).1);
        assert_eq!(read(2, address + 10_000).0, INVALID_VALUE);
        let host = pinned(100);
        let host_address = host.as_ptr() as u64;
        assert_eq!(read(2, host_address + 1), (0, 1));
        assert_eq!(read(4, host_address + 1), (0, host_address + 1));
        let pool = get(|to| cuMemAllocAsync(to, 4096, 0));
        assert_eq!(read(10, pool), (0, 0));
        assert_ne!(read(17, pool), (0, 0));
        let local = 5u8;
        assert_eq!(read(2, &raw const local as u64).0, INVALID_VALUE);
        // The function for several attributes takes what is not the driver's.
        let (mut kind, mut ordinal) = (9u32, 9i32);
        let to = [(&raw mut kind).cast(), (&raw mut ordinal).cast()];
        ok(cuPointerGetAttributes(2, [2, 9].as_ptr(), to.as_ptr(), &raw const local as u64));
        assert_eq!((kind, ordinal), (0, -2));
        let (mut base, mut len) = (0, 0);
        ok(cuMemGetAddressRange_v2(&mut base, &mut len, address + 777));
        assert_eq!((base, len), (address, 10_000));
        assert_eq!(cuMemGetAddressRange_v2(&mut base, &mut len, address + 10_000), 500);
    });
}

#[test]
fn a_dma_buf_has_the_memory_in_it() {
    isolated("a_dma_buf_has_the_memory_in_it", &[], || {
        use std::io::Seek;
        use std::os::unix::fs::FileExt;
        use_device(0);
        let address = allocate(4 << 20);
        upload(address, &vec![1; 4 << 20]);
        upload(address + 8192, &[2; 4096]);
        let descriptor = get(|to| cuMemGetHandleForAddressRange(to, address + 8192, 4096, 1, 0));
        // SAFETY: the descriptor is this test's.
        let mut file = unsafe { std::fs::File::from_raw_fd(descriptor) };
        let begins = file.stream_position().unwrap();
        let mut bytes = [0; 4097];
        file.read_exact_at(&mut bytes, begins).unwrap();
        assert_eq!((bytes[0], bytes[4095], bytes[4096]), (2, 2, 1));
        file.write_all_at(&[3], begins).unwrap();
        assert_eq!(download(address + 8192, 2), [3, 2]);
        let refused = |address, len| {
            let mut descriptor = 0;
            cuMemGetHandleForAddressRange(&mut descriptor, address, len, 1, 0)
        };
        assert_eq!(refused(address + 1, 4096), INVALID_VALUE);
        assert_eq!(refused(address, 100), INVALID_VALUE);
        assert_eq!(refused(address, 8 << 20), INVALID_VALUE);
        // The pages around a small allocation, which does not begin at one.
        let small = allocate(1000);
        ok(refused(small / 4096 * 4096, 4096));
        let pool = get(|to| cuMemAllocAsync(to, 2 << 20, 0));
        assert_eq!(refused(pool, 4096), NOT_SUPPORTED);
        ok(configure("NO_DMA_BUF", "1"));
        assert_eq!(refused(address, 4096), NOT_SUPPORTED);
        assert_eq!(get::<i32>(|to| cuDeviceGetAttribute(to, 124, 0)), 0);
    });
}

#[test]
fn what_network_adapters_write_is_ordered_or_flushed_or_neither() {
    isolated("what_network_adapters_write_is_ordered_or_flushed_or_neither", &[], || {
        use_device(0);
        let attributes = || [117, 118].map(|a| get::<i32>(|to| cuDeviceGetAttribute(to, a, 0)));
        assert_eq!(attributes(), [1, 100]);
        ok(cuFlushGPUDirectRDMAWrites(0, 100));
        assert_eq!(counters().remote_write_flushes, 1);
        assert_eq!(cuFlushGPUDirectRDMAWrites(1, 100), INVALID_VALUE);
        ok(configure("REMOTE_WRITES", "flushed"));
        assert_eq!(attributes(), [1, 0]);
        ok(configure("REMOTE_WRITES", "unordered"));
        assert_eq!(attributes(), [0, 0]);
        assert_eq!(cuFlushGPUDirectRDMAWrites(0, 100), NOT_SUPPORTED);
        assert_eq!(counters().remote_write_flushes, 1);
    });
}

#[test]
fn memory_that_may_only_be_read_is_registered_as_such() {
    isolated("memory_that_may_only_be_read_is_registered_as_such", &[], || {
        use_device(0);
        // SAFETY: fresh pages anywhere, which nobody writes.
        let pages = unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ, flags, -1, 0)
        };
        let address = pages.cast::<u8>();
        assert_eq!(cuMemHostRegister_v2(address, 8192, 3), INVALID_VALUE);
        ok(cuMemHostRegister_v2(address, 8192, 3 | 8));
        ok(cuMemHostUnregister(address));
        configure("NO_READ_ONLY_REGISTRATION", "1");
        assert_eq!(cuMemHostRegister_v2(address, 8192, 3 | 8), NOT_SUPPORTED);
    });
}
