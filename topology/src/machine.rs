//! The hierarchy of one machine, as the hardware is: NUMA nodes, below them PCIe bridges and devices, below
//! those GPUs and network cards. Detection and the XML reader make it, everything else looks at it.
//!
//! What is not known is `None` or empty: no figure is invented here. Defaults, with a warning, are
//! [`Graph`](crate::Graph)'s matter.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One machine, or the part of it that this process may see.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The host's name; empty if unknown.
    pub host: String,
    /// In the order in which they were found, which need not be that of their numbers.
    pub numa_nodes: Vec<NumaNode>,
    /// What was missing or absurd, and what was assumed instead.
    pub warnings: Vec<Warning>,
}

/// A finding about the description itself: where, what, and what was assumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// The device or file, for example `0000:1a:00.0` or `mlx5_0`.
    pub subject: String,
    /// What was found and what was assumed instead.
    pub message: String,
}

/// Processors that share a memory, and the devices nearest to them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NumaNode {
    /// The system's number; `None` for a machine that gives none (-1).
    pub id: Option<u32>,
    /// The processors of this node.
    pub cpus: CpuSet,
    /// Their architecture.
    pub architecture: Option<Architecture>,
    /// As `/proc/cpuinfo` says, for example `GenuineIntel`; empty if unknown.
    pub vendor: String,
    /// Processor family.
    pub family: Option<u32>,
    /// Processor model.
    pub model: Option<u32>,
    /// The physical package (socket) of its processors.
    pub package: Option<u32>,
    /// NCCL's hash of the host, in files that have one.
    pub host_hash: Option<u64>,
    /// Memory of the node in bytes.
    pub memory_bytes: Option<u64>,
    /// Distances to other nodes as the firmware says (ACPI SLIT, 10 = local), by their numbers.
    pub distances: Vec<(u32, u32)>,
    /// What hangs on its root ports.
    pub devices: Vec<PciDevice>,
    /// Network cards that have no PCIe device (virtual ones).
    pub nics: Vec<Nic>,
}

/// The architecture of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Architecture {
    X86_64,
    Arm64,
    Power,
    Riscv64,
}

/// A PCIe function: a bridge with others below it, a GPU, a network card, or something else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PciDevice {
    /// Where it is.
    pub bus_id: BusId,
    /// Class code, 24 bits (0x060400 = bridge, 0x03.... = display, 0x02.... = network); 0 if unknown.
    pub class: u32,
    /// Identifiers; 0 if unknown.
    pub vendor: u16,
    #[allow(missing_docs)]
    pub device: u16,
    #[allow(missing_docs)]
    pub subsystem_vendor: u16,
    #[allow(missing_docs)]
    pub subsystem_device: u16,
    /// The link to what is above it, as it is now.
    pub link: Option<PcieLink>,
    /// The link that it could have.
    pub possible_link: Option<PcieLink>,
    /// What is below it.
    pub children: Vec<PciDevice>,
    /// If it is a GPU.
    pub gpu: Option<Gpu>,
    /// If it is a network card.
    pub nic: Option<Nic>,
    /// Other switches with which this one has a direct link (`pcilink`).
    pub switch_peers: Vec<BusId>,
}

/// Speed and width of a PCIe link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PcieLink {
    /// Transfers a second of one lane in units of 10^9: 2.5, 5, 8, 16, 32, 64; 0 if unknown.
    pub gigatransfers_per_s: f64,
    /// Lanes: 1 to 32; 0 if unknown.
    pub width: u32,
}

/// `16 GT/s x8`, with `?` for what is unknown.
impl fmt::Display for PcieLink {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.gigatransfers_per_s > 0.0 {
            true => write!(f, "{} GT/s", self.gigatransfers_per_s)?,
            false => write!(f, "? GT/s")?,
        }
        match self.width {
            0 => write!(f, " x?"),
            width => write!(f, " x{width}"),
        }
    }
}

/// A GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// The driver's number of it on this machine.
    pub index: u32,
    /// What the driver calls it; empty if unknown.
    pub name: String,
    /// NVIDIA's compute capability, as 80 or 90, or what stands in the `sm` of AMD's files.
    pub compute_capability: Option<u32>,
    /// AMD's architecture, as `908`, `gfx942`; empty for others.
    pub gcn: String,
    /// AMD's numeric `arch` (other fields of the same chip).
    pub amd_arch: Option<u32>,
    /// The rank that used it when the file was written.
    pub rank: Option<u32>,
    /// Whether network cards may read and write its memory.
    pub gpu_direct_rdma: Option<bool>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Links to GPUs, switches, processors beside PCIe.
    pub links: Vec<GpuLink>,
}

/// A bundle of equal links of a GPU with one other device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuLink {
    /// What it is.
    pub kind: GpuLinkKind,
    /// Where it leads. An NVSwitch may be a function that is nowhere in the tree. `None` for a
    /// link to the GPU's own processor (C2C).
    pub target: Option<BusId>,
    /// PCI class of the target: 0x0680.. NVSwitch, 0x03.... GPU, 0x06.... processor's bridge; 0 if unknown.
    pub target_class: u32,
    /// How many links there are in the bundle.
    pub count: u32,
    /// Bytes a second of one link one way, in files that say so (`c2c`); otherwise from the GPU's generation.
    pub bandwidth_bytes_per_s: Option<f64>,
}

/// Kinds of links between GPUs beside PCIe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GpuLinkKind {
    /// NVIDIA's NVLink, to a GPU, an NVSwitch or a processor (POWER).
    NvLink,
    /// AMD's Infinity Fabric between GPUs.
    Xgmi,
    /// NVIDIA's chip-to-chip link with the processor (Grace).
    C2c,
}

