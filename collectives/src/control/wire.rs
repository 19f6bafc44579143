//! The messages between monitors and the arbiter.
//!
//! A message is a version, a number for its kind, and its fields. It travels in one message of an
//! authenticated stream, and is still checked and bounded: what a rank sends may be wrong.

use super::codec::{Field, WireError, fields, variants};
use super::recorder::{Entry, Operation};
use super::regroup::Member;
use super::verdict::{Place, Verdict};

/// Version of the messages; peers of another version refuse each other.
const VERSION: u8 = 3;

/// The first message on a control connection: whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// A rank of a communicator.
    Join { join: Join },
    /// A member of an epoch that wants to go on; its arrival follows.
    Regroup { lineage: String, epoch: u64, member: u64 },
    /// A newcomer that wants to come in, from its process, with its settings as in [`Join::terms`].
    Knock { lineage: String, member: Member, place: Place, terms: String },
}

/// A rank joins its communicator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Join {
    /// Which communicator of the job.
    pub communicator: u64,
    /// The rank that joins.
    pub rank: u32,
    /// How many ranks there are.
    pub ranks: u32,
    /// Its process.
    pub place: Place,
    /// Name of the first communicator from which this one comes by changes of the members.
    pub lineage: String,
    /// How many such changes there were.
    pub epoch: u64,
    /// Settings that all ranks must have in common, in words.
    pub terms: String,
}

/// What a monitor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToArbiter {
    /// An operation has made no progress for a while.
    Stalled {
        /// Which one, and what it waits for.
        stall: Stall,
    },
    /// A frame of another call was found.
    SuspectMismatch {
        /// The frame.
        suspicion: Suspicion,
    },
    /// The link to a peer ended.
    LinkFailed {
        /// How.
        failure: LinkFailure,
    },
    /// A peer's process ended.
    ProcessEnded {
        /// The peer.
        peer: u32,
    },
    /// The user gave up.
    Abort {
        /// Why.
        reason: String,
    },
    /// The rank leaves.
    Goodbye {
        /// Its last operations.
        entries: Vec<Entry>,
    },
    /// Answer to a query.
    Answer {
        /// Number of the query.
        query: u64,
        /// The rank's last operations.
        entries: Vec<Entry>,
    },
}

/// What the arbiter says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToMember {
    /// The rank has joined.
    Joined {
        /// Number of the process that hosts the arbiter, if it is a rank's.
        arbiter: Option<u64>,
        /// That process.
        place: Place,
    },
    /// The rank may not join.
    Refused {
        /// Why.
        reason: String,
    },
    /// What are you doing?
    Query {
        /// Number of the question.
        id: u64,
    },
    /// The communicator has ended.
    Verdict {
        /// Why.
        verdict: Verdict,
    },
    /// The control service ends in good order; there is no verdict.
    Closing {},
    /// Newcomers wait to be let in.
    Knocking {
        /// So many.
        count: u32,
    },
}

/// An operation that has made no progress for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Which one.
    pub operation: Operation,
    /// The ranks that it waits for; empty: nobody in particular.
    pub waiting_for: Vec<u32>,
    /// How long it has made no progress.
    pub stalled_ms: u64,
    /// That is longer than it may.
    pub deadline_passed: bool,
}

/// A frame that belongs to another call than the one that looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// The operation that found it.
    pub operation: Operation,
    /// The rank that sent it.
    pub peer: u32,
    /// Number of the operation in the frame.
    pub peer_sequence: u32,
    /// Digest of the call in the frame.
    pub peer_digest: u32,
}

/// A link that ended while an operation needed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFailure {
    /// The rank at its other end.
    pub peer: u32,
    /// What the link said.
    pub reason: String,
    /// The operation that needed it.
    pub operation: Option<Operation>,
}

/// The message as bytes.
pub(super) fn encode<M: Message>(message: &M) -> Vec<u8> {
    let mut out = vec![VERSION];
    message.write(&mut out);
    out
}

