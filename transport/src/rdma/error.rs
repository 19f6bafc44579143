//! Why RDMA cannot be used, and what to do about it.

use std::path::PathBuf;

use super::ffi;

/// Why this rank has no RDMA, or a part of it does not work. Each is one line that names the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RdmaError {
    /// The library is not there.
    #[error(
        "RDMA needs libibverbs, which cannot be used ({reason}): install libibverbs1 and \
         ibverbs-providers (Debian, Ubuntu) or libibverbs (Fedora, RHEL), or name its file with \
         RINGTREE_RDMA_LIBRARY"
    )]
    NoLibrary {
        /// What the dynamic linker said.
        reason: String,
    },
    /// The process uses another one already.
    #[error(
        "RDMA goes by {} in this process, and cannot go by {asked}, too: let RINGTREE_RDMA_LIBRARY be the same for \
         all of its communicators", open.display(), asked = .asked.display()
    )]
    OtherLibrary {
        /// The one that was asked for.
        asked: PathBuf,
        /// The one that is open.
        open: PathBuf,
    },
    /// No device at all.
    #[error("this host has no RDMA device{hint}")]
    NoDevice {
        /// What may help.
        hint: &'static str,
    },
    /// Devices that were asked for are not there.
    #[error("RINGTREE_RDMA_DEVICES names {wanted}; this host has {present}")]
    NotPresent {
        /// What was asked for.
        wanted: String,
        /// What there is.
        present: String,
    },
    /// The setting cannot be read.
    #[error(
        "RINGTREE_RDMA_DEVICES={text} is neither none nor a list of devices with or without ports, as mlx5_0,mlx5_1:2"
    )]
    Malformed {
        /// Its value.
        text: String,
    },
    /// RDMA was switched off.
    #[error("RINGTREE_RDMA_DEVICES is none: RDMA is switched off for this rank")]
    Off,
    /// What goes over the wire shall be encrypted.
    #[error("RINGTREE_ENCRYPT=1 encrypts what goes over TCP; RDMA cannot")]
    Encrypted,
    /// The device cannot be opened.
    #[error("RDMA device {device} cannot be opened: {reason}{hint}")]
    Open {
        /// Its name.
        device: String,
        /// What the system said.
        reason: String,
        /// What may help.
        hint: &'static str,
    },
    /// A port carries nothing.
    #[error("port {port} of RDMA device {device} is {state}: {hint}")]
    PortDown {
        /// The device.
        device: String,
        /// Its port.
        port: u8,
        /// Its state.
        state: String,
        /// What may help.
        hint: String,
    },
    /// The device has fewer ports.
    #[error("RINGTREE_RDMA_DEVICES names port {port} of {device}, which has {count}")]
    NoSuchPort {
        /// The device.
        device: String,
        /// The port.
        port: u8,
        /// How many it has.
        count: u8,
    },
    /// A port has no address that others can reach.
    #[error(
        "port {port} of RDMA device {device} has no GID that routes (RoCE v2 with an IPv4 or a global \
         IPv6 address): give its network interface an IP address, or set RINGTREE_RDMA_GID_INDEX"
    )]
    NoGid {
        /// The device.
        device: String,
        /// Its port.
        port: u8,
    },
    /// The GID that was asked for is not in the port's table.
    #[error(
        "port {port} of RDMA device {device} has no GID {index}, which RINGTREE_RDMA_GID_INDEX asks for"
    )]
    NoSuchGid {
        /// The device.
        device: String,
        /// Its port.
        port: u8,
        /// The index.
        index: u32,
    },
    /// Memory cannot be locked.
    #[error(
        "RDMA needs locked memory, and {} KiB more beside what is locked already exceed the limit of this \
         process ({limit}): raise it with `ulimit -l unlimited`, LimitMEMLOCK= of a systemd service, or \
         `docker run --ulimit memlock=-1`",
        .needed_bytes.div_ceil(1024)
    )]
    LockedMemory {
        /// What was to be locked.
        needed_bytes: usize,
        /// The limit that holds.
        limit: String,
    },
    /// A call of the library failed.
    #[error("RDMA device {device}: {what} failed: {reason}")]
    Call {
        /// The device.
        device: String,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        reason: String,
    },
    /// None of several devices can be used.
    #[error("no RDMA device of this host can be used: {}", .reasons.join("; "))]
    NoneUsable {
        /// Why not, a device each.
        reasons: Vec<String>,
    },
}

/// What a failed work request usually means, by the status of its completion (InfiniBand Architecture
/// Specification 1.4, section 11.6.2).
pub(super) fn meaning_of(status: u32) -> &'static str {
    match status {
        1 => "local length error: a message is longer than its memory region or the port allows",
        2 => "local queue pair operation error: the device or its port was reset, or it is a bug",
        4 => "local protection error: memory was used that is not registered any more",
        ffi::WC_WR_FLUSH_ERR => {
            "the device has ended the queue pair: the peer wrote to memory that it may not write to, or the \
             device or its port was reset"
        }
        7 => "bad response: the peer's device answered what it must not",
        8 => "local access error: memory is registered for less than was done with it",
        9 => "remote invalid request: the peer's device allows less than was asked of it",
        10 => {
            "remote access error: the peer has withdrawn the memory, or the key or range is wrong"
        }
        11 => "remote operation error: the peer's device failed",
        12 => {
            "retries exceeded: the peer is dead or does not answer, or a cable, a port or a switch is \
             down, or the GID or the MTU does not fit the path"
        }
        13 => "receiver-not-ready retries exceeded: the peer takes nothing in",
        19 => "fatal error: the device failed",
        20 => "response timeout: the peer's device does not answer",
        _ => "the device refused the work request",
    }
}
