//! The commands `bench` and `plan`, by real processes.

use std::process::{Command, Output, Stdio};

use ringtree_plan::{Algorithm, Collective};
use serde_json::Value;

/// The fields of a line of `--jsonl`, in their order: other programs read them.
const FIELDS: [&str; 16] = [
    "peer",
    "version",
    "collective",
    "algorithm",
    "transport",
    "ranks",
    "bytes",
    "iters",
    "median_us",
    "min_us",
    "p95_us",
    "loop_us",
    "algbw_GBps",
    "busbw_GBps",
    "inplace",
    "ok",
];

#[test]
fn the_table_is_that_of_nccl_tests() {
    let output = ringtree("bench all-reduce --ranks 2 --sizes 0,4,1000 -n 3 -w 1");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "no progress bar in a pipe");
    let table = text(&output.stdout);
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows.len(), 3, "{table}");
    for (row, (bytes, count)) in rows.iter().zip([("0", "0"), ("4", "1"), ("1000", "250")]) {
        assert_eq!(row.len(), 13, "{row:?}");
        assert_eq!(row[..5], [bytes, count, "float", "sum", "-1"]);
        assert_eq!((row[8], row[12]), ("0", "0"), "nothing is wrong");
        for number in &row[5..] {
            assert!(number.parse::<f64>().unwrap() >= 0.0, "{number}");
        }
    }
    assert!(table.contains("#       size         count      type   redop    root     time"));
    assert!(table.contains("\n# Out of bounds values : 0 OK\n# Avg bus bandwidth    : "));
}

#[test]
fn each_line_of_jsonl_has_exactly_the_agreed_fields() {
    let output = ringtree("bench all-reduce --ranks 3 --sizes 8,4096 -n 7 -w 0 --jsonl");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 4);
    for (line, (bytes, inplace)) in
        lines.iter().zip([(8, false), (8, true), (4096, false), (4096, true)])
    {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record.as_object().unwrap().len(), FIELDS.len(), "{line}");
        let places: Vec<usize> =
            FIELDS.iter().map(|field| line.find(&format!("\"{field}\":")).unwrap()).collect();
        assert!(places.is_sorted(), "{line}");
        assert_eq!(record["peer"], "ringtree");
        assert_eq!(record["collective"], "all-reduce");
        assert_eq!(record["transport"], "shm");
        assert_eq!((&record["ranks"], &record["iters"]), (&Value::from(3), &Value::from(7)));
        assert_eq!((&record["bytes"], &record["inplace"]), (&bytes.into(), &inplace.into()));
        assert_eq!(record["ok"], true);
        let number = |field: &str| record[field].as_f64().unwrap();
        assert!(number("min_us") <= number("median_us"));
        assert!(number("median_us") <= number("p95_us"));
        assert!(number("loop_us") > 0.0);
    }
}

#[test]
fn every_algorithm_of_every_collective_is_verified_over_every_transport() {
    for collective in Collective::all(0) {
        for algorithm in Algorithm::ALL.into_iter().filter(|a| a.serves(collective)) {
            for (ranks, transport) in
                [2, 3, 4, 7].into_iter().flat_map(|n| [(n, "shm"), (n, "tcp")])
            {
                let name = collective.name();
                let records = records(&format!(
                    "bench {name} --ranks {ranks} --transport {transport} --algorithm {algorithm} \
                     --sizes 0,4,12,1000,65536,1000004 -n 2 -w 1 --jsonl"
                ));
                let sizes = if collective == Collective::Barrier { 1 } else { 6 };
                assert!([sizes, 2 * sizes].contains(&records.len()), "{name}: {}", records.len());
                for record in records {
                    assert_eq!(record["ok"], true, "{record}");
                    assert_eq!(record["collective"], name);
                    assert_eq!(record["algorithm"], algorithm.name());
                    assert_eq!(record["transport"], transport);
                }
            }
        }
    }
}

#[test]
fn every_collective_is_verified_from_every_root() {
    for collective in Collective::all(0) {
        for (ranks, data_type) in [2, 3, 7].into_iter().flat_map(|n| [(n, "f32"), (n, "bf16")]) {
            let name = collective.name();
            let records = records(&format!(
                "bench {name} --ranks {ranks} -d {data_type} -r -1 --sizes 0,12,1000004 -n 1 -w 0 \
                 --jsonl"
            ));
            let is_rooted = collective.root().is_some();
            assert!(!is_rooted || records.len() >= 3 * ranks, "{name}: {}", records.len());
            assert!(records.iter().all(|record| record["ok"] == true), "{name} of {ranks}");
        }
    }
}

