//! What ranks cost: nothing while idle, nothing after the end, not much more when crowded.

use std::fs;

use ringtree_tests::job::{Host, Job};

use crate::setup;

/// Processor time that an idle rank may use in a second: 10 ms in 10 s, and the asking.
const IDLE_US_PER_S: f64 = 1000.0;

/// How long ranks are watched while they do nothing.
const IDLE_S: u64 = 5;

/// How long a call waits for a rank that is late.
const WAIT_S: u64 = 2;

/// Processor time that a call may use in a second in which nothing comes: it looks busily for a
/// moment before it sleeps.
const WAITING_US_PER_S: f64 = 20_000.0;

/// A crowd may be this much slower than this machine usually is, not the thousandfold of a
/// collapse.
const CROWDED_MOST_US: f64 = 20_000.0;

#[test]
fn an_idle_communicator_uses_no_processor_time() {
    for transport in ["shm", "tcp"] {
        let mut job = Job::start(&setup(4, transport), |_| {
            format!("warm-up; all-reduce f32 sum 100000; barrier; usage; rest {IDLE_S}; usage")
        });
        for member in 0..4 {
            let before = job.expect(member, "usage").number(0);
            let used_us = job.expect(member, "usage").number(0) - before;
            println!("{transport}: rank {member} used {used_us} us in {IDLE_S} s");
            assert!(used_us < IDLE_US_PER_S * IDLE_S as f64, "{used_us} us\n{job}");
        }
    }
}

/// What waits in the socket of a peer that this call has nothing to do with keeps nobody awake.
#[test]
fn a_waiting_rank_uses_no_processor_time() {
    for transport in ["shm", "tcp"] {
        let mut job = Job::start(&setup(3, transport), |rank| match rank {
            0 => "warm-up; usage; receive f32 1000 1; usage; receive f32 300000 2".into(),
            1 => format!("warm-up; rest {WAIT_S}; send f32 1000 0"),
            _ => "warm-up; send f32 300000 0".into(),
        });
        let before = job.expect(0, "usage").number(0);
        let used_us = job.expect(0, "usage").number(0) - before;
        println!("{transport}: {used_us} us in a call that waited for {WAIT_S} s");
        (0..3).for_each(|member| assert!(job.end(member).success(), "{job}"));
        assert!(used_us < WAITING_US_PER_S * WAIT_S as f64, "{used_us} us\n{job}");
    }
}

#[test]
fn nothing_stays_behind_of_communicators_that_have_gone() {
    // A folder of its own, since other jobs come and go in the common one.
    let folder = std::env::temp_dir().join(format!("churn-{}", std::process::id()));
    fs::create_dir(&folder).expect("a folder");
    let private = folder.to_str().expect("a path that is text");
    let mut job = Job::empty(&setup(1, "auto").host(Host::RankZero));
    // Without a secret from elsewhere the ranks of a host make one in a file.
    let unset = [("RINGTREE_SECRET", ""), ("XDG_RUNTIME_DIR", "")];
    let environment = [&unset[..], &[("TMPDIR", private), ("LOCAL_WORLD_SIZE", "1")]].concat();
    job.add(0, "churn 25", &environment);
    job.expect(0, "clean");
    assert!(job.end(0).success(), "{job}");
    let shared = names("/dev/shm").filter(|name| name.contains("ringtree"));
    let left: Vec<String> = names(private).chain(shared).collect();
    fs::remove_dir_all(&folder).expect("the folder is removed");
    assert!(left.is_empty(), "{left:?}");
}

fn names(folder: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

#[test]
fn more_ranks_than_processors_do_not_collapse() {
    for transport in ["shm", "tcp"] {
        let mut job = Job::start(&setup(8, transport), |_| "repeat 20 2; repeat 300 2".into());
        for member in 0..8 {
            job.expect(member, "took"); // links are made meanwhile
            let mean_us = job.expect(member, "took").number(0);
            println!("{transport}: rank {member} of 8: {mean_us:.1} us for 8 bytes");
            assert!(mean_us < CROWDED_MOST_US, "{mean_us} us");
        }
    }
}
