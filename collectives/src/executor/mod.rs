//! Runs programs over links.
//!
//! An [`Operation`] is a program bound to memory and to a schedule of rounds and lanes. Its state
//! is a counter a lane, so that it can be resumed anywhere: whoever calls [`Operation::poll`]
//! drives it, be that the caller of a blocking call, a progress thread, or a simulator on virtual
//! time. It neither blocks nor allocates while it runs, and reads no clock.

mod exchange;
mod geometry;
mod lane;
mod moves;
mod staged;
#[cfg(test)]
mod tests;

pub(crate) use exchange::Exchange;
pub use geometry::{ByteSpan, Extent, Geometry};
pub(crate) use staged::{Gear, Staged};

use ringtree_plan::{Action, Destination, Program, Source, Space, Span};
use ringtree_transport::cuda::CudaError;
use ringtree_transport::{Channel, LEAST_IN_PLACE_BYTES, Link, LinkError, Tag};

use crate::reduce::{self, Kernel};
use crate::{DataType, Op};
use lane::Lane;

/// How a collective is cut: how many rounds are in flight at once, and how long one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// Rounds in flight.
    pub lanes: usize,
    /// Bytes of a round.
    pub round_bytes: usize,
    /// Whether processes may reach each other's ordinary memory in place, through the kernel, if their
    /// links find that fast.
    pub attaches: bool,
}

/// What a call of [`Operation::poll`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Every lane is done: the result is in the output, and no link reads the caller's memory.
    Done,
    /// Something moved, and more may move; call again.
    Moved,
    /// Nothing more can move until a peer does something.
    Blocked {
        /// Something moved before that.
        moved: bool,
    },
}

/// Why an operation cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A link that is needed failed.
    Link(LinkError),
    /// A peer's frame belongs to another call than this rank's.
    Mismatch {
        /// The peer.
        peer: u32,
        /// What its frame says.
        theirs: Tag,
    },
    /// What a peer sent in this call has another length than this rank expects.
    Length {
        /// The peer.
        peer: u32,
        /// What this rank expects.
        expected_bytes: usize,
    },
    /// This rank's GPU failed.
    Device(CudaError),
}

/// A program with its memory, ready to run any number of times.
#[derive(Debug)]
pub struct Operation {
    program: Program,
    geometry: Geometry,
    /// What reduces, and what completes a result.
    kernels: Kernels,
    /// The size of an element, which is a power of two, as its logarithm: a division takes as long as much
    /// else of a small call.
    element_shift: u32,
    lanes: Vec<Lane>,
    peers: Vec<u32>,
    /// The first error of each peer's link, by position in `peers`.
    failures: Vec<Option<LinkError>>,
    scratch: Scratch,
    /// The program, where it is one small exchange.
    exchange: Option<Box<Exchange>>,
    /// The last look was at all links.
    is_thorough: bool,
    digest: u32,
    /// Peers may read this rank's memory in place. Not where a guard waits for what was sent: the
    /// peers' guards would wait for this rank's in turn.
    lends: bool,
    /// See [`Schedule::attaches`].
    attaches: bool,
    /// What a round of each variant of the program offers its peers when it begins.
    offers: Vec<Vec<Offer>>,
    tag: Tag,
    input: *const u8,
    output: *mut u8,
    /// Addresses of the slice in hand; kept so that nothing is allocated while running.
    sources: Vec<*const u8>,
    destinations: Vec<*mut u8>,
    /// For each send of the slice in hand: whether it goes through a slot.
    slotted: Vec<bool>,
}

// SAFETY: the addresses are used only inside `poll`, whose caller vouches for them.
unsafe impl Send for Operation {}

impl Operation {
    /// Prepares a program for `extent`; its lanes use the channels from `first_channel`,
    /// and its frames carry `digest`. Everything that the runs need is allocated here.
    pub fn new(
        program: Program,
        data_type: DataType,
        op: Op,
        extent: Extent,
        schedule: Schedule,
        first_channel: Channel,
        digest: u32,
    ) -> Operation {
        let element_bytes = data_type.size_bytes();
        let kernels = Kernels {
            partial: reduce::kernel(data_type, op.pass()),
            completing: reduce::kernel(data_type, op.completing_pass(program.ranks)),
        };
        let (chunks, scratch) = (program.chunks, &program.scratch);
        let geometry = Geometry::new(extent, element_bytes, chunks, scratch, schedule.round_bytes);
        let is_varied = extent == Extent::Varied;
        let lanes = lanes(extent, &geometry, schedule);
        let peers = peers(&program);
        let lends = !program.actions.iter().any(is_guard);
        let longest = geometry.longest_chunk_bytes();
        let is_worth_it = lends && (is_varied || longest >= LEAST_IN_PLACE_BYTES);
        Operation {
            scratch: Scratch::new(lanes * geometry.scratch_bytes()),
            lanes: (0..lanes)
                .map(|lane| Lane::new(lane, lanes, first_channel + lane, &program))
                .collect(),
            failures: vec![None; peers.len()],
            sources: Vec::with_capacity(program.ranks as usize + 1),
            destinations: Vec::with_capacity(program.ranks as usize + 1),
            slotted: Vec::with_capacity(program.ranks as usize),
            peers,
            geometry,
            kernels,
            element_shift: element_bytes.ilog2(),
            exchange: None,
            is_thorough: false,
            digest,
            lends,
            attaches: schedule.attaches,
            offers: (0..program.variants())
                .map(|variant| match is_worth_it {
                    true => offers(&program, variant),
                    false => Vec::new(),
                })
                .collect(),
            tag: Tag::default(),
            input: std::ptr::null(),
            output: std::ptr::null_mut(),
            program,
        }
    }

