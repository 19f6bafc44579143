//! What only links over RDMA do: registered memory on either side or both, and networks that lose packets.

use std::ptr::NonNull;
use std::sync::Arc;

use ringtree_tests::links::{Pair, rdma, rdma_over, wait_for};
use ringtree_tests::random::Random;
use ringtree_tests::traffic::{exchange, messages};
use ringtree_transport::memory::Registration;
use ringtree_transport::{LinkError, Tag, rdma::Counters};

use crate::network::{Backlog, Netem};

const TAG: Tag = Tag { sequence: 1, digest: 0xd16e57 };
const OTHER: Tag = Tag { sequence: 1, digest: 0x07e12 };
const LEN: usize = (5 << 20) + 12_345;

/// Memory of this process that is registered, or not.
struct Buffer {
    bytes: Vec<u8>,
    registration: Option<Arc<Registration>>,
}

impl Buffer {
    fn new(bytes: Vec<u8>, is_registered: bool) -> Buffer {
        let mut bytes = bytes;
        let start = NonNull::new(bytes.as_mut_ptr()).expect("a vector's address");
        // SAFETY: the vector is kept beside its registration and never grows.
        let registration =
            is_registered.then(|| unsafe { Registration::of_plain(start, bytes.len()) });
        Buffer { bytes, registration }
    }
}

/// Sends a message of `from` to `into`, where the offer is made before or after the sender has begun. The
/// sender's counters.
fn send(pair: &mut Pair, from: &Buffer, into: &mut Buffer, offers_late: bool) -> Counters {
    from.registration.iter().for_each(|registration| pair.left.share(registration));
    into.registration.iter().for_each(|registration| pair.right.share(registration));
    let len = from.bytes.len();
    let room = into.bytes.as_mut_ptr();
    // SAFETY: the room is left alone until the message has been released.
    let offer = |pair: &mut Pair| unsafe { pair.right.offer(0, TAG, 0, room, len) }.expect("open");
    if !offers_late {
        offer(pair);
        // Once the offer and whatever is behind it have come.
        let taken = pair.left.rdma_counters().expect("RDMA").completions;
        wait_for(&pair.world.clone(), "the offer", || {
            pair.right.poll(0).expect("open");
            pair.left.poll(0).expect("open");
            let completions = pair.left.rdma_counters().expect("RDMA").completions;
            (into.registration.is_none() || completions > taken).then_some(())
        });
    }
    let takes = pair.left.takes_offer(0, TAG, len).expect("open");
    assert_eq!(takes, !offers_late && into.registration.is_some());
    // SAFETY: the bytes stay until they are sent.
    unsafe { pair.left.post(0, TAG, from.bytes.as_ptr(), len, true) }.expect("open");
    if offers_late {
        pair.settle();
        offer(pair);
    }
    let mut done = 0;
    let Pair { left, right, world } = pair;
    wait_for(world, "the message", || {
        left.poll(0).expect("open");
        right.poll(0).expect("open");
        let arrival = right.arrival(0).expect("open")?;
        assert_eq!(arrival.tag, TAG);
        // SAFETY: the arrival has so many bytes, the room has them left, and they may be the same.
        unsafe { std::ptr::copy(arrival.data, room.wrapping_add(done), arrival.len) };
        right.release(0, arrival.len).expect("open");
        done += arrival.len;
        arrival.last.then_some(())
    });
    wait_for(world, "the sender", || {
        left.poll(0).expect("open");
        (left.sent_bytes(0) == left.posted_bytes(0)).then_some(())
    });
    assert!(from.bytes == into.bytes);
    left.rdma_counters().expect("a link over RDMA")
}

#[test]
fn registered_memory_is_copied_on_neither_side() {
    let data = Random::new(1).bytes(LEN);
    for (from_is, into_is, offers_late) in [
        (true, true, false),
        (true, true, true),
        (true, false, false),
        (false, true, false),
        (false, false, false),
    ] {
        let mut pair = rdma();
        let from = Buffer::new(data.clone(), from_is);
        let mut into = Buffer::new(vec![0; LEN], into_is);
        let counters = send(&mut pair, &from, &mut into, offers_late);
        let what = format!("{from_is} {into_is} {offers_late}: {counters:?}");
        assert_eq!(counters.payload_bytes, LEN as u64, "{what}");
        assert_eq!(counters.copied_bytes, if from_is { 0 } else { LEN as u64 }, "{what}");
        match (into_is, offers_late) {
            (false, _) => assert_eq!(counters.direct_bytes, 0, "{what}"),
            (true, false) => assert_eq!(counters.direct_bytes, LEN as u64, "{what}"),
            // What had left through slots, before the offer came.
            (true, true) => {
                let through_slots = LEN as u64 - counters.direct_bytes;
                assert!(counters.direct_bytes > 0 && through_slots <= 2 << 20, "{what}");
            }
        }
        assert_eq!(counters.registrations, u64::from(from_is), "{what}");
    }
}

