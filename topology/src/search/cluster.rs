//! Rings through several hosts.
//!
//! A ring through all ranks enters and leaves every host once: it comes in by a port, goes through all devices
//! of the host and leaves by a port. There is a channel for each port (or, where hosts differ in ports, as many as
//! let each host share its ports evenly), so that every port works in both directions.
//!
//! - *Rails*: ports of a host that serve the same devices are a rail of it, and where hosts are alike in that, rail k
//!   is the k-th of each. Channels go from the k-th port of a host to the k-th of the next, and so stay on their
//!   rail between hosts. A channel that comes in by one port leaves by another, beside another
//!   device, and the next host brings it back (as NCCL does with NCCL_CROSS_NIC=2): so it enters at the device next to
//!   one port and leaves at the one next to the other. With an odd number of hosts it
//!   changes its rail on the way from the last to the first.
//! - *Inside* a host, the orders of all channels are chosen against each other (`inside`).
//! - *Rates*: a channel goes at the rate of the host that can do least for it; no rank idles, since every channel
//!   goes through all of them.
//!
//! The hosts' order is the given one: nothing is known of the network between them.

use serde::Serialize;

use super::cut;
use super::few::MOST_CHANNELS;
use super::inside::Inside;
use super::nics::{NicAssignment, assign_nics, port_speed};
use super::rings;
use crate::error::Error;
use crate::graph::{EdgeId, Graph, NodeId};

/// With more than this, channels of one port hardly differ.
const MOST_CHANNELS_A_PORT: usize = 4;

/// One host as its ranks see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostGraph {
    /// Its name, for people.
    pub name: String,
    /// How it is wired.
    pub graph: Graph,
    /// Where each of its ranks is, in their order: a GPU or a NUMA node. Several ranks may be at the same node.
    pub devices: Vec<NodeId>,
}

/// All hosts of a job, in the order of their ranks: those of the first host come first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    #[allow(missing_docs)]
    pub hosts: Vec<HostGraph>,
}

/// Rings through all ranks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterPlan {
    /// Which port serves which device, for each host; devices are the host's different nodes.
    pub nics: Vec<NicAssignment>,
    /// For each rail the ports of each host; empty if ports differ or there is one host.
    pub rails: Vec<Vec<Vec<NodeId>>>,
    /// The fastest first, within rails in their order.
    pub channels: Vec<ClusterChannel>,
    /// Sum of the rates.
    pub total_bytes_per_s: f64,
    /// What no set of rings through all ranks can exceed.
    pub bound_bytes_per_s: f64,
    /// Which host bounds the total, and its links that do.
    pub limit: Option<(usize, Vec<EdgeId>)>,
}

/// One ring through all ranks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterChannel {
    /// The ranks in the order of the ring.
    pub order: Vec<usize>,
    /// Bytes a second.
    pub rate_bytes_per_s: f64,
    /// Host by host, in the order of the ring.
    pub parts: Vec<HostPart>,
}

/// What a ring does inside a host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostPart {
    /// Place in the cluster.
    pub host: usize,
    /// Places in the host's list of devices. The first one receives from the host before, the last one sends to the
    /// host after.
    pub order: Vec<usize>,
    /// The port by which the ring comes in, and that by which it leaves; `None` if there is one host.
    pub ports: Option<[NodeId; 2]>,
    /// The links to each device of `order` from what is before it, the first from the port; and last those from the last
    /// device to the port. For one host: from each device to the next one and from the last to the first, as in
    /// [`Channel`](super::Channel), with an empty list in front.
    pub hops: Vec<Vec<EdgeId>>,
}

/// Rings through all ranks of all hosts.
///
/// # Errors
/// If there is no host or one has no rank, if devices are none of their graph's nodes, if no ring leads through a
/// host, or if one of several hosts has no port that is up.
pub fn cluster_plan(cluster: &Cluster) -> Result<ClusterPlan, Error> {
    let empty = cluster.hosts.iter().find(|host| host.devices.is_empty());
    if let Some(host) = empty {
        return Err(Error::NoRanks { host: host.name.clone() });
    }
    match &cluster.hosts[..] {
        [] => Err(Error::NoHosts),
        [host] => one_host(host),
        hosts => several_hosts(hosts),
    }
}

/// The different nodes of a host's ranks, in the order in which they are first named, with the ranks there.
fn places(host: &HostGraph) -> (Vec<NodeId>, Vec<Vec<usize>>) {
    let (mut nodes, mut ranks): (Vec<NodeId>, Vec<Vec<usize>>) = (Vec::new(), Vec::new());
    for (rank, &node) in host.devices.iter().enumerate() {
        match nodes.iter().position(|&other| other == node) {
            Some(place) => ranks[place].push(rank),
            None => {
                nodes.push(node);
                ranks.push(vec![rank]);
            }
        }
    }
    (nodes, ranks)
}

