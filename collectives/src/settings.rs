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

use crate::Error;

/// How long an operation may be without progress, unless set.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

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
/// use ringtree::{Job, Secret, Settings, Source, Transports};
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
    /// Time without progress after which an operation fails, and time to find all ranks.
    pub timeout: Duration,
    /// Which transports may be used.
    pub transports: Transports,
    /// Name (`eth0`) or subnet (`10.1.0.0/16`) of the interface for TCP; `None`: the one that
    /// reaches the rendezvous.
    pub interface: Option<String>,
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
        let (rank, ranks) = (env.number(rank_name)?, env.number(ranks_name)?);
        if ranks == 0 || rank >= ranks {
            return Err(settings(format!(
                "{rank_name}={rank} must be below {ranks_name}={ranks}: ranks count from 0"
            )));
        }
        let rendezvous = match source {
            Source::Torchrun => env.torchrun_rendezvous()?,
            _ => env.required("RINGTREE_RENDEZVOUS", "the host:port where rank 0 can be met")?,
        };
        if !rendezvous
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            return Err(settings(format!("the rendezvous is \"{rendezvous}\", not host:port")));
        }
        let name = env.get("RINGTREE_JOB").or(env.get("TORCHELASTIC_RUN_ID"));
        let name = name.unwrap_or("default").to_string();
        let single_host = env.get("LOCAL_WORLD_SIZE").is_some_and(|n| n == ranks.to_string());
        let secret = env.secret(&name, single_host)?;
        Ok(Settings {
            source,
            rank,
            ranks,
            rendezvous,
            job: Job { name, secret },
            timeout: env.timeout()?,
            transports: env.transports()?,
            interface: env.get("RINGTREE_INTERFACE").map(str::to_string),
        })
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
        Ok(format!("{host}:{}", if taken { port.wrapping_add(1) } else { port }))
    }

    fn secret(&self, job: &str, single_host: bool) -> Result<Secret, Error> {
        if let Some(text) = self.get("RINGTREE_SECRET") {
            return Ok(Secret::from_text(text));
        }
        if let Some(path) = self.get("RINGTREE_SECRET_FILE") {
            return secret_of_file(Path::new(path));
        }
        if self.get("RINGTREE_INSECURE").is_some_and(|v| v == "1") {
            return Ok(Secret::insecure());
        }
        if single_host {
            return secret_of_host(job);
        }
        Err(settings(
            "the job has no secret: set RINGTREE_SECRET, or RINGTREE_SECRET_FILE to a file of \
             mode 0600, the same on all ranks; or RINGTREE_INSECURE=1 to let anyone in",
        ))
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

/// The secret of a job whose ranks are all on this host, when nobody gave one. A process asks
/// once: the file is gone when a first communicator is over, and all ranks must still agree.
fn secret_of_host(job: &str) -> Result<Secret, Error> {
    static KNOWN: LazyLock<Mutex<HashMap<String, Secret>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(secret) = known.get(job) {
        return Ok(secret.clone());
    }
    let secret = shared_secret_of_host(job)?;
    known.insert(job.to_string(), secret.clone());
    Ok(secret)
}

/// The secret in a file that the first rank makes, named after the job and readable by this user
/// alone.
fn shared_secret_of_host(job: &str) -> Result<Secret, Error> {
    let path = host_secret_path(job);
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
    let linked = fs::hard_link(&mine, &path);
    let _ = fs::remove_file(&mine);
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(fail(error)),
        _ => {}
    }
    let owner = fs::metadata(&path).map_err(fail)?.uid();
    if owner != nix::unistd::getuid().as_raw() {
        return Err(settings(format!(
            "the secret file {} belongs to another user; set RINGTREE_SECRET",
            path.display()
        )));
    }
    secret_of_file(&path)
}

/// Removes the file that [`shared_secret_of_host`] made, if it did: the job is over.
pub(crate) fn forget_host_secret(job: &str) {
    let _ = fs::remove_file(host_secret_path(job));
}

fn host_secret_path(job: &str) -> PathBuf {
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let safe: String =
        job.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    folder.join(format!("ringtree-{}-{safe}.secret", nix::unistd::getuid()))
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
    }

    #[test]
    fn contradictions_say_what_is_wrong() {
        let with = |name: &'static str, value: &'static str| {
            let pairs: Vec<_> =
                OURS.iter().copied().filter(|(k, _)| *k != name).chain([(name, value)]).collect();
            parse(&pairs).unwrap_err().to_string()
        };
        assert!(with("RINGTREE_RANK", "4").contains("must be below RINGTREE_RANKS=4"));
        assert!(with("RINGTREE_RANK", "one").contains("not a number"));
        assert!(with("RINGTREE_RENDEZVOUS", "").contains("RINGTREE_RENDEZVOUS is not set"));
        assert!(with("RINGTREE_RENDEZVOUS", "host").contains("not host:port"));
        assert!(with("RINGTREE_SECRET", "").contains("no secret"));
        assert!(with("RINGTREE_TIMEOUT", "-1").contains("RINGTREE_TIMEOUT"));
        assert!(with("RINGTREE_TRANSPORT", "pigeon").contains("none of auto, shm, tcp"));
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
