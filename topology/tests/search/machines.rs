//! Machines to search in, built by hand. Rates are in GB/s here and bytes a second in the graph.

use ringtree_topology::{BusId, Edge, EdgeId, EdgeKind, Graph, NodeId, NodeKind};

pub const GB: f64 = 1e9;

/// A graph that grows.
#[derive(Default)]
pub struct Machine {
    pub graph: Graph,
    pub gpus: Vec<NodeId>,
    pub ports: Vec<NodeId>,
    buses: u8,
}

impl Machine {
    pub fn numa(&mut self) -> NodeId {
        let number =
            self.graph.nodes.iter().filter(|n| matches!(n.kind, NodeKind::Numa(_))).count();
        self.graph.add_node(format!("NUMA{number}"), NodeKind::Numa(number as u32))
    }

    pub fn bridge(&mut self, above: NodeId, rate: f64) -> NodeId {
        let bus = self.bus();
        let bridge = self.graph.add_node(bus.to_string(), NodeKind::Bridge(bus));
        self.link(bridge, above, EdgeKind::Pcie, rate);
        bridge
    }

    /// A GPU; with a rate of 0 it has no PCIe link.
    pub fn gpu(&mut self, above: NodeId, rate: f64) -> NodeId {
        let (index, bus_id) = (self.gpus.len() as u32, self.bus());
        let gpu = self.graph.add_node(format!("GPU{index}"), NodeKind::Gpu { index, bus_id });
        if rate > 0.0 {
            self.link(gpu, above, EdgeKind::Pcie, rate);
        }
        self.gpus.push(gpu);
        gpu
    }

    /// A card with one port.
    pub fn port(&mut self, above: NodeId, pcie: f64, net: f64) -> NodeId {
        let number = self.ports.len();
        let bus = self.bus();
        let card = self.graph.add_node(bus.to_string(), NodeKind::Card(bus));
        self.link(card, above, EdgeKind::Pcie, pcie);
        let port = self.graph.add_node(format!("mlx5_{number}"), NodeKind::Port(number as u32));
        self.link(card, port, EdgeKind::Net, net);
        self.ports.push(port);
        port
    }

    pub fn switch(&mut self) -> NodeId {
        let bus = self.bus();
        self.graph.add_node("NVSwitch", NodeKind::NvSwitch(bus))
    }

    pub fn link(&mut self, from: NodeId, to: NodeId, kind: EdgeKind, rate: f64) -> EdgeId {
        let bandwidth_bytes_per_s = rate * GB;
        self.graph.add_link(Edge {
            from,
            to,
            kind,
            links: 1,
            bandwidth_bytes_per_s,
            latency_ns: 500,
        })
    }

    fn bus(&mut self) -> BusId {
        self.buses += 1;
        BusId { bus: self.buses, ..BusId::default() }
    }
}

/// GPUs on one switch, without PCIe.
pub fn nvswitch(gpus: usize, rate: f64) -> Machine {
    let mut machine = Machine::default();
    let numa = machine.numa();
    let switch = machine.switch();
    for _ in 0..gpus {
        let gpu = machine.gpu(numa, 0.0);
        machine.link(gpu, switch, EdgeKind::NvLink, rate);
    }
    machine
}

/// Like a DGX H100: two sockets, four switches of two GPUs and two ports each.
pub fn dgx(gpus: usize, nvlink: f64, pcie: f64, net: f64) -> Machine {
    let mut machine = Machine::default();
    let sockets = [machine.numa(), machine.numa()];
    machine.link(sockets[0], sockets[1], EdgeKind::Socket, 40.0);
    let switch = machine.switch();
    for pair in 0..gpus / 2 {
        let bridge = machine.bridge(sockets[pair / gpus.div_ceil(4)], pcie);
        for _ in 0..2 {
            let gpu = machine.gpu(bridge, pcie);
            machine.link(gpu, switch, EdgeKind::NvLink, nvlink);
            machine.port(bridge, pcie, net);
        }
    }
    machine
}

/// GPUs linked in pairs, each with PCIe to its socket.
pub fn pairs(gpus: usize, nvlink: f64, pcie: f64, socket: f64) -> Machine {
    let mut machine = Machine::default();
    let sockets = [machine.numa(), machine.numa()];
    machine.link(sockets[0], sockets[1], EdgeKind::Socket, socket);
    for i in 0..gpus {
        machine.gpu(sockets[i * 2 / gpus], pcie);
    }
    for i in (0..gpus).step_by(2) {
        machine.link(machine.gpus[i], machine.gpus[i + 1], EdgeKind::NvLink, nvlink);
    }
    machine
}

/// Two sockets with switches of four GPUs each, without links between GPUs.
pub fn pcie_tree(gpus: usize, pcie: f64, socket: f64) -> Machine {
    let mut machine = Machine::default();
    let sockets = [machine.numa(), machine.numa()];
    machine.link(sockets[0], sockets[1], EdgeKind::Socket, socket);
    let bridges = gpus.div_ceil(4);
    for bridge in 0..bridges {
        let above = machine.bridge(sockets[bridge * 2 / bridges.max(2)], pcie);
        for _ in 0..4.min(gpus - 4 * bridge) {
            machine.gpu(above, pcie);
        }
    }
    machine
}

