//! Sets of rings inside a host.

use std::collections::BTreeSet;

use proptest::prelude::*;
use ringtree_topology::search::{Channel, RingSet, explain_rings, rings};
use ringtree_topology::{EdgeId, EdgeKind, Error, Graph, NodeId};

use crate::brute;
use crate::machines::{
    GB, Machine, dgx, dgx1v, nvswitch, pairs, pcie_tree, relabelled, scattered, xgmi,
};

/// What must hold for any answer.
pub fn check(graph: &Graph, set: &RingSet) {
    assert!(!set.channels.is_empty());
    let mut loads = vec![0.0; graph.edges.len()];
    for channel in &set.channels {
        check_channel(graph, &set.devices, channel);
        for hop in &channel.hops {
            let width = |id: EdgeId| graph.edge(id).bandwidth_bytes_per_s;
            let ends = |id: EdgeId| (graph.edge(id).from, graph.edge(id).to);
            for &id in hop {
                let beside = hop.iter().filter(|other| ends(**other) == ends(id));
                let together: f64 = beside.map(|other| width(*other)).sum();
                loads[id.0 as usize] += channel.rate_bytes_per_s * width(id) / together;
            }
        }
    }
    for (edge, load) in graph.edges.iter().zip(&loads) {
        assert!(*load <= edge.bandwidth_bytes_per_s * (1.0 + 1e-9), "{edge:?} carries {load}");
    }
    let total: f64 = set.channels.iter().map(|channel| channel.rate_bytes_per_s).sum();
    assert!((total - set.total_bytes_per_s).abs() <= 1e-9 * total);
    assert!(total <= set.bound_bytes_per_s * (1.0 + 1e-9));
    assert!(!set.limits.is_empty());
    let single = set.single.as_ref().unwrap();
    check_channel(graph, &set.devices, single);
    assert!(single.rate_bytes_per_s <= set.bound_bytes_per_s * (1.0 + 1e-9));
}

/// Each device once, and each hop leads from its device to the next; parallel links follow each other.
fn check_channel(graph: &Graph, devices: &[NodeId], channel: &Channel) {
    assert!(channel.rate_bytes_per_s > 0.0);
    let visited: BTreeSet<_> = channel.order.iter().collect();
    assert_eq!((visited.len(), channel.order.len()), (devices.len(), devices.len()));
    assert_eq!(channel.hops.len(), devices.len());
    for (i, hop) in channel.hops.iter().enumerate() {
        let mut at = devices[channel.order[i]];
        let mut before = None;
        for &id in hop {
            let edge = graph.edge(id);
            if before != Some((edge.from, edge.to)) {
                assert_eq!(edge.from, at);
                at = edge.to;
            }
            before = Some((edge.from, edge.to));
        }
        assert_eq!(at, devices[channel.order[(i + 1) % devices.len()]]);
    }
}

fn found(machine: &Machine) -> RingSet {
    let set = rings(&machine.graph, &machine.gpus).unwrap();
    check(&machine.graph, &set);
    set
}

fn assert_total(set: &RingSet, gigabytes_per_s: f64) {
    let total = set.total_bytes_per_s / GB;
    assert!(
        (total - gigabytes_per_s).abs() < 1e-6 * gigabytes_per_s,
        "{total}, not {gigabytes_per_s}"
    );
    assert!(set.gap() < 1e-6, "gap {}", set.gap());
}

fn crossings(graph: &Graph, channel: &Channel, kind: EdgeKind) -> usize {
    let crosses = |hop: &&Vec<_>| hop.iter().any(|&edge| graph.edge(edge).kind == kind);
    channel.hops.iter().filter(crosses).count()
}

#[test]
fn behind_a_switch_any_order_is_at_full_rate() {
    for gpus in [2, 3, 8, 16] {
        let set = found(&nvswitch(gpus, 300.0));
        assert_total(&set, 300.0);
        assert_eq!(set.channels.len(), 1);
        assert_eq!(set.channels[0].order, (0..gpus).collect::<Vec<_>>());
    }
}

#[test]
fn beside_a_switch_pcie_carries_a_ring_too() {
    // Two GPUs share a link up, but a ring uses it once in each direction.
    let set = found(&dgx(8, 450.0, 50.0, 50.0));
    assert_total(&set, 500.0);
    assert!(set.channels.len() <= 5, "{} channels", set.channels.len());
    assert!((set.single.unwrap().rate_bytes_per_s / GB - 450.0).abs() < 1e-6);
}