/// A network card with its ports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Nic {
    /// In the order of the file or of the system.
    pub ports: Vec<NetPort>,
}

/// A port of a network card, by the name under which transports use it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NetPort {
    /// `mlx5_0`, `eth0`.
    pub name: String,
    /// Number of the port in the machine.
    pub index: u32,
    /// The port's number on its RDMA device (from 1), 0 for a network interface.
    pub port: u32,
    /// Megabits (10^6) a second; `None` if unknown.
    pub speed_mbit_per_s: Option<u64>,
    /// In microseconds; `None` if unknown.
    pub latency_us: Option<f64>,
    /// The card's identifier; two ports of one card have the same. 0 if unknown.
    pub guid: u64,
    /// How many connections it can have.
    pub max_connections: Option<u64>,
    /// Whether it may read and write the memory of GPUs.
    pub gpu_direct_rdma: Option<bool>,
    /// What it speaks.
    pub link_layer: LinkLayer,
    /// Whether it is up.
    pub state: PortState,
    /// The fastest that it could be, in megabits a second.
    pub possible_speed_mbit_per_s: Option<u64>,
    /// The kernel's driver, `mlx5_core`; empty if unknown.
    pub driver: String,
    /// The RDMA device of a network interface, or the network interface of an RDMA port; empty if none.
    pub partner: String,
    /// Addresses of the interface, or global identifiers of the RDMA port, as text.
    pub addresses: Vec<String>,
    /// Largest payload of a frame in bytes.
    pub mtu_bytes: Option<u32>,
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum LinkLayer {
    #[default]
    Unknown,
    Ethernet,
    InfiniBand,
}

/// Whether a port is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum PortState {
    #[default]
    Unknown,
    Up,
    Down,
}

/// Domain, bus, device and function of a PCI device. Virtual machines use large domains and fantasy
/// ones (`fffffff:ff:ff.0`), which are kept as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BusId {
    #[allow(missing_docs)]
    pub domain: u32,
    #[allow(missing_docs)]
    pub bus: u8,
    #[allow(missing_docs)]
    pub device: u8,
    #[allow(missing_docs)]
    pub function: u8,
}

impl fmt::Display for BusId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let BusId { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// What is wrong with a text that should be a bus id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no PCI bus id: expected domain:bus:device.function in hexadecimal, as 0000:1a:00.0"
)]
pub struct BadBusId(pub String);

impl FromStr for BusId {
    type Err = BadBusId;

    /// With or without the domain.
    fn from_str(text: &str) -> Result<BusId, BadBusId> {
        let bad = || BadBusId(text.chars().take(40).collect());
        let number = |part: &str, digits: usize| {
            let hexadecimal = part.bytes().all(|b| b.is_ascii_hexdigit());
            let fits = (1..=digits).contains(&part.len()) && hexadecimal;
            u32::from_str_radix(part, 16).ok().filter(|_| fits).ok_or_else(bad)
        };
        let (rest, function) = text.rsplit_once('.').ok_or_else(bad)?;
        let mut parts = rest.rsplit(':');
        let device = number(parts.next().ok_or_else(bad)?, 2)?;
        let bus = number(parts.next().ok_or_else(bad)?, 2)?;
        let domain = parts.next().map_or(Ok(0), |domain| number(domain, 8))?;
        let function = number(function, 1)?;
        match parts.next() {
            None => {
                let (bus, device, function) = (bus as u8, device as u8, function as u8);
                Ok(BusId { domain, bus, device, function })
            }
            Some(_) => Err(bad()),
        }
    }
}

impl Serialize for BusId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BusId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<BusId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A set of processors by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSet {
    /// Bit i of word w is processor 64 w + i. The last word is not 0.
    words: Vec<u64>,
}

impl CpuSet {
    /// Adds a processor.
    pub fn insert(&mut self, cpu: usize) {
        let word = cpu / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (cpu % 64);
    }

    /// Whether it is in the set.
    pub fn contains(&self, cpu: usize) -> bool {
        self.words.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    #[allow(missing_docs)]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.words.len() * 64).filter(|&cpu| self.contains(cpu))
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> CpuSet {
        let mut set = CpuSet::default();
        cpus.into_iter().for_each(|cpu| set.insert(cpu));
        set
    }
}

/// As the system's lists: `0-3,8,10-11`.
impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut separator = "";
        let mut cpus = self.iter().peekable();
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            match first == last {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_ids_are_read_and_written() {
        for text in ["0000:1a:00.0", "ffff:ff:01.0", "fffffff:ff:ff.0", "10000:e1:02.7"] {
            assert_eq!(text.parse::<BusId>().expect("a bus id").to_string(), text);
        }
        assert_eq!("1a:00.1".parse::<BusId>().expect("a short one").to_string(), "0000:1a:00.1");
        for text in
            ["", "1a", "0:0:0:0.0", "0000:1a:00", "0000:+a:00.0", "0000:1a:00.00", "x:1a:00.0"]
        {
            assert!(text.parse::<BusId>().is_err(), "{text}");
        }
    }

    #[test]
    fn sets_of_processors_are_lists() {
        let set: CpuSet = [0, 1, 2, 3, 8, 10, 11, 64].into_iter().collect();
        assert_eq!(set.to_string(), "0-3,8,10-11,64");
        assert_eq!(set.len(), 8);
        assert!(set.contains(64) && !set.contains(9) && !set.contains(1000));
    }
}
