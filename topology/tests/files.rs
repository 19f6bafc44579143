//! Files of real machines and of our own: what is in them is what was found by reading them.
//!
//! The real ones are in a folder that `RINGTREE_TEST_TOPOLOGIES` names; without it, tests on them say that
//! they were skipped.

mod real;

use std::path::{Path, PathBuf};
use std::time::Instant;

use real::folder;
use ringtree_topology::{
    EdgeKind, Error, Graph, Machine, NodeId, NodeKind, PathClass, check, diff, table,
};

#[test]
fn base_files_of_g5_machines_have_places_only() {
    let Some(mut machine) = real("aws-g5.48xl-8xA10G.xml") else { return };
    machine.assume_devices();
    assert_eq!(counts(&machine), Counts { numa: 2, bridges: 0, gpus: 0, cards: 0, ports: 0 });
    assert_eq!(machine.numa_nodes[0].devices.len(), 4);
    assert_eq!(machine.numa_nodes[1].devices.len(), 5);
    assert_eq!(machine.devices()[8].device.bus_id.to_string(), "0000:00:15.0");
}

#[test]
fn p4d_has_four_switches_of_two_gpus_and_a_card() {
    let Some(mut machine) = real("aws-p4d-8xA100.xml") else { return };
    assert_eq!(counts(&machine), Counts { numa: 2, bridges: 4, gpus: 0, cards: 0, ports: 0 });
    machine.assume_devices();
    assert_eq!(counts(&machine), Counts { numa: 2, bridges: 4, gpus: 8, cards: 4, ports: 4 });
    assert_eq!(machine.numa_nodes[0].cpus.to_string(), "0-23,48-71");
    assert_eq!(machine.numa_nodes[1].cpus.to_string(), "24-47,72-95");
    let graph = graph(&machine);
    assert_eq!(class(&graph, 0, 1), PathClass::Pix);
    assert_eq!(class(&graph, 0, 2), PathClass::Phb);
    assert_eq!(class(&graph, 0, 4), PathClass::Sys);
    for gpu in 0..8 {
        assert_eq!(nearest(&graph, gpu), (PathClass::Pix, vec![gpu / 2]));
    }
}

#[test]
fn ncv4_has_nvlink_only_inside_two_pairs() {
    let Some(machine) = real("azure-ncv4-4xA100-pcie.xml") else { return };
    assert_eq!(counts(&machine), Counts { numa: 4, bridges: 0, gpus: 4, cards: 0, ports: 1 });
    assert_eq!(machine.numa_nodes[3].cpus.to_string(), "72-95");
    let (graph, warnings) = Graph::new(&machine);
    for a in 0..4 {
        for b in (0..4).filter(|&b| b != a) {
            let expected = if a / 2 == b / 2 { PathClass::Nvl } else { PathClass::Sys };
            assert_eq!(class(&graph, a, b), expected, "{a} {b}");
        }
        // The only port is on NUMA node 0, as GPU 0 is.
        let expected = if a == 0 { PathClass::Phb } else { PathClass::Sys };
        assert_eq!(nearest(&graph, a), (expected, vec![0]));
    }
    assert_eq!(label(&graph, 0, 1), "NV12");
    let turned_back = warnings.iter().filter(|w| w.message.contains("gives itself"));
    assert_eq!(turned_back.count(), 4, "{warnings:?}");
    let unknown = warnings.iter().filter(|w| w.message.contains("speed is unknown"));
    assert_eq!(unknown.count(), 4, "{warnings:?}");
    assert!(
        check(&machine, &graph).iter().any(|finding| finding.message.contains("virtual machine"))
    );
}

#[test]
fn a_file_of_rings_is_told_from_one_of_a_machine() {
    let Some(folder) = folder() else { return };
    let error = Machine::from_xml_file(folder.join("azure-ncv4-graph.xml")).expect_err("rings");
    let text = error.to_string();
    assert!(text.contains("NCCL_GRAPH_FILE") && text.contains("line 1, column 1"), "{text}");
}

#[test]
fn ndv4_has_a_switch_of_two_gpus_and_two_cards_on_each_numa_node() {
    let Some(mut machine) = real("azure-ndv4-8xA100.xml") else { return };
    assert_eq!(counts(&machine), Counts { numa: 4, bridges: 4, gpus: 0, cards: 0, ports: 0 });
    machine.assume_devices();
    assert_eq!(counts(&machine), Counts { numa: 4, bridges: 4, gpus: 8, cards: 8, ports: 8 });
    assert_eq!(machine.gpus()[4].place.device.bus_id.to_string(), "000d:00:00.0");
    let graph = graph(&machine);
    assert_eq!(class(&graph, 0, 1), PathClass::Pix);
    assert_eq!(class(&graph, 1, 2), PathClass::Sys);
    for gpu in 0..8 {
        let first = gpu / 2 * 2;
        assert_eq!(nearest(&graph, gpu), (PathClass::Pix, vec![first, first + 1]));
    }
}

