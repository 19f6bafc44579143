//! `ringtree bench --memory device` on the stand-in for the CUDA driver, and without any driver.

use std::process::{Command, Output, Stdio};

use ringtree_tests::gpu::stand_in;
use ringtree_tests::verbs;
use serde_json::Value;

/// What is offered on GPUs.
const CALLS: [&str; 14] = [
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "all-to-all",
    "send-receive",
    "all-gather-v",
    "reduce-scatter-v",
    "gather-v",
    "scatter-v",
    "all-to-all-v",
];

#[test]
fn the_table_names_the_gpu_and_says_what_gpus_did() {
    let output = bench("all-reduce --ranks 2 --sizes 4,4096,1000004 -n 3 -w 1", &[]);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:#?}");
    assert_eq!(text(&output.stderr), "");
    let gpu = format!(
        "# rank 0 uses GPU 0: Stand-in GPU, bus id 0000:10:00.0, driver of CUDA 12.8 ({}); small calls are one kernel of \
         each GPU",
        stand_in().display()
    );
    assert!(table.lines().any(|line| line == gpu), "{table}");
    assert!(table.contains(", GPU memory\n"), "{table}");
    let rows = table.lines().filter(|line| !line.starts_with('#'));
    let rows: Vec<Vec<&str>> = rows.map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3, "{table}");
    for (row, bytes) in rows.iter().zip(["4", "4096", "1000004"]) {
        assert_eq!((row.len(), row[0]), (13, bytes), "{table}");
        assert_eq!((row[8], row[12]), ("0", "0"), "nothing is wrong");
    }
    assert!(table.contains("\n# Out of bounds values : 0 OK\n"), "{table}");
    let numbers = |start: &str| -> Vec<u64> {
        let line = table.lines().find_map(|line| line.strip_prefix(start));
        let words = line.unwrap_or_else(|| panic!("{table}")).split_whitespace();
        words.filter_map(|word| word.parse().ok()).collect()
    };
    let work = numbers("# GPUs, all ranks and calls: ");
    let [kernels, copies, from_peers] = work[..] else { panic!("{table}") };
    let [to_hosts, from_hosts, _] = numbers("# GPUs: ")[..] else { panic!("{table}") };
    assert!(kernels > 0 && copies > 0, "{table}");
    // Six calls at least, in which each of two ranks gets as much as it has, one way or the other.
    assert!(from_peers + from_hosts.min(to_hosts) >= 6 * 2 * 1_000_004, "{table}");
}

#[test]
fn every_collective_is_verified_among_ranks_with_gpus() {
    for call in CALLS {
        for (ranks, transport) in [(2, "shm"), (2, "tcp"), (3, "shm"), (3, "tcp")] {
            for data_type in ["f32", "bf16"] {
                let options = format!(
                    "{call} --ranks {ranks} --transport {transport} -d {data_type} -r -1 \
                     --sizes 0,12,100K -n 1 -w 0 --jsonl"
                );
                let output = bench(&options, &[]);
                assert_eq!(output.status.code(), Some(0), "{options}: {output:#?}");
                let lines = text(&output.stdout);
                assert!(lines.lines().count() >= 3, "{options}: {lines}");
                for line in lines.lines() {
                    let record: Value = serde_json::from_str(line).unwrap();
                    assert_eq!(record["ok"], true, "{line}");
                    assert_eq!(
                        (&record["collective"], &record["transport"]),
                        (&call.into(), &transport.into())
                    );
                    assert_eq!(record["peer"], "ringtree-gpu");
                }
            }
        }
    }
}

#[test]
fn a_timeline_has_what_every_rank_did() {
    for transport in ["shm", "tcp"] {
        let name = format!("ringtree-timeline-{}-{transport}.json", std::process::id());
        let path = std::env::temp_dir().join(name);
        let options = format!(
            "all-reduce --ranks 3 --transport {transport} --sizes 300000 -n 1 -w 0 --timeline {}",
            path.display()
        );
        let output = bench(&options, &[]);
        assert_eq!(output.status.code(), Some(0), "{output:#?}");
        let table = text(&output.stdout);
        for placement in ["out of place", "in place"] {
            let start = format!("\n# overlap, all-reduce of 300000 bytes {placement}: ");
            assert!(table.contains(&start), "{table}");
        }
        let trace: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        for rank in 0..3 {
            let of_rank = |start: &str| -> Vec<&Value> {
                let is = |e: &&Value| {
                    e["ph"] == "X"
                        && e["pid"] == rank
                        && e["name"].as_str().is_some_and(|name| name.starts_with(start))
                };
                events.iter().filter(is).collect()
            };
            assert_eq!(of_rank("all-reduce of 300000 bytes").len(), 2, "a call for each placement");
            assert!(!of_rank("kernel").is_empty() && !of_rank("batch").is_empty(), "{events:#?}");
            let bytes = |start: &str| -> u64 {
                of_rank(start).iter().map(|e| e["args"]["bytes"].as_u64().unwrap()).sum()
            };
            // What one has sent has come elsewhere; each gets two thirds of the sums at least, twice.
            assert!(bytes("from rank ") >= 2 * 200_000, "{events:#?}");
            assert!(bytes("to rank ") >= 2 * 200_000, "{events:#?}");
            // What is on the wire is over when it has come, and not before it has left.
            let is_ordered = |e: &&Value| e["dur"].as_f64().unwrap() >= 0.0;
            assert!(of_rank("").iter().all(is_ordered), "{events:#?}");
        }
    }
}

