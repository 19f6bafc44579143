//! Who this rank is and how it finds the others: from the environment or set by hand.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use ringtree_transport::endpoint::Transports;
use ringtree_transport::secure::{Job, Secret};

use crate::digest::fnv1a;
use crate::{Costs, Error};

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
///     sockets: 1,
///     encrypts: false,
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
    /// `host:port` of the rendezvous: the launcher's, or rank 0 serves it there.
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
    /// Connections between two ranks over TCP, for each pair of interfaces; from 1 to
    /// [`MAX_SOCKETS`]. More than one helps where the network limits what a connection carries.
    pub sockets: u32,
    /// Whether TCP connections encrypt what they carry (AES-256-GCM); all ranks alike.
    pub encrypts: bool,
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
        let env = Variables(variables);
        let (source, rank_name, ranks_name) =
            if env.get("RINGTREE_RANK").is_some() || env.get("RINGTREE_RANKS").is_some() {
                (Source::Ringtree, "RINGTREE_RANK", "RINGTREE_RANKS")
            } else {
                (Source::Torchrun, "RANK", "WORLD_SIZE")
            };
        if env.get(rank_name).is_none() && env.get(ranks_name).is_none() {
            return Err(settings(
                "neither RINGTREE_RANK nor RANK is set: start the program with `ringtree run` or \
                 torchrun, or set them (see the README's settings)",
            ));
        }
        let (rank, ranks) = (env.number(rank_name)?, env.number(ranks_name)?);
        // Said again, and better, than the check of the whole would.
        if rank >= ranks {
            return Err(settings(format!(
                "{rank_name}={rank} must be below {ranks_name}={ranks}: ranks count from 0"
            )));
        }
        let rendezvous = match source {
            Source::Torchrun => env.torchrun_rendezvous()?,
            _ => env.required("RINGTREE_RENDEZVOUS", "the host:port where rank 0 can be met")?,
        };
        let name = env.get("RINGTREE_JOB").or(env.get("TORCHELASTIC_RUN_ID"));
        let name = name.unwrap_or("default").to_string();
        let single_host = env.get("LOCAL_WORLD_SIZE").is_some_and(|n| n == ranks.to_string());
        let secret = env.secret(&rendezvous, &name, single_host)?;
        let settings = Settings {
            source,
            rank,
            ranks,
            rendezvous,
            job: Job { name, secret },
            timeout: env.timeout()?,
            transports: env.transports()?,
            interface: env.get("RINGTREE_INTERFACE").map(str::to_string),
            sockets: env.sockets()?,
            encrypts: env.flag("RINGTREE_ENCRYPT")?,
            costs: Costs::default(),
        };
        settings.check()?;
        Ok(settings)
    }

    /// Whether they make sense.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Settings { rank, ranks, rendezvous, .. } = self;
        if rank >= ranks {
            return Err(settings(format!("rank {rank} of {ranks}: ranks count from 0")));
        }
        let port = rendezvous
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .and_then(|(_, port)| port.parse::<u16>().ok());
        match port {
            None => Err(settings(format!("the rendezvous is \"{rendezvous}\", not host:port"))),
            Some(0) => Err(settings(format!(
                "the rendezvous is \"{rendezvous}\": name the port, since all ranks must know it"
            ))),
            Some(_) if self.timeout.is_zero() => Err(settings("the timeout must be above 0")),
            Some(_) if !(1..=MAX_SOCKETS).contains(&self.sockets) => Err(settings(format!(
                "{} sockets: a link has 1 to {MAX_SOCKETS} for each pair of interfaces",
                self.sockets
            ))),
            Some(_) => self.costs.check().map_err(settings),
        }
    }

    /// The timeout, short enough to be added to any time.
    pub(crate) fn bounded_timeout(&self) -> Duration {
        self.timeout.min(LONGEST_TIMEOUT)
    }
}

struct Variables<'a>(&'a HashMap<String, String>);

