//! Where a job's secret comes from: the environment, a file, or, where all ranks are on one host, a
//! file that the first of them makes.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use ringtree_transport::secure::Secret;

use super::variables::{Variables, settings};
use crate::Error;
use crate::digest::fnv1a;

/// Who must have a job's secret.
pub(super) enum Reach<'a> {
    /// This process alone.
    Process,
    /// The ranks on this host: all that there are of the job that meets there.
    Host { rendezvous: &'a str, job: &'a str },
    /// Ranks on several hosts, for all that is known.
    Network,
}

/// The secret that is set, else one that whoever must have it can find.
pub(super) fn secret(env: &Variables<'_>, reach: Reach<'_>) -> Result<Secret, Error> {
    let is_insecure = env.flag("RINGTREE_INSECURE")?;
    if let Some(text) = env.get("RINGTREE_SECRET") {
        return Ok(Secret::from_text(text));
    }
    if let Some(path) = env.get("RINGTREE_SECRET_FILE") {
        return secret_of_file(Path::new(path));
    }
    if is_insecure {
        return Ok(Secret::insecure());
    }
    match reach {
        Reach::Process => secret_of_process(),
        Reach::Host { rendezvous, job } => secret_of_host(rendezvous, job),
        Reach::Network => Err(settings(
            "the job has no secret: set RINGTREE_SECRET, or RINGTREE_SECRET_FILE to a file of \
             mode 0600, the same on all ranks; or RINGTREE_INSECURE=1 to let anyone in",
        )),
    }
}

/// One for all communicators of this process, which share what it serves.
fn secret_of_process() -> Result<Secret, Error> {
    static OF_PROCESS: Mutex<Option<Secret>> = Mutex::new(None);
    let mut known = OF_PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(secret) = &*known {
        return Ok(secret.clone());
    }
    let text = Secret::generate().map_err(|error| settings(error.to_string()))?;
    Ok(known.insert(Secret::from_text(&text)).clone())
}

/// A secret from a file that nobody else can read.
fn secret_of_file(path: &Path) -> Result<Secret, Error> {
    let fail = |what: String| settings(format!("the secret file {}: {what}", path.display()));
    // Opened once, so that what is looked at is what is read.
    let mut file = fs::File::open(path).map_err(|error| fail(error.to_string()))?;
    let metadata = file.metadata().map_err(|error| fail(error.to_string()))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(fail("others may read it; chmod 600".to_string()));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| fail(error.to_string()))?;
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
    let secret = shared_secret_of_host(&host_file(rendezvous, job, "secret"))?;
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

/// Removes the file that a secret came from, if it came from one that the ranks made: the job is
/// over. A file of that name with another secret is a later job's.
pub(crate) fn forget_host_secret(secret: &Secret) {
    let known = OF_HOST.lock().unwrap_or_else(PoisonError::into_inner);
    for ((rendezvous, job), _) in known.iter().filter(|(_, known)| *known == secret) {
        let path = host_file(rendezvous, job, "secret");
        if secret_of_file(&path).is_ok_and(|there| there == *secret) {
            let _ = fs::remove_file(path);
        }
    }
}

/// A file that ranks of one host share: one name for each user, rendezvous and job, of bounded length.
pub(super) fn host_file(rendezvous: &str, job: &str, extension: &str) -> PathBuf {
    // Launchers hand the variable on to hosts where the folder is not.
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let folder = folder.filter(|folder| folder.is_dir()).unwrap_or_else(std::env::temp_dir);
    let safe = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let readable: String = job.chars().take(40).map(safe).collect();
    let user = nix::unistd::getuid();
    let exact = fnv1a(rendezvous.bytes().chain([0]).chain(job.bytes()));
    folder.join(format!("ringtree-{user}-{readable}-{exact:016x}.{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_that_gave_the_secret_is_removed_in_the_end() {
        let job = format!("job of {}", std::process::id());
        let path = host_file("here:1", &job, "secret");
        let secret = secret_of_host("here:1", &job).unwrap();
        assert_eq!(secret, secret_of_file(&path).unwrap());
        assert_ne!(path, host_file("here:2", &job, "secret"));

        fs::write(&path, "a later job's").unwrap();
        forget_host_secret(&secret);
        assert!(path.exists());
        fs::remove_file(&path).unwrap();

        // Nor one that this process never used.
        let unused = shared_secret_of_host(&path).unwrap();
        assert_eq!(unused, secret_of_file(&path).unwrap());
        forget_host_secret(&unused);
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
