//! `ringtree run`: starts the ranks of a job on this host and looks after them, or has launchers on
//! other hosts do so.
//!
//! The launcher of the first host, or the one that starts the others, also hosts what the ranks meet
//! at: the rendezvous store and the control service.

mod binding;
mod guardian;
mod hostlist;
mod hosts;
mod member;
mod process;
mod ranks;
mod relay;
mod remote;
mod restart;
mod service;
mod supervisor;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

pub use binding::Binding;
pub use hostlist::{HostList, HostShare};
pub use process::end_by_broken_pipe;
use ranks::Ranks;
use remote::Part;
use restart::Limits;
use service::Service;
use supervisor::{Outcome, Supervisor};

/// How long killed processes may take to vanish before the launcher goes without them.
const END_LIMIT: Duration = Duration::from_secs(5);

/// How long the launcher of the first host serves those of the others after its own have ended.
const A_LONG_TIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// The status of a launcher whose guardian, or whose own launcher, is gone.
const ABANDONED: u8 = 128 + Signal::SIGKILL as u8;

/// What to start.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// Ranks of the whole job; at least 1.
    pub ranks: u32,
    /// On which hosts they run, and who starts them there.
    pub layout: Layout,
    /// Where the ranks meet: `host:port`, an address of the first host, or `file:/path`. Needed
    /// where people start the launchers of several hosts.
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
    /// How often ranks that die are started again, all ranks of a host together. A new process
    /// finds `RINGTREE_JOIN=1` in its environment: it must ask the others to take it in. With 0,
    /// and without `min_ranks`, the first rank that fails ends the job.
    pub restarts: u32,
    /// How many ranks of each host must be left, or wait for being started again, for the job to go
    /// on; at least 1. By default all: who did not ask for a smaller job does not get one.
    pub min_ranks: Option<u32>,
}

/// Where the ranks of a job run.
#[derive(Clone, Debug)]
pub enum Layout {
    /// On this host, or on several, where people start a launcher on each.
    Nodes {
        /// Hosts of the job; from 1 to `ranks`.
        nodes: u32,
        /// Which of them this one is; below `nodes`.
        node_rank: u32,
    },
    /// On hosts whose launchers this one starts.
    Hosts {
        /// The hosts with their ranks: all of them, in order.
        hosts: Vec<HostShare>,
        /// The command that starts something on another host.
        ssh: String,
    },
}

impl LaunchOptions {
    /// Whether this is the launcher that hosts the rendezvous.
    fn is_first(&self) -> bool {
        !matches!(self.layout, Layout::Nodes { node_rank: 1.., .. })
    }

    fn nodes(&self) -> u32 {
        match &self.layout {
            Layout::Nodes { nodes, .. } => *nodes,
            Layout::Hosts { hosts, .. } => hosts.len() as u32,
        }
    }

    fn others_are_started_by_hand(&self) -> bool {
        matches!(self.layout, Layout::Nodes { nodes: 2.., .. })
    }

    /// Whether this launcher starts ranks on other hosts.
    fn has_other_hosts(&self) -> bool {
        match &self.layout {
            Layout::Nodes { .. } => false,
            Layout::Hosts { hosts, .. } => !hosts.iter().all(|it| remote::is_this_host(&it.name)),
        }
    }

    /// The fewest ranks that a host has.
    fn fewest_ranks(&self) -> u32 {
        match &self.layout {
            Layout::Nodes { nodes, .. } => self.ranks / nodes,
            Layout::Hosts { hosts, .. } => {
                hosts.iter().map(|host| host.ranks.len() as u32).min().unwrap_or(0)
            }
        }
    }

    /// What is done about those of `ranks` that die, if the first one does not end the job.
    fn limits(&self, ranks: &Range<u32>) -> Option<Limits> {
        let here = ranks.len() as u32;
        let is_asked_for = self.restarts > 0 || self.min_ranks.is_some();
        is_asked_for.then(|| Limits {
            restarts: self.restarts,
            min_ranks: self.min_ranks.unwrap_or(here),
            ranks_elsewhere: self.ranks - here,
        })
    }

    fn part(&self, ranks: Range<u32>, environment: Vec<(String, String)>) -> Part {
        Part {
            limits: self.limits(&ranks),
            ranks,
            environment,
            binding: self.binding,
            program: self.program.clone(),
            arguments: self.arguments.clone(),
            raw_output_of_rank_0: self.raw_output_of_rank_0,
            grace: self.grace,
        }
    }
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
    #[error(
        "several hosts need --rendezvous HOST:PORT, an address of the first host, or file:/PATH"
    )]
    NoRendezvous,
    /// A host has fewer ranks than must be left there.
    #[error("--min-ranks {min_ranks} is not between 1 and {ranks}, the ranks of {}", of(*hosts))]
    MinRanks {
        /// Ranks that must be left on each host.
        min_ranks: u32,
        /// The fewest ranks that a host has.
        ranks: u32,
        /// Hosts of the job.
        hosts: u32,
    },
    /// More ranks than the hosts take.
    #[error("--ranks {ranks} does not fit the hosts, which have {slots} slots")]
    Slots {
        /// Ranks asked for.
        ranks: u32,
        /// What the hosts take.
        slots: u32,
    },
    /// The launcher of another host cannot be started.
    #[error("cannot start a launcher on host {host}: {source}")]
    Host {
        /// The host.
        host: String,
        /// What the system said.
        source: io::Error,
    },
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
/// the first rank that failed (128 and the signal's number where a signal ended it). Where ranks may
/// fail, 0, or that of the first one without which the job could not go on.
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
    // Written at once: ranks may print to the same place.
    let _ = io::stderr().write_all(format!("ringtree: {text}\n").as_bytes());
}

