//! Which algorithm, how many lanes, how long a round: one pure function of facts that all ranks
//! agree on, never of addresses, registration or place.

use std::fmt;
use std::sync::Arc;

use ringtree_plan::Collective;
use ringtree_transport::shm::BOARD_BYTES;

use crate::executor::Schedule;
use crate::{Algorithm, Costs, LinkCosts, NetworkFigures, RankOrder, Tuned};

/// What all ranks know of the machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Members of the communicator.
    pub ranks: u32,
    /// Hosts that they are on.
    pub hosts: u32,
    /// All of them share memory.
    pub shared_memory: bool,
    /// Those that do not are linked over RDMA, and not over TCP.
    pub rdma: bool,
    /// Ranks on the host that has most of them for its processors.
    pub local_ranks: u32,
    /// Processors that they may use.
    pub processors: u32,
    /// Ranks on the host that has fewest of them: so many of each host speak with other hosts at
    /// once in a hierarchical all-reduce.
    pub fewest_local_ranks: u32,
    /// Only algorithms that give the same bits as each other are taken.
    pub reproducible: bool,
    /// Buffers that come again and again are moved into large pages, on all hosts.
    pub large_pages: bool,
    /// What messages and sums cost: rank 0's table, with what is known of the ports between hosts.
    pub costs: Costs,
    /// Where its figures of the network between hosts come from.
    pub network_figures: NetworkFigures,
    /// What calls took among such ranks, if rank 0 has a table of that.
    pub tuned: Option<Arc<Tuned>>,
    /// The order of the ranks that the hosts' wiring says, if it says one.
    pub order: Option<Arc<RankOrder>>,
}

impl Shape {
    /// How many ranks share a processor, where it is most; at least 1.
    fn crowding(&self) -> f64 {
        (f64::from(self.local_ranks) / f64::from(self.processors.max(1))).max(1.0)
    }

    /// Whether ranks of one host share the way to others.
    fn has_hierarchy(&self) -> bool {
        self.hosts > 1 && self.ranks > self.hosts
    }

    /// What messages cost between ranks that share no memory.
    fn network(&self) -> LinkCosts {
        if self.rdma { self.costs.rdma } else { self.costs.tcp }
    }

    /// Whether only what folds in the order of the ranks will do.
    fn in_order_only(&self, collective: Collective) -> bool {
        self.reproducible && collective.is_reduction()
    }

    /// What was measured among just such ranks.
    fn measured(&self) -> Option<&Tuned> {
        self.tuned.as_deref().filter(|tuned| tuned.measured_on().is_like(self))
    }
}

/// All at once: send and receive, and plans that take one round.
pub(crate) const WHOLE: Schedule =
    Schedule { lanes: 1, round_bytes: usize::MAX / 4, attaches: true };

/// How a call is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Its lanes and rounds.
    pub schedule: Schedule,
}

/// Among more ranks, algorithms in which everyone exchanges with everyone are not chosen: a link
/// costs descriptors, memory and time at the start, and there would be one for each two ranks.
const MOST_RANKS_ALL_LINKED: u32 = 32;

/// Longer ordinary buffers go through slots where two or more ranks share each processor.
const MOST_ATTACHED_BYTES: u64 = 8 << 20;

/// Rounds of chains and trees, in which many are under way.
const PIPELINED_ROUND_BYTES: usize = 256 << 10;

/// One algorithm and the time that it is expected to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// How it would be carried out.
    pub choice: Choice,
    /// Time by the cost table, in seconds.
    pub predicted_s: f64,
    /// What it took when it was measured, in seconds.
    pub measured_s: Option<f64>,
}

impl Candidate {
    /// Expected time in seconds.
    pub fn expected_s(&self) -> f64 {
        self.measured_s.unwrap_or(self.predicted_s)
    }
}

