//! Ranks as a grid with two columns: every row and every column is a communicator of its own.
//!
//! ```sh
//! cargo build --workspace --examples
//! ringtree run --ranks 4 -- target/debug/examples/split
//! ```

use ringtree::{Communicator, Error, Op};

const COLUMNS: u32 = 2;

/// The sum of all members' ranks in the whole job.
fn sum_of_ranks(members: &Communicator, rank: u32) -> Result<u32, Error> {
    let mut sum = [rank];
    members.all_reduce(&mut sum, Op::Sum)?;
    Ok(sum[0])
}

fn main() -> Result<(), Error> {
    let comm = Communicator::from_env()?;
    let rank = comm.rank();
    let (row, column) = (rank / COLUMNS, rank % COLUMNS);
    // All pass a color, so that all belong to a part; the key keeps the order of the ranks.
    let members = [comm.split(Some(row), rank.into())?, comm.split(Some(column), rank.into())?];
    for (what, members) in ["row", "column"].into_iter().zip(members.iter().flatten()) {
        let number = if what == "row" { row } else { column };
        println!(
            "rank {rank} is rank {} of {} in {what} {number}, where the ranks add up to {}",
            members.rank(),
            members.ranks(),
            sum_of_ranks(members, rank)?,
        );
    }
    Ok(())
}
