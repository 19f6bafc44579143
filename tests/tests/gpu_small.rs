//! Small calls on GPUs that have been joined: one kernel a rank, by the stand-in for the CUDA driver or on real GPUs
//! (`tests/src/gpu.rs`), with the bits that the host gives.

use std::sync::Barrier;
use std::time::Duration;

use ringtree::control::Verdict;
use ringtree::device::{DeviceCounters, Stream};
use ringtree::{Communicator, Error, Op, Transports};
use ringtree_cuda_standin::Counters;
use ringtree_tests::gpu::{Gpu, alone, driver, standin_counters};
use ringtree_tests::gpu_checks::{check_all, check_every_type, values};
use ringtree_tests::ranks::each;

const EIGHT: (&str, &str) = ("DEVICES", "8");

/// Ranks of this process that have joined their GPUs. The host folds as kernels do: in the order of the ranks.
fn joined<R: Send>(
    ranks: u32,
    timeout: Duration,
    body: impl Fn(Communicator, Gpu) -> R + Sync,
) -> Vec<R> {
    each(reproducible(ranks, timeout), |communicator| {
        let gpu = Gpu::of(&communicator);
        assert!(communicator.join_devices(&gpu.device).expect("all ranks join"));
        body(communicator, gpu)
    })
}

fn reproducible(ranks: u32, timeout: Duration) -> Vec<Communicator> {
    let driver = driver();
    let made = Communicator::in_process_with(ranks, |settings| {
        settings.transports = Transports::Shm;
        settings.cuda_library = driver.clone();
        settings.reproducible = true;
        settings.timeout = timeout;
    });
    made.expect("communicators of this process")
}

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nobody waits longer in vain, and nothing that is right takes as long.
const SOON: Duration = Duration::from_secs(10);

/// Copies that the stand-in has made so far, of whatever kind; none on the real driver, which does not tell.
fn copies() -> u64 {
    if driver().is_none() {
        return 0;
    }
    let Counters { host_to_device, device_to_host, same_device, peer, .. } = standin_counters();
    [host_to_device, device_to_host, same_device, peer].iter().map(|copies| copies.count).sum()
}

#[test]
fn a_small_all_reduce_is_one_kernel_of_each_rank() {
    alone("a_small_all_reduce_is_one_kernel_of_each_rank", &[EIGHT], || {
        for ranks in [2, 3, 4, 8] {
            joined(ranks, PATIENCE, |communicator, gpu| {
                for bytes in [0, 4, 1_000, 4_096, 16_384] {
                    let own = values::<f32>(bytes as u64, communicator.rank(), bytes / 4);
                    let mut expected = own.clone();
                    communicator.all_reduce(&mut expected, Op::Sum).expect("on the host");
                    let mut memory = gpu.memory(&communicator, &own);
                    communicator.barrier().expect("all have copied what they give");
                    let (before, copies_before) = (communicator.device_counters(), copies());
                    communicator.barrier().expect("all have looked");
                    let queued = communicator.on(&gpu.stream).all_reduce(&mut memory, Op::Sum);
                    queued.and_then(|queued| queued.wait()).expect("a sum");
                    communicator.barrier().expect("all have the sum");
                    let work = communicator.device_counters().since(before);
                    assert_eq!(copies(), copies_before, "copies of {bytes} bytes");
                    communicator.barrier().expect("all have looked");
                    let from_peers_bytes = u64::from(ranks - 1) * bytes as u64;
                    let least =
                        DeviceCounters { kernels: 1, from_peers_bytes, ..Default::default() };
                    assert_eq!(work, least, "{ranks} ranks, {bytes} bytes");
                    let got = gpu.elements(&memory);
                    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
                    let (got, expected): (Vec<u32>, Vec<u32>) = (bits(&got), bits(&expected));
                    assert_eq!(got, expected, "{ranks} ranks, {bytes} bytes");
                }
            });
        }
    });
}

