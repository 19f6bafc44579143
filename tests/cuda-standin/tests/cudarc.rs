//! A program that uses the driver through cudarc as it is.

mod common;
use common::{ILLEGAL_ADDRESS, KERNELS, isolated, library};

use std::ffi::{CString, c_void};

use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, DriverError, result, sys};

fn code<T: std::fmt::Debug>(result: Result<T, DriverError>) -> i32 {
    result.unwrap_err().0 as i32
}

fn load(ptx: &str) -> Result<sys::CUmodule, DriverError> {
    let ptx = CString::new(ptx).unwrap();
    // SAFETY: a text that ends with a zero.
    unsafe { result::module::load_data(ptx.as_ptr().cast()) }
}

fn function(module: sys::CUmodule, name: &str) -> Result<sys::CUfunction, DriverError> {
    // SAFETY: the module is loaded.
    unsafe { result::module::get_function(module, CString::new(name).unwrap()) }
}

/// Launches the kernel `set`.
fn set(kernel: sys::CUfunction, mut address: u64, mut count: u64, stream: &CudaStream) {
    let mut parameters: [*mut c_void; 2] = [(&raw mut address).cast(), (&raw mut count).cast()];
    let (grid, block, stream) = ((8, 1, 1), (128, 1, 1), stream.cu_stream());
    // SAFETY: the kernel has these parameters.
    unsafe { result::launch_kernel(kernel, grid, block, 0, stream, &mut parameters) }.unwrap();
}

#[test]
fn a_program_on_cudarc_runs() {
    isolated("a_program_on_cudarc_runs", &[], || {
        library();
        let context = CudaContext::new(0).unwrap();
        assert_eq!(CudaContext::device_count().unwrap(), 2);
        assert_eq!(context.name().unwrap(), "Stand-in GPU");
        let (one, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n * 7) as u8).collect();
        let memory = one.clone_htod(&bytes).unwrap();
        assert_eq!(one.clone_dtoh(&memory).unwrap(), bytes);
        // Two streams; cudarc puts the events between them.
        let copy = other.clone_dtod(&memory).unwrap();
        assert_eq!(other.clone_dtoh(&copy).unwrap(), bytes);
        // A kernel.
        context.bind_to_thread().unwrap();
        let kernel = function(load(KERNELS).unwrap(), "set").unwrap();
        let mut numbers = one.alloc_zeros::<u32>(1000).unwrap();
        {
            let (address, _guard) = numbers.device_ptr_mut(&one);
            set(kernel, address, 1000, &one);
        }
        assert!(one.clone_dtoh(&numbers).unwrap().into_iter().eq(0..1000));
        // Another device.
        let second = CudaContext::new(1).unwrap();
        let there = second.new_stream().unwrap();
        let mut remote = there.alloc_zeros::<u8>(bytes.len()).unwrap();
        one.synchronize().unwrap();
        there.memcpy_dtod(&memory, &mut remote).unwrap();
        assert_eq!(there.clone_dtoh(&remote).unwrap(), bytes);
        // Pinned memory and events.
        context.bind_to_thread().unwrap();
        // SAFETY: the memory is written before it is read.
        let mut pinned = unsafe { context.alloc_pinned::<u8>(bytes.len()) }.unwrap();
        pinned.as_mut_slice().unwrap().fill(3);
        let from_pinned = one.clone_htod(&pinned).unwrap();
        let done = one.record_event(None).unwrap();
        done.synchronize().unwrap();
        assert_eq!(one.clone_dtoh(&from_pinned).unwrap(), vec![3; bytes.len()]);
        // What cudarc allocates comes from a pool, which legacy IPC refuses.
        let (address, _guard) = memory.device_ptr(&one);
        let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: the handle is of the right type.
        let refused = unsafe { sys::cuIpcGetMemHandle(&mut handle, address) };
        assert_eq!(refused, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        // SAFETY: the memory is not used.
        let plain = unsafe { result::malloc_sync(4096) }.unwrap();
        // SAFETY: as above.
        unsafe { sys::cuIpcGetMemHandle(&mut handle, plain) }.result().unwrap();
        // SAFETY: it is freed once.
        unsafe { result::free_sync(plain) }.unwrap();
    });
}

#[test]
fn errors_reach_a_program_on_cudarc() {
    isolated("errors_reach_a_program_on_cudarc", &[], || {
        library();
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        assert_eq!(code(load(&KERNELS.replace("6.3", "9.5"))), 222);
        let module = load(KERNELS).unwrap();
        assert_eq!(code(function(module, "none")), 500);
        let kernel = function(module, "set").unwrap();
        let mut numbers = stream.alloc_zeros::<u32>(100).unwrap();
        {
            let (address, _guard) = numbers.device_ptr_mut(&stream);
            set(kernel, address, 101, &stream);
        }
        assert_eq!(code(stream.synchronize()), ILLEGAL_ADDRESS);
        assert_eq!(code(stream.alloc_zeros::<u8>(1)), ILLEGAL_ADDRESS);
    });
}
