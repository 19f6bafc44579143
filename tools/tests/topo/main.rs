//! The command `topo`, and `sim --topology`, by real processes: on small files of our own, on real machines'
//! files where there are some, and on this machine.

mod bad;
mod changes;
mod live;
mod machines;
mod program;
#[path = "../../../topology/tests/real/mod.rs"]
mod real;
mod sim;
mod views;