#[test]
fn messages_go_straight_over_several_queue_pairs_at_once() {
    for _ in 0..3 {
        let mut pair = rdma_over("rxe0,rxe1", "rxe0,rxe2", 2);
        let from = Buffer::new(Random::new(2).bytes(LEN), true);
        let mut into = Buffer::new(vec![0; LEN], true);
        let counters = send(&mut pair, &from, &mut into, false);
        assert_eq!((counters.direct_bytes, counters.copied_bytes), (LEN as u64, 0));
    }
}

#[test]
fn an_offer_of_another_call_or_length_is_not_taken() {
    let mut pair = rdma();
    let mut into = Buffer::new(vec![0x5a; LEN], true);
    pair.right.share(into.registration.as_ref().expect("registered"));
    let data = Random::new(3).bytes(LEN);
    for (tag, len) in [(OTHER, LEN), (TAG, LEN - 1)] {
        // SAFETY: nobody reads or writes the room.
        unsafe { pair.right.offer(0, tag, 0, into.bytes.as_mut_ptr(), len) }.expect("open");
        pair.settle();
        assert!(!pair.left.takes_offer(0, TAG, LEN).expect("open"));
        // SAFETY: the bytes stay until they are sent.
        unsafe { pair.left.post(0, TAG, data.as_ptr(), LEN, true) }.expect("open");
        let mut got = Vec::new();
        let Pair { left, right, world } = &mut pair;
        wait_for(world, "the message", || {
            left.poll(0).expect("open");
            right.poll(0).expect("open");
            let arrival = right.arrival(0).expect("open")?;
            // SAFETY: the arrival has so many bytes.
            got.extend_from_slice(unsafe { std::slice::from_raw_parts(arrival.data, arrival.len) });
            right.release(0, arrival.len).expect("open");
            arrival.last.then_some(())
        });
        assert!(got == data && into.bytes.iter().all(|&byte| byte == 0x5a));
    }
}

/// The peer has a key and an offer, and the memory is withdrawn: its device refuses the write, and nothing
/// reaches whatever is there now.
#[test]
fn a_key_that_was_withdrawn_is_refused() {
    let mut pair = rdma();
    let mut into = Buffer::new(vec![0x5a; LEN], true);
    pair.right.share(into.registration.as_ref().expect("registered"));
    // SAFETY: the room is only read, after the link has failed.
    unsafe { pair.right.offer(0, TAG, 0, into.bytes.as_mut_ptr(), LEN) }.expect("open");
    pair.settle();
    into.registration = None;
    assert!(pair.left.takes_offer(0, TAG, LEN).expect("open"));
    let data = vec![1; LEN];
    // SAFETY: the bytes stay until the link is dropped.
    unsafe { pair.left.post(0, TAG, data.as_ptr(), LEN, true) }.expect("open");
    let Pair { left, right, world } = &mut pair;
    let error = wait_for(world, "the refusal", || {
        let _ = right.poll(0);
        left.poll(0).err()
    });
    assert!(
        matches!(&error, LinkError::Failed { peer: 1, reason, .. } if reason.contains("remote access")),
        "{error}"
    );
    assert!(into.bytes.iter().all(|&byte| byte == 0x5a));
}

/// Registrations end with their guards, and a link forgets them.
#[test]
fn memories_come_and_go() {
    let mut pair = rdma_over("rxe0", "rxe0", 1);
    let registered = |pair: &Pair| pair.left.rdma_counters().expect("RDMA").registered;
    for _ in 0..3 {
        let buffers: Vec<Buffer> = (0..50).map(|_| Buffer::new(vec![0; 100_000], true)).collect();
        for buffer in &buffers {
            pair.left.share(buffer.registration.as_ref().expect("registered"));
        }
        assert_eq!(registered(&pair), 50);
        drop(buffers);
        assert_eq!(registered(&pair), 0);
        let from = Buffer::new(vec![7; 100_000], true);
        let mut into = Buffer::new(vec![0; 100_000], true);
        assert!(send(&mut pair, &from, &mut into, false).direct_bytes > 0);
    }
}

#[test]
fn everything_arrives_although_packets_are_lost_late_or_out_of_order() {
    let _burst = Backlog::set(1000);
    for how in ["loss 1%", "delay 5ms", "delay 1ms reorder 1%"] {
        println!("{how}");
        let _netem = Netem::begin(how);
        let mut random = Random::new(5);
        let mut pair = rdma();
        let mut traffic =
            || vec![(0, messages(&mut random, 10, 200_000)), (3, messages(&mut random, 40, 2_000))];
        let (there, back) = (traffic(), traffic());
        exchange(&mut pair, &mut random, there, back);
        let from = Buffer::new(random.bytes(1 << 20), true);
        let mut into = Buffer::new(vec![0; 1 << 20], true);
        send(&mut rdma(), &from, &mut into, false);
    }
}
