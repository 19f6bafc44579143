//! The receiving half of a channel: the message in hand, and what the peer was offered for those that
//! come.

use std::collections::VecDeque;

use super::devices::DevicePlace;
use super::layout::{Half, PARKED_FOR_ROOM, SLOT_BYTES, SLOTS};
use super::lending::{ORDINARY, Place};
use super::link::ShmLink;
use super::reach::Reach;
use super::ring::{BODY_WORDS, Body, Reader};
use super::send::{
    IN_SLOT, INLINE_BYTES, LAST, LEN_MASK, LENT, OF_GPU, WRITTEN, line_checksum, unpack,
};
use crate::checksum::{self, Damage};
use crate::{Arrival, Channel, Home, LinkError, Tag};

/// Bytes that are fetched from the peer's ordinary memory at once: small enough that they are still
/// in the cache when they are reduced, large enough to be worth a call of the kernel. On a 2-core
/// machine 128 KiB was best between 2 ranks, 64 to 128 KiB among 4.
pub(super) const PIECE_BYTES: usize = 128 << 10;

#[derive(Debug)]
pub(super) struct ReceiveChannel {
    pub(super) ring: Reader,
    pub(super) current: Option<Arrival>,
    /// The frame in hand is read in place, in memory that the peer lends.
    is_lent: bool,
    /// What is left to fetch of the frame in hand, behind `current`.
    pub(super) remote: Option<Remote>,
    landing: Vec<u8>,
    /// Number of the message in hand or next to come, wrapping.
    pub(super) message: u32,
    /// Bytes of it that have been checked, where frames are.
    checked_bytes: u64,
    /// Room that the peer may write to, in the order of the messages.
    pub(super) offered: VecDeque<Offered>,
}

/// A loan of the peer's ordinary memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remote {
    pub(super) address: u64,
    pub(super) left: usize,
    /// The frame is its message's last.
    pub(super) last: bool,
    pub(super) tag: Tag,
    /// It is memory of the peer's GPU.
    pub(super) is_of_gpu: bool,
}

/// Room that was offered for a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offered {
    pub(super) message: u32,
    pub(super) into: *mut u8,
    pub(super) len: usize,
}

impl ReceiveChannel {
    pub(super) fn new(ring: Reader) -> ReceiveChannel {
        ReceiveChannel {
            ring,
            current: None,
            is_lent: false,
            remote: None,
            landing: Vec::new(),
            message: 0,
            checked_bytes: 0,
            offered: VecDeque::new(),
        }
    }

    /// Room for a piece.
    pub(super) fn landing(&mut self) -> *mut u8 {
        // Not before it is needed: most channels never fetch anything.
        self.landing.resize(PIECE_BYTES, 0);
        self.landing.as_mut_ptr()
    }

    /// What was offered for the message in hand.
    pub(super) fn room(&self) -> Option<Offered> {
        self.offered.front().copied().filter(|offered| offered.message == self.message)
    }

    /// The message in hand has been taken whole.
    pub(super) fn finish_message(&mut self) {
        if self.room().is_some() {
            self.offered.pop_front();
        }
        self.message = self.message.wrapping_add(1);
    }
}

impl ShmLink {
    #[inline]
    pub(crate) fn arrival(&mut self, channel: Channel) -> Result<Option<Arrival>, LinkError> {
        if self.receives[channel].current.is_none() {
            self.load(channel)?;
            if self.receives[channel].remote.is_some() {
                self.fetch(channel)?;
            }
        }
        Ok(self.receives[channel].current)
    }

