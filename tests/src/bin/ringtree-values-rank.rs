//! A rank that is a process of its own: joins as its environment says, checks results against
//! plain sums, and prints the digests that all ranks must have in common.
//!
//! `ringtree-values-rank SEED MOST`: `MOST` is the largest count of elements.

use std::process::ExitCode;

use half::bf16;
use ringtree::{Communicator, Settings};
use ringtree_tests::bits::outcomes;
use ringtree_tests::values::{all_reduces, check, others};

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let [seed, most] = numbers[..] else {
        eprintln!("usage: ringtree-values-rank SEED MOST");
        return ExitCode::from(2);
    };
    match run(seed, most as usize) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(seed: u64, most: usize) -> Result<(), ringtree::Error> {
    let settings = Settings::from_env()?;
    // Two communicators of one job at once: they must not get into each other's way.
    let first = Communicator::with(settings.clone())?;
    let second = Communicator::with(settings)?;
    let ranks = first.ranks();
    for case in all_reduces(seed, ranks, most) {
        check(&first, case);
    }
    for case in others(seed, ranks, most) {
        check(&second, case);
    }
    let counts = [5, 4_099.min(most)];
    let f32s = outcomes::<f32>(&first, seed, &counts);
    let bf16s = outcomes::<bf16>(&second, seed, &counts);
    for outcome in f32s.iter().chain(&bf16s) {
        println!("{}: {:016x}", outcome.call, outcome.digest);
    }
    second.barrier()
}
