//! Simulations of which everything follows from a seed: the call, the network and its faults.
//!
//! Whatever happens, every rank ends with a result or an error within a bound on virtual time, a
//! result is the right one, nobody suspects another of a call that it did not make, nothing is left
//! behind, and the same seed gives the same again. Without a fault everyone succeeds. What the ranks then report leads
//! to one verdict at most, the same for all ([`crate::verdicts`]).

use std::any::Any;
use std::ops::AddAssign;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ringtree::executor::Schedule;
use ringtree::{Algorithm, Collective};
use ringtree_transport::sim::{Config, FrameEffect, Match, Network, OperationEffect, Rule};

use crate::live_bytes::live_bytes;
use crate::random::Random;
use crate::simulation::{AT_ONCE, Case, Incident, ONE_ROUND, Outcome, exact};
use crate::verdicts::Hearing;

/// How long a rank waits without progress: far longer than any run without a fault takes.
const TIMEOUT_NS: u64 = 10_000_000_000;

/// Of so many seeds one is run twice.
const TWICE_ONE_IN: u64 = 16;

/// Of slices or cache lines a rank's longest buffer has at most so many: what one run costs.
const MOST_SLICES: usize = 96;

/// A simulation that has not begun.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// The call.
    pub case: Case,
    /// The network.
    pub config: Config,
    /// Its faults, as far as they come with frames and calls.
    pub rules: Vec<Rule>,
    /// Its other faults and their times in ns, in order.
    pub incidents: Vec<(u64, Incident)>,
}

/// How many runs there were, and how many ranks ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Seeds.
    pub seeds: u64,
    /// Seeds with faults of which every rank had a result all the same.
    pub survived: u64,
    /// Ranks with a result.
    pub results: u64,
    /// Ranks that a link failed.
    pub link_errors: u64,
    /// Ranks whose deadline passed.
    pub time_outs: u64,
    /// Seeds with a verdict.
    pub verdicts: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.seeds += other.seeds;
        self.survived += other.survived;
        self.results += other.results;
        self.link_errors += other.link_errors;
        self.time_outs += other.time_outs;
        self.verdicts += other.verdicts;
    }
}

/// Simulates the seeds `from .. from + count` on every processor.
///
/// # Errors
/// What is wrong with the first one found to fail. It begins with the seed and what replays it.
pub fn search(from: u64, count: u64) -> Result<Tally, String> {
    let (next, failed) = (AtomicU64::new(from), AtomicBool::new(false));
    let work = || {
        let mut tally = Tally::default();
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed.wrapping_sub(from) >= count {
                break;
            }
            tally += simulate(seed).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
        Ok(tally)
    };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        let mut all = Tally::default();
        for thread in threads {
            all += thread.join().unwrap_or_else(|panic| Err(message(panic)))?;
        }
        Ok(all)
    })
}

/// Simulates one seed. That memory stays behind is found where the program counts it: see
/// [`live_bytes`](crate::live_bytes).
///
/// # Errors
/// Says what is wrong.
pub fn simulate(seed: u64) -> Result<Tally, String> {
    let named = |wrong| {
        let replay = "cargo run -p ringtree-tests --bin ringtree-simulate-seeds -- --seed";
        format!("seed {seed} ({replay} {seed}): {wrong}")
    };
    let live_before = live_bytes();
    let attempt = catch_unwind(AssertUnwindSafe(|| attempt(seed)));
    let tally = attempt.unwrap_or_else(|panic| Err(message(panic))).map_err(named)?;
    match live_bytes() - live_before {
        0 => Ok(tally),
        left => Err(named(format!("{left} bytes are left behind"))),
    }
}

fn attempt(seed: u64) -> Result<Tally, String> {
    let simulation = Simulation::of(seed);
    let network = simulation.network();
    let outcomes = simulation.run(&network);
    simulation.check(&network, &outcomes)?;
    if seed.is_multiple_of(TWICE_ONE_IN) {
        let again = simulation.network();
        let same = simulation.run(&again) == outcomes && again.now_ns() == network.now_ns();
        if !same {
            return Err("a second run ends in another way".to_owned());
        }
    }
    let verdict = Hearing::new(seed, &outcomes).run()?;
    let count = |is: fn(&Outcome) -> bool| outcomes.iter().filter(|o| is(o)).count() as u64;
    let results = count(|outcome| !outcome.is_error());
    Ok(Tally {
        seeds: 1,
        survived: u64::from(simulation.has_faults() && results == outcomes.len() as u64),
        results,
        link_errors: count(|outcome| matches!(outcome, Outcome::Link(_))),
        time_outs: count(|outcome| matches!(outcome, Outcome::TimedOut { .. })),
        verdicts: verdict.is_some().into(),
    })
}

