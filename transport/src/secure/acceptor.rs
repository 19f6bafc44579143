//! Accepts connections, authenticates each on a short-lived thread, and hands it to a service.
//!
//! A stranger (a port scan, garbage, silence) costs one thread until the handshake's time limit
//! and disturbs nobody. Dropping the acceptor ends the handshakes under way and joins all threads.

use std::collections::HashMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, Backlog, Shutdown};
use tracing::{debug, warn};

use super::{Job, Purpose, SecureError, SecureStream, Socket, accept};

/// How long a connection may take to prove itself.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Handshakes in progress at once; further connections wait in the kernel's queue. More than the
/// ranks that dial at the same moment, so that a few silent strangers are not in their way.
const HANDSHAKES_LIMIT: usize = 256;

/// Rest after an accept that failed, for want of descriptors above all.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Enough for the handshake and for what services do, and little enough for hundreds of threads.
const STACK_BYTES: usize = 256 << 10;

/// What is done with connections that have proved themselves.
pub(crate) trait Service<S: Socket>: Send + Sync + 'static {
    /// Grants a connection, or denies it with a reason.
    fn judge(&self, purpose: Purpose, hello: &[u8]) -> Result<(), String>;

    /// Takes a granted connection over, on a thread of its own. Whoever drops the acceptor must
    /// first make all calls of this return.
    fn serve(&self, stream: SecureStream<S>, purpose: Purpose, hello: Vec<u8>);
}

/// A listening socket.
pub(crate) trait Listener: AsFd + Send + Sync + 'static {
    /// The sockets that it accepts.
    type Stream: Socket;

    /// Waits for the next connection.
    fn accept_one(&self) -> io::Result<Self::Stream>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    fn accept_one(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept()?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    fn accept_one(&self) -> io::Result<UnixStream> {
        Ok(self.accept()?.0)
    }
}

/// A listening socket with the threads that serve it.
pub(crate) struct Acceptor<L: Listener> {
    shared: Arc<Shared<L>>,
    thread: Option<JoinHandle<()>>,
    /// The process that has the threads. A forked child has copies of everything else.
    process: u32,
}

struct Shared<L: Listener> {
    listener: L,
    job: Job,
    state: Mutex<State<L::Stream>>,
    /// A handshake has ended, or the acceptor is stopping.
    changed: Condvar,
}

struct State<S> {
    stopping: bool,
    handshakes: HashMap<u64, Arc<S>>,
}

impl<L: Listener> Acceptor<L> {
    /// Starts to accept.
    pub(crate) fn start<V: Service<L::Stream>>(
        listener: L,
        job: Job,
        service: Arc<V>,
    ) -> io::Result<Acceptor<L>> {
        // The standard library's 128 are fewer than the ranks that may dial at once.
        socket::listen(&listener, Backlog::MAXCONN)?;
        let state = State { stopping: false, handshakes: HashMap::new() };
        let shared =
            Arc::new(Shared { listener, job, state: Mutex::new(state), changed: Condvar::new() });
        let thread = {
            let shared = shared.clone();
            spawn("ringtree-accept", move || accept_all(&shared, &service))?
        };
        Ok(Acceptor { shared, thread: Some(thread), process: std::process::id() })
    }

    /// Whether this is the process that started it, and not a forked child: a child must leave its
    /// parent's connections alone.
    pub(crate) fn is_own(&self) -> bool {
        self.process == std::process::id()
    }
}

impl<L: Listener> Drop for Acceptor<L> {
    fn drop(&mut self) {
        if !self.is_own() {
            // There is no such thread here to join or detach.
            std::mem::forget(self.thread.take());
            return;
        }
        {
            let mut state = self.shared.lock();
            state.stopping = true;
            state.handshakes.values().for_each(|socket| socket.sever());
        }
        self.shared.changed.notify_all();
        // On Linux this wakes the thread in accept(), which then gets an error.
        let _ = socket::shutdown(self.shared.listener.as_fd().as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic has been reported on its thread already.
            let _ = thread.join();
        }
    }
}

fn accept_all<L: Listener, V: Service<L::Stream>>(shared: &Arc<Shared<L>>, service: &Arc<V>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    let mut id = 0;
    while let Some(socket) = shared.next_connection() {
        threads.retain(|thread| !thread.is_finished());
        id += 1;
        let socket = Arc::new(socket);
        if !shared.begin_handshake(id, &socket) {
            break;
        }
        let (owned, service) = (shared.clone(), service.clone());
        match spawn("ringtree-serve", move || serve_one(&owned, &*service, id, socket)) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                warn!("a connection was dropped, since no thread could be started: {error}");
                shared.end_handshake(id);
            }
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn serve_one<L: Listener, V: Service<L::Stream>>(
    shared: &Shared<L>,
    service: &V,
    id: u64,
    socket: Arc<L::Stream>,
) {
    let deadline = Instant::now() + HANDSHAKE_LIMIT;
    let outcome = accept(socket, &shared.job, deadline, |p, hello| service.judge(p, hello));
    shared.end_handshake(id);
    match outcome {
        Ok((stream, purpose, hello)) => service.serve(stream, purpose, hello),
        Err(error @ (SecureError::Unproven { .. } | SecureError::Version { .. })) => {
            warn!("a connection was refused: {error}");
        }
        Err(error) => debug!("a connection was dropped: {error}"),
    }
}

impl<L: Listener> Shared<L> {
    /// Waits for the next connection; `None` when the acceptor stops.
    fn next_connection(&self) -> Option<L::Stream> {
        loop {
            let accepted = self.listener.accept_one();
            let state = self.lock();
            match accepted {
                _ if state.stopping => return None,
                Ok(socket) => return Some(socket),
                Err(error) => {
                    debug!("accepting a connection failed: {error}");
                    // Woken at once when the acceptor stops.
                    drop(self.changed.wait_timeout(state, ACCEPT_RETRY));
                }
            }
        }
    }

    /// Waits for room for one more handshake; `false` when the acceptor stops.
    fn begin_handshake(&self, id: u64, socket: &Arc<L::Stream>) -> bool {
        let mut state = self
            .changed
            .wait_while(self.lock(), |state| {
                !state.stopping && state.handshakes.len() >= HANDSHAKES_LIMIT
            })
            .unwrap_or_else(PoisonError::into_inner);
        if !state.stopping {
            state.handshakes.insert(id, socket.clone());
        }
        !state.stopping
    }

    fn end_handshake(&self, id: u64) {
        self.lock().handshakes.remove(&id);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<L::Stream>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(run)
}
