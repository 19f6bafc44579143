//! The boxes of the drawing: which there are, and what is written in them.

use std::collections::BTreeMap;

use super::canvas::{Area, text_width};
use super::{link_color, link_width};
use crate::{
    BusId, Edge, EdgeKind, Gpu, Graph, Machine, NetPort, Nic, NodeId, NodeKind, NumaNode,
    PciDevice, PortState,
};

/// Longer texts are cut.
const MOST_LETTERS: usize = 26;

/// What a box stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Numa,
    Bridge,
    Gpu,
    Card,
    /// Nobody says what it is.
    Unknown,
}

/// A line in a box.
#[derive(Debug)]
pub(super) struct Words {
    pub text: String,
    pub size: f64,
    pub is_bold: bool,
    pub is_bad: bool,
}

impl Words {
    fn new(text: impl Into<String>, size: f64) -> Words {
        Words { text: shortened(text.into()), size, is_bold: false, is_bad: false }
    }

    fn bold(text: impl Into<String>, size: f64) -> Words {
        Words { is_bold: true, ..Words::new(text, size) }
    }

    pub fn width(&self) -> f64 {
        text_width(&self.text, self.size)
    }
}

/// A link to the box around.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plug {
    pub color: &'static str,
    pub width: f64,
}

/// A box, with the boxes in it.
#[derive(Debug)]
pub(super) struct Block {
    pub kind: Kind,
    pub node: Option<NodeId>,
    pub words: Vec<Words>,
    pub plugs: Vec<Plug>,
    /// Rows from top to bottom; GPUs, and what has some in it, are in the last.
    pub rows: Vec<Vec<Block>>,
    pub area: Area,
}

impl Block {
    fn new(kind: Kind, node: Option<NodeId>, words: Vec<Words>) -> Block {
        let (plugs, rows) = (Vec::new(), Vec::new());
        Block { kind, node, words, plugs, rows, area: Area::default() }
    }

    pub fn has_gpu(&self) -> bool {
        self.kind == Kind::Gpu || self.rows.iter().flatten().any(Block::has_gpu)
    }

    /// Calls `look` with this box and all in it, outer ones first.
    pub fn visit<'b>(&'b self, look: &mut impl FnMut(&'b Block)) {
        look(self);
        self.rows.iter().flatten().for_each(|block| block.visit(look));
    }
}

/// A box for each NUMA node that has processors or devices.
pub(super) fn of_machine(machine: &Machine, graph: &Graph) -> Vec<Block> {
    let builder = Builder { graph };
    let nodes = machine.numa_nodes.iter().enumerate();
    let blocks: Vec<Block> = nodes.map(|(place, node)| builder.numa(place, node)).collect();
    let shown =
        |(block, node): &(Block, &NumaNode)| !block.rows.is_empty() || !node.cpus.is_empty();
    let mut shown: Vec<_> = blocks.into_iter().zip(&machine.numa_nodes).filter(shown).collect();
    shown.sort_by_key(|(_, node)| node.id);
    shown.into_iter().map(|(block, _)| block).collect()
}

struct Builder<'a> {
    graph: &'a Graph,
}

