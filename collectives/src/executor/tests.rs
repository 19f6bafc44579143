//! All ranks of a collective driven in turn by one thread, over real shared-memory links.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::time::{Duration, Instant};

use ringtree_plan::{Algorithm, Collective, lower};
use ringtree_transport::shm::{Attach, BOARD_BYTES, Board, ShmLink};
use ringtree_transport::tcp::TcpLink;
use ringtree_transport::{Link, Tag};

use super::exchange::Exchange;
use super::{Extent, Fault, Operation, Schedule, Status};
use crate::{DataType, Op};

/// All ranks of a communicator, with the links between every two of them.
struct Mesh {
    links: Vec<Vec<Option<Link>>>,
    boards: Vec<Board>,
}

/// Over shared memory, but for the pairs that `is_far` is true for.
fn mesh(ranks: usize, is_far: impl Fn(usize, usize) -> bool) -> Mesh {
    let boards: Vec<Board> = (0..ranks).map(|_| Board::new().unwrap()).collect();
    let mut links: Vec<Vec<Option<Link>>> =
        (0..ranks).map(|_| (0..ranks).map(|_| None).collect()).collect();
    let pairs = (0..ranks).flat_map(|low| (low + 1..ranks).map(move |high| (low, high)));
    for (low, high) in pairs {
        let (at_low, at_high) =
            if is_far(low, high) { tcp_pair(low, high) } else { shm_pair(low, high, &boards) };
        links[low][high] = Some(at_low);
        links[high][low] = Some(at_high);
    }
    Mesh { links, boards }
}

fn shm_pair(low: usize, high: usize, boards: &[Board]) -> (Link, Link) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let (a, b) = UnixStream::pair().unwrap();
    let board = boards[high].memory().clone();
    let other = std::thread::spawn(move || {
        ShmLink::establish(b, low as u32, &board, Attach::Auto, deadline).unwrap()
    });
    let mine =
        ShmLink::establish(a, high as u32, boards[low].memory(), Attach::Auto, deadline).unwrap();
    (Link::Shm(mine), Link::Shm(other.join().unwrap()))
}

fn tcp_pair(low: usize, high: usize) -> (Link, Link) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let link = |socket, peer: usize| Link::Tcp(TcpLink::new(socket, peer as u32).unwrap());
    (link(dialed, high), link(accepted, low))
}

fn drive(operations: &mut [Operation], links: &mut [Vec<Option<Link>>]) {
    let mut done = vec![false; operations.len()];
    let mut idle = 0;
    while done.contains(&false) {
        let mut moved = false;
        for rank in 0..operations.len() {
            if done[rank] {
                continue;
            }
            let status = operations[rank].poll(&mut links[rank], 0).unwrap();
            done[rank] = status == Status::Done;
            moved |= status != Status::Blocked { moved: false };
        }
        idle = if moved { 0 } else { idle + 1 };
        // What was sent over loopback is there at once, but for what the system still does.
        assert!(
            idle < 1_000_000,
            "deadlock: {:?}",
            operations.iter().map(Operation::waiting_for).collect::<Vec<_>>()
        );
    }
}

fn input(rank: usize, index: usize) -> f32 {
    ((rank + 1) * (index % 17 + 1)) as f32
}

