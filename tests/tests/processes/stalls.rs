//! A rank that stands still: stopped, or only late.

use std::process::Command;

use nix::sys::signal::Signal;
use ringtree_tests::job::{Event, Host, Job, Setup};

use crate::{assert_names, latencies_ms, setup};

/// `RINGTREE_TIMEOUT` of the ranks here.
const TIMEOUT_S: f64 = 1.0;

/// From the moment at which a rank stops to the verdict: the deadline, the survey, and a machine
/// that is busy with other tests.
const VERDICT_MS: f64 = TIMEOUT_S * 1000.0 + 2500.0;

/// The same where the arbiter itself stands still, for which its silence is waited for first.
const ARBITERS_VERDICT_MS: f64 = VERDICT_MS + 2000.0;

/// Stops a rank; returns its peers' errors, which name it.
fn stop(job: &mut Job, stopped: usize, kind: &str, limit_ms: f64) -> Vec<Event> {
    let members = job.others(stopped).len() + 1;
    job.expect_all(0..members, "running");
    let at_ns = job.signal(stopped, Signal::SIGSTOP);
    let errors = job.expect_all(job.others(stopped), "error");
    let all_ms = latencies_ms(&errors, at_ns);
    println!("rank {stopped} of {members} stopped: {all_ms:.0?} ms");
    for (error, ms) in errors.iter().zip(all_ms) {
        assert_names(error, kind, &stopped.to_string());
        assert!(ms >= TIMEOUT_S * 1000.0 - 50.0 && ms < limit_ms, "{ms} ms\n{job}");
    }
    errors
}

#[test]
fn a_stopped_rank_is_named_and_fenced_and_changes_nothing_when_it_is_continued() {
    // The long ones are written by the peers themselves.
    for (ranks, call) in [
        (2, "loop 1000"),
        (3, "loop 1000"),
        (4, "loop 300000"),
        (2, "loop 3000000"),
        (3, "loop-registered 3000000"),
    ] {
        let setup = setup(ranks, "shm").timeout_s(TIMEOUT_S);
        let mut job = Job::start(&setup, |_| format!("{call}; fill; wait; check"));
        let errors = stop(&mut job, 1, "stopped", VERDICT_MS);
        assert!(errors.iter().all(|error| error.rest == errors[0].rest), "{job}");
        job.expect_all(job.others(1), "waiting");
        // Its process is still there to be reaped, but nothing of it runs any more.
        job.signal(1, Signal::SIGCONT);
        assert!(!job.end(1).success(), "it was killed");
        intact(&mut job, 1);
    }
}

#[test]
fn over_tcp_a_stopped_rank_is_named_and_learns_it_when_it_is_continued() {
    let setup = setup(3, "tcp").timeout_s(TIMEOUT_S);
    let mut job = Job::start(&setup, |_| "loop 100000; fill; wait; check".into());
    let errors = stop(&mut job, 2, "stopped", VERDICT_MS);
    assert!(errors.iter().all(|error| error.rest == errors[0].rest), "{job}");
    job.expect_all(job.others(2), "waiting");
    job.signal(2, Signal::SIGCONT);
    let own = job.expect(2, "error");
    assert_eq!(own.rest, errors[0].rest, "the same verdict");
    intact(&mut job, 2);
}

/// The arbiter stops with it: that it is silent is all that the others know, and that is as good as
/// dead to them.
#[test]
fn a_stopped_rank_that_hosts_the_rendezvous_is_named_too() {
    let setup = setup(3, "shm").timeout_s(TIMEOUT_S).host(Host::RankZero);
    let mut job = Job::start(&setup, |_| "loop 1000; fill; wait; check".into());
    stop(&mut job, 0, "died", ARBITERS_VERDICT_MS);
    job.expect_all(job.others(0), "waiting");
    job.signal(0, Signal::SIGCONT);
    assert!(!job.end(0).success(), "it was killed");
    intact(&mut job, 0);
}

/// What nobody may write any more is as it was.
fn intact(job: &mut Job, stopped: usize) {
    for survivor in job.others(stopped) {
        job.go_on(survivor);
        job.expect(survivor, "intact");
        assert!(job.end(survivor).success(), "{job}");
    }
}

/// Late before its first call, when there is no link yet, and between two calls.
#[test]
fn a_rank_that_is_only_late_is_named_so_and_lives() {
    for transport in ["shm", "tcp"] {
        for before in ["", "all-reduce f32 sum 1000;"] {
            for late in [0, 2] {
                be_late(&setup(3, transport).timeout_s(TIMEOUT_S), before, late);
            }
        }
    }
}

fn be_late(setup: &Setup, before: &str, late: usize) {
    // What the others sent before they gave up may complete the late call.
    let call = "all-reduce f32 sum 1000; barrier";
    let mut job = Job::start(setup, |rank| match rank as usize == late {
        true => format!("{before} wait; {call}"),
        false => format!("{before} {call}"),
    });
    job.expect(late, "waiting");
    let others = job.others(late);
    let errors = job.expect_all(others, "error");
    errors.iter().for_each(|error| assert_names(error, "late", &late.to_string()));
    job.go_on(late);
    let own = job.expect(late, "error");
    assert!(errors.iter().all(|error| error.rest == own.rest), "{job}");
    assert!(job.end(late).success(), "{job}");
}

#[test]
fn the_program_that_measures_verdicts_keeps_its_bounds() {
    let program = env!("CARGO_BIN_EXE_ringtree-verdict-times");
    let ended = Command::new(program).args(["--turns", "1", "--loose"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{said}{}", String::from_utf8_lossy(&ended.stderr));
    assert!(said.matches("   bound ").count() >= 3, "{said}");
}
