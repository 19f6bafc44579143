//! The handshakes under way in this process: so many at once at most, whatever number of sockets
//! it listens on, so that strangers take neither its descriptors nor its memory.
//!
//! Nor may strangers that connect and say nothing keep others waiting: while somebody waits for a
//! place, connections that have not proved themselves within [`GRACE`] are dropped. A rank that was
//! too slow for that dials again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Socket;

/// Handshakes at once, each with a thread and a descriptor: a quarter of the descriptors that
/// a process usually may have, and more than are needed to keep all processors busy.
const LIMIT: usize = 256;

/// How long a connection may take to prove itself while others wait for its place. A rank needs a
/// few round trips.
const GRACE: Duration = Duration::from_millis(200);

/// Those of this process.
pub(super) static OF_PROCESS: Handshakes = Handshakes::new(LIMIT);

pub(super) struct Handshakes {
    limit: usize,
    state: Mutex<State>,
    /// A handshake has ended, or an acceptor stops.
    changed: Condvar,
}

struct State {
    next_id: u64,
    under_way: BTreeMap<u64, Handshake>,
}

struct Handshake {
    began: Instant,
    stage: Stage,
    /// Of the acceptor that it belongs to.
    stopping: Arc<AtomicBool>,
    sever: Box<dyn Fn() + Send>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Unproven,
    Proved,
    /// Its socket has been shut down, which its thread is about to notice.
    Dropped,
}

/// A handshake's place, until it is dropped.
pub(super) struct Place {
    of: &'static Handshakes,
    id: u64,
}

impl Handshakes {
    pub(super) const fn new(limit: usize) -> Handshakes {
        let state = State { next_id: 0, under_way: BTreeMap::new() };
        Handshakes { limit, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits for a place for a connection that was accepted; `None` once `stopping` is set.
    pub(super) fn begin<S: Socket>(
        &'static self,
        socket: &Arc<S>,
        stopping: &Arc<AtomicBool>,
    ) -> Option<Place> {
        let mut state = self.lock();
        loop {
            if stopping.load(Ordering::Relaxed) {
                return None;
            }
            if state.under_way.len() < self.limit {
                break;
            }
            let next = state.drop_overdue(Instant::now());
            let waited = self.changed.wait_timeout(state, next);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let id = state.next_id;
        state.next_id += 1;
        let socket = socket.clone();
        let handshake = Handshake {
            began: Instant::now(),
            stage: Stage::Unproven,
            stopping: stopping.clone(),
            sever: Box::new(move || socket.sever()),
        };
        state.under_way.insert(id, handshake);
        Some(Place { of: self, id })
    }

    /// Makes an acceptor stop: ends its handshakes, and its wait for a place.
    pub(super) fn stop(&self, stopping: &Arc<AtomicBool>) {
        stopping.store(true, Ordering::Relaxed);
        // Taken after the flag is set: whoever looks at it then waits, is woken.
        let state = self.lock();
        let own = state.under_way.values().filter(|one| Arc::ptr_eq(&one.stopping, stopping));
        own.for_each(|handshake| (handshake.sever)());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Drops what had its time; returns how long it is until there will be more.
    fn drop_overdue(&mut self, now: Instant) -> Duration {
        let mut next = GRACE;
        for handshake in self.under_way.values_mut().filter(|one| one.stage == Stage::Unproven) {
            let left = (handshake.began + GRACE).saturating_duration_since(now);
            if left.is_zero() {
                handshake.stage = Stage::Dropped;
                (handshake.sever)();
            } else {
                next = next.min(left);
            }
        }
        next
    }
}

impl Place {
    /// The other side has proved itself, and is not dropped from here on; `false` if it has been.
    pub(super) fn prove(&self) -> bool {
        let mut state = self.of.lock();
        let Some(handshake) = state.under_way.get_mut(&self.id) else { return false };
        let in_time = handshake.stage == Stage::Unproven;
        if in_time {
            handshake.stage = Stage::Proved;
        }
        in_time
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.lock().under_way.remove(&self.id);
        self.of.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    fn connection() -> (UnixStream, Arc<UnixStream>) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        (theirs, Arc::new(ours))
    }

    /// A table of its own, since the process's is used by other tests.
    fn table(limit: usize) -> &'static Handshakes {
        Box::leak(Box::new(Handshakes::new(limit)))
    }

    #[test]
    fn who_says_nothing_makes_room_and_who_has_proved_itself_stays() {
        let (table, stopping) = (table(2), Arc::new(AtomicBool::new(false)));
        let began = Instant::now();
        let (_proved_peer, proved) = connection();
        let (mut silent_peer, silent) = connection();
        let proved = table.begin(&proved, &stopping).unwrap();
        let silent_place = table.begin(&silent, &stopping).unwrap();
        assert!(proved.prove());
        let waiter = {
            let stopping = stopping.clone();
            thread::spawn(move || table.begin(&connection().1, &stopping).is_some())
        };
        // The end of the stream: it was shut down.
        assert_eq!(silent_peer.read(&mut [0]).unwrap(), 0);
        assert!(began.elapsed() >= GRACE, "not before its time");
        assert!(!silent_place.prove(), "too late");
        drop(silent_place);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn nobody_is_dropped_while_there_is_room() {
        let (table, stopping) = (table(2), Arc::new(AtomicBool::new(false)));
        let place = table.begin(&connection().1, &stopping).unwrap();
        table.lock().under_way.values_mut().for_each(|one| one.began -= 10 * GRACE);
        let other = table.begin(&connection().1, &stopping).unwrap();
        assert!(place.prove() && other.prove());
    }

    #[test]
    fn an_acceptor_that_stops_ends_its_own_handshakes_and_waits_no_longer() {
        let table = table(2);
        let (stopping, other) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (mut peer, socket) = connection();
        let (others_peer, others) = connection();
        let place = table.begin(&socket, &stopping).unwrap();
        let others = table.begin(&others, &other).unwrap();
        assert!(place.prove() && others.prove());
        let waiter = {
            let stopping = stopping.clone();
            thread::spawn(move || table.begin(&connection().1, &stopping).is_none())
        };
        table.stop(&stopping);
        assert!(waiter.join().unwrap());
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        others_peer.set_nonblocking(true).unwrap();
        assert!((&others_peer).read(&mut [0]).is_err(), "another acceptor's goes on");
    }
}
