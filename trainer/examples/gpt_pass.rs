//! How long the forward and backward pass of the default GPT take: `cargo run --release -p ringtree-trainer --example
//! gpt_pass -- [block]`. `RAYON_NUM_THREADS` sets how many threads it may use.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use ringtree_trainer::models::{Gpt, GptSettings};
use ringtree_trainer::{Batch, Model};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SAMPLES: usize = 12;
const VOCABULARY: usize = 65;
const WARM_UP: usize = 5;
const PASSES: usize = 31;

fn main() -> Result<()> {
    let block: usize = std::env::args().nth(1).and_then(|block| block.parse().ok()).unwrap_or(64);
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let gpt = Gpt::new(&GptSettings::default(), block, VOCABULARY, vb)?;
    let tokens = |seed: usize| {
        let token = |place: usize| (place * seed % VOCABULARY) as u32;
        let tokens: Vec<u32> = (0..SAMPLES * block).map(token).collect();
        Tensor::from_vec(tokens, (SAMPLES, block), &Device::Cpu)
    };
    let batch = Batch { input: tokens(31)?, target: tokens(37)? };
    let mut times = Vec::new();
    for _ in 0..WARM_UP + PASSES {
        let start = Instant::now();
        let loss = gpt.loss(&batch)?;
        let forward = start.elapsed();
        loss.backward()?;
        times.push((start.elapsed(), forward));
    }
    let mut times = times.split_off(WARM_UP);
    times.sort();
    let (both, forward) = times[PASSES / 2];
    println!("{SAMPLES} x {block} tokens: {both:.2?} a pass, of which forward {forward:.2?}");
    Ok(())
}
