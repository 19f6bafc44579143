//! A connection to one peer: what every transport offers to the executor.
//!
//! All calls return at once. A link carries independent *channels*; on each, messages arrive in
//! the order in which they were posted. A message travels as slices (frames): the sender's side
//! decides where they end, and it changes no bit. A slice leaves only against a credit of its
//! channel, so that a channel that nobody reads never stops another one. The link's slots are one
//! fixed budget that the channels in use divide ([`Link::divide`]).
//!
//! That the peer has left shows as [`LinkError::Closed`] once everything that it sent was taken:
//! from the call that looks for more, or from [`Link::poll`]. It is for the caller to know whether
//! it still wanted something.
//!
//! After [`Link::with_checksums`], each frame carries checksums, and a call that would show one that they do
//! not fit returns [`LinkError::Corrupt`] instead, again and again. Everything goes by frames then: nothing is
//! lent, offered or read in place by the peer's process or GPU, since no frame's checksum would speak of it.
//!
//! The set of transports is closed, so that the inner loop is a match and not a virtual call.

mod devices;

use std::os::fd::RawFd;
use std::sync::Arc;

use crate::checksum::Damage;
use crate::memory::{Registration, SharedMemory};
use crate::{rdma, shm, sim, tcp};

/// Number of a channel on a link: a lane of a collective, or [`POINT_TO_POINT`].
pub type Channel = usize;

/// Lanes that a communicator may have in flight at once: channels `0 .. MAX_LANES`. Sixteen, since
/// trees need twice their depth to pipeline and 64 ranks have depth 6.
pub const MAX_LANES: usize = 16;

/// The channel of send and receive, apart from the lanes of collectives.
pub const POINT_TO_POINT: Channel = MAX_LANES;

/// No link lends or takes less in place: naming a range, and waiting until the peer has read it, costs
/// more than copying.
pub const LEAST_IN_PLACE_BYTES: usize = 16 << 10;

/// Channels of a link.
pub const CHANNELS: usize = MAX_LANES + 1;

/// What every frame says about the operation that it belongs to. A frame with another tag than
/// the receiver's means that the ranks called different things: it is looked at, never consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Tag {
    /// Number of the operation in its communicator (point to point: on its channel), wrapping.
    pub sequence: u32,
    /// Digest of the call: collective, count, type, operation, root, algorithm.
    pub digest: u32,
}

/// The oldest slice that has arrived on a channel and is not released yet.
///
/// `data` points to `len` readable bytes until the slice is released or the link is dropped.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// First byte that is not released.
    pub data: *const u8,
    /// Bytes from there to the end of the slice; 0 for an empty message.
    pub len: usize,
    /// The slice is its message's last.
    pub last: bool,
    /// Which operation it belongs to.
    pub tag: Tag,
    /// Whose memory `data` is an address of.
    pub home: Home,
}

/// In whose memory an arrival is. The host must not touch that of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// This host's.
    Host,
    /// A GPU of the peer's, which lends it. Only after [`Link::use_device`].
    PeerGpu,
    /// A GPU of this rank's, where room was offered for it by [`Link::offer_device`].
    OwnGpu,
}

impl Arrival {
    /// Copies what `room` bytes hold of it, if it is of operation `tag`. Returns how many bytes that are, and
    /// whether its message has ended with them; `None` where nothing of it may be consumed.
    ///
    /// # Safety
    /// It is not released, and `into .. into + room` must be writable; that may be where it lies already, as
    /// what was offered for it.
    #[inline]
    pub(crate) unsafe fn copy_to(
        &self,
        tag: Tag,
        into: *mut u8,
        room: usize,
    ) -> Option<(usize, bool)> {
        if self.tag != tag || (room == 0 && self.len > 0) {
            return None;
        }
        let part = self.len.min(room);
        // SAFETY: the arrival has `part` bytes, and the caller promises room for them.
        unsafe { std::ptr::copy(self.data, into, part) };
        Some((part, self.last && part == self.len))
    }
}

/// Room for one slice in the peer's slots.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// First writable byte, aligned to 64.
    pub data: *mut u8,
    /// Writable bytes.
    pub len: usize,
}

/// A mapping that a link's slots lie in.
#[derive(Clone, Debug)]
pub struct SlotMemory {
    /// The mapping.
    pub mapping: Arc<SharedMemory>,
    /// Whether this process writes there.
    pub is_writable: bool,
}

