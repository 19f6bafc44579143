//! What executors run: each action is one pass over memory.
//!
//! Lowering turns runs of steps into actions. Sources are own spans or arrivals, destinations are
//! own spans or sends; "receive, reduce and forward" is one action, and so is "reduce `n` arrivals
//! and send the result to `n` peers".

use std::ops::Range;

use crate::{Space, Span};

/// Where an operand of a [`Action::Move`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A span of this rank.
    Own(Span),
    /// The next message of a peer.
    Arrival {
        /// Sender.
        peer: u32,
    },
}

/// Where the result of a [`Action::Move`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A span of this rank that a later step, or the caller, reads.
    Own(Span),
    /// A span that only backs the sends of this action: it need not be written where the result
    /// can go to the peers without it. Its content is undefined afterwards. At most one, and only
    /// beside sends.
    Backing(Span),
    /// The next message to a peer. Its bytes equal those of the action's `Own` or `Backing` span
    /// (a `Move` from one own span without such a destination sends the source itself).
    Send {
        /// Receiver.
        peer: u32,
        /// As in [`Step::Send`](crate::Step::Send).
        settled: bool,
    },
}

/// One action of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Folds `sources` left to right, element by element, and puts the result into every
    /// destination. All spans and messages have the length of `shape`. One source is a copy.
    ///
    /// Works slice by slice: a slice is done when it is there from every arrival. An action that
    /// has no credit to forward a slice writes its own span and posts that.
    Move {
        /// First operand in [`Program::sources`].
        first_source: u32,
        /// How many operands; at least 1.
        sources: u32,
        /// First result in [`Program::destinations`].
        first_destination: u32,
        /// How many results; at least 1.
        destinations: u32,
        /// A span as long as every operand and result.
        shape: Span,
        /// An own destination may overlap what earlier sends of this rank still read: each slice
        /// of it is written only when those bytes have been consumed.
        ///
        /// Ranks may wait for each other's consumption in such actions, and whoever waits does not
        /// consume: the arrivals of a guarded action must be taken through slots (which frees the
        /// sender's memory as soon as a slice has left), never lent from the sender's memory.
        guarded: bool,
        /// The own destination may be offered to the only arrival's sender when the round starts
        /// (see [`Step::Recv`](crate::Step::Recv)).
        early: bool,
        /// Its result has the contributions of all ranks, and none of its operands has. An average is
        /// divided here.
        completes: bool,
    },
    /// As [`Step::Flush`](crate::Step::Flush).
    Flush {
        /// What is about to be written.
        span: Span,
    },
}

/// One rank's actions for one round of one collective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Whose it is.
    pub rank: u32,
    /// How many ranks take part.
    pub ranks: u32,
    /// As in [`Plan`](crate::Plan).
    pub chunks: u32,
    /// As in [`Plan`](crate::Plan), for the scratch chunks that an action still names; the others
    /// were replaced by arrivals.
    pub scratch: Vec<u32>,
    /// What to do, in order.
    pub actions: Vec<Action>,
    /// Operands of the moves.
    pub sources: Vec<Source>,
    /// Results of the moves.
    pub destinations: Vec<Destination>,
    /// Where in `actions` further variants of the program begin, which lanes take by turns. A lowered plan has
    /// none but itself.
    pub further_variants: Vec<u32>,
}

impl Program {
    /// Several programs of one rank as one: the first lane takes the first of them and so on, and again from the
    /// first.
    ///
    /// # Panics
    /// If there is none, or they are of different ranks or divide a round differently.
    pub fn of_variants(programs: Vec<Program>) -> Program {
        let mut programs = programs.into_iter();
        let mut whole = programs.next().expect("a program");
        for mut variant in programs {
            let what = |program: &Program| (program.rank, program.ranks, program.chunks);
            assert_eq!(what(&whole), what(&variant), "variants of one program");
            let scratch = whole.scratch.len() as u32;
            let scratch_spans = variant.spans_mut().filter(|span| span.space == Space::Scratch);
            scratch_spans.for_each(|span| span.start += scratch);
            let (sources_before, destinations_before) =
                (whole.sources.len() as u32, whole.destinations.len() as u32);
            for action in &mut variant.actions {
                if let Action::Move { first_source, first_destination, .. } = action {
                    *first_source += sources_before;
                    *first_destination += destinations_before;
                }
            }
            whole.further_variants.push(whole.actions.len() as u32);
            whole.scratch.append(&mut variant.scratch);
            whole.actions.append(&mut variant.actions);
            whole.sources.append(&mut variant.sources);
            whole.destinations.append(&mut variant.destinations);
        }
        whole
    }

    /// How many variants there are, at least 1.
    pub fn variants(&self) -> usize {
        1 + self.further_variants.len()
    }

    /// Where the actions of a variant are.
    pub fn variant(&self, number: usize) -> Range<usize> {
        let begins = |number: usize| match number {
            0 => Some(0),
            _ => self.further_variants.get(number - 1).map(|begin| *begin as usize),
        };
        let end = begins(number + 1).unwrap_or(self.actions.len());
        begins(number).unwrap_or(end)..end
    }

