//! The start of a job: who may not join, and who does not come.

use ringtree_tests::job::{Host, Job};

use crate::{latencies_ms, setup};

#[test]
fn a_wrong_secret_is_refused_at_once_and_disturbs_nobody() {
    intrude(&[("RINGTREE_SECRET", "another secret")], "rendezvous", "secret");
}

#[test]
fn a_rank_of_another_job_is_refused_at_once_and_disturbs_nobody() {
    intrude(&[("RINGTREE_JOB", "another job")], "rendezvous", "job");
}

#[test]
fn a_rank_that_is_claimed_twice_is_refused_and_disturbs_nobody() {
    let mut job = Job::empty(&setup(3, "shm"));
    job.add(1, "barrier", &[]);
    job.add(1, "barrier", &[]);
    // Either of the two may have come first.
    let refused = job.first_to_end([0, 1]);
    let error = job.expect(refused, "failed");
    assert!(error.field(0) == "rendezvous" && error.rest.contains("rank 1 is claimed twice"));
    job.add(0, "barrier", &[]);
    job.add(2, "barrier", &[]);
    for member in job.others(refused) {
        job.expect(member, "done");
        assert!(job.end(member).success(), "{job}");
    }
}

/// The one whose patience ends first gives up for all that wait, and tells them why.
#[test]
fn a_rank_that_does_not_come_is_named_to_all_others() {
    for host in [Host::Launcher, Host::RankZero] {
        let mut job = Job::empty(&setup(4, "shm").timeout_s(1.0).host(host));
        job.add(0, "barrier", &[]);
        job.add(1, "barrier", &[("RINGTREE_TIMEOUT", "30")]);
        job.add(3, "barrier", &[("RINGTREE_TIMEOUT", "50")]);
        for member in 0..3 {
            let error = job.expect(member, "failed");
            assert!(error.field(0) == "rendezvous" && error.rest.contains("rank 2 of 4"), "{job}");
            assert!(!job.end(member).success());
        }
    }
}

#[test]
fn ranks_that_do_not_agree_how_many_they_are() {
    let mut job = Job::empty(&setup(2, "shm").timeout_s(2.0));
    job.add(0, "barrier", &[]);
    job.add(1, "barrier", &[("RINGTREE_RANKS", "3")]);
    let errors = job.expect_all(0..2, "failed");
    assert!(errors.iter().any(|error| error.rest.contains("RINGTREE_RANKS")), "{job}");
}

#[test]
fn a_contradictory_environment_is_an_error_that_says_so() {
    for (name, value, hint) in [
        ("RINGTREE_RANK", "2", "must be below RINGTREE_RANKS=2"),
        ("RINGTREE_RANKS", "0", "must be below"),
        ("RINGTREE_RENDEZVOUS", "", "RINGTREE_RENDEZVOUS is not set"),
        ("RINGTREE_RENDEZVOUS", "nowhere", "not host:port"),
        ("RINGTREE_SECRET", "", "RINGTREE_SECRET"),
        ("RINGTREE_TRANSPORT", "pigeon", "none of auto, shm, tcp"),
        ("RINGTREE_TIMEOUT", "soon", "RINGTREE_TIMEOUT"),
    ] {
        let mut job = Job::empty(&setup(2, "shm"));
        let member = job.add(0, "barrier", &[(name, value)]);
        let error = job.expect(member, "failed");
        assert!(error.field(0) == "settings" && error.rest.contains(hint), "{error}");
        assert_eq!(job.end(member).code(), Some(1));
    }
}

/// Nobody waits for anybody who waits for him.
#[test]
fn ranks_that_leave_and_join_again_meet_at_once() {
    for host in [Host::Launcher, Host::RankZero] {
        let script = "barrier; leave; join; barrier; leave; join; barrier";
        let mut job = Job::start(&setup(3, "shm").host(host), |_| script.into());
        let first = job.expect_all(0..3, "done");
        let last: Vec<_> = (0..3)
            .map(|member| {
                job.expect_all([member; 3], "done");
                job.expect(member, "done")
            })
            .collect();
        let worst_ms = latencies_ms(&last, first[0].at_ns).into_iter().fold(0.0, f64::max);
        println!("{host:?}: {worst_ms:.1} ms to leave and join twice");
        assert!(worst_ms < 1500.0, "{job}");
    }
}

/// A process that must not join tries to, before the others come and once they are there.
fn intrude(environment: &[(&str, &str)], kind: &str, hint: &str) {
    let mut job = Job::empty(&setup(2, "shm"));
    let early = job.add(1, "barrier", environment);
    refused(&mut job, early, kind, hint);
    let ranks = [0, 1].map(|rank| job.add(rank, "barrier; wait; all-reduce f32 sum 1000", &[]));
    job.expect_all(ranks, "waiting");
    let late = job.add(1, "barrier", environment);
    refused(&mut job, late, kind, hint);
    ranks.into_iter().for_each(|member| job.go_on(member));
    for member in ranks {
        job.expect(member, "done");
        assert!(job.end(member).success(), "{job}");
    }
}

#[track_caller]
fn refused(job: &mut Job, member: usize, kind: &str, hint: &str) {
    let error = job.expect(member, "failed");
    assert!(error.field(0) == kind && error.rest.contains(hint), "{error}");
    assert_eq!(job.end(member).code(), Some(1));
}
