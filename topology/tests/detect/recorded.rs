//! Recorded machines. What is expected was written down from the files, not from what this code says.
//!
//! The folder with the archives of hwloc's tests (tests/hwloc/linux) is `RINGTREE_TEST_SYSFS`, or
//! `../shared/sysfs` beside the checkout; without it these tests are skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use ringtree_topology::{
    Architecture, Detection, GpuFacts, LinkLayer, Machine, NumaNode, PcieLink, PortState, Roots,
    VisibleDevices, detect_with,
};

use super::seen::{device, devices, gpus, port, port_names, ports, warns};

struct Recorded {
    folder: PathBuf,
    found: Detection,
}

impl Recorded {
    /// Unpacks an archive and detects what is in its folder; `None` if there are no archives.
    fn open(archive: &str, name: &str) -> Option<Recorded> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/sysfs");
        let set = std::env::var_os("RINGTREE_TEST_SYSFS").map(PathBuf::from);
        let path = set.unwrap_or(beside).join(format!("{archive}.tar.bz2"));
        if !path.exists() {
            println!("skipped: {} is not there", path.display());
            return None;
        }
        let folder = format!("ringtree-recorded-{}-{archive}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        // Most of the many thousand files are of no use here.
        let useless = [
            "cache",
            "cpufreq",
            "cpuidle",
            "power",
            "block",
            "irq",
            "msi_irqs",
            "statistics",
            "memory[0-9]*",
            "usb*",
            "host*",
            "dmi",
        ];
        let tar = Command::new("tar")
            .args(useless.map(|name| format!("--exclude={name}")))
            .arg("-xjf")
            .arg(path)
            .arg("-C")
            .arg(&folder)
            .status();
        assert!(tar.expect("tar runs").success());
        let roots = Roots::recorded(folder.join(name));
        let facts = GpuFacts::unknown("not recorded");
        let found = detect_with(&roots, &facts, &VisibleDevices::default()).expect("a machine");
        Some(Recorded { folder, found })
    }

    fn machine(&self) -> &Machine {
        &self.found.machine
    }

