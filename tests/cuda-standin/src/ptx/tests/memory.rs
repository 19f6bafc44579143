//! Cases of loads, stores, atomics and addresses of all state spaces; parameters and variables.

use super::{BASE, Case, DeviceMemory, case, register};
use crate::ptx::types::Type;
use crate::ptx::{Access, Fault, Launch, Memory, Module, Parameter, VariableSpace};

#[test]
fn memory_is_accessed_as_ptx_says() {
    cases().iter().for_each(Case::check);
}

const TYPES: [(&str, Type); 14] = [
    ("b8", Type::B8),
    ("b16", Type::B16),
    ("b32", Type::B32),
    ("b64", Type::B64),
    ("u8", Type::U8),
    ("u16", Type::U16),
    ("u32", Type::U32),
    ("u64", Type::U64),
    ("s8", Type::S8),
    ("s16", Type::S16),
    ("s32", Type::S32),
    ("s64", Type::S64),
    ("f32", Type::F32),
    ("f64", Type::F64),
];
const EVICT: [&str; 5] = [
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
];
const SCOPES: [&str; 3] = ["cta", "gpu", "sys"];
/// Spaces, and how the case's memory is addressed in them.
const SPACES: [(&str, &str); 5] = [
    ("", "%dm"),
    (".global", "%dm"),
    (".shared", "shared"),
    (".shared::cta", "shared"),
    (".local", "local"),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = loads_and_stores();
    cases.extend(modifiers());
    cases.extend(atomics());
    cases.extend(addresses());
    cases
}

/// What a load of a type from bytes 0x81 and up gives in a register of `width` bits.
fn loaded(kind: Type, offset_bytes: usize, width: u32) -> u64 {
    let bytes: [u8; 8] = std::array::from_fn(|index| 0x81 + (offset_bytes + index) as u8);
    kind.extend(u64::from_le_bytes(bytes)) & (u64::MAX >> (64 - width))
}

fn loads_and_stores() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, kind) in TYPES {
        let (len, width) = (kind.bytes(), kind.bits().max(16));
        let [x, y, z, w, a, b, c] =
            ["x", "y", "z", "w", "0", "1", "2"].map(|name| register(width, name));
        cases.push(case(format!("ld.{name} {x}, [%dm]"), &[], loaded(kind, 0, width)));
        let text = format!("ld.global.{name} %dx, [%dm+{}]", 2 * len);
        cases.push(case(text, &[], loaded(kind, 2 * len, 64)));
        let text = format!("ld.global.v2.{name} {{{y}, {x}}}, [%dm]");
        cases.push(case(text, &[], loaded(kind, len, width)));
        let text = format!("ld.global.v4.{name} {{{y}, {z}, {w}, {x}}}, [%dm]");
        cases.push(case(text, &[], loaded(kind, 3 * len, width)));
        let text = format!("ld.global.v4.{name} {{_, {z}, {x}, _}}, [%dm]");
        cases.push(case(text, &[], loaded(kind, 2 * len, width)));
        let text = format!("ld.volatile.v2.{name} {{{x}, {y}}}, [%dm]");
        cases.push(case(text, &[], loaded(kind, 0, width)));
        let text = format!("ld.volatile.v4.{name} {{{y}, {x}, {z}, {w}}}, [%dm]");
        cases.push(case(text, &[], loaded(kind, len, width)));
        let text = format!("ld.relaxed.sys.v4.{name} {{{x}, {y}, {z}, {w}}}, [%dm]");
        cases.push(case(text, &[], loaded(kind, 0, width)));
        let text = format!("ld.acquire.gpu.v2.{name} {{{x}, {y}}}, [%dm]");
        cases.push(case(text, &[], loaded(kind, 0, width)));
        let text = format!("ld.global.nc.v2.{name} {{{x}, {y}}}, [%dm]");
        cases.push(case(text, &[], loaded(kind, 0, width)));
        let text = format!("ld.global.nc.v4.{name} {{{x}, {y}, {z}, {w}}}, [%dm]");
        cases.push(case(text, &[], loaded(kind, 0, width)));
        let operands = [0x0102_0304_0506_0708, 0x1112_1314_1516_1718, 0x2122_2324_2526_2728];
        let cut = |value: u64| kind.extend(value) & (u64::MAX >> (64 - width));
        for (space, address) in SPACES {
            for (store, load) in [
                ("st", "ld"),
                ("st.volatile", "ld.volatile"),
                ("st.relaxed.gpu", "ld.acquire.sys"),
                ("st.release.sys", "ld.relaxed.gpu"),
            ] {
                // Local memory is of nobody's concern but the thread's own.
                let text = format!(
                    "{store}{space}.{name} [{address}+16], {a}; {load}{space}.{name} {x}, [{address}+16]"
                );
                cases.push(case(text, &operands, cut(operands[0])));
            }
            let text = format!(
                "st{space}.v4.{name} [{address}], {{{a}, {b}, {c}, {a}}}; ld{space}.{name} {x}, [{address}+{}]",
                2 * len
            );
            cases.push(case(text, &operands, cut(operands[2])));
            let text = format!(
                "st{space}.v2.{name} [{address}], {{{a}, {b}}}; ld{space}.v2.{name} {{{y}, {x}}}, [{address}]"
            );
            cases.push(case(text, &operands, cut(operands[1])));
        }
        for store in ["st.volatile.global", "st.relaxed.gpu.global", "st.release.cta.global"] {
            let text = format!(
                "{store}.v4.{name} [%dm], {{{a}, {b}, {c}, {a}}}; ld.{name} {x}, [%dm+{len}]; \
                 {store}.v2.{name} [%dm], {{{a}, {c}}}"
            );
            cases.push(case(text, &operands, cut(operands[1])));
        }
        cases.push(case(format!("ld.const.{name} {x}, [%dm]"), &[], loaded(kind, 0, width)));
        let text = format!("ld.param.{name} {x}, [a1]");
        cases.push(case(text, &operands, cut(operands[1])));
    }
    // A store may take a wider register, and leaves its neighbours alone.
    cases.push(case("st.global.u8 [%dm+1], %d0; ld.u32 %rx, [%dm]", &[0xABCD], 0x8483_CD81));
    cases.push(case("st.global.u16 [%dm+2], %r0; ld.u32 %rx, [%dm]", &[0x1ABCD], 0xABCD_8281));
    // A load sees parts of several stores and of memory.
    let text = "st.u32 [%dm], %r0; st.u8 [%dm+1], %h1; st.u16 [%dm+6], %h2; ld.u64 %dx, [%dm]";
    cases.push(case(text, &[0x1111_1111, 0x22, 0x3333], 0x3333_8685_1111_2211));
    let text = "st.u64 [%dm], %d0; ld.u8 %rx, [%dm+6]";
    cases.push(case(text, &[0x0102_0304_0506_0708], 2));
    cases
}

