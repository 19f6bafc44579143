//! What differs between two machines, in words.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::{
    BusId, Gpu, GpuLinkKind, Machine, NetPort, NumaNode, PcieLink, PlacedDevice, PlacedPort,
    PortState,
};

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What it is about, by its name in the first machine if it is there: `GPU3`, `mlx5_0`, `NUMA1`.
    pub subject: String,
    /// What differs; "first" and "second" are the machines as given.
    pub message: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)
    }
}

/// What differs between two machines: devices that only one has, links, where devices are, ports, links of GPUs.
///
/// GPUs and cards at the same place (bus id) are taken for the same; of the others the first that is left with
/// the first, and so on. Ports are the same if they have one name on one card. Names of hosts, warnings and
/// ranks are not compared.
pub fn diff(first: &Machine, second: &Machine) -> Vec<Difference> {
    let mut found = Vec::new();
    compare_numa_nodes(first, second, &mut found);
    let gpus = pairs(gpus(first), gpus(second), |placed| placed.device.bus_id);
    // Links are compared by the GPUs of the first machine.
    let renamed: BTreeMap<BusId, BusId> =
        both(&gpus).map(|(a, b)| (b.device.bus_id, a.device.bus_id)).collect();
    for pair in &gpus {
        match pair {
            Pair::First(a) => only(&mut found, gpu_name(a), "first"),
            Pair::Second(b) => only(&mut found, gpu_name(b), "second"),
            Pair::Both(a, b) => {
                compare_devices(gpu_name(a), [first, second], a, b, &mut found);
                compare_gpu_links(gpu_name(a), [a, b], &renamed, &mut found);
            }
        }
    }
    compare_cards(first, second, &mut found);
    compare_virtual_ports(first, second, &mut found);
    compare_bridges(first, second, &mut found);
    found
}

/// Something of one machine, or the same of both.
enum Pair<T> {
    First(T),
    Second(T),
    Both(T, T),
}

fn both<T>(pairs: &[Pair<T>]) -> impl Iterator<Item = (&T, &T)> {
    pairs.iter().filter_map(|pair| match pair {
        Pair::Both(a, b) => Some((a, b)),
        _ => None,
    })
}

/// Those with equal keys, then the others in their order.
fn pairs<T: Clone, K: Ord>(first: Vec<T>, second: Vec<T>, key: impl Fn(&T) -> K) -> Vec<Pair<T>> {
    let mut rest: Vec<Option<T>> = second.into_iter().map(Some).collect();
    let mut by_key = BTreeMap::new();
    for (place, item) in rest.iter().flatten().enumerate() {
        by_key.entry(key(item)).or_insert(place);
    }
    let same: Vec<Option<T>> = first
        .iter()
        .map(|item| by_key.remove(&key(item)).and_then(|place| rest[place].take()))
        .collect();
    let mut rest = rest.into_iter().flatten();
    let mut found: Vec<_> = first
        .into_iter()
        .zip(same)
        .map(|(a, same)| match same.or_else(|| rest.next()) {
            Some(b) => Pair::Both(a, b),
            None => Pair::First(a),
        })
        .collect();
    found.extend(rest.map(Pair::Second));
    found
}

fn only(found: &mut Vec<Difference>, subject: String, which: &str) {
    found.push(Difference { subject, message: format!("only in the {which}") });
}

/// Adds a difference if the texts differ.
fn compare(found: &mut Vec<Difference>, subject: &str, what: &str, first: String, second: String) {
    if first != second {
        let message = format!("{what} {first} in the first, {second} in the second");
        found.push(Difference { subject: subject.into(), message });
    }
}

