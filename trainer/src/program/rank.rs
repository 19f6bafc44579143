//! One rank of a run, from joining to the report.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use ringtree::{Communicator, Settings, Source};
use ringtree_trainer::checkpoint::{self, Checkpoint, Writer};
use ringtree_trainer::data::{Data, Loaded, Loader, Position, Sampler};
use ringtree_trainer::models::{self};
use ringtree_trainer::{Batch, DataParallel, Error, Model, Optimizing, Real};

use crate::banner::Banner;
use crate::config::{Config, Decay, Number};
use crate::events::{Phase, StepEvents};
use crate::interrupt::Interrupt;
use crate::metrics::{EventLine, Line, Metrics, StepLine};
use crate::output::Output;
use crate::timeline::Timeline;
use crate::validation::validate;
use crate::{Arguments, Resume, plan, report};

/// Takes part in a run.
///
/// # Errors
/// [`Error`]: what has ended it.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let config = Config::new(arguments)?;
    let settings = Settings::from_env()?;
    if let Some(ranks) = arguments.ranks.filter(|ranks| *ranks != settings.ranks) {
        return Err(Error::Argument(format!(
            "--ranks {ranks}, but the launcher has started {}; leave --ranks out under a launcher",
            settings.ranks
        )));
    }
    let launcher = settings.source;
    // Before other threads begin, so that they leave signals to this one.
    let interrupt = Interrupt::catch()?;
    let data = config.open_data()?;
    let communicator = Communicator::with(settings)?;
    match config.number {
        Number::F32 => Run::<f32>::new(config, arguments, communicator, launcher, data)?.go(&interrupt),
        Number::F64 => Run::<f64>::new(config, arguments, communicator, launcher, data)?.go(&interrupt),
    }
}

/// A run as one rank sees it.
struct Run<T: Real> {
    config: Config,
    communicator: Communicator,
    launcher: Source,
    data: Data,
    model: DataParallel<Box<dyn Model>, T>,
    optimizing: Optimizing<T>,
    /// The step that was made last, and where it left the data.
    step: u64,
    position: Position,
    steps: u64,
    out: PathBuf,
    dry_run: bool,
    timeline: Option<PathBuf>,
    /// What was resumed from.
    resumed: Option<PathBuf>,
}

impl<T: Real> Run<T> {
    fn new(
        config: Config,
        arguments: &Arguments,
        communicator: Communicator,
        launcher: Source,
        data: Data,
    ) -> Result<Run<T>, Error> {
        let out = config.out_folder();
        let saved = match arguments.resume {
            Resume::Auto => checkpoint::latest(&checkpoints(&out))?,
            Resume::Never => None,
        };
        let mut exchange = config.exchange.clone();
        exchange.order = saved.as_ref().map(|saved| saved.state().bucket_order.clone());
        let facts = data.train.facts();
        let build = |vb| models::build(&config.model, vb, &facts);
        let model = DataParallel::new(&communicator, config.seed, exchange, build)?;
        let optimizing = Optimizing::new(config.optimiser, config.decay == Decay::Matrices)?;
        let per_epoch = sampler(&config, &communicator, &data)?.steps_per_epoch();
        let mut run = Run {
            steps: config.steps(per_epoch),
            config,
            communicator,
            launcher,
            data,
            model,
            optimizing,
            step: 0,
            position: Position::default(),
            out,
            dry_run: arguments.dry_run,
            timeline: arguments.timeline.clone(),
            resumed: None,
        };
        if let Some(saved) = saved {
            run.restore(&saved)?;
        }
        Ok(run)
    }

