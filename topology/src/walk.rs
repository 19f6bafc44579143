//! The devices of a machine one by one, with where they are.

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
