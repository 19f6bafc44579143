//! What the stand-in does and refuses, as a device would.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use ringtree_verbs_standin::ffi::{self, QueuePairAttributes, ScatterGather, WorkCompletion};
use ringtree_verbs_standin::*;

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);
const WRITE_ACCESS: c_int = ffi::ACCESS_LOCAL_WRITE | ffi::ACCESS_REMOTE_WRITE;
const LOCAL_PROTECTION: u32 = 4;
const REMOTE_ACCESS: u32 = 10;
const RETRIES_EXCEEDED: u32 = 12;
const NOT_READY_EXCEEDED: u32 = 13;
const LEN: usize = 1000;

/// A queue pair with all that it needs, which ends with it.
struct Side {
    context: *mut ffi::Context,
    domain: *mut ffi::ProtectionDomain,
    channel: *mut ffi::CompletionChannel,
    queue: *mut ffi::CompletionQueue,
    pair: *mut ffi::QueuePair,
    memory: Vec<u8>,
    region: *mut ffi::MemoryRegion,
}

impl Side {
    /// On the device of that number, ready to be connected.
    fn new(number: usize) -> Side {
        Side::with(number, WRITE_ACCESS)
    }

    fn with(number: usize, access: c_int) -> Side {
        // SAFETY: the calls are in the order that libibverbs' manual gives, and each result is looked at.
        unsafe {
            let mut count = 0;
            let list = ibv_get_device_list(&mut count);
            assert_eq!(count, 2);
            let context = ibv_open_device(*list.add(number));
            ibv_free_device_list(list);
            let domain = ibv_alloc_pd(context);
            let channel = ibv_create_comp_channel(context);
            libc::fcntl((*channel).fd, libc::F_SETFL, libc::O_NONBLOCK);
            let queue = ibv_create_cq(context, 64, null_mut(), channel, 0);
            let mut init = ffi::QueuePairInit {
                qp_context: null_mut(),
                send_cq: queue,
                recv_cq: queue,
                srq: null_mut(),
                cap: ffi::QueuePairCapacity {
                    max_send_wr: 4,
                    max_recv_wr: 4,
                    max_send_sge: 2,
                    max_recv_sge: 1,
                    max_inline_data: 50,
                },
                qp_type: ffi::QPT_RC,
                sq_sig_all: 0,
            };
            let pair = ibv_create_qp(domain, &mut init);
            assert!(!pair.is_null());
            assert_eq!(init.cap.max_inline_data, 64);
            let mut memory = vec![0; LEN];
            let region = ibv_reg_mr(domain, memory.as_mut_ptr().cast(), LEN, access);
            assert!(!region.is_null());
            let side = Side { context, domain, channel, queue, pair, memory, region };
            assert_eq!(side.modify(ffi::QPS_INIT, 0, 0, 0), 0);
            side
        }
    }

    /// Leads the queue pair to the next state.
    fn modify(&self, to: u32, lid: u16, number: u32, not_ready_retries: u8) -> c_int {
        let mut attributes = QueuePairAttributes {
            qp_state: to,
            port_num: 1,
            qp_access_flags: ffi::ACCESS_REMOTE_WRITE as u32,
            path_mtu: 5,
            dest_qp_num: number,
            min_rnr_timer: 1,
            timeout: 10,
            retry_cnt: 1,
            rnr_retry: not_ready_retries,
            ..Default::default()
        };
        (attributes.ah_attr.dlid, attributes.ah_attr.port_num) = (lid, 1);
        let mask = match to {
            ffi::QPS_INIT => {
                ffi::QP_STATE | ffi::QP_PKEY_INDEX | ffi::QP_PORT | ffi::QP_ACCESS_FLAGS
            }
            ffi::QPS_RTR => {
                ffi::QP_STATE
                    | ffi::QP_AV
                    | ffi::QP_PATH_MTU
                    | ffi::QP_DEST_QPN
                    | ffi::QP_RQ_PSN
                    | ffi::QP_MAX_DEST_RD_ATOMIC
                    | ffi::QP_MIN_RNR_TIMER
            }
            ffi::QPS_RTS => {
                ffi::QP_STATE
                    | ffi::QP_TIMEOUT
                    | ffi::QP_RETRY_CNT
                    | ffi::QP_RNR_RETRY
                    | ffi::QP_SQ_PSN
                    | ffi::QP_MAX_QP_RD_ATOMIC
            }
            _ => ffi::QP_STATE,
        };
        // SAFETY: the queue pair lives, and the structure is whole.
        unsafe { ibv_modify_qp(self.pair, &mut attributes, mask) }
    }

