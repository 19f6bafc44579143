//! The optimum by other means than the search's: all cycles are listed, and another crate solves the program.
//!
//! Its variables are a rate for every cycle and a flow for every path between two devices; what the cycles
//! need from one device to another, the paths between the two must carry.

use std::collections::BTreeMap;

use microlp::{ComparisonOp, OptimizationDirection, Problem, SolveOutcome};
use ringtree_topology::{EdgeKind, Graph, NodeId, NodeKind};

/// A path as numbers of edges.
pub type Path = Vec<usize>;

/// The greatest sum of rates of all rings.
pub fn best_total(graph: &Graph, devices: &[NodeId]) -> f64 {
    let mut problem = Problem::new(OptimizationDirection::Maximize);
    let scale = graph.edges.iter().map(|edge| edge.bandwidth_bytes_per_s).fold(0.0, f64::max);
    // What cycles need of each pair, less what paths carry, is 0.
    let mut balance: BTreeMap<(usize, usize), Vec<(microlp::Variable, f64)>> = BTreeMap::new();
    for cycle in cycles(devices.len()) {
        let rate = problem.add_var(1.0, (0.0, f64::INFINITY));
        for hop in hops(&cycle) {
            balance.entry(hop).or_default().push((rate, 1.0));
        }
    }
    let mut loads: BTreeMap<usize, Vec<(microlp::Variable, f64)>> = BTreeMap::new();
    for (a, b) in pairs(devices.len()) {
        for path in paths(graph, devices[a], devices[b]) {
            let flow = problem.add_var(0.0, (0.0, f64::INFINITY));
            balance.entry((a, b)).or_default().push((flow, -1.0));
            path.iter().for_each(|&edge| loads.entry(edge).or_default().push((flow, 1.0)));
        }
    }
    for terms in balance.values() {
        problem.add_constraint(&terms[..], ComparisonOp::Eq, 0.0);
    }
    for (&edge, terms) in &loads {
        let capacity = graph.edges[edge].bandwidth_bytes_per_s / scale;
        problem.add_constraint(&terms[..], ComparisonOp::Le, capacity);
    }
    match problem.solve().unwrap() {
        SolveOutcome::Solution(solution) => solution.objective() * scale,
        SolveOutcome::Interrupted(_) => panic!("no limit was set"),
    }
}

/// The best rate of one ring alone.
pub fn best_single(graph: &Graph, devices: &[NodeId]) -> f64 {
    let count = devices.len();
    let between: BTreeMap<_, _> =
        pairs(count).map(|(a, b)| ((a, b), paths(graph, devices[a], devices[b]))).collect();
    let mut best = 0.0_f64;
    for cycle in cycles(count) {
        let hops: Vec<_> = hops(&cycle).collect();
        let choices: Vec<_> = hops.iter().map(|hop| &between[hop]).collect();
        for_each_choice(&choices, &mut vec![0; graph.edges.len()], &mut |uses| {
            best = best.max(rate(graph, uses));
        });
    }
    best
}

/// The best rate of a tree alone in which nobody has more than three neighbours: all trees, by Prüfer's numbering.
pub fn best_tree(graph: &Graph, devices: &[NodeId]) -> f64 {
    let count = devices.len();
    let between: BTreeMap<_, _> =
        pairs(count).map(|(a, b)| ((a, b), paths(graph, devices[a], devices[b]))).collect();
    let mut best = 0.0_f64;
    let numbers = count.pow(count as u32 - 2);
    for number in 0..numbers {
        let tree = tree_of(number, count);
        let degree = |device| tree.iter().filter(|(a, b)| *a == device || *b == device).count();
        if (0..count).any(|device| degree(device) > 3) {
            continue;
        }
        let both = tree.iter().flat_map(|&(a, b)| [&between[&(a, b)], &between[&(b, a)]]);
        let choices: Vec<_> = both.collect();
        for_each_choice(&choices, &mut vec![0; graph.edges.len()], &mut |uses| {
            best = best.max(rate(graph, uses));
        });
    }
    best
}

/// The tree with a number from 0 to count^(count - 2) - 1.
fn tree_of(number: usize, count: usize) -> Vec<(usize, usize)> {
    let (mut code, mut rest) = (Vec::new(), number);
    for _ in 0..count - 2 {
        code.push(rest % count);
        rest /= count;
    }
    let mut degree = vec![1; count];
    code.iter().for_each(|&node| degree[node] += 1);
    let mut edges = Vec::new();
    for node in code {
        let leaf = (0..count).find(|&leaf| degree[leaf] == 1).unwrap();
        edges.push((leaf, node));
        degree[leaf] = 0;
        degree[node] -= 1;
    }
    let last: Vec<_> = (0..count).filter(|&node| degree[node] == 1).collect();
    edges.push((last[0], last[1]));
    edges
}

