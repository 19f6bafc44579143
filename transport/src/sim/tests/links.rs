//! What every link must do: order, slices, credits, slots, receiving, closing.

use super::super::*;
use super::*;
use crate::{MAX_LANES, POINT_TO_POINT};

#[test]
fn messages_of_any_length_arrive_in_order_on_every_channel() {
    let network = Network::new(CONFIG);
    let (mut a, mut b) = (network.link(0, 1), network.link(1, 0));
    let lengths = [0, 1, 9, 10, 11, 20, 0, 333];
    let messages: Vec<Vec<u8>> =
        lengths.iter().map(|&len| (0..len).map(|i| (i * 7 + len) as u8).collect()).collect();
    for channel in 0..=POINT_TO_POINT {
        for message in &messages {
            post(&mut a, channel, message).unwrap();
        }
    }
    for channel in (0..=POINT_TO_POINT).rev() {
        for message in &messages {
            assert_eq!(read_message(&network, &mut a, &mut b, channel).as_ref(), Ok(message));
        }
        assert_eq!(a.posted_bytes(channel), 384);
        assert_eq!(a.sent_bytes(channel), 384);
    }
}

#[test]
fn message_goes_on_over_several_posts() {
    let (network, mut a, mut b) = pair(CONFIG);
    let bytes: Vec<u8> = (0..25).collect();
    // SAFETY: `bytes` outlives the link.
    unsafe {
        a.post(0, TAG, bytes.as_ptr(), 12, false).unwrap();
        a.post(0, TAG, bytes[12..].as_ptr(), 13, false).unwrap();
        a.post(0, TAG, std::ptr::null(), 0, true).unwrap();
    }
    assert_eq!(read_message(&network, &mut a, &mut b, 0), Ok(bytes));
    assert_eq!(network.traffic(0, 1), Traffic { frames: 5, bytes: 25 });
    assert_eq!(network.traffic(1, 0), Traffic::default());
}

#[test]
fn arrival_stays_where_it_is_while_others_come_and_is_released_in_parts() {
    let (network, mut a, mut b) = pair(CONFIG);
    let bytes: Vec<u8> = (0..80).collect();
    post(&mut a, 0, &bytes).unwrap();
    network.advance_to(110);
    poll(&mut b).unwrap();
    let first = b.arrival(0).unwrap().unwrap();
    network.advance_to(1000);
    poll(&mut b).unwrap();
    b.release(0, 4).unwrap();
    let rest = b.arrival(0).unwrap().unwrap();
    assert_eq!((rest.data, rest.len, rest.last), (first.data.wrapping_add(4), 6, false));
    // SAFETY: the arrival is not released.
    assert_eq!(unsafe { std::slice::from_raw_parts(rest.data, rest.len) }, &bytes[4..10]);
    b.release(0, 6).unwrap();
    assert_eq!(take(&mut b, 0).unwrap().unwrap().0, &bytes[10..20]);
}

#[test]
fn unread_channel_stops_at_its_share_and_stops_no_other() {
    let (network, mut a, mut b) = pair(CONFIG);
    a.divide(2);
    let bytes = [5; 100];
    post(&mut a, 0, &bytes).unwrap();
    assert_eq!(a.sent_bytes(0), 40, "half of the lanes' 8 slots");
    post(&mut a, 1, &bytes[..50]).unwrap();
    assert_eq!(a.sent_bytes(1), 40);
    post(&mut a, POINT_TO_POINT, &bytes[..20]).unwrap();
    assert_eq!(a.sent_bytes(POINT_TO_POINT), 10);
    network.advance_to(1000);
    poll(&mut b).unwrap();
    take(&mut b, 1).unwrap().unwrap();
    network.advance_to(1100);
    poll(&mut a).unwrap();
    assert_eq!([a.sent_bytes(0), a.sent_bytes(1), a.sent_bytes(POINT_TO_POINT)], [40, 50, 10]);
    assert_eq!([a.posted_bytes(0), a.posted_bytes(1)], [100, 50]);
}

#[test]
fn slots_of_an_old_division_count_until_they_are_back() {
    let (network, mut a, mut b) = pair(CONFIG);
    let bytes = [5; 100];
    post(&mut a, 0, &bytes[..80]).unwrap();
    assert_eq!(a.sent_bytes(0), 80);
    a.divide(8);
    post(&mut a, 7, &bytes[..10]).unwrap();
    post(&mut a, POINT_TO_POINT, &bytes[..10]).unwrap();
    assert_eq!([a.sent_bytes(7), a.sent_bytes(POINT_TO_POINT)], [0, 10]);
    network.advance_to(1000);
    poll(&mut b).unwrap();
    take(&mut b, 0).unwrap().unwrap();
    network.advance_to(1100);
    poll(&mut a).unwrap();
    assert_eq!(a.sent_bytes(7), 10);
}

#[test]
fn empty_message_without_a_credit_waits_though_all_bytes_are_sent() {
    let (network, mut a, mut b) = pair(Config { slots: 2, ..CONFIG });
    post(&mut a, 0, &[5]).unwrap();
    assert!(!a.is_waiting(0));
    post(&mut a, 0, &[]).unwrap();
    assert_eq!((a.sent_bytes(0), a.posted_bytes(0)), (1, 1));
    assert!(a.is_waiting(0) && !a.is_waiting(1));
    assert_eq!(read_message(&network, &mut a, &mut b, 0).unwrap(), [5]);
    assert_eq!(read_message(&network, &mut a, &mut b, 0).unwrap(), []);
    assert!(!a.is_waiting(0));
}

#[test]
fn every_lane_has_a_slot_however_few_there_are() {
    let (_network, mut a, _b) = pair(Config { slots: 0, ..CONFIG });
    a.divide(MAX_LANES);
    let bytes = [5; 20];
    for channel in 0..=POINT_TO_POINT {
        post(&mut a, channel, &bytes).unwrap();
        assert_eq!(a.sent_bytes(channel), 10);
    }
}

