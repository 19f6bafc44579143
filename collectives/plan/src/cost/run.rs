//! Runs programs on virtual time.

use std::cmp::Ordering;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::{Machine, Work};
use crate::action::Move;
use crate::algorithms::Symmetry;
use crate::{Action, Program, Source, Span};

/// Seconds until the last rank is done. `programs` are those of all ranks, in their order, and
/// must have been proved.
pub fn predict(programs: &[Program], machine: Machine, work: Work) -> f64 {
    predict_images(programs, Symmetry::None, machine, work)
}

/// As [`predict`], where `programs` are those of the first ranks, and all others' are their images.
pub(super) fn predict_images(
    programs: &[Program],
    symmetry: Symmetry,
    machine: Machine,
    work: Work,
) -> f64 {
    let mut run = Run::new(programs, symmetry, machine, work);
    run.finish();
    run.end_s
}

/// The messages of all ranks in the order in which they are sent; `programs` as for [`predict`].
pub fn trace(programs: &[Program], machine: Machine, work: Work) -> Vec<Transfer> {
    let mut run = Run::new(programs, Symmetry::None, machine, work);
    run.transfers = Some(vec![]);
    run.finish();
    run.transfers.unwrap_or_default()
}

/// One message of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    /// Sender.
    pub from: u32,
    /// Receiver.
    pub to: u32,
    /// What is sent, as the sender names it.
    pub span: Span,
    /// When it begins to leave.
    pub start_s: f64,
    /// When all of it is there.
    pub end_s: f64,
}

/// What a program sends in a round: to whom, and how many chunks.
pub(super) fn sends(program: &Program) -> impl Iterator<Item = (u32, u32)> {
    let moves = program.actions.iter().filter_map(|&action| Move::of(program, action));
    moves.flat_map(|parts| parts.sends().map(move |(peer, _)| (peer, parts.shape.len)))
}

/// Whether any action waits until something that was sent has left.
fn asks(program: &Program) -> bool {
    let waits = |action: &Action| match action {
        Action::Flush { .. } => true,
        Action::Move { guarded, .. } => *guarded,
    };
    program.actions.iter().any(waits)
}

struct Run<'a> {
    programs: &'a [Program],
    symmetry: Symmetry,
    machine: Machine,
    work: Work,
    events: BinaryHeap<Event>,
    posted: u64,
    /// Of each host, to others.
    hosts: Vec<Ports>,
    /// Of each rank, to others on its host.
    locals: Vec<Ports>,
    /// Whether a program has actions that wait until something has left.
    asks: Vec<bool>,
    /// When each rank's processor is free again.
    processors_s: Vec<f64>,
    /// By rank, then by lane.
    lanes: Vec<Lane>,
    /// How many messages are there and not taken.
    delivered: HashMap<Message, u32, BuildHasherDefault<Mixer>>,
    /// All messages so far, where they are wanted.
    transfers: Option<Vec<Transfer>>,
    end_s: f64,
}

/// A pair of ports: when each is free again, and what is on its way through it.
#[derive(Clone, Default)]
struct Ports {
    out_s: f64,
    in_s: f64,
    /// Sent, and not at the receiver's port yet; in the order in which they get there.
    leaving: VecDeque<Flight>,
    /// At the receiver's port, and not all there yet; in the order in which they come.
    entering: VecDeque<Flight>,
}

/// A message under way.
#[derive(Clone, Copy)]
struct Flight {
    time_s: f64,
    number: u64,
    message: Message,
    /// Its place among all messages, where they are wanted.
    transfer: usize,
}

#[derive(Clone)]
struct Lane {
    round: u32,
    action: usize,
    /// How many operands of the action are known to be there.
    there: usize,
    /// When the operands of the action are folded, once it has taken them.
    folded_s: Option<f64>,
    /// When all messages of this round will have left that matter to its end.
    left_s: f64,
    /// From where messages of this round were sent, and when they will have left, if an action asks.
    sent: Vec<(Span, f64)>,
}

