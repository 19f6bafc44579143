//! GPUs: which PCI functions are some, and what their drivers say of them.

mod amd;
pub(super) mod facts;
mod nvidia;
mod nvml;

use std::collections::{BTreeMap, BTreeSet};

use super::files::Files;
use super::pci::{Function, Functions};
use crate::machine::{BusId, Gpu};
use facts::GpuFacts;

const NVIDIA: u16 = 0x10de;
const AMD: u16 = 0x1002;
const INTEL: u16 = 0x8086;

/// PCI classes (without the last byte, the programming interface): a display that is a VGA one, a 3D one or
/// another one, and an accelerator.
const VGA: u32 = 0x0300;
const THREE_D: u32 = 0x0302;
const OTHER_DISPLAY: u32 = 0x0380;
const ACCELERATOR: u32 = 0x1200;

/// What is known of a GPU beside the machine's hierarchy: by this, visible devices are named.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub bus_id: BusId,
    pub vendor: Vendor,
    /// `GPU-` and hexadecimal digits; empty if unknown.
    pub uuid: String,
}

/// Whose variables say which GPUs are visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Vendor {
    Nvidia,
    Amd,
    Other,
}

/// All GPUs that may be used, in the order of their numbers: NVIDIA's in that of their driver, then
/// AMD's, then others.
pub(super) fn read(
    sysfs: &Files,
    procfs: &Files,
    functions: &Functions,
    facts: &GpuFacts,
) -> (BTreeMap<BusId, Gpu>, Vec<Known>) {
    let mut found: BTreeMap<Vendor, Vec<BusId>> = BTreeMap::new();
    for function in functions.iter() {
        if let Some(vendor) = vendor(function, procfs) {
            found.entry(vendor).or_default().push(function.bus_id);
        }
    }
    let of = |vendor| found.get(&vendor).map(Vec::as_slice).unwrap_or_default();
    let mut all = nvidia::read(sysfs.warnings, functions, of(Vendor::Nvidia), facts);
    all.extend(amd::read(sysfs, of(Vendor::Amd)));
    let other =
        |&bus_id| (Known { bus_id, vendor: Vendor::Other, uuid: String::new() }, Gpu::default());
    all.extend(of(Vendor::Other).iter().map(other));
    let mut seen = BTreeSet::new();
    all.retain(|(known, _)| {
        let is_new = seen.insert(known.bus_id);
        if !is_new {
            let message = "a driver has it in several parts: only the first is used";
            sysfs.warnings.add(known.bus_id, message);
        }
        is_new
    });
    let mut gpus = BTreeMap::new();
    for (index, (known, gpu)) in all.iter_mut().enumerate() {
        gpu.index = index as u32;
        gpus.insert(known.bus_id, std::mem::take(gpu));
    }
    (gpus, all.into_iter().map(|(known, _)| known).collect())
}

/// Whose GPU a function is, if it is one. A display of a server's management controller is none, nor is
/// one that Intel builds into a processor.
fn vendor(function: &Function, procfs: &Files) -> Option<Vendor> {
    // In recorded trees the vendor may be missing.
    let named = || procfs.folder(&format!("driver/nvidia/gpus/{}", function.bus_id)).is_some();
    match (function.vendor, function.class >> 8) {
        (NVIDIA, VGA | THREE_D | OTHER_DISPLAY | ACCELERATOR) => Some(Vendor::Nvidia),
        (0, VGA | THREE_D) if named() => Some(Vendor::Nvidia),
        (AMD, VGA | THREE_D | OTHER_DISPLAY | ACCELERATOR) => Some(Vendor::Amd),
        (INTEL, OTHER_DISPLAY) => Some(Vendor::Other),
        _ => None,
    }
}
