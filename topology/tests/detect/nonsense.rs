//! Trees that are wrong: no figure is invented, nothing ends in a crash, and nothing outside is read.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use ringtree_topology::{Error, GpuFacts, Machine, Roots, VisibleDevices, detect, detect_with};

use super::seen::{device, devices, gpus, port, ports, warns};
use super::tree::Tree;

const GPU: [&str; 3] = ["0x030200", "0x10de", "0x2330"];
const CARD: [&str; 3] = ["0x020000", "0x15b3", "0x1021"];

fn machine(tree: &Tree) -> Machine {
    detect(&tree.roots()).expect("a machine")
}

/// A small machine with one of everything.
fn small() -> Tree {
    let tree = Tree::new(&["0-3", "4-7"]);
    let x16 = ["16.0 GT/s PCIe", "16"];
    tree.bridge("pci0000:00/0000:00:01.0").node("0");
    tree.bridge("pci0000:00/0000:00:01.0/0000:01:00.0").node("0").pcie(x16, x16);
    tree.bridge("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0").node("0");
    let below = "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0";
    tree.function(&format!("{below}/0000:03:00.0"), GPU).node("0").pcie(x16, x16);
    let card = tree.function("pci0000:80/0000:80:00.0", CARD).node("1").pcie(x16, x16);
    let card = card.interface("eth0", "100000", "up");
    card.rdma("mlx5_0", 1, "100 Gb/sec (4X EDR)", "4: ACTIVE", "Ethernet");
    tree.function("pci0000:80/0000:80:01.0", CARD).node("1").interface("eth1", "25000", "up");
    tree.function("pci0000:80/0000:81:00.0", ["0x120000", "0x1002", "0x74a1"]);
    let kfd = "sys/class/kfd/kfd/topology/nodes/1";
    tree.file(
        &format!("{kfd}/properties"),
        "gfx_target_version 90402\nlocation_id 33024\ndomain 0",
    );
    tree.file(&format!("{kfd}/io_links/0/properties"), "type 11\nnode_to 1\nweight 15");
    tree.file("proc/self/status", "Cpus_allowed_list:\t0-7");
    tree.file("proc/self/cgroup", "0::/job");
    tree.file("proc/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0");
    tree.file("sys/fs/cgroup/job/cpu.max", "150000 100000");
    tree
}

fn files(folder: &Path, to: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), to);
        } else if kind.is_file() {
            to.push(entry.path());
        }
    }
}

#[test]
fn the_small_machine_is_whole() {
    let tree = small();
    let found =
        detect_with(&tree.roots(), &GpuFacts::default(), &VisibleDevices::default()).unwrap();
    assert_eq!(ports(&found.machine).len(), 2);
    assert_eq!(found.limits.cpu_quota, Some(1.5));
    assert_eq!(found.limits.cpus.unwrap().to_string(), "0-7");
}

#[test]
fn whatever_a_file_says_there_is_a_machine() {
    let alone: [&[u8]; 5] =
        [b"", b"-1", b"Unknown", b"99999999999999999999999999", b"\xff\xfe\x00"];
    let together: [&[u8]; 9] = [
        b"\n",
        b"0",
        b"255",
        b"4294967295",
        b"0x",
        b",,-,",
        b": : :",
        b"1e308 GT/s",
        b"0-4294967295",
    ];
    let tree = small();
    let mut paths = Vec::new();
    files(tree.root(), &mut paths);
    let sound: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let all = 0..paths.len();
    let each = all.clone().flat_map(|i| alone.map(|text| (text, i..i + 1)));
    let at_once = [&alone[..], &together].concat().into_iter().map(|text| (text, all.clone()));
    for (text, chosen) in each.chain(at_once) {
        chosen.clone().for_each(|i| fs::write(&paths[i], text).unwrap());
        let visible = VisibleDevices {
            cuda: Some(String::from_utf8_lossy(text).into_owned()),
            ..VisibleDevices::default()
        };
        let facts = GpuFacts::unknown("none");
        let found = detect_with(&tree.roots(), &facts, &visible).expect("a machine");
        let mut own = found.machine.clone();
        found.limits.apply(&mut own);
        for seen in devices(&found.machine) {
            for link in [seen.device.link, seen.device.possible_link].into_iter().flatten() {
                assert!([0.0, 16.0].contains(&link.gigatransfers_per_s), "{link:?}");
                assert!([0, 16].contains(&link.width), "{link:?}");
            }
        }
        for (port, ..) in ports(&found.machine) {
            let speeds = [None, Some(255), Some(25_000), Some(100_000)];
            assert!(speeds.contains(&port.speed_mbit_per_s), "{port:?}");
        }
        chosen.for_each(|i| fs::write(&paths[i], &sound[i]).unwrap());
    }
}

