//! The control plane over real sockets, with ranks as threads and small child processes.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringtree_transport::rendezvous::{self, Server};
use ringtree_transport::secure::{self, Job, Purpose, Secret};

use super::poller::Connection;
use super::testing::{all_reduce, barrier, operation};
use super::wire::{self, Hello, Join, ToArbiter, ToMember};
use super::*;
use crate::record::CallRecord;

/// A service with its server.
struct Host {
    server: Server,
    service: Arc<ControlService>,
}

impl Host {
    fn new(hosted_by: Option<u64>) -> Host {
        let service = Arc::new(ControlService::new(hosted_by).unwrap());
        let serve = service.clone();
        let listener = rendezvous::listen("127.0.0.1:0").unwrap();
        let server =
            Server::start(listener, job(), move |stream, hello| serve.serve(stream, hello))
                .unwrap();
        Host { server, service }
    }

    fn address(&self) -> String {
        self.server.address().to_string()
    }

    fn joins(&self, rank: u32, ranks: u32) -> Member {
        self.try_join(rank, ranks).unwrap()
    }

    fn try_join(&self, rank: u32, ranks: u32) -> Result<Member, ControlError> {
        let (recorder, abort) = (Arc::new(FlightRecorder::new()), Arc::new(AbortWord::new()));
        let member = Membership { communicator: 7, rank, ranks, ..Membership::default() };
        let control = Control::join(
            &self.address(),
            &job(),
            member,
            recorder.clone(),
            abort.clone(),
            soon(),
        )?;
        Ok(Member { control, recorder, abort })
    }

    /// A rank that has joined but does nothing by itself, as if it were stopped.
    fn joins_silently(&self, rank: u32, ranks: u32) -> Connection {
        let place = Place { host: "elsewhere".into(), pid: 1, process_space: 0 };
        self.joins_silently_from(place, rank, ranks)
    }

    fn joins_silently_from(&self, place: Place, rank: u32, ranks: u32) -> Connection {
        let join = Join {
            communicator: 7,
            rank,
            ranks,
            place,
            lineage: String::new(),
            epoch: 0,
            terms: String::new(),
        };
        let stream = TcpStream::connect(self.server.address()).unwrap();
        let hello = wire::encode(&Hello::Join { join });
        let stream = secure::initiate(stream, &job(), Purpose::Control, &hello, soon()).unwrap();
        let mut connection = Connection::new(stream);
        let answer = connection.receive_until(soon()).unwrap();
        assert!(matches!(answer, Some(ToMember::Joined { .. })), "{answer:?}");
        connection
    }
}

struct Member {
    control: Control,
    recorder: Arc<FlightRecorder>,
    abort: Arc<AbortWord>,
}

impl Member {
    fn verdict(&self) -> Verdict {
        (*self.abort.await_verdict(soon()).expect("no verdict")).clone()
    }

    /// Begins a collective and complains about it.
    fn stalls(&self, record: CallRecord, waiting_for: u32, deadline_passed: bool) {
        let operation = operation(Stream::Collective, 5, record);
        self.recorder.begin(operation.stream, operation.sequence, &operation.record);
        let waiting_for = vec![waiting_for];
        let stall = Stall { operation, waiting_for, stalled_ms: 100, deadline_passed };
        self.control.stalled(stall);
    }
}

fn job() -> Job {
    Job { name: "test".into(), secret: Secret::from_text("secret") }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").spawn().unwrap()
}

#[test]
fn an_abort_reaches_every_member() {
    let host = Host::new(None);
    let members: Vec<_> = (0..4).map(|rank| host.joins(rank, 4)).collect();
    members[2].control.abort("enough");
    for member in &members {
        let expected = Verdict::Aborted { by: 2, reason: "enough".into() };
        assert_eq!(member.verdict(), expected);
    }
}

#[test]
fn the_host_knows_the_verdict_until_a_rank_goes_on_in_another_communicator() {
    let host = Host::new(None);
    let members: Vec<_> = (0..2).map(|rank| host.joins(rank, 2)).collect();
    assert_eq!(host.service.verdict(), None);
    members[1].control.abort("enough");
    let verdict = members[0].verdict();
    assert_eq!(host.service.verdict(), Some(verdict));
    let (recorder, abort) = (Arc::new(FlightRecorder::new()), Arc::new(AbortWord::new()));
    let next = Membership { communicator: 8, rank: 0, ranks: 2, ..Membership::default() };
    let next = Control::join(&host.address(), &job(), next, recorder, abort, soon());
    assert!(next.is_ok());
    assert_eq!(host.service.verdict(), None);
}

