//! Every connection of a job first proves that both ends know the job's secret.
//!
//! The handshake is Noise NNpsk0 (The Noise Protocol Framework, revision 34, section 9) with the
//! job's secret as the pre-shared key; what is sent plain, and the job's name, are its prologue:
//!
//! ```text
//! initiator                                            acceptor
//!   "RINGTREE", wire version, purpose; psk, e  ------>   proves the secret
//!                              proves it too   <------   PROVED; e, ee
//!                             hello, encrypted ------>   proves that it is no replay
//!                                              <------   granted or denied, and why (encrypted)
//! ```
//!
//! The version is plain, so that two releases can say clearly that they differ. Whoever cannot
//! verify message 1 answers with one plain byte, which a stranger can forge and which therefore is
//! only a hint. Nothing is believed, and at most 59 bytes are read, before the secret is proved.

mod acceptor;
mod error;
mod handshakes;
mod secret;
mod socket;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use snow::{Builder, HandshakeState};

pub(crate) use acceptor::{Acceptor, Service};
pub use error::SecureError;
pub(crate) use secret::{KEY_BYTES, hexadecimal};
pub use secret::{Secret, random_bytes};
pub use socket::Socket;
pub(crate) use socket::{Ended, Limit, dial, dial_local};
use socket::{fill, hang_up, write_all};
pub use stream::{FrameKeys, MESSAGE_LIMIT_BYTES, SecureReceiver, SecureSender, SecureStream};

/// Version of everything that goes over a wire. Two versions never talk to each other.
pub const WIRE_VERSION: u16 = 1;

/// Longest hello.
pub const HELLO_LIMIT_BYTES: usize = 16 << 10;

const MAGIC: &[u8; 8] = b"RINGTREE";

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";

/// Magic, version, purpose.
const PREAMBLE_BYTES: usize = MAGIC.len() + 2 + 1;

/// Each of the two messages is an ephemeral key and the tag of an empty text.
const NOISE_BYTES: usize = 32 + stream::TAG_BYTES;

/// First byte of the acceptor's answer: message 2 follows.
const PROVED: u8 = 0;
/// First byte of the acceptor's answer: message 1 proves nothing.
const UNPROVEN: u8 = 1;
/// First byte of the acceptor's answer: its version follows.
const OTHER_VERSION: u8 = 2;

/// First byte of the answer to the hello; a reason follows the second.
const GRANTED: u8 = 0;
const DENIED: u8 = 1;

/// How long an acceptor that refuses waits for the initiator to hang up.
const HANG_UP_LIMIT: Duration = Duration::from_millis(500);

/// What every connection of a job proves.
#[derive(Clone, Debug)]
pub struct Job {
    /// Name of the job: two jobs with one secret stay apart.
    pub name: String,
    /// Its secret.
    pub secret: Secret,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// Requests to the rendezvous store.
    Store = 1,
    /// The control plane: who lives, who waits for whom, verdicts.
    Control = 2,
    /// A link between two ranks.
    Link = 3,
}

impl Purpose {
    fn from_number(number: u8) -> Option<Purpose> {
        [Purpose::Store, Purpose::Control, Purpose::Link].into_iter().find(|p| *p as u8 == number)
    }
}

/// Authenticates a connection that this side opened, and says in `hello` what it is about.
///
/// # Errors
/// [`SecureError::Refused`] or [`SecureError::Unproven`] where the sides differ in secret or job;
/// [`SecureError::Denied`] with the acceptor's reason; the others as they say.
pub fn initiate<S: Socket>(
    stream: S,
    job: &Job,
    purpose: Purpose,
    hello: &[u8],
    deadline: Instant,
) -> Result<SecureStream<S>, SecureError> {
    initiate_within(stream, job, purpose, hello, &Limit::until(deadline))
}

