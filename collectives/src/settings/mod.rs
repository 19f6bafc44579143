//! Who this rank is and how it finds the others: from the environment or set by hand.

mod launchers;
mod list;
mod secrets;
mod variables;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use ringtree_transport::endpoint::Transports;
use ringtree_transport::host_port::HostPort;
use ringtree_transport::ports::PortRange;
use ringtree_transport::rendezvous::Place as MeetingPlace;
use ringtree_transport::secure::Job;

use crate::{Costs, Error};
use launchers::{Place, Told};
pub use list::Setting;
pub(crate) use secrets::forget_host_secret;
use variables::{Variables, settings};

/// How long an operation may be without progress, unless set.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections between two ranks at most, for each pair of interfaces.
pub const MAX_SOCKETS: u32 = 8;

/// No deadline is later than this: a year, which stands for never.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Where the settings came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `RINGTREE_*`.
    Ringtree,
    /// The variables that torchrun sets.
    Torchrun,
    /// Set by the program.
    Explicit,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Ringtree => "RINGTREE_* variables",
            Source::Torchrun => "torchrun's variables",
            Source::Explicit => "the program",
        })
    }
}

/// Which variables gave what each launcher tells in its own way. All other settings are given by
/// `RINGTREE_*` variables of their names, or have their defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins {
    /// The variable that gave [`Settings::rank`].
    pub rank: &'static str,
    /// That gave [`Settings::ranks`].
    pub ranks: &'static str,
    /// That gave [`Settings::rendezvous`].
    pub rendezvous: &'static str,
    /// That gave the job's name, if any did.
    pub job: Option<&'static str>,
}

/// Everything that a rank needs to know to join a communicator. From the environment, or set by
/// hand:
///
/// ```
/// # use std::time::Duration;
/// use ringtree::{Costs, Job, Secret, Settings, Source, Transports};
///
/// let settings = Settings {
///     source: Source::Explicit,
///     rank: 2,
///     ranks: 8,
///     rendezvous: "10.0.0.1:7000".to_string(),
///     job: Job { name: "night run".to_string(), secret: Secret::from_text("from a safe place") },
///     timeout: Duration::from_secs(60),
///     transports: Transports::Auto,
///     interface: None,
///     ports: None,
///     advertise: vec![],
///     sockets: 1,
///     encrypts: false,
///     reproducible: false,
///     costs: Costs::default(),
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
    /// Where the ranks meet: `host:port`, where the launcher or rank 0 serves, or `file:/path`, a
    /// file in a folder that all ranks share, in which that one tells where it serves.
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
    /// interface, and one more where it serves the rendezvous at a port that is not given.
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
    /// Whether reductions give the same bits whatever the algorithm, the size, the grouping and the hosts
    /// of the ranks: each result is one fold over all ranks, in their order. All ranks alike.
    pub reproducible: bool,
    /// By what algorithms are chosen: all ranks use rank 0's.
    pub costs: Costs,
}

impl Settings {
    /// Settings from this process's environment: `RINGTREE_*`, else torchrun's.
    ///
    /// # Errors
    /// [`Error::Settings`] where a variable is missing, malformed or contradicts another.
    pub fn from_env() -> Result<Settings, Error> {
        // What is not text cannot be one of ours.
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Settings::from_variables(&std::env::vars_os().filter_map(text).collect())
    }

