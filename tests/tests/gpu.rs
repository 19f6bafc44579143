//! Collectives on memory of GPUs, by the stand-in for the CUDA driver or on real ones (`tests/src/gpu.rs`): every
//! result has the bits that the host gives.

use ringtree::device::{DeviceCounters, DevicePointer, Stream};
use ringtree::{Algorithm, Collective, Communicator, Factor, Op, Transports};
use ringtree_tests::gpu::{Gpu, alone, communicators};
use ringtree_tests::gpu_checks::{
    OnGpu, OnHost, bits, check, check_all, check_every_type, check_mixed, values,
};
use ringtree_tests::ranks::{TRANSPORTS, each};

/// Nothing, one element, an exchange at once, a round, several slices.
const COUNTS: [usize; 5] = [0, 1, 300, 5_003, 70_001];

#[test]
fn every_collective_has_the_bits_of_the_host() {
    alone("every_collective_has_the_bits_of_the_host", &[], || {
        for transports in TRANSPORTS {
            for ranks in 1..=4 {
                each(communicators(ranks, transports), |communicator| {
                    let gpu = Gpu::of(&communicator);
                    for count in COUNTS {
                        check_all::<f32>(&communicator, &gpu, count, Op::Sum);
                    }
                });
            }
        }
    });
}

#[test]
fn every_type_and_operation_has_the_bits_of_the_host() {
    alone("every_type_and_operation_has_the_bits_of_the_host", &[], || {
        each(communicators(3, Transports::Shm), |communicator| {
            let gpu = Gpu::of(&communicator);
            check_every_type(&communicator, &gpu, &[7, 6_001]);
        });
    });
}

#[test]
fn every_algorithm_runs_on_gpus() {
    alone("every_algorithm_runs_on_gpus", &[], || {
        for transports in TRANSPORTS {
            each(communicators(4, transports), |communicator| {
                let gpu = Gpu::of(&communicator);
                let serving =
                    Algorithm::ALL.into_iter().filter(|a| a.serves(Collective::AllReduce));
                for algorithm in serving {
                    let by = communicator.using(algorithm);
                    for count in [9, 40_003] {
                        let own = values::<f32>(4, communicator.rank(), count);
                        check(
                            &communicator,
                            &gpu,
                            algorithm.name(),
                            None,
                            &own,
                            |_, output| by.all_reduce(output, Op::Sum),
                            |_, output| by.on(&gpu.stream).all_reduce(output, Op::Sum),
                        );
                    }
                }
            });
        }
    });
}

#[test]
fn hosts_and_gpus_are_ranks_of_one_communicator() {
    alone("hosts_and_gpus_are_ranks_of_one_communicator", &[], || {
        for transports in TRANSPORTS {
            each(communicators(3, transports), |communicator| check_mixed(&communicator, &COUNTS));
        }
    });
}

#[test]
fn calls_keep_the_order_of_their_stream_and_outlive_their_buffers() {
    alone("calls_keep_the_order_of_their_stream_and_outlive_their_buffers", &[], || {
        each(communicators(2, Transports::Shm), |communicator| {
            let gpu = Gpu::of(&communicator);
            let on = communicator.on(&gpu.stream);
            let mut sums = gpu.memory(&communicator, &vec![1_i32; 50_000]);
            for _ in 0..5 {
                drop(on.all_reduce(&mut sums, Op::Sum).expect("an all-reduce"));
            }
            // Nobody has this buffer any more while the call is under way.
            let mut forgotten = gpu.memory(&communicator, &vec![3_i32; 50_000]);
            let queued = on.all_reduce(&mut forgotten, Op::Sum).expect("an all-reduce");
            drop(forgotten);
            assert_eq!(gpu.elements(&sums), vec![32; 50_000]);
            queued.wait().expect("the end of it");
        });
    });
}

