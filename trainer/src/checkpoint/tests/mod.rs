//! Several ranks, as threads of this process, write and read checkpoints in a folder of the test.

mod damage;
mod processes;
mod saving;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::*;
use crate::optimiser::{Optimiser, OptimiserState, Step};

/// Long enough for the busiest machine.
const LONG: Duration = Duration::from_secs(600);

const RUN: u64 = 7;

/// Of several sizes, so that shares end within them, and one name that itself looks like a piece's.
const PARAMETERS: [(&str, &[usize]); 4] =
    [("fc1.weight", &[6, 7]), ("fc1.bias", &[6]), ("head/weight/4", &[5, 1]), ("scale", &[])];

fn settings(folder: &Path, rank: usize, ranks: usize) -> WriterSettings {
    let keep = NonZeroUsize::new(2).expect("not zero");
    WriterSettings { folder: folder.to_owned(), rank, ranks, run: RUN, keep, deadline: LONG }
}

fn writer(folder: &Path, rank: usize, ranks: usize) -> Writer {
    Writer::new(settings(folder, rank, ranks)).expect("a folder")
}

fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// What an element has at a step: another value for each array, element and step.
fn value(step: u64, array: &str, element: usize) -> f32 {
    let name: u64 = array.bytes().map(u64::from).sum();
    ((step * 1_000_003 + name * 1009 + element as u64 * 17) % 65_521) as f32 / 3.0
}

fn values(step: u64, array: &str, elements: Range<usize>) -> Vec<f32> {
    elements.map(|element| value(step, array, element)).collect()
}

/// The elements of each parameter that a rank owns, if all elements in a row are divided among the ranks.
fn shares(rank: usize, ranks: usize) -> Vec<(&'static str, Range<usize>)> {
    let all: usize = PARAMETERS.iter().map(|(_, shape)| elements(shape)).sum();
    let (begin, end) = (all * rank / ranks, all * (rank + 1) / ranks);
    let mut first = 0;
    let mut shares = Vec::new();
    for (name, shape) in PARAMETERS {
        let within = |place: usize| place.clamp(first, first + elements(shape)) - first;
        let share = within(begin)..within(end);
        first += elements(shape);
        if !share.is_empty() {
            shares.push((name, share));
        }
    }
    shares
}

fn state(step: u64) -> State {
    let user = serde_json::json!({ "losses": [0.1, 1.0 / 3.0, 5e-324], "model": "mlp" });
    let bucket_order = vec![3, 2, 1, 0];
    State { step, epoch: 2, consumed_samples: 96, seed: u64::MAX, bucket_order, user }
}

fn snapshot(step: u64, rank: usize, ranks: usize) -> Snapshot {
    let mut snapshot = Snapshot::new(state(step));
    if rank == 0 {
        for (name, shape) in PARAMETERS {
            let values = values(step, name, 0..elements(shape));
            snapshot.add_parameter(name, shape, &values).expect("the shape's elements");
        }
        snapshot.add_parameter("running_mean", &[2], &[0.5_f64, 0.1]).expect("two elements");
    }
    for kind in [StateKind::FirstMoment, StateKind::SecondMoment] {
        for (name, share) in shares(rank, ranks) {
            let values = values(step, &format!("{kind} {name}"), share.clone());
            snapshot.add_piece(kind, name, share.start, &values);
        }
    }
    snapshot
}

/// So many ranks save these steps; returns rank 0's last checkpoint.
fn save(folder: &Path, ranks: usize, steps: &[u64]) -> PathBuf {
    let run = |rank| {
        let mut writer = writer(folder, rank, ranks);
        for &step in steps {
            writer.save(snapshot(step, rank, ranks)).expect("the save before");
        }
        writer.finish(LONG).expect("the last save")
    };
    let saved: Vec<Option<PathBuf>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    });
    assert!(saved[1..].iter().all(Option::is_none), "only rank 0 knows of the whole: {saved:?}");
    saved[0].clone().expect("rank 0's checkpoint")
}

/// Reads all of a checkpoint as so many ranks would.
fn assert_holds(checkpoint: &Checkpoint, step: u64, ranks: usize) {
    assert_eq!(checkpoint.state(), &state(step));
    for (name, shape) in PARAMETERS {
        assert_eq!(checkpoint.shape(name), Some(shape));
        let mut found = vec![0.0; elements(shape)];
        checkpoint.read(name, &mut found).expect("a parameter");
        assert_eq!(found, values(step, name, 0..elements(shape)), "{name}");
    }
    let mut mean = [0.0_f64; 2];
    checkpoint.read("running_mean", &mut mean).expect("a buffer");
    assert_eq!(mean, [0.5, 0.1]);
    for rank in 0..ranks {
        for (name, share) in shares(rank, ranks) {
            for kind in [StateKind::FirstMoment, StateKind::SecondMoment] {
                let mut found = vec![0.0; share.len()];
                checkpoint.read_state(kind, name, share.start, &mut found).expect("a share");
                assert_eq!(found, values(step, &format!("{kind} {name}"), share.clone()), "{name}");
            }
        }
    }
}

