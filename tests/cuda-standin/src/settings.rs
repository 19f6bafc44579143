//! Settings: from the environment, and from `ringtree_standin_configure`. The table is in the crate's documentation.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::MAX_DEVICES;
use crate::code::Code;
use crate::engines::Bandwidths;
use crate::faults::{self, Failure};

/// When the work of a stream runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Schedule {
    /// Only once something waits for it, or after the hold time.
    Adversarial,
    /// After random delays.
    Random,
    /// At once.
    Prompt,
}

/// How kernels come to find what network adapters have written in a device's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RemoteWrites {
    /// They do.
    Ordered,
    /// Once the host has flushed them.
    Flushed,
    /// No way that the host has.
    Unordered,
}

/// All settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many devices there are.
    pub devices: usize,
    /// Memory of each device.
    pub memory_bytes: u64,
    /// What `cuDriverGetVersion` says; it decides the newest PTX version.
    pub driver_version: i32,
    /// Pairs of devices that cannot reach each other's memory; `None` for all pairs.
    pub no_peer: Option<Vec<(usize, usize)>>,
    /// Pairs of devices between which copies are lost; `None` for all pairs.
    pub lost_peer: Option<Vec<(usize, usize)>>,
    /// When the work of a stream runs, as it was set; see [`Settings::schedule`].
    pub schedule: Schedule,
    /// How fast copies and kernels are; unless that is unset, streams run at once.
    pub bandwidths: Bandwidths,
    /// How long the adversarial schedule holds back what nothing waits for.
    pub hold: Duration,
    /// Of random delays, and of the kernels' interleaving.
    pub seed: u64,
    /// Calls that fail.
    pub failures: Vec<Failure>,
    /// Major and minor number.
    pub compute_capability: (i32, i32),
    /// Whether memory can be exported as a dma-buf.
    pub dma_buf: bool,
    /// How kernels come to find what network adapters have written.
    pub remote_writes: RemoteWrites,
    /// Whether legacy IPC is supported.
    pub ipc: bool,
    /// Whether other processes can open what has a handle of legacy IPC: between some containers they cannot.
    pub ipc_opens: bool,
    /// Whether virtual memory management is supported.
    pub virtual_memory: bool,
    /// Whether memory that the process may only read can be registered.
    pub read_only_registration: bool,
    /// Whether streams can wait for and write values.
    pub stream_memory_operations: bool,
}

const PREFIX: &str = "RINGTREE_STANDIN_";

static SETTINGS: RwLock<Option<Arc<Settings>>> = RwLock::new(None);

/// The settings in force; those of the environment, or defaults where it is malformed, until something was configured.
pub fn get() -> Arc<Settings> {
    load().unwrap_or_else(|_| Arc::new(Settings::default()))
}

/// The settings in force, or what is wrong with the environment's.
pub fn load() -> Result<Arc<Settings>, String> {
    if let Some(settings) = &*SETTINGS.read().unwrap_or_else(PoisonError::into_inner) {
        return Ok(settings.clone());
    }
    let mut settings = Settings::default();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        let value = value.to_str().ok_or_else(|| format!("{name} is not UTF-8"))?;
        settings.set(&name[PREFIX.len()..], value).map_err(|why| format!("{name}: {why}"))?;
    }
    faults::plan(&settings.failures);
    let settings = Arc::new(settings);
    let mut current = SETTINGS.write().unwrap_or_else(PoisonError::into_inner);
    Ok(current.get_or_insert(settings).clone())
}

/// Changes one setting; `initialised` says that the number of devices is fixed.
pub fn configure(key: &str, value: &str, initialised: bool) -> Result<(), String> {
    if key == "DEVICES" && initialised {
        return Err("DEVICES cannot change after cuInit".to_owned());
    }
    let mut changed = Settings::clone(&*load()?);
    changed.set(key, value).map_err(|why| format!("{key}: {why}"))?;
    if key == "FAIL" {
        faults::plan(&changed.failures);
    }
    *SETTINGS.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(changed));
    Ok(())
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            devices: 2,
            memory_bytes: 1 << 30,
            driver_version: 12080,
            no_peer: Some(Vec::new()),
            lost_peer: Some(Vec::new()),
            schedule: Schedule::Adversarial,
            bandwidths: Bandwidths::default(),
            hold: Duration::from_millis(20),
            seed: 1,
            failures: Vec::new(),
            compute_capability: (8, 0),
            dma_buf: true,
            remote_writes: RemoteWrites::Ordered,
            ipc: true,
            ipc_opens: true,
            virtual_memory: true,
            read_only_registration: true,
            stream_memory_operations: true,
        }
    }
}

impl Settings {
    /// When the work of a stream runs.
    pub fn schedule(&self) -> Schedule {
        if self.bandwidths.are_set() { Schedule::Prompt } else { self.schedule }
    }

