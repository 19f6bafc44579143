//! Modules, launches, what kernels may touch.

mod common;
use common::*;

use std::ffi::CString;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

#[test]
fn kernels_run() {
    isolated("kernels_run", &[], || {
        use_device(0);
        let (kernel, address) = (function_of(KERNELS, "set"), allocate(4000));
        ok(launch(kernel, 32, 32, 0, &[address, 1000]));
        let bytes = download(address, 4000);
        let numbers = bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
        assert!(numbers.eq(0..1000));
        let counters = counters();
        assert_eq!(counters.kernels_launched, 1);
        assert!(counters.instructions > 1000);
        assert_eq!(counters.links[0][0].written_bytes, 4000);
        assert_eq!(counters.links[0][0].read_bytes, 0);
    });
}

#[test]
fn a_kernel_beyond_its_memory_poisons_the_context() {
    isolated("a_kernel_beyond_its_memory_poisons_the_context", &[], || {
        use_device(0);
        let (kernel, address) = (function_of(KERNELS, "set"), allocate(4000));
        ok(launch(kernel, 32, 32, 0, &[address, 1001]));
        assert_eq!(cuCtxSynchronize(), ILLEGAL_ADDRESS);
        assert_eq!(cuMemFree_v2(address), ILLEGAL_ADDRESS);
    });
}

#[test]
fn a_misaligned_access_has_its_own_code() {
    isolated("a_misaligned_access_has_its_own_code", &[], || {
        use_device(0);
        let address = allocate(64);
        ok(launch(function_of(KERNELS, "misalign"), 1, 1, 0, &[address]));
        assert_eq!(cuCtxSynchronize(), 716);
    });
}

/// Copies 4 bytes by a kernel of the current device, and gives the code.
fn copy_by_kernel(to: u64, from: u64) -> i32 {
    ok(launch(function_of(KERNELS, "copy"), 1, 1, 0, &[to, from]));
    cuCtxSynchronize()
}

#[test]
fn kernels_reach_peers_only_when_that_is_enabled() {
    isolated("kernels_reach_peers_only_when_that_is_enabled", &[], || {
        let second = use_device(1);
        let there = allocate(64);
        upload(there, &[9; 64]);
        use_device(0);
        let here = allocate(64);
        assert_eq!(copy_by_kernel(here, there), ILLEGAL_ADDRESS);
        ok(cuDevicePrimaryCtxReset_v2(0));
        use_device(0);
        let here = allocate(64);
        // Nor do sets, which are kernels. Copies of the driver need no access.
        assert_eq!(cuMemsetD8_v2(there, 0, 4), INVALID_VALUE);
        ok(cuMemcpyDtoD_v2(here, there, 4));
        ok(cuCtxSynchronize());
        ok(cuCtxEnablePeerAccess(second, 0));
        ok(ringtree_standin_reset_counters());
        ok(copy_by_kernel(here, there));
        assert_eq!(download(here, 5), [9, 9, 9, 9, POISON]);
        ok(copy_by_kernel(there, here));
        let counters = counters();
        assert_eq!(counters.links[0][1].read_bytes, 4);
        assert_eq!(counters.links[0][1].written_bytes, 4);
        assert_eq!(counters.links[0][0].read_bytes, 4);
        ok(cuCtxDisablePeerAccess(second));
        assert_eq!(copy_by_kernel(here, there), ILLEGAL_ADDRESS);
    });
}

#[test]
fn peers_reach_pools_only_when_these_are_opened() {
    isolated("peers_reach_pools_only_when_these_are_opened", &[], || {
        let second = use_device(1);
        let there = get(|to| cuMemAllocAsync(to, 64, 0));
        ok(cuCtxSynchronize());
        use_device(0);
        ok(cuCtxEnablePeerAccess(second, 0));
        assert_eq!(copy_by_kernel(allocate(64), there), ILLEGAL_ADDRESS);
        ok(cuDevicePrimaryCtxReset_v2(0));
        use_device(0);
        let pool = get(|to| cuDeviceGetDefaultMemPool(to, 1));
        let access = AccessDescription { location: [1, 0], flags: 3 };
        ok(cuMemPoolSetAccess(pool, &access, 1));
        ok(copy_by_kernel(allocate(64), there));
    });
}

