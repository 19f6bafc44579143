//! A member's handle on the control plane.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringtree_transport::limits::described;
use ringtree_transport::process::PidFd;
use ringtree_transport::secure::{Job, Purpose, SecureError, initiate};

use super::abort::AbortWord;
use super::monitor::{self, Seat, SeatId, Work};
use super::poller::{Connection, ConnectionError, Inbox};
use super::recorder::FlightRecorder;
use super::verdict::Place;
use super::wire::{self, Hello, Join, LinkFailure, Stall, Suspicion, ToArbiter, ToMember};

/// How long leaving waits for the goodbye to be on its way.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// A rank's part in the control plane, one a communicator. Its calls return at once: the monitor
/// thread does the rest. Dropping it says goodbye.
///
/// In a child that was forked it does nothing: the connection is the parent's.
#[derive(Debug)]
pub struct Control {
    address: String,
    id: SeatId,
    inbox: Arc<Inbox<Work>>,
    pid: u32,
    has_left: AtomicBool,
    /// Newcomers that wait, as the service has said last.
    newcomers: Arc<AtomicU32>,
    /// Ranks of this host whose process was seen to end.
    ended: Arc<Mutex<Vec<u32>>>,
}

/// Which rank of which communicator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The communicator, by a number that no other one of the job has had.
    pub communicator: u64,
    /// The rank.
    pub rank: u32,
    /// How many ranks there are.
    pub ranks: u32,
    /// Name of the first communicator from which this one comes by changes of the members.
    pub lineage: String,
    /// How many such changes there were.
    pub epoch: u64,
    /// Settings that all ranks must have in common, in words: a newcomer with others is not let in.
    pub terms: String,
    /// Number of each rank's process; nobody's is that of the service where it is empty.
    pub processes: Vec<u64>,
}

/// Why a rank could not join the control plane.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The service's address means nothing.
    #[error("the control service's address {address:?} cannot be resolved: {reason}")]
    Address {
        /// The address.
        address: String,
        /// What the resolver said.
        reason: String,
    },
    /// Nobody listens there.
    #[error("the control service at {address} cannot be reached: {reason}")]
    Unreachable {
        /// The address.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The connection is not what it should be.
    #[error("the control connection could not be made: {0}")]
    Connection(#[from] SecureError),
    /// The service spoke out of turn.
    #[error("the control service broke the protocol: {reason}")]
    Protocol {
        /// What was wrong.
        reason: String,
    },
    /// The service refused.
    #[error("the control service refused: {reason}")]
    Refused {
        /// Its reason.
        reason: String,
    },
    /// The deadline passed.
    #[error("the control service at {address} did not answer in time")]
    TimedOut {
        /// The address.
        address: String,
    },
    /// The members of a job did not let this process in.
    #[error(
        "no member of the job at {address} let this process in in time: its program must call `admit` where \
         `members_changed` says that somebody waits"
    )]
    NotLetIn {
        /// The service's address.
        address: String,
    },
    /// The members of a job have other settings than this process, which wants to be let in.
    #[error(
        "this process would communicate {own}, the members of the job do {theirs}: start it with the same settings"
    )]
    OtherTerms {
        /// This process's.
        own: String,
        /// The members'.
        theirs: String,
    },
    /// The system has no descriptors or threads left.
    #[error("the monitor could not be started: {}", described(.0))]
    Monitor(#[source] std::io::Error),
}

impl Control {
    /// Joins at the service at `address` (`host:port`). The monitor reads `recorder` whenever the
    /// arbiter asks, and sets `abort` when it has decided.
    ///
    /// # Errors
    /// As [`ControlError`] says. There is none after the rank has joined: then `abort` tells.
    pub fn join(
        address: &str,
        job: &Job,
        member: Membership,
        recorder: Arc<FlightRecorder>,
        abort: Arc<AbortWord>,
        deadline: Instant,
    ) -> Result<Control, ControlError> {
        let Membership { communicator, rank, ranks, lineage, epoch, terms, processes } = member;
        let place = Place::here();
        let pid = place.pid;
        let join = Join { communicator, rank, ranks, place, lineage, epoch, terms };
        let mut connection = call(address, job, &Hello::Join { join }, deadline)?;
        let (arbiter, arbiter_place) = match connection.receive_until(deadline)? {
            Some(ToMember::Joined { arbiter, place }) => (arbiter, place),
            Some(ToMember::Refused { reason }) => return Err(ControlError::Refused { reason }),
            Some(_) => {
                let reason = "the first message does not say whether this rank joined".to_owned();
                return Err(ControlError::Protocol { reason });
            }
            None => return Err(ControlError::TimedOut { address: address.to_owned() }),
        };
        let connection = Some(connection);
        let rank_of = |process| processes.iter().position(|of| *of == process);
        let arbiter = arbiter.and_then(rank_of).map(|rank| rank as u32);
        let newcomers = Arc::new(AtomicU32::new(0));
        let ended = Arc::new(Mutex::default());
        let seat = Seat {
            rank,
            connection,
            arbiter,
            arbiter_place,
            recorder,
            abort,
            newcomers: newcomers.clone(),
            ended: ended.clone(),
        };
        let (id, inbox) = monitor::enter(seat).map_err(ControlError::Monitor)?;
        let has_left = AtomicBool::new(false);
        Ok(Control { address: address.to_owned(), id, inbox, pid, has_left, newcomers, ended })
    }

