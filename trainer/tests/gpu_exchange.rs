//! The exchange of gradients in the memory of GPUs, by itself: on the stand-in for the CUDA driver, which runs what is
//! queued as late as it may, or on real GPUs (`tests/src/gpu.rs`).

use std::ops::Range;
use std::sync::Arc;

use ringtree::device::{DeviceMemory, Stream};
use ringtree::{Communicator, Transports};
use ringtree_tests::gpu::{Gpu, alone, communicators};
use ringtree_tests::ranks::{TRANSPORTS, each};
use ringtree_trainer::{Error, ExchangeSettings, Gpu as OnGpu, GradientExchange, Part};

const LENGTHS: [usize; 6] = [300, 1, 0, 70, 5, 5000];

/// What rank `rank` gives for element `at` in step `step`.
fn gradient(rank: u32, step: usize, at: usize) -> f64 {
    f64::from(rank + 1) * (at as f64 + 0.25) - step as f64
}

/// What all ranks give together.
fn sum(ranks: u32, step: usize, at: usize) -> f64 {
    (0..ranks).map(|rank| gradient(rank, step, at)).sum()
}

fn settings(bucket_bytes: usize, sharded: bool) -> ExchangeSettings {
    ExchangeSettings { bucket_bytes, first_bucket_bytes: 64, sharded, ..Default::default() }
}

/// Where a piece begins in the flat row.
fn start(piece: usize) -> usize {
    LENGTHS[..piece].iter().sum()
}

/// Where a piece is in the flat row.
fn place(piece: usize) -> Range<usize> {
    start(piece)..start(piece + 1)
}

/// A rank at work: its GPU, the stream in which it calculates, and the exchange.
struct Rank {
    communicator: Communicator,
    gpu: Gpu,
    stream: Arc<Stream>,
    exchange: GradientExchange<f64, OnGpu>,
}

impl Rank {
    fn new(communicator: Communicator, settings: ExchangeSettings) -> Rank {
        let gpu = Gpu::of(&communicator);
        let stream = Arc::new(Stream::new(&gpu.device).unwrap());
        let exchange =
            GradientExchange::on_gpu(communicator.clone(), stream.clone(), &LENGTHS, settings);
        Rank { communicator, gpu, stream, exchange: exchange.unwrap() }
    }

    fn rank(&self) -> u32 {
        self.communicator.rank()
    }

    /// This rank's gradients of a step on its GPU, ahead of time, so that what follows need only queue copies.
    fn given(&self, step: usize) -> DeviceMemory<f64> {
        let row: Vec<f64> = (0..start(6)).map(|at| gradient(self.rank(), step, at)).collect();
        self.gpu.memory(&self.communicator, &row)
    }

    /// Queues the writing of a piece's gradients.
    fn write(&mut self, piece: usize, given: &DeviceMemory<f64>) {
        let range = place(piece);
        let mut gradients = self.exchange.gradients(range.clone()).unwrap();
        gradients.copy_from(&self.stream, &given.part(range)).unwrap();
    }

    /// Queues a copy of a piece's gradients, as a program finds them that goes on in the stream.
    fn see(&mut self, piece: usize, copy: &DeviceMemory<f64>) {
        let gradients = self.exchange.gradients(place(piece)).unwrap();
        copy.part(place(piece)).copy_from(&self.stream, &gradients).unwrap();
    }

    fn elements(&self, copy: &DeviceMemory<f64>) -> Vec<f64> {
        self.stream.synchronize().unwrap();
        self.gpu.elements(copy)
    }
}

/// Steps of `count` ranks with buckets of several sizes, whose pieces are ready in different orders.
fn check_sums(count: u32, transports: Transports, bucket_bytes: usize) {
    each(communicators(count, transports), |communicator| {
        let mut rank = Rank::new(communicator, settings(bucket_bytes, false));
        let given: Vec<_> = (0..4).map(|step| rank.given(step)).collect();
        let mut copy = rank.gpu.memory(&rank.communicator, &vec![0.0; start(6)]);
        let order = [[5, 4, 3, 0, 1], [1, 0, 3, 4, 5], [4, 0, 5, 1, 3]][rank.rank() as usize % 3];
        for (step, given) in given.iter().enumerate() {
            for piece in order {
                rank.write(piece, given);
                let (first, last) = (start(piece), start(piece + 1));
                let middle = first + (last - first) / 2;
                rank.exchange.ready(middle..last).unwrap();
                rank.exchange.ready(first..middle).unwrap();
            }
            rank.exchange.finish().unwrap();
            (0..6).for_each(|piece| rank.see(piece, &copy));
            let right: Vec<f64> = (0..start(6)).map(|at| sum(count, step, at)).collect();
            assert_eq!(rank.elements(&copy), right, "rank {} of {count}, {step}", rank.rank());
            copy.zero(&rank.stream).unwrap();
        }
        assert_eq!(rank.exchange.order(), [5, 4, 3, 0, 1, 2]);
    });
}

