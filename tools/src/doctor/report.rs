//! What is printed: for people, or as one line of JSON.

use std::fmt::Write;

use serde::Serialize;

use super::finding::Level;
use super::job::{Hosts, Pair, Said, TRANSPORTS};
use crate::words::{counted, ranges};

/// More ranks make a table that no terminal shows.
const MOST_COLUMNS: u32 = 16;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    version: &'static str,
    ranks: u32,
    hosts: Vec<HostRanks>,
    /// The worst of all levels.
    level: Level,
    findings: Vec<Said>,
    pairs: Vec<Pair>,
}

#[derive(Debug, Serialize)]
struct HostRanks {
    name: String,
    ranks: Vec<u32>,
}

impl Report {
    /// A report about `ranks` ranks on those hosts.
    pub fn new(ranks: u32, hosts: Hosts, findings: Vec<Said>, pairs: Vec<Pair>) -> Report {
        let hosts = hosts.into_iter().map(|(name, ranks)| HostRanks { name, ranks }).collect();
        let level = findings.iter().map(|said| said.finding.level).max().unwrap_or(Level::Ok);
        Report { version: env!("CARGO_PKG_VERSION"), ranks, hosts, level, findings, pairs }
    }

    /// Whether something does not work.
    pub fn has_failure(&self) -> bool {
        self.level == Level::Failure
    }

    /// For people.
    pub fn text(&self) -> String {
        let hosts = self.hosts.iter();
        let hosts: Vec<String> =
            hosts.map(|host| format!("{} (rank {})", host.name, ranges(&host.ranks))).collect();
        let mut text = format!(
            "# ringtree {} doctor: {} on {}\n",
            self.version,
            counted(self.ranks, "rank"),
            hosts.join(", ")
        );
        for said in &self.findings {
            self.line(&mut text, said);
        }
        if !self.pairs.is_empty() {
            text.push_str(&self.matrix());
        }
        let count = |level, name: &str| {
            let number = self.findings.iter().filter(|said| said.finding.level == level).count();
            counted(number as u64, name)
        };
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "# {}, {}, {}",
            count(Level::Failure, "failure"),
            count(Level::Warning, "warning"),
            count(Level::Note, "note")
        );
        text
    }

    fn line(&self, text: &mut String, said: &Said) {
        let finding = &said.finding;
        let whose = match said.ranks.len() as u32 {
            some if some > 0 && some < self.ranks => format!(" (rank {})", ranges(&said.ranks)),
            _ => String::new(),
        };
        let (level, check, seen) = (finding.level.name(), &finding.check, &finding.seen);
        let _ = writeln!(text, "{level:<8} {check:<18} {seen}{whose}");
        if finding.level > Level::Ok {
            let _ = writeln!(text, "{:8} because {}", "", finding.why);
        }
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "{:8} try: {remedy}", "");
        }
    }

    /// One row and one column a rank; of many ranks only a summary.
    fn matrix(&self) -> String {
        let mut text = "# One way between two ranks, microseconds\n".to_owned();
        if self.ranks > MOST_COLUMNS {
            text.push_str(&self.summary());
            return text;
        }
        text.push_str("# rank");
        for rank in 0..self.ranks {
            let _ = write!(text, " {rank:>11}");
        }
        text.push('\n');
        for one in 0..self.ranks {
            let _ = write!(text, "{one:>6}");
            for other in 0..self.ranks {
                let _ = write!(text, " {:>11}", self.cell(one, other));
            }
            text.push('\n');
        }
        text
    }

    fn cell(&self, one: u32, other: u32) -> String {
        let ranks = [one.min(other), one.max(other)];
        let Some(pair) = self.pairs.iter().find(|pair| pair.ranks == ranks) else {
            return "-".into();
        };
        match (&pair.transport, pair.one_way_us) {
            (Some(transport), Some(time_us)) => format!("{transport} {time_us:.2}"),
            _ => "unreachable".into(),
        }
    }

    /// `# shm: 120 pairs, 0.21 to 0.57`.
    fn summary(&self) -> String {
        let mut text = String::new();
        for kind in TRANSPORTS {
            let of_kind = self.pairs.iter().filter(|pair| pair.transport.as_deref() == Some(kind));
            let mut times_us: Vec<f64> = of_kind.filter_map(|pair| pair.one_way_us).collect();
            times_us.sort_by(f64::total_cmp);
            if let (Some(least), Some(most)) = (times_us.first(), times_us.last()) {
                let pairs = counted(times_us.len() as u64, "pair");
                let _ = writeln!(text, "# {kind}: {pairs}, {least:.2} to {most:.2}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Check;
    use super::*;

    const CHECK: Check = Check { name: "memlock", why: "it matters" };

    fn pair(ranks: [u32; 2], time_us: Option<f64>) -> Pair {
        Pair {
            ranks,
            transport: time_us.map(|_| "tcp".into()),
            one_way_us: time_us,
            clock_ahead_us: None,
            reaches_memory: false,
            error: time_us.is_none().then(|| "no route".into()),
        }
    }

    #[test]
    fn people_read_levels_reasons_remedies_and_a_table() {
        let said = vec![
            Said { finding: CHECK.ok("much"), ranks: vec![0, 1, 2] },
            Said { finding: CHECK.warning("none").remedy("ulimit -l 8"), ranks: vec![1] },
        ];
        let pairs = vec![pair([0, 1], Some(12.345)), pair([0, 2], None), pair([1, 2], Some(3.0))];
        let report = Report::new(3, vec![("vm".into(), vec![0, 1, 2])], said, pairs);
        let version = env!("CARGO_PKG_VERSION");
        let expected = format!(
            "# ringtree {version} doctor: 3 ranks on vm (rank 0-2)\n\
             ok       memlock            much\n\
             warning  memlock            none (rank 1)\n         \
             because it matters\n         \
             try: ulimit -l 8\n\
             # One way between two ranks, microseconds\n\
             # rank           0           1           2\n     \
             0           -   tcp 12.35 unreachable\n     \
             1   tcp 12.35           -    tcp 3.00\n     \
             2 unreachable    tcp 3.00           -\n\
             # 0 failures, 1 warning, 0 notes\n"
        );
        assert_eq!(report.text(), expected);
        assert!(!report.has_failure());
    }

    #[test]
    fn many_ranks_are_summed_up() {
        let pairs: Vec<Pair> =
            (1..20).map(|other| pair([0, other], Some(f64::from(other)))).collect();
        let report = Report::new(20, Vec::new(), Vec::new(), pairs);
        assert!(report.text().contains("\n# tcp: 19 pairs, 1.00 to 19.00\n"), "{}", report.text());
    }
}
