//! Simulates calls with faults, more of them than the test `simulated_seeds`, or one again with all
//! that happens in it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;
use ringtree_tests::live_bytes::Counting;
use ringtree_tests::seeds::{Simulation, message, search, simulate};
use ringtree_tests::verdicts::Hearing;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Simulates collective calls on networks with faults; everything follows from a seed.
#[derive(Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1_000_000)]
    seeds: u64,
    /// Only this seed: prints the case, what happens when, and how each rank ends.
    #[arg(long, conflicts_with_all = ["from", "seeds"])]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        show(seed);
    }
    let tally = match arguments.seed {
        Some(seed) => simulate(seed),
        None => search(arguments.from, arguments.seeds),
    };
    match &tally {
        Ok(tally) => println!("{tally:#?}"),
        Err(wrong) => eprintln!("{wrong}"),
    }
    ExitCode::from(u8::from(tally.is_err()))
}

/// Prints a simulation and its run.
fn show(seed: u64) {
    let simulation = Simulation::of(seed);
    println!("{simulation:#?}\n");
    let network = simulation.network();
    network.start_trace();
    let outcomes = catch_unwind(AssertUnwindSafe(|| simulation.run(&network)));
    network.trace().iter().for_each(|entry| println!("{entry}"));
    println!();
    match outcomes {
        Ok(outcomes) => {
            for (rank, outcome) in outcomes.iter().enumerate() {
                println!("rank {rank}: {outcome:?}");
            }
            let mut hearing = Hearing::new(seed, &outcomes).with_log();
            let verdict = hearing.run();
            println!("\nwhat the arbiter hears and says:");
            hearing.log().iter().for_each(|line| println!("{line}"));
            println!("{verdict:?}\n");
        }
        Err(panic) => println!("{}", message(panic)),
    }
    println!("the clock shows {} ns", network.now_ns());
}
