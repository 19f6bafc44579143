//! The machine that the tests run on.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use ringtree_topology::{GpuFacts, Roots, VisibleDevices, detect, detect_with};
use serde_json::Value;

use super::seen::{devices, ports};

/// A tenth of it is the aim; tests run unoptimised and beside each other.
const LONGEST: Duration = Duration::from_millis(500);

#[test]
fn processors_are_those_that_others_see() {
    let start = Instant::now();
    let machine = detect(&Roots::system()).expect("this machine");
    let took = start.elapsed();
    println!("detected in {took:?}");
    assert!(took < LONGEST, "{took:?}");
    let cpus: BTreeSet<usize> =
        machine.numa_nodes.iter().flat_map(|node| node.cpus.iter()).collect();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    let of_line = |line: &str| {
        line.split_once(':').filter(|(key, _)| key.trim() == "processor")?.1.trim().parse().ok()
    };
    let others: BTreeSet<usize> = cpuinfo.lines().filter_map(of_line).collect();
    assert_eq!(cpus, others);
    let Ok(output) = Command::new("lscpu").arg("-J").output() else {
        println!("lscpu is not there: not compared with it");
        return;
    };
    let lscpu: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut said = Vec::new();
    fields(&lscpu["lscpu"], &mut said);
    let field =
        |name: &str| said.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    for node in &machine.numa_nodes {
        if let Some(value) = node.id.and_then(|id| field(&format!("NUMA node{id} CPU(s):"))) {
            let of_node: BTreeSet<String> = node.cpus.iter().map(|cpu| cpu.to_string()).collect();
            assert_eq!(expand(value), of_node);
        }
        if let (Some(vendor), "x86_64") = (field("Vendor ID:"), std::env::consts::ARCH) {
            assert_eq!(node.vendor, vendor);
            assert_eq!(node.family.map(|n| n.to_string()).as_deref(), field("CPU family:"));
            assert_eq!(node.model.map(|n| n.to_string()).as_deref(), field("Model:"));
        }
    }
    let packages: BTreeSet<_> = machine.numa_nodes.iter().filter_map(|node| node.package).collect();
    if let Some(sockets) = field("Socket(s):") {
        assert_eq!(packages.len().to_string(), sockets);
    }
}

/// The pairs of lscpu's tree.
fn fields(list: &Value, to: &mut Vec<(String, String)>) {
    for entry in list.as_array().into_iter().flatten() {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        to.push((text("field"), text("data")));
        fields(&entry["children"], to);
    }
}

fn expand(list: &str) -> BTreeSet<String> {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let [first, last] = [first, last].map(|number| number.trim().parse::<usize>().unwrap());
        (first..=last).map(|cpu| cpu.to_string()).collect::<Vec<_>>()
    };
    list.split(',').flat_map(part).collect()
}

#[test]
fn network_cards_are_those_of_sysfs() {
    let machine = detect(&Roots::system()).expect("this machine");
    let found: BTreeSet<String> = devices(&machine)
        .into_iter()
        .filter(|d| d.device.nic.is_some())
        .map(|d| d.device.bus_id.to_string())
        .collect();
    let mut expected = BTreeSet::new();
    for entry in fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten() {
        let class = fs::read_to_string(entry.path().join("class")).unwrap_or_default();
        if class.starts_with("0x02") && !entry.path().join("physfn").exists() {
            expected.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    assert!(found.is_superset(&expected), "{found:?} {expected:?}");
    for (port, ..) in ports(&machine) {
        assert_ne!(port.name, "lo");
        let speed = fs::read_to_string(format!("/sys/class/net/{}/speed", port.name));
        let speed = speed
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .filter(|mbit| *mbit < 10_000_000);
        if port.port == 0 {
            assert_eq!(port.speed_mbit_per_s, speed, "{}", port.name);
        }
    }
}

#[test]
fn limits_are_those_of_this_process() {
    let facts = GpuFacts::of_system();
    let found = detect_with(&Roots::system(), &facts, &VisibleDevices::default()).unwrap();
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let count = nix::sched::CpuSet::count();
    let expected: Vec<usize> = (0..count).filter(|&cpu| allowed.is_set(cpu).unwrap()).collect();
    let cpus = found.limits.cpus.expect("a list of processors");
    assert_eq!(cpus.iter().collect::<Vec<_>>(), expected);
    assert_eq!(found.limits.visible_gpus.len(), super::seen::gpus(&found.machine).len());
}
