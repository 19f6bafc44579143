//! The word that every wait looks at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use ringtree_transport::memory::Bell;

use super::verdict::Verdict;

/// Whether a communicator has ended, and why. Set once.
///
/// Shared memory has no end-of-file: whoever spins on it looks at this word, too, and whoever
/// sleeps is woken by a bell that it left here.
#[derive(Debug, Default)]
pub struct AbortWord {
    is_set: AtomicBool,
    outcome: OnceLock<Outcome>,
    bells: Mutex<Vec<Arc<Bell>>>,
    decided: Condvar,
}

#[derive(Debug)]
struct Outcome {
    verdict: Arc<Verdict>,
    unfenced_ranks: Vec<u32>,
}

impl AbortWord {
    /// A word that is not set.
    pub fn new() -> AbortWord {
        AbortWord::default()
    }

    /// Whether the communicator has ended: one load.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Why the communicator has ended, if it has.
    pub fn verdict(&self) -> Option<Arc<Verdict>> {
        self.outcome.get().map(|outcome| outcome.verdict.clone())
    }

    /// Waits until the communicator has ended, at most until the deadline.
    pub fn await_verdict(&self, deadline: Instant) -> Option<Arc<Verdict>> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.decided.wait_timeout_while(self.bells(), left, |_| !self.is_set());
        drop(waited);
        self.verdict()
    }

    /// Local ranks that the verdict declares dead but that could not be ended: memory that is
    /// shared with them must be replaced before it is used for anything else.
    ///
    /// A [`Communicator`](crate::Communicator) has no need to ask: it ends with the verdict, and the
    /// memory of its links with it. This is for whoever uses the control plane without one.
    pub fn unfenced_ranks(&self) -> &[u32] {
        self.outcome.get().map_or(&[], |outcome| &outcome.unfenced_ranks)
    }

    /// Has this bell rung when the word is set, or now if it is.
    pub fn wake(&self, bell: Arc<Bell>) {
        let mut bells = self.bells();
        if self.is_set() {
            bell.ring();
        }
        bells.push(bell);
    }

    /// Sets the word; only the first call counts. Returns whether this one was it.
    pub fn set(&self, verdict: Arc<Verdict>, unfenced_ranks: Vec<u32>) -> bool {
        if self.outcome.set(Outcome { verdict, unfenced_ranks }).is_err() {
            return false;
        }
        self.is_set.store(true, Ordering::Release);
        // Whoever takes this lock later sees the word set.
        self.bells().iter().for_each(|bell| bell.ring());
        self.decided.notify_all();
        true
    }

    fn bells(&self) -> MutexGuard<'_, Vec<Arc<Bell>>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_is_set_once_and_wakes_whoever_sleeps_before_or_after() {
        let word = AbortWord::new();
        let (early, late) = (Arc::new(Bell::new().unwrap()), Arc::new(Bell::new().unwrap()));
        word.wake(early.clone());
        assert!(!word.is_set() && word.verdict().is_none() && !has_rung(&early));

        let first = Arc::new(Verdict::ArbiterLost { reason: "a".into() });
        assert!(word.set(first.clone(), vec![3]));
        assert!(!word.set(Arc::new(Verdict::ArbiterLost { reason: "b".into() }), vec![]));
        word.wake(late.clone());
        assert!(word.is_set() && has_rung(&early) && has_rung(&late));
        assert_eq!((word.verdict(), word.unfenced_ranks()), (Some(first), &[3][..]));
    }

    #[test]
    fn whoever_awaits_the_verdict_gets_it_or_nothing_at_the_deadline() {
        let word = AbortWord::new();
        assert_eq!(word.await_verdict(Instant::now()), None);
        std::thread::scope(|scope| {
            let waiter =
                scope.spawn(|| word.await_verdict(Instant::now() + Duration::from_secs(20)));
            word.set(Arc::new(Verdict::ArbiterLost { reason: "a".into() }), vec![]);
            assert!(waiter.join().unwrap().is_some());
        });
    }

    /// Whether the bell's descriptor is readable.
    fn has_rung(bell: &Bell) -> bool {
        let mut fd = libc::pollfd { fd: bell.descriptor(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, which lives as long as this call.
        unsafe { libc::poll(&mut fd, 1, 0) == 1 }
    }
}