#[test]
fn a_rank_whose_connection_ends_died_for_all_others() {
    let host = Host::new(None);
    let silent = host.joins_silently(1, 3);
    let members = [host.joins(0, 3), host.joins(2, 3)];
    drop(silent);
    for member in &members {
        let Verdict::Died { rank: 1, place: Some(place), .. } = member.verdict() else {
            panic!("{}", member.verdict())
        };
        assert_eq!(place.to_string(), "process 1 on elsewhere");
    }
}

#[test]
fn a_process_that_ends_is_reported_though_its_connection_stays_open() {
    let host = Host::new(None);
    let _open = host.joins_silently(1, 3);
    let members = [host.joins(0, 3), host.joins(2, 3)];
    let mut child = sleeper();
    members[0].control.watch_process(1, child.id()).unwrap();
    child.kill().unwrap();
    for member in &members {
        let verdict = member.verdict();
        assert!(
            matches!(verdict, Verdict::Died { rank: 1, how: Death::ProcessEnded, .. }),
            "{verdict}"
        );
        assert!(member.abort.unfenced_ranks().is_empty());
    }
    child.wait().unwrap();
}

#[test]
fn a_process_that_ends_is_none_of_another_container_of_the_same_name() {
    let host = Host::new(None);
    let here = Place::here();
    let container = Place { process_space: here.process_space ^ 1, ..here.clone() };
    let _inside = host.joins_silently_from(container, 0, 3);
    let _beside = host.joins_silently_from(here.clone(), 1, 3);
    let member = host.joins(2, 3);
    host.service.process_ended(here.pid);
    // Rank 1 and this test's own one: the lowest of both is named.
    let verdict = member.verdict();
    assert!(
        matches!(verdict, Verdict::Died { rank: 1, how: Death::ProcessEnded, .. }),
        "{verdict}"
    );
}

#[test]
fn a_rank_that_does_not_answer_is_ended_before_the_verdict_is_known() {
    let host = Host::new(None);
    let _silent = host.joins_silently(1, 2);
    let member = host.joins(0, 2);
    let mut child = sleeper();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    member.control.watch_process(1, child.id()).unwrap();
    member.stalls(barrier(), 1, true);
    let verdict = member.verdict();
    assert!(matches!(verdict, Verdict::Stopped { rank: 1, .. }), "{verdict}");
    // Not even a moment later.
    assert!(child.try_wait().unwrap().is_some());
    assert!(member.abort.unfenced_ranks().is_empty());
}

#[test]
fn a_rank_of_the_same_process_is_not_killed_but_named_as_unfenced() {
    let host = Host::new(None);
    let silent = host.joins_silently(1, 2);
    let member = host.joins(0, 2);
    member.control.watch_process(1, std::process::id()).unwrap();
    member.stalls(barrier(), 1, false);
    // What was said before is heard before the connection ends.
    drop(silent);
    assert!(matches!(member.verdict(), Verdict::Died { rank: 1, .. }));
    assert_eq!(member.abort.unfenced_ranks(), [1]);
}

#[test]
fn different_calls_are_found_from_the_recorders() {
    let host = Host::new(None);
    let members: Vec<_> = (0..3).map(|rank| host.joins(rank, 3)).collect();
    // Ranks 0 and 2 have returned from their calls, or compute; only rank 1 says anything.
    for member in [&members[0], &members[2]] {
        let ticket = member.recorder.begin(Stream::Collective, 5, &all_reduce(1000));
        member.recorder.end(ticket);
    }
    members[1].stalls(all_reduce(1001), 0, false);
    for member in &members {
        let side = |rank, count| Side {
            rank,
            stream: Stream::Collective,
            record: Some(all_reduce(count)),
        };
        let expected = Verdict::Mismatch { sequence: 5, a: side(0, 1000), b: side(1, 1001) };
        assert_eq!(member.verdict(), expected);
    }
    assert_eq!(
        members[0].verdict().to_string(),
        "ranks disagree about operation 5: rank 0 called all-reduce of 1000 f32, sum (ring), rank 1 \
         called all-reduce of 1001 f32, sum (ring); all ranks must make the same calls in the same \
         order"
    );
}

#[test]
fn a_rank_that_leaves_while_others_wait_for_it_is_named() {
    let host = Host::new(None);
    let (member, leaver) = (host.joins(0, 2), host.joins(1, 2));
    leaver.control.leave();
    drop(leaver);
    member.stalls(barrier(), 1, false);
    assert!(matches!(member.verdict(), Verdict::Left { rank: 1, by: 0, .. }));
}

