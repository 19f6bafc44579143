//! Times that were measured among the ranks of a machine, by which algorithms are chosen there instead of
//! by the cost table's figures.

mod cache;
mod document;
mod measure;
#[cfg(test)]
mod tests;

use std::mem::discriminant;

use ringtree_plan::{Algorithm, Collective};

pub use cache::TuningCache;
pub use document::{Links, MeasuredOn, Way};

/// From one measured size to the next.
const STEP: u64 = 4;

/// Where a communicator has measured times from by which algorithms are chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tuning {
    /// From nowhere: the choice is by [`Settings::costs`](crate::Settings::costs) alone.
    Off,
    /// From the table that this cache keeps for such ranks, if it keeps one.
    Kept(TuningCache),
}

/// What calls took when they were measured: see [`Communicator::tune`](crate::Communicator::tune).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuned {
    measured_on: MeasuredOn,
    /// One of each collective at most.
    times: Vec<Times>,
}

/// What the algorithms of one collective took.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Times {
    /// With any root.
    collective: Collective,
    /// Measured sizes of the buffer (of all blocks): at least one, each above the one before.
    sizes_bytes: Vec<u64>,
    /// For each algorithm what each size took: at least one algorithm.
    by_algorithm: Vec<(Algorithm, Vec<u64>)>,
}

impl Tuned {
    /// Among what ranks.
    pub fn measured_on(&self) -> &MeasuredOn {
        &self.measured_on
    }

    /// The collectives that were measured (with root 0), and at which sizes.
    pub fn sizes_bytes(&self) -> impl Iterator<Item = (Collective, &[u64])> {
        self.times.iter().map(|times| (times.collective, &times.sizes_bytes[..]))
    }

    /// What the algorithms take for a buffer of `bytes` (of all blocks), in seconds; nothing where that
    /// was not measured.
    pub fn times_s(
        &self,
        collective: Collective,
        bytes: u64,
    ) -> impl Iterator<Item = (Algorithm, f64)> {
        let times = self.reaching(collective, bytes);
        times.into_iter().flat_map(move |times| {
            let measured = times.by_algorithm.iter();
            measured.map(move |(algorithm, ns)| (*algorithm, times.interpolated_s(ns, bytes)))
        })
    }

    /// What one algorithm takes, where that was measured.
    pub(crate) fn time_s(
        &self,
        collective: Collective,
        algorithm: Algorithm,
        bytes: u64,
    ) -> Option<f64> {
        let times = self.reaching(collective, bytes)?;
        let (_, ns) = times.by_algorithm.iter().find(|(measured, _)| *measured == algorithm)?;
        Some(times.interpolated_s(ns, bytes))
    }

    /// The times of a collective, if a size is small enough to be told by them: the largest that was
    /// measured stands for what is up to a step larger, and the smallest for all that is smaller.
    fn reaching(&self, collective: Collective, bytes: u64) -> Option<&Times> {
        let is_it = |times: &&Times| discriminant(&times.collective) == discriminant(&collective);
        let times = self.times.iter().find(is_it)?;
        let last = times.sizes_bytes.last()?;
        (bytes <= last.saturating_mul(STEP)).then_some(times)
    }
}

impl Times {
    /// Seconds for `bytes`. Between two sizes time grows evenly, as it does with a latency and a
    /// bandwidth; behind the last in proportion to the size. Every machine calculates that alike to the
    /// last bit, as all ranks must come to the same choice: a logarithm would depend on its library.
    fn interpolated_s(&self, times_ns: &[u64], bytes: u64) -> f64 {
        let point = |index: usize| (self.sizes_bytes[index] as f64, times_ns[index] as f64);
        let after = self.sizes_bytes.partition_point(|size| *size < bytes);
        let bytes = bytes as f64;
        let time_ns = match after {
            0 => point(0).1,
            _ if after == self.sizes_bytes.len() => {
                let (below, time) = point(after - 1);
                time * (bytes / below)
            }
            _ => {
                let ((below, shorter), (above, longer)) = (point(after - 1), point(after));
                shorter + (longer - shorter) * ((bytes - below) / (above - below))
            }
        };
        time_ns / 1e9
    }
}
