//! How the ranks of a communicator find each other, and what they agree on before the first call.

use std::collections::HashMap;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use ringtree_plan::Places;
use ringtree_transport::endpoint::{Endpoint, EndpointConfig, Transports};
use ringtree_transport::memory::Bell;
use ringtree_transport::pages;
use ringtree_transport::rdma::RdmaConfig;
use ringtree_transport::rendezvous::{Store, StoreClient, StoreError};
use ringtree_transport::secure::{Job, Secret};
use ringtree_transport::shm::{Attach, Board};
use ringtree_transport::wait::{Sleeper, WaitPolicy, usable_processors};

use crate::control::{AbortWord, Control, FlightRecorder, Member, Membership, Place, Roster};
use crate::digest::fnv1a;
use crate::driver::Driver;
use crate::engine::{Engine, Wiring};
use crate::host_order;
use crate::hosting::{Hosted, Hosting, Standby, process_number, random_number};
use crate::network::{self, NetworkFigures, RankPorts};
use crate::regroup;
use crate::rendezvous::{self, Found, is_told_in_file};
use crate::selection::Shape;
use crate::settings::{self, Settings, Source};
use crate::topology::{self, Found as FoundTopology, RankOrder, Site, TopologySource};
use crate::tuning::{Links, MeasuredOn};
use crate::{Costs, Error, Tuned, Tuning};

/// A communicator that is ready.
pub(crate) struct Joined {
    /// With the rendezvous and the job's name as they were found out.
    pub(crate) settings: Settings,
    pub(crate) engine: Engine,
    pub(crate) control: Arc<Control>,
    pub(crate) shape: Shape,
    pub(crate) links: Links,
    pub(crate) hosting: Option<Hosting>,
    pub(crate) origin: Origin,
}

/// What the parts that a communicator is split into take over.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// Its name among all of the job.
    name: String,
    /// Where this rank met the others: `host:port`, or the file that tells it.
    meets_at: String,
    /// This rank's place among those that share its processors, and how many those are. A part keeps
    /// them: the ranks outside it are still there.
    place: usize,
    beside: usize,
    /// Rank 0's cost table, before the ports of the ranks were looked at.
    pub(crate) costs: Costs,
    /// Name of the first communicator from which this one comes by changes of the members.
    pub(crate) lineage: String,
    /// The ranks, as those members.
    pub(crate) roster: Roster,
    /// Which of them this one is.
    pub(crate) id: u64,
    /// The communicator's number.
    pub(crate) communicator: u64,
    /// Where this process would host the control service, if it can.
    pub(crate) standby: Option<Arc<Standby>>,
}

/// From where a communicator comes.
pub(crate) enum Descent<'a> {
    /// It is the first of its kind.
    First,
    /// It is a part of another one.
    Part(&'a Origin),
    /// Members of another one go on, this rank as the one of this number.
    Next { lineage: &'a str, roster: &'a Roster, id: u64 },
}

/// What each rank tells all others before the first call.
struct Introduction {
    /// Equal for processes that share a kernel and a network namespace.
    host: u64,
    /// Number of the process on its host.
    process: u32,
    /// As [`Place::process_space`].
    process_space: u64,
    ranks: u32,
    /// How many processors this rank may use.
    processors: u32,
    /// A number that ranks of a host have in common if they may use the same ones.
    processor_set: u64,
    /// Whether its buffers can be moved into large pages.
    large_pages: bool,
    transports: Transports,
    /// It can be reached over RDMA.
    has_rdma: bool,
    reproducible: bool,
    checksums: bool,
    /// What counts are rank 0's.
    costs: Costs,
    /// Rank 0 may have a table of measured times for all.
    may_be_tuned: bool,
    /// Where on its host it is.
    site: Site,
    /// What is known of its ports.
    ports: RankPorts,
    /// This rank, however the members change.
    member: Member,
    /// The switches that its host is below, as in [`Settings::switches`]; empty if they are not known.
    switches: String,
    address: Vec<u8>,
}

/// Joins as `settings` say, and waits until all ranks have come.
pub(crate) fn join(settings: Settings) -> Result<Joined, Error> {
    if settings.joins {
        let lineage = format!("communicator/{}", next_generation(&settings));
        return regroup::come_in(&settings, &lineage);
    }
    let deadline = Instant::now() + settings.bounded_timeout();
    let Found { settings, meets_at, mut hosting, not_here } = rendezvous::find(settings, deadline)?;
    let name = format!("communicator/{}", next_generation(&settings));
    let joined = meet_as(settings, meets_at, name, Descent::First);
    let joined = joined.map_err(|error| with_reason(error, not_here.as_deref()))?;
    if let Some(hosting) = &mut hosting {
        hosting.set_joined();
    }
    Ok(Joined { hosting, ..joined })
}

