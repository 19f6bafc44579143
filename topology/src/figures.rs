//! Bandwidths and latencies of links that no file states, with where they come from. All are of one
//! direction.
//!
//! "NCCL" is `src/graph/topo.h` and `topo.cc` of NCCL 2.30, "RCCL" the same files of ROCm's RCCL. Their
//! figures for NVLink and xgmi are what programs reach; those for sockets are estimates by generation.

use crate::{Architecture, NumaNode, PcieLink};

/// What NCCL takes for a PCIe device that gives no speed: generation 3.
pub(crate) const DEFAULT_GIGATRANSFERS_PER_S: f64 = 8.0;

/// What NCCL takes for a PCIe device that gives no width.
pub(crate) const DEFAULT_PCIE_WIDTH: u32 = 16;

/// What NCCL's socket transport takes for an interface that gives no speed.
pub(crate) const DEFAULT_PORT_MBIT_PER_S: u64 = 10_000;

/// Inside one chip that shows itself as several switches: no limit (NCCL: `LOC_BW`).
pub(crate) const INSIDE_SWITCH_BYTES_PER_S: f64 = 5000e9;

/// Of one link between a Grace processor and its GPU, of which there are ten: 900 GB/s both ways together
/// (NVIDIA, Grace Hopper architecture white paper).
pub(crate) const C2C_LINK_BYTES_PER_S: f64 = 45e9;

/// Between NUMA nodes of one package: 32 bytes a fabric clock of 1,467 MHz (AMD, EPYC 7002). Intel's meshes
/// have more.
pub(crate) const DIE_BYTES_PER_S: f64 = 47e9;

/// A GPU or card with what is above it: half of the 1 us that NCCL's tuning has for a message between
/// GPUs over PCIe.
pub(crate) const PCIE_DEVICE_LATENCY_NS: u64 = 500;

/// Through a PCIe switch, port to port: 105 to 150 ns in data sheets (Broadcom PEX, Microchip Switchtec).
pub(crate) const PCIE_SWITCH_LATENCY_NS: u64 = 130;

/// Between GPUs: the 0.6 us of NCCL's tuning; RCCL's for xgmi is of the same size.
pub(crate) const GPU_LINK_LATENCY_NS: u64 = 600;

/// Between a GPU and an NVSwitch: half of a way between GPUs.
pub(crate) const NVSWITCH_LATENCY_NS: u64 = 300;

/// What a load from the other package takes longer, in Intel's and AMD's tuning guides 60 to 130 ns.
pub(crate) const SOCKET_LATENCY_NS: u64 = 100;

/// What a load from another NUMA node of the package takes longer.
pub(crate) const DIE_LATENCY_NS: u64 = 30;

/// A port that gives no latency: a message between two cards on one switch, half on each side (vendors' figures
/// of 0.6 to 1 us for InfiniBand, rounded up).
pub(crate) const PORT_LATENCY_NS: u64 = 500;

/// Bytes a second of a PCIe link: transfers, lanes and the encoding of its generation (PCI Express Base
/// Specification: 8b/10b up to 5 GT/s, 128b/130b up to 32, flits of 256 bytes with 236 of packets above).
pub(crate) fn pcie_bytes_per_s(link: PcieLink) -> f64 {
    let share = match link.gigatransfers_per_s {
        speed if speed < 8.0 => 8.0 / 10.0,
        speed if speed < 64.0 => 128.0 / 130.0,
        _ => 236.0 / 256.0,
    };
    link.gigatransfers_per_s * 1e9 * f64::from(link.width) * share / 8.0
}

/// Bytes a second of one NVLink by compute capability (NCCL: `SM60_NVLINK_BW` and so on); of an unknown
/// one as of 80, as NCCL does.
pub(crate) fn nvlink_bytes_per_s(compute_capability: Option<u32>) -> f64 {
    match compute_capability {
        Some(100..) => 40.1e9,
        Some(90..) => 20.6e9,
        // Cards with a bridge: A40, RTX A6000.
        Some(86) => 12e9,
        Some(60..70) => 18e9,
        _ => 20e9,
    }
}

/// Bytes a second of one xgmi link by architecture (RCCL: `ncclTopoXGMISpeed`). Files have `gfx90a` or its
/// digits as a decimal number, 910. `None` if it is unknown.
pub(crate) fn xgmi_bytes_per_s(gcn: &str) -> Option<f64> {
    match gcn.trim_start_matches("gfx") {
        name if name.starts_with("94") || name.starts_with("95") => Some(48e9),
        name if name.starts_with("90a") || name == "910" => Some(36e9),
        name if name.starts_with("90") => Some(24e9),
        _ => None,
    }
}

/// What to assume of an unknown architecture of AMD's: RCCL's figure for Vega.
pub(crate) const XGMI_LINK_BYTES_PER_S: f64 = 24e9;

/// Bytes a second of a link between packages by processor (NCCL: `ncclTopoGetInterCpuBw`). `None` if the
/// processor is unknown.
pub(crate) fn socket_bytes_per_s(node: &NumaNode) -> Option<f64> {
    let intel = || match (node.family, node.model) {
        // Emerald and Granite Rapids, Sierra Forest. NCCL takes only the first for what it is
        // (NVIDIA/nccl#2107).
        (Some(6), Some(0xcf | 0xad | 0xae | 0xaf)) => 40e9,
        (Some(6), Some(0x8f..)) => 22e9,
        (Some(6), Some(0x55..)) => 10e9,
        _ => 6e9,
    };
    match (node.architecture, node.vendor.as_str()) {
        (Some(Architecture::Power), _) => Some(32e9),
        (Some(Architecture::Arm64), _) => Some(6e9),
        (_, "GenuineIntel") => Some(intel()),
        (_, "AuthenticAMD") => Some(16e9),
        (_, "CentaurHauls" | "  Shanghai  " | "Shanghai") => Some(6e9),
        _ => None,
    }
}

/// What to assume of an unknown processor: a link of the middle of NCCL's table.
pub(crate) const SOCKET_BYTES_PER_S: f64 = 10e9;
