//! Several ranks with a batch B against one with a batch of as many times B: the same parameters after 200 steps on the
//! digits, whatever the buckets, sharded or not. Prints how far they are apart and what is allowed; the
//! status says whether all is.
//!
//!     cargo run --release -p ringtree-trainer --example equality

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use ringtree::Communicator;
use ringtree_trainer::data::{self, Dataset, Loader, Position, Sampler};
use ringtree_trainer::models::{Activation, Mlp, MlpSettings};
use ringtree_trainer::optimiser::Optimiser;
use ringtree_trainer::{DataParallel, Error, ExchangeSettings, Model, Optimizing, Real};

const STEPS: usize = 200;

/// Samples of a step, on all ranks: each number of ranks divides it.
const SAMPLES: usize = 24;

/// From a bucket for each parameter to one for all.
const BUCKET_BYTES: [usize; 3] = [1, 40_000, 25 << 20];

fn main() -> Result<ExitCode, Error> {
    let sgd = Optimiser::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    let adamw = Optimiser::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
    println!(
        "{STEPS} steps of {SAMPLES} digits, ranks against one, relative to the largest parameter"
    );
    let kept = [
        compare::<f64>("f64 SGD", sgd, 0.05, 1e-10)?,
        compare::<f32>("f32 SGD", sgd, 0.05, 1e-5)?,
        compare::<f32>("f32 AdamW", adamw, 0.001, 1e-4)?,
    ];
    Ok(ExitCode::from(u8::from(!kept.iter().all(|kept| *kept))))
}

/// Compares all numbers of ranks and all buckets with one rank, and says whether they are near enough.
fn compare<T: Real>(
    name: &str,
    optimiser: Optimiser,
    rate: f64,
    bound: f64,
) -> Result<bool, Error> {
    let alone = train::<T>(1, optimiser, rate, ExchangeSettings::default())?;
    let mut is_kept = true;
    for ranks in [2, 3, 4] {
        for sharded in [false, true] {
            let mut worst = 0.0_f64;
            for bucket_bytes in BUCKET_BYTES {
                let first_bucket_bytes = bucket_bytes.min(1 << 20);
                let settings = ExchangeSettings {
                    bucket_bytes,
                    first_bucket_bytes,
                    sharded,
                    ..ExchangeSettings::default()
                };
                worst = worst.max(distance(&alone, &train::<T>(ranks, optimiser, rate, settings)?));
            }
            is_kept &= worst <= bound;
            let how = if sharded { "sharded" } else { "whole" };
            let verdict = if worst <= bound { "" } else { "  ABOVE THE BOUND" };
            println!(
                "{name:<10} {ranks} ranks, {how:<8} {worst:>9.2e}  bound {bound:.0e}{verdict}"
            );
        }
    }
    Ok(is_kept)
}

/// The parameters that ranks, as threads, have after all steps; the same on all of them, which each step makes sure of.
fn train<T: Real>(
    ranks: u32,
    optimiser: Optimiser,
    rate: f64,
    settings: ExchangeSettings,
) -> Result<Vec<f64>, Error> {
    let communicators = Communicator::in_process(ranks)?;
    thread::scope(|scope| {
        let settings = &settings;
        let start =
            |communicator| scope.spawn(move || rank::<T>(communicator, optimiser, rate, settings));
        let threads: Vec<_> = communicators.into_iter().map(start).collect();
        let ended: Result<Vec<_>, _> = threads.into_iter().map(|thread| thread.join()).collect();
        let ended = ended.map_err(|_| Error::Argument("a rank has panicked".into()))?;
        ended
            .into_iter()
            .reduce(|first, other| first.and_then(|first| other.map(|_| first)))
            .unwrap_or(Ok(vec![]))
    })
}

fn rank<T: Real>(
    communicator: Communicator,
    optimiser: Optimiser,
    rate: f64,
    settings: &ExchangeSettings,
) -> Result<Vec<f64>, Error> {
    let (rank, ranks) = (communicator.rank() as usize, communicator.ranks() as usize);
    // ReLU has a kink: where a last bit decides on which side of it a sample is, the runs part for good.
    let layers = MlpSettings { activation: Activation::Gelu, ..MlpSettings::default() };
    let build = |vb| Mlp::new(&layers, 64, 10, vb);
    let mut model: DataParallel<_, T> =
        DataParallel::new(&communicator, 1, settings.clone(), build)?;
    let mut optimizing = Optimizing::new(optimiser, false)?;
    let train = Arc::new(data::digits().train);
    let sampler = Sampler::new(train.len(), ranks, SAMPLES / ranks, 1)?;
    let loader = Loader::new(train, &sampler, rank, Position::default(), T::DTYPE)?;
    for loaded in loader.take(STEPS) {
        let loaded = loaded?;
        let all: usize = loaded.counts.iter().sum();
        if let Some(batch) = loaded.batch {
            let loss = model.model().loss(&batch)?;
            model.backward(&loss, batch.samples() as f64 / all as f64)?;
        }
        model.finish()?;
        optimizing.step(&mut model, rate, Some(1.0))?;
        model.check_equal()?;
    }
    let mut all = Vec::new();
    for one in model.parameters() {
        one.read(|values: &[T]| all.extend(values.iter().map(|value| value.to_f64())))?;
    }
    Ok(all)
}

/// The largest difference, relative to the largest parameter.
fn distance(left: &[f64], right: &[f64]) -> f64 {
    let largest = left.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    let apart = left.iter().zip(right).map(|(left, right)| (left - right).abs());
    apart.fold(0.0, f64::max) / largest
}