/// Joins a part of a communicator, as `settings` say, at that one's rendezvous. `part` is a name among the
/// parts of the same.
pub(crate) fn join_part(settings: Settings, origin: &Origin, part: &str) -> Result<Joined, Error> {
    let name = format!("{}/{part}", origin.name);
    meet_as(settings, origin.meets_at.clone(), name, Descent::Part(origin))
}

/// Joins the communicator of this name at a place.
pub(crate) fn meet_as(
    settings: Settings,
    meets_at: String,
    name: String,
    descent: Descent<'_>,
) -> Result<Joined, Error> {
    let timeout = settings.bounded_timeout();
    let deadline = Instant::now() + timeout;
    let communicator = communicator_id(&settings.job, &name);
    let board = Board::new()?;
    let board = if settings.checksums { board.with_checksums() } else { board };
    let mut meeting = Gathering::at(&meets_at, &settings.job, deadline)?;
    let found = FoundTopology::of(&settings.topology, settings.local_rank)?;
    let mut rdma = settings.rdma.clone();
    rdma.devices = rdma.devices.or_else(|| found.rdma_ports.clone());
    let endpoint = Endpoint::bind(EndpointConfig {
        job: settings.job.clone(),
        communicator,
        rank: settings.rank,
        transports: settings.transports,
        interface: settings.interface.clone(),
        ports: settings.ports,
        advertise: settings.advertise.clone(),
        sockets: settings.sockets,
        encrypts: settings.encrypts,
        checksums: settings.checksums,
        attach: settings.attach,
        rdma,
        rendezvous: Some(meeting.address.clone()),
        board: board.memory().clone(),
    })?;
    let standby = Standby::of(&settings, &meeting.address);
    let id = match descent {
        Descent::Next { id, .. } => id,
        Descent::First | Descent::Part(_) => random_number()?,
    };
    let mine = Introduction {
        member: Member {
            id,
            process: process_number()?,
            standby: standby.as_ref().map_or(String::new(), |it| it.address().to_owned()),
        },
        host: host_id(),
        process: std::process::id(),
        process_space: Place::here().process_space,
        ranks: settings.ranks,
        processors: usable_processors() as u32,
        processor_set: processor_set(),
        large_pages: pages::large_page_bytes().is_some(),
        transports: settings.transports,
        has_rdma: endpoint.has_rdma(),
        reproducible: settings.reproducible,
        checksums: settings.checksums,
        costs: settings.costs,
        may_be_tuned: matches!(&settings.tuning, Tuning::Kept(cache) if cache.exists()),
        site: found.site,
        ports: match &found.machine {
            Some(machine) => RankPorts::of(&endpoint, machine, found.is_here),
            None => RankPorts::default(),
        },
        switches: switches(&settings),
        address: endpoint.address(),
    };
    let (rank, ranks) = (settings.rank, settings.ranks);
    let values = meeting.gather(&settings, &name, &mine.encode(), deadline)?;
    let all = introductions(&values, &mine)?;

    let members: Vec<Member> = all.iter().map(|introduction| introduction.member.clone()).collect();
    let (lineage, roster) = match &descent {
        Descent::Next { lineage, roster, .. } => (lineage.to_string(), (*roster).clone()),
        Descent::First | Descent::Part(_) => {
            let first =
                Roster { epoch: 0, name: name.clone(), members, newcomers: 0, progress: None };
            (name.clone(), first)
        }
    };
    let recorder = Arc::new(FlightRecorder::new());
    let bell = Arc::new(Bell::new()?);
    let abort = Arc::new(AbortWord::new());
    abort.wake(bell.clone());
    let control = Arc::new(Control::join(
        &meeting.address,
        &settings.job,
        Membership {
            communicator,
            rank,
            ranks,
            lineage: lineage.clone(),
            epoch: roster.epoch,
            terms: settings.terms(),
            processes: all.iter().map(|introduction| introduction.member.process).collect(),
        },
        recorder.clone(),
        abort.clone(),
        deadline,
    )?);
    for (other, theirs) in (0..).zip(&all) {
        let counts_alike = mine.process_space != 0 && theirs.process_space == mine.process_space;
        if counts_alike && theirs.process != mine.process {
            // Without it that rank's end is noticed otherwise, and is less certain.
            let witnessed = control.witness_process(other, theirs.process);
            let _ = witnessed.inspect_err(|error| tracing::debug!("rank {other}: {error}"));
        }
    }
    let is_local = |other: &Introduction| other.host == mine.host;
    let is_beside =
        |other: &&Introduction| is_local(other) && other.processor_set == mine.processor_set;
    let beside = all.iter().filter(is_beside).count();
    let place = all[..rank as usize].iter().filter(is_beside).count();
    let shared_memory = all.iter().all(is_local) && settings.transports.allows_shm();
    let (local_ranks, processors) = fullest(&all);
    let hosts = hosts(&all);
    let count = hosts.iter().max().map_or(1, |last| last + 1);
    let on = |host: u32| hosts.iter().filter(|other| **other == host).count() as u32;
    let fewest_local_ranks = (0..count).map(on).min().unwrap_or(1);
    let rdma = !shared_memory && all.iter().all(|introduction| introduction.has_rdma);
    let (costs, network_figures) = match count {
        // Nothing leaves the host, through whatever port.
        1 => (all[0].costs, NetworkFigures::Default),
        _ => {
            let ports: Vec<&RankPorts> = all.iter().map(|one| &one.ports).collect();
            network::with_ports(all[0].costs, &ports, rdma)
        }
    };
    let mut shape = Shape {
        ranks,
        hosts: count,
        shared_memory,
        rdma,
        local_ranks,
        processors,
        fewest_local_ranks,
        reproducible: settings.reproducible,
        large_pages: all.iter().all(|introduction| introduction.large_pages),
        costs,
        network_figures,
        tuned: None,
        order: None,
    };
    let is_here = |other: &Introduction| is_local(other) && other.process == mine.process;
    let links = Links::new(&settings, &shape, all.iter().all(is_here));
    let order = rank_order(&mut meeting, &settings, &all, &hosts, found, &name, deadline)?;
    shape.order = order.map(Arc::new);
    if all[0].may_be_tuned {
        let table = tuned(&mut meeting, &settings, &shape, &links, &name, deadline)?;
        shape.tuned = table.map(Arc::new);
    }
    let costs = all[0].costs;
    let wiring = Wiring {
        rank,
        endpoint,
        board,
        places: places(&hosts, shape.order.as_deref()),
        links: (0..ranks).map(|_| None).collect(),
        registrations: Vec::new(),
        addresses: all.into_iter().map(|introduction| introduction.address).collect(),
    };
    let (place, beside) = match descent {
        Descent::Part(origin) => (origin.place, origin.beside),
        Descent::First | Descent::Next { .. } => (place, beside),
    };
    let driver = Driver {
        policy: WaitPolicy::for_rank(place, beside),
        sleeper: Sleeper::for_links(ranks as usize),
        bell,
        abort,
        control: control.clone(),
        recorder,
        timeout,
    };
    let engine = Engine::new(wiring, driver, shape.clone());
    let origin =
        Origin { name, meets_at, place, beside, costs, lineage, roster, id, communicator, standby };
    Ok(Joined { settings, engine, control, shape, links, hosting: None, origin })
}

