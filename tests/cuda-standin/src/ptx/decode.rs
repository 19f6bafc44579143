//! Turns an instruction's words into an [`Operation`]: checks the operands against the form and gives
//! them their slots.

use super::arithmetic;
use super::convert::{self, Conversion};
use super::float::Rounding;
use super::forms::{self, Build, Matched};
use super::instruction::{
    Address, Binary, Combine, Operation, Order, Reduce, Scope, Shuffle, Slot, SlotContent, Space,
    Special, Ternary, Vote,
};
use super::lexer::Token;
use super::names::{Named, Names};
use super::operands::{self, Operand, integer};
use super::types::Type;

/// How wide a register may be.
#[derive(Clone, Copy, PartialEq)]
enum Fit {
    Exact,
    /// `ld`, `st` and `cvt` take registers wider than their type.
    AtLeast,
}

/// A decoded instruction.
pub(super) enum Decoded<'a> {
    Operation(Operation),
    /// To a label, which may come later.
    BranchTo(&'a str),
}

/// Decodes `opcode operands`.
pub(super) fn decode<'a>(
    names: &mut Names,
    opcode: &str,
    operands: &[Token<'a>],
) -> Result<Decoded<'a>, String> {
    let matched = forms::find(opcode)?;
    let operands = operands::operands(operands)?.into_iter();
    let mut decoder = Decoder { names, matched, operands };
    let decoded = decoder.build()?;
    match decoder.operands.len() {
        0 => Ok(decoded),
        more => Err(format!("`{opcode}` takes {more} operands less")),
    }
}

struct Decoder<'a, 'n> {
    names: &'n mut Names,
    matched: Matched,
    operands: std::vec::IntoIter<Operand<'a>>,
}

