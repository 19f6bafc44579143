//! A rank is killed, aborts or leaves: everyone else hears of it at once.

use nix::sys::signal::Signal;
use ringtree_tests::job::{Host, Job, Setup};
use ringtree_tests::{gpu, verbs};

use crate::{assert_names, latencies_ms, setup};

/// One call during which, or before which, somebody dies: on a machine that is busy with other
/// tests the error may take this long.
const BUSY_MS: f64 = 1000.0;

/// A machine with nothing better to do is this fast.
const PROMPT_MS: f64 = 100.0;

/// How often each death is died.
const TURNS: usize = 5;

#[test]
fn a_killed_rank_is_named_to_all_survivors() {
    for transport in ["shm", "tcp"] {
        for ranks in [2, 4] {
            die(&setup(ranks, transport), 1, "loop 1000");
        }
    }
}

#[test]
fn a_rank_that_is_killed_in_a_large_call_is_named() {
    for transport in ["shm", "tcp"] {
        die(&setup(3, transport), 2, "loop 3000000");
    }
}

#[test]
fn a_killed_rank_is_named_to_survivors_whose_gpus_wait_for_it() {
    die_with_gpus("shm", "loop-gpu 500");
}

/// RDMA devices of the survivors read and write memory of their GPUs, and the killed rank's no longer.
#[test]
fn a_killed_rank_is_named_to_survivors_whose_gpus_it_writes_to() {
    die_with_gpus("rdma", "loop-gpu 50000");
}

/// Kills one of three ranks, of which two share a GPU, some times.
fn die_with_gpus(transport: &'static str, script: &str) {
    let (driver, verbs) = (gpu::stand_in(), verbs::stand_in());
    let environment = [
        ("RINGTREE_CUDA_LIBRARY", driver.to_str().expect("a path")),
        ("RINGTREE_STANDIN_DEVICES", "2"),
        ("RINGTREE_STANDIN_SCHEDULE", "prompt"),
        ("RINGTREE_RDMA_LIBRARY", verbs.to_str().expect("a path")),
    ];
    let setup = setup(3, transport);
    for _ in 0..TURNS {
        let mut job = Job::empty(&setup);
        for rank in 0..3 {
            job.add(rank, script, &environment);
        }
        for joined in job.expect_all(0..3, "joined-gpus") {
            assert_eq!(joined.rest, "true", "{job}");
        }
        job.expect_all(0..3, "running");
        job.signal(1, Signal::SIGKILL);
        let errors = job.expect_all(job.others(1), "error");
        errors.iter().for_each(|error| assert_names(error, "died", "1"));
        for survivor in job.others(1) {
            assert!(job.end(survivor).success(), "{job}");
        }
    }
}

#[test]
fn the_rank_that_hosts_the_rendezvous_is_named() {
    for transport in ["shm", "tcp"] {
        die(&setup(3, transport).host(Host::RankZero), 0, "loop 1000");
    }
}

#[test]
fn a_rank_is_named_by_the_rank_that_hosts_the_rendezvous() {
    for transport in ["shm", "tcp"] {
        die(&setup(3, transport).host(Host::RankZero), 2, "loop 1000");
    }
}

/// Kills `victim` some times while all run `script`, and looks at how fast the others know.
fn die(setup: &Setup, victim: usize, script: &str) {
    let mut all_ms = Vec::new();
    for _ in 0..TURNS {
        let mut job = Job::start(setup, |_| script.into());
        job.expect_all(0..setup.ranks as usize, "running");
        let at_ns = job.signal(victim, Signal::SIGKILL);
        let errors = job.expect_all(job.others(victim), "error");
        errors.iter().for_each(|error| assert_names(error, "died", &victim.to_string()));
        all_ms.extend(latencies_ms(&errors, at_ns));
        for survivor in job.others(victim) {
            assert!(job.end(survivor).success(), "{job}");
        }
    }
    all_ms.sort_by(f64::total_cmp);
    let (best, median, worst) = (all_ms[0], all_ms[all_ms.len() / 2], all_ms[all_ms.len() - 1]);
    println!(
        "{} ranks, {}, {:?}, rank {victim} killed in {script}: best {best:.1} ms, median \
         {median:.1} ms, worst {worst:.1} ms",
        setup.ranks, setup.transport, setup.host
    );
    assert!(best < PROMPT_MS && worst < BUSY_MS, "{all_ms:?}");
}

