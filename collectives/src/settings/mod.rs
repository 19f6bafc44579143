//! Who this rank is and how it finds the others: from the environment or set by hand.

mod launchers;
mod list;
mod secrets;
mod variables;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ringtree_transport::endpoint::Transports;
use ringtree_transport::host_port::HostPort;
use ringtree_transport::ports::PortRange;
use ringtree_transport::rdma::RdmaConfig;
use ringtree_transport::rendezvous::Place as MeetingPlace;
use ringtree_transport::secure::Job;
use ringtree_transport::shm::Attach;

use crate::{Costs, Error, TopologySource, Tuning};
use launchers::Place;
pub use list::Setting;
use secrets::Reach;
pub(crate) use secrets::forget_host_secret;
use variables::{Variables, settings};

/// How long an operation may be without progress, unless set.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections between two ranks at most, for each pair of interfaces.
pub const MAX_SOCKETS: u32 = 8;

/// No deadline is later than this: a year, which stands for never.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Who told this rank its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// `RINGTREE_*`.
    Ringtree,
    /// The variables that torchrun sets.
    Torchrun,
    /// `OMPI_COMM_WORLD_*`.
    OpenMpi,
    /// `PMI_*`: MPICH, Intel MPI or `srun --mpi=pmi2`.
    Pmi,
    /// `SLURM_*` of a step.
    Slurm,
    /// `PET_*`.
    Kubeflow,
    /// `JOB_COMPLETION_INDEX`.
    IndexedJob,
    /// `TF_CONFIG`.
    TfConfig,
    /// `HOROVOD_*`.
    Horovod,
    /// Nobody: it is alone.
    Alone,
    /// Set by the program.
    Explicit,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Ringtree => "RINGTREE_* variables",
            Source::Torchrun => "torchrun",
            Source::OpenMpi => "Open MPI",
            Source::Pmi => "PMI (MPICH, Intel MPI, srun --mpi=pmi2)",
            Source::Slurm => "Slurm",
            Source::Kubeflow => "Kubeflow",
            Source::IndexedJob => "a Kubernetes indexed job",
            Source::TfConfig => "TF_CONFIG",
            Source::Horovod => "Horovod",
            Source::Alone => "nobody: a single process",
            Source::Explicit => "the program",
        })
    }
}

/// Which variables gave what each launcher tells in its own way; empty where none did. All other
/// settings are given by `RINGTREE_*` variables of their names, or have their defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origins {
    /// The variable that gave [`Settings::rank`].
    pub rank: &'static str,
    /// That gave [`Settings::ranks`].
    pub ranks: &'static str,
    /// That gave [`Settings::local_rank`].
    pub local_rank: &'static str,
    /// That gave [`Settings::rendezvous`].
    pub rendezvous: &'static str,
    /// That gave the job's name.
    pub job: &'static str,
}

