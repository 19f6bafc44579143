//! How a thread waits for its links: it spins, then yields its processor, then sleeps in the
//! kernel.
//!
//! A sleeper must not miss what is published while it lies down. The publisher pays nothing for
//! that: the sleeper says that it sleeps, makes every processor order its memory accesses
//! (`membarrier`), looks again, and only then sleeps. Where the kernel has no such call, links
//! use a fence at every publication instead (see the shared-memory link).

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

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

/// Orders the memory accesses of every process that [`register_membarrier`] was called in, as if
/// each had a fence where it just is.
pub(crate) fn order_all_processors() {
    membarrier(GLOBAL_EXPEDITED);
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

/// Looks of a spin at most: some 50 microseconds, which is what waking a sleeper can cost.
const MOST_SPINS: u32 = 600;

/// How long the processor is away when a rank that shares it has answered. It costs less to find out
/// that nobody else wants it, and a stranger keeps it for longer.
const HAND_OVER: std::ops::Range<Duration> = Duration::from_nanos(700)..Duration::from_micros(100);

/// Waits that must have been handed over before a first rank moves.
const PATIENCE: u32 = 16;

/// How long a thread offers its processor to others before it sleeps. A sleeper loses more than his
/// sleep: in a virtual machine that shares its processors with others, an idle one is given away, and
/// 8 bytes of 4 ranks over TCP took 320 microseconds instead of 30 while ranks slept after 100.
const YIELD: Duration = Duration::from_millis(1);

/// What a thread that offers its processor asks to run for at a time: the least that Linux grants.
/// Of all who are due the system runs the one whose time would be up first (since Linux 6.12, by
/// EEVDF), so that the processor goes to the other ranks before it goes to a stranger that keeps it
/// for milliseconds. Nobody gets more time by that than is his due.
const SHORT_SLICE: Duration = Duration::from_micros(100);

/// How often a rank that shares processors looks whether it is where it belongs.
const HOMING: Duration = Duration::from_millis(10);

/// The policy: how long a wait spins before it yields.
///
/// It learns from what spinning was good for: two ranks that share a processor must not spin at each
/// other. And where each could have one of its own, it parts them: schedulers leave two that
/// constantly hand over to each other where they are, beside an idle processor.
///
/// Where there are more ranks than processors, it deals them out evenly: schedulers leave three on
/// one processor and one on the other for a tenth of a second, and all four wait for those three.
#[derive(Clone, Copy, Debug)]
pub struct WaitPolicy {
    spins: u32,
    most_spins: u32,
    /// Waits in a row that were over as soon as another had this processor for a moment.
    handed_over: u32,
    /// So many of them, and this thread moves; each time it takes twice as many, as moving may not
    /// be what helps.
    patience: u32,
    home: Option<Home>,
}

/// Where a rank that shares processors belongs. It is not bound to it: the system may move it for
/// reasons of its own, and it comes back at its next wait after [`HOMING`].
#[derive(Clone, Copy, Debug)]
struct Home {
    processor: usize,
    looked_at: Option<Instant>,
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
    yields: u32,
    /// How long the processor was away.
    first_yield: Duration,
}

impl WaitPolicy {
    /// For one of `ranks` ranks that may use the same processors: while each has one of its own,
    /// spinning answers fastest; otherwise a spinning rank keeps the one that it waits for from
    /// running. `place` tells them apart. To be called in the thread that will wait.
    pub fn for_rank(place: usize, ranks: usize) -> WaitPolicy {
        let most_spins = if ranks <= usable_processors() { MOST_SPINS } else { 0 };
        // Of two that share a processor one moves, and the other does not follow.
        let patience = PATIENCE * (1 + place as u32);
        let home = if most_spins == 0 { Home::of(place, ranks) } else { None };
        WaitPolicy { spins: most_spins, most_spins, handed_over: 0, patience, home }
    }

    /// What was waited for has come.
    #[inline]
    pub fn found(&mut self, wait: &Wait) {
        // What came at once says nothing.
        if wait.yielding_since.is_none() && wait.looks > self.spins / 4 {
            self.spins = (2 * self.spins).min(self.most_spins);
            self.handed_over = 0;
        } else if wait.yields == 1 && self.most_spins > 0 && HAND_OVER.contains(&wait.first_yield) {
            self.handed_over += 1;
            if self.handed_over >= self.patience {
                self.handed_over = 0;
                self.patience = self.patience.saturating_mul(2);
                move_to_another_processor();
            }
        } else if wait.yields > 0 {
            self.handed_over = 0;
        }
    }

    /// Waits a little after a look in vain, and says how.
    #[inline]
    pub fn next(&mut self, wait: &mut Wait) -> Stage {
        wait.looks += 1;
        if wait.looks <= self.spins {
            if wait.looks > BARE_LOOKS {
                std::hint::spin_loop();
            }
            return Stage::Spin;
        }
        let now = Instant::now();
        let Some(since) = wait.yielding_since else {
            self.spins = (self.spins / 2).max(BARE_LOOKS).min(self.most_spins);
            ask_for_short_slices();
            if let Some(home) = &mut self.home {
                home.go(now);
            }
            std::thread::yield_now();
            wait.yielding_since = Some(now);
            wait.yields = 1;
            if self.most_spins > 0 {
                wait.first_yield = now.elapsed();
            }
            return Stage::Yielded;
        };
        if now - since > YIELD {
            return Stage::Sleep;
        }
        std::thread::yield_now();
        wait.yields += 1;
        Stage::Yielded
    }
}

impl Home {
    /// For the rank at `place` among `ranks` ranks that may use the same processors: they take them
    /// in turn. `None` where there is nothing to choose, or one for each.
    fn of(place: usize, ranks: usize) -> Option<Home> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let processors = || (0..CpuSet::count()).filter(|one| allowed.is_set(*one) == Ok(true));
        let count = processors().count();
        let processor = processors().nth(place.checked_rem(count)?)?;
        (1 < count && count < ranks).then_some(Home { processor, looked_at: None })
    }

    /// Moves this thread there, if it has not looked where it is for a while and is elsewhere.
    fn go(&mut self, now: Instant) {
        if self.looked_at.is_some_and(|before| now - before < HOMING) {
            return;
        }
        self.looked_at = Some(now);
        if sched_getcpu() != Ok(self.processor) {
            move_within(|allowed| {
                let mut home = CpuSet::new();
                let is_allowed = allowed.is_set(self.processor)?;
                if is_allowed {
                    home.set(self.processor).map(|()| home)
                } else {
                    Err(Errno::EINVAL)
                }
            });
        }
    }
}