    fn go(mut self, interrupt: &Interrupt) -> Result<ExitCode, Error> {
        let is_first = self.communicator.rank() == 0;
        if self.dry_run {
            if is_first {
                plan::print(&self.config, &self.model, self.steps)?;
            }
            self.communicator.barrier()?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut output = None;
        if is_first {
            fs::create_dir_all(&self.out).map_err(refused(&self.out))?;
            self.write_config()?;
            let banner = Banner::new(&self.config, &self.model, &self.data, self.launcher, &self.out);
            let resumed = self.resumed.as_deref().map(|folder| (folder, self.step));
            let metrics =
                Metrics::open(self.out.join("metrics.jsonl"), resumed.map(|(_, step)| step))?;
            output = Some(Output::new(banner, resumed, metrics, self.steps, self.step));
        }
        // The others write their checkpoints into folders that it has made.
        self.communicator.barrier()?;
        let ended = self.train(interrupt, output.as_mut());
        let report = output.map(|output| output.end()).transpose()?;
        let interrupted = ended?;
        if let Some(banner) = report {
            let path = report::write(&self.out, &banner)?;
            println!("report: {}", path.display());
        }
        Ok(ExitCode::from(if interrupted { 130 } else { 0 }))
    }

    /// Trains to the end, or until a signal asks it to leave; says whether one has.
    fn train(
        &mut self,
        interrupt: &Interrupt,
        mut output: Option<&mut Output>,
    ) -> Result<bool, Error> {
        let sampler = sampler(&self.config, &self.communicator, &self.data)?;
        let rank = self.communicator.rank() as usize;
        let data: Arc<_> = self.data.train.clone();
        let mut loader = Loader::new(data, &sampler, self.position, rank, T::DTYPE)?;
        let mut writer = Writer::new(
            checkpoints(&self.out),
            self.communicator.rank(),
            self.communicator.ranks(),
            self.config.checkpoints_kept,
        );
        let mut timeline = self.timeline.is_some().then(Timeline::new);
        let mut saved_at = self.step;
        let mut interrupted = false;
        while self.step < self.steps && !interrupted {
            let begin = Instant::now();
            let mut events = StepEvents::default();
            let loaded = events.run(Phase::Data, || loader.next_step())?;
            let loss = self.learn(&loaded, &mut events)?;
            let rate = self.config.learning_rate
                * self.config.schedule.factor(self.step + 1, self.steps);
            let norm = events.run(Phase::Optimiser, || {
                self.optimizing.step(&mut self.model, rate, self.config.max_gradient_norm)
            })?;
            self.step += 1;
            self.position = loaded.step.after;
            let shared = Shared::of(&events, loss, begin.elapsed().as_secs_f64(), interrupt);
            let all = shared.gather(&self.communicator)?;
            interrupted = all.iter().any(|one| one.interrupted != 0.0);
            if let Some(timeline) = &mut timeline {
                timeline.add(self.step, &events);
            }
            if let Some(output) = output.as_deref_mut() {
                output.step(self.line(&loaded, &all, &events, rate, norm, sampler.steps_per_epoch()))?;
            }
            if is_due(self.config.check_every, self.step) {
                self.model.check_equal()?;
            }
            let is_end = self.step == self.steps || interrupted;
            if is_due(self.config.validate_every, self.step) || is_end {
                let data = self.data.validation.as_ref();
                let line = validate(&self.model, data, self.config.batch, self.step)?;
                if let Some(output) = output.as_deref_mut() {
                    output.validation(line)?;
                }
            }
            if is_due(self.config.checkpoint_every, self.step) || is_end {
                self.save(&mut writer)?;
                saved_at = self.step;
            }
        }
        writer.finish()?;
        if let Some(output) = output {
            let what = if interrupted { "interrupted" } else { "finished" };
            let event = format!("{what} after step {}; checkpoint at step {saved_at}", self.step);
            output.event(EventLine { step: self.step, what: event })?;
        }
        if let (Some(timeline), Some(path)) = (timeline, &self.timeline) {
            timeline.write(&self.communicator, path)?;
        }
        Ok(interrupted)
    }

    /// Forward and backward passes of a step, and the exchange. Returns the part of the step's loss that this rank has.
    fn learn(&mut self, loaded: &Loaded, events: &mut StepEvents) -> Result<f64, Error> {
        let of_all = predictions_of_all(loaded);
        let mut loss_part = 0.0;
        if let Some(batch) = &loaded.batch {
            let parts = micro_batches(batch, self.config.micro_batches)?;
            for (number, part) in parts.iter().enumerate() {
                let share = part.predictions() as f64 / of_all;
                let loss = events.run(Phase::Forward, || self.model.model().loss(part))?;
                events.run(Phase::Backward, || match number + 1 == parts.len() {
                    true => self.model.backward(&loss, share),
                    false => self.model.accumulate(&loss, share),
                })?;
                let loss = loss.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
                loss_part += share * loss;
            }
        }
        events.exchanged = events.run(Phase::Exchange, || self.model.finish())?;
        Ok(loss_part)
    }

    fn line(
        &self,
        loaded: &Loaded,
        all: &[Shared],
        events: &StepEvents,
        learning_rate: f64,
        gradient_norm: f64,
        steps_per_epoch: usize,
    ) -> Line {
        let busy_ms: Vec<f64> = all.iter().map(|one| one.busy_ms).collect();
        let step_s = all.iter().map(|one| one.step_s).fold(0.0, f64::max);
        let slowest = (0..all.len()).max_by(|a, b| busy_ms[*a].total_cmp(&busy_ms[*b])).unwrap_or(0);
        let mut sorted = busy_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let samples = loaded.step.samples() as u64;
        let predictions = predictions_of_all(loaded) as u64;
        let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
        Line::Step(StepLine {
            step: self.step,
            epoch: self.step as f64 / steps_per_epoch as f64,
            loss: all.iter().map(|one| one.loss).sum(),
            gradient_norm,
            learning_rate,
            samples,
            predictions,
            step_ms: step_s * 1e3,
            samples_per_s: samples as f64 / step_s,
            predictions_per_s: predictions as f64 / step_s,
            exchange_ms: ms(events.exchanged.busy()),
            exposed_ms: ms(events.exchanged.exposed),
            slowest_rank: slowest as u32,
            behind_ms: busy_ms[slowest] - sorted[(sorted.len() - 1) / 2],
            busy_ms,
            phases_ms: Phase::ALL.map(|phase| ms(events.time(phase))).to_vec(),
        })
    }

    fn write_config(&self) -> Result<(), Error> {
        let path = self.out.join("config.toml");
        fs::write(&path, self.config.to_toml()?).map_err(refused(&path))
    }
}

/// What ranks tell each other after a step.
#[derive(Clone, Copy, Debug, Default)]
struct Shared {
    loss: f64,
    busy_ms: f64,
    step_s: f64,
    /// Not 0 if a signal has come.
    interrupted: f64,
}

impl Shared {
    fn of(events: &StepEvents, loss: f64, step_s: f64, interrupt: &Interrupt) -> Shared {
        let interrupted = f64::from(u8::from(interrupt.is_asked()));
        Shared { loss, busy_ms: events.busy().as_secs_f64() * 1e3, step_s, interrupted }
    }

