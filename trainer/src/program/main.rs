//! The program `ringtree-train`: trains a model on several ranks, which it starts itself or which a launcher has
//! started.

mod banner;
mod config;
mod device;
mod events;
mod interrupt;
mod metrics;
mod output;
mod plan;
mod rank;
mod recovery;
mod report;
mod saving;
mod shared;
mod timeline;
mod validation;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ringtree::Settings;
use ringtree_launcher::{Binding, LaunchOptions, Layout, launch};
use ringtree_trainer::Error;

use config::Config;

/// candle asks for memory for every result, and gives it back; this allocator keeps it at hand.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// With how many threads candle calculates.
const THREADS: &str = "RAYON_NUM_THREADS";

/// For how many milliseconds the allocator keeps memory that nobody uses: for ever, as a step's is asked for again in the next,
/// and given back meanwhile, all of it is filled with zeros by the kernel. It is read when a process starts.
const KEEPS_MEMORY_MS: &str = "MIMALLOC_PURGE_DELAY";

/// When the CUDA driver loads kernels of CUDA's libraries.
const LOADS_KERNELS: &str = "CUDA_MODULE_LOADING";

/// How long ranks may take to write a checkpoint and leave, after another has failed.
const GRACE: Duration = Duration::from_secs(30);

/// Trains a model on several ranks.
#[derive(Debug, Parser)]
#[command(name = "ringtree-train", version, about, long_about = LONG, after_long_help = MORE)]
pub struct Arguments {
    /// The model: mlp, cnn or gpt
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// What it learns from: digits, a text file, or a folder of texts or of images by class
    #[arg(long, value_name = "digits|FILE|FOLDER")]
    data: Option<String>,
    /// How many ranks are started on this host; as many as a launcher has started, under one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ranks: Option<u32>,
    /// A file of settings, as the one that each run leaves in its folder
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// One more setting, as in a file: `exchange.sharded=true`. May be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where it calculates: cpu, or cuda where the program is built for GPUs
    #[arg(long, value_name = "cpu|cuda")]
    device: Option<String>,
    /// Stop after so many steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Stop after so many passes over the data
    #[arg(long, value_name = "N", conflicts_with = "steps")]
    epochs: Option<u64>,
    /// Samples of a step on each rank
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// The highest learning rate
    #[arg(long, value_name = "X")]
    learning_rate: Option<f64>,
    /// What initial parameters and the order of the data are made from
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The folder of the run: settings, metrics, checkpoints, report
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Where to go on: from the run's last good checkpoint if there is one (auto), or from the beginning (never)
    #[arg(long, value_name = "auto|never", default_value = "never")]
    resume: Resume,
    /// Print ranks, buckets, memory and the time that the exchange will take, and leave
    #[arg(long)]
    dry_run: bool,
    /// Write what each rank did when, for https://ui.perfetto.dev
    #[arg(long, value_name = "FILE.json")]
    timeline: Option<PathBuf>,
    /// How often ranks that die are started again, all together
    #[arg(long, value_name = "N", default_value_t = 0)]
    restart: u32,
    /// With how few ranks the run goes on; with all if not said
    #[arg(long, value_name = "M")]
    min_ranks: Option<u32>,
    /// What each rank is bound to
    #[arg(long, value_enum, default_value_t = Binding::None)]
    bind: Binding,
}

const LONG: &str = "Trains a model on several ranks: each has the whole model and a part of each batch, and gradients are \
averaged while they are calculated. Starts its ranks itself, or takes part in a job that ringtree run, torchrun, \
mpirun or srun has started.";

const MORE: &str = "Examples:
  ringtree-train --model mlp --data digits --ranks 2
  ringtree-train --model gpt --data play.txt --ranks 2 --set checkpoint_every=100
  ringtree-train --model gpt --data play.txt --ranks 2 --resume auto
  torchrun --no-python --nproc-per-node 2 ringtree-train --model mlp --data digits

A run leaves all of its settings in the file config.toml of its folder: --set and --config take the same. What each of them \
is stands in docs/training.md.";

/// Whether a run goes on where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Resume {
    Auto,
    Never,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    share_processors(&arguments);
    set_default(KEEPS_MEMORY_MS, "-1");
    // While collectives are under way, the driver must load nothing.
    set_default(LOADS_KERNELS, "EAGER");
    let done = if Settings::in_env() { rank::run(&arguments) } else { start(&arguments) };
    done.unwrap_or_else(|error| {
        eprintln!("ringtree-train: {error}");
        let is_mistake = matches!(
            error,
            Error::Argument(_) | Error::Data { .. } | Error::Ringtree(ringtree::Error::Settings(_))
        );
        ExitCode::from(if is_mistake { 2 } else { 1 })
    })
}

/// Has candle calculate with this rank's share of the processors, which it reads from the environment alone.
fn share_processors(arguments: &Arguments) {
    if env::var_os(THREADS).is_some() {
        return;
    }
    // torchrun sets it, for the same purpose.
    let given = env::var("OMP_NUM_THREADS").ok().and_then(|text| text.parse().ok());
    let ranks = match Settings::from_env() {
        Ok(settings) if Settings::in_env() => settings.ranks as usize,
        _ => arguments.ranks.unwrap_or(1) as usize,
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads: usize = given.unwrap_or(processors / ranks.max(1));
    // SAFETY: the process has no other thread yet, that could read the environment meanwhile.
    unsafe { env::set_var(THREADS, threads.max(1).to_string()) };
}

/// Sets a variable for the ranks that this process starts, unless it is set.
fn set_default(variable: &str, value: &str) {
    if env::var_os(variable).is_none() {
        // SAFETY: as above.
        unsafe { env::set_var(variable, value) };
    }
}

/// Starts this program again, once for each rank.
fn start(arguments: &Arguments) -> Result<ExitCode, Error> {
    // A mistake is told once, and not by every rank.
    Settings::from_env()?;
    let config = Config::new(arguments)?;
    let refused = |error: ringtree_launcher::LaunchError| Error::Argument(error.to_string());
    let program = env::current_exe().map_err(|error| Error::Argument(error.to_string()))?;
    // All ranks, and those of a later start, use one folder.
    let out = config.out_folder();
    let mut with_folder: Vec<_> = env::args_os().skip(1).collect();
    if arguments.out.is_none() {
        with_folder.extend(["--out".into(), out.into()]);
    }
    let code = launch(&LaunchOptions {
        ranks: arguments.ranks.unwrap_or(1),
        layout: Layout::Nodes { nodes: 1, node_rank: 0 },
        rendezvous: None,
        job: None,
        binding: arguments.bind,
        program: program.into(),
        arguments: with_folder,
        raw_output_of_rank_0: true,
        grace: GRACE,
        restarts: arguments.restart,
        min_ranks: arguments.min_ranks,
    })
    .map_err(refused)?;
    Ok(ExitCode::from(code))
}
