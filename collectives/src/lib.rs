//! Collective communication between processes.

pub mod reduce;
mod types;

pub use types::{DataType, Element, Op};
