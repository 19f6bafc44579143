//! The process that tries what GPUs can do, one after the other, and says each before and after.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ringtree::device::{CudaError, Device, Driver, Stream};
use ringtree::{Communicator, Error, Op, Settings};
use ringtree_transport::memory::SharedMemory;

use super::sharing::processes;
use super::{DRIVER, LOG, Line, Topic, Wish};
use crate::doctor::finding::{Check, Finding};
use crate::words::{bytes, counted, json, ranges};

const DEVICES: Check = Check {
    name: "gpu-devices",
    why: "each rank uses a GPU, among those that the driver shows to its process",
};

const HOST_MEMORY: Check = Check {
    name: "gpu-host-memory",
    why: "what GPUs send and receive passes through locked memory of the host; what cannot be locked is copied \
          once more, by processors",
};

const ALL_REDUCE: Check = Check {
    name: "gpu-all-reduce",
    why: "kernels of the library, which the driver compiles for each GPU, add up what ranks have",
};

const DMA_BUF: Check = Check {
    name: "gpu-dma-buf",
    why: "RDMA devices reach memory of a GPU that the driver can hand over as a dma-buf; other memory passes through \
          the host",
};

const PEERS: Check = Check {
    name: "gpu-peers",
    why: "GPUs that reach each other's memory need no way through the host; where writes get lost, results are wrong",
};

/// What a link between two ranks locks, in each direction.
const SLOTS_BYTES: usize = 2 << 20;

/// Elements of the all-reduce that is tried.
const COUNT: usize = 50_000;

/// How long the ranks of the all-reduce wait for each other.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Tries all there is, where the doctor is asked about that topic.
pub fn probe(topic: Option<Topic>) -> ExitCode {
    let settings = Settings::in_env().then(Settings::from_env).and_then(Result::ok);
    let wish = Wish::of(settings.as_ref(), topic);
    examine(&wish);
    ExitCode::SUCCESS
}

/// Says a line. Where nobody listens any more, nothing is tried any more.
fn say(line: &Line) {
    if io::stdout().lock().write_all(json(line).as_bytes()).is_err() {
        std::process::exit(1);
    }
}

pub(super) fn found(finding: Finding) {
    say(&Line::Found(finding));
}

pub(super) fn tries(what: impl Into<String>) {
    say(&Line::Tries(what.into()));
}

fn examine(wish: &Wish) {
    tries("starting the driver");
    let driver = match Driver::open(wish.library.as_deref()) {
        Ok(driver) => driver,
        Err(error) => return say(&Line::NoDriver(error.to_string())),
    };
    let (version, library) = (driver.version(), driver.library().display());
    found(DRIVER.ok(format!("{library}, of CUDA {}.{}", version / 1000, version % 1000 / 10)));
    if !wish.is_first {
        return;
    }
    let devices = open(wish, driver);
    if devices.is_empty() {
        return;
    }
    host_memory(wish, &devices);
    all_reduce(wish, &devices);
    dma_buf(&devices);
    peers(wish, &devices);
    processes(&devices);
}

/// Opens the devices that can be opened.
fn open(wish: &Wish, driver: &Driver) -> Vec<Device> {
    if driver.devices() == 0 {
        let seen = "the driver shows none to this process";
        found(DEVICES.found(wish.trouble(), seen).remedy(match env::var("CUDA_VISIBLE_DEVICES") {
            Ok(_) => "unset CUDA_VISIBLE_DEVICES",
            Err(_) => "nvidia-smi -L  # in a container: docker run --gpus all IMAGE",
        }));
    }
    let mut devices = Vec::new();
    for ordinal in 0..driver.devices() {
        tries(format!("opening GPU {ordinal}"));
        let opened =
            Device::open(ordinal, None).and_then(|device| Ok((describe(&device)?, device)));
        match opened {
            Ok((seen, device)) => {
                found(DEVICES.ok(seen));
                devices.push(device);
            }
            Err(error) => {
                let remedy = format!(
                    "nvidia-smi -q -i {ordinal}  # its state, its compute mode, and what else uses it"
                );
                found(DEVICES.found(wish.trouble(), error.to_string()).remedy(remedy));
            }
        }
    }
    devices
}

