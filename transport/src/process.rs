//! Processes of this host: to see one end, and to end one.
//!
//! A pidfd names a process for as long as the descriptor is open, so that a process number that
//! was given to another process meanwhile is never meant.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest single sleep in `poll`, whose timeout is at most this many milliseconds.
const MAX_SLEEP_MS: u128 = 60_000;

/// A process, by descriptor. It is readable once the process has ended.
#[derive(Debug)]
pub struct PidFd {
    descriptor: OwnedFd,
}

impl PidFd {
    /// Opens a process by its number, as this process's namespace counts.
    ///
    /// The caller must know by other means that the number still is the process's that it means:
    /// for a peer, by exchanging something with it after this call.
    ///
    /// # Errors
    /// What `pidfd_open` says: `ESRCH` where no such process is.
    pub fn open(pid: u32) -> io::Result<PidFd> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from(Errno::ESRCH))?;
        // SAFETY: the call takes two integers and touches no memory of this process.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let descriptor = Errno::result(result)?;
        // SAFETY: the kernel has just made this descriptor (close-on-exec) for this caller alone.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
        Ok(PidFd { descriptor })
    }

    /// Ends the process, even one that is stopped. That it has ended is seen by waiting.
    ///
    /// # Errors
    /// `EPERM` where that is not allowed. A process that has ended already is no error.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(libc::SIGKILL)
    }

    /// Whether [`PidFd::kill`] is allowed.
    pub fn may_kill(&self) -> bool {
        self.signal(0).is_ok()
    }

    fn signal(&self, number: libc::c_int) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null `siginfo` is allowed and means the same as for `kill`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.descriptor.as_raw_fd(),
                number,
                no_info,
                0,
            )
        };
        match Errno::result(result) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended; false if it still lives at the deadline.
    ///
    /// # Errors
    /// What `poll` says.
    pub fn wait_ended(&self, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let sleep_ms = left.as_nanos().div_ceil(1_000_000).min(MAX_SLEEP_MS) as u16;
            let mut fds = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(sleep_ms)) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the process has ended.
    ///
    /// # Errors
    /// What `poll` says.
    pub fn has_ended(&self) -> io::Result<bool> {
        self.wait_ended(Instant::now())
    }
}

/// A descriptor that this process was started with, by its number: a copy of it, which children do not
/// inherit.
///
/// # Errors
/// `EBADF` where it is not open.
pub fn inherited_descriptor(number: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(number).ok().filter(|number| *number >= 0);
    let number = number.ok_or_else(|| io::Error::from(Errno::EBADF))?;
    // SAFETY: the number is only used for the one call that copies the descriptor, which says so where
    // none is open; that is not -1.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned()
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl From<OwnedFd> for PidFd {
    /// A pidfd that was received from somewhere.
    fn from(descriptor: OwnedFd) -> PidFd {
        PidFd { descriptor }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Duration;

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_process_is_seen_to_end_when_it_is_killed() {
        let mut child = sleeper();
        let process = PidFd::open(child.id()).unwrap();
        assert!(!process.has_ended().unwrap());
        process.kill().unwrap();
        assert!(process.wait_ended(soon()).unwrap());
        child.wait().unwrap();
        process.kill().unwrap(); // harmless: the descriptor still means the process that ended
        assert!(process.has_ended().unwrap());
    }

    #[test]
    fn a_stopped_process_can_be_killed() {
        let mut child = sleeper();
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        let process = PidFd::open(child.id()).unwrap();
        process.kill().unwrap();
        assert!(process.wait_ended(soon()).unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn an_inherited_descriptor_is_copied_or_refused() {
        let (mine, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let copy = inherited_descriptor(mine.as_raw_fd() as u32).unwrap();
        assert_ne!(copy.as_raw_fd(), mine.as_raw_fd());
        drop((copy, theirs));
        for number in [u32::MAX, i32::MAX as u32] {
            assert_eq!(inherited_descriptor(number).unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
    }

    #[test]
    fn a_process_that_never_was_is_an_error() {
        assert_eq!(PidFd::open(u32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(PidFd::open(4_194_304).is_err()); // the kernel's largest limit on process numbers
    }
}
