//! NVIDIA's GPUs: those of sysfs, with what the driver says of them.

use std::collections::BTreeMap;

use super::facts::{GpuFact, GpuFacts, NvLinkEnd};
use super::{Known, Vendor};
use crate::detect::files::Warnings;
use crate::detect::pci::Functions;
use crate::machine::{BusId, Gpu, GpuLink, GpuLinkKind};

/// PCI classes of what links lead to: a GPU, an NVSwitch, and, as NCCL has it, a processor's end of NVLinks.
const GPU_CLASS: u32 = 0x03_02_00;
const SWITCH_CLASS: u32 = 0x06_80_00;
const PROCESSOR_CLASS: u32 = 0x06_80_01;

/// The GPUs in the order of the driver's numbers. If the driver answered, they are those that it named; else
/// all that sysfs has, in the order of their bus ids, as the driver would number them.
pub(super) fn read(
    warnings: &Warnings,
    functions: &Functions,
    in_sysfs: &[BusId],
    facts: &GpuFacts,
) -> Vec<(Known, Gpu)> {
    let known = |bus_id, uuid| Known { bus_id, vendor: Vendor::Nvidia, uuid };
    if let Some(failure) = &facts.failure {
        if let [first, ..] = in_sysfs {
            let message = format!(
                "{} GPUs of NVIDIA, but the driver tells nothing of them ({failure}): their kind and \
                 their NVLinks are unknown",
                in_sysfs.len()
            );
            warnings.add(first, message);
        }
        return in_sysfs.iter().map(|&id| (known(id, String::new()), Gpu::default())).collect();
    }
    for bus_id in in_sysfs.iter().filter(|id| !facts.gpus.iter().any(|gpu| gpu.bus_id == **id)) {
        let message = "a GPU that the driver does not let this process use: left out";
        warnings.add(bus_id, message);
    }
    for gpu in facts.gpus.iter().filter(|gpu| !in_sysfs.contains(&gpu.bus_id)) {
        warnings.add(
            gpu.bus_id,
            "a GPU that is not among the PCI functions: where it hangs is unknown",
        );
    }
    let gpu = |fact: &GpuFact| {
        (known(fact.bus_id, fact.uuid.clone()), gpu(warnings, functions, fact, facts))
    };
    facts.gpus.iter().map(gpu).collect()
}

fn gpu(warnings: &Warnings, functions: &Functions, fact: &GpuFact, facts: &GpuFacts) -> Gpu {
    for other in &fact.unreachable {
        let message = format!("it cannot reach the memory of {} ({})", other.bus_id, other.reason);
        warnings.add(fact.bus_id, message);
    }
    let mut links = nvlinks(warnings, functions, fact, facts);
    links.extend(fact.c2c.map(|c2c| GpuLink {
        kind: GpuLinkKind::C2c,
        target: None,
        target_class: 0,
        count: c2c.count,
        bandwidth_bytes_per_s: c2c.bandwidth_bytes_per_s,
    }));
    Gpu {
        name: fact.name.clone(),
        compute_capability: fact.compute_capability,
        memory_bytes: fact.memory_bytes,
        links,
        ..Gpu::default()
    }
}

/// Links to the same device are one bundle, in the order of the devices.
fn nvlinks(
    warnings: &Warnings,
    functions: &Functions,
    fact: &GpuFact,
    facts: &GpuFacts,
) -> Vec<GpuLink> {
    let mut bundles: BTreeMap<(BusId, u32), u32> = BTreeMap::new();
    let is_linked = fact.nvlinks.iter().any(|link| link.is_active);
    for link in &fact.nvlinks {
        let number = link.link;
        match link.remote {
            // All links of a GPU that is not connected to anything are down.
            _ if !link.is_active => {
                if is_linked {
                    warnings.add(fact.bus_id, format!("NVLink {number} is down"));
                }
            }
            Some(target) => {
                let class = class(functions, target, link.end, facts);
                *bundles.entry((target, class)).or_default() += 1;
            }
            None => {
                let message = format!("what NVLink {number} leads to is unknown: it is left out");
                warnings.add(fact.bus_id, message);
            }
        }
    }
    let link = |((target, target_class), count)| GpuLink {
        kind: GpuLinkKind::NvLink,
        target: Some(target),
        target_class,
        count,
        bandwidth_bytes_per_s: None,
    };
    bundles.into_iter().map(link).collect()
}

/// The class of what a link leads to: by sysfs if it is there, else by what the driver says.
fn class(functions: &Functions, target: BusId, end: NvLinkEnd, facts: &GpuFacts) -> u32 {
    let is_gpu = facts.gpus.iter().any(|gpu| gpu.bus_id == target);
    match (end, functions.get(target)) {
        (NvLinkEnd::Processor, _) => PROCESSOR_CLASS,
        (_, Some(function)) if function.class != 0 => function.class,
        (NvLinkEnd::Switch, _) => SWITCH_CLASS,
        (NvLinkEnd::Gpu, _) => GPU_CLASS,
        (NvLinkEnd::Unknown, _) if is_gpu => GPU_CLASS,
        (NvLinkEnd::Unknown, _) => 0,
    }
}
