//! Ringtree's own variables, as `ringtree run` sets them.

use super::{Place, Source, set_rendezvous};
use crate::Error;
use crate::settings::variables::{Variables, settings};

pub(super) fn place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    if env.get("RINGTREE_RANK").is_none() && env.get("RINGTREE_RANKS").is_none() {
        return Ok(None);
    }
    let missing = || {
        settings(
            "RINGTREE_RENDEZVOUS is not set: it must give the host:port where rank 0 can be met, or \
             a file that all ranks share (file:/path)",
        )
    };
    Ok(Some(Place {
        source: Source::Ringtree,
        rank: env.told("RINGTREE_RANK")?,
        ranks: env.told("RINGTREE_RANKS")?,
        is_on_one_host: false,
        rendezvous: set_rendezvous(env).ok_or_else(missing)?,
        job: None,
    }))
}
