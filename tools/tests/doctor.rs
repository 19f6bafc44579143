//! `ringtree doctor`, by real processes: on this machine as it is, and with something taken away.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use ringtree_tests::namespaces::TwoHosts;
use ringtree_tests::program::{Ended, Program};
use serde_json::Value;

/// What is looked at wherever several ranks of one host meet.
const CHECKS: [&str; 22] = [
    "affinity",
    "clock-difference",
    "clock-monotonic",
    "clock-source",
    "congestion-control",
    "cpu-quota",
    "descriptors",
    "dev-shm",
    "gpu-driver",
    "interface",
    "interfaces",
    "large-pages",
    "memlock",
    "memory-attach",
    "memory-files",
    "ports",
    "processors",
    "rdma",
    "reachability",
    "shared-large-pages",
    "shared-memory",
    "socket-buffers",
];

#[test]
fn this_machine_is_examined_and_nothing_fails() {
    let (report, status) = doctor("doctor --json", &[]);
    let checks = findings(&report).iter().map(|finding| finding["check"].as_str().unwrap());
    // What there is besides where there are devices.
    let is_common = |check: &&str| CHECKS.contains(check) || !check.contains('-');
    let is_of_devices = |check: &&str| check.starts_with("rdma-") || check.starts_with("gpu-");
    let checks: BTreeSet<&str> =
        checks.filter(|check| is_common(check) || !is_of_devices(check)).collect();
    assert_eq!(checks, BTreeSet::from(CHECKS), "{report}");
    for finding in findings(&report) {
        assert_ne!(finding["level"], "failure", "{finding}");
        assert!(finding["why"].as_str().is_some_and(|why| why.len() > 20), "{finding}");
    }
    assert_eq!(status, Some(0));
    assert_eq!(report["ranks"], 2);
    assert_eq!(finding(&report, "memory-files")["level"], "ok");
    assert_eq!(finding(&report, "reachability")["seen"], "1 pair: 1 over shm");
}

#[test]
fn patterns_are_written_over_every_path() {
    for (arguments, directions) in
        [("doctor --probe --json", 2), ("run --ranks 3 --raw -- ringtree doctor --probe --json", 6)]
    {
        let (report, status) = doctor(arguments, &[]);
        let probes = named(&report, "probe").into_iter();
        let probes: Vec<&str> = probes.filter_map(|probe| probe["seen"].as_str()).collect();
        let arrived =
            |path: &str| format!("{path}: 6 patterns arrived in {directions} directions, as ");
        for (path, way) in [
            (
                "shared memory",
                "small messages, slots, memory read in place, memory written in place",
            ),
            ("tcp", "small messages, large messages"),
        ] {
            let is_told = probes.iter().any(|seen| seen.starts_with(&(arrived(path) + way)));
            assert!(is_told, "{path} is missing: {probes:?}");
        }
        assert!(findings(&report).iter().all(|finding| finding["level"] != "failure"), "{report}");
        assert_eq!(status, Some(0));
    }
}

#[test]
fn memory_that_cannot_be_locked_is_a_warning() {
    let (report, status) = limited("ulimit -l 0", "doctor --json");
    let memlock = finding(&report, "memlock");
    assert_eq!(
        (&memlock["level"], &memlock["seen"]),
        (&"warning".into(), &"at most 0 bytes".into())
    );
    assert_eq!(memlock["ranks"], serde_json::json!([0, 1]));
    let remedy = memlock["remedy"].as_str().unwrap();
    assert!(remedy.contains("memlock unlimited"), "{remedy}");
    assert_eq!((status, &report["level"]), (Some(0), &"warning".into()));
}

