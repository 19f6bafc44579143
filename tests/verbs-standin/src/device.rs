//! Devices, their one port each, and protection domains.

use std::ffi::{CString, c_char, c_int};
use std::sync::OnceLock;

use crate::completion::{poll_cq, req_notify_cq};
use crate::ffi::{self, Context, ContextOps, DeviceAttributes, PortAttributes};
use crate::queue_pair::{MOST_REQUESTS, MOST_SCATTER, post_recv, post_send};
use crate::refuse;

/// Number of the only port.
pub(crate) const PORT: u8 = 1;
/// 4096 bytes.
pub(crate) const MTU: u32 = 5;
/// Of a completion queue.
pub(crate) const MOST_COMPLETIONS: c_int = 65_535;
const MOST_DEVICES: usize = 8;
const LINK_LAYER_INFINIBAND: u8 = 1;
const MOST_MESSAGE_BYTES: u32 = 1 << 30;

/// A device of the host.
struct Present {
    name: CString,
    lid: u16,
}

/// An open device.
#[repr(C)]
pub(crate) struct OpenDevice {
    public: Context,
    /// Its port's address.
    pub(crate) lid: u16,
}

/// The devices, which stay as long as the process.
fn devices() -> &'static [Present] {
    static DEVICES: OnceLock<Vec<Present>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let count = setting("DEVICES").and_then(|text| text.parse().ok()).unwrap_or(2);
        let named = |number: usize| {
            let name = CString::new(format!("standin{number}")).unwrap_or_default();
            Present { name, lid: number as u16 + 1 }
        };
        (0..count.min(MOST_DEVICES)).map(named).collect()
    })
}

/// A setting of the environment.
pub(crate) fn setting(name: &str) -> Option<String> {
    std::env::var(format!("RINGTREE_VERBS_STANDIN_{name}")).ok()
}

/// An array of all devices, with a null at its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_list(count: *mut c_int) -> *mut *mut ffi::Device {
    let all = devices().iter().map(|device| std::ptr::from_ref(device).cast_mut().cast());
    let mut list: Vec<*mut ffi::Device> = all.collect();
    if !count.is_null() {
        // SAFETY: the caller's promise.
        unsafe { *count = list.len() as c_int };
    }
    list.push(std::ptr::null_mut());
    Box::leak(list.into_boxed_slice()).as_mut_ptr()
}

/// Frees the array.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_free_device_list(list: *mut *mut ffi::Device) {
    let entries = devices().len() + 1;
    // SAFETY: it was leaked above, with so many entries.
    drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(list, entries)) });
}

/// The name of a device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_name(device: *mut ffi::Device) -> *const c_char {
    // SAFETY: devices of the list are of that type, and stay.
    unsafe { &*device.cast::<Present>() }.name.as_ptr()
}

/// Opens a device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_open_device(device: *mut ffi::Device) -> *mut Context {
    // SAFETY: devices of the list are of that type, and stay.
    let lid = unsafe { &*device.cast::<Present>() }.lid;
    // SAFETY: what is not set below are pointers that nobody follows, for which all zero is a value.
    let mut ops: std::mem::MaybeUninit<ContextOps> = std::mem::MaybeUninit::zeroed();
    let to = ops.as_mut_ptr();
    // SAFETY: the fields lie in the table, all of which is set or zero afterwards.
    let ops = unsafe {
        (&raw mut (*to).poll_cq).write(poll_cq);
        (&raw mut (*to).req_notify_cq).write(req_notify_cq);
        (&raw mut (*to).post_send).write(post_send);
        (&raw mut (*to).post_recv).write(post_recv);
        ops.assume_init()
    };
    let public = Context { device, ops, cmd_fd: -1, async_fd: -1, num_comp_vectors: 1 };
    Box::into_raw(Box::new(OpenDevice { public, lid })).cast()
}

/// Closes a device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_close_device(context: *mut Context) -> c_int {
    // SAFETY: it was made above, and is closed once.
    drop(unsafe { Box::from_raw(context.cast::<OpenDevice>()) });
    0
}

/// What a device can do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_device(_: *mut Context, to: *mut DeviceAttributes) -> c_int {
    // SAFETY: all zero is a value of these numbers.
    let mut attributes: DeviceAttributes = unsafe { std::mem::zeroed() };
    attributes.max_mr_size = u64::MAX;
    attributes.page_size_cap = 4096;
    (attributes.max_qp, attributes.max_cq) = (65_536, 65_536);
    (attributes.max_mr, attributes.max_pd) = (65_536, 65_536);
    attributes.max_qp_wr = MOST_REQUESTS as c_int;
    attributes.max_sge = MOST_SCATTER as c_int;
    attributes.max_cqe = MOST_COMPLETIONS;
    attributes.phys_port_cnt = PORT;
    // SAFETY: the caller's promise.
    unsafe { to.write(attributes) };
    0
}

/// What a port is like.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_port(
    context: *mut Context,
    port: u8,
    to: *mut PortAttributes,
) -> c_int {
    if port != PORT {
        return libc::EINVAL;
    }
    let attributes = PortAttributes {
        state: ffi::PORT_ACTIVE,
        max_mtu: MTU,
        active_mtu: MTU,
        gid_tbl_len: 1,
        max_msg_sz: MOST_MESSAGE_BYTES,
        pkey_tbl_len: 1,
        // SAFETY: the context is an open device.
        lid: unsafe { (*context.cast::<OpenDevice>()).lid },
        phys_state: 5,
        link_layer: LINK_LAYER_INFINIBAND,
        ..PortAttributes::default()
    };
    // SAFETY: the caller's promise.
    unsafe { to.write(attributes) };
    0
}

/// Makes a protection domain.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_alloc_pd(context: *mut Context) -> *mut ffi::ProtectionDomain {
    if context.is_null() { refuse(libc::EINVAL) } else { crate::memory::new_domain() }
}
