//! From a machine to its graph: processors, PCIe trees, network cards, links between NUMA nodes. Links of
//! GPUs beside PCIe are in `gpu_links.rs`.

use std::collections::{BTreeMap, BTreeSet};

use super::{Edge, EdgeKind, Graph, NodeId, NodeKind, gpu_links};
use crate::{
    BusId, Gpu, Machine, NetPort, Nic, NumaNode, PciDevice, PcieLink, PortState, Warning, figures,
};

impl Graph {
    /// The graph of a machine, and what had to be assumed for it.
    ///
    /// - NUMA nodes with processors or devices are linked each with each, but for two that, by the
    ///   firmware's distances, have a third which is nearer to both.
    /// - Devices with others below them and bridges are `Bridge`; other devices that are neither GPU nor
    ///   network card are left out.
    /// - Functions of one network card are one `Card`, and share its link.
    /// - NVSwitches are one node, as in NCCL: GPUs spread each message over all of them, so that the bandwidth
    ///   between two GPUs is that of all their links together.
    /// - A port that is down has a node and no edge.
    pub fn new(machine: &Machine) -> (Graph, Vec<Warning>) {
        let mut builder = Builder::default();
        for (place, node) in machine.numa_nodes.iter().enumerate() {
            let name = node.id.map_or("NUMA?".into(), |id| format!("NUMA{id}"));
            let id = builder.graph.add_node(name, NodeKind::Numa(place as u32));
            builder.numa.push(id);
        }
        for (place, node) in machine.numa_nodes.iter().enumerate() {
            let above = Above { node: builder.numa[place], numa: builder.numa[place] };
            builder.devices(above, &node.devices);
            node.nics.iter().for_each(|nic| builder.ports(above.node, nic));
        }
        builder.link_numa_nodes(&machine.numa_nodes);
        builder.link_switches(machine);
        gpu_links::add(&mut builder);
        (builder.graph, builder.warnings)
    }
}

/// What is gathered while the machine is walked.
#[derive(Default)]
pub(super) struct Builder<'a> {
    pub(super) graph: Graph,
    pub(super) warnings: Vec<Warning>,
    /// By place in `Machine::numa_nodes`.
    numa: Vec<NodeId>,
    pub(super) gpus: Vec<BuiltGpu<'a>>,
    bridges: BTreeMap<BusId, NodeId>,
}

/// A GPU that has its node.
pub(super) struct BuiltGpu<'a> {
    pub(super) bus_id: BusId,
    pub(super) gpu: &'a Gpu,
    pub(super) node: NodeId,
    pub(super) numa: NodeId,
}

/// What a device hangs on, and the NUMA node above.
#[derive(Clone, Copy)]
struct Above {
    node: NodeId,
    numa: NodeId,
}

impl<'a> Builder<'a> {
    fn devices(&mut self, above: Above, devices: &'a [PciDevice]) {
        // Functions of one slot are one card.
        let mut cards = BTreeMap::new();
        for device in devices {
            if let Some(gpu) = &device.gpu {
                self.gpu(above, device, gpu);
            }
            if let Some(nic) = &device.nic {
                let slot = BusId { function: 0, ..device.bus_id };
                let card = *cards.entry(slot).or_insert_with(|| self.card(above, device));
                self.ports(card, nic);
            }
            let is_bridge = device.class >> 8 == 0x0604 || !device.children.is_empty();
            if device.gpu.is_some() || device.nic.is_some() {
                if !device.children.is_empty() {
                    let message = "has devices below it: they are taken as beside it";
                    self.warn(device.bus_id.to_string(), message.into());
                }
                self.devices(above, &device.children);
            } else if is_bridge {
                let node = self.bridge(above, device);
                self.devices(Above { node, ..above }, &device.children);
            }
        }
    }

