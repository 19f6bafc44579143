//! Frames that are being written to one socket. Their credits are spent and their order is fixed:
//! they are finished before anything else leaves by that socket.

use super::SLICE_BYTES;
use super::block::Block;
use super::cipher::{Sealer, TAG_BYTES};
use super::frame::{CHECKSUMS_BYTES, HEADER_BYTES, Header, Kind, checksums};
use super::socket::{NO_RANGE, range};
use crate::{Channel, checksum};

/// Frames that leave in one system call at most.
const BATCH_FRAMES: usize = 8;

/// No further frame joins a batch of this many bytes of payload: a batch is sent whole before
/// another channel has its turn.
const BATCH_BYTES: usize = 4 * SLICE_BYTES;

/// The same where frames are encrypted or have checksums, so that they should stay in cache until the kernel copies them, or
/// where the next frame may be better off on another socket.
const SMALL_BATCH_BYTES: usize = SLICE_BYTES;

/// Payloads of a batch that is encrypted, and their tags.
const SEALED_BYTES: usize = SMALL_BATCH_BYTES + SLICE_BYTES + BATCH_FRAMES * TAG_BYTES;

/// Ranges of memory that a batch consists of at most.
const RANGES: usize = 2 * BATCH_FRAMES;

const _: () = assert!(CHECKSUMS_BYTES <= TAG_BYTES);

/// What is being written to one socket.
#[derive(Debug)]
pub(super) struct Batch {
    frames: [Frame; BATCH_FRAMES],
    count: usize,
    payload_bytes: usize,
    limit_bytes: usize,
    /// Frames that are written.
    done: usize,
    /// Bytes of the next one, its header included, that are written.
    written: usize,
    proof: Proof,
}

/// What lets the receiver tell that a frame is as it was sent.
#[derive(Debug)]
enum Proof {
    None,
    /// Checksums behind the header.
    Checksums,
    /// Encryption.
    Sealing(Box<Sealing>),
}

/// How frames are encrypted, and where encrypted payloads wait.
#[derive(Debug)]
struct Sealing {
    sealer: Sealer,
    memory: Block,
    used: usize,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    is_data: bool,
    header: [u8; HEADER_BYTES + TAG_BYTES],
    header_len: usize,
    channel: Channel,
    /// Payload bytes of the channel before this frame.
    before: u64,
    /// The payload as it is written, and its length before it was encrypted.
    data: *const u8,
    len: usize,
    plain_len: usize,
}

impl Frame {
    const NONE: Frame = Frame {
        is_data: false,
        header: [0; HEADER_BYTES + TAG_BYTES],
        header_len: 0,
        channel: 0,
        before: 0,
        data: std::ptr::null(),
        len: 0,
        plain_len: 0,
    };

    fn total(&self) -> usize {
        self.header_len + self.len
    }
}

impl Batch {
    /// For a socket that is the only one of its link or not, and that encrypts or not.
    pub fn new(is_alone: bool, sealer: Option<Sealer>) -> Batch {
        let small = !is_alone || sealer.is_some();
        Batch {
            frames: [Frame::NONE; BATCH_FRAMES],
            count: 0,
            payload_bytes: 0,
            limit_bytes: if small { SMALL_BATCH_BYTES } else { BATCH_BYTES },
            done: 0,
            written: 0,
            proof: sealer.map_or(Proof::None, |sealer| {
                let memory = Block::new::<SEALED_BYTES>();
                Proof::Sealing(Box::new(Sealing { sealer, memory, used: 0 }))
            }),
        }
    }

