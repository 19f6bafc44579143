//! Rings, trees and cluster plans in words: what goes where, at which rate, and what limits it.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::cluster::{Cluster, ClusterPlan};
use super::tree::Tree;
use super::{Channel, RingSet, parts, rings};
use crate::graph::{EdgeId, EdgeKind, Graph, NodeKind};

/// A link that limits, after all channels together: how often they use it and how much of it.
struct Load {
    times: usize,
    bytes_per_s: f64,
}

/// Each channel with what limits it, the total with what bounds it, and what would bound it next.
///
/// The last means another search, without the links that bound: as long as [`rings`] takes.
pub fn explain_rings(graph: &Graph, set: &RingSet) -> String {
    let mut text = String::new();
    match set.devices.len() {
        0 => return "No device: there is nobody to send anything.\n".into(),
        1 => return "One device: there is nothing to send.\n".into(),
        _ => {}
    }
    let loads = loads(graph, &set.channels);
    for (i, channel) in set.channels.iter().enumerate() {
        let names = set_names(graph, set, &channel.order);
        let rate = gigabytes(channel.rate_bytes_per_s);
        let limits = full(graph, &loads, channel);
        let ways = hops_by_kind(graph, channel);
        line(&mut text, format_args!("channel {i}: {names}, {ways}: {rate}, limited by {limits}"));
    }
    let count = set.devices.len();
    line(
        &mut text,
        format_args!(
            "total: {} over {} channels; a large all-reduce of {count} devices runs at {}",
            gigabytes(set.total_bytes_per_s),
            set.channels.len(),
            gigabytes(set.all_reduce_bytes_per_s())
        ),
    );
    let near = if set.gap() < 1e-6 {
        "which is the best that there is".into()
    } else {
        format!(
            "at most {:.1} % below the best: {}",
            100.0 * set.gap(),
            gigabytes(set.bound_bytes_per_s)
        )
    };
    let bounds = several(graph, &set.limits);
    line(&mut text, format_args!("bound: {near}; what bounds it: {bounds}"));
    if let Some(next) = next(graph, set) {
        line(&mut text, format_args!("next: {next}"));
    }
    if let Some(single) = &set.single {
        let names = set_names(graph, set, &single.order);
        let rate = gigabytes(single.rate_bytes_per_s);
        let loads = self::loads(graph, std::slice::from_ref(single));
        let limits = full(graph, &loads, single);
        let ways = hops_by_kind(graph, single);
        line(
            &mut text,
            format_args!("one ring alone: {names}, {ways}: {rate}, limited by {limits}"),
        );
    }
    text
}

/// Who has which parent, by which links, and what limits the tree.
pub fn explain_tree(graph: &Graph, tree: &Tree) -> String {
    let mut text = String::new();
    let name = |device: usize| &graph.node(tree.devices[device]).name;
    for (device, parent) in tree.parents.iter().enumerate() {
        match parent {
            Some(parent) => {
                let way = kind(graph, &tree.up[device]);
                line(&mut text, format_args!("{} -> {} by {way}", name(device), name(*parent)));
            }
            None => line(&mut text, format_args!("{} is the root", name(device))),
        }
    }
    if tree.devices.len() > 1 {
        let mut used: BTreeMap<EdgeId, Load> = BTreeMap::new();
        for hops in [&tree.up, &tree.down] {
            add_loads(graph, &mut used, hops, tree.rate_bytes_per_s);
        }
        let edges: Vec<_> = used.keys().copied().collect();
        let limits = most_loaded(graph, &used, &edges);
        let rate = gigabytes(tree.rate_bytes_per_s);
        line(&mut text, format_args!("{rate} up and down, limited by {limits}"));
    }
    text
}

