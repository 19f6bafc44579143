//! Calls that have nothing to do with what the program records into graphs. While any of its threads does so, the driver
//! refuses many calls of all threads, and the recording is lost, unless a thread says that it knows better.

use std::ffi::c_uint;

use super::driver::Driver;
use super::ffi;

/// This thread's calls are allowed, until this is dropped.
#[derive(Debug)]
pub struct Relaxed {
    driver: &'static Driver,
    before: c_uint,
}

impl Relaxed {
    /// From now on.
    pub fn new(driver: &'static Driver) -> Relaxed {
        let mut mode = ffi::CAPTURE_MODE_RELAXED;
        // SAFETY: the address is of a variable that outlives the call.
        unsafe { (driver.functions.exchange_capture_mode)(&raw mut mode) };
        Relaxed { driver, before: mode }
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { (self.driver.functions.exchange_capture_mode)(&raw mut self.before) };
    }
}
