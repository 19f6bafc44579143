//! What others see of a kernel's stores, and when: a fence that is missing must show, and one that is
//! there must hold.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::{BASE, DeviceMemory, launch, module};
use crate::ptx::random::Random;
use crate::ptx::store_buffer::{Store, StoreBuffer};
use crate::ptx::{Access, Launch, Memory, Module, access};

const DATA: usize = 0;
const FLAG: usize = 64;
const SEEN: usize = 128;

const DECLARATIONS: &str = "
    .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .pred %p<9>;
    ld.param.u64 %d1, [memory];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    setp.ne.u32 %p1, %r1, 0;
    setp.ne.u32 %p2, %r2, 0;
    mul.wide.u32 %d2, %r1, 4; add.u64 %d2, %d1, %d2;";

/// Block 0 writes with `writer`; block 1 waits for the flag, then stores 1 for each word of data that it
/// has not seen.
fn message_passing(writer: &str, threads: u32) -> Module {
    let body = format!(
        "{DECLARATIONS}
        @%p2 bra $reader;
        {writer}
        ret;
        $reader:
        ld.acquire.gpu.global.u32 %r3, [%d1+{FLAG}]; setp.eq.u32 %p3, %r3, 0; @%p3 bra $reader;
        ld.global.u32 %r4, [%d2]; setp.eq.u32 %p4, %r4, 0;
        @%p4 red.global.add.u32 [%d1+{SEEN}], 1;"
    );
    assert!(threads <= 16);
    module(&["memory"], &body)
}

/// In how many of so many schedules the reader missed data.
fn violations(writer: &str, threads: u32, seeds: u64) -> usize {
    let module = message_passing(writer, threads);
    let is_violated = |seed: &u64| {
        let memory = DeviceMemory::new(192);
        launch(&module, &[BASE], [2, threads], &memory, *seed).unwrap();
        for word in 0..threads as usize {
            assert_eq!(memory.half_word(DATA + 4 * word), 5, "all stores arrive in the end");
        }
        memory.half_word(SEEN) > 0
    };
    (0..seeds).filter(is_violated).count()
}

#[test]
fn a_flag_without_a_fence_overtakes_its_data() {
    for (data, flag) in [
        ("st.global.u32", "st.global.u32"),
        ("st.global.u32", "st.volatile.global.u32"),
        ("st.global.u32", "st.relaxed.sys.global.u32"),
        ("st.volatile.global.u32", "st.relaxed.sys.global.u32"),
        // Wrong scope: the reader is in another block.
        ("st.global.u32", "st.release.cta.global.u32"),
        ("st.global.u32", "membar.cta; st.volatile.global.u32"),
    ] {
        let writer = format!("{data} [%d2], 5; {flag} [%d1+{FLAG}], 1;");
        let seen = violations(&writer, 1, 100);
        assert!(seen >= 95, "{data}, {flag}: noticed for {seen} of 100 seeds");
    }
    // An atomic is at work at once.
    let writer = format!("st.global.u32 [%d2], 5; red.global.add.u32 [%d1+{FLAG}], 1;");
    assert!(violations(&writer, 1, 100) >= 95);
    let writer =
        format!("st.global.u32 [%d2], 5; atom.acquire.gpu.global.exch.b32 %r3, [%d1+{FLAG}], 1;");
    assert!(violations(&writer, 1, 100) >= 95);
}

#[test]
fn a_fence_holds() {
    for release in [
        "membar.gl; st.global.u32",
        "membar.sys; st.volatile.global.u32",
        "fence.acq_rel.gpu; st.relaxed.gpu.global.u32",
        "fence.sc.sys; st.relaxed.sys.global.u32",
        "st.release.gpu.global.u32",
        "st.release.sys.global.u32",
    ] {
        let writer = format!("st.global.u32 [%d2], 5; {release} [%d1+{FLAG}], 1;");
        assert_eq!(violations(&writer, 1, 1000), 0, "{release}");
    }
    for release in ["red.release.gpu.global.add.u32", "red.release.sys.global.or.b32"] {
        let writer = format!("st.global.u32 [%d2], 5; {release} [%d1+{FLAG}], 1;");
        assert_eq!(violations(&writer, 1, 1000), 0, "{release}");
    }
    let writer = format!("st.u32 [%d2], 5; atom.acq_rel.gpu.global.add.u32 %r3, [%d1+{FLAG}], 1;");
    assert_eq!(violations(&writer, 1, 1000), 0);
}