/// The candidates of a call, best first, and why the first was taken.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Size of the buffer.
    pub bytes: u64,
    /// What is known of the machine.
    pub shape: Shape,
    /// All candidates, best first.
    pub candidates: Vec<Candidate>,
    /// The call named the algorithm itself.
    pub forced: bool,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wire = match (self.shape.shared_memory, self.shape.rdma) {
            (true, _) => "shared memory",
            (false, true) => "RDMA",
            (false, false) => "TCP",
        };
        let ranks = match self.shape.ranks {
            1 => "1 rank".into(),
            ranks => format!("{ranks} ranks"),
        };
        let is_measured = self.candidates.iter().any(|c| c.measured_s.is_some());
        let by = if is_measured { ", by measured times" } else { "" };
        writeln!(f, "{} bytes among {ranks} over {wire}{by}:", self.bytes)?;
        for (index, candidate) in self.candidates.iter().enumerate() {
            let Choice { algorithm, schedule } = candidate.choice;
            let mark = match (index, self.forced) {
                (0, true) => "  <- asked for",
                (0, false) => "  <- chosen",
                _ => "",
            };
            let round_bytes = (schedule.round_bytes as u64).min(self.bytes);
            let rounds = self.bytes.div_ceil(round_bytes.max(1)).max(1);
            let at_once = rounds.min(schedule.lanes as u64);
            let rounds = if rounds == 1 { "1 round".into() } else { format!("{rounds} rounds") };
            let predicted_us = candidate.predicted_s * 1e6;
            write!(f, "  {:<16} {predicted_us:>12.1} us", algorithm.name())?;
            match candidate.measured_s {
                Some(measured_s) => write!(f, ", measured {:>12.1} us", measured_s * 1e6)?,
                None if is_measured => write!(f, ", {:<24}", "not measured")?,
                None => {}
            }
            writeln!(f, "  {rounds} of {round_bytes} bytes, {at_once} at once{mark}")?;
        }
        if self.shape.hosts > 1 {
            let LinkCosts { bytes_per_s, latency_s, .. } = self.shape.network();
            let (speed_gbps, latency_us) = (bytes_per_s / 1e9, latency_s * 1e6);
            let source = match &self.shape.network_figures {
                NetworkFigures::Default => "the default figures".into(),
                NetworkFigures::Settings => "rank 0's settings".into(),
                NetworkFigures::Ports { rank, names } => format!("{names} of rank {rank}"),
            };
            writeln!(f, "Between hosts {speed_gbps:.2} GB/s, {latency_us:.1} us: by {source}")?;
        }
        if let Some(order) = &self.shape.order {
            let ranks: Vec<String> = order.ranks.iter().map(u32::to_string).collect();
            writeln!(
                f,
                "Rings, chains and trees take the ranks in the order {}:",
                ranks.join(" ")
            )?;
            if !order.other_rings.is_empty() {
                writeln!(f, "Lanes of rings and chains take it and these by turns:")?;
                for ring in &order.other_rings {
                    let ranks: Vec<String> = ring.iter().map(u32::to_string).collect();
                    writeln!(f, "  {}", ranks.join(" "))?;
                }
            }
            order.why().lines().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        Ok(())
    }
}

/// The choice for a call of `bytes`: what took least time where that was measured, else what should by
/// the cost table; `forced` names the algorithm instead.
pub fn choose(
    collective: Collective,
    bytes: u64,
    shape: &Shape,
    forced: Option<Algorithm>,
) -> Choice {
    best(candidates(collective, bytes, shape, forced, false), collective, bytes, shape)
}

/// As [`choose`], where blocks differ in length: plans that name several blocks as one span are out.
pub(crate) fn choose_varied(
    collective: Collective,
    bytes: u64,
    shape: &Shape,
    forced: Option<Algorithm>,
) -> Choice {
    best(candidates(collective, bytes, shape, forced, true), collective, bytes, shape)
}

fn best(
    candidates: impl Iterator<Item = Algorithm>,
    collective: Collective,
    bytes: u64,
    shape: &Shape,
) -> Choice {
    let better = |best: Option<Candidate>, algorithm: Algorithm| {
        let next = candidate(collective, algorithm, bytes, shape);
        Some(best.filter(|b| b.expected_s() <= next.expected_s()).unwrap_or(next))
    };
    candidates.fold(None, better).map_or_else(
        || candidate(collective, Algorithm::Dissemination, bytes, shape).choice,
        |candidate| candidate.choice,
    )
}

