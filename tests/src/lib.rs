//! Shared helpers of the tests in this folder.

pub mod bits;
pub mod random;
pub mod ranks;
pub mod sample;
pub mod values;
