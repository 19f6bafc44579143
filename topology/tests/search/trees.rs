//! The best tree alone.

use ringtree_topology::search::{Tree, best_tree, explain_tree};
use ringtree_topology::{EdgeKind, Graph};

use crate::brute;
use crate::machines::{GB, Machine, Scattered, dgx1v, nvswitch, pairs, pcie_tree, scattered, xgmi};

/// It is a tree, nobody has more than two children, and its rate is what its links allow.
fn check(graph: &Graph, tree: &Tree) {
    let count = tree.devices.len();
    assert_eq!(tree.parents.iter().filter(|parent| parent.is_none()).count(), 1);
    for device in 0..count {
        let (mut at, mut steps) = (device, 0);
        while let Some(parent) = tree.parents[at] {
            (at, steps) = (parent, steps + 1);
            assert!(steps < count, "a circle");
        }
        let children = tree.parents.iter().filter(|parent| **parent == Some(device)).count();
        assert!(children <= 2);
        if let Some(parent) = tree.parents[device] {
            let ends = |edges: &[ringtree_topology::EdgeId]| {
                (graph.edge(edges[0]).from, graph.edge(edges[edges.len() - 1]).to)
            };
            assert_eq!(ends(&tree.up[device]), (tree.devices[device], tree.devices[parent]));
            assert_eq!(ends(&tree.down[device]), (tree.devices[parent], tree.devices[device]));
        }
    }
    let mut uses = vec![0; graph.edges.len()];
    tree.up.iter().chain(&tree.down).flatten().for_each(|edge| uses[edge.0 as usize] += 1);
    for (edge, &times) in graph.edges.iter().zip(&uses) {
        let load = f64::from(times) * tree.rate_bytes_per_s;
        assert!(load <= edge.bandwidth_bytes_per_s * (1.0 + 1e-9));
    }
}

fn found(machine: &Machine) -> f64 {
    let tree = best_tree(&machine.graph, &machine.gpus).unwrap();
    check(&machine.graph, &tree);
    assert!(explain_tree(&machine.graph, &tree).contains("is the root"));
    tree.rate_bytes_per_s / GB
}

#[test]
fn known_machines_have_their_known_trees() {
    // A chain: those inside it receive from both sides.
    assert!((found(&nvswitch(8, 300.0)) - 150.0).abs() < 1e-6);
    // Between pairs it goes over PCIe, which ends of pairs use once in each direction.
    assert!((found(&pairs(4, 100.0, 12.0, 20.0)) - 12.0).abs() < 1e-6);
    // Over links between GPUs only: more than a PCIe link could.
    assert!((found(&dgx1v(12.0)) - 50.0).abs() < 1e-6, "along double links");
    // Every GPU but two is passed twice.
    assert!((found(&pcie_tree(8, 12.0, 10.0)) - 6.0).abs() < 1e-6);
}

#[test]
fn a_tree_equals_the_best_of_all_trees() {
    for seed in 0..12 {
        let machine = scattered(5, seed);
        let best = brute::best_tree(&machine.graph, &machine.gpus) / GB;
        assert!((found(&machine) - best).abs() < 1e-6 * best, "seed {seed}: {best}");
    }
    let unequal = {
        let mut machine = nvswitch(6, 100.0);
        machine.link(machine.gpus[0], machine.gpus[5], EdgeKind::NvLink, 75.0);
        machine
    };
    let best = brute::best_tree(&unequal.graph, &unequal.gpus) / GB;
    assert!((found(&unequal) - best).abs() < 1e-6 * best, "{best}");
}

/// Machines with one way between two GPUs, so that eight of them have no more trees than can be looked at.
#[test]
fn a_tree_of_eight_equals_the_best_of_all_trees() {
    let mesh = |gpus: usize, seed: u64| {
        let mut random = Scattered(seed);
        let mut machine = Machine::default();
        let numa: Vec<_> = (0..gpus).map(|_| machine.numa()).collect();
        numa.iter().for_each(|above| _ = machine.gpu(*above, 10.0));
        for (a, b) in (0..gpus).flat_map(|a| (a + 1..gpus).map(move |b| (a, b))) {
            let rate = 5.0 * (1 + random.below(20)) as f64;
            machine.link(machine.gpus[a], machine.gpus[b], EdgeKind::NvLink, rate);
        }
        machine
    };
    let machines = [mesh(6, 1), mesh(7, 2), mesh(7, 3), mesh(8, 4), pcie_tree(8, 12.0, 10.0)];
    for (number, machine) in machines.iter().enumerate() {
        let best = brute::best_tree(&machine.graph, &machine.gpus) / GB;
        assert!((found(machine) - best).abs() < 1e-6 * best, "machine {number}: {best}");
    }
}

#[test]
fn many_devices_get_a_tree_in_time() {
    for machine in [nvswitch(128, 300.0), xgmi(128, 40.0, &[(0, 1)]), scattered(128, 5)] {
        let start = std::time::Instant::now();
        assert!(found(&machine) > 0.0);
        println!("{:?}", start.elapsed());
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }
}

#[test]
fn one_device_is_its_own_tree() {
    let machine = nvswitch(2, 100.0);
    let tree = best_tree(&machine.graph, &machine.gpus[..1]).unwrap();
    assert_eq!(tree.parents, [None]);
    assert_eq!(tree.rate_bytes_per_s, 0.0);
}
