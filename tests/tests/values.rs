//! What calls compute, between ranks that are threads of one process.

use half::bf16;
use ringtree::{Communicator, Transports};
use ringtree_tests::bits::{Outcome, outcomes};
use ringtree_tests::ranks::{TRANSPORTS, on_ranks};
use ringtree_tests::values::{Case, all_reduces, check, others};
use ringtree_tests::varied;

/// Most elements of a call: several rounds of every algorithm among few ranks, and as much as a
/// machine with few processors moves in time among many.
fn most(ranks: u32) -> usize {
    if ranks <= 4 { 1_000_000 } else { 8_000_000 / (ranks * ranks) as usize }
}

fn check_all(transports: Transports, cases: impl Fn(u32) -> Vec<Case>) {
    for ranks in 1..=16 {
        let cases = cases(ranks);
        on_ranks(ranks, transports, |communicator| {
            cases.iter().for_each(|&case| check(communicator, case));
        });
    }
}

#[test]
fn all_reduce_over_shared_memory() {
    check_all(Transports::Shm, |ranks| all_reduces(1, ranks, most(ranks)));
}

#[test]
fn all_reduce_over_tcp() {
    check_all(Transports::Tcp, |ranks| all_reduces(2, ranks, most(ranks)));
}

#[test]
fn every_other_collective_from_and_to_every_root() {
    for transports in TRANSPORTS {
        check_all(transports, |ranks| others(3, ranks, most(ranks)));
    }
}

#[test]
fn blocks_that_differ_in_length() {
    for transports in TRANSPORTS {
        for ranks in 1..=9 {
            let cases = varied::cases(6, ranks, most(ranks));
            on_ranks(ranks, transports, |communicator| {
                cases.iter().for_each(|case| varied::check(communicator, case));
            });
        }
    }
}

/// Counts for the comparison of bits: a few elements, an odd count of one round, several rounds.
const COUNTS: [usize; 3] = [5, 4_099, 270_001];

fn all_outcomes(communicator: &Communicator) -> Vec<Outcome> {
    // The largest among few ranks only: beyond, it is the same code for much more time.
    let counts = if communicator.ranks() <= 3 { &COUNTS[..] } else { &COUNTS[..2] };
    let mut all = outcomes::<f32>(communicator, 4, counts);
    all.extend(outcomes::<bf16>(communicator, 5, counts));
    all
}

#[test]
fn the_same_bits_on_every_rank_over_every_transport() {
    for ranks in 2..=8 {
        let mut reference: Option<Vec<Outcome>> = None;
        for transports in TRANSPORTS {
            for (rank, outcomes) in
                on_ranks(ranks, transports, all_outcomes).into_iter().enumerate()
            {
                let reference = reference.get_or_insert_with(|| outcomes.clone());
                assert_eq!(&outcomes, reference, "rank {rank} of {ranks} over {transports}");
            }
        }
    }
}
