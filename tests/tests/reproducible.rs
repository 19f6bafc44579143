//! The reproducible mode: the same bits whatever the algorithm, the size, the grouping and the transport.

use ringtree::{
    Algorithm, Collective, Communicator, Element, Error, Op, Settings, Transports, bf16,
};
use ringtree_tests::random::element;
use ringtree_tests::ranks::{TRANSPORTS, each};
use ringtree_tests::sample::Sample;

/// Not divisible by any number of ranks here.
const COUNT: usize = 270_001;

fn communicators(ranks: u32, transports: Transports) -> Vec<Communicator> {
    let adjust = |settings: &mut Settings| {
        settings.transports = transports;
        settings.reproducible = true;
    };
    Communicator::in_process_with(ranks, adjust).expect("communicators")
}

/// The sum in the order of the ranks, rounded as the library says.
trait InOrder: Sample {
    fn sum(values: impl Iterator<Item = Self>) -> Self;
}

impl InOrder for f32 {
    fn sum(values: impl Iterator<Item = f32>) -> f32 {
        values.reduce(|sum, x| sum + x).expect("a rank")
    }
}

impl InOrder for bf16 {
    fn sum(values: impl Iterator<Item = bf16>) -> bf16 {
        bf16::from_f32(<f32 as InOrder>::sum(values.map(bf16::to_f32)))
    }
}

fn serving(collective: Collective) -> impl Iterator<Item = Option<Algorithm>> {
    let fits = move |a: &Algorithm| a.serves(collective) && a.folds_in_rank_order(collective);
    Algorithm::ALL.into_iter().filter(fits).map(Some).chain([None])
}

fn check<T: InOrder + Element>(communicator: &Communicator) {
    let (rank, ranks) = (communicator.rank(), communicator.ranks());
    let given = |rank: u32, index: usize| T::inexact(element(11, rank, index));
    let input: Vec<T> = (0..COUNT).map(|index| given(rank, index)).collect();
    let wanted: Vec<u64> =
        (0..COUNT).map(|index| T::sum((0..ranks).map(|rank| given(rank, index))).bits()).collect();
    let same = |what: &str, got: &[T], from: usize| {
        let differs =
            got.iter().zip(&wanted[from..]).position(|(got, wanted)| got.bits() != *wanted);
        assert_eq!(differs, None, "rank {rank} of {ranks}, {what}");
    };
    for algorithm in serving(Collective::AllReduce) {
        let by = communicator.using(algorithm);
        for count in [1, 7, 1_000, 30_000, COUNT] {
            let mut sums = input[..count].to_vec();
            by.all_reduce(&mut sums, Op::Sum).expect("an all-reduce");
            same(&format!("{algorithm:?} of {count}"), &sums, 0);
        }
    }
    for algorithm in serving(Collective::Reduce { root: 0 }) {
        for root in 0..ranks {
            let mut sums = input.clone();
            communicator.using(algorithm).reduce(&mut sums, Op::Sum, root).expect("a reduction");
            let is_kept = || sums.iter().zip(&input).all(|(a, b)| a.bits() == b.bits());
            assert!(rank == root || is_kept(), "rank {rank}, to {root}");
            if rank == root {
                same(&format!("to {root} by {algorithm:?}"), &sums, 0);
            }
        }
    }
    let block = COUNT / ranks as usize;
    for algorithm in serving(Collective::ReduceScatter) {
        let mut sums = vec![T::default(); block];
        let all = &input[..block * ranks as usize];
        let by = communicator.using(algorithm);
        by.reduce_scatter_into(all, &mut sums, Op::Sum).expect("a reduce-scatter");
        same(&format!("scattered by {algorithm:?}"), &sums, rank as usize * block);
    }
    // As a group of tensors.
    let mut sums = input.clone();
    let mut group = communicator.group();
    for tensor in sums.chunks_mut(3_333) {
        group.all_reduce(tensor, Op::Sum).expect("added");
    }
    group.run().expect("the group");
    same("in a group", &sums, 0);
}

#[test]
fn every_way_to_a_sum_gives_the_bits_of_the_ranks_in_their_order() {
    for ranks in [2, 3, 5, 8] {
        for transports in TRANSPORTS {
            each(communicators(ranks, transports), |communicator| {
                check::<f32>(&communicator);
                check::<bf16>(&communicator);
            });
        }
    }
}

#[test]
fn an_algorithm_with_an_order_of_its_own_is_refused() {
    each(communicators(3, Transports::Shm), |communicator| {
        let ring = communicator.using(Algorithm::Ring);
        let refused = ring.all_reduce(&mut [1.0_f32], Op::Sum);
        let Err(Error::Argument(message)) = refused else { panic!("{refused:?}") };
        assert!(message.contains("reproducible all-reduce") && message.contains("two-shot"));
        // What reduces nothing has no order.
        let mut all = [communicator.rank(); 3];
        ring.all_gather(&mut all).expect("an all-gather");
        assert_eq!(all, [0, 1, 2]);
    });
}

#[test]
fn ranks_that_do_not_agree_on_the_mode_do_not_begin() {
    let adjust = |settings: &mut Settings| settings.reproducible = settings.rank == 1;
    let error = Communicator::in_process_with(2, adjust).expect_err("one wants it");
    assert!(error.to_string().contains("reproducible"), "{error}");
}