#[test]
fn h100s_reach_each_other_by_nvswitches_and_have_a_card_each() {
    let Some(machine) = real("oci-8xH100.xml") else { return };
    assert_eq!(counts(&machine), Counts { numa: 2, bridges: 24, gpus: 8, cards: 8, ports: 16 });
    assert_eq!(machine.numa_nodes[0].cpus.to_string(), "0-55,112-167");
    assert_eq!(machine.ports()[15].port.name, "mlx5_17");
    let (graph, warnings) = Graph::new(&machine);
    assert_eq!(warnings, []);
    let switches = |kind: NodeKind| matches!(kind, NodeKind::NvSwitch(_));
    assert_eq!(graph.nodes.iter().filter(|node| switches(node.kind)).count(), 1);
    for a in 0..8 {
        for b in (0..8).filter(|&b| b != a) {
            assert_eq!(label(&graph, a, b), "NV18");
        }
        assert_eq!(nearest(&graph, a), (PathClass::Pix, vec![2 * a, 2 * a + 1]));
    }
    let path = graph.path(graph.gpus()[0], graph.gpus()[7]).expect("a path");
    assert!((path.bottleneck_bytes_per_s - 18.0 * 20.6e9).abs() < 1e6);
    let path = graph.path(graph.gpus()[3], graph.ports()[6]).expect("a path");
    assert_eq!(path.bottleneck_bytes_per_s, 180e9 / 8.0);
    assert_eq!(graph.path_class(graph.gpus()[3], graph.ports()[8]), PathClass::Sys);
    assert_eq!(graph.path_class(graph.gpus()[3], graph.ports()[4]), PathClass::Phb);
    // The upper switches are at 5 GT/s, what is below them at 32.
    let findings = check(&machine, &graph);
    let narrow = findings.iter().filter(|finding| finding.message.contains("5 GT/s x16"));
    assert_eq!((narrow.count(), findings.len()), (8, 8), "{findings:?}");
}

#[test]
fn three_mi210_are_behind_bridges_of_their_own() {
    let Some(machine) = real("rccl-3p-pcie.xml") else { return };
    assert_eq!(counts(&machine), Counts { numa: 2, bridges: 3, gpus: 3, cards: 1, ports: 1 });
    assert_eq!(machine.gpus()[0].gpu.gcn, "910");
    assert_eq!(machine.numa_nodes[0].cpus.to_string(), "0-15,32-47");
    let graph = graph(&machine);
    assert_eq!(class(&graph, 1, 2), PathClass::Phb);
    assert_eq!(class(&graph, 0, 1), PathClass::Sys);
    assert_eq!(nearest(&graph, 0), (PathClass::Phb, vec![0]));
    assert_eq!(nearest(&graph, 2), (PathClass::Sys, vec![0]));
}

#[test]
fn eight_mi50_are_two_squares_of_xgmi() {
    let Some(machine) = real("rccl-8p-rome-n4.xml") else { return };
    assert_eq!(counts(&machine), Counts { numa: 7, bridges: 8, gpus: 8, cards: 1, ports: 1 });
    let ids: Vec<_> = machine.numa_nodes.iter().filter_map(|node| node.id).collect();
    assert_eq!(ids, [1, 2, 3, 5, 6, 7, 4]);
    let graph = graph(&machine);
    let linked = [(0, 2), (0, 3), (1, 4), (1, 7), (2, 5), (3, 5), (4, 6), (6, 7)];
    assert_eq!(links(&graph, EdgeKind::Xgmi), linked);
    assert_eq!(label(&graph, 0, 2), "XGMI");
    // Opposite corners of a square: 24 GB/s over a third GPU, 16 GB/s between the packages.
    assert_eq!(class(&graph, 0, 5), PathClass::Nvb);
    assert_eq!(class(&graph, 4, 7), PathClass::Nvb);
    // On one NUMA node, of different squares.
    assert_eq!(class(&graph, 1, 2), PathClass::Phb);
    assert_eq!(class(&graph, 0, 1), PathClass::Sys);
    for gpu in 0..8 {
        assert_eq!(nearest(&graph, gpu), (PathClass::Sys, vec![0]));
    }
}

