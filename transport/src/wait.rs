//! How a thread waits for its links: it spins, then yields its processor, then sleeps in the
//! kernel.
//!
//! A sleeper must not miss what is published while it lies down. The publisher pays nothing for
//! that: the sleeper says that it sleeps, makes every processor order its memory accesses
//! (`membarrier`), looks again, and only then sleeps. Where the kernel has no such call, links
//! use a fence at every publication instead (see the shared-memory link).

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

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

/// Looks in a row that nothing is between: `pause` would cost more than the message takes.
const BARE_LOOKS: u32 = 64;

/// How long a thread offers its processor to others before it sleeps. Longer pays only while
/// all others are ranks that come to the point at once; beside a busy neighbour each offer may
/// cost milliseconds, and a sleeper is woken sooner.
const YIELD: Duration = Duration::from_micros(100);

/// The policy: how long a wait spins before it yields.
#[derive(Clone, Copy, Debug)]
pub struct WaitPolicy {
    spins: u32,
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

/// A wait that has not found anything yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wait {
    looks: u32,
    yielding_since: Option<Instant>,
}

impl WaitPolicy {
    /// For `local_ranks` ranks on this host: while each has a processor of its own, spinning
    /// answers fastest; otherwise a spinning rank keeps the one that it waits for from running.
    pub fn for_local_ranks(local_ranks: usize) -> WaitPolicy {
        // About 50 microseconds, which is what waking a sleeper can cost.
        WaitPolicy { spins: if local_ranks <= usable_processors() { 4_000 } else { 0 } }
    }

    /// Waits a little after a look in vain, and says how.
    #[inline]
    pub fn next(&self, wait: &mut Wait) -> Stage {
        wait.looks += 1;
        if wait.looks <= self.spins {
            if wait.looks > BARE_LOOKS {
                std::hint::spin_loop();
            }
            return Stage::Spin;
        }
        let now = Instant::now();
        if now - *wait.yielding_since.get_or_insert(now) > YIELD {
            return Stage::Sleep;
        }
        std::thread::yield_now();
        Stage::Yielded
    }
}

/// Sleeps until a link has something or a bell rings.
#[derive(Debug, Default)]
pub struct Sleeper {
    descriptors: Vec<libc::pollfd>,
}

impl Sleeper {
    /// For up to `links` links, so that sleeping allocates nothing.
    pub fn for_links(links: usize) -> Sleeper {
        Sleeper { descriptors: Vec::with_capacity(links + 1) }
    }

    /// Sleeps until one of the links may have moved, `bell` rings, or `timeout` passes. `ready` is
    /// asked once after the peers know that this thread sleeps, and must say whether there is
    /// something to do after all.
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
