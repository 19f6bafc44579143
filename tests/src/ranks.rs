//! Ranks that are threads of the test.

use ringtree::{Communicator, Transports};

/// Both transports between ranks of one host.
pub const TRANSPORTS: [Transports; 2] = [Transports::Shm, Transports::Tcp];

/// Runs `body` on each of `ranks` ranks, in a thread each, and returns what each gave. A rank that
/// panics drops its communicator, so that the others end, too.
pub fn on_ranks<R: Send>(
    ranks: u32,
    transports: Transports,
    body: impl Fn(&Communicator) -> R + Sync,
) -> Vec<R> {
    each(communicators(ranks, transports), |communicator| body(&communicator))
}

/// The communicators of `ranks` ranks of this process.
pub fn communicators(ranks: u32, transports: Transports) -> Vec<Communicator> {
    Communicator::in_process_with(ranks, |settings| settings.transports = transports)
        .expect("communicators of this process")
}

/// Runs `body` on each item, in a thread each, and returns what each gave.
pub fn each<T: Send, R: Send>(items: Vec<T>, body: impl Fn(T) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> =
            items.into_iter().map(|item| scope.spawn(move || body(item))).collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        let failed = results.iter().filter(|result| result.is_err()).count();
        assert_eq!(failed, 0, "ranks that panicked; see their messages above");
        results.into_iter().flatten().collect()
    })
}