/// Blocks that differ in length, and messages around a ring.
#[test]
fn what_is_no_collective_of_equal_blocks_is_verified_too() {
    let names = [
        "all-gather-v",
        "reduce-scatter-v",
        "gather-v",
        "scatter-v",
        "all-to-all-v",
        "send-receive",
    ];
    for name in names {
        for (ranks, transport) in [2, 3, 7].into_iter().flat_map(|n| [(n, "shm"), (n, "tcp")]) {
            for data_type in ["f32", "bf16"] {
                let records = records(&format!(
                    "bench {name} --ranks {ranks} --transport {transport} -d {data_type} -r -1 \
                     --sizes 0,4,12,1000,65536,1000004 -n 1 -w 0 --jsonl"
                ));
                assert!(records.len() >= 6, "{name}: {}", records.len());
                for record in records {
                    assert_eq!(record["ok"], true, "{record}");
                    assert_eq!(record["collective"], name);
                }
            }
        }
    }
}

#[test]
fn calls_can_be_asynchronous() {
    for name in ["all-reduce", "broadcast", "all-to-all", "gather", "barrier", "send-receive"] {
        let records = records(&format!(
            "bench {name} --ranks 3 --sizes 12,1000004 --async 3 -n 2 -w 1 --memory registered --jsonl"
        ));
        assert!(!records.is_empty(), "{name}");
        assert!(records.iter().all(|record| record["ok"] == true), "{name}: {records:?}");
    }
    let heading = text(&ringtree("bench all-reduce --ranks 2 --sizes 8 --async 8 -n 2").stdout);
    assert!(heading.contains("8 asynchronous calls, of which a time is that of one"), "{heading}");
}

#[test]
fn each_algorithm_can_be_measured_beside_the_choice() {
    let output =
        ringtree("bench broadcast --ranks 3 --sizes 8,64K --algorithm all --in-place -n 2");
    let table = text(&output.stdout);
    let named =
        |name: &str| table.lines().filter(|line| line.ends_with(&format!(" {name}"))).count();
    for algorithm in ["tree", "double-tree", "chain"] {
        assert_eq!(named(algorithm), 2, "{table}");
    }
    let chosen = table.lines().filter(|line| line.contains("  * ")).count();
    assert_eq!(chosen, 2, "{table}");
    let verdict = table.lines().find(|line| line.starts_with("# Choices more than 10 %"));
    let lost = verdict.and_then(|line| line.split(": ").nth(1)?.strip_suffix(" of 2"));
    assert!(lost.is_some_and(|lost| ["0", "1", "2"].contains(&lost)), "{table}");
}

#[test]
fn sizes_of_blocks_are_those_of_all_ranks() {
    let output = ringtree("bench all-gather --ranks 3 --sizes 1000 --in-place -n 1");
    assert!(
        text(&output.stderr).contains("1000 bytes are not 3 equal blocks of f32: measuring 996")
    );
    let table = text(&output.stdout);
    assert!(table.contains("\n         996            83     float    none      -1"), "{table}");
    let records = records("bench all-gather --ranks 4 --sizes 1M --in-place -n 3 --jsonl");
    let number = |field: &str| records[0][field].as_f64().unwrap();
    let bandwidth = 1_048_576.0 / number("median_us") / 1000.0;
    assert!((number("algbw_GBps") / bandwidth - 1.0).abs() < 0.01);
    assert!((number("busbw_GBps") / number("algbw_GBps") - 0.75).abs() < 0.01);
}

#[test]
fn encrypted_ranks_and_ranks_of_several_sockets_are_verified() {
    for options in ["--encrypt", "--sockets 3", "--encrypt --sockets 2"] {
        let records = records(&format!(
            "bench all-reduce --ranks 3 --transport tcp {options} --sizes 0,8,1000004,8M -n 2 -w 1 \
             --jsonl"
        ));
        assert_eq!(records.len(), 8);
        assert!(records.iter().all(|record| record["ok"] == true), "{options}");
    }
    let output = ringtree("bench all-reduce --ranks 2 --transport tcp --encrypt --sizes 8 -n 1");
    let table = text(&output.stdout);
    assert!(table.contains("# transport tcp (encrypted), "), "{table}");
}

