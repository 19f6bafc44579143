//! A reliable connected queue pair with its completion queue and the channel that tells of completions.

use std::ffi::c_int;
use std::io;
use std::os::fd::RawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use super::device::Device;
use super::ffi::{self, WorkCompletion};
use super::queue::RECEIVE_ID;
use super::rails::{GidChoice, Rail};
use super::{RdmaConfig, RdmaError};

/// Work requests of a queue pair in each direction. A link never has more under way (`queue.rs`).
pub(super) const DEPTH: u32 = 256;

/// Bytes that a work request may carry itself. Drivers round it up; one that has none of it gives 0.
const INLINE_BYTES: u32 = 192;

/// The receiver answers "not ready" no sooner than after 0.64 ms again (InfiniBand's code for it).
const MIN_RNR_TIMER: u8 = 12;

/// Hops to a peer at most.
const HOP_LIMIT: u8 = 64;

/// Receives posted by one call.
pub(super) const RECEIVES_AT_ONCE: usize = 16;

/// What the other side must know of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) number: u32,
    /// Number of its first packet.
    pub(super) first_packet: u32,
    pub(super) gid: [u8; 16],
    pub(super) has_gid: bool,
    pub(super) lid: u16,
    pub(super) mtu: u8,
}

/// A write to remote memory.
pub(super) struct Write<'a> {
    /// Given back with its completion.
    pub(super) id: u64,
    /// What is written, in this order.
    pub(super) pieces: &'a mut [ffi::ScatterGather],
    pub(super) remote_address: u64,
    pub(super) remote_key: u32,
    /// Tells the peer, and uses one of its receives.
    pub(super) immediate: Option<u32>,
    /// A completion is wanted.
    pub(super) signalled: bool,
    /// The processor may read the pieces, as it does where the work request carries them itself: not those in memory
    /// of a GPU.
    pub(super) is_readable: bool,
}

/// A queue pair. Dropping it ends all that it does: its device reads and writes no memory for it after
/// that.
pub(super) struct QueuePair {
    device: Arc<Device>,
    pair: NonNull<ffi::QueuePair>,
    completions: NonNull<ffi::CompletionQueue>,
    channel: NonNull<ffi::CompletionChannel>,
    inline_bytes: u32,
    first_packet: u32,
}

// SAFETY: the calls of libibverbs may come from any thread; the owner makes them one at a time.
unsafe impl Send for QueuePair {}

impl std::fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QueuePair({} of {})", self.number(), self.device.name())
    }
}

impl QueuePair {
    /// A queue pair that is ready to be connected, with `first_packet` as the number of its first packet.
    pub(super) fn new(rail: &Rail, first_packet: u32) -> Result<QueuePair, RdmaError> {
        let device = &rail.device;
        let functions = device.functions();
        let most = device.limits().max_qp_wr;
        if (most.max(0) as u32) < DEPTH {
            let reason = format!("it takes {most} work requests a queue, and {DEPTH} are needed");
            return Err(device.failed("creating a queue pair", io::Error::other(reason)));
        }
        // SAFETY: the context is open.
        let channel = unsafe { (functions.create_comp_channel)(device.context()) };
        let failed = |what| device.failed(what, io::Error::last_os_error());
        let channel = NonNull::new(channel).ok_or_else(|| failed("ibv_create_comp_channel"))?;
        // SAFETY: as above; nobody else uses the channel.
        let completions = unsafe {
            let entries = 2 * DEPTH as c_int;
            (functions.create_cq)(device.context(), entries, null_mut(), channel.as_ptr(), 0)
        };
        let Some(completions) = NonNull::new(completions) else {
            let error = failed("ibv_create_cq");
            // SAFETY: it was made above, and nothing uses it.
            unsafe { (functions.destroy_comp_channel)(channel.as_ptr()) };
            return Err(error);
        };
        let pair = match create(device, completions) {
            Ok(pair) => pair,
            Err(error) => {
                // SAFETY: as above.
                unsafe {
                    (functions.destroy_cq)(completions.as_ptr());
                    (functions.destroy_comp_channel)(channel.as_ptr());
                }
                return Err(device.failed("ibv_create_qp", error));
            }
        };
        let (pair, inline_bytes) = pair;
        let made = QueuePair {
            device: device.clone(),
            pair,
            completions,
            channel,
            inline_bytes,
            first_packet: first_packet & 0x00ff_ffff,
        };
        made.set_non_blocking()?;
        made.modify(
            "ibv_modify_qp to INIT",
            ffi::QueuePairAttributes {
                qp_state: ffi::QPS_INIT,
                port_num: rail.port,
                qp_access_flags: ffi::ACCESS_REMOTE_WRITE as u32,
                ..Default::default()
            },
            ffi::QP_STATE | ffi::QP_PKEY_INDEX | ffi::QP_PORT | ffi::QP_ACCESS_FLAGS,
        )?;
        Ok(made)
    }

