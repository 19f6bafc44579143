//! What a process has open, to see that nothing stays behind.

use std::fs;
use std::time::{Duration, Instant};

/// Numbers of this process's descriptors, threads and mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Entries of `/proc/self/fd`.
    pub descriptors: usize,
    /// Entries of `/proc/self/task`.
    pub threads: usize,
    /// Lines of `/proc/self/maps` that are shared memory: others are the allocator's, which keeps
    /// some of what threads that have ended gave back.
    pub shared_mappings: usize,
}

impl Counts {
    /// As they are now.
    pub fn now() -> Counts {
        let entries = |folder| fs::read_dir(folder).expect("procfs").count();
        let maps = fs::read_to_string("/proc/self/maps").expect("procfs");
        let is_shared =
            |line: &&str| line.split_ascii_whitespace().nth(1).is_some_and(|m| m.ends_with('s'));
        Counts {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            shared_mappings: maps.lines().filter(is_shared).count(),
        }
    }

    /// As they are once nothing exceeds `before`, or after some seconds: a thread that has been
    /// joined is listed for a moment longer.
    pub fn settled(before: &Counts) -> Counts {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let now = Counts::now();
            if !now.exceed(before) || Instant::now() >= deadline {
                return now;
            }
            std::thread::yield_now();
        }
    }

    /// Whether there is more of anything than before.
    pub fn exceed(&self, before: &Counts) -> bool {
        self.descriptors > before.descriptors
            || self.threads > before.threads
            || self.shared_mappings > before.shared_mappings
    }
}
