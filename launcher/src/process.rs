//! Process control that neither std nor nix offers: pidfds, reaping any child, the signals that are
//! passed on, and ending every descendant.

use std::fs;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, raise, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid};

/// What a user or a batch system sends to end a job, and what is passed on to every rank.
const PASSED_ON: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Blocks the signals that the launcher handles and returns a descriptor from which they are read.
///
/// Signals that were ignored on entry (`nohup`, a shell's background job) stay ignored.
pub fn catch_signals() -> io::Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    for signal in PASSED_ON {
        if !is_ignored(signal)? {
            mask.add(signal);
        }
    }
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// The signals waiting in `signals`, those about children left out: whoever asks reaps anyway.
pub fn pending_signals(signals: &SignalFd) -> io::Result<Vec<Signal>> {
    let mut pending = Vec::new();
    while let Some(info) = signals.read_signal()? {
        match Signal::try_from(info.ssi_signo as i32) {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(signal) => pending.push(signal),
        }
    }
    Ok(pending)
}

/// Makes ended children wait to be reaped even where the parent process ignored them.
pub fn keep_exit_statuses() -> io::Result<()> {
    // SAFETY: the default disposition runs no code of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, nix::sys::signal::SigHandler::SigDfl) }?;
    Ok(())
}

/// A descriptor of a process that becomes readable when the process has ended.
pub fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers, and returns a new descriptor (close-on-exec) or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Reaps one ended child, whichever it is, without waiting; `None` if none has ended.
pub fn reap() -> Option<(Pid, ExitStatus)> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    (pid > 0).then(|| (Pid::from_raw(pid), ExitStatus::from_raw(status)))
}

/// Kills every descendant of this process, which must be a child subreaper, except the children
/// `spared` and theirs, and waits for their ends. Returns those that were still there after `limit`
/// (a process can be stuck in the kernel).
///
/// Killing a process hands its children to this one, so that killing children until there are none
/// reaches all of them, even those that left their session.
pub fn end_descendants(spared: &[Pid], limit: Duration) -> io::Result<Vec<Pid>> {
    let deadline = Instant::now() + limit;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let ends = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    loop {
        while ends.read_signal()?.is_some() {}
        while reap().is_some() {}
        let mut left = children()?;
        left.retain(|child| !spared.contains(child));
        for &child in &left {
            // Refused only for a process that changed its user; it is then reported as left.
            let _ = kill(child, Signal::SIGKILL);
        }
        let now = Instant::now();
        if left.is_empty() || now >= deadline {
            return Ok(left);
        }
        wait_readable(&ends, Some(deadline - now))?;
    }
}

/// The processes whose parent this one is.
pub fn children() -> io::Result<Vec<Pid>> {
    let this = getpid();
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that ended meanwhile has no stat; its children show up in the next look.
        let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else { continue };
        if parent_in_stat(&stat) == Some(this) {
            children.push(Pid::from_raw(pid));
        }
    }
    Ok(children)
}

/// Waits until `source` is readable, at most `limit`. Returns whether it is.
pub fn wait_readable(source: &impl AsFd, limit: Option<Duration>) -> io::Result<bool> {
    let mut fds = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, poll_timeout(limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A limit as the kernel takes it: whole milliseconds, rounded up so that a wait never ends early.
pub fn poll_timeout(limit: Option<Duration>) -> PollTimeout {
    match limit {
        None => PollTimeout::NONE,
        Some(limit) => {
            let whole_ms = limit.as_nanos().div_ceil(1_000_000);
            PollTimeout::try_from(whole_ms).unwrap_or(PollTimeout::MAX)
        }
    }
}

/// How a process ended, in words: `exit status 3`, `killed by SIGSEGV`.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {number}"),
        },
        (None, None) => "ended in an unknown way".into(),
    }
}

/// The same behind the name of the process: `ended with exit status 3`, `was killed by SIGSEGV`.
pub fn describe_end(status: ExitStatus) -> String {
    let verb = if status.code().is_some() { "ended with" } else { "was" };
    format!("{verb} {}", describe(status))
}

/// The status to pass on: the process's own, or 128 and the signal's number, as shells do.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

fn is_ignored(signal: Signal) -> io::Result<bool> {
    // SAFETY: all-zero bytes are a valid `sigaction`, which the call below overwrites.
    let mut current: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only asks for the disposition; `current` is a valid place for it.
    if unsafe { libc::sigaction(signal as i32, std::ptr::null(), &mut current) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(current.sa_sigaction == libc::SIG_IGN)
}

/// The parent in the content of `/proc/PID/stat`: the second field after the name, which is in
/// parentheses and may itself hold spaces and parentheses.
fn parent_in_stat(stat: &[u8]) -> Option<Pid> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    fields.split_ascii_whitespace().nth(1)?.parse().ok().map(Pid::from_raw)
}

/// Ends this process by the signal that ends a program whose output nobody reads, and that Rust
/// programs ignore; the launcher then ends the other ranks without a word.
pub fn end_by_broken_pipe() {
    // SAFETY: no handler of this program's is replaced: the signal was ignored.
    let default = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    // Where that fails, an error is told instead.
    let _ = default.and_then(|_| raise(Signal::SIGPIPE));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_a_strange_name() {
        let stat = b"812 (a) b (c) R 77 812 812 0 -1 4194560";
        assert_eq!(parent_in_stat(stat), Some(Pid::from_raw(77)));
        assert_eq!(parent_in_stat(b"garbage"), None);
    }

    #[test]
    fn statuses_are_described_and_passed_on_as_shells_do() {
        let exited = ExitStatus::from_raw(3 << 8);
        assert_eq!((describe(exited), exit_code(exited)), ("exit status 3".into(), 3));
        assert_eq!(describe_end(exited), "ended with exit status 3");
        let killed = ExitStatus::from_raw(libc::SIGKILL);
        assert_eq!((describe(killed), exit_code(killed)), ("killed by SIGKILL".into(), 137));
        assert_eq!(describe_end(killed), "was killed by SIGKILL");
        let real_time = ExitStatus::from_raw(40);
        assert_eq!(
            (describe(real_time), exit_code(real_time)),
            ("killed by signal 40".into(), 168)
        );
    }

    #[test]
    fn waits_are_rounded_up() {
        assert_eq!(poll_timeout(Some(Duration::from_nanos(1))).as_millis(), Some(1));
        assert_eq!(poll_timeout(Some(Duration::ZERO)).as_millis(), Some(0));
        assert!(poll_timeout(None).is_none());
    }
}
