//! Ports of devices, and rings through several hosts.

use ringtree_topology::search::{
    Cluster, ClusterPlan, HostGraph, assign_nics, cluster_plan, explain_cluster,
};
use ringtree_topology::{EdgeKind, Error, NodeId};

use crate::machines::{GB, Machine, dgx, nvswitch, pairs, pcie_tree};

fn host(name: &str, machine: &Machine) -> HostGraph {
    HostGraph { name: name.into(), graph: machine.graph.clone(), devices: machine.gpus.clone() }
}

/// Every rank is in every ring once, links carry what they can, hops lead where they should.
fn check(cluster: &Cluster, plan: &ClusterPlan) {
    let ranks: usize = cluster.hosts.iter().map(|host| host.devices.len()).sum();
    let mut loads: Vec<Vec<f64>> =
        cluster.hosts.iter().map(|host| vec![0.0; host.graph.edges.len()]).collect();
    for channel in &plan.channels {
        let mut order = channel.order.clone();
        order.sort_unstable();
        assert_eq!(order, (0..ranks).collect::<Vec<_>>());
        assert!(channel.rate_bytes_per_s > 0.0);
        for part in &channel.parts {
            let host = &cluster.hosts[part.host];
            assert_eq!(part.order.len() + 1, part.hops.len());
            let nodes = part.order.iter().map(|&rank| host.devices[rank]);
            let nodes: Vec<NodeId> = match part.ports {
                Some([come, go]) => [come].into_iter().chain(nodes).chain([go]).collect(),
                None => {
                    let nodes: Vec<_> = nodes.collect();
                    [&nodes[..1], &nodes, &nodes[..1]].concat()
                }
            };
            for (hop, ends) in part.hops.iter().zip(nodes.windows(2)) {
                if let (Some(&first), Some(&last)) = (hop.first(), hop.last()) {
                    let edges = [host.graph.edge(first), host.graph.edge(last)];
                    assert_eq!([edges[0].from, edges[1].to], [ends[0], ends[1]]);
                } else {
                    assert_eq!(ends[0], ends[1]);
                }
            }
            for edge in part.hops.iter().flatten() {
                loads[part.host][edge.0 as usize] += channel.rate_bytes_per_s;
            }
        }
    }
    for (host, loads) in cluster.hosts.iter().zip(&loads) {
        for (edge, load) in host.graph.edges.iter().zip(loads) {
            assert!(*load <= edge.bandwidth_bytes_per_s * (1.0 + 1e-9), "{edge:?} carries {load}");
        }
    }
    assert!(plan.total_bytes_per_s <= plan.bound_bytes_per_s * (1.0 + 1e-9));
}

fn planned(hosts: Vec<HostGraph>) -> (Cluster, ClusterPlan) {
    let cluster = Cluster { hosts };
    let plan = cluster_plan(&cluster).unwrap();
    check(&cluster, &plan);
    (cluster, plan)
}

#[test]
fn each_gpu_has_the_port_beside_it() {
    let machine = dgx(8, 450.0, 64.0, 50.0);
    let nics = assign_nics(&machine.graph, &machine.gpus).unwrap();
    for (device, ports) in nics.ports_of.iter().enumerate() {
        assert_eq!(ports.len(), 1);
        assert_eq!(ports[0] / 2, device / 2, "below the same switch");
        assert!((nics.share_bytes_per_s[device] / GB - 50.0).abs() < 1e-6);
        assert_eq!(nics.devices_of(ports[0]), [device]);
    }
}

#[test]
fn ports_are_shared_evenly_and_their_pcie_counts() {
    // Four GPUs below one switch with one port, four below another.
    let mut machine = pcie_tree(8, 12.0, 10.0);
    let above = |gpu: usize| {
        let edge = machine.graph.edges.iter().find(|edge| edge.from == machine.gpus[gpu]).unwrap();
        edge.to
    };
    let bridges = [above(0), above(7)];
    machine.port(bridges[1], 12.0, 12.5);
    machine.port(bridges[0], 6.0, 12.5);
    let nics = assign_nics(&machine.graph, &machine.gpus).unwrap();
    assert_eq!(nics.ports_of, [[1], [1], [1], [1], [0], [0], [0], [0]]);
    let shares: Vec<_> = nics.share_bytes_per_s.iter().map(|share| share / GB).collect();
    assert!(shares[..4].iter().all(|share| (share - 1.5).abs() < 1e-6), "{shares:?}");
    assert!(shares[4..].iter().all(|share| (share - 3.0).abs() < 1e-6), "{shares:?}");
}

#[test]
fn a_slow_port_and_one_that_is_down_are_left_out() {
    let mut machine = dgx(4, 450.0, 64.0, 50.0);
    let numa = machine.numa();
    machine.port(numa, 8.0, 1.25);
    let down = machine.port(numa, 64.0, 50.0);
    machine.graph.edges.retain(|edge| edge.from != down && edge.to != down);
    let nics = assign_nics(&machine.graph, &machine.gpus).unwrap();
    assert_eq!(nics.ports, machine.ports[..4]);
}

