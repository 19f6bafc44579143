//! Rings, trees and cluster plans: against the optimum found by listing everything, on machines whose best
//! rings are known, and what must hold for any machine.

mod brute;
mod cluster;
mod files;
mod machines;
#[path = "../real/mod.rs"]
mod real;
mod rings;
mod trees;
