//! What goes wrong with the store.

use std::io::ErrorKind;

use super::pmi::PmiError;
use crate::interfaces::InterfaceError;
use crate::secure::SecureError;

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The address cannot be listened on.
    #[error("cannot listen for the ranks on {address}: {reason}")]
    Listen {
        /// Host and port.
        address: String,
        /// What kind of failure it is.
        kind: ErrorKind,
        /// What the system said.
        reason: String,
    },
    /// No address to listen on.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// No store was found by the deadline.
    #[error(
        "no store answered at {address} ({reason}): is rank 0 running there, and is \
         RINGTREE_RENDEZVOUS right?"
    )]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the last attempt met.
        reason: String,
    },
    /// No store was found through a file by the deadline.
    #[error(
        "no store was found through the file {path} ({reason}): does rank 0 run, and are \
         RINGTREE_RENDEZVOUS, RINGTREE_JOB and the secret the same for all ranks?"
    )]
    NotFound {
        /// The file.
        path: String,
        /// What the last attempt met.
        reason: String,
    },
    /// The file that tells where the store is cannot be written.
    #[error("cannot write the rendezvous file {path}: {reason}")]
    Notice {
        /// The file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// Whoever listens there refuses this rank, or does not prove itself.
    #[error("cannot join the job at {address}: {source}")]
    Refused {
        /// Host and port.
        address: String,
        /// Why.
        source: SecureError,
    },
    /// The connection to the store was lost.
    #[error("lost the store at {address}: {source}")]
    Lost {
        /// Host and port.
        address: String,
        /// How.
        source: SecureError,
    },
    /// An earlier request lost the connection to the store.
    #[error("the connection to the store at {address} was lost before")]
    Disconnected {
        /// Host and port.
        address: String,
    },
    /// The store does not run any more.
    #[error("the store has stopped")]
    Stopped,
    /// Nobody set the key by the deadline.
    #[error("nobody set \"{key}\" in time")]
    TimedOut {
        /// The key.
        key: String,
    },
    /// Some ranks did not come by the deadline.
    #[error("{} of {of} did not come to \"{prefix}\" in time", RankList(ranks))]
    Missing {
        /// Which gather.
        prefix: String,
        /// The ranks that did not come, in ascending order.
        ranks: Vec<u32>,
        /// How many were to come.
        of: u32,
    },
    /// Some ranks of a gather will never come.
    #[error("somebody will not come to \"{prefix}\"")]
    Abandoned {
        /// Which gather.
        prefix: String,
    },
    /// Two processes say that they are the same rank.
    #[error(
        "rank {rank} is claimed twice in \"{prefix}\": give every process its own rank \
         (RINGTREE_RANK)"
    )]
    Claimed {
        /// Which gather.
        prefix: String,
        /// The rank.
        rank: u32,
    },
    /// The ranks do not agree how many they are.
    #[error(
        "this rank says that there are {ranks} ranks in \"{prefix}\", others say {others}: \
         RINGTREE_RANKS must be the same everywhere"
    )]
    RanksDiffer {
        /// Which gather.
        prefix: String,
        /// What this rank says.
        ranks: u32,
        /// What the first rank said.
        others: u32,
    },
    /// A key that [`Store::set`](super::Store::set) gave a value is no counter.
    #[error("\"{key}\" holds a value, not a counter")]
    NotCounter {
        /// The key.
        key: String,
    },
    /// The launcher did not tell where the store is.
    #[error(transparent)]
    Pmi(#[from] PmiError),
    /// A request that no store can fulfil.
    #[error("the store cannot do this: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
}

/// Ranks in ascending order, as people write them: `ranks 1, 3-5 and 9`.
struct RankList<'a>(&'a [u32]);

impl std::fmt::Display for RankList<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let runs = self.0.chunk_by(|a, b| a.checked_add(1) == Some(*b));
        let mut runs = runs.map(|run| match run {
            [first, .., last] => format!("{first}-{last}"),
            _ => run[0].to_string(),
        });
        let last = runs.next_back().unwrap_or_default();
        let others = runs.collect::<Vec<_>>().join(", ");
        let noun = if self.0.len() == 1 { "rank" } else { "ranks" };
        match others.is_empty() {
            true => write!(f, "{noun} {last}"),
            false => write!(f, "{noun} {others} and {last}"),
        }
    }
}