/// All candidates of a call with their times.
pub fn explain(
    collective: Collective,
    bytes: u64,
    shape: &Shape,
    forced: Option<Algorithm>,
) -> Explanation {
    let chosen_among = self::candidates(collective, bytes, shape, None, false);
    let mut algorithms: Vec<Algorithm> = chosen_among.collect();
    algorithms.extend(forced.filter(|forced| !algorithms.contains(forced)));
    let mut candidates: Vec<Candidate> =
        algorithms.into_iter().map(|a| candidate(collective, a, bytes, shape)).collect();
    candidates.sort_by(|a, b| {
        let is_other = |c: &Candidate| Some(c.choice.algorithm) != forced;
        is_other(a).cmp(&is_other(b)).then(a.expected_s().total_cmp(&b.expected_s()))
    });
    Explanation { bytes, shape: shape.clone(), candidates, forced: forced.is_some() }
}

/// `varied`: blocks differ in length.
fn candidates(
    collective: Collective,
    bytes: u64,
    shape: &Shape,
    forced: Option<Algorithm>,
    varied: bool,
) -> impl Iterator<Item = Algorithm> {
    let is_possible = move |a: &Algorithm| {
        let is_in_order = !shape.in_order_only(collective) || a.folds_in_rank_order(collective);
        a.serves(collective) && is_in_order && !(varied && a.takes_one_round(collective))
    };
    let is_measured =
        move |measured: &Tuned, a: &Algorithm| measured.time_s(collective, *a, bytes).is_some();
    let has_some = |measured: &&Tuned| {
        Algorithm::ALL.iter().any(|a| is_possible(a) && is_measured(measured, a))
    };
    let measured = shape.measured().filter(has_some);
    let fits = move |a: &Algorithm| match (forced, measured) {
        (Some(forced), _) => forced == *a,
        (None, Some(measured)) => is_measured(measured, a),
        (None, None) => is_eligible(collective, *a, shape) && is_promising(collective, *a, shape),
    };
    Algorithm::ALL.into_iter().filter(is_possible).filter(fits)
}

/// Whether an algorithm can be chosen for a collective, be it fast or not.
pub(crate) fn is_eligible(collective: Collective, algorithm: Algorithm, shape: &Shape) -> bool {
    // Where everyone must fold what everyone gives, there is nothing else.
    let may_link_all = shape.ranks <= MOST_RANKS_ALL_LINKED || shape.in_order_only(collective);
    let is_within_reach = match algorithm {
        Algorithm::Hierarchical => may_link_all || shape.has_hierarchy(),
        Algorithm::Star => may_link_all,
        // A block that goes to one rank only gains nothing by going around.
        Algorithm::Direct => {
            may_link_all || !matches!(collective, Collective::AllGather | Collective::ReduceScatter)
        }
        _ => may_link_all || !links_all(algorithm),
    };
    algorithm.serves(collective) && is_within_reach
}

/// Whether an algorithm may be best where nothing was measured: of some the prediction cannot tell.
fn is_promising(collective: Collective, algorithm: Algorithm, shape: &Shape) -> bool {
    let is_pair_over_tcp = shape.ranks == 2 && !shape.shared_memory && !shape.rdma;
    match algorithm {
        // Two ranks send as many bytes in one turn as in two, in which the wire rests between them:
        // 1 MiB takes 165 us instead of 238, 64 MiB 15.5 ms instead of 16.7.
        _ if is_pair_over_tcp && collective == Collective::AllReduce => {
            matches!(algorithm, Algorithm::Doubling | Algorithm::OneShot)
        }
        Algorithm::Hierarchical => shape.has_hierarchy(),
        // Two trees of three ranks are two chains, of half of the buffer each.
        Algorithm::DoubleTree if collective.root().is_some() => shape.ranks > 3,
        // Ranks that take turns on their processors come out of one exchange in one turn each, and
        // out of dissemination in several. With a processor each they come out of either together.
        Algorithm::OneShot if collective == Collective::Barrier => shape.crowding() > 1.0,
        // Among three ranks on two processors each waits for one peer after the other anyway: 27 us instead of 41 at 4 KiB,
        // 6.1 ms instead of 6.9 at 16 MiB.
        Algorithm::Direct if collective == Collective::AllToAll && !shape.shared_memory => {
            shape.ranks != 3 || shape.crowding() == 1.0
        }
        // One rank has most of the work and a link to each other one; processors that nobody shares
        // would rest meanwhile.
        Algorithm::Star => shape.crowding() > 1.0,
        _ => true,
    }
}

