//! Virtual memory management.

use std::os::fd::IntoRawFd;

use crate::code::Code;
use crate::ffi::{In, Out, entry_points};
use crate::virtual_memory::{self, AccessDescription, Location, Properties, check_supported};

entry_points! { Initialised:
    fn cuMemGetAllocationGranularity(to: Out<usize>, properties: In<Properties>, option: i32) {
        check_supported()?;
        if !(0..=1).contains(&option) {
            return Err(Code::INVALID_VALUE);
        }
        to.set(virtual_memory::granularity(&properties.get()?)? as usize)
    }

    fn cuMemAddressReserve(
        to: Out<u64>,
        len_bytes: usize,
        alignment_bytes: usize,
        wanted: u64,
        flags: u64,
    ) {
        check_supported()?;
        // A wanted address is only a hint.
        let _ = wanted;
        if flags != 0 || to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        to.set(virtual_memory::reserve(len_bytes as u64, alignment_bytes as u64)?)
    }

    fn cuMemAddressFree(address: u64, len_bytes: usize) {
        check_supported()?;
        virtual_memory::free_reserved(address, len_bytes as u64)
    }

    fn cuMemCreate(to: Out<usize>, len_bytes: usize, properties: In<Properties>, flags: u64) {
        check_supported()?;
        if flags != 0 || to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        to.set(virtual_memory::create(len_bytes as u64, properties.get()?)?)
    }

    fn cuMemRelease(handle: usize) {
        check_supported()?;
        virtual_memory::release(handle)
    }

    fn cuMemMap(address: u64, len_bytes: usize, offset: usize, handle: usize, flags: u64) {
        check_supported()?;
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        virtual_memory::map(address, len_bytes as u64, offset as u64, handle)
    }

    fn cuMemUnmap(address: u64, len_bytes: usize) {
        check_supported()?;
        virtual_memory::unmap(address, len_bytes as u64)
    }

    fn cuMemSetAccess(
        address: u64,
        len_bytes: usize,
        descriptions: In<AccessDescription>,
        count: usize,
    ) {
        check_supported()?;
        virtual_memory::set_access(address, len_bytes as u64, &descriptions.copied(count)?)
    }

    fn cuMemGetAccess(to: Out<u64>, location: In<Location>, address: u64) {
        check_supported()?;
        to.set(virtual_memory::access(location.get()?, address)?)
    }

    fn cuMemExportToShareableHandle(to: Out<i32>, handle: usize, handle_type: u32, flags: u64) {
        check_supported()?;
        if flags != 0 || to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        to.set(virtual_memory::export(handle, handle_type)?.into_raw_fd())
    }

    fn cuMemImportFromShareableHandle(to: Out<usize>, os_handle: usize, handle_type: u32) {
        check_supported()?;
        if to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // A descriptor comes as a pointer's value.
        to.set(virtual_memory::import(os_handle as i32, handle_type)?)
    }

    fn cuMemRetainAllocationHandle(to: Out<usize>, address: u64) {
        check_supported()?;
        to.set(virtual_memory::retain(address)?)
    }

    fn cuMemGetAllocationPropertiesFromHandle(to: Out<Properties>, handle: usize) {
        check_supported()?;
        to.set(virtual_memory::physical(handle)?.properties)
    }
}