fn compare_numa_nodes(first: &Machine, second: &Machine, found: &mut Vec<Difference>) {
    let all = |machine: &'_ Machine| (0..machine.numa_nodes.len()).collect::<Vec<_>>();
    let name = |node: &NumaNode| node.id.map_or("NUMA?".into(), |id| format!("NUMA{id}"));
    let (mut firsts, mut seconds) = (all(first), all(second));
    for &place in &firsts {
        let a = &first.numa_nodes[place];
        let same = seconds.iter().position(|&other| second.numa_nodes[other].id == a.id);
        let Some(b) = same.map(|other| &second.numa_nodes[seconds.remove(other)]) else {
            only(found, name(a), "first");
            continue;
        };
        let cpus = |node: &NumaNode| match node.cpus.is_empty() {
            true => "unknown".into(),
            false => node.cpus.to_string(),
        };
        compare(found, &name(a), "processors", cpus(a), cpus(b));
    }
    firsts.clear();
    seconds.iter().for_each(|&other| only(found, name(&second.numa_nodes[other]), "second"));
}

fn gpus(machine: &Machine) -> Vec<PlacedDevice<'_>> {
    machine.gpus().into_iter().map(|placed| placed.place).collect()
}

fn gpu_name(placed: &PlacedDevice) -> String {
    let index = placed.device.gpu.as_ref().map_or(0, |gpu| gpu.index);
    format!("GPU{index} ({})", placed.device.bus_id)
}

/// Where two devices are and how they are linked.
fn compare_devices(
    name: String,
    [first, second]: [&Machine; 2],
    a: &PlacedDevice,
    b: &PlacedDevice,
    found: &mut Vec<Difference>,
) {
    let numa = |machine: &Machine, placed: &PlacedDevice| {
        machine.numa_nodes[placed.numa].id.map_or("unknown".into(), |id| id.to_string())
    };
    let bridge = |placed: &PlacedDevice| {
        placed.above.last().map_or("no bridge".into(), |above| above.bus_id.to_string())
    };
    let bus_id = |placed: &PlacedDevice| placed.device.bus_id.to_string();
    compare(found, &name, "at", bus_id(a), bus_id(b));
    compare(found, &name, "on NUMA node", numa(first, a), numa(second, b));
    compare(found, &name, "below", bridge(a), bridge(b));
    compare(found, &name, "PCIe", link(a.device.link), link(b.device.link));
    let gpu = |placed: &PlacedDevice| {
        placed.device.gpu.as_ref().map_or(String::new(), |gpu: &Gpu| gpu.name.clone())
    };
    let (name_a, name_b) = (gpu(a), gpu(b));
    if !name_a.is_empty() && !name_b.is_empty() {
        compare(found, &name, "a", name_a, name_b);
    }
}

fn link(link: Option<PcieLink>) -> String {
    link.map_or("unknown".into(), |link| link.to_string())
}

fn compare_gpu_links(
    name: String,
    [a, b]: [&PlacedDevice; 2],
    renamed: &BTreeMap<BusId, BusId>,
    found: &mut Vec<Difference>,
) {
    let counts = |placed: &PlacedDevice, rename: &dyn Fn(BusId) -> BusId| {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for link in placed.device.gpu.iter().flat_map(|gpu| &gpu.links) {
            let target = match link.target {
                None => "its processor".to_owned(),
                // Which function a switch has is of no importance.
                Some(_) if link.target_class >> 8 == 0x0680 => "NVSwitches".into(),
                Some(target) => format!("the device at {}", rename(target)),
            };
            let kind = match link.kind {
                GpuLinkKind::NvLink => "NVLinks",
                GpuLinkKind::Xgmi => "xgmi links",
                GpuLinkKind::C2c => "C2C links",
            };
            let count = counts.entry(format!("{kind} with {target}")).or_default();
            *count = count.saturating_add(link.count);
        }
        counts
    };
    let first = counts(a, &|target| target);
    let second = counts(b, &|target| renamed.get(&target).copied().unwrap_or(target));
    let mut targets: Vec<&String> = first.keys().chain(second.keys()).collect();
    targets.sort();
    targets.dedup();
    for target in targets {
        let count = |counts: &BTreeMap<String, u32>| counts.get(target).copied().unwrap_or(0);
        compare(found, &name, target, count(&first).to_string(), count(&second).to_string());
    }
}

