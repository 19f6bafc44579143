//! RDMA between ranks: whether the ports of all fit together, and whether links go over them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::super::finding::{Check, Finding, Level};
use super::super::host::Introduction;
use super::super::job::Pair;
use crate::words::counted;

/// How large packets may be.
pub const PACKETS: Check = Check {
    name: "rdma-mtu",
    why: "a path over RDMA has packets as large as both its ports take; small ones carry less in the \
          same time",
};

const LINKS: Check = Check {
    name: "rdma-links",
    why: "a pair of ranks that makes no link over RDMA goes over TCP, and all others wait for it",
};

/// Hosts that are named for one value.
const MOST_NAMED: usize = 4;

/// A port that a rank uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedPort {
    /// Its device and number, as in `mlx5_0:1`.
    pub name: String,
    /// Its network interface; `None`: it is of InfiniBand.
    pub interface: Option<String>,
    /// Bytes of the largest packet.
    pub mtu_bytes: u32,
}

/// Whether the ports of all ranks take packets of the same size, if any of them uses one.
pub fn compare_mtus(introductions: &[Introduction]) -> Option<Finding> {
    let mut by_mtu: BTreeMap<u32, (BTreeSet<String>, &UsedPort)> = BTreeMap::new();
    for one in introductions {
        let is_uniform = one.rdma.iter().all(|port| port.mtu_bytes == one.rdma[0].mtu_bytes);
        for port in &one.rdma {
            let (hosts, _) = by_mtu.entry(port.mtu_bytes).or_insert((BTreeSet::new(), port));
            hosts.insert(match is_uniform {
                true => one.host.clone(),
                false => format!("{} ({})", one.host, port.name),
            });
        }
    }
    let (least, (hosts, port)) = by_mtu.first_key_value()?;
    if by_mtu.len() == 1 {
        return Some(PACKETS.ok(least.to_string()));
    }
    let each = by_mtu.iter().map(|(mtu, (hosts, _))| format!("{mtu} on {}", named(hosts)));
    let warning = PACKETS.warning(each.collect::<Vec<_>>().join("; "));
    let on = named(hosts);
    Some(match &port.interface {
        Some(interface) => {
            warning.remedy(format!("sudo ip link set {interface} mtu 9000  # on {on}"))
        }
        None => warning.remedy(
            "grep mtu /etc/opensm/partitions.conf  # where the subnet manager runs: mtu=5 is 4096",
        ),
    })
}

/// Some hosts by their names, and how many more.
fn named(hosts: &BTreeSet<String>) -> String {
    let first: Vec<&str> = hosts.iter().map(String::as_str).take(MOST_NAMED).collect();
    match hosts.len() - first.len() {
        0 => first.join(", "),
        rest => format!("{} and {rest} more", first.join(", ")),
    }
}

/// Whether pairs that could be linked over RDMA are; `None` where no pair could. `astray` is how bad it is
/// if one is not.
pub fn links(introductions: &[Introduction], pairs: &[Pair], astray: Level) -> Option<Finding> {
    let of = |pair: &Pair| pair.ranks.map(|rank| &introductions[rank as usize]);
    let over = |kind: &'static str, least: usize| {
        pairs.iter().filter(move |pair| {
            let with_ports = of(pair).iter().filter(|one| !one.rdma.is_empty()).count();
            pair.transport.as_deref() == Some(kind) && with_ports >= least
        })
    };
    // Pairs of which both have it show a fault, others only a host that is not as the others are.
    let Some(pair) = over("tcp", 2).next().or_else(|| over("tcp", 1).next()) else {
        let good = over("rdma", 0).count() as u64;
        return (good > 0).then(|| LINKS.ok(counted(good, "pair")));
    };
    let count = over("tcp", 1).count() as u64;
    let ([one, other], [first, second]) = (pair.ranks, of(pair));
    let seen = format!(
        "rank {one} on {} has {}, rank {other} on {} has {}, and they are linked over TCP{}",
        first.host,
        ports(first),
        second.host,
        ports(second),
        if count > 1 {
            format!(" (and {} more)", counted(count - 1, "pair"))
        } else {
            String::new()
        }
    );
    let without = [first, second].into_iter().find(|one| one.rdma.is_empty());
    Some(LINKS.found(astray, seen).remedy(match without {
        Some(one) => format!("ringtree doctor rdma  # on {}", one.host),
        None => "export RINGTREE_TRANSPORT=rdma  # and again: then it is said why".into(),
    }))
}