/// As [`launch`], for the part of a job that another launcher hands over on standard input.
pub fn launch_part() -> Result<u8, LaunchError> {
    let (part, launcher) = remote::receive().map_err(during("take a part of a job"))?;
    guardian::guarded(|guardian| {
        watch_part(part, launcher, guardian).unwrap_or_else(|error| {
            report(&error.to_string());
            error.exit_code()
        })
    })
    .map_err(during("watch over the launcher"))
}

fn check(options: &LaunchOptions) -> Result<(), LaunchError> {
    if let Layout::Nodes { nodes, node_rank } = options.layout {
        check_nodes(options, nodes, node_rank)?;
    }
    let (ranks, hosts) = (options.fewest_ranks(), options.nodes());
    match options.min_ranks {
        Some(min_ranks) if min_ranks == 0 || min_ranks > ranks => {
            Err(LaunchError::MinRanks { min_ranks, ranks, hosts })
        }
        _ => Ok(()),
    }
}

fn check_nodes(options: &LaunchOptions, nodes: u32, node_rank: u32) -> Result<(), LaunchError> {
    let ranks = options.ranks;
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
    let watch = Watch { service: &service, signals: &signals, guardian: &guardian };
    let code = watch.run(None, options.grace, |supervisor| match &options.layout {
        Layout::Nodes { nodes, node_rank } => {
            let here = hosts::ranks_of_node(options.ranks, *nodes, *node_rank);
            start_ranks(options.part(here, service.environment()), supervisor)
        }
        Layout::Hosts { hosts, ssh } => start_hosts(options, hosts, ssh, &service, supervisor),
    })?;
    if let (Some(code), true) = (code, options.others_are_started_by_hand()) {
        let limit = if code == 0 { A_LONG_TIME } else { options.grace };
        let others = service.others_left(limit).map_err(during("wait for other hosts"))?;
        others.as_ref().map_or(Ok(false), |others| watch.wait_for_end(others))?;
    }
    Ok(code.unwrap_or(ABANDONED))
}

/// The launcher proper of a part.
fn watch_part(part: Part, launcher: File, guardian: OwnedFd) -> Result<u8, LaunchError> {
    let signals = process::catch_signals().map_err(during("catch signals"))?;
    let service = Service::elsewhere();
    let watch = Watch { service: &service, signals: &signals, guardian: &guardian };
    let grace = part.grace;
    let start = |supervisor: &mut Supervisor| start_ranks(part, supervisor);
    Ok(watch.run(Some(launcher), grace, start)?.unwrap_or(ABANDONED))
}

/// What a launcher looks at while its job runs.
struct Watch<'a> {
    service: &'a Service,
    signals: &'a SignalFd,
    guardian: &'a OwnedFd,
}

impl Watch<'_> {
    /// Starts members and waits until all have ended and everything that they printed is passed on.
    /// Returns the status to pass on; none, where nobody is left to pass it on to.
    fn run(
        &self,
        launcher: Option<File>,
        grace: Duration,
        start: impl FnOnce(&mut Supervisor) -> Result<(), LaunchError>,
    ) -> Result<Option<u8>, LaunchError> {
        let outcome = self.supervise(launcher, grace, start);
        // Whatever went wrong, nothing stays.
        let left = process::end_descendants(&[], END_LIMIT).map_err(during("end all processes"))?;
        for pid in left {
            report(&format!("process {pid} does not end"));
        }
        let (Outcome::Ended(code), output) = outcome? else { return Ok(None) };
        let lost_output =
            self.wait_for_end(&output)? && (&output).read(&mut [0]).is_ok_and(|count| count > 0);
        if lost_output {
            self.wait_for_end(&output)?;
        }
        Ok(Some(if lost_output { code.max(1) } else { code }))
    }

    fn supervise(
        &self,
        launcher: Option<File>,
        grace: Duration,
        start: impl FnOnce(&mut Supervisor) -> Result<(), LaunchError>,
    ) -> Result<(Outcome, PipeReader), LaunchError> {
        let (feed, output) = relay::start().map_err(during("pass on output"))?;
        let mut supervisor =
            Supervisor::new(self.signals, self.service, self.guardian, launcher, feed, grace)
                .map_err(during("watch the ranks"))?;
        start(&mut supervisor)?;
        let outcome = supervisor.run().map_err(during("watch the ranks"))?;
        Ok((outcome, output))
    }

    fn wait_for_end(&self, pipe: &PipeReader) -> Result<bool, LaunchError> {
        wait_for_end(pipe, self.signals, self.guardian).map_err(during("wait"))
    }
}

fn start_ranks(part: Part, supervisor: &mut Supervisor) -> Result<(), LaunchError> {
    let ranks = Ranks::new(part).map_err(during("bind the ranks"))?;
    for rank in ranks.all() {
        let (member, streams) = ranks.start(rank)?;
        supervisor.watch(member, streams).map_err(during("watch a rank"))?;
    }
    supervisor.replace_by(ranks);
    Ok(())
}

fn start_hosts(
    options: &LaunchOptions,
    hosts: &[HostShare],
    ssh: &str,
    service: &Service,
    supervisor: &mut Supervisor,
) -> Result<(), LaunchError> {
    let environment = service.environment_elsewhere()?;
    for host in hosts {
        let part = options.part(host.ranks.clone(), environment.clone());
        let failed = |source| LaunchError::Host { host: host.name.clone(), source };
        let (member, streams) = remote::start(host, &part, ssh).map_err(failed)?;
        supervisor.watch(member, streams).map_err(during("watch a host"))?;
    }
    Ok(())
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

/// Whose ranks, in an error.
fn of(hosts: u32) -> &'static str {
    if hosts == 1 { "the job" } else { "the host with the fewest: each host counts its own" }
}

fn during(what: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::System { what, source }
}
