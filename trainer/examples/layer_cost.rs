//! What the data-parallel layer costs where there is one rank: forward and backward pass of the GPT with gradients that candle
//! itself keeps, and with those that go through the exchange, in turns. Prints the difference and what is
//! allowed; the status says whether it is kept.
//!
//!     RAYON_NUM_THREADS=1 cargo run --release -p ringtree-trainer --example layer_cost

use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use ringtree::Communicator;
use ringtree_trainer::models::{Gpt, GptSettings};
use ringtree_trainer::{Batch, DataParallel, Error, ExchangeSettings, Model};

const ROUNDS: usize = 60;
const SAMPLES: usize = 8;
const BLOCK: usize = 64;
const VOCABULARY: usize = 80;
const BOUND_PERCENT: f64 = 1.0;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<ExitCode, Error> {
    let build = |vb: VarBuilder<'static>| Gpt::new(&GptSettings::default(), BLOCK, VOCABULARY, vb);
    let kept = VarMap::new();
    let plain = build(VarBuilder::from_varmap(&kept, DType::F32, &Device::Cpu))?;
    let communicator = Communicator::in_process(1)?.remove(0);
    let mut layered: DataParallel<Gpt> =
        DataParallel::new(&communicator, 1, ExchangeSettings::default(), build)?;
    let batch = batch()?;
    let (mut plain_ms, mut layered_ms) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let gradients = plain.loss(&batch)?.backward()?;
        plain_ms.push(begin.elapsed().as_secs_f64() * 1e3);
        drop(gradients);
        let begin = Instant::now();
        let loss = layered.model().loss(&batch)?;
        layered.backward(&loss, 1.0)?;
        layered.finish()?;
        layered_ms.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    // In turns, so that what else the machine does meets both; pair by pair.
    let mut ratios: Vec<f64> =
        layered_ms.iter().zip(&plain_ms).map(|(layered, plain)| layered / plain).collect();
    let percent = 100.0 * (median(&mut ratios) - 1.0);
    let verdict = if percent <= BOUND_PERCENT { "" } else { "  ABOVE THE BOUND" };
    println!(
        "a pass: {:.2} ms by candle alone, {:.2} ms through the layer: {percent:+.2} %  bound \
         {BOUND_PERCENT} %{verdict}",
        median(&mut plain_ms),
        median(&mut layered_ms),
    );
    Ok(ExitCode::from(u8::from(percent > BOUND_PERCENT)))
}

fn batch() -> Result<Batch, Error> {
    let tokens: Vec<u32> =
        (0..SAMPLES * (BLOCK + 1)).map(|at| (at * at % VOCABULARY) as u32).collect();
    let tokens = Tensor::from_vec(tokens, (SAMPLES, BLOCK + 1), &Device::Cpu)?;
    Ok(Batch {
        input: tokens.narrow(1, 0, BLOCK)?.contiguous()?,
        target: tokens.narrow(1, 1, BLOCK)?.contiguous()?,
    })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
