//! Small graphs made by hand.

use crate::{BusId, Edge, EdgeKind, Graph, NodeId, NodeKind, PathClass};

fn bus(number: u8) -> BusId {
    BusId { bus: number, ..BusId::default() }
}

fn gpu(graph: &mut Graph, index: u32) -> NodeId {
    graph.add_node(format!("GPU{index}"), NodeKind::Gpu { index, bus_id: bus(index as u8) })
}

fn bridge(graph: &mut Graph, number: u8) -> NodeId {
    graph.add_node(format!("bridge {number}"), NodeKind::Bridge(bus(number)))
}

fn link(graph: &mut Graph, from: NodeId, to: NodeId, kind: EdgeKind, gigabytes_per_s: f64) {
    let bandwidth_bytes_per_s = gigabytes_per_s * 1e9;
    graph.add_link(Edge { from, to, kind, links: 2, bandwidth_bytes_per_s, latency_ns: 10 });
}

use EdgeKind::{C2c, Net, NvLink, Pcie, Socket, Xgmi};

/// Two GPUs on each of two NUMA nodes.
fn four_gpus() -> (Graph, [NodeId; 2], [NodeId; 4]) {
    let mut graph = Graph::default();
    let numa = [0, 1].map(|place| graph.add_node(format!("NUMA{place}"), NodeKind::Numa(place)));
    let gpus = [0, 1, 2, 3].map(|index| gpu(&mut graph, index));
    for (place, &id) in gpus.iter().enumerate() {
        link(&mut graph, id, numa[place / 2], Pcie, 32.0);
    }
    link(&mut graph, numa[0], numa[1], Socket, 16.0);
    (graph, numa, gpus)
}

#[test]
fn classes_by_processors() {
    let (graph, numa, gpus) = four_gpus();
    assert_eq!(graph.path_class(gpus[0], gpus[0]), PathClass::Loc);
    assert_eq!(graph.path_class(gpus[0], gpus[1]), PathClass::Phb);
    assert_eq!(graph.path_class(gpus[0], gpus[2]), PathClass::Sys);
    assert_eq!(graph.path_class(gpus[0], numa[0]), PathClass::Phb);
    assert_eq!(graph.path_class(numa[0], numa[1]), PathClass::Sys);
    let path = graph.path(gpus[3], gpus[0]).expect("a path");
    assert_eq!((path.hops(), path.latency_ns), (3, 30));
    assert_eq!(path.bottleneck_bytes_per_s, 16e9);
    assert_eq!(graph.edge(path.narrowest(&graph).expect("an edge")).kind, Socket);
    assert_eq!(path.label(&graph), "SYS");
}

#[test]
fn the_way_back_is_the_same() {
    let (mut graph, _, gpus) = four_gpus();
    link(&mut graph, gpus[0], gpus[2], NvLink, 40.0);
    link(&mut graph, gpus[2], gpus[3], NvLink, 40.0);
    for &a in &gpus {
        for &b in &gpus {
            let there = graph.path(a, b).expect("a path");
            let back = graph.path(b, a).expect("a path");
            let turned: Vec<_> = back.edges.iter().rev().map(|edge| edge.0 ^ 1).collect();
            assert_eq!(there.edges.iter().map(|edge| edge.0).collect::<Vec<_>>(), turned);
            let mut at = a;
            for &edge in &there.edges {
                assert_eq!(graph.edge(edge).from, at);
                at = graph.edge(edge).to;
            }
            assert_eq!(at, b);
        }
    }
}

#[test]
fn own_links_go_first_and_another_gpus_only_if_wider() {
    let (mut graph, _, gpus) = four_gpus();
    // Narrower than PCIe, and still the GPUs' own.
    link(&mut graph, gpus[0], gpus[1], NvLink, 20.0);
    assert_eq!(graph.path_class(gpus[0], gpus[1]), PathClass::Nvl);
    assert_eq!(graph.path(gpus[0], gpus[1]).expect("a path").label(&graph), "NV2");
    // 0 - 1 - 2: 20 GB/s against 16 between the packages.
    link(&mut graph, gpus[1], gpus[2], NvLink, 30.0);
    let path = graph.path(gpus[0], gpus[2]).expect("a path");
    assert_eq!((path.class, path.bottleneck_bytes_per_s), (PathClass::Nvb, 20e9));
    // Over two GPUs there is no way.
    link(&mut graph, gpus[2], gpus[3], NvLink, 30.0);
    assert_eq!(graph.path_class(gpus[0], gpus[3]), PathClass::Sys);
    // 10 GB/s against 32 of PCIe below one processor.
    let (mut graph, _, gpus) = four_gpus();
    link(&mut graph, gpus[0], gpus[2], Xgmi, 10.0);
    link(&mut graph, gpus[2], gpus[1], Xgmi, 10.0);
    assert_eq!(graph.path_class(gpus[0], gpus[1]), PathClass::Phb);
    assert_eq!(graph.path(gpus[0], gpus[2]).expect("a path").label(&graph), "XGMI");
}

