//! All-reduce that crosses between hosts as rarely as can be: inside, between, inside.
//!
//! Reduce-scatter inside every host, a ring between the hosts for each part, all-gather inside: the
//! hierarchy of Jia et al., "Highly scalable deep learning training system with mixed-precision"
//! (arXiv 1807.11205), with the two-shot exchange inside a host and the ring of Patarasuk and Yuan
//! (2009) between hosts.
//!
//! The round is cut into as many parts as the smallest host has ranks, and a part into as many chunks
//! as there are hosts. The first ranks of a host lead a part each. What crosses out of a host is
//! `2 (h - 1) / h` of the buffer among `h` hosts, however many ranks they have: the lower bound. Four
//! ranks, 0 and 1 on one host, 2 and 3 on another, parts and chunks `a0 a1 | b0 b1`:
//!
//! ```text
//! inside    0 <- 1: a0 a1    1 <- 0: b0 b1    2 <- 3: a0 a1    3 <- 2: b0 b1
//! between   0 -> 2: a0       2 -> 0: a1       1 -> 3: b0       3 -> 1: b1
//!           0 -> 2: a1*      2 -> 0: a0*      1 -> 3: b1*      3 -> 1: b0*
//! inside    0 -> 1: a1* a0*  1 -> 0: b1* b0*  2 -> 3: a0* a1*  3 -> 2: b0* b1*
//! ```

use super::{after, before};
use crate::{Machine, Plan, Span, Step};

/// Where a rank stands among the hosts.
struct Place {
    rank: u32,
    /// Number of its host, and how many hosts there are.
    host: u32,
    hosts: u32,
    /// The ranks of its host, in order.
    locals: Vec<u32>,
    /// How many parts there are.
    parts: u32,
    /// Who leads this rank's part on the host before and on the one after, if it leads one.
    ring: Option<Ring>,
}

#[derive(Clone, Copy)]
struct Ring {
    part: u32,
    previous: u32,
    next: u32,
}

/// Rank `rank`'s plan; `hosts` has the ranks of each host, in the order of the ring between hosts.
pub(super) fn plan(rank: u32, hosts: &[Vec<u32>]) -> Plan {
    let place = Place::of(rank, hosts);
    let mut plan = Plan {
        rank,
        ranks: hosts.iter().map(Vec::len).sum::<usize>() as u32,
        chunks: place.parts * place.hosts,
        scratch: vec![],
        steps: vec![],
        sources: vec![],
    };
    for chunk in place.turns() {
        for part in place.parts_of_others() {
            let given = Span::input(place.chunk(part, chunk), 1);
            plan.steps.push(Step::send_settled(place.locals[part as usize], given));
        }
    }
    if let Some(ring) = place.ring {
        reduce(&place, ring, &mut plan);
        gather(&place, ring, &mut plan);
    }
    for chunk in place.complete() {
        for part in place.parts_of_others() {
            let result = Span::output(place.chunk(part, chunk), 1);
            plan.steps.push(Step::recv_early(place.locals[part as usize], result));
        }
    }
    plan
}

/// Adds what the ranks of the host and the hosts before have, chunk by chunk, and passes it on.
///
/// As in the ring, what is sent to the next host incomplete is settled by what comes back complete.
fn reduce(place: &Place, ring: Ring, plan: &mut Plan) {
    let Ring { part, previous, next } = ring;
    for (turn, chunk) in (0..).zip(place.turns()) {
        let chunk = place.chunk(part, chunk);
        let own = Span::input(chunk, 1);
        let (begins, complete) = (turn == 0, turn + 1 == place.hosts);
        let first = plan.sources.len() as u32;
        let mut operands = vec![];
        let arrives = |plan: &mut Plan, peer| {
            let arrival = Span::scratch(plan.scratch.len() as u32, 1);
            plan.scratch.push(chunk);
            plan.steps.push(Step::recv(peer, arrival));
            arrival
        };
        for &local in &place.locals {
            operands.push(if local == place.rank { own } else { arrives(plan, local) });
        }
        if !begins {
            operands.push(arrives(plan, previous));
        }
        let result = if operands.len() == 1 { own } else { Span::output(chunk, 1) };
        if operands.len() > 1 {
            let count = operands.len() as u32;
            plan.sources.extend(operands);
            plan.steps.push(Step::Reduce { first, count, dst: result });
        }
        if place.hosts > 1 {
            plan.steps.push(Step::Send { peer: next, src: result, settled: !complete });
        }
        if complete {
            tell_locals(place, result, plan);
        }
    }
}