    /// That of all ranks, in one small call.
    fn gather(self, communicator: &Communicator) -> Result<Vec<Shared>, Error> {
        let own = [self.loss, self.busy_ms, self.step_s, self.interrupted];
        let mut all = vec![0.0; own.len() * communicator.ranks() as usize];
        communicator.all_gather_into(&own, &mut all)?;
        let decode = |one: &[f64]| Shared {
            loss: one[0],
            busy_ms: one[1],
            step_s: one[2],
            interrupted: one[3],
        };
        Ok(all.chunks_exact(own.len()).map(decode).collect())
    }
}

fn sampler(config: &Config, communicator: &Communicator, data: &Data) -> Result<Sampler, Error> {
    let ranks = communicator.ranks() as usize;
    Sampler::new(data.train.len(), ranks, config.batch, config.seed)
}

/// The predictions of a step, on all ranks.
fn predictions_of_all(loaded: &Loaded) -> f64 {
    (loaded.step.samples() * loaded.predictions_per_sample) as f64
}

/// A batch in parts, as even as possible and none of them empty.
fn micro_batches(batch: &Batch, count: usize) -> Result<Vec<Batch>, Error> {
    let samples = batch.samples();
    let count = count.min(samples);
    let part = |number: usize| {
        let (start, end) = (samples * number / count, samples * (number + 1) / count);
        Ok(Batch {
            input: batch.input.narrow(0, start, end - start)?,
            target: batch.target.narrow(0, start, end - start)?,
        })
    };
    (0..count).map(part).collect()
}

/// Whether what happens every so many steps happens now.
fn is_due(every: u64, step: u64) -> bool {
    every != 0 && step.is_multiple_of(every)
}

/// Where a run's checkpoints are.
fn checkpoints(out: &Path) -> PathBuf {
    out.join("checkpoints")
}

fn refused(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}