/// All modifiers that only say something about caches, and the orders with all scopes.
fn modifiers() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut load = |modifiers: String| {
        cases.push(case(format!("ld{modifiers}.u32 %rx, [%dm]"), &[], 0x8483_8281));
    };
    for cache in ["ca", "cg", "cs", "lu", "cv"] {
        load(format!(".global.{cache}"));
        load(format!(".weak.global.{cache}"));
    }
    for cache in ["ca", "cg", "cs"] {
        load(format!(".global.{cache}.nc"));
    }
    for evict in EVICT {
        load(format!(".global.{evict}"));
        load(format!(".global.nc.{evict}"));
        load(format!(".relaxed.gpu.global.{evict}"));
    }
    for prefetch in ["L2::64B", "L2::128B", "L2::256B"] {
        load(format!(".global.{prefetch}"));
        load(format!(".global.nc.L1::no_allocate.{prefetch}"));
    }
    for scope in SCOPES {
        load(format!(".relaxed.{scope}"));
        load(format!(".acquire.{scope}.global"));
    }
    let mut store = |modifiers: String| {
        let text = format!("st{modifiers}.u32 [%dm], %r0; ld.u32 %rx, [%dm]");
        cases.push(case(text, &[77], 77));
    };
    for cache in ["wb", "cg", "cs", "wt"] {
        store(format!(".weak.global.{cache}"));
    }
    for evict in EVICT {
        store(format!(".global.{evict}"));
        store(format!(".release.gpu.global.{evict}"));
    }
    for scope in SCOPES {
        store(format!(".relaxed.{scope}"));
        store(format!(".release.{scope}.global"));
    }
    let fences = SCOPES.iter().flat_map(|scope| {
        [format!("fence.{scope}"), format!("fence.sc.{scope}"), format!("fence.acq_rel.{scope}")]
    });
    let old_fences = ["cta", "gl", "sys"].map(|scope| format!("membar.{scope}"));
    for fence in fences.chain(old_fences) {
        let text = format!("st.u32 [%dm], %r0; {fence}; ld.u32 %rx, [%dm]");
        cases.push(case(text, &[77], 77));
    }
    cases
}

