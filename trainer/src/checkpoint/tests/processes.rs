//! Processes that are killed, or that the system lets write no further.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

/// The folder that a process which these tests start writes to.
const FOLDER: &str = "RINGTREE_TEST_CHECKPOINTS";

/// A command that runs one of the functions below, which are no tests, in a process of its own.
fn process(role: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    as_process(&mut command, role, folder);
    command
}

fn as_process(command: &mut Command, role: &str, folder: &Path) {
    let role = format!("checkpoint::tests::processes::{role}");
    command.args(["--ignored", "--exact", &role]).env(FOLDER, folder).stdout(Stdio::null());
}

fn given_folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// Waits until something is so, as long as a process runs.
fn wait_until(process: &mut Child, is_so: impl Fn() -> bool) {
    let give_up = Instant::now() + LONG;
    while !is_so() {
        assert!(process.try_wait().expect("a process").is_none(), "the process has ended");
        assert!(Instant::now() < give_up, "it did not come to that");
        thread::yield_now();
    }
}

/// The length of a file in the folder of a checkpoint that is being written; 0 where there is none.
fn partial_bytes(folder: &Path, file: &str) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let partial = entries.flatten().find(|entry| entry.path().extension().is_some());
    let metadata = partial.map(|entry| entry.path().join(file).metadata());
    metadata.and_then(std::result::Result::ok).map_or(0, |metadata| metadata.len())
}

#[test]
#[ignore = "started by another test"]
fn half_of_step_200() {
    let Some(folder) = given_folder() else { return };
    save(&folder, 2, &[100]);
    let mut first =
        Writer::new(WriterSettings { run: RUN + 1, ..settings(&folder, 0, 2) }).expect("a folder");
    first.save(snapshot(200, 0, 2)).expect("nothing before");
    // Rank 1 never comes.
    let _ = first.finish(LONG);
}

#[test]
fn a_process_killed_before_all_parts_came_leaves_the_one_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut process = process("half_of_step_200", folder.path()).spawn().expect("a process");
    let newest = folder.path().join("step-0000000100");
    wait_until(&mut process, || {
        newest.exists() && partial_bytes(folder.path(), "optimiser-0-of-2.safetensors") > 0
    });
    process.kill().and_then(|()| process.wait()).expect("a killed process");
    let unusable = assert_latest(folder.path(), 100);
    assert_eq!(unusable.len(), 1, "{unusable:?}");
    assert!(unusable[0].contains("step-0000000200.") && unusable[0].contains("never finished"));
    save(folder.path(), 3, &[200]);
    assert!(assert_latest(folder.path(), 200).is_empty());
    assert_eq!(names(folder.path()), ["step-0000000100", "step-0000000200"]);
}

/// Adds an array that takes a while to write.
fn with_large_array(mut snapshot: Snapshot) -> Snapshot {
    let large = vec![1.0_f32; 1 << 20];
    snapshot.add_parameter("large", &[1 << 20], &large).expect("its shape");
    snapshot
}

#[test]
#[ignore = "started by another test"]
fn many_steps() {
    let Some(folder) = given_folder() else { return };
    let mut only = writer(&folder, 0, 1);
    for step in (100..1_000_000).step_by(100) {
        only.save(with_large_array(snapshot(step, 0, 1))).expect("the save before");
    }
}

/// Kills it while it writes the tensors, while it writes the state, and when it has just renamed.
#[test]
fn a_process_killed_at_any_time_leaves_a_whole_checkpoint() {
    for file in ["parameters.safetensors", "optimiser-0-of-1.safetensors", "state.json"] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut process = process("many_steps", folder.path()).spawn().expect("a process");
        let second = folder.path().join("step-0000000200");
        wait_until(&mut process, || second.exists());
        wait_until(&mut process, || partial_bytes(folder.path(), file) > 0);
        process.kill().and_then(|()| process.wait()).expect("a killed process");
        let (checkpoint, unusable) = found(folder.path());
        let checkpoint = checkpoint.unwrap_or_else(|| panic!("a whole one: {unusable:?}"));
        let step = checkpoint.state().step;
        assert!(step >= 200, "step {step}: {unusable:?}");
        assert_holds(&checkpoint, step, 1);
        let only_partial = |what: &String| what.contains("never finished");
        assert!(unusable.iter().all(only_partial), "{unusable:?}");
    }
}

#[test]
#[ignore = "started by another test"]
fn files_that_grow_too_large() {
    let Some(folder) = given_folder() else { return };
    let mut only = writer(&folder, 0, 1);
    only.save(snapshot(100, 0, 1)).expect("nothing before");
    only.save(with_large_array(snapshot(200, 0, 1))).expect("a small checkpoint");
    let error = only.save(snapshot(300, 0, 1)).expect_err("a large file").to_string();
    assert!(error.contains("parameters.safetensors"), "{error}");
    assert!(error.contains("File too large"), "{error}");
    only.finish(LONG).expect("a small checkpoint");
}

/// By the limit on a file's size, as a full disk does it: the write fails in the middle.
#[test]
fn a_write_that_fails_is_reported_and_harms_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut shell = Command::new("sh");
    // In blocks of 512 or 1024 bytes. The signal that comes with the error would end the process.
    shell.args(["-c", r#"trap "" XFSZ; ulimit -f 256; exec "$0" "$@""#]);
    shell.arg(std::env::current_exe().expect("this program"));
    as_process(&mut shell, "files_that_grow_too_large", folder.path());
    let output = shell.output().expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names(folder.path()), ["step-0000000100", "step-0000000300"]);
    assert!(assert_latest(folder.path(), 300).is_empty());
}
