//! What two queue pairs say to each other over the socket between them.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// Longest payload.
const MOST_BYTES: u32 = 1 << 30;

/// Who asks, at the beginning of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) lid: u16,
    pub(crate) number: u32,
    pub(crate) first_packet: u32,
}

/// A write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) address: u64,
    pub(crate) key: u32,
    pub(crate) immediate: Option<u32>,
    pub(crate) payload: Vec<u8>,
}

/// What becomes of a hello or a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// No receive was posted: to be asked again after the time that a code of InfiniBand's stands for.
    NotReady(u8),
    /// The key, the bounds or the rights are wrong.
    NoAccess,
}

/// Listens as a queue pair of a port: each is known by its number on the whole host.
pub(crate) fn listen(lid: u16, number: u32) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&address(lid, number)?)
}

/// Connects to a queue pair, whether or not it is ready to answer.
pub(crate) fn connect(lid: u16, number: u32) -> io::Result<UnixStream> {
    UnixStream::connect_addr(&address(lid, number)?)
}

fn address(lid: u16, number: u32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("ringtree-verbs-standin/{lid}/{number}"))
}

impl Hello {
    pub(crate) fn send(&self, stream: &mut UnixStream) -> io::Result<()> {
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&self.lid.to_le_bytes());
        bytes[2..6].copy_from_slice(&self.number.to_le_bytes());
        bytes[6..].copy_from_slice(&self.first_packet.to_le_bytes());
        stream.write_all(&bytes)
    }

    pub(crate) fn receive(stream: &mut UnixStream) -> io::Result<Hello> {
        let (lid, number) = (array(stream)?, array(stream)?);
        Ok(Hello {
            lid: u16::from_le_bytes(lid),
            number: u32::from_le_bytes(number),
            first_packet: u32::from_le_bytes(array(stream)?),
        })
    }
}

impl Message {
    pub(crate) fn send(&self, stream: &mut UnixStream) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(21 + self.payload.len());
        bytes.extend_from_slice(&self.address.to_le_bytes());
        bytes.extend_from_slice(&self.key.to_le_bytes());
        bytes.push(self.immediate.is_some().into());
        bytes.extend_from_slice(&self.immediate.unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        stream.write_all(&bytes)
    }

    pub(crate) fn receive(stream: &mut UnixStream) -> io::Result<Message> {
        let address = u64::from_le_bytes(array(stream)?);
        let key = u32::from_le_bytes(array(stream)?);
        let [has_immediate] = array(stream)?;
        let immediate = u32::from_le_bytes(array(stream)?);
        let len_bytes = u32::from_le_bytes(array(stream)?);
        if len_bytes > MOST_BYTES {
            return Err(io::Error::other("a message longer than there are"));
        }
        let mut payload = vec![0; len_bytes as usize];
        stream.read_exact(&mut payload)?;
        let immediate = (has_immediate != 0).then_some(immediate);
        Ok(Message { address, key, immediate, payload })
    }
}

impl Answer {
    pub(crate) fn send(self, stream: &mut UnixStream) -> io::Result<()> {
        let bytes = match self {
            Answer::Done => [0, 0],
            Answer::NotReady(code) => [1, code],
            Answer::NoAccess => [2, 0],
        };
        stream.write_all(&bytes)
    }

    pub(crate) fn receive(stream: &mut UnixStream) -> io::Result<Answer> {
        match array(stream)? {
            [0, _] => Ok(Answer::Done),
            [1, code] => Ok(Answer::NotReady(code)),
            _ => Ok(Answer::NoAccess),
        }
    }
}

fn array<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let hello = Hello { lid: 3, number: 0x00ab_cdef, first_packet: 77 };
        hello.send(&mut near).unwrap();
        assert_eq!(Hello::receive(&mut far).unwrap(), hello);
        for (immediate, payload) in [(None, vec![]), (Some(0), vec![1, 2, 3]), (Some(9), vec![])] {
            let message = Message { address: u64::MAX, key: 5, immediate, payload };
            message.send(&mut near).unwrap();
            assert_eq!(Message::receive(&mut far).unwrap(), message);
        }
        for answer in [Answer::Done, Answer::NotReady(12), Answer::NoAccess] {
            answer.send(&mut far).unwrap();
            assert_eq!(Answer::receive(&mut near).unwrap(), answer);
        }
    }
}
