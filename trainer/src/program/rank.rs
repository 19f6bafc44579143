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
use ringtree_trainer::{Batch, DataParallel, Error, Optimizing, Real};

use crate::banner::Banner;
use crate::config::{Config, Decay, Number};
use crate::events::{Phase, StepEvents};
use crate::interrupt::Interrupt;
use crate::metrics::{self, EventLine, Line, Metrics, StepLine};
use crate::output::{Output, say};
use crate::recovery::{self, Elastic, GoingOn, Held};
use crate::saving::{self, Progress};
use crate::shared::Shared;
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
    let (ranks_at_start, joins) = (settings.ranks, settings.joins);
    let min_ranks = arguments.min_ranks.or((arguments.restart > 0).then_some(ranks_at_start));
    let elastic = min_ranks.map(|min_ranks| Elastic {
        min_ranks: min_ranks.clamp(1, ranks_at_start),
        interrupt: interrupt.clone(),
    });
    // A newcomer asks to be let in when it could begin: the others do not wait for it.
    let opened_before = if joins { Some(opened(&config)?) } else { None };
    let communicator = Communicator::with(settings)?;
    let ready = opened_before.map_or_else(|| opened(&config), Ok).and_then(|data| {
        let device = config.device.open(&communicator, local_rank)?;
        Ok((data, device))
    });
    let (data, device) = match joins {
        true => ready?,
        false => match together(&communicator, ready)? {
            Some(ready) => ready,
            // The one that could not says so; but a launcher that spares ranks shall not take this for a good end.
            None if elastic.is_some() => return Ok(ExitCode::FAILURE),
            None => return Ok(ExitCode::SUCCESS),
        },
    };
    let start = Start { config, arguments, ranks_at_start, elastic, launcher, data, device };
    match start.config.number {
        Number::F32 => start.run::<f32>(communicator, joins, &interrupt),
        Number::F64 => start.run::<f64>(communicator, joins, &interrupt),
    }
}

/// What a rank knows before it has a model.
struct Start<'a> {
    config: Config,
    arguments: &'a Arguments,
    ranks_at_start: u32,
    /// How the run goes on when ranks die, if it does.
    elastic: Option<Elastic>,
    launcher: Source,
    data: Data,
    device: Device,
}

