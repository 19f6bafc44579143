//! One action after the other: folds what has arrived, slice by slice, into memory and onto links.

use ringtree_plan::{Action, Destination, Source, Space, Span};
use ringtree_transport::{Arrival, Channel, Link};

use super::lane::Lane;
use super::{Fault, Offer, Operation};
use crate::reduce;

/// A move of the action in hand, taken apart.
#[derive(Clone, Copy)]
pub(super) struct Move {
    pub(super) sources: (usize, usize),
    pub(super) destinations: (usize, usize),
    pub(super) total_bytes: usize,
    pub(super) guarded: bool,
    pub(super) completes: bool,
}

/// What became of an attempt.
enum Outcome {
    /// The action is complete.
    Complete,
    /// Some of it was done; the rest must wait for `on`.
    Partial { on: u32, moved: bool },
}

impl Operation {
    /// Runs a lane until it must wait or is done. Returns whether anything moved.
    #[inline]
    pub(super) fn advance(
        &mut self,
        lane: usize,
        links: &mut [Option<Link>],
    ) -> Result<bool, Fault> {
        let mut moved = false;
        loop {
            if !self.lanes[lane].has_offered {
                self.offer(lane, links)?;
            }
            let outcome = match self.lanes[lane].action(&self.program) {
                None => match self.lanes[lane].unsent(links) {
                    None => {
                        self.lanes[lane].next_round();
                        self.lanes[lane].blocked_on = None;
                        if self.lanes[lane].is_done(self.geometry.rounds()) {
                            return Ok(true);
                        }
                        moved = true;
                        continue;
                    }
                    Some(on) => Outcome::Partial { on, moved: false },
                },
                Some(Action::Flush { span }) => self.flush(lane, span, links),
                Some(Action::Move {
                    first_source,
                    sources,
                    first_destination,
                    destinations,
                    shape,
                    guarded,
                    early: _,
                    completes,
                }) => {
                    let total_bytes = self.geometry.bytes(self.lanes[lane].round, shape).len;
                    let sources = (first_source as usize, (first_source + sources) as usize);
                    let first = first_destination as usize;
                    let destinations = (first, first + destinations as usize);
                    let mv = Move { sources, destinations, total_bytes, guarded, completes };
                    self.run(lane, mv, links)?
                }
            };
            match outcome {
                Outcome::Complete => {
                    self.lanes[lane].finish_action();
                    moved = true;
                }
                Outcome::Partial { on, moved: some } => {
                    self.lanes[lane].blocked_on = Some(on);
                    return Ok(moved | some);
                }
            }
        }
    }

    /// Tells the peers where the round's results are wanted.
    fn offer(&mut self, lane: usize, links: &mut [Option<Link>]) -> Result<(), Fault> {
        self.lanes[lane].has_offered = true;
        let variant = self.lanes[lane].variant;
        for index in 0..self.offers[variant].len() {
            let offer = self.offers[variant][index];
            let is_ahead = offer.may_be_ahead() && link(links, offer.peer).offers_ahead();
            for &later in self.lanes[lane].rounds_to_offer(is_ahead) {
                self.offer_round(lane, offer, later, links)?;
            }
        }
        Ok(())
    }

    /// Tells a peer where a message is wanted in the round in hand, or in so many rounds of the lane after it.
    fn offer_round(
        &mut self,
        lane: usize,
        Offer { peer, ahead, a_round, span }: Offer,
        later: u32,
        links: &mut [Option<Link>],
    ) -> Result<(), Fault> {
        let Lane { round, channel, .. } = self.lanes[lane];
        let round = round + u64::from(later) * self.lanes.len() as u64;
        if round >= self.geometry.rounds() {
            return Ok(());
        }
        let ahead = ahead + later * a_round;
        let len = self.geometry.bytes(round, span).len;
        let into = self.address_in(round, lane, span);
        // SAFETY: `start` vouched for the span until the operation is done or its links are
        // dropped. The plan's proof says that everyone is done with it when the peer sends the
        // message; the lane does not finish that round before it has come.
        unsafe { link(links, peer).offer(channel, self.tag, ahead, into, len) }.map_err(Fault::Link)
    }

    fn flush(&mut self, lane: usize, span: Span, links: &mut [Option<Link>]) -> Outcome {
        let bytes = self.geometry.bytes(self.lanes[lane].round, span);
        let start = self.address(lane, span);
        match self.lanes[lane].writable(links, start, bytes.len) {
            (_, None) => Outcome::Complete,
            (_, Some(on)) => Outcome::Partial { on, moved: false },
        }
    }

