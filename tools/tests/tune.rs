//! The command `tune`, and what is chosen by the times that it keeps, by real processes.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

const BENCH: &str = "bench all-reduce --ranks 2 --sizes 1K -n 2 --in-place --explain";

#[test]
fn what_was_measured_is_kept_shown_used_and_forgotten() {
    let caches = Caches::new();
    let ringtree = |arguments: &str| caches.ringtree(arguments);
    let tuned = said(ringtree("tune --ranks 2 --seconds 1"));
    let path = tuned.lines().find_map(|line| line.strip_prefix("# kept in ")).expect("a file");
    assert_eq!(caches.tables(), [PathBuf::from(path)]);
    for collective in ["all-reduce", "broadcast", "barrier", "all-to-all", "scatter"] {
        assert!(tuned.contains(&format!("\n  {collective}")), "{tuned}");
    }
    assert_eq!(said(ringtree("tune --show")).trim_end(), tuned.trim_end());

    let mut reproducible = caches.command(BENCH);
    let reproducible = said(reproducible.env("RINGTREE_REPRODUCIBLE", "1").output().unwrap());
    assert!(reproducible.contains("over shared memory, by measured times:"), "{reproducible}");
    let by_times = said(ringtree(BENCH));
    assert!(by_times.contains("algorithm chosen by measured times"), "{by_times}");
    assert!(by_times.contains("among 2 ranks over shared memory, by measured times:"));
    for (arguments, tuning) in [
        (BENCH, "off"),
        (&BENCH.replace("--ranks 2", "--ranks 3"), "kept"),
        (&format!("{BENCH} --transport tcp"), "kept"),
    ] {
        let mut command = caches.command(arguments);
        let otherwise = said(command.env("RINGTREE_TUNING", tuning).output().unwrap());
        assert!(otherwise.contains("algorithm chosen by size"), "{arguments}: {otherwise}");
        assert!(!otherwise.contains("measured"), "{arguments}: {otherwise}");
    }

    assert!(said(ringtree("tune --forget")).starts_with("removed 1 table from "));
    assert!(caches.tables().is_empty());
    assert!(said(ringtree("tune --show")).starts_with("nothing is kept in "));
    assert!(said(ringtree(BENCH)).contains("algorithm chosen by size"));
}

#[test]
fn under_a_launcher_all_ranks_measure_together() {
    let caches = Caches::new();
    let program = env!("CARGO_BIN_EXE_ringtree");
    let tune = format!("run --ranks 3 --raw -- {program} tune --transport tcp --seconds 0");
    let tuned = said(caches.ringtree(&tune));
    assert!(tuned.starts_with("# 3 ranks on 1 host over TCP, 3 ranks for "), "{tuned}");
    assert_eq!(caches.tables().len(), 1);
    let other = caches.ringtree(&format!("{tune} --ranks 2"));
    assert_eq!(other.status.code(), Some(2));
    assert!(text(&other.stderr).contains("has started 3 ranks: leave --ranks 2 out"), "{other:?}");
}

#[test]
fn a_table_that_cannot_be_used_is_ignored_with_a_warning() {
    let caches = Caches::new();
    said(caches.ringtree("tune --ranks 2 --seconds 0"));
    let path = &caches.tables()[0];
    let table = fs::read_to_string(path).unwrap();
    for (content, why) in [
        (String::from("{"), "it is damaged: EOF"),
        (table.replace("\"format\": 3", "\"format\": 1"), "it is of another version of Ringtree"),
        (
            table.replace("\"ranks\": 2", "\"ranks\": 5"),
            "it was measured among other ranks: 5 ranks",
        ),
    ] {
        assert_ne!(content, table);
        fs::write(path, &content).unwrap();
        let output = caches.ringtree(BENCH);
        let warning = text(&output.stderr);
        assert!(said(output).contains("algorithm chosen by size"), "{why}");
        assert_eq!(warning.lines().count(), 1, "rank 0 alone says it: {warning}");
        let file = format!("the measured times in {} are ignored: ", path.display());
        assert!(warning.contains(&file) && warning.contains(why), "{warning}");
        assert!(warning.contains("measure again with `ringtree tune`"), "{warning}");
        assert_eq!(fs::read_to_string(path).unwrap(), content, "it is left alone");
        let shown = said(caches.ringtree("tune --show"));
        assert!(shown.starts_with(&format!("# {} cannot be used: ", path.display())), "{shown}");
    }
    assert!(said(caches.ringtree("tune --forget")).starts_with("removed 1 table"));
    assert_eq!(text(&caches.ringtree(BENCH).stderr), "");
}

