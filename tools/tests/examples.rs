//! The examples of the library, each run as its first lines say.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringtree_tests::namespaces::TwoHosts;
use ringtree_tests::program::{Ended, Program};

/// An example has fewer lines than this.
const LINES: usize = 60;

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tools/ lies in the workspace")
}

/// The folder of the program under test.
fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ringtree")).parent().expect("a program lies in a folder")
}

/// An example's program, built as the program under test was. Who tests the whole workspace has
/// built it already, and this finds that out.
fn example(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--workspace", "--examples", "--locked", "--offline", "--quiet"]);
        build.args(["--target-dir".as_ref(), programs().parent().expect("a target folder")]);
        if programs().ends_with("release") {
            build.arg("--release");
        }
        let status = build.current_dir(workspace()).stdin(Stdio::null()).status();
        assert!(status.expect("cargo runs").success(), "the examples do not build");
    });
    programs().join("examples").join(name)
}

/// Runs an example on so many ranks of this host, to its good end.
fn run(name: &str, ranks: u32) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    command.args(["run", "--ranks", &ranks.to_string(), "--"]).arg(example(name));
    let ended = Program::start(command).await_end();
    assert!(ended.status.success(), "{name}: {ended:#?}");
    ended
}

#[test]
fn average_of_two_processes() {
    let ended = run("average", 2);
    for (rank, given) in ["[1.0, 2.0, 3.0, 4.0]", "[2.0, 4.0, 6.0, 8.0]"].iter().enumerate() {
        assert_eq!(ended.line(&format!("[{rank}] rank {rank} of 2 gives ")), *given);
        assert_eq!(ended.line(&format!("[{rank}] the average is ")), "[1.5, 3.0, 4.5, 6.0]");
    }
}

