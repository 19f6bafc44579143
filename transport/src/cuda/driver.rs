//! The CUDA driver: opened once a process, when a GPU is first wanted, and allowed to be absent.

use std::ffi::{CStr, CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::error::CudaError;
use super::ffi::{self, Code, Functions};

/// What is opened unless something else is named.
const LIBRARY: &str = "libcuda.so.1";

/// CUDA 11.7: the first with the operations on memory that streams wait by, under the names that are used.
const LEAST_VERSION: i32 = 11070;

/// The driver of this process.
pub struct Driver {
    pub(super) functions: Functions,
    library: PathBuf,
    version: i32,
    devices: u32,
}

impl Driver {
    /// Opens the driver, or finds it open: `library`, or the one that the system finds.
    ///
    /// # Errors
    /// There is none, it does not start, or the process has opened another one before.
    pub fn open(library: Option<&Path>) -> Result<&'static Driver, CudaError> {
        static OPEN: OnceLock<Result<Driver, CudaError>> = OnceLock::new();
        let asked = library.unwrap_or(Path::new(LIBRARY));
        let driver = OPEN.get_or_init(|| Driver::load(asked)).as_ref().map_err(Clone::clone)?;
        if library.is_some() && driver.library != asked {
            let (asked, open) = (asked.to_owned(), driver.library.clone());
            return Err(CudaError::OtherDriver { asked, open });
        }
        Ok(driver)
    }

    fn load(library: &Path) -> Result<Driver, CudaError> {
        let absent = |reason: String| CudaError::NoDriver { library: library.to_owned(), reason };
        let name = CString::new(library.as_os_str().as_bytes())
            .map_err(|_| absent("its name has a zero byte".into()))?;
        let functions = Functions::load(&name).map_err(absent)?;
        let (mut version, mut devices): (c_int, c_int) = (0, 0);
        // SAFETY: the addresses are of integers that outlive the calls; `init` comes before all else.
        let (started, counted) = unsafe {
            let started = (functions.init)(0);
            (functions.driver_version)(&raw mut version);
            let counted = match started {
                ffi::SUCCESS => (functions.device_count)(&raw mut devices),
                _ => ffi::SUCCESS,
            };
            (started, counted)
        };
        // Without a device, some drivers start and count none, others say so at the start.
        for code in [started, counted] {
            if code != ffi::SUCCESS && code != ffi::NO_DEVICE {
                let (name, text) = describe(&functions, code);
                return Err(absent(format!("it does not start: {name} ({code}): {text}")));
            }
        }
        if version < LEAST_VERSION {
            let needs = "Ringtree needs that of CUDA 11.7 or later".to_owned();
            return Err(CudaError::OldDriver { version, needs });
        }
        Ok(Driver {
            functions,
            library: library.to_owned(),
            version,
            devices: devices.max(0) as u32,
        })
    }

    /// The file that was opened.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// The version of CUDA that it is for: 1000 times the major and 10 times the minor version.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// How many devices there are.
    pub fn devices(&self) -> u32 {
        self.devices
    }

    /// The error that a code is.
    pub(super) fn check(
        &self,
        call: &'static str,
        ordinal: u32,
        code: Code,
    ) -> Result<(), CudaError> {
        if code == ffi::SUCCESS {
            return Ok(());
        }
        Err(self.error(call, ordinal, code))
    }

    #[cold]
    pub(super) fn error(&self, call: &'static str, ordinal: u32, code: Code) -> CudaError {
        if code == ffi::UNSUPPORTED_PTX_VERSION {
            let needs = "it does not know the language that the kernels are written in".to_owned();
            return CudaError::OldDriver { version: self.version, needs };
        }
        let (name, text) = describe(&self.functions, code);
        CudaError::Driver { call, ordinal, code, name, text }
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("library", &self.library).finish_non_exhaustive()
    }
}

/// The name of a code, and what it means.
fn describe(functions: &Functions, code: Code) -> (String, String) {
    let text = |function: unsafe extern "C" fn(Code, *mut *const std::ffi::c_char) -> Code| {
        let mut text = std::ptr::null();
        // SAFETY: the address is of a pointer that outlives the call; what the driver puts there is a text
        // that stays as long as the library.
        unsafe {
            if function(code, &raw mut text) != ffi::SUCCESS || text.is_null() {
                return "unknown to this driver".to_owned();
            }
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    };
    (text(functions.error_name), text(functions.error_text))
}
