//! What every transport's links must do: the same functions run over each of them.

use std::collections::VecDeque;
use std::time::Instant;

use crate::links::{MakePair, PATIENCE, Pair, World, is_closed, wait_for};
use crate::random::Random;
use crate::traffic::{Message, Receiving, Sending, exchange, messages, step};
use ringtree_transport::memory::Bell;
use ringtree_transport::wait::Sleeper;
use ringtree_transport::{Arrival, CHANNELS, Channel, Link, MAX_LANES, POINT_TO_POINT, Tag};

/// A test of each of these functions, for each of some transports: functions of [`crate::links`].
#[macro_export]
macro_rules! conformance {
    ($($transport:ident)*) => {
        $crate::conformance! { @each [$($transport)*]
            every_size_arrives_whole_and_in_order
            a_message_larger_than_everything_arrives
            all_channels_at_once_in_both_directions
            two_threads_at_full_speed
            nobody_reads_and_nothing_stops
            a_lane_that_took_all_slots_leaves_some_after_a_new_division
            a_wrong_tag_writes_nothing
            an_arrival_is_released_in_parts
            a_reserved_slot_waits_for_its_commit
            the_end_of_a_message_may_come_alone
            a_peer_that_closes_has_sent_everything
            a_peer_that_vanishes_has_sent_a_beginning
            who_posts_to_nobody_learns_it
            a_sleeper_wakes
            a_credit_wakes_a_sleeper
            an_abandoned_reservation_harms_nothing
            both_close_with_much_to_say
        }
    };
    (@each $transports:tt $($test:ident)*) => {
        $($crate::conformance! { @of $test $transports })*
    };
    (@of $test:ident [$($transport:ident)*]) => {
        mod $test {
            $(#[test]
            fn $transport() {
                $crate::conformance::$test($crate::links::$transport);
            })*
        }
    };
}

const TAG: Tag = Tag { sequence: 1, digest: 0xd16e57 };
const OTHER: Tag = Tag { sequence: 1, digest: 0x07e12 };

/// Sizes on both sides of every limit inside: lines, staging, slots and their multiples.
pub fn every_size_arrives_whole_and_in_order(make: MakePair) {
    let mut sizes: Vec<usize> = (0..=130).collect();
    for power in 8..=20 {
        sizes.extend([(1 << power) - 1, 1 << power, (1 << power) + 1]);
    }
    let mut random = Random::new(11);
    let sent: VecDeque<Message> =
        sizes.iter().map(|&len| Message { tag: TAG, data: random.bytes(len) }).collect();
    for channel in [0, MAX_LANES - 1, POINT_TO_POINT] {
        let mut pair = make();
        pair.divide(MAX_LANES);
        exchange(&mut pair, &mut random, vec![(channel, sent.clone())], Vec::new());
    }
}

/// A message that no credits, slots and sockets hold arrives all the same.
pub fn a_message_larger_than_everything_arrives(make: MakePair) {
    let mut random = Random::new(12);
    let one =
        |random: &mut Random, len| VecDeque::from([Message { tag: TAG, data: random.bytes(len) }]);
    let large = one(&mut random, (64 << 20) + 3);
    let other_way = one(&mut random, (9 << 20) + 1);
    let mut pair = make();
    pair.divide(1);
    exchange(&mut pair, &mut random, vec![(0, large)], vec![(0, other_way)]);
}

/// Random messages on all channels.
pub fn all_channels_at_once_in_both_directions(make: MakePair) {
    for seed in 0..4 {
        let mut random = Random::new(seed);
        let mut traffic =
            || (0..CHANNELS).map(|channel| (channel, messages(&mut random, 8, 400_000))).collect();
        let (there, back) = (traffic(), traffic());
        exchange(&mut make(), &mut random, there, back);
    }
}

