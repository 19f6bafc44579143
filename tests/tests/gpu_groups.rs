//! Groups of calls on memory of GPUs: the bits of the host's groups, on the stand-in for the CUDA driver or on real
//! GPUs (`tests/src/gpu.rs`).

use ringtree::device::DeviceMemory;
use ringtree::{Communicator, Error, Factor, Op, Transports};
use ringtree_tests::gpu::{Gpu, alone, communicators, processes};
use ringtree_tests::gpu_checks::{bits, values};
use ringtree_tests::ranks::{TRANSPORTS, each};

/// More than slots hold: a send that nobody takes does not end.
const LARGE: usize = 300_001;

/// Everyone to everyone, several messages each, of which the later ones are another length.
fn check_messages(communicator: &Communicator) {
    let gpu = Gpu::of(communicator);
    let (rank, ranks) = (communicator.rank(), communicator.ranks());
    let counts = [LARGE, 0, 1, 7_000, 7_000];
    let seed = |from: u32, to: u32, index: usize| u64::from(from * 100 + to * 10) + index as u64;
    let pairs = || {
        let peers = (0..ranks).filter(|peer| *peer != rank);
        peers.flat_map(|peer| counts.iter().enumerate().map(move |(at, count)| (peer, at, *count)))
    };
    let given = pairs().map(|(to, at, count)| {
        (to, gpu.memory(communicator, &values::<f32>(seed(rank, to, at), 0, count)))
    });
    let given: Vec<(u32, DeviceMemory<f32>)> = given.collect();
    for _ in 0..2 {
        let got = pairs()
            .map(|(from, at, count)| (from, at, gpu.memory(communicator, &vec![0_f32; count])));
        let mut got: Vec<(u32, usize, DeviceMemory<f32>)> = got.collect();
        let mut group = communicator.on(&gpu.stream).group();
        for (to, memory) in &given {
            group.send(memory, *to).expect("added");
        }
        for (from, _, memory) in &mut got {
            group.receive(memory, *from).expect("added");
        }
        drop(group.run().expect("a group"));
        for (from, at, memory) in &got {
            let expected = values::<f32>(seed(*from, rank, *at), 0, memory.len());
            assert_eq!(bits(&gpu.elements(memory)), bits(&expected), "{at} of {from} at {rank}");
        }
    }
}

#[test]
fn messages_of_a_group_are_all_under_way() {
    alone("messages_of_a_group_are_all_under_way", &[], || {
        for transports in TRANSPORTS {
            each(communicators(4, transports), |communicator| check_messages(&communicator));
        }
    });
}

#[test]
fn messages_of_a_group_between_gpus_that_do_not_reach_each_other() {
    let name = "messages_of_a_group_between_gpus_that_do_not_reach_each_other";
    alone(name, &[("NO_PEER", "all"), ("SCHEDULE", "random")], || {
        each(communicators(3, Transports::Shm), |communicator| check_messages(&communicator));
    });
}

#[test]
fn messages_of_a_group_between_processes() {
    processes("messages_of_a_group_between_processes", 2, "shm", &[], |communicator| {
        check_messages(&communicator);
    });
}

/// Collectives of all kinds, and many small tensors of which some are packed: by a group on GPUs, and by one on the
/// host, which all ranks make, or only the others.
fn check_collectives(communicator: &Communicator, is_mixed: bool) {
    let gpu = Gpu::of(communicator);
    let (rank, ranks) = (communicator.rank(), communicator.ranks() as usize);
    let op = |index: usize| match index % 3 {
        2 => Op::PreMulSum(Factor::new(0.5 + f64::from(rank) + index as f64)),
        _ => Op::Sum,
    };
    let counts: Vec<usize> = (0..24).map(|index| index * index * 31 % 6_007).collect();
    let tensors: Vec<Vec<f32>> =
        (0..).zip(&counts).map(|(seed, count)| values::<f32>(seed, rank, *count)).collect();
    let blocks = values::<f32>(77, rank, ranks * 501);
    let on_host = || {
        let (mut sums, mut into) = (tensors.clone(), tensors[7].clone());
        let (mut told, mut reduced) = (tensors[9].clone(), tensors[11].clone());
        let (mut all, mut own, mut mixed) =
            (blocks.clone(), blocks[..501].to_vec(), blocks.clone());
        let mut group = communicator.group();
        for (index, tensor) in sums.iter_mut().enumerate() {
            group.all_reduce(tensor, op(index / 5)).expect("added");
        }
        group.all_reduce_into(&tensors[7], &mut into, Op::Max).expect("added");
        group.broadcast(&mut told, 1).expect("added");
        group.reduce(&mut reduced, Op::Sum, 0).expect("added");
        group.all_gather_into(&blocks[..501], &mut all).expect("added");
        group.reduce_scatter_into(&blocks, &mut own, Op::Sum).expect("added");
        group.all_to_all_into(&blocks, &mut mixed).expect("added");
        group.run().expect("a group on the host");
        sums.extend([into, told, reduced, all, own, mixed]);
        sums
    };
    let on_gpu = || {
        let memory = |elements: &[f32]| gpu.memory(communicator, elements);
        let mut sums: Vec<DeviceMemory<f32>> = tensors.iter().map(|t| memory(t)).collect();
        let (given, given_blocks) = (memory(&tensors[7]), memory(&blocks));
        let given_own = memory(&blocks[..501]);
        let [mut into, mut told, mut reduced] =
            [7, 9, 11].map(|index: usize| memory(&tensors[index]));
        let [mut all, mut own, mut mixed] = [&blocks[..], &blocks[..501], &blocks[..]].map(memory);
        let mut group = communicator.on(&gpu.stream).group();
        for (index, tensor) in sums.iter_mut().enumerate() {
            group.all_reduce(tensor, op(index / 5)).expect("added");
        }
        group.all_reduce_into(&given, &mut into, Op::Max).expect("added");
        group.broadcast(&mut told, 1).expect("added");
        group.reduce(&mut reduced, Op::Sum, 0).expect("added");
        group.all_gather_into(&given_own, &mut all).expect("added");
        group.reduce_scatter_into(&given_blocks, &mut own, Op::Sum).expect("added");
        group.all_to_all_into(&given_blocks, &mut mixed).expect("added");
        // What follows in the stream finds the results.
        drop(group.run().expect("a group on GPUs"));
        sums.extend([into, told, reduced, all, own, mixed]);
        sums.iter().map(|memory| gpu.elements(memory)).collect::<Vec<_>>()
    };
    let expected = on_host();
    for turn in 0..3 {
        let got = if is_mixed && rank == 1 { on_host() } else { on_gpu() };
        for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(bits(got), bits(expected), "call {index}, rank {rank}, turn {turn}");
        }
    }
}

