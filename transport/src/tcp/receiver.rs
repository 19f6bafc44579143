//! The receiving half of a TCP link: takes the stream apart into frames.
//!
//! Bytes come through a staging buffer, many small frames a system call. The rest of a large
//! payload is read past it: into the memory of whoever called for it ([`Wanted`]), or into a slot.
//! A frame may begin in a slot and end in the caller's memory, or the other way round; byte `i` of
//! a payload that goes through a slot always lies at `i` in the slot.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::SLICE_BYTES;
use super::block::Block;
use super::credit::Credits;
use super::frame::{self, HEADER_BYTES, Header, Kind};
use super::socket::{self, NO_RANGE, range};
use crate::{Arrival, CHANNELS, Channel, Tag};

/// Bytes that one read takes in beyond a payload that is under way: enough for many small frames,
/// and not much of a large payload, since they are copied.
const STAGING_BYTES: usize = 8 << 10;

/// The receiving half of a link.
#[derive(Debug)]
pub(super) struct Receiver {
    staging: Block,
    staged: std::ops::Range<usize>,
    /// The frame that has not arrived completely, and its channel.
    incoming: Option<(Channel, Frame)>,
    arrived: [VecDeque<Frame>; CHANNELS],
    free: Vec<Block>,
}

/// A slice that arrives or has arrived.
#[derive(Debug)]
struct Frame {
    tag: Tag,
    last: bool,
    /// Its sender wants its credit back as soon as it is released.
    asked: bool,
    len: usize,
    /// Bytes of the payload that have arrived.
    received: usize,
    /// Bytes of the payload that have been handed out and given up.
    taken: usize,
    /// Where `taken .. received` is, if that is not empty.
    slot: Option<Block>,
}

/// Where a caller wants what comes next on a channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub channel: Channel,
    /// Only bytes of this message.
    pub tag: Tag,
    /// Where the next byte goes; `room` bytes are writable.
    pub into: *mut u8,
    pub room: usize,
    /// Bytes written so far.
    pub got: usize,
    /// The message ended with them.
    pub ended: bool,
}

/// What a read has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Something, and there may be more.
    More,
    /// Something, and nothing more is there.
    Drained,
    /// Nothing.
    Nothing,
}

/// Why nothing more will come.
#[derive(Debug)]
pub(super) enum End {
    /// The peer said goodbye, or the stream ended.
    Closed,
    /// The system reports an error.
    Failed(io::Error),
    /// The peer sent what no correct peer sends.
    Protocol(&'static str),
}

impl Receiver {
    /// A receiver that nothing has come to.
    pub fn new() -> Receiver {
        Receiver {
            staging: Block::new::<STAGING_BYTES>(),
            staged: 0..0,
            incoming: None,
            arrived: Default::default(),
            free: Vec::new(),
        }
    }

    /// Whether a whole slice is there on the channel.
    pub fn shows(&self, channel: Channel) -> bool {
        !self.arrived[channel].is_empty()
    }

    /// Whether a whole slice is there on any channel.
    pub fn shows_any(&self) -> bool {
        self.arrived.iter().any(|arrived| !arrived.is_empty())
    }

    /// The oldest whole slice on the channel.
    pub fn arrival(&self, channel: Channel) -> Option<Arrival> {
        self.arrived[channel].front().map(|frame| Arrival {
            data: frame.data(),
            len: frame.len - frame.taken,
            last: frame.last,
            tag: frame.tag,
        })
    }

    /// Gives up the first `len` bytes of the channel's oldest slice.
    pub fn release(&mut self, channel: Channel, len: usize, credits: &mut Credits) {
        let Some(frame) = self.arrived[channel].front_mut() else {
            return;
        };
        debug_assert!(len <= frame.len - frame.taken, "released more than arrived");
        frame.taken = (frame.taken + len).min(frame.len);
        if frame.taken == frame.len {
            credits.release(channel, frame.asked);
            let slot = frame.slot.take();
            self.free.extend(slot);
            self.arrived[channel].pop_front();
        }
    }

