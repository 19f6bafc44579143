//! What can go wrong, and whom it names.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ringtree_transport::LinkError;
use ringtree_transport::cuda::CudaError;
use ringtree_transport::endpoint::EndpointError;
use ringtree_transport::limits::described;
use ringtree_transport::rendezvous::StoreError;

use crate::control::{ControlError, Operation, Verdict};
use crate::regroup::RegroupError;

/// Why a call failed. After anything but [`Error::Argument`], and [`Error::Memory`] from
/// [`Communicator::alloc`](crate::Communicator::alloc), the communicator is over: every later call
/// returns the same error, and it can only be dropped.
///
/// [`Debug`](fmt::Debug) shows the same text as [`Display`](fmt::Display): that is what a `main` that
/// returns the error prints.
#[derive(Clone, thiserror::Error)]
pub enum Error {
    /// The environment or the settings are missing, malformed or contradict each other.
    #[error("{0}")]
    Settings(String),
    /// The call makes no sense; nothing was sent, and the communicator goes on.
    #[error("{0}")]
    Argument(String),
    /// The ranks did not find each other.
    #[error("rendezvous: {0}")]
    Rendezvous(Arc<StoreError>),
    /// The control connection could not be made.
    #[error("control: {0}")]
    Control(Arc<ControlError>),
    /// A rank could not be reached.
    #[error("{0}")]
    Endpoint(Arc<EndpointError>),
    /// Memory or descriptors have run out.
    #[error("memory: {}", described(.0))]
    Memory(Arc<io::Error>),
    /// A GPU failed, or there is none.
    #[error("{0}")]
    Device(Arc<CudaError>),
    /// A panic ended an operation half-way, in this library or in a buffer's own code.
    #[error("an operation panicked")]
    Panicked,
    /// All survivors got this verdict: who died, stopped, came late, left or called something
    /// else.
    #[error("{0}")]
    Verdict(Arc<Verdict>),
    /// The members that are left do not go on, or not with this process.
    #[error("{0}")]
    Regroup(Arc<RegroupError>),
    /// [`Communicator::shrink`](crate::Communicator::shrink) or [`Communicator::admit`](crate::Communicator::admit) has put
    /// another communicator in the place of this one.
    #[error("this communicator is over: use the one that `shrink` or `admit` returned")]
    Replaced,
    /// A link failed and no verdict came that explains it.
    #[error("{operation}: {error}")]
    Link {
        /// What was running.
        operation: Operation,
        /// What the link said.
        error: LinkError,
    },
    /// Time without progress ran out and no verdict came that explains it: the control service
    /// cannot be reached, or it would have decided.
    #[error(
        "{operation}: no progress for {timeout:?}, waiting for rank(s) {waiting_for:?}, and no \
         word from the control service at {control_address}; see whether the network to it is up"
    )]
    Timeout {
        /// What was running.
        operation: Operation,
        /// Who did not move.
        waiting_for: Vec<u32>,
        /// The limit.
        timeout: Duration,
        /// Where the control service is, `host:port`.
        control_address: String,
    },
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// The verdict, where there is one.
    pub fn verdict(&self) -> Option<&Verdict> {
        match self {
            Error::Verdict(verdict) => Some(verdict),
            _ => None,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        Error::Rendezvous(Arc::new(error))
    }
}

impl From<ControlError> for Error {
    fn from(error: ControlError) -> Error {
        Error::Control(Arc::new(error))
    }
}

impl From<EndpointError> for Error {
    fn from(error: EndpointError) -> Error {
        Error::Endpoint(Arc::new(error))
    }
}

impl From<CudaError> for Error {
    fn from(error: CudaError) -> Error {
        Error::Device(Arc::new(error))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Memory(Arc::new(error))
    }
}
