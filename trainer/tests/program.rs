//! The program `ringtree-train`, as people use it: real processes, killed, interrupted and started again.

mod running;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use running::{folder, run, start};
use serde_json::Value;

/// The lines of a run's metrics of a kind.
fn metrics(run: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON"));
    lines.filter(|line: &Value| line["kind"] == kind).collect()
}

/// Each step's loss and gradient, to the bit.
fn losses(run: &Path) -> BTreeMap<u64, (u64, u64)> {
    let bits = |value: &Value| value.as_f64().expect("a number").to_bits();
    let steps = metrics(run, "step").into_iter().map(|line| {
        let step = line["step"].as_u64().expect("a number");
        (step, (bits(&line["loss"]), bits(&line["gradient_norm"])))
    });
    steps.collect()
}

#[test]
fn two_ranks_learn_the_digits_and_leave_a_report() {
    let folder = folder();
    let ended = run(folder.path(), "--model mlp --data digits --ranks 2");
    let out = folder.path().join("runs/mlp-digits");
    let validation = metrics(&out, "validation").pop().expect("a look at the end");
    let accuracy = validation["accuracy"].as_f64().expect("a number");
    assert!(accuracy > 0.97, "{accuracy}");
    let steps = metrics(&out, "step");
    assert_eq!(steps.len(), 45 * 60);
    assert_eq!(steps[0]["busy_ms"].as_array().expect("one a rank").len(), 2);
    assert_eq!(steps[44]["samples"], 1438 - 44 * 32, "the rest of the epoch");
    // What is printed is what is kept.
    let printed = ended.lines.iter().filter(|line| line.trim_start().starts_with("2700 "));
    let printed: Vec<&str> = printed.flat_map(|line| line.split_whitespace()).collect();
    let kept = format!("{:.4}", steps[2699]["loss"].as_f64().expect("a number"));
    assert_eq!((printed[1], printed[2]), ("60.00", kept.as_str()));
    ended.line("  ranks      2 ranks on 1 host, over shared memory");
    ended.line("report: runs/mlp-digits/report.html");
    let report = fs::read_to_string(out.join("report.html")).expect("a report");
    assert_eq!(report.matches("<svg").count(), 4, "loss, throughput, time, skew");
    assert!(!report.contains("http://") || !report.contains("src="), "nothing from elsewhere");
    let config: PathBuf = out.join("config.toml");
    let again = format!("--config {} --ranks 1 --steps 3 --out again", config.display());
    run(folder.path(), &again);
    assert_eq!(metrics(&folder.path().join("again"), "step").len(), 3);
}

/// Settings under which much of the program is at work: sharded state, several buckets and micro-batches, three ranks.
const BUSY: &str = "--ranks 3 --batch 10 --set micro_batches=2 --set exchange.sharded=true \
    --set exchange.bucket_bytes=40000 --set exchange.first_bucket_bytes=9000 \
    --set max_gradient_norm=0.5 --set checkpoint_every=20 --set check_every=10 --steps 100";

#[test]
fn a_killed_run_goes_on_as_if_nothing_had_happened() {
    let folder = folder();
    run(folder.path(), &format!("{BUSY} --out whole"));
    let mut killed = start(folder.path(), &format!("{BUSY} --out killed"));
    // Steps after the second checkpoint has begun: whichever is whole is taken.
    killed.await_line("  55 ");
    kill(Pid::from_raw(killed.pid() as i32), Signal::SIGKILL).expect("it runs");
    killed.await_end();
    let resumed = run(folder.path(), &format!("{BUSY} --out killed --resume auto"));
    let from = resumed.line("resumed from killed/checkpoints/step-");
    assert!(["0000000020 after step 20", "0000000040 after step 40"].contains(&from), "{from}");
    let (whole, again) = (folder.path().join("whole"), folder.path().join("killed"));
    assert_eq!(losses(&whole).len(), 100);
    assert_eq!(losses(&whole), losses(&again), "to the bit");
    let parameters = |run: &Path| {
        fs::read(run.join("checkpoints/step-0000000100/parameters.safetensors")).expect("a file")
    };
    assert!(parameters(&whole) == parameters(&again), "to the bit");
}

