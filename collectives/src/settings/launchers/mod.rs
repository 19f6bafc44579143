//! What launchers tell the ranks that they start, in variables of the environment: one file a
//! convention.

mod horovod;
mod host_list;
mod indexed_job;
mod kubeflow;
mod open_mpi;
mod pmi;
mod ringtree;
mod slurm;
#[cfg(test)]
mod tests;
mod tf_config;
mod torchrun;

use ringtree_transport::host_port::HostPort;

use super::Source;
use super::secrets::host_file;
use super::variables::{Variables, settings};
use crate::Error;

/// The port of the rendezvous where only its host is known: torchrun's default.
const DEFAULT_PORT: u16 = 29500;

/// A value, and the variable that gave it, if any did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told<T> {
    pub value: T,
    pub variable: &'static str,
}

/// What a rank was told of its place in the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub source: Source,
    pub rank: Told<u32>,
    pub ranks: Told<u32>,
    /// Its number among the ranks of its host.
    pub local_rank: Option<Told<u32>>,
    /// How many ranks its host has.
    pub local_ranks: Option<Told<u32>>,
    /// As in [`Settings::rendezvous`](super::Settings::rendezvous).
    pub rendezvous: Told<String>,
    /// What the launcher calls the job.
    pub job: Option<Told<String>>,
}

/// A convention: `None` where its variables are not there.
type Convention = fn(&Variables<'_>) -> Result<Option<Place>, Error>;

/// In the order in which they are looked for. A launcher may have been started by another one, whose
/// variables the ranks then inherit: a workload manager's come behind those of launchers that it
/// starts.
const CONVENTIONS: [Convention; 9] = [
    ringtree::place,
    torchrun::place,
    open_mpi::place,
    pmi::place,
    slurm::place,
    kubeflow::place,
    indexed_job::place,
    tf_config::place,
    horovod::place,
];

/// This rank's place. Where nobody told it any, it is alone.
pub(super) fn place(env: &Variables<'_>) -> Result<Place, Error> {
    if let Some(place) = told_place(env)? {
        return Ok(place);
    }
    // Half of a place is a mistake: everything would seem to work, with one rank.
    for (name, other) in [("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")] {
        if env.get(name).is_some() {
            return Err(settings(format!("{name} is set and {other} is not: set both, or none")));
        }
    }
    Ok(Place {
        source: Source::Alone,
        rank: Told { value: 0, variable: "" },
        ranks: Told { value: 1, variable: "" },
        local_rank: None,
        local_ranks: None,
        rendezvous: Told { value: "127.0.0.1:0".into(), variable: "" },
        job: None,
    })
}

/// The switches that this host is below, as in [`Settings::switches`](super::Settings::switches), whoever started the
/// ranks: other launchers leave a workload manager's variables as they are.
pub(super) fn switches(env: &Variables<'_>) -> Option<String> {
    slurm::switches(env)
}

/// What the first convention whose variables are there says.
pub(super) fn told_place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    for convention in CONVENTIONS {
        if let Some(place) = convention(env)? {
            place.check()?;
            return Ok(Some(place));
        }
    }
    Ok(None)
}

impl Place {
    /// Whether all ranks are known to be on one host.
    pub(super) fn is_on_one_host(&self) -> bool {
        self.local_ranks.as_ref().is_some_and(|local| local.value == self.ranks.value)
    }

    fn check(&self) -> Result<(), Error> {
        let below = |low: &Told<u32>, high: &Told<u32>| match low.value < high.value {
            true => Ok(()),
            false => Err(settings(format!(
                "{}={} must be below {}={}: ranks count from 0",
                low.variable, low.value, high.variable, high.value
            ))),
        };
        below(&self.rank, &self.ranks)?;
        let Some(local_ranks) = &self.local_ranks else { return Ok(()) };
        if local_ranks.value > self.ranks.value {
            return Err(settings(format!(
                "{} says that this host has {} ranks, but {}={}: unset what is left of another job",
                local_ranks.variable, local_ranks.value, self.ranks.variable, self.ranks.value
            )));
        }
        self.local_rank.as_ref().map_or(Ok(()), |local_rank| below(local_rank, local_ranks))
    }
}

/// Where `RINGTREE_RENDEZVOUS` says that ranks meet, which goes before what any launcher says.
fn set_rendezvous(env: &Variables<'_>) -> Option<Told<String>> {
    env.text("RINGTREE_RENDEZVOUS")
}

/// `MASTER_ADDR` and `MASTER_PORT`, if they are set.
fn master(env: &Variables<'_>) -> Result<Option<Told<String>>, Error> {
    let port = env.port("MASTER_PORT")?.unwrap_or(DEFAULT_PORT);
    env.text("MASTER_ADDR").map(|host| at_port(&host, port)).transpose()
}

/// `host:port` of a host that a variable names.
fn at_port(host: &Told<String>, port: u16) -> Result<Told<String>, Error> {
    let wrong = |error| settings(format!("{}: {error}", host.variable));
    let value = HostPort::from_host(&host.value).map_err(wrong)?.with_port(port).to_string();
    Ok(Told { value, variable: host.variable })
}

/// Where ranks of one host meet of which nobody said where: a file of the user's. `job` is what the
/// launcher calls the job.
fn on_this_host(job: &Told<String>) -> Told<String> {
    let path = host_file("", &job.value, "rendezvous");
    Told { value: format!("file:{}", path.display()), variable: job.variable }
}
