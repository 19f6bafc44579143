//! Reading typed values from an environment.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ringtree_transport::endpoint::Transports;
use ringtree_transport::host_port::HostPort;
use ringtree_transport::ports::PortRange;
use ringtree_transport::rdma::RdmaConfig;
use ringtree_transport::shm::Attach;

use super::DEFAULT_TIMEOUT;
use super::launchers::Told;
use crate::{Error, TopologySource, Tuning, TuningCache};

/// An environment.
pub(super) struct Variables<'a>(pub(super) &'a HashMap<String, String>);

impl Variables<'_> {
    /// A variable that is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// A text, with the variable's name.
    pub(super) fn text(&self, variable: &'static str) -> Option<Told<String>> {
        self.get(variable).map(|text| Told { value: text.to_string(), variable })
    }

    pub(super) fn required(&self, name: &'static str, what: &str) -> Result<Told<String>, Error> {
        let missing = || settings(format!("{name} is not set: it must give {what}"));
        self.text(name).ok_or_else(missing)
    }

    pub(super) fn number(&self, name: &str) -> Result<u32, Error> {
        let hint = "start the program with `ringtree run` or another launcher, or set it";
        let text = self.get(name).ok_or_else(|| settings(format!("{name} is not set: {hint}")))?;
        text.parse().map_err(|_| settings(format!("{name}={text} is not a number")))
    }

    /// A number that must be there, with the variable's name.
    pub(super) fn told(&self, variable: &'static str) -> Result<Told<u32>, Error> {
        Ok(Told { value: self.number(variable)?, variable })
    }

    /// A number that may be there.
    pub(super) fn told_if_set(&self, variable: &'static str) -> Result<Option<Told<u32>>, Error> {
        self.get(variable).map(|_| self.told(variable)).transpose()
    }

    pub(super) fn port(&self, name: &str) -> Result<Option<u16>, Error> {
        let parse = |text: &str| {
            let port = text.parse().ok().filter(|port| *port != 0);
            port.ok_or_else(|| settings(format!("{name}={text} is not a port")))
        };
        self.get(name).map(parse).transpose()
    }

    pub(super) fn sockets(&self) -> Result<u32, Error> {
        self.get("RINGTREE_SOCKETS").map_or(Ok(1), |_| self.number("RINGTREE_SOCKETS"))
    }

    pub(super) fn ports(&self) -> Result<Option<PortRange>, Error> {
        let wrong = |error| settings(format!("RINGTREE_PORTS: {error}"));
        self.get("RINGTREE_PORTS").map(|text| text.parse().map_err(wrong)).transpose()
    }

    pub(super) fn advertise(&self) -> Result<Vec<HostPort>, Error> {
        let told = self.get("RINGTREE_ADVERTISE").into_iter().flat_map(|text| text.split(','));
        told.map(|text| text.trim().parse::<HostPort>())
            .collect::<Result<_, _>>()
            .map_err(|error| settings(format!("RINGTREE_ADVERTISE: {error}")))
    }

    /// A variable that is 0 or 1.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Error> {
        match self.get(name) {
            None | Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(other) => Err(settings(format!("{name}={other} is neither 0 nor 1"))),
        }
    }

    pub(super) fn timeout(&self) -> Result<Duration, Error> {
        let Some(text) = self.get("RINGTREE_TIMEOUT") else { return Ok(DEFAULT_TIMEOUT) };
        let seconds = text.trim_end_matches('s').parse::<f64>().ok();
        let seconds = seconds.filter(|s| *s > 0.0 && *s < 1e9);
        seconds.map(Duration::from_secs_f64).ok_or_else(|| {
            settings(format!("RINGTREE_TIMEOUT={text} is not a number of seconds above 0"))
        })
    }

    pub(super) fn tuning(&self) -> Result<Tuning, Error> {
        match self.get("RINGTREE_TUNING") {
            None | Some("kept") => Ok(TuningCache::of_user().map_or(Tuning::Off, Tuning::Kept)),
            Some("off") => Ok(Tuning::Off),
            Some(other) => {
                Err(settings(format!("RINGTREE_TUNING={other} is neither kept nor off")))
            }
        }
    }

    pub(super) fn topology(&self) -> TopologySource {
        match self.get("RINGTREE_TOPOLOGY") {
            None | Some("auto") => TopologySource::System,
            Some("off") => TopologySource::Off,
            Some(path) => TopologySource::File(path.into()),
        }
    }

    pub(super) fn attach(&self) -> Result<Attach, Error> {
        let ways = [Attach::Auto, Attach::Always, Attach::Never];
        self.one_of("RINGTREE_ATTACH", &ways)
    }

    pub(super) fn transports(&self) -> Result<Transports, Error> {
        self.one_of("RINGTREE_TRANSPORT", &Transports::ALL)
    }

    pub(super) fn rdma(&self) -> Result<RdmaConfig, Error> {
        let default = RdmaConfig::default();
        let wrong = |error| settings(format!("RINGTREE_RDMA_MTU: {error}"));
        let mtu = self.get("RINGTREE_RDMA_MTU").map(|text| text.parse().map_err(wrong));
        let small = |name: &str, range: RangeInclusive<u32>, default: u8| {
            self.number_in(name, range, default.into()).map(|number| number as u8)
        };
        let devices = self.get("RINGTREE_RDMA_DEVICES");
        let checked = devices.map_or(Ok(()), RdmaConfig::check_devices);
        checked.map_err(|error| settings(error.to_string()))?;
        Ok(RdmaConfig {
            library: self.get("RINGTREE_RDMA_LIBRARY").map(PathBuf::from),
            devices: devices.map(str::to_string),
            gid_index: match self.get("RINGTREE_RDMA_GID_INDEX") {
                Some(_) => Some(self.number_in("RINGTREE_RDMA_GID_INDEX", 0..=255, 0)?),
                None => None,
            },
            mtu: mtu.transpose()?,
            service_level: small("RINGTREE_RDMA_SERVICE_LEVEL", 0..=15, default.service_level)?,
            traffic_class: small("RINGTREE_RDMA_TRAFFIC_CLASS", 0..=255, default.traffic_class)?,
            timeout: small("RINGTREE_RDMA_TIMEOUT", 1..=31, default.timeout)?,
            retries: small("RINGTREE_RDMA_RETRIES", 0..=6, default.retries)?,
            not_ready_retries: small(
                "RINGTREE_RDMA_NOT_READY_RETRIES",
                0..=6,
                default.not_ready_retries,
            )?,
            queue_pairs: self.number_in(
                "RINGTREE_RDMA_QUEUE_PAIRS",
                1..=16,
                default.queue_pairs,
            )?,
        })
    }

    fn number_in(
        &self,
        name: &str,
        range: RangeInclusive<u32>,
        default: u32,
    ) -> Result<u32, Error> {
        let Some(text) = self.get(name) else { return Ok(default) };
        text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
            let (least, most) = (range.start(), range.end());
            settings(format!("{name}={text} is not a number from {least} to {most}"))
        })
    }

    /// The value that a variable names; the first one where it is not set.
    fn one_of<T: Copy + fmt::Display>(&self, name: &str, values: &[T]) -> Result<T, Error> {
        let Some(text) = self.get(name) else { return Ok(values[0]) };
        values.iter().copied().find(|value| value.to_string() == text).ok_or_else(|| {
            let names: Vec<String> = values.iter().map(T::to_string).collect();
            settings(format!("{name}={text} is none of {}", names.join(", ")))
        })
    }
}

pub(super) fn settings(message: impl Into<String>) -> Error {
    Error::Settings(message.into())
}
