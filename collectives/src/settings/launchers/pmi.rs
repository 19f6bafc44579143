//! PMI, the process-management interface of MPICH, Intel MPI and `srun --mpi=pmi2`: ranks exchange
//! addresses over the descriptor in `PMI_FD`.

use ringtree_transport::rendezvous::pmi::server_process;

use super::{Place, Source, Told, master, set_rendezvous};
use crate::Error;
use crate::settings::variables::{Variables, settings};

pub(super) fn place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    if env.get("PMI_RANK").is_none() && env.get("PMI_SIZE").is_none() {
        return Ok(None);
    }
    let (rank, ranks) = (env.told("PMI_RANK")?, env.told("PMI_SIZE")?);
    let local_ranks = local_ranks(env, ranks.value)?;
    let local_rank = match env.told_if_set("MPI_LOCALRANKID")? {
        None if env.get("MPI_LOCALNRANKS").is_none() => env.told_if_set("SLURM_LOCALID")?,
        told => told,
    };
    let is_on_one_host = local_ranks.as_ref().is_some_and(|local| local.value == ranks.value);
    let descriptor = env.told_if_set("PMI_FD")?;
    let rendezvous = match (set_rendezvous(env), &descriptor) {
        (Some(set), _) => Some(set),
        (None, Some(Told { value, variable })) => {
            Some(Told { value: format!("pmi:{value}"), variable })
        }
        (None, None) => master(env)?,
    };
    let missing = || {
        settings(
            "PMI_RANK is set and PMI_FD is not, over which ranks would tell each other where they \
             are: set RINGTREE_RENDEZVOUS to rank 0's host and a free port there",
        )
    };
    Ok(Some(Place {
        source: Source::Pmi,
        rank,
        ranks,
        local_rank,
        local_ranks,
        rendezvous: rendezvous.ok_or_else(missing)?,
        job: descriptor.filter(|_| is_on_one_host).and_then(|descriptor| job_of_host(&descriptor)),
    }))
}

/// Slurm's variables count where the launcher has none of its own: they may be those of the step that
/// the launcher was started by.
fn local_ranks(env: &Variables<'_>, ranks: u32) -> Result<Option<Told<u32>>, Error> {
    let told = env.told_if_set("MPI_LOCALNRANKS")?;
    let slurm = "SLURM_STEP_NUM_NODES";
    let is_one_node = || env.get(slurm).is_some_and(|nodes| nodes == "1");
    Ok(told.or_else(|| is_one_node().then_some(Told { value: ranks, variable: slurm })))
}

/// A name that no other job on this host has: that of the process which serves the descriptor.
fn job_of_host(descriptor: &Told<u32>) -> Option<Told<String>> {
    let process = server_process(descriptor.value)?;
    Some(Told { value: format!("pmi-{process}"), variable: descriptor.variable })
}
