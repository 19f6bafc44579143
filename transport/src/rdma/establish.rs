//! How two endpoints make a link: over an authenticated connection they exchange what their queue pairs and
//! landings are known by, connect them, and write once over each, so that a path that does not work is found
//! out before anything depends on it.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arena::{Arena, LANDING_BYTES, Place};
use super::control::Control;
use super::error::meaning_of;
use super::ffi::{self, ScatterGather, WorkCompletion};
use super::frame::HEADER_BYTES;
use super::link::{Parts, RdmaLink, Registered, Remote};
use super::memory::Keys;
use super::queue::{Queue, RECEIVES};
use super::queue_pair::{Endpoint, QueuePair, RECEIVES_AT_ONCE, Write};
use super::rails::{MAX_RAILS, gid_text};
use super::{MAX_QUEUES, Rdma, RdmaError};
use crate::fields::{Fields, put_bytes};
use crate::secure::{Limit, SecureError, SecureStream, random_bytes};
use crate::{LinkError, TransportKind};

/// How long the first write over a queue pair may take beyond its retries, and how long the rest of making a
/// link.
const SLACK: Duration = Duration::from_secs(2);
const REST_LIMIT: Duration = Duration::from_secs(6);

/// Longest message between the two.
const MESSAGE_LIMIT_BYTES: usize = 64 << 10;

/// Longest refusal.
const REASON_LIMIT_BYTES: usize = 1024;

/// What others must know of a rail to tell whether they can reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RailAddress {
    /// Ethernet, not InfiniBand.
    pub(crate) is_ethernet: bool,
}

/// Which rails of two ranks a link goes over: by their numbers on this side and on the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pairing(Vec<(usize, usize)>);

impl Pairing {
    /// The first with the first and so on, and again from the first where one side has fewer; each pair
    /// `queue_pairs` times. `None` where no two reach each other.
    pub(crate) fn of(
        own: &[RailAddress],
        theirs: &[RailAddress],
        queue_pairs: u32,
    ) -> Option<Pairing> {
        let count =
            if own.is_empty() || theirs.is_empty() { 0 } else { own.len().max(theirs.len()) };
        let pairs = (0..count).map(|at| (at % own.len(), at % theirs.len()));
        let pairs = pairs.filter(|&(a, b)| own[a].is_ethernet == theirs[b].is_ethernet);
        let once: Vec<(usize, usize)> = pairs.collect();
        // Round by round, so that where there are too many no port has more than one less than another.
        let rounds = (0..queue_pairs.max(1)).flat_map(|_| once.iter().copied());
        let pairs: Vec<(usize, usize)> = rounds.take(MAX_QUEUES).collect();
        (!pairs.is_empty()).then_some(Pairing(pairs))
    }
}

impl Rdma {
    /// How long a write may take until its retries are over. Devices may take up to four times what is set
    /// (InfiniBand Architecture Specification 1.4, section 9.7.6.1.3).
    fn trial_limit(&self) -> Duration {
        let unanswered = Duration::from_nanos(4096) * (1 << self.config.timeout.min(31));
        4 * unanswered * (u32::from(self.config.retries) + 1) + SLACK
    }

    /// How long making a link may take.
    pub(crate) fn link_limit(&self) -> Duration {
        self.trial_limit() + REST_LIMIT
    }

    /// What others must know of this rank's rails.
    pub(crate) fn addresses(&self) -> Vec<RailAddress> {
        self.rails.iter().map(|rail| RailAddress { is_ethernet: rail.is_ethernet }).collect()
    }
}

/// What one side tells the other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Proposal {
    landing: u64,
    keys: Keys,
    /// The queue pairs in the order of the pairing, and which of the side's devices each is on.
    queues: Vec<(Endpoint, u8)>,
}

