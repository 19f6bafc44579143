//! Every algorithm, run by the real executor on a simulated network, with every fault at every
//! place: each link operation fails once, cuts its link once and is its rank's last once, and each
//! frame is lost once.
//!
//! Whatever happens, every rank ends with a result or an error within its deadline, a result is
//! the right one, a rank that lost something it needs says so, and nothing is left behind.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ringtree::executor::{Extent, Fault, Operation, Schedule, Status};
use ringtree::{Algorithm, DataType, Op};
use ringtree_plan::{Collective, lower};
use ringtree_transport::shm::{BOARD_BYTES, Board};
use ringtree_transport::sim::{
    self, Config, FrameEffect, Match, Network, OperationEffect, Rule, TraceEvent,
};
use ringtree_transport::{Link, LinkError, Tag};

/// Two elements more than two rounds, so that the last round has empty chunks.
const COUNT: usize = 66;

/// Two lanes of rounds of two cache lines.
const SCHEDULE: Schedule = Schedule { lanes: 2, round_bytes: 128, attaches: true };

/// A slice is a cache line, and a lane has one credit: everything waits for everything.
const CONFIG: Config = Config {
    seed: 1,
    latency_ns: 1_000,
    jitter_ns: 0,
    bandwidth_bytes_per_s: 1_000_000_000,
    slice_bytes: 64,
    slots: 3,
};

/// How long a rank waits without progress: longer than any run without a fault takes.
const TIMEOUT_NS: u64 = 10_000_000;

/// Rounds of polls in which something may move while the clock stands still. Every round with a
/// movement ends at least one of a few hundred link operations; more than this is a livelock.
const POLLS_AT_ONE_INSTANT: usize = 10_000;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn ring_survives_every_fault() {
    all_reduce_survives(Algorithm::Ring);
}

#[test]
fn double_tree_survives_every_fault() {
    all_reduce_survives(Algorithm::DoubleTree);
}

#[test]
fn doubling_survives_every_fault() {
    all_reduce_survives(Algorithm::Doubling);
}

#[test]
fn one_shot_survives_every_fault() {
    all_reduce_survives(Algorithm::OneShot);
}

#[test]
fn two_shot_survives_every_fault() {
    all_reduce_survives(Algorithm::TwoShot);
}

#[test]
fn star_survives_every_fault() {
    all_reduce_survives(Algorithm::Star);
}

#[test]
fn hierarchy_survives_every_fault() {
    all_reduce_survives(Algorithm::Hierarchical);
}

#[test]
fn broadcast_survives_every_fault() {
    for ranks in RANKS {
        for root in [0, ranks - 1] {
            let collective = Collective::Broadcast { root };
            survives(Case { algorithm: Algorithm::Tree, collective, ranks, in_place: true });
        }
    }
}

