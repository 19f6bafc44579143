//! One collective call on a simulated network: the real executor of every rank, driven by one
//! thread on virtual time.

use ringtree::executor::{Extent, Fault, Operation, Schedule, Status};
use ringtree::{Algorithm, Collective, DataType, Op};
use ringtree_plan::{Places, lower};
use ringtree_transport::shm::{BOARD_BYTES, Board};
use ringtree_transport::sim::Network;
use ringtree_transport::{Link, LinkError, Tag};

/// Rounds of polls in which something may move while the clock stands still. Every round with a
/// movement ends at least one of a few thousand link operations; more than this is a livelock.
const POLLS_AT_ONE_INSTANT: usize = 100_000;

/// What nobody has written; no input and no result is negative.
const UNWRITTEN: f32 = -1.0;

const TAG: Tag = Tag { sequence: 1, digest: 5 };

/// The schedule of an exchange at once, and of what may become one.
pub const AT_ONCE: Schedule = Schedule { lanes: 1, round_bytes: BOARD_BYTES, attaches: true };

/// The schedule of plans that take one round.
pub const ONE_ROUND: Schedule = Schedule { lanes: 1, round_bytes: usize::MAX / 4, attaches: true };

/// One collective call of `f32` by sum, the same on every rank.
#[derive(Clone, Debug)]
pub struct Case {
    /// What carries it out.
    pub algorithm: Algorithm,
    /// What it does.
    pub collective: Collective,
    /// The host of each rank; there are as many ranks.
    pub hosts: Vec<u32>,
    /// Elements of the buffer, or of a block where there are blocks.
    pub count: usize,
    /// Its rounds and lanes.
    pub schedule: Schedule,
    /// Whether it is carried out as an exchange at once, if it can be.
    pub at_once: bool,
    /// One buffer, or two.
    pub in_place: bool,
    /// Whether frames have checksums.
    pub checksums: bool,
    /// How long a rank waits without progress.
    pub timeout_ns: u64,
}

/// How a rank's call ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// With this output.
    Values(Vec<f32>),
    /// A link that it needed failed.
    Link(LinkError),
    /// Its deadline passed.
    TimedOut {
        /// Whom it waited for.
        waiting_for: Vec<u32>,
    },
    /// It found that a peer made another call.
    Mismatch {
        /// That one.
        peer: u32,
    },
}

/// What happens to the network at a time, whether its ranks do anything or not.
#[derive(Clone, Copy, Debug)]
pub enum Incident {
    /// A rank is killed.
    Kill(u32),
    /// The link between two ranks is cut.
    Cut(u32, u32),
}

impl Outcome {
    /// Whether the call has no result.
    pub fn is_error(&self) -> bool {
        !matches!(self, Outcome::Values(_))
    }
}

/// Inputs whose sums are exact.
pub fn exact(rank: usize, index: usize) -> f32 {
    ((rank + 1) * (index % 17 + 1)) as f32
}

impl Case {
    /// Runs the call on every rank, with inputs of `value`s, and lets time go on when none moves.
    /// `incidents` are in the order of their times in ns.
    ///
    /// # Panics
    /// If something moves for ever.
    pub fn run(
        &self,
        network: &Network,
        incidents: &[(u64, Incident)],
        value: impl Fn(usize, usize) -> f32,
    ) -> Vec<Outcome> {
        let mut ranks: Vec<Rank> =
            (0..self.ranks()).map(|rank| Rank::new(self, rank, network, &value)).collect();
        ranks.iter_mut().for_each(Rank::start);
        let mut incidents = incidents.iter().peekable();
        let mut polls = 0;
        loop {
            let now_ns = network.now_ns();
            let moved = ranks.iter_mut().fold(false, |moved, rank| rank.poll(now_ns) | moved);
            let waiting = ranks.iter().filter(|rank| rank.outcome.is_none());
            let Some(deadline_ns) = waiting.map(Rank::deadline_ns).min() else {
                return ranks.into_iter().filter_map(|rank| rank.outcome).collect();
            };
            polls += 1;
            assert!(polls < POLLS_AT_ONE_INSTANT, "something moves for ever at {now_ns} ns");
            if moved {
                continue;
            }
            polls = 0;
            let event_ns = network.next_event_ns().unwrap_or(u64::MAX).min(deadline_ns);
            match incidents.next_if(|(at_ns, _)| *at_ns <= event_ns) {
                Some((at_ns, incident)) => {
                    network.advance_to(*at_ns);
                    incident.happen(network);
                }
                None => network.advance_to(event_ns),
            }
        }
    }

