//! Accepts connections, authenticates each on a short-lived thread, and hands it to a service.
//!
//! A stranger (garbage, silence, a wrong secret) costs one thread for a while and disturbs nobody; one that has gone or
//! spoken something else by the time it is accepted does not even cost that.
//! `handshakes.rs` says how many threads there are at most. Dropping the acceptor ends the handshakes under way
//! and joins all threads.

use std::fmt::Display;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, Backlog, Shutdown};
use tracing::{debug, warn};

use super::handshakes::{OF_PROCESS, Place};
use super::socket::is_lost;
use super::{Job, MAGIC, Purpose, SecureError, SecureStream, Socket, accept};
use crate::limits::described;

/// How long a connection may take to prove itself.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// One line of the log for all that goes wrong in so long: strangers may come very often.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

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
    stopping: Arc<AtomicBool>,
    warnings: Mutex<Warnings>,
}

/// What the log has been told.
#[derive(Default)]
struct Warnings {
    last: Option<Instant>,
    untold: u64,
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
        let shared = Arc::new(Shared {
            listener,
            job,
            stopping: Arc::new(AtomicBool::new(false)),
            warnings: Mutex::default(),
        });
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
        OF_PROCESS.stop(&self.shared.stopping);
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
    while let Some(socket) = shared.next_connection() {
        threads.retain(|thread| !thread.is_finished());
        if is_lost(&socket, MAGIC) {
            debug!(
                "a connection was dropped: {} does not speak Ringtree's protocol",
                socket.peer_name()
            );
            continue;
        }
        let socket = Arc::new(socket);
        let Some(place) = OF_PROCESS.begin(&socket, &shared.stopping) else { break };
        let (owned, service) = (shared.clone(), service.clone());
        match spawn("ringtree-serve", move || serve_one(&owned, &*service, place, socket)) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                shared.warn_of("a connection was dropped, since it got no thread", &error);
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
    place: Place,
    socket: Arc<L::Stream>,
) {
    let deadline = Instant::now() + HANDSHAKE_LIMIT;
    let outcome = accept(socket, &shared.job, deadline, |purpose, hello| {
        // Nobody hears the reason: the connection has been shut down.
        let in_time = place.prove().then_some(()).ok_or("it took too long to prove itself");
        in_time.map_err(str::to_owned).and_then(|()| service.judge(purpose, hello))
    });
    drop(place);
    match outcome {
        Ok((stream, purpose, hello)) => service.serve(stream, purpose, hello),
        Err(error @ (SecureError::Unproven { .. } | SecureError::Version { .. })) => {
            shared.warn_of("a connection was refused", &error);
        }
        Err(error) => debug!("a connection was dropped: {error}"),
    }
}

impl<L: Listener> Shared<L> {
    /// Waits for the next connection; `None` when the acceptor stops.
    fn next_connection(&self) -> Option<L::Stream> {
        loop {
            let accepted = self.listener.accept_one();
            if self.stopping.load(Ordering::Relaxed) {
                return None;
            }
            match accepted {
                Ok(socket) => return Some(socket),
                Err(error) => {
                    self.warn_of("no connection can be accepted", &described(&error));
                    thread::sleep(ACCEPT_RETRY);
                }
            }
        }
    }

    /// Tells of what went wrong, once in a while with how often something did meanwhile.
    fn warn_of(&self, what: &str, error: &dyn Display) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if warnings.last.is_some_and(|last| last.elapsed() < WARNING_INTERVAL) {
            warnings.untold += 1;
            return;
        }
        match warnings.untold {
            0 => warn!("{what}: {error}"),
            untold => warn!("{what} (and {untold} warnings before it were left out): {error}"),
        }
        *warnings = Warnings { last: Some(Instant::now()), untold: 0 };
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(run)
}
