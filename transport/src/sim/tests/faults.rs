//! Every rule and fault, on both sides of its boundary.

use super::super::*;
use super::*;
use crate::POINT_TO_POINT;

/// When frames left, and when they arrive.
fn flights(network: &Network) -> Vec<(u64, Option<u64>)> {
    let left = |entry: &TraceEntry| match entry.event {
        TraceEvent::Left { arrives_ns, .. } => Some((entry.at_ns, arrives_ns)),
        _ => None,
    };
    network.trace().iter().filter_map(left).collect()
}

/// A pair whose network has one rule and a trace.
fn pair_with(rule: Rule) -> (Network, SimLink, SimLink) {
    let (network, a, b) = pair(CONFIG);
    network.add_rule(rule);
    network.start_trace();
    (network, a, b)
}

#[test]
fn delay_of_the_nth_frame_holds_back_its_channel_only() {
    let (network, mut a, _b) = pair_with(Rule::Frame(
        Match::any().from(0).to(1).channel(0).nth(1),
        FrameEffect::Delay(1000),
    ));
    let bytes = [5; 30];
    post(&mut a, 0, &bytes).unwrap();
    post(&mut a, POINT_TO_POINT, &bytes[..10]).unwrap();
    let arrivals: Vec<_> = flights(&network).iter().map(|&(_, at)| at.unwrap()).collect();
    assert_eq!(arrivals, [110, 1120, 1120, 140]);
}

#[test]
fn slow_multiplies_both_times_of_a_ranks_frames() {
    let (network, mut a, mut b) =
        pair_with(Rule::Frame(Match::any().rank(0), FrameEffect::Slow(3)));
    let (mut c, _d) = (network.link(2, 1), network.link(1, 2));
    let bytes = [5; 10];
    for link in [&mut a, &mut b, &mut c] {
        post(link, 0, &bytes).unwrap();
    }
    assert_eq!(flights(&network), [(0, Some(330)), (0, Some(330)), (0, Some(110))]);
}

#[test]
fn window_is_half_open() {
    let rule = Rule::Frame(Match::any().during_ns(10..20), FrameEffect::Delay(7));
    let (network, mut a, _b) = pair_with(rule);
    for at_ns in [9, 10, 19, 20] {
        network.advance_to(at_ns);
        post(&mut a, 0, &[]).unwrap();
    }
    let flights = flights(&network);
    assert_eq!(flights, [(9, Some(109)), (10, Some(117)), (19, Some(126)), (20, Some(126))]);
}

#[test]
fn effects_of_several_rules_add_up() {
    let (network, mut a, _b) = pair_with(Rule::Frame(Match::any(), FrameEffect::Delay(1)));
    network.add_rule(Rule::Frame(Match::any(), FrameEffect::Delay(2)));
    network.add_rule(Rule::Frame(Match::any().channel(5), FrameEffect::Delay(4)));
    network.add_rule(Rule::Frame(Match::any().to(1), FrameEffect::Slow(2)));
    network.add_rule(Rule::Frame(Match::any().to(0), FrameEffect::Slow(2)));
    let bytes = [5; 10];
    post(&mut a, 0, &bytes).unwrap();
    assert_eq!(network.next_event_ns(), Some(223));
}

#[test]
fn dropped_frame_stalls_its_channel_without_an_error() {
    let rule = Rule::Frame(Match::any().channel(0).nth(1), FrameEffect::Drop);
    let (network, mut a, mut b) = pair_with(rule);
    let bytes: Vec<u8> = (0..200).collect();
    post(&mut a, 0, &bytes).unwrap();
    assert_eq!(read_message(&network, &mut a, &mut b, 0).unwrap(), &bytes[..10]);
    assert_eq!(a.sent_bytes(0), 90, "no credit comes back but the first frame's");
    post(&mut a, POINT_TO_POINT, &bytes).unwrap();
    assert_eq!(read_message(&network, &mut a, &mut b, POINT_TO_POINT).unwrap(), bytes);
    post(&mut b, 0, &bytes).unwrap();
    assert_eq!(read_message(&network, &mut b, &mut a, 0).unwrap(), bytes);
}

#[test]
fn cut_at_a_frame_loses_it_and_fails_both_ends() {
    let (network, mut a, mut b) =
        pair_with(Rule::Frame(Match::any().from(0).nth(1), FrameEffect::Cut));
    let bytes = [5; 10];
    post(&mut a, 0, &bytes).unwrap();
    network.advance_to(200);
    assert_eq!((poll(&mut a), poll(&mut b)), (Ok(false), Ok(true)));
    assert!(is_failed(post(&mut a, 0, &bytes)));
    assert_eq!(a.posted_bytes(0), a.sent_bytes(0));
    for link in [&mut a, &mut b] {
        assert!(is_failed(poll(link)));
        assert!(is_failed(link.arrival(0)));
        assert!(is_failed(receive(link, 0, 1)));
        assert!(is_failed(link.release(0, 1)));
        assert!(is_failed(link.commit(0, TAG, 0, true)));
        assert!(link.reserve(0, 4096).is_none());
    }
    assert_eq!(flights(&network), [(0, Some(110)), (200, None)]);
}

