//! Strangers at every socket of a running job: nobody notices.

use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net;

use ringtree_tests::job::{Host, Job, identity};
use ringtree_tests::sockets::{tcp_listeners, unix_listeners};
use ringtree_tests::strangers::{Kind, Knowledge, crowd, record};

use crate::setup;

/// So many of all kinds for each job, as fast as they can be; more are for the program `ringtree-strangers`.
const STRANGERS: u64 = 1_500;

#[test]
fn strangers_of_every_kind_disturb_nobody() {
    for (transport, host) in
        [("tcp", Host::Launcher), ("tcp", Host::RankZero), ("auto", Host::Launcher)]
    {
        let mut job =
            Job::start(&setup(3, transport).host(host), |_| "warm-up; stream 1000".into());
        job.expect_all(0..3, "running");
        let pids: Vec<u32> = (0..3).map(|member| job.pid(member)).collect();
        let mut tcp: Vec<_> = pids.iter().flat_map(|pid| tcp_listeners(*pid)).collect();
        assert!(tcp.len() >= 3, "each rank listens: {tcp:?}");
        let unix: Vec<_> = pids.iter().flat_map(|pid| unix_listeners(*pid)).collect();
        assert_eq!(unix.len(), if transport == "tcp" { 0 } else { 3 }, "{unix:?}");
        let recorded = record(job.rendezvous(), &identity());
        tcp.push(job.rendezvous());

        let knowledge = Knowledge { job: identity(), recorded };
        let tally = crowd(&knowledge, &tcp, STRANGERS, None, 9);
        let fewest = STRANGERS / Kind::ALL.len() as u64 / 2;
        assert!(tally.came.iter().all(|came| *came > fewest), "of every kind: {tally:?}");
        assert_eq!(tally.unheard, 0, "{tally:?}");
        let held_unix: Vec<_> = unix.iter().flat_map(|name| disturb_unix(name)).collect();
        job.go_on(0);
        for member in 0..3 {
            job.expect(member, "done");
            assert!(job.end(member).success(), "{job}");
        }
        drop(held_unix);
    }
}

fn disturb_unix(name: &str) -> Vec<net::UnixStream> {
    let address = net::SocketAddr::from_abstract_name(name).expect("a name");
    let connect = || net::UnixStream::connect_addr(&address).expect("somebody listens");
    for turn in 0..20_u8 {
        drop(connect());
        let _ = connect().write_all(&[turn; 3000]);
    }
    (0..10).map(|_| connect()).collect()
}
