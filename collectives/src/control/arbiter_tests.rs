//! Scenarios for the arbiter: what ranks report, in any order, and the one verdict.

use super::*;
use crate::control::recorder::{State, Stream};
use crate::control::testing::{Random, all_reduce, barrier, entry, operation};
use crate::control::verdict::{Awaited, Side};
use crate::control::wire::{Stall, Suspicion};
use crate::record::CallRecord;

const COLLECTIVE: Stream = Stream::Collective;

/// An arbiter with its ranks. Each rank answers from its entries; messages to the arbiter wait in
/// one queue a rank and are delivered in random order, as those of different connections are.
struct Scene {
    arbiter: Arbiter,
    now_ms: u64,
    ranks: Vec<Rank>,
    random: Random,
}

#[derive(Default)]
struct Rank {
    entries: Vec<Entry>,
    stopped: bool,
    gone: bool,
    /// The question that a stopped rank finds when it wakes.
    asked: Option<u64>,
    /// What it sent and was not delivered yet.
    sent: std::collections::VecDeque<Event>,
    verdicts: Vec<Verdict>,
}

enum Event {
    Message(ToArbiter),
    Lost,
}

impl Scene {
    fn new(ranks: u32, seed: u64) -> Scene {
        let mut arbiter = Arbiter::new(ranks);
        for rank in 0..ranks {
            assert_eq!(arbiter.join(rank, ranks, place(rank)), Ok(Vec::new()));
        }
        let all = (0..ranks).map(|_| Rank::default()).collect();
        Scene { arbiter, now_ms: 1000, ranks: all, random: Random::new(seed) }
    }

    /// The rank begins an operation and waits in it.
    fn begins(&mut self, rank: u32, operation: Operation, waiting_for: Option<u32>) {
        let entry = entry(operation, State::Running, waiting_for);
        self.ranks[rank as usize].entries.push(entry);
    }

    fn completes(&mut self, rank: u32, operation: Operation) {
        let entries = &mut self.ranks[rank as usize].entries;
        entries.retain(|entry| entry.operation != operation);
        entries.push(entry(operation, State::Completed, None));
    }

    fn says(&mut self, rank: u32, message: ToArbiter) {
        self.ranks[rank as usize].sent.push_back(Event::Message(message));
    }

    /// The rank begins an operation, waits for these, and complains about it.
    fn stalls(&mut self, rank: u32, operation: Operation, waiting_for: &[u32], overdue: bool) {
        self.begins(rank, operation, waiting_for.first().copied());
        self.says(rank, stalled(operation, waiting_for, overdue));
    }

    fn dies(&mut self, rank: u32) {
        self.ranks[rank as usize].gone = true;
        self.ranks[rank as usize].sent.push_back(Event::Lost);
    }

    fn leaves(&mut self, rank: u32) {
        let entries = self.ranks[rank as usize].entries.clone();
        self.says(rank, ToArbiter::Goodbye { entries });
        self.dies(rank);
    }

    fn wakes(&mut self, rank: u32) {
        let rank = &mut self.ranks[rank as usize];
        rank.stopped = false;
        let entries = rank.entries.clone();
        if let Some(query) = rank.asked.take() {
            rank.sent.push_back(Event::Message(ToArbiter::Answer { query, entries }));
        }
    }

    /// Delivers everything until nothing is left to do before this time.
    fn run_until(&mut self, until_ms: u64) {
        for _ in 0..100_000 {
            let waiting: Vec<usize> =
                (0..self.ranks.len()).filter(|&rank| !self.ranks[rank].sent.is_empty()).collect();
            if waiting.is_empty() {
                match self.arbiter.next_timeout_ms().filter(|at_ms| *at_ms <= until_ms) {
                    None => {
                        self.now_ms = until_ms;
                        return;
                    }
                    Some(at_ms) => {
                        self.now_ms = self.now_ms.max(at_ms);
                        let sends = self.arbiter.handle_timeout(self.now_ms);
                        self.deliver(sends);
                    }
                }
                continue;
            }
            let rank = waiting[self.random.below(waiting.len() as u64) as usize];
            let sends = match self.ranks[rank].sent.pop_front() {
                Some(Event::Message(message)) => {
                    self.arbiter.handle(self.now_ms, rank as u32, message)
                }
                Some(Event::Lost) => self.arbiter.connection_lost(rank as u32),
                None => Vec::new(),
            };
            self.deliver(sends);
        }
        panic!("the arbiter never comes to rest");
    }

