//! The receiving half of a TCP link: takes the streams of its sockets apart into frames, and puts
//! the frames of each channel in order.
//!
//! Bytes come through a staging buffer, many small frames a system call. The rest of a large
//! payload is read past it: into the memory of whoever called for it ([`Wanted`]), or into a slot.
//! A frame may begin in a slot and end in the caller's memory, or the other way round; byte `i` of
//! a payload that goes through a slot always lies at `i` in the slot. An encrypted payload goes
//! through a slot whole, and is decrypted there, and so is one that has a checksum: nobody sees a byte that
//! was not proved.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::block::Block;
use super::cipher::{Opener, TAG_BYTES};
use super::frame::{self, CHECKSUMS_BYTES, HEADER_BYTES, Header, Kind};
use super::socket::{self, NO_RANGE, range};
use super::{SLICE_BYTES, SLOTS};
use crate::checksum::{self, Damage};
use crate::credit::Credits;
use crate::{Arrival, CHANNELS, Channel, Home, Tag};

/// Bytes that one read takes in beyond a payload that is under way: enough for many small frames,
/// and not much of a large payload, since they are copied.
const STAGING_BYTES: usize = 8 << 10;

/// Bytes of a slot: a payload, and what proves it.
const SLOT_BYTES: usize = SLICE_BYTES + TAG_BYTES;

/// The receiving half of a link.
#[derive(Debug)]
pub(super) struct Receiver {
    streams: Box<[Stream]>,
    channels: [Inbox; CHANNELS],
    free: Vec<Block>,
}

/// What comes from one socket.
#[derive(Debug)]
struct Stream {
    staging: Block,
    staged: std::ops::Range<usize>,
    /// The frame that has not arrived completely, and its channel.
    incoming: Option<(Channel, Frame)>,
    proof: Proof,
    /// Frames of which the sender wants credits back at once, though they do not say so: it asked
    /// for that on another socket, and they may have been under way on this one.
    asked_ahead: usize,
}

/// What proves that frames are as they were sent.
#[derive(Debug)]
enum Proof {
    None,
    /// Checksums behind the header.
    Checksums,
    /// Encryption.
    Opening(Box<Opener>),
}

/// What has arrived on one channel.
#[derive(Debug, Default)]
struct Inbox {
    arrived: VecDeque<Frame>,
    /// Payload of all whole frames so far.
    arrived_bytes: u64,
    /// Frames whose predecessors are still under way on other sockets.
    early: Vec<Frame>,
    /// Number of the frame after all that have arrived.
    next: u8,
    /// Payload of the message that comes, in frames of which all before have arrived.
    message_bytes: u64,
}

/// A slice that arrives or has arrived.
#[derive(Debug)]
struct Frame {
    number: u8,
    tag: Tag,
    last: bool,
    /// Its sender wants its credit back as soon as it is released.
    asked: bool,
    len: usize,
    /// Bytes that follow the header on the wire: the payload and, if it is encrypted, its tag.
    wire_len: usize,
    /// How many of them have arrived.
    received: usize,
    /// Bytes of the payload that have been handed out and given up.
    taken: usize,
    /// Of the payload, where frames have checksums.
    checksum: u32,
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
    /// The peer said goodbye.
    Goodbye,
    /// The stream ended.
    Closed,
    /// The system reports an error.
    Failed(io::Error),
    /// The peer sent what no correct peer sends.
    Protocol(&'static str),
    /// Checksums do not fit.
    Corrupt(Damage),
    /// What came was not encrypted so.
    Tampered(Damage),
}

impl Receiver {
    /// A receiver that nothing has come to, for sockets that encrypt or not.
    pub fn new(openers: Vec<Option<Opener>>) -> Receiver {
        let stream = |opener| Stream {
            staging: Block::new::<STAGING_BYTES>(),
            staged: 0..0,
            incoming: None,
            proof: match opener {
                None => Proof::None,
                Some(opener) => Proof::Opening(Box::new(opener)),
            },
            asked_ahead: 0,
        };
        Receiver {
            streams: openers.into_iter().map(stream).collect(),
            channels: Default::default(),
            free: Vec::new(),
        }
    }

    /// Frames that are not encrypted have checksums from now on.
    pub fn check_frames(&mut self) {
        for stream in &mut self.streams {
            if let Proof::None = stream.proof {
                stream.proof = Proof::Checksums;
            }
        }
    }

