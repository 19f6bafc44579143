//! What the survivors of a simulated call hear of it: the arbiter, fed with what each rank reports, in any order, late,
//! or not at all because its sender dies.
//!
//! Whatever happens, all hear the same verdict, it names nobody for what it has not done, there is one within seconds
//! where somebody cannot go on, and none where nothing happened.

use std::collections::VecDeque;

use ringtree::control::{
    Arbiter, Entry, LinkFailure, Operation, Place, Send, Stall, State, Stream, ToArbiter, ToMember,
    Verdict,
};
use ringtree::record::{CallKind, CallRecord};

use crate::random::Random;
use crate::simulation::Outcome;

/// The arbiter decides within so long of hearing that somebody cannot go on.
const DECISION_LIMIT_MS: u64 = 3_000;

/// A rank that takes so long to answer counts as one that does not run.
const ANSWER_LIMIT_MS: u64 = 500;

/// Nothing is begun later.
const BEGIN_LIMIT_MS: usize = 2_000;

const END_MS: u64 = 20_000;

/// One communicator: its arbiter, and what its ranks are and do.
#[derive(Debug)]
pub struct Hearing {
    arbiter: Arbiter,
    now_ms: u64,
    random: Random,
    ranks: Vec<Rank>,
    /// The first verdict that anyone heard.
    verdict: Option<Verdict>,
    /// When the arbiter first heard what must lead to a verdict.
    due_since_ms: Option<u64>,
    /// All that reached the arbiter or a rank, in order, if that is wanted.
    log: Option<Vec<String>>,
}

#[derive(Debug, Default)]
struct Rank {
    entries: Vec<Entry>,
    /// What is under way to the arbiter, in order, each with the earliest time of its arrival.
    sent: VecDeque<(u64, Event)>,
    has_joined: bool,
    is_stopped: bool,
    /// An answer of it took too long.
    is_slow: bool,
    dies: bool,
    leaves: bool,
    aborts: bool,
    calls_other: bool,
    /// It told of a link that failed, or of a deadline that passed.
    has_failed: bool,
    is_gone: bool,
    has_heard: bool,
}

#[derive(Clone, Debug)]
enum Event {
    Join,
    Message(ToArbiter),
    /// Its connection ends.
    Lost,
    /// Its launcher saw its process end.
    Ended,
}

impl Hearing {
    /// Ranks whose calls ended like this. All else follows from the seed: who dies, stops, leaves or gives up, and when
    /// what arrives.
    pub fn new(seed: u64, outcomes: &[Outcome]) -> Hearing {
        let mut random = Random::new(!seed);
        let count = outcomes.len();
        let mut ranks: Vec<Rank> = outcomes.iter().map(|_| Rank::default()).collect();
        for _ in 0..random.below(6).saturating_sub(3) {
            ranks[random.below(count)].dies = true;
        }
        if random.one_in(6) {
            ranks[random.below(count)].is_stopped = true;
        }
        if random.one_in(12) {
            ranks[random.below(count)].aborts = true;
        }
        if random.one_in(12) {
            ranks[random.below(count)].calls_other = true;
        }
        let mut hearing = Hearing {
            arbiter: Arbiter::new(count as u32),
            now_ms: 0,
            random,
            ranks,
            verdict: None,
            due_since_ms: None,
            log: None,
        };
        for (rank, outcome) in outcomes.iter().enumerate() {
            hearing.plan(rank, outcome);
        }
        hearing
    }

    /// Keeps what reaches whom.
    pub fn with_log(mut self) -> Hearing {
        self.log = Some(Vec::new());
        self
    }

    /// What reached whom so far, if that is kept.
    pub fn log(&self) -> &[String] {
        self.log.as_deref().unwrap_or_default()
    }

    /// Lets everything arrive.
    ///
    /// # Errors
    /// Says what must not be.
    pub fn run(&mut self) -> Result<Option<Verdict>, String> {
        while self.now_ms < END_MS {
            let is_due = |rank: &Rank| rank.sent.front().is_some_and(|(at, _)| *at <= self.now_ms);
            let due: Vec<usize> =
                (0..self.ranks.len()).filter(|rank| is_due(&self.ranks[*rank])).collect();
            let timeout_ms = self.arbiter.next_timeout_ms();
            if let Some(&rank) = due.get(self.random.below(due.len().max(1))) {
                self.arrive(rank)?;
            } else if timeout_ms.is_some_and(|at_ms| at_ms <= self.now_ms) {
                let sends = self.arbiter.handle_timeout(self.now_ms);
                self.tell(sends)?;
            } else {
                let next = self.ranks.iter().filter_map(|rank| Some(rank.sent.front()?.0));
                let Some(next_ms) = next.chain(timeout_ms).min() else { break };
                self.now_ms = next_ms;
            }
            self.check_time()?;
        }
        self.check_end()?;
        Ok(self.verdict.clone())
    }