/// Which transport made a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// Shared memory of one host.
    Shm,
    /// TCP sockets.
    Tcp,
    /// InfiniBand or RoCE.
    Rdma,
    /// Simulation on virtual time.
    Sim,
}

impl std::fmt::Display for TransportKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TransportKind::Shm => "shm",
            TransportKind::Tcp => "tcp",
            TransportKind::Rdma => "rdma",
            TransportKind::Sim => "sim",
        })
    }
}

/// Why a link ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The peer closed its side, or its process ended.
    #[error("rank {peer} closed the {transport} link")]
    Closed {
        /// The peer.
        peer: u32,
        /// By which transport it was reached.
        transport: TransportKind,
    },
    /// The operating system reported an error.
    #[error("the {transport} link to rank {peer} failed: {reason}")]
    Failed {
        /// The peer.
        peer: u32,
        /// By which transport it was reached.
        transport: TransportKind,
        /// What the system said.
        reason: String,
    },
    /// The peer sent something that no correct peer sends.
    #[error("rank {peer} broke the {transport} link's protocol: {reason}")]
    Protocol {
        /// The peer.
        peer: u32,
        /// By which transport it was reached.
        transport: TransportKind,
        /// What was wrong.
        reason: String,
    },
    /// What came is not what the peer sent: its checksum says so.
    #[error(
        "what rank {peer} sent over {transport} was changed on its way: the checksum does not fit {damage}; \
         test the memory of both hosts and what is between them (ringtree doctor --probe)"
    )]
    Corrupt {
        /// The peer.
        peer: u32,
        /// By which transport it was reached.
        transport: TransportKind,
        /// What was changed.
        damage: Damage,
    },
    /// What came is not what the peer encrypted.
    #[error(
        "what rank {peer} encrypted was altered, repeated, left out or put in another order on its way over \
         {transport}: {damage} cannot be decrypted; find out who or what changes the connections between \
         the two hosts"
    )]
    Tampered {
        /// The peer.
        peer: u32,
        /// By which transport it was reached.
        transport: TransportKind,
        /// What cannot be decrypted.
        damage: Damage,
    },
}

impl LinkError {
    /// The rank at the other end.
    pub fn peer(&self) -> u32 {
        match self {
            LinkError::Closed { peer, .. }
            | LinkError::Failed { peer, .. }
            | LinkError::Corrupt { peer, .. }
            | LinkError::Tampered { peer, .. }
            | LinkError::Protocol { peer, .. } => *peer,
        }
    }
}

/// A connection to one peer.
#[derive(Debug)]
pub enum Link {
    /// Shared memory.
    Shm(shm::ShmLink),
    /// TCP.
    Tcp(tcp::TcpLink),
    /// InfiniBand or RoCE.
    Rdma(Box<rdma::RdmaLink>),
    /// Simulation.
    Sim(sim::SimLink),
}

/// Passes a call on to the transport.
macro_rules! each {
    ($link:expr, $l:ident => $call:expr) => {
        match $link {
            Link::Shm($l) => $call,
            Link::Tcp($l) => $call,
            Link::Rdma($l) => $call,
            Link::Sim($l) => $call,
        }
    };
}

impl Link {
    /// The rank at the other end.
    pub fn peer(&self) -> u32 {
        each!(self, l => l.peer())
    }

    /// The transport that made the link.
    pub fn kind(&self) -> TransportKind {
        match self {
            Link::Shm(_) => TransportKind::Shm,
            Link::Tcp(_) => TransportKind::Tcp,
            Link::Rdma(_) => TransportKind::Rdma,
            Link::Sim(_) => TransportKind::Sim,
        }
    }

    /// The link with checksums in all its frames from now on. Before anything was posted or has been taken in, and
    /// on both sides or on none.
    #[must_use]
    pub fn with_checksums(mut self) -> Link {
        each!(&mut self, l => l.check_frames());
        self
    }

    /// Divides the slots among `lanes` lanes from now on. Slices that are under way keep theirs
    /// until they are consumed.
    pub fn divide(&mut self, lanes: usize) {
        each!(self, l => l.divide(lanes))
    }

    /// Says whether it would be good to lend and offer ordinary memory of this side to another process from
    /// now on, which reaches it through the kernel; a link that knows a faster way does not.
    #[inline]
    pub fn attach(&mut self, attaches: bool) {
        if let Link::Shm(link) = self {
            link.attach(attaches);
        }
    }