    /// Gives up everything that has arrived, on all channels.
    pub fn release_all(&mut self, credits: &mut Credits) {
        for channel in 0..CHANNELS {
            while let Some(arrival) = self.arrival(channel) {
                self.release(channel, arrival.len, credits);
            }
        }
    }

    /// Copies what is in slots to where it is wanted.
    ///
    /// # Safety
    /// `wanted` must tell the truth about its memory.
    pub unsafe fn take_stored(&mut self, wanted: &mut Wanted, credits: &mut Credits) {
        while let Some(frame) = self.arrived[wanted.channel].front() {
            let rest = frame.len - frame.taken;
            let len = rest.min(wanted.room);
            if wanted.ended || frame.tag != wanted.tag || (len == 0 && rest != 0) {
                return;
            }
            let ends = len == rest && frame.last;
            // SAFETY: the slot holds these bytes, and there is room for them.
            unsafe { frame.data().copy_to_nonoverlapping(wanted.into, len) };
            wanted.advance(len);
            wanted.ended = ends;
            self.release(wanted.channel, len, credits);
        }
        if let Some((channel, frame)) = &mut self.incoming
            && wanted.wants(*channel, frame.tag)
        {
            let len = (frame.received - frame.taken).min(wanted.room);
            // SAFETY: as above.
            unsafe { frame.data().copy_to_nonoverlapping(wanted.into, len) };
            wanted.advance(len);
            frame.taken += len;
            if frame.taken == frame.received {
                let slot = frame.slot.take();
                self.free.extend(slot);
            }
        }
    }

    /// Reads the socket once and takes apart what came. What is `wanted` goes where it is wanted;
    /// [`Receiver::take_stored`] must have been called for it before.
    ///
    /// # Safety
    /// `wanted` must tell the truth about its memory.
    pub unsafe fn read(
        &mut self,
        fd: RawFd,
        wanted: &mut Option<Wanted>,
        credits: &mut Credits,
    ) -> Result<Read, End> {
        let destination = self.destination(wanted);
        let read_ahead = STAGING_BYTES - self.staged.end;
        let staging = range(self.staging.at(self.staged.end), read_ahead);
        let payload = destination.map_or(NO_RANGE, |to| range(to.data, to.len));
        let skip = usize::from(destination.is_none());
        // SAFETY: free memory of a slot or of the caller, and of the staging buffer.
        let received = match unsafe { socket::receive(fd, &[payload, staging][skip..]) } {
            Ok(0) => return Err(End::Closed),
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Read::Nothing),
            Err(error) => return Err(End::Failed(error)),
        };
        if let Some(to) = destination {
            self.arrive(to.direct, received.min(to.len), wanted, credits);
        }
        self.staged.end += received.saturating_sub(payload.iov_len);
        // SAFETY: the caller's promise is passed on.
        unsafe { self.take_apart(wanted, credits) }?;
        Ok(if received < payload.iov_len + read_ahead { Read::Drained } else { Read::More })
    }

    /// Takes all staged bytes apart, up to an incomplete header.
    ///
    /// # Safety
    /// As of [`Receiver::read`].
    unsafe fn take_apart(
        &mut self,
        wanted: &mut Option<Wanted>,
        credits: &mut Credits,
    ) -> Result<(), End> {
        while !self.staged.is_empty() {
            let from = self.staging.at(self.staged.start);
            if let Some(to) = self.destination(wanted) {
                let len = to.len.min(self.staged.len());
                // SAFETY: staged bytes, and free memory of a slot or of the caller.
                unsafe { from.copy_to_nonoverlapping(to.data, len) };
                self.staged.start += len;
                self.arrive(to.direct, len, wanted, credits);
            } else if self.staged.len() >= HEADER_BYTES {
                // SAFETY: that many bytes are staged; an array of bytes has no alignment.
                let header = unsafe { &*from.cast::<[u8; HEADER_BYTES]>() };
                let header = frame::parse(header).map_err(End::Protocol)?;
                self.staged.start += HEADER_BYTES;
                self.begin(header, wanted, credits)?;
            } else {
                let len = self.staged.len();
                // SAFETY: both ranges lie in the staging buffer.
                unsafe { from.copy_to(self.staging.at(0), len) };
                self.staged = 0..len;
                return Ok(());
            }
        }
        self.staged = 0..0;
        Ok(())
    }

