//! What lines and colours mean.

use std::collections::BTreeSet;

use super::canvas::{Canvas, Lettering, Stroke, text_width};
use super::tracks::{MOST_RINGS, drawn, is_broken};
use super::{gigabytes, link_color, link_width, ring_color};
use crate::search::RingSet;
use crate::{EdgeKind, Graph};

const LINE_HEIGHT: f64 = 19.0;
const SIZE: f64 = 12.0;
const SAMPLE: f64 = 34.0;
const BETWEEN_COLUMNS: f64 = 40.0;

/// More kinds of links are left out.
const MOST_LINKS: usize = 12;

/// A line of the legend.
struct Entry {
    look: Option<Stroke>,
    text: String,
}

impl Entry {
    fn text(text: impl Into<String>) -> Entry {
        Entry { look: None, text: text.into() }
    }

    fn width(&self) -> f64 {
        SAMPLE + 10.0 + text_width(&self.text, SIZE)
    }
}

/// Draws it from this place on, and returns its width and height.
pub(super) fn draw(
    canvas: &mut Canvas,
    x: f64,
    y: f64,
    graph: &Graph,
    rings: Option<&RingSet>,
) -> (f64, f64) {
    let columns = [links(graph), rings.map_or_else(Vec::new, |set| of_rings(graph, set))];
    let (mut left, mut height) = (x, 0.0_f64);
    for entries in columns.iter().filter(|entries| !entries.is_empty()) {
        for (number, entry) in entries.iter().enumerate() {
            let middle = y + LINE_HEIGHT * (number as f64 + 0.5);
            let start = match entry.look {
                Some(look) => {
                    canvas.line((left, middle), (left + SAMPLE, middle), look);
                    left + SAMPLE + 10.0
                }
                None => left,
            };
            let is_bold = number == 0;
            let look =
                Lettering { x: start, y: middle + 4.0, size: SIZE, is_bold, color: "#333333" };
            canvas.text(look, &entry.text);
        }
        height = height.max(LINE_HEIGHT * entries.len() as f64);
        left += entries.iter().map(Entry::width).fold(0.0, f64::max) + BETWEEN_COLUMNS;
    }
    (left - BETWEEN_COLUMNS - x, height)
}

/// Each kind of link and bandwidth once.
fn links(graph: &Graph) -> Vec<Entry> {
    let kinds = [
        (EdgeKind::NvLink, "NVLink"),
        (EdgeKind::Xgmi, "xgmi"),
        (EdgeKind::C2c, "GPU and processor"),
        (EdgeKind::Pcie, "PCIe, to the box around"),
        (EdgeKind::Die, "inside a package"),
        (EdgeKind::Socket, "between packages"),
    ];
    let mut entries = Vec::new();
    for (kind, name) in kinds {
        let edges = graph.edges.iter().filter(|edge| edge.kind == kind);
        let figures: BTreeSet<(u64, u32)> =
            edges.map(|edge| (edge.bandwidth_bytes_per_s as u64, edge.links)).collect();
        for (bandwidth, links) in figures.into_iter().rev() {
            let bandwidth = bandwidth as f64;
            let times = if links > 1 { format!(" x{links}") } else { String::new() };
            let look = Stroke::new(link_color(kind), link_width(bandwidth));
            let text = format!("{name}{times}: {}", gigabytes(bandwidth));
            entries.push(Entry { look: Some(look), text });
        }
    }
    if entries.is_empty() {
        return entries;
    }
    let more = entries.len().saturating_sub(MOST_LINKS);
    entries.truncate(MOST_LINKS);
    if more > 0 {
        entries.push(Entry::text(format!("and {more} more")));
    }
    entries.insert(0, Entry::text("Links, each way"));
    entries
}

/// Each ring with its rate and order.
fn of_rings(graph: &Graph, set: &RingSet) -> Vec<Entry> {
    if set.channels.is_empty() {
        return Vec::new();
    }
    let mut entries =
        vec![Entry::text(format!("Rings, together {}", gigabytes(set.total_bytes_per_s)))];
    for (number, channel) in drawn(Some(set)) {
        let names = channel.order.iter().map(|&place| {
            let name = graph.node(set.devices[place]).name.as_str();
            name.trim_start_matches("GPU").trim_start_matches("NUMA")
        });
        let order = names.collect::<Vec<_>>().join(" ");
        let text = format!("{}: {order}", gigabytes(channel.rate_bytes_per_s));
        entries.push(Entry { look: Some(Stroke::new(ring_color(number), 2.5)), text });
    }
    let more = set.channels.len().saturating_sub(MOST_RINGS);
    if more > 0 {
        entries.push(Entry::text(format!("and {more} more, not drawn")));
    }
    if drawn(Some(set)).any(|(_, channel)| channel.hops.iter().any(|hop| is_broken(graph, hop))) {
        entries.push(Entry::text("broken: over PCIe and processors"));
    }
    entries
}