    /// Ranks of this host, among those that are watched, whose process was seen to end.
    pub fn ended_peers(&self) -> Vec<u32> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many newcomers wait to be let in, as the service has said last.
    pub fn newcomers(&self) -> u32 {
        self.newcomers.load(Ordering::Relaxed)
    }

    /// Where the service is: `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Watches a peer of this host: the arbiter hears at once when its process ends, and it is
    /// killed before a verdict that declares it dead becomes known. A peer that is a thread of
    /// this process is never killed.
    ///
    /// `pid` is as this process's namespace counts, such as the credentials of a socket tell, and
    /// the peer must be known to have lived after this call began (exchange something with it).
    ///
    /// # Errors
    /// What `pidfd_open` says.
    pub fn watch_process(&self, rank: u32, pid: u32) -> std::io::Result<()> {
        let process = if pid == self.pid { None } else { Some(PidFd::open(pid)?) };
        self.put(Work::Watch { id: self.id, rank, process, may_be_killed: true });
        Ok(())
    }

    /// Watches the process of a rank that counts processes as this one does, whatever links there will be to it: as
    /// [`Control::watch_process`], but it is never killed, since its number may have been given to another process
    /// meanwhile. A process that is not there has ended.
    ///
    /// # Errors
    /// What `pidfd_open` says.
    pub fn witness_process(&self, rank: u32, pid: u32) -> std::io::Result<()> {
        let process = match PidFd::open(pid) {
            Ok(process) => process,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                self.ended.lock().unwrap_or_else(PoisonError::into_inner).push(rank);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.put(Work::Watch { id: self.id, rank, process: Some(process), may_be_killed: false });
        Ok(())
    }

    /// An operation has made no progress for a while: to be said once after 100 ms, and again when
    /// its deadline has passed; then there is a verdict within three seconds, unless the operation
    /// has ended meanwhile.
    pub fn stalled(&self, stall: Stall) {
        self.say(ToArbiter::Stalled { stall });
    }

    /// A frame was found that belongs to another call.
    pub fn suspect_mismatch(&self, suspicion: Suspicion) {
        self.say(ToArbiter::SuspectMismatch { suspicion });
    }

    /// A link ended while an operation needed it.
    pub fn link_failed(&self, failure: LinkFailure) {
        self.say(ToArbiter::LinkFailed { failure });
    }

    /// Ends the communicator for everyone.
    pub fn abort(&self, reason: &str) {
        self.say(ToArbiter::Abort { reason: reason.to_owned() });
    }

    /// Says goodbye, and returns when that is on its way: from now on this rank's absence is no
    /// failure, unless somebody waits for it. Before links are closed, so that nobody takes their
    /// end for a failure.
    pub fn leave(&self) {
        if self.is_own() && !self.has_left.swap(true, Ordering::Relaxed) {
            let (done, left) = sync_channel(1);
            self.put(Work::Leave { id: self.id, done });
            // If it fails, the others find the connection closed.
            let _ = left.recv_timeout(LEAVE_LIMIT);
        }
    }

    fn say(&self, message: ToArbiter) {
        self.put(Work::Say { id: self.id, message });
    }

    fn put(&self, work: Work) {
        if self.is_own() {
            self.inbox.push(work);
        }
    }

    /// Whether this process made the handle, and did not inherit it.
    fn is_own(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if self.is_own() {
            self.leave();
            monitor::exit();
        }
    }
}

impl From<ConnectionError> for ControlError {
    fn from(error: ConnectionError) -> ControlError {
        match error {
            ConnectionError::Stream(error) => ControlError::Connection(error),
            ConnectionError::Message(error) => ControlError::Protocol { reason: error.to_string() },
        }
    }
}

/// A connection to the service for whom the hello says.
pub(super) fn call(
    address: &str,
    job: &Job,
    hello: &Hello,
    deadline: Instant,
) -> Result<Connection, ControlError> {
    let stream = connect(address, deadline)?;
    let stream = initiate(stream, job, Purpose::Control, &wire::encode(hello), deadline)?;
    Ok(Connection::new(stream))
}

fn connect(address: &str, deadline: Instant) -> Result<TcpStream, ControlError> {
    let resolved = address.to_socket_addrs().map_err(|error| ControlError::Address {
        address: address.to_owned(),
        reason: error.to_string(),
    })?;
    let mut reason = "it has no address".to_owned();
    for socket_address in resolved {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ControlError::TimedOut { address: address.to_owned() });
        }
        match TcpStream::connect_timeout(&socket_address, left)
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
        {
            Ok(stream) => return Ok(stream),
            Err(error) => reason = described(&error),
        }
    }
    Err(ControlError::Unreachable { address: address.to_owned(), reason })
}
