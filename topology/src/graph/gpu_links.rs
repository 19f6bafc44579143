//! Links of GPUs beside PCIe: with each other, with NVSwitches and with processors.

use std::collections::BTreeMap;

use super::build::Builder;
use super::{Edge, EdgeKind, NodeId, NodeKind};
use crate::{BusId, GpuLink, GpuLinkKind, figures};

pub(super) fn add(builder: &mut Builder) {
    let by_bus_id: BTreeMap<BusId, usize> =
        builder.gpus.iter().enumerate().map(|(place, gpu)| (gpu.bus_id, place)).collect();
    let mut found = Found::default();
    for place in 0..builder.gpus.len() {
        let gpu = builder.gpus[place].gpu;
        for link in gpu.links.iter().filter(|link| link.count > 0) {
            found.sort(builder, &by_bus_id, place, link);
        }
    }
    found.pair_turned_back(builder);
    found.add_between_gpus(builder);
    found.add_others(builder);
}

/// Bundles by where they lead. GPUs are places in `Builder::gpus`.
#[derive(Default)]
struct Found {
    /// From the first GPU to the second, by its own description.
    to_gpus: BTreeMap<(usize, usize), Bundle>,
    /// Those that lead back to their own GPU.
    turned_back: Vec<(usize, Bundle)>,
    to_switches: BTreeMap<usize, Bundle>,
    /// The lowest NVSwitch.
    switch: Option<BusId>,
    to_processors: BTreeMap<(usize, GpuLinkKind), Bundle>,
}

#[derive(Clone, Copy)]
struct Bundle {
    kind: GpuLinkKind,
    links: u32,
    bandwidth_bytes_per_s: f64,
}

impl Bundle {
    /// Together with what was found before.
    fn join(self, before: Option<&Bundle>) -> Bundle {
        let Some(before) = before else { return self };
        Bundle {
            links: self.links.saturating_add(before.links),
            bandwidth_bytes_per_s: self.bandwidth_bytes_per_s + before.bandwidth_bytes_per_s,
            ..self
        }
    }
}

impl Found {
    fn sort(
        &mut self,
        builder: &mut Builder,
        by_bus_id: &BTreeMap<BusId, usize>,
        place: usize,
        link: &GpuLink,
    ) {
        let one = bandwidth_of_one(builder, place, link);
        let bandwidth_bytes_per_s = one * f64::from(link.count);
        let bundle = Bundle { kind: link.kind, links: link.count, bandwidth_bytes_per_s };
        let is_switch = link.target_class >> 8 == 0x0680 && link.target_class != 0x068001;
        match link.target {
            Some(target) if target == builder.gpus[place].bus_id => {
                self.turned_back.push((place, bundle));
            }
            Some(target) if by_bus_id.contains_key(&target) => {
                let pair = (place, by_bus_id[&target]);
                self.to_gpus.insert(pair, bundle.join(self.to_gpus.get(&pair)));
            }
            Some(target) if is_switch => {
                self.switch = Some(self.switch.map_or(target, |lowest| lowest.min(target)));
                self.to_switches.insert(place, bundle.join(self.to_switches.get(&place)));
            }
            // IBM's bridge of a POWER processor is 0x068001.
            Some(_) if link.target_class >> 16 == 0x06 => self.add_to_processor(place, bundle),
            None => self.add_to_processor(place, bundle),
            Some(target) => {
                let message = format!("has {} with {target}, which is not here", links(link.count));
                warn(builder, place, format!("{message}: left out"));
            }
        }
    }

    fn add_to_processor(&mut self, place: usize, bundle: Bundle) {
        let key = (place, bundle.kind);
        self.to_processors.insert(key, bundle.join(self.to_processors.get(&key)));
    }

    /// Some virtual machines give a GPU itself as the other end of its NVLinks (Azure's NC A100 v4, whose
    /// cards have bridges for two). No link does that, so the other end is a GPU of which the same is
    /// said: the next one. That is how such cards are built in.
    fn pair_turned_back(&mut self, builder: &mut Builder) {
        let mut turned_back = std::mem::take(&mut self.turned_back);
        let index = |builder: &Builder, place: usize| builder.gpus[place].gpu.index;
        turned_back
            .sort_by_key(|&(place, bundle)| (bundle.kind, bundle.links, index(builder, place)));
        let alike = |a: &(usize, Bundle), b: &(usize, Bundle)| {
            (a.1.kind, a.1.links) == (b.1.kind, b.1.links)
        };
        for gpus in turned_back.chunk_by(alike) {
            for pair in gpus.chunks(2) {
                let count = pair[0].1.links;
                let says = format!("gives itself as the other end of its {}", links(count));
                let [(a, bundle), (b, _)] = *pair else {
                    warn(builder, pair[0].0, format!("{says}: left out"));
                    continue;
                };
                let (a_index, b_index) = (index(builder, a), index(builder, b));
                warn(builder, a, format!("{says}: taken to lead to GPU{b_index}"));
                warn(builder, b, format!("{says}: taken to lead to GPU{a_index}"));
                for between in [(a, b), (b, a)] {
                    self.to_gpus.insert(between, bundle.join(self.to_gpus.get(&between)));
                }
            }
        }
    }

