//! The driver as programs see it: loaded by its path, called through its symbols. And tests in processes of their own,
//! because the driver's state and settings are the process's.

// Each test file uses a part.
#![allow(dead_code, non_snake_case, clippy::too_many_arguments)]

use std::ffi::{CString, c_char, c_void};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

pub use ringtree_cuda_standin::Counters;

/// Where cargo puts the library: beside the test executables.
pub fn library_path() -> std::path::PathBuf {
    let executable = std::env::current_exe().unwrap();
    executable.parent().unwrap().join("libringtree_cuda_standin.so")
}

/// Loads the library once.
pub fn library() -> *mut c_void {
    static HANDLE: OnceLock<usize> = OnceLock::new();
    *HANDLE.get_or_init(|| {
        let path = CString::new(library_path().to_str().unwrap()).unwrap();
        // SAFETY: the library's initialisers do nothing.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "no library at {path:?}");
        handle as usize
    }) as *mut c_void
}

pub fn symbol(name: &str) -> *mut c_void {
    let text = CString::new(name).unwrap();
    // SAFETY: the handle is of a library that stays loaded.
    let found = unsafe { libc::dlsym(library(), text.as_ptr()) };
    assert!(!found.is_null(), "no symbol {name}");
    found
}

macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $type:ty),*);)*) => {$(
        pub fn $name($($argument: $type),*) -> i32 {
            // SAFETY: the library's function has these arguments; that pointers are right is the test's matter.
            unsafe {
                let function: unsafe extern "C" fn($($type),*) -> i32 =
                    std::mem::transmute(symbol(stringify!($name)));
                function($($argument),*)
            }
        }
    )*};
}

