//! Reads a module: its directives, variables and kernels, down to single instructions.

use std::collections::HashMap;
use std::sync::Arc;

use super::decode::{Decoded, decode};
use super::instruction::{Guard, Instruction, Operation};
use super::lexer::{self, Token};
use super::names::{Named, Names};
use super::operands::{self, Operand};
use super::types::Type;
use super::variables::{Declaration, Layout, Variable, VariableSpace};
use super::{Entry, Module, Parameter, ParseError};

/// Parses a whole PTX text.
pub(super) fn parse(source: &str) -> Result<Module, ParseError> {
    let tokens = lexer::tokens(source)?;
    let module =
        Module { version: (0, 0), target: 0, variables: Vec::new(), entries: HashMap::new() };
    let mut parser =
        Parser { source, tokens: &tokens, at: 0, module, shared: Vec::new(), dynamic: Vec::new() };
    parser.module()?;
    Ok(parser.module)
}

struct Parser<'a, 't> {
    source: &'a str,
    tokens: &'t [Token<'a>],
    at: usize,
    module: Module,
    /// Shared variables outside of kernels: every kernel has its own.
    shared: Vec<(&'a str, usize, usize)>,
    /// `.extern .shared` arrays, which all start where dynamic shared memory does, and their alignment.
    dynamic: Vec<(&'a str, usize)>,
}

/// A kernel while it is read.
struct Body<'a> {
    names: Names,
    code: Vec<Instruction>,
    shared: Layout,
    local: Layout,
    branches: Vec<Branch<'a>>,
}

/// A branch of which the label may not have been seen yet.
struct Branch<'a> {
    instruction: usize,
    scope: usize,
    label: &'a str,
}

/// What may stand between a kernel's parameters and its body.
#[derive(Default)]
struct Limits {
    max_threads: Option<u32>,
    required_block: Option<[u32; 3]>,
}

