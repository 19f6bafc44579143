//! The command line: what can be asked for, and what is said about a mistake.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::bench::{self, BenchArguments};
use crate::config::{self, ConfigArguments};
use crate::doctor::{self, DoctorArguments};
use crate::manual::{self, CompletionsArguments, ManArguments};
use crate::plan::{self, PlanArguments};
use crate::sim::{self, SimArguments};
use crate::topo::{self, TopoArguments};
use crate::tune::{self, TuneArguments};
use ringtree_launcher::{
    Binding, HostList, LaunchError, LaunchOptions, Layout, launch, launch_part, report,
};

/// Measures collectives, predicts them and chooses by that, starts jobs, shows and proves plans, shows how
/// a machine is wired and says what is wrong with it.
#[derive(Debug, Parser)]
#[command(name = "ringtree", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Bench(Box<BenchArguments>),
    Completions(CompletionsArguments),
    Config(ConfigArguments),
    Doctor(DoctorArguments),
    Man(ManArguments),
    Plan(PlanArguments),
    Run(RunArguments),
    /// Takes the part of a job that `ringtree run --hosts` hands over on standard input
    #[command(hide = true)]
    Remote,
    Sim(SimArguments),
    Topo(Box<TopoArguments>),
    Tune(TuneArguments),
}

/// Starts the ranks of a job, on this host or on several, and looks after them.
///
/// Each rank is a process with RINGTREE_RANK, RINGTREE_RANKS, RINGTREE_LOCAL_RANK,
/// RINGTREE_RENDEZVOUS, RINGTREE_JOB and RINGTREE_SECRET in its environment and nothing on its
/// standard input. Each line that it prints gets its rank in front. SIGINT, SIGTERM, SIGHUP and
/// SIGQUIT are passed on; a second one kills all ranks. When a rank fails the others are ended,
/// and its exit status (or 128 and the number of the signal that killed it) is passed on.
///
/// With --restart or --min-ranks a rank that fails does not end the job: it is started again, with
/// RINGTREE_JOIN=1 in its environment, and the others go on meanwhile, or for good where --min-ranks
/// says so. That takes a program that goes on after a failure (Communicator::shrink). The first
/// restart comes 0.1 s after the failure, each further one after twice as long, up to 10 s; 8 s of
/// quiet halve that again. Nobody is started again once a rank has ended with status 0: the work is
/// over. A rank that fails within a second of its start three times in a row is given up. Where too
/// few ranks are left the others are ended, and the status of the rank that could not be spared is
/// passed on; else that is 0. On several hosts each counts its own ranks and restarts; with --hosts
/// the end of one is that of the job.
///
/// The job's secret is made up, or taken from RINGTREE_SECRET or RINGTREE_SECRET_FILE.
///
/// With --hosts or --hostfile a launcher is started on each host over ssh, which must not ask for
/// anything. This program must be there at the same path as here, and the folder that this one is
/// in. RINGTREE_* variables are passed on, others are not. The ranks meet at this host, at the
/// address of RINGTREE_INTERFACE, or else that of the way to the world, unless --rendezvous says
/// where.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: ringtree run --ranks 4 -- python3 train.py\n\
                  On several hosts, over ssh:\n  \
                  ringtree run --hosts a:8,b:8 -- ./train\n\
                  Ranks that die are started again, 10 times at most; 6 must be left:\n  \
                  ringtree run --ranks 8 --restart 10 --min-ranks 6 -- ./train\n\
                  Without ssh start the first one so; it prints what to type on the others:\n  \
                  ringtree run --ranks 16 --nodes 2 --rendezvous 10.0.0.1:29400 -- ./train")]
struct RunArguments {
    /// Ranks of the whole job, all hosts together; with --hosts or --hostfile as many as there are
    /// slots, unless fewer are said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    #[arg(required_unless_present_any = ["hosts", "hostfile"])]
    ranks: Option<u32>,
    /// Hosts to start ranks on over ssh, and how many each takes (1 if not said)
    #[arg(long, value_name = "HOST:N,..", conflicts_with_all = ["nodes", "node_rank"])]
    hosts: Option<HostList>,
    /// The same in a file: a line for each host, such as "node7 slots=4" or "node7:4"
    #[arg(long, value_name = "FILE", conflicts_with_all = ["hosts", "nodes", "node_rank"])]
    #[arg(value_parser = HostList::read)]
    hostfile: Option<HostList>,
    /// What starts a program on a host; the host and a line for its shell are added
    #[arg(long, value_name = "COMMAND", default_value = "ssh -o BatchMode=yes")]
    ssh: String,
    /// Hosts of the job
    #[arg(long, value_name = "H", default_value_t = 1)]
    nodes: u32,
    /// Which of them this one is, from 0; host 0 is where the ranks meet
    #[arg(long, value_name = "R", default_value_t = 0)]
    node_rank: u32,
    /// Address and port of host 0, or with --hosts of this one, as the other hosts reach it; or
    /// file:/PATH, a file that all hosts share and by which they find it
    #[arg(long, value_name = "HOST:PORT")]
    rendezvous: Option<String>,
    /// Name of the job [default: made up]
    #[arg(long, value_name = "NAME", env = "RINGTREE_JOB")]
    job: Option<String>,
    /// Seconds that the other ranks get after one has failed, before SIGTERM, and again before
    /// SIGKILL
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    grace: Duration,
    /// How often ranks that fail are started again, all ranks of a host together
    #[arg(long, value_name = "N", default_value_t = 0)]
    restart: u32,
    /// The job goes on while as many ranks of each host run or are about to be started again
    /// [default: all]
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=65536))]
    min_ranks: Option<u32>,
    /// What each rank is bound to
    #[arg(long, value_name = "TO", default_value = "none")]
    bind: Binding,
    /// Pass on what rank 0 prints as it is, without its rank in front
    #[arg(long)]
    raw: bool,
    /// The program that each rank runs, and its arguments
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

