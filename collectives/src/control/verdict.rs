//! What the arbiter decided: who, what, and what to do about it.

use std::fmt;
use std::os::unix::ffi::OsStringExt;

use super::recorder::{Entry, Operation, State, Stream};
use crate::digest::fnv1a;
use crate::record::CallRecord;

/// Why a communicator has ended. Every survivor gets the same one, and only one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A rank's process ended, or its host cannot be reached any more.
    Died {
        /// The rank.
        rank: u32,
        /// Where it ran, if it had joined.
        place: Option<Place>,
        /// How its death was noticed.
        how: Death,
        /// The operation that it was last seen in, or that others waited for it in.
        operation: Option<Operation>,
    },
    /// A rank's process exists but does not run: its monitor did not answer.
    Stopped {
        /// The rank.
        rank: u32,
        /// Where it runs.
        place: Option<Place>,
        /// Who waits for it, and in which operation.
        awaited: Awaited,
        /// What it was last seen doing.
        last_seen: Option<Entry>,
    },
    /// A rank is alive but others waited for it until their deadline.
    Late {
        /// The rank.
        rank: u32,
        /// Where it runs; `None`: it has not even joined.
        place: Option<Place>,
        /// Who waits for it, and in which operation.
        awaited: Awaited,
        /// What it does instead, or did last.
        doing: Option<Entry>,
    },
    /// A rank left the communicator while others still waited for it.
    Left {
        /// The rank.
        rank: u32,
        /// The rank that needed it.
        by: u32,
        /// In which operation it was needed.
        operation: Option<Operation>,
    },
    /// Two ranks called different things.
    Mismatch {
        /// Number of the operation on its stream.
        sequence: u32,
        /// The lowest rank on one side.
        a: Side,
        /// The lowest rank on another side.
        b: Side,
    },
    /// Two ranks live, but the link between them failed.
    LinkBroken {
        /// The rank that noticed it.
        a: u32,
        /// Its peer.
        b: u32,
        /// What was noticed, and what to do about it where that is known.
        reason: String,
    },
    /// A rank called `abort`.
    Aborted {
        /// The rank.
        by: u32,
        /// What it said.
        reason: String,
    },
    /// The control service is gone, so that nobody can decide any more.
    ArbiterLost {
        /// How that was noticed.
        reason: String,
    },
}

/// How a death was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Death {
    /// A process of the same host saw it end.
    ProcessEnded,
    /// Its control connection was closed without a goodbye.
    ConnectionLost,
    /// It hosts the control service, which no longer answers: it does not run, or cannot be
    /// reached.
    NoAnswer,
}

/// Where a rank runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Name of its host.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// Equal for processes that share a kernel and count processes alike; 0 where that is not known. Names of hosts do
    /// not tell: containers may share one, and a host may have several.
    pub process_space: u64,
}

/// Who waits, and in which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Awaited {
    /// The rank that waits.
    pub by: u32,
    /// In which operation.
    pub operation: Operation,
}

/// One side of a mismatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Side {
    /// The lowest rank of this side.
    pub rank: u32,
    /// Where it called: collectives, or to or from a peer.
    pub stream: Stream,
    /// What it called; `None` if its recorder no longer knows.
    pub record: Option<CallRecord>,
}

impl Verdict {
    /// The rank that it is about, where it is about one.
    pub fn culprit(&self) -> Option<u32> {
        match self {
            Verdict::Died { rank, .. }
            | Verdict::Stopped { rank, .. }
            | Verdict::Late { rank, .. }
            | Verdict::Left { rank, .. }
            | Verdict::Aborted { by: rank, .. } => Some(*rank),
            Verdict::Mismatch { .. } | Verdict::LinkBroken { .. } | Verdict::ArbiterLost { .. } => {
                None
            }
        }
    }

    /// The rank that must not be able to write into anyone's memory once the verdict is known.
    pub fn fenced_rank(&self) -> Option<u32> {
        match self {
            Verdict::Died { rank, .. } | Verdict::Stopped { rank, .. } => Some(*rank),
            _ => None,
        }
    }
}

impl std::error::Error for Verdict {}

impl Place {
    /// This process.
    pub fn here() -> Place {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() { "an unnamed host" } else { host.trim() };
        let (pid, process_space) = (std::process::id(), process_space().unwrap_or(0));
        Place { host: host.to_owned(), pid, process_space }
    }

