//! All ranks of a collective driven in turn by one thread, over real shared-memory links.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringtree_plan::{Algorithm, Collective, lower};
use ringtree_transport::shm::ShmLink;
use ringtree_transport::{Link, Tag};

use super::{Operation, Schedule, Status};
use crate::{DataType, Op, reduce};

/// Links between every two of `ranks` ranks.
fn mesh(ranks: usize) -> Vec<Vec<Option<Link>>> {
    let mut links: Vec<Vec<Option<Link>>> =
        (0..ranks).map(|_| (0..ranks).map(|_| None).collect()).collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    let pairs = (0..ranks).flat_map(|low| (low + 1..ranks).map(move |high| (low, high)));
    for (low, high) in pairs {
        let (a, b) = UnixStream::pair().unwrap();
        let establish = move || ShmLink::establish(b, low as u32, deadline).unwrap();
        let other = std::thread::spawn(establish);
        let mine = ShmLink::establish(a, high as u32, deadline).unwrap();
        links[low][high] = Some(Link::Shm(mine));
        links[high][low] = Some(Link::Shm(other.join().unwrap()));
    }
    links
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
            moved |= status != Status::Blocked;
        }
        idle = if moved { 0 } else { idle + 1 };
        assert!(
            idle < 3,
            "deadlock: {:?}",
            operations.iter().map(Operation::waiting_for).collect::<Vec<_>>()
        );
    }
}

fn input(rank: usize, index: usize) -> f32 {
    ((rank + 1) * (index % 17 + 1)) as f32
}

fn all_reduce(
    algorithm: Algorithm,
    counts: &[usize],
    links: &mut [Vec<Option<Link>>],
    in_place: bool,
) {
    let ranks = links.len();
    let schedules = [
        Schedule { lanes: 1, round_bytes: 1 << 30 },
        Schedule { lanes: 3, round_bytes: 1 << 12 },
        Schedule { lanes: 2, round_bytes: 1 << 18 },
    ];
    for &count in counts {
        for schedule in schedules {
            let mut operations: Vec<Operation> = (0..ranks)
                .map(|rank| {
                    let plan = algorithm.plan(Collective::AllReduce, rank as u32, ranks as u32);
                    let kernel = reduce::kernel(DataType::F32, Op::Sum);
                    Operation::new(
                        lower(&plan),
                        DataType::F32,
                        kernel,
                        count as u64,
                        schedule,
                        0,
                        5,
                    )
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
                unsafe { operations[rank].start(tag, start, output.cast(), &mut links[rank]) };
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
    let kernel = reduce::kernel(DataType::F32, Op::Sum);
    let schedule = Schedule { lanes: 2, round_bytes: 64 };
    let mut operation = Operation::new(lower(&plan), DataType::F32, kernel, 100, schedule, 0, 5);
    assert_eq!(operation.poll(&mut mesh(2)[0], 0), Ok(Status::Done));
}

#[test]
fn every_all_reduce_algorithm_gives_the_sum() {
    for ranks in [1, 2, 3, 4, 7] {
        let mut links = mesh(ranks);
        for algorithm in Algorithm::ALL.into_iter().filter(|a| a.serves(Collective::AllReduce)) {
            for in_place in [true, false] {
                all_reduce(algorithm, &[0, 1, 3, 250, 16384, 100_003], &mut links, in_place);
            }
        }
    }
}
