//! Survivors go on, and newcomers come in, whoever dies and when.

use std::process::Command;

use nix::sys::signal::Signal;
use ringtree_tests::files::TemporaryFile;
use ringtree_tests::job::{Event, Host, Job, Setup};

use crate::{assert_names, setup};

/// What each survivor does once somebody has died.
const GO_ON: &str = "shrink; all-reduce f64 sum 1000; values";

/// What survivors said of their new communicator: rank, ranks, epoch.
fn place(event: &Event) -> (f64, f64, f64) {
    (event.number(0), event.number(2), event.number(3))
}

/// Nobody has waited for somebody who is dead: those who may live are waited for 20 s.
fn is_prompt(from: &Event, to: &Event) -> bool {
    to.at_ns.saturating_sub(from.at_ns) < 10_000_000_000
}

/// Kills these ranks while all run, and looks whether the others go on and get the sum of theirs.
fn survive(setup: &Setup, victims: &[usize]) {
    let mut job = Job::start(setup, |_| format!("loop 1000; {GO_ON}"));
    job.expect_all(0..setup.ranks as usize, "running");
    victims.iter().for_each(|victim| {
        job.signal(*victim, Signal::SIGKILL);
    });
    let survivors: Vec<usize> =
        (0..setup.ranks as usize).filter(|rank| !victims.contains(rank)).collect();
    let sum: f64 = (0..survivors.len()).map(|rank| 10_f64.powi(rank as i32)).sum();
    for (rank, &survivor) in survivors.iter().enumerate() {
        let error = job.expect(survivor, "error");
        assert_eq!(error.field(0), "died", "{error}\n{job}");
        let regrouped = job.expect(survivor, "regrouped");
        assert!(is_prompt(&error, &regrouped), "{job}");
        let expected = (rank as f64, survivors.len() as f64, 1.0);
        assert_eq!(place(&regrouped), expected, "{job}");
        assert_eq!(job.expect(survivor, "values").rest, sum.to_string(), "{job}");
        assert!(job.end(survivor).success(), "{job}");
    }
}

#[test]
fn survivors_of_a_killed_rank_go_on() {
    for transport in ["shm", "tcp"] {
        for (ranks, victim) in [(2, 1), (3, 0), (4, 2)] {
            survive(&setup(ranks, transport), &[victim]);
        }
    }
}

#[test]
fn survivors_go_on_without_the_rank_that_hosted_the_control_service() {
    for transport in ["shm", "tcp"] {
        for ranks in [2, 4] {
            survive(&setup(ranks, transport).host(Host::RankZero), &[0]);
        }
    }
}

#[test]
fn survivors_go_on_without_the_launcher() {
    let mut job = Job::start(&setup(3, "tcp"), |_| {
        format!("all-reduce f64 sum 8; wait; all-reduce f64 sum 8; {GO_ON}")
    });
    job.expect_all(0..3, "waiting");
    job.end_hosting();
    job.signal(1, Signal::SIGKILL);
    job.go_on(0);
    job.go_on(2);
    for (rank, survivor) in [(0.0, 0), (1.0, 2)] {
        job.expect(survivor, "error");
        assert_eq!(place(&job.expect(survivor, "regrouped")), (rank, 2.0, 1.0), "{job}");
        assert_eq!(job.expect(survivor, "values").rest, "11", "{job}");
    }
}

#[test]
fn survivors_of_two_that_are_killed_at_once_go_on() {
    for victims in [[0, 1], [1, 3], [2, 3]] {
        survive(&setup(4, "shm"), &victims);
    }
    survive(&setup(4, "tcp").host(Host::RankZero), &[0, 1]);
}

