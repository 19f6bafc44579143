//! One or several TCP connections as a link.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::SLICE_BYTES;
use super::cipher::ciphers;
use super::receiver::{End, Read, Receiver, Wanted};
use super::sender::Sender;
use super::socket::{self, Drain, WaitFor};
use crate::credit::Credits;
use crate::limits::described;
use crate::secure::FrameKeys;
use crate::{Arrival, Channel, LinkError, Slot, Tag, TransportKind};

/// Reads after which the caller has its turn again, whatever a peer sends.
const READS_AT_ONCE: usize = 64;

/// How often at least [`TcpLink::close`] looks whether the peer's kernel has everything, which no
/// event tells.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// One connection of a link: authenticated, and with the keys for its frames if they are to be
/// encrypted.
#[derive(Debug)]
pub struct Connection {
    /// The connected socket.
    pub stream: TcpStream,
    /// The keys that its handshake gave.
    pub keys: Option<FrameKeys>,
}

/// A link over TCP. The methods are those of [`crate::Link`].
#[derive(Debug)]
pub struct TcpLink {
    sockets: Box<[Socket]>,
    peer: u32,
    sender: Box<Sender>,
    receiver: Box<Receiver>,
    credits: Box<Credits>,
    /// The sockets were empty when they were last read since the last poll.
    found_nothing: bool,
    /// [`TcpLink::arrival`] or [`TcpLink::receive`] has read the sockets since the last poll.
    read_lately: bool,
    /// A connection ended without a goodbye; what the others hold is still read.
    lost: Option<LinkError>,
    /// Why nothing more will come or go.
    end: Option<LinkError>,
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    /// Nothing more comes from it.
    has_ended: bool,
    /// How it drains, where it is one of several.
    drain: Drain,
}

/// What reading one socket has found.
struct Found {
    /// Something that somebody may wait for: the end of a link alone is nothing.
    moved: bool,
    /// The last read found nothing.
    nothing: bool,
    /// Nothing more is there.
    all: bool,
    /// Enough.
    enough: bool,
}

// SAFETY: the raw pointers inside are to memory that the posters keep readable, from any thread.
unsafe impl Send for TcpLink {}

impl TcpLink {
    /// A link over one connected and authenticated stream to rank `peer`, not encrypted.
    ///
    /// # Errors
    /// The stream cannot be made non-blocking, or is not connected.
    pub fn new(stream: TcpStream, peer: u32) -> Result<TcpLink, LinkError> {
        TcpLink::over(vec![Connection { stream, keys: None }], peer)
    }

    /// A link over several connections to rank `peer`, which both sides have in the same order and
    /// with the keys of each other. Each frame goes by the connection that will have sent it first.
    ///
    /// # Errors
    /// A stream cannot be made non-blocking, or is not connected.
    pub fn over(connections: Vec<Connection>, peer: u32) -> Result<TcpLink, LinkError> {
        let is_alone = connections.len() == 1;
        let (mut sockets, mut sealers, mut openers) = (Vec::new(), Vec::new(), Vec::new());
        for Connection { stream, keys } in connections {
            socket::prepare(&stream, is_alone).map_err(|error| failed(peer, &error))?;
            let (sealer, opener) = keys.as_ref().map(ciphers).unzip();
            sockets.push(Socket { stream, has_ended: false, drain: Drain::default() });
            sealers.push(sealer);
            openers.push(opener);
        }
        Ok(TcpLink {
            sockets: sockets.into(),
            peer,
            sender: Box::new(Sender::new(sealers)),
            receiver: Box::new(Receiver::new(openers)),
            credits: Box::new(Credits::new()),
            found_nothing: false,
            read_lately: false,
            lost: None,
            end: None,
        })
    }

    /// The rank at the other end.
    pub fn peer(&self) -> u32 {
        self.peer
    }

    /// Frames that are not encrypted have checksums from now on: what an encrypted one carries is proved already.
    pub(crate) fn check_frames(&mut self) {
        self.sender.check_frames();
        self.receiver.check_frames();
    }

    /// Divides the slots among `lanes` lanes.
    pub fn divide(&mut self, lanes: usize) {
        self.credits.divide(lanes);
    }

    /// Posts bytes on a channel.
    ///
    /// # Errors
    /// The link has ended.
    ///
    /// # Safety
    /// As of [`crate::Link::post`].
    pub unsafe fn post(
        &mut self,
        channel: Channel,
        tag: Tag,
        data: *const u8,
        len: usize,
        last: bool,
    ) -> Result<(), LinkError> {
        if let Some(end) = &self.end {
            return Err(end.clone());
        }
        self.sender.queue(channel, tag, data, len, last);
        if self.sender.sockets_are_full() {
            return Ok(());
        }
        self.flush().map(drop)
    }

