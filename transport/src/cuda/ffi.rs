//! What of the CUDA driver's interface is used: its types, its constants, and its functions, which are looked up
//! in the library at run time.
//!
//! Results are plain integers here: a newer driver may return codes that no enumeration knows. The signatures are
//! those of `cuda.h`, under the names that the library exports, which carry the version of each function.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};

/// `CUresult`; 0 is success.
pub type Code = c_int;
/// `CUdevice`.
pub type DeviceNumber = c_int;
/// `CUdeviceptr`: an address that kernels and copies use, and the host must not.
pub type DeviceAddress = u64;

/// `struct CUctx_st`.
pub enum Context {}
/// `struct CUstream_st`.
pub enum Stream {}
/// `struct CUevent_st`.
pub enum Event {}
/// `struct CUmod_st`.
pub enum Module {}
/// `struct CUfunc_st`.
pub enum Function {}

/// Bytes of a `CUipcMemHandle`.
pub const IPC_HANDLE_BYTES: usize = 64;

/// `CUipcMemHandle`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct IpcHandle(pub [u8; IPC_HANDLE_BYTES]);

/// `CUmemGenericAllocationHandle`: physical memory.
pub type PhysicalHandle = u64;

/// `CUmemLocation`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MemoryLocation {
    pub kind: c_int,
    pub id: c_int,
}

/// `CUmemAllocationProp`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct AllocationProperties {
    pub kind: c_int,
    pub handle_types: c_int,
    pub location: MemoryLocation,
    pub windows_metadata: *mut c_void,
    pub compression: u8,
    pub is_rdma_capable: u8,
    pub usage: u16,
    pub reserved: [u8; 4],
}

/// `CUmemAccessDesc`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct AccessDescription {
    pub location: MemoryLocation,
    pub flags: c_int,
}

pub const SUCCESS: Code = 0;
pub const INVALID_VALUE: Code = 1;
pub const OUT_OF_MEMORY: Code = 2;
pub const NO_DEVICE: Code = 100;
pub const UNSUPPORTED_PTX_VERSION: Code = 222;
pub const NOT_READY: Code = 600;
pub const PEER_ACCESS_ALREADY_ENABLED: Code = 704;
pub const HOST_MEMORY_ALREADY_REGISTERED: Code = 712;

/// `CU_STREAM_NON_BLOCKING`: apart from the null stream.
pub const STREAM_NON_BLOCKING: c_uint = 1;
/// Below every priority that there is, and taken for the highest.
pub const STREAM_HIGHEST_PRIORITY: c_int = -1000;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: calls of this thread have nothing to do with what other threads capture.
pub const CAPTURE_MODE_RELAXED: c_uint = 2;
/// `CU_EVENT_DEFAULT`.
pub const EVENT_DEFAULT: c_uint = 0;
/// `CU_EVENT_DISABLE_TIMING`.
pub const EVENT_DISABLE_TIMING: c_uint = 2;
/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`: for all contexts, at a device address.
pub const HOST_ALLOC_PORTABLE_MAPPED: c_uint = 1 | 2;
/// `CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP`.
pub const HOST_REGISTER_PORTABLE_MAPPED: c_uint = 1 | 2;
/// `CU_MEMHOSTREGISTER_READ_ONLY`: the device does not write it, nor may the process.
pub const HOST_REGISTER_READ_ONLY: c_uint = 8;
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`: the only flag there is, and needed between GPUs.
pub const IPC_LAZY_ENABLE_PEER_ACCESS: c_uint = 1;
/// `CU_STREAM_WAIT_VALUE_GEQ`: until the word is at least the value, cyclically.
pub const STREAM_WAIT_VALUE_GEQ: c_uint = 0;

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`.
pub const ATTRIBUTE_CAPABILITY_MAJOR: c_int = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`.
pub const ATTRIBUTE_CAPABILITY_MINOR: c_int = 76;
/// `CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED`.
pub const ATTRIBUTE_DMA_BUF: c_int = 124;
/// `CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS`; bit 0: the host can do it.
pub const ATTRIBUTE_FLUSH_REMOTE_WRITES: c_int = 117;
/// `CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING`.
pub const ATTRIBUTE_REMOTE_WRITES_ORDERING: c_int = 118;
/// `CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER`; the number for all devices is higher.
pub const ORDERED_FOR_OWNER: c_int = 100;
/// `CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX`.
pub const FLUSH_OF_CURRENT_CONTEXT: c_int = 0;
/// `CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER`.
pub const FLUSH_FOR_OWNER: c_int = 100;
/// `CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD`.
pub const RANGE_HANDLE_DMA_BUF: c_int = 1;
/// `CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED`.
pub const ATTRIBUTE_READ_ONLY_HOST_REGISTER: c_int = 113;
/// `CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED`.
pub const ATTRIBUTE_VIRTUAL_MEMORY: c_int = 102;
/// `CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED`.
pub const ATTRIBUTE_FILE_DESCRIPTOR: c_int = 103;
/// `CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED`.
pub const ATTRIBUTE_RDMA_OF_VIRTUAL_MEMORY: c_int = 110;
/// `CU_MEM_ALLOCATION_TYPE_PINNED`: the only one of devices.
pub const ALLOCATION_PINNED: c_int = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
pub const HANDLE_FILE_DESCRIPTOR: c_int = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
pub const LOCATION_DEVICE: c_int = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
pub const ACCESS_READ_WRITE: c_int = 3;
/// `CU_MEM_ALLOC_GRANULARITY_MINIMUM`.
pub const GRANULARITY_MINIMUM: c_int = 0;
/// `CU_POINTER_ATTRIBUTE_MEMORY_TYPE`.
pub const POINTER_MEMORY_TYPE: c_int = 2;
/// `CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL`.
pub const POINTER_DEVICE_ORDINAL: c_int = 9;
/// `CU_MEMORYTYPE_DEVICE`.
pub const MEMORY_TYPE_DEVICE: c_uint = 2;

