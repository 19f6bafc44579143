//! Encrypted messages over a socket, after the handshake.
//!
//! A message goes out as frames, since a Noise message ends at 65,535 bytes. A frame is its length
//! (`u16`) and that many encrypted bytes; the first frame's plain text begins with the length of
//! the whole message (`u32`). Frames are numbered by their nonces, so that none can be left out,
//! repeated or moved. After [`FRAMES_A_KEY`] frames each direction goes on with another key (Noise, section 11.3).

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use snow::StatelessTransportState;

use super::socket::{Limit, fill, write_all};
use super::{SecureError, Socket};

/// Longest message: the addresses of tens of thousands of ranks fit.
pub const MESSAGE_LIMIT_BYTES: usize = 16 << 20;

/// Bytes that authenticate an encrypted message.
pub(super) const TAG_BYTES: usize = 16;

/// Plain text of a frame at most.
const FRAME_LIMIT_BYTES: usize = 65_535 - TAG_BYTES;

/// Frames that one key encrypts: far fewer than the 2^64 that a nonce can number.
const FRAMES_A_KEY: u64 = 1 << 20;

/// What is said of a frame that cannot be decrypted.
const UNPROVEN_FRAME: &str = "a frame that this peer did not encrypt, or that was altered, repeated, left out \
                              or put in another order on its way";

/// Bytes of a frame's length.
const PREFIX_BYTES: usize = 2;

/// Bytes of a message's length.
const LENGTH_BYTES: usize = 4;

/// A connection whose two ends have proved to each other that they know the job's secret.
///
/// It carries messages of up to [`MESSAGE_LIMIT_BYTES`]. It reads not a byte further than the end
/// of the message that it gives back, so that its descriptor becomes readable with the next one.
pub struct SecureStream<S: Socket> {
    sender: SecureSender<S>,
    receiver: SecureReceiver<S>,
}

/// The sending half of a [`SecureStream`].
pub struct SecureSender<S: Socket> {
    shared: Arc<Shared<S>>,
    next_nonce: u64,
    pub(super) frames_a_key: u64,
}

/// The receiving half of a [`SecureStream`].
pub struct SecureReceiver<S: Socket> {
    shared: Arc<Shared<S>>,
    next_nonce: u64,
    pub(super) frames_a_key: u64,
    /// What has come of the next frame.
    frame: Vec<u8>,
    /// What has come of the next message, and its length once that is known.
    message: Vec<u8>,
    message_len: Option<usize>,
}

/// Keys of one connection, a direction each, from its handshake: who knows the secret but did not
/// take part cannot compute them, nor can the two ends once they have forgotten them.
#[derive(Clone)]
pub struct FrameKeys {
    /// For what this end sends.
    pub send: [u8; 32],
    /// For what it receives.
    pub receive: [u8; 32],
}

impl fmt::Debug for FrameKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameKeys(..)")
    }
}

/// What both halves use.
pub(super) struct Shared<S> {
    pub(super) socket: Arc<S>,
    pub(super) keys: RwLock<StatelessTransportState>,
    pub(super) frame_keys: FrameKeys,
    pub(super) peer: String,
}

impl<S: Socket> SecureStream<S> {
    pub(super) fn new(shared: Shared<S>) -> SecureStream<S> {
        let shared = Arc::new(shared);
        SecureStream {
            sender: SecureSender {
                shared: shared.clone(),
                next_nonce: 0,
                frames_a_key: FRAMES_A_KEY,
            },
            receiver: SecureReceiver {
                shared,
                next_nonce: 0,
                frames_a_key: FRAMES_A_KEY,
                frame: Vec::new(),
                message: Vec::new(),
                message_len: None,
            },
        }
    }

    /// As [`SecureSender::send`].
    pub fn send(&mut self, message: &[u8], deadline: Instant) -> Result<(), SecureError> {
        self.sender.send(message, deadline)
    }

    /// As [`SecureReceiver::receive`].
    pub fn receive(&mut self, deadline: Instant) -> Result<Vec<u8>, SecureError> {
        self.receiver.receive(deadline)
    }

