//! What a group of small all-reduces takes beside the same one by one: under a launcher, one JSON object a
//! size on rank 0's standard output. `benches/host/groups.py` runs it.

use std::error::Error;
use std::time::Instant;

use ringtree::{Communicator, Op};

/// Tensors of a group, as of a model with many small layers.
const TENSORS: usize = 100;

const ROUNDS: usize = 21;

fn main() -> Result<(), Box<dyn Error>> {
    let comm = Communicator::from_env()?;
    comm.warm_up()?;
    for bytes in [8, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10] {
        let mut tensors = vec![vec![1.0_f32; bytes / size_of::<f32>()]; TENSORS];
        let (mut alone_s, mut together_s) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            comm.barrier()?;
            let began = Instant::now();
            for tensor in &mut tensors {
                comm.all_reduce(tensor, Op::Max)?;
            }
            alone_s.push(began.elapsed().as_secs_f64());
            comm.barrier()?;
            let began = Instant::now();
            let mut group = comm.group();
            for tensor in &mut tensors {
                group.all_reduce(tensor, Op::Max)?;
            }
            group.run()?;
            together_s.push(began.elapsed().as_secs_f64());
        }
        assert!(tensors.iter().flatten().all(|&x| x == 1.0), "a wrong element");
        let (alone_us, together_us) = (slowest_us(&comm, alone_s)?, slowest_us(&comm, together_s)?);
        if comm.rank() == 0 {
            println!(
                "{{\"bytes\": {bytes}, \"tensors\": {TENSORS}, \"alone_us\": {alone_us:.1}, \
                 \"together_us\": {together_us:.1}}}"
            );
        }
    }
    Ok(())
}

/// The median over the rounds, of the slowest rank.
fn slowest_us(comm: &Communicator, mut times_s: Vec<f64>) -> Result<f64, ringtree::Error> {
    times_s.sort_by(f64::total_cmp);
    let mut median_us = [times_s[ROUNDS / 2] * 1e6];
    comm.all_reduce(&mut median_us, Op::Max)?;
    Ok(median_us[0])
}
