//! The operands of an instruction, as they are written.

use super::lexer::Token;
use super::types::Type;

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand<'a> {
    /// A register, variable or label; `_` for a result that nobody wants.
    Name(&'a str),
    /// `!%p1`.
    Not(&'a str),
    Number {
        is_negative: bool,
        digits: &'a str,
    },
    /// `{%r1, %r2}`.
    Vector(Vec<Operand<'a>>),
    /// `[%rd1+8]`.
    Address {
        base: Box<Operand<'a>>,
        offset_bytes: i64,
    },
    /// `%p1|%p2`.
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
}

/// All operands of an instruction, from the tokens behind its opcode.
pub(super) fn operands<'a>(tokens: &[Token<'a>]) -> Result<Vec<Operand<'a>>, String> {
    let mut reader = Reader { tokens };
    let mut operands = Vec::new();
    while !reader.tokens.is_empty() {
        if !operands.is_empty() {
            reader.expect(",")?;
        }
        operands.push(reader.operand()?);
    }
    Ok(operands)
}

struct Reader<'a, 't> {
    tokens: &'t [Token<'a>],
}

impl<'a> Reader<'a, '_> {
    fn next(&mut self) -> Result<&'a str, String> {
        let (first, rest) = self.tokens.split_first().ok_or("an operand is missing")?;
        self.tokens = rest;
        Ok(first.text)
    }

    fn accept(&mut self, mark: &str) -> bool {
        let found = self.tokens.first().is_some_and(|token| token.text == mark);
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }

    fn expect(&mut self, mark: &str) -> Result<(), String> {
        if self.accept(mark) {
            return Ok(());
        }
        let found = self.tokens.first().map_or("the end", |token| token.text);
        Err(format!("`{mark}` expected, `{found}` found"))
    }

    fn operand(&mut self) -> Result<Operand<'a>, String> {
        let operand = match self.next()? {
            "{" => {
                let mut items = vec![self.operand()?];
                while self.accept(",") {
                    items.push(self.operand()?);
                }
                self.expect("}")?;
                Operand::Vector(items)
            }
            "[" => {
                let base = Box::new(self.operand()?);
                let mut offset_bytes = 0;
                if self.accept("+") {
                    let number = self.operand()?;
                    offset_bytes = integer(&number, Type::S64)? as i64;
                } else if self.accept("-") {
                    let number = self.operand()?;
                    offset_bytes = (integer(&number, Type::S64)? as i64).wrapping_neg();
                }
                self.expect("]")?;
                Operand::Address { base, offset_bytes }
            }
            "!" => Operand::Not(self.next()?),
            "-" => Operand::Number { is_negative: true, digits: self.next()? },
            word if word.starts_with(|first: char| first.is_ascii_digit()) => {
                Operand::Number { is_negative: false, digits: word }
            }
            word if word.len() > 1
                || word.starts_with(|first: char| first.is_alphabetic() || first == '_') =>
            {
                Operand::Name(word)
            }
            mark => return Err(format!("`{mark}` is no operand")),
        };
        if self.accept("|") {
            return Ok(Operand::Pair(Box::new(operand), Box::new(self.operand()?)));
        }
        Ok(operand)
    }
}

/// The bits of a number as a value of `kind`.
pub(super) fn integer(operand: &Operand, kind: Type) -> Result<u64, String> {
    let Operand::Number { is_negative, digits } = operand else {
        return Err(format!("{operand:?} is no number"));
    };
    if kind == Type::F32 || (kind == Type::B32 && starts_with_any(digits, ["0f", "0F"])) {
        return float_bits(digits, ["0f", "0F"], 8);
    }
    if kind == Type::F64 || (kind == Type::B64 && starts_with_any(digits, ["0d", "0D"])) {
        return float_bits(digits, ["0d", "0D"], 16);
    }
    let plain = digits.trim_end_matches('U');
    let (radix, plain) = match plain.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &plain[2..]),
        [b'0', b'b' | b'B', ..] => (2, &plain[2..]),
        [b'0', _, ..] => (8, &plain[1..]),
        _ => (10, plain),
    };
    let magnitude = u64::from_str_radix(plain, radix)
        .map_err(|error| format!("`{digits}` is no number of type {kind:?}: {error}"))?;
    if kind == Type::Pred {
        return Ok(u64::from(magnitude != 0));
    }
    let value = if *is_negative { -i128::from(magnitude) } else { i128::from(magnitude) };
    let limit = 1i128 << kind.bits();
    if value >= limit || value < -(limit / 2) {
        return Err(format!("{value} does not fit into {} bits", kind.bits()));
    }
    Ok(value as u64)
}

fn starts_with_any(digits: &str, prefixes: [&str; 2]) -> bool {
    prefixes.iter().any(|prefix| digits.starts_with(prefix))
}

/// A float is written as its bits: `0f3F800000`.
fn float_bits(digits: &str, prefixes: [&str; 2], len: usize) -> Result<u64, String> {
    let bits = prefixes.iter().find_map(|prefix| digits.strip_prefix(prefix));
    bits.filter(|bits| bits.len() == len)
        .and_then(|bits| u64::from_str_radix(bits, 16).ok())
        .ok_or_else(|| format!("`{digits}` is no float of the form {}…", prefixes[0]))
}
