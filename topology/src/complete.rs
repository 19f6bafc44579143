//! Files that say where devices are and not what they are: the base files that providers of virtual machines
//! publish. NCCL completes them from the system; so does [`Machine::complete_from`].

use std::collections::{BTreeMap, BTreeSet};

use crate::{BusId, Gpu, Machine, NetPort, Nic, PciDevice, PlacedGpu, Warning};

impl Machine {
    /// Fills in what this description lacks from one of the same machine as the system shows it: where a file
    /// says more, as which bridges there are, it is right, since it is given because the system hides that.
    /// Devices are matched by their bus ids; GPUs and cards that the file does not have are put directly on
    /// the NUMA node on which the system has them, with a warning.
    pub fn complete_from(&mut self, system: &Machine) {
        let seen = system.devices();
        let mut missing: BTreeMap<BusId, &PciDevice> =
            seen.iter().map(|placed| (placed.device.bus_id, placed.device)).collect();
        self.for_each_device_mut(&mut |device| {
            if let Some(known) = missing.remove(&device.bus_id) {
                complete_device(device, known);
            }
        });
        for node in &mut self.numa_nodes {
            let Some(known) = system.numa_nodes.iter().find(|known| known.id == node.id) else {
                continue;
            };
            if node.cpus.is_empty() {
                node.cpus = known.cpus.clone();
            }
            if node.vendor.is_empty() {
                node.vendor = known.vendor.clone();
            }
            if node.distances.is_empty() {
                node.distances = known.distances.clone();
            }
            node.architecture = node.architecture.or(known.architecture);
            node.family = node.family.or(known.family);
            node.model = node.model.or(known.model);
            node.package = node.package.or(known.package);
            node.memory_bytes = node.memory_bytes.or(known.memory_bytes);
        }
        for placed in seen.iter().filter(|placed| missing.contains_key(&placed.device.bus_id)) {
            if placed.device.gpu.is_some() || placed.device.nic.is_some() {
                self.add_unplaced(system.numa_nodes[placed.numa].id, placed.device);
            }
        }
    }

    /// Whether this is a base file's description of that machine: it names no GPU, but places at which the system has
    /// some.
    pub fn is_base_of(&self, system: &Machine) -> bool {
        let places: BTreeSet<BusId> = self.devices().iter().map(|p| p.device.bus_id).collect();
        let is_placed = |gpu: &PlacedGpu| places.contains(&gpu.place.device.bus_id);
        self.gpus().is_empty() && system.gpus().iter().any(is_placed)
    }

    /// Takes devices for what their class says they are: a display controller for a GPU, a network
    /// controller for a card with one port of unknown speed, each with a warning. This is for looking at a
    /// base file without the machine; they are numbered in the order of the file.
    pub fn assume_devices(&mut self) {
        let mut next_gpu = self.gpus().last().map_or(0, |placed| placed.gpu.index + 1);
        let mut next_port = self.ports().last().map_or(0, |placed| placed.port.index + 1);
        let mut warnings = Vec::new();
        self.for_each_device_mut(&mut |device| {
            if device.gpu.is_some() || device.nic.is_some() {
                return;
            }
            let what = match device.class >> 8 {
                // 3D controllers and other displays; VGA (0x0300) is mostly a console.
                0x0302 | 0x0380 => {
                    device.gpu = Some(Gpu { index: next_gpu, ..Gpu::default() });
                    next_gpu += 1;
                    format!("a GPU, numbered {}", next_gpu - 1)
                }
                // Ethernet, InfiniBand, and what accelerators' fabrics call themselves.
                0x0200 | 0x0207 | 0x0208 => {
                    let name = device.bus_id.to_string();
                    let port = NetPort { name, index: next_port, ..NetPort::default() };
                    device.nic = Some(Nic { ports: vec![port] });
                    next_port += 1;
                    "a network card with one port".into()
                }
                _ => return,
            };
            let message =
                format!("class 0x{:06x} and no more is known: taken as {what}", device.class);
            warnings.push(Warning { subject: device.bus_id.to_string(), message });
        });
        self.warnings.extend(warnings);
    }

