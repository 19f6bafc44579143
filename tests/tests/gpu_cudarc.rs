//! Streams and slices of the crate cudarc on calls: what cudarc queues on other streams is in order with them.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr, ValidAsZeroBits};
use ringtree::device::cudarc::{Lent, Slice, stream_of};
use ringtree::device::{Device, Stream};
use ringtree::{Communicator, Element, Error, Op, Transports, bf16, f16};
use ringtree_tests::gpu::communicators;
use ringtree_tests::ranks::each;

/// More than a round of slots.
const COUNT: usize = 1_000_001;

/// A rank's GPU, and two streams of cudarc on it, of which calls use the first.
struct Gpu {
    device: Device,
    theirs: Arc<CudaStream>,
    stream: Stream,
    other: Arc<CudaStream>,
}

impl Gpu {
    fn of(communicator: &Communicator) -> Gpu {
        let devices = communicator.devices().expect("a driver");
        let device = communicator.device(communicator.rank() % devices).expect("a GPU");
        let context = CudaContext::new(device.ordinal() as usize).expect("a context");
        let [theirs, other] = [(); 2].map(|()| context.new_stream().expect("a stream"));
        let stream = stream_of(&device, &theirs).expect("a stream of the primary context");
        Gpu { device, theirs, stream, other }
    }
}

fn numbers<T>(count: usize, number: impl Fn(f32) -> T, factor: usize) -> Vec<T> {
    (0..count).map(|index| number((index % 100 * factor) as f32)).collect()
}

/// What one stream of cudarc writes, a call on another adds up, and the first reads: cudarc's events, and nothing
/// else, put them in order.
fn sums<T>(number: fn(f32) -> T)
where
    T: Element + DeviceRepr + ValidAsZeroBits + PartialEq + std::fmt::Debug,
{
    each(communicators(2, Transports::Auto), |communicator| {
        let gpu = Gpu::of(&communicator);
        let on = communicator.on(&gpu.stream);
        let given = numbers(COUNT, number, communicator.rank() as usize + 1);
        for _ in 0..3 {
            let mut slice = gpu.other.clone_htod(&given).unwrap();
            on.all_reduce(&mut Slice::new(&mut slice, &gpu.theirs), Op::Sum).unwrap();
            let got = gpu.other.clone_dtoh(&slice).unwrap();
            assert!(got == numbers(COUNT, number, 3));
        }
    });
}

#[test]
fn what_other_streams_queue_before_and_after_is_in_order() {
    sums::<f32>(|number| number);
    sums::<f16>(f16::from_f32);
    sums::<bf16>(bf16::from_f32);
}

#[test]
fn views_are_parts_and_may_be_read_only() {
    each(communicators(2, Transports::Shm), |communicator| {
        let gpu = Gpu::of(&communicator);
        let (on, rank) = (communicator.on(&gpu.stream), communicator.rank() as usize);
        let input = gpu.theirs.clone_htod(&vec![rank as u32 + 1; 1000]).unwrap();
        let mut output = gpu.other.alloc_zeros::<u32>(3000).unwrap();
        {
            let part = input.slice(0..1000);
            let mut place = output.slice_mut(500..2500);
            let input = Slice::input(&part, &gpu.theirs);
            on.all_gather_into(&input, &mut Slice::new(&mut place, &gpu.theirs)).unwrap();
        }
        let got = gpu.other.clone_dtoh(&output).unwrap();
        let expected = [vec![0; 500], vec![1; 1000], vec![2; 1000], vec![0; 500]].concat();
        assert!(got == expected, "rank {rank}");
    });
}

/// Memory of the library is written and read by cudarc, in the stream of the call and in another one.
#[test]
fn memory_of_the_library_is_lent_to_cudarc() {
    each(communicators(2, Transports::Auto), |communicator| {
        let gpu = Gpu::of(&communicator);
        let on = communicator.on(&gpu.stream);
        let given = numbers(COUNT, |number| number, communicator.rank() as usize + 1);
        let mut memory = communicator.alloc_device::<f32>(&gpu.device, COUNT).unwrap();
        for stream in [&gpu.theirs, &gpu.other] {
            let given = gpu.other.clone_htod(&given).unwrap();
            let mut lent = Lent::new(&memory, &gpu.theirs).unwrap();
            stream.memcpy_dtod(&given, &mut lent).unwrap();
            on.all_reduce(&mut memory, Op::Sum).unwrap();
            let lent = Lent::new(&memory, &gpu.theirs).unwrap();
            let got = stream.clone_dtoh(&lent).unwrap();
            assert!(got == numbers(COUNT, |number| number, 3));
        }
    });
}