impl RdmaLink {
    /// Makes a link of an authenticated connection to rank `peer`, whose other end does the same.
    ///
    /// # Errors
    /// [`LinkError::Failed`] with the reason: of this side, of the peer, or that no path between them works.
    pub fn establish(
        stream: SecureStream<TcpStream>,
        peer: u32,
        rdma: &Arc<Rdma>,
        deadline: Instant,
    ) -> Result<RdmaLink, LinkError> {
        RdmaLink::establish_within(stream, peer, rdma, &Limit::until(deadline))
    }

    /// As [`RdmaLink::establish`], until the deadline or the stop callback ends it.
    pub(crate) fn establish_within(
        mut stream: SecureStream<TcpStream>,
        peer: u32,
        rdma: &Arc<Rdma>,
        limit: &Limit<'_>,
    ) -> Result<RdmaLink, LinkError> {
        match make(&mut stream, peer, rdma, limit) {
            Ok(parts) => Ok(RdmaLink::new(peer, rdma.clone(), parts, Control::new(stream))),
            Err(failure) => {
                let (transport, reason) = (TransportKind::Rdma, failure.to_string());
                Err(LinkError::Failed { peer, transport, reason })
            }
        }
    }
}

/// Why a link was not made.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Own(#[from] RdmaError),
    #[error("the peer: {0}")]
    Theirs(String),
    #[error("the control connection: {0}")]
    Connection(#[from] SecureError),
    #[error("what the peer told of its queue pairs makes no sense")]
    Malformed,
    #[error(
        "no port reaches one of the peer's: {0}. `ringtree doctor rdma` on both hosts shows the ports and \
         their addresses"
    )]
    NoPath(String),
    #[error("{0}")]
    System(#[from] io::Error),
}

fn make(
    stream: &mut SecureStream<TcpStream>,
    peer: u32,
    rdma: &Arc<Rdma>,
    limit: &Limit<'_>,
) -> Result<Parts, Failure> {
    let pairing = pair(stream, rdma, limit)?;
    let made = prepare(rdma, &pairing);
    let answer = match &made {
        Ok((proposal, ..)) => proposal.encode(),
        Err(failure) => refusal(failure),
    };
    stream.send_within(&answer, limit)?;
    let theirs = Proposal::decode(&stream.receive_within(MESSAGE_LIMIT_BYTES, limit)?)?;
    let (_, pairs, landing, staging) = made?;
    if theirs.queues.len() != pairs.len() {
        return Err(Failure::Malformed);
    }
    let mut queues = Vec::new();
    let mut reasons = vec![None; pairs.len()];
    for (at, (pair, &(own, _))) in pairs.into_iter().zip(&pairing.0).enumerate() {
        let (endpoint, device) = theirs.queues[at];
        let mut rail = rdma.rails[own].clone();
        rail.mtu = rail.mtu.min(endpoint.mtu);
        if let Err(error) = pair.connect(&rail, &endpoint, &rdma.config) {
            let there = if endpoint.has_gid { gid_text(&endpoint.gid) } else { String::new() };
            reasons[at] = Some(format!("no way to the peer's address {there}: {error}"));
        }
        queues.push(Queue::new(pair, rail, usize::from(device)));
    }
    agree(stream, &mut reasons, limit)?;
    let remote = Remote { address: theirs.landing, keys: theirs.keys };
    let trial = limit.at_most(rdma.trial_limit());
    try_out(&mut queues, &mut reasons, &staging, &remote, &trial);
    agree(stream, &mut reasons, limit)?;
    let mut bad = Vec::new();
    let mut is_good = reasons.iter().map(Option::is_none);
    for (queue, reason) in queues.iter().zip(&reasons) {
        if let Some(reason) = reason {
            let (device, port) = (queue.rail.device.name(), queue.rail.port);
            bad.push(format!("{device}:{port}: {reason}"));
        }
    }
    queues.retain(|_| is_good.next() == Some(true));
    if queues.is_empty() {
        bad.dedup();
        return Err(Failure::NoPath(bad.join("; ")));
    }
    for reason in bad {
        tracing::warn!("RDMA to rank {peer} goes without one of its paths: {reason}");
    }
    let mut rails: Vec<String> = queues.iter().map(|queue| queue.rail.to_string()).collect();
    rails.sort_unstable();
    rails.dedup();
    tracing::info!(
        "RDMA to rank {peer} over {}, queue pairs in all: {}",
        rails.join(", "),
        queues.len()
    );
    Ok(Parts { queues, landing, staging, remote })
}

