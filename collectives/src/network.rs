//! What the ports that ranks use are known to carry, and the cost table's figures of the network that follow.
//!
//! Each rank tells in its introduction what is known of its own ports. From what all have told everyone
//! calculates the same table: the network is as fast as the slowest of them.

use ringtree_topology::{Machine, PlacedPort, Roots, carriers};
use ringtree_transport::endpoint::Endpoint;
use ringtree_transport::interfaces;

use crate::{Costs, LinkCosts};

/// Longer names of ports are cut. So many characters have no more than 255 bytes.
const MOST_NAME_CHARS: usize = 60;

/// Where the figures of the network between hosts in [`Shape::costs`](crate::Shape::costs) come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetworkFigures {
    /// From nowhere: they are those of [`Costs::default`], since no slower port is known.
    #[default]
    Default,
    /// From rank 0's [`Settings::costs`](crate::Settings::costs).
    Settings,
    /// The speed is that of the slowest ports that a rank has.
    Ports {
        /// The rank.
        rank: u32,
        /// Its ports, such as `eth0` or `mlx5_0:1, mlx5_1:1`.
        names: String,
    },
}

/// What is known of the ports by which a rank reaches other hosts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RankPorts {
    pub(crate) tcp: Ports,
    pub(crate) rdma: Ports,
}

/// Those of one transport.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ports {
    /// What they carry each way, all together; `None` where that is not known of each.
    bytes_per_s: Option<f64>,
    /// Of the slowest; `None` where none says it.
    latency_s: Option<f64>,
    /// Their names, separated by commas.
    names: String,
}

impl RankPorts {
    /// The ports of an endpoint, as a machine's description has them. `is_here`: the machine is this one, and
    /// no other that a file describes.
    pub(crate) fn of(endpoint: &Endpoint, machine: &Machine, is_here: bool) -> RankPorts {
        let all = machine.ports();
        let interfaces = interfaces::list().unwrap_or_default();
        let of_address = |address| {
            let has_it = interfaces.iter().find(|interface| interface.address == address);
            has_it.map_or_else(String::new, |interface| interface.name.clone())
        };
        let names: Vec<String> =
            endpoint.tcp_addresses().iter().map(|address| of_address(*address)).collect();
        let named = |name: &str| {
            all.iter().find(|port| port.port.name == name || port.port.partner == name)
        };
        // An interface that goes through nothing that is known is like a port that is not.
        let behind = |name: &String| match is_here {
            true => match &carriers(&Roots::system(), name)[..] {
                [] => vec![None],
                carriers => carriers.iter().map(|carrier| named(carrier)).collect(),
            },
            false => vec![named(name)],
        };
        let of_tcp: Vec<Option<&PlacedPort>> = names.iter().flat_map(behind).collect();
        let rails: Vec<(&str, u8)> = endpoint.rdma_ports().collect();
        let of_rdma = rails.iter().map(|(device, number)| {
            let is_it = |port: &&PlacedPort| {
                port.port.name == *device && port.port.port == u32::from(*number)
            };
            all.iter().find(is_it)
        });
        let rails = rails.iter().map(|(device, number)| format!("{device}:{number}"));
        RankPorts {
            tcp: Ports::together(&names, &of_tcp),
            rdma: Ports::together(&rails.collect::<Vec<_>>(), &of_rdma.collect::<Vec<_>>()),
        }
    }

    /// As they are sent.
    pub(crate) fn encode(&self) -> Vec<u8> {
        [self.tcp.encode(), self.rdma.encode()].concat()
    }

    /// What [`RankPorts::encode`] made, and what comes after it.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(RankPorts, &[u8])> {
        let (tcp, bytes) = Ports::decode(bytes)?;
        let (rdma, bytes) = Ports::decode(bytes)?;
        Some((RankPorts { tcp, rdma }, bytes))
    }
}

