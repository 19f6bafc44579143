//! A job's secret shows nowhere: in no argument, in nothing that is printed, logged or stored, whatever goes wrong.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use ringtree_tests::job::free_address;
use ringtree_tests::program::{Ended, Program};

/// As nothing else on the machine has it.
const SECRET: &str = "e7a1c0de5ec7e7a1c0de5ec7e7a1c0de";

/// The program with everything that there is to log, and nothing of the environment of the tests.
fn ringtree(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.as_encoded_bytes().starts_with(b"RINGTREE_")) {
        command.env_remove(name);
    }
    command.current_dir(folder).args(arguments.split(' '));
    command.env("RINGTREE_LOG", "trace").env("RINGTREE_TIMEOUT", "5");
    command.env("XDG_CACHE_HOME", folder);
    command
}

/// A file that has the secret.
fn secret_file(folder: &Path) -> PathBuf {
    let path = folder.join("secret");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).mode(0o600).open(&path).expect("a file");
    file.write_all(SECRET.as_bytes()).expect("room for it");
    path
}

/// What was said does not tell the secret, and was worth looking at.
#[track_caller]
fn assert_silent(ended: &Ended, says: &str) {
    let said = ended.lines.join("\n");
    assert!(said.contains(says), "{said}");
    assert!(!said.contains(SECRET), "{said}");
}

#[test]
fn nothing_that_a_job_prints_or_stores_tells_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let given =
        [("RINGTREE_SECRET", SECRET.into()), ("RINGTREE_SECRET_FILE", secret_file(folder.path()))];
    for (name, value) in given {
        let stored = tempfile::tempdir().expect("a folder");
        for arguments in [
            "bench all-reduce --ranks 2 --transport tcp --sizes 64K -n 5 --explain --json run.json --csv run.csv",
            "tune --ranks 2 --transport shm --seconds 1",
            "run --ranks 2 -- sh -c true",
            "config",
            "config --json",
        ] {
            let mut command = ringtree(stored.path(), arguments);
            let ended = Program::start({
                command.env(name, &value);
                command
            })
            .await_end();
            assert!(ended.status.success(), "{arguments}: {ended:#?}");
            assert_silent(&ended, "");
        }
        let files = all_files(stored.path());
        assert!(files.len() >= 3, "the run as JSON and as CSV, and what was tuned: {files:?}");
        for file in files {
            let text = String::from_utf8_lossy(&fs::read(&file).expect("a file")).into_owned();
            assert!(!text.is_empty() && !text.contains(SECRET), "{}: {text}", file.display());
        }
    }
}

#[test]
fn nothing_that_goes_wrong_tells_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = free_address();
    let rank = |rank: &str, secret: &str| {
        let mut command = ringtree(folder.path(), "bench all-reduce --sizes 8");
        command.env("RINGTREE_RANKS", "2").env("RINGTREE_RANK", rank).env("RINGTREE_JOB", "a job");
        command.env("RINGTREE_RENDEZVOUS", &address).env("RINGTREE_SECRET", secret);
        Program::start(command)
    };
    let (right, wrong) = (rank("0", SECRET), rank("1", &SECRET.replace('0', "1")));
    assert_silent(&wrong.await_end(), "check RINGTREE_SECRET");
    assert_silent(&right.await_end(), "a connection was refused");

    let path = secret_file(folder.path());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("it is ours");
    let mut command = ringtree(folder.path(), "bench all-reduce --sizes 8 --ranks 2");
    command.env("RINGTREE_SECRET_FILE", path);
    assert_silent(&Program::start(command).await_end(), "chmod 600");
}

#[test]
fn no_process_of_a_job_has_it_among_its_arguments() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = ringtree(folder.path(), "run --ranks 2 -- sh -c");
    command.arg("echo ${#RINGTREE_SECRET}; exec sleep 1000").env("RINGTREE_SECRET", SECRET);
    let mut job = Program::start(command);
    job.await_line(&format!("[1] {}", SECRET.len()));
    let all = all_arguments();
    assert!(all.iter().any(|text| text.contains("run --ranks 2 -- sh -c")), "{all:?}");
    assert!(!all.iter().any(|text| text.contains(SECRET)), "{all:?}");
}

/// The arguments of all processes of this machine.
fn all_arguments() -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("procfs").flatten();
    // Some have ended meanwhile.
    let arguments = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    arguments.map(|text| String::from_utf8_lossy(&text).replace('\0', " ")).collect()
}

fn all_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        match entry.file_type().expect("a kind").is_dir() {
            true => files.extend(all_files(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}
