//! The exchange of gradients: sums over all ranks, bucket by bucket, while the program still calculates those to come.
//!
//! It knows nothing of models. A program has one flat row of gradients, in pieces (as a rule one for each parameter).
//! It writes them where [`GradientExchange::gradients`] says and tells by [`GradientExchange::ready`] what is done. A
//! bucket travels as soon as all of it and all buckets before it are ready, so that all ranks post the same calls
//! whatever the order in which theirs become ready. Gradients are in the memory of the host ([`Host`]) or of a GPU
//! ([`Gpu`]).

mod backend;
mod buckets;
mod covered;
mod gpu;
mod host;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringtree::device::Stream;
use ringtree::{Communicator, Ran, bf16};
use serde::{Deserialize, Serialize};

use crate::real::Real;
use crate::{Error, Result};
use backend::{Backend, Carried, Travel};
use buckets::Bucket;
use covered::Covered;
pub use gpu::Gpu;
pub use host::Host;

/// How gradients are exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExchangeSettings {
    /// A bucket has at least so many bytes of gradients, if there are so many: 25 MiB.
    pub bucket_bytes: usize,
    /// The first one has so many, so that the exchange begins early: 1 MiB.
    pub first_bucket_bytes: usize,
    /// Gradients are rounded to bf16 for the exchange and summed in it: half the bytes of f32. Only in the host's
    /// memory.
    pub in_bf16: bool,
    /// Each rank gets the sums of its own part of each bucket only (reduce-scatter), and [`GradientExchange::gather`]
    /// completes what it makes of them (ZeRO, stage 1: Rajbhandari et al., SC 2020).
    pub sharded: bool,
    /// The order in which pieces become ready, where it is known from an earlier run. Otherwise that of the first step counts.
    #[serde(skip)]
    pub order: Option<Vec<usize>>,
}

impl Default for ExchangeSettings {
    fn default() -> ExchangeSettings {
        ExchangeSettings {
            bucket_bytes: 25 << 20,
            first_bucket_bytes: 1 << 20,
            in_bf16: false,
            sharded: false,
            order: None,
        }
    }
}

/// Sums rows of gradients over all ranks of a communicator, bucket by bucket: one travels as soon as all of it and all
/// buckets before it are ready, while the program still calculates those to come.
///
/// ```
/// # use ringtree_trainer::{ExchangeSettings, GradientExchange};
/// # let communicator = ringtree::Communicator::in_process(1).unwrap().remove(0);
/// // Two parameters, of 4 and 2 numbers.
/// let mut exchange = GradientExchange::<f32>::new(communicator, &[4, 2], ExchangeSettings::default())?;
/// exchange.gradients(4..6)?.copy_from_slice(&[1.0, 2.0]);
/// exchange.ready(4..6)?;
/// exchange.gradients(0..4)?.fill(0.5);
/// exchange.ready(0..4)?;
/// exchange.finish()?;
/// assert_eq!(exchange.gradients(4..6)?, [1.0, 2.0], "the sums over all ranks");
/// # Ok::<(), ringtree_trainer::Error>(())
/// ```
pub struct GradientExchange<T: Real, B: Backend<T> = Host> {
    communicator: Communicator,
    backend: B,
    settings: ExchangeSettings,
    /// Where each piece begins in the flat row, and where the last one ends.
    starts: Vec<usize>,
    buckets: Vec<Travelling<B::Memory>>,
    /// In which bucket each piece is, and where it begins there.
    places: Vec<(usize, usize)>,
    parts: Vec<Part>,
    ready: Covered,
    /// The order in which pieces have become ready in this step.
    order: Vec<usize>,
    /// Whether buckets are cut by the order in which gradients become ready.
    is_settled: bool,
    /// Whether no step has ended yet.
    is_first_step: bool,
    /// The first bucket that has not left.
    next: usize,
}

/// A bucket and its memory.
struct Travelling<M> {
    bucket: Bucket,
    ready_elements: usize,
    memory: M,
    /// Whether it has left and the exchange is not finished.
    is_away: bool,
}

/// A part of a piece whose sum this rank has, and answers for: all, or where the exchange is sharded its own share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which piece.
    pub piece: usize,
    /// Which elements of the piece.
    pub elements: Range<usize>,
    bucket: usize,
    /// Where they are in the bucket.
    at: Range<usize>,
}

/// When a bucket was exchanged.
#[derive(Clone, Copy, Debug)]
pub struct BucketTimes {
    /// What travelled, in bytes.
    pub bytes: usize,
    /// When it was ready.
    pub posted: Instant,
    /// When its turn had come, and when this rank had its sums.
    pub ran: Ran,
}

