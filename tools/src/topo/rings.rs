//! The rings that are chosen on a machine: explained, and compared with those of the machine as it would be
//! otherwise.

use std::fmt::Write;
use std::path::Path;

use ringtree_topology::search::{
    Cluster, ClusterPlan, HostGraph, NicAssignment, RingSet, Tree, assign_nics, best_tree,
    cluster_plan, explain_limits, explain_rings, explain_tree, rings,
};
use ringtree_topology::{Error, Graph, Machine, NodeId};
use serde::Serialize;

use super::TopoError;

/// Where ranks are: at the GPUs, or without any at the NUMA nodes that have processors.
fn devices(machine: &Machine, graph: &Graph) -> Vec<NodeId> {
    let gpus = graph.gpus();
    if !gpus.is_empty() {
        return gpus;
    }
    let numa_nodes = graph.numa_nodes().into_iter().zip(&machine.numa_nodes);
    numa_nodes.filter(|(_, node)| !node.cpus.is_empty()).map(|(id, _)| id).collect()
}

/// The rings of a machine.
pub fn of(machine: &Machine, graph: &Graph) -> Result<RingSet, Error> {
    rings(graph, &devices(machine, graph))
}

/// What a file's machine is called: the file's name without what follows the last point.
pub fn host_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or(path.as_os_str());
    stem.to_string_lossy().into_owned()
}

/// Rings through several hosts, a rank at each of their devices.
pub fn through(machines: &[(String, Machine)]) -> Result<(Cluster, ClusterPlan), TopoError> {
    let hosts = machines.iter().map(|(name, machine)| {
        let (graph, _) = Graph::new(machine);
        HostGraph { name: name.clone(), devices: devices(machine, &graph), graph }
    });
    let cluster = Cluster { hosts: hosts.collect() };
    let plan = cluster_plan(&cluster)?;
    Ok((cluster, plan))
}

/// What is chosen on one machine.
#[derive(Serialize)]
pub struct Explained {
    devices: Vec<String>,
    rings: Vec<Ring>,
    rings_bytes_per_s: f64,
    /// What no rings can exceed.
    bound_bytes_per_s: f64,
    limited_by: String,
    /// The parent of each device; the root has none.
    tree: Vec<Option<String>>,
    tree_bytes_per_s: f64,
    ports: Vec<Served>,
    /// The ports of each rail.
    rails: Vec<Vec<String>>,
    #[serde(skip)]
    set: RingSet,
    #[serde(skip)]
    best_tree: Tree,
}

#[derive(Serialize)]
struct Ring {
    order: Vec<String>,
    bytes_per_s: f64,
}

/// A device, and the ports that serve it.
#[derive(Serialize)]
struct Served {
    device: String,
    ports: Vec<String>,
    /// Of the way to the nearest of them.
    class: &'static str,
    bytes_per_s: f64,
}

impl Explained {
    pub fn new(machine: &Machine, graph: &Graph) -> Result<Explained, TopoError> {
        let devices = devices(machine, graph);
        let set = rings(graph, &devices)?;
        let best_tree = best_tree(graph, &devices)?;
        let nics = assign_nics(graph, &devices)?;
        let name = |place: usize| graph.node(devices[place]).name.clone();
        let ring = |channel: &ringtree_topology::search::Channel| Ring {
            order: channel.order.iter().map(|&place| name(place)).collect(),
            bytes_per_s: channel.rate_bytes_per_s,
        };
        Ok(Explained {
            devices: (0..devices.len()).map(name).collect(),
            rings: set.channels.iter().map(ring).collect(),
            rings_bytes_per_s: set.total_bytes_per_s,
            bound_bytes_per_s: set.bound_bytes_per_s,
            limited_by: explain_limits(graph, &set.limits),
            tree: best_tree.parents.iter().map(|parent| parent.map(name)).collect(),
            tree_bytes_per_s: best_tree.rate_bytes_per_s,
            ports: served(graph, &nics),
            rails: nics.rails().iter().map(|rail| names(graph, &nics, rail)).collect(),
            set,
            best_tree,
        })
    }

