//! Global stores that have not reached memory yet.
//!
//! Each thread has a buffer, which only its own loads see, and each block has one, which the loads of
//! all its threads see. What is in the thread's is newer. A barrier moves a thread's stores to the
//! block's buffer; a fence or a release writes out both. Otherwise stores are written out one by one,
//! now and then, the newest first: a flag that was stored behind its data without a fence overtakes
//! the data. Stores to the same bytes keep their order.

use super::access;
use super::random::Random;

/// More stores than a buffer holds: the oldest are written out.
const CAPACITY: usize = 32;
/// Turns that a store waits, at most, that others are meant to see at work.
const STRONG_HOLD_TURNS: usize = 3;
/// Turns that other stores wait, and those that were overtaken: so many at least, and up to three times
/// as many. Long enough for others to notice that a flag has overtaken its data.
const WEAK_HOLD_TURNS: usize = 24;

/// A store. Naturally aligned: two stores overlap in the whole of the shorter one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Store {
    pub address: u64,
    /// Where that is in this process.
    pub pointer: *mut u8,
    pub value: u64,
    /// 1, 2, 4 or 8.
    pub len_bytes: u8,
    pub is_strong: bool,
    /// Chosen to be written out.
    is_leaving: bool,
}

impl Store {
    pub fn new(
        address: u64,
        pointer: *mut u8,
        value: u64,
        len_bytes: usize,
        is_strong: bool,
    ) -> Store {
        Store { address, pointer, value, len_bytes: len_bytes as u8, is_strong, is_leaving: false }
    }

    fn end(&self) -> u64 {
        self.address + u64::from(self.len_bytes)
    }

    fn overlaps(&self, address: u64, len_bytes: usize) -> bool {
        self.address < address + len_bytes as u64 && address < self.end()
    }
}

/// Stores in the order in which they were made.
pub(super) struct StoreBuffer {
    stores: Vec<Store>,
    /// All stores lie in this range, which tells most loads that nothing here concerns them. Without
    /// stores it has no end behind its start.
    first_address: u64,
    end_address: u64,
    hold_turns: usize,
    /// A store has been written out before older ones that are no less urgent.
    has_overtaken: bool,
}

/// The buffer whose stores are older than those of another; a block's has none.
pub(super) type Older<'a> = Option<&'a mut StoreBuffer>;

impl StoreBuffer {
    pub fn new() -> StoreBuffer {
        StoreBuffer {
            stores: Vec::new(),
            first_address: u64::MAX,
            end_address: 0,
            hold_turns: 0,
            has_overtaken: false,
        }
    }

    pub fn has_strong(&self) -> bool {
        self.stores.iter().any(|store| store.is_strong)
    }

    pub fn has_weak(&self) -> bool {
        self.stores.iter().any(|store| !store.is_strong)
    }

    #[inline]
    fn may_overlap(&self, address: u64, len_bytes: usize) -> bool {
        address < self.end_address && self.first_address < address + len_bytes as u64
    }

    pub fn push(&mut self, store: Store, older: Older, random: &mut Random) {
        if self.stores.len() >= CAPACITY {
            self.write_out_where(older, |index, _| index < CAPACITY / 2);
        }
        if self.stores.is_empty() {
            self.hold_turns = hold_turns(store.is_strong, random);
            self.has_overtaken = false;
        } else if store.is_strong && !self.has_overtaken {
            self.hold_turns = self.hold_turns.min(hold_turns(true, random));
        }
        self.first_address = self.first_address.min(store.address);
        self.end_address = self.end_address.max(store.end());
        self.stores.push(store);
    }

    /// Makes all stores visible to whoever sees `block`.
    pub fn move_into(&mut self, block: &mut StoreBuffer, random: &mut Random) {
        for store in self.stores.drain(..) {
            block.push(store, None, random);
        }
        (self.first_address, self.end_address) = (u64::MAX, 0);
    }

    /// What a load of `len_bytes` sees that found `value` below this buffer.
    #[inline]
    pub fn overlay(&self, address: u64, len_bytes: usize, value: u64) -> u64 {
        if self.may_overlap(address, len_bytes) {
            self.overlay_stores(address, len_bytes, value)
        } else {
            value
        }
    }

