//! A step of Slurm, as srun starts it without a plugin for MPI.
//!
//! Only steps have `SLURM_STEP_NUM_TASKS`: the batch script itself has a rank, but is not started by
//! srun. A step of one task counts as a single process, for it may be an interactive shell.

use super::host_list::{counts, hosts};
use super::{Place, Source, Told, at_port, on_this_host, set_rendezvous};
use crate::Error;
use crate::settings::variables::{Variables, settings};

/// Rank 0 serves the others on one of these ports, by its job and step: below those that systems
/// give away.
const FIRST_PORT: u16 = 29500;
const PORTS: u32 = 3000;

/// Jobs that follow each other are so many ports apart, so that steps of theirs do not meet.
const PORTS_OF_JOB: u32 = 61;

pub(super) fn place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    let ranks = match env.told_if_set("SLURM_STEP_NUM_TASKS")? {
        Some(ranks) if ranks.value > 1 => ranks,
        _ => return Ok(None),
    };
    let local_ranks = local_ranks(env, &ranks)?;
    let number = |names: [&'static str; 2]| match env.told_if_set(names[0])? {
        None => env.told(names[1]),
        Some(told) => Ok(told),
    };
    let job = number(["SLURM_JOB_ID", "SLURM_JOBID"])?;
    let step = number(["SLURM_STEP_ID", "SLURM_STEPID"])?.value;
    let id = Told { value: format!("slurm-{}.{step}", job.value), variable: job.variable };
    let port = job.value.wrapping_mul(PORTS_OF_JOB).wrapping_add(step) % PORTS;
    let rendezvous = match set_rendezvous(env) {
        Some(set) => set,
        None if local_ranks.as_ref().is_some_and(|l| l.value == ranks.value) => on_this_host(&id),
        None => first_host(env, FIRST_PORT + port as u16)?,
    };
    Ok(Some(Place {
        source: Source::Slurm,
        rank: env.told("SLURM_PROCID")?,
        ranks,
        local_rank: env.told_if_set("SLURM_LOCALID")?,
        local_ranks,
        rendezvous,
        job: Some(id),
    }))
}

/// With a topology plugin that knows them Slurm tells of each node the switches above it, and then its name:
/// `spine1.leaf3.node17`.
pub(super) fn switches(env: &Variables<'_>) -> Option<String> {
    let (switches, _node) = env.get("SLURM_TOPOLOGY_ADDR")?.rsplit_once('.')?;
    Some(switches.to_owned())
}

/// Tasks of this node. The counts of all nodes must add up.
fn local_ranks(env: &Variables<'_>, ranks: &Told<u32>) -> Result<Option<Told<u32>>, Error> {
    let variable = "SLURM_STEP_TASKS_PER_NODE";
    let Some(text) = env.get(variable) else { return Ok(None) };
    let node = env.told("SLURM_NODEID")?;
    let wrong = |what: String| settings(format!("{variable}={text} {what}"));
    let counts = counts(text, ranks.value).map_err(wrong)?;
    let sum: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    if sum != u64::from(ranks.value) {
        let Told { value, variable } = ranks;
        return Err(wrong(format!("adds up to {sum}, but {variable}={value}: use srun's own")));
    }
    let local = counts.get(node.value as usize).copied();
    let local = local.ok_or_else(|| {
        wrong(format!("has {} nodes, but {}={}", counts.len(), node.variable, node.value))
    })?;
    Ok(Some(Told { value: local, variable }))
}

/// Rank 0 is on the first node of the step.
fn first_host(env: &Variables<'_>, port: u16) -> Result<Told<String>, Error> {
    for variable in ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"] {
        if let Some(text) = env.get(variable) {
            let wrong = |what: String| settings(format!("{variable}={text} {what}"));
            let first = hosts(text).map_err(wrong)?.swap_remove(0);
            return at_port(&Told { value: first, variable }, port);
        }
    }
    at_port(&env.required("SLURM_LAUNCH_NODE_IPADDR", "the host of rank 0")?, port)
}
