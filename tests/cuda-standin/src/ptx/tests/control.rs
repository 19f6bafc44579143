//! Branches, barriers, shuffles and votes; and grids of which all threads wait.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::{BASE, Case, DeviceMemory, case, launch, module};
use crate::ptx::{Fault, Launch, Module};

#[test]
fn control_instructions_do_as_ptx_says() {
    cases().iter().for_each(Case::check);
}

/// Of a single thread; what they do for several is below.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("mov.u32 %rx, 1; bra $L; mov.u32 %rx, 2; $L: add.u32 %rx, %rx, 4", &[], 5),
        case("mov.u32 %rx, 1; @%p0 bra.uni $L; mov.u32 %rx, 2; $L: add.u32 %rx, %rx, 4", &[0], 6),
        case("{ .reg .b32 %rx; mov.u32 %rx, 9; } mov.u32 %rx, 2; { mov.u32 %rx, 3; }", &[], 3),
        case("mov.u32 %rx, 1; @%p0 exit; mov.u32 %rx, 2", &[0], 2),
        case("mov.u32 %rx, 1; @%p0 ret; mov.u32 %rx, 2", &[0], 2),
        case("mov.u32 %rx, 1; @%p0 ret.uni; mov.u32 %rx, 2", &[0], 2),
        case("mov.u32 %rx, 1; @%p0 trap; mov.u32 %rx, 2", &[0], 2),
        case("mov.u32 %rx, 1; nanosleep.u32 100; nanosleep.u32 %r0", &[5], 1),
        case("activemask.b32 %rx", &[], 1),
        case("bar.warp.sync 1; mov.u32 %rx, 1", &[], 1),
        case("bar.sync 0; bar.cta.sync 15; mov.u32 %rx, 1", &[], 1),
        case("barrier.sync 0; barrier.cta.sync.aligned 1; mov.u32 %rx, 1", &[], 1),
        case("bar.red.popc.u32 %rx, 0, %p0", &[1], 1),
        case("bar.cta.red.popc.u32 %rx, 0, !%p0", &[1], 0),
        case("bar.red.and.pred %px, 0, %p0", &[1], 1),
        case("bar.cta.red.or.pred %px, 0, %p0", &[0], 0),
        case("shfl.sync.idx.b32 %rx|%py, %r0, 0, 0x1F, 1", &[7], 7),
        case("shfl.sync.up.b32 %rx|%py, %r0, 1, 0, 1", &[7], 7),
        case("shfl.sync.down.b32 %rx, %r0, 0, 0x1F, 1", &[7], 7),
        case("shfl.sync.bfly.b32 %rx, %r0, 0, 0x1F, 1", &[7], 7),
        case("vote.sync.any.pred %px, %p0, 1", &[1], 1),
        case("vote.sync.all.pred %px, !%p0, 1", &[1], 0),
        case("vote.sync.uni.pred %px, %p0, 1", &[0], 1),
        case("vote.sync.ballot.b32 %rx, %p0, 1", &[1], 1),
    ];
    for (name, value) in [
        ("%tid.x", 0),
        ("%tid.y", 0),
        ("%tid.z", 0),
        ("%ntid.x", 1),
        ("%ntid.y", 1),
        ("%ntid.z", 1),
        ("%ctaid.x", 0),
        ("%ctaid.y", 0),
        ("%ctaid.z", 0),
        ("%nctaid.x", 1),
        ("%nctaid.y", 1),
        ("%nctaid.z", 1),
        ("%laneid", 0),
        ("%warpid", 0),
        ("%nwarpid", 1),
        ("%smid", 0),
        ("%nsmid", 8),
        ("%lanemask_eq", 1),
        ("%lanemask_lt", 0),
        ("%lanemask_le", 1),
        ("%lanemask_gt", 0xFFFF_FFFE),
        ("%lanemask_ge", 0xFFFF_FFFF),
    ] {
        cases.push(case(format!("mov.u32 %rx, {name}"), &[], value));
    }
    cases
}