#[test]
fn eight_mi100_have_six_links_each() {
    let Some(machine) = real("rccl-8p6l-2nic.xml") else { return };
    assert_eq!(counts(&machine), Counts { numa: 2, bridges: 8, gpus: 8, cards: 2, ports: 2 });
    let graph = graph(&machine);
    let without = [(0, 5), (1, 4), (2, 7), (3, 6)];
    for a in 0..8 {
        for b in a + 1..8 {
            let through_another = without.contains(&(a, b));
            let expected = if through_another { PathClass::Nvb } else { PathClass::Nvl };
            assert_eq!(class(&graph, a, b), expected, "{a} {b}");
        }
        assert_eq!(nearest(&graph, a), (PathClass::Phb, vec![a / 4]));
    }
    assert_eq!(links(&graph, EdgeKind::Xgmi).len(), 24);
}

#[test]
fn own_machine_with_nvswitches() {
    let machine = own("nvswitch-8gpu-8nic.xml");
    assert_eq!(counts(&machine), Counts { numa: 2, bridges: 4, gpus: 8, cards: 8, ports: 8 });
    let (graph, warnings) = Graph::new(&machine);
    assert_eq!(warnings, []);
    assert_eq!(check(&machine, &graph), []);
    assert_eq!(label(&graph, 0, 7), "NV18");
    assert_eq!(nearest(&graph, 5), (PathClass::Pix, vec![4, 5]));
    let text = table(&machine, &graph);
    let row = "GPU2  NV18  NV18  X     NV18  NV18  NV18  NV18  NV18  \
               PHB   PHB   PIX   PIX   SYS   SYS   SYS   SYS   0-31          0";
    assert!(text.lines().any(|line| line == row), "{text}");
    assert!(text.contains("  NIC7: mlx5_7  0000:46:00.0, port 1, 400 Gbit/s\n"), "{text}");
}

#[test]
fn own_machine_with_nvlinks_in_pairs() {
    let machine = own("nvlink-pairs.xml");
    let (graph, warnings) = Graph::new(&machine);
    assert_eq!(warnings, []);
    assert_eq!(label(&graph, 2, 3), "NV12");
    assert_eq!(class(&graph, 1, 2), PathClass::Sys);
    assert_eq!(links(&graph, EdgeKind::NvLink), [(0, 1), (2, 3)]);
    let findings = check(&machine, &graph);
    let texts: Vec<_> = findings.iter().map(|finding| finding.message.as_str()).collect();
    let halved = "socket link NUMA1 -> NUMA0 16.0 GB/s limits them to 16.0 GB/s; without that they \
                  would have 63.0 GB/s";
    assert_eq!(texts, [halved, "unequal numbers of ports: NUMA0 1, NUMA1 0"]);
}

#[test]
fn own_virtual_machine_that_hides_its_switches() {
    let machine = own("flat-virtual-machine.xml");
    assert_eq!(counts(&machine), Counts { numa: 1, bridges: 0, gpus: 4, cards: 1, ports: 1 });
    let (graph, warnings) = Graph::new(&machine);
    assert_eq!(warnings.len(), 6, "five PCIe links and a port's speed: {warnings:?}");
    assert_eq!(class(&graph, 0, 3), PathClass::Phb);
    let path = graph.path(graph.gpus()[0], graph.ports()[0]).expect("a path");
    assert_eq!(path.bottleneck_bytes_per_s, 1.25e9, "the default of 10 Gbit/s");
    let findings = check(&machine, &graph);
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(findings[0].message.contains("without any bridge"), "{findings:?}");
    assert!(findings[1].message.contains("NUMA node unknown"), "{findings:?}");
}

#[test]
fn own_machine_with_a_card_at_reduced_width() {
    let machine = own("card-at-x8.xml");
    let graph = graph(&machine);
    let found: Vec<_> = check(&machine, &graph)
        .into_iter()
        .map(|finding| format!("{}: {}", finding.subject, finding.message))
        .collect();
    let expected = [
        "port mlx5_1: down: no traffic can use it",
        "card 0000:03:00.0 (mlx5_0, mlx5_1): PCIe x8 of x16",
        "card 0000:03:00.0 (mlx5_0, mlx5_1): PCIe at 8 of 16 GT/s",
        "bridge 0000:01:00.0: its link upwards, 16 GT/s x16, has 31.5 GB/s; below it could use \
         more: GPU0 (0000:02:00.0) 63.0 GB/s",
        "port mlx5_0: 100 of 200 Gbit/s",
        "bridge 0000:01:00.0: PCIe at 16 of 32 GT/s",
    ];
    assert_eq!(found, expected);
    assert_eq!(graph.path_class(graph.gpus()[0], graph.ports()[1]), PathClass::Dis);
}