    fn deliver(&mut self, sends: Vec<Send>) {
        for Send { to, message } in sends {
            let rank = &mut self.ranks[to as usize];
            match message {
                ToMember::Verdict { verdict } => rank.verdicts.push(verdict),
                ToMember::Query { id } if !rank.stopped && !rank.gone => {
                    let entries = rank.entries.clone();
                    rank.sent.push_back(Event::Message(ToArbiter::Answer { query: id, entries }));
                }
                ToMember::Query { id } => {
                    assert_eq!(rank.asked.replace(id), None, "asked twice without an answer");
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// The one verdict that everyone who is there got, each once.
    fn verdict(&self) -> Verdict {
        let there = self.ranks.iter().filter(|rank| !rank.gone);
        let verdicts: Vec<_> = there.map(|rank| &rank.verdicts[..]).collect();
        let [first, ..] = verdicts[0] else { panic!("no verdict") };
        assert!(verdicts.iter().all(|v| v[0] == *first), "{verdicts:?}");
        first.clone()
    }

    fn assert_no_verdict(&self) {
        assert!(self.ranks.iter().all(|rank| rank.verdicts.is_empty()));
    }
}

fn place(rank: u32) -> Place {
    Place { host: format!("node-{rank}"), pid: 100 + rank, process_space: 1 + u64::from(rank) }
}

fn stalled(operation: Operation, waiting_for: &[u32], deadline_passed: bool) -> ToArbiter {
    let waiting_for = waiting_for.to_vec();
    let stalled_ms = 100;
    ToArbiter::Stalled { stall: Stall { operation, waiting_for, stalled_ms, deadline_passed } }
}

fn collective(sequence: u32, record: CallRecord) -> Operation {
    operation(COLLECTIVE, sequence, record)
}

fn side(rank: u32, record: CallRecord) -> Side {
    Side { rank, stream: COLLECTIVE, record: Some(record) }
}

/// Every order of delivery must do.
fn for_seeds(scenario: impl Fn(u64)) {
    (0..50).for_each(scenario);
}

#[test]
fn a_rank_whose_connection_is_lost_died_at_once() {
    for_seeds(|seed| {
        let mut scene = Scene::new(4, seed);
        let op = collective(17, all_reduce(8));
        scene.stalls(0, op, &[2], false);
        scene.run_until(1000);
        scene.dies(2);
        scene.run_until(1000);
        let how = Death::ConnectionLost;
        let place = Some(place(2));
        assert_eq!(scene.verdict(), Verdict::Died { rank: 2, place, how, operation: Some(op) });
    });
}

#[test]
fn a_process_that_ended_without_goodbye_died_though_its_connection_is_open() {
    let mut scene = Scene::new(2, 1);
    scene.says(0, ToArbiter::ProcessEnded { peer: 1 });
    scene.run_until(1000 + GOODBYE_GRACE_MS);
    let how = Death::ProcessEnded;
    let place = Some(place(1));
    assert_eq!(scene.verdict(), Verdict::Died { rank: 1, place, how, operation: None });
}

#[test]
fn a_process_that_ended_after_its_goodbye_left() {
    for_seeds(|seed| {
        let mut scene = Scene::new(3, seed);
        scene.says(0, ToArbiter::ProcessEnded { peer: 1 });
        scene.leaves(1);
        scene.run_until(5000);
        scene.assert_no_verdict();
        scene.stalls(0, collective(0, barrier()), &[1, 2], false);
        scene.run_until(6000);
        let operation = Some(collective(0, barrier()));
        assert_eq!(scene.verdict(), Verdict::Left { rank: 1, by: 0, operation });
    });
}

#[test]
fn the_first_of_two_deaths_is_the_verdict_for_everyone() {
    for_seeds(|seed| {
        let mut scene = Scene::new(5, seed);
        scene.dies(1);
        scene.dies(3);
        scene.run_until(1000);
        let Verdict::Died { rank, .. } = scene.verdict() else { panic!("{}", scene.verdict()) };
        assert!(rank == 1 || rank == 3);
    });
}

#[test]
fn whoever_complains_after_the_verdict_gets_it_again() {
    let mut scene = Scene::new(3, 1);
    scene.dies(1);
    scene.run_until(1000);
    scene.stalls(2, collective(0, barrier()), &[1], false);
    scene.run_until(1000);
    assert_eq!(scene.ranks[2].verdicts.len(), 2);
    scene.verdict();
}

#[test]
fn a_rank_that_joins_after_the_verdict_is_told() {
    let mut arbiter = Arbiter::new(3);
    arbiter.join(0, 3, place(0)).unwrap();
    arbiter.join(1, 3, place(1)).unwrap();
    assert_eq!(arbiter.connection_lost(1).len(), 1);
    let sends = arbiter.join(2, 3, place(2)).unwrap();
    assert!(matches!(&sends[..], [Send { to: 2, message: ToMember::Verdict { .. } }]));
}

#[test]
fn a_rank_that_joins_during_a_survey_is_not_taken_for_one_that_is_stopped() {
    let mut arbiter = Arbiter::new(2);
    arbiter.join(0, 2, place(0)).unwrap();
    arbiter.handle(1000, 0, stalled(collective(0, barrier()), &[1], true));
    let asked = arbiter.handle_timeout(1000 + GATHER_MS);
    assert!(matches!(&asked[..], [Send { to: 0, message: ToMember::Query { .. } }]));
    let [Send { message: ToMember::Query { id: query }, .. }] = asked[..] else { unreachable!() };
    assert_eq!(arbiter.join(1, 2, place(1)), Ok(Vec::new()));
    let answer = ToArbiter::Answer { query, entries: Vec::new() };
    let sends = arbiter.handle(1100, 0, answer);
    let is_late = |send: &Send| {
        matches!(&send.message, ToMember::Verdict { verdict: Verdict::Late { rank: 1, .. } })
    };
    assert!(sends.len() == 2 && sends.iter().all(is_late), "{sends:?}");
}

#[test]
fn ranks_that_do_not_fit_are_refused() {
    let mut arbiter = Arbiter::new(2);
    arbiter.join(0, 2, place(0)).unwrap();
    let twice = Refusal::Twice { rank: 0, place: place(0) };
    assert_eq!(arbiter.join(0, 2, place(0)), Err(twice));
    assert_eq!(arbiter.join(1, 3, place(1)), Err(Refusal::Ranks { rank: 1, said: 3, ranks: 2 }));
    assert_eq!(arbiter.join(2, 2, place(2)), Err(Refusal::Rank { rank: 2, ranks: 2 }));
}

#[test]
fn an_abort_reaches_everyone() {
    let mut scene = Scene::new(3, 1);
    scene.says(1, ToArbiter::Abort { reason: "enough".into() });
    scene.run_until(1000);
    assert_eq!(scene.verdict(), Verdict::Aborted { by: 1, reason: "enough".into() });
}

#[test]
fn different_calls_are_a_mismatch_that_names_the_lowest_rank_of_each_side() {
    for_seeds(|seed| {
        let mut scene = Scene::new(5, seed);
        for rank in [0, 1, 2, 4] {
            scene.stalls(rank, collective(3, all_reduce(1000)), &[(rank + 4) % 5], false);
        }
        scene.stalls(3, collective(3, all_reduce(1001)), &[2], false);
        scene.run_until(2000);
        let (a, b) = (side(0, all_reduce(1000)), side(3, all_reduce(1001)));
        assert_eq!(scene.verdict(), Verdict::Mismatch { sequence: 3, a, b });
    });
}

#[test]
fn a_rank_whose_call_has_returned_is_part_of_a_mismatch() {
    for_seeds(|seed| {
        let mut scene = Scene::new(3, seed);
        scene.completes(1, collective(3, barrier()));
        scene.stalls(0, collective(3, all_reduce(4)), &[1], false);
        scene.stalls(2, collective(3, all_reduce(4)), &[1], false);
        scene.run_until(2000);
        let (a, b) = (side(0, all_reduce(4)), side(1, barrier()));
        assert_eq!(scene.verdict(), Verdict::Mismatch { sequence: 3, a, b });
    });
}

#[test]
fn a_mismatch_is_found_though_the_other_call_comes_late_and_reports_nothing() {
    let mut scene = Scene::new(2, 1);
    scene.stalls(0, collective(3, all_reduce(4)), &[1], false);
    scene.run_until(10_000);
    scene.assert_no_verdict();
    scene.completes(1, collective(3, barrier()));
    scene.run_until(11_000);
    assert!(matches!(scene.verdict(), Verdict::Mismatch { sequence: 3, .. }));
}

#[test]
fn a_mismatch_with_a_rank_that_has_left_is_a_mismatch() {
    for_seeds(|seed| {
        let mut scene = Scene::new(3, seed);
        scene.completes(1, collective(3, barrier()));
        scene.leaves(1);
        scene.stalls(2, collective(3, all_reduce(4)), &[1], false);
        scene.run_until(3000);
        let (a, b) = (side(1, barrier()), side(2, all_reduce(4)));
        assert_eq!(scene.verdict(), Verdict::Mismatch { sequence: 3, a, b });
    });
}

#[test]
fn the_earliest_of_several_mismatches_is_named_also_where_numbers_wrap() {
    for_seeds(|seed| {
        let mut scene = Scene::new(2, seed);
        scene.completes(0, collective(u32::MAX, barrier()));
        scene.stalls(0, collective(0, all_reduce(1)), &[1], false);
        scene.stalls(1, collective(u32::MAX, all_reduce(2)), &[0], false);
        scene.begins(1, collective(0, all_reduce(3)), None);
        scene.run_until(2000);
        assert!(matches!(scene.verdict(), Verdict::Mismatch { sequence: u32::MAX, .. }));
    });
}

#[test]
fn point_to_point_is_compared_between_the_two_only() {
    let call = |stream, count| operation(stream, 5, CallRecord { count, ..p2p() });
    for_seeds(|seed| {
        let mut scene = Scene::new(4, seed);
        scene.stalls(0, call(Stream::SendTo(1), 7), &[1], false);
        scene.stalls(2, call(Stream::SendTo(3), 8), &[3], false);
        scene.stalls(1, call(Stream::SendTo(0), 9), &[0], false); // the other direction
        scene.run_until(3000);
        scene.assert_no_verdict();
        scene.stalls(3, call(Stream::ReceiveFrom(2), 9), &[2], false);
        scene.run_until(4000);
        let Verdict::Mismatch { sequence: 5, a, b } = scene.verdict() else {
            panic!("{}", scene.verdict())
        };
        assert_eq!((a.rank, b.rank, b.stream), (2, 3, Stream::ReceiveFrom(2)));
    });
}

#[test]
fn a_frame_of_another_call_is_a_mismatch_though_the_peers_recorder_forgot_it() {
    for_seeds(|seed| {
        let mut scene = Scene::new(3, seed);
        let op = collective(3, all_reduce(4));
        scene.begins(1, op, Some(2));
        scene.completes(2, collective(90, barrier()));
        let suspicion = Suspicion { operation: op, peer: 2, peer_sequence: 3, peer_digest: 1 };
        scene.says(1, ToArbiter::SuspectMismatch { suspicion });
        scene.run_until(2000);
        let b = Side { rank: 2, stream: COLLECTIVE, record: None };
        let a = side(1, all_reduce(4));
        assert_eq!(scene.verdict(), Verdict::Mismatch { sequence: 3, a, b });
    });
}

#[test]
fn a_frame_out_of_step_between_equal_calls_breaks_the_link() {
    let mut scene = Scene::new(2, 1);
    let op = collective(3, all_reduce(4));
    scene.begins(0, op, Some(1));
    scene.begins(1, op, Some(0));
    let suspicion = Suspicion { operation: op, peer: 1, peer_sequence: 2, peer_digest: 1 };
    scene.says(0, ToArbiter::SuspectMismatch { suspicion });
    scene.run_until(2000);
    assert!(matches!(scene.verdict(), Verdict::LinkBroken { a: 0, b: 1, .. }));
}

#[test]
fn waiting_is_no_reason_for_a_verdict_before_the_deadline() {
    for_seeds(|seed| {
        let mut scene = Scene::new(3, seed);
        scene.stalls(0, collective(3, barrier()), &[1], false);
        scene.stalls(2, collective(3, barrier()), &[1], false);
        scene.ranks[1].stopped = true;
        scene.run_until(60_000);
        scene.assert_no_verdict();
    });
}

#[test]
fn a_rank_that_does_not_answer_after_the_deadline_is_stopped() {
    for_seeds(|seed| {
        let mut scene = Scene::new(4, seed);
        let op = collective(3, barrier());
        // Rank 0 knows only that it waits for rank 1, which waits for rank 2.
        scene.begins(2, op, Some(1));
        scene.stalls(0, op, &[1], false);
        scene.stalls(1, op, &[2], false);
        scene.run_until(3000);
        scene.ranks[2].stopped = true;
        scene.says(0, stalled(op, &[1], true));
        scene.run_until(5000);
        let last_seen = Some(entry(op, State::Running, Some(1)));
        let awaited = Awaited { by: 1, operation: op };
        let place = Some(place(2));
        assert_eq!(scene.verdict(), Verdict::Stopped { rank: 2, place, awaited, last_seen });
    });
}

#[test]
fn a_rank_that_was_stopped_and_runs_again_is_asked_anew() {
    for_seeds(|seed| {
        let mut scene = Scene::new(2, seed);
        scene.stalls(0, collective(3, barrier()), &[1], false);
        scene.ranks[1].stopped = true;
        scene.run_until(10_000);
        scene.completes(1, collective(3, all_reduce(5)));
        scene.wakes(1);
        scene.run_until(11_000);
        assert!(matches!(scene.verdict(), Verdict::Mismatch { sequence: 3, .. }));
    });
}

/// It was stopped for so long that surveys do not wait for it any more.
#[test]
fn a_rank_that_runs_again_when_a_deadline_passes_is_not_taken_for_one_that_is_stopped() {
    let mut arbiter = Arbiter::new(2);
    arbiter.join(0, 2, place(0)).unwrap();
    arbiter.join(1, 2, place(1)).unwrap();
    let op = collective(0, barrier());
    let answer = |query| ToArbiter::Answer { query, entries: Vec::new() };
    arbiter.handle(1000, 0, stalled(op, &[1], false));
    assert_eq!(arbiter.handle_timeout(1000 + GATHER_MS).len(), 2, "both are asked");
    arbiter.handle(1021, 0, answer(1));
    assert!(arbiter.handle_timeout(1020 + ANSWER_MS).is_empty(), "nobody's deadline has passed");
    arbiter.handle(1800, 0, stalled(op, &[1], true));
    let now_ms = arbiter.next_timeout_ms().expect("a survey is due");
    assert_eq!(arbiter.handle_timeout(now_ms).len(), 1, "the other one has not answered yet");
    let asked = arbiter.handle(now_ms, 1, answer(1));
    assert!(matches!(asked[..], [Send { to: 1, message: ToMember::Query { id: 2 } }]), "{asked:?}");
    assert!(arbiter.handle(now_ms, 0, answer(2)).is_empty(), "one is still awaited");
    let told = arbiter.handle(now_ms + 1, 1, answer(2));
    let is_late = |send: &Send| {
        matches!(&send.message, ToMember::Verdict { verdict: Verdict::Late { rank: 1, .. } })
    };
    assert!(told.len() == 2 && told.iter().all(is_late), "{told:?}");
}

#[test]
fn a_rank_that_answers_but_has_not_called_is_late() {
    for_seeds(|seed| {
        let mut scene = Scene::new(3, seed);
        let op = collective(3, barrier());
        let before = collective(2, barrier());
        scene.completes(1, before);
        scene.stalls(0, op, &[1], true);
        scene.stalls(2, op, &[0], true);
        scene.run_until(3000);
        let doing = Some(entry(before, State::Completed, None));
        let awaited = Awaited { by: 0, operation: op };
        assert_eq!(
            scene.verdict(),
            Verdict::Late { rank: 1, place: Some(place(1)), awaited, doing }
        );
    });
}

#[test]
fn a_rank_that_waits_elsewhere_is_late_unless_whom_it_waits_for_is() {
    for_seeds(|seed| {
        let op = collective(3, barrier());
        let aside = operation(Stream::ReceiveFrom(2), 0, p2p());
        let mut scene = Scene::new(3, seed);
        scene.stalls(0, op, &[1], true);
        scene.stalls(1, aside, &[2], false);
        scene.run_until(3000);
        let Verdict::Late { rank: 2, awaited, .. } = scene.verdict() else {
            panic!("{}", scene.verdict())
        };
        assert_eq!(awaited, Awaited { by: 1, operation: aside });

        let mut scene = Scene::new(3, seed);
        scene.stalls(0, op, &[1], true);
        scene.stalls(1, aside, &[2], false);
        scene.stalls(2, op, &[0], false);
        scene.run_until(3000);
        let Verdict::Late { rank: 1, doing: Some(doing), .. } = scene.verdict() else {
            panic!("{}", scene.verdict())
        };
        assert_eq!(doing.operation, aside);
    });
}

#[test]
fn a_rank_that_has_never_joined_is_late() {
    let mut arbiter = Arbiter::new(2);
    arbiter.join(0, 2, place(0)).unwrap();
    let op = collective(0, barrier());
    arbiter.handle(0, 0, stalled(op, &[1], true));
    assert_eq!(arbiter.handle_timeout(GATHER_MS).len(), 1);
    let entries = vec![entry(op, State::Running, Some(1))];
    let sends = arbiter.handle(30, 0, ToArbiter::Answer { query: 1, entries });
    let [Send { message: ToMember::Verdict { verdict }, .. }] = &sends[..] else {
        panic!("{sends:?}")
    };
    assert!(matches!(verdict, Verdict::Late { rank: 1, place: None, .. }));
}

#[test]
fn a_rank_inside_the_operation_that_waits_for_nobody_is_what_all_wait_for() {
    for_seeds(|seed| {
        let op = collective(3, all_reduce(9));
        let mut scene = Scene::new(4, seed);
        scene.stalls(0, op, &[3], true);
        scene.stalls(1, op, &[0], true);
        scene.stalls(3, op, &[2], true);
        scene.begins(2, op, None);
        scene.run_until(3000);
        assert!(matches!(scene.verdict(), Verdict::Late { rank: 2, .. }));
    });
}

#[test]
fn a_circle_in_one_operation_is_a_broken_link_at_the_rank_that_came_least_far() {
    for_seeds(|seed| {
        let op = collective(3, all_reduce(9));
        let mut scene = Scene::new(4, seed);
        for (rank, steps) in [(0, 5), (1, 4), (2, 3), (3, 0)] {
            let waits_for = [2, 0, 1, 0][rank as usize];
            scene.stalls(rank, op, &[waits_for], true);
            scene.ranks[rank as usize].entries[0].steps = steps;
        }
        scene.run_until(3000);
        // Rank 3 waits for the circle but is no part of it.
        assert!(matches!(scene.verdict(), Verdict::LinkBroken { a: 2, b: 1, .. }));
    });
}

#[test]
fn a_rank_that_completed_what_another_waits_for_it_in_is_not_blamed() {
    for_seeds(|seed| {
        let mut scene = Scene::new(2, seed);
        let op = collective(3, all_reduce(9));
        scene.completes(1, op);
        scene.stalls(1, collective(4, barrier()), &[0], true);
        scene.stalls(0, op, &[1], true);
        scene.run_until(3000);
        assert!(matches!(scene.verdict(), Verdict::LinkBroken { a: 0, b: 1, .. }));
    });
}

#[test]
fn a_passed_deadline_has_a_verdict_whatever_the_ranks_do() {
    for seed in 0..500 {
        let mut scene = Scene::new(4, seed);
        let op = collective(3, barrier());
        for rank in 0..4 {
            let target = scene.random.below(5) as u32;
            match scene.random.below(5) {
                0 => scene.completes(rank, op),
                1 => scene.begins(rank, op, Some(target).filter(|_| seed % 2 == 0)),
                2 => scene.stalls(rank, op, &[target], false),
                3 => scene.ranks[rank as usize].stopped = rank != 0,
                _ => scene.begins(rank, operation(Stream::SendTo(target), 1, p2p()), Some(target)),
            }
        }
        scene.ranks[0].entries.clear();
        let targets: &[u32] = if seed % 3 == 0 { &[] } else { &[1] };
        scene.stalls(0, op, targets, true);
        scene.run_until(4000);
        scene.verdict();
    }
}

#[test]
fn a_stall_that_has_passed_is_forgotten_before_anyone_leaves() {
    for_seeds(|seed| {
        let mut scene = Scene::new(3, seed);
        let op = collective(3, barrier());
        scene.stalls(0, op, &[1], false);
        scene.run_until(1050);
        (0..3).for_each(|rank| scene.completes(rank, op));
        scene.leaves(1);
        scene.run_until(9000);
        scene.assert_no_verdict();
    });
}

/// A rank that is held up sees late what the others sent before they left.
#[test]
fn a_rank_that_left_after_it_completed_an_operation_keeps_nobody_in_it() {
    for_seeds(|seed| {
        let mut scene = Scene::new(3, seed);
        let op = collective(3, barrier());
        scene.completes(0, op);
        scene.leaves(0);
        scene.stalls(1, op, &[0], false);
        scene.run_until(9000);
        scene.assert_no_verdict();
        scene.says(1, stalled(op, &[0], true));
        scene.run_until(10_000);
        assert_eq!(scene.verdict(), Verdict::Left { rank: 0, by: 1, operation: Some(op) });
    });
}

#[test]
fn a_link_that_failed_because_its_peer_died_is_a_death() {
    for_seeds(|seed| {
        let mut scene = Scene::new(3, seed);
        let op = collective(3, barrier());
        scene.begins(0, op, Some(2));
        scene.says(0, link_failed(2, Some(op)));
        scene.run_until(1000 + LINK_GRACE_MS - 1);
        scene.assert_no_verdict();
        scene.dies(2);
        scene.run_until(2000);
        let Verdict::Died { rank: 2, operation: Some(operation), .. } = scene.verdict() else {
            panic!("{}", scene.verdict())
        };
        assert_eq!(operation, op);
    });
}

#[test]
fn a_link_that_failed_because_its_peer_left_is_a_leave() {
    for_seeds(|seed| {
        let mut scene = Scene::new(3, seed);
        scene.says(0, link_failed(2, None));
        scene.leaves(2);
        scene.run_until(2000);
        assert_eq!(scene.verdict(), Verdict::Left { rank: 2, by: 0, operation: None });
    });
}

#[test]
fn a_link_that_failed_between_living_ranks_is_broken() {
    for_seeds(|seed| {
        let mut scene = Scene::new(3, seed);
        scene.says(0, link_failed(2, None));
        scene.says(2, link_failed(0, None));
        scene.run_until(2000);
        let reason = "cut".to_owned();
        assert_eq!(scene.verdict(), Verdict::LinkBroken { a: 0, b: 2, reason });
    });
}

#[test]
fn leaving_in_good_order_has_no_verdict() {
    for_seeds(|seed| {
        let mut scene = Scene::new(5, seed);
        (0..5).for_each(|rank| scene.leaves(rank));
        scene.run_until(5000);
        scene.assert_no_verdict();
        assert!(scene.arbiter.is_complete());
        assert_eq!(scene.arbiter.next_timeout_ms(), None);
    });
}

fn link_failed(peer: u32, operation: Option<Operation>) -> ToArbiter {
    ToArbiter::LinkFailed { failure: LinkFailure { peer, reason: "cut".into(), operation } }
}

fn p2p() -> CallRecord {
    CallRecord { kind: crate::record::CallKind::PointToPoint, algorithm: 0, ..all_reduce(1) }
}
