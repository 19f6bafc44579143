//! Which rank runs on which host, and who shares memory with whom. On two hosts, start the first
//! command; it prints the one for the other host, where the program must lie at the same place:
//!
//! ```sh
//! cargo build --workspace --examples
//! ringtree run --ranks 4 --nodes 2 --rendezvous 10.0.0.1:29400 -- target/debug/examples/several_hosts
//! ```

use ringtree::{Communicator, Error, TransportKind};

/// Longer names are cut.
const NAME_BYTES: usize = 64;

/// The host's name, filled up with zeros.
fn host_name() -> [u8; NAME_BYTES] {
    let name = std::fs::read("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut padded = [0; NAME_BYTES];
    padded.iter_mut().zip(name.trim_ascii()).for_each(|(to, from)| *to = *from);
    padded
}

fn main() -> Result<(), Error> {
    let comm = Communicator::from_env()?;
    let ranks = comm.ranks() as usize;
    // Links are made when they are needed: now, so that they can be asked for.
    comm.warm_up()?;
    let transport_to = |peer| comm.transport_to(peer);
    let shares: Vec<u8> = (0..comm.ranks())
        .map(|peer| u8::from(transport_to(peer) == Some(TransportKind::Shm)))
        .collect();

    let (mut names, mut all_shares) = (vec![0; ranks * NAME_BYTES], vec![0; ranks * ranks]);
    comm.gather_into(&host_name(), &mut names, 0)?;
    comm.gather_into(&shares, &mut all_shares, 0)?;
    if comm.rank() == 0 {
        let rows = names.chunks(NAME_BYTES).zip(all_shares.chunks(ranks));
        for (rank, (name, shares)) in rows.enumerate() {
            let name = String::from_utf8_lossy(name);
            let peers = |shared: u8| -> Vec<usize> {
                (0..ranks).filter(|peer| *peer != rank && shares[*peer] == shared).collect()
            };
            println!(
                "rank {rank} on {}: shares memory with {:?}, speaks TCP with {:?}",
                name.trim_end_matches('\0'),
                peers(1),
                peers(0),
            );
        }
    }
    Ok(())
}
