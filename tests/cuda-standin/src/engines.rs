//! How long work takes, where bandwidths are set: each byte occupies one of a device's engines for its time, and an engine
//! serves one piece of work after the other.
//!
//! A device has an engine for the bus to it (`down`), one for the bus from it (`up`), and one for its own memory (`kernel`).
//! Copies, and kernels that reach memory of the host, occupy the bus; kernels, and copies inside and between devices,
//! the memory. Work that occupies several is done when the last of them is through with it. The work itself is done first,
//! by the host: that takes no longer than the bytes only where bandwidths are set low enough.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{MAX_DEVICES, settings};

/// Bytes a second of each engine; `None`: no time at all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bandwidths {
    /// From the host's memory to the device.
    pub down: Option<f64>,
    /// From the device to the host's memory.
    pub up: Option<f64>,
    /// In the device's memory.
    pub kernel: Option<f64>,
}

/// Bytes that a piece of work has for each engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bytes {
    /// Read in the host's memory.
    pub down: u64,
    /// Written to the host's memory.
    pub up: u64,
    /// Read and written by a kernel, or copied inside and between devices.
    pub kernel: u64,
}

/// When the engines of a device are through with what they have been given.
#[derive(Clone, Copy)]
struct Engines([Option<Instant>; 3]);

static DEVICES: Mutex<[Engines; MAX_DEVICES]> = Mutex::new([Engines([None; 3]); MAX_DEVICES]);

impl Bandwidths {
    /// Reads `down=2e8,up=2e8,kernel=1e9`, some or all of these.
    pub fn parse(text: &str) -> Result<Bandwidths, String> {
        let mut bandwidths = Bandwidths::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let said = || format!("{part:?} is not like down=2e8, up=2e8 or kernel=1e9");
            let (name, value) = part.split_once('=').ok_or_else(said)?;
            let value: f64 = value.parse().map_err(|_| said())?;
            let value = Some(value).filter(|value| *value >= 1.0 && value.is_finite());
            let value = Some(value.ok_or_else(said)?);
            match name {
                "down" => bandwidths.down = value,
                "up" => bandwidths.up = value,
                "kernel" => bandwidths.kernel = value,
                _ => return Err(said()),
            }
        }
        Ok(bandwidths)
    }

    /// Whether work takes time.
    pub fn are_set(self) -> bool {
        self != Bandwidths::default()
    }
}

/// Waits until a device's engines are through with work that began at `began` and has so many bytes, behind what they
/// were given before.
pub fn occupy(device: usize, began: Instant, bytes: Bytes) {
    let bandwidths = settings::get().bandwidths;
    if !bandwidths.are_set() {
        return;
    }
    let work = [
        (bytes.down, bandwidths.down),
        (bytes.up, bandwidths.up),
        (bytes.kernel, bandwidths.kernel),
    ];
    let mut end = began;
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    for (free, (bytes, bandwidth)) in devices[device].0.iter_mut().zip(work) {
        let Some(bytes_per_s) = bandwidth.filter(|_| bytes > 0) else { continue };
        let begins = free.map_or(began, |free| free.max(began));
        let ends = begins + Duration::from_secs_f64(bytes as f64 / bytes_per_s);
        *free = Some(ends);
        end = end.max(ends);
    }
    drop(devices);
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_read_and_nonsense_is_refused() {
        let some = Bandwidths::parse("down=2e8,kernel=1e9").unwrap();
        assert_eq!(some, Bandwidths { down: Some(2e8), up: None, kernel: Some(1e9) });
        assert!(some.are_set() && !Bandwidths::parse("").unwrap().are_set());
        for wrong in ["down", "down=", "down=0", "down=-1", "down=inf", "down=NaN", "side=1e9"] {
            assert!(Bandwidths::parse(wrong).is_err(), "{wrong}");
        }
    }
}
