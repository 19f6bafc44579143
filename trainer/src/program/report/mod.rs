//! The report of a run: one file of HTML without anything from elsewhere, made from the run's metrics.

mod chart;

use std::fs;
use std::path::{Path, PathBuf};

use ringtree_trainer::Error;

use crate::banner::Banner;
use crate::events::Phase;
use crate::metrics::{self, Line, StepLine};
use chart::{Chart, Curve, Style};

/// A curve has at most so many points: more cannot be told apart, and make the file large.
const MOST_POINTS: usize = 400;

/// Writes `report.html` into the run's folder, and returns where it is.
///
/// # Errors
/// [`Error::File`], or [`Error::Argument`] if a chart cannot be drawn.
pub fn write(out: &Path, banner: &Banner) -> Result<PathBuf, Error> {
    let lines = metrics::read(&out.join("metrics.jsonl"))?;
    let path = out.join("report.html");
    let text = page(banner, &lines)?;
    fs::write(&path, text).map_err(|source| Error::File { path: path.clone(), source })?;
    Ok(path)
}

fn page(banner: &Banner, lines: &[Line]) -> Result<String, Error> {
    let title = escape(&banner.title);
    let rows: String = banner
        .rows
        .iter()
        .map(|(name, text)| {
            format!("<tr><th>{name}</th><td>{}</td></tr>\n", escape(text).replace('\n', "<br>"))
        })
        .collect();
    let events: String = lines
        .iter()
        .filter_map(|line| match line {
            Line::Event(event) => {
                Some(format!("<li>step {}: {}</li>\n", event.step, escape(&event.what)))
            }
            _ => None,
        })
        .collect();
    let mut charts = String::new();
    for chart in charts_of(lines) {
        charts += &chart.draw()?;
    }
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{}<table>\n{rows}</table>\n\
         <div class=\"charts\">\n{charts}</div>\n<h2>Events</h2>\n<ul>\n{events}</ul>\n</body>\n</html>\n",
        summary(lines)
    ))
}

const STYLE: &str = "body{font-family:sans-serif;margin:2em auto;max-width:1240px;padding:0 1em;color:#222}\
h1{font-size:1.5em}table{border-collapse:collapse;margin:1em 0}th{text-align:left;vertical-align:top;padding:3px 1.5em \
3px 0;color:#666;font-weight:normal}td{padding:3px 0}.charts{display:flex;flex-wrap:wrap;gap:16px}\
.charts svg{max-width:100%;height:auto}.summary{font-size:1.15em}";

/// The figures that people look for first.
fn summary(lines: &[Line]) -> String {
    let steps: Vec<&StepLine> = steps(lines).collect();
    let (Some(last), Some(validation)) = (
        steps.last(),
        lines.iter().rev().find_map(|line| match line {
            Line::Validation(line) => Some(line),
            _ => None,
        }),
    ) else {
        return String::new();
    };
    let sum = |of: fn(&StepLine) -> f64| steps.iter().map(|step| of(step)).sum::<f64>();
    let exchange_ms = sum(|step| step.exchange_ms);
    let hidden = match exchange_ms > 0.0 {
        true => {
            format!("{:.0} % of it", 100.0 * (1.0 - sum(|s| s.exposed_ms) / exchange_ms).max(0.0))
        }
        false => "nothing".to_owned(),
    };
    format!(
        "<p class=\"summary\">Step {}: loss {:.4}; on the validation data {:.4}, {:.2} % right. \
         {:.0} samples a second; the exchange took {:.1} % of the time, {hidden} hidden behind the backward pass.</p>\n",
        last.step,
        last.loss,
        validation.loss,
        100.0 * validation.accuracy,
        1e3 * sum(|step| step.samples as f64) / sum(|step| step.step_ms),
        100.0 * exchange_ms / sum(|step| step.step_ms),
    )
}

fn steps(lines: &[Line]) -> impl Iterator<Item = &StepLine> {
    lines.iter().filter_map(|line| match line {
        Line::Step(step) => Some(step),
        _ => None,
    })
}

fn charts_of(lines: &[Line]) -> Vec<Chart> {
    let steps: Vec<&StepLine> = steps(lines).collect();
    let Some(first) = steps.first() else { return Vec::new() };
    let curve = |name: &str, style: Style, of: &dyn Fn(&StepLine) -> f64| Curve {
        name: name.to_owned(),
        style,
        points: averaged(&steps, of),
    };
    let validation = lines.iter().filter_map(|line| match line {
        Line::Validation(line) => Some((line.step as f64, line.loss)),
        _ => None,
    });
    let loss = Chart {
        title: "Loss",
        unit: "",
        curves: vec![
            curve("training", Style::Line, &|step| step.loss),
            Curve { name: "validation".into(), style: Style::Marks, points: validation.collect() },
        ],
    };
    let throughput = Chart {
        title: "Throughput",
        unit: "samples a second",
        curves: vec![curve("all ranks", Style::Line, &|step| step.samples_per_s)],
    };
    // Each on top of those before it.
    let stacked = (0..Phase::ALL.len()).rev().map(|top| {
        let up_to = move |step: &StepLine| step.phases_ms.iter().take(top + 1).sum::<f64>();
        curve(Phase::ALL[top].name(), Style::Area, &up_to)
    });
    let split = Chart { title: "Time of a step on rank 0", unit: "ms", curves: stacked.collect() };
    let ranks = first.busy_ms.len();
    let skew = (0..ranks).map(|rank| {
        let behind = move |step: &StepLine| {
            let own = step.busy_ms.get(rank).copied().unwrap_or(0.0);
            own - step.busy_ms.iter().sum::<f64>() / step.busy_ms.len() as f64
        };
        curve(&format!("rank {rank}"), Style::Line, &behind)
    });
    let skew = Chart {
        title: "Longer busy than the mean rank",
        unit: "ms a step",
        curves: skew.collect(),
    };
    let mut charts = vec![loss, throughput, split];
    if ranks > 1 {
        charts.push(skew);
    }
    charts
}

/// A value of each step, or of as many neighbours as make the points few.
fn averaged(steps: &[&StepLine], of: &dyn Fn(&StepLine) -> f64) -> Vec<(f64, f64)> {
    let each = steps.len().div_ceil(MOST_POINTS).max(1);
    let mean = |chunk: &[&StepLine]| {
        let count = chunk.len() as f64;
        let at = chunk.iter().map(|step| step.step as f64).sum::<f64>() / count;
        (at, chunk.iter().map(|step| of(step)).sum::<f64>() / count)
    };
    steps.chunks(each).map(mean).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