impl TryFrom<RunArguments> for LaunchOptions {
    type Error = LaunchError;

    fn try_from(arguments: RunArguments) -> Result<LaunchOptions, LaunchError> {
        let (ranks, layout) = match arguments.hosts.or(arguments.hostfile) {
            Some(list) => {
                let hosts = list.share(arguments.ranks)?;
                let ranks = hosts.last().map_or(0, |last| last.ranks.end);
                (ranks, Layout::Hosts { hosts, ssh: arguments.ssh })
            }
            None => {
                let RunArguments { nodes, node_rank, .. } = arguments;
                (arguments.ranks.unwrap_or(1), Layout::Nodes { nodes, node_rank })
            }
        };
        let mut words = arguments.command.into_iter();
        Ok(LaunchOptions {
            ranks,
            layout,
            rendezvous: arguments.rendezvous,
            job: arguments.job,
            binding: arguments.bind,
            program: words.next().unwrap_or_default(),
            arguments: words.collect(),
            raw_output_of_rank_0: arguments.raw,
            grace: arguments.grace,
            restarts: arguments.restart,
            min_ranks: arguments.min_ranks,
        })
    }
}

/// Does what the command line asks for.
pub fn run() -> ExitCode {
    log_to_stderr();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    match cli.command {
        Action::Bench(arguments) => bench::run(&arguments),
        Action::Completions(arguments) => manual::completions(&arguments, Cli::command()),
        Action::Config(arguments) => config::run(&arguments),
        Action::Doctor(arguments) => doctor::run(&arguments),
        Action::Man(arguments) => manual::man(&arguments, Cli::command()),
        Action::Plan(arguments) => plan::run(&arguments),
        Action::Sim(arguments) => sim::run(&arguments),
        Action::Topo(arguments) => topo::run(&arguments),
        Action::Tune(arguments) => tune::run(&arguments),
        Action::Run(arguments) => {
            status(LaunchOptions::try_from(arguments).and_then(|options| launch(&options)))
        }
        Action::Remote => status(launch_part()),
    }
}

/// A launcher's status, and what it has to say if that is its own.
fn status(launched: Result<u8, LaunchError>) -> ExitCode {
    ExitCode::from(launched.unwrap_or_else(|error| {
        report(&error.to_string());
        error.exit_code()
    }))
}

/// What the library has to say goes to standard error, from the level in RINGTREE_LOG on.
fn log_to_stderr() {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .with_env_var("RINGTREE_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Help and version as they are; a mistake in one line that says what to write instead.
fn explain(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
        || !error.use_stderr()
    {
        // Nothing can be said where even this cannot be printed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(2);
    }
    report(&mistake(error));
    ExitCode::from(2)
}

/// A mistake in one line.
fn mistake(error: &clap::Error) -> String {
    let text = |kind| error.get(kind).map(words).unwrap_or_default();
    let suggestion =
        [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg, ContextKind::SuggestedValue]
            .into_iter()
            .find_map(|kind| error.get(kind))
            .map(words);
    let instead = suggestion.map(|word| format!(": did you mean {word}?"));
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let instead = instead.unwrap_or_else(|| ": see ringtree --help".into());
            format!("there is no command {}{instead}", text(ContextKind::InvalidSubcommand))
        }
        ErrorKind::UnknownArgument => {
            let word = text(ContextKind::InvalidArg);
            let instead = instead.unwrap_or_else(|| match word.as_str() {
                "-g" | "-t" | "--ngpus" | "--nthreads" => {
                    ": each rank is a process, give --ranks N".into()
                }
                _ => ": --help lists what there is".into(),
            });
            let kind = if word.starts_with('-') { "there is no option" } else { "what is" };
            format!("{kind} {word}{instead}")
        }
        ErrorKind::InvalidValue if text(ContextKind::InvalidValue).is_empty() => {
            format!("{} needs a value", text(ContextKind::InvalidArg))
        }
        ErrorKind::InvalidValue if error.get(ContextKind::ValidValue).is_some() => {
            let value = text(ContextKind::InvalidValue);
            let valid = text(ContextKind::ValidValue);
            let instead = instead.unwrap_or_default();
            format!(
                "{} cannot be {value}{instead} (one of: {valid})",
                text(ContextKind::InvalidArg)
            )
        }
        ErrorKind::MissingRequiredArgument => {
            format!("missing: {}", text(ContextKind::InvalidArg))
        }
        ErrorKind::ArgumentConflict => {
            let (one, other) = (text(ContextKind::InvalidArg), text(ContextKind::PriorArg));
            format!("{one} and {other} exclude each other: leave one out")
        }
        _ => first_line(error),
    }
}

/// The first line of clap's own message, without "error: ".
fn first_line(error: &clap::Error) -> String {
    let message = error.render().to_string();
    let line = message.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

fn words(value: &ContextValue) -> String {
    match value {
        ContextValue::Strings(words) => words.join(", "),
        other => other.to_string(),
    }
}

/// A number of seconds, not below 0.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number =
        text.parse::<f64>().ok().and_then(|number| Duration::try_from_secs_f64(number).ok());
    number.ok_or_else(|| "not a number of seconds such as 5 or 0.5".into())
}