/// Each on the words 7 and 0xFFFFFFF0 (−16), in all spaces, with all orders and scopes.
fn atomics() -> Vec<Case> {
    let mut cases = Vec::new();
    for (operation, kind, old, operand, new) in [
        ("add", "u32", 0xFFFF_FFF0, 0x20, 0x10),
        ("add", "s32", 7, 0xFFFF_FFFF, 6),
        ("add", "u64", u64::MAX, 5, 4),
        ("add", "f32", 0x3F80_0000, 0x4000_0000, 0x4040_0000),
        ("add", "f64", 0x3FF0_0000_0000_0000, 0x4000_0000_0000_0000, 0x4008_0000_0000_0000),
        ("exch", "b32", 7, 9, 9),
        ("exch", "b64", 7, u64::MAX, u64::MAX),
        ("and", "b32", 7, 12, 4),
        ("and", "b64", 7, 12, 4),
        ("or", "b32", 7, 12, 15),
        ("or", "b64", 7, 12, 15),
        ("xor", "b32", 7, 12, 11),
        ("xor", "b64", 7, 12, 11),
        ("min", "u32", 0xFFFF_FFF0, 7, 7),
        ("min", "s32", 0xFFFF_FFF0, 7, 0xFFFF_FFF0),
        ("min", "u64", u64::MAX, 7, 7),
        ("min", "s64", u64::MAX, 7, u64::MAX),
        ("max", "u32", 0xFFFF_FFF0, 7, 0xFFFF_FFF0),
        ("max", "s32", 0xFFFF_FFF0, 7, 7),
        ("max", "u64", u64::MAX, 7, u64::MAX),
        ("max", "s64", u64::MAX, 7, 7),
        ("inc", "u32", 7, 8, 8),
        ("inc", "u32", 7, 7, 0),
        ("inc", "u32", 9, 7, 0),
        ("dec", "u32", 7, 8, 6),
        ("dec", "u32", 0, 8, 8),
        ("dec", "u32", 9, 8, 8),
    ] {
        let bits = if kind.ends_with("64") { 64 } else { 32 };
        let [x, y, a, b] = ["x", "y", "0", "1"].map(|name| register(bits, name));
        for (space, address) in &SPACES[..4] {
            for order in ["", ".relaxed", ".acquire", ".release", ".acq_rel"] {
                for scope in ["", ".cta", ".gpu", ".sys"] {
                    let set = format!("st{space}.b{bits} [{address}+8], {a}");
                    let get = format!("ld{space}.b{bits} {x}, [{address}+8]");
                    for scoped in [format!("{scope}{space}"), format!("{space}{scope}")] {
                        let atomic = format!("atom{order}{scoped}.{operation}.{kind}");
                        let text = format!("{set}; {atomic} {x}, [{address}+8], {b}");
                        cases.push(case(text, &[old, operand], old));
                        let text = format!("{set}; {atomic} {y}, [{address}+8], {b}; {get}");
                        cases.push(case(text, &[old, operand], new));
                        if operation != "exch" && !order.contains("ac") {
                            let red = format!("red{order}{scoped}.{operation}.{kind}");
                            let text = format!("{set}; {red} [{address}+8], {b}; {get}");
                            cases.push(case(text, &[old, operand], new));
                        }
                    }
                }
            }
        }
    }
    for (kind, bits) in [("b16", 16), ("b32", 32), ("b64", 64)] {
        let [x, y, a, b, c] = ["x", "y", "0", "1", "2"].map(|name| register(bits, name));
        for (space, address) in &SPACES[..4] {
            for order in ["", ".relaxed", ".acquire", ".release", ".acq_rel"] {
                for scope in ["", ".cta", ".gpu", ".sys"] {
                    for scoped in [format!("{scope}{space}"), format!("{space}{scope}")] {
                        let set = format!("st{space}.{kind} [{address}+8], {a}");
                        let atomic = format!("atom{order}{scoped}.cas.{kind}");
                        let get = format!("ld{space}.{kind} {x}, [{address}+8]");
                        let text = format!("{set}; {atomic} {y}, [{address}+8], {b}, {c}; {get}");
                        cases.push(case(text.clone(), &[5, 5, 8], 8));
                        cases.push(case(text, &[5, 6, 8], 5));
                    }
                }
            }
        }
    }
    cases
}