    /// Frames that are not encrypted have checksums from now on.
    pub fn check_frames(&mut self) {
        if let Proof::None = self.proof {
            self.proof = Proof::Checksums;
            self.limit_bytes = SMALL_BATCH_BYTES;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.done == self.count
    }

    /// Whether another frame of data may join; then there is still room for one without.
    pub fn has_room(&self) -> bool {
        self.count < BATCH_FRAMES - 1 && self.payload_bytes < self.limit_bytes
    }

    pub fn carries_data(&self) -> bool {
        self.data_frames().next().is_some()
    }

    pub fn carries_data_of(&self, channel: Channel) -> bool {
        self.data_frames().any(|frame| frame.channel == channel)
    }

    /// The frames of channels that are not written whole.
    fn data_frames(&self) -> impl Iterator<Item = &Frame> {
        self.frames[self.done..self.count].iter().filter(|frame| frame.is_data)
    }

    /// How much of a channel's payload comes before the first byte that is not written, if the
    /// batch carries such a byte.
    pub fn written_bytes(&self, channel: Channel) -> Option<u64> {
        let at = (self.done..self.count)
            .find(|&at| self.frames[at].is_data && self.frames[at].channel == channel)?;
        let frame = &self.frames[at];
        let written = if at == self.done { self.written } else { 0 };
        let payload = written.saturating_sub(frame.header_len).min(frame.plain_len);
        Some(frame.before + payload as u64)
    }

    /// Adds a frame, before which its channel has carried so many bytes; there must be room.
    ///
    /// # Safety
    /// The header's length of bytes must be readable at `data`, until they are written.
    pub unsafe fn push(&mut self, header: &Header, before: u64, data: *const u8) {
        let mut frame = Frame {
            is_data: header.kind == Kind::Data,
            header_len: HEADER_BYTES,
            channel: header.channel.into(),
            before,
            data,
            len: header.len as usize,
            plain_len: header.len as usize,
            ..Frame::NONE
        };
        let bytes = header.encode();
        frame.header[..HEADER_BYTES].copy_from_slice(&bytes);
        match &mut self.proof {
            Proof::None => {}
            Proof::Checksums => {
                // SAFETY: the caller's promise.
                let payload = unsafe { checksum::of_memory(data, frame.len) };
                frame.header[HEADER_BYTES..][..CHECKSUMS_BYTES]
                    .copy_from_slice(&checksums(&bytes, payload));
                frame.header_len += CHECKSUMS_BYTES;
            }
            // SAFETY: the caller's promise is passed on.
            Proof::Sealing(sealing) => unsafe { sealing.seal(&mut frame) },
        }
        self.payload_bytes += frame.plain_len;
        self.frames[self.count] = frame;
        self.count += 1;
    }

    /// The ranges that are still to be written, and how many there are.
    pub fn ranges(&self) -> ([libc::iovec; RANGES], usize) {
        let mut ranges = [NO_RANGE; RANGES];
        let mut used = 0;
        let mut skip = self.written;
        for frame in &self.frames[self.done..self.count] {
            let header = &frame.header[skip.min(frame.header_len)..frame.header_len];
            if !header.is_empty() {
                ranges[used] = range(header.as_ptr().cast_mut(), header.len());
                used += 1;
            }
            let from = skip.saturating_sub(frame.header_len);
            if from < frame.len {
                let data = frame.data.wrapping_add(from).cast_mut();
                ranges[used] = range(data, frame.len - from);
                used += 1;
            }
            skip = 0;
        }
        (ranges, used)
    }

    /// Counts written bytes.
    pub fn advance(&mut self, mut written: usize) {
        while self.done < self.count {
            let total = self.frames[self.done].total();
            let step = written.min(total - self.written);
            self.written += step;
            written -= step;
            if self.written < total {
                return;
            }
            self.done += 1;
            self.written = 0;
        }
        (self.count, self.done, self.payload_bytes) = (0, 0, 0);
        if let Proof::Sealing(sealing) = &mut self.proof {
            sealing.used = 0;
        }
    }
}

impl Sealing {
    /// Encrypts a frame: its header in place, its payload to memory of the batch's own.
    ///
    /// # Safety
    /// The frame's payload must be readable.
    unsafe fn seal(&mut self, frame: &mut Frame) {
        let (header, tag) = frame.header.split_at_mut(HEADER_BYTES);
        tag.copy_from_slice(&self.sealer.seal(header));
        frame.header_len += TAG_BYTES;
        if frame.plain_len == 0 {
            return;
        }
        let sealed = self.memory.at(self.used);
        self.used += frame.plain_len + TAG_BYTES;
        // The end lies within the block too.
        self.memory.at(self.used);
        // SAFETY: the payload is readable, and the block holds as much, its tag included, which
        // nothing else uses.
        unsafe {
            frame.data.copy_to_nonoverlapping(sealed, frame.plain_len);
            let text = std::slice::from_raw_parts_mut(sealed, frame.plain_len);
            let tag = self.sealer.seal(text);
            tag.as_ptr().copy_to_nonoverlapping(sealed.add(frame.plain_len), TAG_BYTES);
        }
        frame.data = sealed;
        frame.len += TAG_BYTES;
    }
}
