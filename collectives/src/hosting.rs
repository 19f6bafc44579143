//! The rendezvous and the control service, where a rank's process hosts them.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ringtree_transport::host_port::HostPort;
use ringtree_transport::interfaces::rank_addresses;
use ringtree_transport::rendezvous::{self, Notice, Place, Server, StoreError};
use ringtree_transport::secure::{Job, Secret, random_bytes};

use crate::Error;
use crate::control::ControlService;
use crate::settings::{self, Settings};

/// How long the rank that hosts the rendezvous stays for those that are still finishing.
const LAST_OUT: Duration = Duration::from_secs(2);

/// Serves the ranks until it is dropped.
#[derive(Debug)]
pub(crate) struct Hosted {
    /// Where ranks find the address in a file. The first to go.
    _notice: Option<Notice>,
    service: Arc<ControlService>,
    server: Server,
}

impl Hosted {
    /// Serves where the settings say, in the process of rank 0.
    ///
    /// # Errors
    /// The address is taken or not this host's; the file cannot be written.
    fn start(settings: &Settings) -> Result<Hosted, Error> {
        let Settings { job, interface, ports, advertise, .. } = settings;
        let (listener, notice) = match Place::of(&settings.rendezvous) {
            Place::Address(address) => (rendezvous::listen(address)?, None),
            Place::File(path) => {
                let told = advertise.first();
                let (listener, told) =
                    rendezvous::listen_somewhere(interface.as_deref(), *ports, told)?;
                (listener, Some(Notice::publish(path, job, &told)?))
            }
        };
        Hosted::serve(listener, notice, job, Some(process_number()?))
    }

    /// Serves ranks of this process alone: the one of number `by`, or all as threads.
    ///
    /// # Errors
    /// Ports, descriptors or threads have run out.
    pub(crate) fn in_process(job: &Job, by: Option<u64>) -> Result<Hosted, Error> {
        Hosted::serve(rendezvous::listen("127.0.0.1:0")?, None, job, by)
    }

    fn serve(
        listener: TcpListener,
        notice: Option<Notice>,
        job: &Job,
        by: Option<u64>,
    ) -> Result<Hosted, Error> {
        let service = Arc::new(ControlService::new(by)?);
        let serve = service.clone();
        let on_control = move |stream, hello| serve.serve(stream, hello);
        let server = Server::start(listener, job.clone(), on_control)?;
        service.meet_in(server.store());
        Ok(Hosted { _notice: notice, service, server })
    }

    /// Where it listens, as `host:port`.
    pub(crate) fn address(&self) -> String {
        self.server.address().to_string()
    }
}

/// A random number of this process, by which the ranks that are in it know whether it hosts the service.
///
/// # Errors
/// The system gives no random numbers.
pub(crate) fn process_number() -> Result<u64, Error> {
    /// A child that was forked is another process.
    static NUMBER: Mutex<Option<(u32, u64)>> = Mutex::new(None);
    let mut number = NUMBER.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = std::process::id();
    if let Some((of, number)) = *number
        && of == pid
    {
        return Ok(number);
    }
    let drawn = random_number()?;
    *number = Some((pid, drawn));
    Ok(drawn)
}

/// A random number.
///
/// # Errors
/// The system gives none.
pub(crate) fn random_number() -> Result<u64, Error> {
    let bytes = random_bytes().map_err(|error| Error::Settings(error.to_string()))?;
    Ok(u64::from_le_bytes(bytes))
}

/// A rendezvous and control service in this process, for when whoever hosts those is gone. It serves from the beginning, so
/// that the others know where, and does nothing until somebody comes. Its port is closed once this process has ended.
#[derive(Debug)]
pub(crate) struct Standby {
    told: String,
    job: Job,
    hosted: Hosted,
    notice: Mutex<Option<Notice>>,
}

impl Standby {
    /// This process's for a job: the communicators that are there at the same time share it. `None` where there is no
    /// address that the others reach, or no port to spare: then others take over.
    pub(crate) fn of(settings: &Settings, rendezvous: &str) -> Option<Arc<Standby>> {
        // The one port that a translation of addresses leads to is the links', and so are ports where there is not one more
        // for each rank.
        let is_translated = settings.advertise.iter().any(|told| told.port.is_some());
        let needed = 2 * settings.ranks as usize + 1;
        if is_translated || settings.ports.is_some_and(|ports| ports.count() < needed) {
            return None;
        }
        let standby = Standby::find(settings, rendezvous);
        standby
            .inspect_err(|error| tracing::debug!("this process could not take over: {error}"))
            .ok()
            .filter(|standby| standby.told.len() < 256)
    }