#[test]
fn kernels_reach_pinned_memory_and_no_other_of_the_host() {
    isolated("kernels_reach_pinned_memory_and_no_other_of_the_host", &[], || {
        use_device(0);
        let (host, here) = (pinned(64), allocate(64));
        host.fill(3);
        ok(copy_by_kernel(here, host.as_ptr() as u64));
        assert_eq!(download(here, 4), [3; 4]);
        assert_eq!(counters().links[0][ringtree_cuda_standin::HOST].read_bytes, 4);
        let pageable = [5u8; 64];
        assert_eq!(copy_by_kernel(here, pageable.as_ptr() as u64), ILLEGAL_ADDRESS);
    });
}

#[test]
fn a_kernel_waits_for_the_host_for_copies_and_for_other_devices() {
    isolated("a_kernel_waits_for_the_host_for_copies_and_for_other_devices", &[], || {
        use_device(0);
        let (kernel, one, other) = (function_of(KERNELS, "spin"), stream(), stream());
        let host = pinned(64);
        host.fill(0);
        ok(launch(kernel, 1, 1, one, &[host.as_ptr() as u64]));
        assert_eq!(cuStreamQuery(one), NOT_READY);
        // SAFETY: the start of pinned memory, aligned.
        unsafe { AtomicU32::from_ptr(host.as_mut_ptr().cast()).store(1, SeqCst) };
        ok(cuStreamSynchronize(one));
        let flag = allocate(64);
        ok(cuMemsetD8_v2(flag, 0, 64));
        ok(cuCtxSynchronize());
        ok(launch(kernel, 1, 1, one, &[flag]));
        assert_eq!(cuStreamQuery(one), NOT_READY);
        // What nothing waits for runs after its hold, or this would never end.
        ok(cuMemsetD8Async(flag, 1, 64, other));
        ok(cuStreamSynchronize(one));
    });
}

#[test]
fn memory_freed_under_a_kernel_is_an_error_and_no_crash() {
    isolated("memory_freed_under_a_kernel_is_an_error_and_no_crash", &[("HOLD_MS", "0")], || {
        let second = use_device(1);
        let there = allocate(64);
        ok(cuMemsetD8_v2(there, 0, 64));
        ok(cuCtxSynchronize());
        let first = use_device(0);
        ok(cuCtxEnablePeerAccess(second, 0));
        let stream = stream();
        ok(launch(function_of(KERNELS, "spin"), 1, 1, stream, &[there]));
        assert_eq!(cuStreamQuery(stream), NOT_READY);
        ok(cuCtxSetCurrent(second));
        wait_for_spin(there);
        // Freeing waits for the owner's own work only.
        ok(cuMemFree_v2(there));
        ok(cuCtxSetCurrent(first));
        assert_eq!(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
    });
}

#[test]
fn launches_are_checked() {
    isolated("launches_are_checked", &[], || {
        use_device(1);
        let foreign = stream();
        use_device(0);
        let (kernel, address) = (function_of(KERNELS, "set"), allocate(4096));
        let parameters = [address, 0];
        for (blocks, threads) in [(0, 1), (1, 0), (1, 1025)] {
            assert_eq!(launch(kernel, blocks, threads, 0, &parameters), INVALID_VALUE);
        }
        assert_eq!(launch(kernel, 1, 1, foreign, &parameters), INVALID_HANDLE);
        let pointers = [(&raw const parameters[0]).cast(), (&raw const parameters[1]).cast()];
        let shared =
            |bytes| cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, bytes, 0, pointers.as_ptr(), 0);
        ok(shared(48 << 10));
        assert_eq!(shared(64 << 10), INVALID_VALUE);
        ok(cuFuncSetAttribute(kernel, 8, 64 << 10));
        ok(shared(64 << 10));
        assert_eq!(cuFuncSetAttribute(kernel, 8, 500 << 10), INVALID_VALUE);
        assert_eq!(
            cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, 0, std::ptr::null(), 0),
            INVALID_VALUE
        );
        assert_eq!(get::<i32>(|to| cuFuncGetAttribute(to, 0, kernel)), 1024);
        let resident = get(|to| cuOccupancyMaxActiveBlocksPerMultiprocessor(to, kernel, 1024, 0));
        let all = resident as u32 * get::<i32>(|to| cuDeviceGetAttribute(to, 16, 0)) as u32;
        let together = |blocks| {
            cuLaunchCooperativeKernel(kernel, blocks, 1, 1, 1024, 1, 1, 0, 0, pointers.as_ptr())
        };
        let together_by_attribute = |blocks| {
            let attribute = LaunchAttribute { id: 2, value: [1, 0, 0, 0, 0, 0, 0, 0] };
            let configuration = LaunchConfiguration {
                grid: [blocks, 1, 1],
                block: [1024, 1, 1],
                attributes: &attribute,
                attributes_count: 1,
                ..LaunchConfiguration::default()
            };
            cuLaunchKernelEx(&configuration, kernel, pointers.as_ptr(), 0)
        };
        ok(together_by_attribute(all));
        assert_eq!(together_by_attribute(all + 1), 720);
        ok(together(all));
        assert_eq!(together(all + 1), 720);
        ok(cuCtxSynchronize());
    });
}

