//! Patterns over one link: one side sends each of them in each way that the link has, and the other compares
//! what comes with what it knows was sent; then the other way round.
//!
//! The receiver says when it is ready by a message of one byte, so that what it has offered is known to the
//! sender before that begins.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ringtree_transport::memory::{Registration, SharedMemory};
use ringtree_transport::{Channel, Link, LinkError, Tag, TransportKind};
use serde::{Deserialize, Serialize};

use super::pattern::{Differences, Pattern};

/// All goes over one channel, as of a collective.
const CHANNEL: Channel = 0;

/// Twice what the slots of a link hold, so that each is written.
const LARGE_BYTES: usize = 4 << 20;

/// What fits a line of shared memory.
const SMALL_BYTES: usize = 40;

/// Without anything that comes or goes for so long, the rest is lost.
pub const SILENCE: Duration = Duration::from_secs(5);

/// A peer that has not moved for so long is busy: to look all the time would only take its processor away.
const PATIENCE: Duration = Duration::from_millis(2);

/// What says that the receiver is ready.
static READY: [u8; 1] = [1];

/// Whose memory it is to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// Memory that only the kernel or a device can read for the peer.
    Ordinary,
    /// Memory that the peer maps, or a device knows.
    Registered,
}

/// How a message goes.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// What people call it.
    name: &'static str,
    len_bytes: usize,
    /// What it is sent from, and whether that is lent.
    from: Memory,
    is_lent: bool,
    /// What is offered for it.
    into: Option<Memory>,
}

const SMALL: Way = Way {
    name: "small messages",
    len_bytes: SMALL_BYTES,
    from: Memory::Ordinary,
    is_lent: false,
    into: None,
};
const SLOTS: Way = Way { name: "slots", len_bytes: LARGE_BYTES, ..SMALL };
const FRAMES: Way = Way { name: "large messages", ..SLOTS };
const LENT: Way =
    Way { name: "memory read in place", from: Memory::Registered, is_lent: true, ..SLOTS };
const OFFERED: Way =
    Way { name: "memory written in place", into: Some(Memory::Registered), ..SLOTS };
const ATTACHED: Way = Way { name: "memory read through the kernel", is_lent: true, ..SLOTS };
const ATTACHED_OFFER: Way =
    Way { name: "memory written through the kernel", into: Some(Memory::Ordinary), ..SLOTS };

/// The ways that a link has.
fn ways(link: &Link) -> &'static [Way] {
    match link.kind() {
        TransportKind::Shm if link.reaches_memory() => {
            &[SMALL, SLOTS, LENT, OFFERED, ATTACHED, ATTACHED_OFFER]
        }
        TransportKind::Shm => &[SMALL, SLOTS, LENT, OFFERED],
        TransportKind::Rdma => &[SMALL, SLOTS, LENT, OFFERED],
        TransportKind::Tcp | TransportKind::Sim => &[SMALL, FRAMES],
    }
}

/// What a side has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// The ways in which it has sent, each as it was meant.
    pub ways: Vec<String>,
    /// What has come wrong.
    pub defects: Vec<Defect>,
    /// Why no more was tried.
    pub error: Option<String>,
}

/// What came otherwise than it was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Defect {
    /// How it was sent.
    pub way: String,
    /// What was sent.
    pub pattern: Pattern,
    /// Bytes of the message.
    pub len_bytes: u64,
    /// In what it differs.
    pub differences: Differences,
}

/// Sends and receives all patterns in all ways of a link; the one that leads sends first. Ends the link.
/// `seed` is the same on both sides.
pub fn exchange(link: Link, leads: bool, seed: u64, silence: Duration) -> Seen {
    let mut seen = Seen::default();
    let outcome = Side::new(link, seed, silence).and_then(|mut side| {
        for turn in [leads, !leads] {
            match turn {
                true => side.send_all(&mut seen)?,
                false => side.receive_all(&mut seen)?,
            }
        }
        let Side { link, silence, .. } = side;
        link.close(Instant::now() + silence);
        Ok(())
    });
    seen.error = outcome.err();
    seen
}

/// One end. The link comes before the memory that it may still read.
struct Side {
    link: Link,
    ordinary: Box<[u8]>,
    registered: Arc<SharedMemory>,
    _registration: Arc<Registration>,
    /// Number of the message.
    sequence: u32,
    seed: u64,
    silence: Duration,
}

impl Side {
    fn new(mut link: Link, seed: u64, silence: Duration) -> Result<Side, String> {
        let registered = SharedMemory::create_writable(LARGE_BYTES);
        let registered = Arc::new(registered.map_err(|error| error.to_string())?);
        let registration = Registration::new(registered.clone());
        link.divide(1);
        link.attach(true);
        link.share(&registration);
        Ok(Side {
            link,
            ordinary: vec![0; LARGE_BYTES].into(),
            registered,
            _registration: registration,
            sequence: 0,
            seed,
            silence,
        })
    }