/// Slices are a pool's memory, which no other GPU reads: it reads copies on the GPU, and nothing passes the host.
#[test]
fn slices_do_not_pass_the_host() {
    each(communicators(2, Transports::Shm), |communicator| {
        let gpu = Gpu::of(&communicator);
        let on = communicator.on(&gpu.stream);
        let mut slice = gpu.theirs.clone_htod(&vec![1_i32; COUNT]).unwrap();
        let mut sum = || {
            let mut slice = Slice::new(&mut slice, &gpu.theirs);
            on.all_reduce(&mut slice, Op::Sum).unwrap().wait().unwrap();
            communicator.barrier().unwrap();
        };
        // Until each has found out that it reaches the other.
        (0..3).for_each(|_| sum());
        let before = communicator.device_counters();
        sum();
        let work = communicator.device_counters().since(before);
        assert_eq!([work.from_host_bytes, work.to_host_bytes], [0; 2], "{work:?}");
        assert!(work.from_peers_bytes >= COUNT as u64 * 4, "{work:?}");
        assert!(gpu.theirs.clone_dtoh(&slice).unwrap().iter().all(|sum| *sum == 16));
    });
}

/// cudarc frees behind the call: another slice, in memory that could be the same, is not written by it.
#[test]
fn a_slice_may_be_dropped_when_the_call_is_queued() {
    each(communicators(2, Transports::Auto), |communicator| {
        let gpu = Gpu::of(&communicator);
        let on = communicator.on(&gpu.stream);
        for _ in 0..5 {
            let mut slice = gpu.other.clone_htod(&vec![1_i32; COUNT]).unwrap();
            let queued = on.all_reduce(&mut Slice::new(&mut slice, &gpu.theirs), Op::Sum).unwrap();
            drop(slice);
            let next = gpu.other.clone_htod(&vec![7_i32; COUNT]).unwrap();
            queued.wait().unwrap();
            assert!(gpu.other.clone_dtoh(&next).unwrap().iter().all(|number| *number == 7));
        }
        // No kernel or copy has used memory that was gone.
        gpu.theirs.synchronize().unwrap();
    });
}

#[test]
fn what_would_be_out_of_order_is_refused() {
    let communicators = communicators(1, Transports::Auto);
    let communicator = &communicators[0];
    let gpu = Gpu::of(communicator);
    let refused = |error: Error, why: &str| {
        assert!(matches!(&error, Error::Argument(text) if text.contains(why)), "{error}");
    };
    let on = communicator.on(&gpu.stream);
    let mut slice = gpu.theirs.alloc_zeros::<f32>(8).unwrap();
    let other = on.all_reduce(&mut Slice::new(&mut slice, &gpu.other), Op::Sum);
    refused(other.unwrap_err(), "another stream");
    let input = on.all_reduce(&mut Slice::input(&slice, &gpu.theirs), Op::Sum);
    refused(input.unwrap_err(), "lent to be read");
    let sent = on.send(&Slice::input(&slice, &gpu.other), 0);
    refused(sent.unwrap_err(), "another stream");
    let own = gpu.theirs.context().per_thread_stream();
    refused(stream_of(&gpu.device, &own).unwrap_err(), "each thread");
    if gpu.device.driver().devices() > 1 {
        let foreign = CudaContext::new(1).unwrap().new_stream().unwrap();
        refused(stream_of(&gpu.device, &foreign).unwrap_err(), "primary context of GPU 0");
    }
    // The communicator goes on.
    on.all_reduce(&mut Slice::new(&mut slice, &gpu.theirs), Op::Sum).unwrap().wait().unwrap();
}

/// The library's own declarations of the driver's interface.
#[allow(dead_code, missing_docs)]
#[path = "../../transport/src/cuda/ffi.rs"]
mod ffi;

