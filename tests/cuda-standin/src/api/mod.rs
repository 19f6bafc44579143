//! The functions that the library exports, by topic. Each checks its arguments, and leaves the rest to the module that
//! does the thing.

mod context;
mod copy;
mod device;
mod event;
mod extension;
mod ipc;
mod memory;
mod misc;
mod module;
mod pointer;
mod stream;
mod stream_memory;
mod virtual_memory;

/// Whether there is a function of this exact name.
pub fn exports(name: &str) -> bool {
    address_of(name).is_some()
}

/// The address of a function by its exact name.
fn address_of(name: &str) -> Option<usize> {
    let mut all = [
        context::entry_points(),
        copy::entry_points(),
        device::entry_points(),
        event::entry_points(),
        ipc::entry_points(),
        memory::entry_points(),
        misc::entry_points(),
        module::entry_points(),
        pointer::entry_points(),
        stream::entry_points(),
        stream_memory::entry_points(),
        virtual_memory::entry_points(),
    ]
    .into_iter()
    .flatten();
    all.find(|(found, _)| *found == name).map(|(_, address)| address)
}