impl Variables<'_> {
    /// A variable that is set and not empty.
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    fn required(&self, name: &str, what: &str) -> Result<String, Error> {
        let missing = || settings(format!("{name} is not set: it must give {what}"));
        self.get(name).map(str::to_string).ok_or_else(missing)
    }

    fn number(&self, name: &str) -> Result<u32, Error> {
        let hint = "start the program with `ringtree run` or torchrun, or set it";
        let text = self.get(name).ok_or_else(|| settings(format!("{name} is not set: {hint}")))?;
        text.parse().map_err(|_| settings(format!("{name}={text} is not a number")))
    }

    /// torchrun's agent may itself listen on MASTER_PORT, with a protocol of its own: then the
    /// next port is ours.
    fn torchrun_rendezvous(&self) -> Result<String, Error> {
        if let Some(address) = self.get("RINGTREE_RENDEZVOUS") {
            return Ok(address.to_string());
        }
        let host = self.required("MASTER_ADDR", "the host of rank 0")?;
        let port = self.get("MASTER_PORT").unwrap_or("29500");
        let port: u16 =
            port.parse().map_err(|_| settings(format!("MASTER_PORT={port} is not a port")))?;
        let taken = self.get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True");
        let port = port.checked_add(u16::from(taken)).ok_or_else(|| {
            settings(
                "MASTER_PORT=65535 leaves no port for the ranks, as torchrun's agent listens on \
                 it: choose a lower one, or set RINGTREE_RENDEZVOUS",
            )
        })?;
        Ok(format!("{host}:{port}"))
    }

    fn secret(&self, rendezvous: &str, job: &str, single_host: bool) -> Result<Secret, Error> {
        let is_insecure = self.flag("RINGTREE_INSECURE")?;
        if let Some(text) = self.get("RINGTREE_SECRET") {
            return Ok(Secret::from_text(text));
        }
        if let Some(path) = self.get("RINGTREE_SECRET_FILE") {
            return secret_of_file(Path::new(path));
        }
        if is_insecure {
            return Ok(Secret::insecure());
        }
        if single_host {
            return secret_of_host(rendezvous, job);
        }
        Err(settings(
            "the job has no secret: set RINGTREE_SECRET, or RINGTREE_SECRET_FILE to a file of \
             mode 0600, the same on all ranks; or RINGTREE_INSECURE=1 to let anyone in",
        ))
    }

    fn sockets(&self) -> Result<u32, Error> {
        self.get("RINGTREE_SOCKETS").map_or(Ok(1), |_| self.number("RINGTREE_SOCKETS"))
    }

    /// A variable that is 0 or 1.
    fn flag(&self, name: &str) -> Result<bool, Error> {
        match self.get(name) {
            None | Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(other) => Err(settings(format!("{name}={other} is neither 0 nor 1"))),
        }
    }

    fn timeout(&self) -> Result<Duration, Error> {
        let Some(text) = self.get("RINGTREE_TIMEOUT") else { return Ok(DEFAULT_TIMEOUT) };
        let seconds = text.trim_end_matches('s').parse::<f64>().ok();
        let seconds = seconds.filter(|s| *s > 0.0 && *s < 1e9);
        seconds.map(Duration::from_secs_f64).ok_or_else(|| {
            settings(format!("RINGTREE_TIMEOUT={text} is not a number of seconds above 0"))
        })
    }

    fn transports(&self) -> Result<Transports, Error> {
        match self.get("RINGTREE_TRANSPORT") {
            None | Some("auto") => Ok(Transports::Auto),
            Some("shm") => Ok(Transports::Shm),
            Some("tcp") => Ok(Transports::Tcp),
            Some(other) => {
                Err(settings(format!("RINGTREE_TRANSPORT={other} is none of auto, shm, tcp")))
            }
        }
    }
}

fn settings(message: impl Into<String>) -> Error {
    Error::Settings(message.into())
}

/// A secret from a file that nobody else can read.
fn secret_of_file(path: &Path) -> Result<Secret, Error> {
    let fail = |what: String| settings(format!("the secret file {}: {what}", path.display()));
    let metadata = fs::metadata(path).map_err(|error| fail(error.to_string()))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(fail("others may read it; chmod 600".to_string()));
    }
    let text = fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    if text.trim().is_empty() {
        return Err(fail("it is empty".to_string()));
    }
    Ok(Secret::from_text(text.trim()))
}

/// Secrets that this process took from a file of the host, by rendezvous and job.
static OF_HOST: LazyLock<Mutex<HashMap<(String, String), Secret>>> = LazyLock::new(Mutex::default);