    /// Whoever has a result has the right one, and nobody blames another for a call it did not
    /// make.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self, outcomes: &[Outcome]) -> Result<(), String> {
        for (rank, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Outcome::Values(values) => {
                    let expected = self.expected(rank);
                    let same = values.iter().zip(&expected).take_while(|(a, b)| a == b).count();
                    if *values != expected {
                        let (got, wanted) = (values.get(same), expected.get(same));
                        return Err(format!(
                            "rank {rank} has a wrong result: {got:?} at {same}, not {wanted:?}"
                        ));
                    }
                }
                Outcome::Mismatch { peer } => {
                    return Err(format!("rank {rank} suspects rank {peer} of another call"));
                }
                Outcome::TimedOut { waiting_for } if waiting_for.is_empty() => {
                    return Err(format!("rank {rank} waited for nobody until its deadline"));
                }
                Outcome::Link(_) | Outcome::TimedOut { .. } => {}
            }
        }
        Ok(())
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> u32 {
        self.hosts.len() as u32
    }

    /// What the output of a rank holds in the end.
    fn expected(&self, rank: usize) -> Vec<f32> {
        let value = |index: usize| {
            let block = if self.collective.is_of_blocks() { index / self.count } else { 0 };
            if !self.collective.is_got(rank as u32, block as u32) {
                return if self.in_place { exact(rank, index) } else { UNWRITTEN };
            }
            match self.collective {
                Collective::Broadcast { root } | Collective::Scatter { root } => {
                    exact(root as usize, index)
                }
                Collective::AllGather | Collective::Gather { .. } => exact(block, index),
                Collective::AllToAll => exact(block, rank * self.count + index % self.count),
                Collective::Barrier => unreachable!("a barrier has no elements"),
                _ => (0..self.hosts.len()).map(|rank| exact(rank, index)).sum(),
            }
        };
        (0..self.buffer_count()).map(value).collect()
    }

    /// Elements of the buffers, which are as long on all ranks.
    fn buffer_count(&self) -> usize {
        match self.collective {
            Collective::Barrier => 0,
            blocks if blocks.is_of_blocks() => self.count * self.hosts.len(),
            _ => self.count,
        }
    }
}

impl Incident {
    fn happen(self, network: &Network) {
        match self {
            Incident::Kill(rank) => network.kill(rank),
            Incident::Cut(a, b) => network.cut(a, b),
        }
    }
}

/// One rank: its executor, its links and its memory.
struct Rank {
    operation: Operation,
    links: Vec<Option<Link>>,
    board: Board,
    input: Vec<f32>,
    output: Vec<f32>,
    in_place: bool,
    /// Runs of the operation that are to come.
    runs_left: u32,
    timeout_ns: u64,
    moved_ns: u64,
    outcome: Option<Outcome>,
}

impl Rank {
    fn new(case: &Case, rank: u32, network: &Network, value: impl Fn(usize, usize) -> f32) -> Rank {
        let program =
            lower(&case.algorithm.plan_on(case.collective, rank, &Places::on(&case.hosts)));
        let count = case.buffer_count();
        let extent = match case.collective.is_of_blocks() {
            true => Extent::Blocks(case.count as u64),
            false => Extent::Whole(count as u64),
        };
        let (data_type, op, schedule) = (DataType::F32, Op::Sum, case.schedule);
        let mut operation = Operation::new(program, data_type, op, extent, schedule, 0, TAG.digest);
        if case.at_once {
            operation.exchange_at_once();
        }
        let mut links: Vec<Option<Link>> = (0..case.ranks()).map(|_| None).collect();
        for &peer in operation.peers() {
            let link = Link::Sim(network.link(rank, peer));
            links[peer as usize] = Some(if case.checksums { link.with_checksums() } else { link });
        }
        Rank {
            operation,
            links,
            board: Board::new().expect("memory and a descriptor"),
            input: (0..count).map(|index| value(rank as usize, index)).collect(),
            output: vec![UNWRITTEN; count],
            in_place: case.in_place,
            runs_left: case.algorithm.runs_per_call(case.collective),
            timeout_ns: case.timeout_ns,
            moved_ns: 0,
            outcome: None,
        }
    }

    fn start(&mut self) {
        let output = self.output.as_mut_ptr();
        let input = if self.in_place {
            self.output.copy_from_slice(&self.input);
            output.cast_const()
        } else {
            self.input.as_ptr()
        };
        self.runs_left -= 1;
        // SAFETY: both vectors stay as they are until the operation is done or `end` has dropped
        // the links.
        unsafe {
            let (links, board) = (&mut self.links, &mut self.board);
            self.operation.start_with(TAG, input.cast(), output.cast(), links, board);
        }
    }

    fn deadline_ns(&self) -> u64 {
        self.moved_ns + self.timeout_ns
    }

    /// Returns whether anything moved; an end is a movement.
    fn poll(&mut self, now_ns: u64) -> bool {
        if self.outcome.is_some() {
            return false;
        }
        let outcome = match self.operation.poll(&mut self.links, now_ns) {
            Ok(Status::Done) if self.runs_left > 0 => {
                self.start();
                self.moved_ns = now_ns;
                return true;
            }
            Ok(Status::Done) => Outcome::Values(self.output.clone()),
            Ok(Status::Moved | Status::Blocked { moved: true }) => {
                self.moved_ns = now_ns;
                return true;
            }
            Ok(Status::Blocked { .. }) if now_ns < self.deadline_ns() => return false,
            Ok(Status::Blocked { .. }) => {
                Outcome::TimedOut { waiting_for: self.operation.waiting_for() }
            }
            Err(Fault::Link(error)) => Outcome::Link(error),
            Err(Fault::Mismatch { peer, .. } | Fault::Length { peer, .. }) => {
                Outcome::Mismatch { peer }
            }
            Err(Fault::Device(error)) => unreachable!("no GPU takes part: {error}"),
        };
        self.end(outcome);
        true
    }

    /// The call returns: after an error the links go, and the caller uses its memory for other
    /// things, which must not reach anyone.
    fn end(&mut self, outcome: Outcome) {
        if outcome.is_error() {
            self.links.clear();
        }
        self.input.fill(f32::NAN);
        self.output.fill(f32::NAN);
        self.outcome = Some(outcome);
    }
}
