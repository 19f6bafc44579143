//! The GPU that a rank measures on, and its buffers.

use ringtree::device::{Device, DeviceMemory, Stream};
use ringtree::{Collective, Communicator, Error, Op};

use super::call::Called;
use super::layout::Layout;
use super::options::Placement;
use super::pattern::Patterned;

/// A rank's GPU.
pub struct Gpu {
    device: Device,
    stream: Stream,
    /// Small calls are one kernel of each rank.
    is_joined: bool,
}

impl Gpu {
    /// The GPU of the rank with this number on its host: ranks take the first `gpus` in turn, or all.
    pub fn open(
        communicator: &Communicator,
        local_rank: u32,
        gpus: Option<u32>,
    ) -> Result<Gpu, Error> {
        let all = communicator.devices()?;
        // Without any, the error says so.
        let device = communicator.device(local_rank % gpus.unwrap_or(all).max(1))?;
        let stream = Stream::new(&device)?;
        Ok(Gpu { device, stream, is_joined: false })
    }

    /// Has small calls be one kernel of each rank, where that can be. All ranks call it.
    pub fn join(&mut self, communicator: &Communicator) -> Result<(), Error> {
        self.is_joined = communicator.join_devices(&self.device)?;
        Ok(())
    }

    /// What it is: name, place and driver.
    pub fn describe(&self) -> String {
        let driver = self.device.driver();
        let version = driver.version();
        format!(
            "GPU {}: {}, bus id {}, driver of CUDA {}.{} ({}); small calls {}",
            self.device.ordinal(),
            self.device.name(),
            self.device.bus_id(),
            version / 1000,
            version % 1000 / 10,
            driver.library().display(),
            if self.is_joined { "are one kernel of each GPU" } else { "pass the host" },
        )
    }

    /// Makes a call, and waits until the GPU is through with it.
    #[allow(clippy::too_many_arguments)]
    pub fn call<T: Patterned>(
        &self,
        by: &Communicator,
        called: Called,
        op: Op,
        layout: &Layout,
        placement: Placement,
        input: &DeviceArea<T>,
        output: &DeviceArea<T>,
    ) -> Result<(), Error> {
        let (rank, ranks) = (by.rank(), by.ranks());
        let on = by.on(&self.stream);
        let input = &input.memory.part(0..layout.input_count);
        let output = &mut output.memory.part(0..layout.output_count);
        let in_place = placement == Placement::InPlace;
        let counts = &layout.lengths[..];
        let queued = match called {
            Called::SendReceive => {
                let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
                // One after the other, so that not all wait for one that sends.
                let [one, other] = if rank.is_multiple_of(2) {
                    [on.send(input, next)?, on.receive(output, before)?]
                } else {
                    [on.receive(output, before)?, on.send(input, next)?]
                };
                one.wait()?;
                other
            }
            Called::Even(Collective::AllReduce) if in_place => on.all_reduce(output, op)?,
            Called::Even(Collective::AllReduce) => on.all_reduce_into(input, output, op)?,
            Called::Even(Collective::Broadcast { root }) if in_place => {
                on.broadcast(output, root)?
            }
            Called::Even(Collective::Broadcast { root }) => {
                on.broadcast_into(input, output, root)?
            }
            Called::Even(Collective::Reduce { root }) if in_place => on.reduce(output, op, root)?,
            Called::Even(Collective::Reduce { root }) => on.reduce_into(input, output, op, root)?,
            Called::Even(Collective::AllGather) if in_place => on.all_gather(output)?,
            Called::Even(Collective::AllGather) => on.all_gather_into(input, output)?,
            Called::Even(Collective::ReduceScatter) if in_place => on.reduce_scatter(output, op)?,
            Called::Even(Collective::ReduceScatter) => on.reduce_scatter_into(input, output, op)?,
            Called::Even(Collective::Gather { root }) => on.gather_into(input, output, root)?,
            Called::Even(Collective::Scatter { root }) => on.scatter_into(input, output, root)?,
            Called::Even(_) => on.all_to_all_into(input, output)?,
            Called::Varied(Collective::AllGather) if in_place => on.all_gather_v(output, counts)?,
            Called::Varied(Collective::AllGather) => on.all_gather_v_into(input, output, counts)?,
            Called::Varied(Collective::ReduceScatter) if in_place => {
                on.reduce_scatter_v(output, counts, op)?
            }
            Called::Varied(Collective::ReduceScatter) => {
                on.reduce_scatter_v_into(input, output, counts, op)?
            }
            Called::Varied(Collective::Gather { root }) => {
                on.gather_v_into(input, output, counts, root)?
            }
            Called::Varied(Collective::Scatter { root }) => {
                on.scatter_v_into(input, output, counts, root)?
            }
            Called::Varied(_) => on.all_to_all_v_into(input, counts, output, counts)?,
        };
        queued.wait()
    }
}

/// A buffer on a GPU, and what it held when it was last copied.
pub struct DeviceArea<T> {
    /// What it held.
    pub host: Vec<T>,
    memory: DeviceMemory<T>,
    stream: Stream,
}

impl<T: Patterned> DeviceArea<T> {
    /// Room for `count` elements.
    pub fn new(
        communicator: &Communicator,
        gpu: &Gpu,
        count: usize,
    ) -> Result<DeviceArea<T>, Error> {
        let memory = communicator.alloc_device(&gpu.device, count)?;
        let stream = Stream::new(&gpu.device)?;
        Ok(DeviceArea { host: vec![T::default(); count], memory, stream })
    }

    /// Has the GPU hold the first `len` elements.
    pub fn upload(&mut self, len: usize) -> Result<(), Error> {
        self.memory.part(0..len).write(&self.stream, &self.host[..len])
    }

    /// Sees what the GPU has for the first `len` elements.
    pub fn download(&mut self, len: usize) -> Result<(), Error> {
        self.memory.part(0..len).read(&self.stream, &mut self.host[..len])
    }
}
