//! A rank is killed, aborts or leaves: everyone else hears of it at once.

use nix::sys::signal::Signal;
use ringtree_tests::job::{Host, Job, Setup};

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
