//! The thread of a queue pair that does what the peer's asks for.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use crate::ffi::{ACCESS_REMOTE_WRITE, QPS_RTR, QPS_RTS};
use crate::state::{Shared, Side};
use crate::wire::{Answer, Hello, Message};

/// Runs until the listener is shut, when the queue pair is over.
pub(crate) fn run(shared: Arc<Shared>, listener: UnixListener) {
    loop {
        match listener.accept() {
            // That the connection ends is for the requester to know.
            Ok((stream, _)) if !shared.is_over() => drop(serve(&shared, stream)),
            Ok(_) => return,
            Err(error) => {
                if !shared.is_over() {
                    eprintln!("verbs stand-in: queue pair {}: {error}", shared.number);
                }
                return;
            }
        }
    }
}

/// Serves a connection until it ends.
fn serve(shared: &Shared, mut stream: UnixStream) -> io::Result<()> {
    if !shared.keep(Side::Responder, &stream) {
        return Ok(());
    }
    let hello = Hello::receive(&mut stream)?;
    let is_peer = {
        let state = shared.lock();
        let peer = &state.peer;
        let (lid, number, first_packet) = (peer.lid, peer.number, peer.receive_packet);
        hello == Hello { lid, number, first_packet } && matches!(state.at, QPS_RTR | QPS_RTS)
    };
    if !is_peer {
        // As if packets were dropped.
        return Answer::NoAccess.send(&mut stream);
    }
    Answer::Done.send(&mut stream)?;
    while let Some(answer) = take(shared, &Message::receive(&mut stream)?) {
        answer.send(&mut stream)?;
        if answer == Answer::NoAccess {
            // Both sides end.
            shared.fail(&mut shared.lock());
        }
    }
    Ok(())
}

/// Does what a message asks for, unless the queue pair has ended: then nothing is written any more.
fn take(shared: &Shared, message: &Message) -> Option<Answer> {
    let mut state = shared.lock();
    if !matches!(state.at, QPS_RTR | QPS_RTS) {
        return None;
    }
    let Message { address, key, immediate, payload } = message;
    if immediate.is_some() && state.receives.is_empty() {
        return Some(Answer::NotReady(state.peer.not_ready_timer));
    }
    if !payload.is_empty() {
        let may_write = state.peer.access & ACCESS_REMOTE_WRITE as u32 != 0;
        if !may_write || shared.domain.write(*key, *address, payload).is_err() {
            return Some(Answer::NoAccess);
        }
    }
    if let Some(immediate) = immediate {
        shared.complete_receive(&mut state, payload.len() as u32, *immediate);
    }
    Some(Answer::Done)
}