#[test]
fn a_call_begins_when_its_stream_has_come_to_it() {
    alone("a_call_begins_when_its_stream_has_come_to_it", &[], || {
        for transports in TRANSPORTS {
            each(communicators(2, transports), |communicator| {
                let gpu = Gpu::of(&communicator);
                let on = communicator.on(&gpu.stream);
                // An exchange at once, a slice, several.
                for count in [100_usize, 30_000, 300_000] {
                    let mut memory = gpu.memory(&communicator, &vec![0_u8; count]);
                    for turn in 1..=4 {
                        // SAFETY: the memory is as long, and what follows in the stream waits for it.
                        let filled = unsafe { gpu.stream.fill(memory.address(), turn, count) };
                        filled.expect("a fill");
                        drop(on.all_reduce(&mut memory, Op::Sum).expect("an all-reduce"));
                        assert_eq!(gpu.elements(&memory), vec![2 * turn; count], "turn {turn}");
                    }
                }
            });
        }
    });
}

#[test]
fn memory_that_is_lent_stays_as_it_is_until_it_has_been_read() {
    alone("memory_that_is_lent_stays_as_it_is_until_it_has_been_read", &[], || {
        each(communicators(2, Transports::Shm), |communicator| {
            let gpu = Gpu::of(&communicator);
            let on = communicator.on(&gpu.stream);
            let count = 100_000_usize;
            let mut memory = gpu.memory(&communicator, &vec![0_u8; count]);
            for turn in 1..=20 {
                if communicator.rank() == 0 {
                    // SAFETY: the memory is as long, and what follows in the stream waits for it.
                    unsafe { gpu.stream.fill(memory.address(), turn, count) }.expect("a fill");
                    drop(on.broadcast(&mut memory, 0).expect("a broadcast"));
                } else {
                    // It comes late, so that whoever does not wait for it has written what is next.
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    drop(on.broadcast(&mut memory, 0).expect("a broadcast"));
                    assert_eq!(gpu.elements(&memory), vec![turn; count], "turn {turn}");
                }
            }
            gpu.stream.synchronize().expect("the end of all");
        });
    });
}

#[test]
fn messages_between_gpus() {
    alone("messages_between_gpus", &[], || {
        for transports in TRANSPORTS {
            each(communicators(2, transports), |communicator| {
                let gpu = Gpu::of(&communicator);
                let on = communicator.on(&gpu.stream);
                let (rank, other) = (communicator.rank(), 1 - communicator.rank());
                for count in COUNTS {
                    let mine = gpu.memory(&communicator, &values::<u32>(6, rank, count));
                    let mut theirs = gpu.memory(&communicator, &vec![0; count]);
                    // What slots hold leaves before the other one receives.
                    let sends_first = rank == 0 || count < 10_000;
                    if sends_first {
                        drop(on.send(&mine, other).expect("a message"));
                        drop(on.receive(&mut theirs, other).expect("a message"));
                    } else {
                        drop(on.receive(&mut theirs, other).expect("a message"));
                        drop(on.send(&mine, other).expect("a message"));
                    }
                    assert_eq!(gpu.elements(&theirs), values::<u32>(6, other, count));
                }
            });
        }
    });
}