/// How an exchange went.
#[derive(Clone, Debug, Default)]
pub struct Exchanged {
    /// Each bucket, in the order in which they travelled. None on a GPU: nobody on the host sees them arrive.
    pub buckets: Vec<BucketTimes>,
    /// How long [`GradientExchange::finish`] waited for buckets: what was not hidden behind the program's own work. On
    /// a GPU, whose stream waits instead, how long the host took to queue that.
    pub exposed: Duration,
}

impl Exchanged {
    /// How long buckets were under way.
    pub fn busy(&self) -> Duration {
        self.buckets.iter().map(|bucket| bucket.ran.ended - bucket.ran.began).sum()
    }
}

impl<T: Real> GradientExchange<T> {
    /// Makes room for pieces of the given lengths, in the host's memory. All ranks must give the same lengths and
    /// settings. Until the first step has shown the order in which they become ready, the last piece is expected
    /// first, as in a backward pass.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: there is no memory; [`Error::Argument`]: an order that does not have each piece once.
    pub fn new(
        communicator: Communicator,
        lengths: &[usize],
        settings: ExchangeSettings,
    ) -> Result<GradientExchange<T>> {
        GradientExchange::with_backend(communicator, Host, lengths, settings)
    }
}

impl<T: Real> GradientExchange<T, Gpu> {
    /// As [`GradientExchange::new`], in the memory of a GPU. The program writes gradients by what it queues in this
    /// stream, before it says that they are ready, and finds the sums by what it queues there after
    /// [`GradientExchange::finish`], which does not wait: buckets travel in a stream of their own. What goes wrong
    /// there, the communicator's next call returns.
    ///
    /// In the first step buckets leave when it is finished, and the host waits for them: while a call is queued, the
    /// driver must not load kernels, as a program does in its first step.
    ///
    /// # Errors
    /// As [`GradientExchange::new`]; [`Error::Argument`] also for an exchange in bf16.
    pub fn on_gpu(
        communicator: Communicator,
        stream: Arc<Stream>,
        lengths: &[usize],
        settings: ExchangeSettings,
    ) -> Result<GradientExchange<T, Gpu>> {
        if settings.in_bf16 {
            let what = "gradients on a GPU travel as they are: leave in_bf16";
            return Err(Error::Argument(what.into()));
        }
        GradientExchange::with_backend(communicator, Gpu::new(stream)?, lengths, settings)
    }
}

impl<T: Real, B: Backend<T>> GradientExchange<T, B> {
    fn with_backend(
        communicator: Communicator,
        backend: B,
        lengths: &[usize],
        settings: ExchangeSettings,
    ) -> Result<GradientExchange<T, B>> {
        let mut starts = vec![0];
        starts.extend(lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        let is_settled = settings.order.is_some();
        let order = settings.order.clone().unwrap_or_else(|| (0..lengths.len()).rev().collect());
        let mut exchange = GradientExchange {
            communicator,
            backend,
            settings,
            starts,
            buckets: Vec::new(),
            places: Vec::new(),
            parts: Vec::new(),
            ready: Covered::default(),
            order: Vec::new(),
            is_settled,
            is_first_step: true,
            next: 0,
        };
        exchange.cut(&order)?;
        Ok(exchange)
    }

    /// How many gradients there are.
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ranks that take part.
    pub fn communicator(&self) -> &Communicator {
        &self.communicator
    }

    /// How many bytes each bucket has on its way, in the order in which they travel.
    pub fn bucket_bytes(&self) -> Vec<usize> {
        let element_bytes = self.element_bytes();
        self.buckets.iter().map(|one| one.bucket.len() * element_bytes).collect()
    }

    /// The order of pieces by which buckets are cut: that of their becoming ready, once the first step is over.
    pub fn order(&self) -> Vec<usize> {
        self.buckets.iter().flat_map(|one| one.bucket.pieces.iter().copied()).collect()
    }

    /// Where the program writes its gradients, and after [`GradientExchange::finish`] finds the sums. The range, of the flat
    /// row, must lie in one piece.
    ///
    /// # Errors
    /// [`Error::Argument`]: it does not, or its bucket is under way.
    pub fn gradients(&mut self, range: Range<usize>) -> Result<B::View<'_>> {
        let (bucket, at) = self.place_of(range)?;
        B::view(&mut self.buckets[bucket].memory, at)
    }