    fn gpu(&mut self, above: Above, device: &PciDevice, gpu: &'a Gpu) {
        let kind = NodeKind::Gpu { index: gpu.index, bus_id: device.bus_id };
        let node = self.graph.add_node(format!("GPU{}", gpu.index), kind);
        self.link_pcie(node, above.node, device, figures::PCIE_DEVICE_LATENCY_NS);
        self.gpus.push(BuiltGpu { bus_id: device.bus_id, gpu, node, numa: above.numa });
    }

    fn card(&mut self, above: Above, device: &PciDevice) -> NodeId {
        let kind = NodeKind::Card(device.bus_id);
        let node = self.graph.add_node(device.bus_id.to_string(), kind);
        self.link_pcie(node, above.node, device, figures::PCIE_DEVICE_LATENCY_NS);
        node
    }

    fn bridge(&mut self, above: Above, device: &PciDevice) -> NodeId {
        let kind = NodeKind::Bridge(device.bus_id);
        let node = self.graph.add_node(device.bus_id.to_string(), kind);
        self.link_pcie(node, above.node, device, figures::PCIE_SWITCH_LATENCY_NS);
        self.bridges.entry(device.bus_id).or_insert(node);
        node
    }

    fn link_pcie(&mut self, from: NodeId, to: NodeId, device: &PciDevice, latency_ns: u64) {
        let mut link = device.link.unwrap_or(PcieLink { gigatransfers_per_s: 0.0, width: 0 });
        let mut assumed = Vec::new();
        if link.gigatransfers_per_s.is_nan() || link.gigatransfers_per_s <= 0.0 {
            link.gigatransfers_per_s = figures::DEFAULT_GIGATRANSFERS_PER_S;
            assumed.push(format!("speed is unknown: {} GT/s assumed", link.gigatransfers_per_s));
        }
        if link.width == 0 {
            link.width = figures::DEFAULT_PCIE_WIDTH;
            assumed.push(format!("width is unknown: x{} assumed", link.width));
        }
        if !assumed.is_empty() {
            self.warn(device.bus_id.to_string(), format!("PCIe {}", assumed.join(", ")));
        }
        let bandwidth_bytes_per_s = figures::pcie_bytes_per_s(link);
        let kind = EdgeKind::Pcie;
        self.graph.add_link(Edge { from, to, kind, links: 1, bandwidth_bytes_per_s, latency_ns });
    }

    fn ports(&mut self, card: NodeId, nic: &Nic) {
        for port in &nic.ports {
            let node = self.graph.add_node(&port.name, NodeKind::Port(port.index));
            if port.state != PortState::Down {
                self.link_port(node, card, port);
            }
        }
    }

    fn link_port(&mut self, from: NodeId, to: NodeId, port: &NetPort) {
        let speed = port.speed_mbit_per_s.filter(|&speed| speed > 0).unwrap_or_else(|| {
            let speed = figures::DEFAULT_PORT_MBIT_PER_S;
            self.warn(port.name.clone(), format!("speed is unknown: {speed} Mbit/s assumed"));
            speed
        });
        let latency_ns = match port.latency_us {
            Some(latency_us) if latency_us > 0.0 => (latency_us * 1000.0) as u64,
            _ => figures::PORT_LATENCY_NS,
        };
        let bandwidth_bytes_per_s = speed as f64 * 1e6 / 8.0;
        let kind = EdgeKind::Net;
        self.graph.add_link(Edge { from, to, kind, links: 1, bandwidth_bytes_per_s, latency_ns });
    }

