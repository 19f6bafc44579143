//! The table as nccl-tests prints it.

use std::fmt::Write;

use ringtree::{DataType, Op};

use super::measure::{Case, Outcome};
use super::options::Placement;
use super::statistics::{Distribution, algorithm_bandwidth};

/// Ranks that are named as the last ones.
const MOST_STRAGGLERS: usize = 8;

/// The lines above the rows.
pub fn header(placements: &[Placement]) -> String {
    let mut titles = line_start("", "", "", "", "");
    let mut names = line_start("size", "count", "type", "redop", "root");
    let mut units = line_start("(B)", "(elements)", "", "", "");
    for placement in placements {
        let title = match placement {
            Placement::OutOfPlace => "           out-of-place         ",
            Placement::InPlace => "              in-place          ",
        };
        // Writing into a string cannot fail.
        titles.push_str(title);
        let _ = write!(names, "  {:>7}  {:>6}  {:>6} {:>6}", "time", "algbw", "busbw", "#wrong");
        let _ = write!(units, "  {:>7}  {:>6}  {:>6} {:>6}", "(us)", "(GB/s)", "(GB/s)", "");
    }
    format!("#\n{}\n{}\n{}\n", titles.trim_end(), names.trim_end(), units.trim_end())
}

fn line_start(size: &str, count: &str, data_type: &str, op: &str, root: &str) -> String {
    format!("# {size:>10}  {count:>12}  {data_type:>8}  {op:>6}  {root:>6}")
}

/// A row: one case, and one outcome a placement. `bus_factor` is the ratio of bus bandwidth to
/// algorithm bandwidth.
pub fn row(case: Case, outcomes: &[Outcome], bus_factor: f64) -> String {
    let root = case.called.root().map_or(-1, i64::from);
    let mut row = format!(
        "{:>12}  {:>12}  {:>8}  {:>6}  {root:>6}",
        case.bytes(),
        case.count,
        type_name(case.data_type),
        case.op.map_or("none", Op::name),
    );
    for outcome in outcomes {
        let time_us = outcome.timing.median_us;
        let algbw = algorithm_bandwidth(case.bytes(), time_us);
        let wrong = outcome.wrong.map_or("N/A".into(), |wrong| wrong.to_string());
        let _ = write!(
            row,
            "  {}  {algbw:>6.2}  {:>6.2}  {wrong:>5}",
            time(time_us),
            algbw * bus_factor
        );
    }
    row
}

/// The line below a row that says how the times of one outcome are spread.
pub fn percentiles(placement: Placement, outcome: &Outcome) -> String {
    let Distribution { p50_us, p90_us, p99_us, p999_us, max_us, .. } = outcome.distribution;
    format!(
        "#   {}: p50 {p50_us} us, p90 {p90_us}, p99 {p99_us}, p99.9 {p999_us}, longest {max_us}, of {} \
         calls",
        placement.name(),
        outcome.timing.iterations,
    )
}

/// The line below a row that says which ranks were last most often, as many as there is room for.
pub fn stragglers(placement: Placement, outcome: &Outcome) -> String {
    let last = &outcome.distribution.last;
    let calls: u32 = last.iter().sum();
    let mut ranks: Vec<usize> = (0..last.len()).collect();
    ranks.sort_by_key(|&rank| std::cmp::Reverse(last[rank]));
    let share = |rank: &usize| {
        let percent = f64::from(last[*rank]) / f64::from(calls.max(1)) * 100.0;
        format!("rank {rank} {percent:.0} %")
    };
    let named: Vec<String> = ranks.iter().take(MOST_STRAGGLERS).map(share).collect();
    format!("#   {}: last was {}", placement.name(), named.join(", "))
}

/// The lines below the rows.
pub fn footer(out_of_bounds: u64, average_busbw: f64) -> String {
    let verdict = if out_of_bounds == 0 { "OK" } else { "FAILED" };
    format!(
        "# Out of bounds values : {out_of_bounds} {verdict}\n\
         # Avg bus bandwidth    : {average_busbw:.6}\n#\n"
    )
}

