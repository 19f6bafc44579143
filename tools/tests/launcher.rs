//! `ringtree run`, by real processes: statuses, output, signals, and that nothing stays behind.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No wait of these tests is expected to come near this.
const LIMIT_MS: u16 = 60_000;

#[test]
fn success_is_passed_on() {
    let output = run(&["--ranks", "3"], "echo hello");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(sorted_lines(&output.stdout), ["[0] hello", "[1] hello", "[2] hello"]);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn the_first_failure_is_named_and_its_status_passed_on() {
    for (script, code, how) in [
        ("[ $RINGTREE_RANK = 1 ] && exit 3; sleep 1000", 3, "exit status 3"),
        ("[ $RINGTREE_RANK = 1 ] && kill -SEGV $$; sleep 1000", 139, "killed by SIGSEGV"),
        ("[ $RINGTREE_RANK = 1 ] && kill -KILL $$; sleep 1000", 137, "killed by SIGKILL"),
    ] {
        let output = run(&["--ranks", "3", "--grace", "0.05"], script);
        assert_eq!(output.status.code(), Some(code), "{script}");
        let said = text(&output.stderr);
        let first = said.lines().next().unwrap();
        assert!(first.starts_with("ringtree: rank 1 (process "), "{said}");
        assert!(first.ends_with(&format!("failed first: {how}")), "{said}");
    }
}

#[test]
fn the_first_failure_is_the_first_in_time() {
    let folder = Folder::new("first");
    let (started, fifo) = (folder.fifo("started"), folder.fifo("fifo"));
    // Rank 1 ends when all ranks are there, rank 0 when the kernel says that rank 1 has ended.
    let script = format!(
        "case $RINGTREE_RANK in
           0) read other <{fifo}
              while grep -qs '^State:.[^ZX]' /proc/$other/status; do :; done
              exit 4 ;;
           1) read line <{started}; echo $$ >{fifo}; exit 5 ;;
           2) echo here >{started} ;;
         esac"
    );
    let output = run(&["--ranks", "3"], &script);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("rank 1"));
}

/// It ends last, and not by itself: the others give up because of it.
#[test]
fn a_stopped_rank_is_named_and_not_the_one_that_waited() {
    for (transport, status, says) in [
        ("shm", 128 + Signal::SIGKILL as i32, "killed by SIGKILL by its peers"),
        ("tcp", 1, "failed first: exit status 1, because of rank 1"),
    ] {
        let script = format!(
            "[ $RINGTREE_RANK = 1 ] && echo $$; RINGTREE_TIMEOUT=1 exec {} bench all-reduce \
             --transport {transport} --in-place --sizes 8,4M -n 20000 -w 1 -c 0 --jsonl",
            env!("CARGO_BIN_EXE_ringtree")
        );
        let mut command = command(&["--ranks", "3", "--grace", "0.05"], &script);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut launcher = Launcher { child };
        let mut stdout = launcher.take_output();
        let pid = stdout.next_line().strip_prefix("[1] ").unwrap().parse().unwrap();
        // Behind the first row the second one is measured, for long.
        assert!(stdout.next_line().starts_with("[0] {"));
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        let mut stderr = launcher.child.stderr.take().unwrap();
        assert_eq!(launcher.wait(), Some(status), "{transport}");
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        let first = said.lines().find(|line| line.contains("failed first")).unwrap_or_default();
        assert!(first.contains(says), "{transport}: {said}");
        assert!(said.contains(&format!("rank 1 (process {pid} on ")), "{transport}: {said}");
    }
}

#[test]
fn ranks_may_end_by_themselves_after_a_failure() {
    let folder = Folder::new("grace");
    let fifo = folder.fifo("fifo");
    let script = format!(
        "if [ $RINGTREE_RANK = 0 ]; then read line <{fifo}; echo saved; else exec 3>{fifo}; exit 9; fi"
    );
    let output = run(&["--ranks", "2", "--grace", "600"], &script);
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(text(&output.stdout), "[0] saved\n");
}