    fn lid(&self) -> u16 {
        let mut port = ffi::PortAttributes::default();
        // SAFETY: the context is open.
        assert_eq!(unsafe { ibv_query_port(self.context, 1, &mut port) }, 0);
        assert_eq!(port.state, ffi::PORT_ACTIVE);
        port.lid
    }

    fn number(&self) -> u32 {
        // SAFETY: the queue pair lives.
        unsafe { (*self.pair).qp_num }
    }

    fn keys(&self) -> (u32, u32) {
        // SAFETY: the region lives.
        unsafe { ((*self.region).lkey, (*self.region).rkey) }
    }

    fn connect(&self, peer: &Side, not_ready_retries: u8) {
        assert_eq!(self.modify(ffi::QPS_RTR, peer.lid(), peer.number(), 0), 0);
        assert_eq!(self.modify(ffi::QPS_RTS, 0, 0, not_ready_retries), 0);
    }

    /// Posts a write of the first bytes of the memory to the first of the peer's; with a number that tells of it.
    fn write(&self, id: u64, len: u32, lkey: u32, to: (u64, u32), flags: u32) -> c_int {
        let mut piece = ScatterGather { addr: self.memory.as_ptr() as u64, length: len, lkey };
        let mut request = ffi::SendRequest {
            wr_id: id,
            next: null_mut(),
            sg_list: &mut piece,
            num_sge: 1,
            opcode: ffi::WR_RDMA_WRITE_WITH_IMM,
            send_flags: flags,
            imm_data: id as u32,
            remote_addr: to.0,
            rkey: to.1,
            unused_of_atomic: [0; 2],
            unused_of_xrc: 0,
            unused_of_bind_and_tso: [0; 6],
        };
        let mut refused = null_mut();
        // SAFETY: the queue pair lives, and the request is whole; its memory stays as long as this.
        unsafe { ((*self.context).ops.post_send)(self.pair, &mut request, &mut refused) }
    }

    fn receive(&self, id: u64) -> c_int {
        let (next, sg_list) = (null_mut(), null_mut());
        let mut request = ffi::ReceiveRequest { wr_id: id, next, sg_list, num_sge: 0 };
        let mut refused = null_mut();
        // SAFETY: the queue pair lives, and the request is whole.
        unsafe { ((*self.context).ops.post_recv)(self.pair, &mut request, &mut refused) }
    }

    /// Where peers write, and by which key.
    fn target(&self) -> (u64, u32) {
        (self.memory.as_ptr() as u64, self.keys().1)
    }

    fn poll(&self) -> Option<WorkCompletion> {
        let mut completion = WorkCompletion::default();
        // SAFETY: the queue lives, and there is room for one.
        match unsafe { ((*self.context).ops.poll_cq)(self.queue, 1, &mut completion) } {
            0 => None,
            count => {
                assert_eq!(count, 1);
                Some(completion)
            }
        }
    }

    /// The next completion.
    fn completion(&self) -> WorkCompletion {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(completion) = self.poll() {
                return completion;
            }
            assert!(Instant::now() < deadline, "no completion came");
            std::thread::yield_now();
        }
    }

    fn statuses(&self, count: usize) -> Vec<(u64, u32)> {
        (0..count).map(|_| self.completion()).map(|c| (c.wr_id, c.status)).collect()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // SAFETY: each ends once, in the reverse order of the making.
        unsafe {
            assert_eq!(ibv_destroy_cq(self.queue), libc::EBUSY);
            assert_eq!(ibv_destroy_comp_channel(self.channel), libc::EBUSY);
            assert_eq!(ibv_dealloc_pd(self.domain), libc::EBUSY);
            assert_eq!(ibv_destroy_qp(self.pair), 0);
            assert_eq!(ibv_destroy_cq(self.queue), 0);
            assert_eq!(ibv_destroy_comp_channel(self.channel), 0);
            assert_eq!(ibv_dealloc_pd(self.domain), libc::EBUSY);
            assert_eq!(ibv_dereg_mr(self.region), 0);
            assert_eq!(ibv_dealloc_pd(self.domain), 0);
            assert_eq!(ibv_close_device(self.context), 0);
        }
    }
}

