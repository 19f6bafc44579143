//! What a step of each optimiser takes, beside the same traffic without arithmetic: it should be as fast as memory.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringtree_trainer::optimiser::{Optimiser, OptimiserState, Step};

/// In a processor's second cache, and far beyond its last.
const ELEMENTS: [usize; 2] = [1 << 13, 1 << 24];

/// Bytes that a step reads and writes of each element: parameter and state both ways, and the gradient.
fn step_bytes(optimiser: &Optimiser) -> usize {
    size_of::<f32>() * (3 + 2 * optimiser.state_kinds().len())
}

fn optimisers(criterion: &mut Criterion) {
    let optimisers = [
        ("sgd", Optimiser::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.01 }),
        ("momentum", Optimiser::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.01 }),
        ("nesterov", Optimiser::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 }),
        ("adamw", Optimiser::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }),
    ];
    let mut group = criterion.benchmark_group("optimiser");
    for elements in ELEMENTS {
        let mut parameters = vec![1.0_f32; elements];
        let gradients = vec![0.1_f32; elements];
        group.throughput(Throughput::Bytes((3 * size_of::<f32>() * elements) as u64));
        group.bench_function(BenchmarkId::new("memory", elements), |bencher| {
            bencher.iter(|| {
                for (parameter, gradient) in parameters.iter_mut().zip(&gradients) {
                    *parameter += *gradient;
                }
            });
        });
        for (name, optimiser) in optimisers {
            let mut state = OptimiserState::new(optimiser, elements);
            let at = Step { number: 100, learning_rate: 1e-3, gradient_scale: 0.5 };
            group.throughput(Throughput::Bytes((step_bytes(&optimiser) * elements) as u64));
            group.bench_function(BenchmarkId::new(name, elements), |bencher| {
                bencher.iter(|| state.update(at, true, 0..elements, &mut parameters, &gradients));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, optimisers);
criterion_main!(benches);
