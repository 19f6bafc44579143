//! One end of a simulated link: the slots it may send in, and what has arrived.

use std::collections::VecDeque;

use super::network::{Config, Traffic};
use crate::{CHANNELS, Channel, MAX_LANES, POINT_TO_POINT, Tag, checksum};

/// The memory of one slot, aligned as [`Slot`](crate::Slot) promises. It moves with the frame that
/// it carries, and its bytes stay where they are.
pub(super) struct SlotMemory(Vec<CacheLine>);

#[derive(Clone)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

impl SlotMemory {
    fn new(len_bytes: usize) -> SlotMemory {
        SlotMemory(vec![CacheLine([0; 64]); len_bytes.div_ceil(64)])
    }

    /// The first byte, to read.
    pub(super) fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr().cast()
    }

    /// The first byte, to write.
    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
}

/// A slice under way or arrived: the first `len` bytes of a slot.
pub(super) struct Frame {
    pub(super) memory: SlotMemory,
    pub(super) len: usize,
    pub(super) last: bool,
    pub(super) tag: Tag,
    /// Of all that, where frames have checksums.
    pub(super) checksum: Option<u32>,
}

impl Frame {
    /// The checksum of the frame as it is.
    pub(super) fn checksum_now(&self) -> u32 {
        // SAFETY: a frame has as many bytes.
        let payload = unsafe { checksum::of_memory(self.memory.as_ptr(), self.len) };
        let Tag { sequence, digest } = self.tag;
        let words = [sequence, digest, self.len as u32, u32::from(self.last), payload];
        checksum::of(words.map(u32::to_le_bytes).as_flattened())
    }

    /// The frame with a checksum, if it is to have one.
    pub(super) fn sealed(self, checks: bool) -> Frame {
        let checksum = checks.then(|| self.checksum_now());
        Frame { checksum, ..self }
    }

    /// Changes one bit: of the tag if `bit` is below 64, else of the payload, which begins anew where it ends.
    pub(super) fn flip(&mut self, bit: u64) {
        match bit {
            0..32 => self.tag.sequence ^= 1 << bit,
            32..64 => self.tag.digest ^= 1 << (bit - 32),
            _ if self.len == 0 => self.tag.sequence ^= 1,
            _ => {
                let bit = (bit - 64) as usize % (8 * self.len);
                // SAFETY: the byte is one of the frame's.
                unsafe { *self.memory.as_mut_ptr().add(bit / 8) ^= 1 << (bit % 8) };
            }
        }
    }
}

/// What the network knows of one end of a link.
pub(super) struct End {
    pub(super) rank: u32,
    pub(super) peer: u32,
    /// Its rank has closed it or was killed: nothing leaves or arrives here any more.
    pub(super) gone: bool,
    /// The peer's goodbye has arrived.
    pub(super) peer_gone: bool,
    /// Once set, what every call fails with.
    pub(super) failure: Option<String>,
    /// Something has come that no poll has told of yet.
    pub(super) news: bool,
    /// Frames that no poll has taken in yet.
    pub(super) arrived: [VecDeque<Frame>; CHANNELS],
    pub(super) outgoing: Outgoing,
}

impl End {
    pub(super) fn new(rank: u32, peer: u32, seed: u64) -> End {
        End {
            rank,
            peer,
            gone: false,
            peer_gone: false,
            failure: None,
            news: false,
            arrived: Default::default(),
            outgoing: Outgoing::new(seed),
        }
    }

    /// Whether frames still leave and arrive here.
    pub(super) fn is_open(&self) -> bool {
        !self.gone && self.failure.is_none()
    }

    /// Frees what only an open end needs.
    pub(super) fn clear(&mut self) {
        self.arrived = Default::default();
        self.outgoing.free = Vec::new();
    }
}

/// The sending direction of an end.
pub(super) struct Outgoing {
    lanes: usize,
    /// The end is being closed, and what it has posted leaves without credits.
    pub(super) unlimited: bool,
    /// Slots that are reserved, or that have left and whose credit is not back.
    in_use: [usize; CHANNELS],
    free: Vec<SlotMemory>,
    /// Channels on which a frame was dropped.
    pub(super) stalled: [bool; CHANNELS],
    /// When everything that was sent has left.
    idle_from_ns: u64,
    /// When the newest frame of each channel arrives.
    last_arrival_ns: [u64; CHANNELS],
    jitter: SplitMix64,
    pub(super) traffic: Traffic,
}

