//! The order in which samples are seen, and which rank sees which: a pure function of seed, epoch and position.
//!
//! An epoch is a shuffle of all samples. It is cut into global steps of `ranks * batch` samples, the last of which may
//! be smaller; each rank takes its contiguous part of a step. So N ranks with batch B see, step by step, the samples of
//! one rank with batch N*B. No sample is left out or seen twice in an epoch.
//!
//! ```text
//! order of the epoch   7 2 9 0 4 5 8 1 6 3         10 samples, 2 ranks, batch 2
//! step                |---0---|---1---|-2-|
//! rank                 0 0 1 1 0 0 1 1 0 1         what is left is divided as evenly as possible
//! ```

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Divides the samples of a data set over steps and ranks.
#[derive(Clone, Debug)]
pub struct Sampler {
    samples: usize,
    ranks: usize,
    /// Samples of a global step.
    step_samples: usize,
    seed: u64,
}

/// How far training has come in its data. It means the same for any number of ranks and any batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Complete passes over the data.
    pub epoch: u64,
    /// Samples of this epoch that have been used, by all ranks together.
    pub consumed: usize,
}

/// Which samples all ranks see in one global step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where training stands when this step is done.
    pub after: Position,
    indices: Vec<usize>,
    ranks: usize,
}

/// The global steps from a position on, epoch after epoch without end.
#[derive(Clone, Debug)]
pub struct Steps {
    sampler: Sampler,
    position: Position,
    order: Vec<usize>,
}

impl Sampler {
    /// Divides `samples` samples over `ranks` ranks, each of which sees `batch` samples a step.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where one of the three is zero.
    pub fn new(samples: usize, ranks: usize, batch: usize, seed: u64) -> Result<Sampler> {
        for (number, what) in [(samples, "samples"), (ranks, "ranks"), (batch, "samples a batch")] {
            if number == 0 {
                return Err(Error::Argument(format!("0 {what}: give at least one")));
            }
        }
        let Some(step_samples) = ranks.checked_mul(batch) else {
            return Err(Error::Argument(format!("a batch of {batch} is too large: give less")));
        };
        Ok(Sampler { samples, ranks, step_samples, seed })
    }

    /// The same steps, divided over another number of ranks, as after some have died: what all ranks see together
    /// stays the same.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where there are no ranks.
    pub fn among(self, ranks: usize) -> Result<Sampler> {
        if ranks == 0 {
            return Err(Error::Argument("0 ranks: give at least one".into()));
        }
        Ok(Sampler { ranks, ..self })
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// How many global steps a whole epoch has.
    pub fn steps_per_epoch(&self) -> usize {
        self.samples.div_ceil(self.step_samples)
    }

    /// The steps from `position` on.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where the position lies behind the end of an epoch: it is that of other data.
    pub fn steps(&self, position: Position) -> Result<Steps> {
        if position.consumed > self.samples {
            return Err(Error::Argument(format!(
                "{} samples of epoch {} are said to be used, but the data has {}: resume with the data that \
                 training began with",
                position.consumed, position.epoch, self.samples
            )));
        }
        Ok(Steps { sampler: self.clone(), position, order: self.order(position.epoch) })
    }

    /// The order in which an epoch sees the samples.
    fn order(&self, epoch: u64) -> Vec<usize> {
        // The key is written by hand and the shuffle is our own, so that no other version of a crate changes the order
        // and with it the run that a checkpoint continues.
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&epoch.to_le_bytes());
        let mut random = ChaCha8Rng::from_seed(key);
        let mut order: Vec<usize> = (0..self.samples).collect();
        // Fisher and Yates. The product's upper half is as good as uniform: its bias is below samples / 2^64.
        for last in (1..self.samples).rev() {
            let product = u128::from(random.next_u64()) * (last as u128 + 1);
            order.swap(last, (product >> 64) as usize);
        }
        order
    }
}

impl Step {
    /// How many samples all ranks see together.
    pub fn samples(&self) -> usize {
        self.indices.len()
    }

    /// How many samples each rank sees, which may be none at the end of an epoch.
    pub fn counts(&self) -> Vec<usize> {
        (0..self.ranks).map(|rank| self.part(rank).len()).collect()
    }

    /// The indices of the samples that a rank sees.
    pub fn indices(&self, rank: usize) -> &[usize] {
        &self.indices[self.part(rank)]
    }

    /// A rank's part of the step: the first ranks have one more where it does not divide.
    fn part(&self, rank: usize) -> Range<usize> {
        let (each, more) = (self.indices.len() / self.ranks, self.indices.len() % self.ranks);
        let start = |rank: usize| rank * each + rank.min(more);
        start(rank)..start(rank + 1)
    }
}

