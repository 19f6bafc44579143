//! Curves over the steps of a run, as SVG to put into a page.

use plotters::prelude::*;
use ringtree_trainer::Error;

/// Curves of one quantity.
pub struct Chart {
    /// What is to be seen.
    pub title: &'static str,
    /// In what it is measured.
    pub unit: &'static str,
    /// From the back to the front.
    pub curves: Vec<Curve>,
}

/// A curve over steps.
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// How it is drawn.
    pub style: Style,
    /// Steps and values.
    pub points: Vec<(f64, f64)>,
}

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A line.
    Line,
    /// Filled from zero.
    Area,
    /// A line with a mark at each point.
    Marks,
}

const SIZE: (u32, u32) = (600, 360);
const FONT: &str = "sans-serif";

/// Colours that can be told apart whatever one sees of them, of Okabe and Ito (2008).
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];

impl Chart {
    /// Draws it.
    ///
    /// # Errors
    /// [`Error::Argument`] if it cannot be drawn.
    pub fn draw(&self) -> Result<String, Error> {
        let mut svg = String::new();
        self.draw_to(&mut svg)
            .map_err(|error| Error::Argument(format!("the chart of {}: {error}", self.title)))?;
        Ok(svg)
    }

    fn draw_to(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (across, up) = self.ranges();
        let mut panel = ChartBuilder::on(&root)
            .caption(self.title, (FONT, 18))
            .margin(8)
            .margin_right(18)
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d(across, up)?;
        panel
            .configure_mesh()
            .bold_line_style(RGBColor(222, 222, 222))
            .light_line_style(TRANSPARENT)
            .axis_style(RGBColor(110, 110, 110))
            .x_desc("step")
            .y_desc(self.unit)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .label_style((FONT, 12))
            .draw()?;
        for (number, curve) in self.curves.iter().enumerate() {
            let color = COLORS[number % COLORS.len()];
            let points = curve.points.iter().copied().filter(|(_, y)| y.is_finite());
            let drawn = match curve.style {
                Style::Area => panel.draw_series(AreaSeries::new(points, 0.0, color.filled()))?,
                Style::Line | Style::Marks => {
                    panel.draw_series(LineSeries::new(points, color.stroke_width(2)))?
                }
            };
            drawn.label(&curve.name).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled())
            });
            if curve.style == Style::Marks {
                let marks = curve.points.iter().map(|at| Circle::new(*at, 3, color.filled()));
                panel.draw_series(marks)?;
            }
        }
        panel
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font((FONT, 12))
            .draw()?;
        root.present()?;
        Ok(())
    }

    /// What the axes go over. The lowest and highest hundredth of the values of lines may lie outside: the first steps of a
    /// run often stand far out.
    fn ranges(&self) -> (std::ops::Range<f64>, std::ops::Range<f64>) {
        let points = || self.curves.iter().flat_map(|curve| curve.points.iter().copied());
        let last = points().map(|(x, _)| x).fold(1.0, f64::max);
        let first = points().map(|(x, _)| x).fold(last, f64::min);
        let mut values: Vec<f64> = points().map(|(_, y)| y).filter(|y| y.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (values.len().saturating_sub(1)) as f64 * share;
            values.get(place.round() as usize).copied().unwrap_or(0.0)
        };
        let (low, high) = (at(0.005).min(0.0), at(0.995).max(at(0.0)));
        let room = 0.08 * (high - low).max(1e-9);
        let bottom = if low < 0.0 { low - room } else { 0.0 };
        (first..last.max(first + 1.0), bottom..high + room)
    }
}