/// Which port serves whom, each channel through all hosts, and what limits the whole.
pub fn explain_cluster(cluster: &Cluster, plan: &ClusterPlan) -> String {
    let mut text = String::new();
    for (host, nics) in cluster.hosts.iter().zip(&plan.nics) {
        for (place, ports) in nics.ports_of.iter().enumerate() {
            let names: Vec<_> =
                ports.iter().map(|&port| host.graph.node(nics.ports[port]).name.as_str()).collect();
            let device = &host.graph.node(nics.devices[place]).name;
            let share = gigabytes(nics.share_bytes_per_s[place]);
            let names = names.join(", ");
            if !ports.is_empty() {
                line(&mut text, format_args!("{}: {device} uses {names}: {share}", host.name));
            }
        }
    }
    for (i, channel) in plan.channels.iter().enumerate() {
        let rate = gigabytes(channel.rate_bytes_per_s);
        line(&mut text, format_args!("channel {i}: {rate}"));
        for part in &channel.parts {
            let host = &cluster.hosts[part.host];
            let names = part.order.iter().map(|&rank| name(&host.graph, host, rank));
            let names = names.collect::<Vec<_>>().join(" -> ");
            let ports = part.ports.map(|ports| ports.map(|port| &host.graph.node(port).name));
            let ways =
                ports.map_or_else(String::new, |[come, go]| format!(", in by {come}, out by {go}"));
            line(&mut text, format_args!("  {}: {names}{ways}", host.name));
        }
    }
    let (total, bound) = (gigabytes(plan.total_bytes_per_s), gigabytes(plan.bound_bytes_per_s));
    line(&mut text, format_args!("total: {total}; no rings can exceed {bound}"));
    if let Some((host, edges)) = &plan.limit {
        let host = &cluster.hosts[*host];
        let limits = several(&host.graph, edges);
        line(&mut text, format_args!("limited by {}: {limits}", host.name));
    }
    text
}

/// Links that limit, as `RingSet::limits`, in words: the first few, and how many more there are.
pub fn explain_limits(graph: &Graph, limits: &[EdgeId]) -> String {
    several(graph, limits)
}

fn line(text: &mut String, what: std::fmt::Arguments) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{what}");
}

fn name<'a>(graph: &'a Graph, host: &super::HostGraph, rank: usize) -> &'a str {
    &graph.node(host.devices[rank]).name
}

fn set_names(graph: &Graph, set: &RingSet, order: &[usize]) -> String {
    let names = order.iter().chain(order.first());
    let names = names.map(|&place| graph.node(set.devices[place]).name.as_str());
    names.collect::<Vec<_>>().join(" -> ")
}

fn gigabytes(bytes_per_s: f64) -> String {
    format!("{:.1} GB/s", bytes_per_s / 1e9)
}

fn loads(graph: &Graph, channels: &[Channel]) -> BTreeMap<EdgeId, Load> {
    let mut loads = BTreeMap::new();
    for channel in channels {
        add_loads(graph, &mut loads, &channel.hops, channel.rate_bytes_per_s);
    }
    loads
}

fn add_loads(graph: &Graph, loads: &mut BTreeMap<EdgeId, Load>, hops: &[Vec<EdgeId>], rate: f64) {
    for (edge, part) in hops.iter().flat_map(|hop| parts(graph, hop)) {
        let load = loads.entry(edge).or_insert(Load { times: 0, bytes_per_s: 0.0 });
        load.times += 1;
        load.bytes_per_s += rate * part;
    }
}

/// The links of a channel that have nothing left; if none is full, those that are fullest.
fn full(graph: &Graph, loads: &BTreeMap<EdgeId, Load>, channel: &Channel) -> String {
    let edges: Vec<_> = channel.hops.iter().flatten().copied().collect();
    most_loaded(graph, loads, &edges)
}

fn most_loaded(graph: &Graph, loads: &BTreeMap<EdgeId, Load>, edges: &[EdgeId]) -> String {
    let part = |id: &EdgeId| {
        let load = loads.get(id).map_or(0.0, |load| load.bytes_per_s);
        load / graph.edge(*id).bandwidth_bytes_per_s
    };
    let most = edges.iter().map(part).fold(0.0, f64::max);
    let mut fullest: Vec<EdgeId> =
        edges.iter().filter(|id| part(id) >= most * (1.0 - 1e-6)).copied().collect();
    fullest.sort();
    fullest.dedup();
    let times = |id: &EdgeId| loads.get(id).map_or(0, |load| load.times);
    let described: Vec<_> = fullest
        .iter()
        .map(|id| match times(id) {
            0 | 1 => link(graph, *id),
            times => format!("{} shared by {times} uses", link(graph, *id)),
        })
        .collect();
    shortened(&described)
}