fn compare_cards(first: &Machine, second: &Machine, found: &mut Vec<Difference>) {
    let cards = |machine| {
        let mut cards: Vec<PlacedDevice> = Machine::devices(machine);
        cards.retain(|placed| placed.device.nic.is_some());
        cards
    };
    let name = |placed: &PlacedDevice| {
        let ports = placed.device.nic.iter().flat_map(|nic| &nic.ports);
        let names: Vec<&str> = ports.map(|port| port.name.as_str()).collect();
        format!("card {} ({})", placed.device.bus_id, names.join(", "))
    };
    for pair in pairs(cards(first), cards(second), |placed| placed.device.bus_id) {
        match pair {
            Pair::First(a) => only(found, name(&a), "first"),
            Pair::Second(b) => only(found, name(&b), "second"),
            Pair::Both(a, b) => {
                compare_devices(name(&a), [first, second], &a, &b, found);
                let ports = |placed: &PlacedDevice<'_>| -> Vec<NetPort> {
                    placed.device.nic.iter().flat_map(|nic| nic.ports.clone()).collect()
                };
                compare_ports(ports(&a), ports(&b), found);
            }
        }
    }
}

fn compare_virtual_ports(first: &Machine, second: &Machine, found: &mut Vec<Difference>) {
    let ports = |machine: &Machine| -> Vec<NetPort> {
        let without_card = |placed: &PlacedPort| placed.card.is_none();
        let placed = machine.ports().into_iter().filter(without_card);
        placed.map(|placed| placed.port.clone()).collect()
    };
    compare_ports(ports(first), ports(second), found);
}

fn compare_ports(first: Vec<NetPort>, second: Vec<NetPort>, found: &mut Vec<Difference>) {
    for pair in pairs(first, second, |port| port.name.clone()) {
        let (a, b) = match pair {
            Pair::First(a) => {
                only(found, format!("port {}", a.name), "first");
                continue;
            }
            Pair::Second(b) => {
                only(found, format!("port {}", b.name), "second");
                continue;
            }
            Pair::Both(a, b) => (a, b),
        };
        let speed = |port: &NetPort| {
            let speed = port.speed_mbit_per_s;
            speed.map_or("unknown".into(), |speed| format!("{} Gbit/s", speed as f64 / 1e3))
        };
        let state = |port: &NetPort| match port.state {
            PortState::Unknown => "unknown".to_owned(),
            PortState::Up => "up".into(),
            PortState::Down => "down".into(),
        };
        let name = format!("port {}", a.name);
        compare(found, &name, "named", a.name.clone(), b.name.clone());
        compare(found, &name, "speed", speed(&a), speed(&b));
        // Files say nothing of the state.
        if a.state != PortState::Unknown && b.state != PortState::Unknown {
            compare(found, &name, "state", state(&a), state(&b));
        }
    }
}

/// Bridges are matched by place only: those of another machine at another place are others.
fn compare_bridges(first: &Machine, second: &Machine, found: &mut Vec<Difference>) {
    let bridges = |machine| {
        let mut bridges: Vec<PlacedDevice> = Machine::devices(machine);
        bridges.retain(|placed| {
            let device = placed.device;
            device.gpu.is_none() && device.nic.is_none() && !device.children.is_empty()
        });
        bridges
    };
    let (firsts, mut seconds) = (bridges(first), bridges(second));
    for a in firsts {
        let name = format!("bridge {}", a.device.bus_id);
        match seconds.iter().position(|b| b.device.bus_id == a.device.bus_id) {
            None => only(found, name, "first"),
            Some(place) => {
                let b = seconds.remove(place);
                compare_devices(name, [first, second], &a, &b, found);
            }
        }
    }
    for b in seconds {
        only(found, format!("bridge {}", b.device.bus_id), "second");
    }
}

#[cfg(test)]
mod tests;