    /// Payload bytes ever posted on a channel.
    pub fn posted_bytes(&self, channel: Channel) -> u64 {
        self.sender.posted_bytes(channel)
    }

    /// Payload bytes of a channel that the kernel has taken.
    pub fn sent_bytes(&self, channel: Channel) -> u64 {
        self.sender.sent_bytes(channel)
    }

    /// Payload bytes that have ever come on a channel in whole frames.
    pub fn arrived_bytes(&self, channel: Channel) -> u64 {
        self.receiver.arrived_bytes(channel)
    }

    /// See [`Link::is_waiting`](crate::Link::is_waiting).
    #[inline]
    pub fn is_waiting(&self, channel: Channel) -> bool {
        self.sender.is_waiting(channel)
    }

    /// `None`: this transport sends only from the caller's memory.
    pub fn reserve(&mut self, _channel: Channel, _wanted: usize) -> Option<Slot> {
        None
    }

    /// Never right, since nothing can be reserved.
    ///
    /// # Errors
    /// Always.
    pub fn commit(
        &mut self,
        _channel: Channel,
        _tag: Tag,
        _len: usize,
        _last: bool,
    ) -> Result<(), LinkError> {
        Err(protocol(self.peer, "commit without a reserved slot"))
    }

    /// The oldest slice on a channel; reads the socket if none is there, once between polls.
    ///
    /// # Errors
    /// The link has ended, and everything that came on this channel is released.
    pub fn arrival(&mut self, channel: Channel) -> Result<Option<Arrival>, LinkError> {
        if !self.receiver.shows(channel) && self.may_read() {
            self.read_until(&mut None, |link, _| link.receiver.shows(channel));
        }
        match (self.receiver.arrival(channel), &self.end) {
            (None, Some(end)) => Err(end.clone()),
            (arrival, _) => Ok(arrival),
        }
    }

    /// Releases the first `len` bytes of the arrival. The credit goes back with the next frame or
    /// [`TcpLink::poll`].
    ///
    /// # Errors
    /// None.
    pub fn release(&mut self, channel: Channel, len: usize) -> Result<(), LinkError> {
        self.receiver.release(channel, len, &mut self.credits);
        Ok(())
    }

    /// Receives what is there of the channel's oldest message: what waits in slots is copied, and
    /// the rest is read from the socket straight into `into`.
    ///
    /// # Errors
    /// The link has ended, and everything that came on this channel was consumed.
    ///
    /// # Safety
    /// `into .. into + len` must be writable.
    pub unsafe fn receive(
        &mut self,
        channel: Channel,
        tag: Tag,
        into: *mut u8,
        len: usize,
    ) -> Result<(usize, bool), LinkError> {
        let mut wanted = Wanted { channel, tag, into, room: len, got: 0, ended: false };
        // SAFETY: the caller's promise is passed on.
        unsafe { self.receiver.take_stored(&mut wanted, &mut self.credits) };
        if !self.is_served(&wanted) && self.may_read() {
            let mut direct = Some(wanted);
            self.read_until(&mut direct, |link, wanted| {
                wanted.as_ref().is_none_or(|wanted| link.is_served(wanted))
            });
            wanted = direct.unwrap_or(wanted);
        }
        match &self.end {
            Some(end) if wanted.got == 0 && !wanted.ended && !self.receiver.shows(channel) => {
                Err(end.clone())
            }
            _ => Ok((wanted.got, wanted.ended)),
        }
    }

    /// Reads what the socket holds, and writes what is posted and the credits that are due. Just
    /// after a call that read the socket it does not, so that a payload which arrives
    /// meanwhile is left for [`TcpLink::receive`] to read straight to its place.
    ///
    /// # Errors
    /// Something posted can no longer be sent, or the connection failed. That the peer closed the
    /// link is no error to a side that waits for nothing.
    pub fn poll(&mut self, _now_ns: u64) -> Result<bool, LinkError> {
        let mut moved = false;
        if !std::mem::take(&mut self.read_lately) {
            moved = self.read_until(&mut None, |_, _| false);
        }
        self.found_nothing = false;
        match &self.end {
            Some(LinkError::Closed { .. }) if !self.sender.has_unsent() => Ok(moved),
            Some(end) => Err(end.clone()),
            None => match self.flush() {
                Err(LinkError::Closed { .. }) if !self.sender.has_unsent() => Ok(moved),
                flushed => Ok(flushed? | moved),
            },
        }
    }

