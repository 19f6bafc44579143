//! What a simulated network writes down when asked, to compare and to explain runs.

use std::fmt;

use crate::Channel;

/// A counted call on a link: one that did something, so that a run has finitely many of them and
/// each can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A post.
    Post,
    /// A commit.
    Commit,
    /// The first look at a slice that has arrived.
    Arrival,
    /// A receive that took bytes or the end of a message.
    Receive,
    /// A release.
    Release,
    /// A poll that moved something.
    Poll,
}

/// Something that happened, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceEntry {
    /// The network's clock.
    pub at_ns: u64,
    /// What happened.
    pub event: TraceEvent,
}

/// Something that happened in a simulated network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceEvent {
    /// A rank called its link. Numbers count all operations of the network from 0.
    Called {
        /// Which operation of the network it is.
        number: u64,
        /// The rank that called.
        rank: u32,
        /// The other end of its link.
        peer: u32,
        /// The channel; none for polls.
        channel: Option<Channel>,
        /// What it called.
        operation: Operation,
    },
    /// A frame left its sender. Numbers count all frames of the network from 0.
    Left {
        /// Which frame of the network it is.
        number: u64,
        /// Sender.
        from: u32,
        /// Receiver.
        to: u32,
        /// Channel.
        channel: Channel,
        /// Payload.
        len_bytes: usize,
        /// When it will be there; none if it never will.
        arrives_ns: Option<u64>,
    },
    /// A frame reached its receiver.
    Arrived {
        /// Sender.
        from: u32,
        /// Receiver.
        to: u32,
        /// Channel.
        channel: Channel,
        /// Payload.
        len_bytes: usize,
    },
    /// A credit came back to its sender.
    Credited {
        /// The rank that may send again.
        from: u32,
        /// The rank that released a slice.
        to: u32,
        /// Channel.
        channel: Channel,
    },
    /// A rank's goodbye, or the news of its end, reached its peer.
    Parted {
        /// The rank that is gone.
        from: u32,
        /// The rank that has learnt it.
        to: u32,
    },
    /// The link of two ranks was cut.
    Cut {
        /// One end.
        a: u32,
        /// The other end.
        b: u32,
    },
    /// A rank was killed.
    Killed {
        /// Which.
        rank: u32,
    },
}

impl fmt::Display for TraceEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12} ns  ", self.at_ns)?;
        match &self.event {
            TraceEvent::Called { number, rank, peer, channel, operation } => {
                write!(f, "operation {number}: rank {rank} to {peer}: {operation:?}")?;
                channel.map_or(Ok(()), |channel| write!(f, " on channel {channel}"))
            }
            TraceEvent::Left { number, from, to, channel, len_bytes, arrives_ns } => {
                write!(
                    f,
                    "frame {number}: {from} -> {to} channel {channel}: {len_bytes} bytes leave, "
                )?;
                match arrives_ns {
                    Some(ns) => write!(f, "due at {ns} ns"),
                    None => f.write_str("lost"),
                }
            }
            TraceEvent::Arrived { from, to, channel, len_bytes } => {
                write!(f, "{from} -> {to} channel {channel}: {len_bytes} bytes arrive")
            }
            TraceEvent::Credited { from, to, channel } => {
                write!(f, "{from} -> {to} channel {channel}: credit is back")
            }
            TraceEvent::Parted { from, to } => write!(f, "{to} learns that {from} is gone"),
            TraceEvent::Cut { a, b } => write!(f, "link {a} - {b} is cut"),
            TraceEvent::Killed { rank } => write!(f, "rank {rank} is killed"),
        }
    }
}
