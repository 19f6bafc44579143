//! Machines that the recorded ones lack: GPUs behind switches, in virtual machines, in containers.

use ringtree_topology::{
    BusId, Detection, GpuFacts, GpuLinkKind, LinkLayer, Machine, PcieLink, PortState,
    VisibleDevices, carriers, detect_with,
};

use super::seen::{device, devices, gpus, port, port_names, ports, warns};
use super::tree::Tree;

const H100: [&str; 3] = ["0x030200", "0x10de", "0x2330"];
const MI300: [&str; 3] = ["0x120000", "0x1002", "0x74a1"];
const CONNECTX: [&str; 3] = ["0x020700", "0x15b3", "0x1021"];
const ETHERNET: [&str; 3] = ["0x020000", "0x1d0f", "0xec20"];
const GEN5: [&str; 2] = ["32.0 GT/s PCIe", "16"];

fn found(tree: &Tree, facts: &GpuFacts) -> Detection {
    detect_with(&tree.roots(), facts, &VisibleDevices::default()).expect("a machine")
}

fn machine(tree: &Tree) -> Machine {
    found(tree, &GpuFacts::unknown("not recorded")).machine
}

/// The bus of the switch, the GPU or the card number i of [`eight_gpus`].
fn switch(i: usize) -> usize {
    0x10 + 0x10 * (i / 2)
}

fn gpu_id(i: usize) -> String {
    format!("0000:{:02x}:00.0", switch(i) + 2 + i % 2)
}

fn card_id(i: usize) -> String {
    format!("0000:{:02x}:00.0", switch(i) + 4 + i % 2)
}

/// Two sockets with two switches each, on each of these two GPUs and two cards.
fn eight_gpus() -> Tree {
    let tree = Tree::new(&["0-55", "56-111"]);
    for i in 0..8 {
        let (node, bus) = (i / 4, switch(i));
        let root = format!("pci0000:{:02x}", bus - 1);
        let port = format!("{root}/0000:{:02x}:01.0", bus - 1);
        let upstream = format!("{port}/0000:{bus:02x}:00.0");
        if i % 2 == 0 {
            tree.bridge(&port).node(&node.to_string());
            tree.bridge(&upstream).node(&node.to_string()).pcie(GEN5, GEN5);
        }
        for (slot, id, kind) in [(i % 2, gpu_id(i), H100), (2 + i % 2, card_id(i), CONNECTX)] {
            let downstream = format!("{upstream}/0000:{:02x}:{slot:02x}.0", bus + 1);
            tree.bridge(&downstream).node(&node.to_string());
            let function = tree.function(&format!("{downstream}/{id}"), kind);
            let function = function.node(&node.to_string()).pcie(GEN5, GEN5);
            if kind == CONNECTX {
                let name = format!("mlx5_{i}");
                function.driver("mlx5_core").interface(&format!("ib{i}"), "400000", "up").rdma(
                    &name,
                    1,
                    "400 Gb/sec (4X NDR)",
                    "4: ACTIVE",
                    "InfiniBand",
                );
            }
        }
    }
    tree
}

