//! Collectives on memory of GPUs against the same on the host, to the bit.

use ringtree::device::{DeviceMemory, Queued};
use ringtree::{Communicator, DataType, Error, F8E4M3, F8E5M2, Factor, Op, bf16, f16};

use crate::gpu::Gpu;
use crate::random::element;
use crate::sample::Sample;

/// A call on buffers of the host.
pub type OnHost<'a, T> = &'a dyn Fn(&[T], &mut [T]) -> Result<(), Error>;
/// The same on a GPU's.
pub type OnGpu<'a, T> = &'a dyn Fn(&DeviceMemory<T>, &mut DeviceMemory<T>) -> Result<Queued, Error>;

/// Unpleasant values among ordinary ones.
pub fn values<T: Sample>(seed: u64, rank: u32, count: usize) -> Vec<T> {
    let value = |index: usize| {
        let number = element(seed, rank, index);
        if index % 7 == 3 { T::special(number) } else { T::inexact(number) }
    };
    (0..count).map(value).collect()
}

/// As numbers, which tell NaN from NaN.
pub fn bits<T: Sample>(values: &[T]) -> Vec<u64> {
    values.iter().map(|value| value.bits()).collect()
}

/// All-reduces in which rank 1 has its buffer on the host and the others on GPUs, against those of hosts alone.
pub fn check_mixed(communicator: &Communicator, counts: &[usize]) {
    for &count in counts {
        let mut own = values::<f32>(5, communicator.rank(), count);
        let mut expected = own.clone();
        communicator.all_reduce(&mut expected, Op::Sum).expect("an all-reduce");
        if communicator.rank() == 1 {
            communicator.all_reduce(&mut own, Op::Sum).expect("on the host");
        } else {
            let gpu = Gpu::of(communicator);
            let mut memory = gpu.memory(communicator, &own);
            let on = communicator.on(&gpu.stream);
            drop(on.all_reduce(&mut memory, Op::Sum).expect("on a GPU"));
            own = gpu.elements(&memory);
        }
        assert_eq!(bits(&own), bits(&expected), "{count} on {}", communicator.rank());
    }
}

/// A collective on buffers of the host, and the same on a GPU's: in place, if the input is nothing.
pub fn check<T: Sample>(
    communicator: &Communicator,
    gpu: &Gpu,
    what: &str,
    input: Option<&[T]>,
    output: &[T],
    on_host: impl Fn(&[T], &mut [T]) -> Result<(), Error>,
    on_gpu: impl Fn(&DeviceMemory<T>, &mut DeviceMemory<T>) -> Result<Queued, Error>,
) {
    let mut expected = output.to_vec();
    on_host(input.unwrap_or(&[]), &mut expected).expect(what);
    let input = gpu.memory(communicator, input.unwrap_or(&[]));
    let mut memory = gpu.memory(communicator, output);
    // What follows in the stream finds the result: nobody waits for the call itself.
    drop(on_gpu(&input, &mut memory).expect(what));
    let got = gpu.elements(&memory);
    let rank = communicator.rank();
    assert_eq!(bits(&got).len(), bits(&expected).len());
    let differs =
        bits(&got).iter().zip(bits(&expected)).position(|(got, expected)| *got != expected);
    if let Some(at) = differs {
        let (count, got, expected) = (expected.len(), got[at], expected[at]);
        panic!("rank {rank}, {what} of {count}: {got:?} instead of {expected:?} at {at}");
    }
}

