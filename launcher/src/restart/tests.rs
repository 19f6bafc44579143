//! What is decided about ranks that die, case by case.

use super::*;

/// What happens to a rank.
#[derive(Clone, Copy, Debug)]
enum Event {
    Dies(u32),
    Ends(u32),
}
use Event::{Dies, Ends};

/// Events, and decisions, each with its time in milliseconds.
type Events<'a> = &'a [(u64, Event)];
type Decisions = Vec<(u64, Decision)>;

/// Everything that is decided about four ranks that start at 0, with the time at which it is.
fn play(limits: Limits, events: Events) -> Decisions {
    let mut job = Job::new(limits, 0..4, 0);
    let mut decisions = Vec::new();
    let mut events = events.iter();
    let mut now_ms = 0;
    let mut next = events.next();
    loop {
        let decision = decide(&job, now_ms);
        job.decided(&decision, now_ms);
        let start_ms = match decision {
            Decision::Wait { until_ms } => until_ms.unwrap_or(u64::MAX),
            Decision::EndJob { .. } => {
                decisions.push((now_ms, decision));
                return decisions;
            }
            _ => {
                decisions.push((now_ms, decision));
                continue;
            }
        };
        match next {
            Some(&(at_ms, event)) if at_ms < start_ms => {
                now_ms = at_ms;
                match event {
                    Dies(rank) => job.ended(rank, false, now_ms),
                    Ends(rank) => job.ended(rank, true, now_ms),
                }
                next = events.next();
            }
            _ if start_ms < u64::MAX => now_ms = start_ms,
            _ => return decisions,
        }
    }
}

fn limits(restarts: u32, min_ranks: u32) -> Limits {
    Limits { restarts, min_ranks, ranks_elsewhere: 0 }
}

fn replace(rank: u32, after_ms: u64, number: u32, of: u32) -> Decision {
    Decision::Replace { rank, after_ms, number, of }
}

fn start(rank: u32) -> Decision {
    Decision::Start { rank }
}

fn go_on(rank: u32, why: Why, left: u32) -> Decision {
    Decision::GoOnWithout { rank, why, left }
}

fn end(rank: u32, why: Why, left: u32, min_ranks: u32) -> Decision {
    Decision::EndJob { rank, why, left, min_ranks }
}

#[test]
fn what_follows_from_deaths_and_ends() {
    let used_up = Why::UsedUp { restarts: 2 };
    let cases: [(&str, Limits, Events, Decisions); 12] = [
        (
            "a death is made good, and the end is as it should be",
            limits(3, 4),
            &[(5000, Dies(2)), (9000, Ends(0)), (9000, Ends(2)), (9001, Ends(1)), (9002, Ends(3))],
            vec![(5000, replace(2, 100, 1, 3)), (5100, start(2))],
        ),
        (
            "ranks that die together are started together",
            limits(3, 4),
            &[(5000, Dies(2)), (5030, Dies(0))],
            vec![
                (5000, replace(2, 100, 1, 3)),
                (5030, replace(0, 70, 2, 3)),
                (5100, start(0)),
                (5100, start(2)),
            ],
        ),
        (
            "when restarts are used up, all are needed",
            limits(2, 4),
            &[(5000, Dies(2)), (20_000, Dies(1)), (40_000, Dies(2))],
            vec![
                (5000, replace(2, 100, 1, 2)),
                (5100, start(2)),
                (20_000, replace(1, 100, 2, 2)),
                (20_100, start(1)),
                (40_000, end(2, used_up, 3, 4)),
            ],
        ),
        (
            "when restarts are used up, three are enough, and two are not",
            limits(2, 3),
            &[(5000, Dies(2)), (20_000, Dies(1)), (40_000, Dies(2)), (41_000, Dies(0))],
            vec![
                (5000, replace(2, 100, 1, 2)),
                (5100, start(2)),
                (20_000, replace(1, 100, 2, 2)),
                (20_100, start(1)),
                (40_000, go_on(2, used_up, 3)),
                (41_000, end(0, used_up, 2, 3)),
            ],
        ),
        (
            "one that is about to be started counts as left",
            limits(1, 3),
            &[(5000, Dies(2)), (5050, Dies(1))],
            vec![
                (5000, replace(2, 100, 1, 1)),
                (5050, go_on(1, Why::UsedUp { restarts: 1 }, 3)),
                (5100, start(2)),
            ],
        ),
        (
            "without restarts the job gets smaller",
            limits(0, 2),
            &[(10, Dies(0)), (20, Dies(1)), (30, Dies(2))],
            vec![
                (10, go_on(0, Why::NotAsked, 3)),
                (20, go_on(1, Why::NotAsked, 2)),
                (30, end(2, Why::NotAsked, 1, 2)),
            ],
        ),
        (
            "nobody is left to take anybody in",
            limits(9, 1),
            &[(5000, Dies(2)), (5001, Dies(0)), (5002, Dies(1)), (5003, Dies(3))],
            vec![
                (5000, replace(2, 100, 1, 9)),
                (5001, replace(0, 99, 2, 9)),
                (5002, replace(1, 98, 3, 9)),
                (5003, end(3, Why::Alone, 3, 1)),
            ],
        ),
        (
            "others elsewhere take them in",
            Limits { ranks_elsewhere: 1, ..limits(9, 4) },
            &[(5000, Dies(2)), (5001, Dies(0)), (5002, Dies(1)), (5003, Dies(3))],
            vec![
                (5000, replace(2, 100, 1, 9)),
                (5001, replace(0, 99, 2, 9)),
                (5002, replace(1, 98, 3, 9)),
                (5003, replace(3, 97, 4, 9)),
                (5100, start(0)),
                (5100, start(1)),
                (5100, start(2)),
                (5100, start(3)),
            ],
        ),
        (
            "one that waits is given up when the work is over, though all are needed",
            limits(9, 4),
            &[(5000, Dies(2)), (5050, Ends(1)), (5060, Ends(0)), (5070, Ends(3))],
            vec![(5000, replace(2, 100, 1, 9)), (5050, go_on(2, Why::IsOver { done: 1 }, 3))],
        ),
        (
            "a death after the work is over is one too many",
            limits(9, 4),
            &[(5000, Ends(1)), (5010, Dies(2))],
            vec![(5010, end(2, Why::IsOver { done: 1 }, 3, 4))],
        ),
        (
            "a death after the work is over is none too many",
            limits(9, 3),
            &[(5000, Ends(1)), (5010, Dies(2)), (5020, Ends(0)), (5020, Ends(3))],
            vec![(5010, go_on(2, Why::IsOver { done: 1 }, 3))],
        ),
        (
            "all is well",
            limits(9, 4),
            &[(1, Ends(0)), (1, Ends(1)), (2, Ends(2)), (3, Ends(3))],
            vec![],
        ),
    ];
    for (what, limits, events, expected) in cases {
        assert_eq!(play(limits, events), expected, "{what}");
    }
}

