//! The program `ringtree`.

mod cli;
mod run;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
