//! All-to-all in pairs: in each turn every rank sends one block and receives another.
//!
//! Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
//! International Journal of High Performance Computing Applications 19 (2005), section 4.5.
//!
//! In turn `d` rank `r` sends to rank `r + d` and receives from `r - d`, so that no port has two
//! messages at once. Four ranks, what rank 1 does:
//!
//! ```text
//! turn 0   Out[1] = In[1]
//! turn 1   sends In[2] to 2   receives Out[0] from 0
//! turn 2   sends In[3] to 3   receives Out[3] from 3
//! turn 3   sends In[0] to 0   receives Out[2] from 2
//! ```

use super::{after, before};
use crate::{Machine, Plan, Span, Step};

/// Rank `rank`'s plan; at least 2 ranks. Nothing that is sent depends on what is received, but a turn
/// begins when the one before it has ended.
pub(super) fn plan(rank: u32, ranks: u32) -> Plan {
    let mut steps = vec![Step::Copy { src: Span::input(rank, 1), dst: Span::output(rank, 1) }];
    for distance in 1..ranks {
        let (to, from) = (after(rank, distance, ranks), before(rank, distance, ranks));
        steps.push(Step::send(to, Span::input(to, 1)));
        steps.push(Step::recv_early(from, Span::output(from, 1)));
    }
    Plan { rank, ranks, chunks: ranks, scratch: vec![], steps, sources: vec![] }
}

/// Seconds for a round of all blocks: `(n - 1) (a + N / (n B))`.
pub(super) fn closed_form(ranks: u32, machine: &Machine, round_bytes: f64) -> f64 {
    let block_bytes = round_bytes / f64::from(ranks);
    f64::from(ranks - 1) * (machine.latency_s + machine.transfer_s(block_bytes))
}
