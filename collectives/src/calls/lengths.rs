//! How long the buffers of a call are, and how long they must be.

use crate::Error;
use crate::prepared::{Call, Part};

/// How long the buffers of a call are, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lengths {
    /// One buffer, read and written, with all blocks where there are blocks.
    InPlace(usize),
    /// A buffer to read and one to write.
    Into { input: usize, output: usize },
    /// A buffer that is only read.
    Read(usize),
}

impl Lengths {
    /// Checks that the buffers of `rank` are as long as the call says. A buffer that the rank has no part
    /// in, as the output of a gather to another rank, may have any length.
    ///
    /// # Errors
    /// [`Error::Argument`].
    #[inline]
    pub(crate) fn check(self, call: &Call, rank: u32, ranks: u32) -> Result<(), Error> {
        let collective = call.kind.collective(call.root);
        let count = call.count as usize;
        let Part { input, output, .. } = Part::of(collective, rank, ranks, count);
        let is_root = call.root == rank;
        let is_right = match self {
            Lengths::InPlace(length) => length == input.max(output),
            Lengths::Read(length) => length == input,
            Lengths::Into { input: from, output: to } => {
                let root = collective.and_then(|collective| collective.root());
                let is_reduced = collective.is_some_and(|c| c.is_to_root());
                let gives = root.is_none() || is_root || is_reduced;
                let gets = root.is_none() || is_root || !is_reduced;
                (!gives || from == input) && (!gets || to == output)
            }
        };
        if is_right { Ok(()) } else { Err(self.wrong(count, ranks, input.max(output))) }
    }

    #[cold]
    fn wrong(self, block: usize, ranks: u32, whole: usize) -> Error {
        Error::Argument(match self {
            Lengths::InPlace(length) | Lengths::Read(length) => {
                format!("the buffer had {whole} elements and now has {length}")
            }
            Lengths::Into { input, output } if whole == block => {
                format!("the input has {input} elements and the output {output}")
            }
            Lengths::Into { input, output } => format!(
                "the input has {input} elements and the output {output}: of {ranks} ranks with a block of \
                 {block} each, a buffer of all blocks must have {whole}"
            ),
        })
    }
}
