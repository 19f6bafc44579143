//! `ringtree run`: starts the ranks of a job on this host and looks after them.
//!
//! The launcher of the first host also hosts what the ranks meet at: the rendezvous store and the
//! control service.

mod binding;
mod guardian;
mod hosts;
mod process;
mod ranks;
mod relay;
mod service;
mod supervisor;

use std::ffi::OsString;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

pub use binding::Binding;
pub use process::end_by_broken_pipe;
use ranks::RankCommand;
use relay::Stream;
use service::Service;
use supervisor::{Outcome, Supervisor};

/// How long killed processes may take to vanish before the launcher goes without them.
const END_LIMIT: Duration = Duration::from_secs(5);

/// How long the launcher of the first host serves those of the others after its own have ended.
const A_LONG_TIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// What to start.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// Ranks of the whole job; at least 1.
    pub ranks: u32,
    /// Hosts of the job; from 1 to `ranks`.
    pub nodes: u32,
    /// Which of them this one is; below `nodes`.
    pub node_rank: u32,
    /// Where the ranks meet: `host:port`, an address of the first host. Needed on several hosts.
    pub rendezvous: Option<String>,
    /// The job's name; by default one is made up.
    pub job: Option<String>,
    /// What each rank is bound to.
    pub binding: Binding,
    /// The program of every rank.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Whether rank 0's output is passed on as it is; otherwise each line names its rank.
    pub raw_output_of_rank_0: bool,
    /// How long the others may run on after a rank has failed, and again after they were asked
    /// to end.
    pub grace: Duration,
}

