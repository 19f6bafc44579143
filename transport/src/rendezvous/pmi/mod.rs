//! PMI, the process-management interface of MPICH, Intel MPI, `srun --mpi=pmi2` and others, in its
//! versions 1 and 2: one value is told to all ranks.
//!
//! The launcher hands each rank a connected socket, whose number is in `PMI_FD`. The rank names a
//! version, and the launcher the one that it will be: Intel MPI's agrees to 2 and then fails, so that 1 is
//! named first unless the launcher shows by `PMI_JOBID`, which belongs to 2, that it means 2. The wire is
//! described in MPICH's sources (`src/pmi/maint/pmi-1.1.txt`, `pmi-2.0.txt`) and in Flux's RFC 13.

mod error;
#[cfg(test)]
mod tests;
mod wire;

use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use crate::process::inherited_descriptor;
pub use error::PmiError;
use wire::{Answer, Version, Wire};

/// Under which rank 0's value is kept.
const KEY: &str = "ringtree-rendezvous";

/// A rank's connection to its launcher, which serves once: [`Pmi::share`] ends it.
#[derive(Debug)]
pub struct Pmi {
    wire: Wire,
    version: Version,
    job: String,
}

/// The process that serves an inherited descriptor on this host, if that can be told: the same for all
/// ranks that it has started here, and no other job's.
pub fn server_process(descriptor: u32) -> Option<u32> {
    let descriptor = inherited_descriptor(descriptor).ok()?;
    let peer = getsockopt(&descriptor, PeerCredentials).ok()?;
    u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0)
}

impl Pmi {
    /// Greets the launcher behind an inherited descriptor as `rank` of `ranks`.
    ///
    /// # Errors
    /// [`PmiError`], at the latest at the deadline, which holds for all that is done later.
    pub fn open(
        descriptor: u32,
        rank: u32,
        ranks: u32,
        deadline: Instant,
    ) -> Result<Pmi, PmiError> {
        let inherited = inherited_descriptor(descriptor)
            .map_err(|error| PmiError::Descriptor { descriptor, reason: error.to_string() })?;
        let job = std::env::var("PMI_JOBID").ok();
        Pmi::over(UnixStream::from(inherited), job.as_deref(), rank, ranks, deadline)
    }

    /// `job` is what the launcher calls the job, and some want to hear.
    fn over(
        stream: UnixStream,
        job: Option<&str>,
        rank: u32,
        ranks: u32,
        deadline: Instant,
    ) -> Result<Pmi, PmiError> {
        let mut wire = Wire::new(stream, deadline);
        let version = agree(&mut wire, job.is_some())?;
        tracing::debug!("the launcher speaks PMI version {version:?}");
        let job = match version {
            Version::One => {
                let answer = wire.ask(version, "get_my_kvsname", &[], "my_kvsname")?;
                required(&answer, "get_my_kvsname", "kvsname")?
            }
            Version::Two => {
                let number = rank.to_string();
                let mut fields = vec![("pmirank", number.as_str()), ("threaded", "FALSE")];
                fields.extend(job.map(|job| ("pmijobid", job)));
                let answer = wire.ask(version, "fullinit", &fields, "fullinit-response")?;
                let told = ["rank", "size"].map(|name| answer.get(name)?.parse::<u32>().ok());
                if told != [Some(rank), Some(ranks)] {
                    let (request, answer) = ("fullinit", answer.text());
                    return Err(PmiError::Unexpected { request, answer });
                }
                let answer = wire.ask(version, "job-getid", &[], "job-getid-response")?;
                required(&answer, "job-getid", "jobid")?
            }
        };
        Ok(Pmi { wire, version, job })
    }

    /// What the launcher calls the job, on all ranks the same.
    pub fn job(&self) -> &str {
        &self.job
    }

    /// Tells all ranks rank 0's value, which only rank 0 gives, and says goodbye. All ranks call it and
    /// wait for each other.
    ///
    /// # Errors
    /// [`PmiError`].
    pub fn share(mut self, value: Option<&str>) -> Result<String, PmiError> {
        let Pmi { wire, version, job } = &mut self;
        let (version, job) = (*version, job.as_str());
        let missing = |error| match error {
            PmiError::TimedOut { .. } => PmiError::RanksMissing,
            other => other,
        };
        let (answer, get) = match version {
            Version::One => {
                if let Some(value) = value {
                    let fields = [("kvsname", job), ("key", KEY), ("value", value)];
                    wire.ask(version, "put", &fields, "put_result")?;
                }
                wire.ask(version, "barrier_in", &[], "barrier_out").map_err(missing)?;
                let fields = [("kvsname", job), ("key", KEY)];
                (wire.ask(version, "get", &fields, "get_result")?, "get")
            }
            Version::Two => {
                if let Some(value) = value {
                    let fields = [("key", KEY), ("value", value)];
                    wire.ask(version, "kvs-put", &fields, "kvs-put-response")?;
                }
                wire.ask(version, "kvs-fence", &[], "kvs-fence-response").map_err(missing)?;
                let fields = [("jobid", job), ("srcid", "-1"), ("key", KEY)];
                (wire.ask(version, "kvs-get", &fields, "kvs-get-response")?, "kvs-get")
            }
        };
        let shared = required(&answer, get, "value")?;
        // Without a goodbye, the end of this process is a failure to some launchers.
        match version {
            Version::One => wire.ask(version, "finalize", &[], "finalize_ack")?,
            Version::Two => wire.ask(version, "finalize", &[], "finalize-response")?,
        };
        Ok(shared)
    }
}

/// A version that both sides speak. Whatever it is, this is said in that of version 1.
fn agree(wire: &mut Wire, prefers_two: bool) -> Result<Version, PmiError> {
    let versions = [("1", "1"), ("2", "0")];
    let [first, second] = if prefers_two { [versions[1], versions[0]] } else { versions };
    let offer = |wire: &mut Wire, (version, subversion)| {
        let fields = [("pmi_version", version), ("pmi_subversion", subversion)];
        wire.exchange(Version::One, "init", &fields)
    };
    let is_agreed = |answer: &Answer| {
        let is_answer = answer.get("cmd") == Some("response_to_init");
        is_answer && matches!(answer.get("rc"), None | Some("0"))
    };
    let mut answer = offer(wire, first)?;
    if !is_agreed(&answer) {
        answer = offer(wire, second)?;
    }
    match answer.get("pmi_version") {
        Some("1") if is_agreed(&answer) => Ok(Version::One),
        Some("2") if is_agreed(&answer) => Ok(Version::Two),
        _ => Err(PmiError::Unexpected { request: "init", answer: answer.text() }),
    }
}

fn required(answer: &Answer, request: &'static str, field: &str) -> Result<String, PmiError> {
    let missing = || PmiError::Unexpected { request, answer: answer.text() };
    answer.get(field).filter(|value| !value.is_empty()).map(str::to_string).ok_or_else(missing)
}