/// The calls on blocks that differ in length, from and to every root.
fn check_varied(communicator: &Communicator, gpu: &Gpu, scale: usize) {
    let (rank, ranks) = (communicator.rank(), communicator.ranks());
    // Some are empty.
    let counts: Vec<usize> = (0..ranks as usize).map(|other| scale * (other * 7 % 5)).collect();
    let counts = &counts[..];
    let own = &values::<f32>(8, rank, counts[rank as usize])[..];
    let all = &values::<f32>(9, rank, counts.iter().sum())[..];
    let (c, on) = (communicator, communicator.on(&gpu.stream));
    let ck = |what: &str,
              input: Option<&[f32]>,
              output: &[f32],
              host: OnHost<f32>,
              device: OnGpu<f32>| {
        check(c, gpu, what, input, output, host, device);
    };
    ck("all-gather-v", None, all, &|_, o| c.all_gather_v(o, counts), &|_, o| {
        on.all_gather_v(o, counts)
    });
    ck(
        "all-gather-v, out of place",
        Some(own),
        all,
        &|i, o| c.all_gather_v_into(i, o, counts),
        &|i, o| on.all_gather_v_into(i, o, counts),
    );
    for op in [Op::Sum, Op::PreMulSum(Factor::new(0.5))] {
        ck("reduce-scatter-v", None, all, &|_, o| c.reduce_scatter_v(o, counts, op), &|_, o| {
            on.reduce_scatter_v(o, counts, op)
        });
        ck(
            "reduce-scatter-v, out of place",
            Some(all),
            own,
            &|i, o| c.reduce_scatter_v_into(i, o, counts, op),
            &|i, o| on.reduce_scatter_v_into(i, o, counts, op),
        );
    }
    for root in 0..ranks {
        ck("gather-v", Some(own), all, &|i, o| c.gather_v_into(i, o, counts, root), &|i, o| {
            on.gather_v_into(i, o, counts, root)
        });
        ck("scatter-v", Some(all), own, &|i, o| c.scatter_v_into(i, o, counts, root), &|i, o| {
            on.scatter_v_into(i, o, counts, root)
        });
    }
    // What one gives the other gets.
    let given: Vec<usize> = (0..ranks).map(|to| scale * ((rank + to) % 3) as usize).collect();
    let blocks = &values::<f32>(10, rank, given.iter().sum())[..];
    ck(
        "all-to-all-v",
        Some(blocks),
        blocks,
        &|i, o| c.all_to_all_v_into(i, &given, o, &given),
        &|i, o| on.all_to_all_v_into(i, &given, o, &given),
    );
}

#[test]
fn blocks_that_differ_in_length() {
    alone("blocks_that_differ_in_length", &[], || {
        for transports in TRANSPORTS {
            for ranks in 1..=4 {
                each(communicators(ranks, transports), |communicator| {
                    let gpu = Gpu::of(&communicator);
                    for scale in [0, 1, 700, 9_001] {
                        check_varied(&communicator, &gpu, scale);
                    }
                });
            }
        }
    });
}

#[test]
fn memory_that_is_dropped_is_given_back() {
    let settings = [("MEMORY_BYTES", "67108864")];
    alone("memory_that_is_dropped_is_given_back", &settings, || {
        each(communicators(2, Transports::Shm), |communicator| {
            let gpu = Gpu::of(&communicator);
            for _ in 0..20 {
                let mut memory = gpu.memory(&communicator, &vec![1_u8; 12 << 20]);
                let on = communicator.on(&gpu.stream);
                on.broadcast(&mut memory, 0).and_then(|queued| queued.wait()).expect("a broadcast");
            }
        });
    });
}

/// What an all-reduce of `count` elements by `algorithm` has the GPUs of all ranks do, once all are warm.
fn work_of(ranks: u32, algorithm: Algorithm, count: usize) -> DeviceCounters {
    let works = each(communicators(ranks, Transports::Shm), |communicator| {
        let gpu = Gpu::of(&communicator);
        let by = communicator.using(algorithm);
        let mut memory = gpu.memory(&communicator, &vec![1_i32; count]);
        let mut all_reduce = || {
            let on = by.on(&gpu.stream);
            on.all_reduce(&mut memory, Op::Sum).and_then(|queued| queued.wait()).expect("a sum");
        };
        // Until each has found out whom it reaches.
        for _ in 0..3 {
            all_reduce();
            communicator.barrier().expect("a barrier");
        }
        let before = communicator.device_counters();
        all_reduce();
        communicator.device_counters().since(before)
    });
    works.into_iter().fold(DeviceCounters::default(), |mut all, work| {
        all += work;
        all
    })
}

/// Bytes that all ranks together must get from others, at least, in an all-reduce of `count` elements of 4 bytes.
fn bound_bytes(ranks: u32, count: usize) -> u64 {
    2 * u64::from(ranks - 1) * count as u64 * 4
}

#[test]
fn gpus_that_reach_each_other_read_in_place() {
    alone("gpus_that_reach_each_other_read_in_place", &[], || {
        for ranks in 2..=4 {
            // A round, and several.
            for count in [10_007, 1_000_003] {
                for algorithm in [Algorithm::Ring, Algorithm::TwoShot] {
                    let work = work_of(ranks, algorithm, count);
                    let what = format!("{algorithm}, {ranks} ranks, {count} elements: {work:?}");
                    assert_eq!(work.from_peers_bytes, bound_bytes(ranks, count), "{what}");
                    assert_eq!([work.from_host_bytes, work.to_host_bytes], [0; 2], "{what}");
                }
            }
        }
    });
}

