//! Where founders are: the control service, or a process that took over. Does with connections what
//! `control/regroups.rs` does, which is no pure code.

use std::collections::{BTreeMap, BTreeSet};

use super::super::founder::{Effect, Founder};
use super::super::messages::{Ballot, Member, Roster, ToFounder, ToVoter};
use super::Fault;

/// As in `regroups.rs`.
const REMEMBER_MS: u64 = 60_000;

pub(super) struct Host {
    pub(super) lives: bool,
    pub(super) now_ms: u64,
    fault: Option<Fault>,
    next_founder: u64,
    /// The last epoch of which somebody has stood here.
    latest: u64,
    epochs: BTreeMap<u64, Epoch>,
    guests: BTreeMap<u64, Guest>,
    /// Newcomers and their connections, in the order in which they came.
    waiting: Vec<(Member, u64)>,
    /// Communicators that do not come about.
    pub(super) abandoned: BTreeSet<String>,
    /// What is to be done about connections.
    outbox: Vec<(u64, Out)>,
}

/// Something to be done about a connection.
pub(super) enum Out {
    Send(ToVoter),
    HangUp,
}

struct Epoch {
    founder: Founder,
    /// Connection of each member.
    seats: BTreeMap<u64, u64>,
    /// The last ballot that it has told.
    ballot: Option<Ballot>,
    absent: Vec<u64>,
    lost: Vec<u64>,
    unused_since_ms: Option<u64>,
}

struct Guest {
    member: u64,
    /// A newcomer's is not known before it is let in.
    epoch: Option<u64>,
}

impl Host {
    /// Its founders have numbers from `number` on.
    pub(super) fn new(number: u64, fault: Option<Fault>) -> Host {
        Host {
            lives: true,
            now_ms: 0,
            fault,
            next_founder: number,
            latest: 0,
            epochs: BTreeMap::new(),
            guests: BTreeMap::new(),
            waiting: Vec::new(),
            abandoned: BTreeSet::new(),
            outbox: Vec::new(),
        }
    }

    /// What came of the calls since the last time.
    pub(super) fn take_outbox(&mut self) -> Vec<(u64, Out)> {
        std::mem::take(&mut self.outbox)
    }

    pub(super) fn connect(&mut self, connection: u64, member: u64, epoch: Option<u64>) {
        self.guests.insert(connection, Guest { member, epoch });
    }

    pub(super) fn knock(&mut self, connection: u64, newcomer: Member) {
        self.waiting.push((newcomer, connection));
    }

    /// A message arrives, when the service knows by itself that these processes have ended.
    pub(super) fn hear(&mut self, connection: u64, message: ToFounder, ended: &[u64]) {
        let Some(guest) = self.guests.get(&connection) else { return };
        let Some(epoch) = guest.epoch else { return };
        let (member, now_ms) = (guest.member, self.now_ms);
        let ToFounder::Arrive { arrival } = &message else {
            let message = self.distorted(epoch, message);
            return self.with(epoch, |founder| founder.handle(now_ms, member, message));
        };
        if !self.seat(connection, member, &arrival.roster) {
            return;
        }
        self.with(epoch, |founder| founder.handle(now_ms, member, message));
        let before = epoch.checked_sub(1).and_then(|before| self.epochs.get(&before));
        let lost = before.into_iter().flat_map(|it| it.lost.iter().chain(&it.absent));
        let gone: Vec<u64> = lost.copied().collect();
        self.with(epoch, |founder| founder.miss(now_ms, ended, &gone));
    }

    /// Gives whoever arrives a seat, unless its epoch is over and forgotten.
    fn seat(&mut self, connection: u64, member: u64, roster: &Roster) -> bool {
        let now_ms = self.now_ms;
        for epoch in self.epochs.range(..roster.epoch).map(|(epoch, _)| *epoch).collect::<Vec<_>>()
        {
            self.with(epoch, |founder| founder.learn(now_ms, member, roster));
        }
        if self.latest > roster.epoch && !self.epochs.contains_key(&roster.epoch) {
            let reason = "late".to_owned();
            self.outbox.push((connection, Out::Send(ToVoter::LeftOut { reason })));
            return false;
        }
        let (next, fault) = (&mut self.next_founder, self.fault);
        let entry = self.epochs.entry(roster.epoch).or_insert_with(|| {
            *next += 1;
            let mut roster = roster.clone();
            if fault == Some(Fault::HalfIsEnough) {
                roster.members.sort_by_key(|known| known.id != member);
            }
            Epoch {
                founder: Founder::new(*next, "c".into(), &roster),
                seats: BTreeMap::new(),
                ballot: None,
                absent: Vec::new(),
                lost: Vec::new(),
                unused_since_ms: None,
            }
        });
        entry.seats.insert(member, connection);
        entry.unused_since_ms = None;
        true
    }

    /// What a founder that has the fault hears of what is said.
    fn distorted(&self, epoch: u64, mut message: ToFounder) -> ToFounder {
        let told = self.epochs.get(&epoch).and_then(|entry| entry.ballot);
        match (self.fault, &mut message) {
            (Some(Fault::IgnoresAccepted), ToFounder::Promise { accepted, .. }) => *accepted = None,
            (Some(Fault::TakesOldest), ToFounder::Promise { accepted: Some(accepted), .. }) => {
                accepted.ballot.round = u32::MAX - accepted.ballot.round;
            }
            (
                Some(Fault::SharesBallots),
                ToFounder::Promise { ballot, .. } | ToFounder::Accept { ballot },
            ) => *ballot = told.unwrap_or(*ballot),
            _ => {}
        }
        message
    }