fn addresses() -> Vec<Case> {
    let mut cases = vec![
        case("ld.global.u8 %rx, [%dm+-0]", &[], 0x81),
        case("add.u64 %dy, %dm, 8; ld.global.u8 %rx, [%dy-4]", &[], 0x85),
        case("add.u64 %dy, %dm, 8; ld.global.u8 %rx, [%dy+-3]", &[], 0x86),
        // Shared memory has addresses of 32 bits, too, and what lies above them does not matter.
        case(
            "mov.u32 %ry, shared; st.shared.u32 [%ry+4], %r0; ld.shared.u32 %rx, [shared+4]",
            &[9],
            9,
        ),
        case("mov.u64 %dy, a0; ld.param.u64 %dx, [%dy+8]", &[1, 2], 2),
        case("cvta.param.u64 %dy, a0; ld.u64 %dx, [%dy+8]", &[1, 2], 2),
        case(
            "cvta.param.u64 %dy, a0; cvta.to.param.u64 %dz, %dy; ld.param.u64 %dx, [%dz]",
            &[3],
            3,
        ),
        case(
            "cvta.const.u64 %dy, %dm; cvta.to.const.u64 %dz, %dy; ld.const.u8 %rx, [%dz]",
            &[],
            0x81,
        ),
    ];
    for (space, address) in &SPACES[1..] {
        let text = format!(
            "st{space}.u32 [{address}+4], %r0; mov.u64 %dy, {address}; cvta{space}.u64 %dz, %dy; \
             ld.u32 %rx, [%dz+4]"
        );
        cases.push(case(text, &[0x1234], 0x1234));
        let text = format!(
            "mov.u64 %dy, {address}; cvta{space}.u64 %dz, %dy; st.u32 [%dz+4], %r0; \
             cvta.to{space}.u64 %dw, %dz; ld{space}.u32 %rx, [%dw+4]"
        );
        cases.push(case(text, &[0x1234], 0x1234));
    }
    cases
}

#[test]
fn parameters_lie_as_the_c_abi_lays_them() {
    let text = ".version 6.3 .target sm_75 .address_size 64
        .visible .entry k(.param .u8 a, .param .align 8 .b8 b[12], .param .u16 c,
            .param .u64 .ptr .global .align 16 d) { ret; }";
    let module = Module::parse(text).unwrap();
    assert_eq!((module.version, module.target), ((6, 3), 75));
    let entry = module.entry("k").unwrap();
    let lies = [(0, 1), (8, 12), (20, 2), (24, 8)];
    let lies = lies.map(|(offset_bytes, len_bytes)| Parameter { offset_bytes, len_bytes });
    assert_eq!(entry.parameters, lies);
    assert_eq!(entry.parameters_bytes, 32);
    assert!(module.entry("other").is_none());
}

#[test]
fn variables_of_the_module_are_described_and_used() {
    let text = "
        .version 8.0 .target sm_80 .address_size 64
        .global .align 4 .u32 counter = 7;
        .const .align 8 .b8 table[8] = {1, 2, 0xFF};
        .global .align 4 .f32 floats[2] = {0f3F800000, 0f40000000};
        .shared .align 4 .u32 block_wide[3];
        .extern .shared .align 16 .b8 dynamic[];
        .visible .entry test(.param .u64 out) .maxntid 128, 2 .minnctapersm 1
        {
            .reg .b32 %r<9>; .reg .b64 %rd<9>;
            .shared .u32 own;
            ld.param.u64 %rd1, [out];
            ld.global.u32 %r1, [counter];
            ld.const.u8 %r2, [table+1];
            add.u32 %r3, %r1, %r2;
            mov.u64 %rd2, floats;
            cvta.global.u64 %rd3, %rd2;
            ld.f32 %r4, [%rd3+4];
            st.shared.u32 [dynamic+12], %r3;
            mov.u32 %r5, dynamic;
            ld.shared.u32 %r6, [%r5+12];
            st.global.v2.u32 [%rd1], {%r6, %r4};
            ret;
        }";
    let module = Module::parse(text).unwrap();
    let [counter, table, floats] = &module.variables[..] else { panic!("three variables") };
    assert_eq!((counter.name.as_str(), counter.len_bytes, counter.align_bytes), ("counter", 4, 4));
    assert_eq!((counter.space, &counter.initial[..]), (VariableSpace::Global, &[7, 0, 0, 0][..]));
    assert_eq!(
        (table.space, &table.initial[..]),
        (VariableSpace::Const, &[1, 2, 255, 0, 0, 0, 0, 0][..])
    );
    assert_eq!(floats.initial, [0, 0, 0x80, 0x3F, 0, 0, 0, 0x40]);
    let entry = module.entry("test").unwrap();
    assert_eq!((entry.shared_bytes, entry.max_threads), (16, Some(256)));
    let memory = DeviceMemory::new(64);
    memory.set_word(16, 7);
    memory.set_word(24, 0x0201);
    memory.set_word(32, 0x4000_0000_3F80_0000);
    let launch = |variables: &[u64], dynamic_shared_bytes| {
        Launch {
            entry: &entry,
            parameters: &BASE.to_le_bytes(),
            variables,
            grid: [1, 1, 1],
            block: [1, 1, 1],
            dynamic_shared_bytes,
            memory: &memory,
            seed: 0,
            stop: &|| false,
        }
        .run()
    };
    let addresses = [BASE + 16, BASE + 24, BASE + 32];
    launch(&addresses, 16).unwrap();
    assert_eq!(memory.word(0), 0x4000_0000_0000_0009);
    let Err(Fault::IllegalAddress { space: "shared", .. }) = launch(&addresses, 15) else {
        panic!("the dynamic array is a byte too short")
    };
    assert!(matches!(launch(&[], 16), Err(Fault::InvalidLaunch { .. })));
}