/// The order of the ranks that their hosts' wiring and the switches above those say. Where some are in places of their
/// own, the description of each kind of host goes over the store once.
fn rank_order(
    meeting: &mut Gathering,
    settings: &Settings,
    all: &[Introduction],
    hosts: &[u32],
    found: FoundTopology,
    name: &str,
    deadline: Instant,
) -> Result<Option<RankOrder>, Error> {
    let sites: Vec<Site> = all.iter().map(|introduction| introduction.site).collect();
    if sites.len() < 3 {
        return Ok(None);
    }
    let switches: Vec<&str> = all.iter().map(|introduction| &introduction.switches[..]).collect();
    let row = host_order::in_a_row(hosts, &switches);
    let is_by_switches = row != Places::on(hosts).order();
    let mut order = None;
    if sites.iter().all(|site| site.kind != 0) {
        let tells = topology::tells(settings.rank, &sites);
        let mine = if tells { found.description.as_bytes() } else { &[] };
        let descriptions = meeting.gather(settings, &format!("{name}/topology"), mine, deadline)?;
        order = topology::order(hosts, &row, &sites, &descriptions);
    }
    if let Some(order) = &mut order {
        order.is_by_switches = is_by_switches;
    }
    Ok(order.or_else(|| is_by_switches.then(|| RankOrder::by_switches(row))))
}