#[test]
fn clocks_go_on() {
    let body = "
        .reg .b64 %d<9>; .reg .b32 %r1; .reg .pred %p<3>;
        ld.param.u64 %d0, [out];
        mov.u64 %d1, %clock64;
        mov.u64 %d2, %globaltimer;
        mov.u32 %r1, %clock;
        nanosleep.u32 1;
        mov.u64 %d3, %clock64;
        mov.u64 %d4, %globaltimer;
        setp.gt.u64 %p1, %d3, %d1;
        setp.ge.and.u64 %p1, %d4, %d2, %p1;
        selp.u64 %d5, 1, 0, %p1;
        st.global.u64 [%d0], %d5;";
    let memory = DeviceMemory::new(8);
    launch(&module(&["out"], body), &[BASE], [1, 1], &memory, 1).unwrap();
    assert_eq!(memory.word(0), 1);
}

/// Runs a body that leaves its result in `%r0` for every thread of one block.
fn results(body: &str, threads: u32, seed: u64) -> Result<Vec<u32>, Fault> {
    let body = format!(
        ".reg .b32 %r<9>; .reg .b64 %d<4>; .reg .pred %p<4>; .shared .b32 shared[32];
        mov.u32 %r1, %tid.x; and.b32 %r2, %r1, 1; setp.eq.u32 %p1, %r2, 1;
        {body}
        ld.param.u64 %d0, [out]; mul.wide.u32 %d1, %r1, 4; add.u64 %d1, %d0, %d1;
        st.global.u32 [%d1], %r0;"
    );
    let memory = DeviceMemory::new(4 * threads as usize);
    launch(&module(&["out"], &body), &[BASE], [1, threads], &memory, seed)?;
    Ok((0..threads as usize).map(|thread| memory.half_word(4 * thread)).collect())
}

#[test]
fn indices_have_three_dimensions() {
    let body = "
        .reg .b32 %r<20>; .reg .b64 %d<4>;
        ld.param.u64 %d0, [out];
        mov.u32 %r0, %tid.x; mov.u32 %r1, %tid.y; mov.u32 %r2, %tid.z;
        mov.u32 %r3, %ntid.x; mov.u32 %r4, %ntid.y; mov.u32 %r5, %ntid.z;
        mov.u32 %r6, %ctaid.x; mov.u32 %r7, %ctaid.y; mov.u32 %r8, %ctaid.z;
        mov.u32 %r9, %nctaid.x; mov.u32 %r10, %nctaid.y;
        mad.lo.u32 %r11, %r2, %r4, %r1; mad.lo.u32 %r11, %r11, %r3, %r0;
        mad.lo.u32 %r12, %r8, %r10, %r7; mad.lo.u32 %r12, %r12, %r9, %r6;
        mul.lo.u32 %r13, %r3, %r4; mul.lo.u32 %r13, %r13, %r5;
        mad.lo.u32 %r14, %r12, %r13, %r11;
        mul.wide.u32 %d1, %r14, 4; add.u64 %d1, %d0, %d1;
        add.u32 %r14, %r14, 1;
        red.global.add.u32 [%d1], %r14;";
    let module = module(&["out"], body);
    let memory = DeviceMemory::new(4 * 24 * 6);
    Launch {
        entry: &module.entry("test").unwrap(),
        parameters: &BASE.to_le_bytes(),
        variables: &[],
        grid: [1, 2, 3],
        block: [4, 3, 2],
        dynamic_shared_bytes: 0,
        memory: &memory,
        seed: 3,
        stop: &|| false,
    }
    .run()
    .unwrap();
    for number in 0..24 * 6 {
        assert_eq!(memory.half_word(4 * number), number as u32 + 1);
    }
}

#[test]
fn threads_diverge_and_meet() {
    // Odd threads take 100 rounds, even ones none.
    let body = "
        mov.u32 %r0, 0;
        @!%p1 bra $even;
        $more: add.u32 %r0, %r0, 1; setp.lt.u32 %p2, %r0, 100; @%p2 bra $more;
        bra.uni $met;
        $even: mov.u32 %r0, 7;
        $met: bar.sync 0;";
    for seed in 0..20 {
        let results = results(body, 70, seed).unwrap();
        assert!(
            results
                .iter()
                .enumerate()
                .all(|(thread, result)| { *result == if thread % 2 == 1 { 100 } else { 7 } })
        );
    }
}

