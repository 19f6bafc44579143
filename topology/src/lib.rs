//! How a machine is wired, and what follows from it.
//!
//! A [`Machine`] is the hierarchy as the hardware is: NUMA nodes, PCIe bridges, GPUs, network cards. It is
//! detected or read from a file. A [`Graph`] is made from it: nodes and directed edges with
//! bandwidths and latencies, between which paths, rings and trees are found.

mod check;
mod complete;
mod detect;
mod diff;
mod drawing;
mod error;
mod figures;
mod graph;
mod machine;
mod path;
pub mod search;
mod table;
mod walk;
mod xml;

pub use check::{Finding, Severity, check};
pub use detect::{
    C2cFact, Detection, GpuFact, GpuFacts, Limits, NvLinkEnd, NvLinkFact, Roots, Unreachable,
    VisibleDevices, carriers, detect, detect_with,
};
pub use diff::{Difference, diff};
pub use drawing::svg;
pub use error::Error;
pub use graph::{Edge, EdgeId, EdgeKind, Graph, Node, NodeId, NodeKind};
pub use machine::{
    Architecture, BusId, CpuSet, Gpu, GpuLink, GpuLinkKind, LinkLayer, Machine, NetPort, Nic,
    NumaNode, PciDevice, PcieLink, PortState, Warning,
};
pub use path::{Path, PathClass};
pub use table::table;
pub use walk::{PlacedDevice, PlacedGpu, PlacedPort};
