//! The stand-in's own functions, for tests in the same process. They count and fail nothing.

use crate::counters::{self, Counters};
use crate::ffi::{Demand, Out, Text, enter, inside_ns};
use crate::initialisation::is_initialised;
use crate::settings::configure_or_say;

/// 1: the real driver has no such function.
#[unsafe(no_mangle)]
extern "C" fn ringtree_standin_is_standin() -> i32 {
    1
}

/// Sets a setting, by its name without prefix; 0 if it could.
#[unsafe(no_mangle)]
extern "C" fn ringtree_standin_configure(key: Text, value: Text) -> i32 {
    enter("", Demand::Nothing, || configure_or_say(&key.get()?, &value.get()?, is_initialised()))
}

/// Gives the counters of this process.
#[unsafe(no_mangle)]
extern "C" fn ringtree_standin_counters(to: Out<Counters>) -> i32 {
    enter("", Demand::Nothing, || to.set(counters::read()))
}

/// Nanoseconds that the calling thread has spent in the driver's functions.
#[unsafe(no_mangle)]
extern "C" fn ringtree_standin_inside_ns() -> u64 {
    inside_ns()
}

/// Zeroes all counters but the levels.
#[unsafe(no_mangle)]
extern "C" fn ringtree_standin_reset_counters() -> i32 {
    counters::reset();
    0
}