/// What the driver would say of GPUs with these links: at the end of each, how many.
fn facts(gpus: usize, links: impl Fn(usize) -> Vec<(String, &'static str, usize)>) -> GpuFacts {
    let gpu = |i: usize| {
        let ends = links(i).into_iter();
        let links: Vec<String> = ends
            .flat_map(|(remote, end, count)| vec![(remote, end); count])
            .enumerate()
            .map(|(link, (remote, end))| {
                format!(
                    r#"{{"link": {link}, "is_active": true, "version": 4, "remote": "{remote}", "end": "{end}"}}"#
                )
            })
            .collect();
        format!(
            r#"{{"bus_id": "{}", "uuid": "GPU-{i}{i}aa-0000", "name": "NVIDIA H100 80GB HBM3",
                "compute_capability": 90, "memory_bytes": 85520809984, "nvlinks": [{}]}}"#,
            gpu_id(i),
            links.join(", ")
        )
    };
    let gpus: Vec<String> = (0..gpus).map(gpu).collect();
    serde_json::from_str(&format!(r#"{{"gpus": [{}]}}"#, gpus.join(", "))).expect("a description")
}

fn through_switches(_: usize) -> Vec<(String, &'static str, usize)> {
    let ends = [("0000:05:00.0", 5), ("0000:06:00.0", 4), ("0000:07:00.0", 4), ("0000:08:00.0", 5)];
    ends.map(|(remote, count)| (remote.to_owned(), "Switch", count)).to_vec()
}

fn targets(machine: &Machine, gpu: usize) -> Vec<(String, u32, u32)> {
    let (_, gpu) = gpus(machine).swap_remove(gpu);
    let link = |link: &ringtree_topology::GpuLink| {
        (link.target.map(|id| id.to_string()).unwrap_or_default(), link.target_class, link.count)
    };
    gpu.links.iter().map(link).collect()
}

#[test]
fn eight_gpus_behind_switches() {
    let tree = eight_gpus();
    // An NVSwitch that sysfs has, with its class.
    tree.function("pci0000:04/0000:05:00.0", ["0x068000", "0x10de", "0x22a3"]);
    let found = found(&tree, &facts(8, through_switches));
    let machine = &found.machine;
    assert_eq!(machine.warnings, []);
    assert_eq!(machine.host, "made-up");
    for (i, (bus_id, gpu)) in gpus(machine).into_iter().enumerate() {
        assert_eq!(bus_id, gpu_id(i));
        let seen = device(machine, &bus_id).unwrap();
        assert_eq!(seen.node, Some(i as u32 / 4));
        // Root ports and the ports of a switch to what is below are not shown.
        assert_eq!(seen.above, [format!("0000:{:02x}:00.0", switch(i))]);
        let link = Some(PcieLink { gigatransfers_per_s: 32.0, width: 16 });
        assert_eq!((seen.device.link, seen.device.possible_link), (link, link));
        assert_eq!((gpu.compute_capability, gpu.memory_bytes), (Some(90), Some(85_520_809_984)));
        let class = 0x068000;
        let ends =
            [("0000:05:00.0", 5), ("0000:06:00.0", 4), ("0000:07:00.0", 4), ("0000:08:00.0", 5)];
        assert_eq!(targets(machine, i), ends.map(|(id, count)| (id.to_owned(), class, count)));
        let (port, numa, card) = port(machine, &format!("mlx5_{i}"));
        assert_eq!((numa, card), (seen.node, Some(card_id(i))));
        assert_eq!((port.index, port.speed_mbit_per_s), (i as u32, Some(400_000)));
        assert_eq!(
            (port.partner.as_str(), port.driver.as_str()),
            (&*format!("ib{i}"), "mlx5_core")
        );
        assert_eq!(device(machine, &card_id(i)).unwrap().above, seen.above);
    }
    assert_eq!(ports(machine).len(), 8, "an interface is not listed beside its RDMA port");
    assert_eq!(devices(machine).len(), 4 + 8 + 8);
    assert_eq!(machine.numa_nodes[0].devices.len(), 2);
}

#[test]
fn nvlink_in_pairs_and_links_that_are_down() {
    let partner = |i| vec![(gpu_id(i ^ 1), "Gpu", 12)];
    let mut facts = facts(8, partner);
    facts.gpus[2].nvlinks[3].is_active = false;
    facts.gpus[4].nvlinks.iter_mut().for_each(|link| link.is_active = false);
    facts.gpus[6].nvlinks[0].remote = None;
    let tree = eight_gpus();
    let machine = found(&tree, &facts).machine;
    for (i, count) in [(0, 12), (1, 12), (2, 11), (3, 12), (5, 12), (6, 11)] {
        assert_eq!(targets(&machine, i), [(gpu_id(i ^ 1), 0x030200, count)], "GPU {i}");
    }
    assert_eq!(targets(&machine, 4), []);
    assert!(warns(&machine, &gpu_id(2), "NVLink 3 is down"));
    assert!(warns(&machine, &gpu_id(6), "NVLink 0 leads to is unknown"));
    assert_eq!(machine.warnings.len(), 2, "a GPU without any link up is not connected");
}

#[test]
fn links_with_processors() {
    let mut facts = facts(1, |_| vec![("0004:00:00.0".into(), "Processor", 3)]);
    let c2c = ringtree_topology::C2cFact { count: 10, bandwidth_bytes_per_s: Some(45e9) };
    facts.gpus[0].c2c = Some(c2c);
    let unreachable =
        ringtree_topology::Unreachable { bus_id: BusId::default(), reason: "Chipset".into() };
    facts.gpus[0].unreachable = vec![unreachable];
    let tree = Tree::new(&["0-71"]);
    tree.function(&format!("pci0000:12/{}", gpu_id(0)), H100).node("0");
    let machine = found(&tree, &facts).machine;
    let links = &gpus(&machine)[0].1.links;
    assert_eq!(
        links.iter().map(|link| link.kind).collect::<Vec<_>>(),
        [GpuLinkKind::NvLink, GpuLinkKind::C2c]
    );
    assert_eq!((links[0].target_class, links[0].count), (0x068001, 3));
    assert_eq!(
        (links[1].target, links[1].count, links[1].bandwidth_bytes_per_s),
        (None, 10, Some(45e9))
    );
    assert!(warns(&machine, &gpu_id(0), "cannot reach"));
}

#[test]
fn a_virtual_machine_that_hides_switches() {
    let tree = Tree::new(&["0-47", "48-95"]);
    for i in 0..8 {
        let path = format!("LNXSYSTM:00/ACPI0004:00/pci{i:04x}:00/{i:04x}:00:00.0");
        let function = tree.function(&path, H100).node("-1");
        function.file("local_cpulist", "0-95").pcie(["Unknown", "0"], ["Unknown", "255"]);
    }
    tree.function("LNXSYSTM:00/pci0008:00/0008:00:00.0", ETHERNET)
        .node("-1")
        .interface("eth0", "-1", "unknown");
    tree.file("sys/class/net/eth0/carrier", "1");
    let mut facts = facts(8, |_| vec![("fffffff:ff:ff.0".into(), "Switch", 18)]);
    for (i, gpu) in facts.gpus.iter_mut().enumerate() {
        gpu.bus_id = BusId { domain: i as u32, ..BusId::default() };
    }
    let machine = found(&tree, &facts).machine;
    for (i, (bus_id, _)) in gpus(&machine).into_iter().enumerate() {
        assert_eq!(bus_id, format!("{i:04x}:00:00.0"));
        let seen = device(&machine, &bus_id).unwrap();
        assert_eq!((seen.node, seen.above.len()), (Some(0), 0));
        assert_eq!((seen.device.link, seen.device.possible_link), (None, None));
        assert_eq!(targets(&machine, i), [("fffffff:ff:ff.0".to_owned(), 0x068000, 18)]);
        for words in ["NUMA node is unknown", "current PCIe link", "max PCIe link"] {
            assert!(warns(&machine, &bus_id, words), "{words}");
        }
    }
    let (eth0, ..) = port(&machine, "eth0");
    assert_eq!((eth0.speed_mbit_per_s, eth0.state), (None, PortState::Up));
    assert!(warns(&machine, "eth0", "\"-1\""));
}

#[test]
fn where_the_kernel_tells_no_node_its_neighbours_do() {
    let tree = Tree::new(&["0-3", "4-7"]);
    // By the port above, by the processors that are local, by what is below, and by a number that is none.
    tree.bridge("pci0000:00/0000:00:01.0").node("1");
    tree.function("pci0000:00/0000:00:01.0/0000:01:00.0", ETHERNET).node("-1");
    tree.function("pci0000:02/0000:02:00.0", ETHERNET).file("local_cpus", "000000f0");
    tree.bridge("pci0000:03/0000:03:01.0").node("-1");
    tree.bridge("pci0000:03/0000:03:01.0/0000:04:00.0").node("-1");
    tree.bridge("pci0000:03/0000:03:01.0/0000:04:00.0/0000:05:00.0").node("-1");
    let below = "pci0000:03/0000:03:01.0/0000:04:00.0/0000:05:00.0/0000:06:00.0";
    tree.function(below, ETHERNET).node("1");
    tree.function("pci0000:07/0000:07:00.0", ETHERNET).node("77");
    let machine = machine(&tree);
    for (bus_id, node) in [("01:00.0", 1), ("02:00.0", 1), ("06:00.0", 1), ("07:00.0", 0)] {
        assert_eq!(device(&machine, bus_id).unwrap().node, Some(node), "{bus_id}");
    }
    assert!(warns(&machine, "0000:07:00.0", "NUMA node is unknown"));
    assert_eq!(machine.warnings.len(), 1, "{:?}", machine.warnings);
}

#[test]
fn a_card_at_half_its_width() {
    let tree = Tree::new(&["0-3"]);
    tree.bridge("pci0000:00/0000:00:01.0");
    let card = tree.function("pci0000:00/0000:00:01.0/0000:01:00.0", CONNECTX).node("0");
    card.pcie(["8.0 GT/s PCIe", "8"], ["16 GT/s", "16"]);
    let half = tree.function("pci0000:00/0000:00:02.0", CONNECTX);
    half.file("current_link_speed", "Unknown speed").file("current_link_width", "4");
    let machine = machine(&tree);
    let card = device(&machine, "0000:01:00.0").unwrap().device;
    let link = |gigatransfers_per_s, width| Some(PcieLink { gigatransfers_per_s, width });
    assert_eq!((card.link, card.possible_link), (link(8.0, 8), link(16.0, 16)));
    let half = device(&machine, "0000:00:02.0").unwrap().device;
    assert_eq!((half.link, half.possible_link), (link(0.0, 4), None));
    assert!(warns(&machine, "0000:00:02.0", "Unknown speed"));
    assert_eq!(half.nic.as_ref().map(|nic| nic.ports.len()), Some(0), "a card without a driver");
}

#[test]
fn a_container_that_may_use_two_gpus() {
    let tree = eight_gpus();
    let mut facts = facts(8, |i| vec![(gpu_id((i + 1) % 8), "Unknown", 2)]);
    facts.gpus = vec![facts.gpus[3].clone(), facts.gpus[5].clone()];
    let visible = VisibleDevices {
        nvidia: Some("3,5".into()),
        cuda: Some("1,0".into()),
        ..Default::default()
    };
    let found = detect_with(&tree.roots(), &facts, &visible).unwrap();
    let machine = &found.machine;
    let ids = |machine: &Machine| gpus(machine).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(ids(machine), [gpu_id(3), gpu_id(5)]);
    // What is at the other end is told by sysfs, though the driver does not name it.
    assert_eq!(targets(machine, 0), [(gpu_id(4), 0x030200, 2)]);
    for hidden in [0, 1, 2, 4, 6, 7] {
        assert!(warns(machine, &gpu_id(hidden), "left out"));
    }
    let mut own = machine.clone();
    found.limits.apply(&mut own);
    assert_eq!(ids(&own), [gpu_id(5), gpu_id(3)]);
    assert_eq!(ports(&own).len(), 8);
}

#[test]
fn visible_devices_leave_a_part_and_number_it() {
    let tree = eight_gpus();
    let facts = facts(8, |i| (0..8).filter(|j| *j != i).map(|j| (gpu_id(j), "Gpu", 2)).collect());
    for (setting, expected) in [("3,1", [3, 1]), ("GPU-33,gpu-11aa", [3, 1]), ("5,7,99,0", [5, 7])]
    {
        let visible = VisibleDevices { cuda: Some(setting.into()), ..Default::default() };
        let found = detect_with(&tree.roots(), &facts, &visible).unwrap();
        assert_eq!(gpus(&found.machine).len(), 8, "the machine is whole");
        let mut own = found.machine;
        found.limits.apply(&mut own);
        let ids: Vec<String> = gpus(&own).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, expected.map(gpu_id), "{setting}");
        for i in 0..2 {
            assert_eq!(targets(&own, i), [(gpu_id(expected[1 - i]), 0x030200, 2)], "{setting}");
        }
        assert_eq!(own.warnings.len(), usize::from(setting.contains("99")));
    }
    // A switch that led only to GPUs goes with them.
    let tree = Tree::new(&["0-3"]);
    tree.bridge("pci0000:00/0000:00:01.0");
    tree.bridge("pci0000:00/0000:00:01.0/0000:01:00.0");
    tree.bridge("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0");
    tree.function("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0", H100);
    let visible = VisibleDevices { cuda: Some("".into()), ..Default::default() };
    let found = detect_with(&tree.roots(), &GpuFacts::unknown("no driver"), &visible).unwrap();
    assert_eq!(devices(&found.machine).len(), 2);
    let mut own = found.machine;
    found.limits.apply(&mut own);
    assert!(devices(&own).is_empty());
}