/// Everything that a rank needs to know to join a communicator. From the environment, or set by
/// hand:
///
/// ```
/// # use std::time::Duration;
/// use ringtree::{
///     Attach, Costs, Job, RdmaConfig, Secret, Settings, Source, TopologySource, Transports, Tuning,
/// };
///
/// let settings = Settings {
///     source: Source::Explicit,
///     rank: 2,
///     ranks: 8,
///     local_rank: None,
///     rendezvous: "10.0.0.1:7000".to_string(),
///     job: Job { name: "night run".to_string(), secret: Secret::from_text("from a safe place") },
///     timeout: Duration::from_secs(60),
///     transports: Transports::Auto,
///     interface: None,
///     ports: None,
///     advertise: vec![],
///     sockets: 1,
///     encrypts: false,
///     checksums: false,
///     attach: Attach::Auto,
///     rdma: RdmaConfig::default(),
///     cuda_library: None,
///     reproducible: false,
///     joins: false,
///     topology: TopologySource::System,
///     switches: None,
///     costs: Costs::default(),
///     tuning: Tuning::Off,
/// };
/// # assert!(!format!("{settings:?}").contains("safe place"));
/// ```
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where they came from.
    pub source: Source,
    /// This rank, below `ranks`.
    pub rank: u32,
    /// Members of the communicator.
    pub ranks: u32,
    /// This rank's number on its host, where the launcher tells it: for the program, to choose a
    /// device. The library finds out for itself who is on which host.
    pub local_rank: Option<u32>,
    /// Where the ranks meet: `host:port`, where the launcher or rank 0 serves; `file:/path`, a file in
    /// a folder that all ranks share, in which that one tells where it serves; `pmi:DESCRIPTOR`, where
    /// rank 0 tells it over the launcher's PMI. A single rank needs no port: `127.0.0.1:0`.
    pub rendezvous: String,
    /// Name and secret that every connection proves.
    pub job: Job,
    /// Time without progress after which an operation fails, and time to find all ranks; above 0,
    /// and more than a year counts as one.
    pub timeout: Duration,
    /// Which transports may be used.
    pub transports: Transports,
    /// Name (`eth0`) or subnet (`10.1.0.0/16`) of the interface for TCP, or several separated by
    /// commas, which share the work; `None`: the one that reaches the rendezvous.
    pub interface: Option<String>,
    /// Ports that this process may listen on; `None`: any. It needs one for each communicator and
    /// interface, and one more where it serves the rendezvous at a port that is not given. Where there are two for each rank of
    /// the job and one more, it takes another one, to serve the others if whoever serves them is gone.
    pub ports: Option<PortRange>,
    /// What other ranks are told instead of the address of each interface, where this rank is
    /// behind address translation; without a port, the one that is listened on. Empty: the
    /// addresses themselves.
    pub advertise: Vec<HostPort>,
    /// Connections between two ranks over TCP, for each pair of interfaces; from 1 to
    /// [`MAX_SOCKETS`]. More than one helps where the network limits what a connection carries.
    pub sockets: u32,
    /// Whether TCP connections encrypt what they carry (AES-256-GCM); all ranks alike.
    pub encrypts: bool,
    /// Whether all that ranks send each other has checksums (CRC32C), so that a bit that memory or a network
    /// changes ends the call with an error instead of a wrong result; all ranks alike. Nothing is read or written in
    /// place by another process or GPU then. `docs/reliability.md` says what it costs.
    pub checksums: bool,
    /// When ranks of one host copy each other's memory by cross-memory attach; with a rank that never does
    /// so nobody does.
    pub attach: Attach,
    /// How RDMA is used, if it may be.
    pub rdma: RdmaConfig,
    /// The CUDA driver's library, which is opened when a GPU is first asked for; `None`: the one that the system
    /// finds.
    pub cuda_library: Option<PathBuf>,
    /// Whether reductions give the same bits whatever the algorithm, the size, the grouping and the hosts
    /// of the ranks: each result is one fold over all ranks, in their order. All ranks alike.
    pub reproducible: bool,
    /// Whether this process comes to a job that runs: its members let it in
    /// ([`Communicator::admit`](crate::Communicator::admit)), and `rank` and `ranks` do not count.
    pub joins: bool,
    /// How this rank finds out how its host is wired, which says in which order a ring of the ranks goes, and how
    /// fast its ports are.
    pub topology: TopologySource,
    /// The switches that this rank's host is below, from the uppermost down, separated by full stops, where the launcher
    /// tells them: hosts below the same ones are neighbours in rings.
    pub switches: Option<String>,
    /// By what algorithms are chosen: all ranks use rank 0's. Figures of the network that are the default's give way to
    /// what is known of the ports: [`NetworkFigures`](crate::NetworkFigures).
    pub costs: Costs,
    /// By which measured times, which count more: all ranks use rank 0's.
    pub tuning: Tuning,
}

impl Settings {
    /// Settings from this process's environment: `RINGTREE_*`, else what launchers tell, in the order
    /// of [`Source`]. Without any of it, those of a single process.
    ///
    /// # Errors
    /// [`Error::Settings`] where a variable is missing, malformed or contradicts another.
    pub fn from_env() -> Result<Settings, Error> {
        let settings = Settings::from_variables(&environment())?;
        let Settings { source, rank, ranks, rendezvous, .. } = &settings;
        tracing::info!("rank {rank} of {ranks} by {source}, rendezvous {rendezvous}");
        Ok(settings)
    }

    /// Whether a launcher has told this process a rank, be it with mistakes.
    pub fn in_env() -> bool {
        !matches!(launchers::told_place(&Variables(&environment())), Ok(None))
    }