fn describe(device: &Device) -> Result<String, CudaError> {
    let (major, minor) = device.compute_capability()?;
    Ok(format!(
        "GPU {}: {}, bus id {}, {}, compute capability {major}.{minor}",
        device.ordinal(),
        device.name(),
        device.bus_id(),
        bytes(device.memory_bytes()? as u64),
    ))
}

/// Sorts devices by what came of trying something on each: those on which it was well, and what was wrong.
fn each(
    devices: &[Device],
    try_one: impl Fn(&Device) -> Result<(), String>,
) -> (Vec<u32>, Vec<String>) {
    let (mut well, mut wrong) = (Vec::new(), Vec::new());
    for device in devices {
        match try_one(device) {
            Ok(()) => well.push(device.ordinal()),
            Err(error) if wrong.contains(&error) => {}
            Err(error) => wrong.push(error),
        }
    }
    (well, wrong)
}

fn host_memory(wish: &Wish, devices: &[Device]) {
    tries("locking memory of the host");
    // Each rank writes one half of a link, and only reads the other.
    let halves = SharedMemory::create(SLOTS_BYTES).and_then(|ours| {
        let file = ours.descriptor().try_clone_to_owned()?;
        Ok((ours, SharedMemory::open(file, SLOTS_BYTES)?))
    });
    let (ours, theirs) = match halves {
        Ok((ours, theirs)) => (Arc::new(ours), Arc::new(theirs)),
        Err(error) => {
            let seen = format!("no memory that ranks share can be made: {error}");
            return found(HOST_MEMORY.found(wish.trouble(), seen));
        }
    };
    let (well, wrong) = each(devices, |device| {
        let locked = device.try_pinned(SLOTS_BYTES);
        locked.and_then(|()| device.try_registered(&ours, true)).map_err(|error| error.to_string())
    });
    for error in wrong {
        let remedy = "ulimit -l unlimited  # in a container: docker run --ulimit memlock=-1 IMAGE";
        found(HOST_MEMORY.found(wish.trouble(), error).remedy(remedy));
    }
    if well.is_empty() {
        return;
    }
    found(HOST_MEMORY.ok(format!("allocated and locked for GPU {}", ranges(&well))));
    // Few GPUs can use what their process may only read. Nothing is wrong with the others.
    let (_, wrong) = each(devices, |device| {
        device.try_registered(&theirs, false).map_err(|error| error.to_string())
    });
    for error in wrong {
        found(
            HOST_MEMORY.note(format!("what comes over shared memory is copied once more: {error}")),
        );
    }
}

fn all_reduce(wish: &Wish, devices: &[Device]) {
    let (well, wrong) = each(devices, |device| {
        tries(format!("an all-reduce on GPU {}", device.ordinal()));
        match sums(wish, device.ordinal()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("GPU {} gives wrong sums", device.ordinal())),
            Err(error) => Err(format!("none on GPU {}: {error}", device.ordinal())),
        }
    });
    if wrong.is_empty() {
        let seen = format!("two ranks have added up {COUNT} numbers on GPU {}", ranges(&well));
        return found(ALL_REDUCE.ok(seen));
    }
    wrong.into_iter().for_each(|error| found(ALL_REDUCE.failure(error).remedy(LOG)));
}