    fn overlay_stores(&self, address: u64, len_bytes: usize, mut value: u64) -> u64 {
        for store in self.stores.iter().filter(|store| store.overlaps(address, len_bytes)) {
            if store.address >= address {
                let shift = 8 * (store.address - address);
                let mask = mask(store.len_bytes as usize) << shift;
                value = (value & !mask) | (store.value << shift & mask);
            } else {
                // The load lies within the store.
                value = store.value >> (8 * (address - store.address)) & mask(len_bytes);
            }
        }
        value
    }

    /// One turn: a store may be written out. Of the strong ones the newest goes first, and the others
    /// together some turns later; of the weak ones one at a time does.
    pub fn tick(&mut self, mut older: Older, random: &mut Random) {
        if self.stores.is_empty() {
            return;
        }
        if self.hold_turns > 0 {
            self.hold_turns -= 1;
            return;
        }
        let newest_strong = self.stores.iter().rposition(|store| store.is_strong);
        if newest_strong.is_some() && self.has_overtaken {
            self.write_out_strong(older.as_deref_mut());
            self.has_overtaken = false;
        } else {
            let newest = newest_strong.unwrap_or(self.stores.len() - 1);
            let chosen = if random.one_in(64) { random.below(self.stores.len()) } else { newest };
            let store = self.stores[chosen];
            self.write_out_until(chosen + 1, store.address, store.end(), older);
            self.has_overtaken = self.has_strong();
        }
        self.hold_turns = hold_turns(false, random);
    }

    /// Writes out all stores that touch these bytes.
    #[inline]
    pub fn write_out_overlapping(&mut self, address: u64, len_bytes: usize, older: Older) {
        if self.may_overlap(address, len_bytes) {
            self.write_out_until(self.stores.len(), address, address + len_bytes as u64, older);
        }
    }

    pub fn write_out_all(&mut self, older: Older) {
        if self.stores.is_empty() {
            return;
        }
        self.write_out_where(older, |_, _| true);
    }

    /// Writes out the strong stores, and those older ones that must be before them.
    pub fn write_out_strong(&mut self, mut older: Older) {
        while let Some(index) = self.stores.iter().rposition(|store| store.is_strong) {
            let store = self.stores[index];
            self.write_out_until(index + 1, store.address, store.end(), older.as_deref_mut());
        }
    }

    /// Of the stores before `until`, writes out those to `first..end`, and older ones to the same bytes
    /// as any of them.
    fn write_out_until(&mut self, until: usize, mut first: u64, mut end: u64, older: Older) {
        for store in self.stores[..until].iter_mut().rev() {
            if store.address < end && first < store.end() {
                store.is_leaving = true;
                first = first.min(store.address);
                end = end.max(store.end());
            }
        }
        self.write_out_where(older, |_, store| store.is_leaving);
    }

    fn write_out_where(&mut self, mut older: Older, leaves: impl Fn(usize, &Store) -> bool) {
        let mut index = 0;
        self.stores.retain(|store| {
            let is_leaving = leaves(index, store);
            index += 1;
            if is_leaving {
                let len_bytes = store.len_bytes as usize;
                if let Some(older) = older.as_deref_mut() {
                    older.write_out_overlapping(store.address, len_bytes, None);
                }
                // SAFETY: This launch resolved the pointer for a write of so many bytes.
                unsafe { access::write(store.pointer, len_bytes, store.value) };
            }
            !is_leaving
        });
        self.first_address =
            self.stores.iter().map(|store| store.address).min().unwrap_or(u64::MAX);
        self.end_address = self.stores.iter().map(Store::end).max().unwrap_or(0);
    }
}

fn hold_turns(is_strong: bool, random: &mut Random) -> usize {
    if is_strong {
        random.below(STRONG_HOLD_TURNS)
    } else {
        WEAK_HOLD_TURNS + random.below(2 * WEAK_HOLD_TURNS)
    }
}

fn mask(len_bytes: usize) -> u64 {
    u64::MAX >> (64 - 8 * len_bytes)
}