    /// Whether a process number means the same process at both.
    pub fn counts_as(&self, other: &Place) -> bool {
        self.process_space != 0 && self.process_space == other.process_space
    }
}

/// `None` where the kernel does not tell.
fn process_space() -> Option<u64> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let space = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(fnv1a(boot.into_iter().chain(space.into_os_string().into_vec())))
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Died { rank, place, how: Death::NoAnswer, .. } => write!(
                f,
                "{} does not answer, which hosts the control service; see whether it was \
                 suspended or is in a debugger, and whether its host and the network to it are up",
                Named(*rank, place)
            ),
            Verdict::Died { rank, place, how, operation } => {
                write!(f, "{} died: {how}", Named(*rank, place))?;
                if let Some(operation) = operation {
                    write!(f, " in {operation}")?;
                }
                write!(f, "; look at that rank's output and at its host's log for the cause")
            }
            Verdict::Stopped { rank, place, awaited, last_seen } => {
                write!(
                    f,
                    "{} is stopped: {awaited}, and it no longer answers",
                    Named(*rank, place)
                )?;
                if let Some(entry) = last_seen {
                    write!(f, "; last seen: {entry}")?;
                }
                write!(
                    f,
                    "; see whether it was suspended or is in a debugger, and whether its host and \
                     the network to it are up"
                )
            }
            Verdict::Late { rank, place, awaited, doing } => {
                write!(f, "{} is late: {awaited}, ", Named(*rank, place))?;
                write_late(f, place, awaited, doing)
            }
            Verdict::Left { rank, by, operation } => {
                write!(f, "rank {rank} left the communicator while rank {by} waited for it")?;
                if let Some(operation) = operation {
                    write!(f, " in {operation}")?;
                }
                write!(f, "; all ranks must make the same calls before any of them leaves")
            }
            Verdict::Mismatch { sequence, a, b } => write!(
                f,
                "ranks disagree about operation {sequence}: {a}, {b}; all ranks must make the same \
                 calls in the same order"
            ),
            Verdict::LinkBroken { a, b, reason } => {
                write!(f, "ranks {a} and {b} live, but the link between them failed: {reason}")
            }
            Verdict::Aborted { by, reason } => write!(f, "rank {by} aborted: {reason}"),
            Verdict::ArbiterLost { reason } => write!(
                f,
                "the job's control service is gone: {reason}; look at the output of the launcher, \
                 or of rank 0 if there was none"
            ),
        }
    }
}

fn write_late(
    f: &mut fmt::Formatter<'_>,
    place: &Option<Place>,
    awaited: &Awaited,
    doing: &Option<Entry>,
) -> fmt::Result {
    match doing {
        _ if place.is_none() => write!(f, "which it has not joined"),
        None => write!(f, "but it has called nothing yet"),
        Some(Entry { operation, state: State::Completed, .. }) => {
            write!(f, "but it is alive and has called nothing since {operation}")
        }
        Some(Entry { operation, .. })
            if operation.sequence == awaited.operation.sequence
                && operation.record == awaited.operation.record =>
        {
            write!(f, "and it is inside the same operation but waits for nobody")
        }
        Some(entry) => write!(f, "but it is alive inside another one: {entry}"),
    }?;
    write!(f, "; if it only needs longer, raise RINGTREE_TIMEOUT")
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Death::ProcessEnded => "its process ended",
            Death::ConnectionLost => "its connection was lost",
            Death::NoAnswer => "it no longer answers",
        })
    }
}

impl fmt::Display for Place {
    /// `process 4711 on node-a`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on {}", self.pid, self.host)
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} waits for it in {}", self.by, self.operation)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} called ", self.rank)?;
        match &self.record {
            Some(record) => write!(f, "{record}"),
            None => write!(f, "something else"),
        }?;
        match self.stream {
            Stream::Collective => Ok(()),
            Stream::SendTo(peer) => write!(f, " to rank {peer}"),
            Stream::ReceiveFrom(peer) => write!(f, " from rank {peer}"),
        }
    }
}

/// `rank 2 (process 4711 on node-a)`.
struct Named<'a>(u32, &'a Option<Place>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(place) => write!(f, "rank {} ({place})", self.0),
            None => write!(f, "rank {}", self.0),
        }
    }
}