/// The links of a DGX-1 with V100, each 25 GB/s: pairs with one or two links.
pub const DGX1V: [(usize, usize, u32); 16] = [
    (0, 1, 1),
    (0, 2, 1),
    (0, 3, 2),
    (0, 4, 2),
    (1, 2, 2),
    (1, 3, 1),
    (1, 5, 2),
    (2, 3, 2),
    (2, 6, 1),
    (3, 7, 1),
    (4, 5, 1),
    (4, 6, 1),
    (4, 7, 2),
    (5, 6, 2),
    (5, 7, 1),
    (6, 7, 2),
];

/// Four GPUs a socket in a hybrid cube mesh; with a PCIe rate of 0 without PCIe.
pub fn dgx1v(pcie: f64) -> Machine {
    let mut machine = Machine::default();
    let sockets = [machine.numa(), machine.numa()];
    machine.link(sockets[0], sockets[1], EdgeKind::Socket, 10.0);
    for pair in 0..4 {
        let bridge = machine.bridge(sockets[pair / 2], pcie.max(1.0));
        machine.gpu(bridge, pcie);
        machine.gpu(bridge, pcie);
    }
    for (a, b, links) in DGX1V {
        let (a, b) = (machine.gpus[a], machine.gpus[b]);
        machine.link(a, b, EdgeKind::NvLink, 25.0 * f64::from(links));
    }
    machine
}

/// GPUs of AMD, each linked with each but for some pairs.
pub fn xgmi(gpus: usize, rate: f64, missing: &[(usize, usize)]) -> Machine {
    let mut machine = Machine::default();
    let sockets = [machine.numa(), machine.numa()];
    machine.link(sockets[0], sockets[1], EdgeKind::Socket, 16.0);
    (0..gpus).for_each(|i| _ = machine.gpu(sockets[i * 2 / gpus], 24.0));
    for (a, b) in (0..gpus).flat_map(|a| (a + 1..gpus).map(move |b| (a, b))) {
        if !missing.contains(&(a, b)) {
            machine.link(machine.gpus[a], machine.gpus[b], EdgeKind::Xgmi, rate);
        }
    }
    machine
}

/// Numbers that look random, the same for the same seed.
pub struct Scattered(pub u64);

impl Scattered {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// One or two sockets, some switches, GPUs anywhere below, some links between GPUs, all of odd rates.
pub fn scattered(gpus: usize, seed: u64) -> Machine {
    let mut random = Scattered(seed);
    let mut machine = Machine::default();
    let mut above = vec![machine.numa()];
    if random.below(2) == 1 {
        let other = machine.numa();
        machine.link(above[0], other, EdgeKind::Socket, 5.0 + random.below(20) as f64);
        above.push(other);
    }
    for _ in 0..random.below(4) {
        let parent = above[random.below(above.len() as u64) as usize];
        let bridge = machine.bridge(parent, 6.0 + random.below(20) as f64);
        above.push(bridge);
    }
    for _ in 0..gpus {
        let parent = above[random.below(above.len() as u64) as usize];
        machine.gpu(parent, 6.0 + random.below(20) as f64);
    }
    for _ in 0..random.below(2 * gpus as u64) {
        let (a, b) = (random.below(gpus as u64) as usize, random.below(gpus as u64) as usize);
        let ends = [machine.gpus[a], machine.gpus[b]];
        let linked = |edge: &Edge| [edge.from, edge.to] == ends;
        if a != b && !machine.graph.edges.iter().any(linked) {
            let rate = 10.0 * (1 + random.below(4)) as f64;
            machine.link(ends[0], ends[1], EdgeKind::NvLink, rate);
        }
    }
    machine
}

/// The same machine with its GPUs' nodes in another order.
pub fn relabelled(machine: &Machine, seed: u64) -> (Graph, Vec<NodeId>) {
    let mut random = Scattered(seed);
    let count = machine.graph.nodes.len();
    let mut place: Vec<usize> = (0..count).collect();
    (1..count).for_each(|i| place.swap(i, random.below(i as u64 + 1) as usize));
    let mut nodes = machine.graph.nodes.clone();
    (0..count).for_each(|i| nodes[place[i]] = machine.graph.nodes[i].clone());
    let new = |id: NodeId| NodeId(place[id.0 as usize] as u32);
    let edges = machine.graph.edges.iter();
    let edges = edges.map(|edge| Edge { from: new(edge.from), to: new(edge.to), ..*edge });
    let mut gpus: Vec<_> = machine.gpus.iter().map(|&gpu| new(gpu)).collect();
    gpus.rotate_left(1);
    (Graph { nodes, edges: edges.collect() }, gpus)
}
