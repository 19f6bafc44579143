//! How this process goes on with others: finds whoever leads the decision, goes through it, and makes the communicator
//! that was decided; again, if somebody is lost meanwhile.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Error;
use crate::bootstrap::{self, Descent, Joined, Origin, communicator_id};
use crate::control::regroup::{MAX_MEMBERS, Voter};
use crate::control::{
    self, Answer, Control, Member, Missing, Progress, Roster, Verdict, Visit, Visitor, Without,
};
use crate::hosting::{Standby, process_number, random_number};
use crate::settings::Settings;

/// How long one attempt may take to reach somebody who may lead the decision, at most.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(2);

/// How long a newcomer waits to be let in, at least: members do that where it suits them.
const KNOCK_LIMIT: Duration = Duration::from_secs(60);

/// How long a process of another host may take to say that nobody listens there any more.
const PROBE_LIMIT: Duration = Duration::from_millis(200);

/// Why a process does not go on with others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegroupError {
    /// Those that are here may not go on by themselves: others may do so.
    #[error("the job cannot go on here: {reason}")]
    NoQuorum {
        /// Who is here and who is missing.
        reason: String,
    },
    /// The others go on without this process.
    #[error("this process is left out: {reason}")]
    LeftOut {
        /// Why.
        reason: String,
    },
    /// Nobody was found who leads the decision, or the communicator could not be made in time.
    #[error(
        "the members that are left did not find each other within {timeout:?}, last because {reason}; all of them \
         must call `shrink` or `admit`, and the processes of the lowest ranks must be reachable"
    )]
    TimedOut {
        /// The limit.
        timeout: Duration,
        /// What the last attempt met.
        reason: String,
    },
    /// More members than can decide.
    #[error("{members} ranks, and at most {MAX_MEMBERS} can go on after a change")]
    TooMany {
        /// Ranks of the communicator.
        members: usize,
    },
}

/// What a member brings along.
pub(crate) struct Baggage<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) origin: &'a Origin,
    pub(crate) control: &'a Control,
    /// Collectives that it has completed.
    pub(crate) completed: u32,
    /// Why the communicator has ended, if it has.
    pub(crate) verdict: Option<Arc<Verdict>>,
}

/// Goes on with the other members of a communicator.
///
/// # Errors
/// [`RegroupError`], and what can go wrong when a communicator is made.
pub(crate) fn go_on(baggage: &Baggage<'_>) -> Result<Joined, Error> {
    let Baggage { settings, origin, control, .. } = *baggage;
    let members = origin.roster.members.len();
    if members > MAX_MEMBERS {
        return Err(Error::Regroup(Arc::new(RegroupError::TooMany { members })));
    }
    let id_of = |rank: u32| origin.roster.members.get(rank as usize).map(|member| member.id);
    let is_other = |id: &u64| *id != origin.id;
    let (gone, without) = match baggage.verdict.as_deref() {
        Some(Verdict::LinkBroken { a, b, .. }) => {
            let ids = id_of(*a.max(b)).zip(id_of(*a.min(b)));
            (None, ids.map(|(id, other)| Without { id, other }))
        }
        Some(Verdict::Aborted { .. }) | None => (None, None),
        Some(verdict) => (verdict.culprit().and_then(id_of).filter(is_other), None),
    };
    let way = Way {
        settings,
        lineage: &origin.lineage,
        id: origin.id,
        standby: origin.standby.as_ref(),
        deadline: Instant::now() + settings.bounded_timeout(),
        progress: Some(Progress { epoch: origin.roster.epoch, completed: baggage.completed }),
        missing: &|| Missing {
            ended: control.ended_peers().into_iter().filter_map(id_of).collect(),
            gone: gone.into_iter().collect(),
        },
    };
    let state = State {
        roster: origin.roster.clone(),
        communicator: origin.communicator,
        service: control.address().to_owned(),
        without,
    };
    way.follow(state, None)
}

/// Waits to be let into a job, and becomes a member of it.
///
/// # Errors
/// As [`go_on`]; [`ControlError::NotLetIn`](control::ControlError::NotLetIn) where nobody lets it in.
pub(crate) fn come_in(settings: &Settings, lineage: &str) -> Result<Joined, Error> {
    let deadline = Instant::now() + settings.bounded_timeout().max(KNOCK_LIMIT);
    let mut meeting = bootstrap::Gathering::at(&settings.rendezvous, &settings.job, deadline)?;
    let service = meeting.service_address(&settings.job, deadline)?;
    let standby = Standby::of(settings, &service);
    let member = Member {
        id: random_number()?,
        process: process_number()?,
        standby: standby.as_ref().map_or(String::new(), |standby| standby.address().to_owned()),
    };
    let terms = settings.terms();
    let job = &settings.job;
    let (roster, visit) = control::knock(&service, job, lineage, &member, &terms, deadline)?;
    let way = Way {
        settings,
        lineage,
        id: member.id,
        standby: standby.as_ref(),
        deadline: Instant::now() + settings.bounded_timeout(),
        progress: None,
        missing: &Missing::default,
    };
    match way.meet(&roster, &service) {
        Ok(joined) => {
            visit.stand();
            Ok(joined)
        }
        Err(error) => {
            let again = way.learn(roster, service, error)?;
            way.follow(again, Some(visit))
        }
    }
}

/// A process on its way from one epoch to the next.
struct Way<'a> {
    settings: &'a Settings,
    lineage: &'a str,
    id: u64,
    standby: Option<&'a Arc<Standby>>,
    deadline: Instant,
    progress: Option<Progress>,
    missing: &'a dyn Fn() -> Missing,
}

