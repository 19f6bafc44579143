//! The tree: NUMA nodes, in them bridges, in those devices, with what is known of each and of its link.

use std::collections::BTreeMap;
use std::fmt::Write;

use ringtree_topology::{
    BusId, EdgeKind, Graph, LinkLayer, Machine, NetPort, Nic, NodeId, NodeKind, NumaNode,
    PciDevice, PortState,
};

use super::source::Source;
use crate::words::{bytes, counted};

/// A line, and those below it.
struct Branch {
    text: String,
    below: Vec<Branch>,
}

/// The whole machine. Lines end with a newline.
pub fn text(source: &Source, machine: &Machine, graph: &Graph) -> String {
    let counted = |number: usize, what: &str| counted(number as u64, what);
    let mut text = format!(
        "{}: {}, {}, {}\n",
        source.name,
        counted(machine.numa_nodes.len(), "NUMA node"),
        counted(machine.gpus().len(), "GPU"),
        counted(machine.ports().len(), "network port"),
    );
    let builder = Builder { graph, upwards: upwards(graph) };
    for (place, node) in machine.numa_nodes.iter().enumerate() {
        let Branch { text: line, below } = builder.numa(place, node);
        text.push_str(&line);
        text.push('\n');
        write_below(&mut text, &below, "");
    }
    text + &own_part(source)
}

fn write_below(text: &mut String, below: &[Branch], indent: &str) {
    for (number, branch) in below.iter().enumerate() {
        let (mark, deeper) =
            if number + 1 < below.len() { ("├─ ", "│  ") } else { ("└─ ", "   ") };
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{indent}{mark}{}", branch.text);
        write_below(text, &branch.below, &format!("{indent}{deeper}"));
    }
}

/// What this process may use, if it is not all.
fn own_part(source: &Source) -> String {
    let Some(limits) = &source.limits else { return String::new() };
    let mut parts = Vec::new();
    if let Some(cpus) = &limits.cpus {
        parts.push(format!("processors {cpus}"));
    }
    if let Some(quota) = limits.cpu_quota {
        parts.push(format!("the time of {quota}"));
    }
    let gpus = limits.visible_gpus.iter().map(ToString::to_string);
    let gpus: Vec<String> = gpus.collect();
    if !gpus.is_empty() {
        parts.push(format!("GPUs {}", gpus.join(", ")));
    }
    match parts.is_empty() {
        true => String::new(),
        false => format!("This process may use {}.\n", parts.join(", ")),
    }
}

/// The bandwidth of each device's link upwards.
fn upwards(graph: &Graph) -> BTreeMap<BusId, f64> {
    let mut found = BTreeMap::new();
    // Of the two edges of a link the first leads upwards.
    for edge in graph.edges.iter().step_by(2).filter(|edge| edge.kind == EdgeKind::Pcie) {
        let (NodeKind::Bridge(bus_id) | NodeKind::Card(bus_id) | NodeKind::Gpu { bus_id, .. }) =
            graph.node(edge.from).kind
        else {
            continue;
        };
        found.entry(bus_id).or_insert(edge.bandwidth_bytes_per_s);
    }
    found
}

struct Builder<'a> {
    graph: &'a Graph,
    upwards: BTreeMap<BusId, f64>,
}

