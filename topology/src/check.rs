//! Findings about a machine: what makes it slower than it could be, and what to do about it.

mod bottleneck;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    Graph, LinkLayer, Machine, NodeId, PathClass, PciDevice, PcieLink, PlacedDevice, PlacedPort,
    PortState, figures,
};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; it may be meant so.
    Note,
    /// Slower than it could be.
    Warning,
    /// Something does not work.
    Failure,
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    #[allow(missing_docs)]
    pub severity: Severity,
    /// The device or devices.
    pub subject: String,
    /// What is seen.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// Looks for devices at reduced speed or width, bottlenecks above them, ports that are down or slow, hosts
/// whose parts are unequal, missing links of GPUs, links that halve the rings of all GPUs, and virtual machines
/// that hide how they are wired. The worst come first.
///
/// The rings are sought once, and once more if a link may be such a one: see [`rings`](crate::search::rings) for how
/// long that takes.
pub fn check(machine: &Machine, graph: &Graph) -> Vec<Finding> {
    let mut found = Vec::new();
    reduced_links(machine, &mut found);
    narrow_bridges(machine, &mut found);
    ports(machine, &mut found);
    unequal_gpu_links(machine, &mut found);
    unequal_halves(machine, &mut found);
    far_ports(graph, &mut found);
    bottleneck::find(graph, &mut found);
    hidden_switches(machine, &mut found);
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found
}

fn add(
    found: &mut Vec<Finding>,
    severity: Severity,
    subject: impl Into<String>,
    message: impl Into<String>,
    remedy: impl Into<String>,
) {
    let (subject, message, remedy) = (subject.into(), message.into(), remedy.into());
    found.push(Finding { severity, subject, message, remedy });
}

/// `GPU3 (0000:2d:00.0)`, `card 0000:0c:00.0 (mlx5_0, mlx5_1)`, `bridge 0000:08:00.0`.
fn name(device: &PciDevice) -> String {
    if let Some(gpu) = &device.gpu {
        return format!("GPU{} ({})", gpu.index, device.bus_id);
    }
    let Some(nic) = &device.nic else { return format!("bridge {}", device.bus_id) };
    let ports: Vec<&str> = nic.ports.iter().map(|port| port.name.as_str()).collect();
    format!("card {} ({})", device.bus_id, ports.join(", "))
}

fn is_end(device: &PciDevice) -> bool {
    device.gpu.is_some() || device.nic.is_some()
}

fn has_end_below(device: &PciDevice) -> bool {
    device.children.iter().any(|child| is_end(child) || has_end_below(child))
}

/// A link below what the device could have.
fn reduced_links(machine: &Machine, found: &mut Vec<Finding>) {
    for placed in machine.devices() {
        let device = placed.device;
        let (Some(now), Some(possible)) = (device.link, device.possible_link) else { continue };
        if !(is_end(device) || has_end_below(device)) {
            continue;
        }
        if now.width > 0 && now.width < possible.width {
            let message = format!("PCIe x{} of x{}", now.width, possible.width);
            let remedy = "reseat it; see that its slot, riser and BIOS setting (bifurcation) give \
                          it all lanes";
            add(found, Severity::Warning, name(device), message, remedy);
        }
        let speed = now.gigatransfers_per_s;
        if speed > 0.0 && speed < possible.gigatransfers_per_s {
            let message = format!("PCIe at {speed} of {} GT/s", possible.gigatransfers_per_s);
            // GPUs, and with them the bridges above, save power while they idle.
            let (severity, remedy) = match device.nic.is_some() {
                true => (
                    Severity::Warning,
                    "see that its slot, riser and BIOS setting (link speed) allow the full speed",
                ),
                false => (
                    Severity::Note,
                    "usual while a GPU is idle: look again under load; if it stays, see to its \
                     slot, riser and BIOS setting (link speed)",
                ),
            };
            add(found, severity, name(device), message, remedy);
        }
    }
}