#[test]
fn through_an_nvswitch_is_direct() {
    let (mut graph, _, gpus) = four_gpus();
    let switch = graph.add_node("NVSwitch", NodeKind::NvSwitch(bus(99)));
    gpus.iter().for_each(|&gpu| link(&mut graph, gpu, switch, NvLink, 300.0));
    let path = graph.path(gpus[0], gpus[3]).expect("a path");
    assert_eq!((path.class, path.hops()), (PathClass::Nvl, 2));
}

#[test]
fn switches_count_where_they_branch() {
    let mut graph = Graph::default();
    let numa = graph.add_node("NUMA0", NodeKind::Numa(0));
    let gpus = [0, 1, 2].map(|index| gpu(&mut graph, index));
    let card = graph.add_node("card", NodeKind::Card(bus(50)));
    let port = graph.add_node("mlx5_0", NodeKind::Port(0));
    let [root, upper, lower, own, own_card] = [10, 11, 12, 13, 14].map(|n| bridge(&mut graph, n));
    // root - upper - { lower - { own - GPU0, GPU1 }, own_card - card - port }
    for (from, to) in [
        (root, numa),
        (upper, root),
        (lower, upper),
        (own, lower),
        (gpus[0], own),
        (gpus[1], lower),
        (own_card, upper),
        (card, own_card),
        (gpus[2], numa),
    ] {
        link(&mut graph, from, to, Pcie, 32.0);
    }
    link(&mut graph, port, card, Net, 25.0);
    assert_eq!(graph.path_class(gpus[0], gpus[1]), PathClass::Pix);
    assert_eq!(graph.path_class(gpus[0], port), PathClass::Pxb);
    assert_eq!(graph.path_class(gpus[2], port), PathClass::Phb);
    let path = graph.path(gpus[0], port).expect("a path");
    assert_eq!(path.bottleneck_bytes_per_s, 25e9);
    assert_eq!(graph.nearest_ports(gpus[0]), [port]);
    // A port of the same card.
    let other = graph.add_node("mlx5_1", NodeKind::Port(1));
    link(&mut graph, other, card, Net, 50.0);
    assert_eq!(graph.path_class(port, other), PathClass::Pix);
    assert_eq!(graph.nearest_ports(gpus[0]), [other], "the wider one");
}

#[test]
fn links_with_the_processor_are_told_from_pcie() {
    let (mut graph, numa, gpus) = four_gpus();
    let lone = gpu(&mut graph, 4);
    link(&mut graph, lone, numa[0], C2c, 400.0);
    assert_eq!(graph.path_class(lone, numa[0]), PathClass::C2c);
    assert_eq!(graph.path_class(lone, gpus[0]), PathClass::P2c);
    assert_eq!(graph.path_class(lone, gpus[2]), PathClass::Sys);
}

#[test]
fn the_widest_then_the_shortest_then_the_fastest() {
    let mut graph = Graph::default();
    let ends = [gpu(&mut graph, 0), gpu(&mut graph, 1)];
    let middle = [20, 21, 22, 23].map(|n| bridge(&mut graph, n));
    let third = gpu(&mut graph, 2);
    let port = graph.add_node("mlx5_0", NodeKind::Port(0));
    // Narrow and short; wide with three hops; wide with two; wide with two and slower; through a GPU
    // and through a port.
    link(&mut graph, ends[0], ends[1], Pcie, 8.0);
    let mut way = |nodes: &[NodeId], latency_ns| {
        for pair in nodes.windows(2) {
            let (kind, links, bandwidth_bytes_per_s) = (Pcie, 1, 32e9);
            let (from, to) = (pair[0], pair[1]);
            graph.add_link(Edge { from, to, kind, links, bandwidth_bytes_per_s, latency_ns });
        }
    };
    way(&[ends[0], middle[0], middle[1], ends[1]], 1);
    way(&[ends[0], middle[2], ends[1]], 50);
    way(&[ends[0], middle[3], ends[1]], 20);
    way(&[ends[0], third, ends[1]], 1);
    way(&[ends[0], port, ends[1]], 1);
    let path = graph.path(ends[0], ends[1]).expect("a path");
    assert_eq!((path.hops(), path.bottleneck_bytes_per_s, path.latency_ns), (2, 32e9, 40));
}

#[test]
fn what_is_not_connected_has_no_way() {
    let (mut graph, _, gpus) = four_gpus();
    let port = graph.add_node("down", NodeKind::Port(0));
    assert_eq!(graph.path(gpus[0], port), None);
    assert_eq!(graph.path_class(port, gpus[0]), PathClass::Dis);
    assert!(graph.nearest_ports(gpus[0]).is_empty());
}