    #[inline]
    fn run(&mut self, lane: usize, mv: Move, links: &mut [Option<Link>]) -> Result<Outcome, Fault> {
        let own = self.own_destination(lane, &mv);
        if let (1, Source::Own(span)) =
            (mv.sources.1 - mv.sources.0, self.program.sources[mv.sources.0])
            && own.is_none()
        {
            return self.post_whole(lane, &mv, span, links);
        }
        if let (Some((start, _)), false) = (own, mv.guarded)
            && mv.sources.1 - mv.sources.0 == 1
            && let Source::Arrival { peer } = self.program.sources[mv.sources.0]
            && link(links, peer).receives_directly(self.lanes[lane].channel)
        {
            return self.receive_straight(lane, &mv, peer, start, links);
        }
        let mut moved = false;
        loop {
            match self.slice(lane, &mv, own, links)? {
                Ok(()) => moved = true,
                Err(on) => return Ok(Outcome::Partial { on, moved }),
            }
            if self.lanes[lane].done_bytes == mv.total_bytes {
                return Ok(Outcome::Complete);
            }
        }
    }

    /// Sends a span of this rank as it is.
    #[inline]
    fn post_whole(
        &mut self,
        lane: usize,
        mv: &Move,
        span: Span,
        links: &mut [Option<Link>],
    ) -> Result<Outcome, Fault> {
        let start = self.address(lane, span);
        self.take_offers(lane, mv, links)?;
        for index in mv.destinations.0..mv.destinations.1 {
            if let Destination::Send { peer, .. } = self.program.destinations[index] {
                self.post(lane, peer, start, mv.total_bytes, true, links)?;
            }
        }
        Ok(Outcome::Complete)
    }

    /// Before the first byte of an action's messages is sent: some may go where the peers want them.
    #[inline]
    fn take_offers(&self, lane: usize, mv: &Move, links: &mut [Option<Link>]) -> Result<(), Fault> {
        for index in mv.destinations.0..mv.destinations.1 {
            if let Destination::Send { peer, .. } = self.program.destinations[index] {
                let channel = self.lanes[lane].channel;
                let taken = link(links, peer).takes_offer(channel, self.tag, mv.total_bytes);
                taken.map_err(Fault::Link)?;
            }
        }
        Ok(())
    }

    /// Receives a message straight into memory of this rank, and forwards what has come.
    fn receive_straight(
        &mut self,
        lane: usize,
        mv: &Move,
        peer: u32,
        start: *mut u8,
        links: &mut [Option<Link>],
    ) -> Result<Outcome, Fault> {
        let channel = self.lanes[lane].channel;
        let mut moved = false;
        if self.lanes[lane].done_bytes == 0 {
            self.take_offers(lane, mv, links)?;
        }
        loop {
            let done = self.lanes[lane].done_bytes;
            let (into, rest) = (start.wrapping_add(done), mv.total_bytes - done);
            // SAFETY: the span lies in the output or scratch, which `start` vouched for; this
            // lane alone writes it now, as the plan's proof says.
            let received = unsafe { link(links, peer).receive(channel, self.tag, into, rest) };
            let (bytes, ended) = received.map_err(Fault::Link)?;
            if ended != (bytes == rest) && (ended || bytes > 0 && bytes == rest) {
                return Err(Fault::Length { peer, expected_bytes: mv.total_bytes });
            }
            if bytes == 0 && !ended {
                // Nothing has come; or what is of another call, or longer than it may be.
                if self.look(lane, peer, links)?.is_some_and(|arrival| arrival.len > rest) {
                    return Err(Fault::Length { peer, expected_bytes: mv.total_bytes });
                }
                return Ok(Outcome::Partial { on: peer, moved });
            }
            moved = true;
            for index in mv.destinations.0..mv.destinations.1 {
                if let Destination::Send { peer, .. } = self.program.destinations[index] {
                    self.post(lane, peer, into, bytes, ended, links)?;
                }
            }
            self.lanes[lane].done_bytes += bytes;
            if ended {
                return Ok(Outcome::Complete);
            }
        }
    }

