//! Checkpoints: what a training needs to go on, written in the background by the ranks that own the parts.
//!
//! ```text
//! checkpoints/
//!   step-0000000100/
//!     state.json                       step, place in the data, seed, ranks; length and checksum of each file
//!     parameters.safetensors           parameters and buffers by name; rank 0 writes it
//!     optimiser-1-of-3.safetensors     what rank 1 of 3 has of the optimiser's state
//!   step-0000000200.<run>-<save>.partial/    being written, or left by a run that was killed
//! ```
//!
//! A checkpoint is written in a folder of another name, which is renamed once all of it is on the disk: whoever sees
//! `step-...` sees it whole, unless the disk has lost something since. [`latest`] finds that out by lengths and
//! checksums, and takes the one before. A piece of the optimiser's state is a tensor of one dimension whose name says
//! its kind, the parameter and the first element: `momentum/fc1.weight/4096`. So any number of ranks can read what any
//! other number has written.

mod commit;
mod layout;
mod pieces;
mod reader;
mod tensors;
mod writer;

use serde::{Deserialize, Serialize};

pub use self::reader::{Checkpoint, Found, latest};
use self::tensors::Array;
pub use self::writer::{Writer, WriterSettings};
use crate::Result;
use crate::optimiser::StateKind;
use crate::real::Real;

/// Where a training stands, apart from its numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps taken.
    pub step: u64,
    /// The epoch that the next step's samples are of, from 0.
    pub epoch: u64,
    /// How many samples of that epoch have been used, by all ranks.
    pub consumed_samples: u64,
    /// What all randomness is made from.
    pub seed: u64,
    /// Indices of the parameters in the order in which their gradients are exchanged: a resumed training has the same
    /// bits only with the same buckets.
    pub bucket_order: Vec<usize>,
    /// Whatever else the program wants to find again; floating-point numbers come back to the bit.
    pub user: serde_json::Value,
}

/// A copy of what one rank gives to a checkpoint.
#[derive(Clone, Debug)]
pub struct Snapshot {
    state: State,
    /// Parameters and buffers.
    parameters: Vec<Array>,
    /// What this rank has of the optimiser's state.
    pieces: Vec<Array>,
}

impl Snapshot {
    /// Begins with where the training stands, the same on all ranks.
    pub fn new(state: State) -> Snapshot {
        Snapshot { state, parameters: Vec::new(), pieces: Vec::new() }
    }

    /// Adds a parameter or a buffer: its name, its shape and its elements, the last dimension's next to each other.
    /// Only rank 0's are written.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Argument`] if there are not as many elements as the shape says.
    pub fn add_parameter<T: Real>(
        &mut self,
        name: &str,
        shape: &[usize],
        values: &[T],
    ) -> Result<()> {
        self.parameters.push(Array::new(name, shape, values)?);
        Ok(())
    }

    /// Adds a piece of the optimiser's state: elements of a parameter, from `first_element` on. No two ranks may own
    /// an element, and together they must own all of a parameter.
    pub fn add_piece<T: Real>(
        &mut self,
        kind: StateKind,
        parameter: &str,
        first_element: usize,
        values: &[T],
    ) {
        let name = layout::piece_name(kind, parameter, first_element);
        self.pieces.push(Array::flat(&name, values));
    }
}

#[cfg(test)]
mod tests;
