//! The receiving half of a link: completions are taken, frames of each channel put in order, and slices lent
//! from the slots that the peer wrote them to.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, compiler_fence};

use super::arena::Place;
use super::ffi::{self, WorkCompletion};
use super::frame::{Body, Data, Immediate, parse, take_checksums};
use super::link::RdmaLink;
use super::queue::{RECEIVE_ID, State};
use crate::checksum::{self, Damage};
use crate::{Arrival, Channel, Home, LinkError, Tag, TransportKind};

/// Completions that are taken by one call.
pub(super) const COMPLETIONS_AT_ONCE: usize = 16;

/// Calls after which the caller has its turn again, whatever the peer sends.
const POLLS_AT_ONCE: usize = 8;

/// Frames that may have come before one that is missing.
const MOST_AHEAD: u8 = 128;

#[derive(Debug, Default)]
pub(super) struct ReceiveChannel {
    pub(super) current: Option<Arrival>,
    /// The slot that it is in, and whether its credit is wanted at once.
    slot: Option<(u8, bool)>,
    /// What has come in order and is not in hand yet.
    ready: VecDeque<Frame>,
    /// What has come before its turn, from the frame of number `next` on.
    early: VecDeque<Option<Frame>>,
    next: u8,
    /// Number of the message in hand or next to come, wrapping, and how much of it was in slots.
    message: u32,
    message_bytes: usize,
    /// Room that the peer may write to, in the order of the messages.
    offered: VecDeque<Offered>,
}

/// What has arrived.
#[derive(Clone, Copy, Debug)]
enum Frame {
    Slot {
        slot: u8,
        data: Data,
        /// Of the payload, where frames have some.
        checksum: u32,
    },
    /// Parts of a message that were written to where it is wanted, in a row.
    Direct { len: usize, last: bool },
}

/// Room that was offered for a message.
#[derive(Clone, Copy, Debug)]
struct Offered {
    message: u32,
    into: *mut u8,
    len: usize,
    tag: Tag,
    home: Home,
}

/// Why a write of the peer is not taken in.
enum Refusal {
    /// No correct peer writes that.
    Protocol(&'static str),
    /// The header is not the one that was sent.
    Corrupt,
}

impl From<&'static str> for Refusal {
    fn from(reason: &'static str) -> Refusal {
        Refusal::Protocol(reason)
    }
}

impl ReceiveChannel {
    /// Notes room for the message that `ahead` others come before; returns its number.
    pub(super) fn offered(
        &mut self,
        ahead: u32,
        into: *mut u8,
        len: usize,
        tag: Tag,
        home: Home,
    ) -> u32 {
        let message = self.message.wrapping_add(ahead);
        self.offered.push_back(Offered { message, into, len, tag, home });
        message
    }

    /// Puts a frame where its number says.
    fn take_in(&mut self, number: u8, frame: Frame) -> Result<(), &'static str> {
        let ahead = number.wrapping_sub(self.next);
        if ahead >= MOST_AHEAD {
            return Err("a frame that has come before, or far too early");
        }
        let ahead = usize::from(ahead);
        if self.early.len() <= ahead {
            self.early.resize(ahead + 1, None);
        }
        if self.early[ahead].replace(frame).is_some() {
            return Err("a frame that has come before");
        }
        while let Some(Some(frame)) = self.early.front().copied() {
            self.early.pop_front();
            self.next = self.next.wrapping_add(1);
            match (self.ready.back_mut(), frame) {
                (
                    Some(Frame::Direct { len, last: last @ false }),
                    Frame::Direct { len: more, last: ends },
                ) => {
                    *len += more;
                    *last = ends;
                }
                _ => self.ready.push_back(frame),
            }
        }
        Ok(())
    }

    fn finish_message(&mut self) {
        let message = self.message;
        self.offered.retain(|offered| offered.message != message);
        self.message = message.wrapping_add(1);
        self.message_bytes = 0;
    }
}

