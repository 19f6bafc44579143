//! Memory of GPUs over RDMA, by the stand-ins for the CUDA driver and for libibverbs: RDMA devices send from it and write
//! to it themselves, where they and the driver can; elsewhere it goes by slots of the host. The bits are the host's.

use ringtree::device::DeviceCounters;
use ringtree::{Algorithm, Communicator, Op, Settings, Transports};
use ringtree_tests::gpu::{Gpu, alone, alone_in, communicators_with, stand_in, standin_counters};
use ringtree_tests::gpu_checks::{bits, check_all, check_every_type, check_mixed, values};
use ringtree_tests::ranks::each;
use ringtree_tests::verbs;

/// Nothing, one element, an exchange at once, a round, several slices.
const COUNTS: [usize; 5] = [0, 1, 300, 5_003, 70_001];

/// No device registers memory of GPUs, as soft-RoCE.
const REFUSING: (&str, &str) = ("RINGTREE_VERBS_STANDIN_NO_DMA_BUF", "1");

/// Over one queue pair, on which all comes in the order in which it was sent.
fn over_one_port(settings: &mut Settings) {
    over_rdma(settings);
    settings.rdma.devices = Some("standin0".into());
}

/// How often what network adapters have written was flushed, in this process.
fn flushes() -> u64 {
    standin_counters().remote_write_flushes
}

/// Over all ports, on the stand-ins, whatever GPUs there are: that for libibverbs knows no memory of theirs.
fn over_rdma(settings: &mut Settings) {
    settings.cuda_library = Some(stand_in());
    settings.transports = Transports::Rdma;
    settings.rdma.library = Some(verbs::stand_in());
}

#[test]
fn every_collective_has_the_bits_of_the_host() {
    for schedule in ["adversarial", "random"] {
        let settings = [("SCHEDULE", schedule)];
        let is_inside = alone("every_collective_has_the_bits_of_the_host", &settings, || {
            for ranks in 2..=3 {
                each(communicators_with(ranks, over_rdma), |communicator| {
                    let gpu = Gpu::of(&communicator);
                    for count in COUNTS {
                        check_all::<f32>(&communicator, &gpu, count, Op::Sum);
                    }
                });
            }
        });
        if is_inside {
            return;
        }
    }
}

#[test]
fn every_type_and_operation_has_the_bits_of_the_host() {
    alone("every_type_and_operation_has_the_bits_of_the_host", &[], || {
        each(communicators_with(3, over_rdma), |communicator| {
            check_every_type(&communicator, &Gpu::of(&communicator), &[7, 6_001]);
        });
    });
}

#[test]
fn devices_that_refuse_have_it_go_by_slots_with_the_same_bits() {
    let name = "devices_that_refuse_have_it_go_by_slots_with_the_same_bits";
    alone_in(name, &[], &[REFUSING], || {
        each(communicators_with(2, over_rdma), |communicator| {
            let gpu = Gpu::of(&communicator);
            for count in [300, 16_384] {
                check_all::<f32>(&communicator, &gpu, count, Op::Sum);
            }
        });
        assert_eq!(verbs::dma_buf_bytes(), (0, 0));
    });
}

#[test]
fn hosts_and_gpus_are_ranks_of_one_communicator() {
    alone("hosts_and_gpus_are_ranks_of_one_communicator", &[], || {
        each(communicators_with(3, over_rdma), |communicator| check_mixed(&communicator, &COUNTS));
    });
}

/// What all-reduces of `count` elements have the GPUs and the RDMA devices of all ranks do: bytes that GPUs and processors
/// did, and bytes that senders copied.
fn work_of(
    ranks: u32,
    algorithm: Algorithm,
    count: usize,
    set: impl Fn(&mut Settings) + Sync,
) -> (DeviceCounters, u64) {
    let set = |settings: &mut Settings| {
        over_rdma(settings);
        set(settings);
    };
    let works = each(communicators_with(ranks, set), |communicator| {
        let gpu = Gpu::of(&communicator);
        let by = communicator.using(algorithm);
        let own = values::<f32>(6, communicator.rank(), count);
        let mut expected = own.clone();
        by.all_reduce(&mut expected, Op::Sum).expect("on the host");
        let copied = communicator.rdma_counters().copied_bytes;
        for _ in 0..3 {
            let mut memory = gpu.memory(&communicator, &own);
            let queued = by.on(&gpu.stream).all_reduce(&mut memory, Op::Sum);
            queued.and_then(|queued| queued.wait()).expect("a sum");
            assert_eq!(bits(&gpu.elements(&memory)), bits(&expected), "rank {}", by.rank());
        }
        (communicator.device_counters(), communicator.rdma_counters().copied_bytes - copied)
    });
    let none = (DeviceCounters::default(), 0);
    works.into_iter().fold(none, |(mut all, copied), (work, more)| {
        all += work;
        (all, copied + more)
    })
}

/// Bytes that all ranks together must get from others, at least, in three all-reduces of `count` elements of 4 bytes.
fn bound_bytes(ranks: u32, count: usize) -> u64 {
    3 * 2 * u64::from(ranks - 1) * count as u64 * 4
}

