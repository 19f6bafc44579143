//! Handles: numbers that name things, so that one that is stale or was never given out is an error and no crash.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::code::{Code, Result};

/// The things of one kind, by handle. Handles are never used again.
pub struct Registry<T> {
    things: Mutex<(usize, BTreeMap<usize, Arc<T>>)>,
}

impl<T> Registry<T> {
    /// No things; the first handle will be `first_handle`. It must differ for each kind, so that a handle of another
    /// kind is found out.
    pub const fn new(first_handle: usize) -> Registry<T> {
        Registry { things: Mutex::new((first_handle, BTreeMap::new())) }
    }

    /// Adds a thing that is made knowing its handle.
    pub fn add(&self, make: impl FnOnce(usize) -> T) -> (usize, Arc<T>) {
        self.add_shared(|handle| Arc::new(make(handle)))
    }

    /// Adds a thing that something else shares.
    pub fn add_shared(&self, make: impl FnOnce(usize) -> Arc<T>) -> (usize, Arc<T>) {
        let mut things = self.things.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = things.0;
        things.0 += 16;
        let thing = make(handle);
        things.1.insert(handle, thing.clone());
        (handle, thing)
    }

    /// Adds a thing under a handle that it had before.
    pub fn restore(&self, handle: usize, thing: Arc<T>) {
        let mut things = self.things.lock().unwrap_or_else(PoisonError::into_inner);
        things.1.insert(handle, thing);
    }

    /// The thing that a handle names.
    pub fn get(&self, handle: usize) -> Result<Arc<T>> {
        let things = self.things.lock().unwrap_or_else(PoisonError::into_inner);
        things.1.get(&handle).cloned().ok_or(Code::INVALID_HANDLE)
    }

    /// Forgets a handle.
    pub fn remove(&self, handle: usize) -> Result<Arc<T>> {
        let mut things = self.things.lock().unwrap_or_else(PoisonError::into_inner);
        things.1.remove(&handle).ok_or(Code::INVALID_HANDLE)
    }

    /// Forgets the things for which `gone` says so, and says how many they were.
    pub fn remove_where(&self, gone: impl Fn(&T) -> bool) -> u64 {
        let mut things = self.things.lock().unwrap_or_else(PoisonError::into_inner);
        let before = things.1.len();
        things.1.retain(|_, thing| !gone(thing));
        (before - things.1.len()) as u64
    }
}
