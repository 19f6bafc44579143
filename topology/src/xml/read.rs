//! From XML elements to a machine.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use roxmltree::{Document, Node, NodeId};

use super::{MAX_DEPTH, fields};
use crate::{
    BusId, CpuSet, Error, Gpu, GpuLink, GpuLinkKind, Machine, NetPort, Nic, NumaNode, PciDevice,
    PcieLink, Warning,
};

/// Most warnings that are kept; a file with more has one cause for all of them.
const MAX_WARNINGS: usize = 100;

/// Most NUMA nodes; Linux counts GPUs' memories among them.
const MAX_NUMA_NODES: usize = 256;

/// Most GPUs, and most ports: ways between all of them are sought.
const MAX_ENDS: usize = 256;

/// Where each element belongs, and its attributes. `keep`, `coll` and the like are NCCL's own.
const ELEMENTS: [(&str, &str, &[&str]); 10] = [
    ("system", "the top of the file", &["version", "host"]),
    (
        "cpu",
        "<system>",
        &[
            "numaid",
            "affinity",
            "arch",
            "vendor",
            "familyid",
            "modelid",
            "host_hash",
            "package",
            "memory_bytes",
            "distances",
            "keep",
        ],
    ),
    (
        "pci",
        "<cpu> or <pci>",
        &[
            "busid",
            "class",
            "vendor",
            "device",
            "subsystem_vendor",
            "subsystem_device",
            "link_speed",
            "link_width",
            "max_link_speed",
            "max_link_width",
            "keep",
        ],
    ),
    (
        "gpu",
        "<pci>",
        &["dev", "sm", "gcn", "arch", "rank", "gdr", "name", "memory_bytes", "mnnvl", "keep"],
    ),
    ("nvlink", "<gpu>", &["target", "count", "tclass", "bw"]),
    ("xgmi", "<gpu>", &["target", "count", "tclass", "bw"]),
    ("c2c", "<gpu>", &["target", "count", "tclass", "bw"]),
    ("nic", "<pci> or <cpu>", &["keep"]),
    (
        "net",
        "<nic>",
        &[
            "name",
            "dev",
            "speed",
            "port",
            "latency",
            "guid",
            "maxconn",
            "gdr",
            "state",
            "link_layer",
            "max_speed",
            "driver",
            "partner",
            "mtu",
            "coll",
            "keep",
        ],
    ),
    ("pcilink", "<pci>", &["target"]),
];

pub(super) fn machine(document: &Document) -> Result<Machine, Error> {
    let mut reader = Reader::default();
    let root = document.root_element();
    match root.tag_name().name() {
        "system" => {}
        "graphs" => {
            let problem = "a file of rings and trees (NCCL_GRAPH_FILE): expected a description of \
                           a machine, <system> (NCCL_TOPO_FILE)";
            return Err(fault(root, problem.into()));
        }
        _ => return Err(fault(root, "expected <system>".into())),
    }
    let version = reader.text(root, "version");
    if !["1", "2"].contains(&version) {
        reader.warn(root, format!("version {version:?}: read as if it were 1 or 2, AMD's"));
    }
    let mut machine = Machine { host: reader.text(root, "host").into(), ..Machine::default() };
    for element in reader.children(root, 1)? {
        if let Some("cpu") = reader.known(root, element)? {
            limit(element, machine.numa_nodes.len(), MAX_NUMA_NODES)?;
            machine.numa_nodes.push(reader.numa_node(element)?);
        }
    }
    reader.compare_numa_nodes(root, &machine);
    reader.number_devices(document, &mut machine);
    machine.warnings = reader.warnings;
    Ok(machine)
}

/// What is gathered while the elements are walked.
#[derive(Default)]
struct Reader {
    warnings: Vec<Warning>,
    /// Where GPUs and cards are: no two of them are in one place.
    places: BTreeSet<(&'static str, BusId)>,
    /// By GPU in the order of the file: the number that the file gives, and the element. Until all are
    /// known, a GPU's index is its place in this list.
    gpu_numbers: Vec<(Option<u32>, NodeId)>,
    /// The same for ports.
    port_numbers: Vec<(Option<u32>, NodeId)>,
}

impl Reader {
    fn numa_node(&mut self, at: Node) -> Result<NumaNode, Error> {
        let architecture = self.text(at, "arch");
        let mut node = NumaNode {
            id: self.number(at, "numaid")?,
            cpus: self.parsed(at, "affinity", fields::affinity)?.unwrap_or(CpuSet::default()),
            architecture: fields::architecture(architecture),
            vendor: self.text(at, "vendor").into(),
            family: self.number(at, "familyid")?,
            model: self.number(at, "modelid")?,
            package: self.number(at, "package")?,
            host_hash: self.parsed(at, "host_hash", fields::hexadecimal)?,
            memory_bytes: self.number(at, "memory_bytes")?,
            distances: self.parsed(at, "distances", fields::distances)?.unwrap_or_default(),
            ..NumaNode::default()
        };
        if node.architecture.is_none() && !architecture.is_empty() {
            self.warn(at, format!("arch {architecture:?} is not known: left out"));
        }
        for element in self.children(at, 2)? {
            match self.known(at, element)? {
                Some("pci") => node.devices.push(self.device(element, 3)?),
                Some("nic") => node.nics.push(self.nic(element)?),
                _ => {}
            }
        }
        Ok(node)
    }