#[test]
fn ranks_that_ignore_a_failure_are_asked_and_then_killed() {
    let script = "[ $RINGTREE_RANK = 0 ] && exit 1
                  [ $RINGTREE_RANK = 1 ] && { trap 'echo asked; exit 0' TERM; sleep 1000 & wait; }
                  trap '' TERM; sleep 1000";
    let output = run(&["--ranks", "3", "--grace", "0.5"], script);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "[1] asked\n");
    let said = text(&output.stderr);
    assert!(said.contains("rank 1, 2: sending SIGTERM"), "{said}");
    assert!(said.contains("rank 2: sending SIGKILL"), "{said}");
}

#[test]
fn a_program_that_cannot_be_started_is_named() {
    let output = ringtree(&["run", "--ranks", "2", "--", "/no/such/program"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output.stderr).starts_with("ringtree: cannot start /no/such/program: "));
    let output = ringtree(&["run", "--ranks", "2", "--", "/etc/passwd"]).output().unwrap();
    assert_eq!(output.status.code(), Some(126));
}

#[test]
fn each_rank_knows_its_place() {
    let script = "echo $RINGTREE_RANK/$RINGTREE_RANKS/$RINGTREE_LOCAL_RANK";
    let output = run(&["--ranks", "2"], script);
    assert_eq!(sorted_lines(&output.stdout), ["[0] 0/2/0", "[1] 1/2/1"]);
}

#[test]
fn a_bound_rank_stays_on_its_core() {
    let script = "grep Cpus_allowed_list /proc/self/status";
    let free = sorted_lines(&run(&["--ranks", "2"], script).stdout);
    let bound = sorted_lines(&run(&["--ranks", "2", "--bind", "core"], script).stdout);
    let allowed = |line: &String| line.rsplit('\t').next().unwrap_or_default().to_owned();
    assert_eq!(allowed(&free[0]), allowed(&free[1]));
    assert!(
        allowed(&bound[0]).split([',', '-']).all(|cpu| cpu.parse::<u32>().is_ok()),
        "{bound:?}"
    );
    // On a machine with a single core both get that one.
    let cores = std::thread::available_parallelism().unwrap().get();
    assert!(cores == 1 || allowed(&bound[0]) != allowed(&free[0]), "{free:?} {bound:?}");
}

#[test]
fn an_environment_that_is_not_text_reaches_the_ranks() {
    let script = r#"[ "$NAME" = "$(printf '\377')" ] && echo same"#;
    let output = command(&["--ranks", "1"], script)
        .env("NAME", OsStr::from_bytes(b"\xff"))
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "[0] same\n", "{}", text(&output.stderr));
}

#[test]
fn the_secret_is_in_the_environment_and_in_no_argument() {
    let script = r"echo ${#RINGTREE_SECRET} ${RINGTREE_RENDEZVOUS%:*}
        case $(cat /proc/$PPID/cmdline /proc/$$/cmdline | tr -d '\0') in
          *$RINGTREE_SECRET*) echo leaked ;;
        esac";
    let output = run(&["--ranks", "1"], script);
    assert_eq!(text(&output.stdout), "[0] 64 127.0.0.1\n");
}

#[test]
fn a_given_secret_is_kept() {
    let output =
        command(&["--ranks", "1"], "echo $RINGTREE_SECRET").env("RINGTREE_SECRET", "mine").output();
    assert_eq!(text(&output.unwrap().stdout), "[0] mine\n");
}

#[test]
fn a_secret_file_that_others_may_read_is_refused() {
    let folder = Folder::new("secret");
    let path = folder.0.join("secret");
    fs::write(&path, "mine").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let output =
        command(&["--ranks", "1"], "echo started").env("RINGTREE_SECRET_FILE", &path).output();
    let output = output.unwrap();
    assert_ne!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "");
    assert!(text(&output.stderr).contains("chmod 600"), "{}", text(&output.stderr));
}

