//! Why a link was not made.

use std::fmt;

use crate::LinkError;
use crate::interfaces::InterfaceError;
use crate::rdma::RdmaError;
use crate::secure::SecureError;

/// A rank and where it runs, as its address says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The rank.
    pub rank: u32,
    /// Name of its host.
    pub host: String,
    /// Its process, as its host counts.
    pub pid: u32,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} on host {} (process {})", self.rank, self.host, self.pid)
    }
}

/// Why an endpoint or a link was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// No address to listen on.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// RDMA was asked for, and this rank has none.
    #[error("{0}. Or use another transport: --transport auto (RINGTREE_TRANSPORT)")]
    Rdma(RdmaError),
    /// Listening failed.
    #[error("cannot listen for other ranks on {address}: {reason}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// Not as many addresses are told as are listened on.
    #[error(
        "RINGTREE_ADVERTISE names {advertised} addresses, and this rank listens on {listened}: give \
         one for each part of RINGTREE_INTERFACE, separated by commas"
    )]
    Advertised {
        /// How many were to be told.
        advertised: usize,
        /// How many there are.
        listened: usize,
    },
    /// The address is not one that an endpoint of this version made for another rank.
    #[error("rank {peer} cannot be connected to: {reason}")]
    Address {
        /// The peer.
        peer: u32,
        /// What is wrong.
        reason: String,
    },
    /// Shared memory was asked for, and the peer is not on this host.
    #[error(
        "{peer} is not on this host{doubt}: shm was asked for; use auto or tcp \
         (RINGTREE_TRANSPORT, --transport)"
    )]
    NotOnThisHost {
        /// The peer.
        peer: Peer,
        /// What else it may be, where the host's name is the same.
        doubt: &'static str,
    },
    /// One side allows only transports that the other does not have.
    #[error(
        "{peer} does not use {ours}: give all ranks the same RINGTREE_TRANSPORT or --transport"
    )]
    NoCommonTransport {
        /// The peer.
        peer: Peer,
        /// What this side allows.
        ours: super::Transports,
    },
    /// One has InfiniBand and the other Ethernet.
    #[error(
        "{peer} has RDMA of another kind: InfiniBand on one side, Ethernet on the other. Name ports of one \
         kind (RINGTREE_RDMA_DEVICES), or use rdma,tcp (RINGTREE_TRANSPORT, --transport)"
    )]
    OtherRdma {
        /// The peer.
        peer: Peer,
    },
    /// The peer's address does not answer.
    #[error("{peer} does not answer at {address}: {reason}{hint}")]
    Unreachable {
        /// The peer.
        peer: Peer,
        /// The address.
        address: String,
        /// What the system said.
        reason: String,
        /// What may help.
        hint: &'static str,
    },
    /// The peer refused the connection or did not prove itself.
    #[error("{peer}: {source}")]
    Refused {
        /// The peer.
        peer: Peer,
        /// Why.
        source: SecureError,
    },
    /// The connection was made, and no link of it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The peer did not come by the deadline.
    #[error(
        "{peer} did not connect in time: it is late, or something blocks its way to {listening}"
    )]
    TimedOut {
        /// The peer.
        peer: Peer,
        /// Where this side listens.
        listening: String,
    },
    /// The caller asked to stop waiting.
    #[error("stopped waiting for {peer}")]
    Stopped {
        /// The peer.
        peer: Peer,
    },
}
