//! Kubeflow's trainer tells torchrun what is in `PET_*`. A program that is started in torchrun's
//! place, one process a pod, finds the same.

use super::{DEFAULT_PORT, Place, Source, at_port, set_rendezvous};
use crate::Error;
use crate::settings::variables::{Variables, settings};

pub(super) fn place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    if env.get("PET_NODE_RANK").is_none() && env.get("PET_NNODES").is_none() {
        return Ok(None);
    }
    let one_process = [None, Some("auto"), Some("1")];
    let per_node = env.get("PET_NPROC_PER_NODE");
    if let (Some(several), false) = (per_node, one_process.contains(&per_node)) {
        return Err(settings(format!(
            "PET_NPROC_PER_NODE={several}: this process is alone in its pod; start the program with \
             torchrun, or with `ringtree run --nodes $PET_NNODES --node-rank $PET_NODE_RANK ...`, \
             or set it to 1"
        )));
    }
    if let Some(elastic) = env.get("PET_NNODES").filter(|nodes| nodes.contains(':')) {
        return Err(settings(format!(
            "PET_NNODES={elastic} leaves open how many nodes there are: give one number"
        )));
    }
    let rendezvous = match set_rendezvous(env) {
        Some(set) => set,
        None => {
            let host = env.required("PET_MASTER_ADDR", "the host of node 0")?;
            let port = env.port("PET_MASTER_PORT")?.unwrap_or(DEFAULT_PORT);
            at_port(&host, port)?
        }
    };
    Ok(Some(Place {
        source: Source::Kubeflow,
        rank: env.told("PET_NODE_RANK")?,
        ranks: env.told("PET_NNODES")?,
        local_rank: None,
        local_ranks: None,
        rendezvous,
        job: env.text("PET_RDZV_ID"),
    }))
}
