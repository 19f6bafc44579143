//! Every call between ranks that are threads of one process.

use ringtree::{Algorithm, Communicator, Op, Transports};

/// Runs `body` on each of `ranks` ranks, in a thread each.
fn on_ranks(ranks: u32, transports: Transports, body: impl Fn(&Communicator) + Sync) {
    let communicators =
        Communicator::in_process_with(ranks, |settings| settings.transports = transports)
            .expect("a communicator");
    std::thread::scope(|scope| {
        for communicator in communicators {
            let body = &body;
            scope.spawn(move || body(&communicator));
        }
    });
}

fn value(rank: u32, index: usize) -> f32 {
    ((rank as usize + 1) * (index % 17 + 1)) as f32
}

fn sums(communicator: &Communicator, algorithm: Algorithm, count: usize) {
    let ranks = communicator.ranks();
    let mut buffer: Vec<f32> = (0..count).map(|i| value(communicator.rank(), i)).collect();
    let input = buffer.clone();
    let mut output = vec![0.0; count];
    let using = communicator.using(algorithm);
    using.all_reduce(&mut buffer, Op::Sum).expect("in place");
    using.all_reduce_into(&input, &mut output, Op::Sum).expect("out of place");
    for index in 0..count {
        let expected: f32 = (0..ranks).map(|rank| value(rank, index)).sum();
        assert_eq!(buffer[index], expected, "{algorithm} in place, {count} at {index}");
        assert_eq!(output[index], expected, "{algorithm} out of place, {count} at {index}");
    }
}

#[test]
fn all_reduce_by_every_algorithm_over_both_transports() {
    let algorithms = [
        Algorithm::Ring,
        Algorithm::DoubleTree,
        Algorithm::Doubling,
        Algorithm::OneShot,
        Algorithm::TwoShot,
    ];
    for transports in [Transports::Shm, Transports::Tcp] {
        for ranks in [1, 2, 3, 4, 7] {
            on_ranks(ranks, transports, |communicator| {
                for algorithm in algorithms {
                    for count in [0, 1, 3, 250, 16_384, 250_001] {
                        sums(communicator, algorithm, count);
                    }
                }
            });
        }
    }
}