    /// Posts bytes on a channel, as the continuation of the channel's open message; `last` ends
    /// the message. As much as credits allow leaves at once, the rest when [`Link::poll`] finds
    /// credits. Never blocks. An empty message (`len == 0`, `last`) is one empty frame.
    ///
    /// # Safety
    /// `data .. data + len` must stay readable and unchanged until [`Link::sent_bytes`] of the
    /// channel has passed the value that [`Link::posted_bytes`] has after this call, or the link
    /// is dropped.
    #[inline]
    pub unsafe fn post(
        &mut self,
        channel: Channel,
        tag: Tag,
        data: *const u8,
        len: usize,
        last: bool,
    ) -> Result<(), LinkError> {
        // SAFETY: the caller's promise is passed on.
        each!(self, l => unsafe { l.post(channel, tag, data, len, last) })
    }

    /// Lets ranges of a memory be lent, where the transport can: see [`Link::lend`].
    pub fn share(&mut self, registration: &Arc<Registration>) {
        match self {
            Link::Shm(link) => link.share(registration),
            Link::Rdma(link) => link.share(registration),
            Link::Tcp(_) | Link::Sim(_) => {}
        }
    }

    /// Whether [`Link::lend`] may lend this range on a channel. Where that would have the sender wait for
    /// the receiver, on [`POINT_TO_POINT`] only what the slots do not hold, since the receiver may come much
    /// later.
    #[inline]
    pub fn lends(&self, channel: Channel, data: *const u8, len: usize) -> bool {
        match self {
            Link::Shm(link) => link.lends(channel, data, len),
            Link::Rdma(link) => link.lends(data, len),
            Link::Tcp(_) | Link::Sim(_) => false,
        }
    }

    /// As [`Link::post`], where the range is read in place, by the peer or by a device: it counts as sent
    /// when that is done with it. Returns false, and sends nothing, where that cannot be done now.
    ///
    /// # Safety
    /// As [`Link::post`].
    pub unsafe fn lend(
        &mut self,
        channel: Channel,
        tag: Tag,
        data: *const u8,
        len: usize,
        last: bool,
    ) -> Result<bool, LinkError> {
        match self {
            Link::Shm(link) => link.lend(channel, tag, data, len, last),
            // SAFETY: the caller's promise is passed on.
            Link::Rdma(link) => unsafe { link.post(channel, tag, data, len, last) }.map(|()| true),
            Link::Tcp(_) | Link::Sim(_) => Ok(false),
        }
    }

    /// Lets the peer write a message that is yet to come straight to where it is wanted: the one
    /// that `ahead` others come before on this channel, of operation `tag`. Whether it does, shows
    /// when the message arrives: then [`Link::arrival`] gives the address `into`, and all of it.
    /// Transports that cannot do that do nothing.
    ///
    /// # Safety
    /// `into .. into + len` must be writable, and nobody may read or write it, until the message
    /// has been released or the link is dropped. `len` is the message's length.
    #[inline]
    pub unsafe fn offer(
        &mut self,
        channel: Channel,
        tag: Tag,
        ahead: u32,
        into: *mut u8,
        len: usize,
    ) -> Result<(), LinkError> {
        match self {
            // SAFETY: the caller's promise is passed on.
            Link::Shm(link) => unsafe { link.offer(channel, tag, ahead, into, len) },
            // SAFETY: likewise.
            Link::Rdma(link) => unsafe { link.offer(channel, tag, ahead, into, len) },
            Link::Tcp(_) | Link::Sim(_) => Ok(()),
        }
    }

    /// Whether it is good to make offers a round ahead: where they take a while to the peer, which would have
    /// sent by then what could have gone straight to its place.
    #[inline]
    pub fn offers_ahead(&self) -> bool {
        matches!(self, Link::Rdma(_))
    }

    /// Whether the next message of a channel, of operation `tag` and `len` bytes, goes to room that
    /// the peer has offered for it: then [`Link::reserve`] gives that room where it is mapped, and
    /// [`Link::post`] writes there. To be asked before its first byte is sent.
    #[inline]
    pub fn takes_offer(
        &mut self,
        channel: Channel,
        tag: Tag,
        len: usize,
    ) -> Result<bool, LinkError> {
        match self {
            Link::Shm(link) => link.takes_offer(channel, tag, len),
            Link::Rdma(link) => Ok(link.takes_offer(channel, tag, len)),
            Link::Tcp(_) | Link::Sim(_) => Ok(false),
        }
    }