/// Both ends driven at once, as by two ranks.
pub fn two_threads_at_full_speed(make: MakePair) {
    let Pair { left, right, world } = make();
    if let World::Virtual(_) = world {
        return; // Virtual time has one driver; the exchanges above are all there is.
    }
    let mut random = Random::new(14);
    let mut traffic = |count, longest| {
        (0..4).map(|c| (c, messages(&mut random, count, longest))).collect::<Vec<_>>()
    };
    let (there, back) = (traffic(60, 2_000_000), traffic(3_000, 300));
    let run = |mut link: Link, sends: Vec<_>, receives: Vec<_>, seed| {
        let mut random = Random::new(seed);
        let mut sends: Vec<_> = sends.into_iter().map(|(c, m)| Sending::new(c, m)).collect();
        let mut receives: Vec<_> =
            receives.into_iter().map(|(c, m)| Receiving::new(c, m)).collect();
        link.divide(4);
        wait_for(&World::Real, "all messages", || {
            link.poll(0).expect("open");
            step(&mut link, &mut random, &mut sends, &mut receives).then_some(())
        });
        // Its end stays open until the other has everything, too.
        link
    };
    std::thread::scope(|scope| {
        let (there, back) = (&there, &back);
        let right = scope.spawn(move || run(right, back.clone(), there.clone(), 1));
        let left = run(left, there.clone(), back.clone(), 2);
        drop((left, right.join().expect("no panic")));
    });
}

/// A channel without a reader takes what its credits allow, and harms no other.
pub fn nobody_reads_and_nothing_stops(make: MakePair) {
    const MUCH: usize = 64 << 20;
    const MOST_UNDER_WAY: u64 = 16 << 20;
    let mut random = Random::new(15);
    let data = random.bytes(MUCH);
    let mut pair = make();
    pair.divide(2);
    post(&mut pair.left, 0, TAG, &data, true);
    assert_eq!(pair.left.posted_bytes(0), MUCH as u64);
    pair.settle();
    assert!(pair.left.sent_bytes(0) <= MOST_UNDER_WAY, "{}", pair.left.sent_bytes(0));
    for channel in [1, POINT_TO_POINT] {
        let there = messages(&mut random, 30, 300_000);
        let back = messages(&mut random, 30, 300_000);
        exchange(&mut pair, &mut random, vec![(channel, there)], vec![(channel, back)]);
    }
    assert!(pair.left.sent_bytes(0) <= MOST_UNDER_WAY, "{}", pair.left.sent_bytes(0));
    assert_eq!(read_message(&mut pair, 0, TAG, MUCH), data);
    assert_eq!(pair.left.sent_bytes(0), MUCH as u64);
}

/// One lane fills all slots; then sixteen lanes share them, and each gets on although the first is
/// not read yet.
pub fn a_lane_that_took_all_slots_leaves_some_after_a_new_division(make: MakePair) {
    let mut random = Random::new(16);
    let data = random.bytes(20 << 20);
    let mut pair = make();
    pair.divide(1);
    post(&mut pair.left, 0, TAG, &data, true);
    pair.settle();
    let first = wait_for_arrival(&mut pair, 0).len;
    pair.right.release(0, first).expect("open");
    pair.divide(MAX_LANES);
    let rest = read_message(&mut pair, 0, TAG, data.len() - first);
    assert!(rest == data[first..]);
    post(&mut pair.left, 0, TAG, &data, true);
    let others = (1..CHANNELS).map(|c| (c, messages(&mut random, 4, 200_000))).collect();
    exchange(&mut pair, &mut random, others, Vec::new());
    assert!(read_message(&mut pair, 0, TAG, data.len()) == data);
}

/// A frame of another call is shown and never consumed.
pub fn a_wrong_tag_writes_nothing(make: MakePair) {
    for len in [0, 1, 40, 5_000, 300_000] {
        let mut pair = make();
        let data = Random::new(17).bytes(len);
        post(&mut pair.left, 2, TAG, &data, true);
        let mut into = vec![0x5a; len + 1];
        let shown = wait_for(&pair.world.clone(), "the frame", || {
            let (left, right) = (&mut pair.left, &mut pair.right);
            left.poll(0).expect("open");
            right.poll(0).expect("open");
            // SAFETY: `into` is writable.
            let got = unsafe { right.receive(2, OTHER, into.as_mut_ptr(), into.len()) };
            assert_eq!(got, Ok((0, false)));
            right.arrival(2).expect("open")
        });
        assert_eq!(shown.tag, TAG);
        assert!(into.iter().all(|&byte| byte == 0x5a));
        assert!(read_message(&mut pair, 2, TAG, len) == data);
    }
}

