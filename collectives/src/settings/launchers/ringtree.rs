//! Ringtree's own variables, as `ringtree run` sets them.

use super::{Place, Source, set_rendezvous};
use crate::Error;
use crate::settings::variables::{Variables, settings};

pub(super) fn place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    // An indexed job numbers its pods, and cannot say how many there are.
    let is_indexed_job = env.get("JOB_COMPLETION_INDEX").is_some();
    let ranks_alone = env.get("RINGTREE_RANKS").is_some() && !is_indexed_job;
    if env.get("RINGTREE_RANK").is_none() && !ranks_alone {
        return Ok(None);
    }
    let rank = env.told("RINGTREE_RANK")?;
    let ranks = env.told("RINGTREE_RANKS")?;
    let missing = || {
        settings(
            "RINGTREE_RENDEZVOUS is not set: it must give the host:port where rank 0 can be met, or \
             a file that all ranks share (file:/path)",
        )
    };
    Ok(Some(Place {
        source: Source::Ringtree,
        rank,
        ranks,
        local_rank: env.told_if_set("RINGTREE_LOCAL_RANK")?,
        // As torchrun calls it: who starts the ranks of one host by hand can say so.
        local_ranks: env.told_if_set("LOCAL_WORLD_SIZE")?,
        rendezvous: set_rendezvous(env).ok_or_else(missing)?,
        job: None,
    }))
}