/// Ranks at one node follow each other; between them there is no link.
fn with_all_ranks(
    order: &[usize],
    hops: Vec<Vec<EdgeId>>,
    ranks: &[Vec<usize>],
) -> (Vec<usize>, Vec<Vec<EdgeId>>) {
    let (mut all, mut all_hops) = (Vec::new(), Vec::new());
    let mut hops = hops.into_iter();
    for &place in order {
        all_hops.extend(hops.next());
        all_hops.extend(ranks[place].iter().skip(1).map(|_| Vec::new()));
        all.extend(&ranks[place]);
    }
    all_hops.extend(hops);
    (all, all_hops)
}

fn one_host(host: &HostGraph) -> Result<ClusterPlan, Error> {
    let (nodes, ranks) = places(host);
    let set = rings(&host.graph, &nodes)?;
    let channels = set.channels.into_iter().map(|channel| {
        let hops = [vec![Vec::new()], channel.hops].concat();
        let (order, hops) = with_all_ranks(&channel.order, hops, &ranks);
        ClusterChannel {
            order: order.clone(),
            rate_bytes_per_s: channel.rate_bytes_per_s,
            parts: vec![HostPart { host: 0, order, ports: None, hops }],
        }
    });
    Ok(ClusterPlan {
        nics: vec![assign_nics(&host.graph, &nodes)?],
        rails: Vec::new(),
        channels: channels.collect(),
        total_bytes_per_s: set.total_bytes_per_s,
        bound_bytes_per_s: set.bound_bytes_per_s,
        limit: (!set.limits.is_empty()).then_some((0, set.limits)),
    })
}

fn several_hosts(hosts: &[HostGraph]) -> Result<ClusterPlan, Error> {
    let mut nics = Vec::new();
    for host in hosts {
        let assignment = assign_nics(&host.graph, &places(host).0)?;
        if assignment.ports.is_empty() {
            return Err(Error::NoPort { host: host.name.clone() });
        }
        nics.push(assignment);
    }
    let (bound, at_bound) = bound(hosts, &nics);
    let mut best: Option<Rings> = None;
    // More channels can go different ways from the same port; they are taken only if they gain.
    let channels = channel_count(&nics);
    for times in 1..=MOST_CHANNELS_A_PORT {
        if times > 1 && times * channels > MOST_CHANNELS {
            break;
        }
        let rings = Rings::new(hosts, &nics, times * channels)?;
        if best.as_ref().is_none_or(|best| rings.total() > 1.01 * best.total()) {
            best = Some(rings);
        }
        if best.as_ref().is_some_and(|best| best.total() > 0.99 * bound) {
            break;
        }
    }
    let Some(rings) = best else { return Err(Error::NoHosts) };
    let total = rings.total();
    let limit = at_bound.filter(|_| total >= bound * (1.0 - 1e-6)).or_else(|| rings.slowest());
    Ok(ClusterPlan {
        channels: rings.joined(hosts),
        rails: rails(hosts, &nics),
        nics,
        total_bytes_per_s: total,
        bound_bytes_per_s: bound,
        limit,
    })
}

/// A number of channels through all hosts.
struct Rings {
    insides: Vec<Inside>,
    /// What each channel wants: what its ports can.
    wishes: Vec<f64>,
    rates: Vec<f64>,
}

impl Rings {
    fn new(hosts: &[HostGraph], nics: &[NicAssignment], channels: usize) -> Result<Rings, Error> {
        let mut insides = Vec::new();
        for (number, host) in hosts.iter().enumerate() {
            let shift = shift(nics, nics[number].ports.len());
            let ports = (0..channels).map(|channel| {
                let ports = nics[number].ports.len();
                let [one, other] = [channel % ports, (channel + shift) % ports];
                if number.is_multiple_of(2) { [one, other] } else { [other, one] }
            });
            insides.push(Inside::new(&host.graph, &nics[number], ports.collect()));
        }
        let least =
            |of: &dyn Fn(&Inside) -> f64| insides.iter().map(of).fold(f64::INFINITY, f64::min);
        let wishes: Vec<f64> = (0..channels).map(|c| least(&|inside| inside.wish(c))).collect();
        for (inside, host) in insides.iter_mut().zip(hosts) {
            inside.choose(&host.graph, &wishes)?;
        }
        let rate = |c: usize| {
            insides.iter().map(|inside| inside.rate(c, &wishes)).fold(wishes[c], f64::min)
        };
        let rates = (0..channels).map(rate).collect();
        Ok(Rings { insides, wishes, rates })
    }

    fn total(&self) -> f64 {
        self.rates.iter().sum()
    }

