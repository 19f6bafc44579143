//! Ranks that call different things: everyone hears who called what, and nothing wrong is written.

use ringtree_tests::clock::monotonic_ns;
use ringtree_tests::job::Job;

use crate::{latencies_ms, setup};

/// Everyone knows within a second, and later on a machine that is busy with other tests.
const BUSY_MS: f64 = 3000.0;

/// Calls that do not fit together. The first one is rank 1's.
const PAIRS: [(&str, &str); 9] = [
    ("all-reduce f32 sum 1000", "all-reduce f32 sum 1001"),
    ("all-reduce f32 sum 8", "all-reduce f32 sum 300000"),
    ("all-reduce f32 sum 1000", "all-reduce f64 sum 1000"),
    ("all-reduce f32 sum 1000", "all-reduce i32 sum 1000"),
    ("all-reduce bf16 sum 1000", "all-reduce bf16 max 1000"),
    ("all-reduce f32 sum 1000", "broadcast f32 1000 0"),
    ("all-reduce f32 sum 1000", "barrier"),
    ("broadcast f32 1000 1", "broadcast f32 1000 0"),
    ("broadcast f32 1000 0", "broadcast f64 1000 0"),
];

#[test]
fn two_ranks_that_call_different_things() {
    for transport in ["shm", "tcp"] {
        for (first, second) in PAIRS {
            differ(transport, 2, first, second, "");
        }
    }
}

/// Among four ranks most have no link to the one that is wrong.
#[test]
fn one_of_four_ranks_calls_something_else() {
    for transport in ["shm", "tcp"] {
        for (first, second) in PAIRS {
            differ(transport, 4, first, second, "warm-up;");
            differ(transport, 4, first, second, "");
        }
    }
}

#[test]
fn a_receiver_that_expects_something_else() {
    for transport in ["shm", "tcp"] {
        for (send, receive) in [
            ("send f32 1000 1", "receive f32 1001 0"),
            ("send f32 100000 1", "receive f32 1000 0"),
            ("send f32 1000 1", "receive f32 300000 0"),
            ("send f32 1000 1", "receive f64 1000 0"),
            ("send f32 1000 1", "receive f64 500 0"),
        ] {
            differ(transport, 2, receive, send, "");
        }
    }
}

/// Rank 1 calls `odd` and all others `common`, and then all the same. All of them get the same
/// error, in the first call or in the second, and no value that only the other side's call could
/// have brought.
fn differ(transport: &'static str, ranks: u32, odd: &str, common: &str, before: &str) {
    let mut job = Job::start(&setup(ranks, transport), |rank| {
        let call = if rank == 1 { odd } else { common };
        format!("{before} wait; {call}; barrier; values")
    });
    let members = 0..ranks as usize;
    job.expect_all(members.clone(), "waiting");
    let began_ns = monotonic_ns();
    members.clone().for_each(|member| job.go_on(member));
    let errors = job.expect_all(members.clone(), "error");
    let worst_ms = latencies_ms(&errors, began_ns).into_iter().fold(0.0, f64::max);
    println!("{transport}, {ranks} ranks, {odd} / {common}: {worst_ms:.0} ms");
    for error in &errors {
        assert_eq!(error.rest, errors[0].rest, "{job}");
        assert_eq!(error.field(0), "mismatch", "{job}");
        assert!(error.field(1).split(',').any(|rank| rank == "1"), "{job}");
    }
    assert!(worst_ms < BUSY_MS, "{worst_ms} ms\n{job}");
    for member in members {
        let values = job.expect(member, "values");
        assert!(values.rest.split(',').all(|v| may_hold(v, member == 1)), "{values}\n{job}");
    }
}

/// Whether a value can be in the buffer of rank 1, or of another rank: rank r contributes 10^r, so
/// that the digits tell who contributed, and how often.
fn may_hold(value: &str, of_rank_1: bool) -> bool {
    let mut digits = value.bytes().rev().enumerate();
    match of_rank_1 {
        true => digits.all(|(rank, digit)| digit == b'0' || rank == 1 && digit == b'1'),
        false => digits.all(|(rank, digit)| digit == b'0' || rank != 1 && digit == b'1'),
    }
}