    /// Says that a range of the flat row is written, and sends off the buckets that are complete by that.
    ///
    /// # Errors
    /// [`Error::Argument`]: part of it was ready before, or does not exist; [`Error::Ringtree`]: what has ended the
    /// communicator.
    pub fn ready(&mut self, range: Range<usize>) -> Result<()> {
        if range.end > self.len() || !self.ready.insert(range.clone()) {
            return Err(Error::Argument(format!(
                "gradients {range:?} cannot become ready: there are {}, each once a step",
                self.len()
            )));
        }
        let mut start = range.start;
        while start < range.end {
            let piece = self.piece_at(start);
            let end = range.end.min(self.starts[piece + 1]);
            if start == self.starts[piece] {
                self.order.push(piece);
            }
            self.buckets[self.places[piece].0].ready_elements += end - start;
            start = end;
        }
        if self.is_first_step && !B::LEAVES_IN_FIRST_STEP {
            return Ok(());
        }
        self.send_complete()
    }

    /// Whether all of a range is ready in this step.
    pub fn is_ready(&self, range: Range<usize>) -> bool {
        self.ready.contains(&range)
    }

    /// Ends a step: what is not ready counts as zero on this rank, and when this returns, the sums of all ranks are there (where
    /// the exchange is sharded: of this rank's [parts](GradientExchange::parts)), or, on a GPU, are there for what is
    /// queued next.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: what has ended the communicator.
    pub fn finish(&mut self) -> Result<Exchanged> {
        let order = std::mem::take(&mut self.order);
        for gap in self.ready.gaps(self.len()) {
            let mut start = gap.start;
            while start < gap.end {
                let end = gap.end.min(self.starts[self.piece_at(start) + 1]);
                let (bucket, at) = self.place_of(start..end)?;
                self.backend.zero(B::view(&mut self.buckets[bucket].memory, at)?)?;
                start = end;
            }
            self.ready(gap)?;
        }
        self.send_complete()?;
        let begin = Instant::now();
        let buckets = self.arrive()?;
        let exchanged = Exchanged { buckets, exposed: begin.elapsed() };
        self.ready.clear();
        self.next = 0;
        self.is_first_step = false;
        // What was not ready tells nothing of an order.
        self.order.clear();
        if !self.is_settled {
            self.settle(order)?;
        }
        Ok(exchanged)
    }

