//! What `cuInit` makes: the devices, and the address space of their memory.

use std::sync::OnceLock;

use crate::code::{Code, Result};
use crate::device::Device;
use crate::memory::Space;
use crate::settings;

/// The driver of this process.
pub struct Driver {
    process: i32,
    /// By ordinal.
    pub devices: Vec<Device>,
    /// Of all devices' memory.
    pub space: Space,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// Initialises the driver, if that was not done yet.
pub fn initialise() -> Result {
    if is_initialised() {
        return check();
    }
    let settings = settings::load().map_err(|why| {
        settings::say(&why);
        Code::INVALID_VALUE
    })?;
    if settings.devices == 0 {
        return Err(Code::NO_DEVICE);
    }
    let space = Space::new()?;
    let devices = (0..settings.devices).map(Device::new).collect();
    DRIVER.get_or_init(|| Driver { process: process(), devices, space });
    Ok(())
}

/// Whether `cuInit` succeeded in this process or in the one that it was forked from.
pub fn is_initialised() -> bool {
    DRIVER.get().is_some()
}

/// Whether functions may be called. Like the real driver this one does not survive a fork: its threads are not in the
/// child, which gets an error from every function.
pub fn check() -> Result {
    match DRIVER.get() {
        Some(driver) if driver.process == process() => Ok(()),
        _ => Err(Code::NOT_INITIALIZED),
    }
}

/// The driver; only code that an initialised entry point reached may ask.
pub fn driver() -> &'static Driver {
    DRIVER.get().expect("entry points check that the driver is initialised")
}

/// The device with an ordinal.
pub fn device(ordinal: i32) -> Result<&'static Device> {
    let index = usize::try_from(ordinal).map_err(|_| Code::INVALID_DEVICE)?;
    driver().devices.get(index).ok_or(Code::INVALID_DEVICE)
}

fn process() -> i32 {
    // SAFETY: it has no preconditions.
    unsafe { libc::getpid() }
}
