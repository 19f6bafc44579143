//! Texts that are refused, and that the error names the line.

use super::{module, module_text};
use crate::ptx::Module;

/// The message about a body, which starts at line 3 of the text.
fn refused(body: &str) -> String {
    let declarations = ".reg .pred %p<4>; .reg .b16 %h<4>; .reg .b32 %r<4>; .reg .b64 %d<4>;";
    let text = module_text(&["p"], &format!("{declarations}\n{body}"));
    let error = Module::parse(&text).err().unwrap_or_else(|| panic!("{body} is accepted"));
    assert_eq!(error.text, text.lines().nth(error.line - 1).unwrap().trim());
    error.to_string()
}

#[test]
fn unknown_forms_are_named_with_their_line() {
    let message = refused("add.u32 %r1, %r2, %r3;\n  foo.bar %r1;");
    assert_eq!(
        message,
        "line 5: `foo.bar %r1;`: `foo.bar` is no instruction form that is known, nor is `foo`"
    );
    let message = refused("vote.sync.most.pred %p1, %p2, -1;");
    assert_eq!(
        message,
        "line 4: `vote.sync.most.pred %p1, %p2, -1;`: `vote.sync.most.pred` is no instruction form \
         that is known: these are: vote sync all|any|uni pred; vote sync ballot b32"
    );
}

#[test]
fn modifiers_are_not_ignored() {
    for instruction in [
        "add.ftz.f32 %r1, %r2, %r3",
        "add.sat.s32 %r1, %r2, %r3",
        "add.rz.f32 %r1, %r2, %r3",
        "add.cc.u32 %r1, %r2, %r3",
        "add.u8 %r1, %r2, %r3",
        "mul.u32 %r1, %r2, %r3",
        "mul.wide.u64 %d1, %d2, %d3",
        "fma.f32 %r1, %r2, %r3, %r1",
        "div.approx.f32 %r1, %r2, %r3",
        "div.full.f32 %r1, %r2, %r3",
        "sqrt.approx.f32 %r1, %r2",
        "cvt.f16.f32 %h1, %r1",
        "cvt.u32.f32 %r1, %r2",
        "cvt.f32.u32 %r1, %r2",
        "cvt.rn.relu.f16.f32 %h1, %r1",
        "cvt.rn.satfinite.e4m3x2.f32 %h1, %r1, %r2",
        "ld.global.relaxed.gpu.u32 %r1, [%d1]",
        "ld.relaxed.u32 %r1, [%d1]",
        "ld.acquire.cluster.u32 %r1, [%d1]",
        "ld.global.b128 %d1, [%d1]",
        "ld.global.v8.b32 %r1, [%d1]",
        "st.const.u32 [%d1], %r1",
        "st.acquire.gpu.u32 [%d1], %r1",
        "atom.add.noftz.f16 %h1, [%d1], %h2",
        "atom.global.add.s64 %d1, [%d1], %d2",
        "red.global.exch.b32 [%d1], %r1",
        "red.acquire.gpu.add.u32 [%d1], %r1",
        "fence.acq_rel",
        "fence.acq_rel.cluster",
        "fence.proxy.async",
        "membar.gpu",
        "bar.arrive 0, 32",
        "barrier.cluster.arrive",
        "shfl.idx.b32 %r1, %r2, 0, 31",
        "prmt.b32.f4e %r1, %r2, %r3, %r1",
        "setp.lt.ftz.f32 %p1, %r1, %r2",
        "setp.lo.s32 %p1, %r1, %r2",
        "setp.ltu.s32 %p1, %r1, %r2",
        "shf.l.b32 %r1, %r2, %r3, %r1",
        "call.uni foo, ()",
        "brx.idx %r1, table",
    ] {
        let opcode = instruction.split(' ').next().unwrap();
        let message = refused(&format!("\n{instruction};"));
        assert!(message.starts_with("line 5: "), "{message}");
        assert!(message.contains(&format!("`{opcode}` is no instruction form")), "{message}");
    }
}

