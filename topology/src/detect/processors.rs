//! NUMA nodes, their processors and their memory, from `/sys/devices/system` and `/proc/cpuinfo`.
//!
//! Processors that are offline are left out. A node without processors (the memory of a GPU that the
//! system can address, or an extension of memory) stays, with an empty set: it has a number that others
//! refer to, and nothing hangs on it.

use super::cpu_list::{self, common};
use super::files::{Files, Folder};
use crate::machine::{Architecture, CpuSet, NumaNode};

/// The nodes in the order of their numbers, at least one, without devices.
pub(super) fn read(sysfs: &Files, procfs: &Files) -> Vec<NumaNode> {
    let online = online(sysfs, procfs);
    let mut nodes = numa_nodes(sysfs, &online);
    if nodes.is_empty() {
        let message = "no NUMA nodes: all processors are taken for one";
        sysfs.warnings.add("devices/system/node", message);
        let memory_bytes = memory(&procfs.top().table("meminfo"));
        nodes.push(NumaNode { cpus: online, memory_bytes, ..NumaNode::default() });
    }
    let kind = Kind::read(procfs);
    for node in &mut nodes {
        node.package = node.cpus.iter().next().and_then(|cpu| package(sysfs, cpu));
        if !node.cpus.is_empty() {
            node.architecture = kind.architecture;
            node.vendor.clone_from(&kind.vendor);
            (node.family, node.model) = (kind.family, kind.model);
        }
    }
    nodes
}

fn numa_nodes(sysfs: &Files, online: &CpuSet) -> Vec<NumaNode> {
    let Some(folder) = sysfs.folder("devices/system/node") else {
        return Vec::new();
    };
    let names = folder.names().into_iter();
    let ids: Vec<u32> = names.filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect();
    let node = |id: &u32| {
        let folder = folder.folder(&format!("node{id}"))?;
        Some(NumaNode {
            id: Some(*id),
            cpus: common(&cpus(&folder)?, online),
            memory_bytes: memory(&folder.table("meminfo")),
            distances: distances(&folder, &ids),
            ..NumaNode::default()
        })
    };
    ids.iter().filter_map(node).collect()
}

/// An empty list is that of a node without processors.
fn cpus(node: &Folder) -> Option<CpuSet> {
    let (list, mask) = (node.text("cpulist"), node.text("cpumap"));
    if (&list, &mask) == (&None, &None) && node.has("cpulist") {
        return Some(CpuSet::default());
    }
    let list = list.and_then(|text| cpu_list::list(&text));
    let found = list.or_else(|| cpu_list::mask(&mask?));
    if found.is_none() {
        let message = "neither cpulist nor cpumap can be read: the node is left out";
        node.files.warnings.add(node.path().display(), message);
    }
    found
}

/// To the nodes in the order of their numbers, as the kernel writes them.
fn distances(node: &Folder, ids: &[u32]) -> Vec<(u32, u32)> {
    let text = node.text("distance").unwrap_or_default();
    let distances: Vec<u32> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    if distances.len() != ids.len() {
        let found = distances.len();
        let message = format!("{found} distances to {} nodes: none is used", ids.len());
        node.files.warnings.add(node.path().display(), message);
        return Vec::new();
    }
    ids.iter().copied().zip(distances).collect()
}

/// Bytes by `MemTotal` of a `meminfo`, in which kB are 1,024 bytes.
fn memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| Some(line.split_once("MemTotal:")?.1))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Processors that run: by the kernel's list, else those that have a folder, else those that
/// `/proc/cpuinfo` counts.
fn online(sysfs: &Files, procfs: &Files) -> CpuSet {
    let folder = sysfs.folder("devices/system/cpu");
    let list = folder.as_ref().and_then(|folder| cpu_list::list(&folder.text("online")?));
    let by_folder = || -> CpuSet {
        let names = folder.as_ref().map(Folder::names).unwrap_or_default().into_iter();
        names.filter_map(|name| name.strip_prefix("cpu")?.parse().ok()).collect()
    };
    let listed = list.unwrap_or_else(by_folder);
    if !listed.is_empty() {
        return listed;
    }
    let message = "no list of processors: those of /proc/cpuinfo are used";
    sysfs.warnings.add("devices/system/cpu", message);
    let cpuinfo = procfs.top().table("cpuinfo");
    let numbers = fields(&cpuinfo).filter(|(key, _)| *key == "processor");
    numbers.filter_map(|(_, number)| number.parse().ok()).collect()
}

