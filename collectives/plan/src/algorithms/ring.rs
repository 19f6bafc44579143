//! Around a ring: reduce-scatter, all-gather, and all-reduce, which is one after the other.
//!
//! Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
//! Journal of Parallel and Distributed Computing 69 (2009).
//!
//! The round is cut into as many chunks as there are ranks. Chunk `c` starts at rank `c`, goes once
//! around and gains every rank's contribution; from rank `c - 1`, where it is complete, it goes
//! around again. Four ranks, what each sends to the next one in each of the `2 (n - 1)` turns (`*`:
//! complete):
//!
//! ```text
//! turn   0 -> 1   1 -> 2   2 -> 3   3 -> 0
//!   1       0        1        2        3
//!   2       3        0        1        2
//!   3       2        3        0        1
//!   4       1*       2*       3*       0*
//!   5       0*       1*       2*       3*
//!   6       3*       0*       1*       2*
//! ```
//!
//! Reduce-scatter alone is the first three turns with every chunk one rank earlier, so that it is
//! complete at the rank that it belongs to; all-gather alone is the last three in the same way.

use super::{after, before, turn_s};
use crate::{Machine, Plan, Span, Step};

/// Rank `rank`'s plan; at least 2 ranks.
///
/// The sends of incomplete chunks are settled: when the chunk comes back complete, the next rank
/// has read what it was sent. For the same reason the span of a complete chunk is free as soon as
/// the previous rank can send it.
pub(super) fn plan(rank: u32, ranks: u32) -> Plan {
    let (previous, next) = (before(rank, 1, ranks), after(rank, 1, ranks));
    let mut steps = Vec::with_capacity(4 * (ranks as usize - 1));

    steps.push(Step::send_settled(next, Span::input(rank, 1)));
    for turn in 1..ranks {
        let chunk = before(rank, turn, ranks);
        let (own, sum) = (Span::input(chunk, 1), Span::output(chunk, 1));
        let complete = turn == ranks - 1;
        steps.push(Step::recv_reduce(previous, own, sum));
        steps.push(Step::Send { peer: next, src: sum, settled: !complete });
    }
    for turn in 0..ranks - 1 {
        let sum = Span::output(before(rank, turn, ranks), 1);
        steps.push(Step::recv_early(previous, sum));
        if turn + 2 < ranks {
            steps.push(Step::send(next, sum));
        }
    }
    Plan { rank, ranks, chunks: ranks, scratch: vec![], steps, sources: vec![] }
}

/// Rank `rank`'s plan to get its block of the reduction; at least 2 ranks.
///
/// Sums under way have a place of their own for each turn: to use one again, a rank would have to
/// wait until the next one has read it.
pub(super) fn reduce_scatter(rank: u32, ranks: u32) -> Plan {
    let (previous, next) = (before(rank, 1, ranks), after(rank, 1, ranks));
    let mut steps = vec![Step::send(next, Span::input(previous, 1))];
    let mut scratch = vec![];
    for turn in 2..ranks {
        let chunk = before(rank, turn, ranks);
        let sum = Span::scratch(turn - 2, 1);
        scratch.push(chunk);
        steps.push(Step::recv_reduce(previous, Span::input(chunk, 1), sum));
        steps.push(Step::send(next, sum));
    }
    steps.push(Step::recv_reduce(previous, Span::input(rank, 1), Span::output(rank, 1)));
    Plan { rank, ranks, chunks: ranks, scratch, steps, sources: vec![] }
}

/// Rank `rank`'s plan to give its block to all and get theirs; at least 2 ranks.
pub(super) fn all_gather(rank: u32, ranks: u32) -> Plan {
    let (previous, next) = (before(rank, 1, ranks), after(rank, 1, ranks));
    let own = Span::output(rank, 1);
    let mut steps = vec![Step::Copy { src: Span::input(rank, 1), dst: own }, Step::send(next, own)];
    for turn in 1..ranks {
        let block = Span::output(before(rank, turn, ranks), 1);
        steps.push(Step::recv_early(previous, block));
        if turn + 1 < ranks {
            steps.push(Step::send(next, block));
        }
    }
    Plan { rank, ranks, chunks: ranks, scratch: vec![], steps, sources: vec![] }
}

/// Seconds for a round of a half: `(n - 1) (a + N / (n B))`, and where it is reduced `(n - 1) N / (n R)`
/// more.
pub(super) fn closed_form_of_half(
    ranks: u32,
    machine: &Machine,
    round_bytes: f64,
    is_reduced: bool,
) -> f64 {
    f64::from(ranks - 1) * turn_s(machine, round_bytes / f64::from(ranks), is_reduced)
}

/// Seconds for a round: `2 (n - 1) (a + N / (n B))`, and `(n - 1) N / (n R)` for the reduction.
pub(super) fn closed_form(ranks: u32, machine: &Machine, round_bytes: f64) -> f64 {
    let half_s = |is_reduced| closed_form_of_half(ranks, machine, round_bytes, is_reduced);
    half_s(true) + half_s(false)
}
