//! How the ranks of a communicator find each other, and what they agree on before the first call.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use ringtree_transport::endpoint::{Endpoint, EndpointConfig, Transports};
use ringtree_transport::memory::Bell;
use ringtree_transport::rendezvous::{self, Server, Store, StoreClient, StoreError};
use ringtree_transport::secure::{Job, Secret};
use ringtree_transport::wait::{Sleeper, WaitPolicy};

use crate::Error;
use crate::control::{AbortWord, Control, ControlService, FlightRecorder, Membership};
use crate::engine::{Driver, Engine, Wiring};
use crate::selection::Shape;
use crate::settings::{self, Settings, Source};

/// How long the rank that hosts the rendezvous stays for those that are still finishing.
const LAST_OUT: Duration = Duration::from_secs(2);

/// A communicator that is ready.
pub(crate) struct Joined {
    pub(crate) engine: Engine,
    pub(crate) control: Arc<Control>,
    pub(crate) shape: Shape,
    pub(crate) see_out: Option<SeeOut>,
}

/// The rendezvous and the control service, where this process hosts them.
#[derive(Debug)]
pub(crate) struct Hosted {
    service: Arc<ControlService>,
    server: Server,
    job_name: String,
}

/// What each rank tells all others before the first call.
struct Introduction {
    /// Equal for processes that share a kernel and a network namespace.
    host: u64,
    ranks: u32,
    transports: Transports,
    address: Vec<u8>,
}

/// Joins as `settings` say, and waits until all ranks have come.
pub(crate) fn join(settings: &Settings) -> Result<Joined, Error> {
    let deadline = Instant::now() + settings.timeout;
    let mut see_out = if settings.rank == 0 { host(settings)?.map(SeeOut::new) } else { None };
    let generation = next_generation(settings);
    let communicator = communicator_id(&settings.job, generation);
    let endpoint = Endpoint::bind(EndpointConfig {
        job: settings.job.clone(),
        communicator,
        rank: settings.rank,
        transports: settings.transports,
        interface: settings.interface.clone(),
        rendezvous: Some(settings.rendezvous.clone()),
    })?;
    let mine = Introduction {
        host: host_id(),
        ranks: settings.ranks,
        transports: settings.transports,
        address: endpoint.address(),
    };
    let prefix = format!("communicator/{generation}");
    let (rank, ranks) = (settings.rank, settings.ranks);
    let values = meet(settings, &prefix, &mine.encode(), deadline)?;
    let all = introductions(&values, &mine)?;

    let recorder = Arc::new(FlightRecorder::new());
    let bell = Arc::new(Bell::new()?);
    let abort = Arc::new(AbortWord::new());
    abort.wake(bell.clone());
    let control = Arc::new(Control::join(
        &settings.rendezvous,
        &settings.job,
        Membership { communicator, rank, ranks },
        recorder.clone(),
        abort.clone(),
        deadline,
    )?);
    let local = all.iter().filter(|other| other.host == mine.host).count();
    let shared_memory = local == ranks as usize && settings.transports != Transports::Tcp;
    let wiring = Wiring {
        rank,
        endpoint,
        links: (0..ranks).map(|_| None).collect(),
        registrations: Vec::new(),
        addresses: all.into_iter().map(|introduction| introduction.address).collect(),
    };
    let driver = Driver {
        policy: WaitPolicy::for_local_ranks(local),
        sleeper: Sleeper::for_links(ranks as usize),
        bell,
        abort,
        control: control.clone(),
        recorder,
        timeout: settings.timeout,
    };
    let shape = Shape { ranks, shared_memory };
    if let Some(see_out) = &mut see_out {
        see_out.joined = true;
    }
    Ok(Joined { engine: Engine::new(wiring, driver), control, shape, see_out })
}

/// All ranks' values. Where a communicator was dropped just before, its rendezvous may end under
/// this one: then the next one is waited for.
fn meet(
    settings: &Settings,
    prefix: &str,
    value: &[u8],
    deadline: Instant,
) -> Result<Vec<Vec<u8>>, Error> {
    loop {
        let store = StoreClient::connect(&settings.rendezvous, &settings.job, deadline)?;
        let (rank, ranks) = (settings.rank, settings.ranks);
        match Store::Tcp(store).gather(prefix, rank, ranks, value, deadline) {
            Err(
                StoreError::Lost { .. } | StoreError::Stopped | StoreError::Disconnected { .. },
            ) if Instant::now() < deadline => {}
            result => return Ok(result?),
        }
    }
}

/// A rendezvous of this process alone, and the settings of `ranks` ranks that meet there.
pub(crate) fn in_process(ranks: u32) -> Result<(Arc<Hosted>, Vec<Settings>), Error> {
    let text = Secret::generate().map_err(|error| Error::Settings(error.to_string()))?;
    // The system may give the port again to a later one, which must not be taken for this one.
    static STARTED: AtomicU64 = AtomicU64::new(0);
    let name = format!("in-process {}", STARTED.fetch_add(1, Ordering::Relaxed));
    let job = Job { name, secret: Secret::from_text(&text) };
    let hosted = Arc::new(Hosted::start("127.0.0.1:0", &job, None)?);
    let rendezvous = hosted.server.address().to_string();
    let settings = (0..ranks).map(|rank| Settings {
        source: Source::Explicit,
        rank,
        ranks,
        rendezvous: rendezvous.clone(),
        job: job.clone(),
        timeout: Duration::from_secs(60),
        transports: Transports::Auto,
        interface: None,
    });
    Ok((hosted, settings.collect()))
}