#[test]
fn gpus_that_do_not_go_by_the_host_once_each_way() {
    let settings = [("NO_PEER", "all")];
    alone("gpus_that_do_not_go_by_the_host_once_each_way", &settings, || {
        for ranks in 2..=4 {
            let count = 100_003;
            let (work, bound) = (work_of(ranks, Algorithm::Ring, count), bound_bytes(ranks, count));
            assert_eq!([work.from_host_bytes, work.to_host_bytes], [bound; 2], "{work:?}");
            assert_eq!([work.from_peers_bytes, work.bounced_bytes], [0; 2], "{work:?}");
        }
    });
}

#[test]
fn memory_of_the_host_that_cannot_be_locked_is_copied_once_more() {
    let settings = [("NO_PEER", "all"), ("NO_READ_ONLY_REGISTRATION", "1")];
    alone("memory_of_the_host_that_cannot_be_locked_is_copied_once_more", &settings, || {
        let (work, bound) = (work_of(3, Algorithm::Ring, 96_000), bound_bytes(3, 96_000));
        assert_eq!([work.to_host_bytes, work.bounced_bytes], [bound; 2], "{work:?}");
    });
}

#[test]
fn a_host_copies_what_a_gpu_lends_it() {
    alone("a_host_copies_what_a_gpu_lends_it", &[], || {
        each(communicators(2, Transports::Shm), |communicator| {
            let gpu = Gpu::of(&communicator);
            let count = 70_001;
            let own = values::<f32>(7, communicator.rank(), count);
            let mut expected = own.clone();
            communicator.all_reduce(&mut expected, Op::Sum).expect("an all-reduce");
            for turn in 0..6 {
                // Both learn that they reach each other; then one of them is on the host.
                if turn > 3 && communicator.rank() == 0 {
                    let mut buffer = own.clone();
                    communicator.all_reduce(&mut buffer, Op::Sum).expect("on the host");
                    assert_eq!(bits(&buffer), bits(&expected), "turn {turn}");
                    continue;
                }
                let mut memory = gpu.memory(&communicator, &own);
                let on = communicator.on(&gpu.stream);
                drop(on.all_reduce(&mut memory, Op::Sum).expect("on a GPU"));
                assert_eq!(bits(&gpu.elements(&memory)), bits(&expected), "turn {turn}");
            }
        });
    });
}

/// Calls on 3 ranks, until a use of a function of the driver fails.
fn fails(function: &str, code: i32, transports: Transports) {
    let ended = each(communicators(3, transports), |communicator| {
        let gpu = Gpu::of(&communicator);
        let mut memory = gpu.memory(&communicator, &vec![1_f32; 100_000]);
        let on = communicator.on(&gpu.stream);
        communicator.barrier().expect("all are ready");
        let mut outcome = Ok(());
        // Some time one of them fails, and then all do.
        for _ in 0..200 {
            outcome = on.all_reduce(&mut memory, Op::Sum).and_then(|queued| queued.wait());
            if outcome.is_err() {
                break;
            }
        }
        let again = on.all_reduce(&mut memory, Op::Sum).and_then(|queued| queued.wait());
        (communicator.rank(), outcome.expect_err("an error"), again.expect_err("the end"))
    });
    for (rank, error, again) in ended {
        let (error, again) = (error.to_string(), again.to_string());
        let names = error.contains("its GPU failed") || error.contains(&format!("({code})"));
        assert!(names, "{function} with {code}: rank {rank}: {error}");
        assert!(!again.is_empty());
    }
}

