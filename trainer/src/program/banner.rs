//! What a run is, in a few lines at its start: said on the terminal, and again in the report.

use std::path::Path;

use ringtree::{Collective, Communicator, Source};
use ringtree_trainer::data::{Data, Input};
use ringtree_trainer::optimiser::{Optimiser, Schedule};
use ringtree_trainer::{DataParallel, Error, Model, Real};

use crate::config::{Config, Decay, Number};
use crate::device;
use crate::output::say;

/// Rows of what and how.
#[derive(Clone, Debug)]
pub struct Banner {
    /// The model and the data.
    pub title: String,
    /// Each thing by its name.
    pub rows: Vec<(&'static str, String)>,
}

/// How many buckets are told one by one.
const MOST_BUCKETS: usize = 12;

impl Banner {
    /// What rank 0 knows of a run.
    ///
    /// # Errors
    /// None, once the model is complete.
    pub fn new<T: Real>(
        config: &Config,
        model: &DataParallel<Box<dyn Model>, T>,
        data: &Data,
        launcher: Source,
        steps: u64,
        out: &Path,
    ) -> Result<Banner, Error> {
        let communicator = model.communicator();
        let ranks = communicator.ranks() as usize;
        let parameters: usize = model.parameters().iter().map(|one| one.len()).sum();
        let of_step = config.batch * ranks;
        let facts = data.train.facts();
        let tokens = match facts.input {
            Input::Tokens { block } => format!(", {} tokens", of_step * block),
            Input::Image { .. } => String::new(),
        };
        let micro = match config.micro_batches {
            1 => String::new(),
            count => format!(" in {count} micro-batches"),
        };
        let per_epoch = data.train.len().div_ceil(of_step);
        let rows = vec![
            ("ranks", format!("{}, started by {}", places(communicator), starter(launcher))),
            (
                "data",
                format!(
                    "{}: {} samples to learn from, {} to validate, {} classes",
                    config.data,
                    data.train.len(),
                    data.validation.len(),
                    facts.classes
                ),
            ),
            (
                "parameters",
                format!(
                    "{parameters} in {} tensors of {}, {}",
                    model.parameters().len(),
                    number(config.number),
                    bytes(parameters * size_of::<T>())
                ),
            ),
            ("device", device::describe(model.device())),
            ("step", format!("{of_step} samples ({} a rank{micro}){tokens}", config.batch)),
            ("steps", format!("{steps}, {per_epoch} an epoch")),
            ("optimiser", optimiser(config)),
            ("memory", memory::<T>(config, parameters, ranks)),
            ("exchange", exchange(config, model)?),
            ("seed", config.seed.to_string()),
            ("folder", out.display().to_string()),
        ];
        let title = format!("ringtree-train {}: {}", env!("CARGO_PKG_VERSION"), config.name());
        Ok(Banner { title, rows })
    }

    /// Prints it.
    pub fn print(&self) {
        say(&self.title);
        for (name, text) in &self.rows {
            // Further lines stand below the first.
            say(&format!("  {name:<11}{}", text.replace('\n', "\n             ")));
        }
    }
}

/// Who has started the ranks.
fn starter(launcher: Source) -> String {
    match launcher {
        Source::Ringtree => "this program or ringtree run".to_owned(),
        Source::Alone => "hand".to_owned(),
        other => other.to_string(),
    }
}

/// How many ranks there are, and where.
fn places(communicator: &Communicator) -> String {
    let shape = communicator.shape();
    let plural = |count: u32, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    let by = match (communicator.ranks(), shape.shared_memory, shape.rdma) {
        (1, ..) => "",
        (_, true, _) => ", over shared memory",
        (_, false, true) => ", over RDMA",
        (_, false, false) => ", over TCP",
    };
    format!("{} on {}{by}", plural(shape.ranks, "rank"), plural(shape.hosts, "host"))
}

fn number(number: Number) -> &'static str {
    match number {
        Number::F32 => "f32",
        Number::F64 => "f64",
    }
}

