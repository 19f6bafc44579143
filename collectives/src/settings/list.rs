//! All variables that set something: what the README's table and `ringtree config` list.

/// A variable of the environment that sets something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The variable.
    pub name: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What holds where it is not set; `None`: it must be set, or nothing holds.
    pub default: Option<&'static str>,
    /// Whether nobody may see its value.
    pub is_secret: bool,
}

impl Setting {
    /// All there are, in the README's order.
    pub const ALL: [Setting; 33] = [
        setting("RINGTREE_RANK", "this rank, from 0"),
        setting("RINGTREE_RANKS", "how many ranks there are"),
        setting("RINGTREE_LOCAL_RANK", "this rank's number on its host, for the program"),
        setting(
            "RINGTREE_RENDEZVOUS",
            "where ranks meet: host:port, or file:/path of a file that all share",
        ),
        setting("RINGTREE_JOB", "name of the job; jobs never mix").or("default"),
        secret("RINGTREE_SECRET", "what every connection proves"),
        setting("RINGTREE_SECRET_FILE", "file of mode 0600 that has the secret"),
        setting("RINGTREE_INSECURE", "1: no secret, anyone may join").or("0"),
        setting("RINGTREE_TIMEOUT", "seconds without progress until a call fails").or("60"),
        setting("RINGTREE_TRANSPORT", "auto, shm, tcp, rdma, or rdma,tcp").or("auto"),
        setting(
            "RINGTREE_INTERFACE",
            "interfaces for TCP by name or subnet, separated by commas; else the way to the \
             rendezvous",
        ),
        setting("RINGTREE_PORTS", "ports that a rank may listen on, such as 40000-40100; else any"),
        setting(
            "RINGTREE_ADVERTISE",
            "host or host:port that other ranks are told, for a rank behind address translation; one \
             for each interface",
        ),
        setting("RINGTREE_SOCKETS", "connections between two ranks for each interface").or("1"),
        setting(
            "RINGTREE_ATTACH",
            "auto, always or never: when ranks of one host copy each other's memory through the kernel",
        )
        .or("auto"),
        setting(
            "RINGTREE_RDMA_DEVICES",
            "devices and ports for RDMA, such as mlx5_0,mlx5_1:2, or none; else the fastest that are up",
        ),
        setting(
            "RINGTREE_RDMA_GID_INDEX",
            "which address of each RDMA port; else one that routes, IPv4 first",
        ),
        setting("RINGTREE_RDMA_MTU", "largest RDMA packet; else what both ports allow"),
        setting("RINGTREE_RDMA_SERVICE_LEVEL", "service level of RDMA packets, 0 to 15").or("0"),
        setting("RINGTREE_RDMA_TRAFFIC_CLASS", "traffic class of RDMA packets, 0 to 255").or("0"),
        setting(
            "RINGTREE_RDMA_TIMEOUT",
            "how long an RDMA packet may stay unanswered: 4.096 us times 2 to the power of this",
        )
        .or("14"),
        setting("RINGTREE_RDMA_RETRIES", "how often an unanswered RDMA packet is sent again, 0 to 6").or("6"),
        setting(
            "RINGTREE_RDMA_NOT_READY_RETRIES",
            "how often an RDMA packet is sent again to a receiver that is not ready, 0 to 6",
        )
        .or("6"),
        setting("RINGTREE_RDMA_QUEUE_PAIRS", "queue pairs of two ranks for each pair of RDMA ports; 16 in all at most").or("1"),
        setting("RINGTREE_RDMA_LIBRARY", "the file of libibverbs; else the one that the system finds"),
        setting("RINGTREE_CUDA_LIBRARY", "the CUDA driver's library; else the one that the system finds"),
        setting("RINGTREE_ENCRYPT", "1: encrypt what goes over TCP, on all ranks alike").or("0"),
        setting(
            "RINGTREE_CHECKSUMS",
            "1: a checksum in everything that ranks send each other, on all ranks alike",
        )
        .or("0"),
        setting(
            "RINGTREE_REPRODUCIBLE",
            "1: the same bits whatever the algorithm, size, grouping and hosts, on all ranks alike",
        )
        .or("0"),
        setting("RINGTREE_JOIN", "1: come to a job that runs, whose members let this process in").or("0"),
        setting(
            "RINGTREE_TOPOLOGY",
            "how the host is wired: auto, a file in NCCL's format, or off; says in which order rings take the \
             ranks, and how fast ports are",
        )
        .or("auto"),
        setting(
            "RINGTREE_TUNING",
            "off: choose algorithms without what ringtree tune has kept; rank 0's counts",
        )
        .or("kept"),
        setting("RINGTREE_LOG", "what the program ringtree logs").or("warn"),
    ];
}

const fn setting(name: &'static str, meaning: &'static str) -> Setting {
    Setting { name, meaning, default: None, is_secret: false }
}

const fn secret(name: &'static str, meaning: &'static str) -> Setting {
    Setting { is_secret: true, ..setting(name, meaning) }
}

impl Setting {
    const fn or(mut self, default: &'static str) -> Setting {
        self.default = Some(default);
        self
    }
}
