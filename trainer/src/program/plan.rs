//! `--dry-run`: where the ranks are, beside what the banner says.

use ringtree::Communicator;
use ringtree_trainer::Error;

/// Bytes of a host's name that ranks tell each other: as many as Linux allows.
const NAME_BYTES: usize = 64;

/// Which ranks are on which host, with the processors that each may use; the same on all ranks, which all call this.
///
/// # Errors
/// [`Error::Ringtree`]: what has ended the communicator.
pub fn rank_map(communicator: &Communicator) -> Result<String, Error> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim_end();
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let mut own = [0_u8; NAME_BYTES + 8];
    let len = name.len().min(NAME_BYTES);
    own[..len].copy_from_slice(&name.as_bytes()[..len]);
    own[NAME_BYTES..].copy_from_slice(&processors.to_le_bytes());
    let mut all = vec![0; own.len() * communicator.ranks() as usize];
    communicator.all_gather_into(&own, &mut all)?;
    let mut lines = Vec::new();
    for (rank, one) in all.chunks_exact(own.len()).enumerate() {
        let (name, processors) = one.split_at(NAME_BYTES);
        let name = String::from_utf8_lossy(name);
        let processors = processors.try_into().map_or(0, u64::from_le_bytes);
        let by = match communicator.transport_to(rank as u32) {
            Some(transport) => format!(", reached over {transport:?}").to_lowercase(),
            None => String::new(),
        };
        let name = name.trim_end_matches('\0');
        lines.push(format!("rank {rank} on {name}, which may use {processors} processors{by}"));
    }
    Ok(lines.join("\n"))
}