    fn add_unplaced(&mut self, numa: Option<u32>, device: &PciDevice) {
        let place = self.numa_nodes.iter().position(|node| node.id == numa).unwrap_or(0);
        let Some(node) = self.numa_nodes.get_mut(place) else { return };
        node.devices.push(PciDevice { children: Vec::new(), ..device.clone() });
        let name = node.id.map_or("the first NUMA node".into(), |id| format!("NUMA node {id}"));
        self.warnings.push(Warning {
            subject: device.bus_id.to_string(),
            message: format!("not in the file: put directly on {name}"),
        });
    }
}

fn complete_device(device: &mut PciDevice, known: &PciDevice) {
    let fill = |own: &mut u16, known: u16| {
        if *own == 0 {
            *own = known;
        }
    };
    if device.class == 0 {
        device.class = known.class;
    }
    fill(&mut device.vendor, known.vendor);
    fill(&mut device.device, known.device);
    fill(&mut device.subsystem_vendor, known.subsystem_vendor);
    fill(&mut device.subsystem_device, known.subsystem_device);
    device.link = device.link.or(known.link);
    device.possible_link = device.possible_link.or(known.possible_link);
    if device.gpu.is_none() {
        device.gpu = known.gpu.clone();
    }
    if device.nic.is_none() {
        device.nic = known.nic.clone();
    }
}

#[cfg(test)]
mod tests {
    use crate::{Graph, Machine, PathClass};

    fn machine(devices: &str) -> Machine {
        let text = format!(
            r#"<system version="1"><cpu numaid="0" affinity="f" vendor="AuthenticAMD">{devices}</cpu></system>"#
        );
        Machine::from_xml(&text).expect("a machine")
    }

    const BASE: &str = r#"<pci busid="ffff:ff:01.0" class="0x060400" link_speed="16 GT/s" link_width="16">
        <pci busid="0001:00:00.0" class="0x030200"/><pci busid="0002:00:00.0" class="0x020700"/></pci>"#;

    #[test]
    fn a_base_file_is_completed_from_the_system() {
        let mut base = machine(BASE);
        base.complete_from(&machine(
            r#"<pci busid="0002:00:00.0"><nic><net name="mlx5_0" dev="0" speed="200000"/></nic></pci>
               <pci busid="0001:00:00.0" link_speed="8 GT/s" link_width="16"><gpu dev="0" sm="80"/></pci>
               <pci busid="0003:00:00.0"><gpu dev="1" sm="80"/></pci>"#,
        ));
        let (graph, _) = Graph::new(&base);
        let (gpus, ports) = (graph.gpus(), graph.ports());
        assert_eq!((gpus.len(), ports.len()), (2, 1));
        assert_eq!(graph.path_class(gpus[0], ports[0]), PathClass::Pix, "the file's bridge stays");
        assert_eq!(graph.path_class(gpus[1], ports[0]), PathClass::Phb);
        assert_eq!(base.warnings.len(), 1, "{:?}", base.warnings);
        assert_eq!(base.gpus()[0].place.device.link.expect("a link").gigatransfers_per_s, 8.0);
    }

    #[test]
    fn a_base_file_is_of_the_machine_whose_gpus_it_places() {
        let base = machine(BASE);
        let with_gpu_at =
            |bus_id| machine(&format!(r#"<pci busid="{bus_id}"><gpu dev="0" sm="80"/></pci>"#));
        assert!(base.is_base_of(&with_gpu_at("0001:00:00.0")));
        assert!(!base.is_base_of(&with_gpu_at("0007:00:00.0")), "another machine");
        assert!(!base.is_base_of(&base), "nothing to complete it from");
        let whole = with_gpu_at("0001:00:00.0");
        assert!(!whole.is_base_of(&whole), "it has what it needs");
    }

    #[test]
    fn classes_say_what_a_base_file_has() {
        let mut base = machine(BASE);
        base.assume_devices();
        assert_eq!((base.gpus().len(), base.ports().len(), base.warnings.len()), (1, 1, 2));
        let before = base.clone();
        base.assume_devices();
        assert_eq!(base, before, "a second time changes nothing");
    }
}
