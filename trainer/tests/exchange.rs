//! The exchange of gradients by itself, without a model: sums, buckets, parts, and what it refuses.

mod ranks;

use ranks::ranks;
use ringtree_trainer::{Error, ExchangeSettings, GradientExchange};

/// What rank `rank` gives for element `at` in step `step`.
fn gradient(rank: u32, step: usize, at: usize) -> f64 {
    f64::from(rank + 1) * (at as f64 + 0.25) - step as f64
}

/// What all ranks give together.
fn sum(ranks: u32, step: usize, at: usize) -> f64 {
    (0..ranks).map(|rank| gradient(rank, step, at)).sum()
}

const LENGTHS: [usize; 6] = [300, 1, 0, 70, 5, 1000];

fn settings(bucket_bytes: usize, sharded: bool) -> ExchangeSettings {
    ExchangeSettings { bucket_bytes, first_bucket_bytes: 64, sharded, ..Default::default() }
}

#[test]
fn sums_are_right_whatever_the_buckets_and_whoever_is_ready_first() {
    let starts = [0, 300, 301, 301, 371, 376, 1376];
    for (count, bucket_bytes) in [(1, 800), (2, 1), (2, 2000), (3, 800), (4, 1 << 20)] {
        ranks(count, |communicator| {
            let rank = communicator.rank();
            let mut exchange =
                GradientExchange::new(communicator, &LENGTHS, settings(bucket_bytes, false))
                    .unwrap();
            for step in 0..3 {
                // Each rank is ready in another order, with pieces whole, halved or together.
                for piece in [[5, 4, 3, 0, 1], [1, 0, 3, 4, 5], [4, 0, 5, 1, 3]][rank as usize % 3]
                {
                    let (start, end) = (starts[piece], starts[piece + 1]);
                    let row = exchange.gradients(start..end).unwrap();
                    row.iter_mut()
                        .enumerate()
                        .for_each(|(at, to)| *to = gradient(rank, step, start + at));
                    let middle = start + (end - start) / 2;
                    exchange.ready(middle..end).unwrap();
                    exchange.ready(start..middle).unwrap();
                }
                let exchanged = exchange.finish().unwrap();
                assert!(!exchanged.buckets.is_empty());
                for (start, end) in starts.iter().zip(&starts[1..]) {
                    let row = exchange.gradients(*start..*end).unwrap().to_vec();
                    let right: Vec<f64> = (*start..*end).map(|at| sum(count, step, at)).collect();
                    assert_eq!(row, right, "rank {rank} of {count}, step {step}, from {start}");
                }
            }
            // By the first step's order of rank 0, and pieces without elements last.
            assert_eq!(exchange.order(), [5, 4, 3, 0, 1, 2]);
        });
    }
}

#[test]
fn what_is_not_ready_counts_as_zero() {
    ranks(3, |communicator| {
        let rank = communicator.rank();
        let mut exchange =
            GradientExchange::new(communicator, &[4, 4], settings(1, false)).unwrap();
        for step in 0..2 {
            exchange.gradients(0..8 - 4).unwrap().fill(7.0_f64);
            exchange.gradients(4..8).unwrap().fill(1.0);
            // Rank 1 gives half a piece, rank 2 nothing.
            match rank {
                0 => exchange.ready(0..8).unwrap(),
                1 => exchange.ready(5..7).unwrap(),
                _ => {}
            }
            exchange.finish().unwrap();
            assert_eq!(exchange.gradients(0..4).unwrap(), [7.0; 4], "step {step}");
            assert_eq!(exchange.gradients(4..8).unwrap(), [1.0, 2.0, 2.0, 1.0], "step {step}");
        }
    });
}

#[test]
fn a_first_step_without_gradients_leaves_the_order_as_it_was() {
    ranks(2, |communicator| {
        let mut exchange =
            GradientExchange::<f64>::new(communicator, &[4, 2, 3], settings(1, false)).unwrap();
        exchange.finish().unwrap();
        assert_eq!(exchange.order(), [2, 1, 0]);
    });
}

