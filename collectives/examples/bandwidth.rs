//! A program that measures what its ranks can do before it starts to work: the bus bandwidth of an
//! all-reduce over sizes (what each rank must send at least, by the time of the slowest rank).
//!
//! ```sh
//! cargo build --workspace --examples --release
//! ringtree run --ranks 2 -- target/release/examples/bandwidth
//! ```

use std::time::{Duration, Instant};

use ringtree::{Communicator, Error, Op};

const CALLS: u32 = 10;

/// The time of one call: what the slowest rank measures.
fn measure(comm: &Communicator, bytes: usize) -> Result<Duration, Error> {
    let mut buffer = comm.alloc::<f32>(bytes / size_of::<f32>())?;
    // The first call makes links and maps memory.
    comm.all_reduce(&mut buffer, Op::Sum)?;
    comm.barrier()?;
    let start = Instant::now();
    for _ in 0..CALLS {
        comm.all_reduce(&mut buffer, Op::Sum)?;
    }
    let mut seconds = [start.elapsed().as_secs_f64() / f64::from(CALLS)];
    comm.all_reduce(&mut seconds, Op::Max)?;
    Ok(Duration::from_secs_f64(seconds[0]))
}

fn main() -> Result<(), Error> {
    let comm = Communicator::from_env()?;
    let ranks = f64::from(comm.ranks());
    if comm.rank() == 0 {
        println!("{:>10} {:>12} {:>12}", "bytes", "us a call", "bus GB/s");
    }
    for bytes in [1 << 10, 16 << 10, 256 << 10, 4 << 20, 16 << 20] {
        let time = measure(&comm, bytes)?;
        // Around a ring each rank sends all but its part twice.
        let sent_bytes = 2.0 * (ranks - 1.0) / ranks * bytes as f64;
        let bus_gb_per_s = sent_bytes / time.as_secs_f64() / 1e9;
        if comm.rank() == 0 {
            println!("{bytes:>10} {:>12.2} {bus_gb_per_s:>12.3}", time.as_secs_f64() * 1e6);
        }
    }
    Ok(())
}
