//! Machines made at random: writing and reading gives the same machine.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use ringtree_topology::{
    Architecture, BusId, CpuSet, Gpu, GpuLink, GpuLinkKind, Graph, LinkLayer, Machine, NetPort,
    Nic, NumaNode, PciDevice, PcieLink, PortState,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_is_read_again(machine in machine()) {
        let text = machine.to_xml();
        let again = Machine::from_xml(&text).map_err(|error| {
            TestCaseError::fail(format!("{error}\n{text}"))
        })?;
        prop_assert_eq!(&again, &machine, "{}", text);
        prop_assert_eq!(Graph::new(&again), Graph::new(&machine));
    }
}

fn machine() -> impl Strategy<Value = Machine> {
    (vec(numa_node(), 1..4), word()).prop_map(|(mut numa_nodes, host)| {
        let mut numbers = Numbers::default();
        for (place, node) in numa_nodes.iter_mut().enumerate() {
            node.id = node.id.map(|_| place as u32);
            node.devices.iter_mut().for_each(|device| numbers.number(device));
            node.nics.iter_mut().for_each(|nic| numbers.number_ports(nic));
        }
        Machine { host, numa_nodes, ..Machine::default() }
    })
}

/// Bus ids, and numbers of GPUs and ports, are unique.
#[derive(Default)]
struct Numbers {
    devices: u8,
    gpus: u32,
    ports: u32,
}

impl Numbers {
    fn number(&mut self, device: &mut PciDevice) {
        device.bus_id = BusId { bus: self.devices, device: 1, ..device.bus_id };
        self.devices += 1;
        if let Some(gpu) = &mut device.gpu {
            // Numbers need not be dense.
            gpu.index = self.gpus * 3;
            self.gpus += 1;
        }
        device.nic.iter_mut().for_each(|nic| self.number_ports(nic));
        device.children.iter_mut().for_each(|child| self.number(child));
    }

    fn number_ports(&mut self, nic: &mut Nic) {
        for port in &mut nic.ports {
            port.index = self.ports;
            self.ports += 1;
        }
    }
}

fn numa_node() -> impl Strategy<Value = NumaNode> {
    let processors = (
        option::of(Just(0)),
        vec(0usize..200, 0..20),
        option::of(prop_oneof![
            Just(Architecture::X86_64),
            Just(Architecture::Arm64),
            Just(Architecture::Power),
            Just(Architecture::Riscv64),
        ]),
        prop_oneof![Just("GenuineIntel".to_owned()), Just("AuthenticAMD".to_owned()), word()],
        option::of(0u32..200),
        option::of(0u32..200),
    );
    let others = (
        option::of(0u32..4),
        option::of(any::<u64>()),
        option::of(any::<u64>()),
        vec((0u32..4, 10u32..40), 0..4),
        vec(device(), 0..4),
        vec(nic(), 0..2),
    );
    (processors, others).prop_map(|(processors, others)| {
        let (id, cpus, architecture, vendor, family, model) = processors;
        let (package, host_hash, memory_bytes, distances, devices, nics) = others;
        NumaNode {
            id,
            cpus: cpus.into_iter().collect::<CpuSet>(),
            architecture,
            vendor,
            family,
            model,
            package,
            // Several hosts in one file are a warning.
            host_hash: host_hash.map(|_| 7),
            memory_bytes,
            distances,
            devices,
            nics,
        }
    })
}

fn device() -> impl Strategy<Value = PciDevice> {
    let identifiers = (0u32..0x1000000, any::<[u16; 4]>(), 0u32..0x20000);
    let leaf = (identifiers, link(), link(), option::of(gpu()), option::of(nic()));
    let leaf = leaf.prop_map(|((class, ids, domain), link, possible_link, gpu, nic)| PciDevice {
        bus_id: BusId { domain, ..BusId::default() },
        class,
        vendor: ids[0],
        device: ids[1],
        subsystem_vendor: ids[2],
        subsystem_device: ids[3],
        link,
        possible_link,
        gpu,
        nic,
        ..PciDevice::default()
    });
    leaf.prop_recursive(3, 12, 3, |inner| {
        (inner.clone(), vec(inner, 0..3), vec(bus_id(), 0..2)).prop_map(
            |(device, children, switch_peers)| PciDevice { children, switch_peers, ..device },
        )
    })
}