    fn device(&mut self, at: Node, depth: u32) -> Result<PciDevice, Error> {
        let mut device = PciDevice {
            bus_id: self.bus_id(at, "busid")?,
            class: self.hexadecimal(at, "class")?,
            vendor: self.hexadecimal(at, "vendor")?,
            device: self.hexadecimal(at, "device")?,
            subsystem_vendor: self.hexadecimal(at, "subsystem_vendor")?,
            subsystem_device: self.hexadecimal(at, "subsystem_device")?,
            link: self.link(at, "link_speed", "link_width")?,
            possible_link: self.link(at, "max_link_speed", "max_link_width")?,
            ..PciDevice::default()
        };
        for element in self.children(at, depth)? {
            match self.known(at, element)? {
                Some("pci") => device.children.push(self.device(element, depth + 1)?),
                Some("gpu") => {
                    self.claim(element, "gpu", device.bus_id)?;
                    device.gpu = Some(self.gpu(element)?);
                }
                Some("nic") => {
                    self.claim(element, "nic", device.bus_id)?;
                    device.nic = Some(self.nic(element)?);
                }
                Some("pcilink") => device.switch_peers.push(self.bus_id(element, "target")?),
                _ => {}
            }
        }
        Ok(device)
    }

    fn gpu(&mut self, at: Node) -> Result<Gpu, Error> {
        limit(at, self.gpu_numbers.len(), MAX_ENDS)?;
        self.gpu_numbers.push((self.number(at, "dev")?, at.id()));
        let mut gpu = Gpu {
            index: self.gpu_numbers.len() as u32 - 1,
            name: self.text(at, "name").into(),
            compute_capability: self.number(at, "sm")?,
            gcn: self.text(at, "gcn").into(),
            amd_arch: self.number(at, "arch")?,
            rank: self.number(at, "rank")?,
            gpu_direct_rdma: self.switch(at, "gdr")?,
            memory_bytes: self.number(at, "memory_bytes")?,
            ..Gpu::default()
        };
        for element in self.children(at, MAX_DEPTH)? {
            let kind = match self.known(at, element)? {
                Some("nvlink") => GpuLinkKind::NvLink,
                Some("xgmi") => GpuLinkKind::Xgmi,
                Some("c2c") => GpuLinkKind::C2c,
                _ => continue,
            };
            gpu.links.push(self.gpu_link(element, kind)?);
        }
        Ok(gpu)
    }

    fn gpu_link(&mut self, at: Node, kind: GpuLinkKind) -> Result<GpuLink, Error> {
        let target = match (kind, self.text(at, "target")) {
            (GpuLinkKind::C2c, "") => None,
            _ => Some(self.bus_id(at, "target")?),
        };
        // NCCL gives megabytes (10^6) a second of one link.
        let megabytes_per_s = self.number::<u32>(at, "bw")?;
        Ok(GpuLink {
            kind,
            target,
            target_class: self.hexadecimal(at, "tclass")?,
            count: self.number(at, "count")?.unwrap_or(1),
            bandwidth_bytes_per_s: megabytes_per_s.map(|figure| f64::from(figure) * 1e6),
        })
    }

    fn nic(&mut self, at: Node) -> Result<Nic, Error> {
        let mut nic = Nic::default();
        for element in self.children(at, MAX_DEPTH)? {
            if let Some("net") = self.known(at, element)? {
                nic.ports.push(self.port(element)?);
            }
        }
        Ok(nic)
    }

