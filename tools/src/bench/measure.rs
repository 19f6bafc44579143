//! Measures one case: checks the result, then times the call.

use std::ops::{Deref, DerefMut};
use std::time::Instant;

use ringtree::{Communicator, DataType, Error, Memory, Op};

use super::options::{self, Iterations, Measured, Measurement, Placement};
use super::pattern::{Pattern, Patterned, Rule, with_factor};
use super::statistics::{self, Timing};

/// Elements behind a buffer that no call may touch.
const GUARD: usize = 64;

/// Buffers begin at a multiple of this, as those of the other libraries' benchmarks do.
const ALIGNMENT_BYTES: usize = 4096;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Type of the elements.
    pub data_type: DataType,
    /// How they are reduced; a broadcast has none.
    pub op: Option<Op>,
    /// Who broadcasts; an all-reduce has none.
    pub root: Option<u32>,
    /// Elements.
    pub count: usize,
}

impl Case {
    /// Size of the buffer.
    pub fn bytes(&self) -> u64 {
        self.count as u64 * self.data_type.size_bytes() as u64
    }

    fn rule(&self) -> Rule {
        match (self.op, self.root) {
            (Some(op), _) => Rule::Reduced(op),
            (None, root) => Rule::From(root.unwrap_or_default()),
        }
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Times, the same on every rank.
    pub timing: Timing,
    /// Wrong elements, on rank 0 of all ranks, elsewhere of this one; `None` if nothing was
    /// checked.
    pub wrong: Option<u64>,
}

/// Measures cases of one element type with one pair of buffers.
pub struct Meter<'a, T: Patterned> {
    communicator: &'a Communicator,
    measurement: &'a Measurement,
    input: Area<T>,
    output: Area<T>,
}

