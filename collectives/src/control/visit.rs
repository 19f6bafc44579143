//! A member's, or a newcomer's, way through the decision of who goes on: its connection to a founder.

use std::time::{Duration, Instant};

use ringtree_transport::secure::Job;

use super::handle::{self, ControlError};
use super::poller::Connection;
use super::regroup::{Arrival, Member, Progress, Roster, ToFounder, ToVoter, Voter, Without};
use super::verdict::Place;
use super::wire::Hello;

/// How often a member that waits for a founder looks for what it could tell it.
const LOOK: Duration = Duration::from_millis(50);

/// A connection to a founder that has decided: to be kept until the communicator is made.
#[derive(Debug)]
pub(crate) struct Visit {
    connection: Connection,
}

/// What came of being with a founder.
#[derive(Debug)]
pub(crate) enum Answer {
    /// These go on, and this process is one of them.
    Decided(Roster, Visit),
    /// The others go on without this process.
    LeftOut(String),
    /// Those that the founder reached may not go on.
    NoQuorum(String),
    /// The founder is gone, or says nothing any more: there may be another one.
    Gone(String),
}

/// Who comes to a founder, and what it knows.
#[derive(Debug)]
pub(crate) struct Visitor<'a> {
    /// Name of the first communicator.
    pub lineage: &'a str,
    /// This process's number.
    pub id: u64,
    /// The epoch that it is in.
    pub roster: &'a Roster,
    /// The number of that epoch's communicator.
    pub communicator: u64,
    /// How far it has come.
    pub progress: Option<Progress>,
    /// A member to go on without, though it lives.
    pub without: Option<Without>,
    /// How long those that may still come are waited for.
    pub patience: Duration,
}

/// Members that are missing, as far as one of them knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    /// These have certainly ended.
    pub ended: Vec<u64>,
    /// Nobody should wait for these.
    pub gone: Vec<u64>,
}

impl Visitor<'_> {
    /// Goes through the decision with the founder at `address`, which must answer the call by `attempt`. `missing`
    /// tells from time to time who is known to be missing.
    pub(crate) fn visit(
        &self,
        address: &str,
        job: &Job,
        voter: &mut Voter,
        mut missing: impl FnMut() -> Missing,
        attempt: Instant,
        deadline: Instant,
    ) -> Answer {
        let hello = Hello::Regroup {
            lineage: self.lineage.to_owned(),
            epoch: self.roster.epoch,
            member: self.id,
        };
        let mut connection = match handle::call(address, job, &hello, attempt) {
            Ok(connection) => connection,
            Err(error) => return Answer::Gone(error.to_string()),
        };
        let mut told = missing();
        let Missing { ended, gone } = told.clone();
        let arrival = Arrival {
            roster: self.roster.clone(),
            communicator: self.communicator,
            progress: self.progress,
            promised: voter.promised(),
            accepted: voter.accepted().cloned(),
            ended,
            gone,
            without: self.without,
            patience_ms: self.patience.as_millis() as u64,
        };
        connection.send(&ToFounder::Arrive { arrival: Box::new(arrival) });
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Answer::Gone(format!("no decision came from {address} in time"));
            }
            let answer = match connection.receive_until((now + LOOK).min(deadline)) {
                Ok(answer) => answer,
                Err(error) => return Answer::Gone(error.to_string()),
            };
            let reply = match answer {
                None => {
                    let news = missing();
                    if news == told {
                        continue;
                    }
                    told = news;
                    let Missing { ended, gone } = told.clone();
                    Some(ToFounder::Missed { ended, gone })
                }
                Some(ToVoter::Prepare { ballot }) => voter.prepare(ballot),
                Some(ToVoter::Propose { ballot, roster }) => voter.propose(ballot, roster),
                Some(ToVoter::Decided { roster }) => {
                    connection.send(&ToFounder::Heard {});
                    return Answer::Decided(roster, Visit { connection });
                }
                Some(ToVoter::LeftOut { reason }) => return Answer::LeftOut(reason),
                Some(ToVoter::NoQuorum { reason }) => return Answer::NoQuorum(reason),
                Some(ToVoter::OtherTerms { .. }) => {
                    return Answer::Gone(format!("{address} takes this member for a newcomer"));
                }
            };
            if let Some(reply) = reply {
                connection.send(&reply);
            }
        }
    }
}

/// Asks at the service to be let into a job, and waits until its members do so.
///
/// # Errors
/// The service cannot be reached or is lost, nobody lets this process in by the deadline, or the members have other
/// settings than `terms`.
pub(crate) fn knock(
    address: &str,
    job: &Job,
    lineage: &str,
    member: &Member,
    terms: &str,
    deadline: Instant,
) -> Result<(Roster, Visit), ControlError> {
    let (lineage, member) = (lineage.to_owned(), member.clone());
    let hello = Hello::Knock { lineage, member, place: Place::here(), terms: terms.to_owned() };
    let mut connection = handle::call(address, job, &hello, deadline)?;
    match connection.receive_until(deadline)? {
        Some(ToVoter::Decided { roster }) => Ok((roster, Visit { connection })),
        Some(ToVoter::OtherTerms { terms: theirs }) => {
            Err(ControlError::OtherTerms { own: terms.to_owned(), theirs })
        }
        Some(_) => {
            let reason = "a newcomer is asked what only members know".to_owned();
            Err(ControlError::Protocol { reason })
        }
        None => Err(ControlError::NotLetIn { address: address.to_owned() }),
    }
}

impl Visit {
    /// This process is a rank of the new communicator.
    pub(crate) fn stand(mut self) {
        self.connection.send(&ToFounder::Standing {});
    }
}
