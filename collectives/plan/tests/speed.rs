//! How long it takes to write a plan, and to lower it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ringtree_plan::{Algorithm, Collective, lower};

/// The fastest of several runs, which another process on the machine disturbs least.
fn fastest<T>(write: impl Fn() -> T) -> Duration {
    let run = || {
        let start = Instant::now();
        black_box(write());
        start.elapsed()
    };
    (0..6).map(|_| run()).min().unwrap()
}

#[test]
fn a_plan_is_written_and_lowered_in_time_proportional_to_its_steps() {
    let ranks = 16384;
    let lowering_limit = Duration::from_millis(30);
    let cases = [
        (Algorithm::Ring, Collective::AllReduce, Duration::from_millis(1)),
        (Algorithm::TwoShot, Collective::AllReduce, Duration::from_millis(2)),
        (Algorithm::OneShot, Collective::AllReduce, Duration::from_millis(2)),
        (Algorithm::DoubleTree, Collective::AllReduce, Duration::from_micros(10)),
        (Algorithm::Doubling, Collective::AllReduce, Duration::from_micros(10)),
        (Algorithm::Star, Collective::AllReduce, Duration::from_micros(10)),
        (Algorithm::Tree, Collective::Broadcast { root: 7 }, Duration::from_micros(10)),
        (Algorithm::Dissemination, Collective::Barrier, Duration::from_micros(10)),
    ];
    for (algorithm, collective, limit) in cases {
        let rank = black_box(3);
        let taken = fastest(|| algorithm.plan(collective, rank, ranks));
        let plan = algorithm.plan(collective, rank, ranks);
        let lowering = fastest(|| lower(&plan));
        println!("{algorithm}: written in {taken:?}, lowered in {lowering:?}");
        // What the limits are for is a release build.
        assert!(cfg!(debug_assertions) || taken < limit, "{algorithm}: {taken:?}");
        assert!(cfg!(debug_assertions) || lowering < lowering_limit, "{algorithm}: {lowering:?}");
    }
}
