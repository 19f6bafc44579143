//! What a run is: defaults, then a file, then what the command line says.

use std::fs;
use std::path::PathBuf;

use ringtree_trainer::data::{self, Data, DataSettings};
use ringtree_trainer::models::ModelSettings;
use ringtree_trainer::optimiser::{Optimiser, Schedule};
use ringtree_trainer::{Error, ExchangeSettings};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::Arguments;
use crate::device::Place;

/// All settings of a run. As a file it is TOML; what is left out has its default, which depends on the model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `digits`, a text file, or a folder.
    pub data: String,
    /// What initial parameters and the order of the data are made from.
    pub seed: u64,
    /// What parameters and gradients are: f32 or f64.
    pub number: Number,
    /// Where it calculates: cpu or cuda.
    pub device: Place,
    /// Samples of a step on each rank.
    pub batch: usize,
    /// Into how many parts a rank's batch is divided, which follow one another before gradients are exchanged once.
    pub micro_batches: usize,
    /// Steps, unless `epochs` says when to stop.
    pub steps: Option<u64>,
    /// Passes over the data.
    pub epochs: Option<u64>,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Gradients are scaled down to this norm if theirs is larger.
    pub max_gradient_norm: Option<f64>,
    /// Which parameters weight decay is for.
    pub decay: Decay,
    /// Steps between two looks at the validation data; 0: at the end only.
    pub validate_every: u64,
    /// Steps between two checkpoints; 0: at the end only.
    pub checkpoint_every: u64,
    /// How many checkpoints are kept.
    pub checkpoints_kept: usize,
    /// Steps between two comparisons of all ranks' parameters, to the bit; 0: none.
    pub check_every: u64,
    /// How the data is read.
    pub data_settings: DataSettings,
    /// The model.
    pub model: ModelSettings,
    /// The optimiser.
    pub optimiser: Optimiser,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// How gradients are exchanged.
    pub exchange: ExchangeSettings,
    /// The folder of the run. Not part of a file: another run from the same file has another folder.
    #[serde(skip)]
    pub out: Option<PathBuf>,
}

/// What parameters and gradients are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Number {
    F32,
    F64,
}

/// Which parameters weight decay is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// All, as PyTorch's optimisers have it.
    All,
    /// Those of at least two dimensions: no biases and norms, as nanoGPT has it.
    Matrices,
}

impl Config {
    /// Reads and joins all that says how to run.
    ///
    /// # Errors
    /// [`Error::Argument`] names the setting that is unknown or cannot be.
    pub fn new(arguments: &Arguments) -> Result<Config, Error> {
        let mut given = Table::new();
        if let Some(path) = &arguments.config {
            let text = fs::read_to_string(path);
            let refused = |error: &dyn std::fmt::Display| {
                Error::Argument(format!("the settings in {}: {error}", path.display()))
            };
            given =
                text.map_err(|error| refused(&error))?.parse().map_err(|error| refused(&error))?;
        }
        for (key, value) in flags(arguments) {
            set(&mut given, key, value)?;
        }
        for setting in &arguments.set {
            let Some((key, value)) = setting.split_once('=') else {
                return Err(Error::Argument(format!("--set {setting}: give KEY=VALUE")));
            };
            set(&mut given, key.trim(), parse(value.trim()))?;
        }
        let mut all = defaults(kind(&given)?)?;
        merge(&mut all, given)?;
        let mut config: Config = all.try_into().map_err(|error: toml::de::Error| {
            Error::Argument(format!("the settings: {}", error.message()))
        })?;
        config.out = arguments.out.clone();
        config.checked()
    }

    fn checked(self) -> Result<Config, Error> {
        let at_least_one = |name: &str, value: usize| match value {
            0 => Err(Error::Argument(format!("{name} is 0; it must be at least 1"))),
            _ => Ok(()),
        };
        at_least_one("batch", self.batch)?;
        at_least_one("micro_batches", self.micro_batches)?;
        at_least_one("checkpoints_kept", self.checkpoints_kept)?;
        if self.micro_batches > self.batch {
            return Err(Error::Argument(format!(
                "a batch of {} cannot be divided into {} micro-batches",
                self.batch, self.micro_batches
            )));
        }
        if !self.learning_rate.is_finite() || self.learning_rate < 0.0 {
            return Err(Error::Argument(format!(
                "learning_rate is {}; it must be a number that is at least 0",
                self.learning_rate
            )));
        }
        if self.max_gradient_norm.is_some_and(|norm| norm.is_nan() || norm <= 0.0) {
            return Err(Error::Argument("max_gradient_norm must be above 0".into()));
        }
        self.optimiser.check()?;
        self.schedule.check()?;
        self.device.check(&self)?;
        Ok(self)
    }

