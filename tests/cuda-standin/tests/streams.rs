//! Streams, events, the schedule, stream memory operations.

mod common;
use common::*;

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Holds what nothing waits for longer than any test runs.
const HELD: &[(&str, &str)] = &[("HOLD_MS", "60000")];

/// One stream writes, another reads; between them is an event, if it is not forgotten. Whether the right value came.
fn handed_over(from: usize, to: usize, forget: bool, value: u8) -> bool {
    let (address, copied, event) = (allocate(4096), allocate(4096), event());
    ok(cuMemsetD8Async(address, value, 4096, from));
    ok(cuEventRecord(event, from));
    if !forget {
        ok(cuStreamWaitEvent(to, event, 0));
    }
    ok(cuMemcpyDtoDAsync_v2(copied, address, 4096, to));
    ok(cuStreamSynchronize(to));
    let right = download(copied, 4096) == vec![value; 4096];
    ok(cuEventDestroy_v2(event));
    ok(cuMemFree_v2(address));
    ok(cuMemFree_v2(copied));
    right
}

#[test]
fn a_forgotten_event_wait_is_caught() {
    isolated("a_forgotten_event_wait_is_caught", &[], || {
        use_device(0);
        let (one, other) = (stream(), stream());
        let caught = (0..100).filter(|n| !handed_over(one, other, true, *n)).count();
        assert!(caught >= 95, "caught {caught} of 100");
    });
}

#[test]
fn correct_programs_run_under_every_schedule() {
    for schedule in ["adversarial", "random", "prompt"] {
        let settings = [("SCHEDULE", schedule), ("SEED", "5")];
        isolated("correct_programs_run_under_every_schedule", &settings, || {
            use_device(0);
            let (one, other) = (stream(), stream());
            let wrong = (0..100).filter(|n| !handed_over(one, other, false, *n)).count();
            assert_eq!(wrong, 0, "under {:?}", std::env::var("RINGTREE_STANDIN_SCHEDULE"));
        });
    }
}

#[test]
fn what_nothing_waits_for_does_not_run() {
    isolated("what_nothing_waits_for_does_not_run", HELD, || {
        use_device(0);
        let (stream, host) = (stream(), pinned(4096));
        host.fill(1);
        let address = allocate(4096);
        ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), address, 4096, stream));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(host[0], 1);
        // To ask is to wait for.
        while cuStreamQuery(stream) == NOT_READY {
            std::thread::yield_now();
        }
        assert_eq!(host[0], POISON);
        // So is asking for an event, for what is before it and not for what is behind.
        let event = event();
        ok(cuMemsetD8Async(address, 2, 4096, stream));
        ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), address, 4096, stream));
        ok(cuEventRecord(event, stream));
        ok(cuMemsetD8Async(address, 3, 4096, stream));
        while cuEventQuery(event) == NOT_READY {
            std::thread::yield_now();
        }
        assert_eq!(host[0], 2);
        assert_eq!(counters().memsets.count, 1);
        assert_eq!(cuStreamQuery(stream), NOT_READY);
    });
}

#[test]
fn a_chain_that_nothing_waits_for_costs_one_hold() {
    isolated("a_chain_that_nothing_waits_for_costs_one_hold", &[("HOLD_MS", "200")], || {
        use_device(0);
        let (stream, address) = (stream(), allocate(64));
        let start = Instant::now();
        for _ in 0..100 {
            ok(cuMemsetD8Async(address, 1, 64, stream));
        }
        while counters().memsets.count < 100 {
            assert!(start.elapsed() < Duration::from_secs(5), "each was held");
            std::thread::yield_now();
        }
        assert!(start.elapsed() >= Duration::from_millis(200), "nothing was held");
    });
}

#[test]
fn waits_demand_through_chains_of_streams_and_devices() {
    isolated("waits_demand_through_chains_of_streams_and_devices", HELD, || {
        let first = use_device(0);
        let second = use_device(1);
        let host = pinned(64);
        let mut previous = 0;
        for number in 0..6 {
            ok(cuCtxSetCurrent(if number % 2 == 0 { first } else { second }));
            let (stream, event) = (stream(), event());
            if previous != 0 {
                ok(cuStreamWaitEvent(stream, previous, 0));
            }
            let address = allocate(64);
            ok(cuMemsetD8Async(address, number, 64, stream));
            ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), address, 64, stream));
            ok(cuEventRecord(event, stream));
            previous = event;
        }
        ok(cuEventSynchronize(previous));
        assert_eq!(host, [5; 64]);
        assert_eq!(counters().memsets.count, 6);
    });
}