    /// The parts of pieces whose sums this rank has after [`GradientExchange::finish`], in the order in which they
    /// travel. They change once: at the end of the first step.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The gradients of a part.
    ///
    /// # Errors
    /// [`Error::Argument`]: its bucket is under way.
    pub fn part(&mut self, part: &Part) -> Result<B::View<'_>> {
        let one = &mut self.buckets[part.bucket];
        if one.is_away {
            return Err(Error::Argument(
                "the part is under way until the exchange is finished".into(),
            ));
        }
        B::view(&mut one.memory, part.at.clone())
    }

    /// Where the exchange is sharded: gives everyone what each rank has written in the place of the sums of its
    /// [parts](GradientExchange::parts), so that [`GradientExchange::gradients`] has all.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: what has ended the communicator.
    pub fn gather(&mut self) -> Result<()> {
        for one in &mut self.buckets {
            self.backend.leave(&mut one.memory, &self.communicator, Travel::Gather)?;
        }
        for one in &mut self.buckets {
            self.backend.arrive(&mut one.memory)?;
        }
        self.backend.join(false)
    }

    /// The bucket of a range of the flat row, and where it is there.
    fn place_of(&self, range: Range<usize>) -> Result<(usize, Range<usize>)> {
        let piece = self.piece_at(range.start);
        if range.end > self.starts[piece + 1] || range.start > range.end {
            return Err(Error::Argument(format!(
                "gradients {range:?} are not in one piece: that of the first ends at {}",
                self.starts[piece + 1]
            )));
        }
        let (bucket, at) = self.places[piece];
        if self.buckets[bucket].is_away {
            return Err(Error::Argument(format!(
                "gradients {range:?} are under way until the exchange is finished"
            )));
        }
        let start = at + range.start - self.starts[piece];
        Ok((bucket, start..start + range.len()))
    }

    /// The piece in which an element of the flat row is; the last one for what lies behind.
    fn piece_at(&self, element: usize) -> usize {
        let behind = self.starts.partition_point(|start| *start <= element);
        behind.saturating_sub(1).min(self.starts.len().saturating_sub(2))
    }

    /// Sends off the buckets whose turn it is, and which are complete, but for the last one: with it the gradients are
    /// complete, and [`GradientExchange::finish`] exchanges it without a hand-over, where that is possible.
    fn send_complete(&mut self) -> Result<()> {
        let travel = self.travel();
        while self.next + 1 < self.buckets.len()
            && let one = &mut self.buckets[self.next]
            && one.ready_elements == one.bucket.len()
        {
            self.backend.leave(&mut one.memory, &self.communicator, travel)?;
            one.is_away = true;
            self.next += 1;
        }
        Ok(())
    }

    /// Exchanges the last bucket and has all the others back.
    fn arrive(&mut self) -> Result<Vec<BucketTimes>> {
        let (travel, element_bytes) = (self.travel(), self.element_bytes());
        let last = match self.buckets.last_mut() {
            Some(one) => self.backend.carry(&mut one.memory, &self.communicator, travel)?,
            None => None,
        };
        let mut times = Vec::new();
        let count = self.buckets.len();
        for (number, one) in self.buckets.iter_mut().enumerate() {
            let carried =
                if number + 1 == count { last } else { self.backend.arrive(&mut one.memory)? };
            (one.is_away, one.ready_elements) = (false, 0);
            let bytes = element_bytes * one.bucket.len();
            times.extend(carried.map(|Carried { posted, ran }| BucketTimes { bytes, posted, ran }));
        }
        self.backend.join(self.is_first_step)?;
        Ok(times)
    }

    /// How gradients travel. Until the order is known each rank gets all sums, since its parts will be others.
    fn travel(&self) -> Travel {
        if self.settings.sharded && self.is_settled { Travel::Scatter } else { Travel::Sum }
    }

    /// The bytes of a gradient on its way.
    fn element_bytes(&self) -> usize {
        if self.settings.in_bf16 { size_of::<bf16>() } else { size_of::<T>() }
    }

    /// Cuts buckets anew by the order in which rank 0's gradients became ready, and moves the sums there.
    fn settle(&mut self, mut order: Vec<usize>) -> Result<()> {
        // Pieces that were not ready, as those without elements never are, come behind, in the order expected so far.
        let mut is_in = vec![false; self.places.len()];
        order.iter().for_each(|piece| is_in[*piece] = true);
        order.extend(self.order().into_iter().filter(|piece| !is_in[*piece]));
        let mut agreed: Vec<u32> = order.iter().map(|piece| *piece as u32).collect();
        self.communicator.broadcast(&mut agreed, 0)?;
        let before = std::mem::take(&mut self.buckets);
        self.is_settled = true;
        self.cut(&agreed.into_iter().map(|piece| piece as usize).collect::<Vec<_>>())?;
        for mut one in before {
            for (piece, at) in one.bucket.iter() {
                let (bucket, to) = self.place_of(self.starts[piece]..self.starts[piece + 1])?;
                let to = B::view(&mut self.buckets[bucket].memory, to)?;
                self.backend.copy(B::view(&mut one.memory, at)?, to)?;
            }
        }
        Ok(())
    }

    fn cut(&mut self, order: &[usize]) -> Result<()> {
        let lengths: Vec<usize> = self.starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..lengths.len()) {
            return Err(Error::Argument(format!(
                "an order of {} pieces does not have each of the {} once",
                order.len(),
                lengths.len()
            )));
        }
        let elements = |bytes: usize| bytes / size_of::<T>();
        let (first, most) = (self.settings.first_bucket_bytes, self.settings.bucket_bytes);
        let cut = buckets::cut(&lengths, order, elements(first), elements(most));
        self.places = vec![(0, 0); lengths.len()];
        self.buckets.clear();
        self.parts.clear();
        for (number, bucket) in cut.into_iter().enumerate() {
            for (piece, at) in bucket.iter() {
                self.places[piece] = (number, at.start);
            }
            self.add(number, bucket)?;
        }
        Ok(())
    }

    /// Adds a bucket and this rank's parts of it.
    fn add(&mut self, number: usize, bucket: Bucket) -> Result<()> {
        let ranks = self.communicator.ranks() as usize;
        let rank = self.communicator.rank() as usize;
        // Blocks of one length for all ranks.
        let block = bucket.len().div_ceil(ranks);
        let (len, own) = match self.settings.sharded {
            true => (block * ranks, block * rank..block * (rank + 1)),
            false => (bucket.len(), 0..bucket.len()),
        };
        for (piece, at) in bucket.iter() {
            let owned = at.start.max(own.start)..at.end.min(own.end);
            if !owned.is_empty() {
                let elements = owned.start - at.start..owned.end - at.start;
                self.parts.push(Part { piece, elements, bucket: number, at: owned });
            }
        }
        let memory = self.backend.alloc(&self.communicator, len, self.settings.in_bf16)?;
        self.buckets.push(Travelling { bucket, ready_elements: 0, memory, is_away: false });
        Ok(())
    }
}
