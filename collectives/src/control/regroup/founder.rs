//! Leads one epoch's decision: the proposer of Paxos, and whoever looks after those that then make the new
//! communicator.

use std::collections::{BTreeMap, BTreeSet};

use super::may_decide;
use super::messages::{Accepted, Arrival, Ballot, Member, Progress, Roster, ToFounder, ToVoter};

/// How long a member that is here may take to answer: its process does not run, if it takes longer.
const ANSWER_MS: u64 = 3_000;

/// Once everybody is here or gone and that is not enough: so long somebody may still find out that those who are
/// gone have ended.
const CERTAINTY_MS: u64 = 1_500;

/// Decides one epoch, if it can. Times are milliseconds of any clock that never goes back.
#[derive(Debug)]
pub(in crate::control) struct Founder {
    /// See [`Ballot::founder`].
    id: u64,
    lineage: String,
    epoch: u64,
    /// The members that decide, by rank.
    members: Vec<Member>,
    here: BTreeMap<u64, Arrival>,
    ended: BTreeSet<u64>,
    gone: BTreeSet<u64>,
    /// Who wants to come in.
    pub(in crate::control) newcomers: Vec<Member>,
    phase: Phase,
    /// The highest round that was begun here.
    round: u32,
    /// Until then those that are missing are waited for.
    until_ms: u64,
    /// Since when nobody else is to be expected.
    accounted_ms: Option<u64>,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) enum Effect {
    /// Tell a member or a newcomer.
    Send { to: u64, message: ToVoter },
    /// Close the connection of a member that does not answer.
    HangUp { to: u64 },
    /// These do not come to the new communicator: whoever waits for them there shall hear of it.
    Abandon { roster: Roster, absent: Vec<u64> },
}

#[derive(Debug)]
enum Phase {
    /// Waits for members.
    Gathering,
    /// Has asked those that are here for promises.
    Preparing { ballot: Ballot, promises: BTreeMap<u64, Option<Accepted>>, until_ms: u64 },
    /// Has proposed.
    Proposing { ballot: Ballot, roster: Roster, accepts: BTreeSet<u64>, until_ms: u64 },
    /// The next epoch's members make their communicator.
    Decided(Decision),
}

#[derive(Debug)]
struct Decision {
    roster: Roster,
    /// Members that know of it.
    heard: BTreeSet<u64>,
    /// Newcomers that are yet to hear of it: see [`Founder::let_in`].
    untold: BTreeSet<u64>,
    /// Those that are ranks of the new communicator.
    standing: BTreeSet<u64>,
    until_ms: u64,
    is_abandoned: bool,
}

impl Founder {
    /// For the epoch that the first arrival is of.
    pub(in crate::control) fn new(id: u64, lineage: String, roster: &Roster) -> Founder {
        Founder {
            id,
            lineage,
            epoch: roster.epoch,
            members: roster.members.clone(),
            here: BTreeMap::new(),
            ended: BTreeSet::new(),
            gone: BTreeSet::new(),
            newcomers: Vec::new(),
            phase: Phase::Gathering,
            round: 0,
            until_ms: 0,
            accounted_ms: None,
        }
    }

    /// A member came.
    pub(in crate::control) fn arrive(
        &mut self,
        now_ms: u64,
        member: u64,
        arrival: Arrival,
    ) -> Vec<Effect> {
        if !self.members.iter().any(|known| known.id == member) {
            let reason = format!("it is no member of epoch {}", self.epoch);
            return vec![send(member, ToVoter::LeftOut { reason })];
        }
        if self.here.is_empty() {
            self.until_ms = now_ms + arrival.patience_ms;
            self.accounted_ms = None;
        }
        self.ended.extend(&arrival.ended);
        self.gone.extend(&arrival.gone);
        // Those that others have given up may come nevertheless. Who has ended has: what it said before comes late.
        self.gone.remove(&member);
        self.here.insert(member, arrival);
        let told = match &self.phase {
            Phase::Preparing { ballot, .. } => {
                Some(send(member, ToVoter::Prepare { ballot: *ballot }))
            }
            Phase::Proposing { ballot, roster, .. } => {
                let (ballot, roster) = (*ballot, roster.clone());
                Some(send(member, ToVoter::Propose { ballot, roster }))
            }
            Phase::Decided(decision) => Some(self.verdict_for(member, &decision.roster)),
            Phase::Gathering => None,
        };
        told.into_iter().chain(self.advance(now_ms)).collect()
    }

