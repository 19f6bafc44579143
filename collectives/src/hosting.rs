//! The rendezvous and the control service, where a rank's process hosts them.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringtree_transport::rendezvous::{self, Server, StoreError};
use ringtree_transport::secure::Job;

use crate::Error;
use crate::control::ControlService;
use crate::settings::{self, Settings};

/// How long the rank that hosts the rendezvous stays for those that are still finishing.
const LAST_OUT: Duration = Duration::from_secs(2);

/// Serves the ranks until it is dropped.
#[derive(Debug)]
pub(crate) struct Hosted {
    service: Arc<ControlService>,
    server: Server,
}

impl Hosted {
    /// Serves at `address` (port 0: any), in the process of rank `by` or of none.
    ///
    /// # Errors
    /// The address is taken or not this host's.
    pub(crate) fn start(address: &str, job: &Job, by: Option<u32>) -> Result<Hosted, Error> {
        let listener = rendezvous::listen(address)?;
        let service = Arc::new(ControlService::new(by)?);
        let serve = service.clone();
        let on_control = move |stream, hello| serve.serve(stream, hello);
        let server = Server::start(listener, job.clone(), on_control)?;
        Ok(Hosted { service, server })
    }

    /// Where it listens, as `host:port`.
    pub(crate) fn address(&self) -> String {
        self.server.address().to_string()
    }
}

/// Who hosts the rendezvous.
#[derive(Debug)]
pub(crate) enum Host {
    /// This process.
    Here(Hosting),
    /// A launcher, presumably, since this process cannot for the given reason.
    Elsewhere(String),
}

/// By rendezvous and job.
type Place = (String, String);

/// What this process hosts. The communicators that meet at one place share it.
static HERE: LazyLock<Mutex<HashMap<Place, Arc<Hosted>>>> = LazyLock::new(Mutex::default);

fn here() -> MutexGuard<'static, HashMap<Place, Arc<Hosted>>> {
    HERE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hosts the rendezvous for rank 0, unless a launcher does: then its address is taken, or that of
/// another host.
///
/// # Errors
/// The address can be nobody's, or descriptors or threads have run out.
pub(crate) fn host(settings: &Settings) -> Result<Host, Error> {
    let place = (settings.rendezvous.clone(), settings.job.name.clone());
    let mut here = here();
    let hosted = match here.get(&place) {
        Some(hosted) => hosted.clone(),
        None => match Hosted::start(&settings.rendezvous, &settings.job, Some(0)) {
            Ok(hosted) => Arc::new(hosted),
            Err(Error::Rendezvous(error)) if is_elsewhere(&error) => {
                tracing::debug!("the rendezvous is another's: {error}");
                return Ok(Host::Elsewhere(error.to_string()));
            }
            Err(error) => return Err(error),
        },
    };
    here.insert(place.clone(), hosted.clone());
    Ok(Host::Here(Hosting { hosted: Some(hosted), place, joined: false }))
}

fn is_elsewhere(error: &StoreError) -> bool {
    let elsewhere = [ErrorKind::AddrInUse, ErrorKind::AddrNotAvailable];
    matches!(error, StoreError::Listen { kind, .. } if elsewhere.contains(kind))
}

/// The part that a communicator of the hosting rank has in what its process hosts, from its
/// beginning. When the last one is dropped, at the end of the communicator or because that could
/// not be made, it waits a little until the other ranks have found each other and have left too,
/// so that the end of this process does not look like a failure to them.
#[derive(Debug)]
pub(crate) struct Hosting {
    /// Taken by drop.
    hosted: Option<Arc<Hosted>>,
    place: Place,
    /// The communicator was made. Whoever is at the store then waits for the next one, in which
    /// this rank has a part.
    joined: bool,
}

impl Hosting {
    /// The communicator was made.
    pub(crate) fn set_joined(&mut self) {
        self.joined = true;
    }
}

impl Drop for Hosting {
    fn drop(&mut self) {
        let Some(hosted) = self.hosted.take() else { return };
        // Only under the lock does anyone join in: what is held by the table and by this alone is
        // nobody else's.
        {
            let _here = here();
            if Arc::strong_count(&hosted) > 2 {
                drop(hosted);
                return;
            }
        }
        let deadline = Instant::now() + LAST_OUT;
        if !self.joined {
            hosted.server.await_no_clients(deadline);
        }
        hosted.service.await_empty(deadline);
        let mut here = here();
        drop(hosted);
        // Meanwhile another communicator may have come to the same place: it is then the last.
        if here.get(&self.place).is_some_and(|hosted| Arc::strong_count(hosted) == 1)
            && let Some(hosted) = here.remove(&self.place)
        {
            hosted.service.close();
            settings::forget_host_secret(&self.place.0, &self.place.1);
        }
    }
}