pub type Handle64 = [u64; 8];

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Passed(pub Handle64);

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Properties {
    pub kind: i32,
    pub handle_types: u32,
    pub location: [i32; 2],
    pub metadata: usize,
    pub flags: [u8; 8],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct AccessDescription {
    pub location: [i32; 2],
    pub flags: u32,
}

#[repr(C)]
pub struct LaunchAttribute {
    pub id: u64,
    pub value: [u64; 8],
}

#[repr(C)]
pub struct LaunchConfiguration {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
    pub stream: usize,
    pub attributes: *const LaunchAttribute,
    pub attributes_count: u32,
}

impl Default for LaunchConfiguration {
    fn default() -> LaunchConfiguration {
        LaunchConfiguration {
            grid: [1; 3],
            block: [1; 3],
            shared_bytes: 0,
            stream: 0,
            attributes: std::ptr::null(),
            attributes_count: 0,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct BatchOperation {
    pub operation: u64,
    pub address: u64,
    pub value: u64,
    pub flags: u64,
    pub rest: [u64; 2],
}

functions! {
    fn cuInit(flags: u32);
    fn cuDriverGetVersion(to: &mut i32);
    fn cuGetErrorName(code: i32, to: &mut *const c_char);
    fn cuGetErrorString(code: i32, to: &mut *const c_char);
    fn cuGetProcAddress_v2(name: *const c_char, to: &mut usize, version: i32, flags: u64, status: &mut i32);
    fn cuDeviceGet(to: &mut i32, ordinal: i32);
    fn cuDeviceGetCount(to: &mut i32);
    fn cuDeviceGetName(to: *mut c_char, capacity: i32, device: i32);
    fn cuDeviceGetUuid_v2(to: &mut [u8; 16], device: i32);
    fn cuDeviceGetPCIBusId(to: *mut c_char, capacity: i32, device: i32);
    fn cuDeviceGetByPCIBusId(to: &mut i32, id: *const c_char);
    fn cuDeviceTotalMem_v2(to: &mut usize, device: i32);
    fn cuDeviceGetAttribute(to: &mut i32, attribute: i32, device: i32);
    fn cuDeviceCanAccessPeer(to: &mut i32, device: i32, peer: i32);
    fn cuDeviceGetP2PAttribute(to: &mut i32, attribute: i32, device: i32, peer: i32);
    fn cuDevicePrimaryCtxRetain(to: &mut usize, device: i32);
    fn cuDevicePrimaryCtxRelease_v2(device: i32);
    fn cuDevicePrimaryCtxReset_v2(device: i32);
    fn cuDevicePrimaryCtxGetState(device: i32, flags: &mut u32, active: &mut i32);
    fn cuCtxSetCurrent(context: usize);
    fn cuCtxGetCurrent(to: &mut usize);
    fn cuCtxPushCurrent_v2(context: usize);
    fn cuCtxPopCurrent_v2(to: &mut usize);
    fn cuCtxGetDevice(to: &mut i32);
    fn cuCtxSynchronize();
    fn cuCtxEnablePeerAccess(context: usize, flags: u32);
    fn cuCtxDisablePeerAccess(context: usize);
    fn cuMemAlloc_v2(to: &mut u64, len: usize);
    fn cuMemFree_v2(address: u64);
    fn cuMemAllocAsync(to: &mut u64, len: usize, stream: usize);
    fn cuMemFreeAsync(address: u64, stream: usize);
    fn cuMemGetInfo_v2(free: &mut usize, total: &mut usize);
    fn cuMemHostAlloc(to: &mut *mut u8, len: usize, flags: u32);
    fn cuMemFreeHost(address: *mut u8);
    fn cuMemHostRegister_v2(address: *mut u8, len: usize, flags: u32);
    fn cuMemHostUnregister(address: *mut u8);
    fn cuMemHostGetDevicePointer_v2(to: &mut u64, address: *mut u8, flags: u32);
    fn cuMemGetAddressRange_v2(base: &mut u64, len: &mut usize, address: u64);
    fn cuFlushGPUDirectRDMAWrites(target: i32, scope: i32);
    fn cuMemGetHandleForAddressRange(to: &mut i32, address: u64, len: usize, kind: i32, flags: u64);
    fn cuPointerGetAttribute(to: *mut c_void, attribute: i32, address: u64);
    fn cuPointerGetAttributes(count: u32, attributes: *const i32, to: *const *mut c_void, address: u64);
    fn cuPointerSetAttribute(value: *const c_void, attribute: i32, address: u64);
    fn cuDeviceGetDefaultMemPool(to: &mut usize, device: i32);
    fn cuMemPoolSetAccess(pool: usize, descriptions: *const AccessDescription, count: usize);
    fn cuMemcpyHtoD_v2(to: u64, from: *const u8, len: usize);
    fn cuMemcpyDtoH_v2(to: *mut u8, from: u64, len: usize);
    fn cuMemcpyDtoD_v2(to: u64, from: u64, len: usize);
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, len: usize, stream: usize);
    fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, len: usize, stream: usize);
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: usize);
    fn cuMemcpyAsync(to: u64, from: u64, len: usize, stream: usize);
    fn cuMemcpyPeerAsync(to: u64, to_context: usize, from: u64, from_context: usize, len: usize, stream: usize);
    fn cuMemcpyPeer(to: u64, to_context: usize, from: u64, from_context: usize, len: usize);
    fn cuMemsetD16_v2(to: u64, value: u16, count: usize);
    fn cuMemsetD32_v2(to: u64, value: u32, count: usize);
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize);
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize);
    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: usize);
    fn cuMemGetAllocationGranularity(to: &mut usize, properties: &Properties, option: i32);
    fn cuMemAddressReserve(to: &mut u64, len: usize, alignment: usize, wanted: u64, flags: u64);
    fn cuMemAddressFree(address: u64, len: usize);
    fn cuMemCreate(to: &mut usize, len: usize, properties: &Properties, flags: u64);
    fn cuMemRelease(handle: usize);
    fn cuMemMap(address: u64, len: usize, offset: usize, handle: usize, flags: u64);
    fn cuMemUnmap(address: u64, len: usize);
    fn cuMemSetAccess(address: u64, len: usize, descriptions: *const AccessDescription, count: usize);
    fn cuMemGetAccess(to: &mut u64, location: &[i32; 2], address: u64);
    fn cuMemExportToShareableHandle(to: &mut i32, handle: usize, kind: u32, flags: u64);
    fn cuMemImportFromShareableHandle(to: &mut usize, descriptor: usize, kind: u32);
    fn cuMemRetainAllocationHandle(to: &mut usize, address: u64);
    fn cuMemGetAllocationPropertiesFromHandle(to: &mut Properties, handle: usize);
    fn cuIpcGetMemHandle(to: &mut Handle64, address: u64);
    fn cuIpcOpenMemHandle_v2(to: &mut u64, handle: Passed, flags: u32);
    fn cuIpcCloseMemHandle(address: u64);
    fn cuIpcGetEventHandle(to: &mut Handle64, event: usize);
    fn cuIpcOpenEventHandle(to: &mut usize, handle: Passed);
    fn cuStreamCreate(to: &mut usize, flags: u32);
    fn cuStreamDestroy_v2(stream: usize);
    fn cuStreamSynchronize(stream: usize);
    fn cuStreamQuery(stream: usize);
    fn cuStreamWaitEvent(stream: usize, event: usize, flags: u32);
    fn cuStreamGetFlags(stream: usize, to: &mut u32);
    fn cuStreamBeginCapture_v2(stream: usize, mode: i32);
    fn cuStreamIsCapturing(stream: usize, to: &mut i32);
    fn cuLaunchHostFunc(stream: usize, function: extern "C" fn(usize), data: usize);
    fn cuStreamWaitValue32_v2(stream: usize, address: u64, value: u32, flags: u32);
    fn cuStreamWriteValue32_v2(stream: usize, address: u64, value: u32, flags: u32);
    fn cuStreamWaitValue64_v2(stream: usize, address: u64, value: u64, flags: u32);
    fn cuStreamBatchMemOp_v2(stream: usize, count: u32, operations: *const BatchOperation, flags: u32);
    fn cuEventCreate(to: &mut usize, flags: u32);
    fn cuEventDestroy_v2(event: usize);
    fn cuEventRecord(event: usize, stream: usize);
    fn cuEventQuery(event: usize);
    fn cuEventSynchronize(event: usize);
    fn cuEventElapsedTime(to: &mut f32, start: usize, end: usize);
    fn cuModuleLoadData(to: &mut usize, image: *const c_char);
    fn cuModuleUnload(module: usize);
    fn cuModuleGetFunction(to: &mut usize, module: usize, name: *const c_char);
    fn cuModuleGetGlobal_v2(to: &mut u64, len: &mut usize, module: usize, name: *const c_char);
    fn cuFuncGetAttribute(to: &mut i32, attribute: i32, function: usize);
    fn cuFuncSetAttribute(function: usize, attribute: i32, value: i32);
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(to: &mut i32, function: usize, block: i32, dynamic: usize);
    fn cuLaunchKernel(function: usize, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32, stream: usize, parameters: *const *const c_void, extra: usize);
    fn cuLaunchCooperativeKernel(function: usize, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32, stream: usize, parameters: *const *const c_void);
    fn cuLaunchKernelEx(configuration: &LaunchConfiguration, function: usize, parameters: *const *const c_void, extra: usize);
    fn ringtree_standin_is_standin();
    fn ringtree_standin_configure(key: *const c_char, value: *const c_char);
    fn ringtree_standin_counters(to: &mut Counters);
    fn ringtree_standin_reset_counters();
}