#[test]
fn a_fence_behind_a_barrier_covers_the_whole_block() {
    let flag = format!("@%p1 ret; membar.gl; st.volatile.global.u32 [%d1+{FLAG}], 1;");
    let data = "st.global.u32 [%d2], 5;";
    assert_eq!(violations(&format!("{data} bar.sync 0; {flag}"), 8, 1000), 0);
    assert_eq!(violations(&format!("{data} bar.warp.sync 0xFF; {flag}"), 8, 1000), 0);
    let release = format!("@%p1 ret; st.release.sys.global.u32 [%d1+{FLAG}], 1;");
    assert_eq!(violations(&format!("{data} bar.sync 0; {release}"), 8, 1000), 0);
    let without = violations(&format!("{data} {flag}"), 8, 100);
    assert!(without >= 95, "noticed for {without} of 100 seeds that the barrier is missing");
    let unfenced = format!("@%p1 ret; st.volatile.global.u32 [%d1+{FLAG}], 1;");
    let without = violations(&format!("{data} bar.sync 0; {unfenced}"), 8, 100);
    assert!(without >= 95, "noticed for {without} of 100 seeds that the fence is missing");
}

#[test]
fn a_barrier_makes_stores_visible_in_the_block_alone() {
    // Each thread stores, all meet, each reads what its neighbour stored, twice over.
    let body = format!(
        "{DECLARATIONS}
        xor.b32 %r3, %r1, 7; mul.wide.u32 %d3, %r3, 4; add.u64 %d3, %d1, %d3;
        mov.u32 %r5, 1;
        $round:
        mad.lo.u32 %r4, %r5, 100, %r1; st.global.u32 [%d2], %r4;
        bar.sync 0;
        ld.global.u32 %r6, [%d3];
        mad.lo.u32 %r7, %r5, 100, %r3; setp.ne.u32 %p3, %r6, %r7;
        @%p3 red.global.add.u32 [%d1+{SEEN}], 1;
        bar.sync 0;
        add.u32 %r5, %r5, 1; setp.lt.u32 %p4, %r5, 5; @%p4 bra $round;"
    );
    let missed = |body: &str, seed: u64| {
        let memory = DeviceMemory::new(192);
        launch(&module(&["memory"], body), &[BASE], [1, 8], &memory, seed).unwrap();
        for thread in 0..8 {
            assert_eq!(memory.half_word(4 * thread), 400 + thread as u32, "the last store wins");
        }
        memory.half_word(SEEN) > 0
    };
    assert_eq!((0..300).filter(|seed| missed(&body, *seed)).count(), 0);
    let without = body.replace("bar.sync 0;", "");
    assert!((0..100).filter(|seed| missed(&without, *seed)).count() >= 95);
}

#[test]
fn an_observer_on_the_host_sees_the_flag_first() {
    let kernel = |fence: &str| {
        let stores =
            format!("st.global.u32 [%d1], 5; {fence} st.volatile.global.u32 [%d1+{FLAG}], 1;");
        // What comes behind is a wait for the observer's answer.
        let wait = format!(
            "$wait: ld.acquire.sys.u32 %r3, [%d1+{SEEN}]; setp.eq.u32 %p3, %r3, 0; @%p3 bra $wait;"
        );
        module(&["memory"], &format!("{DECLARATIONS} {stores} {wait}"))
    };
    let (unfenced, fenced) = (kernel(""), kernel("membar.sys;"));
    let is_violated = |module: &Module, seed: u64| {
        let memory = DeviceMemory::new(192);
        let violated = Cell::new(false);
        let look = || {
            if memory.half_word(FLAG) == 1 && memory.half_word(SEEN) == 0 {
                violated.set(memory.half_word(DATA) == 0);
                memory.set_half_word(SEEN, 1);
            }
            false
        };
        Launch {
            entry: &module.entry("test").unwrap(),
            parameters: &BASE.to_le_bytes(),
            variables: &[],
            grid: [1, 1, 1],
            block: [1, 1, 1],
            dynamic_shared_bytes: 0,
            memory: &memory,
            seed,
            stop: &look,
        }
        .run()
        .unwrap();
        violated.get()
    };
    assert!((0..100).filter(|seed| is_violated(&unfenced, *seed)).count() >= 95);
    assert_eq!((0..1000).filter(|seed| is_violated(&fenced, *seed)).count(), 0);
}