    fn find(settings: &Settings, rendezvous: &str) -> Result<Arc<Standby>, Error> {
        static STANDBYS: Mutex<Vec<(u32, Weak<Standby>)>> = Mutex::new(Vec::new());
        let mut standbys = STANDBYS.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = std::process::id();
        standbys.retain(|(of, standby)| *of == pid && standby.strong_count() > 0);
        let mut known = standbys.iter().filter_map(|(_, standby)| standby.upgrade());
        let is_for_it = |standby: &Arc<Standby>| {
            let Job { name, secret } = &standby.job;
            (name, secret) == (&settings.job.name, &settings.job.secret)
        };
        if let Some(standby) = known.find(is_for_it) {
            return Ok(standby);
        }
        let interface = settings.interface.as_deref();
        let ips = rank_addresses(interface, Some(rendezvous)).map_err(StoreError::from)?;
        let listen = HostPort::from(ips[0]).with_port(0).to_string();
        let listener = rendezvous::listen_within(&listen, settings.ports)?;
        let port = listener.local_addr()?.port();
        let own = HostPort::from(ips[0]);
        let told = settings.advertise.first().unwrap_or(&own).with_port(port).to_string();
        let job = settings.job.clone();
        let hosted = Hosted::serve(listener, None, &job, Some(process_number()?))?;
        let standby = Arc::new(Standby { told, job, hosted, notice: Mutex::new(None) });
        standbys.push((pid, Arc::downgrade(&standby)));
        Ok(standby)
    }

    /// Where others reach it, `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.told
    }

    /// The members have met here, and do so from now on. Where ranks find each other by a file, that names this process
    /// then.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn take_over(&self, rendezvous: &str) -> Result<(), Error> {
        let mut notice = self.notice.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Place::File(path), Ok(told), None) =
            (Place::of(rendezvous), self.told.parse::<HostPort>(), &*notice)
        {
            *notice = Some(Notice::publish(path, &self.job, &told)?);
        }
        tracing::info!("this process hosts the control service now, at {}", self.told);
        Ok(())
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        // The end of this process shall not look like a failure to those who are still finishing.
        self.hosted.service.await_empty(Instant::now() + LAST_OUT);
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

/// Rendezvous and job.
type Meeting = (String, String);

/// What this process hosts. The communicators that meet at one place share it.
static HERE: LazyLock<Mutex<HashMap<Meeting, Arc<Hosted>>>> = LazyLock::new(Mutex::default);

fn here() -> MutexGuard<'static, HashMap<Meeting, Arc<Hosted>>> {
    HERE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hosts the rendezvous for rank 0, unless a launcher does: then its address is taken, or that of
/// another host.
///
/// # Errors
/// The address can be nobody's, or descriptors or threads have run out.
pub(crate) fn host(settings: &Settings) -> Result<Host, Error> {
    let meeting = (settings.rendezvous.clone(), settings.job.name.clone());
    let is_at_address = matches!(Place::of(&settings.rendezvous), Place::Address(_));
    let mut here = here();
    let hosted = match here.get(&meeting) {
        Some(hosted) => hosted.clone(),
        None => match Hosted::start(settings) {
            Ok(hosted) => Arc::new(hosted),
            Err(Error::Rendezvous(error)) if is_at_address && is_elsewhere(&error) => {
                tracing::debug!("the rendezvous is another's: {error}");
                return Ok(Host::Elsewhere(error.to_string()));
            }
            Err(error) => return Err(error),
        },
    };
    here.insert(meeting.clone(), hosted.clone());
    let secret = settings.job.secret.clone();
    Ok(Host::Here(Hosting { hosted: Some(hosted), meeting, secret, joined: false }))
}

/// Hosts the rendezvous of a rank that is alone.
///
/// # Errors
/// Ports, descriptors or threads have run out.
pub(crate) fn host_alone(settings: &mut Settings) -> Result<Hosting, Error> {
    let hosted = Hosted::in_process(&settings.job, Some(process_number()?))?;
    Ok(Hosting::of(hosted, settings))
}

/// Hosts the rendezvous where other hosts reach this one. Also returns what they are to be told.
///
/// # Errors
/// There is no address that others reach; ports, descriptors or threads have run out.
pub(crate) fn host_somewhere(settings: &mut Settings) -> Result<(Hosting, String), Error> {
    let Settings { job, interface, ports, advertise, .. } = &*settings;
    let (listener, told) =
        rendezvous::listen_somewhere(interface.as_deref(), *ports, advertise.first())?;
    let hosted = Hosted::serve(listener, None, job, Some(process_number()?))?;
    Ok((Hosting::of(hosted, settings), told.to_string()))
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
    meeting: Meeting,
    secret: Secret,
    /// The communicator was made. Whoever is at the store then waits for the next one, in which
    /// this rank has a part.
    joined: bool,
}

impl Hosting {
    /// What hosts a new rendezvous, which becomes that of the settings.
    fn of(hosted: Hosted, settings: &mut Settings) -> Hosting {
        let hosted = Arc::new(hosted);
        settings.rendezvous = hosted.address();
        let meeting = (settings.rendezvous.clone(), settings.job.name.clone());
        here().insert(meeting.clone(), hosted.clone());
        let secret = settings.job.secret.clone();
        Hosting { hosted: Some(hosted), meeting, secret, joined: false }
    }

    /// Where it listens, as `host:port`; `None` once dropped.
    pub(crate) fn address(&self) -> Option<String> {
        self.hosted.as_ref().map(|hosted| hosted.address())
    }

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
        if here.get(&self.meeting).is_some_and(|hosted| Arc::strong_count(hosted) == 1)
            && let Some(hosted) = here.remove(&self.meeting)
        {
            hosted.service.close();
            settings::forget_host_secret(&self.secret);
        }
    }
}
