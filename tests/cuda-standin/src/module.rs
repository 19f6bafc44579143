//! Modules of PTX, and the functions in them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use crate::code::{Code, Result};
use crate::context::Context;
use crate::counters::count;
use crate::device::{SHARED_BYTES_PER_BLOCK, shared_bytes_opt_in};
use crate::initialisation::driver;
use crate::memory::{Allocation, Kind};
use crate::ptx;
use crate::registry::Registry;
use crate::settings;

/// A loaded module.
pub struct Module {
    /// Where it was loaded.
    pub context: Arc<Context>,
    parsed: ptx::Module,
    /// Where its variables are, in the order in which the PTX has them.
    variables: Vec<Arc<Allocation>>,
    /// Functions by name, so that asking twice gives the same handle.
    functions: Mutex<BTreeMap<String, usize>>,
}

/// A kernel of a module.
pub struct Function {
    /// Where it runs.
    pub context: Arc<Context>,
    /// What runs.
    pub entry: Arc<ptx::Entry>,
    /// Device addresses of the module's variables.
    pub variables: Vec<u64>,
    /// How much dynamic shared memory a launch may ask for; attribute 8.
    pub dynamic_shared_limit_bytes: AtomicU32,
    /// PTX version and target, as numbers like 75.
    pub versions: (i32, i32),
}

static MODULES: Registry<Module> = Registry::new(0x0f00_0000_0000);
static FUNCTIONS: Registry<Function> = Registry::new(0x0a00_0000_0000);

const ELF: &[u8] = b"\x7fELF";
const FAT_BINARY: &[u8] = &0xba55_ed50_u32.to_le_bytes();

/// Loads PTX.
pub fn load(context: &Arc<Context>, image: &[u8]) -> Result<usize> {
    if image.starts_with(ELF) || image.starts_with(FAT_BINARY) {
        // Machine code is for a device that this is not.
        return Err(Code::NO_BINARY_FOR_GPU);
    }
    let text = std::str::from_utf8(image).map_err(|_| Code::INVALID_PTX)?;
    check_versions(text)?;
    let parsed = ptx::Module::parse(text).map_err(|error| {
        settings::say(&format!("PTX {error}"));
        Code::INVALID_PTX
    })?;
    let mut variables = Vec::new();
    for variable in &parsed.variables {
        let len_bytes = variable.len_bytes.max(1) as u64;
        let allocation = driver().space.allocate(context.device, len_bytes, Kind::Module)?;
        let to = driver().space.host(allocation.base);
        // SAFETY: the allocation is as long, and nobody knows it yet.
        unsafe { to.copy_from(variable.initial.as_ptr(), variable.initial.len()) };
        variables.push(allocation);
    }
    count(|counters| counters.modules_live += 1);
    let (context, functions) = (context.clone(), Mutex::default());
    Ok(MODULES.add(|_| Module { context, parsed, variables, functions }).0)
}

/// Refuses PTX that is newer than the driver or the device, before the parser meets what it does not know.
fn check_versions(text: &str) -> Result {
    let settings = settings::get();
    let directive = |name: &str| {
        let lines = text.lines().map(str::trim);
        lines.filter_map(|line| line.strip_prefix(name)?.split_whitespace().next()).next()
    };
    let version = directive(".version").and_then(|version| version.split_once('.'));
    let version = version.and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
    let version = version.ok_or(Code::INVALID_PTX)?;
    if version > settings.newest_ptx() {
        let newest = settings.newest_ptx();
        settings::say(&format!("PTX version {version:?} is newer than the driver's, {newest:?}"));
        return Err(Code::UNSUPPORTED_PTX_VERSION);
    }
    let target = directive(".target").and_then(|target| target.strip_prefix("sm_"));
    let target = target.and_then(number).ok_or(Code::INVALID_PTX)?;
    let (major, minor) = settings.compute_capability;
    if target > (major * 10 + minor) as u32 {
        settings::say(&format!(
            "PTX target sm_{target} is higher than the device's {major}.{minor}"
        ));
        // The real driver's compiler refuses it, too; 209 is for images without any PTX.
        return Err(Code::INVALID_PTX);
    }
    Ok(())
}

