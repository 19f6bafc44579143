//! The processes of one simulated job, the connections between them and their founders, and what is asserted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::AddAssign;

use super::super::messages::{Arrival, Member, Progress, Roster, ToFounder, ToVoter, Without};
use super::super::voter::Voter;
use super::Fault;
use super::host::{Host, Out};
use super::trouble::{Event, Theme, Trouble};
use crate::control::testing::Random;

const PATIENCE_MS: u64 = 10_000;

/// A member that has heard nothing for so long asks somebody else.
const ANSWER_LIMIT_MS: u64 = 3 * PATIENCE_MS;

/// After so many steps without trouble everything has ended.
const CALM_STEPS: u64 = 20_000;

const HOSTS: u64 = 5;

/// Newcomers have numbers from here on.
const FIRST_NEWCOMER: u64 = 100;

/// What became of simulations.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// In which somebody has a communicator in the end.
    pub(super) went_on: u64,
    /// In which somebody heard that it may not go on.
    pub(super) no_quorum: u64,
    /// Epochs that came about.
    pub(super) epochs: u64,
    /// In which a newcomer is a rank in the end.
    pub(super) joined: u64,
    /// In which members changed more than once.
    pub(super) met_again: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.went_on += other.went_on;
        self.no_quorum += other.no_quorum;
        self.epochs += other.epochs;
        self.joined += other.joined;
        self.met_again += other.met_again;
    }
}

/// A member, or a newcomer that has no roster yet.
struct Process {
    member: Member,
    lives: bool,
    roster: Option<Roster>,
    progress: Option<Progress>,
    voter: Voter,
    state: State,
    /// When it came to the founder that it is with.
    came_ms: u64,
    /// The connection to the last founder, which it keeps until the next one has decided.
    last: Option<u64>,
    /// Members that it knows to have ended.
    ended: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is with nobody, and will come to a founder.
    Coming,
    /// It is with a founder, by this connection.
    Deciding { connection: u64 },
    /// It has heard the decision, and makes the communicator.
    Meeting { connection: u64 },
    /// It is a rank of its epoch's communicator.
    Standing,
    /// It has given up, or was told to.
    Out,
}

/// Messages keep their order; the end of a connection, `None`, may take the last ones with it.
struct Connection {
    host: usize,
    member: u64,
    up: VecDeque<Option<ToFounder>>,
    down: VecDeque<Option<ToVoter>>,
}

pub(super) struct World {
    random: Random,
    fault: Option<Fault>,
    now_ms: u64,
    processes: BTreeMap<u64, Process>,
    hosts: Vec<Host>,
    /// How long founders wait for those that may still come.
    patience_ms: u64,
    theme: Theme,
    /// How much time passes at once, at most.
    leap_ms: u64,
    /// The host where most go first.
    favourite: usize,
    /// The end of a connection is noticed so many times later than a message.
    end_takes: u64,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    /// All rosters of each epoch that were ever believed, with those who believe them.
    rosters: BTreeMap<u64, Vec<(Roster, BTreeSet<u64>)>>,
    no_quorum: bool,
    /// Nothing bad happens any more.
    is_calm: bool,
}

impl World {
    pub(super) fn new(seed: u64, fault: Option<Fault>) -> World {
        let mut random = Random::new(seed);
        let member = |id| Member { id, process: id, standby: String::new() };
        let theme = [Theme::Any, Theme::Founders, Theme::Changes][random.below(3) as usize];
        let (count, newcomers) = match theme {
            Theme::Any => (1 + random.below(6), random.below(3)),
            Theme::Founders => (3 + random.below(3), 0),
            Theme::Changes => (2 + random.below(3), 1 + random.below(3)),
        };
        let members: Vec<Member> = (0..count).map(member).collect();
        let (name, progress) = ("c".to_owned(), None);
        let first = Roster { epoch: 0, name, members: members.clone(), newcomers: 0, progress };
        let mut processes: BTreeMap<u64, Process> = members
            .into_iter()
            .map(|member| (member.id, Process::new(member, Some(first.clone()))))
            .collect();
        let hurry = theme != Theme::Any || random.below(4) > 0;
        let (patience_ms, leap_ms) = if hurry { (1, 4) } else { (PATIENCE_MS, 2 * PATIENCE_MS) };
        let end_takes = 1 + 15 * random.below(2);
        for id in FIRST_NEWCOMER..FIRST_NEWCOMER + newcomers {
            processes.insert(id, Process::new(member(id), None));
        }
        World {
            random,
            fault,
            now_ms: 0,
            processes,
            hosts: (0..HOSTS).map(|host| Host::new(host << 32, fault)).collect(),
            theme,
            patience_ms,
            leap_ms,
            favourite: 0,
            end_takes,
            connections: BTreeMap::new(),
            next_connection: 0,
            rosters: BTreeMap::new(),
            no_quorum: false,
            is_calm: false,
        }
    }

