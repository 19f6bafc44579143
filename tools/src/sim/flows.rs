//! Blocks that go straight from rank to rank: how much crosses each link, and the link that takes longest.

use ringtree_plan::Collective;
use ringtree_topology::search::{Cluster, ClusterPlan, HostGraph, NicAssignment, explain_limits};
use ringtree_topology::{EdgeId, Graph, NodeId};

use super::topology::{Taken, slower};

/// All-to-all, gather and scatter, each block sent at once; other collectives are not done so.
///
/// `bytes` are all blocks of a rank. Ranks of a host send over the best way between them; to other hosts over the
/// ports that serve them.
pub(super) fn direct(
    cluster: &Cluster,
    plan: &ClusterPlan,
    collective: Collective,
    bytes: f64,
) -> Option<Taken> {
    let counts: Vec<usize> = cluster.hosts.iter().map(|host| host.devices.len()).collect();
    let ranks: usize = counts.iter().sum();
    let block = bytes / ranks as f64;
    // Whether the first sends to the second; the root is the first rank of all.
    let sends = |from_root: bool, to_root: bool| match collective {
        Collective::AllToAll => true,
        Collective::Gather { .. } => to_root,
        Collective::Scatter { .. } => from_root,
        _ => false,
    };
    if !sends(true, true) {
        return None;
    }
    let mut slowest = Taken::default();
    for (number, host) in cluster.hosts.iter().enumerate() {
        let is_root = |place: usize| number == 0 && place == 0;
        let mut loads = Loads::new(host);
        let places = || 0..host.devices.len();
        for (from, to) in places().flat_map(|from| places().map(move |to| (from, to))) {
            if from != to && sends(is_root(from), is_root(to)) {
                loads.between(host.devices[from], host.devices[to], block);
            }
        }
        let strangers = (ranks - counts[number]) as f64;
        for place in places().filter(|_| strangers > 0.0) {
            // Of the ranks of other hosts one may be the root, and all others are not.
            let of_others = |with_root: bool, with_others: bool| {
                let roots = f64::from(number != 0);
                let with = |is: bool, many: f64| if is { many } else { 0.0 };
                with(with_root, roots) + with(with_others, strangers - roots)
            };
            let own = is_root(place);
            let out = of_others(sends(own, true), sends(own, false));
            let into = of_others(sends(true, own), sends(false, own));
            loads.network(&plan.nics[number], host.devices[place], [out * block, into * block]);
        }
        let (transfer_s, edge) = loads.slowest();
        let limit = edge.map_or(String::new(), |edge| explain_limits(&host.graph, &[edge]));
        let limit = match cluster.hosts.len() {
            1 => limit,
            _ => format!("{}: {limit}", host.name),
        };
        slower(&mut slowest, transfer_s, limit);
        slowest.latency_ns = slowest.latency_ns.max(loads.latency_ns as f64);
    }
    Some(slowest)
}

/// What crosses each link of a host.
struct Loads<'a> {
    graph: &'a Graph,
    bytes: Vec<f64>,
    /// Of the longest way: within the host, or out of it and into another that is as far.
    latency_ns: u64,
}

impl<'a> Loads<'a> {
    fn new(host: &'a HostGraph) -> Loads<'a> {
        Loads { graph: &host.graph, bytes: vec![0.0; host.graph.edges.len()], latency_ns: 0 }
    }

    fn between(&mut self, from: NodeId, to: NodeId, bytes: f64) {
        let Some(path) = self.graph.path(from, to) else { return };
        path.edges.iter().for_each(|edge| self.bytes[edge.0 as usize] += bytes);
        self.latency_ns = self.latency_ns.max(path.latency_ns);
    }

    /// Shared evenly by the ports of a device.
    fn network(&mut self, nics: &NicAssignment, device: NodeId, [out, into]: [f64; 2]) {
        let Some(place) = nics.devices.iter().position(|&known| known == device) else { return };
        let ports = &nics.ports_of[place];
        for &port in ports {
            let Some(path) = self.graph.path(device, nics.ports[port]) else { continue };
            for edge in path.edges {
                // The edge back is the neighbour.
                self.bytes[edge.0 as usize] += out / ports.len() as f64;
                self.bytes[(edge.0 ^ 1) as usize] += into / ports.len() as f64;
            }
            if out + into > 0.0 {
                self.latency_ns = self.latency_ns.max(2 * path.latency_ns);
            }
        }
    }

    fn slowest(&self) -> (f64, Option<EdgeId>) {
        let times = self.bytes.iter().zip(&self.graph.edges).enumerate();
        let times = times.map(|(id, (bytes, edge))| (bytes / edge.bandwidth_bytes_per_s, id));
        let slowest = times.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        slowest.map_or((0.0, None), |(time, id)| (time, Some(EdgeId(id as u32))))
    }
}

/// From a host's device to the nearest port that serves it.
pub(super) fn to_network_ns(host: &HostGraph, nics: &NicAssignment, place: usize) -> u64 {
    let port = nics.ports_of.get(place).and_then(|ports| ports.first());
    let path = port.and_then(|&port| host.graph.path(nics.devices[place], nics.ports[port]));
    path.map_or(0, |path| path.latency_ns)
}

/// Of the links of a hop; those side by side are gone over at once.
pub(super) fn latency_ns(graph: &Graph, hop: &[EdgeId]) -> u64 {
    let ends = |id: EdgeId| (graph.edge(id).from, graph.edge(id).to);
    let alike = hop.chunk_by(|&a, &b| ends(a) == ends(b));
    alike.map(|edges| edges.iter().map(|&id| graph.edge(id).latency_ns).max().unwrap_or(0)).sum()
}
