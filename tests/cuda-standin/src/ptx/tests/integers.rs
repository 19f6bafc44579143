//! Cases of the integer instructions, most of them computed with wide integers.

use super::{Case, case, register};
use crate::ptx::types::Type;

const TYPES: [(&str, Type); 6] = [
    ("u16", Type::U16),
    ("s16", Type::S16),
    ("u32", Type::U32),
    ("s32", Type::S32),
    ("u64", Type::U64),
    ("s64", Type::S64),
];

#[test]
fn integers_are_computed_as_ptx_says() {
    cases().iter().for_each(Case::check);
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = fixed();
    for (name, kind) in TYPES {
        two_operands(name, kind, &mut cases);
        comparisons(name, kind, &mut cases);
    }
    cases.extend(logic());
    cases
}

/// The least and greatest values, those around zero, and some between.
fn edges(kind: Type) -> Vec<u64> {
    let top = 1u64 << (kind.bits() - 1);
    [0, 1, 2, 7, top - 1, top, top + 1, u64::MAX, u64::MAX - 6, 0x1234_5678_9ABC_DEF5]
        .into_iter()
        .map(|value| cut(kind.bits(), value))
        .collect()
}

fn cut(bits: u32, value: u64) -> u64 {
    value & (u64::MAX >> (64 - bits))
}

/// The value of a type's bits.
fn value(kind: Type, bits: u64) -> i128 {
    let limit = 1i128 << kind.bits();
    let bits = i128::from(bits);
    if kind.is_signed() && bits >= limit / 2 { bits - limit } else { bits }
}

fn two_operands(name: &str, kind: Type, cases: &mut Vec<Case>) {
    let bits = kind.bits();
    let [x, a, b] = ["x", "0", "1"].map(|name| register(bits, name));
    for p in edges(kind) {
        for q in edges(kind) {
            let (u, v) = (value(kind, p), value(kind, q));
            let mut expect = |opcode: &str, result: i128| {
                let text = format!("{opcode}.{name} {x}, {a}, {b}");
                cases.push(case(text, &[p, q], cut(bits, result as u64)));
            };
            expect("add", u + v);
            expect("sub", u - v);
            expect("mul.lo", u.wrapping_mul(v));
            expect("mul.hi", u.wrapping_mul(v) >> bits);
            expect("min", u.min(v));
            expect("max", u.max(v));
            expect("div", if v == 0 { -1 } else { u / v });
            expect("rem", if v == 0 { u } else { u % v });
            let c = register(bits, "2");
            let mut expect = |opcode: &str, result: i128| {
                let text = format!("{opcode}.{name} {x}, {a}, {b}, {c}");
                cases.push(case(text, &[p, q, 0xFFFD], cut(bits, result as u64)));
            };
            expect("mad.lo", u.wrapping_mul(v).wrapping_add(0xFFFD));
            expect("mad.hi", (u.wrapping_mul(v) >> bits) + 0xFFFD);
            if bits < 64 {
                let [wide, third] = ["x", "2"].map(|name| register(2 * bits, name));
                let product = cut(2 * bits, (u * v) as u64);
                cases.push(case(format!("mul.wide.{name} {wide}, {a}, {b}"), &[p, q], product));
                let sum = cut(2 * bits, (u * v) as u64).wrapping_add(0x8765_4321);
                let text = format!("mad.wide.{name} {wide}, {a}, {b}, {third}");
                cases.push(case(text, &[p, q, 0x8765_4321], cut(2 * bits, sum)));
            }
        }
        if kind.is_signed() {
            let result = |value: i128| cut(bits, value as u64);
            cases.push(case(format!("neg.{name} {x}, {a}"), &[p], result(-value(kind, p))));
            cases.push(case(format!("abs.{name} {x}, {a}"), &[p], result(value(kind, p).abs())));
        }
        for distance in [0, 1, 5, bits - 1, bits, bits + 1, 0x8000_0001, u32::MAX] {
            let operands = [p, u64::from(distance)];
            let clamped = distance.min(100);
            let right = cut(bits, (value(kind, p) >> clamped) as u64);
            cases.push(case(format!("shr.{name} {x}, {a}, %r1"), &operands, right));
            let left = if distance < bits { cut(bits, p << distance) } else { 0 };
            cases.push(case(format!("shl.b{bits} {x}, {a}, %r1"), &operands, left));
        }
        let text = format!("shr.b{bits} {x}, {a}, 3");
        cases.push(case(text, &[p], p >> 3));
    }
    let q = 0x55;
    cases.push(case(format!("selp.{name} {x}, {a}, {b}, %p2"), &[3, q, 1], 3));
    cases.push(case(format!("selp.b{bits} {x}, {a}, {b}, %p2"), &[3, q, 0], q));
    cases.push(case(format!("mov.{name} {x}, {b}"), &[0, q], q));
    cases.push(case(format!("mov.b{bits} {x}, -2"), &[], cut(bits, u64::MAX - 1)));
}