    /// A member of the next epoch, or of a later one, has come for that one's decision.
    pub(in crate::control) fn learn(
        &mut self,
        now_ms: u64,
        from: u64,
        roster: &Roster,
    ) -> Vec<Effect> {
        if roster.epoch <= self.epoch {
            return Vec::new();
        }
        if matches!(self.phase, Phase::Decided(_)) {
            // Unless it stood, it could not make the communicator: the others need not wait for it.
            return self.abandon(from);
        }
        // The epoch was decided elsewhere.
        let mut effects = self.decide(now_ms, roster.clone());
        // They are beyond it already.
        if let Phase::Decided(decision) = &mut self.phase
            && !std::mem::replace(&mut decision.is_abandoned, true)
        {
            effects.push(Effect::Abandon { roster: roster.clone(), absent: Vec::new() });
        }
        effects
    }

    /// A member that is here said something.
    pub(in crate::control) fn handle(
        &mut self,
        now_ms: u64,
        from: u64,
        message: ToFounder,
    ) -> Vec<Effect> {
        match (message, &mut self.phase) {
            (ToFounder::Arrive { arrival }, _) => return self.arrive(now_ms, from, *arrival),
            (ToFounder::Missed { ended, gone }, _) => {
                return self.miss(now_ms, &ended, &gone);
            }
            (
                ToFounder::Promise { ballot: promised, accepted },
                Phase::Preparing { ballot, promises, .. },
            ) if promised == *ballot => {
                promises.insert(from, accepted);
            }
            (ToFounder::Accept { ballot: accepted }, Phase::Proposing { ballot, accepts, .. })
                if accepted == *ballot =>
            {
                accepts.insert(from);
            }
            (ToFounder::Heard {}, Phase::Decided(decision)) => {
                decision.heard.insert(from);
            }
            (ToFounder::Standing {}, Phase::Decided(decision)) => {
                decision.standing.insert(from);
            }
            // Of a ballot that is over.
            _ => {}
        }
        self.advance(now_ms)
    }

    /// These have ended, or are not to be waited for.
    pub(in crate::control) fn miss(
        &mut self,
        now_ms: u64,
        ended: &[u64],
        gone: &[u64],
    ) -> Vec<Effect> {
        let here = &self.here;
        self.ended.extend(ended);
        self.gone.extend(gone.iter().filter(|id| !here.contains_key(id)));
        self.advance(now_ms)
    }

    /// The connection of a member or a newcomer is gone.
    pub(in crate::control) fn lost(&mut self, now_ms: u64, id: u64) -> Vec<Effect> {
        self.here.remove(&id);
        self.gone.insert(id);
        let abandoned = self.abandon(id);
        if abandoned.is_empty() { self.advance(now_ms) } else { abandoned }
    }

    /// The new communicator does not come about if it needs this one, which does not come.
    fn abandon(&mut self, absent: u64) -> Vec<Effect> {
        let Phase::Decided(decision) = &mut self.phase else { return Vec::new() };
        let is_needed = decision.roster.members.iter().any(|member| member.id == absent);
        if decision.is_abandoned || decision.standing.contains(&absent) || !is_needed {
            return Vec::new();
        }
        decision.is_abandoned = true;
        vec![Effect::Abandon { roster: decision.roster.clone(), absent: vec![absent] }]
    }

    /// The connection of somebody is gone that waited to be let in.
    pub(in crate::control) fn lost_newcomer(&mut self, now_ms: u64, id: u64) -> Vec<Effect> {
        let Phase::Decided(decision) = &mut self.phase else { return Vec::new() };
        if decision.untold.remove(&id) { self.lost(now_ms, id) } else { Vec::new() }
    }

    /// The time that [`Founder::next_timeout_ms`] named has come.
    pub(in crate::control) fn handle_timeout(&mut self, now_ms: u64) -> Vec<Effect> {
        let silent: Vec<u64> = match &self.phase {
            Phase::Preparing { promises, until_ms, .. } if *until_ms <= now_ms => {
                self.here.keys().filter(|id| !promises.contains_key(id)).copied().collect()
            }
            Phase::Proposing { accepts, until_ms, .. } if *until_ms <= now_ms => {
                self.here.keys().filter(|id| !accepts.contains(id)).copied().collect()
            }
            Phase::Decided(decision) if decision.due_ms().is_some_and(|at_ms| at_ms <= now_ms) => {
                let ids = decision.roster.members.iter().map(|member| member.id);
                ids.filter(|id| !decision.standing.contains(id)).collect()
            }
            _ => return self.advance(now_ms),
        };
        let mut effects = Vec::new();
        for id in silent {
            effects.push(Effect::HangUp { to: id });
            effects.extend(self.lost(now_ms, id));
        }
        effects
    }

    /// When to call [`Founder::handle_timeout`].
    pub(in crate::control) fn next_timeout_ms(&self) -> Option<u64> {
        match &self.phase {
            Phase::Gathering if self.here.is_empty() => None,
            Phase::Gathering => {
                let certain_ms = self.accounted_ms.map(|since_ms| since_ms + CERTAINTY_MS);
                Some(certain_ms.map_or(self.until_ms, |at_ms| at_ms.min(self.until_ms)))
            }
            Phase::Preparing { until_ms, .. } | Phase::Proposing { until_ms, .. } => {
                Some(*until_ms)
            }
            Phase::Decided(decision) => decision.due_ms(),
        }
    }

