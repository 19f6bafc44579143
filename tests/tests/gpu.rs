//! Collectives on memory of GPUs, by the stand-in for the CUDA driver or on real ones (`tests/src/gpu.rs`): every
//! result has the bits that the host gives.

use ringtree::device::{DeviceMemory, Queued};
use ringtree::{
    Algorithm, Collective, Communicator, DataType, Error, F8E4M3, F8E5M2, Factor, Op, Transports,
    bf16, f16,
};
use ringtree_tests::gpu::{Gpu, communicators};
use ringtree_tests::random::element;
use ringtree_tests::ranks::{TRANSPORTS, each};
use ringtree_tests::sample::Sample;

/// Nothing, one element, an exchange at once, a round, several slices.
const COUNTS: [usize; 5] = [0, 1, 300, 5_003, 150_001];

/// Unpleasant values among ordinary ones.
fn values<T: Sample>(seed: u64, rank: u32, count: usize) -> Vec<T> {
    let value = |index: usize| {
        let number = element(seed, rank, index);
        if index % 7 == 3 { T::special(number) } else { T::inexact(number) }
    };
    (0..count).map(value).collect()
}

fn bits<T: Sample>(values: &[T]) -> Vec<u64> {
    values.iter().map(|value| value.bits()).collect()
}

/// A collective on buffers of the host, and the same on a GPU's: in place, if the input is nothing.
fn check<T: Sample>(
    communicator: &Communicator,
    gpu: &Gpu,
    what: &str,
    input: Option<&[T]>,
    output: &[T],
    on_host: impl Fn(&[T], &mut [T]) -> Result<(), Error>,
    on_gpu: impl Fn(&DeviceMemory<T>, &mut DeviceMemory<T>) -> Result<Queued, Error>,
) {
    let mut expected = output.to_vec();
    on_host(input.unwrap_or(&[]), &mut expected).expect(what);
    let input = gpu.memory(communicator, input.unwrap_or(&[]));
    let mut memory = gpu.memory(communicator, output);
    // What follows in the stream finds the result: nobody waits for the call itself.
    drop(on_gpu(&input, &mut memory).expect(what));
    let got = gpu.elements(&memory);
    let rank = communicator.rank();
    assert_eq!(bits(&got).len(), bits(&expected).len());
    let differs =
        bits(&got).iter().zip(bits(&expected)).position(|(got, expected)| *got != expected);
    if let Some(at) = differs {
        let (count, got, expected) = (expected.len(), got[at], expected[at]);
        panic!("rank {rank}, {what} of {count}: {got:?} instead of {expected:?} at {at}");
    }
}

/// Every collective, from and to every root, on buffers of `count` elements, or blocks of as many.
fn check_all<T: Sample>(communicator: &Communicator, gpu: &Gpu, count: usize, op: Op) {
    let (rank, ranks) = (communicator.rank(), communicator.ranks());
    let all = ranks as usize * count;
    let own = &values::<T>(1, rank, count)[..];
    let blocks = &values::<T>(2, rank, all)[..];
    let (c, on) = (communicator, communicator.on(&gpu.stream));
    let ck =
        |what: &str,
         input: Option<&[T]>,
         output: &[T],
         host: &dyn Fn(&[T], &mut [T]) -> Result<(), Error>,
         device: &dyn Fn(&DeviceMemory<T>, &mut DeviceMemory<T>) -> Result<Queued, Error>| {
            check(c, gpu, what, input, output, host, device);
        };
    ck("all-reduce", None, own, &|_, o| c.all_reduce(o, op), &|_, o| on.all_reduce(o, op));
    ck("all-reduce, out of place", Some(own), own, &|i, o| c.all_reduce_into(i, o, op), &|i, o| {
        on.all_reduce_into(i, o, op)
    });
    ck("all-gather", None, blocks, &|_, o| c.all_gather(o), &|_, o| on.all_gather(o));
    ck("all-gather, out of place", Some(own), blocks, &|i, o| c.all_gather_into(i, o), &|i, o| {
        on.all_gather_into(i, o)
    });
    ck("reduce-scatter", None, blocks, &|_, o| c.reduce_scatter(o, op), &|_, o| {
        on.reduce_scatter(o, op)
    });
    ck(
        "reduce-scatter, out of place",
        Some(blocks),
        own,
        &|i, o| c.reduce_scatter_into(i, o, op),
        &|i, o| on.reduce_scatter_into(i, o, op),
    );
    ck("all-to-all", Some(blocks), blocks, &|i, o| c.all_to_all_into(i, o), &|i, o| {
        on.all_to_all_into(i, o)
    });
    for root in 0..ranks {
        let what = |name: &str| format!("{name}, root {root}");
        ck(&what("broadcast"), None, own, &|_, o| c.broadcast(o, root), &|_, o| {
            on.broadcast(o, root)
        });
        ck(
            &what("broadcast, out of place"),
            Some(own),
            own,
            &|i, o| c.broadcast_into(i, o, root),
            &|i, o| on.broadcast_into(i, o, root),
        );
        ck(&what("reduce"), None, own, &|_, o| c.reduce(o, op, root), &|_, o| {
            on.reduce(o, op, root)
        });
        ck(
            &what("reduce, out of place"),
            Some(own),
            own,
            &|i, o| c.reduce_into(i, o, op, root),
            &|i, o| on.reduce_into(i, o, op, root),
        );
        ck(&what("gather"), Some(own), blocks, &|i, o| c.gather_into(i, o, root), &|i, o| {
            on.gather_into(i, o, root)
        });
        ck(&what("scatter"), Some(blocks), own, &|i, o| c.scatter_into(i, o, root), &|i, o| {
            on.scatter_into(i, o, root)
        });
    }
}