impl Outgoing {
    fn new(seed: u64) -> Outgoing {
        Outgoing {
            lanes: MAX_LANES,
            unlimited: false,
            in_use: [0; CHANNELS],
            free: Vec::new(),
            stalled: [false; CHANNELS],
            idle_from_ns: 0,
            last_arrival_ns: [0; CHANNELS],
            jitter: SplitMix64(seed),
            traffic: Traffic::default(),
        }
    }

    pub(super) fn divide(&mut self, lanes: usize) {
        self.lanes = lanes.clamp(1, MAX_LANES);
    }

    /// Whether a slice of the channel may leave: the channel has not used up its share, nor the
    /// lanes together theirs (right after a new division, slots of the old one are still out).
    pub(super) fn has_credit(&self, config: &Config, channel: Channel) -> bool {
        if self.unlimited {
            return true;
        }
        let for_point_to_point = (config.slots / 8).max(1);
        let for_lanes = config.slots.saturating_sub(for_point_to_point).max(self.lanes);
        if channel == POINT_TO_POINT {
            return self.in_use[channel] < for_point_to_point;
        }
        let used_by_lanes: usize = self.in_use[..MAX_LANES].iter().sum();
        channel < self.lanes
            && self.in_use[channel] < for_lanes / self.lanes
            && used_by_lanes < for_lanes
    }

    /// Takes a slot against a credit.
    pub(super) fn take_slot(&mut self, config: &Config, channel: Channel) -> Option<SlotMemory> {
        if !self.has_credit(config, channel) {
            return None;
        }
        self.in_use[channel] += 1;
        Some(self.free.pop().unwrap_or_else(|| SlotMemory::new(config.slice_bytes)))
    }

    /// A slot and its credit have come back.
    pub(super) fn credit(&mut self, channel: Channel, memory: SlotMemory) {
        self.in_use[channel] -= 1;
        self.free.push(memory);
    }

    /// Puts a frame on the wire, and returns when it arrives.
    pub(super) fn depart(
        &mut self,
        config: &Config,
        now_ns: u64,
        channel: Channel,
        len_bytes: usize,
        delay_ns: u64,
        factor: u64,
    ) -> u64 {
        let wire_ns = wire_time_ns(len_bytes, config.bandwidth_bytes_per_s);
        self.idle_from_ns =
            self.idle_from_ns.max(now_ns).saturating_add(wire_ns.saturating_mul(factor));
        let latency_ns = config.latency_ns.saturating_add(self.jitter.up_to(config.jitter_ns));
        let arrives_ns = self
            .idle_from_ns
            .saturating_add(latency_ns.saturating_mul(factor))
            .saturating_add(delay_ns)
            .max(self.last_arrival_ns[channel]);
        self.last_arrival_ns[channel] = arrives_ns;
        arrives_ns
    }

    /// When a goodbye arrives that is sent now: after everything that was sent before.
    pub(super) fn goodbye_arrives_ns(&self, config: &Config, now_ns: u64) -> u64 {
        let alone_ns = self.idle_from_ns.max(now_ns).saturating_add(config.latency_ns);
        self.last_arrival_ns.iter().fold(alone_ns, |latest_ns, &ns| latest_ns.max(ns))
    }
}

/// Time of `len_bytes` at a bandwidth, rounded up.
fn wire_time_ns(len_bytes: usize, bandwidth_bytes_per_s: u64) -> u64 {
    const NS_PER_S: u128 = 1_000_000_000;
    let ns = (len_bytes as u128 * NS_PER_S).div_ceil(u128::from(bandwidth_bytes_per_s));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    /// Evenly from `0 ..= most`, but for a bias too small to matter for jitter.
    fn up_to(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((u128::from(z) * (u128::from(most) + 1)) >> 64) as u64
    }
}
