//! `ringtree run --restart` and `--min-ranks`, by real processes: who is started again, when the job
//! goes on without a rank, how it ends, and that nothing stays behind.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use ringtree_tests::program::{Ended, Program};
use ringtree_tests::ssh::Ssh;
use ringtree_transport::process::PidFd;
use tempfile::TempDir;

/// `ringtree run`, with a script that each rank runs by `shell`.
fn command(options: &[&str], shell: &str, script: &str) -> Command {
    // What ignores signals, as a shell's background job does, has its children ignore them too.
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,QUIT,TERM", env!("CARGO_BIN_EXE_ringtree"), "run"]);
    command.args(options).args(["--", shell, "-c", script]);
    command
}

fn start(options: &[&str], script: &str) -> Program {
    Program::start(command(options, "sh", script))
}

fn run(options: &[&str], script: &str) -> Ended {
    start(options, script).await_end()
}

/// What the launcher said, in order.
fn told(ended: &Ended) -> Vec<&str> {
    ended.lines.iter().filter_map(|line| line.strip_prefix("ringtree: ")).collect()
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// A pipe with a name, at which ranks wait for each other, or for the test.
fn gate(folder: &TempDir, name: &str) -> String {
    let path = folder.path().join(name);
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("a pipe");
    path.to_str().expect("a name").to_owned()
}

#[test]
fn a_rank_that_dies_is_started_again_and_the_job_ends_well() {
    let folder = folder();
    let gates = [gate(&folder, "gate0"), gate(&folder, "gate1")];
    let script = format!(
        "place=$RINGTREE_RANK/$RINGTREE_RANKS/$RINGTREE_LOCAL_RANK
         case $RINGTREE_RANK$RINGTREE_JOIN in
           2) echo $place $RINGTREE_SECRET $RINGTREE_RENDEZVOUS; kill -KILL $$ ;;
           21) echo $place $RINGTREE_SECRET $RINGTREE_RENDEZVOUS; echo >{}; echo >{} ;;
           *) read line <{}/gate$RINGTREE_RANK ;;
         esac",
        gates[0],
        gates[1],
        folder.path().display()
    );
    let mut command = command(&["--ranks", "3", "--restart", "3"], "sh", &script);
    // As if the launcher itself were the rank of a job and had been started again.
    command.env("RINGTREE_JOIN", "1");
    let ended = Program::start(command).await_end();
    assert_eq!(ended.status.code(), Some(0), "{ended:#?}");
    assert_eq!(told(&ended), ["rank 2 was killed by SIGKILL; starting it again (1 of 3) in 0.1 s"]);
    let places: Vec<&String> =
        ended.lines.iter().filter(|it| it.starts_with("[2] 2/3/2")).collect();
    assert_eq!(places.len(), 2, "{ended:#?}");
    assert_eq!(places[0], places[1]);
}

#[test]
fn a_job_ends_when_its_restarts_are_used_up() {
    let script = "[ $RINGTREE_RANK = 1 ] && exit 3; exec sleep 1000";
    let ended = run(&["--ranks", "3", "--restart", "1", "--grace", "0.05"], script);
    assert_eq!(ended.status.code(), Some(3), "{ended:#?}");
    let first = "rank 1 ended with exit status 3; starting it again (1 of 1) in 0.1 s";
    let last = "rank 1 ended with exit status 3; \
                no restart is left of 1: ending the job (2 ranks left, 3 needed)";
    assert_eq!(told(&ended)[..2], [first, last]);
}

#[test]
fn a_rank_that_always_fails_at_once_ends_the_job_early() {
    let script = "[ $RINGTREE_RANK = 1 ] && exit 3; exec sleep 1000";
    let ended = run(&["--ranks", "2", "--restart", "100", "--grace", "0.05"], script);
    assert_eq!(ended.status.code(), Some(3), "{ended:#?}");
    let said = "it has failed within a second of its start 3 times in a row: ending the job";
    assert!(told(&ended).iter().any(|line| line.contains(said)), "{ended:#?}");
}

#[test]
fn a_job_goes_on_without_ranks_that_it_does_not_need() {
    let folder = folder();
    let gate = gate(&folder, "gate");
    let script = format!(
        "case $RINGTREE_RANK in
           0) read line <{gate}; echo done ;;
           *) kill -SEGV $$ ;;
         esac"
    );
    let mut program = start(&["--ranks", "3", "--min-ranks", "1"], &script);
    let said = [program.await_line("ringtree: "), program.await_line("ringtree: ")];
    let why = "was killed by SIGSEGV; \
               it is not started again without --restart: going on without it";
    assert!(said[0].ends_with(&format!("{why} (2 ranks left)")), "{said:?}");
    assert!(said[1].ends_with(&format!("{why} (1 rank left)")), "{said:?}");
    fs::write(&gate, "on\n").expect("a reader");
    let ended = program.await_end();
    assert_eq!(ended.status.code(), Some(0), "{ended:#?}");
    assert_eq!(ended.line("[0] "), "done");
}

