//! Tests of the simulated transport, and what they share.

mod faults;
mod links;
mod time;

use super::{Config, Network, SimLink};
use crate::{Channel, LinkError, Tag};

const TAG: Tag = Tag { sequence: 7, digest: 9 };

/// 1 byte takes 1 ns, and every latency 100 ns; slices of 10 bytes, 9 slots: 1 for point to
/// point, 8 for the lanes.
const CONFIG: Config = Config {
    seed: 1,
    latency_ns: 100,
    jitter_ns: 0,
    bandwidth_bytes_per_s: 1_000_000_000,
    slice_bytes: 10,
    slots: 9,
};

/// A network, and both ends of a link in it with one lane.
fn pair(config: Config) -> (Network, SimLink, SimLink) {
    let network = Network::new(config);
    let (mut a, mut b) = (network.link(0, 1), network.link(1, 0));
    a.divide(1);
    b.divide(1);
    (network, a, b)
}

fn post(link: &mut SimLink, channel: Channel, data: &[u8]) -> Result<(), LinkError> {
    // SAFETY: the tests post bytes that outlive their links.
    unsafe { link.post(channel, TAG, data.as_ptr(), data.len(), true) }
}

fn receive(link: &mut SimLink, channel: Channel, len: usize) -> Result<(Vec<u8>, bool), LinkError> {
    let mut bytes = vec![0; len];
    // SAFETY: `bytes` has room for `len` bytes.
    let (count, ended) = unsafe { link.receive(channel, TAG, bytes.as_mut_ptr(), len)? };
    bytes.truncate(count);
    Ok((bytes, ended))
}

fn poll(link: &mut SimLink) -> Result<bool, LinkError> {
    link.poll(0)
}

/// Takes and releases one whole arrival.
fn take(link: &mut SimLink, channel: Channel) -> Result<Option<(Vec<u8>, bool)>, LinkError> {
    let Some(arrival) = link.arrival(channel)? else { return Ok(None) };
    // SAFETY: an arrival's bytes are readable until they are released.
    let bytes = unsafe { std::slice::from_raw_parts(arrival.data, arrival.len) }.to_vec();
    link.release(channel, arrival.len)?;
    Ok(Some((bytes, arrival.last)))
}

/// Lets time go on until `to` has read one message, or nothing happens any more; returns what
/// was read.
fn read_message(
    network: &Network,
    from: &mut SimLink,
    to: &mut SimLink,
    channel: Channel,
) -> Result<Vec<u8>, LinkError> {
    let mut message = Vec::new();
    loop {
        let moved = poll(from)? | poll(to)?;
        while let Some((bytes, last)) = take(to, channel)? {
            message.extend(bytes);
            if last {
                return Ok(message);
            }
        }
        if !moved && network.step().is_none() {
            return Ok(message);
        }
    }
}

fn is_closed(result: Result<impl Sized, LinkError>) -> bool {
    matches!(result, Err(LinkError::Closed { .. }))
}

fn is_failed(result: Result<impl Sized, LinkError>) -> bool {
    matches!(result, Err(LinkError::Failed { .. }))
}
