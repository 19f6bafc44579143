//! What it costs to write, lower and prove plans.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ringtree_plan::{Algorithm, Collective, Plan, lower, prove};

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("build");
    for algorithm in [Algorithm::Ring, Algorithm::DoubleTree, Algorithm::TwoShot] {
        for ranks in [8_u32, 1024, 16_384] {
            group.bench_function(BenchmarkId::new(algorithm.name(), ranks), |b| {
                b.iter(|| algorithm.plan(Collective::AllReduce, black_box(1), ranks));
            });
        }
    }
    group.finish();
}

fn lowering(c: &mut Criterion) {
    let mut group = c.benchmark_group("lower");
    for algorithm in [Algorithm::Ring, Algorithm::TwoShot] {
        let plan = algorithm.plan(Collective::AllReduce, 1, 64);
        group.bench_function(algorithm.name(), |b| b.iter(|| lower(black_box(&plan))));
    }
    group.finish();
}

fn checker(c: &mut Criterion) {
    let mut group = c.benchmark_group("prove");
    group.sample_size(10);
    for algorithm in [Algorithm::Ring, Algorithm::DoubleTree] {
        let ranks = 16;
        let plans: Vec<Plan> =
            (0..ranks).map(|r| algorithm.plan(Collective::AllReduce, r, ranks)).collect();
        group.bench_function(BenchmarkId::new(algorithm.name(), ranks), |b| {
            b.iter(|| prove(Collective::AllReduce, black_box(&plans)).expect("a right plan"));
        });
    }
    group.finish();
}

criterion_group!(benches, build, lowering, checker);
criterion_main!(benches);
