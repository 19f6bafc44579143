//! Collectives on up to eight GPUs of one process, with every schedule of the stand-in for the CUDA driver, and where
//! some of the GPUs do not reach each other. Between processes: `gpu_processes.rs`.

use ringtree::{Op, Transports};
use ringtree_tests::gpu::{Gpu, alone, communicators};
use ringtree_tests::gpu_checks::check_all;
use ringtree_tests::ranks::each;

/// Nothing but an exchange at once, and several slices.
const COUNTS: [usize; 2] = [30, 6_001];

/// All collectives of so many ranks, each with its GPU, under some settings of the stand-in.
fn check_ranks(name: &str, ranks: &[u32], transports: Transports, settings: &[(&str, &str)]) {
    let settings = [&[("DEVICES", "8")], settings].concat();
    alone(name, &settings, || {
        for &ranks in ranks {
            each(communicators(ranks, transports), |communicator| {
                let gpu = Gpu::of(&communicator);
                for count in COUNTS {
                    check_all::<f32>(&communicator, &gpu, count, Op::Sum);
                }
            });
        }
    });
}

#[test]
fn five_to_eight_gpus() {
    check_ranks("five_to_eight_gpus", &[5, 8], Transports::Shm, &[]);
}

#[test]
fn eight_gpus_over_tcp() {
    check_ranks("eight_gpus_over_tcp", &[8], Transports::Tcp, &[]);
}

#[test]
fn six_gpus_of_which_some_reach_each_other() {
    let settings = [("NO_PEER", "0-1,0-5,2-4,3-4"), ("SCHEDULE", "random")];
    check_ranks("six_gpus_of_which_some_reach_each_other", &[6], Transports::Shm, &settings);
}

#[test]
fn five_gpus_that_do_not_reach_each_other() {
    let settings = [("NO_PEER", "all"), ("SCHEDULE", "prompt")];
    check_ranks("five_gpus_that_do_not_reach_each_other", &[5], Transports::Shm, &settings);
}

#[test]
fn one_to_three_gpus_at_random() {
    let settings = [("SCHEDULE", "random"), ("SEED", "7")];
    check_ranks("one_to_three_gpus_at_random", &[1, 2, 3], Transports::Shm, &settings);
}

#[test]
fn one_to_three_gpus_over_tcp_at_once() {
    let settings = [("SCHEDULE", "prompt")];
    check_ranks("one_to_three_gpus_over_tcp_at_once", &[1, 2, 3], Transports::Tcp, &settings);
}
