//! Broadcast and scatter down a binomial tree, reduction and gather up, from and to any root.
//!
//! Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
//! International Journal of High Performance Computing Applications 19 (2005), section 4.2.
//!
//! One chunk, or a block for each rank. Ranks count from the root on, around the circle. A rank's parent is its number
//! without the lowest bit; the child with the largest subtree is served first. Four ranks:
//!
//! ```text
//! turn 0     0 -> 2
//! turn 1     0 -> 1     2 -> 3
//! ```
//!
//! Up, the same goes backwards: the child with the smallest subtree is first. Blocks go through the
//! scratch of the ranks on their way, in the order of the places: a subtree is a run of them.

use super::{after, before, circle, turn_s};
use crate::{Machine, Plan, Space, Span, Step};

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

/// The blocks of a subtree, as the root has them.
fn blocks(space: Space, root: u32, place: u32, ranks: u32) -> impl Iterator<Item = Span> {
    circle(space, after(root, place, ranks), subtree(place, ranks), ranks)
}

/// Places of the subtree below `place`, with itself.
fn subtree(place: u32, ranks: u32) -> u32 {
    let full = if place == 0 { ranks } else { 1 << place.trailing_zeros() };
    full.min(ranks - place)
}

/// Rank `rank`'s plan to get its block from `root`; at least 2 ranks.
pub(super) fn scatter(root: u32, rank: u32, ranks: u32) -> Plan {
    let place = before(rank, root, ranks);
    let own = Span::output(rank, 1);
    let mut steps = vec![];
    if place == 0 {
        for child in children(place, ranks) {
            let peer = after(root, child, ranks);
            let given = blocks(Space::Input, root, child, ranks);
            steps.extend(given.map(|span| Step::send(peer, span)));
        }
        steps.push(Step::Copy { src: Span::input(rank, 1), dst: own });
        return of_blocks(rank, ranks, vec![], steps);
    }
    let (parent, places) = (place & (place - 1), subtree(place, ranks));
    let giver = after(root, parent, ranks);
    if places == 1 {
        steps.push(Step::recv_early(giver, own));
        return of_blocks(rank, ranks, vec![], steps);
    }
    steps.extend(cuts(root, place, parent, ranks).map(|span| Step::recv_early(giver, span)));
    for child in children(place, ranks) {
        let passed = Span::scratch(child - place, subtree(child, ranks));
        steps.push(Step::send(after(root, child, ranks), passed));
    }
    steps.push(Step::Copy { src: Span::scratch(0, 1), dst: own });
    of_blocks(rank, ranks, passing(root, place, ranks), steps)
}

/// Rank `rank`'s plan to give its block to `root`; at least 2 ranks.
pub(super) fn gather(root: u32, rank: u32, ranks: u32) -> Plan {
    let place = before(rank, root, ranks);
    let own = Span::input(rank, 1);
    let mut children: Vec<u32> = children(place, ranks).collect();
    children.reverse();
    let mut steps = vec![];
    if place == 0 {
        steps.push(Step::Copy { src: own, dst: Span::output(rank, 1) });
        for child in children {
            let peer = after(root, child, ranks);
            let got = blocks(Space::Output, root, child, ranks);
            steps.extend(got.map(|span| Step::recv_early(peer, span)));
        }
        return of_blocks(rank, ranks, vec![], steps);
    }
    let parent = place & (place - 1);
    let taker = after(root, parent, ranks);
    if children.is_empty() {
        return of_blocks(rank, ranks, vec![], vec![Step::send(taker, own)]);
    }
    steps.push(Step::Copy { src: own, dst: Span::scratch(0, 1) });
    for child in children {
        let passed = Span::scratch(child - place, subtree(child, ranks));
        steps.push(Step::recv_early(after(root, child, ranks), passed));
    }
    steps.extend(cuts(root, place, parent, ranks).map(|span| Step::send(taker, span)));
    of_blocks(rank, ranks, passing(root, place, ranks), steps)
}

/// The scratch of a place as it is exchanged with its parent: in two messages where the root has the
/// blocks in two pieces, since the circle closes among them.
fn cuts(root: u32, place: u32, parent: u32, ranks: u32) -> impl Iterator<Item = Span> {
    let places = subtree(place, ranks);
    let pieces: Vec<u32> = match parent {
        0 => blocks(Space::Input, root, place, ranks).map(|span| span.len).collect(),
        _ => vec![places],
    };
    let mut start = 0;
    pieces.into_iter().map(move |len| {
        start += len;
        Span::scratch(start - len, len)
    })
}

/// Scratch for the blocks of a subtree.
fn passing(root: u32, place: u32, ranks: u32) -> Vec<u32> {
    (0..subtree(place, ranks)).map(|below| after(root, place + below, ranks)).collect()
}

fn of_blocks(rank: u32, ranks: u32, scratch: Vec<u32>, steps: Vec<Step>) -> Plan {
    Plan { rank, ranks, chunks: ranks, scratch, steps, sources: vec![] }
}

/// Seconds for all blocks, of which the largest subtree's go first: `k (a + g) + (n - 1) N / (n B)` for
/// `2^k` ranks, with `g` for a message's time at a port.
pub(super) fn closed_form_of_blocks(ranks: u32, machine: &Machine, round_bytes: f64) -> f64 {
    let turns = ranks.next_power_of_two().ilog2();
    let others = f64::from(ranks - 1) / f64::from(ranks);
    f64::from(turns) * turn_s(machine, 0.0, false)
        + others * round_bytes / machine.bandwidth_bytes_per_s
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