    /// The ranks that this rank exchanges messages with.
    pub fn peers(&self) -> &[u32] {
        &self.peers
    }

    /// Memory that it holds for what arrives before it can be reduced.
    pub fn scratch_bytes(&self) -> usize {
        size_of_val(&self.scratch.0[..])
    }

    /// Sets the lengths of blocks that differ, for the next run, and what its frames say about the call:
    /// see [`Geometry::vary`]. Allocates only where more scratch is needed than ever before.
    pub fn vary(&mut self, input: &[usize], output: &[usize], digest: u32) {
        self.geometry.vary(input, output);
        self.scratch.grow(self.lanes.len() * self.geometry.scratch_bytes());
        self.digest = digest;
    }

    /// Elements of whole ones in so many bytes.
    #[inline]
    fn elements(&self, bytes: usize) -> usize {
        bytes >> self.element_shift
    }

    /// What its frames say about the call.
    pub fn digest(&self) -> u32 {
        self.digest
    }

    /// Begins a run. In place is `input == output`.
    ///
    /// # Safety
    /// The program was lowered from a plan that the checker proves together with those of the other
    /// ranks, or is one message: that no two of its steps touch the same bytes at once is what the
    /// executor relies on.
    ///
    /// From here until `poll` has returned [`Status::Done`], or the links are dropped after an
    /// error, what the program names of `input` must be readable and of `output` writable, and nobody
    /// else may touch it; they are the same or do not overlap. Where it names some of the blocks only,
    /// the addresses are those that block 0 would have.
    pub unsafe fn start(
        &mut self,
        tag: Tag,
        input: *const u8,
        output: *mut u8,
        links: &mut [Option<Link>],
    ) {
        self.tag = tag;
        self.is_thorough = true;
        self.input = input;
        self.output = output;
        self.lanes.iter_mut().for_each(Lane::restart);
        let lanes = self.lanes.len();
        for &peer in &self.peers {
            if let Some(link) = &mut links[peer as usize] {
                link.divide(lanes);
                link.attach(self.attaches);
            }
        }
        self.failures.fill(None);
    }

    /// Moves what can be moved; before the first start it is done. `links` has an entry for each
    /// rank; those of [`Operation::peers`] must be there. `now_ns` is passed on to the links.
    ///
    /// # Errors
    /// A link that a lane waits for failed, or a peer called something else.
    #[inline]
    pub fn poll(&mut self, links: &mut [Option<Link>], now_ns: u64) -> Result<Status, Fault> {
        let status = self.try_poll(links, now_ns);
        if status.is_err() {
            links.iter_mut().flatten().for_each(Link::cancel_reserved);
        }
        status
    }

    #[inline]
    fn try_poll(&mut self, links: &mut [Option<Link>], now_ns: u64) -> Result<Status, Fault> {
        if let Some(mut exchange) = self.exchange.take() {
            let status = self.poll_exchange(&mut exchange, links, now_ns);
            self.exchange = Some(exchange);
            return status;
        }
        let mut done = true;
        let mut advanced = false;
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].is_done(self.geometry.rounds()) {
                continue;
            }
            advanced |= self.advance(lane, links)?;
            done &= self.lanes[lane].is_done(self.geometry.rounds());
        }
        if done {
            return Ok(Status::Done);
        }
        let links_moved = self.poll_links(links, now_ns, |_| false);
        // A single lane went as far as it could; one of several may have moved what another waits for.
        if links_moved || advanced && self.lanes.len() > 1 {
            return Ok(Status::Moved);
        }
        self.check_failures()?;
        Ok(Status::Blocked { moved: advanced })
    }

    /// Polls the links that a lane waits for or that have something to send, and every other time
    /// the rest, without those that have nothing to come (`is_quiet`): what comes there is not missed
    /// yet, and looking may cost a call to the kernel.
    fn poll_links(
        &mut self,
        links: &mut [Option<Link>],
        now_ns: u64,
        is_quiet: impl Fn(&Link) -> bool,
    ) -> bool {
        let mut moved = false;
        self.is_thorough = !self.is_thorough;
        for (index, &peer) in self.peers.iter().enumerate() {
            let Some(link) = &mut links[peer as usize] else { continue };
            let is_wanted = || self.lanes.iter().any(|lane| lane.blocked_on == Some(peer));
            let may_wait = !self.is_thorough || is_quiet(link);
            if may_wait && link.is_idle() && !is_wanted() {
                continue;
            }
            match link.poll(now_ns) {
                Ok(link_moved) => moved |= link_moved,
                // A peer that has finished may leave: its end matters only to a lane that waits
                // for it.
                Err(error) => self.failures[index] = Some(error),
            }
        }
        moved
    }

    /// The peers that lanes wait for, each once.
    pub fn waiting_for(&self) -> Vec<u32> {
        let mut peers: Vec<u32> = self.lanes.iter().filter_map(|lane| lane.blocked_on).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    /// A lane that waits for a peer whose link failed ends the operation.
    fn check_failures(&self) -> Result<(), Fault> {
        for lane in &self.lanes {
            let Some(peer) = lane.blocked_on else { continue };
            let index = self.peers.binary_search(&peer).unwrap_or(usize::MAX);
            if let Some(Some(error)) = self.failures.get(index) {
                return Err(Fault::Link(error.clone()));
            }
        }
        Ok(())
    }
}