#[test]
fn operands_must_fit() {
    for (instruction, what) in [
        ("add.u32 %r1, %r2", "an operand is missing"),
        ("add.u32 %r1, %r2, %r3, %r0", "takes 1 operands less"),
        ("add.u32 %r1, %r2, %d3", "`%d3` has 64 bits, the instruction takes 32"),
        ("add.u32 %r1, %r2, %x", "`%x` is not declared"),
        ("add.u32 5, %r2, %r3", "cannot be written to"),
        ("add.u32 %r1, %r2, [%d1]", "cannot stand here"),
        ("add.u32 %r1, %r2, 4294967296", "4294967296 does not fit into 32 bits"),
        ("add.f32 %r1, %r2, 1", "is no float of the form 0f"),
        ("add.f64 %d1, %d2, 0f3F800000", "is no float of the form 0d"),
        ("add.f32 %r1, %r2, 0f3F8", "is no float of the form 0f"),
        ("mov.u64 %d1, %tid.x", "`%tid.x` has 32 bits, the instruction takes 64"),
        ("mov.u32 %tid.x, %r1", "is no register that is declared"),
        ("mov.u16 %h1, p", "`p` is an address"),
        ("mov.b64 {%r1, %r2, %r3}, %d1", "is no vector of 3"),
        ("ld.global.v2.u32 %r1, [%d1]", "a vector of 2 is needed"),
        ("ld.global.v2.u32 {%r1, %r2, %r3}, [%d1]", "a vector of 2 is needed"),
        ("ld.global.u64 %r1, [%d1]", "`%r1` has 32 bits, the instruction takes 64"),
        ("ld.global.u32 %r1, %d1", "an address in brackets is needed"),
        ("ld.global.u32 %r1, [%h1]", "too narrow for an address"),
        ("ld.global.u32 %r1, [p]", "`p` lies in another state space"),
        ("ld.global.u32 %r1, [%d1+2147483648]", "offset 2147483648 is too far"),
        ("ld.u8 %p1, [%d1]", "`%p1` has 1 bits"),
        ("setp.eq.u32 %r1, %r2, %r3", "`%r1` has 32 bits, the instruction takes 1"),
        ("setp.eq.and.u32 %p1, %r2, %r3", "an operand is missing"),
        ("@%r1 bra $L", "`%r1` is no predicate"),
        ("bra $nowhere", "there is no label `$nowhere`"),
        ("bra [%d1]", "is no label"),
        ("add.u32 %r1 %r2, %r3", "`,` expected, `%r2` found"),
    ] {
        let message = refused(&format!("\n\n{instruction};"));
        assert!(message.starts_with("line 6: "), "{message}");
        assert!(message.contains(what), "{message} lacks: {what}");
    }
}

#[test]
fn unknown_directives_are_refused() {
    for (text, line, what) in [
        ("", 1, "starts with .version"),
        (".version 8.0\n.target gfx90", 2, "a target is needed"),
        (".version 8.0\n.target sm_80, texmode_independent", 2, "target option"),
        (".version 8.0 .target sm_80\n.address_size 32", 2, "64 bits"),
        (".version 8.0 .target sm_80\n\n.func foo() { ret; }", 3, "this directive is not known"),
        (".version 8.0 .target sm_80\n.extern .func foo;", 2, "`.shared` expected"),
        (".version 8.0 .target sm_80\n.global .u128 x;", 2, "`.u128` is no type"),
        (".version 8.0 .target sm_80\n.global .u32 x[];", 2, "an array without a size"),
        (".version 8.0 .target sm_80\n.global .u32 x[1] = {1, 2};", 2, "more values"),
        (".version 8.0 .target sm_80\n.global .u64 x = foo;", 2, "no number"),
        (".version 8.0 .target sm_80\n.global .align 3 .u32 x;", 2, "power of two"),
        (
            ".version 8.0 .target sm_80\n.entry k() .blocksareclusters { ret; }",
            2,
            "directive of a kernel",
        ),
        (
            ".version 8.0 .target sm_80\n.entry k() {\n.sreg .b32 x; }",
            3,
            "`.sreg` is not known here",
        ),
        (".version 8.0 .target sm_80\n.entry k() {\n.reg .v2 x; }", 3, "no type of a register"),
        (".version 8.0 .target sm_80\n.entry k() {\n.reg .b32 x, x; }", 3, "declared twice"),
        (".version 8.0 .target sm_80\n.entry k() {\nL: L: ret; }", 3, "declared twice"),
        (".version 8.0 .target sm_80\n.entry k() { ret; }\n.entry k() { ret; }", 3, "there twice"),
        (".version 8.0 .target sm_80\n.entry k() { ret;", 2, "ends too early"),
        (".version 8.0 .target sm_80\n.entry k() { ret? }", 2, "'?' has no meaning"),
        (".version 8.0 .target sm_80\n/* ", 2, "comment has no end"),
        (".version 8.0 .target sm_80\n.pragma \"x", 2, "string has no end"),
    ] {
        let error = Module::parse(text).err().unwrap_or_else(|| panic!("{text} is accepted"));
        assert_eq!(error.line, line, "{error}");
        assert!(error.what.contains(what), "{error} lacks: {what}");
    }
}

#[test]
fn what_says_nothing_about_the_execution_is_skipped() {
    let text = "
        // A comment.
        .version 8.0 /* another,
        of two lines */
        .target sm_90a, debug
        .address_size 64
        .file 1 \"a.cu\", 17, 18
        .weak .entry k() .maxnreg 32 .pragma \"nounroll\"; {
            .loc 1 2 3
            .pragma \"nounroll\"; ret;
        }
        .section .debug_str { .b8 1, 2; }\0";
    let module = Module::parse(text).unwrap();
    assert_eq!((module.target, module.entries().count()), (90, 1));
}

#[test]
fn registers_and_labels_belong_to_their_block() {
    let body = "
        .reg .b32 %r1;
        { .reg .b64 %r1; mov.u64 %r1, 5; bra L; L: mov.u64 %r1, 6; }
        { bra L; L: mov.u32 %r1, 6; }
        bra L;
        L: ret;";
    module(&[], body);
    let message = refused("{ .reg .b32 %q; }\nmov.u32 %q, 1;");
    assert!(message.contains("line 5"), "{message}");
}
