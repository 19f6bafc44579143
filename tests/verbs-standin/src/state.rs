//! A queue pair's state, which its two threads share with the callers.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::completion::Completions;
use crate::ffi::{self, QPS_ERR, QPS_RTR, QPS_RTS, ScatterGather, WorkCompletion};
use crate::memory::Domain;

/// `IBV_QPS_RESET`.
pub(crate) const QPS_RESET: u32 = 0;
const WC_RDMA_WRITE: u32 = 1;
const WC_RECV_RDMA_WITH_IMM: u32 = 129;
const WC_WITH_IMM: u32 = 2;

/// See the file's description.
pub(crate) struct Shared {
    pub(crate) number: u32,
    /// Of its port.
    pub(crate) lid: u16,
    pub(crate) domain: Arc<Domain>,
    pub(crate) sent: Arc<Completions>,
    pub(crate) received: Arc<Completions>,
    pub(crate) capacity: ffi::QueuePairCapacity,
    pub(crate) signals_all: bool,
    /// Places of the send queue in use: they are so until somebody has taken a completion at or behind them.
    pub(crate) places: Arc<AtomicU32>,
    state: Mutex<State>,
    changed: Condvar,
}

pub(crate) struct State {
    /// `QPS_` and so on.
    pub(crate) at: u32,
    pub(crate) peer: Peer,
    pub(crate) sends: VecDeque<Request>,
    /// Requests that are complete without a completion, whose places the next one frees.
    unsignalled: u32,
    /// Numbers of the receives.
    pub(crate) receives: VecDeque<u64>,
    /// Connections of the two threads, which end with the queue pair.
    streams: [Option<UnixStream>; 2],
    /// It is being destroyed.
    is_over: bool,
}

/// What was set about the peer, and about how it is reached.
#[derive(Clone, Copy, Default)]
pub(crate) struct Peer {
    pub(crate) lid: u16,
    pub(crate) number: u32,
    /// Number of its first packet, and of the first one here.
    pub(crate) receive_packet: u32,
    pub(crate) send_packet: u32,
    /// What it may do here.
    pub(crate) access: u32,
    pub(crate) timeout: u8,
    pub(crate) retries: u8,
    pub(crate) not_ready_retries: u8,
    /// How soon it may ask again when this side is not ready, as InfiniBand's code.
    pub(crate) not_ready_timer: u8,
}

/// A write that was posted.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) pieces: Vec<ScatterGather>,
    /// What was copied when it was posted.
    pub(crate) inline: Option<Vec<u8>>,
    pub(crate) address: u64,
    pub(crate) key: u32,
    /// As it was given, in the network's order.
    pub(crate) immediate: Option<u32>,
    pub(crate) is_signalled: bool,
}

/// Which of the threads a connection is of.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Requester,
    Responder,
}

impl Shared {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        number: u32,
        lid: u16,
        domain: Arc<Domain>,
        sent: Arc<Completions>,
        received: Arc<Completions>,
        capacity: ffi::QueuePairCapacity,
        signals_all: bool,
    ) -> Shared {
        domain.users.fetch_add(1, SeqCst);
        sent.users.fetch_add(1, SeqCst);
        received.users.fetch_add(1, SeqCst);
        let state = State {
            at: QPS_RESET,
            peer: Peer::default(),
            sends: VecDeque::new(),
            unsignalled: 0,
            receives: VecDeque::new(),
            streams: [None, None],
            is_over: false,
        };
        let (places, changed) = (Arc::default(), Condvar::new());
        let state = Mutex::new(state);
        Shared {
            number,
            lid,
            domain,
            sent,
            received,
            capacity,
            signals_all,
            places,
            state,
            changed,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The threads look again.
    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    /// What is to be sent next, when there is something; `None` once the queue pair is over.
    pub(crate) fn next_request(&self) -> Option<(Request, Peer)> {
        let mut state = self.lock();
        loop {
            if state.is_over {
                return None;
            }
            if state.at == QPS_ERR {
                while !state.sends.is_empty() {
                    self.complete(&mut state, ffi::WC_WR_FLUSH_ERR);
                }
            }
            if let (QPS_RTS, Some(request)) = (state.at, state.sends.front()) {
                return Some((request.clone(), state.peer));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The first request is over. What fails ends the queue pair.
    pub(crate) fn finish_request(&self, status: u32) {
        let mut state = self.lock();
        let has_ended = state.at == QPS_ERR;
        // Whether it has arrived, nobody knows then.
        let status = if has_ended { ffi::WC_WR_FLUSH_ERR } else { status };
        self.complete(&mut state, status);
        if status != ffi::WC_SUCCESS {
            self.fail(&mut state);
        }
    }

    fn complete(&self, state: &mut State, status: u32) {
        let Some(request) = state.sends.pop_front() else { return };
        state.unsignalled += 1;
        if status == ffi::WC_SUCCESS && !request.is_signalled {
            return;
        }
        let freed = std::mem::take(&mut state.unsignalled);
        let completion = WorkCompletion {
            wr_id: request.id,
            status,
            opcode: WC_RDMA_WRITE,
            qp_num: self.number,
            ..WorkCompletion::default()
        };
        self.sent.add(completion, Some((self.places.clone(), freed)));
    }

    /// The peer has written `len_bytes` and tells of it, by the first of the receives.
    pub(crate) fn complete_receive(&self, state: &mut State, len_bytes: u32, immediate: u32) {
        let Some(id) = state.receives.pop_front() else { return };
        let completion = WorkCompletion {
            wr_id: id,
            status: ffi::WC_SUCCESS,
            opcode: WC_RECV_RDMA_WITH_IMM,
            byte_len: len_bytes,
            imm_data: immediate,
            wc_flags: WC_WITH_IMM,
            qp_num: self.number,
            src_qp: state.peer.number,
            ..WorkCompletion::default()
        };
        self.received.add(completion, None);
    }

    /// Ends what the queue pair does: receives are flushed here, sends by the requester.
    pub(crate) fn fail(&self, state: &mut State) {
        state.at = QPS_ERR;
        state.shut();
        while let Some(id) = state.receives.pop_front() {
            self.flush_receive(id);
        }
        self.wake();
    }

    /// A receive that nothing comes for any more.
    pub(crate) fn flush_receive(&self, id: u64) {
        let completion = WorkCompletion {
            wr_id: id,
            status: ffi::WC_WR_FLUSH_ERR,
            qp_num: self.number,
            ..WorkCompletion::default()
        };
        self.received.add(completion, None);
    }

    /// Has the threads end.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.is_over = true;
        state.shut();
        self.wake();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    /// Waits so long, while the queue pair may send. Returns whether it still may.
    pub(crate) fn pause(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.lock();
        while state.at == QPS_RTS && !state.is_over {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    /// Keeps a connection of one of the threads, so that it ends with the queue pair. Returns whether that has not
    /// ended already.
    pub(crate) fn keep(&self, side: Side, stream: &UnixStream) -> bool {
        let mut state = self.lock();
        let is_open = matches!(state.at, QPS_RTR | QPS_RTS) && !state.is_over;
        let Ok(stream) = stream.try_clone() else { return false };
        state.streams[side as usize] = Some(stream);
        is_open
    }
}

impl State {
    fn shut(&mut self) {
        for stream in self.streams.iter_mut().filter_map(Option::take) {
            // One that has ended at the other side cannot be ended again.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.domain.users.fetch_sub(1, SeqCst);
        self.sent.users.fetch_sub(1, SeqCst);
        self.received.users.fetch_sub(1, SeqCst);
    }
}
