//! A shared-memory link: one ring of lines a channel and direction, and a pool of slots.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence, fence};
use std::time::Instant;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use super::direct::MOST_UNAWAITED_BYTES;
use super::layout::{AWAKE, Half, LINES, PARKED, PARKED_FOR_ROOM, SLOT_BYTES, SLOTS};
use super::lending::{self, Borrower, Lender, Socket};
use super::reach::{Attach, Attachable, Reach};
use super::receive::ReceiveChannel;
use super::ring::{Reader, Writer};
use super::send::{CHECKED_INLINE_BYTES, INLINE_BYTES, NONE, Posted, SendChannel};
use super::slots::{Room, SlotPool};
use super::writer::{SlotWriter, Way};
use crate::checksum::{self, Damage};
use crate::cuda::{DeviceAddress, Probe};
use crate::memory::{Registration, SharedMemory};
use crate::process::PidFd;
use crate::{
    CHANNELS, Channel, LinkError, MAX_LANES, POINT_TO_POINT, Slot, SlotMemory, Tag, TransportKind,
};

/// Slots kept for send and receive; the lanes divide the others.
pub(super) const POINT_TO_POINT_SLOTS: usize = 4;

/// Most slots of one lane: more would push the data out of the cache before the peer reads it.
const MOST_SLOTS_PER_LANE: usize = 8;

/// Operations that may use cross-memory attach until one uses slots, to see what they take now.
const MOST_ATTACHED_OPERATIONS: u32 = 64;

/// The memory of a link.
pub(super) struct Halves {
    pub(super) mine: Arc<SharedMemory>,
    pub(super) theirs: Arc<SharedMemory>,
    /// What the peer publishes for all.
    pub(super) board: SharedMemory,
}

/// A link over shared memory.
#[derive(Debug)]
pub struct ShmLink {
    pub(super) peer: u32,
    /// Wakes a sleeping peer, and ends when its process ends.
    pub(super) socket: UnixStream,
    pub(super) mine: Arc<SharedMemory>,
    pub(super) theirs: Arc<SharedMemory>,
    /// What the peer publishes for all.
    pub(super) board: SharedMemory,
    pub(super) sends: Box<[SendChannel]>,
    pub(super) receives: Box<[ReceiveChannel]>,
    /// Frames carry checksums.
    pub(super) checks: bool,
    /// Payload bytes that a line carries itself.
    inline_bytes: usize,
    slots: SlotPool,
    writer: SlotWriter,
    lane_slots: usize,
    /// How many lanes the slots are divided for.
    lanes: usize,
    /// The channels on which something posted waits.
    pub(super) waiting: u32,
    /// The channels on which the peer has not given back everything that was lent.
    lending: u32,
    pub(super) lender: Lender,
    pub(super) borrower: Box<Borrower>,
    /// How each side reaches the other's ordinary memory: both or neither can.
    pub(super) reach: Reach,
    pub(super) attachable: Attachable,
    attach: Attach,
    /// Whether ordinary memory is lent and offered in the operation in hand.
    pub(super) attaches: bool,
    /// Operations in a row that may have used cross-memory attach.
    attached_operations: u32,
    /// The operation in hand reads what is lent of GPUs' memory by a GPU; else it is copied to the host.
    pub(super) takes_device_loans: bool,
    /// The peer's process, where it is another one that this one may end.
    pub(super) process: Option<PidFd>,
    /// Publishing needs a fence before it looks whether the peer sleeps, since one side's kernel
    /// has no `membarrier` that would spare it.
    pub(super) fenced: bool,
    socket_ended: bool,
}

// SAFETY: the raw pointers inside point into the two mappings, which move with the link; the link
// is used by one thread at a time.
unsafe impl Send for ShmLink {}

impl ShmLink {
    /// Where slots and lines lie: this side writes its own half, and reads the peer's.
    pub(crate) fn slot_memory(&self) -> Vec<SlotMemory> {
        let memory = |half: &Arc<SharedMemory>, is_writable| SlotMemory {
            mapping: half.clone(),
            is_writable,
        };
        vec![memory(&self.mine, true), memory(&self.theirs, false)]
    }

