//! The way between two nodes, and its class in NCCL's terms.

use std::collections::BinaryHeap;

use serde::Serialize;

use crate::{Edge, EdgeId, EdgeKind, Graph, NodeId, NodeKind};

/// How near two devices are, the nearest first. The names are NCCL's; AMD's xgmi counts as NVLink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum PathClass {
    /// The same device.
    Loc,
    /// NVLink or xgmi: direct or through NVSwitches.
    Nvl,
    /// NVLink or xgmi through one other GPU.
    Nvb,
    /// NVIDIA's link between chips: a GPU and its processor.
    C2c,
    /// PCIe through one switch.
    Pix,
    /// PCIe through several switches.
    Pxb,
    /// A GPU's link between chips, then PCIe.
    P2c,
    /// PCIe through the host bridges of one NUMA node.
    Phb,
    /// Through several NUMA nodes.
    Sys,
    /// Through the network: devices of different hosts, and so of no single graph.
    Net,
    /// Not connected.
    Dis,
}

impl PathClass {
    /// As tables and logs have it: `PIX`.
    pub fn name(self) -> &'static str {
        match self {
            PathClass::Loc => "LOC",
            PathClass::Nvl => "NVL",
            PathClass::Nvb => "NVB",
            PathClass::C2c => "C2C",
            PathClass::Pix => "PIX",
            PathClass::Pxb => "PXB",
            PathClass::P2c => "P2C",
            PathClass::Phb => "PHB",
            PathClass::Sys => "SYS",
            PathClass::Net => "NET",
            PathClass::Dis => "DIS",
        }
    }
}

/// A way through the graph.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Path {
    /// In the order of the way; empty from a node to itself.
    pub edges: Vec<EdgeId>,
    #[allow(missing_docs)]
    pub class: PathClass,
    /// Of the narrowest edge; infinite from a node to itself.
    pub bottleneck_bytes_per_s: f64,
    /// Sum over the edges.
    pub latency_ns: u64,
}

impl Path {
    /// Number of edges.
    pub fn hops(&self) -> usize {
        self.edges.len()
    }

    /// The first edge that has the bottleneck; `None` from a node to itself.
    pub fn narrowest(&self, graph: &Graph) -> Option<EdgeId> {
        let narrow =
            |id: &&EdgeId| graph.edge(**id).bandwidth_bytes_per_s <= self.bottleneck_bytes_per_s;
        self.edges.iter().find(narrow).copied()
    }

    /// As in a table: `NV18` with the number of links, `XGMI`, otherwise the class.
    pub fn label(&self, graph: &Graph) -> String {
        let edges = || self.edges.iter().map(|&id| graph.edge(id));
        if self.class != PathClass::Nvl {
            return self.class.name().into();
        }
        match edges().any(|edge| edge.kind == EdgeKind::Xgmi) {
            true => "XGMI".into(),
            false => format!("NV{}", edges().map(|edge| edge.links).min().unwrap_or(0)),
        }
    }
}

impl Graph {
    /// The way from one node to another; `None` if there is none.
    ///
    /// Between GPUs a way over their own links (NVLink, xgmi), direct or through NVSwitches, goes before all
    /// others, since it shares nothing with cards and processors. Otherwise it is the widest; of the widest
    /// the one with fewest hops; of those the one with the lowest latency. It runs through no GPU and no
    /// port, except that two GPUs without links of their own take those of a third which has some with
    /// both, if that is wider (NCCL's NVB).
    ///
    /// The way back is the same in reverse.
    pub fn path(&self, from: NodeId, to: NodeId) -> Option<Path> {
        if from == to {
            return Some(self.finish(from, Vec::new()));
        }
        let (a, b) = (from.min(to), from.max(to));
        let mut edges = self.route(a, b)?;
        if a != from {
            edges.reverse();
            // The edge back is the neighbour of each.
            edges.iter_mut().for_each(|edge| edge.0 ^= 1);
        }
        Some(self.finish(from, edges))
    }

    /// The class of the way from one node to another.
    pub fn path_class(&self, from: NodeId, to: NodeId) -> PathClass {
        self.path(from, to).map_or(PathClass::Dis, |path| path.class)
    }

