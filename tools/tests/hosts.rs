//! `ringtree run --hosts`, with a stand-in for ssh: statuses, output, signals, and that nothing
//! stays behind on any host.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringtree_tests::namespaces::TwoHosts;
use ringtree_tests::program::{Ended, Program};
use ringtree_tests::ssh::Ssh;
use ringtree_transport::process::PidFd;

/// Prints where a rank is.
const WHERE: &str = "echo $HOST $RINGTREE_RANK/$RINGTREE_RANKS/$RINGTREE_LOCAL_RANK";

/// Hosts a and b, which are this one: each has a variable with its name and nothing else in its
/// environment.
fn two_hosts(test: &str) -> Ssh {
    Ssh::new(test, |host| {
        let mut shell = Command::new("/bin/sh");
        shell.env_clear().env("PATH", "/usr/bin:/bin").env("HOST", host);
        ["a", "b"].contains(&host).then_some(shell)
    })
}

/// `ringtree run` with a stand-in for ssh, and a script that each rank runs.
fn command(ssh: &str, options: &[&str], script: &str) -> Command {
    // What ignores signals, as a shell's background job does, has its children ignore them too.
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,QUIT,TERM", env!("CARGO_BIN_EXE_ringtree")]);
    command.args(["run", "--ssh", ssh]).args(options).args(["--", "sh", "-c", script]);
    command
}

fn start(ssh: &Ssh, options: &[&str], script: &str) -> Program {
    Program::start(command(&ssh.program(), options, script))
}

fn run(ssh: &Ssh, options: &[&str], script: &str) -> Ended {
    start(ssh, options, script).await_end()
}

/// What ranks printed, and launchers, sorted.
fn sorted(ended: &Ended) -> Vec<&str> {
    let mut lines: Vec<&str> = ended.lines.iter().map(String::as_str).collect();
    lines.sort_unstable();
    lines
}

fn pidfd(pid: &str) -> PidFd {
    PidFd::open(pid.parse().expect("a process id")).expect("a process that runs")
}

fn assert_gone(processes: &[PidFd]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    for process in processes {
        assert!(process.wait_ended(deadline).expect("a process"), "a process stays behind");
    }
}

#[test]
fn ranks_run_on_the_hosts_of_a_list_or_a_file() {
    let ssh = two_hosts("list");
    let file = ssh.path("hosts");
    fs::write(&file, "# two hosts\na slots=2\nb:2\n").unwrap();
    let file = file.to_str().unwrap();
    let expected = ["[0] a 0/3/0", "[1] a 1/3/1", "[2] b 2/3/0"];
    for options in [&["--hosts", "a:2,b"][..], &["--hostfile", file, "--ranks", "3"]] {
        let ended = run(&ssh, options, WHERE);
        assert_eq!((ended.status.code(), sorted(&ended)), (Some(0), expected.to_vec()));
    }
}

#[test]
fn settings_and_folder_are_those_of_the_caller_and_other_variables_are_not() {
    let ssh = two_hosts("settings");
    let folder = fs::canonicalize(std::env::temp_dir()).unwrap();
    let script = "echo $RINGTREE_TIMEOUT $RINGTREE_JOB ${OTHER-none} $RINGTREE_ADVERTISE; pwd";
    let mut command = command(&ssh.program(), &["--hosts", "b", "--job", "it's mine"], script);
    command.env("RINGTREE_TIMEOUT", "7").env("OTHER", "x").env("RINGTREE_ADVERTISE", "here");
    command.current_dir(&folder);
    let ended = Program::start(command).await_end();
    assert_eq!(ended.lines, ["[0] 7 it's mine none", &format!("[0] {}", folder.display())]);
}

#[test]
fn the_secret_reaches_every_host_and_is_in_no_argument() {
    let ssh = two_hosts("secret");
    let script = r"echo ${#RINGTREE_SECRET}
        case $(cat /proc/[0-9]*/cmdline 2>&- | tr -d '\0') in
          *$RINGTREE_SECRET*) echo leaked ;;
        esac";
    let ended = run(&ssh, &["--hosts", "a,b"], script);
    assert_eq!(sorted(&ended), ["[0] 64", "[1] 64"]);

    let file = ssh.path("mine");
    fs::write(&file, "from a file\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let script = "echo $RINGTREE_SECRET${RINGTREE_SECRET_FILE+ and a file}";
    let given = [("RINGTREE_SECRET", "given"), ("RINGTREE_SECRET_FILE", file.to_str().unwrap())];
    for (given, secret) in [(&given[..1], "given"), (&given[1..], "from a file")] {
        let mut command = command(&ssh.program(), &["--hosts", "a,b"], script);
        command.envs(given.iter().copied());
        let ended = Program::start(command).await_end();
        assert_eq!(sorted(&ended), [format!("[0] {secret}"), format!("[1] {secret}")]);
    }
}

