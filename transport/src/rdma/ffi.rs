//! What of libibverbs' interface is used: its structures, its constants, and its functions, which are
//! looked up in the library at run time.
//!
//! The layouts are those of rdma-core's `verbs.h` on 64-bit Linux, which its version symbols keep as they
//! are; `tests/verbs-layout` compares each with what bindgen makes of the header itself. Posting and polling
//! are inline functions there: they are reached through the table in [`Context`].

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// A device in the library's list.
pub enum Device {}
/// A protection domain.
pub enum ProtectionDomain {}
/// A shared receive queue, which is not used.
pub enum SharedReceiveQueue {}

type Unused = *mut c_void;

/// `ibv_context_ops`: what the device's driver does without a call of the kernel.
#[repr(C)]
pub struct ContextOps {
    unused_before_poll: [Unused; 11],
    /// Takes completions: queue, most, where to; how many, or an error below 0.
    pub poll_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int, *mut WorkCompletion) -> c_int,
    /// Asks for an event with the next completion: queue, whether of solicited ones alone.
    pub req_notify_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int) -> c_int,
    unused_before_post: [Unused; 12],
    /// Posts a chain of send work requests; the last argument gets the first that was refused.
    pub post_send:
        unsafe extern "C" fn(*mut QueuePair, *mut SendRequest, *mut *mut SendRequest) -> c_int,
    /// Posts a chain of receive work requests, likewise.
    pub post_recv: unsafe extern "C" fn(
        *mut QueuePair,
        *mut ReceiveRequest,
        *mut *mut ReceiveRequest,
    ) -> c_int,
    unused: [Unused; 5],
}

/// `ibv_context`: an open device. More follows, which is the library's own.
#[repr(C)]
pub struct Context {
    pub device: *mut Device,
    pub ops: ContextOps,
    pub cmd_fd: c_int,
    pub async_fd: c_int,
    pub num_comp_vectors: c_int,
}

/// `ibv_comp_channel`.
#[repr(C)]
pub struct CompletionChannel {
    pub context: *mut Context,
    pub fd: c_int,
    pub refcnt: c_int,
}

/// The beginning of `ibv_cq`.
#[repr(C)]
pub struct CompletionQueue {
    pub context: *mut Context,
    pub channel: *mut CompletionChannel,
    pub cq_context: *mut c_void,
}

/// The beginning of `ibv_qp`.
#[repr(C)]
pub struct QueuePair {
    pub context: *mut Context,
    pub qp_context: *mut c_void,
    pub pd: *mut ProtectionDomain,
    pub send_cq: *mut CompletionQueue,
    pub recv_cq: *mut CompletionQueue,
    pub srq: *mut SharedReceiveQueue,
    pub handle: u32,
    pub qp_num: u32,
}

/// `ibv_mr`.
#[repr(C)]
pub struct MemoryRegion {
    pub context: *mut Context,
    pub pd: *mut ProtectionDomain,
    pub addr: *mut c_void,
    pub length: usize,
    pub handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

/// `ibv_gid`, whose bytes are in the order of the network.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gid {
    pub raw: [u8; 16],
}

/// `ibv_device_attr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DeviceAttributes {
    pub fw_ver: [c_char; 64],
    pub node_guid: u64,
    pub sys_image_guid: u64,
    pub max_mr_size: u64,
    pub page_size_cap: u64,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub hw_ver: u32,
    pub max_qp: c_int,
    pub max_qp_wr: c_int,
    pub device_cap_flags: c_uint,
    pub max_sge: c_int,
    pub max_sge_rd: c_int,
    pub max_cq: c_int,
    pub max_cqe: c_int,
    pub max_mr: c_int,
    pub max_pd: c_int,
    pub max_qp_rd_atom: c_int,
    pub max_ee_rd_atom: c_int,
    pub max_res_rd_atom: c_int,
    pub max_qp_init_rd_atom: c_int,
    pub max_ee_init_rd_atom: c_int,
    pub atomic_cap: c_uint,
    pub max_ee: c_int,
    pub max_rdd: c_int,
    pub max_mw: c_int,
    pub max_raw_ipv6_qp: c_int,
    pub max_raw_ethy_qp: c_int,
    pub max_mcast_grp: c_int,
    pub max_mcast_qp_attach: c_int,
    pub max_total_mcast_qp_attach: c_int,
    pub max_ah: c_int,
    pub max_fmr: c_int,
    pub max_map_per_fmr: c_int,
    pub max_srq: c_int,
    pub max_srq_wr: c_int,
    pub max_srq_sge: c_int,
    pub max_pkeys: u16,
    pub local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
}

