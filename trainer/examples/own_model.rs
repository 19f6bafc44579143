//! A model of one's own, trained on several ranks: what it needs is `Model`, and here that is one function.
//!
//!     cargo build -p ringtree-trainer --examples
//!     ringtree run --ranks 2 target/debug/examples/own_model

use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear};
use ringtree::Communicator;
use ringtree_trainer::data::{self, Dataset, Loader, Position, Sampler};
use ringtree_trainer::optimiser::Optimiser;
use ringtree_trainer::{DataParallel, Error, ExchangeSettings, Model, Optimizing};

struct TwoLayers(Linear, Linear);

impl Model for TwoLayers {
    fn logits(&self, input: &Tensor) -> Result<Tensor> {
        self.1.forward(&self.0.forward(&input.flatten_from(1)?)?.relu()?)
    }
}

fn main() -> std::result::Result<(), Error> {
    let communicator = Communicator::from_env()?;
    let (rank, ranks) = (communicator.rank() as usize, communicator.ranks() as usize);
    let build = |vb: VarBuilder<'static>| -> Result<TwoLayers> {
        Ok(TwoLayers(linear(64, 100, vb.pp("first"))?, linear(100, 10, vb.pp("second"))?))
    };
    let settings = ExchangeSettings::default();
    let mut model: DataParallel<_, f32> = DataParallel::new(&communicator, 1, settings, build)?;
    let sgd = Optimiser::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.0 };
    let mut optimizing = Optimizing::new(sgd, false)?;

    let digits = data::digits();
    let sampler = Sampler::new(digits.train.len(), ranks, 32 / ranks, 1)?;
    let train = std::sync::Arc::new(digits.train);
    let loader = Loader::new(train, &sampler, rank, Position::default(), candle_core::DType::F32)?;
    for (step, loaded) in (1..=200).zip(loader) {
        let loaded = loaded?;
        let all: usize = loaded.counts.iter().sum();
        if let Some(batch) = loaded.batch {
            let loss = model.model().loss(&batch)?;
            model.backward(&loss, batch.samples() as f64 / all as f64)?;
        }
        model.finish()?;
        let norm = optimizing.step(&mut model, 0.05, None)?;
        if rank == 0 && step % 50 == 0 {
            println!("step {step}: length of the gradient {norm:.3}");
        }
    }
    let test = digits
        .validation
        .batch(&(0..digits.validation.len()).collect::<Vec<_>>(), candle_core::DType::F32)?;
    let right = model.model().logits(&test.input)?.argmax(1)?.eq(&test.target)?;
    let right = right.to_dtype(candle_core::DType::F32)?.mean_all()?.to_scalar::<f32>()?;
    if rank == 0 {
        println!("{:.1} % of {} digits right", 100.0 * right, test.samples());
    }
    Ok(())
}
