//! Results against plain sums: random calls whose result is exact, so that it can be compared to
//! the bit.

use std::ops::{DerefMut, Range};

use ringtree::{Algorithm, Communicator, DataType, F8E4M3, F8E5M2, Factor, Op, bf16, f16};
use ringtree_plan::Collective;

use crate::calls::{self, Way};
use crate::random::{Random, element};
use crate::sample::Sample;

/// The buffers of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// One buffer, input and output.
    In,
    /// Two buffers.
    OutOf,
}

/// One call, the same on every rank.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Which collective.
    pub collective: Collective,
    /// `None`: the library chooses.
    pub algorithm: Option<Algorithm>,
    /// Of what.
    pub data_type: DataType,
    /// By what. Where it has factors, each rank has its own.
    pub op: Op,
    /// One buffer or two.
    pub place: Place,
    /// Blocking or not.
    pub way: Way,
    /// Elements of the buffer, or of a block where there are blocks.
    pub count: usize,
    /// Elements before the first one: what makes a buffer unaligned.
    pub offset: usize,
    /// Which ranks have their buffers in memory of the library's, a bit each.
    pub allocated: u64,
    /// What the elements are drawn from.
    pub seed: u64,
}

/// The algorithms that serve a collective, and the library's choice.
pub fn algorithms(collective: Collective) -> Vec<Option<Algorithm>> {
    let serving = Algorithm::ALL.into_iter().filter(|algorithm| algorithm.serves(collective));
    serving.map(Some).chain([None]).collect()
}

/// Every algorithm, type and operation of all-reduce, each in place or not and with another random
/// count of at most `most` elements, in random order.
pub fn all_reduces(seed: u64, ranks: u32, most: usize) -> Vec<Case> {
    let mut random = Random::new(seed);
    let mut cases = Vec::new();
    for algorithm in algorithms(Collective::AllReduce) {
        for (data_type, op) in reductions() {
            cases.push(Case {
                collective: Collective::AllReduce,
                algorithm,
                data_type,
                op,
                place: random.pick(&[Place::In, Place::OutOf]),
                way: way(&mut random),
                count: count(&mut random, ranks, most),
                offset: random.below(2),
                allocated: allocated(&mut random),
                seed: random.number(),
            });
        }
    }
    random.shuffle(&mut cases);
    cases
}

/// Every collective but all-reduce, from and to every root, by every algorithm and placement, with
/// random types, operations and counts of at most `most` elements in all.
pub fn others(seed: u64, ranks: u32, most: usize) -> Vec<Case> {
    let mut random = Random::new(seed);
    let mut cases = Vec::new();
    for root in 0..ranks {
        let all = Collective::all(root).into_iter();
        let reached = all.filter(|c| root == 0 || c.root().is_some());
        let others = reached.filter(|c| !matches!(c, Collective::AllReduce | Collective::Barrier));
        for collective in others {
            let blocks = if collective.is_of_blocks() { ranks as usize } else { 1 };
            for algorithm in algorithms(collective) {
                for place in [Place::In, Place::OutOf] {
                    if place == Place::In && !has_call_in_place(collective) {
                        continue;
                    }
                    let (data_type, op) = random.pick(&reductions());
                    cases.push(Case {
                        collective,
                        algorithm,
                        data_type,
                        op,
                        place,
                        way: way(&mut random),
                        count: count(&mut random, ranks, most / blocks),
                        offset: random.below(2),
                        allocated: allocated(&mut random),
                        seed: random.number(),
                    });
                }
            }
        }
    }
    random.shuffle(&mut cases);
    cases
}

/// Every type with every operation that it has.
pub fn reductions() -> Vec<(DataType, Op)> {
    let of = |data_type: DataType| data_type.ops().map(move |op| (data_type, op));
    DataType::ALL.into_iter().flat_map(of).collect()
}

/// What a rank multiplies with where the operation has factors: exact in every type.
fn factor(rank: u32) -> f64 {
    [2.0, 1.0, -1.0][rank as usize % 3]
}

/// Whether it has a call on one buffer.
pub fn has_call_in_place(collective: Collective) -> bool {
    let only_into = matches!(collective, Collective::Gather { .. } | Collective::Scatter { .. });
    collective.can_be_in_place() && !only_into
}

/// Makes the call and compares every element.
///
/// # Panics
/// If the call fails or an element is wrong.
pub fn check(communicator: &Communicator, case: Case) {
    match case.data_type {
        DataType::F32 => check_as::<f32>(communicator, case),
        DataType::F64 => check_as::<f64>(communicator, case),
        DataType::Bf16 => check_as::<bf16>(communicator, case),
        DataType::F16 => check_as::<f16>(communicator, case),
        DataType::F8E4M3 => check_as::<F8E4M3>(communicator, case),
        DataType::F8E5M2 => check_as::<F8E5M2>(communicator, case),
        DataType::I8 => check_as::<i8>(communicator, case),
        DataType::U8 => check_as::<u8>(communicator, case),
        DataType::I32 => check_as::<i32>(communicator, case),
        DataType::U32 => check_as::<u32>(communicator, case),
        DataType::I64 => check_as::<i64>(communicator, case),
        DataType::U64 => check_as::<u64>(communicator, case),
    }
}

