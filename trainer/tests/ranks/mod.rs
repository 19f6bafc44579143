//! Ranks as threads.

use std::thread;

use ringtree::Communicator;

/// Runs one thread a rank, and returns what each returns.
pub fn ranks<R: Send>(count: u32, job: impl Fn(Communicator) -> R + Sync) -> Vec<R> {
    let communicators = Communicator::in_process(count).expect("threads of one process");
    thread::scope(|scope| {
        let start = |communicator| scope.spawn(|| job(communicator));
        let threads: Vec<_> = communicators.into_iter().map(start).collect();
        let end = |thread: thread::ScopedJoinHandle<'_, R>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(end).collect()
    })
}