#[test]
fn a_gpu_that_only_the_driver_knows() {
    let tree = Tree::new(&["0-3"]);
    let machine = found(&tree, &facts(1, |_| Vec::new())).machine;
    assert_eq!(gpus(&machine)[0].0, gpu_id(0));
    assert!(warns(&machine, &gpu_id(0), "not among the PCI functions"));
}

#[test]
fn amd_gpus_with_xgmi() {
    let tree = Tree::new(&["0-3"]);
    let id = |i: usize| format!("0000:{:02x}:00.0", 0x21 + 0x10 * i);
    let node = |i: usize| format!("sys/class/kfd/kfd/topology/nodes/{i}");
    tree.file(
        &format!("{}/properties", node(0)),
        "cpu_cores_count 4\nsimd_count 0\ngfx_target_version 0",
    );
    for i in 0..3 {
        tree.function(&format!("pci0000:{:02x}/{}", 0x20 + 0x10 * i, id(i)), MI300).node("0");
        let location = (0x21 + 0x10 * i) << 8;
        let properties = format!(
            "cpu_cores_count 0\nsimd_count 304\ngfx_target_version 90402\nvendor_id 4098\n\
             location_id {location}\ndomain 0\nunique_id {}",
            0xab00 + i
        );
        let folder = node(3 - i);
        tree.file(&format!("{folder}/properties"), &properties);
        tree.file(&format!("{folder}/name"), "aqua_vanjaram");
        tree.file(
            &format!("{folder}/mem_banks/0/properties"),
            "heap_type 1\nsize_in_bytes 1000\nflags 0",
        );
        let pcie = "type 2\nnode_from 1\nnode_to 0\nweight 20";
        tree.file(&format!("{folder}/io_links/0/properties"), pcie);
        for (link, j) in (0..3).filter(|j| *j != i).enumerate() {
            // GPU 0 and 2 are neighbours through GPU 1 only; 0 and 1 have two links.
            let (weight, most) =
                if i + j == 2 { (30, 50) } else { (15, if i + j == 1 { 100 } else { 50 }) };
            let text = format!(
                "type 11\nnode_from {}\nnode_to {}\nweight {weight}\nmin_bandwidth 50\nmax_bandwidth {most}",
                3 - i,
                3 - j
            );
            tree.file(&format!("{folder}/io_links/{}/properties", link + 1), &text);
        }
    }
    // A GPU that is built into a processor, for which there is no driver for computing.
    tree.function("pci0000:60/0000:60:00.0", ["0x030000", "0x1002", "0x1638"]);
    let visible =
        VisibleDevices { rocr: Some("GPU-000000000000ab00,0".into()), ..Default::default() };
    let found = detect_with(&tree.roots(), &GpuFacts::unknown("none"), &visible).unwrap();
    let machine = &found.machine;
    let ids: Vec<String> = gpus(machine).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [id(2), id(1), id(0)], "by the driver's numbers");
    let (_, gpu) = gpus(machine).swap_remove(1);
    assert_eq!(
        (gpu.gcn.as_str(), gpu.memory_bytes, gpu.name.as_str()),
        ("gfx942", Some(1000), "aqua_vanjaram")
    );
    let xgmi = |links: Vec<(usize, u32)>| -> Vec<(String, u32, u32)> {
        links.into_iter().map(|(i, count)| (id(i), 0x038000, count)).collect()
    };
    assert_eq!(targets(machine, 0), xgmi(vec![(1, 1)]));
    assert_eq!(targets(machine, 1), xgmi(vec![(0, 2), (2, 1)]));
    assert_eq!(targets(machine, 2), xgmi(vec![(1, 2)]));
    assert!(warns(machine, "0000:60:00.0", "left out"));
    assert_eq!(found.limits.visible_gpus, [id(0).parse().unwrap(), id(2).parse().unwrap()]);
}

