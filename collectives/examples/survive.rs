//! Goes on when ranks die: counts to a hundred together, with those that are left and those that come.
//!
//! ```sh
//! cargo build --workspace --examples
//! ringtree run --ranks 3 --restart 3 -- target/debug/examples/survive
//! ```
//!
//! and, meanwhile, `kill -9` one of the three processes: another is started in its place and gets the count.

use std::time::Duration;

use ringtree::{Communicator, Error, Op};

const ENOUGH: u64 = 100;

fn main() -> Result<(), Error> {
    let mut comm = Communicator::from_env()?;
    let mut count = 0;
    while count < ENOUGH {
        if count == 1 {
            println!("rank {} counts", comm.rank());
        }
        // Whoever is new has counted nothing: all go on from the highest count.
        match step(&comm, count) {
            Ok(next) if next.somebody_waits => comm = comm.admit()?.communicator,
            Ok(next) => count = next.count,
            Err(error @ Error::Verdict(_)) => {
                eprintln!("rank {}: {error}", comm.rank());
                comm = comm.shrink()?.communicator;
            }
            Err(error) => return Err(error),
        }
    }
    println!("rank {} of {} has counted to {count}", comm.rank(), comm.ranks());
    Ok(())
}

struct Next {
    count: u64,
    somebody_waits: bool,
}

/// One more than the highest count of any rank, and whether any has heard of a newcomer.
fn step(comm: &Communicator, count: u64) -> Result<Next, Error> {
    std::thread::sleep(Duration::from_millis(20));
    let mut highest = [count, comm.members_changed().into()];
    comm.all_reduce(&mut highest, Op::Max)?;
    Ok(Next { count: highest[0] + 1, somebody_waits: highest[1] != 0 })
}
