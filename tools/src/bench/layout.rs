//! What a rank's buffers hold before a call and after it, as runs of elements.

use std::ops::Range;

use ringtree::Collective;

use super::call::Called;
use super::options::Placement;

/// A run of elements in a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it is in the buffer.
    pub place: Range<usize>,
    /// Which elements of a rank's input they are, or were reduced from: the first one's index among
    /// those of all blocks.
    pub index: usize,
    /// Where they come from.
    pub origin: Origin,
}

/// Where elements come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From all ranks.
    Reduced,
    /// From this one.
    Rank(u32),
}

/// A rank's buffers.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Elements that the call reads; 0 in place.
    pub input_count: usize,
    /// Elements that the call writes, or reads and writes in place.
    pub output_count: usize,
    /// What the rank gives: in the input, or in place in the output. The rest is unwritten.
    pub given: Vec<Piece>,
    /// What all of the output is afterwards.
    pub after: Vec<Piece>,
    /// How many elements its blocks have.
    pub lengths: Vec<usize>,
}

impl Layout {
    /// The buffers of `rank` among `ranks`; `count` elements, or so many in each block, where blocks are
    /// equal.
    pub fn new(
        called: Called,
        rank: u32,
        ranks: u32,
        count: usize,
        placement: Placement,
    ) -> Layout {
        let in_place = placement == Placement::InPlace;
        // Where the blocks of a rank begin, and where the last one ends.
        let bounds = |rank: u32| {
            let mut bounds = vec![0];
            let lengths = called.lengths(rank, ranks, count);
            bounds.extend(lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            }));
            bounds
        };
        let mine = bounds(rank);
        let all = 0..*mine.last().unwrap_or(&0);
        let block = |rank: u32| mine[rank as usize]..mine[rank as usize + 1];
        let is_of_blocks = called.collective().is_some_and(Collective::is_of_blocks);
        let own = if is_of_blocks { block(rank) } else { all.clone() };
        let is_root = called.root().is_none_or(|root| root == rank);
        let given = match called.collective() {
            Some(Collective::AllGather | Collective::Gather { .. }) => own.clone(),
            Some(Collective::Scatter { .. } | Collective::Broadcast { .. }) if !is_root => 0..0,
            Some(Collective::Barrier) => 0..0,
            _ => all.clone(),
        };
        // In place every block is where it is among all.
        let place = if in_place { given.clone() } else { 0..given.len() };
        let input_count = if in_place { 0 } else { given.len() };
        let given = vec![Piece { place, index: given.start, origin: Origin::Rank(rank) }];

        let whole = |origin| vec![Piece { place: all.clone(), index: 0, origin }];
        let own_block = |origin| vec![Piece { place: 0..own.len(), index: own.start, origin }];
        let by_block = |index: &dyn Fn(u32) -> usize, origin: &dyn Fn(u32) -> Origin| {
            let piece = |giver: u32| Piece {
                place: block(giver),
                index: index(giver),
                origin: origin(giver),
            };
            (0..ranks).map(piece).collect()
        };
        let start = |giver: u32| block(giver).start;
        let after = match called.collective() {
            None => whole(Origin::Rank((rank + ranks - 1) % ranks)),
            Some(Collective::Barrier) => Vec::new(),
            Some(Collective::AllReduce) => whole(Origin::Reduced),
            Some(Collective::Broadcast { root }) => whole(Origin::Rank(root)),
            Some(Collective::Reduce { .. }) if is_root => whole(Origin::Reduced),
            Some(Collective::Reduce { .. }) if in_place => whole(Origin::Rank(rank)),
            Some(Collective::Gather { .. }) if is_root => by_block(&start, &Origin::Rank),
            Some(Collective::Reduce { .. } | Collective::Gather { .. }) => Vec::new(),
            Some(Collective::AllGather) => by_block(&start, &Origin::Rank),
            Some(Collective::Scatter { root }) => own_block(Origin::Rank(root)),
            Some(Collective::ReduceScatter) if in_place => by_block(&start, &|block| {
                if block == rank { Origin::Reduced } else { Origin::Rank(rank) }
            }),
            Some(Collective::ReduceScatter) => own_block(Origin::Reduced),
            Some(Collective::AllToAll) => {
                by_block(&|giver| bounds(giver)[rank as usize], &Origin::Rank)
            }
        };
        let output_count = after.iter().map(|piece| piece.place.len()).sum();
        let lengths = called.lengths(rank, ranks, count);
        Layout { input_count, output_count, given, after, lengths }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::super::call::CallName;
    use super::*;

    const RANKS: u32 = 3;
    const COUNT: usize = 5;

    fn layouts() -> impl Iterator<Item = (Called, u32, Placement, Layout)> {
        let placements = |called: Called| {
            let all = [Placement::OutOfPlace, Placement::InPlace];
            all.into_iter().filter(move |placement| called.can_be(*placement))
        };
        let calls = CallName::value_variants().iter().map(|name| name.with_root(1));
        let cases = calls.flat_map(move |collective| {
            (0..RANKS).flat_map(move |rank| placements(collective).map(move |p| (rank, p))).map(
                move |(rank, placement)| {
                    let layout = Layout::new(collective, rank, RANKS, COUNT, placement);
                    (collective, rank, placement, layout)
                },
            )
        });
        cases.collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn every_element_of_an_output_is_known() {
        for (collective, rank, placement, layout) in layouts() {
            let mut next = 0;
            for piece in &layout.after {
                assert_eq!(piece.place.start, next, "{collective:?} {rank} {placement:?}");
                next = piece.place.end;
            }
            assert_eq!(next, layout.output_count);
        }
    }

    #[test]
    fn what_comes_from_a_rank_was_given_by_it() {
        for (collective, rank, placement, layout) in layouts() {
            for piece in &layout.after {
                let Origin::Rank(giver) = piece.origin else { continue };
                let theirs = Layout::new(collective, giver, RANKS, COUNT, placement);
                let indices = piece.index..piece.index + piece.place.len();
                let is_given = theirs.given.iter().any(|given| {
                    let last = given.index + given.place.len();
                    given.index <= indices.start && indices.end <= last
                });
                assert!(is_given, "{collective:?} {rank} {placement:?} {piece:?}");
            }
        }
    }

    #[test]
    fn buffers_in_place_have_room_for_what_is_given() {
        for (collective, rank, placement, layout) in layouts() {
            let room = match placement {
                Placement::InPlace => layout.output_count,
                Placement::OutOfPlace => layout.input_count,
            };
            let fits = layout.given.iter().all(|piece| piece.place.end <= room);
            assert!(fits, "{collective:?} {rank} {placement:?}");
        }
    }
}
