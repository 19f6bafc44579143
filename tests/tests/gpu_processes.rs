//! Collectives on memory of GPUs between ranks that are processes, by every way by which memory gets from one to the
//! other, on the stand-in for the CUDA driver or on real GPUs (`tests/src/gpu.rs`).

use ringtree::device::DeviceCounters;
use ringtree::{Communicator, Op};
use ringtree_tests::gpu::{Gpu, processes};
use ringtree_tests::gpu_checks::{check_all, values};

/// An exchange at once, and several slices.
const COUNTS: [usize; 2] = [300, 30_001];

/// What an all-reduce has this rank's GPU do once all know how they reach each other.
fn work_of(communicator: &Communicator, gpu: &Gpu) -> DeviceCounters {
    let sum = |count: usize| {
        let own = values::<i32>(1, communicator.rank(), count);
        let mut memory = gpu.memory(communicator, &own);
        let on = communicator.on(&gpu.stream);
        on.all_reduce(&mut memory, Op::Sum).and_then(|queued| queued.wait()).expect("a sum");
    };
    for _ in 0..3 {
        sum(20_000);
        communicator.barrier().expect("a barrier");
    }
    // Of memory that is allocated from here on.
    let before = communicator.device_counters();
    sum(100_003);
    communicator.device_counters().since(before)
}

/// All calls, before and after the ranks have joined their GPUs; `is_in_place` says whether these reach each other.
fn check_calls(communicator: &Communicator, is_in_place: bool) {
    let gpu = Gpu::of(communicator);
    let work = work_of(communicator, &gpu);
    let host_bytes = work.from_host_bytes + work.to_host_bytes;
    assert_eq!(
        (host_bytes == 0, work.from_peers_bytes > 0),
        (is_in_place, is_in_place),
        "{work:?}"
    );
    COUNTS.iter().for_each(|count| check_all::<f32>(communicator, &gpu, *count, Op::Sum));
    assert_eq!(communicator.join_devices(&gpu.device).expect("an answer"), is_in_place);
    // Sums are folded in the order of the ranks then, which shows with other numbers.
    check_all::<i32>(communicator, &gpu, 300, Op::Sum);
}

#[test]
fn memory_by_handle() {
    processes("memory_by_handle", 3, "shm", &[("NO_VMM", "1")], |communicator| {
        check_calls(&communicator, true);
    });
}

#[test]
fn memory_by_descriptor_where_no_handle_can_be_opened() {
    let name = "memory_by_descriptor_where_no_handle_can_be_opened";
    processes(name, 3, "shm", &[("NO_IPC", "open")], |communicator| {
        check_calls(&communicator, true);
    });
}

#[test]
fn memory_by_descriptor_where_there_are_no_handles() {
    let name = "memory_by_descriptor_where_there_are_no_handles";
    processes(name, 2, "shm", &[("NO_IPC", "1"), ("SCHEDULE", "random")], |communicator| {
        check_calls(&communicator, true);
    });
}

#[test]
fn memory_by_the_host_where_there_is_no_way() {
    let name = "memory_by_the_host_where_there_is_no_way";
    processes(name, 2, "shm", &[("NO_IPC", "open"), ("NO_VMM", "1")], |communicator| {
        check_calls(&communicator, false);
    });
}

#[test]
fn memory_of_gpus_that_do_not_reach_each_other() {
    let name = "memory_of_gpus_that_do_not_reach_each_other";
    processes(name, 2, "shm", &[("NO_PEER", "all")], |communicator| {
        check_calls(&communicator, false);
    });
}

#[test]
fn memory_over_tcp() {
    processes("memory_over_tcp", 2, "tcp", &[("SCHEDULE", "prompt")], |communicator| {
        let gpu = Gpu::of(&communicator);
        COUNTS.iter().for_each(|count| check_all::<f32>(&communicator, &gpu, *count, Op::Sum));
    });
}

/// Memory that was given to a peer is mapped there until this rank wants it back: it comes back, also by descriptor.
#[test]
fn memory_by_descriptor_is_given_back() {
    let settings = [("NO_IPC", "1"), ("MEMORY_BYTES", "67108864")];
    processes("memory_by_descriptor_is_given_back", 2, "shm", &settings, |communicator| {
        let gpu = Gpu::of(&communicator);
        for _ in 0..20 {
            let mut memory = gpu.memory(&communicator, &vec![1_u8; 8 << 20]);
            let on = communicator.on(&gpu.stream);
            on.broadcast(&mut memory, 0).and_then(|queued| queued.wait()).expect("a broadcast");
        }
    });
}