#[test]
fn roce_cards_with_two_ports_and_virtual_functions() {
    let tree = Tree::new(&["0-3"]);
    let card = tree.function("pci0000:00/0000:00:01.0", ETHERNET).node("0").driver("mlx4_core");
    let card = card.interface("eth2", "40000", "up").interface("eth10", "40000", "down");
    let folder = "sys/devices/pci0000:00/0000:00:01.0";
    tree.file(&format!("{folder}/net/eth10/dev_port"), "1");
    let card = card.rdma("mlx4_0", 1, "40 Gb/sec (4X QDR)", "4: ACTIVE", "Ethernet");
    card.rdma("mlx4_0", 2, "10 Gb/sec (4X SDR)", "1: DOWN", "Ethernet");
    // The identifiers name the interface, which is that of another function.
    let other = tree.function("pci0000:00/0000:00:02.0", ETHERNET);
    other.rdma("bnxt_re0", 1, "100 Gb/sec (4X EDR)", "4: ACTIVE", "Ethernet");
    let named = "sys/devices/pci0000:00/0000:00:02.0/infiniband/bnxt_re0/ports/1/gid_attrs/ndevs/1";
    tree.file(named, "eth3");
    tree.function("pci0000:00/0000:00:02.1", ETHERNET).interface("eth3", "100000", "up");
    // A virtual function that nobody uses, and one with an interface.
    for function in [2, 3] {
        let folder = format!("pci0000:00/0000:00:02.{function}");
        let virtual_function = tree.function(&folder, ETHERNET);
        tree.link(&format!("sys/devices/{folder}/physfn"), "../0000:00:02.1");
        if function == 3 {
            virtual_function.interface("eth4", "100000", "up");
        }
    }
    tree.file("sys/devices/pci0000:00/0000:00:02.1/current_link_speed", "16.0 GT/s PCIe");
    tree.file("sys/devices/pci0000:00/0000:00:02.1/current_link_width", "16");
    // RDMA in software, on an interface.
    tree.file("sys/devices/virtual/infiniband/rxe0/parent", "eth4");
    tree.file("sys/devices/virtual/infiniband/rxe0/ports/1/rate", "2.5 Gb/sec (1X SDR)");
    tree.link("sys/class/infiniband/rxe0", "../../devices/virtual/infiniband/rxe0");
    tree.file("sys/module/nvidia_peermem/version", "1");
    let machine = machine(&tree);
    let all: Vec<_> = ports(&machine)
        .into_iter()
        .map(|(port, _, card)| {
            (port.name.as_str(), port.port, port.partner.as_str(), card.unwrap())
        })
        .collect();
    let expected = [
        ("bnxt_re0", 1, "eth3", "0000:00:02.0"),
        ("mlx4_0", 1, "eth2", "0000:00:01.0"),
        ("mlx4_0", 2, "eth10", "0000:00:01.0"),
        ("rxe0", 1, "eth4", "0000:00:02.3"),
    ];
    assert_eq!(
        all,
        expected.map(|(name, port, partner, card)| (name, port, partner, card.to_owned()))
    );
    let both: Vec<_> =
        ports(&machine).into_iter().filter(|(port, ..)| port.name == "mlx4_0").collect();
    assert_eq!((both[0].0.state, both[1].0.state), (PortState::Up, PortState::Down));
    assert_eq!((both[0].0.guid, both[1].0.guid), (0x0c42_a103_0000_0001, 0x0c42_a103_0000_0001));
    assert_eq!((both[0].0.link_layer, both[0].0.mtu_bytes), (LinkLayer::Ethernet, Some(9000)));
    assert_eq!(both[0].0.addresses, ["fe80:0000:0000:0000:0e42:a1ff:fe00:0001"]);
    assert_eq!(both[0].0.gpu_direct_rdma, Some(true));
    assert!(device(&machine, "0000:00:02.2").is_none(), "an unused virtual function");
    let link = device(&machine, "0000:00:02.3").unwrap().device.link;
    assert_eq!(
        link,
        Some(PcieLink { gigatransfers_per_s: 16.0, width: 16 }),
        "that of the function it is of"
    );
}

