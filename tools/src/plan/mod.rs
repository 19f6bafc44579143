//! `ringtree plan`: prints one rank's plan, draws or proves the plans of all ranks.

mod picture;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::ProgressBar;
use ringtree_plan::{Algorithm, Collective, Plan, prove};

use crate::collective::{CollectiveName, algorithm, algorithm_names, all_algorithm_names, serving};
use crate::words::{counted, say};
use ringtree_launcher::report;

/// Prints the plan of a collective, draws it, or proves it.
///
/// A plan is what one rank does in one round: which chunks of its input, output and scratch it
/// sends, receives and reduces. The proof runs the plans of all ranks on symbolic values: in and
/// out of place, with no credit, few and unlimited credits, over two successive rounds.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ringtree plan all-reduce --algorithm ring --ranks 4 --rank 2\n  \
                        ringtree plan all-reduce --algorithm ring --ranks 4 --svg ring.svg\n  \
                        ringtree plan all-reduce --algorithm double-tree --ranks 64 --check"
)]
pub struct PlanArguments {
    /// What all ranks do together
    #[arg(value_name = "COLLECTIVE")]
    collective: CollectiveName,
    #[arg(long, value_name = "NAME", help = format!(
        "How: {}. A hierarchical plan is that of two ranks a host",
        all_algorithm_names()
    ))]
    algorithm: Option<String>,
    /// How many ranks take part
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_RANKS))]
    ranks: u32,
    /// Whose plan to print
    #[arg(long, value_name = "R", default_value_t = 0, conflicts_with_all = ["check", "svg"])]
    rank: u32,
    /// The rank that gives to all, or gets from all
    #[arg(long, value_name = "R", default_value_t = 0)]
    root: u32,
    /// Prove the plans of all ranks instead of printing one
    #[arg(long)]
    check: bool,
    /// Draw the plans of all ranks into this file, as SVG, instead of printing one
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    svg: Option<PathBuf>,
}

/// More ranks than any machine has; a ring's plan of one rank still prints at once.
const MAX_RANKS: i64 = 65_536;

/// More do not fit a picture that a person looks at.
const MOST_DRAWN_RANKS: u32 = 64;

/// Why no plan can be shown.
#[derive(Debug, thiserror::Error)]
enum PlanError {
    #[error("--rank {rank} is not below --ranks {ranks}: ranks count from 0")]
    Rank { rank: u32, ranks: u32 },
    #[error("--root {root} is not below --ranks {ranks}: ranks count from 0")]
    Root { root: u32, ranks: u32 },
    #[error("a picture of {ranks} ranks cannot be read: draw at most {MOST_DRAWN_RANKS}")]
    TooMany { ranks: u32 },
    #[error("cannot write {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("--root is for broadcast, reduce, gather and scatter: leave it out")]
    NoRoot,
    #[error("give --algorithm NAME, one of: {valid}")]
    NoAlgorithm { valid: String },
    #[error("{algorithm} is not an algorithm for this collective: write one of {valid}")]
    OtherCollective { algorithm: String, valid: String },
}

/// Does what was asked for; a plan that is wrong makes the status 1.
pub fn run(arguments: &PlanArguments) -> ExitCode {
    do_it(arguments).unwrap_or_else(|error| {
        report(&error.to_string());
        ExitCode::from(2)
    })
}

fn do_it(arguments: &PlanArguments) -> Result<ExitCode, PlanError> {
    let (algorithm, collective) = chosen(arguments)?;
    let &PlanArguments { rank, ranks, .. } = arguments;
    if arguments.check {
        return Ok(verdict(algorithm, collective, ranks));
    }
    if let Some(path) = &arguments.svg {
        draw(algorithm, collective, ranks, path)?;
        return Ok(ExitCode::SUCCESS);
    }
    let plan = algorithm.plan(collective, rank, ranks);
    let chunks = counted(plan.chunks, "chunk");
    Ok(say(&format!("# {algorithm}: rank {rank} of {ranks}, {chunks} a round\n{plan}"), 0))
}

fn draw(
    algorithm: Algorithm,
    collective: Collective,
    ranks: u32,
    path: &Path,
) -> Result<(), PlanError> {
    if ranks > MOST_DRAWN_RANKS {
        return Err(PlanError::TooMany { ranks });
    }
    let plans = plans(algorithm, collective, ranks);
    let title = format!("{} by {algorithm} among {}", collective.name(), counted(ranks, "rank"));
    let written = picture::write(&title, &plans, path);
    written.map_err(|source| PlanError::File { path: path.to_owned(), source })
}

fn plans(algorithm: Algorithm, collective: Collective, ranks: u32) -> Vec<Plan> {
    (0..ranks).map(|rank| algorithm.plan(collective, rank, ranks)).collect()
}

fn chosen(arguments: &PlanArguments) -> Result<(Algorithm, Collective), PlanError> {
    let &PlanArguments { ranks, rank, root, .. } = arguments;
    if rank >= ranks {
        return Err(PlanError::Rank { rank, ranks });
    }
    if root >= ranks {
        return Err(PlanError::Root { root, ranks });
    }
    let collective = arguments.collective.with_root(root);
    if root != 0 && collective.root().is_none() {
        return Err(PlanError::NoRoot);
    }
    let serving: Vec<Algorithm> = serving(collective).collect();
    match (&arguments.algorithm, serving.as_slice()) {
        (Some(name), _) => match algorithm(name, collective) {
            Ok(algorithm) => Ok((algorithm, collective)),
            Err(valid) => Err(PlanError::OtherCollective { algorithm: name.clone(), valid }),
        },
        (None, &[only]) => Ok((only, collective)),
        (None, _) => Err(PlanError::NoAlgorithm { valid: algorithm_names(collective) }),
    }
}

fn verdict(algorithm: Algorithm, collective: Collective, ranks: u32) -> ExitCode {
    let plans = plans(algorithm, collective, ranks);
    // The proof of many ranks takes long; on a terminal that is to be seen.
    let sign = ProgressBar::new_spinner()
        .with_message(format!("proving the plans of {}", counted(ranks, "rank")));
    sign.enable_steady_tick(Duration::from_millis(200));
    let proof = prove(collective, &plans);
    sign.finish_and_clear();
    match proof {
        Ok(seen) => {
            let steps: usize = plans.iter().map(|plan| plan.steps.len()).sum();
            let (ranks, steps) = (counted(ranks, "rank"), counted(steps, "step"));
            let messages = counted(seen.frames, "message");
            say(&format!("proved: {algorithm} on {ranks}: {steps}, {messages} in two rounds\n"), 0)
        }
        Err(error) => {
            say(&format!("wrong: {algorithm} on {}: {error}\n", counted(ranks, "rank")), 1)
        }
    }
}