    /// Takes the next frame in hand, if there is none and one has come.
    #[inline]
    fn load(&mut self, channel: Channel) -> Result<(), LinkError> {
        let receive = &self.receives[channel];
        if receive.current.is_some() || receive.remote.is_some() {
            return Ok(());
        }
        let Some((meta, body)) = self.next_frame(channel)? else { return Ok(()) };
        let inline = body.cast::<u64>();
        // SAFETY: the line was peeked and is not given back; the words are read once.
        let body = unsafe { body.read() };
        let (tag, last) = (unpack(body[0]), meta & LAST != 0);
        if meta & OF_GPU != 0 {
            let place = DevicePlace { id: body[1] as u32, offset: body[2] };
            return self.load_device_loan(channel, place, body[3], tag, last);
        }
        let mut len = (meta & LEN_MASK) as usize;
        let data = if meta & LENT != 0 {
            len = body[3] as usize;
            let place = Place { id: body[1] as u32, offset: body[2] };
            if place.id == ORDINARY && matches!(self.reach, Reach::Attach(_)) {
                let (address, left) = (place.offset, len);
                let remote = Remote { address, left, last, tag, is_of_gpu: false };
                self.receives[channel].remote = Some(remote);
                return Ok(());
            }
            self.within_reach(place, body[3]).map(<*mut u8>::cast_const)
        } else if meta & IN_SLOT != 0 {
            let (slot, offset) = (body[1] as u32 as usize, (body[1] >> 32) as usize);
            let theirs = self.theirs.start().cast::<Half>();
            (slot < SLOTS && offset + len <= SLOT_BYTES).then(|| {
                // SAFETY: the slot's number is below SLOTS, and the offset within a slot.
                unsafe { (&raw const (*theirs).slots.0[slot]).cast::<u8>().add(offset) }
            })
        } else if meta & WRITTEN != 0 {
            len = body[1] as usize;
            let room = self.receives[channel].room().filter(|room| len == room.len && last);
            room.map(|room| room.into.cast_const())
        } else {
            // The payload follows the tag.
            (len <= INLINE_BYTES).then(|| inline.wrapping_add(1).cast::<u8>())
        };
        let Some(data) = data else { return Err(self.protocol("a frame that leaves its place")) };
        if self.checks {
            // SAFETY: the frame's bytes were found to lie in a slot or in the line.
            unsafe { self.check_payload(channel, meta, &body, (data, len))? };
        }
        let receive = &mut self.receives[channel];
        receive.is_lent = meta & LENT != 0;
        receive.current = Some(Arrival { data, len, last, tag, home: Home::Host });
        Ok(())
    }

    /// Whether a line is as its writer has left it: the next one of a channel, be it there yet or not.
    pub(super) fn check_line(
        &self,
        channel: Channel,
        line: Option<(u32, *const Body)>,
    ) -> Result<(), LinkError> {
        let ring = &self.receives[channel].ring;
        let is_whole = match line {
            None => ring.has_known_stamp(),
            Some((meta, body)) => {
                // SAFETY: the line was peeked and is not given back.
                let body = unsafe { body.read() };
                line_checksum(ring.next(), meta, &body) == body[BODY_WORDS - 1] as u32
            }
        };
        if is_whole { Ok(()) } else { Err(self.corrupt(Damage::Header)) }
    }

    /// Whether the payload of a frame whose line is as it was left is so, too. What is in the line is.
    ///
    /// # Safety
    /// The range must be readable.
    unsafe fn check_payload(
        &mut self,
        channel: Channel,
        meta: u32,
        body: &Body,
        (data, len): (*const u8, usize),
    ) -> Result<(), LinkError> {
        let begin = self.receives[channel].checked_bytes;
        // SAFETY: the caller's promise.
        let is_whole = meta & IN_SLOT == 0
            || unsafe { checksum::of_memory(data, len) } == (body[BODY_WORDS - 1] >> 32) as u32;
        if !is_whole {
            let (tag, begin, len) = (unpack(body[0]), Some(begin), len as u64);
            return Err(self.corrupt(Damage::Payload { channel, tag, begin, len }));
        }
        let ends = meta & LAST != 0;
        self.receives[channel].checked_bytes = if ends { 0 } else { begin + len as u64 };
        Ok(())
    }

    /// Takes a loan of a GPU's memory in hand: as it is, or to be copied.
    #[cold]
    fn load_device_loan(
        &mut self,
        channel: Channel,
        place: DevicePlace,
        len: u64,
        tag: Tag,
        last: bool,
    ) -> Result<(), LinkError> {
        if self.borrower.devices.address(place, len).is_none() {
            // Its announcement is on the socket.
            self.take_in();
        }
        let Some(address) = self.borrower.devices.address(place, len) else {
            return Err(self.protocol("a frame that leaves its place"));
        };
        let (left, len) = (len as usize, len as usize);
        let takes = self.takes_device_loans;
        let receive = &mut self.receives[channel];
        if takes {
            let data = address as *const u8;
            receive.is_lent = true;
            receive.current = Some(Arrival { data, len, last, tag, home: Home::PeerGpu });
        } else {
            receive.remote = Some(Remote { address, left, last, tag, is_of_gpu: true });
        }
        Ok(())
    }

    /// Fetches the next piece of a loan of the peer's ordinary memory.
    fn fetch(&mut self, channel: Channel) -> Result<(), LinkError> {
        let receive = &mut self.receives[channel];
        let Some(Remote { left, tag, .. }) = receive.remote else { return Ok(()) };
        let part = left.min(PIECE_BYTES);
        let data = receive.landing();
        // SAFETY: the landing has room for a piece, and nothing that was lent from it is in use.
        let last = unsafe { self.fetch_into(channel, data, part)? };
        let receive = &mut self.receives[channel];
        // It is a copy by now.
        receive.is_lent = false;
        receive.current = Some(Arrival { data, len: part, last, tag, home: Home::Host });
        Ok(())
    }