#[test]
fn an_infiniband_port_on_a_single_lane_could_have_four() {
    let tree = Tree::new(&["0-3"]);
    for (slot, rate, layer) in [
        (1, "25 Gb/sec (1X EDR)", "InfiniBand"),
        (2, "100 Gb/sec (2X HDR)", "InfiniBand"),
        (3, "25 Gb/sec (1X EDR)", "Ethernet"),
    ] {
        let card = tree.function(&format!("pci0000:00/0000:00:0{slot}.0"), CONNECTX).node("0");
        card.rdma(&format!("mlx5_{slot}"), 1, rate, "4: ACTIVE", layer);
    }
    let found = machine(&tree);
    let speeds = |name| {
        let (port, ..) = port(&found, name);
        (port.speed_mbit_per_s, port.possible_speed_mbit_per_s)
    };
    assert_eq!(speeds("mlx5_1"), (Some(25_000), Some(100_000)));
    assert_eq!(speeds("mlx5_2"), (Some(100_000), None), "two lanes may be meant");
    assert_eq!(speeds("mlx5_3"), (Some(25_000), None));
    let (graph, _) = ringtree_topology::Graph::new(&found);
    let findings = ringtree_topology::check(&found, &graph);
    assert!(findings.iter().any(|f| f.message == "25 of 100 Gbit/s"), "{findings:?}");
}

