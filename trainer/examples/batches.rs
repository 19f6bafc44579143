//! Which samples each step of a training sees, for a program that is to make the same steps:
//! `batches SAMPLES SAMPLES_A_STEP SEED STEPS` prints a line of indices for each step, of all ranks together.

use ringtree_trainer::data::{Position, Sampler};
use ringtree_trainer::{Error, Result};

fn main() -> Result<()> {
    let numbers = std::env::args().skip(1).map(|argument| {
        let refused = |error| Error::Argument(format!("{argument}: {error}"));
        argument.parse::<usize>().map_err(refused)
    });
    let [samples, samples_a_step, seed, steps] = numbers.collect::<Result<Vec<_>>>()?[..] else {
        return Err(Error::Argument("give SAMPLES SAMPLES_A_STEP SEED STEPS".into()));
    };
    // One rank sees what several would see together.
    let sampler = Sampler::new(samples, 1, samples_a_step, seed as u64)?;
    for step in sampler.steps(Position::default())?.take(steps) {
        let indices: Vec<String> = step.indices(0).iter().map(usize::to_string).collect();
        println!("{}", indices.join(" "));
    }
    Ok(())
}
