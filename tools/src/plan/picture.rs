//! The picture of a plan: ranks as columns, time downwards, an arrow for each message in the colour of its
//! chunk.
//!
//! Time is that of the cost model on a machine where a chunk needs one unit to pass a port, and one more to
//! arrive.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use ringtree_plan::{
    Action, Machine, Plan, Program, Source, Space, Span, Transfer, Work, lower, trace,
};

use crate::chart::COLORS;

const UNIT_HEIGHT: f64 = 34.0;
const TOP: i32 = 84;
const LEFT: i32 = 60;
const LEGEND_WIDTH: i32 = 230;
const LEGEND_ROW: i32 = 22;
const FONT: &str = "sans-serif";

/// Chunks that get a line in the legend.
const MOST_NAMED_CHUNKS: u32 = 16;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;

/// Draws the plans of all ranks into a file.
pub fn write(title: &str, plans: &[Plan], path: &Path) -> io::Result<()> {
    let svg = Picture::new(plans).draw(title).map_err(io::Error::other)?;
    fs::write(path, svg)
}

struct Picture {
    chunks: u32,
    ranks: u32,
    arrows: Vec<Arrow>,
    end: f64,
}

/// A message.
struct Arrow {
    transfer: Transfer,
    /// The first of its chunks.
    chunk: u32,
    /// The receiver adds it to what it has.
    is_folded: bool,
}

impl Picture {
    fn new(plans: &[Plan]) -> Picture {
        let programs: Vec<Program> = plans.iter().map(lower).collect();
        let chunks = programs[0].chunks;
        let machine = Machine {
            latency_s: 1.0,
            message_s: 0.0,
            bandwidth_bytes_per_s: 1.0,
            reduction_bytes_per_s: f64::INFINITY,
            local: None,
        };
        let transfers = trace(&programs, machine, Work::whole(f64::from(chunks)));
        let mut folded = Folded::new(&programs);
        let arrow = |transfer: Transfer| Arrow {
            transfer,
            chunk: chunk(&programs[transfer.from as usize], transfer.span),
            is_folded: folded.next(transfer.from, transfer.to),
        };
        let end = transfers.iter().map(|transfer| transfer.end_s).fold(1.0, f64::max);
        let arrows = transfers.into_iter().map(arrow).collect();
        Picture { chunks, ranks: plans[0].ranks, arrows, end }
    }

    fn draw(&self, title: &str) -> Result<String, DrawingAreaErrorKind<io::Error>> {
        let right = self.column(self.ranks - 1) + 50;
        let legend = 130 + LEGEND_ROW * self.chunks.min(MOST_NAMED_CHUNKS + 1) as i32;
        let height = (self.height(self.end) + 30).max(TOP + legend);
        // A title is longer than the columns of two ranks.
        let width = (right + LEGEND_WIDTH).max(560);
        let mut svg = String::new();
        {
            let size = (width as u32, height as u32);
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            area.fill(&WHITE)?;
            area.draw(&Text::new(title.to_owned(), (16, 14), (FONT, 18)))?;
            self.draw_grid(&area)?;
            self.arrows.iter().try_for_each(|arrow| self.draw_arrow(&area, arrow))?;
            // Above all lines.
            self.arrows.iter().try_for_each(|arrow| self.draw_name(&area, arrow))?;
            self.draw_legend(&area, right)?;
            area.present()?;
        }
        Ok(svg)
    }

    fn column_width(&self) -> i32 {
        (1100 / self.ranks as i32).clamp(44, 150)
    }

    /// Where the line of a rank is.
    fn column(&self, rank: u32) -> i32 {
        LEFT + 30 + rank as i32 * self.column_width()
    }

    /// Where a moment is.
    fn height(&self, moment: f64) -> i32 {
        TOP + (moment * UNIT_HEIGHT).round() as i32
    }

    fn draw_grid(&self, area: &Area) -> Drawn {
        let right = self.column(self.ranks - 1) + 22;
        for unit in 0..=self.end.ceil() as u32 {
            let y = self.height(f64::from(unit));
            let line = [(LEFT, y), (right, y)];
            area.draw(&PathElement::new(line, RGBColor(232, 232, 232)))?;
            let number = unit.to_string();
            let x = LEFT - 10 - 7 * number.len() as i32;
            area.draw(&Text::new(number, (x, y - 6), (FONT, 12)))?;
        }
        for rank in 0..self.ranks {
            let x = self.column(rank);
            let line = [(x, TOP - 8), (x, self.height(self.end) + 10)];
            area.draw(&PathElement::new(line, RGBColor(150, 150, 150).stroke_width(2)))?;
            let name =
                if self.column_width() < 60 { format!("{rank}") } else { format!("rank {rank}") };
            let x = x - 4 * name.len() as i32;
            area.draw(&Text::new(name, (x, TOP - 30), (FONT, 15)))?;
        }
        Ok(())
    }

    fn ends(&self, arrow: &Arrow) -> [(i32, i32); 2] {
        let Transfer { from, to, start_s, end_s, .. } = arrow.transfer;
        [(self.column(from), self.height(start_s)), (self.column(to), self.height(end_s))]
    }

    fn draw_arrow(&self, area: &Area, arrow: &Arrow) -> Drawn {
        let [tail, head] = self.ends(arrow);
        let color = self.color(arrow);
        let width = if arrow.transfer.span.len > 1 { 3 } else { 2 };
        let (along, across) = directions(tail, head);
        let at = |back: f64, aside: f64| {
            let x = f64::from(head.0) - along.0 * back + across.0 * aside;
            let y = f64::from(head.1) - along.1 * back + across.1 * aside;
            (x.round() as i32, y.round() as i32)
        };
        let gap = if arrow.is_folded { 5.0 } else { 1.0 };
        area.draw(&PathElement::new([tail, at(gap + 8.0, 0.0)], color.stroke_width(width)))?;
        let tip = vec![at(gap, 0.0), at(gap + 11.0, 5.0), at(gap + 11.0, -5.0)];
        area.draw(&Polygon::new(tip, color.filled()))?;
        if arrow.is_folded {
            area.draw(&Circle::new(head, 5, color.filled()))?;
        }
        Ok(())
    }

