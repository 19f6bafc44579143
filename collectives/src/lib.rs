//! Collective communication between processes: all-reduce and its kin over shared memory, RDMA and TCP.
//!
//! ```no_run
//! use ringtree::{Communicator, Op};
//!
//! # fn main() -> Result<(), ringtree::Error> {
//! // Started by `ringtree run --ranks 4 -- ...`, mpirun, srun, torchrun and others.
//! let comm = Communicator::from_env()?;
//! let mut gradients = vec![comm.rank() as f32; 1_000_000];
//! comm.all_reduce(&mut gradients, Op::Sum)?;
//! # Ok(())
//! # }
//! ```
//!
//! Every rank gets the same bits, every time. A rank that dies, stops or calls something else gives
//! all others an [`Error`] that names it, and no call waits for ever.
#![deny(missing_docs)]

mod bootstrap;
mod calls;
mod communicator;
pub mod control;
mod costs;
pub mod device;
mod digest;
mod driver;
mod engine;
mod error;
#[doc(hidden)]
pub mod executor;
mod host_order;
mod hosting;
mod meeting;
mod membership;
mod memory;
mod network;
mod prepared;
mod progress;
#[doc(hidden)]
pub mod record;
#[doc(hidden)]
pub mod reduce;
mod regroup;
mod rendezvous;
#[doc(hidden)]
pub mod selection;
mod settings;
mod together;
mod topology;
pub mod tuning;
mod types;

pub use calls::{Counted, Group, Prepared, PreparedInto};
pub use communicator::Communicator;
pub use costs::{Costs, LinkCosts};
pub use error::Error;
pub use meeting::Meeting;
pub use membership::Regrouped;
pub use memory::{Memory, Registered, Registrable, RegistrableMut};
pub use network::NetworkFigures;
pub use progress::{Pending, Ran};
pub use regroup::RegroupError;
pub use ringtree_plan::{Algorithm, Collective};
pub use ringtree_transport::TransportKind;
pub use ringtree_transport::endpoint::Transports;
pub use ringtree_transport::host_port::HostPort;
pub use ringtree_transport::ports::PortRange;
pub use ringtree_transport::rdma::{Counters as RdmaCounters, Mtu, RdmaConfig};
pub use ringtree_transport::secure::{Job, Secret};
pub use ringtree_transport::shm::Attach;
pub use selection::{Candidate, Choice, Explanation, Shape};
pub use settings::{MAX_SOCKETS, Origins, Setting, Settings, Source};
pub use topology::{RankOrder, TopologySource};
pub use tuning::{Tuned, Tuning, TuningCache};
pub use types::{DataType, Element, F8E4M3, F8E5M2, Factor, Op, bf16, f16};