impl Iterator for Steps {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.position.consumed == self.sampler.samples {
            self.position = Position { epoch: self.position.epoch + 1, consumed: 0 };
            self.order = self.sampler.order(self.position.epoch);
        }
        let left = &self.order[self.position.consumed..];
        let indices = left[..left.len().min(self.sampler.step_samples)].to_vec();
        self.position.consumed += indices.len();
        Some(Step { after: self.position, indices, ranks: self.sampler.ranks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Position = Position { epoch: 0, consumed: 0 };

    fn steps(samples: usize, ranks: usize, batch: usize, from: Position) -> Steps {
        Sampler::new(samples, ranks, batch, 7).and_then(|s| s.steps(from)).expect("valid numbers")
    }

    /// What all ranks together see in each of the first steps, the first rank first.
    fn seen(steps: Steps, ranks: usize, count: usize) -> Vec<Vec<usize>> {
        let of_all = |step: Step| (0..ranks).flat_map(|r| step.indices(r).to_vec()).collect();
        steps.take(count).map(of_all).collect()
    }

    #[test]
    fn the_order_never_changes_from_one_version_to_the_next() {
        let order = |seed, epoch| Sampler::new(10, 1, 1, seed).expect("valid").order(epoch);
        assert_eq!(order(0, 0), [9, 2, 3, 4, 6, 7, 0, 1, 5, 8]);
        assert_eq!(order(7, 0), [5, 3, 9, 8, 1, 6, 2, 0, 4, 7]);
        assert_eq!(order(7, 1), [3, 5, 6, 1, 7, 2, 4, 9, 0, 8]);
    }

    #[test]
    fn other_ranks_see_the_same_steps_together() {
        let four = Sampler::new(23, 4, 2, 7).expect("valid");
        let three = four.clone().among(3).expect("valid");
        let all =
            |sampler: &Sampler, ranks| seen(sampler.steps(START).expect("a beginning"), ranks, 5);
        assert_eq!(all(&four, 4), all(&three, 3));
        let first = three.steps(START).expect("a beginning").next().expect("a step");
        assert_eq!(first.counts(), [3, 3, 2]);
        assert!(four.among(0).is_err());
    }

    #[test]
    fn an_epoch_sees_every_sample_once() {
        for (samples, ranks, batch) in [(1, 1, 1), (10, 2, 2), (23, 4, 3), (3, 8, 2), (64, 4, 16)] {
            let sampler = Sampler::new(samples, ranks, batch, 7).expect("valid");
            let count = sampler.steps_per_epoch();
            let mut all = seen(steps(samples, ranks, batch, START), ranks, count).concat();
            all.sort_unstable();
            assert_eq!(all, (0..samples).collect::<Vec<_>>(), "{samples} {ranks} {batch}");
        }
    }

    #[test]
    fn several_ranks_see_what_one_with_a_larger_batch_sees() {
        for (ranks, batch) in [(2, 6), (3, 4), (4, 3), (12, 1)] {
            let several = seen(steps(31, ranks, batch, START), ranks, 7);
            assert_eq!(several, seen(steps(31, 1, 12, START), 1, 7), "{ranks} ranks");
        }
    }

    #[test]
    fn the_last_step_is_divided_as_evenly_as_possible() {
        let counts = |samples| -> Vec<_> {
            steps(samples, 4, 3, START).take(2).map(|step| step.counts()).collect()
        };
        assert_eq!(counts(18), [[3, 3, 3, 3], [2, 2, 1, 1]]);
        assert_eq!(counts(14), [[3, 3, 3, 3], [1, 1, 0, 0]]);
        assert_eq!(counts(12), [[3, 3, 3, 3], [3, 3, 3, 3]]);
    }

    #[test]
    fn it_resumes_in_the_middle_with_other_ranks_and_batches() {
        let whole = seen(steps(50, 1, 1, START), 1, 100).concat();
        let after = steps(50, 2, 5, START).nth(2).expect("endless").after;
        assert_eq!(after, Position { epoch: 0, consumed: 30 });
        let resumed = seen(steps(50, 3, 4, after), 3, 2).concat();
        assert_eq!(resumed, whole[30..50]);
        let next_epoch = seen(steps(50, 1, 50, Position { epoch: 0, consumed: 50 }), 1, 1);
        assert_eq!(next_epoch.concat(), whole[50..]);
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for (samples, ranks, batch) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, usize::MAX, 2)] {
            assert!(matches!(Sampler::new(samples, ranks, batch, 0), Err(Error::Argument(_))));
        }
        let sampler = Sampler::new(10, 1, 1, 0).expect("valid");
        let error = sampler.steps(Position { epoch: 2, consumed: 11 }).expect_err("behind the end");
        assert!(error.to_string().contains("the data has 10"), "{error}");
    }
}
