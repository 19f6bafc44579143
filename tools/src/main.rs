//! The program `ringtree`.

mod bench;
mod chart;
mod cli;
mod collective;
mod config;
mod doctor;
mod manual;
mod plan;
mod sim;
mod topo;
mod tune;
mod words;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
