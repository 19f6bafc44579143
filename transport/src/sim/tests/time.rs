//! When things happen: wire time, latency, jitter, order, and the same again from the same seed.

use super::super::*;
use super::*;

#[test]
fn frame_arrives_after_wire_time_and_latency_exactly() {
    let (network, mut a, mut b) = pair(CONFIG);
    let bytes = [5; 7];
    post(&mut a, 0, &bytes).unwrap();
    assert_eq!(network.next_event_ns(), Some(107));
    network.advance_to(106);
    assert_eq!(poll(&mut b), Ok(false));
    assert!(b.arrival(0).unwrap().is_none());
    network.advance_to(107);
    assert!(b.arrival(0).unwrap().is_none(), "a poll takes in what has come");
    assert_eq!(poll(&mut b), Ok(true));
    assert_eq!(take(&mut b, 0), Ok(Some((bytes.to_vec(), true))));
    assert_eq!(poll(&mut b), Ok(false));
}

#[test]
fn credit_is_back_a_latency_after_the_release() {
    let (network, mut a, mut b) = pair(Config { slots: 2, ..CONFIG });
    let bytes = [5; 20];
    post(&mut a, 0, &bytes).unwrap();
    network.advance_to(500);
    poll(&mut b).unwrap();
    take(&mut b, 0).unwrap().unwrap();
    network.advance_to(599);
    assert_eq!(poll(&mut a), Ok(false));
    assert_eq!(a.sent_bytes(0), 10);
    network.advance_to(600);
    assert_eq!(poll(&mut a), Ok(true));
    assert_eq!(a.sent_bytes(0), 20);
}

#[test]
fn frames_of_one_direction_share_its_bandwidth_and_those_of_the_other_do_not() {
    let (network, mut a, mut b) = pair(CONFIG);
    let bytes = [5; 10];
    post(&mut a, 0, &bytes).unwrap();
    post(&mut a, crate::POINT_TO_POINT, &bytes).unwrap();
    post(&mut b, 0, &bytes).unwrap();
    network.advance_to(110);
    assert_eq!((poll(&mut a), poll(&mut b)), (Ok(true), Ok(true)));
    assert!(a.arrival(0).unwrap().is_some() && b.arrival(0).unwrap().is_some());
    assert_eq!(network.next_event_ns(), Some(120), "the second frame waits for the first");
    // A pause on the wire is not made up for.
    network.advance_to(1000);
    post(&mut b, crate::POINT_TO_POINT, &bytes).unwrap();
    assert_eq!(network.next_event_ns(), Some(1110));
}

#[test]
fn wire_time_is_rounded_up() {
    let (network, mut a, _b) = pair(Config { bandwidth_bytes_per_s: 3_000_000_000, ..CONFIG });
    let bytes = [5; 4];
    post(&mut a, 0, &bytes).unwrap();
    assert_eq!(network.next_event_ns(), Some(102));
}

#[test]
fn time_stands_still_where_nothing_happens_and_never_goes_back() {
    let (network, _a, _b) = pair(CONFIG);
    assert_eq!((network.step(), network.next_event_ns()), (None, None));
    network.advance_to(50);
    network.advance_to(20);
    assert_eq!(network.now_ns(), 50);
}

#[test]
fn jitter_keeps_the_order_of_a_channel_and_its_bounds() {
    let (network, mut a, mut b) = pair(Config { jitter_ns: 1000, slots: 64, ..CONFIG });
    network.start_trace();
    let bytes: Vec<u8> = (0..200).collect();
    post(&mut a, 0, &bytes).unwrap();
    let late = network.trace().iter().filter(|entry| is_late(entry)).count();
    assert!(late > 0, "no frame was late");
    assert_eq!(read_message(&network, &mut a, &mut b, 0), Ok(bytes));
}

/// Whether jitter delayed a frame's arrival; never beyond its bound.
fn is_late(entry: &TraceEntry) -> bool {
    let TraceEvent::Left { arrives_ns, .. } = entry.event else { return false };
    let arrives_ns = arrives_ns.unwrap();
    assert!((100 + 10..=100 + 200 + 1000).contains(&arrives_ns), "{arrives_ns}");
    arrives_ns > 300
}

#[test]
fn same_seed_same_events() {
    let run = |seed| {
        let (network, mut a, mut b) = pair(Config { jitter_ns: 50, seed, ..CONFIG });
        network.start_trace();
        let bytes: Vec<u8> = (0..250).collect();
        post(&mut a, 0, &bytes).unwrap();
        post(&mut b, 0, &bytes).unwrap();
        assert_eq!(read_message(&network, &mut a, &mut b, 0).as_ref(), Ok(&bytes));
        assert_eq!(read_message(&network, &mut b, &mut a, 0).as_ref(), Ok(&bytes));
        network.trace().iter().map(|entry| format!("{entry}\n")).collect::<String>()
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}
