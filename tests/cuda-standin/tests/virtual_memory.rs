//! Virtual memory management.

mod common;
use common::*;

use std::os::fd::AsRawFd;

const UNIT: usize = 2 << 20;
const ON_FIRST: Properties =
    Properties { kind: 1, handle_types: 1, location: [1, 0], metadata: 0, flags: [0; 8] };
const BY_FIRST: AccessDescription = AccessDescription { location: [1, 0], flags: 3 };
const BY_SECOND: AccessDescription = AccessDescription { location: [1, 1], flags: 3 };

fn reserve(len: usize) -> u64 {
    get(|to| cuMemAddressReserve(to, len, 0, 0, 0))
}

fn create() -> usize {
    get(|to| cuMemCreate(to, UNIT, &ON_FIRST, 0))
}

#[test]
fn mapped_memory_is_used_like_any_other() {
    isolated("mapped_memory_is_used_like_any_other", &[], || {
        use_device(0);
        assert_eq!(get::<usize>(|to| cuMemGetAllocationGranularity(to, &ON_FIRST, 1)), UNIT);
        let base = reserve(2 * UNIT);
        let (one, other) = (create(), create());
        ok(cuMemMap(base, UNIT, 0, one, 0));
        ok(cuMemMap(base + UNIT as u64, UNIT, 0, other, 0));
        // Nobody may touch it yet.
        assert_eq!(cuMemsetD8_v2(base, 1, 1), INVALID_VALUE);
        ok(cuMemSetAccess(base, 2 * UNIT, &BY_FIRST, 1));
        assert_eq!(get::<u64>(|to| cuMemGetAccess(to, &[1, 0], base)), 3);
        assert_eq!(get::<u64>(|to| cuMemGetAccess(to, &[1, 1], base)), 0);
        assert_eq!(download(base + UNIT as u64 - 2, 4), [POISON; 4]);
        // Across the border of two mappings.
        upload(base + UNIT as u64 - 2, &[1, 2, 3, 4]);
        let kernel = function_of(KERNELS, "copy");
        let end = base + UNIT as u64;
        ok(launch(kernel, 1, 1, 0, &[base, end]));
        assert_eq!(download(base, 2), [3, 4]);
        // Handles may go while their memory is mapped.
        ok(cuMemRelease(one));
        assert_eq!(cuMemRelease(one), INVALID_VALUE);
        assert_eq!(download(base, 2), [3, 4]);
        assert_eq!(cuMemAddressFree(base, 2 * UNIT), INVALID_VALUE);
        ok(cuMemUnmap(base, 2 * UNIT));
        assert_eq!(cuMemsetD8_v2(base, 1, 1), INVALID_VALUE);
        // The second one's memory is there still, also at another place.
        ok(cuMemMap(base, UNIT, 0, other, 0));
        ok(cuMemSetAccess(base, UNIT, &BY_FIRST, 1));
        assert_eq!(download(base, 3), [3, 4, POISON]);
        // It, and the variable of the kernel's module.
        assert_eq!(counters().allocations_live, 2);
        ok(cuMemUnmap(base, UNIT));
        ok(cuMemAddressFree(base, 2 * UNIT));
        ok(cuMemRelease(other));
        assert_eq!(counters().bytes_live, 4096);
    });
}