/// Over more than one round, in place and through slots: of four ranks two may share a processor.
#[test]
fn large_buffers_of_a_two_shot_are_verified() {
    for ranks in [2, 4] {
        let records = records(&format!(
            "bench all-reduce --ranks {ranks} --transport shm --algorithm two-shot \
             --sizes 8388604,8388612,25165828 -n 1 -w 0 --jsonl"
        ));
        assert_eq!(records.len(), 6);
        assert!(records.iter().all(|record| record["ok"] == true), "{ranks} ranks");
    }
}

/// Left to itself, a rank uses what is faster on the machine, and the other way would not be tested.
#[test]
fn memory_is_reached_by_attach_or_not_at_all() {
    let doctor = text(&ringtree("doctor --ranks 2 --json").stdout);
    let may_attach = doctor.contains("tried between the ranks of the host, both ways");
    for (attach, way) in [("always", "Attach"), ("never", "Nothing")] {
        for collective in Collective::all(0).into_iter().filter(|c| *c != Collective::Barrier) {
            let arguments = format!(
                "bench {} --ranks 3 --transport shm --sizes 40,200K,3M -n 3 -w 1",
                collective.name()
            );
            let mut bench = command(&arguments);
            bench.env("RINGTREE_ATTACH", attach).env("RINGTREE_LOG", "ringtree_transport=debug");
            let output = bench.output().unwrap();
            let (table, log) = (text(&output.stdout), text(&output.stderr));
            assert_eq!(output.status.code(), Some(0), "{attach} {arguments}: {table}{log}");
            assert!(table.contains("# Out of bounds values : 0 OK"), "{table}");
            let is_said = log.contains(&format!("the way to its ordinary memory: {way}"));
            assert!(is_said || way == "Attach" && !may_attach, "{log}");
        }
    }
}

#[test]
fn what_was_not_checked_is_not_called_right() {
    for record in records("bench all-reduce --ranks 2 --sizes 8 -n 1 -w 0 -c 0 --jsonl") {
        assert_eq!(record["ok"], Value::Null);
    }
}

#[test]
fn every_type_and_operation_is_verified() {
    for memory in ["plain", "registered"] {
        let records = records(&format!(
            "bench all-reduce --ranks 3 -d all -o all --memory {memory} --sizes 4,70000 -n 1 -w 0 \
             --jsonl"
        ));
        // Four floats with six operations, two fp8 with three, six integers with seven; two sizes, in
        // place and out of place.
        assert_eq!(records.len(), (4 * 6 + 2 * 3 + 6 * 7) * 2 * 2);
        let peer = if memory == "plain" { "ringtree" } else { "ringtree-reg" };
        assert!(records.iter().all(|record| record["ok"] == true && record["peer"] == peer));
    }
}

#[test]
fn buffers_may_be_written_before_each_call() {
    let output = ringtree("bench all-reduce --ranks 2 --sizes 64K -n 5 --touch --bind core");
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("plain memory, written before each call"));
}

#[test]
fn a_broadcast_can_come_from_each_rank() {
    let output = ringtree("bench broadcast --ranks 3 -r -1 --sizes 0,4,100000 -n 2 -w 0");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    let roots: Vec<&str> = table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().nth(4).unwrap())
        .collect();
    assert_eq!(roots, ["0", "0", "0", "1", "1", "1", "2", "2", "2"]);
    assert!(table.contains("Out of bounds values : 0 OK"));
}

#[test]
fn sizes_sweep_as_in_nccl_tests() {
    let bytes = |options: &str| -> Vec<u64> {
        let command = format!("bench all-reduce --ranks 2 {options} -n 1 -w 0 --in-place --jsonl");
        records(&command).iter().map(|record| record["bytes"].as_u64().unwrap()).collect()
    };
    assert_eq!(bytes("-b 8 -e 1K -f 4"), [8, 32, 128, 512]);
    assert_eq!(bytes("-b 1K -e 4K -i 1K"), [1024, 2048, 3072, 4096]);
    assert_eq!(bytes("--sizes 64K,8"), [65_536, 8]);
    assert_eq!(bytes("-e 100 -d double"), [8, 32]);
}

