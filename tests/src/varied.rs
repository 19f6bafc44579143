//! Calls on blocks that differ in length, against what they are defined to give.

use ringtree::{Algorithm, Collective, Communicator, Element, Error, Op, bf16};

use crate::random::{Random, element};
use crate::sample::Sample;

/// One call, the same on every rank.
#[derive(Clone, Debug)]
pub struct Case {
    collective: Collective,
    algorithm: Option<Algorithm>,
    in_place: bool,
    is_asynchronous: bool,
    is_narrow: bool,
    op: Op,
    /// What rank `i` gives rank `j`: in all-to-all; elsewhere row 0 has each rank's block.
    counts: Vec<Vec<usize>>,
    seed: u64,
}

/// Every collective of blocks from and to every root by every algorithm, with random lengths of at most
/// `most` elements in all.
pub fn cases(seed: u64, ranks: u32, most: usize) -> Vec<Case> {
    let mut random = Random::new(seed);
    let mut cases = Vec::new();
    for root in 0..ranks {
        let of_blocks = Collective::all(root).into_iter().filter(|c| c.is_of_blocks());
        for collective in of_blocks.filter(|c| root == 0 || c.root().is_some()) {
            let has_place = matches!(collective, Collective::AllGather | Collective::ReduceScatter);
            let serving = Algorithm::ALL
                .into_iter()
                .filter(|a| a.serves(collective) && !a.takes_one_round(collective));
            for algorithm in serving.map(Some).chain([None]) {
                let rows = if collective == Collective::AllToAll { ranks } else { 1 };
                let row = |random: &mut Random| counts(random, ranks as usize, most);
                let counts = (0..rows).map(|_| row(&mut random)).collect();
                let in_place = has_place && random.one_in(2);
                cases.push(Case {
                    collective,
                    algorithm,
                    in_place,
                    is_asynchronous: !in_place && random.one_in(3),
                    is_narrow: random.one_in(2),
                    op: random.pick(&[Op::Sum, Op::Max, Op::Average]),
                    counts,
                    seed: random.number(),
                });
            }
        }
    }
    random.shuffle(&mut cases);
    cases
}

/// A length for each rank: none, equal, all at one rank, or any.
fn counts(random: &mut Random, ranks: usize, most: usize) -> Vec<usize> {
    match random.below(8) {
        0 => vec![0; ranks],
        1 => vec![random.below(500); ranks],
        2 => {
            let mut counts = vec![0; ranks];
            counts[random.below(ranks)] = random.below(most);
            counts
        }
        _ => (0..ranks).map(|_| random.length(most / ranks)).collect(),
    }
}

/// Makes the call and compares every element.
///
/// # Panics
/// If the call fails or an element is wrong.
pub fn check(communicator: &Communicator, case: &Case) {
    match case.is_narrow {
        true => check_as::<bf16>(communicator, case),
        false => check_as::<f32>(communicator, case),
    }
}

