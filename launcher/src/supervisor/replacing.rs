//! Ranks that die and are started again: does what [`restart`](crate::restart) decides.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Stage, State, Supervisor, Watched};
use crate::member::Role;
use crate::ranks::Ranks;
use crate::restart::{Decision, Job, Limits, decide};
use crate::{process, report};

/// What it takes to start ranks again.
pub struct Replacing {
    ranks: Ranks,
    job: Job,
    began: Instant,
    /// When the next one is to be started, if one is.
    pub next_start: Option<Instant>,
}

impl Replacing {
    /// For ranks that all run by now.
    pub fn new(ranks: Ranks, limits: Limits) -> Replacing {
        let job = Job::new(limits, ranks.all(), 0);
        Replacing { ranks, job, began: Instant::now(), next_start: None }
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

impl Supervisor<'_> {
    /// Notes the end of a rank, and does what follows from it.
    pub fn on_rank_end(&mut self, index: usize, status: ExitStatus) -> io::Result<()> {
        let member = &self.members[index].member;
        let Role::Rank(rank) = member.role else { return Ok(()) };
        if !status.success() {
            // What it has started may hold what its successor needs, such as a device. The number of
            // its group can be another's only after all others were used since it was reaped, just now.
            member.signal_here(Signal::SIGKILL);
        }
        self.note_end(rank, status);
        self.follow_decisions()
    }

    /// Does all that is to be done by now.
    pub fn follow_decisions(&mut self) -> io::Result<()> {
        while let Some(replacing) = &mut self.replacing {
            let now_ms = replacing.now_ms();
            let decision = decide(&replacing.job, now_ms);
            replacing.job.decided(&decision, now_ms);
            match decision {
                Decision::Wait { until_ms } => {
                    let at = |ms| replacing.began + Duration::from_millis(ms);
                    replacing.next_start = until_ms.map(at);
                    return Ok(());
                }
                Decision::Start { rank } => self.start_again(rank)?,
                Decision::Replace { rank, .. } | Decision::GoOnWithout { rank, .. } => {
                    self.tell(rank, &decision);
                }
                Decision::EndJob { rank, .. } => {
                    self.tell(rank, &decision);
                    self.first_failure = self.status_of(rank);
                    self.stage = Stage::Grace { until: Instant::now() + self.grace };
                    self.replacing = None;
                }
            }
        }
        Ok(())
    }

    /// The job is to end: nobody is started again.
    pub fn stop_replacing(&mut self, signal: Signal) {
        let Some(Replacing { job, .. }) = self.replacing.take() else { return };
        let mut last = None;
        for rank in job.waiting() {
            report(&format!("{signal}: rank {rank} is not started again"));
            last = self.status_of(rank);
        }
        // Otherwise those that run tell how the job has ended.
        if self.running().next().is_none() {
            self.first_failure = self.first_failure.or(last);
        }
    }

    fn start_again(&mut self, rank: u32) -> io::Result<()> {
        let (Some(index), Some(replacing)) = (self.place_of(rank), &self.replacing) else {
            return Ok(());
        };
        match replacing.ranks.start_again(rank) {
            Ok((member, streams)) => {
                self.listen_to(&member, index, streams)?;
                self.members[index] = Watched { member, state: State::Running };
            }
            Err(error) => {
                report(&format!("rank {rank}: {error}"));
                // As a shell that could not start it would have ended.
                let status = ExitStatus::from_raw(i32::from(error.exit_code()) << 8);
                self.members[index].state = State::Ended(status);
                self.note_end(rank, status);
            }
        }
        Ok(())
    }

    fn note_end(&mut self, rank: u32, status: ExitStatus) {
        if let Some(replacing) = &mut self.replacing {
            let now_ms = replacing.now_ms();
            replacing.job.ended(rank, status.success(), now_ms);
        }
    }

    fn tell(&self, rank: u32, decision: &Decision) {
        let how = self.status_of(rank).map_or_else(String::new, process::describe_end);
        report(&format!("rank {rank} {how}; {decision}"));
    }

    fn status_of(&self, rank: u32) -> Option<ExitStatus> {
        match self.members[self.place_of(rank)?].state {
            State::Ended(status) => Some(status),
            State::Running | State::Reaped(_) => None,
        }
    }

    fn place_of(&self, rank: u32) -> Option<usize> {
        self.members.iter().position(|watched| watched.member.has(rank))
    }
}