    /// What its peer must know, of a queue pair on this rail.
    pub(super) fn endpoint(&self, rail: &Rail) -> Endpoint {
        Endpoint {
            number: self.number(),
            first_packet: self.first_packet,
            gid: rail.gid.map_or([0; 16], |choice| choice.gid),
            has_gid: rail.gid.is_some(),
            lid: rail.lid,
            mtu: rail.mtu,
        }
    }

    /// Connects it to the peer's; receives must be posted before the peer sends.
    pub(super) fn connect(
        &self,
        rail: &Rail,
        peer: &Endpoint,
        config: &RdmaConfig,
    ) -> Result<(), RdmaError> {
        let mut ready = ffi::QueuePairAttributes {
            qp_state: ffi::QPS_RTR,
            path_mtu: u32::from(rail.mtu.min(peer.mtu)),
            dest_qp_num: peer.number,
            rq_psn: peer.first_packet,
            max_dest_rd_atomic: 0,
            min_rnr_timer: MIN_RNR_TIMER,
            ..Default::default()
        };
        ready.ah_attr = address(rail.is_ethernet, rail.port, rail.gid, peer, config);
        self.modify(
            "ibv_modify_qp to RTR",
            ready,
            ffi::QP_STATE
                | ffi::QP_AV
                | ffi::QP_PATH_MTU
                | ffi::QP_DEST_QPN
                | ffi::QP_RQ_PSN
                | ffi::QP_MAX_DEST_RD_ATOMIC
                | ffi::QP_MIN_RNR_TIMER,
        )?;
        self.modify(
            "ibv_modify_qp to RTS",
            ffi::QueuePairAttributes {
                qp_state: ffi::QPS_RTS,
                sq_psn: self.first_packet,
                timeout: config.timeout,
                retry_cnt: config.retries,
                rnr_retry: config.not_ready_retries,
                max_rd_atomic: 0,
                ..Default::default()
            },
            ffi::QP_STATE
                | ffi::QP_SQ_PSN
                | ffi::QP_TIMEOUT
                | ffi::QP_RETRY_CNT
                | ffi::QP_RNR_RETRY
                | ffi::QP_MAX_QP_RD_ATOMIC,
        )
    }

    /// Ends it: whatever is under way is flushed, and the peer writes nothing more by it.
    pub(super) fn end(&self) -> Result<(), RdmaError> {
        let attributes = ffi::QueuePairAttributes { qp_state: ffi::QPS_ERR, ..Default::default() };
        let ended = self.modify("ibv_modify_qp to ERR", attributes, ffi::QP_STATE);
        ended.inspect_err(|error| tracing::debug!("{error}"))
    }

    fn modify(
        &self,
        what: &'static str,
        mut attributes: ffi::QueuePairAttributes,
        mask: c_int,
    ) -> Result<(), RdmaError> {
        let functions = self.device.functions();
        // SAFETY: the queue pair lives, and the structure is whole.
        match unsafe { (functions.modify_qp)(self.pair.as_ptr(), &mut attributes, mask) } {
            0 => Ok(()),
            error => Err(self.device.failed(what, io::Error::from_raw_os_error(error))),
        }
    }

    /// Its number at the device.
    pub(super) fn number(&self) -> u32 {
        // SAFETY: the queue pair lives, and its number stays as it is.
        unsafe { (*self.pair.as_ptr()).qp_num }
    }