    /// A link over memory that both sides have mapped.
    pub(super) fn new(
        peer: u32,
        socket: UnixStream,
        Halves { mine, theirs, board }: Halves,
        fenced: bool,
        reach: Reach,
        attach: Attach,
        process: Option<PidFd>,
    ) -> ShmLink {
        let (ours, other) = (mine.start().cast::<Half>(), theirs.start().cast::<Half>());
        let sends = (0..CHANNELS)
            // SAFETY: the halves are whole (their length was checked), zero at first, and live
            // as long as the link; each ring has one writer and one reader, the two ends.
            .map(|c| unsafe {
                SendChannel::new(Writer::new(
                    (&raw const (*ours).lines[c]).cast(),
                    &raw const (*other).consumed[c],
                    LINES as u32,
                ))
            })
            .collect();
        let receives = (0..CHANNELS)
            // SAFETY: as above.
            .map(|c| unsafe {
                let lines = (&raw const (*other).lines[c]).cast();
                ReceiveChannel::new(Reader::new(
                    lines,
                    &raw const (*ours).consumed[c],
                    LINES as u32,
                ))
            })
            .collect();
        ShmLink {
            peer,
            socket,
            mine,
            theirs,
            board,
            sends,
            receives,
            checks: false,
            inline_bytes: INLINE_BYTES,
            slots: SlotPool::new(),
            writer: SlotWriter::new(),
            lane_slots: MOST_SLOTS_PER_LANE,
            lanes: 0,
            waiting: 0,
            lending: 0,
            lender: Lender::default(),
            borrower: Box::new(Borrower::new(reach == Reach::Same)),
            reach,
            attachable: Attachable::default(),
            attach,
            attaches: attach != Attach::Never,
            attached_operations: 0,
            takes_device_loans: false,
            process,
            fenced,
            socket_ended: false,
        }
    }

    pub(crate) fn peer(&self) -> u32 {
        self.peer
    }

    /// From now on all goes by frames, and each carries checksums.
    pub(crate) fn check_frames(&mut self) {
        self.checks = true;
        self.inline_bytes = CHECKED_INLINE_BYTES;
        self.sends.iter_mut().for_each(|send| send.checks = true);
        // What a side reads or writes of the other's memory passes by no frame.
        (self.reach, self.attach, self.attaches) = (Reach::Nothing, Attach::Never, false);
    }

    pub(crate) fn reaches_memory(&self) -> bool {
        self.reach != Reach::Nothing
    }

    #[inline]
    pub(crate) fn divide(&mut self, lanes: usize) {
        if lanes == self.lanes {
            return;
        }
        self.lanes = lanes;
        let lanes = lanes.clamp(1, MAX_LANES);
        self.lane_slots = ((SLOTS - POINT_TO_POINT_SLOTS) / lanes).clamp(1, MOST_SLOTS_PER_LANE);
    }

    #[inline]
    pub(crate) fn attach(&mut self, attaches: bool) {
        self.takes_device_loans = false;
        self.attaches = match self.attach {
            Attach::Always => true,
            Attach::Never => false,
            Attach::Auto => attaches && self.attaches_faster(),
        };
    }

    /// Whether the kernel copies faster than this side writes slots: a rank that only receives goes by what
    /// the sender lends. Now and then slots are tried again.
    fn attaches_faster(&mut self) -> bool {
        if !matches!(self.reach, Reach::Attach(_)) {
            return false;
        }
        let slots_ns = self.writer.cost_ns_per_kib();
        let is_faster = slots_ns.is_some_and(|slots_ns| Reach::copy_ns_per_kib() < slots_ns);
        let tries_slots = self.attached_operations == MOST_ATTACHED_OPERATIONS;
        let attaches = is_faster && !tries_slots;
        self.attached_operations = if attaches { self.attached_operations + 1 } else { 0 };
        attaches
    }