#[test]
fn the_null_stream_is_ordered_with_blocking_streams_only() {
    isolated("the_null_stream_is_ordered_with_blocking_streams_only", HELD, || {
        use_device(0);
        let blocking = get(|to| cuStreamCreate(to, 0));
        let free = stream();
        assert_eq!(get::<u32>(|to| cuStreamGetFlags(blocking, to)), 0);
        assert_eq!(get::<u32>(|to| cuStreamGetFlags(free, to)), 1);
        let (address, host) = (allocate(64), pinned(64));
        let read = |stream, host: &mut [u8]| {
            ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), address, 64, stream));
            ok(cuStreamSynchronize(stream));
            host[0]
        };
        ok(cuMemsetD8Async(address, 1, 64, 0));
        assert_eq!(read(free, host), POISON);
        assert_eq!(read(blocking, host), 1);
        ok(cuMemsetD8Async(address, 2, 64, blocking));
        assert_eq!(read(free, host), 1);
        assert_eq!(read(0, host), 2);
        ok(cuMemsetD8Async(address, 3, 64, free));
        assert_eq!(read(0, host), 2);
        // The end of the NULL stream is that of blocking streams, too.
        let sets = counters().memsets.count;
        ok(cuMemsetD8Async(address, 4, 64, blocking));
        ok(cuStreamSynchronize(0));
        assert_eq!(counters().memsets.count, sets + 1);
    });
}

#[test]
fn a_destroyed_stream_finishes_its_work() {
    isolated("a_destroyed_stream_finishes_its_work", HELD, || {
        use_device(0);
        let (stream, address, host) = (stream(), allocate(64), pinned(64));
        ok(cuMemsetD8Async(address, 1, 64, stream));
        ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), address, 64, stream));
        ok(cuStreamDestroy_v2(stream));
        assert_eq!(counters().streams_live, 0);
        for code in [
            cuStreamSynchronize(stream),
            cuStreamQuery(stream),
            cuStreamDestroy_v2(stream),
            cuMemsetD8Async(address, 1, 64, stream),
            cuStreamDestroy_v2(0),
        ] {
            assert_eq!(code, INVALID_HANDLE);
        }
        assert_eq!(host[0], POISON);
        ok(cuCtxSynchronize());
        assert_eq!(host[0], 1);
    });
}

#[test]
fn events_mark_what_was_recorded_last() {
    isolated("events_mark_what_was_recorded_last", HELD, || {
        use_device(0);
        let (stream, other, event) = (stream(), stream(), event());
        // An event that was never recorded holds up nothing.
        ok(cuEventQuery(event));
        ok(cuStreamWaitEvent(other, event, 0));
        ok(cuStreamSynchronize(other));
        let address = allocate(64);
        ok(cuEventRecord(event, stream));
        ok(cuStreamWaitEvent(other, event, 0));
        ok(cuMemsetD8Async(address, 1, 64, stream));
        ok(cuEventRecord(event, stream));
        // The other stream waits for the first record, though the second is there.
        ok(cuStreamSynchronize(other));
        assert_eq!(counters().memsets.count, 0);
        ok(cuEventSynchronize(event));
        assert_eq!(counters().memsets.count, 1);
        ok(cuEventDestroy_v2(event));
        assert_eq!(cuEventQuery(event), INVALID_HANDLE);
        assert_eq!(cuEventRecord(event, stream), INVALID_HANDLE);
        assert_eq!(cuStreamWaitEvent(stream, stream, 0), INVALID_HANDLE);
        assert_eq!(counters().events_live, 0);
    });
}

#[test]
fn events_of_other_devices_can_be_waited_for_and_not_recorded() {
    isolated("events_of_other_devices_can_be_waited_for_and_not_recorded", &[], || {
        use_device(1);
        let (event, here) = (event(), stream());
        use_device(0);
        let there = stream();
        assert_eq!(cuEventRecord(event, there), INVALID_HANDLE);
        ok(cuEventRecord(event, here));
        ok(cuStreamWaitEvent(there, event, 0));
        ok(cuStreamSynchronize(there));
    });
}