#[test]
fn a_barrier_holds_until_all_have_arrived() {
    // Each writes its word, and reads that of its neighbour behind the barrier.
    let body = "
        mul.lo.u32 %r3, %r1, 4; st.shared.u32 [%r3], %r1;
        bar.sync 0;
        xor.b32 %r4, %r3, 124; ld.shared.u32 %r0, [%r4];";
    for seed in 0..50 {
        let results = results(body, 32, seed).unwrap();
        assert!(results.iter().enumerate().all(|(thread, result)| *result == thread as u32 ^ 31));
    }
    let without = body.replace("bar.sync 0;", "");
    let is_wrong = |seed: &u64| {
        results(&without, 32, *seed)
            .unwrap()
            .iter()
            .enumerate()
            .any(|(thread, result)| *result != thread as u32 ^ 31)
    };
    assert!((0..50).filter(is_wrong).count() >= 48, "a barrier that is missing is to be noticed");
}

#[test]
fn barriers_have_numbers_and_counts_and_do_not_wait_for_the_dead() {
    // The second warp leaves, the first and the third meet at barrier 3.
    let body = "
        mov.u32 %r0, 1;
        shr.u32 %r3, %r1, 5;
        setp.eq.u32 %p2, %r3, 1;
        @%p2 bra $end;
        bar.sync 3, 64;
        bar.red.popc.u32 %r0, 0, %p1;
        $end:";
    let results_of = results(body, 96, 5).unwrap();
    assert_eq!((results_of[0], results_of[40], results_of[95]), (32, 1, 32));
    let body = "
        setp.lt.u32 %p2, %r1, 3;
        bar.red.and.pred %p3, 0, %p2;
        selp.u32 %r3, 1, 0, %p3;
        bar.red.or.pred %p3, 0, %p2;
        selp.u32 %r4, 2, 0, %p3;
        add.u32 %r0, %r3, %r4;";
    assert_eq!(results(body, 3, 5).unwrap(), [3, 3, 3]);
    assert_eq!(results(body, 4, 5).unwrap(), [2, 2, 2, 2]);
}

#[test]
fn what_can_never_meet_is_a_deadlock() {
    let apart = "@%p1 bar.sync 1;\n@!%p1 bar.sync 2;\n";
    let Err(Fault::Deadlock { at, what }) = results(apart, 4, 1) else { panic!("no deadlock") };
    assert_eq!(at.line, 5);
    assert_eq!(what, "2 threads wait at line 5, 2 threads wait at line 6, 0 have ended");
    let count = "bar.sync 0, 64;";
    assert!(matches!(results(count, 32, 1), Err(Fault::Deadlock { .. })));
    let shuffle = "@%p1 shfl.sync.idx.b32 %r0, %r1, 0, 31, -1;\n@!%p1 bar.sync 0;";
    assert!(matches!(results(shuffle, 32, 1), Err(Fault::Deadlock { .. })));
    for illegal in ["bar.sync 16;", "bar.sync 0, 33;", "vote.sync.any.pred %p1, %p1, 1;"] {
        let result = results(illegal, 2, 1);
        assert!(matches!(result, Err(Fault::IllegalInstruction { .. })), "{illegal}: {result:?}");
    }
    let counts = "@%p1 bar.sync 0, 32;\n@!%p1 bar.sync 0, 64;";
    assert!(matches!(results(counts, 64, 1), Err(Fault::IllegalInstruction { .. })));
    let Err(Fault::Trap { at }) = results("setp.eq.u32 %p2, %r1, 2;\n@%p2 trap;", 4, 1) else {
        panic!("no trap")
    };
    assert_eq!(at.thread, [2, 0, 0]);
}