#[test]
fn every_collective_has_the_bits_of_the_host() {
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
}

/// All operations that a type has.
fn check_ops<T: Sample>(communicator: &Communicator, gpu: &Gpu) {
    let factor = Factor::new(1.5 + f64::from(communicator.rank()));
    for op in T::DATA_TYPE.ops() {
        let op = if matches!(op, Op::PreMulSum(_)) { Op::PreMulSum(factor) } else { op };
        for count in [7, 6_001] {
            let own = values::<T>(3, communicator.rank(), count);
            let what = format!("all-reduce of {} by {op:?}", T::DATA_TYPE.name());
            let on = communicator.on(&gpu.stream);
            check(
                communicator,
                gpu,
                &what,
                None,
                &own,
                |_, output| communicator.all_reduce(output, op),
                |_, output| on.all_reduce(output, op),
            );
        }
    }
}

#[test]
fn every_type_and_operation_has_the_bits_of_the_host() {
    each(communicators(3, Transports::Shm), |communicator| {
        let gpu = Gpu::of(&communicator);
        let (c, g) = (&communicator, &gpu);
        for data_type in DataType::ALL {
            match data_type {
                DataType::F32 => check_ops::<f32>(c, g),
                DataType::F64 => check_ops::<f64>(c, g),
                DataType::Bf16 => check_ops::<bf16>(c, g),
                DataType::F16 => check_ops::<f16>(c, g),
                DataType::F8E4M3 => check_ops::<F8E4M3>(c, g),
                DataType::F8E5M2 => check_ops::<F8E5M2>(c, g),
                DataType::I8 => check_ops::<i8>(c, g),
                DataType::U8 => check_ops::<u8>(c, g),
                DataType::I32 => check_ops::<i32>(c, g),
                DataType::U32 => check_ops::<u32>(c, g),
                DataType::I64 => check_ops::<i64>(c, g),
                DataType::U64 => check_ops::<u64>(c, g),
            }
        }
    });
}

#[test]
fn every_algorithm_runs_on_gpus() {
    for transports in TRANSPORTS {
        each(communicators(4, transports), |communicator| {
            let gpu = Gpu::of(&communicator);
            let serving = Algorithm::ALL.into_iter().filter(|a| a.serves(Collective::AllReduce));
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
}

#[test]
fn hosts_and_gpus_are_ranks_of_one_communicator() {
    for transports in TRANSPORTS {
        each(communicators(3, transports), |communicator| {
            for count in COUNTS {
                let mut own = values::<f32>(5, communicator.rank(), count);
                let mut expected = own.clone();
                communicator.all_reduce(&mut expected, Op::Sum).expect("an all-reduce");
                if communicator.rank() == 1 {
                    communicator.all_reduce(&mut own, Op::Sum).expect("on the host");
                } else {
                    let gpu = Gpu::of(&communicator);
                    let mut memory = gpu.memory(&communicator, &own);
                    let on = communicator.on(&gpu.stream);
                    drop(on.all_reduce(&mut memory, Op::Sum).expect("on a GPU"));
                    own = gpu.elements(&memory);
                }
                assert_eq!(bits(&own), bits(&expected), "{count} on {}", communicator.rank());
            }
        });
    }
}

#[test]
fn calls_keep_the_order_of_their_stream_and_outlive_their_buffers() {
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
}

#[test]
fn messages_between_gpus() {
    each(communicators(2, Transports::Tcp), |communicator| {
        let gpu = Gpu::of(&communicator);
        let on = communicator.on(&gpu.stream);
        for count in COUNTS {
            let mine = values::<u32>(6, communicator.rank(), count);
            let mut memory = gpu.memory(&communicator, &mine);
            if communicator.rank() == 0 {
                drop(on.send(&memory, 1).expect("a message"));
                drop(on.receive(&mut memory, 1).expect("a message"));
                assert_eq!(gpu.elements(&memory), values::<u32>(6, 1, count));
            } else {
                let mut theirs = gpu.memory(&communicator, &vec![0; count]);
                drop(on.receive(&mut theirs, 0).expect("a message"));
                drop(on.send(&memory, 0).expect("a message"));
                assert_eq!(gpu.elements(&theirs), values::<u32>(6, 0, count));
            }
        }
    });
}