    /// Lets everything happen that may.
    ///
    /// # Errors
    /// Says what must not be.
    pub(super) fn run(mut self) -> Result<Tally, String> {
        let trouble = Trouble::new(self.theme, &mut self.random);
        for _ in 0..self.random.below(400) {
            match trouble.next(&mut self.random) {
                Event::Kill => self.kill(),
                Event::Cut => self.cut(),
                Event::EndHost => self.end_host(),
                Event::Fail => self.fail(),
                Event::Missing => self.tell_missing(),
                Event::HostLearns => self.host_learns(),
                Event::Time => self.pass_time(),
                Event::Fashion => self.favourite = self.random.below(HOSTS) as usize,
                Event::Come => self.come(),
                Event::Meet => self.meet()?,
                Event::Deliver => self.deliver()?,
            }
        }
        self.is_calm = true;
        (self.patience_ms, self.leap_ms) = (PATIENCE_MS, 2 * PATIENCE_MS);
        for _ in 0..CALM_STEPS {
            if self.has_settled() {
                return self.tally();
            }
            match self.random.below(8) {
                0 => self.fail_for_a_reason(),
                1 | 2 => self.come(),
                3 => self.meet()?,
                _ => self.deliver()?,
            }
        }
        Err("it does not end".to_owned())
    }

    fn tally(&self) -> Result<Tally, String> {
        let standing = self.processes.values().filter(|it| it.lives && it.state == State::Standing);
        let rosters: Vec<&Roster> = standing.filter_map(|it| it.roster.as_ref()).collect();
        if let Some(other) = rosters.iter().find(|roster| **roster != rosters[0]) {
            return Err(format!("there are two jobs: {:#?} and {other:#?}", rosters[0]));
        }
        let latest = rosters.first();
        let has_newcomer =
            latest.is_some_and(|it| it.members.iter().any(|it| it.id >= FIRST_NEWCOMER));
        Ok(Tally {
            went_on: u64::from(latest.is_some()),
            no_quorum: u64::from(self.no_quorum),
            epochs: self.rosters.len() as u64,
            joined: u64::from(has_newcomer),
            met_again: u64::from(self.rosters.len() > 1),
        })
    }

    /// Every living member has its communicator, whose other ranks have it, too, or is out; newcomers may wait.
    fn has_settled(&self) -> bool {
        self.processes.values().all(|process| match process.state {
            State::Out => true,
            State::Standing => !self.must_fail(process),
            _ => !process.lives || process.roster.is_none(),
        })
    }

    /// Whether the communicator of a rank will have a verdict.
    fn must_fail(&self, process: &Process) -> bool {
        let Some(roster) = process.roster.as_ref().filter(|_| process.lives) else { return false };
        let is_lost = |member: &Member| {
            let peer = &self.processes[&member.id];
            let is_beyond = peer.roster.as_ref().is_some_and(|its| its.epoch > roster.epoch);
            !peer.lives || peer.state == State::Out || is_beyond
        };
        process.state == State::Standing && roster.members.iter().any(is_lost)
    }

    fn pick(&mut self, which: impl Fn(&Process) -> bool) -> Option<u64> {
        let of = self.processes.values().filter(|it| it.lives && which(it));
        let ids: Vec<u64> = of.map(|process| process.member.id).collect();
        (!ids.is_empty()).then(|| ids[self.random.below(ids.len() as u64) as usize])
    }

