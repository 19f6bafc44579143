//! The command `sim`: predictions beside sums made by hand, its limits, and its mistakes.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use nix::sys::resource::{Resource, UsageWho, getrusage, setrlimit};
use ringtree_plan::{Algorithm, Collective};
use serde_json::Value;

/// Microseconds that a message occupies a port beside its bytes, and bytes that a rank adds in a
/// microsecond: the figures of the library's cost table.
const MESSAGE_US: f64 = 5.0;
const REDUCED_BYTES_PER_US: f64 = 40e3;

/// `1G` in bytes a microsecond.
const BYTES_PER_US: f64 = (1_u64 << 30) as f64 / 1e6;

/// The program with arguments that are separated by blanks.
fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    command.args(arguments.split(' ')).stdin(Stdio::null()).env_clear();
    command
}

fn ringtree(arguments: &str) -> Output {
    command(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it prints text")
}

/// The only prediction, as JSON.
fn predict(arguments: &str) -> Value {
    let output = ringtree(&format!("sim {arguments} --json"));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let mut document: Value = serde_json::from_slice(&output.stdout).expect("a document");
    document[0].take()
}

/// What is predicted of one algorithm.
fn row(arguments: &str, algorithm: &str) -> Value {
    let document = predict(arguments);
    let rows = document["rows"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["algorithm"] == algorithm);
    row.unwrap_or_else(|| panic!("no {algorithm} in {document}")).clone()
}

#[track_caller]
fn assert_near(found: &Value, expected: f64) {
    let found = found.as_f64().expect("a number");
    assert!((found - expected).abs() <= 1e-3 * expected, "{found}, not {expected}");
}

#[test]
fn a_ring_takes_what_one_computes_by_hand() {
    let ring = row("all-reduce --ranks 4 --bytes 64K --latency-us 10 --bandwidth 1G", "ring");
    let chunk_bytes = 65536.0 / 4.0;
    let time_us = 6.0 * (10.0 + MESSAGE_US + chunk_bytes / BYTES_PER_US)
        + 3.0 * chunk_bytes / REDUCED_BYTES_PER_US;
    assert_near(&ring["time_us"], time_us);
    assert_near(&ring["algbw_GBps"], 65536.0 / time_us / 1e3);
    assert_near(&ring["busbw_GBps"], 65536.0 / time_us / 1e3 * 1.5);
    assert_eq!((ring["messages"].as_u64(), &ring["predicted_by"]), (Some(6), &"plan".into()));
    assert_near(&ring["bytes_off_host"], 6.0 * chunk_bytes);
}

#[test]
fn among_more_than_1024_ranks_exact_formulas_are_taken_and_called_so() {
    let machine = "--bytes 1M --latency-us 10 --bandwidth 1G";
    let document = predict(&format!("all-gather --ranks 2048 {machine}"));
    for row in document["rows"].as_array().expect("rows") {
        assert_eq!(row["predicted_by"], "formula", "{row}");
    }
    let ring = row(&format!("all-gather --ranks 2048 {machine}"), "ring");
    assert_near(&ring["time_us"], 2047.0 * (10.0 + MESSAGE_US + 512.0 / BYTES_PER_US));
    // Even where all messages could not be run.
    let exchange = row(&format!("reduce --ranks 16384 {machine}"), "two-shot");
    assert_eq!(
        (&exchange["predicted_by"], &exchange["messages"]),
        (&"formula".into(), &Value::Null)
    );
    // Of no power of two the formula would be too low.
    let halves = row(&format!("all-gather --ranks 2047 {machine}"), "halving-doubling");
    assert_eq!(halves["predicted_by"], "plan");
}

#[test]
fn ranks_of_a_host_share_what_it_sends() {
    let flat = "all-to-all --ranks 8 --bytes 8M --latency-us 10 --bandwidth 1G";
    let block_us = f64::from(1 << 20) / BYTES_PER_US;
    let alone = row(flat, "direct");
    assert_near(&alone["bytes_off_host"], 7.0 * f64::from(1 << 20));
    let shared = row(&format!("{flat} --hosts 2"), "direct");
    // Each of 4 ranks has 4 blocks for the other host, one after the other in 8 rounds.
    assert_near(&shared["bytes_off_host"], 16.0 * f64::from(1 << 20));
    let time_us = shared["time_us"].as_f64().expect("a time");
    let least_us = 16.0 * (block_us + MESSAGE_US);
    assert!(time_us >= least_us, "{time_us} us, at least {least_us}");
    // Inside one host nothing goes anywhere else.
    let inside = row(&format!("{flat} --hosts 1"), "direct");
    assert_near(&inside["bytes_off_host"], 0.0);
    assert!(inside["time_us"].as_f64() < alone["time_us"].as_f64());
}

#[test]
fn the_table_has_every_algorithm_fastest_first_and_one_choice() {
    let machine = "--latency-us 10 --bandwidth 12.5G";
    for collective in Collective::all(0) {
        let (name, ranks) = (collective.name(), 16);
        let output =
            ringtree(&format!("sim {name} --ranks {ranks} --hosts 4 --bytes 1M {machine}"));
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let table = text(&output.stdout);
        let rows: Vec<&str> = table.lines().filter(|line| !line.starts_with('#')).collect();
        let names: BTreeSet<&str> =
            rows.iter().filter_map(|row| row[2..].split_whitespace().next()).collect();
        let serving = Algorithm::ALL.into_iter().filter(|a| a.serves(collective));
        assert_eq!(names, serving.map(Algorithm::name).collect(), "{table}");
        let time = |row: &&str| row[2..].split_whitespace().nth(1)?.parse::<f64>().ok();
        assert!(rows.iter().filter_map(time).is_sorted(), "{table}");
        assert_eq!(rows.iter().filter(|row| row.starts_with("* ")).count(), 1, "{table}");
    }
}

#[test]
fn several_numbers_of_ranks_make_several_tables() {
    let output = ringtree("sim broadcast --ranks 2,4,8 --bytes 64K --latency-us 5 --bandwidth 1G");
    let headings: Vec<&str> =
        text(&output.stdout).lines().filter(|line| line.contains("among")).collect();
    assert_eq!(headings.len(), 3);
    assert!(headings[2].contains("65536 bytes among 8 ranks on 8 hosts"), "{headings:?}");
}

/// Of all algorithms, in 4 GiB and few seconds: of processor time, since others may use the machine as
/// well, and that makes even this longer.
#[test]
fn all_algorithms_are_predicted_for_16384_ranks() {
    const MOST_BYTES: u64 = 4 << 30;
    const MOST_TIME_S: i64 = 60;
    let mut command = command(
        "sim all-reduce --ranks 16384 --bytes 16M --latency-us 10 --bandwidth 12.5G --json",
    );
    let limit = || Ok(setrlimit(Resource::RLIMIT_AS, MOST_BYTES, MOST_BYTES)?);
    // SAFETY: between fork and exec the closure makes one system call, and neither allocates nor locks.
    unsafe { command.pre_exec(limit) };
    let output = command.output().expect("the program starts");
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).expect("what children have used");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).expect("a document");
    let rows = document[0]["rows"].as_array().expect("rows");
    // All but the hierarchical one, which is for ranks that share hosts.
    let serving = Algorithm::ALL.into_iter().filter(|a| a.serves(Collective::AllReduce));
    assert_eq!(rows.len(), serving.count() - 1, "{document}");
    assert_eq!(document[0]["not_predicted"].as_array().map(Vec::len), Some(0));
    // With the other tests' children, which take next to nothing.
    assert!(used.user_time().tv_sec() <= MOST_TIME_S, "{:?}", used.user_time());
}

