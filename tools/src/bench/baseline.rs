//! An earlier run to compare with.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::record::{CallKey, Row};
use super::regret::FLOOR_US;

/// Median times of an earlier run.
#[derive(Clone, Debug)]
pub struct Baseline {
    path: PathBuf,
    chosen_us: BTreeMap<CallKey, f64>,
    by_algorithm_us: BTreeMap<(CallKey, String), f64>,
}

/// Of the document that `--json` writes, what is compared.
#[derive(Deserialize)]
struct Document {
    rows: Vec<EarlierRow>,
}

#[derive(Deserialize)]
struct EarlierRow {
    #[serde(flatten)]
    call: CallKey,
    algorithm: String,
    chosen: bool,
    median_us: f64,
}

impl Baseline {
    /// Reads the document of an earlier run.
    pub fn read(path: &Path) -> io::Result<Baseline> {
        let file = BufReader::new(File::open(path)?);
        let document: Document = serde_json::from_reader(file).map_err(|error| {
            let text = format!("this is no file that --json has written: {error}");
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        let (mut chosen_us, mut by_algorithm_us) = (BTreeMap::new(), BTreeMap::new());
        for EarlierRow { call, algorithm, chosen, median_us } in document.rows {
            if chosen {
                chosen_us.insert(call.clone(), median_us);
            }
            by_algorithm_us.insert((call, algorithm), median_us);
        }
        Ok(Baseline { path: path.to_owned(), chosen_us, by_algorithm_us })
    }

    /// The earlier time of a row's call: by the choice of then if it is by the choice of now, else by the
    /// same algorithm.
    pub fn median_us(&self, row: &Row) -> Option<f64> {
        let call = row.call();
        let same = |call| self.by_algorithm_us.get(&(call, row.algorithm().to_owned()));
        let of_choice = self.chosen_us.get(&call).filter(|_| row.details.chosen);
        of_choice.or_else(|| same(call)).copied()
    }

    /// The line below the table, and how many rows lost more than `most_percent`.
    pub fn summary(&self, rows: &[Row], most_percent: f64) -> (String, usize) {
        let compared: Vec<f64> = rows.iter().filter_map(ratio).collect();
        let path = self.path.display();
        if compared.is_empty() {
            return (format!("# Beside {path}: it has none of these rows\n"), 0);
        }
        let mean = compared.iter().map(|ratio| ratio.ln()).sum::<f64>() / compared.len() as f64;
        let lost = rows.iter().filter(|row| has_lost(row, most_percent)).count();
        let line = format!(
            "# Beside {path}: {:+.1} % time on average of {} of {} rows; {lost} took more than \
             {most_percent} % (and {FLOOR_US} us) longer\n",
            (mean.exp() - 1.0) * 100.0,
            compared.len(),
            rows.len(),
        );
        (line, lost)
    }
}

/// How a row's time has changed, for the end of its line.
pub fn change(row: &Row) -> String {
    ratio(row).map_or_else(|| "  new".into(), |ratio| format!("  {:+.1}%", (ratio - 1.0) * 100.0))
}

fn ratio(row: &Row) -> Option<f64> {
    let earlier_us = row.details.baseline_us.filter(|us| *us > 0.0)?;
    Some(row.median_us().max(f64::MIN_POSITIVE) / earlier_us)
}

fn has_lost(row: &Row, most_percent: f64) -> bool {
    let limit_us = |earlier_us: f64| earlier_us * (1.0 + most_percent / 100.0) + FLOOR_US;
    row.details.baseline_us.is_some_and(|earlier_us| row.median_us() > limit_us(earlier_us))
}
