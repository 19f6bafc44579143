//! `ringtree tune`: measures what each algorithm takes between processes, keeps that for later
//! communicators to choose by, and shows it.

mod table;

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use ringtree::{Communicator, Settings, Tuning, TuningCache};
use ringtree_transport::endpoint::Transports;

use crate::bench::Transport;
use crate::cli::seconds;
use ringtree_launcher::{
    Binding, LaunchError, LaunchOptions, Layout, end_by_broken_pipe, launch, report,
};

/// How long the other ranks may run on after one has failed.
const GRACE: Duration = Duration::from_secs(5);

/// Measures what each algorithm takes, and keeps it: later calls choose by that
///
/// Alone it starts the ranks itself, as processes of this host. Under a launcher (ringtree run,
/// torchrun) it joins them. The times are kept for so many ranks on such a machine with such settings
/// in a file of $XDG_CACHE_HOME/ringtree, or ~/.cache/ringtree, where rank 0 of every communicator
/// looks for them when it is made. With RINGTREE_TUNING=off it does not.
///
/// Shown is the fastest algorithm for each size, and what it gains where another one would be chosen
/// without these times.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  ringtree tune --ranks 4\n  \
                        ringtree run --ranks 4 --bind core -- ringtree tune --seconds 30\n  \
                        ringtree tune --show")]
pub struct TuneArguments {
    /// How many processes to start [default: one a processor, at least 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    ranks: Option<u32>,
    /// Which transports may be used
    #[arg(long, value_name = "NAME", default_value = "auto")]
    transport: Transport,
    /// About how long to measure; over slow links some of the large sizes are left out
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    seconds: Duration,
    /// Only show what was measured before
    #[arg(long, conflicts_with_all = ["ranks", "transport", "seconds"])]
    show: bool,
    /// Only remove what was measured before
    #[arg(long, conflicts_with_all = ["ranks", "transport", "seconds", "show"])]
    forget: bool,
}

/// Why nothing could be measured, kept or shown.
#[derive(Debug, thiserror::Error)]
enum TuneError {
    #[error("{0}")]
    Library(#[from] ringtree::Error),
    #[error("cannot start the ranks: {0}")]
    Launch(#[from] LaunchError),
    #[error("cannot find this program's own file: {0}")]
    Program(io::Error),
    #[error("the launcher has started {launched} ranks: leave --ranks {asked} out")]
    Ranks { asked: u32, launched: u32 },
    #[error("there is no home directory to keep times in: set XDG_CACHE_HOME")]
    NoHome,
    #[error("cannot {what} {}: {source}", folder.display())]
    Cache { what: &'static str, folder: PathBuf, source: io::Error },
    #[error("cannot print: {0}")]
    Print(io::Error),
}

/// Does what was asked for.
pub fn run(arguments: &TuneArguments) -> ExitCode {
    let done = match arguments {
        TuneArguments { show: true, .. } => show(),
        TuneArguments { forget: true, .. } => forget(),
        _ if Settings::in_env() => take_part(arguments),
        _ => start_ranks(arguments),
    };
    done.unwrap_or_else(|error| {
        if matches!(&error, TuneError::Print(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            end_by_broken_pipe();
        }
        report(&error.to_string());
        let is_mistake = matches!(
            error,
            TuneError::Ranks { .. }
                | TuneError::NoHome
                | TuneError::Library(ringtree::Error::Settings(_))
        );
        ExitCode::from(if is_mistake { 2 } else { 1 })
    })
}

/// Starts this program again, once for each rank.
fn start_ranks(arguments: &TuneArguments) -> Result<ExitCode, TuneError> {
    // Told once, and before anything is measured.
    cache()?;
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let code = launch(&LaunchOptions {
        ranks: arguments.ranks.unwrap_or(processors.max(2) as u32),
        layout: Layout::Nodes { nodes: 1, node_rank: 0 },
        rendezvous: None,
        job: None,
        binding: Binding::None,
        program: env::current_exe().map_err(TuneError::Program)?.into(),
        arguments: env::args_os().skip(1).collect(),
        raw_output_of_rank_0: true,
        grace: GRACE,
        restarts: 0,
        min_ranks: None,
    })?;
    Ok(ExitCode::from(code))
}

/// Measures as one of the ranks.
fn take_part(arguments: &TuneArguments) -> Result<ExitCode, TuneError> {
    let mut settings = Settings::from_env()?;
    if let Some(asked) = arguments.ranks.filter(|&asked| asked != settings.ranks) {
        return Err(TuneError::Ranks { asked, launched: settings.ranks });
    }
    match arguments.transport {
        Transport::Auto => {}
        Transport::Shm => settings.transports = Transports::Shm,
        Transport::Tcp => settings.transports = Transports::Tcp,
        Transport::Rdma => settings.transports = Transports::Rdma,
        Transport::RdmaOrTcp => settings.transports = Transports::RdmaOrTcp,
    }
    // What is measured counts whether or not a job is to be reproducible.
    settings.reproducible = false;
    settings.tuning = Tuning::Off;
    let communicator = Communicator::with(settings)?;
    let tuned = communicator.tune(arguments.seconds)?;
    if communicator.rank() > 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let cache = cache()?;
    let path = cache.keep(&tuned).map_err(failed("keep times in", &cache))?;
    print(&format!("{}# kept in {}\n", table::table(&tuned), path.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn show() -> Result<ExitCode, TuneError> {
    let cache = cache()?;
    let tables = cache.tables().map_err(failed("read", &cache))?;
    if tables.is_empty() {
        print(&format!("nothing is kept in {}\n", cache.folder().display()))?;
    }
    for (path, table) in tables {
        let path = path.display();
        print(&match table {
            Ok(tuned) => format!("{}# kept in {path}\n\n", table::table(&tuned)),
            Err(why) => format!("# {path} cannot be used: {why}\n\n"),
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn forget() -> Result<ExitCode, TuneError> {
    let cache = cache()?;
    let removed = cache.forget().map_err(failed("remove what is in", &cache))?;
    let files = crate::words::counted(removed as u64, "table");
    print(&format!("removed {files} from {}\n", cache.folder().display()))?;
    Ok(ExitCode::SUCCESS)
}

fn cache() -> Result<TuningCache, TuneError> {
    TuningCache::of_user().ok_or(TuneError::NoHome)
}

fn failed(what: &'static str, cache: &TuningCache) -> impl FnOnce(io::Error) -> TuneError {
    let folder = cache.folder().to_owned();
    move |source| TuneError::Cache { what, folder, source }
}

fn print(text: &str) -> Result<(), TuneError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(TuneError::Print)
}
