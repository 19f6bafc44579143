//! How a thread waits for its links: it spins, then yields its processor, then sleeps in the kernel.
//!
//! A sleeper must not miss what is published while it lies down. The publisher pays nothing for
//! that: the sleeper says that it sleeps, makes every processor order its memory accesses
//! (`membarrier`), looks again, and only then sleeps. Where the kernel has no such call, links
//! use a fence at every publication instead (see the shared-memory link).

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::Duration;

use crate::Link;
use crate::memory::Bell;

/// `membarrier` commands (linux/membarrier.h).
const GLOBAL_EXPEDITED: libc::c_int = 1 << 1;
const REGISTER_GLOBAL_EXPEDITED: libc::c_int = 1 << 2;

/// Lets this process take part in the barriers of sleepers in other processes. Returns whether
/// the kernel can do that.
pub(crate) fn register_membarrier() -> bool {
    membarrier(REGISTER_GLOBAL_EXPEDITED)
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: the call takes two numbers and touches no memory of this process.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Processors that the threads of this process may use: affinity and cgroup quota, not the
/// machine's count.
pub fn usable_processors() -> usize {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    match COUNT.load(Ordering::Relaxed) {
        0 => {
            let count = std::thread::available_parallelism().map_or(1, usize::from);
            COUNT.store(count, Ordering::Relaxed);
            count
        }
        count => count,
    }
}

/// The policy: how often to look before the next stage.
#[derive(Clone, Copy, Debug)]
pub struct WaitPolicy {
    /// Looks without giving up the processor.
    pub spins: u32,
    /// Looks with `sched_yield` between them, before the thread sleeps.
    pub yields: u32,
}

/// What a waiter does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Look again at once.
    Spin,
    /// The processor was offered to others; look again.
    Yielded,
    /// It is time to sleep: [`Sleeper::sleep`].
    Sleep,
}

impl WaitPolicy {
    /// For `local_ranks` ranks on this host: while each has a processor of its own, spinning
    /// answers fastest; otherwise a spinning rank keeps the one that it waits for from running.
    pub fn for_local_ranks(local_ranks: usize) -> WaitPolicy {
        if local_ranks <= usable_processors() {
            WaitPolicy { spins: 20_000, yields: 200 }
        } else {
            WaitPolicy { spins: 0, yields: 2_000 }
        }
    }

    /// The stage after `looks` looks in vain.
    #[inline]
    pub fn next(&self, looks: u32) -> Stage {
        if looks < self.spins {
            if looks > 64 {
                std::hint::spin_loop();
            }
            Stage::Spin
        } else if looks < self.spins + self.yields {
            std::thread::yield_now();
            Stage::Yielded
        } else {
            Stage::Sleep
        }
    }
}

/// Sleeps until a link has something or a bell rings.
#[derive(Debug, Default)]
pub struct Sleeper {
    descriptors: Vec<libc::pollfd>,
}

impl Sleeper {
    /// Sleeps until one of the links may have moved, `bell` rings, or `timeout` passes. `ready` is
    /// asked once after the peers know that this thread sleeps, and must say whether there is something to
    /// do after all.
    pub fn sleep(
        &mut self,
        links: &mut [Option<Link>],
        bell: &Bell,
        timeout: Duration,
        ready: impl FnOnce(&mut [Option<Link>]) -> bool,
    ) {
        links.iter_mut().flatten().for_each(|link| link.set_parked(true));
        fence(Ordering::SeqCst);
        membarrier(GLOBAL_EXPEDITED);
        if !ready(links) {
            self.poll(links, bell, timeout);
        }
        links.iter_mut().flatten().for_each(|link| link.set_parked(false));
        bell.silence();
    }

    fn poll(&mut self, links: &[Option<Link>], bell: &Bell, timeout: Duration) {
        self.descriptors.clear();
        self.descriptors.push(entry(bell.descriptor(), false));
        let links = links.iter().flatten().filter_map(Link::descriptor);
        self.descriptors.extend(links.map(|(fd, writable)| entry(fd, writable)));
        // Rounded up, so that a deadline has passed when the sleeper wakes.
        let timeout_ms = timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
        // SAFETY: the entries are initialised and as many as said. Interruption is as good as an
        // event: the caller looks and sleeps again.
        unsafe {
            let count = self.descriptors.len() as libc::nfds_t;
            libc::poll(self.descriptors.as_mut_ptr(), count, timeout_ms);
        }
    }
}

fn entry(fd: RawFd, writable: bool) -> libc::pollfd {
    let events = libc::POLLIN | if writable { libc::POLLOUT } else { 0 };
    libc::pollfd { fd, events, revents: 0 }
}
