//! What the C entry points are made of: checked arguments, and the macro that declares them.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::time::Instant;

use crate::code::{Code, Result};
use crate::{context, faults, initialisation};

/// An address that a caller wants a value at. Null is refused.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Out<T> {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    /// Whether the caller wants nothing.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Writes the value.
    pub fn set(self, value: T) -> Result {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: only entry points make these, of what their callers promise to be writable; unaligned because C's
        // byte arrays (handles) are.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes the value unless the caller wants nothing.
    pub fn set_if_wanted(self, value: T) -> Result {
        if self.0.is_null() { Ok(()) } else { self.set(value) }
    }

    /// The same address for another type, for arguments whose type depends on another argument.
    pub fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }

    /// The address `count` values on.
    pub fn offset(self, count: usize) -> Out<T> {
        Out(self.0.wrapping_add(count))
    }
}

impl Out<c_char> {
    /// Writes as much of a text as fits, and a zero.
    pub fn set_text(self, text: &str, capacity: i32) -> Result {
        let room = usize::try_from(capacity).ok().filter(|n| *n > 0).ok_or(Code::INVALID_VALUE)?;
        let bytes = text.as_bytes();
        let kept = bytes.len().min(room - 1);
        for (at, byte) in bytes[..kept].iter().enumerate() {
            self.offset(at).set(*byte as c_char)?;
        }
        self.offset(kept).set(0)
    }
}

/// An address that a caller has values at. Null is refused.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// Whether the caller has nothing.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The value.
    pub fn get(self) -> Result<T> {
        self.at(0)
    }

    /// The value `index` places on.
    pub fn at(self, index: usize) -> Result<T> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: only entry points make these, of what their callers promise to be readable.
        Ok(unsafe { self.0.wrapping_add(index).read_unaligned() })
    }

    /// `count` values.
    pub fn copied(self, count: usize) -> Result<Vec<T>> {
        (0..count).map(|index| self.at(index)).collect()
    }
}

/// A text of the caller's, which ends with a zero.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Text(*const c_char);

impl Text {
    /// The text.
    pub fn get(self) -> Result<String> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: only entry points make these, of what their callers promise to end with a zero.
        let text = unsafe { CStr::from_ptr(self.0) };
        Ok(text.to_str().map_err(|_| Code::INVALID_VALUE)?.to_owned())
    }
}

/// What an entry point demands before it runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Nothing: it may be called before `cuInit`.
    Nothing,
    /// That this process called `cuInit`.
    Initialised,
}

/// Runs an entry point's body, and makes its result the code that C sees.
pub fn enter(name: &str, demand: Demand, body: impl FnOnce() -> Result) -> i32 {
    let run = || {
        if demand == Demand::Initialised {
            initialisation::check()?;
        }
        // The real driver forbids it because a stream would wait for itself.
        if context::in_host_function() && demand == Demand::Initialised {
            return Err(Code::NOT_PERMITTED);
        }
        faults::check(name)?;
        body()
    };
    let began = Instant::now();
    let result = run();
    // None while the thread ends, when programs still drop what they have.
    let _ = INSIDE_NS.try_with(|ns| ns.set(ns.get() + began.elapsed().as_nanos() as u64));
    match result {
        Ok(()) => 0,
        Err(code) => code.0,
    }
}

thread_local! {
    static INSIDE_NS: Cell<u64> = const { Cell::new(0) };
}

/// Nanoseconds that this thread has spent in entry points.
pub fn inside_ns() -> u64 {
    INSIDE_NS.try_with(Cell::get).unwrap_or(0)
}

/// Declares entry points of the driver. A body sees checked arguments, and returns a [`Result`]; handles are numbers,
/// device addresses `u64`, host addresses `usize`. The functions' addresses are listed by `entry_points`.
macro_rules! entry_points {
    ($demand:ident: $(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            /// The driver's function of this name.
            ///
            /// # Safety
            ///
            /// Pointers are as the CUDA driver API demands.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, clippy::too_many_arguments)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> i32 {
                $crate::ffi::enter(stringify!($name), $crate::ffi::Demand::$demand, || $body)
            }
        )*

        /// Names and addresses of this file's functions.
        pub fn entry_points() -> Vec<(&'static str, usize)> {
            vec![$((stringify!($name), $name as *const () as usize)),*]
        }
    };
}
pub(crate) use entry_points;