/// `ibv_port_attr`. The exported `ibv_query_port` fills in what comes before `port_cap_flags2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PortAttributes {
    pub state: u32,
    pub max_mtu: u32,
    pub active_mtu: u32,
    pub gid_tbl_len: c_int,
    pub port_cap_flags: u32,
    pub max_msg_sz: u32,
    pub bad_pkey_cntr: u32,
    pub qkey_viol_cntr: u32,
    pub pkey_tbl_len: u16,
    pub lid: u16,
    pub sm_lid: u16,
    pub lmc: u8,
    pub max_vl_num: u8,
    pub sm_sl: u8,
    pub subnet_timeout: u8,
    pub init_type_reply: u8,
    pub active_width: u8,
    pub active_speed: u8,
    pub phys_state: u8,
    pub link_layer: u8,
    pub flags: u8,
    pub port_cap_flags2: u16,
    pub active_speed_ex: u32,
}

/// `ibv_qp_cap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct QueuePairCapacity {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

/// `ibv_qp_init_attr`.
#[repr(C)]
pub struct QueuePairInit {
    pub qp_context: *mut c_void,
    pub send_cq: *mut CompletionQueue,
    pub recv_cq: *mut CompletionQueue,
    pub srq: *mut SharedReceiveQueue,
    pub cap: QueuePairCapacity,
    pub qp_type: u32,
    pub sq_sig_all: c_int,
}

/// `ibv_global_route`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct GlobalRoute {
    pub dgid: Gid,
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
}

/// `ibv_ah_attr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct AddressHandle {
    pub grh: GlobalRoute,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

/// `ibv_qp_attr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct QueuePairAttributes {
    pub qp_state: u32,
    pub cur_qp_state: u32,
    pub path_mtu: u32,
    pub path_mig_state: u32,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: c_uint,
    pub cap: QueuePairCapacity,
    pub ah_attr: AddressHandle,
    pub alt_ah_attr: AddressHandle,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

/// `ibv_sge`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ScatterGather {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

/// `ibv_send_wr`, of whose unions only the part for writing to remote memory has a name.
#[repr(C)]
pub struct SendRequest {
    pub wr_id: u64,
    pub next: *mut SendRequest,
    pub sg_list: *mut ScatterGather,
    pub num_sge: c_int,
    pub opcode: c_uint,
    pub send_flags: c_uint,
    pub imm_data: u32,
    pub remote_addr: u64,
    pub rkey: u32,
    pub unused_of_atomic: [u64; 2],
    pub unused_of_xrc: u32,
    pub unused_of_bind_and_tso: [u64; 6],
}

/// `ibv_recv_wr`.
#[repr(C)]
pub struct ReceiveRequest {
    pub wr_id: u64,
    pub next: *mut ReceiveRequest,
    pub sg_list: *mut ScatterGather,
    pub num_sge: c_int,
}

/// `ibv_wc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkCompletion {
    pub wr_id: u64,
    pub status: c_uint,
    pub opcode: c_uint,
    pub vendor_err: u32,
    pub byte_len: u32,
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: c_uint,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

pub const PORT_ACTIVE: u32 = 4;
pub const LINK_LAYER_ETHERNET: u8 = 2;

pub const ACCESS_LOCAL_WRITE: c_int = 1;
pub const ACCESS_REMOTE_WRITE: c_int = 2;

pub const QPT_RC: u32 = 2;
pub const QPS_INIT: u32 = 1;
pub const QPS_RTR: u32 = 2;
pub const QPS_RTS: u32 = 3;
pub const QPS_ERR: u32 = 6;

pub const QP_STATE: c_int = 1;
pub const QP_ACCESS_FLAGS: c_int = 1 << 3;
pub const QP_PKEY_INDEX: c_int = 1 << 4;
pub const QP_PORT: c_int = 1 << 5;
pub const QP_AV: c_int = 1 << 7;
pub const QP_PATH_MTU: c_int = 1 << 8;
pub const QP_TIMEOUT: c_int = 1 << 9;
pub const QP_RETRY_CNT: c_int = 1 << 10;
pub const QP_RNR_RETRY: c_int = 1 << 11;
pub const QP_RQ_PSN: c_int = 1 << 12;
pub const QP_MAX_QP_RD_ATOMIC: c_int = 1 << 13;
pub const QP_MIN_RNR_TIMER: c_int = 1 << 15;
pub const QP_SQ_PSN: c_int = 1 << 16;
pub const QP_MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
pub const QP_DEST_QPN: c_int = 1 << 20;