pub const INVALID_VALUE: i32 = 1;
pub const OUT_OF_MEMORY: i32 = 2;
pub const NOT_INITIALIZED: i32 = 3;
pub const INVALID_DEVICE: i32 = 101;
pub const INVALID_CONTEXT: i32 = 201;
pub const INVALID_HANDLE: i32 = 400;
pub const NOT_READY: i32 = 600;
pub const ILLEGAL_ADDRESS: i32 = 700;
pub const CONTEXT_IS_DESTROYED: i32 = 709;
pub const NOT_PERMITTED: i32 = 800;
pub const NOT_SUPPORTED: i32 = 801;
pub const POISON: u8 = 0xCB;

/// A stream that is not ordered with the NULL stream.
pub const NON_BLOCKING: u32 = 1;

/// Fails the test unless the call succeeded.
#[track_caller]
pub fn ok(code: i32) {
    assert_eq!(code, 0, "the call should have succeeded");
}

/// The value that a call gives.
#[track_caller]
pub fn get<T: Default>(call: impl FnOnce(&mut T) -> i32) -> T {
    let mut value = T::default();
    ok(call(&mut value));
    value
}

/// Initialises the driver and makes a device's primary context current; returns that.
#[track_caller]
pub fn use_device(device: i32) -> usize {
    ok(cuInit(0));
    let context = get(|to| cuDevicePrimaryCtxRetain(to, device));
    ok(cuCtxSetCurrent(context));
    context
}

#[track_caller]
pub fn allocate(len: usize) -> u64 {
    get(|to| cuMemAlloc_v2(to, len))
}

#[track_caller]
pub fn stream() -> usize {
    get(|to| cuStreamCreate(to, NON_BLOCKING))
}

#[track_caller]
pub fn event() -> usize {
    get(|to| cuEventCreate(to, 2))
}

/// Pinned memory, as a slice that lives for ever.
#[track_caller]
pub fn pinned(len: usize) -> &'static mut [u8] {
    let mut address = std::ptr::null_mut();
    ok(cuMemHostAlloc(&mut address, len, 0));
    // SAFETY: it is as long, and no test frees it while the slice is used.
    unsafe { std::slice::from_raw_parts_mut(address, len) }
}

#[track_caller]
pub fn download(address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ok(cuMemcpyDtoH_v2(bytes.as_mut_ptr(), address, len));
    bytes
}

#[track_caller]
pub fn upload(address: u64, bytes: &[u8]) {
    ok(cuMemcpyHtoD_v2(address, bytes.as_ptr(), bytes.len()));
    ok(cuCtxSynchronize());
}

