//! The exchange of gradients: sums over all ranks, bucket by bucket, while the program still calculates those to come.
//!
//! It knows nothing of models. A program has one flat row of gradients, in pieces (as a rule one for each parameter).
//! It writes them where [`GradientExchange::gradients`] says and tells by [`GradientExchange::ready`] what is done. A bucket
//! travels as soon as all of it and all buckets before it are ready, so that all ranks post the same calls
//! whatever the order in which theirs become ready.

mod buckets;
mod covered;

use std::ops::Range;
use std::time::{Duration, Instant};

use ringtree::{Communicator, Element, Memory, Op, Pending, Ran, bf16};
use serde::{Deserialize, Serialize};

use crate::real::Real;
use crate::{Error, Result};
use buckets::Bucket;
use covered::Covered;

/// How gradients are exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExchangeSettings {
    /// A bucket has at least so many bytes of gradients, if there are so many: 25 MiB.
    pub bucket_bytes: usize,
    /// The first one has so many, so that the exchange begins early: 1 MiB.
    pub first_bucket_bytes: usize,
    /// Gradients are rounded to bf16 for the exchange and summed in it: half the bytes of f32.
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

/// Sums rows of gradients over all ranks of a communicator. See the [module's description](self).
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
pub struct GradientExchange<T: Real> {
    communicator: Communicator,
    settings: ExchangeSettings,
    /// Where each piece begins in the flat row, and where the last one ends.
    starts: Vec<usize>,
    buckets: Vec<Travelling<T>>,
    /// In which bucket each piece is, and where it begins there.
    places: Vec<(usize, usize)>,
    parts: Vec<Part>,
    ready: Covered,
    /// The order in which pieces have become ready in this step.
    order: Vec<usize>,
    /// Whether buckets are cut by the order in which gradients become ready.
    is_settled: bool,
    /// The first bucket that has not left.
    next: usize,
}

/// A bucket and its memory.
struct Travelling<T: Real> {
    bucket: Bucket,
    ready_elements: usize,
    memory: Place<T>,
    /// Where it travels in bf16.
    narrow: Option<Memory<bf16>>,
}

/// Where a bucket's memory is.
enum Place<T: Real> {
    Here(Memory<T>),
    Away {
        pending: Pending<Memory<T>>,
        posted: Instant,
    },
    /// Its copy in bf16 is.
    NarrowAway {
        memory: Memory<T>,
        pending: Pending<Memory<bf16>>,
        posted: Instant,
    },
    /// An error has ended the communicator.
    Lost,
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
    /// Each bucket, in the order in which they travelled.
    pub buckets: Vec<BucketTimes>,
    /// How long [`GradientExchange::finish`] waited for buckets: what was not hidden behind the program's own work.
    pub exposed: Duration,
}

impl Exchanged {
    /// How long buckets were under way.
    pub fn busy(&self) -> Duration {
        self.buckets.iter().map(|bucket| bucket.ran.ended - bucket.ran.began).sum()
    }
}