/// A rank that lives so long each time, for how often it is started.
fn lives(limits: Limits, life_ms: u64, times: usize) -> Decisions {
    let mut events: Vec<(u64, Event)> = Vec::new();
    let mut at_ms = life_ms;
    for _ in 0..times {
        events.push((at_ms, Dies(1)));
        let waits = play(limits, &events);
        let Some((start_ms, Decision::Start { .. })) = waits.last() else { return waits };
        at_ms = start_ms + life_ms;
    }
    play(limits, &events)
}

fn delays_ms(decisions: &[(u64, Decision)]) -> Vec<u64> {
    let delay = |(_, decision): &(u64, Decision)| match decision {
        Decision::Replace { after_ms, .. } => Some(*after_ms),
        _ => None,
    };
    decisions.iter().filter_map(delay).collect()
}

#[test]
fn one_that_fails_at_once_is_given_up_after_three_times() {
    let why = Why::FailsAtOnce { times: 3 };
    let decisions = lives(limits(1000, 4), 999, 10);
    assert_eq!(delays_ms(&decisions), [100, 200]);
    assert_eq!(decisions.last(), Some(&(999 * 3 + 300, end(1, why, 3, 4))));
    // Where it is not needed, the others go on.
    let decisions = lives(limits(1000, 3), 0, 10);
    assert_eq!(decisions.last(), Some(&(300, go_on(1, why, 3))));
    // One that lives a second has not failed at once.
    assert_eq!(delays_ms(&lives(limits(1000, 4), 1000, 5)).len(), 5);
    let mixed = [(10, Dies(1)), (120, Dies(1)), (5000, Dies(1)), (5500, Dies(1)), (6000, Dies(1))];
    assert_eq!(delays_ms(&play(limits(1000, 4), &mixed)).len(), 5);
}

#[test]
fn delays_double_up_to_ten_seconds_and_come_down_in_quiet() {
    let all = limits(1000, 4);
    let (short_ms, long_ms) = (1_000, 10_000);
    let doubled = [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000];
    assert_eq!(delays_ms(&lives(all, short_ms, 10)), doubled);
    assert_eq!(delays_ms(&lives(all, long_ms, 4)), [100; 4], "a death every ten seconds");
    for (quiet_ms, delay_ms) in
        [(7_999, 10_000), (8_000, 6_400), (16_000, 3_200), (55_999, 200), (60_000, 100)]
    {
        let worst = lives(all, short_ms, 9);
        let mut events: Vec<(u64, Event)> = Vec::new();
        for (at_ms, decision) in &worst {
            if let Decision::Replace { .. } = decision {
                events.push((*at_ms, Dies(1)));
            }
        }
        let (last_start_ms, _) = worst.last().expect("a start");
        events.push((last_start_ms + quiet_ms, Dies(3)));
        assert_eq!(delays_ms(&play(all, &events)).last(), Some(&delay_ms), "{quiet_ms} ms");
    }
}

#[test]
fn decisions_are_told_with_their_reasons() {
    let why = Why::IsOver { done: 0 };
    for (decision, text) in [
        (replace(2, 100, 1, 3), "starting it again (1 of 3) in 0.1 s"),
        (replace(2, 6400, 7, 9), "starting it again (7 of 9) in 6.4 s"),
        (
            go_on(2, why, 3),
            "it is not started again, since rank 0 is done: going on without it (3 ranks left)",
        ),
        (
            go_on(2, Why::NotAsked, 1),
            "it is not started again without --restart: going on without it (1 rank left)",
        ),
        (
            end(2, Why::UsedUp { restarts: 3 }, 2, 4),
            "no restart is left of 3: ending the job (2 ranks left, 4 needed)",
        ),
        (
            end(2, Why::FailsAtOnce { times: 3 }, 3, 4),
            "it has failed within a second of its start 3 times in a row: \
             ending the job (3 ranks left, 4 needed)",
        ),
        (end(2, Why::Alone, 3, 1), "no rank is left that could take it in again: ending the job"),
    ] {
        assert_eq!(decision.to_string(), text);
    }
}
