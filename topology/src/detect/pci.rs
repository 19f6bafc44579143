//! PCI functions, and the tree in which those that matter hang, from `/sys/bus/pci/devices` or, without
//! that, from `/sys/devices/pci*`.
//!
//! The kernel shows a switch as one bridge above (its upstream port) and one for each device below, and
//! each slot of the host bridge as a bridge too (the root port). Here a switch is one node, its upstream port,
//! and root ports are none, as in NCCL's files: each node's link is the one to what is above it, and
//! the number of nodes between two devices is the number of switches. Ports alternate from the root
//! downwards, so those at even depths below a root are the upstream ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::cpu_list;
use super::files::{Files, Folder};
use crate::machine::{BusId, CpuSet, Gpu, Nic, NumaNode, PciDevice, PcieLink};

/// All functions that the kernel has found.
pub(super) struct Functions<'f>(BTreeMap<BusId, Function<'f>>);

/// One function.
pub(super) struct Function<'f> {
    pub bus_id: BusId,
    pub folder: Folder<'f>,
    /// 24 bits; 0 if unknown.
    pub class: u32,
    /// 0 if unknown.
    pub vendor: u16,
    /// The functions above it, the root port first.
    above: Vec<BusId>,
}

impl<'f> Functions<'f> {
    pub fn read(sysfs: &'f Files) -> Functions<'f> {
        let folders: Vec<_> = match sysfs.folder("bus/pci/devices") {
            Some(all) => all.names().iter().filter_map(|name| function(&all, name)).collect(),
            None => sysfs.folder("devices").map(walk).unwrap_or_default(),
        };
        let entry = |(bus_id, folder): (BusId, Folder<'f>)| {
            let above = above(folder.path());
            let class = folder.hexadecimal("class").unwrap_or(0) as u32;
            let vendor = folder.hexadecimal("vendor").unwrap_or(0) as u16;
            (bus_id, Function { bus_id, class, vendor, above, folder })
        };
        Functions(folders.into_iter().map(entry).collect())
    }

    /// In the order of their bus ids.
    pub fn iter(&self) -> impl Iterator<Item = &Function<'f>> {
        self.0.values()
    }

    pub fn get(&self, bus_id: BusId) -> Option<&Function<'f>> {
        self.0.get(&bus_id)
    }

    /// The functions above one, the root port first; none if it is unknown.
    fn above(&self, bus_id: BusId) -> &[BusId] {
        self.get(bus_id).map_or(&[], |function| &function.above)
    }
}

/// The last PCI function on a path below `devices`.
pub(super) fn owner(path: &Path) -> Option<BusId> {
    let mut parts = path.components().rev().filter_map(|part| part.as_os_str().to_str());
    parts.find_map(|part| part.parse().ok())
}

fn function<'f>(folder: &Folder<'f>, name: &str) -> Option<(BusId, Folder<'f>)> {
    let bus_id = name.parse().ok()?;
    let found = folder.folder(name);
    if found.is_none() {
        folder.files.warnings.add(bus_id, "its folder in sysfs is missing: left out");
    }
    Some((bus_id, found?))
}

/// Roots (`pci0000:00`) and functions, at any depth below folders of such names. Links may lead back up.
fn walk<'f>(top: Folder<'f>) -> Vec<(BusId, Folder<'f>)> {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    let mut pending = vec![top];
    while let Some(folder) = pending.pop() {
        for name in folder.names() {
            let bus_id = name.parse::<BusId>().ok();
            if bus_id.is_none() && !is_root(&name) {
                continue;
            }
            if let Some(below) = folder.folder(&name)
                && seen.insert(below.path().to_owned())
            {
                found.extend(bus_id.map(|bus_id| (bus_id, below.clone())));
                pending.push(below);
            }
        }
    }
    found
}

/// Whether a folder is a host bridge, `pci0000:00`.
fn is_root(name: &str) -> bool {
    name.strip_prefix("pci").is_some_and(|rest| rest.split(':').count() == 2)
}

/// A host bridge in a function (of Intel's volume management) starts anew.
fn above(path: &Path) -> Vec<BusId> {
    let mut above = Vec::new();
    for part in path.components().filter_map(|part| part.as_os_str().to_str()) {
        match part.parse() {
            Ok(bus_id) => above.push(bus_id),
            Err(_) if is_root(part) => above.clear(),
            Err(_) => {}
        }
    }
    above.pop();
    above
}

/// What a function is for us.
#[derive(Debug, Default)]
pub(super) struct Use {
    pub gpu: Option<Gpu>,
    pub nic: Option<Nic>,
}

/// Hangs functions with the switches above them below their NUMA nodes.
pub(super) fn plant(functions: &Functions, uses: BTreeMap<BusId, Use>, nodes: &mut [NumaNode]) {
    let mut roots = Vec::new();
    for (bus_id, used) in uses {
        let mut devices = &mut roots;
        for &switch in functions.above(bus_id).iter().skip(1).step_by(2) {
            devices = &mut entry(functions, devices, switch).children;
        }
        let device = entry(functions, devices, bus_id);
        (device.gpu, device.nic) = (used.gpu, used.nic);
    }
    for device in roots {
        let place = numa_node(functions, &device, nodes);
        nodes[place].devices.push(device);
    }
}

/// The device of that id among its siblings, which are in the order of their ids.
fn entry<'d>(
    functions: &Functions,
    devices: &'d mut Vec<PciDevice>,
    bus_id: BusId,
) -> &'d mut PciDevice {
    let place = devices.binary_search_by_key(&bus_id, |device| device.bus_id);
    let place = place.unwrap_or_else(|place| {
        devices.insert(place, describe(functions, bus_id));
        place
    });
    &mut devices[place]
}