impl Builder<'_> {
    fn node(&self, kind: NodeKind) -> Option<NodeId> {
        let place = self.graph.nodes.iter().position(|node| node.kind == kind);
        place.map(|place| NodeId(place as u32))
    }

    fn numa(&self, place: usize, numa: &NumaNode) -> Block {
        let name = numa.id.map_or("NUMA?".into(), |id| format!("NUMA{id}"));
        let mut words = vec![Words::bold(name, 14.0)];
        if !numa.cpus.is_empty() {
            words.push(Words::new(format!("processors {}", numa.cpus), 11.0));
        }
        if !numa.vendor.is_empty() {
            words.push(Words::new(numa.vendor.clone(), 11.0));
        }
        let mut block = Block::new(Kind::Numa, self.node(NodeKind::Numa(place as u32)), words);
        let mut inner = self.devices(&numa.devices);
        inner.extend(numa.nics.iter().map(|nic| {
            let mut card = Block::new(Kind::Card, None, Vec::new());
            add_ports(&mut card, nic);
            card
        }));
        block.rows = rows(inner);
        block
    }

    /// Bridges, GPUs and cards, and what may be one; functions of one slot are one card.
    fn devices(&self, devices: &[PciDevice]) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut cards: BTreeMap<BusId, usize> = BTreeMap::new();
        for device in devices {
            if let Some(gpu) = &device.gpu {
                blocks.push(self.gpu(device, gpu));
            }
            if let Some(nic) = &device.nic {
                let slot = BusId { function: 0, ..device.bus_id };
                let place = *cards.entry(slot).or_insert_with(|| {
                    blocks.push(self.card(device, nic));
                    blocks.len() - 1
                });
                add_ports(&mut blocks[place], nic);
            }
            let inner = self.devices(&device.children);
            if device.gpu.is_some() || device.nic.is_some() {
                blocks.extend(inner);
            } else if !inner.is_empty() {
                blocks.push(self.bridge(device, inner));
            } else if device.class == 0 {
                let words = [device.bus_id.to_string(), "unknown device".into()];
                let words = words.map(|text| Words::new(text, 10.0)).into();
                blocks.push(Block::new(Kind::Unknown, None, words));
            }
        }
        blocks
    }

    fn bridge(&self, device: &PciDevice, inner: Vec<Block>) -> Block {
        let words = vec![Words::new(device.bus_id.to_string(), 10.0), speed(device)];
        let mut block = Block::new(Kind::Bridge, self.node(NodeKind::Bridge(device.bus_id)), words);
        block.plugs = self.plugs(block.node);
        block.rows = rows(inner);
        block
    }

    fn gpu(&self, device: &PciDevice, gpu: &Gpu) -> Block {
        let (index, bus_id) = (gpu.index, device.bus_id);
        let mut words = vec![Words::bold(format!("GPU{index}"), 14.0)];
        // The maker is on every box of theirs.
        let model = gpu.name.trim_start_matches("NVIDIA ").trim_start_matches("AMD ");
        if !model.is_empty() {
            words.push(Words::new(model, 10.0));
        }
        words.extend([Words::new(bus_id.to_string(), 10.0), speed(device)]);
        let node = self.node(NodeKind::Gpu { index, bus_id });
        let mut block = Block::new(Kind::Gpu, node, words);
        block.plugs = self.plugs(block.node);
        block
    }

    fn card(&self, device: &PciDevice, nic: &Nic) -> Block {
        let bus_id = device.bus_id.to_string();
        let mut words = Vec::new();
        // Ports of which nothing is known are called after their card.
        if nic.ports.iter().all(|port| port.name != bus_id) {
            words.push(Words::new(bus_id, 10.0));
        }
        words.push(speed(device));
        let mut block = Block::new(Kind::Card, self.node(NodeKind::Card(device.bus_id)), words);
        block.plugs = self.plugs(block.node);
        block
    }

    /// The links to what is above: PCIe, and those of a GPU with its processor.
    fn plugs(&self, node: Option<NodeId>) -> Vec<Plug> {
        // Of the two edges of a link the first leads upwards, and a device's first link is that.
        let upwards = self.graph.edges.iter().step_by(2).filter(|edge| Some(edge.from) == node);
        let is_numa = |node| matches!(self.graph.node(node).kind, NodeKind::Numa(_));
        let (pcie, others): (Vec<&Edge>, Vec<&Edge>) =
            upwards.partition(|edge| edge.kind == EdgeKind::Pcie);
        let others = others.into_iter().filter(|edge| is_numa(edge.to));
        let plug = |edge: &Edge| Plug {
            color: link_color(edge.kind),
            width: link_width(edge.bandwidth_bytes_per_s),
        };
        pcie.into_iter().take(1).chain(others).map(plug).collect()
    }
}

/// What has no GPU in it comes first, in as many rows as keep it about as wide as the rest.
fn rows(blocks: Vec<Block>) -> Vec<Vec<Block>> {
    let (last, others): (Vec<Block>, Vec<Block>) = blocks.into_iter().partition(Block::has_gpu);
    let in_row = others.len().div_ceil(others.len().div_ceil(last.len().max(4)).max(1)).max(1);
    let mut rows: Vec<Vec<Block>> = Vec::new();
    for block in others {
        match rows.last_mut().filter(|row| row.len() < in_row) {
            Some(row) => row.push(block),
            None => rows.push(vec![block]),
        }
    }
    if !last.is_empty() {
        rows.push(last);
    }
    rows
}

fn add_ports(card: &mut Block, nic: &Nic) {
    card.words.extend(nic.ports.iter().flat_map(|port| [Words::bold(&port.name, 12.0), of(port)]));
}

fn of(port: &NetPort) -> Words {
    let speed = port.speed_mbit_per_s.filter(|&speed| speed > 0);
    let mut text =
        speed.map_or("speed unknown".into(), |speed| format!("{} Gbit/s", speed as f64 / 1e3));
    let is_bad = port.state == PortState::Down;
    if is_bad {
        text = "down".into();
    }
    Words { is_bad, ..Words::new(text, 10.0) }
}

/// Of the link upwards, in red where it could be faster.
fn speed(device: &PciDevice) -> Words {
    let text = device.link.map_or("speed unknown".into(), |link| link.to_string());
    let slower = device.link.zip(device.possible_link).is_some_and(|(now, possible)| {
        now.width > 0 && now.width < possible.width
            || now.gigatransfers_per_s > 0.0
                && now.gigatransfers_per_s < possible.gigatransfers_per_s
    });
    Words { is_bad: slower, ..Words::new(text, 10.0) }
}

fn shortened(text: String) -> String {
    if text.chars().count() <= MOST_LETTERS {
        return text;
    }
    text.chars().take(MOST_LETTERS - 1).chain(['…']).collect()
}
