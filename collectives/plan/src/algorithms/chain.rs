//! Broadcast down a chain of all ranks and reduction up, from and to any root.
//!
//! Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
//! International Journal of High Performance Computing Applications 19 (2005), compare it with trees: it
//! takes as many turns as there are other ranks, but nobody sends anything twice, so that of a long
//! buffer in many rounds every link carries one round after the other at full speed.
//!
//! One chunk. Ranks count from the root on, around the circle. Four ranks, two rounds:
//!
//! ```text
//! turn 0     0 -> 1
//! turn 1     0 -> 1   1 -> 2
//! turn 2              1 -> 2   2 -> 3
//! turn 3                       2 -> 3
//! ```
//!
//! Up, the same goes backwards.

use super::{after, before, turn_s};
use crate::{Machine, Plan, Span, Step};

/// The ranks before and after `rank` in the chain from `root`.
fn neighbours(root: u32, rank: u32, ranks: u32) -> (Option<u32>, Option<u32>) {
    let place = before(rank, root, ranks);
    let previous = (place > 0).then(|| before(rank, 1, ranks));
    let next = (place + 1 < ranks).then(|| after(rank, 1, ranks));
    (previous, next)
}

/// Rank `rank`'s plan to receive, or to give, what `root` has; at least 2 ranks.
pub(super) fn plan(root: u32, rank: u32, ranks: u32) -> Plan {
    let (given, got) = (Span::input(0, 1), Span::output(0, 1));
    let steps = match neighbours(root, rank, ranks) {
        (Some(previous), Some(next)) => {
            vec![Step::recv_early(previous, got), Step::send(next, got)]
        }
        (Some(previous), None) => vec![Step::recv_early(previous, got)],
        (None, next) => {
            let mut steps: Vec<Step> =
                next.map(|next| Step::send(next, given)).into_iter().collect();
            steps.push(Step::Copy { src: given, dst: got });
            steps
        }
    };
    Plan { rank, ranks, chunks: 1, scratch: vec![], steps, sources: vec![] }
}

/// Rank `rank`'s plan to have all ranks' inputs reduced at `root`; at least 2 ranks.
pub(super) fn reduce(root: u32, rank: u32, ranks: u32) -> Plan {
    let (own, sum) = (Span::input(0, 1), Span::scratch(0, 1));
    let (steps, scratch) = match neighbours(root, rank, ranks) {
        (Some(previous), Some(next)) => {
            (vec![Step::recv_reduce(next, own, sum), Step::send(previous, sum)], vec![0])
        }
        (Some(previous), None) => (vec![Step::send(previous, own)], vec![]),
        (None, next) => {
            let sum = Span::output(0, 1);
            (next.map(|next| Step::recv_reduce(next, own, sum)).into_iter().collect(), vec![])
        }
    };
    Plan { rank, ranks, chunks: 1, scratch, steps, sources: vec![] }
}

/// Seconds for a round that is alone: `(n - 1) (a + N / B)`, and up `(n - 1) N / R` more.
pub(super) fn closed_form(
    ranks: u32,
    machine: &Machine,
    round_bytes: f64,
    is_reduced: bool,
) -> f64 {
    f64::from(ranks - 1) * turn_s(machine, round_bytes, is_reduced)
}
