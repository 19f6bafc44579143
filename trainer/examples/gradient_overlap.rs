//! How well the exchange of gradients hides behind the backward pass: under a launcher, one JSON object on rank 0's
//! standard output. `benches/trainer/overlap.py` runs it between two hosts over a wire of limited speed.
//!
//! A net of eight layers of 1,024 x 1,024 has 32 MiB of gradients, which leave in eight buckets. The batch is chosen so that a
//! backward pass takes as long as the exchange. Beside it: the same with one bucket, which can leave only when all
//! gradients are there.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear_no_bias};
use ringtree::Communicator;
use ringtree_trainer::{DataParallel, Error, ExchangeSettings, Exchanged};
use serde_json::{Value, json};

const LAYERS: usize = 8;
const WIDTH: usize = 1024;
const LAYER_BYTES: usize = WIDTH * WIDTH * size_of::<f32>();
const ROUNDS: usize = 7;

/// As long as the exchange is what differs by less; and so often a batch is tried, on a machine that changes meanwhile.
const NEAR: f64 = 0.05;
const ATTEMPTS: usize = 12;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Net(Vec<Linear>);

impl Net {
    fn new(vb: VarBuilder<'static>) -> candle_core::Result<Net> {
        let layer = |number: usize| linear_no_bias(WIDTH, WIDTH, vb.pp(number));
        Ok(Net((0..LAYERS).map(layer).collect::<Result<_, _>>()?))
    }

    fn loss(&self, input: &Tensor) -> candle_core::Result<Tensor> {
        let output = self.0.iter().try_fold(input.clone(), |x, layer| layer.forward(&x)?.relu())?;
        output.sqr()?.mean_all()
    }
}

fn main() -> Result<(), Error> {
    let communicator = Communicator::from_env()?;
    communicator.warm_up()?;
    let mut several = wrap(&communicator, LAYER_BYTES)?;
    let mut one = wrap(&communicator, LAYERS * LAYER_BYTES)?;
    // The first step of each settles its buckets.
    exchange_alone(&mut one)?;
    exchange_alone(&mut several)?;
    let mut batch = 32;
    let (mut exchange_ms, mut backward_ms);
    let mut attempts = 0;
    loop {
        exchange_ms = together(&communicator, exchange_alone(&mut one)?)?;
        backward_ms = together(&communicator, backward_alone(&communicator, batch)?)?;
        let ratio = exchange_ms / backward_ms;
        attempts += 1;
        if (1.0 - NEAR..1.0 + NEAR).contains(&ratio) || attempts == ATTEMPTS {
            break;
        }
        batch = ((batch as f64 * ratio).round() as usize).max(1);
    }
    let (overlapped, one_bucket) = (measure(&mut several, batch)?, measure(&mut one, batch)?);
    let bytes = LAYERS * LAYER_BYTES;
    let figures = json!({
        "layers": LAYERS, "width": WIDTH, "gradient_bytes": bytes, "batch": batch,
        "exchange_ms": exchange_ms, "backward_ms": backward_ms,
        "overlapped": overlapped, "one_bucket": one_bucket,
    });
    if communicator.rank() == 0 {
        println!("{figures}");
    }
    Ok(())
}

fn wrap(communicator: &Communicator, bucket_bytes: usize) -> Result<DataParallel<Net>, Error> {
    let settings = ExchangeSettings {
        bucket_bytes,
        first_bucket_bytes: bucket_bytes,
        ..ExchangeSettings::default()
    };
    DataParallel::new(communicator, 1, settings, Net::new)
}

/// The mean of all ranks' times, which all get.
fn together(communicator: &Communicator, ms: f64) -> Result<f64, Error> {
    let mut sum = [ms];
    communicator.all_reduce(&mut sum, ringtree::Op::Average)?;
    Ok(sum[0])
}

/// How long all gradients are under way when nothing else is done.
fn exchange_alone(model: &mut DataParallel<Net>) -> Result<f64, Error> {
    model.communicator().barrier()?;
    let begin = Instant::now();
    model.finish()?;
    Ok(ms(begin, Instant::now()))
}

/// How long a backward pass takes without an exchange: the median of some.
fn backward_alone(communicator: &Communicator, batch: usize) -> Result<f64, Error> {
    let alone = Communicator::in_process(1)?.remove(0);
    let mut model = wrap(&alone, LAYER_BYTES)?;
    let mut times = Vec::new();
    for round in 0..3 {
        let loss = model.model().loss(&input(batch, round)?)?;
        communicator.barrier()?;
        let begin = Instant::now();
        model.backward(&loss, 1.0)?;
        times.push(ms(begin, Instant::now()));
        model.finish()?;
    }
    Ok(median(times))
}

fn input(batch: usize, round: usize) -> Result<Tensor, Error> {
    let values = Tensor::arange(0.0_f32, (batch * WIDTH) as f32, &Device::Cpu)?;
    let values = ((values + round as f64)? * 0.37)?.sin()?;
    Ok(values.reshape((batch, WIDTH))?.to_dtype(DType::F32)?)
}

/// The median step: how long its backward pass, its exchange and the rest of the exchange after the pass took.
fn measure(model: &mut DataParallel<Net>, batch: usize) -> Result<Value, Error> {
    let mut steps = Vec::new();
    for round in 0..ROUNDS {
        let loss = model.model().loss(&input(batch, round)?)?;
        model.communicator().barrier()?;
        let begin = Instant::now();
        model.backward(&loss, 0.5)?;
        let passed = Instant::now();
        let exchanged = model.finish()?;
        steps.push((begin, passed, exchanged));
    }
    steps.sort_by_key(|(.., exchanged)| exchanged.exposed);
    let (begin, passed, exchanged) = &steps[ROUNDS / 2];
    Ok(drawn(*begin, *passed, exchanged))
}

/// A step's times in ms since the backward pass began.
fn drawn(begin: Instant, passed: Instant, exchanged: &Exchanged) -> Value {
    let bucket = |one: &ringtree_trainer::BucketTimes| {
        json!([ms(begin, one.ran.began), ms(begin, one.ran.ended)])
    };
    json!({
        "backward_ms": ms(begin, passed),
        "busy_ms": exchanged.busy().as_secs_f64() * 1e3,
        "exposed_ms": exchanged.exposed.as_secs_f64() * 1e3,
        "buckets": exchanged.buckets.iter().map(bucket).collect::<Vec<_>>(),
    })
}

fn ms(begin: Instant, end: Instant) -> f64 {
    end.saturating_duration_since(begin).as_secs_f64() * 1e3
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