/// A channel, or the next message on it, as its receiver sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Message {
    from: u32,
    to: u32,
    lane: u32,
    chunks: u32,
}

enum Happening {
    /// A lane may be able to go on.
    Wake { rank: usize, lane: u32 },
    /// The beginning of the first message that leaves some ports is at the receiver's.
    Reach { rank: usize, is_local: bool },
    /// All of the first message that enters some ports is there.
    Deliver { rank: usize, is_local: bool },
}

struct Event {
    time_s: f64,
    /// Events of the same time happen in the order in which they were foreseen.
    number: u64,
    happening: Happening,
}

impl Ord for Event {
    /// The heap's greatest is the earliest.
    fn cmp(&self, other: &Event) -> Ordering {
        other.time_s.total_cmp(&self.time_s).then(other.number.cmp(&self.number))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Event {}

impl<'a> Run<'a> {
    fn new(programs: &'a [Program], symmetry: Symmetry, machine: Machine, work: Work) -> Run<'a> {
        let lane =
            |round| Lane { round, action: 0, there: 0, folded_s: None, left_s: 0.0, sent: vec![] };
        let hosts = programs.len().div_ceil(machine.ranks_of_host() as usize);
        Run {
            programs,
            symmetry,
            machine,
            work,
            events: BinaryHeap::new(),
            posted: 0,
            hosts: vec![Ports::default(); hosts],
            locals: vec![Ports::default(); programs.len()],
            asks: programs.iter().map(asks).collect(),
            processors_s: vec![0.0; programs.len()],
            lanes: programs.iter().flat_map(|_| (0..work.lanes).map(lane)).collect(),
            delivered: HashMap::default(),
            transfers: None,
            end_s: 0.0,
        }
    }

    fn finish(&mut self) {
        for rank in 0..self.programs.len() {
            for lane in 0..self.work.lanes.min(self.work.rounds) {
                self.advance(rank, lane, 0.0);
            }
        }
        while let Some(Event { time_s, happening, .. }) = self.events.pop() {
            match happening {
                Happening::Wake { rank, lane } => self.advance(rank, lane, time_s),
                Happening::Reach { rank, is_local } => {
                    let ports = self.ports(rank, is_local);
                    let Some(flight) = ports.leaving.pop_front() else { continue };
                    let next = ports.leaving.front().copied();
                    self.foresee(next, Happening::Reach { rank, is_local });
                    self.pass_port_in(flight, time_s);
                }
                Happening::Deliver { rank, is_local } => {
                    let ports = self.ports(rank, is_local);
                    let Some(Flight { message, .. }) = ports.entering.pop_front() else { continue };
                    let next = ports.entering.front().copied();
                    self.foresee(next, Happening::Deliver { rank, is_local });
                    *self.delivered.entry(message).or_default() += 1;
                    self.advance(message.to as usize, message.lane, time_s);
                }
            }
        }
    }

    /// Only the first message at a port is among the events: there are fewer ports than messages.
    fn foresee(&mut self, first: Option<Flight>, happening: Happening) {
        if let Some(Flight { time_s, number, .. }) = first {
            self.events.push(Event { time_s, number, happening });
        }
    }

    fn flight(&mut self, time_s: f64, message: Message, transfer: usize) -> Flight {
        self.posted += 1;
        Flight { time_s, number: self.posted, message, transfer }
    }

    fn at(&mut self, time_s: f64, happening: Happening) {
        self.posted += 1;
        self.events.push(Event { time_s, number: self.posted, happening });
    }

    fn lane(&mut self, rank: usize, lane: u32) -> &mut Lane {
        &mut self.lanes[rank * self.work.lanes as usize + lane as usize]
    }

    /// Bytes of some chunks. Remainders are left to those who count bytes.
    fn bytes(&self, chunks: u32) -> f64 {
        f64::from(chunks) * self.work.round_bytes() / f64::from(self.programs[0].chunks)
    }

    /// Takes a lane as far as it comes at a moment.
    fn advance(&mut self, rank: usize, lane: u32, now_s: f64) {
        while self.lane(rank, lane).round < self.work.rounds {
            let program = &self.programs[rank];
            let at = self.lane(rank, lane).action;
            let Some(&action) = program.actions.get(at) else {
                let left_s = self.lane(rank, lane).left_s;
                if !self.has_come(left_s, now_s, rank, lane) {
                    return;
                }
                self.end_round(rank, lane, now_s);
                continue;
            };
            let done = match (action, Move::of(program, action)) {
                (Action::Flush { span }, _) => {
                    let left_s = self.left_s(rank, lane, span);
                    self.has_come(left_s, now_s, rank, lane)
                }
                (_, Some(parts)) => self.run_move(rank, lane, parts, now_s),
                (_, None) => unreachable!("a proved program names its operands"),
            };
            if !done {
                return;
            }
            self.lane(rank, lane).action += 1;
        }
    }

    fn end_round(&mut self, rank: usize, lane: u32, now_s: f64) {
        let lanes = self.work.lanes;
        let state = self.lane(rank, lane);
        (state.round, state.action) = (state.round + lanes, 0);
        state.left_s = 0.0;
        state.sent.clear();
        self.end_s = self.end_s.max(now_s);
    }

    /// Whether a moment has come; if not, the lane is woken when it does.
    fn has_come(&mut self, moment_s: f64, now_s: f64, rank: usize, lane: u32) -> bool {
        if moment_s > now_s {
            self.at(moment_s, Happening::Wake { rank, lane });
        }
        moment_s <= now_s
    }

    /// When what was sent from a span will have left it.
    fn left_s(&mut self, rank: usize, lane: u32, span: Span) -> f64 {
        let sent = self.lane(rank, lane).sent.iter();
        let overlapping = sent.filter(|(from, _)| from.overlaps(span, true));
        overlapping.map(|(_, left_s)| *left_s).fold(0.0, f64::max)
    }

    /// Whether a move is done: waits for arrivals and the guard, then folds, then sends.
    fn run_move(&mut self, rank: usize, lane: u32, parts: Move, now_s: f64) -> bool {
        if self.lane(rank, lane).folded_s.is_none() {
            if !self.operands_are_there(rank, lane, parts, now_s) {
                return false;
            }
            self.fold(rank, lane, parts, now_s);
        }
        let folded_s = self.lane(rank, lane).folded_s.unwrap_or(now_s);
        if !self.has_come(folded_s, now_s, rank, lane) {
            return false;
        }
        self.lane(rank, lane).folded_s = None;
        self.send(rank, lane, parts, now_s);
        true
    }

    fn fold(&mut self, rank: usize, lane: u32, parts: Move, now_s: f64) {
        let fold_s = self.machine.reduction_s(self.bytes(parts.shape.len), parts.sources.len());
        let processor_s = &mut self.processors_s[rank];
        // A copy does not wait for a processor that folds for other lanes.
        let folded_s = if fold_s > 0.0 { processor_s.max(now_s) + fold_s } else { now_s };
        *processor_s = processor_s.max(folded_s);
        self.lane(rank, lane).folded_s = Some(folded_s);
    }

    /// Takes the arrivals, if all are there and the result may be written.
    fn operands_are_there(&mut self, rank: usize, lane: u32, parts: Move, now_s: f64) -> bool {
        let chunks = parts.shape.len;
        let message = |from| Message { from, to: rank as u32, lane, chunks };
        let is_there = |source: &&Source| match **source {
            Source::Own(_) => true,
            Source::Arrival { peer } => self.delivered.contains_key(&message(peer)),
        };
        let known = self.lanes[rank * self.work.lanes as usize + lane as usize].there;
        let there = known + parts.sources[known..].iter().take_while(is_there).count();
        self.lane(rank, lane).there = there;
        if there < parts.sources.len() {
            return false;
        }
        if let (true, Some((dst, _))) = (parts.guarded, parts.own()) {
            let left_s = self.left_s(rank, lane, dst);
            if !self.has_come(left_s, now_s, rank, lane) {
                return false;
            }
        }
        for peer in parts.arrivals() {
            if let Entry::Occupied(mut count) = self.delivered.entry(message(peer)) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        self.lane(rank, lane).there = 0;
        true
    }

    fn send(&mut self, rank: usize, lane: u32, parts: Move, now_s: f64) {
        let chunks = parts.shape.len;
        let backing = parts.own().map_or(parts.shape, |(dst, _)| dst);
        for (to, settled) in parts.sends() {
            let from = rank as u32;
            let Way { transfer_s, latency_s, is_local } = self.way(from, to, chunks);
            let out_s = &mut self.ports(rank, is_local).out_s;
            let start_s = out_s.max(now_s);
            let left_s = start_s + transfer_s;
            *out_s = left_s;
            let asks = self.asks[rank];
            let state = self.lane(rank, lane);
            if !settled {
                state.left_s = state.left_s.max(left_s);
            }
            if asks {
                state.sent.push((backing, left_s));
            }
            let mut transfer = 0;
            if let Some(transfers) = &mut self.transfers {
                transfer = transfers.len();
                transfers.push(Transfer { from, to, span: backing, start_s, end_s: left_s });
            }
            let (from, to) = self.symmetry.seen_by_image(from, to, self.ranks(), self.period());
            let message = Message { from, to, lane, chunks };
            let flight = self.flight(start_s + latency_s, message, transfer);
            let leaving = &mut self.ports(rank, is_local).leaving;
            leaving.push_back(flight);
            if leaving.len() == 1 {
                self.foresee(Some(flight), Happening::Reach { rank, is_local });
            }
        }
    }

    fn pass_port_in(&mut self, Flight { message, transfer, .. }: Flight, now_s: f64) {
        let Message { from, to, chunks, .. } = message;
        let Way { transfer_s, is_local, .. } = self.way(from, to, chunks);
        let rank = to as usize;
        let in_s = &mut self.ports(rank, is_local).in_s;
        *in_s = in_s.max(now_s) + transfer_s;
        let end_s = *in_s;
        if let Some(transfers) = &mut self.transfers {
            transfers[transfer].end_s = end_s;
        }
        let flight = self.flight(end_s, message, transfer);
        let entering = &mut self.ports(rank, is_local).entering;
        entering.push_back(flight);
        if entering.len() == 1 {
            self.foresee(Some(flight), Happening::Deliver { rank, is_local });
        }
    }

    /// How many ranks there are.
    fn ranks(&self) -> u32 {
        self.programs[0].ranks
    }

    /// How many of them are run.
    fn period(&self) -> u32 {
        self.programs.len() as u32
    }

    /// How a message of some chunks goes from one rank to another.
    fn way(&self, from: u32, to: u32, chunks: u32) -> Way {
        let bytes = self.bytes(chunks);
        match self.machine.local {
            Some(local) if from / local.ranks == to / local.ranks => Way {
                transfer_s: local.transfer_s(bytes),
                latency_s: local.latency_s,
                is_local: true,
            },
            _ => Way {
                transfer_s: self.machine.transfer_s(bytes),
                latency_s: self.machine.latency_s,
                is_local: false,
            },
        }
    }

    fn ports(&mut self, rank: usize, is_local: bool) -> &mut Ports {
        let host = rank / self.machine.ranks_of_host() as usize;
        if is_local { &mut self.locals[rank] } else { &mut self.hosts[host] }
    }
}

/// Hashes messages: nobody chooses them to collide, and there are millions.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }

    fn write_u32(&mut self, number: u32) {
        // An odd constant of about 2^64 over the golden ratio spreads the bits upwards.
        let mixed =
            (self.0.rotate_left(23) ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// How a message goes.
struct Way {
    transfer_s: f64,
    latency_s: f64,
    is_local: bool,
}