pub const WR_RDMA_WRITE: c_uint = 0;
pub const WR_RDMA_WRITE_WITH_IMM: c_uint = 1;
pub const SEND_SIGNALED: c_uint = 1 << 1;
pub const SEND_INLINE: c_uint = 1 << 3;

pub const WC_SUCCESS: c_uint = 0;
pub const WC_WR_FLUSH_ERR: c_uint = 5;

/// Declares the functions, and how they are looked up.
macro_rules! functions {
    (
        required { $($name:ident: $symbol:literal, fn($($argument:ty),*) $(-> $result:ty)?;)* }
        optional { $($other:ident: $other_symbol:literal,
            fn($($other_argument:ty),*) -> $other_result:ty;)* }
    ) => {
        /// The functions of libibverbs.
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            $(pub $other: Option<unsafe extern "C" fn($($other_argument),*) -> $other_result>,)*
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
                // SAFETY: symbols of these names are functions of these types: rdma-core keeps them as
                // they are, under the version of its default symbols.
                unsafe {
                    Ok(Functions {
                        $($name: std::mem::transmute::<
                            *mut c_void,
                            unsafe extern "C" fn($($argument),*) $(-> $result)?,
                        >(
                            symbol(library, $symbol)
                                .ok_or_else(|| format!("it has no {}", $symbol.to_string_lossy()))?,
                        ),)*
                        $($other: symbol(library, $other_symbol)
                            .map(|found| std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($other_argument),*) -> $other_result,
                            >(found)),)*
                    })
                }
            }
        }
    };
}

functions! {
    required {
        get_device_list: c"ibv_get_device_list", fn(*mut c_int) -> *mut *mut Device;
        free_device_list: c"ibv_free_device_list", fn(*mut *mut Device);
        get_device_name: c"ibv_get_device_name", fn(*mut Device) -> *const c_char;
        open_device: c"ibv_open_device", fn(*mut Device) -> *mut Context;
        close_device: c"ibv_close_device", fn(*mut Context) -> c_int;
        query_device: c"ibv_query_device", fn(*mut Context, *mut DeviceAttributes) -> c_int;
        query_port: c"ibv_query_port", fn(*mut Context, u8, *mut PortAttributes) -> c_int;
        alloc_pd: c"ibv_alloc_pd", fn(*mut Context) -> *mut ProtectionDomain;
        dealloc_pd: c"ibv_dealloc_pd", fn(*mut ProtectionDomain) -> c_int;
        reg_mr: c"ibv_reg_mr",
            fn(*mut ProtectionDomain, *mut c_void, usize, c_int) -> *mut MemoryRegion;
        dereg_mr: c"ibv_dereg_mr", fn(*mut MemoryRegion) -> c_int;
        create_comp_channel: c"ibv_create_comp_channel", fn(*mut Context) -> *mut CompletionChannel;
        destroy_comp_channel: c"ibv_destroy_comp_channel", fn(*mut CompletionChannel) -> c_int;
        create_cq: c"ibv_create_cq",
            fn(*mut Context, c_int, *mut c_void, *mut CompletionChannel, c_int) -> *mut CompletionQueue;
        destroy_cq: c"ibv_destroy_cq", fn(*mut CompletionQueue) -> c_int;
        get_cq_event: c"ibv_get_cq_event",
            fn(*mut CompletionChannel, *mut *mut CompletionQueue, *mut *mut c_void) -> c_int;
        ack_cq_events: c"ibv_ack_cq_events", fn(*mut CompletionQueue, c_uint);
        create_qp: c"ibv_create_qp", fn(*mut ProtectionDomain, *mut QueuePairInit) -> *mut QueuePair;
        modify_qp: c"ibv_modify_qp", fn(*mut QueuePair, *mut QueuePairAttributes, c_int) -> c_int;
        destroy_qp: c"ibv_destroy_qp", fn(*mut QueuePair) -> c_int;
    }
    optional {
        fork_init: c"ibv_fork_init", fn() -> c_int;
        reg_dmabuf_mr: c"ibv_reg_dmabuf_mr",
            fn(*mut ProtectionDomain, u64, usize, u64, c_int, c_int) -> *mut MemoryRegion;
    }
}

/// # Safety
/// `library` must be open.
unsafe fn symbol(library: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name ends with a zero.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    (!found.is_null()).then_some(found)
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
