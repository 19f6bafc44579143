//! Ping-pong over a link between two threads, by shared memory and by TCP: one round trip an iteration.

use std::sync::atomic::{AtomicBool, Ordering};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ringtree_benches::{shm_pair, tcp_pair};
use ringtree_transport::{Link, Tag};

/// Waits for a message and releases it; false when `stop` is set instead.
fn receive(link: &mut Link, stop: &AtomicBool) -> bool {
    loop {
        while let Some(arrival) = link.arrival(0).expect("a link that works") {
            link.release(0, arrival.len).expect("a link that works");
            if arrival.last {
                return true;
            }
        }
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        link.poll(0).expect("a link that works");
        std::thread::yield_now();
    }
}

fn send(link: &mut Link, message: &[u8]) {
    // SAFETY: the message outlives the link in every benchmark, and nobody writes it.
    unsafe { link.post(0, Tag::default(), message.as_ptr(), message.len(), true) }
        .expect("a link that works");
    while link.sent_bytes(0) < link.posted_bytes(0) {
        link.poll(0).expect("a link that works");
    }
}

fn ping_pong(c: &mut Criterion) {
    over("shm ping-pong", shm_pair, c);
    over("tcp ping-pong", tcp_pair, c);
}

fn over(name: &str, pair: fn() -> (Link, Link), c: &mut Criterion) {
    let mut group = c.benchmark_group(name);
    for bytes in [8_usize, 1 << 10, 64 << 10] {
        let (mut ping, mut pong) = pair();
        let message = vec![0_u8; bytes];
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while receive(&mut pong, &stop) {
                    send(&mut pong, &message);
                }
            });
            group.bench_function(BenchmarkId::new("bytes", bytes), |b| {
                b.iter(|| {
                    send(&mut ping, &message);
                    receive(&mut ping, &stop)
                });
            });
            stop.store(true, Ordering::Relaxed);
        });
    }
    group.finish();
}

criterion_group!(benches, ping_pong);
criterion_main!(benches);
