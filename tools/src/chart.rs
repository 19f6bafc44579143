//! Pictures of times and bandwidths: curves over sizes or over ranks, both axes logarithmic.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::combinators::{BindKeyPoints, LogCoord, WithKeyPoints};

use plotters::element::DashedPathElement;
use plotters::prelude::*;

const PANEL_WIDTH: u32 = 470;
const LEGEND_WIDTH: u32 = 240;
const HEIGHT: u32 = 440;
const TITLE_HEIGHT: u32 = 38;
const LINE_HEIGHT: i32 = 22;
const FONT: &str = "sans-serif";

/// Most labels below a panel.
const MOST_TICKS: usize = 8;

/// Colours that can be told apart whatever one sees of them: those of Okabe and Ito (2008) without the
/// yellow, which is faint on white, and a grey.
pub const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
    RGBColor(140, 140, 140),
];

/// What curves go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Sizes in bytes.
    Bytes,
    /// Numbers of ranks.
    Ranks,
}

/// A picture: time, and bus bandwidth beside it.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What is to be seen.
    pub title: String,
    /// What the curves go over.
    pub over: Over,
    /// The curves, in the order of the legend.
    pub curves: Vec<Curve>,
}

/// One curve of each panel.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Curves of one colour belong together: which of the colours.
    pub color: usize,
    /// Rings instead of dots: told from another curve of its colour.
    pub is_hollow: bool,
    /// A broken line: of an earlier run.
    pub is_broken: bool,
    /// What it goes through.
    pub points: Vec<Point>,
}

/// One point of a curve.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Bytes or ranks.
    pub x: u64,
    /// The time.
    pub time_us: f64,
    /// The bus bandwidth in 1e9 bytes a second; 0 where nothing is moved.
    pub busbw_gbps: f64,
    /// Whether the library chooses this there.
    pub is_chosen: bool,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type LogAxis = WithKeyPoints<LogCoord<f64>>;
type Panel<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<LogAxis, LogAxis>>;
type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;

impl Chart {
    /// Writes the picture as SVG.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, self.draw().map_err(io::Error::other)?)
    }

    fn draw(&self) -> Result<String, DrawingAreaErrorKind<io::Error>> {
        let mut svg = String::new();
        let quantities: &[Quantity] = if self.moves() {
            &[Quantity::Time, Quantity::BusBandwidth]
        } else {
            &[Quantity::Time]
        };
        let panels_width = PANEL_WIDTH * quantities.len() as u32;
        {
            let legend_height = (self.curves.len() as u32 + 2) * LINE_HEIGHT as u32;
            let height = TITLE_HEIGHT + HEIGHT.max(legend_height);
            let size = (panels_width + LEGEND_WIDTH, height);
            let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            root.fill(&WHITE)?;
            root.draw(&Text::new(self.title.clone(), (16, 14), (FONT, 18)))?;
            let (_, below) = root.split_vertically(TITLE_HEIGHT);
            let (panels, legend) = below.split_horizontally(panels_width);
            let (panels, _) = panels.split_vertically(HEIGHT);
            let areas = panels.split_evenly((1, quantities.len()));
            for (area, &quantity) in areas.iter().zip(quantities) {
                self.draw_panel(&root, area, quantity)?;
            }
            self.draw_legend(&legend)?;
            root.present()?;
        }
        Ok(svg)
    }

    /// Whether there is a bandwidth to speak of.
    fn moves(&self) -> bool {
        self.points().any(|point| point.busbw_gbps > 0.0)
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        self.curves.iter().flat_map(|curve| &curve.points)
    }

    fn draw_panel(&self, root: &Area, area: &Area, quantity: Quantity) -> Drawn {
        let mut ticks: Vec<f64> = self.points().map(|point| point.x as f64).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let across = range(ticks.iter().copied());
        let up = range(self.points().map(|point| quantity.of(point)).filter(|y| *y > 0.0));
        let every = ticks.len().div_ceil(MOST_TICKS);
        let ticks: Vec<f64> = ticks.into_iter().step_by(every.max(1)).collect();
        let heights = decades(&up);
        let mut panel = ChartBuilder::on(area)
            .margin_left(10)
            .margin_right(18)
            .margin_top(6)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(
                across.log_scale().with_key_points(ticks),
                up.log_scale().with_key_points(heights),
            )?;
        let over = self.over;
        panel
            .configure_mesh()
            .bold_line_style(RGBColor(222, 222, 222))
            .axis_style(RGBColor(110, 110, 110))
            .x_desc(over.name())
            .y_desc(quantity.name())
            .x_label_formatter(&move |x| over.label(*x))
            .y_label_formatter(&move |y| quantity.label(*y))
            .label_style((FONT, 13))
            .axis_desc_style((FONT, 14))
            .draw()?;
        for curve in &self.curves {
            let points = curve.points.iter().map(|point| (point.x as f64, quantity.of(point)));
            let points: Vec<(f64, f64)> = points.filter(|(_, y)| *y > 0.0).collect();
            curve.draw_line(&mut panel, &points)?;
            let marks = points.iter().map(|at| panel.backend_coord(at));
            marks.into_iter().try_for_each(|at| curve.draw_mark(root, at))?;
        }
        let chosen = self.points().filter(|point| point.is_chosen && quantity.of(point) > 0.0);
        let chosen = chosen.map(|point| panel.backend_coord(&(point.x as f64, quantity.of(point))));
        chosen.into_iter().try_for_each(|at| draw_ring(root, at))
    }

    fn draw_legend(&self, area: &Area) -> Drawn {
        for (row, curve) in (0..).zip(&self.curves) {
            let y = 16 + row * LINE_HEIGHT;
            let ends = [(6, y), (38, y)];
            if curve.is_broken {
                let line = ends.into_iter();
                area.draw(&DashedPathElement::new(line, 5, 4, curve.line()))?;
            } else {
                area.draw(&PathElement::new(ends, curve.line()))?;
            }
            curve.draw_mark(area, (22, y))?;
            area.draw(&Text::new(curve.name.clone(), (46, y - 7), (FONT, 14)))?;
        }
        if self.points().any(|point| point.is_chosen) {
            let y = 16 + self.curves.len() as i32 * LINE_HEIGHT;
            draw_ring(area, (22, y))?;
            area.draw(&Text::new("chosen by the library", (46, y - 7), (FONT, 14)))?;
        }
        Ok(())
    }
}

