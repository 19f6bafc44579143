//! Ways to ask what was found.

use ringtree_topology::{BusId, Gpu, Machine, NetPort, PciDevice};

/// A device with where it is.
#[derive(Clone, Debug)]
pub struct Seen<'m> {
    pub device: &'m PciDevice,
    /// The number of its NUMA node.
    pub node: Option<u32>,
    /// The switches above it, from the root.
    pub above: Vec<String>,
}

/// All devices and bridges.
pub fn devices(machine: &Machine) -> Vec<Seen<'_>> {
    let placed = machine.devices().into_iter();
    let seen = placed.map(|placed| Seen {
        device: placed.device,
        node: machine.numa_nodes[placed.numa].id,
        above: placed.above.iter().map(|device| device.bus_id.to_string()).collect(),
    });
    seen.collect()
}

pub fn device<'m>(machine: &'m Machine, bus_id: &str) -> Option<Seen<'m>> {
    let bus_id: BusId = bus_id.parse().unwrap();
    devices(machine).into_iter().find(|seen| seen.device.bus_id == bus_id)
}

/// The GPUs with their bus ids, by number.
pub fn gpus(machine: &Machine) -> Vec<(String, &Gpu)> {
    let placed = machine.gpus().into_iter();
    let gpus: Vec<_> =
        placed.map(|placed| (placed.place.device.bus_id.to_string(), placed.gpu)).collect();
    let numbers: Vec<usize> = gpus.iter().map(|(_, gpu)| gpu.index as usize).collect();
    assert_eq!(numbers, (0..gpus.len()).collect::<Vec<_>>(), "GPUs are numbered from 0");
    gpus
}

/// A port, and where it is.
pub fn port<'m>(machine: &'m Machine, name: &str) -> (&'m NetPort, Option<u32>, Option<String>) {
    let found = ports(machine).into_iter().find(|(port, ..)| port.name == name);
    found.unwrap_or_else(|| panic!("no port {name}"))
}

/// The ports by number, each with its NUMA node and its card.
pub fn ports(machine: &Machine) -> Vec<(&NetPort, Option<u32>, Option<String>)> {
    let placed = machine.ports().into_iter();
    let found: Vec<_> = placed
        .map(|placed| {
            let card = placed.card.map(|card| card.device.bus_id.to_string());
            (placed.port, machine.numa_nodes[placed.numa].id, card)
        })
        .collect();
    let numbers: Vec<usize> = found.iter().map(|(port, ..)| port.index as usize).collect();
    assert_eq!(numbers, (0..found.len()).collect::<Vec<_>>(), "ports are numbered from 0");
    found
}

pub fn port_names(machine: &Machine) -> Vec<&str> {
    ports(machine).into_iter().map(|(port, ..)| port.name.as_str()).collect()
}

/// Whether there is a warning about that with these words in it.
pub fn warns(machine: &Machine, subject: &str, words: &str) -> bool {
    machine.warnings.iter().any(|w| w.subject == subject && w.message.contains(words))
}