/// The reductions of an operation.
#[derive(Clone, Copy, Debug)]
struct Kernels {
    /// For a result that goes on to be reduced.
    partial: Kernel,
    /// For a reduction that completes its result.
    completing: Kernel,
}

impl Kernels {
    #[inline]
    fn of(&self, completes: bool) -> &Kernel {
        if completes { &self.completing } else { &self.partial }
    }
}

/// How many lanes a schedule has use for.
fn lanes(extent: Extent, geometry: &Geometry, schedule: Schedule) -> usize {
    // How many rounds blocks of their own lengths take, each call tells.
    let rounds = if extent == Extent::Varied { u64::MAX } else { geometry.rounds() };
    rounds.min(schedule.lanes as u64).max(1) as usize
}

/// Whether an action waits until peers have consumed what was sent.
fn is_guard(action: &Action) -> bool {
    matches!(action, Action::Flush { .. } | Action::Move { guarded: true, .. })
}

/// Where a message of a peer is wanted, which may be written there from the round's beginning on.
#[derive(Clone, Copy, Debug)]
struct Offer {
    peer: u32,
    /// How many messages of the peer come before it in the round.
    ahead: u32,
    /// How many it sends in a round.
    a_round: u32,
    span: Span,
}

impl Offer {
    /// Whether it may be made before its round begins: scratch belongs to the round in hand; a part of the output to one
    /// round alone.
    fn may_be_ahead(&self) -> bool {
        self.span.space == Space::Output
    }
}

/// The messages of a round of a variant that go to one place, as they are.
fn offers(program: &Program, variant: usize) -> Vec<Offer> {
    let arrivals = arrivals(program, variant).into_iter();
    arrivals.filter_map(|(offer, is_placed)| is_placed.then_some(offer)).collect()
}

/// All messages that arrive in a round of a variant, and whether each goes to one place as it is, which its span is then;
/// else that has its length.
fn arrivals(program: &Program, variant: usize) -> Vec<(Offer, bool)> {
    let mut arrivals = Vec::new();
    let mut arrived = vec![0_u32; program.ranks as usize];
    for action in &program.actions[program.variant(variant)] {
        let Action::Move { first_source, sources, first_destination, shape, early, .. } = *action
        else {
            continue;
        };
        let sources = &program.sources[first_source as usize..][..sources as usize];
        let place = match (sources, program.destinations[first_destination as usize]) {
            ([Source::Arrival { .. }], Destination::Own(span)) if early => Some(span),
            _ => None,
        };
        debug_assert!(place.is_none_or(|span| span == shape));
        for source in sources {
            if let Source::Arrival { peer } = *source {
                let (ahead, span) = (arrived[peer as usize], place.unwrap_or(shape));
                arrivals.push((Offer { peer, ahead, a_round: 0, span }, place.is_some()));
                arrived[peer as usize] += 1;
            }
        }
    }
    for (offer, _) in &mut arrivals {
        offer.a_round = arrived[offer.peer as usize];
    }
    arrivals
}

/// Every peer of a program, in ascending order.
fn peers(program: &Program) -> Vec<u32> {
    let mut peers: Vec<u32> = Vec::new();
    for action in &program.actions {
        let Action::Move { first_source, sources, first_destination, destinations, .. } = *action
        else {
            continue;
        };
        let sources = &program.sources[first_source as usize..][..sources as usize];
        let destinations =
            &program.destinations[first_destination as usize..][..destinations as usize];
        peers.extend(sources.iter().filter_map(|source| match *source {
            Source::Arrival { peer } => Some(peer),
            Source::Own(_) => None,
        }));
        peers.extend(destinations.iter().filter_map(|destination| match *destination {
            Destination::Send { peer, .. } => Some(peer),
            _ => None,
        }));
    }
    peers.sort_unstable();
    peers.dedup();
    peers
}

/// Scratch memory of all lanes, aligned to cache lines.
#[derive(Debug)]
struct Scratch(Vec<CacheLine>);

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

impl Scratch {
    fn new(bytes: usize) -> Scratch {
        Scratch(vec![CacheLine([0; 64]); bytes.div_ceil(64)])
    }

    fn grow(&mut self, bytes: usize) {
        if bytes > 64 * self.0.len() {
            *self = Scratch::new(bytes);
        }
    }

    fn start(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
}
