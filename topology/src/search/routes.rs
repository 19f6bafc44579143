//! The ways by which data can go from one device to another, and what they share.
//!
//! Software does not choose a whole path: it chooses by which link data leaves a device, by which one it
//! arrives, and whether another GPU forwards it. The hardware does the rest. So there are few routes between
//! two devices:
//!
//! - over links between GPUs: directly, or through a switch of such links;
//! - if there is none of these: over the links of one GPU between them, which forwards (NCCL's NVB), of many the
//!   widest;
//! - through bridges and processors: for each link out of the one and each into the other, the one with the
//!   fewest links between them, of these the widest.
//!
//! What limits is a [`Constraint`]: the capacity of one or several links that every route uses together or
//! not at all, as bridges in a row.

use std::collections::BTreeMap;

use crate::graph::{Edge, EdgeId, EdgeKind, Graph, NodeId, NodeKind};

/// So many GPUs between two others forward at most: all that sixteen GPUs have of them.
const MOST_FORWARDING: usize = 14;

/// Everything that a search must know of a graph.
pub(super) struct Routes {
    /// Number of endpoints.
    pub count: usize,
    /// What limits, in the order of the links.
    pub constraints: Vec<Constraint>,
    /// Routes from endpoint `i` to endpoint `j` at `i * count + j`; none from one to itself.
    between: Vec<Vec<Route>>,
}

/// One way from an endpoint to another.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// The links, in order; those that are used side by side follow each other.
    pub edges: Vec<EdgeId>,
    /// Numbers of the constraints that it uses, each once.
    pub constraints: Vec<usize>,
}

/// Links that are always used together.
#[derive(Clone, Debug)]
pub(super) struct Constraint {
    /// The narrowest of them.
    pub edges: Vec<EdgeId>,
    /// Of these, in bytes a second.
    pub capacity: f64,
}

impl Routes {
    /// Between all endpoints, which are nodes of the graph.
    pub fn new(graph: &Graph, endpoints: &[NodeId]) -> Routes {
        let wiring = Wiring::new(graph);
        let mut between = Vec::with_capacity(endpoints.len() * endpoints.len());
        for &from in endpoints {
            between.extend(wiring.routes(graph, from, endpoints));
        }
        let constraints = constraints(&wiring.bundles, &between);
        let mut number = vec![None; wiring.bundles.len()];
        for (i, (members, _)) in constraints.iter().enumerate() {
            members.iter().for_each(|&bundle| number[bundle] = Some(i));
        }
        let route = |bundles: &Vec<usize>| {
            let edges = bundles.iter().flat_map(|&b| wiring.bundles[b].edges.iter().copied());
            let mut constraints: Vec<_> = bundles.iter().filter_map(|&b| number[b]).collect();
            constraints.sort_unstable();
            constraints.dedup();
            Route { edges: edges.collect(), constraints }
        };
        Routes {
            count: endpoints.len(),
            constraints: constraints.into_iter().map(|(_, constraint)| constraint).collect(),
            between: between.iter().map(|routes| routes.iter().map(route).collect()).collect(),
        }
    }

    /// From endpoint `from` to endpoint `to`.
    pub fn between(&self, from: usize, to: usize) -> &[Route] {
        &self.between[from * self.count + to]
    }

    /// What a route can carry alone.
    pub fn bottleneck(&self, route: &Route) -> f64 {
        let capacities = route.constraints.iter().map(|&c| self.constraints[c].capacity);
        capacities.fold(f64::INFINITY, f64::min)
    }
}

/// Edges from one node to another, of one kind, which are used side by side.
struct Bundle {
    edges: Vec<EdgeId>,
    from: NodeId,
    to: NodeId,
    kind: EdgeKind,
    capacity: f64,
}

/// The graph as bundles, without those that carry nothing.
struct Wiring {
    bundles: Vec<Bundle>,
    /// Bundles that leave a node.
    out: Vec<Vec<usize>>,
    /// Bundles that arrive at a node.
    into: Vec<Vec<usize>>,
}