/// One GPU beside the port, two behind a link of 16 GB/s: the port's speed is divided by three, and that link by two.
#[test]
fn a_narrow_link_is_shared_by_those_behind_it() {
    let mut machine = Machine::default();
    let sockets = [machine.numa(), machine.numa()];
    machine.link(sockets[0], sockets[1], EdgeKind::Socket, 16.0);
    machine.gpu(sockets[0], 30.0);
    machine.gpu(sockets[1], 30.0);
    machine.gpu(sockets[1], 30.0);
    machine.port(sockets[0], 30.0, 25.0);
    let nics = assign_nics(&machine.graph, &machine.gpus).unwrap();
    let shares: Vec<_> = nics.share_bytes_per_s.iter().map(|share| share / GB).collect();
    for (share, expected) in shares.iter().zip([25.0 / 3.0, 8.0, 8.0]) {
        assert!((share - expected).abs() < 1e-6, "{shares:?}");
    }
}

#[test]
fn one_port_that_is_faster_does_not_put_the_others_out_of_use() {
    let mut machine = dgx(8, 450.0, 64.0, 20.0);
    let faster = machine.ports[3];
    for edge in &mut machine.graph.edges {
        if edge.kind == EdgeKind::Net && [edge.from, edge.to].contains(&faster) {
            edge.bandwidth_bytes_per_s = 50.0 * GB;
        }
    }
    let nics = assign_nics(&machine.graph, &machine.gpus).unwrap();
    assert_eq!(nics.ports, machine.ports);
    let sum: f64 = nics.share_bytes_per_s.iter().sum();
    assert!((sum / GB - 190.0).abs() < 1e-6, "{nics:?}");
}

#[test]
fn equal_hosts_run_on_rails_at_the_speed_of_all_ports() {
    let machine = dgx(8, 450.0, 64.0, 50.0);
    for hosts in [2, 3] {
        let all = (0..hosts).map(|i| host(&format!("node{i}"), &machine)).collect();
        let (cluster, plan) = planned(all);
        assert_eq!(plan.rails.len(), 8);
        assert_eq!(plan.channels.len(), 8);
        let total = plan.total_bytes_per_s / GB;
        assert!((total - 400.0).abs() < 1e-6, "{total} over {hosts} hosts");
        let text = explain_cluster(&cluster, &plan);
        assert!(text.contains("node0: GPU0 uses mlx5_0"), "{text}");
        assert!(text.contains("in by mlx5_0"), "{text}");
    }
}

#[test]
fn a_channel_stays_on_its_rail_between_hosts() {
    let machine = dgx(4, 450.0, 64.0, 50.0);
    let (_, plan) = planned((0..4).map(|i| host(&format!("node{i}"), &machine)).collect());
    for channel in &plan.channels {
        for (i, part) in channel.parts.iter().enumerate() {
            let next = &channel.parts[(i + 1) % channel.parts.len()];
            assert_eq!(part.ports.unwrap()[1], next.ports.unwrap()[0]);
        }
    }
}

#[test]
fn unlike_hosts_work_together() {
    let mut cpu = Machine::default();
    let sockets = [cpu.numa(), cpu.numa()];
    cpu.link(sockets[0], sockets[1], EdgeKind::Socket, 20.0);
    cpu.port(sockets[0], 12.0, 12.5);
    let ranks = vec![sockets[0], sockets[1], sockets[0], sockets[1]];
    let cpu = HostGraph { name: "cpu".into(), graph: cpu.graph, devices: ranks };
    let mut four = pairs(4, 100.0, 12.0, 30.0);
    four.port(NodeId(0), 12.0, 12.5);
    four.port(NodeId(1), 12.0, 12.5);
    let mut one = nvswitch(1, 100.0);
    one.port(NodeId(0), 12.0, 12.5);
    one.link(one.gpus[0], NodeId(0), EdgeKind::Pcie, 12.0);
    let eight = dgx(8, 450.0, 64.0, 50.0);
    let hosts = vec![host("eight", &eight), host("four", &four), cpu.clone(), host("one", &one)];
    let (cluster, plan) = planned(hosts);
    assert!(plan.rails.is_empty());
    // One port of 12.5 GB/s behind PCIe of 12 GB/s bounds it, and every rank takes part.
    let total = plan.total_bytes_per_s / GB;
    assert!((total - 12.0).abs() < 1e-6, "{total}");
    assert!(explain_cluster(&cluster, &plan).contains("limited by"), "{plan:?}");
    let (_, plan) = planned(vec![host("eight", &eight), host("four", &four)]);
    let total = plan.total_bytes_per_s / GB;
    assert!(total > 12.0 && total <= 24.0 + 1e-6, "{total}");
}

#[test]
fn ranks_at_one_node_follow_each_other() {
    let machine = pcie_tree(4, 12.0, 10.0);
    let [a, b, ..] = machine.gpus[..] else { panic!() };
    let host = HostGraph { name: "a".into(), graph: machine.graph, devices: vec![a, b, a, b] };
    let (_, plan) = planned(vec![host]);
    assert_eq!(plan.channels[0].order, [0, 2, 1, 3]);
}

#[test]
fn what_cannot_be_planned_says_why() {
    let nothing = cluster_plan(&Cluster { hosts: Vec::new() });
    assert!(matches!(nothing, Err(Error::NoHosts)));
    let machine = nvswitch(2, 100.0);
    let alone = cluster_plan(&Cluster { hosts: vec![host("a", &machine), host("b", &machine)] });
    assert!(matches!(alone, Err(Error::NoPort { host }) if host == "a"));
    let nobody = HostGraph { name: "c".into(), graph: machine.graph.clone(), devices: Vec::new() };
    let nobody = cluster_plan(&Cluster { hosts: vec![nobody] });
    assert!(matches!(nobody, Err(Error::NoRanks { host }) if host == "c"));
}