fn comparisons(name: &str, kind: Type, cases: &mut Vec<Case>) {
    let bits = kind.bits();
    let [a, b] = ["0", "1"].map(|name| register(bits, name));
    for p in edges(kind) {
        for q in edges(kind) {
            let (u, v) = (value(kind, p), value(kind, q));
            let mut expect = |comparison: &str, name: &str, result: bool| {
                let text = format!("setp.{comparison}.{name} %px, {a}, {b}");
                cases.push(case(text, &[p, q], u64::from(result)));
            };
            expect("eq", name, u == v);
            expect("ne", name, u != v);
            expect("lt", name, u < v);
            expect("le", name, u <= v);
            expect("gt", name, u > v);
            expect("ge", name, u >= v);
            expect("eq", &format!("b{bits}"), u == v);
            expect("ne", &format!("b{bits}"), u != v);
            if !kind.is_signed() {
                expect("lo", name, u < v);
                expect("ls", name, u <= v);
                expect("hi", name, u > v);
                expect("hs", name, u >= v);
            }
        }
    }
}

/// Bitwise operations, on predicates too, and `setp` with more than one predicate.
fn logic() -> Vec<Case> {
    let mut cases = Vec::new();
    let (p, q) = (0x0F3C_5A96_1234_FEDC_u64, 0x3355_0FF0_8001_A5C3_u64);
    for bits in [16, 32, 64] {
        let [x, a, b] = ["x", "0", "1"].map(|name| register(bits, name));
        for (opcode, result) in [("and", p & q), ("or", p | q), ("xor", p ^ q)] {
            let text = format!("{opcode}.b{bits} {x}, {a}, {b}");
            cases.push(case(text, &[p, q], cut(bits, result)));
        }
        cases.push(case(format!("not.b{bits} {x}, {a}"), &[p], cut(bits, !p)));
    }
    for (p, q) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        cases.push(case("and.pred %px, %p0, %p1", &[p, q], p & q));
        cases.push(case("or.pred %px, %p0, %p1", &[p, q], p | q));
        cases.push(case("xor.pred %px, %p0, %p1", &[p, q], p ^ q));
        cases.push(case("not.pred %px, %p0", &[p], 1 - p));
        cases.push(case("xor.pred %px, %p0, -1", &[p], 1 - p));
        cases.push(case("mov.pred %px, %p0", &[p], p));
        // 5 < 6 is true.
        cases.push(case("setp.lt.and.s32 %px, 5, 6, %p0", &[p], p));
        cases.push(case("setp.lt.and.s32 %px, 5, 6, !%p0", &[p], 1 - p));
        cases.push(case("setp.gt.or.u64 %px, 5, 6, %p0", &[p], p));
        cases.push(case("setp.ne.xor.b16 %px, %h1, 7, %p0", &[p, 6], 1 - p));
        cases.push(case("setp.eq.and.b32 %py|%px, %r1, 7, %p0", &[p, 6], p));
        cases.push(case("setp.eq.b32 %px|_, %r1, 7", &[p, 7], 1));
        cases.push(case("mov.u32 %rx, 1; @%p0 mov.u32 %rx, 2", &[p], 1 + p));
        cases.push(case("mov.u32 %rx, 1; @!%p0 mov.u32 %rx, 2", &[p], 2 - p));
    }
    cases
}

