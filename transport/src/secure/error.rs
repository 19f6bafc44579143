//! What goes wrong on an authenticated connection.

/// Why a connection was not made, or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecureError {
    /// The other side says that it could not verify this side. Only a hint: anyone may say so.
    #[error(
        "{peer} refused: wrong secret, wrong job or wire version: check RINGTREE_SECRET and \
         RINGTREE_JOB on both sides"
    )]
    Refused {
        /// The other side's address.
        peer: String,
    },
    /// The other side does not know the secret, or belongs to another job.
    #[error(
        "{peer} does not prove this job's secret: wrong secret, wrong job or wire version: check \
         RINGTREE_SECRET and RINGTREE_JOB on both sides"
    )]
    Unproven {
        /// The other side's address.
        peer: String,
    },
    /// The other side speaks another version of the protocol.
    #[error(
        "{peer} speaks wire version {theirs}, this side {ours}: run the same release of Ringtree \
         everywhere"
    )]
    Version {
        /// The other side's address.
        peer: String,
        /// This side's version.
        ours: u16,
        /// The other side's version.
        theirs: u16,
    },
    /// The other side speaks some other protocol.
    #[error("{peer} does not speak Ringtree's protocol: is the address right?")]
    NotRingtree {
        /// The other side's address.
        peer: String,
    },
    /// The other side knows the secret and refuses the connection all the same.
    #[error("{peer} refused: {reason}")]
    Denied {
        /// The other side's address.
        peer: String,
        /// Its reason.
        reason: String,
    },
    /// The other side closed the connection.
    #[error("{peer} closed the connection")]
    Closed {
        /// The other side's address.
        peer: String,
    },
    /// The deadline passed. Receiving can be tried again, sending cannot.
    #[error("{peer} did not answer in time")]
    TimedOut {
        /// The other side's address.
        peer: String,
    },
    /// The caller asked to stop waiting.
    #[error("stopped waiting for {peer}")]
    Stopped {
        /// The other side's address.
        peer: String,
    },
    /// A message that is longer than this protocol carries.
    #[error("a message of {len_bytes} bytes, and at most {limit_bytes} are allowed")]
    TooLong {
        /// Its length.
        len_bytes: usize,
        /// What is allowed.
        limit_bytes: usize,
    },
    /// The other side, or someone between, sent what no correct peer sends.
    #[error("{peer} broke the protocol: {reason}")]
    Corrupt {
        /// The other side's address.
        peer: String,
        /// What was wrong.
        reason: String,
    },
    /// The operating system reported an error.
    #[error("the connection to {peer} failed: {reason}")]
    Failed {
        /// The other side's address.
        peer: String,
        /// What the system said.
        reason: String,
    },
    /// Keys could not be made.
    #[error("no keys could be made: {reason}")]
    Cryptography {
        /// What failed.
        reason: String,
    },
}

impl SecureError {
    /// Whether trying again can help: the other side may come up or recover. A wrong secret, job
    /// or version stays wrong.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            SecureError::Closed { .. } | SecureError::TimedOut { .. } | SecureError::Failed { .. }
        )
    }
}
