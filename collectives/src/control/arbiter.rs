//! The arbiter of one communicator: from what monitors report to exactly one verdict.
//!
//! It does no I/O and reads no clock, so that tests can drive it through any order of events. What
//! is certain is decided at once (a connection lost without a goodbye, an abort). Everything else
//! begins a *survey*: the arbiter asks every rank which operations it knows, and judges when all
//! have answered or the time for it is over. While somebody complains, surveys are repeated.

use std::collections::{BTreeMap, BTreeSet};

use super::judge::Evidence;
use super::member::{Member, Presence};
use super::recorder::{Entry, Operation};
use super::verdict::{Death, Place, Verdict};
use super::wire::{LinkFailure, ToArbiter, ToMember};

/// From the first complaint to the survey: others usually complain about the same thing.
const GATHER_MS: u64 = 20;
/// A monitor that does not answer for this long does not run. Later surveys do not wait for it, so that what is known
/// of it when a deadline passes is told at once.
const ANSWER_MS: u64 = 500;
/// Between two surveys if somebody complained anew.
const PAUSE_MS: u64 = 100;
/// Between two surveys while old complaints last: a call that does not fit is found within a
/// second.
const REPEAT_MS: u64 = 400;
/// From the failure of a link to its verdict: the peer's death explains it better.
const LINK_GRACE_MS: u64 = 100;
/// From the end of a process to its verdict: its goodbye may still be under way.
const GOODBYE_GRACE_MS: u64 = 20;

/// Decides for one communicator. Times are milliseconds of any clock that never goes back.
#[derive(Debug)]
pub struct Arbiter {
    ranks: u32,
    members: BTreeMap<u32, Member>,
    survey: Survey,
    /// Surveys that have begun.
    surveys: u64,
    last_survey_ms: u64,
    verdict: Option<Verdict>,
}

/// Something to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// To this rank.
    pub to: u32,
    /// This.
    pub message: ToMember,
}