/// Two sides that are connected.
fn connected() -> (Side, Side) {
    let (left, right) = (Side::new(0), Side::new(1));
    left.connect(&right, 1);
    right.connect(&left, 1);
    (left, right)
}

const SIGNALED: u32 = ffi::SEND_SIGNALED;

#[test]
fn writes_arrive_in_order_and_tell_of_themselves() {
    let (mut left, right) = connected();
    left.memory.fill(7);
    for id in 1..=3 {
        assert_eq!(right.receive(100 + id), 0);
    }
    let lkey = left.keys().0;
    assert_eq!(left.write(1, 1000, lkey, right.target(), 0), 0);
    // What it carries itself needs no key, and may change at once.
    assert_eq!(left.write(2, 10, 0, right.target(), ffi::SEND_INLINE), 0);
    assert_eq!(left.write(3, 0, 0, (0, 0), SIGNALED), 0);
    for (id, len) in [(1, 1000), (2, 10), (3, 0)] {
        let got = right.completion();
        assert_eq!((got.wr_id, got.status, got.opcode), (100 + id, 0, 129));
        assert_eq!((got.byte_len, got.imm_data, got.wc_flags), (len, id as u32, 2));
        assert_eq!((got.qp_num, got.src_qp), (right.number(), left.number()));
    }
    let sent = left.completion();
    assert_eq!((sent.wr_id, sent.status, sent.opcode), (3, 0, 1), "the others asked for none");
    assert!(right.memory.iter().all(|byte| *byte == 7));
    assert_eq!(right.poll().map(|c| c.wr_id), None);
}

/// A write that the sender's own side refuses ends the queue pair, and what is behind it is flushed.
#[test]
fn a_wrong_key_of_the_senders_own_is_its_error() {
    let theirs = |left: &Side, _: &Side| left.keys().1;
    let of_the_other = |_: &Side, right: &Side| right.keys().0;
    let none = |_: &Side, _: &Side| 0xdead_0000;
    for key in [theirs, of_the_other, none] {
        let (left, right) = connected();
        assert_eq!(right.receive(100), 0);
        assert_eq!(left.write(1, 8, key(&left, &right), right.target(), 0), 0);
        assert_eq!(left.write(2, 8, left.keys().0, right.target(), 0), 0);
        assert_eq!(left.statuses(2), [(1, LOCAL_PROTECTION), (2, ffi::WC_WR_FLUSH_ERR)]);
        assert_eq!(right.poll().map(|c| c.wr_id), None);
    }
    let (left, right) = connected();
    // Longer than the region.
    assert_eq!(left.write(1, LEN as u32 + 1, left.keys().0, right.target(), 0), 0);
    assert_eq!(left.statuses(1), [(1, LOCAL_PROTECTION)]);
}

#[test]
fn what_a_peer_may_not_write_it_does_not_and_both_end() {
    let wrong_key = |right: &Side| (right.target().0, right.keys().0);
    let beyond = |right: &Side| (right.target().0 + 1, right.keys().1);
    let before = |right: &Side| (right.target().0 - 1, right.keys().1);
    for target in [wrong_key, beyond, before] {
        let (mut left, right) = connected();
        left.memory.fill(9);
        assert_eq!((right.receive(100), right.receive(101)), (0, 0));
        assert_eq!(left.write(1, LEN as u32, left.keys().0, target(&right), 0), 0);
        assert_eq!(left.statuses(1), [(1, REMOTE_ACCESS)]);
        let flushed = ffi::WC_WR_FLUSH_ERR;
        assert_eq!(right.statuses(2), [(100, flushed), (101, flushed)]);
        assert!(right.memory.iter().all(|byte| *byte == 0));
        // Nothing more goes by either.
        assert_eq!(left.write(2, 8, left.keys().0, right.target(), 0), 0);
        assert_eq!(left.statuses(1), [(2, flushed)]);
        assert_eq!(right.receive(102), 0);
        assert_eq!(right.statuses(1), [(102, flushed)]);
    }
    let (left, right) = (Side::new(0), Side::with(1, ffi::ACCESS_LOCAL_WRITE));
    left.connect(&right, 1);
    right.connect(&left, 1);
    assert_eq!(right.receive(100), 0);
    assert_eq!(left.write(1, 8, left.keys().0, right.target(), 0), 0);
    assert_eq!(left.statuses(1), [(1, REMOTE_ACCESS)]);
}

