//! Reliable queue pairs: their making, their states, and what is posted to them.

use std::ffi::c_int;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread::{self, JoinHandle};

use crate::completion::Queue;
use crate::device::{MTU, OpenDevice, PORT};
use crate::ffi::{
    self, QPS_ERR, QPS_INIT, QPS_RTR, QPS_RTS, QueuePair, QueuePairAttributes, QueuePairCapacity,
    QueuePairInit, ReceiveRequest, SendRequest,
};
use crate::memory::domain;
use crate::state::{QPS_RESET, Request, Shared};
use crate::{refuse, requester, responder, wire};

/// Work requests of a queue.
pub(crate) const MOST_REQUESTS: u32 = 1024;
/// Pieces of a work request.
pub(crate) const MOST_SCATTER: u32 = 4;
const MOST_INLINE_BYTES: u32 = 512;
const INLINE_STEP_BYTES: u32 = 64;
const NUMBER_BITS: u32 = 0x00ff_ffff;

const TO_INIT: c_int = ffi::QP_STATE | ffi::QP_PKEY_INDEX | ffi::QP_PORT | ffi::QP_ACCESS_FLAGS;
const TO_READY: c_int = ffi::QP_STATE
    | ffi::QP_AV
    | ffi::QP_PATH_MTU
    | ffi::QP_DEST_QPN
    | ffi::QP_RQ_PSN
    | ffi::QP_MAX_DEST_RD_ATOMIC
    | ffi::QP_MIN_RNR_TIMER;
const TO_SEND: c_int = ffi::QP_STATE
    | ffi::QP_TIMEOUT
    | ffi::QP_RETRY_CNT
    | ffi::QP_RNR_RETRY
    | ffi::QP_SQ_PSN
    | ffi::QP_MAX_QP_RD_ATOMIC;

/// A queue pair.
#[repr(C)]
struct Pair {
    public: QueuePair,
    shared: Arc<Shared>,
    listener: UnixListener,
    threads: [JoinHandle<()>; 2],
}

/// Makes a queue pair, and sets `init.cap` to what it has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_qp(
    pd: *mut ffi::ProtectionDomain,
    init: *mut QueuePairInit,
) -> *mut QueuePair {
    // SAFETY: the caller's promise.
    let init = unsafe { &mut *init };
    if init.qp_type != ffi::QPT_RC || !init.srq.is_null() || !is_possible(&init.cap) {
        return refuse(libc::EINVAL);
    }
    // Drivers round it up.
    init.cap.max_inline_data = init.cap.max_inline_data.next_multiple_of(INLINE_STEP_BYTES);
    // SAFETY: the caller's promise: both queues live.
    let [sent, received] =
        [init.send_cq, init.recv_cq].map(|queue| unsafe { &*queue.cast::<Queue>() }.inner.clone());
    // SAFETY: the queue's context is an open device.
    let (context, lid) = unsafe {
        let context = (*init.send_cq).context;
        (context, (*context.cast::<OpenDevice>()).lid)
    };
    let Ok((number, listener)) = number(lid) else { return refuse(libc::ENOMEM) };
    // SAFETY: the caller's promise.
    let domain = unsafe { domain(pd) };
    let signals_all = init.sq_sig_all != 0;
    let shared = Shared::new(number, lid, domain, sent, received, init.cap, signals_all);
    let shared = Arc::new(shared);
    let Ok((listener, threads)) = start(&shared, listener) else { return refuse(libc::ENOMEM) };
    let public = QueuePair {
        context,
        qp_context: init.qp_context,
        pd,
        send_cq: init.send_cq,
        recv_cq: init.recv_cq,
        srq: init.srq,
        handle: number,
        qp_num: number,
    };
    Box::into_raw(Box::new(Pair { public, shared, listener, threads })).cast()
}