#[test]
fn made_interfaces_count_where_there_is_no_other() {
    let tree = Tree::new(&["0-3", "4-7"]);
    for (name, kind) in [("lo", "772"), ("eth0", "1"), ("docker0", "1")] {
        let folder = format!("sys/devices/virtual/net/{name}");
        tree.link(&format!("sys/class/net/{name}"), &format!("../../devices/virtual/net/{name}"));
        for (file, text) in [("type", kind), ("operstate", "up"), ("speed", "10000")] {
            tree.file(&format!("{folder}/{file}"), text);
        }
    }
    let found = machine(&tree);
    assert_eq!(port_names(&found), ["docker0", "eth0"]);
    let (eth0, numa, card) = port(&found, "eth0");
    assert_eq!((numa, card, eth0.speed_mbit_per_s), (Some(0), None, Some(10_000)));
    // One with a device that is no PCI function, as on Hyper-V.
    tree.file("sys/devices/vmbus/1234/numa_node", "1");
    tree.file("sys/devices/vmbus/1234/net/eth1/speed", "50000");
    tree.link("sys/devices/vmbus/1234/net/eth1/device", "../../../1234");
    tree.link("sys/class/net/eth1", "../../devices/vmbus/1234/net/eth1");
    let found = machine(&tree);
    assert_eq!(port_names(&found), ["eth1"]);
    assert_eq!((port(&found, "eth1").1, port(&found, "eth1").2), (Some(1), None));
}