#[test]
fn survivors_go_on_again_and_again() {
    let again = "loop 1000; shrink;";
    let mut job = Job::start(&setup(4, "shm"), |_| format!("{} {GO_ON}", again.repeat(2)));
    job.expect_all(0..4, "running");
    job.signal(0, Signal::SIGKILL);
    job.expect_all(1..4, "regrouped");
    job.expect_all(1..4, "running");
    job.signal(2, Signal::SIGKILL);
    for survivor in [1, 3] {
        assert_eq!(place(&job.expect(survivor, "regrouped")).1, 2.0, "{job}");
        // The last communicator is one of those that live, made from one of those that live.
        assert_eq!(
            place(&job.expect(survivor, "regrouped")),
            (f64::from(survivor as u32 / 3), 2.0, 3.0),
            "{job}"
        );
        assert_eq!(job.expect(survivor, "values").rest, "11", "{job}");
    }
}

#[test]
fn a_rank_that_dies_while_the_others_regroup_is_left_behind() {
    let mut job = Job::empty(&setup(4, "shm"));
    for rank in 0..4 {
        // Rank 3 hears of the death and ends where the others go on.
        let then = if rank == 3 { "wait" } else { GO_ON };
        job.add(rank, &format!("loop 1000; {then}"), &[]);
    }
    job.expect_all(0..4, "running");
    job.signal(1, Signal::SIGKILL);
    job.expect(3, "waiting");
    job.expect_all([0, 2], "error");
    job.signal(3, Signal::SIGKILL);
    for (rank, survivor) in [(0.0, 0), (1.0, 2)] {
        assert_eq!(place(&job.expect(survivor, "regrouped")).0, rank, "{job}");
        assert_eq!(job.expect(survivor, "values").rest, "11", "{job}");
    }
}

#[test]
fn the_last_call_that_all_have_completed_is_told() {
    let calls = "all-reduce f64 sum 8;".repeat(5);
    let mut job = Job::empty(&setup(3, "shm"));
    for rank in 0..3 {
        let more = if rank == 2 { "wait" } else { "all-reduce f64 sum 8; shrink" };
        job.add(rank, &format!("{calls} {more}"), &[]);
    }
    job.expect(2, "waiting");
    job.signal(2, Signal::SIGKILL);
    for survivor in [0, 1] {
        assert_eq!(job.expect(survivor, "regrouped").number(4), 5.0, "{job}");
    }
}

#[test]
fn newcomers_are_let_in_behind_the_others() {
    for transport in ["shm", "tcp"] {
        for host in [Host::Launcher, Host::RankZero] {
            let then = "newcomer; admit; all-reduce f64 sum 100; values";
            let mut job = Job::start(&setup(2, transport).host(host), |_| then.into());
            let newcomer = job.add(0, "all-reduce f64 sum 100; values", &[("RINGTREE_JOIN", "1")]);
            for member in 0..2 {
                let expected = (member as f64, 3.0, 1.0);
                assert_eq!(place(&job.expect(member, "regrouped")), expected, "{job}");
            }
            for member in [0, 1, newcomer] {
                assert_eq!(job.expect(member, "values").rest, "111", "{job}");
                assert!(job.end(member).success(), "{job}");
            }
        }
    }
}