/// Counts at which something goes wrong, if it does: none, one, about as many as ranks, odd ones,
/// and now and then as many as make several rounds.
fn count(random: &mut Random, ranks: u32, most: usize) -> usize {
    let ranks = ranks as usize;
    match random.below(20) {
        0..6 => random.pick(&[0, 1, 2, 3, ranks - 1, ranks, ranks + 1]),
        6..13 => random.below(500) * 2 + 1,
        13..19 => random.below(most / 30),
        _ => random.below(most),
    }
    .min(most)
}

/// Most calls are blocking ones.
fn way(random: &mut Random) -> Way {
    random.pick(&[Way::Blocking, Way::Blocking, Way::Asynchronous, Way::Prepared])
}

/// Nobody, everybody, or any ranks: what is registered must not matter to the others.
fn allocated(random: &mut Random) -> u64 {
    match random.below(4) {
        0 | 1 => 0,
        2 => u64::MAX,
        _ => random.number(),
    }
}

/// A buffer of `count` elements, of the library's memory or of its own.
fn buffer<T: Sample>(
    communicator: &Communicator,
    case: Case,
    count: usize,
) -> Box<dyn DerefMut<Target = [T]>> {
    if case.allocated >> communicator.rank() & 1 == 1 {
        Box::new(communicator.alloc(count).expect("memory"))
    } else {
        Box::new(vec![T::default(); count])
    }
}

/// Which elements of all ranks' blocks a rank has in its input, and which in its output. Where there
/// are no blocks, all are one.
fn parts(
    collective: Collective,
    rank: u32,
    ranks: u32,
    count: usize,
) -> (Range<usize>, Range<usize>) {
    let blocks = if collective.is_of_blocks() { ranks } else { 1 };
    let part = |has: &dyn Fn(u32) -> bool| {
        let first = (0..blocks).find(|block| has(*block)).unwrap_or(0) as usize;
        let number = (0..blocks).filter(|block| has(*block)).count();
        first * count..(first + number) * count
    };
    (part(&|block| collective.is_given(rank, block)), part(&|block| collective.is_got(rank, block)))
}

fn check_as<T: Sample>(communicator: &Communicator, case: Case) {
    let Case { collective, count, offset, seed, .. } = case;
    let (rank, ranks) = (communicator.rank(), communicator.ranks());
    let multiplies = collective.is_reduction() && case.op == Op::Product;
    let value = |rank: u32, index: usize| match element(seed, rank, index) {
        number if multiplies => T::exact_factor(number),
        number => T::exact(number),
    };
    let untouched = T::special(2);
    let framed = |part: &Range<usize>, fill: &dyn Fn(usize) -> T| {
        let mut buffer = buffer(communicator, case, offset + part.len() + 1);
        buffer.fill(untouched);
        let inside = buffer[offset..][..part.len()].iter_mut();
        inside.zip(part.clone()).for_each(|(x, index)| *x = fill(index));
        buffer
    };
    let (mut given, mut got) = parts(collective, rank, ranks, count);
    let expected_at = got.clone();
    if case.place == Place::In {
        let all = if collective.is_of_blocks() { ranks as usize * count } else { count };
        (given, got) = (0..all, 0..all);
    }
    let mut input = framed(&given, &|index| value(rank, index));
    let mut output = framed(&got, &|_| T::default());
    let (from, into) = (&mut input[offset..][..given.len()], &mut output[offset..][..got.len()]);
    let (by, op) = (communicator.using(case.algorithm), own_op(communicator, case));
    let called = match case.place {
        Place::In => calls::in_place(&by, case.way, collective, op, from),
        Place::OutOf => calls::into(&by, case.way, collective, op, from, into),
    };
    called.unwrap_or_else(|error| panic!("rank {rank}, {case:?}: {error}"));
    let expected = |index: usize| match collective {
        Collective::Broadcast { root } | Collective::Scatter { root } => value(root, index),
        Collective::AllGather | Collective::Gather { .. } => value((index / count) as u32, index),
        Collective::AllToAll => {
            value((index / count) as u32, rank as usize * count + index % count)
        }
        _ => {
            let given = |rank| match case.op {
                Op::PreMulSum(_) => value(rank, index).multiplied(factor(rank)),
                _ => value(rank, index),
            };
            let fold = |sum, rank| T::fold(case.op, sum, given(rank));
            let folded = (1..ranks).fold(given(0), fold);
            if case.op == Op::Average { folded.divided(ranks) } else { folded }
        }
    };
    let result = if case.place == Place::In { &input } else { &output };
    let same = |buffer: &[T], at: usize, index: usize, expected: T, what: &str| {
        let got = buffer[offset + at];
        assert_eq!(got, expected, "rank {rank} of {ranks}, {case:?}: {what} at {index}");
    };
    for (at, index) in got.clone().enumerate() {
        if expected_at.contains(&index) {
            same(result, at, index, expected(index), "the result");
        } else {
            same(result, at, index, value(rank, index), "what is not its own");
        }
    }
    if case.place == Place::OutOf {
        for (at, index) in given.clone().enumerate() {
            same(&input, at, index, value(rank, index), "the input");
        }
    }
    for (buffer, part) in [(&input, &given), (&output, &got)] {
        let outside = buffer[..offset].iter().chain(&buffer[offset + part.len()..]);
        assert!(outside.into_iter().all(|x| *x == untouched), "rank {rank}, {case:?}: outside");
    }
}

/// The operation, with this rank's factor.
fn own_op(communicator: &Communicator, case: Case) -> Op {
    match case.op {
        Op::PreMulSum(_) => Op::PreMulSum(Factor::new(factor(communicator.rank()))),
        op => op,
    }
}
