//! Rings, trees and ports of real machines, from the files of a folder: RINGTREE_TEST_TOPOLOGIES, or `shared/topologies`
//! beside the checkout. Without it these tests say that they were skipped.

use std::collections::BTreeMap;
use std::time::Instant;

use ringtree_topology::search::{
    Cluster, HostGraph, assign_nics, best_tree, cluster_plan, explain_cluster, explain_rings, rings,
};
use ringtree_topology::{EdgeId, EdgeKind, Graph, Machine, NodeId, PathClass};

use crate::machines::GB;
use crate::real::folder;
use crate::rings::check;

fn read(name: &str) -> Option<Graph> {
    let machine = Machine::from_xml_file(folder()?.join(name)).unwrap();
    Some(Graph::new(&machine).0)
}

fn host(name: &str, graph: &Graph) -> HostGraph {
    HostGraph { name: name.into(), graph: graph.clone(), devices: graph.gpus() }
}

#[test]
fn every_file_is_searched_to_the_optimum_quickly() {
    let Some(folder) = folder() else { return };
    let mut paths: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "xml"));
    paths.sort();
    for path in paths {
        let Ok(machine) = Machine::from_xml_file(&path) else { continue };
        let (graph, _) = Graph::new(&machine);
        let start = Instant::now();
        let set = rings(&graph, &graph.gpus()).unwrap();
        let took = start.elapsed();
        println!("{}: {took:?}", path.display());
        print!("{}", explain_rings(&graph, &set));
        if graph.gpus().len() < 2 {
            assert!(set.channels.is_empty());
            continue;
        }
        check(&graph, &set);
        assert!(set.gap() < 1e-6, "{}: {}", path.display(), set.gap());
        assert!(took.as_secs() < 2, "{}: {took:?}", path.display());
        assert!(best_tree(&graph, &graph.gpus()).unwrap().rate_bytes_per_s > 0.0);
        if assign_nics(&graph, &graph.gpus()).unwrap().ports.is_empty() {
            continue;
        }
        let cluster = Cluster { hosts: vec![host("a", &graph), host("b", &graph)] };
        let plan = cluster_plan(&cluster).unwrap();
        print!("{}", explain_cluster(&cluster, &plan));
        assert!(plan.total_bytes_per_s > 0.0);
    }
}

#[test]
fn an_h100_machine_has_eight_gpus_with_two_near_ports_each() {
    let Some(graph) = read("oci-8xH100.xml") else { return };
    let nics = assign_nics(&graph, &graph.gpus()).unwrap();
    assert_eq!((nics.devices.len(), nics.ports.len()), (8, 16));
    for (device, ports) in nics.ports_of.iter().enumerate() {
        assert_eq!(ports.len(), 2);
        for &port in ports {
            let class = graph.path_class(nics.devices[device], nics.ports[port]);
            assert!(matches!(class, PathClass::Pix | PathClass::Pxb), "{class:?}");
        }
    }
    let plan =
        cluster_plan(&Cluster { hosts: vec![host("a", &graph), host("b", &graph)] }).unwrap();
    assert_eq!(plan.rails.len(), 8);
    let two_of_each = |rail: &Vec<Vec<NodeId>>| rail.iter().all(|ports| ports.len() == 2);
    assert!(plan.rails.iter().all(two_of_each), "{:?}", plan.rails);
    // The PCIe links of the GPUs bound it, not those up to the processors, which are much slower.
    assert!(
        plan.total_bytes_per_s > 0.95 * plan.bound_bytes_per_s,
        "{}",
        plan.total_bytes_per_s / GB
    );
}

#[test]
fn a_machine_of_pairs_crosses_between_them_twice() {
    let Some(graph) = read("azure-ncv4-4xA100-pcie.xml") else { return };
    let set = rings(&graph, &graph.gpus()).unwrap();
    for channel in set.channels.iter().chain(&set.single) {
        let nvlink = |hop: &&Vec<_>| graph.edge(hop[0]).kind == EdgeKind::NvLink;
        assert_eq!(channel.hops.iter().filter(nvlink).count(), 2, "{channel:?}");
    }
}

#[test]
fn a_port_is_used_by_ways_over_several_sockets() {
    let Some(graph) = read("rccl-8p-rome-n4.xml") else { return };
    let plan =
        cluster_plan(&Cluster { hosts: vec![host("a", &graph), host("b", &graph)] }).unwrap();
    // One link between sockets carries 16 GB/s, the port 25 GB/s.
    assert!(plan.total_bytes_per_s > 20.0 * GB, "{}", plan.total_bytes_per_s / GB);
}

/// Every link between GPUs helps, and is used up.
#[test]
fn links_between_gpus_of_amd_are_used() {
    for (name, links) in [("rccl-8p6l-2nic.xml", 24), ("rccl-8p-rome-n4.xml", 8)] {
        let Some(graph) = read(name) else { return };
        let set = rings(&graph, &graph.gpus()).unwrap();
        let mut left: BTreeMap<EdgeId, f64> = BTreeMap::new();
        for (id, edge) in graph.edges.iter().enumerate() {
            if edge.kind == EdgeKind::Xgmi {
                left.insert(EdgeId(id as u32), edge.bandwidth_bytes_per_s);
            }
        }
        assert_eq!(left.len(), 2 * links, "{name}");
        for channel in &set.channels {
            for edge in channel.hops.iter().flatten() {
                left.entry(*edge).and_modify(|left| *left -= channel.rate_bytes_per_s);
            }
        }
        for (edge, left) in left {
            assert!(left < 1e-6 * GB, "{name}: {left} of {:?} are unused", graph.edge(edge));
        }
    }
    let Some(graph) = read("rccl-8p6l-2nic.xml") else { return };
    let single = rings(&graph, &graph.gpus()).unwrap().single.unwrap();
    assert!(single.hops.iter().flatten().all(|&edge| graph.edge(edge).kind == EdgeKind::Xgmi));
}
