//! Asks NVIDIA's driver through its management library, which is opened when the program runs.
//!
//! The crate's `remote_device_type` (0.13.0) always answers "unknown": it drops what the library writes. What
//! is at the other end of a link is therefore told from its PCI address and identifier.

use nvml_wrapper::enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::PciInfo;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::{
    NVML_FI_DEV_C2C_LINK_COUNT, NVML_FI_DEV_C2C_LINK_GET_MAX_BW,
};
use nvml_wrapper::{Device, Nvml};

use super::facts::{C2cFact, GpuFact, GpuFacts, NvLinkEnd, NvLinkFact, Unreachable};
use crate::machine::BusId;

/// As `NVML_NVLINK_MAX_LINKS`.
const MOST_LINKS: u32 = 18;

/// `pciDeviceId` has the vendor in its lower half. The switches are NVSwitches of V100, of A100 and of H100
/// systems (pci.ids).
const NVIDIA: u32 = 0x10de;
const IBM: u32 = 0x1014;
const SWITCHES: [u32; 3] = [0x1ac2, 0x1af1, 0x22a3];

/// The domain, bus and device of what is nowhere, as inside a virtual machine.
const NOWHERE: BusId = BusId { domain: 0x0fff_ffff, bus: 0xff, device: 0xff, function: 0 };

/// Asks for everything, or says why it cannot.
pub(super) fn ask() -> Result<GpuFacts, String> {
    let nvml = Nvml::init().map_err(|error| reason(&error))?;
    let count = nvml.device_count().map_err(|error| reason(&error))?;
    // GPUs that this process has no leave for are not the driver's to number.
    let devices: Vec<(Device, BusId)> = (0..count)
        .filter_map(|index| {
            let device = nvml.device_by_index(index).ok()?;
            let place = bus_id(&device.pci_info().ok()?)?;
            Some((device, place))
        })
        .collect();
    let all: Vec<BusId> = devices.iter().map(|(_, bus_id)| *bus_id).collect();
    let gpu = |(device, place): &(Device, BusId)| GpuFact {
        bus_id: *place,
        uuid: device.uuid().unwrap_or_default(),
        name: device.name().unwrap_or_default(),
        compute_capability: compute_capability(device),
        memory_bytes: device.memory_info().ok().map(|memory| memory.total),
        nvlinks: nvlinks(device, &all),
        c2c: c2c(device),
        unreachable: unreachable(device, &devices),
    };
    let gpus = devices.iter().map(gpu).collect();
    Ok(GpuFacts { failure: None, gpus })
}

fn reason(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(error) => format!("libnvidia-ml.so.1 cannot be opened: {error}"),
        error => format!("NVIDIA's driver says: {error}"),
    }
}

fn bus_id(info: &PciInfo) -> Option<BusId> {
    info.bus_id.parse().ok().or_else(|| {
        let fits = info.bus <= 0xff && info.device <= 0x1f;
        let (bus, device) = (info.bus as u8, info.device as u8);
        fits.then_some(BusId { domain: info.domain, bus, device, function: 0 })
    })
}

fn compute_capability(device: &Device) -> Option<u32> {
    let capability = device.cuda_compute_capability().ok()?;
    u32::try_from(capability.major * 10 + capability.minor).ok()
}

fn nvlinks(device: &Device, gpus: &[BusId]) -> Vec<NvLinkFact> {
    let fact = |link| {
        let nvlink = device.link_wrapper_for(link);
        // A GPU without this link says that it is not supported, or that the number is none.
        let is_active = nvlink.is_active().ok()?;
        let version = nvlink.version().ok();
        let (remote, end) = match nvlink.remote_pci_info() {
            Ok(info) if is_active => other_end(&info, gpus),
            _ => (None, NvLinkEnd::Unknown),
        };
        Some(NvLinkFact { link, is_active, version, remote, end })
    };
    (0..MOST_LINKS).filter_map(fact).collect()
}