/// The switches that this host is below, unless they are not to count or are more than an introduction has room for.
fn switches(settings: &Settings) -> String {
    let is_used = settings.topology != TopologySource::Off;
    let told = settings.switches.as_ref().filter(|told| is_used && told.len() < 256);
    told.cloned().unwrap_or_default()
}

/// The orders of the ranks, of which rings take all.
fn places(hosts: &[u32], order: Option<&RankOrder>) -> Vec<Places> {
    let rings = order.iter().flat_map(|order| order.rings());
    let said: Vec<Places> =
        rings.filter_map(|ring| Places::in_order(hosts, ring.to_vec())).collect();
    if said.is_empty() { vec![Places::on(hosts)] } else { said }
}

/// The table of measured times that rank 0 has for such ranks, if it has one. Only rank 0 looks into its
/// cache, so that all choose by the same.
fn tuned(
    meeting: &mut Gathering,
    settings: &Settings,
    shape: &Shape,
    links: &Links,
    name: &str,
    deadline: Instant,
) -> Result<Option<Tuned>, Error> {
    let text = match (settings.rank, &settings.tuning) {
        (0, Tuning::Kept(cache)) => {
            cache.find(&MeasuredOn::new(shape, links.clone())).map(|tuned| tuned.encode())
        }
        _ => None,
    };
    let mine = text.unwrap_or_default();
    let values = meeting.gather(settings, &format!("{name}/tuned"), mine.as_bytes(), deadline)?;
    if values[0].is_empty() {
        return Ok(None);
    }
    let unusable = |why| Error::Settings(format!("rank 0's table of measured times: {why}"));
    Tuned::decode(&values[0]).map(Some).map_err(unusable)
}

/// The store where this rank meets the others.
pub(crate) struct Gathering<'a> {
    /// `host:port`, or the file that tells it.
    place: &'a str,
    /// `host:port` of the store and the control service.
    address: String,
    /// The connection, where it had to be looked for.
    store: Option<StoreClient>,
}

impl Gathering<'_> {
    /// The store at a place. Where that is a file, it is looked for at once: the address in it may
    /// be an old one.
    pub(crate) fn at<'a>(
        place: &'a str,
        job: &Job,
        deadline: Instant,
    ) -> Result<Gathering<'a>, StoreError> {
        if !is_told_in_file(place) {
            return Ok(Gathering { place, address: place.into(), store: None });
        }
        let store = StoreClient::connect(place, job, deadline)?;
        Ok(Gathering { place, address: store.address().into(), store: Some(store) })
    }

    /// Where the control service is, once somebody answers there.
    pub(crate) fn service_address(
        &mut self,
        job: &Job,
        deadline: Instant,
    ) -> Result<String, StoreError> {
        Ok(self.take_store(job, deadline)?.address().to_owned())
    }

    /// The connection to the store, made now if there is none.
    fn take_store(&mut self, job: &Job, deadline: Instant) -> Result<StoreClient, StoreError> {
        match self.store.take() {
            Some(store) => Ok(store),
            None => StoreClient::connect(self.place, job, deadline),
        }
    }

    /// All ranks' values. Where a communicator was dropped just before, its rendezvous may end under
    /// this one: then the next one is waited for.
    fn gather(
        &mut self,
        settings: &Settings,
        prefix: &str,
        value: &[u8],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        loop {
            let store = self.take_store(&settings.job, deadline)?;
            self.address = store.address().into();
            let (rank, ranks) = (settings.rank, settings.ranks);
            match Store::Tcp(store).gather(prefix, rank, ranks, value, deadline) {
                Err(
                    StoreError::Lost { .. } | StoreError::Stopped | StoreError::Disconnected { .. },
                ) if Instant::now() < deadline => {}
                result => return result,
            }
        }
    }
}

/// What rank 0 could not host itself, nobody may have: then it says why it could not.
pub(crate) fn with_reason(error: Error, not_here: Option<&str>) -> Error {
    match (&error, not_here) {
        (Error::Rendezvous(rendezvous), Some(not_here)) => match &**rendezvous {
            StoreError::Unreachable { address, reason } => {
                let reason = format!("{reason}; this process {not_here}");
                StoreError::Unreachable { address: address.clone(), reason }.into()
            }
            _ => error,
        },
        _ => error,
    }
}