impl Curve {
    fn color(&self) -> RGBColor {
        COLORS[self.color % COLORS.len()]
    }

    fn line(&self) -> ShapeStyle {
        self.color().stroke_width(2)
    }

    /// The line, without its marks.
    fn draw_line(&self, panel: &mut Panel, points: &[(f64, f64)]) -> Drawn {
        let along = points.iter().copied();
        if self.is_broken {
            panel.draw_series(DashedLineSeries::new(along, 5, 4, self.line()))?;
        } else {
            panel.draw_series(LineSeries::new(along, self.line()))?;
        }
        Ok(())
    }

    /// A dot or a ring; where the colours come a second time, a triangle.
    fn draw_mark(&self, area: &Area, at: (i32, i32)) -> Drawn {
        let full = self.color().filled();
        let is_triangle = self.color / COLORS.len() % 2 == 1;
        match is_triangle {
            true => area.draw(&TriangleMarker::new(at, 5, full))?,
            false => area.draw(&Circle::new(at, 3, full))?,
        }
        match (self.is_hollow, is_triangle) {
            (true, true) => area.draw(&TriangleMarker::new(at, 3, WHITE.filled())),
            (true, false) => area.draw(&Circle::new(at, 2, WHITE.filled())),
            (false, _) => Ok(()),
        }
    }
}

/// Around what the library chooses.
fn draw_ring(area: &Area, at: (i32, i32)) -> Drawn {
    area.draw(&Circle::new(at, 7, BLACK.stroke_width(1)))
}

impl Over {
    fn name(self) -> &'static str {
        match self {
            Over::Bytes => "size (bytes)",
            Over::Ranks => "ranks",
        }
    }

    fn label(self, x: f64) -> String {
        let number = x.round() as u64;
        match self {
            Over::Ranks => number.to_string(),
            Over::Bytes => with_unit(number),
        }
    }
}

/// `64K` for 65536: a size as it is asked for.
pub fn with_unit(bytes: u64) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    let whole = |shift: u32| bytes > 0 && bytes.trailing_zeros() >= shift;
    let unit = units.into_iter().find(|&(shift, _)| whole(shift));
    unit.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// What a panel shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantity {
    Time,
    BusBandwidth,
}

impl Quantity {
    fn of(self, point: &Point) -> f64 {
        match self {
            Quantity::Time => point.time_us,
            Quantity::BusBandwidth => point.busbw_gbps,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Quantity::Time => "time",
            Quantity::BusBandwidth => "bus bandwidth (GB/s)",
        }
    }

    fn label(self, y: f64) -> String {
        match self {
            Quantity::Time if y < 1e3 => format!("{} us", short(y)),
            Quantity::Time if y < 1e6 => format!("{} ms", short(y / 1e3)),
            Quantity::Time => format!("{} s", short(y / 1e6)),
            Quantity::BusBandwidth => short(y),
        }
    }
}

/// A round number without noise in its last digits.
fn short(number: f64) -> String {
    let digits = (-number.log10().floor()).max(0.0) as usize;
    format!("{number:.digits$}")
}

/// From a little below the smallest to a little above the largest; of values that hardly differ, more.
fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (least, most) = values.fold((f64::MAX, 0.0), |(a, b), value| (value.min(a), value.max(b)));
    let (least, most) = if least > most { (1.0, 1.0) } else { (least, most) };
    let margin = if most < 3.0 * least { 3.0 } else { 1.25 };
    least / margin..most * margin
}

/// The powers of ten of a range; with their doubles and halves where they are few.
fn decades(range: &Range<f64>) -> Vec<f64> {
    let first = range.start.log10().floor() as i32;
    let last = range.end.log10().ceil() as i32;
    let steps: &[f64] = if last - first <= 4 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let every = ((last - first) / 10).max(1) as usize;
    let powers = (first..=last).step_by(every).map(|exponent| 10_f64.powi(exponent));
    let marks = powers.flat_map(|power| steps.iter().map(move |step| step * power));
    marks.filter(|mark| range.contains(mark)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_as_one_asks_for_them() {
        assert_eq!(
            [0, 8, 1000, 65_536, 3 << 20].map(with_unit),
            ["0", "8", "1000", "64K", "3M"].map(String::from)
        );
        assert_eq!(Quantity::Time.label(2e4), "20 ms");
        assert_eq!(Quantity::Time.label(0.5), "0.5 us");
        assert_eq!(Quantity::BusBandwidth.label(0.02), "0.02");
    }

    #[test]
    fn heights_have_round_numbers() {
        assert_eq!(decades(&(3.0..60.0)), [5.0, 10.0, 20.0, 50.0]);
        assert_eq!(decades(&(0.9..2e6)), [1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6]);
        assert_eq!(range([4.0, 1.0].into_iter()), 0.8..5.0);
        assert_eq!(range([3.0, 3.0].into_iter()), 1.0..9.0);
    }
}