#[test]
fn a_gpu_that_fails_ends_the_call_for_all() {
    let failures = [("cuLaunchKernel", 719), ("cuEventQuery", 700), ("cuMemcpyAsync", 1)];
    for (function, code) in failures {
        for nth in [1, 40] {
            let fail = format!("{function}:{nth}:{code}");
            let settings = [("FAIL", fail.as_str()), ("NO_PEER", "all")];
            let is_inside = alone("a_gpu_that_fails_ends_the_call_for_all", &settings, || {
                let fail = std::env::var("RINGTREE_STANDIN_FAIL").expect("a failure to come");
                let mut parts = fail.split(':');
                let function = parts.next().unwrap_or_default();
                let code = parts.nth(1).and_then(|code| code.parse().ok()).expect("a code");
                fails(function, code, Transports::Shm);
            });
            if is_inside {
                return;
            }
        }
    }
}

#[test]
fn memory_that_runs_out_is_an_error_and_no_end() {
    let settings = [("MEMORY_BYTES", "8388608")];
    alone("memory_that_runs_out_is_an_error_and_no_end", &settings, || {
        each(communicators(2, Transports::Shm), |communicator| {
            let gpu = Gpu::of(&communicator);
            let error =
                communicator.alloc_device::<f32>(&gpu.device, 8 << 20).expect_err("no room");
            assert!(error.to_string().contains("has no room for 33554432 more bytes"), "{error}");
            let mut memory = gpu.memory(&communicator, &vec![1_f32; 5_000]);
            let on = communicator.on(&gpu.stream);
            on.all_reduce(&mut memory, Op::Sum).and_then(|queued| queued.wait()).expect("a sum");
            assert_eq!(gpu.elements(&memory), vec![2.0; 5_000]);
        });
    });
}

#[test]
fn a_rank_that_leaves_in_the_midst_ends_the_call_of_the_others() {
    alone("a_rank_that_leaves_in_the_midst_ends_the_call_of_the_others", &[], || {
        for transports in TRANSPORTS {
            each(communicators(3, transports), |communicator| {
                let gpu = Gpu::of(&communicator);
                let mut memory = gpu.memory(&communicator, &vec![1_f32; 300_000]);
                let on = communicator.on(&gpu.stream);
                on.all_reduce(&mut memory, Op::Sum)
                    .and_then(|queued| queued.wait())
                    .expect("a sum");
                communicator.barrier().expect("all have the sum");
                if communicator.rank() == 1 {
                    return;
                }
                let queued = on.all_reduce(&mut memory, Op::Sum).expect("a call");
                // The stream goes on, whatever becomes of the call.
                gpu.stream.synchronize().expect("the end of the stream's work");
                let error = queued.wait().expect_err("a rank has left");
                assert!(error.to_string().contains("rank 1"), "{error}");
            });
        }
    });
}

#[test]
fn buffers_that_a_call_cannot_use_are_refused() {
    alone("buffers_that_a_call_cannot_use_are_refused", &[], || {
        each(communicators(2, Transports::Shm), |communicator| {
            let gpu = Gpu::of(&communicator);
            let other = communicator.device(1 - communicator.rank()).expect("the other GPU");
            let mut memory = communicator.alloc_device::<f32>(&other, 10_000).expect("memory");
            let error =
                communicator.on(&gpu.stream).all_reduce(&mut memory, Op::Sum).expect_err("no");
            assert!(
                error.to_string().contains("queue the call in a stream of the buffer's"),
                "{error}"
            );
            let mut host = vec![0_f32; 10_000];
            // SAFETY: it is none of a GPU, which is what is found out.
            let mut host = unsafe { DevicePointer::<f32>::new(host.as_mut_ptr() as u64, 10_000) };
            let error =
                communicator.on(&gpu.stream).all_reduce(&mut host, Op::Sum).expect_err("no");
            assert!(error.to_string().contains("no address of a GPU's memory"), "{error}");
            let all = gpu.memory(&communicator, &vec![1_f32; 10_000]);
            let (input, mut output) = (all.part(0..6_000), all.part(4_000..10_000));
            let error = communicator.on(&gpu.stream).all_reduce_into(&input, &mut output, Op::Sum);
            let error = error.expect_err("no").to_string();
            assert!(error.contains("have elements in common"), "{error}");
            // The communicator goes on.
            let mut memory = gpu.memory(&communicator, &vec![1_f32; 10_000]);
            let queued = communicator.on(&gpu.stream).all_reduce(&mut memory, Op::Sum);
            queued.and_then(|queued| queued.wait()).expect("a sum");
        });
    });
}

