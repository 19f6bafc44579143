//! All-reduce by recursive doubling, for any number of ranks.
//!
//! Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
//! International Journal of High Performance Computing Applications 19 (2005), section 4.4.
//!
//! One chunk. In turn `k` a rank exchanges its sum with the rank whose number differs in bit `k`.
//! Ranks above the largest power of two first fold into the ranks at the beginning, and get the
//! result from them at the end. Four ranks:
//!
//! ```text
//! turn 0     0 <-> 1     2 <-> 3
//! turn 1     0 <-> 2     1 <-> 3
//! ```
//!
//! Both partners add the same two sums, so that, addition being commutative, all have one result.

use crate::{Machine, Plan, Span, Step};

/// Rank `rank`'s plan; at least 2 ranks.
pub(super) fn plan(rank: u32, ranks: u32) -> Plan {
    let doubling_ranks = 1 << ranks.ilog2();
    if rank >= doubling_ranks {
        return folded(rank, ranks, rank - doubling_ranks);
    }
    let extra = Some(rank + doubling_ranks).filter(|&extra| extra < ranks);
    let (result, arrival) = (Span::output(0, 1), Span::scratch(0, 1));
    let mut sum = Span::input(0, 1);
    let (mut steps, mut sources) = (vec![], vec![]);

    if let Some(extra) = extra {
        steps.push(Step::recv_reduce(extra, sum, result));
        sum = result;
    }
    for turn in 0..ranks.ilog2() {
        let partner = rank ^ (1 << turn);
        let first = sources.len() as u32;
        sources.extend([sum, arrival]);
        steps.push(Step::send(partner, sum));
        // Not straight into the result: in place it is what the partner may still be reading.
        steps.push(Step::recv(partner, arrival));
        steps.push(Step::Flush { span: sum });
        steps.push(Step::Reduce { first, count: 2, dst: result });
        sum = result;
    }
    if let Some(extra) = extra {
        steps.push(Step::send(extra, result));
    }
    Plan { rank, ranks, chunks: 1, scratch: vec![0], steps, sources }
}

/// Seconds for a round: `k (a + N / B + N / R)` for `2^k` ranks. With ranks to fold in, one such
/// turn more before, and `a + N / B` after, give or take a message a turn: ranks without one of
/// those run ahead, which spares the others a wait here and keeps their ports busy there.
pub(super) fn closed_form(ranks: u32, machine: &Machine, round_bytes: f64) -> f64 {
    let message_s = machine.latency_s + machine.transfer_s(round_bytes);
    let turn_s = message_s + machine.reduction_s(round_bytes, 2);
    let doubling_s = f64::from(ranks.ilog2()) * turn_s;
    if ranks.is_power_of_two() { doubling_s } else { turn_s + doubling_s + message_s }
}

/// The plan of a rank that `proxy` represents. The result proves that the contribution was read.
fn folded(rank: u32, ranks: u32, proxy: u32) -> Plan {
    let steps = vec![
        Step::send_settled(proxy, Span::input(0, 1)),
        Step::recv_early(proxy, Span::output(0, 1)),
    ];
    Plan { rank, ranks, chunks: 1, scratch: vec![], steps, sources: vec![] }
}
