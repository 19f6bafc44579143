//! Network interfaces and RDMA devices, from `/sys/class/net` and `/sys/class/infiniband`.
//!
//! An RDMA port and its network interface are one port, under the RDMA device's name with the interface as
//! `partner`. Interfaces that are made of others (bridges, VLANs, tunnels, one end of a pair) are left
//! out, unless there is no other, as in a container. All are those of this process's network namespace.

use std::collections::{BTreeMap, BTreeSet};

use super::files::{Files, Folder, natural};
use super::{pci, rdma};
use crate::machine::{BusId, LinkLayer, NetPort, PortState};

/// `ARPHRD_ETHER`, `ARPHRD_INFINIBAND` and `ARPHRD_LOOPBACK` of the kernel.
const ETHERNET: u32 = 1;
const INFINIBAND: u32 = 32;
const LOOPBACK: u32 = 772;

/// Faster than anything there is: 10 Tbit/s.
pub(super) const MOST_MBIT_PER_S: u64 = 10_000_000;

/// A VLAN of a bond below a bridge has three.
const MOST_LAYERS: usize = 8;

/// Where a port hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At a PCI function.
    Pci(BusId),
    /// At the NUMA node of that number, if it is known.
    Numa(Option<u32>),
}

/// A port and where it hangs.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub place: Place,
    pub port: NetPort,
}

/// All ports: those of RDMA devices first, each kind by name, and numbered so. `addresses` are those of
/// the interfaces by name.
pub(super) fn read(sysfs: &Files, addresses: &BTreeMap<String, Vec<String>>) -> Vec<Placed> {
    let interfaces = interfaces(sysfs);
    let mut ports = rdma::read(sysfs, &interfaces);
    let taken: BTreeSet<&str> = ports.iter().map(|placed| placed.port.partner.as_str()).collect();
    let free = interfaces.iter().filter(|interface| !taken.contains(interface.name.as_str()));
    let (physical, made): (Vec<_>, Vec<_>) = free.partition(|interface| interface.is_physical);
    let chosen = match ports.is_empty() && physical.is_empty() {
        true => made,
        false => physical,
    };
    let placed = |interface: &Interface| Placed {
        place: interface.place,
        port: interface.port(addresses.get(&interface.name).cloned().unwrap_or_default()),
    };
    let own: Vec<Placed> = chosen.into_iter().map(placed).collect();
    ports.extend(own);
    for (index, placed) in ports.iter_mut().enumerate() {
        placed.port.index = index as u32;
    }
    ports
}

/// The interfaces with a device that one's frames go through: itself, the active ones of a bond, or those below
/// a VLAN or a bridge.
pub(super) fn carriers(sysfs: &Files, name: &str) -> Vec<String> {
    carriers_within(sysfs, name, MOST_LAYERS)
}

fn carriers_within(sysfs: &Files, name: &str, layers: usize) -> Vec<String> {
    let folder = sysfs.folder("class/net").and_then(|class| class.folder(name));
    let Some(folder) = folder.filter(|_| layers > 0) else { return Vec::new() };
    if folder.has("device") {
        return vec![name.to_owned()];
    }
    // A bond of which one interface works while the others wait names that one.
    let below = match folder.text("bonding/active_slave") {
        Some(active) => vec![active],
        None => {
            let names = folder.names().into_iter();
            names.filter_map(|name| Some(name.strip_prefix("lower_")?.to_owned())).collect()
        }
    };
    below.iter().flat_map(|lower| carriers_within(sysfs, lower, layers - 1)).collect()
}

/// A network interface.
pub(super) struct Interface<'f> {
    pub name: String,
    pub folder: Folder<'f>,
    pub place: Place,
    /// Whether there is a device for it.
    pub is_physical: bool,
}

