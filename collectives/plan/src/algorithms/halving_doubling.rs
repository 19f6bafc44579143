//! By halves and doubles, for any number of ranks: reduce-scatter, all-gather, and all-reduce, which is
//! one after the other.
//!
//! Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
//! International Journal of High Performance Computing Applications 19 (2005), section 4.4, for powers
//! of two; for other numbers Träff, "Optimal, non-pipelined reduce-scatter and allreduce algorithms",
//! arXiv 2410.14234 (2024), which leaves no rank over and takes as few turns and moves as little.
//!
//! As many chunks as ranks, on a circle. A rank begins with all; in each turn it sends the half that its
//! own chunk is not in, adds what comes to the other half, and goes on with that, until its own chunk is
//! left, which is complete. The all-gather goes the same way back. With a power of two partners exchange
//! halves: in turn `k` those whose numbers differ in the `k`-th bit from above. Else a rank counts chunks
//! from its own one on and sends the second half to the rank that is as far ahead as that begins. Four
//! ranks and five, what rank 0 does:
//!
//! ```text
//! turn 1   sends 2 3 to 2    adds 0 1 of 2        sends 3 4 to 3    adds 0 1 of 2
//! turn 2   sends 1 to 1      adds 0 of 1          sends 2 to 2      adds 0 of 3
//! turn 3   sends 0* to 1     gets 1* of 1         sends 1 to 1      adds 0 of 4
//! turn 4   sends 0* 1* to 2  gets 2* 3* of 2      sends 0* to 4     gets 1* of 1
//! turn 5                                          sends 0* to 3     gets 2* of 2
//! turn 6                                          sends 0* 1* to 2  gets 3* 4* of 3
//! ```
//!
//! Where the circle closes within what is sent, it goes as two messages.

use super::{after, before, circle, turn_s};
use crate::{Machine, Plan, Space, Span, Step};

/// Chunks that follow one another on the circle.
#[derive(Clone, Copy)]
struct Run {
    start: u32,
    len: u32,
}

/// One turn of the reduce-scatter; the all-gather takes it backwards.
#[derive(Clone, Copy)]
struct Turn {
    to: u32,
    from: u32,
    sent: Run,
    /// What the arrival is added to.
    kept: Run,
}

fn turns(rank: u32, ranks: u32) -> Vec<Turn> {
    let mut turns = vec![];
    let mut left = ranks;
    while left > 1 {
        let distance = left.div_ceil(2);
        turns.push(if ranks.is_power_of_two() {
            let partner = rank ^ distance;
            let half = |of: u32| Run { start: of & !(distance - 1), len: distance };
            Turn { to: partner, from: partner, sent: half(partner), kept: half(rank) }
        } else {
            let (to, from) = (after(rank, distance, ranks), before(rank, distance, ranks));
            let len = left - distance;
            Turn { to, from, sent: Run { start: to, len }, kept: Run { start: rank, len } }
        });
        left = distance;
    }
    turns
}

/// The chunk that the first turn neither sends nor adds to: an odd number has one.
fn unsummed(rank: u32, ranks: u32) -> Option<u32> {
    (!ranks.is_multiple_of(2)).then(|| after(rank, ranks / 2, ranks))
}

/// Rank `rank`'s plan of an all-reduce; at least 2 ranks.
///
/// What is sent of sums under way is settled when it comes back complete.
pub(super) fn plan(rank: u32, ranks: u32) -> Plan {
    let mut steps = vec![];
    let mut space = Space::Input;
    for Turn { to, from, sent, kept } in turns(rank, ranks) {
        steps.extend(spans(space, sent, ranks).map(|span| Step::send_settled(to, span)));
        let sums = spans(Space::Output, kept, ranks);
        steps.extend(sums.map(|sum| Step::recv_reduce(from, Span { space, ..sum }, sum)));
        if space == Space::Input {
            // From here on all are looked for among the sums.
            steps.extend(unsummed(rank, ranks).map(|chunk| Step::Copy {
                src: Span::input(chunk, 1),
                dst: Span::output(chunk, 1),
            }));
        }
        space = Space::Output;
    }
    steps.extend(gather(rank, ranks));
    Plan { rank, ranks, chunks: ranks, scratch: vec![], steps, sources: vec![] }
}

