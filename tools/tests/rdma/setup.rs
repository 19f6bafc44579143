//! Machines on which RDMA cannot be used: each says why in one line, and what is left works.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Output;

use nix::sys::resource::{Resource, setrlimit};
use serde_json::Value;

use crate::jobs::{command, ringtree, said};
use crate::network::{Down, Mtu};

const LIBRARY: &str = "/lib/x86_64-linux-gnu/libibverbs.so.1";

/// A file that is out of the way as long as this lives.
struct Hidden(&'static str);

impl Hidden {
    fn hide(path: &'static str) -> Hidden {
        fs::rename(path, format!("{path}.hidden")).expect("root");
        Hidden(path)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        fs::rename(format!("{}.hidden", self.0), self.0).expect("root");
    }
}

/// That a run failed, and the one line that says why.
#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.contains(words[0])).collect();
    assert!(!lines.is_empty(), "no \"{}\" in\n{said}", words[0]);
    for word in words {
        assert!(lines.iter().all(|line| line.contains(word)), "no \"{word}\" in {lines:?}");
    }
}

#[track_caller]
fn works(output: &Output, transport: &str) -> String {
    let said = said(output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let is_right = said.contains(&format!("transport {transport}")) && said.contains("0 OK");
    assert!(is_right, "{said}");
    said
}

const SMALL: &str = "bench all-reduce --ranks 2 --sizes 8,100000 -n 3 -w 1 --transport";

fn bench(transport: &str, variables: &[(&str, &str)]) -> Output {
    ringtree(&format!("{SMALL} {transport}"), variables)
}

#[test]
fn without_the_library_rdma_explains_itself_and_everything_else_works() {
    let _hidden = Hidden::hide(LIBRARY);
    refused(&bench("rdma", &[]), &["libibverbs", "install", "--transport auto"]);
    works(&bench("auto", &[]), "shm");
    works(&bench("rdma,tcp", &[]), "tcp");
    let doctor = ringtree("doctor rdma", &[]);
    assert_eq!(doctor.status.code(), Some(1), "{}", said(&doctor));
    assert!(said(&doctor).contains("install"), "{}", said(&doctor));
}

#[test]
fn devices_that_are_not_there_or_not_wanted_are_named() {
    let with = |devices| bench("rdma", &[("RINGTREE_RDMA_DEVICES", devices)]);
    refused(&with("mlx5_0"), &["mlx5_0", "rxe0, rxe1, rxe2"]);
    refused(&with("rxe1:2"), &["port 2 of rxe1, which has 1"]);
    refused(&with("none"), &["switched off"]);
    refused(&bench("rdma", &[("RINGTREE_RDMA_GID_INDEX", "9")]), &["no GID 9"]);
    refused(&bench("rdma", &[("RINGTREE_ENCRYPT", "1")]), &["RINGTREE_ENCRYPT"]);
    works(&with("rxe0"), "rdma over rxe0:1 (GID 1 127.0.0.1");
    works(
        &bench("rdma", &[("RINGTREE_RDMA_MTU", "1024")]),
        "rdma over rxe1:1 (GID 1 10.2.0.1, MTU 1024)",
    );
}

#[test]
fn a_port_that_is_down_is_named_with_its_remedy() {
    let _down = Down::take("v1");
    // The other end of the pair has lost its carrier, too.
    refused(
        &bench("rdma", &[("RINGTREE_RDMA_DEVICES", "rxe1")]),
        &["port 1 of RDMA device rxe1 is down", "ip link set v1 up"],
    );
    works(&bench("rdma", &[]), "rdma over rxe0:1");
}

/// As a user without privileges, who may lock `kib` KiB.
fn as_a_user(line: &str, kib: u64) -> Output {
    let mut command = command(line, &[("HOME", "/tmp"), ("RINGTREE_LOG", "warn")]);
    command.uid(65_534).gid(65_534);
    // SAFETY: between fork and exec only a system call is made.
    unsafe {
        command.pre_exec(move || {
            setrlimit(Resource::RLIMIT_MEMLOCK, kib << 10, kib << 10).map_err(Into::into)
        })
    };
    command.output().expect("the program")
}

#[test]
fn too_little_locked_memory_is_said_with_the_limit_and_its_remedy() {
    let line = |transport: &str| format!("{SMALL} {transport}");
    refused(&as_a_user(&line("rdma"), 64), &["locked memory", "64 KiB", "ulimit -l unlimited"]);
    let fallen_back = works(&as_a_user(&line("rdma,tcp"), 64), "tcp");
    assert!(fallen_back.contains("locked memory"), "{fallen_back}");
    works(&as_a_user(&line("rdma"), 64 << 10), "rdma");
}

/// There is room for the links, and not for the buffers.
#[test]
fn buffers_that_cannot_be_locked_go_through_slots() {
    let line = "bench all-reduce --ranks 2 --sizes 33554432 -n 1 -w 0 --transport rdma --memory registered";
    let said = works(&as_a_user(line, 24 << 10), "rdma");
    assert!(said.contains("goes through slots") && said.contains("at most 0 buffers"), "{said}");
}

/// What the doctor says about RDMA: its status, and what it has seen by check.
fn doctor(variables: &[(&str, &str)]) -> (Option<i32>, Value) {
    let output = ringtree("doctor rdma --json", variables);
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap_or_else(|_| panic!("{}", said(&output))))
}