#[test]
fn the_printed_command_starts_the_ranks_of_another_host() {
    let folder = Folder::new("hosts");
    let gate = folder.fifo("gate");
    let script = format!(
        "echo $RINGTREE_RANK/$RINGTREE_RANKS/$RINGTREE_LOCAL_RANK at $RINGTREE_RENDEZVOUS
         [ $RINGTREE_RANK != 0 ] || read line <{gate}"
    );
    let options = ["--ranks", "3", "--nodes", "2", "--rendezvous", "127.0.0.1:0"];
    let mut first = command(&options, &script)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map(|child| Launcher { child })
        .unwrap();
    let mut said = BufReader::new(first.child.stderr.take().unwrap()).lines();
    let intro = said.next().unwrap().unwrap();
    assert!(intro.contains("secret is in "), "{intro}");
    let mut printed = said.next().unwrap().unwrap();
    while printed.matches('\'').count() % 2 == 1 {
        printed = printed + "\n" + &said.next().unwrap().unwrap();
    }
    let printed = printed.strip_prefix("ringtree:   ").unwrap();
    let (file, _) = printed.strip_prefix("RINGTREE_SECRET_FILE=").unwrap().split_once(' ').unwrap();
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);

    let program = std::path::Path::new(env!("CARGO_BIN_EXE_ringtree"));
    let other = Command::new("sh")
        .args(["-c", printed])
        .env("PATH", format!("{}:/usr/bin:/bin", program.parent().unwrap().display()))
        .output()
        .unwrap();
    assert_eq!(other.status.code(), Some(0), "{}", text(&other.stderr));
    File::options().write(true).open(gate).unwrap();
    let mut here = first.take_output();
    let mut lines = [here.next_line(), here.next_line()];
    lines.sort();
    assert_eq!(first.wait(), Some(1), "rank 0 read an end of file");
    let place = lines[0].strip_prefix("[0] 0/3/0").unwrap();
    assert!(place.starts_with(" at 127.0.0.1:") && !place.ends_with(":0"), "{place}");
    assert_eq!(lines[1], format!("[1] 1/3/1{place}"));
    assert_eq!(text(&other.stdout), format!("[2] 2/3/0{place}\n"));
    assert!(!fs::exists(file).unwrap(), "the secret file is removed");
}

#[test]
fn hosts_that_do_not_fit_are_mistakes() {
    for (options, said) in [
        (&["--ranks", "2", "--nodes", "3"][..], "--nodes 3 does not fit --ranks 2"),
        (&["--ranks", "2", "--nodes", "2"], "several hosts need --rendezvous"),
        (&["--ranks", "2", "--node-rank", "1"], "--node-rank 1 is not below --nodes 1"),
        (
            &["--ranks", "2", "--nodes", "2", "--rendezvous", "here"],
            "--rendezvous here is not HOST:PORT",
        ),
        (
            &["--ranks", "2", "--nodes", "2", "--node-rank", "1", "--rendezvous", "127.0.0.1:9"],
            "set RINGTREE_SECRET_FILE",
        ),
    ] {
        let output = run(options, "echo started");
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "");
    }
}

#[test]
fn output_keeps_its_stream_its_bytes_and_its_last_line() {
    let output = run(&["--ranks", "1"], r"printf 'a\n\377\000b\nlast'; printf 'oops' >&2");
    assert_eq!(output.stdout, b"[0] a\n[0] \xff\x00b\n[0] last\n");
    assert_eq!(output.stderr, b"[0] oops\n");
}

#[test]
fn nothing_is_read_from_standard_input() {
    let output = run(&["--ranks", "2"], "cat; echo end");
    assert_eq!(sorted_lines(&output.stdout), ["[0] end", "[1] end"]);
}

#[test]
fn raw_output_of_rank_0_has_no_prefix() {
    let output = run(&["--ranks", "2", "--raw"], "echo $RINGTREE_RANK; echo e >&2");
    assert_eq!(sorted_lines(&output.stdout), ["0", "[1] 1"]);
    assert_eq!(sorted_lines(&output.stderr), ["[1] e", "e"]);
}

#[test]
fn lines_of_many_ranks_do_not_mix() {
    let script = "i=0; while [ $i -lt 50 ]; do
                    echo $RINGTREE_RANK-$i-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
                    i=$((i + 1)); done";
    let output = run(&["--ranks", "64"], script);
    assert_eq!(output.status.code(), Some(0));
    let mut next = vec![0; 64];
    for line in text(&output.stdout).lines() {
        let (prefix, rest) = line.split_once(' ').unwrap();
        let rank: usize = prefix.trim_matches(['[', ']']).parse().unwrap();
        assert_eq!(rest, format!("{rank}-{}-{}", next[rank], "x".repeat(50)));
        next[rank] += 1;
    }
    assert_eq!(next, vec![50; 64]);
}

