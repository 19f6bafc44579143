//! Runs a grid: gives its threads turns, lets them meet at barriers, and ends when all have ended.

use std::collections::HashMap;
use std::time::Duration;

use super::access;
use super::execute::{BlockMemory, Context, Polls, State, Thread, Trouble};
use super::instruction::{Operation, Reduce, SlotContent, Special};
use super::random::Random;
use super::store_buffer::StoreBuffer;
use super::warp::{self, WARP_THREADS};
use super::{Fault, Launch, Place, Statistics};

/// More blocks than have so many threads are not started before others have ended.
const RESIDENT_THREADS: usize = 65_536;
/// A turn has 2^0 to 2^8 instructions, in large grids 2^0 to 2^10: there every turn starts with memory that
/// the host's caches do not have.
const TURN_LENGTHS: usize = 9;
const TURN_LENGTHS_OF_LARGE_GRIDS: usize = 11;
const LARGE_GRID_THREADS: usize = 256;
/// Passes over a grid of which all threads wait, before it gives the processor to others…
const IDLE_PASSES_BEFORE_YIELD: u32 = 4;
/// …and before it sleeps between passes.
const IDLE_PASSES_BEFORE_SLEEP: u32 = 64;
const SLEEP: Duration = Duration::from_micros(50);
/// At the end of a grid, for others to notice flags that have overtaken their data.
const PAUSE_AFTER_OVERTAKING: Duration = Duration::from_micros(200);
/// What registers hold at first.
const GARBAGE: u64 = 0xDEAD_BEEF_DEAD_BEEF;
/// What shared and local memory hold at first.
const GARBAGE_BYTE: u8 = 0xCD;
/// As many processors as the device has, for `%smid`.
const PROCESSORS: u64 = 8;

struct Block {
    index: [u32; 3],
    memory: BlockMemory,
    threads: Vec<Thread>,
    live_threads: usize,
    /// By number: who has arrived, and how many are to.
    barriers: [Barrier; 16],
}

#[derive(Clone, Copy, Default)]
struct Barrier {
    arrived: usize,
    /// 0: all threads of the block.
    count: u32,
}

/// Executes a launch.
pub(super) fn run(launch: &Launch) -> Result<Statistics, Fault> {
    validate(launch)?;
    let mut grid = Grid {
        context: Context {
            launch,
            code: &launch.entry.code,
            random: Random::new(launch.seed),
            statistics: Statistics::default(),
        },
        registers: initial_registers(launch),
        blocks: Vec::new(),
        next_block: 0,
        idle_passes: 0,
    };
    grid.run()?;
    Ok(grid.context.statistics)
}

fn validate(launch: &Launch) -> Result<(), Fault> {
    let fail = |what: String| Err(Fault::InvalidLaunch { what });
    let entry = launch.entry;
    let threads: u64 = launch.block.iter().map(|size| u64::from(*size)).product();
    if threads == 0 || launch.grid.contains(&0) {
        return fail(format!("grid {:?} or block {:?} is empty", launch.grid, launch.block));
    }
    let most = entry.max_threads.unwrap_or(1024).min(1024);
    if threads > u64::from(most) {
        return fail(format!("{threads} threads in a block, at most {most} are allowed"));
    }
    if entry.required_block.is_some_and(|required| required != launch.block) {
        return fail(format!("block {:?} is not what .reqntid demands", launch.block));
    }
    if launch.parameters.len() != entry.parameters_bytes {
        let (given, needed) = (launch.parameters.len(), entry.parameters_bytes);
        return fail(format!("{given} bytes of parameters, {needed} are needed"));
    }
    let needed = entry.slots.iter().filter_map(|content| match content {
        SlotContent::Variable { index, .. } => Some(index + 1),
        _ => None,
    });
    if needed.max().is_some_and(|needed| needed > launch.variables.len()) {
        return fail("addresses of module variables are missing".to_string());
    }
    Ok(())
}