impl Wiring {
    fn new(graph: &Graph) -> Wiring {
        let mut grouped: BTreeMap<(NodeId, NodeId, EdgeKind), Vec<EdgeId>> = BTreeMap::new();
        for (i, edge) in graph.edges.iter().enumerate() {
            let Edge { from, to, kind, bandwidth_bytes_per_s, .. } = *edge;
            if bandwidth_bytes_per_s > 0.0 && bandwidth_bytes_per_s.is_finite() {
                grouped.entry((from, to, kind)).or_default().push(EdgeId(i as u32));
            }
        }
        let mut bundles: Vec<_> = grouped
            .into_iter()
            .map(|((from, to, kind), edges)| {
                let capacity = edges.iter().map(|&e| graph.edge(e).bandwidth_bytes_per_s).sum();
                Bundle { edges, from, to, kind, capacity }
            })
            .collect();
        bundles.sort_by_key(|bundle| bundle.edges[0]);
        let (mut out, mut into) =
            (vec![Vec::new(); graph.nodes.len()], vec![Vec::new(); graph.nodes.len()]);
        for (i, bundle) in bundles.iter().enumerate() {
            out[bundle.from.0 as usize].push(i);
            into[bundle.to.0 as usize].push(i);
        }
        Wiring { bundles, out, into }
    }

    /// From one endpoint to each, as lists of bundles.
    fn routes(&self, graph: &Graph, from: NodeId, endpoints: &[NodeId]) -> Vec<Vec<Vec<usize>>> {
        // The system's part of a route begins where a link out of the device leads to, or in the device
        // itself if others pass through it, as through processors.
        let mut exits: Vec<(Vec<usize>, NodeId)> = Vec::new();
        if passes_system(graph, from) {
            exits.push((Vec::new(), from));
        } else {
            let outward = self.out[from.0 as usize].iter();
            exits.extend(outward.map(|&b| (vec![b], self.bundles[b].to)));
            exits.retain(|(_, node)| passes_system(graph, *node));
        }
        let trees: Vec<_> =
            exits.iter().map(|(_, start)| self.shortest_from(graph, *start)).collect();
        let to_each = endpoints.iter().map(|&to| {
            if to == from {
                return Vec::new();
            }
            let mut routes = self.over_gpu_links(graph, from, to);
            for ((exit, start), tree) in exits.iter().zip(&trees) {
                for (node, entry) in self.entries(graph, to) {
                    if let Some(middle) = self.back_along(tree, *start, node) {
                        routes.push(exit.iter().copied().chain(middle).chain(entry).collect());
                    }
                }
            }
            routes
        });
        to_each.collect()
    }

    /// Directly, through a switch, or else through one GPU that forwards.
    fn over_gpu_links(&self, graph: &Graph, from: NodeId, to: NodeId) -> Vec<Vec<usize>> {
        let gpu = |node: NodeId| matches!(graph.node(node).kind, NodeKind::Gpu { .. });
        let switch = |node: NodeId| matches!(graph.node(node).kind, NodeKind::NvSwitch(_));
        let link = |bundle: &&usize| {
            matches!(self.bundles[**bundle].kind, EdgeKind::NvLink | EdgeKind::Xgmi)
        };
        let to_end = |first: usize| {
            let onward = self.out[self.bundles[first].to.0 as usize].iter().filter(link);
            let onward = onward.filter(|&&second| self.bundles[second].to == to);
            onward.map(move |&second| vec![first, second])
        };
        let firsts = || self.out[from.0 as usize].iter().filter(link).copied();
        let mut near = Vec::new();
        for first in firsts() {
            match self.bundles[first].to {
                middle if middle == to => near.push(vec![first]),
                middle if switch(middle) => near.extend(to_end(first)),
                _ => {}
            }
        }
        let may_be_forwarded = gpu(from) && gpu(to);
        if !near.is_empty() || !may_be_forwarded {
            return near;
        }
        let to_gpus = firsts().filter(|&first| gpu(self.bundles[first].to));
        let mut forwarded: Vec<_> = to_gpus.flat_map(to_end).collect();
        if forwarded.len() > MOST_FORWARDING {
            forwarded.sort_by(|a, b| self.width(b).total_cmp(&self.width(a)));
            forwarded.truncate(MOST_FORWARDING);
        }
        forwarded
    }