impl Ports {
    /// All of some names together; `None` is a port of which nothing is known.
    fn together(names: &[String], ports: &[Option<&PlacedPort>]) -> Ports {
        let mut different: Vec<&PlacedPort> = ports.iter().flatten().copied().collect();
        different.sort_by_key(|port| port.port.index);
        different.dedup_by_key(|port| port.port.index);
        let is_known = !ports.is_empty() && ports.iter().all(Option::is_some);
        let speeds = different.iter().map(|port| port.known_bytes_per_s());
        let bytes_per_s = speeds.sum::<Option<f64>>().filter(|_| is_known);
        let latencies_us = different.iter().filter_map(|port| port.port.latency_us);
        let latency_us = latencies_us.fold(0.0, f64::max);
        let latency_s = (latency_us > 0.0).then_some(latency_us / 1e6);
        Ports { bytes_per_s, latency_s, names: names.join(", ") }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = self.bytes_per_s.unwrap_or(0.0).to_le_bytes().to_vec();
        out.extend_from_slice(&self.latency_s.unwrap_or(0.0).to_le_bytes());
        let names: String = self.names.chars().take(MOST_NAME_CHARS).collect();
        out.push(names.len() as u8);
        out.extend_from_slice(names.as_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<(Ports, &[u8])> {
        let (speed, bytes) = bytes.split_first_chunk()?;
        let (latency, bytes) = bytes.split_first_chunk()?;
        let (&length, bytes) = bytes.split_first()?;
        let (names, bytes) = bytes.split_at_checked(usize::from(length))?;
        let known = |figure: &[u8; 8]| {
            Some(f64::from_le_bytes(*figure)).filter(|figure| figure.is_finite() && *figure > 0.0)
        };
        let names = String::from_utf8(names.to_vec()).ok()?;
        Some((Ports { bytes_per_s: known(speed), latency_s: known(latency), names }, bytes))
    }
}

/// Rank 0's cost table with what is known of the ports by which the ranks reach other hosts: the least speed and the
/// longest latency of all ranks, where one that knows none counts as the default. Figures that rank 0 has set
/// stay. Over TCP no port makes it faster than the default, for that is what a processor moves through
/// sockets.
pub(crate) fn with_ports(
    costs: Costs,
    ranks: &[&RankPorts],
    is_rdma: bool,
) -> (Costs, NetworkFigures) {
    let usual = Costs::default();
    let (given, usual) = if is_rdma { (costs.rdma, usual.rdma) } else { (costs.tcp, usual.tcp) };
    if given != usual {
        return (costs, NetworkFigures::Settings);
    }
    let ports = || ranks.iter().map(|ports| if is_rdma { &ports.rdma } else { &ports.tcp });
    let most = if is_rdma { f64::INFINITY } else { usual.bytes_per_s };
    let speeds = ports().map(|ports| ports.bytes_per_s.unwrap_or(usual.bytes_per_s));
    let bytes_per_s = speeds.fold(most, f64::min);
    let latencies = ports().map(|ports| ports.latency_s.unwrap_or(usual.latency_s));
    let latency_s = latencies.fold(0.0, f64::max);
    let slowest = ports().enumerate().find(|(_, ports)| ports.bytes_per_s == Some(bytes_per_s));
    let from = slowest.map_or(NetworkFigures::Default, |(rank, ports)| NetworkFigures::Ports {
        rank: rank as u32,
        names: ports.names.clone(),
    });
    let agreed = LinkCosts { bytes_per_s, latency_s, ..given };
    let costs =
        if is_rdma { Costs { rdma: agreed, ..costs } } else { Costs { tcp: agreed, ..costs } };
    (costs, from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_tcp(bytes_per_s: Option<f64>, names: &str) -> RankPorts {
        let tcp = Ports { bytes_per_s, latency_s: None, names: names.into() };
        RankPorts { tcp, ..RankPorts::default() }
    }

    fn over_rdma(bytes_per_s: Option<f64>, latency_s: Option<f64>) -> RankPorts {
        let rdma = Ports { bytes_per_s, latency_s, names: "mlx5_0:1".into() };
        RankPorts { rdma, ..RankPorts::default() }
    }

    #[test]
    fn ports_are_what_they_were_when_they_have_been_sent() {
        let long = "ä".repeat(2 * MOST_NAME_CHARS);
        for ports in [
            RankPorts::default(),
            over_tcp(Some(1.25e9), "eth0, eth1"),
            over_rdma(Some(5e10), Some(1e-6)),
        ] {
            let bytes = [ports.encode(), b"rest".to_vec()].concat();
            assert_eq!(RankPorts::decode(&bytes), Some((ports, &b"rest"[..])));
        }
        let (cut, _) = RankPorts::decode(&over_tcp(None, &long).encode()).unwrap();
        assert_eq!(cut.tcp.names, "ä".repeat(MOST_NAME_CHARS));
        assert_eq!(RankPorts::decode(&over_tcp(None, "eth0").encode()[..20]), None);
    }

    #[test]
    fn ports_count_once_each_and_only_if_all_are_known() {
        let text = r#"<system version="1"><cpu numaid="0" affinity="1" arch="x86_64"><nic>
          <net name="eth0" dev="0" speed="10000" latency="3" guid="0x1"/>
          <net name="eth1" dev="1" speed="25000" latency="5" guid="0x2"/>
          <net name="eth2" dev="2" guid="0x3"/></nic></cpu></system>"#;
        let machine = Machine::from_xml(text).unwrap();
        let ports = machine.ports();
        let names = ["vlan7".to_owned(), "eth1".to_owned()];
        let together = |places: &[Option<usize>]| {
            let ports: Vec<_> = places.iter().map(|place| place.map(|at| &ports[at])).collect();
            let Ports { bytes_per_s, latency_s, names } = Ports::together(&names, &ports);
            assert_eq!(names, "vlan7, eth1");
            (bytes_per_s, latency_s)
        };
        assert_eq!(together(&[Some(0), Some(1), Some(0)]), (Some(4.375e9), Some(5e-6)));
        assert_eq!(together(&[Some(0), None]), (None, Some(3e-6)));
        assert_eq!(together(&[Some(0), Some(2)]), (None, Some(3e-6)));
        assert_eq!(together(&[]), (None, None));
    }

    #[test]
    fn the_slowest_port_of_all_ranks_counts() {
        let ranks =
            [over_tcp(Some(1.25e9), "eth0"), over_tcp(None, ""), over_tcp(Some(0.125e9), "en1")];
        let (costs, from) = with_ports(Costs::default(), &ranks.each_ref(), false);
        assert_eq!(costs.tcp, LinkCosts { bytes_per_s: 0.125e9, ..Costs::default().tcp });
        assert_eq!(from, NetworkFigures::Ports { rank: 2, names: "en1".into() });
        assert_eq!(Costs { tcp: Costs::default().tcp, ..costs }, Costs::default());
    }

    #[test]
    fn a_rank_that_knows_nothing_counts_as_the_default() {
        let ranks = [over_rdma(Some(5e10), None), over_rdma(None, None)];
        let (costs, from) = with_ports(Costs::default(), &ranks.each_ref(), true);
        assert_eq!((costs, from), (Costs::default(), NetworkFigures::Default));
        let ranks = [over_rdma(Some(5e10), None), over_rdma(Some(6e10), Some(9e-6))];
        let (costs, _) = with_ports(Costs::default(), &ranks.each_ref(), true);
        assert_eq!((costs.rdma.bytes_per_s, costs.rdma.latency_s), (5e10, 9e-6));
    }

    #[test]
    fn a_port_makes_no_processor_faster() {
        let ranks = [over_tcp(Some(5e10), "eth0"), over_tcp(Some(5e10), "eth0")];
        let (costs, from) = with_ports(Costs::default(), &ranks.each_ref(), false);
        assert_eq!((costs, from), (Costs::default(), NetworkFigures::Default));
    }

    #[test]
    fn what_rank_0_has_set_stays() {
        let default = Costs::default();
        let set = Costs { tcp: LinkCosts { bytes_per_s: 9e9, ..default.tcp }, ..default };
        let ranks = [over_tcp(Some(1.25e9), "eth0"), over_tcp(Some(1.25e9), "eth0")];
        let (costs, from) = with_ports(set, &ranks.each_ref(), false);
        assert_eq!((costs, from), (set, NetworkFigures::Settings));
    }
}
