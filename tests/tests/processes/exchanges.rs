//! Send and receive between processes, which read each other's memory in another way than threads.

use ringtree_tests::job::Job;

use crate::setup;

#[test]
fn two_ranks_may_both_send_first_what_the_slots_hold() {
    for transport in ["shm", "tcp"] {
        let mut job = Job::start(&setup(2, transport), |rank| {
            let peer = 1 - rank;
            format!("send f32 65536 {peer}; receive f32 65536 {peer}; values")
        });
        for rank in 0..2_usize {
            job.expect(rank, "done");
            job.expect(rank, "done");
            let values = job.expect(rank, "values");
            assert_eq!(values.rest, ["10", "1"][rank], "{job}");
            assert!(job.end(rank).success(), "{job}");
        }
    }
}