/// All but the loopback interface.
fn interfaces<'f>(sysfs: &'f Files<'f>) -> Vec<Interface<'f>> {
    let Some(class) = sysfs.folder("class/net") else {
        return Vec::new();
    };
    let interface = |name: String| {
        let Some(folder) = class.folder(&name) else {
            // Recorded trees lack what made interfaces are.
            let target = class.link(&name).unwrap_or_default();
            if !target.components().any(|part| part.as_os_str() == "virtual")
                && name != "bonding_masters"
            {
                sysfs.warnings.add(&name, "its folder in sysfs is missing: left out");
            }
            return None;
        };
        let device = folder.folder("device");
        let is_physical = device.is_some();
        let place = device.map_or(Place::Numa(None), |device| place(&device));
        let is_loopback = name == "lo" || folder.number("type") == Some(LOOPBACK);
        (!is_loopback).then_some(Interface { name, folder, place, is_physical })
    };
    let mut names = class.names();
    names.sort_by_cached_key(|name| natural(name));
    names.into_iter().filter_map(interface).collect()
}

/// Where a device hangs.
pub(super) fn place(device: &Folder) -> Place {
    match pci::owner(device.path()) {
        Some(bus_id) => Place::Pci(bus_id),
        None => Place::Numa(device.number("numa_node")),
    }
}

impl Interface<'_> {
    fn port(&self, addresses: Vec<String>) -> NetPort {
        let state = self.state();
        NetPort {
            name: self.name.clone(),
            speed_mbit_per_s: self.speed_mbit_per_s(state),
            link_layer: match self.folder.number("type") {
                Some(ETHERNET) => LinkLayer::Ethernet,
                Some(INFINIBAND) => LinkLayer::InfiniBand,
                _ => LinkLayer::Unknown,
            },
            state,
            driver: driver(&self.folder),
            addresses,
            mtu_bytes: self.mtu_bytes(),
            ..NetPort::default()
        }
    }

    /// Which port of its PCI function it is, from 0. Old drivers use the older one of the two numbers.
    pub fn device_port(&self) -> u32 {
        let new = self.folder.number("dev_port").unwrap_or(0);
        let old = || self.folder.hexadecimal("dev_id").unwrap_or(0) as u32;
        if new != 0 { new } else { old() }
    }

    /// The largest payload of a frame.
    pub fn mtu_bytes(&self) -> Option<u32> {
        self.folder.number("mtu")
    }

    /// Some drivers leave the state unknown, but tell whether there is a carrier.
    fn state(&self) -> PortState {
        let state = self.folder.text("operstate").unwrap_or_default();
        match (state.as_str(), self.folder.number("carrier")) {
            ("up", _) => PortState::Up,
            ("down" | "lowerlayerdown" | "notpresent" | "dormant" | "testing", _) => {
                PortState::Down
            }
            (_, Some(1)) => PortState::Up,
            (_, Some(0)) => PortState::Down,
            _ => PortState::Unknown,
        }
    }

    /// Megabits a second. It cannot be read while the interface is down; drivers that do not know it
    /// say -1, as a signed or an unsigned number.
    fn speed_mbit_per_s(&self, state: PortState) -> Option<u64> {
        let text = self.folder.text("speed").unwrap_or_default();
        let known = text.parse().ok().filter(|speed| (1..=MOST_MBIT_PER_S).contains(speed));
        if known.is_none() && state == PortState::Up {
            let message = format!("speed {text:?}: taken as unknown");
            self.folder.files.warnings.add(&self.name, message);
        }
        known
    }
}

/// The kernel's driver of a device that has a link `device`; empty if unknown.
pub(super) fn driver(folder: &Folder) -> String {
    let device = folder.folder("device");
    device.and_then(|device| device.link_name("driver")).unwrap_or_default()
}

/// The addresses of the interfaces of this process's network namespace, by name.
pub(super) fn own_addresses() -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let Some(address) = entry.address else {
            continue;
        };
        let v4 = address.as_sockaddr_in().map(|v4| v4.ip().to_string());
        let v6 = || address.as_sockaddr_in6().map(|v6| v6.ip().to_string());
        if let Some(text) = v4.or_else(v6) {
            all.entry(entry.interface_name).or_default().push(text);
        }
    }
    all
}