/// What is not released stays as it is.
pub fn an_arrival_is_released_in_parts(make: MakePair) {
    let mut pair = make();
    let data = Random::new(18).bytes(1_000);
    post(&mut pair.left, 0, TAG, &data, true);
    let mut read = 0;
    for part in [1, 0, 63, 436, 500] {
        let arrival = wait_for_arrival(&mut pair, 0);
        assert_eq!((arrival.len, arrival.last, arrival.tag), (1_000 - read, true, TAG));
        // SAFETY: the arrival has that many readable bytes.
        assert_eq!(unsafe { bytes(&arrival) }, &data[read..]);
        pair.right.release(0, part).expect("open");
        read += part;
    }
    pair.settle();
    assert!(pair.right.arrival(0).expect("open").is_none());
}

/// A slot that is written in place, where the transport has such.
pub fn a_reserved_slot_waits_for_its_commit(make: MakePair) {
    let mut pair = make();
    pair.divide(1);
    let Some(slot) = pair.left.reserve(0, 100) else {
        return; // This transport sends only from the caller's memory.
    };
    assert_eq!(slot.data as usize % 64, 0);
    let again = pair.left.reserve(0, 100).map(|slot| (slot.data, slot.len));
    assert_eq!(again, Some((slot.data, slot.len)), "the same room");
    let data = Random::new(19).bytes(slot.len);
    // SAFETY: the slot is as long as the data.
    unsafe { data.as_ptr().copy_to_nonoverlapping(slot.data, slot.len) };
    pair.settle();
    assert!(pair.right.arrival(0).expect("open").is_none(), "nothing leaves before the commit");
    pair.left.commit(0, TAG, slot.len, true).expect("open");
    assert_eq!(pair.left.posted_bytes(0), slot.len as u64);
    assert_eq!(pair.left.sent_bytes(0), slot.len as u64);
    assert!(read_message(&mut pair, 0, TAG, slot.len) == data);

    let much = Random::new(20).bytes(32 << 20);
    post(&mut pair.left, 0, OTHER, &much, true);
    assert!(pair.left.reserve(0, 100).is_none(), "something posted waits");
    assert!(read_message(&mut pair, 0, OTHER, much.len()) == much);
    assert!(pair.left.reserve(0, 100).is_some());
}

/// Reserving and then posting instead of committing costs neither a credit nor a line.
pub fn an_abandoned_reservation_harms_nothing(make: MakePair) {
    let mut pair = make();
    pair.divide(MAX_LANES);
    let data = Random::new(22).bytes(300_000);
    for len in [1, 2, 300_000, 3, 300_000] {
        for _ in 0..40 {
            pair.left.reserve(0, 100);
            post(&mut pair.left, 0, TAG, &data[..len], true);
            assert!(read_message(&mut pair, 0, TAG, len) == data[..len]);
        }
    }
}

/// A message may be posted in parts, and its end without any bytes.
pub fn the_end_of_a_message_may_come_alone(make: MakePair) {
    let mut pair = make();
    let data = Random::new(21).bytes(10_000);
    for parts in [vec![0..10_000, 0..0], vec![0..1, 1..10_000, 0..0], vec![0..5_000, 5_000..10_000]]
    {
        let end = parts.len() - 1;
        for (i, part) in parts.into_iter().enumerate() {
            post(&mut pair.left, 0, TAG, &data[part], i == end);
            pair.settle();
        }
        assert!(read_message(&mut pair, 0, TAG, data.len()) == data);
    }
    assert_eq!(pair.left.posted_bytes(0), 30_000);
}

/// However far the peer has got when it closes: everything that it posted arrives, then the end.
pub fn a_peer_that_closes_has_sent_everything(make: MakePair) {
    for calls in 0..48 {
        let Pair { mut left, mut right, world } = make();
        let mut random = Random::new(calls);
        let mut posted: Vec<VecDeque<Message>> = vec![VecDeque::new(); CHANNELS];
        act(&mut left, &mut right, &mut random, calls, &mut posted);
        let mut receives = receiving(&posted);
        std::thread::scope(|scope| {
            let closer = scope.spawn(|| left.close(Instant::now() + PATIENCE));
            read_to_the_end(&mut right, &world, &mut random, &mut receives);
            closer.join().expect("no panic");
        });
        for receiving in &receives {
            assert!(receiving.is_done(), "{calls} calls: {:?} is missing", receiving.missing());
        }
    }
}

