//! The report of a run, as a browser shows it: in each chart, where the pixels of each curve are.

mod running;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use image::{RgbImage, imageops};
use ringtree_tests::program::{Ended, Program};
use running::{folder, run};
use serde_json::json;

const BROWSER: &str = "/usr/bin/chromium";

/// The colours of a chart's curves, in their order.
const COLORS: [[u8; 3]; 5] =
    [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233]];

/// Columns of a chart in which there is nothing of an axis or of a legend.
const COLUMNS: Range<u32> = 130..390;

const STEPS: u32 = 200;

/// What the phases of a step take in the metrics that are made up.
const PHASES_MS: [f64; 5] = [1.0, 2.0, 4.0, 0.8, 1.5];

#[test]
fn a_browser_shows_every_curve_where_it_belongs() {
    if !there_is_a_browser() {
        return;
    }
    let folder = folder();
    let training = format!("--ranks 2 --steps {STEPS} --out run");
    run(folder.path(), &training);
    let charts = looked_at(folder.path());
    assert_eq!(charts.len(), 4, "loss, throughput, time, skew");
    for (number, chart) in charts.iter().enumerate() {
        let drawn = |column: &u32| (0..5).any(|color| !rows(chart, *column, color).is_empty());
        let columns = COLUMNS.filter(drawn).count();
        assert!(columns >= COLUMNS.len() * 3 / 4, "{columns} columns of chart {number}");
    }

    // A run that is at its end writes its report again, by what its folder has of it.
    fs::write(folder.path().join("run/metrics.jsonl"), made_up()).expect("a file");
    run(folder.path(), &format!("{training} --resume auto"));
    let charts = looked_at(folder.path());
    let [loss, throughput, time, skew] = charts.as_slice() else { panic!("{}", charts.len()) };

    let (training, validation) = (line(loss, 0), line(loss, 1));
    assert_straight(&training, 30.0..120.0);
    assert_straight(&validation, 30.0..120.0);
    let apart: Vec<f64> = std::iter::zip(&training, &validation).map(|(a, b)| a - b).collect();
    assert_straight(&apart, -2.0..2.0);
    assert!(apart[0] > 20.0, "validation above training: {apart:?}");

    assert_straight(&line(throughput, 0), -120.0..-30.0);

    for column in COLUMNS {
        // The phase that comes first is drawn last, below all others.
        let heights: Vec<usize> =
            (0..5).rev().map(|color| rows(time, column, color).len()).collect();
        let pixels_per_ms = heights.iter().sum::<usize>() as f64 / PHASES_MS.iter().sum::<f64>();
        assert!(pixels_per_ms > 15.0, "column {column}: {heights:?}");
        for (height, phase_ms) in heights.iter().zip(PHASES_MS) {
            let off = *height as f64 - phase_ms * pixels_per_ms;
            assert!(off.abs() <= 2.5, "column {column}: {heights:?} for {PHASES_MS:?}");
        }
    }

    let (first, second) = (line(skew, 0), line(skew, 1));
    assert_straight(&first, -1.0..1.0);
    assert_straight(&second, -1.0..1.0);
    assert!(first[0] - second[0] > 100.0, "rank 1 is slower: {} and {}", first[0], second[0]);
}

fn there_is_a_browser() -> bool {
    let is_there = Path::new(BROWSER).exists();
    if !is_there {
        let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!in_ci, "chromium is missing: tests/run.sh installs it");
        // Not by a macro: the line shall be seen although the test passes.
        let _ = writeln!(io::stderr(), "SKIPPED, no look at the report: chromium is missing");
    }
    is_there
}

