//! Ports and peers that fail while something is under way.

use std::ptr::NonNull;
use std::time::Instant;

use ringtree_tests::links::{
    PATIENCE, Pair, rdma, rdma_attempt, rdma_between, rdma_over, wait_for,
};
use ringtree_tests::random::Random;
use ringtree_tests::traffic::{Receiving, Sending, messages, step};
use ringtree_transport::memory::Registration;
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

/// Nothing gets through any more: the sender knows within its retries, and says what that usually means.
#[test]
fn a_peer_that_does_not_answer_is_known_by_its_only_port() {
    for is_down in [true, false] {
        let Pair { mut left, right, world } = rdma();
        let data = vec![7; 1 << 20];
        let _down = is_down.then(|| Down::take("v2"));
        let _loss = (!is_down).then(|| Netem::begin("loss 100%"));
        let began = Instant::now();
        post(&mut left, 0, &data);
        let error = wait_for(&world, "the end", || left.poll(0).err());
        println!("known after {:?}: {error}", began.elapsed());
        let LinkError::Failed { peer: 1, reason, .. } = &error else { panic!("{error}") };
        // Without the other end of the pair a port has no carrier.
        let why = if is_down { "rxe1:1: the port is down" } else { "rxe1:1: retries exceeded" };
        assert!(reason.contains(why), "{reason}");
        drop(right);
    }
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
            assert!(error.contains("no port reaches") && error.contains(device), "{error}");
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

/// Posts a whole message, which must stay until it has left.
fn post(link: &mut Link, channel: usize, data: &[u8]) {
    // SAFETY: the tests keep the bytes until they are sent, or the link is dropped.
    unsafe { link.post(channel, TAG, data.as_ptr(), data.len(), true) }.expect("open");
}

/// Reads what has come on a channel to the end of its message, if that is there.
fn read(pair: &mut Pair, channel: usize) -> Vec<u8> {
    let mut got = Vec::new();
    let Pair { left, right, world } = pair;
    wait_for(world, "a message", || {
        left.poll(0).expect("open");
        right.poll(0).expect("open");
        let arrival = right.arrival(channel).expect("open")?;
        // SAFETY: the arrival has so many bytes.
        got.extend_from_slice(unsafe { std::slice::from_raw_parts(arrival.data, arrival.len) });
        right.release(channel, arrival.len).expect("open");
        arrival.last.then_some(())
    });
    got
}

/// Small slices ask for no completion of their own. One that comes when their numbers have been used again
/// says nothing of the slices that have them now.
#[test]
fn a_late_completion_is_not_taken_for_that_of_a_later_slice() {
    const SLICE: usize = 64 << 10;
    // The first queue pair has packets that can be lost, the second has none.
    let mut pair = rdma_over("rxe1,rxe0", "rxe2,rxe0", 1);
    let mut memory = vec![1_u8; 3 * SLICE];
    let start = NonNull::new(memory.as_mut_ptr()).expect("an address");
    // SAFETY: the vector outlives the registration, and never grows.
    let registration = unsafe { Registration::of_plain(start, memory.len()) };
    pair.left.share(&registration);
    // A large slice has the first queue pair busy, so that the small one goes by the second.
    post(&mut pair.left, 1, &memory[..SLICE]);
    post(&mut pair.left, 0, &[7; 8]);
    read(&mut pair, 1);
    read(&mut pair, 0);
    wait_for(&pair.world.clone(), "the large slice", || {
        pair.left.poll(0).expect("open");
        (!pair.left.is_waiting(1)).then_some(())
    });
    for _ in 1..256 {
        post(&mut pair.left, 0, &[7; 8]);
        read(&mut pair, 0);
    }
    let loss = Netem::begin("loss 100%");
    post(&mut pair.left, 0, &memory[SLICE..2 * SLICE]);
    post(&mut pair.left, 1, &memory[2 * SLICE..]);
    // The second one, by the other queue pair, completes all that was under way on that.
    wait_for(&pair.world.clone(), "the second slice", || {
        pair.left.poll(0).expect("open");
        (!pair.left.is_waiting(1)).then_some(())
    });
    assert!(pair.left.is_waiting(0), "the device still reads the first");
    drop(loss);
    assert!(read(&mut pair, 0) == memory[SLICE..2 * SLICE]);
}

/// A link that is closed while one of its queue pairs is failing still delivers everything, and in time.
#[test]
fn a_link_that_is_closed_in_the_midst_of_a_failover_has_sent_everything() {
    for (large, small) in [(20 * (64 << 10), 0), (64 << 10, 3), (0, 3)] {
        let mut pair = rdma_over("rxe0,rxe1", "rxe0,rxe2", 1);
        let data = Random::new(3).bytes(large.max(8));
        pair.settle();
        let down = Down::take("v2");
        if large > 0 {
            post(&mut pair.left, 1, &data[..large]);
        }
        (0..small).for_each(|_| post(&mut pair.left, 0, &data[..8]));
        let Pair { left, mut right, world } = pair;
        let began = Instant::now();
        std::thread::scope(|scope| {
            let closer = scope.spawn(|| {
                left.close(began + PATIENCE);
                began.elapsed()
            });
            let mut got = [0, 0];
            let mut ended = [false; 2];
            wait_for(&world, "the end", || {
                let _ = right.poll(0);
                for channel in [0, 1] {
                    match right.arrival(channel) {
                        Ok(Some(arrival)) => {
                            got[channel] += arrival.len;
                            right.release(channel, arrival.len).expect("open");
                        }
                        Ok(None) => {}
                        Err(_) => ended[channel] = true,
                    }
                }
                (ended == [true; 2]).then_some(())
            });
            assert_eq!(got, [8 * small, large]);
            let took = closer.join().expect("no panic");
            assert!(took < PATIENCE / 2, "closed after {took:?}");
        });
        drop(down);
    }
}

/// Both sides say what is wrong: the one whose write was refused, and the one whose device refused it.
#[test]
fn a_refused_write_is_explained_on_both_sides() {
    const LEN: usize = 1 << 20;
    let mut pair = rdma();
    let mut into = vec![0_u8; LEN];
    let start = NonNull::new(into.as_mut_ptr()).expect("an address");
    // SAFETY: the vector outlives the registration, and never grows.
    let registration = unsafe { Registration::of_plain(start, LEN) };
    pair.right.share(&registration);
    // SAFETY: nobody reads or writes the room.
    unsafe { pair.right.offer(0, TAG, 0, into.as_mut_ptr(), LEN) }.expect("open");
    pair.settle();
    drop(registration);
    assert!(pair.left.takes_offer(0, TAG, LEN).expect("open"));
    let data = vec![1; LEN];
    post(&mut pair.left, 0, &data);
    let Pair { left, right, world } = &mut pair;
    let mut errors = [None, None];
    wait_for(world, "both errors", || {
        for (error, link) in errors.iter_mut().zip([&mut *left, &mut *right]) {
            if error.is_none() {
                *error = link.poll(0).err().map(|error| error.to_string());
            }
        }
        errors.iter().all(Option::is_some).then_some(())
    });
    let [ours, theirs] = errors.map(Option::unwrap_or_default);
    assert!(ours.contains("remote access error"), "{ours}");
    assert!(theirs.contains("wrote to memory that it may not write to"), "{theirs}");
}