/// As [`initiate`], until the deadline or the stop callback ends it.
pub(crate) fn initiate_within<S: Socket>(
    stream: S,
    job: &Job,
    purpose: Purpose,
    hello: &[u8],
    limit: &Limit<'_>,
) -> Result<SecureStream<S>, SecureError> {
    if hello.len() > HELLO_LIMIT_BYTES {
        let (len_bytes, limit_bytes) = (hello.len(), HELLO_LIMIT_BYTES);
        return Err(SecureError::TooLong { len_bytes, limit_bytes });
    }
    let preamble = preamble(purpose);
    let mut noise = handshake(job, &preamble, Side::Initiator)?;
    let mut first = preamble.to_vec();
    first.extend_from_slice(&write_noise(&mut noise)?);
    write_all(&stream, &first, limit)?;

    let peer = stream.peer_name();
    let message = receive_answer(&stream, &peer, limit)?;
    noise.read_message(&message, &mut []).map_err(|_| SecureError::Unproven { peer })?;
    let mut stream = established(Arc::new(stream), noise)?;
    stream.send_within(hello, limit)?;
    let answer = stream.receive_within(HELLO_LIMIT_BYTES, limit)?;
    let peer = stream.peer().to_owned();
    match answer.split_first() {
        Some((&GRANTED, [])) => Ok(stream),
        Some((&DENIED, reason)) => {
            let reason = String::from_utf8_lossy(reason).into_owned();
            Err(SecureError::Denied { peer, reason })
        }
        _ => Err(SecureError::Corrupt { peer, reason: "an unknown answer to the hello".into() }),
    }
}

/// Authenticates a connection that was accepted. `judge` sees its purpose and hello once the other
/// side has proved itself, and grants it or denies it with a reason that the initiator is told.
///
/// The socket is shared so that the listener's owner can shut it down meanwhile.
///
/// # Errors
/// Whatever the other side did wrong; [`SecureError::Denied`] is what `judge` answered. The
/// connection is closed on every error.
pub fn accept<S: Socket>(
    stream: Arc<S>,
    job: &Job,
    deadline: Instant,
    judge: impl FnOnce(Purpose, &[u8]) -> Result<(), String>,
) -> Result<(SecureStream<S>, Purpose, Vec<u8>), SecureError> {
    let limit = Limit::until(deadline);
    let (preamble, purpose) = receive_preamble(&*stream, &limit)?;
    let mut noise = handshake(job, &preamble, Side::Acceptor)?;
    let mut message = Vec::new();
    fill(&*stream, &mut message, NOISE_BYTES, &limit)?;
    if noise.read_message(&message, &mut []).is_err() {
        let peer = refuse(&*stream, &[UNPROVEN], &limit);
        return Err(SecureError::Unproven { peer });
    }
    let mut answer = vec![PROVED];
    answer.extend_from_slice(&write_noise(&mut noise)?);
    write_all(&*stream, &answer, &limit)?;

    let mut stream = established(stream, noise)?;
    let hello = stream.receive_within(HELLO_LIMIT_BYTES, &limit)?;
    match judge(purpose, &hello) {
        Ok(()) => stream.send_within(&[GRANTED], &limit)?,
        Err(reason) => {
            stream.send_within(&[&[DENIED], reason.as_bytes()].concat(), &limit)?;
            hang_up(&*stream.socket(), &limit.at_most(HANG_UP_LIMIT));
            return Err(SecureError::Denied { peer: stream.peer().to_owned(), reason });
        }
    }
    Ok((stream, purpose, hello))
}

fn preamble(purpose: Purpose) -> [u8; PREAMBLE_BYTES] {
    let mut preamble = [0; PREAMBLE_BYTES];
    preamble[..8].copy_from_slice(MAGIC);
    preamble[8..10].copy_from_slice(&WIRE_VERSION.to_le_bytes());
    preamble[10] = purpose as u8;
    preamble
}