/// Each rank has a cache of its own, and only rank 0's counts: otherwise their calls would not match.
#[test]
fn all_ranks_choose_by_rank_0s_table() {
    let caches = Caches::new();
    said(caches.ringtree("tune --ranks 3 --transport tcp --seconds 0"));
    let table = fs::read_to_string(&caches.tables()[0]).unwrap();
    let name = caches.tables()[0].file_name().unwrap().to_owned();
    // A folder for each algorithm that is the fastest in it.
    let folder = |algorithm: &str| {
        let folder = caches.0.join(algorithm).join("ringtree");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(&name), with_fastest(&table, algorithm)).unwrap();
    };
    ["ring", "doubling"].into_iter().for_each(folder);
    let program = env!("CARGO_BIN_EXE_ringtree");
    let bench = "bench all-reduce --transport tcp --sizes 8 -n 2 --jsonl --in-place";
    for (of_rank_0, of_others, chosen) in
        [("ring", "doubling", "ring"), ("doubling", "ring", "doubling"), ("ring", "none", "ring")]
    {
        let choose = "if [ $RINGTREE_RANK = 0 ]; then cache=$1; else cache=$2; fi";
        let script = format!("{choose}; XDG_CACHE_HOME=$0/$cache exec {program} {bench}");
        let mut command = caches.command("run --ranks 3 --raw -- sh -c");
        command.arg(script).arg(&caches.0).args([of_rank_0, of_others]);
        let record: Value = serde_json::from_str(&said(command.output().unwrap())).unwrap();
        assert_eq!((&record["algorithm"], &record["ok"]), (&chosen.into(), &true.into()));
    }
}

/// The table as if of all-reduces this algorithm had been the fastest by far.
fn with_fastest(table: &str, algorithm: &str) -> String {
    let mut table: Value = serde_json::from_str(table).unwrap();
    let rows = table["times"].as_array_mut().unwrap();
    let row = rows.iter_mut().find(|row| row["collective"] == "all-reduce").unwrap();
    for measured in row["by_algorithm"].as_array_mut().unwrap() {
        let time_ns = if measured["algorithm"] == algorithm { 1 } else { 1_000_000 };
        let times_ns = measured["times_ns"].as_array_mut().unwrap();
        times_ns.iter_mut().for_each(|time| *time = time_ns.into());
    }
    table.to_string()
}

#[test]
fn mistakes_are_told() {
    let caches = Caches::new();
    for (arguments, why) in [
        ("tune --show --ranks 2", "exclude each other"),
        ("tune --show --forget", "exclude each other"),
        ("tune --seconds soon", "not a number of seconds"),
        ("tune --ranks 0", "0 is not in 1..="),
    ] {
        let output = caches.ringtree(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        assert!(text(&output.stderr).contains(why), "{arguments}: {output:?}");
    }
    // What cannot be kept is said, too.
    fs::write(caches.0.join("ringtree"), "no folder").unwrap();
    let output = caches.ringtree("tune --ranks 2 --seconds 0");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot keep times in "), "{output:?}");
}

/// A folder for caches that is removed in the end.
struct Caches(PathBuf);

impl Caches {
    fn new() -> Caches {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringtree-tune-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Caches(folder)
    }

    /// The program with its arguments, where this folder has the user's caches.
    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
        command.args(arguments.split_whitespace()).stdin(Stdio::null());
        command.env("XDG_CACHE_HOME", &self.0).env_remove("RINGTREE_TUNING");
        command
    }

    fn ringtree(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The files of the tables that are kept.
    fn tables(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.0.join("ringtree")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Caches {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a program that must succeed has printed.
fn said(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