/// Has two ranks of this process add up numbers on a GPU, and says whether the sums are right.
fn sums(wish: &Wish, ordinal: u32) -> Result<bool, Error> {
    let ranks = Communicator::in_process_with(2, |settings| {
        settings.cuda_library = wish.library.clone();
        settings.timeout = TIMEOUT;
    })?;
    let sum = |rank: Communicator| -> Result<bool, Error> {
        let device = rank.device(ordinal)?;
        let stream = Stream::new(&device)?;
        let numbers =
            |factor: u32| (0..COUNT as u32).map(move |index| (index % 1000 * factor) as f32);
        let mut memory = rank.alloc_device::<f32>(&device, COUNT)?;
        let mut host: Vec<f32> = numbers(rank.rank() + 1).collect();
        memory.write(&stream, &host)?;
        rank.on(&stream).all_reduce(&mut memory, Op::Sum)?.wait()?;
        memory.read(&stream, &mut host)?;
        Ok(host.into_iter().eq(numbers(3)))
    };
    thread::scope(|scope| {
        let sum = &sum;
        let start = |rank| thread::Builder::new().spawn_scoped(scope, move || sum(rank));
        let threads: Vec<_> = ranks.into_iter().map(start).collect();
        let end = |thread: io::Result<thread::ScopedJoinHandle<'_, _>>| {
            thread?.join().map_err(|_| Error::Panicked)?
        };
        let ended: Vec<Result<bool, Error>> = threads.into_iter().map(end).collect();
        // The other rank only says that this one has failed.
        let mut errors = ended.iter().filter_map(|ended| ended.as_ref().err());
        if let Some(error) = errors.find(|error| matches!(error, Error::Device(_))) {
            return Err(error.clone());
        }
        ended.into_iter().try_fold(true, |all, right| Ok(all && right?))
    })
}

fn dma_buf(devices: &[Device]) {
    let (well, wrong) = each(devices, |device| match device.has_dma_buf() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("GPU {} has none", device.ordinal())),
        Err(error) => Err(error.to_string()),
    });
    if wrong.is_empty() {
        let seen = format!("memory of GPU {} can be given to RDMA devices", ranges(&well));
        return found(DMA_BUF.ok(seen));
    }
    found(DMA_BUF.note(wrong.join("; ")).remedy(
        "sudo apt-get install nvidia-open  # the driver's open kernel modules, on Linux 5.12 or later",
    ));
}

fn peers(wish: &Wish, devices: &[Device]) {
    if devices.len() < 2 {
        return found(PEERS.ok("there is one GPU"));
    }
    let mut reaches = Vec::new();
    let mut count_wrong = 0;
    for one in devices {
        let mut reached = Vec::new();
        for other in devices.iter().filter(|other| *other != one) {
            let pair = format!("GPU {} to GPU {}", one.ordinal(), other.ordinal());
            tries(format!("copying from {pair}"));
            let delivers = one.can_access(other).and_then(|can| match can {
                true => one.delivers_to(other).map(Some),
                false => Ok(None),
            });
            match delivers {
                Ok(Some(true)) => reached.push(other.ordinal()),
                Ok(None) => {}
                Ok(Some(false)) => {
                    count_wrong += 1;
                    found(PEERS.failure(format!("bytes that are copied from {pair} do not arrive")).remedy(
                        "sudo dmesg | grep -i -e iommu -e dmar  # the IOMMU, or ACS of the PCI bridges, turns writes \
                         between devices away: switch both off in the firmware, or boot with iommu=pt",
                    ));
                }
                Err(error) => {
                    count_wrong += 1;
                    let seen = format!("{pair}: {error}");
                    found(PEERS.found(wish.trouble(), seen).remedy("nvidia-smi topo -p2p rw"));
                }
            }
        }
        reaches.push((one.ordinal(), reached));
    }
    let is_all = reaches.iter().all(|(_, reached)| reached.len() + 1 == devices.len());
    if is_all {
        let seen = format!("each of {} reaches all others", counted(devices.len() as u32, "GPU"));
        return found(PEERS.ok(seen));
    }
    let row = |(ordinal, reached): &(u32, Vec<u32>)| match &reached[..] {
        [] => format!("GPU {ordinal} reaches none"),
        _ => format!("GPU {ordinal} reaches {}", ranges(reached)),
    };
    let rows = reaches.iter().map(row).collect::<Vec<_>>().join("; ");
    let finding = PEERS.note(rows);
    found(match count_wrong {
        0 => finding.remedy("nvidia-smi topo -m  # how they are connected"),
        _ => finding,
    });
}
