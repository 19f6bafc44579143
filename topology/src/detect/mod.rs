//! Finds out how a machine is wired: from what the kernel tells in sysfs and procfs, and from the GPUs'
//! drivers. Nothing is needed to be there, nothing is measured.
//!
//! ```no_run
//! use ringtree_topology::{GpuFacts, Roots, VisibleDevices, detect, detect_with};
//!
//! // The whole machine:
//! let machine = detect(&Roots::system())?;
//! // The part of it that this process may use, with the GPUs' numbers as the program knows them:
//! let visible = VisibleDevices::from_environment();
//! let found = detect_with(&Roots::system(), &GpuFacts::of_system(), &visible)?;
//! let mut own = found.machine;
//! found.limits.apply(&mut own);
//! # Ok::<(), ringtree_topology::Error>(())
//! ```

mod cpu_list;
mod files;
mod gpu;
mod limits;
mod network;
mod pci;
mod processors;
mod rdma;
mod visible;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::machine::{BusId, Gpu, Machine, NetPort, Nic, NumaNode};
use files::{Files, Warnings};
use network::{Place, Placed};
use pci::{Function, Functions, Use};

pub use gpu::facts::{C2cFact, GpuFact, GpuFacts, NvLinkEnd, NvLinkFact, Unreachable};
pub use limits::Limits;
pub use visible::VisibleDevices;

/// Where the kernel's files are. Only files below these folders are read, wherever links in them lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// What is `/sys` on a running system.
    pub sysfs: PathBuf,
    /// What is `/proc`; need not exist.
    pub procfs: PathBuf,
    /// What is `/`: control groups of old systems are mounted elsewhere than in `/sys`.
    root: PathBuf,
    /// Whether they are of the running system, so that it may be asked for more than files.
    is_live: bool,
}

impl Roots {
    /// Those of the system that this program runs on.
    pub fn system() -> Roots {
        Roots { sysfs: "/sys".into(), procfs: "/proc".into(), root: "/".into(), is_live: true }
    }

    /// Those of a recorded machine: a folder with `sys` and `proc` in it, or one that is `sys` itself, beside
    /// which `proc` may lie.
    pub fn recorded(folder: impl AsRef<Path>) -> Roots {
        let folder = folder.as_ref();
        let (sysfs, root) = match folder.join("sys").is_dir() {
            true => (folder.join("sys"), folder.to_path_buf()),
            false => (folder.to_path_buf(), folder.join("..")),
        };
        Roots { sysfs, procfs: root.join("proc"), root, is_live: false }
    }
}

/// A machine, and what of it this process may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// All of it.
    pub machine: Machine,
    /// What the process may use, which [`Limits::apply`] leaves of the machine.
    pub limits: Limits,
}

/// The whole machine. On the running system the GPUs' driver is asked.
///
/// # Errors
/// [`Error::NoSysfs`]. Whatever else is missing or absurd becomes a warning of the machine.
pub fn detect(roots: &Roots) -> Result<Machine, Error> {
    let facts = match roots.is_live {
        true => GpuFacts::of_system(),
        false => GpuFacts::unknown("the machine is a recorded one"),
    };
    Ok(detect_with(roots, &facts, &VisibleDevices::default())?.machine)
}

/// The whole machine, with what NVIDIA's driver says of its GPUs, and what of it a process with these variables
/// may use.
///
/// # Errors
/// As [`detect`].
pub fn detect_with(
    roots: &Roots,
    facts: &GpuFacts,
    visible: &VisibleDevices,
) -> Result<Detection, Error> {
    let warnings = Warnings::default();
    let sysfs = Files::new(&roots.sysfs, "/sys", &warnings);
    let procfs = Files::new(&roots.procfs, "/proc", &warnings);
    let root = Files::new(&roots.root, "/", &warnings);
    if ["devices", "class", "bus"].iter().all(|name| sysfs.folder(name).is_none()) {
        return Err(Error::NoSysfs { folder: roots.sysfs.clone() });
    }
    let mut numa_nodes = processors::read(&sysfs, &procfs);
    let functions = Functions::read(&sysfs);
    let (gpus, known) = gpu::read(&sysfs, &procfs, &functions, facts);
    let addresses = if roots.is_live { network::own_addresses() } else { BTreeMap::new() };
    let ports = network::read(&sysfs, &addresses);
    hang(&functions, gpus, ports, &mut numa_nodes);
    let limit_warnings = Warnings::default();
    let visible_gpus = visible.of(&known, facts.failure.is_none(), &limit_warnings);
    let limits = Limits {
        cpus: limits::allowed_cpus(&sysfs, &procfs, &root),
        cpu_quota: limits::cpu_quota(&sysfs, &procfs, &root),
        visible_gpus,
        warnings: limit_warnings.into_inner(),
    };
    let host = procfs.top().text("sys/kernel/hostname").unwrap_or_default();
    let machine = Machine { host, numa_nodes, warnings: warnings.into_inner() };
    Ok(Detection { machine, limits })
}

/// The names of the interfaces with a device (ports of the machine, or partners of ports) that the frames of a
/// network interface go through: itself, the active ones of a bond, or those below a VLAN or a bridge. None of one
/// that leads nowhere outside, as the loopback interface or one end of a pair.
pub fn carriers(roots: &Roots, interface: &str) -> Vec<String> {
    let warnings = Warnings::default();
    network::carriers(&Files::new(&roots.sysfs, "/sys", &warnings), interface)
}

/// Hangs what was found on the nodes, below the switches that it is below.
fn hang(
    functions: &Functions,
    gpus: BTreeMap<BusId, Gpu>,
    ports: Vec<Placed>,
    nodes: &mut [NumaNode],
) {
    let mut uses: BTreeMap<BusId, Use> = BTreeMap::new();
    for function in functions.iter().filter(|function| is_network_card(function)) {
        uses.entry(function.bus_id).or_default().nic = Some(Nic::default());
    }
    for (bus_id, gpu) in gpus {
        uses.entry(bus_id).or_default().gpu = Some(gpu);
    }
    for Placed { place, port } in ports {
        match place {
            Place::Pci(bus_id) => {
                let card = uses.entry(bus_id).or_default().nic.get_or_insert_default();
                card.ports.push(port);
            }
            Place::Numa(number) => hang_on_node(number, port, nodes),
        }
    }
    pci::plant(functions, uses, nodes);
}

/// Also one without a driver, or whose interfaces another network namespace has; but not a virtual
/// function, of which there may be hundreds that nobody uses.
fn is_network_card(function: &Function) -> bool {
    const NETWORK: u32 = 0x02;
    const INFINIBAND: u32 = 0x0c06;
    let is_one = function.class >> 16 == NETWORK || function.class >> 8 == INFINIBAND;
    is_one && !function.folder.has("physfn")
}

/// On the node of that number, else on the first with processors.
fn hang_on_node(number: Option<u32>, port: NetPort, nodes: &mut [NumaNode]) {
    let by_number = nodes.iter().position(|node| number.is_some() && node.id == number);
    let first = || nodes.iter().position(|node| !node.cpus.is_empty()).unwrap_or(0);
    let place = by_number.unwrap_or_else(first);
    nodes[place].nics.push(Nic { ports: vec![port] });
}
