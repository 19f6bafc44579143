//! What a rank did in a step, and for how long.

use std::time::{Duration, Instant};

use ringtree_trainer::Exchanged;

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Data,
    Forward,
    Backward,
    /// Waiting for buckets after the backward pass.
    Exchange,
    Optimiser,
}

impl Phase {
    pub const ALL: [Phase; 5] =
        [Phase::Data, Phase::Forward, Phase::Backward, Phase::Exchange, Phase::Optimiser];

    pub fn name(self) -> &'static str {
        match self {
            Phase::Data => "data",
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Exchange => "waiting for the exchange",
            Phase::Optimiser => "optimiser",
        }
    }
}

/// One step of one rank.
#[derive(Debug, Default)]
pub struct StepEvents {
    /// What followed on what.
    pub phases: Vec<(Phase, Instant, Instant)>,
    /// The exchange of each bucket.
    pub exchanged: Exchanged,
}

impl StepEvents {
    /// Runs a part of the step and notes when.
    pub fn run<R>(&mut self, phase: Phase, job: impl FnOnce() -> R) -> R {
        let begin = Instant::now();
        let result = job();
        self.phases.push((phase, begin, Instant::now()));
        result
    }

    /// How long the step spent in a phase.
    pub fn time(&self, phase: Phase) -> Duration {
        let of_phase = self.phases.iter().filter(|(of, ..)| *of == phase);
        of_phase.map(|(_, begin, end)| *end - *begin).sum()
    }

    /// How long this rank was busy itself, without waiting for others.
    pub fn busy(&self) -> Duration {
        [Phase::Data, Phase::Forward, Phase::Backward].map(|phase| self.time(phase)).iter().sum()
    }
}