    /// See [`Link::is_idle`](crate::Link::is_idle).
    pub fn is_idle(&self) -> bool {
        !self.sender.has_unsent() && !self.sender.waits_for_room() && !self.credits.due()
    }

    /// The sockets, and whether something waits for room in them. None once the peer has closed
    /// the link, since they would never cease to be ready.
    pub fn descriptors(&self) -> impl Iterator<Item = (RawFd, bool)> + '_ {
        let waits_for_room = self.sender.could_send(&self.credits);
        let is_open = |socket: &&Socket| self.end.is_none() && !socket.has_ended;
        let sockets = self.sockets.iter().filter(is_open);
        sockets.map(move |socket| (socket.stream.as_raw_fd(), waits_for_room))
    }

    /// Nothing: the kernel wakes whoever waits on the socket.
    pub fn set_parked(&self, _parked: bool) {}

    /// Sends what is posted, says goodbye, and waits until the peer's kernel has everything, at
    /// most until `deadline`. What comes meanwhile is thrown away.
    pub fn close(mut self, deadline: Instant) {
        self.drain_until(deadline, |link| !link.sender.has_unsent());
        if self.end.is_none() && !self.sender.waits_for_room() {
            self.sender.say_goodbye(&mut self.credits);
            self.drain_until(deadline, |link| !link.sender.waits_for_room());
        }
        let streams = self.sockets.iter().map(|socket| &socket.stream);
        let shut: Vec<&TcpStream> =
            streams.filter(|stream| stream.shutdown(Shutdown::Write).is_ok()).collect();
        await_acknowledgement(&shut, deadline);
    }

    /// Sends and throws away what comes, until `done`, the end of the link or the deadline.
    fn drain_until(&mut self, deadline: Instant, done: impl Fn(&TcpLink) -> bool) {
        loop {
            self.read_lately = false;
            if self.poll(0).is_err() || self.end.is_some() || done(self) {
                return;
            }
            self.receiver.release_all(&mut self.credits);
            if Instant::now() >= deadline {
                return;
            }
            let what = if self.sender.could_send(&self.credits) {
                WaitFor::InputOrRoom
            } else {
                WaitFor::Input
            };
            let open = self.sockets.iter().filter(|socket| !socket.has_ended);
            socket::wait(open.map(|socket| &socket.stream), what, Duration::MAX, deadline);
        }
    }

    /// Whether nothing is gained by reading on.
    fn is_served(&self, wanted: &Wanted) -> bool {
        wanted.ended || (wanted.room == 0 && wanted.got > 0) || self.receiver.shows(wanted.channel)
    }

    /// Whether a call for this channel may find something in the socket: the first one that finds
    /// nothing speaks for all until the next poll.
    fn may_read(&mut self) -> bool {
        let may_read = !self.found_nothing;
        self.read_lately |= may_read;
        may_read
    }

    /// Reads until the sockets are empty or enough is there. Returns whether anything came that
    /// somebody may wait for: the end of the link alone is nothing.
    fn read_until(
        &mut self,
        wanted: &mut Option<Wanted>,
        enough: impl Fn(&TcpLink, &Option<Wanted>) -> bool,
    ) -> bool {
        let (mut moved, mut nothing, mut all) = (false, true, true);
        for at in 0..self.sockets.len() {
            let found = self.read_socket(at, wanted, &enough);
            moved |= found.moved;
            nothing &= found.nothing;
            all &= found.all;
            if found.enough {
                return true;
            }
        }
        self.found_nothing |= nothing;
        if self.end.is_none() && (all && self.lost.is_some() || self.has_ended()) {
            self.end = Some(self.lost.take().unwrap_or_else(|| closed(self.peer)));
        }
        moved
    }

    fn read_socket(
        &mut self,
        at: usize,
        wanted: &mut Option<Wanted>,
        enough: &impl Fn(&TcpLink, &Option<Wanted>) -> bool,
    ) -> Found {
        let found = |moved, nothing| Found { moved, nothing, all: true, enough: false };
        let fd = self.sockets[at].stream.as_raw_fd();
        for count in 0..READS_AT_ONCE {
            if self.end.is_some() || self.sockets[at].has_ended {
                return found(count > 1 || count == 1 && self.receiver.shows_any(), true);
            }
            // SAFETY: `wanted` is made by `receive` from what its caller promised.
            match unsafe { self.receiver.read(at, fd, wanted, &mut self.credits) } {
                Ok(Read::Nothing) => return found(count > 0, true),
                Ok(Read::Drained) => {
                    return Found { enough: enough(self, wanted), ..found(true, false) };
                }
                Ok(Read::More) => {}
                Err(End::Goodbye) => {
                    socket::acknowledge_now(fd);
                    self.sockets[at].has_ended = true;
                }
                Err(End::Closed) => {
                    socket::acknowledge_now(fd);
                    self.lose(at, closed(self.peer));
                }
                Err(End::Failed(error)) => self.lose(at, failed(self.peer, &error)),
                Err(End::Protocol(reason)) => self.end = Some(protocol(self.peer, reason)),
                Err(End::Corrupt(damage)) => {
                    let (peer, transport) = (self.peer, TransportKind::Tcp);
                    self.end = Some(LinkError::Corrupt { peer, transport, damage });
                }
                Err(End::Tampered(damage)) => {
                    let (peer, transport) = (self.peer, TransportKind::Tcp);
                    self.end = Some(LinkError::Tampered { peer, transport, damage });
                }
            }
            if enough(self, wanted) {
                return Found { moved: true, nothing: false, all: false, enough: true };
            }
        }
        Found { moved: true, nothing: false, all: false, enough: false }
    }

    /// A connection has ended without a goodbye.
    fn lose(&mut self, at: usize, error: LinkError) {
        self.sockets[at].has_ended = true;
        self.lost.get_or_insert(error);
    }

    /// Whether nothing more comes from any socket.
    fn has_ended(&self) -> bool {
        self.sockets.iter().all(|socket| socket.has_ended)
    }

    /// Writes what credits and the sockets allow.
    fn flush(&mut self) -> Result<bool, LinkError> {
        let flushed = match &*self.sockets {
            // SAFETY: posters keep their memory readable until it counts as sent.
            [only] => unsafe { self.sender.flush(0, only.stream.as_raw_fd(), &mut self.credits) },
            _ => self.spread(),
        };
        // What has arrived can still be read, so this is not the link's end.
        flushed.map_err(|error| failed(self.peer, &error))
    }

    /// Gives each batch to the socket that will have sent it first, by what it has been seen to
    /// drain and what waits in it.
    fn spread(&mut self) -> io::Result<bool> {
        let mut moved = false;
        for at in 0..self.sockets.len() {
            if self.sender.is_writing(at) {
                let fd = self.sockets[at].stream.as_raw_fd();
                // SAFETY: posters keep their memory readable until it counts as sent.
                moved |= unsafe { self.sender.write(at, fd) }?;
            }
        }
        if self.sender.has_frame(&self.credits) {
            for socket in &mut self.sockets {
                socket.drain.update(&socket.stream);
            }
        }
        loop {
            let free = (0..self.sockets.len()).filter(|&at| !self.sender.is_writing(at));
            let time = |at: &usize| self.sockets[*at].drain.time_s(SLICE_BYTES);
            let Some(at) = free.min_by(|a, b| time(a).total_cmp(&time(b))) else {
                return Ok(moved);
            };
            // SAFETY: as above.
            if !unsafe { self.sender.fill(at, &mut self.credits) } {
                return Ok(moved);
            }
            let Socket { stream, drain, .. } = &mut self.sockets[at];
            drain.waiting_bytes += SLICE_BYTES;
            // SAFETY: as above.
            moved |= unsafe { self.sender.write(at, stream.as_raw_fd()) }?;
        }
    }
}