#[test]
fn the_document_holds_the_run_and_no_secret() {
    let path = std::env::temp_dir().join(format!("ringtree-document-{}", std::process::id()));
    let arguments = format!("bench all-reduce --ranks 2 --sizes 8 -n 2 --json {}", path.display());
    let output = command(&arguments).env("RINGTREE_SECRET", "hunter2hunter2").output().unwrap();
    let document = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(!document.contains("hunter2"));
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["rows"].as_array().unwrap().len(), 2);
    assert_eq!(document["rows"][0]["wrong"], 0);
    assert_eq!(document["settings"]["sizes_bytes"], serde_json::json!([8]));
    assert_eq!(document["job"]["ranks"], 2);
    assert_eq!(document["out_of_bounds"], 0);
}

#[test]
fn an_explanation_names_the_candidates() {
    let output = ringtree("bench all-reduce --ranks 2 --sizes 8 -n 1 -w 0 --explain");
    let table = text(&output.stdout);
    for algorithm in ["ring", "double-tree", "doubling", "one-shot", "two-shot"] {
        let line = table.lines().find(|line| line.starts_with(&format!("#   {algorithm}")));
        assert!(line.is_some(), "{table}");
    }
    assert!(table.contains("chosen"));
}

#[test]
fn rows_are_written_as_comma_separated_values() {
    let path = Scratch::new("rows.csv");
    let output = ringtree(&format!("bench gather --ranks 3 --sizes 0,12 -n 2 --csv {path}"));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let written = std::fs::read_to_string(&path.0).unwrap();
    let lines: Vec<Vec<&str>> = written.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0][..FIELDS.len()], FIELDS);
    let value = |line: usize, name: &str| {
        let column = lines[0].iter().position(|field| *field == name).unwrap();
        lines[line][column]
    };
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{written}");
    assert_eq!((value(2, "bytes"), value(2, "count"), value(2, "type")), ("12", "1", "float"));
    assert_eq!((value(1, "collective"), value(1, "root"), value(1, "redop")), ("gather", "0", ""));
    assert_eq!((value(1, "ok"), value(1, "wrong")), ("true", "0"));
}

#[test]
fn who_was_last_and_how_times_are_spread_is_said() {
    let path = Scratch::new("spread.json");
    let output = ringtree(&format!(
        "bench all-gather --ranks 3 --sizes 12 -n 20 --percentiles --stragglers --json {path}"
    ));
    let table = text(&output.stdout);
    assert_eq!(table.matches("place: p50 ").count(), 2, "{table}");
    assert_eq!(table.matches("place: last was rank ").count(), 2, "{table}");
    let document = std::fs::read_to_string(&path.0).unwrap();
    let document: Value = serde_json::from_str(&document).unwrap();
    for row in document["rows"].as_array().unwrap() {
        let distribution = &row["distribution"];
        let last: Vec<u64> = serde_json::from_value(distribution["last"].clone()).unwrap();
        assert_eq!((last.len(), last.iter().sum()), (3, 20));
        let number = |field: &str| distribution[field].as_f64().unwrap();
        assert!(number("p50_us") <= number("p99_us") && number("p99_us") <= number("max_us"));
    }
}

#[test]
fn a_run_is_compared_with_an_earlier_one() {
    let path = Scratch::new("baseline.json");
    let bench = "bench all-reduce --ranks 2 -n 5 --sizes 8,64K";
    assert!(ringtree(&format!("{bench} --json {path}")).status.success());
    // As if the earlier run had taken no time, and as if it had taken an hour.
    for (earlier_us, status) in [(0.001, 1), (3.6e9, 0)] {
        let document = std::fs::read_to_string(&path.0).unwrap();
        let mut document: Value = serde_json::from_str(&document).unwrap();
        let rows = document["rows"].as_array_mut().unwrap();
        rows.iter_mut().for_each(|row| row["median_us"] = earlier_us.into());
        std::fs::write(&path.0, document.to_string()).unwrap();
        let output = ringtree(&format!("{bench},1M --baseline {path} --max-loss 20"));
        assert_eq!(output.status.code(), Some(status), "{}", text(&output.stderr));
        let table = text(&output.stdout);
        assert!(table.contains("of 4 of 6 rows; "), "{table}");
        let rows: Vec<&str> = table.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(rows[1].ends_with('%') && rows[2].ends_with("new  new"), "{table}");
        let said = text(&output.stderr).contains("took longer than --max-loss allows");
        assert_eq!(said, status == 1);
    }
    let other = ringtree(&format!("bench broadcast --ranks 2 --sizes 8 -n 1 --baseline {path}"));
    assert!(text(&other.stdout).contains("it has none of these rows"));
    std::fs::write(&path.0, "size,time").unwrap();
    let output = ringtree(&format!("{bench} --baseline {path}"));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("no file that --json has written"), "{output:?}");
}

