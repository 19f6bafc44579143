//! How fast all ranks are told who holds them up: stops a rank of four, slows one down to a hundredth, and cuts a host of
//! two off (network namespaces, as root; left out, with a line that says so, where they cannot be made). Prints each figure
//! beside its bound, a tenth more than the deadline, and ends with status 1 where one is missed.
//!
//! `ringtree-verdict-times [--turns N] [--timeout SECONDS] [--loose]`. With `--loose` the bounds are twice as high: for
//! machines that do other things, too.

use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringtree_tests::figures::{Figure, are_kept};
use ringtree_tests::job::{Event, Host, Job, Setup};
use ringtree_tests::namespaces::TwoHosts;
use ringtree_tests::program::Program;

const RANKS: usize = 4;

/// A slowed rank runs for the first of these, and then stands still for the second: a hundredth is left of it.
const RUNS: Duration = Duration::from_micros(200);
const STANDS: Duration = Duration::from_micros(19_800);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).map(|text| text.parse().expect("a number"))
    };
    let turns = value("--turns").unwrap_or(5.0) as usize;
    let timeout_s = value("--timeout").unwrap_or(2.0);
    let factor = if arguments.iter().any(|argument| argument == "--loose") { 2.0 } else { 1.0 };

    let bound_ms = 1100.0 * timeout_s;
    let mut stopped = Figure::new("a stopped rank, named as stopped", bound_ms);
    let mut host = Figure::new("a stopped rank that hosts the control service, named", bound_ms);
    let mut slowed = Figure::new("a rank slowed 100 times, named as late", bound_ms);
    let mut cut = Figure::new("a host cut off, named on both sides", bound_ms);
    for turn in 0..turns {
        let setup =
            Setup::new(sibling("ringtree-test-rank"), RANKS as u32, "shm").timeout_s(timeout_s);
        stopped.all_ms.push(stop(&setup, turn % RANKS, "stopped"));
        host.all_ms.push(stop(&setup.clone().host(Host::RankZero), 0, "died"));
        slowed.all_ms.push(slow_down(&setup, turn % RANKS));
        cut.all_ms.extend(cut_off(timeout_s));
    }
    println!(
        "{turns} turns, deadline {timeout_s} s; ms until every rank has named it, median and highest"
    );
    match are_kept(vec![stopped, host, slowed, cut], factor) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// From the moment at which a rank is stopped.
fn stop(setup: &Setup, victim: usize, kind: &str) -> f64 {
    let mut job = Job::start(setup, |_| "loop 1000".into());
    job.expect_all(0..RANKS, "running");
    let stopped_ns = job.signal(victim, Signal::SIGSTOP);
    let errors = job.expect_all(job.others(victim), "error");
    assert_named(&job, &errors, kind, victim);
    let last_ns = errors.iter().map(|error| error.at_ns).max().expect("survivors");
    (last_ns - stopped_ns) as f64 / 1e6
}

/// From the moment at which the others begin to wait for a rank that needs a hundred times as long as before for what it
/// computes between two calls: longer than the deadline.
fn slow_down(setup: &Setup, victim: usize) -> f64 {
    let compute_ms = (40.0 * setup.timeout_s).ceil();
    let mut job = Job::start(setup, |_| format!("loop-computing 1000 {compute_ms}"));
    job.expect_all(0..RANKS, "running");
    let (end, brake) = brake(job.pid(victim));
    let others = job.others(victim);
    let waited = job.expect_all(others.clone(), "waited");
    let errors = job.expect_all(others, "error");
    assert_named(&job, &errors, "late", victim);
    drop(end);
    brake.join().expect("the brake's thread");
    // It lives, and is told so when it gets there.
    let own = job.expect(victim, "error");
    assert_named(&job, &[own], "late", victim);
    assert!(job.end(victim).success(), "{job}");
    waited.iter().map(|event| event.number(0)).fold(0.0, f64::max)
}

/// Stops and continues a process by turns until the other end is dropped.
fn brake(pid: u32) -> (Sender<()>, JoinHandle<()>) {
    let (end, ended) = channel::<()>();
    let pid = Pid::from_raw(pid as i32);
    let brake = std::thread::spawn(move || {
        let signal = |signal| kill(pid, signal).expect("the process is there until it is reaped");
        loop {
            signal(Signal::SIGSTOP);
            let over = ended.recv_timeout(STANDS) != Err(RecvTimeoutError::Timeout);
            signal(Signal::SIGCONT);
            if over {
                return;
            }
            std::thread::sleep(RUNS);
        }
    });
    (end, brake)
}

/// From the moment at which the ranks of both hosts began the call that failed, shortly before the cut. `None` where hosts
/// cannot be made.
fn cut_off(timeout_s: f64) -> Option<f64> {
    let bed = TwoHosts::new(1)?;
    let start = |rank| {
        let mut command = bed.rank_command(sibling("ringtree-netns-rank"), rank, RANKS / 2, 0);
        command
            .args(["16384", &usize::MAX.to_string()])
            .env("RINGTREE_TIMEOUT", timeout_s.to_string());
        Program::start(command)
    };
    let mut ranks: Vec<Program> = (0..RANKS).map(start).collect();
    ranks.iter_mut().for_each(|rank| drop(rank.await_line("running")));
    bed.hosts[1].cut(0);
    let waited_ms = ranks.into_iter().map(|rank| {
        let ended = rank.await_end();
        let (waited_ms, message) = ended.line("error").split_once(' ').expect("time and message");
        assert!(message.contains("answer"), "{message}");
        waited_ms.parse().expect("a number")
    });
    Some(waited_ms.fold(0.0, f64::max))
}

fn assert_named(job: &Job, errors: &[Event], kind: &str, rank: usize) {
    for error in errors {
        let named = (error.field(0), error.field(1));
        assert_eq!(named, (kind, rank.to_string().as_str()), "{error}\n{job}");
    }
}

/// The path of a program that is beside this one.
fn sibling(name: &str) -> &'static str {
    let path = std::env::current_exe().expect("this program").with_file_name(name);
    path.to_str().expect("a path of text").to_owned().leak()
}