#[test]
fn between_pairs_a_ring_goes_over_pcie_twice() {
    let machine = pairs(4, 100.0, 12.0, 30.0);
    let set = found(&machine);
    // Both ends of a pair have a PCIe link, and each direction of a ring uses one of them.
    assert_total(&set, 24.0);
    for channel in set.channels.iter().chain(&set.single) {
        assert_eq!(crossings(&machine.graph, channel, EdgeKind::Pcie), 2, "{channel:?}");
    }
    let narrow = found(&pairs(4, 100.0, 12.0, 9.0));
    assert_total(&narrow, 9.0);
    let text = explain_rings(&machine.graph, &set);
    assert!(text.contains("PCIe out of GPU"), "{text}");
}

#[test]
fn below_switches_of_pcie_each_link_is_used_once() {
    for gpus in [4, 8, 16] {
        let set = found(&pcie_tree(gpus, 12.0, 10.0));
        assert_total(&set, if gpus == 4 { 12.0 } else { 10.0 });
    }
    let machine = pcie_tree(8, 12.0, 10.0);
    let text = explain_rings(&machine.graph, &found(&machine));
    assert!(text.contains("socket link NUMA"), "{text}");
    assert!(text.contains("next: if links such as these were no limit, PCIe"), "{text}");
}

#[test]
fn a_dgx_1v_has_a_ring_for_every_link_of_a_gpu() {
    // Six links of 25 GB/s leave every GPU: six rings, three there and three back, and no link is left over.
    let machine = dgx1v(0.0);
    let set = found(&machine);
    assert_total(&set, 150.0);
    assert!(set.channels.len() <= 12, "{} channels", set.channels.len());
}

#[test]
fn a_full_mesh_is_used_up() {
    // A ring leaves each GPU by one of its seven links; where two are missing, of six.
    assert_total(&found(&mesh_only(8, &[])), 7.0 * 40.0);
    let missing = [(0, 1), (2, 3), (4, 5), (6, 7)];
    assert_total(&found(&mesh_only(8, &missing)), 6.0 * 40.0);
    let with_pcie = found(&xgmi(8, 40.0, &missing));
    assert!(with_pcie.total_bytes_per_s >= 6.0 * 40.0 * GB && with_pcie.gap() < 1e-6);
}

/// Without PCIe.
fn mesh_only(gpus: usize, missing: &[(usize, usize)]) -> Machine {
    let mut machine = xgmi(gpus, 40.0, missing);
    machine.graph.edges.retain(|edge| edge.kind == EdgeKind::Xgmi);
    machine
}