/// Why a rank may not join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The ranks do not agree how many they are.
    #[error("rank {rank} says that there are {said} ranks, others say {ranks}")]
    Ranks {
        /// The rank that may not join.
        rank: u32,
        /// What it says.
        said: u32,
        /// What the first one said.
        ranks: u32,
    },
    /// There is no such rank.
    #[error("rank {rank} is not one of {ranks} ranks")]
    Rank {
        /// The rank that may not join.
        rank: u32,
        /// How many there are.
        ranks: u32,
    },
    /// There is one already.
    #[error("rank {rank} has joined already, as {place}")]
    Twice {
        /// The rank.
        rank: u32,
        /// Who it is.
        place: Place,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Survey {
    /// Nobody complains.
    None,
    /// To be begun.
    Due { at_ms: u64 },
    /// These ranks have not answered yet; if `again`, somebody complained meanwhile.
    Running { ends_ms: u64, missing: BTreeSet<u32>, again: bool },
}

impl Arbiter {
    /// For a communicator of so many ranks.
    pub fn new(ranks: u32) -> Arbiter {
        Arbiter {
            ranks,
            members: BTreeMap::new(),
            survey: Survey::None,
            surveys: 0,
            last_survey_ms: 0,
            verdict: None,
        }
    }

    /// A rank joins. If there is a verdict, it is told.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn join(&mut self, rank: u32, ranks: u32, place: Place) -> Result<Vec<Send>, Refusal> {
        if ranks != self.ranks {
            return Err(Refusal::Ranks { rank, said: ranks, ranks: self.ranks });
        }
        if rank >= ranks {
            return Err(Refusal::Rank { rank, ranks });
        }
        if let Some(member) = self.members.get(&rank) {
            return Err(Refusal::Twice { rank, place: member.place.clone() });
        }
        let mut member = Member::new(place);
        // It has nothing to tell yet. Were it asked in a survey that ends soon, it would be taken for one that does not
        // answer.
        member.answered = self.surveys;
        self.members.insert(rank, member);
        Ok(self.verdict_to(rank))
    }

    /// A message came from a rank that has joined.
    pub fn handle(&mut self, now_ms: u64, from: u32, message: ToArbiter) -> Vec<Send> {
        let Some(member) = self.members.get_mut(&from) else { return Vec::new() };
        if let ToArbiter::Goodbye { entries } = message {
            member.leave(entries);
            return self.after_goodbye(now_ms, from);
        }
        if self.verdict.is_some() {
            return match message {
                ToArbiter::Answer { .. } => Vec::new(),
                _ => self.verdict_to(from),
            };
        }
        match message {
            ToArbiter::Stalled { stall } => {
                member.report_stall(self.surveys, stall);
                self.complain(now_ms);
                Vec::new()
            }
            ToArbiter::SuspectMismatch { suspicion } => {
                member.suspicion = Some(suspicion);
                self.complain(now_ms);
                Vec::new()
            }
            ToArbiter::Answer { query, entries } => self.answer(now_ms, from, query, entries),
            ToArbiter::LinkFailed { failure } => self.link_failed(now_ms, from, failure),
            ToArbiter::ProcessEnded { peer } => self.process_ended(now_ms, peer),
            ToArbiter::Abort { reason } => self.decide(Verdict::Aborted { by: from, reason }),
            ToArbiter::Goodbye { .. } => Vec::new(),
        }
    }

    /// The connection of a rank is gone.
    pub fn connection_lost(&mut self, rank: u32) -> Vec<Send> {
        let Some(member) = self.members.get_mut(&rank) else { return Vec::new() };
        if member.presence == Presence::Left {
            return Vec::new();
        }
        member.presence = Presence::Lost;
        let how = match member.ended_at_ms {
            Some(_) => Death::ProcessEnded,
            None => Death::ConnectionLost,
        };
        self.died(rank, how)
    }

    /// The time that [`Arbiter::next_timeout_ms`] named has come.
    pub fn handle_timeout(&mut self, now_ms: u64) -> Vec<Send> {
        if self.verdict.is_some() {
            return Vec::new();
        }
        let ended = |member: &Member| member.ended_at_ms.is_some_and(|at_ms| at_ms <= now_ms);
        if let Some(rank) = self.first(ended) {
            return self.died(rank, Death::ProcessEnded);
        }
        let failed = |member: &Member| member.failure.as_ref().is_some_and(|f| f.0 <= now_ms);
        if let Some((a, failure)) = self.first(failed).and_then(|rank| self.take_failure(rank)) {
            let LinkFailure { peer: b, reason, .. } = failure;
            return self.decide(Verdict::LinkBroken { a, b, reason });
        }
        match &self.survey {
            Survey::Due { at_ms } if *at_ms <= now_ms => self.begin_survey(now_ms),
            Survey::Running { ends_ms, .. } if *ends_ms <= now_ms => self.end_survey(now_ms),
            _ => Vec::new(),
        }
    }

    /// When to call [`Arbiter::handle_timeout`].
    pub fn next_timeout_ms(&self) -> Option<u64> {
        if self.verdict.is_some() {
            return None;
        }
        let survey_ms = match &self.survey {
            Survey::None => None,
            Survey::Due { at_ms } => Some(*at_ms),
            Survey::Running { ends_ms, .. } => Some(*ends_ms),
        };
        let members = self.members.values().flat_map(|member| {
            [member.ended_at_ms, member.failure.as_ref().map(|failure| failure.0)]
        });
        members.chain([survey_ms]).flatten().min()
    }

    /// A rank will not join any more.
    pub fn never_joins(&mut self, rank: u32) -> Vec<Send> {
        match self.members.get(&rank) {
            Some(member) if member.presence == Presence::Joined => Vec::new(),
            _ => self.died(rank, Death::ConnectionLost),
        }
    }

    /// A process has ended that has this number at a place.
    pub fn process_ended_at(&mut self, now_ms: u64, at: &Place, pid: u32) -> Vec<Send> {
        let ranks = self.ranks_at(|place| place.counts_as(at) && place.pid == pid);
        ranks.into_iter().flat_map(|rank| self.process_ended(now_ms, rank)).collect()
    }

    /// Ranks whose connection was lost.
    pub(super) fn lost_ranks(&self) -> Vec<u32> {
        let is_lost = |(_, member): &(&u32, &Member)| member.presence == Presence::Lost;
        self.members.iter().filter(is_lost).map(|(rank, _)| *rank).collect()
    }

    /// Ranks that run, or ran, at a place.
    pub(super) fn ranks_at(&self, is_there: impl Fn(&Place) -> bool) -> Vec<u32> {
        let members = self.members.iter().filter(|(_, member)| is_there(&member.place));
        members.map(|(rank, _)| *rank).collect()
    }

    /// Whether every rank has been here, so that nobody else can come.
    pub(super) fn is_complete(&self) -> bool {
        self.members.len() == self.ranks as usize
    }

    fn first(&self, which: impl Fn(&Member) -> bool) -> Option<u32> {
        self.members.iter().find(|(_, member)| which(member)).map(|(rank, _)| *rank)
    }

    fn take_failure(&mut self, rank: u32) -> Option<(u32, LinkFailure)> {
        let (_, failure) = self.members.get_mut(&rank)?.failure.take()?;
        Some((rank, failure))
    }

    fn after_goodbye(&mut self, now_ms: u64, rank: u32) -> Vec<Send> {
        if self.verdict.is_some() {
            return Vec::new();
        }
        let needs_it = |member: &Member| member.failure.as_ref().is_some_and(|f| f.1.peer == rank);
        if let Some((by, failure)) = self.first(needs_it).and_then(|by| self.take_failure(by)) {
            return self.decide(Verdict::Left { rank, by, operation: failure.operation });
        }
        if self.members.values().any(Member::complains) {
            self.complain(now_ms);
        }
        self.no_longer_missing(now_ms, rank)
    }

    fn link_failed(&mut self, now_ms: u64, by: u32, failure: LinkFailure) -> Vec<Send> {
        let rank = failure.peer;
        match self.members.get(&rank).map(|peer| peer.presence) {
            Some(Presence::Left) => {
                self.decide(Verdict::Left { rank, by, operation: failure.operation })
            }
            _ => {
                if let Some(member) = self.members.get_mut(&by) {
                    member.failure.get_or_insert((now_ms + LINK_GRACE_MS, failure));
                }
                Vec::new()
            }
        }
    }

    fn process_ended(&mut self, now_ms: u64, peer: u32) -> Vec<Send> {
        match self.members.get_mut(&peer) {
            Some(member) if member.presence == Presence::Joined => {
                member.ended_at_ms.get_or_insert(now_ms + GOODBYE_GRACE_MS);
                Vec::new()
            }
            Some(_) => Vec::new(),
            None => self.died(peer, Death::ProcessEnded),
        }
    }

    fn died(&mut self, rank: u32, how: Death) -> Vec<Send> {
        let member = self.members.get(&rank);
        let place = member.map(|member| member.place.clone());
        let operation =
            member.and_then(Member::last_operation).or_else(|| self.operation_that_needs(rank));
        self.decide(Verdict::Died { rank, place, how, operation })
    }

    /// An operation in which somebody waits for this rank.
    fn operation_that_needs(&self, rank: u32) -> Option<Operation> {
        self.members.values().find_map(|member| {
            let failure = member.failure.as_ref().filter(|failure| failure.1.peer == rank);
            let waits = || member.waits().find(|(_, targets)| targets.contains(&rank));
            failure.and_then(|f| f.1.operation).or_else(|| waits().map(|(operation, _)| operation))
        })
    }

    /// There is reason for a survey.
    fn complain(&mut self, now_ms: u64) {
        let soon_ms = now_ms + GATHER_MS;
        match &mut self.survey {
            Survey::Running { again, .. } => *again = true,
            Survey::Due { at_ms } => {
                *at_ms = (*at_ms).min(soon_ms.max(self.last_survey_ms + PAUSE_MS));
            }
            Survey::None => self.survey = Survey::Due { at_ms: soon_ms },
        }
    }

    fn begin_survey(&mut self, now_ms: u64) -> Vec<Send> {
        self.surveys += 1;
        let joined = self.members.iter_mut().filter(|(_, m)| m.presence == Presence::Joined);
        let (mut missing, mut sends) = (BTreeSet::new(), Vec::new());
        for (&rank, member) in joined {
            // One question at a time, lest they fill the socket of a rank that does not run.
            if member.asked_at_ms.is_none() {
                sends.push(Send { to: rank, message: ToMember::Query { id: self.surveys } });
            }
            let asked_at_ms = *member.asked_at_ms.get_or_insert(now_ms);
            if now_ms < asked_at_ms + ANSWER_MS {
                missing.insert(rank);
            }
        }
        let nobody = missing.is_empty();
        self.survey = Survey::Running { ends_ms: now_ms + ANSWER_MS, missing, again: false };
        if nobody {
            sends.extend(self.end_survey(now_ms));
        }
        sends
    }

    fn answer(&mut self, now_ms: u64, from: u32, query: u64, entries: Vec<Entry>) -> Vec<Send> {
        let Some(member) = self.members.get_mut(&from) else { return Vec::new() };
        if query != self.surveys {
            // It runs again; what it says is about a survey that is over. One that is under way waits for it.
            member.asked_at_ms = None;
            let Survey::Running { ends_ms, missing, .. } = &mut self.survey else {
                return Vec::new();
            };
            member.asked_at_ms = Some(now_ms);
            missing.insert(from);
            *ends_ms = now_ms + ANSWER_MS;
            return vec![Send { to: from, message: ToMember::Query { id: self.surveys } }];
        }
        member.asked_at_ms = None;
        member.answered = query;
        member.update(entries);
        self.no_longer_missing(now_ms, from)
    }

    fn no_longer_missing(&mut self, now_ms: u64, rank: u32) -> Vec<Send> {
        let Survey::Running { missing, .. } = &mut self.survey else { return Vec::new() };
        let was_last = missing.remove(&rank) && missing.is_empty();
        if was_last { self.end_survey(now_ms) } else { Vec::new() }
    }

    fn end_survey(&mut self, now_ms: u64) -> Vec<Send> {
        self.last_survey_ms = now_ms;
        let survey = self.surveys;
        let evidence = Evidence { ranks: self.ranks, members: &self.members, survey };
        if let Some(verdict) = evidence.judge() {
            return self.decide(verdict);
        }
        let again = matches!(self.survey, Survey::Running { again: true, .. });
        self.survey = match again || self.members.values().any(Member::complains) {
            true => {
                let pause_ms = if again { PAUSE_MS } else { REPEAT_MS };
                Survey::Due { at_ms: now_ms + pause_ms }
            }
            false => Survey::None,
        };
        Vec::new()
    }

    /// Only the first decision counts.
    fn decide(&mut self, verdict: Verdict) -> Vec<Send> {
        if self.verdict.is_none() {
            self.verdict = Some(verdict);
            return self.members.keys().flat_map(|rank| self.verdict_to(*rank)).collect();
        }
        Vec::new()
    }

    /// The verdict, if there is one, to a rank, if it is there.
    fn verdict_to(&self, to: u32) -> Vec<Send> {
        let joined = self.members.get(&to).filter(|m| m.presence == Presence::Joined);
        let verdict = self.verdict.clone().filter(|_| joined.is_some());
        verdict
            .map(|verdict| Send { to, message: ToMember::Verdict { verdict } })
            .into_iter()
            .collect()
    }
}

#[cfg(test)]
#[path = "arbiter_tests.rs"]
mod tests;
