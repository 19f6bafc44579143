//! What the checker finds wrong.

use std::error::Error;
use std::fmt;

use crate::Span;

/// Where a plan is wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckError {
    /// Whose step it is.
    pub rank: u32,
    /// The round in which it was found, from 0 on.
    pub round: u32,
    /// Number of the step (of the action, where programs are checked).
    pub step: usize,
    /// The step as text.
    pub text: String,
    /// The chunk that it is about.
    pub chunk: u32,
    /// The ranks whose contributions the chunk holds at that moment; in a barrier, the ranks that
    /// have been heard from.
    pub contributions: Vec<u32>,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The step can mean nothing.
    Malformed {
        /// Why not.
        reason: &'static str,
    },
    /// It waits for a message that never comes.
    NoMessage {
        /// Who does not send it.
        peer: u32,
    },
    /// It waits until a message has been taken that nobody takes.
    NotTaken {
        /// Who does not take it.
        peer: u32,
    },
    /// It sends a message for which the peer has no receive.
    Unmatched {
        /// The peer.
        peer: u32,
    },
    /// It would take a message of another round.
    OtherRound {
        /// The sender.
        peer: u32,
        /// In which round it was sent.
        sent_in: u32,
    },
    /// The message that it would take has another length.
    LengthsDiffer {
        /// The sender.
        peer: u32,
        /// What was sent, as the sender names it.
        sent: Span,
    },
    /// It reads what nothing has written.
    Undefined,
    /// It adds contributions that are in the sum already.
    CountedTwice {
        /// Whose.
        ranks: Vec<u32>,
    },
    /// It writes what a peer may still be reading.
    Overwrites {
        /// The reader.
        peer: u32,
    },
    /// It is marked settled, but no later receive proves that the peer consumed it.
    NotSettled {
        /// The peer.
        peer: u32,
    },
    /// It is marked early, but the peer may send before this rank has done with the span.
    NotEarly {
        /// The peer.
        peer: u32,
    },
    /// It was the last to write a result that is not what was asked for.
    WrongResult {
        /// The ranks whose contributions the result should hold.
        wanted: Vec<u32>,
    },
    /// It was the last to write a result that another rank has by another expression, so that the
    /// bits may differ.
    Disagrees {
        /// This rank's expression.
        expression: String,
        /// The other one.
        other: String,
    },
    /// It completes a result and is not marked so, or the other way round.
    NotAsMarked {
        /// Whether it completes a result.
        completes: bool,
    },
    /// After it the rank leaves the barrier, before a peer is known to have come.
    NotHeard {
        /// The peer.
        peer: u32,
    },
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CheckError { rank, round, step, text, chunk, contributions, fault } = self;
        write!(f, "rank {rank}, round {round}, step {step} `{text}`, chunk {chunk} with ")?;
        match contributions.as_slice() {
            [] => write!(f, "no contribution")?,
            ranks => write!(f, "the contributions of ranks {ranks:?}")?,
        }
        write!(f, ": {fault}")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Malformed { reason } => f.write_str(reason),
            Fault::NoMessage { peer } => {
                write!(f, "waits for a message of rank {peer} that never comes")
            }
            Fault::NotTaken { peer } => {
                write!(f, "waits until rank {peer} takes a message, which it never does")
            }
            Fault::Unmatched { peer } => {
                write!(f, "sends a message for which rank {peer} has no receive")
            }
            Fault::OtherRound { peer, sent_in } => {
                write!(f, "would take a message that rank {peer} sent in round {sent_in}")
            }
            Fault::LengthsDiffer { peer, sent } => {
                write!(f, "would take {sent} of rank {peer}, which has another length")
            }
            Fault::Undefined => write!(f, "reads what nothing has written"),
            Fault::CountedTwice { ranks } => write!(f, "counts ranks {ranks:?} twice"),
            Fault::Overwrites { peer } => {
                write!(f, "writes what rank {peer} may still be reading")
            }
            Fault::NotSettled { peer } => {
                write!(f, "no later receive proves that rank {peer} has consumed this message")
            }
            Fault::NotEarly { peer } => {
                write!(f, "rank {peer} may send before this rank has done with the span")
            }
            Fault::WrongResult { wanted } => {
                write!(f, "the result should hold the contributions of ranks {wanted:?}")
            }
            Fault::Disagrees { expression, other } => {
                write!(f, "the result is {expression} here and {other} on another rank")
            }
            Fault::NotAsMarked { completes: true } => {
                write!(f, "completes a result and is not marked so")
            }
            Fault::NotAsMarked { completes: false } => {
                write!(f, "is marked to complete a result, which it does not")
            }
            Fault::NotHeard { peer } => {
                write!(f, "leaves the barrier before rank {peer} is known to have come")
            }
        }
    }
}

impl Error for CheckError {}
