//! What becomes of a rank that dies: a function of what the launcher knows of its ranks, and of the
//! time.
//!
//! A rank is done when it ends with status 0, and dead when it ends in any other way. A dead one is
//! started again, and asks the others to take it in; all ranks together as often as `--restart` says.
//! It is not started again
//!
//! - when no other rank runs that could take it in;
//! - once a rank is done: then the work is over, and the others leave as well. One that still waits
//!   for its start is given up, and the job is none the worse: ranks that end well after a death
//!   have done the work without it;
//! - when it has died within a second of its start three times in a row: whatever it stumbles over
//!   is still there.
//!
//! Then the others go on without it as long as `--min-ranks` of them are left, done ones among them,
//! and otherwise the job ends.
//!
//! The first restart comes after 100 ms: ranks that die together (memory ran out) are noticed, and
//! started again, together, and the others have cut them off by then. Each further one takes twice
//! as long, up to 10 s, so that a program that fails at once neither loads its host nor uses up its
//! restarts before anyone looks. Each 8 s in which nobody dies halve it again: after a minute of
//! quiet the next one is as the first, and a death every 10 s is no reason to wait ever longer.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

const FIRST_DELAY_MS: u64 = 100;
const LONGEST_DELAY_MS: u64 = 10_000;

/// From here on, [`LONGEST_DELAY_MS`] is what counts.
const MOST_DOUBLINGS: u64 = 7;

/// So much time without a death takes one doubling back.
const HALVED_AFTER_MS: u64 = 8_000;

/// Who dies sooner after its start has failed at once.
const AT_ONCE_MS: u64 = 1_000;

/// Who fails at once so often in a row always will.
const FAILURES_AT_ONCE: u32 = 3;

/// What the user wants done about ranks that die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How often ranks are started again, all together.
    pub restarts: u32,
    /// How many of the ranks that a launcher watches must be left; at least 1.
    pub min_ranks: u32,
    /// How many ranks of the job other launchers watch.
    pub ranks_elsewhere: u32,
}

/// The ranks that a launcher watches. Times are in milliseconds, from any beginning.
#[derive(Clone, Debug)]
pub struct Job {
    limits: Limits,
    ranks: BTreeMap<u32, Rank>,
    /// How often a rank was started again, or is about to be.
    restarts: u32,
    /// How often the delay was doubled, as of `started_ms`.
    doublings: u64,
    /// When a rank was last started.
    started_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Rank {
    state: State,
    started_ms: u64,
    failures_at_once: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// It died, and nothing has been decided.
    Dead,
    /// It is started again at this time.
    Waiting {
        until_ms: u64,
    },
    /// The others go on without it.
    Lost,
    Done,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This rank is to be started again after a while.
    Replace {
        /// The one that died.
        rank: u32,
        /// After how long.
        after_ms: u64,
        /// Which of the restarts that is, from 1.
        number: u32,
        /// How many there may be.
        of: u32,
    },
    /// The while is over.
    Start {
        /// The one to start.
        rank: u32,
    },
    /// This rank is not started again, and that is no harm.
    GoOnWithout {
        /// The one that died.
        rank: u32,
        /// Why it is not started again.
        why: Why,
        /// How many are left.
        left: u32,
    },
    /// The job cannot go on.
    EndJob {
        /// The one that died.
        rank: u32,
        /// Why it is not started again.
        why: Why,
        /// How many are left.
        left: u32,
        /// How many would have to be.
        min_ranks: u32,
    },
    /// Nothing, until then or until a rank ends.
    Wait {
        /// When a rank is to be started, if one is.
        until_ms: Option<u64>,
    },
}

/// Why a rank is not started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nobody has asked for that.
    NotAsked,
    /// It was done as often as it may be.
    UsedUp {
        /// How often.
        restarts: u32,
    },
    /// It would fail again.
    FailsAtOnce {
        /// How often it has, in a row.
        times: u32,
    },
    /// The work is over.
    IsOver {
        /// The first rank that is done.
        done: u32,
    },
    /// Nobody could take it in.
    Alone,
}

/// What to do about `job` now. Whoever does it tells the job, by [`Job::decided`], and asks again
/// until there is nothing but to wait.
pub fn decide(job: &Job, now_ms: u64) -> Decision {
    let waiting = job.next_to_start();
    match (waiting, job.first(State::Done), job.first(State::Dead)) {
        (Some((_, rank)), Some(done), _) => {
            let (why, left) = (Why::IsOver { done }, job.left() - 1);
            Decision::GoOnWithout { rank, why, left }
        }
        (_, _, Some(rank)) => about_death(job, rank, now_ms),
        (Some((until_ms, rank)), ..) if until_ms <= now_ms => Decision::Start { rank },
        (waiting, ..) => Decision::Wait { until_ms: waiting.map(|(until_ms, _)| until_ms) },
    }
}

fn about_death(job: &Job, rank: u32, now_ms: u64) -> Decision {
    let Limits { restarts, min_ranks, .. } = job.limits;
    let left = job.left();
    match job.why_not(rank) {
        None => {
            let after_ms = job.delay_ms(now_ms);
            Decision::Replace { rank, after_ms, number: job.restarts + 1, of: restarts }
        }
        Some(why) if why == Why::Alone || left < min_ranks => {
            Decision::EndJob { rank, why, left, min_ranks }
        }
        Some(why) => Decision::GoOnWithout { rank, why, left },
    }
}