    /// Both GPUs describe a link; where they differ, the smaller one is believed.
    fn add_between_gpus(&self, builder: &mut Builder) {
        for (&(a, b), &there) in &self.to_gpus {
            let back = self.to_gpus.get(&(b, a));
            if back.is_some() && b < a {
                continue;
            }
            let count = match back {
                None => {
                    let other = builder.gpus[b].gpu.index;
                    let known = format!("has {} with GPU{other}", links(there.links));
                    warn(builder, a, format!("{known}, which names none: believed"));
                    there.links
                }
                Some(back) if back.links != there.links => {
                    let other = builder.gpus[b].gpu.index;
                    let (more, fewer) = (there.links.max(back.links), there.links.min(back.links));
                    let message = format!("has {more} or {fewer} links with GPU{other}");
                    warn(builder, a, format!("{message}, as either says: {fewer} assumed"));
                    fewer
                }
                Some(_) => there.links,
            };
            let bandwidth = there.bandwidth_bytes_per_s;
            let slower = back.map_or(bandwidth, |back| bandwidth.min(back.bandwidth_bytes_per_s));
            let bundle = Bundle { links: count, bandwidth_bytes_per_s: slower, ..there };
            let to = builder.gpus[b].node;
            link(builder, a, to, bundle, figures::GPU_LINK_LATENCY_NS);
        }
    }

    fn add_others(&self, builder: &mut Builder) {
        if let Some(bus_id) = self.switch {
            let switch = builder.graph.add_node("NVSwitch", NodeKind::NvSwitch(bus_id));
            for (&place, &bundle) in &self.to_switches {
                link(builder, place, switch, bundle, figures::NVSWITCH_LATENCY_NS);
            }
        }
        for (&(place, _), &bundle) in &self.to_processors {
            let processor = builder.gpus[place].numa;
            link(builder, place, processor, bundle, figures::NVSWITCH_LATENCY_NS);
        }
    }
}

fn bandwidth_of_one(builder: &mut Builder, place: usize, link: &GpuLink) -> f64 {
    let gpu = builder.gpus[place].gpu;
    if let Some(given) = link.bandwidth_bytes_per_s.filter(|&given| given > 0.0) {
        return given;
    }
    let (known, figure) = match link.kind {
        GpuLinkKind::NvLink => {
            let known = gpu.compute_capability.is_some();
            (known, figures::nvlink_bytes_per_s(gpu.compute_capability))
        }
        GpuLinkKind::Xgmi => {
            let figure = figures::xgmi_bytes_per_s(&gpu.gcn);
            (figure.is_some(), figure.unwrap_or(figures::XGMI_LINK_BYTES_PER_S))
        }
        GpuLinkKind::C2c => (false, figures::C2C_LINK_BYTES_PER_S),
    };
    if !known {
        let what = match link.kind {
            GpuLinkKind::NvLink => "compute capability is unknown: NVLinks",
            GpuLinkKind::Xgmi => "architecture is unknown: xgmi links",
            GpuLinkKind::C2c => "links with its processor say no bandwidth: links",
        };
        let message = format!("{what} of {} GB/s assumed", figure / 1e9);
        let subject = subject(builder, place);
        if !builder.warnings.iter().any(|w| w.subject == subject && w.message == message) {
            builder.warn(subject, message);
        }
    }
    figure
}

fn link(builder: &mut Builder, place: usize, to: NodeId, bundle: Bundle, latency_ns: u64) {
    let kind = match bundle.kind {
        GpuLinkKind::NvLink => EdgeKind::NvLink,
        GpuLinkKind::Xgmi => EdgeKind::Xgmi,
        GpuLinkKind::C2c => EdgeKind::C2c,
    };
    builder.graph.add_link(Edge {
        from: builder.gpus[place].node,
        to,
        kind,
        links: bundle.links,
        bandwidth_bytes_per_s: bundle.bandwidth_bytes_per_s,
        latency_ns,
    });
}

/// `1 link`, `4 links`.
fn links(count: u32) -> String {
    format!("{count} link{}", if count == 1 { "" } else { "s" })
}

fn warn(builder: &mut Builder, place: usize, message: String) {
    let subject = subject(builder, place);
    builder.warn(subject, message);
}

fn subject(builder: &Builder, place: usize) -> String {
    let gpu = &builder.gpus[place];
    format!("GPU{} ({})", gpu.gpu.index, gpu.bus_id)
}
