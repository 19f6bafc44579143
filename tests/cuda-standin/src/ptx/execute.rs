//! Executes the instructions of one thread, for as long as its turn lasts.

use std::sync::atomic::{Ordering, fence};
use std::time::{SystemTime, UNIX_EPOCH};

use super::access;
use super::arithmetic;
use super::instruction::{
    Address, Combine, Guard, Instruction, Operation, Order, Scope, Slot, Space,
};
use super::random::Random;
use super::store_buffer::{Store, StoreBuffer};
use super::types::Type;
use super::{Access, Launch, Statistics};

/// What all threads of a launch share.
pub(super) struct Context<'a> {
    pub launch: &'a Launch<'a>,
    pub code: &'a [Instruction],
    pub random: Random,
    pub statistics: Statistics,
}

/// What the threads of a block share.
pub(super) struct BlockMemory {
    pub shared: Vec<u8>,
    pub stores: StoreBuffer,
}

/// A thread of the grid.
pub(super) struct Thread {
    pub registers: Vec<u64>,
    /// Index of the next instruction.
    pub at: usize,
    pub index: [u32; 3],
    /// Its number in its warp.
    pub lane: u32,
    pub state: State,
    pub local: Vec<u8>,
    pub stores: StoreBuffer,
    pub polls: Polls,
}

/// Whether a thread can go on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State {
    Ready,
    /// Its next instruction is the one behind the barrier.
    AtBarrier {
        id: usize,
        count: u32,
    },
    /// At an instruction that the named lanes execute together.
    InWarp {
        mask: u32,
    },
    Ended,
}

/// Tells threads that wait for memory to change from those that work.
pub(super) struct Polls {
    /// What was last read at some addresses.
    seen: [(u64, u64); 8],
    in_vain: u32,
}

impl Polls {
    pub fn new() -> Polls {
        Polls { seen: [(u64::MAX, 0); 8], in_vain: 0 }
    }

    fn note_read(&mut self, address: u64, value: u64) {
        let seen = &mut self.seen[((address / 4) ^ (address / 32)) as usize % 8];
        if *seen == (address, value) {
            self.in_vain += 1;
        } else {
            *seen = (address, value);
            self.in_vain = 0;
        }
    }

    pub fn note_progress(&mut self) {
        self.in_vain = 0;
    }

    /// It has read nothing new for a while, and done nothing else.
    pub fn is_waiting(&self) -> bool {
        self.in_vain >= 2
    }
}

/// What went wrong, without who did it.
pub(super) enum Trouble {
    IllegalAddress { space: Space, address: u64, len_bytes: usize, access: Access },
    Misaligned { address: u64, len_bytes: usize },
    Trap,
    Illegal(&'static str),
}

/// Operand of an access: where it is and what it concerns.
struct Target {
    space: Space,
    address: u64,
    kind: Type,
    count: usize,
}

impl Target {
    fn len_bytes(&self) -> usize {
        self.kind.bytes() * self.count
    }

    fn illegal(&self, access: Access) -> Trouble {
        let (space, address, len_bytes) = (self.space, self.address, self.len_bytes());
        Trouble::IllegalAddress { space, address, len_bytes, access }
    }
}

impl Thread {
    fn target(&self, place: Address, kind: Type, count: u8) -> Result<Target, Trouble> {
        let base = self.registers[usize::from(place.base)];
        let base = if place.is_wide { base } else { base & 0xFFFF_FFFF };
        let address = base.wrapping_add(i64::from(place.offset_bytes) as u64);
        let (space, address) = access::locate(place.space, address);
        let target = Target { space, address, kind, count: usize::from(count) };
        let len_bytes = target.len_bytes();
        if !address.is_multiple_of(len_bytes as u64) {
            return Err(Trouble::Misaligned { address, len_bytes });
        }
        Ok(target)
    }