#[test]
fn events_tell_time() {
    isolated("events_tell_time", HELD, || {
        use_device(0);
        let stream = stream();
        let start = get(|to| cuEventCreate(to, 0));
        let end = get(|to| cuEventCreate(to, 0));
        let mut ms = 0.0;
        assert_eq!(cuEventElapsedTime(&mut ms, start, end), INVALID_HANDLE);
        ok(cuEventRecord(start, stream));
        ok(cuEventRecord(end, stream));
        assert_eq!(cuEventElapsedTime(&mut ms, start, end), NOT_READY);
        ok(cuEventSynchronize(end));
        ok(cuEventElapsedTime(&mut ms, start, end));
        assert!((0.0..60_000.0).contains(&ms));
        let untimed = event();
        ok(cuEventRecord(untimed, stream));
        ok(cuEventSynchronize(untimed));
        assert_eq!(cuEventElapsedTime(&mut ms, start, untimed), INVALID_HANDLE);
        let mut none = 0;
        assert_eq!(cuEventCreate(&mut none, 4), INVALID_VALUE);
        assert_eq!(cuEventCreate(&mut none, 64), INVALID_VALUE);
    });
}

#[test]
fn capture_is_refused() {
    isolated("capture_is_refused", &[], || {
        use_device(0);
        let stream = stream();
        assert_eq!(cuStreamBeginCapture_v2(stream, 0), NOT_SUPPORTED);
        assert_eq!(get::<i32>(|to| cuStreamIsCapturing(stream, to)), 0);
    });
}

static CALLED: AtomicU32 = AtomicU32::new(0);
static CODE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn call_back(data: usize) {
    let mut count = 0;
    CODE.store(cuDeviceGetCount(&mut count), SeqCst);
    CALLED.store(data as u32, SeqCst);
}

#[test]
fn host_functions_run_in_order_and_must_not_call_the_driver() {
    isolated("host_functions_run_in_order_and_must_not_call_the_driver", HELD, || {
        use_device(0);
        let stream = stream();
        ok(cuLaunchHostFunc(stream, call_back, 5));
        assert_eq!(CALLED.load(SeqCst), 0);
        ok(cuStreamSynchronize(stream));
        assert_eq!(CALLED.load(SeqCst), 5);
        assert_eq!(CODE.load(SeqCst), NOT_PERMITTED);
    });
}

#[test]
fn streams_wait_for_values_and_write_them() {
    isolated("streams_wait_for_values_and_write_them", HELD, || {
        use_device(0);
        let (waiter, writer) = (stream(), stream());
        let (flags, host) = (allocate(64), pinned(64));
        ok(cuMemsetD8_v2(flags, 0, 64));
        ok(cuCtxSynchronize());
        host.fill(0);
        ok(cuStreamWaitValue32_v2(waiter, flags, 7, 1));
        ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), flags, 4, waiter));
        assert_eq!(cuStreamQuery(waiter), NOT_READY);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(cuStreamQuery(waiter), NOT_READY);
        ok(cuStreamWriteValue32_v2(writer, flags, 7, 0));
        ok(cuStreamSynchronize(writer));
        ok(cuStreamSynchronize(waiter));
        assert_eq!(host[0], 7);
        // At least is cyclic; memory of the host serves, too.
        let (address, at) = (host.as_mut_ptr() as u64, host.as_mut_ptr().cast::<u64>());
        ok(cuStreamWaitValue64_v2(waiter, address + 8, u64::MAX - 1, 0));
        // SAFETY: the second value of pinned memory, aligned.
        unsafe { std::sync::atomic::AtomicU64::from_ptr(at.add(1)).store(3, SeqCst) };
        ok(cuStreamSynchronize(waiter));
        let counters = counters();
        assert_eq!((counters.value_waits, counters.value_writes), (2, 1));
        // And, nor, in a batch.
        let wait = |value, flags, address| BatchOperation {
            operation: 1,
            address,
            value,
            flags,
            ..BatchOperation::default()
        };
        let write = BatchOperation { operation: 2, ..wait(5, 0, flags + 4) };
        let batch = [write, wait(4, 2, flags + 4), wait(5, 3, flags + 4)];
        ok(cuStreamBatchMemOp_v2(waiter, 3, batch.as_ptr(), 0));
        ok(cuStreamSynchronize(waiter));
        assert_eq!(download(flags + 4, 4), [5, 0, 0, 0]);
    });
}

