//! Several calls as one, messages both ways at once, and communicators that are split.

use ringtree::{Communicator, Error, Factor, Op, Transports};
use ringtree_tests::random::Random;
use ringtree_tests::ranks::{TRANSPORTS, on_ranks};

/// More than fits between two ranks: a send that nobody takes does not end.
const LARGE: usize = 3_000_000;

#[test]
fn everyone_sends_around_a_ring_at_once() {
    for transports in TRANSPORTS {
        for ranks in [2, 3, 5] {
            on_ranks(ranks, transports, |communicator| {
                let rank = communicator.rank();
                let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
                for count in [0, 1, 1000, LARGE / 4] {
                    let mut got = vec![0_i32; count];
                    let given = vec![rank as i32; count];
                    communicator.send_receive(&given, next, &mut got, before).expect("exchanged");
                    assert!(got.iter().all(|x| *x == before as i32));
                    let pending =
                        communicator.send_receive_async(given, before, got, next).expect("posted");
                    let (given, got) = pending.wait().expect("exchanged");
                    assert!(given.iter().all(|x| *x == rank as i32));
                    assert!(got.iter().all(|x| *x == next as i32) && got.len() == count);
                }
                let mut own = [0_u8; 3];
                communicator.send_receive(&[1, 2, 3], rank, &mut own, rank).expect("a copy");
                assert_eq!(own, [1, 2, 3]);
                let uneven = communicator.send_receive(&[1_u8, 2], rank, &mut own, rank);
                assert!(matches!(uneven, Err(Error::Argument(_))));
            });
        }
    }
}

/// A buffer that is shorter each time somebody asks.
struct Shrinking(std::sync::Mutex<usize>, [u8; 8]);

impl AsRef<[u8]> for Shrinking {
    fn as_ref(&self) -> &[u8] {
        let mut length = self.0.lock().expect("nobody panicked");
        *length -= 1;
        &self.1[..*length]
    }
}

#[test]
fn what_a_rank_gives_itself_must_still_be_as_long_as_it_said() {
    on_ranks(1, Transports::Shm, |communicator| {
        let given = Shrinking(5.into(), [1; 8]);
        let pending = communicator.send_receive_async(given, 0, vec![0_u8; 4], 0).expect("posted");
        assert!(matches!(pending.wait(), Err(Error::Argument(_))));
    });
}

/// Everyone to everyone, several messages each, of which the later ones are another length.
#[test]
fn messages_of_a_group_are_all_under_way() {
    for transports in TRANSPORTS {
        on_ranks(4, transports, |communicator| {
            let (rank, ranks) = (communicator.rank(), communicator.ranks());
            let counts = [LARGE / 8, 0, 1, 70_000];
            let value =
                |from: u32, to: u32, index: usize| (from * 100 + to * 10) as f32 + index as f32;
            let peers = || (0..ranks).filter(|peer| *peer != rank);
            let given: Vec<(u32, Vec<f32>)> = peers()
                .flat_map(|to| counts.iter().enumerate().map(move |(i, &c)| (to, i, c)))
                .map(|(to, index, count)| (to, vec![value(rank, to, index); count]))
                .collect();
            let mut got: Vec<(u32, usize, Vec<f32>)> = peers()
                .flat_map(|from| {
                    counts.iter().enumerate().map(move |(i, &c)| (from, i, vec![0.0; c]))
                })
                .collect();
            for _ in 0..3 {
                let mut group = communicator.group();
                for (to, buffer) in &given {
                    group.send(buffer, *to).expect("added");
                }
                for (from, _, buffer) in &mut got {
                    group.receive(buffer, *from).expect("added");
                }
                group.run().expect("the group");
                for (from, index, buffer) in &mut got {
                    assert!(buffer.iter().all(|x| *x == value(*from, rank, *index)));
                    buffer.fill(0.0);
                }
            }
        });
    }
}

/// Small tensors are packed, large ones are not, and neither shows.
#[test]
fn a_group_of_collectives_gives_what_they_give_alone() {
    for transports in TRANSPORTS {
        on_ranks(3, transports, |communicator| {
            let mut random = Random::new(7);
            for _ in 0..10 {
                let counts: Vec<usize> = (0..40).map(|_| random.length(9_000)).collect();
                let input = |index: usize, count: usize| -> Vec<f32> {
                    (0..count)
                        .map(|at| ((communicator.rank() as usize + index) * (at % 7)) as f32)
                        .collect()
                };
                let tensors =
                    || counts.iter().enumerate().map(|(index, &count)| input(index, count));
                let mut alone: Vec<Vec<f32>> = tensors().collect();
                for tensor in &mut alone {
                    communicator.all_reduce(tensor, Op::Sum).expect("an all-reduce");
                }
                let mut together: Vec<Vec<f32>> = tensors().collect();
                let given: Vec<Vec<f32>> = tensors().collect();
                let mut into: Vec<Vec<f32>> = tensors().collect();
                let mut words = [communicator.rank() as u64, 1];
                let mut told = [communicator.rank()];
                let mut group = communicator.group();
                for tensor in &mut together {
                    group.all_reduce(tensor, Op::Sum).expect("added");
                }
                group.all_reduce(&mut words, Op::BitOr).expect("added");
                group.broadcast(&mut told, 2).expect("added");
                for (from, to) in given.iter().zip(&mut into) {
                    group.all_reduce_into(from, to, Op::Sum).expect("added");
                }
                group.run().expect("the group");
                assert_eq!((&together, &into), (&alone, &alone));
                assert_eq!((words, told), ([3, 1], [2]));
            }
        });
    }
}