    pub fn is_true(&self, slot: Slot) -> bool {
        self.registers[usize::from(slot)] & 1 == 1
    }
}

impl Context<'_> {
    /// Executes up to `budget` instructions. Ends earlier if the thread waits, ends or fails; then its
    /// place tells where.
    pub fn turn(
        &mut self,
        thread: &mut Thread,
        block: &mut BlockMemory,
        budget: usize,
    ) -> Result<(), Trouble> {
        let mut left = budget;
        let result = self.execute(thread, block, &mut left);
        self.statistics.instructions += (budget - left) as u64;
        result
    }

    fn execute(
        &mut self,
        thread: &mut Thread,
        block: &mut BlockMemory,
        left: &mut usize,
    ) -> Result<(), Trouble> {
        macro_rules! get {
            ($slot:expr) => {
                thread.registers[usize::from($slot)]
            };
        }
        while *left > 0 {
            *left -= 1;
            let instruction = &self.code[thread.at];
            let is_skipped = match instruction.guard {
                Guard::Always => false,
                Guard::If(slot) => !thread.is_true(slot),
                Guard::Unless(slot) => thread.is_true(slot),
            };
            if is_skipped {
                thread.at += 1;
                continue;
            }
            match instruction.operation {
                Operation::Unary { apply, to, a } => get!(to) = apply(get!(a)),
                Operation::Binary { apply, to, a, b } => get!(to) = apply(get!(a), get!(b)),
                Operation::Ternary { apply, to, a, b, c } => {
                    get!(to) = apply(get!(a), get!(b), get!(c));
                }
                Operation::Lookup { table, to, a, b, c } => {
                    get!(to) = arithmetic::lookup(table, get!(a), get!(b), get!(c));
                }
                Operation::Insert { kind, to, a, b, position, len } => {
                    get!(to) =
                        arithmetic::insert(kind, get!(a), get!(b), get!(position), get!(len));
                }
                Operation::Compare { apply, to, opposite, a, b, combine } => {
                    let result = apply(get!(a), get!(b));
                    let combined = |result: bool| match combine {
                        Combine::No => result,
                        Combine::And { with, negated } => {
                            result & (thread.is_true(with) != negated)
                        }
                        Combine::Or { with, negated } => result | (thread.is_true(with) != negated),
                        Combine::Xor { with, negated } => {
                            result ^ (thread.is_true(with) != negated)
                        }
                    };
                    let (first, second) = (combined(result), combined(!result));
                    get!(opposite) = u64::from(second);
                    get!(to) = u64::from(first);
                }
                Operation::Select { to, a, b, condition } => {
                    get!(to) = if thread.is_true(condition) { get!(a) } else { get!(b) };
                }
                Operation::Convert { conversion, to, a } => get!(to) = conversion.apply(get!(a)),
                Operation::Pack { to, from, count, piece_bits } => {
                    let mask = (1 << piece_bits) - 1;
                    let pieces = from.iter().take(usize::from(count)).rev();
                    get!(to) =
                        pieces.fold(0, |whole, piece| whole << piece_bits | (get!(*piece) & mask));
                }
                Operation::Unpack { to, count, piece_bits, a } => {
                    let mut whole = get!(a);
                    for slot in to.iter().take(usize::from(count)) {
                        get!(*slot) = whole & ((1 << piece_bits) - 1);
                        whole >>= piece_bits;
                    }
                }
                // Instructions are what passes instead of cycles.
                Operation::Clock { to } => {
                    get!(to) = self.statistics.instructions.wrapping_sub(*left as u64);
                }
                Operation::GlobalTimer { to } => {
                    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    get!(to) = since.as_nanos() as u64;
                }
                Operation::ToGeneric { space, to, a } => {
                    get!(to) = access::to_generic(space, get!(a));
                }
                Operation::FromGeneric { space, to, a } => {
                    get!(to) = access::from_generic(space, get!(a));
                }
                Operation::Load { place, kind, count, order, to } => {
                    let target = thread.target(place, kind, count)?;
                    self.load(thread, block, target, order, to)?;
                    if order.is_strong && thread.polls.is_waiting() {
                        // It would only read the same again.
                        thread.at += 1;
                        return Ok(());
                    }
                }
                Operation::Store { place, kind, count, order, from } => {
                    let target = thread.target(place, kind, count)?;
                    self.store(thread, block, target, order, from)?;
                }
                Operation::Atomic { place, kind, order, apply, to, a, b } => {
                    let target = thread.target(place, kind, 1)?;
                    let (a, b) = (get!(a), get!(b));
                    get!(to) =
                        self.atomic(thread, block, target, order, &|old| apply(old, a, b))?;
                    if thread.polls.is_waiting() {
                        thread.at += 1;
                        return Ok(());
                    }
                }
                Operation::Fence { scope } => self.release(thread, block, scope),
                Operation::Barrier { id, count } | Operation::BarrierReduce { id, count, .. } => {
                    let (id, count) = (get!(id) as u32 as usize, get!(count) as u32);
                    if id >= 16 || !count.is_multiple_of(32) {
                        return Err(Trouble::Illegal(
                            "a barrier's number is below 16, its count a multiple of 32",
                        ));
                    }
                    self.release(thread, block, Scope::Block);
                    thread.polls.note_progress();
                    thread.state = State::AtBarrier { id, count };
                    thread.at += 1;
                    return Ok(());
                }
                Operation::WarpBarrier { mask } => {
                    self.release(thread, block, Scope::Block);
                    thread.state = State::InWarp { mask: get!(mask) as u32 };
                    return Ok(());
                }
                Operation::Shuffle { mask, .. } | Operation::Vote { mask, .. } => {
                    thread.state = State::InWarp { mask: get!(mask) as u32 };
                    return Ok(());
                }
                // Threads are independent: none is sure to be active with another.
                Operation::ActiveMask { to } => get!(to) = 1 << thread.lane,
                Operation::Branch { target } => {
                    thread.at = target as usize;
                    continue;
                }
                Operation::Exit => {
                    thread.state = State::Ended;
                    return Ok(());
                }
                Operation::Trap => return Err(Trouble::Trap),
                Operation::Nanosleep => {
                    thread.at += 1;
                    return Ok(());
                }
            }
            thread.at += 1;
        }
        Ok(())
    }