#[test]
fn every_file_is_read_written_and_shown() {
    for path in all_files() {
        let mut machine = match Machine::from_xml_file(&path) {
            Ok(machine) => machine,
            Err(error) if error.to_string().contains("NCCL_GRAPH_FILE") => continue,
            Err(error) => panic!("{error}"),
        };
        if !path.starts_with(own_folder()) {
            assert_eq!(machine.warnings, [], "{}", path.display());
        }
        machine.assume_devices();
        let written = machine.to_xml();
        let again = Machine::from_xml(&written).expect("what was written");
        assert_eq!(Graph::new(&machine), Graph::new(&again), "{}", path.display());
        assert_eq!(diff(&machine, &again), [], "{}", path.display());
        assert_eq!(again.numa_nodes, machine.numa_nodes, "{}", path.display());
        let graph = graph(&machine);
        let text = table(&machine, &graph);
        assert_eq!(
            text.lines().take_while(|line| !line.is_empty()).count(),
            1 + graph.gpus().len() + graph.ports().len(),
            "{text}"
        );
        let start = Instant::now();
        let text = std::fs::read_to_string(&path).expect("a file");
        let machine = Machine::from_xml(&text).expect("a machine");
        let _ = Graph::new(&machine);
        let spent = start.elapsed();
        println!("{}: {spent:?}", path.display());
        assert!(spent.as_millis() < 500, "{}: {spent:?}", path.display());
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Machine::from_xml_file("/nowhere/at/all.xml").expect_err("no file");
    assert!(matches!(error, Error::Read { .. }));
    assert!(error.to_string().starts_with("/nowhere/at/all.xml: cannot be read"), "{error}");
}

#[derive(Debug, PartialEq)]
struct Counts {
    numa: usize,
    bridges: usize,
    gpus: usize,
    cards: usize,
    ports: usize,
}

fn counts(machine: &Machine) -> Counts {
    let graph = graph(machine);
    let count =
        |wanted: fn(NodeKind) -> bool| graph.nodes.iter().filter(|node| wanted(node.kind)).count();
    Counts {
        numa: graph.numa_nodes().len(),
        bridges: count(|kind| matches!(kind, NodeKind::Bridge(_))),
        gpus: graph.gpus().len(),
        cards: count(|kind| matches!(kind, NodeKind::Card(_))),
        ports: graph.ports().len(),
    }
}

fn graph(machine: &Machine) -> Graph {
    Graph::new(machine).0
}

fn class(graph: &Graph, a: usize, b: usize) -> PathClass {
    graph.path_class(graph.gpus()[a], graph.gpus()[b])
}

fn label(graph: &Graph, a: usize, b: usize) -> String {
    graph.path(graph.gpus()[a], graph.gpus()[b]).expect("a path").label(graph)
}

/// The class of the nearest ports and their places in the order of all.
fn nearest(graph: &Graph, gpu: usize) -> (PathClass, Vec<usize>) {
    let gpu = graph.gpus()[gpu];
    let near = graph.nearest_ports(gpu);
    let place = |port: &NodeId| graph.ports().iter().position(|other| other == port);
    (graph.path_class(gpu, near[0]), near.iter().filter_map(place).collect())
}

/// Pairs of GPUs with links of a kind.
fn links(graph: &Graph, kind: EdgeKind) -> Vec<(usize, usize)> {
    let gpus = graph.gpus();
    let place = |node| gpus.iter().position(|&gpu| gpu == node);
    let of_kind = graph.edges.iter().filter(|edge| edge.kind == kind);
    let mut pairs: Vec<_> = of_kind
        .filter_map(|edge| Some((place(edge.from)?, place(edge.to)?)))
        .filter(|(a, b)| a < b)
        .collect();
    pairs.sort();
    pairs
}

fn own(name: &str) -> Machine {
    Machine::from_xml_file(own_folder().join(name)).expect("a file of our own")
}

fn own_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files")
}

fn real(name: &str) -> Option<Machine> {
    Some(Machine::from_xml_file(folder()?.join(name)).expect("a file of a real machine"))
}

fn all_files() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = [Some(own_folder()), folder()]
        .into_iter()
        .flatten()
        .flat_map(|folder| std::fs::read_dir(folder).expect("a folder"))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "xml"))
        .collect();
    paths.sort();
    paths
}
