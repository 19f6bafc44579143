//! What executors run: each action is one pass over memory.
//!
//! Lowering turns runs of steps into actions. Sources are own spans or arrivals, destinations are
//! own spans or sends; "receive, reduce and forward" is one action, and so is "reduce `n` arrivals
//! and send the result to `n` peers".

use crate::Span;

/// Where an operand of a [`Action::Move`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A span of this rank.
    Own(Span),
    /// The next message of a peer.
    Arrival {
        /// Sender.
        peer: u32,
    },
}

/// Where the result of a [`Action::Move`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A span of this rank that a later step, or the caller, reads.
    Own(Span),
    /// A span that only backs the sends of this action: it need not be written where the result
    /// can go to the peers without it. Its content is undefined afterwards. At most one, and only
    /// beside sends.
    Backing(Span),
    /// The next message to a peer. Its bytes equal those of the action's `Own` or `Backing` span
    /// (a `Move` from one own span without such a destination sends the source itself).
    Send {
        /// Receiver.
        peer: u32,
        /// As in [`Step::Send`](crate::Step::Send).
        settled: bool,
    },
}

/// One action of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Folds `sources` left to right, element by element, and puts the result into every
    /// destination. All spans and messages have the length of `shape`. One source is a copy.
    ///
    /// Works slice by slice: a slice is done when it is there from every arrival. An action that
    /// has no credit to forward a slice writes its own span and posts that.
    Move {
        /// First operand in [`Program::sources`].
        first_source: u32,
        /// How many operands; at least 1.
        sources: u32,
        /// First result in [`Program::destinations`].
        first_destination: u32,
        /// How many results; at least 1.
        destinations: u32,
        /// A span as long as every operand and result.
        shape: Span,
        /// An own destination may overlap what earlier sends of this rank still read: each slice
        /// of it is written only when those bytes have been consumed.
        ///
        /// Ranks may wait for each other's consumption in such actions, and whoever waits does not
        /// consume: the arrivals of a guarded action must be taken through slots (which frees the
        /// sender's memory as soon as a slice has left), never lent from the sender's memory.
        guarded: bool,
        /// The own destination may be offered to the only arrival's sender when the round starts
        /// (see [`Step::Recv`](crate::Step::Recv)).
        early: bool,
        /// Its result has the contributions of all ranks, and none of its operands has. An average is
        /// divided here.
        completes: bool,
    },
    /// As [`Step::Flush`](crate::Step::Flush).
    Flush {
        /// What is about to be written.
        span: Span,
    },
}

/// One rank's actions for one round of one collective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Whose it is.
    pub rank: u32,
    /// How many ranks take part.
    pub ranks: u32,
    /// As in [`Plan`](crate::Plan).
    pub chunks: u32,
    /// As in [`Plan`](crate::Plan), for the scratch chunks that an action still names; the others
    /// were replaced by arrivals.
    pub scratch: Vec<u32>,
    /// What to do, in order.
    pub actions: Vec<Action>,
    /// Operands of the moves.
    pub sources: Vec<Source>,
    /// Results of the moves.
    pub destinations: Vec<Destination>,
}

/// The parts of a [`Action::Move`].
#[derive(Clone, Copy)]
pub(crate) struct Move<'a> {
    pub(crate) sources: &'a [Source],
    pub(crate) destinations: &'a [Destination],
    pub(crate) shape: Span,
    pub(crate) guarded: bool,
    pub(crate) early: bool,
    pub(crate) completes: bool,
}

impl<'a> Move<'a> {
    /// The parts of an action; nothing of a flush, or where it names operands that are not there.
    pub(crate) fn of(program: &'a Program, action: Action) -> Option<Move<'a>> {
        let Action::Move {
            first_source,
            sources,
            first_destination,
            destinations,
            shape,
            guarded,
            early,
            completes,
        } = action
        else {
            return None;
        };
        let range = |first: u32, count: u32| first as usize..first as usize + count as usize;
        Some(Move {
            sources: program.sources.get(range(first_source, sources))?,
            destinations: program.destinations.get(range(first_destination, destinations))?,
            shape,
            guarded,
            early,
            completes,
        })
    }

    /// The own span that the result goes to, and whether it only backs sends.
    pub(crate) fn own(&self) -> Option<(Span, bool)> {
        self.destinations.iter().find_map(|destination| match *destination {
            Destination::Own(span) => Some((span, false)),
            Destination::Backing(span) => Some((span, true)),
            Destination::Send { .. } => None,
        })
    }

    pub(crate) fn arrivals(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.sources.iter().filter_map(|source| match *source {
            Source::Arrival { peer } => Some(peer),
            Source::Own(_) => None,
        })
    }

    pub(crate) fn sends(&self) -> impl Iterator<Item = (u32, bool)> + use<'a> {
        self.destinations.iter().filter_map(|destination| match *destination {
            Destination::Send { peer, settled } => Some((peer, settled)),
            _ => None,
        })
    }
}