#[test]
fn modules_that_do_not_fit_are_refused() {
    let settings = [("DRIVER_VERSION", "12020"), ("COMPUTE_CAPABILITY", "8.6")];
    isolated("modules_that_do_not_fit_are_refused", &settings, || {
        use_device(0);
        let load = |text: &str| {
            let text = CString::new(text).unwrap();
            let mut module = 0;
            cuModuleLoadData(&mut module, text.as_ptr())
        };
        ok(load(KERNELS));
        ok(load(&KERNELS.replace("6.3", "8.2").replace("sm_70", "sm_86")));
        assert_eq!(load(&KERNELS.replace("6.3", "8.3")), 222);
        assert_eq!(load(&KERNELS.replace("6.3", "9.5").replace("trap", "news")), 222);
        assert_eq!(load(&KERNELS.replace("sm_70", "sm_90")), 218);
        assert_eq!(load(&KERNELS.replace("trap", "nonsense")), 218);
        assert_eq!(load("\x7fELF"), 209);
        assert_eq!(load("hello"), 218);
        assert_eq!(counters().modules_live, 2);
    });
}

#[test]
fn modules_have_functions_and_variables_until_unloaded() {
    isolated("modules_have_functions_and_variables_until_unloaded", &[], || {
        use_device(0);
        let text = CString::new(KERNELS).unwrap();
        let module = get(|to| cuModuleLoadData(to, text.as_ptr()));
        let function = get(|to| cuModuleGetFunction(to, module, c"stop".as_ptr()));
        assert_eq!(get::<usize>(|to| cuModuleGetFunction(to, module, c"stop".as_ptr())), function);
        assert_eq!(cuModuleGetFunction(&mut 0, module, c"none".as_ptr()), 500);
        let (mut address, mut len) = (0, 0);
        ok(cuModuleGetGlobal_v2(&mut address, &mut len, module, c"counter".as_ptr()));
        assert_eq!((len, download(address, 4)), (4, vec![7, 0, 0, 0]));
        assert_eq!(cuMemFree_v2(address), INVALID_VALUE);
        assert_eq!(cuModuleGetGlobal_v2(&mut address, &mut len, module, c"none".as_ptr()), 500);
        ok(cuModuleUnload(module));
        assert_eq!(cuModuleUnload(module), INVALID_HANDLE);
        assert_eq!(launch(function, 1, 1, 0, &[]), INVALID_HANDLE);
        assert_eq!(counters().modules_live, 0);
        assert_eq!(counters().allocations_live, 0);
    });
}
