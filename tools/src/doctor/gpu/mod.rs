//! GPUs on one host, as far as a rank may use them: the driver, the devices, and what they can reach.
//!
//! A driver that is broken may hang, or end the process that uses it. So another process tries (`probe`), and says line
//! by line what it tries and finds; this one waits for it, but not for ever.

mod probe;
mod sharing;

use std::env;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use ringtree::Settings;
use serde::{Deserialize, Serialize};

use super::Topic;
use super::finding::{Check, Finding, Level};
use super::system::System;
pub use probe::probe;
pub use sharing::read;

const DRIVER: Check = Check {
    name: "gpu-driver",
    why: "GPUs are used through NVIDIA's driver, which is opened where a rank has use for it",
};

/// How long the driver may take for all that is tried: machines with many GPUs take seconds to wake them.
const LIMIT: Duration = Duration::from_secs(45);

/// What is there where the kernel has the driver's module.
const MODULE: &str = "/proc/driver/nvidia/version";

/// What a rank wants of GPUs.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The driver's library, if it is told.
    library: Option<PathBuf>,
    /// How bad it is where there is none.
    lack: Level,
    /// Whether this rank tries the devices for all of its host.
    is_first: bool,
}

impl Wish {
    /// What those settings want, if there are any, where the doctor is asked about that topic.
    pub fn of(settings: Option<&Settings>, topic: Option<Topic>) -> Wish {
        let library = settings.and_then(|settings| settings.cuda_library.clone());
        let lack = match (topic, &library) {
            (Some(Topic::Gpu), _) => Level::Failure,
            (_, Some(_)) => Level::Warning,
            (_, None) => Level::Ok,
        };
        let local_rank = settings.and_then(|settings| settings.local_rank);
        Wish { library, lack, is_first: local_rank.is_none_or(|local_rank| local_rank == 0) }
    }

    /// How bad it is that something does not work where there is a driver.
    fn trouble(&self) -> Level {
        self.lack.max(Level::Warning)
    }
}

/// A line of the process that tries.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    /// What it tries now.
    Tries(String),
    /// What it has found.
    Found(Finding),
    /// There is no driver, and why.
    NoDriver(String),
}

/// The process that tries.
pub struct Probe {
    wish: Wish,
    started: Result<(Child, Receiver<Line>), String>,
    deadline: Instant,
}

impl Probe {
    /// Starts it.
    pub fn start(topic: Option<Topic>, wish: Wish) -> Probe {
        let started = env::current_exe().map_err(|error| error.to_string()).and_then(|program| {
            let mut command = Command::new(program);
            command.arg("doctor").arg("--gpu-probe");
            if topic == Some(Topic::Gpu) {
                command.arg("gpu");
            }
            start(command)
        });
        Probe { wish, started, deadline: Instant::now() + LIMIT }
    }

    /// What it has found, and why no more.
    pub fn check(self, system: &System) -> Vec<Finding> {
        let Probe { wish, started, deadline } = self;
        let (mut child, lines) = match started {
            Ok(started) => started,
            Err(error) => {
                return vec![DRIVER.note(format!("no process that tries it starts: {error}"))];
            }
        };
        let (mut findings, mut tries) = (Vec::new(), "starting".to_owned());
        let told = loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Line::Tries(what)) => tries = what,
                Ok(Line::Found(finding)) => findings.push(finding),
                Ok(Line::NoDriver(reason)) => findings.push(no_driver(system, &wish, reason)),
                Err(RecvTimeoutError::Disconnected) => {
                    break child.wait().map_err(|error| error.to_string()).and_then(|status| {
                        match status.success() {
                            true => Ok(()),
                            false => Err(format!("the process has ended ({status})")),
                        }
                    });
                }
                Err(RecvTimeoutError::Timeout) => {
                    // It may be stuck in the kernel: nobody waits for its end.
                    let _ = child.kill();
                    break Err(format!("nothing for {} s", LIMIT.as_secs()));
                }
            }
        };
        if let Err(what) = told {
            let seen = format!("the driver fails at {tries}: {what}");
            findings.push(DRIVER.found(wish.trouble(), seen).remedy(LOG));
        }
        findings
    }
}

/// Where the kernel says what is wrong with a GPU.
const LOG: &str = "sudo dmesg | grep -i -e nvrm -e xid";

/// Starts a process, and reads its lines.
fn start(mut command: Command) -> Result<(Child, Receiver<Line>), String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let output = child.stdout.take().ok_or("its output is lost")?;
    let (sender, lines) = channel();
    // It ends with the process, or is left behind with one that cannot be ended.
    let read = move || {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        let lines = lines.filter_map(|line| serde_json::from_str(&line).ok());
        lines.map_while(|line| sender.send(line).ok()).for_each(drop);
    };
    thread::Builder::new().spawn(read).map_err(|error| error.to_string())?;
    Ok((child, lines))
}

/// There is no driver, or it is of no use.
fn no_driver(system: &System, wish: &Wish, reason: String) -> Finding {
    let has_module = system.path(MODULE).exists();
    if wish.lack == Level::Ok && !has_module {
        return DRIVER.ok("none on this host");
    }
    DRIVER.found(wish.trouble(), reason).remedy(match (&wish.library, has_module) {
        (Some(_), _) => "unset RINGTREE_CUDA_LIBRARY  # then the system's libcuda.so.1 is used",
        (None, true) => {
            "nvidia-smi  # says what is wrong; in a container: docker run --gpus all IMAGE"
        }
        (None, false) => {
            "sudo apt-get install nvidia-driver  # Ubuntu: sudo ubuntu-drivers install; in a container: docker run \
             --gpus all IMAGE"
        }
    })
}

#[cfg(test)]
mod tests;
