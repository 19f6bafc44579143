//! The simulated network: its settings, its clock, its faults and its counters.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::link::SimLink;
use super::rules::Rule;
use super::state::State;
use super::trace::TraceEntry;

/// Settings of a simulated network, the same for every link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the jitter is drawn from.
    pub seed: u64,
    /// Time from the end of a frame's sending to its arrival, and of a credit's way back.
    pub latency_ns: u64,
    /// Up to this much is added to a frame's latency, drawn evenly for each frame.
    pub jitter_ns: u64,
    /// What one direction of a link carries. A frame's time is rounded up to a whole ns; 0 counts
    /// as 1.
    pub bandwidth_bytes_per_s: u64,
    /// What one frame carries at most; 0 counts as 1.
    pub slice_bytes: usize,
    /// Slots of one direction of a link. An eighth, but at least one, belongs to the
    /// point-to-point channel whatever the lanes do; the lanes divide the others, and each lane
    /// has at least one.
    pub slots: usize,
}

impl Default for Config {
    /// A link like a fast network's: 5 us, 10 GB/s, no jitter, 32 slots of 64 KiB.
    fn default() -> Config {
        Config {
            seed: 0,
            latency_ns: 5_000,
            jitter_ns: 0,
            bandwidth_bytes_per_s: 10_000_000_000,
            slice_bytes: 64 * 1024,
            slots: 32,
        }
    }
}

/// What has left one rank for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Frames, lost ones too.
    pub frames: u64,
    /// Payload bytes, lost ones too.
    pub bytes: u64,
}

/// A simulated network: makes the links between ranks and owns their time. Clones are the same
/// network. What the links hold is freed with the last link and the last clone.
#[derive(Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
}

impl Network {
    /// A network without links whose clock shows 0.
    pub fn new(config: Config) -> Network {
        Network { state: Arc::new(Mutex::new(State::new(config))) }
    }

    /// The end that `from` holds of a link between `from` and `to`, which must differ. The i-th
    /// call for (`from`, `to`) meets the i-th call for (`to`, `from`).
    pub fn link(&self, from: u32, to: u32) -> SimLink {
        assert_ne!(from, to, "a rank has no link to itself");
        let end = self.lock().open(from, to);
        SimLink::new(self.clone(), end, to)
    }

    /// The clock.
    pub fn now_ns(&self) -> u64 {
        self.lock().now_ns()
    }

    /// When something happens next of itself (a frame or a credit arrives, a rank learns that
    /// another is gone). `None`: nothing ever will, unless a rank calls its link.
    pub fn next_event_ns(&self) -> Option<u64> {
        self.lock().next_event_ns()
    }

    /// Lets time go on to `now_ns` with all that happens until then, that instant included. A time
    /// that has passed changes nothing.
    pub fn advance_to(&self, now_ns: u64) {
        self.lock().advance_to(now_ns);
    }

    /// Lets time go on to the next event and returns it; `None` where there is none.
    pub fn step(&self) -> Option<u64> {
        let mut state = self.lock();
        let next_ns = state.next_event_ns()?;
        state.advance_to(next_ns);
        Some(next_ns)
    }

    /// Adds a rule. It sees what happens from now on.
    pub fn add_rule(&self, rule: Rule) {
        self.lock().add_rule(rule);
    }

    /// Cuts every link between two ranks: what is under way or not yet looked at is lost, and both
    /// ends return [`LinkError::Failed`](crate::LinkError::Failed) from now on.
    pub fn cut(&self, a: u32, b: u32) {
        self.lock().cut_between(a, b);
    }

    /// Kills a rank: each of its own calls returns
    /// [`LinkError::Failed`](crate::LinkError::Failed), what it had posted without credit is lost,
    /// and its peers get what had left it, then [`LinkError::Closed`](crate::LinkError::Closed).
    pub fn kill(&self, rank: u32) {
        self.lock().kill(rank);
    }

    /// What has left `from` for `to`.
    pub fn traffic(&self, from: u32, to: u32) -> Traffic {
        self.lock().traffic(|sender, receiver| (sender, receiver) == (from, to))
    }

    /// What has left all ranks.
    pub fn total_traffic(&self) -> Traffic {
        self.lock().traffic(|_, _| true)
    }

    /// How many link operations (see [`Operation`](super::Operation)) a rank has called.
    pub fn operations_of(&self, rank: u32) -> u64 {
        self.lock().operations_of(rank)
    }

    /// How many link operations all ranks have called.
    pub fn total_operations(&self) -> u64 {
        self.lock().total_operations()
    }

    /// Ends of links that are neither closed nor dropped.
    pub fn open_ends(&self) -> usize {
        self.lock().open_ends()
    }

    /// Writes down from now on what happens.
    pub fn start_trace(&self) {
        self.lock().start_trace();
    }

    /// What has happened since [`Network::start_trace`]; empty without it.
    pub fn trace(&self) -> Vec<TraceEntry> {
        self.lock().trace().to_vec()
    }

    /// The state, even after a panic elsewhere: links are dropped while a failed test unwinds.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