/// The secret of a job whose ranks are all on this host, when nobody gave one. A process asks
/// once: the file is gone when a first communicator is over, and all ranks must still agree.
fn secret_of_host(rendezvous: &str, job: &str) -> Result<Secret, Error> {
    let mut known = OF_HOST.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (rendezvous.to_string(), job.to_string());
    if let Some(secret) = known.get(&key) {
        return Ok(secret.clone());
    }
    let secret = shared_secret_of_host(&host_secret_path(rendezvous, job))?;
    known.insert(key, secret.clone());
    Ok(secret)
}

/// The secret in a file that the first rank makes, readable by this user alone.
fn shared_secret_of_host(path: &Path) -> Result<Secret, Error> {
    let fail =
        |error: std::io::Error| settings(format!("the secret file {}: {error}", path.display()));
    // Written aside and linked into place: nobody reads it half-written, and one rank wins.
    let mine = path.with_extension(format!("{}", std::process::id()));
    let text = Secret::generate().map_err(|error| settings(error.to_string()))?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&mine)
        .map_err(fail)?;
    file.write_all(text.as_bytes()).map_err(fail)?;
    let linked = fs::hard_link(&mine, path);
    let _ = fs::remove_file(&mine);
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(fail(error)),
        _ => {}
    }
    let owner = fs::metadata(path).map_err(fail)?.uid();
    if owner != nix::unistd::getuid().as_raw() {
        return Err(settings(format!(
            "the secret file {} belongs to another user; set RINGTREE_SECRET",
            path.display()
        )));
    }
    secret_of_file(path)
}

/// Removes the file that the secret came from, if it came from one that the ranks made: the job is
/// over. A file of that name with another secret is a later job's.
pub(crate) fn forget_host_secret(rendezvous: &str, job: &str) {
    let known = OF_HOST.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(secret) = known.get(&(rendezvous.to_string(), job.to_string())) else { return };
    let path = host_secret_path(rendezvous, job);
    if secret_of_file(&path).is_ok_and(|there| there == *secret) {
        let _ = fs::remove_file(path);
    }
}

/// One name for each user, rendezvous and job, of bounded length.
fn host_secret_path(rendezvous: &str, job: &str) -> PathBuf {
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let safe = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let readable: String = job.chars().take(40).map(safe).collect();
    let user = nix::unistd::getuid();
    let exact = fnv1a(rendezvous.bytes().chain([0]).chain(job.bytes()));
    folder.join(format!("ringtree-{user}-{readable}-{exact:016x}.secret"))
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
    fn torchruns_variables_with_its_agent_on_the_port() {
        let torchrun = [
            ("RANK", "2"),
            ("WORLD_SIZE", "3"),
            ("MASTER_ADDR", "localhost"),
            ("MASTER_PORT", "29400"),
            ("RINGTREE_SECRET", "x"),
        ];
        assert_eq!(parse(&torchrun).unwrap().rendezvous, "localhost:29400");
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
        assert!(with("RINGTREE_SECRET", "").contains("no secret"));
        assert!(with("RINGTREE_TIMEOUT", "-1").contains("RINGTREE_TIMEOUT"));
        assert!(with("RINGTREE_TRANSPORT", "pigeon").contains("none of auto, shm, tcp"));
    }

    #[test]
    fn only_the_file_that_gave_the_secret_is_removed_in_the_end() {
        let job = format!("job of {}", std::process::id());
        let path = host_secret_path("here:1", &job);
        let secret = secret_of_host("here:1", &job).unwrap();
        assert_eq!(secret, secret_of_file(&path).unwrap());
        assert_ne!(path, host_secret_path("here:2", &job));

        fs::write(&path, "a later job's").unwrap();
        forget_host_secret("here:1", &job);
        assert!(path.exists());
        fs::remove_file(&path).unwrap();

        // Nor one that this process never used.
        assert_eq!(shared_secret_of_host(&path).unwrap(), secret_of_file(&path).unwrap());
        forget_host_secret("here:3", &job);
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_secret_file_that_others_may_read_is_refused() {
        let path = std::env::temp_dir().join(format!("ringtree-test-{}", std::process::id()));
        fs::write(&path, "secret").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = secret_of_file(&path).unwrap_err().to_string();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let accepted = secret_of_file(&path);
        fs::remove_file(&path).unwrap();
        assert!(refused.contains("chmod 600"), "{refused}");
        assert!(accepted.is_ok());
    }
}