#[test]
fn a_receiver_that_is_not_ready_costs_retries() {
    let (left, right) = connected();
    assert_eq!(left.write(1, 8, left.keys().0, right.target(), 0), 0);
    assert_eq!(left.statuses(1), [(1, NOT_READY_EXCEEDED)]);
    // Retries of this number never end.
    let (left, right) = (Side::new(0), Side::new(1));
    left.connect(&right, 7);
    right.connect(&left, 7);
    assert_eq!(left.write(1, 8, left.keys().0, right.target(), SIGNALED), 0);
    assert_eq!(right.receive(100), 0);
    assert_eq!(left.statuses(1), [(1, 0)]);
    assert_eq!(right.statuses(1), [(100, 0)]);
}

#[test]
fn a_peer_that_is_gone_or_is_another_costs_retries() {
    let (left, right) = connected();
    let target = right.target();
    drop(right);
    assert_eq!(left.write(1, 8, left.keys().0, target, 0), 0);
    assert_eq!(left.statuses(1), [(1, RETRIES_EXCEEDED)]);
    // The peer is connected to somebody else.
    let (left, right, other) = (Side::new(0), Side::new(1), Side::new(0));
    left.connect(&right, 1);
    right.connect(&other, 1);
    assert_eq!(right.receive(100), 0);
    assert_eq!(left.write(1, 8, left.keys().0, right.target(), 0), 0);
    assert_eq!(left.statuses(1), [(1, RETRIES_EXCEEDED)]);
    assert_eq!(right.poll().map(|c| c.wr_id), None);
}

#[test]
fn queues_hold_what_they_were_made_for() {
    let (left, right) = connected();
    for id in 0..4 {
        assert_eq!(right.receive(id), 0);
        assert_eq!(left.write(id, 8, left.keys().0, right.target(), SIGNALED), 0);
    }
    assert_eq!(left.write(4, 8, left.keys().0, right.target(), SIGNALED), libc::ENOMEM);
    assert_eq!(right.statuses(4), [(0, 0), (1, 0), (2, 0), (3, 0)]);
    // A place is free again when somebody has taken the completion.
    assert_eq!(left.statuses(1), [(0, 0)]);
    assert_eq!(
        (right.receive(5), left.write(5, 8, left.keys().0, right.target(), SIGNALED)),
        (0, 0)
    );
    for id in 6..9 {
        assert_eq!(right.receive(id), 0);
    }
    assert_eq!(left.write(6, 65, 0, right.target(), ffi::SEND_INLINE), libc::EINVAL);
}

#[test]
fn states_follow_one_another() {
    let (left, right) = (Side::new(0), Side::new(1));
    assert_eq!(left.write(1, 8, left.keys().0, right.target(), 0), libc::EINVAL);
    assert_eq!(left.modify(ffi::QPS_RTS, 0, 0, 1), libc::EINVAL);
    assert_eq!(left.modify(ffi::QPS_RTR, 0, right.number(), 1), libc::EINVAL, "no address");
    assert_eq!(left.modify(ffi::QPS_RTR, right.lid(), right.number(), 1), 0);
    assert_eq!(left.write(1, 8, left.keys().0, right.target(), 0), libc::EINVAL);
    assert_eq!(left.receive(7), 0);
    assert_eq!(left.modify(ffi::QPS_ERR, 0, 0, 0), 0);
    assert_eq!(left.statuses(1), [(7, ffi::WC_WR_FLUSH_ERR)]);
    assert_eq!(left.modify(ffi::QPS_RTS, 0, 0, 1), libc::EINVAL);
}