/// A bridge whose link upwards is narrower than a single device's below it.
fn narrow_bridges(machine: &Machine, found: &mut Vec<Finding>) {
    let mut below: BTreeMap<usize, (PlacedDevice, f64, Vec<String>)> = BTreeMap::new();
    for placed in machine.devices().into_iter().filter(|placed| is_end(placed.device)) {
        let Some(own) = bytes_per_s(placed.device.link) else { continue };
        let narrower = placed.above.iter().enumerate().filter_map(|(depth, bridge)| {
            Some((depth, *bridge, bytes_per_s(bridge.link).filter(|&width| width < own)?))
        });
        let Some((depth, bridge, width)) = narrower.min_by(|a, b| a.2.total_cmp(&b.2)) else {
            continue;
        };
        // By address: bridges of virtual machines need not have unique bus ids.
        let key = std::ptr::from_ref(bridge) as usize;
        let place = || PlacedDevice {
            numa: placed.numa,
            above: placed.above[..depth].to_vec(),
            device: bridge,
        };
        let entry = below.entry(key).or_insert_with(|| (place(), width, Vec::new()));
        entry.2.push(format!("{} {:.1}", name(placed.device), own / 1e9));
    }
    let mut narrow: Vec<_> = below.into_values().collect();
    narrow.sort_by_key(|(placed, ..)| (placed.numa, placed.device.bus_id));
    for (placed, width, devices) in narrow {
        let link = placed.device.link.map_or(String::new(), |link| link.to_string());
        let message = format!(
            "its link upwards, {link}, has {:.1} GB/s; below it could use more: {} GB/s",
            width / 1e9,
            devices.join(", ")
        );
        let remedy = "only traffic through the processor suffers; look again under load, and see to \
                      the switch's slot, cable and firmware";
        add(found, Severity::Warning, name(placed.device), message, remedy);
    }
}

fn bytes_per_s(link: Option<PcieLink>) -> Option<f64> {
    let known = link.filter(|link| link.gigatransfers_per_s > 0.0 && link.width > 0);
    known.map(figures::pcie_bytes_per_s)
}

fn ports(machine: &Machine, found: &mut Vec<Finding>) {
    for placed in machine.ports() {
        let port = placed.port;
        let subject = format!("port {}", port.name);
        if port.state == PortState::Down {
            // Servers have more Ethernet ports than cables; what speaks RDMA was bought to be used.
            let is_plain =
                port.link_layer == LinkLayer::Ethernet && port.port == 0 && port.partner.is_empty();
            let severity = if is_plain { Severity::Note } else { Severity::Failure };
            let message = "down: no traffic can use it";
            let remedy = "see to its cable and the switch's port; for InfiniBand that a subnet \
                          manager runs; for Ethernet: ip link set dev NAME up";
            add(found, severity, subject, message, remedy);
            continue;
        }
        let Some(now) = port.speed_mbit_per_s else { continue };
        let gigabits = |megabits: u64| megabits as f64 / 1e3;
        let message = match (port.possible_speed_mbit_per_s, speed_of_its_kind(machine, &placed)) {
            (Some(possible), _) if now < possible => {
                format!("{} of {} Gbit/s", gigabits(now), gigabits(possible))
            }
            (_, Some(others)) if now < others => {
                let (now, others) = (gigabits(now), gigabits(others));
                format!("{now} Gbit/s; others of its kind have {others}")
            }
            _ => continue,
        };
        let remedy = "see to its cable and the setting of the switch's port; a cable that has \
                      lost lanes gives a half or a quarter";
        add(found, Severity::Warning, subject, message, remedy);
    }
}

/// The highest speed of the InfiniBand ports that are up on cards of the same make as a port's. Ethernet ports are
/// often slower by intent, for management or storage.
fn speed_of_its_kind(machine: &Machine, placed: &PlacedPort) -> Option<u64> {
    let make = |placed: &PlacedPort| {
        let device = placed.card.as_ref()?.device;
        let is_known = device.vendor != 0 && placed.port.link_layer == LinkLayer::InfiniBand;
        is_known.then_some((device.vendor, device.device))
    };
    let own = make(placed)?;
    let is_alike =
        |other: &PlacedPort| other.port.state != PortState::Down && make(other) == Some(own);
    machine.ports().iter().filter(|p| is_alike(p)).filter_map(|p| p.port.speed_mbit_per_s).max()
}

/// GPUs with fewer links than others of the same name.
fn unequal_gpu_links(machine: &Machine, found: &mut Vec<Finding>) {
    let gpus = machine.gpus();
    let links = |gpu: &crate::Gpu| gpu.links.iter().map(|link| u64::from(link.count)).sum::<u64>();
    for placed in &gpus {
        let alike = gpus.iter().filter(|other| other.gpu.name == placed.gpu.name);
        let most = alike.map(|other| links(other.gpu)).max().unwrap_or(0);
        let own = links(placed.gpu);
        if own < most {
            let message = format!("{own} links with GPUs or switches; others have {most}");
            let remedy = "nvidia-smi nvlink --status, or rocm-smi --showtopo: see which are down; \
                          reset the GPUs or start the fabric manager";
            add(found, Severity::Warning, name(placed.place.device), message, remedy);
        }
    }
}