thread_local! {
    /// Nanoseconds that this thread ran for at a time before it asked for less.
    static OWN_SLICE_NS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Once a thread: see [`SHORT_SLICE`]. Older systems, and real-time threads, stay as they are.
fn ask_for_short_slices() {
    if OWN_SLICE_NS.get().is_none() {
        let before = ask_for_slices(SHORT_SLICE.as_nanos() as u64);
        if before.is_none() {
            tracing::debug!("the system does not let a thread choose how long it runs at a time");
        }
        OWN_SLICE_NS.set(Some(before.unwrap_or(0)));
    }
}

/// Gives this thread back the time that it ran for at once before a wait of its had it ask for
/// less. To be called when it waits no more.
pub fn restore_slices() {
    if let Some(before) = OWN_SLICE_NS.take().filter(|before| *before > 0) {
        ask_for_slices(before);
    }
}

/// Keeps everything else about how this thread is scheduled. Returns what it was before, in
/// nanoseconds; `None` if the system refuses.
fn ask_for_slices(slice_ns: u64) -> Option<u64> {
    let len = size_of::<libc::sched_attr>() as libc::c_uint;
    // SAFETY: all zero is a valid value of this plain structure.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is as long as said, and 0 is this thread.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, len, 0) };
    let is_ordinary =
        [libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&(attributes.sched_policy as i32));
    if got != 0 || !is_ordinary {
        return None;
    }
    let before_ns = std::mem::replace(&mut attributes.sched_runtime, slice_ns);
    // SAFETY: as above; the system only reads it.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    (set == 0).then_some(before_ns)
}

/// Has this thread continue on another processor than the one that it is on, if it may.
fn move_to_another_processor() {
    move_within(|allowed| {
        let mut others = *allowed;
        others.unset(sched_getcpu()?).map(|()| others)
    });
}

/// Has this thread continue on one of the processors that `choose` takes from those that it may use,
/// which stay the same. Where it takes none, nothing happens.
fn move_within(choose: impl FnOnce(&CpuSet) -> nix::Result<CpuSet>) {
    let this = Pid::from_raw(0);
    let Ok(allowed) = sched_getaffinity(this) else { return };
    if choose(&allowed).and_then(|chosen| sched_setaffinity(this, &chosen)).is_err() {
        return;
    }
    // A thread that was not bound must not be bound to what its group has now: asked for all, it
    // gets those, and follows when the group gets others. One that was bound is bound again.
    let mut all = CpuSet::new();
    (0..CpuSet::count()).for_each(|processor| _ = all.set(processor));
    let widened = sched_setaffinity(this, &all).and_then(|()| sched_getaffinity(this));
    if widened != Ok(allowed) {
        let _ = sched_setaffinity(this, &allowed);
    }
}

/// Descriptors of a link that a sleeper has room for from the beginning: a link over RDMA has one for each
/// queue pair, and one for its control connection.
const USUAL_DESCRIPTORS: usize = 3;

/// Sleeps until a link has something or a bell rings.
#[derive(Debug, Default)]
pub struct Sleeper {
    descriptors: Vec<libc::pollfd>,
}

impl Sleeper {
    /// For up to `links` links, so that sleeping allocates nothing.
    pub fn for_links(links: usize) -> Sleeper {
        Sleeper { descriptors: Vec::with_capacity(links * USUAL_DESCRIPTORS + 1) }
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
        order_all_processors();
        if !ready(links) {
            self.poll(links, bell, timeout);
        }
        links.iter_mut().flatten().for_each(|link| link.set_parked(false));
        bell.silence();
    }

    fn poll(&mut self, links: &[Option<Link>], bell: &Bell, timeout: Duration) {
        self.descriptors.clear();
        self.descriptors.push(entry(bell.descriptor(), false));
        let all = || links.iter().flatten();
        let descriptors = all().flat_map(Link::descriptors);
        self.descriptors.extend(descriptors.map(|(fd, writable)| entry(fd, writable)));
        let timeout = all().filter_map(Link::must_be_polled_within).fold(timeout, Duration::min);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(most_spins: u32) -> WaitPolicy {
        WaitPolicy { spins: most_spins, most_spins, handed_over: 0, patience: PATIENCE, home: None }
    }

    /// How long this thread runs at a time, in nanoseconds.
    fn slice_ns() -> u64 {
        // SAFETY: as in `ask_for_slices`.
        let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
        let len = size_of::<libc::sched_attr>() as libc::c_uint;
        // SAFETY: as above.
        let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, len, 0) };
        assert_eq!(got, 0);
        attributes.sched_runtime
    }

    #[test]
    fn a_thread_gets_its_own_slice_back() {
        let before = slice_ns();
        ask_for_short_slices();
        ask_for_short_slices();
        if OWN_SLICE_NS.get().is_some_and(|own_ns| own_ns > 0) {
            assert_eq!(slice_ns(), SHORT_SLICE.as_nanos() as u64);
        }
        restore_slices();
        assert_eq!(slice_ns(), before);
        // Nothing is left to give back.
        restore_slices();
        assert_eq!(slice_ns(), before);
    }

    /// A wait for what comes after so many looks, or when the processor is offered to others.
    fn wait(policy: &mut WaitPolicy, comes_after: Option<u32>) -> u32 {
        let mut wait = Wait::default();
        for look in 1.. {
            if comes_after == Some(look) || policy.next(&mut wait) != Stage::Spin {
                policy.found(&wait);
                return look;
            }
        }
        unreachable!("it never spins for ever")
    }

    #[test]
    fn spinning_that_is_good_for_nothing_becomes_short_and_long_again() {
        let mut policy = policy(MOST_SPINS);
        (0..10).for_each(|_| _ = wait(&mut policy, None));
        assert_eq!(wait(&mut policy, None), BARE_LOOKS + 1);
        // What is there already changes nothing.
        (0..10).for_each(|_| _ = wait(&mut policy, Some(1)));
        assert_eq!(wait(&mut policy, None), BARE_LOOKS + 1);
        for looks in [40, 100, 200, 400] {
            assert_eq!(wait(&mut policy, Some(looks)), looks);
        }
        assert_eq!(wait(&mut policy, None), MOST_SPINS + 1);
    }

    #[test]
    fn moving_that_does_not_help_becomes_rare() {
        let mut policy = policy(MOST_SPINS);
        let first_yield = HAND_OVER.start;
        let answered =
            Wait { looks: 65, yielding_since: Some(Instant::now()), yields: 1, first_yield };
        let slept = Wait { yields: 9, ..answered };
        let waits = |policy: &mut WaitPolicy| {
            let before = policy.patience;
            (1..).find(|_| {
                policy.found(&answered);
                policy.patience != before
            })
        };
        assert_eq!(waits(&mut policy), Some(PATIENCE));
        assert_eq!(waits(&mut policy), Some(2 * PATIENCE));
        (1..4 * PATIENCE).for_each(|_| policy.found(&answered));
        policy.found(&slept);
        assert_eq!(waits(&mut policy), Some(4 * PATIENCE), "they are counted in a row");
    }

    #[test]
    fn ranks_that_share_a_processor_by_design_never_spin() {
        let mut policy = policy(0);
        assert_eq!(wait(&mut policy, Some(1)), 1);
        assert_eq!(wait(&mut policy, None), 1);
    }

    #[test]
    fn a_thread_that_moves_may_still_use_all_its_processors() {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let before = sched_getcpu().unwrap();
        move_to_another_processor();
        assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), allowed);
        // The system may have moved it back since, but not each time.
        let moved = (0..100).any(|_| {
            move_to_another_processor();
            sched_getcpu().unwrap() != before
        });
        assert!(moved || usable_processors() == 1);
    }

    #[test]
    fn ranks_that_share_processors_take_them_in_turn_and_stay_unbound() {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let count = (0..CpuSet::count()).filter(|one| allowed.is_set(*one).unwrap()).count();
        let ranks = 2 * count;
        let homes: Vec<Option<usize>> =
            (0..ranks).map(|place| Home::of(place, ranks).map(|home| home.processor)).collect();
        if count == 1 {
            assert_eq!(homes, [None, None]);
            return;
        }
        assert_eq!(Home::of(0, count).map(|home| home.processor), None, "one for each");
        assert_eq!(homes[..count], homes[count..]);
        assert!(homes[..count].is_sorted_by(|one, next| one < next));
        for place in 0..count {
            // The system may have moved it since, but not each time.
            let came_home = (0..100).any(|_| {
                let mut home = Home::of(place, ranks).unwrap();
                home.go(Instant::now());
                sched_getcpu() == Ok(home.processor)
            });
            assert!(came_home);
            assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), allowed);
        }
    }

    #[test]
    fn a_rank_looks_whether_it_is_at_home_only_now_and_then() {
        let start = Instant::now();
        // There is no such processor, so that it stays where it is.
        let mut home = Home { processor: CpuSet::count(), looked_at: None };
        home.go(start);
        home.go(start + HOMING / 2);
        assert_eq!(home.looked_at, Some(start));
        home.go(start + HOMING);
        assert_eq!(home.looked_at, Some(start + HOMING));
    }
}
