//! Measures what every algorithm takes among the ranks of a communicator.

use std::time::{Duration, Instant};

use ringtree_plan::{Algorithm, Collective};

use super::document::TABLE_LIMIT_BYTES;
use super::{MeasuredOn, STEP, Times, Tuned};
use crate::communicator::Communicator;
use crate::selection::{self, Shape};
use crate::{Error, Op};

/// From this size to that one, a step apart each.
const FIRST_BYTES: u64 = 8;
const LAST_BYTES: u64 = 32 << 20;

/// Calls of an algorithm at most, of one size and placement: more make the median no better.
const MOST_CALLS: usize = 255;

/// What takes so many times as long as the best is not measured again.
const HOPELESS: u64 = 2;

impl Communicator {
    /// Measures for about `budget` what every algorithm of every collective takes among these ranks, with
    /// f32 in ordinary memory, in place and out of place, from 8 bytes to 32 MiB or as far as the time
    /// goes. All ranks call it with the same budget, and get the same table.
    ///
    /// Nothing is chosen by it yet: a [`TuningCache`](super::TuningCache) keeps it for communicators that
    /// are made after that, as `ringtree tune` does:
    ///
    /// ```no_run
    /// # fn tune(comm: &ringtree::Communicator) -> Result<(), Box<dyn std::error::Error>> {
    /// let tuned = comm.tune(std::time::Duration::from_secs(10))?;
    /// if comm.rank() == 0
    ///     && let Some(cache) = ringtree::TuningCache::of_user()
    /// {
    ///     cache.keep(&tuned)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Argument`] where the communicator is reproducible, and [`Error`]'s others.
    pub fn tune(&self, budget: Duration) -> Result<Tuned, Error> {
        if self.shape().reproducible {
            return Err(Error::Argument(
                "a reproducible communicator does not offer every algorithm: tune one that is not, and \
                 its times count for this one, too"
                    .into(),
            ));
        }
        self.warm_up()?;
        let chosen = self.using(None);
        let mut tuner = Tuner::new(&chosen, budget);
        let groups = groups();
        for (index, &(collective, bytes)) in groups.iter().enumerate() {
            tuner.measure(collective, bytes, groups.len() - index)?;
        }
        let measured_on = MeasuredOn::new(&tuner.shape, self.inner.links().clone());
        chosen.told_by_rank_0(&Tuned { measured_on, times: tuner.times })
    }

    /// Rank 0's table: the others may be on another kind of host.
    fn told_by_rank_0(&self, mine: &Tuned) -> Result<Tuned, Error> {
        let mut text = mine.encode().into_bytes();
        let mut length = [text.len() as u64];
        self.broadcast(&mut length, 0)?;
        text.resize((length[0] as usize).min(TABLE_LIMIT_BYTES), 0);
        self.broadcast(&mut text, 0)?;
        let unusable = |why| Error::Settings(format!("rank 0's table of measured times: {why}"));
        Tuned::decode(&text).map_err(unusable)
    }
}

/// What is measured, smaller sizes first: the larger ones get the time that these leave.
fn groups() -> Vec<(Collective, u64)> {
    let sizes = std::iter::successors(Some(FIRST_BYTES), |bytes| Some(bytes * STEP));
    let sizes: Vec<u64> = sizes.take_while(|bytes| *bytes <= LAST_BYTES).collect();
    let of_size = |&bytes: &u64| Collective::all(0).map(|collective| (collective, bytes));
    let groups = sizes.iter().flat_map(of_size);
    let has_sizes = |(collective, bytes): &(Collective, u64)| {
        *collective != Collective::Barrier || *bytes == FIRST_BYTES
    };
    groups.filter(has_sizes).collect()
}

/// A measurement under way, at the same point on every rank: what decides how it goes on is agreed.
struct Tuner<'a> {
    communicator: &'a Communicator,
    shape: Shape,
    input: Vec<f32>,
    output: Vec<f32>,
    begin: Instant,
    budget: Duration,
    /// Time since the begin, on the rank for which it is longest.
    spent: Duration,
    /// What each collective took for the shortest measurement of the size before.
    least: Vec<(Collective, Duration)>,
    times: Vec<Times>,
}

/// An algorithm beside others.
struct Runner {
    algorithm: Algorithm,
    /// Calls by it.
    by: Communicator,
    is_hopeless: bool,
    /// Of single calls, by placement: those of the slowest rank.
    times_ns: Vec<Vec<u64>>,
}

