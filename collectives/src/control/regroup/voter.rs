//! What a member has promised and accepted in one epoch: the acceptor of Paxos.

use super::messages::{Accepted, Ballot, Roster, ToFounder};

/// A member's part in the decision of one epoch. It outlives the founders that the member is with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Voter {
    promised: Option<Ballot>,
    accepted: Option<Accepted>,
}

impl Voter {
    pub(in crate::control) fn promised(&self) -> Option<Ballot> {
        self.promised
    }

    pub(in crate::control) fn accepted(&self) -> Option<&Accepted> {
        self.accepted.as_ref()
    }

    /// A founder asks for a promise; `None` where a higher one was given before.
    pub(in crate::control) fn prepare(&mut self, ballot: Ballot) -> Option<ToFounder> {
        if self.promised.is_some_and(|promised| promised > ballot) {
            return None;
        }
        self.promised = Some(ballot);
        Some(ToFounder::Promise { ballot, accepted: self.accepted.clone() })
    }

    /// A founder proposes; `None` where that may not be accepted any more.
    pub(in crate::control) fn propose(
        &mut self,
        ballot: Ballot,
        roster: Roster,
    ) -> Option<ToFounder> {
        if self.promised.is_some_and(|promised| promised > ballot) {
            return None;
        }
        self.promised = Some(ballot);
        self.accepted = Some(Accepted { ballot, roster });
        Some(ToFounder::Accept { ballot })
    }
}
