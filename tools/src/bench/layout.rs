//! What a rank's buffers hold before a call and after it, as runs of elements.

use std::ops::Range;

use ringtree::Collective;

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
}

impl Layout {
    /// The buffers of `rank` among `ranks`; `count` elements, or so many in each block.
    pub fn new(
        collective: Collective,
        rank: u32,
        ranks: u32,
        count: usize,
        placement: Placement,
    ) -> Layout {
        let in_place = placement == Placement::InPlace;
        let blocks = if collective.is_of_blocks() { ranks as usize } else { 1 };
        let all = 0..blocks * count;
        let own = rank as usize * count..(rank as usize + 1) * count;
        let is_root = collective.root().is_none_or(|root| root == rank);
        let given = match collective {
            Collective::AllGather | Collective::Gather { .. } => own.clone(),
            Collective::Scatter { .. } | Collective::Broadcast { .. } if !is_root => 0..0,
            Collective::Barrier => 0..0,
            _ => all.clone(),
        };
        // In place every block is where it is among all.
        let place = if in_place { given.clone() } else { 0..given.len() };
        let input_count = if in_place { 0 } else { given.len() };
        let given = vec![Piece { place, index: given.start, origin: Origin::Rank(rank) }];

        let whole = |origin| vec![Piece { place: all.clone(), index: 0, origin }];
        let own_block = |origin| vec![Piece { place: 0..count, index: own.start, origin }];
        let by_block = |index: &dyn Fn(usize) -> usize, origin: &dyn Fn(u32) -> Origin| {
            let piece = |block: u32| {
                let start = block as usize * count;
                let place = start..start + count;
                Piece { place, index: index(start), origin: origin(block) }
            };
            (0..ranks).map(piece).collect()
        };
        let after = match collective {
            Collective::Barrier => Vec::new(),
            Collective::AllReduce => whole(Origin::Reduced),
            Collective::Broadcast { root } => whole(Origin::Rank(root)),
            Collective::Reduce { .. } if is_root => whole(Origin::Reduced),
            Collective::Reduce { .. } if in_place => whole(Origin::Rank(rank)),
            Collective::Gather { .. } if is_root => by_block(&|start| start, &Origin::Rank),
            Collective::Reduce { .. } | Collective::Gather { .. } => Vec::new(),
            Collective::AllGather => by_block(&|start| start, &Origin::Rank),
            Collective::Scatter { root } => own_block(Origin::Rank(root)),
            Collective::ReduceScatter if in_place => by_block(&|start| start, &|block| {
                if block == rank { Origin::Reduced } else { Origin::Rank(rank) }
            }),
            Collective::ReduceScatter => own_block(Origin::Reduced),
            Collective::AllToAll => by_block(&|_| own.start, &Origin::Rank),
        };
        let output_count = after.iter().map(|piece| piece.place.len()).sum();
        Layout { input_count, output_count, given, after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANKS: u32 = 3;
    const COUNT: usize = 5;

    fn layouts() -> impl Iterator<Item = (Collective, u32, Placement, Layout)> {
        let placements = |collective: Collective| {
            let all = [Placement::OutOfPlace, Placement::InPlace];
            all.into_iter().filter(move |placement| placement.is_of(collective))
        };
        let cases = Collective::all(1).into_iter().flat_map(move |collective| {
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
