//! Reduction kernels: every type, operation and instruction set, by sources and size.
//!
//! `reduce` folds in place, into the first source, and its throughput is in bytes of one buffer:
//! with two sources it compares with `a[i] += b[i]`. `reduce_to_all` writes the result into every
//! source, `copy` one buffer to several others.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringtree::reduce::{Level, Pass, copy, kernel, kernel_at};
use ringtree::{DataType, Op};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Every type, operation, instruction set and number of sources; large buffers for some.
fn reduce(criterion: &mut Criterion) {
    for data_type in DataType::ALL {
        for op in data_type.ops() {
            for level in Level::ALL {
                let name = format!("reduce/{}/{}/{}", data_type.name(), op.name(), level.name());
                let kind = (data_type, op.completing_pass(2));
                // Sums in every shape; of the others, what tells how fast they compute.
                let sources: &[usize] = if op == Op::Sum { &[2, 3, 4, 8] } else { &[2] };
                for &sources in sources {
                    for len_bytes in [8, 4 * KIB, 64 * KIB, MIB] {
                        one(criterion, &name, level, kind, sources, 1, len_bytes);
                    }
                }
                if op == Op::Sum {
                    one(criterion, &name, level, kind, 2, 1, 128 * MIB);
                }
            }
        }
    }
}

/// The result goes into all sources.
fn reduce_to_all(criterion: &mut Criterion) {
    let level =
        Level::ALL.into_iter().rfind(|level| level.is_available()).unwrap_or(Level::Portable);
    for ranks in [2, 4] {
        for len_bytes in [8, 4 * KIB, 64 * KIB, MIB, 128 * MIB] {
            let kind = (DataType::F32, Pass::Sum);
            one(criterion, "reduce_to_all/f32/sum", level, kind, ranks, ranks, len_bytes);
        }
    }
}

fn copies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("copy");
    for destinations in [1, 2, 3] {
        for len_bytes in [8, 4 * KIB, 64 * KIB, MIB, 128 * MIB] {
            let mut buffers = Buffers::new(1 + destinations, len_bytes);
            let pointers = buffers.pointers();
            group.throughput(Throughput::Bytes(len_bytes as u64));
            let id = BenchmarkId::new(destinations.to_string(), len_bytes);
            group.bench_function(id, |bencher| {
                // SAFETY: the buffers have the length and are apart.
                bencher.iter(|| unsafe { copy(pointers[0], &pointers[1..], len_bytes) });
            });
        }
    }
}

fn one(
    criterion: &mut Criterion,
    name: &str,
    level: Level,
    (data_type, pass): (DataType, Pass),
    sources: usize,
    destinations: usize,
    len_bytes: usize,
) {
    let Some(kernel) = kernel_at(level, data_type, pass) else { return };
    let mut buffers = Buffers::new(sources, len_bytes);
    let pointers = buffers.pointers();
    let inputs: Vec<*const u8> = pointers.iter().map(|pointer| pointer.cast_const()).collect();
    let count = len_bytes / data_type.size_bytes();
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(len_bytes as u64));
    group.bench_function(BenchmarkId::new(sources.to_string(), len_bytes), |bencher| {
        // SAFETY: the buffers have the length; destinations are sources.
        bencher.iter(|| unsafe { kernel.run(&inputs, &pointers[..destinations], count) });
    });
}

/// Buffers at page boundaries, as memory for communication is.
struct Buffers {
    memory: Vec<Vec<u8>>,
}

impl Buffers {
    fn new(buffers: usize, len_bytes: usize) -> Buffers {
        // Written, so that the pages are there.
        Buffers { memory: (0..buffers).map(|_| vec![1; len_bytes + 4 * KIB]).collect() }
    }

    fn pointers(&mut self) -> Vec<*mut u8> {
        let aligned = |memory: &mut Vec<u8>| {
            let offset = memory.as_ptr().align_offset(4 * KIB);
            memory[offset..].as_mut_ptr()
        };
        self.memory.iter_mut().map(aligned).collect()
    }
}

/// What choosing a kernel costs.
fn choose(criterion: &mut Criterion) {
    criterion.bench_function("choose", |bencher| {
        bencher.iter(|| kernel(std::hint::black_box(DataType::F32), Pass::Sum));
    });
}

/// Short: there are hundreds of benchmarks.
fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
}

criterion_group! { name = benches; config = settings(); targets = reduce, reduce_to_all, copies, choose }
criterion_main!(benches);
