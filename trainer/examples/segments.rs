//! Two ways to have gradients before the backward pass is over, side by side on the default GPT: hooks on its
//! parameters, as `DataParallel` has them, and a backward pass in segments, written by hand: each block gets a detached
//! copy of what the one before it has made, and has a backward pass of its own. Prints how long a step takes, and when
//! after the beginning of the backward pass its buckets could leave.
//!
//!     RAYON_NUM_THREADS=1 cargo run --release -p ringtree-trainer --example segments

use std::ops::Range;
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Storage, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use ringtree::Communicator;
use ringtree_trainer::models::{Gpt, GptSettings};
use ringtree_trainer::{
    Batch, DataParallel, Error, ExchangeSettings, Exchanged, GradientExchange, Model, Parameter,
};

const ROUNDS: usize = 60;
const SAMPLES: usize = 12;
const BLOCK: usize = 64;
const VOCABULARY: usize = 80;
/// Used at both ends of the model, so that it is complete only at the end.
const TIED: &str = "transformer.wte.weight";

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Error> {
    let communicator = Communicator::in_process(1)?.remove(0);
    // Of 3.2 MB of gradients, 0.8 MB a block.
    let settings = ExchangeSettings {
        bucket_bytes: 512 << 10,
        first_bucket_bytes: 256 << 10,
        ..ExchangeSettings::default()
    };
    let build = |vb: VarBuilder<'static>| Gpt::new(&GptSettings::default(), BLOCK, VOCABULARY, vb);
    let mut hooked: DataParallel<Gpt> =
        DataParallel::new(&communicator, 1, settings.clone(), build)?;
    let variables = VarMap::new();
    let gpt = build(VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))?;
    let mut segments = Segments::new(gpt, &variables, &hooked, settings)?;
    let tokens = || Tensor::rand(0., VOCABULARY as f32, (SAMPLES, BLOCK), &Device::Cpu);
    let (input, target) = (tokens()?.to_dtype(DType::U32)?, tokens()?.to_dtype(DType::U32)?);
    let batch = Batch { input, target };
    let (mut by_hooks, mut by_segments) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let loss = hooked.model().loss(&batch)?;
        let backward = Instant::now();
        hooked.backward(&loss, 1.0)?;
        by_hooks.push(Step::new(start, backward, &hooked.finish()?));
        by_segments.push(segments.step(&batch)?);
    }
    let (one, other) = (hooked.gradient_norm()?, segments.gradient_norm()?);
    assert!((one - other).abs() < 1e-4 * one, "other gradients: of length {one} and {other}");
    print("hooks", &by_hooks);
    print("segments", &by_segments);
    // Pair by pair, so that what else the machine does meets both.
    let pairs = std::iter::zip(&by_segments, &by_hooks).skip(1);
    let percent = 100.0 * (median(pairs.map(|(one, other)| one.ms / other.ms)) - 1.0);
    println!("a step in segments takes {percent:+.1} % longer than one by hooks");
    Ok(())
}

/// The same GPT on variables of candle's, with a backward pass a block.
struct Segments {
    gpt: Gpt,
    /// Each parameter, and where its gradients are in the exchange.
    parameters: Vec<(String, Var, Range<usize>)>,
    exchange: GradientExchange<f32>,
}

impl Segments {
    fn new(
        gpt: Gpt,
        variables: &VarMap,
        like: &DataParallel<Gpt>,
        settings: ExchangeSettings,
    ) -> Result<Segments, Error> {
        let lengths: Vec<usize> = like.parameters().iter().map(|one| one.len()).collect();
        let exchange = GradientExchange::new(like.communicator().clone(), &lengths, settings)?;
        let of_name = variables.data().lock().expect("no thread has failed with it");
        let (mut parameters, mut start) = (Vec::new(), 0);
        for Parameter { name, tensor } in like.parameters() {
            let variable = of_name[name].clone();
            variable.set(&tensor.detach())?;
            parameters.push((name.clone(), variable, start..start + tensor.elem_count()));
            start += tensor.elem_count();
        }
        Ok(Segments { gpt, parameters, exchange })
    }

    fn step(&mut self, batch: &Batch) -> Result<Step, Error> {
        let start = Instant::now();
        let mut outputs = vec![self.gpt.embed(&batch.input)?];
        let mut inputs = Vec::new();
        for number in 0..self.gpt.layers() {
            let input = Var::from_tensor(&outputs[number])?;
            outputs.push(self.gpt.layer(number, &input, batch.samples())?);
            inputs.push(input);
        }
        inputs.push(Var::from_tensor(&outputs[self.gpt.layers()])?);
        let logits = self.gpt.head(&inputs[self.gpt.layers()])?;
        let loss = candle_nn::loss::cross_entropy(&logits, &batch.target.flatten_all()?)?;
        let backward = Instant::now();
        let mut gradients = loss.backward()?;
        self.bring(&gradients, false)?;
        for (number, (output, input)) in outputs.iter().zip(&inputs).enumerate().rev() {
            let upstream = gradients.remove(input).expect("the gradient of a block's input");
            // Its gradient by the block's output is what has come from behind it.
            gradients = (output * upstream.detach())?.sum_all()?.backward()?;
            self.bring(&gradients, number == 0)?;
        }
        Ok(Step::new(start, backward, &self.exchange.finish()?))
    }

    /// Takes the gradients of a segment's parameters into the exchange, the last ones first.
    fn bring(&mut self, gradients: &GradStore, is_last: bool) -> Result<(), Error> {
        for (name, variable, range) in self.parameters.iter().rev() {
            let Some(gradient) = gradients.get(variable) else { continue };
            let gradient = gradient.flatten_all()?;
            let (storage, layout) = gradient.storage_and_layout();
            let Storage::Cpu(storage) = &*storage else { unreachable!("all is on the host") };
            let from = &storage.as_slice::<f32>()?[layout.start_offset()..][..range.len()];
            let to = self.exchange.gradients(range.clone())?;
            match name == TIED && is_last {
                true => to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
                false => to.copy_from_slice(from),
            }
            if name != TIED || is_last {
                self.exchange.ready(range.clone())?;
            }
        }
        Ok(())
    }

    fn gradient_norm(&mut self) -> Result<f64, Error> {
        let mut squares = 0.0;
        for (.., range) in &self.parameters {
            let gradients = self.exchange.gradients(range.clone())?;
            squares += gradients.iter().map(|one| f64::from(one * one)).sum::<f64>();
        }
        Ok(squares.sqrt())
    }
}

/// How long a step took, and when its buckets were complete, in ms since the backward pass began.
struct Step {
    ms: f64,
    complete_ms: Vec<f64>,
}

impl Step {
    fn new(start: Instant, backward: Instant, exchanged: &Exchanged) -> Step {
        let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
        let complete = exchanged.buckets.iter().map(|bucket| ms(backward, bucket.posted));
        Step { ms: ms(start, Instant::now()), complete_ms: complete.collect() }
    }
}

/// Medians over all rounds but the first, in which buckets are not yet in their order.
fn print(name: &str, steps: &[Step]) {
    let steps = &steps[1..];
    let complete = |bucket| median(steps.iter().map(|step| step.complete_ms[bucket]));
    let complete = (0..steps[0].complete_ms.len()).map(|bucket| format!("{:.1}", complete(bucket)));
    println!(
        "{name:>8}: a step {:.1} ms; buckets complete after {} ms of the backward pass",
        median(steps.iter().map(|step| step.ms)),
        complete.collect::<Vec<_>>().join(", ")
    );
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