    /// Settings from named variables.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn from_variables(variables: &HashMap<String, String>) -> Result<Settings, Error> {
        Ok(Settings::with_origins(variables)?.0)
    }

    /// Settings from named variables, and which of these gave what launchers tell.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn with_origins(variables: &HashMap<String, String>) -> Result<(Settings, Origins), Error> {
        let env = Variables(variables);
        let place = launchers::place(&env)?;
        let job = env.text("RINGTREE_JOB").or(place.job.clone());
        let name = job.as_ref().map_or("default", |job| &job.value).to_string();
        let secret = secrets::secret(&env, reach(&place, &name))?;
        let Place { source, rank, ranks, local_rank, rendezvous, .. } = place;
        let origins = Origins {
            rank: rank.variable,
            ranks: ranks.variable,
            local_rank: local_rank.as_ref().map_or("", |told| told.variable),
            rendezvous: rendezvous.variable,
            job: job.map_or("", |told| told.variable),
        };
        let settings = Settings {
            source,
            rank: rank.value,
            ranks: ranks.value,
            local_rank: local_rank.map(|told| told.value),
            rendezvous: rendezvous.value,
            job: Job { name, secret },
            timeout: env.timeout()?,
            transports: env.transports()?,
            interface: env.get("RINGTREE_INTERFACE").map(str::to_string),
            ports: env.ports()?,
            advertise: env.advertise()?,
            sockets: env.sockets()?,
            encrypts: env.flag("RINGTREE_ENCRYPT")?,
            checksums: env.flag("RINGTREE_CHECKSUMS")?,
            attach: env.attach()?,
            rdma: env.rdma()?,
            cuda_library: env.get("RINGTREE_CUDA_LIBRARY").map(PathBuf::from),
            reproducible: env.flag("RINGTREE_REPRODUCIBLE")?,
            joins: env.flag("RINGTREE_JOIN")?,
            topology: env.topology(),
            switches: launchers::switches(&env),
            costs: Costs::default(),
            tuning: env.tuning()?,
        };
        settings.check()?;
        Ok((settings, origins))
    }

    /// Whether they make sense.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Settings { rank, ranks, rendezvous, .. } = self;
        if rank >= ranks {
            return Err(settings(format!("rank {rank} of {ranks}: ranks count from 0")));
        }
        check_meeting_place(rendezvous, *ranks)?;
        if self.timeout.is_zero() {
            return Err(settings("the timeout must be above 0"));
        }
        if !(1..=MAX_SOCKETS).contains(&self.sockets) {
            return Err(settings(format!(
                "{} sockets: a link has 1 to {MAX_SOCKETS} for each pair of interfaces",
                self.sockets
            )));
        }
        let leads_anywhere = !self.ports.is_some_and(|ports| ports.is_single());
        match self.advertise.iter().find(|told| told.port.is_some() && leads_anywhere) {
            Some(told) => Err(settings(format!(
                "RINGTREE_ADVERTISE={told} names a port: set RINGTREE_PORTS to the one port of \
                 this host that it leads to"
            ))),
            None => self.costs.check().map_err(settings),
        }
    }

    /// The descriptor over which rank 0 tells where the ranks meet, if it does so.
    pub(crate) fn pmi_descriptor(&self) -> Option<u32> {
        self.rendezvous.strip_prefix("pmi:")?.parse().ok()
    }

    /// Whether this rank is the only one, at whatever port.
    pub(crate) fn is_alone(&self) -> bool {
        self.ranks == 1 && self.rendezvous.ends_with(":0")
    }

    /// The timeout, short enough to be added to any time.
    pub(crate) fn bounded_timeout(&self) -> Duration {
        self.timeout.min(LONGEST_TIMEOUT)
    }

    /// What all ranks must have in common, in words.
    pub(crate) fn terms(&self) -> String {
        terms(self.transports, self.reproducible, self.checksums)
    }
}

/// As [`Settings::terms`].
pub(crate) fn terms(transports: Transports, reproducible: bool, checksums: bool) -> String {
    let mode = if reproducible { ", reproducible" } else { "" };
    let checksums = if checksums { ", with checksums" } else { "" };
    format!("over {transports}{mode}{checksums}")
}

/// Whether all of `ranks` can find each other there.
fn check_meeting_place(rendezvous: &str, ranks: u32) -> Result<(), Error> {
    let wrong = |reason: String| settings(format!("the rendezvous is {reason}"));
    if let Some(descriptor) = rendezvous.strip_prefix("pmi:") {
        let number = descriptor.parse::<u32>().map(drop);
        return number.map_err(|_| wrong(format!("\"{rendezvous}\", not pmi:DESCRIPTOR")));
    }
    let address = match MeetingPlace::of(rendezvous) {
        MeetingPlace::Address(address) => address,
        MeetingPlace::File(path) if path.file_name().is_some() => return Ok(()),
        MeetingPlace::File(_) => {
            return Err(wrong(format!("\"{rendezvous}\": name a file, such as file:/shared/meet")));
        }
    };
    match address.parse::<HostPort>().map_err(|error| wrong(error.to_string()))?.port {
        Some(0) if ranks > 1 => {
            Err(wrong(format!("\"{address}\": name the port, since all ranks must know it")))
        }
        Some(_) => Ok(()),
        None => Err(wrong(format!("\"{address}\", not host:port"))),
    }
}