    /// The host that slows the channels most, and its most loaded links.
    fn slowest(&self) -> Option<(usize, Vec<EdgeId>)> {
        let sums = self.insides.iter().map(|inside| {
            let rates = (0..self.rates.len()).map(|c| inside.rate(c, &self.wishes));
            rates.sum::<f64>()
        });
        let (host, _) = sums.enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        Some((host, self.insides[host].most_loaded()))
    }

    /// The parts of all hosts, the fastest channels first.
    fn joined(&self, hosts: &[HostGraph]) -> Vec<ClusterChannel> {
        let mut channels: Vec<ClusterChannel> =
            (0..self.rates.len()).map(|channel| self.channel(hosts, channel)).collect();
        channels.sort_by(|a, b| b.rate_bytes_per_s.total_cmp(&a.rate_bytes_per_s));
        channels
    }

    fn channel(&self, hosts: &[HostGraph], channel: usize) -> ClusterChannel {
        let (mut first_rank, mut order, mut parts) = (0, Vec::new(), Vec::new());
        for (number, (host, inside)) in hosts.iter().zip(&self.insides).enumerate() {
            let part = part(number, host, inside, channel);
            order.extend(part.order.iter().map(|rank| first_rank + rank));
            first_rank += host.devices.len();
            parts.push(part);
        }
        ClusterChannel { order, rate_bytes_per_s: self.rates[channel], parts }
    }
}

/// As many as let every host share its ports evenly; if that is too many, as many as the most ports.
fn channel_count(nics: &[NicAssignment]) -> usize {
    let ports = || nics.iter().map(|nics| nics.ports.len());
    let common = ports().try_fold(1_usize, |common, ports| {
        let (mut a, mut b) = (common, ports);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        Some(common / a * ports).filter(|&multiple| multiple <= MOST_CHANNELS)
    });
    common.unwrap_or(ports().max().unwrap_or(1).min(MOST_CHANNELS))
}

/// How far the port by which a channel leaves is from the one by which it came: the least shift by which
/// most are beside another device. The same for all hosts with so many ports.
fn shift(nics: &[NicAssignment], ports: usize) -> usize {
    let alike: Vec<_> = nics.iter().filter(|nics| nics.ports.len() == ports).collect();
    let differ = |shift: usize| {
        let of_host = |nics: &&NicAssignment| {
            let other = |&port: &usize| {
                nics.devices_of(port).first() != nics.devices_of((port + shift) % ports).first()
            };
            (0..ports).filter(other).count()
        };
        alike.iter().map(of_host).sum::<usize>()
    };
    let counts: Vec<_> = (0..ports).map(differ).collect();
    let most = counts.iter().max().copied().unwrap_or(0);
    // Where nothing differs the ports still do.
    let first = usize::from(ports > 1);
    (first..ports).find(|&shift| counts[shift] == most).unwrap_or(0)
}

/// The k-th rail of every host, if all have as many, of ports that are equally many and fast.
fn rails(hosts: &[HostGraph], nics: &[NicAssignment]) -> Vec<Vec<Vec<NodeId>>> {
    let of_host = |nics: &NicAssignment| -> Vec<Vec<NodeId>> {
        let ports = |rail: Vec<usize>| rail.into_iter().map(|port| nics.ports[port]).collect();
        nics.rails().into_iter().map(ports).collect()
    };
    let of_hosts: Vec<Vec<Vec<NodeId>>> = nics.iter().map(of_host).collect();
    let speeds = |host: usize| -> Vec<Vec<f64>> {
        let speed = |port: &NodeId| port_speed(&hosts[host].graph, *port);
        of_hosts[host].iter().map(|rail| rail.iter().map(speed).collect()).collect()
    };
    let first = speeds(0);
    if (1..hosts.len()).any(|host| speeds(host) != first) {
        return Vec::new();
    }
    (0..first.len()).map(|rail| of_hosts.iter().map(|host| host[rail].clone()).collect()).collect()
}

/// What goes through all hosts goes through every cut of each, the network being one more device.
fn bound(hosts: &[HostGraph], nics: &[NicAssignment]) -> (f64, Option<(usize, Vec<EdgeId>)>) {
    let mut least = (f64::INFINITY, None);
    for (number, (host, nics)) in hosts.iter().zip(nics).enumerate() {
        let devices = nics.devices.iter().map(|&device| vec![device]);
        let groups: Vec<_> = devices.chain([nics.ports.clone()]).collect();
        if let Some(cut) = cut::narrowest(&host.graph, &groups)
            && cut.capacity < least.0 * (1.0 - 1e-9)
        {
            least = (cut.capacity, Some((number, cut.edges)));
        }
    }
    least
}

/// What a channel does in one host.
fn part(number: usize, host: &HostGraph, inside: &Inside, channel: usize) -> HostPart {
    let (_, ranks) = places(host);
    let (order, hops) = inside.way(channel);
    let (order, hops) = with_all_ranks(order, hops, &ranks);
    HostPart { host: number, order, ports: Some(inside.ports(channel)), hops }
}
