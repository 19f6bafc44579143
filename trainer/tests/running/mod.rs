//! The program `ringtree-train` under test, each time in a folder of its own.

use std::path::Path;
use std::process::Command;

use ringtree_tests::program::{Ended, Program};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringtree-train");

/// Starts it with these arguments in a folder, without anything of the environment of the tests.
pub fn start(folder: &Path, arguments: &str) -> Program {
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("RINGTREE_TIMEOUT", "30");
    command.current_dir(folder).args(arguments.split_whitespace());
    Program::start(command)
}

/// Runs it to its end, which must be a good one.
pub fn run(folder: &Path, arguments: &str) -> Ended {
    let ended = start(folder, arguments).await_end();
    assert!(ended.status.success(), "{ended:#?}");
    ended
}

pub fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}
