//! A small all-reduce over shared memory does not enter the kernel while the peer answers quickly.
//!
//! Each rank asks Linux to report the next system call of its thread (syscall user dispatch) before
//! every call. The report lets that one and what follows through, so that a call either was free of
//! them or counts as one that was not. The ranks answer each other quickly only while both have a
//! processor, which a busy machine now and then denies them: it is enough that a few hundred calls in
//! a row were free.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::cell::Cell;
use std::io;

use ringtree::{Op, Transports};
use ringtree_tests::ranks::on_ranks;

/// `prctl` options (linux/prctl.h).
const PR_SET_SYSCALL_USER_DISPATCH: libc::c_int = 59;
const PR_SYS_DISPATCH_OFF: libc::c_ulong = 0;
const PR_SYS_DISPATCH_ON: libc::c_ulong = 1;

/// What the selector says (linux/syscall_user_dispatch.h).
const ALLOW: u8 = 0;
const REPORT: u8 = 1;

thread_local! {
    /// Read by the kernel at each system call of the thread.
    static SELECTOR: Cell<u8> = const { Cell::new(ALLOW) };
}

const FREE_CALLS: i32 = 300;

/// Calls between two looks whether every rank has seen that, and how often to go on without.
const BATCH_CALLS: usize = 1000;
const BATCHES: usize = 100;

#[test]
fn a_small_all_reduce_does_not_enter_the_kernel() {
    handle_reports();
    for bytes in [8_usize, 48, 1024, 4096] {
        let free = on_ranks(2, Transports::Shm, |communicator| {
            let mut buffer = vec![0.0_f32; bytes / 4];
            let mut call = || communicator.all_reduce(&mut buffer, Op::Sum).expect("an all-reduce");
            (0..100).for_each(|_| call());
            let reporter = Reporter::start().expect("Linux 5.11 or later");
            (0..BATCHES).any(|_| {
                let is_free = || !reporter.enters_the_kernel(&mut call);
                let mut row = [-longest_free_row(BATCH_CALLS, is_free)];
                communicator.all_reduce(&mut row, Op::Max).expect("an all-reduce");
                row[0] <= -FREE_CALLS
            })
        });
        assert_eq!(free, [true; 2], "{bytes} bytes: no {FREE_CALLS} calls in a row are free");
    }
}

#[test]
fn a_system_call_is_seen_and_done() {
    handle_reports();
    let reporter = Reporter::start().expect("Linux 5.11 or later");
    let mut pid = 0;
    assert!(reporter.enters_the_kernel(|| {
        // SAFETY: the call takes nothing and touches no memory.
        pid = unsafe { libc::syscall(libc::SYS_getpid) };
    }));
    assert_eq!(pid, i64::from(std::process::id()));
    assert!(!reporter.enters_the_kernel(|| ()));
}

/// The ranks must make the same calls, so all are made, however it goes.
fn longest_free_row(calls: usize, mut is_free: impl FnMut() -> bool) -> i32 {
    let (mut longest, mut row) = (0, 0);
    for _ in 0..calls {
        row = if is_free() { row + 1 } else { 0 };
        longest = longest.max(row);
    }
    longest
}

/// While it lives, the system calls of this thread can be reported.
struct Reporter;

impl Reporter {
    fn start() -> io::Result<Reporter> {
        dispatch(PR_SYS_DISPATCH_ON, SELECTOR.with(Cell::as_ptr)).map(|()| Reporter)
    }

    /// Whether `work` makes a system call.
    fn enters_the_kernel(&self, work: impl FnOnce()) -> bool {
        SELECTOR.set(REPORT);
        work();
        SELECTOR.replace(ALLOW) == ALLOW
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        // A panic may have come from the midst of the work.
        SELECTOR.set(ALLOW);
        dispatch(PR_SYS_DISPATCH_OFF, std::ptr::null_mut()).expect("what was begun can be ended");
    }
}

fn dispatch(mode: libc::c_ulong, selector: *mut u8) -> io::Result<()> {
    // SAFETY: the selector is the thread's own and outlives the dispatch, which ends with it; no
    // range of code is exempt.
    let result =
        unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, mode, 0_usize, 0_usize, selector) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn handle_reports() {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = report;
    // SAFETY: all zero is a valid action; the handler does nothing but change a number of its own
    // thread and where that goes on.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut())
    };
    assert_eq!(result, 0);
}

/// Notes that a system call was made, and goes back to make it: the kernel has left its number and
/// its arguments in the registers.
extern "C" fn report(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    /// Bytes of the instruction `syscall`.
    const INSTRUCTION_BYTES: i64 = 2;
    SELECTOR.set(ALLOW);
    // SAFETY: the kernel hands the handler the interrupted thread's registers.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        registers[libc::REG_RIP as usize] -= INSTRUCTION_BYTES;
    }
}
