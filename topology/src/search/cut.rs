//! An upper bound for all rings together: every ring goes from any device to any other, hence through every
//! cut between them. The narrowest such cut is found by maximum flows (Edmonds and Karp, 1972).

use std::collections::VecDeque;

use crate::graph::{EdgeId, Graph, NodeId};

/// The narrowest cut between devices.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    /// What it lets through.
    pub capacity: f64,
    /// The edges of it, from its one side to the other.
    pub edges: Vec<EdgeId>,
}

/// The narrowest cut between any two groups of nodes; of equal ones the first. A group's nodes count as one.
/// `None` if there are fewer than two groups.
pub(super) fn narrowest(graph: &Graph, groups: &[Vec<NodeId>]) -> Option<Cut> {
    let mut node_of: Vec<usize> = (0..graph.nodes.len()).collect();
    for group in groups {
        group.iter().for_each(|node| node_of[node.0 as usize] = group[0].0 as usize);
    }
    let mut network = Network::new(graph, &node_of);
    let heads: Vec<_> = groups.iter().map(|group| group[0].0 as usize).collect();
    let (first, rest) = heads.split_first()?;
    let pairs = rest.iter().flat_map(|other| [(*other, *first), (*first, *other)]);
    let mut best: Option<Cut> = None;
    for (from, to) in pairs {
        let capacity = network.flow(from, to);
        if best.as_ref().is_none_or(|best| capacity < best.capacity * (1.0 - 1e-9)) {
            best = Some(Cut { capacity, edges: network.cut(graph, from) });
        }
    }
    best
}

/// Arcs 2 i and 2 i + 1 are an edge and what of its flow can be taken back.
struct Network {
    from: Vec<usize>,
    to: Vec<usize>,
    capacity: Vec<f64>,
    rest: Vec<f64>,
    out: Vec<Vec<usize>>,
}

impl Network {
    fn new(graph: &Graph, node_of: &[usize]) -> Network {
        let count = graph.nodes.len();
        let (from, to, capacity) = (Vec::new(), Vec::new(), Vec::new());
        let mut network =
            Network { from, to, capacity, rest: Vec::new(), out: vec![Vec::new(); count] };
        for edge in &graph.edges {
            let bandwidth = edge.bandwidth_bytes_per_s;
            let usable = if bandwidth.is_finite() { bandwidth.max(0.0) } else { 0.0 };
            let (from, to) = (node_of[edge.from.0 as usize], node_of[edge.to.0 as usize]);
            for (from, to, capacity) in [(from, to, usable), (to, from, 0.0)] {
                network.out[from].push(network.to.len());
                network.from.push(from);
                network.to.push(to);
                network.capacity.push(capacity);
            }
        }
        network
    }

    /// The greatest flow.
    fn flow(&mut self, from: usize, to: usize) -> f64 {
        self.rest.clone_from(&self.capacity);
        let mut total = 0.0;
        while let Some(path) = self.shortest(from, to) {
            let width = path.iter().map(|&arc| self.rest[arc]).fold(f64::INFINITY, f64::min);
            for arc in path {
                self.rest[arc] -= width;
                self.rest[arc ^ 1] += width;
            }
            total += width;
        }
        total
    }

    fn shortest(&self, from: usize, to: usize) -> Option<Vec<usize>> {
        let by = self.reached(from, Some(to));
        let (mut path, mut at) = (Vec::new(), to);
        while at != from {
            let arc = by[at]?;
            path.push(arc);
            at = self.from[arc];
        }
        Some(path)
    }

    /// For each node that more could flow to, the arc by which; if only `until` is wanted, no more than it takes to
    /// find that.
    fn reached(&self, from: usize, until: Option<usize>) -> Vec<Option<usize>> {
        let mut by = vec![None; self.out.len()];
        let mut waiting = VecDeque::from([from]);
        while let Some(node) = waiting.pop_front() {
            for &arc in &self.out[node] {
                let to = self.to[arc];
                // What is left of a full arc by rounding is nothing.
                let full = self.rest[arc] <= 1e-12 * self.capacity[arc].max(self.capacity[arc ^ 1]);
                if to != from && by[to].is_none() && !full {
                    by[to] = Some(arc);
                    if until == Some(to) {
                        return by;
                    }
                    waiting.push_back(to);
                }
            }
        }
        by
    }

    /// The edges from what can still be reached to what cannot, after the greatest flow.
    fn cut(&self, graph: &Graph, from: usize) -> Vec<EdgeId> {
        let by = self.reached(from, None);
        let inside = |node: usize| node == from || by[node].is_some();
        let edges = (0..graph.edges.len()).filter(|edge| {
            let arc = 2 * edge;
            self.capacity[arc] > 0.0 && inside(self.from[arc]) && !inside(self.to[arc])
        });
        edges.map(|edge| EdgeId(edge as u32)).collect()
    }
}