impl<T: Real> GradientExchange<T> {
    /// Makes room for pieces of the given lengths. All ranks must give the same lengths and settings. Until the first
    /// step has shown the order in which they become ready, the last piece is expected first, as
    /// in a backward pass.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: there is no memory; [`Error::Argument`]: an order that does not have each piece once.
    pub fn new(
        communicator: Communicator,
        lengths: &[usize],
        settings: ExchangeSettings,
    ) -> Result<GradientExchange<T>> {
        let mut starts = vec![0];
        starts.extend(lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        let is_settled = settings.order.is_some();
        let order = settings.order.clone().unwrap_or_else(|| (0..lengths.len()).rev().collect());
        let mut exchange = GradientExchange {
            communicator,
            settings,
            starts,
            buckets: Vec::new(),
            places: Vec::new(),
            parts: Vec::new(),
            ready: Covered::default(),
            order: Vec::new(),
            is_settled,
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
        let element_bytes = if self.settings.in_bf16 { 2 } else { size_of::<T>() };
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
    pub fn gradients(&mut self, range: Range<usize>) -> Result<&mut [T]> {
        let piece = self.piece_at(range.start);
        if range.end > self.starts[piece + 1] || range.start > range.end {
            return Err(Error::Argument(format!(
                "gradients {range:?} are not in one piece: that of the first ends at {}",
                self.starts[piece + 1]
            )));
        }
        let (bucket, at) = self.places[piece];
        let at = at + range.start - self.starts[piece]..at + range.end - self.starts[piece];
        match &mut self.buckets[bucket].memory {
            Place::Here(memory) => Ok(&mut memory[at]),
            Place::Lost => Err(lost()),
            Place::Away { .. } | Place::NarrowAway { .. } => Err(Error::Argument(format!(
                "gradients {range:?} are under way until the exchange is finished"
            ))),
        }
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
        self.send_complete()
    }

    /// Whether all of a range is ready in this step.
    pub fn is_ready(&self, range: Range<usize>) -> bool {
        self.ready.contains(&range)
    }

    /// Ends a step: what is not ready counts as zero on this rank, and when this returns, the sums of all ranks are there (where
    /// the exchange is sharded: of this rank's [parts](GradientExchange::parts)).
    ///
    /// # Errors
    /// [`Error::Ringtree`]: what has ended the communicator.
    pub fn finish(&mut self) -> Result<Exchanged> {
        for gap in self.ready.gaps(self.len()) {
            let mut start = gap.start;
            while start < gap.end {
                let end = gap.end.min(self.starts[self.piece_at(start) + 1]);
                self.gradients(start..end)?.fill(T::default());
                start = end;
            }
            self.ready(gap)?;
        }
        self.send_complete()?;
        let begin = Instant::now();
        let mut exchanged = Exchanged::default();
        let last = match self.buckets.last_mut() {
            Some(one) => {
                Some(one.exchange(&self.communicator, scatters(&self.settings, self.is_settled))?)
            }
            None => None,
        };
        for one in &mut self.buckets {
            exchanged.buckets.extend(one.arrive()?);
        }
        exchanged.buckets.extend(last);
        exchanged.exposed = begin.elapsed();
        self.ready.clear();
        self.next = 0;
        let order = std::mem::take(&mut self.order);
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
    pub fn part(&mut self, part: &Part) -> Result<&mut [T]> {
        match &mut self.buckets[part.bucket].memory {
            Place::Here(memory) => Ok(&mut memory[part.at.clone()]),
            _ => Err(lost()),
        }
    }

    /// Where the exchange is sharded: gives everyone what each rank has written in the place of the sums of its
    /// [parts](GradientExchange::parts), so that [`GradientExchange::gradients`] has all.
    ///
    /// # Errors
    /// [`Error::Ringtree`]: what has ended the communicator.
    pub fn gather(&mut self) -> Result<()> {
        for one in &mut self.buckets {
            one.leave_here(|memory| self.communicator.all_gather_async(memory))?;
        }
        for one in &mut self.buckets {
            one.arrive()?;
        }
        Ok(())
    }

    /// The piece in which an element of the flat row is; the last one for what lies behind.
    fn piece_at(&self, element: usize) -> usize {
        let behind = self.starts.partition_point(|start| *start <= element);
        behind.saturating_sub(1).min(self.starts.len().saturating_sub(2))
    }

    /// Sends off the buckets whose turn it is, and which are complete, but for the last one: with it the gradients are
    /// complete, and [`GradientExchange::finish`] exchanges it in this thread, without a hand-over.
    fn send_complete(&mut self) -> Result<()> {
        while self.next + 1 < self.buckets.len()
            && let one = &mut self.buckets[self.next]
            && one.ready_elements == one.bucket.len()
        {
            one.leave(&self.communicator, scatters(&self.settings, self.is_settled))?;
            self.next += 1;
        }
        Ok(())
    }

    /// Cuts buckets anew by the order in which rank 0's gradients became ready, and moves the sums there.
    fn settle(&mut self, mut order: Vec<usize>) -> Result<()> {
        // Pieces without elements never become ready.
        let mut is_in = vec![false; self.places.len()];
        order.iter().for_each(|piece| is_in[*piece] = true);
        order.extend((0..is_in.len()).filter(|piece| !is_in[*piece]));
        let mut agreed: Vec<u32> = order.iter().map(|piece| *piece as u32).collect();
        self.communicator.broadcast(&mut agreed, 0)?;
        let before = std::mem::take(&mut self.buckets);
        self.is_settled = true;
        self.cut(&agreed.into_iter().map(|piece| piece as usize).collect::<Vec<_>>())?;
        for one in before {
            let Place::Here(memory) = one.memory else { return Err(lost()) };
            for (piece, at) in one.bucket.iter() {
                let range = self.starts[piece]..self.starts[piece + 1];
                self.gradients(range)?.copy_from_slice(&memory[at]);
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
        let memory = Place::Here(self.communicator.alloc(len)?);
        let narrow = match self.settings.in_bf16 {
            true => Some(self.communicator.alloc(len)?),
            false => None,
        };
        self.buckets.push(Travelling { bucket, ready_elements: 0, memory, narrow });
        Ok(())
    }
}

impl<T: Real> Travelling<T> {
    /// Exchanges the bucket in this thread.
    fn exchange(&mut self, communicator: &Communicator, scatters: bool) -> Result<BucketTimes> {
        let Place::Here(memory) = &mut self.memory else { return Err(lost()) };
        let began = Instant::now();
        let element_bytes = match &mut self.narrow {
            Some(narrow) => {
                narrowed(memory, narrow);
                sum(communicator, narrow, scatters)?;
                widened(narrow, memory);
                size_of::<bf16>()
            }
            None => {
                sum(communicator, memory, scatters)?;
                size_of::<T>()
            }
        };
        self.ready_elements = 0;
        let ran = Ran { began, ended: Instant::now() };
        Ok(BucketTimes { bytes: element_bytes * self.bucket.len(), posted: began, ran })
    }

    /// Sends the bucket off.
    fn leave(&mut self, communicator: &Communicator, scatters: bool) -> Result<()> {
        let Some(mut narrow) = self.narrow.take() else {
            return self.leave_here(|memory| match scatters {
                true => communicator.reduce_scatter_async(memory, Op::Sum),
                false => communicator.all_reduce_async(memory, Op::Sum),
            });
        };
        let Place::Here(memory) = std::mem::replace(&mut self.memory, Place::Lost) else {
            return Err(lost());
        };
        narrowed(&memory, &mut narrow);
        let posted = Instant::now();
        let pending = match scatters {
            true => communicator.reduce_scatter_async(narrow, Op::Sum)?,
            false => communicator.all_reduce_async(narrow, Op::Sum)?,
        };
        self.memory = Place::NarrowAway { memory, pending, posted };
        Ok(())
    }

    /// Sends its memory as it is.
    fn leave_here(
        &mut self,
        post: impl FnOnce(Memory<T>) -> std::result::Result<Pending<Memory<T>>, ringtree::Error>,
    ) -> Result<()> {
        let Place::Here(memory) = std::mem::replace(&mut self.memory, Place::Lost) else {
            return Err(lost());
        };
        let posted = Instant::now();
        self.memory = Place::Away { pending: post(memory)?, posted };
        Ok(())
    }

    /// Waits until it is back.
    fn arrive(&mut self) -> Result<Option<BucketTimes>> {
        self.ready_elements = 0;
        let (memory, bytes, posted, ran) = match std::mem::replace(&mut self.memory, Place::Lost) {
            Place::Here(memory) => {
                self.memory = Place::Here(memory);
                return Ok(None);
            }
            Place::Lost => return Err(lost()),
            Place::Away { pending, posted } => {
                let (memory, ran) = pending.wait_timed()?;
                (memory, size_of::<T>(), posted, ran)
            }
            Place::NarrowAway { mut memory, pending, posted } => {
                let (narrow, ran) = pending.wait_timed()?;
                widened(&narrow, &mut memory);
                self.narrow = Some(narrow);
                (memory, size_of::<bf16>(), posted, ran)
            }
        };
        self.memory = Place::Here(memory);
        Ok(Some(BucketTimes { bytes: bytes * self.bucket.len(), posted, ran }))
    }
}

/// Whether each rank gets the sums of its own parts only. Until the order is known it gets all, since its parts will be
/// others.
fn scatters(settings: &ExchangeSettings, is_settled: bool) -> bool {
    settings.sharded && is_settled
}

fn sum<E: Element>(communicator: &Communicator, elements: &mut [E], scatters: bool) -> Result<()> {
    match scatters {
        true => communicator.reduce_scatter(elements, Op::Sum)?,
        false => communicator.all_reduce(elements, Op::Sum)?,
    }
    Ok(())
}

fn narrowed<T: Real>(gradients: &[T], narrow: &mut [bf16]) {
    for (narrow, gradient) in narrow.iter_mut().zip(gradients) {
        *narrow = bf16::from_f64(gradient.to_f64());
    }
}

fn widened<T: Real>(narrow: &[bf16], gradients: &mut [T]) {
    for (gradient, narrow) in gradients.iter_mut().zip(narrow) {
        *gradient = T::from_f64(narrow.to_f64());
    }
}

fn lost() -> Error {
    Error::Argument("the exchange of gradients has ended by an earlier error".into())
}
