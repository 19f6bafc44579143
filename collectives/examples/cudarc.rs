//! Two GPUs of one process, each with a thread of its own, add up what they have, in slices of the crate cudarc. Where
//! there is only one GPU, both use it. `RINGTREE_CUDA_LIBRARY` names another driver than the system's.
//!
//! ```sh
//! cargo build --workspace --examples
//! target/debug/examples/cudarc
//! ```

use std::error::Error;
use std::thread;

use cudarc::driver::CudaContext;
use ringtree::device::cudarc::{Slice, stream_of};
use ringtree::{Communicator, Op};

/// Adds up what all ranks have, and returns what this one's GPU then holds.
fn sum(comm: &Communicator) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
    // Opens the driver, which cudarc must not do first.
    let mut device = comm.device(0)?;
    let gpus = device.driver().devices();
    device = comm.device(comm.rank() % gpus)?;
    let ordinal = device.ordinal() as usize;
    let theirs = CudaContext::new(ordinal)?.new_stream()?;
    let stream = stream_of(&device, &theirs)?;

    let vector: Vec<f32> = (1..=4).map(|index| (index * (comm.rank() + 1)) as f32).collect();
    println!("rank {} gives {vector:?} on {}", comm.rank(), device.name());
    let mut vector = theirs.clone_htod(&vector)?;
    comm.on(&stream).all_reduce(&mut Slice::new(&mut vector, &theirs), Op::Sum)?;
    // The copy is queued behind the call, and finds the sums.
    Ok(theirs.clone_dtoh(&vector)?)
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let ranks = Communicator::in_process(2)?;
    thread::scope(|scope| {
        let threads: Vec<_> = ranks.iter().map(|comm| scope.spawn(|| sum(comm))).collect();
        for (rank, thread) in threads.into_iter().enumerate() {
            println!("rank {rank} has {:?}", thread.join().expect("no panic")?);
        }
        Ok(())
    })
}
