//! How long a training step takes on each rank, with the exchange of gradients and without:
//! `scaling gpt|mlp SAMPLES_A_RANK STEPS`, under a launcher. Each rank prints one JSON object.
//! `benches/trainer/ddp.py` runs it beside the same steps in PyTorch.

use std::time::Instant;

use candle_core::{Device, Tensor};
use ringtree::Communicator;
use ringtree_trainer::data::{Facts, Input};
use ringtree_trainer::models::{self, Activation, GptSettings, MlpSettings, ModelSettings};
use ringtree_trainer::optimiser::Optimiser;
use ringtree_trainer::{Batch, DataParallel, Error, ExchangeSettings, Model, Optimizing, Result};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CHARACTERS: usize = 65;
const BLOCK: usize = 64;
const DIGITS: usize = 10;
const PIXELS_A_SIDE: usize = 28;
const HIDDEN: [usize; 8] = [1024; 8];

/// Steps of one kind in a row, the first of which finds the other kind's data in the caches and does not count.
const ROW: usize = 6;
const EXCHANGES: usize = 9;
const LEARNING_RATE: f64 = 1e-3;
const MOST_NORM: f64 = 1.0;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, samples, steps] = &arguments[..] else {
        return Err(Error::Argument("give gpt|mlp SAMPLES_A_RANK STEPS".into()));
    };
    let (samples, steps) = (number(samples)?, number(steps)?);
    let communicator = Communicator::from_env()?;
    let alone = Communicator::in_process(1)?.remove(0);
    let mut exchanging = Training::new(kind, samples, &communicator)?;
    let mut lonely = Training::new(kind, samples, &alone)?;
    let (mut exchanging_ms, mut lonely_ms) = (Vec::new(), Vec::new());
    // The first row of each settles buckets and memory.
    for row in 0..1 + steps.div_ceil(ROW - 1) {
        let exchanging_row = exchanging.row(&communicator)?;
        let lonely_row = lonely.row(&communicator)?;
        if row > 0 {
            exchanging_ms.extend(exchanging_row);
            lonely_ms.extend(lonely_row);
        }
    }
    let parameters: usize = exchanging.model.parameters().iter().map(|one| one.len()).sum();
    println!(
        "{}",
        json!({
            "parameters": parameters,
            "bucket_bytes": exchanging.model.bucket_bytes()?,
            "step_ms": median(exchanging_ms),
            "without_exchange_ms": median(lonely_ms),
            "exchange_ms": exchanging.exchange_ms(&communicator)?,
        })
    );
    Ok(())
}

fn number(text: &str) -> Result<usize> {
    text.parse().map_err(|error| Error::Argument(format!("{text}: {error}")))
}

/// A model with what it takes to make steps.
struct Training {
    model: DataParallel<Box<dyn Model>>,
    optimizing: Optimizing<f32>,
    batch: Batch,
    /// Each rank's part of a step.
    share: f64,
}

impl Training {
    fn new(kind: &str, samples: usize, communicator: &Communicator) -> Result<Training> {
        let (settings, facts, batch) = match kind {
            "gpt" => {
                let facts = Facts { input: Input::Tokens { block: BLOCK }, classes: CHARACTERS };
                let input = classes((samples, BLOCK), CHARACTERS, 31)?;
                let target = classes((samples, BLOCK), CHARACTERS, 37)?;
                (ModelSettings::Gpt(GptSettings::default()), facts, Batch { input, target })
            }
            "mlp" => {
                let input =
                    Input::Image { channels: 1, height: PIXELS_A_SIDE, width: PIXELS_A_SIDE };
                let facts = Facts { input, classes: DIGITS };
                let hidden = HIDDEN.to_vec();
                let settings = MlpSettings { hidden, activation: Activation::Relu };
                let image = (samples, 1, PIXELS_A_SIDE, PIXELS_A_SIDE);
                let input = Tensor::rand(0_f32, 1., image, &Device::Cpu)?;
                let target = classes(samples, DIGITS, 7)?;
                (ModelSettings::Mlp(settings), facts, Batch { input, target })
            }
            _ => return Err(Error::Argument(format!("there is no model {kind}: give gpt or mlp"))),
        };
        let build = |vb| models::build(&settings, vb, &facts);
        let model = DataParallel::new(communicator, 1, ExchangeSettings::default(), build)?;
        let adamw = Optimiser::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 };
        let optimizing = Optimizing::new(adamw, true)?;
        Ok(Training { model, optimizing, batch, share: 1.0 / f64::from(communicator.ranks()) })
    }

    /// Makes some steps; how long each took, but for the first. Ranks begin together, whether or not they exchange.
    fn row(&mut self, all: &Communicator) -> Result<Vec<f64>> {
        all.barrier()?;
        let mut times_ms = Vec::new();
        for _ in 0..ROW {
            let begin = Instant::now();
            let loss = self.model.model().loss(&self.batch)?;
            self.model.backward(&loss, self.share)?;
            self.model.finish()?;
            self.optimizing.step(&mut self.model, LEARNING_RATE, Some(MOST_NORM))?;
            times_ms.push(ms_since(begin));
        }
        Ok(times_ms.split_off(1))
    }

    /// How long the exchange takes when nothing else is done.
    fn exchange_ms(&mut self, all: &Communicator) -> Result<f64> {
        let mut times_ms = Vec::new();
        for _ in 0..EXCHANGES {
            all.barrier()?;
            let begin = Instant::now();
            self.model.finish()?;
            times_ms.push(ms_since(begin));
        }
        Ok(median(times_ms))
    }
}

/// Numbers of classes without an order that a model could learn from.
fn classes(shape: impl Into<candle_core::Shape>, classes: usize, factor: usize) -> Result<Tensor> {
    let shape = shape.into();
    let class = |place: usize| (place * place * factor % classes) as u32;
    let values: Vec<u32> = (0..shape.elem_count()).map(class).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn ms_since(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
