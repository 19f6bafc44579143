//! Which ranks' plans are images of one another, so that a prediction may run a few of them.

use super::{Algorithm, before};
use crate::Collective;

/// What makes one rank's plan that of another, as far as time is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Symmetry {
    /// Nothing.
    None,
    /// The same number added to all ranks, around the circle.
    Rotation,
    /// The same bits of all ranks turned over; the ranks are a power of two.
    Exchange,
}

impl Symmetry {
    /// A message as the rank sees it that stands for the receiver: one of the first `period`, which
    /// divides `ranks`. Exchanges need a power of two.
    pub(crate) fn seen_by_image(self, from: u32, to: u32, ranks: u32, period: u32) -> (u32, u32) {
        let image = to % period;
        match self {
            Symmetry::None => (from, to),
            Symmetry::Rotation => (before(from, to - image, ranks), image),
            Symmetry::Exchange => (from ^ to ^ image, image),
        }
    }
}

impl Algorithm {
    /// How all ranks' plans follow from the first one's. A hierarchical plan turns by whole hosts only.
    pub(crate) fn symmetry(self, collective: Collective, ranks: u32) -> Symmetry {
        match self {
            _ if collective.root().is_some() => Symmetry::None,
            Algorithm::Ring
            | Algorithm::OneShot
            | Algorithm::TwoShot
            | Algorithm::Direct
            | Algorithm::Pairwise
            | Algorithm::Dissemination
            | Algorithm::Hierarchical => Symmetry::Rotation,
            Algorithm::Doubling | Algorithm::HalvingDoubling if ranks.is_power_of_two() => {
                Symmetry::Exchange
            }
            _ => Symmetry::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::after;
    use super::*;
    use crate::action::Move;
    use crate::{Places, Program, lower};

    /// For each action: its length, from whom it takes messages, and to whom it sends.
    fn outline(program: &Program, image: impl Fn(u32) -> u32) -> Vec<(u32, Vec<u32>, Vec<u32>)> {
        let moves = program.actions.iter().filter_map(|&action| Move::of(program, action));
        let outline = |parts: Move| {
            let mut senders: Vec<u32> = parts.arrivals().map(&image).collect();
            // They are waited for together.
            senders.sort_unstable();
            (parts.shape.len, senders, parts.sends().map(|(peer, _)| image(peer)).collect())
        };
        moves.map(outline).collect()
    }

    #[test]
    fn plans_of_other_ranks_are_images_of_the_first_ones() {
        for (ranks, locals) in [(2, 1), (7, 1), (8, 1), (12, 3), (16, 4), (24, 2)] {
            let hosts: Vec<u32> = (0..ranks).map(|rank| rank / locals).collect();
            let places = Places::on(&hosts);
            for collective in Collective::all(0) {
                for algorithm in Algorithm::ALL.into_iter().filter(|a| a.serves(collective)) {
                    let symmetry = algorithm.symmetry(collective, ranks);
                    if symmetry == Symmetry::None {
                        continue;
                    }
                    for rank in 0..ranks {
                        let first = rank % locals;
                        let program = |rank| lower(&algorithm.plan_on(collective, rank, &places));
                        let image = |peer| match symmetry {
                            Symmetry::Exchange => peer ^ rank ^ first,
                            _ => after(peer, rank - first, ranks),
                        };
                        assert_eq!(
                            outline(&program(rank), |peer| peer),
                            outline(&program(first), image),
                            "{algorithm}, rank {rank} of {ranks}, {locals} a host"
                        );
                        let seen = symmetry.seen_by_image(image(first), rank, ranks, locals);
                        assert_eq!(seen.1, first);
                    }
                }
            }
        }
    }
}