fn spans(space: Space, run: Run, ranks: u32) -> impl Iterator<Item = Span> {
    circle(space, run.start, run.len, ranks)
}

/// The turns in which chunks are gathered, once the own one is in the output.
fn gather(rank: u32, ranks: u32) -> Vec<Step> {
    let mut steps = vec![];
    for Turn { to, from, sent, kept } in turns(rank, ranks).into_iter().rev() {
        steps.extend(spans(Space::Output, kept, ranks).map(|span| Step::send(from, span)));
        steps.extend(spans(Space::Output, sent, ranks).map(|span| Step::recv_early(to, span)));
    }
    steps
}

/// Rank `rank`'s plan to give its block to all and get theirs; at least 2 ranks.
pub(super) fn all_gather(rank: u32, ranks: u32) -> Plan {
    let mut steps = vec![Step::Copy { src: Span::input(rank, 1), dst: Span::output(rank, 1) }];
    steps.extend(gather(rank, ranks));
    Plan { rank, ranks, chunks: ranks, scratch: vec![], steps, sources: vec![] }
}

/// Rank `rank`'s plan to get its block of the reduction; at least 2 ranks. Sums under way are in
/// scratch, in the order of the circle.
pub(super) fn reduce_scatter(rank: u32, ranks: u32) -> Plan {
    let turns = turns(rank, ranks);
    let first = turns[0].kept.start;
    let sums = |run: Run| Span::scratch(before(run.start, first, ranks), run.len);
    let mut steps = vec![];
    for (index, &Turn { to, from, sent, kept }) in turns.iter().enumerate() {
        let is_last = index + 1 == turns.len();
        let result = |run| if is_last { Span::output(rank, 1) } else { sums(run) };
        if index > 0 {
            steps.push(Step::send(to, sums(sent)));
            steps.push(Step::recv_reduce(from, sums(kept), result(kept)));
            continue;
        }
        steps.extend(spans(Space::Input, sent, ranks).map(|span| Step::send(to, span)));
        for own in spans(Space::Input, kept, ranks) {
            let sum = result(Run { start: own.start, len: own.len });
            steps.push(Step::recv_reduce(from, own, sum));
        }
        steps.extend(unsummed(rank, ranks).map(|chunk| Step::Copy {
            src: Span::input(chunk, 1),
            dst: sums(Run { start: chunk, len: 1 }),
        }));
    }
    let kept = if ranks > 2 { ranks.div_ceil(2) } else { 0 };
    let scratch = (0..kept).map(|place| after(first, place, ranks)).collect();
    Plan { rank, ranks, chunks: ranks, scratch, steps, sources: vec![] }
}

/// Seconds for a round of a half: `ceil(log2 n) a + (n - 1) N / (n B)`, and where it is reduced
/// `(n - 1) N / (n R)` more.
pub(super) fn closed_form_of_half(
    ranks: u32,
    machine: &Machine,
    round_bytes: f64,
    is_reduced: bool,
) -> f64 {
    let chunk_bytes = round_bytes / f64::from(ranks);
    let turn_s = |turn: Turn| turn_s(machine, f64::from(turn.sent.len) * chunk_bytes, is_reduced);
    turns(0, ranks).into_iter().map(turn_s).sum()
}

/// Seconds for a round: `2 ceil(log2 n) a + 2 (n - 1) N / (n B) + (n - 1) N / (n R)`, for a power of two.
/// Of other numbers, ranks whose messages come in two pieces run ahead, and meet others at a port: it
/// takes up to half as long again.
pub(super) fn closed_form(ranks: u32, machine: &Machine, round_bytes: f64) -> f64 {
    let half = |is_reduced| closed_form_of_half(ranks, machine, round_bytes, is_reduced);
    half(true) + half(false)
}