#[test]
fn a_host_without_rdma_is_no_fault_unless_one_asks_about_it() {
    if has_rdma_devices() {
        return;
    }
    let (report, status) = doctor("doctor --json", &[]);
    let rdma = finding(&report, "rdma");
    assert_eq!((&rdma["level"], &rdma["seen"]), (&"ok".into(), &"none on this host".into()));
    assert_eq!(status, Some(0));
    let output = ringtree("doctor rdma", &[]);
    let text = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("failure ")).count(), 1, "{text}");
    let mut remedies = text.lines().skip_while(|line| !line.starts_with("failure "));
    let remedy = remedies.find(|line| line.contains(" try: ")).unwrap();
    assert!(remedy.contains("rdma link add rxe0 type rxe netdev "), "{text}");
    assert!(!text.contains("large-pages"), "only RDMA is asked about: {text}");
}

/// Ranks of one host, which share memory else, are tried over a network.
#[test]
fn asked_about_rdma_ranks_try_links_of_a_network() {
    if has_rdma_devices() {
        return;
    }
    let (report, status) = doctor("run --ranks 3 --raw -- ringtree doctor rdma --json", &[]);
    let seen = &finding(&report, "reachability")["seen"];
    assert_eq!(seen, "3 pairs: 3 over tcp");
    assert_eq!(finding(&report, "rdma-devices")["ranks"], serde_json::json!([0, 1, 2]));
    assert_eq!((status, &report["level"]), (Some(1), &"failure".into()));
    assert!(findings(&report).iter().all(|finding| finding["check"] != "interfaces"), "{report}");
}

#[test]
fn settings_that_forbid_rdma_are_said_with_what_allows_it() {
    for (name, value) in [
        ("RINGTREE_RDMA_DEVICES", "none"),
        ("RINGTREE_ENCRYPT", "1"),
        ("RINGTREE_TRANSPORT", "shm"),
    ] {
        let (report, status) = doctor("doctor --json", &[(name, value)]);
        let rdma = finding(&report, "rdma");
        let seen = rdma["seen"].as_str().unwrap();
        assert!(seen.starts_with(&format!("off by {name}={value}")), "{seen}");
        assert_eq!((&rdma["level"], status), (&"ok".into(), Some(0)));
        let (report, status) = doctor("doctor rdma --json", &[(name, value)]);
        let rdma = finding(&report, "rdma");
        assert!(rdma["remedy"].as_str().unwrap().starts_with(&format!("unset {name}")), "{rdma}");
        assert_eq!((&rdma["level"], status), (&"failure".into(), Some(1)));
    }
}

/// The kernel lets no process attach to one of another user.
#[test]
fn ranks_that_may_not_attach_are_a_warning() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "this test becomes other users");
        return;
    }
    // Where it lies, others may not look.
    let program = std::env::temp_dir().join(format!("ringtree-doctor-{}", std::process::id()));
    fs::copy(env!("CARGO_BIN_EXE_ringtree"), &program).unwrap();
    let script = "exec setpriv --reuid=$((2000 + RINGTREE_RANK)) --clear-groups $0 doctor --json";
    let mut run = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    run.args(["run", "--ranks", "2", "--raw", "--", "sh", "-c", script]).arg(&program);
    let output = run.stdin(Stdio::null()).output().unwrap();
    fs::remove_file(&program).unwrap();
    let (report, status) = parsed(&output);
    let attach = finding(&report, "memory-attach");
    assert_eq!(attach["level"], "warning");
    assert!(attach["seen"].as_str().unwrap().contains("different users"), "{attach}");
    assert_eq!(report["pairs"][0]["reaches_memory"], false);
    assert_eq!((status, &report["pairs"][0]["transport"]), (Some(0), &"shm".into()));
}

#[test]
fn too_few_descriptors_are_a_warning() {
    let (report, status) = limited("ulimit -Sn 80", "doctor --ranks 4 --json");
    let descriptors = finding(&report, "descriptors");
    assert_eq!(descriptors["level"], "warning");
    assert_eq!(descriptors["remedy"], "ulimit -n 85");
    assert_eq!(status, Some(0));
}