    /// Posts a write.
    ///
    /// # Safety
    /// The pieces must lie in memory that is registered with the queue pair's device by the keys that they
    /// name, and stay unchanged until the write is complete, or the queue pair dropped; if all together are
    /// at most `inline_bytes` and readable, until this returns.
    pub(super) unsafe fn write(&mut self, write: Write<'_>) -> io::Result<()> {
        let bytes: u64 = write.pieces.iter().map(|piece| u64::from(piece.length)).sum();
        let is_inline = write.is_readable && bytes <= u64::from(self.inline_bytes);
        let mut request = ffi::SendRequest {
            wr_id: write.id,
            next: null_mut(),
            sg_list: write.pieces.as_mut_ptr(),
            num_sge: write.pieces.len() as c_int,
            opcode: match write.immediate {
                Some(_) => ffi::WR_RDMA_WRITE_WITH_IMM,
                None => ffi::WR_RDMA_WRITE,
            },
            send_flags: if write.signalled { ffi::SEND_SIGNALED } else { 0 }
                | if is_inline { ffi::SEND_INLINE } else { 0 },
            imm_data: write.immediate.unwrap_or(0).to_be(),
            remote_addr: write.remote_address,
            rkey: write.remote_key,
            unused_of_atomic: [0; 2],
            unused_of_xrc: 0,
            unused_of_bind_and_tso: [0; 6],
        };
        let mut refused = null_mut();
        // SAFETY: the queue pair lives; the request is whole, and the caller vouches for its memory.
        let outcome = unsafe {
            ((*self.device.context()).ops.post_send)(self.pair.as_ptr(), &mut request, &mut refused)
        };
        result(outcome)
    }

    /// Posts receives without memory, at most [`RECEIVES_AT_ONCE`]: a write that tells of itself uses one.
    pub(super) fn post_receives(&mut self, count: usize) -> io::Result<()> {
        let mut requests: [ffi::ReceiveRequest; RECEIVES_AT_ONCE] =
            std::array::from_fn(|_| ffi::ReceiveRequest {
                wr_id: RECEIVE_ID,
                next: null_mut(),
                sg_list: null_mut(),
                num_sge: 0,
            });
        let requests = &mut requests[..count];
        for at in 1..count {
            let next: *mut ffi::ReceiveRequest = &mut requests[at];
            requests[at - 1].next = next;
        }
        let Some(first) = requests.first_mut() else { return Ok(()) };
        let first: *mut ffi::ReceiveRequest = first;
        let mut refused = null_mut();
        // SAFETY: the queue pair lives, and the chain is whole.
        let outcome = unsafe {
            ((*self.device.context()).ops.post_recv)(self.pair.as_ptr(), first, &mut refused)
        };
        result(outcome)
    }

    /// Takes completions; returns how many.
    pub(super) fn poll(&mut self, into: &mut [WorkCompletion]) -> io::Result<usize> {
        // SAFETY: the completion queue lives, and `into` has room for so many.
        let count = unsafe {
            ((*self.device.context()).ops.poll_cq)(
                self.completions.as_ptr(),
                into.len() as c_int,
                into.as_mut_ptr(),
            )
        };
        usize::try_from(count).map_err(|_| io::Error::other("ibv_poll_cq failed"))
    }

    /// Asks for an event with the next completion; whoever sleeps then must look once more before.
    pub(super) fn arm(&mut self) {
        // SAFETY: the completion queue lives.
        unsafe { ((*self.device.context()).ops.req_notify_cq)(self.completions.as_ptr(), 0) };
    }

    /// Takes the events that have come, so that the descriptor is silent.
    pub(super) fn take_events(&mut self) {
        let functions = self.device.functions();
        let (mut queue, mut context) = (null_mut(), null_mut());
        // SAFETY: the channel lives and does not block; its only queue is this one's.
        unsafe {
            while (functions.get_cq_event)(self.channel.as_ptr(), &mut queue, &mut context) == 0 {
                (functions.ack_cq_events)(queue, 1);
            }
        }
    }

    /// Becomes readable with the next completion after [`QueuePair::arm`].
    pub(super) fn descriptor(&self) -> RawFd {
        // SAFETY: the channel lives, and its descriptor stays as it is.
        unsafe { (*self.channel.as_ptr()).fd }
    }

    fn set_non_blocking(&self) -> Result<(), RdmaError> {
        let fd = self.descriptor();
        // SAFETY: the descriptor is open; no memory is touched.
        let outcome = unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFL);
            libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK)
        };
        match outcome {
            0 => Ok(()),
            _ => Err(self.device.failed("fcntl", io::Error::last_os_error())),
        }
    }
}