    fn load(
        &mut self,
        thread: &mut Thread,
        block: &BlockMemory,
        target: Target,
        order: Order,
        to: [Slot; 4],
    ) -> Result<(), Trouble> {
        let len_bytes = target.len_bytes();
        let pointer = if target.space == Space::Global {
            self.statistics.global_load_bytes += len_bytes as u64;
            self.resolve(&target, Access::Read)?
        } else {
            std::ptr::null_mut()
        };
        let (piece_bytes, element) = (len_bytes.min(8), target.kind);
        let mut slots = to.iter().take(target.count);
        for start in (0..len_bytes).step_by(piece_bytes) {
            let address = target.address + start as u64;
            let piece = match target.space {
                Space::Global | Space::Generic => {
                    // SAFETY: The pointer was resolved for a read of `len_bytes`, and is aligned.
                    let value = unsafe { access::read(pointer.add(start), piece_bytes) };
                    let value = block.stores.overlay(address, piece_bytes, value);
                    Some(thread.stores.overlay(address, piece_bytes, value))
                }
                Space::Shared => access::read_bytes(&block.shared, address, piece_bytes),
                Space::Local => access::read_bytes(&thread.local, address, piece_bytes),
                Space::Param => access::read_bytes(self.launch.parameters, address, piece_bytes),
            };
            let piece = piece.ok_or_else(|| target.illegal(Access::Read))?;
            if order.is_strong {
                thread.polls.note_read(to_generic_key(target.space, address), piece);
            }
            for (index, slot) in slots.by_ref().take(piece_bytes / element.bytes()).enumerate() {
                let value = piece >> (index as u32 * element.bits());
                thread.registers[usize::from(*slot)] = element.extend(value);
            }
        }
        if order.acquires {
            fence(Ordering::SeqCst);
        }
        Ok(())
    }