    fn process(&mut self, id: u64) -> &mut Process {
        self.processes.get_mut(&id).expect("an id of a process")
    }

    fn kill(&mut self) {
        let Some(id) = self.pick(|_| true) else { return };
        self.end(id);
        self.dismiss_left_behind();
    }

    /// The process ends, and with it its connections.
    fn end(&mut self, id: u64) {
        let process = self.process(id);
        process.lives = false;
        let last = process.last.take();
        let connections = process.state.connection().into_iter().chain(last);
        connections.for_each(|connection| self.close(connection, true));
    }

    /// A member's end of a connection is closed; what it said last may be lost.
    fn close(&mut self, connection: u64, may_lose: bool) {
        let Some(it) = self.connections.get_mut(&connection) else { return };
        it.down.clear();
        if may_lose {
            it.up.truncate(self.random.below(it.up.len() as u64 + 1) as usize);
        }
        it.up.push_back(None);
    }

    fn cut(&mut self) {
        let is_connected = |it: &Process| it.state.connection().is_some();
        if let Some(id) = self.pick(is_connected) {
            self.cut_off(id);
        }
    }

    fn cut_off(&mut self, id: u64) {
        if let Some(connection) = self.process(id).state.connection() {
            self.close(connection, true);
            self.lose_founder(id, connection);
        }
    }

    fn end_host(&mut self) {
        let living: Vec<usize> = (0..self.hosts.len()).filter(|at| self.hosts[*at].lives).collect();
        if living.len() < 2 {
            return;
        }
        let host = living[self.random.below(living.len() as u64) as usize];
        self.hosts[host].lives = false;
        for connection in self.connections.values_mut().filter(|it| it.host == host) {
            connection.up.clear();
            connection.down.truncate(self.random.below(connection.down.len() as u64 + 1) as usize);
            connection.down.push_back(None);
        }
    }

    /// A communicator ends, or does not come about, for whatever reason.
    fn fail(&mut self) {
        let may_fail = |it: &Process| matches!(it.state, State::Standing | State::Meeting { .. });
        if let Some(id) = self.pick(may_fail) {
            self.fails(id);
        }
    }

    fn fail_for_a_reason(&mut self) {
        let failing = self.processes.values().find(|process| self.must_fail(process));
        if let Some(id) = failing.map(|process| process.member.id) {
            self.fails(id);
        }
    }

    fn fails(&mut self, id: u64) {
        let process = self.process(id);
        if let State::Meeting { connection } = process.state {
            process.last = Some(connection);
        }
        process.state = State::Coming;
    }

    /// Processes that have ended, as far as somebody knows who may not know all.
    fn some_ended(&mut self) -> Vec<u64> {
        let dead: Vec<u64> =
            self.processes.values().filter(|it| !it.lives).map(|it| it.member.id).collect();
        dead.into_iter().filter(|_| self.random.below(2) == 0).collect()
    }

    fn all_ended(&self) -> Vec<u64> {
        self.processes.values().filter(|it| !it.lives).map(|it| it.member.id).collect()
    }

    /// Anybody: who is late lives.
    fn some_gone(&mut self) -> Vec<u64> {
        let all: Vec<u64> = self.processes.keys().copied().collect();
        all.into_iter().filter(|_| self.random.below(6) == 0).collect()
    }

    /// A member that waits for a decision learns more.
    fn tell_missing(&mut self) {
        let waits =
            |it: &Process| it.roster.is_some() && matches!(it.state, State::Deciding { .. });
        let Some(id) = self.pick(waits) else { return };
        let (ended, gone) = (self.some_ended(), self.some_gone());
        let process = self.process(id);
        process.ended.extend(ended);
        let ended = process.ended.iter().copied().collect();
        let connection = process.state.connection();
        if let Some(it) = connection.and_then(|connection| self.connections.get_mut(&connection)) {
            it.up.push_back(Some(ToFounder::Missed { ended, gone }));
        }
    }