impl<'a> Decoder<'a, '_> {
    fn build(&mut self) -> Result<Decoded<'a>, String> {
        let kind = self.matched.types().next_back().unwrap_or(Type::B32);
        let operation = match self.matched.build {
            Build::Unary(select) => {
                let (to, a) = (self.destination(kind)?, self.source(kind)?);
                Operation::Unary { apply: known(select(kind))?, to, a }
            }
            Build::Count(select) => {
                let (to, a) = (self.destination(Type::U32)?, self.source(kind)?);
                Operation::Unary { apply: known(select(kind))?, to, a }
            }
            Build::Binary(select) => self.binary(select(kind), kind, kind)?,
            Build::BinaryWide(select) => self.binary(select(kind), known(kind.widened())?, kind)?,
            Build::Shift(select) => {
                let (to, a) = (self.destination(kind)?, self.source(kind)?);
                let b = self.source(Type::U32)?;
                Operation::Binary { apply: known(select(kind))?, to, a, b }
            }
            Build::Ternary(select) => self.ternary(select(kind), kind, [kind, kind, kind])?,
            Build::TernaryWide(select) => {
                let wide = known(kind.widened())?;
                self.ternary(select(kind), wide, [kind, kind, wide])?
            }
            Build::Extract(select) => {
                self.ternary(select(kind), kind, [kind, Type::U32, Type::U32])?
            }
            Build::Insert => Operation::Insert {
                kind,
                to: self.destination(kind)?,
                a: self.source(kind)?,
                b: self.source(kind)?,
                position: self.source(Type::U32)?,
                len: self.source(Type::U32)?,
            },
            Build::Lookup => {
                let to = self.destination(kind)?;
                let (a, b, c) = (self.source(kind)?, self.source(kind)?, self.source(kind)?);
                Operation::Lookup { table: integer(&self.next()?, Type::U8)? as u8, to, a, b, c }
            }
            Build::Select => Operation::Select {
                to: self.destination(kind)?,
                a: self.source(kind)?,
                b: self.source(kind)?,
                condition: self.source(Type::Pred)?,
            },
            Build::Compare => self.compare(kind)?,
            Build::Mov => self.mov(kind)?,
            Build::Convert => self.convert()?,
            Build::ConvertPair => {
                let pair = self.matched.types().next().unwrap_or(kind);
                self.binary(convert::pair(pair, self.rounding()), Type::B32, Type::F32)?
            }
            Build::Cvta => self.cvta()?,
            Build::Load => {
                let to = self.vector(kind, Decoder::memory_destination)?;
                let place = self.address()?;
                Operation::Load { place, kind, count: self.count(), order: self.order(), to }
            }
            Build::Store => {
                let place = self.address()?;
                let from = self.vector(kind, Decoder::memory_source)?;
                Operation::Store { place, kind, count: self.count(), order: self.order(), from }
            }
            Build::Atomic => {
                let to = self.destination(kind)?;
                self.atomic(to, kind)?
            }
            Build::Reduction => {
                let to = self.names.sink_slot()?;
                self.atomic(to, kind)?
            }
            Build::Fence => Operation::Fence { scope: self.scope() },
            Build::Barrier => {
                let id = self.source(Type::U32)?;
                Operation::Barrier { id, count: self.barrier_count(1)? }
            }
            Build::BarrierReduce => {
                let mode = match self.matched.modifiers[2] {
                    Some("popc") => Reduce::Count,
                    Some("and") => Reduce::All,
                    _ => Reduce::Any,
                };
                let (to, id) = (self.destination(kind)?, self.source(Type::U32)?);
                let count = self.barrier_count(2)?;
                let (value, negated) = self.predicate()?;
                Operation::BarrierReduce { mode, id, count, to, value, negated }
            }
            Build::WarpBarrier => Operation::WarpBarrier { mask: self.source(Type::B32)? },
            Build::Shuffle => self.shuffle()?,
            Build::Vote => self.vote(kind)?,
            Build::ActiveMask => Operation::ActiveMask { to: self.destination(kind)? },
            Build::Branch => match self.next()? {
                Operand::Name(label) => return Ok(Decoded::BranchTo(label)),
                operand => return Err(format!("{operand:?} is no label")),
            },
            Build::Exit => Operation::Exit,
            Build::Trap => Operation::Trap,
            Build::Nanosleep => {
                self.source(Type::U32)?;
                Operation::Nanosleep
            }
        };
        Ok(Decoded::Operation(operation))
    }

    fn binary(&mut self, apply: Option<Binary>, to: Type, kind: Type) -> Result<Operation, String> {
        let (to, a, b) = (self.destination(to)?, self.source(kind)?, self.source(kind)?);
        Ok(Operation::Binary { apply: known(apply)?, to, a, b })
    }

    fn ternary(
        &mut self,
        apply: Option<Ternary>,
        to: Type,
        kinds: [Type; 3],
    ) -> Result<Operation, String> {
        let to = self.destination(to)?;
        let [a, b, c] = kinds;
        let (a, b, c) = (self.source(a)?, self.source(b)?, self.source(c)?);
        Ok(Operation::Ternary { apply: known(apply)?, to, a, b, c })
    }

    fn compare(&mut self, kind: Type) -> Result<Operation, String> {
        let (to, opposite) = self.destination_pair(Type::Pred)?;
        let (a, b) = (self.source(kind)?, self.source(kind)?);
        let boolean = self.matched.modifiers[1];
        let combine = match boolean {
            None => Combine::No,
            Some(boolean) => {
                let (with, negated) = self.predicate()?;
                match boolean {
                    "and" => Combine::And { with, negated },
                    "or" => Combine::Or { with, negated },
                    _ => Combine::Xor { with, negated },
                }
            }
        };
        let comparison = self.matched.modifiers[0].unwrap_or_default();
        let apply = known(arithmetic::compare(comparison, kind))?;
        Ok(Operation::Compare { apply, to, opposite, a, b, combine })
    }

    fn mov(&mut self, kind: Type) -> Result<Operation, String> {
        let operands = self.operands.as_slice();
        match operands {
            [Operand::Vector(items), _] => {
                let (count, piece) = piece_of(kind, items.len())?;
                let to = self.vector_of(count, piece, Decoder::destination)?;
                let a = self.source(kind)?;
                Ok(Operation::Unpack { to, count: count as u8, piece_bits: piece.bits() as u8, a })
            }
            [_, Operand::Vector(items)] => {
                let (count, piece) = piece_of(kind, items.len())?;
                let to = self.destination(kind)?;
                let from = self.vector_of(count, piece, Decoder::source)?;
                Ok(Operation::Pack { to, from, count: count as u8, piece_bits: piece.bits() as u8 })
            }
            [_, Operand::Name("%clock64" | "%clock")] => {
                let to = self.destination(kind)?;
                self.next()?;
                Ok(Operation::Clock { to })
            }
            [_, Operand::Name("%globaltimer")] => {
                let to = self.destination(Type::U64)?;
                self.next()?;
                Ok(Operation::GlobalTimer { to })
            }
            _ => {
                let (to, a) = (self.destination(kind)?, self.source(kind)?);
                Ok(Operation::Unary { apply: |a| a, to, a })
            }
        }
    }

    fn convert(&mut self) -> Result<Operation, String> {
        let mut types = self.matched.types();
        let (into, from) = (known(types.next())?, known(types.next())?);
        drop(types);
        let conversion = Conversion {
            from,
            into,
            rounding: self.rounding(),
            is_integral: ["rni", "rzi", "rmi", "rpi"].iter().any(|name| self.matched.has(name)),
            saturates: self.matched.has("sat"),
        };
        let to_operand = self.next()?;
        let to = self.destination_slot(&to_operand, into, integer_fit(into))?;
        let from_operand = self.next()?;
        let a = self.source_slot(&from_operand, from, integer_fit(from))?;
        Ok(Operation::Convert { conversion, to, a })
    }

    fn rounding(&self) -> Rounding {
        let find = |names: [&str; 2]| names.iter().any(|name| self.matched.has(name));
        if find(["rz", "rzi"]) {
            Rounding::Zero
        } else if find(["rm", "rmi"]) {
            Rounding::Down
        } else if find(["rp", "rpi"]) {
            Rounding::Up
        } else {
            Rounding::NearestEven
        }
    }

    fn cvta(&mut self) -> Result<Operation, String> {
        let (to, a) = (self.destination(Type::U64)?, self.source(Type::U64)?);
        let space = self.space();
        Ok(if self.matched.has("to") {
            Operation::FromGeneric { space, to, a }
        } else {
            Operation::ToGeneric { space, to, a }
        })
    }

    fn atomic(&mut self, to: Slot, kind: Type) -> Result<Operation, String> {
        const NAMES: [&str; 10] =
            ["add", "exch", "cas", "and", "or", "xor", "min", "max", "inc", "dec"];
        let name = known(NAMES.into_iter().find(|name| self.matched.has(name)))?;
        let place = self.address()?;
        let a = self.source(kind)?;
        let b = if name == "cas" { self.source(kind)? } else { a };
        let apply = known(arithmetic::atomic(name, kind))?;
        let order = Order { is_strong: true, ..self.order() };
        Ok(Operation::Atomic { place, kind, order, apply, to, a, b })
    }

    /// The count of threads, if as many operands are left as there are with one.
    fn barrier_count(&mut self, operands_with_count: usize) -> Result<Slot, String> {
        if self.operands.len() < operands_with_count {
            return self.value_slot(0);
        }
        self.source(Type::U32)
    }

    fn shuffle(&mut self) -> Result<Operation, String> {
        let (to, valid) = match self.next()? {
            Operand::Pair(to, valid) => (
                self.destination_slot(&to, Type::B32, Fit::Exact)?,
                self.destination_slot(&valid, Type::Pred, Fit::Exact)?,
            ),
            to => (self.destination_slot(&to, Type::B32, Fit::Exact)?, self.names.sink_slot()?),
        };
        let mode = match self.matched.modifiers[1] {
            Some("up") => Shuffle::Up,
            Some("down") => Shuffle::Down,
            Some("bfly") => Shuffle::Butterfly,
            _ => Shuffle::Index,
        };
        let value = self.source(Type::B32)?;
        let (lane, clamp) = (self.source(Type::B32)?, self.source(Type::B32)?);
        let mask = self.source(Type::B32)?;
        Ok(Operation::Shuffle { mode, to, valid, value, lane, clamp, mask })
    }

    fn vote(&mut self, kind: Type) -> Result<Operation, String> {
        let mode = match self.matched.modifiers[1] {
            Some("all") => Vote::All,
            Some("any") => Vote::Any,
            Some("uni") => Vote::Uniform,
            _ => Vote::Ballot,
        };
        let to = self.destination(kind)?;
        let (value, negated) = self.predicate()?;
        Ok(Operation::Vote { mode, to, value, negated, mask: self.source(Type::B32)? })
    }

    fn order(&self) -> Order {
        let has = |names: &[&str]| names.iter().any(|name| self.matched.has(name));
        Order {
            // `.cv` and `.wt` go past the caches, as volatile accesses do.
            is_strong: has(&["volatile", "relaxed", "acquire", "release", "acq_rel", "cv", "wt"]),
            acquires: has(&["acquire", "acq_rel"]),
            releases: has(&["release", "acq_rel"]).then(|| self.scope()),
        }
    }

    fn scope(&self) -> Scope {
        if self.matched.has("cta") { Scope::Block } else { Scope::All }
    }

    fn space(&self) -> Space {
        let has = |name| self.matched.has(name);
        if has("global") || has("const") {
            Space::Global
        } else if has("shared") || has("shared::cta") {
            Space::Shared
        } else if has("local") {
            Space::Local
        } else if has("param") {
            Space::Param
        } else {
            Space::Generic
        }
    }

    fn count(&self) -> u8 {
        if self.matched.has("v4") {
            4
        } else if self.matched.has("v2") {
            2
        } else {
            1
        }
    }

    fn next(&mut self) -> Result<Operand<'a>, String> {
        self.operands.next().ok_or_else(|| "an operand is missing".to_string())
    }

    fn source(&mut self, kind: Type) -> Result<Slot, String> {
        let operand = self.next()?;
        self.source_slot(&operand, kind, Fit::Exact)
    }

    fn destination(&mut self, kind: Type) -> Result<Slot, String> {
        let operand = self.next()?;
        self.destination_slot(&operand, kind, Fit::Exact)
    }

    fn memory_source(&mut self, kind: Type) -> Result<Slot, String> {
        let operand = self.next()?;
        self.source_slot(&operand, kind, Fit::AtLeast)
    }

    fn memory_destination(&mut self, kind: Type) -> Result<Slot, String> {
        let operand = self.next()?;
        self.destination_slot(&operand, kind, Fit::AtLeast)
    }

    /// `p` or `p|q`.
    fn destination_pair(&mut self, kind: Type) -> Result<(Slot, Slot), String> {
        let (first, second) = match self.next()? {
            Operand::Pair(first, second) => (*first, *second),
            first => (first, Operand::Name("_")),
        };
        let first = self.destination_slot(&first, kind, Fit::Exact)?;
        Ok((first, self.destination_slot(&second, kind, Fit::Exact)?))
    }

    /// `p` or `!p`.
    fn predicate(&mut self) -> Result<(Slot, bool), String> {
        match self.next()? {
            Operand::Not(name) => {
                Ok((self.source_slot(&Operand::Name(name), Type::Pred, Fit::Exact)?, true))
            }
            operand => Ok((self.source_slot(&operand, Type::Pred, Fit::Exact)?, false)),
        }
    }

    /// The operand of a load or store: one, or a vector of as many as the form says.
    fn vector(
        &mut self,
        kind: Type,
        read: fn(&mut Self, Type) -> Result<Slot, String>,
    ) -> Result<[Slot; 4], String> {
        match usize::from(self.count()) {
            1 => Ok([read(self, kind)?, 0, 0, 0]),
            count => self.vector_of(count, kind, read),
        }
    }

    fn vector_of(
        &mut self,
        count: usize,
        kind: Type,
        read: fn(&mut Self, Type) -> Result<Slot, String>,
    ) -> Result<[Slot; 4], String> {
        let items = match self.next()? {
            Operand::Vector(items) if items.len() == count => items,
            operand => return Err(format!("a vector of {count} is needed, not {operand:?}")),
        };
        let rest = std::mem::replace(&mut self.operands, items.into_iter());
        let mut slots = [0; 4];
        for slot in slots.iter_mut().take(count) {
            *slot = read(self, kind)?;
        }
        self.operands = rest;
        Ok(slots)
    }

    fn address(&mut self) -> Result<Address, String> {
        let space = self.space();
        let (base, offset_bytes) = match self.next()? {
            Operand::Address { base, offset_bytes } => (*base, offset_bytes),
            operand => return Err(format!("an address in brackets is needed, not {operand:?}")),
        };
        if let Operand::Name(name) = base {
            if let Some(Named::Register(register)) = self.names.find(name) {
                let kind = self.names.register_kind(register);
                if kind.bits() < 32 {
                    return Err(format!("`{name}` is too narrow for an address"));
                }
                let offset_bytes = i32::try_from(offset_bytes)
                    .map_err(|_| format!("offset {offset_bytes} is too far"))?;
                let is_wide = kind.bits() == 64;
                let base = self.names.register_slot(register)?;
                return Ok(Address { space, is_wide, base, offset_bytes });
            }
            self.check_space_of_variable(name, space)?;
            let base = self.variable_slot(name, offset_bytes)?;
            return Ok(Address { space, is_wide: true, base, offset_bytes: 0 });
        }
        let address = integer(&base, Type::U64)?.wrapping_add(offset_bytes as u64);
        Ok(Address { space, is_wide: true, base: self.value_slot(address)?, offset_bytes: 0 })
    }

    /// A variable's bare name is an address in its own space.
    fn check_space_of_variable(&self, name: &str, space: Space) -> Result<(), String> {
        let own = match self.names.find(name) {
            Some(Named::Parameter { .. }) => Space::Param,
            Some(Named::Shared { .. } | Named::DynamicShared) => Space::Shared,
            Some(Named::Local { .. }) => Space::Local,
            Some(Named::Variable { .. }) => Space::Global,
            _ => return Ok(()),
        };
        // Generic addresses of device memory are what they are in `.global`.
        if own == space || (own == Space::Global && space == Space::Generic) {
            return Ok(());
        }
        Err(format!("`{name}` lies in another state space"))
    }

    fn value_slot(&mut self, value: u64) -> Result<Slot, String> {
        self.names.constant_slot(SlotContent::Value(value))
    }

    /// A slot with a variable's address in its own space.
    fn variable_slot(&mut self, name: &str, offset_bytes: i64) -> Result<Slot, String> {
        let at =
            |start: usize| SlotContent::Value((start as u64).wrapping_add(offset_bytes as u64));
        let content = match self.names.find(name) {
            Some(Named::Parameter { offset_bytes }) => at(offset_bytes),
            Some(Named::Shared { offset_bytes } | Named::Local { offset_bytes }) => {
                at(offset_bytes)
            }
            Some(Named::DynamicShared) => SlotContent::DynamicShared { offset_bytes },
            Some(Named::Variable { index }) => SlotContent::Variable { index, offset_bytes },
            Some(Named::Register(_)) | None => return Err(format!("`{name}` is not declared")),
        };
        self.names.constant_slot(content)
    }

    fn source_slot(&mut self, operand: &Operand, kind: Type, fit: Fit) -> Result<Slot, String> {
        let name = match operand {
            Operand::Name(name) => *name,
            Operand::Number { .. } => {
                let value = integer(operand, kind)?;
                return self.value_slot(value);
            }
            operand => return Err(format!("{operand:?} cannot stand here")),
        };
        if let Some(special) = Special::parse(name) {
            if kind.bits() != 32 {
                return Err(format!("`{name}` has 32 bits, the instruction takes {}", kind.bits()));
            }
            return self.names.constant_slot(SlotContent::Special(special));
        }
        match self.names.find(name) {
            Some(Named::Register(register)) => self.register(name, register, kind, fit),
            Some(_) if matches!(kind.bits(), 32 | 64) => self.variable_slot(name, 0),
            Some(_) => Err(format!("`{name}` is an address, the instruction takes {kind:?}")),
            None => Err(format!("`{name}` is not declared")),
        }
    }

    fn destination_slot(
        &mut self,
        operand: &Operand,
        kind: Type,
        fit: Fit,
    ) -> Result<Slot, String> {
        match operand {
            Operand::Name("_") => self.names.sink_slot(),
            Operand::Name(name) => match self.names.find(name) {
                Some(Named::Register(register)) => self.register(name, register, kind, fit),
                _ => Err(format!("`{name}` is no register that is declared")),
            },
            operand => Err(format!("{operand:?} cannot be written to")),
        }
    }

    fn register(&mut self, name: &str, index: usize, kind: Type, fit: Fit) -> Result<Slot, String> {
        let declared = self.names.register_kind(index);
        let fits = match fit {
            Fit::Exact => declared.bits() == kind.bits(),
            Fit::AtLeast => declared.bits() >= kind.bits() && declared != Type::Pred,
        };
        if !fits {
            let (has, takes) = (declared.bits(), kind.bits());
            return Err(format!("`{name}` has {has} bits, the instruction takes {takes}"));
        }
        self.names.register_slot(index)
    }
}

fn integer_fit(kind: Type) -> Fit {
    if kind.is_float() { Fit::Exact } else { Fit::AtLeast }
}

/// What a value of `kind` falls into when it is packed from, or unpacked into, `count` pieces.
fn piece_of(kind: Type, count: usize) -> Result<(usize, Type), String> {
    let piece = match (kind, count) {
        (Type::B32, 2) | (Type::B64, 4) => Type::B16,
        (Type::B64, 2) => Type::B32,
        _ => return Err(format!("a value of {kind:?} is no vector of {count}")),
    };
    Ok((count, piece))
}

/// The table of forms names only what exists.
fn known<T>(found: Option<T>) -> Result<T, String> {
    found.ok_or_else(|| "the table of forms names a form that does not exist".to_string())
}