impl<'a> Parser<'a, '_> {
    fn module(&mut self) -> Result<(), ParseError> {
        while let Some(token) = self.peek() {
            match token.text {
                ".version" => {
                    self.at += 1;
                    let version = self.word()?;
                    let parts = version.split_once('.');
                    let parts = parts.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                    self.module.version =
                        parts.ok_or_else(|| self.error("a version is needed, such as 8.0"))?;
                }
                ".target" => self.target()?,
                ".address_size" => {
                    self.at += 1;
                    if self.word()? != "64" {
                        return Err(self.error("only addresses of 64 bits are known"));
                    }
                }
                ".visible" | ".weak" => self.at += 1,
                ".entry" => self.entry()?,
                ".extern" => {
                    self.at += 1;
                    self.expect(".shared")?;
                    let declaration = self.declaration()?;
                    self.expect(";")?;
                    self.dynamic.push((declaration.name, declaration.align_bytes));
                }
                ".shared" => {
                    self.at += 1;
                    let declaration = self.declaration()?;
                    let len_bytes = self.sized(&declaration)?;
                    self.expect(";")?;
                    self.shared.push((declaration.name, len_bytes, declaration.align_bytes));
                }
                ".global" => self.variable(VariableSpace::Global)?,
                ".const" => self.variable(VariableSpace::Const)?,
                _ => {
                    if !self.remark()? {
                        return Err(self.error_at(token.line, "this directive is not known"));
                    }
                }
            }
        }
        if self.module.version == (0, 0) || self.module.target == 0 {
            return Err(self.error("a module starts with .version and .target"));
        }
        Ok(())
    }

    /// Skips what says nothing about what is executed; false if that is not what comes.
    fn remark(&mut self) -> Result<bool, ParseError> {
        let Some(token) = self.peek() else { return Ok(false) };
        match token.text {
            ".file" | ".loc" => {
                while self.peek().is_some_and(|next| next.line == token.line) {
                    self.at += 1;
                }
            }
            ".pragma" => {
                self.at += 1;
                while self.next()?.text != ";" {}
            }
            ".section" => {
                self.at += 2;
                self.expect("{")?;
                while self.next()?.text != "}" {}
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn target(&mut self) -> Result<(), ParseError> {
        self.at += 1;
        let name = self.word()?;
        // Behind the number may stand a letter, for features of that architecture alone.
        let number = name.strip_prefix("sm_").map(|number| number.trim_end_matches(['a', 'f']));
        self.module.target = number
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| self.error("a target is needed, such as sm_75"))?;
        while self.accept(",") {
            match self.word()? {
                "debug" => {}
                _ => return Err(self.error("this target option is not known")),
            }
        }
        Ok(())
    }

    fn variable(&mut self, space: VariableSpace) -> Result<(), ParseError> {
        self.at += 1;
        let declaration = self.declaration()?;
        let len_bytes = self.sized(&declaration)?;
        let mut initial = Vec::new();
        if self.accept("=") {
            let has_braces = self.accept("{");
            loop {
                initial.extend(self.initial_value(declaration.kind)?);
                if !has_braces || !self.accept(",") {
                    break;
                }
            }
            if has_braces {
                self.expect("}")?;
            }
        }
        if initial.len() > len_bytes {
            return Err(self.error("there are more values than the variable holds"));
        }
        self.expect(";")?;
        initial.resize(len_bytes, 0);
        self.module.variables.push(Variable {
            name: declaration.name.to_string(),
            space,
            len_bytes,
            align_bytes: declaration.align_bytes,
            initial,
        });
        Ok(())
    }

    fn initial_value(&mut self, kind: Type) -> Result<Vec<u8>, ParseError> {
        let is_negative = self.accept("-");
        let operand = Operand::Number { is_negative, digits: self.word()? };
        let value = operands::integer(&operand, kind).map_err(|what| self.error(what))?;
        Ok(value.to_le_bytes()[..kind.bytes()].to_vec())
    }

    /// `.align 8 .b8 name[16]`, or a parameter with what it says about where a pointer points to.
    fn declaration(&mut self) -> Result<Declaration<'a>, ParseError> {
        let (mut align_bytes, mut kind, mut is_pointer) = (None, None, false);
        let name = loop {
            match self.word()? {
                ".align" => {
                    let bytes = self.number()?;
                    if !bytes.is_power_of_two() {
                        return Err(self.error("an alignment is a power of two"));
                    }
                    // Behind .ptr it is the alignment of what the pointer points to.
                    if !is_pointer {
                        align_bytes = Some(bytes);
                    }
                }
                ".ptr" => is_pointer = true,
                ".global" | ".shared" | ".const" | ".local" if is_pointer => {}
                word => match word.strip_prefix('.') {
                    None => break word,
                    Some(name) => {
                        let found = Type::parse(name).filter(|kind| *kind != Type::Pred);
                        kind =
                            Some(found.ok_or_else(|| self.error(format!("`{word}` is no type")))?);
                    }
                },
            }
        };
        let kind = kind.ok_or_else(|| self.error("a type is missing"))?;
        let mut count = Some(1);
        while self.accept("[") {
            if self.accept("]") {
                count = None;
                break;
            }
            let len = self.number()?;
            count = count.map(|count: usize| count.saturating_mul(len));
            self.expect("]")?;
        }
        Ok(Declaration { name, kind, align_bytes: align_bytes.unwrap_or(kind.bytes()), count })
    }

    fn sized(&self, declaration: &Declaration) -> Result<usize, ParseError> {
        match declaration.count {
            Some(_) => Ok(declaration.len_bytes()),
            None => Err(self.error("an array without a size is .extern .shared")),
        }
    }

    fn entry(&mut self) -> Result<(), ParseError> {
        self.at += 1;
        let name = self.word()?;
        let mut body = Body {
            names: Names::new(),
            code: Vec::new(),
            shared: Layout::default(),
            local: Layout::default(),
            branches: Vec::new(),
        };
        self.declare_module_names(&mut body)?;
        let (parameters, parameters_bytes) = self.parameters(&mut body.names)?;
        let limits = self.limits()?;
        self.body(&mut body)?;
        let mut dynamic = body.shared.clone();
        let align_bytes = self.dynamic.iter().map(|(_, align_bytes)| *align_bytes).max();
        let dynamic_shared_offset_bytes = dynamic.place(0, align_bytes.unwrap_or(1));
        let entry = Entry {
            name: name.to_string(),
            parameters,
            parameters_bytes,
            shared_bytes: body.shared.len_bytes,
            local_bytes: body.local.len_bytes,
            max_threads: limits.max_threads,
            required_block: limits.required_block,
            dynamic_shared_offset_bytes,
            code: body.code,
            slots: body.names.into_slots(),
        };
        match self.module.entries.insert(name.to_string(), Arc::new(entry)) {
            None => Ok(()),
            Some(_) => Err(self.error(format!("kernel `{name}` is there twice"))),
        }
    }

    fn declare_module_names(&self, body: &mut Body<'a>) -> Result<(), ParseError> {
        let mut declare =
            |name: &str, named| body.names.declare(name, named).map_err(|what| self.error(what));
        for (index, variable) in self.module.variables.iter().enumerate() {
            declare(&variable.name, Named::Variable { index })?;
        }
        for (name, len_bytes, align_bytes) in &self.shared {
            let offset_bytes = body.shared.place(*len_bytes, *align_bytes);
            declare(name, Named::Shared { offset_bytes })?;
        }
        for (name, _) in &self.dynamic {
            declare(name, Named::DynamicShared)?;
        }
        // Kernels may have variables of the same names.
        body.names.open_scope();
        Ok(())
    }

    fn parameters(&mut self, names: &mut Names) -> Result<(Vec<Parameter>, usize), ParseError> {
        let (mut parameters, mut layout) = (Vec::new(), Layout::default());
        if self.accept("(") && !self.accept(")") {
            loop {
                self.expect(".param")?;
                let declaration = self.declaration()?;
                let len_bytes = self.sized(&declaration)?;
                let offset_bytes = layout.place(len_bytes, declaration.align_bytes);
                names
                    .declare(declaration.name, Named::Parameter { offset_bytes })
                    .map_err(|what| self.error(what))?;
                parameters.push(Parameter { offset_bytes, len_bytes });
                if self.accept(")") {
                    break;
                }
                self.expect(",")?;
            }
        }
        Ok((parameters, layout.len_bytes))
    }

    fn limits(&mut self) -> Result<Limits, ParseError> {
        let mut limits = Limits::default();
        while !self.accept("{") {
            match self.word()? {
                ".maxntid" => {
                    let shape = self.shape()?;
                    limits.max_threads = Some(shape.iter().product());
                }
                ".reqntid" => {
                    let shape = self.shape()?;
                    limits.max_threads = Some(shape.iter().product());
                    limits.required_block = Some(shape);
                }
                ".minnctapersm" | ".maxnctapersm" | ".maxnreg" => {
                    self.number()?;
                }
                ".pragma" => {
                    self.at -= 1;
                    self.remark()?;
                }
                _ => return Err(self.error("this directive of a kernel is not known")),
            }
        }
        Ok(limits)
    }

    fn shape(&mut self) -> Result<[u32; 3], ParseError> {
        let mut shape = [1; 3];
        for (dimension, size) in shape.iter_mut().enumerate() {
            if dimension == 0 || self.accept(",") {
                *size = self.number()? as u32;
            }
        }
        Ok(shape)
    }

    fn body(&mut self, body: &mut Body<'a>) -> Result<(), ParseError> {
        // The kernel's own scope lies in that of the module.
        let mut depth = 1;
        while depth > 0 {
            let token = self.next()?;
            let next = self.peek().map_or("", |token| token.text);
            match token.text {
                ";" => {}
                "{" => {
                    body.names.open_scope();
                    depth += 1;
                }
                "}" => {
                    body.names.close_scope();
                    depth -= 1;
                }
                ".reg" => self.registers(&mut body.names)?,
                ".shared" => {
                    let declaration = self.declaration()?;
                    let len_bytes = self.sized(&declaration)?;
                    let offset_bytes = body.shared.place(len_bytes, declaration.align_bytes);
                    self.declare(body, declaration.name, Named::Shared { offset_bytes })?;
                }
                ".local" => {
                    let declaration = self.declaration()?;
                    let len_bytes = self.sized(&declaration)?;
                    let offset_bytes = body.local.place(len_bytes, declaration.align_bytes);
                    self.declare(body, declaration.name, Named::Local { offset_bytes })?;
                }
                word if word.starts_with('.') => {
                    self.at -= 1;
                    if !self.remark()? {
                        return Err(
                            self.error_at(token.line, format!("`{word}` is not known here"))
                        );
                    }
                }
                label if next == ":" => {
                    self.at += 1;
                    let target = body.code.len() as u32;
                    body.names
                        .declare_label(label, target)
                        .map_err(|what| self.error_at(token.line, what))?;
                }
                _ => {
                    self.at -= 1;
                    self.instruction(body)?;
                }
            }
        }
        for branch in &body.branches {
            let instruction = &mut body.code[branch.instruction];
            let target = body.names.label(branch.scope, branch.label).ok_or_else(|| {
                let what = format!("there is no label `{}`", branch.label);
                self.error_at(instruction.line as usize, what)
            })?;
            instruction.operation = Operation::Branch { target };
        }
        let line = self.tokens[self.at - 1].line as u32;
        body.code.push(Instruction { guard: Guard::Always, operation: Operation::Exit, line });
        Ok(())
    }

    fn declare(&mut self, body: &mut Body<'a>, name: &str, named: Named) -> Result<(), ParseError> {
        body.names.declare(name, named).map_err(|what| self.error(what))?;
        self.expect(";")
    }

    /// `.b32 %r<5>, %x;`
    fn registers(&mut self, names: &mut Names) -> Result<(), ParseError> {
        let word = self.word()?;
        let kind = word.strip_prefix('.').and_then(Type::parse);
        let kind = kind.ok_or_else(|| self.error(format!("`{word}` is no type of a register")))?;
        loop {
            let name = self.word()?;
            let declared = if self.accept("<") {
                let count = self.number()?;
                self.expect(">")?;
                (0..count).try_for_each(|n| names.declare_register(&format!("{name}{n}"), kind))
            } else {
                names.declare_register(name, kind)
            };
            declared.map_err(|what| self.error(what))?;
            if !self.accept(",") {
                return self.expect(";");
            }
        }
    }

    /// `@!%p1 bra $L;`
    fn instruction(&mut self, body: &mut Body<'a>) -> Result<(), ParseError> {
        let guard = if self.accept("@") { Some((self.accept("!"), self.word()?)) } else { None };
        let opcode = self.next()?;
        let first = self.at;
        while self.next()?.text != ";" {}
        let tokens = &self.tokens[first..self.at - 1];
        let fail = |what: String| self.error_at(opcode.line, what);
        let guard = match guard {
            None => Guard::Always,
            Some((negated, name)) => match body.names.find(name) {
                Some(Named::Register(register))
                    if body.names.register_kind(register) == Type::Pred =>
                {
                    let slot = body.names.register_slot(register).map_err(fail)?;
                    if negated { Guard::Unless(slot) } else { Guard::If(slot) }
                }
                _ => return Err(fail(format!("`{name}` is no predicate that is declared"))),
            },
        };
        let operation = match decode(&mut body.names, opcode.text, tokens).map_err(fail)? {
            Decoded::Operation(operation) => operation,
            Decoded::BranchTo(label) => {
                let scope = body.names.scope();
                body.branches.push(Branch { instruction: body.code.len(), scope, label });
                // Replaced when all labels are known.
                Operation::Branch { target: u32::MAX }
            }
        };
        body.code.push(Instruction { guard, operation, line: opcode.line as u32 });
        Ok(())
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn next(&mut self) -> Result<Token<'a>, ParseError> {
        let token = self.peek().ok_or_else(|| self.error("the text ends too early"))?;
        self.at += 1;
        Ok(token)
    }

    fn word(&mut self) -> Result<&'a str, ParseError> {
        Ok(self.next()?.text)
    }

    fn number(&mut self) -> Result<usize, ParseError> {
        let digits = self.word()?;
        let operand = Operand::Number { is_negative: false, digits };
        let value = operands::integer(&operand, Type::U32).map_err(|what| self.error(what))?;
        Ok(value as usize)
    }

    fn accept(&mut self, text: &str) -> bool {
        let found = self.peek().is_some_and(|token| token.text == text);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, text: &str) -> Result<(), ParseError> {
        if self.accept(text) {
            return Ok(());
        }
        let line = self.peek().map_or(0, |token| token.line);
        let found = self.peek().map_or("the end", |token| token.text);
        Err(self.error_at(line, format!("`{text}` expected, `{found}` found")))
    }

    /// An error about the token that was read last.
    fn error(&self, what: impl Into<String>) -> ParseError {
        let token = self.tokens.get(self.at.saturating_sub(1)).or(self.tokens.last());
        self.error_at(token.map_or(1, |token| token.line), what)
    }

    fn error_at(&self, line: usize, what: impl Into<String>) -> ParseError {
        lexer::error(self.source, line, what)
    }
}
