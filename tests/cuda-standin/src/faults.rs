//! Calls that fail because a test wants them to.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::code::{Code, Result};
use crate::{api, context};

/// The call of a function that fails.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The function's name, with its suffix.
    pub function: String,
    /// Which call from now, counted from 1.
    pub call: u64,
    /// What it returns.
    pub code: i32,
}

/// How long a failure waits for what runs, which may itself wait for a value that does not come.
const MOST_WAIT: Duration = Duration::from_millis(200);

static PLANNED: Mutex<Vec<Failure>> = Mutex::new(Vec::new());
static ANY: AtomicBool = AtomicBool::new(false);

/// Reads `function:call:code`, several by comma.
pub fn parse(text: &str) -> std::result::Result<Vec<Failure>, String> {
    let one = |text: &str| {
        let fields: Vec<_> = text.split(':').collect();
        let [function, call, code] = fields[..] else { return None };
        let call = call.parse().ok().filter(|call| *call > 0)?;
        let code = code.parse().ok().filter(|code| *code > 0)?;
        api::exports(function).then(|| Failure { function: function.to_owned(), call, code })
    };
    let said = |text: &str| {
        format!("{text:?} is not like cuMemAlloc_v2:3:2, or there is no such function")
    };
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| one(part).ok_or_else(|| said(part)))
        .collect()
}

/// Replaces what is planned; calls are counted anew.
pub fn plan(failures: &[Failure]) {
    *PLANNED.lock().unwrap_or_else(PoisonError::into_inner) = failures.to_vec();
    ANY.store(!failures.is_empty(), SeqCst);
}

/// Counts a call, and fails it if that is planned. A sticky code poisons the caller's context, as if a kernel had
/// failed before.
pub fn check(function: &str) -> Result {
    if !ANY.load(SeqCst) {
        return Ok(());
    }
    let mut planned = PLANNED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut failed = None;
    for failure in planned.iter_mut().filter(|failure| failure.function == function) {
        failure.call = failure.call.saturating_sub(1);
        if failure.call == 0 {
            failed = Some(Code(failure.code));
        }
    }
    planned.retain(|failure| failure.call > 0);
    drop(planned);
    let Some(code) = failed else { return Ok(()) };
    if code.is_sticky()
        && let Ok(context) = context::current()
    {
        context.poison(code);
        // Nothing runs on a device whose context is broken.
        let began = Instant::now();
        let is_running = || context.streams().iter().any(|stream| stream.is_running());
        while is_running() && began.elapsed() < MOST_WAIT {
            std::thread::yield_now();
        }
    }
    Err(code)
}
