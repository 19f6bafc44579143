//! Members that die, founders that end, connections that are cut, all at random and replayable from a seed: no two
//! living members ever believe in different rosters of one epoch, and those that may go on do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::founder::{Effect, Founder};
use super::messages::{Arrival, Member, Progress, Roster, ToFounder, ToVoter};
use super::voter::Voter;
use crate::control::testing::Random;

const SEEDS: u64 = 20_000;
const PATIENCE_MS: u64 = 10_000;

#[test]
fn no_epoch_has_two_rosters_and_whoever_may_go_on_does() {
    let mut outcomes = Outcomes::default();
    for seed in 0..SEEDS {
        World::new(seed).run(&mut outcomes);
    }
    // The seeds have been where they should.
    let Outcomes { went_on, no_quorum, epochs, joined } = outcomes;
    assert!(went_on > SEEDS / 4 && no_quorum > SEEDS / 50, "{went_on} {no_quorum}");
    assert!(epochs > SEEDS / 4 && joined > SEEDS / 20, "{epochs} {joined}");
}

#[derive(Debug, Default)]
struct Outcomes {
    went_on: u64,
    no_quorum: u64,
    epochs: u64,
    joined: u64,
}

/// One process: a member, or a newcomer that has no roster yet.
struct Process {
    member: Member,
    lives: bool,
    roster: Option<Roster>,
    voter: Voter,
    /// The host that it is with, and the epoch in which it came there.
    at: Option<(usize, u64)>,
    /// It has got its communicator.
    stands: bool,
    is_told_no: bool,
}

/// Where founders are: the service, or a process that took over.
struct Host {
    lives: bool,
    founders: BTreeMap<u64, Founder>,
    newcomers: Vec<Member>,
    abandoned: BTreeSet<String>,
}

enum Packet {
    ToFounder { host: usize, epoch: u64, from: u64, message: ToFounder },
    ToVoter { host: usize, to: u64, message: ToVoter },
    Lost { host: usize, epoch: u64, id: u64 },
}