fn all_reduce(algorithm: Algorithm, counts: &[usize], mesh: &mut Mesh, in_place: bool) {
    let Mesh { links, boards } = mesh;
    let ranks = links.len();
    let schedules = [
        Schedule { lanes: 1, round_bytes: 1 << 30, attaches: true },
        Schedule { lanes: 3, round_bytes: 1 << 12, attaches: true },
        Schedule { lanes: 2, round_bytes: 1 << 18, attaches: false },
    ];
    for &count in counts {
        for schedule in schedules {
            let mut operations: Vec<Operation> = (0..ranks)
                .map(|rank| {
                    let plan = algorithm.plan(Collective::AllReduce, rank as u32, ranks as u32);
                    let mut operation = Operation::new(
                        lower(&plan),
                        DataType::F32,
                        Op::Sum,
                        Extent::Whole(count as u64),
                        schedule,
                        0,
                        5,
                    );
                    if algorithm.is_one_exchange() {
                        operation.exchange_at_once();
                    }
                    operation
                })
                .collect();
            let mut inputs: Vec<Vec<f32>> =
                (0..ranks).map(|r| (0..count).map(|i| input(r, i)).collect()).collect();
            let mut outputs = vec![vec![0.0_f32; count]; ranks];
            for rank in 0..ranks {
                let output =
                    if in_place { inputs[rank].as_mut_ptr() } else { outputs[rank].as_mut_ptr() };
                let tag = Tag { sequence: 1, digest: 5 };
                let start = inputs[rank].as_ptr().cast();
                // SAFETY: the vectors outlive `drive`, which runs the operations to their end.
                unsafe {
                    let (links, board) = (&mut links[rank], &mut boards[rank]);
                    operations[rank].start_with(tag, start, output.cast(), links, board);
                };
            }
            drive(&mut operations, links);
            let results = if in_place { &inputs } else { &outputs };
            for (rank, result) in results.iter().enumerate() {
                for (index, &value) in result.iter().enumerate() {
                    let expected = (ranks * (ranks + 1) / 2 * (index % 17 + 1)) as f32;
                    assert_eq!(value, expected, "{algorithm} {count} rank {rank} index {index}");
                }
            }
        }
    }
}

#[test]
fn an_operation_that_was_never_started_touches_nothing() {
    let plan = Algorithm::Ring.plan(Collective::AllReduce, 0, 2);
    let schedule = Schedule { lanes: 2, round_bytes: 64, attaches: true };
    let mut operation =
        Operation::new(lower(&plan), DataType::F32, Op::Sum, Extent::Whole(100), schedule, 0, 5);
    assert_eq!(operation.poll(&mut mesh(2, |_, _| false).links[0], 0), Ok(Status::Done));
}

#[test]
fn every_all_reduce_algorithm_gives_the_sum() {
    for ranks in [1, 2, 3, 4, 7] {
        let mut mesh = mesh(ranks, |_, _| false);
        for algorithm in Algorithm::ALL.into_iter().filter(|a| a.serves(Collective::AllReduce)) {
            for in_place in [true, false] {
                all_reduce(algorithm, &[0, 1, 3, 250, 16384, 100_003], &mut mesh, in_place);
            }
        }
    }
}

#[test]
fn an_exchange_takes_its_messages_from_boards_and_from_links() {
    for is_far in [|_, _| true, |low, _| low == 0, |low, high| (low + high) % 2 == 0] {
        for ranks in [2, 3, 5] {
            let mut mesh = mesh(ranks, is_far);
            for in_place in [true, false] {
                all_reduce(Algorithm::OneShot, &[0, 1, 12, 13, 1024, 1025], &mut mesh, in_place);
            }
        }
    }
}

#[test]
fn a_barrier_of_two_exchanges_needs_boards_or_links() {
    for is_far in [|_, _| false, |_, _| true, |low, _| low == 0, |low, high| (low + high) % 2 == 0]
    {
        for ranks in [2, 3, 5] {
            let Mesh { mut links, mut boards } = mesh(ranks, is_far);
            let schedule = Schedule { lanes: 1, round_bytes: 64, attaches: true };
            let barrier = |rank| {
                let plan = Algorithm::OneShot.plan(Collective::Barrier, rank, ranks as u32);
                let mut operation = Operation::new(
                    lower(&plan),
                    DataType::F32,
                    Op::Sum,
                    Extent::Whole(0),
                    schedule,
                    0,
                    5,
                );
                operation.exchange_at_once();
                operation
            };
            let mut operations: Vec<Operation> = (0..ranks as u32).map(barrier).collect();
            for sequence in [1, 1, 2, 2] {
                for rank in (0..ranks).rev() {
                    let waiting = &mut operations[rank + 1..];
                    for (waiting, links) in waiting.iter_mut().zip(&mut links[rank + 1..]) {
                        let status = waiting.poll(links, 0).unwrap();
                        assert_ne!(status, Status::Done, "rank {rank} has not come");
                    }
                    let (links, board) = (&mut links[rank], &mut boards[rank]);
                    let (tag, none, nowhere) =
                        (Tag { sequence, digest: 5 }, ptr::null(), ptr::null_mut());
                    // SAFETY: a barrier touches no memory.
                    unsafe { operations[rank].start_with(tag, none, nowhere, links, board) };
                }
                drive(&mut operations, &mut links);
            }
        }
    }
}