fn other_end(info: &PciInfo, gpus: &[BusId]) -> (Option<BusId>, NvLinkEnd) {
    if is_nowhere(&info.bus_id) {
        return (Some(NOWHERE), NvLinkEnd::Switch);
    }
    let Some(place) = bus_id(info) else {
        return (None, NvLinkEnd::Unknown);
    };
    let (vendor, device) = (info.pci_device_id & 0xffff, info.pci_device_id >> 16);
    let end = match vendor {
        _ if gpus.contains(&place) => NvLinkEnd::Gpu,
        IBM => NvLinkEnd::Processor,
        NVIDIA if SWITCHES.contains(&device) => NvLinkEnd::Switch,
        _ => NvLinkEnd::Unknown,
    };
    (Some(place), end)
}

/// Whether domain, bus and device are all ones, of whatever length.
fn is_nowhere(bus_id: &str) -> bool {
    let place = bus_id.split('.').next().unwrap_or(bus_id).trim_start_matches('0');
    let mut digits = place.chars().filter(|c| *c != ':');
    place.len() >= 7 && digits.all(|digit| digit.eq_ignore_ascii_case(&'f'))
}

/// The library gives the bandwidth of the first link, in megabytes (10^6) a second; all are alike.
fn c2c(device: &Device) -> Option<C2cFact> {
    let field = |id| {
        let values = device.field_values_for(&[FieldId(id)]).ok()?;
        match values.into_iter().next()?.ok()?.value.ok()? {
            SampleValue::U32(value) => Some(u64::from(value)),
            SampleValue::U64(value) => Some(value),
            SampleValue::I64(_) | SampleValue::F64(_) => None,
        }
    };
    let count = field(NVML_FI_DEV_C2C_LINK_COUNT).filter(|count| (1..=64).contains(count))? as u32;
    let megabytes_per_s = field(NVML_FI_DEV_C2C_LINK_GET_MAX_BW).filter(|bandwidth| *bandwidth > 0);
    let bandwidth_bytes_per_s = megabytes_per_s.map(|megabytes| megabytes as f64 * 1e6);
    Some(C2cFact { count, bandwidth_bytes_per_s })
}

fn unreachable(device: &Device, all: &[(Device, BusId)]) -> Vec<Unreachable> {
    let own = device.pci_info().ok().and_then(|info| bus_id(&info));
    let check = |(other, place): &(Device, BusId)| {
        if own == Some(*place) {
            return None;
        }
        match device.p2p_status(other, P2pCapabilitiesIndex::Read).ok()? {
            P2pStatus::Ok | P2pStatus::Unknown => None,
            status => Some(Unreachable { bus_id: *place, reason: format!("{status:?}") }),
        }
    };
    all.iter().filter_map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(bus_id: &str, bus: u32, pci_device_id: u32) -> PciInfo {
        let bus_id = bus_id.to_owned();
        PciInfo { bus, bus_id, device: 0, domain: 0, pci_device_id, pci_sub_system_id: None }
    }

    #[test]
    fn the_other_end_is_told_from_its_address() {
        let gpu: BusId = "0000:1b:00.0".parse().unwrap();
        let end = |text: &str, id| other_end(&info(text, 0, id), &[gpu]);
        assert_eq!(end("00000000:1B:00.0", 0x2330_10de), (Some(gpu), NvLinkEnd::Gpu));
        assert_eq!(end("00000000:05:00.0", 0x22a3_10de).1, NvLinkEnd::Switch);
        assert_eq!(end("00000004:00:00.0", 0x04ea_1014).1, NvLinkEnd::Processor);
        assert_eq!(end("00000000:1C:00.0", 0x2330_10de).1, NvLinkEnd::Unknown);
        for nowhere in ["FFFFFFFF:FF:FF.0", "0FFFFFFF:FFFF:FF.0", "fffffff:ffff:ff"] {
            assert_eq!(end(nowhere, 0), (Some(NOWHERE), NvLinkEnd::Switch), "{nowhere}");
        }
        assert_eq!(end("nonsense", 0).1, NvLinkEnd::Unknown);
    }

    #[test]
    fn an_absent_library_is_a_reason() {
        match ask() {
            Ok(facts) => assert_eq!(facts.failure, None),
            Err(reason) => assert!(!reason.is_empty()),
        }
    }
}