/// A peer that ends without a word: what arrives is a beginning of what it posted, then the end.
pub fn a_peer_that_vanishes_has_sent_a_beginning(make: MakePair) {
    for calls in 0..48 {
        let Pair { mut left, mut right, world } = make();
        let mut random = Random::new(calls);
        let mut posted: Vec<VecDeque<Message>> = vec![VecDeque::new(); CHANNELS];
        act(&mut left, &mut right, &mut random, calls, &mut posted);
        let mut receives = receiving(&posted);
        drop(left);
        read_to_the_end(&mut right, &world, &mut random, &mut receives);
        receives.iter().for_each(Receiving::check_beginning);
    }
}

fn receiving(posted: &[VecDeque<Message>]) -> Vec<Receiving> {
    posted.iter().enumerate().map(|(c, messages)| Receiving::new(c, messages.clone())).collect()
}

/// Random calls to the left link, while the right one has sent things that may stay unread.
fn act(
    left: &mut Link,
    right: &mut Link,
    random: &mut Random,
    calls: u64,
    posted: &mut [VecDeque<Message>],
) {
    static UNREAD: [u8; 100_000] = [7; 100_000];
    left.divide(MAX_LANES);
    for call in 0..calls {
        let channel = random.below(CHANNELS);
        match random.below(8) {
            0 => drop(left.poll(0).expect("open")),
            1 => drop(left.arrival(channel).expect("open")),
            2 => post(right, channel, OTHER, &UNREAD[..random.length(UNREAD.len())], true),
            _ => {
                let tag = Tag { sequence: call as u32, digest: 0 };
                let len = random.length(150_000);
                posted[channel].push_back(Message { tag, data: random.bytes(len) });
                // A `Message` does not move its bytes when the queue does.
                let data: *const [u8] = posted[channel][posted[channel].len() - 1].data.as_slice();
                // SAFETY: kept in `posted` until the link is closed.
                post(left, channel, tag, unsafe { &*data }, true);
            }
        }
    }
}

/// Reads until the link says that the peer has left, and then what is still there.
fn read_to_the_end(
    link: &mut Link,
    world: &World,
    random: &mut Random,
    receives: &mut [Receiving],
) {
    let mut ended = [false; CHANNELS];
    wait_for(world, "the end", || {
        // Some links tell by `poll`, others by what is called for.
        let told = match link.poll(0) {
            Ok(_) => false,
            Err(error) => {
                assert!(is_closed(&error), "{error}");
                true
            }
        };
        let mut quiet = true;
        for (channel, receiving) in receives.iter_mut().enumerate() {
            if ended[channel] {
                continue;
            }
            match receiving.step(link, random) {
                Ok(moved) => quiet &= !moved && link.arrival(channel).ok().flatten().is_none(),
                Err(error) => {
                    assert!(is_closed(&error), "{error}");
                    ended[channel] = true;
                }
            }
        }
        (ended == [true; CHANNELS] || (told && quiet)).then_some(())
    });
}

/// Neither waits for the other to read on.
pub fn both_close_with_much_to_say(make: MakePair) {
    let Pair { mut left, mut right, world: _ } = make();
    let data = Random::new(23).bytes(8 << 20);
    for link in [&mut left, &mut right] {
        link.divide(4);
        (0..4).for_each(|channel| post(link, channel, TAG, &data, true));
    }
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| left.close(begin + PATIENCE));
        right.close(begin + PATIENCE);
    });
    assert!(begin.elapsed() < PATIENCE, "closed only at the deadline");
}

/// The end of a peer shows to whoever sends.
pub fn who_posts_to_nobody_learns_it(make: MakePair) {
    let Pair { left, mut right, world } = make();
    left.close(Instant::now() + PATIENCE);
    let data = Random::new(24).bytes(32 << 20);
    let error = wait_for(&world, "an error", || {
        // SAFETY: `data` outlives the link's use of it.
        let posted = unsafe { right.post(0, TAG, data.as_ptr(), data.len(), true) };
        posted.err().or_else(|| right.poll(0).err())
    });
    assert!(is_closed(&error), "{error}");
    assert_eq!(error.peer(), 0);
    drop(right);
}

/// Who sleeps on the descriptor wakes when something comes.
/// Data wakes a thread that sleeps on the descriptors.
pub fn a_sleeper_wakes(make: MakePair) {
    let Pair { left, right, world } = make();
    if let World::Virtual(_) = world {
        return assert_eq!(right.descriptors().next(), None, "no one sleeps on virtual time");
    }
    std::thread::scope(|scope| {
        let right = scope.spawn(move || take_turns(right, false));
        let left = take_turns(left, true);
        drop((left, right.join().expect("no panic")));
    });
}

