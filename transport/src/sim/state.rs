//! What a simulated network knows: the ends of its links, what is under way, and the clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::end::{End, Frame, SlotMemory};
use super::network::{Config, Traffic};
use super::rules::{Occasion, OperationEffect, Rule, Rules};
use super::trace::{Operation, TraceEntry, TraceEvent};
use crate::{Channel, LinkError, TransportKind};

/// Number of an end. The ends of one link are `2 i` and `2 i + 1`.
pub(super) type EndId = usize;

/// The end across the link.
fn across(end: EndId) -> EndId {
    end ^ 1
}

/// What happens of itself when its time has come, at the end that it names.
enum Event {
    Arrive { end: EndId, channel: Channel, frame: Frame },
    Credit { end: EndId, channel: Channel, memory: SlotMemory },
    Part { end: EndId },
}

/// The state behind a [`Network`](super::Network).
pub(super) struct State {
    config: Config,
    now_ns: u64,
    ends: Vec<End>,
    /// Ends that exist because their peers took the other one, by (rank, peer).
    untaken: BTreeMap<(u32, u32), VecDeque<EndId>>,
    open_ends: usize,
    /// By time, then in the order in which they were caused.
    events: BTreeMap<(u64, u64), Event>,
    events_caused: u64,
    rules: Rules,
    killed: BTreeSet<u32>,
    frames: u64,
    operations: u64,
    operations_of: BTreeMap<u32, u64>,
    trace: Option<Vec<TraceEntry>>,
}

/// What a [`Network`](super::Network) passes on.
impl State {
    pub(super) fn new(config: Config) -> State {
        State {
            config: Config {
                bandwidth_bytes_per_s: config.bandwidth_bytes_per_s.max(1),
                slice_bytes: config.slice_bytes.max(1),
                ..config
            },
            now_ns: 0,
            ends: Vec::new(),
            untaken: BTreeMap::new(),
            open_ends: 0,
            events: BTreeMap::new(),
            events_caused: 0,
            rules: Rules::default(),
            killed: BTreeSet::new(),
            frames: 0,
            operations: 0,
            operations_of: BTreeMap::new(),
            trace: None,
        }
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    pub(super) fn next_event_ns(&self) -> Option<u64> {
        self.events.first_key_value().map(|(&(at_ns, _), _)| at_ns)
    }

    pub(super) fn advance_to(&mut self, now_ns: u64) {
        while let Some(entry) = self.events.first_entry() {
            let at_ns = entry.key().0;
            if at_ns > now_ns {
                break;
            }
            let event = entry.remove();
            self.now_ns = at_ns;
            self.happen(event);
        }
        self.now_ns = self.now_ns.max(now_ns);
    }

    pub(super) fn add_rule(&mut self, rule: Rule) {
        self.rules.add(rule);
    }

    pub(super) fn cut_between(&mut self, a: u32, b: u32) {
        for end in 0..self.ends.len() {
            if (self.ends[end].rank, self.ends[end].peer) == (a, b) {
                self.cut(end);
            }
        }
    }

    pub(super) fn kill(&mut self, rank: u32) {
        if !self.killed.insert(rank) {
            return;
        }
        self.note(TraceEvent::Killed { rank });
        for end in 0..self.ends.len() {
            if self.ends[end].rank == rank {
                self.kill_end(end);
            }
        }
    }

    pub(super) fn traffic(&self, which: impl Fn(u32, u32) -> bool) -> Traffic {
        let mut sum = Traffic::default();
        for end in self.ends.iter().filter(|end| which(end.rank, end.peer)) {
            sum.frames += end.outgoing.traffic.frames;
            sum.bytes += end.outgoing.traffic.bytes;
        }
        sum
    }

    pub(super) fn operations_of(&self, rank: u32) -> u64 {
        self.operations_of.get(&rank).copied().unwrap_or(0)
    }

    pub(super) fn total_operations(&self) -> u64 {
        self.operations
    }

    pub(super) fn open_ends(&self) -> usize {
        self.open_ends
    }

    pub(super) fn start_trace(&mut self) {
        self.trace.get_or_insert_default();
    }

    pub(super) fn trace(&self) -> &[TraceEntry] {
        self.trace.as_deref().unwrap_or_default()
    }
}

/// What a [`SimLink`](super::SimLink) passes on.
impl State {
    pub(super) fn slice_bytes(&self) -> usize {
        self.config.slice_bytes
    }

