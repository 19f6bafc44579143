//! All-gather, reduce-scatter, all-to-all, gather and scatter without detours: every block goes straight from the
//! rank that has it to the one that wants it.
//!
//! Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
//! International Journal of High Performance Computing Applications 19 (2005), where they are the
//! exchanges of long messages.
//!
//! Four ranks, what rank 1 does:
//!
//! ```text
//! all-gather       Out[1] = In[1]; sends Out[1] to 2, 3, 0; receives Out[0], Out[3], Out[2]
//! reduce-scatter   sends In[2], In[3], In[0] to 2, 3, 0; reduces In[1] of 0, 1, 2, 3 into Out[1]
//! all-to-all       Out[1] = In[1]; sends In[2], In[3], In[0] to 2, 3, 0; receives Out[0], Out[3], Out[2]
//! gather to 1      Out[1] = In[1]; receives Out[0] from 0, Out[3] from 3, Out[2] from 2
//! scatter from 1   sends In[2] to 2, In[3] to 3, In[0] to 0; Out[1] = In[1]
//! ```

use super::{after, before};
use crate::{Machine, Plan, Span, Step};

/// The others, as a rank sends to them: the next one first, so that no two start with the same.
fn receivers(rank: u32, ranks: u32) -> impl Iterator<Item = u32> {
    (1..ranks).map(move |distance| after(rank, distance, ranks))
}

/// The others, as their messages come.
fn senders(rank: u32, ranks: u32) -> impl Iterator<Item = u32> {
    (1..ranks).map(move |distance| before(rank, distance, ranks))
}

fn keep(rank: u32) -> Step {
    Step::Copy { src: Span::input(rank, 1), dst: Span::output(rank, 1) }
}

fn plan(rank: u32, ranks: u32, steps: Vec<Step>) -> Plan {
    Plan { rank, ranks, chunks: ranks, scratch: vec![], steps, sources: vec![] }
}

/// Rank `rank`'s plan to give its block to all and get theirs; at least 2 ranks.
pub(super) fn all_gather(rank: u32, ranks: u32) -> Plan {
    let mut steps = vec![keep(rank)];
    steps.extend(receivers(rank, ranks).map(|peer| Step::send(peer, Span::output(rank, 1))));
    steps.extend(senders(rank, ranks).map(|peer| Step::recv_early(peer, Span::output(peer, 1))));
    plan(rank, ranks, steps)
}

/// Rank `rank`'s plan to get its block of the reduction; at least 2 ranks.
pub(super) fn reduce_scatter(rank: u32, ranks: u32) -> Plan {
    let mut steps = vec![];
    steps.extend(receivers(rank, ranks).map(|peer| Step::send(peer, Span::input(peer, 1))));
    steps.extend(senders(rank, ranks).map(|peer| Step::recv(peer, Span::scratch(peer, 1))));
    steps.push(Step::Reduce { first: 0, count: ranks, dst: Span::output(rank, 1) });
    let operand = |peer| if peer == rank { Span::input(rank, 1) } else { Span::scratch(peer, 1) };
    Plan {
        scratch: vec![rank; ranks as usize],
        sources: (0..ranks).map(operand).collect(),
        ..plan(rank, ranks, steps)
    }
}

/// Rank `rank`'s plan to give a block to each and get one of each; at least 2 ranks. While it copies its
/// own block, it hears where the others want theirs, and may write them there.
pub(super) fn all_to_all(rank: u32, ranks: u32) -> Plan {
    let mut steps = vec![keep(rank)];
    steps.extend(receivers(rank, ranks).map(|peer| Step::send(peer, Span::input(peer, 1))));
    steps.extend(senders(rank, ranks).map(|peer| Step::recv_early(peer, Span::output(peer, 1))));
    plan(rank, ranks, steps)
}

/// Rank `rank`'s plan to give its block to `root`; at least 2 ranks.
pub(super) fn gather(root: u32, rank: u32, ranks: u32) -> Plan {
    let mut steps = vec![];
    if rank == root {
        steps.push(keep(rank));
        let receive = |peer| Step::recv_early(peer, Span::output(peer, 1));
        steps.extend(senders(rank, ranks).map(receive));
    } else {
        steps.push(Step::send(root, Span::input(rank, 1)));
    }
    plan(rank, ranks, steps)
}

/// Rank `rank`'s plan to get its block from `root`; at least 2 ranks.
pub(super) fn scatter(root: u32, rank: u32, ranks: u32) -> Plan {
    let mut steps = vec![];
    if rank == root {
        steps.extend(receivers(rank, ranks).map(|peer| Step::send(peer, Span::input(peer, 1))));
        steps.push(keep(rank));
    } else {
        steps.push(Step::recv_early(root, Span::output(rank, 1)));
    }
    plan(rank, ranks, steps)
}

/// Seconds for a round of all blocks: `a + (n - 1) N / (n B)`, as the busiest port passes all blocks but
/// its own rank's. Where they are reduced, `(n - 1) N / (n R)` more.
pub(super) fn closed_form(
    ranks: u32,
    machine: &Machine,
    round_bytes: f64,
    is_reduced: bool,
) -> f64 {
    let block_bytes = round_bytes / f64::from(ranks);
    let reduction_s =
        if is_reduced { machine.reduction_s(block_bytes, ranks as usize) } else { 0.0 };
    machine.latency_s + f64::from(ranks - 1) * machine.transfer_s(block_bytes) + reduction_s
}