    /// Whether the message in hand goes to room that the peer has offered.
    #[inline]
    pub fn is_direct(&self, channel: Channel) -> bool {
        match self {
            Link::Shm(link) => link.is_direct(channel),
            Link::Rdma(link) => link.is_direct(channel),
            Link::Tcp(_) | Link::Sim(_) => false,
        }
    }

    /// What was reserved and not committed will not be written: the operation has failed.
    pub fn cancel_reserved(&mut self) {
        if let Link::Shm(link) = self {
            link.cancel_reserved();
        }
    }

    /// Withdraws what this side has lent and offered, before the link is dropped: with several
    /// links, so that none waits for a peer that waits for another one.
    pub fn withdraw(&mut self) {
        match self {
            Link::Shm(link) => link.withdraw(),
            Link::Rdma(link) => link.withdraw(),
            Link::Tcp(_) | Link::Sim(_) => {}
        }
    }

    /// Payload bytes ever posted or committed on a channel.
    #[inline]
    pub fn posted_bytes(&self, channel: Channel) -> u64 {
        each!(self, l => l.posted_bytes(channel))
    }

    /// Payload bytes of a channel that the link no longer reads from the caller's memory, counted
    /// from the beginning of the link. Reaches [`Link::posted_bytes`] when everything has left.
    #[inline]
    pub fn sent_bytes(&self, channel: Channel) -> u64 {
        each!(self, l => l.sent_bytes(channel))
    }

    /// Payload bytes that have ever come on a channel in whole frames, released or not, where the link can tell: over TCP.
    #[inline]
    pub fn arrived_bytes(&self, channel: Channel) -> Option<u64> {
        match self {
            Link::Tcp(link) => Some(link.arrived_bytes(channel)),
            Link::Shm(_) | Link::Rdma(_) | Link::Sim(_) => None,
        }
    }

    /// Whether something posted on a channel has not left: bytes, or an empty message, which
    /// [`Link::sent_bytes`] does not tell of. It leaves in a later [`Link::poll`], so a caller that
    /// would stop polling must wait for it.
    #[inline]
    pub fn is_waiting(&self, channel: Channel) -> bool {
        each!(self, l => l.is_waiting(channel))
    }

    /// Room for one slice of the channel's open message, written in place by the caller and sent
    /// by [`Link::commit`], for `wanted` bytes if a slot has so many. `None`: no credit, something posted
    /// is still waiting on this channel, or this transport sends only from the caller's memory, or does so
    /// now because it knows a faster way to write. Reserving and not committing is
    /// allowed, and reserving again gives the same room, or all of the slot that it is in.
    #[inline]
    pub fn reserve(&mut self, channel: Channel, wanted: usize) -> Option<Slot> {
        each!(self, l => l.reserve(channel, wanted))
    }

    /// Sends the first `len` bytes of the slot that [`Link::reserve`] gave on this channel.
    #[inline]
    pub fn commit(
        &mut self,
        channel: Channel,
        tag: Tag,
        len: usize,
        last: bool,
    ) -> Result<(), LinkError> {
        each!(self, l => l.commit(channel, tag, len, last))
    }

    /// The oldest slice on a channel that is not released, if one is there.
    #[inline]
    pub fn arrival(&mut self, channel: Channel) -> Result<Option<Arrival>, LinkError> {
        each!(self, l => l.arrival(channel))
    }

    /// Releases the first `len` bytes of the arrival; all of them (or 0 of an empty one) give the
    /// slot and its credit back.
    #[inline]
    pub fn release(&mut self, channel: Channel, len: usize) -> Result<(), LinkError> {
        each!(self, l => l.release(channel, len))
    }

    /// Whether [`Link::receive`] spares a copy, so that it is worth calling instead of
    /// [`Link::arrival`] where the bytes are only wanted in one place.
    #[inline]
    pub fn receives_directly(&mut self, channel: Channel) -> bool {
        match self {
            Link::Shm(link) => link.receives_directly(channel),
            Link::Tcp(_) => true,
            Link::Rdma(_) | Link::Sim(_) => false,
        }
    }

    /// Receives what is there of the channel's oldest message straight into `into`, at most `len`
    /// bytes and never past the end of the message. Returns the number of bytes, and whether the
    /// message has ended with them. Bytes of a message whose tag is not `tag` are never written:
    /// such a frame is left for [`Link::arrival`] to show, and 0 is returned.
    ///
    /// # Safety
    /// `into .. into + len` must be writable.
    #[inline]
    pub unsafe fn receive(
        &mut self,
        channel: Channel,
        tag: Tag,
        into: *mut u8,
        len: usize,
    ) -> Result<(usize, bool), LinkError> {
        // SAFETY: the caller's promise is passed on.
        each!(self, l => unsafe { l.receive(channel, tag, into, len) })
    }

