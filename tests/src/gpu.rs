//! GPUs for tests: those of the stand-in for the CUDA driver, or with `RINGTREE_TEST_GPU=real` the machine's own.

use std::ffi::{CString, c_char, c_int};
use std::path::PathBuf;
use std::sync::OnceLock;

use ringtree::device::{Device, DeviceMemory, Stream};
use ringtree::{Communicator, Element, Transports};

/// GPUs of the stand-in.
const DEVICES: u32 = 4;

/// The variable that has the tests run on the machine's own GPUs, which they share if there are fewer than ranks.
const REAL: &str = "RINGTREE_TEST_GPU";

/// The stand-in, which cargo puts beside this test; `None`: the real driver is to be used.
pub fn driver() -> Option<PathBuf> {
    if std::env::var_os(REAL).is_some_and(|value| value == "real") {
        return None;
    }
    let test = std::env::current_exe().expect("this test's own file");
    let beside = test.with_file_name("libringtree_cuda_standin.so");
    assert!(beside.exists(), "{} is not there: build the whole workspace", beside.display());
    Some(beside)
}

/// Sets a setting of the stand-in, for this process; on the real driver, nothing.
pub fn configure(key: &str, value: &str) {
    let Some(library) = driver() else { return };
    let library = CString::new(library.to_str().expect("UTF-8")).expect("no zero byte");
    let [key, value] = [key, value].map(|text| CString::new(text).expect("no zero byte"));
    // SAFETY: the stand-in has this function, of this type; the texts end with zeros.
    let code = unsafe {
        let library = libc::dlopen(library.as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "the stand-in does not load");
        let configure = libc::dlsym(library, c"ringtree_standin_configure".as_ptr());
        assert!(!configure.is_null(), "it is not the stand-in");
        type Configure = unsafe extern "C" fn(*const c_char, *const c_char) -> c_int;
        let configure = std::mem::transmute::<*mut libc::c_void, Configure>(configure);
        configure(key.as_ptr(), value.as_ptr())
    };
    assert_eq!(code, 0, "the stand-in refuses {key:?}={value:?}");
}

/// The communicators of `ranks` ranks of this process, which know the driver.
pub fn communicators(ranks: u32, transports: Transports) -> Vec<Communicator> {
    static CONFIGURED: OnceLock<()> = OnceLock::new();
    CONFIGURED.get_or_init(|| configure("DEVICES", &DEVICES.to_string()));
    let driver = driver();
    Communicator::in_process_with(ranks, |settings| {
        settings.transports = transports;
        settings.cuda_library = driver.clone();
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
        let devices = communicator.device(0).expect("a GPU").driver().devices();
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
