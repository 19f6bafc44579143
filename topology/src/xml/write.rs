//! A machine as XML. Attributes that are unknown are left out, but for those that NCCL insists on.

use std::fmt::{Display, LowerHex, Write};

use super::fields;
use crate::{Gpu, GpuLink, GpuLinkKind, Machine, NetPort, Nic, NumaNode, PciDevice, PcieLink};

pub(super) fn machine(machine: &Machine) -> String {
    let gpus = machine.gpus();
    let is_amd = |gpu: &Gpu| !gpu.gcn.is_empty() || gpu.amd_arch.is_some();
    let amd = gpus.iter().any(|placed| is_amd(placed.gpu));
    let mut writer = Writer { text: String::new(), depth: 0 };
    let system = Tag::new("system").with("version", if amd { 2 } else { 1 });
    writer.nest(system.text("host", &machine.host), |writer| {
        machine.numa_nodes.iter().for_each(|node| writer.numa_node(node));
    });
    writer.text
}

struct Writer {
    text: String,
    depth: usize,
}

impl Writer {
    fn numa_node(&mut self, node: &NumaNode) {
        let id = node.id.map_or("-1".into(), |id| id.to_string());
        let tag = Tag::new("cpu")
            .with("numaid", id)
            .text("affinity", &fields::affinity_text(&node.cpus))
            .text("arch", fields::architecture_text(node.architecture))
            .text("vendor", &node.vendor)
            .optional("familyid", node.family)
            .optional("modelid", node.model)
            .hexadecimal("host_hash", node.host_hash)
            .optional("package", node.package)
            .optional("memory_bytes", node.memory_bytes)
            .text("distances", &fields::distances_text(&node.distances));
        self.nest(tag, |writer| {
            node.devices.iter().for_each(|device| writer.device(device));
            node.nics.iter().for_each(|nic| writer.nic(nic));
        });
    }

    fn device(&mut self, device: &PciDevice) {
        let known = |value: u16| (value != 0).then_some(value);
        let class = (device.class != 0).then(|| format!("0x{:06x}", device.class));
        let tag = Tag::new("pci")
            .with("busid", device.bus_id)
            .optional("class", class)
            .identifier("vendor", known(device.vendor))
            .identifier("device", known(device.device))
            .identifier("subsystem_vendor", known(device.subsystem_vendor))
            .identifier("subsystem_device", known(device.subsystem_device))
            .link(["link_speed", "link_width"], device.link)
            .link(["max_link_speed", "max_link_width"], device.possible_link);
        self.nest(tag, |writer| {
            device.gpu.iter().for_each(|gpu| writer.gpu(gpu));
            device.nic.iter().for_each(|nic| writer.nic(nic));
            for peer in &device.switch_peers {
                writer.empty(Tag::new("pcilink").with("target", peer));
            }
            device.children.iter().for_each(|child| writer.device(child));
        });
    }

    fn gpu(&mut self, gpu: &Gpu) {
        let tag = Tag::new("gpu")
            .with("dev", gpu.index)
            .optional("sm", gpu.compute_capability)
            .text("gcn", &gpu.gcn)
            .optional("arch", gpu.amd_arch)
            .optional("rank", gpu.rank)
            .optional("gdr", gpu.gpu_direct_rdma.map(u8::from))
            .text("name", &gpu.name)
            .optional("memory_bytes", gpu.memory_bytes);
        self.nest(tag, |writer| gpu.links.iter().for_each(|link| writer.gpu_link(link)));
    }

    fn gpu_link(&mut self, link: &GpuLink) {
        let megabytes_per_s = link.bandwidth_bytes_per_s.map(|bandwidth| (bandwidth / 1e6).round());
        let name = match link.kind {
            GpuLinkKind::NvLink => "nvlink",
            GpuLinkKind::Xgmi => "xgmi",
            GpuLinkKind::C2c => "c2c",
        };
        let class = (link.target_class != 0).then(|| format!("0x{:06x}", link.target_class));
        let tag = Tag::new(name).optional("target", link.target).optional("bw", megabytes_per_s);
        self.empty(tag.with("count", link.count).optional("tclass", class));
    }

    fn nic(&mut self, nic: &Nic) {
        self.nest(Tag::new("nic"), |writer| nic.ports.iter().for_each(|port| writer.port(port)));
    }

    fn port(&mut self, port: &NetPort) {
        let guid = (port.guid != 0).then_some(port.guid);
        self.empty(
            Tag::new("net")
                .with("name", &port.name)
                .with("dev", port.index)
                .optional("speed", port.speed_mbit_per_s)
                .with("port", port.port)
                .optional("latency", port.latency_us)
                .hexadecimal("guid", guid)
                .optional("maxconn", port.max_connections)
                .optional("gdr", port.gpu_direct_rdma.map(u8::from))
                .text("state", fields::state_text(port.state))
                .text("link_layer", fields::link_layer_text(port.link_layer))
                .optional("max_speed", port.possible_speed_mbit_per_s)
                .text("driver", &port.driver)
                .text("partner", &port.partner)
                .optional("mtu", port.mtu_bytes),
        );
    }

    fn empty(&mut self, tag: Tag) {
        self.nest(tag, |_| {});
    }

    fn nest(&mut self, tag: Tag, content: impl FnOnce(&mut Writer)) {
        let indent = "  ".repeat(self.depth);
        self.text.push_str(&format!("{indent}<{}{}", tag.name, tag.attributes));
        let end_of_tag = self.text.len();
        self.text.push_str(">\n");
        let start = self.text.len();
        self.depth += 1;
        content(self);
        self.depth -= 1;
        match self.text.len() == start {
            true => self.text.replace_range(end_of_tag.., "/>\n"),
            false => self.text.push_str(&format!("{indent}</{}>\n", tag.name)),
        }
    }
}

/// An element's name and attributes.
struct Tag {
    name: &'static str,
    attributes: String,
}

impl Tag {
    fn new(name: &'static str) -> Tag {
        Tag { name, attributes: String::new() }
    }

    fn with(mut self, name: &str, value: impl Display) -> Tag {
        // Writing to a String cannot fail.
        let _ = write!(self.attributes, " {name}=\"{}\"", escaped(&value.to_string()));
        self
    }

    fn optional(self, name: &str, value: Option<impl Display>) -> Tag {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    fn text(self, name: &str, value: &str) -> Tag {
        self.optional(name, (!value.is_empty()).then_some(value))
    }

    fn hexadecimal(self, name: &str, value: Option<impl LowerHex>) -> Tag {
        self.optional(name, value.map(|value| format!("0x{value:x}")))
    }

    fn identifier(self, name: &str, value: Option<u16>) -> Tag {
        self.optional(name, value.map(|value| format!("0x{value:04x}")))
    }

    fn link(self, [speed, width]: [&str; 2], link: Option<PcieLink>) -> Tag {
        match link {
            Some(link) => self
                .with(speed, fields::link_speed_text(link.gigatransfers_per_s))
                .with(width, link.width),
            None => self,
        }
    }
}

/// As an attribute's value. What no XML may contain becomes U+FFFD.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // A parser turns plain ones into spaces.
            '\t' | '\n' | '\r' => escaped.push_str(&format!("&#{};", c as u32)),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            _ => escaped.push(c),
        }
    }
    escaped
}
