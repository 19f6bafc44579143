//! Where a job's secret comes from: the environment, a file, or, where all ranks are on one host, a
//! file that the first of them makes.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use ringtree_transport::secure::Secret;

use super::variables::{Variables, settings};
use crate::Error;
use crate::digest::fnv1a;

/// The secret of the job that meets at `rendezvous`.
pub(super) fn secret(
    env: &Variables<'_>,
    rendezvous: &str,
    job: &str,
    single_host: bool,
) -> Result<Secret, Error> {
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
    if single_host {
        return secret_of_host(rendezvous, job);
    }
    Err(settings(
        "the job has no secret: set RINGTREE_SECRET, or RINGTREE_SECRET_FILE to a file of \
         mode 0600, the same on all ranks; or RINGTREE_INSECURE=1 to let anyone in",
    ))
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
