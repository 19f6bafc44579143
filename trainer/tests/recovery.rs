//! Runs whose ranks die, stop and are started again, in the midst of training: real processes.

mod running;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringtree_tests::program::{Ended, Program};
use running::{folder, run, start};
use serde_json::Value;

/// A run of some seconds.
const RUN: &str = "--model mlp --data digits --ranks 3 --batch 10 --set micro_batches=2 --steps 400 \
    --set exchange.bucket_bytes=40000 --set exchange.first_bucket_bytes=9000 --set validate_every=100";

/// The loss of each step, which must be there once.
fn losses(run: &Path) -> BTreeMap<u64, f64> {
    let mut losses = BTreeMap::new();
    for line in metrics(run).iter().filter(|line| line["kind"] == "step") {
        let step = line["step"].as_u64().expect("a number");
        let before = losses.insert(step, line["loss"].as_f64().expect("a number"));
        assert_eq!(before, None, "step {step} is there twice");
    }
    losses
}

fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The process of a rank of the run that works in a folder.
fn process_of(folder: &Path, rank: u32) -> Pid {
    let rank = format!("RINGTREE_RANK={rank}");
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let is_meant = |pid: &i32| {
        let at = Path::new("/proc").join(pid.to_string());
        let environment = fs::read(at.join("environ")).unwrap_or_default();
        fs::read_link(at.join("cwd")).is_ok_and(|cwd| cwd == folder)
            && environment.split(|byte| *byte == 0).any(|one| one == rank.as_bytes())
    };
    let found = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Pid::from_raw(found.filter(is_meant).max().expect("the rank's process"))
}

/// Runs, with a signal for each of these ranks after a step.
fn disturbed(folder: &Path, arguments: &str, disturbances: &[(&str, u32, Signal)]) -> Ended {
    let folder = folder.canonicalize().expect("a folder");
    let mut program: Program = start(&folder, arguments);
    for (line, rank, signal) in disturbances {
        program.await_line(line);
        kill(process_of(&folder, *rank), *signal).expect("it runs");
    }
    let ended = program.await_end();
    assert!(ended.status.success(), "{ended:#?}");
    ended
}

#[test]
fn ranks_that_are_killed_are_replaced_and_no_bit_changes() {
    let folder = folder();
    run(folder.path(), &format!("{RUN} --out whole"));
    let kills = [("  50 ", 1, Signal::SIGKILL), (" 200 ", 0, Signal::SIGKILL)];
    let ended = disturbed(folder.path(), &format!("{RUN} --restart 3 --out killed"), &kills);
    ended.line("ringtree: rank 1 was killed by SIGKILL; starting it again (1 of 3)");
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    assert_eq!(losses(&whole).len(), 400);
    assert_eq!(losses(&whole), losses(&killed), "to the bit: {ended:#?}");
    let metrics = metrics(&killed);
    let events: Vec<&str> = metrics
        .iter()
        .filter(|line| line["kind"] == "event")
        .filter_map(|line| line["what"].as_str())
        .collect();
    let going_on = events.iter().filter(|what| what.contains("; 3 go on after step ")).count();
    assert_eq!(going_on, 2, "{events:?}");
    let report = fs::read_to_string(killed.join("report.html")).expect("a report");
    assert_eq!(report.matches("go on after step").count(), 2);
}

#[test]
fn survivors_share_the_steps_out_anew() {
    let folder = folder();
    let double = "--set number=f64";
    run(folder.path(), &format!("{RUN} {double} --out whole"));
    let arguments = format!("{RUN} {double} --min-ranks 1 --out killed");
    let kills = [("  50 ", 2, Signal::SIGKILL), (" 100 ", 0, Signal::SIGKILL)];
    let ended = disturbed(folder.path(), &arguments, &kills);
    let whole = losses(&folder.path().join("whole"));
    let killed = losses(&folder.path().join("killed"));
    assert_eq!(killed.len(), 400);
    for (step, loss) in whole {
        let apart = (loss - killed[&step]).abs() / loss;
        assert!(apart < 1e-8, "step {step}: {loss} and {}, {ended:#?}", killed[&step]);
    }
}

#[test]
fn what_is_sharded_goes_on_from_the_last_checkpoint() {
    let folder = folder();
    let sharded = format!("{RUN} --set exchange.sharded=true --set checkpoint_every=20");
    run(folder.path(), &format!("{sharded} --out whole"));
    let kills = [("  70 ", 2, Signal::SIGKILL), (" 200 ", 0, Signal::SIGKILL)];
    let ended = disturbed(folder.path(), &format!("{sharded} --restart 9 --out killed"), &kills);
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    assert_eq!(losses(&whole), losses(&killed), "to the bit: {ended:#?}");
}

#[test]
fn a_rank_that_is_stopped_is_ended_and_replaced() {
    let folder = folder();
    run(folder.path(), &format!("{RUN} --out whole"));
    let stops = [("  50 ", 1, Signal::SIGSTOP)];
    let ended = disturbed(folder.path(), &format!("{RUN} --restart 1 --out stopped"), &stops);
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    assert_eq!(losses(&whole), losses(&stopped), "to the bit: {ended:#?}");
}

#[test]
fn a_run_that_is_not_to_go_on_does_not() {
    let folder = folder();
    let folder = folder.path().canonicalize().expect("a folder");
    let mut program = start(&folder, &format!("{RUN} --out killed"));
    program.await_line("  50 ");
    kill(process_of(&folder, 1), Signal::SIGKILL).expect("it runs");
    let ended = program.await_end();
    assert_eq!(ended.status.code(), Some(128 + 9), "{ended:#?}");
}
