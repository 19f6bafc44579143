//! All-reduce over two binary trees, each of which carries half of the data.
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

use crate::{Plan, Span, Step};

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
    /// Itself at the root, which sends nothing up.
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
