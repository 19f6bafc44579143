//! Barrier by dissemination.
//!
//! Hensgen, Finkel and Manber, "Two algorithms for barrier synchronization", International Journal
//! of Parallel Programming 17 (1988).
//!
//! In turn `k` a rank tells the one `2^k` after it what it has heard, and hears from the one `2^k`
//! before it. After `ceil(log2 n)` turns it has heard, directly or not, from all. Four ranks:
//!
//! ```text
//! turn 0     0 -> 1     1 -> 2     2 -> 3     3 -> 0
//! turn 1     0 -> 2     1 -> 3     2 -> 0     3 -> 1
//! ```

use super::{after, before, turn_s};
use crate::{Machine, Plan, Span, Step};

/// Rank `rank`'s plan; at least 1 rank.
///
/// There is one chunk, which no step touches: every span is empty, and so is every message.
pub(super) fn plan(rank: u32, ranks: u32) -> Plan {
    let nothing = Span::output(0, 0);
    let distances = (0..u32::BITS).map(|turn| 1 << turn).take_while(|&distance| distance < ranks);
    let steps = distances
        .flat_map(|distance| {
            let told = Step::send(after(rank, distance, ranks), nothing);
            [told, Step::recv(before(rank, distance, ranks), nothing)]
        })
        .collect();
    Plan { rank, ranks, chunks: 1, scratch: vec![], steps, sources: vec![] }
}

/// Seconds: `ceil(log2 n) (a + g)`, with `g` for a message's time at a port.
pub(super) fn closed_form(ranks: u32, machine: &Machine) -> f64 {
    f64::from(ranks.next_power_of_two().ilog2()) * turn_s(machine, 0.0, false)
}
