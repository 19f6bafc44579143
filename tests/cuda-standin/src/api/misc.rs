//! What needs no `cuInit`: it, the version, names of errors, addresses of functions.

use std::ffi::c_char;

use super::address_of;
use crate::code::Code;
use crate::ffi::{Out, Text, entry_points};
use crate::initialisation;
use crate::settings;

entry_points! { Nothing:
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        initialisation::initialise()
    }

    fn cuDriverGetVersion(version: Out<i32>) {
        version.set(settings::get().driver_version)
    }

    fn cuGetErrorName(code: i32, name: Out<*const c_char>) {
        match Code::name_and_text(code) {
            Some((found, _)) => name.set(found.as_ptr()),
            None => name.set(std::ptr::null()).and(Err(Code::INVALID_VALUE)),
        }
    }

    fn cuGetErrorString(code: i32, text: Out<*const c_char>) {
        match Code::name_and_text(code) {
            Some((_, found)) => text.set(found.as_ptr()),
            None => text.set(std::ptr::null()).and(Err(Code::INVALID_VALUE)),
        }
    }

    fn cuGetProcAddress(name: Text, function: Out<usize>, version: i32, flags: u64) {
        let _ = (version, flags);
        function.set(newest(&name.get()?).unwrap_or(0))?;
        newest(&name.get()?).map(|_| ()).ok_or(Code::NOT_FOUND)
    }

    fn cuGetProcAddress_v2(
        name: Text,
        function: Out<usize>,
        version: i32,
        flags: u64,
        status: Out<i32>,
    ) {
        let _ = (version, flags);
        let found = newest(&name.get()?);
        function.set(found.unwrap_or(0))?;
        // 1: there is no function of this name.
        status.set_if_wanted(found.is_none() as i32)?;
        found.map(|_| ()).ok_or(Code::NOT_FOUND)
    }
}

/// The newest form of a function, which programs name without its suffix.
fn newest(name: &str) -> Option<usize> {
    ["_v3", "_v2", ""].iter().find_map(|suffix| address_of(&format!("{name}{suffix}")))
}