#[test]
fn a_rank_that_is_busy_elsewhere_is_late_when_the_deadline_passes() {
    let host = Host::new(None);
    let (member, late) = (host.joins(0, 2), host.joins(1, 2));
    member.stalls(barrier(), 1, true);
    assert!(matches!(member.verdict(), Verdict::Late { rank: 1, doing: None, .. }));
    assert_eq!(late.verdict(), member.verdict());
}

#[test]
fn members_go_on_when_the_service_ends_in_good_order() {
    let host = Host::new(None);
    let member = host.joins(0, 2);
    let other = host.joins(1, 2);
    drop(host);
    // The service's thread has ended: all that it ever says is on its way.
    other.stalls(barrier(), 0, false);
    member.stalls(barrier(), 1, true);
    let Verdict::ArbiterLost { reason } = member.verdict() else { panic!("{}", member.verdict()) };
    assert_eq!(reason, "it has ended, and seq 5 barrier makes no progress");
    assert!(!other.abort.is_set());
}

const PROCESS_OF_RANK_0: u64 = 7;

/// A member whose service only lets it join, and the service's end of the connection.
fn joins_mute_service(arbiter: Option<u64>) -> (Member, Connection) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (recorder, abort) = (Arc::new(FlightRecorder::new()), Arc::new(AbortWord::new()));
    let member = Membership {
        communicator: 0,
        rank: 1,
        ranks: 2,
        processes: vec![PROCESS_OF_RANK_0, 9],
        ..Membership::default()
    };
    let service = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let accepted = secure::accept(Arc::new(stream), &job(), soon(), |_, _| Ok(()));
        let mut connection = Connection::new(accepted.unwrap().0);
        let place = Place { host: "a".into(), pid: 5, process_space: 0 };
        connection.send(&ToMember::Joined { arbiter, place });
        connection
    });
    let control =
        Control::join(&address, &job(), member, recorder.clone(), abort.clone(), soon()).unwrap();
    (Member { control, recorder, abort }, service.join().unwrap())
}

fn died_with_the_service(how: Death) -> Verdict {
    let place = Some(Place { host: "a".into(), pid: 5, process_space: 0 });
    Verdict::Died { rank: 0, place, how, operation: None }
}

#[test]
fn a_service_that_is_lost_is_its_own_or_its_ranks_end() {
    let (member, connection) = joins_mute_service(None);
    drop(connection);
    let reason = "process 5 on a closed its connections".to_owned();
    assert_eq!(member.verdict(), Verdict::ArbiterLost { reason });

    let (member, _connection) = joins_mute_service(None);
    member.stalls(barrier(), 0, true);
    let reason = "process 5 on a does not answer".to_owned();
    assert_eq!(member.verdict(), Verdict::ArbiterLost { reason });

    let (member, connection) = joins_mute_service(Some(PROCESS_OF_RANK_0));
    drop(connection);
    assert_eq!(member.verdict(), died_with_the_service(Death::ConnectionLost));
}

#[test]
fn a_service_that_does_not_answer_is_its_ranks_end_and_the_rank_is_ended() {
    let (member, _connection) = joins_mute_service(Some(PROCESS_OF_RANK_0));
    let mut child = sleeper();
    member.control.watch_process(0, child.id()).unwrap();
    member.stalls(barrier(), 0, true);
    assert_eq!(member.verdict(), died_with_the_service(Death::NoAnswer));
    assert!(child.try_wait().unwrap().is_some());
}

#[test]
fn a_service_whose_process_ends_is_its_ranks_end_though_the_connection_stays_open() {
    let (member, _connection) = joins_mute_service(Some(PROCESS_OF_RANK_0));
    let mut child = sleeper();
    member.control.watch_process(0, child.id()).unwrap();
    child.kill().unwrap();
    assert_eq!(member.verdict(), died_with_the_service(Death::ConnectionLost));
    child.wait().unwrap();
}

#[test]
fn the_service_is_not_empty_before_the_last_rank_has_come_and_left() {
    let host = Host::new(None);
    drop(host.joins(0, 2));
    let at_once = Instant::now() + Duration::from_millis(100);
    assert!(!host.service.await_empty(at_once), "rank 1 is still on its way");
    drop(host.joins(1, 2));
    assert!(host.service.await_empty(soon()));
}

#[test]
fn ranks_that_do_not_fit_are_told_so() {
    let host = Host::new(None);
    let _first = host.joins(0, 2);
    let Err(ControlError::Refused { reason }) = host.try_join(0, 2) else { panic!("joined twice") };
    assert!(reason.contains("rank 0 has joined already"), "{reason}");
    let Err(ControlError::Refused { reason }) = host.try_join(1, 3) else { panic!("joined") };
    assert!(reason.contains("there are 3 ranks, others say 2"), "{reason}");
}

