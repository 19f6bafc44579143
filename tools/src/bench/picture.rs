//! The picture of a run: time and bus bandwidth over size.

use super::options::{By, Measurement, Placement};
use super::record::Row;
use super::statistics::algorithm_bandwidth;
use super::summary::Summary;
use crate::chart::{Chart, Curve, Over, Point};

/// What rows of one curve have in common.
type Key = [Option<String>; 4];

/// A curve for what each row has in common with others, in place and out of place, and where there are rows
/// of an earlier run, for these too.
pub fn chart(summary: &Summary, measurement: &Measurement, rows: &[Row]) -> Chart {
    let by = measurement.by;
    let bus_factor = measurement.call.with_root(0).bus_factor(summary.ranks);
    // A row that took so long; nothing where no size is, or no time.
    let point = |row: &Row, time_us: f64, is_chosen: bool| {
        let bytes = row.call().bytes;
        (bytes > 0 && time_us > 0.0).then(|| Point {
            x: bytes,
            time_us,
            busbw_gbps: algorithm_bandwidth(bytes, time_us) * bus_factor,
            is_chosen,
        })
    };
    let mut keys: Vec<Key> = vec![];
    for row in rows {
        let key = row.curve(by);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let placements = &measurement.placements;
    let mut curves = vec![];
    for (color, key) in keys.iter().enumerate() {
        for &placement in placements {
            let is_hollow = placement == Placement::InPlace;
            let is_of_curve = |row: &&Row| row.call().inplace == is_hollow && row.curve(by) == *key;
            let now = |row: &Row| point(row, row.median_us(), by == By::Each && row.details.chosen);
            let earlier = |row: &Row| row.details.baseline_us.and_then(|us| point(row, us, false));
            let mut name = name(key, &keys);
            if placements.len() > 1 || name.is_empty() {
                let separator = if name.is_empty() { "" } else { ", " };
                name = format!("{name}{separator}{}", placement.name());
            }
            let mut curve = |is_broken: bool, points: Vec<Point>| {
                let name = if is_broken { format!("{name}, earlier") } else { name.clone() };
                curves.push(Curve { name, color, is_hollow, is_broken, points });
            };
            curve(false, rows.iter().filter(is_of_curve).filter_map(now).collect());
            curve(true, rows.iter().filter(is_of_curve).filter_map(earlier).collect());
        }
    }
    curves.retain(|curve| !curve.points.is_empty());
    Chart { title: summary.title(measurement), over: Over::Bytes, curves }
}

/// What tells a curve from the others.
fn name(key: &Key, keys: &[Key]) -> String {
    let differs = |index: &usize| keys.iter().any(|other| other[*index] != key[*index]);
    let parts = (0..key.len()).filter(differs).filter_map(|index| key[index].clone());
    parts.collect::<Vec<_>>().join(", ")
}