    /// Begins the frame of a header.
    fn begin(
        &mut self,
        header: Header,
        wanted: &mut Option<Wanted>,
        credits: &mut Credits,
    ) -> Result<(), End> {
        credits.take_back(&header.credits).map_err(End::Protocol)?;
        match header.kind {
            Kind::Goodbye => return Err(End::Closed),
            Kind::Credit if header.ask => {
                for frame in self.arrived.iter_mut().flatten() {
                    frame.asked = true;
                }
                credits.peer_asks();
            }
            Kind::Credit => {}
            Kind::Data => {
                let channel = usize::from(header.channel);
                credits.arrive(channel).map_err(End::Protocol)?;
                self.incoming = Some((channel, Frame::new(header)));
                if header.len == 0 {
                    self.finish(wanted, credits);
                }
            }
        }
        Ok(())
    }

    /// Where the rest of the frame under way goes; `None` if no frame is under way.
    fn destination(&mut self, wanted: &Option<Wanted>) -> Option<Destination> {
        let (channel, frame) = self.incoming.as_mut()?;
        let rest = frame.len - frame.received;
        if let Some(wanted) = wanted
            && wanted.room > 0
            && frame.slot.is_none()
            && wanted.wants(*channel, frame.tag)
            && self.arrived[*channel].is_empty()
        {
            return Some(Destination {
                data: wanted.into,
                len: rest.min(wanted.room),
                direct: true,
            });
        }
        let free = &mut self.free;
        let slot =
            frame.slot.get_or_insert_with(|| free.pop().unwrap_or_else(Block::new::<SLICE_BYTES>));
        Some(Destination { data: slot.at(frame.received), len: rest, direct: false })
    }

    /// Counts bytes of the frame under way that were written to its destination.
    fn arrive(
        &mut self,
        direct: bool,
        len: usize,
        wanted: &mut Option<Wanted>,
        credits: &mut Credits,
    ) {
        let Some((_, frame)) = &mut self.incoming else {
            return;
        };
        frame.received += len;
        if direct && let Some(wanted) = wanted {
            frame.taken += len;
            wanted.advance(len);
        }
        if frame.received == frame.len {
            self.finish(wanted, credits);
        }
    }

    /// Ends the frame under way: it has been consumed already, or it is shown from now on.
    fn finish(&mut self, wanted: &mut Option<Wanted>, credits: &mut Credits) {
        let Some((channel, frame)) = self.incoming.take() else {
            return;
        };
        if let Some(wanted) = wanted
            && frame.taken == frame.len
            && wanted.wants(channel, frame.tag)
            && self.arrived[channel].is_empty()
        {
            wanted.ended = frame.last;
            credits.release(channel, frame.asked);
        } else {
            self.arrived[channel].push_back(frame);
        }
    }
}

/// Free memory for the rest of a payload.
#[derive(Clone, Copy)]
struct Destination {
    data: *mut u8,
    len: usize,
    /// It is the caller's memory.
    direct: bool,
}

impl Frame {
    fn new(header: Header) -> Frame {
        Frame {
            tag: header.tag,
            last: header.last,
            asked: header.ask,
            len: header.len as usize,
            received: 0,
            taken: 0,
            slot: None,
        }
    }

    /// The first byte that is not taken.
    fn data(&self) -> *const u8 {
        match &self.slot {
            Some(slot) => slot.at(self.taken),
            None => std::ptr::dangling(),
        }
    }
}

impl Wanted {
    fn wants(&self, channel: Channel, tag: Tag) -> bool {
        !self.ended && self.channel == channel && self.tag == tag
    }

    fn advance(&mut self, len: usize) {
        self.into = self.into.wrapping_add(len);
        self.room -= len;
        self.got += len;
    }
}
