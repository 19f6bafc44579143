//! The part of the control service where members agree on the next epoch and newcomers wait to be let in: carries
//! messages to and from the [`Founder`] of each epoch.

use std::collections::HashMap;
use std::sync::Arc;

use ringtree_transport::rendezvous::MemoryStore;
use tracing::debug;

use super::poller::{Connection, Poller};
use super::regroup::{Effect, Founder, MAX_MEMBERS, Member, Roster, ToFounder, ToVoter};

/// How long the decision of an epoch is remembered that nobody asks about any more.
const REMEMBER_MS: u64 = 60_000;

/// Names an epoch of a job.
type EpochName = (String, u64);

/// Everyone who is connected to the service, but not as a rank of a communicator.
pub(super) struct Regroups {
    /// No two founders of this service have the same number, nor those of two services.
    next_founder: u64,
    /// The last epoch that is known of each lineage: who is in an earlier one was left behind.
    latest: HashMap<String, u64>,
    /// Where members meet to make their communicator.
    store: Option<Arc<MemoryStore>>,
    epochs: HashMap<EpochName, Epoch>,
    guests: HashMap<u64, Guest>,
    /// Newcomers that are yet to be let in, in the order in which they came.
    waiting: Vec<Waiting>,
    /// Processes of this host that came as newcomers: they may end before any communicator knows where they are.
    newcomers: Vec<Newcomer>,
}

struct Newcomer {
    id: u64,
    pid: u32,
    has_ended: bool,
}

struct Epoch {
    founder: Founder,
    /// The members, by rank.
    roster: Roster,
    /// Their communicator.
    communicator: u64,
    /// Key of each one's connection, newcomers' included once they are let in.
    seats: HashMap<u64, u64>,
    /// Those of the next one that do not come to it.
    absent: Vec<u64>,
    /// Those whose connection was lost before they were ranks of the next one.
    lost: Vec<u64>,
    unused_since_ms: Option<u64>,
}

struct Guest {
    connection: Connection,
    id: u64,
    /// Whose decision it takes part in; a newcomer's epoch is not known before it is let in.
    lineage: String,
    epoch: Option<u64>,
}

struct Waiting {
    lineage: String,
    member: Member,
    key: u64,
}

/// What the rest of the service is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// These ranks of the communicator of an epoch never come.
    Absent { lineage: String, epoch: u64, ranks: Vec<u32> },
    /// So many newcomers wait.
    Waiting { lineage: String, count: u32 },
}

/// What the service knows of the communicator that members come from.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Ranks whose connection was lost.
    pub lost: Vec<u32>,
    /// Ranks whose process has ended.
    pub ended: Vec<u32>,
}

impl Regroups {
    /// `random` tells its founders from those of other services.
    pub(super) fn new(random: u64) -> Regroups {
        Regroups {
            next_founder: random,
            latest: HashMap::new(),
            store: None,
            epochs: HashMap::new(),
            guests: HashMap::new(),
            waiting: Vec::new(),
            newcomers: Vec::new(),
        }
    }

    /// Members that wait in this store for one that does not come shall hear of it.
    pub(super) fn abandon_in(&mut self, store: Arc<MemoryStore>) {
        self.store = Some(store);
    }

    /// A communicator of this epoch has come about.
    pub(super) fn note_epoch(&mut self, lineage: &str, epoch: u64) {
        // Nobody is left behind before the members have changed, as those of most communicators never do.
        if epoch == 0 {
            return;
        }
        match self.latest.get_mut(lineage) {
            Some(latest) => *latest = epoch.max(*latest),
            None => {
                self.latest.insert(lineage.to_owned(), epoch);
            }
        }
    }

    /// A member's connection; its arrival follows.
    pub(super) fn add_member(
        &mut self,
        key: u64,
        connection: Connection,
        lineage: String,
        epoch: u64,
        id: u64,
    ) {
        self.guests.insert(key, Guest { connection, id, lineage, epoch: Some(epoch) });
    }

    /// A newcomer knocks; with its process's number, if it is of this host.
    pub(super) fn add_newcomer(
        &mut self,
        key: u64,
        connection: Connection,
        lineage: String,
        member: Member,
        pid: Option<u32>,
    ) -> Vec<Outcome> {
        if let Some(pid) = pid {
            self.note_newcomer(member.id, pid);
        }
        let guest = Guest { connection, id: member.id, lineage: lineage.clone(), epoch: None };
        self.guests.insert(key, guest);
        self.waiting.push(Waiting { lineage: lineage.clone(), member, key });
        self.waiting_changed(lineage)
    }