#[test]
fn cut_between_two_ranks_spares_the_others() {
    let (network, mut a, mut b) = pair(CONFIG);
    let (mut c, mut d) = (network.link(0, 2), network.link(2, 0));
    network.cut(1, 0);
    assert!(is_failed(poll(&mut a)) && is_failed(poll(&mut b)));
    let bytes = [5; 10];
    post(&mut c, 0, &bytes).unwrap();
    assert_eq!(read_message(&network, &mut c, &mut d, 0).unwrap(), bytes);
    let (mut a, mut b) = (network.link(0, 1), network.link(1, 0));
    post(&mut a, 0, &bytes).unwrap();
    assert_eq!(read_message(&network, &mut a, &mut b, 0).unwrap(), bytes, "a new link");
}

#[test]
fn killed_ranks_peers_get_what_had_left_it_then_closed() {
    let (network, mut a, mut b) = pair(CONFIG);
    let mut to_other = network.link(0, 2);
    let mut other = network.link(2, 0);
    let bytes: Vec<u8> = (0..200).collect();
    post(&mut a, 0, &bytes).unwrap();
    network.kill(0);
    assert!(is_failed(poll(&mut a)) && is_failed(poll(&mut to_other)));
    let mut received = Vec::new();
    while network.step().is_some() {
        poll(&mut b).unwrap();
        while let Ok(Some((bytes, _))) = take(&mut b, 0) {
            received.extend(bytes);
        }
    }
    assert_eq!(received, &bytes[..80]);
    poll(&mut other).unwrap();
    assert!(is_closed(b.arrival(0)) && is_closed(other.arrival(0)));
    // It stays dead.
    let (mut late, mut met) = (network.link(0, 3), network.link(3, 0));
    assert!(is_failed(poll(&mut late)));
    network.step();
    poll(&mut met).unwrap();
    assert!(is_closed(met.arrival(0)));
}

#[test]
fn kill_at_a_frame_strikes_before_it_leaves() {
    for victim in [0, 1, 2] {
        let rule = Rule::Frame(Match::any().nth(1), FrameEffect::Kill(victim));
        let (network, mut a, mut b) = pair_with(rule);
        let bytes = [5; 20];
        assert_eq!(is_failed(post(&mut a, 0, &bytes)), victim == 0);
        network.advance_to(1000);
        assert_eq!(is_failed(poll(&mut b)), victim == 1);
        let delivered = [1, 0, 2][victim as usize];
        let arrived = |entry: &&TraceEntry| matches!(entry.event, TraceEvent::Arrived { .. });
        assert_eq!(network.trace().iter().filter(arrived).count(), delivered);
    }
}

/// Sends a message each way, with every kind of operation, until both are there.
fn exchange(network: &Network, a: &mut SimLink, b: &mut SimLink) -> Result<(), LinkError> {
    static BYTES: [u8; 100] = [5; 100];
    post(a, 0, &BYTES)?;
    if b.reserve(0, 4096).is_some() {
        b.commit(0, TAG, 10, true)?;
    }
    assert_eq!(read_message(network, a, b, 0)?, BYTES);
    poll(a)?;
    assert_eq!(receive(a, 0, 10)?, (vec![0; 10], true));
    Ok(())
}

#[test]
fn the_kth_operation_fails_and_only_that_one_for_every_k() {
    let (network, mut a, mut b) = pair(CONFIG);
    network.start_trace();
    exchange(&network, &mut a, &mut b).unwrap();
    let called = |entry: TraceEntry| match entry.event {
        TraceEvent::Called { rank, operation, .. } => Some((rank, operation)),
        _ => None,
    };
    let operations: Vec<_> = network.trace().into_iter().filter_map(called).collect();
    assert_eq!(operations.len() as u64, network.total_operations());
    assert_eq!(network.operations_of(0) + network.operations_of(1), network.total_operations());
    use Operation::*;
    for kind in [Post, Commit, Arrival, Receive, Release, Poll] {
        assert!(operations.iter().any(|&(_, operation)| operation == kind), "no {kind:?}");
    }
    for (k, (rank, _)) in operations.into_iter().enumerate() {
        for effect in [OperationEffect::Fail, OperationEffect::Kill, OperationEffect::Cut] {
            let (network, mut a, mut b) =
                pair_with(Rule::Operation(Match::any().nth(k as u64), effect));
            assert!(is_failed(exchange(&network, &mut a, &mut b)), "{effect:?} at {k}");
            assert_eq!(network.total_operations(), k as u64 + 1);
            let failed = [is_failed(poll(&mut a)), is_failed(poll(&mut b))];
            let both = effect == OperationEffect::Cut;
            assert_eq!(failed, [both || rank == 0, both || rank == 1], "{effect:?} at {k}");
        }
    }
    let past = Match::any().nth(network.total_operations());
    let (network, mut a, mut b) = pair_with(Rule::Operation(past, OperationEffect::Fail));
    exchange(&network, &mut a, &mut b).unwrap();
}

#[test]
fn failed_end_is_closed_to_its_peer_once_it_is_dropped() {
    let rule = Rule::Operation(Match::any().from(0), OperationEffect::Fail);
    let (network, mut a, mut b) = pair_with(rule);
    assert!(is_failed(post(&mut a, 0, &[])));
    assert_eq!(a.posted_bytes(0), 0);
    assert_eq!((network.step(), poll(&mut b)), (None, Ok(false)));
    assert!(b.arrival(0).unwrap().is_none());
    drop(a);
    assert_eq!((network.step(), poll(&mut b)), (Some(100), Ok(false)));
    assert!(is_closed(b.arrival(0)));
}