#[test]
fn a_new_run_does_not_go_on_from_checkpoints_of_an_earlier_one() {
    let folder = folder();
    let steps = |steps: u32, more: &str| format!("--steps {steps} --out run {more}");
    run(folder.path(), &steps(30, ""));
    for (count, aside, last) in [(10, "run/checkpoints.1", 30), (20, "run/checkpoints.2", 10)] {
        let ended = run(folder.path(), &steps(count, ""));
        ended.line(&format!("checkpoints of an earlier run are in {aside} now"));
        let earlier = folder.path().join(aside).join(format!("step-00000000{last}"));
        assert!(earlier.exists(), "{}", earlier.display());
    }
    let resumed = run(folder.path(), &steps(25, "--resume auto"));
    resumed.line("resumed from run/checkpoints/step-0000000020 after step 20");
}

#[test]
fn another_number_of_ranks_goes_on_with_the_same_samples() {
    let folder = folder();
    let steps = |ranks: u32, batch: usize, more: &str| {
        let settings = "--set number=f64 --set schedule.kind=constant --set exchange.sharded=true";
        format!("--ranks {ranks} --batch {batch} {settings} --seed 5 --out run {more}")
    };
    run(folder.path(), &steps(3, 8, "--steps 30"));
    run(folder.path(), &steps(2, 12, "--steps 60 --resume auto"));
    let resumed = metrics(&folder.path().join("run"), "step");
    fs::remove_dir_all(folder.path().join("run")).expect("a folder");
    run(folder.path(), &steps(1, 24, "--steps 60"));
    let alone = metrics(&folder.path().join("run"), "step");
    assert_eq!((resumed.len(), alone.len()), (60, 60));
    for (resumed, alone) in resumed.iter().zip(&alone) {
        let loss = |line: &Value| line["loss"].as_f64().expect("a number");
        let near = (loss(resumed) - loss(alone)).abs() < 1e-9 * loss(alone).abs();
        assert!(near, "{resumed} and {alone}");
    }
}

#[test]
fn a_signal_has_it_save_and_leave_and_a_second_one_ends_it_at_once() {
    let folder = folder();
    let mut asked = start(folder.path(), "--ranks 2 --steps 9999 --out run");
    asked.await_line("  50 ");
    kill(Pid::from_raw(asked.pid() as i32), Signal::SIGTERM).expect("it runs");
    let ended = asked.await_end();
    assert_eq!(ended.status.code(), Some(130), "{ended:#?}");
    let last = ended.line("interrupted after step ").to_owned();
    let ended = start(folder.path(), &format!("--ranks 2 --steps {last} --out run --resume auto"));
    let ended = ended.await_end();
    assert!(ended.line("resumed from run/checkpoints/").ends_with(&format!("after step {last}")));

    // Whose ranks do not come to the end of their step, since one of them does not run.
    let mut stuck = start(folder.path(), "--ranks 2 --steps 9999 --out stuck");
    stuck.await_line("  50 ");
    let rank = child(child(stuck.pid()).expect("a launcher")).expect("a rank");
    kill(Pid::from_raw(rank as i32), Signal::SIGSTOP).expect("it runs");
    kill(Pid::from_raw(stuck.pid() as i32), Signal::SIGTERM).expect("it runs");
    kill(Pid::from_raw(stuck.pid() as i32), Signal::SIGINT).expect("it runs");
    assert!(!stuck.await_end().status.success());
}

