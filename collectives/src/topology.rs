//! What the hosts' wiring says about the ranks: in which order a ring of them goes.
//!
//! Each rank finds out how its host is wired and at which GPU or NUMA node it runs itself. What it tells
//! of that in its introduction is short: descriptions go over the store once for each kind of host, and not at
//! all where hosts have nothing in them that could be in an order.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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

/// Rings that lanes take by turns, at most: each is linked to two more ranks.
const MOST_RINGS: usize = 8;

/// Kinds of hosts whose descriptions all ranks read.
const MOST_KINDS: usize = 64;

/// How a rank finds out how its host is wired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TopologySource {
    /// By what the system tells.
    #[default]
    System,
    /// By a file in NCCL's format, whatever the system tells: the GPU of a rank is that of its number on its
    /// host. Only a base file, which says where this host's GPUs are and nothing of them, is completed from the system.
    File(PathBuf),
    /// Not at all: ranks stand in the order of their hosts and numbers.
    Off,
}

/// The order of the ranks in rings, trees and chains, where hosts' wiring says one, or the switches between them do.
#[derive(Clone, Debug, PartialEq)]
pub struct RankOrder {
    /// The rank at each place.
    pub ranks: Vec<u32>,
    /// Further rings of the ranks, over other links, which lanes of rings and chains take by turns with the first.
    pub other_rings: Vec<Vec<u32>>,
    /// The hosts, with the ranks of each; none where nothing is known of how they are wired.
    hosts: Vec<(HostGraph, Vec<u32>)>,
    /// Hosts below the same switches are neighbours, wherever their ranks' numbers would put them.
    pub(crate) is_by_switches: bool,
}

impl RankOrder {
    /// All rings, the first of which is the order that everyone else takes.
    pub fn rings(&self) -> impl Iterator<Item = &[u32]> {
        std::iter::once(&self.ranks).chain(&self.other_rings).map(Vec::as_slice)
    }

    /// What is known of switches only.
    pub(crate) fn by_switches(ranks: Vec<u32>) -> RankOrder {
        RankOrder { ranks, other_rings: Vec::new(), hosts: Vec::new(), is_by_switches: true }
    }

    /// What a ring in that order goes over, and what limits it: lines of text.
    pub fn why(&self) -> String {
        let switches = match self.is_by_switches {
            true => "Hosts below the same switches are neighbours.\n",
            false => "",
        };
        format!("{switches}{}", self.by_wiring())
    }

