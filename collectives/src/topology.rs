//! What the hosts' wiring says about the ranks: in which order a ring of them goes.
//!
//! Each rank finds out how its host is wired and at which GPU or NUMA node it runs itself. What it tells
//! of that in its introduction is short: descriptions go over the store once for each kind of host, and not at
//! all where hosts have nothing in them that could be in an order.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ringtree_plan::Places;
use ringtree_topology::search::{
    Cluster, ClusterPlan, HostGraph, cluster_plan, explain_cluster, explain_rings, rings,
};
use ringtree_topology::{
    BusId, CpuSet, Detection, GpuFacts, Graph, Machine, NetPort, NodeId, NodeKind, NumaNode,
    PciDevice, PlacedPort, Roots, VisibleDevices, detect_with,
};

use crate::Error;
use crate::digest::fnv1a;

/// Hosts whose rings are sought together; with more, each kind of host is looked at alone.
const MOST_HOSTS_TOGETHER: usize = 16;

/// Kinds of hosts whose descriptions all ranks read.
const MOST_KINDS: usize = 64;

/// How a rank finds out how its host is wired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TopologySource {
    /// By what the system tells.
    #[default]
    System,
    /// By a file in NCCL's format, whatever the system tells: the GPU of a rank is that of its number on its
    /// host.
    File(PathBuf),
    /// Not at all: ranks stand in the order of their hosts and numbers.
    Off,
}

/// The order of the ranks in rings, trees and chains, where hosts' wiring says one.
#[derive(Clone, Debug, PartialEq)]
pub struct RankOrder {
    /// The rank at each place.
    pub ranks: Vec<u32>,
    /// The hosts, with the ranks of each.
    hosts: Vec<(HostGraph, Vec<u32>)>,
}

impl RankOrder {
    /// What a ring in that order goes over, and what limits it: lines of text.
    pub fn why(&self) -> String {
        if let Some((cluster, plan)) = through_all(&self.hosts) {
            return explain_cluster(&cluster, &plan);
        }
        let mut lines = String::new();
        let mut told: Vec<&HostGraph> = Vec::new();
        for (host, _) in &self.hosts {
            let nodes = different(&host.devices);
            let is_new = !told.iter().any(|other| is_wired_alike(host, other));
            if let (true, Ok(set)) = (is_new && nodes.len() > 1, rings(&host.graph, &nodes)) {
                lines.push_str(&explain_rings(&host.graph, &set));
            }
            told.push(host);
        }
        lines
    }
}

/// What a rank tells of where it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Site {
    /// A number that equal descriptions have in common; 0 where there is none.
    pub(crate) kind: u64,
    gpu: Option<BusId>,
    numa: Option<u32>,
}

/// A rank's site, and the description of its host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) site: Site,
    pub(crate) description: String,
    /// The RDMA ports that are nearest to the rank's GPU, or to its processors: as in
    /// [`RdmaConfig::devices`](crate::RdmaConfig::devices). `None` where none is nearer than others.
    pub(crate) rdma_ports: Option<String>,
    /// The host, if anything is known of it, be it by the system or by a file.
    pub(crate) machine: Option<Cow<'static, Machine>>,
    /// Whether that is this host as it is.
    pub(crate) is_here: bool,
}

