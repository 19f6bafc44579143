//! What ranks do together, and which parts of its buffers each of them has for that.

/// What is asked of all ranks together.
///
/// In the gathers, the scatters and in all-to-all a chunk is a block: what one rank gives or gets,
/// one after the other in the order of the ranks. Elsewhere it is a part of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collective {
    /// Every rank ends with the reduction of all ranks' inputs.
    AllReduce,
    /// Every rank ends with the root's input.
    Broadcast {
        /// The rank whose input is sent to all.
        root: u32,
    },
    /// No rank leaves before every rank has come.
    Barrier,
    /// Every rank gives a block and ends with those of all.
    AllGather,
    /// Every rank ends with its block of the reduction of all ranks' inputs.
    ReduceScatter,
    /// The root ends with the reduction of all ranks' inputs.
    Reduce {
        /// The rank that gets the result.
        root: u32,
    },
    /// Every rank gives a block, and the root ends with those of all.
    Gather {
        /// The rank that gets the blocks.
        root: u32,
    },
    /// Every rank ends with its block of the root's input.
    Scatter {
        /// The rank whose input is dealt out.
        root: u32,
    },
    /// Every rank ends with the blocks that all ranks have for it: block `i` of its output is what
    /// rank `i` had as block `rank` of its input.
    AllToAll,
}

impl Collective {
    /// One of each, with one root.
    pub const fn all(root: u32) -> [Collective; 9] {
        [
            Collective::AllReduce,
            Collective::Broadcast { root },
            Collective::Barrier,
            Collective::AllGather,
            Collective::ReduceScatter,
            Collective::Reduce { root },
            Collective::Gather { root },
            Collective::Scatter { root },
            Collective::AllToAll,
        ]
    }

    /// Name on the command line and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Collective::AllReduce => "all-reduce",
            Collective::Broadcast { .. } => "broadcast",
            Collective::Barrier => "barrier",
            Collective::AllGather => "all-gather",
            Collective::ReduceScatter => "reduce-scatter",
            Collective::Reduce { .. } => "reduce",
            Collective::Gather { .. } => "gather",
            Collective::Scatter { .. } => "scatter",
            Collective::AllToAll => "all-to-all",
        }
    }

    /// The rank that gives to all, or gets from all.
    pub const fn root(self) -> Option<u32> {
        match self {
            Collective::Broadcast { root }
            | Collective::Reduce { root }
            | Collective::Gather { root }
            | Collective::Scatter { root } => Some(root),
            _ => None,
        }
    }

    /// The same with another root, if it has one.
    pub(crate) const fn with_root(self, root: u32) -> Collective {
        match self {
            Collective::Broadcast { .. } => Collective::Broadcast { root },
            Collective::Reduce { .. } => Collective::Reduce { root },
            Collective::Gather { .. } => Collective::Gather { root },
            Collective::Scatter { .. } => Collective::Scatter { root },
            other => other,
        }
    }

    /// Whether it is the root that gets, and not the one that gives.
    pub const fn is_to_root(self) -> bool {
        matches!(self, Collective::Reduce { .. } | Collective::Gather { .. })
    }

    /// Whether a chunk is a block of the caller's buffer, cut into rounds, and not a part of a round.
    pub const fn is_of_blocks(self) -> bool {
        matches!(
            self,
            Collective::AllGather
                | Collective::ReduceScatter
                | Collective::Gather { .. }
                | Collective::Scatter { .. }
                | Collective::AllToAll
        )
    }

    /// Whether inputs are added up, or whatever the operation is.
    pub const fn is_reduction(self) -> bool {
        matches!(
            self,
            Collective::AllReduce | Collective::ReduceScatter | Collective::Reduce { .. }
        )
    }

    /// Whether the input and the output may be one buffer. In it each block has its place among
    /// those of all ranks, so that a rank that gives one, or gets one, has it at its own place.
    pub const fn can_be_in_place(self) -> bool {
        !matches!(self, Collective::AllToAll)
    }

    /// Whether a rank has this chunk of an input. (Of a broadcast everyone's input is there, but only
    /// the root's is read.)
    pub const fn is_given(self, rank: u32, chunk: u32) -> bool {
        match self {
            Collective::AllGather | Collective::Gather { .. } => chunk == rank,
            Collective::Scatter { root } => rank == root,
            _ => true,
        }
    }

    /// Whether a rank has this chunk of an output, and gets a result there.
    pub const fn is_got(self, rank: u32, chunk: u32) -> bool {
        match self {
            Collective::ReduceScatter | Collective::Scatter { .. } => chunk == rank,
            Collective::Reduce { root } | Collective::Gather { root } => rank == root,
            _ => true,
        }
    }
}
