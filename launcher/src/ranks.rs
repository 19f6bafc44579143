//! Starting the processes of the ranks.

use std::ffi::OsString;
use std::io;
use std::process::{Command, Stdio};

use nix::sched::CpuSet;
use nix::unistd::Pid;

use super::member::{Member, Role, spawn};
use super::relay::{Stream, Target};

/// What to start for one rank.
pub struct RankCommand<'a> {
    /// Its rank.
    pub rank: u32,
    /// The program, found as the shell would find it.
    pub program: &'a OsString,
    /// Its arguments.
    pub arguments: &'a [OsString],
    /// What is set in its environment.
    pub environment: Vec<(&'a str, String)>,
    /// Which processors it may use, unless all that the launcher may.
    pub processors: Option<CpuSet>,
    /// Whether its output goes where the launcher's goes, as it is.
    pub raw_output: bool,
}

/// Starts one rank, with nothing to read on its standard input. Also returns its output, unless
/// that is raw. For the main thread only.
pub fn start(command: &RankCommand) -> io::Result<(Member, Vec<Stream>)> {
    let mut process = Command::new(command.program);
    process.args(command.arguments).stdin(Stdio::null());
    process.envs(command.environment.iter().map(|(name, value)| (name, value)));
    if !command.raw_output {
        process.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let mut child = spawn(&mut process, command.processors)?;
    let prefix = format!("[{}] ", command.rank);
    let stdout = child.stdout.take().map(|it| Stream::new(&prefix, it.into(), Target::Stdout));
    let stderr = child.stderr.take().map(|it| Stream::new(&prefix, it.into(), Target::Stderr));
    let member = Member::new(Pid::from_raw(child.id() as i32), Role::Rank(command.rank))?;
    Ok((member, stdout.into_iter().chain(stderr).collect()))
}
