//! One rank of a run, from joining to the report.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use ringtree::{Communicator, Settings, Source};
use ringtree_trainer::checkpoint::Writer;
use ringtree_trainer::data::{Data, Input, Loaded, Loader, Sampler};
use ringtree_trainer::models;
use ringtree_trainer::{Batch, DataParallel, Error, Model, Optimizing, Real};

use crate::banner::Banner;
use crate::config::{Config, Decay, Number};
use crate::events::{Phase, StepEvents};
use crate::interrupt::Interrupt;
use crate::metrics::{EventLine, Metrics, StepLine};
use crate::output::{Output, say};
use crate::saving::{self, Progress};
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
    let (launcher, local_rank) = (settings.source, settings.local_rank.unwrap_or(settings.rank));
    // Before other threads begin, so that they leave signals to this one.
    let interrupt = Interrupt::catch()?;
    let communicator = Communicator::with(settings)?;
    let ready = opened(&config).and_then(|data| {
        let device = config.device.open(&communicator, local_rank)?;
        Ok((data, device))
    });
    let Some((data, device)) = together(&communicator, ready)? else {
        return Ok(ExitCode::SUCCESS);
    };
    match config.number {
        Number::F32 => Run::<f32>::new(config, arguments, communicator, launcher, data, &device)?
            .go(&interrupt),
        Number::F64 => Run::<f64>::new(config, arguments, communicator, launcher, data, &device)?
            .go(&interrupt),
    }
}

/// The data, for which the model can be built.
fn opened(config: &Config) -> Result<Data, Error> {
    let data = config.open_data()?;
    let nothing = VarBuilder::zeros(DType::F32, &Device::Cpu);
    models::build(&config.model, nothing, &data.train.facts())
        .map_err(|error| Error::Argument(error.to_string()))?;
    Ok(data)
}