/// How packets get from a port to the peer: by its global address on Ethernet and into other subnets of
/// InfiniBand, by its local one inside a subnet.
fn address(
    is_ethernet: bool,
    port: u8,
    gid: Option<GidChoice>,
    peer: &Endpoint,
    config: &RdmaConfig,
) -> ffi::AddressHandle {
    let mut address = ffi::AddressHandle {
        port_num: port,
        sl: config.service_level,
        dlid: if is_ethernet { 0 } else { peer.lid },
        ..Default::default()
    };
    let needs_global = |own: &GidChoice| is_ethernet || own.gid[..8] != peer.gid[..8];
    if let Some(own) = gid.filter(|own| peer.has_gid && needs_global(own)) {
        address.is_global = 1;
        address.grh = ffi::GlobalRoute {
            dgid: ffi::Gid { raw: peer.gid },
            flow_label: 0,
            sgid_index: own.index,
            hop_limit: HOP_LIMIT,
            traffic_class: config.traffic_class,
        };
    }
    address
}

fn create(
    device: &Device,
    completions: NonNull<ffi::CompletionQueue>,
) -> io::Result<(NonNull<ffi::QueuePair>, u32)> {
    let mut outcome = Err(io::Error::other("not tried"));
    // Some devices carry nothing in a work request.
    for max_inline_data in [INLINE_BYTES, 0] {
        let mut init = ffi::QueuePairInit {
            qp_context: null_mut(),
            send_cq: completions.as_ptr(),
            recv_cq: completions.as_ptr(),
            srq: null_mut(),
            cap: ffi::QueuePairCapacity {
                max_send_wr: DEPTH,
                max_recv_wr: DEPTH,
                max_send_sge: 2,
                max_recv_sge: 1,
                max_inline_data,
            },
            qp_type: ffi::QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: the protection domain and the completion queue live.
        let pair = unsafe { (device.functions().create_qp)(device.domain(), &mut init) };
        match NonNull::new(pair) {
            Some(pair) => return Ok((pair, init.cap.max_inline_data)),
            None => outcome = Err(io::Error::last_os_error()),
        }
    }
    outcome
}

fn result(outcome: c_int) -> io::Result<()> {
    match outcome {
        0 => Ok(()),
        // Some drivers give the error's number negated, and some -1.
        -1 => Err(io::Error::last_os_error()),
        error => Err(io::Error::from_raw_os_error(error.abs())),
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.take_events();
        let functions = self.device.functions();
        // SAFETY: this is the only owner of all three; events are acknowledged.
        unsafe {
            (functions.destroy_qp)(self.pair.as_ptr());
            (functions.destroy_cq)(self.completions.as_ptr());
            (functions.destroy_comp_channel)(self.channel.as_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(subnet: u8, interface: u8) -> [u8; 16] {
        let mut gid = [0; 16];
        (gid[7], gid[15]) = (subnet, interface);
        gid
    }

    fn peer(subnet: u8) -> Endpoint {
        let (number, first_packet, lid, mtu) = (1, 2, 0x77, 5);
        Endpoint { number, first_packet, gid: gid(subnet, 9), has_gid: true, lid, mtu }
    }

    fn to(is_ethernet: bool, peer: &Endpoint) -> ffi::AddressHandle {
        let config = RdmaConfig { service_level: 3, traffic_class: 106, ..RdmaConfig::default() };
        let own = GidChoice { index: 4, gid: gid(1, 8) };
        address(is_ethernet, 2, Some(own), peer, &config)
    }

    #[test]
    fn a_peer_of_the_same_infiniband_subnet_is_reached_by_its_local_address_alone() {
        let address = to(false, &peer(1));
        assert_eq!(
            (address.dlid, address.is_global, address.port_num, address.sl),
            (0x77, 0, 2, 3)
        );
    }

    #[test]
    fn a_peer_of_another_subnet_is_reached_by_its_global_address_too() {
        let address = to(false, &peer(2));
        assert_eq!((address.dlid, address.is_global), (0x77, 1));
        assert_eq!(address.grh.dgid.raw, gid(2, 9));
        assert_eq!((address.grh.sgid_index, address.grh.hop_limit), (4, HOP_LIMIT));
        assert_eq!(address.grh.traffic_class, 106);
        let nameless = Endpoint { has_gid: false, ..peer(2) };
        assert_eq!(to(false, &nameless).is_global, 0);
    }

    #[test]
    fn on_ethernet_there_are_only_global_addresses() {
        let address = to(true, &peer(1));
        assert_eq!((address.dlid, address.is_global), (0, 1));
    }
}
