//! What a plan is: spans of chunks, and the six kinds of step that move and reduce them.

/// Which of a rank's buffers a span lies in. In place means that `Input` and `Output` are the
/// same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// What the caller gives. Never written by a plan (in place: only as `Output`).
    Input,
    /// What the caller gets.
    Output,
    /// Private to a lane; undefined when a round starts.
    Scratch,
}

/// A range of whole chunks in one space.
///
/// Chunk `c` of `Input` and of `Output` is the `c`-th part of the round, or the round of the `c`-th
/// block ([`Collective::is_of_blocks`](crate::Collective::is_of_blocks)). Chunk `s` of `Scratch` is
/// as long as chunk [`Plan::scratch`]`[s]` of the round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// The buffer.
    pub space: Space,
    /// First chunk.
    pub start: u32,
    /// Number of chunks; 0 is an empty span, which is sent as an empty frame.
    pub len: u32,
}

impl Span {
    /// `len` chunks of the input from `start`.
    pub const fn input(start: u32, len: u32) -> Span {
        Span { space: Space::Input, start, len }
    }

    /// `len` chunks of the output from `start`.
    pub const fn output(start: u32, len: u32) -> Span {
        Span { space: Space::Output, start, len }
    }

    /// `len` chunks of the scratch from `start`.
    pub const fn scratch(start: u32, len: u32) -> Span {
        Span { space: Space::Scratch, start, len }
    }

    /// The chunk after the last one.
    pub const fn end(self) -> u32 {
        self.start + self.len
    }

    /// Whether the two name a common chunk. `in_place`: `Input` and `Output` are one buffer.
    pub fn overlaps(self, other: Span, in_place: bool) -> bool {
        let same = self.space == other.space
            || (in_place && self.space != Space::Scratch && other.space != Space::Scratch);
        same && self.start < other.end() && other.start < self.end()
    }

    /// Whether every chunk of `inner` is one of this span's where the call is in place.
    pub(crate) fn covers(self, inner: Span) -> bool {
        let same = (self.space == Space::Scratch) == (inner.space == Space::Scratch);
        same && self.start <= inner.start && inner.end() <= self.end()
    }

    /// Its chunks, as indices into tables.
    pub(crate) fn chunks(self) -> std::ops::Range<usize> {
        self.start as usize..self.end() as usize
    }
}

/// One step of one rank.
///
/// The `i`-th `Send` to a peer meets the `i`-th `Recv` or `RecvReduce` from this rank in the
/// peer's plan. Steps run in order; a `Send` is posted whole and the next step begins at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Posts `src` to `peer`. `src` must not be written until the send is flushed.
    Send {
        /// Receiver.
        peer: u32,
        /// What is sent.
        src: Span,
        /// A later receive of this plan proves that `peer` consumed it: no flush is needed before
        /// that receive writes the span, nor when the round ends.
        settled: bool,
    },
    /// Receives from `peer` into `dst`.
    Recv {
        /// Sender.
        peer: u32,
        /// Where it goes.
        dst: Span,
        /// Every earlier access to `dst` by this rank comes before the peer's matching `Send`, so
        /// that `dst` may be offered for direct writing when the round starts.
        early: bool,
    },
    /// `dst = src op arrival`, rounded once.
    RecvReduce {
        /// Sender.
        peer: u32,
        /// The own operand.
        src: Span,
        /// Where the result goes.
        dst: Span,
    },
    /// `dst = src`. Nothing is done where both are the same memory.
    Copy {
        /// From.
        src: Span,
        /// To.
        dst: Span,
    },
    /// `dst = s0 op s1 op ...` folded left to right, rounded once; the operands are
    /// [`Plan::sources`]`[first .. first + count]`.
    Reduce {
        /// First operand in [`Plan::sources`].
        first: u32,
        /// How many operands.
        count: u32,
        /// Where the result goes.
        dst: Span,
    },
    /// Waits until no peer can still read `span`: every earlier `Send` of it has been consumed.
    Flush {
        /// What is about to be written.
        span: Span,
    },
}

impl Step {
    /// A send that is flushed when the round ends, if not before.
    pub const fn send(peer: u32, src: Span) -> Step {
        Step::Send { peer, src, settled: false }
    }

    /// A send whose consumption a later receive proves.
    pub const fn send_settled(peer: u32, src: Span) -> Step {
        Step::Send { peer, src, settled: true }
    }

    /// A receive into a span that cannot be offered from the start.
    pub const fn recv(peer: u32, dst: Span) -> Step {
        Step::Recv { peer, dst, early: false }
    }

    /// A receive into a span that may be offered when the round starts.
    pub const fn recv_early(peer: u32, dst: Span) -> Step {
        Step::Recv { peer, dst, early: true }
    }

    /// `dst = src op arrival`.
    pub const fn recv_reduce(peer: u32, src: Span, dst: Span) -> Step {
        Step::RecvReduce { peer, src, dst }
    }
}

/// One rank's steps for one round of one collective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Whose plan it is.
    pub rank: u32,
    /// How many ranks take part.
    pub ranks: u32,
    /// Into how many chunks a round of the input and of the output is cut.
    pub chunks: u32,
    /// For each scratch chunk: the chunk of the round that it is as long as.
    pub scratch: Vec<u32>,
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// The operands of the `Reduce` steps.
    pub sources: Vec<Span>,
}
