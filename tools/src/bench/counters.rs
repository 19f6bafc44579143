//! What devices have done in a run, which is told below the table.

use ringtree::{Communicator, Error, Op};
use serde::Serialize;

use super::wire::Wire;

/// Of all kinds of devices that were used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Counters {
    /// Links over RDMA.
    rdma: Option<Wire>,
    /// GPUs.
    gpu: Option<GpuWork>,
}

/// What GPUs have done: the sums of all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct GpuWork {
    kernels: u64,
    copies: u64,
    /// Bytes that kernels and copies have read from the hosts' memory.
    from_host_bytes: u64,
    /// Bytes that they have read in memory of other ranks' GPUs.
    from_peers_bytes: u64,
    /// Bytes that they have written there.
    to_host_bytes: u64,
    /// Bytes that RDMA devices have sent straight from GPUs.
    to_wire_bytes: u64,
    /// Bytes that they have written straight there.
    from_wire_bytes: u64,
    /// Bytes that processors have copied, because a GPU could not reach them.
    bounced_bytes: u64,
}

impl Counters {
    /// Collects them at rank 0. All ranks call it.
    pub fn collect(communicator: &Communicator) -> Result<Counters, Error> {
        Ok(Counters { rdma: Wire::collect(communicator)?, gpu: GpuWork::collect(communicator)? })
    }

    /// The lines below the table.
    pub fn text(&self) -> String {
        let rdma = self.rdma.map_or(String::new(), |wire| wire.text());
        rdma + &self.gpu.map_or(String::new(), |work| work.text())
    }
}

impl GpuWork {
    /// `None` elsewhere than at rank 0, and where no GPU did anything.
    fn collect(communicator: &Communicator) -> Result<Option<GpuWork>, Error> {
        let own = communicator.device_counters();
        let mut sums = [
            own.kernels,
            own.copies,
            own.from_host_bytes,
            own.from_peers_bytes,
            own.to_host_bytes,
            own.to_wire_bytes,
            own.from_wire_bytes,
            own.bounced_bytes,
        ];
        communicator.reduce(&mut sums, Op::Sum, 0)?;
        let [kernels, copies, from_host_bytes, from_peers_bytes, to_host_bytes, to_wire_bytes, ..] =
            sums;
        let [.., from_wire_bytes, bounced_bytes] = sums;
        let work = GpuWork {
            kernels,
            copies,
            from_host_bytes,
            from_peers_bytes,
            to_host_bytes,
            to_wire_bytes,
            from_wire_bytes,
            bounced_bytes,
        };
        let is_any = kernels + copies + to_wire_bytes > 0;
        Ok((communicator.rank() == 0 && is_any).then_some(work))
    }

    fn text(&self) -> String {
        let GpuWork { kernels, copies, from_peers_bytes, .. } = self;
        let GpuWork { from_host_bytes, to_host_bytes, bounced_bytes, .. } = self;
        let GpuWork { to_wire_bytes, from_wire_bytes, .. } = self;
        let straight = match to_wire_bytes + from_wire_bytes {
            0 => String::new(),
            _ => format!(
                "# GPUs: {to_wire_bytes} bytes sent by RDMA straight from their memory, {from_wire_bytes} bytes received \
                 straight there\n"
            ),
        };
        format!(
            "# GPUs, all ranks and calls: {kernels} kernels, {copies} copies; {from_peers_bytes} bytes read from other \
             GPUs\n\
             # GPUs: {to_host_bytes} bytes to the hosts, {from_host_bytes} bytes from them, {bounced_bytes} of which \
             processors copied once more\n{straight}#\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gpus_have_done_is_told_in_few_lines() {
        let gpu = GpuWork {
            kernels: 3,
            copies: 2,
            from_host_bytes: 400,
            from_peers_bytes: 700,
            to_host_bytes: 500,
            to_wire_bytes: 0,
            from_wire_bytes: 0,
            bounced_bytes: 0,
        };
        assert_eq!(
            Counters { rdma: None, gpu: Some(gpu) }.text(),
            "# GPUs, all ranks and calls: 3 kernels, 2 copies; 700 bytes read from other GPUs\n\
             # GPUs: 500 bytes to the hosts, 400 bytes from them, 0 of which processors copied once more\n#\n"
        );
        let straight = GpuWork { to_wire_bytes: 900, from_wire_bytes: 600, ..gpu };
        let text = Counters { rdma: None, gpu: Some(straight) }.text();
        let line = "\n# GPUs: 900 bytes sent by RDMA straight from their memory, 600 bytes received straight there\n#\n";
        assert!(text.ends_with(line), "{text}");
    }
}
