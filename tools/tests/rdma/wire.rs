//! What a call puts on the wire, by the counters of its links: not a byte more than it must, and nothing
//! copied where both sides have registered their memory.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use ringtree::{Algorithm, Communicator, Op, RdmaConfig, RdmaCounters, Transports};
use ringtree_tests::ranks::each;
use serde_json::Value;

use crate::jobs::{ringtree, said};

const COUNT: usize = 3 << 20;
const BYTES: u64 = 4 * COUNT as u64;

/// Ranks of this process that are linked over RDMA.
pub fn communicators(ranks: u32) -> Vec<Communicator> {
    Communicator::in_process_with(ranks, |settings| {
        settings.transports = Transports::Rdma;
        settings.rdma = RdmaConfig { devices: Some("rxe0".into()), ..RdmaConfig::default() };
    })
    .expect("communicators")
}

/// What one call adds to the counters of a rank.
fn counted(communicator: &Communicator, call: impl FnOnce()) -> RdmaCounters {
    let before = communicator.rdma_counters();
    call();
    let after = communicator.rdma_counters();
    RdmaCounters {
        wire_bytes: after.wire_bytes - before.wire_bytes,
        payload_bytes: after.payload_bytes - before.payload_bytes,
        direct_bytes: after.direct_bytes - before.direct_bytes,
        copied_bytes: after.copied_bytes - before.copied_bytes,
        work_requests: after.work_requests - before.work_requests,
        completions: after.completions - before.completions,
        registrations: after.registrations,
        registered: after.registered,
    }
}

/// A ring sends 2 (n - 1) / n of the buffer for each rank, which is the least that any all-reduce can
/// (Patarasuk and Yuan, 2009).
#[test]
fn an_all_reduce_of_registered_memory_copies_nothing_and_sends_the_least() {
    for ranks in 2..=4_u32 {
        let counted = each(communicators(ranks), |communicator| {
            let mut memory = communicator.alloc::<f32>(COUNT).expect("memory");
            memory.fill(1.0);
            communicator.warm_up().expect("links");
            communicator.barrier().expect("a barrier");
            let ring = communicator.using(Algorithm::Ring);
            let counted = counted(&communicator, || {
                ring.all_reduce(&mut memory, Op::Sum).expect("an all-reduce");
            });
            assert!(memory.iter().all(|x| *x == ranks as f32));
            communicator.barrier().expect("a barrier");
            counted
        });
        let sum = |of: fn(&RdmaCounters) -> u64| counted.iter().map(of).sum::<u64>();
        let all = format!("{ranks} ranks: {counted:#?}");
        let payload = sum(|c| c.payload_bytes);
        assert_eq!(payload, 2 * u64::from(ranks - 1) * BYTES, "{all}");
        assert!(sum(|c| c.wire_bytes) <= payload + payload / 200, "headers: {all}");
        assert_eq!(sum(|c| c.copied_bytes), 0, "{all}");
        // The second half of a ring goes to where it stays, as far as the receiver is not behind by more than
        // a round.
        let direct = sum(|c| c.direct_bytes);
        println!("{ranks} ranks: {direct} of {payload} bytes went straight to their places");
        assert!(2 * direct > payload - payload / 6, "{all}");
        // A slice of 64 KiB each, which is sent on as soon as it is reduced, and an offer for each part of
        // the buffer that goes straight; credits go with the slices.
        let slices = payload as f64 / f64::from(64 << 10);
        let offers = f64::from(ranks * (ranks - 1)) * (BYTES >> 20) as f64;
        let least = slices + offers;
        let (requests, completions) = (sum(|c| c.work_requests), sum(|c| c.completions));
        println!(
            "{ranks} ranks: {requests} work requests, {completions} completions; at least {least}"
        );
        assert!((requests as f64) < 1.15 * least, "at least {least}: {all}");
        assert!((completions as f64) < 2.0 * 1.15 * least, "at least {least} twice: {all}");
        assert!(counted.iter().all(|c| c.registrations == 1), "{all}");
    }
}

/// Everything that a rank sends leaves from where it is; what arrives at registered memory is not copied
/// either, even if the sender was there first.
#[test]
fn a_large_message_goes_straight_from_memory_to_memory() {
    let counted = each(communicators(2), |communicator| {
        let rank = communicator.rank();
        let mut buffer = communicator.register(vec![rank; COUNT]).expect("a guard");
        communicator.warm_up().expect("links");
        let counted = counted(&communicator, || match rank {
            0 => communicator.send(&buffer, 1).expect("sent"),
            _ => communicator.receive(&mut buffer, 0).expect("received"),
        });
        assert!(buffer.iter().all(|x| *x == 0));
        communicator.barrier().expect("a barrier");
        counted
    });
    let sender = counted[0];
    assert_eq!((sender.payload_bytes, sender.copied_bytes), (BYTES, 0), "{sender:?}");
    // Two slots are what a sender fills who is there first.
    assert!(sender.payload_bytes - sender.direct_bytes <= 2 * (64 << 10), "{sender:?}");
}

/// Small calls are carried by the work requests themselves, and credits by what is sent anyway.
#[test]
fn small_calls_take_one_work_request_a_message() {
    const CALLS: u64 = 200;
    let counted = each(communicators(2), |communicator| {
        let mut buffer = [communicator.rank()];
        communicator.barrier().expect("a barrier");
        counted(&communicator, || {
            for _ in 0..CALLS {
                communicator.all_reduce(&mut buffer, Op::Max).expect("an all-reduce");
            }
        })
    });
    for of_rank in counted {
        assert!(of_rank.work_requests <= CALLS + CALLS / 10, "{of_rank:?}");
    }
}

#[test]
fn the_tool_measures_and_tells_what_the_wire_carried() {
    let line = "bench all-reduce --ranks 4 --transport rdma --sizes 8,4096,1048576,16777216 -n 2 -w 1 \
                --memory registered --json /tmp/rdma.json";
    let output = ringtree(line, &[]);
    let seen = said(&output);
    println!("{seen}");
    assert_eq!(output.status.code(), Some(0), "{seen}");
    assert!(seen.contains("# Out of bounds values : 0 OK"), "{seen}");
    assert!(seen.contains("work requests with") && seen.contains("senders copied"), "{seen}");
    let document = std::fs::read_to_string("/tmp/rdma.json").expect("the document");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    let number = |name: &str| document["rdma"][name].as_u64().expect(name) as f64;
    assert!(number("wire_bytes") <= 1.01 * number("payload_bytes"), "{}", document["rdma"]);
    // Either placement has a buffer to read and one to write.
    assert!((1.0..=4.0).contains(&number("registrations")), "{}", document["rdma"]);
    assert!(number("copied_bytes") < 0.02 * number("payload_bytes"), "{}", document["rdma"]);
}

/// Nobody spins for a peer that does not come: the rank that waits sleeps on its completion channels.
#[test]
fn a_rank_that_waits_long_uses_no_processor() {
    const WAIT: std::time::Duration = std::time::Duration::from_secs(2);
    each(communicators(2), |communicator| {
        communicator.barrier().expect("a barrier");
        if communicator.rank() == 0 {
            std::thread::sleep(WAIT);
        }
        let before = thread_time();
        communicator.barrier().expect("a barrier");
        let used = thread_time() - before;
        assert!(communicator.rank() == 0 || used < WAIT / 4, "{used:?} of {WAIT:?}");
    });
}

/// Processor time of this thread.
fn thread_time() -> std::time::Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("this thread's usage");
    let both = usage.user_time() + usage.system_time();
    std::time::Duration::from_micros(both.num_microseconds() as u64)
}
