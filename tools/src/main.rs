//! The program `ringtree`.

mod bench;
mod cli;
mod plan;
mod run;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