    fn send_all(&mut self, seen: &mut Seen) -> Result<(), String> {
        for way in ways(&self.link) {
            let mut is_as_meant = true;
            for pattern in Pattern::ALL {
                is_as_meant &= self.send(way, pattern)?;
            }
            if is_as_meant {
                seen.ways.push(way.name.to_owned());
            }
        }
        Ok(())
    }

    fn receive_all(&mut self, seen: &mut Seen) -> Result<(), String> {
        for way in ways(&self.link) {
            for pattern in Pattern::ALL {
                let differences = self
                    .receive(way, pattern)
                    .map_err(|error| format!("{pattern} by {}: {error}", way.name))?;
                if differences != Differences::default() {
                    let (way, len_bytes) = (way.name.to_owned(), way.len_bytes as u64);
                    seen.defects.push(Defect { way, pattern, len_bytes, differences });
                }
            }
        }
        Ok(())
    }

    /// Sends one message. Returns whether it went as it was meant to.
    fn send(&mut self, way: &Way, pattern: Pattern) -> Result<bool, String> {
        let (tag, len, seed) = (self.next_tag(), way.len_bytes, self.seed);
        self.wait("does not say that it is ready", |side| {
            let Some(arrival) = side.link.arrival(CHANNEL)? else { return Ok(None) };
            side.link.release(CHANNEL, arrival.len).map(Some)
        })?;
        let memory = self.memory(way.from);
        pattern.fill(seed, &mut memory[..len]);
        let data = memory.as_ptr();
        // SAFETY: `wait` returns once it was sent, and after an error nobody writes there again; the memory is
        // dropped after the link.
        let sent = unsafe { self.dispatch(way, tag, data, len) };
        let is_as_meant = sent.map_err(|error| error.to_string())?;
        self.wait("does not take what is sent", |side| {
            let is_sent = side.link.sent_bytes(CHANNEL) == side.link.posted_bytes(CHANNEL);
            Ok((is_sent && !side.link.is_waiting(CHANNEL)).then_some(()))
        })?;
        Ok(is_as_meant)
    }

    /// Hands a message to the link. Returns whether it goes as it was meant to.
    ///
    /// # Safety
    /// As of [`Link::post`].
    unsafe fn dispatch(
        &mut self,
        way: &Way,
        tag: Tag,
        data: *const u8,
        len: usize,
    ) -> Result<bool, LinkError> {
        let link = &mut self.link;
        let is_taken = way.into.is_some() && link.takes_offer(CHANNEL, tag, len)?;
        let lends = way.is_lent && link.lends(CHANNEL, data, len);
        // SAFETY: the caller's promise.
        let is_lent = lends && unsafe { link.lend(CHANNEL, tag, data, len, true)? };
        if !is_lent {
            // SAFETY: likewise.
            unsafe { link.post(CHANNEL, tag, data, len, true)? };
        }
        Ok(is_lent == way.is_lent && is_taken == way.into.is_some())
    }

    /// Receives one message, and compares it with what was sent.
    fn receive(&mut self, way: &Way, pattern: Pattern) -> Result<Differences, String> {
        let (tag, len, seed) = (self.next_tag(), way.len_bytes, self.seed);
        if let Some(into) = way.into {
            let memory = &mut self.memory(into)[..len];
            // What is not written shows.
            pattern.fill(seed, memory);
            memory.iter_mut().for_each(|byte| *byte = !*byte);
            let room = memory.as_mut_ptr();
            // SAFETY: nobody touches the room until the message has come; it is dropped after the link.
            unsafe { self.link.offer(CHANNEL, tag, 0, room, len) }
                .map_err(|error| error.to_string())?;
        }
        // SAFETY: a constant.
        unsafe { self.link.post(CHANNEL, tag, READY.as_ptr(), READY.len(), true) }
            .map_err(|error| error.to_string())?;
        let mut differences = Differences::default();
        let mut come = 0;
        while come < len {
            come += self.wait(&format!("has sent {come} of {len} bytes and no more"), |side| {
                let Some(arrival) = side.link.arrival(CHANNEL)? else { return Ok(None) };
                let part = arrival.len.min(len - come);
                // SAFETY: it is not released.
                let bytes = unsafe { std::slice::from_raw_parts(arrival.data, part) };
                pattern.compare(seed, come, bytes, &mut differences);
                side.link.release(CHANNEL, arrival.len)?;
                Ok(Some(part))
            })?;
        }
        Ok(differences)
    }

    fn next_tag(&mut self) -> Tag {
        self.sequence += 1;
        Tag { sequence: self.sequence, digest: 0 }
    }