    /// Takes the oldest end of `from` towards `to`; makes a link where none is left.
    pub(super) fn open(&mut self, from: u32, to: u32) -> EndId {
        self.open_ends += 1;
        if let Some(end) = self.untaken.get_mut(&(from, to)).and_then(VecDeque::pop_front) {
            return end;
        }
        let end = self.add_end(from, to);
        let other = self.add_end(to, from);
        self.untaken.entry((to, from)).or_default().push_back(other);
        for (end, rank) in [(end, from), (other, to)] {
            if self.killed.contains(&rank) {
                self.kill_end(end);
            }
        }
        end
    }

    /// The end is closed: its peer gets what has left, then the goodbye.
    pub(super) fn close(&mut self, end: EndId) {
        self.open_ends -= 1;
        self.part(end);
    }

    pub(super) fn divide(&mut self, end: EndId, lanes: usize) {
        self.ends[end].outgoing.divide(lanes);
    }

    /// From now on everything leaves at once, credit or not.
    pub(super) fn lift_credits(&mut self, end: EndId) {
        self.ends[end].outgoing.unlimited = true;
    }

    pub(super) fn has_credit(&self, end: EndId, channel: Channel) -> bool {
        self.ends[end].outgoing.has_credit(&self.config, channel)
    }

    pub(super) fn take_slot(&mut self, end: EndId, channel: Channel) -> Option<SlotMemory> {
        self.ends[end].outgoing.take_slot(&self.config, channel)
    }

    /// Sends a released slot and its credit back.
    pub(super) fn give_back(&mut self, end: EndId, channel: Channel, memory: SlotMemory) {
        let at_ns = self.now_ns.saturating_add(self.config.latency_ns);
        self.schedule(at_ns, Event::Credit { end: across(end), channel, memory });
    }

    /// A frame leaves, for better or worse.
    pub(super) fn depart(&mut self, id: EndId, channel: Channel, mut frame: Frame) {
        let number = self.frames;
        self.frames += 1;
        let (from, to) = (self.ends[id].rank, self.ends[id].peer);
        let occasion = Occasion { now_ns: self.now_ns, from, to, channel: Some(channel) };
        let fate = self.rules.frame(&occasion);
        for rank in fate.killed {
            self.kill(rank);
        }
        if fate.cut {
            self.cut(id);
        }
        for bit in fate.flipped_bits {
            frame.flip(bit);
        }

        let end = &mut self.ends[id];
        end.outgoing.traffic.frames += 1;
        end.outgoing.traffic.bytes += frame.len as u64;
        end.outgoing.stalled[channel] |= fate.dropped;
        let arrives_ns = (end.is_open() && !end.outgoing.stalled[channel]).then(|| {
            let (delay_ns, factor) = (fate.delay_ns, fate.factor);
            end.outgoing.depart(&self.config, self.now_ns, channel, frame.len, delay_ns, factor)
        });
        let len_bytes = frame.len;
        self.note(TraceEvent::Left { number, from, to, channel, len_bytes, arrives_ns });
        if let Some(at_ns) = arrives_ns {
            self.schedule(at_ns, Event::Arrive { end: across(id), channel, frame });
        }
    }

    /// Counts a link operation. It goes on only if this returns `Ok`.
    pub(super) fn operate(
        &mut self,
        id: EndId,
        channel: Option<Channel>,
        operation: Operation,
    ) -> Result<(), LinkError> {
        let number = self.operations;
        self.operations += 1;
        let (rank, peer) = (self.ends[id].rank, self.ends[id].peer);
        *self.operations_of.entry(rank).or_insert(0) += 1;
        self.note(TraceEvent::Called { number, rank, peer, channel, operation });
        let occasion = Occasion { now_ns: self.now_ns, from: rank, to: peer, channel };
        for effect in self.rules.operation(&occasion) {
            match effect {
                OperationEffect::Fail => {
                    let reason = format!("a rule failed operation {number}, {operation:?}");
                    self.ends[id].failure.get_or_insert(reason);
                }
                OperationEffect::Cut => self.cut(id),
                OperationEffect::Kill => self.kill(rank),
            }
        }
        self.check(id)
    }