/// Tells the other side of the rails of this one, and pairs them with those that it tells of.
fn pair(
    stream: &mut SecureStream<TcpStream>,
    rdma: &Rdma,
    limit: &Limit<'_>,
) -> Result<Pairing, Failure> {
    let own = rdma.addresses();
    let queue_pairs = rdma.config.queue_pairs.clamp(1, MAX_QUEUES as u32);
    let mut message = vec![queue_pairs as u8];
    message.extend(own.iter().map(|rail| u8::from(rail.is_ethernet)));
    stream.send_within(&message, limit)?;
    let answer = stream.receive_within(MESSAGE_LIMIT_BYTES, limit)?;
    let (&most, rails) = answer.split_first().ok_or(Failure::Malformed)?;
    let theirs: Vec<RailAddress> =
        rails.iter().map(|rail| RailAddress { is_ethernet: *rail == 1 }).collect();
    let pairing = Pairing::of(&own, &theirs, queue_pairs.max(most.into()));
    pairing.ok_or_else(|| Failure::NoPath("one side has InfiniBand, the other Ethernet".into()))
}

type Prepared = (Proposal, Vec<QueuePair>, Registered, Registered);

/// The memory and the queue pairs of this side, which are ready to receive.
fn prepare(rdma: &Rdma, pairing: &Pairing) -> Result<Prepared, Failure> {
    let landing = Registered::new(Arena::landing()?, rdma, true)?;
    let staging = Registered::new(Arena::staging()?, rdma, false)?;
    let (mut pairs, mut queues) = (Vec::new(), Vec::new());
    for &(own, _) in &pairing.0 {
        let rail = &rdma.rails[own];
        let first_packet = u32::from_le_bytes(random_bytes()?);
        let mut pair = QueuePair::new(rail, first_packet)?;
        for _ in 0..RECEIVES / RECEIVES_AT_ONCE {
            pair.post_receives(RECEIVES_AT_ONCE)
                .map_err(|error| rail.device.failed("ibv_post_recv", error))?;
        }
        queues.push((pair.endpoint(rail), rail.device_index as u8));
        pairs.push(pair);
    }
    let proposal = Proposal { landing: landing.arena.start() as u64, keys: landing.keys, queues };
    Ok((proposal, pairs, landing, staging))
}

/// Tells the other side which queue pairs do not work here, and adds what it tells of those that do not work
/// there.
fn agree(
    stream: &mut SecureStream<TcpStream>,
    reasons: &mut [Option<String>],
    limit: &Limit<'_>,
) -> Result<(), Failure> {
    let mut message = Vec::new();
    for reason in reasons.iter() {
        let reason = reason.as_deref().unwrap_or_default();
        put_bytes(&mut message, shortened(reason).as_bytes());
    }
    stream.send_within(&message, limit)?;
    let answer = stream.receive_within(MESSAGE_LIMIT_BYTES, limit)?;
    let mut fields = Fields::new(&answer);
    for reason in reasons {
        let theirs = fields.text(REASON_LIMIT_BYTES).ok_or(Failure::Malformed)?;
        if !theirs.is_empty() && reason.is_none() {
            *reason = Some(format!("at the peer: {theirs}"));
        }
    }
    fields.end().ok_or(Failure::Malformed)
}

