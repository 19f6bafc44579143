//! Predictions for many ranks: those whose plans are images of one another are run once, and of many
//! rounds the first ones.

use super::run::{self, predict_images};
use super::{Machine, Work};
use crate::algorithms::Symmetry;
use crate::{Algorithm, Collective, Places, Program, lower};

/// More messages are not run: it would take longer than some seconds.
const MOST_MESSAGES: u64 = 6_000_000;

/// As many rounds are run as have so many messages: by the last of them each is about as long as the one
/// before it.
const FEW_MESSAGES: u64 = 1_000_000;

/// And so many for each lane, however many messages they have.
const LEAST_ROUNDS_OF_LANE: u64 = 4;

/// The ranks whose programs stand for those of all ranks on a machine.
#[derive(Clone, Debug)]
pub struct Representatives {
    programs: Vec<Program>,
    symmetry: Symmetry,
    machine: Machine,
}

/// What is sent where most is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sent {
    /// Messages of a rank.
    pub messages: u64,
    /// Bytes that leave a host.
    pub host_bytes: f64,
}

impl Representatives {
    /// Those of an algorithm among `ranks`. None where they send too many messages for all of them to be run.
    ///
    /// # Panics
    /// If the algorithm does not serve the collective, or hosts are not all full.
    pub fn new(
        algorithm: Algorithm,
        collective: Collective,
        ranks: u32,
        machine: Machine,
    ) -> Option<Representatives> {
        let locals = machine.ranks_of_host();
        assert!(ranks.is_multiple_of(locals), "{ranks} ranks on hosts of {locals}");
        let hosts: Vec<u32> = (0..ranks).map(|rank| rank / locals).collect();
        let places = Places::on(&hosts);
        let symmetry = algorithm.symmetry(collective, ranks);
        let representatives = if symmetry == Symmetry::None { ranks } else { locals };
        let mut messages = 0;
        let mut programs = vec![];
        for rank in 0..representatives {
            let program = lower(&algorithm.plan_on(collective, rank, &places));
            messages += run::sends(&program).count() as u64;
            if messages > MOST_MESSAGES {
                return None;
            }
            programs.push(program);
        }
        Some(Representatives { programs, symmetry, machine })
    }

    /// Seconds until the last rank is done: what [`predict`](super::predict) says of all programs and
    /// rounds; where these have too many messages, to some percent. None where even a few rounds have too
    /// many.
    pub fn predict(&self, work: Work) -> Option<f64> {
        let sends: usize = self.programs.iter().map(|program| run::sends(program).count()).sum();
        let sends_of_lanes = (sends as u64 * u64::from(work.lanes)).max(1);
        let rounds_of_lane = (FEW_MESSAGES / sends_of_lanes).max(LEAST_ROUNDS_OF_LANE);
        let run_rounds_of_lane = rounds_of_lane.min(u64::from(work.rounds.div_ceil(work.lanes)));
        if run_rounds_of_lane * sends_of_lanes > MOST_MESSAGES {
            return None;
        }
        if u64::from(work.rounds) <= rounds_of_lane * u64::from(work.lanes) {
            return Some(self.run(work));
        }
        let half = (rounds_of_lane / 2) as u32 * work.lanes;
        let settled = 2 * half + work.rounds % work.lanes;
        let (before_s, settled_s) = std::thread::scope(|scope| {
            let before = scope.spawn(|| self.run(work.first(settled - half)));
            let settled_s = self.run(work.first(settled));
            (before.join(), settled_s)
        });
        let before_s = before_s.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let left = f64::from(work.rounds - settled) / f64::from(half);
        Some(settled_s + left * (settled_s - before_s))
    }

    fn run(&self, work: Work) -> f64 {
        predict_images(&self.programs, self.symmetry, self.machine, work)
    }

    /// What the rank and the host that send most send.
    pub fn sent(&self, work: Work) -> Sent {
        let chunk_bytes = work.bytes / f64::from(self.programs[0].chunks);
        let locals = self.machine.ranks_of_host();
        let mut most = Sent { messages: 0, host_bytes: 0.0 };
        for host in self.programs.chunks(locals as usize) {
            let mut leaving_chunks = 0;
            for program in host {
                let messages = run::sends(program).count() as u64 * u64::from(work.rounds);
                most.messages = most.messages.max(messages);
                let leaves = |peer| peer / locals != program.rank / locals;
                let leaving = run::sends(program).filter(|&(peer, _)| leaves(peer));
                leaving_chunks += leaving.map(|(_, chunks)| u64::from(chunks)).sum::<u64>();
            }
            most.host_bytes = most.host_bytes.max(leaving_chunks as f64 * chunk_bytes);
        }
        most
    }
}
