//! GPUs for tests: those of the stand-in for the CUDA driver, or with `RINGTREE_TEST_GPU=real` the machine's own.

use std::ffi::{CStr, CString, c_int, c_void};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use ringtree::device::{Device, DeviceMemory, Stream};
use ringtree::{Communicator, Element, Settings, Transports};
use ringtree_cuda_standin::Counters;

use crate::job::free_address;
use crate::ranks::each;

/// GPUs of the stand-in.
const DEVICES: u32 = 4;

/// The variable by which a process knows that it runs one test alone.
const ALONE: &str = "RINGTREE_TEST_ALONE";

/// No test takes longer, unless it hangs.
const LIMIT_S: u32 = 120;

/// The variable that has the tests run on the machine's own GPUs, which they share if there are fewer than ranks.
const REAL: &str = "RINGTREE_TEST_GPU";

/// The stand-in, which cargo puts beside this test; `None`: the real driver is to be used.
pub fn driver() -> Option<PathBuf> {
    if std::env::var_os(REAL).is_some_and(|value| value == "real") {
        return None;
    }
    Some(stand_in())
}

/// The stand-in's file.
pub fn stand_in() -> PathBuf {
    let test = std::env::current_exe().expect("this test's own file");
    let beside = test.with_file_name("libringtree_cuda_standin.so");
    assert!(beside.exists(), "{} is not there: build the whole workspace", beside.display());
    beside
}

/// A function that a stand-in's library has for tests in the same process.
pub fn function_of(library: PathBuf, function: &CStr) -> *mut c_void {
    let name = CString::new(library.into_os_string().into_encoded_bytes()).expect("a path");
    // SAFETY: the names end with zeros, and the library is one that may be opened.
    let found = unsafe {
        let library = libc::dlopen(name.as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "{name:?} opens");
        libc::dlsym(library, function.as_ptr())
    };
    assert!(!found.is_null(), "{name:?} has {function:?}");
    found
}

/// What the stand-in has counted so far in this process.
pub fn standin_counters() -> Counters {
    let found = function_of(stand_in(), c"ringtree_standin_counters");
    let mut counters = Counters::default();
    // SAFETY: the function is as the stand-in's documentation says.
    let code = unsafe {
        let function: extern "C" fn(*mut Counters) -> c_int =
            std::mem::transmute::<*mut c_void, _>(found);
        function(&raw mut counters)
    };
    assert_eq!(code, 0);
    counters
}

/// Runs a test in a process of its own, since a driver is a process's, with settings of the stand-in; on the real driver,
/// without. `name` is the test's. Returns whether this is that process, which has nothing else to do.
///
/// # Panics
/// If the test fails, or does not end.
pub fn alone(name: &str, settings: &[(&str, &str)], test: impl FnOnce()) -> bool {
    alone_in(name, settings, &[], test)
}

/// As [`alone`], with other variables of the environment, too.
///
/// # Panics
/// As [`alone`].
pub fn alone_in(
    name: &str,
    settings: &[(&str, &str)],
    environment: &[(&str, &str)],
    test: impl FnOnce(),
) -> bool {
    if std::env::var(ALONE).as_deref() == Ok(name) {
        // SAFETY: it ends this process, in which only the test runs, should it hang.
        unsafe { libc::alarm(LIMIT_S) };
        test();
        return true;
    }
    let this = std::env::current_exe().expect("this test's own file");
    let mut command = Command::new(this);
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(ALONE, name);
    command.env("RINGTREE_STANDIN_DEVICES", DEVICES.to_string());
    command.envs(environment.iter().copied());
    for (key, value) in settings {
        command.env(format!("RINGTREE_STANDIN_{key}"), value);
    }
    let output = command.output().expect("a process");
    let [printed, said] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    let settings = (settings, environment);
    assert!(output.status.success(), "{name}, {settings:?}: {}\n{printed}\n{said}", output.status);
    assert!(printed.contains("1 passed"), "{name} is no test of this file:\n{printed}");
    false
}