fn package(sysfs: &Files, cpu: usize) -> Option<u32> {
    let path = format!("devices/system/cpu/cpu{cpu}/topology/physical_package_id");
    sysfs.top().number(&path)
}

/// What `/proc/cpuinfo` says of the first processor.
#[derive(Debug, Default, PartialEq)]
struct Kind {
    architecture: Option<Architecture>,
    vendor: String,
    family: Option<u32>,
    model: Option<u32>,
}

impl Kind {
    fn read(procfs: &Files) -> Kind {
        let kind = Kind::of(&procfs.top().table("cpuinfo"));
        if kind.architecture.is_none() {
            let message = "the architecture of the processors is unknown";
            procfs.warnings.add("/proc/cpuinfo", message);
        }
        kind
    }

    /// Arm names whose design it is by a number and calls the model a part; POWER says one word.
    fn of(cpuinfo: &str) -> Kind {
        let value = |key| fields(cpuinfo).find(|(found, _)| *found == key).map(|(_, value)| value);
        let number = |key| value(key).and_then(number);
        let text = |key| value(key).unwrap_or_default().to_owned();
        if value("vendor_id").is_some() {
            let architecture = Some(Architecture::X86_64);
            let (family, model) = (number("cpu family"), number("model"));
            Kind { architecture, vendor: text("vendor_id"), family, model }
        } else if value("CPU implementer").is_some() {
            let architecture = Some(Architecture::Arm64);
            let (family, model) = (number("CPU architecture"), number("CPU part"));
            Kind { architecture, vendor: text("CPU implementer"), family, model }
        } else if let Some(power) = value("cpu").filter(|cpu| cpu.starts_with("POWER")) {
            let name = power.split(',').next().unwrap_or(power);
            let family = name.trim_start_matches("POWER").parse().ok();
            let architecture = Some(Architecture::Power);
            Kind { architecture, vendor: name.to_owned(), family, model: None }
        } else if value("isa").is_some_and(|isa| isa.starts_with("rv64")) {
            let architecture = Some(Architecture::Riscv64);
            Kind { architecture, ..Kind::default() }
        } else {
            Kind::default()
        }
    }
}

/// The lines `key : value`.
fn fields(cpuinfo: &str) -> impl Iterator<Item = (&str, &str)> {
    let field = |line| str::split_once(line, ':').map(|(key, value)| (key.trim(), value.trim()));
    cpuinfo.lines().filter_map(field)
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_says_its_own() {
        let kind = |text, architecture, vendor: &str, family, model| {
            let expected = Kind { architecture, vendor: vendor.to_owned(), family, model };
            assert_eq!(Kind::of(text), expected);
        };
        let x86 = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 45\n\
                   model name\t: Intel(R) Xeon(R)\n";
        kind(x86, Some(Architecture::X86_64), "GenuineIntel", Some(6), Some(45));
        let arm = "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd87\n";
        kind(arm, Some(Architecture::Arm64), "0x41", Some(8), Some(0xd87));
        let power = "cpu\t\t: POWER9, altivec supported\nclock : 3450.0MHz\n";
        kind(power, Some(Architecture::Power), "POWER9", Some(9), None);
        kind("isa\t: rv64imafdc\n", Some(Architecture::Riscv64), "", None, None);
        kind("nothing", None, "", None, None);
    }

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(memory("Node 0 MemTotal:   16 kB\nNode 0 MemFree: 1 kB"), Some(16 << 10));
        assert_eq!(memory("MemTotal: 99999999999999999999 kB"), None);
        assert_eq!(memory("MemTotal: 18446744073709551615 kB"), None);
        assert_eq!(memory(""), None);
    }
}