/// A rendezvous of this process alone, and the settings of `ranks` ranks that meet there.
pub(crate) fn in_process(ranks: u32) -> Result<(Arc<Hosted>, Vec<Settings>), Error> {
    let text = Secret::generate().map_err(|error| Error::Settings(error.to_string()))?;
    // The system may give the port again to a later one, which must not be taken for this one.
    static STARTED: AtomicU64 = AtomicU64::new(0);
    let name = format!("in-process {}", STARTED.fetch_add(1, Ordering::Relaxed));
    let job = Job { name, secret: Secret::from_text(&text) };
    let hosted = Arc::new(Hosted::in_process(&job, None)?);
    let rendezvous = hosted.address();
    let settings = (0..ranks).map(|rank| Settings {
        source: Source::Explicit,
        rank,
        ranks,
        local_rank: Some(rank),
        rendezvous: rendezvous.clone(),
        job: job.clone(),
        timeout: Duration::from_secs(60),
        transports: Transports::Auto,
        interface: None,
        ports: None,
        advertise: vec![],
        sockets: 1,
        encrypts: false,
        checksums: false,
        attach: Attach::Auto,
        rdma: RdmaConfig::default(),
        // Of the process, as the driver is.
        cuda_library: std::env::var_os("RINGTREE_CUDA_LIBRARY").map(PathBuf::from),
        reproducible: false,
        joins: false,
        topology: TopologySource::System,
        switches: None,
        costs: Costs::default(),
        tuning: Tuning::Off,
    });
    Ok((hosted, settings.collect()))
}

/// How many communicators a rank has joined, by rendezvous, job and rank.
type Generations = HashMap<(String, String, u32), u64>;

static JOINED: LazyLock<Mutex<Generations>> = LazyLock::new(Mutex::default);

/// Forgets a job whose ranks join no more.
pub(crate) fn forget_job(name: &str) {
    let mut joined = JOINED.lock().unwrap_or_else(PoisonError::into_inner);
    joined.retain(|(_, job, _), _| job != name);
}

/// Communicators that this rank has joined before at the same place. All ranks join in the same
/// order, so that they agree on the number.
fn next_generation(settings: &Settings) -> u64 {
    let key = (settings.rendezvous.clone(), settings.job.name.clone(), settings.rank);
    let mut joined = JOINED.lock().unwrap_or_else(PoisonError::into_inner);
    let generation = joined.entry(key).or_insert(0);
    *generation += 1;
    *generation
}

/// The number of the communicator of this name.
pub(crate) fn communicator_id(job: &Job, name: &str) -> u64 {
    fnv1a(job.name.bytes().chain([0]).chain(name.bytes()))
}

/// A number that processes have in common if and only if they share a kernel and a network
/// namespace. Only a hint for the choice of algorithms: links prove it for themselves.
fn host_id() -> u64 {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    fnv1a(boot.into_iter().chain(network.into_os_string().into_vec()))
}

/// The host of each rank; they count from 0 in the order in which they appear.
fn hosts(all: &[Introduction]) -> Vec<u32> {
    let mut numbers: HashMap<u64, u32> = HashMap::new();
    let number = |introduction: &Introduction| {
        let next = numbers.len() as u32;
        *numbers.entry(introduction.host).or_insert(next)
    };
    all.iter().map(number).collect()
}

/// Ranks and processors, where most ranks share few processors. Ranks of a host that may use
/// different ones do not share them.
fn fullest(all: &[Introduction]) -> (u32, u32) {
    let mut sets: HashMap<(u64, u64), (u32, u32)> = HashMap::new();
    for introduction in all {
        let set = (introduction.host, introduction.processor_set);
        let (ranks, processors) = sets.entry(set).or_default();
        *ranks += 1;
        *processors = introduction.processors.max(1);
    }
    // Compared as fractions; among equals everyone takes the same.
    let crowding = |a: &(u32, u32), b: &(u32, u32)| {
        let across = |x: u32, y: u32| u64::from(x) * u64::from(y);
        across(a.0, b.1).cmp(&across(b.0, a.1)).then(a.cmp(b))
    };
    sets.into_values().max_by(crowding).unwrap_or((1, 1))
}

/// See [`Introduction`].
fn processor_set() -> u64 {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let is_in = |cpu: &usize| set.is_set(*cpu).unwrap_or(false);
    fnv1a((0..CpuSet::count()).filter(is_in).flat_map(usize::to_le_bytes))
}

