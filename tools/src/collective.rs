//! The collectives by name, as every command takes them.

use clap::ValueEnum;
use ringtree_plan::{Algorithm, Collective};
use serde::{Serialize, Serializer};

/// What all ranks do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CollectiveName {
    /// Every rank gets the reduction of all
    AllReduce,
    /// Every rank gets what the root has
    Broadcast,
    /// No rank goes on before every rank has come
    Barrier,
    /// Every rank gets the blocks of all
    AllGather,
    /// Every rank gets its block of the reduction
    ReduceScatter,
    /// The root gets the reduction of all
    Reduce,
    /// The root gets the blocks of all
    Gather,
    /// Every rank gets its block of what the root has
    Scatter,
    /// Every rank gets a block of each
    AllToAll,
}

impl CollectiveName {
    /// The collective, from or to `root` where it has one.
    pub const fn with_root(self, root: u32) -> Collective {
        match self {
            CollectiveName::AllReduce => Collective::AllReduce,
            CollectiveName::Broadcast => Collective::Broadcast { root },
            CollectiveName::Barrier => Collective::Barrier,
            CollectiveName::AllGather => Collective::AllGather,
            CollectiveName::ReduceScatter => Collective::ReduceScatter,
            CollectiveName::Reduce => Collective::Reduce { root },
            CollectiveName::Gather => Collective::Gather { root },
            CollectiveName::Scatter => Collective::Scatter { root },
            CollectiveName::AllToAll => Collective::AllToAll,
        }
    }

    /// Name in tables and records.
    pub const fn name(self) -> &'static str {
        self.with_root(0).name()
    }
}

impl Serialize for CollectiveName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The algorithm called `name`, if it serves the collective; else the names of those that do.
pub fn algorithm(name: &str, collective: Collective) -> Result<Algorithm, String> {
    let named = Algorithm::from_name(name).filter(|algorithm| algorithm.serves(collective));
    named.ok_or_else(|| algorithm_names(collective))
}

/// The algorithms of a collective, for a sentence.
pub fn algorithm_names(collective: Collective) -> String {
    serving(collective).map(Algorithm::name).collect::<Vec<_>>().join(", ")
}

/// The algorithms of every collective, for a description.
pub fn all_algorithm_names() -> String {
    let named = |c: Collective| format!("for {} {}", c.name(), algorithm_names(c));
    Collective::all(0).map(named).join("; ")
}

/// The algorithms of a collective.
pub fn serving(collective: Collective) -> impl Iterator<Item = Algorithm> {
    Algorithm::ALL.into_iter().filter(move |algorithm| algorithm.serves(collective))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_command_line_are_those_of_the_library() {
        for name in CollectiveName::value_variants() {
            let value = name.to_possible_value().expect("none is skipped");
            assert_eq!(value.get_name(), name.name());
        }
        assert_eq!(CollectiveName::value_variants().len(), Collective::all(0).len());
    }
}