#[test]
fn a_kernel_that_ends_behind_its_flag_shows_it_first() {
    let body =
        format!("{DECLARATIONS} st.global.u32 [%d1], 5; st.volatile.global.u32 [%d1+{FLAG}], 1;");
    let module = module(&["memory"], &body);
    let is_violated = |seed: &u64| {
        let memory = DeviceMemory::new(192);
        let violated = Cell::new(false);
        let look = || {
            violated
                .set(violated.get() | (memory.half_word(FLAG) == 1 && memory.half_word(DATA) == 0));
            false
        };
        Launch {
            entry: &module.entry("test").unwrap(),
            parameters: &BASE.to_le_bytes(),
            variables: &[],
            grid: [1, 1, 1],
            block: [1, 1, 1],
            dynamic_shared_bytes: 0,
            memory: &memory,
            seed: *seed,
            stop: &look,
        }
        .run()
        .unwrap();
        assert_eq!((memory.half_word(DATA), memory.half_word(FLAG)), (5, 1));
        violated.get()
    };
    assert!((0..100).filter(is_violated).count() >= 95);
}

#[test]
fn messages_between_launches_hold_with_fences() {
    // Two launches on two threads of the host pass a counter to and fro, with data beside it.
    let side = |own: usize, other: usize| {
        let body = format!(
            "{DECLARATIONS}
            mov.u32 %r3, 0;
            $round: add.u32 %r3, %r3, 1;
            st.global.u32 [%d1+{own}], %r3; st.global.v2.u32 [%d1+{}], {{%r3, %r3}};
            fence.acq_rel.sys; st.relaxed.sys.u32 [%d1+{}], %r3;
            $wait: ld.acquire.sys.u32 %r4, [%d1+{}]; setp.lt.u32 %p3, %r4, %r3; @%p3 bra $wait;
            ld.global.u32 %r5, [%d1+{other}]; ld.global.u32 %r6, [%d1+{}];
            setp.lt.u32 %p4, %r5, %r3; setp.lt.or.u32 %p4, %r6, %r3, %p4;
            @%p4 red.global.add.u32 [%d1+{SEEN}], 1;
            setp.lt.u32 %p5, %r3, 100; @%p5 bra $round;",
            own + 8,
            own + 16,
            other + 16,
            other + 12
        );
        module(&["memory"], &body)
    };
    let (left, right) = (side(0, 32), side(32, 0));
    let memory = DeviceMemory::new(192);
    thread::scope(|scope| {
        let launched = scope.spawn(|| launch(&left, &[BASE], [1, 1], &memory, 1));
        launch(&right, &[BASE], [1, 1], &memory, 2).unwrap();
        launched.join().unwrap().unwrap();
    });
    assert_eq!(memory.half_word(SEEN), 0);
}

#[test]
fn eight_bytes_are_seen_whole() {
    // Data and flag in one word, as low-latency protocols have them; no fence is needed.
    let body = format!(
        "{DECLARATIONS}
        mov.u32 %r3, 0;
        $round: add.u32 %r3, %r3, 1;
        st.volatile.global.v2.u32 [%d1], {{%r3, %r3}};
        st.volatile.global.v4.u32 [%d1+16], {{%r3, %r3, %r3, %r3}};
        setp.lt.u32 %p5, %r3, 3000; @%p5 bra $round;"
    );
    let module = module(&["memory"], &body);
    let memory = DeviceMemory::new(192);
    let has_ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            launch(&module, &[BASE], [1, 1], &memory, 1).unwrap();
            has_ended.store(true, Ordering::SeqCst);
        });
        while !has_ended.load(Ordering::SeqCst) {
            for offset_bytes in [0, 16, 24] {
                let word = memory.word(offset_bytes);
                assert_eq!(word as u32, (word >> 32) as u32);
            }
        }
    });
    assert_eq!(memory.word(24), 3000 << 32 | 3000);
}