/// A process that another one has started.
fn child(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

#[test]
fn mistakes_are_told_once_and_before_the_first_step() {
    let folder = folder();
    fs::write(folder.path().join("short.txt"), "abc").expect("a file");
    fs::write(folder.path().join("empty.txt"), "").expect("a file");
    for (arguments, named) in [
        ("--data nowhere", "ringtree-train: the data in nowhere: is not there"),
        ("--model gpt --data short.txt", "ringtree-train: the data in short.txt: "),
        ("--model gpt --data empty.txt", "ringtree-train: the data in empty.txt: "),
        ("--model gpt", "ringtree-train: a gpt learns from text, but the data is images"),
        ("--model lstm", "ringtree-train: there is no model \"lstm\": give mlp, cnn or gpt"),
        ("--set exchange.bucket=3", "ringtree-train: the settings: unknown field `bucket`"),
        (
            "--data /dev/null",
            "ringtree-train: the data in /dev/null: is neither a file nor a folder",
        ),
        (
            "--device cuda",
            "ringtree-train: device is cuda, but this ringtree-train was built without",
        ),
        ("--out short.txt", "ringtree-train: --out short.txt: File exists"),
        ("--timeline none/t.json", "ringtree-train: --timeline none/t.json: No such file"),
        ("--config nowhere.toml", "ringtree-train: the settings in nowhere.toml: No such file"),
    ] {
        let ended = start(folder.path(), &format!("--ranks 2 {arguments}")).await_end();
        assert_eq!(ended.status.code(), Some(2), "{arguments}: {ended:#?}");
        let told = ended.lines.iter().filter(|line| line.contains("ringtree-train: ")).count();
        ended.line(named);
        assert_eq!(told, 1, "{arguments}: {ended:#?}");
        assert!(!folder.path().join("runs").exists(), "{arguments}");
    }
}

#[test]
fn a_run_ends_where_numbers_leave_their_range_and_saves_nothing_of_that() {
    let folder = folder();
    run(folder.path(), "--ranks 2 --steps 5 --out run");
    let ended = start(folder.path(), "--ranks 2 --learning-rate 1e30 --resume auto --out run");
    let ended = ended.await_end();
    assert_eq!(ended.status.code(), Some(2), "{ended:#?}");
    assert!(ended.line("ringtree-train: the loss of step ").contains("(--resume auto)"));
    let told = ended.lines.iter().filter(|line| line.contains("ringtree-train: ")).count();
    assert_eq!(told, 1, "{ended:#?}");
    let resumed = run(folder.path(), "--ranks 2 --steps 10 --resume auto --out run");
    resumed.line("resumed from run/checkpoints/step-0000000005 after step 5");
}

#[test]
fn a_dry_run_tells_ranks_buckets_and_memory_and_leaves_nothing() {
    let folder = folder();
    let small = "--set exchange.bucket_bytes=40000 --set exchange.first_bucket_bytes=9000";
    let sharded = "--set exchange.sharded=true --set exchange.in_bf16=true";
    let ended = run(folder.path(), &format!("--dry-run --ranks 3 {small} {sharded}"));
    ended.line("rank 2 on ");
    assert!(ended.line("  memory ").contains("instead of 1.3 MiB (sharded over 3)"), "{ended:#?}");
    assert!(ended.line("  exchange ").contains("of bf16 in 326.5 KiB"), "{ended:#?}");
    ended.line("             predicted ");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
}

#[test]
fn a_timeline_has_all_phases_of_all_ranks() {
    let folder = folder();
    let small = "--set exchange.bucket_bytes=40000 --set exchange.first_bucket_bytes=9000";
    run(folder.path(), &format!("--ranks 2 --steps 5 {small} --timeline t.json"));
    let text = fs::read_to_string(folder.path().join("t.json")).expect("a timeline");
    let timeline: Value = serde_json::from_str(&text).expect("JSON");
    let events = timeline["traceEvents"].as_array().expect("events");
    for rank in 0..2 {
        for name in ["data", "forward", "backward", "optimiser", "bucket"] {
            let of_kind = events.iter().filter(|one| one["pid"] == rank && one["name"] == name);
            let count = of_kind.inspect(|one| assert!(one["dur"].as_f64() >= Some(0.0))).count();
            assert!(count >= 5, "{count} times {name} of rank {rank}");
        }
    }
}
