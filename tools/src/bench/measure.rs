//! Measures one case: checks the result, then times the call.

use std::time::Instant;

use ringtree::{Algorithm, Collective, Communicator, DataType, Error, Op};

use super::area::{Area, GUARD};
use super::call::Called;
use super::gpu::Gpu;
use super::layout::Layout;
use super::options::{By, Iterations, Measurement, Placement};
use super::pattern::{Pattern, Patterned, with_factor};
use super::posted::{Buffers, Posted};
use super::statistics::{self, Distribution, Timing};
use super::timeline::Recorded;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What is called, with its root.
    pub called: Called,
    /// Type of the elements.
    pub data_type: DataType,
    /// How they are reduced, where they are.
    pub op: Option<Op>,
    /// Elements, or elements of a block.
    pub count: usize,
    /// Blocks of the longer buffer: as many as there are ranks, or 1 where there are none.
    pub blocks: usize,
    /// The algorithm, unless it is to be chosen.
    pub algorithm: Option<Algorithm>,
}

impl Case {
    /// All cases of one type among `ranks`, in the order of nccl-tests: operation by operation, root
    /// by root, size by size; and algorithm by algorithm where all are wanted.
    pub fn all(measurement: &Measurement, data_type: DataType, ranks: u32) -> Vec<Case> {
        let Measurement { call, ref ops, root, ref sizes_bytes, .. } = *measurement;
        let has_roots = call.with_root(0).root().is_some();
        let roots = match root {
            Some(root) => root..root + 1,
            None if has_roots => 0..ranks,
            None => 0..1,
        };
        let ops: Vec<Option<Op>> = match call.with_root(0).is_reduction() {
            true => ops.iter().filter(|op| data_type.has(**op)).copied().map(Some).collect(),
            false => vec![None],
        };
        let blocks = measurement.blocks(ranks);
        let algorithms: Vec<Option<Algorithm>> = match measurement.by {
            By::Choice => vec![None],
            By::One(algorithm) => vec![Some(algorithm)],
            By::Each => call.with_root(0).serving().map(Some).collect(),
        };
        let mut cases = Vec::new();
        for &op in &ops {
            for root in roots.clone() {
                let called = call.with_root(root);
                cases.extend(sizes_bytes.iter().flat_map(|&bytes| {
                    let count = bytes as usize / data_type.size_bytes() / blocks;
                    algorithms.iter().map(move |&algorithm| Case {
                        called,
                        data_type,
                        op,
                        count,
                        blocks,
                        algorithm,
                    })
                }));
            }
        }
        cases
    }

    /// Size of the longer buffer.
    pub fn bytes(&self) -> u64 {
        (self.blocks * self.count * self.data_type.size_bytes()) as u64
    }
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Times, the same on every rank.
    pub timing: Timing,
    /// How they are spread, the same on every rank.
    pub distribution: Distribution,
    /// Wrong elements, on rank 0 of all ranks, elsewhere of this one; `None` if nothing was
    /// checked.
    pub wrong: Option<u64>,
}

/// Measures cases of one element type with one pair of buffers, or one for each call under way.
pub struct Meter<'a, T: Patterned> {
    communicator: &'a Communicator,
    measurement: &'a Measurement,
    gpu: Option<&'a Gpu>,
    buffers: Vec<Buffers<T>>,
}

