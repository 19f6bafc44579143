//! `ringtree doctor gpu` on the stand-in for the CUDA driver, and without any driver.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use ringtree_tests::gpu::stand_in;
use serde_json::Value;

/// Where there is no library.
const ABSENT: &str = "/nonexistent/libcuda.so.1";

#[test]
fn gpus_are_described_and_tried() {
    let (report, status) = doctor("doctor gpu --json", &[("NO_DMA_BUF", "0")]);
    let driver = seen(&report, "gpu-driver");
    assert_eq!(driver, format!("{}, of CUDA 12.8", stand_in().display()));
    let devices = named(&report, "gpu-devices");
    assert_eq!(devices.len(), 2, "{report}");
    for (ordinal, device) in devices.iter().enumerate() {
        let seen = device["seen"].as_str().unwrap();
        assert!(seen.starts_with(&format!("GPU {ordinal}: Stand-in GPU, bus id 0000:")), "{seen}");
        assert!(seen.ends_with(", 1 GiB, compute capability 8.0"), "{seen}");
        assert_eq!(device["ranks"], serde_json::json!([0]), "one rank of a host looks");
    }
    assert_eq!(seen(&report, "gpu-host-memory"), "allocated and locked for GPU 0-1");
    assert_eq!(seen(&report, "gpu-all-reduce"), "two ranks have added up 50000 numbers on GPU 0-1");
    assert_eq!(seen(&report, "gpu-dma-buf"), "memory of GPU 0-1 can be given to RDMA devices");
    assert_eq!(seen(&report, "gpu-peers"), "each of 2 GPUs reaches all others");
    let processes =
        "other processes use memory: that of GPU 0-1 by handle, that of GPU 0-1 by file descriptor";
    assert_eq!(seen(&report, "gpu-processes"), processes);
    let mut others = findings(&report).iter().filter(|one| one["check"] != "memlock");
    assert!(others.all(|one| one["level"] == "ok"), "{report}");
    assert_eq!(status, Some(0));
    let is_asked = |one: &Value| {
        let check = one["check"].as_str().unwrap();
        check.starts_with("gpu-") || check == "memlock"
    };
    assert!(findings(&report).iter().all(is_asked), "only GPUs are asked about: {report}");
}

#[test]
fn without_a_driver_nothing_is_wrong_unless_one_asks_about_it() {
    let environment = [("RINGTREE_CUDA_LIBRARY", ABSENT)];
    let (report, status) = parsed(&ringtree("doctor --json", &environment));
    let driver = finding(&report, "gpu-driver");
    assert_eq!((&driver["level"], status), (&"warning".into(), Some(0)), "it was named: {report}");
    let (report, status) = parsed(&ringtree("doctor gpu --json", &environment));
    let driver = finding(&report, "gpu-driver");
    assert_eq!((&driver["level"], status), (&"failure".into(), Some(1)));
    let seen = driver["seen"].as_str().unwrap();
    assert!(seen.starts_with(&format!("no CUDA driver: {ABSENT}: ")), "{seen}");
    let remedy = driver["remedy"].as_str().unwrap();
    assert!(remedy.starts_with("unset RINGTREE_CUDA_LIBRARY"), "{remedy}");
    assert_eq!(driver["ranks"], serde_json::json!([0, 1]), "told once");
}

#[test]
fn a_driver_without_gpus_is_told_from_none() {
    let (report, status) = doctor("doctor gpu --json", &[("DEVICES", "0")]);
    assert_eq!(finding(&report, "gpu-driver")["level"], "ok");
    let devices = finding(&report, "gpu-devices");
    assert_eq!(devices["seen"], "the driver shows none to this process");
    assert!(devices["remedy"].as_str().unwrap().starts_with("nvidia-smi -L"), "{devices}");
    assert_eq!((&devices["level"], status), (&"failure".into(), Some(1)));
}

#[test]
fn pairs_that_do_not_reach_each_other_are_named() {
    let settings = [("DEVICES", "3"), ("NO_PEER", "0-2")];
    let (report, status) = doctor("doctor gpu --json", &settings);
    let peers = finding(&report, "gpu-peers");
    assert_eq!(peers["seen"], "GPU 0 reaches 1; GPU 1 reaches 0, 2; GPU 2 reaches 1");
    assert_eq!((&peers["level"], status), (&"note".into(), Some(0)));
    let (report, _) = doctor("doctor gpu --json", &[("DEVICES", "1")]);
    assert_eq!(seen(&report, "gpu-peers"), "there is one GPU");
}

#[test]
fn the_ways_to_other_processes_are_named() {
    for (settings, seen) in [
        (&[("NO_IPC", "open")][..], Some("that of GPU 0-1 by file descriptor")),
        (&[("NO_IPC", "1")], Some("that of GPU 0-1 by file descriptor")),
        (&[("NO_VMM", "1")], Some("that of GPU 0-1 by handle")),
        (&[("NO_IPC", "open"), ("NO_VMM", "1")], None),
    ] {
        let (report, status) = doctor("doctor gpu --json", settings);
        let processes = finding(&report, "gpu-processes");
        let (level, seen) = match seen {
            Some(ways) => ("ok", format!("other processes use memory: {ways}")),
            None => {
                ("note", "no process uses another's memory of GPUs, which passes the host".into())
            }
        };
        assert_eq!((&processes["level"], &processes["seen"]), (&level.into(), &seen.into()));
        assert_eq!(status, Some(0));
    }
}