#[test]
fn a_ring_of_links_has_one_order_both_ways() {
    let mut machine = nvswitch(8, 0.0);
    for i in 0..8 {
        machine.link(machine.gpus[i], machine.gpus[(i + 1) % 8], EdgeKind::NvLink, 50.0);
    }
    let set = found(&machine);
    assert_total(&set, 100.0);
    assert_eq!(set.channels.len(), 2);
    assert_eq!(set.channels[0].order, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(set.channels[1].order, [0, 7, 6, 5, 4, 3, 2, 1]);
}

#[test]
fn parallel_links_count_together() {
    let mut machine = nvswitch(3, 0.0);
    for (a, b) in [(0, 1), (0, 1), (1, 2), (2, 0)] {
        machine.link(machine.gpus[a], machine.gpus[b], EdgeKind::NvLink, 25.0);
    }
    assert_total(&found(&machine), 50.0);
}

#[test]
fn all_equal_what_listing_all_cycles_gives() {
    let mut machines = vec![
        ("pairs", pairs(6, 100.0, 12.0, 10.0)),
        ("tree", pcie_tree(6, 12.0, 10.0)),
        ("switch and PCIe", dgx(6, 450.0, 50.0, 50.0)),
        ("mesh", xgmi(6, 40.0, &[(0, 5), (1, 2)])),
    ];
    machines.extend((0..12).map(|seed| ("scattered 5", scattered(5, seed))));
    machines.extend((100..112).map(|seed| ("scattered 6", scattered(6, seed))));
    machines.extend((200..204).map(|seed| ("scattered 7", scattered(7, seed))));
    for (i, (name, machine)) in machines.iter().enumerate() {
        let set = found(machine);
        let best = brute::best_total(&machine.graph, &machine.gpus);
        let (bound, total) = (set.bound_bytes_per_s / best, set.total_bytes_per_s / best);
        assert!((bound - 1.0).abs() < 1e-5, "{i} {name}: bound {bound} of the optimum");
        assert!((total - 1.0).abs() < 1e-5, "{i} {name}: total {total} of the optimum");
    }
}

#[test]
fn eight_devices_equal_what_listing_all_cycles_gives() {
    for machine in [dgx1v(12.0), scattered(8, 1), pairs(8, 50.0, 12.0, 20.0)] {
        let set = found(&machine);
        let best = brute::best_total(&machine.graph, &machine.gpus);
        assert!((set.bound_bytes_per_s / best - 1.0).abs() < 1e-5);
        assert!((set.total_bytes_per_s / best - 1.0).abs() < 1e-5);
    }
}

#[test]
fn the_ring_alone_equals_the_best_of_all() {
    for seed in 0..25 {
        let machine = scattered(5, seed);
        let rate = brute::best_single(&machine.graph, &machine.gpus);
        let single = found(&machine).single.unwrap();
        assert!((single.rate_bytes_per_s / rate - 1.0).abs() < 1e-9, "seed {seed}: {rate}");
    }
}

#[test]
fn sixteen_devices_are_quick() {
    let machines = [
        nvswitch(16, 300.0),
        dgx(16, 450.0, 50.0, 50.0),
        pcie_tree(16, 12.0, 10.0),
        pairs(16, 100.0, 12.0, 20.0),
        xgmi(16, 40.0, &[]),
        xgmi(16, 40.0, &[(0, 1), (2, 9), (4, 5)]),
        scattered(16, 7),
        scattered(16, 8),
    ];
    for (i, machine) in machines.iter().enumerate() {
        let start = std::time::Instant::now();
        let set = found(machine);
        let took = start.elapsed();
        println!(
            "machine {i}: {took:?}, {} channels, total {:.3}, bound {:.3}",
            set.channels.len(),
            set.total_bytes_per_s / GB,
            set.bound_bytes_per_s / GB
        );
        assert!(set.gap() < 0.05, "machine {i}: gap {}", set.gap());
        assert!(took.as_secs() < 5, "machine {i}: {took:?}");
    }
}

#[test]
fn more_devices_still_get_an_answer() {
    let machines =
        [nvswitch(72, 900.0), pcie_tree(20, 12.0, 10.0), scattered(24, 3), scattered(72, 4)];
    for machine in machines {
        let start = std::time::Instant::now();
        let set = found(&machine);
        println!("{} devices: {:?}, gap {}", machine.gpus.len(), start.elapsed(), set.gap());
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }
    assert_total(&found(&nvswitch(72, 900.0)), 900.0);
}

/// With a link from each to each of many GPUs the program is too large to be solved; rings that are taken one after the
/// other carry much all the same.
#[test]
fn many_links_between_many_devices_get_an_answer_in_time() {
    for (gpus, rings) in [(24, 15), (32, 15), (64, 6), (128, 3)] {
        let machine = xgmi(gpus, 40.0, &[(0, 1), (2, 9)]);
        let start = std::time::Instant::now();
        let set = found(&machine);
        let took = start.elapsed();
        println!("{gpus} devices: {took:?}, gap {}, {} rings", set.gap(), set.channels.len());
        let total = set.total_bytes_per_s / GB;
        assert!(total >= 40.0 * f64::from(rings), "{gpus} devices: {total}");
        assert!(set.bound_bytes_per_s / GB >= 40.0 * (gpus - 2) as f64);
        assert!(took.as_secs() < 10, "{gpus} devices: {took:?}");
    }
}

#[test]
fn nothing_to_send_is_no_error_and_nonsense_is_one() {
    let machine = nvswitch(4, 100.0);
    assert!(rings(&machine.graph, &machine.gpus[..1]).unwrap().channels.is_empty());
    assert!(rings(&machine.graph, &[]).unwrap().channels.is_empty());
    let twice = rings(&machine.graph, &[machine.gpus[0], machine.gpus[0]]);
    assert!(matches!(twice, Err(Error::DeviceTwice { device }) if device == "GPU0"));
    let nowhere = rings(&machine.graph, &[NodeId(99), machine.gpus[0]]);
    assert!(matches!(nowhere, Err(Error::NoSuchNode { node: 99, nodes: 6 })));
    let mut apart = nvswitch(2, 100.0);
    let numa = apart.numa();
    apart.gpu(numa, 10.0);
    let error = rings(&apart.graph, &apart.gpus).unwrap_err();
    assert!(error.to_string().starts_with("no way is known from GPU0 to GPU2"), "{error}");
}

#[test]
fn the_answer_is_the_same_every_time() {
    let machine = scattered(8, 5);
    assert_eq!(found(&machine), found(&machine));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    /// Neither a capacity nor the bound is exceeded, and names do not matter.
    #[test]
    fn any_machine_is_used_within_its_means(gpus in 2_usize..9, seed in 0_u64..1_000_000) {
        let machine = scattered(gpus, seed);
        let set = found(&machine);
        let (graph, gpus) = relabelled(&machine, seed ^ 77);
        let other = rings(&graph, &gpus).unwrap();
        check(&graph, &other);
        let parts = [
            other.bound_bytes_per_s / set.bound_bytes_per_s,
            other.total_bytes_per_s / set.total_bytes_per_s,
        ];
        prop_assert!((parts[0] - 1.0).abs() < 1e-6, "bounds {parts:?}");
        prop_assert!((parts[1] - 1.0).abs() < 0.01, "totals {parts:?}");
        prop_assert!(set.gap() < 0.01, "gap {}", set.gap());
    }
}
