//! Cases of the floating-point instructions and of `cvt`, with bits where PTX defines them.

use super::{Case, case, register};

#[test]
fn floats_are_computed_as_ptx_says() {
    cases().iter().for_each(Case::check);
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = small_floats();
    cases.extend(singles());
    cases.extend(doubles());
    cases.extend(float_comparisons());
    cases.extend(to_integers());
    cases.extend(from_integers());
    cases.extend(between_floats());
    cases
}

const NAN: u64 = 0x7FFF_FFFF;
const NAN_64: u64 = 0xFFF8_0000_0000_0000;

fn f(value: f32) -> u64 {
    u64::from(value.to_bits())
}

fn d(value: f64) -> u64 {
    value.to_bits()
}

fn canonical(value: f32) -> u64 {
    if value.is_nan() { NAN } else { f(value) }
}

const SINGLES: [f32; 14] = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    3.0,
    f32::MAX,
    f32::MIN,
    f32::MIN_POSITIVE,
    1e-45,
    -1e-40,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    16_777_215.0,
];

fn singles() -> Vec<Case> {
    let mut cases = Vec::new();
    for a in SINGLES {
        for b in SINGLES {
            let mut expect = |opcode: &str, result: u64| {
                cases.push(case(format!("{opcode} %rx, %r0, %r1"), &[f(a), f(b)], result));
            };
            expect("add.f32", canonical(a + b));
            expect("add.rn.f32", canonical(a + b));
            expect("sub.f32", canonical(a - b));
            expect("sub.rn.f32", canonical(a - b));
            expect("mul.f32", canonical(a * b));
            expect("mul.rn.f32", canonical(a * b));
            expect("div.rn.f32", canonical(a / b));
            expect("copysign.f32", f(b.copysign(a)));
            let text = "fma.rn.f32 %rx, %r0, %r1, %r2";
            cases.push(case(text, &[f(a), f(b), f(0.1)], canonical(a.mul_add(b, 0.1))));
        }
        cases.push(case("sqrt.rn.f32 %rx, %r0", &[f(a)], canonical(a.sqrt())));
        cases.push(case("rcp.rn.f32 %rx, %r0", &[f(a)], canonical(1.0 / a)));
        cases.push(case("neg.f32 %rx, %r0", &[f(a)], f(a) ^ 0x8000_0000));
        cases.push(case("abs.f32 %rx, %r0", &[f(a)], f(a) & 0x7FFF_FFFF));
    }
    let signalling = 0x7F80_0001;
    for (a, b, min, max, nan) in [
        (f(1.0), f(2.0), f(1.0), f(2.0), false),
        (f(2.0), f(-2.0), f(-2.0), f(2.0), false),
        (f(-0.0), f(0.0), f(-0.0), f(0.0), false),
        (f(0.0), f(-0.0), f(-0.0), f(0.0), false),
        (f(f32::NEG_INFINITY), f(1.0), f(f32::NEG_INFINITY), f(1.0), false),
        (0xFFC0_0000, f(5.0), f(5.0), f(5.0), true),
        (f(5.0), signalling, f(5.0), f(5.0), true),
        (signalling, 0xFFC0_0000, NAN, NAN, true),
    ] {
        let mut expect = |opcode: &str, result: u64| {
            cases.push(case(format!("{opcode} %rx, %r0, %r1"), &[a, b], result));
        };
        expect("min.f32", min);
        expect("max.f32", max);
        expect("min.NaN.f32", if nan { NAN } else { min });
        expect("max.NaN.f32", if nan { NAN } else { max });
    }
    cases.push(case("mov.f32 %rx, 0f3F800000", &[], f(1.0)));
    cases.push(case("add.f32 %rx, %r0, 0fBF800000", &[f(3.0)], f(2.0)));
    cases
}

