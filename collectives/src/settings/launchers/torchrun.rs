//! torchrun: `RANK`, `WORLD_SIZE`, and where rank 0 is in `MASTER_ADDR` and `MASTER_PORT`.

use ringtree_transport::host_port::HostPort;

use super::{DEFAULT_PORT, Place, Source, Told, set_rendezvous};
use crate::Error;
use crate::settings::variables::{Variables, settings};

pub(super) fn place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    if env.get("RANK").is_none() && env.get("WORLD_SIZE").is_none() {
        return Ok(None);
    }
    let ranks: Told<u32> = env.told("WORLD_SIZE")?;
    let local_ranks = env.get("LOCAL_WORLD_SIZE");
    let job = env.get("TORCHELASTIC_RUN_ID");
    Ok(Some(Place {
        source: Source::Torchrun,
        rank: env.told("RANK")?,
        is_on_one_host: local_ranks.is_some_and(|n| n == ranks.value.to_string()),
        ranks,
        rendezvous: set_rendezvous(env).map_or_else(|| rendezvous(env), Ok)?,
        job: job.map(|name| Told { value: name.into(), variable: "TORCHELASTIC_RUN_ID" }),
    }))
}

/// torchrun's agent may itself listen on MASTER_PORT, with a protocol of its own: then the next
/// port is ours.
fn rendezvous(env: &Variables<'_>) -> Result<Told<String>, Error> {
    let host = env.required("MASTER_ADDR", "the host of rank 0")?;
    let host =
        HostPort::from_host(&host).map_err(|error| settings(format!("MASTER_ADDR: {error}")))?;
    let port = env.get("MASTER_PORT");
    let port = port.map_or(Ok(DEFAULT_PORT), |port| {
        port.parse().map_err(|_| settings(format!("MASTER_PORT={port} is not a port")))
    })?;
    let taken = env.get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True");
    let port = port.checked_add(u16::from(taken)).ok_or_else(|| {
        settings(
            "MASTER_PORT=65535 leaves no port for the ranks, as torchrun's agent listens on it: \
             choose a lower one, or set RINGTREE_RENDEZVOUS",
        )
    })?;
    Ok(Told { value: host.with_port(port).to_string(), variable: "MASTER_ADDR" })
}