#[test]
fn four_ranks_on_one_processor_are_a_warning() {
    let (report, status) = on_one_processor(|| doctor("doctor --ranks 4 --json", &[]));
    let processors = finding(&report, "processors");
    assert_eq!(processors["level"], "warning");
    let seen = processors["seen"].as_str().unwrap();
    assert!(seen.starts_with("4 ranks (0-3) share 1 processor of "), "{seen}");
    assert!(processors["remedy"].as_str().unwrap().contains("ringtree run"), "{processors}");
    assert_eq!((status, &report["level"]), (Some(0), &"warning".into()));
}

#[test]
fn under_the_launcher_all_pairs_are_timed() {
    for transport in ["shm", "tcp"] {
        let run = "run --ranks 3 --raw -- ringtree doctor --json";
        let (report, status) = doctor(run, &[("RINGTREE_TRANSPORT", transport)]);
        assert_eq!(status, Some(0), "{report}");
        let pairs = report["pairs"].as_array().unwrap();
        let ranks: Vec<&Value> = pairs.iter().map(|pair| &pair["ranks"]).collect();
        assert_eq!(ranks, [&serde_json::json!([0, 1]), &[0, 2].into(), &[1, 2].into()]);
        for pair in pairs {
            assert_eq!(pair["transport"], transport, "{pair}");
            assert!(pair["one_way_us"].as_f64().unwrap() > 0.0, "{pair}");
            assert!(pair["clock_ahead_us"].as_f64().unwrap().abs() < 1e6, "{pair}");
            assert_eq!(pair["error"], Value::Null);
        }
        let seen = format!("3 pairs: 3 over {transport}");
        assert_eq!(finding(&report, "reachability")["seen"], seen.as_str());
    }
}

#[test]
fn people_read_a_table_of_all_pairs() {
    let output = ringtree("run --ranks 3 --raw -- ringtree doctor", &[]);
    let text = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.starts_with("# ringtree "), "{text}");
    let rows = text.lines().skip_while(|line| !line.starts_with("# rank")).skip(1).take(3);
    for (rank, row) in rows.enumerate() {
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words[0], rank.to_string(), "{text}");
        assert_eq!(words.iter().filter(|word| **word == "shm").count(), 2, "{text}");
        assert_eq!(words.iter().filter(|word| **word == "-").count(), 1, "{text}");
    }
    let last = text.lines().last().unwrap_or_default();
    assert!(last.starts_with("# 0 failures, "), "{text}");
}

#[test]
fn an_interface_that_is_not_there_is_a_failure() {
    let (report, status) = doctor("doctor --json", &[("RINGTREE_INTERFACE", "nothere0")]);
    let interface = finding(&report, "interface");
    assert_eq!(interface["level"], "failure");
    let seen = interface["seen"].as_str().unwrap();
    assert!(seen.starts_with("no interface of this host is \"nothere0\""), "{seen}");
    let remedy = interface["remedy"].as_str().unwrap();
    assert!(remedy.starts_with("export RINGTREE_INTERFACE="), "{remedy}");
    assert_eq!(finding(&report, "reachability")["level"], "failure");
    assert_eq!(status, Some(1));
}

#[test]
fn ports_that_are_too_few_are_a_failure() {
    let environment = [("RINGTREE_PORTS", "41999"), ("RINGTREE_TRANSPORT", "tcp")];
    let (report, status) = doctor("doctor --json", &environment);
    let refused: Vec<&Value> = named(&report, "ports")
        .into_iter()
        .filter(|finding| finding["level"] == "failure")
        .collect();
    assert_eq!(refused.len(), 1, "one of the two gets the port: {report}");
    let seen = refused[0]["seen"].as_str().unwrap();
    assert!(seen.contains("RINGTREE_PORTS=41999"), "{seen}");
    assert_eq!(status, Some(1));
}

