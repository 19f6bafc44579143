//! The drawing of a machine, as SVG: boxes nested as the hardware is, links as lines that are the wider the
//! more they carry, rings in colour.
//!
//! NUMA nodes stand side by side, in them bridges, and in those GPUs (always at the lower edge) and cards. The
//! link of a box to the one around it is a short line above it; links between GPUs are arcs below them,
//! those between NUMA nodes arcs above. A ring goes along these arcs.

mod blocks;
mod canvas;
mod layout;
mod legend;
#[cfg(test)]
mod tests;
mod tracks;

use std::collections::BTreeMap;

use blocks::{Block, Kind};
use canvas::{Area, Canvas, Lettering, Stroke, text_width};
use tracks::{Bend, Side, Tracks};

use crate::search::RingSet;
use crate::{EdgeKind, Graph, Machine, NodeId};

const MARGIN: f64 = 20.0;
const TITLE_SIZE: f64 = 16.0;

/// From the boxes to the bar of the NVSwitches, and its height.
const ABOVE_SWITCH: f64 = 30.0;
const SWITCH_HEIGHT: f64 = 24.0;

/// Draws a machine, and the rings that were found in its graph.
///
/// The same machine gives the same text. Width and height in pixels depend on the machine: some 1,200 by 700 for
/// 8 GPUs and 8 cards. Of more than eight rings the first eight are drawn.
pub fn svg(machine: &Machine, graph: &Graph, rings: Option<&RingSet>) -> String {
    let mut blocks = blocks::of_machine(machine, graph);
    let mut canvas = Canvas::default();
    let title = title(machine);
    let top = MARGIN + TITLE_SIZE + 12.0;
    // Heights of arcs depend on how far boxes are apart, not on where they are.
    layout::place_side_by_side(&mut blocks, MARGIN, top);
    let above = Tracks::new(graph, &upper_sides(&blocks), rings, Bend::Up).height();
    let boxes = layout::place_side_by_side(&mut blocks, MARGIN, top + above);
    let above = Tracks::new(graph, &upper_sides(&blocks), rings, Bend::Up);
    above.draw(&mut canvas);
    blocks.iter().for_each(|block| draw_block(&mut canvas, block));
    let mut bottom = boxes.bottom();
    let mut sides = lower_sides(&blocks);
    if let Some(switch) = draw_switch(&mut canvas, graph, &mut sides, bottom) {
        bottom = switch;
    }
    let below = Tracks::new(graph, &sides, rings, Bend::Down);
    below.draw(&mut canvas);
    bottom += below.height() + MARGIN;
    let (legend_width, legend_height) = legend::draw(&mut canvas, MARGIN, bottom, graph, rings);
    let look = Lettering {
        x: MARGIN,
        y: MARGIN + TITLE_SIZE,
        size: TITLE_SIZE,
        is_bold: true,
        color: INK,
    };
    canvas.text(look, &title);
    let width = boxes.width.max(legend_width).max(text_width(&title, TITLE_SIZE));
    canvas.finish(width + 2.0 * MARGIN, bottom + legend_height + MARGIN)
}

const INK: &str = "#222222";
const RED: &str = "#c00000";

/// Of rings: those of Okabe and Ito (2008), which can be told apart whatever one sees of colours, without the
/// black, and with a brown and a purple instead.
const RING_COLORS: [&str; tracks::MOST_RINGS] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3f00", "#6a3d9a"];

fn ring_color(ring: usize) -> &'static str {
    RING_COLORS[ring % RING_COLORS.len()]
}

/// Bands between GPUs are light, since rings lie on them.
fn link_color(kind: EdgeKind) -> &'static str {
    match kind {
        EdgeKind::NvLink | EdgeKind::Xgmi => "#d3d3d3",
        EdgeKind::C2c => "#8fbf6f",
        EdgeKind::Pcie => "#5f6b78",
        EdgeKind::Die => "#d9cfee",
        EdgeKind::Socket => "#c9bddf",
        EdgeKind::Net => "#4a78b0",
    }
}

/// In pixels: grows with the root, or else PCIe would be a hair beside NVLink.
fn link_width(bytes_per_s: f64) -> f64 {
    (bytes_per_s / 1e9).sqrt().clamp(1.0, 24.0)
}

