//! Links between ranks, and how ranks find each other.
//!
//! A [`Link`] is a connection to one peer, made by one transport: shared memory ([`shm`]), TCP
//! ([`tcp`]), RDMA ([`rdma`]) or simulation ([`sim`]). It moves messages in slices and knows nothing of collectives
//! or reduction. An [`endpoint::Endpoint`] makes links; [`rendezvous`] is where the ranks of a job
//! exchange addresses; every connection proves the job's secret first ([`secure`]).
#![deny(missing_docs)]

mod checksum;
mod credit;
pub mod cuda;
pub mod endpoint;
mod fields;
pub mod host_port;
pub mod interfaces;
pub mod limits;
mod link;
pub mod memory;
pub mod pages;
pub mod ports;
pub mod process;
pub mod rdma;
pub mod rendezvous;
pub mod secure;
pub mod shm;
pub mod sim;
pub mod tcp;
pub mod wait;

pub use checksum::Damage;
pub use link::{
    Arrival, CHANNELS, Channel, Home, LEAST_IN_PLACE_BYTES, Link, LinkError, MAX_LANES,
    POINT_TO_POINT, Slot, SlotMemory, Tag, TransportKind,
};
