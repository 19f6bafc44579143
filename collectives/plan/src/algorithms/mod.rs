//! The algorithms: pure functions that write plans.

use std::fmt;

use crate::{Collective, Machine, Places, Plan, Space, Span, Step, Work};

pub(crate) use symmetry::Symmetry;

mod chain;
mod direct;
mod dissemination;
mod double_tree;
mod doubling;
mod halving_doubling;
mod hierarchical;
mod one_shot;
mod pairwise;
mod ring;
mod star;
mod symmetry;
mod tree;
mod two_shot;

/// How a collective is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Algorithm {
    /// All-reduce, reduce-scatter or all-gather around a ring.
    Ring = 1,
    /// All-reduce, broadcast or reduction over two binary trees.
    DoubleTree = 2,
    /// All-reduce by recursive doubling.
    Doubling = 3,
    /// All-reduce: everyone sends all to all and reduces. Barrier: everyone tells everyone.
    OneShot = 4,
    /// All-reduce or reduction: each rank reduces its part from all and sends it to all, or to the root.
    TwoShot = 5,
    /// Broadcast or scatter down a binomial tree, reduction or gather up.
    Tree = 6,
    /// Barrier by dissemination.
    Dissemination = 7,
    /// All-reduce inside hosts, between them, and inside.
    Hierarchical = 8,
    /// All-reduce: everyone sends all to one rank, which reduces and sends it back.
    Star = 9,
    /// All-gather, reduce-scatter, all-to-all, gather and scatter: each block goes straight to where it is wanted.
    Direct = 10,
    /// All-to-all in pairs.
    Pairwise = 11,
    /// All-reduce, reduce-scatter or all-gather by halves and doubles.
    HalvingDoubling = 12,
    /// Broadcast down a chain, or reduction up.
    Chain = 13,
}

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Algorithm; 13] = [
        Algorithm::Ring,
        Algorithm::DoubleTree,
        Algorithm::Doubling,
        Algorithm::OneShot,
        Algorithm::TwoShot,
        Algorithm::Tree,
        Algorithm::Dissemination,
        Algorithm::Hierarchical,
        Algorithm::Star,
        Algorithm::Direct,
        Algorithm::Pairwise,
        Algorithm::HalvingDoubling,
        Algorithm::Chain,
    ];

    /// Name on the command line and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Ring => "ring",
            Algorithm::DoubleTree => "double-tree",
            Algorithm::Doubling => "doubling",
            Algorithm::OneShot => "one-shot",
            Algorithm::TwoShot => "two-shot",
            Algorithm::Tree => "tree",
            Algorithm::Dissemination => "dissemination",
            Algorithm::Hierarchical => "hierarchical",
            Algorithm::Star => "star",
            Algorithm::Direct => "direct",
            Algorithm::Pairwise => "pairwise",
            Algorithm::HalvingDoubling => "halving-doubling",
            Algorithm::Chain => "chain",
        }
    }

    /// The algorithm with a number, as records carry it.
    pub fn from_number(number: u8) -> Option<Algorithm> {
        Self::ALL.into_iter().find(|a| *a as u8 == number)
    }

    /// The algorithm with a name.
    pub fn from_name(name: &str) -> Option<Algorithm> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    /// Whether the algorithm carries out this collective.
    pub const fn serves(self, collective: Collective) -> bool {
        match self {
            Algorithm::Ring | Algorithm::HalvingDoubling => matches!(
                collective,
                Collective::AllReduce | Collective::AllGather | Collective::ReduceScatter
            ),
            Algorithm::Tree => matches!(
                collective,
                Collective::Broadcast { .. }
                    | Collective::Reduce { .. }
                    | Collective::Gather { .. }
                    | Collective::Scatter { .. }
            ),
            Algorithm::Chain => {
                matches!(collective, Collective::Broadcast { .. } | Collective::Reduce { .. })
            }
            Algorithm::DoubleTree => matches!(
                collective,
                Collective::AllReduce | Collective::Broadcast { .. } | Collective::Reduce { .. }
            ),
            Algorithm::TwoShot => {
                matches!(collective, Collective::AllReduce | Collective::Reduce { .. })
            }
            Algorithm::Direct => matches!(
                collective,
                Collective::AllGather
                    | Collective::ReduceScatter
                    | Collective::Gather { .. }
                    | Collective::Scatter { .. }
                    | Collective::AllToAll
            ),
            Algorithm::Pairwise => matches!(collective, Collective::AllToAll),
            Algorithm::Dissemination => matches!(collective, Collective::Barrier),
            Algorithm::OneShot => matches!(collective, Collective::AllReduce | Collective::Barrier),
            _ => matches!(collective, Collective::AllReduce),
        }
    }

    /// Whether the plans of all ranks are one exchange: each gives one span to all others, takes
    /// one message from each, and at most folds them. Then a message may be put once where all see
    /// it.
    pub const fn is_one_exchange(self) -> bool {
        matches!(self, Algorithm::OneShot)
    }

    /// Whether plans of blocks name spans of several of them, so that there can be only one round: in
    /// several, only a part of each block belongs to a round.
    pub const fn takes_one_round(self, collective: Collective) -> bool {
        collective.is_of_blocks() && matches!(self, Algorithm::HalvingDoubling | Algorithm::Tree)
    }

    /// Whether every result of a reduction is one fold over all ranks, in their order and rounded once.
    /// Such algorithms give the same bits as each other, whatever the size, the rounds and the hosts.
    pub const fn folds_in_rank_order(self, collective: Collective) -> bool {
        match collective {
            Collective::AllReduce => {
                matches!(self, Algorithm::OneShot | Algorithm::TwoShot | Algorithm::Star)
            }
            Collective::Reduce { .. } => matches!(self, Algorithm::TwoShot),
            Collective::ReduceScatter => matches!(self, Algorithm::Direct),
            _ => false,
        }
    }

    /// How often in a row a call carries the plan out. A barrier of one exchange takes two: by the
    /// first a rank learns that all have come, and by the second that all have learned it. Else one
    /// might leave while another finds, in what has come to it, that their calls do not match.
    pub const fn runs_per_call(self, collective: Collective) -> u32 {
        match (self, collective) {
            (Algorithm::OneShot, Collective::Barrier) => 2,
            _ => 1,
        }
    }

    /// Writes the plan of `rank` among `ranks`.
    ///
    /// # Panics
    /// If the algorithm does not serve the collective, or a rank is not below `ranks`.
    pub fn plan(self, collective: Collective, rank: u32, ranks: u32) -> Plan {
        assert!(self.serves(collective), "{self} does not serve {collective:?}");
        assert!(rank < ranks, "rank {rank} of {ranks}");
        match (self, collective) {
            (Algorithm::Dissemination, _) => dissemination::plan(rank, ranks),
            (Algorithm::Tree, Collective::Broadcast { root }) => tree::plan(root, rank, ranks),
            (Algorithm::OneShot, Collective::Barrier) => one_shot::barrier(rank, ranks),
            _ if ranks == 1 => copy_only(),
            (Algorithm::Ring, Collective::AllGather) => ring::all_gather(rank, ranks),
            (Algorithm::Ring, Collective::ReduceScatter) => ring::reduce_scatter(rank, ranks),
            (Algorithm::Ring, _) => ring::plan(rank, ranks),
            (Algorithm::Tree, Collective::Reduce { root }) => tree::reduce(root, rank, ranks),
            (Algorithm::Tree, Collective::Gather { root }) => tree::gather(root, rank, ranks),
            (Algorithm::Tree, Collective::Scatter { root }) => tree::scatter(root, rank, ranks),
            (Algorithm::Chain, Collective::Reduce { root }) => chain::reduce(root, rank, ranks),
            (Algorithm::Chain, Collective::Broadcast { root }) => chain::plan(root, rank, ranks),
            (Algorithm::DoubleTree, Collective::Broadcast { root }) => {
                double_tree::broadcast(root, rank, ranks)
            }
            (Algorithm::DoubleTree, Collective::Reduce { root }) => {
                double_tree::reduce(root, rank, ranks)
            }
            (Algorithm::HalvingDoubling, Collective::AllGather) => {
                halving_doubling::all_gather(rank, ranks)
            }
            (Algorithm::HalvingDoubling, Collective::ReduceScatter) => {
                halving_doubling::reduce_scatter(rank, ranks)
            }
            (Algorithm::HalvingDoubling, _) => halving_doubling::plan(rank, ranks),
            (Algorithm::Direct, Collective::ReduceScatter) => direct::reduce_scatter(rank, ranks),
            (Algorithm::Direct, Collective::Gather { root }) => direct::gather(root, rank, ranks),
            (Algorithm::Direct, Collective::Scatter { root }) => direct::scatter(root, rank, ranks),
            (Algorithm::Direct, Collective::AllToAll) => direct::all_to_all(rank, ranks),
            (Algorithm::Direct, _) => direct::all_gather(rank, ranks),
            (Algorithm::Pairwise, _) => pairwise::plan(rank, ranks),
            (Algorithm::DoubleTree, _) => double_tree::plan(rank, ranks),
            (Algorithm::Doubling, _) => doubling::plan(rank, ranks),
            (Algorithm::OneShot, _) => one_shot::plan(rank, ranks),
            (Algorithm::TwoShot, Collective::Reduce { root }) => {
                two_shot::reduce(root, rank, ranks)
            }
            (Algorithm::TwoShot, _) => two_shot::plan(rank, ranks),
            (Algorithm::Star, _) => star::plan(rank, ranks),
            (Algorithm::Hierarchical, _) => hierarchical::plan(rank, &assumed_hosts(ranks)),
            (Algorithm::Tree | Algorithm::Chain, _) => unreachable!("it serves what has a root"),
        }
    }

    /// As [`Algorithm::plan`], for ranks of which it is known where they are. Where hosts matter to an
    /// algorithm, `plan` assumes pairs of neighbours, and else that ranks stand in the order of their
    /// numbers.
    ///
    /// # Panics
    /// As of [`Algorithm::plan`].
    pub fn plan_on(self, collective: Collective, rank: u32, places: &Places) -> Plan {
        let ranks = places.ranks();
        match self {
            Algorithm::Hierarchical if ranks > 1 && self.serves(collective) => {
                assert!(rank < ranks, "rank {rank} of {ranks}");
                hierarchical::plan(rank, &places.ranks_by_host())
            }
            _ if self.has_neighbours(collective) && !places.are_numbers() => {
                assert!(rank < ranks, "rank {rank} of {ranks}");
                let plan = self.plan(places.seen(collective), places.of(rank), ranks);
                places.at(plan, collective)
            }
            _ => self.plan(collective, rank, ranks),
        }
    }

    /// Whether a rank speaks with few others, which should be near, so that plans follow an order of the
    /// ranks. Not where a span is of several blocks: in another order they do not lie in a row.
    pub const fn has_neighbours(self, collective: Collective) -> bool {
        match self {
            Algorithm::Ring | Algorithm::DoubleTree | Algorithm::Doubling | Algorithm::Chain => {
                true
            }
            Algorithm::HalvingDoubling | Algorithm::Tree => !collective.is_of_blocks(),
            _ => false,
        }
    }

    /// Whether a plan goes once around a ring of the ranks. Then its rounds may go around different rings, so that
    /// more links are used.
    pub const fn goes_around(self) -> bool {
        matches!(self, Algorithm::Ring | Algorithm::Chain)
    }

    /// Whether [`Algorithm::closed_form`] is to 1 % what [`predict`](crate::predict) says. Recursive
    /// doubling and halving, and trees, are regular for powers of two only; messages of the two trees
    /// of a double tree meet at ports as it happens. Rounds that overlap do not add up: whoever has its
    /// result first begins the next one while others still wait.
    pub fn has_exact_form(self, collective: Collective, ranks: u32, work: &Work) -> bool {
        let is_regular = match self {
            Algorithm::Doubling | Algorithm::HalvingDoubling | Algorithm::Tree => {
                ranks.is_power_of_two()
            }
            Algorithm::DoubleTree | Algorithm::Hierarchical => ranks == 1,
            _ => true,
        };
        let in_step = collective.root().is_none() && self != Algorithm::Star;
        let adds_up = work.rounds == 1 || (work.lanes == 1 && in_step);
        is_regular && adds_up
    }

    /// Seconds that the algorithm takes among `ranks` by the formula beside it, where each has a host
    /// of its own, on the machine that [`predict`](crate::predict) runs programs on:
    /// [`Algorithm::has_exact_form`] says where they agree. The double tree's is for any number of
    /// rounds and lanes; the others' are for one lane, on which rounds add up.
    ///
    /// # Panics
    /// If there are no ranks.
    pub fn closed_form(
        self,
        collective: Collective,
        ranks: u32,
        machine: &Machine,
        work: &Work,
    ) -> f64 {
        if ranks == 1 {
            return 0.0;
        }
        let bytes = work.round_bytes();
        let is_reduced = collective.is_reduction();
        let round_s = match self {
            Algorithm::DoubleTree if collective == Collective::AllReduce => {
                return double_tree::closed_form(ranks, machine, work);
            }
            Algorithm::DoubleTree => {
                double_tree::closed_form_of_half(ranks, machine, bytes, is_reduced)
            }
            Algorithm::HalvingDoubling if collective.is_of_blocks() => {
                halving_doubling::closed_form_of_half(ranks, machine, bytes, is_reduced)
            }
            Algorithm::HalvingDoubling => halving_doubling::closed_form(ranks, machine, bytes),
            Algorithm::Chain => chain::closed_form(ranks, machine, bytes, is_reduced),
            Algorithm::Tree if collective.is_of_blocks() => {
                tree::closed_form_of_blocks(ranks, machine, bytes)
            }
            Algorithm::Ring if collective.is_of_blocks() => {
                ring::closed_form_of_half(ranks, machine, bytes, is_reduced)
            }
            Algorithm::Ring => ring::closed_form(ranks, machine, bytes),
            Algorithm::Direct => direct::closed_form(ranks, machine, bytes, is_reduced),
            Algorithm::Pairwise => pairwise::closed_form(ranks, machine, bytes),
            Algorithm::Doubling => doubling::closed_form(ranks, machine, bytes),
            Algorithm::OneShot => one_shot::closed_form(ranks, machine, bytes),
            Algorithm::TwoShot => two_shot::closed_form(ranks, machine, bytes),
            Algorithm::Star => star::closed_form(ranks, machine, bytes),
            Algorithm::Tree if is_reduced => tree::closed_form_up(ranks, machine, bytes),
            Algorithm::Tree => tree::closed_form(ranks, machine, bytes),
            Algorithm::Dissemination => dissemination::closed_form(ranks, machine),
            Algorithm::Hierarchical => {
                hierarchical::closed_form(ranks, ranks.div_ceil(2), machine, bytes)
            }
        };
        f64::from(work.rounds) * round_s
    }
}