fn link() -> impl Strategy<Value = Option<PcieLink>> {
    let speeds = [0.0, 2.5, 5.0, 8.0, 16.0, 32.0, 64.0];
    option::of((proptest::sample::select(speeds.to_vec()), 0u32..33)).prop_map(|link| {
        let (gigatransfers_per_s, width) = link?;
        let known = gigatransfers_per_s > 0.0 || width > 0;
        known.then_some(PcieLink { gigatransfers_per_s, width })
    })
}

fn gpu() -> impl Strategy<Value = Gpu> {
    let figures = (option::of(0u32..200), option::of(any::<u32>()), option::of(any::<u32>()));
    let others = (option::of(any::<bool>()), option::of(any::<u64>()), vec(gpu_link(), 0..4));
    (word(), word(), figures, others).prop_map(|(name, gcn, figures, others)| Gpu {
        index: 0,
        name,
        gcn,
        compute_capability: figures.0,
        amd_arch: figures.1,
        rank: figures.2,
        gpu_direct_rdma: others.0,
        memory_bytes: others.1,
        links: others.2,
    })
}

fn gpu_link() -> impl Strategy<Value = GpuLink> {
    let kind =
        prop_oneof![Just(GpuLinkKind::NvLink), Just(GpuLinkKind::Xgmi), Just(GpuLinkKind::C2c)];
    let class = proptest::sample::select(vec![0, 0x030200, 0x068000, 0x068001, 0x060400]);
    let bandwidth = option::of(1u32..1_000_000);
    (kind, bus_id(), class, 0u32..20, bandwidth).prop_map(|(kind, target, class, count, mb)| {
        GpuLink {
            kind,
            target: (kind != GpuLinkKind::C2c).then_some(target),
            target_class: class,
            count,
            bandwidth_bytes_per_s: mb.map(|megabytes| f64::from(megabytes) * 1e6),
        }
    })
}

/// Of a few, so that some are those of devices.
fn bus_id() -> impl Strategy<Value = BusId> {
    (0u8..8, 0u32..2).prop_map(|(bus, domain)| BusId { domain, bus, device: 1, function: 0 })
}

fn nic() -> impl Strategy<Value = Nic> {
    vec(port(), 0..3).prop_map(|ports| Nic { ports })
}

fn port() -> impl Strategy<Value = NetPort> {
    let figures = (
        option::of(1u64..1_000_000),
        option::of(0u32..5000),
        option::of(any::<u64>()),
        option::of(any::<bool>()),
        option::of(any::<u64>()),
        option::of(any::<u32>()),
    );
    let kinds = (
        prop_oneof![
            Just(LinkLayer::Unknown),
            Just(LinkLayer::Ethernet),
            Just(LinkLayer::InfiniBand)
        ],
        prop_oneof![Just(PortState::Unknown), Just(PortState::Up), Just(PortState::Down)],
    );
    let texts = ("[a-z]{1,8}", word(), word());
    (figures, kinds, texts, any::<u64>(), 0u32..4).prop_map(
        |(figures, kinds, texts, guid, port)| NetPort {
            name: texts.0,
            index: 0,
            port,
            speed_mbit_per_s: figures.0,
            latency_us: figures.1.map(|thousandths| f64::from(thousandths) / 1e3),
            guid,
            max_connections: figures.2,
            gpu_direct_rdma: figures.3,
            link_layer: kinds.0,
            state: kinds.1,
            possible_speed_mbit_per_s: figures.4,
            driver: texts.1,
            partner: texts.2,
            addresses: Vec::new(),
            mtu_bytes: figures.5,
        },
    )
}

/// With what XML has to escape.
fn word() -> impl Strategy<Value = String> {
    "([a-z<>&\"']([a-z<>&\"'\\n\\t é\u{1f600}]{0,6}[a-z<>&\"'])?)?"
}