    /// What a rank will say, and when.
    fn plan(&mut self, rank: usize, outcome: &Outcome) {
        let count = if self.ranks[rank].calls_other { 2 } else { 1 };
        let operation = operation(count);
        let waiting_for = match outcome {
            Outcome::TimedOut { waiting_for } => waiting_for.clone(),
            Outcome::Link(error) => vec![error.peer()],
            Outcome::Mismatch { peer } => vec![*peer],
            Outcome::Values(_) => vec![],
        };
        let (state, first) = match outcome {
            Outcome::Values(_) => (State::Completed, None),
            _ => (State::Running, waiting_for.first().copied()),
        };
        let steps = self.random.below(9) as u64;
        self.ranks[rank].entries = vec![Entry { operation, state, steps, waiting_for: first }];

        self.say(rank, 50, Event::Join);
        if self.random.one_in(3) {
            let stall = stall(operation, &waiting_for, false);
            self.say(rank, BEGIN_LIMIT_MS, Event::Message(ToArbiter::Stalled { stall }));
        }
        match outcome {
            Outcome::Values(_) => {}
            Outcome::Link(error) => {
                let (peer, reason) = (error.peer(), error.to_string());
                let failure = LinkFailure { peer, reason, operation: Some(operation) };
                self.say(rank, BEGIN_LIMIT_MS, Event::Message(ToArbiter::LinkFailed { failure }));
            }
            Outcome::TimedOut { .. } | Outcome::Mismatch { .. } => {
                let stall = stall(operation, &waiting_for, true);
                self.say(rank, BEGIN_LIMIT_MS, Event::Message(ToArbiter::Stalled { stall }));
            }
        }
        if self.ranks[rank].aborts {
            let reason = "enough".to_owned();
            self.say(rank, BEGIN_LIMIT_MS, Event::Message(ToArbiter::Abort { reason }));
        }
        if self.ranks[rank].dies {
            return self.die(rank);
        }
        if state == State::Completed && self.random.one_in(3) {
            self.ranks[rank].leaves = true;
            let entries = self.ranks[rank].entries.clone();
            self.say(rank, BEGIN_LIMIT_MS, Event::Message(ToArbiter::Goodbye { entries }));
            self.say(rank, 100, Event::Lost);
            self.is_witnessed(rank);
        }
    }

    /// The rank dies: what it had not said yet it never says, and what was under way may be lost.
    fn die(&mut self, rank: usize) {
        let said = self.ranks[rank].sent.len();
        let kept = self.random.below(said + 1);
        self.ranks[rank].sent.truncate(kept);
        self.say(rank, BEGIN_LIMIT_MS, Event::Lost);
        self.is_witnessed(rank);
    }

    /// Others of its host, or its launcher, see a process end.
    fn is_witnessed(&mut self, rank: usize) {
        if self.random.one_in(2) {
            self.say(rank, 100, Event::Ended);
        }
        let witness = self.random.below(self.ranks.len());
        if self.random.one_in(2) && witness != rank {
            // Not before it ends, and not in order with what it says.
            let ends_ms = self.ranks[rank].sent.back().map_or(0, |(at_ms, _)| *at_ms);
            let at_ms = self.ranks[witness].sent.back().map_or(0, |(at_ms, _)| *at_ms).max(ends_ms);
            let message = ToArbiter::ProcessEnded { peer: rank as u32 };
            self.ranks[witness].sent.push_back((at_ms, Event::Message(message)));
        }
    }

    /// The rank says something, some time after what it said before.
    fn say(&mut self, rank: usize, within_ms: usize, event: Event) {
        let before_ms = self.ranks[rank].sent.back().map_or(self.now_ms, |(at_ms, _)| *at_ms);
        let at_ms = before_ms.max(self.now_ms) + self.random.length(within_ms) as u64;
        self.ranks[rank].sent.push_back((at_ms, event));
    }

    /// The first of what is under way from a rank reaches the arbiter.
    fn arrive(&mut self, rank: usize) -> Result<(), String> {
        let Some((_, event)) = self.ranks[rank].sent.pop_front() else { return Ok(()) };
        if let Some(log) = &mut self.log {
            log.push(format!("{} ms: of rank {rank}: {event:?}", self.now_ms));
        }
        let (number, ranks) = (rank as u32, self.ranks.len() as u32);
        let sends = match event {
            Event::Join => {
                self.ranks[rank].has_joined = true;
                let joined = self.arbiter.join(number, ranks, place(number));
                joined.map_err(|refusal| format!("rank {rank} is refused: {refusal}"))?
            }
            Event::Message(message) => {
                self.note(rank, &message);
                self.arbiter.handle(self.now_ms, number, message)
            }
            Event::Lost => {
                let is_death = self.ranks[rank].has_joined && !self.ranks[rank].is_gone;
                self.ranks[rank].is_gone = true;
                if is_death {
                    self.due_since_ms.get_or_insert(self.now_ms);
                }
                self.arbiter.connection_lost(number)
            }
            Event::Ended => self.arbiter.process_ended_at(self.now_ms, &place(number), 1 + number),
        };
        self.tell(sends)
    }