/// The type as nccl-tests calls it.
pub fn type_name(data_type: DataType) -> &'static str {
    match data_type {
        DataType::F32 => "float",
        DataType::F64 => "double",
        DataType::Bf16 => "bfloat16",
        DataType::F16 => "half",
        DataType::F8E4M3 => "f8e4m3",
        DataType::F8E5M2 => "f8e5m2",
        DataType::I8 => "int8",
        DataType::U8 => "uint8",
        DataType::I32 => "int32",
        DataType::U32 => "uint32",
        DataType::I64 => "int64",
        DataType::U64 => "uint64",
    }
}

/// Seven characters, with as many decimals as a long time leaves sense in.
fn time(time_us: f64) -> String {
    match time_us {
        10_000.0.. => format!("{time_us:>7.0}"),
        100.0.. => format!("{time_us:>7.1}"),
        _ => format!("{time_us:>7.2}"),
    }
}

#[cfg(test)]
mod tests {
    use ringtree::Collective;

    use super::super::call::Called;
    use super::super::statistics::Timing;
    use super::*;

    fn outcome(median_us: f64, wrong: Option<u64>) -> Outcome {
        let (distribution, times_us) = Distribution::of(&[median_us], 1);
        Outcome { timing: Timing::new(times_us, median_us), distribution, wrong }
    }

    #[test]
    fn rows_are_those_of_nccl_tests() {
        let case = Case {
            called: Called::Even(Collective::AllReduce),
            data_type: DataType::F32,
            op: Some(Op::Sum),
            count: 262_144,
            blocks: 1,
            algorithm: None,
        };
        let outcomes = [outcome(1048.576, Some(0)), outcome(99.994, Some(12))];
        assert_eq!(
            row(case, &outcomes, 1.5),
            "     1048576        262144     float     sum      -1   1048.6    1.00    1.50      0    \
             99.99   10.49   15.73     12"
        );
        let case = Case {
            called: Called::Even(Collective::Broadcast { root: 3 }),
            data_type: DataType::Bf16,
            op: None,
            count: 0,
            blocks: 1,
            algorithm: None,
        };
        assert_eq!(
            row(case, &[outcome(12_345.6, None)], 1.0),
            "           0             0  bfloat16    none       3    12346    0.00    0.00    N/A"
        );
    }

    #[test]
    fn stragglers_are_named_by_how_often_they_were_last() {
        let times_us = [[1.0, 1.0, 1.0, 9.0], [2.0, 2.0, 2.0, 1.0], [0.0; 4]].concat();
        let (distribution, slowest_us) = Distribution::of(&times_us, 3);
        let timing = Timing::new(slowest_us, 1.0);
        let outcome = Outcome { timing, distribution, wrong: None };
        assert_eq!(
            stragglers(Placement::InPlace, &outcome),
            "#   in place: last was rank 1 75 %, rank 0 25 %, rank 2 0 %"
        );
        assert_eq!(
            percentiles(Placement::OutOfPlace, &outcome),
            "#   out of place: p50 2 us, p90 9, p99 9, p99.9 9, longest 9, of 4 calls"
        );
    }

    #[test]
    fn the_header_stands_above_the_rows() {
        let header = header(&[Placement::OutOfPlace, Placement::InPlace]);
        let lines: Vec<&str> = header.lines().collect();
        assert_eq!(
            lines[2],
            "#       size         count      type   redop    root     time   algbw   busbw #wrong     \
             time   algbw   busbw #wrong"
        );
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn the_footer_says_what_went_wrong() {
        assert!(footer(0, 1.25).starts_with("# Out of bounds values : 0 OK\n"));
        assert!(footer(2, 1.25).starts_with("# Out of bounds values : 2 FAILED\n"));
        assert!(footer(0, 1.25).contains("# Avg bus bandwidth    : 1.250000\n"));
    }
}