    #[inline]
    pub(crate) unsafe fn post(
        &mut self,
        channel: Channel,
        tag: Tag,
        data: *const u8,
        len: usize,
        last: bool,
    ) -> Result<(), LinkError> {
        if self.is_direct(channel) {
            // SAFETY: the caller promises `len` readable bytes.
            return unsafe { self.post_direct(channel, tag, data, len, last) };
        }
        let send = &mut self.sends[channel];
        send.posted_bytes += len as u64;
        if len <= self.inline_bytes && send.queue.is_empty() && send.ring.has_room() {
            // SAFETY: the caller promises `len` readable bytes.
            unsafe { send.publish_inline(tag, data, len, last) };
            self.wake_peer();
            return Ok(());
        }
        if let Some(open) = send.queue.back_mut()
            && !open.last
            && open.data.wrapping_add(open.len) == data
        {
            open.len += len;
            open.last = last;
            return Ok(());
        }
        send.queue.push_back(Posted { data, len, last, tag });
        self.waiting |= 1 << channel;
        self.push(channel).map(|_| ())
    }

    #[inline]
    pub(crate) fn posted_bytes(&self, channel: Channel) -> u64 {
        self.sends[channel].posted_bytes
    }

    #[inline]
    pub(crate) fn sent_bytes(&self, channel: Channel) -> u64 {
        self.sends[channel].sent_bytes
    }

    #[inline]
    pub(crate) fn is_waiting(&self, channel: Channel) -> bool {
        (self.waiting | self.lending) & 1 << channel != 0
    }

    /// Ranges of the memory may be lent from now on.
    pub(crate) fn share(&mut self, registration: &Arc<Registration>) {
        if self.checks {
            return;
        }
        self.lender.share(registration, &self.socket);
        self.borrower.devices.share(registration, &self.socket);
    }

    pub(crate) fn use_device(&mut self, probe: &Arc<Probe>) {
        self.takes_device_loans = !self.checks && self.borrower.devices.serves(probe);
        if self.takes_device_loans && !self.borrower.devices.is_settled() {
            self.take_in();
            self.borrower.devices.use_device(probe, &self.socket);
        }
    }

    pub(crate) fn pass_memory(&self, number: u64, descriptor: BorrowedFd<'_>) -> bool {
        self.borrower.devices.pass(number, descriptor, &self.socket)
    }

    pub(crate) fn passed_memory(&mut self, number: u64) -> Option<OwnedFd> {
        self.take_in();
        self.borrower.devices.take_passed(number)
    }

    pub(crate) fn lends_device(
        &self,
        channel: Channel,
        address: DeviceAddress,
        len_bytes: usize,
    ) -> bool {
        // A sender waits for the receiver then, which may come much later.
        let awaits = channel != POINT_TO_POINT || len_bytes > MOST_UNAWAITED_BYTES;
        awaits && self.borrower.devices.lends(address, len_bytes)
    }

    pub(crate) fn takes_device(
        &mut self,
        channel: Channel,
        address: DeviceAddress,
        len_bytes: usize,
        message_bytes: usize,
    ) -> bool {
        let awaits = channel != POINT_TO_POINT || message_bytes > MOST_UNAWAITED_BYTES;
        awaits && self.borrower.devices.announces(address, len_bytes, &self.socket)
    }

    pub(crate) fn lend_device(
        &mut self,
        channel: Channel,
        tag: Tag,
        address: DeviceAddress,
        len_bytes: usize,
        last: bool,
    ) -> Result<bool, LinkError> {
        if self.waiting & 1 << channel != 0 || !self.line_credit(channel)? {
            return Ok(false);
        }
        let place = self.borrower.devices.place(address, len_bytes, &self.socket);
        let Some(place) = place else { return Ok(false) };
        let send = &mut self.sends[channel];
        send.posted_bytes += len_bytes as u64;
        send.publish_device_loan(tag, place, len_bytes, last);
        self.lending |= 1 << channel;
        self.wake_peer();
        Ok(true)
    }

    pub(crate) fn lend(
        &mut self,
        channel: Channel,
        tag: Tag,
        data: *const u8,
        len: usize,
        last: bool,
    ) -> Result<bool, LinkError> {
        if self.waiting & 1 << channel != 0 || !self.line_credit(channel)? {
            return Ok(false);
        }
        let Some(place) = self.place(data, len) else { return Ok(false) };
        let send = &mut self.sends[channel];
        send.posted_bytes += len as u64;
        send.publish_loan(tag, place, len, last);
        self.lending |= 1 << channel;
        self.wake_peer();
        Ok(true)
    }

