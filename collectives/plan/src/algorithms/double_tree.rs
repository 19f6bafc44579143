//! All-reduce, broadcast and reduction over two binary trees, each of which carries half of the data.
//!
//! Sanders, Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and
//! scan", Parallel Computing 35 (2009); NCCL's double binary trees are the same.
//!
//! Tree a is the in-order tree of the numbers `1..=n`: odd numbers are leaves. Rank `r` has the
//! number `r + 1` in it. Tree b is its mirror image when `n` is even, and the same shifted by one
//! rank when `n` is odd, so that no rank is inside both: while it waits in one it works in the
//! other. Two chunks: tree a sums up and hands down chunk 0, tree b chunk 1. Four ranks:
//!
//! ```text
//!      tree a            tree b
//!          3           0
//!        /               \
//!      1                   2
//!     / \                 / \
//!    0   2               1   3
//! ```
//!
//! A broadcast and a reduction take the two trees of all ranks but the root, which gives to the roots of
//! both, or gets from them.

use super::{after, before};
use crate::{Machine, Plan, Span, Step, Work};

/// Rank `rank`'s plan; at least 2 ranks.
///
/// What goes up is settled by what comes down. Sends of a leaf stand first and its receives last,
/// so that nothing in one tree waits for the other.
pub(super) fn plan(rank: u32, ranks: u32) -> Plan {
    let nodes = [Node::new(Tree::A, rank, ranks), Node::new(Tree::B, rank, ranks)];
    let leaves = || nodes.iter().filter(|node| node.is_leaf());
    let mut steps = Vec::with_capacity(10);
    steps.extend(leaves().map(|leaf| leaf.sends_up(Span::input(leaf.chunk, 1))));
    for inner in nodes.iter().filter(|node| !node.is_leaf()) {
        inner.sum_and_hand_down(&mut steps);
    }
    steps.extend(leaves().map(|leaf| leaf.comes_down()));
    Plan { rank, ranks, chunks: 2, scratch: vec![], steps, sources: vec![] }
}

/// Rank `rank`'s plan to receive, or to give, what `root` has; at least 2 ranks.
pub(super) fn broadcast(root: u32, rank: u32, ranks: u32) -> Plan {
    let mut steps = vec![];
    if rank == root {
        for chunk in 0..2 {
            let first = Node::first(chunk, root, ranks);
            steps.push(Step::send(first, Span::input(chunk, 1)));
        }
        steps.push(Step::Copy { src: Span::input(0, 2), dst: Span::output(0, 2) });
    } else {
        let mut nodes = Node::among_others(root, rank, ranks);
        // What others wait for is first.
        nodes.sort_by_key(Node::is_leaf);
        for node in nodes {
            steps.push(node.comes_down());
            let got = Span::output(node.chunk, 1);
            steps.extend(node.children.iter().flatten().map(|&child| Step::send(child, got)));
        }
    }
    Plan { rank, ranks, chunks: 2, scratch: vec![], steps, sources: vec![] }
}

/// Rank `rank`'s plan to have all ranks' inputs reduced at `root`; at least 2 ranks.
pub(super) fn reduce(root: u32, rank: u32, ranks: u32) -> Plan {
    let (mut steps, mut scratch) = (vec![], vec![]);
    if rank == root {
        for chunk in 0..2 {
            let (own, sum) = (Span::input(chunk, 1), Span::output(chunk, 1));
            steps.push(Step::recv_reduce(Node::first(chunk, root, ranks), own, sum));
        }
    } else {
        let mut nodes = Node::among_others(root, rank, ranks);
        // What waits for nothing is first.
        nodes.sort_by_key(|node| !node.is_leaf());
        for node in nodes {
            let mut own = Span::input(node.chunk, 1);
            let sum = Span::scratch(scratch.len() as u32, 1);
            for &child in node.children.iter().flatten() {
                steps.push(Step::recv_reduce(child, own, sum));
                own = sum;
            }
            if own == sum {
                scratch.push(node.chunk);
            }
            let parent = node.parent.expect("the root is above");
            steps.push(Step::send(parent, own));
        }
    }
    Plan { rank, ranks, chunks: 2, scratch, steps, sources: vec![] }
}

/// Seconds for a round of a broadcast or a reduction that is alone. The root passes both chunks through
/// its port; below it `d = floor(log2 (n - 1))` levels follow, and most of them pass a port that serves
/// two children: `(d + 1) a + (2 d + 1) t`, and `(2 d + 1) f` more for a reduction, with `t` and `f` for
/// the transfer and the reduction of a chunk. The trees meet at ports, and levels need not be full: that
/// may cost, or spare, some transfers and reductions.
pub(super) fn closed_form_of_half(
    ranks: u32,
    machine: &Machine,
    round_bytes: f64,
    is_reduced: bool,
) -> f64 {
    let depth = f64::from((ranks - 1).ilog2());
    let chunk_bytes = round_bytes / 2.0;
    let reduction_s = if is_reduced { machine.reduction_s(chunk_bytes, 2) } else { 0.0 };
    let message_s = machine.transfer_s(chunk_bytes) + reduction_s;
    (depth + 1.0) * machine.latency_s + (2.0 * depth + 1.0) * message_s
}

