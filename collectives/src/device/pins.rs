//! Which of the host's memory a GPU may use: the slots of links, which are locked for it when it first uses a link.

use ringtree_transport::Link;
use ringtree_transport::cuda::{Device, DeviceAddress, RegisteredMemory};

/// See the file's description.
#[derive(Debug)]
pub(crate) struct Pins {
    device: Device,
    /// By rank; nothing of links that have not been used.
    links: Vec<Option<Vec<RegisteredMemory>>>,
}

impl Pins {
    pub(crate) fn new(device: &Device, ranks: u32) -> Pins {
        Pins { device: device.clone(), links: (0..ranks).map(|_| None).collect() }
    }

    /// Locks a link's slots, once. What cannot be locked is copied by the processor instead.
    pub(crate) fn pin(&mut self, link: &Link) {
        let pins = &mut self.links[link.peer() as usize];
        if pins.is_some() {
            return;
        }
        let mut registered = Vec::new();
        for slots in link.slot_memory() {
            let memory = RegisteredMemory::register(&self.device, slots.mapping, slots.is_writable);
            match memory {
                Ok(memory) => registered.push(memory),
                Err(error) => tracing::info!(
                    "GPU {} cannot use the slots of the {} link to rank {} in place, and what passes there is \
                     copied once more: {error}",
                    self.device.ordinal(),
                    link.kind(),
                    link.peer()
                ),
            }
        }
        *pins = Some(registered);
    }

    /// Where the GPU finds `len_bytes` of a link's memory, if it may use them.
    pub(crate) fn address_of(
        &self,
        peer: u32,
        data: *const u8,
        len_bytes: usize,
    ) -> Option<DeviceAddress> {
        let pins = self.links[peer as usize].as_ref()?;
        pins.iter().find_map(|memory| memory.address_of(data, len_bytes))
    }
}