/// One side sleeps until all it posted has left, the other until it has come: far more than the
/// slots hold.
pub fn a_credit_wakes_a_sleeper(make: MakePair) {
    let Pair { left, right, world } = make();
    if let World::Virtual(_) = world {
        return assert_eq!(right.descriptors().next(), None, "no one sleeps on virtual time");
    }
    let data = vec![7; 8 << 20];
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut links, bell) = ([Some(right)], Bell::new().expect("a descriptor"));
            loop {
                let arrival = sleep_until_arrival(&mut links, &bell);
                links[0].as_mut().expect("a link").release(0, arrival.len).expect("open");
                if arrival.last {
                    return links;
                }
            }
        });
        let (mut links, bell) = ([Some(left)], Bell::new().expect("a descriptor"));
        post(links[0].as_mut().expect("a link"), 0, TAG, &data, true);
        let deadline = Instant::now() + PATIENCE;
        let waits = |links: &mut [Option<Link>]| {
            let link = links[0].as_mut().expect("a link");
            link.poll(0).expect("open");
            link.is_waiting(0)
        };
        while waits(&mut links) {
            Sleeper::default().sleep(&mut links, &bell, PATIENCE, |links| !waits(links));
            assert!(Instant::now() < deadline, "nothing woke the sleeper");
        }
        drop(reader.join().expect("no panic"));
    });
}

/// Sends and awaits a message by turns.
fn take_turns(link: Link, first: bool) -> [Option<Link>; 1] {
    static DATA: [u8; 3] = [1, 2, 3];
    const TURNS: usize = 400;
    let bell = Bell::new().expect("a descriptor");
    let mut links = [Some(link)];
    for turn in 0..TURNS {
        if (turn % 2 == 0) == first {
            post(links[0].as_mut().expect("a link"), 0, TAG, &DATA, true);
        } else {
            let arrival = sleep_until_arrival(&mut links, &bell);
            links[0].as_mut().expect("a link").release(0, arrival.len).expect("open");
        }
    }
    links
}

fn sleep_until_arrival(links: &mut [Option<Link>; 1], bell: &Bell) -> Arrival {
    let look = |links: &mut [Option<Link>]| {
        let link = links[0].as_mut().expect("a link");
        link.poll(0).expect("open");
        link.arrival(0).expect("open")
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(arrival) = look(links) {
            return arrival;
        }
        Sleeper::default().sleep(links, bell, PATIENCE, |links| look(links).is_some());
        assert!(Instant::now() < deadline, "nothing woke the sleeper");
    }
}

/// Posts bytes that the test keeps until the link has sent them or is dropped.
fn post(link: &mut Link, channel: Channel, tag: Tag, data: &[u8], last: bool) {
    // SAFETY: every caller keeps `data` at least as long as the link.
    unsafe { link.post(channel, tag, data.as_ptr(), data.len(), last) }.expect("open");
}

/// Reads one message at the right end.
fn read_message(pair: &mut Pair, channel: Channel, tag: Tag, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    let mut got = 0;
    let (left, right) = (&mut pair.left, &mut pair.right);
    wait_for(&pair.world, "a message", || {
        // SAFETY: the rest of `data` is writable.
        let received = unsafe { right.receive(channel, tag, data[got..].as_mut_ptr(), len - got) };
        let (received, ended) = received.expect("open");
        got += received;
        left.poll(0).expect("open");
        right.poll(0).expect("open");
        ended.then_some(())
    });
    assert_eq!(got, len);
    data
}

fn wait_for_arrival(pair: &mut Pair, channel: Channel) -> Arrival {
    let (left, right) = (&mut pair.left, &mut pair.right);
    wait_for(&pair.world, "an arrival", || {
        left.poll(0).expect("open");
        right.poll(0).expect("open");
        right.arrival(channel).expect("open")
    })
}

/// # Safety
/// The arrival is not released.
unsafe fn bytes(arrival: &Arrival) -> &[u8] {
    // SAFETY: readable until it is released.
    unsafe { std::slice::from_raw_parts(arrival.data, arrival.len) }
}
