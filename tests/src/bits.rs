//! The same bits every time, on every rank, by every road.

use ringtree::{Algorithm, Communicator, Op};
use ringtree_plan::Collective;

use crate::random::{Random, element};
use crate::sample::Sample;
use crate::values::algorithms;

/// What the ranks add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// Sums depend on their order.
    Inexact,
    /// As above, with every seventh element NaN, infinite, a zero, tiny or huge.
    Special,
}

/// One all-reduce and the digest of its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was called.
    pub call: String,
    /// Depends on every bit of the result.
    pub digest: u64,
}

/// For each algorithm, operation, kind of input and count: checks on this rank that the result has
/// the same bits in place, out of place and out of lent memory, when it is repeated, and when a
/// rank comes late. Returns what all ranks and transports must have in common.
///
/// # Panics
/// If a call fails, or bits differ.
pub fn outcomes<T: Sample>(
    communicator: &Communicator,
    seed: u64,
    counts: &[usize],
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for algorithm in algorithms(Collective::AllReduce).into_iter().flatten() {
        for op in T::DATA_TYPE.ops() {
            for inputs in [Inputs::Inexact, Inputs::Special] {
                // Special values need no long buffers, and take longest to check.
                let counts = counts.iter().filter(|&&c| inputs == Inputs::Inexact || c < 10_000);
                for &count in counts {
                    let result = repeated::<T>(communicator, algorithm, op, inputs, count, seed);
                    let type_name = T::DATA_TYPE.name();
                    let call = format!("{algorithm} {op:?} of {count} {type_name}, {inputs:?}");
                    check_against_fold(communicator, &call, op, inputs, &result, seed);
                    outcomes.push(Outcome { call, digest: digest(&result) });
                }
            }
        }
    }
    outcomes
}

/// Depends on every bit and on the order.
pub fn digest<T: Sample>(values: &[T]) -> u64 {
    values.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, value| {
        (hash ^ value.bits()).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    })
}

fn input<T: Sample>(seed: u64, inputs: Inputs, rank: u32, index: usize) -> T {
    let number = element(seed, rank, index);
    match inputs {
        Inputs::Special if index % 7 == 3 => T::special(number),
        _ => T::inexact(number),
    }
}

/// The result of one call, made in several ways.
fn repeated<T: Sample>(
    communicator: &Communicator,
    algorithm: Algorithm,
    op: Op,
    inputs: Inputs,
    count: usize,
    seed: u64,
) -> Vec<T> {
    let rank = communicator.rank();
    let own: Vec<T> = (0..count).map(|index| input(seed, inputs, rank, index)).collect();
    let using = communicator.using(algorithm);
    let mut random = Random::new(seed ^ count as u64);
    let mut first: Option<Vec<T>> = None;
    let mut lent = communicator.alloc(count).expect("memory");
    for round in 0..5 {
        let mut result = own.clone();
        let late = random.below(communicator.ranks() as usize) as u32;
        if round > 1 && late == rank {
            random.clone().dawdle(100_000);
        }
        let called = match round {
            0 | 2 => using.all_reduce(&mut result, op),
            1 | 3 => using.all_reduce_into(&own, &mut result, op),
            _ => {
                // Read in place by the peers.
                lent.copy_from_slice(&own);
                using.all_reduce_into(&lent, &mut result, op)
            }
        };
        called.unwrap_or_else(|error| panic!("rank {rank}, {algorithm} of {count}: {error}"));
        let first = first.get_or_insert_with(|| result.clone());
        let differs = (0..count).find(|&i| first[i].bits() != result[i].bits());
        if let Some(at) = differs {
            let (was, is) = (first[at], result[at]);
            panic!("rank {rank}, {algorithm} {op:?} of {count}: {was:?} became {is:?} at {at}");
        }
    }
    first.unwrap_or_default()
}

/// Where there is no order, the bits are known: an extreme, or the sum or product of two ranks.
fn check_against_fold<T: Sample>(
    communicator: &Communicator,
    call: &str,
    op: Op,
    inputs: Inputs,
    result: &[T],
    seed: u64,
) {
    let ranks = communicator.ranks();
    let has_order = !matches!(op, Op::Max | Op::Min);
    // An average is not the sum rounded and then divided.
    if op == Op::Average || has_order && ranks != 2 {
        return;
    }
    for (index, got) in result.iter().enumerate() {
        let value = |rank| input::<T>(seed, inputs, rank, index);
        let expected = (1..ranks).fold(value(0), |all, rank| T::fold(op, all, value(rank)));
        let (got, expected) = (got.bits(), expected.bits());
        assert_eq!(got, expected, "{call} on {} of {ranks}, at {index}", communicator.rank());
    }
}