/// Waits until the peer's kernel has everything. Data that comes meanwhile is read: closing a
/// socket that holds any would reset the connection, and a peer that does the same may wait for
/// room on another socket than this side does.
fn await_acknowledgement(streams: &[&TcpStream], deadline: Instant) {
    let mut open = streams.to_vec();
    let mut longest = Duration::from_micros(50);
    while streams.iter().any(|stream| socket::is_on_the_way(stream)) && Instant::now() < deadline {
        let what = if open.is_empty() { WaitFor::Time } else { WaitFor::Input };
        socket::wait(open.iter().copied(), what, longest, deadline);
        longest = (longest * 2).min(LOOK_EVERY);
        open.retain(|stream| !socket::discard(stream, deadline));
    }
    for stream in streams {
        socket::discard(stream, deadline);
    }
}

fn closed(peer: u32) -> LinkError {
    LinkError::Closed { peer, transport: TransportKind::Tcp }
}

fn protocol(peer: u32, reason: &str) -> LinkError {
    LinkError::Protocol { peer, transport: TransportKind::Tcp, reason: reason.to_owned() }
}

/// What a system error means: that the peer is gone, or that something else is wrong.
fn failed(peer: u32, error: &io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected => closed(peer),
        _ => LinkError::Failed { peer, transport: TransportKind::Tcp, reason: described(error) },
    }
}