/// Writes a header's worth of zeros to each landing, and waits until that is acknowledged.
fn try_out(
    queues: &mut [Queue],
    reasons: &mut [Option<String>],
    staging: &Registered,
    remote: &Remote,
    limit: &Limit<'_>,
) {
    let place = Place::Line(0);
    let is_open: Vec<bool> = reasons.iter().map(Option::is_none).collect();
    for (at, queue) in queues.iter_mut().enumerate().filter(|(at, _)| is_open[*at]) {
        let mut pieces = [ScatterGather {
            addr: staging.arena.start() as u64 + place.offset() as u64,
            length: HEADER_BYTES as u32,
            lkey: staging.keys[queue.device()],
        }];
        let write = Write {
            id: 0,
            pieces: &mut pieces,
            remote_address: remote.address + place.offset() as u64,
            remote_key: remote.keys[queue.peer_device],
            immediate: None,
            signalled: true,
            is_readable: true,
        };
        // SAFETY: the line lies in the staging arena, which is registered, and stays as it is meanwhile.
        if let Err(error) = unsafe { queue.pair.write(write) } {
            reasons[at] = Some(format!("ibv_post_send: {error}"));
        }
    }
    for (at, queue) in queues.iter_mut().enumerate().filter(|(at, _)| is_open[*at]) {
        if reasons[at].is_none() {
            reasons[at] = outcome(queue, limit).err();
        }
    }
}

