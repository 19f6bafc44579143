//! Links between GPUs and between NUMA nodes as bands, and the rings as coloured lines in them.
//!
//! Each pair of boxes that has a link or follows one another in a ring is a track: an arc below the GPUs, or above
//! the NUMA nodes. Its band is as wide as the link's bandwidth says; lines are broken where the ring goes over
//! PCIe and processors.

use std::collections::BTreeMap;

use super::canvas::{Canvas, Stroke};
use super::{link_color, link_width, ring_color};
use crate::search::{Channel, RingSet};
use crate::{EdgeId, EdgeKind, Graph, NodeId, NodeKind};

/// Of the fastest ring, and of one that carries hardly anything.
const WIDEST_LINE: f64 = 2.4;
const NARROWEST_LINE: f64 = 1.0;

const BETWEEN_LINES: f64 = 3.0;

/// More rings than there are colours are not drawn.
pub(super) const MOST_RINGS: usize = 8;

/// Where arcs may end: at a lower (or upper) edge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side {
    pub left: f64,
    pub right: f64,
    pub y: f64,
}

impl Side {
    fn middle(&self) -> f64 {
        (self.left + self.right) / 2.0
    }
}

/// Which way arcs bend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bend {
    Down,
    Up,
}

/// All tracks on one side of the boxes.
pub(super) struct Tracks {
    tracks: Vec<Track>,
    bend: Bend,
}

struct Track {
    /// The left one and the right one.
    ends: [Side; 2],
    /// Colour and width of the link.
    band: Option<(&'static str, f64)>,
    lines: Vec<Line>,
    /// Where on its sides it ends.
    x: [f64; 2],
}

/// A ring on a track.
struct Line {
    ring: usize,
    width: f64,
    is_broken: bool,
}

impl Track {
    /// Of all lines side by side.
    fn width(&self) -> f64 {
        let lines = BETWEEN_LINES * self.lines.len() as f64;
        self.band.map_or(0.0, |(_, width)| width).max(lines)
    }
}

impl Tracks {
    /// Between the boxes that have a side here.
    pub fn new(
        graph: &Graph,
        sides: &BTreeMap<NodeId, Side>,
        rings: Option<&RingSet>,
        bend: Bend,
    ) -> Tracks {
        let mut found = BTreeMap::new();
        for edge in graph.edges.iter().step_by(2) {
            if let Some(track) = between(&mut found, sides, [edge.from, edge.to]) {
                track.band = Some((link_color(edge.kind), link_width(edge.bandwidth_bytes_per_s)));
            }
        }
        let devices = rings.map_or(&[][..], |set| &set.devices);
        let most = rings.and_then(|set| set.channels.first()).map_or(0.0, |c| c.rate_bytes_per_s);
        for (ring, channel) in drawn(rings) {
            let part = (channel.rate_bytes_per_s / most).sqrt();
            let width = NARROWEST_LINE + (WIDEST_LINE - NARROWEST_LINE) * part;
            let next = channel.order.iter().skip(1).chain(channel.order.first());
            for ((&from, &to), hop) in channel.order.iter().zip(next).zip(&channel.hops) {
                let ends = [devices[from], devices[to]];
                if let Some(track) = between(&mut found, sides, ends) {
                    track.lines.push(Line { ring, width, is_broken: is_broken(graph, hop) });
                }
            }
        }
        let mut tracks = Tracks { tracks: found.into_values().collect(), bend };
        tracks.share_sides();
        tracks
    }

    /// How far the farthest arc reaches.
    pub fn height(&self) -> f64 {
        let reach = |track: &Track| self.reach(track) + track.width() / 2.0;
        self.tracks.iter().map(reach).fold(0.0, f64::max)
    }

    pub fn draw(&self, canvas: &mut Canvas) {
        for track in &self.tracks {
            if let Some((color, width)) = track.band {
                self.arc(canvas, track, 0.0, Stroke::new(color, width.max(track.width())));
            }
        }
        for track in &self.tracks {
            let middle = (track.lines.len() as f64 - 1.0) / 2.0;
            for (place, line) in track.lines.iter().enumerate() {
                let aside = (place as f64 - middle) * BETWEEN_LINES;
                let Line { ring, width, is_broken } = *line;
                let look = Stroke { is_broken, ..Stroke::new(ring_color(ring), width) };
                self.arc(canvas, track, aside, look);
            }
        }
    }