impl Job {
    /// A job whose ranks have all been started now.
    pub fn new(limits: Limits, ranks: Range<u32>, now_ms: u64) -> Job {
        let rank = Rank { state: State::Running, started_ms: now_ms, failures_at_once: 0 };
        let ranks = ranks.map(|number| (number, rank)).collect();
        Job { limits, ranks, restarts: 0, doublings: 0, started_ms: now_ms }
    }

    /// A rank has ended, with status 0 or not.
    pub fn ended(&mut self, rank: u32, with_status_0: bool, now_ms: u64) {
        let Some(rank) = self.ranks.get_mut(&rank) else { return };
        if with_status_0 {
            rank.state = State::Done;
            return;
        }
        rank.state = State::Dead;
        let is_at_once = now_ms.saturating_sub(rank.started_ms) < AT_ONCE_MS;
        rank.failures_at_once = if is_at_once { rank.failures_at_once + 1 } else { 0 };
    }

    /// What was decided is done.
    pub fn decided(&mut self, decision: &Decision, now_ms: u64) {
        match *decision {
            Decision::Replace { rank, after_ms, .. } => {
                if self.next_to_start().is_none() {
                    self.doublings = (self.doublings_left(now_ms) + 1).min(MOST_DOUBLINGS);
                }
                self.restarts += 1;
                self.set(rank, State::Waiting { until_ms: now_ms + after_ms });
            }
            Decision::Start { rank } => {
                self.started_ms = now_ms;
                self.set(rank, State::Running);
                if let Some(rank) = self.ranks.get_mut(&rank) {
                    rank.started_ms = now_ms;
                }
            }
            Decision::GoOnWithout { rank, .. } => self.set(rank, State::Lost),
            Decision::EndJob { .. } | Decision::Wait { .. } => {}
        }
    }

    /// The ranks that wait for being started again.
    pub fn waiting(&self) -> impl Iterator<Item = u32> {
        self.starts().map(|(_, rank)| rank)
    }

    fn why_not(&self, rank: u32) -> Option<Why> {
        let Limits { restarts, ranks_elsewhere, .. } = self.limits;
        let times = self.ranks.get(&rank).map_or(0, |rank| rank.failures_at_once);
        if restarts == 0 {
            Some(Why::NotAsked)
        } else if let Some(done) = self.first(State::Done) {
            Some(Why::IsOver { done })
        } else if ranks_elsewhere == 0 && self.first(State::Running).is_none() {
            Some(Why::Alone)
        } else if times >= FAILURES_AT_ONCE {
            Some(Why::FailsAtOnce { times })
        } else if self.restarts >= restarts {
            Some(Why::UsedUp { restarts })
        } else {
            None
        }
    }

    /// How long a rank that dies now waits: as long as those that wait already.
    fn delay_ms(&self, now_ms: u64) -> u64 {
        match self.next_to_start() {
            Some((until_ms, _)) => until_ms.saturating_sub(now_ms),
            None => (FIRST_DELAY_MS << self.doublings_left(now_ms)).min(LONGEST_DELAY_MS),
        }
    }

    fn doublings_left(&self, now_ms: u64) -> u64 {
        let quiet_ms = now_ms.saturating_sub(self.started_ms);
        self.doublings.saturating_sub(quiet_ms / HALVED_AFTER_MS)
    }

    /// Ranks that are neither dead nor lost.
    fn left(&self) -> u32 {
        let is_left = |rank: &&Rank| !matches!(rank.state, State::Dead | State::Lost);
        self.ranks.values().filter(is_left).count() as u32
    }

    fn first(&self, state: State) -> Option<u32> {
        self.ranks.iter().find(|(_, rank)| rank.state == state).map(|(&number, _)| number)
    }

    /// Who is to be started first, and when.
    fn next_to_start(&self) -> Option<(u64, u32)> {
        self.starts().min()
    }

    fn starts(&self) -> impl Iterator<Item = (u64, u32)> {
        self.ranks.iter().filter_map(|(&number, rank)| match rank.state {
            State::Waiting { until_ms } => Some((until_ms, number)),
            _ => None,
        })
    }

    fn set(&mut self, rank: u32, state: State) {
        if let Some(rank) = self.ranks.get_mut(&rank) {
            rank.state = state;
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match *self {
            Decision::Replace { after_ms, number, of, .. } => {
                let after_s = after_ms as f64 / 1000.0;
                write!(f, "starting it again ({number} of {of}) in {after_s:.1} s")
            }
            Decision::Start { .. } => write!(f, "starting it again"),
            Decision::GoOnWithout { why, left, .. } => {
                write!(f, "{why}: going on without it ({} left)", ranks(left))
            }
            Decision::EndJob { why: why @ Why::Alone, .. } => write!(f, "{why}: ending the job"),
            Decision::EndJob { why, left, min_ranks, .. } => {
                write!(f, "{why}: ending the job ({} left, {min_ranks} needed)", ranks(left))
            }
            Decision::Wait { .. } => write!(f, "waiting"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Why::NotAsked => write!(f, "it is not started again without --restart"),
            Why::UsedUp { restarts } => write!(f, "no restart is left of {restarts}"),
            Why::FailsAtOnce { times } => {
                write!(f, "it has failed within a second of its start {times} times in a row")
            }
            Why::IsOver { done } => write!(f, "it is not started again, since rank {done} is done"),
            Why::Alone => write!(f, "no rank is left that could take it in again"),
        }
    }
}

fn ranks(count: u32) -> String {
    format!("{count} {}", if count == 1 { "rank" } else { "ranks" })
}

#[cfg(test)]
mod tests;
