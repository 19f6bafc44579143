//! The sending half of a TCP link: what is posted waits in a queue for each channel, leaves in
//! frames as credits allow, several frames a system call, straight from the poster's memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::SLICE_BYTES;
use super::credit::Credits;
use super::frame::{HEADER_BYTES, Header, Kind};
use super::socket::{self, NO_RANGE, range};
use crate::{CHANNELS, Channel, Tag};

/// Frames that leave in one system call at most.
const BATCH_FRAMES: usize = 8;

/// No further frame joins a batch of this many bytes of payload: a batch is sent whole before
/// another channel has its turn.
const BATCH_BYTES: usize = 4 * SLICE_BYTES;

/// The sending half of a link.
#[derive(Debug)]
pub(super) struct Sender {
    channels: [Outbox; CHANNELS],
    /// A bit for each channel whose queue is not empty.
    waiting: u32,
    /// The channel whose turn it is.
    turn: Channel,
    batch: Batch,
}

#[derive(Debug, Default)]
struct Outbox {
    queue: VecDeque<Piece>,
    posted_bytes: u64,
    sent_bytes: u64,
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
    /// A sender with nothing to send.
    pub fn new() -> Sender {
        Sender { channels: Default::default(), waiting: 0, turn: 0, batch: Batch::default() }
    }

    pub fn posted_bytes(&self, channel: Channel) -> u64 {
        self.channels[channel].posted_bytes
    }

    pub fn sent_bytes(&self, channel: Channel) -> u64 {
        self.channels[channel].sent_bytes
    }

    /// Whether something posted on a channel has not left.
    pub fn is_waiting(&self, channel: Channel) -> bool {
        self.waiting & 1 << channel != 0 || self.batch.carries_data_of(channel)
    }

