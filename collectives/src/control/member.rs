//! What the arbiter knows of one rank.

use super::judge::is_before;
use super::recorder::{Entry, Operation, State, Stream};
use super::verdict::Place;
use super::wire::{LinkFailure, Stall, Suspicion};

/// Stalled streams that are remembered a rank, at most.
const MAX_STALLS: usize = 64;

/// One rank, as far as it is known.
#[derive(Debug)]
pub(super) struct Member {
    /// Where it runs.
    pub place: Place,
    /// Whether it is still there.
    pub presence: Presence,
    /// Number of the survey that it answered last.
    pub answered: u64,
    /// When it was asked something that it has not answered yet.
    pub asked_at_ms: Option<u64>,
    /// A frame of another call that it found, until that operation has ended.
    pub suspicion: Option<Suspicion>,
    /// The link that failed it first, and when that becomes a verdict.
    pub failure: Option<(u64, LinkFailure)>,
    /// When it is declared dead although its connection is still open, its process having ended.
    pub ended_at_ms: Option<u64>,
    entries: Vec<Entry>,
    stalls: Vec<Reported>,
}

/// Whether a rank is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It is.
    Joined,
    /// It has said goodbye.
    Left,
    /// Its connection is gone.
    Lost,
}

/// How a rank stands to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It has not begun it.
    Behind,
    /// It has begun it and not ended it.
    Inside,
    /// It has ended it.
    Ahead,
}

/// What both sides of a call number together: all collectives, or one direction between two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Line {
    /// The collectives.
    Collective,
    /// Point to point.
    Pair { sender: u32, receiver: u32 },
}

impl Line {
    /// The line of a rank's stream.
    pub(super) fn of(rank: u32, stream: Stream) -> Line {
        match stream {
            Stream::Collective => Line::Collective,
            Stream::SendTo(peer) => Line::Pair { sender: rank, receiver: peer },
            Stream::ReceiveFrom(peer) => Line::Pair { sender: peer, receiver: rank },
        }
    }
}

#[derive(Debug)]
struct Reported {
    /// Number of the last survey that had begun by then.
    survey: u64,
    stall: Stall,
}

impl Member {
    /// A rank that has just joined.
    pub(super) fn new(place: Place) -> Member {
        Member {
            place,
            presence: Presence::Joined,
            answered: 0,
            asked_at_ms: None,
            suspicion: None,
            failure: None,
            ended_at_ms: None,
            entries: Vec::new(),
            stalls: Vec::new(),
        }
    }

    /// Takes in a report; `survey` is the number of the last survey that has begun.
    pub(super) fn report_stall(&mut self, survey: u64, stall: Stall) {
        self.stalls.retain(|known| known.stall.operation.stream != stall.operation.stream);
        if self.stalls.len() < MAX_STALLS {
            self.stalls.push(Reported { survey, stall });
        }
    }

    /// Takes in what the rank's recorder says, and forgets complaints about operations that have
    /// ended meanwhile.
    pub(super) fn update(&mut self, entries: Vec<Entry>) {
        let has_ended = |operation: &Operation| {
            entries
                .iter()
                .any(|entry| entry.operation == *operation && entry.state == State::Completed)
        };
        self.stalls.retain(|known| !has_ended(&known.stall.operation));
        self.suspicion.take_if(|suspicion| has_ended(&suspicion.operation));
        self.entries = entries;
    }

    /// The rank leaves; what it called last remains known.
    pub(super) fn leave(&mut self, entries: Vec<Entry>) {
        self.presence = Presence::Left;
        self.entries = entries;
        self.stalls.clear();
        self.suspicion = None;
        self.failure = None;
        self.ended_at_ms = None;
    }

    /// Whether the rank has complained about anything that may still last.
    pub(super) fn complains(&self) -> bool {
        !self.stalls.is_empty() || self.suspicion.is_some()
    }

    /// The stalls that this survey confirmed: reported before it began, and not taken back.
    pub(super) fn stalls(&self, survey: u64) -> impl Iterator<Item = &Stall> {
        self.stalls
            .iter()
            .filter(move |known| known.survey < survey && self.answered == survey)
            .map(|known| &known.stall)
    }

    /// All operations of the rank that are known.
    pub(super) fn operations(&self) -> impl Iterator<Item = Operation> {
        let recorded = self.entries.iter().map(|entry| entry.operation);
        let stalled = self.stalls.iter().map(|known| known.stall.operation);
        recorded.chain(stalled).chain(self.suspicion.iter().map(|suspicion| suspicion.operation))
    }

    /// In which operations the rank waits, and for whom.
    pub(super) fn waits(&self) -> impl Iterator<Item = (Operation, &[u32])> {
        let stalled =
            self.stalls.iter().map(|known| (known.stall.operation, &known.stall.waiting_for[..]));
        let waiting = self.entries.iter().filter_map(|entry| {
            let stalled = self.stalls.iter().any(|s| s.stall.operation == entry.operation);
            let waits = entry.state == State::Running && !stalled;
            let target = entry.waiting_for.as_ref().filter(|_| waits)?;
            Some((entry.operation, std::slice::from_ref(target)))
        });
        stalled.chain(waiting)
    }

    /// How the rank, which is `rank`, stands to an operation.
    pub(super) fn standing(&self, rank: u32, line: Line, sequence: u32) -> Standing {
        let running = self.entries.iter().map(|entry| (entry.operation, entry.state));
        let stalled = self.stalls.iter().map(|known| (known.stall.operation, State::Running));
        let mut standing = Standing::Behind;
        for (operation, state) in running.chain(stalled) {
            if Line::of(rank, operation.stream) != line {
                continue;
            }
            if operation.sequence == sequence && state == State::Running {
                return Standing::Inside;
            }
            if !is_before(operation.sequence, sequence) {
                standing = Standing::Ahead;
            }
        }
        standing
    }

    /// What the rank is doing, or did last.
    pub(super) fn doing(&self) -> Option<Entry> {
        let running = self.entries.iter().rev().find(|entry| entry.state == State::Running);
        running.or(self.entries.last()).copied()
    }

    /// How far the rank came in an operation.
    pub(super) fn steps(&self, operation: &Operation) -> u64 {
        self.entries.iter().find(|entry| entry.operation == *operation).map_or(0, |e| e.steps)
    }

    /// The operation that the rank was last heard to be in.
    pub(super) fn last_operation(&self) -> Option<Operation> {
        let running = self.doing().filter(|entry| entry.state == State::Running);
        let stalled = self.stalls.last().map(|known| known.stall.operation);
        running.map(|entry| entry.operation).or(stalled)
    }
}