/// A factor is each rank's own, and may differ from tensor to tensor.
#[test]
fn tensors_of_a_group_may_have_factors() {
    on_ranks(2, Transports::Shm, |communicator| {
        let factors = if communicator.rank() == 0 { [2.0, 2.0, 1.0] } else { [3.0, 4.0, 0.5] };
        let mut tensors = [[2.0_f32; 4]; 3];
        let mut group = communicator.group();
        for (tensor, factor) in tensors.iter_mut().zip(factors) {
            group.all_reduce(tensor, Op::PreMulSum(Factor::new(factor))).expect("added");
        }
        group.run().expect("the group");
        assert_eq!(tensors, [[10.0; 4], [12.0; 4], [3.0; 4]]);
    });
}

#[test]
fn tensors_of_another_length_in_a_group_are_a_mismatch() {
    let ended = on_ranks(2, Transports::Shm, |communicator| {
        let (mut a, mut b) = (vec![1.0_f32; 3 + communicator.rank() as usize], vec![1.0_f32; 7]);
        b.truncate(7 - a.len());
        let mut group = communicator.group();
        group.all_reduce(&mut a, Op::Sum).expect("added");
        group.all_reduce(&mut b, Op::Sum).expect("added");
        group.run().map_err(|error| error.to_string())
    });
    for error in ended {
        let error = error.expect_err("the same sum, but other lengths");
        assert!(error.contains("all-reduce of 7 f32 in all, lengths #"), "{error}");
    }
}

#[test]
fn a_communicator_is_split_by_color_and_key() {
    for transports in TRANSPORTS {
        on_ranks(7, transports, |communicator| {
            let rank = communicator.rank();
            // Even ranks in descending order, odd ones but the last in ascending order, one alone.
            let color = if rank == 5 { None } else { Some(rank % 2) };
            let key = if rank.is_multiple_of(2) { -i64::from(rank) } else { 0 };
            let part = communicator.split(color, key).expect("split");
            assert_eq!(part.is_some(), rank != 5);
            if let Some(part) = &part {
                let wanted = match rank {
                    0 | 2 | 4 | 6 => ((6 - rank) / 2, 4),
                    _ => (rank / 2, 2),
                };
                assert_eq!((part.rank(), part.ranks()), wanted);
                let mut ranks = [rank];
                part.all_reduce(&mut ranks, Op::Sum).expect("within the part");
                assert_eq!(ranks, [if rank.is_multiple_of(2) { 12 } else { 4 }]);
                let mut first = [rank];
                part.broadcast(&mut first, 0).expect("within the part");
                assert_eq!(first, [if rank.is_multiple_of(2) { 6 } else { 1 }]);
            }
            // The whole goes on beside its parts, and parts can be split.
            let mut ones = [1_u32];
            communicator.all_reduce(&mut ones, Op::Sum).expect("among all");
            assert_eq!(ones, [7]);
            let pair =
                part.as_ref().map(|part| part.split(Some(part.rank() / 2), 0).expect("split"));
            if let Some(Some(pair)) = pair {
                let mut ones = [1_u32];
                pair.all_reduce(&mut ones, Op::Sum).expect("within the pair");
                assert_eq!(ones, [2]);
            }
            drop(part);
            communicator.barrier().expect("among all");
        });
    }
}

/// A part outlives the communicator that it was split from, and another split is another one.
#[test]
fn parts_outlive_what_they_were_split_from() {
    let whole = Communicator::in_process(4).expect("communicators");
    let ended = ringtree_tests::ranks::each(whole, |communicator| {
        let rank = communicator.rank();
        let first = communicator.split(Some(rank / 2), 0)?.expect("a part");
        let second = communicator.split(Some(rank / 2), 0)?.expect("a part");
        drop(communicator);
        let (mut a, mut b) = (vec![1.0_f32; 100_000], vec![2.0_f32; 100_000]);
        let pending = first.all_reduce_async(std::mem::take(&mut a), Op::Sum)?;
        second.all_reduce(&mut b, Op::Sum)?;
        a = pending.wait()?;
        assert!(a.iter().all(|x| *x == 2.0) && b.iter().all(|x| *x == 4.0));
        drop(first);
        second.barrier()
    });
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
}