/// Runs a test in as many processes as there are ranks, each with a driver of its own, with settings of the stand-in;
/// `name` is the test's. Returns whether this is one of them, which has nothing else to do.
///
/// # Panics
/// If the test fails in a process, or does not end.
pub fn processes(
    name: &str,
    ranks: u32,
    transport: &str,
    settings: &[(&str, &str)],
    test: impl FnOnce(Communicator),
) -> bool {
    if std::env::var(ALONE).as_deref() == Ok(name) {
        // SAFETY: it ends this process, in which only the test runs, should it hang.
        unsafe { libc::alarm(LIMIT_S) };
        test(Communicator::from_env().expect("a communicator"));
        return true;
    }
    let this = std::env::current_exe().expect("this test's own file");
    let rendezvous = free_address();
    let start = |rank: u32| {
        let mut command = Command::new(&this);
        command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(ALONE, name);
        command.env("RINGTREE_STANDIN_DEVICES", DEVICES.to_string());
        for (key, value) in settings {
            command.env(format!("RINGTREE_STANDIN_{key}"), value);
        }
        command.env("RINGTREE_RANK", rank.to_string()).env("RINGTREE_RANKS", ranks.to_string());
        command.env("RINGTREE_RENDEZVOUS", &rendezvous).env("RINGTREE_TRANSPORT", transport);
        command.env("RINGTREE_JOB", "gpus").env("RINGTREE_SECRET", "GPUs of several processes");
        if let Some(driver) = driver() {
            command.env("RINGTREE_CUDA_LIBRARY", driver);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process")
    };
    let children: Vec<Child> = (0..ranks).map(start).collect();
    let outputs = each(children, |child| child.wait_with_output().expect("what it said"));
    let mut failures = String::new();
    for (rank, output) in outputs.iter().enumerate() {
        let [printed, said] =
            [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        if !output.status.success() || !printed.contains("1 passed") {
            failures += &format!("rank {rank}: {}\n{printed}\n{said}\n", output.status);
        }
    }
    assert!(failures.is_empty(), "{name}, {transport}, {settings:?}:\n{failures}");
    false
}

/// The communicators of `ranks` ranks of this process, which know the driver.
pub fn communicators(ranks: u32, transports: Transports) -> Vec<Communicator> {
    communicators_with(ranks, |settings| settings.transports = transports)
}

/// As [`communicators`], with other settings.
pub fn communicators_with(ranks: u32, set: impl Fn(&mut Settings)) -> Vec<Communicator> {
    let driver = driver();
    Communicator::in_process_with(ranks, |settings| {
        settings.cuda_library = driver.clone();
        set(settings);
    })
    .expect("communicators of this process")
}

/// A rank's GPU.
#[derive(Debug)]
pub struct Gpu {
    /// The device.
    pub device: Device,
    /// A stream of it.
    pub stream: Stream,
}

impl Gpu {
    /// The GPU of a rank: each has the next one, in turn.
    pub fn of(communicator: &Communicator) -> Gpu {
        let devices = communicator.devices().expect("a driver");
        let device = communicator.device(communicator.rank() % devices).expect("a GPU");
        let stream = Stream::new(&device).expect("a stream");
        Gpu { device, stream }
    }

    /// Memory with these elements.
    pub fn memory<T: Element>(
        &self,
        communicator: &Communicator,
        elements: &[T],
    ) -> DeviceMemory<T> {
        let memory = communicator.alloc_device(&self.device, elements.len());
        let mut memory = memory.expect("memory of the GPU");
        memory.write(&self.stream, elements).expect("a copy to the GPU");
        memory
    }

    /// What memory has, when the stream is through with what is queued.
    pub fn elements<T: Element>(&self, memory: &DeviceMemory<T>) -> Vec<T> {
        let mut elements = vec![T::default(); memory.len()];
        memory.read(&self.stream, &mut elements).expect("a copy from the GPU");
        elements
    }
}
