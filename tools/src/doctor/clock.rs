//! Clocks: what time costs, and whether the ranks agree on it.

use std::time::{Duration, Instant};

use super::finding::{Check, Finding};
use super::system::System;

const SOURCE: Check = Check {
    name: "clock-source",
    why: "the library looks at the clock while it waits; where that needs the kernel or a chip on the \
          board it takes up to a microsecond instead of 20 nanoseconds",
};

const MONOTONIC: Check = Check {
    name: "clock-monotonic",
    why: "deadlines and measured times need a clock that never goes back",
};

const WALL: Check = Check {
    name: "clock-difference",
    why: "logs of different hosts can only be laid side by side where their clocks agree (the library \
          itself compares no two hosts' clocks)",
};

/// Sources that a process reads without asking the kernel.
const QUICK_SOURCES: [&str; 5] =
    ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "timebase"];

/// Readings of the clock.
const READINGS: u32 = 100_000;

/// Longer than any clock that is read without the kernel takes on a busy machine.
const SLOW: Duration = Duration::from_nanos(300);

/// A difference that one sees in logs.
const VISIBLE_US: f64 = 10_000.0;

/// What there is to say of this host's clock.
pub fn check(system: &System) -> Vec<Finding> {
    vec![source(system), monotonic(&Readings::take())]
}

fn source(system: &System) -> Finding {
    const FOLDER: &str = "/sys/devices/system/clocksource/clocksource0";
    let file = |name| system.text(&format!("{FOLDER}/{name}"));
    let Some(current) = file("current_clocksource") else {
        return SOURCE.note("it cannot be read which one is used");
    };
    if QUICK_SOURCES.contains(&current.as_str()) {
        return SOURCE.ok(current);
    }
    let available = file("available_clocksource").unwrap_or_default();
    let mut words = available.split_whitespace();
    match words.find(|word| QUICK_SOURCES.contains(word)) {
        Some(better) => SOURCE
            .warning(format!("{current}, although there is {better}"))
            .remedy(format!("echo {better} | sudo tee {FOLDER}/current_clocksource")),
        None => SOURCE.warning(format!("{current}; there is no quicker one")),
    }
}

/// Readings of the clock in a row.
struct Readings {
    /// How often the next one was earlier.
    backward: u32,
    each: Duration,
}

impl Readings {
    fn take() -> Readings {
        let first = Instant::now();
        let (mut last, mut backward) = (first, 0);
        for _ in 0..READINGS {
            let now = Instant::now();
            backward += u32::from(now < last);
            last = now;
        }
        Readings { backward, each: first.elapsed() / READINGS }
    }
}

fn monotonic(readings: &Readings) -> Finding {
    let &Readings { backward, each } = readings;
    let seen = format!("never went back in {READINGS} readings");
    match backward {
        0 if each < SLOW => MONOTONIC.ok(seen),
        0 => MONOTONIC.note(format!("{seen}, but each took {} ns", each.as_nanos())),
        times => MONOTONIC.failure(format!("went back {times} times in {READINGS} readings")),
    }
}

/// What there is to say of the ranks' clocks, of which two differ by so much at most, in
/// microseconds.
pub fn difference(most: Option<(f64, [u32; 2])>) -> Option<Finding> {
    let (difference_us, [one, other]) = most?;
    let seen = format!("at most {}, between ranks {one} and {other}", time(difference_us));
    Some(match difference_us {
        VISIBLE_US.. => WALL.note(seen).remedy("sudo chronyc makestep  # on each host"),
        _ => WALL.ok(seen),
    })
}

/// `12.3 us`, `4.5 ms`, `6.7 s`.
fn time(us: f64) -> String {
    match us {
        1e6.. => format!("{:.1} s", us / 1e6),
        1e3.. => format!("{:.1} ms", us / 1e3),
        _ => format!("{us:.1} us"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::super::system::made_up::Machine;
    use super::*;

    #[test]
    fn a_slow_source_is_exchanged_where_there_is_a_quick_one() {
        let folder = "/sys/devices/system/clocksource/clocksource0";
        let machine = |current, available| {
            Machine::new(&[
                (&format!("{folder}/current_clocksource"), current),
                (&format!("{folder}/available_clocksource"), available),
            ])
        };
        assert_eq!(source(&machine("tsc", "tsc hpet").system).level, Level::Ok);
        let slow = source(&machine("hpet", "hpet tsc acpi_pm").system);
        assert_eq!(slow.level, Level::Warning);
        let remedy = format!("echo tsc | sudo tee {folder}/current_clocksource");
        assert_eq!(slow.remedy, Some(remedy));
        assert_eq!(source(&machine("xen", "xen").system).remedy, None);
    }

    #[test]
    fn a_clock_that_goes_back_is_a_failure() {
        let each = Duration::from_nanos(20);
        assert_eq!(monotonic(&Readings { backward: 0, each }).level, Level::Ok);
        assert_eq!(monotonic(&Readings { backward: 3, each }).level, Level::Failure);
        assert_eq!(Readings::take().backward, 0);
    }

    #[test]
    fn clocks_that_visibly_differ_are_noted() {
        assert_eq!(difference(None), None);
        assert_eq!(difference(Some((3.0, [0, 1]))).unwrap().level, Level::Ok);
        let finding = difference(Some((2.5e6, [0, 2]))).unwrap();
        assert_eq!(finding.level, Level::Note);
        assert_eq!(finding.seen, "at most 2.5 s, between ranks 0 and 2");
    }
}