fn optimiser(config: &Config) -> String {
    let how = match config.optimiser {
        Optimiser::Sgd { momentum, nesterov, weight_decay } => {
            let kind = if nesterov { "Nesterov momentum" } else { "momentum" };
            format!("SGD, {kind} {momentum}, weight decay {weight_decay}")
        }
        Optimiser::AdamW { beta1, beta2, weight_decay, .. } => {
            format!("AdamW, betas {beta1} and {beta2}, weight decay {weight_decay}")
        }
    };
    let of = match config.decay {
        Decay::All => "",
        Decay::Matrices => " of matrices",
    };
    let clip =
        config.max_gradient_norm.map_or(String::new(), |most| format!(", clipped to {most}"));
    let rate = match config.schedule {
        Schedule::Constant { warm_up_steps } => format!("constant after {warm_up_steps} steps"),
        Schedule::Cosine { warm_up_steps, final_fraction } => {
            format!("cosine after {warm_up_steps} steps, to {final_fraction} of it")
        }
        Schedule::Linear { warm_up_steps, final_fraction } => {
            format!("falling after {warm_up_steps} steps, to {final_fraction} of it")
        }
    };
    format!("{how}{of}{clip}; learning rate {}, {rate}", config.learning_rate)
}

/// What each rank keeps, and what sharding spares.
fn memory<T>(config: &Config, parameters: usize, ranks: usize) -> String {
    let each = parameters * size_of::<T>();
    let whole = each * config.optimiser.state_kinds().len();
    let state = match config.exchange.sharded {
        true => format!(
            "{} of optimiser state instead of {} (sharded over {ranks})",
            bytes(whole.div_ceil(ranks)),
            bytes(whole)
        ),
        false => format!("{} of optimiser state", bytes(whole)),
    };
    format!("a rank: {} of parameters, {} of gradients, {state}", bytes(each), bytes(each))
}

/// The buckets, and by which algorithm each is exchanged.
fn exchange<T: Real>(
    config: &Config,
    model: &DataParallel<Box<dyn Model>, T>,
) -> Result<String, Error> {
    let communicator = model.communicator();
    let (data_type, element_bytes) = match config.exchange.in_bf16 {
        true => (ringtree::DataType::Bf16, 2),
        false => (T::DATA_TYPE, size_of::<T>()),
    };
    let buckets = model.bucket_bytes()?;
    let mut text = format!(
        "{} of {} in {}",
        plural(buckets.len()),
        data_type.name(),
        bytes(buckets.iter().sum())
    );
    if communicator.ranks() == 1 {
        return Ok(text);
    }
    let mut all_s = 0.0;
    for (number, bucket_bytes) in buckets.iter().enumerate() {
        let count = bucket_bytes / element_bytes;
        let (calls, predicted_s) = match config.exchange.sharded {
            false => choice(communicator, Collective::AllReduce, count, data_type),
            true => {
                let block = count.div_ceil(communicator.ranks() as usize);
                let scatter = choice(communicator, Collective::ReduceScatter, block, data_type);
                let gather = choice(communicator, Collective::AllGather, block, T::DATA_TYPE);
                (format!("{}, then {}", scatter.0, gather.0), scatter.1 + gather.1)
            }
        };
        all_s += predicted_s;
        if number < MOST_BUCKETS {
            let size = bytes(*bucket_bytes);
            text += &format!("\n{size}: {calls}, predicted {:.3} ms", predicted_s * 1e3);
        }
    }
    if buckets.len() > MOST_BUCKETS {
        text += &format!("\n... and {} more", buckets.len() - MOST_BUCKETS);
    }
    if buckets.len() > 1 {
        text += &format!("\npredicted {:.3} ms a step for all", all_s * 1e3);
    }
    Ok(text)
}

/// By which algorithm a call is carried out, and what that is expected to take, in seconds.
fn choice(
    communicator: &Communicator,
    collective: Collective,
    count: usize,
    data_type: ringtree::DataType,
) -> (String, f64) {
    let explanation = communicator.explain(collective, count, data_type);
    match explanation.candidates.first() {
        Some(best) => (
            format!("{} by {}", collective.name(), best.choice.algorithm.name()),
            best.expected_s(),
        ),
        None => (collective.name().to_owned(), 0.0),
    }
}

fn plural(buckets: usize) -> String {
    if buckets == 1 { "1 bucket".into() } else { format!("{buckets} buckets") }
}

/// A size as people write it.
pub fn bytes(bytes: usize) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64 / 1024.0;
    if size < 1.0 {
        return format!("{bytes} bytes");
    }
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", units[unit])
}
