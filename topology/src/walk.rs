//! The devices of a machine one by one, with where they are.

use crate::figures::pcie_bytes_per_s;
use crate::{Gpu, Machine, NetPort, PciDevice};

/// A PCIe device and where it is.
#[derive(Clone, Debug)]
pub struct PlacedDevice<'a> {
    /// Place in `Machine::numa_nodes`.
    pub numa: usize,
    /// The devices that it is below, the nearest to the processor first.
    pub above: Vec<&'a PciDevice>,
    #[allow(missing_docs)]
    pub device: &'a PciDevice,
}

/// A GPU and where it is.
#[derive(Clone, Debug)]
pub struct PlacedGpu<'a> {
    #[allow(missing_docs)]
    pub place: PlacedDevice<'a>,
    #[allow(missing_docs)]
    pub gpu: &'a Gpu,
}

/// A port and where it is.
#[derive(Clone, Debug)]
pub struct PlacedPort<'a> {
    /// Place in `Machine::numa_nodes`.
    pub numa: usize,
    /// Its card; `None` for one without a PCIe device.
    pub card: Option<PlacedDevice<'a>>,
    #[allow(missing_docs)]
    pub port: &'a NetPort,
}

impl PlacedPort<'_> {
    /// What the port carries each way, in bytes a second, as far as the description tells: its speed, and that
    /// of the PCIe links above it whose speed and width are known. `None` if its own speed is not.
    pub fn known_bytes_per_s(&self) -> Option<f64> {
        let speed = self.port.speed_mbit_per_s.filter(|speed| *speed > 0)?;
        let on_the_way = self.card.iter().flat_map(|card| card.above.iter().chain([&card.device]));
        let links = on_the_way.filter_map(|device| device.link);
        let known = links.filter(|link| link.gigatransfers_per_s > 0.0 && link.width > 0);
        Some(known.map(pcie_bytes_per_s).fold(speed as f64 * 1e6 / 8.0, f64::min))
    }
}

impl Machine {
    /// All PCIe devices, each before those below it, in the order of the description.
    pub fn devices(&self) -> Vec<PlacedDevice<'_>> {
        let mut found = Vec::new();
        for (numa, node) in self.numa_nodes.iter().enumerate() {
            collect(numa, &node.devices, &mut Vec::new(), &mut found);
        }
        found
    }

    /// The GPUs in the order of their numbers.
    pub fn gpus(&self) -> Vec<PlacedGpu<'_>> {
        let placed = self.devices().into_iter();
        let mut gpus: Vec<_> = placed
            .filter_map(|place| Some(PlacedGpu { gpu: place.device.gpu.as_ref()?, place }))
            .collect();
        gpus.sort_by_key(|placed| placed.gpu.index);
        gpus
    }

    /// The ports of all network cards in the order of their numbers.
    pub fn ports(&self) -> Vec<PlacedPort<'_>> {
        let mut ports = Vec::new();
        for card in self.devices() {
            for port in card.device.nic.iter().flat_map(|nic| &nic.ports) {
                ports.push(PlacedPort { numa: card.numa, card: Some(card.clone()), port });
            }
        }
        for (numa, node) in self.numa_nodes.iter().enumerate() {
            let virtual_ports = node.nics.iter().flat_map(|nic| &nic.ports);
            ports.extend(virtual_ports.map(|port| PlacedPort { numa, card: None, port }));
        }
        ports.sort_by_key(|placed| placed.port.index);
        ports
    }

    /// Calls `change` with every device, each before those below it.
    pub(crate) fn for_each_device_mut(&mut self, change: &mut impl FnMut(&mut PciDevice)) {
        fn walk(devices: &mut [PciDevice], change: &mut impl FnMut(&mut PciDevice)) {
            for device in devices {
                change(device);
                walk(&mut device.children, change);
            }
        }
        self.numa_nodes.iter_mut().for_each(|node| walk(&mut node.devices, change));
    }
}

fn collect<'a>(
    numa: usize,
    devices: &'a [PciDevice],
    above: &mut Vec<&'a PciDevice>,
    found: &mut Vec<PlacedDevice<'a>>,
) {
    for device in devices {
        found.push(PlacedDevice { numa, above: above.clone(), device });
        above.push(device);
        collect(numa, &device.children, above, found);
        above.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_carries_no_more_than_the_links_above_it() {
        let machine = |speed: &str, link: &str| {
            let text = format!(
                r#"<system version="1"><cpu numaid="0" affinity="1" arch="x86_64">
                <pci busid="0000:1b:00.0" class="0x020000" {link}>
                <nic><net name="eth0" dev="0" {speed} port="0" guid="0x1"/></nic></pci></cpu></system>"#
            );
            Machine::from_xml(&text).expect("a machine")
        };
        let known = |speed: &str, link: &str| machine(speed, link).ports()[0].known_bytes_per_s();
        let wide = r#"link_speed="16.0 GT/s PCIe" link_width="16""#;
        let narrow = r#"link_speed="8.0 GT/s PCIe" link_width="4""#;
        let unknown = r#"link_speed="" link_width="0""#;
        assert_eq!(known(r#"speed="100000""#, wide), Some(12.5e9));
        assert_eq!(known(r#"speed="100000""#, unknown), Some(12.5e9));
        let limited = known(r#"speed="100000""#, narrow).expect("a speed");
        assert!((3.9e9..4e9).contains(&limited), "{limited}");
        assert_eq!(known("", wide), None);
    }
}
