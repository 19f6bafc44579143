//! Predicts how long programs take, by running all ranks' on virtual time.
//!
//! The machine: every rank has one port out and one port in, each of which passes one message at a
//! time at the machine's bandwidth, and one processor that folds. A message leaves when the port
//! out is free, reaches the receiver a latency later, and passes its port in as it comes, or after
//! those that came before it. A message is taken when all of it is there; moving it between a port
//! and memory costs nothing more. Lanes share ports and processors.
//!
//! Ports, not pairs, are the limit because that is what a network card, and a core that copies,
//! are. It is the model of Hockney with the ports of Thakur, Rabenseifner and Gropp (2005), except
//! that latency occupies no port.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use crate::action::Move;
use crate::{Action, Program, Span};

/// The machine that a plan is thought to run on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// From the first byte's leaving to its arrival.
    pub latency_s: f64,
    /// Of each rank, in each direction.
    pub bandwidth_bytes_per_s: f64,
    /// Bytes of result of two operands; `k` operands take `k - 1` times as long.
    pub reduction_bytes_per_s: f64,
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Size of the buffer of a rank.
    pub bytes: f64,
    /// Into how many rounds it is cut, at least 1.
    pub rounds: u32,
    /// How many of them are under way at once, at least 1.
    pub lanes: u32,
}

impl Work {
    /// Everything in one round.
    pub const fn whole(bytes: f64) -> Work {
        Work { bytes, rounds: 1, lanes: 1 }
    }

    /// Size of a round.
    pub fn round_bytes(&self) -> f64 {
        self.bytes / f64::from(self.rounds)
    }
}

impl Machine {
    /// Time that `bytes` need to pass a port.
    pub fn transfer_s(&self, bytes: f64) -> f64 {
        bytes / self.bandwidth_bytes_per_s
    }

    /// Time to fold `operands` operands of `bytes` each.
    pub fn reduction_s(&self, bytes: f64, operands: usize) -> f64 {
        (operands - 1) as f64 * bytes / self.reduction_bytes_per_s
    }
}

/// Seconds until the last rank is done. `programs` are those of all ranks, in their order, and
/// must have been proved.
pub fn predict(programs: &[Program], machine: Machine, work: Work) -> f64 {
    let mut run = Run::new(programs, machine, work);
    for rank in 0..programs.len() {
        for lane in 0..work.lanes.min(work.rounds) {
            run.at(0.0, Happening::Wake { rank, lane });
        }
    }
    while let Some(Event { time_s, happening, .. }) = run.events.pop() {
        match happening {
            Happening::Wake { rank, lane } => run.advance(rank, lane, time_s),
            Happening::Reach(message) => run.pass_port_in(message, time_s),
            Happening::Deliver(message) => {
                *run.delivered.entry(message).or_default() += 1;
                run.advance(message.to, message.lane, time_s);
            }
        }
    }
    run.end_s
}

struct Run<'a> {
    programs: &'a [Program],
    machine: Machine,
    work: Work,
    events: BinaryHeap<Event>,
    posted: u64,
    ports: Vec<Ports>,
    /// By rank, then by lane.
    lanes: Vec<Lane>,
    /// Messages that are there and not taken.
    delivered: HashMap<Message, u32>,
    end_s: f64,
}

/// When what a rank's lanes share is free again.
#[derive(Clone, Default)]
struct Ports {
    out_s: f64,
    in_s: f64,
    processor_s: f64,
}

#[derive(Clone)]
struct Lane {
    round: u32,
    action: usize,
    /// When the operands of the action are folded, once it has taken them.
    folded_s: Option<f64>,
    /// From where messages of this round were sent, when they will have left, and whether that
    /// matters to the round's end.
    sent: Vec<(Span, f64, bool)>,
}

/// A channel, or the next message on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Message {
    from: usize,
    to: usize,
    lane: u32,
    chunks: u32,
}

enum Happening {
    /// A lane may be able to go on.
    Wake { rank: usize, lane: u32 },
    /// The beginning of a message is at the receiver's port.
    Reach(Message),
    /// All of it is there.
    Deliver(Message),
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
    fn new(programs: &'a [Program], machine: Machine, work: Work) -> Run<'a> {
        let lane = |lane| Lane { round: lane, action: 0, folded_s: None, sent: vec![] };
        Run {
            programs,
            machine,
            work,
            events: BinaryHeap::new(),
            posted: 0,
            ports: vec![Ports::default(); programs.len()],
            lanes: programs.iter().flat_map(|_| (0..work.lanes).map(lane)).collect(),
            delivered: HashMap::new(),
            end_s: 0.0,
        }
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
                let unsettled = |&(_, left_s, settled): &(Span, f64, bool)| {
                    if settled { 0.0 } else { left_s }
                };
                let left_s = self.lane(rank, lane).sent.iter().map(unsettled).fold(0.0, f64::max);
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
        let overlapping = sent.filter(|(from, ..)| from.overlaps(span, true));
        overlapping.map(|(_, left_s, _)| *left_s).fold(0.0, f64::max)
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
        let processor_s = &mut self.ports[rank].processor_s;
        // A copy does not wait for a processor that folds for other lanes.
        let folded_s = if fold_s > 0.0 { processor_s.max(now_s) + fold_s } else { now_s };
        *processor_s = processor_s.max(folded_s);
        self.lane(rank, lane).folded_s = Some(folded_s);
    }

    /// Takes the arrivals, if all are there and the result may be written.
    fn operands_are_there(&mut self, rank: usize, lane: u32, parts: Move, now_s: f64) -> bool {
        let chunks = parts.shape.len;
        let message = |peer| Message { from: peer as usize, to: rank, lane, chunks };
        let is_there = |peer| self.delivered.get(&message(peer)).is_some_and(|count| *count > 0);
        if !parts.arrivals().all(is_there) {
            return false;
        }
        if let (true, Some((dst, _))) = (parts.guarded, parts.own()) {
            let left_s = self.left_s(rank, lane, dst);
            if !self.has_come(left_s, now_s, rank, lane) {
                return false;
            }
        }
        for peer in parts.arrivals() {
            self.delivered.entry(message(peer)).and_modify(|count| *count -= 1);
        }
        true
    }

    fn send(&mut self, rank: usize, lane: u32, parts: Move, now_s: f64) {
        let chunks = parts.shape.len;
        let transfer_s = self.machine.transfer_s(self.bytes(chunks));
        let backing = parts.own().map_or(parts.shape, |(dst, _)| dst);
        for (peer, settled) in parts.sends() {
            let out_s = &mut self.ports[rank].out_s;
            let start_s = out_s.max(now_s);
            let left_s = start_s + transfer_s;
            *out_s = left_s;
            self.lane(rank, lane).sent.push((backing, left_s, settled));
            let message = Message { from: rank, to: peer as usize, lane, chunks };
            self.at(start_s + self.machine.latency_s, Happening::Reach(message));
        }
    }

    fn pass_port_in(&mut self, message: Message, now_s: f64) {
        let transfer_s = self.machine.transfer_s(self.bytes(message.chunks));
        let in_s = &mut self.ports[message.to].in_s;
        *in_s = in_s.max(now_s) + transfer_s;
        let delivered_s = *in_s;
        self.at(delivered_s, Happening::Deliver(message));
    }
}
