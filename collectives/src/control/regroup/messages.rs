//! What members and founders tell each other.

use super::super::codec::{Field, WireError, fields, variants};
use super::super::wire::Message;

/// A member of a communicator for as long as it lives: its rank may change, this does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// A random number, by which it is the same in every epoch.
    pub id: u64,
    /// A random number of its process: ranks may be threads of one.
    pub process: u64,
    /// Where its process would host the control service, `host:port`.
    pub standby: String,
}

/// The members of one epoch, which are the ranks of one communicator, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// From 0, one higher with each change of the members.
    pub epoch: u64,
    /// Name of the communicator among all of the job.
    pub name: String,
    /// By rank.
    pub members: Vec<Member>,
    /// So many of the last ones were not in the epoch before.
    pub newcomers: u32,
    /// How far all who were in an epoch before have come; `None` in the first.
    pub progress: Option<Progress>,
}

/// How far a member has come. What is less happened before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Progress {
    /// The last epoch of which it had a communicator.
    pub epoch: u64,
    /// Collectives that it has completed there.
    pub completed: u32,
}

/// Number of a proposal. Later rounds are higher, and no two founders share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    /// Above all that the members have promised before.
    pub round: u32,
    /// A random number of the founder.
    pub founder: u64,
}

/// A proposal that a member has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) struct Accepted {
    pub ballot: Ballot,
    pub roster: Roster,
}

/// What a member knows when it comes to a founder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) struct Arrival {
    /// The epoch that it is in.
    pub roster: Roster,
    /// Number of that epoch's communicator, by which a service knows who was there.
    pub communicator: u64,
    pub progress: Option<Progress>,
    pub promised: Option<Ballot>,
    pub accepted: Option<Accepted>,
    /// Members that have certainly ended.
    pub ended: Vec<u64>,
    /// Members that nobody should wait for.
    pub gone: Vec<u64>,
    /// A member to go on without, though it lives.
    pub without: Option<Without>,
    /// How long those that may still come are waited for.
    pub patience_ms: u64,
}

/// A member that is left out because another one cannot reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Without {
    /// Who is left out.
    pub id: u64,
    /// If this one is here.
    pub other: u64,
}

/// What a member says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) enum ToFounder {
    Arrive {
        arrival: Box<Arrival>,
    },
    /// It has learnt more.
    Missed {
        ended: Vec<u64>,
        gone: Vec<u64>,
    },
    /// It accepts nothing of a lower ballot from now on, and has accepted this.
    Promise {
        ballot: Ballot,
        accepted: Option<Accepted>,
    },
    Accept {
        ballot: Ballot,
    },
    /// It knows the decision.
    Heard {},
    /// It is a rank of the new communicator.
    Standing {},
}

/// What a founder says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) enum ToVoter {
    Prepare {
        ballot: Ballot,
    },
    Propose {
        ballot: Ballot,
        roster: Roster,
    },
    /// The epoch is over, and this is the next one.
    Decided {
        roster: Roster,
    },
    /// The others go on without this one.
    LeftOut {
        reason: String,
    },
    /// Those that are here may not go on.
    NoQuorum {
        reason: String,
    },
    /// A newcomer cannot come in: the members have these settings.
    OtherTerms {
        terms: String,
    },
}

impl Message for ToFounder {}
impl Message for ToVoter {}

fields!(Member { id, process, standby });
fields!(Roster { epoch, name, members, newcomers, progress });
fields!(Progress { epoch, completed });
fields!(Ballot { round, founder });
fields!(Without { id, other });
fields!(Accepted { ballot, roster });
fields!(Arrival {
    roster,
    communicator,
    progress,
    promised,
    accepted,
    ended,
    gone,
    without,
    patience_ms
});

variants!(ToFounder {
    1 => Arrive { arrival },
    2 => Missed { ended, gone },
    3 => Promise { ballot, accepted },
    4 => Accept { ballot },
    5 => Standing {},
    6 => Heard {},
});

variants!(ToVoter {
    1 => Prepare { ballot },
    2 => Propose { ballot, roster },
    3 => Decided { roster },
    4 => LeftOut { reason },
    5 => NoQuorum { reason },
    6 => OtherTerms { terms },
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::{decode, encode};

    fn roster(epoch: u64, ids: &[u64]) -> Roster {
        let member = |id: &u64| Member { id: *id, process: *id, standby: format!("h:{id}") };
        Roster {
            epoch,
            name: format!("communicator/1+{epoch}"),
            members: ids.iter().map(member).collect(),
            newcomers: 1,
            progress: Some(Progress { epoch: 0, completed: 7 }),
        }
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let ballot = Ballot { round: 3, founder: 9 };
        let accepted = Some(Accepted { ballot, roster: roster(2, &[4, 5]) });
        let arrival = Arrival {
            roster: roster(1, &[1, 2, 3]),
            communicator: 77,
            progress: None,
            promised: Some(ballot),
            accepted: accepted.clone(),
            ended: vec![1],
            gone: vec![],
            without: Some(Without { id: 2, other: 1 }),
            patience_ms: 60_000,
        };
        let said = [
            ToFounder::Arrive { arrival: Box::new(arrival) },
            ToFounder::Missed { ended: vec![1, 2], gone: vec![3] },
            ToFounder::Promise { ballot, accepted },
            ToFounder::Accept { ballot },
            ToFounder::Heard {},
            ToFounder::Standing {},
        ];
        for message in said {
            assert_eq!(decode::<ToFounder>(&encode(&message)), Ok(message));
        }
        let answers = [
            ToVoter::Prepare { ballot },
            ToVoter::Propose { ballot, roster: roster(2, &[1]) },
            ToVoter::Decided { roster: roster(3, &[]) },
            ToVoter::LeftOut { reason: "late".into() },
            ToVoter::NoQuorum { reason: "alone".into() },
            ToVoter::OtherTerms { terms: "over tcp".into() },
        ];
        for message in answers {
            assert_eq!(decode::<ToVoter>(&encode(&message)), Ok(message));
        }
    }
}