impl Builder<'_> {
    fn numa(&self, place: usize, node: &NumaNode) -> Branch {
        let mut facts = Vec::new();
        if !node.cpus.is_empty() {
            facts.push(format!("processors {}", node.cpus));
        }
        let model = [("family", node.family), ("model", node.model)]
            .into_iter()
            .filter_map(|(name, number)| Some(format!(" {name} {}", number?)));
        if !node.vendor.is_empty() {
            facts.push(node.vendor.clone() + &model.collect::<String>());
        }
        facts.extend(node.package.map(|package| format!("package {package}")));
        facts.extend(node.memory_bytes.map(bytes));
        let name = node.id.map_or("NUMA?".into(), |id| format!("NUMA{id}"));
        let mut below = self.numa_links(place);
        below.extend(node.devices.iter().map(|device| self.device(device)));
        below.extend(node.nics.iter().flat_map(ports));
        Branch { text: headed(name, facts), below }
    }

    /// Links with other NUMA nodes, those of equal bandwidth on one line.
    fn numa_links(&self, place: usize) -> Vec<Branch> {
        let is_this = |id| self.graph.node(id).kind == NodeKind::Numa(place as u32);
        let edges = self.graph.edges.iter().filter(|edge| is_this(edge.from));
        let mut links: Vec<(String, Vec<&str>)> = Vec::new();
        for edge in edges {
            let what = match edge.kind {
                EdgeKind::Die => "in the package",
                EdgeKind::Socket => "between packages",
                _ => continue,
            };
            let what = format!("{}, {what}", gigabytes(edge.bandwidth_bytes_per_s));
            add(&mut links, what, &self.graph.node(edge.to).name);
        }
        let line = |(what, names): (String, Vec<&str>)| format!("to {}: {what}", names.join(" "));
        links.into_iter().map(line).map(leaf).collect()
    }

    fn device(&self, device: &PciDevice) -> Branch {
        let mut facts = Vec::new();
        let bus_id = device.bus_id.to_string();
        if let Some(gpu) = device.gpu.as_ref().filter(|gpu| !gpu.name.is_empty()) {
            facts.push(gpu.name.clone());
        }
        facts.push(self.link(device));
        let mut below = Vec::new();
        let name = if let Some(gpu) = &device.gpu {
            facts.extend(gpu.memory_bytes.map(bytes));
            below.extend(self.gpu_links(gpu.index, device.bus_id));
            format!("GPU{} {bus_id}", gpu.index)
        } else if device.nic.is_some() {
            format!("card {bus_id}")
        } else if !device.children.is_empty() {
            format!("bridge {bus_id}")
        } else if device.class == 0 {
            format!("device {bus_id} of unknown class")
        } else {
            format!("device {bus_id} of class 0x{:06x}", device.class)
        };
        below.extend(device.nic.iter().flat_map(ports));
        below.extend(device.children.iter().map(|child| self.device(child)));
        Branch { text: headed(name, facts), below }
    }

    /// `16 GT/s x8 of x16, 15.8 GB/s`.
    fn link(&self, device: &PciDevice) -> String {
        let mut text = device.link.map_or("speed unknown".into(), |link| link.to_string());
        if let Some((now, possible)) = device.link.zip(device.possible_link) {
            let is_less = now.gigatransfers_per_s < possible.gigatransfers_per_s
                || now.width < possible.width;
            if is_less {
                let _ = write!(text, " (of {possible})");
            }
        }
        if let Some(&bandwidth) = self.upwards.get(&device.bus_id) {
            let _ = write!(text, ", {}", gigabytes(bandwidth));
        }
        text
    }

    /// Links of a GPU beside PCIe, those of one kind and bandwidth on one line.
    fn gpu_links(&self, index: u32, bus_id: BusId) -> Vec<Branch> {
        let kind = NodeKind::Gpu { index, bus_id };
        let Some(place) = self.graph.nodes.iter().position(|node| node.kind == kind) else {
            return Vec::new();
        };
        let own = NodeId(place as u32);
        let mut links: Vec<(String, Vec<&str>)> = Vec::new();
        for edge in self.graph.edges.iter().filter(|edge| edge.from == own) {
            let name = match edge.kind {
                EdgeKind::NvLink => "NVLink",
                EdgeKind::Xgmi => "xgmi",
                EdgeKind::C2c => "link between chips",
                _ => continue,
            };
            let what = format!("{name} x{}, {}", edge.links, gigabytes(edge.bandwidth_bytes_per_s));
            add(&mut links, what, &self.graph.node(edge.to).name);
        }
        let line = |(what, names): (String, Vec<&str>)| match names.len() {
            1 => format!("to {}: {what}", names.join(" ")),
            _ => format!("to {}: {what} each", names.join(" ")),
        };
        links.into_iter().map(line).map(leaf).collect()
    }
}

fn add<'a>(links: &mut Vec<(String, Vec<&'a str>)>, what: String, name: &'a str) {
    match links.iter_mut().find(|(known, _)| *known == what) {
        Some((_, names)) => names.push(name),
        None => links.push((what, vec![name])),
    }
}

fn ports(nic: &Nic) -> impl Iterator<Item = Branch> + '_ {
    nic.ports.iter().map(|port| leaf(headed(format!("port {}", port.name), port_facts(port))))
}

fn port_facts(port: &NetPort) -> Vec<String> {
    let mut facts = Vec::new();
    let gbit = |speed: u64| format!("{} Gbit/s", speed as f64 / 1e3);
    let speed = port.speed_mbit_per_s.filter(|&speed| speed > 0);
    facts.push(match (speed, port.possible_speed_mbit_per_s) {
        (Some(now), Some(possible)) if now < possible => {
            format!("{} (of {})", gbit(now), gbit(possible))
        }
        (Some(now), _) => gbit(now),
        (None, _) => "speed unknown".into(),
    });
    facts.extend((port.port > 0).then(|| format!("number {} of its device", port.port)));
    facts.extend(match port.link_layer {
        LinkLayer::Unknown => None,
        LinkLayer::Ethernet => Some("Ethernet".into()),
        LinkLayer::InfiniBand => Some("InfiniBand".into()),
    });
    facts.extend(match port.state {
        PortState::Unknown => None,
        PortState::Up => Some("up".into()),
        PortState::Down => Some("down".into()),
    });
    for known in [&port.driver, &port.partner].into_iter().filter(|known| !known.is_empty()) {
        facts.push(known.clone());
    }
    facts
}

fn leaf(text: String) -> Branch {
    Branch { text, below: Vec::new() }
}

/// `name: fact, fact`.
fn headed(name: String, facts: Vec<String>) -> String {
    match facts.is_empty() {
        true => name,
        false => format!("{name}: {}", facts.join(", ")),
    }
}

fn gigabytes(bytes_per_s: f64) -> String {
    format!("{:.1} GB/s", bytes_per_s / 1e9)
}
