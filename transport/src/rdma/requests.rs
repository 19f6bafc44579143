//! Work requests: what is posted to queue pairs, and what becomes of it when it is complete.

use std::sync::atomic::{Ordering, compiler_fence};

use super::arena::Place;
use super::ffi::ScatterGather;
use super::frame::{HEADER_BYTES, Immediate};
use super::link::RdmaLink;
use super::queue::{Source, State, Work};
use super::queue_pair::Write;
use crate::{Channel, Home};

/// Payloads from which on a completion is asked for each: it costs little beside them, and tells how the
/// queue pair drains.
pub(super) const SIGNALLED_BYTES: usize = 16 << 10;

impl RdmaLink {
    /// Posts a write to a queue pair that has room.
    pub(super) fn post_work(&mut self, at: usize, work: Work) {
        let queue = &mut self.queues[at];
        let (own, foreign) = (queue.device(), queue.peer_device);
        let staged = |place: Place, len: usize| ScatterGather {
            addr: self.staging.arena.start() as u64 + place.offset() as u64,
            length: len as u32,
            lkey: self.staging.keys[own],
        };
        let sourced = |source: Source, len: usize| ScatterGather {
            addr: source.data as u64,
            length: len as u32,
            lkey: source.keys[own],
        };
        let placed =
            |place: Place| (self.remote.address + place.offset() as u64, self.remote.keys[foreign]);
        let mut pieces = [ScatterGather::default(); 2];
        let mut count = 1;
        let is_read = |source: &Source| source.bounce.is_none();
        let (to, immediate, wanted) = match work {
            Work::Slot { slot, source, len, .. } => {
                let place = Place::Slot(slot);
                match source {
                    None => pieces[0] = staged(place, HEADER_BYTES + len),
                    Some(source) => {
                        pieces = [staged(place, HEADER_BYTES), sourced(source, len)];
                        count = 2;
                    }
                }
                let wanted = len >= SIGNALLED_BYTES || source.as_ref().is_some_and(is_read);
                (placed(place), Immediate::Slot(slot), wanted)
            }
            Work::Line { line } => {
                pieces[0] = staged(Place::Line(line), HEADER_BYTES);
                (placed(Place::Line(line)), Immediate::Line(line), false)
            }
            Work::Closed { queue } => {
                pieces[0] = staged(Place::Closed(queue), HEADER_BYTES);
                (placed(Place::Closed(queue)), Immediate::Closed(queue), false)
            }
            Work::Direct { channel, number, last, source, len, target } => {
                pieces[0] = sourced(source, len);
                let immediate =
                    Immediate::Direct { channel: channel as u8, number: number as u8, last };
                ((target.address, target.keys[foreign]), immediate, true)
            }
        };
        let (remote_address, remote_key) = to;
        let write = Write {
            id: queue.next_id(),
            pieces: &mut pieces[..count],
            remote_address,
            remote_key,
            immediate: Some(immediate.encode()),
            signalled: queue.signals(wanted),
            is_readable: work.source().is_none_or(|source| source.home == Home::Host),
        };
        let bytes: u64 = write.pieces.iter().map(|piece| u64::from(piece.length)).sum();
        // What was written to the slot comes before the device is told of it.
        compiler_fence(Ordering::Release);
        // SAFETY: headers, slots and bounce buffers are the link's own, which outlive its queue pairs, and
        // stay as they are until the peer has taken them in; other memory is kept by whoever posted it until
        // it counts as sent. The keys are those of the queue pair's device.
        let posted = unsafe { queue.pair.write(write) };
        // One that was refused is made again with all that the queue pair does not deliver.
        queue.outstanding.push_back(work);
        queue.outstanding_bytes += work.weight();
        if let Err(error) = posted {
            self.call_failed(at, "ibv_post_send", &error);
        }
        self.counters.work_requests += 1;
        self.counters.wire_bytes += bytes;
        self.counters.payload_bytes += work.len() as u64;
    }

    /// A write has arrived at the peer's memory.
    pub(super) fn complete(&mut self, work: Work) {
        match work {
            Work::Slot { channel, number, .. } | Work::Direct { channel, number, .. } => {
                self.note_arrived(channel, number);
            }
            Work::Line { .. } | Work::Closed { .. } => {}
        }
        if let Some(bounce) = work.source().and_then(|source| source.bounce) {
            self.free_bounces |= 1 << bounce;
        }
    }

    fn note_arrived(&mut self, channel: Channel, number: u64) {
        if !self.sends[channel].arrived(number) {
            self.reading &= !(1 << channel);
        }
    }

    /// Asks for a completion of everything that is under way.
    pub(super) fn ask_for_completions(&mut self) {
        for queue in self.queues.iter_mut() {
            if queue.state != State::Open || !queue.has_unsignalled() || queue.room() == 0 {
                continue;
            }
            queue.signals(true);
            let write = Write {
                id: queue.next_id() - 1,
                pieces: &mut [],
                remote_address: self.remote.address,
                remote_key: self.remote.keys[queue.peer_device],
                immediate: None,
                signalled: true,
                is_readable: true,
            };
            // SAFETY: nothing is written.
            if let Err(error) = unsafe { queue.pair.write(write) } {
                tracing::debug!("an empty write: {error}");
            }
        }
    }
}
