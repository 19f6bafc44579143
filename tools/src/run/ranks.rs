//! Starting the processes of the ranks.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getpid, getppid};

use super::process;
use super::relay::{Stream, Target};

/// A rank that was started and has not been reaped.
pub struct RankProcess {
    /// Its rank.
    pub rank: u32,
    /// Its process id, which is that of its process group too.
    pub pid: Pid,
    /// Readable when the process has ended.
    pub end: OwnedFd,
}

impl RankProcess {
    /// Sends a signal to the rank and to what it started in its process group.
    pub fn signal(&self, signal: Signal) {
        // The group exists as long as its leader is not reaped; a refusal (the program changed its
        // user) leaves nothing to try.
        let _ = kill(Pid::from_raw(-self.pid.as_raw()), signal);
    }
}

/// What to start for one rank.
pub struct RankCommand<'a> {
    /// Its rank.
    pub rank: u32,
    /// The program, found as the shell would find it.
    pub program: &'a OsString,
    /// Its arguments.
    pub arguments: &'a [OsString],
    /// What is set in its environment.
    pub environment: Vec<(&'static str, String)>,
    /// Which processors it may use, unless all that the launcher may.
    pub processors: Option<CpuSet>,
    /// Whether its output goes where the launcher's goes, as it is.
    pub raw_output: bool,
}

/// Starts one rank, with nothing to read on its standard input. Also returns its output, unless
/// that is raw.
///
/// The process is killed when the calling thread ends, so this is for the main thread only.
pub fn start(command: &RankCommand) -> io::Result<(RankProcess, Vec<Stream>)> {
    let mut process = Command::new(command.program);
    process.args(command.arguments).stdin(Stdio::null()).process_group(0);
    process.envs(command.environment.iter().map(|(name, value)| (name, value)));
    if !command.raw_output {
        process.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let launcher = getpid();
    let processors = command.processors;
    // SAFETY: the closure runs between fork and exec: it only makes system calls, and neither
    // allocates nor takes a lock.
    unsafe { process.pre_exec(move || bind_to(launcher, processors)) };
    let mut child = process.spawn()?;
    let pid = Pid::from_raw(child.id() as i32);
    let rank = command.rank;
    let mut streams = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        streams.push(Stream::new(rank, stdout.into(), Target::Stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        streams.push(Stream::new(rank, stderr.into(), Target::Stderr));
    }
    Ok((RankProcess { rank, pid, end: process::open_pidfd(pid)? }, streams))
}

/// In the new process: ends with the launcher, takes signals as a fresh process does, and stays on
/// its processors.
fn bind_to(launcher: Pid, processors: Option<CpuSet>) -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    if let Some(processors) = processors {
        sched_setaffinity(Pid::from_raw(0), &processors)?;
    }
    set_pdeathsig(Signal::SIGKILL)?;
    // It may have ended before it could be watched.
    if getppid() != launcher {
        return Err(Errno::ESRCH.into());
    }
    Ok(())
}
