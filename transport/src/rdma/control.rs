//! The control connection of a link: over it the two ends tell each other of their memories, encrypted; and
//! its end tells at once that the peer's process is gone.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::memory::{Foreign, ForeignMemory, OwnMemory};
use super::rails::MAX_RAILS;
use crate::fields::Fields;
use crate::secure::{SecureReceiver, SecureSender, SecureStream};

/// How long a message may take to find room in the socket, where what a peer may know of fits several times: it
/// takes no time but while the peer does not look.
const SEND_LIMIT: Duration = Duration::from_millis(100);

/// First bytes of the messages.
const MEMORY: u8 = 1;
const WITHDRAW: u8 = 2;

/// What a look at the connection found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The peer holds its end.
    Open,
    /// The peer's process or link has ended.
    Ended,
    /// The peer sent what no correct peer sends.
    Broken,
}

#[derive(Debug)]
pub(super) struct Control {
    sender: SecureSender<std::net::TcpStream>,
    receiver: SecureReceiver<std::net::TcpStream>,
    has_ended: bool,
    /// A message has not found room, and may be there in part.
    is_blocked: bool,
}

impl Control {
    pub(super) fn new(stream: SecureStream<std::net::TcpStream>) -> Control {
        let (sender, receiver) = stream.split();
        Control { sender, receiver, has_ended: false, is_blocked: false }
    }

    /// The peer has ended its side.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// What becomes readable when the peer tells something or ends.
    pub(super) fn descriptor(&self) -> RawFd {
        self.receiver.as_fd().as_raw_fd()
    }

    /// Tells the peer of a memory. Returns whether that was possible.
    pub(super) fn tell(&mut self, memory: &OwnMemory) -> bool {
        let mut message = vec![MEMORY];
        message.extend_from_slice(&memory.id.to_le_bytes());
        message.extend_from_slice(&(memory.start as u64).to_le_bytes());
        message.extend_from_slice(&(memory.len_bytes as u64).to_le_bytes());
        memory.remote_keys.iter().for_each(|key| message.extend_from_slice(&key.to_le_bytes()));
        self.send(&message)
    }

    /// Tells the peer to forget a memory.
    pub(super) fn withdraw(&mut self, id: u32) -> bool {
        let mut message = vec![WITHDRAW];
        message.extend_from_slice(&id.to_le_bytes());
        self.send(&message)
    }

    fn send(&mut self, message: &[u8]) -> bool {
        if self.is_blocked {
            return false;
        }
        let sent = self.sender.send(message, Instant::now() + SEND_LIMIT);
        if let Err(error) = &sent {
            tracing::debug!("the control connection of an RDMA link: {error}");
            self.is_blocked = true;
        }
        sent.is_ok()
    }

    /// Takes in everything that is there.
    pub(super) fn take_in(&mut self, foreign: &mut Foreign) -> State {
        while !self.has_ended {
            let mut byte = [0];
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            match recv(self.descriptor(), &mut byte, flags) {
                Ok(0) => self.has_ended = true,
                Ok(_) => match self.receiver.receive(Instant::now()) {
                    Ok(message) => {
                        if note(&message, foreign).is_none() {
                            return State::Broken;
                        }
                    }
                    // The rest of the message comes.
                    Err(crate::secure::SecureError::TimedOut { .. }) => return State::Open,
                    Err(crate::secure::SecureError::Closed { .. }) => self.has_ended = true,
                    Err(_) => return State::Broken,
                },
                Err(Errno::EAGAIN) => return State::Open,
                Err(Errno::EINTR) => {}
                Err(_) => self.has_ended = true,
            }
        }
        State::Ended
    }

    /// Says that nothing more comes from this side.
    pub(super) fn end(&self) {
        self.sender.shutdown();
    }
}

/// Notes what a message tells; `None` if it makes no sense.
fn note(message: &[u8], foreign: &mut Foreign) -> Option<()> {
    let mut fields = Fields::new(message);
    match fields.u8()? {
        MEMORY => {
            let (id, start, len_bytes) = (fields.u32()?, fields.u64()?, fields.u64()?);
            let mut keys = [0; MAX_RAILS];
            for key in &mut keys {
                *key = fields.u32()?;
            }
            fields.end()?;
            start.checked_add(len_bytes)?;
            foreign.add(ForeignMemory { id, start, len_bytes, keys }).then_some(())
        }
        WITHDRAW => {
            foreign.forget(fields.u32()?);
            fields.end()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_are_noted_and_forgotten_and_garbage_is_refused() {
        let mut foreign = Foreign::default();
        let mut message = vec![MEMORY, 7, 0, 0, 0];
        message.extend_from_slice(&0x1000_u64.to_le_bytes());
        message.extend_from_slice(&100_u64.to_le_bytes());
        (0..MAX_RAILS as u32).for_each(|key| message.extend_from_slice(&key.to_le_bytes()));
        assert_eq!(note(&message, &mut foreign), Some(()));
        let memory = *foreign.by_id(7).unwrap();
        assert_eq!(memory.keys[1], 1);
        assert_eq!(memory.address(60, 40), Some(0x1000 + 60));
        assert_eq!(memory.address(61, 40), None);
        assert_eq!(memory.address(u64::MAX, 2), None);
        assert_eq!(note(&message[..message.len() - 1], &mut foreign), None);
        assert_eq!(note(&[WITHDRAW, 7, 0, 0, 0], &mut foreign), Some(()));
        assert_eq!(foreign.by_id(7), None);
        for garbage in [&[][..], &[3], &[WITHDRAW, 1], &[WITHDRAW, 1, 0, 0, 0, 0]] {
            assert_eq!(note(garbage, &mut foreign), None, "{garbage:?}");
        }
        message[13 - 8..13].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(note(&message, &mut foreign), None, "an end beyond all addresses");
    }

    #[test]
    fn a_peer_cannot_tell_of_memories_without_end() {
        let mut foreign = Foreign::default();
        let memory = |id| ForeignMemory { id, start: 0, len_bytes: 1, keys: [0; MAX_RAILS] };
        assert!((0..super::super::memory::MOST_KNOWN as u32).all(|id| foreign.add(memory(id))));
        assert!(!foreign.add(memory(0)));
    }
}