/// Declares the functions, and how they are looked up.
macro_rules! functions {
    ($($name:ident: $symbol:literal, fn($($argument:ty),*);)*) => {
        /// The functions of the driver.
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> Code,)*
        }

        impl Functions {
            /// Opens the library, which stays open, and finds the functions in it.
            ///
            /// # Errors
            /// What the dynamic linker says, or which function is missing.
            pub fn load(library: &CStr) -> Result<Functions, String> {
                // SAFETY: the name ends with a zero. The library's constructors run, as they would if
                // the program were linked with it.
                let library = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW) };
                if library.is_null() {
                    return Err(last_error());
                }
                // SAFETY: symbols of these names are functions of these types: the driver keeps what it has
                // once exported as it is.
                unsafe {
                    Ok(Functions {
                        $($name: std::mem::transmute::<
                            *mut c_void,
                            unsafe extern "C" fn($($argument),*) -> Code,
                        >(symbol(library, $symbol)?),)*
                    })
                }
            }
        }
    };
}

functions! {
    init: c"cuInit", fn(c_uint);
    driver_version: c"cuDriverGetVersion", fn(*mut c_int);
    error_name: c"cuGetErrorName", fn(Code, *mut *const c_char);
    error_text: c"cuGetErrorString", fn(Code, *mut *const c_char);
    device_count: c"cuDeviceGetCount", fn(*mut c_int);
    device: c"cuDeviceGet", fn(*mut DeviceNumber, c_int);
    device_name: c"cuDeviceGetName", fn(*mut c_char, c_int, DeviceNumber);
    device_bus_id: c"cuDeviceGetPCIBusId", fn(*mut c_char, c_int, DeviceNumber);
    device_memory: c"cuDeviceTotalMem_v2", fn(*mut usize, DeviceNumber);
    device_attribute: c"cuDeviceGetAttribute", fn(*mut c_int, c_int, DeviceNumber);
    can_access_peer: c"cuDeviceCanAccessPeer", fn(*mut c_int, DeviceNumber, DeviceNumber);
    retain_context: c"cuDevicePrimaryCtxRetain", fn(*mut *mut Context, DeviceNumber);
    release_context: c"cuDevicePrimaryCtxRelease_v2", fn(DeviceNumber);
    push_context: c"cuCtxPushCurrent_v2", fn(*mut Context);
    pop_context: c"cuCtxPopCurrent_v2", fn(*mut *mut Context);
    memory_info: c"cuMemGetInfo_v2", fn(*mut usize, *mut usize);
    alloc: c"cuMemAlloc_v2", fn(*mut DeviceAddress, usize);
    free: c"cuMemFree_v2", fn(DeviceAddress);
    enable_peer_access: c"cuCtxEnablePeerAccess", fn(*mut Context, c_uint);
    ipc_export: c"cuIpcGetMemHandle", fn(*mut IpcHandle, DeviceAddress);
    ipc_open: c"cuIpcOpenMemHandle_v2", fn(*mut DeviceAddress, IpcHandle, c_uint);
    ipc_close: c"cuIpcCloseMemHandle", fn(DeviceAddress);
    synchronize: c"cuCtxSynchronize", fn();
    granularity: c"cuMemGetAllocationGranularity", fn(*mut usize, *const AllocationProperties, c_int);
    physical_create: c"cuMemCreate", fn(*mut PhysicalHandle, usize, *const AllocationProperties, u64);
    physical_release: c"cuMemRelease", fn(PhysicalHandle);
    physical_retain: c"cuMemRetainAllocationHandle", fn(*mut PhysicalHandle, DeviceAddress);
    physical_export: c"cuMemExportToShareableHandle", fn(*mut c_int, PhysicalHandle, c_int, u64);
    physical_import: c"cuMemImportFromShareableHandle", fn(*mut PhysicalHandle, *mut c_void, c_int);
    reserve: c"cuMemAddressReserve", fn(*mut DeviceAddress, usize, usize, DeviceAddress, u64);
    unreserve: c"cuMemAddressFree", fn(DeviceAddress, usize);
    map: c"cuMemMap", fn(DeviceAddress, usize, usize, PhysicalHandle, u64);
    unmap: c"cuMemUnmap", fn(DeviceAddress, usize);
    set_access: c"cuMemSetAccess", fn(DeviceAddress, usize, *const AccessDescription, usize);
    host_alloc: c"cuMemHostAlloc", fn(*mut *mut c_void, usize, c_uint);
    host_free: c"cuMemFreeHost", fn(*mut c_void);
    host_register: c"cuMemHostRegister_v2", fn(*mut c_void, usize, c_uint);
    host_unregister: c"cuMemHostUnregister", fn(*mut c_void);
    host_address: c"cuMemHostGetDevicePointer_v2", fn(*mut DeviceAddress, *mut c_void, c_uint);
    range_handle: c"cuMemGetHandleForAddressRange",
        fn(*mut c_void, DeviceAddress, usize, c_int, c_ulonglong);
    flush_remote_writes: c"cuFlushGPUDirectRDMAWrites", fn(c_int, c_int);
    pointer_attribute: c"cuPointerGetAttribute", fn(*mut c_void, c_int, DeviceAddress);
    copy_to_device: c"cuMemcpyHtoDAsync_v2", fn(DeviceAddress, *const c_void, usize, *mut Stream);
    copy_to_host: c"cuMemcpyDtoHAsync_v2", fn(*mut c_void, DeviceAddress, usize, *mut Stream);
    copy: c"cuMemcpyAsync", fn(DeviceAddress, DeviceAddress, usize, *mut Stream);
    fill: c"cuMemsetD8Async", fn(DeviceAddress, u8, usize, *mut Stream);
    stream_create: c"cuStreamCreateWithPriority", fn(*mut *mut Stream, c_uint, c_int);
    exchange_capture_mode: c"cuThreadExchangeStreamCaptureMode", fn(*mut c_uint);
    stream_destroy: c"cuStreamDestroy_v2", fn(*mut Stream);
    stream_synchronize: c"cuStreamSynchronize", fn(*mut Stream);
    stream_is_capturing: c"cuStreamIsCapturing", fn(*mut Stream, *mut c_int);
    stream_wait_event: c"cuStreamWaitEvent", fn(*mut Stream, *mut Event, c_uint);
    stream_wait_value: c"cuStreamWaitValue32_v2", fn(*mut Stream, DeviceAddress, u32, c_uint);
    event_create: c"cuEventCreate", fn(*mut *mut Event, c_uint);
    event_destroy: c"cuEventDestroy_v2", fn(*mut Event);
    event_record: c"cuEventRecord", fn(*mut Event, *mut Stream);
    event_query: c"cuEventQuery", fn(*mut Event);
    event_elapsed: c"cuEventElapsedTime", fn(*mut f32, *mut Event, *mut Event);
    module_load: c"cuModuleLoadData", fn(*mut *mut Module, *const c_void);
    module_function: c"cuModuleGetFunction", fn(*mut *mut Function, *mut Module, *const c_char);
    launch: c"cuLaunchKernel", fn(
        *mut Function,
        c_uint, c_uint, c_uint,
        c_uint, c_uint, c_uint,
        c_uint,
        *mut Stream,
        *mut *mut c_void,
        *mut *mut c_void
    );
}

/// # Safety
/// `library` must be open.
unsafe fn symbol(library: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: the name ends with a zero.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    if found.is_null() {
        return Err(format!(
            "it has no {}: its driver is older than CUDA 11.7",
            name.to_string_lossy()
        ));
    }
    Ok(found)
}

fn last_error() -> String {
    // SAFETY: what it returns is a text until the next call of the linker in this thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "it cannot be opened".into();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