/// What all ranks have done, if they have. Where some have failed, the first of them says why, and the others leave in
/// silence: `None`.
fn together<R>(communicator: &Communicator, done: Result<R, Error>) -> Result<Option<R>, Error> {
    let mut failed = vec![0_u8; communicator.ranks() as usize];
    communicator.all_gather_into(&[u8::from(done.is_err())], &mut failed)?;
    match failed.iter().position(|failed| *failed != 0) {
        None => done.map(Some),
        Some(first) if first == communicator.rank() as usize => done.map(Some),
        Some(_) => Ok(None),
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
    progress: Progress,
    /// The last step.
    steps: u64,
    out: PathBuf,
    dry_run: bool,
    timeline: Option<PathBuf>,
    /// Whether it goes on from no checkpoint, even where there are some.
    begins_anew: bool,
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
        device: &Device,
    ) -> Result<Run<T>, Error> {
        let out = config.out_folder();
        let saved = match arguments.resume {
            Resume::Auto => saving::latest(&out, &communicator)?,
            Resume::Never => None,
        };
        let mut exchange = config.exchange.clone();
        exchange.order = saved.as_ref().map(|saved| saved.state().bucket_order.clone());
        let facts = data.train.facts();
        let build = |vb| models::build(&config.model, vb, &facts);
        let model = DataParallel::on_device(&communicator, device, config.seed, exchange, build)?;
        let optimizing = Optimizing::new(config.optimiser, config.decay == Decay::Matrices)?;
        let per_epoch = sampler(&config, &communicator, &data)?.steps_per_epoch();
        let samples = data.train.len();
        let mut run = Run {
            steps: config.steps(per_epoch),
            config,
            communicator,
            launcher,
            data,
            model,
            optimizing,
            progress: Progress { samples, ..Progress::default() },
            out,
            dry_run: arguments.dry_run,
            timeline: arguments.timeline.clone(),
            begins_anew: arguments.resume == Resume::Never,
            resumed: None,
        };
        if let Some(saved) = saved {
            run.progress = saving::restore(&saved, samples, &run.model, &mut run.optimizing)?;
            run.resumed = Some(saved.path().to_owned());
        }
        Ok(run)
    }

    fn go(mut self, interrupt: &Interrupt) -> Result<ExitCode, Error> {
        let is_first = self.communicator.rank() == 0;
        let banner = Banner::new(
            &self.config,
            &self.model,
            &self.data,
            self.launcher,
            self.steps,
            &self.out,
        )?;
        if self.dry_run {
            let ranks = plan::rank_map(&self.communicator)?;
            if is_first {
                banner.print();
                say(&ranks);
            }
            return Ok(ExitCode::SUCCESS);
        }
        // The others write their checkpoints into folders that it has made.
        let begun = if is_first { self.begin(banner).map(Some) } else { Ok(None) };
        let Some(mut output) = together(&self.communicator, begun)? else {
            return Ok(ExitCode::SUCCESS);
        };
        let ended = self.train(interrupt, output.as_mut());
        let banner = output.map(Output::end);
        let ended = ended?;
        if let Some(banner) = banner {
            let path = report::write(&self.out, &banner)?;
            say(&format!("report: {}", path.display()));
        }
        match ended {
            End::Finished => Ok(ExitCode::SUCCESS),
            End::Interrupted => Ok(ExitCode::from(130)),
            End::Diverged(why) if is_first => Err(Error::Argument(why)),
            End::Diverged(_) => Ok(ExitCode::SUCCESS),
        }
    }

    /// Makes the run's folder and what stands in it from the beginning. What cannot be written is told now, and not after the last
    /// step.
    fn begin(&self, banner: Banner) -> Result<Output, Error> {
        let mistaken = |what: &str, path: &Path, error: std::io::Error| {
            let path = path.display();
            Error::Argument(format!("{what} {path}: {error}; give another one"))
        };
        if let Some(path) = &self.timeline {
            fs::write(path, "").map_err(|error| mistaken("--timeline", path, error))?;
        }
        fs::create_dir_all(&self.out).map_err(|error| mistaken("--out", &self.out, error))?;
        if self.begins_anew
            && let Some(path) = saving::set_aside(&self.out)?
        {
            say(&format!("checkpoints of an earlier run are in {} now", path.display()));
        }
        self.write_config()?;
        let resumed = self.resumed.as_deref().map(|folder| (folder, self.progress.step));
        let path = self.out.join("metrics.jsonl");
        let metrics = Metrics::open(path, resumed.map(|(_, step)| step))?;
        Ok(Output::new(banner, resumed, metrics, self.steps, self.counts_tokens()))
    }

    /// Trains to the end, until a signal asks it to leave, or until there is nothing to go on with.
    fn train(
        &mut self,
        interrupt: &Interrupt,
        mut output: Option<&mut Output>,
    ) -> Result<End, Error> {
        let sampler = sampler(&self.config, &self.communicator, &self.data)?;
        let rank = self.communicator.rank() as usize;
        let data: Arc<_> = self.data.train.clone();
        let mut loader = Loader::new(data, &sampler, rank, self.progress.position, T::DTYPE)?;
        let mut writer =
            saving::writer(&self.out, &self.communicator, self.config.checkpoints_kept)?;
        let mut timeline = match self.timeline {
            Some(_) => Some(Timeline::new(&self.communicator)?),
            None => None,
        };
        let mut interrupted = false;
        while self.progress.step < self.steps && !interrupted {
            let begin = Instant::now();
            let mut events = StepEvents::default();
            let loaded = events.run(Phase::Data, || self.load(&mut loader))?;
            let Some(loaded) = loaded else { break };
            let loss = self.learn(&loaded, &mut events)?;
            let rate = self.config.learning_rate
                * self.config.schedule.factor(self.progress.step + 1, self.steps);
            let norm = events.run(Phase::Optimiser, || {
                self.optimizing.step(&mut self.model, rate, self.config.max_gradient_norm)
            })?;
            self.progress.step += 1;
            self.progress.position = loaded.after;
            let shared = Shared::of(&events, loss, begin.elapsed().as_secs_f64(), interrupt);
            let all = shared.gather(&self.communicator)?;
            interrupted = all.iter().any(|one| one.interrupted != 0.0);
            if let Some(timeline) = &mut timeline {
                timeline.add(self.progress.step, &events);
            }
            if let Some(output) = output.as_deref_mut() {
                output.step(self.line(
                    &loaded,
                    &all,
                    &events,
                    rate,
                    norm,
                    sampler.steps_per_epoch(),
                ))?;
            }
            let loss: f64 = all.iter().map(|one| one.loss).sum();
            if !loss.is_finite() || !norm.is_finite() {
                writer.finish(saving::DEADLINE)?;
                return Ok(self.diverged(loss, norm));
            }
            if is_due(self.config.check_every, self.progress.step) {
                self.model.check_equal()?;
            }
            let is_last = self.progress.step == self.steps || interrupted;
            if is_due(self.config.validate_every, self.progress.step) && !is_last {
                self.validate(output.as_deref_mut())?;
            }
            if is_due(self.config.checkpoint_every, self.progress.step) && !is_last {
                self.save(&mut writer)?;
            }
        }
        // Also where no step was left to make.
        self.validate(output.as_deref_mut())?;
        self.save(&mut writer)?;
        writer.finish(saving::DEADLINE)?;
        if let Some(output) = output {
            let what = if interrupted { "interrupted" } else { "finished" };
            let event = format!("{what} after step {}", self.progress.step);
            output.event(EventLine { step: self.progress.step, what: event })?;
        }
        if let (Some(timeline), Some(path)) = (timeline, &self.timeline) {
            timeline.write(&self.communicator, path)?;
        }
        Ok(if interrupted { End::Interrupted } else { End::Finished })
    }

    /// Its parameters are not saved: those of an earlier checkpoint stay.
    fn diverged(&self, loss: f64, gradient_norm: f64) -> End {
        End::Diverged(format!(
            "the loss of step {} is {loss} and its gradient's norm {gradient_norm}: training has failed, and the step is \
             not saved; begin again, or go on from the last checkpoint (--resume auto), with a --learning-rate \
             below {} or a bound on gradients (--set max_gradient_norm=1)",
            self.progress.step, self.config.learning_rate
        ))
    }

    /// The next batch, where the model is.
    fn load(&self, loader: &mut Loader) -> Result<Option<Loaded>, Error> {
        let Some(mut loaded) = loader.next().transpose()? else { return Ok(None) };
        let batch = loaded.batch.map(|batch| batch.to_device(self.model.device())).transpose()?;
        loaded.batch = batch;
        Ok(Some(loaded))
    }

    /// Forward and backward passes of a step, and the exchange. Returns the part of the step's loss that this rank has.
    fn learn(&mut self, loaded: &Loaded, events: &mut StepEvents) -> Result<f64, Error> {
        let of_all = self.predictions(loaded) as f64;
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
                let loss = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                loss_part += share * loss;
            }
        }
        events.exchanged = events.run(Phase::Exchange, || self.model.finish())?;
        Ok(loss_part)
    }

    fn validate(&self, output: Option<&mut Output>) -> Result<(), Error> {
        let data = self.data.validation.as_ref();
        // A GPU's driver may load kernels, which it must not while gradients are under way.
        self.model.device().synchronize()?;
        self.model.average_buffers(&self.model.model().buffers())?;
        let line = validate(&self.model, data, self.config.batch, self.progress.step)?;
        output.map_or(Ok(()), |output| output.validation(line))
    }

    fn save(&self, writer: &mut Writer) -> Result<(), Error> {
        self.model.device().synchronize()?;
        self.model.average_buffers(&self.model.model().buffers())?;
        let snapshot =
            saving::snapshot(&self.config, self.progress, &self.model, &self.optimizing)?;
        writer.save(snapshot)?;
        Ok(())
    }

    fn line(
        &self,
        loaded: &Loaded,
        all: &[Shared],
        events: &StepEvents,
        learning_rate: f64,
        gradient_norm: f64,
        steps_per_epoch: usize,
    ) -> StepLine {
        let busy_ms: Vec<f64> = all.iter().map(|one| one.busy_ms).collect();
        let step_s = all.iter().map(|one| one.step_s).fold(0.0, f64::max);
        let slowest =
            (0..all.len()).max_by(|a, b| busy_ms[*a].total_cmp(&busy_ms[*b])).unwrap_or(0);
        let mut sorted = busy_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let samples = loaded.counts.iter().sum::<usize>() as u64;
        let predictions = self.predictions(loaded) as u64;
        let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
        StepLine {
            step: self.progress.step,
            epoch: self.progress.step as f64 / steps_per_epoch as f64,
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
        }
    }

    fn counts_tokens(&self) -> bool {
        matches!(self.data.train.facts().input, Input::Tokens { .. })
    }

    /// How many predictions a step has, on all ranks.
    fn predictions(&self, loaded: &Loaded) -> usize {
        let samples: usize = loaded.counts.iter().sum();
        match self.data.train.facts().input {
            Input::Image { .. } => samples,
            Input::Tokens { block } => samples * block,
        }
    }

    fn write_config(&self) -> Result<(), Error> {
        let path = self.out.join("config.toml");
        fs::write(&path, self.config.to_toml()?).map_err(refused(&path))
    }
}

/// How training has ended, the same on all ranks.
enum End {
    /// By its last step.
    Finished,
    /// By a signal.
    Interrupted,
    /// Numbers have left their range; says what to do.
    Diverged(String),
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

fn refused(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}