/// The message from bytes that came from outside.
pub(super) fn decode<M: Message>(mut bytes: &[u8]) -> Result<M, WireError> {
    match u8::read(&mut bytes)? {
        VERSION => {}
        version => return Err(WireError::Version { version }),
    }
    let message = M::read(&mut bytes)?;
    match bytes.len() {
        0 => Ok(message),
        bytes => Err(WireError::Trailing { bytes }),
    }
}

/// What can be a whole message.
pub(super) trait Message: Field {}
impl Message for Hello {}
impl Message for ToArbiter {}
impl Message for ToMember {}

fields!(Join { communicator, rank, ranks, place, lineage, epoch, terms });
fields!(Stall { operation, waiting_for, stalled_ms, deadline_passed });
fields!(Suspicion { operation, peer, peer_sequence, peer_digest });
fields!(LinkFailure { peer, reason, operation });

variants!(ToArbiter {
    1 => Stalled { stall },
    2 => SuspectMismatch { suspicion },
    3 => LinkFailed { failure },
    4 => ProcessEnded { peer },
    5 => Abort { reason },
    6 => Goodbye { entries },
    7 => Answer { query, entries },
});

variants!(ToMember {
    1 => Joined { arbiter, place },
    2 => Refused { reason },
    3 => Query { id },
    4 => Verdict { verdict },
    5 => Closing {},
    6 => Knocking { count },
});

variants!(Hello {
    1 => Join { join },
    2 => Regroup { lineage, epoch, member },
    3 => Knock { lineage, member, place, terms },
});

