//! What launchers tell the ranks that they start, in variables of the environment: one file a
//! convention.

mod ringtree;
mod torchrun;

use super::Source;
use super::variables::{Variables, settings};
use crate::Error;

/// The port of the rendezvous where only its host is known: torchrun's default.
const DEFAULT_PORT: u16 = 29500;

/// A value, and the variable that gave it.
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
    /// Whether all ranks are known to be on one host.
    pub is_on_one_host: bool,
    /// `host:port`.
    pub rendezvous: Told<String>,
    /// A name that no other job has.
    pub job: Option<Told<String>>,
}

/// A convention: `None` where its variables are not there.
type Convention = fn(&Variables<'_>) -> Result<Option<Place>, Error>;

/// In the order in which they are looked for.
const CONVENTIONS: [Convention; 2] = [ringtree::place, torchrun::place];

/// What the first convention whose variables are there says.
pub(super) fn place(env: &Variables<'_>) -> Result<Place, Error> {
    for convention in CONVENTIONS {
        if let Some(place) = convention(env)? {
            let (rank, ranks) = (&place.rank, &place.ranks);
            if rank.value >= ranks.value {
                return Err(settings(format!(
                    "{}={} must be below {}={}: ranks count from 0",
                    rank.variable, rank.value, ranks.variable, ranks.value
                )));
            }
            return Ok(place);
        }
    }
    Err(settings(
        "neither RINGTREE_RANK nor RANK is set: start the program with `ringtree run` or \
         torchrun, or set them (see the README's settings)",
    ))
}

/// Where `RINGTREE_RENDEZVOUS` says that ranks meet, which goes before what any launcher says.
fn set_rendezvous(env: &Variables<'_>) -> Option<Told<String>> {
    let variable = "RINGTREE_RENDEZVOUS";
    env.get(variable).map(|address| Told { value: address.to_string(), variable })
}