#[test]
fn the_program_that_measures_recovery_keeps_its_bounds() {
    let program = env!("CARGO_BIN_EXE_ringtree-recovery-times");
    let ended = Command::new(program).args(["--kills", "8", "--loose"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{said}{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(said.matches("   bound ").count(), 3, "{said}");
}

#[test]
fn a_file_tells_newcomers_who_has_taken_over() {
    let file = TemporaryFile::new("taken-over", "");
    let rendezvous = format!("file:{}", file.path().display());
    let meets = [("RINGTREE_RENDEZVOUS", rendezvous.as_str())];
    let mut job = Job::empty(&setup(3, "tcp"));
    for rank in 0..3 {
        let then = "loop 1000; shrink; newcomer; admit; all-reduce f64 sum 100; values";
        job.add(rank, then, &meets);
    }
    job.expect_all(0..3, "running");
    job.signal(0, Signal::SIGKILL);
    job.expect_all(1..3, "regrouped");
    let joins = [("RINGTREE_JOIN", "1"), meets[0]];
    let newcomer = job.add(0, "all-reduce f64 sum 100; values", &joins);
    for member in [1, 2, newcomer] {
        assert_eq!(job.expect(member, "values").rest, "111", "{job}");
    }
}

#[test]
fn a_replacement_comes_in_after_a_death() {
    let mut job = Job::start(&setup(3, "shm"), |_| {
        "loop 1000; shrink; newcomer; admit; all-reduce f64 sum 100; values".into()
    });
    job.expect_all(0..3, "running");
    job.signal(0, Signal::SIGKILL);
    job.expect_all(1..3, "regrouped");
    let replacement = job.add(0, "all-reduce f64 sum 100; values", &[("RINGTREE_JOIN", "1")]);
    for member in [1, 2, replacement] {
        assert_eq!(job.expect(member, "values").rest, "111", "{job}");
    }
}

#[test]
fn a_newcomer_with_other_settings_is_refused_and_harms_nobody() {
    let mut job = Job::start(&setup(2, "tcp"), |_| "wait; all-reduce f64 sum 100; values".into());
    job.expect_all(0..2, "waiting");
    let other = [("RINGTREE_JOIN", "1"), ("RINGTREE_CHECKSUMS", "1")];
    let newcomer = job.add(0, "all-reduce f64 sum 100", &other);
    let failed = job.expect(newcomer, "failed");
    assert!(failed.rest.contains("over tcp, with checksums, the members of the job do over tcp:"));
    (0..2).for_each(|member| job.go_on(member));
    for member in 0..2 {
        assert_eq!(job.expect(member, "values").rest, "11", "{job}");
        assert!(job.end(member).success(), "{job}");
    }
}

#[test]
fn a_newcomer_that_dies_half_way_harms_nobody() {
    let mut job = Job::start(&setup(2, "shm"), |_| {
        "newcomer; wait; admit; all-reduce f64 sum 100; values".into()
    });
    let newcomer = job.add(0, "all-reduce f64 sum 100", &[("RINGTREE_JOIN", "1")]);
    job.expect_all(0..2, "knocks");
    job.signal(newcomer, Signal::SIGKILL);
    job.go_on(0);
    job.go_on(1);
    for member in 0..2 {
        let knocks = job.expect(member, "waiting");
        let regrouped = job.expect(member, "regrouped");
        assert_eq!(place(&regrouped).1, 2.0, "{job}");
        assert!(is_prompt(&knocks, &regrouped), "{job}");
        assert_eq!(job.expect(member, "values").rest, "11", "{job}");
    }
}

#[test]
fn members_of_which_too_few_came_do_not_go_on() {
    let mut job = Job::empty(&setup(4, "shm").timeout_s(3.0));
    for rank in 0..4 {
        let then = if rank < 2 { "wait" } else { "shrink" };
        job.add(rank, &format!("loop 1000; {then}"), &[]);
    }
    job.expect_all(0..4, "running");
    job.signal(1, Signal::SIGKILL);
    // Rank 0 lives and may go on by itself, for all that ranks 2 and 3 know.
    job.expect(0, "waiting");
    for survivor in [2, 3] {
        assert_names(&job.expect(survivor, "error"), "died", "1");
        assert_names(&job.expect(survivor, "error"), "no-quorum", "-");
    }
}

#[test]
fn a_member_that_lives_and_does_not_come_is_left_out_and_told_so() {
    let mut job = Job::empty(&setup(5, "shm").timeout_s(3.0));
    for rank in 0..5 {
        let then = if rank == 4 { "wait; shrink" } else { GO_ON };
        job.add(rank, &format!("loop 1000; {then}"), &[]);
    }
    job.expect_all(0..5, "running");
    job.signal(0, Signal::SIGKILL);
    assert_names(&job.expect(4, "error"), "died", "0");
    // It has heard of the death, but does something else.
    job.expect(4, "waiting");
    for survivor in 1..4 {
        assert_eq!(place(&job.expect(survivor, "regrouped")).1, 3.0, "{job}");
        assert_eq!(job.expect(survivor, "values").rest, "111", "{job}");
    }
    job.go_on(4);
    assert_names(&job.expect(4, "error"), "left-out", "-");
}