    /// The service hears that processes have ended.
    pub(super) fn miss(&mut self, ended: &[u64]) {
        let now_ms = self.now_ms;
        for epoch in self.epochs.keys().copied().collect::<Vec<_>>() {
            self.with(epoch, |founder| founder.miss(now_ms, ended, &[]));
        }
    }

    /// A connection has ended.
    pub(super) fn lose(&mut self, connection: u64) {
        let now_ms = self.now_ms;
        let Some(guest) = self.guests.remove(&connection) else { return };
        let waited = self.waiting.len();
        self.waiting.retain(|(_, waiting)| *waiting != connection);
        if self.waiting.len() < waited {
            for epoch in self.epochs.keys().copied().collect::<Vec<_>>() {
                self.with(epoch, |founder| founder.lost_newcomer(now_ms, guest.member));
            }
        }
        let (Some(epoch), member) = (guest.epoch, guest.member) else { return };
        let is_seat = |it: &&mut Epoch| it.seats.get(&member) == Some(&connection);
        let Some(entry) = self.epochs.get_mut(&epoch).filter(is_seat) else { return };
        entry.seats.remove(&member);
        entry.unused_since_ms = entry.seats.is_empty().then_some(now_ms);
        let is_lost = !entry.founder.has_stood(member);
        if is_lost {
            entry.lost.push(member);
        }
        self.with(epoch, |founder| founder.lost(now_ms, member));
        if is_lost {
            self.with(epoch + 1, |founder| founder.miss(now_ms, &[], &[member]));
        }
    }

    /// A member has become a rank of this epoch's communicator.
    pub(super) fn note_epoch(&mut self, epoch: u64) {
        self.latest = self.latest.max(epoch);
    }

    pub(super) fn pass_time(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        for epoch in self.epochs.keys().copied().collect::<Vec<_>>() {
            let entry = &self.epochs[&epoch];
            if entry.founder.next_timeout_ms().is_some_and(|at_ms| at_ms <= now_ms) {
                self.with(epoch, |founder| founder.handle_timeout(now_ms));
            }
        }
        let is_over = |since_ms: u64| since_ms + REMEMBER_MS <= now_ms;
        self.epochs.retain(|_, entry| !entry.unused_since_ms.is_some_and(is_over));
    }

    fn with(&mut self, epoch: u64, action: impl FnOnce(&mut Founder) -> Vec<Effect>) {
        let Some(entry) = self.epochs.get_mut(&epoch) else { return };
        entry.founder.newcomers = self.waiting.iter().map(|(member, _)| member.clone()).collect();
        for effect in action(&mut entry.founder) {
            match effect {
                Effect::Send { to, message } => self.send(epoch, to, message),
                Effect::HangUp { to } => {
                    let seat = self.epochs.get(&epoch).and_then(|entry| entry.seats.get(&to));
                    self.outbox.extend(seat.map(|connection| (*connection, Out::HangUp)));
                }
                Effect::Abandon { roster, absent } => self.abandon(epoch, roster, absent),
            }
        }
    }

    fn send(&mut self, epoch: u64, to: u64, mut message: ToVoter) {
        let Some(connection) = self.connection_of(epoch, to, &message) else { return };
        if let (ToVoter::Prepare { ballot } | ToVoter::Propose { ballot, .. }, Some(entry)) =
            (&mut message, self.epochs.get_mut(&epoch))
        {
            entry.ballot = Some(*ballot);
            if self.fault == Some(Fault::SharesBallots) {
                *ballot = Ballot { round: 1, founder: 0 };
            }
        }
        if let ToVoter::Propose { roster, .. } = &mut message
            && self.fault == Some(Fault::ProposesTwo)
            && to % 2 == 1
        {
            roster.members.reverse();
        }
        let made_up = match (self.fault, &message) {
            (Some(Fault::AsksNobody), ToVoter::Propose { ballot, .. }) => {
                vec![(to, ToFounder::Accept { ballot: *ballot })]
            }
            (Some(Fault::TellsNewcomers), ToVoter::Decided { roster }) => {
                roster.members.iter().map(|member| (member.id, ToFounder::Heard {})).collect()
            }
            _ => Vec::new(),
        };
        self.outbox.push((connection, Out::Send(message)));
        for (from, message) in made_up {
            let now_ms = self.now_ms;
            self.with(epoch, |founder| founder.handle(now_ms, from, message));
        }
    }

    /// A newcomer has a seat in the epoch that lets it in.
    fn connection_of(&mut self, epoch: u64, to: u64, message: &ToVoter) -> Option<u64> {
        let seats = &mut self.epochs.get_mut(&epoch)?.seats;
        if let Some(connection) = seats.get(&to) {
            return Some(*connection);
        }
        let at = self.waiting.iter().position(|(newcomer, _)| newcomer.id == to)?;
        if !matches!(message, ToVoter::Decided { .. }) {
            return None;
        }
        let (_, connection) = self.waiting.remove(at);
        seats.insert(to, connection);
        self.guests.get_mut(&connection)?.epoch = Some(epoch);
        Some(connection)
    }

    fn abandon(&mut self, epoch: u64, roster: Roster, absent: Vec<u64>) {
        self.abandoned.insert(roster.name);
        if let Some(entry) = self.epochs.get_mut(&epoch) {
            entry.absent = absent;
        }
    }
}