    /// Opens the data, and finds out what is wrong with it before anything starts.
    ///
    /// # Errors
    /// [`Error::Data`] or [`Error::File`].
    pub fn open_data(&self) -> Result<Data, Error> {
        data::open(&self.data, &self.data_settings)
    }

    /// The folder of the run.
    pub fn out_folder(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(self.name()))
    }

    /// The model and the data in a word.
    pub fn name(&self) -> String {
        let data = PathBuf::from(&self.data);
        let data = data.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        format!("{}-{data}", kind_of(&self.model).name())
    }

    /// How many steps the run has, of so many an epoch.
    pub fn steps(&self, steps_per_epoch: usize) -> u64 {
        match (self.steps, self.epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => epochs.unwrap_or(1) * steps_per_epoch as u64,
        }
    }

    /// As a file.
    ///
    /// # Errors
    /// [`Error::Argument`]: a value has no form in TOML.
    pub fn to_toml(&self) -> Result<String, Error> {
        toml::to_string_pretty(self)
            .map_err(|error| Error::Argument(format!("the settings: {error}")))
    }
}

/// The settings that have flags of their own.
fn flags(arguments: &Arguments) -> Vec<(&'static str, Value)> {
    let integer = |number: u64| Value::Integer(i64::try_from(number).unwrap_or(i64::MAX));
    [
        ("model.kind", arguments.model.clone().map(Value::String)),
        ("data", arguments.data.clone().map(Value::String)),
        ("device", arguments.device.clone().map(Value::String)),
        ("steps", arguments.steps.map(integer)),
        ("epochs", arguments.epochs.map(integer)),
        ("batch", arguments.batch.map(|batch| integer(batch as u64))),
        ("learning_rate", arguments.learning_rate.map(Value::Float)),
        ("seed", arguments.seed.map(integer)),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .collect()
}

/// A value as TOML writes it, or a word.
fn parse(text: &str) -> Value {
    let document: Result<Table, _> = format!("value = {text}").parse();
    let value = document.ok().and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Sets `a.b.c` in a table of tables.
fn set(table: &mut Table, key: &str, value: Value) -> Result<(), Error> {
    let mut at = table;
    let (path, last) = key.rsplit_once('.').map_or((None, key), |(path, last)| (Some(path), last));
    for name in path.into_iter().flat_map(|path| path.split('.')) {
        let entry = at.entry(name).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = entry else {
            return Err(Error::Argument(format!("{key}: {name} has no settings in it")));
        };
        at = inner;
    }
    // One of the two ends a run.
    match last {
        "steps" => at.remove("epochs"),
        "epochs" => at.remove("steps"),
        _ => None,
    };
    at.insert(last.to_owned(), value);
    Ok(())
}

/// What `over` says instead, and `below` where it says nothing. A table that is of another kind replaces the other.
fn merge(below: &mut Table, over: Table) -> Result<(), Error> {
    if over.contains_key("steps") || over.contains_key("epochs") {
        below.remove("steps");
        below.remove("epochs");
    }
    for (key, value) in over {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => {
                if value.get("kind").is_some_and(|kind| inner.get("kind") != Some(kind)) {
                    *inner = Table::new();
                }
                merge(inner, value)?;
            }
            (Some(_), Value::Table(_)) => {
                return Err(Error::Argument(format!("the settings: {key} has no settings in it")));
            }
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
    Ok(())
}

/// The models that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mlp,
    Cnn,
    Gpt,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Mlp, Kind::Cnn, Kind::Gpt];

    fn name(self) -> &'static str {
        match self {
            Kind::Mlp => "mlp",
            Kind::Cnn => "cnn",
            Kind::Gpt => "gpt",
        }
    }

    /// What trains well on two processors in a minute or a few.
    fn defaults(self) -> &'static str {
        match self {
            Kind::Mlp => include_str!("defaults/mlp.toml"),
            Kind::Cnn => include_str!("defaults/cnn.toml"),
            Kind::Gpt => include_str!("defaults/gpt.toml"),
        }
    }
}