/// Why a job could not be started or watched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// More hosts than ranks, or none.
    #[error("--nodes {nodes} does not fit --ranks {ranks}: give each host at least one rank")]
    Nodes {
        /// Hosts asked for.
        nodes: u32,
        /// Ranks asked for.
        ranks: u32,
    },
    /// No such host among the job's.
    #[error("--node-rank {node_rank} is not below --nodes {nodes}: hosts count from 0")]
    NodeRank {
        /// Host asked for.
        node_rank: u32,
        /// Hosts of the job.
        nodes: u32,
    },
    /// Several hosts need an address that is known to all.
    #[error("several hosts need --rendezvous HOST:PORT, an address of the first host")]
    NoRendezvous,
    /// The secret, or the place where ranks meet.
    #[error(transparent)]
    Service(#[from] service::ServiceError),
    /// The program cannot be started.
    #[error("cannot start {}: {source}", program.display())]
    Program {
        /// The program asked for.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something that the launcher needs.
    #[error("cannot {what}: {source}")]
    System {
        /// What was refused.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl LaunchError {
    /// The status to exit with; as shells do where a program cannot be started.
    pub fn exit_code(&self) -> u8 {
        match self {
            LaunchError::Program { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            LaunchError::Program { .. } => 126,
            _ => 2,
        }
    }
}

/// Runs the job's part on this host to its end and returns the status to exit with: 0, or that of
/// the first rank that failed (128 and the signal's number where a signal ended it).
///
/// Nothing that it started is left behind, not even when the launcher is killed. Forks, so the
/// process must have one thread.
pub fn launch(options: &LaunchOptions) -> Result<u8, LaunchError> {
    check(options)?;
    guardian::guarded(|guardian| {
        watch_ranks(options, guardian).unwrap_or_else(|error| {
            report(&error.to_string());
            error.exit_code()
        })
    })
    .map_err(during("watch over the launcher"))
}

/// A line for the user, beside what the ranks print. Where nobody reads it, it is not said.
pub fn report(text: &str) {
    let _ = writeln!(io::stderr(), "ringtree: {text}");
}

fn check(options: &LaunchOptions) -> Result<(), LaunchError> {
    let &LaunchOptions { ranks, nodes, node_rank, .. } = options;
    if nodes == 0 || nodes > ranks {
        return Err(LaunchError::Nodes { nodes, ranks });
    }
    if node_rank >= nodes {
        return Err(LaunchError::NodeRank { node_rank, nodes });
    }
    if nodes > 1 && options.rendezvous.is_none() {
        return Err(LaunchError::NoRendezvous);
    }
    Ok(())
}

/// The launcher proper.
fn watch_ranks(options: &LaunchOptions, guardian: OwnedFd) -> Result<u8, LaunchError> {
    let signals = process::catch_signals().map_err(during("catch signals"))?;
    let service = Service::start(options)?;
    let outcome = run_ranks(options, &service, &signals, &guardian);
    // Whatever went wrong, nothing stays.
    let left = process::end_descendants(&[], END_LIMIT).map_err(during("end all processes"))?;
    for pid in left {
        report(&format!("process {pid} does not end"));
    }
    match outcome? {
        (Outcome::Ended(code), output) => {
            let wait = |end| wait_for_end(end, &signals, &guardian).map_err(during("wait"));
            let lost_output =
                wait(&output)? && (&output).read(&mut [0]).is_ok_and(|count| count > 0);
            if lost_output {
                wait(&output)?;
            }
            let code = if lost_output { code.max(1) } else { code };
            if options.nodes > 1 {
                let limit = if code == 0 { A_LONG_TIME } else { options.grace };
                let others = service.others_left(limit).map_err(during("wait for other hosts"))?;
                others.as_ref().map_or(Ok(false), wait)?;
            }
            Ok(code)
        }
        (Outcome::Abandoned, _) => Ok(128 + Signal::SIGKILL as u8),
    }
}

fn run_ranks(
    options: &LaunchOptions,
    service: &Service,
    signals: &SignalFd,
    guardian: &OwnedFd,
) -> Result<(Outcome, PipeReader), LaunchError> {
    let mut supervisor = Supervisor::new(signals, service, guardian, options.grace)
        .map_err(during("watch the ranks"))?;
    let streams = start_ranks(options, service, &mut supervisor)?;
    let output = relay::start(streams).map_err(during("pass on output"))?;
    let outcome = supervisor.run().map_err(during("watch the ranks"))?;
    Ok((outcome, output))
}

fn start_ranks(
    options: &LaunchOptions,
    service: &Service,
    supervisor: &mut Supervisor,
) -> Result<Vec<Stream>, LaunchError> {
    let mut streams = Vec::new();
    let here = hosts::ranks_of_node(options.ranks, options.nodes, options.node_rank);
    let sets = options.binding.sets(here.len()).map_err(during("bind the ranks"))?;
    for rank in here.clone() {
        let local_rank = (rank - here.start) as usize;
        let mut environment = service.environment();
        environment.extend([
            ("RINGTREE_RANK", rank.to_string()),
            ("RINGTREE_LOCAL_RANK", local_rank.to_string()),
        ]);
        let command = RankCommand {
            rank,
            program: &options.program,
            arguments: &options.arguments,
            environment,
            processors: sets.as_ref().map(|sets| sets[local_rank]),
            raw_output: rank == 0 && options.raw_output_of_rank_0,
        };
        let (process, output) = ranks::start(&command).map_err(|source| LaunchError::Program {
            program: PathBuf::from(&options.program),
            source,
        })?;
        supervisor.watch(process).map_err(during("watch a rank"))?;
        streams.extend(output);
    }
    Ok(streams)
}

/// Waits until `pipe` reaches its end. Whoever reads our output may be slow or have stopped, and
/// other hosts may go on for long: a signal ends the wait. Returns whether the pipe did.
fn wait_for_end(pipe: &PipeReader, signals: &SignalFd, guardian: &OwnedFd) -> io::Result<bool> {
    loop {
        let mut fds = [
            PollFd::new(pipe.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(guardian.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [is_told, _, is_abandoned] = fds.each_ref().map(|fd| fd.any() == Some(true));
        if is_told || is_abandoned || !process::pending_signals(signals)?.is_empty() {
            return Ok(is_told);
        }
    }
}

fn during(what: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::System { what, source }
}
