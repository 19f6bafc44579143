//! What it costs to choose an algorithm, which is done once for each new call.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ringtree::selection::choose;
use ringtree::{Communicator, Costs, NetworkFigures, Shape};
use ringtree_plan::Collective;

fn selection(c: &mut Criterion) {
    let mut group = c.benchmark_group("choose");
    for ranks in [2_u32, 8, 1024] {
        let shape = Shape {
            ranks,
            hosts: ranks.div_ceil(8),
            shared_memory: false,
            rdma: false,
            local_ranks: ranks.min(8),
            processors: 16,
            fewest_local_ranks: ranks.min(8),
            reproducible: false,
            large_pages: false,
            costs: Costs::default(),
            network_figures: NetworkFigures::Default,
            tuned: None,
            order: None,
        };
        group.bench_function(BenchmarkId::new("ranks", ranks), |b| {
            b.iter(|| choose(Collective::AllReduce, black_box(1 << 20), black_box(&shape), None));
        });
    }
    let communicators = Communicator::in_process(1).expect("a communicator");
    let measured = communicators[0].tune(Duration::ZERO).expect("times");
    let shape = Shape { tuned: Some(Arc::new(measured)), ..communicators[0].shape().clone() };
    group.bench_function("measured", |b| {
        b.iter(|| choose(Collective::AllReduce, black_box(8), black_box(&shape), None));
    });
    group.finish();
}

criterion_group!(benches, selection);
criterion_main!(benches);
