//! A rank's connection to the store.

use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::notice::address_in;
use super::wire::{Reply, Request, decode_answer};
use super::{Place, StoreError};
use crate::secure::{Job, Limit, Purpose, SecureError, SecureStream, dial, initiate};

/// First and longest rest between two attempts to connect.
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_LONGEST: Duration = Duration::from_millis(250);

/// How long one attempt may take to connect, and to prove itself, before the next is made.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);

/// The store itself answers when a request's deadline has passed; only if it does not do that
/// either, the connection is given up so much later.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// A connection to the store of a [`Server`](super::Server). It carries one request at a time: a
/// second thread waits for the first one's answer.
#[derive(Debug)]
pub struct StoreClient {
    address: String,
    local: IpAddr,
    /// `None` once a request has lost it.
    stream: Mutex<Option<SecureStream<TcpStream>>>,
}

impl StoreClient {
    /// Connects to the store at a [`Place`] (`host:port` or `file:/path`), and tries again until the
    /// deadline while nobody listens there: rank 0 may start later.
    ///
    /// # Errors
    /// [`StoreError::Refused`] at once where trying again cannot help, such as with a wrong secret;
    /// [`StoreError::Unreachable`] or [`StoreError::NotFound`] at the deadline.
    pub fn connect(place: &str, job: &Job, deadline: Instant) -> Result<StoreClient, StoreError> {
        let stream = connect(place, job, Purpose::Store, b"", deadline)?;
        let address = match Place::of(place) {
            Place::Address(address) => address,
            Place::File(_) => stream.peer(),
        };
        let address = address.to_owned();
        let local = stream.socket().local_addr().map_or(IpAddr::from([127, 0, 0, 1]), |a| a.ip());
        Ok(StoreClient { address, local, stream: Mutex::new(Some(stream)) })
    }

    /// Where the store was found: host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The address of this host from which the store was reached.
    pub fn local_address(&self) -> IpAddr {
        self.local
    }

    pub(super) fn ask(&self, request: &Request, deadline: Instant) -> Result<Reply, StoreError> {
        let mut slot = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut stream) = slot.take() else {
            return Err(StoreError::Disconnected { address: self.address.clone() });
        };
        let lost = |source| StoreError::Lost { address: self.address.clone(), source };
        let wait = deadline.saturating_duration_since(Instant::now());
        let patience = deadline.max(Instant::now()) + ANSWER_GRACE;
        stream.send(&request.encode(wait), patience).map_err(lost)?;
        let message = stream.receive(patience).map_err(lost)?;
        let answer = decode_answer(&message).ok_or_else(|| {
            let reason = "an answer that cannot be read".into();
            lost(SecureError::Corrupt { peer: stream.peer().to_owned(), reason })
        })?;
        *slot = Some(stream);
        answer
    }
}

/// Connects to a [`Server`](super::Server) for a purpose, as [`StoreClient::connect`] does.
///
/// # Errors
/// As [`StoreClient::connect`].
pub fn connect(
    place: &str,
    job: &Job,
    purpose: Purpose,
    hello: &[u8],
    deadline: Instant,
) -> Result<SecureStream<TcpStream>, StoreError> {
    let mut rest = RETRY_FIRST;
    loop {
        let reason = match attempt(place, job, purpose, hello, deadline) {
            Ok(stream) => return Ok(stream),
            Err(Attempt::Hopeless(source)) => {
                return Err(StoreError::Refused { address: place.into(), source });
            }
            Err(Attempt::Failed(reason)) => reason,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(match Place::of(place) {
                Place::Address(address) => {
                    StoreError::Unreachable { address: address.into(), reason }
                }
                Place::File(path) => {
                    StoreError::NotFound { path: path.display().to_string(), reason }
                }
            });
        }
        thread::sleep(rest.min(left));
        rest = (rest * 2).min(RETRY_LONGEST);
    }
}

/// Why an attempt to connect failed.
enum Attempt {
    Failed(String),
    Hopeless(SecureError),
}

/// Tries once.
fn attempt(
    place: &str,
    job: &Job,
    purpose: Purpose,
    hello: &[u8],
    deadline: Instant,
) -> Result<SecureStream<TcpStream>, Attempt> {
    let path = match Place::of(place) {
        Place::Address(address) => return attempt_address(address, job, purpose, hello, deadline),
        Place::File(path) => path,
    };
    let address = address_in(path, job).map_err(Attempt::Failed)?;
    attempt_address(&address, job, purpose, hello, deadline).map_err(|failure| {
        // The file may be of an earlier run: then another process may listen there by now.
        let reason = match failure {
            Attempt::Failed(reason) => reason,
            Attempt::Hopeless(error) => error.to_string(),
        };
        Attempt::Failed(format!("{address}, which it names: {reason}"))
    })
}

/// Tries all addresses of the host once.
fn attempt_address(
    address: &str,
    job: &Job,
    purpose: Purpose,
    hello: &[u8],
    deadline: Instant,
) -> Result<SecureStream<TcpStream>, Attempt> {
    let mut reason = "the name has no address".to_owned();
    let resolved = address.to_socket_addrs().map_err(|error| Attempt::Failed(error.to_string()))?;
    for resolved in resolved {
        let deadline = deadline.min(Instant::now() + ATTEMPT_LIMIT);
        match dial(resolved, None, &Limit::until(deadline)) {
            Ok(stream) => match initiate(stream, job, purpose, hello, deadline) {
                Ok(stream) => return Ok(stream),
                Err(error) if error.is_transient() => reason = error.to_string(),
                Err(error) => return Err(Attempt::Hopeless(error)),
            },
            Err(error) => reason = error.to_string(),
        }
    }
    Err(Attempt::Failed(reason))
}