/// A thread's register file, but for its special registers.
fn initial_registers(launch: &Launch) -> Vec<u64> {
    let value = |content: &SlotContent| match content {
        SlotContent::Register | SlotContent::Special(_) => GARBAGE,
        SlotContent::Value(value) => *value,
        SlotContent::Variable { index, offset_bytes } => {
            launch.variables[*index].wrapping_add(*offset_bytes as u64)
        }
        SlotContent::DynamicShared { offset_bytes } => {
            (launch.entry.dynamic_shared_offset_bytes as u64).wrapping_add(*offset_bytes as u64)
        }
    };
    launch.entry.slots.iter().map(value).collect()
}

struct Grid<'a> {
    context: Context<'a>,
    registers: Vec<u64>,
    /// Blocks that were started and have not ended, or whose stores have not reached memory.
    blocks: Vec<Block>,
    next_block: u64,
    idle_passes: u32,
}

impl Grid<'_> {
    fn run(&mut self) -> Result<(), Fault> {
        loop {
            self.start_blocks();
            if self.blocks.iter().all(|block| block.live_threads == 0) {
                self.finish();
                return Ok(());
            }
            let has_worked = self.pass()?;
            self.idle_passes = if has_worked { 0 } else { self.idle_passes + 1 };
            self.wait_if_idle();
        }
    }

    fn start_blocks(&mut self) {
        let launch = self.context.launch;
        let [x, y, z] = launch.grid.map(u64::from);
        let threads_per_block: usize = launch.block.iter().map(|size| *size as usize).product();
        while self.next_block < x * y * z {
            let live: usize = self.blocks.iter().map(|block| block.live_threads).sum();
            if !self.blocks.is_empty() && live + threads_per_block > RESIDENT_THREADS {
                return;
            }
            // Blocks that only wait for their stores to leave make room.
            self.blocks.retain_mut(|block| {
                if block.live_threads == 0 {
                    block.write_out_all();
                }
                block.live_threads > 0
            });
            let number = self.next_block;
            let index = [number % x, number / x % y, number / x / y].map(|index| index as u32);
            self.blocks.push(self.new_block(number, index));
            self.next_block += 1;
        }
    }

    fn new_block(&self, number: u64, index: [u32; 3]) -> Block {
        let Launch { entry, block: shape, dynamic_shared_bytes, .. } = self.context.launch;
        let count = shape.iter().product::<u32>();
        let shared_bytes = entry.dynamic_shared_offset_bytes + dynamic_shared_bytes;
        let threads = (0..count).map(|linear| {
            let thread =
                [linear % shape[0], linear / shape[0] % shape[1], linear / shape[0] / shape[1]];
            let mut registers = self.registers.clone();
            for (register, content) in registers.iter_mut().zip(&entry.slots) {
                if let SlotContent::Special(special) = content {
                    *register = self.special(*special, number, index, thread, linear);
                }
            }
            Thread {
                registers,
                at: 0,
                index: thread,
                lane: linear % WARP_THREADS as u32,
                state: State::Ready,
                local: vec![GARBAGE_BYTE; entry.local_bytes],
                stores: StoreBuffer::new(),
                polls: Polls::new(),
            }
        });
        Block {
            index,
            threads: threads.collect(),
            live_threads: count as usize,
            memory: BlockMemory {
                shared: vec![GARBAGE_BYTE; shared_bytes],
                stores: StoreBuffer::new(),
            },
            barriers: [Barrier::default(); 16],
        }
    }

    fn special(
        &self,
        special: Special,
        number: u64,
        block: [u32; 3],
        thread: [u32; 3],
        linear: u32,
    ) -> u64 {
        let launch = self.context.launch;
        let lane = linear % WARP_THREADS as u32;
        let below = (1u64 << lane) - 1;
        match special {
            Special::ThreadIndex(dimension) => u64::from(thread[usize::from(dimension)]),
            Special::BlockShape(dimension) => u64::from(launch.block[usize::from(dimension)]),
            Special::BlockIndex(dimension) => u64::from(block[usize::from(dimension)]),
            Special::GridShape(dimension) => u64::from(launch.grid[usize::from(dimension)]),
            Special::Lane => u64::from(lane),
            Special::Warp => u64::from(linear / WARP_THREADS as u32),
            Special::WarpCount => {
                u64::from(launch.block.iter().product::<u32>().div_ceil(WARP_THREADS as u32))
            }
            Special::Processor => number % PROCESSORS,
            Special::ProcessorCount => PROCESSORS,
            Special::LaneMaskEqual => below + 1,
            Special::LaneMaskLess => below,
            Special::LaneMaskLessEqual => 2 * below + 1,
            Special::LaneMaskGreater => 0xFFFF_FFFF & !(2 * below + 1),
            Special::LaneMaskGreaterEqual => 0xFFFF_FFFF & !below,
        }
    }

    /// A turn for every thread that can go on. False if they all only wait for memory to change.
    fn pass(&mut self) -> Result<bool, Fault> {
        let count = self.blocks.len();
        let first = self.context.random.below(count);
        let threads: usize = self.blocks.iter().map(|block| block.live_threads).sum();
        let is_large = threads > LARGE_GRID_THREADS;
        let lengths = if is_large { TURN_LENGTHS_OF_LARGE_GRIDS } else { TURN_LENGTHS };
        let mut has_worked = false;
        for number in 0..count {
            let block = &mut self.blocks[(first + number) % count];
            has_worked |= block.pass(&mut self.context, lengths)?;
            if (self.context.launch.stop)() {
                return Err(Fault::Stopped);
            }
        }
        Ok(has_worked)
    }

    fn wait_if_idle(&self) {
        if self.idle_passes < IDLE_PASSES_BEFORE_YIELD {
            return;
        }
        let is_flag_on_its_way = || {
            self.blocks.iter().any(|block| {
                block.memory.stores.has_strong()
                    || block.threads.iter().any(|thread| thread.stores.has_strong())
            })
        };
        if self.idle_passes < IDLE_PASSES_BEFORE_SLEEP || is_flag_on_its_way() {
            std::thread::yield_now();
        } else {
            std::thread::sleep(SLEEP);
        }
    }

    /// Writes out what is left: what others are meant to see at work first, and the rest when they had
    /// time to look.
    fn finish(&mut self) {
        let mut has_overtaken = false;
        for block in &mut self.blocks {
            let BlockMemory { stores: older, .. } = &mut block.memory;
            for thread in &mut block.threads {
                let has_strong = thread.stores.has_strong();
                thread.stores.write_out_strong(Some(older));
                has_overtaken |= has_strong && (thread.stores.has_weak() || older.has_weak());
            }
        }
        // An observer that this thread of the host runs has its chance, too.
        (self.context.launch.stop)();
        if has_overtaken {
            std::thread::sleep(PAUSE_AFTER_OVERTAKING);
        }
        for block in &mut self.blocks {
            block.write_out_all();
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}

impl Block {
    /// A turn for each of its threads. False if they all only wait for memory to change.
    fn pass(&mut self, context: &mut Context, turn_lengths: usize) -> Result<bool, Fault> {
        let count = self.threads.len();
        let first = context.random.below(count);
        // Upwards or downwards.
        let step = if context.random.one_in(2) { 1 } else { count - 1 };
        let (mut turns, mut has_worked) = (0, false);
        for number in 0..count {
            let number = (first + number * step) % count;
            let thread = &mut self.threads[number];
            thread.stores.tick(Some(&mut self.memory.stores), &mut context.random);
            if thread.state != State::Ready {
                continue;
            }
            turns += 1;
            let budget = 1 << context.random.below(turn_lengths);
            let result = context.turn(thread, &mut self.memory, budget);
            has_worked |= !thread.polls.is_waiting();
            if let Err(trouble) = result {
                return Err(self.fault(context, number, trouble));
            }
            if self.threads[number].state != State::Ready {
                self.leave_turn(context, number)?;
            }
        }
        self.memory.stores.tick(None, &mut context.random);
        if turns == 0 && self.live_threads > 0 {
            return Err(self.deadlock(context));
        }
        Ok(has_worked)
    }

    /// After a turn that ended at a barrier, a shuffle or the end.
    fn leave_turn(&mut self, context: &mut Context, number: usize) -> Result<(), Fault> {
        match self.threads[number].state {
            State::Ready => {}
            State::AtBarrier { id, count } => {
                let barrier = &mut self.barriers[id];
                if barrier.arrived > 0 && barrier.count != count {
                    let what = "threads wait at one barrier with different counts";
                    self.threads[number].at -= 1;
                    return Err(self.fault(context, number, Trouble::Illegal(what)));
                }
                barrier.count = count;
                barrier.arrived += 1;
                self.release_barrier(context, id);
            }
            State::InWarp { .. } => self.complete_warp(context, number)?,
            State::Ended => {
                self.live_threads -= 1;
                for id in 0..self.barriers.len() {
                    self.release_barrier(context, id);
                }
                let first = number / WARP_THREADS * WARP_THREADS;
                for other in first..self.threads.len().min(first + WARP_THREADS) {
                    self.complete_warp(context, other)?;
                }
            }
        }
        Ok(())
    }

    /// Lets the threads at a barrier go on if all have arrived. Those that have ended are not waited for.
    fn release_barrier(&mut self, context: &Context, id: usize) {
        let Barrier { arrived, count } = self.barriers[id];
        let needed = if count == 0 { self.live_threads } else { count as usize };
        if arrived == 0 || arrived < needed {
            return;
        }
        self.barriers[id] = Barrier::default();
        let is_here =
            |thread: &Thread| matches!(thread.state, State::AtBarrier { id: at, .. } if at == id);
        let holds = |thread: &Thread| match context.code[thread.at - 1].operation {
            Operation::BarrierReduce { value, negated, .. } => thread.is_true(value) != negated,
            _ => false,
        };
        let holding = self.threads.iter().filter(|thread| is_here(thread) && holds(thread)).count();
        for thread in self.threads.iter_mut().filter(|thread| is_here(thread)) {
            if let Operation::BarrierReduce { mode, to, .. } = context.code[thread.at - 1].operation
            {
                thread.registers[usize::from(to)] = match mode {
                    Reduce::Count => holding as u64,
                    Reduce::All => u64::from(holding == arrived),
                    Reduce::Any => u64::from(holding > 0),
                };
            }
            thread.state = State::Ready;
        }
    }

    fn complete_warp(&mut self, context: &Context, number: usize) -> Result<(), Fault> {
        let first = number / WARP_THREADS * WARP_THREADS;
        let end = self.threads.len().min(first + WARP_THREADS);
        warp::complete(&mut self.threads[first..end], number - first, context.code)
            .map_err(|what| self.fault(context, number, Trouble::Illegal(what)))
    }

    fn write_out_all(&mut self) {
        for thread in &mut self.threads {
            thread.stores.write_out_all(Some(&mut self.memory.stores));
        }
        self.memory.stores.write_out_all(None);
    }

    fn place(&self, context: &Context, number: usize) -> Place {
        let thread = &self.threads[number];
        Place {
            kernel: context.launch.entry.name.clone(),
            line: context.code[thread.at].line as usize,
            block: self.index,
            thread: thread.index,
        }
    }

    fn fault(&self, context: &Context, number: usize, trouble: Trouble) -> Fault {
        let at = self.place(context, number);
        match trouble {
            Trouble::IllegalAddress { space, address, len_bytes, access } => {
                let space = access::name(space);
                Fault::IllegalAddress { at, space, address, len_bytes, access }
            }
            Trouble::Misaligned { address, len_bytes } => {
                Fault::Misaligned { at, address, len_bytes }
            }
            Trouble::Trap => Fault::Trap { at },
            Trouble::Illegal(what) => Fault::IllegalInstruction { at, what: what.to_string() },
        }
    }

    fn deadlock(&self, context: &Context) -> Fault {
        let mut waiting: HashMap<u32, (usize, usize)> = HashMap::new();
        for (number, thread) in self.threads.iter().enumerate() {
            let at = match thread.state {
                State::AtBarrier { .. } => thread.at - 1,
                State::InWarp { .. } => thread.at,
                State::Ready | State::Ended => continue,
            };
            waiting.entry(context.code[at].line).or_insert((0, number)).0 += 1;
        }
        let mut lines: Vec<_> = waiting.into_iter().collect();
        lines.sort_unstable();
        let ended = self.threads.len() - self.live_threads;
        let what: Vec<String> = lines
            .iter()
            .map(|(line, (count, _))| format!("{count} threads wait at line {line}"))
            .collect();
        let (line, (_, number)) = lines[0];
        let at = Place { line: line as usize, ..self.place(context, number) };
        Fault::Deadlock { at, what: format!("{}, {ended} have ended", what.join(", ")) }
    }
}