impl Start<'_> {
    fn run<T: Real>(
        self,
        communicator: Communicator,
        joins: bool,
        interrupt: &Interrupt,
    ) -> Result<ExitCode, Error> {
        if joins {
            return Run::<T>::join(self, communicator)?.go_on(None, interrupt);
        }
        Run::<T>::new(self, communicator)?.go(interrupt)
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
    held: Held<T>,
    device: Device,
    /// How many ranks the run began with, which says how many samples a step has.
    ranks_at_start: u32,
    /// How it goes on when ranks die, if it does.
    elastic: Option<Elastic>,
    /// What its last step was.
    last: Option<StepLine>,
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
    fn new(start: Start<'_>, communicator: Communicator) -> Result<Run<T>, Error> {
        let out = start.config.out_folder();
        let saved = match start.arguments.resume {
            Resume::Auto => saving::latest(&out, &communicator)?,
            Resume::Never => None,
        };
        let order = saved.as_ref().map(|saved| saved.state().bucket_order.clone());
        let mut held = build(&start.config, &start.data, &start.device, &communicator, order)?;
        let samples = start.data.train.len();
        if let Some(saved) = &saved {
            held.progress = saving::restore(saved, samples, &held.model, &mut held.optimizing)?;
        }
        let resumed = saved.map(|saved| saved.path().to_owned());
        Run::with(start, communicator, held, None, resumed)
    }

    /// As a newcomer, which gets everything from the others.
    fn join(start: Start<'_>, mut communicator: Communicator) -> Result<Run<T>, Error> {
        let Start { config, data, device, elastic, .. } = &start;
        let Regained { held, last, .. } = loop {
            let enough = match elastic {
                Some(elastic) => elastic.await_enough(&mut communicator, &mut Vec::new()),
                None => Ok(()),
            };
            match enough.and_then(|()| regain(config, data, device, &communicator, None)) {
                Ok(regained) => break regained,
                Err(error) => {
                    communicator = survive(elastic.as_ref(), &communicator, error)?.communicator
                }
            }
        };
        Run::with(start, communicator, held, last, None)
    }

    fn with(
        start: Start<'_>,
        communicator: Communicator,
        held: Held<T>,
        last: Option<StepLine>,
        resumed: Option<PathBuf>,
    ) -> Result<Run<T>, Error> {
        let Start { config, arguments, ranks_at_start, elastic, launcher, data, device } = start;
        let per_epoch = sampler(&config, &data, ranks_at_start, 1)?.steps_per_epoch();
        Ok(Run {
            steps: config.steps(per_epoch),
            out: config.out_folder(),
            config,
            communicator,
            launcher,
            data,
            held,
            device,
            ranks_at_start,
            elastic,
            last,
            dry_run: arguments.dry_run,
            timeline: arguments.timeline.clone(),
            begins_anew: arguments.resume == Resume::Never,
            resumed,
        })
    }

    fn go(self, interrupt: &Interrupt) -> Result<ExitCode, Error> {
        let is_first = self.communicator.rank() == 0;
        let banner = self.banner()?;
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
        match together(&self.communicator, begun)? {
            Some(output) => self.go_on(output, interrupt),
            None => Ok(ExitCode::SUCCESS),
        }
    }

    /// Trains to the end, whoever dies or comes meanwhile.
    fn go_on(
        mut self,
        mut output: Option<Output>,
        interrupt: &Interrupt,
    ) -> Result<ExitCode, Error> {
        let mut change: Option<GoingOn> = None;
        let ended = loop {
            let done = match change.take() {
                Some(change) => self
                    .change(change, &mut output)
                    .and_then(|()| self.train(interrupt, output.as_mut())),
                None => self.train(interrupt, output.as_mut()),
            };
            let done = match (done, &self.elastic) {
                (Ok(End::Joined), Some(elastic)) => elastic.grow(&self.communicator).map(|grown| {
                    change = Some(grown);
                    None
                }),
                (done, _) => done.map(Some),
            };
            match done {
                Ok(Some(ended)) => break ended,
                Ok(None) => {}
                Err(error) => {
                    change = Some(survive(self.elastic.as_ref(), &self.communicator, error)?)
                }
            }
        };
        let is_first = self.communicator.rank() == 0;
        if let Some(banner) = output.map(Output::end) {
            let path = report::write(&self.out, &banner)?;
            say(&format!("report: {}", path.display()));
        }
        match ended {
            End::Finished | End::Joined => Ok(ExitCode::SUCCESS),
            End::Interrupted => Ok(ExitCode::from(130)),
            End::Diverged(why) if is_first => Err(Error::Argument(why)),
            // The first one says it; but a launcher that spares ranks shall not take this for a good end.
            End::Diverged(_) if self.elastic.is_some() => Ok(ExitCode::FAILURE),
            End::Diverged(_) => Ok(ExitCode::SUCCESS),
        }
    }

    /// Goes on with other ranks: all get the same state again, and rank 0 the run's output.
    fn change(&mut self, change: GoingOn, output: &mut Option<Output>) -> Result<(), Error> {
        let GoingOn { communicator, what } = change;
        self.communicator = communicator;
        // Where the optimiser's state is sharded, what a lost rank had is in a checkpoint alone.
        let is_whole = !self.config.exchange.sharded;
        let old = is_whole.then_some((&self.held, self.last.as_ref()));
        let Regained { held, last, is_from_disk } =
            regain(&self.config, &self.data, &self.device, &self.communicator, old)?;
        (self.held, self.last) = (held, last);
        if self.communicator.rank() > 0 {
            return Ok(());
        }
        let step = self.held.progress.step;
        let path = self.out.join("metrics.jsonl");
        let is_told = metrics::read(&path)?
            .iter()
            .any(|line| matches!(line, Line::Step(line) if line.step == step));
        let metrics = Metrics::open(path, Some(step))?;
        let output = match output {
            Some(output) => {
                output.go_on(metrics);
                output
            }
            None => {
                let counts_tokens = self.counts_tokens();
                output.insert(Output::taken_over(
                    self.banner()?,
                    metrics,
                    self.steps,
                    counts_tokens,
                ))
            }
        };
        if let Some(last) = self.last.clone().filter(|last| last.step == step && !is_told) {
            output.step(last)?;
        }
        let from = match (is_from_disk, step) {
            (false, _) => format!("after step {step}"),
            (true, 0) => {
                "from the beginning, since nobody has the whole state and no checkpoint was written"
                    .into()
            }
            (true, _) => {
                format!("from the checkpoint of step {step}, since nobody has the whole state")
            }
        };
        output.event(EventLine { step, what: format!("{what} {from}") })
    }

    fn banner(&self) -> Result<Banner, Error> {
        let Run { config, held, data, launcher, steps, out, .. } = self;
        Banner::new(config, &held.model, data, *launcher, *steps, out)
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
        let resumed = self.resumed.as_deref().map(|folder| (folder, self.held.progress.step));
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
        let ranks = self.communicator.ranks();
        let sampler = sampler(&self.config, &self.data, self.ranks_at_start, ranks)?;
        let rank = self.communicator.rank() as usize;
        let data: Arc<_> = self.data.train.clone();
        let mut loader = Loader::new(data, &sampler, rank, self.held.progress.position, T::DTYPE)?;
        let mut writer =
            saving::writer(&self.out, &self.communicator, self.config.checkpoints_kept)?;
        let mut timeline = match self.timeline {
            Some(_) => Some(Timeline::new(&self.communicator)?),
            None => None,
        };
        let mut interrupted = false;
        // What the step before took for what comes behind the ranks' talk.
        let mut optimiser_s = 0.0;
        while self.held.progress.step < self.steps && !interrupted {
            let begin = Instant::now();
            let mut events = StepEvents::default();
            let loaded = events.run(Phase::Data, || self.load(&mut loader))?;
            let Some(loaded) = loaded else { break };
            let loss = self.learn(&loaded, &mut events)?;
            // The step is made by all that hear this from all: before it no parameter changes.
            let step_s = begin.elapsed().as_secs_f64() + optimiser_s;
            let newcomers = self.elastic.is_some() && self.communicator.members_changed();
            let shared = Shared::of(&events, loss, step_s, interrupt, newcomers);
            let all = shared.gather(&self.communicator)?;
            interrupted = all.iter().any(|one| one.interrupted != 0.0);
            let rate = self.config.learning_rate
                * self.config.schedule.factor(self.held.progress.step + 1, self.steps);
            let norm = events.run(Phase::Optimiser, || {
                let most = self.config.max_gradient_norm;
                self.held.optimizing.step(&mut self.held.model, rate, most)
            })?;
            optimiser_s = events.time(Phase::Optimiser).as_secs_f64();
            self.held.progress.step += 1;
            self.held.progress.position = loaded.after;
            if let Some(timeline) = &mut timeline {
                timeline.add(self.held.progress.step, &events);
            }
            let line = self.line(&loaded, &all, &events, rate, norm, sampler.steps_per_epoch());
            if let Some(output) = output.as_deref_mut() {
                output.step(line.clone())?;
            }
            self.last = Some(line);
            let loss: f64 = all.iter().map(|one| one.loss).sum();
            if !loss.is_finite() || !norm.is_finite() {
                writer.finish(saving::DEADLINE)?;
                return Ok(self.diverged(loss, norm));
            }
            if is_due(self.config.check_every, self.held.progress.step) {
                self.held.model.check_equal()?;
            }
            let is_last = self.held.progress.step == self.steps || interrupted;
            if is_due(self.config.validate_every, self.held.progress.step) && !is_last {
                self.validate(output.as_deref_mut())?;
            }
            if is_due(self.config.checkpoint_every, self.held.progress.step) && !is_last {
                self.save(&mut writer)?;
            }
            if all.iter().any(|one| one.newcomers != 0.0) && !is_last {
                if self.config.exchange.sharded {
                    // It gets its share from there.
                    self.save(&mut writer)?;
                    writer.finish(saving::DEADLINE)?;
                }
                return Ok(End::Joined);
            }
        }
        // Also where no step was left to make.
        self.validate(output.as_deref_mut())?;
        self.save(&mut writer)?;
        writer.finish(saving::DEADLINE)?;
        // Nobody leaves while another may still need it.
        self.communicator.barrier()?;
        if let Some(output) = output {
            let what = if interrupted { "interrupted" } else { "finished" };
            let event = format!("{what} after step {}", self.held.progress.step);
            output.event(EventLine { step: self.held.progress.step, what: event })?;
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
            self.held.progress.step, self.config.learning_rate
        ))
    }

    /// The next batch, where the model is.
    fn load(&self, loader: &mut Loader) -> Result<Option<Loaded>, Error> {
        let Some(mut loaded) = loader.next().transpose()? else { return Ok(None) };
        let batch =
            loaded.batch.map(|batch| batch.to_device(self.held.model.device())).transpose()?;
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
                let loss = events.run(Phase::Forward, || self.held.model.model().loss(part))?;
                events.run(Phase::Backward, || match number + 1 == parts.len() {
                    true => self.held.model.backward(&loss, share),
                    false => self.held.model.accumulate(&loss, share),
                })?;
                let loss = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                loss_part += share * loss;
            }
        }
        events.exchanged = events.run(Phase::Exchange, || self.held.model.finish())?;
        Ok(loss_part)
    }

    fn validate(&self, output: Option<&mut Output>) -> Result<(), Error> {
        let data = self.data.validation.as_ref();
        // A GPU's driver may load kernels, which it must not while gradients are under way.
        self.held.model.device().synchronize()?;
        self.held.model.average_buffers(&self.held.model.model().buffers())?;
        let line = validate(&self.held.model, data, self.config.batch, self.held.progress.step)?;
        output.map_or(Ok(()), |output| output.validation(line))
    }

    fn save(&self, writer: &mut Writer) -> Result<(), Error> {
        self.held.model.device().synchronize()?;
        self.held.model.average_buffers(&self.held.model.model().buffers())?;
        let snapshot = saving::snapshot(
            &self.config,
            self.held.progress,
            &self.held.model,
            &self.held.optimizing,
        )?;
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
            step: self.held.progress.step,
            epoch: self.held.progress.step as f64 / steps_per_epoch as f64,
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
    /// Not yet: somebody wants to come in.
    Joined,
    /// Numbers have left their range; says what to do.
    Diverged(String),
}