#[test]
fn sharded_ranks_get_their_parts_and_give_all_what_they_make_of_them() {
    for (count, bucket_bytes) in [(1, 100), (2, 1), (3, 3000), (4, 1 << 20)] {
        let parts = ranks(count, |communicator| {
            let rank = communicator.rank();
            let mut exchange =
                GradientExchange::new(communicator, &LENGTHS, settings(bucket_bytes, true))
                    .unwrap();
            for step in 0..3 {
                let mut start = 0;
                for length in LENGTHS {
                    let row = exchange.gradients(start..start + length).unwrap();
                    row.iter_mut()
                        .enumerate()
                        .for_each(|(at, to)| *to = gradient(rank, step, start + at));
                    start += length;
                }
                exchange.ready(0..start).unwrap();
                exchange.finish().unwrap();
                for part in exchange.parts().to_vec() {
                    let first: usize =
                        LENGTHS[..part.piece].iter().sum::<usize>() + part.elements.start;
                    for (at, value) in exchange.part(&part).unwrap().iter_mut().enumerate() {
                        assert_eq!(*value, sum(count, step, first + at), "rank {rank} of {count}");
                        *value = -*value;
                    }
                }
                exchange.gather().unwrap();
                let mut start = 0;
                for length in LENGTHS {
                    let row = exchange.gradients(start..start + length).unwrap();
                    let right = (start..).map(|at| -sum(count, step, at));
                    assert!(
                        row.iter().copied().eq(right.take(length)),
                        "step {step}, from {start}"
                    );
                    start += length;
                }
            }
            exchange.parts().to_vec()
        });
        // Each element is in exactly one rank's part.
        let mut owners: Vec<Vec<u32>> = LENGTHS.iter().map(|length| vec![0; *length]).collect();
        for part in parts.into_iter().flatten() {
            part.elements.for_each(|at| owners[part.piece][at] += 1);
        }
        assert!(owners.iter().flatten().all(|owners| *owners == 1), "{count} ranks");
    }
}

#[test]
fn gradients_travel_in_bf16_by_choice() {
    for sharded in [false, true] {
        ranks(2, |communicator| {
            let settings = ExchangeSettings { in_bf16: true, ..settings(400, sharded) };
            let mut exchange =
                GradientExchange::<f32>::new(communicator, &[200, 100], settings).unwrap();
            for _ in 0..2 {
                // 1 + 2^-9 is 1 in bf16, which has 8 bits of precision; 3 is 3.
                exchange.gradients(0..200).unwrap().fill(1.0 + 1.0 / 512.0);
                exchange.gradients(200..300).unwrap().fill(3.0);
                exchange.ready(0..300).unwrap();
                exchange.finish().unwrap();
                for part in exchange.parts().to_vec() {
                    let right = if part.piece == 0 { 2.0 } else { 6.0 };
                    assert!(exchange.part(&part).unwrap().iter().all(|value| *value == right));
                }
            }
            assert_eq!(exchange.bucket_bytes().iter().sum::<usize>(), 600);
        });
    }
}

#[test]
fn what_cannot_be_is_refused_and_leaves_things_as_they_were() {
    let communicator = ringtree::Communicator::in_process(1).unwrap().remove(0);
    let small = ExchangeSettings { first_bucket_bytes: 1, ..settings(1, false) };
    let mut exchange = GradientExchange::<f64>::new(communicator.clone(), &[4, 4], small).unwrap();
    let refused = |result: Result<(), Error>| {
        assert!(matches!(&result, Err(Error::Argument(_))), "{result:?}");
        result.unwrap_err().to_string()
    };
    let across = exchange.gradients(2..6).map(|_| ());
    assert_eq!(refused(across), "gradients 2..6 are not in one piece: that of the first ends at 4");
    refused(exchange.gradients(7..9).map(|_| ()));
    refused(exchange.ready(4..9));
    exchange.ready(4..8).unwrap();
    refused(exchange.ready(7..8));
    let under_way = exchange.gradients(4..8).map(|_| ());
    assert_eq!(refused(under_way), "gradients 4..8 are under way until the exchange is finished");
    exchange.finish().unwrap();
    exchange.ready(4..8).unwrap();
    let order = ExchangeSettings { order: Some(vec![0, 0]), ..Default::default() };
    refused(GradientExchange::<f64>::new(communicator, &[4, 4], order).map(|_| ()));
}