#[test]
fn an_event_comes_with_the_next_completion_once_it_was_asked_for() {
    let (left, right) = connected();
    let event = |side: &Side, wait_ms: c_int| {
        // SAFETY: the channel and its queue live; its descriptor does not block.
        unsafe {
            let fd = (*side.channel).fd;
            let mut ready = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            libc::poll(&mut ready, 1, wait_ms);
            let (mut queue, mut context): (_, *mut c_void) = (null_mut(), null_mut());
            let outcome = ibv_get_cq_event(side.channel, &mut queue, &mut context);
            if outcome == 0 {
                assert_eq!(queue, side.queue);
                ibv_ack_cq_events(queue, 1);
            }
            outcome == 0
        }
    };
    assert_eq!((right.receive(1), right.receive(2)), (0, 0));
    // SAFETY: the queue lives.
    assert_eq!(unsafe { ((*right.context).ops.req_notify_cq)(right.queue, 0) }, 0);
    for id in 1..=2 {
        assert_eq!(left.write(id, 8, left.keys().0, right.target(), SIGNALED), 0);
        assert_eq!(left.statuses(1), [(id, 0)]);
    }
    assert!(event(&right, PATIENCE.as_millis() as c_int));
    assert!(!event(&right, 0), "one event for both");
    assert_eq!(right.statuses(2), [(1, 0), (2, 0)]);
}

/// A memory file by the name that the stand-in for the CUDA driver gives.
fn memory_file(name: &str, len_bytes: u64) -> File {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the name ends with a zero, and the descriptor is nobody else's.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(len_bytes).unwrap();
    file
}

#[test]
fn memory_behind_a_descriptor_is_written_without_its_address() {
    let (mut left, right) = connected();
    left.memory.fill(5);
    let file = memory_file("ringtree-standin-0", 3 * 4096);
    // Nothing is mapped there.
    let address: u64 = (7 << 40) + 4096 + 300;
    let register = |offset, len, address, file: &File| {
        let (domain, descriptor) = (right.domain, file.as_raw_fd());
        // SAFETY: the domain lives.
        unsafe { ibv_reg_dmabuf_mr(domain, offset, len, address, descriptor, WRITE_ACCESS) }
    };
    assert!(register(301, LEN, address, &file).is_null(), "not at the same place of a page");
    assert!(register(4096 + 300, 2 * 4096, address, &file).is_null(), "beyond the end");
    let other = memory_file("other", 3 * 4096);
    assert!(register(4096 + 300, LEN, address, &other).is_null(), "no dma-buf");
    let region = register(4096 + 300, LEN, address, &file);
    assert!(!region.is_null());
    // SAFETY: the region lives.
    let key = unsafe { (*region).rkey };
    assert_eq!(right.receive(1), 0);
    assert_eq!(left.write(1, 600, left.keys().0, (address + 400, key), SIGNALED), 0);
    assert_eq!((left.statuses(1), right.statuses(1)), (vec![(1, 0)], vec![(1, 0)]));
    let mut bytes = vec![9; 3 * 4096];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let at = 4096 + 700;
    assert!(bytes[..at].iter().chain(&bytes[at + 600..]).all(|byte| *byte == 0));
    assert!(bytes[at..at + 600].iter().all(|byte| *byte == 5));
    // SAFETY: it is registered, and ends once.
    assert_eq!(unsafe { ibv_dereg_mr(region) }, 0);
    assert_eq!(right.receive(2), 0);
    assert_eq!(left.write(2, 600, left.keys().0, (address + 400, key), 0), 0);
    assert_eq!(left.statuses(1), [(2, REMOTE_ACCESS)]);
}

#[test]
fn memory_that_nobody_may_touch_has_no_address_to_register() {
    let side = Side::new(0);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    for protection in [libc::PROT_NONE, libc::PROT_READ] {
        // SAFETY: fresh pages anywhere, which are registered, if at all, only while they are there.
        unsafe {
            let pages = libc::mmap(null_mut(), 8192, protection, flags, -1, 0);
            assert_ne!(pages, libc::MAP_FAILED);
            assert!(ibv_reg_mr(side.domain, pages, 8192, WRITE_ACCESS).is_null());
            assert_eq!(*libc::__errno_location(), libc::EFAULT);
            libc::munmap(pages, 8192);
        }
    }
}