    fn port(&mut self, at: Node) -> Result<NetPort, Error> {
        limit(at, self.port_numbers.len(), MAX_ENDS)?;
        self.port_numbers.push((self.number(at, "dev")?, at.id()));
        let name = self.text(at, "name");
        if name.is_empty() {
            self.warn(at, "no name: transports cannot find this port".into());
        }
        Ok(NetPort {
            name: name.into(),
            index: self.port_numbers.len() as u32 - 1,
            port: self.number(at, "port")?.unwrap_or(0),
            speed_mbit_per_s: self.number(at, "speed")?.filter(|&speed: &u64| speed != 0),
            latency_us: self.parsed(at, "latency", fields::latency)?.flatten(),
            guid: self.parsed(at, "guid", fields::hexadecimal)?.unwrap_or(0),
            max_connections: self.number(at, "maxconn")?,
            gpu_direct_rdma: self.switch(at, "gdr")?,
            state: self.parsed(at, "state", fields::state)?.unwrap_or_default(),
            link_layer: self.parsed(at, "link_layer", fields::link_layer)?.unwrap_or_default(),
            possible_speed_mbit_per_s: self.number(at, "max_speed")?,
            driver: self.text(at, "driver").into(),
            partner: self.text(at, "partner").into(),
            mtu_bytes: self.number(at, "mtu")?,
            ..NetPort::default()
        })
    }

    /// The elements below, none of which is deeper than is allowed.
    fn children<'a, 'i>(&self, at: Node<'a, 'i>, depth: u32) -> Result<Vec<Node<'a, 'i>>, Error> {
        let elements: Vec<_> = at.children().filter(Node::is_element).collect();
        match elements.first() {
            Some(&first) if depth > MAX_DEPTH => {
                Err(fault(first, format!("nested deeper than {MAX_DEPTH} elements")))
            }
            _ => Ok(elements),
        }
    }

    /// The name of an element that belongs where it is; `None`, with a warning, for an unknown one.
    fn known(&mut self, above: Node, at: Node) -> Result<Option<&'static str>, Error> {
        let (name, above) = (at.tag_name().name(), above.tag_name().name());
        let Some((name, place, attributes)) = ELEMENTS.into_iter().find(|known| known.0 == name)
        else {
            self.warn(at, "unknown element: left out with what is in it".into());
            return Ok(None);
        };
        if !place.contains(&format!("<{above}>")) {
            return Err(fault(at, format!("found in <{above}>, expected in {place}")));
        }
        for attribute in at.attributes().filter(|found| !attributes.contains(&found.name())) {
            self.warn(at, format!("unknown attribute {:?}: left out", attribute.name()));
        }
        Ok(Some(name))
    }

    /// GPUs and cards have places of their own; bridges of virtual machines need not.
    fn claim(&mut self, at: Node, what: &'static str, bus_id: BusId) -> Result<(), Error> {
        match self.places.insert((what, bus_id)) {
            true => Ok(()),
            false => Err(fault(at, format!("the second <{what}> at {bus_id}, expected one"))),
        }
    }

    fn compare_numa_nodes(&mut self, at: Node, machine: &Machine) {
        let mut ids = BTreeSet::new();
        for id in machine.numa_nodes.iter().filter_map(|node| node.id) {
            if !ids.insert(id) {
                self.warn(at, format!("several <cpu> with numaid {id}: taken as separate nodes"));
            }
        }
        let hashes: BTreeSet<_> = machine.numa_nodes.iter().filter_map(|n| n.host_hash).collect();
        if hashes.len() > 1 {
            let message = format!("describes {} hosts by host_hash: taken as one", hashes.len());
            self.warn(at, message);
        }
    }

    fn number_devices(&mut self, document: &Document, machine: &mut Machine) {
        let gpus = self.numbered(document, &self.gpu_numbers.clone());
        let ports = self.numbered(document, &self.port_numbers.clone());
        let number = |nic: &mut Nic| {
            nic.ports.iter_mut().for_each(|port| port.index = ports[port.index as usize]);
        };
        machine.for_each_device_mut(&mut |device| {
            device.gpu.iter_mut().for_each(|gpu| gpu.index = gpus[gpu.index as usize]);
            device.nic.iter_mut().for_each(number);
        });
        machine.numa_nodes.iter_mut().flat_map(|node| &mut node.nics).for_each(number);
    }

