//! How one side reaches ordinary memory of the other, which has no descriptor to map it by.
//!
//! Cross-memory attach copies between two processes in one call of the kernel, where that lets the
//! one trace the other (same user and, with Yama, leave to do so). It is tried when the link is made:
//! what a peer's rights are is nothing to guess. Ranks that are threads of one process share their
//! memory anyway.

use std::io::{self, IoSlice, IoSliceMut};

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

/// A way to the peer's ordinary memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// None.
    Nothing,
    /// By the kernel, as process `pid`.
    Attach(Pid),
    /// It is this process's own.
    Same,
}

impl Reach {
    /// The way to process `pid`, if `nonce` is what is found there at `address`.
    pub(super) fn probe(pid: Option<u32>, address: u64, nonce: u64) -> Reach {
        let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) else { return Reach::Nothing };
        let attach = Reach::Attach(Pid::from_raw(pid));
        let mut found = [0; 8];
        // SAFETY: the buffer has 8 bytes.
        let read = unsafe { attach.read(address, found.as_mut_ptr(), found.len()) };
        if read.is_err() || u64::from_le_bytes(found) != nonce {
            return Reach::Nothing;
        }
        if pid as u32 == std::process::id() { Reach::Same } else { attach }
    }

    /// Copies from the peer's memory.
    ///
    /// # Safety
    /// `into` must be writable for `len` bytes.
    pub(super) unsafe fn read(self, address: u64, into: *mut u8, len: usize) -> io::Result<()> {
        let Reach::Attach(pid) = self else { return Err(Errno::EPERM.into()) };
        let mut done = 0;
        while done < len {
            let remote = RemoteIoVec { base: address as usize + done, len: len - done };
            // SAFETY: the caller promises the range.
            let local = unsafe { std::slice::from_raw_parts_mut(into.add(done), len - done) };
            match process_vm_readv(pid, &mut [IoSliceMut::new(local)], &[remote]) {
                Ok(0) => return Err(Errno::EFAULT.into()),
                Ok(part) => done += part,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Copies into the peer's memory.
    ///
    /// # Safety
    /// `from` must be readable for `len` bytes; that the peer's range may be written, it has said.
    pub(super) unsafe fn write(self, address: u64, from: *const u8, len: usize) -> io::Result<()> {
        let Reach::Attach(pid) = self else { return Err(Errno::EPERM.into()) };
        let mut done = 0;
        while done < len {
            let remote = RemoteIoVec { base: address as usize + done, len: len - done };
            // SAFETY: the caller promises the range.
            let local = unsafe { std::slice::from_raw_parts(from.add(done), len - done) };
            match process_vm_writev(pid, &[IoSlice::new(local)], &[remote]) {
                Ok(0) => return Err(Errno::EFAULT.into()),
                Ok(part) => done += part,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_is_reached() {
        let nonce = Box::new(0x1234_5678_9abc_def0_u64);
        let address = std::ptr::from_ref(&*nonce) as u64;
        let me = Some(std::process::id());
        assert_eq!(Reach::probe(me, address, *nonce), Reach::Same);
        assert_eq!(Reach::probe(me, address, 1), Reach::Nothing);
        assert_eq!(Reach::probe(me, 8, 1), Reach::Nothing);
        assert_eq!(Reach::probe(None, address, *nonce), Reach::Nothing);
    }
}