#[test]
fn every_other_collective_survives_every_fault() {
    for ranks in RANKS {
        for root in [0, ranks - 1] {
            let others = Collective::all(root).into_iter().filter(|c| {
                c.is_of_blocks() && (root == 0 || c.root().is_some())
                    || matches!(c, Collective::Reduce { .. })
            });
            for collective in others {
                for algorithm in Algorithm::ALL.into_iter().filter(|a| a.serves(collective)) {
                    for in_place in [true, false] {
                        if collective.can_be_in_place() || !in_place {
                            survives(Case { algorithm, collective, ranks, in_place });
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn barrier_survives_every_fault() {
    for algorithm in [Algorithm::Dissemination, Algorithm::OneShot] {
        for ranks in RANKS {
            let collective = Collective::Barrier;
            survives(Case { algorithm, collective, ranks, in_place: true });
        }
    }
}

#[test]
fn bits_do_not_depend_on_who_is_late() {
    for algorithm in Algorithm::ALL {
        let collective = Collective::all(3).into_iter().find(|&c| algorithm.serves(c)).unwrap();
        let in_place = collective.can_be_in_place();
        let case = Case { algorithm, collective, ranks: 5, in_place };
        let run = |seed| {
            let network = Network::new(Config { seed, jitter_ns: 20_000, ..CONFIG });
            network.add_rule(Rule::Frame(Match::any().rank(seed as u32 % 5), FrameEffect::Slow(3)));
            run(&case, &network, |rank, index| 1.0 / (1 + rank * 31 + index) as f32)
        };
        let first = run(0);
        assert!(!first.iter().any(Outcome::is_error), "{algorithm}: {first:?}");
        let is_same = collective != Collective::AllToAll;
        let differ = first.iter().any(|outcome| outcome != &first[0]);
        assert!(!(is_same && differ), "{algorithm}: ranks differ");
        for seed in 1..50 {
            assert_eq!(run(seed), first, "{algorithm}, seed {seed}");
        }
    }
}

const RANKS: [u32; 5] = [2, 3, 4, 5, 8];

fn all_reduce_survives(algorithm: Algorithm) {
    for ranks in RANKS {
        for in_place in [true, false] {
            survives(Case { algorithm, collective: Collective::AllReduce, ranks, in_place });
        }
    }
}

/// One collective call.
#[derive(Debug)]
struct Case {
    algorithm: Algorithm,
    collective: Collective,
    ranks: u32,
    in_place: bool,
}

/// How a rank's call ended.
#[derive(Debug, PartialEq)]
enum Outcome {
    Values(Vec<f32>),
    Link(LinkError),
    TimedOut { waiting_for: Vec<u32> },
    Mismatch { peer: u32 },
}

impl Outcome {
    fn is_error(&self) -> bool {
        !matches!(self, Outcome::Values(_))
    }
}

/// Runs a case with each fault at each place.
fn survives(case: Case) {
    let clean = Network::new(CONFIG);
    clean.start_trace();
    let outcomes = run(&case, &clean, exact);
    check_values(&case, &outcomes);
    assert!(!outcomes.iter().any(Outcome::is_error), "{case:?} without a fault: {outcomes:?}");

    let longest_ns = 2 * clean.now_ns() + TIMEOUT_NS;
    for entry in clean.trace() {
        match entry.event {
            TraceEvent::Called { number, rank, operation, .. } => {
                for effect in [OperationEffect::Fail, OperationEffect::Cut, OperationEffect::Kill] {
                    let rule = Rule::Operation(Match::any().nth(number), effect);
                    // A poll may fail when nothing is wanted from its link any more.
                    let fails = (operation != sim::Operation::Poll).then_some(rank);
                    survives_rule(&case, rule, longest_ns, fails);
                }
            }
            TraceEvent::Left { number, to, .. } => {
                let rule = Rule::Frame(Match::any().nth(number), FrameEffect::Drop);
                survives_rule(&case, rule, longest_ns, Some(to));
            }
            _ => {}
        }
    }
}

/// Runs a case with a rule; `fails` is a rank that cannot have a result.
fn survives_rule(case: &Case, rule: Rule, longest_ns: u64, fails: Option<u32>) {
    let live_before = Counting::live_bytes();
    {
        let network = Network::new(CONFIG);
        network.add_rule(rule.clone());
        let outcomes = run(case, &network, exact);
        check_values(case, &outcomes);
        assert!(
            fails.is_none_or(|rank| outcomes[rank as usize].is_error()),
            "{case:?}, {rule:?}: rank {fails:?} claims success: {outcomes:?}"
        );
        assert!(network.now_ns() <= longest_ns, "{case:?}, {rule:?}: {} ns", network.now_ns());
        assert_eq!(network.open_ends(), 0, "{case:?}, {rule:?}");
    }
    assert_eq!(Counting::live_bytes(), live_before, "{case:?}, {rule:?} leaks");
}

/// Whoever has a result has the right one, and nobody blames another for a call it did not make.
fn check_values(case: &Case, outcomes: &[Outcome]) {
    for (rank, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Outcome::Values(values) => {
                assert_eq!(values, &expected(case, rank), "{case:?} rank {rank}");
            }
            Outcome::Mismatch { peer } => panic!("{case:?}: rank {rank} suspects rank {peer}"),
            Outcome::Link(_) | Outcome::TimedOut { .. } => {}
        }
    }
}

/// Inputs whose sums are exact.
fn exact(rank: usize, index: usize) -> f32 {
    ((rank + 1) * (index % 17 + 1)) as f32
}

/// What nobody has written; no input and no result is negative.
const UNWRITTEN: f32 = -1.0;

/// What the output of a rank holds in the end.
fn expected(case: &Case, rank: usize) -> Vec<f32> {
    let value = |index: usize| {
        let block = index / block(case).max(1);
        if !case.collective.is_got(rank as u32, block as u32) {
            return if case.in_place { exact(rank, index) } else { UNWRITTEN };
        }
        match case.collective {
            Collective::Broadcast { root } | Collective::Scatter { root } => {
                exact(root as usize, index)
            }
            Collective::AllGather | Collective::Gather { .. } => exact(block, index),
            Collective::AllToAll => {
                exact(block, rank * self::block(case) + index % self::block(case))
            }
            Collective::Barrier => unreachable!("a barrier has no elements"),
            _ => (0..case.ranks as usize).map(|rank| exact(rank, index)).sum(),
        }
    };
    (0..count(case)).map(value).collect()
}

/// Elements of a block; all are one where there are no blocks.
fn block(case: &Case) -> usize {
    if case.collective.is_of_blocks() { COUNT / case.ranks as usize } else { count(case) }
}

/// Elements of the buffers, which are as long on all ranks.
fn count(case: &Case) -> usize {
    match case.collective {
        Collective::Barrier => 0,
        blocks if blocks.is_of_blocks() => block(case) * case.ranks as usize,
        _ => COUNT,
    }
}

/// One rank: its executor, its links and its memory.
struct Rank {
    operation: Operation,
    links: Vec<Option<Link>>,
    board: Board,
    input: Vec<f32>,
    output: Vec<f32>,
    in_place: bool,
    /// Runs of the operation that are to come.
    runs_left: u32,
    moved_ns: u64,
    outcome: Option<Outcome>,
}

/// Drives all ranks in turn until each has an outcome, and lets time go on when none moves.
fn run(case: &Case, network: &Network, value: impl Fn(usize, usize) -> f32) -> Vec<Outcome> {
    let mut ranks: Vec<Rank> =
        (0..case.ranks).map(|rank| Rank::new(case, rank, network, &value)).collect();
    ranks.iter_mut().for_each(Rank::start);
    let mut polls = 0;
    loop {
        let now_ns = network.now_ns();
        let moved = ranks.iter_mut().fold(false, |moved, rank| rank.poll(now_ns) | moved);
        let waiting = ranks.iter().filter(|rank| rank.outcome.is_none());
        let Some(deadline_ns) = waiting.map(|rank| rank.moved_ns + TIMEOUT_NS).min() else {
            return ranks.into_iter().filter_map(|rank| rank.outcome).collect();
        };
        polls += 1;
        assert!(polls < POLLS_AT_ONE_INSTANT, "{case:?}: something moves for ever");
        if !moved {
            polls = 0;
            let next_ns = network.next_event_ns().unwrap_or(u64::MAX);
            network.advance_to(next_ns.min(deadline_ns));
        }
    }
}

impl Rank {
    fn new(case: &Case, rank: u32, network: &Network, value: impl Fn(usize, usize) -> f32) -> Rank {
        let program = lower(&case.algorithm.plan(case.collective, rank, case.ranks));
        let (data_type, count) = (DataType::F32, count(case));
        let extent = match case.collective.is_of_blocks() {
            true => Extent::Blocks(block(case) as u64),
            false => Extent::Whole(count as u64),
        };
        // Out of place it runs as any other program does.
        let at_once = case.algorithm.is_one_exchange() && case.in_place;
        let schedule = if at_once {
            Schedule { lanes: 1, round_bytes: BOARD_BYTES, attaches: true }
        } else {
            SCHEDULE
        };
        let mut operation =
            Operation::new(program, data_type, Op::Sum, extent, schedule, 0, TAG.digest);
        if at_once {
            operation.exchange_at_once();
        }
        let mut links: Vec<Option<Link>> = (0..case.ranks).map(|_| None).collect();
        for &peer in operation.peers() {
            links[peer as usize] = Some(Link::Sim(network.link(rank, peer)));
        }
        Rank {
            operation,
            links,
            board: Board::new().expect("memory and a descriptor"),
            input: (0..count).map(|index| value(rank as usize, index)).collect(),
            output: vec![UNWRITTEN; count],
            in_place: case.in_place,
            runs_left: case.algorithm.runs_per_call(case.collective),
            moved_ns: 0,
            outcome: None,
        }
    }

    fn start(&mut self) {
        let output = self.output.as_mut_ptr();
        let input = if self.in_place {
            self.output.copy_from_slice(&self.input);
            output.cast_const()
        } else {
            self.input.as_ptr()
        };
        self.runs_left -= 1;
        // SAFETY: both vectors stay as they are until the operation is done or `end` has dropped
        // the links.
        unsafe {
            let (links, board) = (&mut self.links, &mut self.board);
            self.operation.start_with(TAG, input.cast(), output.cast(), links, board);
        }
    }

    /// Returns whether anything moved; an end is a movement.
    fn poll(&mut self, now_ns: u64) -> bool {
        if self.outcome.is_some() {
            return false;
        }
        let outcome = match self.operation.poll(&mut self.links, now_ns) {
            Ok(Status::Done) if self.runs_left > 0 => {
                self.start();
                self.moved_ns = now_ns;
                return true;
            }
            Ok(Status::Done) => Outcome::Values(self.output.clone()),
            Ok(Status::Moved | Status::Blocked { moved: true }) => {
                self.moved_ns = now_ns;
                return true;
            }
            Ok(Status::Blocked { .. }) if now_ns < self.moved_ns + TIMEOUT_NS => return false,
            Ok(Status::Blocked { .. }) => {
                Outcome::TimedOut { waiting_for: self.operation.waiting_for() }
            }
            Err(Fault::Link(error)) => Outcome::Link(error),
            Err(Fault::Mismatch { peer, .. } | Fault::Length { peer, .. }) => {
                Outcome::Mismatch { peer }
            }
        };
        self.end(outcome);
        true
    }

    /// The call returns: after an error the links go, and the caller uses its memory for other
    /// things, which must not reach anyone.
    fn end(&mut self, outcome: Outcome) {
        if outcome.is_error() {
            self.links.clear();
        }
        self.input.fill(f32::NAN);
        self.output.fill(f32::NAN);
        self.outcome = Some(outcome);
    }
}

const TAG: Tag = Tag { sequence: 1, digest: 5 };

/// Counts what each thread holds; a simulation is one thread.
struct Counting;

thread_local! {
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
}

impl Counting {
    fn live_bytes() -> isize {
        LIVE_BYTES.get()
    }
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.set(LIVE_BYTES.get() + layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE_BYTES.set(LIVE_BYTES.get() - layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}
