//! The link over RDMA: what [`crate::Link`] asks of it.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arena::{Arena, BOUNCES, SLOTS};
use super::control::{Control, State as ControlState};
use super::device::Region;
use super::ffi::WorkCompletion;
use super::frame::Body;
use super::memory::{Foreign, Keys, Owned};
use super::queue::{Queue, State, Work};
use super::rails::MAX_RAILS;
use super::receiving::{COMPLETIONS_AT_ONCE, ReceiveChannel};
use super::send_channel::{Piece, SendChannel};
use super::{Rdma, RdmaError};
use crate::credit::Credits;
use crate::cuda::DeviceAddress;
use crate::memory::Registration;
use crate::{Arrival, CHANNELS, Channel, Home, LinkError, Slot, SlotMemory, Tag, TransportKind};

/// Polls in vain after which the control connection is looked at: that is a call of the kernel.
const POLLS_A_LOOK: u32 = 256;

/// What is wrong with a peer whose control connection says what no correct peer says.
pub(super) const SENSELESS: &str = "what it told over the control connection makes no sense";

/// How long a link whose queue pairs have all failed waits for the control connection to tell whether the
/// peer is gone: its kernel may end the queue pairs first.
const END_GRACE: Duration = Duration::from_millis(300);

/// What a link has done, for whoever wants to know what the wire carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes handed to the device for the peer, headers too.
    pub wire_bytes: u64,
    /// Payload bytes of those.
    pub payload_bytes: u64,
    /// Payload bytes that went straight to where the peer wanted them.
    pub direct_bytes: u64,
    /// Payload bytes that were copied on this side before they left.
    pub copied_bytes: u64,
    /// Send work requests.
    pub work_requests: u64,
    /// Completions taken, of both directions.
    pub completions: u64,
    /// Memories of the program that this rank has ever registered with the devices.
    pub registrations: u64,
    /// How many of them are registered now.
    pub registered: u64,
}

impl std::ops::Add for Counters {
    type Output = Counters;

    /// Of two links of one rank, which share their registrations.
    fn add(self, other: Counters) -> Counters {
        Counters {
            wire_bytes: self.wire_bytes + other.wire_bytes,
            payload_bytes: self.payload_bytes + other.payload_bytes,
            direct_bytes: self.direct_bytes + other.direct_bytes,
            copied_bytes: self.copied_bytes + other.copied_bytes,
            work_requests: self.work_requests + other.work_requests,
            completions: self.completions + other.completions,
            registrations: self.registrations.max(other.registrations),
            registered: self.registered.max(other.registered),
        }
    }
}

/// Memory of a link as one side's devices know it: a region for each.
#[derive(Debug)]
pub(super) struct Registered {
    /// Before the memory.
    _regions: Vec<Region>,
    pub(super) keys: Keys,
    pub(super) arena: Arena,
}

impl Registered {
    /// Registers an arena with all devices of a rank: for peers to write to, or to send from.
    pub(super) fn new(
        arena: Arena,
        rdma: &Rdma,
        is_landing: bool,
    ) -> Result<Registered, RdmaError> {
        let mut keys = [0; MAX_RAILS];
        let mut regions = Vec::new();
        for (at, device) in rdma.registry.devices().iter().enumerate() {
            // SAFETY: the arena outlives its regions, being dropped after the queue pairs and with them;
            // what peers write there is checked when it is read.
            let region = unsafe { device.register(arena.start(), arena.len_bytes(), is_landing)? };
            keys[at] = if is_landing { region.remote_key() } else { region.local_key() };
            regions.push(region);
        }
        Ok(Registered { _regions: regions, keys, arena })
    }
}

/// What the other side's arena is known by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remote {
    pub(super) address: u64,
    pub(super) keys: Keys,
}