fn rate(graph: &Graph, uses: &[u32]) -> f64 {
    let used = graph.edges.iter().zip(uses).filter(|(_, times)| **times > 0);
    let rates = used.map(|(edge, &times)| edge.bandwidth_bytes_per_s / f64::from(times));
    rates.fold(f64::INFINITY, f64::min)
}

fn for_each_choice(choices: &[&Vec<Path>], uses: &mut Vec<u32>, visit: &mut dyn FnMut(&[u32])) {
    let Some((first, rest)) = choices.split_first() else {
        visit(uses);
        return;
    };
    for path in first.iter() {
        path.iter().for_each(|&edge| uses[edge] += 1);
        for_each_choice(rest, uses, visit);
        path.iter().for_each(|&edge| uses[edge] -= 1);
    }
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |a| (0..count).map(move |b| (a, b))).filter(|(a, b)| a != b)
}

fn hops(cycle: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    let next = cycle.iter().cycle().skip(1);
    cycle.iter().copied().zip(next.copied())
}

/// All orders that begin with 0.
fn cycles(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![0]];
    for _ in 1..count {
        let longer = all.iter().flat_map(|order| {
            let rest = (1..count).filter(|device| !order.contains(device));
            rest.map(|device| [&order[..], &[device]].concat())
        });
        all = longer.collect();
    }
    all
}

/// The paths that there are between two GPUs: over links between GPUs, directly or through a switch, or if there
/// are none through one GPU; and through the system, for each first and last link the shortest, of these the widest.
pub fn paths(graph: &Graph, from: NodeId, to: NodeId) -> Vec<Path> {
    let mut simple = Vec::new();
    walk(graph, from, to, &mut vec![from], &mut Vec::new(), &mut simple);
    let fast = |path: &Path| {
        path.iter().all(|&edge| matches!(graph.edges[edge].kind, EdgeKind::NvLink | EdgeKind::Xgmi))
    };
    let inner = |path: &Path| -> Vec<NodeKind> {
        path[1..].iter().map(|&edge| graph.node(graph.edges[edge].from).kind).collect()
    };
    let gpu = |kind: &NodeKind| matches!(kind, NodeKind::Gpu { .. });
    let switch = |kind: &NodeKind| matches!(kind, NodeKind::NvSwitch(_));
    let near = |path: &&Path| fast(path) && inner(path).iter().all(switch) && path.len() <= 2;
    let forwarded = |path: &&Path| fast(path) && path.len() == 2 && inner(path).iter().all(gpu);
    let mut chosen: Vec<Path> = simple.iter().filter(near).cloned().collect();
    if chosen.is_empty() {
        chosen = simple.iter().filter(forwarded).cloned().collect();
    }
    let system = simple
        .iter()
        .filter(|path| !fast(path) && inner(path).iter().all(|kind| !gpu(kind) && !switch(kind)));
    let width = |path: &Path| {
        let widths = path.iter().map(|&edge| graph.edges[edge].bandwidth_bytes_per_s);
        widths.fold(f64::INFINITY, f64::min)
    };
    let mut best: BTreeMap<(usize, usize), &Path> = BTreeMap::new();
    for path in system {
        let ends = (path[0], path[path.len() - 1]);
        let known = best.entry(ends).or_insert(path);
        if path.len() < known.len() || (path.len() == known.len() && width(path) > width(known)) {
            *known = path;
        }
    }
    chosen.extend(best.into_values().cloned());
    chosen
}

fn walk(
    graph: &Graph,
    at: NodeId,
    to: NodeId,
    visited: &mut Vec<NodeId>,
    path: &mut Path,
    found: &mut Vec<Path>,
) {
    if at == to {
        found.push(path.clone());
        return;
    }
    for (i, edge) in graph.edges.iter().enumerate().filter(|(_, edge)| edge.from == at) {
        let port = matches!(graph.node(edge.to).kind, NodeKind::Port(_));
        if !visited.contains(&edge.to) && !port && path.len() < 8 {
            visited.push(edge.to);
            path.push(i);
            walk(graph, edge.to, to, visited, path, found);
            path.pop();
            visited.pop();
        }
    }
}
