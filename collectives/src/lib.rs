//! Collective communication between processes.
#![deny(missing_docs)]

pub mod control;
pub mod executor;
pub mod record;
pub mod reduce;
mod types;

pub use ringtree_plan::Algorithm;
pub use types::{DataType, Element, Op};