fn is_possible(cap: &QueuePairCapacity) -> bool {
    (1..=MOST_REQUESTS).contains(&cap.max_send_wr)
        && (1..=MOST_REQUESTS).contains(&cap.max_recv_wr)
        && cap.max_send_sge <= MOST_SCATTER
        && cap.max_recv_sge <= MOST_SCATTER
        && cap.max_inline_data <= MOST_INLINE_BYTES
}

/// A number that no other queue pair of the port has on this host, and what listens by it.
fn number(lid: u16) -> io::Result<(u32, UnixListener)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes begin far from each other.
    let first = std::process::id().wrapping_mul(0x9e37_79b1);
    loop {
        let number = first.wrapping_add(NEXT.fetch_add(1, SeqCst)) & NUMBER_BITS;
        match wire::listen(lid, number) {
            Ok(listener) => return Ok((number, listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
}

/// Starts the two threads.
fn start(
    shared: &Arc<Shared>,
    listener: UnixListener,
) -> io::Result<(UnixListener, [JoinHandle<()>; 2])> {
    let (kept, requester, responder) = (listener.try_clone()?, shared.clone(), shared.clone());
    let named = |name: &str| thread::Builder::new().name(name.to_owned());
    let requests = named("verbs-requester").spawn(move || requester::run(requester))?;
    let responds = named("verbs-responder").spawn(move || responder::run(responder, listener))?;
    Ok((kept, [requests, responds]))
}

/// Ends a queue pair. Nothing is read or written for it after that.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_qp(pair: *mut QueuePair) -> c_int {
    // SAFETY: it was made above, and ends once.
    let Pair { shared, listener, threads, .. } = *unsafe { Box::from_raw(pair.cast::<Pair>()) };
    shared.end();
    // SAFETY: the descriptor is open. Whoever waits for connections wakes.
    unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
    for thread in threads {
        if thread.join().is_err() {
            eprintln!("verbs stand-in: a thread of queue pair {} has panicked", shared.number);
        }
    }
    shared.sent.forget(shared.number);
    shared.received.forget(shared.number);
    0
}

/// Leads a queue pair to another state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_modify_qp(
    pair: *mut QueuePair,
    attributes: *mut QueuePairAttributes,
    mask: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    let (shared, to) = unsafe { (&(*pair.cast::<Pair>()).shared, &*attributes) };
    let mut state = shared.lock();
    let state = &mut *state;
    let peer = &mut state.peer;
    let is_right = match (state.at, to.qp_state, mask) {
        (QPS_RESET, QPS_INIT, TO_INIT) => {
            peer.access = to.qp_access_flags;
            to.port_num == PORT && to.pkey_index == 0
        }
        (QPS_INIT, QPS_RTR, TO_READY) => {
            (peer.lid, peer.number) = (to.ah_attr.dlid, to.dest_qp_num);
            (peer.receive_packet, peer.not_ready_timer) = (to.rq_psn, to.min_rnr_timer);
            let is_here = to.ah_attr.port_num == PORT && to.ah_attr.dlid != 0;
            is_here && (1..=MTU).contains(&to.path_mtu) && to.min_rnr_timer < 32
        }
        (QPS_RTR, QPS_RTS, TO_SEND) => {
            (peer.send_packet, peer.timeout) = (to.sq_psn, to.timeout);
            (peer.retries, peer.not_ready_retries) = (to.retry_cnt, to.rnr_retry);
            (1..32).contains(&to.timeout) && to.retry_cnt < 8 && to.rnr_retry < 8
        }
        (_, QPS_ERR, ffi::QP_STATE) => {
            shared.fail(state);
            return 0;
        }
        _ => false,
    };
    if !is_right {
        return libc::EINVAL;
    }
    state.at = to.qp_state;
    shared.wake();
    0
}

/// `ibv_post_send`: a chain of writes.
pub(crate) unsafe extern "C" fn post_send(
    pair: *mut QueuePair,
    first: *mut SendRequest,
    refused: *mut *mut SendRequest,
) -> c_int {
    // SAFETY: the caller's promise.
    let shared = unsafe { &(*pair.cast::<Pair>()).shared };
    let mut state = shared.lock();
    let mut at = first;
    while !at.is_null() {
        // SAFETY: as above: the chain is whole.
        let posted = unsafe { &*at };
        let request = match state.at {
            // SAFETY: likewise: its pieces are there.
            QPS_RTS | QPS_ERR => unsafe { request(shared, posted) },
            _ => Err(libc::EINVAL),
        };
        match request {
            Ok(request) => state.sends.push_back(request),
            Err(code) => {
                // SAFETY: as above.
                unsafe { *refused = at };
                shared.wake();
                return code;
            }
        }
        at = posted.next;
    }
    shared.wake();
    0
}

/// A write as it is kept, for which there must be a place.
///
/// # Safety
/// The pieces must be there, and what they name readable if it is to be copied now.
unsafe fn request(shared: &Shared, posted: &SendRequest) -> Result<Request, c_int> {
    let capacity = &shared.capacity;
    let is_known = posted.send_flags & !(ffi::SEND_SIGNALED | ffi::SEND_INLINE) == 0;
    let is_write = matches!(posted.opcode, ffi::WR_RDMA_WRITE | ffi::WR_RDMA_WRITE_WITH_IMM);
    let count = usize::try_from(posted.num_sge).map_err(|_| libc::EINVAL)?;
    if !is_known || !is_write || count > capacity.max_send_sge as usize {
        return Err(libc::EINVAL);
    }
    let pieces = match count {
        0 => Vec::new(),
        // SAFETY: the caller's promise.
        _ => unsafe { std::slice::from_raw_parts(posted.sg_list, count) }.to_vec(),
    };
    let bytes: u64 = pieces.iter().map(|piece| u64::from(piece.length)).sum();
    let is_inline = posted.send_flags & ffi::SEND_INLINE != 0;
    if is_inline && bytes > u64::from(capacity.max_inline_data) {
        return Err(libc::EINVAL);
    }
    if shared.places.load(SeqCst) >= capacity.max_send_wr {
        return Err(libc::ENOMEM);
    }
    shared.places.fetch_add(1, SeqCst);
    // SAFETY: the caller's promise.
    let copied = || unsafe { pieces.iter().flat_map(|piece| copy(piece)).collect() };
    let inline = is_inline.then(copied);
    let has_immediate = posted.opcode == ffi::WR_RDMA_WRITE_WITH_IMM;
    Ok(Request {
        id: posted.wr_id,
        inline,
        pieces,
        address: posted.remote_addr,
        key: posted.rkey,
        immediate: has_immediate.then_some(posted.imm_data),
        is_signalled: shared.signals_all || posted.send_flags & ffi::SEND_SIGNALED != 0,
    })
}

/// # Safety
/// The piece must be readable.
unsafe fn copy(piece: &ffi::ScatterGather) -> Vec<u8> {
    if piece.length == 0 {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(piece.addr as *const u8, piece.length as usize) }.to_vec()
}

/// `ibv_post_recv`: a chain of receives without memory.
pub(crate) unsafe extern "C" fn post_recv(
    pair: *mut QueuePair,
    first: *mut ReceiveRequest,
    refused: *mut *mut ReceiveRequest,
) -> c_int {
    // SAFETY: the caller's promise.
    let shared = unsafe { &(*pair.cast::<Pair>()).shared };
    let mut state = shared.lock();
    let mut at = first;
    while !at.is_null() {
        // SAFETY: as above: the chain is whole.
        let posted = unsafe { &*at };
        let code = match state.at {
            QPS_RESET => libc::EINVAL,
            _ if posted.num_sge != 0 => libc::EINVAL,
            _ if state.receives.len() >= shared.capacity.max_recv_wr as usize => libc::ENOMEM,
            QPS_ERR => {
                shared.flush_receive(posted.wr_id);
                0
            }
            _ => {
                state.receives.push_back(posted.wr_id);
                0
            }
        };
        if code != 0 {
            // SAFETY: as above.
            unsafe { *refused = at };
            return code;
        }
        at = posted.next;
    }
    0
}