fn doubles() -> Vec<Case> {
    let two = |opcode: &str, a: f64, b: f64, result: u64| {
        case(format!("{opcode} %dx, %d0, %d1"), &[d(a), d(b)], result)
    };
    vec![
        two("add.f64", 0.1, 0.2, d(0.1 + 0.2)),
        two("add.rn.f64", f64::INFINITY, f64::NEG_INFINITY, NAN_64),
        two("sub.f64", 1.0, 1e-300, d(1.0)),
        two("sub.rn.f64", 0.3, 0.1, d(0.3 - 0.1)),
        two("mul.f64", 0.1, 0.1, d(0.1 * 0.1)),
        two("mul.rn.f64", f64::NAN, 1.0, NAN_64),
        two("div.rn.f64", 1.0, 3.0, d(1.0 / 3.0)),
        two("div.rn.f64", 0.0, 0.0, NAN_64),
        two("div.rn.f64", -1.0, 0.0, d(f64::NEG_INFINITY)),
        two("min.f64", -0.0, 0.0, d(-0.0)),
        two("min.f64", f64::NAN, 7.0, d(7.0)),
        two("max.f64", -0.0, 0.0, d(0.0)),
        two("max.f64", 7.0, f64::NAN, d(7.0)),
        two("max.f64", f64::NAN, f64::NAN, NAN_64),
        two("copysign.f64", -1.0, 7.0, d(-7.0)),
        case("fma.rn.f64 %dx, %d0, %d1, %d2", &[d(0.1), d(0.1), d(-0.01)], {
            d(0.1f64.mul_add(0.1, -0.01))
        }),
        case("rcp.rn.f64 %dx, %d0", &[d(3.0)], d(1.0 / 3.0)),
        case("sqrt.rn.f64 %dx, %d0", &[d(2.0)], d(2f64.sqrt())),
        case("sqrt.rn.f64 %dx, %d0", &[d(-2.0)], NAN_64),
        case("neg.f64 %dx, %d0", &[d(0.0)], d(-0.0)),
        case("abs.f64 %dx, %d0", &[d(-3.5)], d(3.5)),
        case("mov.f64 %dx, 0d3FF0000000000000", &[], d(1.0)),
    ]
}

/// `f16` and `bf16`, alone and in pairs, against results in `f32` or `f64` that are rounded once.
fn small_floats() -> Vec<Case> {
    let mut cases = Vec::new();
    let halves: [u64; 12] =
        [0, 0x8000, 0x3C00, 0xBC01, 0x7BFF, 0xFBFF, 0x0001, 0x83FF, 0x7C00, 0xFC00, 0x7E01, 0x3555];
    for (name, is_bf16) in [("f16", false), ("bf16", true)] {
        let widen = |bits: u64| {
            if is_bf16 {
                half::bf16::from_bits(bits as u16).to_f64()
            } else {
                half::f16::from_bits(bits as u16).to_f64()
            }
        };
        // Exact values of at most 24 bits, or far from the middle between two small floats.
        let narrow = |value: f64| {
            if value.is_nan() {
                0x7FFF
            } else if is_bf16 {
                u64::from(half::bf16::from_f64(value).to_bits())
            } else {
                u64::from(half::f16::from_f64(value).to_bits())
            }
        };
        for a in halves {
            for b in halves {
                let (u, v) = (widen(a), widen(b));
                let least =
                    |u: f64, v: f64| if u < v || u.is_sign_negative() && u == v { u } else { v };
                let min = if u.is_nan() {
                    v
                } else if v.is_nan() {
                    u
                } else {
                    least(u, v)
                };
                let max = if u.is_nan() {
                    v
                } else if v.is_nan() {
                    u
                } else {
                    -least(-u, -v)
                };
                let unless_nan =
                    |value: f64| if u.is_nan() || v.is_nan() { f64::NAN } else { value };
                let mut expect = |opcode: &str, result: f64| {
                    let text = format!("{opcode}.{name} %hx, %h0, %h1");
                    cases.push(case(text, &[a, b], narrow(result)));
                    let text =
                        format!("{opcode}.{name}x2 %ry, %r0, %r1; mov.b32 {{%hx, %hy}}, %ry");
                    cases.push(case(text, &[a, b], narrow(result)));
                    let text =
                        format!("{opcode}.{name}x2 %ry, %r0, %r1; mov.b32 {{%hy, %hx}}, %ry");
                    cases.push(case(text, &[a << 16 | 0x3C00, b << 16 | 0x3C00], narrow(result)));
                };
                expect("add", u + v);
                expect("add.rn", u + v);
                expect("sub", u - v);
                expect("sub.rn", u - v);
                expect("mul", u * v);
                expect("mul.rn", u * v);
                expect("min", min);
                expect("max", max);
                expect("min.NaN", unless_nan(min));
                expect("max.NaN", unless_nan(max));
                // Not with zeros: their sum has its own sign.
                let fma = u.mul_add(v, 1.0);
                let one = narrow(1.0);
                let text = format!("fma.rn.{name} %hx, %h0, %h1, %h2");
                cases.push(case(text, &[a, b, one], narrow(fma)));
                let text = format!("fma.rn.{name}x2 %ry, %r0, %r1, %r2; mov.b32 {{%hx, %hy}}, %ry");
                cases.push(case(text, &[a, b, one], narrow(fma)));
            }
            cases.push(case(format!("neg.{name} %hx, %h0"), &[a], a ^ 0x8000));
            cases.push(case(format!("abs.{name} %hx, %h0"), &[a], a & 0x7FFF));
            let pair = a << 16 | 0x3C00;
            cases.push(case(format!("neg.{name}x2 %rx, %r0"), &[pair], pair ^ 0x8000_8000));
            cases.push(case(format!("abs.{name}x2 %rx, %r0"), &[pair], pair & 0x7FFF_7FFF));
        }
    }
    // 1.5 · (1 + 2^-7) is exactly between two values; 2^-133 tips the balance, though f64 has no room for
    // both.
    cases.push(case("fma.rn.bf16 %hx, %h0, %h1, %h2", &[0x3FC0, 0x3F81, 0], 0x3FC2));
    cases.push(case("fma.rn.bf16 %hx, %h0, %h1, %h2", &[0x3FC0, 0x3F81, 0x0001], 0x3FC2));
    cases.push(case("fma.rn.bf16 %hx, %h0, %h1, %h2", &[0x3FC0, 0x3F81, 0x8001], 0x3FC1));
    cases
}