#[test]
fn every_small_collective_has_the_bits_of_the_host() {
    for schedule in ["adversarial", "random"] {
        let settings = [("SCHEDULE", schedule)];
        let name = "every_small_collective_has_the_bits_of_the_host";
        let is_inside = alone(name, &settings, || {
            for ranks in 2..=4 {
                joined(ranks, PATIENCE, |communicator, gpu| {
                    // Of the last ones, some collectives are too large, or all are.
                    for count in [0, 1, 7, 300, 4_096, 5_003] {
                        check_all::<f32>(&communicator, &gpu, count, Op::Sum);
                    }
                    check_all::<u8>(&communicator, &gpu, 333, Op::Max);
                });
            }
        });
        if is_inside {
            return;
        }
    }
}

#[test]
fn every_type_and_operation_of_small_calls_has_the_bits_of_the_host() {
    alone("every_type_and_operation_of_small_calls_has_the_bits_of_the_host", &[], || {
        joined(3, PATIENCE, |communicator, gpu| {
            let before = communicator.device_counters();
            check_every_type(&communicator, &gpu, &[7, 300]);
            let work = communicator.device_counters().since(before);
            assert_eq!([work.from_host_bytes, work.to_host_bytes], [0; 2], "all are exchanges");
        });
    });
}

#[test]
fn ranks_that_share_a_gpu() {
    alone("ranks_that_share_a_gpu", &[("DEVICES", "2")], || {
        joined(5, PATIENCE, |communicator, gpu| {
            for count in [1, 1_000] {
                check_all::<i32>(&communicator, &gpu, count, Op::Sum);
            }
        });
    });
}

/// All-reduces in a row whose every result is looked at, in two streams in turn.
fn many(communicator: &Communicator, gpu: &Gpu, calls: usize) -> Result<(), Error> {
    let (rank, ranks) = (communicator.rank(), communicator.ranks());
    let other = Stream::new(&gpu.device)?;
    let count = 200;
    let given = |call: usize, rank: u32| call as u32 * 100 + rank;
    let own: Vec<u32> =
        (0..calls).flat_map(|call| std::iter::repeat_n(given(call, rank), count)).collect();
    let all = gpu.memory(communicator, &own);
    communicator.barrier()?;
    for call in 0..calls {
        // Runs of each, so that calls follow one another within a stream, too.
        let stream = if call / 3 % 2 == 0 { &gpu.stream } else { &other };
        let mut part = all.part(call * count..(call + 1) * count);
        drop(communicator.on(stream).all_reduce(&mut part, Op::Sum)?);
    }
    other.synchronize()?;
    for (call, sums) in gpu.elements(&all).chunks(count).enumerate() {
        let sum: u32 = (0..ranks).map(|rank| given(call, rank)).sum();
        assert_eq!(sums, vec![sum; count], "call {call}, rank {rank}");
    }
    // What went wrong is told.
    communicator.barrier()
}

#[test]
fn small_calls_in_a_row() {
    alone("small_calls_in_a_row", &[], || {
        joined(3, SOON, |communicator, gpu| many(&communicator, &gpu, 100).expect("sums"));
    });
}

#[test]
fn many_small_calls_in_two_streams() {
    for schedule in ["adversarial", "random"] {
        let name = "many_small_calls_in_two_streams";
        let is_inside = alone(name, &[("SCHEDULE", schedule)], || {
            joined(3, SOON, |communicator, gpu| many(&communicator, &gpu, 1_000).expect("sums"));
        });
        if is_inside {
            return;
        }
    }
}

#[test]
fn small_and_large_calls_keep_their_order_in_whichever_streams() {
    alone("small_and_large_calls_keep_their_order_in_whichever_streams", &[], || {
        joined(3, PATIENCE, |communicator, gpu| {
            let other = Stream::new(&gpu.device).expect("a stream");
            let mut large = gpu.memory(&communicator, &vec![1_u64; 20_000]);
            for turn in 0..10 {
                let stream = if turn % 2 == 0 { &gpu.stream } else { &other };
                let on = communicator.on(stream);
                drop(on.all_reduce(&mut large, Op::Sum).expect("a large call"));
                // A part of the same memory, in the other stream, which nobody has wait.
                let stream = if turn % 3 == 0 { &gpu.stream } else { &other };
                let mut part = large.part(0..1_000);
                drop(communicator.on(stream).all_reduce(&mut part, Op::Max).expect("a small one"));
                let posted = communicator.all_reduce_async(vec![turn], Op::Sum).expect("posted");
                assert_eq!(posted.wait().expect("a sum"), [3 * turn]);
            }
            let sums = vec![3_u64.pow(10); 20_000];
            assert_eq!(gpu.elements(&large), sums);
        });
    });
}

