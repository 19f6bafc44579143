//! Two processes that watch each other, so that no rank outlives a killed launcher.
//!
//! The process that the user started only waits and passes signals on. The launcher proper is its
//! child. If either is killed, the other one ends everything below it: both are child subreapers,
//! so that orphaned grandchildren come to them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::kill;
use nix::sys::signalfd::SignalFd;
use nix::unistd::{ForkResult, Pid, fork, getpid, setpgid};

use super::process;
use super::{END_LIMIT, report};

/// Runs `body` in a child of this process and returns the status to exit with.
///
/// `body` is given a descriptor that becomes readable when this process has ended; it must then
/// end everything that it started. Must be called while the process has one thread.
pub fn guarded(body: impl FnOnce(OwnedFd) -> u8) -> io::Result<u8> {
    process::keep_exit_statuses()?;
    set_child_subreaper(true)?;
    let signals = process::catch_signals()?;
    let guardian = process::open_pidfd(getpid())?;
    // A script may have started some before it became this program (`sidecar & exec ringtree ..`).
    let not_ours = process::children()?;
    // SAFETY: the process has one thread, so that no lock can be held by another one.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(signals);
            // Out of the terminal's foreground group: what is typed there reaches the launcher
            // once, through the guardian.
            let prepared = setpgid(Pid::from_raw(0), Pid::from_raw(0))
                .and_then(|()| set_child_subreaper(true));
            let code = match prepared {
                Ok(()) => body(guardian),
                Err(error) => {
                    report(&format!("cannot set up the launcher: {error}"));
                    1
                }
            };
            std::process::exit(i32::from(code));
        }
        ForkResult::Parent { child } => {
            drop(guardian);
            let status = watch(child, &signals)?;
            if status.signal().is_some() {
                report(&format!(
                    "the launcher was {}: ending all ranks",
                    process::describe(status)
                ));
            }
            process::end_descendants(&not_ours, END_LIMIT)?;
            Ok(process::exit_code(status))
        }
    }
}

/// Passes signals on to the launcher until it ends.
fn watch(launcher: Pid, signals: &SignalFd) -> io::Result<ExitStatus> {
    let end = process::open_pidfd(launcher)?;
    loop {
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(end.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        for signal in process::pending_signals(signals)? {
            // It cannot be gone: nobody else reaps it.
            kill(launcher, signal)?;
        }
        // Orphans come here only after the launcher has ended: it is a subreaper itself.
        while let Some((pid, status)) = process::reap() {
            if pid == launcher {
                return Ok(status);
            }
        }
    }
}