fn check_as<T: Sample>(communicator: &Communicator, case: &Case) {
    let (rank, ranks) = (communicator.rank() as usize, communicator.ranks() as usize);
    let Case { collective, ref counts, in_place, op, seed, .. } = *case;
    let before = |lengths: &[usize], block: usize| lengths[..block].iter().sum::<usize>();
    let value = |rank: usize, index: usize| T::exact(element(seed, rank as u32, index));
    // What rank `of` has at `index` among all blocks that it may have.
    let run = |of: usize, from: usize, len: usize| (from..from + len).map(move |i| value(of, i));
    let reduced = |index: usize| {
        let fold = |sum, rank| T::fold(op, sum, value(rank, index));
        let folded = (1..ranks).fold(value(0, index), fold);
        if op == Op::Average { folded.divided(ranks as u32) } else { folded }
    };
    let lengths = &counts[0];
    let all = before(lengths, ranks);
    let (own, own_from) = (lengths[rank], before(lengths, rank));
    let of_each = || {
        let block = |giver: usize| run(giver, before(lengths, giver), lengths[giver]);
        (0..ranks).flat_map(block).collect::<Vec<T>>()
    };
    let sums: Vec<T> = (own_from..own_from + own).map(reduced).collect();
    let is_root = collective.root().is_none_or(|root| root as usize == rank);
    let own_block = || run(rank, own_from, own).collect::<Vec<T>>();
    let everything = || run(rank, 0, all).collect::<Vec<T>>();
    let (input, expected): (Vec<T>, Vec<T>) = match collective {
        Collective::AllGather => (own_block(), of_each()),
        Collective::Gather { .. } => (own_block(), if is_root { of_each() } else { vec![] }),
        Collective::ReduceScatter => (everything(), sums.clone()),
        Collective::Scatter { root } => (
            if is_root { everything() } else { vec![] },
            run(root as usize, own_from, own).collect(),
        ),
        _ => {
            let given = run(rank, 0, before(&counts[rank], ranks)).collect();
            let block =
                |giver: usize| run(giver, before(&counts[giver], rank), counts[giver][rank]);
            (given, (0..ranks).flat_map(block).collect())
        }
    };
    let by = communicator.using(case.algorithm);
    let result = if in_place {
        let mut buffer = if collective == Collective::AllGather {
            let mut buffer = vec![T::special(2); all];
            buffer[own_from..][..own].copy_from_slice(&input);
            buffer
        } else {
            input.clone()
        };
        let called = match collective {
            Collective::AllGather => by.all_gather_v(&mut buffer, lengths),
            _ => by.reduce_scatter_v(&mut buffer, lengths, op),
        };
        called.unwrap_or_else(|error| panic!("rank {rank}, {case:?}: {error}"));
        if collective == Collective::ReduceScatter {
            for (index, kept) in buffer.iter().enumerate() {
                let is_own = (own_from..own_from + own).contains(&index);
                assert!(is_own || *kept == value(rank, index), "rank {rank}, {case:?}: {index}");
            }
            buffer[own_from..][..own].to_vec()
        } else {
            buffer
        }
    } else {
        let output = vec![T::special(2); expected.len()];
        let result = call_into(&by, case, input, output);
        result.unwrap_or_else(|error| panic!("rank {rank}, {case:?}: {error}"))
    };
    for (index, (got, wanted)) in result.iter().zip(&expected).enumerate() {
        assert_eq!(got, wanted, "rank {rank} of {ranks}, {case:?}: at {index}");
    }
}

/// What the output is afterwards.
fn call_into<T: Element>(
    by: &Communicator,
    case: &Case,
    input: Vec<T>,
    mut output: Vec<T>,
) -> Result<Vec<T>, Error> {
    let Case { collective, ref counts, op, .. } = *case;
    let rank = by.rank() as usize;
    let is_root = collective.root().is_none_or(|root| root as usize == rank);
    let lengths: Vec<usize> = if is_root { counts[0].clone() } else { vec![] };
    let got: Vec<usize> = match collective {
        Collective::AllToAll => counts.iter().map(|row| row[rank]).collect(),
        _ => vec![],
    };
    if case.is_asynchronous {
        let pending = match collective {
            Collective::AllGather => by.all_gather_v_into_async(input, output, lengths)?,
            Collective::ReduceScatter => {
                by.reduce_scatter_v_into_async(input, output, lengths, op)?
            }
            Collective::Gather { root } => by.gather_v_into_async(input, output, lengths, root)?,
            Collective::Scatter { root } => {
                by.scatter_v_into_async(input, output, lengths, root)?
            }
            _ => {
                let given = counts[rank].clone();
                let pending = by.all_to_all_v_into_async(input, given, output, got)?;
                return pending.wait().map(|(_, output, _)| output);
            }
        };
        return pending.wait().map(|(_, output, _)| output);
    }
    let into = &mut output[..];
    match collective {
        Collective::AllGather => by.all_gather_v_into(&input, into, &lengths),
        Collective::ReduceScatter => by.reduce_scatter_v_into(&input, into, &lengths, op),
        Collective::Gather { root } => by.gather_v_into(&input, into, &lengths, root),
        Collective::Scatter { root } => by.scatter_v_into(&input, into, &lengths, root),
        _ => by.all_to_all_v_into(&input, &counts[rank], into, &got),
    }?;
    Ok(output)
}