#[test]
fn nobody_is_started_again_once_a_rank_is_done() {
    let folder = folder();
    let [started, gate] = ["started", "gate"].map(|name| gate(&folder, name));
    // Rank 1 ends when all ranks are there, rank 0 when the kernel says that rank 1 has ended.
    let script = format!(
        "case $RINGTREE_RANK in
           0) read other <{gate}
              while grep -qs '^State:.[^ZX]' /proc/$other/status; do :; done
              exit 4 ;;
           1) read line <{started}; echo $$ >{gate} ;;
           2) echo here >{started} ;;
         esac"
    );
    let why = "rank 0 ended with exit status 4; it is not started again, since rank 1 is done";
    let ended = run(&["--ranks", "3", "--restart", "5"], &script);
    assert_eq!(ended.status.code(), Some(4), "{ended:#?}");
    assert_eq!(told(&ended)[0], format!("{why}: ending the job (2 ranks left, 3 needed)"));
    let ended = run(&["--ranks", "3", "--restart", "5", "--min-ranks", "2"], &script);
    assert_eq!(ended.status.code(), Some(0), "{ended:#?}");
    assert_eq!(told(&ended), [format!("{why}: going on without it (2 ranks left)")]);
}

#[test]
fn a_rank_that_nobody_could_take_in_is_not_started_again() {
    let ended = run(&["--ranks", "1", "--restart", "5"], "exit 3");
    assert_eq!(ended.status.code(), Some(3), "{ended:#?}");
    let why = "no rank is left that could take it in again: ending the job";
    assert_eq!(told(&ended), [format!("rank 0 ended with exit status 3; {why}")]);
}

#[test]
fn what_a_dead_rank_has_left_is_ended_before_it_is_started_again() {
    let folder = folder();
    let gate = gate(&folder, "gate");
    let file = folder.path().join("process").display().to_string();
    let script = format!(
        "case $RINGTREE_RANK$RINGTREE_JOIN in
           0) read line <{gate} ;;
           1) sleep 1000 & echo $! >{file}; kill -KILL $$ ;;
           11) while kill -0 $(cat {file}) 2>/dev/null; do :; done; echo gone; echo >{gate} ;;
         esac"
    );
    let ended = run(&["--ranks", "2", "--restart", "1"], &script);
    assert_eq!(ended.status.code(), Some(0), "{ended:#?}");
    assert_eq!(ended.line("[1] "), "gone");
}

#[test]
fn a_program_that_has_gone_ends_the_job() {
    let folder = folder();
    let shell = folder.path().join("shell").display().to_string();
    std::os::unix::fs::symlink("/bin/sh", &shell).expect("a link");
    // The last rank: the others have been started by then.
    let script = "[ $RINGTREE_RANK = 2 ] || exec sleep 1000; rm $0; exit 3";
    let mut command =
        command(&["--ranks", "3", "--restart", "9", "--grace", "0.05"], &shell, script);
    command.arg(&shell);
    let ended = Program::start(command).await_end();
    assert_eq!(ended.status.code(), Some(127), "{ended:#?}");
    ended.line(&format!("ringtree: rank 2: cannot start {shell}: No such file"));
    let said =
        "rank 2 ended with exit status 127; it has failed within a second of its start 3 times";
    assert!(told(&ended).iter().any(|line| line.starts_with(said)), "{ended:#?}");
}

/// Three ranks that run until they are killed, with the processes of those, in order, and that of
/// the launcher, which is a child of what the user started.
fn three_ranks() -> (Program, Vec<PidFd>, [Pid; 3], Pid) {
    let options = ["--ranks", "3", "--restart", "9"];
    let mut program = start(&options, "echo $$; exec sleep 1000");
    let mut lines = [(); 3].map(|()| program.await_line("["));
    lines.sort();
    let pids = lines.map(|line| pid_of(line.split_once("] ").expect("a rank").1));
    let open = |pid: &Pid| PidFd::open(pid.as_raw() as u32).expect("a process that runs");
    let guardian = program.pid();
    let children = fs::read_to_string(format!("/proc/{guardian}/task/{guardian}/children"));
    let launcher = pid_of(children.expect("a list").trim());
    (program, pids.iter().map(open).collect(), pids, launcher)
}

fn pid_of(text: &str) -> Pid {
    Pid::from_raw(text.parse().expect("a process id"))
}