impl<'a, T: Patterned> Meter<'a, T> {
    /// Allocates buffers for cases of at most `largest` elements in all blocks.
    pub fn new(
        communicator: &'a Communicator,
        measurement: &'a Measurement,
        gpu: Option<&'a Gpu>,
        largest: usize,
    ) -> Result<Meter<'a, T>, Error> {
        let area = |count| Area::new(communicator, measurement.memory, gpu, count);
        let has_input = measurement.placements.contains(&Placement::OutOfPlace);
        let inputs = if has_input { largest } else { 0 };
        let pair = |_| Ok(Buffers { input: area(inputs)?, output: area(largest)? });
        let pairs = (0..measurement.asynchronous.unwrap_or(1)).map(pair);
        let buffers = pairs.collect::<Result<_, Error>>()?;
        Ok(Meter { communicator, measurement, gpu, buffers })
    }

    /// Checks and times one case; all ranks at once.
    pub fn measure(&mut self, case: Case, placement: Placement) -> Result<Outcome, Error> {
        let mut wrong = None;
        for _ in 0..self.measurement.checks {
            let more = self.check(case, placement)?;
            wrong = Some(wrong.unwrap_or(0) + more);
        }
        let layout = self.layout(case, placement);
        // The values must not grow from call to call.
        self.zero(&layout)?;
        let by = self.communicator.using(case.algorithm);
        let (timing, distribution) = Timed { meter: self, case, by, layout, placement }.time()?;
        Ok(Outcome { timing, distribution, wrong })
    }

    /// Makes one more call of a case, and collects at rank 0 what it did when; all ranks at once.
    pub fn record(&mut self, case: Case, placement: Placement) -> Result<Option<Recorded>, Error> {
        let layout = self.layout(case, placement);
        let (communicator, by) = (self.communicator, self.communicator.using(case.algorithm));
        communicator.barrier()?;
        communicator.record_timeline();
        let begin = Instant::now();
        self.call(&by, case, &layout, placement, 1)?;
        let whole_ns = begin.elapsed().as_nanos() as u64;
        let entries = communicator.take_timeline()?;
        let (called, placement) = (case.called.name(), placement.name());
        let name = format!("{called} of {} bytes {placement}", case.bytes());
        Recorded::collect(communicator, name, &entries, whole_ns)
    }

    fn layout(&self, case: Case, placement: Placement) -> Layout {
        let (rank, ranks) = (self.communicator.rank(), self.communicator.ranks());
        Layout::new(case.called, rank, ranks, case.count, placement)
    }

    /// Writes zeros into the buffers of a case.
    fn zero(&mut self, layout: &Layout) -> Result<(), Error> {
        for Buffers { input, output } in &mut self.buffers {
            input[..layout.input_count].fill(T::default());
            output[..layout.output_count].fill(T::default());
            input.upload(layout.input_count)?;
            output.upload(layout.output_count)?;
        }
        Ok(())
    }

    /// How many elements are wrong: in the result, in the input that should have stayed as it was,
    /// and behind both.
    fn check(&mut self, case: Case, placement: Placement) -> Result<u64, Error> {
        let layout = self.layout(case, placement);
        let pattern = Pattern { op: case.op, ranks: self.communicator.ranks() };
        let Layout { input_count, output_count, given, after, .. } = &layout;
        let Buffers { input, output } = &mut self.buffers[0];
        let output_end = output_count + GUARD;
        output[..output_end].fill(T::UNWRITTEN);
        let in_place = placement == Placement::InPlace;
        if in_place {
            pattern.fill(output, given);
        } else {
            input[..input_count + GUARD].fill(T::UNWRITTEN);
            pattern.fill(input, given);
            input.upload(input_count + GUARD)?;
        }
        output.upload(output_end)?;
        self.call(&self.communicator.using(case.algorithm), case, &layout, placement, 1)?;
        let Buffers { input, output } = &mut self.buffers[0];
        output.download(output_end)?;
        if !in_place {
            input.download(input_count + GUARD)?;
        }
        let mut wrong = pattern.wrong(output, after);
        wrong += written(&output[*output_count..output_end]);
        if !in_place {
            wrong += pattern.wrong(input, given);
            wrong += written(&input[*input_count..input_count + GUARD]);
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

    /// Makes a call; where calls are asynchronous, so many at once.
    fn call(
        &mut self,
        by: &Communicator,
        case: Case,
        layout: &Layout,
        placement: Placement,
        at_once: usize,
    ) -> Result<(), Error> {
        let op = with_factor(case.op.unwrap_or(Op::Sum), by.rank());
        if self.measurement.asynchronous.is_some() {
            let buffers = &mut self.buffers[..at_once];
            let post = |buffers: &mut Buffers<T>| {
                Posted::new(by, case.called, op, layout, placement, buffers)
            };
            let posted: Vec<Posted<T>> = buffers.iter_mut().map(post).collect::<Result<_, _>>()?;
            return posted.into_iter().zip(buffers).try_for_each(|(call, to)| call.wait(to));
        }
        let Buffers { input, output } = &mut self.buffers[0];
        if let (Some(gpu), Area::Device(input), Area::Device(output)) =
            (self.gpu, &mut *input, &mut *output)
        {
            return gpu.call(by, case.called, op, layout, placement, input, output);
        }
        let input = &input[..layout.input_count];
        let output = &mut output[..layout.output_count];
        let in_place = placement == Placement::InPlace;
        let (rank, ranks) = (by.rank(), by.ranks());
        let lengths = &layout.lengths;
        match case.called {
            Called::Even(Collective::AllReduce) if in_place => by.all_reduce(output, op),
            Called::Even(Collective::AllReduce) => by.all_reduce_into(input, output, op),
            Called::Even(Collective::Broadcast { root }) if in_place => by.broadcast(output, root),
            Called::Even(Collective::Broadcast { root }) => by.broadcast_into(input, output, root),
            Called::Even(Collective::Barrier) => by.barrier(),
            Called::Even(Collective::AllGather) if in_place => by.all_gather(output),
            Called::Even(Collective::AllGather) => by.all_gather_into(input, output),
            Called::Even(Collective::ReduceScatter) if in_place => by.reduce_scatter(output, op),
            Called::Even(Collective::ReduceScatter) => by.reduce_scatter_into(input, output, op),
            Called::Even(Collective::Reduce { root }) if in_place => by.reduce(output, op, root),
            Called::Even(Collective::Reduce { root }) => by.reduce_into(input, output, op, root),
            Called::Even(Collective::Gather { root }) => by.gather_into(input, output, root),
            Called::Even(Collective::Scatter { root }) => by.scatter_into(input, output, root),
            Called::Even(Collective::AllToAll) => by.all_to_all_into(input, output),
            Called::Varied(Collective::AllGather) if in_place => by.all_gather_v(output, lengths),
            Called::Varied(Collective::AllGather) => by.all_gather_v_into(input, output, lengths),
            Called::Varied(Collective::ReduceScatter) if in_place => {
                by.reduce_scatter_v(output, lengths, op)
            }
            Called::Varied(Collective::ReduceScatter) => {
                by.reduce_scatter_v_into(input, output, lengths, op)
            }
            Called::Varied(Collective::Gather { root }) => {
                by.gather_v_into(input, output, lengths, root)
            }
            Called::Varied(Collective::Scatter { root }) => {
                by.scatter_v_into(input, output, lengths, root)
            }
            Called::Varied(_) => by.all_to_all_v_into(input, lengths, output, lengths),
            Called::SendReceive => {
                let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
                by.send_receive(input, next, output, before)
            }
        }
    }
}

/// One case while it is timed.
struct Timed<'m, 'a, T: Patterned> {
    meter: &'m mut Meter<'a, T>,
    case: Case,
    /// What carries the case's calls out.
    by: Communicator,
    layout: Layout,
    placement: Placement,
}

impl<T: Patterned> Timed<'_, '_, T> {
    fn time(&mut self) -> Result<(Timing, Distribution), Error> {
        let Measurement { warm_up, iterations, .. } = *self.meter.measurement;
        self.repeat(warm_up.unwrap_or(statistics::warm_up_calls(self.case.bytes())))?;
        let mut times_us = Vec::new();
        match iterations {
            Iterations::Fixed(count) => {
                self.one_by_one_us(count, &mut times_us)?;
            }
            Iterations::TimeMs(time_ms) => {
                // The other half is for the other loop.
                let limit_us = time_ms * 1000.0 / 2.0;
                let mut spent_us = 0.0;
                let mut done = 0;
                while let Some(more) = statistics::next_batch(done, spent_us, limit_us) {
                    spent_us += self.one_by_one_us(more, &mut times_us)?;
                    done += more;
                }
            }
        }
        let ranks = self.meter.communicator.ranks() as usize;
        let mut of_all_us = vec![0.0; ranks * times_us.len()];
        self.meter.communicator.all_gather_into(&times_us, &mut of_all_us)?;
        let (distribution, slowest_us) = Distribution::of(&of_all_us, ranks);
        // Without a barrier before each, so many take no longer.
        let loop_us = self.back_to_back_us(times_us.len() as u32)?;
        Ok((Timing::new(slowest_us, loop_us), distribution))
    }

    /// Adds the times of single calls, each after a barrier. Returns the time of all, which is the
    /// same on every rank.
    fn one_by_one_us(&mut self, iterations: u32, times_us: &mut Vec<f64>) -> Result<f64, Error> {
        times_us.reserve(iterations as usize);
        let begin = Instant::now();
        for _ in 0..iterations {
            if self.meter.measurement.touch {
                self.meter.zero(&self.layout)?;
            }
            self.meter.communicator.barrier()?;
            let start = Instant::now();
            self.call()?;
            times_us.push(start.elapsed().as_nanos() as f64 / 1e3 / self.at_once() as f64);
        }
        let mut spent_us = [begin.elapsed().as_nanos() as f64 / 1e3];
        self.meter.communicator.all_reduce(&mut spent_us, Op::Max)?;
        Ok(spent_us[0])
    }

    /// Mean time of a call when they follow one another: of the slowest rank.
    fn back_to_back_us(&mut self, iterations: u32) -> Result<f64, Error> {
        self.meter.communicator.barrier()?;
        let start = Instant::now();
        self.repeat(iterations)?;
        let calls = f64::from(iterations) * self.at_once() as f64;
        let mut time_us = [start.elapsed().as_nanos() as f64 / 1e3 / calls];
        self.meter.communicator.all_reduce(&mut time_us, Op::Max)?;
        Ok(time_us[0])
    }

    fn repeat(&mut self, calls: u32) -> Result<(), Error> {
        (0..calls).try_for_each(|_| self.call())
    }

    fn call(&mut self) -> Result<(), Error> {
        let at_once = self.at_once();
        self.meter.call(&self.by, self.case, &self.layout, self.placement, at_once)
    }

    /// Calls that are made at once; a time is that of one of them.
    fn at_once(&self) -> usize {
        self.meter.buffers.len()
    }
}

/// How many elements of a guard were written.
fn written<T: Patterned>(guard: &[T]) -> u64 {
    guard.iter().filter(|&&element| element != T::UNWRITTEN).count() as u64
}
