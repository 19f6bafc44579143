//! What a run tells of each step: lines of JSON in its folder, one a step.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use ringtree_trainer::Error;
use serde::{Deserialize, Serialize};

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// A step of training.
    Step(StepLine),
    /// A look at the validation data.
    Validation(ValidationLine),
    /// Something that happened to the run.
    Event(EventLine),
}

/// What one step of all ranks was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepLine {
    /// Which, from 1.
    pub step: u64,
    /// Passes over the data, with the part of the current one.
    pub epoch: f64,
    /// The mean over the step's predictions, on all ranks.
    pub loss: f64,
    /// Of all gradients, before clipping.
    pub gradient_norm: f64,
    /// By which the step was made.
    pub learning_rate: f64,
    /// Of the whole step.
    pub samples: u64,
    /// Predictions of the whole step: tokens of a text.
    pub predictions: u64,
    /// How long the slowest rank took for the step.
    pub step_ms: f64,
    /// Samples a second, of all ranks.
    pub samples_per_s: f64,
    /// Predictions a second, of all ranks.
    pub predictions_per_s: f64,
    /// How long buckets were under way, on rank 0.
    pub exchange_ms: f64,
    /// How long rank 0 waited for them: what was not hidden behind its own work.
    pub exposed_ms: f64,
    /// How long each rank was busy with data, forward and backward pass.
    pub busy_ms: Vec<f64>,
    /// The rank that was busy longest.
    pub slowest_rank: u32,
    /// By how much it was behind the median.
    pub behind_ms: f64,
    /// Rank 0's time by phase: data, forward, backward, waiting for the exchange, optimiser.
    pub phases_ms: Vec<f64>,
}

/// What the model makes of data that it does not learn from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ValidationLine {
    /// After which step.
    pub step: u64,
    /// The mean loss over all predictions.
    pub loss: f64,
    /// The share of right predictions.
    pub accuracy: f64,
    /// How many predictions.
    pub predictions: u64,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventLine {
    /// After which step.
    pub step: u64,
    /// What.
    pub what: String,
}

/// The file of a run.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Begins a file, or goes on in one after a step: lines of later steps, which are made again, are dropped.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn open(path: PathBuf, after_step: Option<u64>) -> Result<Metrics, Error> {
        let kept = match after_step {
            Some(step) => read(&path)?.into_iter().filter(|line| line.step() <= step).collect(),
            None => Vec::new(),
        };
        let refused = |source| Error::File { path: path.clone(), source };
        // Beside it first: whoever is killed here leaves the old one, and whoever still has that open writes there.
        let new = path.with_extension("jsonl.new");
        let _ = fs::remove_file(&new);
        let file = OpenOptions::new().append(true).create_new(true).open(&new);
        let mut metrics = Metrics { file: file.map_err(refused)?, path: path.clone() };
        kept.iter().try_for_each(|line| metrics.add(line))?;
        fs::rename(&new, &path).map_err(refused)?;
        Ok(metrics)
    }

    /// Adds a line, which others can read at once.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn add(&mut self, line: &Line) -> Result<(), Error> {
        let mut text = serde_json::to_string(line)
            .map_err(|error| Error::Argument(format!("metrics: {error}")))?;
        text.push('\n');
        let refused = |source| Error::File { path: self.path.clone(), source };
        self.file.write_all(text.as_bytes()).map_err(refused)
    }
}

/// The lines of a file; what is cut off at its end is left out.
///
/// # Errors
/// [`Error::File`].
pub fn read(path: &Path) -> Result<Vec<Line>, Error> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.map_err(|source| Error::File { path: path.to_owned(), source })?,
    };
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    Ok(lines.filter_map(|line| serde_json::from_str(&line).ok()).collect())
}

impl Line {
    /// The step that it belongs to.
    pub fn step(&self) -> u64 {
        match self {
            Line::Step(line) => line.step,
            Line::Validation(line) => line.step,
            Line::Event(line) => line.step,
        }
    }
}
