//! Every algorithm, run by the real executor on a simulated network, with every fault at every
//! place: each link operation fails once, cuts its link once and is its rank's last once, each frame is lost
//! once, and each arrives with a changed bit once, where frames have checksums.
//!
//! Whatever happens, every rank ends with a result or an error within its deadline, a result is
//! the right one, a rank that lost something it needs says so, whoever gets a changed bit names its sender, and
//! nothing is left behind.

use ringtree::executor::Schedule;
use ringtree::{Algorithm, Collective};
use ringtree_tests::live_bytes::{Counting, live_bytes};
use ringtree_tests::simulation::{AT_ONCE, Case, Outcome, exact};
use ringtree_transport::LinkError;
use ringtree_transport::sim::{
    self, Config, FrameEffect, Match, Network, OperationEffect, Rule, TraceEvent,
};

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
            survives(case(Algorithm::Tree, collective, ranks, true));
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
                            survives(case(algorithm, collective, ranks, in_place));
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
            survives(case(algorithm, collective, ranks, true));
        }
    }
}

#[test]
fn bits_do_not_depend_on_who_is_late() {
    for algorithm in Algorithm::ALL {
        let collective = Collective::all(3).into_iter().find(|&c| algorithm.serves(c)).unwrap();
        let in_place = collective.can_be_in_place();
        let case = case(algorithm, collective, 5, in_place);
        let run = |seed| {
            let network = Network::new(Config { seed, jitter_ns: 20_000, ..CONFIG });
            network.add_rule(Rule::Frame(Match::any().rank(seed as u32 % 5), FrameEffect::Slow(3)));
            case.run(&network, &[], |rank, index| 1.0 / (1 + rank * 31 + index) as f32)
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
            survives(case(algorithm, Collective::AllReduce, ranks, in_place));
        }
    }
}

/// A call whose rounds do not fill its lanes; in place, an exchange is one at once.
fn case(algorithm: Algorithm, collective: Collective, ranks: u32, in_place: bool) -> Case {
    let blocks = if collective.is_of_blocks() { ranks as usize } else { 1 };
    let at_once = algorithm.is_one_exchange() && in_place;
    Case {
        algorithm,
        collective,
        hosts: (0..ranks).map(|rank| rank / 2).collect(),
        count: COUNT / blocks,
        schedule: if at_once { AT_ONCE } else { SCHEDULE },
        at_once,
        in_place,
        checksums: false,
        timeout_ns: TIMEOUT_NS,
    }
}

/// Runs a case with each fault at each place.
fn survives(case: Case) {
    let clean = Network::new(CONFIG);
    clean.start_trace();
    let outcomes = case.run(&clean, &[], exact);
    case.check(&outcomes).unwrap_or_else(|wrong| panic!("{case:?}: {wrong}"));
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
            TraceEvent::Left { number, from, to, .. } => {
                let rule = Rule::Frame(Match::any().nth(number), FrameEffect::Drop);
                survives_rule(&case, rule, longest_ns, Some(to));
                // Of the frame's tag or, if it has one, of its payload.
                let bit = number * 29 % 600;
                survives_flip(&case, number, bit, (from, to), longest_ns);
            }
            _ => {}
        }
    }
}

/// Runs a case in which one bit of a frame between two ranks is changed.
fn survives_flip(case: &Case, frame: u64, bit: u64, (from, to): (u32, u32), longest_ns: u64) {
    let network = Network::new(CONFIG);
    network.add_rule(Rule::Frame(Match::any().nth(frame), FrameEffect::Flip(bit)));
    let case = Case { checksums: true, ..case.clone() };
    let outcomes = case.run(&network, &[], exact);
    let what = || format!("{case:?}, bit {bit} of frame {frame}: {outcomes:?}");
    case.check(&outcomes).unwrap_or_else(|wrong| panic!("{wrong}; {}", what()));
    let is_named = matches!(
        outcomes[to as usize],
        Outcome::Link(LinkError::Corrupt { peer, .. }) if peer == from
    );
    assert!(is_named, "rank {to} does not name rank {from}: {}", what());
    assert!(network.now_ns() <= longest_ns, "{} ns: {}", network.now_ns(), what());
}

/// Runs a case with a rule; `fails` is a rank that cannot have a result.
fn survives_rule(case: &Case, rule: Rule, longest_ns: u64, fails: Option<u32>) {
    let live_before = live_bytes();
    {
        let network = Network::new(CONFIG);
        network.add_rule(rule.clone());
        let outcomes = case.run(&network, &[], exact);
        case.check(&outcomes).unwrap_or_else(|wrong| panic!("{case:?}, {rule:?}: {wrong}"));
        assert!(
            fails.is_none_or(|rank| outcomes[rank as usize].is_error()),
            "{case:?}, {rule:?}: rank {fails:?} claims success: {outcomes:?}"
        );
        assert!(network.now_ns() <= longest_ns, "{case:?}, {rule:?}: {} ns", network.now_ns());
        assert_eq!(network.open_ends(), 0, "{case:?}, {rule:?}");
    }
    assert_eq!(live_bytes(), live_before, "{case:?}, {rule:?} leaks");
}