#[test]
fn all_that_can_be_printed_is_printed_though_something_else_cannot() {
    let folder = Folder::new("full");
    let (started, go) = (folder.fifo("started"), folder.fifo("go"));
    // So much that it fits into the rank's pipe, and with prefixes not into the launcher's.
    let script = format!("echo $$ >{started}; read line <{go}; echo lost; seq 10000 >&2");
    let mut command = command(&["--ranks", "1"], &script);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    let mut launcher = Launcher { child: command.stderr(Stdio::piped()).spawn().unwrap() };
    let pid = fs::read_to_string(&started).unwrap();
    let rank = pidfd(Pid::from_raw(pid.trim().parse().unwrap()));
    fs::write(&go, "now\n").unwrap();
    wait_for_end(&rank);
    // It must not end before all is read, however long that takes.
    let end = pidfd(Pid::from_raw(launcher.child.id() as i32));
    let mut fds = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, 300_u16), Ok(0), "the launcher has ended");
    let mut said = String::new();
    launcher.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said.lines().filter(|line| line.starts_with("[0] ")).count(), 10_000);
    assert!(said.contains("cannot pass on what the ranks print"));
    assert_eq!(launcher.wait(), Some(1));
}

#[test]
fn a_closed_output_ends_the_job() {
    let mut launcher = start(&["--ranks", "2"], "while :; do echo y; done");
    let mut stdout = launcher.take_output();
    stdout.next_line();
    drop(stdout);
    assert_eq!(launcher.wait(), Some(128 + Signal::SIGPIPE as i32));
}

#[test]
fn signals_are_passed_on() {
    for (signal, name) in [(Signal::SIGINT, "INT"), (Signal::SIGTERM, "TERM")] {
        let script =
            format!("trap 'echo got {name}; exit 7' {name}; echo ready; sleep 1000 & wait");
        let mut launcher = start(&["--ranks", "2"], &script);
        let mut stdout = launcher.take_output();
        stdout.expect_both("ready");
        launcher.signal(signal);
        stdout.expect_both(&format!("got {name}"));
        assert_eq!(launcher.wait(), Some(7));
    }
}

#[test]
fn a_signal_that_ends_the_ranks_gives_the_usual_status() {
    let mut launcher = start(&["--ranks", "2"], "echo ready; exec sleep 1000");
    let mut stdout = launcher.take_output();
    stdout.expect_both("ready");
    launcher.signal(Signal::SIGINT);
    assert_eq!(launcher.wait(), Some(130));
}

#[test]
fn a_second_signal_kills() {
    let mut launcher = start(&["--ranks", "2"], "trap '' TERM INT; echo ready; sleep 1000");
    let mut stdout = launcher.take_output();
    stdout.expect_both("ready");
    launcher.signal(Signal::SIGTERM);
    launcher.signal(Signal::SIGINT);
    assert_eq!(launcher.wait(), Some(137));
}

#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let program = env!("CARGO_BIN_EXE_ringtree");
    let rank = "trap 'exit 5' TERM; trap 'exit 6' HUP; echo ready; sleep 1000 & wait";
    let script = format!("trap '' HUP; exec {program} run --ranks 2 -- sh -c \"{rank}\"");
    let child = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut launcher = Launcher { child };
    let mut stdout = launcher.take_output();
    stdout.expect_both("ready");
    launcher.signal(Signal::SIGHUP);
    launcher.signal(Signal::SIGTERM);
    assert_eq!(launcher.wait(), Some(5));
}

/// A rank that prints the launcher's process, its own, and that of a child in another session.
const FAMILY: &str = "setsid sleep 1000 & echo $PPID $$ $!; exec sleep 1000";

#[test]
fn nothing_outlives_a_job() {
    let folder = Folder::new("job");
    let gates = [folder.fifo("0"), folder.fifo("1")];
    let gate = gates[0].strip_suffix('0').unwrap();
    let script =
        format!("setsid sleep 1000 & echo $PPID $$ $!; read line <{gate}$RINGTREE_RANK; exit 0");
    let mut launcher = start(&["--ranks", "2"], &script);
    let mut stdout = launcher.take_output();
    let family = stdout.processes();
    for gate in gates {
        // Opened and closed again: the rank reads the end and goes on.
        File::options().write(true).open(gate).unwrap();
    }
    assert_eq!(launcher.wait(), Some(0));
    family.expect_gone();
}