    /// Nodes that are only memory (a GPU's, as Linux shows it) carry nobody's traffic.
    fn link_numa_nodes(&mut self, nodes: &[NumaNode]) {
        let is_empty = |node: &NumaNode| node.devices.is_empty() && node.nics.is_empty();
        let only_memory = |node: &NumaNode| node.cpus.is_empty() && is_empty(node);
        let any_cpus = nodes.iter().any(|node| !node.cpus.is_empty());
        let linked: Vec<usize> =
            (0..nodes.len()).filter(|&i| !(any_cpus && only_memory(&nodes[i]))).collect();
        let far: Vec<Vec<Option<u32>>> =
            nodes.iter().map(|a| nodes.iter().map(|b| distance(a, b)).collect()).collect();
        for (place, &a) in linked.iter().enumerate() {
            for &b in &linked[place + 1..] {
                let nearer = |c: usize, d: usize| {
                    far[a][b].zip(far[c][d]).is_some_and(|(direct, part)| part < direct)
                };
                let mut others = linked.iter().filter(|&&c| c != a && c != b);
                if !others.any(|&c| nearer(a, c) && nearer(c, b)) {
                    self.link_pair(a, b, nodes);
                }
            }
        }
    }

    fn link_pair(&mut self, a: usize, b: usize, nodes: &[NumaNode]) {
        let same_package =
            nodes[a].package.is_some_and(|package| Some(package) == nodes[b].package);
        let (kind, bandwidth_bytes_per_s, latency_ns) = match same_package {
            true => (EdgeKind::Die, figures::DIE_BYTES_PER_S, figures::DIE_LATENCY_NS),
            false => {
                let slower = self.socket_figure(&nodes[a]).min(self.socket_figure(&nodes[b]));
                (EdgeKind::Socket, slower, figures::SOCKET_LATENCY_NS)
            }
        };
        let (from, to) = (self.numa[a], self.numa[b]);
        self.graph.add_link(Edge { from, to, kind, links: 1, bandwidth_bytes_per_s, latency_ns });
    }

    fn socket_figure(&mut self, node: &NumaNode) -> f64 {
        figures::socket_bytes_per_s(node).unwrap_or_else(|| {
            let figure = figures::SOCKET_BYTES_PER_S;
            let gigabytes = figure / 1e9;
            let unknown = match node.vendor.is_empty() {
                true => "its processor is unknown".into(),
                false => format!("its processor is by {:?}, of which none is known", node.vendor),
            };
            let message = format!("{unknown}: links between packages of {gigabytes} GB/s assumed");
            self.warn_once(node.id.map_or("NUMA?".into(), |id| format!("NUMA{id}")), message);
            figure
        })
    }

    /// Virtual switches of one chip that reach each other inside it.
    fn link_switches(&mut self, machine: &Machine) {
        let mut linked = BTreeSet::new();
        for placed in machine.devices() {
            for &peer in &placed.device.switch_peers {
                let bus_id = placed.device.bus_id;
                let (Some(&from), Some(&to)) = (self.bridges.get(&bus_id), self.bridges.get(&peer))
                else {
                    let message = format!("has a link with {peer}, which is not here: left out");
                    self.warn(bus_id.to_string(), message);
                    continue;
                };
                if from != to && linked.insert((from.min(to), from.max(to))) {
                    let (kind, links) = (EdgeKind::Pcie, 1);
                    let bandwidth_bytes_per_s = figures::INSIDE_SWITCH_BYTES_PER_S;
                    let latency_ns = figures::PCIE_SWITCH_LATENCY_NS;
                    self.graph.add_link(Edge {
                        from,
                        to,
                        kind,
                        links,
                        bandwidth_bytes_per_s,
                        latency_ns,
                    });
                }
            }
        }
    }

    pub(super) fn warn(&mut self, subject: String, message: String) {
        self.warnings.push(Warning { subject, message });
    }

    fn warn_once(&mut self, subject: String, message: String) {
        let warning = Warning { subject, message };
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}

/// The larger of both directions; `None` if neither is given.
fn distance(a: &NumaNode, b: &NumaNode) -> Option<u32> {
    let says = |from: &NumaNode, to: &NumaNode| {
        let id = to.id?;
        from.distances.iter().find(|(node, _)| *node == id).map(|&(_, distance)| distance)
    };
    says(a, b).max(says(b, a))
}