fn float_comparisons() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, bits, numbers, nan) in [
        ("f16", 16, [0xBC00, 0x8000, 0, 0x3C00], 0x7E00),
        ("bf16", 16, [0xBF80, 0x8000, 0, 0x3F80], 0x7FC0),
        ("f32", 32, [f(-1.0), f(-0.0), f(0.0), f(1.0)], f(f32::NAN)),
        ("f64", 64, [d(-1.0), d(-0.0), d(0.0), d(1.0)], d(f64::NAN)),
    ] {
        let values = [-1, 0, 0, 1];
        let [a, b] = ["0", "1"].map(|name| register(bits, name));
        for (p, u) in numbers.iter().zip(values) {
            for (q, v) in numbers.iter().zip(values) {
                let mut expect = |comparison: &str, result: bool| {
                    let text = format!("setp.{comparison}.{kind} %px, {a}, {b}");
                    cases.push(case(text, &[*p, *q], u64::from(result)));
                };
                for unordered in ["", "u"] {
                    expect(&format!("eq{unordered}"), u == v);
                    expect(&format!("ne{unordered}"), u != v);
                    expect(&format!("lt{unordered}"), u < v);
                    expect(&format!("le{unordered}"), u <= v);
                    expect(&format!("gt{unordered}"), u > v);
                    expect(&format!("ge{unordered}"), u >= v);
                }
                expect("num", true);
                expect("nan", false);
            }
        }
        for operands in [[nan, numbers[0]], [numbers[3], nan], [nan, nan]] {
            for (comparisons, result) in [
                (["eq", "ne", "lt", "le", "gt", "ge", "num"], 0),
                (["equ", "neu", "ltu", "leu", "gtu", "geu", "nan"], 1),
            ] {
                for comparison in comparisons {
                    let text = format!("setp.{comparison}.{kind} %px, {a}, {b}");
                    cases.push(case(text, &operands, result));
                }
            }
        }
    }
    cases.push(case("setp.lt.and.f32 %px, %r0, %r1, %p2", &[f(1.0), f(2.0), 1], 1));
    cases.push(case("setp.lt.or.f32 %px, %r0, %r1, %p2", &[f(2.0), f(1.0), 1], 1));
    cases.push(case("setp.lt.xor.f32 %px, %r0, %r1, %p2", &[f(1.0), f(2.0), 1], 0));
    cases.push(case("setp.lo.and.u32 %px, %r0, %r1, %p2", &[1, 2, 1], 1));
    cases.push(case("setp.lo.or.u32 %px, %r0, %r1, %p2", &[2, 1, 1], 1));
    cases.push(case("setp.lo.xor.u32 %px, %r0, %r1, %p2", &[1, 2, 1], 0));
    cases.push(case("setp.eq.or.b32 %px, %r0, %r1, %p2", &[1, 2, 1], 1));
    cases.push(case("setp.lt.xor.s32 %px, %r0, %r1, %p2", &[1, 2, 1], 0));
    cases
}