impl RdmaLink {
    /// Takes what has come into hand, if there is nothing.
    #[inline]
    pub(super) fn load(&mut self, channel: Channel) -> Result<(), LinkError> {
        let receive = &mut self.receives[channel];
        if receive.current.is_some() {
            return Ok(());
        }
        match receive.ready.front().copied() {
            None | Some(Frame::Direct { last: false, .. }) => {}
            Some(Frame::Slot { slot, data: Data { len, last, ask, tag, .. }, checksum }) => {
                let data = self.landing.arena.data(slot).cast_const();
                // SAFETY: a slot has so many bytes.
                let found = self.checks.then(|| unsafe { checksum::of_memory(data, len as usize) });
                if found.is_some_and(|found| found != checksum) {
                    let (begin, len) = (Some(receive.message_bytes as u64), len.into());
                    let damage = Damage::Payload { channel, tag, begin, len };
                    return Err(corrupt(self.peer, damage));
                }
                receive.ready.pop_front();
                let (len, home) = (len as usize, Home::Host);
                receive.current = Some(Arrival { data, len, last, tag, home });
                receive.slot = Some((slot, ask));
                receive.message_bytes += len;
            }
            Some(Frame::Direct { len, last: true }) => {
                receive.ready.pop_front();
                let (message, before) = (receive.message, receive.message_bytes);
                let room = receive.offered.iter().find(|offered| offered.message == message);
                let Some(room) = room.filter(|room| before + len == room.len) else {
                    return Err(
                        self.protocol("a message written to where there was no room for it")
                    );
                };
                let data = room.into.wrapping_add(before).cast_const();
                let (tag, home) = (room.tag, room.home);
                receive.current = Some(Arrival { data, len, last: true, tag, home });
            }
        }
        Ok(())
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
            if let Some((slot, ask)) = receive.slot.take() {
                self.held_slots &= !(1 << slot);
                self.credits.release(channel, ask);
            }
            if last {
                receive.finish_message();
            }
        }
        Ok(())
    }

    /// # Safety
    /// As of [`crate::Link::receive`].
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
            let arrival = match self.arrival(channel) {
                Ok(Some(arrival)) => arrival,
                Ok(None) => break,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            };
            if arrival.home != Home::Host {
                break;
            }
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

    /// Takes the completions of all queue pairs. Returns whether there were any.
    pub(super) fn take_completions(&mut self) -> Result<bool, LinkError> {
        let mut moved = false;
        for at in 0..self.queues.len() {
            for _ in 0..POLLS_AT_ONCE {
                let count = match self.queues[at].poll(&mut self.completions[..]) {
                    Ok(count) => count,
                    // Nobody knows what has come, so that no other queue pair can carry the rest.
                    Err(error) => return Err(self.failed("ibv_poll_cq", &error)),
                };
                // What the device wrote before it told is read after.
                compiler_fence(Ordering::Acquire);
                moved |= count > 0;
                self.counters.completions += count as u64;
                for index in 0..count {
                    let completion = self.completions[index];
                    self.take_completion(at, &completion)?;
                }
                if count < COMPLETIONS_AT_ONCE {
                    break;
                }
            }
        }
        Ok(moved)
    }

    fn take_completion(&mut self, at: usize, completion: &WorkCompletion) -> Result<(), LinkError> {
        let is_receive = completion.wr_id == RECEIVE_ID;
        if completion.status != ffi::WC_SUCCESS {
            self.request_failed(at, completion.status);
            if is_receive {
                // Receives are flushed after all that have come.
                self.queue_ended(at);
            }
            return Ok(());
        }
        if !is_receive {
            while self.queues[at].completed <= completion.wr_id {
                let queue = &mut self.queues[at];
                let Some(work) = queue.outstanding.pop_front() else { break };
                queue.completed += 1;
                queue.outstanding_bytes -= work.weight();
                self.complete(work);
            }
            return Ok(());
        }
        self.queues[at].received += 1;
        if self.queues[at].state == State::Open
            && let Err(error) = self.queues[at].receive_used()
        {
            self.call_failed(at, "ibv_post_recv", &error);
        }
        let told = Immediate::parse(u32::from_be(completion.imm_data))
            .map_err(Refusal::Protocol)
            .and_then(|immediate| self.take_in(immediate, completion.byte_len as usize));
        told.map_err(|refusal| match refusal {
            Refusal::Protocol(reason) => self.protocol(reason),
            Refusal::Corrupt => {
                let error = corrupt(self.peer, Damage::Header);
                self.end.get_or_insert(error).clone()
            }
        })
    }

    /// Takes in what a write of the peer tells of.
    fn take_in(&mut self, immediate: Immediate, bytes: usize) -> Result<(), Refusal> {
        let place = match immediate {
            Immediate::Slot(slot) => Place::Slot(slot),
            Immediate::Line(line) => Place::Line(line),
            Immediate::Closed(queue) => Place::Closed(queue),
            Immediate::Direct { channel, number, last } => {
                self.counts.directs_taken = self.counts.directs_taken.wrapping_add(1);
                let frame = Frame::Direct { len: bytes, last };
                return Ok(self.receives[usize::from(channel)].take_in(number, frame)?);
            }
        };
        if !place.exists() {
            return Err("a place that there is not".into());
        }
        let mut bytes = self.landing.arena.read_header(place);
        let mut checksum = 0;
        if self.checks {
            checksum = take_checksums(&mut bytes).ok_or(Refusal::Corrupt)?;
        }
        let header = parse(&bytes)?;
        self.credits.take_back(&header.credits)?;
        for (channel, &count) in header.credits.iter().enumerate() {
            self.free_slots(channel, count)?;
        }
        // Over several queue pairs a header may come after one that was written later.
        let newer = |before: &mut u16, told: u16| {
            if (told.wrapping_sub(*before) as i16) > 0 {
                *before = told;
            }
        };
        newer(&mut self.counts.lines_returned, header.lines_taken);
        newer(&mut self.counts.directs_returned, header.directs_taken);
        if let Place::Line(_) = place {
            self.counts.lines_taken = self.counts.lines_taken.wrapping_add(1);
        }
        match (place, header.body) {
            (Place::Slot(slot), Body::Data(data)) => {
                if self.held_slots & 1 << slot != 0 {
                    return Err("a slot that is in use".into());
                }
                let channel = usize::from(data.channel);
                self.credits.arrive(channel)?;
                self.held_slots |= 1 << slot;
                let frame = Frame::Slot { slot, data, checksum };
                Ok(self.receives[channel].take_in(data.number, frame)?)
            }
            (Place::Line(_), Body::Credit { ask }) => {
                if ask {
                    self.credits.peer_asks();
                }
                Ok(())
            }
            (Place::Line(_), Body::Offer { channel, offer }) => {
                Ok(self.note_offer(usize::from(channel), offer).map_err(|_| "too many offers")?)
            }
            (Place::Closed(queue), Body::Closed { queue: other, received }) if queue == other => {
                Ok(self.peer_ended(usize::from(queue), received)?)
            }
            _ => Err("a header in the wrong place".into()),
        }
    }
}

fn corrupt(peer: u32, damage: Damage) -> LinkError {
    LinkError::Corrupt { peer, transport: TransportKind::Rdma, damage }
}