/// NUMA nodes, and bridges below them, with unequal numbers of GPUs or ports.
fn unequal_halves(machine: &Machine, found: &mut Vec<Finding>) {
    type Counts = [usize; 2];
    fn count(device: &PciDevice) -> Counts {
        let ports = device.nic.as_ref().map_or(0, |nic| nic.ports.len());
        let own = [usize::from(device.gpu.is_some()), ports];
        device.children.iter().map(count).fold(own, |a, b| [a[0] + b[0], a[1] + b[1]])
    }
    let mut by_node = Vec::new();
    let mut by_bridge = Vec::new();
    for node in &machine.numa_nodes {
        let virtual_ports = node.nics.iter().map(|nic| nic.ports.len()).sum();
        let counts = node.devices.iter().map(count);
        let counts = counts.fold([0, virtual_ports], |a, b| [a[0] + b[0], a[1] + b[1]]);
        let name = node.id.map_or("NUMA?".into(), |id| format!("NUMA{id}"));
        by_node.push((name, counts));
        let bridges = node.devices.iter().filter(|device| !is_end(device));
        by_bridge.extend(bridges.map(|device| (device.bus_id.to_string(), count(device))));
    }
    // Bridges with a single thing below them are no parts of a machine.
    by_bridge.retain(|(_, [gpus, ports])| gpus + ports > 1);
    let remedy = "rings and rails lose where parts are unequal: see whether devices are missing or \
                  could be moved to other slots";
    for (what, parts) in [("NUMA nodes", by_node), ("PCIe switches", by_bridge)] {
        for (kind, name) in [(0, "GPUs"), (1, "ports")] {
            // Parts without a GPU are no halves: a node for cards alone is usual.
            let halves: Vec<_> = parts.iter().filter(|(_, counts)| counts[0] > 0).collect();
            let numbers: BTreeSet<_> = halves.iter().map(|(_, counts)| counts[kind]).collect();
            if numbers.len() > 1 {
                let texts: Vec<_> = halves
                    .iter()
                    .map(|(part, counts)| format!("{part} {}", counts[kind]))
                    .collect();
                let message = format!("unequal numbers of {name}: {}", texts.join(", "));
                add(found, Severity::Note, what, message, remedy);
            }
        }
    }
}

/// GPUs without a port on their own PCIe tree while others have one.
fn far_ports(graph: &Graph, found: &mut Vec<Finding>) {
    let near = |gpu: &NodeId| {
        let ports = graph.nearest_ports(*gpu);
        ports.first().is_some_and(|&port| graph.path_class(*gpu, port) <= PathClass::Pxb)
    };
    let (with, without): (Vec<_>, Vec<_>) = graph.gpus().into_iter().partition(near);
    if with.is_empty() {
        return;
    }
    for gpu in without {
        let class = graph.nearest_ports(gpu).first().map(|&port| graph.path_class(gpu, port));
        let class = class.unwrap_or(PathClass::Dis).name();
        let message = format!(
            "its nearest port is {class}, through a processor; {} other GPUs have one on their own \
             switch",
            with.len()
        );
        let remedy = "move a card to its switch; if one is there, see whether its port is down or \
                      its driver missing";
        add(found, Severity::Warning, graph.node(gpu).name.clone(), message, remedy);
    }
}

/// In virtual machines devices sit side by side on a root bus that the hardware does not have.
fn hidden_switches(machine: &Machine, found: &mut Vec<Finding>) {
    let remedy = "give the machine's real wiring as a file: providers publish one for NCCL \
                  (NCCL_TOPO_FILE) with their images; --xml FILE reads it";
    let gpus = machine.gpus();
    let flat = gpus.iter().filter(|gpu| {
        // A GPU in a slot is behind a root port, and so on a bus of its own.
        gpu.place.above.is_empty() && gpu.place.device.bus_id.bus == 0
    });
    if gpus.len() > 1 && flat.count() == gpus.len() {
        let message = "all GPUs are on root buses without any bridge, as a virtual machine shows \
                       them: which of them share switches is hidden";
        add(found, Severity::Warning, "PCIe", message, remedy);
    }
    let homeless = |numa: usize| machine.numa_nodes[numa].id.is_none();
    let ends = machine.devices().into_iter().filter(|placed| is_end(placed.device));
    let lost: Vec<String> =
        ends.filter(|placed| homeless(placed.numa)).map(|placed| name(placed.device)).collect();
    if lost.len() > 1 {
        let message = format!("NUMA node unknown (-1) of {}", lost.join(", "));
        add(found, Severity::Warning, "NUMA", message, remedy);
    }
}

#[cfg(test)]
mod tests;
