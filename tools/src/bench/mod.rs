//! `ringtree bench`: measures a collective between processes.

mod area;
mod baseline;
mod call;
mod counters;
mod gpu;
mod layout;
mod measure;
mod options;
mod output;
mod pattern;
mod picture;
mod posted;
mod record;
mod regret;
pub mod sizes;
mod statistics;
mod summary;
mod table;
mod timeline;
mod wire;

use std::env;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use ringtree::{
    Algorithm, Collective, Communicator, DataType, Explanation, F8E4M3, F8E5M2, Op, Settings, bf16,
    f16,
};
use ringtree_transport::endpoint::Transports;

use call::Called;
use counters::Counters;
use gpu::Gpu;
use measure::{Case, Meter};
pub use options::{BenchArguments, Transport, bus_factor};
use options::{CutSize, Measurement, Memory, OptionError};
use output::{Carried, Output};
use pattern::Patterned;
use ringtree_launcher::{LaunchError, LaunchOptions, Layout, end_by_broken_pipe, launch, report};
use summary::Summary;

/// How long the other ranks may run on after one has failed.
const GRACE: Duration = Duration::from_secs(5);

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error(transparent)]
    Options(#[from] OptionError),
    #[error("{0}")]
    Library(#[from] ringtree::Error),
    #[error("cannot start the ranks: {0}")]
    Launch(#[from] LaunchError),
    #[error("cannot find this program's own file: {0}")]
    Program(io::Error),
    #[error("cannot print: {0}")]
    Print(io::Error),
    #[error("cannot write {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot read {}: {source}", path.display())]
    Baseline { path: PathBuf, source: io::Error },
    #[error("another rank has ended the run")]
    Ended,
}

/// Measures what was asked for; a wrong element makes the status 1.
pub fn run(arguments: &BenchArguments) -> ExitCode {
    let done = if Settings::in_env() { take_part(arguments) } else { start_ranks(arguments) };
    done.unwrap_or_else(|error| {
        if matches!(&error, BenchError::Print(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            end_by_broken_pipe();
        }
        if matches!(error, BenchError::Ended) {
            // The other one says why, and its status is the job's.
            return ExitCode::SUCCESS;
        }
        report(&error.to_string());
        let is_mistake = matches!(
            error,
            BenchError::Options(_)
                | BenchError::File { .. }
                | BenchError::Baseline { .. }
                | BenchError::Library(ringtree::Error::Settings(_))
        );
        ExitCode::from(if is_mistake { 2 } else { 1 })
    })
}

/// Starts this program again, once for each rank.
fn start_ranks(arguments: &BenchArguments) -> Result<ExitCode, BenchError> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let ranks = arguments.ranks.or(arguments.gpus).unwrap_or(processors.max(2) as u32);
    // A mistake is told once, and not by every rank.
    Settings::from_env()?;
    let measurement = arguments.decide(ranks)?;
    for CutSize { bytes, measured_bytes, data_type, blocks } in measurement.cut_sizes(ranks) {
        let name = data_type.name();
        let what = match blocks {
            1 => format!("no whole number of {name}"),
            _ => format!("not {blocks} equal blocks of {name}"),
        };
        report(&format!("{bytes} bytes are {what}: measuring {measured_bytes}"));
    }
    for path in [&arguments.json, &arguments.csv, &arguments.plot, &arguments.timeline]
        .into_iter()
        .flatten()
    {
        output::check_file(path)?;
    }
    output::baseline(arguments)?;
    let code = launch(&LaunchOptions {
        ranks,
        layout: Layout::Nodes { nodes: 1, node_rank: 0 },
        rendezvous: None,
        job: None,
        binding: arguments.bind,
        program: env::current_exe().map_err(BenchError::Program)?.into(),
        arguments: env::args_os().skip(1).collect(),
        raw_output_of_rank_0: true,
        grace: GRACE,
        restarts: 0,
        min_ranks: None,
    })?;
    Ok(ExitCode::from(code))
}

/// Measures as one of the ranks.
fn take_part(arguments: &BenchArguments) -> Result<ExitCode, BenchError> {
    let mut settings = Settings::from_env()?;
    let measurement = arguments.decide(settings.ranks)?;
    match measurement.transport {
        Transport::Auto => {}
        Transport::Shm => settings.transports = Transports::Shm,
        Transport::Tcp => settings.transports = Transports::Tcp,
        Transport::Rdma => settings.transports = Transports::Rdma,
        Transport::RdmaOrTcp => settings.transports = Transports::RdmaOrTcp,
    }
    settings.encrypts |= measurement.encrypt;
    settings.sockets = measurement.sockets.unwrap_or(settings.sockets);
    let launcher = settings.source;
    if arguments.cuda_library.is_some() {
        settings.cuda_library = arguments.cuda_library.clone();
    }
    let local_rank = settings.local_rank.unwrap_or(settings.rank);
    let communicator = Communicator::with(settings)?;
    communicator.warm_up()?;
    let gpu = match measurement.memory {
        Memory::Device => {
            let opened = Gpu::open(&communicator, local_rank, measurement.gpus);
            let mut gpu = all_together(&communicator, opened)?;
            gpu.join(&communicator)?;
            Some(gpu)
        }
        Memory::Plain | Memory::Registered => None,
    };
    let summary = Summary::collect(&communicator, launcher, gpu.as_ref())?;
    let new_output = |summary| Output::new(summary, &measurement, arguments);
    let mut output = together(&communicator, summary.map(new_output).transpose())?;
    let mut wrong = 0;
    for &data_type in &measurement.data_types {
        let (communicator, gpu) = (&communicator, gpu.as_ref());
        let sweep = Sweep { communicator, measurement: &measurement, gpu };
        wrong += match data_type {
            DataType::F32 => sweep.run::<f32>(output.as_mut()),
            DataType::F64 => sweep.run::<f64>(output.as_mut()),
            DataType::Bf16 => sweep.run::<bf16>(output.as_mut()),
            DataType::F16 => sweep.run::<f16>(output.as_mut()),
            DataType::F8E4M3 => sweep.run::<F8E4M3>(output.as_mut()),
            DataType::F8E5M2 => sweep.run::<F8E5M2>(output.as_mut()),
            DataType::I8 => sweep.run::<i8>(output.as_mut()),
            DataType::U8 => sweep.run::<u8>(output.as_mut()),
            DataType::I32 => sweep.run::<i32>(output.as_mut()),
            DataType::U32 => sweep.run::<u32>(output.as_mut()),
            DataType::I64 => sweep.run::<i64>(output.as_mut()),
            DataType::U64 => sweep.run::<u64>(output.as_mut()),
        }?;
    }
    let counters = Counters::collect(&communicator)?;
    // Rank 0 knows of everyone's, and speaks for all.
    let Some(output) = output else { return Ok(ExitCode::SUCCESS) };
    let lost = output.finish(counters)?;
    if wrong > 0 {
        report(&format!("{wrong} elements were wrong"));
        return Ok(ExitCode::FAILURE);
    }
    if lost > 0 && arguments.max_loss_percent.is_some() {
        report(&format!("{lost} rows took longer than --max-loss allows"));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// What rank 0 could do, if it could: else all ranks end here, so that none waits for one that has
/// gone.
fn together<T>(communicator: &Communicator, mine: Result<T, BenchError>) -> Result<T, BenchError> {
    let mut is_done = [i32::from(mine.is_ok())];
    let told = communicator.broadcast(&mut is_done, 0);
    let mine = mine?;
    told?;
    if is_done == [1] { Ok(mine) } else { Err(BenchError::Ended) }
}

/// What this rank could do, if all could: else the first that could not says why, and all end.
fn all_together<T>(
    communicator: &Communicator,
    mine: Result<T, ringtree::Error>,
) -> Result<T, BenchError> {
    let (rank, ranks) = (communicator.rank(), communicator.ranks());
    let mut first_to_fail = [if mine.is_ok() { ranks } else { rank }];
    communicator.all_reduce(&mut first_to_fail, Op::Min)?;
    match mine {
        Ok(mine) if first_to_fail == [ranks] => Ok(mine),
        Err(error) if first_to_fail == [rank] => Err(error.into()),
        _ => Err(BenchError::Ended),
    }
}

/// All sizes of one element type.
struct Sweep<'a> {
    communicator: &'a Communicator,
    measurement: &'a Measurement,
    gpu: Option<&'a Gpu>,
}

impl Sweep<'_> {
    /// Measures them, and returns how many elements were wrong. `output` is there on rank 0 only.
    fn run<T: Patterned>(&self, mut output: Option<&mut Output>) -> Result<u64, BenchError> {
        let cases = Case::all(self.measurement, T::DATA_TYPE, self.communicator.ranks());
        let largest = cases.iter().map(|case| case.blocks * case.count).max().unwrap_or(0);
        let meter = Meter::<T>::new(self.communicator, self.measurement, self.gpu, largest);
        let mut meter = all_together(self.communicator, meter)?;
        let mut wrong = 0;
        for case in cases {
            let algorithm = self.algorithm(case);
            let begun = output
                .as_deref_mut()
                .map_or(Ok(()), |output| output.begin(case, self.explanation(case).as_deref()));
            together(self.communicator, begun)?;
            let (mut outcomes, mut recorded) = (Vec::new(), Vec::new());
            for &placement in &self.measurement.placements {
                let outcome = meter.measure(case, placement)?;
                wrong += outcome.wrong.unwrap_or(0);
                outcomes.push(outcome);
                if self.measurement.timeline {
                    recorded.extend(meter.record(case, placement)?);
                }
            }
            let output = output.as_deref_mut();
            let printed =
                output.map_or(Ok(()), |output| output.row(case, algorithm, &outcomes, recorded));
            together(self.communicator, printed)?;
        }
        Ok(wrong)
    }

    /// The algorithm that a case is carried out by.
    fn algorithm(&self, case: Case) -> Carried {
        let is_one_kernel = |collective| {
            let by = self.communicator.using(case.algorithm);
            self.gpu.is_some() && by.is_one_kernel(collective, case.count, case.data_type)
        };
        if let Called::Even(collective) = case.called
            && is_one_kernel(collective)
        {
            return Carried { name: "one-kernel", is_chosen: true };
        }
        let chosen = match case.called {
            Called::Even(_) => self.explain(case).map(|e| e.candidates[0].choice.algorithm),
            Called::Varied(Collective::AllGather | Collective::ReduceScatter) => {
                let explained = self.explain(case).map(|explanation| explanation.candidates);
                let candidates = explained.into_iter().flatten().map(|c| c.choice.algorithm);
                candidates.into_iter().find(|a| case.called.serving().any(|b| b == *a))
            }
            Called::Varied(_) => Some(Algorithm::Direct),
            Called::SendReceive => None,
        };
        let algorithm = case.algorithm.or(chosen);
        Carried { name: algorithm.map_or("none", Algorithm::name), is_chosen: algorithm == chosen }
    }

    fn explanation(&self, case: Case) -> Option<String> {
        self.measurement.explain.then(|| self.explain(case)).flatten().map(|e| e.to_string())
    }

    fn explain(&self, case: Case) -> Option<Explanation> {
        let collective = case.called.collective()?;
        Some(self.communicator.explain(collective, case.count, case.data_type))
    }
}