#[test]
fn the_first_failure_ends_all_hosts_and_is_passed_on() {
    let ssh = two_hosts("failure");
    let script = "[ $RINGTREE_RANK = 2 ] && { read line <$GATE; exit 3; }
                  echo $PPID $$; [ $RINGTREE_RANK = 0 ] && echo >$GATE; exec sleep 1000";
    let gate = ssh.path("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = script.replace("$GATE", gate.to_str().unwrap());
    let mut program = start(&ssh, &["--hosts", "a:2,b:2", "--grace", "0.05"], &script);
    let pids = ["[0] ", "[1] ", "[3] "].map(|_| program.await_line("["));
    let pids = pids.iter().flat_map(|line| line.split(' ').skip(1).map(pidfd).collect::<Vec<_>>());
    let processes: Vec<PidFd> = pids.collect();
    let ended = program.await_end();
    assert_eq!(ended.status.code(), Some(3), "{ended:#?}");
    assert!(ended.line("ringtree: rank 2 (process ").ends_with("failed first: exit status 3"));
    assert_eq!(ended.line("ringtree: host b failed first: "), "exit status 3");
    assert_eq!(processes.len(), 6);
    assert_gone(&processes);
}

/// The others fail because of it, and may be done before its host is.
#[test]
fn the_host_of_the_rank_that_the_others_name_is_the_first() {
    let ssh = two_hosts("verdict");
    let script = format!(
        "[ $RINGTREE_RANK = 2 ] && echo $$; exec {} bench all-reduce --transport tcp --in-place \
         --sizes 8,4M -n 1000 -w 1 -c 0 --jsonl",
        env!("CARGO_BIN_EXE_ringtree")
    );
    let mut program = start(&ssh, &["--hosts", "a:2,b:2"], &script);
    let pid: i32 = program.await_line("[2] ").parse().unwrap();
    program.await_line("[0] {");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let ended = program.await_end();
    assert_eq!(ended.status.code(), Some(137), "{ended:#?}");
    assert_eq!(ended.line("ringtree: host b failed first: "), "exit status 137");
}

#[test]
fn a_host_that_ssh_does_not_reach_ends_the_job() {
    let ssh = two_hosts("unreached");
    let ended = run(&ssh, &["--hosts", "a,nowhere", "--grace", "0.05"], "exec sleep 1000");
    assert_eq!(ended.status.code(), Some(255), "{ended:#?}");
    ended.line("ssh: connect to host nowhere");
    let said = ended.line("ringtree: host nowhere failed first: exit status 255");
    assert!(said.contains("ssh's own where it cannot connect"), "{said}");
}

#[test]
fn an_ssh_that_is_not_there_is_named() {
    let ended = Program::start(command("/no/such/ssh", &["--hosts", "a"], "echo started"));
    let ended = ended.await_end();
    assert_eq!(ended.status.code(), Some(2), "{ended:#?}");
    ended.line("ringtree: cannot start a launcher on host a: No such file");
    let ended = Program::start(command("/no/such/ssh", &["--hosts", "localhost:2"], "echo here"));
    let ended = ended.await_end();
    assert_eq!(sorted(&ended), ["[0] here", "[1] here"], "this host needs no ssh");
}

#[test]
fn a_program_that_a_host_cannot_start_is_named() {
    let ssh = two_hosts("program");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    command.args(["run", "--ssh", &ssh.program(), "--hosts", "a,b", "--", "/no/such/program"]);
    let ended = Program::start(command).await_end();
    assert_eq!(ended.status.code(), Some(127), "{ended:#?}");
    ended.line("ringtree: cannot start /no/such/program: ");
}

#[test]
fn signals_reach_the_ranks_of_every_host() {
    let ssh = two_hosts("signals");
    let script = "trap 'echo got INT; exit 7' INT; echo ready; sleep 1000 & wait";
    let mut program = start(&ssh, &["--hosts", "a,b"], script);
    (0..2).for_each(|_| drop(program.await_line("[")));
    kill(Pid::from_raw(program.pid() as i32), Signal::SIGINT).unwrap();
    let ended = program.await_end();
    assert_eq!(ended.status.code(), Some(7), "{ended:#?}");
    for rank in [0, 1] {
        ended.line(&format!("[{rank}] got INT"));
    }
}

#[test]
fn a_second_signal_kills_the_ranks_of_every_host() {
    let ssh = two_hosts("second");
    let script = "trap '' TERM INT; echo $$; sleep 1000";
    let mut program = start(&ssh, &["--hosts", "a,b"], script);
    let ranks = [(); 2].map(|()| program.await_line("[").split(' ').skip(1).map(pidfd).next());
    let ranks: Vec<PidFd> = ranks.into_iter().flatten().collect();
    let launcher = Pid::from_raw(program.pid() as i32);
    kill(launcher, Signal::SIGTERM).unwrap();
    kill(launcher, Signal::SIGINT).unwrap();
    assert_eq!(program.await_end().status.code(), Some(137));
    assert_eq!(ranks.len(), 2);
    assert_gone(&ranks);
}

#[test]
fn a_closed_output_ends_all_hosts_without_a_word() {
    let ssh = two_hosts("closed");
    let mut command = command(&ssh.program(), &["--hosts", "a,b"], "while :; do echo y; done");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// A rank that prints its launcher's process, its own, and that of a child in another session.
const FAMILY: &str = "setsid sleep 1000 & echo $PPID $$ $!; exec sleep 1000";

#[test]
fn nothing_outlives_a_killed_launcher_on_any_host() {
    let ssh = two_hosts("killed");
    // The process that the user started, and the launcher proper, which is its child.
    for of_guardian in [true, false] {
        let mut program = start(&ssh, &["--hosts", "a:2,b:2"], FAMILY);
        let lines = [(); 4].map(|()| program.await_line("["));
        let pids = |line: &String| line.split(' ').skip(1).map(pidfd).collect::<Vec<_>>();
        let processes: Vec<PidFd> = lines.iter().flat_map(pids).collect();
        let guardian = program.pid();
        let children = fs::read_to_string(format!("/proc/{guardian}/task/{guardian}/children"));
        let child = children.unwrap().trim().parse().expect("one child");
        let victim = if of_guardian { guardian as i32 } else { child };
        kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
        assert_eq!(processes.len(), 12);
        assert_gone(&processes);
        assert!(!program.await_end().status.success());
    }
}

#[test]
fn much_that_is_to_be_handed_over_and_raw_output() {
    let ssh = two_hosts("much");
    let long = "x".repeat(100_000);
    let mut command = command(&ssh.program(), &["--hosts", "a:2,b", "--raw"], "echo ${#0} ${#1}");
    command.args([&long, &long]);
    let ended = Program::start(command).await_end();
    assert_eq!(sorted(&ended), ["100000 100000", "[1] 100000 100000", "[2] 100000 100000"]);
}

#[test]
fn hosts_that_are_none_are_mistakes() {
    for (options, said) in [
        (&["--hosts", "a:2,b:x"][..], "not a host with slots"),
        (&["--hosts=-oProxyCommand=x"], "not a host with slots"),
        (&["--hostfile", "/no/such/file"], "No such file"),
        (&["--hosts", "a:2", "--ranks", "3"], "--ranks 3 does not fit the hosts, which have 2"),
        (&["--hosts", "a:2", "--nodes", "2"], "exclude each other"),
        (&[], "missing: --ranks"),
    ] {
        let ended = Program::start(command("/no/such/ssh", options, "echo started")).await_end();
        assert_eq!(ended.status.code(), Some(2), "{options:?}: {ended:#?}");
        assert!(ended.lines[0].contains(said), "{options:?}: {ended:#?}");
    }
    // Nobody hands it a part of a job.
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    command.arg("remote");
    let ended = Program::start(command).await_end();
    assert_eq!(ended.status.code(), Some(2), "{ended:#?}");
}

/// A job over two network namespaces; the ranks meet at the launcher, on the first one.
#[test]
fn one_command_makes_one_job_of_two_hosts() {
    const BYTES: u64 = 1 << 20;
    let Some(bed) = TwoHosts::new(1) else { return };
    let bed = std::sync::Arc::new(bed);
    let hosts = bed.clone();
    let ssh = Ssh::new("namespaces", move |name| {
        let number = ["a", "b"].iter().position(|known| *known == name)?;
        let mut shell = hosts.hosts[number].command("/bin/sh");
        shell.env("PATH", "/usr/bin:/bin");
        Some(shell)
    });
    let program = env!("CARGO_BIN_EXE_ringtree");
    let mut command = bed.hosts[0].command(program);
    command.env("PATH", "/usr/bin:/bin").env("RINGTREE_PORTS", "40000-40009");
    command.args(["run", "--ssh", &ssh.program(), "--hosts", "a:2,b:2", "--", program]);
    command.args(["bench", "all-reduce", "--time-ms", "20", "--jsonl"]);
    command.args(["--sizes", &format!("4,{BYTES}")]);
    let ended = Program::start(command).await_end();
    assert!(ended.status.success(), "{ended:#?}");
    let rows: Vec<&String> = ended.lines.iter().filter(|line| line.contains("busbw")).collect();
    assert_eq!(rows.len(), 4, "two sizes, in place and out of place: {ended:#?}");
    for row in rows {
        let values = ["\"ok\":true", "\"ranks\":4"];
        assert!(values.iter().all(|value| row.contains(value)), "{row}");
    }
    for host in &bed.hosts {
        let received_bytes = host.received_bytes(0);
        assert!(received_bytes >= BYTES, "{received_bytes} bytes arrived at {host:?}");
    }
}
