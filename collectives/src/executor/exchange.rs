//! Small messages of an exchange among all ranks: each is published once, on the rank's board, and
//! folded from there by everyone.
//!
//! The program says the same as always; this is another way to carry it out, which all ranks take
//! together, since all know the algorithm and the count. Peers to whom no shared memory leads get
//! and send ordinary messages.

use ringtree_plan::{Action, Destination, Program, Source, Span};
use ringtree_transport::shm::{BOARD_BYTES, Board, Published};
use ringtree_transport::{Link, Tag};

use super::{Fault, Geometry, Operation, Status};

/// An exchange, and how far it is.
#[derive(Debug)]
pub(crate) struct Exchange {
    given: Span,
    /// Where the fold goes; `None` where nothing is folded.
    result: Option<Span>,
    /// What is folded, in this order: a peer's message, or, as `None`, what this rank gives.
    operands: Vec<Option<u32>>,
    /// Bytes of each message of this run.
    len: usize,
    /// What this rank gives. It is folded from here and not from the board, since reading what was
    /// just written for others waits until the processor owns that cache line.
    mine: *const u8,
    /// The same on the board.
    published: Published,
    is_posted: bool,
    /// Operands that have come.
    come: usize,
    /// Bytes of the next one, if it comes as a message.
    received_bytes: usize,
    is_folded: bool,
    /// Where messages go: room for each rank's. Empty while all come from boards.
    landing: Vec<u8>,
}

impl Exchange {
    /// The exchange that a program is on buffers that are cut so, if they are so short that a board has room.
    pub(crate) fn at_once(program: &Program, geometry: &Geometry) -> Option<Exchange> {
        let is_one_round = geometry.rounds() == 1;
        is_one_round.then(|| Exchange::of(program, geometry.longest_chunk_bytes())).flatten()
    }

    /// The exchange that a program is, if it is one of so few bytes that a board has room.
    pub(super) fn of(program: &Program, bytes: usize) -> Option<Exchange> {
        if program.ranks < 2 || bytes > BOARD_BYTES {
            return None;
        }
        let mut given = None;
        let mut result = None;
        let mut operands = Vec::with_capacity(program.ranks as usize);
        for action in &program.actions {
            let &Action::Move { first_source, sources, first_destination, destinations, .. } =
                action
            else {
                return None;
            };
            let sources = &program.sources[first_source as usize..][..sources as usize];
            let destinations =
                &program.destinations[first_destination as usize..][..destinations as usize];
            match (sources, destinations) {
                (&[Source::Own(span)], [Destination::Send { .. }, ..]) => given = Some(span),
                (_, &[Destination::Own(span)]) => {
                    operands.extend(sources.iter().map(|source| match *source {
                        Source::Arrival { peer } => Some(peer),
                        Source::Own(_) => None,
                    }));
                    result = (sources.len() > 1).then_some(span);
                }
                _ => return None,
            }
        }
        let peers = operands.iter().flatten().count();
        (peers + 1 == program.ranks as usize).then_some(Exchange {
            given: given?,
            result,
            operands,
            len: 0,
            mine: std::ptr::null(),
            published: Published { number: 0, data: std::ptr::null(), is_next: false },
            is_posted: false,
            come: 0,
            received_bytes: 0,
            is_folded: false,
            landing: Vec::new(),
        })
    }
}

impl Operation {
    /// Carries the program out as an exchange, if it is one. All ranks must: see
    /// [`Algorithm::is_one_exchange`](ringtree_plan::Algorithm::is_one_exchange).
    pub fn exchange_at_once(&mut self) {
        self.exchange = Exchange::at_once(&self.program, &self.geometry).map(Box::new);
    }

