//! A disk that is full when a checkpoint is due: the run ends and says why, the checkpoint before is as it was, and once
//! there is room a run goes on from it.

use std::fs;
use std::io::{self, Write};
use std::process::Command;

use nix::unistd::geteuid;
use ringtree_tests::program::Program;

/// What it does in a mount namespace of its own, where `$0` is the program. A file takes all the room that the first
/// run's checkpoint has left on the small disk.
const SCRIPT: &str = r#"
    mkdir -p run/checkpoints
    mount -t tmpfs -o size=4m ringtree-test run/checkpoints
    train() { RINGTREE_TIMEOUT=30 "$0" --model mlp --data digits --ranks 2 --out run "$@"; }
    train --steps 20
    cat /dev/zero >run/checkpoints/filler 2>/dev/null || true
    train --steps 60 --set checkpoint_every=20 --resume auto && echo "it did not end" || echo "ended: $?"
    echo "left: $(ls run/checkpoints | tr '\n' ' ')"
    rm run/checkpoints/filler
    train --steps 60 --resume auto
    echo "left: $(ls run/checkpoints | tr '\n' ' ')"
"#;

#[test]
fn a_full_disk_ends_the_run_and_harms_no_checkpoint() {
    if !geteuid().is_root() || !can_mount() {
        let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!in_ci, "a small disk can be mounted only by root");
        // Not by a macro: the line shall be seen although the test passes.
        let _ = writeln!(io::stderr(), "SKIPPED, no full disk: it can be mounted only by root");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", SCRIPT]);
    command.arg(env!("CARGO_BIN_EXE_ringtree-train")).current_dir(folder.path());
    let ended = Program::start(command).await_end();
    assert!(ended.status.success(), "{ended:#?}");
    let said = ended.lines.join("\n");
    let failed = ended.lines.iter().find(|line| line.contains("No space left on device"));
    let failed = failed.unwrap_or_else(|| panic!("{said}"));
    assert!(failed.contains("run/checkpoints/step-") && failed.contains("make room"), "{failed}");
    assert_eq!(ended.line("ended:"), "1", "{said}");
    let left: Vec<_> = ended.lines.iter().filter_map(|line| line.strip_prefix("left: ")).collect();
    // A rank that was not told yet may have begun the next one.
    let names = left[0].split_whitespace().filter(|name| !name.ends_with(".partial"));
    assert!(names.eq(["filler", "step-0000000020"]), "{said}");
    assert!(said.contains("resumed from run/checkpoints/step-0000000020"), "{said}");
    assert_eq!(left[1], "step-0000000020 step-0000000060 ", "{said}");
    assert_eq!(fs::read_dir(folder.path().join("run/checkpoints")).expect("a folder").count(), 0);
}

/// Some containers have a root who may not.
fn can_mount() -> bool {
    let status = Command::new("unshare").args(["--mount", "true"]).status();
    status.is_ok_and(|status| status.success())
}