    /// Whether the socket refused a part of what was written last.
    pub fn socket_is_full(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Whether something posted has not left.
    pub fn has_unsent(&self) -> bool {
        self.waiting != 0 || self.batch.carries_data()
    }

    /// Whether a frame waits for nothing but room in the socket.
    pub fn could_send(&self, credits: &Credits) -> bool {
        self.socket_is_full() || credits.due() || self.next_channel(credits).is_some()
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

    /// Writes what credits and the socket allow, and credits that are due. Returns whether anything
    /// was written.
    ///
    /// # Safety
    /// Everything queued must be readable until it counts as sent.
    pub unsafe fn flush(&mut self, fd: RawFd, credits: &mut Credits) -> io::Result<bool> {
        let mut moved = false;
        loop {
            if self.batch.is_empty() && !self.fill_batch(credits) {
                return Ok(moved);
            }
            let mut ranges = [NO_RANGE; 2 * BATCH_FRAMES];
            let used = self.batch.ranges(&mut ranges);
            // SAFETY: headers are the batch's own, payloads the caller's.
            match unsafe { socket::send(fd, &ranges[..used]) } {
                Ok(written) => self.wrote(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(moved),
                Err(error) => return Err(error),
            }
            moved = true;
            if self.socket_is_full() {
                return Ok(true);
            }
        }
    }

    /// Makes the last frame the next to be written; nothing else may be under way.
    pub fn say_goodbye(&mut self, credits: &mut Credits) {
        self.push_control(Kind::Goodbye, false, credits);
    }

    /// Makes the next batch of frames, taking the waiting channels in turn. Returns whether there
    /// is anything to write.
    fn fill_batch(&mut self, credits: &mut Credits) -> bool {
        let mut bytes = 0;
        while self.batch.count < BATCH_FRAMES - 1 && bytes < BATCH_BYTES {
            let Some(channel) = self.next_channel(credits) else {
                break;
            };
            self.turn = (channel + 1) % CHANNELS;
            bytes += self.take_frame(channel, credits);
        }
        if self.waiting != 0 && credits.must_ask(self.waiting) {
            self.push_control(Kind::Credit, true, credits);
            credits.asked_for_all();
        } else if self.batch.is_empty() && credits.due() {
            self.push_control(Kind::Credit, false, credits);
        }
        !self.batch.is_empty()
    }

    fn push_control(&mut self, kind: Kind, ask: bool, credits: &mut Credits) {
        let header = Header::control(kind, ask, credits.pay());
        self.batch.push(header, 0, std::ptr::null());
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

    /// Moves one slice from a channel's queue to the batch. Returns its length.
    fn take_frame(&mut self, channel: Channel, credits: &mut Credits) -> usize {
        let queue = &mut self.channels[channel].queue;
        let Some(piece) = queue.front_mut() else {
            return 0;
        };
        let len = piece.len.min(SLICE_BYTES);
        let all = len == piece.len;
        let header = Header {
            kind: Kind::Data,
            channel: channel as u8,
            last: piece.last && all,
            ask: credits.spend(channel),
            credits: credits.pay(),
            len: len as u32,
            tag: piece.tag,
        };
        self.batch.push(header, channel, piece.data);
        if all {
            queue.pop_front();
            if queue.is_empty() {
                self.waiting &= !(1 << channel);
            }
        } else {
            piece.data = piece.data.wrapping_add(len);
            piece.len -= len;
        }
        len
    }

    fn wrote(&mut self, written: usize) {
        let channels = &mut self.channels;
        self.batch.advance(written, |channel, payload_bytes| {
            channels[channel].sent_bytes += payload_bytes as u64;
        });
    }
}

impl Piece {
    /// Whether bytes posted next belong to the same message and lie behind these.
    fn is_continued_by(&self, tag: Tag, data: *const u8, len: usize) -> bool {
        !self.last && self.tag == tag && (len == 0 || self.data.wrapping_add(self.len) == data)
    }
}

/// Frames that are being written. Their credits are spent and their order is fixed: they are
/// finished before anything else.
#[derive(Debug, Default)]
struct Batch {
    frames: [Frame; BATCH_FRAMES],
    count: usize,
    /// Frames that are written.
    done: usize,
    /// Bytes of the next one, its header included, that are written.
    written: usize,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    header: [u8; HEADER_BYTES],
    channel: Channel,
    data: *const u8,
    len: usize,
}

impl Default for Frame {
    fn default() -> Frame {
        Frame { header: [0; HEADER_BYTES], channel: 0, data: std::ptr::null(), len: 0 }
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.done == self.count
    }

    fn carries_data(&self) -> bool {
        self.data_frames().next().is_some()
    }

    fn carries_data_of(&self, channel: Channel) -> bool {
        self.data_frames().any(|frame| frame.channel == channel)
    }

    /// The frames of channels that are not written whole.
    fn data_frames(&self) -> impl Iterator<Item = &Frame> {
        let left = &self.frames[self.done..self.count];
        left.iter().filter(|frame| frame.header[0] == Kind::Data as u8)
    }

    /// Adds a frame; there must be room.
    fn push(&mut self, header: Header, channel: Channel, data: *const u8) {
        self.frames[self.count] =
            Frame { header: header.encode(), channel, data, len: header.len as usize };
        self.count += 1;
    }

    /// The ranges that are still to be written; returns how many there are.
    fn ranges(&self, ranges: &mut [libc::iovec; 2 * BATCH_FRAMES]) -> usize {
        let mut used = 0;
        let mut skip = self.written;
        for frame in &self.frames[self.done..self.count] {
            let header = &frame.header[skip.min(HEADER_BYTES)..];
            if !header.is_empty() {
                ranges[used] = range(header.as_ptr().cast_mut(), header.len());
                used += 1;
            }
            let from = skip.saturating_sub(HEADER_BYTES);
            if from < frame.len {
                let data = frame.data.wrapping_add(from).cast_mut();
                ranges[used] = range(data, frame.len - from);
                used += 1;
            }
            skip = 0;
        }
        used
    }

    /// Counts written bytes, and reports those of payloads by channel.
    fn advance(&mut self, mut written: usize, mut sent: impl FnMut(Channel, usize)) {
        while self.done < self.count {
            let frame = &self.frames[self.done];
            let total = HEADER_BYTES + frame.len;
            let before = self.written.max(HEADER_BYTES);
            let step = written.min(total - self.written);
            self.written += step;
            written -= step;
            sent(frame.channel, self.written.max(HEADER_BYTES) - before);
            if self.written < total {
                return;
            }
            self.done += 1;
            self.written = 0;
        }
        (self.count, self.done) = (0, 0);
    }
}