impl Found {
    /// Looks at this process's host, for a rank of it.
    ///
    /// # Errors
    /// [`Error::Settings`] if a file was named that describes no machine.
    pub(crate) fn of(source: &TopologySource, local_rank: Option<u32>) -> Result<Found, Error> {
        let (machine, gpu, numa) = match source {
            TopologySource::Off => return Ok(Found::default()),
            TopologySource::File(path) => {
                let machine = from_file(path)?;
                let gpus = machine.gpus();
                let gpu = local_rank.and_then(|number| gpus.get(number as usize));
                let gpu = gpu.map(|gpu| gpu.place.device.bus_id);
                (Cow::Owned(machine), gpu, None)
            }
            TopologySource::System => {
                let Some(Detection { machine, limits }) = detected() else {
                    return Ok(Found::default());
                };
                let gpu = match (&limits.visible_gpus[..], local_rank) {
                    (&[only], _) => Some(only),
                    (gpus, Some(number)) => gpus.get(number as usize).copied(),
                    _ => None,
                };
                (Cow::Borrowed(machine), gpu, own_node(machine, limits.cpus.as_ref()))
            }
        };
        let is_here = *source == TopologySource::System;
        let mut found = Found { is_here, ..Found::default() };
        if may_have_an_order(&machine) {
            found.description = without_names(machine.clone().into_owned()).to_xml();
            let kind = fnv1a(found.description.bytes()).max(1);
            found.site = Site { kind, gpu, numa };
            // What a file names need not be here.
            found.rdma_ports = is_here.then(|| nearest_rdma_ports(&machine, found.site)).flatten();
        }
        found.machine = Some(machine);
        Ok(found)
    }
}

impl Site {
    /// Bytes of a site as it is sent.
    pub(crate) const BYTES: usize = 20;

    /// As it is sent.
    pub(crate) fn encode(&self) -> [u8; Site::BYTES] {
        let gpu = self.gpu.map_or(u64::MAX, |gpu| {
            let BusId { domain, bus, device, function } = gpu;
            u64::from(domain) << 24 | u64::from(u32::from_be_bytes([0, bus, device, function]))
        });
        let mut out = [0; Site::BYTES];
        out[..8].copy_from_slice(&self.kind.to_le_bytes());
        out[8..16].copy_from_slice(&gpu.to_le_bytes());
        out[16..].copy_from_slice(&self.numa.unwrap_or(u32::MAX).to_le_bytes());
        out
    }

    /// What [`Site::encode`] made.
    pub(crate) fn decode(bytes: &[u8; Site::BYTES]) -> Site {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        let numa = u32::from_le_bytes(std::array::from_fn(|byte| bytes[16 + byte]));
        let gpu = word(8);
        let [_, bus, device, function] = (gpu as u32).to_be_bytes();
        let domain = (gpu >> 24) as u32;
        Site {
            kind: word(0),
            gpu: (gpu != u64::MAX).then_some(BusId { domain, bus, device, function }),
            numa: (numa != u32::MAX).then_some(numa),
        }
    }
}

/// Whether a rank is the one that tells all others the description of its kind of host.
pub(crate) fn tells(rank: u32, sites: &[Site]) -> bool {
    let kind = sites[rank as usize].kind;
    kind != 0 && sites.iter().position(|site| site.kind == kind) == Some(rank as usize)
}

/// The order of ranks on these hosts and sites. `descriptions` has that of a kind of host at the first rank that is
/// on one.
pub(crate) fn order(hosts: &[u32], sites: &[Site], descriptions: &[Vec<u8>]) -> Option<RankOrder> {
    let graphs = graphs(sites, descriptions);
    let places = Places::on(hosts);
    let mut all: Vec<(HostGraph, Vec<u32>)> = Vec::new();
    for ranks in places.order().chunk_by(|a, b| hosts[*a as usize] == hosts[*b as usize]) {
        let name = format!("host {}", all.len());
        let graph = graphs.get(&sites[ranks[0] as usize].kind)?;
        let nodes = ranks.iter().map(|rank| node(graph, sites[*rank as usize]));
        let devices = nodes.collect::<Option<Vec<NodeId>>>()?;
        all.push((HostGraph { name, graph: graph.clone(), devices }, ranks.to_vec()));
    }
    let ranks = match through_all(&all) {
        Some((_, plan)) => {
            let ranks: Vec<u32> = all.iter().flat_map(|(_, ranks)| ranks.iter().copied()).collect();
            plan.channels.first()?.order.iter().map(|place| ranks[*place]).collect()
        }
        None => host_by_host(&all)?,
    };
    Some(RankOrder { ranks, hosts: all })
}