    fn note_newcomer(&mut self, id: u64, pid: u32) {
        // No roster has more members, so that older ones are in none.
        let surplus = (self.newcomers.len() + 1).saturating_sub(MAX_MEMBERS);
        self.newcomers.drain(..surplus);
        self.newcomers.push(Newcomer { id, pid, has_ended: false });
    }

    /// A process of this host is a rank of a communicator: from now on that knows where it is.
    pub(super) fn newcomer_joined(&mut self, pid: u32) {
        self.newcomers.retain(|newcomer| newcomer.pid != pid);
    }

    /// A process of this host has ended.
    pub(super) fn newcomer_ended(&mut self, now_ms: u64, pid: u32) -> Vec<Outcome> {
        let meant = self.newcomers.iter_mut().filter(|it| it.pid == pid && !it.has_ended);
        let ended: Vec<u64> = meant
            .map(|newcomer| {
                newcomer.has_ended = true;
                newcomer.id
            })
            .collect();
        if ended.is_empty() {
            return Vec::new();
        }
        let names: Vec<EpochName> = self.epochs.keys().cloned().collect();
        let tell = |name| self.with(&name, |founder| founder.miss(now_ms, &ended, &[]));
        names.into_iter().flat_map(tell).collect()
    }

    /// How many newcomers wait for a job's communicator.
    pub(super) fn waiting(&self, lineage: &str) -> u32 {
        self.waiting.iter().filter(|waiting| waiting.lineage == lineage).count() as u32
    }

    /// Connections of members, whose work here is not done.
    pub(super) fn members(&self) -> usize {
        self.guests.values().filter(|guest| guest.epoch.is_some()).count()
    }

    pub(super) fn has(&self, key: u64) -> bool {
        self.guests.contains_key(&key)
    }

    /// Everything that has come on a connection. `known` tells what is known of a communicator.
    pub(super) fn read<W>(
        &mut self,
        now_ms: u64,
        key: u64,
        poller: &Poller<W>,
        known: impl Fn(u64) -> Known,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while let Some(guest) = self.guests.get_mut(&key) {
            match guest.connection.receive() {
                Ok(None) => break,
                Ok(Some(message)) => outcomes.extend(self.handle(now_ms, key, message, &known)),
                Err(error) => {
                    debug!("the connection of member {:x} ended: {error}", guest.id);
                    outcomes.extend(self.drop_guest(now_ms, key, poller));
                }
            }
        }
        outcomes
    }

    fn handle(
        &mut self,
        now_ms: u64,
        key: u64,
        message: ToFounder,
        known: impl Fn(u64) -> Known,
    ) -> Vec<Outcome> {
        let Some(guest) = self.guests.get(&key) else { return Vec::new() };
        let Some(epoch) = guest.epoch else { return Vec::new() };
        let (id, name) = (guest.id, (guest.lineage.clone(), epoch));
        let ToFounder::Arrive { arrival } = &message else {
            return self.with(&name, |founder| founder.handle(now_ms, id, message));
        };
        if arrival.roster.epoch != epoch {
            debug!("member {id:x} arrives for another epoch than it has said");
            return Vec::new();
        }
        let (roster, communicator) = (arrival.roster.clone(), arrival.communicator);
        let mut outcomes = self.tell_earlier(now_ms, &name.0, id, &roster);
        let is_over = self.latest.get(&name.0).is_some_and(|latest| *latest > epoch);
        if is_over && !self.epochs.contains_key(&name) {
            let reason =
                "the others have gone on without it, since it did not come in time".to_owned();
            if let Some(guest) = self.guests.get_mut(&key) {
                guest.connection.send(&ToVoter::LeftOut { reason });
            }
            return outcomes;
        }
        let founder = &mut self.next_founder;
        let entry = self.epochs.entry(name.clone()).or_insert_with(|| Epoch {
            founder: {
                *founder = founder.wrapping_add(1);
                Founder::new(*founder, name.0.clone(), &roster)
            },
            roster,
            communicator,
            seats: HashMap::new(),
            absent: Vec::new(),
            lost: Vec::new(),
            unused_since_ms: None,
        });
        entry.seats.insert(id, key);
        entry.unused_since_ms = None;
        let Known { lost, ended } = known(communicator);
        let (mut ended, mut gone) = (entry.ids(&ended), entry.ids(&lost));
        ended.extend(self.newcomers.iter().filter(|it| it.has_ended).map(|it| it.id));
        // Whoever was lost on the way to this epoch, and has not come again.
        let before = epoch.checked_sub(1).and_then(|it| self.epochs.get(&(name.0.clone(), it)));
        gone.extend(before.into_iter().flat_map(|it| it.lost.iter().chain(&it.absent)));
        outcomes.extend(self.with(&name, |founder| {
            let mut effects = founder.handle(now_ms, id, message);
            effects.extend(founder.miss(now_ms, &ended, &gone));
            effects
        }));
        outcomes
    }

