//! torchrun: `RANK`, `WORLD_SIZE`, and where rank 0 is in `MASTER_ADDR` and `MASTER_PORT`. Many other
//! launchers of PyTorch programs set the same.

use super::{DEFAULT_PORT, Place, Source, Told, at_port, on_this_host, set_rendezvous};
use crate::Error;
use crate::settings::variables::{Variables, settings};

pub(super) fn place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    // Each alone has been used for other things.
    if env.get("RANK").is_none() || env.get("WORLD_SIZE").is_none() {
        return Ok(None);
    }
    let ranks: Told<u32> = env.told("WORLD_SIZE")?;
    let local_ranks = env.told_if_set("LOCAL_WORLD_SIZE")?;
    let is_one_host = local_ranks.as_ref().is_some_and(|local| local.value == ranks.value);
    Ok(Some(Place {
        source: Source::Torchrun,
        rank: env.told("RANK")?,
        ranks,
        local_rank: env.told_if_set("LOCAL_RANK")?,
        local_ranks,
        rendezvous: set_rendezvous(env).map_or_else(|| rendezvous(env, is_one_host), Ok)?,
        job: env.text("TORCHELASTIC_RUN_ID"),
    }))
}

/// torchrun's agent may itself listen on MASTER_PORT, with a protocol of its own. Then ranks of one host meet by a file
/// that is named by that port, which nobody else has; those of several at the next port, which others may have.
fn rendezvous(env: &Variables<'_>, is_one_host: bool) -> Result<Told<String>, Error> {
    let host = env.required("MASTER_ADDR", "the host of rank 0")?;
    let port = env.port("MASTER_PORT")?.unwrap_or(DEFAULT_PORT);
    let is_taken = env.get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True");
    if is_taken && is_one_host {
        let run = env.get("TORCHELASTIC_RUN_ID").unwrap_or_default();
        let value = format!("torchrun {run} {port}");
        return Ok(on_this_host(&Told { value, variable: "MASTER_PORT" }));
    }
    let port = port.checked_add(u16::from(is_taken)).ok_or_else(|| {
        settings(
            "MASTER_PORT=65535 leaves no port for the ranks, as torchrun's agent listens on it: \
             choose a lower one, or set RINGTREE_RENDEZVOUS",
        )
    })?;
    at_port(&host, port)
}
