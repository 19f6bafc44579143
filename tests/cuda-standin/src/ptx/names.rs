//! What the names in a kernel stand for: registers, variables and labels, in nested scopes.

use std::collections::HashMap;

use super::instruction::{Slot, SlotContent};
use super::types::Type;

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Named {
    /// Index into [`Names::registers`].
    Register(usize),
    /// Offset into the parameters.
    Parameter {
        offset_bytes: usize,
    },
    Shared {
        offset_bytes: usize,
    },
    DynamicShared,
    Local {
        offset_bytes: usize,
    },
    /// Index into the module's variables.
    Variable {
        index: usize,
    },
}

#[derive(Default)]
struct Scope {
    parent: Option<usize>,
    names: HashMap<String, Named>,
    labels: HashMap<String, u32>,
}

struct Register {
    kind: Type,
    /// Given when it is first used: compilers declare more than they use.
    slot: Option<Slot>,
}

/// All names of one kernel, and the slots of its register file.
pub(super) struct Names {
    scopes: Vec<Scope>,
    current: usize,
    registers: Vec<Register>,
    slots: Vec<SlotContent>,
    constant_slots: HashMap<SlotContent, Slot>,
    sink: Option<Slot>,
}

/// More operands than slots can be numbered.
const TOO_MANY: &str = "the kernel has more than 65,535 registers and constants";

impl Names {
    pub fn new() -> Names {
        Names {
            scopes: vec![Scope::default()],
            current: 0,
            registers: Vec::new(),
            slots: Vec::new(),
            constant_slots: HashMap::new(),
            sink: None,
        }
    }

    pub fn open_scope(&mut self) {
        self.scopes.push(Scope { parent: Some(self.current), ..Scope::default() });
        self.current = self.scopes.len() - 1;
    }

    /// False if no inner scope is open.
    pub fn close_scope(&mut self) -> bool {
        let parent = self.scopes[self.current].parent;
        self.current = parent.unwrap_or(self.current);
        parent.is_some()
    }

    /// The scope that is open, for [`Names::label`].
    pub fn scope(&self) -> usize {
        self.current
    }

    pub fn declare(&mut self, name: &str, named: Named) -> Result<(), String> {
        match self.scopes[self.current].names.insert(name.to_string(), named) {
            None => Ok(()),
            Some(_) => Err(format!("`{name}` is declared twice")),
        }
    }

    pub fn declare_register(&mut self, name: &str, kind: Type) -> Result<(), String> {
        self.registers.push(Register { kind, slot: None });
        self.declare(name, Named::Register(self.registers.len() - 1))
    }

    pub fn declare_label(&mut self, name: &str, target: u32) -> Result<(), String> {
        match self.scopes[self.current].labels.insert(name.to_string(), target) {
            None => Ok(()),
            Some(_) => Err(format!("label `{name}` is declared twice")),
        }
    }

    pub fn find(&self, name: &str) -> Option<Named> {
        self.outwards(self.current).find_map(|scope| scope.names.get(name).copied())
    }

    /// Where a label that is used in `scope` leads.
    pub fn label(&self, scope: usize, name: &str) -> Option<u32> {
        self.outwards(scope).find_map(|scope| scope.labels.get(name).copied())
    }

    fn outwards(&self, scope: usize) -> impl Iterator<Item = &Scope> {
        std::iter::successors(Some(scope), |inner| self.scopes[*inner].parent)
            .map(|index| &self.scopes[index])
    }

    pub fn register_kind(&self, register: usize) -> Type {
        self.registers[register].kind
    }

    pub fn register_slot(&mut self, register: usize) -> Result<Slot, String> {
        if let Some(slot) = self.registers[register].slot {
            return Ok(slot);
        }
        let slot = self.add_slot(SlotContent::Register)?;
        self.registers[register].slot = Some(slot);
        Ok(slot)
    }

    pub fn constant_slot(&mut self, content: SlotContent) -> Result<Slot, String> {
        if let Some(slot) = self.constant_slots.get(&content) {
            return Ok(*slot);
        }
        let slot = self.add_slot(content)?;
        self.constant_slots.insert(content, slot);
        Ok(slot)
    }

    /// Where results go that nobody wants.
    pub fn sink_slot(&mut self) -> Result<Slot, String> {
        if let Some(slot) = self.sink {
            return Ok(slot);
        }
        let slot = self.add_slot(SlotContent::Register)?;
        self.sink = Some(slot);
        Ok(slot)
    }

    fn add_slot(&mut self, content: SlotContent) -> Result<Slot, String> {
        let slot = Slot::try_from(self.slots.len()).map_err(|_| TOO_MANY.to_string())?;
        self.slots.push(content);
        Ok(slot)
    }

    pub fn into_slots(self) -> Vec<SlotContent> {
        self.slots
    }
}