/// The latest checkpoint, and why others were passed over.
fn found(folder: &Path) -> (Option<Checkpoint>, Vec<String>) {
    let found = latest(folder).expect("a readable folder");
    (found.checkpoint, found.unusable.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn assert_latest(folder: &Path, step: u64) -> Vec<String> {
    let (checkpoint, unusable) = found(folder);
    let checkpoint = checkpoint.unwrap_or_else(|| panic!("a whole checkpoint: {unusable:?}"));
    assert_eq!(checkpoint.state().step, step, "{unusable:?}");
    assert_holds(&checkpoint, step, 1);
    unusable
}

/// The names in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.expect("an entry").file_name().into_string().expect("text")
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

#[test]
fn any_number_of_ranks_reads_what_three_wrote() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = save(folder.path(), 3, &[100]);
    let files = [
        "optimiser-0-of-3.safetensors",
        "optimiser-1-of-3.safetensors",
        "optimiser-2-of-3.safetensors",
        "parameters.safetensors",
        "state.json",
    ];
    assert_eq!(names(&path), files);
    let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
    checkpoint.verify().expect("right checksums");
    assert_eq!(checkpoint.ranks(), 3);
    for ranks in [1, 2, 3, 5, 60] {
        assert_holds(&checkpoint, 100, ranks);
    }
}

/// Three ranks own the optimiser's state, save and stop; two go on.
#[test]
fn a_resumed_training_has_the_bits_of_an_undisturbed_one() {
    const ELEMENTS: usize = 50;
    let adamw = Optimiser::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
    let share = |rank, ranks| ELEMENTS * rank / ranks..ELEMENTS * (rank + 1) / ranks;
    let step = |number, state: &mut OptimiserState<f32>, own: Range<usize>, all: &mut [f32]| {
        let at = Step { number, learning_rate: 0.01, gradient_scale: 1.0 };
        let gradients = values(number, "gradient", own.clone());
        state.update(at, true, 0..own.len(), &mut all[own], &gradients);
    };
    let mut undisturbed = values(0, "w", 0..ELEMENTS);
    let mut whole_state = OptimiserState::new(adamw, ELEMENTS);
    for number in 1..=6 {
        step(number, &mut whole_state, 0..ELEMENTS, &mut undisturbed);
    }

    let folder = tempfile::tempdir().expect("a folder");
    let mut parameter = values(0, "w", 0..ELEMENTS);
    let mut snapshots = Vec::new();
    for rank in 0..3 {
        let own = share(rank, 3);
        let mut optimiser = OptimiserState::new(adamw, own.len());
        for number in 1..=3 {
            step(number, &mut optimiser, own.clone(), &mut parameter);
        }
        let mut snapshot = Snapshot::new(state(3));
        for kind in adamw.state_kinds() {
            let array = optimiser.array(*kind).expect("an array of the kind");
            snapshot.add_piece(*kind, "w", own.start, array);
        }
        snapshots.push(snapshot);
    }
    snapshots[0].add_parameter("w", &[ELEMENTS], &parameter).expect("all elements");
    let mut writers = [0, 1, 2].map(|rank| writer(folder.path(), rank, 3));
    for (writer, snapshot) in writers.iter_mut().zip(snapshots) {
        writer.save(snapshot).expect("nothing before");
    }
    writers[0].finish(LONG).expect("a checkpoint");

    let (checkpoint, _) = found(folder.path());
    let checkpoint = checkpoint.expect("a checkpoint");
    let mut resumed = vec![0.0; ELEMENTS];
    checkpoint.read("w", &mut resumed).expect("the parameter");
    for rank in 0..2 {
        let own = share(rank, 2);
        let mut optimiser = OptimiserState::new(adamw, own.len());
        for kind in adamw.state_kinds() {
            let array = optimiser.array_mut(*kind).expect("an array of the kind");
            checkpoint.read_state(*kind, "w", own.start, array).expect("its share");
        }
        for number in 4..=6 {
            step(number, &mut optimiser, own.clone(), &mut resumed);
        }
    }
    assert_eq!(resumed, undisturbed);
}

#[test]
fn what_is_not_there_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = Checkpoint::open(&save(folder.path(), 2, &[100])).expect("a checkpoint");
    let mut six = [0.0_f32; 6];
    let error = |result: Result<()>| result.expect_err("not there").to_string();
    assert!(error(checkpoint.read("fc9.bias", &mut six)).contains("no fc9.bias"));
    assert!(error(checkpoint.read("fc1.bias", &mut [0.0_f32; 5])).contains("6 elements"));
    assert!(error(checkpoint.read("fc1.bias", &mut [0.0_f64; 6])).contains("as F32"));
    let moment = StateKind::FirstMoment;
    assert!(error(checkpoint.read_state(moment, "fc1.bias", 1, &mut six)).contains("fc1.bias"));
    assert!(error(checkpoint.read_state(moment, "fc1.bias", 60, &mut six)).contains("fc1.bias"));
    let error = error(checkpoint.read_state(StateKind::Momentum, "fc1.bias", 0, &mut six));
    assert!(error.contains("no momentum of fc1.bias"), "{error}");
    assert!(!checkpoint.has_state(StateKind::Momentum, "fc1.bias"));
    assert!(checkpoint.has_state(moment, "fc1.bias"));
}

#[test]
fn no_folder_has_no_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let (checkpoint, unusable) = found(&folder.path().join("checkpoints"));
    assert!(checkpoint.is_none() && unusable.is_empty());
}

#[test]
fn a_shape_that_its_elements_do_not_have_is_refused() {
    for shape in [[2, 2], [usize::MAX, 3]] {
        let error = Array::new("w", &shape, &[0.0_f32; 3]).expect_err("not the shape").to_string();
        assert!(error.contains("w has 3 elements"), "{error}");
    }
}