/// Reads the plain beginning of a connection. Magic and version come first in every version.
fn receive_preamble<S: Socket>(
    stream: &S,
    limit: &Limit<'_>,
) -> Result<(Vec<u8>, Purpose), SecureError> {
    let mut preamble = Vec::new();
    fill(stream, &mut preamble, MAGIC.len(), limit)?;
    if preamble != MAGIC {
        return Err(SecureError::NotRingtree { peer: stream.peer_name() });
    }
    fill(stream, &mut preamble, PREAMBLE_BYTES, limit)?;
    let theirs = u16::from_le_bytes([preamble[8], preamble[9]]);
    if theirs != WIRE_VERSION {
        let [low, high] = WIRE_VERSION.to_le_bytes();
        let peer = refuse(stream, &[OTHER_VERSION, low, high], limit);
        return Err(SecureError::Version { peer, ours: WIRE_VERSION, theirs });
    }
    let Some(purpose) = Purpose::from_number(preamble[10]) else {
        let reason = format!("unknown purpose {}", preamble[10]);
        return Err(SecureError::Corrupt { peer: stream.peer_name(), reason });
    };
    Ok((preamble, purpose))
}

/// Reads the acceptor's answer to message 1: message 2, or a refusal.
fn receive_answer<S: Socket>(
    stream: &S,
    peer: &str,
    limit: &Limit<'_>,
) -> Result<Vec<u8>, SecureError> {
    let peer = peer.to_owned();
    let mut answer = Vec::new();
    fill(stream, &mut answer, 1, limit)?;
    match answer[0] {
        PROVED => {
            fill(stream, &mut answer, 1 + NOISE_BYTES, limit)?;
            answer.remove(0);
            Ok(answer)
        }
        UNPROVEN => Err(SecureError::Refused { peer }),
        OTHER_VERSION => {
            fill(stream, &mut answer, 3, limit)?;
            let theirs = u16::from_le_bytes([answer[1], answer[2]]);
            Err(SecureError::Version { peer, ours: WIRE_VERSION, theirs })
        }
        _ => Err(SecureError::NotRingtree { peer }),
    }
}

/// Says no in plain bytes. Whether the other side hears it changes nothing here. Returns its name,
/// which goes with the connection.
fn refuse<S: Socket>(stream: &S, answer: &[u8], limit: &Limit<'_>) -> String {
    let peer = stream.peer_name();
    let limit = limit.at_most(HANG_UP_LIMIT);
    if write_all(stream, answer, &limit).is_ok() {
        hang_up(stream, &limit);
    }
    peer
}

/// Which end of the connection this is.
#[derive(Clone, Copy)]
enum Side {
    Initiator,
    Acceptor,
}

/// The handshake's state before message 1.
fn handshake(job: &Job, preamble: &[u8], side: Side) -> Result<HandshakeState, SecureError> {
    let prologue = [preamble, job.name.as_bytes()].concat();
    PATTERN
        .parse()
        .map(Builder::new)
        .and_then(|builder| builder.psk(0, job.secret.key()))
        .and_then(|builder| builder.prologue(&prologue))
        .and_then(|builder| match side {
            Side::Initiator => builder.build_initiator(),
            Side::Acceptor => builder.build_responder(),
        })
        .map_err(cryptography)
}

fn write_noise(noise: &mut HandshakeState) -> Result<[u8; NOISE_BYTES], SecureError> {
    let mut message = [0; NOISE_BYTES];
    noise.write_message(&[], &mut message).map_err(cryptography)?;
    Ok(message)
}

/// The encrypted stream after both messages.
fn established<S: Socket>(
    socket: Arc<S>,
    mut noise: HandshakeState,
) -> Result<SecureStream<S>, SecureError> {
    // The same two keys encrypt the messages below, by another cipher: hence not these themselves.
    let (initiator, acceptor) = noise.dangerously_get_raw_split();
    let [initiator, acceptor] =
        [initiator, acceptor].map(|key| secret::digest("ringtree: key of frames", &key));
    let frame_keys = match noise.is_initiator() {
        true => FrameKeys { send: initiator, receive: acceptor },
        false => FrameKeys { send: acceptor, receive: initiator },
    };
    let peer = socket.peer_name();
    let keys = noise.into_stateless_transport_mode().map_err(cryptography)?.into();
    Ok(SecureStream::new(stream::Shared { socket, keys, frame_keys, peer }))
}

/// The key that frames are encrypted with after those of one key. It does not give that one.
pub(crate) fn next_frame_key(key: &[u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
    secret::digest("ringtree: next key of frames", key)
}

fn cryptography(error: snow::Error) -> SecureError {
    SecureError::Cryptography { reason: error.to_string() }
}