#[test]
fn frames_of_a_made_interface_go_through_those_below_it() {
    let tree = Tree::new(&["0-7"]);
    for (slot, name) in [(1, "eth0"), (2, "eth1")] {
        tree.function(&format!("pci0000:00/0000:00:0{slot}.0"), ETHERNET)
            .interface(name, "25000", "up");
    }
    let made = |name: &str, lower: &[&str]| {
        tree.file(&format!("sys/devices/virtual/net/{name}/type"), "1");
        tree.link(&format!("sys/class/net/{name}"), &format!("../../devices/virtual/net/{name}"));
        for below in lower {
            let link = format!("sys/devices/virtual/net/{name}/lower_{below}");
            tree.link(&link, &format!("../{below}"));
        }
    };
    made("veth0", &[]);
    made("bond0", &["eth0", "eth1"]);
    made("bond0.7", &["bond0"]);
    made("br0", &["veth0", "bond0.7"]);
    made("circle", &["circle"]);
    let through = |name: &str| carriers(&tree.roots(), name);
    assert_eq!(through("eth1"), ["eth1"]);
    assert_eq!(through("br0"), ["eth0", "eth1"]);
    for name in ["veth0", "circle", "nobody"] {
        assert_eq!(through(name), [""; 0], "{name}");
    }
    tree.file("sys/devices/virtual/net/bond0/bonding/active_slave", "eth1");
    assert_eq!(through("bond0.7"), ["eth1"]);
}

