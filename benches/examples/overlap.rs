//! How well an asynchronous all-reduce hides behind what a rank computes meanwhile: under a launcher,
//! one JSON object on rank 0's standard output. `benches/host/hosts.py` runs it between two hosts.

use std::error::Error;
use std::time::Instant;

use ringtree::{Communicator, Op};

/// Elements of the buffer: 64 MiB.
const COUNT: usize = 16 << 20;

/// Parts that are reduced at once in the second measurement.
const PARTS: usize = 8;

const ROUNDS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let comm = Communicator::from_env()?;
    comm.warm_up()?;
    let mut whole = vec![1.0_f32; COUNT];
    let mut parts: Vec<Vec<f32>> = (0..PARTS).map(|_| vec![1.0; COUNT / PARTS]).collect();

    let mut alone_s = Vec::new();
    for _ in 0..ROUNDS {
        let began = begin(&comm)?;
        whole = comm.all_reduce_async(whole, Op::Max)?.wait()?;
        alone_s.push(began.elapsed().as_secs_f64());
    }
    let alone_s = slowest(&comm, median(alone_s))?;
    let steps = steps_in(alone_s);

    let (mut computing_s, mut together_s, mut parts_s) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = begin(&comm)?;
        compute(steps);
        computing_s.push(began.elapsed().as_secs_f64());

        let began = begin(&comm)?;
        let pending = comm.all_reduce_async(whole, Op::Max)?;
        compute(steps);
        whole = pending.wait()?;
        together_s.push(began.elapsed().as_secs_f64());

        let began = begin(&comm)?;
        let places: Vec<_> = parts.iter().map(|part| part.as_ptr()).collect();
        let pending: Result<Vec<_>, _> =
            parts.into_iter().map(|part| comm.all_reduce_async(part, Op::Max)).collect();
        let pending = pending?;
        compute(steps);
        parts = pending.into_iter().map(|part| part.wait()).collect::<Result<_, _>>()?;
        parts_s.push(began.elapsed().as_secs_f64());
        assert!(parts.iter().zip(places).all(|(part, place)| part.as_ptr() == place), "a copy");
    }
    assert!(whole.iter().chain(parts.iter().flatten()).all(|&x| x == 1.0), "a wrong element");
    let computing_s = slowest(&comm, median(computing_s))?;
    let together_s = slowest(&comm, median(together_s))?;
    let parts_s = slowest(&comm, median(parts_s))?;
    if comm.rank() == 0 {
        println!(
            "{{\"alone_s\": {alone_s:.4}, \"computing_s\": {computing_s:.4}, \
             \"together_s\": {together_s:.4}, \"parts_s\": {parts_s:.4}}}"
        );
    }
    Ok(())
}

fn begin(comm: &Communicator) -> Result<Instant, ringtree::Error> {
    comm.barrier()?;
    Ok(Instant::now())
}

/// The same on all ranks.
fn slowest(comm: &Communicator, seconds: f64) -> Result<f64, ringtree::Error> {
    let mut most = [seconds];
    comm.all_reduce(&mut most, Op::Max)?;
    Ok(most[0])
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Steps that take so long on this machine when nothing else runs.
fn steps_in(seconds: f64) -> u64 {
    let mut steps = 1 << 16;
    loop {
        let began = Instant::now();
        compute(steps);
        let took = began.elapsed().as_secs_f64();
        if took > 0.1 {
            return (steps as f64 * seconds / took) as u64;
        }
        steps *= 2;
    }
}

/// Arithmetic that a compiler cannot leave out, and that needs no memory.
fn compute(steps: u64) {
    let mut state = 1_u64;
    for step in 0..steps {
        state = std::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005) ^ step);
    }
}