/// Two ranks on each host.
fn assumed_hosts(ranks: u32) -> Vec<Vec<u32>> {
    (0..ranks).step_by(2).map(|first| (first..ranks.min(first + 2)).collect()).collect()
}

/// All-reduce of a rank that is alone.
fn copy_only() -> Plan {
    let copy = Step::Copy { src: Span::input(0, 1), dst: Span::output(0, 1) };
    Plan { rank: 0, ranks: 1, chunks: 1, scratch: vec![], steps: vec![copy], sources: vec![] }
}

/// Seconds until a message has come, and been folded with one operand if it is reduced.
fn turn_s(machine: &Machine, bytes: f64, is_reduced: bool) -> f64 {
    let reduction_s = if is_reduced { machine.reduction_s(bytes, 2) } else { 0.0 };
    machine.latency_s + machine.transfer_s(bytes) + reduction_s
}

/// `len` chunks on the circle of `ranks` from `start`, all of them at most: one span, or two where the
/// circle closes among them.
fn circle(space: Space, start: u32, len: u32, ranks: u32) -> impl Iterator<Item = Span> {
    let first = len.min(ranks - start);
    let spans = [Span { space, start, len: first }, Span { space, start: 0, len: len - first }];
    spans.into_iter().filter(|span| span.len > 0)
}

/// The rank `distance` after `rank` on the circle of `ranks`; both are below `ranks`.
const fn after(rank: u32, distance: u32, ranks: u32) -> u32 {
    if rank < ranks - distance { rank + distance } else { rank - (ranks - distance) }
}

/// The rank `distance` before `rank` on the circle of `ranks`; both are below `ranks`.
const fn before(rank: u32, distance: u32, ranks: u32) -> u32 {
    if rank >= distance { rank - distance } else { rank + (ranks - distance) }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
