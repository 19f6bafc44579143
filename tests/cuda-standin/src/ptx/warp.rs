//! Instructions that several threads of a warp execute together: shuffles, votes and the warp's barrier.

use super::execute::{State, Thread};
use super::instruction::{Instruction, Operation, Shuffle, Slot, Vote};

/// Threads of a warp.
pub(super) const WARP_THREADS: usize = 32;

/// What a shuffle gives that reads a lane that takes no part: undefined on a GPU, a NaN here.
const POISON: u64 = 0x7FBA_DBAD;

/// Executes the instruction at which `lane` waits, if all that it names have arrived there. Threads that
/// have ended or never were count as arrived.
pub(super) fn complete(
    warp: &mut [Thread],
    lane: usize,
    code: &[Instruction],
) -> Result<(), &'static str> {
    let State::InWarp { mask } = warp[lane].state else { return Ok(()) };
    if mask >> lane & 1 == 0 {
        return Err("the mask does not name the thread that executes the instruction");
    }
    let at = warp[lane].at;
    let is_member = |thread: &Thread| mask >> thread.lane & 1 == 1 && thread.state != State::Ended;
    let has_arrived = |thread: &Thread| thread.at == at && thread.state == State::InWarp { mask };
    if warp.iter().any(|thread| is_member(thread) && !has_arrived(thread)) {
        return Ok(());
    }
    let members: Vec<usize> = (0..warp.len()).filter(|lane| is_member(&warp[*lane])).collect();
    match code[at].operation {
        Operation::Shuffle { mode, to, valid, value, lane, clamp, .. } => {
            let values: Vec<u64> = warp.iter().map(|thread| get(thread, value)).collect();
            for own in &members {
                let thread = &mut warp[*own];
                let (source, is_valid) =
                    source_lane(mode, *own as i32, get(thread, lane), get(thread, clamp));
                let source = source as usize;
                let result = if members.contains(&source) { values[source] } else { POISON };
                thread.registers[usize::from(valid)] = u64::from(is_valid);
                thread.registers[usize::from(to)] = result & 0xFFFF_FFFF;
            }
        }
        Operation::Vote { mode, to, value, negated, .. } => {
            let mut ballot = 0u32;
            for lane in &members {
                let is_true = get(&warp[*lane], value) & 1 == 1;
                ballot |= u32::from(is_true != negated) << lane;
            }
            let all = members.iter().fold(0, |all, lane| all | 1u32 << lane);
            let result = match mode {
                Vote::All => u32::from(ballot == all),
                Vote::Any => u32::from(ballot != 0),
                Vote::Uniform => u32::from(ballot == all || ballot == 0),
                Vote::Ballot => ballot,
            };
            for lane in &members {
                warp[*lane].registers[usize::from(to)] = u64::from(result);
            }
        }
        _ => {}
    }
    for lane in members {
        warp[lane].at += 1;
        warp[lane].state = State::Ready;
        warp[lane].polls.note_progress();
    }
    Ok(())
}

fn get(thread: &Thread, slot: Slot) -> u64 {
    thread.registers[usize::from(slot)]
}

/// The lane that `own` reads, and whether it lies in its segment of the warp. As PTX defines it.
fn source_lane(mode: Shuffle, own: i32, lane: u64, clamp: u64) -> (i32, bool) {
    let (distance, segment) = ((lane & 31) as i32, (clamp >> 8 & 31) as i32);
    let clamp = (clamp & 31) as i32;
    let limit = (own & segment) | (clamp & !segment);
    let (source, is_valid) = match mode {
        Shuffle::Up => (own - distance, own - distance >= limit),
        Shuffle::Down => (own + distance, own + distance <= limit),
        Shuffle::Butterfly => (own ^ distance, own ^ distance <= limit),
        Shuffle::Index => {
            let source = (own & segment) | (distance & !segment);
            (source, source <= limit)
        }
    };
    (if is_valid { source } else { own }, is_valid)
}