impl<'a> Tuner<'a> {
    fn new(communicator: &'a Communicator, budget: Duration) -> Tuner<'a> {
        // Zeros stay what they are in every sum.
        let buffer = || vec![0.0; LAST_BYTES as usize / size_of::<f32>()];
        Tuner {
            communicator,
            shape: communicator.shape().clone(),
            input: buffer(),
            output: buffer(),
            begin: Instant::now(),
            budget,
            spent: Duration::ZERO,
            least: Vec::new(),
            times: Vec::new(),
        }
    }

    /// Measures all algorithms of a collective at one size, in turns: a machine changes meanwhile. So many
    /// groups are left, with this one; each gets its share of the time that is left.
    fn measure(&mut self, collective: Collective, bytes: u64, left: usize) -> Result<(), Error> {
        let case = Case::new(collective, bytes, self.shape.ranks);
        let time_left = self.budget.saturating_sub(self.spent);
        if self.is_known(&case) || !self.fits(collective, time_left) {
            return Ok(());
        }
        let share = time_left / left as u32;
        let mut race = self.runners(&case);
        let begun = self.spent;
        self.warm_up(&case, &race)?;
        self.round(&case, &mut race, 1)?;
        let mut last_round = self.spent - begun;
        self.least.retain(|(other, _)| *other != collective);
        self.least.push((collective, last_round));
        let mut calls = 1;
        while 2 * calls < MOST_CALLS && self.spent - begun + 2 * last_round <= share {
            give_up(&mut race);
            calls *= 2;
            let round_begun = self.spent;
            self.round(&case, &mut race, calls)?;
            last_round = self.spent - round_begun;
        }
        self.note(&case, &race);
        Ok(())
    }

    /// Whether the same call was measured as a smaller size: blocks have at least one element.
    fn is_known(&self, case: &Case) -> bool {
        let of_it = self.times.iter().find(|times| times.collective == case.collective);
        of_it.and_then(|times| times.sizes_bytes.last()).is_some_and(|last| *last >= case.bytes())
    }

    /// Whether there is time for a size of a collective, by what the one before took. The first is always
    /// measured.
    fn fits(&self, collective: Collective, time_left: Duration) -> bool {
        let before = self.least.iter().find(|(other, _)| *other == collective);
        before.is_none_or(|(_, least)| *least * STEP as u32 <= time_left)
    }

    fn runners(&self, case: &Case) -> Vec<Runner> {
        let collective = case.collective;
        let is_eligible = |a: &Algorithm| selection::is_eligible(collective, *a, &self.shape);
        let runner = |algorithm| Runner {
            algorithm,
            by: self.communicator.using(algorithm),
            is_hopeless: false,
            times_ns: vec![Vec::new(); case.placements().len()],
        };
        Algorithm::ALL.into_iter().filter(is_eligible).map(runner).collect()
    }

    /// Makes every call ready. The first two of a large buffer move it into large pages.
    fn warm_up(&mut self, case: &Case, race: &[Runner]) -> Result<(), Error> {
        for runner in race.iter().take(1).chain(race) {
            for &in_place in case.placements() {
                self.call(case, &runner.by, in_place)?;
            }
        }
        Ok(())
    }

    /// Times so many calls of each algorithm that has a chance, each after a barrier.
    fn round(&mut self, case: &Case, race: &mut [Runner], calls: usize) -> Result<(), Error> {
        let mut times_ns = Vec::new();
        for runner in race.iter().filter(|runner| !runner.is_hopeless) {
            for &in_place in case.placements() {
                for _ in 0..calls {
                    self.communicator.barrier()?;
                    let begin = Instant::now();
                    self.call(case, &runner.by, in_place)?;
                    times_ns.push(begin.elapsed().as_nanos() as u64);
                }
            }
        }
        times_ns.push(self.begin.elapsed().as_nanos() as u64);
        self.communicator.all_reduce(&mut times_ns, Op::Max)?;
        self.spent = Duration::from_nanos(times_ns.pop().unwrap_or(0));
        let mut times_ns = times_ns.chunks(calls);
        for runner in race.iter_mut().filter(|runner| !runner.is_hopeless) {
            for placement in &mut runner.times_ns {
                placement.extend_from_slice(times_ns.next().unwrap_or_default());
            }
        }
        Ok(())
    }

    fn call(&mut self, case: &Case, by: &Communicator, in_place: bool) -> Result<(), Error> {
        let (one, all) = (case.count, case.count * case.blocks);
        let (input, output) = (&self.input, &mut self.output);
        match case.collective {
            Collective::AllReduce if in_place => by.all_reduce(&mut output[..all], Op::Sum),
            Collective::AllReduce => by.all_reduce_into(&input[..all], &mut output[..all], Op::Sum),
            Collective::Broadcast { root } if in_place => by.broadcast(&mut output[..all], root),
            Collective::Broadcast { root } => {
                by.broadcast_into(&input[..all], &mut output[..all], root)
            }
            Collective::Reduce { root } if in_place => by.reduce(&mut output[..all], Op::Sum, root),
            Collective::Reduce { root } => {
                by.reduce_into(&input[..all], &mut output[..all], Op::Sum, root)
            }
            Collective::AllGather if in_place => by.all_gather(&mut output[..all]),
            Collective::AllGather => by.all_gather_into(&input[..one], &mut output[..all]),
            Collective::ReduceScatter if in_place => by.reduce_scatter(&mut output[..all], Op::Sum),
            Collective::ReduceScatter => {
                by.reduce_scatter_into(&input[..all], &mut output[..one], Op::Sum)
            }
            Collective::Gather { root } => by.gather_into(&input[..one], &mut output[..all], root),
            Collective::Scatter { root } => {
                by.scatter_into(&input[..all], &mut output[..one], root)
            }
            Collective::AllToAll => by.all_to_all_into(&input[..all], &mut output[..all]),
            Collective::Barrier => by.barrier(),
        }
    }

    /// Writes down what the algorithms took.
    fn note(&mut self, case: &Case, race: &[Runner]) {
        let of_it = self.times.iter_mut().find(|times| times.collective == case.collective);
        let Some(times) = of_it else {
            let by_algorithm = race.iter().map(|r| (r.algorithm, vec![r.time_ns()])).collect();
            let (collective, sizes_bytes) = (case.collective, vec![case.bytes()]);
            return self.times.push(Times { collective, sizes_bytes, by_algorithm });
        };
        times.sizes_bytes.push(case.bytes());
        for ((_, times_ns), runner) in times.by_algorithm.iter_mut().zip(race) {
            times_ns.push(runner.time_ns());
        }
    }
}

/// A call of a certain size.
struct Case {
    collective: Collective,
    /// Elements, or elements of a block.
    count: usize,
    blocks: usize,
}

impl Case {
    /// Of `bytes` in all blocks, or of as few as have an element in each.
    fn new(collective: Collective, bytes: u64, ranks: u32) -> Case {
        let blocks = if collective.is_of_blocks() { ranks as usize } else { 1 };
        let count = match collective {
            Collective::Barrier => 0,
            _ => (bytes as usize / size_of::<f32>() / blocks).max(1),
        };
        Case { collective, count, blocks }
    }

