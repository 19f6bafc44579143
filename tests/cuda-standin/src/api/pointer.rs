//! What an address is.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::device::pool_handle;
use crate::code::{Code, Result};
use crate::context;
use crate::ffi::{In, Out, entry_points};
use crate::host_memory::{self, Pinned};
use crate::initialisation::driver;
use crate::memory::{Allocation, Kind};
use crate::settings;

enum Found {
    Device(Arc<Allocation>),
    Host(Pinned),
}

/// The size and value of an attribute.
enum Value {
    Bool(bool),
    Int(u32),
    Long(u64),
}

entry_points! { Initialised:
    fn cuPointerGetAttribute(to: Out<u8>, attribute: i32, address: u64) {
        // What is not the driver's has no attributes.
        let found = find(address).ok_or(Code::INVALID_VALUE)?;
        write(to, &value(&found, attribute, address)?)
    }

    fn cuPointerGetAttributes(
        count: u32,
        attributes: In<i32>,
        to: In<Out<u8>>,
        address: u64,
    ) {
        let found = find(address);
        for index in 0..count as usize {
            let attribute = attributes.at(index)?;
            // Unlike the function above this one takes any address, and says zero of what is not the driver's; but the
            // device of such an address is -2.
            let value = match &found {
                Some(found) => value(found, attribute, address).unwrap_or(Value::Long(0)),
                None if attribute == 9 => Value::Int(-2i32 as u32),
                None if matches!(attribute, 2 | 14 | 16) => Value::Int(0),
                None if matches!(attribute, 6 | 8 | 10 | 13 | 15) => Value::Bool(false),
                None => Value::Long(0),
            };
            write(to.at(index)?, &value)?;
        }
        Ok(())
    }

    fn cuPointerSetAttribute(value: In<u32>, attribute: i32, address: u64) {
        let found = driver().space.find(address).ok_or(Code::INVALID_VALUE)?;
        // Only that synchronous operations always wait can be set.
        if attribute != 6 {
            return Err(Code::INVALID_VALUE);
        }
        found.synchronous.store(value.get()? != 0, SeqCst);
        Ok(())
    }
}

fn find(address: u64) -> Option<Found> {
    match driver().space.find(address) {
        Some(found) => Some(Found::Device(found)),
        None => host_memory::covering(address as usize, 1).map(Found::Host),
    }
}

fn write(to: Out<u8>, value: &Value) -> Result {
    match *value {
        Value::Bool(value) => to.set(value as u8),
        Value::Int(value) => to.cast().set(value),
        Value::Long(value) => to.cast().set(value),
    }
}

fn value(found: &Found, attribute: i32, address: u64) -> Result<Value> {
    let (base, len_bytes, device) = match found {
        Found::Device(found) => (found.base, found.len_bytes, found.device),
        Found::Host(found) => (found.base as u64, found.len_bytes as u64, found.device),
    };
    match (attribute, found) {
        // Physical memory belongs to no context.
        (1, Found::Device(allocation)) if matches!(allocation.kind, Kind::Mapped(..)) => {
            Ok(Value::Long(0))
        }
        (1, _) => Ok(Value::Long(context::handle(device) as u64)),
        (2, Found::Host(_)) => Ok(Value::Int(1)),
        (2, Found::Device(_)) => Ok(Value::Int(2)),
        (3, _) => Ok(Value::Long(address)),
        (4, Found::Host(_)) => Ok(Value::Long(address)),
        (4, Found::Device(_)) => Err(Code::INVALID_VALUE),
        (6, Found::Device(allocation)) => Ok(Value::Bool(allocation.synchronous.load(SeqCst))),
        (7, Found::Device(allocation)) => Ok(Value::Long(allocation.id)),
        (7, Found::Host(_)) => Ok(Value::Long(base)),
        (6 | 8, _) => Ok(Value::Bool(false)),
        (9, _) => Ok(Value::Int(device as u32)),
        (10, Found::Device(allocation)) => {
            Ok(Value::Bool(matches!(allocation.kind, Kind::Direct) && settings::get().ipc))
        }
        (10, Found::Host(_)) => Ok(Value::Bool(false)),
        (11, _) => Ok(Value::Long(base)),
        (12, _) => Ok(Value::Long(len_bytes)),
        (13, _) => Ok(Value::Bool(true)),
        (14, Found::Device(allocation)) => Ok(Value::Int(match &allocation.kind {
            Kind::Mapped(physical, _) => physical.properties.handle_types,
            _ => 0,
        })),
        (14, Found::Host(_)) => Ok(Value::Int(0)),
        (15, Found::Device(allocation)) => Ok(Value::Bool(match &allocation.kind {
            Kind::Mapped(physical, _) => physical.properties.rdma_capable == 1,
            kind => matches!(kind, Kind::Direct),
        })),
        (15, Found::Host(_)) => Ok(Value::Bool(false)),
        (16, _) => Ok(Value::Int(3)),
        (17, Found::Device(allocation)) if matches!(allocation.kind, Kind::Pool(_)) => {
            Ok(Value::Long(pool_handle(device) as u64))
        }
        (17, _) => Ok(Value::Long(0)),
        (18, _) => Ok(Value::Long(len_bytes)),
        (19, _) => Ok(Value::Long(base)),
        _ => Err(Code::INVALID_VALUE),
    }
}