    /// What a list of bundles can carry alone.
    fn width(&self, bundles: &[usize]) -> f64 {
        bundles.iter().map(|&b| self.bundles[b].capacity).fold(f64::INFINITY, f64::min)
    }

    /// The nodes of the system from which a link leads to an endpoint, with that link; the endpoint itself if
    /// it is such a node.
    fn entries(&self, graph: &Graph, to: NodeId) -> Vec<(NodeId, Option<usize>)> {
        if passes_system(graph, to) {
            return vec![(to, None)];
        }
        let inward = self.into[to.0 as usize].iter().map(|&b| (self.bundles[b].from, Some(b)));
        inward.filter(|(node, _)| passes_system(graph, *node)).collect()
    }

    /// For each node the bundle by which the best way from `start` arrives: fewest links, then the widest,
    /// then the first.
    fn shortest_from(&self, graph: &Graph, start: NodeId) -> Vec<Option<usize>> {
        let mut by: Vec<Option<usize>> = vec![None; graph.nodes.len()];
        let mut reached: Vec<Option<(usize, f64)>> = vec![None; graph.nodes.len()];
        reached[start.0 as usize] = Some((0, f64::INFINITY));
        let mut level = vec![start];
        for links in 1.. {
            let mut next = Vec::new();
            for node in level {
                let (_, width) = reached[node.0 as usize].unwrap_or((0, 0.0));
                for &b in &self.out[node.0 as usize] {
                    let to = self.bundles[b].to;
                    if !passes_system(graph, to) {
                        continue;
                    }
                    let width = width.min(self.bundles[b].capacity);
                    let known = &mut reached[to.0 as usize];
                    if known.is_none() {
                        next.push(to);
                    }
                    if known.is_none_or(|(before, best)| before == links && width > best) {
                        *known = Some((links, width));
                        by[to.0 as usize] = Some(b);
                    }
                }
            }
            if next.is_empty() {
                break;
            }
            next.sort_unstable();
            level = next;
        }
        by
    }

    /// The bundles from `start` to `node` by what `shortest_from` found.
    fn back_along(
        &self,
        tree: &[Option<usize>],
        start: NodeId,
        node: NodeId,
    ) -> Option<Vec<usize>> {
        let (mut bundles, mut at) = (Vec::new(), node);
        while at != start {
            let bundle = tree[at.0 as usize]?;
            bundles.push(bundle);
            at = self.bundles[bundle].from;
        }
        bundles.reverse();
        Some(bundles)
    }
}

/// Whether data passes through a node on its way between others, without a GPU's doing. A card is passed on
/// the way to its ports.
fn passes_system(graph: &Graph, node: NodeId) -> bool {
    matches!(graph.node(node).kind, NodeKind::Numa(_) | NodeKind::Bridge(_) | NodeKind::Card(_))
}

/// Bundles that the same routes use, with the capacity of the narrowest; unused ones are in none.
fn constraints(bundles: &[Bundle], between: &[Vec<Vec<usize>>]) -> Vec<(Vec<usize>, Constraint)> {
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); bundles.len()];
    for (number, route) in between.iter().flatten().enumerate() {
        route.iter().for_each(|&bundle| users[bundle].push(number));
    }
    let mut together: BTreeMap<&[usize], Vec<usize>> = BTreeMap::new();
    for (bundle, users) in users.iter().enumerate().filter(|(_, users)| !users.is_empty()) {
        together.entry(users).or_default().push(bundle);
    }
    let mut all: Vec<_> = together
        .into_values()
        .map(|members| {
            let capacities = members.iter().map(|&b| bundles[b].capacity);
            let capacity = capacities.fold(f64::INFINITY, f64::min);
            let narrowest = members.iter().filter(|&&b| bundles[b].capacity == capacity);
            let edges = narrowest.flat_map(|&b| bundles[b].edges.iter().copied()).collect();
            (members, Constraint { edges, capacity })
        })
        .collect();
    all.sort_by_key(|(members, _)| members[0]);
    all
}