#[test]
fn what_would_take_too_long_is_said() {
    let output = ringtree(
        "sim all-to-all --ranks 16384 --hosts 4 --bytes 1M --latency-us 10 --bandwidth 1G",
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    assert!(table.ends_with("# too many messages to predict: direct, pairwise\n"), "{table}");
}

#[test]
fn mistakes_are_said_in_one_line() {
    let machine = "--latency-us 10 --bandwidth 1G";
    for (arguments, said) in [
        (
            format!("all-reduce --ranks 6 --hosts 4 --bytes 1K {machine}"),
            "--hosts 4 does not divide",
        ),
        ("all-reduce --ranks 4 --bytes 1K --latency-us -1 --bandwidth 1G".into(), "--latency-us"),
        ("all-reduce --ranks 4 --bytes 1K --latency-us 1 --bandwidth 0".into(), "800M or 12.5G"),
        (format!("all-reduce --ranks 4 --bytes 1.5K {machine}"), "64K"),
        (format!("all-reduce --ranks 4 --bytes 1K {machine} --algorithm pairwise"), "write one of"),
        (format!("all-reduce --ranks 4 --bytes 1K {machine} --plot x.svg"), "several"),
        (format!("all-reduce --ranks 20000 --bytes 1K {machine}"), "20000"),
        (format!("all-reduce --ranks 2,4 --bytes 1K {machine} --plot /nowhere/x.svg"), "/nowhere/"),
    ] {
        let output = ringtree(&format!("sim {arguments}"));
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {stderr}");
        assert!(stderr.contains(said) && stderr.lines().count() == 1, "{arguments}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments}");
    }
}