    pub(crate) fn send_within(
        &mut self,
        message: &[u8],
        limit: &Limit<'_>,
    ) -> Result<(), SecureError> {
        self.sender.send_within(message, limit)
    }

    pub(crate) fn receive_within(
        &mut self,
        limit_bytes: usize,
        limit: &Limit<'_>,
    ) -> Result<Vec<u8>, SecureError> {
        self.receiver.receive_within(limit_bytes, limit)
    }

    /// The two halves, for a thread each. They share one descriptor, which is closed with the
    /// second of them.
    pub fn split(self) -> (SecureSender<S>, SecureReceiver<S>) {
        (self.sender, self.receiver)
    }

    /// The bare socket, for plain bytes from here on. Both sides must do so at the same point of
    /// their conversation; the handshake is such a point.
    ///
    /// # Errors
    /// [`SecureError::Failed`] where the descriptor is shared and cannot be duplicated.
    pub fn into_inner(self) -> Result<S, SecureError> {
        let SecureStream { sender, receiver } = self;
        drop(receiver);
        let (socket, peer) = (sender.shared.socket.clone(), sender.shared.peer.clone());
        drop(sender);
        Arc::try_unwrap(socket).or_else(|shared| {
            let copy = shared.as_fd().try_clone_to_owned();
            copy.map(S::from)
                .map_err(|error| SecureError::Failed { peer, reason: error.to_string() })
        })
    }

    /// Keys that only the two ends of this connection know, for what goes over the bare socket.
    pub fn frame_keys(&self) -> FrameKeys {
        self.sender.shared.frame_keys.clone()
    }

    /// Who is at the other end, for people.
    pub fn peer(&self) -> &str {
        &self.sender.shared.peer
    }

    /// The socket, for whoever must be able to shut it down.
    pub(crate) fn socket(&self) -> Arc<S> {
        self.sender.shared.socket.clone()
    }
}

impl<S: Socket> SecureSender<S> {
    /// Sends one message.
    ///
    /// # Errors
    /// [`SecureError::TooLong`] changes nothing; after any other error the connection is of no
    /// more use.
    pub fn send(&mut self, message: &[u8], deadline: Instant) -> Result<(), SecureError> {
        self.send_within(message, &Limit::until(deadline))
    }

    /// Ends both directions of the connection: whoever waits on it, here or at the other end,
    /// wakes with [`SecureError::Closed`].
    pub fn shutdown(&self) {
        self.shared.socket.sever();
    }

    /// Who is at the other end, for people.
    pub fn peer(&self) -> &str {
        &self.shared.peer
    }

    fn send_within(&mut self, message: &[u8], limit: &Limit<'_>) -> Result<(), SecureError> {
        if message.len() > MESSAGE_LIMIT_BYTES {
            return Err(SecureError::TooLong {
                len_bytes: message.len(),
                limit_bytes: MESSAGE_LIMIT_BYTES,
            });
        }
        let (first, rest) = message.split_at(message.len().min(FRAME_LIMIT_BYTES - LENGTH_BYTES));
        let mut plain = (message.len() as u32).to_le_bytes().to_vec();
        plain.extend_from_slice(first);
        self.send_frame(&plain, limit)?;
        rest.chunks(FRAME_LIMIT_BYTES).try_for_each(|plain| self.send_frame(plain, limit))
    }

    pub(super) fn send_frame(
        &mut self,
        plain: &[u8],
        limit: &Limit<'_>,
    ) -> Result<(), SecureError> {
        let sealed_bytes = plain.len() + TAG_BYTES;
        let mut frame = vec![0; PREFIX_BYTES + sealed_bytes];
        frame[..PREFIX_BYTES].copy_from_slice(&(sealed_bytes as u16).to_le_bytes());
        let keys = self.shared.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.write_message(self.next_nonce, plain, &mut frame[PREFIX_BYTES..])
            .map_err(|error| SecureError::Cryptography { reason: error.to_string() })?;
        drop(keys);
        self.next_nonce += 1;
        if self.next_nonce.is_multiple_of(self.frames_a_key) {
            let mut keys = self.shared.keys.write().unwrap_or_else(PoisonError::into_inner);
            keys.rekey_outgoing();
        }
        write_all(&*self.shared.socket, &frame, limit)
    }
}