#[test]
fn shuffles_move_values_between_lanes() {
    let lanes = |instruction: &str| {
        let body = format!(
            "mov.u32 %r3, 100; add.u32 %r3, %r3, %r1; {instruction};
            selp.u32 %r5, 1000, 0, %p2; add.u32 %r0, %r4, %r5;"
        );
        results(&body, 32, 9).unwrap()
    };
    let expect = |instruction: &str, source: fn(u32) -> (u32, bool)| {
        for (lane, result) in lanes(instruction).into_iter().enumerate() {
            let (source, is_valid) = source(lane as u32);
            let expected = 100 + source + if is_valid { 1000 } else { 0 };
            assert_eq!(result, expected, "{instruction}, lane {lane}");
        }
    };
    expect("shfl.sync.down.b32 %r4|%p2, %r3, 3, 31, -1", |lane| {
        if lane + 3 < 32 { (lane + 3, true) } else { (lane, false) }
    });
    expect("shfl.sync.up.b32 %r4|%p2, %r3, 3, 0, -1", |lane| {
        if lane >= 3 { (lane - 3, true) } else { (lane, false) }
    });
    expect("shfl.sync.bfly.b32 %r4|%p2, %r3, 5, 31, -1", |lane| (lane ^ 5, true));
    expect("shfl.sync.idx.b32 %r4|%p2, %r3, 9, 31, -1", |_| (9, true));
    // Segments of 8 lanes.
    expect("shfl.sync.down.b32 %r4|%p2, %r3, 3, 0x181F, -1", |lane| {
        if lane % 8 + 3 < 8 { (lane + 3, true) } else { (lane, false) }
    });
    expect("shfl.sync.up.b32 %r4|%p2, %r3, 3, 0x1800, -1", |lane| {
        if lane % 8 >= 3 { (lane - 3, true) } else { (lane, false) }
    });
    expect("shfl.sync.idx.b32 %r4|%p2, %r3, 2, 0x181F, -1", |lane| (lane / 8 * 8 + 2, true));
}

#[test]
fn parts_of_a_warp_shuffle_and_vote_alone() {
    // Odd lanes among themselves, even ones with one another.
    let body = "
        setp.lt.u32 %p2, %r1, 10;
        @%p1 bra $odd;
        vote.sync.ballot.b32 %r0, %p2, 0x55555555;
        bra $met;
        $odd: vote.sync.ballot.b32 %r0, %p2, 0xAAAAAAAA;
        $met: bar.warp.sync -1;";
    let results_of = results(body, 32, 4).unwrap();
    assert_eq!((results_of[0], results_of[1]), (0x155, 0x2AA));
    let body = "
        vote.sync.any.pred %p2, %p1, -1; selp.u32 %r3, 1, 0, %p2;
        vote.sync.all.pred %p2, %p1, -1; selp.u32 %r4, 2, 0, %p2; add.u32 %r3, %r3, %r4;
        vote.sync.uni.pred %p2, %p1, -1; selp.u32 %r4, 4, 0, %p2; add.u32 %r0, %r3, %r4;";
    assert_eq!(results(body, 1, 4).unwrap(), [4]);
    assert_eq!(results(body, 2, 4).unwrap(), [1, 1]);
    // Lane 2 has left, lane 3 never was: what is read from them is no number.
    let body = "
        setp.eq.u32 %p2, %r1, 2;
        @%p2 bra $end;
        shfl.sync.down.b32 %r0, %r1, 1, 31, -1;
        $end:";
    assert_eq!(results(body, 2, 4).unwrap(), [1, 0x7FBA_DBAD]);
}

/// Thread 0 waits for a flag, all others for thread 0.
const WAITS: &str = "
    .reg .b32 %r<5>; .reg .b64 %d<5>; .reg .pred %p<5>;
    ld.param.u64 %d1, [flags];
    mov.u32 %r1, %tid.x;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra $ready;
    st.release.sys.global.u32 [%d1], 1;
    $again: ld.acquire.sys.global.u32 %r2, [%d1+8]; setp.eq.u32 %p2, %r2, 0; @%p2 bra $again;
    $ready: bar.sync 0;
    red.global.add.u32 [%d1+16], 1;";

#[test]
fn a_grid_waits_for_a_flag_that_the_host_sets() {
    let module = module(&["flags"], WAITS);
    let memory = DeviceMemory::new(24);
    let statistics = thread::scope(|scope| {
        let launched = scope.spawn(|| launch(&module, &[BASE], [1, 64], &memory, 1));
        while memory.half_word(0) == 0 {
            thread::yield_now();
        }
        memory.set_word(8, 1);
        launched.join().unwrap()
    });
    assert_eq!(memory.half_word(16), 64);
    assert!(statistics.unwrap().instructions > 64 * 4);
}