    /// Moves what can be moved: sends what is posted as far as credits go, takes in what has come.
    /// Returns whether anything moved. `now_ns` is the time on the clock that the executor uses.
    #[inline]
    pub fn poll(&mut self, now_ns: u64) -> Result<bool, LinkError> {
        each!(self, l => l.poll(now_ns))
    }

    /// Whether [`Link::poll`] has nothing to do but to take in what has come: nothing posted waits,
    /// and the peer is owed nothing. Who waits for nothing from this peer need not poll then,
    /// except before it sleeps.
    #[inline]
    pub fn is_idle(&self) -> bool {
        each!(self, l => l.is_idle())
    }

    /// Whether the peer reads this rank's [`Board`](crate::shm::Board), and the reverse.
    #[inline]
    pub fn shares_board(&self) -> bool {
        matches!(self, Link::Shm(_))
    }

    /// Tells the peer, if it shares the board, that something was published there.
    #[inline]
    pub fn announce(&self) {
        if let Link::Shm(link) = self {
            link.announce();
        }
    }

    /// What the peer has published for an exchange, if it has. Its bytes stay until this rank
    /// publishes for the next one.
    #[inline]
    pub fn published(&self, number: u32) -> Result<Option<Arrival>, LinkError> {
        match self {
            Link::Shm(link) => link.published(number),
            Link::Tcp(_) | Link::Rdma(_) | Link::Sim(_) => Ok(None),
        }
    }

    /// The descriptors to wait on before the next [`Link::poll`], and whether to wait for
    /// writability too. Where there are none, the peer rings the endpoint's bell instead, once
    /// [`Link::set_parked`] has told it to.
    pub fn descriptors(&self) -> impl Iterator<Item = (RawFd, bool)> + '_ {
        let (one, sockets, queues) = match self {
            Link::Shm(link) => (link.descriptor(), None, None),
            Link::Tcp(link) => (None, Some(link.descriptors()), None),
            Link::Rdma(link) => (None, None, Some(link.descriptors())),
            Link::Sim(_) => (None, None, None),
        };
        let several = sockets.into_iter().flatten().chain(queues.into_iter().flatten());
        one.into_iter().chain(several)
    }

    /// How soon [`Link::poll`] must be called although no descriptor tells: something is due by time.
    pub(crate) fn must_be_polled_within(&self) -> Option<std::time::Duration> {
        match self {
            Link::Rdma(link) => link.must_be_polled_within(),
            Link::Shm(_) | Link::Tcp(_) | Link::Sim(_) => None,
        }
    }

    /// Tells the peer whether this side sleeps and must be woken by its bell.
    pub fn set_parked(&mut self, parked: bool) {
        each!(self, l => l.set_parked(parked))
    }

    /// The process at the other end, where it is one of this host and the kernel says so.
    pub fn peer_process(&self) -> Option<u32> {
        match self {
            Link::Shm(link) => link.peer_process(),
            Link::Tcp(_) | Link::Rdma(_) | Link::Sim(_) => None,
        }
    }

    /// Where its slots lie, as long as it lives: what [`Link::reserve`] gives, and what [`Link::arrival`] shows unless
    /// it is of a loan.
    pub fn slot_memory(&self) -> Vec<SlotMemory> {
        match self {
            Link::Shm(link) => link.slot_memory(),
            Link::Rdma(link) => link.slot_memory(),
            // Its slots come and go.
            Link::Tcp(_) | Link::Sim(_) => Vec::new(),
        }
    }

    /// What a link over RDMA has done.
    pub fn rdma_counters(&self) -> Option<rdma::Counters> {
        match self {
            Link::Rdma(link) => Some(link.counters()),
            _ => None,
        }
    }

    /// Whether each side reaches the other's ordinary memory, which needs no copy through slots then.
    pub fn reaches_memory(&self) -> bool {
        matches!(self, Link::Shm(link) if link.reaches_memory())
    }

    /// Says goodbye and gives everything back; waits at most until `deadline` for what is posted or
    /// under way to reach the peer's kernel or memory. A peer that reads on gets everything that
    /// was sent, then [`LinkError::Closed`].
    pub fn close(self, deadline: std::time::Instant) {
        each!(self, l => l.close(deadline))
    }
}
