//! Results against plain sums: random calls whose result is exact, so that it can be compared to
//! the bit.

use std::ops::DerefMut;

use half::bf16;
use ringtree::{Algorithm, Communicator, DataType, Element, Op};
use ringtree_plan::Collective;

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
    collective: Collective,
    /// `None`: the library chooses.
    algorithm: Option<Algorithm>,
    data_type: DataType,
    op: Op,
    place: Place,
    count: usize,
    /// Elements before the first one: what makes a buffer unaligned.
    offset: usize,
    /// Which ranks have their buffers in memory of the library's, a bit each.
    allocated: u64,
    seed: u64,
}

/// The algorithms that serve a collective, and the library's choice.
pub fn algorithms(collective: Collective) -> Vec<Option<Algorithm>> {
    let serving = Algorithm::ALL.into_iter().filter(|algorithm| algorithm.serves(collective));
    serving.map(Some).chain([None]).collect()
}

/// Every algorithm, type, operation and placement of all-reduce, each with another random count of
/// at most `most` elements, in random order.
pub fn all_reduces(seed: u64, ranks: u32, most: usize) -> Vec<Case> {
    let mut random = Random::new(seed);
    let mut cases = Vec::new();
    for algorithm in algorithms(Collective::AllReduce) {
        for data_type in DataType::ALL {
            for op in Op::ALL {
                for place in [Place::In, Place::OutOf] {
                    cases.push(Case {
                        collective: Collective::AllReduce,
                        algorithm,
                        data_type,
                        op,
                        place,
                        count: count(&mut random, ranks, most),
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

/// Every root and placement of broadcast, with random types and counts of at most `most` elements.
pub fn broadcasts(seed: u64, ranks: u32, most: usize) -> Vec<Case> {
    let mut random = Random::new(seed);
    let mut cases = Vec::new();
    for root in 0..ranks {
        for place in [Place::In, Place::OutOf] {
            let collective = Collective::Broadcast { root };
            cases.push(Case {
                collective,
                algorithm: random.pick(&algorithms(collective)),
                data_type: random.pick(&DataType::ALL),
                op: Op::Sum,
                place,
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

/// Makes the call and compares every element.
///
/// # Panics
/// If the call fails or an element is wrong.
pub fn check(communicator: &Communicator, case: Case) {
    match case.data_type {
        DataType::F32 => check_as::<f32>(communicator, case),
        DataType::F64 => check_as::<f64>(communicator, case),
        DataType::Bf16 => check_as::<bf16>(communicator, case),
        DataType::I32 => check_as::<i32>(communicator, case),
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

fn check_as<T: Sample>(communicator: &Communicator, case: Case) {
    let Case { count, offset, seed, .. } = case;
    let value = |rank: u32, index: usize| T::exact(element(seed, rank, index));
    let untouched = T::special(2);
    let framed = |fill: &dyn Fn(usize) -> T| {
        let mut buffer = buffer(communicator, case, offset + count + 1);
        buffer.fill(untouched);
        buffer[offset..][..count].iter_mut().enumerate().for_each(|(i, x)| *x = fill(i));
        buffer
    };
    let mut input = framed(&|index| value(communicator.rank(), index));
    let mut output = framed(&|_| T::default());
    let (from, into) = (&mut input[offset..][..count], &mut output[offset..][..count]);
    let called = match case.place {
        Place::In => call_in_place(communicator, case, from),
        Place::OutOf => call_into(communicator, case, from, into),
    };
    let rank = communicator.rank();
    called.unwrap_or_else(|error| panic!("rank {rank}, {case:?}: {error}"));
    let ranks = communicator.ranks();
    let expected = |index| match case.collective {
        Collective::Broadcast { root } => value(root, index),
        _ => {
            (1..ranks).fold(value(0, index), |sum, rank| T::fold(case.op, sum, value(rank, index)))
        }
    };
    let result = if case.place == Place::In { &input } else { &output };
    let same = |buffer: &[T], index: usize, expected: T, what: &str| {
        let got = buffer[offset + index];
        assert_eq!(got, expected, "rank {rank} of {ranks}, {case:?}: {what} at {index}");
    };
    for index in 0..count {
        same(result, index, expected(index), "the result");
        if case.place == Place::OutOf {
            same(&input, index, value(rank, index), "the input");
        }
    }
    for buffer in [&input, &output] {
        let outside = buffer[..offset].iter().chain(&buffer[offset + count..]);
        assert!(outside.into_iter().all(|x| *x == untouched), "rank {rank}, {case:?}: outside");
    }
}

fn call_in_place<T: Element>(
    communicator: &Communicator,
    case: Case,
    buffer: &mut [T],
) -> Result<(), ringtree::Error> {
    match (case.collective, case.algorithm) {
        (Collective::Broadcast { root }, None) => communicator.broadcast(buffer, root),
        (Collective::Broadcast { root }, Some(algorithm)) => {
            communicator.using(algorithm).broadcast(buffer, root)
        }
        (_, None) => communicator.all_reduce(buffer, case.op),
        (_, Some(algorithm)) => communicator.using(algorithm).all_reduce(buffer, case.op),
    }
}

fn call_into<T: Element>(
    communicator: &Communicator,
    case: Case,
    input: &[T],
    output: &mut [T],
) -> Result<(), ringtree::Error> {
    match (case.collective, case.algorithm) {
        (Collective::Broadcast { root }, None) => communicator.broadcast_into(input, output, root),
        (Collective::Broadcast { root }, Some(algorithm)) => {
            communicator.using(algorithm).broadcast_into(input, output, root)
        }
        (_, None) => communicator.all_reduce_into(input, output, case.op),
        (_, Some(algorithm)) => {
            communicator.using(algorithm).all_reduce_into(input, output, case.op)
        }
    }
}