#[test]
fn gpus_that_do_not_reach_each_other_go_on_as_before() {
    let name = "gpus_that_do_not_reach_each_other_go_on_as_before";
    alone(name, &[("NO_PEER", "0-2")], || {
        each(reproducible(3, PATIENCE), |communicator| {
            let gpu = Gpu::of(&communicator);
            assert!(!communicator.join_devices(&gpu.device).expect("an answer"));
            check_all::<f32>(&communicator, &gpu, 100, Op::Sum);
        });
    });
}

/// What a call that fails on both of two ranks says there, and that nothing runs then.
fn fails(body: impl Fn(&Communicator, &Gpu) -> Result<(), Error> + Sync) -> Vec<Error> {
    joined(2, SOON, |communicator, gpu| {
        let mut memory = gpu.memory(&communicator, &[1_f32; 10]);
        let mut sum = || communicator.on(&gpu.stream).all_reduce(&mut memory, Op::Sum)?.wait();
        sum().expect("a sum");
        let error = body(&communicator, &gpu).expect_err("an error");
        gpu.stream.synchronize().expect("the kernel has ended");
        sum().expect_err("the communicator is over");
        error
    })
}

fn is_mismatch(error: &Error) -> bool {
    matches!(error, Error::Verdict(verdict) if matches!(**verdict, Verdict::Mismatch { .. }))
}

#[test]
fn calls_that_do_not_match_are_named() {
    alone("calls_that_do_not_match_are_named", &[], || {
        let errors = fails(|communicator, gpu| {
            let count = 100 + communicator.rank() as usize;
            let mut memory = gpu.memory(communicator, &vec![7_f32; count]);
            let queued = communicator.on(&gpu.stream).all_reduce(&mut memory, Op::Sum)?;
            let result = queued.wait();
            assert_eq!(gpu.elements(&memory), vec![7.0; count], "nothing of the other call");
            result
        });
        for error in errors {
            let text = error.to_string();
            assert!(is_mismatch(&error), "{text}");
            assert!(text.contains("all-reduce of 100 f32, sum (one kernel of each GPU)"), "{text}");
            assert!(text.contains("all-reduce of 101 f32"), "{text}");
        }
    });
}

#[test]
fn a_call_on_the_host_and_one_on_a_gpu_do_not_match() {
    alone("a_call_on_the_host_and_one_on_a_gpu_do_not_match", &[], || {
        let errors = fails(|communicator, gpu| {
            if communicator.rank() == 0 {
                return communicator.all_reduce(&mut [1_f32; 100], Op::Sum);
            }
            let mut memory = gpu.memory(communicator, &[1_f32; 100]);
            communicator.on(&gpu.stream).all_reduce(&mut memory, Op::Sum)?.wait()
        });
        for error in errors {
            let text = error.to_string();
            assert!(is_mismatch(&error), "{text}");
            assert!(text.contains("(one kernel of each GPU)"), "{text}");
        }
    });
}

#[test]
fn a_call_that_is_another_ones_second_does_not_match() {
    alone("a_call_that_is_another_ones_second_does_not_match", &[], || {
        let errors = fails(|communicator, gpu| {
            let mut memory = gpu.memory(communicator, &[1_f32; 50]);
            // One has posted a call on the host before.
            let before = (communicator.rank() == 0)
                .then(|| communicator.all_reduce_async(vec![1_f32; 50], Op::Sum));
            let result = communicator.on(&gpu.stream).all_reduce(&mut memory, Op::Sum)?.wait();
            assert_eq!(gpu.elements(&memory), [1.0; 50], "nothing of the other call");
            if let Some(before) = before {
                before?.wait().expect_err("nobody else has made it");
            }
            result
        });
        assert!(errors.iter().all(is_mismatch), "{errors:?}");
    });
}