fn assert_gone(processes: &[PidFd]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    for process in processes {
        assert!(process.wait_ended(deadline).expect("a process"), "a process stays behind");
    }
}

#[test]
fn a_signal_ends_a_job_that_waits_to_start_a_rank() {
    let (program, processes, pids, launcher) = three_ranks();
    // While it is stopped both happen, and it learns of them one right after the other.
    kill(launcher, Signal::SIGSTOP).expect("the launcher");
    let status = format!("/proc/{launcher}/status");
    while !fs::read_to_string(&status).expect("a status").contains("\nState:\tT") {}
    kill(pids[1], Signal::SIGKILL).expect("a rank");
    assert_gone(&processes[1..2]);
    kill(launcher, Signal::SIGTERM).expect("the launcher");
    kill(launcher, Signal::SIGCONT).expect("the launcher");
    let ended = program.await_end();
    assert_eq!(ended.status.code(), Some(128 + Signal::SIGTERM as i32), "{ended:#?}");
    let waits = "rank 1 was killed by SIGKILL; starting it again (1 of 9) in 0.1 s";
    assert_eq!(told(&ended)[..2], [waits, "SIGTERM: rank 1 is not started again"], "{ended:#?}");
    assert_gone(&processes);
}

#[test]
fn nothing_outlives_a_launcher_that_is_killed_while_it_waits_to_start_a_rank() {
    let (mut program, processes, pids, launcher) = three_ranks();
    kill(pids[1], Signal::SIGKILL).expect("a rank");
    program.await_line("ringtree: rank 1 was killed by SIGKILL; starting it again");
    kill(launcher, Signal::SIGKILL).expect("the launcher");
    assert_gone(&processes);
    // Whoever has its output has ended, too: a rank that was started again would have.
    let ended = program.await_end();
    assert_eq!(ended.status.code(), Some(128 + Signal::SIGKILL as i32), "{ended:#?}");
    ended.line("ringtree: the launcher was killed by SIGKILL: ending all ranks");
}

/// Hosts a and b, which are this one.
fn two_hosts(test: &str) -> Ssh {
    Ssh::new(test, |host| {
        let mut shell = Command::new("/bin/sh");
        shell.env_clear().env("PATH", "/usr/bin:/bin");
        ["a", "b"].contains(&host).then_some(shell)
    })
}

#[test]
fn each_host_starts_its_own_ranks_again() {
    let ssh = two_hosts("restart");
    let folder = folder();
    let gate = gate(&folder, "gate");
    let script = format!(
        "case $RINGTREE_RANK$RINGTREE_JOIN in
           0) read line <{gate} ;;
           1) exit 3 ;;
           11) echo again on $RINGTREE_LOCAL_RANK; echo >{gate} ;;
         esac"
    );
    let options = ["--ssh", &ssh.program(), "--hosts", "a,b", "--restart", "1"];
    let ended = run(&options, &script);
    assert_eq!(ended.status.code(), Some(0), "{ended:#?}");
    let said = "rank 1 ended with exit status 3; starting it again (1 of 1) in 0.1 s";
    assert_eq!(told(&ended), [said]);
    assert_eq!(ended.line("[1] "), "again on 0");
}

#[test]
fn a_host_with_too_few_ranks_ends_the_job() {
    let ssh = two_hosts("few");
    let script = "[ $RINGTREE_RANK = 2 ] && exit 3; exec sleep 1000";
    let options = ["--ssh", &ssh.program(), "--hosts", "a:2,b:1", "--min-ranks", "1"];
    let ended = run(&[&options[..], &["--grace", "0.05"]].concat(), script);
    assert_eq!(ended.status.code(), Some(3), "{ended:#?}");
    ended.line("ringtree: rank 2 ended with exit status 3; it is not started again without");
    ended.line("ringtree: host b failed first: exit status 3");
}

#[test]
fn limits_that_do_not_fit_are_mistakes() {
    for (options, said) in [
        (
            &["--ranks", "3", "--min-ranks", "4"][..],
            "--min-ranks 4 is not between 1 and 3, the ranks of the job",
        ),
        (
            &["--hosts", "a:2,b:1", "--min-ranks", "2"],
            "--min-ranks 2 is not between 1 and 1, the ranks of the host with the fewest",
        ),
        (
            &["--ranks", "3", "--nodes", "2", "--rendezvous", "127.0.0.1:0", "--min-ranks", "2"],
            "--min-ranks 2 is not between 1 and 1, the ranks of the host with the fewest",
        ),
    ] {
        let ended = run(options, "echo started");
        assert_eq!(ended.status.code(), Some(2), "{options:?}: {ended:#?}");
        assert!(ended.lines[0].contains(said), "{options:?}: {ended:#?}");
    }
}