/// The findings of a check: level, what was seen, and the remedy.
fn findings(report: &Value, check: &str) -> Vec<[String; 3]> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = report["findings"].as_array().expect("findings");
    let of_check = all.iter().filter(|finding| finding["check"] == check);
    of_check.map(|one| ["level", "seen", "remedy"].map(|field| text(&one[field]))).collect()
}

#[track_caller]
fn found(report: &Value, check: &str, level: &str, words: &str) {
    let findings = findings(report, check);
    let is_there = |[its, seen, remedy]: &[String; 3]| {
        its == level && (seen.contains(words) || remedy.contains(words))
    };
    assert!(findings.iter().any(is_there), "{check}: no {level} \"{words}\" in {findings:#?}");
}

#[test]
fn the_doctor_sees_devices_ports_and_addresses_and_tries_links() {
    let (status, report) = doctor(&[]);
    assert_eq!(status, Some(0), "{report:#}");
    found(&report, "rdma-devices", "ok", "rxe0, rxe1, rxe2");
    found(&report, "rdma-port", "ok", "rxe1:1 is active");
    found(&report, "rdma", "ok", "over rxe1:1, rxe2:1");
    found(&report, "rdma-mtu", "ok", "4096");
    found(&report, "memlock", "ok", "no limit");
    found(&report, "reachability", "ok", "1 over rdma");
    let (status, report) = doctor(&[("RINGTREE_RDMA_DEVICES", "none")]);
    assert_eq!(status, Some(1), "{report:#}");
    found(&report, "rdma", "failure", "unset RINGTREE_RDMA_DEVICES");
}

#[test]
fn the_doctor_tells_what_is_wrong_with_a_port_and_what_to_type() {
    let down = Down::take("v2");
    let (_, report) = doctor(&[]);
    found(&report, "rdma-port", "warning", "ip link set v2 up");
    found(&report, "rdma", "ok", "over rxe0:1");
    drop(down);
    let mtu = Mtu::set("v2", 1500);
    let (_, report) = doctor(&[]);
    found(&report, "rdma-mtu", "note", "v2 has MTU 1500");
    found(&report, "rdma-mtu", "note", "ip link set v2 mtu");
    drop(mtu);
    let (status, report) = doctor(&[("RINGTREE_RDMA_GID_INDEX", "200")]);
    assert_eq!(status, Some(1), "{report:#}");
    assert_eq!(findings(&report, "rdma-gid").len(), 3, "{report:#}");
}
