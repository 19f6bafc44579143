//! Shared helpers of the tests in this folder, and of other packages' tests.

pub mod namespaces;
pub mod program;