    /// Those who are still in an earlier epoch hear of a later one.
    fn tell_earlier(
        &mut self,
        now_ms: u64,
        lineage: &str,
        from: u64,
        roster: &Roster,
    ) -> Vec<Outcome> {
        let is_earlier = |name: &&EpochName| name.0 == lineage && name.1 < roster.epoch;
        let earlier: Vec<EpochName> = self.epochs.keys().filter(is_earlier).cloned().collect();
        let tell = |name| self.with(&name, |founder| founder.learn(now_ms, from, roster));
        earlier.into_iter().flat_map(tell).collect()
    }

    /// Ranks of a communicator are gone.
    pub(super) fn miss(&mut self, now_ms: u64, communicator: u64, known: &Known) -> Vec<Outcome> {
        let of = |(_, epoch): &(&EpochName, &Epoch)| epoch.communicator == communicator;
        let names: Vec<EpochName> =
            self.epochs.iter().filter(of).map(|(name, _)| name.clone()).collect();
        let mut outcomes = Vec::new();
        for name in names {
            let Some(epoch) = self.epochs.get(&name) else { continue };
            let (ended, gone) = (epoch.ids(&known.ended), epoch.ids(&known.lost));
            outcomes.extend(self.with(&name, |it| it.miss(now_ms, &ended, &gone)));
        }
        outcomes
    }

    /// Ranks of an epoch's communicator that never come to it.
    pub(super) fn absent(&self, lineage: &str, epoch: u64) -> Vec<u32> {
        let before = epoch.checked_sub(1).and_then(|it| self.epochs.get(&(lineage.to_owned(), it)));
        let abandoned = before.and_then(|it| Some((it, it.founder.abandoned()?)));
        abandoned
            .filter(|(_, roster)| roster.epoch == epoch)
            .map_or(Vec::new(), |(it, roster)| ranks(roster, &it.absent))
    }

    pub(super) fn handle_timeouts(&mut self, now_ms: u64) -> Vec<Outcome> {
        let is_due =
            |epoch: &Epoch| epoch.founder.next_timeout_ms().is_some_and(|at_ms| at_ms <= now_ms);
        let due = self.epochs.iter().filter(|(_, epoch)| is_due(epoch));
        let due: Vec<EpochName> = due.map(|(name, _)| name.clone()).collect();
        let pass = |name| self.with(&name, |founder| founder.handle_timeout(now_ms));
        let outcomes = due.into_iter().flat_map(pass).collect();
        self.epochs.retain(|_, epoch| epoch.forget_at_ms().is_none_or(|at_ms| at_ms > now_ms));
        outcomes
    }

    pub(super) fn next_timeout_ms(&self) -> Option<u64> {
        let times =
            self.epochs.values().flat_map(|it| [it.founder.next_timeout_ms(), it.forget_at_ms()]);
        times.flatten().min()
    }

    /// Closes a connection.
    pub(super) fn drop_guest<W>(
        &mut self,
        now_ms: u64,
        key: u64,
        poller: &Poller<W>,
    ) -> Vec<Outcome> {
        let Some(guest) = self.guests.remove(&key) else { return Vec::new() };
        // A child that was forked may have kept it open; then closing it would not be enough.
        poller.remove(&guest.connection);
        let waited = self.waiting.len();
        self.waiting.retain(|waiting| waiting.key != key);
        let mut outcomes = Vec::new();
        if self.waiting.len() < waited {
            outcomes.extend(self.waiting_changed(guest.lineage.clone()));
            let names: Vec<EpochName> = self.epochs.keys().cloned().collect();
            for name in names.iter().filter(|name| name.0 == guest.lineage) {
                outcomes.extend(self.with(name, |it| it.lost_newcomer(now_ms, guest.id)));
            }
        }
        let Some(epoch) = guest.epoch else { return outcomes };
        let name = (guest.lineage, epoch);
        // It may have come again by another connection.
        let is_seat = |epoch: &&mut Epoch| epoch.seats.get(&guest.id) == Some(&key);
        let Some(epoch) = self.epochs.get_mut(&name).filter(is_seat) else { return outcomes };
        epoch.seats.remove(&guest.id);
        epoch.unused_since_ms = epoch.seats.is_empty().then_some(now_ms);
        let is_lost = !epoch.founder.has_stood(guest.id);
        if is_lost {
            epoch.lost.push(guest.id);
        }
        outcomes.extend(self.with(&name, |founder| founder.lost(now_ms, guest.id)));
        if is_lost {
            // It keeps this connection until it has come to the next decision, if it still comes.
            let next = (name.0, name.1 + 1);
            outcomes.extend(self.with(&next, |founder| founder.miss(now_ms, &[], &[guest.id])));
        }
        outcomes
    }