    /// `aside` is how far outside of the track's middle.
    fn arc(&self, canvas: &mut Canvas, track: &Track, aside: f64, look: Stroke) {
        let sign = if self.bend == Bend::Down { 1.0 } else { -1.0 };
        let from = (track.x[0] - aside, track.ends[0].y);
        let to = (track.x[1] + aside, track.ends[1].y);
        canvas.arc(from, to, sign * (self.reach(track) + aside), look);
    }

    fn reach(&self, track: &Track) -> f64 {
        let length = track.x[1] - track.x[0];
        match self.bend {
            Bend::Down => 14.0 + 0.17 * length,
            Bend::Up => 10.0 + 0.04 * length,
        }
    }

    /// Gives each track its place on its sides, so that those of one box do not cross: to the left the nearest box is
    /// the leftmost, to the right the nearest is the rightmost.
    fn share_sides(&mut self) {
        let mut by_side: BTreeMap<u64, Vec<(usize, usize)>> = BTreeMap::new();
        for (number, track) in self.tracks.iter().enumerate() {
            for end in 0..2 {
                let side = track.ends[end].middle().to_bits();
                by_side.entry(side).or_default().push((number, end));
            }
        }
        for ends in by_side.values_mut() {
            let far = |&(number, end): &(usize, usize)| {
                let track = &self.tracks[number];
                let [left, right] = track.ends.map(|side| side.middle());
                // At its right end a track goes to the left: nearest first. At its left end farthest first.
                if end == 1 { (0, right - left) } else { (1, left - right) }
            };
            ends.sort_by(|a, b| {
                let (a, b) = (far(a), far(b));
                a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
            });
            let widths: f64 = ends.iter().map(|&(number, _)| self.tracks[number].width()).sum();
            let side = self.tracks[ends[0].0].ends[ends[0].1];
            let gap = (side.right - side.left - widths) / (ends.len() as f64 + 1.0);
            let mut x = side.left + gap;
            for &(number, end) in ends.iter() {
                let width = self.tracks[number].width();
                self.tracks[number].x[end] = x + width / 2.0;
                x += width + gap;
            }
        }
    }
}

/// The track of two nodes, if both have a side.
fn between<'t>(
    found: &'t mut BTreeMap<[NodeId; 2], Track>,
    sides: &BTreeMap<NodeId, Side>,
    [a, b]: [NodeId; 2],
) -> Option<&'t mut Track> {
    let mut ends = [*sides.get(&a)?, *sides.get(&b)?];
    if ends[0].middle() > ends[1].middle() {
        ends.reverse();
    }
    let new = Track { ends, band: None, lines: Vec::new(), x: [0.0; 2] };
    Some(found.entry([a.min(b), a.max(b)]).or_insert(new))
}

/// The rings for which there are colours, with their numbers.
pub(super) fn drawn(rings: Option<&RingSet>) -> impl Iterator<Item = (usize, &Channel)> {
    let channels = rings.map_or(&[][..], |set| &set.channels);
    channels.iter().take(MOST_RINGS).enumerate()
}

/// Whether a hop is drawn so: it is not over links of the GPUs (or, between NUMA nodes, of the processors) alone.
pub(super) fn is_broken(graph: &Graph, hop: &[EdgeId]) -> bool {
    hop.iter().any(|&id| graph.edge(id).kind == EdgeKind::Pcie)
}

/// The node of the NVSwitches, and the GPUs that have links with it, with their bandwidths.
pub(super) fn switched(graph: &Graph) -> Option<(NodeId, Vec<(NodeId, f64)>)> {
    let is_switch = |node: NodeId| matches!(graph.node(node).kind, NodeKind::NvSwitch(_));
    let links = graph.edges.iter().step_by(2);
    let links = links.filter(|edge| edge.kind == EdgeKind::NvLink && is_switch(edge.to));
    let links: Vec<_> =
        links.map(|edge| (edge.to, edge.from, edge.bandwidth_bytes_per_s)).collect();
    let (switch, ..) = *links.first()?;
    Some((switch, links.into_iter().map(|(_, gpu, bandwidth)| (gpu, bandwidth)).collect()))
}