#[test]
fn launches_that_wait_for_one_another_both_end() {
    let module = module(
        &["flags", "own", "other"],
        "
        .reg .b32 %r<5>; .reg .b64 %d<5>; .reg .pred %p<5>;
        ld.param.u64 %d1, [own]; ld.param.u64 %d2, [other];
        mov.u32 %r1, 0;
        $round: add.u32 %r1, %r1, 1;
        st.release.sys.global.u32 [%d1], %r1;
        $again: ld.acquire.sys.global.u32 %r2, [%d2]; setp.lt.u32 %p2, %r2, %r1; @%p2 bra $again;
        setp.lt.u32 %p1, %r1, 20;
        @%p1 bra $round;",
    );
    let memory = DeviceMemory::new(16);
    let other = |own: u64, other: u64| {
        launch(&module, &[BASE, BASE + own, BASE + other], [1, 1], &memory, own)
    };
    thread::scope(|scope| {
        let first = scope.spawn(|| other(0, 8));
        other(8, 0).unwrap();
        first.join().unwrap().unwrap();
    });
    assert_eq!((memory.word(0), memory.word(8)), (20, 20));
}

#[test]
fn a_grid_that_waits_in_vain_is_stopped() {
    let module = module(&["flags"], WAITS);
    let memory = DeviceMemory::new(24);
    let looks = AtomicUsize::new(0);
    let result = Launch {
        entry: &module.entry("test").unwrap(),
        parameters: &BASE.to_le_bytes(),
        variables: &[],
        grid: [2, 1, 1],
        block: [64, 1, 1],
        dynamic_shared_bytes: 0,
        memory: &memory,
        seed: 1,
        stop: &|| looks.fetch_add(1, Ordering::Relaxed) > 500,
    }
    .run();
    assert_eq!(result, Err(Fault::Stopped));
}

#[test]
fn more_blocks_than_are_resident_run_one_after_another() {
    let body = "
        .reg .b64 %d1; .reg .b32 %r1;
        ld.param.u64 %d1, [count];
        mov.u32 %r1, %tid.x;
        st.global.u32 [%d1+8], %r1;
        bar.sync 0;
        red.global.add.u32 [%d1], 1;";
    let memory = DeviceMemory::new(16);
    launch(&module(&["count"], body), &[BASE], [70, 1024], &memory, 1).unwrap();
    assert_eq!(memory.word(0), 70 * 1024);
}

#[test]
fn launches_that_do_not_fit_are_refused() {
    let text = |limit: &str| {
        format!(
            ".version 8.0 .target sm_80 .address_size 64 .entry test(.param .u32 a) {limit} {{ ret; }}"
        )
    };
    let run = |limit: &str, parameters: &[u8], grid, block| {
        let module = Module::parse(&text(limit)).unwrap();
        Launch {
            entry: &module.entry("test").unwrap(),
            parameters,
            variables: &[],
            grid,
            block,
            dynamic_shared_bytes: 0,
            memory: &DeviceMemory::new(0),
            seed: 0,
            stop: &|| false,
        }
        .run()
    };
    assert!(run("", &[0; 4], [1, 1, 1], [1024, 1, 1]).is_ok());
    assert!(run(".reqntid 4, 2", &[0; 4], [1, 1, 1], [4, 2, 1]).is_ok());
    for (limit, len, grid, block) in [
        ("", 3, [1, 1, 1], [1, 1, 1]),
        ("", 4, [1, 0, 1], [1, 1, 1]),
        ("", 4, [1, 1, 1], [1, 1, 0]),
        ("", 4, [1, 1, 1], [1024, 2, 1]),
        (".maxntid 64", 4, [1, 1, 1], [65, 1, 1]),
        (".reqntid 4, 2", 4, [1, 1, 1], [8, 1, 1]),
    ] {
        let result = run(limit, &[0; 4][..len], grid, block);
        assert!(matches!(result, Err(Fault::InvalidLaunch { .. })), "{limit} {grid:?} {block:?}");
    }
}