    /// Whether a whole slice is there on the channel.
    pub fn shows(&self, channel: Channel) -> bool {
        !self.channels[channel].arrived.is_empty()
    }

    /// Whether a whole slice is there on any channel.
    pub fn shows_any(&self) -> bool {
        self.channels.iter().any(|inbox| !inbox.arrived.is_empty())
    }

    /// Payload bytes that have ever come on the channel in whole frames.
    pub fn arrived_bytes(&self, channel: Channel) -> u64 {
        self.channels[channel].arrived_bytes
    }

    /// The oldest whole slice on the channel.
    pub fn arrival(&self, channel: Channel) -> Option<Arrival> {
        self.channels[channel].arrived.front().map(|frame| Arrival {
            data: frame.data(),
            len: frame.len - frame.taken,
            last: frame.last,
            tag: frame.tag,
            home: Home::Host,
        })
    }

    /// Gives up the first `len` bytes of the channel's oldest slice.
    pub fn release(&mut self, channel: Channel, len: usize, credits: &mut Credits) {
        let Some(frame) = self.channels[channel].arrived.front_mut() else {
            return;
        };
        debug_assert!(len <= frame.len - frame.taken, "released more than arrived");
        frame.taken = (frame.taken + len).min(frame.len);
        if frame.taken == frame.len {
            credits.release(channel, frame.asked);
            let slot = frame.slot.take();
            self.free.extend(slot);
            self.channels[channel].arrived.pop_front();
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
        while let Some(frame) = self.channels[wanted.channel].arrived.front() {
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
        let next = self.channels[wanted.channel].next;
        for stream in &mut self.streams {
            let Some((channel, frame)) = &mut stream.incoming else { continue };
            let is_shown_whole = stream.proof.is_of_whole_frames();
            if is_shown_whole || frame.number != next || !wanted.wants(*channel, frame.tag) {
                continue;
            }
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

    /// Reads a socket once and takes apart what came. What is `wanted` goes where it is wanted;
    /// [`Receiver::take_stored`] must have been called for it before.
    ///
    /// # Safety
    /// `wanted` must tell the truth about its memory.
    pub unsafe fn read(
        &mut self,
        at: usize,
        fd: RawFd,
        wanted: &mut Option<Wanted>,
        credits: &mut Credits,
    ) -> Result<Read, End> {
        let destination = self.destination(at, wanted);
        let stream = &mut self.streams[at];
        let read_ahead = STAGING_BYTES - stream.staged.end;
        let staging = range(stream.staging.at(stream.staged.end), read_ahead);
        let payload = destination.map_or(NO_RANGE, |to| range(to.data, to.len));
        let skip = usize::from(destination.is_none());
        // SAFETY: free memory of a slot or of the caller, and of the staging buffer.
        let received = match unsafe { socket::receive(fd, &[payload, staging][skip..]) } {
            Ok(0) => return Err(End::Closed),
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Read::Nothing),
            Err(error) => return Err(End::Failed(error)),
        };
        stream.staged.end += received.saturating_sub(payload.iov_len);
        if let Some(to) = destination {
            self.arrive(at, to.direct, received.min(to.len), wanted, credits)?;
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { self.take_apart(at, wanted, credits) }?;
        Ok(if received < payload.iov_len + read_ahead { Read::Drained } else { Read::More })
    }

    /// Takes all staged bytes of a stream apart, up to an incomplete header.
    ///
    /// # Safety
    /// As of [`Receiver::read`].
    unsafe fn take_apart(
        &mut self,
        at: usize,
        wanted: &mut Option<Wanted>,
        credits: &mut Credits,
    ) -> Result<(), End> {
        while !self.streams[at].staged.is_empty() {
            let destination = self.destination(at, wanted);
            let stream = &mut self.streams[at];
            let from = stream.staging.at(stream.staged.start);
            if let Some(to) = destination {
                let len = to.len.min(stream.staged.len());
                // SAFETY: staged bytes, and free memory of a slot or of the caller.
                unsafe { from.copy_to_nonoverlapping(to.data, len) };
                stream.staged.start += len;
                self.arrive(at, to.direct, len, wanted, credits)?;
            } else if let Some((header, checksum)) = stream.take_header()? {
                self.begin(at, header, checksum, wanted, credits)?;
            } else {
                let len = stream.staged.len();
                // SAFETY: both ranges lie in the staging buffer.
                unsafe { from.copy_to(stream.staging.at(0), len) };
                stream.staged = 0..len;
                return Ok(());
            }
        }
        self.streams[at].staged = 0..0;
        Ok(())
    }

    /// Begins the frame of a header, and of a payload of this checksum if it has one.
    fn begin(
        &mut self,
        at: usize,
        header: Header,
        checksum: u32,
        wanted: &mut Option<Wanted>,
        credits: &mut Credits,
    ) -> Result<(), End> {
        credits.take_back(&header.credits).map_err(End::Protocol)?;
        match header.kind {
            Kind::Goodbye => return Err(End::Goodbye),
            Kind::Credit if header.ask => {
                self.ask_for_all(at);
                credits.peer_asks();
            }
            Kind::Credit => {}
            Kind::Data => {
                let channel = usize::from(header.channel);
                credits.arrive(channel).map_err(End::Protocol)?;
                if !self.expects(channel, header.number) {
                    return Err(End::Protocol("frame out of order"));
                }
                let stream = &mut self.streams[at];
                let is_sealed = matches!(stream.proof, Proof::Opening(_));
                let mut frame = Frame { checksum, ..Frame::new(&header, is_sealed) };
                if stream.asked_ahead > 0 {
                    stream.asked_ahead -= 1;
                    frame.asked = true;
                }
                stream.incoming = Some((channel, frame));
                if header.len == 0 {
                    self.finish(at, wanted, credits)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a frame of this number can come: one socket keeps the order, several mix what is
    /// under way.
    fn expects(&self, channel: Channel, number: u8) -> bool {
        let inbox = &self.channels[channel];
        let ahead = usize::from(number.wrapping_sub(inbox.next));
        let under_way = self.streams.iter().filter_map(|stream| stream.incoming.as_ref());
        let is_same = |frame: &Frame| frame.number == number;
        ahead < if self.streams.len() == 1 { 1 } else { SLOTS }
            && !inbox.early.iter().any(is_same)
            && !under_way.into_iter().any(|(at, frame)| *at == channel && is_same(frame))
    }

    /// The sender wants credits back for everything that it had sent, on any socket, when it asked
    /// on this one. More credits than it meant do no harm.
    fn ask_for_all(&mut self, asked_on: usize) {
        for inbox in &mut self.channels {
            let frames = inbox.arrived.iter_mut().chain(&mut inbox.early);
            frames.for_each(|frame| frame.asked = true);
        }
        for (at, stream) in self.streams.iter_mut().enumerate() {
            if at != asked_on {
                stream.asked_ahead = SLOTS;
            }
            if let Some((_, frame)) = &mut stream.incoming {
                frame.asked = true;
            }
        }
    }

    /// Where the rest of a stream's frame under way goes; `None` if no frame is under way.
    fn destination(&mut self, at: usize, wanted: &Option<Wanted>) -> Option<Destination> {
        let Stream { incoming, proof, .. } = &mut self.streams[at];
        let (channel, frame) = incoming.as_mut()?;
        let inbox = &self.channels[*channel];
        let rest = frame.wire_len - frame.received;
        if let Some(wanted) = wanted
            && wanted.room > 0
            && frame.slot.is_none()
            && !proof.is_of_whole_frames()
            && wanted.wants(*channel, frame.tag)
            && frame.number == inbox.next
            && inbox.arrived.is_empty()
        {
            return Some(Destination {
                data: wanted.into,
                len: rest.min(wanted.room),
                direct: true,
            });
        }
        let free = &mut self.free;
        let slot =
            frame.slot.get_or_insert_with(|| free.pop().unwrap_or_else(Block::new::<SLOT_BYTES>));
        Some(Destination { data: slot.at(frame.received), len: rest, direct: false })
    }

    /// Counts bytes of a stream's frame under way that were written to its destination.
    fn arrive(
        &mut self,
        at: usize,
        direct: bool,
        len: usize,
        wanted: &mut Option<Wanted>,
        credits: &mut Credits,
    ) -> Result<(), End> {
        let Some((_, frame)) = &mut self.streams[at].incoming else {
            return Ok(());
        };
        frame.received += len;
        if direct && let Some(wanted) = wanted {
            frame.taken += len;
            wanted.advance(len);
        }
        if frame.received == frame.wire_len { self.finish(at, wanted, credits) } else { Ok(()) }
    }

    /// Ends a stream's frame under way: it has been consumed already, or it is shown from when all
    /// before it have arrived.
    fn finish(
        &mut self,
        at: usize,
        wanted: &mut Option<Wanted>,
        credits: &mut Credits,
    ) -> Result<(), End> {
        let Stream { incoming, proof, .. } = &mut self.streams[at];
        let Some((channel, frame)) = incoming.take() else {
            return Ok(());
        };
        let inbox = &mut self.channels[channel];
        if let Some(slot) = &frame.slot
            && proof.is_of_whole_frames()
        {
            // SAFETY: the slot is this frame's own, and so long.
            let payload = unsafe { std::slice::from_raw_parts_mut(slot.at(0), frame.wire_len) };
            let begin = (frame.number == inbox.next).then_some(inbox.message_bytes);
            proof.check(payload, frame.checksum, || frame.damage(channel, begin))?;
        }
        inbox.arrived_bytes += frame.len as u64;
        if frame.number != inbox.next {
            inbox.early.push(frame);
            return Ok(());
        }
        inbox.pass(&frame);
        if let Some(wanted) = wanted
            && frame.taken == frame.len
            && wanted.wants(channel, frame.tag)
            && inbox.arrived.is_empty()
        {
            wanted.ended = frame.last;
            credits.release(channel, frame.asked);
        } else {
            inbox.arrived.push_back(frame);
        }
        while let Some(at) = inbox.early.iter().position(|frame| frame.number == inbox.next) {
            let frame = inbox.early.swap_remove(at);
            inbox.pass(&frame);
            inbox.arrived.push_back(frame);
        }
        Ok(())
    }
}

impl Inbox {
    /// Counts the next frame in order.
    fn pass(&mut self, frame: &Frame) {
        self.next = self.next.wrapping_add(1);
        self.message_bytes = if frame.last { 0 } else { self.message_bytes + frame.len as u64 };
    }
}

impl Stream {
    /// The next header and its payload's checksum, if it has arrived.
    fn take_header(&mut self) -> Result<Option<(Header, u32)>, End> {
        let len = HEADER_BYTES + self.proof.bytes_behind_header();
        if self.staged.len() < len {
            return Ok(None);
        }
        let from = self.staging.at(self.staged.start);
        let mut checksum = 0;
        match &mut self.proof {
            Proof::None => {}
            Proof::Checksums => {
                // SAFETY: that many bytes are staged; an array of bytes has no alignment.
                let found = frame::payload_checksum(unsafe { &*from.cast() });
                checksum = found.ok_or(End::Corrupt(Damage::Header))?;
            }
            Proof::Opening(opener) => {
                // SAFETY: that many bytes are staged, and nobody else looks at them.
                let sealed = unsafe { std::slice::from_raw_parts_mut(from, len) };
                opener.open(sealed).map_err(|_| End::Tampered(Damage::Header))?;
            }
        }
        // SAFETY: at least so many bytes are staged; an array of bytes has no alignment.
        let header = frame::parse(unsafe { &*from.cast::<[u8; HEADER_BYTES]>() });
        self.staged.start += len;
        Ok(Some((header.map_err(End::Protocol)?, checksum)))
    }
}

impl Proof {
    /// Whether a frame can be proved only once it is there as a whole.
    fn is_of_whole_frames(&self) -> bool {
        !matches!(self, Proof::None)
    }

    fn bytes_behind_header(&self) -> usize {
        match self {
            Proof::None => 0,
            Proof::Checksums => CHECKSUMS_BYTES,
            Proof::Opening(_) => TAG_BYTES,
        }
    }

    /// Whether a payload is as it was sent; decrypts it if need be. `damage` says which one it is.
    fn check(
        &mut self,
        payload: &mut [u8],
        checksum: u32,
        damage: impl Fn() -> Damage,
    ) -> Result<(), End> {
        match self {
            Proof::Checksums if checksum::of(payload) != checksum => Err(End::Corrupt(damage())),
            Proof::Opening(opener) => opener.open(payload).map_err(|_| End::Tampered(damage())),
            Proof::None | Proof::Checksums => Ok(()),
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
    fn new(header: &Header, is_sealed: bool) -> Frame {
        let len = header.len as usize;
        Frame {
            number: header.number,
            tag: header.tag,
            last: header.last,
            asked: header.ask,
            len,
            wire_len: if is_sealed && len > 0 { len + TAG_BYTES } else { len },
            received: 0,
            taken: 0,
            checksum: 0,
            slot: None,
        }
    }

    /// What is damaged where it is this one, which begins there in its message.
    fn damage(&self, channel: Channel, begin: Option<u64>) -> Damage {
        Damage::Payload { channel, tag: self.tag, begin, len: self.len as u64 }
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