    /// Does the next slice, or says who must move first.
    #[inline]
    fn slice(
        &mut self,
        lane: usize,
        mv: &Move,
        own: Option<(*mut u8, bool)>,
        links: &mut [Option<Link>],
    ) -> Result<Result<(), u32>, Fault> {
        let done = self.lanes[lane].done_bytes;
        let mut part = mv.total_bytes - done;
        self.sources.clear();
        for index in mv.sources.0..mv.sources.1 {
            let source = match self.program.sources[index] {
                Source::Own(span) => self.address(lane, span).wrapping_add(done).cast_const(),
                Source::Arrival { peer } => {
                    let Some(arrival) = self.look(lane, peer, links)? else { return Ok(Err(peer)) };
                    let rest = mv.total_bytes - done;
                    let ends = arrival.len == rest;
                    // Only a fold needs whole elements: copies may be cut anywhere.
                    let folds = mv.sources.1 - mv.sources.0 > 1;
                    let whole = !folds || self.is_whole(arrival.len);
                    if arrival.len > rest || arrival.last != ends || !whole {
                        return Err(Fault::Length { peer, expected_bytes: mv.total_bytes });
                    }
                    part = part.min(arrival.len);
                    arrival.data
                }
            };
            self.sources.push(source);
        }
        if let (true, Some((start, _))) = (mv.guarded, own) {
            let (writable, reader) =
                self.lanes[lane].writable(links, start.wrapping_add(done), part);
            // Whole cache lines, so that the rest of the slice stays aligned.
            match reader {
                Some(on) if writable < 64 => return Ok(Err(on)),
                Some(_) => part = writable & !63,
                None => {}
            }
        }
        self.choose_destinations(lane, mv, own, &mut part, links)?;
        let distinct = self.sources.len() > 1
            || self.destinations.iter().any(|&d| d.cast_const() != self.sources[0]);
        if part > 0 && distinct {
            self.fold(part, mv.completes);
        }
        self.pass_on(lane, mv, own, part, links)?;
        self.lanes[lane].done_bytes += part;
        Ok(Ok(()))
    }

    /// Where the slice in hand is written: slots of the peers, as far as there is credit and their links
    /// do not write faster themselves, and the own span if it is wanted or a peer has no slot.
    #[inline]
    fn choose_destinations(
        &mut self,
        lane: usize,
        mv: &Move,
        own: Option<(*mut u8, bool)>,
        part: &mut usize,
        links: &mut [Option<Link>],
    ) -> Result<(), Fault> {
        let channel = self.lanes[lane].channel;
        self.destinations.clear();
        self.slotted.clear();
        let mut own_needed = own.is_some_and(|(_, backing)| !backing);
        for index in mv.destinations.0..mv.destinations.1 {
            if let Destination::Send { peer, .. } = self.program.destinations[index] {
                let link = link(links, peer);
                let offered = link.takes_offer(channel, self.tag, mv.total_bytes);
                let offered = offered.map_err(Fault::Link)?;
                // What is written here anyway, and the peer can read in place, needs no slot.
                let lent = !offered
                    && own.is_some_and(|(start, backing)| {
                        !backing && self.may_lend(link, channel, start, mv.total_bytes)
                    });
                let slot = if lent { None } else { link.reserve(channel, *part) };
                self.slotted.push(slot.is_some());
                match slot {
                    Some(slot) => {
                        *part = (*part).min(slot.len);
                        self.destinations.push(slot.data);
                    }
                    None => own_needed = true,
                }
            }
        }
        if let (true, Some((start, _))) = (own_needed, own) {
            let done = self.lanes[lane].done_bytes;
            self.destinations.push(start.wrapping_add(done));
        }
        Ok(())
    }

    /// Folds `part` bytes of the sources into the destinations.
    #[inline]
    fn fold(&self, part: usize, completes: bool) {
        // SAFETY: each source has `part` readable bytes (an arrival's or a span's), each
        // destination room for as many (a slot's or a span's); spans lie in memory that `start`
        // vouched for, and the plan's proof says that nobody else writes them now.
        unsafe {
            if let [source] = self.sources[..] {
                reduce::copy(source, &self.destinations, part);
            } else {
                debug_assert!(self.is_whole(part));
                let kernel = self.kernels.of(completes);
                kernel.run(&self.sources, &self.destinations, self.elements(part));
            }
        }
    }

    /// Whether so many bytes are whole elements.
    #[inline]
    fn is_whole(&self, bytes: usize) -> bool {
        self.elements(bytes) << self.element_shift == bytes
    }