    pub fn text(&self, graph: &Graph) -> String {
        if self.devices.is_empty() {
            return "neither GPUs nor NUMA nodes with processors: no rings\n".into();
        }
        let mut text = format!("Rings of {}\n", self.devices.join(" "));
        text += &indented(&explain_rings(graph, &self.set));
        text += "\nTree\n";
        text += &indented(&explain_tree(graph, &self.best_tree));
        text += "\nPorts\n";
        for Served { device, ports, class, bytes_per_s } in &self.ports {
            let (ports, share) = (ports.join(", "), gigabytes(*bytes_per_s));
            // Writing into a string cannot fail.
            let _ = writeln!(text, "  {device} uses {ports} ({class}): {share}");
        }
        match self.rails.len() {
            0 => text += "  none that is up\n",
            count => {
                let rails: Vec<String> = self.rails.iter().map(|rail| rail.join("+")).collect();
                let _ = writeln!(
                    text,
                    "  rails across hosts that are alike: {count}, {}",
                    rails.join(" ")
                );
            }
        }
        text
    }
}

fn served(graph: &Graph, nics: &NicAssignment) -> Vec<Served> {
    let devices = nics.devices.iter().zip(&nics.ports_of).zip(&nics.share_bytes_per_s);
    let served = devices.filter(|((_, ports), _)| !ports.is_empty());
    let served = served.map(|((&device, ports), &bytes_per_s)| Served {
        device: graph.node(device).name.clone(),
        ports: names(graph, nics, ports),
        class: graph.path_class(device, nics.ports[ports[0]]).name(),
        bytes_per_s,
    });
    served.collect()
}

fn names(graph: &Graph, nics: &NicAssignment, ports: &[usize]) -> Vec<String> {
    ports.iter().map(|&port| graph.node(nics.ports[port]).name.clone()).collect()
}

/// The same machine before and after changes.
#[derive(Serialize)]
pub struct Compared {
    changes: Vec<String>,
    now: Figures,
    then: Figures,
}

#[derive(Serialize)]
struct Figures {
    devices: usize,
    rings_bytes_per_s: f64,
    /// The best ring alone.
    one_ring_bytes_per_s: f64,
    /// Of the buffer of a large all-reduce.
    all_reduce_bytes_per_s: f64,
    /// What all devices together send off the host.
    ports_bytes_per_s: f64,
    limited_by: String,
}

impl Figures {
    fn new(machine: &Machine) -> Result<Figures, TopoError> {
        let (graph, _) = Graph::new(machine);
        let devices = devices(machine, &graph);
        let set = rings(&graph, &devices)?;
        let nics = assign_nics(&graph, &devices)?;
        let single = set.single.as_ref();
        Ok(Figures {
            devices: devices.len(),
            rings_bytes_per_s: set.total_bytes_per_s,
            one_ring_bytes_per_s: single.map_or(0.0, |single| single.rate_bytes_per_s),
            all_reduce_bytes_per_s: set.all_reduce_bytes_per_s(),
            ports_bytes_per_s: nics.share_bytes_per_s.iter().sum(),
            limited_by: explain_limits(&graph, &set.limits),
        })
    }
}

impl Compared {
    pub fn new(now: &Machine, then: &Machine, changes: Vec<String>) -> Result<Compared, TopoError> {
        Ok(Compared { changes, now: Figures::new(now)?, then: Figures::new(then)? })
    }

    pub fn text(&self) -> String {
        let Compared { changes, now, then } = self;
        let mut text = format!("# What if: {}\n", changes.join("; "));
        text += &format!("# {:<26} {:>12} {:>12} {:>8}\n", "GB/s", "now", "then", "change");
        type Get = fn(&Figures) -> f64;
        let rows: [(&str, Get); 4] = [
            ("all rings together", |figures| figures.rings_bytes_per_s),
            ("one ring alone", |figures| figures.one_ring_bytes_per_s),
            ("a large all-reduce", |figures| figures.all_reduce_bytes_per_s),
            ("off the host", |figures| figures.ports_bytes_per_s),
        ];
        for (what, get) in rows {
            let (now, then) = (get(now), get(then));
            let change = match now > 0.0 {
                true => format!("{:+.1} %", (then / now - 1.0) * 100.0),
                false => "-".into(),
            };
            let _ =
                writeln!(text, "  {what:<26} {:>12.1} {:>12.1} {change:>8}", now / 1e9, then / 1e9);
        }
        for (when, figures) in [("now", now), ("then", then)] {
            let Figures { devices, limited_by, .. } = figures;
            if !limited_by.is_empty() {
                let _ = writeln!(text, "# rings of {devices} {when} limited by {limited_by}");
            }
        }
        text
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

fn gigabytes(bytes_per_s: f64) -> String {
    format!("{:.1} GB/s", bytes_per_s / 1e9)
}