/// Whether everyone exchanges with everyone.
fn links_all(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::OneShot | Algorithm::TwoShot)
}

fn candidate(collective: Collective, algorithm: Algorithm, bytes: u64, shape: &Shape) -> Candidate {
    let schedule = schedule(collective, algorithm, bytes, shape);
    let runs = f64::from(algorithm.runs_per_call(collective));
    let predicted_s = runs * predict(collective, algorithm, bytes as f64, shape);
    let measured = shape.measured();
    let measured_s = measured.and_then(|measured| measured.time_s(collective, algorithm, bytes));
    Candidate { choice: Choice { algorithm, schedule }, predicted_s, measured_s }
}

/// Expected time: messages that wait for one another, and the processor's time for what a rank sends
/// on average, copies and folds. Ranks of one host share its memory, so that there everyone's bytes
/// count; ranks of one processor share its time.
fn predict(collective: Collective, algorithm: Algorithm, bytes: f64, shape: &Shape) -> f64 {
    let Costs { shm, published_s, reduced_bytes_per_s, .. } = shape.costs;
    let network = shape.network();
    let costs = if shape.shared_memory { shm } else { network };
    let crowding = shape.crowding();
    let n = f64::from(shape.ranks);
    let depth = f64::from(depth(shape.ranks));
    let part = (n - 1.0) / n;
    let hosts = f64::from(shape.hosts.max(1));
    let reduced_once = |share: f64| if collective.is_reduction() { share } else { 0.0 };
    let is_published =
        algorithm.is_one_exchange() && shape.shared_memory && bytes <= BOARD_BYTES as f64;
    // Of what takes `alone` times the buffer's size one after the other, and what each rank moves for it:
    // the rounds of a large buffer are under way together, and so are the ranks of a processor.
    let rounds = (bytes / PIPELINED_ROUND_BYTES as f64).ceil().max(1.0);
    let in_rounds =
        |alone: f64, each: f64| ((alone + (rounds - 1.0) * each) / rounds / crowding).max(each);
    let (turns, messages, moved, reduced) = match algorithm {
        Algorithm::Ring if collective.is_of_blocks() => {
            (n - 1.0, n - 1.0, part, reduced_once(part))
        }
        // All bytes but the root's own are of one rank, however many processors there are.
        Algorithm::Direct if collective.root().is_some() => {
            (1.0, ((n - 1.0) / crowding).max(2.0 * part), part, 0.0)
        }
        // Several read the same memory at once.
        Algorithm::Direct if collective == Collective::AllGather => (1.0, n - 1.0, 1.2 * part, 0.0),
        // From several at once, which come in each other's way.
        Algorithm::Direct if collective == Collective::AllToAll && !shape.shared_memory => {
            (1.0, n - 1.0, 1.05 * part, 0.0)
        }
        Algorithm::Direct => (1.0, n - 1.0, part, reduced_once(part)),
        Algorithm::Pairwise => (n - 1.0, n - 1.0, part, 0.0),
        Algorithm::Ring => (2.0 * (n - 1.0), 2.0 * (n - 1.0), 2.0 * part, part),
        Algorithm::DoubleTree if collective.root().is_some() => {
            // Of two halves: one to each tree, and two children a level below.
            let below = (n.max(3.0) - 1.0).log2().floor();
            let each = if collective.is_reduction() { 1.3 * part } else { 1.1 * part };
            let moved = in_rounds(0.5 + below, each);
            (below + 1.0, 4.0 * part, moved, reduced_once(moved))
        }
        Algorithm::DoubleTree => (2.0 * depth + 2.0, 4.0 * part, 3.0, 1.5),
        // It folds what has come as a whole, and puts it aside.
        Algorithm::HalvingDoubling if collective == Collective::ReduceScatter => {
            (depth, depth, 1.25 * part, part)
        }
        // Its last message is half of all.
        Algorithm::HalvingDoubling if collective == Collective::AllGather => {
            (depth, depth, 1.05 * part, 0.0)
        }
        Algorithm::HalvingDoubling => (2.0 * depth, 2.0 * depth, 2.0 * part, part),
        Algorithm::Chain => {
            let moved = in_rounds(n - 1.0, part);
            (n - 1.0, part, moved, reduced_once(moved))
        }
        Algorithm::Tree if collective.is_of_blocks() => (depth, depth, 1.5 * part, 0.0),
        Algorithm::Doubling => (depth, depth, depth, depth),
        // What is published stays in the caches.
        Algorithm::OneShot if is_published => (1.0, n - 1.0, 0.4 * (n - 1.0), n - 1.0),
        Algorithm::OneShot => (1.0, n - 1.0, n - 1.0, n - 1.0),
        // All parts go to one rank in the end, and into its memory.
        Algorithm::TwoShot if collective.root().is_some() => (2.0, n, 1.6, part),
        Algorithm::TwoShot => (2.0, 2.0 * (n - 1.0), 2.0 * part, part),
        Algorithm::Tree => {
            // Nobody sends while it waits for what it will send several times.
            let moved = (depth / crowding).max(1.2 * part);
            // Whoever folds what several give must have its processor again for each.
            let takes_turns = collective.is_reduction() && crowding > 1.0;
            let messages = if takes_turns { 1.5 } else { part };
            (depth, messages, moved, reduced_once(moved))
        }
        Algorithm::Star => {
            // One rank does half of it, however many processors there are. All bytes come from
            // other ranks' caches and go to them: they take half as long again.
            let most = (n - 1.0) / crowding;
            let messages = most.max(2.0 * part);
            (2.0, messages, 1.5 * messages, most)
        }
        Algorithm::Dissemination => (depth, depth, depth, 0.0),
        Algorithm::Hierarchical => {
            // Those who speak for a host of many ranks have most to do: at worst all that exceed
            // the fewest are on one host.
            let parts = f64::from(shape.fewest_local_ranks.max(1));
            let most = n - (hosts - 1.0) * parts;
            let between = (hosts - 1.0) / hosts / parts;
            let inside = (most - 1.0) / parts;
            (
                2.0 * hosts,
                2.0 * (most - 1.0) + 2.0 * (hosts - 1.0),
                2.0 * inside + 2.0 * between,
                inside + between,
            )
        }
    };
    let message_s = if is_published { published_s } else { costs.message_s };
    let turn_s = if crowding > 1.0 { crowding * costs.turn_s } else { 0.0 };
    // What leaves a host, of all its ranks together; and what stays moves as within one host.
    let (across, inside_bytes_per_s) = if shape.has_hierarchy() {
        (leaving(algorithm, n, hosts, moved), shm.bytes_per_s)
    } else {
        (0.0, costs.bytes_per_s)
    };
    turns * (costs.latency_s + turn_s)
        + across * bytes / network.bytes_per_s
        + crowding
            * (messages * message_s
                + moved * bytes / inside_bytes_per_s
                + reduced * bytes / reduced_bytes_per_s)
}