impl<S: Socket> SecureReceiver<S> {
    /// Waits for the next message. A deadline that has passed takes a message that is there.
    ///
    /// # Errors
    /// After [`SecureError::TimedOut`] the call can be repeated, and goes on where it was; after
    /// any other error the connection is of no more use.
    pub fn receive(&mut self, deadline: Instant) -> Result<Vec<u8>, SecureError> {
        self.receive_within(MESSAGE_LIMIT_BYTES, &Limit::until(deadline))
    }

    /// Ends both directions of the connection, as [`SecureSender::shutdown`].
    pub fn shutdown(&self) {
        self.shared.socket.sever();
    }

    /// Who is at the other end, for people.
    pub fn peer(&self) -> &str {
        &self.shared.peer
    }

    fn receive_within(
        &mut self,
        limit_bytes: usize,
        limit: &Limit<'_>,
    ) -> Result<Vec<u8>, SecureError> {
        loop {
            let plain = self.receive_frame(limit)?;
            self.take_frame(&plain, limit_bytes)?;
            if self.message_len == Some(self.message.len()) {
                self.message_len = None;
                return Ok(std::mem::take(&mut self.message));
            }
        }
    }

    /// The plain text of the next frame.
    fn receive_frame(&mut self, limit: &Limit<'_>) -> Result<Vec<u8>, SecureError> {
        if self.frame.len() < PREFIX_BYTES {
            fill(&*self.shared.socket, &mut self.frame, PREFIX_BYTES, limit)?;
        }
        let sealed_bytes = usize::from(u16::from_le_bytes([self.frame[0], self.frame[1]]));
        fill(&*self.shared.socket, &mut self.frame, PREFIX_BYTES + sealed_bytes, limit)?;
        let mut plain = vec![0; sealed_bytes];
        let keys = self.shared.keys.read().unwrap_or_else(PoisonError::into_inner);
        let read = keys.read_message(self.next_nonce, &self.frame[PREFIX_BYTES..], &mut plain);
        drop(keys);
        plain.truncate(read.map_err(|_| self.corrupt(UNPROVEN_FRAME))?);
        self.frame.clear();
        self.next_nonce += 1;
        if self.next_nonce.is_multiple_of(self.frames_a_key) {
            let mut keys = self.shared.keys.write().unwrap_or_else(PoisonError::into_inner);
            keys.rekey_incoming();
        }
        Ok(plain)
    }

    /// Adds a frame to the message. Memory grows with what has come, not with what is announced.
    fn take_frame(&mut self, plain: &[u8], limit_bytes: usize) -> Result<(), SecureError> {
        let (len, part) = match self.message_len {
            Some(_) if plain.is_empty() => return Err(self.corrupt("an empty continuation")),
            Some(len) => (len, plain),
            None => {
                let Some((length, part)) = plain.split_first_chunk::<LENGTH_BYTES>() else {
                    return Err(self.corrupt("a message without its length"));
                };
                (u32::from_le_bytes(*length) as usize, part)
            }
        };
        if len > limit_bytes {
            return Err(SecureError::TooLong { len_bytes: len, limit_bytes });
        }
        if self.message.len() + part.len() > len {
            return Err(self.corrupt("a message longer than announced"));
        }
        self.message_len = Some(len);
        self.message.extend_from_slice(part);
        Ok(())
    }

    fn corrupt(&self, reason: &str) -> SecureError {
        SecureError::Corrupt { peer: self.shared.peer.clone(), reason: reason.into() }
    }
}

impl<S: Socket> AsFd for SecureStream<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

impl<S: Socket> AsFd for SecureReceiver<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }
}

impl<S: Socket> std::fmt::Debug for SecureStream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecureStream").field("peer", &self.peer()).finish_non_exhaustive()
    }
}

impl<S: Socket> std::fmt::Debug for SecureSender<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecureSender").field("peer", &self.peer()).finish_non_exhaustive()
    }
}

impl<S: Socket> std::fmt::Debug for SecureReceiver<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecureReceiver").field("peer", &self.peer()).finish_non_exhaustive()
    }
}