    fn store(
        &mut self,
        thread: &mut Thread,
        block: &mut BlockMemory,
        target: Target,
        order: Order,
        from: [Slot; 4],
    ) -> Result<(), Trouble> {
        if let Some(scope) = order.releases {
            self.release(thread, block, scope);
        }
        thread.polls.note_progress();
        let len_bytes = target.len_bytes();
        let pointer = if target.space == Space::Global {
            self.statistics.global_store_bytes += len_bytes as u64;
            self.resolve(&target, Access::Write)?
        } else {
            std::ptr::null_mut()
        };
        let (piece_bytes, element) = (len_bytes.min(8), target.kind);
        let per_piece = piece_bytes / element.bytes();
        for (number, slots) in from[..target.count].chunks(per_piece).enumerate() {
            let start = number * piece_bytes;
            let address = target.address + start as u64;
            let piece = slots.iter().rev().fold(0u64, |piece, slot| {
                let value = thread.registers[usize::from(*slot)];
                piece.checked_shl(element.bits()).unwrap_or(0) | as_unsigned(element, value)
            });
            let done = match target.space {
                Space::Global | Space::Generic => {
                    let pointer = pointer.wrapping_add(start);
                    let store = Store::new(address, pointer, piece, piece_bytes, order.is_strong);
                    thread.stores.push(store, Some(&mut block.stores), &mut self.random);
                    Some(())
                }
                Space::Shared => {
                    access::write_bytes(&mut block.shared, address, piece_bytes, piece)
                }
                Space::Local => access::write_bytes(&mut thread.local, address, piece_bytes, piece),
                Space::Param => None,
            };
            done.ok_or_else(|| target.illegal(Access::Write))?;
        }
        Ok(())
    }

    fn atomic(
        &mut self,
        thread: &mut Thread,
        block: &mut BlockMemory,
        target: Target,
        order: Order,
        new: &dyn Fn(u64) -> u64,
    ) -> Result<u64, Trouble> {
        if let Some(scope) = order.releases {
            self.release(thread, block, scope);
        }
        let (address, len_bytes) = (target.address, target.len_bytes());
        let old = match target.space {
            Space::Global | Space::Generic => {
                self.statistics.global_atomics += 1;
                let pointer = self.resolve(&target, Access::Write)?;
                thread.stores.write_out_overlapping(address, len_bytes, Some(&mut block.stores));
                block.stores.write_out_overlapping(address, len_bytes, None);
                // SAFETY: The pointer was resolved for a write of `len_bytes`, and is aligned.
                unsafe { access::update(pointer, len_bytes, new) }
            }
            Space::Shared => {
                let old = access::read_bytes(&block.shared, address, len_bytes)
                    .ok_or_else(|| target.illegal(Access::Write))?;
                access::write_bytes(&mut block.shared, address, len_bytes, new(old));
                old
            }
            Space::Local | Space::Param => return Err(target.illegal(Access::Write)),
        };
        if as_unsigned(target.kind, new(old)) == old {
            thread.polls.note_read(to_generic_key(target.space, address), old);
        } else {
            thread.polls.note_progress();
        }
        if order.acquires {
            fence(Ordering::SeqCst);
        }
        Ok(old)
    }

    /// Makes what the thread, and what its block up to the last barrier, has stored visible.
    fn release(&mut self, thread: &mut Thread, block: &mut BlockMemory, scope: Scope) {
        match scope {
            Scope::Block => thread.stores.move_into(&mut block.stores, &mut self.random),
            Scope::All => {
                thread.stores.write_out_all(Some(&mut block.stores));
                block.stores.write_out_all(None);
                fence(Ordering::SeqCst);
            }
        }
    }

    fn resolve(&self, target: &Target, access: Access) -> Result<*mut u8, Trouble> {
        self.launch
            .memory
            .resolve(target.address, target.len_bytes(), access)
            .map_err(|()| target.illegal(access))
    }
}

/// A value's bits without those above its width.
fn as_unsigned(kind: Type, value: u64) -> u64 {
    value & (u64::MAX >> (64 - kind.bits()))
}

/// Tells addresses of different spaces apart.
fn to_generic_key(space: Space, address: u64) -> u64 {
    access::to_generic(space, address)
}
