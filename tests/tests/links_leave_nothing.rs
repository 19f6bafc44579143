//! Links that were opened and closed leave no descriptor, thread or mapping behind. A program of
//! its own, since it counts what the whole process has.

use std::sync::mpsc;
use std::time::Instant;

use ringtree_tests::links::{self, MakePair, PATIENCE, Pair, World, wait_for};
use ringtree_transport::{Link, Tag};

/// Links of each transport.
const LINKS: usize = 2_000;

/// Opened before the first count, so that allocators and caches have taken what they keep.
const WARM_UP: usize = 100;

/// Mappings that an allocator may come to keep.
const MAPPINGS_TOLERANCE: usize = 32;

#[test]
fn thousands_of_links_leave_nothing_behind() {
    let (to_close, closing) = mpsc::channel::<(Link, Instant)>();
    let closer = std::thread::spawn(move || {
        for (link, deadline) in closing {
            link.close(deadline);
        }
    });
    for (name, make) in [("tcp", links::tcp as MakePair), ("shm", links::shm), ("sim", links::sim)]
    {
        let open_and_close = |count| {
            for _ in 0..count {
                let Pair { left, right, world } = talk(make());
                let deadline = Instant::now() + PATIENCE;
                to_close.send((right, deadline)).expect("the closer lives");
                left.close(deadline);
                assert!(Instant::now() < deadline, "{name}: closed only at the deadline");
                drop(world);
            }
        };
        open_and_close(WARM_UP);
        let before = Holdings::now();
        open_and_close(LINKS);
        wait_for(&World::Real, &format!("{name} to give back what it had: {before:?}"), || {
            let now = Holdings::now();
            (now.descriptors <= before.descriptors
                && now.threads <= before.threads
                && now.mappings <= before.mappings + MAPPINGS_TOLERANCE)
                .then_some(())
        });
    }
    drop(to_close);
    closer.join().expect("no panic");
}

/// Sends a message large enough for a slot.
fn talk(mut pair: Pair) -> Pair {
    static DATA: [u8; 20_000] = [3; 20_000];
    let tag = Tag { sequence: 0, digest: 1 };
    // SAFETY: the data is constant.
    unsafe { pair.left.post(0, tag, DATA.as_ptr(), DATA.len(), true) }.expect("open");
    let Pair { left, right, world } = &mut pair;
    wait_for(world, "the message", || {
        left.poll(0).expect("open");
        right.poll(0).expect("open");
        right.arrival(0).expect("open")
    });
    pair
}

/// What a process has.
#[derive(Debug)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    mappings: usize,
}

impl Holdings {
    fn now() -> Holdings {
        let entries = |path| std::fs::read_dir(path).expect("a process").count();
        let maps = std::fs::read_to_string("/proc/self/maps").expect("a process");
        Holdings {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            mappings: maps.lines().count(),
        }
    }
}
