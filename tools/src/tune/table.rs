//! Measured times as a table: which algorithm is the fastest, and what it gains.

use std::fmt::Write;

use ringtree::selection::choose;
use ringtree::{Algorithm, Collective, Tuned};

/// A row: the choices for one size of a collective.
struct Row {
    collective: Collective,
    bytes: u64,
    /// The fastest algorithm and its time.
    tuned: (Algorithm, f64),
    /// The one that is chosen without measured times, and its time.
    untuned: Option<(Algorithm, f64)>,
}

impl Row {
    /// Whether another algorithm is chosen than without measured times.
    fn differs(&self) -> bool {
        self.untuned.is_none_or(|(algorithm, _)| algorithm != self.tuned.0)
    }

    /// Which part of the other's time the fastest one saves, in percent.
    fn gain_percent(&self) -> f64 {
        self.untuned.map_or(0.0, |(_, time_s)| 100.0 * (1.0 - self.tuned.1 / time_s))
    }
}

/// The table and what it comes to, a line each.
pub fn table(tuned: &Tuned) -> String {
    let rows = rows(tuned);
    let mut text = format!("# {}\n", tuned.measured_on());
    // Writing into a string cannot fail.
    let _ = writeln!(
        text,
        "# {:<14} {:>10}  {:<16} {:>10}  instead of",
        "collective", "size (B)", "fastest", "time (us)"
    );
    for row in &rows {
        let Row { collective, bytes, tuned: (algorithm, time_s), untuned } = row;
        let instead = match untuned {
            Some((other, other_s)) if row.differs() => {
                format!("  {other}, {:.2} us ({:.0} % less)", other_s * 1e6, row.gain_percent())
            }
            _ => String::new(),
        };
        let line = format!(
            "  {:<14} {bytes:>10}  {:<16} {:>10.2}{instead}",
            collective.name(),
            algorithm.name(),
            time_s * 1e6,
        );
        text += line.trim_end();
        text.push('\n');
    }
    let differing: Vec<&Row> = rows.iter().filter(|row| row.differs()).collect();
    let much = differing.iter().filter(|row| row.gain_percent() > 10.0).count();
    let _ = writeln!(
        text,
        "# {} of {} choices differ from those without measured times, {much} by more than 10 %",
        differing.len(),
        rows.len(),
    );
    text
}

fn rows(tuned: &Tuned) -> Vec<Row> {
    let shape = tuned.measured_on().shape();
    let row = |collective: Collective, bytes: u64| {
        let times = || tuned.times_s(collective, bytes);
        let fastest = times().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let untuned = choose(collective, bytes, &shape, None).algorithm;
        let untuned = times().find(|(algorithm, _)| *algorithm == untuned);
        Some(Row { collective, bytes, tuned: fastest, untuned })
    };
    let sizes = tuned.sizes_bytes();
    sizes.flat_map(|(c, sizes)| sizes.iter().filter_map(move |&bytes| row(c, bytes))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ringtree::Communicator;

    use super::*;

    #[test]
    fn each_measured_size_is_a_row() {
        let tuned = Communicator::in_process(1).unwrap()[0].tune(Duration::ZERO).unwrap();
        let text = table(&tuned);
        let rows: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let sizes: usize = tuned.sizes_bytes().map(|(_, sizes)| sizes.len()).sum();
        assert_eq!(rows.len(), sizes);
        assert!(text.starts_with("# 1 rank on 1 host over shared memory, 1 rank for "), "{text}");
        assert!(text.contains(" choices differ from those without measured times, "), "{text}");
    }
}