#[test]
fn misuse_is_refused() {
    isolated("misuse_is_refused", &[("NO_PEER", "all")], || {
        use_device(0);
        let base = reserve(4 * UNIT);
        let handle = create();
        let mut number = 0;
        for code in [
            cuMemAddressReserve(&mut 0, UNIT + 1, 0, 0, 0),
            cuMemCreate(&mut number, 4096, &ON_FIRST, 0),
            cuMemCreate(&mut number, UNIT, &Properties::default(), 0),
            cuMemMap(base, UNIT, 4096, handle, 0),
            cuMemMap(base + 4096, UNIT, 0, handle, 0),
            cuMemMap(base, 2 * UNIT, 0, handle, 0),
            cuMemMap(base + 4 * UNIT as u64, UNIT, 0, handle, 0),
            cuMemMap(base, UNIT, 0, 12345, 0),
            cuMemSetAccess(base, UNIT, &BY_FIRST, 1),
            cuMemUnmap(base, UNIT),
            cuMemAddressFree(base, UNIT),
        ] {
            assert_eq!(code, INVALID_VALUE);
        }
        ok(cuMemMap(base, UNIT, 0, handle, 0));
        assert_eq!(cuMemMap(base, UNIT, 0, handle, 0), INVALID_VALUE);
        assert_eq!(cuMemSetAccess(base, 2 * UNIT, &BY_FIRST, 1), INVALID_VALUE);
        assert_eq!(cuMemSetAccess(base, UNIT, &BY_SECOND, 1), INVALID_DEVICE);
        assert_eq!(cuMemFree_v2(base), INVALID_VALUE);
        // Legacy IPC refuses it.
        let mut legacy = [0; 8];
        assert_eq!(cuIpcGetMemHandle(&mut legacy, base), INVALID_VALUE);
        ok(configure("NO_VMM", "1"));
        assert_eq!(cuMemUnmap(base, UNIT), NOT_SUPPORTED);
        assert_eq!(get::<i32>(|to| cuDeviceGetAttribute(to, 102, 0)), 0);
    });
}

#[test]
fn peers_need_access_of_their_own() {
    isolated("peers_need_access_of_their_own", &[], || {
        use_device(0);
        let (base, handle) = (reserve(UNIT), create());
        ok(cuMemMap(base, UNIT, 0, handle, 0));
        ok(cuMemSetAccess(base, UNIT, &BY_FIRST, 1));
        upload(base, &[6; 4]);
        use_device(1);
        let here = allocate(64);
        assert_eq!(cuMemcpyDtoD_v2(here, base, 4), INVALID_VALUE);
        let read_only = AccessDescription { flags: 1, ..BY_SECOND };
        ok(cuMemSetAccess(base, UNIT, &read_only, 1));
        let kernel = function_of(KERNELS, "copy");
        ok(launch(kernel, 1, 1, 0, &[here, base]));
        assert_eq!(download(here, 4), [6; 4]);
        ok(launch(kernel, 1, 1, 0, &[base, here]));
        assert_eq!(cuCtxSynchronize(), ILLEGAL_ADDRESS);
    });
}

#[test]
fn handles_are_exported_and_imported_by_descriptor() {
    isolated("handles_are_exported_and_imported_by_descriptor", &[], || {
        use_device(0);
        let (base, handle) = (reserve(2 * UNIT), create());
        ok(cuMemMap(base, UNIT, 0, handle, 0));
        ok(cuMemSetAccess(base, UNIT, &BY_FIRST, 1));
        let descriptor = get(|to| cuMemExportToShareableHandle(to, handle, 1, 0));
        let imported = get(|to| cuMemImportFromShareableHandle(to, descriptor as usize, 1));
        let found = get(|to: &mut Properties| cuMemGetAllocationPropertiesFromHandle(to, imported));
        assert_eq!((found.location, found.handle_types), ([1, 0], 1));
        let second = base + UNIT as u64;
        ok(cuMemMap(second, UNIT, 0, imported, 0));
        ok(cuMemSetAccess(second, UNIT, &BY_FIRST, 1));
        upload(base, &[1, 2, 3]);
        assert_eq!(download(second, 3), [1, 2, 3]);
        assert_eq!(get::<usize>(|to| cuMemRetainAllocationHandle(to, second)), imported);
        ok(cuMemRelease(imported));
        ok(cuMemRelease(imported));
        assert_eq!(cuMemRelease(imported), INVALID_VALUE);
        assert_eq!(get::<usize>(|to| cuMemRetainAllocationHandle(to, second)), imported);
        ok(cuMemRelease(imported));
        // What is not such a descriptor is refused.
        let file = std::fs::File::open("/dev/zero").unwrap();
        for descriptor in [file.as_raw_fd() as usize, 9999, usize::MAX] {
            assert_eq!(cuMemImportFromShareableHandle(&mut 0, descriptor, 1), INVALID_VALUE);
        }
        let private = Properties { handle_types: 0, ..ON_FIRST };
        let unshared = get(|to| cuMemCreate(to, UNIT, &private, 0));
        assert_eq!(cuMemExportToShareableHandle(&mut 0, unshared, 1, 0), INVALID_VALUE);
    });
}