#[test]
fn nothing_outlives_a_killed_guardian() {
    let mut launcher = start(&["--ranks", "2"], FAMILY);
    let mut stdout = launcher.take_output();
    let family = stdout.processes();
    launcher.signal(Signal::SIGKILL);
    family.expect_gone();
    launcher.wait();
}

#[test]
fn nothing_outlives_a_killed_launcher() {
    let mut launcher = start(&["--ranks", "2"], FAMILY);
    let mut stdout = launcher.take_output();
    let family = stdout.processes();
    kill(family.launcher, Signal::SIGKILL).unwrap();
    family.expect_gone();
    assert_eq!(launcher.wait(), Some(137));
}

#[test]
fn what_ran_before_is_left_alone() {
    let program = env!("CARGO_BIN_EXE_ringtree");
    let script = format!("sleep 1000 & echo $!; exec {program} run --ranks 1 -- true");
    let child = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut launcher = Launcher { child };
    let mut stdout = launcher.take_output();
    let sidecar = Pid::from_raw(stdout.next_line().parse().unwrap());
    assert_eq!(launcher.wait(), Some(0));
    kill(sidecar, Signal::SIGKILL).expect("the other process still runs");
}

fn ringtree(arguments: &[&str]) -> Command {
    // What ignores signals, as a shell's background job does, has its children ignore them too.
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,QUIT,TERM", env!("CARGO_BIN_EXE_ringtree")]);
    command.args(arguments).stdin(Stdio::null());
    command
}

fn command(options: &[&str], script: &str) -> Command {
    let mut command = ringtree(&["run"]);
    command.args(options).args(["--", "sh", "-c", script]);
    command
}

/// Runs a shell script as every rank.
fn run(options: &[&str], script: &str) -> Output {
    command(options, script).output().unwrap()
}

fn start(options: &[&str], script: &str) -> Launcher {
    Launcher { child: command(options, script).stdout(Stdio::piped()).spawn().unwrap() }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn sorted_lines(bytes: &[u8]) -> Vec<String> {
    let mut lines: Vec<String> = text(bytes).lines().map(Into::into).collect();
    lines.sort();
    lines
}

/// A launcher that runs; killed if the test fails.
struct Launcher {
    child: Child,
}

impl Launcher {
    fn take_output(&mut self) -> Lines {
        Lines(BufReader::new(self.child.stdout.take().unwrap()))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn wait(&mut self) -> Option<i32> {
        wait_for_end(&pidfd(Pid::from_raw(self.child.id() as i32)));
        self.child.wait().unwrap().code()
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a launcher prints.
struct Lines(BufReader<ChildStdout>);

impl Lines {
    fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().into()
    }

    /// The next two lines are `what`, from ranks 0 and 1 in either order.
    fn expect_both(&mut self, what: &str) {
        let mut lines = [self.next_line(), self.next_line()];
        lines.sort();
        assert_eq!(lines, [format!("[0] {what}"), format!("[1] {what}")]);
    }

    /// What two ranks print about their family.
    fn processes(&mut self) -> Family {
        let mut launcher = None;
        let mut ends = Vec::new();
        for _ in 0..2 {
            let line = self.next_line();
            let pids: Vec<Pid> =
                line.split(' ').skip(1).map(|word| Pid::from_raw(word.parse().unwrap())).collect();
            launcher = Some(pids[0]);
            ends.extend(pids.into_iter().map(pidfd));
        }
        Family { launcher: launcher.unwrap(), ends }
    }
}

struct Family {
    launcher: Pid,
    ends: Vec<OwnedFd>,
}

impl Family {
    fn expect_gone(&self) {
        assert_eq!(self.ends.len(), 6);
        self.ends.iter().for_each(wait_for_end);
    }
}

fn pidfd(pid: Pid) -> OwnedFd {
    // SAFETY: takes two integers, and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    assert!(fd >= 0, "no process {pid}");
    // SAFETY: the kernel has just made it for us.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn wait_for_end(process: &OwnedFd) {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, LIMIT_MS), Ok(1), "a process does not end");
}

/// A folder of a test, removed at its end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("ringtree-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.0.join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.to_str().unwrap().into()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