#[test]
fn a_rank_that_meets_nobody_still_says_what_it_sees() {
    let alone = [
        ("RINGTREE_RANK", "1"),
        ("RINGTREE_RANKS", "2"),
        ("RINGTREE_RENDEZVOUS", "127.0.0.1:9"),
        ("RINGTREE_INSECURE", "1"),
        ("RINGTREE_TIMEOUT", "0.2"),
    ];
    let (report, status) = doctor("doctor --json", &alone);
    assert_eq!(finding(&report, "rendezvous")["level"], "failure");
    assert_eq!(finding(&report, "memory-files")["level"], "ok");
    assert_eq!(status, Some(1));
    let (report, status) = doctor("doctor --json", &alone[..1]);
    let settings = finding(&report, "settings");
    assert!(settings["seen"].as_str().unwrap().contains("RINGTREE_RANKS"), "{settings}");
    assert_eq!(settings["remedy"], "ringtree config");
    assert_eq!(status, Some(1));
}

#[test]
fn without_a_launcher_rank_0_serves() {
    let place = std::env::temp_dir().join(format!("ringtree-doctor-meet-{}", std::process::id()));
    let place = format!("file:{}", place.display());
    let start = |rank: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
        command.args(["doctor", "--json"]).env("RINGTREE_RENDEZVOUS", &place);
        command.env("RINGTREE_RANK", rank).env("RINGTREE_RANKS", "2");
        command.env("RINGTREE_INSECURE", "1");
        Program::start(command)
    };
    let [second, first] = ["1", "0"].map(start).map(Program::await_end);
    assert_eq!((first.status.code(), second.status.code()), (Some(0), Some(0)), "{first:#?}");
    assert_eq!(second.lines, [""; 0], "rank 0 speaks for both");
    let report: Value = serde_json::from_str(&first.lines[0]).unwrap();
    assert_eq!(finding(&report, "reachability")["seen"], "1 pair: 1 over shm");
}

#[test]
fn a_wrong_command_line_has_a_status_of_its_own() {
    for arguments in ["doctor --ranks 0", "doctor --jsno", "doctor rmda"] {
        assert_eq!(ringtree(arguments, &[]).status.code(), Some(2), "{arguments}");
    }
}

/// The first host's interface leads nowhere: the second one has switched its end off.
#[test]
fn hosts_without_a_way_between_them_are_named() {
    let Some(bed) = TwoHosts::new(2) else { return };
    bed.hosts[1].cut(1);
    let (report, [first, _]) = on_two_hosts(&bed, ["wire1", "wire0"]);
    let interface = named(&report, "interface");
    let seen = interface[0]["seen"].as_str().unwrap();
    assert!(seen.contains("wire1 has no carrier"), "{seen}");
    assert_eq!(interface[0]["ranks"], serde_json::json!([0]));
    let reach = finding(&report, "reachability");
    assert_eq!(reach["level"], "failure");
    assert!(reach["seen"].as_str().unwrap().starts_with("rank 0 and rank 1: "), "{reach}");
    assert!(reach["remedy"].as_str().unwrap().starts_with("ip route get 10.77.0.2 "), "{reach}");
    assert_eq!(report["pairs"][0]["transport"], Value::Null);
    assert_eq!(first.status.code(), Some(1), "{first:#?}");
}

#[test]
fn an_interface_that_is_down_is_switched_on_by_the_remedy() {
    let Some(bed) = TwoHosts::new(2) else { return };
    bed.hosts[1].cut(1);
    let (report, [first, _]) = on_two_hosts(&bed, ["wire0", "wire1"]);
    let failed: Vec<&Value> = named(&report, "interface")
        .into_iter()
        .filter(|finding| finding["level"] == "failure")
        .collect();
    assert_eq!(failed.len(), 1, "{report}");
    assert_eq!(failed[0]["seen"], "wire1 is down (RINGTREE_INTERFACE=wire1)");
    assert_eq!(failed[0]["remedy"], "sudo ip link set wire1 up");
    assert_eq!(failed[0]["ranks"], serde_json::json!([1]));
    assert_eq!(first.status.code(), Some(1));
    bed.hosts[1].mend(1);
    let (report, [first, second]) = on_two_hosts(&bed, ["wire0", "wire1"]);
    assert_eq!(report["pairs"][0]["transport"], "tcp", "{report}");
    assert_eq!((first.status.code(), second.status.code()), (Some(0), Some(0)));
}

