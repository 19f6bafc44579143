//! The instruction forms that are known, as a table of patterns, and how an opcode is looked up in it.
//!
//! A pattern is the opcode followed by its modifiers in order: `add [rn] f32|f64` is `add.f32`,
//! `add.rn.f32`, `add.f64` and `add.rn.f64`. Brackets mark what may be missing, `<…>` a set of
//! modifiers from [`SETS`]. What no pattern matches is refused, and the tests demand a case for every
//! alternative of every pattern.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::arithmetic as math;
use super::instruction::{Binary, Ternary, Unary};
use super::types::Type;

/// How the operands of a form are read and what it becomes.
#[derive(Clone, Copy)]
pub(super) enum Build {
    /// Result and operands have the type of the last modifier, except where said otherwise.
    Unary(fn(Type) -> Option<Unary>),
    /// The result has 32 bits.
    Count(fn(Type) -> Option<Unary>),
    Binary(fn(Type) -> Option<Binary>),
    /// The result is twice as wide.
    BinaryWide(fn(Type) -> Option<Binary>),
    /// The second operand has 32 bits.
    Shift(fn(Type) -> Option<Binary>),
    Ternary(fn(Type) -> Option<Ternary>),
    /// Result and third operand are twice as wide.
    TernaryWide(fn(Type) -> Option<Ternary>),
    /// The second and third operands have 32 bits.
    Extract(fn(Type) -> Option<Ternary>),
    Insert,
    Lookup,
    Select,
    Compare,
    Mov,
    Convert,
    ConvertPair,
    Cvta,
    Load,
    Store,
    Atomic,
    Reduction,
    Fence,
    Barrier,
    BarrierReduce,
    WarpBarrier,
    Shuffle,
    Vote,
    ActiveMask,
    Branch,
    Exit,
    Trap,
    Nanosleep,
}

/// Sets of modifiers that several patterns share.
const SETS: &[(&str, &str)] = &[
    ("<int>", "u16|s16|u32|s32|u64|s64"),
    ("<signed>", "s16|s32|s64"),
    ("<bits>", "b16|b32|b64"),
    ("<float>", "f32|f64"),
    ("<half>", "f16|f16x2|bf16|bf16x2"),
    ("<small-float>", "f16|bf16|f32|f64"),
    ("<any-int>", "u8|s8|u16|s16|u32|s32|u64|s64"),
    ("<memory>", "b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64"),
    ("<space>", "global|shared|shared::cta|local"),
    ("<scope>", "cta|gpu|sys"),
    ("<semantics>", "relaxed|acquire|release|acq_rel"),
    ("<atomic-space>", "global|shared|shared::cta"),
    (
        "<evict>",
        "L1::evict_normal|L1::evict_unchanged|L1::evict_first|L1::evict_last|L1::no_allocate",
    ),
    ("<prefetch>", "L2::64B|L2::128B|L2::256B"),
    ("<integral>", "rni|rzi|rmi|rpi"),
    ("<rounding>", "rn|rz|rm|rp"),
    ("<ordered>", "eq|ne|lt|le|gt|ge"),
    ("<unordered>", "equ|neu|ltu|leu|gtu|geu|num|nan"),
    ("<boolean>", "and|or|xor"),
];

