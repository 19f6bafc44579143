//! horovodrun. What it calls a rendezvous is its own server, which speaks another protocol: it only
//! names the job.

use super::{Place, Source, Told, master, on_this_host, set_rendezvous};
use crate::Error;
use crate::settings::variables::{Variables, settings};

pub(super) fn place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    if env.get("HOROVOD_RANK").is_none() && env.get("HOROVOD_SIZE").is_none() {
        return Ok(None);
    }
    let ranks = env.told("HOROVOD_SIZE")?;
    let local_ranks = env.told_if_set("HOROVOD_LOCAL_SIZE")?;
    let job = job(env);
    let rendezvous = match (set_rendezvous(env), &local_ranks, &job) {
        (Some(set), _, _) => Some(set),
        (None, Some(local), Some(job)) if local.value == ranks.value => Some(on_this_host(job)),
        _ => master(env)?,
    };
    let missing = || {
        settings(
            "Horovod does not say where rank 0 is: set RINGTREE_RENDEZVOUS to its host and a free \
             port there, the same on all hosts",
        )
    };
    Ok(Some(Place {
        source: Source::Horovod,
        rank: env.told("HOROVOD_RANK")?,
        ranks,
        local_rank: env.told_if_set("HOROVOD_LOCAL_RANK")?,
        local_ranks,
        rendezvous: rendezvous.ok_or_else(missing)?,
        job,
    }))
}

fn job(env: &Variables<'_>) -> Option<Told<String>> {
    let port = env.text("HOROVOD_GLOO_RENDEZVOUS_PORT")?;
    let host = env.get("HOROVOD_GLOO_RENDEZVOUS_ADDR")?;
    Some(Told { value: format!("horovod-{host}-{}", port.value), variable: port.variable })
}