/// A rank on each of two hosts, with the interfaces that they are told to use: what rank 0 reports,
/// and how both launchers ended.
fn on_two_hosts(bed: &TwoHosts, interfaces: [&str; 2]) -> (Value, [Ended; 2]) {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let number = RUNS.fetch_add(1, Ordering::Relaxed);
    let name = format!("ringtree-doctor-report-{}-{number}", std::process::id());
    let report = std::env::temp_dir().join(name);
    let start = |host: usize, script: &str| {
        let mut command = bed.hosts[host].command("/bin/sh");
        command.args(["-c", script]).env("PATH", path()).env("RINGTREE_TIMEOUT", "30");
        command.env("RINGTREE_INTERFACE", interfaces[host]);
        Program::start(command)
    };
    let options = format!("--ranks 2 --nodes 2 --rendezvous {}:29400", bed.hosts[0].address(0));
    // Not through the launchers, which print lines of their own beside it.
    let doctor = format!("ringtree doctor --json >{}.$RINGTREE_RANK", report.display());
    let mut first = start(0, &format!("exec ringtree run {options} -- sh -c '{doctor}'"));
    let second = start(1, &first.await_line("ringtree:   "));
    let ended = [first, second].map(Program::await_end);
    let [mine, theirs] = [0, 1].map(|rank| {
        let path = report.with_extension(rank.to_string());
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        text
    });
    assert_eq!(theirs, "", "rank 0 speaks for both");
    (serde_json::from_str(&mine).unwrap_or_else(|error| panic!("{error}: {ended:#?}")), ended)
}

/// Runs `body` where this thread, and all that it starts, may use one processor.
fn on_one_processor<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let body = || {
        let this = Pid::from_raw(0);
        let all = sched_getaffinity(this).unwrap();
        let mut one = CpuSet::new();
        let first = (0..CpuSet::count()).find(|processor| all.is_set(*processor) == Ok(true));
        one.set(first.unwrap()).unwrap();
        sched_setaffinity(this, &one).unwrap();
        body()
    };
    thread::scope(|scope| scope.spawn(body).join().unwrap())
}

/// What a command reports after a shell's command has changed its limits.
fn limited(limit: &str, arguments: &str) -> (Value, Option<i32>) {
    let mut shell = Command::new("sh");
    let script = format!("{limit} && exec ringtree {arguments}");
    shell.args(["-c", &script]).env("PATH", path()).stdin(Stdio::null());
    parsed(&shell.output().unwrap())
}

/// What a command reports, and its status.
fn doctor(arguments: &str, environment: &[(&str, &str)]) -> (Value, Option<i32>) {
    parsed(&ringtree(arguments, environment))
}

fn parsed(output: &Output) -> (Value, Option<i32>) {
    let report = serde_json::from_str(&text(&output.stdout));
    let report = report.unwrap_or_else(|error| panic!("{error}: {output:#?}"));
    (report, output.status.code())
}

fn ringtree(arguments: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    command.args(arguments.split_whitespace()).stdin(Stdio::null()).env("PATH", path());
    command.envs(environment.iter().copied()).output().unwrap()
}

/// Where this program is found by its name.
fn path() -> String {
    let folder = Path::new(env!("CARGO_BIN_EXE_ringtree")).parent().unwrap();
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display())
}

fn has_rdma_devices() -> bool {
    fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some())
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

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
