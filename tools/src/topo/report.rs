//! Findings and differences, for people.

use std::fmt::Write;

use ringtree_topology::{Difference, Finding, Severity, Warning};

use super::source::Source;
use crate::words::counted;

/// Whether something does not work.
pub fn has_failure(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Failure)
}

/// In the manner of the doctor: what is seen, and what to do.
pub fn findings(source: &Source, findings: &[Finding]) -> String {
    let mut text = format!("# {}\n", source.name);
    for Finding { severity, subject, message, remedy } in findings {
        let level = name(*severity);
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{level:<8} {subject}: {message}");
        let _ = writeln!(text, "{:8} try: {remedy}", "");
    }
    let count = |severity| {
        let number = findings.iter().filter(|finding| finding.severity == severity).count();
        counted(number as u64, name(severity))
    };
    let _ = writeln!(
        text,
        "# {}, {}, {}",
        count(Severity::Failure),
        count(Severity::Warning),
        count(Severity::Note)
    );
    text
}

fn name(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Failure => "failure",
    }
}

/// One line each.
pub fn differences(differences: &[Difference]) -> String {
    if differences.is_empty() {
        return "no difference\n".into();
    }
    differences.iter().map(|difference| format!("{difference}\n")).collect()
}

/// What was assumed: of the description, and for the graph. Subjects of which the same is said share a line.
pub fn assumed(machine: &[Warning], graph: &[Warning]) -> String {
    let mut lines: Vec<(Vec<&str>, &str)> = Vec::new();
    for Warning { subject, message } in machine.iter().chain(graph) {
        match lines.iter_mut().find(|(_, known)| known == message) {
            Some((subjects, _)) => subjects.push(subject),
            None => lines.push((vec![subject], message)),
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    let mut text = "\nAssumed, or odd:\n".to_owned();
    for (subjects, message) in lines {
        let _ = writeln!(text, "  {}: {message}", subjects.join(", "));
    }
    text
}