/// Seconds for all rounds, pipelined over the lanes.
///
/// With depth `d = floor(log2 n)`, and `t` and `f` for the transfer and the reduction of a chunk,
/// which is half of a round, a round alone takes `2 d a + (4 d - 2) t + (2 d - 1) f`: there are `d`
/// hops up and `d` down, most of which pass a port that serves two children. Messages of the two
/// trees that meet at a port, and a last level that is full, may cost up to `2 t` more.
///
/// In the pipeline each round adds what it costs the busiest rank: its ports pass 4 chunks (two to
/// or from its children, one its parent, one the other tree) and it folds twice; 2 ranks need half
/// of that, and the ports of 3 ranks three quarters. With too few lanes to keep the ports busy
/// while a round goes up and down, the rounds of one lane add up instead. The formula is the larger
/// of the two. It is good to 1 % where one is clearly larger, and where the lanes are no more than
/// about a fiftieth of the rounds: the first rounds of all lanes leave the leaves at once, which
/// costs a transfer a lane.
pub(super) fn closed_form(ranks: u32, machine: &Machine, work: &Work) -> f64 {
    let depth = f64::from(ranks.ilog2());
    let chunk_bytes = work.round_bytes() / 2.0;
    let transfer_s = machine.transfer_s(chunk_bytes);
    let reduction_s = machine.reduction_s(chunk_bytes, 2);
    let alone_s = 2.0 * depth * machine.latency_s
        + (4.0 * depth - 2.0) * transfer_s
        + (2.0 * depth - 1.0) * reduction_s;

    let transfers = f64::from(ranks.min(4));
    let reductions = f64::from((ranks - 1).min(2));
    let busy_s = (transfers * transfer_s).max(reductions * reduction_s);
    let pipeline_s = alone_s + f64::from(work.rounds - 1) * busy_s;
    let one_lane_s = f64::from(work.rounds.div_ceil(work.lanes)) * alone_s;
    pipeline_s.max(one_lane_s)
}

/// One of the two trees.
#[derive(Clone, Copy)]
enum Tree {
    A,
    B,
}

impl Tree {
    /// The number of `rank` in the tree.
    fn number(self, rank: u32, ranks: u32) -> u32 {
        match self {
            Tree::A => rank + 1,
            Tree::B if ranks.is_multiple_of(2) => ranks - rank,
            Tree::B if rank == 0 => ranks,
            Tree::B => rank,
        }
    }

    /// The rank that has `number` in the tree.
    fn rank(self, number: u32, ranks: u32) -> u32 {
        match self {
            Tree::A => number - 1,
            Tree::B if ranks.is_multiple_of(2) => ranks - number,
            Tree::B if number == ranks => 0,
            Tree::B => number,
        }
    }
}

/// A rank's neighbours in one tree.
struct Node {
    chunk: u32,
    /// None at the root.
    parent: Option<u32>,
    children: [Option<u32>; 2],
}

impl Node {
    fn new(tree: Tree, rank: u32, ranks: u32) -> Node {
        let number = tree.number(rank, ranks);
        let rank_of = |number| tree.rank(number, ranks);
        Node {
            chunk: tree as u32,
            parent: parent(number, ranks).map(rank_of),
            children: children(number, ranks).map(|child| child.map(rank_of)),
        }
    }

    /// A rank's place in the trees of all ranks but `root`, which is the parent of both first ones.
    fn among_others(root: u32, rank: u32, ranks: u32) -> [Node; 2] {
        let place = before(rank, root, ranks) - 1;
        let actual = |place| after(root, place + 1, ranks);
        [Tree::A, Tree::B].map(|tree| {
            let node = Node::new(tree, place, ranks - 1);
            Node {
                chunk: node.chunk,
                parent: Some(node.parent.map_or(root, actual)),
                children: node.children.map(|child| child.map(actual)),
            }
        })
    }

    /// The first rank of the tree that carries `chunk` to or from all but `root`.
    fn first(chunk: u32, root: u32, ranks: u32) -> u32 {
        let tree = if chunk == 0 { Tree::A } else { Tree::B };
        let others = ranks - 1;
        // The highest power of two has no parent.
        let top = 1 << others.ilog2();
        after(root, tree.rank(top, others) + 1, ranks)
    }

    fn is_leaf(&self) -> bool {
        self.children == [None; 2]
    }

    /// To the parent; a leaf has one, since there are at least 2 ranks.
    fn sends_up(&self, src: Span) -> Step {
        Step::send_settled(self.parent.expect("only an inner node is the root"), src)
    }

    fn comes_down(&self) -> Step {
        let parent = self.parent.expect("only an inner node is the root");
        Step::recv_early(parent, Span::output(self.chunk, 1))
    }

    fn sum_and_hand_down(&self, steps: &mut Vec<Step>) {
        let sum = Span::output(self.chunk, 1);
        let mut own = Span::input(self.chunk, 1);
        for &child in self.children.iter().flatten() {
            steps.push(Step::recv_reduce(child, own, sum));
            own = sum;
        }
        if self.parent.is_some() {
            steps.extend([self.sends_up(sum), self.comes_down()]);
        }
        steps.extend(self.children.iter().flatten().map(|&child| Step::send(child, sum)));
    }
}

/// The parent of a number in the in-order tree of `1..=ranks`.
///
/// Without a last number it would have the lowest bit moved up by one; where that is too large,
/// the numbers up to the next bit that is set are too.
fn parent(number: u32, ranks: u32) -> Option<u32> {
    let lowest = number & number.wrapping_neg();
    let rest = number ^ lowest;
    let usual = rest | (lowest << 1);
    if usual <= ranks { Some(usual) } else { Some(rest).filter(|&rest| rest > 0) }
}

/// The children of a number in the in-order tree of `1..=ranks`.
fn children(number: u32, ranks: u32) -> [Option<u32>; 2] {
    let half = (number & number.wrapping_neg()) >> 1;
    if half == 0 {
        return [None; 2];
    }
    let halves = std::iter::successors(Some(half), |half| Some(half >> 1).filter(|&h| h > 0));
    let mut right = halves.map(|half| number + half);
    [Some(number - half), right.find(|&child| child <= ranks)]
}