fn gigabytes(bytes_per_s: f64) -> String {
    format!("{:.1} GB/s", bytes_per_s / 1e9)
}

fn title(machine: &Machine) -> String {
    let counted = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    let gpus = counted(machine.gpus().len(), "GPU");
    let ports = counted(machine.ports().len(), "network port");
    let nodes = counted(machine.numa_nodes.len(), "NUMA node");
    match machine.host.as_str() {
        "" => format!("{nodes}, {gpus}, {ports}"),
        host => format!("{host}: {nodes}, {gpus}, {ports}"),
    }
}

fn draw_block(canvas: &mut Canvas, block: &Block) {
    let (fill, border) = match block.kind {
        Kind::Numa => ("#f3f5f8", "#8a97a6"),
        Kind::Bridge => ("#ffffff", "#9aa5b1"),
        Kind::Gpu => ("#e2f2d9", "#5b9140"),
        Kind::Card => ("#dfeafa", "#4a78b0"),
        Kind::Unknown => ("#eeeeee", "#9aa5b1"),
    };
    let area = block.area;
    let plugs: f64 = block.plugs.iter().map(|plug| plug.width + 4.0).sum();
    let mut x = area.x + (area.width - plugs) / 2.0;
    for plug in &block.plugs {
        let middle = x + 2.0 + plug.width / 2.0;
        let end = (middle, area.y - layout::ABOVE_ROW + 3.0);
        canvas.line((middle, area.y), end, Stroke::new(plug.color, plug.width));
        x += plug.width + 4.0;
    }
    canvas.rectangle(area, 4.0, fill, Stroke::new(border, 1.2));
    for (words, y) in block.words.iter().zip(layout::lines(block)) {
        let color = if words.is_bad { RED } else { INK };
        let (size, is_bold) = (words.size, words.is_bold);
        canvas.text(Lettering { x: area.x + 7.0, y, size, is_bold, color }, &words.text);
    }
    block.rows.iter().flatten().for_each(|block| draw_block(canvas, block));
}

/// All NVSwitches as one bar below the GPUs that have links with them, whose arcs begin below it. Returns its
/// lower edge, if there is one.
fn draw_switch(
    canvas: &mut Canvas,
    graph: &Graph,
    sides: &mut BTreeMap<NodeId, Side>,
    above: f64,
) -> Option<f64> {
    let (switch, links) = tracks::switched(graph)?;
    let y = above + ABOVE_SWITCH;
    let (mut left, mut right) = (f64::INFINITY, 0.0_f64);
    for (gpu, bandwidth) in links {
        let Some(side) = sides.get_mut(&gpu) else { continue };
        let middle = (side.left + side.right) / 2.0;
        let look = Stroke::new(link_color(EdgeKind::NvLink), link_width(bandwidth));
        canvas.line((middle, side.y), (middle, y), look);
        (left, right) = (left.min(side.left), right.max(side.right));
        side.y = y + SWITCH_HEIGHT;
    }
    if right <= left {
        return None;
    }
    let area = Area { x: left, y, width: right - left, height: SWITCH_HEIGHT };
    canvas.rectangle(area, 4.0, "#fbefd9", Stroke::new("#c09853", 1.2));
    let name = &graph.node(switch).name;
    let x = left + (area.width - text_width(name, 13.0)) / 2.0;
    canvas.text(Lettering { x, y: y + 17.0, size: 13.0, is_bold: true, color: INK }, name);
    Some(area.bottom())
}

fn upper_sides(blocks: &[Block]) -> BTreeMap<NodeId, Side> {
    let side = |block: &Block| {
        let Area { x, y, .. } = block.area;
        Some((block.node?, Side { left: x, right: block.area.right(), y }))
    };
    blocks.iter().filter_map(side).collect()
}

fn lower_sides(blocks: &[Block]) -> BTreeMap<NodeId, Side> {
    let mut sides = BTreeMap::new();
    let mut add = |block: &Block| {
        let (left, right, y) = (block.area.x, block.area.right(), block.area.bottom());
        if let Some(node) = block.node.filter(|_| block.kind == Kind::Gpu) {
            sides.insert(node, Side { left, right, y });
        }
    };
    blocks.iter().for_each(|block| block.visit(&mut add));
    sides
}