variants!(Verdict {
    1 => Died { rank, place, how, operation },
    2 => Stopped { rank, place, awaited, last_seen },
    3 => Late { rank, place, awaited, doing },
    4 => Left { rank, by, operation },
    5 => Mismatch { sequence, a, b },
    6 => LinkBroken { a, b, reason },
    7 => Aborted { by, reason },
    8 => ArbiterLost { reason },
});

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;
    use crate::control::codec::{MAX_LIST, MAX_TEXT_BYTES};
    use crate::control::testing::{Random, barrier, entry, operation};
    use crate::control::{Awaited, Death, Side, State, Stream};

    #[test]
    fn what_was_encoded_is_decoded() {
        for message in messages_to_arbiter() {
            assert_eq!(decode::<ToArbiter>(&encode(&message)), Ok(message));
        }
        for message in messages_to_member() {
            assert_eq!(decode::<ToMember>(&encode(&message)), Ok(message));
        }
        for hello in hellos() {
            assert_eq!(decode::<Hello>(&encode(&hello)), Ok(hello));
        }
    }

    #[test]
    fn messages_that_are_cut_or_go_on_are_refused() {
        for message in messages_to_arbiter() {
            let mut bytes = encode(&message);
            for len in 0..bytes.len() {
                assert_eq!(decode::<ToArbiter>(&bytes[..len]), Err(WireError::Truncated));
            }
            bytes.push(0);
            assert_eq!(decode::<ToArbiter>(&bytes), Err(WireError::Trailing { bytes: 1 }));
            bytes[0] = 200;
            assert_eq!(decode::<ToArbiter>(&bytes), Err(WireError::Version { version: 200 }));
        }
    }

    #[test]
    fn random_and_mutated_bytes_are_decoded_or_refused() {
        let mut random = Random::new(1);
        for _ in 0..20_000 {
            let len = random.below(200) as usize;
            let mut bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            if let Some(version) = bytes.first_mut() {
                *version = VERSION;
            }
            check_decoders(&bytes);
        }
        for message in messages_to_arbiter() {
            for _ in 0..500 {
                let mut bytes = encode(&message);
                let index = random.below(bytes.len() as u64) as usize;
                bytes[index] = random.next() as u8;
                check_decoders(&bytes);
            }
        }
    }

    #[test]
    fn long_texts_and_lists_are_cut() {
        let reason = "é".repeat(MAX_TEXT_BYTES);
        let bytes = encode(&ToArbiter::Abort { reason: reason.clone() });
        let Ok(ToArbiter::Abort { reason: cut }) = decode(&bytes) else { panic!("{bytes:?}") };
        assert_eq!(cut, reason[..MAX_TEXT_BYTES]);
        let stall = Stall {
            operation: operation(Stream::Collective, 1, barrier()),
            waiting_for: (0..5000).collect(),
            stalled_ms: 1,
            deadline_passed: false,
        };
        let bytes = encode(&ToArbiter::Stalled { stall });
        let Ok(ToArbiter::Stalled { stall }) = decode(&bytes) else { panic!("{bytes:?}") };
        assert_eq!(stall.waiting_for, (0..MAX_LIST as u32).collect::<Vec<_>>());
    }

    /// Whatever is decoded must be encoded to the same message again.
    fn check_decoders(bytes: &[u8]) {
        fn check<M: Message + PartialEq + Debug>(bytes: &[u8]) {
            if let Ok(message) = decode::<M>(bytes) {
                assert_eq!(decode::<M>(&encode(&message)), Ok(message));
            }
        }
        check::<Hello>(bytes);
        check::<ToArbiter>(bytes);
        check::<ToMember>(bytes);
    }

    fn place(host: &str) -> Place {
        Place { host: host.into(), pid: 4, process_space: 1 << 50 }
    }

    fn hellos() -> [Hello; 3] {
        let lineage = String::from("communicator/1");
        let join = Join {
            communicator: 9,
            rank: 1,
            ranks: 2,
            place: place("höst"),
            lineage: lineage.clone(),
            epoch: 3,
            terms: "over tcp".into(),
        };
        let member = Member { id: 1, process: 2, standby: "127.0.0.1:9".into() };
        [
            Hello::Join { join },
            Hello::Regroup { lineage: lineage.clone(), epoch: 4, member: 1 },
            Hello::Knock { lineage, member, place: place("b"), terms: "over any".into() },
        ]
    }

    fn messages_to_arbiter() -> Vec<ToArbiter> {
        let operation = operation(Stream::SendTo(3), 7, barrier());
        let stall =
            Stall { operation, waiting_for: vec![1, 2], stalled_ms: 100, deadline_passed: true };
        let suspicion = Suspicion { operation, peer: 2, peer_sequence: 8, peer_digest: 9 };
        let failure = LinkFailure { peer: 5, reason: "reset".into(), operation: Some(operation) };
        let entries = vec![
            entry(operation, State::Running, Some(3)),
            entry(operation, State::Completed, None),
        ];
        vec![
            ToArbiter::Stalled { stall },
            ToArbiter::SuspectMismatch { suspicion },
            ToArbiter::LinkFailed { failure },
            ToArbiter::ProcessEnded { peer: 1 },
            ToArbiter::Abort { reason: "why".into() },
            ToArbiter::Goodbye { entries: entries.clone() },
            ToArbiter::Answer { query: 4, entries },
        ]
    }

    fn messages_to_member() -> Vec<ToMember> {
        let operation = operation(Stream::Collective, 7, barrier());
        let entry = Some(entry(operation, State::Running, None));
        let place = Some(place("a"));
        let awaited = Awaited { by: 1, operation };
        let a = Side { rank: 0, stream: Stream::Collective, record: Some(barrier()) };
        let b = Side { rank: 1, stream: Stream::ReceiveFrom(0), record: None };
        let verdicts = vec![
            Verdict::Died {
                rank: 1,
                place: place.clone(),
                how: Death::ConnectionLost,
                operation: Some(operation),
            },
            Verdict::Stopped { rank: 1, place: place.clone(), awaited, last_seen: entry },
            Verdict::Late { rank: 1, place, awaited, doing: entry },
            Verdict::Left { rank: 1, by: 2, operation: None },
            Verdict::Mismatch { sequence: 4, a, b },
            Verdict::LinkBroken { a: 1, b: 2, reason: "cut".into() },
            Verdict::Aborted { by: 3, reason: "why".into() },
            Verdict::ArbiterLost { reason: "gone".into() },
        ];

        let mut messages = vec![
            ToMember::Joined {
                arbiter: Some(1 << 40),
                place: Place { host: "b".into(), pid: 4, process_space: 0 },
            },
            ToMember::Refused { reason: "no".into() },
            ToMember::Query { id: 9 },
            ToMember::Closing {},
            ToMember::Knocking { count: 2 },
        ];
        messages.extend(verdicts.into_iter().map(|verdict| ToMember::Verdict { verdict }));
        messages
    }
}