/// Every form there is.
const PATTERNS: &[(&str, Build)] = &[
    ("add <int>", Build::Binary(math::add)),
    ("add [rn] <float>|<half>", Build::Binary(math::add)),
    ("sub <int>", Build::Binary(math::sub)),
    ("sub [rn] <float>|<half>", Build::Binary(math::sub)),
    ("mul lo <int>", Build::Binary(math::mul)),
    ("mul hi <int>", Build::Binary(math::mul_hi)),
    ("mul wide u16|s16|u32|s32", Build::BinaryWide(math::mul_wide)),
    ("mul [rn] <float>|<half>", Build::Binary(math::mul)),
    ("mad lo <int>", Build::Ternary(math::mad_lo)),
    ("mad hi <int>", Build::Ternary(math::mad_hi)),
    ("mad wide u16|s16|u32|s32", Build::TernaryWide(math::mad_wide)),
    ("fma rn <float>|<half>", Build::Ternary(math::fma)),
    ("div <int>", Build::Binary(math::div)),
    ("div rn <float>", Build::Binary(math::div)),
    ("rem <int>", Build::Binary(math::rem)),
    ("rcp rn <float>", Build::Unary(math::rcp)),
    ("sqrt rn <float>", Build::Unary(math::sqrt)),
    ("min <int>|f64", Build::Binary(math::min)),
    ("min f32|<half>", Build::Binary(math::min)),
    ("min NaN f32|<half>", Build::Binary(math::min_nan)),
    ("max <int>|f64", Build::Binary(math::max)),
    ("max f32|<half>", Build::Binary(math::max)),
    ("max NaN f32|<half>", Build::Binary(math::max_nan)),
    ("neg <signed>|<float>|<half>", Build::Unary(math::neg)),
    ("abs <signed>|<float>|<half>", Build::Unary(math::abs)),
    ("copysign <float>", Build::Binary(math::copysign)),
    ("and pred|<bits>", Build::Binary(math::and)),
    ("or pred|<bits>", Build::Binary(math::or)),
    ("xor pred|<bits>", Build::Binary(math::xor)),
    ("not pred|<bits>", Build::Unary(math::not)),
    ("shl <bits>", Build::Shift(math::shl)),
    ("shr <bits>|<int>", Build::Shift(math::shr)),
    ("shf l wrap b32", Build::Ternary(math::shf_left_wrap)),
    ("shf l clamp b32", Build::Ternary(math::shf_left_clamp)),
    ("shf r wrap b32", Build::Ternary(math::shf_right_wrap)),
    ("shf r clamp b32", Build::Ternary(math::shf_right_clamp)),
    ("popc b32|b64", Build::Count(math::popc)),
    ("clz b32|b64", Build::Count(math::clz)),
    ("bfind u32|s32|u64|s64", Build::Count(math::bfind)),
    ("bfind shiftamt u32|s32|u64|s64", Build::Count(math::bfind_shift)),
    ("brev b32|b64", Build::Unary(math::brev)),
    ("bfe u32|s32|u64|s64", Build::Extract(math::bfe)),
    ("bfi b32|b64", Build::Insert),
    ("prmt b32", Build::Ternary(math::prmt)),
    ("lop3 b32", Build::Lookup),
    ("selp <bits>|<int>|<float>", Build::Select),
    ("setp eq|ne [<boolean>] <bits>", Build::Compare),
    ("setp <ordered> [<boolean>] <int>", Build::Compare),
    ("setp lo|ls|hi|hs [<boolean>] u16|u32|u64", Build::Compare),
    ("setp <ordered>|<unordered> [<boolean>] <small-float>", Build::Compare),
    ("mov pred|<bits>|<int>|<float>", Build::Mov),
    ("cvt [sat] <any-int> <any-int>", Build::Convert),
    ("cvt <rounding> [sat] <small-float> <any-int>", Build::Convert),
    ("cvt <integral> [sat] <any-int> <small-float>", Build::Convert),
    ("cvt <integral> [sat] f16 f16", Build::Convert),
    ("cvt <integral> [sat] f32 f32", Build::Convert),
    ("cvt <integral> [sat] f64 f64", Build::Convert),
    ("cvt sat f16 f16", Build::Convert),
    ("cvt sat f32 f32", Build::Convert),
    ("cvt sat f64 f64", Build::Convert),
    ("cvt [sat] f32 f16|bf16", Build::Convert),
    ("cvt [sat] f64 f16|bf16|f32", Build::Convert),
    ("cvt <rounding> [sat] f32 f64", Build::Convert),
    ("cvt <rounding> [sat] f16 f32|f64", Build::Convert),
    ("cvt <rounding> bf16 f32|f64", Build::Convert),
    ("cvt rn|rz f16x2 f32", Build::ConvertPair),
    ("cvt rn|rz bf16x2 f32", Build::ConvertPair),
    ("cvta [to] <space>|const|param u64", Build::Cvta),
    (
        "ld [weak] [<space>|const|param] [ca|cg|cs|lu|cv] [<evict>] [<prefetch>] [v2|v4] <memory>",
        Build::Load,
    ),
    ("ld global [ca|cg|cs] nc [<evict>] [<prefetch>] [v2|v4] <memory>", Build::Load),
    ("ld volatile [<space>] [v2|v4] <memory>", Build::Load),
    ("ld relaxed|acquire <scope> [<space>] [<evict>] [v2|v4] <memory>", Build::Load),
    ("st [weak] [<space>] [wb|cg|cs|wt] [<evict>] [v2|v4] <memory>", Build::Store),
    ("st volatile [<space>] [v2|v4] <memory>", Build::Store),
    ("st relaxed|release <scope> [<space>] [<evict>] [v2|v4] <memory>", Build::Store),
    // The compiler names the scope behind the space, the manual before it.
    (
        "atom [<semantics>] [<scope>] [<atomic-space>] [<scope>] add u32|s32|u64|f32|f64",
        Build::Atomic,
    ),
    (
        "atom [<semantics>] [<scope>] [<atomic-space>] [<scope>] exch|cas|and|or|xor b32|b64",
        Build::Atomic,
    ),
    ("atom [<semantics>] [<scope>] [<atomic-space>] [<scope>] cas b16", Build::Atomic),
    (
        "atom [<semantics>] [<scope>] [<atomic-space>] [<scope>] min|max u32|s32|u64|s64",
        Build::Atomic,
    ),
    ("atom [<semantics>] [<scope>] [<atomic-space>] [<scope>] inc|dec u32", Build::Atomic),
    (
        "red [relaxed|release] [<scope>] [<atomic-space>] [<scope>] add u32|s32|u64|f32|f64",
        Build::Reduction,
    ),
    (
        "red [relaxed|release] [<scope>] [<atomic-space>] [<scope>] and|or|xor b32|b64",
        Build::Reduction,
    ),
    (
        "red [relaxed|release] [<scope>] [<atomic-space>] [<scope>] min|max u32|s32|u64|s64",
        Build::Reduction,
    ),
    ("red [relaxed|release] [<scope>] [<atomic-space>] [<scope>] inc|dec u32", Build::Reduction),
    ("membar cta|gl|sys", Build::Fence),
    ("fence [sc|acq_rel] <scope>", Build::Fence),
    ("bar [cta] sync", Build::Barrier),
    ("barrier [cta] sync [aligned]", Build::Barrier),
    ("bar [cta] red popc u32", Build::BarrierReduce),
    ("bar [cta] red and|or pred", Build::BarrierReduce),
    ("bar warp sync", Build::WarpBarrier),
    ("shfl sync up|down|bfly|idx b32", Build::Shuffle),
    ("vote sync all|any|uni pred", Build::Vote),
    ("vote sync ballot b32", Build::Vote),
    ("activemask b32", Build::ActiveMask),
    ("bra [uni]", Build::Branch),
    ("ret [uni]", Build::Exit),
    ("exit", Build::Exit),
    ("trap", Build::Trap),
    ("nanosleep u32", Build::Nanosleep),
];