/// The number that a text begins with: targets end with letters (`sm_90a`) and commas.
fn number(text: &str) -> Option<u32> {
    text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// Unloads a module; its functions and variables are gone. The caller has waited for kernels that run.
pub fn unload(handle: usize) -> Result {
    let module = MODULES.remove(handle)?;
    let functions = module.functions.lock().unwrap_or_else(PoisonError::into_inner);
    for handle in functions.values() {
        let _ = FUNCTIONS.remove(*handle);
    }
    for variable in &module.variables {
        let _ = driver().space.free(variable.base, |found| matches!(found.kind, Kind::Module));
    }
    count(|counters| counters.modules_live -= 1);
    Ok(())
}

/// The module that a handle names.
pub fn by_handle(handle: usize) -> Result<Arc<Module>> {
    MODULES.get(handle)
}

/// Forgets the modules of a context that ends.
pub fn forget_all(context: &Arc<Context>) {
    let gone = MODULES.remove_where(|module| Arc::ptr_eq(&module.context, context));
    FUNCTIONS.remove_where(|function| Arc::ptr_eq(&function.context, context));
    count(|counters| counters.modules_live -= gone);
}

impl Module {
    /// The handle of the kernel of a name.
    pub fn function(&self, name: &str) -> Result<usize> {
        let entry = self.parsed.entry(name).ok_or(Code::NOT_FOUND)?;
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let function = Function {
                context: self.context.clone(),
                dynamic_shared_limit_bytes: AtomicU32::new(
                    SHARED_BYTES_PER_BLOCK.saturating_sub(entry.shared_bytes as u32),
                ),
                entry,
                variables: self.variables.iter().map(|variable| variable.base).collect(),
                versions: (
                    (self.parsed.version.0 * 10 + self.parsed.version.1) as i32,
                    self.parsed.target as i32,
                ),
            };
            FUNCTIONS.add(|_| function).0
        };
        Ok(*functions.entry(name.to_owned()).or_insert_with(make))
    }

    /// Address and size of a variable.
    pub fn variable(&self, name: &str) -> Result<(u64, usize)> {
        let index = self.parsed.variables.iter().position(|variable| variable.name == name);
        let index = index.ok_or(Code::NOT_FOUND)?;
        Ok((self.variables[index].base, self.parsed.variables[index].len_bytes))
    }
}

/// The kernel that a handle names.
pub fn function(handle: usize) -> Result<Arc<Function>> {
    FUNCTIONS.get(handle)
}

impl Function {
    /// The most threads that a block may have.
    pub fn max_threads(&self) -> u32 {
        self.entry.max_threads.unwrap_or(1024).min(1024)
    }

    /// The attribute with a number of `CUfunction_attribute`.
    pub fn attribute(&self, attribute: i32) -> Result<i32> {
        Ok(match attribute {
            0 => self.max_threads() as i32,
            1 => self.entry.shared_bytes as i32,
            2 => 0,
            3 => self.entry.local_bytes as i32,
            4 => 32, // registers of each thread: PTX does not say
            5 => self.versions.0,
            6 => self.versions.1,
            7 => 0,
            8 => self.dynamic_shared_limit_bytes.load(SeqCst) as i32,
            9 => -1,
            10..=15 => 0,
            _ => return Err(Code::INVALID_VALUE),
        })
    }

    /// Sets an attribute: the limit of dynamic shared memory, or the preferred division of on-chip memory.
    pub fn set_attribute(&self, attribute: i32, value: i32) -> Result {
        match attribute {
            8 => {
                let value = u32::try_from(value).map_err(|_| Code::INVALID_VALUE)?;
                let most = shared_bytes_opt_in(&settings::get());
                if value.checked_add(self.entry.shared_bytes as u32).is_none_or(|sum| sum > most) {
                    return Err(Code::INVALID_VALUE);
                }
                self.dynamic_shared_limit_bytes.store(value, SeqCst);
                Ok(())
            }
            9 if (-1..=100).contains(&value) => Ok(()),
            _ => Err(Code::INVALID_VALUE),
        }
    }
}