/// This process's variables. What is not text cannot be one that is looked for.
fn environment() -> HashMap<String, String> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// Who must have the job's secret.
fn reach<'a>(place: &'a Place, name: &'a str) -> Reach<'a> {
    let job = place.job.as_ref().map_or(name, |job| &job.value);
    match place.rendezvous.value.as_str() {
        _ if place.source == Source::Alone => Reach::Process,
        _ if !place.is_on_one_host() => Reach::Network,
        // Each rank has a descriptor of its own: only the launcher's name for the job is the same.
        pmi if pmi.starts_with("pmi:") && place.job.is_some() => {
            Reach::Host { rendezvous: "pmi:", job }
        }
        pmi if pmi.starts_with("pmi:") => Reach::Network,
        rendezvous => Reach::Host { rendezvous, job },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Settings, Error> {
        let pairs = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        Settings::from_variables(&pairs.collect())
    }

    const OURS: [(&str, &str); 4] = [
        ("RINGTREE_RANK", "1"),
        ("RINGTREE_RANKS", "4"),
        ("RINGTREE_RENDEZVOUS", "10.0.0.1:7000"),
        ("RINGTREE_SECRET", "x"),
    ];

    #[test]
    fn our_own_variables() {
        let settings = parse(&OURS).unwrap();
        assert_eq!((settings.rank, settings.ranks, settings.source), (1, 4, Source::Ringtree));
        assert_eq!(settings.timeout, DEFAULT_TIMEOUT);
    }

    #[test]
    fn places_and_addresses_of_all_kinds() {
        let with = |pairs: &[(&str, &str)]| parse(&[&OURS[..], pairs].concat()).unwrap();
        for rendezvous in ["[::1]:7000", "node7:7000", "file:/shared/meet", "file:meet", "pmi:9"] {
            assert_eq!(with(&[("RINGTREE_RENDEZVOUS", rendezvous)]).rendezvous, rendezvous);
        }
        let settings = with(&[
            ("RINGTREE_PORTS", "40000"),
            ("RINGTREE_ADVERTISE", "203.0.113.5:50000, [2001:db8::5], gateway"),
        ]);
        let told: Vec<String> = settings.advertise.iter().map(HostPort::to_string).collect();
        assert_eq!(told, ["203.0.113.5:50000", "[2001:db8::5]", "gateway"]);
        assert!(settings.ports.is_some_and(|ports| ports.is_single()));
    }

    #[test]
    fn contradictions_say_what_is_wrong() {
        let with = |name: &'static str, value: &'static str| {
            let pairs: Vec<_> =
                OURS.iter().copied().filter(|(k, _)| *k != name).chain([(name, value)]).collect();
            parse(&pairs).unwrap_err().to_string()
        };
        assert!(with("RINGTREE_INSECURE", "yes").contains("neither 0 nor 1"));
        assert!(with("RINGTREE_RANK", "4").contains("must be below RINGTREE_RANKS=4"));
        assert!(with("RINGTREE_RANK", "one").contains("not a number"));
        assert!(with("RINGTREE_RENDEZVOUS", "").contains("RINGTREE_RENDEZVOUS is not set"));
        assert!(with("RINGTREE_RENDEZVOUS", "host").contains("not host:port"));
        assert!(with("RINGTREE_RENDEZVOUS", "host:0").contains("name the port"));
        assert!(with("RINGTREE_RENDEZVOUS", "::1:7000").contains("in brackets"));
        assert!(with("RINGTREE_RENDEZVOUS", "[fe80::1]:7000").contains("link-local"));
        assert!(with("RINGTREE_RENDEZVOUS", "file:/").contains("name a file"));
        assert!(with("RINGTREE_PORTS", "40100-40000").contains("not a range of ports"));
        assert!(with("RINGTREE_PORTS", "many").starts_with("RINGTREE_PORTS"));
        assert!(with("RINGTREE_ADVERTISE", "fd00::1").contains("in brackets"));
        assert!(with("RINGTREE_ADVERTISE", "203.0.113.5:50000").contains("set RINGTREE_PORTS"));
        assert!(with("RINGTREE_SECRET", "").contains("no secret"));
        assert!(with("RINGTREE_TIMEOUT", "-1").contains("RINGTREE_TIMEOUT"));
        assert!(with("RINGTREE_TUNING", "on").contains("neither kept nor off"));
        assert!(
            with("RINGTREE_TRANSPORT", "pigeon").contains("none of auto, shm, tcp, rdma, rdma,tcp")
        );
        assert!(with("RINGTREE_RDMA_RETRIES", "7").contains("not a number from 0 to 6"));
        assert!(with("RINGTREE_RDMA_DEVICES", "mlx5_0:0").contains("neither none nor a list"));
        assert!(with("RINGTREE_RDMA_MTU", "1500").contains("512, 1024, 2048"));
        assert!(with("RINGTREE_ATTACH", "perhaps").contains("none of auto, always, never"));
    }
}
