//! This machine, beside what the system's own tools and files say of it; and a made-up one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::program::{Folder, document, printed};

#[test]
fn this_machine_has_the_numa_nodes_and_processors_of_lscpu() {
    let Ok(output) = Command::new("lscpu").env("LC_ALL", "C").output() else {
        println!("skipped: there is no lscpu");
        return;
    };
    let lscpu = String::from_utf8(output.stdout).expect("text");
    // `NUMA node0 CPU(s):  0-23,48-71`
    let nodes = lscpu.lines().filter_map(|line| {
        let (number, cpus) = line.trim().strip_prefix("NUMA node")?.split_once(" CPU(s):")?;
        Some((number.parse::<u32>().ok()?, cpus.trim().to_owned()))
    });
    let nodes: Vec<(u32, String)> = nodes.filter(|(_, cpus)| !cpus.is_empty()).collect();
    let tree = printed("topo", 0);
    if nodes.is_empty() {
        println!("lscpu names no NUMA nodes");
    }
    for (number, cpus) in &nodes {
        let start = format!("NUMA{number}: processors ");
        let own = tree.lines().find_map(|line| line.strip_prefix(&start)).expect(&start);
        // Other facts follow, after a comma and a blank.
        let own = own.split(", ").next().unwrap_or_default();
        assert_eq!(numbers(own), numbers(cpus), "{tree}");
    }
    let fact = |name: &str| {
        let line = lscpu.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().to_owned())
    };
    if let Some(vendor) = fact("Vendor ID:").filter(|vendor| *vendor != "ARM") {
        assert!(tree.contains(&vendor), "{vendor}: {tree}");
    }
    let document = document("topo --json", 0);
    let found = document["machine"]["numa_nodes"].as_array().expect("nodes");
    assert!(found.len() >= nodes.len());
}

/// Of a list such as `0-3,8`; `lscpu` writes two neighbours as `0,1`.
fn numbers(list: &str) -> BTreeSet<u32> {
    let number = |text: &str| text.parse::<u32>().expect("a number");
    let ranges = list.split(',').map(|range| range.split_once('-').unwrap_or((range, range)));
    ranges.flat_map(|(first, last)| number(first)..=number(last)).collect()
}

#[test]
fn this_machine_has_the_network_cards_and_interfaces_of_sysfs() {
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let tree = printed("topo", 0);
    let devices = "/sys/bus/pci/devices";
    let found = names(devices);
    for bus_id in &found {
        let device = Path::new(devices).join(bus_id);
        let class = fs::read_to_string(device.join("class")).unwrap_or_default();
        // Virtual functions that nobody uses are not shown.
        if class.starts_with("0x02") && !device.join("physfn").exists() {
            assert!(tree.contains(&format!("card {bus_id}:")), "{bus_id}: {tree}");
        }
    }
    let kinds = ["bridge ", "card ", "device "];
    for line in tree.lines() {
        let after = |kind: &&str| line.split_once(*kind).map(|(_, rest)| rest);
        let bus_id = kinds.iter().find_map(after).and_then(|rest| rest.split_once(": "));
        if let Some((bus_id, _)) = bus_id.filter(|(bus_id, _)| bus_id.contains(':')) {
            assert!(found.contains(bus_id), "{bus_id} of {line:?} is no PCI device here");
        }
    }
    for interface in names("/sys/class/net") {
        if Path::new("/sys/class/net").join(&interface).join("device").exists() {
            assert!(tree.contains(&format!("port {interface}: ")), "{interface}: {tree}");
        }
    }
}

#[test]
fn this_machine_is_found_quickly_and_shown_in_every_way() {
    let start = std::time::Instant::now();
    printed("topo", 0);
    // 50 ms where nothing else runs and the program was built for speed.
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    for view in ["-m", "--json", "--write-xml -", "--svg -", "--explain", "--visible"] {
        printed(&format!("topo {view}"), 0);
    }
    let status = super::program::ringtree("topo --check").status.code();
    assert!(matches!(status, Some(0 | 1)), "{status:?}");
}

/// A socket with a switch, a card below it and a port that is up.
#[test]
fn a_recorded_machine_is_a_folder() {
    let folder = Folder::new("recorded");
    let file = |path: &str, text: &str| folder.file(path, text.as_bytes());
    file("sys/devices/system/cpu/online", "0-3\n");
    file("sys/devices/system/node/node0/cpulist", "0-3\n");
    file("proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n");
    file("proc/sys/kernel/hostname", "made-up\n");
    let card = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0";
    for (path, class) in [("sys/devices/pci0000:00/0000:00:01.0", "0x060400"), (card, "0x020000")] {
        file(&format!("{path}/class"), class);
        file(&format!("{path}/vendor"), "0x15b3");
        file(&format!("{path}/numa_node"), "0\n");
    }
    file(&format!("{card}/current_link_speed"), "16.0 GT/s PCIe\n");
    file(&format!("{card}/current_link_width"), "16\n");
    for (name, text) in [("speed", "100000"), ("operstate", "up"), ("type", "1"), ("carrier", "1")]
    {
        file(&format!("{card}/net/eth0/{name}"), text);
    }
    let link = |path: &str, target: &str| {
        let path = folder.path(path);
        fs::create_dir_all(Path::new(&path).parent().expect("a folder")).expect("a folder");
        std::os::unix::fs::symlink(target, path).expect("a link");
    };
    link("sys/class/net/eth0", "../../devices/pci0000:00/0000:00:01.0/0000:01:00.0/net/eth0");
    link(&format!("{card}/net/eth0/device"), "../../../0000:01:00.0");
    let tree = printed(&format!("topo --sysfs {}", folder.path("")), 0);
    assert!(tree.starts_with("made-up: 1 NUMA node, 0 GPUs, 1 network port\n"), "{tree}");
    assert!(tree.contains("card 0000:01:00.0: 16 GT/s x16, 31.5 GB/s"), "{tree}");
    assert!(tree.contains("port eth0: 100 Gbit/s"), "{tree}");
    // A base file of it is completed from it.
    let base = folder.file(
        "base.xml",
        br#"<system version="1"><cpu numaid="0"><pci busid="0000:01:00.0" class="0x020000"/></cpu></system>"#,
    );
    let tree = printed(&format!("topo --xml {base} --complete --sysfs {}", folder.path("")), 0);
    assert!(tree.contains("port eth0: 100 Gbit/s"), "{tree}");
    let root = folder.path("");
    let difference = printed(&format!("topo --diff {root} {root}"), 0);
    assert_eq!(difference, "no difference\n");
}
