//! The sending half of a TCP link: what is posted waits in a queue for each channel, leaves in
//! frames as credits allow, several frames a system call, straight from the poster's memory.
//!
//! Of several sockets the link chooses one for each batch. Frames are numbered in their channel, so that the receiver can put them in order again.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::SLICE_BYTES;
use super::batch::Batch;
use super::cipher::Sealer;
use super::frame::{Header, Kind};
use super::socket;
use crate::credit::Credits;
use crate::{CHANNELS, Channel, Tag};

/// The sending half of a link.
#[derive(Debug)]
pub(super) struct Sender {
    channels: [Outbox; CHANNELS],
    /// A bit for each channel whose queue is not empty.
    waiting: u32,
    /// The channel whose turn it is.
    turn: Channel,
    /// What each socket is writing.
    batches: Box<[Batch]>,
}

#[derive(Debug, Default)]
struct Outbox {
    queue: VecDeque<Piece>,
    /// Number of the next frame.
    number: u8,
    posted_bytes: u64,
    /// Payload bytes that frames have been made of.
    framed_bytes: u64,
}

/// Posted bytes of one message, not yet in a frame.
#[derive(Debug)]
struct Piece {
    data: *const u8,
    len: usize,
    tag: Tag,
    last: bool,
}

impl Sender {
    /// A sender with nothing to send, for sockets that encrypt or not.
    pub fn new(sealers: Vec<Option<Sealer>>) -> Sender {
        let is_alone = sealers.len() == 1;
        let batches = sealers.into_iter().map(|sealer| Batch::new(is_alone, sealer)).collect();
        Sender { channels: Default::default(), waiting: 0, turn: 0, batches }
    }

    /// Frames have checksums from now on.
    pub fn check_frames(&mut self) {
        self.batches.iter_mut().for_each(Batch::check_frames);
    }

    pub fn posted_bytes(&self, channel: Channel) -> u64 {
        self.channels[channel].posted_bytes
    }

    pub fn sent_bytes(&self, channel: Channel) -> u64 {
        // Several sockets do not write in the order in which frames were made.
        let written = self.batches.iter().filter_map(|batch| batch.written_bytes(channel));
        written.min().unwrap_or(self.channels[channel].framed_bytes)
    }

    /// Whether something posted on a channel has not left.
    pub fn is_waiting(&self, channel: Channel) -> bool {
        self.waiting & 1 << channel != 0
            || self.batches.iter().any(|batch| batch.carries_data_of(channel))
    }

    /// Whether every socket refused a part of what was written last.
    pub fn sockets_are_full(&self) -> bool {
        self.batches.iter().all(|batch| !batch.is_empty())
    }

    /// Whether frames wait for room in a socket.
    pub fn waits_for_room(&self) -> bool {
        self.batches.iter().any(|batch| !batch.is_empty())
    }

    /// Whether something posted has not left.
    pub fn has_unsent(&self) -> bool {
        self.waiting != 0 || self.batches.iter().any(Batch::carries_data)
    }

    /// Whether a frame waits for nothing but room in a socket.
    pub fn could_send(&self, credits: &Credits) -> bool {
        self.waits_for_room() || credits.due() || self.has_frame(credits)
    }

    /// Whether credits allow another frame of data.
    pub fn has_frame(&self, credits: &Credits) -> bool {
        self.next_channel(credits).is_some()
    }

    /// Queues bytes as the continuation of the channel's open message.
    pub fn queue(&mut self, channel: Channel, tag: Tag, data: *const u8, len: usize, last: bool) {
        let outbox = &mut self.channels[channel];
        outbox.posted_bytes += len as u64;
        if len == 0 && !last {
            return;
        }
        self.waiting |= 1 << channel;
        match outbox.queue.back_mut() {
            Some(open) if open.is_continued_by(tag, data, len) => {
                open.len += len;
                open.last = last;
            }
            _ => outbox.queue.push_back(Piece { data, len, tag, last }),
        }
    }

    /// Makes and writes batches until nothing is left that credits allow, or the socket is full.
    /// Returns whether anything was written.
    ///
    /// # Safety
    /// Everything queued must be readable until it counts as sent.
    pub unsafe fn flush(
        &mut self,
        socket: usize,
        fd: RawFd,
        credits: &mut Credits,
    ) -> io::Result<bool> {
        let mut moved = false;
        // SAFETY: the caller's promise is passed on.
        while self.is_writing(socket) || unsafe { self.fill(socket, credits) } {
            // SAFETY: as above.
            moved |= unsafe { self.write(socket, fd) }?;
            if self.is_writing(socket) {
                break;
            }
        }
        Ok(moved)
    }