/// What a panic said.
pub fn message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast::<String>().map(|text| *text);
    text.or_else(|panic| panic.downcast::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|_| "a panic".to_owned())
}

impl Simulation {
    /// The simulation of a seed.
    pub fn of(seed: u64) -> Simulation {
        let mut random = Random::new(seed);
        let ranks = 2 + random.below(8) as u32;
        let config = config(&mut random);
        let case = case(&mut random, ranks, config.slice_bytes);
        let (mut rules, mut incidents) = (Vec::new(), Vec::new());
        for _ in 0..random.below(4) {
            match random.below(8) {
                0..4 => {
                    rules.push(Rule::Frame(which(&mut random, ranks), frame(&mut random, ranks)))
                }
                4..6 => {
                    rules.push(Rule::Operation(which(&mut random, ranks), operation(&mut random)))
                }
                6 => rules.extend(partition(&mut random, ranks)),
                _ => incidents.push((time_ns(&mut random), incident(&mut random, ranks))),
            }
        }
        incidents.sort_by_key(|(at_ns, _)| *at_ns);
        Simulation { case, config, rules, incidents }
    }

    /// The network, with its rules.
    pub fn network(&self) -> Network {
        let network = Network::new(self.config);
        self.rules.iter().for_each(|rule| network.add_rule(rule.clone()));
        network
    }

    /// Makes the call on every rank.
    pub fn run(&self, network: &Network) -> Vec<Outcome> {
        self.case.run(network, &self.incidents, exact)
    }

    /// Checks all that the file's description says of one run.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self, network: &Network, outcomes: &[Outcome]) -> Result<(), String> {
        self.case.check(outcomes)?;
        let (busy_ns, now_ns) = (self.longest_busy_ns(network), network.now_ns());
        // A rank that has moved waits for so long at most, and who moves is moved by the network.
        let longest_ns = busy_ns.saturating_add(self.case.timeout_ns);
        if now_ns > longest_ns {
            return Err(format!("the last rank ends at {now_ns} ns, later than {longest_ns} ns"));
        }
        let is_lossless = self.incidents.is_empty() && self.rules.iter().all(only_delays);
        let must_succeed = !self.has_faults() || is_lossless && busy_ns < self.case.timeout_ns;
        let failed = outcomes.iter().find(|outcome| outcome.is_error());
        if let (true, Some(outcome)) = (must_succeed, failed) {
            return Err(format!("nothing was lost, and yet a rank failed: {outcome:?}"));
        }
        match network.open_ends() {
            0 => Ok(()),
            open => Err(format!("{open} ends of links are left open")),
        }
    }

    fn has_faults(&self) -> bool {
        !(self.rules.is_empty() && self.incidents.is_empty())
    }

    /// How long the network had something under way at most: as long as if all that was sent had
    /// been sent one after the other, with its credit's way back and every rank's goodbyes.
    fn longest_busy_ns(&self, network: &Network) -> u64 {
        let (mut factor, mut delay_ns) = (1_u64, 0_u64);
        for rule in &self.rules {
            match rule {
                Rule::Frame(_, FrameEffect::Slow(slower)) => factor *= u64::from(*slower),
                Rule::Frame(_, FrameEffect::Delay(ns)) => delay_ns += ns,
                _ => {}
            }
        }
        let traffic = network.total_traffic();
        let Config { latency_ns, jitter_ns, bandwidth_bytes_per_s, .. } = self.config;
        // Of each frame its time on the wire is rounded up.
        let wire_ns = traffic.bytes * 1_000_000_000 / bandwidth_bytes_per_s + traffic.frames;
        let frame_ns = (latency_ns + jitter_ns) * factor + delay_ns + latency_ns;
        let ranks = u64::from(self.case.ranks());
        wire_ns * factor + traffic.frames * frame_ns + ranks * ranks * latency_ns
    }
}

fn only_delays(rule: &Rule) -> bool {
    matches!(rule, Rule::Frame(_, FrameEffect::Delay(_) | FrameEffect::Slow(_)))
}

fn config(random: &mut Random) -> Config {
    Config {
        seed: random.number(),
        latency_ns: random.length(50_000) as u64,
        jitter_ns: random.pick(&[0, 0, 10, 5_000, 100_000]),
        bandwidth_bytes_per_s: random.pick(&[10_000_000, 1_000_000_000, 50_000_000_000]),
        slice_bytes: random.pick(&[4, 12, 60, 64, 64, 100, 192, 1_024, 4_096]),
        slots: 1 + random.below(9),
    }
}

