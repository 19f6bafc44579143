//! What goes wrong between a rank and its launcher.

/// Why the launcher's PMI did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PmiError {
    /// The descriptor that the launcher named cannot be used.
    #[error(
        "PMI_FD={descriptor} cannot be used: {reason}; a program between the launcher and this one \
         may have closed it: set RINGTREE_RENDEZVOUS to rank 0's host and a free port there"
    )]
    Descriptor {
        /// Its number.
        descriptor: u32,
        /// What the system said.
        reason: String,
    },
    /// No answer came by the deadline.
    #[error("the launcher did not answer \"{request}\" over PMI in time")]
    TimedOut {
        /// What was asked.
        request: &'static str,
    },
    /// Not all ranks came by the deadline.
    #[error(
        "not all ranks joined over the launcher's PMI in time: each of them must make a communicator"
    )]
    RanksMissing,
    /// The connection broke.
    #[error(
        "the launcher does not answer \"{request}\" over PMI ({reason}); if this process uses MPI \
         too, set RINGTREE_RENDEZVOUS to rank 0's host and a free port there"
    )]
    Lost {
        /// What was asked.
        request: &'static str,
        /// How it broke.
        reason: String,
    },
    /// The launcher said no.
    #[error("the launcher refused \"{request}\" over PMI: {answer}")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// What it said.
        answer: String,
    },
    /// The launcher said something that is no answer.
    #[error("the launcher answered \"{request}\" over PMI with \"{answer}\"")]
    Unexpected {
        /// What was asked.
        request: &'static str,
        /// What came.
        answer: String,
    },
}