fn to_integers() -> Vec<Case> {
    let mut cases = Vec::new();
    for (into, bits) in [
        ("u8", 8),
        ("s8", 8),
        ("u16", 16),
        ("s16", 16),
        ("u32", 32),
        ("s32", 32),
        ("u64", 64),
        ("s64", 64),
    ] {
        let is_signed = into.starts_with('s');
        let limit = 1i128 << bits;
        let (least, most) = if is_signed { (-limit / 2, limit / 2 - 1) } else { (0, limit - 1) };
        let width = bits.max(16);
        let x = register(width, "x");
        let expected = |value: i128| value.clamp(least, most) as u64 & (u64::MAX >> (64 - width));
        for value in
            [0.0f32, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 100.75, -100.75, 3e9, -3e9, 1e30, -1e30]
        {
            for (mode, integral) in [
                ("rni", value.round_ties_even()),
                ("rzi", value.trunc()),
                ("rmi", value.floor()),
                ("rpi", value.ceil()),
            ] {
                let result = expected(integral as i128);
                for sat in ["", ".sat"] {
                    let text = format!("cvt.{mode}{sat}.{into}.f32 {x}, %r0");
                    cases.push(case(text, &[f(value)], result));
                }
                let text = format!("cvt.{mode}.{into}.f64 {x}, %d0");
                cases.push(case(text, &[d(f64::from(value))], result));
                if value.abs() < 200.0 {
                    let half = u64::from(half::f16::from_f32(value).to_bits());
                    cases.push(case(format!("cvt.{mode}.{into}.f16 {x}, %h0"), &[half], result));
                    let half = u64::from(half::bf16::from_f32(value).to_bits());
                    let integral = half::bf16::from_f32(value).to_f32();
                    let integral = match mode {
                        "rni" => integral.round_ties_even(),
                        "rzi" => integral.trunc(),
                        "rmi" => integral.floor(),
                        _ => integral.ceil(),
                    };
                    let result = expected(integral as i128);
                    cases.push(case(format!("cvt.{mode}.{into}.bf16 {x}, %h0"), &[half], result));
                }
            }
        }
        // A NaN is zero, or the top bit of a result where 64 bits are concerned.
        let top = expected(if is_signed { least } else { limit / 2 });
        let nan_32 = if bits == 64 { top } else { 0 };
        cases.push(case(format!("cvt.rzi.{into}.f32 {x}, %r0"), &[NAN], nan_32));
        cases.push(case(format!("cvt.rzi.{into}.f64 {x}, %d0"), &[NAN_64], top));
    }
    cases
}

