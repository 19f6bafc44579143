//! What a run saves, and how another goes on from it.

use std::fs;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::Tensor;
use ringtree::Communicator;
use ringtree_trainer::checkpoint::{self, Checkpoint, Snapshot, State, Writer, WriterSettings};
use ringtree_trainer::data::Position;
use ringtree_trainer::{DataParallel, Error, Model, Optimizing, Real};
use serde_json::json;

use crate::config::Config;

/// How long rank 0 waits for the parts of the others, and a save for the one before.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Where a run's checkpoints are.
fn folder(out: &Path) -> PathBuf {
    out.join("checkpoints")
}

/// Makes a writer on each rank.
///
/// # Errors
/// [`Error::File`], or [`Error::Ringtree`]: what has ended the communicator.
pub fn writer(out: &Path, communicator: &Communicator, kept: usize) -> Result<Writer, Error> {
    // Two values of the standard library's hasher, which differ from one process to the next.
    use std::hash::{BuildHasher, RandomState};
    let mut run = [RandomState::new().hash_one(std::process::id())];
    communicator.broadcast(&mut run, 0)?;
    Writer::new(WriterSettings {
        folder: folder(out),
        rank: communicator.rank() as usize,
        ranks: communicator.ranks() as usize,
        run: run[0],
        keep: NonZeroUsize::new(kept).unwrap_or(NonZeroUsize::MIN),
        deadline: DEADLINE,
    })
}

/// Moves the checkpoints of an earlier run out of the way of a new one, so that nobody goes on from them by mistake, and
/// returns where they are then; `None` where there are none.
///
/// # Errors
/// [`Error::File`].
pub fn set_aside(out: &Path) -> Result<Option<PathBuf>, Error> {
    let old = folder(out);
    let refused = |source| Error::File { path: old.clone(), source };
    let is_empty = match fs::read_dir(&old) {
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        entries => entries.map_err(refused)?.next().is_none(),
    };
    if is_empty {
        return Ok(None);
    }
    let numbered = (1_u32..).map(|number| out.join(format!("checkpoints.{number}")));
    for path in numbered {
        if !path.try_exists().map_err(refused)? {
            fs::rename(&old, &path).map_err(refused)?;
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The last good checkpoint of a run, which rank 0 finds for all.
///
/// # Errors
/// [`Error::File`], [`Error::Checkpoint`], or [`Error::Ringtree`]: what has ended the communicator.
pub fn latest(out: &Path, communicator: &Communicator) -> Result<Option<Checkpoint>, Error> {
    let mut path = Vec::new();
    if communicator.rank() == 0 {
        let found = checkpoint::latest(&folder(out))?;
        found.unusable.iter().for_each(|error| eprintln!("ringtree-train: {error}"));
        if let Some(checkpoint) = found.checkpoint {
            path = checkpoint.path().as_os_str().as_encoded_bytes().to_vec();
        }
    }
    let mut len = [path.len() as u64];
    communicator.broadcast(&mut len, 0)?;
    path.resize(len[0] as usize, 0);
    communicator.broadcast(&mut path, 0)?;
    if path.is_empty() {
        return Ok(None);
    }
    Checkpoint::open(Path::new(&*String::from_utf8_lossy(&path))).map(Some)
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The step that was made last.
    pub step: u64,
    /// Where it left the data.
    pub position: Position,
    /// How many samples the data has, so that nobody goes on with other data.
    pub samples: usize,
}

/// A copy of what this rank saves.
///
/// # Errors
/// [`Error::Candle`]: something cannot be read.
pub fn snapshot<T: Real>(
    config: &Config,
    progress: Progress,
    model: &DataParallel<Box<dyn Model>, T>,
    optimizing: &Optimizing<T>,
) -> Result<Snapshot, Error> {
    let state = State {
        step: progress.step,
        epoch: progress.position.epoch,
        consumed_samples: progress.position.consumed as u64,
        seed: config.seed,
        bucket_order: model.bucket_order()?,
        user: json!({ "samples": progress.samples }),
    };
    let mut snapshot = Snapshot::new(state);
    if model.communicator().rank() == 0 {
        for one in model.parameters() {
            let dims = one.tensor.dims().to_vec();
            one.read(|values: &[T]| snapshot.add_parameter(&one.name, &dims, values))??;
        }
        for (name, buffer) in model.model().buffers() {
            let values: Vec<T> = buffer.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1()?;
            snapshot.add_parameter(&name, buffer.dims(), &values)?;
        }
    }
    let answers = model.communicator().rank() == 0 || config.exchange.sharded;
    if answers {
        optimizing.visit(model, |part, kind, values| {
            let name = &model.parameters()[part.piece].name;
            snapshot.add_piece(kind, name, part.elements.start, values);
        })?;
    }
    Ok(snapshot)
}

/// Goes on from a checkpoint.
///
/// # Errors
/// [`Error::Checkpoint`]: it is of another model or of other data.
pub fn restore<T: Real>(
    saved: &Checkpoint,
    samples: usize,
    model: &DataParallel<Box<dyn Model>, T>,
    optimizing: &mut Optimizing<T>,
) -> Result<Progress, Error> {
    let state = saved.state();
    if state.user["samples"] != json!(samples) {
        let what = format!(
            "was written with data of {} samples, and this data has {samples}: go on with the data that the \
             run began with",
            state.user["samples"]
        );
        return Err(Error::Checkpoint { path: saved.path().to_owned(), what });
    }
    for one in model.parameters() {
        one.write(|values: &mut [T]| saved.read(&one.name, values))?.map_err(of_another_model)?;
    }
    for (name, buffer) in model.model().buffers() {
        let mut values = vec![T::default(); buffer.elem_count()];
        saved.read(&name, &mut values).map_err(of_another_model)?;
        let values = Tensor::from_vec(values, buffer.dims(), buffer.device())?;
        buffer.set(&values.to_dtype(buffer.dtype())?)?;
    }
    model.check_equal()?;
    optimizing.restore(model, state.step, |part, kind, values| {
        let name = &model.parameters()[part.piece].name;
        saved.read_state(kind, name, part.elements.start, values)
    })?;
    let position = Position { epoch: state.epoch, consumed: state.consumed_samples as usize };
    Ok(Progress { step: state.step, position, samples })
}

/// What to do where a checkpoint does not have what the model asks for.
fn of_another_model(error: Error) -> Error {
    match error {
        Error::Checkpoint { path, what } => {
            let remedy = "go on with the model that the run began with, or give another --out";
            Error::Checkpoint { path, what: format!("{what}; {remedy}") }
        }
        other => other,
    }
}
