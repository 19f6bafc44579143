//! Starting the processes of the ranks, and starting them again.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sched::CpuSet;
use nix::unistd::Pid;

use super::LaunchError;
use super::member::{Member, Role, spawn};
use super::relay::{Stream, Target};
use super::remote::Part;
use super::restart::Limits;

/// Tells a rank's process that the others run already, and must take it in.
const JOIN: &str = "RINGTREE_JOIN";

/// How each rank of a part is started.
pub struct Ranks {
    part: Part,
    /// Which processors each may use, unless all may use all that the launcher may.
    sets: Option<Vec<CpuSet>>,
}

impl Ranks {
    /// The ranks of `part`.
    ///
    /// # Errors
    /// They shall be bound, and the system does not say to what.
    pub fn new(part: Part) -> io::Result<Ranks> {
        let sets = part.binding.sets(part.ranks.len())?;
        Ok(Ranks { part, sets })
    }

    /// Which ranks these are.
    pub fn all(&self) -> Range<u32> {
        self.part.ranks.clone()
    }

    /// What is done about those that die, if the others shall not end.
    pub fn limits(&self) -> Option<Limits> {
        self.part.limits
    }

    /// Starts a rank.
    ///
    /// # Errors
    /// As [`Ranks::start_again`].
    pub fn start(&self, rank: u32) -> Result<(Member, Vec<Stream>), LaunchError> {
        let mut process = self.command(rank);
        // A launcher that was itself started again may have it.
        process.env_remove(JOIN);
        self.spawn(process, rank)
    }

    /// Starts a rank whose process has died: a new one like the first, which asks to be taken in.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start_again(&self, rank: u32) -> Result<(Member, Vec<Stream>), LaunchError> {
        let mut process = self.command(rank);
        process.env(JOIN, "1");
        self.spawn(process, rank)
    }

    fn command(&self, rank: u32) -> Command {
        let part = &self.part;
        // The program is found as the shell would find it.
        let mut process = Command::new(&part.program);
        process.args(&part.arguments).stdin(Stdio::null());
        process.envs(part.environment.iter().map(|(name, value)| (name, value)));
        process.env("RINGTREE_RANK", rank.to_string());
        process.env("RINGTREE_LOCAL_RANK", self.local_rank(rank).to_string());
        process
    }

    /// Also returns its output, unless that goes where the launcher's goes, as it is. For the main
    /// thread only.
    fn spawn(&self, mut process: Command, rank: u32) -> Result<(Member, Vec<Stream>), LaunchError> {
        if !(rank == 0 && self.part.raw_output_of_rank_0) {
            process.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let processors = self.sets.as_ref().map(|sets| sets[self.local_rank(rank)]);
        let failed =
            |source| LaunchError::Program { program: PathBuf::from(&self.part.program), source };
        let mut child = spawn(&mut process, processors).map_err(failed)?;
        let prefix = format!("[{rank}] ");
        let stdout = child.stdout.take().map(|it| Stream::new(&prefix, it.into(), Target::Stdout));
        let stderr = child.stderr.take().map(|it| Stream::new(&prefix, it.into(), Target::Stderr));
        let member = Member::new(Pid::from_raw(child.id() as i32), Role::Rank(rank));
        Ok((member.map_err(failed)?, stdout.into_iter().chain(stderr).collect()))
    }

    fn local_rank(&self, rank: u32) -> usize {
        (rank - self.part.ranks.start) as usize
    }
}