pub fn configure(key: &str, value: &str) -> i32 {
    let (key, value) = (CString::new(key).unwrap(), CString::new(value).unwrap());
    ringtree_standin_configure(key.as_ptr(), value.as_ptr())
}

pub fn counters() -> Counters {
    let mut counters = Counters::default();
    ok(ringtree_standin_counters(&mut counters));
    counters
}

#[track_caller]
pub fn function_of(ptx: &str, name: &str) -> usize {
    let (ptx, name) = (CString::new(ptx).unwrap(), CString::new(name).unwrap());
    let module = get(|to| cuModuleLoadData(to, ptx.as_ptr()));
    get(|to| cuModuleGetFunction(to, module, name.as_ptr()))
}

/// Launches with parameters of 8 bytes.
pub fn launch(
    function: usize,
    blocks: u32,
    threads: u32,
    stream: usize,
    parameters: &[u64],
) -> i32 {
    let pointers: Vec<_> = parameters.iter().map(|p| std::ptr::from_ref(p).cast()).collect();
    cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, pointers.as_ptr(), 0)
}

/// Kernels of tests. `set(p, n)` writes each thread's number to 4 bytes; `copy(to, from)` moves 4 bytes; `spin(p)`
/// writes 1 to p + 4, and waits for something other than 0 at p; `misalign(p)` reads 4 bytes at p + 1; `stop` traps.
pub const KERNELS: &str = r#"
.version 6.3
.target sm_70
.address_size 64
.global .align 4 .u32 counter = 7;
.visible .entry set(.param .u64 p, .param .u64 n)
{
    .reg .pred %q;
    .reg .b32 %r<5>;
    .reg .b64 %d<5>;
    ld.param.u64 %d1, [p];
    ld.param.u64 %d4, [n];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3;
    cvt.u64.u32 %d2, %r4;
    setp.ge.u64 %q, %d2, %d4;
    @%q bra DONE;
    shl.b64 %d3, %d2, 2;
    add.s64 %d1, %d1, %d3;
    st.global.u32 [%d1], %r4;
DONE:
    ret;
}
.visible .entry copy(.param .u64 to, .param .u64 from)
{
    .reg .b32 %r<2>;
    .reg .b64 %d<3>;
    ld.param.u64 %d1, [to];
    ld.param.u64 %d2, [from];
    ld.global.u32 %r1, [%d2];
    st.global.u32 [%d1], %r1;
    ret;
}
.visible .entry spin(.param .u64 p)
{
    .reg .pred %q;
    .reg .b32 %r<2>;
    .reg .b64 %d<2>;
    ld.param.u64 %d1, [p];
    mov.u32 %r1, 1;
    st.volatile.global.u32 [%d1+4], %r1;
    membar.sys;
AGAIN:
    ld.volatile.global.u32 %r1, [%d1];
    setp.eq.s32 %q, %r1, 0;
    @%q bra AGAIN;
    ret;
}
.visible .entry misalign(.param .u64 p)
{
    .reg .b32 %r<2>;
    .reg .b64 %d<2>;
    ld.param.u64 %d1, [p];
    ld.global.u32 %r1, [%d1+1];
    st.global.u32 [%d1], %r1;
    ret;
}
.visible .entry stop()
{
    trap;
}
"#;

/// Waits until the kernel `spin` runs.
pub fn wait_for_spin(flag: u64) {
    while download(flag + 4, 4) != [1, 0, 0, 0] {
        std::thread::yield_now();
    }
}

const INSIDE: &str = "STANDIN_TEST_PROCESS";

/// Runs a test in a process of its own, with settings (names without prefix). `name` is the test function's. The
/// process's standard error is the answer, for tests of messages.
pub fn isolated(name: &str, settings: &[(&str, &str)], test: impl FnOnce()) {
    if inside(name) {
        return test();
    }
    let output = process(name, settings).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{name}: {}\n{printed}\n{said}", output.status);
    assert!(printed.contains("1 passed"), "{name} is no test of this file:\n{printed}");
}

/// Whether this is the process that runs a test's inner part, which then ends within a minute: a driver has no deadlines,
/// so a lost wake-up would be a test without end.
pub fn inside(name: &str) -> bool {
    let inside = std::env::var(INSIDE).as_deref() == Ok(name);
    if inside {
        // SAFETY: it ends the process, in which only the test runs.
        unsafe { libc::alarm(60) };
    }
    inside
}

/// A process that runs this file's test of a name.
pub fn process(name: &str, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, name);
    for (key, value) in settings {
        command.env(format!("RINGTREE_STANDIN_{key}"), value);
    }
    command
}