#[test]
fn survivors_between_two_calls_hear_of_it_in_the_next_one() {
    for transport in ["shm", "tcp"] {
        for before in ["", "all-reduce f32 sum 1000;"] {
            let script = format!("{before} wait; all-reduce f32 sum 1000");
            let mut job = Job::start(&setup(3, transport), |_| script.clone());
            job.expect_all(0..3, "waiting");
            let at_ns = job.signal(1, Signal::SIGKILL);
            [0, 2].into_iter().for_each(|survivor| job.go_on(survivor));
            let errors = job.expect_all([0, 2], "error");
            errors.iter().for_each(|error| assert_names(error, "died", "1"));
            let all_ms = latencies_ms(&errors, at_ns);
            println!("{transport}, between calls: {all_ms:.1?} ms");
            assert!(all_ms.iter().all(|ms| *ms < BUSY_MS), "{all_ms:?}\n{job}");
        }
    }
}

#[test]
fn an_abort_reaches_everyone() {
    for transport in ["shm", "tcp"] {
        let mut job = Job::start(&setup(4, transport), |rank| match rank {
            2 => "barrier; wait; abort enough; barrier".into(),
            _ => "barrier; all-reduce f32 sum 1000".into(),
        });
        job.expect(2, "waiting");
        job.go_on(2);
        for member in 0..4 {
            let error = job.expect(member, "error");
            assert_names(&error, "aborted", "2");
            assert!(error.rest.contains("enough"), "{error}");
        }
    }
}

#[test]
fn a_rank_that_leaves_early_is_named_to_those_who_wait_for_it() {
    for transport in ["shm", "tcp"] {
        for leaver in [0, 1] {
            let mut job = Job::start(&setup(3, transport), |rank| {
                let last = if rank == leaver { "leave" } else { "all-reduce f32 sum 1000" };
                format!("all-reduce f32 sum 1000; {last}")
            });
            let others = job.others(leaver as usize);
            for error in job.expect_all(others, "error") {
                assert_names(&error, "left", &leaver.to_string());
            }
            assert!(job.end(leaver as usize).success(), "{job}");
        }
    }
}

/// Whoever has no more calls to make may go while others still wait for each other.
#[test]
fn a_rank_that_nobody_waits_for_may_leave() {
    for transport in ["shm", "tcp"] {
        for host in [Host::Launcher, Host::RankZero] {
            let mut job = Job::start(&setup(3, transport).host(host), |rank| match rank {
                0 => "barrier; leave".into(),
                1 => "barrier; wait; send f32 100000 2".into(),
                _ => "barrier; receive f32 100000 1; values".into(),
            });
            job.expect(0, "done");
            job.expect(0, "done");
            job.expect(1, "waiting");
            job.go_on(1);
            assert_eq!(job.expect(2, "values").rest, "10", "{job}");
            (0..3).for_each(|member| assert!(job.end(member).success(), "{job}"));
        }
    }
}

#[test]
fn losing_the_rendezvous_after_the_start_harms_nobody() {
    let mut job = Job::start(&setup(3, "auto"), |_| "stream 1000; wait; barrier".into());
    job.expect_all(0..3, "running");
    job.end_hosting();
    job.go_on(0);
    job.expect_all(0..3, "waiting");
    (0..3).for_each(|member| job.go_on(member));
    job.expect_all(0..3, "done");
    (0..3).for_each(|member| assert!(job.end(member).success(), "{job}"));
}