    /// Whether a batch of the socket is not written whole.
    pub fn is_writing(&self, socket: usize) -> bool {
        !self.batches[socket].is_empty()
    }

    /// Writes what the socket takes of its batch. Returns whether it took anything.
    ///
    /// # Safety
    /// As of [`Sender::flush`].
    pub unsafe fn write(&mut self, socket: usize, fd: RawFd) -> io::Result<bool> {
        let batch = &mut self.batches[socket];
        let (ranges, used) = batch.ranges();
        // SAFETY: headers are the batch's own, payloads the caller's or the batch's.
        match unsafe { socket::send(fd, &ranges[..used]) } {
            Ok(written) => batch.advance(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Makes the last frame the next to be written to every socket; nothing else may be under way.
    pub fn say_goodbye(&mut self, credits: &mut Credits) {
        for socket in 0..self.batches.len() {
            self.push_control(socket, Kind::Goodbye, false, credits);
        }
    }

    /// Makes the next batch of a socket that has none, taking the waiting channels in turn. Returns whether there
    /// is anything to write.
    ///
    /// # Safety
    /// As of [`Sender::flush`].
    pub unsafe fn fill(&mut self, socket: usize, credits: &mut Credits) -> bool {
        while self.batches[socket].has_room() {
            let Some(channel) = self.next_channel(credits) else {
                break;
            };
            self.turn = (channel + 1) % CHANNELS;
            // SAFETY: the caller's promise is passed on.
            unsafe { self.take_frame(socket, channel, credits) };
        }
        if self.waiting != 0 && credits.must_ask(self.waiting) {
            self.push_control(socket, Kind::Credit, true, credits);
            credits.asked_for_all();
        } else if self.batches[socket].is_empty() && credits.due() {
            self.push_control(socket, Kind::Credit, false, credits);
        }
        !self.batches[socket].is_empty()
    }

    fn push_control(&mut self, socket: usize, kind: Kind, ask: bool, credits: &mut Credits) {
        let header = Header::control(kind, ask, credits.pay());
        // SAFETY: the frame has no payload.
        unsafe { self.batches[socket].push(&header, 0, std::ptr::null()) };
    }

    /// The next channel in turn that waits and has a credit.
    fn next_channel(&self, credits: &Credits) -> Option<Channel> {
        if self.waiting == 0 {
            return None;
        }
        (self.turn..CHANNELS)
            .chain(0..self.turn)
            .find(|&channel| self.waiting & 1 << channel != 0 && credits.may_send(channel))
    }

    /// Moves one slice from a channel's queue to a socket's batch.
    ///
    /// # Safety
    /// As of [`Sender::flush`].
    unsafe fn take_frame(&mut self, socket: usize, channel: Channel, credits: &mut Credits) {
        let outbox = &mut self.channels[channel];
        let Some(piece) = outbox.queue.front_mut() else {
            return;
        };
        let len = piece.len.min(SLICE_BYTES);
        let all = len == piece.len;
        let header = Header {
            kind: Kind::Data,
            channel: channel as u8,
            number: outbox.number,
            last: piece.last && all,
            ask: credits.spend(channel),
            credits: credits.pay(),
            len: len as u32,
            tag: piece.tag,
        };
        outbox.number = outbox.number.wrapping_add(1);
        // SAFETY: a part of what the caller promises to be readable.
        unsafe { self.batches[socket].push(&header, outbox.framed_bytes, piece.data) };
        outbox.framed_bytes += len as u64;
        if all {
            outbox.queue.pop_front();
            if outbox.queue.is_empty() {
                self.waiting &= !(1 << channel);
            }
        } else {
            piece.data = piece.data.wrapping_add(len);
            piece.len -= len;
        }
    }
}

impl Piece {
    /// Whether bytes posted next belong to the same message and lie behind these.
    fn is_continued_by(&self, tag: Tag, data: *const u8, len: usize) -> bool {
        !self.last && self.tag == tag && (len == 0 || self.data.wrapping_add(self.len) == data)
    }
}