/// Steps as those of `ranks_at_start` ranks, divided over `ranks`.
fn sampler(
    config: &Config,
    data: &Data,
    ranks_at_start: u32,
    ranks: u32,
) -> Result<Sampler, Error> {
    let steps = Sampler::new(data.train.len(), ranks_at_start as usize, config.batch, config.seed)?;
    steps.among(ranks as usize)
}

/// A model as a run begins with it, and its optimiser.
fn build<T: Real>(
    config: &Config,
    data: &Data,
    device: &Device,
    communicator: &Communicator,
    bucket_order: Option<Vec<usize>>,
) -> Result<Held<T>, Error> {
    let mut exchange = config.exchange.clone();
    exchange.order = bucket_order;
    let facts = data.train.facts();
    let build = |vb| models::build(&config.model, vb, &facts);
    let model = DataParallel::on_device(communicator, device, config.seed, exchange, build)?;
    let optimizing = Optimizing::new(config.optimiser, config.decay == Decay::Matrices)?;
    let progress = Progress { samples: data.train.len(), ..Progress::default() };
    Ok(Held { model, optimizing, progress })
}

/// The run's state at ranks that have not been together before, and what its last step was: that of the rank which has
/// come furthest, or where no rank has a whole one the last checkpoint's, or the beginning. All ranks call it; `old`
/// is what this one has.
fn regain<T: Real>(
    config: &Config,
    data: &Data,
    device: &Device,
    communicator: &Communicator,
    old: Option<(&Held<T>, Option<&StepLine>)>,
) -> Result<Regained<T>, Error> {
    let (old, last) = old.unzip();
    let Some(from) = recovery::furthest(communicator, old.map(|held| held.progress))? else {
        let saved = saving::latest(&config.out_folder(), communicator)?;
        let order = saved.as_ref().map(|saved| saved.state().bucket_order.clone());
        let mut held = build(config, data, device, communicator, order)?;
        if let Some(saved) = saved {
            let samples = held.progress.samples;
            held.progress = saving::restore(&saved, samples, &held.model, &mut held.optimizing)?;
        }
        return Ok(Regained { held, last: None, is_from_disk: true });
    };
    let order = recovery::bucket_order(communicator, old, from)?;
    let mut held = build(config, data, device, communicator, Some(order))?;
    recovery::take_over(&mut held, old, from)?;
    let told = last.flatten().and_then(|line| serde_json::to_vec(line).ok()).unwrap_or_default();
    let told = recovery::tell(communicator, told, from)?;
    let last = serde_json::from_slice(&told).ok();
    Ok(Regained { held, last, is_from_disk: false })
}

/// What ranks have after a change.
struct Regained<T: Real> {
    held: Held<T>,
    /// What the last step was, where somebody still knew.
    last: Option<StepLine>,
    /// It is a checkpoint's, or the beginning's.
    is_from_disk: bool,
}

/// Goes on without the ranks whose loss has ended a communicator, if the run is one that does.
fn survive(
    elastic: Option<&Elastic>,
    communicator: &Communicator,
    error: Error,
) -> Result<GoingOn, Error> {
    let survived = elastic.map(|elastic| elastic.survive(communicator, &error)).transpose()?;
    survived.flatten().ok_or(error)
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