    /// An error if this end has failed.
    pub(super) fn check(&self, id: EndId) -> Result<(), LinkError> {
        let End { peer, failure, .. } = &self.ends[id];
        match failure {
            Some(reason) => Err(LinkError::Failed {
                peer: *peer,
                transport: TransportKind::Sim,
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    /// An error if the peer has gone.
    pub(super) fn check_peer(&self, id: EndId) -> Result<(), LinkError> {
        let End { peer, peer_gone, .. } = self.ends[id];
        match peer_gone {
            true => Err(LinkError::Closed { peer, transport: TransportKind::Sim }),
            false => Ok(()),
        }
    }

    /// Whether something has come that no poll has told of.
    pub(super) fn has_news(&self, id: EndId) -> bool {
        self.ends[id].news
    }

    /// Whether frames of a channel wait for a poll.
    pub(super) fn has_arrived(&self, id: EndId, channel: Channel) -> bool {
        !self.ends[id].arrived[channel].is_empty()
    }

    /// The frames of a channel that wait for a poll.
    pub(super) fn take_arrived(&mut self, id: EndId, channel: Channel) -> VecDeque<Frame> {
        std::mem::take(&mut self.ends[id].arrived[channel])
    }

    /// A poll tells the news.
    pub(super) fn tell_news(&mut self, id: EndId) {
        self.ends[id].news = false;
    }
}

impl State {
    fn add_end(&mut self, rank: u32, peer: u32) -> EndId {
        let id = self.ends.len();
        // Every end draws its own jitter, so that one link's traffic does not shift another's.
        let seed = self.config.seed ^ (id as u64).wrapping_mul(0xd1b5_4a32_d192_ed03);
        self.ends.push(End::new(rank, peer, seed));
        id
    }

    fn schedule(&mut self, at_ns: u64, event: Event) {
        self.events.insert((at_ns, self.events_caused), event);
        self.events_caused += 1;
    }

    fn happen(&mut self, event: Event) {
        let (Event::Arrive { end: id, .. }
        | Event::Credit { end: id, .. }
        | Event::Part { end: id }) = event;
        let end = &mut self.ends[id];
        if !end.is_open() {
            return;
        }
        let (rank, peer) = (end.rank, end.peer);
        // A goodbye is no progress: who waits for this peer learns of it by looking.
        end.news |= !matches!(event, Event::Part { .. });
        match event {
            Event::Arrive { channel, frame, .. } => {
                let len_bytes = frame.len;
                end.arrived[channel].push_back(frame);
                self.note(TraceEvent::Arrived { from: peer, to: rank, channel, len_bytes });
            }
            Event::Credit { channel, memory, .. } => {
                end.outgoing.credit(channel, memory);
                self.note(TraceEvent::Credited { from: rank, to: peer, channel });
            }
            Event::Part { .. } => {
                end.peer_gone = true;
                self.note(TraceEvent::Parted { from: peer, to: rank });
            }
        }
    }

    fn cut(&mut self, id: EndId) {
        if !self.ends[id].is_open() {
            return;
        }
        for id in [id, across(id)] {
            self.ends[id].failure.get_or_insert_with(|| "the link was cut".to_owned());
            self.ends[id].clear();
        }
        self.note(TraceEvent::Cut { a: self.ends[id].rank, b: self.ends[id].peer });
    }

    fn kill_end(&mut self, id: EndId) {
        self.ends[id].failure.get_or_insert_with(|| "this rank was killed".to_owned());
        self.part(id);
    }

    fn part(&mut self, id: EndId) {
        let end = &mut self.ends[id];
        if end.gone {
            return;
        }
        end.gone = true;
        end.clear();
        let at_ns = end.outgoing.goodbye_arrives_ns(&self.config, self.now_ns);
        self.schedule(at_ns, Event::Part { end: across(id) });
    }

    fn note(&mut self, event: TraceEvent) {
        if let Some(trace) = &mut self.trace {
            trace.push(TraceEntry { at_ns: self.now_ns, event });
        }
    }
}
