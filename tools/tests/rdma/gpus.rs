//! Memory of GPUs over real verbs, with the stand-in for the CUDA driver. soft-RoCE registers none of it, so that it
//! goes by slots of the host; what RDMA devices do themselves is tested with a stand-in for verbs
//! (`tests/tests/gpu_rdma.rs`).

use ringtree::{Op, RdmaConfig, Transports};
use ringtree_tests::gpu::{Gpu, alone, communicators_with, stand_in};
use ringtree_tests::gpu_checks::check_all;
use ringtree_tests::ranks::each;

use crate::jobs::{ringtree, said};

/// Nothing, one element, an exchange at once, a few slices, 64 KiB.
const COUNTS: [usize; 5] = [0, 1, 300, 5_003, 16_384];

#[test]
fn every_collective_has_the_bits_of_the_host() {
    alone("gpus::every_collective_has_the_bits_of_the_host", &[], || {
        let over_rdma = |settings: &mut ringtree::Settings| {
            settings.transports = Transports::Rdma;
            settings.rdma = RdmaConfig { devices: Some("rxe0".into()), ..RdmaConfig::default() };
        };
        let works = each(communicators_with(2, over_rdma), |communicator| {
            let gpu = Gpu::of(&communicator);
            for count in COUNTS {
                check_all::<f32>(&communicator, &gpu, count, Op::Sum);
            }
            communicator.device_counters()
        });
        for work in works {
            assert_eq!([work.to_wire_bytes, work.from_wire_bytes], [0; 2], "{work:?}");
            assert!(work.to_host_bytes > 0 && work.from_host_bytes > 0, "{work:?}");
            assert_eq!(work.bounced_bytes, 0, "the slots are locked for the GPU: {work:?}");
        }
    });
}

#[test]
fn that_a_device_refuses_memory_of_gpus_is_one_line_of_each_rank() {
    let line = format!(
        "bench all-reduce --memory device --cuda-library {} --ranks 2 --transport rdma --sizes 20000,65536 -n 1 -w 1",
        stand_in().display()
    );
    let output = ringtree(&line, &[("RINGTREE_RDMA_DEVICES", "rxe0")]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("# Out of bounds values : 0 OK"), "{text}");
    let refusals = text.lines().filter(|line| line.contains("of a GPU goes through slots"));
    assert_eq!(refusals.count(), 2, "{text}");
    assert!(!text.contains("straight from their memory"), "{text}");
}