    /// All spans that are named.
    pub(crate) fn spans_mut(&mut self) -> impl Iterator<Item = &mut Span> {
        let of_sources = self.sources.iter_mut().filter_map(|source| match source {
            Source::Own(span) => Some(span),
            Source::Arrival { .. } => None,
        });
        let of_destinations =
            self.destinations.iter_mut().filter_map(|destination| match destination {
                Destination::Own(span) | Destination::Backing(span) => Some(span),
                Destination::Send { .. } => None,
            });
        let of_actions = self.actions.iter_mut().map(|action| match action {
            Action::Move { shape: span, .. } | Action::Flush { span } => span,
        });
        of_sources.chain(of_destinations).chain(of_actions)
    }
}

/// The parts of a [`Action::Move`].
#[derive(Clone, Copy)]
pub(crate) struct Move<'a> {
    pub(crate) sources: &'a [Source],
    pub(crate) destinations: &'a [Destination],
    pub(crate) shape: Span,
    pub(crate) guarded: bool,
    pub(crate) early: bool,
    pub(crate) completes: bool,
}

impl<'a> Move<'a> {
    /// The parts of an action; nothing of a flush, or where it names operands that are not there.
    pub(crate) fn of(program: &'a Program, action: Action) -> Option<Move<'a>> {
        let Action::Move {
            first_source,
            sources,
            first_destination,
            destinations,
            shape,
            guarded,
            early,
            completes,
        } = action
        else {
            return None;
        };
        let range = |first: u32, count: u32| first as usize..first as usize + count as usize;
        Some(Move {
            sources: program.sources.get(range(first_source, sources))?,
            destinations: program.destinations.get(range(first_destination, destinations))?,
            shape,
            guarded,
            early,
            completes,
        })
    }

    /// The own span that the result goes to, and whether it only backs sends.
    pub(crate) fn own(&self) -> Option<(Span, bool)> {
        self.destinations.iter().find_map(|destination| match *destination {
            Destination::Own(span) => Some((span, false)),
            Destination::Backing(span) => Some((span, true)),
            Destination::Send { .. } => None,
        })
    }

    pub(crate) fn arrivals(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.sources.iter().filter_map(|source| match *source {
            Source::Arrival { peer } => Some(peer),
            Source::Own(_) => None,
        })
    }

    pub(crate) fn sends(&self) -> impl Iterator<Item = (u32, bool)> + use<'a> {
        self.destinations.iter().filter_map(|destination| match *destination {
            Destination::Send { peer, settled } => Some((peer, settled)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Algorithm, Collective, Places, lower};

    /// What an action does, whatever the numbers of its operands and of the scratch chunks before.
    fn outline(program: &Program, action: Action, scratch_before: u32) -> String {
        let shifted = |mut span: Span| {
            if span.space == Space::Scratch {
                span.start -= scratch_before;
            }
            span
        };
        let Some(parts) = Move::of(program, action) else { return format!("{action:?}") };
        let sources = parts.sources.iter().map(|source| match *source {
            Source::Own(span) => Source::Own(shifted(span)),
            arrival => arrival,
        });
        let destinations = parts.destinations.iter().map(|destination| match *destination {
            Destination::Own(span) => Destination::Own(shifted(span)),
            Destination::Backing(span) => Destination::Backing(shifted(span)),
            send => send,
        });
        let (sources, destinations): (Vec<_>, Vec<_>) = (sources.collect(), destinations.collect());
        format!("{sources:?} {destinations:?} {:?}", shifted(parts.shape))
    }

    #[test]
    fn each_variant_is_what_it_was_alone() {
        let orders = [vec![0, 1, 2, 3], vec![2, 0, 3, 1], vec![3, 2, 1, 0]];
        for (algorithm, collective) in [
            (Algorithm::Ring, Collective::AllReduce),
            (Algorithm::Ring, Collective::ReduceScatter),
            (Algorithm::Chain, Collective::Broadcast { root: 1 }),
            // With scratch.
            (Algorithm::Doubling, Collective::AllReduce),
        ] {
            let alone = orders.each_ref().map(|order| {
                let places = Places::in_order(&[0; 4], order.clone()).expect("an order");
                lower(&algorithm.plan_on(collective, 1, &places))
            });
            let whole = Program::of_variants(alone.to_vec());
            assert_eq!(whole.variants(), 3);
            let mut scratch_before = 0;
            for (number, alone) in alone.iter().enumerate() {
                let actions = &whole.actions[whole.variant(number)];
                let outlines = actions.iter().map(|a| outline(&whole, *a, scratch_before));
                let expected = alone.actions.iter().map(|a| outline(alone, *a, 0));
                assert_eq!(outlines.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
                scratch_before += alone.scratch.len() as u32;
            }
        }
    }
}