#[test]
fn reserved_slot_is_written_in_place_and_is_the_same_until_it_leaves() {
    let (network, mut a, mut b) = pair(Config { slots: 3, ..CONFIG });
    let slot = a.reserve(0, 4096).unwrap();
    assert_eq!((slot.data as usize % 64, slot.len), (0, 10));
    assert_eq!(a.reserve(0, 4096).unwrap().data, slot.data);
    // SAFETY: the slot has 10 bytes and is reserved.
    unsafe { slot.data.copy_from(b"0123456789".as_ptr(), 10) };
    a.commit(0, TAG, 3, false).unwrap();
    assert_eq!((a.posted_bytes(0), a.sent_bytes(0)), (3, 3));
    // A post takes the slot that is reserved, and what then waits keeps others from reserving.
    assert!(a.reserve(0, 4096).is_some());
    post(&mut a, 0, b"abcdefghijkl").unwrap();
    assert_eq!(a.sent_bytes(0), 13);
    assert!(a.reserve(0, 4096).is_none());
    let whole = read_message(&network, &mut a, &mut b, 0).unwrap();
    assert_eq!(whole, b"012abcdefghijkl");
    while network.step().is_some() {}
    assert!(a.reserve(0, 4096).is_some());
}

#[test]
fn receive_ends_with_the_message_and_leaves_other_operations_alone() {
    let (network, mut a, mut b) = pair(CONFIG);
    let bytes: Vec<u8> = (0..40).collect();
    let other = Tag { sequence: 8, ..TAG };
    post(&mut a, 0, &bytes[..25]).unwrap();
    post(&mut a, 0, &[]).unwrap();
    // SAFETY: `bytes` outlives the link.
    unsafe { a.post(0, other, bytes.as_ptr(), 5, true).unwrap() };
    assert_eq!(receive(&mut b, 0, 40), Ok((vec![], false)));
    network.advance_to(1000);
    poll(&mut b).unwrap();
    assert_eq!(receive(&mut b, 0, 0), Ok((vec![], false)));
    assert_eq!(receive(&mut b, 0, 12), Ok((bytes[..12].to_vec(), false)));
    assert_eq!(b.arrival(0).unwrap().unwrap().len, 8);
    assert_eq!(receive(&mut b, 0, 40), Ok((bytes[12..25].to_vec(), true)));
    assert_eq!(receive(&mut b, 0, 0), Ok((vec![], true)), "the empty message");
    assert_eq!(receive(&mut b, 0, 40), Ok((vec![], false)), "another operation's");
    assert_eq!(b.arrival(0).unwrap().unwrap().tag, other);
}

#[test]
fn closing_delivers_everything_and_dropping_what_has_left() {
    for closes in [true, false] {
        let (network, mut a, mut b) = pair(CONFIG);
        let bytes: Vec<u8> = (0..200).collect();
        post(&mut a, 0, &bytes).unwrap();
        assert_eq!(a.sent_bytes(0), 80);
        if closes {
            a.close(std::time::Instant::now());
        } else {
            drop(a);
        }
        let mut received = Vec::new();
        let end = loop {
            poll(&mut b).unwrap();
            match receive(&mut b, 0, 200) {
                Ok((bytes, _)) => received.extend(bytes),
                Err(error) => break error,
            }
            network.step();
        };
        assert_eq!(received, &bytes[..if closes { 200 } else { 80 }]);
        assert!(is_closed(Err::<(), _>(end)));
    }
}

#[test]
fn closed_peer_is_an_error_only_to_who_wants_something() {
    let (network, a, mut b) = pair(CONFIG);
    let bytes = [5; 100];
    post(&mut b, 0, &bytes[..10]).unwrap();
    drop(a);
    network.advance_to(99);
    assert_eq!(poll(&mut b), Ok(false));
    assert!(b.arrival(0).unwrap().is_none());
    network.advance_to(100);
    assert_eq!(poll(&mut b), Ok(false), "a goodbye is no progress");
    assert!(is_closed(b.arrival(0)));
    assert!(is_closed(receive(&mut b, POINT_TO_POINT, 1)));
    assert!(is_closed(post(&mut b, 0, &bytes)));
    assert!(b.reserve(0, 4096).is_some());
    assert!(is_closed(b.commit(0, TAG, 1, true)));
    assert_eq!(b.posted_bytes(0), 10);
}

#[test]
fn post_that_waits_for_a_closed_peer_is_told_by_poll() {
    let (network, a, mut b) = pair(CONFIG);
    let bytes = [5; 100];
    post(&mut b, 0, &bytes).unwrap();
    drop(a);
    network.advance_to(100);
    assert!(is_closed(poll(&mut b)));
}

#[test]
fn links_meet_in_the_order_in_which_they_are_made_and_leave_nothing_behind() {
    let network = Network::new(CONFIG);
    let memory = [[1], [2]];
    for _ in 0..1000 {
        let (mut a0, mut a1) = (network.link(0, 1), network.link(0, 1));
        let (mut b0, mut b1) = (network.link(1, 0), network.link(1, 0));
        post(&mut a0, 0, &memory[0]).unwrap();
        post(&mut a1, 0, &memory[1]).unwrap();
        assert_eq!(read_message(&network, &mut a0, &mut b0, 0).unwrap(), [1]);
        assert_eq!(read_message(&network, &mut a1, &mut b1, 0).unwrap(), [2]);
        assert_eq!(network.open_ends(), 4);
    }
    while network.step().is_some() {}
    assert_eq!(network.open_ends(), 0);
    assert_eq!(network.total_traffic().frames, 2000);
}