fn kind_of(model: &ModelSettings) -> Kind {
    match model {
        ModelSettings::Mlp(_) => Kind::Mlp,
        ModelSettings::Cnn(_) => Kind::Cnn,
        ModelSettings::Gpt(_) => Kind::Gpt,
    }
}

/// Which model is asked for: the MLP unless something else is.
fn kind(given: &Table) -> Result<Kind, Error> {
    let Some(kind) = given.get("model").and_then(|model| model.get("kind")) else {
        return Ok(Kind::Mlp);
    };
    let named = Kind::ALL.into_iter().find(|one| kind.as_str() == Some(one.name()));
    named.ok_or_else(|| Error::Argument(format!("there is no model {kind}: give mlp, cnn or gpt")))
}

/// The defaults of a model.
fn defaults(kind: Kind) -> Result<Table, Error> {
    let mut defaults = table(include_str!("defaults/all.toml"));
    merge(&mut defaults, table(kind.defaults()))?;
    Ok(defaults)
}

fn table(text: &str) -> Table {
    text.parse().expect("a test reads all of them")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn config(arguments: &[&str]) -> Result<Config, Error> {
        let all = std::iter::once("ringtree-train").chain(arguments.iter().copied());
        Config::new(&Arguments::try_parse_from(all).unwrap())
    }

    #[test]
    fn every_model_has_defaults_which_its_file_repeats() {
        for kind in Kind::ALL {
            let config = config(&["--model", kind.name()]).unwrap();
            assert_eq!(kind_of(&config.model), kind);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("run.toml");
            fs::write(&path, config.to_toml().unwrap()).unwrap();
            let again = self::config(&["--config", path.to_str().unwrap()]).unwrap();
            assert_eq!(again.to_toml().unwrap(), config.to_toml().unwrap());
        }
    }

    #[test]
    fn what_is_nearer_counts_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        let text = "batch = 3\nepochs = 2\nseed = 9\n[optimiser]\nkind = \"sgd\"\nmomentum = 0.5\n";
        fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        let config = config(&[
            "--config",
            path,
            "--batch",
            "5",
            "--steps",
            "7",
            "--set",
            "optimiser.momentum=0.9",
            "--set",
            "exchange.sharded=true",
            "--set",
            "data=a folder",
        ])
        .unwrap();
        assert_eq!((config.batch, config.seed, config.data.as_str()), (5, 9, "a folder"));
        assert_eq!((config.steps, config.epochs), (Some(7), None), "one of the two ends a run");
        let momentum = Optimiser::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        assert_eq!((config.optimiser, config.exchange.sharded), (momentum, true));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (arguments, named) in [
            (&["--model", "lstm"][..], "there is no model \"lstm\": give mlp, cnn or gpt"),
            (&["--set", "bach=3"], "unknown field `bach`"),
            (&["--set", "batch"], "--set batch: give KEY=VALUE"),
            (&["--set", "batch.size=3"], "batch has no settings in it"),
            (&["--batch", "0"], "batch is 0; it must be at least 1"),
            (
                &["--set", "micro_batches=17"],
                "a batch of 16 cannot be divided into 17 micro-batches",
            ),
            (
                &["--learning-rate=-1"],
                "learning_rate is -1; it must be a number that is at least 0",
            ),
            (&["--set", "max_gradient_norm=0"], "max_gradient_norm must be above 0"),
            (&["--set", "optimiser.beta1=1"], "beta1 is 1"),
            (&["--device", "tpu"], "unknown variant `tpu`, expected `cpu` or `cuda`"),
            #[cfg(not(feature = "cuda"))]
            (
                &["--device", "cuda"],
                "build it by cargo build --release -p ringtree-trainer --bins --features cuda",
            ),
            #[cfg(feature = "cuda")]
            (&["--device", "cuda", "--set", "exchange.in_bf16=true"], "leave exchange.in_bf16"),
            (&["--config", "/nonexistent.toml"], "the settings in /nonexistent.toml: No such file"),
        ] {
            let error = config(arguments).unwrap_err().to_string();
            assert!(error.contains(named), "{arguments:?}: {error}");
        }
    }
}