/// A link over RDMA. The methods are those of [`crate::Link`].
#[derive(Debug)]
pub struct RdmaLink {
    pub(super) peer: u32,
    /// First, so that no device reads or writes the memory below when that is unmapped.
    pub(super) queues: Box<[Queue]>,
    pub(super) landing: Registered,
    pub(super) staging: Registered,
    pub(super) remote: Remote,
    pub(super) control: Box<Control>,
    pub(super) owned: Owned,
    pub(super) foreign: Foreign,
    pub(super) sends: Box<[SendChannel]>,
    pub(super) receives: Box<[ReceiveChannel]>,
    pub(super) credits: Box<Credits>,
    /// A bit for each slot of the peer that nothing is in, and for each bounce buffer.
    pub(super) free_slots: u32,
    pub(super) free_bounces: u8,
    /// A bit for each slot here that holds a slice which is not released.
    pub(super) held_slots: u32,
    /// The channels on which something posted waits, a bit each, and whose turn it is.
    pub(super) waiting: u32,
    pub(super) turn: Channel,
    /// The channels on which the device still reads the program's memory.
    pub(super) reading: u32,
    /// Lines that wait for room.
    pub(super) lines: VecDeque<Body>,
    pub(super) counts: Counts,
    /// Frames have checksums.
    pub(super) checks: bool,
    /// What failed queue pairs have not delivered.
    pub(super) resend: VecDeque<Work>,
    /// Queue pairs whose end the peer is yet to be told of, a bit each.
    pub(super) to_close: u32,
    pub(super) counters: Counters,
    pub(super) rdma: Arc<Rdma>,
    /// Where completions are taken to.
    pub(super) completions: Box<[WorkCompletion; COMPLETIONS_AT_ONCE]>,
    looks: u32,
    /// The queues were empty when they were last looked at since the last poll.
    found_nothing: bool,
    /// Why all queue pairs have failed, and since when.
    pub(super) failing: Option<(Instant, LinkError)>,
    /// Why nothing more will come or go.
    pub(super) end: Option<LinkError>,
}

/// Lines and direct writes, wrapping.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) lines_sent: u16,
    pub(super) directs_sent: u16,
    /// What the peer has said it has taken in.
    pub(super) lines_returned: u16,
    pub(super) directs_returned: u16,
    /// What this side has taken in, and what of that it has told.
    pub(super) lines_taken: u16,
    pub(super) directs_taken: u16,
    pub(super) lines_told: u16,
    pub(super) directs_told: u16,
}

// SAFETY: the raw pointers inside are to memory that the posters and offerers keep, from any thread.
unsafe impl Send for RdmaLink {}

/// What a link is made of.
pub(super) struct Parts {
    pub(super) queues: Vec<Queue>,
    pub(super) landing: Registered,
    pub(super) staging: Registered,
    pub(super) remote: Remote,
}

impl RdmaLink {
    /// The arenas: the peer writes to one, and this side sends from the other.
    pub(crate) fn slot_memory(&self) -> Vec<SlotMemory> {
        let memory =
            |arena: &Arena| SlotMemory { mapping: arena.mapping().clone(), is_writable: true };
        vec![memory(&self.landing.arena), memory(&self.staging.arena)]
    }

    pub(super) fn new(peer: u32, rdma: Arc<Rdma>, parts: Parts, control: Control) -> RdmaLink {
        let Parts { queues, landing, staging, remote } = parts;
        RdmaLink {
            peer,
            queues: queues.into(),
            landing,
            staging,
            remote,
            control: Box::new(control),
            owned: Owned::default(),
            foreign: Foreign::default(),
            sends: (0..CHANNELS).map(|_| SendChannel::default()).collect(),
            receives: (0..CHANNELS).map(|_| ReceiveChannel::default()).collect(),
            credits: Box::new(Credits::new()),
            free_slots: u32::MAX >> (32 - SLOTS),
            free_bounces: (1 << BOUNCES) - 1,
            held_slots: 0,
            waiting: 0,
            turn: 0,
            reading: 0,
            lines: VecDeque::new(),
            counts: Counts::default(),
            checks: false,
            resend: VecDeque::new(),
            to_close: 0,
            counters: Counters::default(),
            rdma,
            completions: Box::new([WorkCompletion::default(); COMPLETIONS_AT_ONCE]),
            looks: 0,
            found_nothing: false,
            failing: None,
            end: None,
        }
    }

    /// The rank at the other end.
    pub fn peer(&self) -> u32 {
        self.peer
    }

    /// What the link has done.
    pub fn counters(&self) -> Counters {
        let (registrations, registered) = self.rdma.registry.counts();
        Counters { registrations, registered, ..self.counters }
    }