    /// Copies the next `part` bytes of the loan in hand from the peer's ordinary memory. Returns
    /// whether they are their message's last.
    ///
    /// # Safety
    /// `into` must be writable for `part` bytes.
    unsafe fn fetch_into(
        &mut self,
        channel: Channel,
        into: *mut u8,
        part: usize,
    ) -> Result<bool, LinkError> {
        let Some(remote) = self.receives[channel].remote else { return Ok(false) };
        if remote.is_of_gpu {
            // SAFETY: the loan is in hand; the caller promises the destination.
            let read = unsafe { self.borrower.devices.read(remote.address, into, part) };
            read.map_err(|error| self.failed(format!("what it lends cannot be copied: {error}")))?;
        } else {
            // SAFETY: the caller promises the destination.
            let read = unsafe { self.reach.read(remote.address, into, part) };
            read.map_err(|error| self.out_of_reach(&error))?;
        }
        if self.is_withdrawn() {
            return Err(self.closed());
        }
        let Some(remote) = &mut self.receives[channel].remote else { return Ok(false) };
        remote.address += part as u64;
        remote.left -= part;
        let ended = remote.left == 0;
        let last = remote.last && ended;
        if ended {
            self.receives[channel].remote = None;
        }
        Ok(last)
    }

    #[inline]
    pub(crate) fn release(&mut self, channel: Channel, len: usize) -> Result<(), LinkError> {
        let receive = &mut self.receives[channel];
        let Some(current) = &mut receive.current else {
            return Err(self.protocol("nothing to release"));
        };
        assert!(len <= current.len, "more released than arrived");
        current.len -= len;
        current.data = current.data.wrapping_add(len);
        if current.len == 0 {
            let last = current.last;
            receive.current = None;
            if receive.is_lent && self.is_withdrawn() {
                return Err(self.closed());
            }
            if self.receives[channel].remote.is_none() {
                self.finish_frame(channel, last);
            }
        }
        Ok(())
    }

    /// Gives the frame in hand back, all of which has been taken.
    #[inline]
    fn finish_frame(&mut self, channel: Channel, last: bool) {
        let receive = &mut self.receives[channel];
        receive.ring.advance();
        if last {
            receive.finish_message();
        }
        self.wake_peer_if(|parked| parked == PARKED_FOR_ROOM);
    }

    /// Whether the frame in hand is a loan that is fetched best to where it is wanted.
    #[inline]
    pub(crate) fn receives_directly(&mut self, channel: Channel) -> bool {
        let receive = &mut self.receives[channel];
        if receive.current.is_none() {
            // An error shows again when the frame is looked at.
            let _ = self.load(channel);
        }
        let receive = &self.receives[channel];
        receive.current.is_none() && receive.remote.is_some()
    }

    #[inline]
    pub(crate) unsafe fn receive(
        &mut self,
        channel: Channel,
        tag: Tag,
        into: *mut u8,
        len: usize,
    ) -> Result<(usize, bool), LinkError> {
        let mut done = 0;
        loop {
            if self.receives_directly(channel)
                && let Some(remote) = self.receives[channel].remote
            {
                let part = remote.left.min(len - done);
                if remote.tag != tag || part == 0 {
                    break;
                }
                // SAFETY: `into` has room for `len` bytes.
                let last = unsafe { self.fetch_into(channel, into.add(done), part)? };
                done += part;
                if self.receives[channel].remote.is_none() {
                    self.finish_frame(channel, last);
                }
                if last {
                    return Ok((done, true));
                }
                continue;
            }
            let Some(arrival) = self.arrival(channel)? else { break };
            // SAFETY: `into` has room for `len` bytes.
            let copied = unsafe { arrival.copy_to(tag, into.add(done), len - done) };
            let Some((part, ended)) = copied else { break };
            self.release(channel, part)?;
            done += part;
            if ended {
                return Ok((done, true));
            }
        }
        Ok((done, false))
    }

    /// First byte of a range in memory of the peer; its announcement is on the socket since before
    /// the first frame that names it.
    #[cold]
    fn announced(&mut self, place: Place, len: u64) -> Option<*mut u8> {
        self.take_in();
        self.borrower.address(place, len)
    }

    /// First byte of a range of the peer's memory, where it needs no copying.
    #[inline]
    pub(super) fn within_reach(&mut self, place: Place, len: u64) -> Option<*mut u8> {
        if place.id == ORDINARY {
            return (self.reach == Reach::Same).then_some(place.offset as *mut u8);
        }
        self.borrower.address(place, len).or_else(|| self.announced(place, len))
    }
}