/// A file that is removed in the end.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        Scratch(std::env::temp_dir().join(format!("ringtree-{}-{name}", std::process::id())))
    }
}

impl std::fmt::Display for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn under_a_launcher_it_joins() {
    let program = env!("CARGO_BIN_EXE_ringtree");
    let bench = format!("{program} bench all-reduce --sizes 8 -n 2 --jsonl --in-place");
    let output = ringtree(&format!("run --ranks 3 --raw -- {bench}"));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let record: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(record["ranks"], 3);

    let output = ringtree(&format!("run --ranks 2 -- {bench} --ranks 3"));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("has started 2 ranks: leave --ranks 3 out"));
}

#[test]
fn a_mistake_is_told_in_one_line_that_says_what_to_write() {
    for (arguments, said) in [
        ("bench allreduce", "did you mean all-reduce?"),
        ("bench", "missing: <COLLECTIVE>"),
        ("bnech all-reduce", "did you mean bench?"),
        ("bench all-reduce -b 12Q", "write a number of bytes such as 8, 64K or 128M"),
        ("bench all-reduce -b 8M -e 1M", "-b 8388608 is above -e 1048576: swap them"),
        ("bench all-reduce -f 1", "-f at least 2"),
        ("bench all-reduce -d bool", "the types are float, double, half, bfloat16, f8e4m3"),
        (
            "bench all-reduce -o mean",
            "the operations are sum, product, min, max, average, premulsum",
        ),
        ("bench all-reduce -d float -o xor", "f32 has no such operation: it has sum, product"),
        ("bench all-reduce --algorithm tree", "write one of ring, double-tree"),
        ("bench all-reduce --algorithm rings", "write one of ring, double-tree"),
        ("bench broadcast --algorithm quux", "write one of double-tree, tree, chain"),
        (
            "bench all-reduce --sizes 0,3",
            "a size of 3 is less than one f32: the smallest is 4, or 0",
        ),
        ("bench all-reduce --ranks 2 -r 7", "-r 7 is not below --ranks 2"),
        ("bench all-reduce --json /no/such/folder/x", "cannot write /no/such/folder/x"),
        ("bench all-reduce --transport pigeon", "one of: auto, shm, tcp"),
        ("bench all-reduce --ranks 0", "0 is not in 1..="),
        ("bench all-reduce --time-ms -1", "--time-ms must be above 0"),
        ("bench all-reduce --baseline x --max-loss nan", "--max-loss must be a percentage"),
        ("bench all-reduce --baseline x --max-loss -1", "--max-loss must be a percentage"),
        ("bench all-reduce --baseline /no/such/x", "cannot read /no/such/x"),
        ("bench all-reduce --max-loss 3", "missing: --baseline <FILE>"),
        ("bench all-reduce -n", "--iters <COUNT> needs a value"),
        ("bench all-reduce -g 2", "give --ranks N"),
        ("bench all-reduce --inplace", "did you mean --in-place?"),
        ("bench all-reduce --sizes 8 -b 8", "leave one out"),
        ("bench broadcast --ranks 2 -r 2", "-r 2 is not below --ranks 2"),
        ("bench all-to-all --in-place", "all-to-all is not offered in place"),
        ("bench gather-v --async 2", "gather-v is not offered asynchronously"),
        ("bench all-gather-v --algorithm halving-doubling", "write one of ring, direct"),
        ("bench send-receive --algorithm ring", "leave --algorithm out"),
        ("plan all-reduce --ranks 4", "give --algorithm NAME, one of: ring, double-tree"),
        ("plan all-reduce --ranks 4 --algorithm tree", "write one of ring"),
        ("plan broadcast --ranks 4 --rank 4", "--rank 4 is not below --ranks 4"),
        ("plan broadcast --ranks 4 --root 9", "--root 9 is not below --ranks 4"),
        ("plan barrier --ranks 4 --root 1", "--root is for broadcast"),
        ("run true", "missing: --ranks <N>"),
        ("run --ranks 2", "missing: <PROGRAM>..."),
    ] {
        let output = ringtree(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        let line = text(&output.stderr);
        assert!(line.starts_with("ringtree: ") && line.lines().count() == 1, "{line}");
        assert!(line.contains(said), "{arguments}: {line}");
        assert_eq!(text(&output.stdout), "", "{arguments}");
    }
}

#[test]
fn help_and_version_are_printed() {
    let version = ringtree("--version");
    assert_eq!(text(&version.stdout), format!("ringtree {}\n", env!("CARGO_PKG_VERSION")));
    for (arguments, said) in [
        ("--help", "bench"),
        ("bench --help", "-b, --minbytes <SIZE>"),
        ("run --help", "--grace <SECONDS>"),
        ("plan --help", "--check"),
        ("tune --help", "--forget"),
    ] {
        let help = ringtree(arguments);
        assert_eq!(help.status.code(), Some(0));
        assert!(text(&help.stdout).contains(said), "{arguments}");
    }
}

#[test]
fn sizes_are_cut_to_whole_elements_and_that_is_said() {
    let output = ringtree("bench all-reduce --ranks 2 --sizes 4,7 -n 1 -w 0 --in-place --jsonl");
    assert!(output.status.success());
    let noted = "ringtree: 7 bytes are no whole number of f32: measuring 4\n";
    assert_eq!(text(&output.stderr), noted);
    assert_eq!(text(&output.stdout).matches(r#""bytes":4,"#).count(), 2);
}

#[test]
fn whoever_stops_reading_is_no_reason_to_panic() {
    let both = "bench all-reduce --ranks 2 -e 64 --time-ms 5 --explain 2>&1";
    for (script, lines) in [
        (format!("\"$0\" {both} | head -n 2"), 2),
        (format!("\"$0\" {} | head -n 2", both.replace("2>&1", "")), 2),
        (format!("\"$0\" {} | head -n 1", both.replace("2>&1", "--jsonl 2>&1")), 1),
        ("\"$0\" plan all-reduce --ranks 64 --algorithm ring | head -n 1".to_owned(), 1),
        ("\"$0\" bench all-reduce --sizes 3 2>&1 | true".to_owned(), 0),
    ] {
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_ringtree")]);
        let output = shell.output().expect("a shell");
        let (said, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(!said.contains("panicked") && !errors.contains("panicked"), "{said}{errors}");
        assert_eq!(said.lines().count(), lines, "{script}: {said}{errors}");
        assert_eq!(errors, "", "{script}");
    }
}

#[test]
fn what_cannot_be_printed_is_said() {
    for command in [
        "plan all-reduce --ranks 4 --algorithm ring",
        "plan all-reduce --ranks 4 --algorithm ring --check",
        "bench all-reduce --ranks 2 --sizes 8 -n 1",
        "run --ranks 2 -- echo something",
    ] {
        let script = format!("\"$0\" {command} >/dev/full");
        let mut shell = Command::new("sh");
        let output = shell.args(["-c", &script, env!("CARGO_BIN_EXE_ringtree")]).output().unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command}: {errors}");
        assert!(errors.contains("No space left on device"), "{command}: {errors}");
    }
}

#[test]
fn a_plan_is_printed() {
    let output = ringtree("plan all-reduce --algorithm ring --ranks 3 --rank 1");
    assert_eq!(output.status.code(), Some(0));
    let plan = text(&output.stdout);
    assert!(plan.starts_with("# ring: rank 1 of 3, 3 chunks a round\nSend 2 In[1]"), "{plan}");
    assert_eq!(plan.lines().count(), 1 + 8);
}

#[test]
fn plans_are_proved() {
    for arguments in [
        "plan all-reduce --algorithm ring --ranks 7 --check",
        "plan all-reduce --algorithm double-tree --ranks 6 --check",
        "plan broadcast --algorithm chain --ranks 5 --root 3 --check",
        "plan all-to-all --algorithm direct --ranks 5 --check",
        "plan scatter --algorithm tree --ranks 7 --root 3 --check",
        "plan barrier --algorithm dissemination --ranks 5 --check",
        "plan barrier --algorithm one-shot --ranks 5 --check",
        "plan all-reduce --algorithm star --ranks 5 --check",
    ] {
        let output = ringtree(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments}");
        let verdict = text(&output.stdout);
        assert!(verdict.starts_with("proved: ") && verdict.lines().count() == 1, "{verdict}");
    }
}

/// The records that a command prints; it must succeed.
fn records(arguments: &str) -> Vec<Value> {
    let output = ringtree(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments}: {}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ringtree(arguments: &str) -> Output {
    command(arguments).output().unwrap()
}

fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    command.args(arguments.split_whitespace()).stdin(Stdio::null());
    // What a user of this machine keeps changes no test.
    command.env("RINGTREE_TUNING", "off");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