    /// The ports of the nearest class to a GPU, and of those the ones with the widest way to it, in the
    /// order of their numbers. Empty if it reaches none.
    pub fn nearest_ports(&self, gpu: NodeId) -> Vec<NodeId> {
        let ports = self.ports().into_iter();
        let ways: Vec<_> = ports.filter_map(|port| Some((port, self.path(gpu, port)?))).collect();
        let Some(class) = ways.iter().map(|(_, path)| path.class).min() else { return Vec::new() };
        let near = || ways.iter().filter(|(_, path)| path.class == class);
        let width = near().map(|(_, path)| path.bottleneck_bytes_per_s).fold(0.0, f64::max);
        near()
            .filter(|(_, path)| path.bottleneck_bytes_per_s >= width)
            .map(|(port, _)| *port)
            .collect()
    }

    fn route(&self, from: NodeId, to: NodeId) -> Option<Vec<EdgeId>> {
        let is_gpu = |node| matches!(self.node(node).kind, NodeKind::Gpu { .. });
        if !(is_gpu(from) && is_gpu(to)) {
            return self.widest(from, to, |_| true);
        }
        if let Some(own) = self.widest(from, to, is_gpu_link) {
            return Some(own);
        }
        let other = self.widest(from, to, |_| true);
        let over_gpu = self.over_one_gpu(from, to);
        let width = |edges: &Option<Vec<EdgeId>>| {
            edges.as_ref().map_or(0.0, |edges| self.bottleneck(edges))
        };
        if width(&over_gpu) > width(&other) { over_gpu } else { other }
    }

    /// The widest pair of links from one GPU to a third and from there to the other.
    fn over_one_gpu(&self, from: NodeId, to: NodeId) -> Option<Vec<EdgeId>> {
        let mut best: Option<Vec<EdgeId>> = None;
        for (first, second) in self.gpu_links_from(from).flat_map(|first| {
            let middle = self.edge(first).to;
            let onward = self.gpu_links_from(middle);
            onward.filter(|&second| self.edge(second).to == to).map(move |second| (first, second))
        }) {
            let edges = vec![first, second];
            let wider =
                best.as_ref().is_none_or(|best| self.bottleneck(&edges) > self.bottleneck(best));
            if wider {
                best = Some(edges);
            }
        }
        best
    }

