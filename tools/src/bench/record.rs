//! What was measured as JSON: one line a row and placement, or one document a run.

use std::borrow::Cow;

use ringtree::Op;
use serde::{Deserialize, Serialize};

use super::counters::Counters;
use super::measure::{Case, Outcome};
use super::options::{By, Measurement, Memory, Placement};
use super::statistics::{Distribution, algorithm_bandwidth};
use super::summary::Summary;
use super::table::type_name;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What rows have in common that are measurements of one call, by whatever algorithm and in whatever run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct CallKey {
    peer: Cow<'static, str>,
    collective: Cow<'static, str>,
    transport: Cow<'static, str>,
    ranks: u32,
    #[serde(rename = "type")]
    data_type: Cow<'static, str>,
    redop: Option<Cow<'static, str>>,
    root: Option<u32>,
    /// Size of the longer buffer.
    pub bytes: u64,
    /// Where the result goes.
    pub inplace: bool,
}

/// A row and placement. Others read these fields: their names and their order are fixed.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    peer: &'static str,
    version: &'static str,
    collective: &'static str,
    algorithm: &'static str,
    transport: &'static str,
    ranks: u32,
    bytes: u64,
    iters: u32,
    median_us: f64,
    min_us: f64,
    p95_us: f64,
    loop_us: f64,
    #[serde(rename = "algbw_GBps")]
    algbw_gbps: f64,
    #[serde(rename = "busbw_GBps")]
    busbw_gbps: f64,
    inplace: bool,
    /// None: not checked.
    ok: Option<bool>,
}

impl Record {
    /// The record of one outcome, by `algorithm`.
    pub fn new(
        summary: &Summary,
        measurement: &Measurement,
        algorithm: &'static str,
        case: Case,
        placement: Placement,
        outcome: &Outcome,
    ) -> Record {
        let timing = outcome.timing;
        let algbw = algorithm_bandwidth(case.bytes(), timing.median_us);
        Record {
            peer: match measurement.memory {
                Memory::Plain => "ringtree",
                Memory::Registered => "ringtree-reg",
                Memory::Device => "ringtree-gpu",
            },
            version: VERSION,
            collective: case.called.name(),
            algorithm,
            transport: summary.transport,
            ranks: summary.ranks,
            bytes: case.bytes(),
            iters: timing.iterations,
            median_us: rounded(timing.median_us, 100.0),
            min_us: rounded(timing.min_us, 100.0),
            p95_us: rounded(timing.p95_us, 100.0),
            loop_us: rounded(timing.loop_us, 100.0),
            algbw_gbps: rounded(algbw, 10_000.0),
            busbw_gbps: rounded(algbw * case.called.bus_factor(summary.ranks), 10_000.0),
            inplace: placement == Placement::InPlace,
            ok: outcome.wrong.map(|wrong| wrong == 0),
        }
    }
}

/// A record with what the table says beside it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The record.
    #[serde(flatten)]
    pub record: Record,
    /// The rest.
    #[serde(flatten)]
    pub details: Details,
    /// How its times are spread.
    pub distribution: Distribution,
}

/// What a row has beside its record.
#[derive(Clone, Debug, Serialize)]
pub struct Details {
    count: usize,
    #[serde(rename = "type")]
    data_type: &'static str,
    redop: Option<&'static str>,
    root: Option<u32>,
    wrong: Option<u64>,
    /// Whether the algorithm is the one that the library chooses.
    pub chosen: bool,
    /// Median of the same row in the earlier run.
    pub baseline_us: Option<f64>,
}

impl Row {
    /// The row of one outcome.
    pub fn new(record: Record, case: Case, outcome: &Outcome, chosen: bool) -> Row {
        Row {
            record,
            details: Details {
                count: case.count,
                data_type: type_name(case.data_type),
                redop: case.op.map(Op::name),
                root: case.called.root(),
                wrong: outcome.wrong,
                chosen,
                baseline_us: None,
            },
            distribution: outcome.distribution.clone(),
        }
    }
}

impl Row {
    /// Which call it is a measurement of.
    pub fn call(&self) -> CallKey {
        let Row { record, details: Details { data_type, redop, root, .. }, .. } = self;
        CallKey {
            peer: record.peer.into(),
            collective: record.collective.into(),
            transport: record.transport.into(),
            ranks: record.ranks,
            data_type: (*data_type).into(),
            redop: redop.map(Into::into),
            root: *root,
            bytes: record.bytes,
            inplace: record.inplace,
        }
    }

    /// Name of the algorithm.
    pub fn algorithm(&self) -> &'static str {
        self.record.algorithm
    }

    /// Median time in microseconds.
    pub fn median_us(&self) -> f64 {
        self.record.median_us
    }

    /// What tells the curve that the row is part of from others: type, operation, root and, where more than
    /// the chosen one is measured, the algorithm.
    pub fn curve(&self, by: By) -> [Option<String>; 4] {
        let Row { record, details: Details { data_type, redop, root, .. }, .. } = self;
        [
            (by != By::Choice).then(|| record.algorithm.to_owned()),
            Some((*data_type).to_owned()),
            redop.map(str::to_owned),
            root.map(|root| format!("root {root}")),
        ]
    }
}

/// A whole run. It holds what was asked for and found, and nothing of the environment.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    version: &'static str,
    job: &'a Summary,
    settings: &'a Measurement,
    rows: &'a [Row],
    out_of_bounds: u64,
    #[serde(rename = "average_busbw_GBps")]
    average_busbw_gbps: f64,
    /// What devices have done, if there were any.
    #[serde(flatten)]
    counters: Counters,
}

impl<'a> Document<'a> {
    /// The document of a run.
    pub fn new(
        job: &'a Summary,
        settings: &'a Measurement,
        rows: &'a [Row],
        counters: Counters,
    ) -> Document<'a> {
        Document {
            version: VERSION,
            job,
            settings,
            rows,
            out_of_bounds: out_of_bounds(rows),
            average_busbw_gbps: rounded(average_busbw(rows), 10_000.0),
            counters,
        }
    }
}

/// Outcomes with a wrong element, which nccl-tests calls values out of bounds.
pub fn out_of_bounds(rows: &[Row]) -> u64 {
    rows.iter().filter(|row| row.record.ok == Some(false)).count() as u64
}

/// Mean bus bandwidth of all outcomes, in 1e9 bytes a second.
pub fn average_busbw(rows: &[Row]) -> f64 {
    let sum: f64 = rows.iter().map(|row| row.record.busbw_gbps).sum();
    sum / rows.len().max(1) as f64
}

fn rounded(value: f64, scale: f64) -> f64 {
    (value * scale).round() / scale
}
