//! What the executor adds to the links: both ranks of an all-reduce driven by one thread, so that
//! no wait for another processor is in the figure. Two runs an iteration.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringtree::executor::{Extent, Operation, Schedule, Status};
use ringtree::{Algorithm, DataType, Op};
use ringtree_benches::shm_pair_and_boards;
use ringtree_plan::{Collective, lower};
use ringtree_transport::shm::Board;
use ringtree_transport::{Link, Tag};

struct Rank {
    operation: Operation,
    links: Vec<Option<Link>>,
    board: Board,
    buffer: Vec<f32>,
}

fn rank(rank: u32, algorithm: Algorithm, count: usize, (link, board): (Link, Board)) -> Rank {
    let program = lower(&algorithm.plan(Collective::AllReduce, rank, 2));
    let schedule = Schedule { lanes: 1, round_bytes: 1 << 20, attaches: true };
    let mut operation = Operation::new(
        program,
        DataType::F32,
        Op::Sum,
        Extent::Whole(count as u64),
        schedule,
        0,
        1,
    );
    if algorithm.is_one_exchange() {
        operation.exchange_at_once();
    }
    let mut links = vec![None, None];
    links[1 - rank as usize] = Some(link);
    Rank { operation, links, board, buffer: vec![0.0; count] }
}

fn run(ranks: &mut [Rank; 2], sequence: u32) {
    for rank in ranks.iter_mut() {
        let start = rank.buffer.as_mut_ptr();
        let tag = Tag { sequence, digest: 1 };
        // SAFETY: the buffer outlives this function, which runs the operation to its end.
        unsafe {
            let (links, board) = (&mut rank.links, &mut rank.board);
            rank.operation.start_with(tag, start.cast_const().cast(), start.cast(), links, board);
        };
    }
    let mut done = [false; 2];
    while done != [true; 2] {
        for (rank, done) in ranks.iter_mut().zip(&mut done) {
            if !*done {
                let status = rank.operation.poll(&mut rank.links, 0).expect("a link that works");
                *done = status == Status::Done;
            }
        }
    }
}

fn executor(c: &mut Criterion) {
    let mut group = c.benchmark_group("both ranks");
    for algorithm in [Algorithm::OneShot, Algorithm::TwoShot, Algorithm::Ring] {
        for count in [2_usize, 256, 16 << 10, 256 << 10] {
            let (first, second) = shm_pair_and_boards();
            let mut ranks = [rank(0, algorithm, count, first), rank(1, algorithm, count, second)];
            let mut sequence = 0_u32;
            group.throughput(Throughput::Bytes(4 * count as u64));
            group.bench_function(BenchmarkId::new(algorithm.name(), 4 * count), |b| {
                b.iter(|| {
                    sequence = sequence.wrapping_add(1);
                    run(&mut ranks, sequence);
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, executor);
criterion_main!(benches);