/// The rings through all hosts, if they have ports and are not many.
fn through_all(all: &[(HostGraph, Vec<u32>)]) -> Option<(Cluster, ClusterPlan)> {
    if !(2..=MOST_HOSTS_TOGETHER).contains(&all.len()) {
        return None;
    }
    let cluster = Cluster { hosts: all.iter().map(|(host, _)| host.clone()).collect() };
    let plan = cluster_plan(&cluster).ok()?;
    Some((cluster, plan))
}

/// The best ring of each host, cut open, one after the other.
fn host_by_host(all: &[(HostGraph, Vec<u32>)]) -> Option<Vec<u32>> {
    let mut order = Vec::new();
    let mut known: Vec<(&HostGraph, Vec<NodeId>)> = Vec::new();
    for (host, ranks) in all {
        let ring = match known.iter().find(|(other, _)| is_wired_alike(host, other)) {
            Some((_, ring)) => ring.clone(),
            None => {
                let nodes = different(&host.devices);
                let best = rings(&host.graph, &nodes).ok()?.single;
                let ring = best.map(|ring| ring.order.iter().map(|at| nodes[*at]).collect());
                let ring: Vec<NodeId> = ring.unwrap_or(nodes);
                known.push((host, ring.clone()));
                ring
            }
        };
        for node in ring {
            let there = host.devices.iter().zip(ranks).filter(|(device, _)| **device == node);
            order.extend(there.map(|(_, rank)| *rank));
        }
    }
    Some(order)
}

fn is_wired_alike(one: &HostGraph, other: &HostGraph) -> bool {
    one.devices == other.devices && one.graph == other.graph
}

/// Nodes that several ranks are at, once, in the order in which they come.
fn different(devices: &[NodeId]) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = Vec::new();
    for device in devices {
        if !nodes.contains(device) {
            nodes.push(*device);
        }
    }
    nodes
}

/// The graphs of all kinds of hosts whose description can be read.
fn graphs(sites: &[Site], descriptions: &[Vec<u8>]) -> BTreeMap<u64, Graph> {
    let told = sites.iter().zip(descriptions).filter(|(_, text)| !text.is_empty());
    let read = |(site, text): (&Site, &Vec<u8>)| {
        let text = std::str::from_utf8(text).ok()?;
        match Machine::from_xml(text) {
            Ok(machine) => Some((site.kind, Graph::new(&machine).0)),
            Err(error) => {
                tracing::warn!("a host's description is not used: {error}");
                None
            }
        }
    };
    told.take(MOST_KINDS).filter_map(read).collect()
}

/// Where a rank is in its host's graph.
fn node(graph: &Graph, site: Site) -> Option<NodeId> {
    let is_at = |kind: NodeKind| match kind {
        NodeKind::Gpu { bus_id, .. } => site.gpu == Some(bus_id),
        _ => false,
    };
    let find = |is_it: &dyn Fn(NodeKind) -> bool| {
        let at = graph.nodes.iter().position(|node| is_it(node.kind))?;
        Some(NodeId(at as u32))
    };
    let is_numa = |kind: NodeKind| match (kind, site.numa) {
        (NodeKind::Numa(place), Some(own)) => place == own,
        (NodeKind::Numa(_), None) => true,
        _ => false,
    };
    find(&is_at).or_else(|| find(&is_numa))
}