    fn by_wiring(&self) -> String {
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

/// The order of ranks on these hosts and sites. `row` has the ranks of a host together, and hosts in their order;
/// `descriptions` has that of a kind of host at the first rank that is on one.
pub(crate) fn order(
    hosts: &[u32],
    row: &[u32],
    sites: &[Site],
    descriptions: &[Vec<u8>],
) -> Option<RankOrder> {
    let graphs = graphs(sites, descriptions);
    let mut all: Vec<(HostGraph, Vec<u32>)> = Vec::new();
    for ranks in row.chunk_by(|a, b| hosts[*a as usize] == hosts[*b as usize]) {
        let name = format!("host {}", all.len());
        let graph = graphs.get(&sites[ranks[0] as usize].kind)?;
        let nodes = ranks.iter().map(|rank| node(graph, sites[*rank as usize]));
        let devices = nodes.collect::<Option<Vec<NodeId>>>()?;
        all.push((HostGraph { name, graph: graph.clone(), devices }, ranks.to_vec()));
    }
    let mut rings = match through_all(&all) {
        Some((_, plan)) => {
            let ranks: Vec<u32> = all.iter().flat_map(|(_, ranks)| ranks.iter().copied()).collect();
            let channels = plan.channels.iter().map(|c| (&c.order[..], c.rate_bytes_per_s));
            let ring = |order: &&[usize]| order.iter().map(|place| ranks[*place]).collect();
            best_together(channels).0.iter().map(ring).collect::<Vec<Vec<u32>>>()
        }
        None => host_by_host(&all)?,
    }
    .into_iter();
    let (ranks, other_rings) = (rings.next()?, rings.collect());
    Some(RankOrder { ranks, other_rings, hosts: all, is_by_switches: false })
}

/// Of rings with rates those that carry most if all get the same, and how much each carries then. Those that go the
/// same way round, wherever they begin, are one.
fn best_together<'a>(
    channels: impl Iterator<Item = (&'a [usize], f64)>,
) -> (Vec<&'a [usize]>, f64) {
    let mut rings: Vec<(&[usize], f64)> = Vec::new();
    for (order, rate) in channels {
        match rings.iter_mut().find(|(other, _)| is_one_ring(order, other)) {
            Some((_, sum)) => *sum += rate,
            None => rings.push((order, rate)),
        }
    }
    rings.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    rings.truncate(MOST_RINGS);
    // Each gets what the slowest of them can.
    let together = |count: usize| count as f64 * rings[count - 1].1;
    let more = |best: usize, count| if together(count) > together(best) { count } else { best };
    let count = (1..=rings.len()).reduce(more).unwrap_or(0);
    let rate = rings[..count].last().map_or(0.0, |(_, rate)| *rate);
    (rings[..count].iter().map(|(order, _)| *order).collect(), rate)
}

/// Whether two orders go the same way round.
fn is_one_ring(one: &[usize], other: &[usize]) -> bool {
    let begins = other.iter().position(|place| Some(place) == one.first()).unwrap_or(0);
    let (before, after) = other.split_at(begins);
    one.len() == other.len() && one.iter().eq(after.iter().chain(before))
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

/// The best rings of each host, cut open, one host after the other: as many as the host has that has most.
fn host_by_host(all: &[(HostGraph, Vec<u32>)]) -> Option<Vec<Vec<u32>>> {
    let mut rings_of: Vec<Vec<Vec<NodeId>>> = Vec::new();
    for (at, (host, _)) in all.iter().enumerate() {
        let known = all[..at].iter().position(|(other, _)| is_wired_alike(host, other));
        let rings = match known {
            Some(known) => rings_of[known].clone(),
            None => rings_of_host(host)?,
        };
        rings_of.push(rings);
    }
    let most = rings_of.iter().map(Vec::len).max()?;
    let ring = |number: usize| {
        let mut order = Vec::new();
        for ((host, ranks), rings) in all.iter().zip(&rings_of) {
            for node in &rings[number % rings.len()] {
                let there = host.devices.iter().zip(ranks).filter(|(device, _)| *device == node);
                order.extend(there.map(|(_, rank)| *rank));
            }
        }
        order
    };
    Some((0..most).map(ring).collect())
}

/// The rings that carry most inside a host: those that share its links, or a single one if that carries as much.
fn rings_of_host(host: &HostGraph) -> Option<Vec<Vec<NodeId>>> {
    let nodes = different(&host.devices);
    let set = rings(&host.graph, &nodes).ok()?;
    let channels = set.channels.iter().map(|c| (&c.order[..], c.rate_bytes_per_s));
    let (together, rate_bytes_per_s) = best_together(channels);
    let total_bytes_per_s = rate_bytes_per_s * together.len() as f64;
    let orders = match &set.single {
        None => return Some(vec![nodes]),
        Some(single) if single.rate_bytes_per_s >= 0.99 * total_bytes_per_s => {
            vec![&single.order[..]]
        }
        Some(_) => together,
    };
    Some(orders.iter().map(|order| order.iter().map(|at| nodes[*at]).collect()).collect())
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
    if let Some(here) = detected().filter(|here| machine.is_base_of(&here.machine)) {
        machine.complete_from(&here.machine);
    }
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
    use std::collections::BTreeSet;

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
        let order = order(&hosts, &[0, 2, 1, 3], &sites, &descriptions).expect("an order");
        let first: Vec<u32> = order.ranks[..2].iter().map(|rank| hosts[*rank as usize]).collect();
        assert!(first[0] == first[1], "{:?}", order.ranks);
        assert!(!order.why().is_empty());
        // Both GPUs have ports: by turns each sends what leaves the host.
        let leaving: BTreeSet<u32> = order.rings().map(|ring| ring[1]).collect();
        assert_eq!(leaving.len(), 2, "{:?}", order.rings().collect::<Vec<_>>());
    }

    #[test]
    fn rings_are_as_many_as_carry_most_at_one_rate() {
        let (ring, turned, other, third) = ([0, 1, 2, 3], [2, 3, 0, 1], [0, 2, 1, 3], [1, 0, 2, 3]);
        fn best<'a>(channels: &[(&'a [usize], f64)]) -> (Vec<&'a [usize]>, f64) {
            best_together(channels.iter().copied())
        }
        let two = best(&[(&ring, 6.0), (&other, 9.0), (&turned, 4.0), (&third, 2.0)]);
        assert_eq!(two, (vec![&ring[..], &other[..]], 9.0));
        let three = best(&[(&ring, 10.0), (&other, 9.0), (&third, 8.0)]);
        assert_eq!(three.0.len(), 3);
        assert_eq!(best(&[(&ring, 10.0), (&other, 4.0)]), (vec![&ring[..]], 10.0));
        assert_eq!(best(&[]), (vec![], 0.0));
    }

    #[test]
    fn a_description_that_cannot_be_read_says_nothing() {
        let sites = [at_gpu("0000:1a:00.0"); 3];
        let descriptions = [b"<system".to_vec(), vec![], vec![]];
        assert_eq!(order(&[0, 0, 0], &[0, 1, 2], &sites, &descriptions), None);
    }
}