#[test]
fn a_thread_sees_its_own_stores_in_order() {
    // Stores of all sizes to eight bytes, each read back, and the last of all in memory at the end.
    let body = format!(
        "{DECLARATIONS}
        .reg .b16 %h<4>;
        st.u64 [%d1], 0x1111111111111111; st.u8 [%d1+3], 0x22; st.u32 [%d1+4], 0x33333333;
        nanosleep.u32 1;
        ld.u64 %d3, [%d1]; st.u64 [%d1+{FLAG}], %d3;
        st.u16 [%d1+2], 0x4444; st.u8 [%d1+4], 0x55; nanosleep.u32 1; st.u8 [%d1+4], 0x56;
        ld.u32 %r3, [%d1+4]; st.u32 [%d1+{}], %r3;
        atom.global.add.u32 %r4, [%d1], 1; st.u32 [%d1+{}], %r4;",
        FLAG + 8,
        FLAG + 12
    );
    let module = module(&["memory"], &body);
    for seed in 0..200 {
        let memory = DeviceMemory::new(192);
        launch(&module, &[BASE], [1, 1], &memory, seed).unwrap();
        assert_eq!(memory.word(FLAG), 0x3333_3333_2211_1111);
        assert_eq!(memory.half_word(FLAG + 8), 0x3333_3356);
        assert_eq!(memory.half_word(FLAG + 12), 0x4444_1111);
        assert_eq!(memory.word(DATA), 0x3333_3356_4444_1112);
    }
}

#[test]
fn buffers_keep_the_order_of_stores_to_the_same_bytes() {
    // Stores of all sizes to two words, which move from buffer to buffer and to memory at random: a load
    // sees the last ones all the same, and so does memory in the end.
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let memory = DeviceMemory::new(16);
        let (mut own, mut block) = (StoreBuffer::new(), StoreBuffer::new());
        let mut expected = [0u8; 16];
        for number in 0..400u64 {
            let len_bytes = 1 << random.below(4);
            let offset_bytes = random.below(16 / len_bytes) * len_bytes;
            let range = offset_bytes..offset_bytes + len_bytes;
            let address = BASE + offset_bytes as u64;
            let pointer = memory.resolve(address, len_bytes, Access::Write).unwrap();
            match random.below(9) {
                0..4 => {
                    let value = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    expected[range].copy_from_slice(&value.to_le_bytes()[..len_bytes]);
                    let store = Store::new(address, pointer, value, len_bytes, random.one_in(2));
                    own.push(store, Some(&mut block), &mut random);
                }
                4 => own.move_into(&mut block, &mut random),
                5 => (0..30).for_each(|_| own.tick(Some(&mut block), &mut random)),
                6 => (0..30).for_each(|_| block.tick(None, &mut random)),
                7 => own.write_out_overlapping(address, len_bytes, Some(&mut block)),
                _ => {
                    // SAFETY: Resolved above, and aligned; nobody else looks.
                    let value = unsafe { access::read(pointer, len_bytes) };
                    let value = block.overlay(address, len_bytes, value);
                    let value = own.overlay(address, len_bytes, value);
                    assert_eq!(value.to_le_bytes()[..len_bytes], expected[range], "seed {seed}");
                }
            }
        }
        // Nothing waits for ever.
        for _ in 0..10_000 {
            own.tick(Some(&mut block), &mut random);
            block.tick(None, &mut random);
        }
        for buffer in [&own, &block] {
            assert!(!buffer.has_strong() && !buffer.has_weak());
        }
        let words =
            expected.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        assert!(words.eq([memory.word(0), memory.word(8)]), "seed {seed}");
    }
}
