//! Open MPI's mpirun. It tells nobody's address: ranks of one host meet by a file, those of several
//! hosts where `RINGTREE_RENDEZVOUS` or `MASTER_ADDR` say.

use super::{Place, Source, master, on_this_host, set_rendezvous};
use crate::Error;
use crate::settings::variables::{Variables, settings};

pub(super) fn place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    let (rank, ranks) = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE");
    if env.get(rank).is_none() && env.get(ranks).is_none() {
        return Ok(None);
    }
    let (rank, ranks) = (env.told(rank)?, env.told(ranks)?);
    let local_ranks = env.told_if_set("OMPI_COMM_WORLD_LOCAL_SIZE")?;
    let job = env.text("PMIX_NAMESPACE");
    let rendezvous = match (set_rendezvous(env), &local_ranks, &job) {
        (Some(set), _, _) => Some(set),
        (None, Some(local), Some(job)) if local.value == ranks.value => Some(on_this_host(job)),
        _ => master(env)?,
    };
    let missing = || {
        settings(
            "Open MPI does not say where rank 0 is: give its host and a free port there, as in \
             `mpirun -x RINGTREE_RENDEZVOUS=HOST:29500 ...`",
        )
    };
    Ok(Some(Place {
        source: Source::OpenMpi,
        rank,
        ranks,
        local_rank: env.told_if_set("OMPI_COMM_WORLD_LOCAL_RANK")?,
        local_ranks,
        rendezvous: rendezvous.ok_or_else(missing)?,
        job,
    }))
}
