//! What a run says while it runs: a line a step, and on a terminal a bar with the time that is left.

use std::io::{IsTerminal, Write, stdout};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use ringtree_trainer::Error;

use crate::banner::Banner;
use crate::metrics::{EventLine, Line, Metrics, StepLine, ValidationLine};

/// Says it, and writes it to the run's metrics.
pub struct Output {
    banner: Banner,
    metrics: Metrics,
    steps: u64,
    /// Whether a prediction is told for each token of a sample.
    counts_tokens: bool,
    bar: Option<ProgressBar>,
}

impl Output {
    /// Begins with the banner and the head of the table.
    pub fn new(
        banner: Banner,
        resumed: Option<(&Path, u64)>,
        metrics: Metrics,
        steps: u64,
        counts_tokens: bool,
    ) -> Output {
        banner.print();
        let first = resumed.map_or(0, |(_, step)| step);
        if let Some((folder, step)) = resumed {
            say(&format!("resumed from {} after step {step}", folder.display()));
        }
        Output::begin(banner, metrics, steps, counts_tokens, first)
    }

    /// Goes on with the output of a rank that is gone.
    pub fn taken_over(banner: Banner, metrics: Metrics, steps: u64, counts_tokens: bool) -> Output {
        Output::begin(banner, metrics, steps, counts_tokens, 0)
    }

    /// Goes on with the metrics as far as they still hold.
    pub fn go_on(&mut self, metrics: Metrics) {
        self.metrics = metrics;
    }

    /// The head of the table.
    fn begin(
        banner: Banner,
        metrics: Metrics,
        steps: u64,
        counts_tokens: bool,
        first: u64,
    ) -> Output {
        say(&format!(
            "{:>width$} {:>7} {:>8} {:>8} {:>9} {:>10} {:>9} {:>9}  slowest rank",
            "step",
            "epoch",
            "loss",
            "gradient",
            "rate",
            if counts_tokens { "tokens/s" } else { "samples/s" },
            "exchange",
            "exposed",
            width = width(steps),
        ));
        let bar = stdout().is_terminal().then(|| {
            let style = "{bar:30} {pos}/{len} steps, {eta} left";
            let style = ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar());
            let bar = ProgressBar::new(steps).with_style(style).with_position(first);
            bar.reset_eta();
            bar
        });
        Output { banner, metrics, steps, counts_tokens, bar }
    }

    /// Says a step.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn step(&mut self, line: StepLine) -> Result<(), Error> {
        self.print(&self.step_text(&line));
        if let Some(bar) = &self.bar {
            bar.set_position(line.step);
        }
        self.metrics.add(&Line::Step(line))
    }

    /// Says what the model makes of the validation data.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn validation(&mut self, line: ValidationLine) -> Result<(), Error> {
        self.print(&format!(
            "validation after step {}: loss {:.4}, {:.2} % of {} right",
            line.step,
            line.loss,
            100.0 * line.accuracy,
            line.predictions
        ));
        self.metrics.add(&Line::Validation(line))
    }

    /// Says what happened.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn event(&mut self, line: EventLine) -> Result<(), Error> {
        self.print(&line.what);
        self.metrics.add(&Line::Event(line))
    }

    /// Ends it. Returns what the run was.
    pub fn end(self) -> Banner {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.banner
    }

    /// A step as a row below the head.
    fn step_text(&self, line: &StepLine) -> String {
        let of_step = |ms: f64| format!("{:.1} %", 100.0 * ms / line.step_ms);
        let slowest = match line.busy_ms.len() {
            1 => String::new(),
            _ => format!("{} by {:.1} ms", line.slowest_rank, line.behind_ms),
        };
        let rate = if self.counts_tokens { line.predictions_per_s } else { line.samples_per_s };
        format!(
            "{:>width$} {:>7.2} {:>8.4} {:>8.3} {:>9.2e} {:>10.0} {:>9} {:>9}  {slowest}",
            line.step,
            line.epoch,
            line.loss,
            line.gradient_norm,
            line.learning_rate,
            rate,
            of_step(line.exchange_ms),
            of_step(line.exposed_ms),
            width = width(self.steps),
        )
    }

    fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }
}

/// Says a line. A run does not end because nobody listens any more.
pub fn say(text: &str) {
    let _ = writeln!(stdout(), "{text}");
}

/// How many characters the number of the last step has.
fn width(steps: u64) -> usize {
    steps.to_string().len().max(4)
}