    /// The ports of this side that it uses, as people know them.
    pub fn rails(&self) -> impl Iterator<Item = String> + '_ {
        self.queues.iter().map(|queue| queue.rail.to_string())
    }

    /// From now on all goes by frames, and each has checksums.
    pub(crate) fn check_frames(&mut self) {
        self.checks = true;
    }

    /// Divides the slots among `lanes` lanes.
    pub(crate) fn divide(&mut self, lanes: usize) {
        self.credits.divide(lanes);
    }

    /// Ranges of the memory are sent from and offered in place from now on.
    pub(crate) fn share(&mut self, registration: &Arc<Registration>) {
        self.owned.add(registration, &self.rdma.registry);
        for id in self.owned.take_withdrawn() {
            // Where it cannot be told, the peer forgets it with the link; its key is of no use any more.
            self.control.withdraw(id);
        }
    }

    /// # Safety
    /// As of [`crate::Link::post`].
    #[inline]
    pub(crate) unsafe fn post(
        &mut self,
        channel: Channel,
        tag: Tag,
        data: *const u8,
        len: usize,
        last: bool,
    ) -> Result<(), LinkError> {
        self.post_piece(channel, Piece { data, len, tag, last, home: Home::Host })
    }

    /// See [`crate::Link::lend_device`]. The memory is kept by its registration with the devices, which refuse what
    /// is still to be sent should that end before.
    pub(crate) fn lend_device(
        &mut self,
        channel: Channel,
        tag: Tag,
        address: DeviceAddress,
        len: usize,
        last: bool,
    ) -> Result<(), LinkError> {
        let data = address as *const u8;
        self.post_piece(channel, Piece { data, len, tag, last, home: Home::OwnGpu })
    }

    #[inline]
    fn post_piece(&mut self, channel: Channel, piece: Piece) -> Result<(), LinkError> {
        if let Some(end) = &self.end {
            return Err(end.clone());
        }
        let Piece { len, last, .. } = piece;
        self.sends[channel].post(piece);
        if len > 0 || last {
            self.waiting |= 1 << channel;
        }
        self.flush().map(drop)
    }

    pub(crate) fn posted_bytes(&self, channel: Channel) -> u64 {
        self.sends[channel].posted_bytes
    }

    pub(crate) fn sent_bytes(&self, channel: Channel) -> u64 {
        self.sends[channel].sent_bytes
    }

    pub(crate) fn is_waiting(&self, channel: Channel) -> bool {
        (self.waiting | self.reading) & 1 << channel != 0
    }

    /// The oldest slice on a channel; looks into the queues if none is there, once between polls.
    #[inline]
    pub(crate) fn arrival(&mut self, channel: Channel) -> Result<Option<Arrival>, LinkError> {
        self.load(channel)?;
        if self.receives[channel].current.is_none() && !self.found_nothing {
            self.found_nothing = !self.take_completions()?;
            self.load(channel)?;
        }
        match (self.receives[channel].current, &self.end) {
            (None, Some(end)) => Err(end.clone()),
            (arrival, _) => Ok(arrival),
        }
    }

    pub(crate) fn poll(&mut self, _now_ns: u64) -> Result<bool, LinkError> {
        self.found_nothing = false;
        let mut moved = self.take_completions()?;
        if self.end.is_none() {
            moved |= self.flush()?;
        }
        if moved {
            self.looks = 0;
        } else {
            self.looks += 1;
            if self.looks >= POLLS_A_LOOK || self.failing.is_some() {
                self.looks = 0;
                moved = self.look_at_control()?;
            }
        }
        match &self.end {
            Some(LinkError::Closed { .. }) if !self.has_unsent() => Ok(moved),
            Some(end) if !moved => Err(end.clone()),
            _ => Ok(moved),
        }
    }

    /// Takes in what the peer tells over the control connection, and whether it is gone. Returns whether
    /// something moved.
    pub(super) fn look_at_control(&mut self) -> Result<bool, LinkError> {
        match self.control.take_in(&mut self.foreign) {
            ControlState::Open => {}
            ControlState::Broken => {
                return Err(self.protocol(SENSELESS));
            }
            // What it has sent before is in the queues.
            ControlState::Ended if self.end.is_none() => {
                let moved = self.take_completions()?;
                self.end.get_or_insert(LinkError::Closed {
                    peer: self.peer,
                    transport: TransportKind::Rdma,
                });
                return Ok(moved);
            }
            ControlState::Ended => {}
        }
        if let (Some((since, error)), None) = (&self.failing, &self.end)
            && since.elapsed() >= END_GRACE
        {
            self.end = Some(error.clone());
        }
        Ok(false)
    }

    pub(crate) fn is_idle(&self) -> bool {
        let nothing_waits = self.waiting | self.reading | self.to_close == 0
            && self.lines.is_empty()
            && self.resend.is_empty();
        nothing_waits && !self.credits.due() && !self.must_tell() && self.failing.is_none()
    }

    /// Whether something posted has not left this side's memory.
    pub(super) fn has_unsent(&self) -> bool {
        self.waiting | self.reading != 0
    }

    /// What becomes readable when something happens; nothing once the peer is gone, since the control
    /// connection would never cease to be ready.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = (RawFd, bool)> + '_ {
        let control = (!self.control.has_ended()).then(|| self.control.descriptor());
        let is_live = |queue: &&Queue| matches!(queue.state, State::Open | State::Ending);
        let queues = self.queues.iter().filter(is_live).map(|queue| queue.pair.descriptor());
        control.into_iter().chain(queues).map(|descriptor| (descriptor, false))
    }

    /// How soon it must be polled although no descriptor tells.
    pub(crate) fn must_be_polled_within(&self) -> Option<Duration> {
        let (since, _) = self.failing.as_ref()?;
        Some(END_GRACE.saturating_sub(since.elapsed()))
    }

    /// Whether completions shall make the descriptors readable.
    pub(crate) fn set_parked(&mut self, parked: bool) {
        for queue in &mut self.queues {
            if parked {
                queue.pair.arm();
            } else {
                queue.pair.take_events();
            }
        }
        // At the next poll, which may be what the sleeper was woken for.
        self.looks = POLLS_A_LOOK - 1;
        self.found_nothing = false;
    }

    /// Ends the queue pairs: the peer's device writes nothing more here.
    pub(crate) fn withdraw(&mut self) {
        for queue in self.queues.iter().filter(|queue| queue.state == State::Open) {
            // Where that fails, the device is gone.
            let _ = queue.pair.end();
        }
    }

    /// Sends what is posted, and waits until it has reached the peer's memory, at most until `deadline`.
    /// What comes meanwhile is thrown away.
    pub(crate) fn close(mut self, deadline: Instant) {
        while Instant::now() < deadline && self.end.is_none() && self.failing.is_none() {
            let moved = match self.poll(0) {
                Ok(moved) => moved | self.throw_away(),
                Err(_) => break,
            };
            if self.has_left() {
                break;
            }
            if !moved {
                std::thread::yield_now();
            }
        }
        self.control.end();
    }

    /// Whether everything that was posted is in the peer's memory.
    fn has_left(&mut self) -> bool {
        let waits = self.has_unsent()
            || !self.lines.is_empty()
            || self.to_close != 0
            || self.is_replacing();
        if waits {
            return false;
        }
        self.ask_for_completions();
        self.queues.iter().all(|queue| queue.outstanding.is_empty())
    }

    /// Releases everything that has come. Returns whether there was anything.
    fn throw_away(&mut self) -> bool {
        let mut some = false;
        for channel in 0..CHANNELS {
            while let Ok(Some(arrival)) = self.arrival(channel) {
                some = true;
                if self.release(channel, arrival.len).is_err() {
                    break;
                }
            }
        }
        some
    }

    #[inline]
    pub(crate) fn reserve(&mut self, channel: Channel, _wanted: usize) -> Option<Slot> {
        self.reserve_slot(channel)
    }

    pub(super) fn protocol(&mut self, reason: &str) -> LinkError {
        let error = LinkError::Protocol {
            peer: self.peer,
            transport: TransportKind::Rdma,
            reason: reason.to_owned(),
        };
        self.end.get_or_insert(error).clone()
    }

    /// A call of the library failed that never should.
    pub(super) fn failed(&mut self, what: &str, error: &std::io::Error) -> LinkError {
        let error = LinkError::Failed {
            peer: self.peer,
            transport: TransportKind::Rdma,
            reason: format!("{what}: {error}"),
        };
        self.end.get_or_insert(error).clone()
    }
}
