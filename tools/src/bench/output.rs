//! What rank 0 prints while it measures, and at the end.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};

use super::baseline::Baseline;
use super::counters::Counters;
use super::measure::{Case, Outcome};
use super::options::{BenchArguments, By, Measurement};
use super::record::{Document, Record, Row, average_busbw, out_of_bounds};
use super::summary::Summary;
use super::timeline::{self, Recorded};
use super::{BenchError, baseline, picture, regret, table};

/// What a time may lose against an earlier run before it is counted, unless set.
const MAX_LOSS_PERCENT: f64 = 10.0;

/// By what a case was carried out.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// Name of the algorithm.
    pub name: &'static str,
    /// Whether it is the one that the library chooses.
    pub is_chosen: bool,
}

/// Prints a run.
pub struct Output<'a> {
    summary: Summary,
    measurement: &'a Measurement,
    rows: Vec<Row>,
    bar: ProgressBar,
    document: Option<(PathBuf, File)>,
    csv: Option<(PathBuf, File)>,
    timeline: Option<(PathBuf, File)>,
    recorded: Vec<Recorded>,
    plot: Option<PathBuf>,
    baseline: Option<Baseline>,
    max_loss_percent: f64,
}

impl<'a> Output<'a> {
    /// Prints what comes before the first row, reads the earlier run, and empties the files that are
    /// wanted.
    pub fn new(
        summary: Summary,
        measurement: &'a Measurement,
        arguments: &BenchArguments,
    ) -> Result<Output<'a>, BenchError> {
        // First: one of the files may be it.
        let baseline = baseline(arguments)?;
        let create = |path: &Option<PathBuf>| {
            let Some(path) = path else { return Ok(None) };
            File::create(path).map_err(file_error(path)).map(|file| Some((path.clone(), file)))
        };
        let (document, csv) = (create(&arguments.json)?, create(&arguments.csv)?);
        let timeline = create(&arguments.timeline)?;
        let cases_of = |&data_type| Case::all(measurement, data_type, summary.ranks).len();
        let bar = bar(measurement.data_types.iter().map(cases_of).sum());
        let output = Output {
            summary,
            measurement,
            rows: Vec::new(),
            bar,
            document,
            csv,
            timeline,
            recorded: Vec::new(),
            plot: arguments.plot.clone(),
            baseline,
            max_loss_percent: arguments.max_loss_percent.unwrap_or(MAX_LOSS_PERCENT),
        };
        if !measurement.jsonl {
            let heading = output.summary.heading(measurement);
            output.print(&format!("{heading}{}", table::header(&measurement.placements)))?;
        }
        Ok(output)
    }

    /// A case is about to be measured.
    pub fn begin(&self, case: Case, explanation: Option<&str>) -> Result<(), BenchError> {
        self.bar.set_message(format!("{} bytes of {}", case.bytes(), case.data_type.name()));
        let Some(explanation) = explanation else { return Ok(()) };
        if self.measurement.jsonl {
            // Standard output is for records.
            let say = || io::stderr().write_all(explanation.as_bytes());
            // It is no part of the result.
            let _ = self.bar.suspend(say);
            return Ok(());
        }
        let lines: String = explanation.lines().map(|line| format!("# {line}\n")).collect();
        self.print(&lines)
    }

    /// Prints a case that was measured, with one outcome a placement, and keeps what was recorded of it.
    pub fn row(
        &mut self,
        case: Case,
        algorithm: Carried,
        outcomes: &[Outcome],
        recorded: Vec<Recorded>,
    ) -> Result<(), BenchError> {
        self.recorded.extend(recorded);
        let (summary, measurement) = (&self.summary, self.measurement);
        let first = self.rows.len();
        for (&placement, outcome) in measurement.placements.iter().zip(outcomes) {
            let name = algorithm.name;
            let record = Record::new(summary, measurement, name, case, placement, outcome);
            let mut row = Row::new(record, case, outcome, algorithm.is_chosen);
            row.details.baseline_us =
                self.baseline.as_ref().and_then(|baseline| baseline.median_us(&row));
            self.rows.push(row);
        }
        self.bar.inc(1);
        if measurement.jsonl {
            let lines: Result<String, serde_json::Error> = self.rows[first..]
                .iter()
                .map(|row| serde_json::to_string(&row.record).map(|line| line + "\n"))
                .collect();
            self.print(&lines.map_err(|error| BenchError::Print(error.into()))?)
        } else {
            let bus_factor = case.called.bus_factor(summary.ranks);
            let mut row = table::row(case, outcomes, bus_factor);
            if self.baseline.is_some() {
                self.rows[first..].iter().for_each(|measured| row += &baseline::change(measured));
            }
            row += &match measurement.by {
                By::Each if algorithm.is_chosen => format!("  * {}", algorithm.name),
                By::Each => format!("    {}", algorithm.name),
                By::Choice | By::One(_) => String::new(),
            };
            let mut lines = vec![row];
            for (&placement, outcome) in measurement.placements.iter().zip(outcomes) {
                let spread = || table::percentiles(placement, outcome);
                let last = || table::stragglers(placement, outcome);
                lines.extend(measurement.percentiles.then(spread));
                lines.extend(measurement.stragglers.then(last));
            }
            self.print(&(lines.join("\n") + "\n"))
        }
    }

    /// Prints what comes after the last row, and writes the files that are wanted. Returns how many rows
    /// took longer than in the earlier run by more than is allowed.
    pub fn finish(mut self, counters: Counters) -> Result<usize, BenchError> {
        self.bar.finish_and_clear();
        if !self.measurement.jsonl {
            self.print(&table::footer(out_of_bounds(&self.rows), average_busbw(&self.rows)))?;
            self.print(&counters.text())?;
            self.print(&timeline::text(&self.recorded))?;
            if self.measurement.by == By::Each {
                self.print(&regret::summary(&self.rows))?;
            }
        }
        if let Some((path, file)) = self.document.take() {
            self.write_document(file, counters).map_err(file_error(&path))?;
        }
        if let Some((path, file)) = self.csv.take() {
            let mut writer = csv::Writer::from_writer(file);
            let mut rows = self.rows.iter();
            let written = rows.try_for_each(|row| writer.serialize((&row.record, &row.details)));
            let written = written.map_err(io::Error::from).and_then(|()| writer.flush());
            written.map_err(file_error(&path))?;
        }
        if let Some((path, file)) = self.timeline.take() {
            let written = timeline::write(BufWriter::new(file), &self.recorded);
            written.map_err(file_error(&path))?;
        }
        if let Some(path) = &self.plot {
            let chart = picture::chart(&self.summary, self.measurement, &self.rows);
            chart.write(path).map_err(file_error(path))?;
        }
        let Some(baseline) = &self.baseline else { return Ok(0) };
        let (line, lost) = baseline.summary(&self.rows, self.max_loss_percent);
        if !self.measurement.jsonl {
            self.print(&line)?;
        }
        Ok(lost)
    }

    fn write_document(&self, file: File, counters: Counters) -> io::Result<()> {
        let document = Document::new(&self.summary, self.measurement, &self.rows, counters);
        let mut file = BufWriter::new(file);
        serde_json::to_writer_pretty(&mut file, &document)?;
        writeln!(file)?;
        file.flush()
    }

    fn print(&self, text: &str) -> Result<(), BenchError> {
        let mut stdout = io::stdout().lock();
        self.bar
            .suspend(|| stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
            .map_err(BenchError::Print)
    }
}

/// The earlier run, if there is one to compare with.
pub fn baseline(arguments: &BenchArguments) -> Result<Option<Baseline>, BenchError> {
    let read = |path: &PathBuf| {
        Baseline::read(path).map_err(|source| BenchError::Baseline { path: path.clone(), source })
    };
    arguments.baseline.as_ref().map(read).transpose()
}

/// Whether the document can be written, found out before anything is measured. What is in the file
/// stays there until then.
pub fn check_file(path: &Path) -> Result<(), BenchError> {
    let open = File::options().write(true).create(true).truncate(false).open(path);
    open.map(drop).map_err(file_error(path))
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> BenchError {
    |source| BenchError::File { path: path.to_owned(), source }
}

/// A bar on standard error if that is a terminal, else nothing.
fn bar(cases: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(cases as u64).with_style(style)
}