    /// Whether device `a` can reach the memory of device `b`.
    pub fn can_access_peer(&self, a: usize, b: usize) -> bool {
        a != b && !names(&self.no_peer, a, b)
    }

    /// Whether what is copied between devices `a` and `b` is lost.
    pub fn loses(&self, a: usize, b: usize) -> bool {
        a != b && a.max(b) < MAX_DEVICES && names(&self.lost_peer, a, b)
    }

    /// The newest PTX version that the driver takes. Versions rise with the driver's, but for 12.6, which added none.
    pub fn newest_ptx(&self) -> (u32, u32) {
        let (major, minor) = (self.driver_version / 1000, self.driver_version % 1000 / 10);
        match (major as u32, minor as u32) {
            (..=9, _) => (6, 0),
            (10, minor) => (6, 3 + minor),
            (11, minor) => (7, minor),
            (12, minor @ 0..=5) => (8, minor),
            (12, minor) => (8, minor - 1),
            (_, minor) => (9, minor),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "DEVICES" => self.devices = number(value, 0, MAX_DEVICES as u64)? as usize,
            "MEMORY_BYTES" => self.memory_bytes = number(value, 1, 1 << 40)?,
            "DRIVER_VERSION" => self.driver_version = number(value, 1000, 99_999)? as i32,
            "NO_PEER" => self.no_peer = pairs(value)?,
            "LOST_PEER" => self.lost_peer = pairs(value)?,
            "SCHEDULE" => {
                self.schedule = match value {
                    "adversarial" => Schedule::Adversarial,
                    "random" => Schedule::Random,
                    "prompt" => Schedule::Prompt,
                    _ => return Err(format!("{value:?} is not adversarial, random or prompt")),
                }
            }
            "BANDWIDTHS" => self.bandwidths = Bandwidths::parse(value)?,
            "HOLD_MS" => self.hold = Duration::from_millis(number(value, 0, 3_600_000)?),
            "SEED" => self.seed = number(value, 0, u64::MAX)?,
            "FAIL" => self.failures = faults::parse(value)?,
            "COMPUTE_CAPABILITY" => {
                let (major, minor) =
                    value.split_once('.').ok_or_else(|| format!("{value:?} is not like 8.0"))?;
                self.compute_capability =
                    (number(major, 1, 99)? as i32, number(minor, 0, 9)? as i32);
            }
            "NO_DMA_BUF" => self.dma_buf = !flag(value)?,
            "REMOTE_WRITES" => {
                self.remote_writes = match value {
                    "ordered" => RemoteWrites::Ordered,
                    "flushed" => RemoteWrites::Flushed,
                    "unordered" => RemoteWrites::Unordered,
                    _ => return Err(format!("{value:?} is not ordered, flushed or unordered")),
                }
            }
            "NO_IPC" if value == "open" => (self.ipc, self.ipc_opens) = (true, false),
            "NO_IPC" => (self.ipc, self.ipc_opens) = (!flag(value)?, true),
            "NO_VMM" => self.virtual_memory = !flag(value)?,
            "NO_READ_ONLY_REGISTRATION" => self.read_only_registration = !flag(value)?,
            "NO_STREAM_MEMORY_OPS" => self.stream_memory_operations = !flag(value)?,
            _ => return Err("there is no such setting".to_owned()),
        }
        Ok(())
    }
}

/// Whether a pair is among those; `None` is all.
fn names(pairs: &Option<Vec<(usize, usize)>>, a: usize, b: usize) -> bool {
    pairs.as_ref().is_none_or(|pairs| pairs.contains(&(a, b)) || pairs.contains(&(b, a)))
}

fn number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("{text:?} is not a number from {least} to {most}"))
}

fn flag(text: &str) -> Result<bool, String> {
    match text {
        "1" => Ok(true),
        "0" | "" => Ok(false),
        _ => Err(format!("{text:?} is not 0 or 1")),
    }
}

fn pairs(text: &str) -> Result<Option<Vec<(usize, usize)>>, String> {
    if text == "all" {
        return Ok(None);
    }
    let pair = |pair: &str| {
        let (a, b) =
            pair.split_once('-').ok_or_else(|| format!("{pair:?} is not a pair like 0-1"))?;
        let device = |text| number(text, 0, MAX_DEVICES as u64 - 1).map(|device| device as usize);
        Ok((device(a)?, device(b)?))
    };
    let pairs = text.split(',').filter(|pair| !pair.is_empty()).map(pair);
    pairs.collect::<Result<Vec<_>, String>>().map(Some)
}

/// Says on stderr what a person should know.
pub fn say(message: &str) {
    eprintln!("CUDA stand-in: {message}");
}

/// Configures for a C caller.
pub fn configure_or_say(key: &str, value: &str, initialised: bool) -> crate::code::Result {
    configure(key, value, initialised).map_err(|why| {
        say(&why);
        Code::INVALID_VALUE
    })
}
