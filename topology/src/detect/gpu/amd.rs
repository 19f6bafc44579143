//! AMD's GPUs, from what its kernel driver keeps in `/sys/class/kfd/kfd/topology/nodes`.
//!
//! Each node is a processor or a GPU. The formats are those of the kernel's
//! `drivers/gpu/drm/amd/amdkfd/kfd_topology.c`.

use std::collections::BTreeMap;

use super::{Known, Vendor};
use crate::detect::files::{Files, Folder};
use crate::machine::{BusId, Gpu, GpuLink, GpuLinkKind};

/// `CRAT_IOLINK_TYPE_XGMI` of the kernel.
const XGMI: u64 = 11;

/// `weight` of a link between neighbours; one through a third GPU weighs more.
const NEIGHBOUR: u64 = 15;

/// More links than that are not between two GPUs: the count that the figures give is absurd.
const MOST_LINKS: u64 = 16;

/// `heap_type` of a GPU's own memory, visible to the processor or not.
const OWN_HEAPS: [u64; 2] = [1, 2];

/// The GPUs in the order of the driver's numbers: those that it has, if it is there; else those of sysfs in
/// the order of their bus ids.
pub(super) fn read(sysfs: &Files, in_sysfs: &[BusId]) -> Vec<(Known, Gpu)> {
    let Some(nodes) = sysfs.folder("class/kfd/kfd/topology/nodes") else {
        if let [first, ..] = in_sysfs {
            let message = "a GPU of AMD, but the driver for computing (amdkfd) is not there: its kind and its \
                           links are unknown";
            sysfs.warnings.add(first, message);
        }
        let known =
            |&id| (Known { bus_id: id, vendor: Vendor::Amd, uuid: String::new() }, Gpu::default());
        return in_sysfs.iter().map(known).collect();
    };
    let gpus: BTreeMap<u32, Node> =
        nodes.names().iter().filter_map(|n| Node::read(&nodes, n)).collect();
    for bus_id in in_sysfs.iter().filter(|id| !gpus.values().any(|gpu| gpu.bus_id == **id)) {
        let message = "a GPU of AMD that its driver for computing does not have: left out";
        sysfs.warnings.add(bus_id, message);
    }
    for gpu in gpus.values().filter(|gpu| !in_sysfs.contains(&gpu.bus_id)) {
        let message = "a GPU that is not among the PCI functions: where it hangs is unknown";
        sysfs.warnings.add(gpu.bus_id, message);
    }
    gpus.values().map(|node| (node.known(), node.gpu(&gpus))).collect()
}

/// A GPU of the driver's.
struct Node {
    bus_id: BusId,
    name: String,
    gcn: String,
    uuid: String,
    memory_bytes: Option<u64>,
    /// Direct links: the number of the node at the other end, and how many there are.
    links: Vec<(u32, u32)>,
}

impl Node {
    /// `None` for a processor.
    fn read<'f>(nodes: &Folder<'f>, name: &str) -> Option<(u32, Node)> {
        let number = name.parse().ok()?;
        let folder = nodes.folder(name)?;
        let properties = Properties::read(&folder);
        let version = properties.get("gfx_target_version").filter(|version| *version != 0)?;
        let location = properties.get("location_id")? as u32;
        let bus_id = BusId {
            domain: properties.get("domain").unwrap_or(0) as u32,
            bus: (location >> 8) as u8,
            device: (location >> 3) as u8 & 0x1f,
            function: location as u8 & 7,
        };
        let uuid = properties.get("unique_id").filter(|id| *id != 0);
        let node = Node {
            bus_id,
            name: folder.text("name").unwrap_or_default(),
            gcn: gcn(version),
            uuid: uuid.map(|id| format!("GPU-{id:016x}")).unwrap_or_default(),
            memory_bytes: memory(&folder),
            links: links(&folder),
        };
        Some((number, node))
    }

    fn known(&self) -> Known {
        Known { bus_id: self.bus_id, vendor: Vendor::Amd, uuid: self.uuid.clone() }
    }

    fn gpu(&self, all: &BTreeMap<u32, Node>) -> Gpu {
        let link = |(to, count): &(u32, u32)| {
            let target = all.get(to)?.bus_id;
            Some(GpuLink {
                kind: GpuLinkKind::Xgmi,
                target: Some(target),
                target_class: 0x03_80_00,
                count: *count,
                bandwidth_bytes_per_s: None,
            })
        };
        Gpu {
            name: self.name.clone(),
            gcn: self.gcn.clone(),
            memory_bytes: self.memory_bytes,
            links: self.links.iter().filter_map(link).collect(),
            ..Gpu::default()
        }
    }
}

/// 90402 is `gfx942`: two decimal digits each for minor version and stepping, which are written in
/// hexadecimal.
fn gcn(version: u64) -> String {
    format!("gfx{}{:x}{:x}", version / 10_000, version / 100 % 100, version % 100)
}

fn memory(node: &Folder) -> Option<u64> {
    let banks = node.folder("mem_banks")?;
    let bank = |name: &String| {
        let properties = Properties::read(&banks.folder(name)?);
        let is_own = OWN_HEAPS.contains(&properties.get("heap_type")?);
        properties.get("size_in_bytes").filter(|_| is_own)
    };
    let sizes: Vec<u64> = banks.names().iter().filter_map(bank).collect();
    sizes.into_iter().reduce(u64::saturating_add)
}

/// The driver gives the bandwidth of one link as the least and of all as the most, if it knows them.
fn links(node: &Folder) -> Vec<(u32, u32)> {
    let Some(links) = node.folder("io_links") else {
        return Vec::new();
    };
    let link = |name: &String| {
        let properties = Properties::read(&links.folder(name)?);
        let is_direct = properties.get("weight").is_none_or(|weight| weight <= NEIGHBOUR);
        properties.get("type").filter(|kind| *kind == XGMI && is_direct)?;
        let least = properties.get("min_bandwidth").unwrap_or(0);
        let most = properties.get("max_bandwidth").unwrap_or(0);
        let count = most.checked_div(least).filter(|count| (1..=MOST_LINKS).contains(count));
        Some((properties.get("node_to")?.try_into().ok()?, count.unwrap_or(1) as u32))
    };
    links.names().iter().filter_map(link).collect()
}

/// Lines of a name and a number.
struct Properties(String);

impl Properties {
    fn read(folder: &Folder) -> Properties {
        Properties(folder.table("properties"))
    }

    fn get(&self, name: &str) -> Option<u64> {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
        self.0.lines().find_map(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_named_as_compilers_name_them() {
        let versions =
            [(90_402, "gfx942"), (90_010, "gfx90a"), (110_000, "gfx1100"), (90_008, "gfx908")];
        for (version, name) in versions {
            assert_eq!(gcn(version), name);
        }
    }
}
