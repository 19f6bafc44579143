//! What the ranks of a job have in common: its name, its secret, and the place where they meet,
//! which the launcher of the first host serves.

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, PipeReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ringtree::Settings;
use ringtree::control::{ControlService, Verdict};
use ringtree_transport::host_port::HostPort;
use ringtree_transport::rendezvous::{
    Notice, Place, Server, StoreError, listen_somewhere, listen_within,
};
use ringtree_transport::secure::{Job, Secret, SecureError};

use super::{LaunchOptions, hosts, report};

/// Why ranks could not meet here.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The other hosts must name the job that they join.
    #[error("give --job NAME: the first host's launcher prints the whole command for this one")]
    NoJob,
    /// The secret of a job that spans hosts comes from the first host.
    #[error(
        "set RINGTREE_SECRET_FILE: the first host's launcher prints the whole command for this one"
    )]
    NoSecret,
    /// The rendezvous is not an address with a port.
    #[error("--rendezvous {0} is not HOST:PORT, such as 10.0.0.1:29400, or file:/PATH")]
    Address(String),
    /// Nobody can be met there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No secret could be made.
    #[error("cannot make a secret: {0}")]
    Secret(#[from] SecureError),
    /// The secret that was given cannot be handed to other hosts.
    #[error("cannot read the secret file {}: {source}", path.display())]
    GivenSecretFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The secret could not be handed to the other hosts.
    #[error("cannot write the secret file {}: {source}", path.display())]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The ranks would refuse what they are given.
    #[error(transparent)]
    Settings(#[from] ringtree::Error),
    /// The system has no more threads or descriptors.
    #[error("cannot serve the ranks: {0}")]
    System(#[from] io::Error),
}

/// The job's name, secret and meeting place, as long as it runs.
pub struct Service {
    variables: Vec<(&'static str, String)>,
    hosted: Option<Hosted>,
    _secret_file: Option<SecretFile>,
}

struct Hosted {
    /// Where others find the address in a file. The first to go.
    _notice: Option<Notice>,
    control: Arc<ControlService>,
    _server: Server,
}

impl Service {
    /// Names the job, makes its secret where the environment has none, and serves the ranks if
    /// this is the first host.
    pub fn start(options: &LaunchOptions) -> Result<Service, ServiceError> {
        let is_first = options.is_first();
        let secret = match (secret_is_given(), is_first) {
            (true, _) => None,
            (false, true) => Some(Secret::generate()?),
            (false, false) => return Err(ServiceError::NoSecret),
        };
        let name = match (&options.job, is_first) {
            (Some(name), _) => name.clone(),
            (None, true) => format!("job-{}", std::process::id()),
            (None, false) => return Err(ServiceError::NoJob),
        };
        let mut variables =
            vec![("RINGTREE_RANKS", options.ranks.to_string()), ("RINGTREE_JOB", name.clone())];
        variables.extend(secret.iter().map(|text| ("RINGTREE_SECRET", text.clone())));
        let settings = settings_of_ranks(&variables)?;
        let meeting = Meeting::prepare(options, &settings)?;
        variables.push(("RINGTREE_RENDEZVOUS", meeting.of_own_ranks));
        let serve = |listener| Hosted::start(listener, meeting.notice, settings.job);
        let hosted = meeting.listener.map(serve).transpose()?;
        let mut secret_file = None;
        if options.others_are_started_by_hand() && is_first {
            secret_file = secret.map(|text| SecretFile::write(&name, &text)).transpose()?;
            explain_to_others(options, &name, &meeting.of_others, secret_file.as_ref());
        }
        Ok(Service { variables, hosted, _secret_file: secret_file })
    }

    /// The part of a launcher that another one started: it only passes on what it was given.
    pub fn elsewhere() -> Service {
        Service { variables: Vec::new(), hosted: None, _secret_file: None }
    }

    /// What the ranks find in their environment, beside their place and what they inherit.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.variables.iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
    }

    /// What ranks of other hosts find there, which inherit nothing from here.
    ///
    /// # Errors
    /// A secret was given in a file that cannot be read.
    pub fn environment_elsewhere(&self) -> Result<Vec<(String, String)>, ServiceError> {
        let mut all = HashMap::new();
        if let Some(path) = env::var_os("RINGTREE_SECRET_FILE").filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            let text = fs::read_to_string(&path)
                .map_err(|source| ServiceError::GivenSecretFile { path, source })?;
            all.insert("RINGTREE_SECRET".to_owned(), text.trim().to_owned());
        }
        all.extend(variables_of_this_process().into_iter().filter(|(name, _)| {
            name.starts_with("RINGTREE_") && !ONLY_HERE.contains(&name.as_str())
        }));
        all.extend(self.environment());
        Ok(all.into_iter().collect())
    }

    /// What the ranks were told of what went wrong, if they meet here.
    pub fn verdict(&self) -> Option<Verdict> {
        self.hosted.as_ref()?.control.verdict()
    }

    /// A process that this launcher has started has ended.
    pub fn process_ended(&self, pid: u32) {
        if let Some(hosted) = &self.hosted {
            hosted.control.process_ended(pid);
        }
    }

    /// A pipe that reaches its end when the ranks of the other hosts have left, or after `limit`.
    pub fn others_left(&self, limit: Duration) -> io::Result<Option<PipeReader>> {
        let Some(hosted) = &self.hosted else { return Ok(None) };
        let control = hosted.control.clone();
        let (left, writer) = io::pipe()?;
        thread::Builder::new().name("others".into()).spawn(move || {
            let _closed_at_the_end = writer;
            control.await_empty(Instant::now() + limit);
        })?;
        Ok(Some(left))
    }
}

impl Hosted {
    fn start(
        listener: TcpListener,
        notice: Option<Notice>,
        job: Job,
    ) -> Result<Hosted, ServiceError> {
        let control = Arc::new(ControlService::new(None)?);
        let serve = control.clone();
        let server = Server::start(listener, job, move |stream, hello| serve.serve(stream, hello))?;
        control.meet_in(server.store());
        Ok(Hosted { _notice: notice, control, _server: server })
    }
}

/// The secret of a job that was started here, for whoever starts its part on other hosts. The file
/// goes when the job ends.
struct SecretFile {
    path: PathBuf,
}

impl SecretFile {
    fn write(job: &str, text: &str) -> Result<SecretFile, ServiceError> {
        let folder = env::var_os("XDG_RUNTIME_DIR").map_or_else(env::temp_dir, PathBuf::from);
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let job: String = job.chars().map(plain).collect();
        let path = folder.join(format!("ringtree-{job}-{}.secret", std::process::id()));
        let written = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{text}"));
        match written {
            Ok(()) => Ok(SecretFile { path }),
            Err(source) => Err(ServiceError::SecretFile { path, source }),
        }
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        // Gone already if it cannot be removed, or for someone else to remove.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether the ranks find a secret, or leave to do without, in what they inherit.
fn secret_is_given() -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    is_set("RINGTREE_SECRET")
        || is_set("RINGTREE_SECRET_FILE")
        || env::var("RINGTREE_INSECURE").is_ok_and(|value| value == "1")
}

/// Where the ranks meet.
struct Meeting {
    /// As the ranks of this host are told.
    of_own_ranks: String,
    /// As those of other hosts are told.
    of_others: String,
    /// There, on the first host.
    listener: Option<TcpListener>,
    /// If others find it by a file.
    notice: Option<Notice>,
}

impl Meeting {
    fn prepare(options: &LaunchOptions, settings: &Settings) -> Result<Meeting, ServiceError> {
        let Settings { interface, ports, advertise, .. } = settings;
        let somewhere = || listen_somewhere(interface.as_deref(), *ports, advertise.first());
        let at = |address: HostPort, listener| {
            let address = address.to_string();
            let of_others = address.clone();
            Meeting { of_own_ranks: address, of_others, listener, notice: None }
        };
        let wanted = match &options.rendezvous {
            Some(wanted) => wanted.as_str(),
            None if options.has_other_hosts() => {
                let (listener, told) = somewhere()?;
                return Ok(at(told, Some(listener)));
            }
            None => "127.0.0.1:0",
        };
        let path = match Place::of(wanted) {
            Place::Address(text) => {
                let wrong = || ServiceError::Address(wanted.into());
                let address: HostPort = text.parse().map_err(|_| wrong())?;
                let port = address.port.ok_or_else(wrong)?;
                if !options.is_first() {
                    return Ok(at(address, None));
                }
                let listener = listen_within(text, *ports)?;
                // Port 0 has become a free one.
                let port = if port == 0 { listener.local_addr()?.port() } else { port };
                return Ok(at(address.with_port(port), Some(listener)));
            }
            Place::File(path) => path,
        };
        let (of_own_ranks, of_others) = (wanted.to_owned(), wanted.to_owned());
        if !options.is_first() {
            return Ok(Meeting { of_own_ranks, of_others, listener: None, notice: None });
        }
        let (listener, told) = somewhere()?;
        let notice = Some(Notice::publish(path, &settings.job, &told)?);
        // Rank 0 would host at the file itself.
        let of_own_ranks = listener.local_addr()?.to_string();
        Ok(Meeting { of_own_ranks, of_others, listener: Some(listener), notice })
    }
}

/// Settings of this host alone, which ranks of others are not told.
const ONLY_HERE: [&str; 2] = ["RINGTREE_ADVERTISE", "RINGTREE_SECRET_FILE"];

/// The settings as the ranks will understand them, but for the place, which is not known yet.
fn settings_of_ranks(variables: &[(&'static str, String)]) -> Result<Settings, ServiceError> {
    let mut all = variables_of_this_process();
    all.extend(variables.iter().map(|(name, value)| (name.to_string(), value.clone())));
    all.insert("RINGTREE_RANK".into(), "0".into());
    all.insert("RINGTREE_RENDEZVOUS".into(), "127.0.0.1:1".into());
    Ok(Settings::from_variables(&all)?)
}

/// The environment, but for what is not text: that cannot be one of ours.
fn variables_of_this_process() -> HashMap<String, String> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    env::vars_os().filter_map(text).collect()
}

fn explain_to_others(
    options: &LaunchOptions,
    job: &str,
    rendezvous: &str,
    secret_file: Option<&SecretFile>,
) {
    let given = env::var_os("RINGTREE_SECRET_FILE").map(PathBuf::from);
    let secret = match (secret_file.map(|file| file.path.as_path()), given.as_deref()) {
        (Some(path), _) => {
            report(&format!(
                "the job's secret is in {}: copy it to the other hosts (scp -p), then start there:",
                path.display()
            ));
            assignment(path)
        }
        (None, Some(path)) => {
            report("start on the other hosts, where the secret file must be too:");
            assignment(path)
        }
        (None, None) => {
            report("start on the other hosts, with the same RINGTREE_SECRET in the environment:");
            String::new()
        }
    };
    for node in 1..options.nodes() {
        let command = hosts::command_for_node(options, job, rendezvous, &secret, node);
        report(&format!("  {command}"));
    }
}

fn assignment(path: &Path) -> String {
    format!("RINGTREE_SECRET_FILE={} ", hosts::quoted(path.as_os_str()))
}