    /// Whether the environment names a rank, so that [`Settings::from_env`] is meant to succeed.
    pub fn in_env() -> bool {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        set("RINGTREE_RANK") || set("RINGTREE_RANKS") || (set("RANK") && set("WORLD_SIZE"))
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
        let Place { source, rank, ranks, is_on_one_host, rendezvous, job } =
            launchers::place(&env)?;
        let set_name = env.get("RINGTREE_JOB");
        let set_name =
            set_name.map(|name| Told { value: name.to_string(), variable: "RINGTREE_JOB" });
        let job = set_name.or(job);
        let name = job.as_ref().map_or("default", |job| &job.value).to_string();
        let secret = secrets::secret(&env, &rendezvous.value, &name, is_on_one_host)?;
        let settings = Settings {
            source,
            rank: rank.value,
            ranks: ranks.value,
            rendezvous: rendezvous.value,
            job: Job { name, secret },
            timeout: env.timeout()?,
            transports: env.transports()?,
            interface: env.get("RINGTREE_INTERFACE").map(str::to_string),
            ports: env.ports()?,
            advertise: env.advertise()?,
            sockets: env.sockets()?,
            encrypts: env.flag("RINGTREE_ENCRYPT")?,
            reproducible: env.flag("RINGTREE_REPRODUCIBLE")?,
            costs: Costs::default(),
        };
        settings.check()?;
        let origins = Origins {
            rank: rank.variable,
            ranks: ranks.variable,
            rendezvous: rendezvous.variable,
            job: job.map(|job| job.variable),
        };
        Ok((settings, origins))
    }

    /// Whether they make sense.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Settings { rank, ranks, rendezvous, .. } = self;
        if rank >= ranks {
            return Err(settings(format!("rank {rank} of {ranks}: ranks count from 0")));
        }
        check_meeting_place(rendezvous)?;
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

    /// The timeout, short enough to be added to any time.
    pub(crate) fn bounded_timeout(&self) -> Duration {
        self.timeout.min(LONGEST_TIMEOUT)
    }
}

fn check_meeting_place(rendezvous: &str) -> Result<(), Error> {
    let address = match MeetingPlace::of(rendezvous) {
        MeetingPlace::Address(address) => address,
        MeetingPlace::File(path) if path.file_name().is_some() => return Ok(()),
        MeetingPlace::File(_) => {
            return Err(settings(format!(
                "the rendezvous is \"{rendezvous}\": name a file, such as file:/shared/meet"
            )));
        }
    };
    let wrong = |reason: String| settings(format!("the rendezvous is {reason}"));
    match address.parse::<HostPort>().map_err(|error| wrong(error.to_string()))?.port {
        Some(0) => {
            Err(wrong(format!("\"{address}\": name the port, since all ranks must know it")))
        }
        Some(_) => Ok(()),
        None => Err(wrong(format!("\"{address}\", not host:port"))),
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
        for rendezvous in ["[::1]:7000", "node7:7000", "file:/shared/meet", "file:meet"] {
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
    fn torchruns_variables_with_its_agent_on_the_port() {
        let torchrun = [
            ("RANK", "2"),
            ("WORLD_SIZE", "3"),
            ("MASTER_ADDR", "localhost"),
            ("MASTER_PORT", "29400"),
            ("RINGTREE_SECRET", "x"),
        ];
        assert_eq!(parse(&torchrun).unwrap().rendezvous, "localhost:29400");
        let ipv6 = [&torchrun[..], &[("MASTER_ADDR", "fd00::1")]].concat();
        assert_eq!(parse(&ipv6).unwrap().rendezvous, "[fd00::1]:29400");
        let agent = [&torchrun[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(parse(&agent).unwrap().rendezvous, "localhost:29401");
        let last = [&agent[..], &[("MASTER_PORT", "65535")]].concat();
        assert!(parse(&last).unwrap_err().to_string().contains("leaves no port"));
    }

    #[test]
    fn contradictions_say_what_is_wrong() {
        let with = |name: &'static str, value: &'static str| {
            let pairs: Vec<_> =
                OURS.iter().copied().filter(|(k, _)| *k != name).chain([(name, value)]).collect();
            parse(&pairs).unwrap_err().to_string()
        };
        assert!(parse(&[]).unwrap_err().to_string().contains("neither RINGTREE_RANK nor RANK"));
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
        assert!(with("RINGTREE_TRANSPORT", "pigeon").contains("none of auto, shm, tcp"));
    }
}