/// Everyone's introduction, if they agree with this rank's.
fn introductions(values: &[Vec<u8>], mine: &Introduction) -> Result<Vec<Introduction>, Error> {
    let mut all = Vec::with_capacity(values.len());
    for (rank, value) in values.iter().enumerate() {
        let other = Introduction::decode(value)
            .ok_or_else(|| Error::Settings(format!("rank {rank}'s introduction is malformed")))?;
        let expects = |one: &Introduction| {
            let terms = settings::terms(one.transports, one.reproducible, one.checksums);
            format!("{} ranks {terms}", one.ranks)
        };
        if expects(&other) != expects(mine) {
            return Err(Error::Settings(format!(
                "rank {rank} expects {}, this one {}: all must have the same settings",
                expects(&other),
                expects(mine)
            )));
        }
        all.push(other);
    }
    Ok(all)
}

impl Introduction {
    fn encode(&self) -> Vec<u8> {
        let mut out = self.host.to_le_bytes().to_vec();
        out.extend_from_slice(&self.process.to_le_bytes());
        out.extend_from_slice(&self.process_space.to_le_bytes());
        out.extend_from_slice(&self.ranks.to_le_bytes());
        out.extend_from_slice(&self.processors.to_le_bytes());
        out.extend_from_slice(&self.processor_set.to_le_bytes());
        out.push(u8::from(self.large_pages));
        out.push(self.transports as u8);
        out.push(self.has_rdma.into());
        out.push(u8::from(self.reproducible));
        out.push(u8::from(self.checksums));
        out.extend_from_slice(&self.costs.encode());
        out.push(u8::from(self.may_be_tuned));
        out.extend_from_slice(&self.site.encode());
        out.extend_from_slice(&self.ports.encode());
        out.push(self.switches.len() as u8);
        out.extend_from_slice(self.switches.as_bytes());
        out.extend_from_slice(&self.member.id.to_le_bytes());
        out.extend_from_slice(&self.member.process.to_le_bytes());
        out.push(self.member.standby.len() as u8);
        out.extend_from_slice(self.member.standby.as_bytes());
        out.extend_from_slice(&self.address);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Introduction> {
        let (host, bytes) = bytes.split_first_chunk()?;
        let (process, bytes) = bytes.split_first_chunk()?;
        let (process_space, bytes) = bytes.split_first_chunk()?;
        let (ranks, bytes) = bytes.split_first_chunk()?;
        let (processors, bytes) = bytes.split_first_chunk()?;
        let (processor_set, bytes) = bytes.split_first_chunk()?;
        let (&large_pages, bytes) = bytes.split_first()?;
        let (&transports, bytes) = bytes.split_first()?;
        let (&has_rdma, bytes) = bytes.split_first()?;
        let (&reproducible, bytes) = bytes.split_first()?;
        let (&checksums, bytes) = bytes.split_first()?;
        let (costs, bytes) = bytes.split_first_chunk()?;
        let (&may_be_tuned, bytes) = bytes.split_first()?;
        let (site, bytes) = bytes.split_first_chunk()?;
        let (ports, bytes) = RankPorts::decode(bytes)?;
        let (&length, bytes) = bytes.split_first()?;
        let (switches, bytes) = bytes.split_at_checked(usize::from(length))?;
        let (id, bytes) = bytes.split_first_chunk()?;
        let (number, bytes) = bytes.split_first_chunk()?;
        let (&length, bytes) = bytes.split_first()?;
        let (standby, address) = bytes.split_at_checked(usize::from(length))?;
        let member = Member {
            id: u64::from_le_bytes(*id),
            process: u64::from_le_bytes(*number),
            standby: String::from_utf8(standby.to_vec()).ok()?,
        };
        Some(Introduction {
            host: u64::from_le_bytes(*host),
            process: u32::from_le_bytes(*process),
            process_space: u64::from_le_bytes(*process_space),
            ranks: u32::from_le_bytes(*ranks),
            processors: u32::from_le_bytes(*processors),
            processor_set: u64::from_le_bytes(*processor_set),
            large_pages: large_pages != 0,
            transports: Transports::ALL.into_iter().find(|t| *t as u8 == transports)?,
            has_rdma: has_rdma != 0,
            reproducible: reproducible != 0,
            checksums: checksums != 0,
            costs: Costs::decode(costs)?,
            may_be_tuned: may_be_tuned != 0,
            site: Site::decode(site),
            ports,
            switches: String::from_utf8(switches.to_vec()).ok()?,
            member,
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
