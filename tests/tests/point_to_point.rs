//! Send and receive between ranks that are threads of one process.

use ringtree::{Communicator, Op};
use ringtree_tests::random::{Random, element};
use ringtree_tests::ranks::{TRANSPORTS, on_ranks};
use ringtree_tests::sample::Sample;

/// Sends `count` elements from one rank to another; the others do nothing.
fn transfer(communicator: &Communicator, from: u32, to: u32, count: usize, seed: u64) {
    let value = |index: usize| i32::exact(element(seed, from, index));
    if communicator.rank() == from {
        let buffer: Vec<i32> = (0..count).map(value).collect();
        communicator.send(&buffer, to).expect("sent");
    } else if communicator.rank() == to {
        let mut buffer = vec![-1; count];
        communicator.receive(&mut buffer, from).expect("received");
        let wrong = (0..count).find(|&index| buffer[index] != value(index));
        assert_eq!(wrong, None, "{count} elements from {from} to {to}");
    }
}

#[test]
fn sizes_from_nothing_to_16_mib_in_both_directions() {
    for transports in TRANSPORTS {
        on_ranks(2, transports, |communicator| {
            for count in [0, 1, 2, 13, 14, 15, 1_000, 65_537, 4 << 20] {
                transfer(communicator, 0, 1, count, 1);
                transfer(communicator, 1, 0, count, 2);
            }
        });
    }
}

#[test]
fn any_pair_of_four_ranks_between_collectives() {
    for transports in TRANSPORTS {
        on_ranks(4, transports, |communicator| {
            let mut random = Random::new(3);
            for message in 0..150 {
                let from = random.below(4) as u32;
                let to = (from + 1 + random.below(3) as u32) % 4;
                let count = random.below(40) * random.below(1_000);
                transfer(communicator, from, to, count, message);
                if random.below(10) == 0 {
                    let mut buffer = [1_i32; 100];
                    communicator.all_reduce(&mut buffer, Op::Sum).expect("an all-reduce");
                    assert_eq!(buffer, [4; 100]);
                }
            }
        });
    }
}

#[test]
fn small_messages_wait_for_their_receivers() {
    // As the documentation says: a message that fits the link's slots is sent before it is asked
    // for, so that both may send first.
    for transports in TRANSPORTS {
        on_ranks(2, transports, |communicator| {
            let (rank, peer) = (communicator.rank(), 1 - communicator.rank());
            for round in 0..100 {
                communicator.send(&[rank as i32, round], peer).expect("sent");
                let mut got = [0; 2];
                communicator.receive(&mut got, peer).expect("received");
                assert_eq!(got, [peer as i32, round]);
            }
        });
    }
}

/// Whatever memory it is in.
#[test]
fn two_ranks_may_both_send_first_what_the_slots_hold() {
    const COUNT: usize = (256 << 10) / size_of::<i32>();
    for transports in TRANSPORTS {
        on_ranks(2, transports, |communicator| {
            let peer = 1 - communicator.rank();
            let mut allocated = communicator.alloc::<i32>(COUNT).expect("memory");
            let mut received = vec![0; COUNT];
            for turn in 0..5 {
                allocated.fill(communicator.rank() as i32 + turn);
                communicator.send(&allocated, peer).expect("sent");
                let ordinary = allocated.to_vec();
                communicator.receive(&mut received, peer).expect("received");
                assert_eq!(received, vec![peer as i32 + turn; COUNT]);
                communicator.send(&ordinary, peer).expect("sent");
                communicator.receive(&mut received, peer).expect("received");
                assert_eq!(received, vec![peer as i32 + turn; COUNT]);
            }
        });
    }
}

#[test]
fn a_ring_of_messages_with_one_rank_receiving_first() {
    for transports in TRANSPORTS {
        on_ranks(4, transports, |communicator| {
            let (rank, ranks) = (communicator.rank(), communicator.ranks());
            let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
            let mine = vec![f64::from(rank); 200_000];
            let mut theirs = vec![-1.0; 200_000];
            for _ in 0..3 {
                if rank == 0 {
                    communicator.receive(&mut theirs, before).expect("received");
                    communicator.send(&mine, next).expect("sent");
                } else {
                    communicator.send(&mine, next).expect("sent");
                    communicator.receive(&mut theirs, before).expect("received");
                }
                assert!(theirs.iter().all(|x| *x == f64::from(before)));
            }
        });
    }
}
