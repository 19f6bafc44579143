//! All-reduce in one exchange: every rank sends all to all and reduces, for small messages. Without
//! anything to reduce it is a barrier.
//!
//! The all-to-all broadcast with local reduction of Thakur, Rabenseifner and Gropp, "Optimization
//! of collective communication operations in MPICH", International Journal of High Performance
//! Computing Applications 19 (2005); with direct reading of peers' memory it is the one-shot kernel
//! of vLLM and TensorRT-LLM.
//!
//! One chunk. Four ranks, what rank 1 does:
//!
//! ```text
//! sends      In[0] to 2, to 3, to 0
//! receives   In[0] of 0, of 3, of 2
//! reduces    In[0] of 0, 1, 2 and 3, in this order, into Out[0]
//! ```

use super::{after, before};
use crate::{Machine, Plan, Span, Step};

/// Rank `rank`'s plan; at least 2 ranks.
///
/// In place, the result overwrites what was sent, hence the flush. It stands after the receives,
/// since before them it would wait for ranks that wait for this one.
pub(super) fn plan(rank: u32, ranks: u32) -> Plan {
    let own = Span::input(0, 1);
    let receivers = (1..ranks).map(|distance| after(rank, distance, ranks));
    let senders = (1..ranks).map(|distance| before(rank, distance, ranks));

    let mut steps = Vec::with_capacity(2 * ranks as usize);
    steps.extend(receivers.map(|peer| Step::send(peer, own)));
    steps.extend(senders.map(|peer| Step::recv(peer, Span::scratch(peer, 1))));
    steps.push(Step::Flush { span: own });
    steps.push(Step::Reduce { first: 0, count: ranks, dst: Span::output(0, 1) });

    let operand = |peer| if peer == rank { own } else { Span::scratch(peer, 1) };
    Plan {
        rank,
        ranks,
        chunks: 1,
        scratch: vec![0; ranks as usize],
        steps,
        sources: (0..ranks).map(operand).collect(),
    }
}

/// Rank `rank`'s plan for a barrier; at least 1 rank. Every message is empty.
pub(super) fn barrier(rank: u32, ranks: u32) -> Plan {
    let nothing = Span::output(0, 0);
    let told = (1..ranks).map(|distance| Step::send(after(rank, distance, ranks), nothing));
    let heard = (1..ranks).map(|distance| Step::recv(before(rank, distance, ranks), nothing));
    let steps = told.chain(heard).collect();
    Plan { rank, ranks, chunks: 1, scratch: vec![], steps, sources: vec![] }
}

/// Seconds for a round: `a + (n - 1) N / B`, and `(n - 1) N / R` for the reduction. Each port
/// passes everything once for each peer.
pub(super) fn closed_form(ranks: u32, machine: &Machine, round_bytes: f64) -> f64 {
    let exchange_s = machine.latency_s + f64::from(ranks - 1) * machine.transfer_s(round_bytes);
    exchange_s + machine.reduction_s(round_bytes, ranks as usize)
}