fn fixed() -> Vec<Case> {
    let mut cases = vec![
        // Constants of all radixes.
        case("mov.u32 %rx, 0x1F", &[], 31),
        case("mov.u32 %rx, 0b101", &[], 5),
        case("mov.u32 %rx, 017", &[], 15),
        case("mov.u32 %rx, 4294967295U", &[], 0xFFFF_FFFF),
        case("mov.b64 %dx, {%r0, %r1}", &[1, 2], 0x2_0000_0001),
        case("mov.b64 %dx, {%h0, %h1, %h2, %h0}", &[1, 2, 3], 0x0001_0003_0002_0001),
        case("mov.b32 %rx, {%h0, %h1}", &[0xFFF1, 2], 0x2_FFF1),
        case("mov.b64 {%ry, %rx}, %d0", &[0x9_0000_0007], 9),
        case("mov.b64 {_, %rx}, %d0", &[0x9_0000_0007], 9),
        case("mov.b32 {%hx, %hy}, %r0", &[0x9_0007], 7),
        case("mov.b64 {%hy, %hz, %hx, %hw}, %d0", &[0x4_0003_0002_0001], 3),
        case("popc.b32 %rx, %r0", &[0xF0F0_0001], 9),
        case("popc.b64 %rx, %d0", &[u64::MAX], 64),
        case("clz.b32 %rx, %r0", &[0], 32),
        case("clz.b32 %rx, %r0", &[0x0001_0000], 15),
        case("clz.b64 %rx, %d0", &[0], 64),
        case("clz.b64 %rx, %d0", &[1], 63),
        case("brev.b32 %rx, %r0", &[0x8000_0003], 0xC000_0001),
        case("brev.b64 %dx, %d0", &[1], 1 << 63),
        case("bfind.u32 %rx, %r0", &[0x0010_0001], 20),
        case("bfind.u32 %rx, %r0", &[0], 0xFFFF_FFFF),
        case("bfind.s32 %rx, %r0", &[0xFFFF_FFF0], 3),
        case("bfind.s32 %rx, %r0", &[0xFFFF_FFFF], 0xFFFF_FFFF),
        case("bfind.u64 %rx, %d0", &[1 << 63], 63),
        case("bfind.s64 %rx, %d0", &[1 << 63], 62),
        case("bfind.shiftamt.u32 %rx, %r0", &[0x0010_0001], 11),
        case("bfind.shiftamt.u32 %rx, %r0", &[0], 0xFFFF_FFFF),
        case("bfind.shiftamt.s32 %rx, %r0", &[0xFFFF_FFF0], 28),
        case("bfind.shiftamt.u64 %rx, %d0", &[1], 63),
        case("bfind.shiftamt.s64 %rx, %d0", &[u64::MAX], 0xFFFF_FFFF),
        case("bfe.u32 %rx, %r0, %r1, %r2", &[0xABCD_1234, 8, 8], 0x12),
        case("bfe.u32 %rx, %r0, 28, 8", &[0xABCD_1234], 0xA),
        case("bfe.u32 %rx, %r0, 32, 8", &[0xABCD_1234], 0),
        case("bfe.u32 %rx, %r0, 4, 0", &[0xABCD_1234], 0),
        case("bfe.s32 %rx, %r0, 8, 8", &[0x0000_F234], 0xFFFF_FFF2),
        case("bfe.s32 %rx, %r0, 28, 8", &[0xABCD_1234], 0xFFFF_FFFA),
        case("bfe.s32 %rx, %r0, 40, 8", &[0xABCD_1234], 0xFFFF_FFFF),
        case("bfe.s32 %rx, %r0, 4, 0", &[0xABCD_1234], 0),
        case("bfe.u64 %dx, %d0, 32, 200", &[0xABCD_1234_5678_9ABC], 0xABCD_1234),
        case("bfe.s64 %dx, %d0, 60, 4", &[0xABCD_1234_5678_9ABC], 0xFFFF_FFFF_FFFF_FFFA),
        case("bfi.b32 %rx, %r0, %r1, 8, 4", &[0xFFF5, 0x1111_1111], 0x1111_1511),
        case("bfi.b32 %rx, %r0, %r1, 28, 8", &[0xFFF5, 0x1111_1111], 0x5111_1111),
        case("bfi.b32 %rx, %r0, %r1, 32, 8", &[0xFFF5, 0x1111_1111], 0x1111_1111),
        case("bfi.b32 %rx, %r0, %r1, 0, 0", &[0xFFF5, 0x1111_1111], 0x1111_1111),
        case("bfi.b64 %dx, %d0, %d1, 32, 255", &[7, 9], 0x7_0000_0009),
        case("prmt.b32 %rx, %r0, %r1, 0x7531", &[0x3322_1100, 0x7766_5544], 0x7755_3311),
        case("prmt.b32 %rx, %r0, %r1, %r2", &[0x8000_0000, 0x7F, 0x40CB], 0x7F00_00FF),
        case("lop3.b32 %rx, %r0, %r1, %r2, 0xEA", &[0xC, 0xA, 0x1], 0x9),
        case("lop3.b32 %rx, %r0, %r1, %r2, 0x96", &[0xC, 0xA, 0x1], 0x7),
        case("lop3.b32 %rx, %r0, %r1, %r2, 0x01", &[0xC, 0xA, 0x1], 0xFFFF_FFF0),
        case("shf.l.wrap.b32 %rx, %r0, %r1, 36", &[0xA000_0000, 0x1], 0x1A),
        case("shf.l.clamp.b32 %rx, %r0, %r1, 36", &[0xA000_0000, 0x1], 0xA000_0000),
        case("shf.r.wrap.b32 %rx, %r0, %r1, %r2", &[0xA0, 0x3, 36], 0x3000_000A),
        case("shf.r.clamp.b32 %rx, %r0, %r1, %r2", &[0xA0, 0x3, 36], 0x3),
        case("selp.f32 %rx, 0f3F800000, %r1, %p2", &[0, 0, 1], 0x3F80_0000),
        case("selp.f64 %dx, 0d3FF0000000000000, %d1, %p2", &[0, 5, 0], 5),
    ];
    // Between all integer types, with the limits where `.sat` stops.
    let types = [("u8", Type::U8), ("s8", Type::S8)].into_iter().chain(TYPES);
    let types: Vec<(&str, Type)> = types.collect();
    for (from_name, from) in &types {
        for (into_name, into) in &types {
            for operand in [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000_0000, u64::MAX, 1 << 63] {
                let (x, a) =
                    (register(into.bits().max(16), "x"), register(from.bits().max(16), "0"));
                let source = value(*from, cut(from.bits(), operand));
                let limit = 1i128 << into.bits();
                let (least, most) =
                    if into.is_signed() { (-limit / 2, limit / 2 - 1) } else { (0, limit - 1) };
                // The register may be wider than the type: the result is extended to it.
                let extended = |result: i128| {
                    let narrow = cut(into.bits(), result as u64);
                    cut(into.bits().max(16), value(*into, narrow) as u64)
                };
                let text = format!("cvt.{into_name}.{from_name} {x}, {a}");
                cases.push(case(text, &[operand], extended(source)));
                let text = format!("cvt.sat.{into_name}.{from_name} {x}, {a}");
                cases.push(case(text, &[operand], extended(source.clamp(least, most))));
            }
        }
    }
    cases.push(case("cvt.s16.s8 %rx, %h0", &[0x80], 0xFFFF_FF80));
    cases.push(case("cvt.u64.u8 %dx, %d0", &[0x1FF], 0xFF));
    cases
}
