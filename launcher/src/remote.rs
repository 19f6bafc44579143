//! The ranks of other hosts: a launcher there, that this one starts over ssh.
//!
//! ```text
//!   ringtree run --hosts a:2,b:2 -- ./train
//!     +-- ssh a 'cd .. && exec ringtree remote'  - - -  ringtree remote -- ranks 0 and 1
//!     +-- ssh b 'cd .. && exec ringtree remote'  - - -  ringtree remote -- ranks 2 and 3
//! ```
//!
//! What a launcher needs to know, the job's secret included, comes to its standard input: nothing
//! of it is an argument. Behind that come the numbers of signals for its ranks. When the input
//! ends, whoever sent it is gone, and the ranks are killed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::Binding;
use super::hostlist::HostShare;
use super::hosts::quoted;
use super::member::{Member, Role, spawn};
use super::relay::{Stream, Target};
use super::restart::Limits;

/// The command of this program that takes its part in a job from standard input.
pub const COMMAND: &str = "remote";

/// Longer than any list of arguments that the system takes.
const LIMIT_BYTES: u32 = 64 << 20;

/// The part of a job that one launcher starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    /// The ranks.
    pub ranks: Range<u32>,
    /// What is set in their environment, beside their own places.
    pub environment: Vec<(String, String)>,
    /// What each is bound to.
    pub binding: Binding,
    /// The program of every rank.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Whether rank 0's output is passed on as it is.
    pub raw_output_of_rank_0: bool,
    /// How long the others may run on after a rank has failed, and again after they were asked to
    /// end.
    pub grace: Duration,
    /// What is done about ranks that die; without it, the first one that fails ends the others.
    pub limits: Option<Limits>,
}

/// The way to a launcher on another host. Dropping it ends its ranks.
pub struct Line(Sender<Signal>);

impl Line {
    /// Passes a signal on to the ranks there; SIGKILL kills all of them.
    pub fn pass_on(&self, signal: Signal) {
        // There is nobody to take it if this fails.
        let _ = self.0.send(signal);
    }
}

/// Starts the launcher of a host and hands it its part: by `ssh`, or directly where the host is this
/// one. Also returns what it prints, unless rank 0's output is raw and there. For the main thread
/// only.
pub fn start(host: &HostShare, part: &Part, ssh: &str) -> io::Result<(Member, Vec<Stream>)> {
    let mut process = command(&host.name, ssh)?;
    process.stdin(Stdio::piped());
    let is_raw = part.raw_output_of_rank_0 && part.ranks.contains(&0);
    if !is_raw {
        process.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let mut child = spawn(&mut process, None)?;
    let stdout = child.stdout.take().map(|it| Stream::new("", it.into(), Target::Stdout));
    let stderr = child.stderr.take().map(|it| Stream::new("", it.into(), Target::Stderr));
    let line = match child.stdin.take() {
        Some(input) => open_line(input, part)?,
        None => return Err(io::Error::other("it has no standard input")),
    };
    let role = Role::Host { name: host.name.clone(), ranks: part.ranks.clone(), line };
    let member = Member::new(Pid::from_raw(child.id() as i32), role)?;
    Ok((member, stdout.into_iter().chain(stderr).collect()))
}

/// Whether a name means the host that this process is on.
pub fn is_this_host(name: &str) -> bool {
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    ["localhost", "127.0.0.1", "::1", own.trim()].contains(&name)
}

/// The part that another launcher hands over on standard input, and the input, on which signals
/// follow.
///
/// # Errors
/// It ends early or says something else.
pub fn receive() -> io::Result<(Part, File)> {
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > LIMIT_BYTES {
        return Err(io::Error::other("only `ringtree run --hosts` starts this"));
    }
    let mut bytes = vec![0; length as usize];
    input.read_exact(&mut bytes)?;
    Ok((serde_json::from_slice(&bytes)?, input))
}

/// The signals that have come on `input`; `None` at its end.
pub fn signals_from(input: &mut File) -> io::Result<Option<Vec<Signal>>> {
    let mut numbers = [0; 64];
    let count = input.read(&mut numbers)?;
    let signals = numbers[..count].iter().filter_map(|&n| Signal::try_from(i32::from(n)).ok());
    Ok((count > 0).then(|| signals.collect()))
}

/// What starts the launcher of a host, in the folder that this one is in.
fn command(host: &str, ssh: &str) -> io::Result<Command> {
    let program = env::current_exe()?;
    if is_this_host(host) {
        let mut process = Command::new(program);
        process.arg(COMMAND);
        return Ok(process);
    }
    let mut words = ssh.split_whitespace();
    let mut process = Command::new(words.next().unwrap_or_default());
    process.args(words).arg(host).arg(line_for_shell(&env::current_dir()?, program.as_os_str()));
    Ok(process)
}

fn line_for_shell(folder: &Path, program: &OsStr) -> String {
    format!("cd {} && exec {} {COMMAND}", quoted(folder.as_os_str()), quoted(program))
}

/// A thread writes, since nobody may read for long.
fn open_line(mut input: ChildStdin, part: &Part) -> io::Result<Line> {
    let bytes = serde_json::to_vec(part)?;
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= LIMIT_BYTES);
    let length = length.ok_or(io::ErrorKind::ArgumentListTooLong)?;
    let message = [&length.to_le_bytes()[..], &bytes].concat();
    let (line, signals): (_, Receiver<Signal>) = channel();
    thread::Builder::new().name("line".into()).spawn(move || {
        // An error means that nobody is there any more, whose end is noticed.
        let mut written = input.write_all(&message);
        while let (Ok(()), Ok(signal)) = (&written, signals.recv()) {
            written = input.write_all(&[signal as u8]);
        }
    })?;
    Ok(Line(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_for_the_shell_holds_what_is_public() {
        let line = line_for_shell(Path::new("/home/it's me"), OsStr::new("/opt/ringtree"));
        assert_eq!(line, r"cd '/home/it'\''s me' && exec /opt/ringtree remote");
    }

    #[test]
    fn names_of_this_host() {
        assert!(is_this_host("localhost") && is_this_host("::1"));
        assert!(!is_this_host("localhost.example") && !is_this_host(""));
    }
}