fn describe(functions: &Functions, bus_id: BusId) -> PciDevice {
    let Some(Function { folder, class, vendor, .. }) = functions.get(bus_id) else {
        return PciDevice { bus_id, ..PciDevice::default() };
    };
    let id = |name| folder.hexadecimal(name).unwrap_or(0) as u16;
    // A virtual function has no link of its own.
    let linked = folder.folder("physfn").unwrap_or_else(|| folder.clone());
    PciDevice {
        bus_id,
        class: *class,
        vendor: *vendor,
        device: id("device"),
        subsystem_vendor: id("subsystem_vendor"),
        subsystem_device: id("subsystem_device"),
        link: link(&linked, bus_id, "current"),
        possible_link: link(&linked, bus_id, "max"),
        ..PciDevice::default()
    }
}

/// From `16.0 GT/s PCIe` (`16 GT/s` up to Linux 5.6) and a number of lanes. One that is unknown is 0.
fn link(folder: &Folder, bus_id: BusId, which: &str) -> Option<PcieLink> {
    const SPEEDS: [f64; 7] = [2.5, 5.0, 8.0, 16.0, 32.0, 64.0, 128.0];
    const WIDTHS: [u32; 7] = [1, 2, 4, 8, 12, 16, 32];
    let speed = folder.text(&format!("{which}_link_speed"));
    let width = folder.text(&format!("{which}_link_width"));
    if (&speed, &width) == (&None, &None) {
        return None;
    }
    let (speed, width) = (speed.unwrap_or_default(), width.unwrap_or_default());
    let number = speed.split_whitespace().next().and_then(|word| word.parse().ok());
    let known_speed = number.filter(|number| SPEEDS.contains(number));
    let known_width = width.parse().ok().filter(|lanes| WIDTHS.contains(lanes));
    if known_speed.is_none() || known_width.is_none() {
        let message = format!(
            "{which} PCIe link of speed {speed:?} and width {width:?}: what makes no sense is taken as \
             unknown"
        );
        folder.files.warnings.add(bus_id, message);
    }
    if (known_speed, known_width) == (None, None) {
        return None;
    }
    let (gigatransfers_per_s, width) = (known_speed.unwrap_or(0.0), known_width.unwrap_or(0));
    Some(PcieLink { gigatransfers_per_s, width })
}

/// The place in `nodes` of the node that a device next to the root belongs to: as the kernel says of it,
/// of what is below it, or of the ports above it; else the one with the processors that the kernel calls
/// local; else the first with processors, and a warning.
fn numa_node(functions: &Functions, device: &PciDevice, nodes: &[NumaNode]) -> usize {
    let mut kin = vec![device.bus_id];
    below(device, &mut kin);
    kin.extend(functions.above(device.bus_id).iter().rev());
    let folders = || kin.iter().filter_map(|id| Some(&functions.get(*id)?.folder));
    let with_cpus = |node: &NumaNode| !node.cpus.is_empty();
    let first = nodes.iter().position(with_cpus).unwrap_or(0);
    let by_number = folders().find_map(|folder| {
        let number: u32 = folder.number("numa_node")?;
        nodes.iter().position(|node| node.id == Some(number))
    });
    let by_cpus = || folders().find_map(|folder| node_of(&local_cpus(folder)?, nodes));
    by_number.or_else(by_cpus).unwrap_or_else(|| {
        if nodes.iter().filter(|node| with_cpus(node)).count() > 1 {
            let place = nodes[first].id.map_or("the first".into(), |id| id.to_string());
            let message = format!("its NUMA node is unknown (-1): taken to be at node {place}");
            let warnings = functions.get(device.bus_id).map(|found| found.folder.files.warnings);
            warnings.into_iter().for_each(|warnings| warnings.add(device.bus_id, &message));
        }
        first
    })
}

fn below(device: &PciDevice, found: &mut Vec<BusId>) {
    for child in &device.children {
        found.push(child.bus_id);
        below(child, found);
    }
}

fn local_cpus(folder: &Folder) -> Option<CpuSet> {
    let list = folder.text("local_cpulist").and_then(|text| cpu_list::list(&text));
    list.or_else(|| cpu_list::mask(&folder.text("local_cpus")?))
}

/// The one node that all these processors, as far as they are online, belong to.
fn node_of(cpus: &CpuSet, nodes: &[NumaNode]) -> Option<usize> {
    let shares = |(_, node): &(usize, &NumaNode)| !cpu_list::common(cpus, &node.cpus).is_empty();
    let mut sharing = nodes.iter().enumerate().filter(shares);
    let (place, _) = sharing.next()?;
    sharing.next().is_none().then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_above_are_the_parts_of_the_path() {
        let above_of =
            |path| -> Vec<String> { above(Path::new(path)).iter().map(BusId::to_string).collect() };
        assert_eq!(above_of("devices/pci0000:00/0000:00:01.0"), [""; 0]);
        let switch = "devices/pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:04.0/0000:03:00.0";
        assert_eq!(above_of(switch), ["0000:00:01.0", "0000:01:00.0", "0000:02:04.0"]);
        let volumes = "devices/pci0000:5d/0000:5d:05.5/pci10000:00/10000:00:02.0/10000:01:00.0";
        assert_eq!(above_of(volumes), ["10000:00:02.0"]);
        assert_eq!(above_of("bus/pci/devices/0004:05:00.0"), [""; 0]);
    }

    #[test]
    fn a_path_belongs_to_its_last_function() {
        let owner = |path| owner(Path::new(path)).map(|id| id.to_string());
        let virtio = "devices/pci0000:00/0000:00:03.0/virtio2";
        assert_eq!(owner(virtio).as_deref(), Some("0000:00:03.0"));
        assert_eq!(owner("devices/virtual/net/lo"), None);
    }
}