/// Waits for the completion of the only work request.
fn outcome(queue: &mut Queue, limit: &Limit<'_>) -> Result<(), String> {
    let mut completion = [WorkCompletion::default()];
    loop {
        match queue.pair.poll(&mut completion) {
            Ok(0) => match limit.slice() {
                Ok(_) => std::thread::yield_now(),
                Err(_) => return Err("nothing is acknowledged".into()),
            },
            Ok(_) if completion[0].status == ffi::WC_SUCCESS => return Ok(()),
            Ok(_) => return Err(meaning_of(completion[0].status).into()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

const PROPOSAL: u8 = 1;
const REFUSAL: u8 = 2;

fn refusal(failure: &Failure) -> Vec<u8> {
    let mut message = vec![REFUSAL];
    put_bytes(&mut message, shortened(&failure.to_string()).as_bytes());
    message
}

/// At most so much of a text as the other side reads.
fn shortened(text: &str) -> &str {
    let end =
        (0..=text.len().min(REASON_LIMIT_BYTES)).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

impl Proposal {
    fn encode(&self) -> Vec<u8> {
        let mut message = vec![PROPOSAL];
        message.extend_from_slice(&self.landing.to_le_bytes());
        self.keys.iter().for_each(|key| message.extend_from_slice(&key.to_le_bytes()));
        message.push(self.queues.len() as u8);
        for (endpoint, device) in &self.queues {
            message.extend_from_slice(&endpoint.number.to_le_bytes());
            message.extend_from_slice(&endpoint.first_packet.to_le_bytes());
            message.extend_from_slice(&endpoint.gid);
            message.extend_from_slice(&endpoint.lid.to_le_bytes());
            message.extend_from_slice(&[endpoint.has_gid.into(), endpoint.mtu, *device]);
        }
        message
    }

    fn decode(message: &[u8]) -> Result<Proposal, Failure> {
        let mut fields = Fields::new(message);
        match fields.u8() {
            Some(PROPOSAL) => Proposal::decode_fields(fields).ok_or(Failure::Malformed),
            Some(REFUSAL) => match fields.text(REASON_LIMIT_BYTES) {
                Some(reason) => Err(Failure::Theirs(reason)),
                None => Err(Failure::Malformed),
            },
            _ => Err(Failure::Malformed),
        }
    }

    fn decode_fields(mut fields: Fields<'_>) -> Option<Proposal> {
        let landing = fields.u64()?;
        landing.checked_add(LANDING_BYTES as u64)?;
        let mut keys = [0; MAX_RAILS];
        for key in &mut keys {
            *key = fields.u32()?;
        }
        let count = usize::from(fields.u8()?);
        let mut queue = || {
            let (number, first_packet) = (fields.u32()?, fields.u32()?);
            let mut gid = [0; 16];
            gid[..8].copy_from_slice(&fields.u64()?.to_le_bytes());
            gid[8..].copy_from_slice(&fields.u64()?.to_le_bytes());
            let (lid, has_gid, mtu) = (fields.u16()?, fields.u8()? != 0, fields.u8()?);
            let endpoint = Endpoint { number, first_packet, gid, has_gid, lid, mtu };
            let device = fields.u8().filter(|device| usize::from(*device) < MAX_RAILS)?;
            (1..=5).contains(&mtu).then_some((endpoint, device))
        };
        let queues = (0..count).map(|_| queue()).collect::<Option<Vec<_>>>()?;
        fields.end()?;
        (count <= MAX_QUEUES).then_some(Proposal { landing, keys, queues })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rails_are_paired_alike_from_both_sides() {
        let ethernet = RailAddress { is_ethernet: true };
        let infiniband = RailAddress { is_ethernet: false };
        let pairs_of = |a: &[RailAddress], b: &[RailAddress], count| {
            Pairing::of(a, b, count).map(|pairing| pairing.0).unwrap_or_default()
        };
        for (own, theirs, pairs) in [
            (&[ethernet][..], &[ethernet][..], vec![(0, 0)]),
            (&[ethernet; 2], &[ethernet], vec![(0, 0), (1, 0)]),
            (&[infiniband; 2], &[infiniband; 3], vec![(0, 0), (1, 1), (0, 2)]),
            (&[ethernet, infiniband], &[infiniband, infiniband], vec![(1, 1)]),
            (&[ethernet], &[infiniband], vec![]),
            (&[ethernet], &[], vec![]),
        ] {
            assert_eq!(pairs_of(own, theirs, 1), pairs);
            let swapped = pairs_of(theirs, own, 1).into_iter().map(|(a, b)| (b, a));
            assert_eq!(swapped.collect::<Vec<_>>(), pairs);
        }
        assert_eq!(pairs_of(&[ethernet], &[ethernet; 2], 2), [(0, 0), (0, 1), (0, 0), (0, 1)]);
        assert_eq!(pairs_of(&[ethernet; 8], &[ethernet; 8], 5).len(), MAX_QUEUES);
    }

    fn example() -> Proposal {
        let endpoint = Endpoint {
            number: 17,
            first_packet: 0xabcdef,
            gid: std::array::from_fn(|at| at as u8),
            has_gid: true,
            lid: 0x1234,
            mtu: 5,
        };
        let keys = std::array::from_fn(|at| at as u32 + 1);
        Proposal { landing: 1 << 40, keys, queues: vec![(endpoint, 0), (endpoint, 1)] }
    }

    #[test]
    fn a_proposal_survives_the_wire_and_garbage_is_refused() {
        let bytes = example().encode();
        assert_eq!(Proposal::decode(&bytes).unwrap(), example());
        for end in 0..bytes.len() {
            assert!(matches!(Proposal::decode(&bytes[..end]), Err(Failure::Malformed)), "{end}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(Proposal::decode(&longer), Err(Failure::Malformed)));
        let last_device = bytes.len() - 1;
        for (at, value) in [(0, 3), (last_device, MAX_RAILS as u8), (last_device - 1, 6)] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            assert!(matches!(Proposal::decode(&damaged), Err(Failure::Malformed)), "byte {at}");
        }
    }

    #[test]
    fn a_refusal_tells_its_reason() {
        let failure = Failure::Own(RdmaError::Off);
        let error = Proposal::decode(&refusal(&failure)).unwrap_err();
        assert!(
            error.to_string().starts_with("the peer: RINGTREE_RDMA_DEVICES is none"),
            "{error}"
        );
        let long = "ä".repeat(REASON_LIMIT_BYTES);
        assert_eq!(shortened(&long).len(), REASON_LIMIT_BYTES);
    }
}