    /// Begins a run as [`Operation::start`] does. What this rank gives in an exchange goes onto
    /// `board`, which belongs to it and to nothing but the communicator of `links`.
    ///
    /// # Safety
    /// As of [`Operation::start`]; and the communicator's last operation is complete.
    #[inline]
    pub unsafe fn start_with(
        &mut self,
        tag: Tag,
        input: *const u8,
        output: *mut u8,
        links: &mut [Option<Link>],
        board: &mut Board,
    ) {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.start(tag, input, output, links) };
        let Some(mut exchange) = self.exchange.take() else { return };
        let len = self.geometry.bytes(0, exchange.given).len;
        let given = self.address(0, exchange.given);
        // SAFETY: `given` is a span of the input, or nothing; an exchange before this one is complete.
        exchange.published = unsafe { board.publish(tag, given, len) };
        exchange.len = len;
        exchange.mine = given;
        exchange.is_posted = false;
        exchange.is_folded = false;
        exchange.come = 0;
        exchange.received_bytes = 0;
        let is_far = |peer: &u32| links[*peer as usize].as_ref().is_some_and(|l| !l.shares_board());
        if exchange.landing.is_empty() && self.peers.iter().any(is_far) {
            exchange.landing = vec![0; links.len() * len];
        }
        self.exchange = Some(exchange);
    }

    /// Moves the exchange on as far as the peers allow.
    #[inline]
    pub(super) fn poll_exchange(
        &mut self,
        exchange: &mut Exchange,
        links: &mut [Option<Link>],
        now_ns: u64,
    ) -> Result<Status, Fault> {
        if self.lanes[0].is_done(1) {
            return Ok(Status::Done);
        }
        let len = exchange.len;
        let mut moved = false;
        if !exchange.is_posted {
            exchange.is_posted = true;
            moved = true;
            self.sources.clear();
            self.tell(exchange, len, links)?;
        }
        while let Some(operand) = exchange.operands.get(exchange.come) {
            let data = match *operand {
                None => exchange.mine,
                Some(peer) => match self.message(exchange, peer, len, links)? {
                    Some(data) => data,
                    None => {
                        self.lanes[0].blocked_on = Some(peer);
                        return self.blocked(exchange.published.number, moved, links, now_ns);
                    }
                },
            };
            self.sources.push(data);
            exchange.come += 1;
            moved = true;
        }
        if !exchange.is_folded {
            exchange.is_folded = true;
            if let Some(result) = exchange.result.filter(|_| len > 0) {
                self.destinations.clear();
                let result = self.address(0, result);
                self.destinations.push(result);
                // SAFETY: each source has `len` bytes on a board, in the landing or where it was given,
                // which stay as they are until this rank goes on; the result is a span that `start`
                // vouched for, and overlaps none of them unless it is the given one.
                unsafe {
                    // All operands at once: there is nothing partial.
                    let kernel = &self.kernels.completing;
                    kernel.run(&self.sources, &self.destinations, self.elements(len));
                }
            }
        }
        // The board is written again before long: what is sent from it must have left.
        for &peer in &self.peers {
            let channel = self.lanes[0].channel;
            if links[peer as usize].as_ref().is_some_and(|link| link.is_waiting(channel)) {
                self.lanes[0].blocked_on = Some(peer);
                return self.blocked(exchange.published.number, moved, links, now_ns);
            }
        }
        self.lanes[0].blocked_on = None;
        self.lanes[0].next_round();
        Ok(Status::Done)
    }

    /// Tells every peer what this rank gives.
    fn tell(
        &mut self,
        exchange: &Exchange,
        len: usize,
        links: &mut [Option<Link>],
    ) -> Result<(), Fault> {
        let channel = self.lanes[0].channel;
        for &peer in &self.peers {
            let Some(link) = &mut links[peer as usize] else { continue };
            if link.shares_board() {
                link.announce();
                continue;
            }
            // SAFETY: the board keeps the bytes, and the operation waits until they have left.
            unsafe { link.post(channel, self.tag, exchange.published.data, len, true) }
                .map_err(Fault::Link)?;
        }
        Ok(())
    }

    /// What a peer gives, once all of it is there.
    #[inline]
    fn message(
        &mut self,
        exchange: &mut Exchange,
        peer: u32,
        len: usize,
        links: &mut [Option<Link>],
    ) -> Result<Option<*const u8>, Fault> {
        let Some(link) = &mut links[peer as usize] else { return Ok(None) };
        if !link.shares_board() {
            return self.receive_message(exchange, peer, len, links);
        }
        let found = link.published(exchange.published.number).map_err(Fault::Link)?;
        let Some(published) = found else { return Ok(None) };
        if published.tag != self.tag {
            return Err(Fault::Mismatch { peer, theirs: published.tag });
        }
        if published.len != len {
            return Err(Fault::Length { peer, expected_bytes: len });
        }
        if exchange.published.is_next {
            return Ok(Some(published.data));
        }
        // What the peer sent in an earlier call is here by now. If nobody took it, that was another
        // call than this rank's, which nothing else would show. That the peer has left, or that the
        // link broke after this, is no matter here.
        match link.arrival(self.lanes[0].channel) {
            Ok(Some(left)) if is_earlier(left.tag.sequence, self.tag.sequence) => {
                Err(Fault::Mismatch { peer, theirs: left.tag })
            }
            _ => Ok(Some(published.data)),
        }
    }

    fn receive_message(
        &mut self,
        exchange: &mut Exchange,
        peer: u32,
        len: usize,
        links: &mut [Option<Link>],
    ) -> Result<Option<*const u8>, Fault> {
        let channel = self.lanes[0].channel;
        let from = peer as usize * len;
        assert!(from + len <= exchange.landing.len(), "the landing has room for each rank's");
        // Not by a slice: what came from others is read by pointers into the same memory.
        let landing = exchange.landing.as_mut_ptr().wrapping_add(from);
        loop {
            let rest = len - exchange.received_bytes;
            let into = landing.wrapping_add(exchange.received_bytes);
            let Some(link) = &mut links[peer as usize] else { return Ok(None) };
            // SAFETY: the rest of the landing is this message's.
            let received = unsafe { link.receive(channel, self.tag, into, rest) };
            let (bytes, ended) = received.map_err(Fault::Link)?;
            if ended != (bytes == rest) && (ended || bytes > 0 && bytes == rest) {
                return Err(Fault::Length { peer, expected_bytes: len });
            }
            if ended {
                exchange.received_bytes = 0;
                return Ok(Some(landing));
            }
            exchange.received_bytes += bytes;
            if bytes == 0 {
                // A message of another call is shown, and not received.
                self.look(0, peer, links)?;
                return Ok(None);
            }
        }
    }

    /// Nothing more of exchange `number` is there.
    fn blocked(
        &mut self,
        number: u32,
        moved: bool,
        links: &mut [Option<Link>],
        now_ns: u64,
    ) -> Result<Status, Fault> {
        if self.poll_links(links, now_ns, Link::shares_board) {
            return Ok(Status::Moved);
        }
        let failed = self.check_failures();
        // A peer may have published, seen everyone and left since its board was looked at.
        let has_published = |peer: u32| {
            let link = links[peer as usize].as_ref();
            link.is_some_and(|link| matches!(link.published(number), Ok(Some(_))))
        };
        if failed.is_err() && self.lanes[0].blocked_on.is_some_and(has_published) {
            return Ok(Status::Moved);
        }
        failed.map(|()| Status::Blocked { moved })
    }
}

/// Whether operation `a` was called before `b`; the numbers wrap.
fn is_earlier(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > u32::MAX / 2
}
