//! What the launcher starts and watches: a rank, or the launcher of another host's ranks.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getpid, getppid};

use super::process;
use super::remote::Line;

/// A process that was started and has not been reaped.
pub struct Member {
    /// Its process id, which is that of its process group too.
    pub pid: Pid,
    /// Readable when the process has ended.
    pub end: OwnedFd,
    /// What it is.
    pub role: Role,
}

/// What a process is to the job.
pub enum Role {
    /// A rank.
    Rank(u32),
    /// What connects this launcher to the one of another host.
    Host {
        /// The host, as the user names it.
        name: String,
        /// The ranks there.
        ranks: Range<u32>,
        /// The way to its launcher.
        line: Line,
    },
}

impl Member {
    /// Takes charge of a process that [`spawn`] started.
    pub fn new(pid: Pid, role: Role) -> io::Result<Member> {
        Ok(Member { pid, end: process::open_pidfd(pid)?, role })
    }

    /// Whether a rank ends with this process.
    pub fn has(&self, rank: u32) -> bool {
        match &self.role {
            Role::Rank(own) => *own == rank,
            Role::Host { ranks, .. } => ranks.contains(&rank),
        }
    }

    /// `rank` and `3`, `host` and `b`.
    pub fn words(&self) -> (&'static str, String) {
        match &self.role {
            Role::Rank(rank) => ("rank", rank.to_string()),
            Role::Host { name, .. } => ("host", name.clone()),
        }
    }

    /// `rank 3`, `host b`.
    pub fn name(&self) -> String {
        let (kind, which) = self.words();
        format!("{kind} {which}")
    }

    /// How it ended, in words.
    pub fn describe(&self, status: ExitStatus) -> String {
        let how = process::describe(status);
        match &self.role {
            Role::Host { .. } if status.code() == Some(255) => {
                format!("{how}, which is also ssh's own where it cannot connect")
            }
            _ => how,
        }
    }

    /// Whether a signal ended it, or what it stands for.
    pub fn ended_by(&self, signal: Signal, status: ExitStatus) -> bool {
        let is_passed_on = status.code() == Some(128 + signal as i32);
        status.signal() == Some(signal as i32)
            || matches!(self.role, Role::Host { .. }) && is_passed_on
    }

    /// Sends a signal to the rank and to what it started in its process group, or to all ranks of
    /// the host.
    pub fn signal(&self, signal: Signal) {
        match &self.role {
            Role::Rank(_) => self.signal_here(signal),
            Role::Host { line, .. } => line.pass_on(signal),
        }
    }

    /// Sends a signal to the process itself, and to its group.
    pub fn signal_here(&self, signal: Signal) {
        // The group exists as long as its leader is not reaped; a refusal (the program changed its
        // user) leaves nothing to try.
        let _ = kill(Pid::from_raw(-self.pid.as_raw()), signal);
    }
}

/// Starts a process in a group of its own, bound to processors if some are given.
///
/// It is killed when the calling thread ends, so this is for the main thread only.
pub fn spawn(process: &mut Command, processors: Option<CpuSet>) -> io::Result<Child> {
    let launcher = getpid();
    process.process_group(0);
    // SAFETY: the closure runs between fork and exec: it only makes system calls, and neither
    // allocates nor takes a lock.
    unsafe { process.pre_exec(move || bind_to(launcher, processors)) };
    process.spawn()
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
