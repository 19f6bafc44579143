//! `ringtree plan`: prints one rank's plan, or proves the plans of all ranks.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::ValueEnum;
use ringtree_plan::{Algorithm, Collective, Plan, prove};

use crate::run::report;

/// Prints the plan of a collective, or proves it.
///
/// A plan is what one rank does in one round: which chunks of its input, output and scratch it
/// sends, receives and reduces. The proof runs the plans of all ranks on symbolic values: in and
/// out of place, with no credit, few and unlimited credits, over two successive rounds.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ringtree plan all-reduce --algorithm ring --ranks 4 --rank 2\n  \
                        ringtree plan all-reduce --algorithm double-tree --ranks 64 --check"
)]
pub struct PlanArguments {
    /// What all ranks do together
    #[arg(value_name = "COLLECTIVE")]
    collective: Kind,
    /// How: ring, double-tree, doubling, one-shot or two-shot; needed for all-reduce only
    #[arg(long, value_name = "NAME", value_parser = algorithm)]
    algorithm: Option<Algorithm>,
    /// How many ranks take part
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_RANKS))]
    ranks: u32,
    /// Whose plan to print
    #[arg(long, value_name = "R", default_value_t = 0, conflicts_with = "check")]
    rank: u32,
    /// The rank that broadcasts
    #[arg(long, value_name = "R", default_value_t = 0)]
    root: u32,
    /// Prove the plans of all ranks instead of printing one
    #[arg(long)]
    check: bool,
}

/// More ranks than any machine has; a ring's plan of one rank still prints at once.
const MAX_RANKS: i64 = 65_536;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    AllReduce,
    Broadcast,
    Barrier,
}

/// Why no plan can be shown.
#[derive(Debug, thiserror::Error)]
enum PlanError {
    #[error("--rank {rank} is not below --ranks {ranks}: ranks count from 0")]
    Rank { rank: u32, ranks: u32 },
    #[error("--root {root} is not below --ranks {ranks}: ranks count from 0")]
    Root { root: u32, ranks: u32 },
    #[error("--root is for broadcast: leave it out")]
    NoRoot,
    #[error("give --algorithm NAME, one of: {valid}")]
    NoAlgorithm { valid: String },
    #[error("{algorithm} does not serve this collective: write one of: {valid}")]
    OtherCollective { algorithm: Algorithm, valid: String },
}

/// Does what was asked for; a plan that is wrong makes the status 1.
pub fn run(arguments: &PlanArguments) -> ExitCode {
    match chosen(arguments) {
        Err(error) => {
            report(&error.to_string());
            ExitCode::from(2)
        }
        Ok((algorithm, collective)) if arguments.check => {
            verdict(algorithm, collective, arguments.ranks)
        }
        Ok((algorithm, collective)) => {
            let &PlanArguments { rank, ranks, .. } = arguments;
            let plan = algorithm.plan(collective, rank, ranks);
            let heading =
                format!("# {algorithm}: rank {rank} of {ranks}, {} chunks a round", plan.chunks);
            // Whoever closes the pipe has seen enough.
            let _ = write!(io::stdout().lock(), "{heading}\n{plan}");
            ExitCode::SUCCESS
        }
    }
}

/// The algorithm called `name`.
pub fn algorithm(name: &str) -> Result<Algorithm, String> {
    Algorithm::from_name(name).ok_or_else(|| format!("the algorithms are {}", names(|_| true)))
}

/// The algorithms that are `wanted`, for a sentence.
pub fn names(wanted: impl Fn(Algorithm) -> bool) -> String {
    let wanted = Algorithm::ALL.into_iter().filter(|&algorithm| wanted(algorithm));
    wanted.map(Algorithm::name).collect::<Vec<_>>().join(", ")
}

fn chosen(arguments: &PlanArguments) -> Result<(Algorithm, Collective), PlanError> {
    let &PlanArguments { ranks, rank, root, .. } = arguments;
    if rank >= ranks {
        return Err(PlanError::Rank { rank, ranks });
    }
    if root >= ranks {
        return Err(PlanError::Root { root, ranks });
    }
    let collective = match arguments.collective {
        Kind::AllReduce => Collective::AllReduce,
        Kind::Broadcast => Collective::Broadcast { root },
        Kind::Barrier => Collective::Barrier,
    };
    if root != 0 && arguments.collective != Kind::Broadcast {
        return Err(PlanError::NoRoot);
    }
    let serving: Vec<Algorithm> =
        Algorithm::ALL.into_iter().filter(|algorithm| algorithm.serves(collective)).collect();
    match (arguments.algorithm, serving.as_slice()) {
        (Some(algorithm), _) if algorithm.serves(collective) => Ok((algorithm, collective)),
        (Some(algorithm), _) => {
            let valid = names(|other| other.serves(collective));
            Err(PlanError::OtherCollective { algorithm, valid })
        }
        (None, &[only]) => Ok((only, collective)),
        (None, _) => Err(PlanError::NoAlgorithm { valid: names(|other| other.serves(collective)) }),
    }
}

fn verdict(algorithm: Algorithm, collective: Collective, ranks: u32) -> ExitCode {
    let plans: Vec<Plan> = (0..ranks).map(|rank| algorithm.plan(collective, rank, ranks)).collect();
    match prove(collective, &plans) {
        Ok(seen) => {
            let steps: usize = plans.iter().map(|plan| plan.steps.len()).sum();
            println!(
                "proved: {algorithm} on {ranks} ranks: {steps} steps, {} messages in two rounds",
                seen.frames
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("wrong: {algorithm} on {ranks} ranks: {error}");
            ExitCode::FAILURE
        }
    }
}
