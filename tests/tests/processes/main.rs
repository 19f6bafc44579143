//! What real processes do to each other: ranks that are killed, stopped, late, wrong or strangers.

mod costs;
mod deaths;
mod exchanges;
mod joining;
mod mismatches;
mod recovery;
mod stalls;
mod strangers;

use ringtree_tests::job::{Event, Setup};

/// A job of `ranks` ranks over `transport`.
fn setup(ranks: u32, transport: &'static str) -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_ringtree-test-rank"), ranks, transport)
}

/// Milliseconds from `since_ns` to each of the events.
fn latencies_ms(events: &[Event], since_ns: u64) -> Vec<f64> {
    events.iter().map(|event| event.at_ns.saturating_sub(since_ns) as f64 / 1e6).collect()
}

/// Asserts that an error is of a kind and names these ranks, as `RANK,RANK`.
#[track_caller]
fn assert_names(error: &Event, kind: &str, ranks: &str) {
    assert_eq!((error.field(0), error.field(1)), (kind, ranks), "{error}");
}