    fn bytes(&self) -> u64 {
        (self.blocks * self.count * size_of::<f32>()) as u64
    }

    /// Whether it is in place, in each way that it can be called.
    fn placements(&self) -> &'static [bool] {
        match self.collective {
            Collective::Gather { .. }
            | Collective::Scatter { .. }
            | Collective::AllToAll
            | Collective::Barrier => &[false],
            _ => &[false, true],
        }
    }
}

/// Takes those out of the race whose fastest call is far behind that of another: most of few calls may have
/// been held up by something else.
fn give_up(race: &mut [Runner]) {
    let best_ns = race.iter().map(Runner::fastest_ns).min().unwrap_or(0);
    for runner in race {
        runner.is_hopeless |= runner.fastest_ns() > HOPELESS * best_ns;
    }
}

impl Runner {
    /// The median of its calls, in the mean of the placements; at least 1.
    fn time_ns(&self) -> u64 {
        let medians = self.times_ns.iter().map(|times_ns| median(times_ns));
        (medians.sum::<u64>() / self.times_ns.len() as u64).max(1)
    }

    fn fastest_ns(&self) -> u64 {
        self.times_ns.iter().flatten().copied().min().unwrap_or(0)
    }
}

fn median(times_ns: &[u64]) -> u64 {
    let mut sorted = times_ns.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}