    /// What must lead to a verdict, if the rank that says it is there to hear it.
    fn note(&mut self, rank: usize, message: &ToArbiter) {
        let it = &mut self.ranks[rank];
        match message {
            ToArbiter::Goodbye { .. } => it.is_gone = true,
            ToArbiter::LinkFailed { .. } | ToArbiter::Abort { .. } => {
                it.has_failed = true;
                self.due_since_ms.get_or_insert(self.now_ms);
            }
            ToArbiter::Stalled { stall } if stall.deadline_passed => {
                it.has_failed = true;
                if !(it.is_stopped || it.is_slow || it.dies) {
                    self.due_since_ms.get_or_insert(self.now_ms);
                }
            }
            _ => {}
        }
    }

    /// What the arbiter says reaches ranks.
    fn tell(&mut self, sends: Vec<Send>) -> Result<(), String> {
        for Send { to, message } in sends {
            let rank = to as usize;
            if let Some(log) = &mut self.log {
                log.push(format!("{} ms: to rank {to}: {message:?}", self.now_ms));
            }
            match message {
                ToMember::Verdict { verdict } => {
                    self.ranks[rank].has_heard = true;
                    let first = self.verdict.get_or_insert_with(|| verdict.clone());
                    if *first != verdict {
                        return Err(format!("rank {to} hears \"{verdict}\", others \"{first}\""));
                    }
                }
                ToMember::Query { id } => self.answer(rank, id),
                other => return Err(format!("rank {to} hears {other:?} of the arbiter")),
            }
        }
        Ok(())
    }

    fn answer(&mut self, rank: usize, query: u64) {
        let it = &self.ranks[rank];
        if it.is_stopped || it.dies || it.is_gone {
            return;
        }
        let longest_ms = if self.random.one_in(32) { 1_000 } else { 50 };
        let takes_ms = self.random.length(longest_ms) as u64;
        if takes_ms >= ANSWER_LIMIT_MS {
            self.ranks[rank].is_slow = true;
            self.due_since_ms = self.due_since_ms.map(|_| self.now_ms + takes_ms);
        }
        let entries = self.ranks[rank].entries.clone();
        let event = Event::Message(ToArbiter::Answer { query, entries });
        // A monitor answers whatever else its rank will say later.
        self.ranks[rank].sent.push_front((self.now_ms + takes_ms, event));
    }

    fn check_time(&self) -> Result<(), String> {
        let since_ms = self.due_since_ms.filter(|_| self.verdict.is_none());
        match since_ms {
            Some(ms) if self.is_anyone_there() && self.now_ms > ms + DECISION_LIMIT_MS => {
                Err(format!("no verdict at {} ms, though one is due since {ms} ms", self.now_ms))
            }
            _ => Ok(()),
        }
    }

    /// Whether anyone could hear of a verdict.
    fn is_anyone_there(&self) -> bool {
        self.ranks.iter().any(|it| it.has_joined && !it.is_gone)
    }

    fn check_end(&self) -> Result<(), String> {
        let Some(verdict) = &self.verdict else {
            return match self.due_since_ms.filter(|_| self.is_anyone_there()) {
                Some(since_ms) => Err(format!("no verdict, though one is due since {since_ms} ms")),
                None => Ok(()),
            };
        };
        let is_deaf = |it: &&Rank| it.has_joined && !it.is_gone && !it.has_heard;
        if self.ranks.iter().any(|it| is_deaf(&it)) {
            return Err(format!("somebody does not hear \"{verdict}\""));
        }
        let rank = |rank: &u32| &self.ranks[*rank as usize];
        let is_true = match verdict {
            // A goodbye may come later than the end of the process is seen.
            Verdict::Died { rank: who, .. } => rank(who).dies || rank(who).leaves,
            Verdict::Stopped { rank: who, .. } => {
                rank(who).is_stopped || rank(who).is_slow || rank(who).dies
            }
            Verdict::Left { rank: who, .. } => rank(who).leaves,
            Verdict::Aborted { by, .. } => rank(by).aborts,
            Verdict::Mismatch { a, b, .. } => {
                rank(&a.rank).calls_other != rank(&b.rank).calls_other
            }
            Verdict::LinkBroken { .. } | Verdict::Late { .. } => {
                self.ranks.iter().any(|it| it.has_failed)
            }
            Verdict::ArbiterLost { .. } => false,
        };
        if is_true { Ok(()) } else { Err(format!("this is not what happened: {verdict}")) }
    }
}

fn operation(count: u64) -> Operation {
    let (kind, data_type, operation, algorithm) = (CallKind::AllReduce, 1, 1, 1);
    let record = CallRecord { kind, data_type, operation, algorithm, root: u32::MAX, count };
    Operation { stream: Stream::Collective, sequence: 1, record }
}

fn stall(operation: Operation, waiting_for: &[u32], deadline_passed: bool) -> Stall {
    Stall { operation, waiting_for: waiting_for.to_vec(), stalled_ms: 100, deadline_passed }
}

fn place(rank: u32) -> Place {
    Place { host: "node".to_owned(), pid: 1 + rank, process_space: 1 }
}