#[test]
fn survivors_and_replacements_count_on() {
    let folder = tempfile::tempdir().expect("a folder");
    // Each process of a rank adds its number to a file of the rank's.
    let script = format!("echo $$ >> $RINGTREE_RANK; exec {}", example("survive").display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    command.current_dir(&folder).args(["run", "--ranks", "3", "--restart", "1", "--"]);
    command.args(["sh", "-c", &script]);
    let mut program = Program::start(command);
    program.await_line("[1] rank 1 counts");
    let processes = || std::fs::read_to_string(folder.path().join("1")).expect("a file");
    let pid = processes().trim().parse().expect("a process's number");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    let ended = program.await_end();
    assert!(ended.status.success(), "{ended:#?}");
    assert_eq!(processes().lines().count(), 2, "{ended:#?}");
    let counted = ended.lines.iter().filter(|line| line.contains(" of 3 has counted to 100"));
    assert_eq!(counted.count(), 3, "{ended:#?}");
}

#[test]
fn a_model_of_ones_own_learns_the_digits() {
    let ended = run("own_model", 2);
    let line = ended.lines.iter().find_map(|line| line.strip_suffix(" % of 359 digits right"));
    let percent = line.and_then(|line| line.strip_prefix("[0] ")).expect("the share that is right");
    assert!(percent.parse::<f64>().is_ok_and(|percent| percent > 90.0), "{percent}");
}

#[test]
fn gradients_of_any_framework_are_exchanged() {
    let ended = run("any_framework", 3);
    for rank in 0..3 {
        assert_eq!(ended.line(&format!("[{rank}] rank {rank}: ")), "y = 2.000 x + -1.000");
    }
}

#[test]
fn several_ranks_train_as_one_does() {
    let ended = Program::start(Command::new(example("equality"))).await_end();
    assert!(ended.status.success(), "{ended:#?}");
    assert_eq!(ended.lines.iter().filter(|line| line.contains("  bound ")).count(), 18);
}

#[test]
fn asynchronous_calls_give_every_layer_its_average() {
    let ended = run("asynchronous", 2);
    let times = ["one after the other", "overlapped"].map(|what| {
        let line = ended.line(&format!("[0] {what}: "));
        line.strip_suffix(" ms").and_then(|ms| ms.parse::<f64>().ok())
    });
    assert!(times.iter().all(|ms| ms.is_some_and(|ms| ms > 0.0)), "{ended:#?}");
    let averages = "[0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]";
    assert_eq!(ended.line("[0] average gradients of the layers: "), averages);
}

#[test]
fn split_into_rows_and_columns() {
    let ended = run("split", 4);
    for rank in 0..4_u32 {
        let (row, column) = (rank / 2, rank % 2);
        let start = format!("[{rank}] rank {rank} is rank ");
        let row_sum = 4 * row + 1;
        let in_row = format!("{column} of 2 in row {row}, where the ranks add up to {row_sum}");
        assert_eq!(ended.line(&start), in_row);
        let column_sum = 2 * column + 2;
        let start = format!("{start}{row} of 2 in column {column}, ");
        assert_eq!(ended.line(&start), format!("where the ranks add up to {column_sum}"));
    }
}

#[test]
fn several_hosts_share_memory_inside_and_speak_tcp_between() {
    let program = example("several_hosts");
    let Some(bed) = TwoHosts::new(1) else { return };
    let shell = |host: usize, script: &str| {
        let mut command = bed.hosts[host].command("/bin/sh");
        command.args(["-c", script]);
        command.env("PATH", format!("{}:/usr/bin:/bin", programs().display()));
        Program::start(command)
    };
    let rendezvous = format!("{}:29400", bed.hosts[0].address(0));
    let options = format!("--ranks 4 --nodes 2 --rendezvous {rendezvous}");
    let program = program.display();
    let mut first = shell(0, &format!("exec ringtree run {options} -- {program}"));
    let printed = first.await_line("ringtree:   ");
    let second = shell(1, &printed);
    let [first, second] = [first, second].map(Program::await_end);
    assert!(first.status.success() && second.status.success(), "{first:#?} {second:#?}");
    for (rank, reached) in [
        "[1], speaks TCP with [2, 3]",
        "[0], speaks TCP with [2, 3]",
        "[3], speaks TCP with [0, 1]",
        "[2], speaks TCP with [0, 1]",
    ]
    .iter()
    .enumerate()
    {
        let line = first.line(&format!("[0] rank {rank} on "));
        assert!(line.ends_with(&format!(": shares memory with {reached}")), "{first:#?}");
    }
}

#[test]
fn bandwidth_of_every_size() {
    let ended = run("bandwidth", 2);
    let numbers = |line: &String| -> Option<Vec<f64>> {
        line.strip_prefix("[0] ")?.split_whitespace().map(|word| word.parse().ok()).collect()
    };
    let rows: Vec<Vec<f64>> = ended.lines.iter().filter_map(numbers).collect();
    let bytes: Vec<f64> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(bytes, [1024.0, 16384.0, 262144.0, 4194304.0, 16777216.0], "{ended:#?}");
    for row in rows {
        // Two ranks send as many bytes as the buffer has. Both numbers are rounded to the digits
        // that are printed, and the time of the smallest call has few of them.
        let [bytes, us, gb_per_s] = row[..] else { panic!("{row:?}") };
        let least = bytes / (us + 0.006) / 1e3 - 0.0006;
        let most = bytes / (us - 0.006) / 1e3 + 0.0006;
        assert!((least..=most).contains(&gb_per_s), "{row:?} is not within {least} to {most}");
    }
}

/// On the stand-in for the CUDA driver, which has two GPUs.
#[test]
fn two_gpus_of_one_process_add_up_slices_of_cudarc() {
    let mut command = Command::new(example("cudarc"));
    command.env("RINGTREE_CUDA_LIBRARY", ringtree_tests::gpu::stand_in());
    let ended = Program::start(command).await_end();
    assert!(ended.status.success(), "{ended:#?}");
    for (rank, given) in ["[1.0, 2.0, 3.0, 4.0]", "[2.0, 4.0, 6.0, 8.0]"].iter().enumerate() {
        let line = ended.line(&format!("rank {rank} gives {given} on "));
        assert_eq!(line, "Stand-in GPU");
        assert_eq!(ended.line(&format!("rank {rank} has ")), "[3.0, 6.0, 9.0, 12.0]");
    }
}

#[test]
fn without_a_driver_the_example_on_gpus_says_so() {
    let mut command = Command::new(example("cudarc"));
    command.env("RINGTREE_CUDA_LIBRARY", "/nonexistent/libcuda.so.1");
    let ended = Program::start(command).await_end();
    assert!(!ended.status.success(), "{ended:#?}");
    ended.line("Error: no CUDA driver: /nonexistent/libcuda.so.1: ");
}

#[test]
fn examples_are_short_and_say_how_to_start_them() {
    let folder = workspace().join("collectives/examples");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("the folder of the examples") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let lines = text.lines().count();
        assert!(lines < LINES, "{name} has {lines} lines");
        let head: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
        // All but those whose ranks are threads need a launcher.
        let launcher = if name == "cudarc" { "//! target/" } else { "ringtree run --ranks " };
        let starts =
            |line: &&str| line.contains(launcher) && line.ends_with(&format!("/examples/{name}"));
        assert!(head.iter().any(starts), "{name} does not say how it is started: {head:#?}");
        names.push(name);
    }
    names.sort();
    let known =
        ["asynchronous", "average", "bandwidth", "cudarc", "several_hosts", "split", "survive"];
    assert_eq!(names, known);
}
