//! Where the ranks of a job meet, as far as this process must find it out or make it.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Instant;

use ringtree_transport::rendezvous::pmi::{Pmi, PmiError};
use ringtree_transport::rendezvous::{Place, StoreError};

use crate::Error;
use crate::hosting::{self, Host, Hosting};
use crate::settings::Settings;

/// A rendezvous that can be joined.
pub(crate) struct Found {
    /// The settings, with the rendezvous and the job's name as they were found out.
    pub(crate) settings: Settings,
    /// Where this rank reaches the store: `host:port`, or the file that tells it.
    pub(crate) meets_at: String,
    /// This process's part in it, where it is the one that hosts.
    pub(crate) hosting: Option<Hosting>,
    /// Why this process does not host it, though it is rank 0: a launcher does, presumably.
    pub(crate) not_here: Option<String>,
}

impl Found {
    /// Whoever hosts the store does without the file that tells where it is.
    fn new(settings: Settings, hosting: Option<Hosting>) -> Found {
        let own = hosting.as_ref().and_then(Hosting::address);
        let own = own.filter(|_| is_told_in_file(&settings.rendezvous));
        let meets_at = own.unwrap_or_else(|| settings.rendezvous.clone());
        Found { settings, meets_at, hosting, not_here: None }
    }
}

/// Whether a place is not an address, but a file that tells one.
pub(crate) fn is_told_in_file(place: &str) -> bool {
    matches!(Place::of(place), Place::File(_))
}

/// What rank 0 told over the launcher's PMI.
#[derive(Clone)]
struct Told {
    rendezvous: String,
    /// Name of the job, by the settings and the launcher.
    job: String,
}

/// By descriptor. A launcher answers once a process: later communicators meet at the same place, and
/// whoever comes while it is asked waits.
type ByDescriptor = HashMap<u32, Arc<Mutex<Option<Told>>>>;
static TOLD: LazyLock<Mutex<ByDescriptor>> = LazyLock::new(Mutex::default);

/// Finds out where the ranks meet, and hosts the rendezvous if that is for this process to do.
///
/// # Errors
/// The address can be nobody's, or the launcher did not tell it by the deadline.
pub(crate) fn find(mut settings: Settings, deadline: Instant) -> Result<Found, Error> {
    if settings.is_alone() {
        let hosting = hosting::host_alone(&mut settings)?;
        return Ok(Found::new(settings, Some(hosting)));
    }
    let Some(descriptor) = settings.pmi_descriptor() else { return known(settings) };
    let told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    let told = { told }.entry(descriptor).or_default().clone();
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(Told { rendezvous, job }) = told.clone() {
        (settings.rendezvous, settings.job.name) = (rendezvous, job);
        return known(settings);
    }
    let found = over_pmi(settings, descriptor, deadline)?;
    let Settings { rendezvous, job, .. } = &found.settings;
    tracing::debug!("the rendezvous of job {} is at {rendezvous}", job.name);
    *told = Some(Told { rendezvous: rendezvous.clone(), job: job.name.clone() });
    Ok(found)
}

fn known(settings: Settings) -> Result<Found, Error> {
    let (hosting, not_here) = match settings.rank {
        0 => match hosting::host(&settings)? {
            Host::Here(hosting) => (Some(hosting), None),
            Host::Elsewhere(reason) => (None, Some(reason)),
        },
        _ => (None, None),
    };
    Ok(Found { not_here, ..Found::new(settings, hosting) })
}

/// Rank 0 hosts the rendezvous and tells the others.
fn over_pmi(mut settings: Settings, descriptor: u32, deadline: Instant) -> Result<Found, Error> {
    let no_pmi = |error: PmiError| Error::from(StoreError::from(error));
    let pmi = Pmi::open(descriptor, settings.rank, settings.ranks, deadline).map_err(no_pmi)?;
    settings.job.name = format!("{}/{}", settings.job.name, pmi.job());
    if settings.rank > 0 {
        settings.rendezvous = pmi.share(None).map_err(no_pmi)?;
        return Ok(Found::new(settings, None));
    }
    let (hosting, told) = hosting::host_somewhere(&mut settings)?;
    pmi.share(Some(&told)).map_err(no_pmi)?;
    Ok(Found::new(settings, Some(hosting)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{BufRead, BufReader, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Barrier;
    use std::thread;

    use super::*;
    use crate::{Communicator, Op};

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let pairs = pairs.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Settings::from_variables(&pairs.collect::<HashMap<_, _>>()).unwrap()
    }

    /// Two communicators of the same ranks, one after the other.
    fn joins_twice(settings: &Settings) {
        for _ in 0..2 {
            let communicator = Communicator::with(settings.clone()).unwrap();
            let mut ranks = [1u32];
            communicator.all_reduce(&mut ranks, Op::Sum).unwrap();
            assert_eq!(ranks, [settings.ranks]);
        }
    }

    #[test]
    fn a_single_process_is_a_communicator_of_one_rank() {
        let alone = settings(&[]);
        joins_twice(&alone);
        let [first, second] = [0, 1].map(|_| Communicator::with(alone.clone()).unwrap());
        assert_eq!((first.ranks(), second.ranks()), (1, 1));
    }

    #[test]
    fn ranks_of_one_host_need_only_a_name_of_the_job() {
        let namespace = format!("prterun-test-{}@1", std::process::id());
        thread::scope(|scope| {
            for rank in ["0", "1"] {
                let settings = settings(&[
                    ("OMPI_COMM_WORLD_RANK", rank),
                    ("OMPI_COMM_WORLD_SIZE", "2"),
                    ("OMPI_COMM_WORLD_LOCAL_RANK", rank),
                    ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
                    ("PMIX_NAMESPACE", &namespace),
                ]);
                scope.spawn(move || joins_twice(&settings));
            }
        });
    }

    /// A launcher that serves one rank of two, once, with what they have in common.
    fn serve(stream: &UnixStream, value: &Mutex<String>, all: &Barrier) {
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap();
            let answer = match line.split([' ', '=']).nth(1).unwrap() {
                "init" => "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0".to_string(),
                "get_my_kvsname" => "cmd=my_kvsname kvsname=kvs_1".to_string(),
                "put" => {
                    *value.lock().unwrap() = line.rsplit_once("value=").unwrap().1.to_string();
                    "cmd=put_result rc=0".to_string()
                }
                "barrier_in" => {
                    all.wait();
                    "cmd=barrier_out".to_string()
                }
                "get" => format!("cmd=get_result rc=0 value={}", value.lock().unwrap()),
                "finalize" => {
                    (&mut &*stream).write_all(b"cmd=finalize_ack\n").unwrap();
                    return;
                }
                other => panic!("{other}"),
            };
            (&mut &*stream).write_all(format!("{answer}\n").as_bytes()).unwrap();
        }
    }

    #[test]
    fn a_launcher_is_asked_once_by_all_communicators_of_a_process() {
        let (value, all) = (Mutex::default(), Barrier::new(2));
        thread::scope(|scope| {
            for rank in ["0", "1"] {
                let (ours, theirs) = UnixStream::pair().unwrap();
                let (value, all) = (&value, &all);
                scope.spawn(move || serve(&theirs, value, all));
                let settings = settings(&[
                    ("PMI_RANK", rank),
                    ("PMI_SIZE", "2"),
                    ("MPI_LOCALNRANKS", "2"),
                    ("PMI_FD", &ours.as_raw_fd().to_string()),
                ]);
                scope.spawn(move || {
                    joins_twice(&settings);
                    drop(ours);
                });
            }
        });
    }
}