    /// The new communicator will not come about as it was decided; `None` while it may.
    pub(in crate::control) fn abandoned(&self) -> Option<&Roster> {
        match &self.phase {
            Phase::Decided(decision) if decision.is_abandoned => Some(&decision.roster),
            _ => None,
        }
    }

    /// Whether a member has become a rank of the new communicator.
    pub(in crate::control) fn has_stood(&self, id: u64) -> bool {
        matches!(&self.phase, Phase::Decided(decision) if decision.standing.contains(&id))
    }

    /// Goes on as far as what is known allows.
    fn advance(&mut self, now_ms: u64) -> Vec<Effect> {
        match &self.phase {
            Phase::Gathering => self.gather(now_ms),
            Phase::Preparing { ballot, promises, .. } => {
                if !self.is_enough(|id| self.here.contains_key(&id)) {
                    self.phase = Phase::Gathering;
                    return self.gather(now_ms);
                }
                let all_have = self.here.keys().all(|id| promises.contains_key(id));
                if !all_have || !self.is_enough(|id| promises.contains_key(&id)) {
                    return Vec::new();
                }
                let newest = promises.values().flatten().max_by_key(|accepted| accepted.ballot);
                let roster = match newest {
                    Some(accepted) => accepted.roster.clone(),
                    None => self.next_roster(*ballot),
                };
                self.propose(now_ms, *ballot, roster)
            }
            Phase::Proposing { roster, accepts, .. } => {
                if self.is_enough(|id| accepts.contains(&id)) {
                    let roster = roster.clone();
                    return self.decide(now_ms, roster);
                }
                let may_still = |id: u64| accepts.contains(&id) || self.here.contains_key(&id);
                if !self.is_enough(may_still) {
                    self.phase = Phase::Gathering;
                    return self.gather(now_ms);
                }
                Vec::new()
            }
            Phase::Decided(_) => self.let_in(),
        }
    }

    fn gather(&mut self, now_ms: u64) -> Vec<Effect> {
        if self.here.is_empty() {
            return Vec::new();
        }
        let is_expected = |member: &&Member| {
            let id = &member.id;
            !(self.here.contains_key(id) || self.ended.contains(id) || self.gone.contains(id))
        };
        let is_awaited = self.members.iter().any(|member| is_expected(&member));
        if is_awaited && now_ms < self.until_ms {
            self.accounted_ms = None;
            return Vec::new();
        }
        if self.is_enough(|id| self.here.contains_key(&id)) {
            return self.prepare(now_ms);
        }
        let since_ms = *self.accounted_ms.get_or_insert(now_ms);
        if now_ms < self.until_ms && now_ms < since_ms + CERTAINTY_MS {
            return Vec::new();
        }
        let reason = self.why_not();
        let here = std::mem::take(&mut self.here);
        let tell = |id| send(id, ToVoter::NoQuorum { reason: reason.clone() });
        here.into_keys().map(tell).collect()
    }

    fn prepare(&mut self, now_ms: u64) -> Vec<Effect> {
        let known = self.here.values().filter_map(|arrival| {
            arrival.promised.max(arrival.accepted.as_ref().map(|accepted| accepted.ballot))
        });
        let round = known.map(|ballot| ballot.round).max().unwrap_or(0).max(self.round) + 1;
        self.round = round;
        let ballot = Ballot { round, founder: self.id };
        let until_ms = now_ms + ANSWER_MS;
        self.phase = Phase::Preparing { ballot, promises: BTreeMap::new(), until_ms };
        self.here.keys().map(|id| send(*id, ToVoter::Prepare { ballot })).collect()
    }

    /// The survivors in the order of their ranks, and behind them the newcomers in the order in which they came, if
    /// nobody of the old ones who may live is left behind.
    fn next_roster(&self, ballot: Ballot) -> Roster {
        let without: BTreeSet<u64> = self.left_out().collect();
        let goes_on =
            |member: &&Member| self.here.contains_key(&member.id) && !without.contains(&member.id);
        let mut members: Vec<Member> = self.members.iter().filter(goes_on).cloned().collect();
        let may_live =
            self.members.iter().filter(|member| !self.ended.contains(&member.id)).count();
        let mut newcomers = 0;
        if may_live == members.len() {
            let room = super::MAX_MEMBERS.saturating_sub(members.len());
            let before = members.len();
            members.extend(self.newcomers.iter().take(room).cloned());
            newcomers = (members.len() - before) as u32;
        }
        let progress: Option<Progress> = self.here.values().filter_map(|it| it.progress).min();
        let epoch = self.epoch + 1;
        let Ballot { round, founder } = ballot;
        let name = format!("{}+{epoch}.{round}.{founder:x}", self.lineage);
        Roster { epoch, name, members, newcomers, progress }
    }