#[test]
fn rdma_devices_send_from_the_memory_of_gpus_and_nothing_is_copied_first() {
    let name = "rdma_devices_send_from_the_memory_of_gpus_and_nothing_is_copied_first";
    alone(name, &[], || {
        let mut straight = 0;
        for ranks in 2..=3 {
            for (algorithm, count) in [
                (Algorithm::Ring, 10_007),
                (Algorithm::Ring, 500_003),
                (Algorithm::TwoShot, 60_000),
            ] {
                let (work, copied) = work_of(ranks, algorithm, count, |_| {});
                let bound = bound_bytes(ranks, count);
                let what = format!("{algorithm}, {ranks} ranks, {count} elements: {work:?}");
                assert_eq!(work.to_wire_bytes, bound, "{what}");
                assert_eq!([work.to_host_bytes, work.bounced_bytes, copied], [0; 3], "{what}");
                // What did not come by slots came straight to where it is wanted.
                assert_eq!(work.from_host_bytes + work.from_wire_bytes, bound, "{what}");
                straight += bound;
            }
        }
        let (read, written) = verbs::dma_buf_bytes();
        assert_eq!(read, straight, "the devices have read no other memory of GPUs");
        assert!(written > 0, "none has been written to");
    });
}

#[test]
fn the_refusal_of_either_side_leads_to_slots() {
    let name = "the_refusal_of_either_side_leads_to_slots";
    for (settings, environment) in
        [(&[("NO_DMA_BUF", "1")][..], &[][..]), (&[][..], &[REFUSING][..])]
    {
        let is_inside = alone_in(name, settings, environment, || {
            let (work, copied) = work_of(2, Algorithm::Ring, 60_000, |_| {});
            let bound = bound_bytes(2, 60_000);
            assert_eq!([work.to_wire_bytes, work.from_wire_bytes], [0; 2], "{work:?}");
            assert_eq!([work.to_host_bytes, work.from_host_bytes], [bound; 2], "{work:?}");
            assert_eq!(copied, 0);
        });
        if is_inside {
            return;
        }
    }
}

#[test]
fn what_has_checksums_passes_the_host() {
    alone("what_has_checksums_passes_the_host", &[], || {
        let (work, _) = work_of(2, Algorithm::Ring, 60_000, |settings| settings.checksums = true);
        assert_eq!([work.to_wire_bytes, work.from_wire_bytes], [0; 2], "{work:?}");
        assert_eq!(work.to_host_bytes, bound_bytes(2, 60_000), "{work:?}");
    });
}

/// What is offered a round ahead is there in time, since each rank must have the other's part of a round to go on.
#[test]
fn what_is_reduced_arrives_in_the_memory_of_the_gpu() {
    let name = "what_is_reduced_arrives_in_the_memory_of_the_gpu";
    for remote_writes in ["ordered", "flushed", "unordered"] {
        let is_inside = alone(name, &[("REMOTE_WRITES", remote_writes)], || {
            let remote_writes = std::env::var("RINGTREE_STANDIN_REMOTE_WRITES").expect("a setting");
            let (lands, is_flushed) = match remote_writes.as_str() {
                "ordered" => (true, false),
                "flushed" => (true, true),
                _ => (false, false),
            };
            // Four rounds of half a mebibyte of each block, on two lanes.
            let count = 4 * (512 << 10) / 4;
            let works = each(communicators_with(2, over_one_port), |communicator| {
                let gpu = Gpu::of(&communicator);
                let by = communicator.using(Algorithm::Ring);
                let own = values::<f32>(8, communicator.rank(), 2 * count);
                let mut expected = vec![0.0; count];
                by.reduce_scatter_into(&own, &mut expected, Op::Sum).expect("on the host");
                let input = gpu.memory(&communicator, &own);
                let mut output = gpu.memory(&communicator, &vec![0_f32; count]);
                let queued = by.on(&gpu.stream).reduce_scatter_into(&input, &mut output, Op::Sum);
                queued.and_then(|queued| queued.wait()).expect("a sum");
                assert_eq!(bits(&gpu.elements(&output)), bits(&expected));
                communicator.device_counters()
            });
            for work in works {
                let bytes = 4 * count as u64;
                assert_eq!(work.from_host_bytes + work.from_wire_bytes, bytes, "{work:?}");
                // All but the first round of each lane.
                let least = if lands { bytes / 2 } else { 0 };
                assert!(work.from_wire_bytes >= least, "{work:?}");
                assert!(lands || work.from_wire_bytes == 0, "{work:?}");
            }
            assert_eq!(flushes() > 0, is_flushed);
        });
        if is_inside {
            return;
        }
    }
}

/// Memory is registered once for all links, and no longer than it lives.
#[test]
fn registrations_end_with_their_memory() {
    alone("registrations_end_with_their_memory", &[], || {
        each(communicators_with(3, over_rdma), |communicator| {
            let gpu = Gpu::of(&communicator);
            let registered = |c: &Communicator| c.rdma_counters().registered;
            let all_reduce = |c: &Communicator, count: usize| {
                let mut memory = gpu.memory(c, &vec![1_i32; count]);
                let queued =
                    c.using(Algorithm::Ring).on(&gpu.stream).all_reduce(&mut memory, Op::Sum);
                queued.and_then(|queued| queued.wait()).expect("a sum");
                (registered(c), memory)
            };
            let (before, kept) = all_reduce(&communicator, 50_000);
            drop(kept);
            let without = registered(&communicator);
            assert_eq!(before, without + 1, "one for all links");
            for _ in 0..5 {
                let (during, memory) = all_reduce(&communicator, 50_000);
                assert_eq!(during, before);
                drop(memory);
                assert_eq!(registered(&communicator), without);
            }
        });
    });
}
