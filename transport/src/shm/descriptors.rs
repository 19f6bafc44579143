//! A descriptor that comes over a Unix socket.

use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

/// Length of the ancillary data with one descriptor: there is no room for a second one.
// SAFETY: it only computes.
const SPACE_BYTES: usize = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) } as usize;

/// Receives bytes, and the descriptor that came with them. Returns how many bytes came; 0 at the
/// end. The descriptor is closed on exec.
///
/// # Errors
/// `ENOBUFS` where descriptors were cut off: more than one came, or this process may have no more.
/// Then none is kept.
pub(super) fn receive(
    socket: &UnixStream,
    bytes: &mut [u8],
    flags: MsgFlags,
) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // Words, since the header in it must be aligned.
    let mut space = [0_u64; SPACE_BYTES.div_ceil(8)];
    // SAFETY: all zero is a header that names nothing.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
    (header.msg_control, header.msg_controllen) = (space.as_mut_ptr().cast(), SPACE_BYTES as _);
    let flags = flags.bits() | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header names memory that lives until the end and is as long as it says.
    let received =
        Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) })?;
    let descriptor = descriptor(&header);
    // What did come has its owner by now.
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(Errno::ENOBUFS);
    }
    Ok((received as usize, descriptor))
}

/// Becomes the owner of the descriptor that `recvmsg` has left in the header's ancillary data. nix
/// reads none where some were cut off, and those that did come would stay open for ever.
fn descriptor(header: &libc::msghdr) -> Option<OwnedFd> {
    // SAFETY: the kernel has filled in the header and the data that it names, as far as the
    // header now says; the descriptor was made for this process, and nobody else has seen it.
    unsafe {
        let first = libc::CMSG_FIRSTHDR(header);
        let ancillary = first.as_ref()?;
        let is_descriptor = ancillary.cmsg_level == libc::SOL_SOCKET
            && ancillary.cmsg_type == libc::SCM_RIGHTS
            && ancillary.cmsg_len as usize == SPACE_BYTES;
        is_descriptor
            .then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    /// Sends one byte, and `copies` of a descriptor.
    pub(in crate::shm) fn pass(socket: &UnixStream, byte: u8, what: &impl AsFd, copies: usize) {
        let rights = vec![what.as_fd().as_raw_fd(); copies];
        let message = [ControlMessage::ScmRights(&rights)];
        let flags = MsgFlags::empty();
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[byte])], &message, flags, None).unwrap();
    }

    /// How many descriptors of this process are of the same file: those of other tests are not.
    pub(in crate::shm) fn open(what: &impl AsFd) -> usize {
        let file = |fd: &str| fs::read_link(format!("/proc/self/fd/{fd}")).ok();
        let wanted = file(&what.as_fd().as_raw_fd().to_string()).unwrap();
        let entries = fs::read_dir("/proc/self/fd").unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| file(name).as_ref() == Some(&wanted)).count()
    }

    #[test]
    fn a_descriptor_comes_with_its_bytes_and_has_an_owner() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (passed, _held) = UnixStream::pair().unwrap();
        pass(&ours, 7, &passed, 1);
        let mut bytes = [0; 2];
        let (received, descriptor) = receive(&theirs, &mut bytes, MsgFlags::empty()).unwrap();
        assert_eq!((received, bytes), (1, [7, 0]));
        assert_eq!(open(&passed), 2);
        drop(descriptor.unwrap());
        assert_eq!(open(&passed), 1);
    }

    #[test]
    fn of_descriptors_that_are_cut_off_none_stays_open() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (passed, _held) = UnixStream::pair().unwrap();
        for copies in [2, 3, 200] {
            pass(&ours, 7, &passed, copies);
            let refused = receive(&theirs, &mut [0; 2], MsgFlags::empty()).unwrap_err();
            assert_eq!((refused, open(&passed)), (Errno::ENOBUFS, 1), "{copies}");
        }
    }
}