    /// The chunks of a message, beside its tail.
    fn draw_name(&self, area: &Area, arrow: &Arrow) -> Drawn {
        let len = arrow.transfer.span.len;
        let name = match len {
            0 => return Ok(()),
            1 => arrow.chunk.to_string(),
            _ => format!("{}-{}", arrow.chunk, arrow.chunk + len - 1),
        };
        let [tail, head] = self.ends(arrow);
        let (along, _) = directions(tail, head);
        let width = 7 * name.len() as i32;
        let away = 20.0 + f64::from(width) / 4.0;
        let x = f64::from(tail.0) + along.0 * away;
        let y = f64::from(tail.1) + along.1 * away;
        let (x, y) = (x.round() as i32 - width / 2, y.round() as i32 - 7);
        let ground = [(x - 2, y), (x + width + 2, y + 13)];
        area.draw(&Rectangle::new(ground, WHITE.mix(0.85).filled()))?;
        let style = (FONT, 12).into_font().color(&self.color(arrow));
        area.draw(&Text::new(name, (x, y), style))
    }

    fn color(&self, arrow: &Arrow) -> RGBColor {
        if arrow.transfer.span.len == 0 {
            COLORS[COLORS.len() - 1]
        } else {
            self.chunk_color(arrow.chunk)
        }
    }

    /// Few chunks have colours that differ; many go from blue to green.
    fn chunk_color(&self, chunk: u32) -> RGBColor {
        let distinct = COLORS.len() - 1;
        if self.chunks as usize <= distinct {
            return COLORS[chunk as usize % distinct];
        }
        // Without the yellow end, which is faint on white.
        ViridisRGB::get_color_normalized(f64::from(chunk), 0.0, f64::from(self.chunks) * 1.2)
    }

    fn draw_legend(&self, area: &Area, left: i32) -> Drawn {
        let mut y = TOP - 24;
        let text =
            |y: i32, words: &str| Text::new(words.to_owned(), (left + 42, y - 7), (FONT, 13));
        let named = self.chunks.min(MOST_NAMED_CHUNKS);
        let moves = self.arrows.iter().any(|arrow| arrow.transfer.span.len > 0);
        for chunk in (0..self.chunks).take(if moves { named as usize } else { 0 }) {
            let line = [(left + 4, y), (left + 34, y)];
            area.draw(&PathElement::new(line, self.chunk_color(chunk).stroke_width(4)))?;
            area.draw(&text(y, &format!("chunk {chunk}")))?;
            y += LEGEND_ROW;
        }
        if moves && self.chunks > named {
            area.draw(&text(y, &format!("and so on to {}", self.chunks - 1)))?;
            y += LEGEND_ROW;
        }
        y += 10;
        let grey = COLORS[COLORS.len() - 1];
        area.draw(&PathElement::new([(left + 4, y), (left + 26, y)], grey.stroke_width(2)))?;
        area.draw(&Polygon::new(
            [(left + 34, y), (left + 24, y - 5), (left + 24, y + 5)],
            grey.filled(),
        ))?;
        let meaning = if moves { "is taken as it is" } else { "an empty message" };
        area.draw(&text(y, meaning))?;
        if self.arrows.iter().any(|arrow| arrow.is_folded) {
            y += LEGEND_ROW;
            area.draw(&PathElement::new([(left + 4, y), (left + 26, y)], grey.stroke_width(2)))?;
            area.draw(&Circle::new((left + 30, y), 5, grey.filled()))?;
            area.draw(&text(y, "is reduced with others"))?;
        }
        for line in ["time downwards: a chunk needs", "1 to pass a port, 1 to arrive"] {
            y += LEGEND_ROW;
            area.draw(&Text::new(line, (left + 4, y - 1), (FONT, 13)))?;
        }
        Ok(())
    }
}

/// Along an arrow, and across it.
fn directions(tail: (i32, i32), head: (i32, i32)) -> ((f64, f64), (f64, f64)) {
    let (dx, dy) = (f64::from(head.0 - tail.0), f64::from(head.1 - tail.1));
    let length = dx.hypot(dy).max(1.0);
    let along = (dx / length, dy / length);
    (along, (-along.1, along.0))
}

/// The first chunk of the round that a span holds.
fn chunk(program: &Program, span: Span) -> u32 {
    match span.space {
        Space::Input | Space::Output => span.start,
        Space::Scratch => program.scratch.get(span.start as usize).copied().unwrap_or(0),
    }
}

/// For each channel, whether its messages are folded, in their order.
struct Folded(HashMap<(u32, u32), VecDeque<bool>>);

impl Folded {
    fn new(programs: &[Program]) -> Folded {
        let mut folded: HashMap<(u32, u32), VecDeque<bool>> = HashMap::new();
        for program in programs {
            for action in &program.actions {
                let &Action::Move { first_source, sources, .. } = action else { continue };
                let operands = &program.sources[first_source as usize..][..sources as usize];
                for operand in operands {
                    if let &Source::Arrival { peer } = operand {
                        let channel = folded.entry((peer, program.rank)).or_default();
                        channel.push_back(sources > 1);
                    }
                }
            }
        }
        Folded(folded)
    }

    fn next(&mut self, from: u32, to: u32) -> bool {
        self.0.get_mut(&(from, to)).and_then(VecDeque::pop_front).unwrap_or(false)
    }
}