#[test]
fn accesses_that_are_not_allowed_are_faults_that_say_where() {
    let memory = DeviceMemory::new(64);
    let fault = |body: &str| {
        let body = format!(
            ".reg .b64 %d<3>; .reg .b32 %r1; mov.u64 %d2, 0; ld.param.u64 %d1, [p];\n{body}"
        );
        super::launch(&super::module(&["p"], &body), &[BASE], [1, 1], &memory, 1).unwrap_err()
    };
    let text = fault("ld.global.u32 %r1, [%d1+64];").to_string();
    assert_eq!(
        text,
        "kernel test, PTX line 4, block [0, 0, 0], thread [0, 0, 0]: \
         read of 4 bytes of global memory at 0x700000040, which are not there"
    );
    let Fault::IllegalAddress { access: Access::Write, len_bytes: 16, .. } =
        fault("st.global.v4.u32 [%d1+64], {%r1, %r1, %r1, %r1};")
    else {
        panic!("a write of 16 bytes")
    };
    let Fault::Misaligned { at, address, len_bytes: 16 } =
        fault("\n\nld.global.v4.u32 {%r1, _, _, _}, [%d1+8];")
    else {
        panic!("a vector is aligned to all of itself")
    };
    assert_eq!((at.line, address), (6, BASE + 8));
    for (body, name) in [
        ("atom.global.add.u32 %r1, [%d1+64], 1;", "global"),
        ("ld.shared.u32 %r1, [0];", "shared"),
        (".local .u32 x; st.local.u32 [x+4], %r1;", "local"),
        ("ld.param.u32 %r1, [p+8];", "parameter"),
        ("st.u32 [%d2], %r1;", "global"),
        ("cvta.shared.u64 %d2, %d2; atom.add.u32 %r1, [%d2], 1;", "shared"),
        (".local .u32 x; mov.u64 %d2, x; cvta.local.u64 %d2, %d2; red.add.u32 [%d2], 1;", "local"),
    ] {
        match fault(body) {
            Fault::IllegalAddress { space, .. } => assert_eq!(space, name, "{body}"),
            other => panic!("{body}: {other}"),
        }
    }
    assert!(memory.resolve(BASE, 64, Access::Read).is_ok());
}

#[test]
fn statistics_count_what_is_moved() {
    let memory = DeviceMemory::new(64);
    let body = "
        .reg .b64 %d<9>; .reg .b32 %r<9>;
        ld.param.u64 %d1, [p];
        ld.global.v2.u32 {%r1, %r2}, [%d1];
        st.u16 [%d1], %r1;
        red.global.add.u32 [%d1+8], 1;
        ret;";
    let statistics =
        super::launch(&super::module(&["p"], body), &[BASE], [2, 3], &memory, 1).unwrap();
    assert_eq!(statistics.instructions, 6 * 5);
    assert_eq!(statistics.global_load_bytes, 6 * 8);
    assert_eq!(statistics.global_store_bytes, 6 * 2);
    assert_eq!(statistics.global_atomics, 6);
    assert_eq!(memory.half_word(8), 6);
}