struct World {
    seed: u64,
    random: Random,
    now_ms: u64,
    processes: BTreeMap<u64, Process>,
    hosts: Vec<Host>,
    /// In each direction of each connection, messages keep their order.
    wires: BTreeMap<(usize, u64, bool), VecDeque<Packet>>,
    /// All that was ever believed, by epoch, with who believes it.
    rosters: BTreeMap<u64, Vec<(Roster, BTreeSet<u64>)>>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        let count = 1 + random.below(6);
        let member = |id| Member { id, process: id, standby: String::new() };
        let members: Vec<Member> = (0..count).map(member).collect();
        let first = Roster {
            epoch: 0,
            name: "c".into(),
            members: members.clone(),
            newcomers: 0,
            progress: None,
        };
        let process = |member: Member, roster| Process {
            member,
            lives: true,
            roster,
            voter: Voter::default(),
            at: None,
            stands: false,
            is_told_no: false,
        };
        let mut processes: BTreeMap<u64, Process> = members
            .into_iter()
            .map(|member| (member.id, process(member, Some(first.clone()))))
            .collect();
        for id in 100..100 + random.below(3) {
            processes.insert(id, process(member(id), None));
        }
        let host = || Host {
            lives: true,
            founders: BTreeMap::new(),
            newcomers: Vec::new(),
            abandoned: BTreeSet::new(),
        };
        let hosts = (0..3).map(|_| host()).collect();
        let (wires, rosters) = (BTreeMap::new(), BTreeMap::new());
        World { seed, random, now_ms: 0, processes, hosts, wires, rosters }
    }

    fn run(mut self, outcomes: &mut Outcomes) {
        let trouble = self.random.below(120);
        for step in 0..trouble + 3_000 {
            let is_calm = step >= trouble;
            if is_calm && self.settled() {
                break;
            }
            match self.random.below(40) {
                0 if !is_calm => self.kill(),
                1 if !is_calm => self.cut(),
                2 if !is_calm => self.end_host(),
                3..10 => self.come(is_calm),
                10..13 => self.pass_time(),
                _ => self.deliver(),
            }
            self.check();
        }
        assert!(self.settled(), "seed {}: it does not end", self.seed);
        let standing: Vec<&Process> =
            self.processes.values().filter(|process| process.lives && process.stands).collect();
        outcomes.went_on += u64::from(!standing.is_empty());
        outcomes.no_quorum += u64::from(self.processes.values().any(|process| process.is_told_no));
        let latest = standing.iter().filter_map(|process| process.roster.as_ref());
        outcomes.epochs += latest.map(|roster| roster.epoch).max().unwrap_or(0);
        outcomes.joined += u64::from(standing.iter().any(|process| process.member.id >= 100));
    }

    /// Every living member has its communicator or was told that it may not go on; newcomers may wait.
    fn settled(&self) -> bool {
        self.processes.values().all(|process| {
            !process.lives || process.roster.is_none() || process.stands || process.is_told_no
        })
    }

    fn ended(&self) -> Vec<u64> {
        self.processes.values().filter(|it| !it.lives).map(|it| it.member.id).collect()
    }

    fn some_process(&mut self, which: impl Fn(&Process) -> bool) -> Option<u64> {
        let ids: Vec<u64> =
            self.processes.values().filter(|it| which(it)).map(|it| it.member.id).collect();
        (!ids.is_empty()).then(|| ids[self.random.below(ids.len() as u64) as usize])
    }

    fn kill(&mut self) {
        let Some(id) = self.some_process(|process| process.lives) else { return };
        if let Some(process) = self.processes.get_mut(&id) {
            process.lives = false;
        }
        self.leave(id);
    }

    fn cut(&mut self) {
        if let Some(id) = self.some_process(|process| process.lives && process.at.is_some()) {
            self.leave(id);
        }
    }

    /// The connection ends; what the member had said before is still heard, sometimes.
    fn leave(&mut self, id: u64) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some((host, epoch)) = process.at.take() else { return };
        self.wires.remove(&(host, id, false));
        let up = self.wires.entry((host, id, true)).or_default();
        if self.random.below(2) == 0 {
            up.clear();
        }
        up.push_back(Packet::Lost { host, epoch, id });
    }

    fn end_host(&mut self) {
        let living: Vec<usize> = (0..self.hosts.len()).filter(|at| self.hosts[*at].lives).collect();
        if living.len() < 2 {
            return;
        }
        let host = living[self.random.below(living.len() as u64) as usize];
        self.hosts[host].lives = false;
        self.wires.retain(|(at, _, _), _| *at != host);
        for process in self.processes.values_mut() {
            process.at.take_if(|(at, _)| *at == host);
        }
    }

    /// A member that is with nobody comes to a host: any of them while there is trouble, then all to the same.
    fn come(&mut self, is_calm: bool) {
        let comes = |it: &Process| it.lives && it.at.is_none() && !it.stands && !it.is_told_no;
        let Some(id) = self.some_process(comes) else { return };
        let living: Vec<usize> = (0..self.hosts.len()).filter(|at| self.hosts[*at].lives).collect();
        let choice = if is_calm { 0 } else { self.random.below(living.len() as u64) as usize };
        let (host, ended, completed) = (living[choice], self.ended(), self.random.below(9) as u32);
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(roster) = process.roster.clone() else {
            process.at = Some((host, u64::MAX));
            self.hosts[host].newcomers.push(process.member.clone());
            return;
        };
        let epoch = roster.epoch;
        process.at = Some((host, epoch));
        let arrival = Arrival {
            communicator: 0,
            progress: Some(Progress { epoch, completed }),
            promised: process.voter.promised(),
            accepted: process.voter.accepted().cloned(),
            ended,
            gone: vec![],
            without: None,
            patience_ms: PATIENCE_MS,
            roster,
        };
        let message = ToFounder::Arrive { arrival: Box::new(arrival) };
        let packet = Packet::ToFounder { host, epoch, from: id, message };
        self.wires.entry((host, id, true)).or_default().push_back(packet);
    }

    fn pass_time(&mut self) {
        self.now_ms += 1 + self.random.below(PATIENCE_MS);
        for host in 0..self.hosts.len() {
            let epochs: Vec<u64> = self.hosts[host].founders.keys().copied().collect();
            for epoch in epochs {
                let now_ms = self.now_ms;
                let Some(founder) = self.hosts[host].founders.get_mut(&epoch) else { continue };
                if founder.next_timeout_ms().is_some_and(|at_ms| at_ms <= now_ms) {
                    let effects = founder.handle_timeout(now_ms);
                    self.carry_out(host, effects);
                }
            }
        }
    }

    fn deliver(&mut self) {
        let full: Vec<(usize, u64, bool)> =
            self.wires.iter().filter(|(_, wire)| !wire.is_empty()).map(|(key, _)| *key).collect();
        if full.is_empty() {
            return;
        }
        let key = full[self.random.below(full.len() as u64) as usize];
        let Some(packet) = self.wires.get_mut(&key).and_then(VecDeque::pop_front) else { return };
        match packet {
            Packet::ToFounder { host, epoch, from, message } if self.hosts[host].lives => {
                self.founder_hears(host, epoch, from, message);
            }
            Packet::Lost { host, epoch, id } if self.hosts[host].lives => {
                let now_ms = self.now_ms;
                let there = &mut self.hosts[host];
                there.newcomers.retain(|newcomer| newcomer.id != id);
                let mut effects = Vec::new();
                for (of, founder) in &mut there.founders {
                    founder.newcomers = there.newcomers.clone();
                    // A newcomer is of the epoch that lets it in.
                    if *of == epoch || epoch == u64::MAX {
                        effects.extend(founder.lost(now_ms, id));
                    }
                }
                self.carry_out(host, effects);
            }
            Packet::ToVoter { host, to, message } => self.member_hears(host, to, message),
            _ => {}
        }
    }

    fn founder_hears(&mut self, host: usize, epoch: u64, from: u64, message: ToFounder) {
        let now_ms = self.now_ms;
        let there = &mut self.hosts[host];
        let mut effects = Vec::new();
        if let ToFounder::Arrive { arrival } = &message {
            for (_, earlier) in there.founders.range_mut(..epoch) {
                effects.extend(earlier.learn(now_ms, &arrival.roster));
            }
            let new = || Founder::new(host as u64, "c".into(), &arrival.roster);
            there.founders.entry(epoch).or_insert_with(new);
        }
        if let Some(founder) = there.founders.get_mut(&epoch) {
            founder.newcomers = there.newcomers.clone();
            effects.extend(founder.handle(now_ms, from, message));
        }
        self.carry_out(host, effects);
    }

    fn carry_out(&mut self, host: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { to, message } => {
                    let packet = Packet::ToVoter { host, to, message };
                    self.wires.entry((host, to, false)).or_default().push_back(packet);
                }
                Effect::HangUp { to } => {
                    if let Some(process) = self.processes.get_mut(&to) {
                        process.at.take_if(|(at, _)| *at == host);
                        self.wires.remove(&(host, to, false));
                        self.wires.remove(&(host, to, true));
                    }
                }
                Effect::Abandon { roster, .. } => {
                    self.hosts[host].abandoned.insert(roster.name);
                }
            }
        }
    }

    fn member_hears(&mut self, host: usize, id: u64, message: ToVoter) {
        let abandoned = self.hosts[host].abandoned.clone();
        let Some(process) = self.processes.get_mut(&id).filter(|process| process.lives) else {
            return;
        };
        let Some((at, epoch)) = process.at.filter(|(at, _)| *at == host) else { return };
        let answer = match message {
            ToVoter::Prepare { ballot } => process.voter.prepare(ballot),
            ToVoter::Propose { ballot, roster } => process.voter.propose(ballot, roster),
            ToVoter::LeftOut { .. } | ToVoter::NoQuorum { .. } => {
                process.is_told_no = true;
                process.at = None;
                None
            }
            ToVoter::Decided { roster } => {
                self.hosts[host].newcomers.retain(|newcomer| newcomer.id != id);
                process.voter = Voter::default();
                process.roster = Some(roster.clone());
                // It meets the others, or finds that somebody does not come.
                process.stands = !abandoned.contains(&roster.name);
                self.believe(id, roster);
                let Some(process) = self.processes.get_mut(&id) else { return };
                if !process.stands {
                    process.at = None;
                }
                process.stands.then_some(ToFounder::Standing {})
            }
        };
        if let Some(message) = answer {
            // What a newcomer says is for the epoch that let it in.
            let epoch = match (epoch, self.processes[&id].roster.as_ref()) {
                (u64::MAX, Some(roster)) => roster.epoch - 1,
                _ => epoch,
            };
            let packet = Packet::ToFounder { host: at, epoch, from: id, message };
            self.wires.entry((at, id, true)).or_default().push_back(packet);
        }
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
    fn check(&self) {
        for (epoch, rosters) in &self.rosters {
            let lives = |id: &u64| self.processes[id].lives;
            let believed: Vec<&Roster> = rosters
                .iter()
                .filter(|(_, believers)| believers.iter().any(lives))
                .map(|(roster, _)| roster)
                .collect();
            assert!(believed.len() < 2, "seed {}: epoch {epoch} is {believed:#?}", self.seed);
        }
    }
}