#[test]
fn one_exchange_is_what_the_algorithm_says() {
    for collective in [Collective::AllReduce, Collective::Barrier] {
        for algorithm in Algorithm::ALL.into_iter().filter(|a| a.is_one_exchange()) {
            for (ranks, rank) in
                (2..=64).flat_map(|ranks| (0..ranks).map(move |rank| (ranks, rank)))
            {
                let program = lower(&algorithm.plan(collective, rank, ranks));
                assert!(Exchange::of(&program, 8).is_some(), "{algorithm} {rank} of {ranks}");
                assert!(Exchange::of(&program, BOARD_BYTES + 1).is_none());
            }
        }
    }
}

#[test]
fn a_message_of_another_call_on_a_board_is_a_mismatch() {
    let Mesh { mut links, mut boards } = mesh(2, |_, _| false);
    let mut buffers = [[1.0_f32], [2.0]];
    let mut operations = [0, 1].map(|rank| {
        let plan = Algorithm::OneShot.plan(Collective::AllReduce, rank, 2);
        let schedule = Schedule { lanes: 1, round_bytes: 64, attaches: true };
        let mut operation =
            Operation::new(lower(&plan), DataType::F32, Op::Sum, Extent::Whole(1), schedule, 0, 5);
        operation.exchange_at_once();
        operation
    });
    for rank in [0, 1] {
        let tag = Tag { sequence: 1, digest: 5 + rank as u32 };
        let buffer = buffers[rank].as_mut_ptr();
        // SAFETY: the buffers outlive the operations' runs.
        unsafe {
            let (links, board) = (&mut links[rank], &mut boards[rank]);
            operations[rank].start_with(tag, buffer.cast(), buffer.cast(), links, board);
        }
    }
    let theirs = Tag { sequence: 1, digest: 6 };
    assert_eq!(operations[0].poll(&mut links[0], 0), Err(Fault::Mismatch { peer: 1, theirs }));
    assert_eq!(buffers, [[1.0], [2.0]], "nothing of a mismatched message reaches the caller");
}

#[test]
fn a_message_that_nobody_took_shows_in_the_exchange_after_it() {
    let Mesh { mut links, mut boards } = mesh(2, |_, _| false);
    let schedule = Schedule { lanes: 1, round_bytes: 64, attaches: true };
    let mut buffers = [[1.0_f32], [2.0]];
    let mut barriers = [0, 1].map(|rank| {
        let plan = Algorithm::OneShot.plan(Collective::Barrier, rank, 2);
        let mut operation =
            Operation::new(lower(&plan), DataType::F32, Op::Sum, Extent::Whole(0), schedule, 0, 6);
        operation.exchange_at_once();
        operation
    });
    // Of calls 1, 2 and 4. An exchange right behind another need not look.
    for sequence in [1, 2, 4] {
        if sequence == 4 {
            // Call 3: each believes to be the root, and sends.
            for rank in [0, 1] {
                let plan = Algorithm::Tree.plan(Collective::Broadcast { root: rank }, rank, 2);
                let mut operation = Operation::new(
                    lower(&plan),
                    DataType::F32,
                    Op::Sum,
                    Extent::Whole(1),
                    schedule,
                    0,
                    5,
                );
                let buffer = buffers[rank as usize].as_mut_ptr().cast();
                let links = &mut links[rank as usize];
                // SAFETY: the buffers outlive the operations' runs.
                unsafe { operation.start(Tag { sequence: 3, digest: 5 }, buffer, buffer, links) };
                assert_eq!(operation.poll(links, 0), Ok(Status::Done));
            }
        }
        for rank in [0, 1] {
            let tag = Tag { sequence, digest: 6 };
            let (links, board) = (&mut links[rank], &mut boards[rank]);
            // SAFETY: a barrier touches no memory.
            unsafe { barriers[rank].start_with(tag, ptr::null(), ptr::null_mut(), links, board) };
        }
        for rank in [0, 1] {
            let theirs = Tag { sequence: 3, digest: 5 };
            let mismatch = Err(Fault::Mismatch { peer: 1 - rank as u32, theirs });
            let expected = if sequence == 4 { mismatch } else { Ok(Status::Done) };
            assert_eq!(barriers[rank].poll(&mut links[rank], 0), expected, "call {sequence}");
        }
    }
}
