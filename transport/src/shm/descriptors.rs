//! Descriptors that come over a Unix socket.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use std::io::IoSliceMut;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The kernel passes no more with one message (`SCM_MAX_FD`). With room for all of them none is
/// cut off, which would leave those that did come without an owner.
const MOST_OF_A_MESSAGE: usize = 253;

/// Receives bytes, and the descriptors that came with them, each of which `take` becomes the owner
/// of. They are closed on exec.
#[derive(Debug)]
pub(super) struct Receiver {
    /// It is kept, since a sleeper reads whenever it wakes.
    space: Vec<u8>,
}

impl Receiver {
    pub(super) fn new() -> Receiver {
        Receiver { space: nix::cmsg_space!([RawFd; MOST_OF_A_MESSAGE]) }
    }

    /// Returns how many bytes came; 0 at the end.
    pub(super) fn receive(
        &mut self,
        socket: &UnixStream,
        bytes: &mut [u8],
        flags: MsgFlags,
        mut take: impl FnMut(OwnedFd),
    ) -> Result<usize, Errno> {
        let mut parts = [IoSliceMut::new(bytes)];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut self.space), flags)?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = part {
                for descriptor in descriptors {
                    // SAFETY: the kernel has just made this descriptor for this process.
                    take(unsafe { OwnedFd::from_raw_fd(descriptor) });
                }
            }
        }
        Ok(message.bytes)
    }
}
