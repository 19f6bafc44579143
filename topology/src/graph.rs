//! A machine as nodes and directed edges with bandwidths and latencies: what paths, rings and trees are
//! sought in. Made from a [`Machine`](crate::Machine).

mod build;
mod gpu_links;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::machine::BusId;

/// Number of a node of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct NodeId(pub u32);

/// Number of a directed edge of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct EdgeId(pub u32);

/// Nodes and directed edges. Every link is two edges, one each way, with the same figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Graph {
    /// By [`NodeId`].
    pub nodes: Vec<Node>,
    /// By [`EdgeId`]; an edge and the one back are neighbours: 2 i and 2 i + 1.
    pub edges: Vec<Edge>,
}

/// A part of the machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// What people call it: `GPU0`, `mlx5_0`, `NUMA1`, `0000:1a:00.0`.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum NodeKind {
    /// Processors and memory; the number is the place in `Machine::numa_nodes`.
    Numa(u32),
    /// A PCIe bridge or switch.
    Bridge(BusId),
    /// A GPU; the number is the driver's.
    Gpu {
        #[allow(missing_docs)]
        index: u32,
        #[allow(missing_docs)]
        bus_id: BusId,
    },
    /// All NVSwitches of the machine as one; the bus id is that of the lowest.
    NvSwitch(BusId),
    /// A network card: what its ports share is its PCIe link.
    Card(BusId),
    /// A port of a network card; the number is the port's in the machine.
    Port(u32),
}

/// One direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Edge {
    #[allow(missing_docs)]
    pub from: NodeId,
    #[allow(missing_docs)]
    pub to: NodeId,
    /// What it is.
    pub kind: EdgeKind,
    /// How many equal links the bundle has, of which `bandwidth_bytes_per_s` is the sum; 1 for all but
    /// links of GPUs.
    pub links: u32,
    /// Bytes a second in this direction.
    pub bandwidth_bytes_per_s: f64,
    /// Of one message, one way.
    pub latency_ns: u64,
}

/// What a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum EdgeKind {
    /// Between a device, bridges and a processor.
    Pcie,
    /// NVIDIA's, between GPUs, with a switch or a processor.
    NvLink,
    /// AMD's, between GPUs.
    Xgmi,
    /// NVIDIA's, between a GPU and its processor.
    C2c,
    /// Between NUMA nodes of one package.
    Die,
    /// Between packages.
    Socket,
    /// Between a network card (or, for one without a PCIe device, a processor) and its port: the
    /// port's speed.
    Net,
}

impl Graph {
    /// The node of that number.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The edge of that number.
    pub fn edge(&self, id: EdgeId) -> &Edge {
        &self.edges[id.0 as usize]
    }

    /// Adds a node.
    pub fn add_node(&mut self, name: impl Into<String>, kind: NodeKind) -> NodeId {
        self.nodes.push(Node { name: name.into(), kind });
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// Adds a link: two edges. Returns the one from `from` to `to`.
    pub fn add_link(&mut self, mut edge: Edge) -> EdgeId {
        self.edges.push(edge);
        (edge.from, edge.to) = (edge.to, edge.from);
        self.edges.push(edge);
        EdgeId(self.edges.len() as u32 - 2)
    }

    /// The GPUs in the order of their numbers.
    pub fn gpus(&self) -> Vec<NodeId> {
        self.numbered(|kind| match kind {
            NodeKind::Gpu { index, .. } => Some(index),
            _ => None,
        })
    }

    /// The ports of network cards in the order of their numbers, those that are down included.
    pub fn ports(&self) -> Vec<NodeId> {
        self.numbered(|kind| match kind {
            NodeKind::Port(index) => Some(index),
            _ => None,
        })
    }

    /// The NUMA nodes in the order of `Machine::numa_nodes`.
    pub fn numa_nodes(&self) -> Vec<NodeId> {
        self.numbered(|kind| match kind {
            NodeKind::Numa(place) => Some(place),
            _ => None,
        })
    }

    fn numbered(&self, number: impl Fn(NodeKind) -> Option<u32>) -> Vec<NodeId> {
        let nodes = self.nodes.iter().enumerate();
        let mut found: Vec<_> =
            nodes.filter_map(|(i, node)| Some((number(node.kind)?, NodeId(i as u32)))).collect();
        found.sort();
        found.into_iter().map(|(_, id)| id).collect()
    }
}
