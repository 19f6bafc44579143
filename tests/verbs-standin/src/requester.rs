//! The thread of a queue pair that carries out what was posted, one request after the other.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ffi;
use crate::state::{Peer, Request, Shared, Side};
use crate::wire::{self, Answer, Hello, Message};

const WC_LOC_PROT_ERR: u32 = 4;
const WC_REM_ACCESS_ERR: u32 = 10;
const WC_RETRY_EXC_ERR: u32 = 12;
const WC_RNR_RETRY_EXC_ERR: u32 = 13;

/// Retries of this number never end.
const FOR_EVER: u8 = 7;

/// Between attempts to reach a peer that is not there.
const PAUSE: Duration = Duration::from_millis(2);

/// Runs until the queue pair is over.
pub(crate) fn run(shared: Arc<Shared>) {
    let mut connection = None;
    while let Some((request, peer)) = shared.next_request() {
        let status = carry_out(&shared, request, &peer, &mut connection);
        shared.finish_request(status);
    }
}

/// Carries out a write. Returns its status.
fn carry_out(
    shared: &Shared,
    request: Request,
    peer: &Peer,
    connection: &mut Option<UnixStream>,
) -> u32 {
    let Request { pieces, inline, address, key, immediate, .. } = request;
    let payload = match inline {
        Some(bytes) => bytes,
        None => {
            let mut bytes = Vec::new();
            if pieces.iter().any(|piece| shared.domain.read(piece, &mut bytes).is_err()) {
                return WC_LOC_PROT_ERR;
            }
            bytes
        }
    };
    let message = Message { address, key, immediate, payload };
    let (mut not_ready, mut unanswered_since) = (0, None);
    loop {
        let answer = connected(shared, peer, connection).and_then(|stream| {
            message.send(stream)?;
            Answer::receive(stream)
        });
        match answer {
            Ok(Answer::Done) => return ffi::WC_SUCCESS,
            Ok(Answer::NoAccess) => return WC_REM_ACCESS_ERR,
            Ok(Answer::NotReady(code)) => {
                if not_ready >= peer.not_ready_retries && peer.not_ready_retries != FOR_EVER {
                    return WC_RNR_RETRY_EXC_ERR;
                }
                not_ready += 1;
                if !shared.pause(not_ready_time(code)) {
                    return ffi::WC_WR_FLUSH_ERR;
                }
            }
            // Nobody answers there: a packet is sent again until the retries are over.
            Err(_) => {
                *connection = None;
                let since = *unanswered_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= unanswered_time(peer) {
                    return WC_RETRY_EXC_ERR;
                }
                if !shared.pause(PAUSE) {
                    return ffi::WC_WR_FLUSH_ERR;
                }
            }
        }
    }
}

/// The connection to the peer, made if there is none.
fn connected<'a>(
    shared: &Shared,
    peer: &Peer,
    connection: &'a mut Option<UnixStream>,
) -> io::Result<&'a mut UnixStream> {
    if connection.is_none() {
        let mut stream = wire::connect(peer.lid, peer.number)?;
        if !shared.keep(Side::Requester, &stream) {
            return Err(io::Error::other("the queue pair has ended"));
        }
        let first_packet = peer.send_packet;
        Hello { lid: shared.lid, number: shared.number, first_packet }.send(&mut stream)?;
        if Answer::receive(&mut stream)? != Answer::Done {
            return Err(io::Error::other("the peer is not connected to this queue pair"));
        }
        *connection = Some(stream);
    }
    connection.as_mut().ok_or_else(|| io::Error::other("no connection"))
}

/// How long a packet stays without an answer until its retries are over.
fn unanswered_time(peer: &Peer) -> Duration {
    Duration::from_nanos(4096) * (1 << peer.timeout) * (u32::from(peer.retries) + 1)
}

/// What a code of "not ready" stands for: InfiniBand Architecture Specification 1.4, table 45.
fn not_ready_time(code: u8) -> Duration {
    const HUNDREDTHS_OF_MS: [u64; 32] = [
        65_536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1_024,
        1_536, 2_048, 3_072, 4_096, 6_144, 8_192, 12_288, 16_384, 24_576, 32_768, 49_152,
    ];
    Duration::from_micros(10 * HUNDREDTHS_OF_MS[usize::from(code & 31)])
}