/// Two processes, by the stand-in for libibverbs.
#[test]
fn over_rdma_memory_of_gpus_is_sent_and_received_as_it_is() {
    let library = verbs::stand_in().display().to_string();
    let driver = stand_in().display().to_string();
    let line = format!(
        "bench all-reduce --memory device --cuda-library {driver} --ranks 2 --transport rdma --sizes 20000,1000004 -n 3 -w 1"
    );
    let library = ("RINGTREE_RDMA_LIBRARY", library.as_str());
    let output = ringtree(&line, &[library]);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:#?}");
    assert_eq!(text(&output.stderr), "");
    assert!(table.contains("\n# Out of bounds values : 0 OK\n"), "{table}");
    // Nothing was copied to hosts to be sent.
    assert!(table.contains("\n# GPUs: 0 bytes to the hosts, "), "{table}");
    assert!(table.contains("\n# RDMA: senders copied 0.0 % of the messages first; "), "{table}");
    let straight =
        table.lines().find(|line| line.contains(" bytes sent by RDMA straight from their memory"));
    let sent = straight.and_then(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    // Six calls at least, in which each of two ranks gives all that it has once.
    assert!(sent.is_some_and(|bytes| bytes >= 6 * 2 * 1_000_004), "{table}");

    let refusing = ("RINGTREE_VERBS_STANDIN_NO_DMA_BUF", "1");
    let output = ringtree(&line, &[library, refusing]);
    let (table, log) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{output:#?}");
    assert!(table.contains("\n# Out of bounds values : 0 OK\n"), "{table}");
    assert!(!table.contains("straight from their memory"), "{table}");
    let refusals = log.lines().filter(|line| line.contains("of a GPU goes through slots"));
    assert_eq!((refusals.count(), log.lines().count()), (2, 2), "one line of each rank: {log}");
}

#[test]
fn more_ranks_than_gpus_share_them() {
    let output = bench("all-reduce --gpus 1 --ranks 3 --sizes 4,40000 -n 1", &[("DEVICES", "1")]);
    assert_eq!(output.status.code(), Some(0), "{output:#?}");
    assert!(text(&output.stdout).contains("# Out of bounds values : 0 OK"), "{output:#?}");
}

#[test]
fn what_ranks_cannot_have_is_told_once() {
    let absent = "--cuda-library /nonexistent/libcuda.so.1";
    let all = [
        (
            format!("--ranks 3 --sizes 4 {absent}"),
            "",
            "no CUDA driver: /nonexistent/libcuda.so.1: ",
        ),
        ("--ranks 2 --sizes 4".into(), "DEVICES=0", "there is no GPU 0: the driver finds none; "),
        (
            "--gpus 3 --sizes 4".into(),
            "DEVICES=2",
            "there is no GPU 2: there are 2, GPU 0 to GPU 1",
        ),
        (
            "--ranks 2 --sizes 4M".into(),
            "MEMORY_BYTES=1000000",
            "GPU 0 has no room for 4194560 more bytes",
        ),
    ];
    for (options, setting, start) in all {
        let settings: Vec<(&str, &str)> = setting.split_once('=').into_iter().collect();
        let output = bench(&format!("all-reduce {options}"), &settings);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{options}: {output:#?}");
        // The launcher's line is the other one; ranks other than the first are named in front.
        let is_of_launcher = |line: &&str| line.contains(" failed first: exit status 1");
        let (of_launcher, of_ranks): (Vec<&str>, Vec<&str>) =
            error.lines().partition(is_of_launcher);
        let said: Vec<&str> =
            of_ranks.iter().filter_map(|line| line.split("ringtree: ").nth(1)).collect();
        assert!(matches!(said[..], [said] if said.starts_with(start)), "{options}: {error}");
        assert_eq!((of_launcher.len(), of_ranks.len()), (1, 1), "{options}: {error}");
    }
}

#[test]
fn what_is_not_offered_on_gpus_is_refused() {
    for (arguments, refusal) in [
        (
            "barrier --memory device",
            "barrier is not offered on memory of a GPU: leave --memory device out",
        ),
        (
            "all-reduce --memory device --async 2",
            "--async is not offered on memory of a GPU: leave --memory device out",
        ),
        ("all-reduce --gpus 2", "--gpus is for --memory device"),
        ("all-reduce --cuda-library x", "--cuda-library is for --memory device"),
        ("all-reduce --timeline x", "--timeline is for --memory device"),
    ] {
        let output = ringtree(&format!("bench {arguments} --sizes 4"), &[]);
        assert_eq!(text(&output.stderr), format!("ringtree: {refusal}\n"), "{arguments}");
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        assert_eq!(text(&output.stdout), "", "{arguments}");
    }
}

#[test]
fn a_setting_that_is_wrong_is_told_once() {
    let output = ringtree("bench all-reduce --ranks 2 --sizes 4", &[("RINGTREE_TIMEOUT", "x")]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("ringtree: RINGTREE_TIMEOUT"), "{error}");
}

/// Runs `bench` on the stand-in, unless the options name another driver, with settings of the stand-in.
fn bench(options: &str, settings: &[(&str, &str)]) -> Output {
    let library = match options.contains("--cuda-library") {
        true => String::new(),
        false => format!("--cuda-library {}", stand_in().display()),
    };
    let settings: Vec<(String, &str)> =
        settings.iter().map(|(name, value)| (format!("RINGTREE_STANDIN_{name}"), *value)).collect();
    let settings: Vec<(&str, &str)> =
        settings.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    ringtree(&format!("bench {options} --memory device {library}"), &settings)
}

fn ringtree(arguments: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    command.args(arguments.split_whitespace()).stdin(Stdio::null());
    command.envs(environment.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