fn from_integers() -> Vec<Case> {
    let odd = (1u64 << 24) + 1;
    let mut cases = vec![
        case("cvt.rn.f32.u32 %rx, %r0", &[odd], f(16_777_216.0)),
        case("cvt.rz.f32.u32 %rx, %r0", &[odd], f(16_777_216.0)),
        case("cvt.rm.f32.u32 %rx, %r0", &[odd], f(16_777_216.0)),
        case("cvt.rp.f32.u32 %rx, %r0", &[odd], f(16_777_218.0)),
        case("cvt.rn.f32.s32 %rx, %r0", &[(-16_777_219i32) as u64], f(-16_777_220.0)),
        case("cvt.rz.f32.s32 %rx, %r0", &[(-16_777_219i32) as u64], f(-16_777_218.0)),
        case("cvt.rm.f32.s32 %rx, %r0", &[(-16_777_219i32) as u64], f(-16_777_220.0)),
        case("cvt.rp.f32.s32 %rx, %r0", &[(-16_777_219i32) as u64], f(-16_777_218.0)),
        case("cvt.rn.f64.u64 %dx, %d0", &[u64::MAX], d(u64::MAX as f64)),
        case("cvt.rz.f64.u64 %dx, %d0", &[u64::MAX], d(u64::MAX as f64) - 1),
        case("cvt.rn.f64.s64 %dx, %d0", &[i64::MIN as u64], d(i64::MIN as f64)),
        case("cvt.rn.f16.s32 %hx, %r0", &[65_519], 0x7BFF),
        case("cvt.rn.f16.s32 %hx, %r0", &[65_520], 0x7C00),
        case("cvt.rz.f16.s32 %hx, %r0", &[1_000_000], 0x7BFF),
        case("cvt.rp.f16.s32 %hx, %r0", &[(-1_000_000i32) as u64], 0xFBFF),
        case("cvt.rm.f16.s32 %hx, %r0", &[(-1_000_000i32) as u64], 0xFC00),
        case("cvt.rn.bf16.s32 %hx, %r0", &[257], 0x4380),
        case("cvt.rn.bf16.s32 %hx, %r0", &[259], 0x4382),
        case("cvt.rn.sat.f32.s32 %rx, %r0", &[7], f(1.0)),
        case("cvt.rn.sat.f32.s32 %rx, %r0", &[(-7i32) as u64], f(0.0)),
    ];
    for (name, bits, value) in [
        ("u8", 16, 200.0f64),
        ("s8", 16, -56.0),
        ("u16", 16, 200.0),
        ("s16", 16, 200.0),
        ("u32", 32, 200.0),
        ("s32", 32, 200.0),
        ("u64", 64, 200.0),
        ("s64", 64, 200.0),
    ] {
        let a = register(bits, "0");
        let single = value as f32;
        cases.push(case(format!("cvt.rn.f32.{name} %rx, {a}"), &[200], f(single)));
        cases.push(case(format!("cvt.rn.f64.{name} %dx, {a}"), &[200], d(value)));
        let half = u64::from(half::f16::from_f32(single).to_bits());
        cases.push(case(format!("cvt.rn.f16.{name} %hx, {a}"), &[200], half));
        let half = u64::from(half::bf16::from_f32(single).to_bits());
        cases.push(case(format!("cvt.rn.bf16.{name} %hx, {a}"), &[200], half));
    }
    cases
}

