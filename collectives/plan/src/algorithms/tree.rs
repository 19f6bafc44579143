//! Broadcast down a binomial tree and reduction up, from and to any root.
//!
//! Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
//! International Journal of High Performance Computing Applications 19 (2005), section 4.2.
//!
//! One chunk. Ranks count from the root on, around the circle. A rank's parent is its number
//! without the lowest bit; the child with the largest subtree is served first. Four ranks:
//!
//! ```text
//! turn 0     0 -> 2
//! turn 1     0 -> 1     2 -> 3
//! ```
//!
//! Up, the same goes backwards: the child with the smallest subtree is first.

use super::{after, before};
use crate::{Machine, Plan, Span, Step};

/// Rank `rank`'s plan to receive, or to give, what `root` has; at least 1 rank.
pub(super) fn plan(root: u32, rank: u32, ranks: u32) -> Plan {
    let place = before(rank, root, ranks);
    let (given, got) = (Span::input(0, 1), Span::output(0, 1));
    let mut steps = vec![];
    if place == 0 {
        steps.extend(children(place, ranks).map(|c| Step::send(after(root, c, ranks), given)));
        steps.push(Step::Copy { src: given, dst: got });
    } else {
        let parent = place & (place - 1);
        steps.push(Step::recv_early(after(root, parent, ranks), got));
        steps.extend(children(place, ranks).map(|c| Step::send(after(root, c, ranks), got)));
    }
    Plan { rank, ranks, chunks: 1, scratch: vec![], steps, sources: vec![] }
}

/// Rank `rank`'s plan to have all ranks' inputs reduced at `root`; at least 2 ranks.
pub(super) fn reduce(root: u32, rank: u32, ranks: u32) -> Plan {
    let place = before(rank, root, ranks);
    let sum = if place == 0 { Span::output(0, 1) } else { Span::scratch(0, 1) };
    let mut children: Vec<u32> = children(place, ranks).collect();
    children.reverse();
    let mut steps = vec![];
    let mut own = Span::input(0, 1);
    for child in &children {
        steps.push(Step::recv_reduce(after(root, *child, ranks), own, sum));
        own = sum;
    }
    if place != 0 {
        let parent = place & (place - 1);
        steps.push(Step::send(after(root, parent, ranks), own));
    }
    let scratch = if place == 0 || children.is_empty() { vec![] } else { vec![0] };
    Plan { rank, ranks, chunks: 1, scratch, steps, sources: vec![] }
}

/// Seconds for a round up: `k (a + N / B + N / R)` for `2^k` ranks.
pub(super) fn closed_form_up(ranks: u32, machine: &Machine, round_bytes: f64) -> f64 {
    let turns = ranks.next_power_of_two().ilog2();
    closed_form(ranks, machine, round_bytes)
        + f64::from(turns) * machine.reduction_s(round_bytes, 2)
}

/// Seconds for a round: `k (a + N / B)` for `2^k` ranks; at most that where some of them are
/// missing.
pub(super) fn closed_form(ranks: u32, machine: &Machine, round_bytes: f64) -> f64 {
    let turns = ranks.next_power_of_two().ilog2();
    f64::from(turns) * (machine.latency_s + machine.transfer_s(round_bytes))
}

/// The places below `place`, the largest subtree first.
fn children(place: u32, ranks: u32) -> impl Iterator<Item = u32> {
    // The root's lowest bit is as good as the first one that is too large for any rank.
    let bits = if place == 0 { u32::BITS } else { place.trailing_zeros() };
    let reach = bits.min(u32::BITS - (ranks - 1).leading_zeros());
    (0..reach).rev().map(move |bit| place + (1 << bit)).filter(move |&child| child < ranks)
}
