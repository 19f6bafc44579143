//! Shared helpers of the tests in this folder.

pub mod links;
pub mod random;
pub mod traffic;
