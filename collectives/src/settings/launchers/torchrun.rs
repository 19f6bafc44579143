//! torchrun: `RANK`, `WORLD_SIZE`, and where rank 0 is in `MASTER_ADDR` and `MASTER_PORT`. Many other
//! launchers of PyTorch programs set the same.

use super::{DEFAULT_PORT, Place, Source, Told, at_port, set_rendezvous};
use crate::Error;
use crate::settings::variables::{Variables, settings};

pub(super) fn place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    // Each alone has been used for other things.
    if env.get("RANK").is_none() || env.get("WORLD_SIZE").is_none() {
        return Ok(None);
    }
    Ok(Some(Place {
        source: Source::Torchrun,
        rank: env.told("RANK")?,
        ranks: env.told("WORLD_SIZE")?,
        local_rank: env.told_if_set("LOCAL_RANK")?,
        local_ranks: env.told_if_set("LOCAL_WORLD_SIZE")?,
        rendezvous: set_rendezvous(env).map_or_else(|| rendezvous(env), Ok)?,
        job: env.text("TORCHELASTIC_RUN_ID"),
    }))
}

/// torchrun's agent may itself listen on MASTER_PORT, with a protocol of its own: then the next
/// port is ours.
fn rendezvous(env: &Variables<'_>) -> Result<Told<String>, Error> {
    let host = env.required("MASTER_ADDR", "the host of rank 0")?;
    let port = env.port("MASTER_PORT")?.unwrap_or(DEFAULT_PORT);
    let taken = env.get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True");
    let port = port.checked_add(u16::from(taken)).ok_or_else(|| {
        settings(
            "MASTER_PORT=65535 leaves no port for the ranks, as torchrun's agent listens on it: \
             choose a lower one, or set RINGTREE_RENDEZVOUS",
        )
    })?;
    at_port(&host, port)
}