    fn host_learns(&mut self) {
        let ended = self.some_ended();
        let host = self.random.below(self.hosts.len() as u64) as usize;
        if self.hosts[host].lives {
            self.hosts[host].miss(&ended);
            self.empty_outbox(host);
        }
    }

    /// A member that is with nobody comes to a host: any of them while there is trouble, then all to the same.
    fn come(&mut self) {
        let Some(id) = self.pick(|it| it.state == State::Coming) else { return };
        let living: Vec<usize> = (0..self.hosts.len()).filter(|at| self.hosts[*at].lives).collect();
        let is_calm = self.is_calm;
        let any = living[self.random.below(living.len() as u64) as usize];
        let goes_with_the_others = self.hosts[self.favourite].lives && self.random.below(4) > 0;
        let host = match is_calm {
            true => living[0],
            false if goes_with_the_others => self.favourite,
            false => any,
        };
        let ended = if is_calm { self.all_ended() } else { self.some_ended() };
        let gone = if is_calm { Vec::new() } else { self.some_gone() };
        let without = (!is_calm && self.random.below(32) == 0)
            .then(|| Without { id: self.random.below(6), other: self.random.below(6) });
        let buried = self.pick(|it| it.member.id != id);
        let connection = self.next_connection;
        self.next_connection += 1;
        let mut up = VecDeque::new();
        let (now_ms, fault, patience_ms) = (self.now_ms, self.fault, self.patience_ms);
        let process = self.process(id);
        process.state = State::Deciding { connection };
        process.came_ms = now_ms;
        process.ended.extend(ended);
        if fault == Some(Fault::ForgetsVotes) {
            process.voter = Voter::default();
        }
        let epoch = process.roster.as_ref().map(|roster| roster.epoch);
        let member = process.member.clone();
        if let Some(roster) = process.roster.clone() {
            let mut ended: Vec<u64> = process.ended.iter().copied().collect();
            ended.extend(buried.filter(|_| fault == Some(Fault::BuriesTheLiving)));
            let arrival = Arrival {
                communicator: 0,
                progress: process.progress,
                promised: process.voter.promised(),
                accepted: process.voter.accepted().cloned(),
                ended,
                gone,
                without: without.filter(|it| it.id != it.other),
                patience_ms,
                roster,
            };
            up.push_back(Some(ToFounder::Arrive { arrival: Box::new(arrival) }));
        }
        self.connections
            .insert(connection, Connection { host, member: id, up, down: VecDeque::new() });
        self.hosts[host].connect(connection, id, epoch);
        if epoch.is_none() {
            self.hosts[host].knock(connection, member);
        }
    }

    /// Whoever makes a communicator has it, or finds that somebody does not come.
    fn meet(&mut self) -> Result<(), String> {
        let Some(id) = self.pick(|it| matches!(it.state, State::Meeting { .. })) else {
            return Ok(());
        };
        let completed = self.random.below(9) as u32;
        let process = self.process(id);
        let State::Meeting { connection } = process.state else { return Ok(()) };
        let Some(roster) = process.roster.clone() else { return Ok(()) };
        let host = self.connections.get(&connection).map(|it| &self.hosts[it.host]);
        let may_come = |host: &Host| host.lives && !host.abandoned.contains(&roster.name);
        let must_fail = !host.is_some_and(may_come);
        if must_fail || !self.is_calm && self.random.below(8) == 0 {
            self.fails(id);
            return Ok(());
        }
        let process = self.process(id);
        process.state = State::Standing;
        process.progress = Some(Progress { epoch: roster.epoch, completed });
        let last = process.last.take();
        last.into_iter().for_each(|last| self.close(last, true));
        if let Some(it) = self.connections.get_mut(&connection) {
            it.up.push_back(Some(ToFounder::Standing {}));
            self.hosts[it.host].note_epoch(roster.epoch);
            self.close(connection, false);
        }
        Ok(())
    }