/// The RDMA ports that are nearer to a site than others.
fn nearest_rdma_ports(machine: &Machine, site: Site) -> Option<String> {
    let ports = machine.ports();
    let is_rdma = |port: &&PlacedPort| port.port.port > 0;
    if site.gpu.is_none() && site.numa.is_none() || ports.iter().filter(is_rdma).count() < 2 {
        return None;
    }
    let graph = Graph::new(machine).0;
    let nearest = graph.nearest_ports(node(&graph, site)?);
    let is_near = |port: &&PlacedPort| {
        let is_it = |node: &NodeId| graph.node(*node).kind == NodeKind::Port(port.port.index);
        nearest.iter().any(is_it)
    };
    let named = |port: &PlacedPort| format!("{}:{}", port.port.name, port.port.port);
    let near: Vec<String> = ports.iter().filter(is_rdma).filter(is_near).map(named).collect();
    (!near.is_empty()).then(|| near.join(","))
}

/// This process's host; looked at once.
fn detected() -> Option<&'static Detection> {
    static DETECTED: OnceLock<Option<Detection>> = OnceLock::new();
    let detect = || {
        let visible = VisibleDevices::from_environment();
        match detect_with(&Roots::system(), &GpuFacts::of_system(), &visible) {
            Ok(found) => {
                found.machine.warnings.iter().chain(&found.limits.warnings).for_each(|warning| {
                    tracing::debug!("topology: {}: {}", warning.subject, warning.message);
                });
                Some(found)
            }
            Err(error) => {
                tracing::debug!("topology: {error}");
                None
            }
        }
    };
    DETECTED.get_or_init(detect).as_ref()
}

fn from_file(path: &Path) -> Result<Machine, Error> {
    let mut machine = Machine::from_xml_file(path)
        .map_err(|error| Error::Settings(format!("RINGTREE_TOPOLOGY: {error}")))?;
    machine.assume_devices();
    Ok(machine)
}

/// Whether ranks can be at different places of it.
fn may_have_an_order(machine: &Machine) -> bool {
    let nodes = machine.numa_nodes.iter().filter(|node| !node.cpus.is_empty());
    nodes.count() > 1 || machine.gpus().len() > 1
}

/// The one node that has the processors on which this process may run: its place in the machine.
fn own_node(machine: &Machine, allowed: Option<&CpuSet>) -> Option<u32> {
    let allowed = allowed?;
    let has_some = |node: &NumaNode| node.cpus.iter().any(|cpu| allowed.contains(cpu));
    let nodes = machine.numa_nodes.iter().enumerate();
    let mut own = nodes.filter(|(_, node)| has_some(node)).map(|(place, _)| place as u32);
    own.next().filter(|_| own.next().is_none())
}

/// Without what is another on each host of a kind.
fn without_names(mut machine: Machine) -> Machine {
    machine.host.clear();
    machine.warnings.clear();
    for node in &mut machine.numa_nodes {
        node.host_hash = None;
        node.nics.iter_mut().flat_map(|nic| &mut nic.ports).for_each(forget_name);
        forget_names(&mut node.devices);
    }
    machine
}

fn forget_names(devices: &mut [PciDevice]) {
    for device in devices {
        device.nic.iter_mut().flat_map(|nic| &mut nic.ports).for_each(forget_name);
        forget_names(&mut device.children);
    }
}