/// Where it stands.
struct State {
    roster: Roster,
    communicator: u64,
    /// Where the decision was led last, or the service is.
    service: String,
    without: Option<Without>,
}

impl Way<'_> {
    /// Goes from decision to decision until a communicator has come about. The visit to the last founder ends only when
    /// the next one has decided: until then its end would mean that this process is gone.
    fn follow(&self, mut state: State, mut last: Option<Visit>) -> Result<Joined, Error> {
        loop {
            let (roster, service, visit) = self.decide(&state)?;
            drop(last.replace(visit));
            match self.meet(&roster, &service) {
                Ok(joined) => {
                    last.into_iter().for_each(Visit::stand);
                    return Ok(joined);
                }
                Err(error) => state = self.learn(roster, service, error)?,
            }
        }
    }

    /// From what was decided and did not come about to the next decision, if it may be made in time.
    fn learn(&self, roster: Roster, service: String, error: Error) -> Result<State, Error> {
        let may_pass =
            matches!(error, Error::Rendezvous(_) | Error::Control(_) | Error::Verdict(_));
        if !may_pass {
            return Err(error);
        }
        if Instant::now() >= self.deadline {
            return Err(self.timed_out(error.to_string()));
        }
        tracing::info!("{} did not come about: {error}", roster.name);
        let communicator = communicator_id(&self.settings.job, &roster.name);
        Ok(State { roster, communicator, service, without: None })
    }

    /// Asks everyone who may lead the decision, until one has: the service, then the members' processes by rank, this one
    /// among them.
    fn decide(&self, state: &State) -> Result<(Roster, String, Visit), Error> {
        let mut voter = Voter::default();
        let members = state.roster.members.iter().map(|member| &member.standby);
        let places: Vec<&String> =
            [&state.service].into_iter().chain(members).filter(|it| !it.is_empty()).collect();
        let mut last = "nobody can lead the decision".to_owned();
        let mut too_few = None;
        let patience = self.settings.bounded_timeout() / 3;
        for place in places.iter().cycle() {
            let now = Instant::now();
            if now >= self.deadline || places.is_empty() {
                break;
            }
            let own = self.standby.filter(|standby| standby.address() == place.as_str());
            let mut probe = Probe::new(if own.is_some() { &state.roster.members } else { &[] });
            let visitor = Visitor {
                lineage: self.lineage,
                id: self.id,
                roster: &state.roster,
                communicator: state.communicator,
                progress: self.progress,
                without: state.without,
                patience,
            };
            let missing = || {
                let mut missing = (self.missing)();
                missing.gone.extend(probe.closed());
                missing
            };
            let attempt_limit = ATTEMPT_LIMIT.min(self.settings.bounded_timeout() / 8);
            let attempt = self.deadline.min(now + attempt_limit);
            let until = self.deadline.min(now + patience + ATTEMPT_LIMIT);
            let job = &self.settings.job;
            match visitor.visit(place, job, &mut voter, missing, attempt, until) {
                Answer::Decided(roster, visit) => {
                    if let Some(standby) = own {
                        standby.take_over(&self.settings.rendezvous)?;
                    }
                    return Ok((roster, place.to_string(), visit));
                }
                Answer::LeftOut(reason) => {
                    return Err(Error::Regroup(Arc::new(RegroupError::LeftOut { reason })));
                }
                // Others may be with somebody else, who comes next.
                Answer::NoQuorum(reason) => too_few = Some(reason),
                Answer::Gone(reason) => {
                    tracing::debug!("no decision at {place}: {reason}");
                    last = reason;
                }
            }
            // Nobody may be there yet.
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(match too_few {
            Some(reason) => Error::Regroup(Arc::new(RegroupError::NoQuorum { reason })),
            None => self.timed_out(last),
        })
    }

    /// Makes the communicator of an epoch.
    fn meet(&self, roster: &Roster, service: &str) -> Result<Joined, Error> {
        let position = roster.members.iter().position(|member| member.id == self.id);
        let Some(rank) = position else {
            let reason = "it is none of those that go on".to_owned();
            return Err(Error::Regroup(Arc::new(RegroupError::LeftOut { reason })));
        };
        let settings = Settings {
            rank: rank as u32,
            ranks: roster.members.len() as u32,
            joins: false,
            ..self.settings.clone()
        };
        let next = Descent::Next { lineage: self.lineage, roster, id: self.id };
        bootstrap::meet_as(settings, service.to_owned(), roster.name.clone(), next)
    }

    fn timed_out(&self, reason: String) -> Error {
        let timeout = self.settings.timeout;
        Error::Regroup(Arc::new(RegroupError::TimedOut { timeout, reason }))
    }
}

/// Looks whether processes still hold the ports that they have had since they began, one at a time.
struct Probe<'a> {
    members: &'a [Member],
    next: usize,
    closed: BTreeSet<u64>,
}

impl<'a> Probe<'a> {
    fn new(members: &'a [Member]) -> Probe<'a> {
        Probe { members, next: 0, closed: BTreeSet::new() }
    }

    /// Those whose port is closed, as far as is known: looks at one more.
    fn closed(&mut self) -> Vec<u64> {
        if let Some(member) = self.members.get(self.next % self.members.len().max(1)) {
            self.next += 1;
            if !self.closed.contains(&member.id) && is_closed(&member.standby) {
                self.closed.insert(member.id);
            }
        }
        self.closed.iter().copied().collect()
    }
}

fn is_closed(address: &str) -> bool {
    let resolved = address.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    resolved.is_some_and(|address| {
        let attempt = TcpStream::connect_timeout(&address, PROBE_LIMIT);
        attempt.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    })
}