#[test]
fn absurd_figures_are_unknown_and_said_so() {
    let tree = small();
    let card = "sys/devices/pci0000:80/0000:80:00.0";
    tree.file(&format!("{card}/current_link_speed"), "Unknown");
    tree.file(&format!("{card}/current_link_width"), "255");
    tree.file(&format!("{card}/infiniband/mlx5_0/ports/1/rate"), "-5 Gb/sec (?)");
    tree.file("sys/class/net/eth1/speed", "4294967295");
    let machine = machine(&tree);
    assert_eq!(device(&machine, "0000:80:00.0").unwrap().device.link, None);
    assert_eq!(port(&machine, "mlx5_0").0.speed_mbit_per_s, None);
    assert_eq!(port(&machine, "eth1").0.speed_mbit_per_s, None);
    for (subject, words) in
        [("0000:80:00.0", "255"), ("mlx5_0", "-5 Gb/sec"), ("eth1", "4294967295")]
    {
        assert!(warns(&machine, subject, words), "{subject}: {:?}", machine.warnings);
    }
}

#[test]
fn links_in_circles_and_outside_lead_nowhere() {
    let tree = small();
    tree.link("sys/bus/pci/devices/0000:90:00.0", "0000:91:00.0");
    tree.link("sys/bus/pci/devices/0000:91:00.0", "0000:90:00.0");
    tree.link("sys/class/net/round", "round");
    tree.link("sys/class/net/gone", "../../devices/pci0000:80/0000:80:07.0/net/gone");
    // A folder outside that looks like an interface.
    let outside = Tree::empty();
    outside.file("eth9/speed", "1000");
    outside.file("eth9/device/numa_node", "0");
    let target = outside.root().join("eth9");
    symlink(&target, tree.root().join("sys/class/net/eth9")).unwrap();
    symlink(
        outside.root().join("eth9/speed"),
        tree.root().join("sys/devices/pci0000:80/0000:80:01.0/numa"),
    )
    .unwrap();
    let machine = machine(&tree);
    assert_eq!(ports(&machine).len(), 2);
    for subject in ["0000:90:00.0", "round", "gone", "eth9"] {
        assert!(warns(&machine, subject, "missing"), "{subject}: {:?}", machine.warnings);
    }
}

#[test]
fn a_folder_that_contains_itself_ends() {
    let tree = small();
    fs::remove_dir_all(tree.root().join("sys/bus")).unwrap();
    let loops = "sys/devices/pci0000:80/0000:80:02.0";
    tree.link(loops, "../pci0000:80");
    tree.link("sys/devices/pci0000:80/0000:80:03.0", ".");
    let machine = machine(&tree);
    assert!(device(&machine, "0000:03:00.0").is_some());
    assert_eq!(ports(&machine).len(), 2);
}

#[test]
fn huge_files_are_no_numbers() {
    let tree = small();
    let card = tree.root().join("sys/devices/pci0000:80/0000:80:00.0");
    for path in [
        card.join("max_link_width"),
        card.join("numa_node"),
        tree.root().join("sys/devices/system/node/node1/cpulist"),
        tree.root().join("proc/cpuinfo"),
        tree.root().join("proc/mounts"),
    ] {
        File::create(path).unwrap().set_len(100 << 20).unwrap();
    }
    tree.file("sys/devices/system/node/node1/cpumap", "f0");
    let machine = machine(&tree);
    assert_eq!(machine.numa_nodes[1].cpus.to_string(), "4-7");
    assert_eq!(machine.numa_nodes[1].architecture, None);
    let card = device(&machine, "0000:80:00.0").unwrap();
    assert_eq!(card.device.possible_link.map(|link| link.width), Some(0));
    let is_huge = |w: &&ringtree_topology::Warning| w.message.contains("longer than");
    assert_eq!(machine.warnings.iter().filter(is_huge).count(), 3, "{:?}", machine.warnings);
}

#[test]
fn without_numa_nodes_there_is_one() {
    let tree = small();
    fs::remove_dir_all(tree.root().join("sys/devices/system/node")).unwrap();
    let found = machine(&tree);
    assert_eq!(found.numa_nodes.len(), 1);
    assert_eq!(
        (found.numa_nodes[0].id, found.numa_nodes[0].cpus.to_string()),
        (None, "0-7".into())
    );
    assert_eq!((gpus(&found).len(), ports(&found).len()), (2, 2));
    assert!(warns(&found, "devices/system/node", "one"));
    fs::remove_dir_all(tree.root().join("sys/devices/system")).unwrap();
    assert_eq!(machine(&tree).numa_nodes[0].cpus.to_string(), "0", "by /proc/cpuinfo");
}

#[test]
fn what_is_no_sysfs_is_refused() {
    let tree = Tree::empty();
    assert_eq!(machine(&tree).numa_nodes.len(), 1);
    let sysfs = tree.root().join("sys");
    assert_eq!(Roots::recorded(&sysfs).sysfs, sysfs);
    fs::remove_dir_all(sysfs.join("devices")).unwrap();
    let error = detect(&Roots::recorded(&sysfs)).unwrap_err();
    assert!(matches!(&error, Error::NoSysfs { folder } if *folder == sysfs));
    assert!(error.to_string().starts_with(&sysfs.display().to_string()), "{error}");
}