    fn propose(&mut self, now_ms: u64, ballot: Ballot, roster: Roster) -> Vec<Effect> {
        let message = ToVoter::Propose { ballot, roster: roster.clone() };
        let until_ms = now_ms + ANSWER_MS;
        self.phase = Phase::Proposing { ballot, roster, accepts: BTreeSet::new(), until_ms };
        self.here.keys().map(|id| send(*id, message.clone())).collect()
    }

    fn decide(&mut self, now_ms: u64, roster: Roster) -> Vec<Effect> {
        let waits = |id: &u64| self.newcomers.iter().any(|newcomer| newcomer.id == *id);
        let ids = roster.members.iter().map(|member| member.id);
        let (reached, absent): (Vec<u64>, Vec<u64>) =
            ids.partition(|id| self.here.contains_key(id) || waits(id));
        let untold = reached.into_iter().filter(|id| !self.here.contains_key(id)).collect();
        let mut effects: Vec<Effect> =
            self.here.keys().map(|id| self.verdict_for(*id, &roster)).collect();
        let is_abandoned = !absent.is_empty();
        if is_abandoned {
            effects.push(Effect::Abandon { roster: roster.clone(), absent });
        }
        let patience_ms = self.here.values().map(|arrival| arrival.patience_ms).max();
        self.phase = Phase::Decided(Decision {
            roster,
            heard: BTreeSet::new(),
            untold,
            standing: BTreeSet::new(),
            until_ms: now_ms + patience_ms.unwrap_or_default(),
            is_abandoned,
        });
        effects.extend(self.let_in());
        effects
    }

    /// Newcomers hear of the decision when every other member has heard of it or has ended. Before, one that has not
    /// heard of it might find all others to have ended, and decide otherwise by itself.
    fn let_in(&mut self) -> Vec<Effect> {
        let Phase::Decided(decision) = &mut self.phase else { return Vec::new() };
        let Decision { roster, heard, untold, .. } = decision;
        let before = roster.members.len().saturating_sub(roster.newcomers as usize);
        let knows = |member: &Member| heard.contains(&member.id) || self.ended.contains(&member.id);
        if !roster.members.iter().take(before).all(knows) {
            return Vec::new();
        }
        let tell = |id| send(id, ToVoter::Decided { roster: roster.clone() });
        std::mem::take(untold).into_iter().map(tell).collect()
    }

    fn verdict_for(&self, id: u64, roster: &Roster) -> Effect {
        if roster.members.iter().any(|member| member.id == id) {
            return send(id, ToVoter::Decided { roster: roster.clone() });
        }
        let is_accused = self.left_out().any(|left_out| left_out == id);
        let reason = if is_accused {
            "the others go on without it, since it cannot reach one of them: see whether the network between \
             the two hosts is up"
        } else {
            "the others went on without it, since it did not come in time"
        };
        send(id, ToVoter::LeftOut { reason: reason.to_owned() })
    }

    /// Those that one who is here cannot reach.
    fn left_out(&self) -> impl Iterator<Item = u64> {
        let without = self.here.values().filter_map(|arrival| arrival.without);
        without.filter(|without| self.here.contains_key(&without.other)).map(|without| without.id)
    }

    fn is_enough(&self, is_here: impl Fn(u64) -> bool) -> bool {
        may_decide(&self.members, is_here, |id| self.ended.contains(&id))
    }

    /// For people.
    fn why_not(&self) -> String {
        let ranks = |which: &dyn Fn(u64) -> bool| {
            let ranks = (0..).zip(&self.members).filter(|(_, member)| which(member.id));
            ranks.map(|(rank, _): (u32, _)| rank.to_string()).collect::<Vec<_>>().join(", ")
        };
        let is_here = |id| self.here.contains_key(&id);
        let may_live = |id| !self.here.contains_key(&id) && !self.ended.contains(&id);
        format!(
            "of {} members only those of rank {} came, and of the others those of rank {} are not known to have \
             ended: they may go on by themselves. More than half of the members can go on, or half with the lowest \
             rank, or all that live; see whether the hosts of the others and the network to them are up",
            self.members.len(),
            ranks(&is_here),
            ranks(&may_live),
        )
    }
}

impl Decision {
    /// When those that have not come are given up.
    fn due_ms(&self) -> Option<u64> {
        let is_awaited = !self.is_abandoned && self.standing.len() < self.roster.members.len();
        is_awaited.then_some(self.until_ms)
    }
}

fn send(to: u64, message: ToVoter) -> Effect {
    Effect::Send { to, message }
}
