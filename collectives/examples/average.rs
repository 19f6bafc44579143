//! Two processes, or more, average a vector: each gives its own, and all end with the same.
//!
//! ```sh
//! cargo build --workspace --examples
//! ringtree run --ranks 2 -- target/debug/examples/average
//! ```

use ringtree::{Communicator, Error, Op};

fn main() -> Result<(), Error> {
    let comm = Communicator::from_env()?;
    let mut vector: Vec<f32> = (1..=4).map(|index| (index * (comm.rank() + 1)) as f32).collect();
    println!("rank {} of {} gives {vector:?}", comm.rank(), comm.ranks());
    comm.all_reduce(&mut vector, Op::Average)?;
    println!("the average is {vector:?}");
    Ok(())
}
