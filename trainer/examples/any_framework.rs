//! The exchange of gradients without candle: a line fitted by hand, whose gradients any framework could have
//! calculated. Each rank has other points of it.
//!
//!     cargo build -p ringtree-trainer --examples
//!     ringtree run --ranks 3 target/debug/examples/any_framework

use ringtree::Communicator;
use ringtree_trainer::{Error, ExchangeSettings, GradientExchange};

fn main() -> Result<(), Error> {
    let communicator = Communicator::from_env()?;
    let (rank, ranks) = (communicator.rank() as usize, communicator.ranks() as usize);
    // Two parameters of one number each: the line's slope, and where it begins.
    let mut exchange =
        GradientExchange::<f64>::new(communicator, &[1, 1], ExchangeSettings::default())?;
    let points = (0..300).skip(rank).step_by(ranks).map(|at| f64::from(at) / 100.0);
    let points: Vec<(f64, f64)> = points.map(|x| (x, 2.0 * x - 1.0)).collect();
    let (mut slope, mut begin) = (0.0, 0.0);
    for _ in 0..400 {
        let errors = points.iter().map(|(x, y)| (x, slope * x + begin - y));
        // The last layer's first, as backward passes go.
        exchange.gradients(1..2)?[0] = errors.clone().map(|(_, error)| error).sum::<f64>() / 300.0;
        exchange.ready(1..2)?;
        exchange.gradients(0..1)?[0] = errors.map(|(x, error)| error * x).sum::<f64>() / 300.0;
        exchange.ready(0..1)?;
        exchange.finish()?;
        slope -= 0.4 * exchange.gradients(0..1)?[0];
        begin -= 0.4 * exchange.gradients(1..2)?[0];
    }
    println!("rank {rank}: y = {slope:.3} x + {begin:.3}");
    Ok(())
}