#[test]
fn constants_and_structures_are_those_of_the_header() {
    use cudarc::driver::sys::{self as header, CUdevice_attribute_enum as Attribute, CUresult};
    for (ours, theirs) in [
        (ffi::SUCCESS, CUresult::CUDA_SUCCESS),
        (ffi::OUT_OF_MEMORY, CUresult::CUDA_ERROR_OUT_OF_MEMORY),
        (ffi::NO_DEVICE, CUresult::CUDA_ERROR_NO_DEVICE),
        (ffi::UNSUPPORTED_PTX_VERSION, CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION),
        (ffi::NOT_READY, CUresult::CUDA_ERROR_NOT_READY),
        (ffi::PEER_ACCESS_ALREADY_ENABLED, CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED),
    ] {
        assert_eq!(ours, theirs as i32);
    }
    for (ours, theirs) in [
        (ffi::ATTRIBUTE_CAPABILITY_MAJOR, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
        (ffi::ATTRIBUTE_CAPABILITY_MINOR, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        (ffi::ATTRIBUTE_DMA_BUF, Attribute::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED),
        (
            ffi::ATTRIBUTE_READ_ONLY_HOST_REGISTER,
            Attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED,
        ),
        (
            ffi::ATTRIBUTE_VIRTUAL_MEMORY,
            Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        ),
        (
            ffi::ATTRIBUTE_FILE_DESCRIPTOR,
            Attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
        ),
        (
            ffi::ATTRIBUTE_RDMA_OF_VIRTUAL_MEMORY,
            Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED,
        ),
    ] {
        assert_eq!(ours, theirs as i32);
    }
    let alloc = header::CU_MEMHOSTALLOC_PORTABLE | header::CU_MEMHOSTALLOC_DEVICEMAP;
    assert_eq!(ffi::HOST_ALLOC_PORTABLE_MAPPED, alloc);
    let register = header::CU_MEMHOSTREGISTER_PORTABLE | header::CU_MEMHOSTREGISTER_DEVICEMAP;
    assert_eq!(ffi::HOST_REGISTER_PORTABLE_MAPPED, register);
    assert_eq!(ffi::HOST_REGISTER_READ_ONLY, header::CU_MEMHOSTREGISTER_READ_ONLY);
    let stream = header::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
    assert_eq!(ffi::STREAM_NON_BLOCKING, stream);
    let timed = header::CUevent_flags_enum::CU_EVENT_DEFAULT as u32;
    assert_eq!(ffi::EVENT_DEFAULT, timed);
    let event = header::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
    assert_eq!(ffi::EVENT_DISABLE_TIMING, event);
    let wait = header::CUstreamWaitValue_flags_enum::CU_STREAM_WAIT_VALUE_GEQ as u32;
    assert_eq!(ffi::STREAM_WAIT_VALUE_GEQ, wait);
    let lazy = header::CUipcMem_flags_enum::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
    assert_eq!(ffi::IPC_LAZY_ENABLE_PEER_ACCESS, lazy);
    let kind = header::CUpointer_attribute_enum::CU_POINTER_ATTRIBUTE_MEMORY_TYPE as i32;
    assert_eq!(ffi::POINTER_MEMORY_TYPE, kind);
    let ordinal = header::CUpointer_attribute_enum::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL as i32;
    assert_eq!(ffi::POINTER_DEVICE_ORDINAL, ordinal);
    let device = header::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE as u32;
    assert_eq!(ffi::MEMORY_TYPE_DEVICE, device);
    let pinned = header::CUmemAllocationType_enum::CU_MEM_ALLOCATION_TYPE_PINNED as i32;
    assert_eq!(ffi::ALLOCATION_PINNED, pinned);
    let descriptor =
        header::CUmemAllocationHandleType_enum::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR.0 as i32;
    assert_eq!(ffi::HANDLE_FILE_DESCRIPTOR, descriptor);
    let location = header::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE as i32;
    assert_eq!(ffi::LOCATION_DEVICE, location);
    let access = header::CUmemAccess_flags_enum::CU_MEM_ACCESS_FLAGS_PROT_READWRITE as i32;
    assert_eq!(ffi::ACCESS_READ_WRITE, access);
    let granularity =
        header::CUmemAllocationGranularity_flags_enum::CU_MEM_ALLOC_GRANULARITY_MINIMUM as i32;
    assert_eq!(ffi::GRANULARITY_MINIMUM, granularity);
    assert_eq!(
        (size_of::<ffi::AllocationProperties>(), size_of::<ffi::AccessDescription>()),
        (size_of::<header::CUmemAllocationProp>(), size_of::<header::CUmemAccessDesc>())
    );
    let handle = size_of::<header::CUipcMemHandle>();
    assert_eq!((size_of::<ffi::IpcHandle>(), size_of::<ffi::DeviceAddress>()), (handle, 8));
}
