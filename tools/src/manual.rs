//! `ringtree completions` and `ringtree man`: what shells and manuals know of the command line,
//! generated from it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::words::say;
use ringtree_launcher::report;

/// Prints what makes a shell complete this program's commands and options
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ringtree completions bash >~/.local/share/bash-completion/completions/ringtree\n  \
                        ringtree completions fish >~/.config/fish/completions/ringtree.fish"
)]
pub struct CompletionsArguments {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the manual page, or writes one for each command
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  ringtree man | man -l -\n  \
                        ringtree man --dir ~/.local/share/man/man1")]
pub struct ManArguments {
    /// Write ringtree.1, ringtree-bench.1 and so on into this folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints completions for a shell.
pub fn completions(arguments: &CompletionsArguments, mut command: Command) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "ringtree", &mut script);
    say(&String::from_utf8_lossy(&script), 0)
}

/// Prints the manual page, or writes all of them.
pub fn man(arguments: &ManArguments, command: Command) -> ExitCode {
    let failed = |error: io::Error, what: &str| {
        report(&format!("cannot write {what}: {error}"));
        ExitCode::FAILURE
    };
    match &arguments.dir {
        None => {
            let mut page = Vec::new();
            match Man::new(command).render(&mut page) {
                Ok(()) => say(&String::from_utf8_lossy(&page), 0),
                Err(error) => failed(error, "the page"),
            }
        }
        Some(folder) => {
            let made = fs::create_dir_all(folder);
            match made.and_then(|()| clap_mangen::generate_to(command, folder)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(error, &folder.display().to_string()),
            }
        }
    }
}