fn several(graph: &Graph, edges: &[EdgeId]) -> String {
    shortened(&edges.iter().map(|&edge| link(graph, edge)).collect::<Vec<_>>())
}

/// The first few, and how many more there are.
fn shortened(all: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// A link in words.
fn link(graph: &Graph, id: EdgeId) -> String {
    let edge = graph.edge(id);
    let (from, to) = (graph.node(edge.from), graph.node(edge.to));
    let what = match edge.kind {
        EdgeKind::Pcie => "PCIe",
        EdgeKind::NvLink => "NVLink",
        EdgeKind::Xgmi => "xGMI",
        EdgeKind::C2c => "C2C link",
        EdgeKind::Die => "die link",
        EdgeKind::Socket => "socket link",
        EdgeKind::Net => "network link",
    };
    let rate = gigabytes(edge.bandwidth_bytes_per_s);
    let device = |kind: &NodeKind| matches!(kind, NodeKind::Gpu { .. } | NodeKind::Card(_));
    let bus = |kind: &NodeKind| match kind {
        NodeKind::Gpu { bus_id, .. } => format!(" ({bus_id})"),
        _ => String::new(),
    };
    if edge.kind == EdgeKind::Pcie && device(&from.kind) {
        format!("PCIe out of {}{} {rate}", from.name, bus(&from.kind))
    } else if edge.kind == EdgeKind::Pcie && device(&to.kind) {
        format!("PCIe into {}{} {rate}", to.name, bus(&to.kind))
    } else {
        format!("{what} {} -> {} {rate}", from.name, to.name)
    }
}

/// What a route is for people: the kind of its links, of several the one that is farthest.
fn kind(graph: &Graph, edges: &[EdgeId]) -> &'static str {
    let kinds: Vec<_> = edges.iter().map(|&edge| graph.edge(edge).kind).collect();
    let order = [
        (EdgeKind::Socket, "PCIe and a socket link"),
        (EdgeKind::Die, "PCIe and a die link"),
        (EdgeKind::Pcie, "PCIe"),
        (EdgeKind::C2c, "C2C"),
        (EdgeKind::Xgmi, "xGMI"),
        (EdgeKind::NvLink, "NVLink"),
    ];
    let found = order.iter().find(|(kind, _)| kinds.contains(kind));
    found.map_or("memory", |(_, words)| words)
}

/// How many hops of a ring are by what.
fn hops_by_kind(graph: &Graph, channel: &Channel) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    channel.hops.iter().for_each(|hop| *counts.entry(kind(graph, hop)).or_default() += 1);
    let words: Vec<_> = counts.iter().map(|(kind, count)| format!("{count} by {kind}")).collect();
    words.join(", ")
}

/// What bounds the rings if those links that bound them now, and all of the same kind and capacity, do not.
fn next(graph: &Graph, set: &RingSet) -> Option<String> {
    let alike = |a: EdgeId, b: EdgeId| {
        let (a, b) = (graph.edge(a), graph.edge(b));
        a.kind == b.kind && a.bandwidth_bytes_per_s == b.bandwidth_bytes_per_s
    };
    let mut wider = graph.clone();
    for (i, edge) in wider.edges.iter_mut().enumerate() {
        if set.limits.iter().any(|&limit| alike(limit, EdgeId(i as u32))) {
            // So wide that it bounds nothing that another link can bound.
            edge.bandwidth_bytes_per_s *= 1024.0;
        }
    }
    let after = rings(&wider, &set.devices).ok()?;
    let same = after.limits.iter().all(|&edge| set.limits.iter().any(|&limit| alike(limit, edge)));
    // What carries a hundred times as much is bounded only by those links, however wide they are.
    let far = after.total_bytes_per_s > 100.0 * set.total_bytes_per_s;
    Some(if same || far {
        "nothing else bounds it".into()
    } else {
        let bounds = several(graph, &after.limits);
        let total = gigabytes(after.total_bytes_per_s);
        format!("if links such as these were no limit, {bounds} would bound it at {total}")
    })
}