    /// Unique numbers: those given, and for the others, with a warning, the lowest that are free.
    fn numbered(&mut self, document: &Document, given: &[(Option<u32>, NodeId)]) -> Vec<u32> {
        let mut taken = BTreeSet::new();
        let firsts: Vec<_> =
            given.iter().map(|(number, _)| number.filter(|&n| taken.insert(n))).collect();
        let mut free = (0..).filter(|number| !taken.contains(number));
        let mut numbers = Vec::new();
        for (first, &(number, element)) in firsts.into_iter().zip(given) {
            let used = first.or_else(|| free.next()).unwrap_or_default();
            if let (None, Some(at)) = (first, document.get_node(element)) {
                let found = number.map_or("no dev".into(), |number| format!("dev {number} again"));
                self.warn(at, format!("{found}: numbered {used}"));
            }
            numbers.push(used);
        }
        numbers
    }

    fn text<'a>(&self, at: Node<'a, '_>, name: &str) -> &'a str {
        at.attribute(name).unwrap_or("").trim()
    }

    /// The value of an attribute that is there and not empty.
    fn parsed<T>(
        &self,
        at: Node,
        name: &str,
        parse: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Result<Option<T>, Error> {
        let text = self.text(at, name);
        let bad = |expected| bad_value(at, name, text, expected);
        (!text.is_empty()).then(|| parse(text).map_err(bad)).transpose()
    }

    /// A whole number; `None` if it is absent, empty or negative.
    fn number<T: TryFrom<u64>>(&self, at: Node, name: &str) -> Result<Option<T>, Error> {
        let value = self.parsed(at, name, fields::number)?.flatten();
        let fitting = value.map(|value| T::try_from(value).map_err(|_| too_large(at, name)));
        fitting.transpose()
    }

    /// 0 if it is absent.
    fn hexadecimal<T: TryFrom<u64> + Default>(&self, at: Node, name: &str) -> Result<T, Error> {
        match self.parsed(at, name, fields::hexadecimal)? {
            Some(value) => T::try_from(value).map_err(|_| too_large(at, name)),
            None => Ok(T::default()),
        }
    }

    fn switch(&self, at: Node, name: &str) -> Result<Option<bool>, Error> {
        Ok(self.number::<u32>(at, name)?.map(|value| value != 0))
    }

    fn bus_id(&self, at: Node, name: &str) -> Result<BusId, Error> {
        let text = self.text(at, name);
        let expected = "a bus id, as 0000:1a:00.0";
        text.parse().map_err(|_| bad_value(at, name, text, expected))
    }

    /// Half a link is kept: the other half is 0.
    fn link(&mut self, at: Node, speed: &str, width: &str) -> Result<Option<PcieLink>, Error> {
        let gigatransfers_per_s = self.parsed(at, speed, fields::link_speed)?.unwrap_or(0.0);
        let lanes = self.number::<u32>(at, width)?.unwrap_or(0);
        if lanes > 32 {
            // Linux says 255 where the device does not answer.
            self.warn(at, format!("{width} {lanes}, of at most 32: taken as unknown"));
        }
        let link = PcieLink { gigatransfers_per_s, width: if lanes > 32 { 0 } else { lanes } };
        Ok((gigatransfers_per_s > 0.0 || link.width > 0).then_some(link))
    }

    fn warn(&mut self, at: Node, message: String) {
        match self.warnings.len().cmp(&MAX_WARNINGS) {
            Ordering::Less => self.warnings.push(Warning { subject: subject(at), message }),
            Ordering::Equal => self.warnings.push(Warning {
                subject: "<system>".into(),
                message: format!("more than {MAX_WARNINGS} warnings: the others are left out"),
            }),
            Ordering::Greater => {}
        }
    }
}

/// Refuses one more than there may be.
fn limit(at: Node, found: usize, most: usize) -> Result<(), Error> {
    match found < most {
        true => Ok(()),
        false => Err(fault(at, format!("more than {most} of them, expected a single machine"))),
    }
}

fn subject(at: Node) -> String {
    let position = at.document().text_pos_at(at.range().start);
    format!("line {}, <{}>", position.row, at.tag_name().name())
}

fn bad_value(at: Node, name: &str, text: &str, expected: &str) -> Error {
    let shown: String = text.chars().take(60).collect();
    match at.has_attribute(name) {
        true => fault(at, format!("{name}={shown:?}: expected {expected}")),
        false => fault(at, format!("no {name}: expected {expected}")),
    }
}

fn too_large(at: Node, name: &str) -> Error {
    fault(at, format!("{name}={:?}: expected a smaller number", at.attribute(name).unwrap_or("")))
}

fn fault(at: Node, problem: String) -> Error {
    let position = at.document().text_pos_at(at.range().start);
    Error::Element {
        line: position.row,
        column: position.col,
        element: at.tag_name().name().into(),
        problem,
    }
}
