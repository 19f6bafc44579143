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
use ringtree_transport::rendezvous::{Server, StoreError, listen};
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
    #[error("--rendezvous {0} is not HOST:PORT, such as 10.0.0.1:29400")]
    Address(String),
    /// Nobody can be met there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No secret could be made.
    #[error("cannot make a secret: {0}")]
    Secret(#[from] SecureError),
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
    control: Arc<ControlService>,
    _server: Server,
}

impl Service {
    /// Names the job, makes its secret where the environment has none, and serves the ranks if
    /// this is the first host.
    pub fn start(options: &LaunchOptions) -> Result<Service, ServiceError> {
        let is_first = options.node_rank == 0;
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
        let (rendezvous, listener) = meeting_place(options)?;
        let mut variables = vec![
            ("RINGTREE_RANKS", options.ranks.to_string()),
            ("RINGTREE_RENDEZVOUS", rendezvous.clone()),
            ("RINGTREE_JOB", name.clone()),
        ];
        variables.extend(secret.iter().map(|text| ("RINGTREE_SECRET", text.clone())));
        let job = job_of_ranks(&variables)?;
        let hosted = listener.map(|listener| Hosted::start(listener, job)).transpose()?;
        let mut secret_file = None;
        if options.nodes > 1 && is_first {
            secret_file = secret.map(|text| SecretFile::write(&name, &text)).transpose()?;
            explain_to_others(options, &name, &rendezvous, secret_file.as_ref());
        }
        Ok(Service { variables, hosted, _secret_file: secret_file })
    }

    /// What the ranks find in their environment, beside their place.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        self.variables.clone()
    }

    /// What the ranks were told of what went wrong, if they meet here.
    pub fn verdict(&self) -> Option<Verdict> {
        self.hosted.as_ref()?.control.verdict()
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
    fn start(listener: TcpListener, job: Job) -> Result<Hosted, ServiceError> {
        let control = Arc::new(ControlService::new(None)?);
        let serve = control.clone();
        let server = Server::start(listener, job, move |stream, hello| serve.serve(stream, hello))?;
        Ok(Hosted { control, _server: server })
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

/// Where the ranks meet, and on the first host a listener there.
fn meeting_place(options: &LaunchOptions) -> Result<(String, Option<TcpListener>), ServiceError> {
    let wanted = options.rendezvous.as_deref().unwrap_or("127.0.0.1:0");
    let host = match wanted.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => host,
        _ => return Err(ServiceError::Address(wanted.into())),
    };
    if options.node_rank > 0 {
        return Ok((wanted.into(), None));
    }
    let listener = listen(wanted)?;
    // Port 0 has become a free one.
    let port = listener.local_addr()?.port();
    Ok((format!("{host}:{port}"), Some(listener)))
}

/// The job as the ranks will understand it.
fn job_of_ranks(variables: &[(&'static str, String)]) -> Result<Job, ServiceError> {
    // What is not text cannot be one of ours.
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let mut all: HashMap<String, String> = env::vars_os().filter_map(text).collect();
    all.extend(variables.iter().map(|(name, value)| (name.to_string(), value.clone())));
    all.insert("RINGTREE_RANK".into(), "0".into());
    Ok(Settings::from_variables(&all)?.job)
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
    for node in 1..options.nodes {
        let command = hosts::command_for_node(options, job, rendezvous, &secret, node);
        report(&format!("  {command}"));
    }
}

fn assignment(path: &Path) -> String {
    format!("RINGTREE_SECRET_FILE={} ", hosts::quoted(path.as_os_str()))
}
