//! SVG, as far as the drawing needs it.

use std::fmt::{Display, Write};

/// Width of a letter by its height, of wide fonts: text must fit whatever font there is.
const LETTER_WIDTH: f64 = 0.62;

/// A rectangle in pixels; y grows downwards.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Area {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

impl Area {
    pub fn right(&self) -> f64 {
        self.x + self.width
    }

    pub fn bottom(&self) -> f64 {
        self.y + self.height
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stroke {
    pub color: &'static str,
    pub width: f64,
    pub is_broken: bool,
}

impl Stroke {
    pub fn new(color: &'static str, width: f64) -> Stroke {
        Stroke { color, width, is_broken: false }
    }
}

/// How a text looks, and where it is: from `x` on, on the line `y`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lettering {
    pub x: f64,
    pub y: f64,
    pub size: f64,
    pub is_bold: bool,
    pub color: &'static str,
}

/// What has been drawn so far.
#[derive(Default)]
pub(super) struct Canvas {
    elements: String,
}

impl Canvas {
    pub fn rectangle(&mut self, area: Area, radius: f64, fill: &str, border: Stroke) {
        let Area { x, y, width, height } = area;
        self.element(format_args!(
            r#"<rect x="{}" y="{}" width="{}" height="{}" rx="{radius}" fill="{fill}" {}/>"#,
            number(x),
            number(y),
            number(width),
            number(height),
            stroke(border)
        ));
    }

    /// From point to point.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), look: Stroke) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(number);
        self.element(format_args!(
            r#"<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {}/>"#,
            stroke(look)
        ));
    }

    /// A curve that leaves both ends upright and reaches `height` beyond them: below them if it is above 0.
    pub fn arc(&mut self, from: (f64, f64), to: (f64, f64), height: f64, look: Stroke) {
        // Such a curve reaches three quarters of the way to its control points.
        let reach = height / 0.75;
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(number);
        let [c1, c2] = [from.1 + reach, to.1 + reach].map(number);
        self.element(format_args!(
            r#"<path d="M{x1} {y1} C{x1} {c1} {x2} {c2} {x2} {y2}" fill="none" {}/>"#,
            stroke(look)
        ));
    }

    pub fn text(&mut self, look: Lettering, text: &str) {
        let Lettering { x, y, size, is_bold, color } = look;
        let weight = if is_bold { r#" font-weight="bold""# } else { "" };
        self.element(format_args!(
            r#"<text x="{}" y="{}" font-size="{size}"{weight} fill="{color}">{}</text>"#,
            number(x),
            number(y),
            escaped(text)
        ));
    }

    /// The document.
    pub fn finish(self, width: f64, height: f64) -> String {
        let (width, height) = (width.ceil(), height.ceil());
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n{}</svg>\n",
            self.elements
        )
    }

    fn element(&mut self, element: std::fmt::Arguments) {
        // Writing into a string cannot fail.
        let _ = writeln!(self.elements, "{element}");
    }
}

/// How long a text is at most.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * LETTER_WIDTH
}

fn stroke(look: Stroke) -> String {
    let broken = if look.is_broken { r#" stroke-dasharray="5 3""# } else { "" };
    format!(r#"stroke="{}" stroke-width="{}"{broken}"#, look.color, number(look.width))
}

/// With one decimal at most.
fn number(value: f64) -> impl Display {
    (value * 10.0).round() / 10.0
}

/// What is markup, and what XML cannot have, replaced.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            control if control.is_control() || matches!(control, '\u{fffe}' | '\u{ffff}') => {
                safe.push('\u{fffd}');
            }
            letter => safe.push(letter),
        }
    }
    safe
}