/// `mlx5_0:1 (Ethernet), mlx5_1:1 (Ethernet)`.
fn ports(one: &Introduction) -> String {
    let kind = |port: &UsedPort| if port.interface.is_some() { "Ethernet" } else { "InfiniBand" };
    let names = one.rdma.iter().map(|port| format!("{} ({})", port.name, kind(port)));
    match one.rdma.is_empty() {
        true => "no RDMA".into(),
        false => names.collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::processors::Processors;
    use super::*;

    fn rank(host: &str, ports: &[(Option<&str>, u32)]) -> Introduction {
        let port = |(number, &(interface, mtu_bytes)): (usize, &(Option<&str>, u32))| UsedPort {
            name: format!("mlx5_{number}:1"),
            interface: interface.map(str::to_owned),
            mtu_bytes,
        };
        Introduction {
            host: host.into(),
            machine: host.into(),
            network: host.into(),
            processors: Processors { allowed: BTreeSet::new(), online: 1, quota: None },
            advertised: Vec::new(),
            rdma: ports.iter().enumerate().map(port).collect(),
            endpoint: None,
        }
    }

    fn pair(ranks: [u32; 2], transport: &str) -> Pair {
        Pair {
            ranks,
            transport: Some(transport.into()),
            one_way_us: None,
            clock_ahead_us: None,
            reaches_memory: false,
            error: None,
        }
    }

    const ETHERNET: (Option<&str>, u32) = (Some("eth7"), 4096);
    const INFINIBAND: (Option<&str>, u32) = (None, 4096);

    #[test]
    fn hosts_that_differ_in_mtu_are_named() {
        let (large, small) = (rank("a", &[ETHERNET]), rank("b", &[(Some("eth1"), 1024)]));
        let finding = compare_mtus(&[large.clone(), small.clone(), rank("c", &[])]).unwrap();
        assert_eq!(finding.level, Level::Warning);
        assert_eq!(finding.seen, "1024 on b; 4096 on a");
        assert_eq!(finding.remedy.as_deref(), Some("sudo ip link set eth1 mtu 9000  # on b"));
        let finding = compare_mtus(&[large.clone(), large.clone()]).unwrap();
        assert_eq!((finding.level, finding.seen.as_str()), (Level::Ok, "4096"));
        assert_eq!(compare_mtus(&[rank("c", &[])]), None);
        let infiniband = compare_mtus(&[rank("a", &[INFINIBAND]), rank("b", &[(None, 2048)])]);
        assert!(infiniband.unwrap().remedy.unwrap().contains("opensm"));
        let uneven = compare_mtus(&[rank("a", &[ETHERNET, (Some("eth1"), 1024)])]).unwrap();
        assert_eq!(uneven.seen, "1024 on a (mlx5_1:1); 4096 on a (mlx5_0:1)");
        let many = (0..9).map(|number| rank(&format!("n{number}"), &[ETHERNET]));
        let finding = compare_mtus(&many.chain([small]).collect::<Vec<_>>()).unwrap();
        assert_eq!(finding.seen, "1024 on b; 4096 on n0, n1, n2, n3 and 5 more");
    }

    #[test]
    fn a_pair_that_misses_its_ports_is_pointed_out() {
        let both = [rank("a", &[ETHERNET]), rank("b", &[INFINIBAND])];
        let finding = links(&both, &[pair([0, 1], "tcp")], Level::Failure).unwrap();
        assert_eq!(finding.level, Level::Failure);
        let seen = "rank 0 on a has mlx5_0:1 (Ethernet), rank 1 on b has mlx5_0:1 (InfiniBand), and \
                    they are linked over TCP";
        assert_eq!(finding.seen, seen);
        assert!(finding.remedy.unwrap().starts_with("export RINGTREE_TRANSPORT=rdma"));
        for (transport, said) in [("rdma", Some("1 pair")), ("shm", None)] {
            let finding = links(&both, &[pair([0, 1], transport)], Level::Warning);
            assert_eq!(finding.as_ref().map(|finding| finding.seen.as_str()), said);
            assert!(finding.is_none_or(|finding| finding.level == Level::Ok));
        }
    }

    #[test]
    fn a_host_that_has_not_what_the_others_have_is_named() {
        let ranks = [rank("a", &[ETHERNET]), rank("b", &[ETHERNET]), rank("c", &[])];
        let pairs = [pair([0, 1], "rdma"), pair([0, 2], "tcp"), pair([1, 2], "tcp")];
        let finding = links(&ranks, &pairs, Level::Warning).unwrap();
        let seen = "rank 0 on a has mlx5_0:1 (Ethernet), rank 2 on c has no RDMA, and they are linked \
                    over TCP (and 1 pair more)";
        assert_eq!((finding.level, finding.seen.as_str()), (Level::Warning, seen));
        assert_eq!(finding.remedy.as_deref(), Some("ringtree doctor rdma  # on c"));
        let none = [rank("c", &[]), rank("d", &[])];
        assert_eq!(links(&none, &[pair([0, 1], "tcp")], Level::Warning), None);
    }
}