/// Takes the complete chunks from the host before, and passes them on.
fn gather(place: &Place, ring: Ring, plan: &mut Plan) {
    for (turn, chunk) in (0..place.hosts - 1).zip(place.turns()) {
        let result = Span::output(place.chunk(ring.part, chunk), 1);
        plan.steps.push(Step::recv_early(ring.previous, result));
        if turn + 2 < place.hosts {
            plan.steps.push(Step::send(ring.next, result));
        }
        tell_locals(place, result, plan);
    }
}

fn tell_locals(place: &Place, result: Span, plan: &mut Plan) {
    let others = place.locals.iter().filter(|&&local| local != place.rank);
    plan.steps.extend(others.map(|&local| Step::send(local, result)));
}

impl Place {
    fn of(rank: u32, hosts: &[Vec<u32>]) -> Place {
        let parts = hosts.iter().map(Vec::len).min().unwrap_or(1);
        let host = hosts.iter().position(|ranks| ranks.contains(&rank)).unwrap_or(0);
        let locals = hosts[host].clone();
        let count = hosts.len() as u32;
        let (host, local) = (host as u32, locals.iter().position(|&local| local == rank));
        let ring = local.filter(|&part| part < parts).map(|part| Ring {
            part: part as u32,
            previous: hosts[before(host, 1 % count, count) as usize][part],
            next: hosts[after(host, 1 % count, count) as usize][part],
        });
        Place { rank, host, hosts: count, locals, parts: parts as u32, ring }
    }

    fn chunk(&self, part: u32, chunk: u32) -> u32 {
        part * self.hosts + chunk
    }

    /// The chunks of a part in the order in which this host adds to them.
    fn turns(&self) -> impl Iterator<Item = u32> + use<> {
        let (host, hosts) = (self.host, self.hosts);
        (0..hosts).map(move |turn| before(host, turn, hosts))
    }

    /// The chunks of a part in the order in which they become complete on this host: the one that it
    /// adds to last, and then as the host before sends them.
    fn complete(&self) -> impl Iterator<Item = u32> + use<> {
        let (host, hosts) = (self.host, self.hosts);
        let last = before(host, hosts - 1, hosts);
        std::iter::once(last).chain(self.turns().take(hosts as usize - 1))
    }

    /// The parts that other ranks of the host lead.
    fn parts_of_others(&self) -> impl Iterator<Item = u32> + use<> {
        let mine = self.ring.map(|ring| ring.part);
        (0..self.parts).filter(move |&part| Some(part) != mine)
    }
}

/// Seconds for a round among `h` hosts of `l` ranks each, about:
/// `2 (a + (l - 1) N / (l B)) + 2 (h - 1) (a + N / (l h B))`, and the reductions.
pub(super) fn closed_form(ranks: u32, hosts: u32, machine: &Machine, round_bytes: f64) -> f64 {
    let locals = f64::from(ranks) / f64::from(hosts);
    let part_bytes = round_bytes / locals;
    let inside_s = machine.latency_s + (locals - 1.0) * machine.transfer_s(part_bytes);
    let chunk_bytes = part_bytes / f64::from(hosts);
    let between_s = machine.latency_s + machine.transfer_s(chunk_bytes);
    let operands = (locals - 1.0).max(0.0) + f64::from(hosts - 1) / f64::from(hosts);
    2.0 * inside_s
        + 2.0 * f64::from(hosts - 1) * between_s
        + operands * machine.reduction_s(part_bytes, 2)
}
