//! Ports and peers that fail while something is under way.

use std::time::Instant;

use ringtree_tests::links::{
    PATIENCE, Pair, rdma, rdma_attempt, rdma_between, rdma_over, wait_for,
};
use ringtree_tests::random::Random;
use ringtree_tests::traffic::{Receiving, Sending, messages, step};
use ringtree_transport::rdma::{Rdma, RdmaConfig};
use ringtree_transport::{Link, LinkError, Tag, TransportKind};

use crate::network::{Down, Netem};

const TAG: Tag = Tag { sequence: 1, digest: 2 };

/// However far the traffic has come: one of the two ports goes down for good, and the other one carries the
/// rest.
#[test]
fn one_of_two_rails_carries_the_rest_when_the_other_is_gone() {
    for (turn, steps_before) in [(0, 0), (1, 40), (2, 400), (3, 1200)] {
        let mut pair = rdma_over("rxe0,rxe1", "rxe0,rxe2", 1 + turn % 2);
        pair.divide(4);
        let mut random = Random::new(u64::from(turn));
        let traffic = |random: &mut Random| -> Vec<_> {
            (0..4).map(|channel| (channel, messages(random, 12, 300_000))).collect()
        };
        let (there, back) = (traffic(&mut random), traffic(&mut random));
        let sending = |traffic: &Vec<_>| -> Vec<Sending> {
            traffic.iter().map(|(channel, all)| Sending::new(*channel, Clone::clone(all))).collect()
        };
        let receiving = |traffic: &Vec<_>| -> Vec<Receiving> {
            traffic
                .iter()
                .map(|(channel, all)| Receiving::new(*channel, Clone::clone(all)))
                .collect()
        };
        let (mut left_sends, mut right_receives) = (sending(&there), receiving(&there));
        let (mut right_sends, mut left_receives) = (sending(&back), receiving(&back));
        let Pair { left, right, world } = &mut pair;
        let mut steps = 0;
        let mut down = None;
        wait_for(world, "all messages", || {
            if steps == steps_before {
                down = Some(Down::take("v1"));
            }
            steps += 1;
            let mut done = step(left, &mut random, &mut left_sends, &mut left_receives);
            done &= step(right, &mut random, &mut right_sends, &mut right_receives);
            done.then_some(())
        });
        drop(down);
    }
}

/// A port that goes down while large messages go straight to their places: what has arrived is not written
/// again.
#[test]
fn messages_that_go_straight_survive_the_end_of_a_rail() {
    use std::ptr::NonNull;

    use ringtree_transport::memory::Registration;

    const LEN: usize = 12 << 20;
    for pause in [0, 3, 10] {
        let mut pair = rdma_over("rxe0,rxe1", "rxe0,rxe2", 1);
        let mut from = Random::new(9).bytes(LEN);
        let mut into = vec![0_u8; LEN];
        let register = |bytes: &mut Vec<u8>| {
            let start = NonNull::new(bytes.as_mut_ptr()).expect("an address");
            // SAFETY: the vectors outlive their registrations, and never grow.
            unsafe { Registration::of_plain(start, LEN) }
        };
        let registrations = (register(&mut from), register(&mut into));
        pair.left.share(&registrations.0);
        pair.right.share(&registrations.1);
        // SAFETY: the room is left alone until the message has come; the bytes until they are sent.
        unsafe {
            pair.right.offer(0, TAG, 0, into.as_mut_ptr(), LEN).expect("open");
            pair.settle();
            assert!(pair.left.takes_offer(0, TAG, LEN).expect("open"));
            pair.left.post(0, TAG, from.as_ptr(), LEN, true).expect("open");
        }
        let Pair { left, right, world } = &mut pair;
        let (mut polls, mut down) = (0, None);
        wait_for(world, "the message", || {
            if polls == pause {
                down = Some(Down::take("v2"));
            }
            polls += 1;
            left.poll(0).expect("another rail is left");
            right.poll(0).expect("another rail is left");
            let arrival = right.arrival(0).expect("open")?;
            assert_eq!((arrival.data, arrival.len), (into.as_ptr(), LEN));
            right.release(0, LEN).expect("open");
            Some(())
        });
        assert!(from == into, "after {pause} polls");
        // The program may use its memory from here on, whatever the sender still has to learn.
        into.fill(1);
        wait_for(world, "the sender", || {
            left.poll(0).expect("another rail is left");
            right.poll(0).expect("another rail is left");
            (left.sent_bytes(0) == LEN as u64).then_some(())
        });
        assert!(into.iter().all(|&byte| byte == 1), "nothing is written a second time");
    }
}

/// The only port goes down: the sender knows within its retries, and says what that usually means.
#[test]
fn a_peer_that_does_not_answer_is_known_by_its_only_port() {
    let Pair { mut left, right, world } = rdma();
    let data = vec![7; 1 << 20];
    let _down = Down::take("v2");
    let began = Instant::now();
    // SAFETY: the bytes stay until the link is dropped.
    unsafe { left.post(0, TAG, data.as_ptr(), data.len(), true) }.expect("open");
    let error = wait_for(&world, "the end", || left.poll(0).err());
    println!("a port without a peer was known after {:?}", began.elapsed());
    let LinkError::Failed { peer: 1, reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains("rxe1:1: retries exceeded"), "{reason}");
    drop(right);
}

/// Both sides have their ports, and no packet gets through between them: that is found out before anything
/// depends on the link.
#[test]
fn a_path_that_does_not_work_is_found_out_when_the_link_is_made() {
    let open = |devices: &str| {
        let devices = Some(devices.to_owned());
        Rdma::open(&RdmaConfig { devices, ..RdmaConfig::default() }).expect("devices")
    };
    let (left, right) = (open("rxe0,rxe1"), open("rxe0,rxe2"));
    {
        let _loss = Netem::begin("loss 100%");
        // One of two paths is enough.
        let Pair { left, .. } = rdma_between(&left, &right);
        let Link::Rdma(link) = &left else { panic!("{left:?}") };
        assert_eq!(link.rails().count(), 1);
        let made = rdma_attempt(&open("rxe1"), &open("rxe2"));
        for (error, device) in [(made.0, "rxe1:1"), (made.1, "rxe2:1")] {
            let error = error.expect_err("no way").to_string();
            assert!(error.contains("no path works") && error.contains(device), "{error}");
        }
    }
    assert_eq!(rdma_between(&left, &right).left.kind(), TransportKind::Rdma);
}

/// A peer that closes in good order while the other side still sends is no failure of the network.
#[test]
fn a_peer_that_has_left_is_not_taken_for_a_failed_port() {
    let Pair { mut left, right, world } = rdma();
    right.close(Instant::now() + PATIENCE);
    let data = vec![7; 4 << 20];
    let error = wait_for(&world, "the end", || {
        // SAFETY: the bytes stay until the link is dropped.
        let posted = unsafe { left.post(0, TAG, data.as_ptr(), data.len(), true) };
        posted.err().or_else(|| left.poll(0).err())
    });
    assert!(matches!(error, LinkError::Closed { peer: 1, .. }), "{error}");
}