    fn waiting_changed(&mut self, lineage: String) -> Vec<Outcome> {
        let count = self.waiting(&lineage);
        vec![Outcome::Waiting { lineage, count }]
    }

    /// Has an epoch's founder do something, and carries out what comes of it.
    fn with(
        &mut self,
        name: &EpochName,
        action: impl FnOnce(&mut Founder) -> Vec<Effect>,
    ) -> Vec<Outcome> {
        let of = self.waiting.iter().filter(|waiting| waiting.lineage == name.0);
        let newcomers = of.map(|waiting| waiting.member.clone()).collect();
        let Some(epoch) = self.epochs.get_mut(name) else { return Vec::new() };
        epoch.founder.newcomers = newcomers;
        let effects = action(&mut epoch.founder);
        let mut outcomes = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send { to, message } => {
                    outcomes.extend(self.send(name, to, &message));
                }
                Effect::HangUp { to } => {
                    // Its end is noticed as any other.
                    let key = self.epochs.get(name).and_then(|it| it.seats.get(&to));
                    if let Some(guest) = key.and_then(|key| self.guests.get_mut(key)) {
                        guest.connection.hang_up();
                    }
                }
                Effect::Abandon { roster, absent } => {
                    outcomes.push(self.abandon(name, &roster, absent));
                }
            }
        }
        outcomes
    }

    fn send(&mut self, name: &EpochName, to: u64, message: &ToVoter) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let Some(epoch) = self.epochs.get_mut(name) else { return outcomes };
        let newcomer = self.waiting.iter().position(|waiting| waiting.member.id == to);
        let is_let_in = matches!(message, ToVoter::Decided { .. });
        let key = match (epoch.seats.get(&to), newcomer) {
            (Some(key), _) => *key,
            (None, Some(at)) if is_let_in => {
                let key = self.waiting.remove(at).key;
                epoch.seats.insert(to, key);
                outcomes.extend(self.waiting_changed(name.0.clone()));
                key
            }
            _ => return outcomes,
        };
        if let Some(guest) = self.guests.get_mut(&key) {
            guest.epoch = Some(name.1);
            guest.connection.send(message);
        }
        outcomes
    }

    fn abandon(&mut self, name: &EpochName, roster: &Roster, absent: Vec<u64>) -> Outcome {
        let ranks = ranks(roster, &absent);
        debug!("ranks {ranks:?} do not come to {}", roster.name);
        if let Some(store) = &self.store {
            store.abandon(&roster.name);
        }
        if let Some(epoch) = self.epochs.get_mut(name) {
            epoch.absent = absent;
        }
        Outcome::Absent { lineage: name.0.clone(), epoch: roster.epoch, ranks }
    }
}

impl Epoch {
    fn ids(&self, ranks: &[u32]) -> Vec<u64> {
        let member = |rank: &u32| self.roster.members.get(*rank as usize);
        ranks.iter().filter_map(member).map(|member| member.id).collect()
    }

    fn forget_at_ms(&self) -> Option<u64> {
        self.unused_since_ms.map(|since_ms| since_ms + REMEMBER_MS)
    }
}

fn ranks(roster: &Roster, ids: &[u64]) -> Vec<u32> {
    let ranks = (0..).zip(&roster.members).filter(|(_, member)| ids.contains(&member.id));
    ranks.map(|(rank, _)| rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_epochs_and_newcomers_leave_nothing_behind() {
        let mut regroups = Regroups::new(0);
        for number in 0..10 * MAX_MEMBERS as u32 {
            // One joins, one ends before it has.
            regroups.note_newcomer(number.into(), 2 * number);
            regroups.newcomer_joined(2 * number);
            regroups.note_newcomer(number.into(), 2 * number + 1);
            regroups.newcomer_ended(0, 2 * number + 1);
            regroups.note_epoch("communicator/1", number.into());
            regroups.note_epoch(&format!("communicator/{number}"), 0);
        }
        assert_eq!(regroups.newcomers.len(), MAX_MEMBERS);
        assert_eq!(regroups.latest.len(), 1);
    }
}