#[test]
fn an_abort_ends_the_kernels() {
    alone("an_abort_ends_the_kernels", &[], || {
        let is_queued = Barrier::new(2);
        let errors = fails(|communicator, gpu| {
            if communicator.rank() == 0 {
                is_queued.wait();
                communicator.abort("the test says so");
                return communicator.barrier();
            }
            let mut memory = gpu.memory(communicator, &[1_f32; 100]);
            let queued = communicator.on(&gpu.stream).all_reduce(&mut memory, Op::Sum);
            is_queued.wait();
            queued?.wait()
        });
        for error in errors {
            assert!(error.to_string().contains("the test says so"), "{error}");
        }
    });
}

#[test]
fn a_rank_that_is_late_is_named_at_the_deadline() {
    alone("a_rank_that_is_late_is_named_at_the_deadline", &[], || {
        let is_given_up = Barrier::new(3);
        joined(3, Duration::from_secs(3), |communicator, gpu| {
            let mut memory = gpu.memory(&communicator, &[1_f32; 100]);
            communicator.barrier().expect("all are here");
            if communicator.rank() == 1 {
                is_given_up.wait();
                return;
            }
            let on = communicator.on(&gpu.stream);
            let error = on.all_reduce(&mut memory, Op::Sum).and_then(|queued| queued.wait());
            is_given_up.wait();
            let error = error.expect_err("nobody waits for ever").to_string();
            assert!(error.contains("rank 1"), "{error}");
            gpu.stream.synchronize().expect("the kernel has ended");
        });
    });
}

#[test]
fn a_rank_that_leaves_ends_the_kernels_of_the_others() {
    alone("a_rank_that_leaves_ends_the_kernels_of_the_others", &[], || {
        joined(3, SOON, |communicator, gpu| {
            let mut memory = gpu.memory(&communicator, &[1_f32; 100]);
            let on = communicator.on(&gpu.stream);
            drop(on.all_reduce(&mut memory, Op::Sum).expect("a call"));
            if communicator.rank() == 1 {
                return;
            }
            let queued = on.all_reduce(&mut memory, Op::Sum).expect("a call");
            gpu.stream.synchronize().expect("the end of the stream's work");
            let error = queued.wait().expect_err("a rank has left");
            assert!(error.to_string().contains("rank 1"), "{error}");
        });
    });
}

#[test]
fn ranks_join_once_and_with_one_gpu() {
    alone("ranks_join_once_and_with_one_gpu", &[], || {
        joined(2, PATIENCE, |communicator, gpu| {
            let error = communicator.join_devices(&gpu.device).expect_err("a second time");
            assert!(error.to_string().contains("have joined their GPUs before"), "{error}");
            let devices = communicator.devices().expect("a driver");
            let device = communicator.device((communicator.rank() + 2) % devices).expect("a GPU");
            let other = Gpu { stream: Stream::new(&device).expect("a stream"), device };
            let mut memory = other.memory(&communicator, &[1_f32; 10]);
            let error = communicator.on(&other.stream).all_reduce(&mut memory, Op::Sum);
            let error = error.expect_err("another GPU").to_string();
            assert!(error.contains("joined with GPU"), "{error}");
            check_all::<f32>(&communicator, &gpu, 10, Op::Sum);
        });
    });
}

#[test]
fn a_gpu_that_fails_ends_the_small_calls_of_all() {
    let settings = [("FAIL", "cuEventQuery:100:700")];
    alone("a_gpu_that_fails_ends_the_small_calls_of_all", &settings, || {
        let errors = joined(3, SOON, |communicator, gpu| {
            let mut memory = gpu.memory(&communicator, &[1_f32; 100]);
            let mut sum = || communicator.on(&gpu.stream).all_reduce(&mut memory, Op::Sum)?.wait();
            (0..1_000).find_map(|_| sum().err()).expect("the end")
        });
        for error in errors {
            let text = error.to_string();
            assert!(text.contains("its GPU failed") || text.contains("(700)"), "{text}");
        }
    });
}

#[test]
fn a_rank_without_a_board_has_all_go_on_as_before() {
    let settings = [("FAIL", "cuMemAlloc_v2:1:801"), ("NO_VMM", "1")];
    alone("a_rank_without_a_board_has_all_go_on_as_before", &settings, || {
        each(reproducible(3, PATIENCE), |communicator| {
            let gpu = Gpu::of(&communicator);
            assert!(!communicator.join_devices(&gpu.device).expect("an answer"));
            check_all::<f32>(&communicator, &gpu, 100, Op::Sum);
        });
    });
}
