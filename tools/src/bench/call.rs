//! What is measured: a collective, one on blocks that differ in length, or send and receive.

use std::sync::LazyLock;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use ringtree::{Algorithm, Collective};
use serde::{Serialize, Serializer};

use super::options::Placement;
use crate::collective::{CollectiveName, serving};

/// What is measured, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallName {
    /// A collective.
    Even(CollectiveName),
    /// One of blocks that differ in length.
    Varied(CollectiveName),
    /// Around a ring.
    SendReceive,
}

/// What is measured, with its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// A collective.
    Even(Collective),
    /// One of blocks that differ in length: see [`Called::lengths`].
    Varied(Collective),
    /// Each rank sends to the next one and receives from the one before.
    SendReceive,
}

impl CallName {
    /// The call, from or to `root` where it has one.
    pub const fn with_root(self, root: u32) -> Called {
        match self {
            CallName::Even(name) => Called::Even(name.with_root(root)),
            CallName::Varied(name) => Called::Varied(name.with_root(root)),
            CallName::SendReceive => Called::SendReceive,
        }
    }
}

impl ValueEnum for CallName {
    fn value_variants<'a>() -> &'a [CallName] {
        static ALL: LazyLock<Vec<CallName>> = LazyLock::new(|| {
            let names = CollectiveName::value_variants().iter().copied();
            let of_blocks = names.clone().filter(|name| name.with_root(0).is_of_blocks());
            let varied = of_blocks.map(CallName::Varied);
            names.map(CallName::Even).chain(varied).chain([CallName::SendReceive]).collect()
        });
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            CallName::Even(name) => return name.to_possible_value(),
            CallName::Varied(_) => "The same with blocks in proportion 1 to 2 to 3 and so on",
            CallName::SendReceive => {
                "Every rank sends to the next and receives from the one before"
            }
        };
        Some(PossibleValue::new(self.with_root(0).name()).help(help))
    }
}

impl Serialize for CallName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.with_root(0).name())
    }
}

impl Called {
    /// Name in tables and records.
    pub const fn name(self) -> &'static str {
        match self {
            Called::Even(collective) => collective.name(),
            Called::Varied(Collective::AllGather) => "all-gather-v",
            Called::Varied(Collective::ReduceScatter) => "reduce-scatter-v",
            Called::Varied(Collective::Gather { .. }) => "gather-v",
            Called::Varied(Collective::Scatter { .. }) => "scatter-v",
            Called::Varied(_) => "all-to-all-v",
            Called::SendReceive => "send-receive",
        }
    }

    /// The collective, if it is one.
    pub const fn collective(self) -> Option<Collective> {
        match self {
            Called::Even(collective) | Called::Varied(collective) => Some(collective),
            Called::SendReceive => None,
        }
    }

    /// The rank that gives to all or gets from all.
    pub fn root(self) -> Option<u32> {
        self.collective().and_then(Collective::root)
    }

    /// Whether inputs are added up, or whatever the operation is.
    pub fn is_reduction(self) -> bool {
        self.collective().is_some_and(Collective::is_reduction)
    }

    /// Blocks of the longer buffer among `ranks`.
    pub fn blocks(self, ranks: u32) -> usize {
        let is_of_blocks = self.collective().is_some_and(Collective::is_of_blocks);
        if is_of_blocks { ranks as usize } else { 1 }
    }

    /// How many elements the blocks have that `rank` gives to each, or in all-to-all gets from each, which
    /// is as many. Together they have `count` a rank, but for what is cut off.
    pub fn lengths(self, rank: u32, ranks: u32, count: usize) -> Vec<usize> {
        let length = |place: u32| 2 * count * (place as usize + 1) / (ranks as usize + 1);
        match self {
            Called::Varied(Collective::AllToAll) => {
                (0..ranks).map(|other| length((rank + other) % ranks)).collect()
            }
            Called::Varied(_) => (0..ranks).map(length).collect(),
            _ => vec![count; self.blocks(ranks)],
        }
    }

    /// Whether it can be called so.
    pub fn can_be(self, placement: Placement) -> bool {
        placement == Placement::OutOfPlace
            || match self {
                Called::Even(Collective::Barrier) | Called::SendReceive => false,
                Called::Even(collective) | Called::Varied(collective) => !matches!(
                    collective,
                    Collective::Gather { .. } | Collective::Scatter { .. } | Collective::AllToAll
                ),
            }
    }

    /// The algorithms that carry it out.
    pub fn serving(self) -> impl Iterator<Item = Algorithm> {
        let is_varied = matches!(self, Called::Varied(_));
        let fits = move |algorithm: &Algorithm, collective| {
            !is_varied || !algorithm.takes_one_round(collective)
        };
        let of = move |collective| serving(collective).filter(move |a| fits(a, collective));
        self.collective().into_iter().flat_map(of)
    }

    /// What bus bandwidth is to algorithm bandwidth among `ranks`, as nccl-tests counts it.
    pub fn bus_factor(self, ranks: u32) -> f64 {
        self.collective().map_or(1.0, |collective| super::options::bus_factor(collective, ranks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_of_its_own() {
        let names = CallName::value_variants().iter().map(|call| {
            let name = call.with_root(0).name();
            assert_eq!(call.to_possible_value().expect("none is skipped").get_name(), name);
            name
        });
        let names: std::collections::BTreeSet<&str> = names.collect();
        assert_eq!(names.len(), CallName::value_variants().len());
    }

    #[test]
    fn blocks_differ_and_what_one_gives_the_other_gets() {
        let all_to_all = Called::Varied(Collective::AllToAll);
        for ranks in 1..6 {
            let rows: Vec<Vec<usize>> =
                (0..ranks).map(|rank| all_to_all.lengths(rank, ranks, 60)).collect();
            for (giver, row) in rows.iter().enumerate() {
                assert_eq!(row.iter().sum::<usize>(), 60 * ranks as usize);
                assert!((0..row.len()).all(|taker| row[taker] == rows[taker][giver]));
            }
            let lengths = Called::Varied(Collective::AllGather).lengths(0, ranks, 60);
            assert!(lengths.is_sorted() && lengths.iter().sum::<usize>() <= 60 * ranks as usize);
        }
    }
}