/// How much of the buffer's size leaves a host when its ranks, each of which sends `moved`, are
/// neighbours.
fn leaving(algorithm: Algorithm, n: f64, hosts: f64, moved: f64) -> f64 {
    let locals = n / hosts;
    match algorithm {
        // Only the last rank of a host has its neighbour elsewhere.
        Algorithm::Ring | Algorithm::Chain => moved,
        Algorithm::Hierarchical => 2.0 * (hosts - 1.0) / hosts,
        Algorithm::Doubling | Algorithm::Dissemination => locals * hosts.log2().ceil(),
        Algorithm::DoubleTree | Algorithm::Tree => moved,
        // The first turns, in which most is sent, go farthest.
        Algorithm::HalvingDoubling => locals * moved * (hosts - 1.0) / hosts,
        // To and from the host of the one that everyone speaks with.
        Algorithm::Star => n - locals,
        Algorithm::OneShot | Algorithm::TwoShot | Algorithm::Direct | Algorithm::Pairwise => {
            locals * moved * (n - locals) / (n - 1.0)
        }
    }
}

/// How often the ranks can be halved until one is left.
fn depth(ranks: u32) -> u32 {
    ranks.max(1).next_power_of_two().trailing_zeros()
}

/// Lanes and rounds of an algorithm.
fn schedule(collective: Collective, algorithm: Algorithm, bytes: u64, shape: &Shape) -> Schedule {
    if algorithm.takes_one_round(collective) {
        return WHOLE;
    }
    let depth = depth(shape.ranks) as usize;
    // Among ranks that take turns on their processors copying is faster for large buffers that stay in
    // small pages: 128 MiB of 4 ranks on 2 processors take 72 ms by slots, 88 in place, and 65 in
    // place where the pages are large.
    let attaches = shape.crowding() < 2.0 || shape.large_pages || bytes <= MOST_ATTACHED_BYTES;
    let (lanes, round_bytes) = match algorithm {
        // All links of a chain are busy when as many rounds are under way.
        Algorithm::Chain => ((shape.ranks as usize).clamp(2, 16), PIPELINED_ROUND_BYTES),
        // Each ring has a lane.
        Algorithm::Ring => {
            let rings = shape.order.as_ref().map_or(1, |order| order.rings().count());
            (rings.max(2), 1 << 20)
        }
        // Trees need twice their depth in flight to keep every level busy.
        Algorithm::DoubleTree => ((2 * depth).clamp(2, 16), PIPELINED_ROUND_BYTES),
        Algorithm::Tree => (depth.clamp(2, 8), PIPELINED_ROUND_BYTES),
        // Peers read one another in place, in pieces that stay in cache, however long a round is; its
        // end is what they wait for. With several rounds that matters less than that a round by slots
        // stays in cache, too, which is how it goes where peers turn out not to let each other in.
        Algorithm::TwoShot | Algorithm::Direct | Algorithm::Pairwise
            if shape.shared_memory && attaches =>
        {
            (2, if bytes <= MOST_ATTACHED_BYTES { 8 << 20 } else { 2 << 20 })
        }
        _ => (2, 1 << 20),
    };
    Schedule { lanes, round_bytes, attaches }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_host() -> Shape {
        Shape {
            ranks: 2,
            hosts: 1,
            shared_memory: true,
            rdma: false,
            local_ranks: 2,
            processors: 2,
            fewest_local_ranks: 2,
            reproducible: false,
            large_pages: false,
            costs: Costs::default(),
            network_figures: NetworkFigures::Default,
            tuned: None,
            order: None,
        }
    }

    fn chosen(bytes: u64, ranks: u32, processors: u32, shared_memory: bool) -> Algorithm {
        let shape = Shape { ranks, shared_memory, local_ranks: ranks, processors, ..one_host() };
        choose(Collective::AllReduce, bytes, &shape, None).algorithm
    }

    #[test]
    fn a_tiny_message_takes_one_exchange_where_it_is_published_once() {
        for ranks in [2, 4, 8, 16, 32] {
            assert_eq!(chosen(8, ranks, 2, true), Algorithm::OneShot);
        }
    }

    #[test]
    fn ranks_that_share_processors_send_fewer_messages() {
        for ranks in [4, 8, 16, 32] {
            assert_eq!(chosen(8, ranks, 2, false), Algorithm::Star);
            assert_ne!(chosen(8, ranks, ranks, false), Algorithm::Star);
        }
        assert_eq!(chosen(8, 3, 2, false), Algorithm::Star);
        assert_eq!(chosen(64 << 10, 4, 2, false), Algorithm::Star);
        assert_eq!(chosen(1 << 20, 4, 2, false), Algorithm::HalvingDoubling);
        assert_eq!(chosen(16 << 10, 16, 2, true), Algorithm::Star);
        assert_eq!(chosen(64 << 20, 4, 2, true), Algorithm::TwoShot);
    }

    #[test]
    fn two_ranks_over_tcp_exchange_all_in_one_turn() {
        for bytes in [8, 64 << 10, 1 << 20, 1 << 30] {
            assert!(matches!(chosen(bytes, 2, 2, false), Algorithm::Doubling | Algorithm::OneShot));
        }
    }

    #[test]
    fn a_barrier_takes_one_exchange_where_ranks_take_turns_and_publish() {
        for (ranks, processors, shared_memory, algorithm) in [
            (4, 2, true, Algorithm::OneShot),
            (16, 2, true, Algorithm::OneShot),
            (2, 2, true, Algorithm::Dissemination),
            (4, 4, true, Algorithm::Dissemination),
            (4, 2, false, Algorithm::Dissemination),
        ] {
            let shape =
                Shape { ranks, local_ranks: ranks, processors, shared_memory, ..one_host() };
            assert_eq!(choose(Collective::Barrier, 0, &shape, None).algorithm, algorithm);
        }
    }

    #[test]
    fn many_ranks_are_not_all_linked_to_each_other() {
        for bytes in [8, 4096, 1 << 20, 1 << 30] {
            for shared_memory in [true, false] {
                assert!(!links_all(chosen(bytes, 64, 64, shared_memory)), "{bytes}");
            }
        }
        let shape = Shape { ranks: 256, local_ranks: 256, ..one_host() };
        let barrier = choose(Collective::Barrier, 0, &shape, None);
        assert_eq!(barrier.algorithm, Algorithm::Dissemination);
    }

    #[test]
    fn between_hosts_of_several_ranks_as_little_as_possible_is_sent() {
        let shape = Shape {
            ranks: 8,
            hosts: 2,
            shared_memory: false,
            rdma: false,
            local_ranks: 4,
            processors: 4,
            fewest_local_ranks: 4,
            ..one_host()
        };
        let large = choose(Collective::AllReduce, 64 << 20, &shape, None);
        assert_eq!(large.algorithm, Algorithm::Hierarchical);
        // One that speaks for seven others would have too much to do.
        let uneven =
            Shape { local_ranks: 7, processors: 7, fewest_local_ranks: 1, ..shape.clone() };
        let one_each = Shape { hosts: 8, local_ranks: 1, fewest_local_ranks: 1, ..shape };
        for shape in [uneven, one_each] {
            let large = choose(Collective::AllReduce, 64 << 20, &shape, None);
            assert_ne!(large.algorithm, Algorithm::Hierarchical, "{shape:?}");
        }
    }

    #[test]
    fn large_buffers_of_ranks_that_take_turns_are_not_reached_in_place() {
        let attaches = |ranks, bytes| {
            let shape = Shape { ranks, local_ranks: ranks, ..one_host() };
            choose(Collective::AllReduce, bytes, &shape, None).schedule.attaches
        };
        assert!(attaches(2, 1 << 30) && attaches(4, 1 << 20));
        assert!(!attaches(4, 16 << 20));
        // Unless they are moved into large pages.
        let shape = Shape { ranks: 4, local_ranks: 4, large_pages: true, ..one_host() };
        assert!(choose(Collective::AllReduce, 16 << 20, &shape, None).schedule.attaches);
    }

    #[test]
    fn reproducible_is_what_folds_in_the_order_of_the_ranks() {
        for ranks in [2, 4, 8, 100] {
            let shape = Shape { ranks, local_ranks: ranks, reproducible: true, ..one_host() };
            for collective in Collective::all(0).into_iter().filter(|c| c.is_reduction()) {
                for bytes in [8, 4096, 1 << 16, 1 << 20, 1 << 30] {
                    let algorithm = choose(collective, bytes, &shape, None).algorithm;
                    assert!(algorithm.folds_in_rank_order(collective), "{collective:?} {bytes}");
                }
            }
        }
    }

    #[test]
    fn an_algorithm_that_was_asked_for_is_explained_first() {
        let shape = Shape { ranks: 64, local_ranks: 64, ..one_host() };
        let forced = Some(Algorithm::OneShot);
        let explanation = explain(Collective::AllReduce, 8, &shape, forced);
        assert_eq!(explanation.candidates[0].choice.algorithm, Algorithm::OneShot);
        let others = explain(Collective::AllReduce, 8, &shape, None).candidates;
        assert!(others.iter().all(|c| c.choice.algorithm != Algorithm::OneShot));
    }
}