    #[inline]
    pub(crate) fn reserve(&mut self, channel: Channel, wanted: usize) -> Option<Slot> {
        self.reserve_by(channel, wanted, |writer| writer.unmeasured_way(wanted))
    }

    /// For a device, whose writes have nothing of this processor's stores.
    pub(crate) fn reserve_for_device(&mut self, channel: Channel, wanted: usize) -> Option<Slot> {
        self.reserve_by(channel, wanted, |_| Some(Way::SameSlot))
    }

    #[inline]
    fn reserve_by(
        &mut self,
        channel: Channel,
        wanted: usize,
        way: impl FnOnce(&mut SlotWriter) -> Option<Way>,
    ) -> Option<Slot> {
        if let Some(direct) = self.sends[channel].direct {
            return self.direct_slot(direct);
        }
        if self.waiting & 1 << channel != 0 {
            return None;
        }
        let room = match self.sends[channel].reserved {
            // Posts since may have used up the lines.
            Some(room) => {
                let has_line = self.line_credit(channel).ok()?;
                has_line.then(|| room.for_at_least(wanted))?
            }
            None => {
                let has_credit = self.credit(channel).ok()?;
                let way = if has_credit { way(&mut self.writer)? } else { return None };
                self.take_slot(channel, way, wanted)
            }
        };
        self.sends[channel].reserved = Some(room);
        Some(Slot { data: self.start_of(room), len: room.len() })
    }

    #[inline]
    pub(crate) fn commit(
        &mut self,
        channel: Channel,
        tag: Tag,
        len: usize,
        last: bool,
    ) -> Result<(), LinkError> {
        if self.sends[channel].direct.is_some() {
            return self.commit_direct(channel, tag, len, last);
        }
        let room = self.sends[channel].reserved.take().filter(|room| len <= room.len());
        let room = room.expect("a commit follows its reserve");
        let data = self.start_of(room);
        let send = &mut self.sends[channel];
        send.posted_bytes += len as u64;
        if len <= self.inline_bytes {
            // SAFETY: the slot has at least `len` bytes.
            unsafe { send.publish_inline(tag, data, len, last) };
            send.slots_in_use -= 1;
            self.slots.give_back(room.slot);
        } else {
            self.slots.fill(room, len);
            // SAFETY: the caller has written so many bytes of the slot.
            let checksum = if self.checks { unsafe { checksum::of_memory(data, len) } } else { 0 };
            send.publish_slot(tag, room, len, last, checksum);
        }
        self.wake_peer();
        Ok(())
    }