#[test]
fn sums_are_right_whatever_the_buckets_and_whoever_is_ready_first() {
    alone("sums_are_right_whatever_the_buckets_and_whoever_is_ready_first", &[], || {
        for (count, bucket_bytes) in [(1, 800), (2, 1), (2, 2000), (3, 800), (4, 1 << 20)] {
            check_sums(count, Transports::Shm, bucket_bytes);
        }
    });
}

#[test]
fn gpus_that_do_not_reach_each_other_exchange_over_tcp() {
    let test = || {
        for transports in TRANSPORTS {
            check_sums(2, transports, 800);
        }
    };
    alone("gpus_that_do_not_reach_each_other_exchange_over_tcp", &[("NO_PEER", "all")], test);
}

#[test]
fn what_is_not_ready_counts_as_zero() {
    alone("what_is_not_ready_counts_as_zero", &[], || {
        each(communicators(3, Transports::Shm), |communicator| {
            let mut rank = Rank::new(communicator, settings(1, false));
            let copy = rank.gpu.memory(&rank.communicator, &vec![0.0; start(6)]);
            for step in 0..3 {
                let given = rank.given(step);
                [0, 1, 3, 4, 5].into_iter().for_each(|piece| rank.write(piece, &given));
                // Rank 1 gives half a piece, rank 2 nothing.
                match rank.rank() {
                    0 => rank.exchange.ready(0..start(6)).unwrap(),
                    1 => rank.exchange.ready(100..200).unwrap(),
                    _ => {}
                }
                rank.exchange.finish().unwrap();
                [0, 5].into_iter().for_each(|piece| rank.see(piece, &copy));
                let got = rank.elements(&copy);
                for at in (0..300).chain(place(5)) {
                    let givers = if (100..200).contains(&at) { 2 } else { 1 };
                    assert_eq!(got[at], sum(givers, step, at), "step {step}, element {at}");
                }
            }
        });
    });
}

#[test]
fn sharded_ranks_get_their_parts_and_give_all_what_they_make_of_them() {
    let test = || {
        for (count, bucket_bytes) in [(1, 100), (2, 1), (3, 3000), (4, 1 << 20)] {
            each(communicators(count, Transports::Auto), |communicator| {
                let mut rank = Rank::new(communicator, settings(bucket_bytes, true));
                for step in 0..3 {
                    check_sharded_step(&mut rank, count, step);
                }
            });
        }
    };
    alone("sharded_ranks_get_their_parts_and_give_all_what_they_make_of_them", &[], test);
}

/// A step in which each rank writes other values in the place of the sums of its parts.
fn check_sharded_step(rank: &mut Rank, count: u32, step: usize) {
    let given = rank.given(step);
    let made: Vec<f64> = (0..start(6)).map(|at| (at * (step + 2)) as f64).collect();
    let made_there = rank.gpu.memory(&rank.communicator, &made);
    let copy = rank.gpu.memory(&rank.communicator, &vec![0.0; start(6)]);
    (0..6).for_each(|piece| rank.write(piece, &given));
    rank.exchange.ready(0..start(6)).unwrap();
    rank.exchange.finish().unwrap();
    let row = |part: &Part| {
        start(part.piece) + part.elements.start..start(part.piece) + part.elements.end
    };
    for part in rank.exchange.parts().to_vec() {
        let range = row(&part);
        let mut view = rank.exchange.part(&part).unwrap();
        copy.part(range.clone()).copy_from(&rank.stream, &view).unwrap();
        view.copy_from(&rank.stream, &made_there.part(range)).unwrap();
    }
    let got = rank.elements(&copy);
    for part in rank.exchange.parts() {
        for at in row(part) {
            assert_eq!(got[at], sum(count, step, at), "rank {} of {count}, {at}", rank.rank());
        }
    }
    rank.exchange.gather().unwrap();
    (0..6).for_each(|piece| rank.see(piece, &copy));
    assert_eq!(rank.elements(&copy), made, "rank {} of {count}, step {step}", rank.rank());
}

#[test]
fn bf16_and_gradients_under_way_are_refused() {
    alone("bf16_and_gradients_under_way_are_refused", &[], || {
        let communicator = communicators(1, Transports::Auto).remove(0);
        let mut rank = Rank::new(communicator.clone(), settings(1, false));
        let given = rank.given(0);
        for _ in 0..2 {
            (0..6).for_each(|piece| rank.write(piece, &given));
            rank.exchange.ready(place(5)).unwrap();
            // In the first step nothing leaves before its end.
            let is_first = rank.exchange.gradients(place(5)).is_ok();
            rank.exchange.finish().unwrap();
            if !is_first {
                let in_bf16 = ExchangeSettings { in_bf16: true, ..settings(1, false) };
                let refused =
                    GradientExchange::<f64, _>::on_gpu(communicator, rank.stream, &[4], in_bf16);
                assert!(matches!(refused.map(|_| ()), Err(Error::Argument(_))));
                return;
            }
        }
        panic!("a bucket did not leave in the second step");
    });
}