#[test]
fn collectives_of_a_group_have_the_bits_of_the_host() {
    alone("collectives_of_a_group_have_the_bits_of_the_host", &[], || {
        for transports in TRANSPORTS {
            for ranks in [2, 3] {
                each(communicators(ranks, transports), |communicator| {
                    check_collectives(&communicator, false);
                });
            }
        }
    });
}

#[test]
fn groups_on_hosts_and_gpus_are_one() {
    alone("groups_on_hosts_and_gpus_are_one", &[], || {
        each(communicators(3, Transports::Shm), |communicator| {
            check_collectives(&communicator, true);
        });
    });
}

/// Groups go on as before once small calls are one kernel, and small calls before and behind them, too.
#[test]
fn groups_among_small_calls_that_are_one_kernel() {
    alone("groups_among_small_calls_that_are_one_kernel", &[], || {
        each(communicators(3, Transports::Shm), |communicator| {
            let gpu = Gpu::of(&communicator);
            assert!(communicator.join_devices(&gpu.device).expect("an answer"));
            let on = communicator.on(&gpu.stream);
            for turn in 0..5 {
                let mut alone = gpu.memory(&communicator, &[1_i32; 50]);
                let mut tensors: Vec<DeviceMemory<i32>> = (1..6)
                    .map(|count| gpu.memory(&communicator, &vec![turn; 700 * count]))
                    .collect();
                drop(on.all_reduce(&mut alone, Op::Sum).expect("a small call"));
                let mut group = on.group();
                for tensor in &mut tensors {
                    group.all_reduce(tensor, Op::Sum).expect("added");
                }
                drop(group.run().expect("a group"));
                drop(on.all_reduce(&mut alone, Op::Sum).expect("a small call"));
                assert_eq!(gpu.elements(&alone), [9; 50]);
                for tensor in &tensors {
                    assert!(gpu.elements(tensor).iter().all(|sum| *sum == 3 * turn));
                }
            }
        });
    });
}

#[test]
fn a_group_of_nothing_and_one_that_is_refused() {
    alone("a_group_of_nothing_and_one_that_is_refused", &[], || {
        each(communicators(2, Transports::Shm), |communicator| {
            let gpu = Gpu::of(&communicator);
            let on = communicator.on(&gpu.stream);
            on.group().run().and_then(|queued| queued.wait()).expect("nothing");
            let memory = gpu.memory(&communicator, &[1_f32; 100]);
            let mut group = on.group();
            let own = group.send(&memory, communicator.rank());
            assert!(matches!(own, Err(Error::Argument(_))), "{own:?}");
            let (input, mut output) = (memory.part(0..60), memory.part(40..100));
            let overlap = group.all_reduce_into(&input, &mut output, Op::Sum);
            assert!(matches!(overlap, Err(Error::Argument(_))), "{overlap:?}");
            // The communicator goes on.
            let mut memory = gpu.memory(&communicator, &[1_f32; 100]);
            let mut group = on.group();
            group.all_reduce(&mut memory, Op::Sum).expect("added");
            group.run().and_then(|queued| queued.wait()).expect("a group");
            assert_eq!(gpu.elements(&memory), [2.0; 100]);
        });
    });
}