#[test]
fn calls_in_streams_of_two_gpus_of_one_communicator() {
    alone("calls_in_streams_of_two_gpus_of_one_communicator", &[], || {
        each(communicators(2, Transports::Shm), |communicator| {
            let (mine, devices) =
                (Gpu::of(&communicator), communicator.devices().expect("a driver"));
            let device = communicator.device((communicator.rank() + 2) % devices).expect("a GPU");
            let stream = Stream::new(&device).expect("a stream");
            let other = Gpu { device, stream };
            for turn in 1..=4 {
                for gpu in [&mine, &mine, &other] {
                    let mut memory = gpu.memory(&communicator, &vec![turn; 70_001]);
                    let on = communicator.on(&gpu.stream);
                    drop(on.all_reduce(&mut memory, Op::Sum).expect("an all-reduce"));
                    assert_eq!(gpu.elements(&memory), vec![2 * turn; 70_001], "turn {turn}");
                }
            }
        });
    });
}

#[test]
fn memory_is_copied_and_zeroed_in_the_order_of_the_stream() {
    alone("memory_is_copied_and_zeroed_in_the_order_of_the_stream", &[], || {
        each(communicators(2, Transports::Shm), |communicator| {
            let gpu = Gpu::of(&communicator);
            let mut sums = gpu.memory(&communicator, &[1_i32, 2, 3, 4]);
            let mut copy = gpu.memory(&communicator, &[0_i32; 4]);
            let on = communicator.on(&gpu.stream);
            drop(on.all_reduce(&mut sums, Op::Sum).expect("an all-reduce"));
            copy.copy_from(&gpu.stream, &sums).expect("a copy");
            sums.part(1..3).zero(&gpu.stream).expect("zeros");
            assert_eq!(gpu.elements(&copy), [2, 4, 6, 8]);
            assert_eq!(gpu.elements(&sums), [2, 0, 0, 8]);
            assert!(copy.copy_from(&gpu.stream, &sums.part(0..3)).is_err(), "fewer elements");
            let devices = communicator.devices().expect("a driver");
            let other = communicator.device((communicator.rank() + 1) % devices).expect("a GPU");
            let elsewhere = Stream::new(&other).expect("a stream");
            if other != gpu.device {
                assert!(copy.copy_from(&elsewhere, &sums).is_err(), "another GPU");
                assert!(copy.zero(&elsewhere).is_err(), "another GPU");
            }
        });
    });
}

#[test]
fn a_call_waits_for_its_stream_beyond_the_deadline() {
    alone("a_call_waits_for_its_stream_beyond_the_deadline", &[("HOLD_MS", "600000")], || {
        let driver = ringtree_tests::gpu::driver();
        let alone = Communicator::in_process_with(1, |settings| {
            settings.cuda_library = driver.clone();
            settings.timeout = std::time::Duration::from_millis(300);
        });
        let communicator = &alone.expect("a communicator")[0];
        let gpu = Gpu::of(communicator);
        let mut memory = gpu.memory(communicator, &vec![1_f32; 10_000]);
        // Work of the program that takes a second.
        let word = ringtree_transport::cuda::PinnedMemory::alloc(&gpu.device, 4).expect("memory");
        // SAFETY: it has four bytes, which nobody else uses now.
        let word_now = unsafe { std::sync::atomic::AtomicU32::from_ptr(word.start().cast()) };
        word_now.store(0, std::sync::atomic::Ordering::Release);
        // SAFETY: the word outlives the wait.
        unsafe { gpu.stream.wait_for_word(word.address(), 1) }.expect("a wait");
        let queued = communicator.on(&gpu.stream).all_reduce(&mut memory, Op::Sum).expect("a call");
        std::thread::sleep(std::time::Duration::from_secs(1));
        word_now.store(1, std::sync::atomic::Ordering::Release);
        queued.wait().expect("a sum");
    });
}
