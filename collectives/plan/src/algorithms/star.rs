//! All-reduce by one rank that everyone else speaks with, for small messages of ranks that share
//! processors.
//!
//! The linear reduction and broadcast of Open MPI's basic collectives, one after the other. It has the
//! fewest messages that there can be, `2 (n - 1)` of them, but one rank sends and receives them all: it
//! is for ranks that take turns on their processors, so that every message counts, whoever sends it.
//!
//! One chunk. Four ranks:
//!
//! ```text
//! turn 0     1, 2, 3 -> 0, which reduces In[0] of 0, 1, 2 and 3, in this order, into Out[0]
//! turn 1     0 -> 1, 2, 3
//! ```

use crate::{Machine, Plan, Span, Step};

/// Rank `rank`'s plan; at least 2 ranks. What goes in is settled by what comes back.
pub(super) fn plan(rank: u32, ranks: u32) -> Plan {
    let (own, sum) = (Span::input(0, 1), Span::output(0, 1));
    let mut plan = Plan { rank, ranks, chunks: 1, scratch: vec![], steps: vec![], sources: vec![] };
    if rank == 0 {
        let given = |peer| Span::scratch(peer - 1, 1);
        plan.scratch = vec![0; ranks as usize - 1];
        plan.sources = std::iter::once(own).chain((1..ranks).map(given)).collect();
        plan.steps.extend((1..ranks).map(|peer| Step::recv(peer, given(peer))));
        plan.steps.push(Step::Reduce { first: 0, count: ranks, dst: sum });
        plan.steps.extend((1..ranks).map(|peer| Step::send(peer, sum)));
    } else {
        plan.steps.extend([Step::send_settled(0, own), Step::recv_early(0, sum)]);
    }
    plan
}

/// Seconds for a round: `2 (a + (n - 1) N / B)`, and `(n - 1) N / R` for the reduction.
pub(super) fn closed_form(ranks: u32, machine: &Machine, round_bytes: f64) -> f64 {
    let port_s = f64::from(ranks - 1) * machine.transfer_s(round_bytes);
    2.0 * (machine.latency_s + port_s) + machine.reduction_s(round_bytes, ranks as usize)
}