    fn pass_time(&mut self) {
        self.now_ms += 1 + self.random.below(self.leap_ms);
        for host in (0..self.hosts.len()).filter(|host| self.hosts[*host].lives).collect::<Vec<_>>()
        {
            self.hosts[host].pass_time(self.now_ms);
            self.empty_outbox(host);
        }
        let is_too_late = self.now_ms.saturating_sub(ANSWER_LIMIT_MS);
        let gives_up = |it: &&Process| {
            let is_member = it.lives && it.roster.is_some();
            let waits = matches!(it.state, State::Deciding { .. });
            is_member && waits && it.came_ms < is_too_late
        };
        let of = self.processes.values().filter(gives_up);
        let impatient: Vec<u64> = of.map(|process| process.member.id).collect();
        impatient.into_iter().for_each(|id| self.cut_off(id));
    }

    /// One message, or the end of one connection; where there is none, time passes.
    fn deliver(&mut self) -> Result<(), String> {
        let is_full = |it: &Connection| !(it.up.is_empty() && it.down.is_empty());
        let full: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| is_full(connection))
            .map(|(key, _)| *key)
            .collect();
        if full.is_empty() {
            self.pass_time();
            return Ok(());
        }
        let key = full[self.random.below(full.len() as u64) as usize];
        let goes_up = self.random.below(2) == 0;
        let end_is_due = self.random.below(self.end_takes) == 0;
        let Some(connection) = self.connections.get_mut(&key) else { return Ok(()) };
        if matches!(connection.up.front(), Some(None)) && !end_is_due {
            return Ok(());
        }
        let (host, member) = (connection.host, connection.member);
        if goes_up || connection.down.is_empty() {
            let message = connection.up.pop_front();
            self.host_hears(host, key, message);
            return Ok(());
        }
        match connection.down.pop_front() {
            Some(Some(message)) => self.member_hears(member, key, message),
            Some(None) => {
                self.lose_founder(member, key);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn host_hears(&mut self, host: usize, connection: u64, message: Option<Option<ToFounder>>) {
        if !self.hosts[host].lives {
            return;
        }
        match message {
            None => {}
            Some(Some(message)) => {
                let ended = self.some_ended();
                self.hosts[host].hear(connection, message, &ended);
            }
            Some(None) => {
                self.hosts[host].lose(connection);
                // What the host had said last, or that it hung up, may be on its way yet.
                let is_over = |it: &Connection| it.down.is_empty();
                if self.connections.get(&connection).is_some_and(is_over) {
                    self.connections.remove(&connection);
                }
            }
        }
        self.empty_outbox(host);
    }

    fn empty_outbox(&mut self, host: usize) {
        for (connection, out) in self.hosts[host].take_outbox() {
            let Some(it) = self.connections.get_mut(&connection) else { continue };
            match out {
                // A member that has closed its end hears nothing.
                _ if it.up.back().is_some_and(Option::is_none) => {}
                Out::Send(message) => it.down.push_back(Some(message)),
                Out::HangUp => {
                    it.up.clear();
                    it.up.push_back(None);
                    it.down.push_back(None);
                }
            }
        }
    }

    /// The connection to a founder has ended.
    fn lose_founder(&mut self, id: u64, connection: u64) {
        let process = self.process(id);
        if process.state != (State::Deciding { connection }) || !process.lives {
            return;
        }
        process.state = State::Coming;
        if process.roster.is_none() {
            // Its program ends: whoever comes in its place is another one.
            self.end(id);
        }
    }

    fn member_hears(&mut self, id: u64, connection: u64, message: ToVoter) -> Result<(), String> {
        let gives_up = self.random.below(if self.is_calm { 4 } else { 64 }) == 0;
        let breaks_promises = self.fault == Some(Fault::BreaksPromises);
        let process = self.process(id);
        if process.state != (State::Deciding { connection }) || !process.lives {
            return Ok(());
        }
        let answer = match message {
            ToVoter::Prepare { ballot } => process.voter.prepare(ballot),
            ToVoter::Propose { ballot, roster } => {
                if breaks_promises {
                    process.voter = Voter::default();
                }
                process.voter.propose(ballot, roster)
            }
            ToVoter::LeftOut { .. } | ToVoter::OtherTerms { .. } => {
                process.state = State::Out;
                self.close(connection, true);
                return Ok(());
            }
            ToVoter::NoQuorum { .. } => {
                process.state = if gives_up { State::Out } else { State::Coming };
                self.no_quorum = true;
                self.close(connection, true);
                return Ok(());
            }
            ToVoter::Decided { roster } => {
                if let Some(it) = self.connections.get_mut(&connection) {
                    it.up.push_back(Some(ToFounder::Heard {}));
                }
                return self.decided(id, connection, roster);
            }
        };
        if let (Some(answer), Some(it)) = (answer, self.connections.get_mut(&connection)) {
            it.up.push_back(Some(answer));
        }
        Ok(())
    }

    fn decided(&mut self, id: u64, connection: u64, roster: Roster) -> Result<(), String> {
        let process = self.process(id);
        let is_ahead = |own: Progress| roster.progress.is_none_or(|all| all > own);
        if process.progress.is_some_and(is_ahead) {
            return Err(format!("member {id} has not come as far as all have: {roster:#?}"));
        }
        if !roster.members.contains(&process.member) {
            return Err(format!("member {id} goes on in a roster without it: {roster:#?}"));
        }
        process.voter = Voter::default();
        process.roster = Some(roster.clone());
        process.state = State::Meeting { connection };
        if let Some(last) = process.last.take() {
            self.close(last, true);
        }
        self.believe(id, roster);
        self.dismiss_left_behind();
        self.check()
    }

    fn believe(&mut self, id: u64, roster: Roster) {
        let rosters = self.rosters.entry(roster.epoch).or_default();
        match rosters.iter_mut().find(|(known, _)| *known == roster) {
            Some((_, believers)) => {
                believers.insert(id);
            }
            None => rosters.push((roster, BTreeSet::from([id]))),
        }
    }

    /// What was decided and then forgotten with all who knew it harms nobody.
    fn check(&self) -> Result<(), String> {
        for (epoch, rosters) in &self.rosters {
            let lives = |id: &u64| self.processes[id].lives;
            let is_believed =
                |(_, believers): &&(Roster, BTreeSet<u64>)| believers.iter().any(lives);
            let believed: Vec<_> = rosters.iter().filter(is_believed).collect();
            if believed.len() > 1 {
                return Err(format!("epoch {epoch} is {believed:#?}"));
            }
        }
        Ok(())
    }

    /// Whoever was left behind alive does not come any more once all that left it have ended: newcomers that they let in
    /// may be all that is left of the job, and unknown to it. That is the one case that is not covered.
    fn dismiss_left_behind(&mut self) {
        let may_have_newcomers = self.processes.keys().any(|id| *id >= FIRST_NEWCOMER);
        if self.fault == Some(Fault::ReturnsLate) || !may_have_newcomers {
            return;
        }
        let lives = |member: &Member| self.processes[&member.id].lives;
        let is_left_behind = |process: &&Process| {
            let Some(roster) = &process.roster else { return false };
            let next = self.rosters.get(&(roster.epoch + 1));
            let mut next = next.into_iter().flatten().map(|(next, _)| &next.members);
            next.any(|next| {
                let went_on = roster.members.iter().filter(|member| next.contains(member));
                !next.contains(&process.member) && !went_on.into_iter().any(lives)
            })
        };
        let of = self.processes.values().filter(|it| it.lives && it.state != State::Out);
        let dismissed: Vec<u64> = of.filter(is_left_behind).map(|it| it.member.id).collect();
        for id in dismissed {
            let process = self.process(id);
            let connection = process.state.connection();
            process.state = State::Out;
            if let Some(it) = connection.and_then(|it| self.connections.get_mut(&it)) {
                it.up.clear();
                it.up.push_back(None);
                it.down.clear();
            }
        }
    }
}

impl Process {
    fn new(member: Member, roster: Option<Roster>) -> Process {
        Process {
            member,
            lives: true,
            roster,
            progress: None,
            voter: Voter::default(),
            state: State::Coming,
            came_ms: 0,
            last: None,
            ended: BTreeSet::new(),
        }
    }
}

impl State {
    fn connection(self) -> Option<u64> {
        match self {
            State::Deciding { connection } | State::Meeting { connection } => Some(connection),
            _ => None,
        }
    }
}