/// Every collective, from and to every root, on buffers of `count` elements, or blocks of as many.
pub fn check_all<T: Sample>(communicator: &Communicator, gpu: &Gpu, count: usize, op: Op) {
    let (rank, ranks) = (communicator.rank(), communicator.ranks());
    let all = ranks as usize * count;
    let own = &values::<T>(1, rank, count)[..];
    let blocks = &values::<T>(2, rank, all)[..];
    let (c, on) = (communicator, communicator.on(&gpu.stream));
    let ck = |what: &str, input: Option<&[T]>, output: &[T], host: OnHost<T>, device: OnGpu<T>| {
        check(c, gpu, what, input, output, host, device);
    };
    ck("all-reduce", None, own, &|_, o| c.all_reduce(o, op), &|_, o| on.all_reduce(o, op));
    ck("all-reduce, out of place", Some(own), own, &|i, o| c.all_reduce_into(i, o, op), &|i, o| {
        on.all_reduce_into(i, o, op)
    });
    ck("all-gather", None, blocks, &|_, o| c.all_gather(o), &|_, o| on.all_gather(o));
    ck("all-gather, out of place", Some(own), blocks, &|i, o| c.all_gather_into(i, o), &|i, o| {
        on.all_gather_into(i, o)
    });
    ck("reduce-scatter", None, blocks, &|_, o| c.reduce_scatter(o, op), &|_, o| {
        on.reduce_scatter(o, op)
    });
    ck(
        "reduce-scatter, out of place",
        Some(blocks),
        own,
        &|i, o| c.reduce_scatter_into(i, o, op),
        &|i, o| on.reduce_scatter_into(i, o, op),
    );
    ck("all-to-all", Some(blocks), blocks, &|i, o| c.all_to_all_into(i, o), &|i, o| {
        on.all_to_all_into(i, o)
    });
    for root in 0..ranks {
        let what = |name: &str| format!("{name}, root {root}");
        ck(&what("broadcast"), None, own, &|_, o| c.broadcast(o, root), &|_, o| {
            on.broadcast(o, root)
        });
        ck(
            &what("broadcast, out of place"),
            Some(own),
            own,
            &|i, o| c.broadcast_into(i, o, root),
            &|i, o| on.broadcast_into(i, o, root),
        );
        ck(&what("reduce"), None, own, &|_, o| c.reduce(o, op, root), &|_, o| {
            on.reduce(o, op, root)
        });
        ck(
            &what("reduce, out of place"),
            Some(own),
            own,
            &|i, o| c.reduce_into(i, o, op, root),
            &|i, o| on.reduce_into(i, o, op, root),
        );
        ck(&what("gather"), Some(own), blocks, &|i, o| c.gather_into(i, o, root), &|i, o| {
            on.gather_into(i, o, root)
        });
        ck(&what("scatter"), Some(blocks), own, &|i, o| c.scatter_into(i, o, root), &|i, o| {
            on.scatter_into(i, o, root)
        });
    }
}

/// All operations that all types have, as all-reduces of these counts.
pub fn check_every_type(c: &Communicator, g: &Gpu, counts: &[usize]) {
    for data_type in DataType::ALL {
        match data_type {
            DataType::F32 => check_ops::<f32>(c, g, counts),
            DataType::F64 => check_ops::<f64>(c, g, counts),
            DataType::Bf16 => check_ops::<bf16>(c, g, counts),
            DataType::F16 => check_ops::<f16>(c, g, counts),
            DataType::F8E4M3 => check_ops::<F8E4M3>(c, g, counts),
            DataType::F8E5M2 => check_ops::<F8E5M2>(c, g, counts),
            DataType::I8 => check_ops::<i8>(c, g, counts),
            DataType::U8 => check_ops::<u8>(c, g, counts),
            DataType::I32 => check_ops::<i32>(c, g, counts),
            DataType::U32 => check_ops::<u32>(c, g, counts),
            DataType::I64 => check_ops::<i64>(c, g, counts),
            DataType::U64 => check_ops::<u64>(c, g, counts),
        }
    }
}

/// All operations that a type has.
fn check_ops<T: Sample>(communicator: &Communicator, gpu: &Gpu, counts: &[usize]) {
    let factor = Factor::new(1.5 + f64::from(communicator.rank()));
    for op in T::DATA_TYPE.ops() {
        let op = if matches!(op, Op::PreMulSum(_)) { Op::PreMulSum(factor) } else { op };
        for &count in counts {
            let own = values::<T>(3, communicator.rank(), count);
            let what = format!("all-reduce of {} by {op:?}", T::DATA_TYPE.name());
            let on = communicator.on(&gpu.stream);
            check(
                communicator,
                gpu,
                &what,
                None,
                &own,
                |_, output| communicator.all_reduce(output, op),
                |_, output| on.all_reduce(output, op),
            );
        }
    }
}