#[test]
fn stream_memory_operations_are_checked() {
    isolated("stream_memory_operations_are_checked", HELD, || {
        use_device(0);
        let (stream, flags) = (stream(), allocate(64));
        let local = 0u32;
        for code in [
            cuStreamWaitValue32_v2(stream, flags + 2, 0, 0),
            cuStreamWaitValue64_v2(stream, flags + 4, 0, 0),
            cuStreamWaitValue32_v2(stream, flags, 0, 4),
            cuStreamWriteValue32_v2(stream, flags + 64, 0, 0),
            cuStreamWriteValue32_v2(stream, flags, 0, 2),
            cuStreamWaitValue32_v2(stream, &raw const local as u64, 0, 0),
        ] {
            assert_eq!(code, INVALID_VALUE);
        }
        let unknown = BatchOperation { operation: 99, address: flags, ..BatchOperation::default() };
        assert_eq!(cuStreamBatchMemOp_v2(stream, 1, &unknown, 0), INVALID_VALUE);
        ok(configure("NO_STREAM_MEMORY_OPS", "1"));
        assert_eq!(cuStreamWriteValue32_v2(stream, flags, 0, 0), NOT_SUPPORTED);
        assert_eq!(get::<i32>(|to| cuDeviceGetAttribute(to, 122, 0)), 0);
    });
}

#[test]
fn memory_that_a_stream_waits_for_may_be_freed_only_after() {
    isolated("memory_that_a_stream_waits_for_may_be_freed_only_after", &[("HOLD_MS", "0")], || {
        use_device(0);
        let (stream, host) = (stream(), pinned(4096));
        host.fill(0);
        let address = host.as_mut_ptr();
        ok(cuStreamWaitValue32_v2(stream, address as u64, 1, 0));
        let mut registered = vec![0u32; 1024];
        ok(cuMemHostRegister_v2(registered.as_mut_ptr().cast(), 4096, 0));
        let other = common::stream();
        ok(cuStreamWaitValue32_v2(other, registered.as_ptr() as u64, 1, 0));
        ok(cuMemHostUnregister(registered.as_mut_ptr().cast()));
        assert_eq!(cuStreamSynchronize(other), ILLEGAL_ADDRESS);
    });
}

#[test]
fn where_bandwidths_are_set_each_engine_serves_one_copy_after_the_other() {
    // 1 MB a second: 50 ms for each copy.
    let settings = [("BANDWIDTHS", "down=1e6,up=1e6"), ("HOLD_MS", "60000")];
    const LEN: usize = 50_000;
    let name = "where_bandwidths_are_set_each_engine_serves_one_copy_after_the_other";
    isolated(name, &settings, || {
        use_device(0);
        let (one, other, host) = (stream(), stream(), pinned(2 * LEN));
        let (address, end) = (allocate(2 * LEN), host.as_mut_ptr().wrapping_add(LEN));
        let start = Instant::now();
        // Nothing has to demand them. Two streams share the engine of a direction.
        ok(cuMemcpyHtoDAsync_v2(address, host.as_ptr(), LEN, one));
        ok(cuMemcpyHtoDAsync_v2(address + LEN as u64, host.as_ptr(), LEN, other));
        ok(cuStreamSynchronize(one));
        ok(cuStreamSynchronize(other));
        let same_way = start.elapsed();
        assert!(same_way >= Duration::from_millis(100), "{same_way:?}");
        let both_ways = || {
            let start = Instant::now();
            ok(cuMemcpyHtoDAsync_v2(address, host.as_ptr(), LEN, one));
            ok(cuMemcpyDtoHAsync_v2(end, address + LEN as u64, LEN, other));
            ok(cuStreamSynchronize(one));
            ok(cuStreamSynchronize(other));
            start.elapsed()
        };
        // The machine may do something else meanwhile.
        let shortest = (0..5).map(|_| both_ways()).min().unwrap();
        assert!(shortest >= Duration::from_millis(50), "{shortest:?}");
        assert!(shortest < Duration::from_millis(100), "{shortest:?}");
    });
}