    fn memory(&mut self, which: Memory) -> &mut [u8] {
        match which {
            Memory::Ordinary => &mut self.ordinary,
            // SAFETY: the mapping is so long, and the peer touches it only while a message is under way.
            Memory::Registered => unsafe {
                std::slice::from_raw_parts_mut(self.registered.start(), LARGE_BYTES)
            },
        }
    }

    /// Moves the link until `step` has what it wants.
    fn wait<T>(
        &mut self,
        silence: &str,
        mut step: impl FnMut(&mut Side) -> Result<Option<T>, LinkError>,
    ) -> Result<T, String> {
        let mut since = Instant::now();
        loop {
            if let Some(done) = step(self).map_err(|error| error.to_string())? {
                return Ok(done);
            }
            if self.link.poll(0).map_err(|error| error.to_string())? {
                since = Instant::now();
            }
            match since.elapsed() {
                quiet if quiet > self.silence => {
                    return Err(format!("rank {} {silence}", self.link.peer()));
                }
                quiet if quiet > PATIENCE => thread::sleep(Duration::from_micros(200)),
                _ => thread::yield_now(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    /// What is done to a message on its way.
    type Meddle = Box<dyn Fn(u64, &mut Vec<u8>) + Send>;

    use ringtree_tests::links::{self, Pair};
    use ringtree_transport::tcp::TcpLink;

    use super::super::pattern::WrongByte;
    use super::*;

    /// What both sides see.
    fn both(left: Link, right: Link, silence: Duration) -> [Seen; 2] {
        thread::scope(|scope| {
            let right = scope.spawn(move || exchange(right, false, 9, silence));
            [exchange(left, true, 9, silence), right.join().unwrap()]
        })
    }

    #[test]
    fn whole_paths_are_found_to_be_so() {
        for (Pair { left, right, .. }, least) in [(links::tcp(), 2), (links::shm(), 4)] {
            let kind = left.kind();
            for seen in both(left, right, links::PATIENCE) {
                assert_eq!((seen.error, seen.defects), (None, Vec::new()), "{kind}");
                assert!(seen.ways.len() >= least, "{kind}: {:?}", seen.ways);
            }
        }
    }

    /// Two TCP links with someone between them, who changes the bytes that the first one sends.
    fn with_a_middle(meddle: impl Fn(u64, &mut Vec<u8>) + Send + 'static) -> [Link; 2] {
        let (left, near) = links::tcp_streams();
        let (far, right) = links::tcp_streams();
        let copy = |mut from: TcpStream, mut to: TcpStream, meddle: Meddle| {
            thread::spawn(move || {
                let mut at = 0;
                let mut buffer = vec![0; 64 << 10];
                while let Ok(len @ 1..) = from.read(&mut buffer) {
                    let mut bytes = buffer[..len].to_vec();
                    meddle(at, &mut bytes);
                    at += len as u64;
                    if to.write_all(&bytes).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(std::net::Shutdown::Write);
            });
        };
        copy(near.try_clone().unwrap(), far.try_clone().unwrap(), Box::new(meddle));
        copy(far, near, Box::new(|_, _| {}));
        let link = |stream, peer| Link::Tcp(TcpLink::new(stream, peer).unwrap());
        [link(left, 1), link(right, 0)]
    }

    #[test]
    fn a_path_that_flips_a_bit_is_found_with_place_and_pattern() {
        // The first message is a header of 32 bytes and addresses.
        const AT: u64 = 32 + 17;
        let [left, right] = with_a_middle(|from, bytes| {
            if let Some(byte) = AT.checked_sub(from).and_then(|at| bytes.get_mut(at as usize)) {
                *byte ^= 4;
            }
        });
        let [sender, receiver] = both(left, right, links::PATIENCE);
        assert_eq!((sender.defects, sender.error), (Vec::new(), None));
        let mut sent = [0; SMALL_BYTES];
        Pattern::Addresses.fill(9, &mut sent);
        let first = WrongByte { at: 17, expected: sent[17], found: sent[17] ^ 4 };
        let defect = Defect {
            way: SMALL.name.into(),
            pattern: Pattern::Addresses,
            len_bytes: SMALL_BYTES as u64,
            differences: Differences { wrong_bytes: 1, first: Some(first) },
        };
        assert_eq!((receiver.defects, receiver.error), (vec![defect], None));
    }

    #[test]
    fn a_path_that_loses_what_is_written_is_found() {
        const LOST_AT: u64 = 100_000;
        let [left, right] = with_a_middle(|from, bytes| {
            bytes.truncate(LOST_AT.saturating_sub(from) as usize);
        });
        let [_, receiver] = both(left, right, Duration::from_millis(300));
        let error = receiver.error.expect("it waits for what is lost");
        assert!(error.contains("addresses by large messages: rank 0 has sent "), "{error}");
        assert!(error.ends_with("of 4194304 bytes and no more"), "{error}");
    }
}
