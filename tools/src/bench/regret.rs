//! How much slower the library's choice is than the best algorithm, where each was measured.

use std::collections::BTreeMap;

use super::options::Placement;
use super::record::{CallKey, Row};

/// What takes so little longer is as good: clocks and machines are no better.
pub const FLOOR_US: f64 = 2.0;

/// A call whose choice was not the best.
struct Regret<'a> {
    call: CallKey,
    chosen: &'a Row,
    best: &'a Row,
}

impl<'a> Regret<'a> {
    /// Of the rows of one call.
    fn of(call: CallKey, rows: &[&'a Row]) -> Option<Regret<'a>> {
        let chosen = *rows.iter().find(|row| row.details.chosen)?;
        let best = *rows.iter().min_by(|a, b| a.median_us().total_cmp(&b.median_us()))?;
        Some(Regret { call, chosen, best })
    }

    /// How many times as long the choice took as the best, which is granted the floor.
    fn ratio(&self) -> f64 {
        self.chosen.median_us() / (self.best.median_us() + FLOOR_US)
    }
}

/// The lines below a table of all algorithms: the choices that lost more than a tenth, worst first.
pub fn summary(rows: &[Row]) -> String {
    let regrets = regrets(rows);
    let lost: Vec<&Regret> = regrets.iter().filter(|regret| regret.ratio() > 1.1).collect();
    let mut lines = format!(
        "# Choices more than 10 % (and {FLOOR_US} us) slower than the best: {} of {}\n",
        lost.len(),
        regrets.len(),
    );
    for Regret { call, chosen, best } in lost {
        let place = if call.inplace { Placement::InPlace } else { Placement::OutOfPlace }.name();
        lines += &format!(
            "#   {} bytes {place}: {} {:.2} us, {} {:.2} us\n",
            call.bytes,
            chosen.algorithm(),
            chosen.median_us(),
            best.algorithm(),
            best.median_us(),
        );
    }
    lines
}

fn regrets(rows: &[Row]) -> Vec<Regret<'_>> {
    let mut by_call: BTreeMap<CallKey, Vec<&Row>> = BTreeMap::new();
    rows.iter().for_each(|row| by_call.entry(row.call()).or_default().push(row));
    let mut regrets: Vec<Regret> =
        by_call.into_iter().filter_map(|(call, rows)| Regret::of(call, &rows)).collect();
    regrets.sort_by(|a, b| b.ratio().total_cmp(&a.ratio()));
    regrets
}
