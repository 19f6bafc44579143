//! What calls on GPUs have had the devices do: figures that mean something without a clock.

use std::ops::AddAssign;

/// What the calls of a communicator have had this rank's GPUs do, from its beginning on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Kernels that were launched.
    pub kernels: u64,
    /// Copies that were left to copy engines.
    pub copies: u64,
    /// Bytes that kernels and copies have brought from the host's memory.
    pub from_host_bytes: u64,
    /// Bytes that they have read in memory of peers' GPUs.
    pub from_peers_bytes: u64,
    /// Bytes that they have brought to the host's memory.
    pub to_host_bytes: u64,
    /// Bytes that RDMA devices have sent straight from the GPU's memory.
    pub to_wire_bytes: u64,
    /// Bytes that they have written straight there.
    pub from_wire_bytes: u64,
    /// Bytes that a processor has copied, because the GPU could not reach them where they had come.
    pub bounced_bytes: u64,
}

impl DeviceCounters {
    /// What has been done since they were as `earlier`.
    pub fn since(self, earlier: DeviceCounters) -> DeviceCounters {
        DeviceCounters {
            kernels: self.kernels - earlier.kernels,
            copies: self.copies - earlier.copies,
            from_host_bytes: self.from_host_bytes - earlier.from_host_bytes,
            from_peers_bytes: self.from_peers_bytes - earlier.from_peers_bytes,
            to_host_bytes: self.to_host_bytes - earlier.to_host_bytes,
            to_wire_bytes: self.to_wire_bytes - earlier.to_wire_bytes,
            from_wire_bytes: self.from_wire_bytes - earlier.from_wire_bytes,
            bounced_bytes: self.bounced_bytes - earlier.bounced_bytes,
        }
    }
}

impl AddAssign for DeviceCounters {
    fn add_assign(&mut self, other: DeviceCounters) {
        self.kernels += other.kernels;
        self.copies += other.copies;
        self.from_host_bytes += other.from_host_bytes;
        self.from_peers_bytes += other.from_peers_bytes;
        self.to_host_bytes += other.to_host_bytes;
        self.to_wire_bytes += other.to_wire_bytes;
        self.from_wire_bytes += other.from_wire_bytes;
        self.bounced_bytes += other.bounced_bytes;
    }
}