impl Hosted {
    /// Serves at `address` (port 0: any), in the process of rank `by` or of none.
    ///
    /// # Errors
    /// The address is taken or not this host's.
    fn start(address: &str, job: &Job, by: Option<u32>) -> Result<Hosted, Error> {
        let service = Arc::new(ControlService::new(by)?);
        let serve = service.clone();
        let on_control = move |stream, hello| serve.serve(stream, hello);
        let server = Server::start(rendezvous::listen(address)?, job.clone(), on_control)?;
        Ok(Hosted { service, server, job_name: job.name.clone() })
    }
}

/// Held by the communicator of the rank that hosts the rendezvous, from its beginning. When it is
/// dropped, as the last part of the communicator or because that could not be made, it waits a
/// little until the other ranks have found each other and have left too, so that the end of this
/// process does not look like a failure to them.
#[derive(Debug)]
pub(crate) struct SeeOut {
    hosted: Arc<Hosted>,
    /// The communicator was made. Whoever is at the store then waits for the next one, in which
    /// this rank has a part.
    joined: bool,
}

impl SeeOut {
    fn new(hosted: Arc<Hosted>) -> SeeOut {
        SeeOut { hosted, joined: false }
    }
}

impl Drop for SeeOut {
    fn drop(&mut self) {
        if Arc::strong_count(&self.hosted) == 1 {
            let deadline = Instant::now() + LAST_OUT;
            if !self.joined {
                self.hosted.server.await_no_clients(deadline);
            }
            self.hosted.service.await_empty(deadline);
            self.hosted.service.close();
            settings::forget_host_secret(&self.hosted.job_name);
        }
    }
}

/// Hosts the rendezvous at rank 0, unless a launcher does: then its address is taken. The
/// communicators of a process that meet at one place share it.
fn host(settings: &Settings) -> Result<Option<Arc<Hosted>>, Error> {
    static HOSTED: LazyLock<Mutex<HashMap<String, Weak<Hosted>>>> = LazyLock::new(Mutex::default);
    let mut all = HOSTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(hosted) = all.get(&settings.rendezvous).and_then(Weak::upgrade) {
        return Ok(Some(hosted));
    }
    match Hosted::start(&settings.rendezvous, &settings.job, Some(0)) {
        Ok(hosted) => {
            let hosted = Arc::new(hosted);
            all.insert(settings.rendezvous.clone(), Arc::downgrade(&hosted));
            Ok(Some(hosted))
        }
        Err(error) => {
            tracing::debug!("the rendezvous at {} is another's: {error}", settings.rendezvous);
            Ok(None)
        }
    }
}

/// Communicators that this rank has joined before at the same place. All ranks join in the same
/// order, so that they agree on the number.
fn next_generation(settings: &Settings) -> u64 {
    /// By rendezvous, job and rank.
    type Generations = HashMap<(String, String, u32), u64>;
    static JOINED: LazyLock<Mutex<Generations>> = LazyLock::new(Mutex::default);
    let key = (settings.rendezvous.clone(), settings.job.name.clone(), settings.rank);
    let mut joined = JOINED.lock().unwrap_or_else(PoisonError::into_inner);
    let generation = joined.entry(key).or_insert(0);
    *generation += 1;
    *generation
}

fn communicator_id(job: &Job, generation: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&job.name, generation).hash(&mut hasher);
    hasher.finish()
}

/// A number that processes have in common if and only if they share a kernel and a network
/// namespace. Only a hint for the choice of algorithms: links prove it for themselves.
fn host_id() -> u64 {
    let mut hasher = DefaultHasher::new();
    std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default().hash(&mut hasher);
    std::fs::read_link("/proc/self/ns/net").unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

/// Everyone's introduction, if they agree with this rank's.
fn introductions(values: &[Vec<u8>], mine: &Introduction) -> Result<Vec<Introduction>, Error> {
    let mut all = Vec::with_capacity(values.len());
    for (rank, value) in values.iter().enumerate() {
        let other = Introduction::decode(value)
            .ok_or_else(|| Error::Settings(format!("rank {rank}'s introduction is malformed")))?;
        if other.ranks != mine.ranks || other.transports != mine.transports {
            return Err(Error::Settings(format!(
                "rank {rank} expects {} ranks over {}, this one {} over {}: all must have the \
                 same settings",
                other.ranks, other.transports, mine.ranks, mine.transports
            )));
        }
        all.push(other);
    }
    Ok(all)
}

impl Introduction {
    fn encode(&self) -> Vec<u8> {
        let mut out = self.host.to_le_bytes().to_vec();
        out.extend_from_slice(&self.ranks.to_le_bytes());
        out.push(self.transports as u8);
        out.extend_from_slice(&self.address);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Introduction> {
        let (host, bytes) = bytes.split_first_chunk()?;
        let (ranks, bytes) = bytes.split_first_chunk()?;
        let (&transports, address) = bytes.split_first()?;
        let known = [Transports::Auto, Transports::Shm, Transports::Tcp];
        Some(Introduction {
            host: u64::from_le_bytes(*host),
            ranks: u32::from_le_bytes(*ranks),
            transports: known.into_iter().find(|t| *t as u8 == transports)?,
            address: address.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_given_again_does_not_join_two_jobs_of_one_process() {
        let (_first, before) = in_process(2).unwrap();
        let (_second, mut after) = in_process(3).unwrap();
        for (before, after) in before.iter().zip(&mut after) {
            after.rendezvous.clone_from(&before.rendezvous);
            assert_eq!(next_generation(before), 1);
        }
        assert!(after.iter().all(|settings| next_generation(settings) == 1));
    }
}
