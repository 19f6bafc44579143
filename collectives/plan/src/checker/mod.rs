//! Proves plans and programs by running all ranks' on symbolic values.
//!
//! The run follows who knows what: each rank counts its events, each message carries what its
//! sender knows of everybody's count (vector clocks: Mattern, "Virtual time and global states of
//! distributed systems", 1989). Whether a span is free, and whether a mark is true, is decided by
//! that knowledge and never by the order in which the run happens to go, so that one run speaks for
//! all. Credits only decide when a flush ends, and hence whether ranks wait for each other in a
//! circle.
//!
//! Proved are: every rank ends with each contribution exactly once and by the same expression; no
//! deadlock; nothing is written that may still be read, nothing is read that is undefined; messages
//! and receives match, in number, length and round; the marks are true.

use crate::{Collective, Plan, Program, lower};

mod error;
mod expression;
mod form;
mod memory;
mod run;
mod verdict;

pub use error::{CheckError, Fault};

/// Under what a plan is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Input and output are one buffer.
    pub in_place: bool,
    /// Rounds that one lane runs one after the other, at least 1: with other input and output, but
    /// with the same scratch and the same channels.
    pub rounds: u32,
    /// When messages leave.
    pub credits: Credits,
    /// Into how many slices each chunk is cut, at least 1.
    pub slices: u32,
}

/// When a slice leaves its sender's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credits {
    /// When its receive is reached.
    Rendezvous,
    /// When fewer than so many earlier ones of the channel are unconsumed; at least 1.
    Slices(u32),
    /// At once.
    Unlimited,
}

/// What a run that found nothing wrong saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Frames that were sent: slices of messages, and empty messages.
    pub frames: u64,
    /// Steps or actions that were run.
    pub steps: u64,
    /// Stands for the expressions of all results: equal where they are equal.
    pub expressions: u64,
    /// Every result is one fold of the contributions of all ranks, in their order.
    pub is_in_rank_order: bool,
}

/// Checks the plans of all ranks, in the order of the ranks.
///
/// # Errors
/// The first fault that the run comes upon.
///
/// # Panics
/// If there is no plan, or they are not those of ranks `0..plans.len()` with one number of chunks.
pub fn check(
    collective: Collective,
    plans: &[Plan],
    conditions: Conditions,
) -> Result<Report, CheckError> {
    let programs: Vec<Program> = plans.iter().map(form::verbatim).collect();
    let describe = |rank: usize, step: usize| plans[rank].describe(step);
    run::run(collective, &programs, false, conditions, &describe)
}

/// Checks the programs of all ranks, in the order of the ranks.
///
/// An action is taken slice by slice. For each slice it waits for the arrivals, then, where it is
/// guarded, until earlier sends from the bytes that it is about to write have left; sends never
/// wait, but may keep the own span in use until the peer has consumed them.
///
/// # Errors
/// The first fault that the run comes upon.
///
/// # Panics
/// As [`check`].
pub fn check_programs(
    collective: Collective,
    programs: &[Program],
    conditions: Conditions,
) -> Result<Report, CheckError> {
    let describe = |rank: usize, action: usize| programs[rank].describe(action);
    run::run(collective, programs, true, conditions, &describe)
}

/// Checks the plans of all ranks, and what they are lowered to, under every combination of
/// conditions: in place and out of place; rendezvous, 1 and 4 slices of credit and unlimited;
/// actions with 1 and 2 slices a chunk; always over two rounds. Returns what one run of the plans
/// saw.
///
/// # Errors
/// The first fault of any run.
///
/// # Panics
/// As [`check`]; or if lowering changed the expression of a result.
pub fn prove(collective: Collective, plans: &[Plan]) -> Result<Report, CheckError> {
    let report =
        under_all_conditions(collective, 1, |conditions| check(collective, plans, conditions))?;
    let programs: Vec<Program> = plans.iter().map(lower).collect();
    let lowered = prove_programs(collective, &programs)?;
    assert_eq!(lowered.expressions, report.expressions, "lowering changed a result");
    Ok(report)
}

/// As [`prove`], of programs alone.
///
/// # Errors
/// The first fault of any run.
///
/// # Panics
/// As [`check`].
pub fn prove_programs(collective: Collective, programs: &[Program]) -> Result<Report, CheckError> {
    let run = |conditions| check_programs(collective, programs, conditions);
    under_all_conditions(collective, 2, run)?;
    under_all_conditions(collective, 1, run)
}

/// Runs with every kind of credit, out of place, and in place where the collective can be. Returns what the last run saw.
fn under_all_conditions(
    collective: Collective,
    slices: u32,
    run: impl Fn(Conditions) -> Result<Report, CheckError>,
) -> Result<Report, CheckError> {
    let with = |in_place, credits| run(Conditions { in_place, rounds: 2, credits, slices });
    for credits in [Credits::Rendezvous, Credits::Slices(1), Credits::Slices(4)] {
        with(false, credits)?;
        if collective.can_be_in_place() {
            with(true, credits)?;
        }
    }
    if collective.can_be_in_place() {
        with(true, Credits::Unlimited)?;
    }
    with(false, Credits::Unlimited)
}