fn forget_name(port: &mut NetPort) {
    port.guid = 0;
    port.addresses.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sockets with a GPU and a card of two ports each.
    const MACHINE: &str = r#"<system version="1">
      <cpu numaid="0" affinity="0000000f" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="143">
        <pci busid="0000:1a:00.0" class="0x030200" link_speed="16.0 GT/s PCIe" link_width="16">
          <gpu dev="0" sm="80"/></pci>
        <pci busid="0000:1b:00.0" class="0x020000" link_speed="16.0 GT/s PCIe" link_width="16">
          <nic><net name="mlx5_0" dev="0" speed="100000" port="1" guid="0x1"/></nic></pci>
      </cpu>
      <cpu numaid="1" affinity="000000f0" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="143">
        <pci busid="0001:9a:00.0" class="0x030200" link_speed="16.0 GT/s PCIe" link_width="16">
          <gpu dev="1" sm="80"/></pci>
        <pci busid="0001:9b:00.0" class="0x020000" link_speed="16.0 GT/s PCIe" link_width="16">
          <nic><net name="mlx5_1" dev="1" speed="100000" port="1" guid="0x2"/>
               <net name="mlx5_2" dev="2" speed="100000" port="2" guid="0x2"/></nic></pci>
      </cpu>
    </system>"#;

    fn machine() -> Machine {
        Machine::from_xml(MACHINE).unwrap()
    }

    fn at_gpu(text: &str) -> Site {
        Site { kind: 7, gpu: Some(text.parse().unwrap()), numa: None }
    }

    #[test]
    fn a_site_is_what_it_was_when_it_has_been_sent() {
        for site in [
            Site::default(),
            Site { kind: u64::MAX, gpu: None, numa: Some(3) },
            at_gpu("fffffff:ff:ff.7"),
            at_gpu("0000:1a:00.0"),
        ] {
            assert_eq!(Site::decode(&site.encode()), site);
        }
    }

    #[test]
    fn a_rank_takes_the_ports_beside_its_gpu_or_its_processors() {
        let of = |site| nearest_rdma_ports(&machine(), site);
        assert_eq!(of(at_gpu("0000:1a:00.0")).as_deref(), Some("mlx5_0:1"));
        assert_eq!(of(at_gpu("0001:9a:00.0")).as_deref(), Some("mlx5_1:1,mlx5_2:2"));
        let numa = Site { kind: 7, gpu: None, numa: Some(1) };
        assert_eq!(of(numa).as_deref(), Some("mlx5_1:1,mlx5_2:2"));
        assert_eq!(of(Site::default()), None);
    }

    #[test]
    fn hosts_of_one_kind_have_one_description() {
        let (mut one, mut other) = (machine(), machine());
        (one.host, other.host) = ("a".into(), "b".into());
        let other_guids = MACHINE.replace("0x2", "0x5");
        assert_eq!(without_names(one).to_xml(), without_names(other).to_xml());
        let third = Machine::from_xml(&other_guids).unwrap();
        assert_eq!(without_names(third).to_xml(), without_names(machine()).to_xml());
    }

    #[test]
    fn processors_of_two_nodes_are_of_none() {
        let set = |cpus: &[usize]| cpus.iter().copied().collect::<CpuSet>();
        assert_eq!(own_node(&machine(), Some(&set(&[4, 5]))), Some(1));
        assert_eq!(own_node(&machine(), Some(&set(&[3, 4]))), None);
        assert_eq!(own_node(&machine(), None), None);
    }

    #[test]
    fn the_first_of_each_kind_tells() {
        let sites = [5, 5, 9, 0, 9].map(|kind| Site { kind, ..Site::default() });
        let telling = (0..5).filter(|rank| tells(*rank, &sites));
        assert_eq!(telling.collect::<Vec<_>>(), [0, 2]);
    }

    /// Ranks were dealt out to two hosts like cards.
    #[test]
    fn ranks_of_a_host_stay_together() {
        let hosts = [0, 1, 0, 1];
        let gpus = ["0000:1a:00.0", "0000:1a:00.0", "0001:9a:00.0", "0001:9a:00.0"];
        let sites = gpus.map(at_gpu);
        let text = without_names(machine()).to_xml().into_bytes();
        let descriptions = [text, vec![], vec![], vec![]];
        let order = order(&hosts, &sites, &descriptions).expect("an order");
        let first: Vec<u32> = order.ranks[..2].iter().map(|rank| hosts[*rank as usize]).collect();
        assert!(first[0] == first[1], "{:?}", order.ranks);
        assert!(!order.why().is_empty());
    }

    #[test]
    fn a_description_that_cannot_be_read_says_nothing() {
        let sites = [at_gpu("0000:1a:00.0"); 3];
        let descriptions = [b"<system".to_vec(), vec![], vec![]];
        assert_eq!(order(&[0, 0, 0], &sites, &descriptions), None);
    }
}