impl<'a, T: Patterned> Meter<'a, T> {
    /// Allocates buffers for cases of at most `largest` elements.
    pub fn new(
        communicator: &'a Communicator,
        measurement: &'a Measurement,
        largest: usize,
    ) -> Result<Meter<'a, T>, Error> {
        let area = |count| Area::new(communicator, measurement.memory, count);
        let has_input = measurement.placements.contains(&Placement::OutOfPlace);
        Ok(Meter {
            communicator,
            measurement,
            input: area(if has_input { largest } else { 0 })?,
            output: area(largest)?,
        })
    }

    /// Checks and times one case; all ranks at once.
    pub fn measure(&mut self, case: Case, placement: Placement) -> Result<Outcome, Error> {
        let mut wrong = None;
        for _ in 0..self.measurement.checks {
            let more = self.check(case, placement)?;
            wrong = Some(wrong.unwrap_or(0) + more);
        }
        // The values must not grow from call to call.
        self.zero(case, placement);
        Ok(Outcome { timing: self.time(case, placement)?, wrong })
    }

    /// Writes zeros into the buffers of a case.
    fn zero(&mut self, case: Case, placement: Placement) {
        if placement == Placement::OutOfPlace {
            self.input[..case.count].fill(T::default());
        }
        self.output[..case.count].fill(T::default());
    }

    /// How many elements are wrong: in the result, in the input that should have stayed as it was,
    /// and behind both.
    fn check(&mut self, case: Case, placement: Placement) -> Result<u64, Error> {
        let (rank, ranks) = (self.communicator.rank(), self.communicator.ranks());
        let pattern = Pattern::<T>::new(case.rule(), rank, ranks);
        let (count, end) = (case.count, case.count + GUARD);
        let out_of_place = placement == Placement::OutOfPlace;
        self.output[..end].fill(T::UNWRITTEN);
        if out_of_place {
            pattern.fill(&mut self.input[..count]);
            self.input[count..end].fill(T::UNWRITTEN);
        } else if case.root.is_none_or(|root| root == rank) {
            pattern.fill(&mut self.output[..count]);
        }
        self.call(case, placement)?;
        let mut wrong = pattern.wrong(&self.output[..count]) + written(&self.output[count..end]);
        if out_of_place {
            wrong += pattern.altered(&self.input[..count]) + written(&self.input[count..end]);
        }
        self.total(wrong)
    }

    /// The sum over all ranks, at rank 0. Sent and not reduced: what is being checked must not have
    /// the last word.
    fn total(&self, wrong: u64) -> Result<u64, Error> {
        let communicator = self.communicator;
        if communicator.rank() > 0 {
            communicator.send(&[wrong as f64], 0)?;
            return Ok(wrong);
        }
        let mut total = wrong;
        for peer in 1..communicator.ranks() {
            let mut theirs = [0.0_f64];
            communicator.receive(&mut theirs, peer)?;
            total += theirs[0] as u64;
        }
        Ok(total)
    }

    fn time(&mut self, case: Case, placement: Placement) -> Result<Timing, Error> {
        let warm_up = self.measurement.warm_up.unwrap_or(statistics::warm_up_calls(case.bytes()));
        self.repeat(case, placement, warm_up)?;
        let mut times_us = Vec::new();
        match self.measurement.iterations {
            Iterations::Fixed(count) => {
                self.one_by_one_us(case, placement, count, &mut times_us)?;
            }
            Iterations::TimeMs(time_ms) => {
                // The other half is for the other loop.
                let limit_us = time_ms * 1000.0 / 2.0;
                let mut spent_us = 0.0;
                let mut done = 0;
                while let Some(more) = statistics::next_batch(done, spent_us, limit_us) {
                    spent_us += self.one_by_one_us(case, placement, more, &mut times_us)?;
                    done += more;
                }
            }
        }
        self.communicator.all_reduce(&mut times_us, Op::Max)?;
        // Without a barrier before each, so many take no longer.
        let loop_us = self.back_to_back_us(case, placement, times_us.len() as u32)?;
        Ok(Timing::new(times_us, loop_us))
    }

    /// Adds the times of single calls, each after a barrier. Returns the time of all, which is the
    /// same on every rank.
    fn one_by_one_us(
        &mut self,
        case: Case,
        placement: Placement,
        iterations: u32,
        times_us: &mut Vec<f64>,
    ) -> Result<f64, Error> {
        times_us.reserve(iterations as usize);
        let begin = Instant::now();
        for _ in 0..iterations {
            if self.measurement.touch {
                self.zero(case, placement);
            }
            self.communicator.barrier()?;
            let start = Instant::now();
            self.call(case, placement)?;
            times_us.push(start.elapsed().as_nanos() as f64 / 1e3);
        }
        let mut spent_us = [begin.elapsed().as_nanos() as f64 / 1e3];
        self.communicator.all_reduce(&mut spent_us, Op::Max)?;
        Ok(spent_us[0])
    }

    /// Mean time of a call when they follow one another: of the slowest rank.
    fn back_to_back_us(
        &mut self,
        case: Case,
        placement: Placement,
        iterations: u32,
    ) -> Result<f64, Error> {
        self.communicator.barrier()?;
        let start = Instant::now();
        self.repeat(case, placement, iterations)?;
        let mut time_us = [start.elapsed().as_nanos() as f64 / 1e3 / f64::from(iterations)];
        self.communicator.all_reduce(&mut time_us, Op::Max)?;
        Ok(time_us[0])
    }

    fn repeat(&mut self, case: Case, placement: Placement, calls: u32) -> Result<(), Error> {
        (0..calls).try_for_each(|_| self.call(case, placement))
    }

    fn call(&mut self, case: Case, placement: Placement) -> Result<(), Error> {
        let communicator = self.communicator;
        let input =
            if placement == Placement::OutOfPlace { &self.input[..case.count] } else { &[] };
        let output = &mut self.output[..case.count];
        let op = with_factor(case.op.unwrap_or(Op::Sum), communicator.rank());
        let root = case.root.unwrap_or_default();
        let forced = self.measurement.algorithm.map(|algorithm| communicator.using(algorithm));
        match (self.measurement.collective, placement, forced) {
            (Measured::AllReduce, Placement::InPlace, None) => communicator.all_reduce(output, op),
            (Measured::AllReduce, Placement::InPlace, Some(by)) => by.all_reduce(output, op),
            (Measured::AllReduce, Placement::OutOfPlace, None) => {
                communicator.all_reduce_into(input, output, op)
            }
            (Measured::AllReduce, Placement::OutOfPlace, Some(by)) => {
                by.all_reduce_into(input, output, op)
            }
            (Measured::Broadcast, Placement::InPlace, None) => communicator.broadcast(output, root),
            (Measured::Broadcast, Placement::InPlace, Some(by)) => by.broadcast(output, root),
            (Measured::Broadcast, Placement::OutOfPlace, None) => {
                communicator.broadcast_into(input, output, root)
            }
            (Measured::Broadcast, Placement::OutOfPlace, Some(by)) => {
                by.broadcast_into(input, output, root)
            }
        }
    }
}

/// How many elements of a guard were written.
fn written<T: Patterned>(guard: &[T]) -> u64 {
    guard.iter().filter(|&&element| element != T::UNWRITTEN).count() as u64
}

/// A buffer with its guard.
enum Area<T> {
    Plain { memory: Vec<T>, start: usize },
    Registered(Memory<T>),
}

impl<T: Patterned> Area<T> {
    fn new(
        communicator: &Communicator,
        memory: options::Memory,
        count: usize,
    ) -> Result<Area<T>, Error> {
        let count = count + GUARD;
        match memory {
            options::Memory::Plain => {
                let memory = vec![T::default(); count + ALIGNMENT_BYTES / size_of::<T>()];
                let start = memory.as_ptr().align_offset(ALIGNMENT_BYTES);
                Ok(Area::Plain { memory, start })
            }
            options::Memory::Registered => Ok(Area::Registered(communicator.alloc(count)?)),
        }
    }
}

impl<T: Patterned> Deref for Area<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Area::Plain { memory, start } => &memory[*start..],
            Area::Registered(memory) => memory,
        }
    }
}

impl<T: Patterned> DerefMut for Area<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Area::Plain { memory, start } => &mut memory[*start..],
            Area::Registered(memory) => memory,
        }
    }
}