#[test]
fn domains_in_functions_and_trees_without_a_bus() {
    let tree = Tree::new(&["0-3"]);
    // Behind Intel's volume management, and a root complex of another domain.
    let volumes = "pci0000:5d/0000:5d:05.5/pci10000:00";
    tree.function("pci0000:5d/0000:5d:05.5", ["0x010400", "0x8086", "0x201d"]);
    tree.bridge(&format!("{volumes}/10000:00:02.0"));
    tree.function(&format!("{volumes}/10000:00:02.0/10000:01:00.0"), ETHERNET);
    tree.function("pci0001:00/0001:00:00.0", ["0x038000", "0x8086", "0x0bd5"]);
    // A processor's own graphics, and a management controller's.
    tree.function("pci0000:00/0000:00:02.0", ["0x030000", "0x8086", "0x9a49"]);
    tree.function("pci0000:00/0000:00:03.0", ["0x030000", "0x1a03", "0x2000"]);
    let with_bus = machine(&tree);
    let ids: Vec<String> =
        devices(&with_bus).iter().map(|seen| seen.device.bus_id.to_string()).collect();
    assert_eq!(ids, ["0001:00:00.0", "10000:01:00.0"]);
    assert_eq!(gpus(&with_bus)[0].0, "0001:00:00.0");
    std::fs::remove_dir_all(tree.root().join("sys/bus")).unwrap();
    assert_eq!(machine(&tree), with_bus);
}

#[test]
fn control_groups_of_version_1_and_2() {
    let quota = |tree: &Tree| found(tree, &GpuFacts::default()).limits.cpu_quota;
    let tree = Tree::new(&["0-7"]);
    assert_eq!(quota(&tree), None);
    // The group is a path of the host, and the mount is the container's.
    let mount = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup ro,nosuid,cpu,cpuacct 0 0";
    tree.file("proc/mounts", mount);
    tree.file("proc/self/cgroup", "5:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab");
    let group = "sys/fs/cgroup/cpu,cpuacct";
    tree.file(&format!("{group}/cpu.cfs_quota_us"), "300000");
    tree.file(&format!("{group}/cpu.cfs_period_us"), "100000");
    assert_eq!(quota(&tree), Some(3.0));
    tree.file(&format!("{group}/cpu.cfs_quota_us"), "-1");
    assert_eq!(quota(&tree), None);
    // The least of a group and of those that it is in.
    tree.file("proc/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0");
    tree.file("proc/self/cgroup", "0::/job/rank");
    for (folder, text) in
        [("", "400000 100000"), ("job/", "150000 100000"), ("job/rank/", "max 100000")]
    {
        tree.file(&format!("sys/fs/cgroup/{folder}cpu.max"), text);
    }
    assert_eq!(quota(&tree), Some(1.5));
    tree.file("sys/fs/cgroup/job/cpuset.cpus.effective", "2-3");
    let cpus = found(&tree, &GpuFacts::default()).limits.cpus;
    assert_eq!(cpus.map(|cpus| cpus.to_string()).as_deref(), Some("2-3"));
}
