//! Random calls on random simulated networks with random faults: see `src/seeds.rs`.

use ringtree_tests::live_bytes::{Counting, live_bytes};
use ringtree_tests::seeds::search;

/// More are for the program `ringtree-simulate-seeds`.
const SEEDS: u64 = 20_000;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn every_seed_ends_well() {
    let before = live_bytes();
    let counted = Box::new(0_u64);
    assert_eq!(live_bytes() - before, 8, "memory is counted");
    drop(counted);

    let tally = search(0, SEEDS).unwrap_or_else(|wrong| panic!("{wrong}"));
    // Else the faults miss what they are meant to hit.
    assert_eq!(tally.seeds, SEEDS);
    let often = SEEDS / 10;
    let met = [tally.survived, tally.results, tally.link_errors, tally.time_outs, tally.verdicts];
    assert!(met.iter().all(|met| *met > often), "{tally:?}");
}