fn between_floats() -> Vec<Case> {
    let mut cases = vec![
        case("cvt.rn.f32.f64 %rx, %d0", &[d(0.1)], f(0.1)),
        case("cvt.rz.f32.f64 %rx, %d0", &[d(0.1)], f(0.1) - 1),
        case("cvt.rm.f32.f64 %rx, %d0", &[d(0.1)], f(0.1) - 1),
        case("cvt.rp.f32.f64 %rx, %d0", &[d(0.1)], f(0.1)),
        case("cvt.rn.f32.f64 %rx, %d0", &[d(1e300)], f(f32::INFINITY)),
        case("cvt.rz.f32.f64 %rx, %d0", &[d(1e300)], f(f32::MAX)),
        case("cvt.rn.f32.f64 %rx, %d0", &[d(1e-300)], 0),
        case("cvt.rp.f32.f64 %rx, %d0", &[d(1e-300)], 1),
        case("cvt.rn.f32.f64 %rx, %d0", &[d(-0.0)], f(-0.0)),
        case("cvt.rn.f32.f64 %rx, %d0", &[NAN_64], NAN),
        case("cvt.rn.sat.f32.f64 %rx, %d0", &[d(-5.0)], 0),
        // Exactly between two values of f16, and a little more: not to be rounded twice.
        case("cvt.rn.f16.f64 %hx, %d0", &[d(1.0 + 1.0 / 2048.0)], 0x3C00),
        case("cvt.rn.f16.f64 %hx, %d0", &[d(1.0 + 1.0 / 2048.0) + 1], 0x3C01),
        case("cvt.rn.bf16.f64 %hx, %d0", &[d(1.0 + 1.0 / 256.0) + 1], 0x3F81),
        case("cvt.rz.f16.f32 %hx, %r0", &[f(65_535.0)], 0x7BFF),
        case("cvt.rm.f16.f32 %hx, %r0", &[f(-1e-10)], 0x8001),
        case("cvt.rp.f16.f32 %hx, %r0", &[f(-1e-10)], 0x8000),
        case("cvt.rn.sat.f16.f32 %hx, %r0", &[f(9.0)], 0x3C00),
        case("cvt.rz.bf16.f32 %hx, %r0", &[0x3F80_FFFF], 0x3F80),
        case("cvt.rm.bf16.f32 %hx, %r0", &[0x3F80_0001], 0x3F80),
        case("cvt.rp.bf16.f32 %hx, %r0", &[0x3F80_0001], 0x3F81),
        case("cvt.f32.f16 %rx, %h0", &[0x0001], f(2f32.powi(-24))),
        case("cvt.f32.f16 %rx, %h0", &[0x7E55], NAN),
        case("cvt.f32.bf16 %rx, %h0", &[0xC049], 0xC049_0000),
        case("cvt.f64.f16 %dx, %h0", &[0xFC00], d(f64::NEG_INFINITY)),
        case("cvt.f64.bf16 %dx, %h0", &[0x3FC0], d(1.5)),
        case("cvt.f64.f32 %dx, %r0", &[f(0.1)], d(f64::from(0.1f32))),
        case("cvt.sat.f64.f32 %dx, %r0", &[f(0.5)], d(0.5)),
        case("cvt.sat.f32.f16 %rx, %h0", &[0xBC00], 0),
        case("cvt.sat.f32.f32 %rx, %r0", &[f(1.5)], f(1.0)),
        case("cvt.sat.f32.f32 %rx, %r0", &[f(-0.0)], 0),
        case("cvt.sat.f32.f32 %rx, %r0", &[f(f32::NAN)], 0),
        case("cvt.sat.f64.f64 %dx, %d0", &[d(0.25)], d(0.25)),
        case("cvt.sat.f16.f16 %hx, %h0", &[0x4000], 0x3C00),
        case("cvt.rn.f16x2.f32 %rx, %r0, %r1", &[f(1.0), f(2.0)], 0x3C00_4000),
        case("cvt.rz.f16x2.f32 %rx, %r0, %r1", &[f(1e9), f(-1e9)], 0x7BFF_FBFF),
        case("cvt.rn.bf16x2.f32 %rx, %r0, %r1", &[f(1.0), f(2.0)], 0x3F80_4000),
        case("cvt.rz.bf16x2.f32 %rx, %r0, %r1", &[0x3F80_FFFF, 0x3F81_FFFF], 0x3F80_3F81),
    ];
    for (mode, results) in [
        ("rni", [2.0, -2.0, -0.0]),
        ("rzi", [1.0, -2.0, -0.0]),
        ("rmi", [1.0, -3.0, -1.0]),
        ("rpi", [2.0, -2.0, -0.0]),
    ] {
        for (value, result) in [1.5f32, -2.5, -0.25].into_iter().zip(results) {
            let single = case(format!("cvt.{mode}.f32.f32 %rx, %r0"), &[f(value)], f(result));
            let (from, into) = (d(f64::from(value)), d(f64::from(result)));
            let double = case(format!("cvt.{mode}.f64.f64 %dx, %d0"), &[from], into);
            let [from, into] =
                [value, result].map(|value| u64::from(half::f16::from_f32(value).to_bits()));
            let half = case(format!("cvt.{mode}.f16.f16 %hx, %h0"), &[from], into);
            cases.extend([single, double, half]);
        }
    }
    cases.push(case("cvt.rmi.sat.f32.f32 %rx, %r0", &[f(7.5)], f(1.0)));
    cases.push(case("cvt.rni.sat.f64.f64 %dx, %d0", &[d(-7.5)], d(0.0)));
    cases.push(case("cvt.rzi.sat.f16.f16 %hx, %h0", &[0x4500], 0x3C00));
    // All of f32 to f16 and bf16 against another implementation, in steps.
    for bits in (0..=u32::MAX).step_by(9_999_991) {
        let value = f32::from_bits(bits);
        let half =
            if value.is_nan() { 0x7FFF } else { u64::from(half::f16::from_f32(value).to_bits()) };
        cases.push(case("cvt.rn.f16.f32 %hx, %r0", &[u64::from(bits)], half));
        let half =
            if value.is_nan() { 0x7FFF } else { u64::from(half::bf16::from_f32(value).to_bits()) };
        cases.push(case("cvt.rn.bf16.f32 %hx, %r0", &[u64::from(bits)], half));
    }
    cases
}
