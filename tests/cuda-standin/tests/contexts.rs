//! Initialisation, settings, devices, contexts, errors that stick, handles, processes that fork and end.

mod common;
use common::*;

use std::ffi::{CStr, CString};
use std::process::Stdio;

#[test]
fn nothing_works_before_initialisation() {
    isolated("nothing_works_before_initialisation", &[("DRIVER_VERSION", "11040")], || {
        let mut number = 0;
        assert_eq!(cuDeviceGetCount(&mut number), NOT_INITIALIZED);
        assert_eq!(cuMemFree_v2(0), NOT_INITIALIZED);
        ok(cuDriverGetVersion(&mut number));
        assert_eq!(number, 11040);
        assert_eq!(cuInit(1), INVALID_VALUE);
        ok(cuInit(0));
        ok(cuDeviceGetCount(&mut number));
        assert_eq!(number, 2);
        assert_eq!(ringtree_standin_is_standin(), 1);
    });
}

#[test]
fn a_forked_child_has_no_driver() {
    isolated("a_forked_child_has_no_driver", &[], || {
        let context = use_device(0);
        let address = allocate(64);
        // SAFETY: the child calls only the driver, which must refuse before it takes a lock, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mut count = 0;
            let codes = [
                cuInit(0),
                cuDeviceGetCount(&mut count),
                cuMemFree_v2(address),
                cuCtxSetCurrent(context),
                cuCtxSynchronize(),
            ];
            let all = codes.iter().all(|code| *code == NOT_INITIALIZED);
            // SAFETY: it ends the child without the parent's destructors.
            unsafe { libc::_exit(if all { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: the child is this process's.
        unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!(status, 0);
        ok(cuMemFree_v2(address));
    });
}

#[test]
fn malformed_settings_fail_initialisation_and_are_named() {
    const NAME: &str = "malformed_settings_fail_initialisation_and_are_named";
    if inside(NAME) {
        assert_eq!(cuInit(0), INVALID_VALUE);
        return;
    }
    for (key, value) in [
        ("DEVICES", "17"),
        ("DEVICES", "many"),
        ("MEMORY_BYTES", "1G"),
        ("SCHEDULE", "kind"),
        ("NO_PEER", "0:1"),
        ("FAIL", "cuMemAlloc_v2:0:2"),
        ("FAIL", "cuMemAlloc_v2"),
        ("FAIL", "cuMemAlloc:1:2"),
        ("COMPUTE_CAPABILITY", "80"),
        ("NO_VMM", "yes"),
        ("HOLDMS", "5"),
    ] {
        let output = process(NAME, &[(key, value)]).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{key}={value} was taken: {said}");
        assert!(said.contains(&format!("RINGTREE_STANDIN_{key}")), "{key} is not named: {said}");
    }
}

#[test]
fn no_devices_is_an_error_of_its_own() {
    isolated("no_devices_is_an_error_of_its_own", &[("DEVICES", "0")], || {
        assert_eq!(cuInit(0), 100);
        ok(configure("DEVICES", "3"));
        ok(cuInit(0));
        assert_eq!(get::<i32>(cuDeviceGetCount), 3);
        assert_eq!(configure("DEVICES", "4"), INVALID_VALUE);
        assert_eq!(configure("NONSENSE", "4"), INVALID_VALUE);
    });
}

#[test]
fn devices_describe_themselves() {
    let settings = [("COMPUTE_CAPABILITY", "9.0"), ("MEMORY_BYTES", "12345678")];
    isolated("devices_describe_themselves", &settings, || {
        ok(cuInit(0));
        let mut text = [0; 32];
        ok(cuDeviceGetName(text.as_mut_ptr(), 32, 1));
        // SAFETY: the driver ends it with a zero.
        assert_eq!(unsafe { CStr::from_ptr(text.as_ptr()) }, c"Stand-in GPU");
        ok(cuDeviceGetPCIBusId(text.as_mut_ptr(), 32, 1));
        assert_eq!(get::<i32>(|to| cuDeviceGetByPCIBusId(to, text.as_ptr())), 1);
        assert_eq!(cuDeviceGetPCIBusId(text.as_mut_ptr(), 5, 1), INVALID_VALUE);
        let uuids = [0, 1].map(|device| get(|to: &mut [u8; 16]| cuDeviceGetUuid_v2(to, device)));
        assert_ne!(uuids[0], uuids[1]);
        assert_eq!(get::<usize>(|to| cuDeviceTotalMem_v2(to, 0)), 12345678);
        let attribute = |number| get::<i32>(|to| cuDeviceGetAttribute(to, number, 0));
        assert_eq!((attribute(75), attribute(76)), (9, 0));
        for number in [41, 92, 93, 95, 98, 99, 102, 103, 115, 116, 122, 124, 125] {
            assert_eq!(attribute(number), 1, "attribute {number}");
        }
        let mut device = 0;
        assert_eq!(cuDeviceGet(&mut device, 2), INVALID_DEVICE);
        assert_eq!(cuDeviceGet(&mut device, -1), INVALID_DEVICE);
        assert_eq!(cuDeviceGetAttribute(&mut device, 5000, 0), INVALID_VALUE);
    });
}

#[test]
fn peers_are_as_configured() {
    let settings = [("DEVICES", "3"), ("NO_PEER", "0-1")];
    isolated("peers_are_as_configured", &settings, || {
        let contexts: Vec<_> = (0..3).map(use_device).collect();
        let can = |a, b| get::<i32>(|to| cuDeviceCanAccessPeer(to, a, b));
        assert_eq!((can(0, 1), can(1, 0), can(0, 2), can(2, 1), can(1, 1)), (0, 0, 1, 1, 0));
        assert_eq!(get::<i32>(|to| cuDeviceGetP2PAttribute(to, 2, 0, 2)), 1);
        let mut none = 0;
        assert_eq!(cuDeviceGetP2PAttribute(&mut none, 2, 1, 1), INVALID_DEVICE);
        ok(cuCtxSetCurrent(contexts[0]));
        assert_eq!(cuCtxEnablePeerAccess(contexts[1], 0), 217);
        assert_eq!(cuCtxEnablePeerAccess(contexts[0], 0), INVALID_CONTEXT);
        assert_eq!(cuCtxEnablePeerAccess(contexts[2], 1), INVALID_VALUE);
        assert_eq!(cuCtxDisablePeerAccess(contexts[2]), 705);
        ok(cuCtxEnablePeerAccess(contexts[2], 0));
        assert_eq!(cuCtxEnablePeerAccess(contexts[2], 0), 704);
        ok(cuCtxDisablePeerAccess(contexts[2]));
        assert_eq!(cuCtxDisablePeerAccess(contexts[2]), 705);
    });
}

#[test]
fn a_context_must_be_current() {
    isolated("a_context_must_be_current", &[], || {
        let first = use_device(0);
        let (address, stream) = (allocate(64), stream());
        std::thread::spawn(move || {
            let mut to = 0;
            assert_eq!(cuMemAlloc_v2(&mut to, 64), INVALID_CONTEXT);
            assert_eq!(cuMemFree_v2(address), INVALID_CONTEXT);
            assert_eq!(cuStreamSynchronize(stream), INVALID_CONTEXT);
            assert_eq!(cuMemsetD8Async(address, 0, 1, stream), INVALID_CONTEXT);
            assert_eq!(cuCtxSynchronize(), INVALID_CONTEXT);
        })
        .join()
        .unwrap();
        let second = use_device(1);
        assert_eq!(get::<i32>(cuCtxGetDevice), 1);
        ok(cuCtxPushCurrent_v2(first));
        assert_eq!(get::<i32>(cuCtxGetDevice), 0);
        assert_eq!(get::<usize>(cuCtxPopCurrent_v2), first);
        assert_eq!(get::<usize>(cuCtxGetCurrent), second);
        ok(cuCtxSetCurrent(0));
        assert_eq!(get::<usize>(cuCtxGetCurrent), 0);
        assert_eq!(cuCtxPopCurrent_v2(&mut 0), INVALID_CONTEXT);
        assert_eq!(cuCtxSetCurrent(12345), INVALID_CONTEXT);
    });
}

#[test]
fn the_last_release_ends_a_context() {
    isolated("the_last_release_ends_a_context", &[("HOLD_MS", "60000")], || {
        let context = use_device(0);
        ok(cuDevicePrimaryCtxRetain(&mut 0, 0));
        let (stream, address) = (stream(), allocate(64));
        ok(cuMemsetD8Async(address, 0, 64, stream));
        pinned(4096);
        event();
        function_of(KERNELS, "stop");
        ok(cuDevicePrimaryCtxRelease_v2(0));
        ok(cuStreamSynchronize(stream));
        ok(cuMemsetD8Async(address, 0, 64, stream));
        ok(cuDevicePrimaryCtxRelease_v2(0));
        assert_eq!(cuDevicePrimaryCtxRelease_v2(0), INVALID_CONTEXT);
        assert_eq!(cuCtxSynchronize(), CONTEXT_IS_DESTROYED);
        assert_eq!(cuCtxSetCurrent(context), CONTEXT_IS_DESTROYED);
        let (mut flags, mut active) = (0, 1);
        ok(cuDevicePrimaryCtxGetState(0, &mut flags, &mut active));
        assert_eq!(active, 0);
        let counters = counters();
        assert_eq!((counters.allocations_live, counters.pinned_bytes_live), (0, 0));
        assert_eq!((counters.streams_live, counters.bytes_live), (0, 0));
        assert_eq!((counters.events_live, counters.modules_live), (0, 0));
        use_device(0);
        assert_eq!(cuStreamSynchronize(stream), INVALID_HANDLE);
        assert_eq!(cuMemFree_v2(address), INVALID_VALUE);
    });
}

#[test]
fn errors_stick_to_their_context_until_it_is_reset() {
    isolated("errors_stick_to_their_context_until_it_is_reset", &[], || {
        use_device(0);
        let (kernel, stream) = (function_of(KERNELS, "stop"), stream());
        ok(launch(kernel, 1, 1, stream, &[]));
        assert_eq!(cuStreamSynchronize(stream), 719);
        let mut number = 0;
        let mut address = 0;
        for code in [
            cuMemAlloc_v2(&mut address, 64),
            cuStreamQuery(stream),
            cuStreamCreate(&mut number, 0),
            cuEventCreate(&mut number, 0),
            cuCtxSynchronize(),
            launch(kernel, 1, 1, stream, &[]),
        ] {
            assert_eq!(code, 719);
        }
        use_device(1);
        allocate(64);
        // A stream of the failed context gives its error wherever it is used.
        assert_eq!(cuStreamSynchronize(stream), 719);
        ok(cuDevicePrimaryCtxReset_v2(0));
        use_device(0);
        allocate(64);
        assert_eq!(cuStreamSynchronize(stream), INVALID_HANDLE);
        assert_eq!(launch(kernel, 1, 1, 0, &[]), INVALID_HANDLE);
    });
}

#[test]
fn a_reset_ends_kernels_and_waits() {
    isolated("a_reset_ends_kernels_and_waits", &[("HOLD_MS", "0")], || {
        use_device(0);
        let flag = allocate(64);
        ok(cuMemsetD8_v2(flag, 0, 64));
        ok(cuCtxSynchronize());
        let (kernel, one, other) = (function_of(KERNELS, "spin"), stream(), stream());
        ok(launch(kernel, 1, 1, one, &[flag]));
        ok(cuStreamWaitValue32_v2(other, flag, 1, 0));
        let third = stream();
        let event = event();
        ok(cuEventRecord(event, one));
        ok(cuStreamWaitEvent(third, event, 0));
        wait_for_spin(flag);
        while counters().value_waits == 0 {
            std::thread::yield_now();
        }
        ok(cuDevicePrimaryCtxReset_v2(0));
        use_device(0);
        ok(cuCtxSynchronize());
    });
}

#[test]
fn a_process_ends_with_work_in_its_queues() {
    const NAME: &str = "a_process_ends_with_work_in_its_queues";
    if inside(NAME) {
        use_device(0);
        let flag = allocate(64);
        ok(cuMemsetD8_v2(flag, 0, 64));
        ok(cuCtxSynchronize());
        let kernel = function_of(KERNELS, "spin");
        for _ in 0..4 {
            let stream = stream();
            ok(launch(kernel, 1, 1, stream, &[flag]));
            ok(cuStreamWaitValue32_v2(stream, flag, 1, 0));
            ok(cuMemsetD8Async(flag, 0, 64, stream));
        }
        assert_eq!(cuStreamQuery(0), 0);
        wait_for_spin(flag);
        return;
    }
    for _ in 0..10 {
        let status = process(NAME, &[("HOLD_MS", "0")]).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{status}");
    }
}

#[test]
fn calls_fail_as_planned() {
    let settings = [("FAIL", "cuMemAlloc_v2:3:2,cuStreamSynchronize:1:700")];
    isolated("calls_fail_as_planned", &settings, || {
        use_device(0);
        allocate(64);
        allocate(64);
        let mut address = 0;
        assert_eq!(cuMemAlloc_v2(&mut address, 64), OUT_OF_MEMORY);
        allocate(64);
        assert_eq!(cuStreamSynchronize(0), ILLEGAL_ADDRESS);
        assert_eq!(cuCtxSynchronize(), ILLEGAL_ADDRESS);
        ok(cuDevicePrimaryCtxReset_v2(0));
        use_device(0);
        ok(configure("FAIL", "cuCtxSynchronize:2:999"));
        ok(cuCtxSynchronize());
        assert_eq!(cuCtxSynchronize(), 999);
        ok(cuCtxSynchronize());
    });
}

#[test]
fn foreign_handles_are_errors() {
    isolated("foreign_handles_are_errors", &[], || {
        let context = use_device(0);
        let (stream, event) = (stream(), event());
        let kernel = function_of(KERNELS, "stop");
        let local = 5u64;
        for handle in [context, kernel, event, &raw const local as usize, 12345, usize::MAX] {
            assert_eq!(cuStreamSynchronize(handle), INVALID_HANDLE);
            assert_eq!(cuStreamDestroy_v2(handle), INVALID_HANDLE);
        }
        for handle in [0, stream, kernel, context, &raw const local as usize, 12345] {
            assert_eq!(cuEventSynchronize(handle), INVALID_HANDLE);
            assert_eq!(cuModuleUnload(handle), INVALID_HANDLE);
            assert_eq!(cuEventDestroy_v2(handle), INVALID_HANDLE);
        }
        assert_eq!(launch(event, 1, 1, stream, &[]), INVALID_HANDLE);
        assert_eq!(cuCtxSetCurrent(stream), INVALID_CONTEXT);
    });
}

#[test]
fn codes_and_functions_have_names() {
    isolated("codes_and_functions_have_names", &[], || {
        let (mut name, mut text) = (std::ptr::null(), std::ptr::null());
        ok(cuGetErrorName(700, &mut name));
        ok(cuGetErrorString(700, &mut text));
        // SAFETY: the driver's texts end with a zero and stay.
        let (name_text, text) = unsafe { (CStr::from_ptr(name), CStr::from_ptr(text)) };
        assert_eq!(name_text, c"CUDA_ERROR_ILLEGAL_ADDRESS");
        assert_eq!(text, c"an illegal memory access was encountered");
        assert_eq!(cuGetErrorName(123_456, &mut name), INVALID_VALUE);
        assert!(name.is_null());
        let find = |wanted: &str| {
            let wanted = CString::new(wanted).unwrap();
            let (mut function, mut status) = (1, 5);
            let code = cuGetProcAddress_v2(wanted.as_ptr(), &mut function, 12000, 0, &mut status);
            (code, function, status)
        };
        assert_eq!(find("cuMemAlloc"), (0, symbol("cuMemAlloc_v2") as usize, 0));
        assert_eq!(find("cuLaunchKernel"), (0, symbol("cuLaunchKernel") as usize, 0));
        assert_eq!(find("cuNothing"), (500, 0, 1));
    });
}

#[test]
fn counters_count_and_reset() {
    isolated("counters_count_and_reset", &[], || {
        let first = use_device(0);
        let here = allocate(1000);
        let second = use_device(1);
        let there = allocate(1000);
        let stream = stream();
        for set in [cuMemsetD16_v2(there + 10, 0x0102, 3), cuMemsetD32_v2(there, 0x01020304, 2)] {
            ok(set);
        }
        let values = [4, 3, 2, 1, 4, 3, 2, 1, POISON, POISON, 2, 1, 2, 1, 2, 1, POISON];
        assert_eq!(download(there, 17), values);
        ok(cuMemcpyPeer(here, first, there, second, 16));
        ok(cuCtxSetCurrent(first));
        assert_eq!(download(here, 17), values);
        ok(cuCtxSetCurrent(second));
        ok(ringtree_standin_reset_counters());
        upload(there, &[1; 1000]);
        ok(cuMemcpyPeerAsync(here, first, there, second, 500, stream));
        ok(cuMemcpyDtoDAsync_v2(there, there + 500, 100, stream));
        ok(cuMemcpyAsync(there, here, 50, stream));
        ok(cuStreamSynchronize(stream));
        download(here, 7);
        let counted = counters();
        let copies = |c: ringtree_cuda_standin::Copies| (c.count, c.bytes);
        assert_eq!(copies(counted.host_to_device), (1, 1000));
        assert_eq!(copies(counted.device_to_host), (1, 7));
        assert_eq!(copies(counted.same_device), (1, 100));
        assert_eq!(copies(counted.peer), (2, 550));
        assert_eq!(counted.stream_synchronisations, 1);
        assert_eq!(counted.context_synchronisations, 1);
        assert_eq!(counted.allocations_live, 2);
        ok(ringtree_standin_reset_counters());
        let counted = counters();
        assert_eq!(copies(counted.peer), (0, 0));
        assert_eq!((counted.allocations_live, counted.streams_live), (2, 1));
        assert_eq!(
            cuMemcpyPeerAsync(here, second, there, second, 500, stream),
            INVALID_VALUE,
            "the destination is not the second device's"
        );
    });
}