fn case(random: &mut Random, ranks: u32, slice_bytes: usize) -> Case {
    let root = random.below(ranks as usize) as u32;
    let collective = random.pick(&Collective::all(root));
    let serving: Vec<Algorithm> =
        Algorithm::ALL.into_iter().filter(|algorithm| algorithm.serves(collective)).collect();
    let algorithm = random.pick(&serving);
    let at_once = algorithm.is_one_exchange() && random.one_in(2);
    let schedule = if at_once {
        AT_ONCE
    } else if algorithm.takes_one_round(collective) {
        ONE_ROUND
    } else {
        let round_bytes = random.pick(&[64, 128, 200, 1_024, 16_384]);
        Schedule { lanes: 1 + random.below(5), round_bytes, attaches: true }
    };
    let hosts = (0..ranks).map(|_| random.below(ranks as usize) as u32).collect();
    let in_place = collective.can_be_in_place() && random.one_in(2);
    let blocks = if collective.is_of_blocks() { ranks as usize } else { 1 };
    let most = MOST_SLICES * slice_bytes / size_of::<f32>() / blocks;
    let round = schedule.round_bytes.min(4_096) / size_of::<f32>() / blocks;
    let count = match random.below(8) {
        0 => 0,
        1 => 1,
        2 => random.below(ranks as usize),
        3 | 4 => 2 * random.below(200) + 1,
        _ => (round * random.below(6)) + random.below(20),
    };
    let count = if collective == Collective::Barrier { 0 } else { count.min(most) };
    let timeout_ns = TIMEOUT_NS;
    let checksums = false;
    Case { algorithm, collective, hosts, count, schedule, at_once, in_place, checksums, timeout_ns }
}

/// Early times are as likely as late ones.
fn time_ns(random: &mut Random) -> u64 {
    random.length(20_000_000) as u64
}

/// Everything, or some of it; half of the time only the `n`-th of that.
fn which(random: &mut Random, ranks: u32) -> Match {
    let rank = |random: &mut Random| random.below(ranks as usize) as u32;
    let mut which = match random.below(6) {
        0 | 1 => Match::any(),
        2 => Match::any().from(rank(random)),
        3 => Match::any().to(rank(random)),
        4 => Match::any().rank(rank(random)),
        _ => {
            let from = rank(random);
            Match::any().from(from).to(other(random, from, ranks))
        }
    };
    if random.one_in(6) {
        which = which.channel(random.below(4));
    }
    if random.one_in(4) {
        let start_ns = time_ns(random);
        which = which.during_ns(start_ns..start_ns + time_ns(random));
    }
    if random.one_in(2) { which.nth(random.length(500) as u64) } else { which }
}

/// Any rank but this one.
fn other(random: &mut Random, rank: u32, ranks: u32) -> u32 {
    (rank + 1 + random.below(ranks as usize - 1) as u32) % ranks
}

fn frame(random: &mut Random, ranks: u32) -> FrameEffect {
    match random.below(8) {
        0 | 1 => FrameEffect::Delay(random.length(20_000_000_000) as u64),
        2 | 3 => FrameEffect::Slow(2 + random.below(40) as u32),
        4 | 5 => FrameEffect::Drop,
        6 => FrameEffect::Cut,
        _ => FrameEffect::Kill(random.below(ranks as usize) as u32),
    }
}

fn operation(random: &mut Random) -> OperationEffect {
    random.pick(&[OperationEffect::Fail, OperationEffect::Cut, OperationEffect::Kill])
}

/// From a time on nothing passes between some ranks and the others.
fn partition(random: &mut Random, ranks: u32) -> Vec<Rule> {
    let (start_ns, sides) = (time_ns(random), random.number());
    let side = |rank: u32| sides >> rank & 1;
    let pairs = (0..ranks).flat_map(|from| (0..ranks).map(move |to| (from, to)));
    let apart = pairs.filter(|(from, to)| side(*from) != side(*to));
    apart
        .map(|(from, to)| {
            let which = Match::any().from(from).to(to).during_ns(start_ns..u64::MAX);
            Rule::Frame(which, FrameEffect::Drop)
        })
        .collect()
}

fn incident(random: &mut Random, ranks: u32) -> Incident {
    let rank = random.below(ranks as usize) as u32;
    match random.below(2) {
        0 => Incident::Kill(rank),
        _ => Incident::Cut(rank, other(random, rank, ranks)),
    }
}