/// The metrics of a run whose curves are straight lines.
fn made_up() -> String {
    let mut lines = String::new();
    for step in 1..=STEPS {
        let loss = 2.0 - 0.005 * f64::from(step);
        let line = json!({
            "kind": "step", "step": step, "epoch": 1.0, "loss": loss, "gradient_norm": 1.0,
            "learning_rate": 0.1, "samples": 32, "predictions": 32, "step_ms": 10.0,
            "samples_per_s": 3000.0 + 10.0 * f64::from(step), "predictions_per_s": 3000.0,
            "exchange_ms": 1.0, "exposed_ms": 0.5, "busy_ms": [7.0, 9.0], "slowest_rank": 1,
            "behind_ms": 2.0, "phases_ms": PHASES_MS,
        });
        writeln!(lines, "{line}").expect("a string takes all");
        if step % 20 == 0 && step < STEPS {
            let (loss, right) = (loss + 0.4, 0.5);
            let line = json!({
                "kind": "validation", "step": step, "loss": loss, "accuracy": right, "predictions": 9,
            });
            writeln!(lines, "{line}").expect("a string takes all");
        }
    }
    lines
}

/// Has the browser draw the report of the run, and returns its charts.
fn looked_at(folder: &Path) -> Vec<RgbImage> {
    let report = fs::read_to_string(folder.join("run/report.html")).expect("a report");
    browser(folder, &["--screenshot=report.png", "run/report.html"]);
    let picture = image::open(folder.join("report.png")).expect("a picture").to_rgb8();
    let asking = report.replace("</body>", &format!("<script>{WHERE_CHARTS_ARE}</script></body>"));
    fs::write(folder.join("asking.html"), asking).expect("a file");
    let said = browser(folder, &["--dump-dom", "asking.html"]).lines.concat();
    let (_, rest) = said.split_once("data-charts=\"").expect("what the script has found");
    let (numbers, _) = rest.split_once('"').expect("the end of the attribute");
    let numbers: Vec<u32> =
        numbers.split(',').map(|number| number.parse().expect("a number")).collect();
    let boxes = numbers.chunks_exact(4).map(|one| (one[0], one[1], one[2], one[3]));
    let cut = |(left, top, width, height)| {
        assert!(
            left + width <= picture.width() && top + height <= picture.height(),
            "all is shown"
        );
        imageops::crop_imm(&picture, left, top, width, height).to_image()
    };
    boxes.map(cut).collect()
}

const WHERE_CHARTS_ARE: &str = "document.body.dataset.charts = [...document.querySelectorAll('svg')].flatMap(chart => { \
    const box = chart.getBoundingClientRect(); return [box.x, box.y, box.width, box.height].map(Math.round); })";

fn browser(folder: &Path, arguments: &[&str]) -> Ended {
    let mut command = Command::new(BROWSER);
    command.current_dir(folder).env("HOME", folder);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]);
    command.args(["--force-device-scale-factor=1", "--window-size=1280,1500"]).args(arguments);
    let ended = Program::start(command).await_end();
    assert!(ended.status.success(), "{ended:#?}");
    ended
}

/// In which rows of a column a curve's colour is. The edges of lines are a little brighter.
fn rows(chart: &RgbImage, column: u32, color: usize) -> Vec<u32> {
    let is_near = |row: &u32| {
        let pixel = chart.get_pixel(column, *row).0;
        pixel.iter().zip(COLORS[color]).all(|(one, other)| one.abs_diff(other) <= 40)
    };
    (0..chart.height()).filter(is_near).collect()
}

/// In which row a curve is in each column, on average over its width.
fn line(chart: &RgbImage, color: usize) -> Vec<f64> {
    let middle = |column| {
        let rows = rows(chart, column, color);
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            panic!("no colour {color} in column {column}");
        };
        assert!(last - first < 10, "colour {color} in column {column}: {rows:?}");
        f64::from(first + last) / 2.0
    };
    COLUMNS.map(middle).collect()
}

/// Asserts that rows lie on a straight line, which ends by so many below its beginning.
fn assert_straight(rows: &[f64], falls: Range<f64>) {
    let (first, last) = (rows[0], rows[rows.len() - 1]);
    assert!(falls.contains(&(last - first)), "from {first} to {last}: {rows:?}");
    for (number, row) in rows.iter().enumerate() {
        let share = number as f64 / (rows.len() - 1) as f64;
        let expected = first + share * (last - first);
        assert!((row - expected).abs() <= 2.0, "row {row}, not {expected}: {rows:?}");
    }
}
