//! Communication behind computation: while one layer's gradient is being reduced, the next one is
//! being computed.
//!
//! ```sh
//! cargo build --workspace --examples
//! ringtree run --ranks 2 -- target/debug/examples/asynchronous
//! ```

use std::time::Instant;

use ringtree::{Communicator, Error, Op};

const LAYERS: u32 = 8;
const WEIGHTS: usize = 500_000;

/// Stands for the work of a backward pass.
fn gradient(layer: u32, rank: u32) -> Vec<f32> {
    let steps = |start: f32| (0..20).fold(start, |x, _| x.mul_add(0.5, 0.5));
    vec![steps(1.0) * (layer + rank) as f32; WEIGHTS]
}

fn main() -> Result<(), Error> {
    let comm = Communicator::from_env()?;
    let rank = comm.rank();
    comm.warm_up()?;

    comm.barrier()?;
    let start = Instant::now();
    for layer in 0..LAYERS {
        let mut gradient = gradient(layer, rank);
        comm.all_reduce(&mut gradient, Op::Average)?;
    }
    let one_by_one = start.elapsed();

    comm.barrier()?;
    let start = Instant::now();
    let mut pending = Vec::new();
    for layer in 0..LAYERS {
        // The call owns the gradient until `wait` gives it back.
        pending.push(comm.all_reduce_async(gradient(layer, rank), Op::Average)?);
    }
    let gradients = pending.into_iter().map(|call| call.wait()).collect::<Result<Vec<_>, _>>()?;
    let overlapped = start.elapsed();

    if rank == 0 {
        println!("one after the other: {:.1} ms", one_by_one.as_secs_f64() * 1e3);
        println!("overlapped: {:.1} ms", overlapped.as_secs_f64() * 1e3);
        let first: Vec<f32> = gradients.iter().map(|gradient| gradient[0]).collect();
        println!("average gradients of the layers: {first:?}");
    }
    Ok(())
}