/// A pattern, taken apart.
pub(super) struct Form {
    pub pattern: &'static str,
    pub positions: Vec<Position>,
    build: Build,
}

/// What may stand at one place of an opcode.
pub(super) struct Position {
    pub alternatives: Vec<&'static str>,
    is_optional: bool,
}

/// An opcode that was found in the table.
pub(super) struct Matched {
    pub build: Build,
    /// Index into [`FORMS`], for the tests.
    #[cfg_attr(not(test), allow(dead_code))]
    pub form: usize,
    /// For each of the form's positions, what stands there.
    pub modifiers: Vec<Option<&'static str>>,
}

impl Matched {
    pub fn has(&self, modifier: &str) -> bool {
        self.modifiers.contains(&Some(modifier))
    }

    /// The types that are named, in order.
    pub fn types(&self) -> impl DoubleEndedIterator<Item = Type> {
        self.modifiers.iter().flatten().filter_map(|modifier| Type::parse(modifier))
    }
}

/// The table, taken apart.
pub(super) static FORMS: LazyLock<Vec<Form>> = LazyLock::new(|| {
    PATTERNS
        .iter()
        .map(|(pattern, build)| Form {
            pattern,
            positions: pattern.split(' ').skip(1).map(position).collect(),
            build: *build,
        })
        .collect()
});

static FORMS_OF_OPCODE: LazyLock<HashMap<&str, Vec<usize>>> = LazyLock::new(|| {
    let mut forms: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, form) in FORMS.iter().enumerate() {
        let opcode = form.pattern.split(' ').next().unwrap_or_default();
        forms.entry(opcode).or_default().push(index);
    }
    forms
});

fn position(word: &'static str) -> Position {
    let inner = word.strip_prefix('[').and_then(|word| word.strip_suffix(']'));
    let mut alternatives = Vec::new();
    for part in inner.unwrap_or(word).split('|') {
        match SETS.iter().find(|(name, _)| *name == part) {
            Some((_, members)) => alternatives.extend(members.split('|')),
            None => alternatives.push(part),
        }
    }
    Position { alternatives, is_optional: inner.is_some() }
}

/// The form of an opcode with its modifiers, such as `ld.global.v2.u32`.
pub(super) fn find(opcode: &str) -> Result<Matched, String> {
    let mut words = opcode.split('.');
    let base = words.next().unwrap_or_default();
    let words: Vec<&str> = words.collect();
    let Some(candidates) = FORMS_OF_OPCODE.get(base) else {
        return Err(format!("`{opcode}` is no instruction form that is known, nor is `{base}`"));
    };
    for form in candidates {
        if let Some(modifiers) = match_modifiers(&FORMS[*form], &words) {
            return Ok(Matched { build: FORMS[*form].build, form: *form, modifiers });
        }
    }
    let known: Vec<&str> = candidates.iter().map(|form| FORMS[*form].pattern).collect();
    Err(format!("`{opcode}` is no instruction form that is known: these are: {}", known.join("; ")))
}

/// No modifier stands in two neighbouring positions of a pattern, so the first that fits is right.
fn match_modifiers(form: &Form, words: &[&str]) -> Option<Vec<Option<&'static str>>> {
    let mut words = words.iter().peekable();
    let mut modifiers = Vec::with_capacity(form.positions.len());
    for position in &form.positions {
        let found = words.peek().and_then(|word| {
            position.alternatives.iter().find(|alternative| *alternative == *word)
        });
        if found.is_some() {
            words.next();
        } else if !position.is_optional {
            return None;
        }
        modifiers.push(found.copied());
    }
    words.next().is_none().then_some(modifiers)
}