    #[inline]
    pub(crate) fn poll(&mut self, _now_ns: u64) -> Result<bool, LinkError> {
        let mut moved = false;
        let mut rest = self.waiting;
        while rest != 0 {
            let channel = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            moved |= self.push(channel)?;
        }
        let mut rest = self.lending;
        while rest != 0 {
            let channel = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let before = self.sends[channel].sent_bytes;
            self.reap(channel)?;
            moved |= self.sends[channel].sent_bytes != before;
        }
        if !moved && self.peer_is_gone() && !self.has_arrivals()? {
            return Err(self.closed());
        }
        Ok(moved)
    }

    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting | self.lending == 0
    }

    pub(crate) fn descriptor(&self) -> Option<(RawFd, bool)> {
        (!self.socket_ended).then(|| (self.socket.as_raw_fd(), false))
    }

    pub(crate) fn set_parked(&mut self, parked: bool) {
        let wanted = match (parked, self.waiting | self.lending) {
            (false, _) => AWAKE,
            (true, 0) => PARKED,
            (true, _) => PARKED_FOR_ROOM,
        };
        self.state().parked.store(wanted, Ordering::SeqCst);
        if !parked {
            self.take_in();
        }
    }

    pub(crate) fn close(mut self, deadline: Instant) {
        // What is posted still borrows the caller's memory: it must be in slots before the end.
        while self.waiting != 0 && Instant::now() < deadline {
            // Nobody will read what comes. Its credits may be what a peer that closes waits for.
            let thrown_away = (0..CHANNELS).try_for_each(|channel| {
                while let Some(arrival) = self.arrival(channel)? {
                    self.release(channel, arrival.len)?;
                }
                Ok::<(), LinkError>(())
            });
            match thrown_away.and_then(|()| self.poll(0)) {
                Ok(true) => {}
                Ok(false) => std::thread::yield_now(),
                Err(_) => break,
            }
        }
    }

    /// Sends what waits on a channel as far as credits go. Returns whether anything moved.
    fn push(&mut self, channel: Channel) -> Result<bool, LinkError> {
        let mut moved = false;
        while let Some(front) = self.sends[channel].queue.front() {
            let (data, tag, part) = (front.data, front.tag, front.len.min(SLOT_BYTES));
            let last = front.last && part == front.len;
            if part <= self.inline_bytes {
                if !self.line_credit(channel)? {
                    break;
                }
                // SAFETY: the caller of `post` promised the bytes until they are sent.
                unsafe { self.sends[channel].publish_inline(tag, data, part, last) };
            } else {
                let way = self.writer.way(part);
                let Some(room) = self.room_for_posted(channel, way, part)? else { break };
                if SlotWriter::measures(part) && self.slots.is_new(room.slot) {
                    // Its memory is made now, so that this is not taken for the time of a copy.
                    let slot_start = self.start_of(Room { offset: 0, ..room });
                    // SAFETY: the slot has so many bytes, and nobody reads them.
                    unsafe { slot_start.write_bytes(0, SLOT_BYTES) };
                }
                // Of what was posted, so that it speaks of the copy, too.
                // SAFETY: as above.
                let checksum = self.checks.then(|| unsafe { checksum::of_memory(data, part) });
                // SAFETY: as above; the room has `part` bytes, and nobody reads them.
                unsafe { self.writer.write(way, data, self.start_of(room), part) };
                self.slots.fill(room, part);
                self.sends[channel].publish_slot(tag, room, part, last, checksum.unwrap_or(0));
            }
            moved = true;
            self.wake_peer();
            self.sends[channel].advance_queue(part);
        }
        if self.sends[channel].queue.is_empty() {
            self.waiting &= !(1 << channel);
        }
        Ok(moved)
    }

    /// Room for posted bytes: the reserved one if nobody has committed it, since it may hold the
    /// channel's only credit.
    fn room_for_posted(
        &mut self,
        channel: Channel,
        way: Way,
        len: usize,
    ) -> Result<Option<Room>, LinkError> {
        if self.sends[channel].reserved.is_none() {
            return Ok(self.credit(channel)?.then(|| self.take_slot(channel, way, len)));
        }
        if !self.line_credit(channel)? {
            return Ok(None);
        }
        let room = self.sends[channel].reserved.take();
        Ok(room.map(|room| room.for_at_least(len)))
    }

    /// Whether a line is free, after a look at the peer's counter if need be.
    #[inline]
    pub(super) fn line_credit(&mut self, channel: Channel) -> Result<bool, LinkError> {
        Ok(self.sends[channel].ring.has_room() || {
            self.reap(channel)?;
            self.sends[channel].ring.has_room()
        })
    }

    /// Whether a line and a slot are free.
    #[inline]
    fn credit(&mut self, channel: Channel) -> Result<bool, LinkError> {
        let limit = if channel == POINT_TO_POINT { POINT_TO_POINT_SLOTS } else { self.lane_slots };
        let enough = |link: &ShmLink| {
            let send = &link.sends[channel];
            send.ring.has_room() && send.slots_in_use < limit && !link.slots.is_empty()
        };
        if enough(self) {
            return Ok(true);
        }
        self.reap(channel)?;
        if self.slots.is_empty() {
            (0..CHANNELS).try_for_each(|other| self.reap(other))?;
        }
        Ok(enough(self))
    }

    /// Takes back the slots of the lines that the peer has consumed.
    fn reap(&mut self, channel: Channel) -> Result<(), LinkError> {
        let send = &mut self.sends[channel];
        if send.ring.refresh().is_err() {
            return Err(self.protocol("a counter of consumed lines that runs ahead"));
        }
        while send.reaped != send.ring.known_consumed() {
            let slot = &mut send.slot_of_line[send.reaped as usize % LINES];
            if *slot != NONE {
                self.slots.give_back(*slot);
                send.slots_in_use -= 1;
                *slot = NONE;
            }
            send.reaped = send.reaped.wrapping_add(1);
        }
        if self.lending & 1 << channel != 0 && !send.settle() {
            self.lending &= !(1 << channel);
        }
        Ok(())
    }

    #[inline]
    fn take_slot(&mut self, channel: Channel, way: Way, len: usize) -> Room {
        let room = self.slots.take(way, len);
        self.sends[channel].slots_in_use += 1;
        room
    }

    #[inline]
    fn start_of(&self, room: Room) -> *mut u8 {
        let ours = self.mine.start().cast::<Half>();
        // SAFETY: the pool's numbers are below SLOTS, and its offsets within a slot.
        unsafe { (&raw mut (*ours).slots.0[room.slot as usize]).cast::<u8>().add(room.offset) }
    }

    /// Wakes a peer that sleeps.
    #[inline]
    pub(super) fn wake_peer(&self) {
        self.wake_peer_if(|parked| parked != AWAKE);
    }

    /// Sends a byte to a peer that waits for what was just published or given back.
    #[inline]
    pub(super) fn wake_peer_if(&self, waits: impl FnOnce(u32) -> bool) {
        if self.fenced {
            fence(Ordering::SeqCst);
        } else {
            // The sleeper's barrier orders what this processor does, not what the compiler does.
            compiler_fence(Ordering::SeqCst);
        }
        if waits(self.their_state().parked.load(Ordering::Relaxed)) {
            lending::wake(&self.socket);
        }
    }

    /// The process at the other end, as the kernel knows it here; `None` where it will not say.
    pub fn peer_process(&self) -> Option<u32> {
        peer_process(&self.socket)
    }

    fn peer_is_gone(&mut self) -> bool {
        self.socket_ended || self.their_state().closed.load(Ordering::Acquire) != 0
    }

    fn has_arrivals(&mut self) -> Result<bool, LinkError> {
        for channel in 0..CHANNELS {
            let receive = &self.receives[channel];
            let in_hand = receive.current.is_some() || receive.remote.is_some();
            if in_hand || self.next_frame(channel)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes in what is on the socket: what woke this side, what the peer lends, and its end.
    pub(super) fn take_in(&mut self) {
        self.socket_ended |= self.borrower.take_in(&self.socket) != Socket::Open;
    }

    pub(super) fn out_of_reach(&self, error: &std::io::Error) -> LinkError {
        if error.raw_os_error() == Some(libc::ESRCH) {
            return self.closed();
        }
        self.failed(format!("its memory cannot be reached any more: {error}"))
    }

    pub(super) fn failed(&self, reason: String) -> LinkError {
        LinkError::Failed { peer: self.peer, transport: TransportKind::Shm, reason }
    }

    pub(super) fn closed(&self) -> LinkError {
        if let Some(reason) = &self.borrower.devices.failure {
            return self.failed(reason.clone());
        }
        LinkError::Closed { peer: self.peer, transport: TransportKind::Shm }
    }

    pub(super) fn corrupt(&self, damage: Damage) -> LinkError {
        LinkError::Corrupt { peer: self.peer, transport: TransportKind::Shm, damage }
    }

    pub(super) fn protocol(&self, reason: &str) -> LinkError {
        let reason = reason.to_string();
        LinkError::Protocol { peer: self.peer, transport: TransportKind::Shm, reason }
    }
}

impl Drop for ShmLink {
    fn drop(&mut self) {
        self.withdraw();
        self.await_last_write();
    }
}

/// The process that has the other end of a socket.
pub(super) fn peer_process(socket: &UnixStream) -> Option<u32> {
    let credentials = getsockopt(socket, PeerCredentials).ok()?;
    u32::try_from(credentials.pid()).ok().filter(|&pid| pid > 0)
}