#[test]
fn what_is_no_request_to_join_is_refused_and_harms_nobody() {
    let host = Host::new(None);
    let member = host.joins(0, 2);
    let stream = TcpStream::connect(host.server.address()).unwrap();
    let stream = secure::initiate(stream, &job(), Purpose::Control, b"nonsense", soon()).unwrap();
    let answer = Connection::new(stream).receive_until(soon()).unwrap();
    assert!(matches!(answer, Some(ToMember::Refused { .. })), "{answer:?}");
    member.control.abort("still there");
    assert!(matches!(member.verdict(), Verdict::Aborted { by: 0, .. }));
}

#[test]
fn a_member_that_talks_nonsense_died_for_the_others() {
    let host = Host::new(None);
    let mut bad = host.joins_silently(1, 2);
    let member = host.joins(0, 2);
    bad.send(&ToMember::Closing {}); // not for an arbiter
    assert!(matches!(member.verdict(), Verdict::Died { rank: 1, .. }));
}

#[test]
fn nobody_listens_and_wrong_secrets_are_errors() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let host = Host::new(None);
    let member = Membership { communicator: 0, rank: 0, ranks: 1, ..Membership::default() };
    let join = |address: &str, job: &Job| {
        let (recorder, abort) = (Arc::new(FlightRecorder::new()), Arc::new(AbortWord::new()));
        Control::join(address, job, member.clone(), recorder, abort, soon()).err()
    };
    assert!(matches!(join(&address, &job()), Some(ControlError::Unreachable { .. })));
    assert!(matches!(join("no port", &job()), Some(ControlError::Address { .. })));
    let wrong = Job { name: "test".into(), secret: Secret::from_text("guess") };
    assert!(matches!(join(&host.address(), &wrong), Some(ControlError::Connection(_))));
}

#[test]
fn the_service_is_empty_when_all_have_left_and_serves_the_next_communicator() {
    let host = Host::new(None);
    for _ in 0..3 {
        let members = [host.joins(0, 2), host.joins(1, 2)];
        assert!(!host.service.await_empty(Instant::now()));
        drop(members);
        assert!(host.service.await_empty(soon()));
    }
}

#[test]
fn a_reported_stall_is_answered_by_a_verdict_only_once_for_all_communicators_apart() {
    let host = Host::new(None);
    let members: Vec<_> = (0..2).map(|rank| host.joins(rank, 2)).collect();
    let (recorder, abort) = (Arc::new(FlightRecorder::new()), Arc::new(AbortWord::new()));
    let other = Membership { communicator: 8, rank: 0, ranks: 1, ..Membership::default() };
    let other =
        Control::join(&host.address(), &job(), other, recorder, abort.clone(), soon()).unwrap();
    members[1].control.abort("here");
    members.iter().for_each(|member| drop(member.verdict()));
    // Were it to get the first communicator's verdict, it would have by the time of its own.
    other.abort("there");
    let verdict = abort.await_verdict(soon());
    assert_eq!(verdict.as_deref(), Some(&Verdict::Aborted { by: 0, reason: "there".into() }));
}

#[test]
fn many_ranks_of_one_process_join_and_hear_the_verdict() {
    const RANKS: u32 = 256;
    let host = Host::new(Some(0));
    let began = Instant::now();
    let members: Vec<_> = std::thread::scope(|scope| {
        let host = &host;
        let joins = (0..RANKS).map(|rank| scope.spawn(move || host.joins(rank, RANKS)));
        let joins: Vec<_> = joins.collect();
        joins.into_iter().map(|join| join.join().unwrap()).collect()
    });
    println!("{RANKS} ranks joined in {:?}", began.elapsed());
    let began = Instant::now();
    members[9].stalls(barrier(), 200, true);
    for member in &members {
        let verdict = member.verdict();
        assert!(matches!(verdict, Verdict::Late { rank: 200, .. }), "{verdict}");
    }
    println!("the verdict came in {:?}", began.elapsed());
    drop(members);
    assert!(host.service.await_empty(soon()));
}

/// What a member says first is read with its greeting, not lost.
#[test]
fn a_goodbye_right_after_joining_is_heard() {
    let host = Host::new(None);
    let member = host.joins(0, 2);
    let mut hasty = host.joins_silently(1, 2);
    hasty.send(&ToArbiter::Goodbye { entries: Vec::new() });
    drop(hasty);
    member.stalls(barrier(), 1, false);
    assert!(matches!(member.verdict(), Verdict::Left { rank: 1, .. }));
}
