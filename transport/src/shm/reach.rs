//! How one side reaches ordinary memory of the other, which has no descriptor to map it by.
//!
//! Cross-memory attach copies between two processes in one call of the kernel, where that lets the
//! one trace the other (same user and, with Yama, leave to do so). It is tried when the link is made:
//! what a peer's rights are is nothing to guess. Ranks that are threads of one process share their
//! memory anyway.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{LazyLock, Once};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

/// What Yama says who may trace whom, where the system has it.
const RESTRICTION: &str = "/proc/sys/kernel/yama/ptrace_scope";

/// Bytes and number of copies by which the kernel's speed is found.
const SAMPLE_BYTES: usize = 128 << 10;
const SAMPLES: usize = 4;

/// When ranks of one host copy from and to each other's ordinary memory by cross-memory attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// Where the system allows it, and is faster in it than this rank in writing to slots of shared memory.
    /// What goes through slots at first tells what that takes.
    #[default]
    Auto,
    /// Where the system allows it.
    Always,
    /// Not at all.
    Never,
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Attach::Auto => "auto",
            Attach::Always => "always",
            Attach::Never => "never",
        })
    }
}

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
    /// Where Yama lets only ancestors trace a process, as it does on Ubuntu: gives leave to all that
    /// descends from this process's parent, which are the job's other ranks and what else their
    /// launcher started. It takes the place of leave that the program gave before. To be called before
    /// peers probe.
    pub(super) fn invite() {
        static INVITED: Once = Once::new();
        INVITED.call_once(|| {
            let is_restricted = std::fs::read(RESTRICTION).is_ok_and(|scope| scope == b"1\n");
            if is_restricted {
                // SAFETY: the call takes integers and touches no memory.
                let told = unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::getppid(), 0, 0, 0) };
                tracing::debug!("siblings may attach to this process's memory: {}", told == 0);
            }
        });
    }

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
        // Some systems let one read and not write. What is written is there already.
        // SAFETY: as above.
        if unsafe { attach.write(address, found.as_ptr(), found.len()) }.is_err() {
            return Reach::Nothing;
        }
        if pid as u32 == std::process::id() { Reach::Same } else { attach }
    }

    /// What the kernel takes to copy 1024 bytes, in nanoseconds, apart from what the caches of other
    /// processors cost. It looks each page up, and some kernels and virtual machines take long for that.
    pub(super) fn copy_ns_per_kib() -> f32 {
        static COST_NS: LazyLock<f32> = LazyLock::new(|| {
            let (from, mut to) = (vec![1; SAMPLE_BYTES], vec![0; SAMPLE_BYTES]);
            let this = Reach::Attach(Pid::this());
            let sample = |_| {
                let start = Instant::now();
                // SAFETY: both have so many bytes.
                let copied =
                    unsafe { this.read(from.as_ptr() as u64, to.as_mut_ptr(), SAMPLE_BYTES) };
                copied.map_or(f32::INFINITY, |()| start.elapsed().as_nanos() as f32)
            };
            (0..SAMPLES).map(sample).fold(f32::INFINITY, f32::min) * 1024.0 / SAMPLE_BYTES as f32
        });
        *COST_NS
    }

    /// Copies from the peer's memory.
    ///
    /// # Safety
    /// `into` must be writable for `len` bytes.
    pub(super) unsafe fn read(self, address: u64, into: *mut u8, len: usize) -> io::Result<()> {
        self.copy(address, len, |pid, done, remote| {
            // SAFETY: the caller promises the range.
            let local = unsafe { std::slice::from_raw_parts_mut(into.add(done), remote.len) };
            process_vm_readv(pid, &mut [IoSliceMut::new(local)], &[remote])
        })
    }

    /// Copies into the peer's memory.
    ///
    /// # Safety
    /// `from` must be readable for `len` bytes; that the peer's range may be written, it has said.
    pub(super) unsafe fn write(self, address: u64, from: *const u8, len: usize) -> io::Result<()> {
        self.copy(address, len, |pid, done, remote| {
            // SAFETY: the caller promises the range.
            let local = unsafe { std::slice::from_raw_parts(from.add(done), remote.len) };
            process_vm_writev(pid, &[IoSlice::new(local)], &[remote])
        })
    }

    /// Has `part` copy what is left of a range of the peer's, again and again until nothing is: it
    /// is told the process, how much is done, and the rest.
    fn copy(
        self,
        address: u64,
        len: usize,
        part: impl Fn(Pid, usize, RemoteIoVec) -> nix::Result<usize>,
    ) -> io::Result<()> {
        let Reach::Attach(pid) = self else { return Err(Errno::EPERM.into()) };
        let mut done = 0;
        while done < len {
            let rest = RemoteIoVec { base: address as usize + done, len: len - done };
            match part(pid, done, rest) {
                Ok(0) => return Err(Errno::EFAULT.into()),
                Ok(copied) => done += copied,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// This process's memory, as far as the kernel lets others attach to it: what a driver has mapped
/// into it, they cannot reach.
#[derive(Debug, Default)]
pub(super) struct Attachable {
    /// What was found to be so last: calls come again with the same buffer.
    known: std::ops::Range<usize>,
}

impl Attachable {
    /// Whether a range of at least one byte is such memory, as its first and last byte tell.
    pub(super) fn holds(&mut self, data: *const u8, len: usize) -> bool {
        let range = data as usize..data as usize + len;
        if self.known.start <= range.start && range.end <= self.known.end {
            return true;
        }
        let byte = |base| RemoteIoVec { base, len: 1 };
        let ends = [byte(range.start), byte(range.end - 1)];
        let (this, mut found) = (Pid::this(), [0; 2]);
        let holds = process_vm_readv(this, &mut [IoSliceMut::new(&mut found)], &ends) == Ok(2);
        if holds {
            self.known = range;
        }
        holds
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

    #[test]
    fn memory_that_others_cannot_attach_to_is_found_out() {
        let mut attachable = Attachable::default();
        let memory = vec![1_u8; 100_000];
        assert!(attachable.holds(memory.as_ptr(), memory.len()));
        assert!(attachable.holds(memory.as_ptr().wrapping_add(500), 1000));
        // SAFETY: a new mapping at an address that the system chooses; nobody touches it.
        let closed = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_NONE, flags, -1, 0)
        };
        assert_ne!(closed, libc::MAP_FAILED);
        assert!(!attachable.holds(closed.cast(), 8192));
        // SAFETY: the mapping is this test's own.
        unsafe { libc::munmap(closed, 8192) };
    }
}
