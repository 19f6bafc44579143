//! All-reduce in two exchanges: each rank reduces its part from all and sends it to all. Reduction: it sends
//! it to the root.
//!
//! Reduce-scatter and all-gather by direct exchange: Thakur, Rabenseifner and Gropp, "Optimization
//! of collective communication operations in MPICH", International Journal of High Performance
//! Computing Applications 19 (2005); with direct reading of peers' memory it is the two-shot kernel
//! of vLLM and TensorRT-LLM.
//!
//! The round is cut into as many chunks as there are ranks; chunk `r` belongs to rank `r`. Four
//! ranks, what rank 1 does:
//!
//! ```text
//! sends      In[2] to 2     In[3] to 3     In[0] to 0
//! receives   0's In[1]      3's In[1]      2's In[1]
//! reduces    In[1] of 0, 1, 2 and 3, in this order, into Out[1]
//! sends      Out[1] to 2    Out[1] to 3    Out[1] to 0
//! receives   Out[0] from 0  Out[3] from 3  Out[2] from 2
//! ```

use super::{after, before};
use crate::{Machine, Plan, Span, Step};

/// Rank `rank`'s plan; at least 2 ranks.
///
/// Rank `p`'s message for `Scratch[p]` is as long as chunk `rank`. The first exchange is settled by
/// the second one: a rank sends its result only when it has read all its operands.
pub(super) fn plan(rank: u32, ranks: u32) -> Plan {
    let receivers = || (1..ranks).map(|distance| after(rank, distance, ranks));
    // A peer's message comes the sooner the less it is behind this rank on the circle.
    let senders = || (1..ranks).map(|distance| before(rank, distance, ranks));
    let result = Span::output(rank, 1);

    let mut steps = Vec::with_capacity(4 * (ranks as usize - 1) + 1);
    steps.extend(receivers().map(|peer| Step::send_settled(peer, Span::input(peer, 1))));
    steps.extend(senders().map(|peer| Step::recv(peer, Span::scratch(peer, 1))));
    steps.push(Step::Reduce { first: 0, count: ranks, dst: result });
    steps.extend(receivers().map(|peer| Step::send(peer, result)));
    steps.extend(senders().map(|peer| Step::recv_early(peer, Span::output(peer, 1))));

    let operand = |peer| if peer == rank { Span::input(rank, 1) } else { Span::scratch(peer, 1) };
    Plan {
        rank,
        ranks,
        chunks: ranks,
        scratch: vec![rank; ranks as usize],
        steps,
        sources: (0..ranks).map(operand).collect(),
    }
}

/// Rank `rank`'s plan to reduce to `root`; at least 2 ranks. The result of another rank than the root lies
/// in the scratch that would hold a message of its own.
pub(super) fn reduce(root: u32, rank: u32, ranks: u32) -> Plan {
    let all = plan(rank, ranks);
    if rank == root {
        let sends_result = |step: &Step| matches!(step, Step::Send { settled: false, .. });
        let steps = all.steps.into_iter().filter(|step| !sends_result(step)).collect();
        return Plan { steps, ..all };
    }
    let result = Span::scratch(rank, 1);
    let steps = all.steps.into_iter().filter_map(|step| match step {
        Step::Send { settled: true, peer, src } => Some(Step::send(peer, src)),
        Step::Send { peer, .. } => (peer == root).then_some(Step::send(root, result)),
        Step::Reduce { first, count, .. } => Some(Step::Reduce { first, count, dst: result }),
        Step::Recv { early: true, .. } => None,
        step => Some(step),
    });
    Plan { steps: steps.collect(), ..all }
}

/// Seconds for a round: `2 (a + (n - 1) N / (n B))`, and `(n - 1) N / (n R)` for the reduction.
/// Each port passes one part for each peer, twice.
pub(super) fn closed_form(ranks: u32, machine: &Machine, round_bytes: f64) -> f64 {
    let part_bytes = round_bytes / f64::from(ranks);
    let exchange_s = machine.latency_s + f64::from(ranks - 1) * machine.transfer_s(part_bytes);
    2.0 * exchange_s + machine.reduction_s(part_bytes, ranks as usize)
}