    /// Links from a GPU to GPUs.
    fn gpu_links_from(&self, from: NodeId) -> impl Iterator<Item = EdgeId> + '_ {
        let is_gpu = |node| matches!(self.node(node).kind, NodeKind::Gpu { .. });
        (0..self.edges.len() as u32).map(EdgeId).filter(move |&id| {
            let edge = self.edge(id);
            edge.from == from && is_gpu_link(edge) && is_gpu(edge.to) && is_gpu(from)
        })
    }

    /// The widest way over the edges that are allowed, then fewest hops, then lowest latency.
    ///
    /// Two searches, since the widest way to a node need not begin with the widest one of fewest hops to
    /// the node before it.
    fn widest(
        &self,
        from: NodeId,
        to: NodeId,
        allowed: impl Fn(&Edge) -> bool,
    ) -> Option<Vec<EdgeId>> {
        let mut onward = vec![Vec::new(); self.nodes.len()];
        for (id, edge) in self.edges.iter().enumerate().filter(|(_, edge)| allowed(edge)) {
            onward[edge.from.0 as usize].push(EdgeId(id as u32));
        }
        let width = self.width(from, to, &onward)?;
        let wide_enough = |&id: &EdgeId| self.edge(id).bandwidth_bytes_per_s.to_bits() >= width;
        onward.iter_mut().for_each(|edges| edges.retain(wide_enough));
        self.shortest(from, to, &onward)
    }

    /// The bottleneck of the widest way, as bits: those of positive numbers are ordered as the numbers are.
    fn width(&self, from: NodeId, to: NodeId, onward: &[Vec<EdgeId>]) -> Option<u64> {
        let mut best = vec![0; self.nodes.len()];
        let mut heap = BinaryHeap::from([(u64::MAX, from)]);
        while let Some((width, node)) = heap.pop() {
            if node == to {
                return Some(width);
            }
            if node != from && !self.lets_through(node) {
                continue;
            }
            for &id in &onward[node.0 as usize] {
                let edge = self.edge(id);
                let through = width.min(edge.bandwidth_bytes_per_s.to_bits());
                let known = &mut best[edge.to.0 as usize];
                if through > *known {
                    *known = through;
                    heap.push((through, edge.to));
                }
            }
        }
        None
    }

    /// By hops, then latency, then the lowest edges.
    fn shortest(&self, from: NodeId, to: NodeId, onward: &[Vec<EdgeId>]) -> Option<Vec<EdgeId>> {
        use std::cmp::Reverse;
        let mut best: Vec<Option<(u32, u64, EdgeId)>> = vec![None; self.nodes.len()];
        let mut heap = BinaryHeap::from([Reverse((0, 0_u64, from))]);
        while let Some(Reverse((hops, latency_ns, node))) = heap.pop() {
            if node == to {
                break;
            }
            if node != from && !self.lets_through(node) {
                continue;
            }
            for &id in &onward[node.0 as usize] {
                let edge = self.edge(id);
                let cost = (hops + 1, latency_ns.saturating_add(edge.latency_ns), id);
                let known = &mut best[edge.to.0 as usize];
                if edge.to != from && known.is_none_or(|known| cost < known) {
                    *known = Some(cost);
                    heap.push(Reverse((cost.0, cost.1, edge.to)));
                }
            }
        }
        let mut edges = Vec::new();
        let mut node = to;
        while node != from {
            let (_, _, id) = best[node.0 as usize]?;
            edges.push(id);
            node = self.edge(id).from;
        }
        edges.reverse();
        Some(edges)
    }

    fn lets_through(&self, node: NodeId) -> bool {
        !matches!(self.node(node).kind, NodeKind::Gpu { .. } | NodeKind::Port(_))
    }

    fn bottleneck(&self, edges: &[EdgeId]) -> f64 {
        let widths = edges.iter().map(|&id| self.edge(id).bandwidth_bytes_per_s);
        widths.fold(f64::INFINITY, f64::min)
    }

    fn finish(&self, from: NodeId, edges: Vec<EdgeId>) -> Path {
        Path {
            class: self.classify(from, &edges),
            bottleneck_bytes_per_s: self.bottleneck(&edges),
            latency_ns: edges
                .iter()
                .fold(0, |sum: u64, &id| sum.saturating_add(self.edge(id).latency_ns)),
            edges,
        }
    }

    fn classify(&self, from: NodeId, edges: &[EdgeId]) -> PathClass {
        let any = |kinds: &[EdgeKind]| edges.iter().any(|&id| kinds.contains(&self.edge(id).kind));
        let inner = || edges.iter().skip(1).map(|&id| self.edge(id).from);
        let is_numa = |node| matches!(self.node(node).kind, NodeKind::Numa(_));
        let through_gpu = inner().any(|node| matches!(self.node(node).kind, NodeKind::Gpu { .. }));
        let last = edges.last().map_or(from, |&id| self.edge(id).to);
        let through_numa = is_numa(from) || is_numa(last) || inner().any(is_numa);
        let pcie = any(&[EdgeKind::Pcie, EdgeKind::Net]);
        if edges.is_empty() {
            PathClass::Loc
        } else if any(&[EdgeKind::Socket, EdgeKind::Die]) {
            PathClass::Sys
        } else if through_gpu {
            PathClass::Nvb
        } else if !pcie {
            if any(&[EdgeKind::C2c]) { PathClass::C2c } else { PathClass::Nvl }
        } else if any(&[EdgeKind::C2c]) {
            PathClass::P2c
        } else if through_numa {
            PathClass::Phb
        } else if inner().filter(|&node| self.branches(node)).count() > 1 {
            PathClass::Pxb
        } else {
            PathClass::Pix
        }
    }

    /// Whether a node is a PCIe switch with at least two things below it. One with a single thing below, be it
    /// a root port, a switch's own port or a part of a larger switch, is no more than a wire.
    fn branches(&self, node: NodeId) -> bool {
        matches!(self.node(node).kind, NodeKind::Bridge(_))
            && self.edges.iter().filter(|edge| edge.from == node).count() > 2
    }
}

fn is_gpu_link(edge: &Edge) -> bool {
    matches!(edge.kind, EdgeKind::NvLink | EdgeKind::Xgmi)
}

#[cfg(test)]
mod tests;
