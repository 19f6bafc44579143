//! Links over RDMA: InfiniBand and RoCE, through libibverbs, which is opened at run time and may be absent.
//!
//! A link has one or several reliable connected queue pairs, over one or several ports of each side (its
//! *rails*), and a connection over TCP that has proved the job's secret: the *control connection*, over
//! which the two ends tell each other what the queue pairs and keys are, and whose end tells at once that a
//! process has died.
//!
//! All that moves is written, with an immediate that tells the receiver of it (`frame.rs`):
//!
//! - a **slice** goes into one of the receiver's slots, behind a header; from registered memory straight
//!   out of it, from other memory through a slot of the sender's own (`sending.rs`). The receiver reduces it
//!   from the slot (`receiving.rs`). A slice leaves only against a credit (`transport/src/credit.rs`).
//! - a **direct write** goes from the sender's memory to where the receiver has offered room for it, in
//!   memory that it has registered: nothing is copied on either side.
//! - a **line** is a header alone: an offer, or credits where no slice takes them along.
//!
//! Each queue pair delivers in order, and what both sides know of it is one number: how many writes have
//! told of themselves. When one fails and others are left, that number says what to send again over them
//! (`failover.rs`).
//!
//! Layouts, call order and completion semantics: InfiniBand Architecture Specification 1.4, volume 1,
//! chapters 9 to 11; RoCE v2: its annex A17.

mod arena;
mod control;
mod device;
mod error;
mod establish;
mod failover;
#[allow(missing_docs)]
mod ffi;
mod frame;
mod link;
mod memory;
mod queue;
mod queue_pair;
mod rails;
mod receiving;
mod requests;
mod send_channel;
mod sending;
mod survey;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

pub use device::locked_memory_limit;
pub use error::RdmaError;
pub(crate) use establish::{Pairing, RailAddress};
pub use link::{Counters, RdmaLink};
pub(crate) use memory::Regions;
pub(crate) use rails::MAX_RAILS;
pub use rails::Rail;
use rails::mtu_bytes;
pub use survey::{Finding, PortFinding, survey};

/// Payload bytes of one slice at most. At 400 Gbit/s it takes 1.3 us, so that a few cover the way there and
/// back, and all slots of a link are 2 MiB.
pub const SLICE_BYTES: usize = 64 << 10;

/// Queue pairs of a link at most.
pub(crate) const MAX_QUEUES: usize = 16;

/// How RDMA is used. The defaults fit most fabrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaConfig {
    /// The file of libibverbs; `None`: the one that the system finds, or that the process has opened before.
    pub library: Option<PathBuf>,
    /// Devices and ports, as in `mlx5_0,mlx5_1:2`, the first of one rank with the first of the other and so
    /// on, at most 8; `none`: no RDMA; `None`: all ports that are up and as fast as the fastest. Those that are
    /// down when a communicator is made are left out.
    pub devices: Option<String>,
    /// Index of the address in each port's table; `None`: one that routes.
    pub gid_index: Option<u32>,
    /// Largest packet; `None`: what both ports allow.
    pub mtu: Option<Mtu>,
    /// InfiniBand's service level, or the priority on Ethernet: 0 to 15.
    pub service_level: u8,
    /// Traffic class of the packets' headers, which switches of RoCE fabrics sort them by.
    pub traffic_class: u8,
    /// How long a packet may stay without an answer: 4.096 us times 2 to the power of this, 1 to 31.
    pub timeout: u8,
    /// How often it is sent again then: 0 to 6. (7 would be for ever with some devices.)
    pub retries: u8,
    /// How often it is sent again to a receiver that is not ready: 0 to 6.
    pub not_ready_retries: u8,
    /// Queue pairs of a link for each pair of ports: several spread over a fabric's equal paths. A link has 16
    /// in all at most.
    pub queue_pairs: u32,
}

impl Default for RdmaConfig {
    fn default() -> RdmaConfig {
        RdmaConfig {
            library: None,
            devices: None,
            gid_index: None,
            mtu: None,
            service_level: 0,
            traffic_class: 0,
            timeout: 14,
            retries: 6,
            not_ready_retries: 6,
            queue_pairs: 1,
        }
    }
}

impl RdmaConfig {
    /// Whether a text can be the value of [`RdmaConfig::devices`].
    ///
    /// # Errors
    /// [`RdmaError::Malformed`].
    pub fn check_devices(text: &str) -> Result<(), RdmaError> {
        rails::check(text)
    }
}

/// Largest packet on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(u8);

impl Mtu {
    /// The number that stands for it in InfiniBand.
    pub(crate) fn number(self) -> u8 {
        self.0
    }
}

impl FromStr for Mtu {
    type Err = String;

    fn from_str(text: &str) -> Result<Mtu, String> {
        let number = (1..=5).find(|number| mtu_bytes(*number).to_string() == text);
        number.map(Mtu).ok_or_else(|| format!("{text} is none of 256, 512, 1024, 2048 and 4096"))
    }
}

impl std::fmt::Display for Mtu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", mtu_bytes(self.0))
    }
}

/// What the links of one endpoint share: the open devices, and the memory that is registered with them.
#[derive(Debug)]
pub struct Rdma {
    config: RdmaConfig,
    rails: Vec<Rail>,
    registry: memory::Registry,
}

impl Rdma {
    /// Opens the devices of this rank.
    ///
    /// # Errors
    /// Why RDMA cannot be used here, and what to do about it.
    pub fn open(config: &RdmaConfig) -> Result<Arc<Rdma>, RdmaError> {
        let rails = rails::find(config)?;
        let registry = memory::Registry::new(&rails);
        Ok(Arc::new(Rdma { config: config.clone(), rails, registry }))
    }

    /// The ports that it uses.
    pub fn rails(&self) -> &[Rail] {
        &self.rails
    }
}