    /// Gives the slice's arrivals back, and sends the slice where it goes.
    #[inline]
    fn pass_on(
        &mut self,
        lane: usize,
        mv: &Move,
        own: Option<(*mut u8, bool)>,
        part: usize,
        links: &mut [Option<Link>],
    ) -> Result<(), Fault> {
        let channel = self.lanes[lane].channel;
        for index in mv.sources.0..mv.sources.1 {
            if let Source::Arrival { peer } = self.program.sources[index] {
                link(links, peer).release(channel, part).map_err(Fault::Link)?;
            }
        }
        let done = self.lanes[lane].done_bytes;
        let last = done + part == mv.total_bytes;
        let mut sends = 0;
        for index in mv.destinations.0..mv.destinations.1 {
            let Destination::Send { peer, .. } = self.program.destinations[index] else { continue };
            let slotted = self.slotted[sends];
            sends += 1;
            if slotted {
                link(links, peer).commit(channel, self.tag, part, last).map_err(Fault::Link)?;
            } else if let Some((start, _)) = own {
                self.post(lane, peer, start.wrapping_add(done), part, last, links)?;
            }
        }
        Ok(())
    }

    #[inline]
    fn post(
        &mut self,
        lane: usize,
        peer: u32,
        data: *const u8,
        len: usize,
        last: bool,
        links: &mut [Option<Link>],
    ) -> Result<(), Fault> {
        let channel = self.lanes[lane].channel;
        let link = link(links, peer);
        // SAFETY: the bytes lie in memory that `start` vouched for until the operation is done,
        // and the lane does not finish its round before they have left; that no step writes them
        // before, the plan's proof says.
        let result = unsafe {
            if !link.is_direct(channel)
                && self.may_lend(link, channel, data, len)
                && link.lend(channel, self.tag, data, len, last).map_err(Fault::Link)?
            {
                Ok(())
            } else {
                link.post(channel, self.tag, data, len, last)
            }
        };
        result.map_err(Fault::Link)?;
        self.lanes[lane].posted(link, peer, data, len);
        Ok(())
    }

    /// Whether the peer may read these bytes in place.
    #[inline]
    fn may_lend(&self, link: &Link, channel: Channel, data: *const u8, len: usize) -> bool {
        self.lends && link.lends(channel, data, len)
    }

    /// The next slice of a peer, if it is there and of this call.
    #[inline]
    pub(super) fn look(
        &mut self,
        lane: usize,
        peer: u32,
        links: &mut [Option<Link>],
    ) -> Result<Option<Arrival>, Fault> {
        let channel = self.lanes[lane].channel;
        match link(links, peer).arrival(channel) {
            Ok(Some(arrival)) if arrival.tag != self.tag => {
                Err(Fault::Mismatch { peer, theirs: arrival.tag })
            }
            Ok(arrival) => Ok(arrival),
            Err(error) => Err(Fault::Link(error)),
        }
    }

    /// The own span that a move writes, and whether it only backs sends.
    #[inline]
    fn own_destination(&mut self, lane: usize, mv: &Move) -> Option<(*mut u8, bool)> {
        for index in mv.destinations.0..mv.destinations.1 {
            match self.program.destinations[index] {
                Destination::Own(span) => return Some((self.address(lane, span), false)),
                Destination::Backing(span) => return Some((self.address(lane, span), true)),
                Destination::Send { .. } => {}
            }
        }
        None
    }

    /// First byte of a span in the lane's round.
    #[inline]
    pub(super) fn address(&mut self, lane: usize, span: Span) -> *mut u8 {
        self.address_in(self.lanes[lane].round, lane, span)
    }

    #[inline]
    fn address_in(&mut self, round: u64, lane: usize, span: Span) -> *mut u8 {
        let offset = self.geometry.bytes(round, span).offset;
        match span.space {
            Space::Input => self.input.cast_mut().wrapping_add(offset),
            Space::Output => self.output.wrapping_add(offset),
            Space::Scratch => {
                let offset = lane * self.geometry.scratch_bytes() + offset;
                self.scratch.start().wrapping_add(offset)
            }
        }
    }
}

/// The link to a peer of the program.
#[inline]
pub(super) fn link(links: &mut [Option<Link>], peer: u32) -> &mut Link {
    links[peer as usize].as_mut().expect("links to a program's peers are made before it starts")
}