    fn may_use(&self) -> Option<String> {
        self.found.limits.cpus.as_ref().map(|cpus| cpus.to_string())
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Number, processors and package of each node.
fn nodes(machine: &Machine) -> Vec<(Option<u32>, String, Option<u32>)> {
    let node = |node: &NumaNode| (node.id, node.cpus.to_string(), node.package);
    machine.numa_nodes.iter().map(node).collect()
}

fn node(id: u32, cpus: &str, package: u32) -> (Option<u32>, String, Option<u32>) {
    (Some(id), cpus.to_owned(), Some(package))
}

fn assert_kind(machine: &Machine, vendor: &str, family: u32, model: u32) {
    for node in &machine.numa_nodes {
        assert_eq!(node.architecture, Some(Architecture::X86_64));
        assert_eq!((node.vendor.as_str(), node.family), (vendor, Some(family)));
        assert_eq!(node.model, Some(model));
    }
}

#[test]
fn opteron_with_a_cpuset_and_an_offline_processor() {
    let Some(recorded) = Recorded::open("16amd64-8n2c-cpusets", "16amd64-8n2c-cpusets") else {
        return;
    };
    let machine = recorded.machine();
    let all = [
        node(0, "0-1", 0),
        node(1, "2-3", 1),
        node(2, "5", 2),
        node(3, "6-7", 3),
        node(4, "8-9", 4),
        node(5, "10-11", 5),
        node(6, "12-13", 6),
        node(7, "14-15", 7),
    ];
    assert_eq!(nodes(machine), all);
    assert_kind(machine, "AuthenticAMD", 15, 33);
    assert_eq!(machine.numa_nodes[0].memory_bytes, Some(8_386_704 << 10));
    let to = |id| if id == 3 { (id, 10) } else { (id, 20) };
    assert_eq!(machine.numa_nodes[3].distances, (0..8).map(to).collect::<Vec<_>>());
    assert!(devices(machine).is_empty() && ports(machine).is_empty());
    assert_eq!(recorded.may_use().as_deref(), Some("0-6,12-15"));
    let mut own = machine.clone();
    recorded.found.limits.apply(&mut own);
    let cpus: Vec<String> = own.numa_nodes.iter().map(|node| node.cpus.to_string()).collect();
    assert_eq!(cpus, ["0-1", "2-3", "5", "6", "", "", "12-13", "14-15"]);
}

#[test]
fn sandy_bridge_with_infiniband_and_a_coprocessor() {
    let archive = "32em64t-2n8c+dax+nvme+mic+dimms";
    let Some(recorded) = Recorded::open(archive, "32em64t-2n8c+1mic") else {
        return;
    };
    let machine = recorded.machine();
    assert_eq!(nodes(machine), [node(0, "0-7", 0), node(1, "8-15", 1)]);
    assert_kind(machine, "GenuineIntel", 6, 45);
    assert_eq!(machine.numa_nodes[1].distances, [(0, 21), (1, 10)]);
    assert_eq!(machine.numa_nodes[1].memory_bytes, Some(16_777_216 << 10));
    // The VGA of the management controller (1a03) is no GPU, nor is the Xeon Phi (class 0b40).
    assert!(gpus(machine).is_empty());
    assert_eq!(port_names(machine), ["mlx4_0", "eth0", "eth1"]);
    let (mlx, numa, card) = port(machine, "mlx4_0");
    assert_eq!((numa, card.as_deref()), (Some(1), Some("0000:82:00.0")));
    assert_eq!((mlx.port, mlx.speed_mbit_per_s), (1, Some(56_000)));
    assert_eq!((mlx.state, mlx.link_layer), (PortState::Up, LinkLayer::InfiniBand));
    assert_eq!((mlx.partner.as_str(), mlx.driver.as_str()), ("ib0", "mlx4_core"));
    assert_eq!((mlx.guid, mlx.mtu_bytes), (0x0002_c903_00f9_bfa3, Some(2044)));
    assert_eq!(mlx.addresses, ["fe80:0000:0000:0000:0002:c903:00f9:bfa1"]);
    let (eth0, numa, card) = port(machine, "eth0");
    assert_eq!((numa, card.as_deref()), (Some(0), Some("0000:02:00.0")));
    assert_eq!((eth0.speed_mbit_per_s, eth0.state), (Some(1000), PortState::Up));
    assert_eq!((eth0.driver.as_str(), eth0.link_layer), ("igb", LinkLayer::Ethernet));
    let (eth1, numa, card) = port(machine, "eth1");
    assert_eq!((numa, card.as_deref()), (Some(0), Some("0000:02:00.3")));
    assert_eq!((eth1.speed_mbit_per_s, eth1.state), (None, PortState::Down));
    // Cards hang on root ports; nothing else is kept.
    assert_eq!(devices(machine).len(), 3);
    let card = device(machine, "0000:82:00.0").unwrap();
    assert_eq!(
        (card.device.class, card.device.vendor, card.device.device),
        (0x028000, 0x15b3, 0x1003)
    );
    assert!(card.above.is_empty());
    assert!(warns(machine, "scif0", "missing"));
}

#[test]
fn westmere_whose_cards_have_no_numa_node() {
    let Some(recorded) = Recorded::open("40intel64-2g2n4c+pcilocality", "40intel64-2g2n4c+pci")
    else {
        return;
    };
    let machine = recorded.machine();
    assert_eq!(nodes(machine), westmere());
    assert_kind(machine, "GenuineIntel", 6, 47);
    assert_eq!(machine.numa_nodes[2].distances, [(0, 20), (1, 20), (2, 10), (3, 20)]);
    // The VGA is a Matrox one.
    assert!(gpus(machine).is_empty());
    assert_eq!(port_names(machine), ["qib0", "eth0", "eth1", "eth2", "eth3"]);
    let (qib, numa, card) = port(machine, "qib0");
    assert_eq!((numa, card.as_deref()), (Some(2), Some("0000:43:00.0")));
    assert_eq!((qib.speed_mbit_per_s, qib.state), (Some(40_000), PortState::Up));
    assert_eq!((qib.partner.as_str(), qib.driver.as_str()), ("ib0", "ib_qib"));
    assert_eq!((qib.guid, qib.link_layer), (0x0011_7500_0077_cfc8, LinkLayer::InfiniBand));
    let card = device(machine, "0000:43:00.0").unwrap().device;
    let link = |gigatransfers_per_s, width| Some(PcieLink { gigatransfers_per_s, width });
    assert_eq!((card.class, card.link, card.possible_link), (0x0c0600, link(8.0, 4), None));
    for (name, bus_id, speed, state) in [
        ("eth0", "0000:02:00.0", Some(1000), PortState::Up),
        ("eth1", "0000:02:00.1", None, PortState::Down),
        ("eth2", "0000:03:00.0", None, PortState::Down),
        ("eth3", "0000:03:00.1", None, PortState::Down),
    ] {
        let (eth, numa, card) = port(machine, name);
        // -1, and all processors are local: it is a guess.
        assert_eq!((numa, card.as_deref()), (Some(0), Some(bus_id)));
        assert_eq!((eth.speed_mbit_per_s, eth.state, eth.driver.as_str()), (speed, state, "bnx2"));
        assert!(warns(machine, bus_id, "NUMA node is unknown"), "{bus_id}");
    }
    assert_eq!(device(machine, "0000:03:00.1").unwrap().device.link, link(2.5, 1));
    assert_eq!(devices(machine).len(), 5);
    assert_eq!(recorded.may_use().as_deref(), Some("0-39"));
}

fn westmere() -> Vec<(Option<u32>, String, Option<u32>)> {
    let cpus = |id: u32| (0..10).map(|i| (4 * i + id).to_string()).collect::<Vec<_>>().join(",");
    (0..4).map(|id| node(id, &cpus(id), id)).collect()
}

#[test]
fn westmere_with_conflicting_pci_buses() {
    let name = "40intel64-4n10c+pci-conflicts";
    let Some(recorded) = Recorded::open(name, name) else {
        return;
    };
    let machine = recorded.machine();
    assert_eq!(nodes(machine), westmere());
    // A disk controller is all that there is.
    assert!(devices(machine).is_empty() && ports(machine).is_empty());
    assert_eq!(recorded.may_use().as_deref(), Some("0-39"));
}

#[test]
fn magny_cours_with_gaps_in_its_node_numbers() {
    let Some(recorded) = Recorded::open("48amd64-4pa2n6c-sparse", "48amd64-4d2n6c-sparse") else {
        return;
    };
    let machine = recorded.machine();
    let found = nodes(machine);
    let numbers: Vec<u32> = found.iter().filter_map(|(id, ..)| *id).collect();
    assert_eq!(numbers, [0, 1, 2, 33, 34, 45, 72, 73]);
    for (i, (_, cpus, _)) in found.iter().enumerate() {
        assert_eq!(cpus, &format!("{}-{}", 6 * i, 6 * i + 5));
    }
    let mut packages: Vec<_> = found.iter().filter_map(|(.., package)| *package).collect();
    packages.dedup();
    packages.sort();
    packages.dedup();
    assert_eq!(packages, [0, 1, 2, 3]);
    assert_kind(machine, "AuthenticAMD", 16, 9);
    let of_33 = [(0, 22), (1, 16), (2, 16), (33, 10), (34, 16), (45, 16), (72, 22), (73, 22)];
    assert_eq!(machine.numa_nodes[3].distances, of_33);
    assert!(devices(machine).is_empty());
    assert_eq!(recorded.may_use(), None);
}

#[test]
fn dgx_spark_has_one_node() {
    let Some(recorded) = Recorded::open("nvidia-dgx-gb10", "nvidia-dgx-gb10") else {
        return;
    };
    let machine = recorded.machine();
    assert_eq!(nodes(machine), [node(0, "0-19", 36)]);
    let numa = &machine.numa_nodes[0];
    assert_eq!(numa.architecture, Some(Architecture::Arm64));
    assert_eq!((numa.vendor.as_str(), numa.family, numa.model), ("0x41", Some(8), Some(0xd87)));
    assert_eq!(numa.memory_bytes, Some(125_508_468 << 10));
    assert!(devices(machine).is_empty(), "no PCI was recorded");
}

#[test]
fn power9_whose_gpu_memories_are_nodes() {
    let Some(recorded) = Recorded::open("nvidiagpunumanodes", "nvidiagpunumanodes") else {
        return;
    };
    let machine = recorded.machine();
    let mut all = vec![node(0, "0-15", 0), node(8, "88-103", 8)];
    all.extend((250..256).map(|id| (Some(id), String::new(), None)));
    assert_eq!(nodes(machine), all);
    let [first, .., last] = &machine.numa_nodes[..] else { panic!("no nodes") };
    assert_eq!(first.architecture, Some(Architecture::Power));
    assert_eq!((first.vendor.as_str(), first.family), ("POWER9", Some(9)));
    assert_eq!(last.architecture, None);
    assert_eq!(last.memory_bytes, Some(15_728_640 << 10));
    assert_eq!(first.distances[..3], [(0, 10), (8, 40), (250, 80)]);
    // Only class and local processors of the GPUs were recorded; /proc/driver/nvidia says whose they are.
    let places = [
        ("0004:05:00.0", 0),
        ("0004:06:00.0", 0),
        ("0006:00:00.0", 0),
        ("0007:00:00.0", 8),
        ("0035:04:00.0", 8),
        ("0035:05:00.0", 8),
    ];
    let found: Vec<String> = gpus(machine).into_iter().map(|(bus_id, _)| bus_id).collect();
    assert_eq!(found, places.map(|(bus_id, _)| bus_id));
    for (bus_id, numa) in places {
        assert_eq!(device(machine, bus_id).unwrap().node, Some(numa), "{bus_id}");
    }
    assert!(warns(machine, "0004:05:00.0", "6 GPUs of NVIDIA"));
    assert_eq!(recorded.may_use().as_deref(), Some("0-87"));
}
