//! Batches made ready in the background while a step runs.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use candle_core::DType;

use super::{Dataset, Position, Sampler, Steps};
use crate::{Batch, Error, Result};

/// How many batches lie ready at most: one would do, two hide a batch that takes longer.
const READY: usize = 2;

/// One rank's batches in the order of the sampler's steps, without end unless one fails. A thread prepares up to two of
/// them ahead; it ends with the loader.
#[derive(Debug)]
pub struct Loader {
    // Each is taken when the loader is dropped or the thread has ended.
    ready: Option<Receiver<Result<Loaded>>>,
    thread: Option<JoinHandle<()>>,
}

/// What one rank sees in one global step.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Its samples; none where the end of an epoch has none left for it.
    pub batch: Option<Batch>,
    /// How many samples each rank has in this step.
    pub counts: Vec<usize>,
    /// Where training stands when this step is done.
    pub after: Position,
}

impl Loader {
    /// Loads what `rank` sees from `position` on; numbers are of the type `dtype`.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a rank that the sampler has not, or a position that the data has not;
    /// [`Error::File`] where the system gives no thread.
    pub fn new(
        dataset: Arc<dyn Dataset>,
        sampler: &Sampler,
        rank: usize,
        position: Position,
        dtype: DType,
    ) -> Result<Loader> {
        if rank >= sampler.ranks() {
            let ranks = sampler.ranks();
            return Err(Error::Argument(format!("rank {rank} of {ranks}: give one below {ranks}")));
        }
        let steps = sampler.steps(position)?;
        let (sender, ready) = sync_channel(READY);
        let prepare = move || prepare(&*dataset, steps, rank, dtype, &sender);
        let thread = thread::Builder::new()
            .name("ringtree-loader".into())
            .spawn(prepare)
            .map_err(|error| Error::Argument(format!("no thread to load data in: {error}")))?;
        Ok(Loader { ready: Some(ready), thread: Some(thread) })
    }
}

/// Prepares one batch after another until one fails or nobody wants them any more.
fn prepare(
    dataset: &dyn Dataset,
    steps: Steps,
    rank: usize,
    dtype: DType,
    sender: &SyncSender<Result<Loaded>>,
) {
    for step in steps {
        let indices = step.indices(rank);
        let batch = (!indices.is_empty()).then(|| dataset.batch(indices, dtype)).transpose();
        let failed = batch.is_err();
        let (counts, after) = (step.counts(), step.after);
        let loaded = batch.map(|batch| Loaded { batch, counts, after });
        if sender.send(loaded).is_err() || failed {
            return;
        }
    }
}

impl Iterator for Loader {
    type Item = Result<Loaded>;

    /// The next step, an error, or `None` after an error.
    fn next(&mut self) -> Option<Result<Loaded>> {
        if let Some(Ok(loaded)) = self.ready.as_ref().map(Receiver::recv) {
            return Some(loaded);
        }
        // The thread has ended: by an error, which was handed over, or by a panic of the data set.
        self.ready = None;
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            resume_unwind(panic);
        }
        None
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // A thread that waits for room learns by this that nobody will make any.
        self.ready = None;
        if let Some(thread) = self.thread.take() {
            // Its panic, if it ended so, was that of a batch that nobody asked for.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::data::{Facts, Input};

    /// Samples that are their own index, of which one cannot be read.
    struct Numbers {
        len: usize,
        broken: Option<usize>,
    }

    impl Dataset for Numbers {
        fn len(&self) -> usize {
            self.len
        }

        fn facts(&self) -> Facts {
            Facts { input: Input::Tokens { block: 1 }, classes: self.len }
        }

        fn batch(&self, indices: &[usize], _: DType) -> Result<Batch> {
            if self.broken.is_some_and(|broken| indices.contains(&broken)) {
                return Err(Error::Argument("a broken sample".into()));
            }
            let numbers: Vec<u32> = indices.iter().map(|&index| index as u32).collect();
            let input = Tensor::from_vec(numbers, indices.len(), &Device::Cpu)?;
            Ok(Batch { target: input.clone(), input })
        }
    }

    fn loader(dataset: Arc<Numbers>, ranks: usize, rank: usize, position: Position) -> Loader {
        let sampler = Sampler::new(dataset.len(), ranks, 4, 3).expect("valid numbers");
        Loader::new(dataset, &sampler, rank, position, DType::F32).expect("a loader")
    }

    #[test]
    fn batches_come_in_the_order_of_the_sampler() {
        let dataset = Arc::new(Numbers { len: 21, broken: None });
        let start = Position { epoch: 1, consumed: 8 };
        for rank in 0..2 {
            let sampler = Sampler::new(21, 2, 4, 3).expect("valid numbers");
            let steps = sampler.steps(start).expect("a position in the data");
            for (step, loaded) in steps.zip(loader(dataset.clone(), 2, rank, start)).take(9) {
                let loaded = loaded.expect("no sample is broken");
                assert_eq!((&loaded.counts, loaded.after), (&step.counts(), step.after));
                let batch = loaded.batch.expect("5 samples are left for 2 ranks");
                let expected: Vec<u32> = step.indices(rank).iter().map(|&i| i as u32).collect();
                assert_eq!(batch.input.to_vec1::<u32>().expect("numbers"), expected);
            }
        }
    }

    #[test]
    fn a_rank_without_samples_gets_the_step_all_the_same() {
        let dataset = Arc::new(Numbers { len: 9, broken: None });
        let last = loader(dataset, 2, 1, Position::default()).nth(1).expect("endless");
        let last = last.expect("no sample is broken");
        assert!(last.batch.is_none());
        assert_eq!(last.counts, [1, 0]);
    }

    #[test]
    fn an_error_comes_out_and_nothing_after_it() {
        let dataset = Arc::new(Numbers { len: 16, broken: Some(5) });
        let mut loader = loader(dataset, 1, 0, Position::default());
        let error = loader.find_map(Result::err).expect("the broken sample is in the first epoch");
        assert_eq!(error.to_string(), "a broken sample");
        assert!(loader.next().is_none());
    }

    #[test]
    fn its_thread_ends_with_it() {
        let dataset = Arc::new(Numbers { len: 100, broken: None });
        let mut loader = loader(dataset.clone(), 1, 0, Position::default());
        loader.next().expect("endless").expect("no sample is broken");
        drop(loader);
        // The thread, which would wait for room by now, has let go of the data.
        assert_eq!(Arc::strong_count(&dataset), 1);
    }
}
