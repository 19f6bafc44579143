//! The control plane leaves no thread and no descriptor behind, and costs nothing while idle. Alone
//! in its process, since it counts what the whole process has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use ringtree::control::{AbortWord, Control, ControlService, FlightRecorder, Membership};
use ringtree_transport::rendezvous::{self, Server};
use ringtree_transport::secure::{Job, Secret};

#[test]
fn members_come_and_go_without_a_trace() {
    run_once(assert_idle); // makes whatever is made only once in a process
    let before = Counts::now();
    for _ in 0..20 {
        run_once(|| {});
    }
    // A thread that has been joined is listed for a moment longer.
    let deadline = Instant::now() + Duration::from_secs(20);
    while Counts::now().exceed(&before) && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let after = Counts::now();
    assert!(!after.exceed(&before), "{before:?}, then {after:?}");
}

/// What this process has open.
#[derive(Debug)]
struct Counts {
    descriptors: usize,
    threads: usize,
}

impl Counts {
    fn now() -> Counts {
        let count = |folder| std::fs::read_dir(folder).unwrap().count();
        Counts { descriptors: count("/proc/self/fd"), threads: count("/proc/self/task") }
    }

    fn exceed(&self, before: &Counts) -> bool {
        self.descriptors > before.descriptors || self.threads > before.threads
    }
}

/// A host with two communicators of four ranks, one of which aborts; then all leave.
fn run_once(while_idle: impl Fn()) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let job = Job { name: "leaks".into(), secret: Secret::from_text("secret") };
    let service = Arc::new(ControlService::new(None).unwrap());
    let serve = service.clone();
    let listener = rendezvous::listen("127.0.0.1:0").unwrap();
    let server =
        Server::start(listener, job.clone(), move |stream, hello| serve.serve(stream, hello))
            .unwrap();
    let address = server.address().to_string();
    let join = |communicator, rank| {
        let member = Membership { communicator, rank, ranks: 4, ..Membership::default() };
        let abort = Arc::new(AbortWord::new());
        let recorder = Arc::new(FlightRecorder::new());
        let control = Control::join(&address, &job, member, recorder, abort.clone(), deadline);
        (control.unwrap(), abort)
    };
    let members: Vec<_> =
        (0..2).flat_map(|communicator| (0..4).map(move |rank| (communicator, rank))).collect();
    let members: Vec<_> = members.into_iter().map(|(c, rank)| join(c, rank)).collect();

    while_idle();
    members[1].0.abort("enough");
    for (_, abort) in &members[..4] {
        assert!(abort.await_verdict(deadline).is_some());
    }
    drop(members);
    assert!(service.await_empty(deadline));
}

/// Nothing polls: while nothing happens, the process uses no time to speak of.
fn assert_idle() {
    let began = usage_us();
    assert!(AbortWord::new().await_verdict(Instant::now() + Duration::from_millis(100)).is_none());
    let used_us = usage_us() - began;
    assert!(used_us < 5000, "{used_us} us of processor time in 100 ms");
}

fn usage_us() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
}
