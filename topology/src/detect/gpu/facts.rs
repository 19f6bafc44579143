//! What NVIDIA's driver says of its GPUs, as data: asked of the driver, or recorded on another machine.

use serde::{Deserialize, Serialize};

use crate::machine::BusId;

/// What NVIDIA's driver says. The text form is JSON by the names of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpuFacts {
    /// Why nothing is known: no library, no driver, or an error of it. `None` if the driver answered, in which
    /// case `gpus` are all that this process may use.
    pub failure: Option<String>,
    /// In the order of the driver's numbers.
    pub gpus: Vec<GpuFact>,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpuFact {
    /// Where it is.
    pub bus_id: BusId,
    /// `GPU-` and a UUID; empty if unknown.
    pub uuid: String,
    /// `NVIDIA H100 80GB HBM3`; empty if unknown.
    pub name: String,
    /// 90 for 9.0.
    pub compute_capability: Option<u32>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Those that exist, up or not.
    pub nvlinks: Vec<NvLinkFact>,
    /// Links to its own processor (Grace).
    pub c2c: Option<C2cFact>,
    /// The other GPUs whose memory it cannot reach.
    pub unreachable: Vec<Unreachable>,
}

/// One NVLink of a GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NvLinkFact {
    /// The GPU's number of it.
    pub link: u32,
    /// Whether it is up.
    pub is_active: bool,
    /// The generation of NVLink.
    pub version: Option<u32>,
    /// What is at the other end; `None` if the driver does not say. Inside a virtual machine, that may be a
    /// place that is nowhere (all ones), which stands for NVSwitches.
    pub remote: Option<BusId>,
    /// What is at the other end, as far as it can be told.
    pub end: NvLinkEnd,
}

/// What an NVLink leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum NvLinkEnd {
    #[default]
    Unknown,
    Gpu,
    Switch,
    /// Of an IBM POWER system.
    Processor,
}

/// Links between a GPU and its own processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct C2cFact {
    /// How many there are.
    pub count: u32,
    /// Bytes a second of one link one way.
    pub bandwidth_bytes_per_s: Option<f64>,
}

/// A GPU whose memory another one cannot reach.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Unreachable {
    /// Where it is.
    pub bus_id: BusId,
    /// As the driver says.
    pub reason: String,
}

impl GpuFacts {
    /// Asks the driver of this machine. That it is absent is no error, but a `failure`.
    pub fn of_system() -> GpuFacts {
        super::nvml::ask().unwrap_or_else(GpuFacts::unknown)
    }

    /// Nothing is known, for this reason.
    pub fn unknown(reason: impl Into<String>) -> GpuFacts {
        GpuFacts { failure: Some(reason.into()), gpus: Vec::new() }
    }
}