#[test]
fn a_pair_that_loses_bytes_is_a_failure_in_any_case() {
    for arguments in ["doctor gpu --json", "doctor --json"] {
        let (report, status) = doctor(arguments, &[("DEVICES", "3"), ("LOST_PEER", "1-2")]);
        let peers = named(&report, "gpu-peers");
        let failures: Vec<&&Value> = peers.iter().filter(|one| one["level"] == "failure").collect();
        assert_eq!(failures.len(), 2, "{report}");
        let seen = &failures[0]["seen"];
        assert_eq!(seen, "bytes that are copied from GPU 1 to GPU 2 do not arrive");
        assert!(failures[0]["remedy"].as_str().unwrap().contains("iommu=pt"), "{report}");
        assert_eq!(peers[2]["seen"], "GPU 0 reaches 1-2; GPU 1 reaches 0; GPU 2 reaches 0");
        assert_eq!(status, Some(1));
    }
}

#[test]
fn calls_that_fail_are_told_by_name() {
    let errors = [
        (
            "cuDevicePrimaryCtxRetain:1:101",
            "gpu-devices",
            "cuDevicePrimaryCtxRetain failed on GPU 0: ",
        ),
        (
            "cuMemHostAlloc:1:2",
            "gpu-host-memory",
            "GPU 0 has no room for 2097152 more bytes of pinned ",
        ),
        ("cuMemHostRegister_v2:1:801", "gpu-host-memory", "cuMemHostRegister failed on GPU 0: "),
        (
            "cuModuleLoadData:1:222",
            "gpu-all-reduce",
            "none on GPU 0: the CUDA driver is of version 12.8: ",
        ),
        (
            "cuCtxEnablePeerAccess:1:711",
            "gpu-peers",
            "GPU 0 to GPU 1: cuCtxEnablePeerAccess failed ",
        ),
    ];
    for (failure, check, start) in errors {
        let (report, status) = doctor("doctor gpu --json", &[("FAIL", failure)]);
        let failures = findings(&report).iter().filter(|one| one["level"] == "failure");
        let failures: Vec<&Value> = failures.collect();
        assert_eq!(failures.len(), 1, "{failure}: {report:#}");
        assert_eq!(failures[0]["check"], check, "{failure}: {report:#}");
        let seen = failures[0]["seen"].as_str().unwrap();
        assert!(seen.starts_with(start), "{failure}: {seen}");
        assert!(failures[0]["remedy"].is_string(), "{failure}: {report:#}");
        assert_eq!(status, Some(1), "{failure}");
    }
}

#[test]
fn what_lacks_is_a_note_and_what_is_old_a_failure() {
    let (report, status) = doctor("doctor gpu --json", &[("NO_DMA_BUF", "1")]);
    let dma_buf = finding(&report, "gpu-dma-buf");
    assert_eq!((&dma_buf["level"], status), (&"note".into(), Some(0)));
    assert_eq!(dma_buf["seen"], "GPU 0 has none; GPU 1 has none");
    let (report, status) = doctor("doctor gpu --json", &[("NO_READ_ONLY_REGISTRATION", "1")]);
    let [locked, read_only] = named(&report, "gpu-host-memory")[..] else { panic!("{report}") };
    assert_eq!((&locked["level"], &read_only["level"]), (&"ok".into(), &"note".into()));
    assert!(read_only["seen"].as_str().unwrap().contains("copied once more"), "{read_only}");
    assert_eq!(status, Some(0));
    let (report, status) = doctor("doctor gpu --json", &[("DRIVER_VERSION", "11040")]);
    let driver = finding(&report, "gpu-driver");
    let seen = driver["seen"].as_str().unwrap();
    assert!(seen.contains("version 11.4"), "{seen}");
    assert_eq!((&driver["level"], status), (&"failure".into(), Some(1)));
}

/// What a command reports on the stand-in with those settings, and its status.
fn doctor(arguments: &str, settings: &[(&str, &str)]) -> (Value, Option<i32>) {
    let library = stand_in();
    let settings: Vec<(String, &str)> =
        settings.iter().map(|(name, value)| (format!("RINGTREE_STANDIN_{name}"), *value)).collect();
    let mut environment = vec![("RINGTREE_CUDA_LIBRARY", library.to_str().unwrap())];
    environment.extend(settings.iter().map(|(name, value)| (name.as_str(), *value)));
    parsed(&ringtree(arguments, &environment))
}

fn parsed(output: &Output) -> (Value, Option<i32>) {
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {output:#?}"));
    (report, output.status.code())
}

fn ringtree(arguments: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_ringtree")));
    command.args(arguments.split_whitespace()).stdin(Stdio::null());
    command.env_remove("CUDA_VISIBLE_DEVICES").envs(environment.iter().copied());
    command.output().unwrap()
}

fn findings(report: &Value) -> &Vec<Value> {
    report["findings"].as_array().unwrap()
}

/// What a check has found.
fn named<'a>(report: &'a Value, check: &str) -> Vec<&'a Value> {
    findings(report).iter().filter(|finding| finding["check"] == check).collect()
}

/// The only thing that a check has found.
fn finding<'a>(report: &'a Value, check: &str) -> &'a Value {
    match named(report, check)[..] {
        [finding] => finding,
        _ => panic!("not one finding of {check} in {report:#}"),
    }
}

fn seen<'a>(report: &'a Value, check: &str) -> &'a str {
    finding(report, check)["seen"].as_str().unwrap()
}
